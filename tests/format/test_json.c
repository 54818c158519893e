/* SPDX-License-Identifier: Apache-2.0 */
#include "json.h"
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LITERAL(text) text, sizeof text - 1

typedef struct vector {
    const char *name;
    const char *text;
    size_t size;
    icma_status wanted;
    unsigned max_depth; /* 0 stands for 4 */
    bool plain;
} vector;

#define GOOD(name, text)                                                                                     \
    { name, LITERAL(text), ICMA_OK, 0, false }
#define BAD(name, text)                                                                                      \
    { name, LITERAL(text), ICMA_E_CORRUPT, 0, false }
#define PLAIN_GOOD(name, text)                                                                               \
    { name, LITERAL(text), ICMA_OK, 0, true }
#define PLAIN_BAD(name, text)                                                                                \
    { name, LITERAL(text), ICMA_E_CORRUPT, 0, true }

static const vector vectors[] = {
    GOOD("an empty object", "{}"),
    GOOD("an empty array", "[]"),
    GOOD("a bare scalar", " 1 "),
    GOOD("white space of all four kinds", " \t\r\n{ \"a\" :\n[ 1 ,2 ] } \n"),
    GOOD("words", "[true,false,null]"),
    GOOD("every short escape", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""),
    GOOD("a surrogate pair", "\"\\ud83d\\ude00\""),
    GOOD("upper and lower hexadecimal", "\"\\u00aF\\uABcd\""),
    GOOD("UTF-8 of two, three and four bytes", "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\""),
    GOOD("the ends of UTF-8's ranges",
         "\"\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\""),
    GOOD("escapes around the surrogates", "\"\\ud7ff\\ue000\\uffff\""),
    GOOD("the last code point", "\"\xf4\x8f\xbf\xbf\""),
    GOOD("DEL", "\"\x7f\""),
    GOOD("numbers", "[0,-0,1.5,-2e3,1E+2,1e-5,0.0e0]"),
    GOOD("a very small number", "1e-400"),
    GOOD("the largest magnitude", "9.9e307"),
    GOOD("63 digits", "123456789012345678901234567890123456789012345678901234567890123"),
    GOOD("the same key in two objects", "[{\"a\":1},{\"a\":1,\"b\":{\"a\":2}}]"),
    GOOD("keys that differ by case", "{\"a\":1,\"A\":2}"),
    GOOD("an empty key", "{\"\":1}"),
    GOOD("NUL in hexadecimal elsewhere", "\"\\u0001\""),

    BAD("nothing", ""),
    BAD("white space only", " \n"),
    BAD("a byte order mark", "\xef\xbb\xbf{}"),
    BAD("something after the value", "{} {}"),
    BAD("a NUL after the value", "{}\0"),
    BAD("form feed as white space", "\f{}"),
    BAD("a byte that cJSON takes for white space", "[\x01]"),
    BAD("an object without an end", "{\"a\":1"),
    BAD("an array without an end", "[1"),
    BAD("a string without an end", "\"abc"),
    BAD("a string that ends in a backslash", "\"abc\\"),
    BAD("mismatched brackets", "[1}"),
    BAD("mismatched braces", "{\"a\":1]"),
    BAD("a trailing comma in an array", "[1,]"),
    BAD("a trailing comma in an object", "{\"a\":1,}"),
    BAD("a leading comma", "[,1]"),
    BAD("a missing comma", "[1 2]"),
    BAD("a missing colon", "{\"a\" 1}"),
    BAD("a missing value", "{\"a\":}"),
    BAD("a key that is no string", "{1:2}"),
    BAD("a key without quotes", "{a:2}"),
    BAD("single quotes", "{'a':2}"),
    BAD("a comment", "[1/*x*/]"),
    BAD("a closing bracket alone", "]"),
    BAD("a misspelt word", "nul"),
    BAD("a word in capitals", "True"),
    BAD("NaN", "NaN"),
    BAD("infinity", "-Infinity"),
    BAD("a plus sign", "+1"),
    BAD("a minus sign alone", "-"),
    BAD("a leading zero", "01"),
    BAD("a negative leading zero", "-01"),
    BAD("hexadecimal", "0x10"),
    BAD("a point without digits", "1."),
    BAD("a point without digits before it", ".5"),
    BAD("e without digits", "1e"),
    BAD("e and sign without digits", "1e+"),
    BAD("a number too large", "1e308"),
    BAD("a number far too large", "1e999999999999999999999"),
    BAD("a zero with a huge exponent", "0e999"),
    BAD("64 digits", "1234567890123456789012345678901234567890123456789012345678901234"),
    BAD("a raw control character", "\"a\nb\""),
    BAD("a raw NUL", "\"a\0b\""),
    BAD("an escaped NUL", "\"\\u0000\""),
    BAD("an unknown escape", "\"\\x41\""),
    BAD("an escape of NUL", "\"\\\0\""),
    BAD("too few hexadecimal digits", "\"\\u12\""),
    BAD("no hexadecimal digits", "\"\\u12g4\""),
    BAD("a lone high surrogate", "\"\\ud83d\""),
    BAD("a high surrogate before text", "\"\\ud83dx\""),
    BAD("a lone low surrogate", "\"\\ude00\""),
    BAD("two high surrogates", "\"\\ud83d\\ud83d\""),
    BAD("a high surrogate at the end of the text", "\"\\ud83d"),
    BAD("a continuation byte alone", "\"\x80\""),
    BAD("overlong two bytes", "\"\xc0\xaf\""),
    BAD("overlong three bytes", "\"\xe0\x80\xaf\""),
    BAD("overlong four bytes", "\"\xf0\x80\x80\xaf\""),
    BAD("a surrogate in UTF-8", "\"\xed\xa0\x80\""),
    BAD("beyond the last code point", "\"\xf4\x90\x80\x80\""),
    BAD("a byte that UTF-8 never has", "\"\xff\""),
    BAD("UTF-8 cut off by the quote", "\"\xe2\x82\""),
    BAD("UTF-8 cut off by the end", "\"\xe2\x82"),
    BAD("a key twice", "{\"a\":1,\"a\":1}"),
    BAD("a key twice, not side by side", "{\"a\":1,\"b\":2,\"c\":3,\"a\":4}"),
    BAD("a key twice after unescaping", "{\"a\":1,\"\\u0061\":2}"),
    BAD("a key twice by a surrogate pair", "{\"\xf0\x9f\x98\x80\":1,\"\\uD83D\\uDE00\":2}"),
    BAD("a key twice by three bytes", "{\"\xe2\x82\xac\":1,\"\\u20AC\":2}"),
    BAD("a high surrogate before another character", "\"\\ud83d\\u0041\""),
    BAD("a high surrogate before U+E000", "\"\\ud83d\\ue000\""),
    BAD("two bytes cut off", "\"\xc3(\""),
    BAD("a key twice by an escaped slash", "{\"/\":1,\"\\/\":2}"),
    BAD("an empty key twice", "{\"\":1,\"\":2}"),
    BAD("a key twice further in", "[{\"x\":{\"a\":1,\"a\":2}}]"),
    BAD("a key twice around an object", "{\"a\":{\"a\":1},\"a\":2}"),

    PLAIN_GOOD("plain: zero", "0"),
    PLAIN_GOOD("plain: 2^53 - 1", "9007199254740991"),
    PLAIN_BAD("plain: 2^53", "9007199254740992"),
    PLAIN_BAD("plain: 17 digits", "10000000000000000"),
    PLAIN_BAD("plain: minus zero", "-0"),
    PLAIN_BAD("plain: negative", "-1"),
    PLAIN_BAD("plain: a fraction", "1.0"),
    PLAIN_BAD("plain: an exponent", "1e2"),

    {"depth: as deep as allowed", LITERAL("[[[{}]]]"), ICMA_OK, 4, false},
    {"depth: one deeper", LITERAL("[[[[{}]]]]"), ICMA_E_LIMIT, 4, false},
    {"depth: wide but flat", LITERAL("[[],[],[[]]]"), ICMA_OK, 3, false},
};

