/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The last steps of decoding, decode_integers and assemble, on every table: bit for bit what their definitions, written out here, give; on runs, streams, contexts and lanes of every kind, damage, unaligned places,
 * numbers that do not stay finite, with sentinels around what is written and on several numbers of threads.
 */
#include "ops.h"
#include "rans_host.h"
#include "support.h"
#include "trellis.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const icma_ops *tables[SUPPORT_TABLES];
static int table_count;

static const icma_ops *table(int which) {
    return tables[which];
}

static const int thread_counts[] = {1, 2, 5};

/* A device does not know the CPU's threads. */
static size_t thread_variants(int which) {
    return which < 2 ? COUNT(thread_counts) : 1;
}

static uint64_t seed;

static size_t pick(size_t bound) {
    return (size_t)(support_uniform(&seed) * (double)bound);
}

static void *room(size_t count, size_t size) {
    void *memory = calloc(count + 1, size);
    assert_non_null(memory);
    return memory;
}

static icma_tensor *make_tensor(const icma_ops *ops, icma_element element, const void *values, size_t count) {
    icma_error error = {0};
    icma_tensor *tensor;
    assert_int_equal(ops->alloc(ops->device, element, count ? count : 1, &tensor, &error), ICMA_OK);
    assert_int_equal(ops->upload(ops->device, tensor, 0, values, count, &error), ICMA_OK);
    return tensor;
}

static void read_tensor(const icma_ops *ops, const icma_tensor *tensor, void *values, size_t count) {
    icma_error error = {0};
    assert_int_equal(ops->download(ops->device, tensor, 0, values, count, &error), ICMA_OK);
}

/* --- coded integers ------------------------------------------------------------------------------------ */

enum { LEAST_SYMBOL = -16384, MOST_SYMBOL = 16383, ITEMS = 4, GUARD = 37 };

/* Runs, their symbols, and the streams that they are coded as. */
typedef struct item {
    icma_rans_run *runs;
    size_t run_count, total, length, streams;
    bool trellis;
    int32_t *symbols;
    size_t *offsets;
    icma_buffer bytes;
} item;

static icma_coded coded_of(const item *it) {
    return (icma_coded){.data = it->bytes.data, .offsets = it->offsets, .streams = it->streams, .length = it->length, .runs = it->runs, .run_count = it->run_count, .total = it->total, .trellis = it->trellis};
}

static item make_item(const icma_rans_run *runs, size_t run_count, bool trellis) {
    item it = {.run_count = run_count, .trellis = trellis, .runs = room(run_count, sizeof *it.runs)};
    for (size_t r = 0; r < run_count; r++) {
        it.runs[r] = runs[r];
        it.total += runs[r].count;
    }
    it.symbols = room(it.total, sizeof *it.symbols);
    return it;
}

static void free_item(item *it) {
    free(it->runs);
    free(it->symbols);
    free(it->offsets);
    icma_buffer_free(&it->bytes);
    *it = (item){0};
}

/* The runs between two symbols. */
static size_t cut(const item *it, size_t first, size_t end, icma_rans_run *out) {
    size_t count = 0;
    for (size_t r = 0, at = 0; r < it->run_count; at += it->runs[r++].count) {
        size_t from = at > first ? at : first, to = at + it->runs[r].count < end ? at + it->runs[r].count : end;
        if (from < to)
            out[count++] = (icma_rans_run){to - from, it->runs[r].context};
    }
    return count;
}

/* Codes the symbols as streams of `length`; returns which numbers of lanes they have, a bit each. */
static unsigned encode(item *it, size_t length) {
    icma_rans_run *runs = room(it->run_count, sizeof *runs);
    icma_error error = {0};
    unsigned lanes = 0;
    it->length = length;
    it->streams = it->total ? (it->total + length - 1) / length : 1;
    free(it->offsets);
    it->offsets = room(it->streams + 1, sizeof *it->offsets);
    icma_buffer_free(&it->bytes);
    icma_write_u8(&it->bytes, 0xAB); /* streams start anywhere */
    for (size_t s = 0; s < it->streams; s++) {
        size_t first = s * length, end = it->total - first < length ? it->total : first + length, count = cut(it, first, end, runs);
        it->offsets[s] = it->bytes.size;
        lanes |= icma_rans_lanes_of(runs, count);
        assert_int_equal(icma_rans_encode(it->symbols + first, runs, count, &it->bytes, &error), ICMA_OK);
    }
    it->offsets[it->streams] = it->bytes.size;
    free(runs);
    return lanes;
}

