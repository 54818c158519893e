/* SPDX-License-Identifier: Apache-2.0 */
#include "bytes.h"
#include "memory.h"
#include "safetensors.h"
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A header with one tensor "t". */
#define ONE(dtype, shape, begin, end)                                                                        \
    "{\"t\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}}"
#define T(name, shape, begin, end)                                                                           \
    "\"" name "\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

typedef struct vector {
    const char *name;
    const char *header;
    size_t data_size;
    icma_status wanted;
} vector;

static const vector vectors[] = {
    {"good: no tensors", "{}", 0, ICMA_OK},
    {"good: metadata only", "{\"__metadata__\":{}}", 0, ICMA_OK},
    {"good: metadata with strings", "{\"__metadata__\":{\"format\":\"pt\",\"\":\"\"}}", 0, ICMA_OK},
    {"good: padded with spaces", ONE("F32", "[2]", "0", "8") "       ", 8, ICMA_OK},
    {"good: padded with newlines", "{}\n\n", 0, ICMA_OK},
    {"good: rank 0", ONE("F32", "[]", "0", "4"), 4, ICMA_OK},
    {"good: rank 8", ONE("F32", "[1,2,1,1,1,1,1,1]", "0", "8"), 8, ICMA_OK},
    {"good: zero elements", ONE("F32", "[0]", "0", "0"), 0, ICMA_OK},
    {"good: zero elements, then overflow undone",
     ONE("F32", "[0,9007199254740991,9007199254740991]", "0", "0"), 0, ICMA_OK},
    {"good: two in order", "{" T("a", "[1]", "0", "4") "," T("b", "[1]", "4", "8") "}", 8, ICMA_OK},
    {"good: two in another order", "{" T("a", "[1]", "4", "8") "," T("b", "[1]", "0", "4") "}", 8, ICMA_OK},
    {"good: an empty one between",
     "{" T("a", "[1]", "0", "4") "," T("e", "[0]", "4", "4") "," T("b", "[1]", "4", "8") "}", 8, ICMA_OK},
    {"good: an empty one at the end", "{" T("a", "[1]", "0", "4") "," T("e", "[2,0]", "4", "4") "}", 4,
     ICMA_OK},
    {"good: fields in another order", "{\"t\":{\"data_offsets\":[0,1],\"shape\":[1],\"dtype\":\"U8\"}}", 1,
     ICMA_OK},
    {"good: an empty name", "{" T("", "[1]", "0", "4") "}", 4, ICMA_OK},
    {"good: a name in UTF-8", "{" T("\xc3\xa9\\u00e8", "[1]", "0", "4") "}", 4, ICMA_OK},
    {"good: a name that only looks like metadata", "{" T("__Metadata__", "[1]", "0", "4") "}", 4, ICMA_OK},
    {"good: F4, two in a byte", ONE("F4", "[2]", "0", "1"), 1, ICMA_OK},
    {"good: F6, four in three bytes", ONE("F6_E2M3", "[4]", "0", "3"), 3, ICMA_OK},

    {"bad: not an object", "[]", 0, ICMA_E_CORRUPT},
    {"bad: white space first", " {}", 0, ICMA_E_CORRUPT},
    {"bad: empty", "", 0, ICMA_E_CORRUPT},
    {"bad: data without tensors", "{}", 1, ICMA_E_CORRUPT},
    {"bad: data missing", ONE("F32", "[2]", "0", "8"), 7, ICMA_E_CORRUPT},
    {"bad: data left over", ONE("F32", "[2]", "0", "8"), 9, ICMA_E_CORRUPT},
    {"bad: a hole at the start", ONE("F32", "[1]", "4", "8"), 8, ICMA_E_CORRUPT},
    {"bad: a hole between", "{" T("a", "[1]", "0", "4") "," T("b", "[1]", "8", "12") "}", 12, ICMA_E_CORRUPT},
    {"bad: an overlap", "{" T("a", "[2]", "0", "8") "," T("b", "[1]", "4", "8") "}", 8, ICMA_E_CORRUPT},
    {"bad: the same range twice", "{" T("a", "[1]", "0", "4") "," T("b", "[1]", "0", "4") "}", 4,
     ICMA_E_CORRUPT},
    {"bad: an empty one inside another", "{" T("a", "[2]", "0", "8") "," T("e", "[0]", "4", "4") "}", 8,
     ICMA_E_CORRUPT},
    {"bad: an empty one beyond the end", "{" T("a", "[1]", "0", "4") "," T("e", "[0]", "8", "8") "}", 4,
     ICMA_E_CORRUPT},
    {"bad: end before begin", ONE("F32", "[1]", "4", "0"), 4, ICMA_E_CORRUPT},
    {"bad: range too short", ONE("F32", "[2]", "0", "4"), 4, ICMA_E_CORRUPT},
    {"bad: range too long", ONE("F32", "[2]", "0", "12"), 12, ICMA_E_CORRUPT},
    {"bad: product overflows", ONE("F32", "[4294967296,4294967296]", "0", "0"), 0, ICMA_E_CORRUPT},
    {"bad: product overflows to the right size", ONE("U8", "[4294967296,4294967296,0]", "0", "0"), 0,
     ICMA_E_CORRUPT},
    {"bad: bits overflow", ONE("F64", "[1073741824,1073741824]", "0", "0"), 0, ICMA_E_CORRUPT},
    {"bad: half a byte", ONE("F4", "[3]", "0", "1"), 1, ICMA_E_CORRUPT},
    {"bad: half a byte, rounded up", ONE("F4", "[3]", "0", "2"), 2, ICMA_E_CORRUPT},
    {"bad: six bits", ONE("F6_E3M2", "[2]", "0", "2"), 2, ICMA_E_CORRUPT},
    {"bad: a negative size", ONE("F32", "[-1]", "0", "4"), 4, ICMA_E_CORRUPT},
    {"bad: a fractional size", ONE("F32", "[1.0]", "0", "4"), 4, ICMA_E_CORRUPT},
    {"bad: a size with an exponent", ONE("F32", "[1e0]", "0", "4"), 4, ICMA_E_CORRUPT},
    {"bad: a size of 2^53", ONE("F32", "[9007199254740992]", "0", "4"), 4, ICMA_E_CORRUPT},
    {"bad: a size as a string", ONE("F32", "[\"1\"]", "0", "4"), 4, ICMA_E_CORRUPT},
    {"bad: a size that is null", ONE("F32", "[null]", "0", "4"), 4, ICMA_E_CORRUPT},
    {"bad: a shape that is a number", ONE("F32", "1", "0", "4"), 4, ICMA_E_CORRUPT},
    {"bad: a shape that is an object", ONE("F32", "{\"0\":1}", "0", "4"), 4, ICMA_E_CORRUPT},
    {"bad: a negative offset", ONE("F32", "[1]", "-0", "4"), 4, ICMA_E_CORRUPT},
    {"bad: one offset", "{\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0]}}", 0, ICMA_E_CORRUPT},
    {"bad: three offsets", "{\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0,0]}}", 0,
     ICMA_E_CORRUPT},
    {"bad: a first offset that is a string",
     "{\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[\"0\",0]}}", 0, ICMA_E_CORRUPT},
    {"bad: a second offset that is null",
     "{\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,null]}}", 0, ICMA_E_CORRUPT},
    {"bad: no offsets", "{\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[]}}", 0, ICMA_E_CORRUPT},
    {"bad: offsets as a string", "{\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":\"00\"}}", 0,
     ICMA_E_CORRUPT},
    {"bad: dtype missing", "{\"t\":{\"shape\":[0],\"data_offsets\":[0,0]}}", 0, ICMA_E_CORRUPT},
    {"bad: shape missing", "{\"t\":{\"dtype\":\"U8\",\"data_offsets\":[0,0]}}", 0, ICMA_E_CORRUPT},
    {"bad: data_offsets missing", "{\"t\":{\"dtype\":\"U8\",\"shape\":[0]}}", 0, ICMA_E_CORRUPT},
    {"bad: an extra field", "{\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"x\":0}}", 0,
     ICMA_E_CORRUPT},
    {"bad: a field in capitals", "{\"t\":{\"Dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0,
     ICMA_E_CORRUPT},
    {"bad: dtype is a number", "{\"t\":{\"dtype\":8,\"shape\":[0],\"data_offsets\":[0,0]}}", 0,
     ICMA_E_CORRUPT},
    {"bad: a tensor that is an array", "{\"t\":[]}", 0, ICMA_E_CORRUPT},
    {"bad: a tensor that is null", "{\"t\":null}", 0, ICMA_E_CORRUPT},
    {"bad: an empty tensor object", "{\"t\":{}}", 0, ICMA_E_CORRUPT},
    {"bad: metadata with a number", "{\"__metadata__\":{\"a\":1}}", 0, ICMA_E_CORRUPT},
    {"bad: metadata with an object", "{\"__metadata__\":{\"a\":{}}}", 0, ICMA_E_CORRUPT},
    {"bad: metadata is a string", "{\"__metadata__\":\"x\"}", 0, ICMA_E_CORRUPT},
    {"bad: metadata is null", "{\"__metadata__\":null}", 0, ICMA_E_CORRUPT},
    {"bad: a tensor twice", "{" T("a", "[1]", "0", "4") "," T("a", "[1]", "0", "4") "}", 4, ICMA_E_CORRUPT},
    {"bad: a tensor twice after unescaping",
     "{" T("a", "[1]", "0", "4") "," T("\\u0061", "[1]", "4", "8") "}", 8, ICMA_E_CORRUPT},
    {"bad: a metadata key twice", "{\"__metadata__\":{\"a\":\"1\",\"a\":\"1\"}}", 0, ICMA_E_CORRUPT},
    {"bad: metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, ICMA_E_CORRUPT},
    {"bad: NUL in a name", "{" T("a\\u0000b", "[1]", "0", "4") "}", 4, ICMA_E_CORRUPT},
    {"bad: a lone surrogate in a name", "{" T("\\ud800", "[1]", "0", "4") "}", 4, ICMA_E_CORRUPT},
    {"bad: invalid UTF-8 in a name", "{" T("\xff", "[1]", "0", "4") "}", 4, ICMA_E_CORRUPT},
    {"bad: something after the object", "{}{}", 0, ICMA_E_CORRUPT},
    {"bad: cut off", "{\"t\":{\"dtype\":\"F32\"", 0, ICMA_E_CORRUPT},

    {"limit: rank 9", ONE("F32", "[1,1,1,1,1,1,1,1,1]", "0", "4"), 4, ICMA_E_LIMIT},
    {"limit: too deep", ONE("F32", "[[1]]", "0", "4"), 4, ICMA_E_LIMIT},
    {"unsupported: an unknown dtype", ONE("F128", "[1]", "0", "16"), 16, ICMA_E_UNSUPPORTED},
    {"unsupported: a dtype in lower case", ONE("f32", "[1]", "0", "4"), 4, ICMA_E_UNSUPPORTED},
    {"unsupported: an empty dtype", ONE("", "[1]", "0", "4"), 4, ICMA_E_UNSUPPORTED},
};

/* A whole file in memory, of exactly the right size for a sanitizer; data bytes count up. */
static uint8_t *make_image(const char *header, size_t header_size, size_t data_size, size_t *size) {
    *size = 8 + header_size + data_size;
    uint8_t *image = malloc(*size);
    icma_store_u64(image, header_size);
    memcpy(image + 8, header, header_size);
    for (size_t i = 0; i < data_size; i++)
        image[8 + header_size + i] = (uint8_t)i;
    return image;
}

static icma_status view(const char *header, size_t data_size, icma_safetensors *out, icma_error *error) {
    size_t size;
    const uint8_t *data;
    uint8_t *image = make_image(header, strlen(header), data_size, &size);
    icma_status status = icma_safetensors_view(image, size, out, &data, error);
    assert_true(status == ICMA_OK ? data == image + size - data_size : data == NULL);
    free(image);
    return status;
}

static void every_vector(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        const vector *v = &vectors[i];
        icma_safetensors seen;
        icma_error error = {0};
        icma_status status = view(v->header, v->data_size, &seen, &error);
        if (status != v->wanted)
            fail_msg("%s: %s, %s", v->name, icma_status_name(status), error.message);
        assert_true((status == ICMA_OK) == (error.status == ICMA_OK));
        if (status == ICMA_OK) {
            assert_int_equal(seen.header_size, strlen(v->header));
            assert_memory_equal(seen.header, v->header, seen.header_size);
            assert_true(seen.data_size == v->data_size);
            assert_true(icma_safetensors_data_offset(&seen) == 8 + seen.header_size);
        }
        icma_safetensors_free(&seen);
        assert_null(seen.tensors);
    }
}

