/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Convolutions, exactly (spec 4.15): every output is one chain of fma over its taps and channels, in order.
 *
 * A convolution, and each parity of a transposed one, is a product of a matrix whose rows are windows of x
 * (overlapping, never copied) and the weights. Positions whose windows lie within their sequence go through a
 * tiled product: a block makes TILE positions x OUTPUTS outputs, a thread 8 x 8 of them, each accumulator
 * going through the inner index in ascending order. The few positions at the ends of a sequence lack taps,
 * which are left out, and are made one by one.
 *
 * In training, products that dominate go through cuBLAS instead (products.cuh), where that is faster.
 */
#include "context.cuh"
#include "products.cuh"

namespace {

/* --- the tiled product ---------------------------------------------------------------------------------- */

/*
 * Output position m, first <= m < first + count, of sequence s is the chain over k = 0 .. taps - 1 and i = 0
 * .. inputs - 1 of x[s * x_sequence + x_base + m * x_position + k * x_tap + i] and w[(first_tap + k *
 * tap_step) * inputs + i, o], and lies at y[s * y_sequence + y_base + m * y_position + o].
 */
struct conv_part {
    int64_t x_base, x_tap;
    size_t y_base;
    size_t positions, first, count; /* positions of a sequence; those with all taps */
    unsigned taps, first_tap, tap_step;
};

struct conv_job {
    const float *x, *w, *bias; /* bias NULL: +0 */
    float *y;
    size_t x_sequence, x_position, y_sequence, y_position, w_row;
    size_t x_length; /* rows of a sequence of x */
    int64_t x_row;   /* elements from one row of x to the next */
    unsigned inputs, outputs, parts, batch;
    conv_part part[2];
};

static const unsigned DEPTH = 8; /* inner indices in shared memory at a time */
enum { SIDE = 8 };               /* outputs a thread has along either side */

/* Where inner index k of a part is in x (relative to its position) and in w. */
__device__ __forceinline__ void inner_place(const conv_job &job, const conv_part &part, unsigned k,
                                            int64_t *in_x, size_t *in_w) {
    unsigned tap = k / job.inputs, input = k - tap * job.inputs;
    *in_x = tap * part.x_tap + input;
    *in_w = ((size_t)(part.first_tap + tap * part.tap_step) * job.inputs + input) * job.w_row;
}

template <int TILE, int OUTPUTS> struct conv_shared {
    float x[2][DEPTH][TILE + 4]; /* turned; 4 more, so that stores of a warp fall into different banks */
    float w[2][DEPTH][OUTPUTS];
};

/* What a thread fetches of the next slice while the block multiplies this one. */
template <int TILE, int OUTPUTS> struct conv_fetch {
    static const int threads = TILE / SIDE * (OUTPUTS / SIDE);
    static const int x_each = TILE * DEPTH / threads, w_each = OUTPUTS * DEPTH / threads;
    static const int w_fours = OUTPUTS * DEPTH / 4; /* of all threads together: one each, or none */
    static const int blocks =
        threads == 256   ? 2
        : threads == 128 ? 3
                         : 4; /* on a multiprocessor at least: what registers allow without spilling */
    float x[x_each], w[4];
};

/* Slices of DEPTH channels of one tap, in 16 bytes each: channels are a multiple of DEPTH, outputs of
 * OUTPUTS, and all rows start at 16 bytes. What does not change from slice to slice is kept. */
template <int TILE, int OUTPUTS> struct conv_walker {
    typedef conv_fetch<TILE, OUTPUTS> fetch;
    const float *x, *w;                /* x: of the block's first position */
    unsigned place[fetch::x_each / 4]; /* from x on */
    unsigned input;

    __device__ __forceinline__ void start(const conv_job &job, const conv_part &part, const float *from,
                                          size_t first, size_t output) {
        unsigned last =
            (unsigned)(part.first + part.count - 1 - first < TILE ? part.first + part.count - 1 - first
                                                                  : TILE - 1);
        x = from + first * job.x_position;
#pragma unroll
        for (int e = 0; e < fetch::x_each / 4; e++) {
            unsigned n = threadIdx.x + e * fetch::threads;
            place[e] = (n / 2 < last ? n / 2 : last) * (unsigned)job.x_position + n % 2 * 4;
        }
        w = job.w + (size_t)part.first_tap * job.inputs * job.w_row + output;
        input = 0;
    }
    __device__ __forceinline__ void next(const conv_job &job, const conv_part &part, fetch &to) {
#pragma unroll
        for (int e = 0; e < fetch::x_each / 4; e++) {
            float4 four = *(const float4 *)(x + place[e]);
            to.x[4 * e] = four.x, to.x[4 * e + 1] = four.y, to.x[4 * e + 2] = four.z,
                     to.x[4 * e + 3] = four.w;
        }
        if (threadIdx.x < fetch::w_fours) {
            float4 four = *(const float4 *)(w + threadIdx.x / (OUTPUTS / 4) * job.w_row +
                                            threadIdx.x % (OUTPUTS / 4) * 4);
            to.w[0] = four.x, to.w[1] = four.y, to.w[2] = four.z, to.w[3] = four.w;
        }
        input += DEPTH;
        bool tap_ends = input == job.inputs;
        int64_t step = tap_ends ? part.x_tap - (int64_t)(job.inputs - DEPTH) : (int64_t)DEPTH;
        w += (tap_ends ? (size_t)(part.tap_step - 1) * job.inputs + DEPTH : DEPTH) * job.w_row;
        input = tap_ends ? 0 : input;
        x += step;
    }
};

/* The same for any shape, number by number. */
template <int TILE, int OUTPUTS>
__device__ __forceinline__ void fetch_slice(const conv_job &job, const conv_part &part, const float *x,
                                            size_t first, size_t output, unsigned k, unsigned inner,
                                            conv_fetch<TILE, OUTPUTS> &to) {
    typedef conv_fetch<TILE, OUTPUTS> fetch;
    size_t last = part.first + part.count - 1, in_w;
    int64_t in_x;
#pragma unroll
    for (int e = 0; e < fetch::x_each; e++) {
        unsigned n = threadIdx.x + e * fetch::threads, at = k + n % DEPTH;
        size_t position = first + n / DEPTH < last ? first + n / DEPTH : last;
        inner_place(job, part, at, &in_x, &in_w);
        to.x[e] = at < inner ? x[position * job.x_position + in_x] : 0;
    }
#pragma unroll
    for (int e = 0; e < fetch::w_each; e++) {
        unsigned n = threadIdx.x + e * fetch::threads, at = k + n / OUTPUTS;
        size_t o = output + n % OUTPUTS;
        inner_place(job, part, at, &in_x, &in_w);
        to.w[e] = at < inner && o < job.outputs ? job.w[in_w + o] : 0;
    }
}

template <int TILE, int OUTPUTS, bool VECTOR>
__device__ __forceinline__ void store_slice(conv_shared<TILE, OUTPUTS> &shared, int buffer,
                                            const conv_fetch<TILE, OUTPUTS> &from) {
    typedef conv_fetch<TILE, OUTPUTS> fetch;
#pragma unroll
    for (int e = 0; e < fetch::x_each; e++) {
        unsigned n = threadIdx.x + (VECTOR ? e / 4 : e) * fetch::threads;
        if (VECTOR)
            shared.x[buffer][n % 2 * 4 + e % 4][n / 2] = from.x[e];
        else
            shared.x[buffer][n % DEPTH][n / DEPTH] = from.x[e];
    }
    if (VECTOR && threadIdx.x < fetch::w_fours)
        *(float4 *)&shared.w[buffer][threadIdx.x / (OUTPUTS / 4)][threadIdx.x % (OUTPUTS / 4) * 4] =
            make_float4(from.w[0], from.w[1], from.w[2], from.w[3]);
    if (!VECTOR) {
#pragma unroll
        for (int e = 0; e < fetch::w_each; e++) {
            unsigned n = threadIdx.x + e * fetch::threads;
            shared.w[buffer][n / OUTPUTS][n % OUTPUTS] = from.w[e];
        }
    }
}

/* The c-th of a thread's 8 along a side of `extent`: two runs of 4, half of the side apart, so that a warp
 * reads shared memory in whole lines. Sides of 8 have one thread. */
template <int EXTENT> __device__ __forceinline__ unsigned side_place(unsigned thread, int c) {
    return EXTENT == SIDE ? (unsigned)c : (unsigned)(c / 4) * (EXTENT / 2) + thread * 4 + (unsigned)(c % 4);
}

template <int TILE, int OUTPUTS, bool VECTOR>
__global__ void __launch_bounds__(conv_fetch<TILE, OUTPUTS>::threads, conv_fetch<TILE, OUTPUTS>::blocks)
    conv_tile(conv_job job) {
    typedef conv_fetch<TILE, OUTPUTS> fetch;
    alignas(16) __shared__ conv_shared<TILE, OUTPUTS> shared;
    const conv_part &part = job.part[blockIdx.z % job.parts];
    size_t sequence = blockIdx.z / job.parts, first = part.first + (size_t)blockIdx.x * TILE,
           output = (size_t)blockIdx.y * OUTPUTS;
    if (first >= part.first + part.count)
        return; /* the whole block: the other part has more tiles */
    const float *x = job.x + sequence * job.x_sequence + part.x_base;
    unsigned inner = part.taps * job.inputs, across = threadIdx.x % (OUTPUTS / SIDE),
             down = threadIdx.x / (OUTPUTS / SIDE);
    float sum[SIDE][SIDE];
#pragma unroll
    for (int b = 0; b < SIDE; b++) {
        size_t o = output + side_place<OUTPUTS>(across, b);
        float start = job.bias && o < job.outputs ? job.bias[o] : 0;
#pragma unroll
        for (int a = 0; a < SIDE; a++)
            sum[a][b] = start;
    }
    fetch next = {};
    conv_walker<TILE, OUTPUTS> walker;
    if (VECTOR) {
        walker.start(job, part, x, first, output);
        walker.next(job, part, next);
    } else {
        fetch_slice<TILE, OUTPUTS>(job, part, x, first, output, 0, inner, next);
    }
    store_slice<TILE, OUTPUTS, VECTOR>(shared, 0, next);
    __syncthreads();
    for (unsigned k = 0, buffer = 0; k < inner; k += DEPTH, buffer ^= 1) {
        bool more = k + DEPTH < inner;
        if (more && VECTOR)
            walker.next(job, part, next);
        else if (more)
            fetch_slice<TILE, OUTPUTS>(job, part, x, first, output, k + DEPTH, inner, next);
        unsigned depth =
            inner - k < DEPTH ? inner - k : DEPTH; /* beyond it there is nothing to add, not even zeros */
#pragma unroll
        for (unsigned d = 0; d < DEPTH; d++) {
            if (!VECTOR && d >= depth)
                break;
            float a[SIDE], b[SIDE];
#pragma unroll
            for (int e = 0; e < SIDE; e++) {
                a[e] = shared.x[buffer][d][side_place<TILE>(down, e)];
                b[e] = shared.w[buffer][d][side_place<OUTPUTS>(across, e)];
            }
#pragma unroll
            for (int e = 0; e < SIDE; e++)
#pragma unroll
                for (int f = 0; f < SIDE; f++)
                    sum[e][f] = __fmaf_rn(a[e], b[f], sum[e][f]);
        }
        if (more) {
            store_slice<TILE, OUTPUTS, VECTOR>(shared, buffer ^ 1, next);
            __syncthreads();
        }
    }
    float *y = job.y + sequence * job.y_sequence + part.y_base;
#pragma unroll
    for (int e = 0; e < SIDE; e++) {
        size_t m = first + side_place<TILE>(down, e);
        if (m >= part.first + part.count)
            continue;
#pragma unroll
        for (int f = 0; f < SIDE; f++) {
            size_t o = output + side_place<OUTPUTS>(across, f);
            if (o < job.outputs)
                y[m * job.y_position + o] = sum[e][f];
        }
    }
}

/* --- few outputs ---------------------------------------------------------------------------------------- */

enum { NARROW_BLOCK = 128, NARROW_SUMS = 32, NARROW_WEIGHTS = 4096 };

/*
 * Bound by memory: a thread makes all OUTPUTS of NARROW_SUMS / OUTPUTS positions, with the weights in shared
 * memory, where all threads read the same ones at the same time. It reads its windows from global memory,
 * VECTOR channels in one access: what neighbours share is in the first cache.
 */
template <int OUTPUTS, int VECTOR> __global__ void __launch_bounds__(NARROW_BLOCK) conv_narrow(conv_job job) {
    static const int each = NARROW_SUMS / OUTPUTS;
    alignas(16) __shared__ float w[NARROW_WEIGHTS];
    const conv_part &part = job.part[blockIdx.z % job.parts];
    size_t sequence = blockIdx.z / job.parts, begin = (size_t)blockIdx.x * NARROW_BLOCK * each + threadIdx.x;
    unsigned inner = part.taps * job.inputs;
    for (unsigned n = threadIdx.x; n < inner * OUTPUTS; n += NARROW_BLOCK) {
        int64_t in_x;
        size_t in_w;
        inner_place(job, part, n / OUTPUTS, &in_x, &in_w);
        w[n] = n % OUTPUTS < job.outputs ? job.w[in_w + n % OUTPUTS] : 0;
    }
    __syncthreads();
    const float *x = job.x + sequence * job.x_sequence + part.x_base + part.first * job.x_position;
    float sum[each][OUTPUTS];
    size_t from[each];
#pragma unroll
    for (int p = 0; p < each; p++) {
        size_t n = begin + (size_t)p * NARROW_BLOCK;
        from[p] = (n < part.count ? n : part.count - 1) * job.x_position;
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++)
            sum[p][o] = job.bias && o < (int)job.outputs ? job.bias[o] : 0;
    }
    const float *at = w;
    for (unsigned t = 0; t < part.taps; t++)
        for (unsigned i = 0; i < job.inputs; i += VECTOR, at += VECTOR * OUTPUTS) {
            float value[each][VECTOR];
#pragma unroll
            for (int p = 0; p < each; p++) {
                const float *here = x + (int64_t)from[p] + (int64_t)t * part.x_tap + i;
                if (VECTOR == 4) {
                    float4 four = *(const float4 *)here;
                    value[p][0] = four.x, value[p][1 % VECTOR] = four.y, value[p][2 % VECTOR] = four.z,
                    value[p][3 % VECTOR] = four.w;
                } else {
                    value[p][0] = *here;
                }
            }
#pragma unroll
            for (int v = 0; v < VECTOR; v++)
#pragma unroll
                for (int o = 0; o < OUTPUTS; o++)
#pragma unroll
                    for (int p = 0; p < each; p++)
                        sum[p][o] = __fmaf_rn(value[p][v], at[v * OUTPUTS + o], sum[p][o]);
        }
    float *y = job.y + sequence * job.y_sequence + part.y_base + part.first * job.y_position;
#pragma unroll
    for (int p = 0; p < each; p++) {
        size_t n = begin + (size_t)p * NARROW_BLOCK;
        if (n >= part.count)
            continue;
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++)
            if (o < (int)job.outputs)
                y[n * job.y_position + o] = sum[p][o];
    }
}