/* Near-normal symbols of each run's spread; some far outside, up to the ends of the range. */
static void draw(item *it) {
    double least = it->trellis ? LEAST_SYMBOL : INT16_MIN, most = it->trellis ? MOST_SYMBOL : INT16_MAX;
    for (size_t r = 0, at = 0; r < it->run_count; r++)
        for (size_t i = 0; i < it->runs[r].count; i++, at++) {
            double value = round(icma_rans_spread(it->runs[r].context) * support_normal(&seed));
            size_t odd = pick(200);
            value = odd == 0 ? least : odd == 1 ? most : odd == 2 ? value * 40 + 3 : value;
            it->symbols[at] = (int32_t)fmax(least, fmin(most, value));
        }
}

static unsigned parity(unsigned x) {
    unsigned odd = 0;
    for (; x; x >>= 1)
        odd ^= x & 1;
    return odd;
}

/* trellis.h, word by word. */
static void expect_integers(const item *it, int16_t *out) {
    for (size_t r = 0, at = 0; r < it->run_count; r++) {
        unsigned s = 0;
        for (size_t i = 0; i < it->runs[r].count; i++, at++) {
            int32_t k = it->symbols[at];
            s = i % 65536 == 0 ? 0 : s;
            bool states = it->trellis && it->runs[r].context >= 57;
            out[at] = (int16_t)(it->trellis ? 2 * k + (states ? (int32_t)parity(s & 5) : 0) : k);
            s = (2 * s + (((unsigned)k & 1) ^ parity(s & 12))) % 16;
        }
    }
}

/* Decodes a list on a table behind GUARD others; *out (to be freed) gets all, guards included, of which only the inner ones may have changed. */
static icma_status decode(const icma_ops *ops, const icma_coded *list, size_t count, int16_t **out, icma_error *error) {
    size_t total = 2 * GUARD;
    for (size_t i = 0; i < count; i++)
        total += list[i].total;
    int16_t *values = room(total, sizeof *values);
    for (size_t i = 0; i < total; i++)
        values[i] = -21846;
    icma_tensor *tensor = make_tensor(ops, ICMA_ELEMENT_I16, values, total);
    icma_status status = ops->decode_integers(ops->device, list, count, tensor, GUARD, error);
    read_tensor(ops, tensor, values, total);
    for (size_t i = 0; i < GUARD; i++)
        assert_true(values[i] == -21846 && values[total - 1 - i] == -21846);
    ops->release(ops->device, tensor);
    *out = values;
    return status;
}

static void check_items(const item *items, size_t count) {
    icma_coded list[ITEMS];
    size_t total = 0;
    assert_true(count <= ITEMS);
    for (size_t i = 0; i < count; i++) {
        list[i] = coded_of(&items[i]);
        total += items[i].total;
    }
    int16_t *wanted = room(total, sizeof *wanted), *found;
    for (size_t i = 0, at = 0; i < count; at += items[i++].total)
        expect_integers(&items[i], wanted + at);
    for (int t = 0; t < table_count; t++)
        for (size_t n = 0; n < thread_variants(t); n++) {
            icma_error error = {0};
            icma_set_threads(thread_counts[n]);
            if (decode(table(t), list, count, &found, &error) != ICMA_OK)
                fail_msg("%s: %s", table(t)->name, error.message);
            for (size_t i = 0; i < total; i++)
                if (found[GUARD + i] != wanted[i])
                    fail_msg("%s, %d threads: integer %zu of %zu is %d, not %d", table(t)->name, thread_counts[n], i, total, found[GUARD + i], wanted[i]);
            free(found);
        }
    free(wanted);
}

