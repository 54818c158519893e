/* SPDX-License-Identifier: Apache-2.0 */
/* What a uniform quantiser makes of a Gaussian: the rate model that the basis is chosen with. */
#ifndef ICMA_RATE_H
#define ICMA_RATE_H

/* For N(0, ratio^2) rounded to integers: entropy in bits, and mean squared error in squared steps (at high rates log2(ratio sqrt(2 pi e)) and 1/12). ratio >= 0. */
void icma_rate_gaussian(double ratio, double *bits, double *distortion);

/* For N(0, ratio^2) quantised to integers by icma_trellis_quantise: bits, and mean squared error in squared steps. Fitted to measurements of the trellis
 * (bench/bench_coder.c): 0.06 bits above the rate-distortion function at high rates, 0.12 where the symbols' spread is 1. */
void icma_rate_trellis(double ratio, double *bits, double *distortion);

/* Bits of the integer k among N(0, ratio^2) rounded to integers: -log2 of its cell's probability. ratio > 0, k >= 0; far out the density is used. */
double icma_rate_cell(double ratio, int k);

#endif
