/* SPDX-License-Identifier: Apache-2.0 */
/* Transformers in the fast table: rows over threads. */
#include "ops_host.h"

#include <math.h>

typedef struct icma_attend_run {
    const uint32_t *seen; /* rows of k and v */
    size_t length, columns;
    size_t stride_k, stride_v;
    float scale;
} icma_attend_run;

/* Of one row, or of one head of one row; see ops.h. */
typedef struct icma_text_kernels {
    void (*layer_norm)(const float *x, const float *gamma, const float *beta, float epsilon, size_t count,
                       float *y);
    void (*gelu)(bool quick, const float *bias, size_t count, float *y);
    void (*attend)(const icma_attend_run *run, const float *q, const float *k, const float *v, float *y);
} icma_text_kernels;

typedef union float_bits {
    float f;
    uint32_t u;
} float_bits;

#define INLINED __attribute__((always_inline))

#define NAME(x) x##_portable
#define TARGET
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#include "ops_text_lanes.h"

#if defined(__x86_64__)
#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define MULTIPLY_ADD fmaf
#include "ops_text_lanes.h"
#else
#define kernels_avx2 kernels_portable
#endif

/* Those of the set whose convolutions the table has; AVX-512 gains nothing here. */
static const icma_text_kernels *kernels_of(const void *device) {
    return device == icma_conv_kernels_portable() ? &kernels_portable : &kernels_avx2;
}

/* Fewer numbers than this are not worth waking threads for. */
enum { FEW_NUMBERS = 1 << 15 };

static void text_layer_norm(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon,
                            icma_matrix y) {
    assert(x.rows == y.rows && x.columns == y.columns && gamma.columns == x.columns &&
           beta.columns == x.columns);
    const icma_text_kernels *kernels = kernels_of(device);
#pragma omp parallel for schedule(static) num_threads(icma_threads()) if (x.rows * x.columns >= FEW_NUMBERS)
    for (size_t i = 0; i < x.rows; i++)
        kernels->layer_norm(icma_row(x, i), icma_row(gamma, 0), icma_row(beta, 0), epsilon, x.columns,
                            icma_row(y, i));
}

static void text_gelu(void *device, bool quick, icma_matrix bias, icma_matrix y) {
    assert(bias.columns == y.columns);
    const icma_text_kernels *kernels = kernels_of(device);
#pragma omp parallel for schedule(static) num_threads(icma_threads()) if (y.rows * y.columns >= FEW_NUMBERS)
    for (size_t i = 0; i < y.rows; i++)
        kernels->gelu(quick, icma_row(bias, 0), y.columns, icma_row(y, i));
}

static void text_attention(void *device, icma_attention who, float scale, icma_matrix q, icma_matrix k,
                           icma_matrix v, icma_matrix y) {
    assert(who.heads && q.columns % who.heads == 0 && k.columns == q.columns && v.columns == q.columns &&
           y.columns == q.columns && y.rows == q.rows);
    const icma_text_kernels *kernels = kernels_of(device);
    const size_t columns = q.columns / who.heads;
#pragma omp parallel for schedule(dynamic, 4)                                                                \
    num_threads(icma_threads()) if (q.rows * q.columns >= FEW_NUMBERS)
    for (size_t i = 0; i < q.rows; i++) {
        const icma_attend_run run = {icma_u32(who.seen) + icma_u32(who.first)[i],
                                     icma_u32(who.length)[i],
                                     columns,
                                     k.stride,
                                     v.stride,
                                     scale};
        assert(run.length >= 1 && run.length <= ICMA_MOST_SEEN);
        for (size_t h = 0; h < who.heads; h++)
            kernels->attend(&run, icma_row(q, i) + h * columns, icma_row(k, 0) + h * columns,
                            icma_row(v, 0) + h * columns, icma_row(y, i) + h * columns);
    }
}

void icma_text_ops(icma_ops *table) {
    table->layer_norm = text_layer_norm;
    table->gelu = text_gelu;
    table->attention = text_attention;
}
