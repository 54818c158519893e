/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pieces of the tokenizer: characters, folding, words, merges, special tokens, the order of merges; damaged
 * and hostile files; long words in time that does not explode; memory that runs out. All of Unicode, and many
 * texts, are compared with the package that users have in tests/interop/test_embed.py.
 */
#include "bytes.h"
#include "support.h"
#include "tokenizer.h"
#include "unicode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- characters
 * ---------------------------------------------------------------------------------------------- */

static void test_kinds(void **state) {
    (void)state;
    assert_true(icma_unicode_is_letter('a') && icma_unicode_is_letter(0xDF) &&
                icma_unicode_is_letter(0x4E00) && icma_unicode_is_letter(0x9FFC));
    assert_false(icma_unicode_is_letter('1') || icma_unicode_is_letter('_') ||
                 icma_unicode_is_letter(0x301) || icma_unicode_is_letter(0x10FFFF));
    assert_true(icma_unicode_is_number('0') && icma_unicode_is_number(0xBD) &&
                icma_unicode_is_number(0x2167) && icma_unicode_is_number(0x1D7FF));
    assert_false(icma_unicode_is_number('a') || icma_unicode_is_number(0) ||
                 icma_unicode_is_number(UINT32_MAX));
    assert_true(icma_unicode_is_space(' ') && icma_unicode_is_space('\n') && icma_unicode_is_space(0x85) &&
                icma_unicode_is_space(0x3000));
    assert_false(icma_unicode_is_space(0x1C) || icma_unicode_is_space(0x200B) ||
                 icma_unicode_is_space(0x180E));
}

static void folds(const char *text, const uint32_t *wanted, size_t count) {
    icma_characters found;
    assert_int_equal(icma_unicode_fold(text, strlen(text), &found, NULL), ICMA_OK);
    assert_int_equal(found.count, count);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(found.list[i], wanted[i]);
    icma_characters_free(&found);
}
#define FOLDS(text, ...)                                                                                     \
    folds(text, (const uint32_t[]){__VA_ARGS__}, sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

static void test_folding(void **state) {
    (void)state;
    folds("", NULL, 0);
    FOLDS("aB \t\n c", 'a', 'b', ' ', 'c');
    FOLDS("\xC3\x89", 0xE9);                                /* E with acute */
    FOLDS("E\xCC\x81", 0xE9);                               /* the same in two */
    FOLDS("\xC4\xB0", 'i', 0x307);                          /* I with dot above: two */
    FOLDS("\xCE\xA3\xCE\x91\xCE\xA3", 0x3C3, 0x3B1, 0x3C3); /* no final sigma */
    FOLDS("\xE1\xBA\x9E", 0xDF);                            /* capital sharp s */
    FOLDS("\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8", 0xAC01);  /* Hangul of three */
    FOLDS("\xEA\xB0\x80\xE1\x86\xA8", 0xAC01);              /* of two */
    FOLDS("\xEA\xB0\x80\xE1\x86\xA7", 0xAC00, 0x11A7);      /* what is no tail */
    FOLDS("a\xCC\x95\xCC\x80", 0xE0, 0x315); /* marks are put in order, then meet their letter */
    FOLDS("a\xCC\x81\xCC\x81", 0xE1, 0x301); /* only one of a class does */
    FOLDS("\xCC\x81"
          "a",
          0x301, 'a');
    FOLDS("\xE2\x84\xAB", 0xE5);         /* Angstrom's sign */
    FOLDS("\xE0\xA5\x98", 0x915, 0x93C); /* excluded from composition */
}

static void test_folding_of_other_than_text(void **state) {
    static const char *const bad[] = {"\x80", "a\xC3", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                                      "\xFF"};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        icma_characters found;
        assert_int_equal(icma_unicode_fold(bad[i], strlen(bad[i]), &found, NULL), ICMA_E_FORMAT);
        assert_null(found.list);
    }
}

/* --- tokens
 * -------------------------------------------------------------------------------------------------- */

enum { START = 900, END = 901 };

static const char *config_text, *map_text; /* of the next tokenizers; NULL: none */

static icma_token_file file_of(const char *text, const char *name) {
    return text ? (icma_token_file){text, strlen(text), name} : (icma_token_file){0};
}

