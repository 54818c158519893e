/* SPDX-License-Identifier: Apache-2.0 */
#include "memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void *libc_resize(void *context, void *pointer, size_t size) {
    (void)context;
    return realloc(pointer, size);
}

static void libc_release(void *context, void *pointer) {
    (void)context;
    free(pointer);
}

static const icma_allocator libc_allocator = {libc_resize, libc_release, NULL};
static icma_allocator allocator = {libc_resize, libc_release, NULL};

void icma_memory_set_allocator(const icma_allocator *replacement) {
    allocator = replacement ? *replacement : libc_allocator;
}

void *icma_alloc(size_t size) {
    return size ? allocator.resize(allocator.context, NULL, size) : NULL;
}

void *icma_alloc_array(size_t count, size_t size) {
    size_t total;
    return icma_multiply_size(count, size, &total) ? icma_alloc(total) : NULL;
}

void *icma_alloc_zeroed(size_t count, size_t size) {
    void *pointer = icma_alloc_array(count, size);
    if (pointer)
        memset(pointer, 0, count * size);
    return pointer;
}

void *icma_resize_array(void *pointer, size_t count, size_t size) {
    size_t total;
    if (!icma_multiply_size(count, size, &total) || total == 0)
        return NULL;
    return allocator.resize(allocator.context, pointer, total);
}

char *icma_copy_text(const char *text, size_t length) {
    size_t size;
    char *copy = icma_add_size(length, 1, &size) ? icma_alloc(size) : NULL;
    if (!copy)
        return NULL;
    if (length)
        memcpy(copy, text, length);
    copy[length] = '\0';
    return copy;
}

char *icma_copy_string(const char *text) {
    return text ? icma_copy_text(text, strlen(text)) : NULL;
}

void icma_free(void *pointer) {
    if (pointer)
        allocator.release(allocator.context, pointer);
}

bool icma_multiply_size(size_t a, size_t b, size_t *out) {
    if (b && a > SIZE_MAX / b)
        return false;
    *out = a * b;
    return true;
}

bool icma_add_size(size_t a, size_t b, size_t *out) {
    if (a > SIZE_MAX - b)
        return false;
    *out = a + b;
    return true;
}

bool icma_round_up_size(size_t a, size_t b, size_t *out) {
    size_t over = a % b;
    return icma_add_size(a, over ? b - over : 0, out);
}
