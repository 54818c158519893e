/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoints.h"

#include "coarse.h"
#include "memory.h"

#include <math.h>
#include <string.h>

enum { SMALLEST_ROW = 19 }; /* step, tier, header, files, exceptions; three errors; hash */
enum { LARGEST_INTEGER = 1 << 23 }; /* exact in f32, so that integer * step is one rounding (spec 4.5) */

void icma_checkpoints_free(icma_checkpoints *c) {
    for (size_t i = 0; c->list && i < c->count; i++) {
        icma_free(c->list[i].files);
        icma_free(c->list[i].exceptions);
        icma_free(c->list[i].latent);
        icma_free(c->list[i].correction);
    }
    icma_free(c->list);
    icma_free(c->condition);
    icma_free(c->offset);
    icma_free(c->condition_name);
    memset(c, 0, sizeof *c);
}

float icma_round_error_up(double value) {
    if (!(value < INFINITY))
        return INFINITY;
    float f = icma_bf16_to_f32(icma_f32_to_bf16((float)value));
    if (f < value)
        f = icma_bf16_to_f32((uint16_t)(icma_f32_to_bf16(f) + 1));
    return f;
}

bool icma_has_coefficients(const icma_generator *generator, const icma_checkpoint *checkpoint) {
    return icma_generator_predicts(generator) && checkpoint->tier >= ICMA_TIER_LATENT && checkpoint->tier <= ICMA_TIER_LOSSLESS;
}

size_t icma_stored_latents(const icma_generator *generator, const icma_checkpoints *c) {
    return c->origin == ICMA_CONDITION_OFFSET ? 0 : generator->latent;
}

void icma_mark_linked(const icma_safetensors *signature, bool *coded) {
    for (size_t t = 0; t < signature->tensor_count; t++)
        coded[t] = icma_dtype_is_modelled(signature->tensors[t].dtype);
}

/* --- writing: column by column, so that equal and slowly changing fields compress ------------------------------- */

void icma_condition_write(const icma_checkpoints *c, const icma_generator *g, icma_buffer *out) {
    size_t name = c->condition_name ? strlen(c->condition_name) : 0;
    name = name < 255 ? name : 255;
    icma_write_u8(out, (uint8_t)c->origin);
    icma_write_u8(out, (uint8_t)name);
    icma_write_bytes(out, c->condition_name, name);
    if (c->origin != ICMA_CONDITION_OFFSET) {
        icma_coarse_write(out, c->condition, c->condition_size);
        return;
    }
    icma_write_varint(out, c->condition_size);
    if (c->condition_size)
        icma_coarse_write(out, c->condition, c->condition_size);
    for (size_t k = 0; k < g->total; k++)
        icma_write_varint_signed(out, c->offset[k]);
}

/* 0 for none, else the difference to the previous step + 1; steps ascend, so no difference is negative. */
static void write_steps(const icma_checkpoints *c, icma_buffer *out) {
    uint64_t previous = 0;
    for (size_t i = 0; i < c->count; i++) {
        icma_write_varint(out, c->list[i].has_step ? c->list[i].step - previous + 1 : 0);
        previous = c->list[i].has_step ? c->list[i].step : previous;
    }
}

static void write_bounds(const icma_checkpoints *c, icma_buffer *out) {
    for (size_t i = 0; i < c->count; i++)
        if (c->list[i].tier == ICMA_TIER_BOUNDED) {
            icma_write_u8(out, (uint8_t)c->list[i].bound.kind);
            icma_write_f32(out, c->list[i].bound.value);
        }
    for (size_t i = 0; i < c->count; i++)
        if (c->list[i].tier == ICMA_TIER_LOSSLESS)
            icma_write_u8(out, c->list[i].taps);
}

