/* SPDX-License-Identifier: Apache-2.0 */
/* The entropy coder: what is coded comes back by every decoder, coded sizes against the ideal, damaged
 * streams. */
#include "rans_host.h"
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* --- what the tests share ------------------------------------------------------------------------------ */

static size_t total_of(const icma_rans_run *runs, size_t run_count) {
    size_t total = 0;
    for (size_t r = 0; r < run_count; r++)
        total += runs[r].count;
    return total;
}

/* Decodes with every decoder from a block of exactly `size` bytes; all must agree. *out, if not NULL, gets
 * the symbols. */
static icma_status decode_all(const uint8_t *data, size_t size, const icma_rans_run *runs, size_t run_count,
                              int32_t *out) {
    icma_rans_decoder list[ICMA_RANS_DECODERS];
    size_t decoders = icma_rans_decoders_all(list), total = total_of(runs, run_count);
    uint8_t *exact = malloc(size ? size : 1);
    int32_t *first = malloc(total * sizeof *first + 1), *other = malloc(total * sizeof *other + 1);
    icma_status verdict = ICMA_OK;
    assert_true(exact && first && other);
    assert_string_equal(list[0].name, "scalar");
    if (size)
        memcpy(exact, data, size);
    for (size_t d = 0; d < decoders; d++) {
        icma_error error = {0};
        icma_status status =
            icma_rans_decode_with(&list[d], exact, size, runs, run_count, d ? other : first, &error);
        assert_int_equal(error.status, status);
        if (d == 0)
            verdict = status;
        assert_int_equal(status, verdict);
        if (d && status == ICMA_OK)
            assert_memory_equal(first, other, total * sizeof *first);
    }
    if (out && verdict == ICMA_OK && total)
        memcpy(out, first, total * sizeof *out);
    free(exact);
    free(first);
    free(other);
    return verdict;
}

static icma_buffer encoded(const int32_t *symbols, const icma_rans_run *runs, size_t run_count) {
    icma_buffer out = {0};
    icma_error error = {0};
    if (icma_rans_encode(symbols, runs, run_count, &out, &error))
        fail_msg("%s", error.message);
    return out;
}

/* Returns the coded size. */
static size_t round_trip(const int32_t *symbols, const icma_rans_run *runs, size_t run_count) {
    size_t total = total_of(runs, run_count);
    icma_buffer coded = encoded(symbols, runs, run_count), again = encoded(symbols, runs, run_count);
    int32_t *back = malloc(total * sizeof *back + 1);
    assert_non_null(back);
    assert_int_equal(coded.size, again.size);
    if (coded.size)
        assert_memory_equal(coded.data, again.data, coded.size);
    assert_int_equal(decode_all(coded.data, coded.size, runs, run_count, back), ICMA_OK);
    if (total)
        assert_memory_equal(symbols, back, total * sizeof *back);
    size_t size = coded.size;
    free(back);
    icma_buffer_free(&coded);
    icma_buffer_free(&again);
    return size;
}

static int32_t clamped(double x) {
    return x >= INT32_MAX ? INT32_MAX : x <= INT32_MIN ? INT32_MIN : (int32_t)lrint(x);
}

static void draw(int32_t *symbols, size_t count, double spread, uint64_t seed) {
    for (size_t i = 0; i < count; i++)
        symbols[i] = clamped(spread * support_normal(&seed));
}

static unsigned context_near(double spread) {
    unsigned best = 0;
    for (unsigned c = 0; c < icma_rans_contexts(); c++)
        if (fabs(log(icma_rans_spread(c) / spread)) < fabs(log(icma_rans_spread(best) / spread)))
            best = c;
    return best;
}

/* --- tables -------------------------------------------------------------------------------------------- */

static uint64_t mixed(uint64_t hash, uint64_t value) {
    return (hash ^ value) * UINT64_C(0x100000001b3);
}