/* --- ends ----------------------------------------------------------------------------------------------- */

/* The k-th position of a part that is not among those with all taps. */
__device__ __forceinline__ size_t edge_position(const conv_part &part, size_t k) {
    return k < part.first ? k : k + part.count;
}

/* One thread an output, leaving out taps that reach beyond the sequence. */
__global__ void conv_edges(conv_job job) {
    const conv_part &part = job.part[blockIdx.z % job.parts];
    size_t sequence = blockIdx.z / job.parts, edges = part.positions - part.count;
    size_t n = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= edges * job.outputs)
        return;
    size_t m = edge_position(part, n / job.outputs), o = n % job.outputs;
    const float *x = job.x + sequence * job.x_sequence;
    float sum = job.bias ? job.bias[o] : 0;
    for (unsigned k = 0; k < part.taps; k++) {
        int64_t at = part.x_base + (int64_t)(m * job.x_position) + k * part.x_tap;
        if (at < 0 || at >= (int64_t)job.x_length * job.x_row)
            continue;
        const float *w = job.w + (size_t)(part.first_tap + k * part.tap_step) * job.inputs * job.w_row + o;
        for (unsigned i = 0; i < job.inputs; i++)
            sum = __fmaf_rn(x[at + i], w[i * job.w_row], sum);
    }
    job.y[sequence * job.y_sequence + part.y_base + m * job.y_position + o] = sum;
}