static void write_lists(const icma_checkpoints *c, icma_buffer *out) {
    for (size_t i = 0; i < c->count; i++) {
        const icma_checkpoint *p = &c->list[i];
        icma_write_varint(out, p->header);
        icma_write_varint(out, p->file_count);
        for (size_t f = 0; f < 2 * p->file_count; f++)
            icma_write_varint(out, p->files[f]);
        icma_write_varint(out, p->exception_count);
        for (size_t e = 0; e < p->exception_count; e++)
            icma_write_varint(out, p->exceptions[e] - (e ? p->exceptions[e - 1] + 1 : 0));
    }
}

/* One column an integer position; `latent` picks which array. Differences to the checkpoint before: training moves slowly. */
static void write_column(const icma_checkpoints *c, const icma_generator *g, bool latent, size_t position, icma_buffer *out) {
    int32_t previous = 0;
    for (size_t i = 0; i < c->count; i++) {
        const icma_checkpoint *p = &c->list[i];
        if (!icma_has_coefficients(g, p))
            continue;
        int32_t value = (latent ? p->latent : p->correction)[position];
        icma_write_varint_signed(out, (int64_t)value - (latent ? previous : 0));
        previous = value;
    }
}

void icma_checkpoints_write(const icma_checkpoints *c, const icma_generator *g, icma_buffer *out) {
    write_steps(c, out);
    for (size_t i = 0; i < c->count; i++)
        icma_write_u8(out, (uint8_t)c->list[i].tier);
    write_bounds(c, out);
    write_lists(c, out);
    for (size_t j = 0; j < icma_stored_latents(g, c); j++)
        write_column(c, g, true, j, out);
    for (size_t k = 0; k < g->total; k++)
        write_column(c, g, false, k, out);
    for (size_t i = 0; i < c->count; i++)
        icma_write_u16(out, icma_f32_to_bf16(c->list[i].relative_error));
    for (size_t i = 0; i < c->count; i++)
        icma_write_u16(out, icma_f32_to_bf16(c->list[i].dw_error_mean));
    for (size_t i = 0; i < c->count; i++)
        icma_write_u16(out, icma_f32_to_bf16(c->list[i].dw_error_max));
    for (size_t i = 0; i < c->count; i++)
        icma_write_u64(out, c->list[i].hash);
}

/* --- reading ----------------------------------------------------------------------------------------------------- */

static icma_status bad(icma_error *error, const char *what) {
    return icma_fail(error, ICMA_E_CORRUPT, NULL, "task table: %s", what);
}

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a task table");
}

/* How many numbers a condition of this origin has; SIZE_MAX: any. */
static size_t condition_size(const icma_generator *g, int origin) {
    if (origin == ICMA_CONDITION_LEARNED)
        return g->coordinates;
    return icma_generator_predicts(g) ? g->condition_size : SIZE_MAX;
}

static icma_status read_vector(icma_cursor *from, size_t count, icma_checkpoints *out, icma_error *error) {
    if (count > ICMA_MAX_CONDITION)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "task table: a condition of %zu numbers", count);
    if (!(out->condition = icma_alloc_array(count, sizeof(float))))
        return no_memory(error);
    out->condition_size = count;
    return icma_coarse_read(from, out->condition, count) ? ICMA_OK : bad(error, "a condition that is cut short, or has a number out of range");
}

/* The vector that the task came with, if any, and its offset. */
static icma_status read_offset(icma_cursor *from, const icma_generator *g, icma_checkpoints *out, icma_error *error) {
    uint64_t count = icma_read_varint(from);
    if (g->kind != ICMA_GENERATOR_BASIS)
        return bad(error, "an offset in a group without a basis");
    if (from->failed || count > from->left)
        return bad(error, "a condition that is cut short");
    icma_status status = count ? read_vector(from, (size_t)count, out, error) : ICMA_OK;
    if (status)
        return status;
    if (g->total > from->left)
        return bad(error, "a condition that is cut short");
    if (!(out->offset = icma_alloc_array(g->total, sizeof *out->offset)))
        return no_memory(error);
    for (size_t k = 0; k < g->total; k++) {
        int64_t value = icma_read_varint_signed(from);
        if (from->failed || value > LARGEST_INTEGER || value < -LARGEST_INTEGER)
            return bad(error, "a condition that is cut short, or an offset out of range");
        out->offset[k] = (int32_t)value;
    }
    return icma_cursor_finished(from) ? ICMA_OK : bad(error, "bytes after a condition's end");
}

