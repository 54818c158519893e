/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel sets of convolutions: ops_conv_lanes.h for any processor, for AVX2 and for AVX-512. Chains of
 * exact ops are never split, so that all give the same bits; a set leaves what is narrower than its vectors
 * to the one below.
 */
#include "ops_host.h"

#include <math.h>
#include <string.h>

/* Tiles are loops over constants that must be unrolled into registers. */
#define INLINED __attribute__((always_inline))
/* The most vectors that a register tile sums in; rows that a batch norm's gradients sum in single precision.
 */
enum { MOST_CHAINS = 24, SUM_ROWS = 32 };
#define NARROW_ROW (NARROW_POSITIONS + ICMA_NARROW_TAPS)

/* --- any processor -------------------------------------------------------------------------------------- */

/* Outputs that fill no vector: the chain of each, one after another. */
static inline INLINED void conv_rest(const icma_conv_run *run) {
    for (ptrdiff_t p = 0; p < (ptrdiff_t)run->positions; p++)
        for (size_t o = 0; o < run->outputs; o++) {
            float sum = run->bias ? run->bias[o] : 0;
            for (size_t t = 0; t < run->taps; t++)
                for (size_t i = 0; i < run->inputs; i++)
                    sum = fmaf(
                        run->x[p * run->x_position + (ptrdiff_t)t * run->x_tap + (ptrdiff_t)i * run->x_input],
                        run->w[t * run->w_tap + i * run->w_row + o], sum);
            run->y[p * run->y_position + (ptrdiff_t)o] = sum;
        }
}

static inline INLINED void outer_rest(const icma_outer_run *run) {
    for (ptrdiff_t r = 0; r < (ptrdiff_t)run->rows; r++)
        for (ptrdiff_t c = 0; c < (ptrdiff_t)run->columns; c++) {
            float sum = 0, *to = run->out + r * run->out_row + c * run->out_column;
            for (ptrdiff_t p = 0; p < (ptrdiff_t)run->positions; p++)
                sum += run->a[p * run->a_position + r * run->a_row] * run->b[p * run->b_position + c];
            *to = run->fresh ? sum : *to + sum;
        }
}

static void turn_rows(const float *x, ptrdiff_t stride, size_t rows, size_t columns, float *y,
                      size_t stride_y) {
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            y[j * stride_y + i] = x[(ptrdiff_t)i * stride + (ptrdiff_t)j];
}

typedef struct lanes {
    float f[4];
} lanes;
typedef struct wide {
    double d[2];
} wide;

#define FOR_LANES(expression)                                                                                \
    lanes y;                                                                                                 \
    for (int l = 0; l < 4; l++)                                                                              \
        y.f[l] = (expression);                                                                               \
    return y

static inline lanes lanes_load(const float *p) {
    FOR_LANES(p[l]);
}

static inline void lanes_store(float *p, lanes a) {
    memcpy(p, a.f, sizeof a.f);
}

static inline lanes lanes_set(float a) {
    FOR_LANES(a);
}

static inline lanes lanes_add(lanes a, lanes b) {
    FOR_LANES(a.f[l] + b.f[l]);
}

static inline lanes lanes_sub(lanes a, lanes b) {
    FOR_LANES(a.f[l] - b.f[l]);
}

static inline lanes lanes_mul(lanes a, lanes b) {
    FOR_LANES(a.f[l] * b.f[l]);
}

static inline lanes lanes_div(lanes a, lanes b) {
    FOR_LANES(a.f[l] / b.f[l]);
}

static inline lanes lanes_sqrt(lanes a) {
    FOR_LANES(sqrtf(a.f[l]));
}

static inline lanes lanes_fma(lanes a, lanes b, lanes c) {
    FOR_LANES(fmaf(a.f[l], b.f[l], c.f[l]));
}

static inline lanes lanes_max(lanes a, lanes b) {
    FOR_LANES(a.f[l] > b.f[l] ? a.f[l] : b.f[l]);
}

/* The bits of 1.5 * 2^23 in n fall out of the shift. */
static inline lanes lanes_power(lanes n) {
    uint32_t bits[4];
    memcpy(bits, n.f, sizeof bits);
    for (int l = 0; l < 4; l++)
        bits[l] = (bits[l] + 127) << 23;
    memcpy(n.f, bits, sizeof bits);
    return n;
}