static icma_rans_run any_run(size_t most) {
    return (icma_rans_run){pick(5) == 0 ? 0 : 1 + pick(most), (unsigned)pick(icma_rans_contexts())};
}

static item any_item(size_t run_count, size_t most, bool trellis) {
    icma_rans_run *runs = room(run_count, sizeof *runs);
    for (size_t r = 0; r < run_count; r++)
        runs[r] = any_run(most);
    item it = make_item(runs, run_count, trellis);
    free(runs);
    draw(&it);
    return it;
}

static void nothing_is_decoded_to_nothing(void **state) {
    (void)state;
    static const icma_rans_run empty[3] = {{0, 5}, {0, 60}, {0, 119}};
    check_items(NULL, 0);
    for (size_t runs = 0; runs <= 3; runs++) {
        item it = make_item(empty, runs, true);
        encode(&it, 9);
        check_items(&it, 1);
        it.streams = 0;
        check_items(&it, 1);
        free_item(&it);
    }
    /* Nothing before, between and after something. */
    item items[3] = {make_item(empty, 3, false), any_item(5, 40, true), make_item(empty, 0, true)};
    encode(&items[0], 4);
    encode(&items[1], 17);
    encode(&items[2], 1);
    check_items(items, 3);
    for (int i = 0; i < 3; i++)
        free_item(&items[i]);
}

static void every_context_is_decoded(void **state) {
    (void)state;
    for (unsigned c = 0; c < icma_rans_contexts(); c++)
        for (int trellis = 0; trellis < 2; trellis++) {
            const icma_rans_run runs[] = {{1, c}, {300, c}, {0, c}, {33, c}};
            item it = make_item(runs, COUNT(runs), trellis);
            draw(&it);
            it.symbols[0] = trellis ? (c % 2 ? LEAST_SYMBOL : MOST_SYMBOL) : c % 2 ? INT16_MIN : INT16_MAX;
            encode(&it, 1000);
            check_items(&it, 1);
            encode(&it, 1); /* a stream a symbol */
            check_items(&it, 1);
            free_item(&it);
        }
}

/* All contexts in one stream, of 1, 8 and 32 lanes. */
static void every_number_of_lanes_is_decoded(void **state) {
    (void)state;
    static const size_t each[] = {7, 500, 6000};
    unsigned seen = 0;
    for (size_t n = 0; n < COUNT(each); n++)
        for (int trellis = 0; trellis < 2; trellis++) {
            icma_rans_run runs[256];
            for (unsigned c = 0; c < icma_rans_contexts(); c++)
                runs[c] = (icma_rans_run){each[n] + pick(3), (c * 97) % icma_rans_contexts()};
            item it = make_item(runs, icma_rans_contexts(), trellis);
            draw(&it);
            seen |= encode(&it, it.total);
            check_items(&it, 1);
            free_item(&it);
        }
    assert_int_equal(seen, 1 | 8 | 32);
}

/* Runs that end anywhere in streams and streams that end anywhere in runs; several lists of them at once. */
static void streams_cut_runs(void **state) {
    (void)state;
    static const size_t lengths[] = {1, 2, 7, 64, 257, 1000, 100000};
    for (int trial = 0; trial < 60; trial++) {
        item items[ITEMS];
        size_t count = 1 + pick(ITEMS);
        for (size_t i = 0; i < count; i++) {
            items[i] = any_item(1 + pick(40), 60, pick(2));
            encode(&items[i], lengths[pick(COUNT(lengths))]);
        }
        check_items(items, count);
        for (size_t i = 0; i < count; i++)
            free_item(&items[i]);
    }
}

/* The trellis starts over at every 65,536th symbol of a run, wherever its streams end. */
static void long_runs_start_over(void **state) {
    (void)state;
    static const size_t lengths[] = {65536, 50001, 262144, 1000};
    const icma_rans_run runs[] = {{12345, 80}, {3 * 65536 + 123, 64}, {65535, 104}, {65536, 119}, {65537, 57}, {70001, 56}, {5, 90}};
    item it = make_item(runs, COUNT(runs), true);
    draw(&it);
    for (size_t n = 0; n < COUNT(lengths); n++) {
        encode(&it, lengths[n]);
        check_items(&it, 1);
    }
    free_item(&it);
}

