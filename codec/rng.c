/* SPDX-License-Identifier: Apache-2.0 */
#include "rng.h"

#include <math.h>

icma_rng icma_rng_seed(uint64_t seed) {
    return (icma_rng){seed};
}

uint64_t icma_rng_next(icma_rng *rng) {
    uint64_t z = rng->state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

uint64_t icma_rng_below(icma_rng *rng, uint64_t bound) {
    uint64_t reject = (0 - bound) % bound; /* 2^64 mod bound: values below it would be favoured */
    uint64_t value;
    do
        value = icma_rng_next(rng);
    while (value < reject);
    return value % bound;
}

double icma_exact_log(double x) {
    /* x = m 2^e with m in [sqrt(1/2), sqrt(2)); ln m = 2 atanh(t), t = (m - 1) / (m + 1), |t| < 0.172. */
    int e;
    double m = frexp(x, &e);
    if (m < 0x1.6a09e667f3bcdp-1) {
        m *= 2;
        e--;
    }
    double t = (m - 1) / (m + 1), s = t * t;
    double sum = 1.0 / 19;
    for (int k = 17; k >= 1; k -= 2)
        sum = fma(sum, s, 1.0 / k);
    return fma((double)e, 0x1.62e42fefa39efp-1, 2 * t * sum);
}

/* 53 random bits as a multiple of 2^-52 in [-1, 1). */
static double uniform_signed(icma_rng *rng) {
    return (double)(icma_rng_next(rng) >> 11) * 0x1p-52 - 1;
}

float icma_rng_normal(icma_rng *rng) {
    double u, v, s;
    do {
        u = uniform_signed(rng);
        v = uniform_signed(rng);
        s = fma(u, u, v * v);
    } while (s >= 1 || s == 0);
    return (float)(u * sqrt(-2 * icma_exact_log(s) / s));
}

void icma_rng_shuffle(icma_rng *rng, uint32_t *items, size_t count) {
    for (size_t i = count; i > 1; i--) {
        size_t j = (size_t)icma_rng_below(rng, i);
        uint32_t held = items[i - 1];
        items[i - 1] = items[j];
        items[j] = held;
    }
}
