/* SPDX-License-Identifier: Apache-2.0 */
/* Products for training and packing: cuBLAS and cuSOLVER behind the op table. Matrices are row-major here and
 * column-major there, so factors change places. */
#include "products.cuh"

extern "C" {
#include "memory.h"
}

namespace {

/* Precision is chosen for the products of convolutions, which are nearly all of the work; the others stay in
 * f32. */
cublasComputeType_t compute_type(const icma_context *c) {
    return c->precision == ICMA_PRECISION_TF32   ? CUBLAS_COMPUTE_32F_FAST_TF32
           : c->precision == ICMA_PRECISION_BF16 ? CUBLAS_COMPUTE_32F_FAST_16BF
                                                 : CUBLAS_COMPUTE_32F;
}

/* --- dense ---------------------------------------------------------------------------------------------- */

void cuda_gemm(void *device, float alpha, icma_matrix a, bool transpose_a, icma_matrix b, bool transpose_b,
               float beta, icma_matrix m) {
    icma_context *c = icma_context_of(device);
    size_t inner = transpose_a ? a.rows : a.columns;
    if (m.rows == 0 || m.columns == 0)
        return;
    icma_context_check_blas(c,
                            cublasSgemm(c->blas, transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                                        transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, (int)m.columns, (int)m.rows,
                                        (int)inner, &alpha, icma_floats_of(b).p, (int)icma_most(b.stride, 1),
                                        icma_floats_of(a).p, (int)icma_most(a.stride, 1), &beta,
                                        icma_floats_of(m).p, (int)m.stride),
                            "gemm");
}

/* c += factor * p, where p has only the triangle on and under its diagonal. */
__global__ void add_triangle(size_t n, double factor, const float *p, icma_view<double> c) {
    size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n * n)
        return;
    size_t i = at / n, j = at - i * n;
    c.at(i, j) += factor * (double)(i >= j ? p[i * n + j] : p[j * n + i]);
}

void cuda_gram(void *device, icma_matrix a, double factor, icma_matrix m) {
    enum { BLOCK = 256 };
    icma_context *c = icma_context_of(device);
    size_t n = a.rows;
    bool fits = n * n * sizeof(float) <= ICMA_WORKSPACE;
    float *p = fits ? (float *)c->workspace : (float *)icma_context_allocate(c, n * n * sizeof(float));
    const float one = 1, zero = 0;
    icma_view<double> sum = {(double *)m.tensor->data + m.offset, m.stride};
    if (!p || n == 0)
        return;
    /* Row-major a is column-major a^T; the upper triangle there is the lower one here. */
    icma_context_check_blas(c,
                            cublasSsyrk(c->blas, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_T, (int)n, (int)a.columns,
                                        &one, icma_floats_of(a).p, (int)icma_most(a.stride, 1), &zero, p,
                                        (int)n),
                            "gram");
    ICMA_LAUNCH_FLAT(add_triangle, (unsigned)icma_pieces(n * n, BLOCK), BLOCK, c->stream, n, factor, p, sum);
    icma_context_launched(c, "gram");
    if (!fits)
        icma_context_free(c, p);
}

/* --- eigenproblem --------------------------------------------------------------------------------------- */

bool check_solver(icma_context *c, cusolverStatus_t result) {
    return result == CUSOLVER_STATUS_SUCCESS ||
           icma_context_check(
               c, result == CUSOLVER_STATUS_ALLOC_FAILED ? cudaErrorMemoryAllocation : cudaErrorUnknown,
               "cuSOLVER");
}

bool open_solver(icma_context *c) {
    if (c->solver)
        return true;
    if (!check_solver(c, cusolverDnCreate(&c->solver)))
        return false;
    if (check_solver(c, cusolverDnSetStream(c->solver, c->stream)))
        return true;
    cusolverDnDestroy(c->solver);
    c->solver = NULL;
    return false;
}

