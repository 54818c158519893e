/* SPDX-License-Identifier: Apache-2.0 */
/* A task's condition vector from a file beside its adapters, or one for `icma generate`. */
#ifndef ICMA_CONDITION_FILE_H
#define ICMA_CONDITION_FILE_H

#include "status.h"

#include <stddef.h>

/* Reads the only tensor, one-dimensional, of a safetensors file (F32, F16, BF16), or a .npy file (npy.h)
 * where the name ends so. *values (owned by the caller, icma_free) has *count numbers, as they are in the
 * file: 1 to ICMA_MAX_CONDITION, all finite. Anything else is ICMA_E_UNSUPPORTED, or ICMA_E_LIMIT where there
 * are too many; and what the readers of these files fail with. */
icma_status icma_condition_load(const char *path, float **values, size_t *count, icma_error *error);

#endif