icma_status icma_condition_read(const void *data, size_t size, const icma_generator *g, icma_checkpoints *out, icma_error *error) {
    icma_cursor from = icma_cursor_over(data, size);
    uint8_t origin = icma_read_u8(&from), name = icma_read_u8(&from);
    const uint8_t *text = icma_read_bytes(&from, name);
    if (size > 0 && (origin < ICMA_CONDITION_GIVEN || origin > ICMA_CONDITION_OFFSET))
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "task table: condition of origin %u; a newer icma may know it", origin);
    if (from.failed || from.left == 0)
        return bad(error, "a condition that is cut short");
    if (memchr(text, 0, name))
        return bad(error, "a condition with a NUL in its name");
    if (!(out->condition_name = icma_copy_text((const char *)text, name)))
        return no_memory(error);
    out->origin = origin;
    if (origin == ICMA_CONDITION_OFFSET)
        return read_offset(&from, g, out, error);
    size_t count = from.left - 1, wanted = condition_size(g, origin);
    if (count == 0 || (wanted != SIZE_MAX && count != wanted))
        return bad(error, "a condition that does not fit the generator");
    return read_vector(&from, count, out, error);
}

static icma_status read_steps(icma_cursor *from, icma_checkpoints *c, icma_error *error) {
    uint64_t previous = 0;
    bool first = true;
    for (size_t i = 0; i < c->count; i++) {
        uint64_t code = icma_read_varint(from);
        bool last = i + 1 == c->count;
        if (from->failed || (code == 0 && !last) || (code == 1 && !first) || (code && code - 1 > UINT64_MAX - previous))
            return bad(error, "steps that do not ascend");
        c->list[i].has_step = code > 0;
        c->list[i].step = code ? previous += code - 1 : 0;
        first = false;
    }
    return ICMA_OK;
}

static icma_status read_tiers(icma_cursor *from, const icma_generator *g, icma_checkpoints *c, icma_error *error) {
    for (size_t i = 0; i < c->count; i++) {
        uint8_t tier = icma_read_u8(from);
        if (from->failed)
            return bad(error, "truncated");
        if (tier != ICMA_TIER_VERBATIM && tier > ICMA_TIER_LOSSLESS)
            return icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "task table: tier %u; a newer icma may know it", tier);
        if (g->kind == ICMA_GENERATOR_NONE ? tier <= ICMA_TIER_LATENT : tier == ICMA_TIER_VERBATIM)
            return bad(error, "a tier that does not fit the generator");
        c->list[i].tier = tier;
    }
    return ICMA_OK;
}

static icma_status read_bounds(icma_cursor *from, icma_checkpoints *c, icma_error *error) {
    for (size_t i = 0; i < c->count; i++) {
        if (c->list[i].tier != ICMA_TIER_BOUNDED)
            continue;
        icma_bound bound = {icma_read_u8(from), 0};
        bound.value = icma_read_f32(from);
        if (bound.kind < ICMA_BOUND_DW || bound.kind > ICMA_BOUND_ABS)
            return from->failed ? bad(error, "truncated") : icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "task table: bound of kind %d; a newer icma may know it", bound.kind);
        if (!(bound.value > 0) || !isfinite(bound.value) || from->failed)
            return bad(error, "a bound that is no bound");
        c->list[i].bound = bound;
    }
    return ICMA_OK;
}

