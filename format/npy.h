/* SPDX-License-Identifier: Apache-2.0 */
/* A strict reader for the kinds of .npy file that icma takes: little-endian float arrays ('<f2', '<f4' or
 * '<f8') of one dimension, as a task's condition vector, or of two, as the vectors of its samples. */
#ifndef ICMA_NPY_H
#define ICMA_NPY_H

#include "file.h"

/* *values (owned by the caller, icma_free) gets *count floats (f8 rounded to nearest). Non-finite values,
 * other dtypes, Fortran order, other ranks, an empty array: ICMA_E_UNSUPPORTED; malformed: ICMA_E_CORRUPT;
 * more than `max_count` values: ICMA_E_LIMIT. */
icma_status icma_npy_read_vector(const char *path, size_t max_count, float **values, size_t *count,
                                 icma_error *error);
/* The same with one row a sample; one dimension is one row. *values has rows * columns of them. */
icma_status icma_npy_read_matrix(const char *path, size_t max_count, float **values, size_t *rows,
                                 size_t *columns, icma_error *error);

#endif
