/* SPDX-License-Identifier: Apache-2.0 */
#include "residual.h"

#include "coded.h"
#include "memory.h"
#include "trellis.h"

#include <math.h>
#include <string.h>

void icma_residual_free(icma_residual *residual) {
    icma_free(residual->list);
    icma_free(residual->runs);
    icma_free(residual->integers);
    icma_free(residual->offsets);
    memset(residual, 0, sizeof *residual);
}

float icma_residual_step(float scale, int32_t code) {
    /* 2^(i / 16), each the nearest f32 */
    static const float sixteenth[16] = {0x1p+0F,        0x1.0b5586p+0F, 0x1.172b84p+0F, 0x1.2387a6p+0F, 0x1.306fep+0F,  0x1.3dea64p+0F,
                                        0x1.4bfdaep+0F, 0x1.5ab07ep+0F, 0x1.6a09e6p+0F, 0x1.7a1148p+0F, 0x1.8ace54p+0F, 0x1.9c4918p+0F,
                                        0x1.ae89fap+0F, 0x1.c199bep+0F, 0x1.d5818ep+0F, 0x1.ea4afap+0F};
    int octave = code >= 0 ? code / 16 : -((15 - code) / 16);
    float step = scale * ldexpf(sixteenth[code - 16 * octave], octave);
    return isnormal(step) ? step : 0;
}

/* --- classes ----------------------------------------------------------------------------------------------------- */

bool icma_residual_class(float log_variance, uint8_t *out) {
    const float inverse = 0x1.715476p+0F /* 1 / ln 2 */, round = 0x1.8p+23F, lowest = -ICMA_RESIDUAL_CLASSES / 2, highest = ICMA_RESIDUAL_CLASSES / 2 - 1;
    if (!isfinite(log_variance))
        return false;
    float octaves = log_variance * inverse;
    octaves = octaves < lowest ? lowest : octaves > highest ? highest : octaves;
    float shifted = octaves + round; /* to an integer, ties to even */
    *out = (uint8_t)((int)(shifted - round) + ICMA_RESIDUAL_CLASSES / 2);
    return true;
}

void icma_residual_count(const uint8_t *classes, size_t count, size_t sizes[ICMA_RESIDUAL_CLASSES]) {
    memset(sizes, 0, ICMA_RESIDUAL_CLASSES * sizeof *sizes);
    sizes[0] = classes ? 0 : count;
    for (size_t i = 0; classes && i < count; i++)
        sizes[classes[i]]++;
}

void icma_residual_places(const size_t sizes[ICMA_RESIDUAL_CLASSES], size_t next[ICMA_RESIDUAL_CLASSES]) {
    next[0] = 0;
    for (size_t c = 1; c < ICMA_RESIDUAL_CLASSES; c++)
        next[c] = next[c - 1] + sizes[c - 1];
}

static size_t length_of(const icma_residual *r, size_t i) {
    return (i + 1 < r->count ? r->list[i + 1].first : r->total) - r->list[i].first;
}

/* Integers of all tensors from the order of the elements to that in which they are coded, or back. */
static void reorder(const icma_residual *r, const icma_safetensors *signature, const icma_generator *g, const uint8_t *classes, const int16_t *from, int16_t *to, bool back) {
    for (size_t t = 0, i = 0, first = 0; i < r->count; first += icma_generator_is_modelled(g, t) ? (size_t)signature->tensors[t].count : 0, t++) {
        if (r->list[i].tensor != t)
            continue;
        size_t sizes[ICMA_RESIDUAL_CLASSES], next[ICMA_RESIDUAL_CLASSES], begin = r->list[i].first, count = length_of(r, i++);
        icma_residual_count(classes + first, count, sizes);
        icma_residual_places(sizes, next);
        for (size_t l = 0; l < count; l++) {
            size_t place = begin + next[classes[first + l]]++;
            to[back ? begin + l : place] = from[back ? place : begin + l];
        }
    }
}

/* --- runs and streams: the integers of all tensors lie one after the other and are cut every RESIDUAL_STREAM of them ------------ */

static size_t stream_count(size_t total) {
    return (total + ICMA_RESIDUAL_STREAM - 1) / ICMA_RESIDUAL_STREAM;
}

static size_t stream_length(const icma_residual *r, size_t s) {
    size_t left = r->total - s * ICMA_RESIDUAL_STREAM;
    return left < ICMA_RESIDUAL_STREAM ? left : ICMA_RESIDUAL_STREAM;
}

