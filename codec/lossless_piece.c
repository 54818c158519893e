/* SPDX-License-Identifier: Apache-2.0 */
/* Coding the pieces of a lossless link: blocks of modelled elements, frames of grouped ones (spec 4.14). */
#include "lossless_bits.h"
#include "lossless_host.h"

#include "compress.h"
#include "memory.h"

#include <string.h>

enum { CONTEXTS = 256, FRAME_LEVEL = 5 };

/* --- What a block is made of --- */

/* Elements of one tensor in a block. */
typedef struct stretch {
    const icma_lossless_tensor *item;
    const icma_tensor_info *info;
    icma_lossless_step step;
    uint64_t first;
    size_t count, done; /* done: elements of the block before it */
} stretch;

typedef struct block {
    uint32_t *predicted; /* bits, then folded */
    uint8_t *context;
    int32_t *symbols;             /* in the order of contexts, within each in that of elements */
    icma_rans_run runs[CONTEXTS]; /* those that are used, ascending */
    size_t run_count;
    size_t start[CONTEXTS]; /* where the symbols of a context are */
} block;

static bool block_alloc(block *b, size_t count) {
    b->predicted = icma_alloc_array(count, sizeof *b->predicted);
    b->context = icma_alloc(count);
    b->symbols = icma_alloc_array(count, sizeof *b->symbols);
    return b->predicted && b->context && b->symbols;
}

static void block_free(block *b) {
    icma_free(b->predicted);
    icma_free(b->context);
    icma_free(b->symbols);
    icma_free(b);
}

/* The stretch that follows, the first one if s->item is NULL. False: the block ends. */
static bool next_stretch(const icma_lossless_link *link, const icma_lossless_plan *plan,
                         const icma_lossless_piece *piece, stretch *s) {
    const icma_lossless_tensor *item = s->item ? s->item + 1 : &plan->tensors[piece->item];
    size_t done = s->item ? s->done + s->count : 0;
    if (done == piece->count)
        return false;
    while (item->method != ICMA_LOSSLESS_MODELLED)
        item++;
    s->item = item;
    s->info = &link->signature->tensors[item->tensor];
    s->done = done;
    s->first = piece->first + done - item->first;
    uint64_t rest = s->info->count - s->first;
    s->count = rest < piece->count - done ? (size_t)rest : piece->count - done;
    icma_lossless_step_fill(&s->step, s->info->dtype, item->level, &plan->profiles[item->profile]);
    return true;
}

static void predict(const icma_lossless_link *link, const icma_lossless_plan *plan, const stretch *s,
                    block *b) {
    const icma_lossless_profile *profile = &plan->profiles[s->item->profile];
    uint32_t *predicted = b->predicted + s->done;
    uint8_t *context = b->context + s->done;
    const icma_lossless_step step = s->step;
    if (!icma_lossless_predicts(profile)) {
        memset(predicted, 0, s->count * sizeof *predicted);
        memset(context, s->step.context[0], s->count);
        return;
    }
    icma_lossless_predict(link, s->item->tensor, s->first, s->count, profile, predicted);
    for (size_t i = 0; i < s->count; i++) {
        predicted[i] = icma_lossless_fold(&step, predicted[i]);
        context[i] = icma_lossless_context(&step, predicted[i]);
    }
}

/* Counts contexts, and finds their runs and places. */
static void lay_out(block *b, size_t count) {
    size_t counts[CONTEXTS] = {0}, sum = 0;
    for (size_t i = 0; i < count; i++)
        counts[b->context[i]]++;
    b->run_count = 0;
    for (unsigned c = 0; c < CONTEXTS; c++) {
        b->start[c] = sum;
        sum += counts[c];
        if (counts[c])
            b->runs[b->run_count++] = (icma_rans_run){counts[c], c};
    }
}

static icma_status block_open(const icma_lossless_link *link, const icma_lossless_plan *plan,
                              const icma_lossless_piece *piece, block **b) {
    *b = icma_alloc_zeroed(1, sizeof **b);
    if (!*b)
        return ICMA_E_MEMORY;
    if (!block_alloc(*b, piece->count))
        return ICMA_E_MEMORY;
    for (stretch s = {0}; next_stretch(link, plan, piece, &s);)
        predict(link, plan, &s, *b);
    lay_out(*b, piece->count);
    return ICMA_OK;
}

/* --- Encoder of blocks --- */

static inline void put_low(const icma_lossless_step *step, uint32_t magnitude, uint32_t high,
                           icma_bit_writer *low) {
    if (icma_lossless_is_deep(step, high)) {
        icma_put_deep(low, step->zero_binades - (magnitude >> step->mantissa));
        icma_put_bits(low, magnitude & ((UINT32_C(1) << step->mantissa) - 1), step->mantissa);
        return;
    }
    unsigned bits = icma_lossless_low_bits(step, high);
    icma_put_bits(low, icma_lossless_low(step, magnitude, bits), bits);
}

