/* SPDX-License-Identifier: Apache-2.0 */
/* The plan of a lossless link: what a payload says before its coded bytes (spec 4.14). */
#include "lossless_host.h"

#include "compress.h"
#include "memory.h"

#include <string.h>

/* More than a tensor with a profile of its own, or a piece, can take of a plan. */
enum { BYTES_A_TENSOR = 128, BYTES_A_PIECE = 20 };
enum { SIDE_LEVEL = 19 };

static icma_status corrupt(icma_error *error, const char *what) {
    return icma_fail(error, ICMA_E_CORRUPT, NULL, "lossless link: %s; restore the archive from a copy", what);
}

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a lossless link; close other programs");
}

icma_status icma_lossless_plan_open(const icma_lossless_link *link, icma_lossless_plan *plan,
                                    icma_error *error) {
    const icma_safetensors *signature = link->signature;
    memset(plan, 0, sizeof *plan);
    if (link->tap_count > ICMA_LOSSLESS_TAPS)
        return icma_fail(error, ICMA_E_USAGE, NULL, "%zu predictions of a lossless link; give at most %d",
                         link->tap_count, ICMA_LOSSLESS_TAPS);
    for (size_t t = 0; t < signature->tensor_count; t++)
        if (link->coded[t] && !icma_dtype_is_modelled(signature->tensors[t].dtype))
            return icma_fail(error, ICMA_E_USAGE, NULL,
                             "a tensor of dtype %s in a lossless link; keep it verbatim",
                             icma_dtype_name(signature->tensors[t].dtype));
    if (!(plan->tensors = icma_alloc_zeroed(signature->tensor_count + 1, sizeof *plan->tensors)))
        return no_memory(error);
    for (size_t t = 0; t < signature->tensor_count; t++)
        if (link->coded[t] && signature->tensors[t].count > 0)
            plan->tensors[plan->tensor_count++].tensor = t;
    return ICMA_OK;
}

void icma_lossless_plan_free(icma_lossless_plan *plan) {
    icma_free(plan->profiles);
    icma_free(plan->tensors);
    icma_free(plan->pieces);
    memset(plan, 0, sizeof *plan);
}

/* --- Pieces --- */

static uint64_t parts_of(uint64_t count, uint64_t most) {
    return count / most + (count % most != 0);
}

static void cut_tensor(icma_lossless_plan *plan, size_t item, uint64_t count) {
    for (uint64_t first = 0; first < count; first += ICMA_LOSSLESS_PART) {
        uint64_t rest = count - first;
        plan->pieces[plan->piece_count++] =
            (icma_lossless_piece){.item = item,
                                  .first = first,
                                  .count = rest < ICMA_LOSSLESS_PART ? (size_t)rest : ICMA_LOSSLESS_PART};
    }
}

static void cut_blocks(icma_lossless_plan *plan) {
    size_t item = 0;
    for (uint64_t first = 0; first < plan->modelled; first += ICMA_LOSSLESS_BLOCK) {
        uint64_t rest = plan->modelled - first;
        /* The last modelled tensor that does not start behind it. */
        for (size_t i = item + 1; i < plan->tensor_count && plan->tensors[i].first <= first; i++)
            if (plan->tensors[i].method == ICMA_LOSSLESS_MODELLED)
                item = i;
        plan->pieces[plan->piece_count++] =
            (icma_lossless_piece){.item = item,
                                  .first = first,
                                  .count = rest < ICMA_LOSSLESS_BLOCK ? (size_t)rest : ICMA_LOSSLESS_BLOCK,
                                  .block = true};
    }
}

icma_status icma_lossless_plan_cut(const icma_lossless_link *link, icma_lossless_plan *plan,
                                   icma_error *error) {
    uint64_t pieces = 0;
    plan->modelled = plan->plain_size = 0;
    for (size_t i = 0; i < plan->tensor_count; i++) {
        const icma_tensor_info *info = &link->signature->tensors[plan->tensors[i].tensor];
        plan->tensors[i].first = plan->modelled;
        plan->modelled += plan->tensors[i].method == ICMA_LOSSLESS_MODELLED ? info->count : 0;
        plan->plain_size += plan->tensors[i].method == ICMA_LOSSLESS_PLAIN ? (size_t)info->size : 0;
        pieces +=
            plan->tensors[i].method == ICMA_LOSSLESS_GROUPED ? parts_of(info->count, ICMA_LOSSLESS_PART) : 0;
    }
    pieces += parts_of(plan->modelled, ICMA_LOSSLESS_BLOCK);
    icma_free(plan->pieces);
    if (!(plan->pieces = icma_alloc_array((size_t)pieces + 1, sizeof *plan->pieces)))
        return no_memory(error);
    plan->piece_count = 0;
    for (size_t i = 0; i < plan->tensor_count; i++)
        if (plan->tensors[i].method == ICMA_LOSSLESS_GROUPED)
            cut_tensor(plan, i, link->signature->tensors[plan->tensors[i].tensor].count);
    cut_blocks(plan);
    return ICMA_OK;
}

