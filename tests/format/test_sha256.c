/* SPDX-License-Identifier: Apache-2.0 */
/* The examples of FIPS 180-4 (NIST's), and that it does not matter in which parts data comes. */
#include "sha256.h"
#include "support.h"

#include <stdlib.h>
#include <string.h>

static void text_of(const void *data, size_t size, size_t part, char text[ICMA_SHA256_TEXT]) {
    icma_sha256 hash = icma_sha256_start();
    uint8_t digest[ICMA_SHA256_BYTES];
    for (size_t at = 0; at < size; at += part)
        icma_sha256_add(&hash, (const uint8_t *)data + at, size - at < part ? size - at : part);
    icma_sha256_finish(&hash, digest);
    icma_sha256_text(digest, text);
}

static void examples(void **state) {
    static const char *const messages[][2] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmno"
         "pqr"
         "stnopqrstu",
         "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"}};
    char text[ICMA_SHA256_TEXT];
    (void)state;
    for (size_t i = 0; i < sizeof messages / sizeof *messages; i++) {
        text_of(messages[i][0], strlen(messages[i][0]), 1000, text);
        assert_string_equal(text, messages[i][1]);
    }
}

static void a_million(void **state) {
    size_t size = 1000000;
    uint8_t *data = malloc(size);
    char text[ICMA_SHA256_TEXT];
    (void)state;
    assert_non_null(data);
    memset(data, 'a', size);
    text_of(data, size, 4093, text);
    assert_string_equal(text, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(data);
}

static void parts(void **state) {
    uint8_t data[300];
    char whole[ICMA_SHA256_TEXT], text[ICMA_SHA256_TEXT];
    uint64_t random = 3;
    (void)state;
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)next_random(&random);
    for (size_t size = 0; size <= sizeof data; size += 7) {
        text_of(data, size, sizeof data, whole);
        for (size_t part = 1; part < 130; part++) {
            text_of(data, size, part, text);
            assert_string_equal(text, whole);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(examples), cmocka_unit_test(a_million),
                                       cmocka_unit_test(parts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