/* A lossless checkpoint is predicted from lossless ones that follow it. */
static icma_status read_taps(icma_cursor *from, icma_checkpoints *c, icma_error *error) {
    for (size_t i = 0; i < c->count; i++)
        if (c->list[i].tier == ICMA_TIER_LOSSLESS)
            c->list[i].taps = icma_read_u8(from);
    for (size_t i = 0; i < c->count; i++) {
        /* So what a checkpoint needs is what the next one needs, and that one: decoding down from an anchor always has it. */
        size_t next = i + 1 < c->count ? c->list[i + 1].taps : 0;
        if (c->list[i].taps > ICMA_CHAIN_TAPS || c->list[i].taps > next + 1 || c->list[i].taps >= c->count - i)
            return bad(error, "a chain that goes beyond its anchor");
        for (size_t j = 1; j <= c->list[i].taps; j++)
            if (c->list[i + j].tier != ICMA_TIER_LOSSLESS)
                return bad(error, "a chain through a checkpoint that is not lossless");
    }
    return from->failed ? bad(error, "truncated") : ICMA_OK;
}

static icma_status read_list(icma_cursor *from, const icma_generator *g, icma_checkpoint *p, icma_error *error) {
    p->header = icma_read_varint(from);
    uint64_t files = icma_read_varint(from);
    if (from->failed || files > from->left / 2)
        return bad(error, "truncated");
    if (files > ICMA_MAX_SIDE_FILES)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "task table: a checkpoint with %llu side files; the limit is %d", (unsigned long long)files,
                         (int)ICMA_MAX_SIDE_FILES);
    if (files && !(p->files = icma_alloc_array((size_t)files, 2 * sizeof *p->files)))
        return no_memory(error);
    p->file_count = (size_t)files;
    for (size_t f = 0; f < 2 * p->file_count; f++)
        p->files[f] = icma_read_varint(from);
    uint64_t exceptions = icma_read_varint(from);
    if (from->failed || exceptions > from->left || exceptions > g->tensor_count)
        return bad(error, "truncated");
    if (exceptions && !(p->exceptions = icma_alloc_array((size_t)exceptions, sizeof *p->exceptions)))
        return no_memory(error);
    p->exception_count = (size_t)exceptions;
    uint64_t next = 0;
    for (size_t e = 0; e < p->exception_count; e++) {
        uint64_t gap = icma_read_varint(from);
        if (from->failed || gap >= g->tensor_count || (next += gap) >= g->tensor_count ||
            !icma_generator_is_modelled(g, (size_t)next))
            return bad(error, "an exception that is not a modelled tensor");
        p->exceptions[e] = (uint32_t)next++;
    }
    return ICMA_OK;
}

/* Every integer takes at least one of the `left` bytes, so that a short table cannot make us allocate a long one. */
static icma_status make_integers(const icma_generator *g, icma_checkpoints *c, size_t left, icma_error *error) {
    size_t latent = 0, each = icma_stored_latents(g, c) + g->total;
    for (size_t i = 0; i < c->count; i++)
        latent += icma_has_coefficients(g, &c->list[i]);
    if (latent && each > left / latent)
        return bad(error, "truncated");
    for (size_t i = 0; i < c->count; i++) {
        icma_checkpoint *p = &c->list[i];
        if (!icma_has_coefficients(g, p))
            continue;
        p->latent = icma_alloc_zeroed(g->latent ? g->latent : 1, sizeof *p->latent);
        p->correction = icma_alloc_array(g->total ? g->total : 1, sizeof *p->correction);
        if (!p->latent || !p->correction)
            return no_memory(error);
    }
    return ICMA_OK;
}

static icma_status read_column(icma_cursor *from, const icma_generator *g, icma_checkpoints *c, bool latent, size_t position, icma_error *error) {
    int64_t previous = 0;
    for (size_t i = 0; i < c->count; i++) {
        icma_checkpoint *p = &c->list[i];
        if (!icma_has_coefficients(g, p))
            continue;
        int64_t code = icma_read_varint_signed(from);
        if (from->failed || code > 2 * LARGEST_INTEGER || code < -2 * LARGEST_INTEGER)
            return bad(error, "truncated, or an integer out of range");
        int64_t value = code + (latent ? previous : 0);
        if (value > LARGEST_INTEGER || value < -LARGEST_INTEGER)
            return bad(error, "an integer out of range");
        (latent ? p->latent : p->correction)[position] = (int32_t)value;
        previous = value;
    }
    return ICMA_OK;
}

