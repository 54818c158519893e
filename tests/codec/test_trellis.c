/* SPDX-License-Identifier: Apache-2.0 */
/* The trellis (spec 4.13): integers against the formula, ranges, the start of each block, and what quantising costs. */
#include "trellis.h"

#include "rans.h"
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 65536, LEAST = -16384, MOST = 16383, FIRST = 57 /* context with states; from the spec */ };

static unsigned parity(unsigned x) {
    unsigned ones = 0;
    for (; x; x >>= 1)
        ones += x & 1;
    return ones % 2;
}

/* The spec's words. */
static void expected_integers(unsigned context, const int32_t *symbols, size_t count, int32_t *integers) {
    unsigned s = 0;
    for (size_t l = 0; l < count; l++) {
        if (l % BLOCK == 0)
            s = 0;
        integers[l] = 2 * symbols[l] + (int32_t)(context < FIRST ? 0 : parity(s & 5));
        s = (2 * s + (parity((uint32_t)symbols[l] & 1) ^ parity(s & 12))) % 16;
    }
}

static int32_t *make_array(size_t count) {
    int32_t *array = malloc((count + 1) * sizeof *array);
    assert_non_null(array);
    return array;
}

static void the_example_of_the_spec(void **state) {
    (void)state;
    static const int32_t symbols[8] = {1, 0, -1, 2, -3, 1, 0, 0}, with[8] = {2, 1, -2, 4, -5, 3, 1, 0},
                         without[8] = {2, 0, -2, 4, -6, 2, 0, 0};
    int32_t found[8];
    memcpy(found, symbols, sizeof found);
    assert_true(icma_trellis_expand(67, found, 8));
    assert_memory_equal(found, with, sizeof found);
    memcpy(found, symbols, sizeof found);
    assert_true(icma_trellis_expand(30, found, 8));
    assert_memory_equal(found, without, sizeof found);
    assert_true(icma_trellis_expand(67, NULL, 0));
}

/* Long runs, too: the state starts again with every block. */
static void integers_are_the_formulas(void **state) {
    (void)state;
    static const size_t counts[] = {1, 2, 17, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 77};
    static const unsigned contexts[] = {0, 30, FIRST - 1, FIRST, 100, 224};
    uint64_t seed = 61;
    for (size_t n = 0; n < sizeof counts / sizeof *counts; n++)
        for (size_t c = 0; c < sizeof contexts / sizeof *contexts; c++) {
            int32_t *symbols = make_array(counts[n]), *found = make_array(counts[n]), *wanted = make_array(counts[n]);
            for (size_t i = 0; i < counts[n]; i++)
                found[i] = symbols[i] = c % 2 ? (int32_t)floor(support_uniform(&seed) * (MOST + 1.0 - LEAST)) + LEAST
                                              : (int32_t)round(3 * support_normal(&seed));
            expected_integers(contexts[c], symbols, counts[n], wanted);
            assert_true(icma_trellis_expand(contexts[c], found, counts[n]));
            assert_memory_equal(found, wanted, counts[n] * sizeof *found);
            for (size_t i = 0; i < counts[n]; i++) {
                assert_true(found[i] >= INT16_MIN && found[i] <= INT16_MAX);
                assert_int_equal(icma_trellis_symbol(found[i]), symbols[i]);
            }
            free(symbols);
            free(found);
            free(wanted);
        }
}

static void symbols_out_of_range_are_refused(void **state) {
    (void)state;
    static const int32_t wrong[] = {MOST + 1, LEAST - 1, 32767, -32768, 65536, INT32_MAX, INT32_MIN};
    for (unsigned context = 0; context < icma_rans_contexts(); context += 8)
        for (size_t place = 0; place < 5; place++) {
            int32_t right[5] = {0};
            right[place] = MOST;
            assert_true(icma_trellis_expand(context, right, 5));
            memset(right, 0, sizeof right);
            right[place] = LEAST;
            assert_true(icma_trellis_expand(context, right, 5));
            for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
                int32_t symbols[5] = {0};
                symbols[place] = wrong[i];
                assert_false(icma_trellis_expand(context, symbols, 5));
            }
        }
}

typedef struct result {
    unsigned context;
    double bits, error; /* a value; squared, in squared steps */
} result;

