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

static inline double *icma_row_f64(icma_matrix m, size_t i) {
    assert(m.tensor->element == ICMA_ELEMENT_F64);
    assert(m.rows == 0 || m.offset + (m.rows - 1) * m.stride + m.columns <= m.tensor->count);
    return (double *)m.tensor->data + m.offset + i * m.stride;
}

static inline const int16_t *icma_row_i16(icma_matrix m, size_t i) {
    assert(m.tensor->element == ICMA_ELEMENT_I16);
    assert(m.rows == 0 || m.offset + (m.rows - 1) * m.stride + m.columns <= m.tensor->count);
    return (const int16_t *)m.tensor->data + m.offset + i * m.stride;
}

static inline const uint32_t *icma_u32(const icma_tensor *tensor) {
    assert(tensor->element == ICMA_ELEMENT_U32);
    return tensor->data;
}

/* Outputs first .. first + count - 1 of one row of a basis product (count is at most ICMA_BASIS_BLOCK): a[k] = q[k] * step[k] is given. */
enum { ICMA_BASIS_BLOCK = 1024 };
typedef void (*icma_basis_kernel)(const float *a, size_t rows, const int16_t *head, size_t stride, size_t count, float scale, float *y);
/* y[o] = chain over j of fma(x[j], w[j * stride + o], y[o]), `count` outputs. */
typedef void (*icma_linear_kernel)(const float *x, size_t inputs, const float *w, size_t stride, size_t count, float *y);

/* y[l] = fma(integers[l], step, y[l]). */
typedef void (*icma_dequantise_kernel)(const int16_t *integers, size_t count, float step, float *y);

/*
 * Positions of a convolution that have the same taps: y[p, o] = chain over t, then i, of fma(x[p * x_position + t * x_tap + i * x_input], w[t * w_tap + i * w_row + o], acc), from bias[o], or +0 where bias is NULL.
 * y[p, o] lies at y[p * y_position + o].
 */
typedef struct icma_conv_run {
    size_t positions, taps, inputs, outputs;
    const float *x;
    ptrdiff_t x_position, x_tap, x_input;
    const float *w;
    size_t w_tap, w_row;
    const float *bias;
    float *y;
    ptrdiff_t y_position;
} icma_conv_run;

/* out[r, c] += sum over p, ascending, of a[p * a_position + r * a_row] b[p * b_position + c]; `fresh`: = instead of +=. out[r, c] lies at out[r * out_row + c * out_column]. */
typedef struct icma_outer_run {
    size_t positions, rows, columns;
    const float *a;
    ptrdiff_t a_position, a_row;
    const float *b;
    ptrdiff_t b_position;
    float *out;
    ptrdiff_t out_row, out_column;
    bool fresh;
} icma_outer_run;

/* Numbers for each column of a batch norm: act(scale (x - mean) + beta), and backward scale (d - constant - linear (x - mean)). */
typedef struct icma_norm_band {
    size_t columns;
    const float *mean, *scale, *beta, *constant, *linear;
} icma_norm_band;

/* moment1 = keep1 moment1 + add1 g, moment2 = keep2 moment2 + add2 g^2, parameter -= decay parameter, parameter -= rate moment1 / (sqrt(moment2 inverse2) + epsilon). */
typedef struct icma_adam_factors {
    float keep1, add1, keep2, add2, decay, rate, inverse2, epsilon;
} icma_adam_factors;

/* `conv`, `narrow` and `elu` give the same bits in every set. */
typedef struct icma_conv_kernels {
    void (*conv)(const icma_conv_run *run);
    /* The same for few outputs: only with x_tap == x_position, at most ICMA_NARROW_INPUTS inputs and ICMA_NARROW_TAPS taps. */
    void (*narrow)(const icma_conv_run *run);
    void (*outer)(const icma_outer_run *run);
    void (*elu)(const float *x, size_t count, float *y);
    void (*activation_backward)(icma_activation act, const float *x, const float *dy, size_t count, float *dx);
    void (*moments)(const float *x, size_t stride, size_t rows, size_t columns, const float *origin, double *sum, double *squares);
    void (*norm)(icma_activation act, const icma_norm_band *n, const float *x, size_t stride, size_t rows, float *y, size_t stride_y);
    void (*norm_sums)(icma_activation act, const icma_norm_band *n, const float *x, size_t stride, const float *dy, size_t stride_dy, size_t rows, double *sum, double *product);
    void (*norm_backward)(icma_activation act, const icma_norm_band *n, const float *x, size_t stride, const float *dy, size_t stride_dy, size_t rows, float *dx, size_t stride_dx);
    void (*adam)(const icma_adam_factors *factors, size_t count, const float *gradient, float *moment1, float *moment2, float *parameter);
} icma_conv_kernels;
enum { ICMA_NARROW_INPUTS = 16, ICMA_NARROW_TAPS = 32 };

