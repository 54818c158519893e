/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exact decoding of tensors (spec 4.5): every output is one chain of fma, by one thread.
 *
 * A whole adapter is put together in one launch, bound by what it reads and writes: rows of the head (2 bytes
 * each a weight), integers of the residual (2), and the result.
 */
#include "context.cuh"
#include "numbers.cuh"

extern "C" {
#include "memory.h"
}

namespace {

enum { BLOCK = 256, EACH = 8, TILE = BLOCK * EACH };
static const unsigned COEFFICIENTS = 1024; /* of a head, in shared memory at a time */

/* --- single ops ----------------------------------------------------------------------------------------- */

__global__ void linear(icma_floats x, icma_floats w, const float *bias, icma_floats y, size_t inputs,
                       size_t outputs) {
    size_t o = (size_t)blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y;
    if (o >= outputs)
        return;
    float sum = bias ? bias[o] : y.at(i, o);
#pragma unroll 8
    for (size_t j = 0; j < inputs; j++)
        sum = __fmaf_rn(x.at(i, j), w.at(j, o), sum);
    y.at(i, o) = sum;
}

void cuda_linear(void *device, icma_matrix x, icma_matrix w, icma_matrix bias, icma_matrix y) {
    enum { MOST_ROWS = 1 << 15 };
    icma_context *c = icma_context_of(device);
    for (size_t first = 0; first < y.rows && y.columns; first += MOST_ROWS) {
        size_t rows = icma_least(y.rows - first, MOST_ROWS);
        icma_matrix from = icma_matrix_block(x, first, 0, rows, x.columns),
                    to = icma_matrix_block(y, first, 0, rows, y.columns);
        ICMA_LAUNCH_FLAT(linear, dim3((unsigned)icma_pieces(y.columns, BLOCK), (unsigned)rows), BLOCK,
                         c->stream, icma_floats_of(from), icma_floats_of(w), icma_floats_of(bias).p,
                         icma_floats_of(to), w.rows, y.columns);
    }
    icma_context_launched(c, "linear");
}

typedef icma_view<const int16_t> integers_view;

integers_view integers_of(icma_matrix m) {
    integers_view view = {m.tensor ? (const int16_t *)m.tensor->data + m.offset : NULL, m.stride};
    return view;
}

__global__ void basis(icma_floats q, icma_floats step, integers_view head, size_t rows, float scale,
                      icma_floats y, size_t columns) {
    size_t l = (size_t)blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y;
    if (l >= columns)
        return;
    float sum = 0;
#pragma unroll 4
    for (size_t k = 0; k < rows; k++)
        sum = __fmaf_rn(__fmul_rn(q.at(i, k), step.at(0, k)), (float)head.at(k, l), sum);
    y.at(i, l) = __fmul_rn(sum, scale);
}

void cuda_basis(void *device, icma_matrix q, icma_matrix step, icma_matrix head, float scale, icma_matrix y) {
    icma_context *c = icma_context_of(device);
    for (size_t i = 0; i < y.rows && y.columns; i++) {
        icma_matrix from = icma_matrix_block(q, i, 0, 1, q.columns),
                    to = icma_matrix_block(y, i, 0, 1, y.columns);
        ICMA_LAUNCH_FLAT(basis, (unsigned)icma_pieces(y.columns, BLOCK), BLOCK, c->stream,
                         icma_floats_of(from), icma_floats_of(step), integers_of(head), head.rows, scale,
                         icma_floats_of(to), y.columns);
    }
    icma_context_launched(c, "basis");
}

__global__ void dequantise(integers_view integers, float step, icma_floats y, size_t columns) {
    size_t l = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (l < columns)
        y.at(0, l) = __fmaf_rn((float)integers.at(0, l), step, y.at(0, l));
}

void cuda_dequantise(void *device, icma_matrix integers, float step, icma_matrix y) {
    icma_context *c = icma_context_of(device);
    for (size_t i = 0; i < y.rows && y.columns; i++) {
        icma_matrix from = icma_matrix_block(integers, i, 0, 1, y.columns),
                    to = icma_matrix_block(y, i, 0, 1, y.columns);
        ICMA_LAUNCH_FLAT(dequantise, (unsigned)icma_pieces(y.columns, BLOCK), BLOCK, c->stream,
                         integers_of(from), step, icma_floats_of(to), y.columns);
    }
    icma_context_launched(c, "dequantise");
}

/* --- whole adapters ------------------------------------------------------------------------------------- */

/* An icma_assembly with the device's pointers. */
struct piece {
    const int16_t *head, *integers;
    const float *q, *steps, *model;
    size_t count, rows, head_stride, place,
        first_tile; /* first_tile: how many tiles the pieces before it have */
    float scale, step;
    int bytes;   /* of an element: 4, 2 */
    bool bfloat; /* of two bytes: bfloat16 or half */
    bool head_by_16, integers_by_16, model_by_16,
        out_by_16; /* rows aligned to 16 bytes: EACH integers, or half as many floats, in one access */
};

/* The piece that a tile belongs to: the last one whose first tile is not after it. */
__device__ __forceinline__ unsigned find_piece(const piece *pieces, unsigned count, size_t tile) {
    unsigned low = 0;
    while (count > 1) {
        unsigned half = count / 2;
        if (pieces[low + half].first_tile <= tile)
            low += half;
        count -= half;
    }
    return low;
}

/* EACH integers from `from` on, of which `left` exist. */
__device__ __forceinline__ void load_integers(const int16_t *from, bool by_16, size_t left,
                                              int16_t to[EACH]) {
    if (by_16 && left >= EACH) {
        int4 all = *(const int4 *)from;
        const int parts[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
        for (int e = 0; e < EACH; e++)
            to[e] = (int16_t)(parts[e / 2] >> (e % 2 * 16));
        return;
    }
#pragma unroll
    for (int e = 0; e < EACH; e++)
        to[e] = (size_t)e < left ? from[e] : 0;
}

/* Adds the head's rows first .. first + rows - 1 to the chains of EACH weights; coefficients are given. */
__device__ __forceinline__ void add_rows(const piece &p, size_t l, size_t first, unsigned rows,
                                         const float *coefficient, float sum[EACH]) {
    const int16_t *row = p.head + first * p.head_stride + l;
#pragma unroll 4
    for (unsigned k = 0; k < rows; k++, row += p.head_stride) {
        int16_t integers[EACH];
        load_integers(row, p.head_by_16, p.count - l, integers);
#pragma unroll
        for (int e = 0; e < EACH; e++)
            sum[e] = __fmaf_rn(coefficient[k], (float)integers[e], sum[e]);
    }
}

__device__ __forceinline__ void load_model(const piece &p, size_t l, float value[EACH]) {
    if (p.model_by_16 && p.count - l >= EACH) {
        float4 low = *(const float4 *)(p.model + l), high = *(const float4 *)(p.model + l + 4);
        value[0] = low.x, value[1] = low.y, value[2] = low.z, value[3] = low.w;
        value[4] = high.x, value[5] = high.y, value[6] = high.z, value[7] = high.w;
        return;
    }
#pragma unroll
    for (int e = 0; e < EACH; e++)
        value[e] = l + e < p.count ? p.model[l + e] : 0;
}

/* The bits of an element in its dtype. */
__device__ __forceinline__ unsigned cast(const piece &p, float value) {
    return p.bytes == 4 ? __float_as_uint(value)
           : p.bfloat   ? icma_device_bf16(value)
                        : icma_device_f16(value);
}

__device__ __forceinline__ void store_values(const piece &p, size_t l, const float value[EACH],
                                             uint8_t *out) {
    uint8_t *to = out + p.place + l * p.bytes;
    if (p.out_by_16 && p.count - l >= EACH) {
        unsigned bits[EACH];
#pragma unroll
        for (int e = 0; e < EACH; e++)
            bits[e] = cast(p, value[e]);
        if (p.bytes == 4) {
            ((uint4 *)to)[0] = make_uint4(bits[0], bits[1], bits[2], bits[3]);
            ((uint4 *)to)[1] = make_uint4(bits[4], bits[5], bits[6], bits[7]);
        } else {
            *(uint4 *)to = make_uint4(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16,
                                      bits[4] | bits[5] << 16, bits[6] | bits[7] << 16);
        }
        return;
    }
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        unsigned bits = cast(p, value[e]);
        for (int b = 0; l + e < p.count && b < p.bytes; b++)
            to[e * p.bytes + b] = (uint8_t)(bits >> 8 * b);
    }
}

/* A block makes TILE weights of one piece. `bad` becomes the least index of a piece with a value that is not
 * finite. */
__global__ void __launch_bounds__(BLOCK)
    assemble(const piece *pieces, unsigned count, uint8_t *out, unsigned *bad) {
    __shared__ float coefficient[COEFFICIENTS];
    unsigned index = find_piece(pieces, count, blockIdx.x);
    const piece p = pieces[index];
    size_t l = (blockIdx.x - p.first_tile) * TILE + threadIdx.x * EACH;
    bool inside = l < p.count, finite = true;
    float value[EACH];
#pragma unroll
    for (int e = 0; e < EACH; e++)
        value[e] = 0;
    if (p.model && inside)
        load_model(p, l, value);
    for (size_t first = 0; p.head && first < p.rows; first += COEFFICIENTS) {
        unsigned rows = (unsigned)(p.rows - first < COEFFICIENTS ? p.rows - first : COEFFICIENTS);
        __syncthreads();
        for (unsigned k = threadIdx.x; k < rows; k += BLOCK)
            coefficient[k] = __fmul_rn(p.q[first + k], p.steps[first + k]);
        __syncthreads();
        if (inside)
            add_rows(p, l, first, rows, coefficient, value);
    }
    if (!inside)
        return;
    int16_t integers[EACH];
    if (p.integers)
        load_integers(p.integers + l, p.integers_by_16, p.count - l, integers);
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        if (p.head)
            value[e] = __fmul_rn(value[e], p.scale);
        if (p.integers)
            value[e] = __fmaf_rn((float)integers[e], p.step, value[e]);
        finite = finite && icma_device_finite(value[e]);
    }
    store_values(p, l, value, out);
    if (!finite)
        atomicMin(bad, index);
}

