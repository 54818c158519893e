/* SPDX-License-Identifier: Apache-2.0 */
#include "bytes.h"
#include "memory.h"
#include "npy.h"
#include "support.h"

#include <math.h>
#include <string.h>

typedef struct vector {
    const char *name;
    const char *header;
    size_t data_size; /* bytes of 1.0f, over and over */
    icma_status wanted;
} vector;

#define HEADER(descr, order, shape) "{'descr': " descr ", 'fortran_order': " order ", 'shape': " shape ", }\n"

static const vector vectors[] = {
    {"good: as numpy writes it", HEADER("'<f4'", "False", "(2,)"), 8, ICMA_OK},
    {"good: double quotes, other order", "{\"shape\":(1,),\"descr\":\"<f4\",\"fortran_order\":False}   \n", 4,
     ICMA_OK},
    {"good: four values", HEADER("'<f4'", "False", "(4,)"), 16, ICMA_OK},
    {"limit: five values", HEADER("'<f4'", "False", "(5,)"), 20, ICMA_E_LIMIT},
    {"limit: 2^64 - 1 values", HEADER("'<f4'", "False", "(18446744073709551615,)"), 4, ICMA_E_LIMIT},
    {"bad: 2^64 values", HEADER("'<f4'", "False", "(18446744073709551616,)"), 4, ICMA_E_CORRUPT},
    {"bad: too little data", HEADER("'<f4'", "False", "(2,)"), 7, ICMA_E_CORRUPT},
    {"bad: too much data", HEADER("'<f4'", "False", "(2,)"), 9, ICMA_E_CORRUPT},
    {"bad: a value too many", HEADER("'<f4'", "False", "(2,)"), 12, ICMA_E_CORRUPT},
    {"bad: a number, not a tuple", HEADER("'<f4'", "False", "(2)"), 8, ICMA_E_CORRUPT},
    {"bad: a list", HEADER("'<f4'", "False", "[2,]"), 8, ICMA_E_CORRUPT},
    {"bad: a negative size", HEADER("'<f4'", "False", "(-2,)"), 8, ICMA_E_CORRUPT},
    {"bad: a long of Python 2", HEADER("'<f4'", "False", "(2L,)"), 8, ICMA_E_CORRUPT},
    {"bad: two commas", HEADER("'<f4'", "False", "(2,,)"), 8, ICMA_E_CORRUPT},
    {"bad: no comma between sizes", HEADER("'<f4'", "False", "(2 2)"), 16, ICMA_E_CORRUPT},
    {"bad: order is a number", HEADER("'<f4'", "0", "(2,)"), 8, ICMA_E_CORRUPT},
    {"bad: an unknown key", "{'descr': '<f4', 'order': False, 'shape': (2,)}\n", 8, ICMA_E_CORRUPT},
    {"bad: a key twice", "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}\n", 8,
     ICMA_E_CORRUPT},
    {"bad: a key missing", "{'descr': '<f4', 'shape': (2,)}\n", 8, ICMA_E_CORRUPT},
    {"bad: something behind", "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} 1\n", 8,
     ICMA_E_CORRUPT},
    {"bad: no end", "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)", 8, ICMA_E_CORRUPT},
    {"bad: a string without an end", "{'descr': '<f4", 8, ICMA_E_CORRUPT},
    {"bad: an escape", "{'descr': '\\x3cf4', 'fortran_order': False, 'shape': (2,)}\n", 8, ICMA_E_CORRUPT},
    {"bad: a key without quotes", "{descr: '<f4', 'fortran_order': False, 'shape': (2,)}\n", 8,
     ICMA_E_CORRUPT},
    {"bad: no colon", "{'descr' '<f4', 'fortran_order': False, 'shape': (2,)}\n", 8, ICMA_E_CORRUPT},
    {"bad: no comma between keys", "{'descr': '<f4' 'fortran_order': False, 'shape': (2,)}\n", 8,
     ICMA_E_CORRUPT},
    {"bad: a control character", "{'descr': '<f4\n', 'fortran_order': False, 'shape': (2,)}\n", 8,
     ICMA_E_CORRUPT},
    {"bad: no dict", "[]", 8, ICMA_E_CORRUPT},
    {"bad: empty", "", 8, ICMA_E_CORRUPT},
    {"unsupported: no dimension", HEADER("'<f4'", "False", "()"), 4, ICMA_E_UNSUPPORTED},
    {"unsupported: two dimensions", HEADER("'<f4'", "False", "(1, 2)"), 8, ICMA_E_UNSUPPORTED},
    {"unsupported: three dimensions", HEADER("'<f4'", "False", "(1, 2, 1,)"), 8, ICMA_E_UNSUPPORTED},
    {"unsupported: empty", HEADER("'<f4'", "False", "(0,)"), 0, ICMA_E_UNSUPPORTED},
    {"unsupported: Fortran order", HEADER("'<f4'", "True", "(2,)"), 8, ICMA_E_UNSUPPORTED},
    {"unsupported: big-endian", HEADER("'>f4'", "False", "(2,)"), 8, ICMA_E_UNSUPPORTED},
    {"unsupported: integers", HEADER("'<i4'", "False", "(2,)"), 8, ICMA_E_UNSUPPORTED},
    {"unsupported: objects", HEADER("'|O'", "False", "(2,)"), 8, ICMA_E_UNSUPPORTED},
    {"unsupported: records", HEADER("[('a', '<f4')]", "False", "(2,)"), 8, ICMA_E_UNSUPPORTED},
    {"unsupported: a long descr", HEADER("'<f4<f4<f4<f4<f4<f4<f4'", "False", "(2,)"), 8, ICMA_E_UNSUPPORTED},
};

