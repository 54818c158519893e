/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Trellis-coded quantisation (Marcellin and Fischer 1990) with two interleaved uniform quantisers (spec 4.13).
 *
 * A value is step * i. In a run that is coded in a context of at least ICMA_TRELLIS_CONTEXT the integers i are those of a trellis: with symbols k and a state s that
 * is 0 at the run's start and at every 65,536th symbol after it,
 *
 *   i = 2 k + parity(s & 5),   next s = (2 s + (parity(k) ^ parity(s & 12))) mod 16,   parity(x) = number of ones mod 2
 *
 * In each state half the integers can be had, with half the symbols, and the encoder steers the state to where they lie near: 0.06 bits a weight above the Gaussian
 * rate-distortion function at 4 bits and 0.13 at 2, where rounding stays 0.26 and 0.31 above (bench/bench_coder.c). In all other contexts i = 2 k.
 */
#ifndef ICMA_TRELLIS_H
#define ICMA_TRELLIS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    ICMA_TRELLIS_CONTEXT = 57,   /* of rans.h: symbols of spread 0.57 and more */
    ICMA_TRELLIS_LARGEST = 16383, /* of |k|, so that |i| stays under 2^15 */
};
/* Mean squared error at high rates, in squared steps; and log2 of how much wider the steps of plain rounding are at the same error. */
#define ICMA_TRELLIS_NOISE 0.2535
#define ICMA_TRELLIS_OCTAVES 0.803

/* Integers of a run from its symbols, in place. False if a symbol is beyond ICMA_TRELLIS_LARGEST. */
bool icma_trellis_expand(unsigned context, int32_t *symbols, size_t count);
/* The same of one block of a run in a context of the trellis: up to ICMA_TRELLIS_BLOCK symbols within range, the first at a multiple of that from the run's start. */
void icma_trellis_expand_block(int16_t *symbols, size_t count);
/* The symbol that an integer came from, in every context. */
static inline int32_t icma_trellis_symbol(int32_t integer) {
    return integer >= 0 ? integer >> 1 : ~(~integer >> 1);
}

/* For values in steps, |value| below 2 ICMA_TRELLIS_LARGEST: symbols that minimise the sum of squared errors, in squared steps, + price * bits (Viterbi over the states, or rounding), and
 * the context to code them in; *bits gets what they take. scratch: ICMA_TRELLIS_SCRATCH bytes. price 1 is the slope of the rate-distortion curve there. */
enum { ICMA_TRELLIS_BLOCK = 1 << 16, ICMA_TRELLIS_SCRATCH = ICMA_TRELLIS_BLOCK * 16 };
unsigned icma_trellis_quantise(const float *values, size_t count, double price, int32_t *symbols, uint8_t *scratch, double *bits);

#endif