/* Quantises Gaussians of this spread, in steps, and measures what a reader would get. */
static result quantise(size_t count, double spread, double price, uint64_t seed) {
    float *values = malloc((count + 1) * sizeof *values);
    int32_t *symbols = make_array(count);
    uint8_t *scratch = malloc(ICMA_TRELLIS_SCRATCH);
    assert_true(values && scratch);
    for (size_t i = 0; i < count; i++)
        values[i] = (float)(spread * support_normal(&seed));
    result r = {0};
    double bits;
    r.context = icma_trellis_quantise(values, count, price, symbols, scratch, &bits);
    assert_true(r.context < icma_rans_contexts());
    assert_true(fabs(bits - icma_rans_cost(r.context, symbols, count)) <= 1e-3 + 1e-9 * bits);
    assert_true(icma_trellis_expand(r.context, symbols, count));
    for (size_t i = 0; i < count; i++)
        r.error += ((double)values[i] - symbols[i]) * ((double)values[i] - symbols[i]) / (double)count;
    r.bits = bits / (double)count;
    free(values);
    free(symbols);
    free(scratch);
    return r;
}

/* What a Gaussian takes over its rate-distortion function at the error that is reached: 0.064 bits at about 4 bits; rounding is 0.25 above it. */
static void four_bits_are_near_the_bound(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 3; seed++)
        for (double spread = 7; spread < 9; spread += 0.7) {
            result r = quantise(2 * BLOCK + 5000, spread, 1, seed);
            double over = r.bits - 0.5 * log2(spread * spread / r.error);
            assert_true(r.context >= FIRST && r.bits > 3.5 && r.bits < 4.5);
            if (fabs(over - 0.064) > 0.02)
                fail_msg("spread %g: %.4f bits, error %.4f: %.4f over the bound", spread, r.bits, r.error, over);
        }
}

/* At high rates the error is ICMA_TRELLIS_NOISE, and a price of 0 gives no larger one. */
static void noise_is_what_is_said(void **state) {
    (void)state;
    result priced = quantise(BLOCK, 300, 1, 4), free_of_charge = quantise(BLOCK, 300, 0, 4);
    assert_true(fabs(priced.error / ICMA_TRELLIS_NOISE - 1) < 0.02);
    assert_true(free_of_charge.error <= priced.error * 1.0001 && free_of_charge.bits >= priced.bits - 1e-4);
    result cheap = quantise(BLOCK, 3, 0.5, 4), dear = quantise(BLOCK, 3, 2.5, 4);
    assert_true(cheap.error < dear.error && cheap.bits > dear.bits);
}

/* Narrow ones are rounded, in contexts without states. */
static void narrow_values_are_rounded(void **state) {
    (void)state;
    static const double spreads[] = {0.1, 0.3, 0.6, 1};
    for (size_t i = 0; i < sizeof spreads / sizeof *spreads; i++) {
        result r = quantise(20000, spreads[i], 1, 5);
        assert_true(r.context < FIRST && r.error <= spreads[i] * spreads[i] * 1.05);
    }
    assert_true(quantise(20000, 1.3, 1, 5).context >= FIRST);
}

/* Values at the ends of the range, few and many. */
static void extremes_are_within_range(void **state) {
    (void)state;
    enum { COUNT = 500 };
    float values[COUNT];
    int32_t symbols[COUNT];
    uint8_t *scratch = malloc(ICMA_TRELLIS_SCRATCH);
    assert_non_null(scratch);
    uint64_t seed = 6;
    for (int trial = 0; trial < 20; trial++) {
        size_t count = 1 + (size_t)(support_uniform(&seed) * (COUNT - 1));
        double bits, slip = 0;
        for (size_t i = 0; i < count; i++)
            values[i] = (float)((support_uniform(&seed) < 0.5 ? -1 : 1) * (2.0 * MOST - 4 - support_uniform(&seed)));
        unsigned context = icma_trellis_quantise(values, count, 1, symbols, scratch, &bits);
        assert_true(icma_trellis_expand(context, symbols, count));
        /* No fmax: gcc 12 for aarch64 breaks down on it, on widened numbers. */
        for (size_t i = 0; i < count; i++) {
            double one = fabs((double)values[i] - symbols[i]);
            slip = one > slip ? one : slip;
        }
        assert_true(slip <= 2.01);
    }
    free(scratch);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_example_of_the_spec),
        cmocka_unit_test(integers_are_the_formulas),
        cmocka_unit_test(symbols_out_of_range_are_refused),
        cmocka_unit_test(four_bits_are_near_the_bound),
        cmocka_unit_test(noise_is_what_is_said),
        cmocka_unit_test(narrow_values_are_rounded),
        cmocka_unit_test(extremes_are_within_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
