/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Vectors that need no more than a byte a number: conditions, and what projects them (spec 2.7). number = integer * 2^exponent, |integer| at most 127, one exponent a vector: the
 * least that holds its largest magnitude. So rounding twice is rounding once, and products with it are exact.
 */
#ifndef ICMA_COARSE_H
#define ICMA_COARSE_H

#include "bytes.h"

/* Rounds finite numbers in place. What is too small for the exponent -126 becomes 0. */
void icma_coarse_round(float *values, size_t count);
/* The exponent (a signed byte), then the integers. Rounds first. */
void icma_coarse_write(icma_buffer *out, float *values, size_t count);
/* False where the cursor runs dry, the exponent is outside -126 .. 120 or an integer is -128. */
bool icma_coarse_read(icma_cursor *from, float *values, size_t count);

#endif