/* --- Writing --- */

static void write_profile(const icma_lossless_profile *profile, size_t taps, icma_buffer *out) {
    for (size_t k = 0; k < taps; k++)
        icma_write_varint_signed(out, profile->weight[k] - (k ? 0 : ICMA_LOSSLESS_UNIT));
    icma_write_u8(out, (uint8_t)profile->corrections);
    for (size_t j = 0; j < profile->corrections; j++)
        icma_write_u8(out, (uint8_t)profile->correction[j]);
}

/* Column by column: like beside like, for the compressor. */
static void write_columns(const icma_lossless_link *link, const icma_lossless_plan *plan, icma_buffer *out) {
    int64_t level[ICMA_DTYPE_COUNT] = {0};
    icma_write_varint(out, plan->profile_count);
    for (size_t p = 0; p < plan->profile_count; p++)
        write_profile(&plan->profiles[p], link->tap_count, out);
    for (size_t i = 0; i < plan->tensor_count; i++) {
        const icma_lossless_tensor *t = &plan->tensors[i];
        icma_write_varint(out, t->method == ICMA_LOSSLESS_PLAIN ? 0 : 2 * t->profile + (unsigned)t->method);
    }
    for (size_t i = 0; i < plan->tensor_count; i++) {
        int64_t *before = &level[link->signature->tensors[plan->tensors[i].tensor].dtype];
        if (plan->tensors[i].method != ICMA_LOSSLESS_MODELLED)
            continue;
        icma_write_varint_signed(out, (int64_t)plan->tensors[i].level - *before);
        *before = plan->tensors[i].level;
    }
    for (size_t i = 0; i < plan->piece_count; i++)
        icma_write_varint(out, plan->pieces[i].size);
    for (size_t i = 0; i < plan->piece_count; i++)
        if (plan->pieces[i].block)
            icma_write_varint(out, plan->pieces[i].low_size);
}

void icma_lossless_plan_write(const icma_lossless_link *link, const icma_lossless_plan *plan,
                              icma_buffer *out) {
    icma_buffer side = {0}, packed = {0};
    write_columns(link, plan, &side);
    if (icma_zstd_compress(side.data, side.size, SIDE_LEVEL, &packed, NULL) || side.failed)
        out->failed = true;
    bool pays = packed.size < side.size;
    icma_write_u8(out, (uint8_t)link->tap_count);
    icma_write_varint(out, side.size);
    icma_write_varint(out, pays ? packed.size : 0);
    icma_write_bytes(out, pays ? packed.data : side.data, pays ? packed.size : side.size);
    icma_buffer_free(&side);
    icma_buffer_free(&packed);
}

/* --- Reading --- */

static bool read_profile(icma_cursor *cursor, size_t taps, icma_lossless_profile *profile) {
    for (size_t k = 0; k < taps; k++) {
        int64_t weight = icma_read_varint_signed(cursor);
        if (weight < -ICMA_LOSSLESS_WEIGHT || weight > ICMA_LOSSLESS_WEIGHT)
            return false;
        profile->weight[k] = (int32_t)weight + (k ? 0 : ICMA_LOSSLESS_UNIT);
    }
    size_t count = icma_read_u8(cursor);
    const uint8_t *corrections = count <= ICMA_LOSSLESS_DEPTHS ? icma_read_bytes(cursor, count) : NULL;
    if (!corrections)
        return false;
    memcpy(profile->correction, corrections, count);
    profile->corrections = (unsigned)count;
    return true;
}

static icma_status read_profiles(const icma_lossless_link *link, icma_cursor *cursor,
                                 icma_lossless_plan *plan, icma_error *error) {
    uint64_t count = icma_read_varint(cursor);
    if (count > plan->tensor_count)
        return corrupt(error, "more profiles than tensors");
    if (!(plan->profiles = icma_alloc_zeroed((size_t)count + 1, sizeof *plan->profiles)))
        return no_memory(error);
    for (; plan->profile_count < count; plan->profile_count++)
        if (!read_profile(cursor, link->tap_count, &plan->profiles[plan->profile_count]))
            return corrupt(error, "a profile is malformed");
    return ICMA_OK;
}