static void every_dtype(void **state) {
    (void)state;
    for (int d = 0; d < ICMA_DTYPE_COUNT; d++) {
        char header[200];
        size_t size = icma_dtype_bits((icma_dtype)d) * 24 / 8;
        icma_safetensors seen;
        sprintf(header, "{\"t\":{\"dtype\":\"%s\",\"shape\":[4,6],\"data_offsets\":[0,%zu]}}",
                icma_dtype_name((icma_dtype)d), size);
        assert_status(view(header, size, &seen, NULL), ICMA_OK);
        assert_int_equal(seen.tensors[0].dtype, d);
        assert_int_equal(seen.tensors[0].count, 24);
        assert_int_equal(seen.tensors[0].size, size);
        icma_safetensors_free(&seen);
    }
}

static void tensors_come_in_data_order(void **state) {
    (void)state;
    static const char header[] = "{" T("z", "[0]", "4", "4") "," T("b", "[3]", "4", "16") "," T(
        "y", "[0,2]", "4", "4") "," T("\\u0061", "[]", "0", "4") "," T("e", "[0]", "16", "16") "}";
    static const char *const order[] = {"a", "z", "y", "b", "e"};
    icma_safetensors seen;
    assert_status(view(header, 16, &seen, NULL), ICMA_OK);
    assert_int_equal(seen.tensor_count, 5);
    for (size_t i = 0; i < 5; i++) {
        assert_string_equal(seen.tensors[i].name, order[i]);
        assert_int_equal(icma_safetensors_find(&seen, order[i]), i);
    }
    assert_true(icma_safetensors_find(&seen, "x") == SIZE_MAX);
    assert_true(icma_safetensors_find(&seen, "") == SIZE_MAX);
    assert_int_equal(seen.tensors[0].rank, 0);
    assert_int_equal(seen.tensors[0].count, 1);
    assert_int_equal(seen.tensors[3].begin, 4);
    assert_int_equal(seen.tensors[3].size, 12);
    icma_safetensors_free(&seen);
}

