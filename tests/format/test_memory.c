/* SPDX-License-Identifier: Apache-2.0 */
#include "memory.h"
#include "support.h"

static void size_arithmetic_never_wraps(void **state) {
    (void)state;
    size_t out = 77;
    assert_true(icma_multiply_size(SIZE_MAX, 1, &out));
    assert_int_equal(out, SIZE_MAX);
    assert_true(icma_multiply_size(0, SIZE_MAX, &out) && out == 0);
    assert_true(icma_multiply_size(SIZE_MAX, 0, &out) && out == 0);
    assert_true(icma_multiply_size(SIZE_MAX / 3, 3, &out));
    out = 77;
    assert_false(icma_multiply_size(SIZE_MAX / 3 + 1, 3, &out));
    assert_false(icma_multiply_size(SIZE_MAX, SIZE_MAX, &out));
    assert_false(icma_add_size(SIZE_MAX, 1, &out));
    assert_false(icma_round_up_size(SIZE_MAX, 64, &out));
    assert_false(icma_round_up_size(SIZE_MAX - 62, 64, &out));
    assert_int_equal(out, 77);
    assert_true(icma_add_size(SIZE_MAX - 1, 1, &out) && out == SIZE_MAX);
    assert_true(icma_round_up_size(SIZE_MAX - 63, 64, &out) && out == SIZE_MAX - 63);
    assert_true(icma_round_up_size(0, 64, &out) && out == 0);
    assert_true(icma_round_up_size(1, 64, &out) && out == 64);
    assert_true(icma_round_up_size(64, 64, &out) && out == 64);
    assert_true(icma_round_up_size(10, 7, &out) && out == 14);
}

static void nothing_is_null(void **state) {
    (void)state;
    assert_null(icma_alloc(0));
    assert_null(icma_alloc_array(0, 8));
    assert_null(icma_alloc_zeroed(8, 0));
    assert_null(icma_copy_string(NULL));
    icma_free(NULL);
}

static void products_that_overflow_are_refused(void **state) {
    (void)state;
    char *kept = icma_alloc(4);
    assert_non_null(kept);
    assert_null(icma_alloc_array(SIZE_MAX / 2, 3));
    assert_null(icma_alloc_zeroed(SIZE_MAX, 2));
    assert_null(icma_resize_array(kept, SIZE_MAX, 2));
    assert_null(icma_resize_array(kept, 0, 2));
    kept[3] = 1; /* still ours */
    icma_free(kept);
}

static void contents_are_right(void **state) {
    (void)state;
    unsigned char *bytes = icma_alloc_zeroed(5, 3);
    for (int i = 0; i < 15; i++)
        assert_int_equal(bytes[i], 0);
    bytes[14] = 9;
    bytes = icma_resize_array(bytes, 100, 3);
    assert_int_equal(bytes[14], 9);
    icma_free(bytes);
    char *text = icma_copy_text("abcdef", 3);
    assert_string_equal(text, "abc");
    icma_free(text);
    text = icma_copy_text(NULL, 0);
    assert_string_equal(text, "");
    icma_free(text);
    text = icma_copy_string("xyz");
    assert_string_equal(text, "xyz");
    icma_free(text);
}

static void the_hook_is_asked(void **state) {
    (void)state;
    failing_allocator(1, false);
    void *first = icma_alloc(8);
    assert_non_null(first);
    assert_null(icma_alloc(8));
    assert_true(allocation_failed());
    void *third = icma_alloc(8);
    assert_non_null(third);
    assert_int_equal(live_allocations(), 2);
    icma_free(first);
    icma_free(third);
    assert_int_equal(live_allocations(), 0);
    failing_allocator(0, true);
    assert_null(icma_copy_string("x"));
    assert_null(icma_alloc_zeroed(1, 1));
    plain_allocator();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(size_arithmetic_never_wraps),
        cmocka_unit_test(nothing_is_null),
        cmocka_unit_test(products_that_overflow_are_refused),
        cmocka_unit_test(contents_are_right),
        cmocka_unit_test(the_hook_is_asked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
