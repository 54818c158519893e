/* SPDX-License-Identifier: Apache-2.0 */
/* Where the library's memory comes from, and how what it gave away is freed. */
#ifndef ICMA_ALLOCATOR_H
#define ICMA_ALLOCATOR_H

#include "api.h"

#include <stddef.h>

ICMA_API_BEGIN

/* Replaces malloc, realloc and free, for programs that count or limit, and for tests that make the k-th
 * allocation fail. Libraries below (zstd, OpenBLAS) have their own. */
typedef struct icma_allocator {
    void *(*resize)(void *context, void *pointer,
                    size_t size); /* pointer NULL: allocate; 64-byte alignment is not needed */
    void (*release)(void *context, void *pointer);
    void *context;
} icma_allocator;

/* Copied. NULL restores libc's. Not thread-safe: set before any other call. */
void icma_memory_set_allocator(const icma_allocator *allocator);

/* Frees what a function's comment says is the caller's. NULL is fine. */
void icma_free(void *pointer);

ICMA_API_END

#endif