/* --- launching ------------------------------------------------------------------------------------------ */

/* Whether rows of x can be read in 16 bytes, `channels` channels being a whole number of those that are taken
 * at a time. */
bool is_vector(const conv_job &job, unsigned channels) {
    bool aligned = (uintptr_t)job.x % 16 == 0 && job.x_sequence % 4 == 0 && job.x_position % 4 == 0 &&
                   job.inputs % channels == 0;
    for (unsigned p = 0; p < job.parts; p++)
        aligned = aligned && job.part[p].x_base % 4 == 0 && job.part[p].x_tap % 4 == 0;
    return aligned;
}

template <int TILE, int OUTPUTS> void launch_tile(icma_context *c, const conv_job &job, size_t count) {
    dim3 grid((unsigned)icma_pieces(count, TILE), (unsigned)icma_pieces(job.outputs, OUTPUTS),
              job.batch * job.parts);
    unsigned threads = conv_fetch<TILE, OUTPUTS>::threads;
    bool whole = is_vector(job, DEPTH) && job.outputs % OUTPUTS == 0 && (uintptr_t)job.w % 16 == 0 &&
                 job.w_row % 4 == 0 && job.part[0].taps && (job.parts == 1 || job.part[1].taps);
    if (whole)
        ICMA_LAUNCH((conv_tile<TILE, OUTPUTS, true>), grid, threads, c->stream, job);
    else
        ICMA_LAUNCH((conv_tile<TILE, OUTPUTS, false>), grid, threads, c->stream, job);
}

