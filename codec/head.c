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

/* One run a tensor and row, their contexts from the payload's front. *count is how many bytes that were. */
static icma_status read_runs(const uint8_t *payload, size_t size, const icma_safetensors *signature, const icma_generator *generator, size_t first,
                             size_t count, icma_rans_run **runs, size_t *run_count, icma_error *error) {
    *run_count = 0;
    for (size_t t = first; t < first + count; t++)
        *run_count += rows_of(generator, t);
    if (*run_count > size)
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "head: truncated");
    if (!(*runs = icma_alloc_array(*run_count + 1, sizeof **runs)))
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
    for (size_t t = first, r = 0; t < first + count; t++)
        for (size_t k = 0; k < rows_of(generator, t); k++, r++)
            (*runs)[r] = (icma_rans_run){(size_t)signature->tensors[t].count, payload[r]};
    return ICMA_OK;
}

icma_status icma_head_read(const uint8_t *payload, size_t size, const icma_safetensors *signature, const icma_generator *generator, size_t first,
                           size_t count, int16_t **integers, icma_error *error) {
    icma_rans_run *runs = NULL;
    size_t run_count, cells = icma_head_integers(signature, generator, first, count);
    *integers = NULL;
    icma_status status = read_runs(payload, size, signature, generator, first, count, &runs, &run_count, error);
    int32_t *symbols = status ? NULL : icma_alloc_array(cells + 1, sizeof *symbols);
    *integers = status ? NULL : icma_alloc_array(cells + 1, sizeof **integers);
    if (!status && (!symbols || !*integers))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
    if (!status)
        status = icma_rans_decode(payload + run_count, size - run_count, runs, run_count, symbols, error);
    for (size_t r = 0, at = 0; !status && r < run_count; at += runs[r++].count)
        if (!icma_trellis_expand(runs[r].context, symbols + at, runs[r].count))
            status = icma_fail(error, ICMA_E_CORRUPT, NULL, "head: an integer is out of range");
    for (size_t i = 0; !status && i < cells; i++)
        (*integers)[i] = (int16_t)symbols[i];
    icma_free(symbols);
    icma_free(runs);
    if (status) {
        icma_free(*integers);
        *integers = NULL;
    }
    return status;
}
