/* SPDX-License-Identifier: Apache-2.0 */
/* The reference table's last steps of decoding: stream after stream with the scalar coder, run after run, element after element. */
#include "memory.h"
#include "ops_host.h"
#include "rans_host.h"
#include "trellis.h"

#include <math.h>

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory to decode integers; close other programs");
}

static icma_status decode_streams(const icma_coded *c, icma_rans_run *runs, int32_t *symbols, icma_error *error) {
    icma_rans_decoder decoders[ICMA_RANS_DECODERS];
    icma_status status = ICMA_OK;
    icma_rans_decoders_all(decoders);
    for (size_t s = 0, at = 0; !status && s < c->streams; s++) {
        size_t end = c->total - at < c->length ? c->total : at + c->length, count = icma_rans_cut(c->runs, c->run_count, at, end, runs);
        status = icma_rans_decode_with(&decoders[0], c->data + c->offsets[s], c->offsets[s + 1] - c->offsets[s], runs, count, symbols + at, error);
        at = end;
    }
    return status;
}

/* From symbols to integers; false if any is out of range. */
static bool make_integers(const icma_coded *c, int32_t *symbols, int16_t *out) {
    for (size_t r = 0, at = 0; c->trellis && r < c->run_count; at += c->runs[r++].count)
        if (!icma_trellis_expand(c->runs[r].context, symbols + at, c->runs[r].count))
            return false;
    for (size_t i = 0; i < c->total; i++) {
        if (symbols[i] < INT16_MIN || symbols[i] > INT16_MAX)
            return false;
        out[i] = (int16_t)symbols[i];
    }
    return true;
}

static icma_status decode_one(const icma_coded *c, int16_t *out, icma_error *error) {
    for (size_t r = 0; r < c->run_count; r++)
        if (c->runs[r].context >= icma_rans_contexts())
            return icma_fail(error, ICMA_E_CORRUPT, NULL, "context %u of coded integers does not exist; there are %u", c->runs[r].context, icma_rans_contexts());
    icma_rans_run *runs = icma_alloc_array(c->run_count + 1, sizeof *runs);
    int32_t *symbols = icma_alloc_array(c->total + 1, sizeof *symbols);
    icma_status status = runs && symbols ? decode_streams(c, runs, symbols, error) : no_memory(error);
    if (!status && !make_integers(c, symbols, out))
        status = icma_fail(error, ICMA_E_CORRUPT, NULL, "a coded integer is out of range; restore the archive from a copy");
    icma_free(runs);
    icma_free(symbols);
    return status;
}

icma_status icma_decode_integers_reference(void *device, const icma_coded *list, size_t count, icma_tensor *integers, size_t first, icma_error *error) {
    (void)device;
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && i < count; first += list[i++].total) {
        assert(integers->element == ICMA_ELEMENT_I16 && first <= integers->count && list[i].total <= integers->count - first);
        status = decode_one(&list[i], (int16_t *)integers->data + first, error);
    }
    return status;
}

/* Elements l .. l + count - 1, before the cast. */
static void make_elements(const icma_assembly *a, size_t l, size_t count, float *y) {
    for (size_t i = 0; i < count; i++)
        y[i] = a->model.tensor && !a->head.tensor ? icma_row(a->model, 0)[l + i] : 0;
    for (size_t k = 0; a->head.tensor && k < a->head.rows; k++)
        for (size_t i = 0; i < count; i++)
            y[i] = fmaf(icma_row(a->q, 0)[k] * icma_row(a->steps, 0)[k], (float)icma_row_i16(a->head, k)[l + i], y[i]);
    for (size_t i = 0; a->head.tensor && i < count; i++)
        y[i] *= a->scale;
    for (size_t i = 0; a->integers && i < count; i++)
        y[i] = fmaf((float)((const int16_t *)a->integers->data)[a->first + l + i], a->step, y[i]);
}

/* Returns whether all of its elements are finite before the cast. */
static bool assemble_one(const icma_assembly *a, icma_tensor *out, uint8_t *host) {
    enum { AT_ONCE = 256 };
    size_t width = icma_dtype_bits(a->dtype) / 8;
    float y[AT_ONCE];
    bool finite = true;
    for (size_t l = 0; l < a->count; l += AT_ONCE) {
        size_t count = a->count - l < AT_ONCE ? a->count - l : AT_ONCE, at = a->place + l * width;
        make_elements(a, l, count, y);
        for (size_t i = 0; i < count; i++)
            finite = finite && isfinite(y[i]);
        if (out)
            icma_store_floats(a->dtype, y, count, (uint8_t *)out->data + at);
        if (host)
            icma_store_floats(a->dtype, y, count, host + at);
    }
    return finite;
}

icma_status icma_assemble_reference(void *device, const icma_assembly *list, size_t count, icma_tensor *out, uint8_t *host, size_t *bad, icma_error *error) {
    (void)device, (void)error;
    *bad = SIZE_MAX;
    for (size_t i = 0; i < count; i++)
        if (!assemble_one(&list[i], out, host) && *bad == SIZE_MAX)
            *bad = i;
    return ICMA_OK;
}
