/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sorting without allocation, recursion or a bad case: libc's qsort may allocate behind the allocation hook
 * and may be quadratic, and it is fed with strangers' keys here.
 */
#ifndef ICMA_SORT_H
#define ICMA_SORT_H

#include <stddef.h>

/* Negative, zero or positive, like strcmp. */
typedef int icma_compare(const void *a, const void *b, const void *context);

/* In place, O(n log n) always, O(n) when in order already; not stable, so let `compare` break ties. */
void icma_sort(void *base, size_t count, size_t width, icma_compare *compare, const void *context);

#endif
