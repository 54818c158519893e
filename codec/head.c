/* SPDX-License-Identifier: Apache-2.0 */
#include "head.h"

#include "memory.h"
#include "trellis.h"

#include <math.h>
#include <string.h>

static bool grow(icma_head_chunk *chunk, size_t runs, size_t symbols) {
    if (chunk->run_count + runs > chunk->run_capacity) {
        size_t capacity = 2 * chunk->run_capacity + runs;
        icma_rans_run *more = icma_resize_array(chunk->runs, capacity, sizeof *more);
        if (!more)
            return false;
        chunk->runs = more;
        chunk->run_capacity = capacity;
    }
    if (chunk->count + symbols > chunk->capacity) {
        size_t capacity = 2 * chunk->capacity + symbols;
        int32_t *more = icma_resize_array(chunk->symbols, capacity, sizeof *more);
        if (!more)
            return false;
        chunk->symbols = more;
        chunk->capacity = capacity;
    }
    return true;
}

static bool make_scratch(icma_head_chunk *chunk, size_t count) {
    if (!chunk->scratch && !(chunk->scratch = icma_alloc(ICMA_TRELLIS_SCRATCH)))
        return false;
    if (count <= chunk->widest)
        return true;
    float *more = icma_resize_array(chunk->scaled, count, sizeof *more);
    if (more) {
        chunk->scaled = more;
        chunk->widest = count;
    }
    return more;
}

static float clamp(float value) {
    const float largest = 2 * ICMA_TRELLIS_LARGEST - 4;
    return value > largest ? largest : value < -largest ? -largest : value;
}

icma_status icma_head_add_tensor(icma_head_chunk *chunk, const float *values, const float *step, size_t rows, size_t count, icma_error *error) {
    if (!grow(chunk, rows, rows * count) || !make_scratch(chunk, count + 1))
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
    for (size_t k = 0; k < rows; k++) {
        for (size_t l = 0; l < count; l++)
            chunk->scaled[l] = clamp(values[k * count + l] / step[k]);
        unsigned context = icma_trellis_quantise(chunk->scaled, count, 1, chunk->symbols + chunk->count, chunk->scratch, NULL);
        chunk->runs[chunk->run_count++] = (icma_rans_run){count, context};
        chunk->count += count;
    }
    return ICMA_OK;
}

icma_status icma_head_take(icma_head_chunk *chunk, icma_buffer *out, icma_error *error) {
    out->size = 0;
    for (size_t r = 0; r < chunk->run_count; r++)
        icma_write_u8(out, (uint8_t)chunk->runs[r].context);
    icma_status status = icma_rans_encode(chunk->symbols, chunk->runs, chunk->run_count, out, error);
    chunk->run_count = 0;
    chunk->count = 0;
    return status ? status : icma_buffer_status(out, error);
}

void icma_head_free(icma_head_chunk *chunk) {
    icma_free(chunk->runs);
    icma_free(chunk->symbols);
    icma_free(chunk->scratch);
    icma_free(chunk->scaled);
    memset(chunk, 0, sizeof *chunk);
}

static size_t rows_of(const icma_generator *generator, size_t tensor) {
    return icma_generator_is_modelled(generator, tensor) ? generator->components[generator->treatment[tensor]] : 0;
}

size_t icma_head_integers(const icma_safetensors *signature, const icma_generator *generator, size_t first, size_t count) {
    size_t sum = 0, cells;
    for (size_t t = first; t < first + count; t++)
        if (signature->tensors[t].count > SIZE_MAX / 8 || !icma_multiply_size(rows_of(generator, t), (size_t)signature->tensors[t].count, &cells) ||
            !icma_add_size(sum, cells, &sum))
            return SIZE_MAX;
    return sum <= SIZE_MAX / 8 ? sum : SIZE_MAX;
}

icma_status icma_head_open(const uint8_t *payload, size_t size, const icma_safetensors *signature, const icma_generator *generator, size_t first, size_t count,
                           icma_head_coded *out, icma_error *error) {
    size_t runs = 0;
    memset(out, 0, sizeof *out);
    for (size_t t = first; t < first + count; t++)
        runs += rows_of(generator, t);
    if (runs > size)
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "head: truncated");
    *out = (icma_head_coded){.payload = payload, .runs = icma_alloc_array(runs + 1, sizeof *out->runs), .stream = {runs, size}};
    if (!out->runs)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
    for (size_t t = first; t < first + count; t++)
        for (size_t k = 0; k < rows_of(generator, t); k++) {
            size_t each = (size_t)signature->tensors[t].count;
            out->runs[out->run_count] = (icma_rans_run){each, payload[out->run_count]};
            out->run_count++;
            out->total += each;
        }
    return ICMA_OK;
}

void icma_head_close(icma_head_coded *coded) {
    icma_free(coded->runs);
    memset(coded, 0, sizeof *coded);
}

icma_coded icma_head_stream(const icma_head_coded *h) {
    return (icma_coded){.data = h->payload, .offsets = h->stream, .streams = 1, .length = h->total, .runs = h->runs, .run_count = h->run_count, .total = h->total, .trellis = true};
}