static icma_status parse_files(const void *vocabulary, size_t size, const char *merges, icma_tokenizer **out,
                               icma_error *error) {
    icma_tokenizer_files files = {{vocabulary, size, "vocab.json"},
                                  file_of(merges, "merges.txt"),
                                  file_of(config_text, "tokenizer_config.json"),
                                  file_of(map_text, "special_tokens_map.json")};
    return icma_tokenizer_parse(&files, out, error);
}

/* Printable ASCII is 33 + c, at the end of a word 200 more; then what is given. */
static icma_tokenizer *make(const char *more, const char *merges) {
    icma_buffer vocabulary = {0};
    icma_tokenizer *tokenizer;
    icma_error error = {0};
    char text[64];
    icma_write_bytes(&vocabulary, "{", 1);
    for (int c = '!'; c <= '~'; c++) {
        const char *escape = c == '"' || c == '\\' ? "\\" : "";
        int length =
            snprintf(text, sizeof text, "\"%s%c\":%d,\"%s%c</w>\":%d,", escape, c, c, escape, c, c + 200);
        icma_write_bytes(&vocabulary, text, (size_t)length);
    }
    icma_write_bytes(&vocabulary, more, strlen(more));
    int length = snprintf(text, sizeof text, "\"<|startoftext|>\":%d,\"<|endoftext|>\":%d}", START, END);
    icma_write_bytes(&vocabulary, text, (size_t)length);
    icma_status status = parse_files(vocabulary.data, vocabulary.size, merges, &tokenizer, &error);
    icma_buffer_free(&vocabulary);
    if (status)
        fail_msg("%s: %s", error.file, error.message);
    assert_int_equal(icma_tokenizer_size(tokenizer), END + 1);
    assert_int_equal(icma_tokenizer_end(tokenizer), END);
    return tokenizer;
}

static void encodes(const icma_tokenizer *tokenizer, const char *text, const uint32_t *wanted, size_t count) {
    uint32_t ids[64];
    size_t found;
    assert_int_equal(icma_tokenizer_encode(tokenizer, text, 64, ids, &found, NULL), ICMA_OK);
    assert_int_equal(found, count + 2);
    assert_int_equal(ids[0], START);
    assert_int_equal(ids[found - 1], END);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(ids[i + 1], wanted[i]);
}
#define ENCODES(text, ...)                                                                                   \
    encodes(t, text, (const uint32_t[]){__VA_ARGS__},                                                        \
            sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))
#define LAST(c) ((c) + 200)

static void test_words(void **state) {
    icma_tokenizer *t = make("", "#version\n");
    (void)state;
    encodes(t, "", NULL, 0);
    encodes(t, " \t\n", NULL, 0);
    ENCODES("aB c", 'a', LAST('b'), LAST('c'));
    ENCODES("a12b", LAST('a'), LAST('1'), LAST('2'), LAST('b'));
    ENCODES("a!?b", LAST('a'), '!', LAST('?'), LAST('b'));
    ENCODES("it's", 'i', LAST('t'), '\'', LAST('s'));
    ENCODES("'re'x", '\'', 'r', LAST('e'), LAST('\''), LAST('x'));
    ENCODES("'LL", '\'', 'l', LAST('l'));
    ENCODES("!'s", '!', LAST('\''), LAST('s')); /* the run began before the apostrophe */
    ENCODES("\xC3\xA9", END, END);              /* bytes that the vocabulary does not have */
    icma_tokenizer_close(t);
}

static void test_special_tokens(void **state) {
    icma_tokenizer *t = make("", "#version\n");
    (void)state;
    ENCODES("a<|endoftext|>b", LAST('a'), END, LAST('b'));
    ENCODES("<|STARTOFTEXT|><|EndOfText|>", START, END);
    ENCODES("<|endoftext", '<', LAST('|'), 'e', 'n', 'd', 'o', 'f', 't', 'e', 'x', LAST('t'));
    icma_tokenizer_close(t);
}