static void tables_are_whole(void **state) {
    (void)state;
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    size_t first = 0;
    for (size_t i = 0; i < ICMA_RANS_SHAPES; i++) {
        const icma_rans_shape *s = &icma_rans_shapes[i];
        uint32_t rest = UINT32_C(1) << s->bits;
        assert_true(s->bits == ICMA_RANS_COARSE || (s->bits >= 14 && s->bits <= 16));
        assert_true(s->reach >= 1 && s->reach <= ICMA_RANS_REACH);
        assert_true(s->bits == ICMA_RANS_COARSE || s->reach <= 3);
        assert_true(s->rate > 0 && s->rate < UINT32_C(32) << 16);
        assert_true(i == 0 || s->spread > s[-1].spread);
        assert_int_equal(s->first, first);
        assert_true(s->escape >= 1 && s->escape < rest);
        rest -= s->escape;
        hash = mixed(mixed(mixed(mixed(hash, s->rate), s->escape), s->reach), s->bits);
        for (size_t k = 0; k < s->reach; k++) {
            uint32_t f = icma_rans_halves[first + k];
            assert_true(f >= 1 && 2 * f < rest);
            rest -= 2 * f;
            hash = mixed(hash, f);
        }
        assert_true(rest >= 1);
        first += s->reach;
    }
    assert_int_equal(first, ICMA_RANS_HALVES);
    /* The tables are part of the format: another sum is another format. */
    assert_int_equal(hash, UINT64_C(0x5667673189279f4f));
}

static void spreads_ascend(void **state) {
    (void)state;
    assert_true(icma_rans_contexts() > 0 && icma_rans_contexts() <= 256);
    for (unsigned c = 1; c < icma_rans_contexts(); c++) {
        double ratio = icma_rans_spread(c) / icma_rans_spread(c - 1);
        assert_true(ratio > 1 && ratio < 1.1);
    }
    assert_true(icma_rans_spread(0) < 0.13 && icma_rans_spread(icma_rans_contexts() - 1) > 100000);
}

/* Bytes that any encoder of version 0 writes: the example of spec 4.10. */
static void the_format_is_what_it_was(void **state) {
    (void)state;
    static const int32_t symbols[] = {0, 1, -1, 2, 0, 0, -3, 1, 40, -100000, 0, 777};
    const icma_rans_run runs[] = {{8, context_near(1)}, {1, context_near(0.3)}, {3, context_near(300)}};
    static const uint8_t known[] = {0xa9, 0x45, 0x7a, 0x00, 0xc3, 0xf6, 0x45, 0x20,
                                    0xc7, 0xff, 0x2b, 0x05, 0x30, 0xf5, 0xe6, 0xcf};
    assert_int_equal(runs[0].context, 67);
    assert_int_equal(runs[1].context, 43);
    assert_int_equal(runs[2].context, 139);
    icma_buffer coded = encoded(symbols, runs, 3);
    assert_int_equal(coded.size, sizeof known);
    assert_memory_equal(coded.data, known, sizeof known);
    icma_buffer_free(&coded);
    round_trip(symbols, runs, 3);
}

/* --- round trips --------------------------------------------------------------------------------------- */

static void every_context_comes_back(void **state) {
    (void)state;
    static int32_t symbols[5000];
    for (unsigned c = 0; c < icma_rans_contexts(); c++) {
        const icma_rans_run run = {COUNT(symbols), c};
        draw(symbols, COUNT(symbols), icma_rans_spread(c), c);
        round_trip(symbols, &run, 1);
        draw(symbols, COUNT(symbols), 8 * icma_rans_spread(c), c); /* many escapes */
        round_trip(symbols, &run, 1);
    }
}

static void every_size_comes_back(void **state) {
    (void)state;
    static const size_t sizes[] = {0,    1,    2,    3,    7,     8,     9,     31,    32,    33,
                                   1000, 4095, 4096, 4097, 16383, 65535, 65536, 65537, 300001};
    static const double spreads[] = {0.05, 0.2, 0.3, 0.45, 1, 7, 16, 40, 1000, 200000};
    int32_t *symbols = malloc(300001 * sizeof *symbols);
    assert_non_null(symbols);
    for (size_t s = 0; s < COUNT(spreads); s++) {
        draw(symbols, 300001, spreads[s], s);
        for (size_t i = 0; i < COUNT(sizes); i++) {
            const icma_rans_run run = {sizes[i], context_near(spreads[s])};
            assert_true((round_trip(symbols, &run, 1) == 0) == (sizes[i] == 0));
        }
    }
    free(symbols);
}