/* All tables give the same status, whatever the threads, and the same integers where it is ICMA_OK. */
static icma_status check_alike(const icma_coded *list, size_t count) {
    icma_status first = ICMA_OK;
    int16_t *wanted = NULL, *found;
    size_t total = 2 * GUARD;
    for (size_t i = 0; i < count; i++)
        total += list[i].total;
    for (int t = 0; t < table_count; t++) {
        icma_error told = {0};
        for (size_t n = 0; n < thread_variants(t); n++) {
            icma_error error = {0};
            icma_set_threads(thread_counts[n]);
            icma_status status = decode(table(t), list, count, &found, &error);
            assert_int_equal(status, error.status);
            if (n == 0)
                told = error;
            assert_string_equal(told.message, error.message);
            if (!wanted) {
                first = status;
                wanted = found;
                continue;
            }
            assert_int_equal(status, first);
            if (!status)
                assert_memory_equal(found, wanted, total * sizeof *found);
            free(found);
        }
    }
    assert_true(first == ICMA_OK || first == ICMA_E_CORRUPT);
    free(wanted);
    return first;
}

static void damaged_streams_are_refused_alike(void **state) {
    (void)state;
    for (int trial = 0; trial < 6; trial++) {
        item it = any_item(6, 30, trial % 2);
        encode(&it, 40);
        size_t refused = 0;
        icma_coded coded = coded_of(&it);
        for (size_t i = 1; i < it.bytes.size; i++)
            for (int bit = 0; bit < 8; bit += 1 + (int)pick(3)) {
                it.bytes.data[i] ^= (uint8_t)(1 << bit);
                refused += check_alike(&coded, 1) != ICMA_OK;
                it.bytes.data[i] ^= (uint8_t)(1 << bit);
            }
        assert_true(refused > 20); /* raw bits have no redundancy */
        /* Too short and too long: streams end elsewhere than they should. */
        for (size_t s = 1; s <= it.streams; s++)
            for (int off = -3; off <= 2; off++) {
                it.offsets[s] += (size_t)off;
                bool inside = it.offsets[s] >= it.offsets[s - 1] && it.offsets[it.streams] <= it.bytes.size && (s == it.streams || it.offsets[s] <= it.offsets[s + 1]);
                if (inside && off)
                    assert_int_equal(check_alike(&coded, 1), ICMA_E_CORRUPT);
                it.offsets[s] -= (size_t)off;
            }
        assert_int_equal(check_alike(&coded, 1), ICMA_OK);
        free_item(&it);
    }
}

/* Many streams, several of them damaged, long enough for threads: the first one's error, on any number of them. */
static void the_first_damaged_stream_counts(void **state) {
    (void)state;
    const icma_rans_run runs[] = {{180000, 70}, {60000, 20}, {120000, 110}};
    item it = make_item(runs, COUNT(runs), true);
    draw(&it);
    encode(&it, 20000);
    icma_coded coded = coded_of(&it);
    for (size_t s = it.streams; s-- > 0;) {
        memset(it.bytes.data + it.offsets[s] + 2, 0, 2); /* a state below the least */
        if (s % 3)
            continue;
        assert_int_equal(check_alike(&coded, 1), ICMA_E_CORRUPT);
        for (int t = 0; t < 2; t++) { /* the CPU's tables say which, by its size */
            icma_error error = {0};
            int16_t *found;
            char size[40];
            snprintf(size, sizeof size, " %zu bytes", it.offsets[s + 1] - it.offsets[s]);
            assert_int_equal(decode(table(t), &coded, 1, &found, &error), ICMA_E_CORRUPT);
            assert_non_null(strstr(error.message, size));
            free(found);
        }
    }
    free_item(&it);
}