/* Both in device memory; `info` is not 0 afterwards if it did not converge. */
void solve(icma_context *c, int n, double *a, double *values, int *info) {
    int size = 0;
    if (!check_solver(c, cusolverDnDsyevd_bufferSize(c->solver, CUSOLVER_EIG_MODE_VECTOR,
                                                     CUBLAS_FILL_MODE_LOWER, n, a, n, values, &size)))
        return;
    double *work = (double *)icma_context_allocate(c, (size_t)icma_most((size_t)size, 1) * sizeof *work);
    if (work)
        check_solver(c, cusolverDnDsyevd(c->solver, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, n, a, n,
                                         values, work, size, info));
    icma_context_free(c, work);
}

enum { MOST_EIGEN = 1 << 14 }; /* beyond twice that the library's sizes overflow */

icma_status cuda_eigen(void *device, size_t n, double *a, double *values, icma_error *error) {
    icma_context *c = icma_context_of(device);
    int found = 0;
    if (n == 0)
        return ICMA_OK;
    if (n > MOST_EIGEN)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "an eigenproblem of %zu rows; a GPU's has at most %d", n,
                         MOST_EIGEN);
    double *matrix = (double *)icma_context_allocate(c, n * n * sizeof *matrix),
           *diagonal = (double *)icma_context_allocate(c, n * sizeof *diagonal);
    int *info = (int *)icma_context_allocate(c, sizeof *info);
    if (matrix && diagonal && info && open_solver(c)) {
        icma_context_send(c, matrix, a, n * n * sizeof *a);
        solve(c, (int)n, matrix, diagonal, info);
    }
    icma_status status =
        c->failure ? icma_context_take(c, error) : icma_context_fetch(c, a, matrix, n * n * sizeof *a, error);
    if (!status)
        status = icma_context_fetch(c, values, diagonal, n * sizeof *values, error);
    if (!status)
        status = icma_context_fetch(c, &found, info, sizeof found, error);
    icma_context_free(c, matrix);
    icma_context_free(c, diagonal);
    icma_context_free(c, info);
    return status || !found ? status
                            : icma_fail(error, ICMA_E_MEMORY, NULL,
                                        "the eigenproblem of %zu checkpoints did not converge", n);
}

/* --- gradients of weights ------------------------------------------------------------------------------- */

/*
 * g[t, i, j] = sum over sequences and positions p of x[stride p + t - P, i] y[p, j]. Parts of the positions
 * are summed into partial[part][t, i, j], and then these. Few channels go through a kernel that leaves out
 * nothing; else cuBLAS multiplies windows of x (as in products.cuh) with y, and what it left out - positions
 * that lack taps, and what is no whole share - is added by weights_finish.
 */
struct weights_job {
    const float *x, *y;
    size_t x_row, x_sequence, x_length, y_row, y_sequence, positions, batch, stride, width, padding;
    unsigned rows, columns; /* channels of x and of y */
    float *partial;
    size_t parts, first,
        covered; /* of each sequence, positions first .. first + covered - 1 are in the partial sums */
};

static const unsigned NARROW_POSITIONS = 64; /* of a tile */
enum {
    NARROW_BLOCK = 256,
    NARROW_ROWS = 128,
    NARROW_COLUMNS = 32,
    NARROW_SPAN = 1 << 12,
    NARROW_PARTS = 1024,
    SPLIT = 4,
    SIDE = 8,
    FINISH_WEIGHTS = 32,
    FINISH_GROUPS = 8
};

/* The sum over groups of a block, pairwise, to group 0. `shared` has room for a number a thread. */
__device__ float add_groups(float mine, float *shared, unsigned group, unsigned groups,
                            unsigned group_threads) {
    unsigned step = 1;
    while (step < groups)
        step *= 2;
    __syncthreads();
    shared[threadIdx.x] = mine;
    for (step /= 2; step > 0; step /= 2) {
        __syncthreads();
        if (group < step && group + step < groups)
            shared[threadIdx.x] += shared[threadIdx.x + step * group_threads];
    }
    return shared[threadIdx.x];
}