/* The runs of stream s; `runs` has room for all. Returns how many. */
static size_t runs_of(const icma_residual *r, size_t s, icma_rans_run *runs) {
    size_t first = s * ICMA_RESIDUAL_STREAM;
    return icma_rans_cut(r->runs, r->run_count, first, first + stream_length(r, s), runs);
}

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a residual");
}

/* --- writing ----------------------------------------------------------------------------------------------------- */

static icma_status encode_stream(const icma_residual *r, const int16_t *integers, size_t s, icma_rans_run *runs, icma_buffer *out, icma_error *error) {
    size_t count = stream_length(r, s);
    int32_t *symbols = icma_alloc_array(count, sizeof *symbols);
    if (!symbols)
        return no_memory(error);
    for (size_t i = 0; i < count; i++)
        symbols[i] = r->trellis ? icma_trellis_symbol(integers[s * ICMA_RESIDUAL_STREAM + i]) : integers[s * ICMA_RESIDUAL_STREAM + i];
    icma_status status = icma_rans_encode(symbols, runs, runs_of(r, s, runs), out, error);
    icma_free(symbols);
    return status;
}

/* A block of all modelled tensors is the usual one, and lists none. */
static void write_tensors(const icma_residual *r, size_t modelled, icma_buffer *out) {
    bool all = r->count == modelled;
    icma_write_varint(out, 2 * (uint64_t)(all ? 0 : r->count) + r->trellis);
    for (size_t i = 0; !all && i < r->count; i++)
        icma_write_varint(out, r->list[i].tensor - (i ? r->list[i - 1].tensor + 1 : 0));
    for (size_t i = 0; i < r->count; i++)
        icma_write_varint_signed(out, r->list[i].code - (i ? r->list[i - 1].code : 0));
    for (size_t i = 0; i < r->run_count; i++)
        icma_write_u8(out, (uint8_t)r->runs[i].context);
}

static size_t modelled_tensors(const icma_generator *g) {
    size_t count = 0;
    for (size_t t = 0; t < g->tensor_count; t++)
        count += icma_generator_is_modelled(g, t);
    return count;
}

icma_status icma_residual_write(const icma_residual *r, const icma_safetensors *signature, const icma_generator *g, const uint8_t *classes, icma_buffer *out, icma_error *error) {
    if (r->count == 0)
        return ICMA_OK;
    icma_buffer streams = {0};
    icma_rans_run *runs = icma_alloc_array(r->run_count, sizeof *runs);
    int16_t *coded = classes ? icma_alloc_array(r->total, sizeof *coded) : NULL;
    icma_status status = runs && (coded || !classes) ? ICMA_OK : no_memory(error);
    if (!status && classes)
        reorder(r, signature, g, classes, r->integers, coded, false);
    if (!status)
        write_tensors(r, modelled_tensors(g), out);
    size_t count = stream_count(r->total);
    for (size_t s = 0; !status && s < count; s++) {
        size_t before = streams.size;
        status = encode_stream(r, coded ? coded : r->integers, s, runs, &streams, error);
        if (s + 1 < count)
            icma_write_varint(out, streams.size - before);
    }
    if (!status)
        icma_write_bytes(out, streams.data, streams.size);
    if (!status)
        status = icma_buffer_status(&streams, error);
    icma_buffer_free(&streams);
    icma_free(coded);
    icma_free(runs);
    return status ? status : icma_buffer_status(out, error);
}

/* --- reading ----------------------------------------------------------------------------------------------------- */

static icma_status bad(icma_error *error, const char *what) {
    return icma_fail(error, ICMA_E_CORRUPT, NULL, "residual: %s", what);
}

static icma_status read_tensors(icma_cursor *from, const icma_safetensors *signature, const icma_generator *g, bool all, icma_residual *r, icma_error *error) {
    uint64_t next = 0;
    int64_t code = 0;
    for (size_t i = 0; i < r->count; i++) {
        uint64_t gap = all ? 0 : icma_read_varint(from);
        while (all && !icma_generator_is_modelled(g, (size_t)(next + gap)))
            gap++;
        if (from->failed || gap >= g->tensor_count || (next += gap) >= g->tensor_count || !icma_generator_is_modelled(g, (size_t)next))
            return bad(error, "truncated, or not of a modelled tensor");
        r->list[i].tensor = (uint32_t)next;
        r->list[i].first = r->total;
        if (!icma_add_size(r->total, (size_t)signature->tensors[next++].count, &r->total))
            return bad(error, "too long");
    }
    for (size_t i = 0; i < r->count; i++) {
        int64_t difference = icma_read_varint_signed(from);
        if (from->failed || difference < -2 * ICMA_RESIDUAL_MOST_CODE || difference > 2 * ICMA_RESIDUAL_MOST_CODE)
            return bad(error, "truncated, or a step out of range");
        code += difference;
        if (code < -ICMA_RESIDUAL_MOST_CODE || code > ICMA_RESIDUAL_MOST_CODE)
            return bad(error, "a step out of range");
        r->list[i].code = (int32_t)code;
        if (!(icma_residual_step(g->scale[r->list[i].tensor], r->list[i].code) > 0))
            return bad(error, "a step that is not a normal number");
    }
    return ICMA_OK;
}