template <int OUTPUTS> bool launch_narrow_convolution(icma_context *c, const conv_job &job, size_t count) {
    size_t inner = icma_most(job.part[0].taps, job.part[1].taps) * (size_t)job.inputs;
    dim3 grid((unsigned)icma_pieces(count, (size_t)NARROW_BLOCK * NARROW_SUMS / OUTPUTS), 1,
              job.batch * job.parts);
    if (job.outputs > OUTPUTS || inner * OUTPUTS > NARROW_WEIGHTS)
        return false;
    for (unsigned p = 0; p < job.parts; p++)
        if (job.part[p].count == 0)
            return false;
    if (is_vector(job, 4))
        ICMA_LAUNCH((conv_narrow<OUTPUTS, 4>), grid, NARROW_BLOCK, c->stream, job);
    else
        ICMA_LAUNCH((conv_narrow<OUTPUTS, 1>), grid, NARROW_BLOCK, c->stream, job);
    return true;
}

void launch_inner(icma_context *c, const conv_job &job, size_t count) {
    if (launch_narrow_convolution<2>(c, job, count) || launch_narrow_convolution<8>(c, job, count))
        return;
    if (job.outputs <= 8)
        launch_tile<512, 8>(c, job, count);
    else if (job.outputs <= 16)
        launch_tile<256, 16>(c, job, count);
    else if (job.outputs <= 32)
        launch_tile<256, 32>(c, job, count);
    else if (job.outputs <= 64)
        launch_tile<128, 64>(c, job, count);
    else
        launch_tile<128, 128>(c, job, count);
}

