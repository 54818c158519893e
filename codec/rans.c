/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Range variant of asymmetric numeral systems (Duda 2013) with 32-bit states, renormalised 16 bits at a time,
 * and static tables.
 *
 * A stream's *lanes* are so many states over one sequence of words. Runs are cut into groups of one symbol a
 * lane, so that a group has one context and a vector of lanes decodes it in one go: first every lane's
 * symbol, then what escaped, then every lane's raw low bits. The encoder does all of it backwards.
 */
#include "rans.h"

#include "memory.h"
#include "rans_host.h"

#include <math.h>
#include <string.h>

/* From so many expected bits on, 8 and 32 lanes: 3 bytes a lane are then under 0.15 and 0.04 %. */
static const uint64_t eight_lanes_bits = UINT64_C(1) << 17, all_lanes_bits = UINT64_C(1) << 21;

unsigned icma_rans_contexts(void) {
    return ICMA_RANS_SHAPES + ICMA_RANS_LAST_SHIFT * ICMA_RANS_OCTAVE;
}

/* Contexts beyond the shapes use those of the last octave again, over 1, 2, .. raw bits. */
const icma_rans_shape *icma_rans_shape_of(unsigned context, unsigned *shift) {
    unsigned beyond = context < ICMA_RANS_SHAPES ? 0 : context - ICMA_RANS_SHAPES;
    *shift = context < ICMA_RANS_SHAPES ? 0 : 1 + beyond / ICMA_RANS_OCTAVE;
    return &icma_rans_shapes[*shift ? ICMA_RANS_SHAPES - ICMA_RANS_OCTAVE + beyond % ICMA_RANS_OCTAVE
                                    : context];
}

double icma_rans_spread(unsigned context) {
    unsigned shift;
    const icma_rans_shape *shape = icma_rans_shape_of(context, &shift);
    return ldexp(shape->spread, (int)shift - 16);
}

static void model_fill_frequencies(icma_rans_model *model, unsigned context) {
    const icma_rans_shape *shape = icma_rans_shape_of(context, &model->shift);
    const uint16_t *halves = icma_rans_halves + shape->first;
    uint32_t rest = (UINT32_C(1) << shape->bits) - shape->escape, start = 0;
    model->bits = shape->bits;
    model->reach = shape->reach;
    model->count = 2 * model->reach + 2;
    for (unsigned k = 1; k <= model->reach; k++) {
        model->frequency[model->reach - k] = model->frequency[model->reach + k] = halves[k - 1];
        rest -= 2 * (uint32_t)halves[k - 1];
    }
    model->frequency[model->reach] = rest;
    model->frequency[model->count - 1] = shape->escape;
    for (unsigned s = 0; s < model->count; s++) {
        model->start[s] = start;
        start += model->frequency[s];
    }
    model->start[model->count] = start;
}

static void model_fill_slots(icma_rans_model *model) {
    if (model->bits != ICMA_RANS_COARSE)
        return;
    for (uint32_t s = 0; s < model->count; s++)
        for (uint32_t i = 0; i < model->frequency[s]; i++)
            model->slots[model->start[s] + i] = model->frequency[s] << 20 | i << 8 | s;
}

void icma_rans_model_fill(icma_rans_model *model, unsigned context) {
    model_fill_frequencies(model, context);
    model_fill_slots(model);
}

static icma_status runs_check(const icma_rans_run *runs, size_t run_count, icma_status status,
                              icma_error *error) {
    for (size_t r = 0; r < run_count; r++)
        if (runs[r].context >= icma_rans_contexts())
            return icma_fail(error, status, NULL, "context %u of a coded stream does not exist; there are %u",
                             runs[r].context, icma_rans_contexts());
    return ICMA_OK;
}

