/* SPDX-License-Identifier: Apache-2.0 */
/* Sums over rows and along rows. Every sum is cut by shapes alone and added up in a fixed order, so that
 * results are the same each time. */
#include "context.cuh"

namespace {

enum { BLOCK = 256, PART_ROWS = 64, MOST_PARTS = 64 };

/* --- over rows ------------------------------------------------------------------------------------------ */

/* Rows part * rows_a_part on of column j, summed into out[part, j]. */
__global__ void sum_part(icma_floats x, size_t rows, size_t columns, size_t rows_a_part, icma_floats out) {
    size_t j = (size_t)blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * rows_a_part;
    if (j >= columns)
        return;
    float sum = 0;
    for (size_t i = first; i < rows && i < first + rows_a_part; i++)
        sum += x.at(i, j);
    out.at(blockIdx.y, j) = sum;
}

void sum_parts(icma_context *c, icma_floats x, size_t rows, size_t columns, size_t rows_a_part,
               icma_floats out) {
    dim3 grid((unsigned)icma_pieces(columns, BLOCK), (unsigned)icma_most(icma_pieces(rows, rows_a_part), 1));
    ICMA_LAUNCH_FLAT(sum_part, grid, BLOCK, c->stream, x, rows, columns, rows_a_part, out);
    icma_context_launched(c, "sum_rows");
}

void cuda_sum_rows(void *device, icma_matrix x, icma_matrix row) {
    icma_context *c = icma_context_of(device);
    size_t rows_a_part = icma_most(PART_ROWS, icma_pieces(x.rows, MOST_PARTS)),
           parts = icma_pieces(x.rows, rows_a_part);
    if (x.columns == 0)
        return;
    if (parts <= 1 || parts * x.columns > ICMA_WORKSPACE / sizeof(float)) {
        sum_parts(c, icma_floats_of(x), x.rows, x.columns, icma_most(x.rows, 1), icma_floats_of(row));
        return;
    }
    icma_floats partial = {(float *)c->workspace, x.columns};
    sum_parts(c, icma_floats_of(x), x.rows, x.columns, rows_a_part, partial);
    sum_parts(c, partial, parts, x.columns, parts, icma_floats_of(row));
}

/* --- along rows ----------------------------------------------------------------------------------------- */

struct weighted_square {
    icma_floats p, q, weight;
    __device__ float operator()(size_t i, size_t j) const {
        float d = q.at(i, j) - p.at(i, j);
        return weight.at(0, j) * d * d;
    }
};

struct likelihood {
    icma_floats x, y;
    __device__ float operator()(size_t i, size_t j) const {
        float d = x.at(i, j) - y.at(i, 2 * j), v = y.at(i, 2 * j + 1);
        return 0.5F * (d * d * expf(-v) + v);
    }
};

/* out[i, 0] = sum over j of f(i, j), a block a row: a thread takes every BLOCK-th, then the threads' sums are
 * added pairwise. */
template <class F> __global__ void sum_row(size_t columns, F f, icma_floats out) {
    __shared__ float sums[BLOCK];
    size_t i = blockIdx.x;
    float sum = 0;
    for (size_t j = threadIdx.x; j < columns; j += BLOCK)
        sum += f(i, j);
    sums[threadIdx.x] = sum;
    for (unsigned half = BLOCK / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0)
        out.at(i, 0) = sums[0];
}

template <class F>
void sum_each_row(void *device, size_t rows, size_t columns, F f, icma_matrix out, const char *name) {
    icma_context *c = icma_context_of(device);
    if (rows == 0)
        return;
    ICMA_LAUNCH((sum_row<F>), (unsigned)rows, BLOCK, c->stream, columns, f, icma_floats_of(out));
    icma_context_launched(c, name);
}

void cuda_squared_error(void *device, icma_matrix p, icma_matrix q, icma_matrix weight, icma_matrix out) {
    sum_each_row(device, p.rows, p.columns,
                 weighted_square{icma_floats_of(p), icma_floats_of(q), icma_floats_of(weight)}, out,
                 "squared_error");
}

void cuda_gaussian_nll(void *device, icma_matrix x, icma_matrix y, icma_matrix out) {
    sum_each_row(device, x.rows, x.columns, likelihood{icma_floats_of(x), icma_floats_of(y)}, out,
                 "gaussian_nll");
}

} /* namespace */

void icma_row_ops(icma_ops *table) {
    table->sum_rows = cuda_sum_rows;
    table->squared_error = cuda_squared_error;
    table->gaussian_nll = cuda_gaussian_nll;
}
