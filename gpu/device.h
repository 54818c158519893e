/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening a device: the op table (codec/ops.h) that the codec is to compute with. Who asks for none computes
 * on the CPU.
 *
 * What knows CUDA is a module, icma_cuda.so, which is loaded when a GPU is asked for, so that the program
 * starts on machines without CUDA. It is looked for where the library or program that asks has its run path:
 * beside it in a build folder, in lib/icma of an installation; and, for programs that link libicma.a, in
 * lib/icma of the prefix that libicma was configured for.
 */
#ifndef ICMA_DEVICE_H
#define ICMA_DEVICE_H

#include "status.h"

#include <stddef.h>

ICMA_API_BEGIN

struct icma_ops; /* codec/ops.h */

/* How a GPU multiplies in training. Decoding is exact whatever this says. */
typedef enum icma_precision {
    ICMA_PRECISION_F32,
    ICMA_PRECISION_TF32, /* factors rounded to 10 bits of significand, sums in f32 */
    ICMA_PRECISION_BF16, /* factors rounded to bfloat16, sums in f32 */
} icma_precision;

/* What there is to do, for "auto" to decide by: multiply-adds of training and of modelled decoding, and bytes
 * that go to the device or come from it. */
typedef struct icma_device_work {
    double operations, bytes;
} icma_device_work;

/* `name` is "auto", "cpu", "reference" (plain scalar loops: the oracle), "cuda" or "cuda:N". "auto" is a GPU
 * where there is one and the work is worth waking it, else the CPU. ICMA_E_USAGE for any other; ICMA_E_DEVICE
 * with the reason when it is not there. The table is owned by the library and lives as long as the process;
 * opening a device again, also with another precision, gives the same table, which then multiplies as the
 * last call said. Not thread-safe. */
icma_status icma_device_open(const char *name, icma_precision precision, icma_device_work work,
                             const struct icma_ops **out, icma_error *error);
/* Why `opened` is what icma_device_open(name, ..., work, ...) gave: a sentence for people, at most `size`
 * bytes with its NUL. */
void icma_device_explain(const char *name, icma_device_work work, const struct icma_ops *opened, char *text,
                         size_t size);
/* "f32", "tf32", "bf16"; ICMA_E_USAGE for another. */
icma_status icma_precision_from_name(const char *name, icma_precision *out, icma_error *error);

ICMA_API_END

#endif
