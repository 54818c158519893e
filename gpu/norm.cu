/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Batch norm with its activation.
 *
 * Matrices are tall: millions of rows of 8 to 256 channels. A thread keeps to one column, or to four side by
 * side that it reads in one access, and goes down the rows, so that what belongs to a column is read once;
 * neighbours take neighbouring columns and then rows. Sums are double (single precision loses the variance of
 * millions), from partial sums of blocks, whose number depends on the shape alone.
 */
#include "context.cuh"
#include "numbers.cuh"

#include <assert.h>

namespace {

enum {
    BLOCK = 256,
    MOST_BLOCKS = 1024,
    MOST_COLUMNS = 4000 /* whose sums fit ICMA_WORKSPACE */,
    LEAST_ROWS = 16,
    FINISH_BLOCK = 128
};

/* How a block's threads lie over columns and rows. `each`: columns of a thread, 1 or 4. */
struct norm_tile {
    size_t rows, columns;
    unsigned each;
    unsigned width;  /* threads side by side */
    unsigned height; /* rows at a time: BLOCK / width */
    size_t stretch;  /* rows a block goes through in all */
};

norm_tile tile_of(size_t rows, size_t columns, unsigned each) {
    assert(columns <= MOST_COLUMNS);
    norm_tile t = {rows, columns, each, (unsigned)icma_least(columns / each, BLOCK), 0, 0};
    t.height = BLOCK / t.width;
    size_t blocks = icma_least(icma_pieces(rows, (size_t)t.height * LEAST_ROWS), MOST_BLOCKS);
    t.stretch = icma_pieces(icma_pieces(rows, blocks), t.height) * t.height;
    return t;
}

dim3 grid_of(const norm_tile &t) {
    return dim3((unsigned)icma_pieces(t.rows, t.stretch),
                (unsigned)icma_pieces(t.columns, (size_t)t.width * t.each));
}

/* Four columns in one access need rows that start at 16 bytes. */
bool by_four(icma_matrix m) {
    return (uintptr_t)icma_floats_of(m).p % 16 == 0 && m.stride % 4 == 0 && m.columns % 4 == 0;
}

struct norm_place {
    bool inside;
    size_t column, row, end;
};

__device__ __forceinline__ norm_place place_in(const norm_tile &t) {
    norm_place p;
    p.column = ((size_t)blockIdx.y * t.width + threadIdx.x % t.width) * t.each;
    p.row = (size_t)blockIdx.x * t.stretch + threadIdx.x / t.width;
    p.end = (size_t)(blockIdx.x + 1) * t.stretch;
    p.end = p.end < t.rows ? p.end : t.rows;
    p.inside = threadIdx.x < t.width * t.height && p.column < t.columns;
    return p;
}

template <int EACH> __device__ __forceinline__ void load(icma_floats m, size_t i, size_t j, float to[EACH]) {
    if (EACH == 4) {
        float4 four = *(const float4 *)&m.at(i, j);
        to[0] = four.x, to[1 % EACH] = four.y, to[2 % EACH] = four.z, to[3 % EACH] = four.w;
    } else {
        to[0] = m.at(i, j);
    }
}

template <int EACH>
__device__ __forceinline__ void store(icma_floats m, size_t i, size_t j, const float from[EACH]) {
    if (EACH == 4)
        *(float4 *)&m.at(i, j) = make_float4(from[0], from[1 % EACH], from[2 % EACH], from[3 % EACH]);
    else
        m.at(i, j) = from[0];
}

/* Two sums of every thread and column to one of each column, rows ascending, at partial[block, which,
 * column]. */
template <int EACH>
__device__ void leave_sums(const norm_tile &t, const norm_place &p, const double first[EACH],
                           const double second[EACH], double *partial) {
    __shared__ double sums[2][EACH][BLOCK];
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        sums[0][e][threadIdx.x] = first[e];
        sums[1][e][threadIdx.x] = second[e];
    }
    __syncthreads();
    if (threadIdx.x >= t.width || !p.inside)
        return;
    double *out = partial + (size_t)blockIdx.x * 2 * t.columns + p.column;
#pragma unroll
    for (int e = 0; e < EACH; e++)
        for (int which = 0; which < 2; which++) {
            double sum = 0;
            for (unsigned k = 0; k < t.height; k++)
                sum += sums[which][e][threadIdx.x + k * t.width];
            out[which * t.columns + e] = sum;
        }
}

/* The blocks' sums of one column a warp: each lane's ascending, then the lanes' pairwise. True in the lane
 * that has them, of warps that have a column. */
__device__ bool gather_sums(const double *partial, unsigned blocks, size_t columns, size_t *of, double *first,
                            double *second) {
    unsigned lane = threadIdx.x % ICMA_WARP;
    size_t column = (size_t)blockIdx.x * (FINISH_BLOCK / ICMA_WARP) + threadIdx.x / ICMA_WARP;
    *of = column;
    *first = *second = 0;
    if (column >= columns)
        return false; /* a whole warp */
    for (unsigned b = lane; b < blocks; b += ICMA_WARP) {
        *first += partial[(size_t)b * 2 * columns + column];
        *second += partial[(size_t)b * 2 * columns + columns + column];
    }
    for (unsigned half = ICMA_WARP / 2; half > 0; half /= 2) {
        *first += __shfl_down_sync(0xffffffffu, *first, half);
        *second += __shfl_down_sync(0xffffffffu, *second, half);
    }
    return lane == 0;
}