static void small_sizes_come_back_one_by_one(void **state) {
    (void)state;
    int32_t symbols[300];
    draw(symbols, COUNT(symbols), 3, 1);
    for (size_t n = 0; n <= COUNT(symbols); n++) {
        const icma_rans_run runs[] = {{n, context_near(3)}, {0, 0}, {COUNT(symbols) - n, context_near(30)}};
        round_trip(symbols, runs, 3);
    }
}

/* Runs of all lengths and contexts, so that groups are cut everywhere, in 1, 8 and 32 lanes. */
static void mixed_runs_come_back(void **state) {
    (void)state;
    static const size_t totals[] = {3000, 60000, 600000};
    for (size_t t = 0; t < COUNT(totals); t++) {
        uint64_t random = t;
        size_t run_count = 0, at = 0;
        icma_rans_run *runs = malloc(totals[t] * sizeof *runs);
        int32_t *symbols = malloc(totals[t] * sizeof *symbols);
        assert_true(runs && symbols);
        while (at < totals[t]) {
            icma_rans_run *run = &runs[run_count++];
            run->context = (unsigned)(support_uniform(&random) * icma_rans_contexts());
            run->count = (size_t)(support_uniform(&random) * (run_count % 5 ? 100 : 3000));
            run->count = run->count < totals[t] - at ? run->count : totals[t] - at;
            draw(symbols + at, run->count, icma_rans_spread(run->context), run_count);
            at += run->count;
        }
        round_trip(symbols, runs, run_count);
        free(runs);
        free(symbols);
    }
}

static void any_int32_comes_back_in_any_context(void **state) {
    (void)state;
    static const int32_t extremes[] = {
        INT32_MIN, INT32_MIN + 1, -65536,  -255,          -1,       0, 1, 2, 3, 4, 5, 100,
        32767,     32768,         1 << 30, INT32_MAX - 1, INT32_MAX};
    int32_t symbols[2 * 32 + 2 + COUNT(extremes)];
    size_t count = 0;
    for (unsigned bit = 0; bit < 31; bit++) {
        symbols[count] = (int32_t)(UINT32_C(1) << bit);
        symbols[count + 1] = -symbols[count];
        count += 2;
    }
    memcpy(symbols + count, extremes, sizeof extremes);
    count += COUNT(extremes);
    for (unsigned c = 0; c < icma_rans_contexts(); c++) {
        const icma_rans_run run = {count, c};
        size_t size = round_trip(symbols, &run, 1);
        assert_true(fabs((double)size - icma_rans_cost(c, symbols, count) / 8) < 6);
    }
}

/* Escapes of every length beside full groups of 8 and 32 lanes. */
static void escapes_come_back_in_all_lanes(void **state) {
    (void)state;
    static const double spreads[] = {0.4, 2, 100};
    const size_t count = 400000;
    int32_t *symbols = malloc(count * sizeof *symbols);
    uint64_t random = 5;
    assert_non_null(symbols);
    for (size_t s = 0; s < COUNT(spreads); s++)
        for (size_t part = 4; part <= count; part *= 10) {
            draw(symbols, count, spreads[s], 9);
            for (size_t i = 0; i < count; i += 1 + (size_t)(support_uniform(&random) * (double)part))
                symbols[i] = clamped(ldexp(2 * support_uniform(&random) - 1, (int)(i % 32)));
            const icma_rans_run all = {count, context_near(spreads[s])}, some = {count / 8, all.context};
            round_trip(symbols, &all, 1);
            round_trip(symbols, &some, 1);
        }
    free(symbols);
}

static void wrong_contexts_are_refused(void **state) {
    (void)state;
    const int32_t symbols[] = {1, 2};
    int32_t back[2];
    const icma_rans_run runs[] = {{1, 0}, {1, icma_rans_contexts()}};
    const uint8_t data[8] = {0, 0, 1, 0};
    icma_buffer out = {0};
    icma_error error = {0};
    assert_int_equal(icma_rans_encode(symbols, runs, 2, &out, &error), ICMA_E_USAGE);
    assert_int_equal(out.size, 0);
    error = (icma_error){0};
    assert_int_equal(icma_rans_decode(data, sizeof data, runs, 2, back, &error), ICMA_E_CORRUPT);
}

