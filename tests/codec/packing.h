/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small trees of adapters, and what tests do with a whole archive. A root has the tree in "in"; archives lie
 * beside it. Everything but the packing itself fails the running test.
 */
#ifndef ICMA_TESTS_PACKING_H
#define ICMA_TESTS_PACKING_H

#include "icma.h"
#include "ops.h"
#include "support.h"

/* Adapters of `modules` pairs A (rank x in), B (out x rank): a task's checkpoints move along two directions,
 * slowly turning, with a little noise. A task is a seed; `from` is the first step, further ones are 10 apart.
 */
typedef struct trajectory {
    uint64_t seed;
    size_t modules, rank, in, out;
    icma_dtype dtype;
    double noise; /* 0.002: small beside the movement of 0.1 */
} trajectory;

extern const trajectory small_trajectory; /* two modules, rank 2, 12 in, 10 out, F32 */

void packing_write(const char *root, const char *task, const trajectory *t, size_t first_step, size_t count);
/* in/<task>/checkpoint-<step>/adapter_model.safetensors from tensors in this order. */
void packing_write_tensors(const char *root, const char *task, size_t step, const support_tensor *tensors,
                           size_t count);
/* Condition files, in/<task>/task_vector.*. */
void packing_write_npy(const char *root, const char *task, const float *values, size_t count);
void packing_write_vector(const char *root, const char *task, icma_dtype dtype, const float *values,
                          size_t count);

/* The defaults with few epochs: enough where nothing is asked of the training. */
icma_pack_options packing_options(void);
/* Finds root/in and packs it to root/<name>. */
icma_status packing_try(const char *root, const char *name, const icma_pack_options *options,
                        icma_pack_result *result, icma_error *error);
/* The same on another device. */
icma_status packing_try_on(const icma_ops *ops, const char *root, const char *name,
                           const icma_pack_options *options, icma_pack_result *result, icma_error *error);
/* packing_try; must succeed. `result` may be NULL. */
void packing_pack(const char *root, const char *name, const icma_pack_options *options,
                  icma_pack_result *result);

/* root/<relative>, whole; the caller frees with support_free. */
uint8_t *packing_read(const char *root, const char *relative, size_t *size);
bool packing_same_files(const char *root, const char *a, const char *b);
/* Fails unless root holds `in` and, of the rest, exactly these names (NULL: none). */
void packing_check_folder(const char *root, const char *only);

icma_bundle *packing_open(const char *root, const char *name, const icma_ops *ops);
/* Decodes checkpoint `index` of a task by its name. */
void packing_decode(icma_bundle *bundle, const char *task, size_t index, icma_decoded *out);
/* The original that a checkpoint came from: in/<task>/checkpoint-<step>/adapter_model.safetensors. */
uint8_t *packing_original(const char *root, const char *task, uint64_t step, size_t *size);
/* |x - y| / |x| over the float tensors of two files with equal headers (which it checks); non-finite elements
 * and the tensors that are no floats must be equal bit for bit. */
double packing_error(const uint8_t *original, const uint8_t *decoded, size_t size);
/* The error that a bound limits, from the definition alone: nothing of codec/ is used but the reading of
 * numbers. Of two files with equal headers (which it checks), the largest over all pairs (lora_A and lora_B,
 * two-dimensional, by their names) and tensors; 0 where they are the same bits. dW is formed element by
 * element, in double. What is no F32, F16 or BF16, or not finite, must be equal bit for bit: else INFINITY.
 */
double packing_bound_error(const uint8_t *original, const uint8_t *decoded, size_t size,
                           icma_bound_kind kind);
/* Whether that holds `bound`. A measure may be off by what double loses where dW is small beside its factors.
 */
bool packing_within(double error, icma_bound bound);
/* Decodes all checkpoints of all tasks, finds their originals by their steps, and returns the largest error.
 */
double packing_worst_error(const char *root, const char *name);

#endif
