/* SPDX-License-Identifier: Apache-2.0 */
/* Vectors of a byte a number (spec 2.7): rounding, what is written comes back, extremes, damage. */
#include "coarse.h"

#include "support.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { MOST = 64 };

static float largest_of(const float *values, size_t count) {
    float largest = 0;
    for (size_t i = 0; i < count; i++)
        largest = fmaxf(largest, fabsf(values[i]));
    return largest;
}

/* Rounds, writes and reads; everything that coarse.h says of that. `values` gets what is read. */
static int check(float *values, size_t count) {
    float once[MOST], twice[MOST], back[MOST], original[MOST];
    icma_buffer out = {0};
    icma_error error = {0};
    assert_true(count > 0 && count <= MOST);
    memcpy(original, values, count * sizeof *values);
    memcpy(once, values, count * sizeof *values);
    icma_coarse_round(once, count);
    memcpy(twice, once, sizeof twice);
    icma_coarse_round(twice, count);
    assert_memory_equal(twice, once, count * sizeof *once);
    icma_coarse_write(&out, values, count);
    assert_int_equal(icma_buffer_status(&out, &error), ICMA_OK);
    assert_int_equal(out.size, 1 + count);
    assert_memory_equal(values, once, count * sizeof *once);
    icma_cursor from = icma_cursor_over(out.data, out.size);
    assert_true(icma_coarse_read(&from, back, count) && !from.failed && from.left == 0);
    assert_memory_equal(back, once, count * sizeof *once);
    int exponent = (int8_t)out.data[0];
    float largest = largest_of(original, count);
    for (size_t i = 0; i < count; i++) {
        int integer = (int8_t)out.data[1 + i];
        assert_true(abs(integer) <= 127 && back[i] == (float)ldexp(integer, exponent));
        assert_true(back[i] == 0 ? !signbit(back[i]) : isnormal(back[i]));
        if (largest < 127 * 0x1p120F) /* half a unit, and one of 127 away at most */
            assert_true(fabs((double)back[i] - (double)original[i]) <= ldexp(0.5, exponent));
    }
    /* One less would not hold the largest. */
    assert_true(exponent >= -126 && exponent <= 120);
    assert_true(exponent == -126 || rint(ldexp((double)largest, 1 - exponent)) > 127);
    /* Every truncation. */
    for (size_t size = 0; size < out.size; size++) {
        from = icma_cursor_over(out.data, size);
        assert_false(icma_coarse_read(&from, back, count));
    }
    icma_buffer_free(&out);
    return exponent;
}

static void vectors_come_back(void **state) {
    (void)state;
    uint64_t seed = 51;
    for (int exponent = -150; exponent <= 127; exponent++)
        for (size_t count = 1; count <= MOST; count = 2 * count + 1) {
            float values[MOST];
            for (size_t i = 0; i < count; i++) {
                double value = ldexp(support_normal(&seed), exponent);
                values[i] = (float)fmax(-(double)FLT_MAX, fmin((double)FLT_MAX, value));
            }
            check(values, count);
        }
}

/* Halves go to the even integer; the exponent rises where the largest would become 128. */
static void rounding_is_to_the_nearest(void **state) {
    (void)state;
    float exact[] = {127, -127, 126, 1, 0, -0.0F}, halves[] = {100, 0.5F, 1.5F, 2.5F, -0.5F, -1.5F, -2.5F};
    static const float rounded[] = {100, 0, 2, 2, 0, -2, -2};
    assert_int_equal(check(exact, COUNT(exact)), 0);
    assert_true(exact[0] == 127 && exact[1] == -127 && exact[2] == 126 && exact[3] == 1 && exact[4] == 0);
    assert_int_equal(check(halves, COUNT(halves)), 0);
    for (size_t i = 0; i < COUNT(halves); i++)
        assert_true(halves[i] == rounded[i]);
    float below[] = {127.25F, 3}, above[] = {127.5F, 3};
    assert_int_equal(check(below, 2), 0);
    assert_true(below[0] == 127 && below[1] == 3);
    assert_int_equal(check(above, 2), 1); /* 128 does not fit */
    assert_true(above[0] == 128 && above[1] == 4);
}

static void extremes_are_held(void **state) {
    (void)state;
    float none[] = {0, -0.0F, 0x1p-149F, -0x1p-127F, 0x1.fffffep-128F};
    assert_int_equal(check(none, COUNT(none)), -126);
    for (size_t i = 0; i < COUNT(none); i++)
        assert_true(none[i] == 0);
    float small[] = {0x1.00001p-127F, 0x1p-126F, -127 * 0x1p-126F};
    assert_int_equal(check(small, COUNT(small)), -126);
    assert_true(small[0] == 0x1p-126F && small[1] == 0x1p-126F && small[2] == -127 * 0x1p-126F);
    float large[] = {FLT_MAX, -FLT_MAX, 0x1p120F, 0x1p118F};
    assert_int_equal(check(large, COUNT(large)), 120);
    assert_true(large[0] == 127 * 0x1p120F && large[1] == -127 * 0x1p120F && large[2] == 0x1p120F && large[3] == 0);
}

/* Every pair of an exponent and an integer: read as they say, or refused. */
static void what_is_out_of_range_is_refused(void **state) {
    (void)state;
    for (int exponent = -128; exponent < 128; exponent++)
        for (int integer = -128; integer < 128; integer++) {
            const uint8_t bytes[3] = {(uint8_t)exponent, 5, (uint8_t)integer};
            float back[2];
            icma_cursor from = icma_cursor_over(bytes, sizeof bytes);
            bool good = exponent >= -126 && exponent <= 120 && integer >= -127;
            assert_int_equal(icma_coarse_read(&from, back, 2), good);
            if (good)
                assert_true(back[0] == ldexpf(5, exponent) && (double)back[1] == ldexp(integer, exponent));
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_come_back),
        cmocka_unit_test(rounding_is_to_the_nearest),
        cmocka_unit_test(extremes_are_held),
        cmocka_unit_test(what_is_out_of_range_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
