/* SPDX-License-Identifier: Apache-2.0 */
#include "support.h"

#include <string.h>

static void keeps_the_first_failure(void **state) {
    (void)state;
    icma_error error = {0};
    assert_int_equal(icma_fail(&error, ICMA_E_CORRUPT, "a.icma", "bad %d", 7), ICMA_E_CORRUPT);
    assert_int_equal(icma_fail(&error, ICMA_E_IO, "b", "later"), ICMA_E_IO);
    assert_int_equal(error.status, ICMA_E_CORRUPT);
    assert_string_equal(error.file, "a.icma");
    assert_string_equal(error.message, "bad 7");
}

static void takes_no_error(void **state) {
    (void)state;
    assert_int_equal(icma_fail(NULL, ICMA_E_IO, NULL, "x"), ICMA_E_IO);
    icma_error_set_file(NULL, "x");
}

static void sets_a_file_once(void **state) {
    (void)state;
    icma_error error = {0};
    icma_error_set_file(&error, "none");
    assert_string_equal(error.file, "");
    icma_fail(&error, ICMA_E_CORRUPT, NULL, "bad");
    icma_error_set_file(&error, "first");
    icma_error_set_file(&error, "second");
    assert_string_equal(error.file, "first");
}

static void truncates_long_texts(void **state) {
    (void)state;
    char text[3000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    icma_error error = {0};
    icma_fail(&error, ICMA_E_IO, text, "%s", text);
    assert_int_equal(strlen(error.file), ICMA_ERROR_FILE_SIZE - 1);
    assert_int_equal(strlen(error.message), ICMA_ERROR_MESSAGE_SIZE - 1);
}

static void one_exit_code_each(void **state) {
    (void)state;
    assert_int_equal(icma_status_exit_code(ICMA_OK), 0);
    assert_int_equal(icma_status_exit_code(ICMA_E_CORRUPT), 4);
    assert_int_equal(icma_status_exit_code(ICMA_E_UNSUPPORTED), 6);
    assert_int_equal(icma_status_exit_code(ICMA_E_LIMIT), 10);
    assert_int_equal(icma_status_exit_code((icma_status)999), 1);
    assert_string_equal(icma_status_name(ICMA_E_BOUND), "ICMA_E_BOUND");
    assert_string_equal(icma_status_text(ICMA_E_BOUND), "fidelity bound missed");
    assert_non_null(icma_status_name((icma_status)999));
    assert_non_null(icma_status_text((icma_status)999));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_the_first_failure), cmocka_unit_test(takes_no_error),
        cmocka_unit_test(sets_a_file_once),        cmocka_unit_test(truncates_long_texts),
        cmocka_unit_test(one_exit_code_each),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
