/* SPDX-License-Identifier: Apache-2.0 */
/* Random numbers: known values, the exact logarithm against libm, the normal distribution. */
#include "rng.h"
#include "support.h"

#include <math.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static void splitmix_gives_the_known_values(void **state) {
    (void)state;
    /* The published test vector of SplitMix64 for seed 1234567, and the first numbers for 0. */
    static const uint64_t known[] = {UINT64_C(6457827717110365317), UINT64_C(3203168211198807973),
                                     UINT64_C(9817491932198370423), UINT64_C(4593380528125082431),
                                     UINT64_C(16408922859458223821)};
    icma_rng rng = icma_rng_seed(1234567);
    for (size_t i = 0; i < COUNT(known); i++)
        assert_true(icma_rng_next(&rng) == known[i]);
    rng = icma_rng_seed(0);
    assert_true(icma_rng_next(&rng) == UINT64_C(0xE220A8397B1DCDAF));
    assert_true(icma_rng_next(&rng) == UINT64_C(0x6E789E6AA1B965F4));
}

/* --- the logarithm ------------------------------------------------------------------------------------- */

static void assert_log(double x) {
    double found = icma_exact_log(x);
    long double expected = logl((long double)x);
    if (!(fabsl(found - expected) <= 1e-15L * fabsl(expected)))
        fail_msg("log(%a) = %a, not %La", x, found, expected);
}

static void log_is_that_of_libm(void **state) {
    (void)state;
    uint64_t random = 3;
    assert_true(icma_exact_log(1) == 0);
    for (int exponent = -1073; exponent <= 0; exponent++)
        assert_log(ldexp(1, exponent));
    for (int exponent = -1021; exponent <= 0; exponent++)
        for (int i = 0; i < 40; i++)
            assert_log(ldexp(0.5 + 0.5 * support_uniform(&random), exponent));
    /* Near 1, where m - 1 loses its leading digits, and on both sides of where m is folded. */
    for (int i = 1; i <= 53; i++)
        assert_log(1 - ldexp(1, -i));
    double fold = 0x1.6a09e667f3bcdp-1;
    for (int i = 0; i < 5; i++) {
        assert_log(fold);
        assert_log(nextafter(fold, 0));
        fold = nextafter(fold, 1);
    }
    for (int i = 0; i < 20000; i++)
        assert_log(1 - support_uniform(&random));
}

/* --- integers ------------------------------------------------------------------------------------------ */

static void below_is_within_and_even(void **state) {
    (void)state;
    static const uint64_t bounds[] = {1,         2, 3, 7, 1000, UINT64_C(1) << 32, (UINT64_C(1) << 63) + 1,
                                      UINT64_MAX};
    icma_rng rng = icma_rng_seed(5);
    for (size_t b = 0; b < COUNT(bounds); b++)
        for (int i = 0; i < 1000; i++)
            assert_true(icma_rng_below(&rng, bounds[b]) < bounds[b]);
    size_t seen[7] = {0};
    for (int i = 0; i < 70000; i++)
        seen[icma_rng_below(&rng, 7)]++;
    double chi = 0; /* 6 degrees of freedom: 22.5 is beyond all but 0.1 % */
    for (int i = 0; i < 7; i++)
        chi += ((double)seen[i] - 10000) * ((double)seen[i] - 10000) / 10000;
    assert_true(chi < 22.5);
}

static void shuffle_permutes_evenly(void **state) {
    (void)state;
    icma_rng rng = icma_rng_seed(6);
    uint32_t items[100];
    bool moved = false, found[100] = {false};
    for (uint32_t i = 0; i < 100; i++)
        items[i] = i;
    icma_rng_shuffle(&rng, items, 0);
    icma_rng_shuffle(&rng, items, 1);
    for (uint32_t i = 0; i < 100; i++)
        assert_int_equal(items[i], i);
    icma_rng_shuffle(&rng, items, 100);
    for (uint32_t i = 0; i < 100; i++) {
        moved |= items[i] != i;
        found[items[i]] = true;
    }
    for (size_t i = 0; i < 100; i++)
        assert_true(found[i]);
    assert_true(moved);
    size_t seen[6] = {0};
    for (int i = 0; i < 60000; i++) {
        uint32_t three[3] = {0, 1, 2};
        icma_rng_shuffle(&rng, three, 3);
        seen[three[0] * 2 + (three[1] > three[2])]++;
    }
    double chi = 0; /* 5 degrees of freedom, 0.1 % */
    for (int i = 0; i < 6; i++)
        chi += ((double)seen[i] - 10000) * ((double)seen[i] - 10000) / 10000;
    assert_true(chi < 20.5);
}

/* --- the normal distribution --------------------------------------------------------------------------- */

static void normals_of_seed_1_are_these(void **state) {
    (void)state;
    /* Made by a second implementation (Python, its own logarithm): part of the format, spec 4.7. */
    static const float golden[] = {0x1.b7c252p-2F,  0x1.d368fep-2F, -0x1.4eaec2p-2F, 0x1.0e36dp+0F,
                                   -0x1.5428e6p-1F, -0x1.81eecp+0F, -0x1.3d69dep+1F, -0x1.e2193cp-3F};
    icma_rng rng = icma_rng_seed(1);
    for (size_t i = 0; i < COUNT(golden); i++)
        assert_true(icma_rng_normal(&rng) == golden[i]);
}

static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void normals_are_normal(void **state) {
    (void)state;
    enum { DRAWS = 100000 };
    float *values = malloc(DRAWS * sizeof *values);
    assert_non_null(values);
    icma_rng rng = icma_rng_seed(2);
    double moment[5] = {0}, lag = 0;
    for (size_t i = 0; i < DRAWS; i++) {
        values[i] = icma_rng_normal(&rng);
        double power = 1;
        for (int m = 0; m < 5; m++, power *= values[i])
            moment[m] += power / DRAWS;
        lag += i ? (double)values[i] * values[i - 1] / DRAWS : 0;
    }
    /* Four standard errors each: those of the sums of x, x^2, x^3, x^4 are 1, sqrt 2, sqrt 15, sqrt 96 over
     * sqrt n. */
    const double unit = 4 / sqrt(DRAWS);
    assert_true(fabs(moment[1]) < unit);
    assert_true(fabs(moment[2] - 1) < unit * sqrt(2));
    assert_true(fabs(moment[3]) < unit * sqrt(15));
    assert_true(fabs(moment[4] - 3) < unit * sqrt(96));
    assert_true(fabs(lag) < unit);
    /* Kolmogorov and Smirnov: D sqrt n exceeds 1.95 once in a thousand samples of the right distribution. */
    qsort(values, DRAWS, sizeof *values, compare_floats);
    double most = 0;
    for (size_t i = 0; i < DRAWS; i++) {
        double expected = 0.5 * erfc(-values[i] / sqrt(2));
        most = fmax(most, fmax(expected - (double)i / DRAWS, (double)(i + 1) / DRAWS - expected));
    }
    assert_true(most * sqrt(DRAWS) < 1.95);
    free(values);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(splitmix_gives_the_known_values), cmocka_unit_test(log_is_that_of_libm),
        cmocka_unit_test(below_is_within_and_even),        cmocka_unit_test(shuffle_permutes_evenly),
        cmocka_unit_test(normals_of_seed_1_are_these),     cmocka_unit_test(normals_are_normal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