static void headers_alone_tell_the_data_size(void **state) {
    (void)state;
    static const char header[] = ONE("F32", "[5]", "0", "20");
    icma_safetensors seen;
    assert_status(icma_safetensors_parse_header(header, sizeof header - 1, &seen, NULL), ICMA_OK);
    assert_int_equal(seen.data_size, 20);
    icma_safetensors_free(&seen);
    assert_status(icma_safetensors_parse(header, sizeof header - 1, UINT64_MAX, &seen, NULL), ICMA_E_CORRUPT);
    static const char hole[] = ONE("F32", "[5]", "4", "24");
    assert_status(icma_safetensors_parse_header(hole, sizeof hole - 1, &seen, NULL), ICMA_E_CORRUPT);
}

static void signatures_ignore_metadata_and_order(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t data_size;
        bool same;
    } others[] = {
        {"{" T("b", "[1,1]", "4", "8") "," T("a", "[1]", "0", "4") ",\"__metadata__\":{\"x\":\"y\"}}", 8,
         true},
        {"{" T("a", "[1]", "0", "4") "," T("c", "[1,1]", "4", "8") "}", 8, false},
        {"{" T("a", "[1]", "0", "4") "," T("b", "[1]", "4", "8") "}", 8, false},
        {"{" T("b", "[1,1]", "0", "4") "," T("a", "[1]", "4", "8") "}", 8, false},
        {"{" T("a", "[1]", "0", "4") "}", 4, false},
        {"{" T("a", "[1]", "0", "4") ",\"b\":{\"dtype\":\"I32\",\"shape\":[1,1],\"data_offsets\":[4,8]}}", 8,
         false},
    };
    icma_safetensors base;
    assert_status(view("{" T("a", "[1]", "0", "4") "," T("b", "[1,1]", "4", "8") "}", 8, &base, NULL),
                  ICMA_OK);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        icma_safetensors other;
        assert_status(view(others[i].header, others[i].data_size, &other, NULL), ICMA_OK);
        assert_int_equal(icma_safetensors_same_signature(&base, &other), others[i].same);
        icma_safetensors_free(&other);
    }
    icma_safetensors_free(&base);
}