bool by_16(const void *pointer, size_t stride_bytes) {
    return (uintptr_t)pointer % 16 == 0 && stride_bytes % 16 == 0;
}

/* `out` is where place 0 would be. */
piece describe(const icma_assembly *a, const uint8_t *out, size_t first_tile) {
    piece p = {};
    p.head = integers_of(a->head).p;
    p.rows = a->head.rows;
    p.head_stride = a->head.stride;
    p.q = icma_floats_of(a->q).p;
    p.steps = icma_floats_of(a->steps).p;
    p.model = icma_floats_of(a->model).p;
    p.integers = a->integers ? (const int16_t *)a->integers->data + a->first : NULL;
    p.count = a->count;
    p.scale = a->scale;
    p.step = a->step;
    p.place = a->place;
    p.first_tile = first_tile;
    p.bytes = (int)icma_dtype_bits(a->dtype) / 8;
    p.bfloat = a->dtype == ICMA_BF16;
    p.head_by_16 = by_16(p.head, p.head_stride * sizeof *p.head);
    p.integers_by_16 = by_16(p.integers, 0);
    p.model_by_16 = by_16(p.model, 0);
    p.out_by_16 = by_16(out + p.place, 0);
    return p;
}

/* Runs of pieces that lie end to end come to the host in one transfer. */
icma_status fetch_all(icma_context *c, const icma_assembly *list, size_t count, const uint8_t *from,
                      uint8_t *host, icma_error *error) {
    icma_status status = ICMA_OK;
    for (size_t i = 0, next; !status && i < count; i = next) {
        size_t begin = list[i].place, end = begin;
        for (next = i; next < count && list[next].place == end; next++)
            end += list[next].count * (icma_dtype_bits(list[next].dtype) / 8);
        status = icma_context_fetch(c, host + begin, from + begin, end - begin, error);
    }
    return status;
}

