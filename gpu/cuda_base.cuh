/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every .cu file starts from: CUDA, or on the host its emulation (emulation/README.md), and the C
 * headers of the floors below.
 *
 * Kernels are launched through ICMA_LAUNCH, or ICMA_LAUNCH_FLAT where they have neither barrier nor warp
 * collective, so that the emulation can run them. Compiled with --fmad=false: a multiply-add is fused only
 * where
 * __fmaf_rn says so.
 */
#ifndef ICMA_CUDA_BASE_CUH
#define ICMA_CUDA_BASE_CUH

#ifndef ICMA_CUDA_ON_HOST
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>
#define ICMA_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#define ICMA_LAUNCH_FLAT ICMA_LAUNCH
#endif

extern "C" {
#include "module.h"
}

#include <stddef.h>
#include <stdint.h>

struct icma_tensor {
    icma_element element;
    size_t count;
    void *data; /* on the device */
};

enum { ICMA_WARP = 32 };

/* A view in a kernel: element (i, j) is p[i * stride + j]. */
template <class T> struct icma_view {
    T *p;
    size_t stride;
    __device__ __forceinline__ T &at(size_t i, size_t j) const {
        return p[i * stride + j];
    }
};
typedef icma_view<float> icma_floats;

static inline icma_floats icma_floats_of(icma_matrix m) {
    icma_floats view = {m.tensor ? (float *)m.tensor->data + m.offset : NULL, m.stride};
    return view;
}

static inline bool icma_is_contiguous(icma_matrix m) {
    return m.stride == m.columns || m.rows == 1;
}

static inline size_t icma_pieces(size_t count, size_t piece) {
    return (count + piece - 1) / piece;
}

static inline size_t icma_least(size_t a, size_t b) {
    return a < b ? a : b;
}

static inline size_t icma_most(size_t a, size_t b) {
    return a > b ? a : b;
}

#endif