/* --- forward -------------------------------------------------------------------------------------------- */

/* Sums of x - x_0 and of its square, x_0 the column's first element: so the variance does not cancel. */
template <int EACH> __global__ void norm_moments(norm_tile t, icma_floats x, double *partial) {
    norm_place p = place_in(t);
    double sum[EACH] = {}, squares[EACH] = {};
    if (p.inside) {
        float origin[EACH], value[EACH];
        load<EACH>(x, 0, p.column, origin);
#pragma unroll 4
        for (size_t i = p.row; i < p.end; i += t.height) {
            load<EACH>(x, i, p.column, value);
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                double d = (double)value[e] - (double)origin[e];
                sum[e] += d;
                squares[e] += d * d;
            }
        }
    }
    leave_sums<EACH>(t, p, sum, squares, partial);
}

__global__ void norm_finish(size_t rows, size_t columns, unsigned blocks, const double *partial,
                            icma_floats x, icma_floats mean, icma_floats variance) {
    size_t column;
    double sum, squares;
    if (!gather_sums(partial, blocks, columns, &column, &sum, &squares))
        return;
    double apart = sum / (double)rows, spread = squares / (double)rows - apart * apart;
    mean.at(0, column) = (float)((double)x.at(0, column) + apart);
    variance.at(0, column) = (float)(spread > 0 ? spread : 0);
}

template <int EACH>
__global__ void norm_apply(norm_tile t, icma_floats x, icma_floats gamma, icma_floats beta, float epsilon,
                           icma_activation act, icma_floats mean, icma_floats variance, icma_floats y) {
    norm_place p = place_in(t);
    float scale[EACH], centre[EACH], offset[EACH], value[EACH];
    if (!p.inside)
        return;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        scale[e] = gamma.at(0, p.column + e) / sqrtf(variance.at(0, p.column + e) + epsilon);
        centre[e] = mean.at(0, p.column + e);
        offset[e] = beta.at(0, p.column + e);
    }
#pragma unroll 2
    for (size_t i = p.row; i < p.end; i += t.height) {
        load<EACH>(x, i, p.column, value);
#pragma unroll
        for (int e = 0; e < EACH; e++)
            value[e] = icma_device_activate(act, __fmaf_rn(value[e] - centre[e], scale[e], offset[e]));
        store<EACH>(y, i, p.column, value);
    }
}

template <int EACH>
void launch_apply(icma_context *c, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon,
                  icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix y) {
    norm_tile t = tile_of(x.rows, x.columns, EACH);
    ICMA_LAUNCH_FLAT((norm_apply<EACH>), grid_of(t), BLOCK, c->stream, t, icma_floats_of(x),
                     icma_floats_of(gamma), icma_floats_of(beta), epsilon, act, icma_floats_of(mean),
                     icma_floats_of(variance), icma_floats_of(y));
    icma_context_launched(c, "batch_norm");
}

void cuda_batch_norm_given(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon,
                           icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix y) {
    if (x.rows == 0 || x.columns == 0)
        return;
    (by_four(x) && by_four(y) ? launch_apply<4> : launch_apply<1>)(icma_context_of(device), x, gamma, beta,
                                                                   epsilon, act, mean, variance, y);
}

unsigned finish_grid(size_t columns) {
    return (unsigned)icma_pieces(columns, FINISH_BLOCK / ICMA_WARP);
}

template <int EACH>
void launch_moments(icma_context *c, icma_matrix x, icma_matrix mean, icma_matrix variance) {
    norm_tile t = tile_of(x.rows, x.columns, EACH);
    double *partial = (double *)c->workspace;
    ICMA_LAUNCH((norm_moments<EACH>), grid_of(t), BLOCK, c->stream, t, icma_floats_of(x), partial);
    ICMA_LAUNCH(norm_finish, finish_grid(x.columns), FINISH_BLOCK, c->stream, x.rows, x.columns, grid_of(t).x,
                partial, icma_floats_of(x), icma_floats_of(mean), icma_floats_of(variance));
    icma_context_launched(c, "batch_norm");
}

void cuda_batch_norm(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon,
                     icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix y) {
    if (x.rows == 0 || x.columns == 0)
        return;
    (by_four(x) ? launch_moments<4> : launch_moments<1>)(icma_context_of(device), x, mean, variance);
    cuda_batch_norm_given(device, x, gamma, beta, epsilon, act, mean, variance, y);
}

/* --- backward ------------------------------------------------------------------------------------------- */

/* What the backward of a norm reads. */
struct norm_operands {
    icma_floats x, gamma, beta, mean, variance, dy;
    float epsilon;
    icma_activation act;
};

struct norm_column {
    float inverse, centre, scale, offset;
};

