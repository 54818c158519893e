/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Public structs of options, whose first member is their size, a size_t: a program may have been compiled
 * with fewer members at the end (version.h). Private to the library.
 */
#ifndef ICMA_SIZED_H
#define ICMA_SIZED_H

#include "status.h"

#include <stddef.h>

/* Fills the first `size` bytes of a program's struct with those of `standard`, the library's own of `known`
 * bytes; with zeros beyond. */
void icma_sized_fill(void *out, size_t size, const void *standard, size_t known);

/* Puts a program's struct over `out`, which has the library's defaults in its `known` bytes and keeps that
 * size. ICMA_E_USAGE where the program's has less than `least` bytes or more than are known, with words that
 * start with `what` ("pack options of") and name the function `defaults` to start from. */
icma_status icma_sized_take(void *out, size_t known, const void *given, size_t least, const char *what,
                            const char *defaults, icma_error *error);

#endif