static icma_status read_errors(icma_cursor *from, icma_checkpoints *c, icma_error *error) {
    for (int field = 0; field < 3; field++)
        for (size_t i = 0; i < c->count; i++) {
            float value = icma_bf16_to_f32(icma_read_u16(from));
            if (!(value >= 0) || from->failed)
                return bad(error, "truncated, or an error measure that is no measure");
            float *to[3] = {&c->list[i].relative_error, &c->list[i].dw_error_mean, &c->list[i].dw_error_max};
            *to[field] = value;
        }
    for (size_t i = 0; i < c->count; i++)
        c->list[i].hash = icma_read_u64(from);
    return from->failed ? bad(error, "truncated") : ICMA_OK;
}

icma_status icma_checkpoints_read(const void *data, size_t size, size_t count, const icma_generator *g, icma_condition_origin origin,
                                  icma_checkpoints *out, icma_error *error) {
    icma_cursor from = icma_cursor_over(data, size);
    icma_checkpoints c = {.origin = origin};
    memset(out, 0, sizeof *out);
    icma_status status = ICMA_OK;
    /* So many bytes a checkpoint at least: a lying count cannot make us allocate much. */
    if (count == 0 || count > from.left / SMALLEST_ROW)
        status = bad(error, "fewer checkpoints than declared");
    if (!status && !(c.list = icma_alloc_zeroed(count, sizeof *c.list)))
        status = no_memory(error);
    c.count = c.list ? count : 0;
    if (!status)
        status = read_steps(&from, &c, error);
    if (!status)
        status = read_tiers(&from, g, &c, error);
    if (!status)
        status = read_bounds(&from, &c, error);
    if (!status)
        status = read_taps(&from, &c, error);
    for (size_t i = 0; !status && i < count; i++)
        status = read_list(&from, g, &c.list[i], error);
    if (!status)
        status = make_integers(g, &c, from.left, error);
    for (size_t j = 0; !status && j < icma_stored_latents(g, &c); j++)
        status = read_column(&from, g, &c, true, j, error);
    for (size_t k = 0; !status && k < g->total; k++)
        status = read_column(&from, g, &c, false, k, error);
    if (!status)
        status = read_errors(&from, &c, error);
    if (!status && !icma_cursor_finished(&from))
        status = bad(error, "bytes after its end");
    if (status)
        icma_checkpoints_free(&c);
    else
        *out = c;
    return status;
}

icma_status icma_texts_read(const uint8_t *data, size_t size, icma_texts *out, icma_error *error) {
    icma_cursor from = icma_cursor_over(data, size);
    memset(out, 0, sizeof *out);
    uint64_t count = icma_read_varint(&from);
    if (from.failed || count > from.left)
        return bad(error, "texts truncated");
    if (count > ICMA_MAX_TEXTS)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "%llu texts; the limit is %d", (unsigned long long)count, (int)ICMA_MAX_TEXTS);
    if (count && !(out->list = icma_alloc_zeroed((size_t)count, sizeof *out->list)))
        return no_memory(error);
    out->count = (size_t)count;
    for (size_t i = 0; i < out->count; i++) {
        uint64_t length = icma_read_varint(&from);
        const uint8_t *text = length <= from.left ? icma_read_bytes(&from, (size_t)length) : NULL;
        if (from.failed || !text) {
            icma_texts_free(out);
            return bad(error, "texts truncated");
        }
        out->list[i].data = text;
        out->list[i].size = (size_t)length;
    }
    if (!icma_cursor_finished(&from)) {
        icma_texts_free(out);
        return bad(error, "bytes after the texts");
    }
    return ICMA_OK;
}

void icma_texts_free(icma_texts *texts) {
    icma_free(texts->list);
    memset(texts, 0, sizeof *texts);
}