static void put_npy(const char *path, int version, const char *header, const void *data, size_t size) {
    icma_buffer file = {0};
    icma_write_bytes(&file, "\x93NUMPY", 6);
    icma_write_u8(&file, (uint8_t)version);
    icma_write_u8(&file, 0);
    if (version == 1)
        icma_write_u16(&file, (uint16_t)strlen(header));
    else
        icma_write_u32(&file, (uint32_t)strlen(header));
    icma_write_bytes(&file, header, strlen(header));
    icma_write_bytes(&file, data, size);
    write_file(path, file.data, file.size);
    icma_buffer_free(&file);
}

static void every_vector(void **state) {
    const char *path = scratch_path(state, "x.npy");
    uint8_t ones[64];
    for (size_t i = 0; i < sizeof ones; i++)
        ones[i] = "\0\0\x80\x3f"[i % 4];
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        for (int version = 1; version <= 3; version++) {
            const vector *v = &vectors[i];
            icma_error error = {0};
            float *values;
            size_t count;
            put_npy(path, version, v->header, ones, v->data_size);
            icma_status status = icma_npy_read_vector(path, 4, &values, &count, &error);
            if (status != v->wanted)
                fail_msg("%s: %s, %s", v->name, icma_status_name(status), error.message);
            assert_int_equal(count, status == ICMA_OK ? v->data_size / 4 : 0);
            for (size_t k = 0; k < count; k++)
                assert_true(values[k] == 1.0f);
            assert_true(status == ICMA_OK || strcmp(error.file, path) == 0);
            icma_free(values);
        }
    }
}

static void matrices(void **state) {
    static const struct {
        const char *header;
        size_t data_size;
        icma_status wanted;
        size_t rows, columns;
    } cases[] = {
        {HEADER("'<f4'", "False", "(2, 3)"), 24, ICMA_OK, 2, 3},
        {HEADER("'<f4'", "False", "(1, 2)"), 8, ICMA_OK, 1, 2},
        {HEADER("'<f4'", "False", "(3,)"), 12, ICMA_OK, 1, 3},
        {HEADER("'<f4'", "False", "(2, 4)"), 32, ICMA_E_LIMIT, 0, 0},
        {HEADER("'<f4'", "False", "(2, 9223372036854775808)"), 32, ICMA_E_LIMIT, 0, 0},
        {HEADER("'<f4'", "False", "(2, 3)"), 20, ICMA_E_CORRUPT, 0, 0},
        {HEADER("'<f4'", "False", "(2, 0)"), 0, ICMA_E_UNSUPPORTED, 0, 0},
        {HEADER("'<f4'", "False", "(0, 2)"), 0, ICMA_E_UNSUPPORTED, 0, 0},
        {HEADER("'<f4'", "True", "(2, 3)"), 24, ICMA_E_UNSUPPORTED, 0, 0},
        {HEADER("'<f4'", "False", "(1, 2, 3)"), 24, ICMA_E_UNSUPPORTED, 0, 0},
        {HEADER("'<f4'", "False", "()"), 4, ICMA_E_UNSUPPORTED, 0, 0},
    };
    const char *path = scratch_path(state, "x.npy");
    static const float numbers[] = {1, 2, 3, 4, 5, 6, 7, 8};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        icma_error error = {0};
        float *values;
        size_t rows, columns;
        put_npy(path, 1, cases[i].header, numbers, cases[i].data_size);
        icma_status status = icma_npy_read_matrix(path, 6, &values, &rows, &columns, &error);
        if (status != cases[i].wanted)
            fail_msg("%s: %s, %s", cases[i].header, icma_status_name(status), error.message);
        assert_int_equal(rows, cases[i].rows);
        assert_int_equal(columns, cases[i].columns);
        for (size_t k = 0; k < rows * columns; k++)
            assert_true(values[k] == numbers[k]);
        icma_free(values);
    }
}

