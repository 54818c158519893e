/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What tests of the codec share: folders that go away again, small safetensors files, repeatable random
 * numbers. Everything fails the running test (cmocka) instead of returning an error. Link support.c.
 */
#ifndef ICMA_TESTS_SUPPORT_H
#define ICMA_TESTS_SUPPORT_H

#include "ops.h"
#include "safetensors.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>
/* cmocka.h needs the four above it. */
#include <cmocka.h>

/* The tables to test: the reference, the CPU's, and that of a device, if support_device() has one. Returns how many. */
enum { SUPPORT_TABLES = 3 };
size_t support_tables(const icma_ops *list[SUPPORT_TABLES]);
/* NULL, from no_device.c; tests/gpu links another. */
const icma_ops *support_device(void);

/* A new empty folder under TMPDIR; the caller frees it with support_remove_tree. */
char *support_new_folder(void);
void support_remove_tree(char *root); /* removes everything beneath, and frees `root` */

/* `relative` is beneath `root`; folders on the way are made. */
void support_make_folder(const char *root, const char *relative);
void support_write_file(const char *root, const char *relative, const void *data, size_t size);
void support_write_text(const char *root, const char *relative, const char *text);
/* A safetensors file of the given header text (padded to 8 bytes with spaces) and data. */
void support_write_safetensors(const char *root, const char *relative, const char *header, const void *data,
                               size_t size);
/* A small valid LoRA adapter: one PEFT pair of rank 2. */
void support_write_lora(const char *root, const char *relative);
void support_make_link(const char *root, const char *relative, const char *target);
void support_make_pipe(const char *root, const char *relative);
/* root/relative, to be freed with support_free. */
char *support_path(const char *root, const char *relative);
void support_free(void *pointer);

typedef struct support_tensor {
    const char *name;
    icma_dtype dtype;
    unsigned rank;
    uint64_t shape[ICMA_MAX_RANK];
    const float *values; /* for F32, F16, BF16; NULL: zeros */
    const void *bytes;   /* for any dtype, instead of values */
} support_tensor;

/* A whole safetensors file in memory and its parsed header. Tensors lie in the given order. */
typedef struct support_image {
    uint8_t *bytes;
    size_t size;
    icma_safetensors tensors;
    const uint8_t *data;
} support_image;

void support_build_image(const support_tensor *tensors, size_t count, support_image *out);
void support_free_image(support_image *image);

/* The same numbers on every run: `state` starts as the seed. */
double support_uniform(uint64_t *state); /* 0 <= x < 1 */
double support_normal(uint64_t *state);
/* `count` normal floats; to be freed with support_free. */
float *support_normals(uint64_t *state, size_t count);

/* Makes allocations of the library fail after `left` of them; `live` counts those not yet freed. NULL: no
 * limit again. */
typedef struct support_budget {
    size_t left, live;
} support_budget;
void support_limit_memory(support_budget *budget);
/* Runs `work` with 0, 1, 2, ... allocations until it succeeds, which takes more than `least` and less than
 * `most`: before that it fails for want of memory, and it never leaves any behind. */
void support_fail_each_allocation(icma_status (*work)(void), size_t least, size_t most);

#endif