static void split_stretch(const stretch *s, block *b, const uint8_t *original, icma_bit_writer *low) {
    size_t size = s->step.width / 8;
    const uint8_t *from = original + s->info->begin + s->first * size;
    const uint32_t magnitudes = (UINT32_C(1) << (s->step.width - 1)) - 1;
    for (size_t i = 0; i < s->count; i++, from += size) {
        uint32_t element = icma_lossless_load(s->step.width, from), magnitude = element & magnitudes;
        uint32_t high = icma_lossless_high(&s->step, magnitude);
        uint32_t folded = element > magnitudes ? ~high : high,
                 difference = folded - b->predicted[s->done + i];
        memcpy(&b->symbols[b->start[b->context[s->done + i]]++], &difference, sizeof difference);
        put_low(&s->step, magnitude, high, low);
    }
}

static icma_status block_encode(const icma_lossless_link *link, const icma_lossless_plan *plan,
                                icma_lossless_piece *piece, const uint8_t *original, icma_buffer *out) {
    block *b;
    icma_buffer low = {0};
    icma_bit_writer writer = {.out = &low};
    icma_status status = block_open(link, plan, piece, &b);
    for (stretch s = {0}; !status && next_stretch(link, plan, piece, &s);)
        split_stretch(&s, b, original, &writer);
    icma_put_end(&writer);
    size_t before = out->size;
    if (!status)
        status = icma_rans_encode(b->symbols, b->runs, b->run_count, out, NULL);
    if (!status)
        status = icma_buffer_status(&low, NULL);
    piece->size = out->size - before;
    piece->low_size = low.size;
    if (!status)
        icma_write_bytes(out, low.data, low.size);
    icma_buffer_free(&low);
    if (b)
        block_free(b);
    return status ? status : icma_buffer_status(out, NULL);
}

/* --- Decoder of blocks --- */

/* UINT64_MAX: corrupt. */
static inline uint64_t take_magnitude(const icma_lossless_step *step, uint32_t high, icma_bit_reader *low) {
    if (icma_lossless_is_deep(step, high)) {
        uint32_t number = icma_take_deep(low);
        if (number == 0 || number > step->zero_binades)
            return UINT64_MAX;
        return (uint64_t)(step->zero_binades - number) << step->mantissa |
               icma_take_bits(low, step->mantissa);
    }
    unsigned bits = icma_lossless_low_bits(step, high);
    return icma_lossless_join(step, high, bits, icma_take_bits(low, bits));
}

/* `step` is the stretch's own; given apart, so that a compiler sees the constants of its dtype. */
static inline bool join_elements(const stretch *s, icma_lossless_step step, block *b, uint8_t *restrict to,
                                 icma_bit_reader *low) {
    const uint32_t magnitudes = (UINT32_C(1) << (step.width - 1)) - 1;
    const uint32_t *restrict predicted = b->predicted + s->done;
    const uint8_t *restrict context = b->context + s->done;
    const int32_t *restrict symbols = b->symbols;
    size_t *restrict start = b->start;
    icma_bit_reader bits = *low;
    for (size_t i = 0; i < s->count; i++, to += step.width / 8) {
        uint32_t folded = predicted[i] + (uint32_t)symbols[start[context[i]]++];
        uint64_t magnitude = take_magnitude(&step, icma_lossless_unfold(folded), &bits);
        if (magnitude > magnitudes)
            return false;
        icma_lossless_store(step.width, (uint32_t)magnitude | (folded >> 31 ? magnitudes + 1 : 0), to);
    }
    *low = bits;
    return true;
}

static bool join_stretch(const stretch *s, block *b, uint8_t *data, icma_bit_reader *low) {
    icma_lossless_step step = s->step;
    uint8_t *to = data + s->info->begin + s->first * (step.width / 8);
    if (s->info->dtype == ICMA_F32) {
        step.mantissa = 23;
        step.width = 32;
        return join_elements(s, step, b, to, low);
    }
    step.width = 16;
    return join_elements(s, step, b, to, low);
}

