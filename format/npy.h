/* SPDX-License-Identifier: Apache-2.0 */
/* A strict reader for the one kind of .npy file that icma takes: a one-dimensional little-endian float array
 * ('<f2', '<f4' or '<f8'), as a task's condition vector. */
#ifndef ICMA_NPY_H
#define ICMA_NPY_H

#include "file.h"

/* *values (owned by the caller, icma_free) gets *count floats (f8 rounded to nearest). Non-finite values,
 * other dtypes, Fortran order, other ranks, an empty array: ICMA_E_UNSUPPORTED; malformed: ICMA_E_CORRUPT;
 * more than `max_count` values: ICMA_E_LIMIT. */
icma_status icma_npy_read_vector(const char *path, size_t max_count, float **values, size_t *count,
                                 icma_error *error);

#endif