/* What transformers makes of these files: tests/interop/test_embed.py. */
static void test_other_special_tokens(void **state) {
    icma_tokenizer *t;
    (void)state;
    map_text = "{\"pad_token\":\"!\",\"bos_token\":{\"content\":\"<|startoftext|>\",\"normalized\":true},"
               "\"cls_token\":\"zzz\"}";
    t = make("", "#version\n");
    ENCODES("a!!b", LAST('a'), '!', '!', LAST('b'));
    ENCODES("<|STARTOFTEXT|>", START);
    icma_tokenizer_close(t);
    map_text = "{\"eos_token\":{\"content\":\"<|endoftext|>\",\"normalized\":false}}";
    t = make("", "#version\n");
    ENCODES("a<|endoftext|>B<|ENDOFTEXT", LAST('a'), END, LAST('b'), '<', LAST('|'), 'e', 'n', 'd', 'o', 'f',
            't', 'e', 'x', LAST('t'));
    icma_tokenizer_close(t);
    config_text =
        "{\"added_tokens_decoder\":{\"33\":{\"content\":\"!\",\"normalized\":true}},\"pad_token\":\"!\"}";
    t = make("", "#version\n"); /* the map is not heeded */
    ENCODES("a!<|ENDOFTEXT|>", LAST('a'), '!', END);
    icma_tokenizer_close(t);
    config_text = map_text = NULL;
}

static void test_merges(void **state) {
    static const char more[] = "\"ab\":500,\"bc\":501,\"abc\":502,\"bc</w>\":503,\"abc</"
                               "w>\":504,\"aa\":505,\"aaaa\":506,\"aa</w>\":507,\"aaaa</w>\":508,";
    icma_tokenizer *t = make(more, "#version\nb c</w>\na b\na bc</w>\na a\na a</w>\naa aa\naa aa</w>\n");
    (void)state;
    ENCODES("abc", 504);
    ENCODES("abd", 500, LAST('d'));
    ENCODES("aaaa", 508);
    ENCODES("aaa", 505, LAST('a')); /* the leftmost first */
    ENCODES("aaaaaaaa", 506, 508);
    icma_tokenizer_close(t);
    /* The first of equal lines counts: "a b" comes before "b c". */
    t = make(more, "#version\na b\nb c\na b\n");
    ENCODES("abcd", 500, 'c', LAST('d'));
    icma_tokenizer_close(t);
    t = make(more, "\n#version\r\nb c\r\na b\r\n\r\n");
    ENCODES("abcd", 'a', 501, LAST('d'));
    icma_tokenizer_close(t);
}

static void test_truncation(void **state) {
    icma_tokenizer *t = make("", "#version\n");
    uint32_t ids[4] = {0};
    size_t count;
    (void)state;
    assert_int_equal(icma_tokenizer_encode(t, "abcdef", 4, ids, &count, NULL), ICMA_OK);
    assert_int_equal(count, 4);
    assert_int_equal(ids[2], 'b');
    assert_int_equal(ids[3], END);
    assert_int_equal(icma_tokenizer_encode(t, "abcdef", 2, ids, &count, NULL), ICMA_OK);
    assert_int_equal(count, 2);
    assert_int_equal(ids[1], END);
    icma_tokenizer_close(t);
}

/* --- damage
 * -------------------------------------------------------------------------------------------------- */

static icma_status parse(const char *vocabulary, const char *merges) {
    icma_tokenizer *tokenizer;
    icma_error error = {0};
    icma_status status = parse_files(vocabulary, strlen(vocabulary), merges, &tokenizer, &error);
    assert_true((status == ICMA_OK) == (tokenizer != NULL));
    assert_true(status == ICMA_OK || error.file[0]);
    icma_tokenizer_close(tokenizer);
    return status;
}