/* A grid is at most so high; more sequences go in several launches. */
static const unsigned most_sequences = 1 << 14;

template <class F> void each_slice(const conv_job &job, F launch) {
    for (unsigned first = 0; first < job.batch; first += most_sequences) {
        conv_job slice = job;
        slice.batch = (unsigned)icma_least(job.batch - first, most_sequences);
        slice.x += first * job.x_sequence;
        slice.y += first * job.y_sequence;
        launch(slice);
    }
}

void launch_edges(icma_context *c, const conv_job &job) {
    enum { BLOCK = 128 };
    size_t edges = job.part[0].positions - job.part[0].count;
    if (job.parts == 2)
        edges = icma_most(edges, job.part[1].positions - job.part[1].count);
    if (edges)
        ICMA_LAUNCH_FLAT(conv_edges,
                         dim3((unsigned)icma_pieces(edges * job.outputs, BLOCK), 1, job.batch * job.parts),
                         BLOCK, c->stream, job);
}

/* Which positions of a part have all taps. */
void find_inside(const conv_job &job, conv_part *part) {
    int64_t position = (int64_t)job.x_position,
            reach = (int64_t)(part->taps ? part->taps - 1 : 0) * part->x_tap;
    int64_t low = part->x_base + (reach < 0 ? reach : 0),
            high = (int64_t)(job.x_length - 1) * job.x_row - part->x_base - (reach > 0 ? reach : 0);
    size_t begin = low < 0 ? (size_t)((-low + position - 1) / position) : 0,
           end = high < 0 ? 0 : (size_t)(high / position) + 1;
    part->first = icma_least(begin, part->positions);
    part->count = icma_most(part->first, icma_least(end, part->positions)) - part->first;
}