static void framing(void **state) {
    (void)state;
    icma_safetensors seen;
    const uint8_t *data;
    uint8_t image[16] = {0};
    for (size_t size = 0; size < 8; size++)
        assert_status(icma_safetensors_view(image, size, &seen, &data, NULL), ICMA_E_CORRUPT);
    assert_status(icma_safetensors_view(image, 8, &seen, &data, NULL), ICMA_E_CORRUPT);
    icma_store_u64(image, 9); /* one byte more than there is */
    assert_status(icma_safetensors_view(image, 16, &seen, &data, NULL), ICMA_E_CORRUPT);
    icma_store_u64(image, ICMA_MAX_HEADER);
    assert_status(icma_safetensors_view(image, 16, &seen, &data, NULL), ICMA_E_CORRUPT);
    icma_store_u64(image, ICMA_MAX_HEADER + UINT64_C(1));
    assert_status(icma_safetensors_view(image, 16, &seen, &data, NULL), ICMA_E_LIMIT);
    icma_store_u64(image, UINT64_MAX);
    assert_status(icma_safetensors_view(image, 16, &seen, &data, NULL), ICMA_E_LIMIT);
}

static void every_prefix_fails(void **state) {
    (void)state;
    static const char header[] = "{" T("a", "[1]", "0", "4") "," T("b", "[2]", "4", "12") "}  ";
    size_t size;
    const uint8_t *data;
    icma_safetensors seen;
    uint8_t *image = make_image(header, sizeof header - 1, 12, &size);
    for (size_t prefix = 0; prefix < size; prefix++) {
        uint8_t *cut = malloc(prefix ? prefix : 1);
        memcpy(cut, image, prefix);
        assert_status(icma_safetensors_view(cut, prefix, &seen, &data, NULL), ICMA_E_CORRUPT);
        free(cut);
    }
    free(image);
}

