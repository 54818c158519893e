/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The op table: everything the codec asks of a device.
 *
 * Tensors are opaque, so no code outside a device ever holds a pointer into one. An icma_matrix is a row-major view of a tensor:
 * element (i, j) is at offset + i * stride + j. Views of one call may not overlap unless the op says that it works in place.
 *
 * Two kinds of op. *Exact* ops define decoding bit for bit (spec 4.5): every table gives the same bits for them. *Training* ops are
 * deterministic for one table, build and CPU type at any thread count, and agree between tables to rounding.
 *
 * Kernels never allocate and cannot fail for other reasons than the device; callers pass views that fit (checked by assert in the
 * CPU tables). Statuses come back at the calls that can fail: alloc, upload, download and synchronise; a device keeps its first failure until then.
 */
#ifndef ICMA_OPS_H
#define ICMA_OPS_H

#include "dtype.h"
#include "rans.h"
#include "status.h"
#include "threads.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct icma_tensor icma_tensor;

typedef enum icma_element { ICMA_ELEMENT_F32, ICMA_ELEMENT_I16, ICMA_ELEMENT_U32, ICMA_ELEMENT_U8, ICMA_ELEMENT_F64 } icma_element;

size_t icma_element_size(icma_element element); /* in bytes */

typedef struct icma_matrix {
    icma_tensor *tensor;
    size_t offset; /* in elements */
    size_t rows, columns;
    size_t stride; /* elements from one row to the next, at least `columns` */
} icma_matrix;

typedef struct icma_adam {
    float learning_rate, beta1, beta2, epsilon;
    float weight_decay; /* decoupled (AdamW: Loshchilov and Hutter 2019, algorithm 2): 0 is Adam */
    uint64_t step;      /* from 1 */
} icma_adam;

/*
 * Convolutions. A batch of sequences is a matrix, channels last: row b * length + p is position p of sequence b, a column is a channel. Weights of a layer are a matrix of
 * (width * inputs) x outputs: row t * inputs + i is tap t of input channel i. The width is odd, the padding (width - 1) / 2, written P below. Taps that would reach beyond the ends of a sequence
 * are left out, never multiplied by zero.
 */
typedef struct icma_conv {
    size_t batch; /* sequences, at least 1; rows of x and y are multiples of it */
    size_t width; /* taps, odd */
} icma_conv;

typedef enum icma_activation {
    ICMA_ACTIVATION_NONE,
    ICMA_ACTIVATION_LEAKY_RELU, /* x > 0 ? x : x / 100 */
    ICMA_ACTIVATION_ELU,        /* the op `elu` */
} icma_activation;

/*
 * Entropy-coded integers (spec 4.10, 4.13): runs, end to end, cut into streams of `length` symbols each, the last one shorter. Everything here is in host memory and stays the caller's; the device reads it
 * before the call returns.
 */
typedef struct icma_coded {
    const uint8_t *data;
    const size_t *offsets; /* stream s is the bytes offsets[s] .. offsets[s + 1] - 1 of data; streams + 1 numbers */
    size_t streams, length; /* streams * length is at least `total` */
    const icma_rans_run *runs;
    size_t run_count, total; /* symbols of all runs together */
    bool trellis;            /* integers are those of trellis.h (each run a sequence of its own, also where a stream ends within it), else the symbols themselves */
} icma_coded;

/*
 * One tensor that is put together (spec 4.5): y_l = scale * chain over k ascending of fma(q_k * step_k, (float)head[k, l], acc) from +0, or `model`'s elements, or +0 where neither is given; then, with `integers`,
 * y_l = fma((float)integer_l, step, y_l); then the cast of 4.5.
 */
typedef struct icma_assembly {
    size_t count;              /* elements, at least 1 */
    icma_matrix head;          /* I16, rows x count; tensor NULL: none */
    icma_matrix q, steps;      /* 1 x rows, of head */
    float scale;               /* of head */
    icma_matrix model;         /* 1 x count; tensor NULL: none */
    const icma_tensor *integers; /* I16, from element `first` on; NULL: none */
    size_t first;
    float step; /* of integers */
    icma_dtype dtype; /* F32, F16 or BF16 */
    size_t place;     /* of its first byte in the output; any alignment */
} icma_assembly;