static inline lanes lanes_if_above(lanes x, lanes a, lanes b) {
    FOR_LANES(x.f[l] > 0 ? a.f[l] : b.f[l]);
}

static inline lanes lanes_if_least(lanes x, lanes a, lanes b) {
    FOR_LANES(x.f[l] >= 0 ? a.f[l] : b.f[l]);
}

static inline wide wide_of(float a, float b) {
    return (wide){{(double)a, (double)b}};
}

static inline wide wide_load(const double *p) {
    return (wide){{p[0], p[1]}};
}

static inline void wide_store(double *p, wide a) {
    memcpy(p, a.d, sizeof a.d);
}

static inline wide wide_add(wide a, wide b) {
    return (wide){{a.d[0] + b.d[0], a.d[1] + b.d[1]}};
}

static inline wide wide_sub(wide a, wide b) {
    return (wide){{a.d[0] - b.d[0], a.d[1] - b.d[1]}};
}

static inline wide wide_add_square(wide a, wide b) {
    return (wide){{b.d[0] + a.d[0] * a.d[0], b.d[1] + a.d[1] * a.d[1]}};
}

#define NAME(x) x##_portable
#define TARGET
#define LANES 4
#define POSITIONS_2 2
#define POSITIONS_1 4
#define OUTER_ROWS_2 3
#define OUTER_ROWS_1 6
#define NARROW_POSITIONS 32
#define V lanes
#define V_LOAD lanes_load
#define V_STORE lanes_store
#define V_SET(a) lanes_set(a)
#define V_ADD lanes_add
#define V_SUB lanes_sub
#define V_MUL lanes_mul
#define V_DIV lanes_div
#define V_SQRT lanes_sqrt
#define V_FMA lanes_fma
#define V_MULTIPLY_ADD(a, b, c) lanes_add(lanes_mul(a, b), c)
#define V_MAX lanes_max
#define V_POWER lanes_power
#define V_IF_ABOVE lanes_if_above
#define V_IF_LEAST lanes_if_least
#define W wide
#define W_ADD wide_add
#define W_SUB wide_sub
#define W_ADD_SQUARE wide_add_square
#define W_LOAD wide_load
#define W_STORE wide_store
#define W_LOW(v) wide_of((v).f[0], (v).f[1])
#define W_HIGH(v) wide_of((v).f[2], (v).f[3])
#define TURN_ROWS turn_rows
#define CONV_REST conv_rest
#define OUTER_REST outer_rest
#include "ops_conv_lanes.h"

const icma_conv_kernels *icma_conv_kernels_portable(void) {
    return &kernels_portable;
}

/* --- x86 ------------------------------------------------------------------------------------------------ */

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx2,fma"))) static void conv_rest_avx2(const icma_conv_run *run) {
    conv_rest(run);
}

__attribute__((target("avx2,fma"))) static void outer_rest_avx2(const icma_outer_run *run) {
    outer_rest(run);
}

__attribute__((target("avx2,fma"))) static void turn_8_by_8(const float *x, ptrdiff_t stride, float *y,
                                                            size_t stride_y) {
    __m256 row[8], pair[8], four[8];
    for (int i = 0; i < 8; i++)
        row[i] = _mm256_loadu_ps(x + i * stride);
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) {
            four[i + 2 * k] = _mm256_shuffle_ps(pair[i + k], pair[i + k + 2], 0x44);
            four[i + 2 * k + 1] = _mm256_shuffle_ps(pair[i + k], pair[i + k + 2], 0xEE);
        }
    for (int j = 0; j < 4; j++) {
        _mm256_storeu_ps(y + (size_t)j * stride_y, _mm256_permute2f128_ps(four[j], four[j + 4], 0x20));
        _mm256_storeu_ps(y + (size_t)(j + 4) * stride_y, _mm256_permute2f128_ps(four[j], four[j + 4], 0x31));
    }
}