/*
 * A thread takes SPLIT rows (t, i), a split of all of them apart so that neighbours read neighbours, and SIDE
 * columns of y: as many sums in registers. Groups of threads share a tile's positions out, and are added up
 * in the end. A position's window of x is in one piece: row (t, i) of position k is x[k * stride * rows + t *
 * rows + i].
 */
template <int COLUMNS>
__global__ void __launch_bounds__(NARROW_BLOCK)
    weights_narrow(weights_job job, size_t stretch, unsigned span) {
    alignas(16)
        __shared__ float x[NARROW_SPAN + NARROW_BLOCK]; /* rows that do not exist read beyond the last */
    alignas(16) __shared__ float y[NARROW_POSITIONS][COLUMNS];
    const unsigned taps = (unsigned)job.width * job.rows, split = (taps + SPLIT - 1) / SPLIT,
                   group_threads = split * (COLUMNS / SIDE), groups = NARROW_BLOCK / group_threads;
    unsigned group = threadIdx.x / group_threads, within = threadIdx.x % group_threads, row = within % split,
             column = within / split * SIDE;
    size_t sequence = blockIdx.x % job.batch, begin = blockIdx.x / job.batch * stretch,
           end = begin + stretch < job.positions ? begin + stretch : job.positions;
    const float *from_x = job.x + sequence * job.x_sequence, *from_y = job.y + sequence * job.y_sequence;
    float sum[SPLIT][SIDE] = {};
    for (size_t p = begin; p < end; p += NARROW_POSITIONS) {
        unsigned count = (unsigned)(end - p < NARROW_POSITIONS ? end - p : NARROW_POSITIONS);
        __syncthreads();
        for (unsigned n = threadIdx.x; n < span * job.rows; n += NARROW_BLOCK) {
            int64_t at = (int64_t)(p * job.stride + n / job.rows) - (int64_t)job.padding;
            x[n] = at >= 0 && at < (int64_t)job.x_length ? from_x[at * (int64_t)job.x_row + n % job.rows] : 0;
        }
        for (unsigned n = threadIdx.x; n < count * COLUMNS; n += NARROW_BLOCK)
            y[n / COLUMNS][n % COLUMNS] =
                n % COLUMNS < job.columns ? from_y[(p + n / COLUMNS) * job.y_row + n % COLUMNS] : 0;
        __syncthreads();
        for (unsigned k = group; group < groups && k < count; k += groups) {
            const float *window = x + k * (unsigned)job.stride * job.rows + row, *beside = &y[k][column];
#pragma unroll
            for (int s = 0; s < SPLIT; s++)
#pragma unroll
                for (int c = 0; c < SIDE; c++)
                    sum[s][c] += window[s * split] * beside[c];
        }
    }
    float *out = job.partial + (size_t)blockIdx.x * taps * job.columns;
#pragma unroll
    for (unsigned s = 0; s < SPLIT; s++)
#pragma unroll
        for (unsigned c = 0; c < SIDE; c++) {
            float whole = add_groups(sum[s][c], x, group, groups, group_threads);
            if (group == 0 && row + s * split < taps && column + c < job.columns)
                out[(row + s * split) * job.columns + column + c] = whole;
        }
}

/* What positions that are in no partial sum add to g[t, i, j]. */
__device__ float missing_positions(const weights_job &job, size_t t, size_t i, size_t j) {
    float sum = 0;
    for (size_t s = 0; s < job.batch; s++)
        for (size_t k = 0; k < job.positions - job.covered; k++) {
            size_t p = k < job.first ? k : k + job.covered, at = p * job.stride + t;
            if (at >= job.padding && at - job.padding < job.x_length)
                sum += job.x[s * job.x_sequence + (at - job.padding) * job.x_row + i] *
                       job.y[s * job.y_sequence + p * job.y_row + j];
        }
    return sum;
}

/* A block sums FINISH_WEIGHTS weights; FINISH_GROUPS threads share each one's parts out, and are added up in
 * order. */