static icma_status read_tensors(const icma_lossless_link *link, icma_cursor *cursor, icma_lossless_plan *plan,
                                icma_error *error) {
    int64_t level[ICMA_DTYPE_COUNT] = {0};
    for (size_t i = 0; i < plan->tensor_count; i++) {
        uint64_t method = icma_read_varint(cursor);
        plan->tensors[i].method = method == 0  ? ICMA_LOSSLESS_PLAIN
                                  : method % 2 ? ICMA_LOSSLESS_GROUPED
                                               : ICMA_LOSSLESS_MODELLED;
        plan->tensors[i].profile = method == 0 ? 0 : (size_t)((method - 1) / 2);
        if (method && (method - 1) / 2 >= plan->profile_count)
            return corrupt(error, "a profile that is not there");
    }
    for (size_t i = 0; i < plan->tensor_count; i++) {
        icma_dtype dtype = link->signature->tensors[plan->tensors[i].tensor].dtype;
        if (plan->tensors[i].method != ICMA_LOSSLESS_MODELLED)
            continue;
        int64_t step = icma_read_varint_signed(cursor), levels = icma_lossless_levels(dtype);
        if (step <= -levels || step >= levels || level[dtype] + step < 0 || level[dtype] + step >= levels)
            return corrupt(error, "a level is out of range");
        level[dtype] += step;
        plan->tensors[i].level = (unsigned)level[dtype];
    }
    return cursor->failed ? corrupt(error, "the plan is truncated") : ICMA_OK;
}

static icma_status read_pieces(icma_cursor *cursor, size_t left, icma_lossless_plan *plan,
                               icma_error *error) {
    size_t offset = plan->plain_size;
    bool good = offset <= left;
    for (size_t i = 0; good && i < plan->piece_count; i++) {
        uint64_t size = icma_read_varint(cursor);
        good = size <= left;
        plan->pieces[i].size = (size_t)size;
    }
    for (size_t i = 0; good && i < plan->piece_count; i++) {
        uint64_t low = plan->pieces[i].block ? icma_read_varint(cursor) : 0;
        plan->pieces[i].offset = offset;
        plan->pieces[i].low_size = (size_t)low;
        good = plan->pieces[i].size <= left - offset && low <= left - offset - plan->pieces[i].size;
        offset += good ? plan->pieces[i].size + (size_t)low : 0;
    }
    return good && offset == left && icma_cursor_finished(cursor)
               ? ICMA_OK
               : corrupt(error, "its parts are not what the plan says");
}

static icma_status read_columns(const icma_lossless_link *link, icma_cursor *cursor, size_t left,
                                icma_lossless_plan *plan, icma_error *error) {
    icma_status status = read_profiles(link, cursor, plan, error);
    if (!status)
        status = read_tensors(link, cursor, plan, error);
    if (!status)
        status = icma_lossless_plan_cut(link, plan, error);
    return status ? status : read_pieces(cursor, left, plan, error);
}

/* The most that a plan of these tensors can take. */
static uint64_t most_bytes(const icma_lossless_link *link, const icma_lossless_plan *plan) {
    uint64_t pieces = 1;
    for (size_t i = 0; i < plan->tensor_count; i++)
        pieces += 1 + link->signature->tensors[plan->tensors[i].tensor].count / ICMA_LOSSLESS_BLOCK;
    return 10 + (uint64_t)plan->tensor_count * BYTES_A_TENSOR + pieces * BYTES_A_PIECE;
}

icma_status icma_lossless_plan_read(const icma_lossless_link *link, icma_cursor *cursor,
                                    icma_lossless_plan *plan, icma_error *error) {
    icma_status status = icma_lossless_plan_open(link, plan, error);
    if (status)
        return status;
    size_t taps = icma_read_u8(cursor);
    uint64_t size = icma_read_varint(cursor), packed_size = icma_read_varint(cursor);
    if (cursor->failed || taps != link->tap_count)
        return corrupt(error, "not made with these predictions");
    if (size > most_bytes(link, plan))
        return corrupt(error, "its plan is too long");
    const uint8_t *packed = packed_size > cursor->left || (!packed_size && size > cursor->left)
                                ? NULL
                                : icma_read_bytes(cursor, packed_size ? (size_t)packed_size : (size_t)size);
    if (!packed)
        return corrupt(error, "the plan is truncated");
    uint8_t *side = NULL;
    if (packed_size) {
        if (!(side = icma_alloc((size_t)size + 1)))
            return no_memory(error);
        status = icma_zstd_decompress(packed, (size_t)packed_size, side, (size_t)size, error);
    }
    icma_cursor columns = icma_cursor_over(side ? side : packed, (size_t)size);
    if (!status)
        status = read_columns(link, &columns, cursor->left, plan, error);
    icma_free(side);
    return status;
}