static void foreign_formats_get_advice(void **state) {
    (void)state;
    static const struct {
        const char *start;
        const char *word;
    } cases[] = {{"\x80\x02\x8a\x0alFc\x9c\x46\xf9 j", "pickle"},
                 {"\x80\x04\x95\x10\0\0\0\x01....", "pickle"},
                 {"PK\3\4\x14\0\x08\x08....", "zip"},
                 {"version https://git-lfs.github.com/spec/v1\n", "LFS"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        icma_safetensors seen;
        icma_error error = {0};
        const uint8_t *data;
        assert_status(icma_safetensors_view((const uint8_t *)cases[i].start, 12, &seen, &data, &error),
                      ICMA_E_UNSUPPORTED);
        assert_non_null(strstr(error.message, cases[i].word));
    }
    /* 0x0280 = 640 is a header length like any other */
    char header[640];
    memset(header, ' ', sizeof header);
    memcpy(header, "{}", 2);
    size_t size;
    const uint8_t *data;
    icma_safetensors seen;
    uint8_t *image = make_image(header, sizeof header, 0, &size);
    assert_memory_equal(image, "\x80\x02", 2);
    assert_status(icma_safetensors_view(image, size, &seen, &data, NULL), ICMA_OK);
    icma_safetensors_free(&seen);
    free(image);
}

static void names_of_255_bytes(void **state) {
    (void)state;
    for (size_t length = 255; length <= 256; length++) {
        char name[257] = {0}, header[400];
        icma_safetensors seen;
        memset(name, 'n', length);
        sprintf(header, "{" T("%s", "[1]", "0", "4") "}", name);
        icma_status status = view(header, 4, &seen, NULL);
        assert_int_equal(status, length == 255 ? ICMA_OK : ICMA_E_LIMIT);
        icma_safetensors_free(&seen);
    }
}

static void tensors_at_the_limit(void **state) {
    (void)state;
    for (size_t count = ICMA_MAX_TENSORS; count <= ICMA_MAX_TENSORS + 1; count++) {
        icma_safetensors seen;
        char *header = malloc(count * 90 + 10);
        size_t size = (size_t)sprintf(header, "{");
        for (size_t i = 0; i < count; i++) {
            size_t place = i * 7919 % count; /* prime to both counts, so each comes once */
            size += (size_t)sprintf(header + size,
                                    "%s\"%zx\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%zu,%zu]}",
                                    i ? "," : "", place, place, place + 1);
        }
        size += (size_t)sprintf(header + size, "}");
        icma_status status = icma_safetensors_parse(header, size, count, &seen, NULL);
        assert_int_equal(status, count == ICMA_MAX_TENSORS ? ICMA_OK : ICMA_E_LIMIT);
        if (status == ICMA_OK)
            assert_int_equal(icma_safetensors_find(&seen, "abcd"), 0xabcd);
        icma_safetensors_free(&seen);
        free(header);
    }
}

static void files_and_images_agree(void **state) {
    static const char header[] = "{" T("a", "[1]", "0", "4") "," T("b", "[2]", "4", "12") "}";
    const char *path = scratch_path(state, "x.safetensors");
    size_t size;
    uint8_t *image = make_image(header, sizeof header - 1, 12, &size);
    icma_safetensors seen;
    icma_error error = {0};
    icma_file *file;
    write_file(path, image, size);
    assert_status(icma_file_open(path, &file, NULL), ICMA_OK);
    assert_status(icma_safetensors_read(file, &seen, NULL), ICMA_OK);
    assert_int_equal(seen.tensor_count, 2);
    assert_int_equal(seen.data_size, 12);
    icma_safetensors_free(&seen);
    icma_file_close(file);
    write_file(path, image, size - 1);
    assert_status(icma_file_open(path, &file, NULL), ICMA_OK);
    assert_status(icma_safetensors_read(file, &seen, &error), ICMA_E_CORRUPT);
    assert_string_equal(error.file, path);
    icma_file_close(file);
    write_file(path, image, 8);
    assert_status(icma_file_open(path, &file, NULL), ICMA_OK);
    assert_status(icma_safetensors_read(file, &seen, NULL), ICMA_E_CORRUPT);
    icma_file_close(file);
    write_file(path, "", 0);
    assert_status(icma_file_open(path, &file, NULL), ICMA_OK);
    assert_status(icma_safetensors_read(file, &seen, NULL), ICMA_E_CORRUPT);
    icma_file_close(file);
    free(image);
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    static const char header[] =
        "{\"__metadata__\":{\"a\":\"b\"}," T("b", "[1]", "4", "8") "," T("a", "[1]", "0", "4") "}";
    for (size_t k = 0;; k++) {
        icma_safetensors seen;
        failing_allocator(k, true);
        icma_status status = icma_safetensors_parse(header, sizeof header - 1, 8, &seen, NULL);
        bool failed = allocation_failed();
        if (status == ICMA_OK)
            icma_safetensors_free(&seen);
        assert_int_equal(live_allocations(), 0);
        plain_allocator();
        assert_int_equal(status, failed ? ICMA_E_MEMORY : ICMA_OK);
        if (!failed)
            break;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_vector),
        cmocka_unit_test(every_dtype),
        cmocka_unit_test(tensors_come_in_data_order),
        cmocka_unit_test(headers_alone_tell_the_data_size),
        cmocka_unit_test(signatures_ignore_metadata_and_order),
        cmocka_unit_test(framing),
        cmocka_unit_test(every_prefix_fails),
        cmocka_unit_test(foreign_formats_get_advice),
        cmocka_unit_test(names_of_255_bytes),
        cmocka_unit_test(tensors_at_the_limit),
        cmocka_unit_test_setup_teardown(files_and_images_agree, scratch_setup, scratch_teardown),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