static void streams_are_appended(void **state) {
    (void)state;
    const int32_t symbols[] = {1, 2, 3};
    const icma_rans_run run = {3, 70};
    int32_t back[3];
    icma_buffer out = {0};
    icma_error error = {0};
    icma_write_u8(&out, 42);
    assert_int_equal(icma_rans_encode(symbols, &run, 1, &out, &error), ICMA_OK);
    assert_int_equal(out.data[0], 42);
    assert_int_equal(icma_rans_decode(out.data + 1, out.size - 1, &run, 1, back, &error), ICMA_OK);
    assert_memory_equal(symbols, back, sizeof back);
    icma_buffer_free(&out);
}

static void every_failed_allocation_is_a_memory_error(void **state) {
    (void)state;
    static int32_t symbols[40000], back[COUNT(symbols)];
    const icma_rans_run runs[] = {{20000, 80}, {20000, 10}};
    draw(symbols, COUNT(symbols), 2, 1);
    icma_status status = ICMA_E_MEMORY;
    for (size_t allowed = 0; status; allowed++) {
        support_budget budget = {.left = allowed};
        icma_buffer out = {0};
        icma_error error = {0};
        support_limit_memory(&budget);
        unsigned best = icma_rans_best_context(symbols, COUNT(symbols), NULL); /* does without */
        status = icma_rans_encode(symbols, runs, 2, &out, &error);
        if (!status)
            status = icma_rans_decode(out.data, out.size, runs, 2, back, &error);
        icma_buffer_free(&out);
        support_limit_memory(NULL);
        assert_int_equal(best, icma_rans_best_context(symbols, COUNT(symbols), NULL));
        assert_true(status == ICMA_OK || status == ICMA_E_MEMORY);
        assert_int_equal(budget.live, 0);
    }
    assert_memory_equal(symbols, back, sizeof back);
}

/* --- sizes --------------------------------------------------------------------------------------------- */

/* Bits a symbol of a Gaussian that is rounded to integers. */
static double ideal_entropy(double spread) {
    double sum = 0;
    for (double k = -ceil(12 * spread) - 3; k <= ceil(12 * spread) + 3; k++) {
        double a = (fabs(k) - 0.5) / spread / sqrt(2), b = (fabs(k) + 0.5) / spread / sqrt(2);
        double p = 0.5 * (erfc(a) - erfc(b));
        sum -= p > 0 ? p * log2(p) : 0;
    }
    return sum;
}

/* Every integer as often as it is expected, so that chance does not blur what the tables cost. */
static size_t expected_symbols(int32_t *symbols, size_t count, double spread) {
    size_t made = 0;
    int32_t last = (int32_t)ceil(12 * spread) + 3;
    double carried = 0;
    for (int32_t k = -last; k <= last && made < count; k++) {
        carried +=
            0.5 * (double)count * (erfc((k - 0.5) / spread / sqrt(2)) - erfc((k + 0.5) / spread / sqrt(2)));
        for (; carried >= 0.5 && made < count; carried--)
            symbols[made++] = k;
    }
    return made;
}

static void shuffle(int32_t *symbols, size_t count, uint64_t seed) {
    for (size_t i = count; i > 1; i--) {
        size_t j = (size_t)(support_uniform(&seed) * (double)i);
        int32_t kept = symbols[i - 1];
        symbols[i - 1] = symbols[j];
        symbols[j] = kept;
    }
}

static void a_gaussian_costs_its_entropy(void **state) {
    (void)state;
    const size_t count = 100000;
    int32_t *symbols = malloc(count * sizeof *symbols);
    assert_non_null(symbols);
    for (double spread = 0.1; spread < 1000; spread *= 1.07) {
        size_t made = expected_symbols(symbols, count, spread);
        shuffle(symbols, made, 1);
        double bits, ideal = ideal_entropy(spread) * (double)made;
        icma_rans_run run = {made, icma_rans_best_context(symbols, made, &bits)};
        double size = 8 * (double)round_trip(symbols, &run, 1);
        if (size > 1.003 * ideal + 8 * 24)
            fail_msg("spread %g: %.0f bits, ideal %.0f", spread, size, ideal);
        if (fabs(bits - icma_rans_cost(run.context, symbols, made)) > 1e-6 * bits + 1e-3)
            fail_msg("spread %g: best context says %.3f bits, cost %.3f", spread, bits,
                     icma_rans_cost(run.context, symbols, made));
    }
    free(symbols);
}

