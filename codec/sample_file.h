/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors of a task's samples from a file. */
#ifndef ICMA_SAMPLE_FILE_H
#define ICMA_SAMPLE_FILE_H

#include "status.h"

#include <stddef.h>

/* A safetensors file of one tensor of F32, F16 or BF16, or an .npy file (by its name) of '<f2', '<f4' or
 * '<f8', of one row a sample; one dimension is one row. *values (owned by the caller, icma_free) has rows *
 * columns numbers, all finite; at most `most` (ICMA_E_LIMIT). */
icma_status icma_samples_read(const char *path, size_t most, float **values, size_t *rows, size_t *columns,
                              icma_error *error);

#endif