void run_job(icma_context *c, conv_job *job, const char *name) {
    size_t count = 0;
    for (unsigned p = 0; p < job->parts; p++) {
        find_inside(*job, &job->part[p]);
        count = icma_most(count, job->part[p].count);
    }
    if (job->outputs == 0)
        return;
    each_slice(*job, [=](const conv_job &slice) {
        if (count)
            launch_inner(c, slice, count);
        launch_edges(c, slice);
    });
    icma_context_launched(c, name);
}

/* Weights of both parities, side by side: out[k * 2 outputs + e * outputs + o] is where row k / inputs -
 * below of the window meets tap e + width / 2 - 2 (k / inputs - below), if there is one, and else 0. */
struct pair_weights {
    icma_floats w;
    float *out;
    size_t inner, outputs, inputs;
    int below, width;
};

__global__ void lay_pairs(pair_weights job) {
    size_t n = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= job.inner * 2 * job.outputs)
        return;
    size_t o = n % job.outputs, e = n / job.outputs % 2, k = n / job.outputs / 2;
    int tap = (int)e + job.width / 2 - 2 * ((int)(k / job.inputs) - job.below);
    job.out[n] = tap >= 0 && tap < job.width ? job.w.at((size_t)tap * job.inputs + k % job.inputs, o) : 0;
}

/*
 * The same through cuBLAS, if that pays: positions of all sequences in one row of windows, which start x_base
 * elements from their position's row of x. Those that reach beyond their sequence, or are no whole share,
 * come out wrong or not at all and are made by launch_edges. `product` lacks `positions`, and its x and y are
 * those of position 0; its weights are `pairs`, if that is not NULL.
 */
bool run_windows(icma_context *c, conv_job *job, int64_t x_base, icma_window_product product,
                 const pair_weights *pairs) {
    enum { BLOCK = 256 };
    size_t residues = icma_window_residues(product.inner, product.x_step), first = 0, end = SIZE_MAX,
           cells = product.inner * product.outputs;
    for (unsigned p = 0; p < job->parts; p++) {
        find_inside(*job, &job->part[p]);
        first = icma_most(first, job->part[p].first);
        end = icma_least(end, job->part[p].first + job->part[p].count);
    }
    size_t positions = job->part[0].positions, total = positions * job->batch;
    if (end < first + residues || (pairs && cells * sizeof(float) > ICMA_WORKSPACE) ||
        !icma_product_pays(c, total, product.inner, product.outputs))
        return false;
    for (unsigned p = 0; p < job->parts; p++) {
        job->part[p].first = first;
        job->part[p].count =
            end - first - (residues - 1); /* as many may be left at the end of the last sequence */
    }
    product.positions = total - first - (positions - end);
    product.x += x_base + (int64_t)(first * product.x_step);
    product.y += first * product.y_step;
    if (pairs)
        ICMA_LAUNCH_FLAT(lay_pairs, (unsigned)icma_pieces(cells, BLOCK), BLOCK, c->stream, *pairs);
    icma_product_windows(c, &product);
    each_slice(*job, [=](const conv_job &slice) { launch_edges(c, slice); });
    icma_context_launched(c, "a convolution");
    return true;
}

conv_job start_job(icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix bias, icma_matrix y) {
    conv_job job = {};
    job.x = icma_floats_of(x).p;
    job.w = icma_floats_of(w).p;
    job.bias = icma_floats_of(bias).p;
    job.y = icma_floats_of(y).p;
    job.batch = (unsigned)shape.batch;
    job.inputs = (unsigned)x.columns;
    job.outputs = (unsigned)y.columns;
    job.x_length = x.rows / shape.batch;
    job.x_row = (int64_t)x.stride;
    job.x_sequence = job.x_length * x.stride;
    job.y_sequence = y.rows / shape.batch * y.stride;
    job.w_row = w.stride;
    return job;
}

/* --- ops ------------------------------------------------------------------------------------------------ */

conv_job plain_job(icma_conv shape, size_t stride, icma_matrix x, icma_matrix w, icma_matrix bias,
                   icma_matrix y) {
    conv_job job = start_job(shape, x, w, bias, y);
    job.x_position = stride * x.stride;
    job.y_position = y.stride;
    job.parts = 1;
    job.part[0].x_base = -(int64_t)(shape.width / 2 * x.stride);
    job.part[0].x_tap = (int64_t)x.stride;
    job.part[0].positions = y.rows / shape.batch;
    job.part[0].taps = (unsigned)shape.width;
    job.part[0].tap_step = 1;
    return job;
}