static void streams_without_symbols_are_empty(void **state) {
    (void)state;
    const uint8_t bytes[6] = {0, 0, 1, 0, 0, 0};
    for (size_t size = 0; size <= sizeof bytes; size++) {
        const size_t offsets[2] = {0, size};
        const icma_coded coded = {.data = bytes, .offsets = offsets, .streams = 1, .length = 10, .trellis = true};
        assert_int_equal(check_alike(&coded, 1), size ? ICMA_E_CORRUPT : ICMA_OK);
    }
}

static void contexts_that_do_not_exist_are_refused(void **state) {
    (void)state;
    const unsigned over[] = {icma_rans_contexts(), 255, 70000};
    for (size_t i = 0; i < COUNT(over); i++)
        for (size_t r = 0; r < 3; r++) {
            item items[2] = {any_item(3, 9, true), any_item(3, 9, true)};
            encode(&items[0], 5);
            encode(&items[1], 5);
            icma_coded list[2] = {coded_of(&items[0]), coded_of(&items[1])};
            items[1].runs[r].context = over[i];
            assert_int_equal(check_alike(list, 2), ICMA_E_CORRUPT);
            free_item(&items[0]);
            free_item(&items[1]);
        }
}

static void symbols_are_in_range(void **state) {
    (void)state;
    static const int32_t over[2][6] = {{32768, -32769, 65536, -65536, INT32_MAX, INT32_MIN}, {16384, -16385, 32767, -32768, INT32_MAX, INT32_MIN}};
    for (unsigned c = 0; c < icma_rans_contexts(); c += c == 56 ? 1 : 7)
        for (int trellis = 0; trellis < 2; trellis++)
            for (size_t i = 0; i < COUNT(over[0]); i++) {
                const icma_rans_run runs[] = {{20, c}, {20, 66}};
                item it = make_item(runs, 2, trellis);
                draw(&it);
                it.symbols[pick(20)] = over[trellis][i];
                encode(&it, 1 + pick(40));
                icma_coded coded = coded_of(&it);
                assert_int_equal(check_alike(&coded, 1), ICMA_E_CORRUPT);
                free_item(&it);
            }
}

/* --- tensors put together ------------------------------------------------------------------------------ */

enum { SOURCES = 6, LONGEST = 9000 };
enum { HEAD, Q, STEPS, MODEL, INTEGERS };

/* Numbers that all tables have, of any kind. What lies around views of them are NaNs and the least integer. */
typedef struct source {
    icma_element element;
    size_t count;
    void *values;
    icma_tensor *tensor[SUPPORT_TABLES];
} source;

/* A tensor to put together, by views that hold for every table once `tensor` is set. */
typedef struct part {
    icma_assembly a;
    bool head, model, integers;
} part;

typedef struct scene {
    source sources[5];
    part *parts;
    size_t count, size; /* tensors; bytes of the output */
} scene;

static void upload_scene(scene *s) {
    for (int t = 0; t < table_count; t++)
        for (size_t i = 0; i < COUNT(s->sources); i++)
            s->sources[i].tensor[t] = make_tensor(table(t), s->sources[i].element, s->sources[i].values, s->sources[i].count);
}

static void free_scene(scene *s) {
    for (size_t i = 0; i < COUNT(s->sources); i++) {
        for (int t = 0; t < table_count; t++)
            table(t)->release(table(t)->device, s->sources[i].tensor[t]);
        free(s->sources[i].values);
    }
    free(s->parts);
}

/* Zeros of both signs, denormals, what overflows F16, and what nothing overflows. */
static float wild(void) {
    static const float special[] = {0.0F, -0.0F, 0x1p-149F, -0x1p-149F, 0x1.fffffcp-127F, -0x1p-126F, 1.0F, -1.0F, 65504.0F, 65520.0F, -70000.0F, 0x1p-25F, 0x1.8p-24F, 0x1.fffffep40F, 0x1.000002p0F, -0x1.555556p-3F};
    return pick(3) == 0 ? special[pick(COUNT(special))] : (float)(support_normal(&seed) * ldexp(1, (int)pick(40) - 20));
}