/*
 * Who looks at whom in attention. Query i of q sees rows seen[first[i]] .. seen[first[i] + length[i] - 1] of k and v, in this order; length[i] is from 1 to ICMA_MOST_SEEN. All three are U32.
 */
enum { ICMA_MOST_SEEN = 1024 };
typedef struct icma_attention {
    size_t heads; /* of columns / heads columns each */
    const icma_tensor *seen, *first, *length;
} icma_attention;

/* Ops that were recorded once, to be run again (CUDA: a graph). */
typedef struct icma_recording icma_recording;

typedef struct icma_ops {
    const char *name; /* "reference", "cpu", "cuda:0" */
    void *device;     /* first argument of every entry */
    size_t room;      /* bytes that a caller may keep on the device only to save transfers; 0 where transfers cost nothing */

    /* --- memory ------------------------------------------------------------------------------------------- */
    icma_status (*alloc)(void *device, icma_element element, size_t count, icma_tensor **out, icma_error *error); /* zeroed; count > 0 */
    void (*release)(void *device, icma_tensor *tensor);                                                         /* NULL is fine */
    icma_status (*upload)(void *device, icma_tensor *to, size_t offset, const void *from, size_t count, icma_error *error);
    icma_status (*download)(void *device, const icma_tensor *from, size_t offset, void *to, size_t count, icma_error *error);

    /* --- training: products ------------------------------------------------------------------------------- */
    /* c = alpha * op(a) op(b) + beta * c, op transposing where its flag is set; beta 0 does not read c. */
    void (*gemm)(void *device, float alpha, icma_matrix a, bool transpose_a, icma_matrix b, bool transpose_b, float beta, icma_matrix c);
    /* c += factor * a a^T, both triangles; c is F64 and symmetric before. Products and their sums are single precision, so that a's columns should be a few thousand at most; what is added up over calls is double. */
    void (*gram)(void *device, icma_matrix a, double factor, icma_matrix c);
    /* Symmetric eigenproblem in host memory: a (n x n, both triangles) becomes its eigenvectors, row k that of values[k], ascending, of unit length, sign undefined. ICMA_E_MEMORY if it does not converge. */
    icma_status (*eigen)(void *device, size_t n, double *a, double *values, icma_error *error);

    /* --- recording: NULL where a device cannot ------------------------------------------------------------ */
    /* Training ops from `record` to `recorded` are noted and not run; replay runs them, with the tensors and arguments that they had, as often as wanted. No alloc, release, upload or download in between. On failure of
     * `recorded` nothing was run, and the ops can be run as usual. */
    icma_status (*record)(void *device, icma_error *error);
    icma_status (*recorded)(void *device, icma_recording **out, icma_error *error);
    icma_status (*replay)(void *device, icma_recording *recording, icma_error *error);
    void (*forget)(void *device, icma_recording *recording); /* NULL is fine */

    /* --- training: rows and columns ----------------------------------------------------------------------- */
    void (*add_row)(void *device, icma_matrix row, icma_matrix y);       /* y[i, :] += row[0, :] */
    void (*sum_rows)(void *device, icma_matrix x, icma_matrix row);      /* row[0, :] = sum_i x[i, :], i ascending */
    void (*gather_rows)(void *device, icma_matrix x, const icma_tensor *index, size_t first, icma_matrix y); /* y[i, :] = x[index[first + i], :] */
    void (*scatter_rows)(void *device, icma_matrix y, const icma_tensor *index, size_t first, icma_matrix x); /* x[index[first + i], :] += y[i, :], i ascending */
    /* Decoding uses these two as well: product and sum are rounded each, on every device. */
    void (*axpy)(void *device, float alpha, icma_matrix x, icma_matrix y); /* y += alpha x */
    void (*multiply)(void *device, icma_matrix x, icma_matrix y);          /* y *= x, element by element; x may have one row for all of y's */
    void (*fill)(void *device, float value, icma_matrix y);

    /* --- training: the variational parts ------------------------------------------------------------------ */
    /* z = mu + exp(logvar / 2) * noise (paper eq. 4) */
    void (*reparameterise)(void *device, icma_matrix mu, icma_matrix logvar, icma_matrix noise, icma_matrix z);
    /* dmu = dz + weight * mu;  dlogvar = dz * noise * exp(logvar / 2) / 2 + weight * (exp(logvar) - 1) / 2: through z and through
     * weight * KL(N(mu, exp(logvar)) || N(0, 1)). */
    void (*latent_backward)(void *device, icma_matrix mu, icma_matrix logvar, icma_matrix noise, icma_matrix dz, float weight, icma_matrix dmu, icma_matrix dlogvar);
    /* out[i, j] = (exp(logvar) + mu^2 - 1 - logvar) / 2, in nats */
    void (*kl)(void *device, icma_matrix mu, icma_matrix logvar, icma_matrix out);
    /* out[i, 0] = sum_j weight[0, j] (q[i, j] - p[i, j])^2 */
    void (*squared_error)(void *device, icma_matrix p, icma_matrix q, icma_matrix weight, icma_matrix out);
    /* dq = 2 scale weight (q - p) */
    void (*squared_error_backward)(void *device, icma_matrix p, icma_matrix q, icma_matrix weight, float scale, icma_matrix dq);
    /* dx = dy / (1 + |x|)^2; in place (dx = dy) is fine */
    void (*softsign_backward)(void *device, icma_matrix x, icma_matrix dy, icma_matrix dx);
    /* Adam (Kingma and Ba 2015, algorithm 1, with bias correction) on one parameter with its two moments, elements in any number. With weight_decay w, parameter -= learning_rate * w * parameter first. */
    void (*adam)(void *device, icma_adam options, icma_matrix gradient, icma_matrix moment1, icma_matrix moment2, icma_matrix parameter);

    /* --- training: convolutions --------------------------------------------------------------------------- */
    /* Stride 2, half as many rows: y[b, p, o] = sum over t, i of x[b, 2 p + t - P, i] w[t, i, o]. Its backward with respect to x is conv_up with turned weights, and that of conv_up is this with turned weights. */
    void (*conv_down)(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix y);
    /* conv_up (below) without bias, in whatever order and precision suits training. */
    void (*conv_up_training)(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix y);
    /* out[t', o, i] = w[t, i, o]: t' = width - 1 - t where `flip` is set, else t. For backwards: conv's is conv with turned and flipped weights. */
    void (*turn_weights)(void *device, icma_conv shape, icma_matrix w, bool flip, icma_matrix out);
    /* Gradient of a layer's weights, from its longer side x (stride * length rows a sequence) and its shorter one y: g[t, i, j] = sum over b, p of x[b, stride p + t - P, i] y[b, p, j]; `turned`: stored as
     * [t, j, i]. conv_down: (x, dy, not turned); conv_up: (dy, x, turned); conv (stride 1): (x, dy, not turned). `scratch` has icma_conv_scratch elements and is overwritten, or left alone by a device that has its own. */
    void (*conv_weights)(void *device, icma_conv shape, size_t stride, icma_matrix x, icma_matrix y, bool turned, icma_tensor *scratch, icma_matrix g);
    /* Training batch norm (Ioffe and Szegedy 2015) and activation: mean and (biased) variance of each column over all rows, y = act(gamma (x - mean) / sqrt(variance + epsilon) + beta). */
    void (*batch_norm)(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon, icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix y);
    /* The same with given statistics. */
    void (*batch_norm_given)(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon, icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix y);
    /* Backward of batch_norm (through the statistics too): from dy to dgamma, dbeta and dx; in place (dx = dy) is fine. */
    void (*batch_norm_backward)(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon, icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix dy, icma_matrix dgamma,
                                icma_matrix dbeta, icma_matrix dx);
    /* dx = dy act'(x); in place (dx = dy) is fine. */
    void (*activation_backward)(void *device, icma_activation act, icma_matrix x, icma_matrix dy, icma_matrix dx);
    /* Gaussian likelihood without its constant (paper eq. 6). y has for each number of x a mean m and a log-variance v, side by side: out[i, 0] = sum_j ((x - m)^2 exp(-v) + v) / 2 */
    void (*gaussian_nll)(void *device, icma_matrix x, icma_matrix y, icma_matrix out);
    /* dm = scale (m - x) exp(-v); dv = scale (1 - (x - m)^2 exp(-v)) / 2; side by side as in y */
    void (*gaussian_nll_backward)(void *device, icma_matrix x, icma_matrix y, float scale, icma_matrix dy);
    /* y = keep * y + add * x */
    void (*blend)(void *device, float keep, float add, icma_matrix x, icma_matrix y);

    /* --- transformers: like training ops, to rounding; NULL where a device cannot --------------------------- */
    /* y[i, :] = gamma (x[i, :] - mean) / sqrt(variance + epsilon) + beta, with mean and biased variance of the row (Ba et al. 2016); in place is fine. */
    void (*layer_norm)(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon, icma_matrix y);
    /* y = gelu(y + bias), bias one row for all: z (1 + erf(z / sqrt 2)) / 2 (Hendrycks and Gimpel 2016), or, `quick`, z / (1 + exp(-1.702 z)). */
    void (*gelu)(void *device, bool quick, icma_matrix bias, icma_matrix y);
    /* Of each head h, y[i] = sum over what i sees, j, of p_j v[j], p = softmax(scale q[i] . k[j]) (Vaswani et al. 2017). */
    void (*attention)(void *device, icma_attention who, float scale, icma_matrix q, icma_matrix k, icma_matrix v, icma_matrix y);

    /* --- exact (spec 4.5): the same bits on every device --------------------------------------------------- */
    /* y = x / (1 + |x|): one addition, one division; in place is fine. */
    void (*softsign)(void *device, icma_matrix x, icma_matrix y);
    /* y[i, o] = chain of fma(x[i, j], w[j, o], acc) over j ascending, from bias[0, o] (bias.tensor NULL: from y[i, o] as it is). */
    void (*linear)(void *device, icma_matrix x, icma_matrix w, icma_matrix bias, icma_matrix y);
    /* y[i, l] = scale * chain of fma(q[i, k] * step[0, k], (float)head[k, l], acc) over k ascending, from +0. head is I16. */
    void (*basis)(void *device, icma_matrix q, icma_matrix step, icma_matrix head, float scale, icma_matrix y);
    /* Stride 1: y[b, p, o] = chain over t, then i, ascending, of fma(x[b, p + t - P, i], w[t, i, o], acc), from bias[0, o] (bias.tensor NULL: from +0). */
    void (*conv)(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix bias, icma_matrix y);
    /* Transposed, stride 2, twice as many rows: y[b, 2 p + t - P, o] takes x[b, p, i] w[t, i, o]; for each output, chain over t, then i, ascending, of fma, from bias as above. */
    void (*conv_up)(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix bias, icma_matrix y);
    /* y = x where x >= 0, else exp(x) - 1 as a polynomial (spec 4.15; NaN stays NaN); in place is fine. */
    void (*elu)(void *device, icma_matrix x, icma_matrix y);
    /* y = fma((float)integers, step, y), element by element. integers is I16. */
    void (*dequantise)(void *device, icma_matrix integers, float step, icma_matrix y);
    /* Integers of all of `list`, end to end, into integers[first ..] (I16). ICMA_E_CORRUPT for a damaged stream (one without symbols must be empty), a run's context that does not exist, or a symbol that is out of
     * range (-16384 .. 16383 of a trellis, in every context; -32768 .. 32767 without); some may have been written then. */
    icma_status (*decode_integers)(void *device, const icma_coded *list, size_t count, icma_tensor *integers, size_t first, icma_error *error);
    /* Puts tensors together, into `out` (U8) unless it is NULL and into host memory unless it is NULL. *bad: SIZE_MAX, or the least index of one with a value that is not finite before the cast; what was
     * written of it is then undefined. Bytes that belong to no tensor stay as they are. */
    icma_status (*assemble)(void *device, const icma_assembly *list, size_t count, icma_tensor *out, uint8_t *host, size_t *bad, icma_error *error);
} icma_ops;

/* Elements of the scratch of conv_weights for so many channels on both sides. */
size_t icma_conv_scratch(size_t width, size_t inputs, size_t outputs);

/* The whole of a fresh tensor as a matrix, or a block of rows x columns at (row, column) of a view. */
icma_matrix icma_matrix_of(icma_tensor *tensor, size_t rows, size_t columns);
icma_matrix icma_matrix_block(icma_matrix of, size_t row, size_t column, size_t rows, size_t columns);

/* The two tables on the CPU. The reference is the plain oracle: one thread, fixed summation order, no intrinsics. */
const icma_ops *icma_ops_reference(void);
/* Threads over outputs, OpenBLAS where the order is free, AVX2 and AVX-512 kernels where the processor has them. */
const icma_ops *icma_ops_cpu(void);

/* Whether it is one of these two: memory is then the host's, and there is no other table to go back to. */
bool icma_ops_on_host(const icma_ops *ops);

#endif