/* How many lanes: by the bits that the runs are expected to take. 0 where there are no symbols. */
unsigned icma_rans_lanes_of(const icma_rans_run *runs, size_t run_count) {
    uint64_t total = 0, symbols = 0;
    for (size_t r = 0; r < run_count; r++) {
        unsigned shift;
        uint64_t rate = icma_rans_shape_of(runs[r].context, &shift)->rate + ((uint64_t)shift << 16);
        /* Symbols lie in memory, 4 bytes each, and a rate is under 2^21: no overflow in what is added, and
         * the sum stops growing in time. */
        uint64_t enough = (all_lanes_bits << 16) / rate + 1;
        symbols |= runs[r].count;
        total += rate * (runs[r].count < enough ? runs[r].count : enough);
        total = total < all_lanes_bits << 16 ? total : all_lanes_bits << 16;
    }
    if (symbols == 0)
        return 0;
    return total < eight_lanes_bits << 16 ? 1 : total < all_lanes_bits << 16 ? 8 : ICMA_RANS_LANES;
}

/* The raw bits below icma_rans_high. */
static uint32_t symbol_low(int64_t x, unsigned shift) {
    return shift == 0
               ? 0
               : (uint32_t)((uint64_t)(x + (INT64_C(1) << (shift - 1))) & ((UINT64_C(1) << shift) - 1));
}

/* --- Encoder --- */

typedef struct rans_writer {
    uint16_t *words; /* in the order written: the last is the first to be read */
    size_t count, capacity;
    unsigned lanes;
    uint32_t state[ICMA_RANS_LANES];
} rans_writer;

static void put_word_above(rans_writer *writer, unsigned lane, uint32_t frequency, unsigned bits) {
    if (writer->state[lane] >> (32 - bits) < frequency)
        return;
    writer->words[writer->count++] = (uint16_t)(writer->state[lane] & 0xffff);
    writer->state[lane] >>= 16;
}

static void put_symbol(rans_writer *writer, unsigned lane, const icma_rans_model *model, unsigned symbol) {
    uint32_t frequency = model->frequency[symbol];
    put_word_above(writer, lane, frequency, model->bits);
    uint32_t x = writer->state[lane];
    writer->state[lane] = (x / frequency << model->bits) + x % frequency + model->start[symbol];
}

/* 0 to 16 bits. */
static void put_raw(rans_writer *writer, unsigned lane, uint32_t value, unsigned bits) {
    if (bits == 0)
        return;
    put_word_above(writer, lane, 1, bits);
    writer->state[lane] = writer->state[lane] << bits | value;
}

static void put_escape(rans_writer *writer, unsigned lane, int64_t high, unsigned reach) {
    uint32_t distance = icma_rans_distance(high, reach);
    unsigned n = icma_rans_log2(distance);
    uint32_t below = distance - (UINT32_C(1) << n);
    put_raw(writer, lane, below >> 16, n > 16 ? n - 16 : 0);
    put_raw(writer, lane, below & 0xffff, n > 16 ? 16 : n);
    put_raw(writer, lane, (high < 0 ? 32 : 0) | n, 6);
}

/* The most words that a group can take: symbol, three raw parts of an escape, low bits. */
enum { WORDS_A_SYMBOL = 5 };

static bool writer_reserve(rans_writer *writer) {
    size_t need = (size_t)writer->lanes * WORDS_A_SYMBOL;
    if (writer->capacity - writer->count >= need)
        return true;
    size_t capacity = writer->capacity + writer->capacity / 2 + 16 * need;
    uint16_t *words = icma_resize_array(writer->words, capacity, sizeof *words);
    if (!words)
        return false;
    writer->words = words;
    writer->capacity = capacity;
    return true;
}