static void fill_source(source *s, icma_element element, size_t count) {
    *s = (source){.element = element, .count = count, .values = room(count, element == ICMA_ELEMENT_I16 ? 2 : 4)};
    for (size_t i = 0; i < count; i++)
        if (element == ICMA_ELEMENT_I16)
            ((int16_t *)s->values)[i] = (int16_t)(pick(9) == 0 ? (pick(2) ? 32767 : -32768) : (int)pick(65536) - 32768);
        else
            ((float *)s->values)[i] = wild();
}

/* `largest`: of the numbers of elements; `rows`: of the head's rows, at most. Places have gaps between them, and any alignment. */
static scene make_scene(size_t count, size_t largest, size_t rows) {
    static const size_t sizes[] = {1, 2, 7, 8, 9, 31, 63, 64, 65, 255, 257, 1000, 1023, 1024, 1025, 2047, 2049, 8193};
    static const icma_dtype dtypes[] = {ICMA_F32, ICMA_F16, ICMA_BF16};
    static const float scales[] = {1, 0x1.8p-20F, -0x1.234568p3F, 0x1p-126F, 0x1.234568p-7F};
    scene s = {.parts = room(count, sizeof *s.parts), .count = count};
    size_t stride = LONGEST + 100;
    fill_source(&s.sources[HEAD], ICMA_ELEMENT_I16, stride * (rows + 1));
    fill_source(&s.sources[Q], ICMA_ELEMENT_F32, rows + 60);
    fill_source(&s.sources[STEPS], ICMA_ELEMENT_F32, rows + 60);
    fill_source(&s.sources[MODEL], ICMA_ELEMENT_F32, 2 * LONGEST);
    fill_source(&s.sources[INTEGERS], ICMA_ELEMENT_I16, 2 * LONGEST);
    for (size_t i = 0; i < count; i++) {
        part *p = &s.parts[i];
        size_t n = sizes[pick(COUNT(sizes))], k = pick(rows + 1), kind = pick(4);
        n = n > largest ? 1 + pick(largest) : n;
        p->head = kind < 2;
        p->model = kind == 2;
        p->integers = pick(3) > 0;
        s.size += pick(3) ? 0 : pick(9);
        p->a = (icma_assembly){.count = n, .scale = scales[pick(COUNT(scales))], .first = pick(LONGEST), .step = wild(), .dtype = dtypes[pick(3)], .place = s.size};
        p->a.head = (icma_matrix){NULL, pick(50), k, n, n + pick(40)};
        p->a.q = (icma_matrix){NULL, pick(50), 1, k, k + pick(5)};
        p->a.steps = (icma_matrix){NULL, pick(50), 1, k, k + pick(5)};
        p->a.model = (icma_matrix){NULL, pick(LONGEST), 1, n, n + pick(7)};
        s.size += n * icma_dtype_bits(p->a.dtype) / 8;
    }
    s.size += 11;
    upload_scene(&s);
    return s;
}

static icma_assembly on_table(const scene *s, size_t i, int t) {
    const part *p = &s->parts[i];
    icma_assembly a = p->a;
    a.head.tensor = p->head ? s->sources[HEAD].tensor[t] : NULL;
    a.q.tensor = p->head ? s->sources[Q].tensor[t] : NULL;
    a.steps.tensor = p->head ? s->sources[STEPS].tensor[t] : NULL;
    a.model.tensor = p->model ? s->sources[MODEL].tensor[t] : NULL;
    a.integers = p->integers ? s->sources[INTEGERS].tensor[t] : NULL;
    return a;
}

/* An element before the cast, by the definition. */
static float element(const scene *s, const part *p, size_t l) {
    const float *q = s->sources[Q].values, *steps = s->sources[STEPS].values, *model = s->sources[MODEL].values;
    const int16_t *head = s->sources[HEAD].values, *integers = s->sources[INTEGERS].values;
    float y = p->model ? model[p->a.model.offset + l] : 0;
    for (size_t k = 0; p->head && k < p->a.head.rows; k++) {
        float factor = q[p->a.q.offset + k] * steps[p->a.steps.offset + k];
        y = fmaf(factor, head[p->a.head.offset + k * p->a.head.stride + l], y);
    }
    if (p->head)
        y *= p->a.scale;
    return p->integers ? fmaf(integers[p->a.first + l], p->a.step, y) : y;
}