void cuda_conv(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix bias, icma_matrix y) {
    conv_job job = plain_job(shape, 1, x, w, bias, y);
    run_job(icma_context_of(device), &job, "conv");
}

void cuda_conv_down(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix y) {
    icma_context *c = icma_context_of(device);
    icma_matrix none = {};
    conv_job job = plain_job(shape, 2, x, w, none, y);
    icma_window_product product = {job.x,     job.w,          job.y,    0,       w.rows,
                                   w.columns, job.x_position, w.stride, y.stride};
    if (!icma_is_contiguous(x) || !run_windows(c, &job, job.part[0].x_base, product, NULL))
        run_job(c, &job, "conv_down");
}

/* Output 2 m + e takes x[p] by tap t where 2 p + t - P = 2 m + e: every other tap, and p falls as t rises. */
conv_job up_job(icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix bias, icma_matrix y) {
    conv_job job = start_job(shape, x, w, bias, y);
    size_t padding = shape.width / 2;
    job.x_position = x.stride;
    job.y_position = 2 * y.stride;
    job.parts = 2;
    for (unsigned e = 0; e < 2; e++) {
        unsigned first = (unsigned)((e + padding) % 2);
        job.part[e].x_base = (int64_t)((e + padding - first) / 2 * x.stride);
        job.part[e].x_tap = -(int64_t)x.stride;
        job.part[e].y_base = e * y.stride;
        job.part[e].positions = x.rows / shape.batch;
        job.part[e].taps = (unsigned)(shape.width > first ? (shape.width - first + 1) / 2 : 0);
        job.part[e].first_tap = first;
        job.part[e].tap_step = 2;
    }
    return job;
}

void cuda_conv_up(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix bias,
                  icma_matrix y) {
    conv_job job = up_job(shape, x, w, bias, y);
    run_job(icma_context_of(device), &job, "conv_up");
}

/* Both parities at once: a row of x, `below` before it and `above` behind it, times weights for an even and
 * an odd output side by side. */
void cuda_conv_up_training(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix y) {
    icma_context *c = icma_context_of(device);
    icma_matrix none = {};
    conv_job job = up_job(shape, x, w, none, y);
    size_t padding = shape.width / 2, above = (padding + 1) / 2, below = (shape.width - 1 - padding) / 2,
           inner = (below + above + 1) * x.columns;
    icma_window_product product = {job.x,         (float *)c->workspace, job.y,          0,
                                   inner,         2 * y.columns,         job.x_position, 2 * y.columns,
                                   job.y_position};
    pair_weights weights = {icma_floats_of(w), (float *)c->workspace, inner, y.columns, x.columns,
                            (int)below,        (int)shape.width};
    if (!icma_is_contiguous(x) || !icma_is_contiguous(y) ||
        !run_windows(c, &job, -(int64_t)(below * x.stride), product, &weights))
        run_job(c, &job, "conv_up");
}

/* One thread a weight, reading in w's order. */
struct turn_job {
    icma_floats w, out;
    size_t width, inputs, outputs;
    bool flip;
};

__global__ void turn_weight(turn_job job) {
    size_t n = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= job.width * job.inputs * job.outputs)
        return;
    size_t row = n / job.outputs, o = n % job.outputs, t = row / job.inputs, i = row % job.inputs;
    job.out.at((job.flip ? job.width - 1 - t : t) * job.outputs + o, i) = job.w.at(row, o);
}

void cuda_turn_weights(void *device, icma_conv shape, icma_matrix w, bool flip, icma_matrix out) {
    enum { BLOCK = 256 };
    icma_context *c = icma_context_of(device);
    turn_job job = {icma_floats_of(w),    icma_floats_of(out), shape.width,
                    w.rows / shape.width, w.columns,           flip};
    size_t cells = w.rows * w.columns;
    if (cells == 0)
        return;
    ICMA_LAUNCH_FLAT(turn_weight, (unsigned)icma_pieces(cells, BLOCK), BLOCK, c->stream, job);
    icma_context_launched(c, "turn_weights");
}

} /* namespace */

void icma_convolution_ops(icma_ops *table) {
    table->conv = cuda_conv;
    table->conv_down = cuda_conv_down;
    table->conv_up = cuda_conv_up;
    table->conv_up_training = cuda_conv_up_training;
    table->turn_weights = cuda_turn_weights;
}
