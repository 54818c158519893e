/* SPDX-License-Identifier: Apache-2.0 */
/* What the tables on the CPU share: their tensors are plain memory. Private to ops_*.c. */
#ifndef ICMA_OPS_HOST_H
#define ICMA_OPS_HOST_H

#include "ops.h"

#include <assert.h>

struct icma_tensor {
    icma_element element;
    size_t count;
    void *data;
};

static inline float *icma_row(icma_matrix m, size_t i) {
    assert(m.tensor->element == ICMA_ELEMENT_F32);
    assert(m.rows == 0 || m.offset + (m.rows - 1) * m.stride + m.columns <= m.tensor->count);
    return (float *)m.tensor->data + m.offset + i * m.stride;
}

static inline const int16_t *icma_row_i16(icma_matrix m, size_t i) {
    assert(m.tensor->element == ICMA_ELEMENT_I16);
    assert(m.rows == 0 || m.offset + (m.rows - 1) * m.stride + m.columns <= m.tensor->count);
    return (const int16_t *)m.tensor->data + m.offset + i * m.stride;
}

/* Outputs first .. first + count - 1 of one row of a basis product (count is at most ICMA_BASIS_BLOCK): a[k] = q[k] * step[k] is given. */
enum { ICMA_BASIS_BLOCK = 1024 };
typedef void (*icma_basis_kernel)(const float *a, size_t rows, const int16_t *head, size_t stride, size_t count, float scale, float *y);
/* y[o] = chain over j of fma(x[j], w[j * stride + o], y[o]), `count` outputs. */
typedef void (*icma_linear_kernel)(const float *x, size_t inputs, const float *w, size_t stride, size_t count, float *y);

/* y[l] = fma(integers[l], step, y[l]). */
typedef void (*icma_dequantise_kernel)(const int16_t *integers, size_t count, float step, float *y);

typedef struct icma_kernels {
    const char *name; /* "scalar", "avx2", "avx512" */
    icma_basis_kernel basis;
    icma_linear_kernel linear;
    icma_dequantise_kernel dequantise;
} icma_kernels;
enum { ICMA_KERNEL_SETS = 3 };
/* Every set that this processor runs, slowest ("scalar") first; returns how many. All give the same bits. */
size_t icma_kernels_all(icma_kernels list[ICMA_KERNEL_SETS]);
/* The last of them. */
icma_kernels icma_kernels_best(void);
void icma_basis_scalar(const float *a, size_t rows, const int16_t *head, size_t stride, size_t count, float scale, float *y);
void icma_linear_scalar(const float *x, size_t inputs, const float *w, size_t stride, size_t count, float *y);
void icma_dequantise_scalar(const int16_t *integers, size_t count, float step, float *y);

/* Partial sums of conv_weights, each in its own part of the scratch: a fixed number, so that results do not depend on threads. */
enum { ICMA_CONV_CHUNKS = 16 };

/* Entries of the reference table that live in ops_conv_ref.c. */
void icma_conv_down_reference(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix y);
void icma_conv_reference(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix bias, icma_matrix y);
void icma_conv_up_reference(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix bias, icma_matrix y);
void icma_turn_weights_reference(void *device, icma_conv shape, icma_matrix w, bool flip, icma_matrix out);
void icma_conv_weights_reference(void *device, icma_conv shape, size_t stride, icma_matrix x, icma_matrix y, bool turned, icma_tensor *scratch, icma_matrix g);
float icma_elu_scalar(float x);
void icma_elu_reference(void *device, icma_matrix x, icma_matrix y);
void icma_activation_backward_reference(void *device, icma_activation act, icma_matrix x, icma_matrix dy, icma_matrix dx);
void icma_batch_norm_given_reference(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon, icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix y);
void icma_batch_norm_reference(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon, icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix y);
void icma_batch_norm_backward_reference(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon, icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix dy, icma_matrix dgamma, icma_matrix dbeta, icma_matrix dx);
void icma_blend_reference(void *device, float keep, float add, icma_matrix x, icma_matrix y);

#endif