static void three_widths(void **state) {
    const char *path = scratch_path(state, "x.npy");
    static const uint8_t f2[] = {0, 0x3c, 0, 0xc0},
                         f8[] = {0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 1, 0, 0, 0, 0, 0, 0, 0xc0};
    float *values;
    size_t count;
    put_npy(path, 1, HEADER("'<f2'", "False", "(2,)"), f2, sizeof f2);
    assert_status(icma_npy_read_vector(path, 9, &values, &count, NULL), ICMA_OK);
    assert_true(count == 2 && values[0] == 1 && values[1] == -2);
    icma_free(values);
    put_npy(path, 1, HEADER("'<f8'", "False", "(2,)"), f8, sizeof f8);
    assert_status(icma_npy_read_vector(path, 9, &values, &count, NULL), ICMA_OK);
    assert_true(count == 2 && values[0] == 1 && values[1] == -2);
    icma_free(values);
}

static void only_finite_values(void **state) {
    const char *path = scratch_path(state, "x.npy");
    static const struct {
        double value;
        icma_status wanted;
    } cases[] = {{0x1.fffffep127, ICMA_OK},
                 {0x1.fffffefffffffp127, ICMA_OK},
                 {0x1.ffffffp127, ICMA_E_UNSUPPORTED},
                 {-INFINITY, ICMA_E_UNSUPPORTED},
                 {NAN, ICMA_E_UNSUPPORTED},
                 {0x1p-200, ICMA_OK},
                 {-0x1.ffffffp127, ICMA_E_UNSUPPORTED}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t bits;
        uint8_t bytes[8];
        float *values;
        size_t count;
        memcpy(&bits, &cases[i].value, 8);
        icma_store_u64(bytes, bits);
        put_npy(path, 1, HEADER("'<f8'", "False", "(1,)"), bytes, 8);
        assert_int_equal(icma_npy_read_vector(path, 9, &values, &count, NULL), cases[i].wanted);
        icma_free(values);
    }
}

static void framing(void **state) {
    const char *path = scratch_path(state, "x.npy");
    float *values;
    size_t count;
    static const uint8_t version4[] = "\x93NUMPY\4\0\2\0\0\0{}", minor[] = "\x93NUMPY\1\1\2\0{}  ";
    static const uint8_t beyond[] = "\x93NUMPY\1\0\x80\0{}  ", huge[] = "\x93NUMPY\2\0\xff\xff\xff\xff{}";
    assert_status(icma_npy_read_vector(scratch_path(state, "none"), 4, &values, &count, NULL),
                  ICMA_E_NOT_FOUND);
    write_file(path, "", 0);
    assert_status(icma_npy_read_vector(path, 4, &values, &count, NULL), ICMA_E_CORRUPT);
    write_file(path, "PK\3\4 not an npy file", 20);
    assert_status(icma_npy_read_vector(path, 4, &values, &count, NULL), ICMA_E_CORRUPT);
    write_file(path, version4, sizeof version4 - 1);
    assert_status(icma_npy_read_vector(path, 4, &values, &count, NULL), ICMA_E_UNSUPPORTED);
    write_file(path, minor, sizeof minor - 1);
    assert_status(icma_npy_read_vector(path, 4, &values, &count, NULL), ICMA_E_UNSUPPORTED);
    write_file(path, beyond, sizeof beyond - 1);
    assert_status(icma_npy_read_vector(path, 4, &values, &count, NULL), ICMA_E_CORRUPT);
    write_file(path, huge, sizeof huge - 1);
    assert_status(icma_npy_read_vector(path, 4, &values, &count, NULL), ICMA_E_CORRUPT);
}

static void long_headers(void **state) {
    const char *path = scratch_path(state, "x.npy");
    static char header[65538];
    static const char dict[] = HEADER("'<f4'", "False", "(1,)");
    for (size_t size = 65536; size <= 65537; size++) {
        float *values;
        size_t count;
        memset(header, ' ', size);
        memcpy(header, dict, sizeof dict - 2);
        header[size] = '\0';
        put_npy(path, 2, header, "\0\0\0\0", 4);
        icma_status wanted = size == 65536 ? ICMA_OK : ICMA_E_LIMIT;
        assert_int_equal(icma_npy_read_vector(path, 4, &values, &count, NULL), wanted);
        icma_free(values);
    }
}

static void every_allocation_may_fail(void **state) {
    const char *path = scratch_path(state, "x.npy");
    put_npy(path, 1, HEADER("'<f4'", "False", "(1,)"), "\0\0\0\0", 4);
    for (size_t k = 0;; k++) {
        float *values;
        size_t count;
        failing_allocator(k, true);
        icma_status status = icma_npy_read_vector(path, 4, &values, &count, NULL);
        bool failed = allocation_failed();
        icma_free(values);
        assert_int_equal(live_allocations(), 0);
        plain_allocator();
        assert_int_equal(status, failed ? ICMA_E_MEMORY : ICMA_OK);
        if (!failed)
            break;
    }
}

#define WITH_SCRATCH(test) cmocka_unit_test_setup_teardown(test, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_SCRATCH(every_vector), WITH_SCRATCH(matrices), WITH_SCRATCH(three_widths), WITH_SCRATCH(only_finite_values),
        WITH_SCRATCH(framing),      WITH_SCRATCH(long_headers), WITH_SCRATCH(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
