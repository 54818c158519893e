/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoded adapters in a GPU's memory, for programs that serve models: no trip through files or host memory.
 *
 *     const struct icma_ops *gpu;
 *     icma_device_open("cuda:0", ICMA_PRECISION_F32, (icma_device_work){0}, &gpu, &error);
 *     icma_bundle_open("loras.icma", gpu, NULL, &bundle, &error);
 *     icma_bundle_decode_on_device(bundle, task, checkpoint, false, &adapter, &error);       (icma.h)
 *     void *weights = icma_cuda_pointer(gpu, adapter.data);                                  tensor t is
 * weights + adapter.tensors[t].offset
 *     ... use it on icma_cuda_stream(gpu), or after waiting for that stream ...
 *     icma_device_adapter_free(&adapter);
 *
 * Calls leave this GPU the calling thread's current one. Opening takes some 130 MiB of the GPU's memory and
 * 50 MiB of pinned memory for as long as the process lives, and what adapters took stays with the device's
 * default pool for the next ones. icma_device_adapter_free waits for nobody: if the weights are used on
 * another stream, let icma_cuda_stream wait for an event of that one (or synchronise) before.
 *
 * No CUDA header is needed here; what is returned converts to the types that CUDA's own functions take.
 */
#ifndef ICMA_CUDA_H
#define ICMA_CUDA_H

#include "device.h"

ICMA_API_BEGIN

struct icma_tensor; /* icma_device_adapter.data (icma.h) */

/* The device memory of a tensor of a table that icma_device_open gave for "cuda" or "cuda:N"; NULL for other
 * tables. It lives as long as the tensor. */
void *icma_cuda_pointer(const struct icma_ops *ops, const struct icma_tensor *tensor);
/* The cudaStream_t in whose order everything of the table happens; NULL for other tables (which is also
 * CUDA's default stream: ask icma_cuda_pointer). It lives as long as the process. */
void *icma_cuda_stream(const struct icma_ops *ops);

ICMA_API_END

#endif