__device__ __forceinline__ norm_column column_of(const norm_operands &o, size_t j) {
    norm_column n;
    n.inverse = 1 / sqrtf(o.variance.at(0, j) + o.epsilon);
    n.centre = o.mean.at(0, j);
    n.scale = o.gamma.at(0, j) * n.inverse;
    n.offset = o.beta.at(0, j);
    return n;
}

/* d = dy act'(gamma u + beta). */
__device__ __forceinline__ float norm_gradient(icma_activation act, const norm_column &n, float apart,
                                               float dy) {
    return dy * icma_device_slope(act, __fmaf_rn(apart, n.scale, n.offset));
}

/* Sums of d and of d u. */
template <int EACH> __global__ void norm_gradient_sums(norm_tile t, norm_operands o, double *partial) {
    norm_place p = place_in(t);
    double sum[EACH] = {}, product[EACH] = {};
    if (p.inside) {
        norm_column n[EACH];
        float x[EACH], dy[EACH];
#pragma unroll
        for (int e = 0; e < EACH; e++)
            n[e] = column_of(o, p.column + e);
#pragma unroll 2
        for (size_t i = p.row; i < p.end; i += t.height) {
            load<EACH>(o.x, i, p.column, x);
            load<EACH>(o.dy, i, p.column, dy);
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                float apart = x[e] - n[e].centre, d = norm_gradient(o.act, n[e], apart, dy[e]);
                sum[e] += (double)d;
                product[e] += (double)d * (double)(apart * n[e].inverse);
            }
        }
    }
    leave_sums<EACH>(t, p, sum, product, partial);
}

/* Also leaves the sums over rows, for norm_gradient_apply, in means. */
__global__ void norm_gradient_finish(size_t rows, size_t columns, unsigned blocks, const double *partial,
                                     icma_floats dgamma, icma_floats dbeta, float *means) {
    size_t column;
    double sum, product;
    if (!gather_sums(partial, blocks, columns, &column, &sum, &product))
        return;
    dbeta.at(0, column) = (float)sum;
    dgamma.at(0, column) = (float)product;
    means[column] = (float)(sum / (double)rows);
    means[columns + column] = (float)(product / (double)rows);
}

template <int EACH>
__global__ void norm_gradient_apply(norm_tile t, norm_operands o, const float *means, icma_floats dx) {
    norm_place p = place_in(t);
    norm_column n[EACH];
    float constant[EACH], linear[EACH], x[EACH], dy[EACH];
    if (!p.inside)
        return;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        n[e] = column_of(o, p.column + e);
        constant[e] = means[p.column + e];
        linear[e] = means[t.columns + p.column + e];
    }
#pragma unroll 2
    for (size_t i = p.row; i < p.end; i += t.height) {
        load<EACH>(o.x, i, p.column, x);
        load<EACH>(o.dy, i, p.column, dy);
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            float apart = x[e] - n[e].centre, d = norm_gradient(o.act, n[e], apart, dy[e]);
            dy[e] = n[e].scale * (d - constant[e] - apart * n[e].inverse * linear[e]);
        }
        store<EACH>(dx, i, p.column, dy);
    }
}

template <int EACH>
void launch_backward(icma_context *c, icma_matrix x, const norm_operands &o, icma_matrix dgamma,
                     icma_matrix dbeta, icma_matrix dx) {
    norm_tile t = tile_of(x.rows, x.columns, EACH);
    double *partial = (double *)c->workspace;
    float *means = (float *)(partial + (size_t)2 * MOST_BLOCKS * x.columns);
    ICMA_LAUNCH((norm_gradient_sums<EACH>), grid_of(t), BLOCK, c->stream, t, o, partial);
    ICMA_LAUNCH(norm_gradient_finish, finish_grid(x.columns), FINISH_BLOCK, c->stream, x.rows, x.columns,
                grid_of(t).x, partial, icma_floats_of(dgamma), icma_floats_of(dbeta), means);
    ICMA_LAUNCH_FLAT((norm_gradient_apply<EACH>), grid_of(t), BLOCK, c->stream, t, o, means,
                     icma_floats_of(dx));
    icma_context_launched(c, "batch_norm_backward");
}

void cuda_batch_norm_backward(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon,
                              icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix dy,
                              icma_matrix dgamma, icma_matrix dbeta, icma_matrix dx) {
    if (x.rows == 0 || x.columns == 0)
        return;
    norm_operands o = {icma_floats_of(x),
                       icma_floats_of(gamma),
                       icma_floats_of(beta),
                       icma_floats_of(mean),
                       icma_floats_of(variance),
                       icma_floats_of(dy),
                       epsilon,
                       act};
    (by_four(x) && by_four(dy) && by_four(dx)
         ? launch_backward<4>
         : launch_backward<1>)(icma_context_of(device), x, o, dgamma, dbeta, dx);
}

} /* namespace */

void icma_norm_ops(icma_ops *table) {
    table->batch_norm = cuda_batch_norm;
    table->batch_norm_given = cuda_batch_norm_given;
    table->batch_norm_backward = cuda_batch_norm_backward;
}