static void cost_is_the_coded_size(void **state) {
    (void)state;
    const size_t counts[] = {1, 10, 128, 1000, 4000, 100000};
    int32_t *symbols = malloc(100000 * sizeof *symbols);
    assert_non_null(symbols);
    for (size_t i = 0; i < COUNT(counts); i++)
        for (unsigned c = 0; c < icma_rans_contexts(); c += 7) {
            const icma_rans_run run = {counts[i], c};
            draw(symbols, counts[i], icma_rans_spread(c), c);
            double cost = icma_rans_cost(c, symbols, counts[i]) / 8,
                   size = (double)round_trip(symbols, &run, 1);
            /* 2 to 4 bytes a lane, and the rounding of states. */
            double most = cost < 15000 ? 4.5 : 34;
            if (size < cost || size > 1.0015 * cost + most)
                fail_msg("context %u, %zu symbols: %.0f bytes, cost %.1f", c, counts[i], size, cost);
        }
    free(symbols);
}

/* Also of symbols with tails, and of few. */
static void the_best_context_is_the_best(void **state) {
    (void)state;
    static int32_t symbols[2000];
    static const size_t counts[] = {1, 5, 40, COUNT(symbols)};
    for (double spread = 0.05; spread < 1e6; spread *= 1.9)
        for (size_t n = 0; n < COUNT(counts); n++)
            for (int outliers = 0; outliers < 2; outliers++) {
                draw(symbols, counts[n], spread, n);
                for (size_t i = 0; outliers && i < counts[n]; i += 97)
                    symbols[i] = clamped(100.0 * symbols[i] + 50);
                double least = INFINITY, bits;
                unsigned best = icma_rans_best_context(symbols, counts[n], &bits);
                for (unsigned c = 0; c < icma_rans_contexts(); c++)
                    least = fmin(least, icma_rans_cost(c, symbols, counts[n]));
                assert_true(fabs(bits - icma_rans_cost(best, symbols, counts[n])) < 1e-3 + 1e-9 * bits);
                if (bits > least + 1e-6 * least + 1e-3)
                    fail_msg("spread %g, %zu symbols: context %u takes %.2f bits, another %.2f", spread,
                             counts[n], best, bits, least);
            }
    double bits = 1;
    assert_true(icma_rans_best_context(NULL, 0, &bits) < icma_rans_contexts());
    assert_true(bits == 0);
}

/* --- damage -------------------------------------------------------------------------------------------- */

/* Small streams: a few symbols, escapes, low bits, two runs. */
static icma_buffer small_stream(unsigned kind, icma_rans_run runs[2]) {
    static const double spreads[][2] = {{0.2, 1}, {1, 0.4}, {5, 300}, {100, 20}};
    int32_t symbols[60];
    runs[0] = (icma_rans_run){40, context_near(spreads[kind][0])};
    runs[1] = (icma_rans_run){20, context_near(spreads[kind][1])};
    draw(symbols, 40, spreads[kind][0], kind);
    draw(symbols + 40, 20, spreads[kind][1], kind);
    symbols[7] = 1000000;
    symbols[50] = -70000;
    return encoded(symbols, runs, 2);
}

static void cut_and_longer_streams_are_corrupt(void **state) {
    (void)state;
    for (unsigned kind = 0; kind < 4; kind++) {
        icma_rans_run runs[2];
        icma_buffer coded = small_stream(kind, runs);
        for (size_t size = 0; size < coded.size; size++)
            assert_int_equal(decode_all(coded.data, size, runs, 2, NULL), ICMA_E_CORRUPT);
        for (size_t more = 1; more <= 5; more++) {
            icma_write_u8(&coded, (uint8_t)(more - 1));
            assert_int_equal(decode_all(coded.data, coded.size, runs, 2, NULL), ICMA_E_CORRUPT);
        }
        icma_buffer_free(&coded);
    }
    const icma_rans_run none = {0, 3};
    assert_int_equal(decode_all(NULL, 0, &none, 1, NULL), ICMA_OK);
    assert_int_equal(decode_all((const uint8_t *)"", 1, &none, 1, NULL), ICMA_E_CORRUPT);
}