static void put_group(rans_writer *writer, const icma_rans_model *model, const int32_t *symbols,
                      unsigned count) {
    const int64_t reach = (int64_t)model->reach;
    for (unsigned lane = count; lane-- > 0;)
        put_raw(writer, lane, symbol_low(symbols[lane], model->shift), model->shift);
    for (unsigned lane = count; lane-- > 0;) {
        int64_t high = icma_rans_high(symbols[lane], model->shift);
        if (high < -reach || high > reach)
            put_escape(writer, lane, high, model->reach);
    }
    for (unsigned lane = count; lane-- > 0;) {
        int64_t high = icma_rans_high(symbols[lane], model->shift);
        put_symbol(writer, lane, model,
                   high < -reach || high > reach ? model->count - 1 : (unsigned)(high + reach));
    }
}

static bool put_run(rans_writer *writer, const icma_rans_model *model, const int32_t *symbols, size_t count) {
    size_t last = count % writer->lanes, done = count;
    while (done > 0) {
        unsigned group = done == count && last ? (unsigned)last : writer->lanes;
        if (!writer_reserve(writer))
            return false;
        done -= group;
        put_group(writer, model, symbols + done, group);
    }
    return true;
}

static void writer_finish(const rans_writer *writer, icma_buffer *out) {
    uint8_t *to = icma_buffer_extend(out, 4 * (size_t)writer->lanes + 2 * writer->count);
    if (!to)
        return;
    for (unsigned lane = 0; lane < writer->lanes; lane++, to += 4)
        icma_store_u32(to, writer->state[lane]);
    for (size_t w = writer->count; w-- > 0; to += 2)
        icma_store_u16(to, writer->words[w]);
}

size_t icma_rans_cut(const icma_rans_run *runs, size_t run_count, size_t first, size_t end, icma_rans_run *out) {
    size_t count = 0;
    for (size_t r = 0, at = 0; r < run_count && at < end; at += runs[r++].count) {
        size_t from = at > first ? at : first, to = at + runs[r].count < end ? at + runs[r].count : end;
        if (from < to)
            out[count++] = (icma_rans_run){to - from, runs[r].context};
    }
    return count;
}

icma_status icma_rans_encode(const int32_t *symbols, const icma_rans_run *runs, size_t run_count,
                             icma_buffer *out, icma_error *error) {
    icma_status status = runs_check(runs, run_count, ICMA_E_USAGE, error);
    if (status)
        return status;
    rans_writer writer = {.lanes = icma_rans_lanes_of(runs, run_count)};
    if (writer.lanes == 0)
        return ICMA_OK;
    icma_rans_model *model = icma_alloc(sizeof *model);
    bool good = model != NULL;
    size_t end = 0;
    for (unsigned lane = 0; lane < writer.lanes; lane++)
        writer.state[lane] = ICMA_RANS_LOW;
    for (size_t r = 0; r < run_count; r++)
        end += runs[r].count;
    for (size_t r = run_count; good && r-- > 0;) {
        end -= runs[r].count;
        if (r + 1 == run_count || runs[r].context != runs[r + 1].context)
            model_fill_frequencies(model, runs[r].context);
        good = put_run(&writer, model, symbols + end, runs[r].count);
    }
    if (good)
        writer_finish(&writer, out);
    icma_free(writer.words);
    icma_free(model);
    if (!good)
        return icma_fail(error, ICMA_E_MEMORY, NULL,
                         "no memory to code %zu runs of symbols; pack fewer checkpoints at once", run_count);
    return icma_buffer_status(out, error);
}

/* --- Decoder --- */

/* After any step of a lane. False: no word left. */
static inline bool refill(icma_rans_reader *reader, uint32_t *x) {
    if (*x >= ICMA_RANS_LOW)
        return true;
    if (reader->left == 0)
        return false;
    *x = *x << 16 | icma_load_u16(reader->words);
    reader->words += 2;
    reader->left--;
    return true;
}

/* Fine tables are few and short, and nearly all symbols are 0. */
static inline unsigned find_symbol(const icma_rans_model *model, uint32_t slot) {
    unsigned s = model->reach;
    if (slot - model->start[s] < model->frequency[s])
        return s;
    for (s = slot < model->start[s] ? 0 : s + 1; slot >= model->start[s + 1]; s++)
        ;
    return s;
}