static void test_damage(void **state) {
#define BOTH "\"<|startoftext|>\":1,\"<|endoftext|>\":2"
    (void)state;
    assert_int_equal(parse("{" BOTH "}", ""), ICMA_OK);
    assert_int_equal(parse("{" BOTH "}", "#version: 0.2"), ICMA_OK);
    assert_int_equal(parse("", ""), ICMA_E_CORRUPT);
    assert_int_equal(parse("{\"<|startoftext|>\":1}", ""), ICMA_E_CORRUPT);
    assert_int_equal(parse("{\"<|endoftext|>\":1}", ""), ICMA_E_CORRUPT);
    assert_int_equal(parse("[" BOTH "]", ""), ICMA_E_CORRUPT);
    assert_int_equal(parse("[1]", ""), ICMA_E_CORRUPT);
    assert_int_equal(parse("{" BOTH ",\"a\":\"b\"}", ""), ICMA_E_CORRUPT);
    assert_int_equal(parse("{" BOTH ",\"a\":1.5}", ""), ICMA_E_CORRUPT);
    assert_int_equal(parse("{" BOTH ",\"a\":1,\"a\":2}", ""), ICMA_E_CORRUPT);
    assert_int_equal(parse("{" BOTH ",\"a\":1048576}", ""), ICMA_E_LIMIT);
    assert_int_equal(parse("{" BOTH ",\"a\":3}", "#version\na\n"), ICMA_E_CORRUPT);
    assert_int_equal(parse("{" BOTH ",\"a\":3}", "#version\na a a\n"), ICMA_E_CORRUPT);
    assert_int_equal(parse("{" BOTH ",\"a\":3}", "#version\na a\n"), ICMA_E_CORRUPT);
    config_text = "{";
    assert_int_equal(parse("{" BOTH "}", ""), ICMA_E_CORRUPT);
    config_text = "{\"pad_token\":{\"content\":\"<|endoftext|>\",\"rstrip\":true}}";
    assert_int_equal(parse("{" BOTH "}", ""), ICMA_E_UNSUPPORTED);
    config_text = "[3]";
    assert_int_equal(parse("{" BOTH "}", ""), ICMA_OK);
    config_text = "{\"pad_token\":3,\"cls_token\":{},\"additional_special_tokens\":{\"a\":[]},\"added_tokens_"
                  "decoder\":[]}";
    assert_int_equal(parse("{" BOTH "}", ""), ICMA_OK);
    config_text = NULL;
    assert_int_equal(parse("{" BOTH ",\"a\":3,\"aa\":4}", "#version\na a\n"), ICMA_OK);
    assert_int_equal(parse("{" BOTH ",\"a\":3,\"aa\":4}", "#version\na a\n\na a\n"), ICMA_E_CORRUPT);
}

/* One word of all that a text may have, which merges from the left; marks in the worst order. Quadratic work
 * would take minutes. */
static void test_long(void **state) {
    icma_tokenizer *t = make("\"aa\":505,\"aaa\":506,", "#version\na a\naa a\n");
    char *text = calloc(1, ICMA_MOST_TEXT + 3);
    uint32_t ids[77];
    size_t count;
    (void)state;
    memset(text, 'a', ICMA_MOST_TEXT);
    assert_int_equal(icma_tokenizer_encode(t, text, 77, ids, &count, NULL), ICMA_OK);
    assert_int_equal(count, 77);
    text[ICMA_MOST_TEXT] = 'a';
    assert_int_equal(icma_tokenizer_encode(t, text, 77, ids, &count, NULL), ICMA_E_LIMIT);
    text[ICMA_MOST_TEXT] = '\0';
    for (size_t i = 0; i + 4 <= ICMA_MOST_TEXT; i += 4)
        memcpy(text + i, "\xCC\x81\xCC\xA3", 4); /* acute above (230), dot below (220) */
    assert_int_equal(icma_tokenizer_encode(t, text, 77, ids, &count, NULL), ICMA_OK);
    free(text);
    icma_tokenizer_close(t);
}

static icma_status whole(void) {
    map_text = "{\"pad_token\":\"aa\"}";
    static const char vocabulary[] = "{" BOTH ",\"a\":3,\"aa\":4,\"a</w>\":5}", merges[] = "#version\na a\n";
    icma_tokenizer *t;
    uint32_t ids[8];
    size_t count;
    icma_status status = parse_files(vocabulary, strlen(vocabulary), merges, &t, NULL);
    if (!status)
        status = icma_tokenizer_encode(t, "aaa \xC3\xA9", 8, ids, &count, NULL);
    icma_tokenizer_close(t);
    return status;
}

static void test_memory(void **state) {
    (void)state;
    support_fail_each_allocation(whole, 5, 200);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_folding),
        cmocka_unit_test(test_folding_of_other_than_text),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_other_special_tokens),
        cmocka_unit_test(test_merges),
        cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_long),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