/* `pieces` has room for count. Leaves what was found in the flag. */
void launch_assembly(icma_context *c, const icma_assembly *list, size_t count, piece *pieces, uint8_t *out) {
    size_t tiles = 0;
    for (size_t i = 0; i < count; i++) {
        pieces[i] = describe(&list[i], out, tiles);
        tiles += icma_pieces(list[i].count, TILE);
    }
    piece *on_device = (piece *)icma_context_allocate(c, count * sizeof *pieces);
    if (!on_device)
        return;
    icma_context_send(c, on_device, pieces, count * sizeof *pieces);
    icma_context_check(c, cudaMemsetAsync(c->flags, 0xff, sizeof *c->flags, c->stream), "assembling");
    if (!c->failure) { /* else what was to be sent is not there */
        ICMA_LAUNCH(assemble, (unsigned)tiles, BLOCK, c->stream, on_device, (unsigned)count, out, c->flags);
        icma_context_launched(c, "assemble");
    }
    icma_context_free(c, on_device);
}

icma_status cuda_assemble(void *device, const icma_assembly *list, size_t count, icma_tensor *out,
                          uint8_t *host, size_t *bad, icma_error *error) {
    icma_context *c = icma_context_of(device);
    unsigned found = 0;
    size_t begin = SIZE_MAX, end = 0;
    *bad = SIZE_MAX;
    icma_status status = icma_context_take(c, error);
    if (status || count == 0)
        return status;
    for (size_t i = 0; i < count; i++) {
        begin = icma_least(begin, list[i].place);
        end = icma_most(end, list[i].place + list[i].count * (icma_dtype_bits(list[i].dtype) / 8));
    }
    begin -= begin % 256; /* keeps alignments as they are */
    piece *pieces = (piece *)icma_alloc_array(count, sizeof *pieces);
    if (!pieces)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory to put %zu tensors together", count);
    uint8_t *own = out ? NULL : (uint8_t *)icma_context_allocate(c, end - begin);
    uintptr_t to =
        out ? (uintptr_t)out->data : (uintptr_t)own - begin; /* of place 0, where there may be no memory */
    bool room = out || own;
    if (room)
        launch_assembly(c, list, count, pieces, (uint8_t *)to);
    icma_free(pieces);
    status =
        room ? icma_context_fetch(c, &found, c->flags, sizeof found, error) : icma_context_take(c, error);
    if (!status && host)
        status = fetch_all(c, list, count, (const uint8_t *)to, host, error);
    icma_context_free(c, own);
    if (!status && found != UINT32_MAX)
        *bad = found;
    return status;
}

} /* namespace */

void icma_decoding_ops(icma_ops *table) {
    table->linear = cuda_linear;
    table->basis = cuda_basis;
    table->dequantise = cuda_dequantise;
    table->assemble = cuda_assemble;
}