static inline uint32_t step_symbol(const icma_rans_model *model, uint32_t x, unsigned *symbol) {
    uint32_t slot = x & ((UINT32_C(1) << model->bits) - 1);
    if (model->bits == ICMA_RANS_COARSE) {
        uint32_t entry = model->slots[slot];
        *symbol = entry & 0xff;
        return (entry >> 20) * (x >> ICMA_RANS_COARSE) + (entry >> 8 & 0xfff);
    }
    *symbol = find_symbol(model, slot);
    return model->frequency[*symbol] * (x >> model->bits) + slot - model->start[*symbol];
}

/* 0 to 16 bits. */
static bool take_raw(icma_rans_reader *reader, unsigned lane, unsigned bits, uint32_t *value) {
    uint32_t x = reader->state[lane];
    *value = x & ((UINT32_C(1) << bits) - 1);
    x >>= bits;
    bool good = refill(reader, &x);
    reader->state[lane] = x;
    return good;
}

static bool take_escape(icma_rans_reader *reader, unsigned lane, unsigned reach, int64_t *high) {
    uint32_t head, below, above = 0;
    if (!take_raw(reader, lane, 6, &head))
        return false;
    unsigned n = head & 31;
    if (n == 31 || !take_raw(reader, lane, n > 16 ? 16 : n, &below))
        return false;
    if (n > 16 && !take_raw(reader, lane, n - 16, &above))
        return false;
    int64_t distance = (INT64_C(1) << n) + ((int64_t)above << 16) + below;
    *high = head & 32 ? -distance - (int64_t)reach : distance + (int64_t)reach;
    return true;
}

/* A group of any size, of any symbols. False: corrupt. */
static bool take_group(icma_rans_reader *reader, const icma_rans_model *model, int32_t *symbols,
                       unsigned count) {
    int64_t high[ICMA_RANS_LANES];
    bool escapes = false;
    for (unsigned lane = 0; lane < count; lane++) {
        unsigned symbol;
        uint32_t x = step_symbol(model, reader->state[lane], &symbol);
        if (!refill(reader, &x))
            return false;
        reader->state[lane] = x;
        high[lane] = (int64_t)symbol - (int64_t)model->reach;
        escapes |= symbol == model->count - 1;
    }
    for (unsigned lane = 0; escapes && lane < count; lane++)
        if (high[lane] > (int64_t)model->reach && !take_escape(reader, lane, model->reach, &high[lane]))
            return false;
    for (unsigned lane = 0; lane < count; lane++) {
        uint32_t low = 0;
        if (model->shift && !take_raw(reader, lane, model->shift, &low))
            return false;
        int64_t x = high[lane] * (INT64_C(1) << model->shift) + low - (INT64_C(1) << model->shift >> 1);
        if (x < INT32_MIN || x > INT32_MAX)
            return false;
        symbols[lane] = (int32_t)x;
    }
    return true;
}

/* One lane, the common case of it: no escape, no low bits, words enough. Returns how many that were. */
static size_t take_single(icma_rans_reader *reader, const icma_rans_model *model, int32_t *symbols,
                          size_t count) {
    icma_rans_reader at = *reader;
    uint32_t x = at.state[0];
    size_t i = 0;
    for (; i < count && at.left > 0; i++) {
        unsigned symbol;
        uint32_t next = step_symbol(model, x, &symbol);
        if (symbol == model->count - 1)
            break;
        refill(&at, &next);
        x = next;
        symbols[i] = (int32_t)symbol - (int32_t)model->reach;
    }
    reader->words = at.words;
    reader->left = at.left;
    reader->state[0] = x;
    return i;
}

