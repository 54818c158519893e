/* SPDX-License-Identifier: Apache-2.0 */
/* Rates and times left, on clocks of our own. */
#include "estimate.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void steady_work_is_known_exactly(void **state) {
    cli_estimate e;
    (void)state;
    cli_estimate_start(&e, 100, 0);
    for (int i = 1; i <= 40; i++)
        cli_estimate_update(&e, 100 + 0.25 * i, 10 * i); /* 40 a second */
    assert_float_equal(cli_estimate_rate(&e, 110), 40, 1e-4F);
    assert_float_equal(cli_estimate_left(&e, 110, 1000), 15, 1e-4F);
}

static void nothing_is_said_before_it_is_known(void **state) {
    cli_estimate e;
    (void)state;
    cli_estimate_start(&e, 0, 0);
    assert_true(isnan(cli_estimate_rate(&e, 0)));
    cli_estimate_update(&e, 0.3, 1);
    cli_estimate_update(&e, 0.6, 2);
    assert_true(isnan(cli_estimate_left(&e, 0.9, 10))); /* less than a second */
    assert_false(isnan(cli_estimate_left(&e, 1.1, 10)));
    cli_estimate_start(&e, 0, 0);
    cli_estimate_update(&e, 5, 1);
    assert_true(isnan(cli_estimate_left(&e, 5, 10))); /* one step, which is mostly the slowest */
    assert_true(isnan(cli_estimate_left(&e, 60, 10)));
}

static void the_end_has_nothing_left(void **state) {
    cli_estimate e;
    (void)state;
    cli_estimate_start(&e, 0, 0);
    for (int i = 1; i <= 10; i++)
        cli_estimate_update(&e, i, i);
    assert_true(isnan(cli_estimate_left(&e, 10, 10)));
    assert_true(isnan(cli_estimate_left(&e, 10, 0))); /* a total that nobody knows */
}

static void what_was_done_before_is_no_speed(void **state) {
    cli_estimate e;
    (void)state;
    cli_estimate_start(&e, 0, 900); /* a training that goes on at epoch 900 */
    for (int i = 1; i <= 10; i++)
        cli_estimate_update(&e, i, 900 + i);
    assert_float_equal(cli_estimate_left(&e, 10, 1000), 90, 1e-4F);
}

static void lumps_count_down_and_stalls_grow(void **state) {
    cli_estimate e;
    (void)state;
    cli_estimate_start(&e, 0, 0);
    cli_estimate_update(&e, 10, 1);
    cli_estimate_update(&e, 20, 2); /* one every ten seconds */
    assert_float_equal(cli_estimate_left(&e, 20, 4), 20, 1e-4F);
    assert_float_equal(cli_estimate_left(&e, 25, 4), 15, 1e-4F);
    assert_true(cli_estimate_left(&e, 35, 4) > 9.99); /* late: no lower than the rest needs */
    assert_true(cli_estimate_left(&e, 120, 4) > cli_estimate_left(&e, 60, 4));
}

static void old_speeds_are_forgotten(void **state) {
    cli_estimate e;
    (void)state;
    cli_estimate_start(&e, 0, 0);
    for (int i = 1; i <= 10; i++)
        cli_estimate_update(&e, i, 100 * i);
    for (int i = 1; i <= 60; i++)
        cli_estimate_update(&e, 10 + i, 1000 + i);
    assert_true(cli_estimate_rate(&e, 70) > 1 && cli_estimate_rate(&e, 70) < 1.2);
}

static void going_back_starts_anew(void **state) {
    cli_estimate e;
    (void)state;
    cli_estimate_start(&e, 0, 0);
    for (int i = 1; i <= 10; i++)
        cli_estimate_update(&e, i, i);
    cli_estimate_update(&e, 11, 0);
    assert_true(isnan(cli_estimate_rate(&e, 12)));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steady_work_is_known_exactly),
        cmocka_unit_test(nothing_is_said_before_it_is_known),
        cmocka_unit_test(the_end_has_nothing_left),
        cmocka_unit_test(what_was_done_before_is_no_speed),
        cmocka_unit_test(lumps_count_down_and_stalls_grow),
        cmocka_unit_test(old_speeds_are_forgotten),
        cmocka_unit_test(going_back_starts_anew),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