/* The runs of tensor i, so far without context: one a class that it has; only counted while there is no room. */
static void add_runs(icma_residual *r, size_t i, const uint8_t *classes) {
    size_t sizes[ICMA_RESIDUAL_CLASSES];
    icma_residual_count(classes, length_of(r, i), sizes);
    r->list[i].run = r->run_count;
    for (size_t c = 0; c < ICMA_RESIDUAL_CLASSES; c++) {
        if (sizes[c] == 0)
            continue;
        if (r->runs)
            r->runs[r->run_count] = (icma_rans_run){sizes[c], 0};
        r->run_count++;
    }
}

static void list_runs(icma_residual *r, const icma_safetensors *signature, const icma_generator *g, const uint8_t *classes) {
    r->run_count = 0;
    for (size_t t = 0, i = 0, first = 0; i < r->count; first += icma_generator_is_modelled(g, t) ? (size_t)signature->tensors[t].count : 0, t++)
        if (r->list[i].tensor == t)
            add_runs(r, i++, classes ? classes + first : NULL);
}

static icma_status read_contexts(icma_cursor *from, const icma_safetensors *signature, const icma_generator *g, const uint8_t *classes, icma_residual *r, icma_error *error) {
    list_runs(r, signature, g, classes);
    if (r->run_count > from->left)
        return bad(error, "truncated");
    if (!(r->runs = icma_alloc_array(r->run_count, sizeof *r->runs)))
        return no_memory(error);
    list_runs(r, signature, g, classes);
    for (size_t i = 0; i < r->run_count; i++)
        r->runs[i].context = icma_read_u8(from);
    return ICMA_OK;
}

/* Where the streams lie: offsets[s] .. offsets[s + 1] of what is left. */
static icma_status read_sizes(icma_cursor *from, size_t streams, size_t *offsets, icma_error *error) {
    size_t end = 0;
    for (size_t s = 0; s + 1 < streams; s++) {
        uint64_t size = icma_read_varint(from);
        offsets[s] = end;
        if (from->failed || size > from->left || !icma_add_size(end, (size_t)size, &end))
            return bad(error, "truncated");
    }
    offsets[streams - 1] = end;
    offsets[streams] = from->left;
    return end > from->left ? bad(error, "truncated") : ICMA_OK;
}

static icma_status open_block(icma_cursor *from, const icma_safetensors *signature, const icma_generator *g, const uint8_t *classes, icma_residual *r, icma_error *error) {
    uint64_t head = icma_read_varint(from), count = head / 2;
    bool all = count == 0;
    r->trellis = head % 2;
    if (all)
        count = modelled_tensors(g);
    if (from->failed || count == 0 || count > g->tensor_count || count > from->left / 2)
        return bad(error, "truncated, or of more tensors than there are");
    r->list = icma_alloc_zeroed((size_t)count, sizeof *r->list);
    if (!r->list)
        return no_memory(error);
    r->count = (size_t)count;
    icma_status status = read_tensors(from, signature, g, all, r, error);
    if (!status)
        status = read_contexts(from, signature, g, classes, r, error);
    if (status)
        return status;
    size_t streams = stream_count(r->total);
    if (r->total > SIZE_MAX / 8 || streams > from->left + 1)
        return bad(error, "truncated");
    if (!(r->offsets = icma_alloc_array(streams + 1, sizeof *r->offsets)))
        return no_memory(error);
    status = read_sizes(from, streams, r->offsets, error);
    r->streams = icma_read_bytes(from, from->left);
    return status;
}