__global__ void __launch_bounds__(FINISH_WEIGHTS *FINISH_GROUPS)
    weights_finish(weights_job job, bool turned, icma_floats g) {
    __shared__ float sums[FINISH_GROUPS][FINISH_WEIGHTS];
    unsigned column = threadIdx.x % FINISH_WEIGHTS, group = threadIdx.x / FINISH_WEIGHTS;
    size_t n = (size_t)blockIdx.x * FINISH_WEIGHTS + column, weights = job.width * job.rows * job.columns;
    float sum = 0;
#pragma unroll 4
    for (size_t part = group; n < weights && part < job.parts; part += FINISH_GROUPS)
        sum += job.partial[part * weights + n];
    sums[group][column] = sum;
    __syncthreads();
    if (group > 0 || n >= weights)
        return;
    size_t j = n % job.columns, row = n / job.columns, t = row / job.rows, i = row % job.rows;
    for (unsigned k = 1; k < FINISH_GROUPS; k++)
        sum += sums[k][column];
    sum += missing_positions(job, t, i, j);
    if (turned)
        g.at(t * job.columns + j, i) = sum;
    else
        g.at(row, j) = sum;
}

template <int COLUMNS> void launch_narrow(icma_context *c, weights_job *job) {
    unsigned span = (unsigned)((NARROW_POSITIONS - 1) * job->stride + job->width);
    size_t weights = job->width * job->rows * job->columns;
    size_t most = icma_least(NARROW_PARTS, ICMA_WORKSPACE / sizeof(float) / weights),
           each = icma_most(most / job->batch, 1);
    size_t stretch = icma_most(icma_pieces(job->positions, each), NARROW_POSITIONS);
    job->parts = icma_pieces(job->positions, stretch) * job->batch;
    job->covered = job->positions;
    ICMA_LAUNCH((weights_narrow<COLUMNS>), (unsigned)job->parts, NARROW_BLOCK, c->stream, *job, stretch,
                span);
}

bool is_narrow(const weights_job *job) {
    size_t span = (NARROW_POSITIONS - 1) * job->stride + job->width;
    return job->width * job->rows <= NARROW_ROWS && job->columns <= NARROW_COLUMNS &&
           span * job->rows <= NARROW_SPAN && job->batch <= NARROW_PARTS;
}

/* Positions of a sequence that have all taps, in whole shares, through cuBLAS. */
void launch_wide(icma_context *c, weights_job *job) {
    enum { TILE = 128, AIM = 512, MOST_SHARES = 32, LEAST_SHARE = 256 };
    size_t inner = job->width * job->rows, step = job->stride * job->x_row,
           residues = icma_window_residues(inner, step), weights = inner * job->columns;
    size_t first = icma_pieces(job->padding, job->stride),
           end = (job->x_length + job->padding - job->width) / job->stride + 1;
    end = job->x_length + job->padding < job->width ? 0 : icma_least(end, job->positions);
    size_t count = end > first ? end - first : 0,
           tiles = icma_pieces(inner, TILE) * icma_pieces(job->columns, TILE);
    size_t shares = icma_least(icma_least(icma_most(AIM / tiles, 1), MOST_SHARES),
                               icma_most(count / residues / LEAST_SHARE, 1));
    shares = icma_least(shares, ICMA_WORKSPACE / sizeof(float) / weights);
    size_t share = shares ? count / residues / shares : 0;
    const float one = 1, zero = 0;
    job->first = first;
    job->covered = share * shares * residues;
    job->parts = share ? shares : 0;
    if (job->covered == 0)
        job->first = job->positions;
    for (size_t s = 0; share && s < job->batch; s++)
        for (size_t r = 0; r < residues; r++) {
            size_t p = first + r;
            const float *x = job->x + s * job->x_sequence + (p * job->stride - job->padding) * job->x_row,
                        *y = job->y + s * job->y_sequence + p * job->y_row;
            icma_context_check_blas(
                c,
                cublasGemmStridedBatchedEx(
                    c->blas, CUBLAS_OP_N, CUBLAS_OP_T, (int)job->columns, (int)inner, (int)share, &one, y,
                    CUDA_R_32F, (int)(residues * job->y_row), (long long)(share * residues * job->y_row), x,
                    CUDA_R_32F, (int)(residues * step), (long long)(share * residues * step),
                    s || r ? &one : &zero, job->partial, CUDA_R_32F, (int)job->columns, (long long)weights,
                    (int)shares, compute_type(c), CUBLAS_GEMM_DEFAULT),
                "conv_weights");
        }
}