static icma_json_rules rules_of(const vector *v) {
    return (icma_json_rules){v->max_depth ? v->max_depth : 4, v->plain};
}

static void every_vector(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        const vector *v = &vectors[i];
        icma_error error = {0};
        cJSON *root = (cJSON *)1;
        /* a copy without a NUL behind it, so that a sanitizer sees reads beyond the end */
        char *text = malloc(v->size ? v->size : 1);
        memcpy(text, v->text, v->size);
        icma_status checked = icma_json_check(text, v->size, rules_of(v), NULL);
        icma_status parsed = icma_json_parse(text, v->size, rules_of(v), &root, &error);
        if (checked != v->wanted || parsed != v->wanted || (root != NULL) != (parsed == ICMA_OK))
            fail_msg("%s: %s, %s", v->name, icma_status_name(parsed), error.message);
        cJSON_Delete(root);
        free(text);
    }
}

static void every_prefix_of_a_text_fails(void **state) {
    (void)state;
    static const char text[] = "{\"a\\u00e9\":[1,-2.5e1,\"\xe2\x82\xac\\ud83d\\ude00\",true,null],\"b\":{}}";
    for (size_t size = 0; size < sizeof text - 1; size++)
        assert_status(icma_json_check(text, size, (icma_json_rules){3, false}, NULL), ICMA_E_CORRUPT);
    assert_status(icma_json_check(text, sizeof text - 1, (icma_json_rules){3, false}, NULL), ICMA_OK);
}

