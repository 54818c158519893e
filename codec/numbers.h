/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arrays of numbers in payloads, little-endian binary32 or bfloat16. Numbers of an archive are zero or normal: some processors flush denormals, and no weight needs them.
 */
#ifndef ICMA_NUMBERS_H
#define ICMA_NUMBERS_H

#include "bytes.h"
#include "dtype.h"

/* Bytes of one number; dtype is ICMA_F32 or ICMA_BF16 here and below. */
size_t icma_number_size(icma_dtype dtype);
/* Rounds the values in place to what a reader will have: to the nearest of the dtype, ties to even; what is then neither zero nor normal becomes +0. */
void icma_write_floats(icma_buffer *out, float *values, size_t count, icma_dtype dtype);
/* False when the cursor ran dry or a number is neither zero nor normal. */
bool icma_read_floats(icma_cursor *from, float *values, size_t count, icma_dtype dtype);
bool icma_all_positive(const float *values, size_t count);
/* rows x columns zeros, owned by the caller (icma_free); an array of none is not an error, and is NULL. False: no memory. */
bool icma_make_floats(float **out, size_t rows, size_t columns);

#endif