static icma_status block_decode(const icma_lossless_link *link, const icma_lossless_plan *plan,
                                const icma_lossless_piece *piece, const uint8_t *bytes, uint8_t *data) {
    block *b;
    icma_bit_reader low = {.bytes = bytes + piece->size, .size = piece->low_size};
    icma_status status = block_open(link, plan, piece, &b);
    if (!status)
        status = icma_rans_decode(bytes, piece->size, b->runs, b->run_count, b->symbols, NULL);
    for (stretch s = {0}; !status && next_stretch(link, plan, piece, &s);)
        if (!join_stretch(&s, b, data, &low))
            status = ICMA_E_CORRUPT;
    if (!status && !icma_bits_finished(&low))
        status = ICMA_E_CORRUPT;
    if (b)
        block_free(b);
    return status;
}

/* --- Frames --- */

typedef struct frame {
    icma_lossless_step step;  /* of lift 0: every bit is in the high integer */
    uint32_t *predicted;      /* bits; owned */
    uint8_t *plain, *grouped; /* owned */
    size_t size, offset;      /* bytes of the frame's elements; where they are in the file */
} frame;

static icma_status frame_open(const icma_lossless_link *link, const icma_lossless_plan *plan,
                              const icma_lossless_piece *piece, frame *f) {
    const icma_lossless_tensor *item = &plan->tensors[piece->item];
    const icma_tensor_info *info = &link->signature->tensors[item->tensor];
    memset(f, 0, sizeof *f);
    icma_lossless_step_fill(&f->step, info->dtype, 0, &plan->profiles[item->profile]);
    f->size = piece->count * (f->step.width / 8);
    f->offset = (size_t)info->begin + (size_t)piece->first * (f->step.width / 8);
    f->plain = icma_alloc(f->size);
    f->grouped = icma_alloc(f->size);
    f->predicted = icma_alloc_array(piece->count, sizeof *f->predicted);
    if (!f->plain || !f->grouped || !f->predicted)
        return ICMA_E_MEMORY;
    icma_lossless_predict(link, item->tensor, piece->first, piece->count, &plan->profiles[item->profile],
                          f->predicted);
    return ICMA_OK;
}

static void frame_free(frame *f) {
    icma_free(f->predicted);
    icma_free(f->plain);
    icma_free(f->grouped);
}

static icma_status frame_encode(const icma_lossless_link *link, const icma_lossless_plan *plan,
                                icma_lossless_piece *piece, const uint8_t *original, icma_buffer *out) {
    frame f;
    icma_status status = frame_open(link, plan, piece, &f);
    const unsigned width = f.step.width, size = width / 8;
    size_t before = out->size;
    for (size_t i = 0; !status && i < piece->count; i++) {
        uint32_t folded =
            icma_lossless_fold(&f.step, icma_lossless_load(width, original + f.offset + i * size));
        icma_lossless_store(width,
                            icma_lossless_zigzag(folded - icma_lossless_fold(&f.step, f.predicted[i]), width),
                            f.plain + i * size);
    }
    if (!status) {
        icma_group_bytes(f.plain, piece->count, size, f.grouped);
        status = icma_zstd_compress(f.grouped, f.size, FRAME_LEVEL, out, NULL);
    }
    piece->size = out->size - before;
    frame_free(&f);
    return status ? status : icma_buffer_status(out, NULL);
}

static icma_status frame_decode(const icma_lossless_link *link, const icma_lossless_plan *plan,
                                const icma_lossless_piece *piece, const uint8_t *bytes, uint8_t *data) {
    frame f;
    icma_status status = frame_open(link, plan, piece, &f);
    const unsigned width = f.step.width, size = width / 8;
    const uint32_t sign = UINT32_C(1) << (width - 1);
    if (!status)
        status = icma_zstd_decompress(bytes, piece->size, f.grouped, f.size, NULL);
    if (!status)
        icma_ungroup_bytes(f.grouped, piece->count, size, f.plain);
    for (size_t i = 0; !status && i < piece->count; i++) {
        uint32_t folded = icma_lossless_fold(&f.step, f.predicted[i]) +
                          icma_lossless_unzigzag(icma_lossless_load(width, f.plain + i * size));
        uint32_t element = folded & sign ? (~folded & (sign - 1)) | sign : folded & (sign - 1);
        icma_lossless_store(width, element, data + f.offset + i * size);
    }
    frame_free(&f);
    return status;
}

icma_status icma_lossless_piece_encode(const icma_lossless_link *link, const icma_lossless_plan *plan,
                                       icma_lossless_piece *piece, const uint8_t *original,
                                       icma_buffer *out) {
    return (piece->block ? block_encode : frame_encode)(link, plan, piece, original, out);
}

icma_status icma_lossless_piece_decode(const icma_lossless_link *link, const icma_lossless_plan *plan,
                                       const icma_lossless_piece *piece, const uint8_t *bytes,
                                       uint8_t *data) {
    return (piece->block ? block_decode : frame_decode)(link, plan, piece, bytes, data);
}
