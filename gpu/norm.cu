/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Batch norm with its activation.
 *
 * Matrices are tall: millions of rows of 8 to 256 channels. A thread keeps to one column and goes down the rows, so that what belongs to a column is read once; neighbours take neighbouring columns and then rows. Sums are
 * double (single precision loses the variance of millions), from partial sums of blocks, whose number depends on the shape alone.
 */
#include "context.cuh"
#include "numbers.cuh"

namespace {

enum { BLOCK = 256, MOST_BLOCKS = 1024, LEAST_ROWS = 16, FINISH_BLOCK = 128 };

/* How a block's threads lie over columns and rows. */
struct norm_tile {
    size_t rows, columns;
    unsigned width;  /* columns that a block covers */
    unsigned height; /* rows at a time: BLOCK / width */
    size_t stretch;  /* rows a block goes through in all */
};

norm_tile tile_of(size_t rows, size_t columns) {
    norm_tile t = {rows, columns, (unsigned)icma_least(columns, BLOCK), 0, 0};
    t.height = BLOCK / t.width;
    size_t blocks = icma_least(icma_pieces(rows, (size_t)t.height * LEAST_ROWS), MOST_BLOCKS);
    t.stretch = icma_pieces(icma_pieces(rows, blocks), t.height) * t.height;
    return t;
}

dim3 grid_of(const norm_tile &t) {
    return dim3((unsigned)icma_pieces(t.rows, t.stretch), (unsigned)icma_pieces(t.columns, t.width));
}

struct norm_place {
    bool inside;
    size_t column, row, end;
};

__device__ __forceinline__ norm_place place_in(const norm_tile &t) {
    norm_place p;
    p.column = (size_t)blockIdx.y * t.width + threadIdx.x % t.width;
    p.row = (size_t)blockIdx.x * t.stretch + threadIdx.x / t.width;
    p.end = (size_t)(blockIdx.x + 1) * t.stretch;
    p.end = p.end < t.rows ? p.end : t.rows;
    p.inside = threadIdx.x < t.width * t.height && p.column < t.columns;
    return p;
}

/* Two sums of every thread to one of each column, rows ascending, at partial[block, which, column]. */
__device__ void leave_sums(const norm_tile &t, const norm_place &p, double first, double second, double *partial) {
    __shared__ double sums[2][BLOCK];
    sums[0][threadIdx.x] = first;
    sums[1][threadIdx.x] = second;
    __syncthreads();
    if (threadIdx.x >= t.width || !p.inside)
        return;
    for (unsigned k = 1; k < t.height; k++) {
        first += sums[0][threadIdx.x + k * t.width];
        second += sums[1][threadIdx.x + k * t.width];
    }
    partial[(size_t)blockIdx.x * 2 * t.columns + p.column] = first;
    partial[(size_t)blockIdx.x * 2 * t.columns + t.columns + p.column] = second;
}

/* The blocks' sums of one column, by a warp: each lane's ascending, then the lanes' pairwise. */
__device__ void gather_sums(const double *partial, unsigned blocks, size_t columns, size_t column, double *first, double *second) {
    unsigned lane = threadIdx.x % ICMA_WARP;
    *first = *second = 0;
    for (unsigned b = lane; b < blocks; b += ICMA_WARP) {
        *first += partial[(size_t)b * 2 * columns + column];
        *second += partial[(size_t)b * 2 * columns + columns + column];
    }
    for (unsigned half = ICMA_WARP / 2; half > 0; half /= 2) {
        *first += __shfl_down_sync(0xffffffffu, *first, half);
        *second += __shfl_down_sync(0xffffffffu, *second, half);
    }
}

/* --- forward ----------------------------------------------------------------------------------------------------- */

/* Sums of x - x_0 and of its square, x_0 the column's first element: so the variance does not cancel. */
__global__ void norm_moments(norm_tile t, icma_floats x, double *partial) {
    norm_place p = place_in(t);
    double sum = 0, squares = 0;
    if (p.inside) {
        float origin = x.at(0, p.column);
        for (size_t i = p.row; i < p.end; i += t.height) {
            double d = (double)x.at(i, p.column) - (double)origin;
            sum += d;
            squares += d * d;
        }
    }
    leave_sums(t, p, sum, squares, partial);
}

__global__ void norm_finish(size_t rows, size_t columns, unsigned blocks, const double *partial, icma_floats x, icma_floats mean, icma_floats variance) {
    size_t column = (size_t)blockIdx.x * (FINISH_BLOCK / ICMA_WARP) + threadIdx.x / ICMA_WARP;
    double sum, squares;
    if (column >= columns)
        return; /* a whole warp */
    gather_sums(partial, blocks, columns, column, &sum, &squares);
    if (threadIdx.x % ICMA_WARP)
        return;
    double apart = sum / (double)rows, spread = squares / (double)rows - apart * apart;
    mean.at(0, column) = (float)((double)x.at(0, column) + apart);
    variance.at(0, column) = (float)(spread > 0 ? spread : 0);
}

__global__ void norm_apply(norm_tile t, icma_floats x, icma_floats gamma, icma_floats beta, float epsilon, icma_activation act, icma_floats mean, icma_floats variance, icma_floats y) {
    norm_place p = place_in(t);
    if (!p.inside)
        return;
    float scale = gamma.at(0, p.column) / sqrtf(variance.at(0, p.column) + epsilon), centre = mean.at(0, p.column), offset = beta.at(0, p.column);
    for (size_t i = p.row; i < p.end; i += t.height)
        y.at(i, p.column) = icma_device_activate(act, __fmaf_rn(x.at(i, p.column) - centre, scale, offset));
}

void cuda_batch_norm_given(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon, icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix y) {
    icma_context *c = icma_context_of(device);
    if (x.rows == 0 || x.columns == 0)
        return;
    norm_tile t = tile_of(x.rows, x.columns);
    ICMA_LAUNCH_FLAT(norm_apply, grid_of(t), BLOCK, c->stream, t, icma_floats_of(x), icma_floats_of(gamma), icma_floats_of(beta), epsilon, act, icma_floats_of(mean), icma_floats_of(variance),
                     icma_floats_of(y));
    icma_context_launched(c, "batch_norm");
}

unsigned finish_grid(size_t columns) {
    return (unsigned)icma_pieces(columns, FINISH_BLOCK / ICMA_WARP);
}

void cuda_batch_norm(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon, icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix y) {
    icma_context *c = icma_context_of(device);
    if (x.rows == 0 || x.columns == 0)
        return;
    norm_tile t = tile_of(x.rows, x.columns);
    double *partial = (double *)c->workspace;
    ICMA_LAUNCH(norm_moments, grid_of(t), BLOCK, c->stream, t, icma_floats_of(x), partial);
    ICMA_LAUNCH(norm_finish, finish_grid(x.columns), FINISH_BLOCK, c->stream, x.rows, x.columns, grid_of(t).x, partial, icma_floats_of(x), icma_floats_of(mean), icma_floats_of(variance));
    icma_context_launched(c, "batch_norm");
    cuda_batch_norm_given(device, x, gamma, beta, epsilon, act, mean, variance, y);
}

/* --- backward ---------------------------------------------------------------------------------------------------- */

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

/* d = dy act'(gamma u + beta), with x - mean. */
__device__ __forceinline__ float norm_gradient(const norm_operands &o, const norm_column &n, size_t i, size_t j, float *apart) {
    *apart = o.x.at(i, j) - n.centre;
    return o.dy.at(i, j) * icma_device_slope(o.act, __fmaf_rn(*apart, n.scale, n.offset));
}

/* Sums of d and of d u. */
__global__ void norm_gradient_sums(norm_tile t, norm_operands o, double *partial) {
    norm_place p = place_in(t);
    double sum = 0, product = 0;
    if (p.inside) {
        norm_column n = column_of(o, p.column);
        for (size_t i = p.row; i < p.end; i += t.height) {
            float apart, d = norm_gradient(o, n, i, p.column, &apart);
            sum += (double)d;
            product += (double)d * (double)(apart * n.inverse);
        }
    }
    leave_sums(t, p, sum, product, partial);
}

/* Also leaves the sums over rows, for norm_gradient_apply, in means. */
__global__ void norm_gradient_finish(size_t rows, size_t columns, unsigned blocks, const double *partial, icma_floats dgamma, icma_floats dbeta, float *means) {
    size_t column = (size_t)blockIdx.x * (FINISH_BLOCK / ICMA_WARP) + threadIdx.x / ICMA_WARP;
    double sum, product;
    if (column >= columns)
        return; /* a whole warp */
    gather_sums(partial, blocks, columns, column, &sum, &product);
    if (threadIdx.x % ICMA_WARP)
        return;
    dbeta.at(0, column) = (float)sum;
    dgamma.at(0, column) = (float)product;
    means[column] = (float)(sum / (double)rows);
    means[columns + column] = (float)(product / (double)rows);
}

__global__ void norm_gradient_apply(norm_tile t, norm_operands o, const float *means, icma_floats dx) {
    norm_place p = place_in(t);
    if (!p.inside)
        return;
    norm_column n = column_of(o, p.column);
    float constant = means[p.column], linear = means[t.columns + p.column];
    for (size_t i = p.row; i < p.end; i += t.height) {
        float apart, d = norm_gradient(o, n, i, p.column, &apart);
        dx.at(i, p.column) = n.scale * (d - constant - apart * n.inverse * linear);
    }
}

void cuda_batch_norm_backward(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon, icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix dy,
                              icma_matrix dgamma, icma_matrix dbeta, icma_matrix dx) {
    icma_context *c = icma_context_of(device);
    if (x.rows == 0 || x.columns == 0)
        return;
    norm_tile t = tile_of(x.rows, x.columns);
    norm_operands o = {icma_floats_of(x), icma_floats_of(gamma), icma_floats_of(beta), icma_floats_of(mean), icma_floats_of(variance), icma_floats_of(dy), epsilon, act};
    double *partial = (double *)c->workspace;
    float *means = (float *)(partial + (size_t)2 * MOST_BLOCKS * x.columns);
    ICMA_LAUNCH(norm_gradient_sums, grid_of(t), BLOCK, c->stream, t, o, partial);
    ICMA_LAUNCH(norm_gradient_finish, finish_grid(x.columns), FINISH_BLOCK, c->stream, x.rows, x.columns, grid_of(t).x, partial, icma_floats_of(dgamma), icma_floats_of(dbeta), means);
    ICMA_LAUNCH_FLAT(norm_gradient_apply, grid_of(t), BLOCK, c->stream, t, o, means, icma_floats_of(dx));
    icma_context_launched(c, "batch_norm_backward");
}

} /* namespace */

void icma_norm_ops(icma_ops *table) {
    table->batch_norm = cuda_batch_norm;
    table->batch_norm_given = cuda_batch_norm_given;
    table->batch_norm_backward = cuda_batch_norm_backward;
}