typedef struct icma_kernels {
    const char *name; /* "scalar", "avx2", "avx512" */
    icma_basis_kernel basis;
    icma_linear_kernel linear;
    icma_dequantise_kernel dequantise;
    const icma_conv_kernels *conv;
} icma_kernels;
enum { ICMA_KERNEL_SETS = 3 };
/* Every set that this processor runs, slowest ("scalar") first; returns how many. All give the same bits. */
size_t icma_kernels_all(icma_kernels list[ICMA_KERNEL_SETS]);
/* The last of them. */
icma_kernels icma_kernels_best(void);
void icma_basis_scalar(const float *a, size_t rows, const int16_t *head, size_t stride, size_t count, float scale, float *y);
void icma_linear_scalar(const float *x, size_t inputs, const float *w, size_t stride, size_t count, float *y);
void icma_dequantise_scalar(const int16_t *integers, size_t count, float step, float *y);
/* The kernels of convolutions for any processor, and for x86 with AVX2 and FMA, and with AVX-512F beside them. */
const icma_conv_kernels *icma_conv_kernels_portable(void);
const icma_conv_kernels *icma_conv_kernels_avx2(void);
const icma_conv_kernels *icma_conv_kernels_avx512(void);

/* Sets the table's device and the entries of ops_conv.c, which run these kernels. */
void icma_conv_ops(icma_ops *table, const icma_conv_kernels *kernels);

/* Sets the entries of ops_decode.c, which run these kernels. */
void icma_decode_ops(icma_ops *table, icma_kernels kernels);

/* Partial sums of conv_weights where weights are few, each in its own part of the scratch: a fixed number, so that results do not depend on threads. */
enum { ICMA_CONV_CHUNKS = 16, ICMA_CONV_FEW_WEIGHTS = 1 << 14 };

/* Entries of the reference table that live in ops_decode_ref.c. */
icma_status icma_decode_integers_reference(void *device, const icma_coded *list, size_t count, icma_tensor *integers, size_t first, icma_error *error);
icma_status icma_assemble_reference(void *device, const icma_assembly *list, size_t count, icma_tensor *out, uint8_t *host, size_t *bad, icma_error *error);

/* Entries of the reference table that live in ops_text_ref.c. */
void icma_layer_norm_reference(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon, icma_matrix y);
void icma_gelu_reference(void *device, bool quick, icma_matrix bias, icma_matrix y);
void icma_attention_reference(void *device, icma_attention who, float scale, icma_matrix q, icma_matrix k, icma_matrix v, icma_matrix y);

/* Sets the entries of ops_text.c; after icma_conv_ops, whose kernel set tells which is used. */
void icma_text_ops(icma_ops *table);

/* The entry `eigen` of both tables: LAPACK's dsyevd. */
icma_status icma_eigen_host(void *device, size_t n, double *a, double *values, icma_error *error);

/* Entries of the reference table that live in ops_conv_ref.c. */
void icma_conv_down_reference(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix y);
void icma_conv_reference(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix bias, icma_matrix y);
void icma_conv_up_reference(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix bias, icma_matrix y);
void icma_conv_up_training_reference(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix y);
void icma_turn_weights_reference(void *device, icma_conv shape, icma_matrix w, bool flip, icma_matrix out);
void icma_conv_weights_reference(void *device, icma_conv shape, size_t stride, icma_matrix x, icma_matrix y, bool turned, icma_tensor *scratch, icma_matrix g);
float icma_elu_scalar(float x);
float icma_activate_scalar(icma_activation act, float x);
float icma_slope_scalar(icma_activation act, float x); /* act'(x) */
void icma_elu_reference(void *device, icma_matrix x, icma_matrix y);
void icma_activation_backward_reference(void *device, icma_activation act, icma_matrix x, icma_matrix dy, icma_matrix dx);
void icma_batch_norm_given_reference(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon, icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix y);
void icma_batch_norm_reference(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon, icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix y);
void icma_batch_norm_backward_reference(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon, icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix dy, icma_matrix dgamma, icma_matrix dbeta, icma_matrix dx);
void icma_gaussian_nll_reference(void *device, icma_matrix x, icma_matrix y, icma_matrix out);
void icma_gaussian_nll_backward_reference(void *device, icma_matrix x, icma_matrix y, float scale, icma_matrix dy);
void icma_blend_reference(void *device, float keep, float add, icma_matrix x, icma_matrix y);

#endif