static void turn_rows_avx2(const float *x, ptrdiff_t stride, size_t rows, size_t columns, float *y,
                           size_t stride_y) {
    size_t whole_rows = rows / 8 * 8, whole_columns = columns / 8 * 8;
    for (size_t i = 0; i < whole_rows; i += 8)
        for (size_t j = 0; j < whole_columns; j += 8)
            turn_8_by_8(x + (ptrdiff_t)i * stride + (ptrdiff_t)j, stride, y + j * stride_y + i, stride_y);
    turn_rows(x + whole_columns, stride, whole_rows, columns - whole_columns, y + whole_columns * stride_y,
              stride_y);
    turn_rows(x + (ptrdiff_t)whole_rows * stride, stride, rows - whole_rows, columns, y + whole_rows,
              stride_y);
}

#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define POSITIONS_2 6
#define POSITIONS_1 12
#define OUTER_ROWS_2 6
#define OUTER_ROWS_1 12
#define NARROW_POSITIONS 64
#define V __m256
#define V_LOAD _mm256_loadu_ps
#define V_STORE _mm256_storeu_ps
#define V_SET _mm256_set1_ps
#define V_ADD _mm256_add_ps
#define V_SUB _mm256_sub_ps
#define V_MUL _mm256_mul_ps
#define V_DIV _mm256_div_ps
#define V_SQRT _mm256_sqrt_ps
#define V_FMA _mm256_fmadd_ps
#define V_MULTIPLY_ADD _mm256_fmadd_ps
#define V_MAX _mm256_max_ps
#define V_POWER(n)                                                                                           \
    _mm256_castsi256_ps(                                                                                     \
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(n), _mm256_set1_epi32(127)), 23))
#define V_IF_ABOVE(x, a, b) _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ))
#define V_IF_LEAST(x, a, b) _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ))
#define W __m256d
#define W_ADD _mm256_add_pd
#define W_SUB _mm256_sub_pd
#define W_ADD_SQUARE(a, b) _mm256_fmadd_pd(a, a, b)
#define W_LOAD _mm256_loadu_pd
#define W_STORE _mm256_storeu_pd
#define W_LOW(v) _mm256_cvtps_pd(_mm256_castps256_ps128(v))
#define W_HIGH(v) _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))
#define TURN_ROWS turn_rows_avx2
#define CONV_REST conv_rest_avx2
#define OUTER_REST outer_rest_avx2
#include "ops_conv_lanes.h"

#define NAME(x) x##_avx512
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define LANES 16
#define POSITIONS_2 12
#define POSITIONS_1 12
#define OUTER_ROWS_2 12
#define OUTER_ROWS_1 12
#define NARROW_POSITIONS 128
#define V __m512
#define V_LOAD _mm512_loadu_ps
#define V_STORE _mm512_storeu_ps
#define V_SET _mm512_set1_ps
#define V_ADD _mm512_add_ps
#define V_SUB _mm512_sub_ps
#define V_MUL _mm512_mul_ps
#define V_DIV _mm512_div_ps
#define V_SQRT _mm512_sqrt_ps
#define V_FMA _mm512_fmadd_ps
#define V_MULTIPLY_ADD _mm512_fmadd_ps
#define V_MAX _mm512_max_ps
#define V_POWER(n)                                                                                           \
    _mm512_castsi512_ps(                                                                                     \
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_castps_si512(n), _mm512_set1_epi32(127)), 23))
#define V_IF_ABOVE(x, a, b) _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), b, a)
#define V_IF_LEAST(x, a, b) _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ), b, a)
#define W __m512d
#define W_ADD _mm512_add_pd
#define W_SUB _mm512_sub_pd
#define W_ADD_SQUARE(a, b) _mm512_fmadd_pd(a, a, b)
#define W_LOAD _mm512_loadu_pd
#define W_STORE _mm512_storeu_pd
#define W_LOW(v) _mm512_cvtps_pd(_mm512_castps512_ps256(v))
#define W_HIGH(v) _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)))
#define TURN_ROWS turn_rows_avx2
#define CONV_REST conv_avx2
#define OUTER_REST outer_avx2
#include "ops_conv_lanes.h"

const icma_conv_kernels *icma_conv_kernels_avx2(void) {
    return &kernels_avx2;
}

const icma_conv_kernels *icma_conv_kernels_avx512(void) {
    return &kernels_avx512;
}
#endif