static void cast(icma_dtype dtype, float value, uint8_t *to) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = dtype == ICMA_F16 ? icma_f32_to_f16(value) : dtype == ICMA_BF16 ? icma_f32_to_bf16(value) : bits;
    for (unsigned b = 0; b < icma_dtype_bits(dtype) / 8; b++)
        to[b] = (uint8_t)(bits >> 8 * b);
}

/* The output; *bad as the op gives it, and which bytes are undefined. */
static uint8_t *expect_output(const scene *s, bool *undefined, size_t *bad) {
    uint8_t *out = room(s->size, 1);
    memset(out, 0xEE, s->size);
    *bad = SIZE_MAX;
    for (size_t i = 0; i < s->count; i++) {
        const icma_assembly *a = &s->parts[i].a;
        size_t width = icma_dtype_bits(a->dtype) / 8;
        bool finite = true;
        for (size_t l = 0; l < a->count; l++) {
            float y = element(s, &s->parts[i], l);
            finite = finite && isfinite(y);
            cast(a->dtype, y, out + a->place + l * width);
        }
        memset(undefined + a->place, !finite, a->count * width);
        *bad = !finite && *bad == SIZE_MAX ? i : *bad;
    }
    return out;
}

static void check_output(const scene *s, const uint8_t *found, const uint8_t *wanted, const bool *undefined, const char *name, const char *where) {
    for (size_t b = 0; b < s->size; b++)
        if (!undefined[b] && found[b] != wanted[b])
            fail_msg("%s: byte %zu of %zu %s is %02x, not %02x", name, b, s->size, where, found[b], wanted[b]);
}

/* Into a tensor, into memory, or both. */
static void run_assemble(const scene *s, int t, bool to_tensor, bool to_host, const uint8_t *wanted, const bool *undefined, size_t bad) {
    const icma_ops *ops = table(t);
    icma_assembly *list = room(s->count, sizeof *list);
    uint8_t *host = room(s->size, 1), *back = room(s->size, 1);
    icma_error error = {0};
    size_t found = 12345;
    for (size_t i = 0; i < s->count; i++)
        list[i] = on_table(s, i, t);
    memset(host, 0xEE, s->size);
    icma_tensor *out = to_tensor ? make_tensor(ops, ICMA_ELEMENT_U8, host, s->size) : NULL;
    assert_int_equal(ops->assemble(ops->device, list, s->count, out, to_host ? host : NULL, &found, &error), ICMA_OK);
    if (found != bad)
        fail_msg("%s: tensor %zu is said to be bad, not %zu", ops->name, found, bad);
    if (to_host)
        check_output(s, host, wanted, undefined, ops->name, "in memory");
    if (to_tensor) {
        read_tensor(ops, out, back, s->size);
        check_output(s, back, wanted, undefined, ops->name, "on the device");
    }
    ops->release(ops->device, out);
    free(list);
    free(host);
    free(back);
}

static size_t check_scene(const scene *s) {
    bool *undefined = room(s->size, sizeof *undefined);
    size_t bad;
    uint8_t *wanted = expect_output(s, undefined, &bad);
    for (int t = 0; t < table_count; t++)
        for (size_t n = 0; n < thread_variants(t); n++) {
            icma_set_threads(thread_counts[n]);
            for (int ways = 0; ways < 4; ways++)
                run_assemble(s, t, ways & 1, ways & 2, wanted, undefined, bad);
        }
    free(undefined);
    free(wanted);
    return bad;
}

static void tensors_are_put_together(void **state) {
    (void)state;
    for (int trial = 0; trial < 40; trial++) {
        scene s = make_scene(pick(12), LONGEST, 40);
        assert_int_equal(check_scene(&s), SIZE_MAX);
        free_scene(&s);
    }
    scene many = make_scene(700, 20, 3), tall = make_scene(3, 200, 700), none = make_scene(0, 1, 1);
    assert_int_equal(check_scene(&many), SIZE_MAX);
    assert_int_equal(check_scene(&tall), SIZE_MAX);
    assert_int_equal(check_scene(&none), SIZE_MAX);
    free_scene(&many);
    free_scene(&tall);
    free_scene(&none);
}