static void flipped_bits_do_no_harm(void **state) {
    (void)state;
    size_t accepted = 0, tried = 0;
    for (unsigned kind = 0; kind < 4; kind++) {
        icma_rans_run runs[2];
        icma_buffer coded = small_stream(kind, runs);
        for (size_t bit = 0; bit < 8 * coded.size; bit++) {
            coded.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
            icma_status status = decode_all(coded.data, coded.size, runs, 2, NULL);
            assert_true(status == ICMA_OK || status == ICMA_E_CORRUPT);
            accepted += status == ICMA_OK;
            tried++;
            coded.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        icma_buffer_free(&coded);
    }
    /* Final states give most away; not raw bits. */
    assert_true(3 * accepted < tried);
}

/* Large streams, so that vectors meet the damage: flips, cuts, other runs than those coded, noise. */
static void all_decoders_agree_on_damage(void **state) {
    (void)state;
    static const double spreads[] = {0.3, 1, 6, 60};
    static const size_t counts[] = {50000, 1200000};
    int32_t *symbols = malloc(1200000 * sizeof *symbols);
    uint64_t random = 11;
    assert_non_null(symbols);
    for (size_t s = 0; s < COUNT(spreads); s++)
        for (size_t n = 0; n < COUNT(counts); n++) {
            draw(symbols, counts[n], spreads[s], 3);
            icma_rans_run runs[] = {{counts[n] / 3, context_near(spreads[s])},
                                    {counts[n] - counts[n] / 3, context_near(2 * spreads[s])}};
            icma_buffer coded = encoded(symbols, runs, 2);
            for (int i = 0; i < 4; i++) {
                size_t at = (size_t)(support_uniform(&random) * (double)coded.size);
                coded.data[at] ^= 64;
                decode_all(coded.data, coded.size, runs, 2, NULL);
                coded.data[at] ^= 64;
                assert_int_equal(decode_all(coded.data, at, runs, 2, NULL), ICMA_E_CORRUPT);
            }
            runs[0].context++;
            decode_all(coded.data, coded.size, runs, 2, NULL);
            for (size_t i = 0; i < coded.size; i++)
                coded.data[i] = (uint8_t)(255 * support_uniform(&random)) | (i < 128);
            assert_int_equal(decode_all(coded.data, coded.size, runs, 2, NULL), ICMA_E_CORRUPT);
            icma_buffer_free(&coded);
        }
    free(symbols);
}

/* Escapes that no encoder writes: too far for an int32, with a prefix of 31 bits, low bits that overflow.
 * Noise meets them all. */
static void noise_is_corrupt_and_harmless(void **state) {
    (void)state;
    uint64_t random = 21;
    for (int i = 0; i < 20000; i++) {
        uint8_t data[64];
        size_t size = (size_t)(support_uniform(&random) * (sizeof data + 1));
        for (size_t k = 0; k < size; k++)
            data[k] = support_uniform(&random) < 0.4 ? 0xff : (uint8_t)(256 * support_uniform(&random));
        const icma_rans_run run = {(size_t)(support_uniform(&random) * 40),
                                   (unsigned)(support_uniform(&random) * icma_rans_contexts())};
        icma_status status = decode_all(data, size, &run, 1, NULL);
        assert_true(status == ICMA_OK || status == ICMA_E_CORRUPT);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_are_whole),
        cmocka_unit_test(spreads_ascend),
        cmocka_unit_test(the_format_is_what_it_was),
        cmocka_unit_test(every_context_comes_back),
        cmocka_unit_test(every_size_comes_back),
        cmocka_unit_test(small_sizes_come_back_one_by_one),
        cmocka_unit_test(mixed_runs_come_back),
        cmocka_unit_test(any_int32_comes_back_in_any_context),
        cmocka_unit_test(escapes_come_back_in_all_lanes),
        cmocka_unit_test(wrong_contexts_are_refused),
        cmocka_unit_test(streams_are_appended),
        cmocka_unit_test(every_failed_allocation_is_a_memory_error),
        cmocka_unit_test(a_gaussian_costs_its_entropy),
        cmocka_unit_test(cost_is_the_coded_size),
        cmocka_unit_test(the_best_context_is_the_best),
        cmocka_unit_test(cut_and_longer_streams_are_corrupt),
        cmocka_unit_test(flipped_bits_do_no_harm),
        cmocka_unit_test(all_decoders_agree_on_damage),
        cmocka_unit_test(noise_is_corrupt_and_harmless),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