static void depth_at_the_limit_and_beyond(void **state) {
    (void)state;
    char text[2 * 2000];
    for (unsigned depth = 1; depth < 2000; depth = depth * 2 + 1) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        unsigned allowed = depth < ICMA_JSON_MAX_DEPTH ? depth : ICMA_JSON_MAX_DEPTH;
        icma_status wanted = depth <= ICMA_JSON_MAX_DEPTH ? ICMA_OK : ICMA_E_LIMIT;
        assert_int_equal(icma_json_check(text, 2 * depth, (icma_json_rules){depth, false}, NULL), wanted);
        assert_status(icma_json_check(text, 2 * depth, (icma_json_rules){allowed - 1, false}, NULL),
                      ICMA_E_LIMIT);
    }
    for (int beyond = 0; beyond < 2; beyond++) {
        unsigned depth = ICMA_JSON_MAX_DEPTH + beyond;
        cJSON *root;
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        icma_status status =
            icma_json_parse(text, 2 * depth, (icma_json_rules){UINT32_MAX, false}, &root, NULL);
        assert_int_equal(status, beyond ? ICMA_E_LIMIT : ICMA_OK);
        cJSON_Delete(root);
    }
    assert_status(icma_json_check("[]", 2, (icma_json_rules){0, false}, NULL), ICMA_E_LIMIT);
    assert_status(icma_json_check("1", 1, (icma_json_rules){0, false}, NULL), ICMA_OK);
}

static void as_many_values_as_allowed(void **state) {
    (void)state;
    size_t values = ICMA_JSON_MAX_VALUES; /* the array itself is one of them */
    char *text = malloc(2 * values + 2);
    text[0] = '[';
    for (size_t i = 0; i < values; i++)
        memcpy(text + 1 + 2 * i, "1,", 2);
    text[2 * (values - 1)] = ']';
    assert_status(icma_json_check(text, 2 * values - 1, (icma_json_rules){1, true}, NULL), ICMA_OK);
    text[2 * (values - 1)] = ',';
    text[2 * values] = ']';
    assert_status(icma_json_check(text, 2 * values + 1, (icma_json_rules){1, true}, NULL), ICMA_E_LIMIT);
    free(text);
}

static void many_keys_are_compared(void **state) {
    (void)state;
    enum { KEYS = 50000 };
    char *text = malloc(KEYS * 16 + 32);
    size_t size = 0;
    text[size++] = '{';
    for (int i = 0; i < KEYS; i++)
        size += (size_t)sprintf(text + size, "\"k%d\":0,", i * 7919 % KEYS);
    size_t last = size;
    size += (size_t)sprintf(text + last, "\"end\":0}");
    assert_status(icma_json_check(text, size, (icma_json_rules){1, false}, NULL), ICMA_OK);
    size = last + (size_t)sprintf(text + last, "\"k\\u0031234\":0}");
    assert_status(icma_json_check(text, size, (icma_json_rules){1, false}, NULL), ICMA_E_CORRUPT);
    free(text);
}

static void values_arrive(void **state) {
    (void)state;
    static const char text[] = "{\"k\\u00e9\":\"\\ud83d\\ude00\\n\",\"n\":9007199254740991}";
    cJSON *root;
    uint64_t whole;
    assert_status(icma_json_parse(text, sizeof text - 1, (icma_json_rules){1, true}, &root, NULL), ICMA_OK);
    assert_string_equal(root->child->string, "k\xc3\xa9");
    assert_string_equal(root->child->valuestring, "\xf0\x9f\x98\x80\n");
    assert_false(icma_json_whole(root->child, &whole));
    assert_true(icma_json_whole(root->child->next, &whole));
    assert_true(whole == UINT64_C(9007199254740991));
    cJSON_Delete(root);
}

static void whole_numbers(void **state) {
    (void)state;
    static const struct {
        double value;
        bool whole;
    } cases[] = {{0, true},    {1, true},      {0x1p53 - 1, true}, {0x1p53, false},    {-1, false},
                 {0.5, false}, {1e300, false}, {NAN, false},       {-INFINITY, false}, {4096, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cJSON item = {.type = cJSON_Number, .valuedouble = cases[i].value};
        uint64_t value;
        assert_int_equal(icma_json_whole(&item, &value), cases[i].whole);
        assert_true(!cases[i].whole || (double)value == cases[i].value);
    }
    assert_false(icma_json_whole(NULL, NULL));
}

static void errors_tell_the_place(void **state) {
    (void)state;
    icma_error error = {0};
    icma_json_check("[1,2,x]", 7, (icma_json_rules){1, false}, &error);
    assert_non_null(strstr(error.message, "byte 5"));
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    static const char text[] = "{\"a\":[1,\"two\",{\"three\":null}],\"b\":\"\\u00e9\"}";
    for (int for_good = 0; for_good < 2; for_good++) {
        for (size_t k = 0;; k++) {
            cJSON *root;
            icma_error error = {0};
            failing_allocator(k, for_good);
            icma_status status =
                icma_json_parse(text, sizeof text - 1, (icma_json_rules){3, false}, &root, &error);
            bool failed = allocation_failed();
            cJSON_Delete(root);
            assert_int_equal(live_allocations(), 0);
            plain_allocator();
            assert_int_equal(status, failed ? ICMA_E_MEMORY : ICMA_OK);
            if (!failed)
                break;
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_vector),
        cmocka_unit_test(every_prefix_of_a_text_fails),
        cmocka_unit_test(depth_at_the_limit_and_beyond),
        cmocka_unit_test(as_many_values_as_allowed),
        cmocka_unit_test(many_keys_are_compared),
        cmocka_unit_test(values_arrive),
        cmocka_unit_test(whole_numbers),
        cmocka_unit_test(errors_tell_the_place),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