icma_status icma_residual_open(const uint8_t *data, size_t size, const icma_safetensors *signature, const icma_generator *g, const uint8_t *classes, icma_residual *out,
                               icma_error *error) {
    icma_residual r = {0};
    memset(out, 0, sizeof *out);
    if (size == 0)
        return ICMA_OK;
    icma_cursor from = icma_cursor_over(data, size);
    icma_status status = open_block(&from, signature, g, classes, &r, error);
    if (status)
        icma_residual_free(&r);
    else
        *out = r;
    return status;
}

icma_coded icma_residual_coded(const icma_residual *r) {
    return (icma_coded){r->streams, r->offsets, stream_count(r->total), ICMA_RESIDUAL_STREAM, r->runs, r->run_count, r->total, r->trellis};
}

/* Integers of one entry, which are decoded already. */
static icma_status copy_integers(const icma_residual *all, icma_residual *out, size_t count, icma_error *error) {
    out->integers = icma_alloc_array(count + 1, sizeof *out->integers);
    if (!out->integers)
        return no_memory(error);
    memcpy(out->integers, all->integers + out->list[0].first, count * sizeof *out->integers);
    out->list[0].run = out->list[0].first = 0;
    out->total = count;
    return ICMA_OK;
}

/* The streams that hold `count` integers from the entry's first on. What comes before them there is decoded too, and not looked at. */
static icma_status keep_streams(const icma_residual *all, icma_residual *out, size_t count, icma_error *error) {
    size_t stream = out->list[0].first / ICMA_RESIDUAL_STREAM, first = stream * ICMA_RESIDUAL_STREAM;
    size_t streams = stream_count(out->list[0].first + count) - stream, end = first + streams * ICMA_RESIDUAL_STREAM;
    if (end > all->total)
        end = all->total;
    out->runs = icma_alloc_array(all->run_count + 1, sizeof *out->runs);
    out->offsets = icma_alloc_array(streams + 1, sizeof *out->offsets);
    if (!out->runs || !out->offsets)
        return no_memory(error);
    out->list[0].run = icma_rans_cut(all->runs, all->run_count, first, out->list[0].first, out->runs);
    out->run_count = icma_rans_cut(all->runs, all->run_count, first, end, out->runs);
    memcpy(out->offsets, all->offsets + stream, (streams + 1) * sizeof *out->offsets);
    out->streams = all->streams;
    out->list[0].first -= first;
    out->total = end - first;
    return ICMA_OK;
}

icma_status icma_residual_of_tensor(const icma_residual *all, uint32_t tensor, icma_residual *out, icma_error *error) {
    size_t entry = 0;
    memset(out, 0, sizeof *out);
    while (entry < all->count && all->list[entry].tensor < tensor)
        entry++;
    if (entry == all->count || all->list[entry].tensor != tensor)
        return ICMA_OK;
    size_t next = entry + 1 < all->count ? all->list[entry + 1].first : all->total, count = next - all->list[entry].first;
    out->trellis = all->trellis;
    out->list = icma_alloc(sizeof *out->list);
    if (!out->list)
        return no_memory(error);
    out->list[0] = all->list[entry];
    out->count = 1;
    icma_status status = all->integers ? copy_integers(all, out, count, error) : keep_streams(all, out, count, error);
    if (status)
        icma_residual_free(out);
    return status;
}

/* From the order in which integers are coded to that of the elements. */
static icma_status order_integers(icma_residual *r, const icma_safetensors *signature, const icma_generator *g, const uint8_t *classes, icma_error *error) {
    int16_t *coded = r->integers;
    r->integers = icma_alloc_array(r->total + 1, sizeof *r->integers);
    if (r->integers)
        reorder(r, signature, g, classes, coded, r->integers, true);
    icma_free(coded);
    return r->integers ? ICMA_OK : no_memory(error);
}

static icma_status decode_integers(icma_residual *r, const icma_safetensors *signature, const icma_generator *g, const uint8_t *classes, icma_error *error) {
    const icma_coded coded = icma_residual_coded(r);
    r->integers = icma_alloc_array(r->total + 1, sizeof *r->integers);
    icma_status status = r->integers ? icma_coded_decode(&coded, 1, r->integers, error) : no_memory(error);
    return status || !classes ? status : order_integers(r, signature, g, classes, error);
}

icma_status icma_residual_read(const uint8_t *data, size_t size, const icma_safetensors *signature, const icma_generator *g, const uint8_t *classes, icma_residual *out,
                               icma_error *error) {
    icma_status status = icma_residual_open(data, size, signature, g, classes, out, error);
    if (!status && out->count)
        status = decode_integers(out, signature, g, classes, error);
    if (status)
        icma_residual_free(out);
    return status;
}
