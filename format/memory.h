/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory: one hook for every allocation of the program, and size arithmetic that cannot wrap.
 *
 * Sizes that come from a file are capped by their reader before they get here.
 */
#ifndef ICMA_MEMORY_H
#define ICMA_MEMORY_H

#include "allocator.h"

#include <stdbool.h>
#include <stddef.h>

/* All return NULL when memory is short or size is 0 (never a pointer to nothing). The caller frees. */
void *icma_alloc(size_t size);
void *icma_alloc_zeroed(size_t count, size_t size); /* checks count * size */
void *icma_alloc_array(size_t count, size_t size);  /* checks count * size; uninitialised */
void *icma_resize_array(void *pointer, size_t count, size_t size);
char *icma_copy_string(const char *text);              /* NULL in, NULL out */
char *icma_copy_text(const char *text, size_t length); /* adds the NUL */

/* *out = a * b, a + b, or a rounded up to a multiple of b (b > 0). False, and *out untouched, on overflow. */
bool icma_multiply_size(size_t a, size_t b, size_t *out);
bool icma_add_size(size_t a, size_t b, size_t *out);
bool icma_round_up_size(size_t a, size_t b, size_t *out);

#endif
