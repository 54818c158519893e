/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random numbers that are the same everywhere: SplitMix64 (Steele, Lea, Flood 2014) and a normal variate made of exactly defined
 * operations only (spec 4.8), because `unpack --sample` must give the same adapter on every machine.
 */
#ifndef ICMA_RNG_H
#define ICMA_RNG_H

#include <stddef.h>
#include <stdint.h>

typedef struct icma_rng {
    uint64_t state;
} icma_rng;

icma_rng icma_rng_seed(uint64_t seed);
uint64_t icma_rng_next(icma_rng *rng);
/* Uniform in 0 .. bound - 1 without bias; bound > 0. */
uint64_t icma_rng_below(icma_rng *rng, uint64_t bound);
/* N(0, 1): Marsaglia's polar method, first variate of each pair, logarithm as in spec 4.8. */
float icma_rng_normal(icma_rng *rng);
/* Natural logarithm of x in (0, 1] by +, *, /, fma only (spec 4.8); within 1e-15 relative of the true one. */
double icma_exact_log(double x);
/* A random permutation of 0 .. count - 1 (Fisher and Yates). */
void icma_rng_shuffle(icma_rng *rng, uint32_t *items, size_t count);

#endif