void cuda_conv_weights(void *device, icma_conv shape, size_t stride, icma_matrix x, icma_matrix y,
                       bool turned, icma_tensor *scratch, icma_matrix g) {
    icma_context *c = icma_context_of(device);
    (void)scratch;
    weights_job job = {};
    job.x = icma_floats_of(x).p;
    job.y = icma_floats_of(y).p;
    job.x_row = x.stride;
    job.y_row = y.stride;
    job.x_length = x.rows / shape.batch;
    job.x_sequence = job.x_length * x.stride;
    job.positions = y.rows / shape.batch;
    job.y_sequence = job.positions * y.stride;
    job.batch = shape.batch;
    job.stride = stride;
    job.width = shape.width;
    job.padding = shape.width / 2;
    job.rows = (unsigned)x.columns;
    job.columns = (unsigned)y.columns;
    job.partial = (float *)c->workspace;
    if (is_narrow(&job) && job.columns <= 8)
        launch_narrow<8>(c, &job);
    else if (is_narrow(&job) && job.columns <= 16)
        launch_narrow<16>(c, &job);
    else if (is_narrow(&job))
        launch_narrow<NARROW_COLUMNS>(c, &job);
    else if (icma_is_contiguous(x))
        launch_wide(c, &job);
    else
        job.first = job.positions; /* windows are not in one piece: all by weights_finish */
    ICMA_LAUNCH(weights_finish, (unsigned)icma_pieces(job.width * job.rows * job.columns, FINISH_WEIGHTS),
                FINISH_WEIGHTS * FINISH_GROUPS, c->stream, job, turned, icma_floats_of(g));
    icma_context_launched(c, "conv_weights");
}

} /* namespace */

/* --- windows -------------------------------------------------------------------------------------------- */

size_t icma_window_residues(size_t inner, size_t x_step) {
    return icma_pieces(inner, x_step);
}

void icma_product_windows(icma_context *c, const icma_window_product *p) {
    size_t residues = icma_window_residues(p->inner, p->x_step);
    const float one = 1, zero = 0;
    icma_context_check_blas(
        c,
        cublasGemmStridedBatchedEx(c->blas, CUBLAS_OP_N, CUBLAS_OP_N, (int)p->outputs,
                                   (int)(p->positions / residues), (int)p->inner, &one, p->w, CUDA_R_32F,
                                   (int)p->w_row, 0, p->x, CUDA_R_32F, (int)(residues * p->x_step),
                                   (long long)p->x_step, &zero, p->y, CUDA_R_32F, (int)(residues * p->y_step),
                                   (long long)p->y_step, (int)residues, compute_type(c), CUBLAS_GEMM_DEFAULT),
        "a convolution");
}

bool icma_product_pays(const icma_context *c, size_t positions, size_t inner, size_t outputs) {
    /* Measured on an H100: in f32 cuBLAS is ahead of conv_tile from 256 outputs on, by a quarter, and half as
     * fast at 64; with tensor cores it is always ahead. */
    size_t least_outputs = c->precision == ICMA_PRECISION_F32 ? 256 : 16;
    return positions >= 1024 && inner >= 64 && outputs >= least_outputs;
}

void icma_product_ops(icma_ops *table) {
    table->gemm = cuda_gemm;
    table->gram = cuda_gram;
    table->eigen = cuda_eigen;
    table->conv_weights = cuda_conv_weights;
}