static bool take_run(icma_rans_reader *reader, icma_rans_kernel kernel, const icma_rans_model *model,
                     int32_t *symbols, size_t count) {
    for (size_t done = 0; done < count;) {
        if (reader->lanes == 1 && model->shift == 0)
            done += take_single(reader, model, symbols + done, count - done);
        else if (kernel)
            done += reader->lanes * kernel(reader, model, symbols + done, (count - done) / reader->lanes);
        unsigned group = count - done < reader->lanes ? (unsigned)(count - done) : reader->lanes;
        if (!take_group(reader, model, symbols + done, group))
            return false;
        done += group;
    }
    return true;
}

/* Models of the contexts of one stream, made as they are met. */
typedef struct model_cache {
    icma_rans_model *of[ICMA_RANS_SHAPES + ICMA_RANS_LAST_SHIFT * ICMA_RANS_OCTAVE];
} model_cache;

static const icma_rans_model *cached_model(model_cache *cache, unsigned context) {
    if (cache->of[context])
        return cache->of[context];
    icma_rans_model *model = icma_alloc(sizeof *model);
    if (!model)
        return NULL;
    icma_rans_model_fill(model, context);
    return cache->of[context] = model;
}

static bool reader_open(icma_rans_reader *reader, const uint8_t *data, size_t size) {
    size_t states = 4 * (size_t)reader->lanes;
    if (size < states || (size - states) % 2)
        return false;
    reader->words = states ? data + states : data; /* of no symbols, `data` may be NULL */
    reader->left = (size - states) / 2;
    for (unsigned lane = 0; lane < reader->lanes; lane++) {
        reader->state[lane] = icma_load_u32(data + 4 * (size_t)lane);
        if (reader->state[lane] < ICMA_RANS_LOW)
            return false;
    }
    return true;
}

/* Every lane is back where the encoder began, and nothing is left. */
static bool reader_finished(const icma_rans_reader *reader) {
    for (unsigned lane = 0; lane < reader->lanes; lane++)
        if (reader->state[lane] != ICMA_RANS_LOW)
            return false;
    return reader->left == 0;
}

icma_status icma_rans_decode_with(const icma_rans_decoder *decoder, const uint8_t *data, size_t size,
                                  const icma_rans_run *runs, size_t run_count, int32_t *symbols,
                                  icma_error *error) {
    icma_status status = runs_check(runs, run_count, ICMA_E_CORRUPT, error);
    if (status)
        return status;
    icma_rans_reader reader = {.lanes = icma_rans_lanes_of(runs, run_count)};
    icma_rans_kernel kernel = reader.lanes == 8                 ? decoder->eight
                              : reader.lanes == ICMA_RANS_LANES ? decoder->all
                                                                : NULL;
    model_cache cache = {{NULL}};
    bool good = reader_open(&reader, data, size), memory = true;
    for (size_t r = 0; good && r < run_count; r++) {
        if (runs[r].count == 0)
            continue;
        const icma_rans_model *model = cached_model(&cache, runs[r].context);
        memory = model != NULL;
        good = memory && take_run(&reader, kernel, model, symbols, runs[r].count);
        symbols += runs[r].count;
    }
    for (unsigned c = 0; c < icma_rans_contexts(); c++)
        icma_free(cache.of[c]);
    if (!memory)
        return icma_fail(error, ICMA_E_MEMORY, NULL,
                         "no memory to decode a coded stream; close other programs");
    if (!good || !reader_finished(&reader))
        return icma_fail(error, ICMA_E_CORRUPT, NULL,
                         "a coded stream of %zu bytes is damaged; restore the archive from a copy", size);
    return ICMA_OK;
}

icma_status icma_rans_decode(const uint8_t *data, size_t size, const icma_rans_run *runs, size_t run_count,
                             int32_t *symbols, icma_error *error) {
    icma_rans_decoder list[ICMA_RANS_DECODERS];
    return icma_rans_decode_with(&list[icma_rans_decoders_all(list) - 1], data, size, runs, run_count,
                                 symbols, error);
}
