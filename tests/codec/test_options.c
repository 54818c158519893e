/* SPDX-License-Identifier: Apache-2.0 */
/* Options and limits tell their size: programs that were compiled with fewer get the defaults of the rest,
 * and those of another library are refused. */
#include "memory.h"
#include "packing.h"

#include <string.h>

static int make_tree(void **state) {
    char *root = support_new_folder();
    packing_write(root, "plain", &small_trajectory, 1, 2);
    *state = root;
    return 0;
}

static int drop_tree(void **state) {
    support_remove_tree(*state);
    return 0;
}

static icma_status try_size(const char *root, size_t size) {
    icma_pack_options options = packing_options();
    icma_pack_result result;
    icma_error error = {0};
    options.size = size;
    icma_status status = packing_try(root, "b.icma", &options, &result, &error);
    icma_pack_result_free(&result);
    if (status)
        assert_non_null(strstr(error.message, "icma_pack_defaults"));
    return status;
}

static void options_of_another_size_are_refused(void **state) {
    assert_int_equal(try_size(*state, 0), ICMA_E_USAGE);
    assert_int_equal(try_size(*state, ICMA_PACK_OPTIONS_LEAST - 1), ICMA_E_USAGE);
    assert_int_equal(try_size(*state, sizeof(icma_pack_options) + 1), ICMA_E_USAGE);
    packing_check_folder(*state, NULL);
    assert_int_equal(try_size(*state, ICMA_PACK_OPTIONS_LEAST), ICMA_OK);
}

static void limits_of_another_size_are_refused(void **state) {
    icma_pack_options options = packing_options();
    packing_pack(*state, "b.icma", &options, NULL);
    char *path = support_path(*state, "b.icma");
    static const size_t sizes[] = {0, ICMA_LIMITS_LEAST - 1, sizeof(icma_limits) + 1, ICMA_LIMITS_LEAST};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        icma_limits limits = icma_limits_defaults();
        icma_bundle *bundle;
        icma_error error = {0};
        limits.size = sizes[i];
        icma_status status = icma_bundle_open(path, NULL, &limits, &bundle, &error);
        assert_int_equal(status, sizes[i] == ICMA_LIMITS_LEAST ? ICMA_OK : ICMA_E_USAGE);
        assert_true((bundle != NULL) == (status == ICMA_OK));
        icma_bundle_close(bundle);
    }
    support_free(path);
}

/* A program with fewer or more options: what it has is filled, and nothing behind it. */
static void defaults_fill_what_is_there(void **state) {
    _Alignas(icma_pack_options) unsigned char bytes[sizeof(icma_pack_options) + 16];
    icma_pack_options *options = (icma_pack_options *)(void *)bytes;
    (void)state;
    memset(bytes, 0xA5, sizeof bytes);
    icma_pack_options_init(options, offsetof(icma_pack_options, restart));
    assert_int_equal(options->size, offsetof(icma_pack_options, restart));
    assert_int_equal(options->tier, ICMA_TIER_BOUNDED);
    assert_int_equal(bytes[offsetof(icma_pack_options, restart)], 0xA5);
    icma_pack_options_init(options, sizeof *options + 8);
    assert_int_equal(options->restart, icma_pack_defaults().restart);
    assert_int_equal(bytes[sizeof *options + 7], 0);
    assert_int_equal(bytes[sizeof *options + 8], 0xA5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(options_of_another_size_are_refused, make_tree, drop_tree),
        cmocka_unit_test_setup_teardown(limits_of_another_size_are_refused, make_tree, drop_tree),
        cmocka_unit_test(defaults_fill_what_is_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
