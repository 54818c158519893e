/* SPDX-License-Identifier: Apache-2.0 */
/* Metadata of safetensors headers, and headers that are written. */
#include "memory.h"
#include "safetensors_write.h"
#include "support.h"

#include <stdlib.h>
#include <string.h>

static const char header[] =
    "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}, \"__metadata__\" : {\"a\":\"1\" , "
    "\"b\\u00e9\":\"x\\\"}\", \"c\":\"\"},\"u\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}   ";

static void reads_and_sets(void **state) {
    icma_metadata m;
    (void)state;
    assert_status(icma_metadata_read(header, strlen(header), &m, NULL), ICMA_OK);
    assert_true(m.present);
    assert_int_equal(m.count, 3);
    assert_string_equal(icma_metadata_find(&m, "b\xc3\xa9"), "x\"}");
    assert_string_equal(icma_metadata_find(&m, "c"), "");
    assert_null(icma_metadata_find(&m, "t"));
    assert_status(icma_metadata_set(&m, "a", "2", NULL), ICMA_OK);
    assert_status(icma_metadata_set(&m, "d", "4", NULL), ICMA_OK);
    assert_status(icma_metadata_set(&m, "c", NULL, NULL), ICMA_OK);
    assert_status(icma_metadata_set(&m, "none", NULL, NULL), ICMA_OK);
    assert_int_equal(m.count, 3);
    assert_string_equal(m.list[0].value, "2");
    assert_string_equal(m.list[2].key, "d");
    icma_metadata_free(&m);
    assert_status(icma_metadata_read("{}", 2, &m, NULL), ICMA_OK);
    assert_false(m.present);
    icma_metadata_free(&m);
}

static const char *cut(const char *text, const char *const *keys, size_t wanted) {
    static char copy[1024];
    icma_buffer out = {0};
    size_t count;
    icma_write_bytes(&out, "kept", 4);
    assert_status(icma_metadata_cut(text, strlen(text), keys, &out, &count, NULL), ICMA_OK);
    assert_int_equal(count, wanted);
    assert_true(out.size < sizeof copy);
    memcpy(copy, out.data, out.size);
    copy[out.size] = '\0';
    icma_buffer_free(&out);
    assert_memory_equal(copy, "kept", 4);
    assert_int_equal((strlen(copy) - 4) % 8, 0);
    return copy + 4;
}

static void cuts(void **state) {
    const char *const first[] = {"a", NULL}, *const middle[] = {"b\xc3\xa9", NULL},
                      *const last[] = {"c", "u", NULL}, *const all[] = {"c", "a", "b\xc3\xa9", NULL};
    (void)state;
    assert_string_equal(cut(header, first, 1),
                        "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}, \"__metadata__\" : "
                        "{\"b\\u00e9\":\"x\\\"}\",\"c\":\"\"},"
                        "\"u\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}   ");
    assert_non_null(strstr(cut(header, middle, 1), "{\"a\":\"1\",\"c\":\"\"},\"u\""));
    assert_non_null(strstr(cut(header, last, 1), "{\"a\":\"1\",\"b\\u00e9\":\"x\\\"}\"},\"u\""));
    assert_non_null(strstr(cut(header, all, 3), "\"__metadata__\" : {},\"u\""));
    const char *const none[] = {"t", "zz", NULL};
    assert_string_equal(cut(header, none, 0), "");
    assert_string_equal(cut("{\"a\":1}", first, 0), "");
}

/* What is written is read again, and reads alike. */
static void writes(void **state) {
    static const uint8_t bytes[] = {1, 2, 3, 4, 5, 6, 7};
    icma_tensor_draft drafts[] = {
        {.name = "b", .dtype = ICMA_U8, .rank = 1, .shape = {3}, .data = bytes, .size = 3},
        {.name = "q\"\n\x01\xc3\xa9", .dtype = ICMA_F32, .data = bytes + 3, .size = 4},
        {.name = "a", .dtype = ICMA_U8, .rank = 2, .shape = {0, 5}}};
    icma_metadata m = {0};
    icma_safetensors read;
    const uint8_t *data;
    uint8_t *image;
    size_t size;
    (void)state;
    assert_status(icma_metadata_set(&m, "k\\", "v\t\x1f", NULL), ICMA_OK);
    assert_status(icma_metadata_set(&m, "ss_x", "y", NULL), ICMA_OK);
    assert_status(icma_drafts_sort(drafts, 3, NULL), ICMA_OK);
    assert_status(icma_drafts_compose(drafts, 3, &m, &image, &size, NULL), ICMA_OK);
    assert_status(icma_safetensors_view(image, size, &read, &data, NULL), ICMA_OK);
    static const char wanted[] =
        "{\"__metadata__\":{\"k\\\\\":\"v\\t\\u001f\",\"ss_x\":\"y\"},\"q\\\"\\n\\u0001\xc3\xa9\":{\"dtype\":"
        "\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
        "\"a\":{\"dtype\":\"U8\",\"shape\":[0,5],\"data_offsets\":[4,4]},\"b\":{\"dtype\":\"U8\",\"shape\":["
        "3],\"data_offsets\":[4,7]}}";
    assert_memory_equal(read.header, wanted, strlen(wanted));
    assert_int_equal(read.header_size % 8, 0);
    assert_memory_equal(data, "\4\5\6\7\1\2\3", 7);
    icma_safetensors_free(&read);
    icma_free(image);
    icma_buffer part = {0};
    assert_status(icma_drafts_header(drafts, 0, &m, "ss_", &part, NULL), ICMA_OK);
    assert_memory_equal(part.data + 8, "{\"__metadata__\":{\"ss_x\":\"y\"}}   ", 32);
    icma_buffer_free(&part);
    icma_metadata_free(&m);
}

static void names_twice(void **state) {
    icma_tensor_draft drafts[] = {
        {.name = "a", .dtype = ICMA_U8}, {.name = "b", .dtype = ICMA_F32}, {.name = "a", .dtype = ICMA_F32}};
    (void)state;
    assert_status(icma_drafts_sort(drafts, 3, NULL), ICMA_E_UNSUPPORTED);
    assert_status(icma_drafts_sort(drafts, 2, NULL), ICMA_OK);
}

/* Every allocation that fails is told, and nothing leaks. */
static void without_memory(void **state) {
    (void)state;
    bool failed = true;
    for (size_t k = 0; failed; k++) {
        icma_metadata m;
        icma_buffer out = {0};
        const char *const keys[] = {"a", NULL};
        size_t count;
        failing_allocator(k, false);
        icma_status status = icma_metadata_read(header, strlen(header), &m, NULL);
        if (!status)
            status = icma_metadata_cut(header, strlen(header), keys, &out, &count, NULL);
        failed = allocation_failed();
        icma_buffer_free(&out);
        icma_metadata_free(&m);
        assert_int_equal(live_allocations(), 0);
        plain_allocator();
        assert_int_equal(status != ICMA_OK, failed);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(reads_and_sets), cmocka_unit_test(cuts),
                                       cmocka_unit_test(writes), cmocka_unit_test(names_twice),
                                       cmocka_unit_test(without_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