/* Worth several threads. */
static void long_lists_are_put_together(void **state) {
    (void)state;
    scene s = make_scene(80, LONGEST, 400);
    assert_int_equal(check_scene(&s), SIZE_MAX);
    free_scene(&s);
}

static void set_number(const scene *s, int which, size_t at, float value) {
    icma_error error = {0};
    ((float *)s->sources[which].values)[at] = value;
    for (int t = 0; t < table_count; t++)
        assert_int_equal(table(t)->upload(table(t)->device, s->sources[which].tensor[t], at, &value, 1, &error), ICMA_OK);
}

/* What is not finite before the cast, in one element of one tensor or in many; what an F16 overflows to is. */
static void numbers_that_are_not_finite_are_found(void **state) {
    (void)state;
    static const float worst[] = {INFINITY, -INFINITY, NAN, FLT_MAX};
    size_t found = 0;
    for (int trial = 0; trial < 60; trial++) {
        scene s = make_scene(1 + pick(40), LONGEST, 9);
        for (size_t i = 0; i < s.count; i++) {
            const icma_assembly *a = &s.parts[i].a;
            if (pick(8) == 0)
                set_number(&s, MODEL, a->model.offset + (pick(2) ? pick(a->count) : a->count - 1), worst[pick(4)]);
            if (pick(20) == 0 && a->q.columns)
                set_number(&s, Q, a->q.offset + pick(a->q.columns), worst[pick(4)]);
            if (pick(20) == 0)
                s.parts[i].a.step = worst[pick(4)];
        }
        found += check_scene(&s) != SIZE_MAX;
        free_scene(&s);
    }
    assert_true(found > 20 && found < 60);
}

/* A product that is rounded before a sum would give other bits. */
static void residuals_round_once(void **state) {
    (void)state;
    scene s = make_scene(1, 500, 1);
    part *p = &s.parts[0];
    bool differs = false;
    p->head = false;
    p->model = p->integers = true;
    p->a.step = 0x1.000002p0F;
    p->a.dtype = ICMA_F32;
    p->a.place = 1;
    s.size = 4 * p->a.count + 5;
    for (size_t l = 0; l < p->a.count; l++) {
        float integer = ((int16_t *)s.sources[INTEGERS].values)[p->a.first + l], product = integer * p->a.step;
        set_number(&s, MODEL, p->a.model.offset + l, -integer);
        differs = differs || product - integer != element(&s, p, l);
    }
    assert_true(differs);
    assert_int_equal(check_scene(&s), SIZE_MAX);
    free_scene(&s);
}

static int start(void **state) {
    (void)state;
    seed = 4711;
    return 0;
}

static int finish(void **state) {
    (void)state;
    icma_set_threads(0);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(nothing_is_decoded_to_nothing, start, finish),
        cmocka_unit_test_setup_teardown(every_context_is_decoded, start, finish),
        cmocka_unit_test_setup_teardown(every_number_of_lanes_is_decoded, start, finish),
        cmocka_unit_test_setup_teardown(streams_cut_runs, start, finish),
        cmocka_unit_test_setup_teardown(long_runs_start_over, start, finish),
        cmocka_unit_test_setup_teardown(damaged_streams_are_refused_alike, start, finish),
        cmocka_unit_test_setup_teardown(the_first_damaged_stream_counts, start, finish),
        cmocka_unit_test_setup_teardown(streams_without_symbols_are_empty, start, finish),
        cmocka_unit_test_setup_teardown(contexts_that_do_not_exist_are_refused, start, finish),
        cmocka_unit_test_setup_teardown(symbols_are_in_range, start, finish),
        cmocka_unit_test_setup_teardown(tensors_are_put_together, start, finish),
        cmocka_unit_test_setup_teardown(long_lists_are_put_together, start, finish),
        cmocka_unit_test_setup_teardown(numbers_that_are_not_finite_are_found, start, finish),
        cmocka_unit_test_setup_teardown(residuals_round_once, start, finish),
    };
    table_count = (int)support_tables(tables);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
