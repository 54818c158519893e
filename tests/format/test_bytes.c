/* SPDX-License-Identifier: Apache-2.0 */
#include "bytes.h"
#include "support.h"

#include <math.h>
#include <string.h>

static void little_endian_at_any_alignment(void **state) {
    (void)state;
    const uint8_t bytes[] = {0xff, 1, 2, 3, 4, 5, 6, 7, 8};
    uint8_t out[9] = {0};
    assert_int_equal(icma_load_u16(bytes + 1), 0x0201);
    assert_int_equal(icma_load_u32(bytes + 1), 0x04030201);
    assert_true(icma_load_u64(bytes + 1) == UINT64_C(0x0807060504030201));
    icma_store_u64(out + 1, UINT64_C(0x0807060504030201));
    assert_memory_equal(out + 1, bytes + 1, 8);
    icma_store_u32(out + 1, 0xa4a3a2a1);
    assert_true(icma_load_u64(out + 1) == UINT64_C(0x08070605a4a3a2a1));
    icma_store_u16(out + 1, 0xb2b1);
    assert_true(icma_load_u64(out + 1) == UINT64_C(0x08070605a4a3b2b1));
}

static void a_cursor_stops_at_the_end(void **state) {
    (void)state;
    const uint8_t bytes[] = {1, 2, 3};
    icma_cursor cursor = icma_cursor_over(bytes, sizeof bytes);
    assert_int_equal(icma_read_u16(&cursor), 0x0201);
    assert_false(icma_cursor_finished(&cursor));
    assert_int_equal(icma_read_u16(&cursor), 0);
    assert_true(cursor.failed);
    /* one byte was left, but a failed cursor gives nothing more */
    assert_int_equal(icma_read_u8(&cursor), 0);
    assert_null(icma_read_bytes(&cursor, 0));
    assert_false(icma_cursor_finished(&cursor));
}

static void nothing_can_be_read_from_nothing(void **state) {
    (void)state;
    icma_cursor cursor = icma_cursor_over(NULL, 0);
    assert_non_null(icma_read_bytes(&cursor, 0));
    assert_true(icma_cursor_finished(&cursor));
    assert_null(icma_read_bytes(&cursor, SIZE_MAX));
    assert_true(cursor.failed);
}

static void every_read_fails_beyond_the_end(void **state) {
    (void)state;
    const uint8_t bytes[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    icma_cursor cursor = icma_cursor_over(bytes, 7);
    assert_true(icma_read_u64(&cursor) == 0 && cursor.failed);
    cursor = icma_cursor_over(bytes, 3);
    assert_true(icma_read_u32(&cursor) == 0 && cursor.failed);
    cursor = icma_cursor_over(bytes, 3);
    assert_true(icma_read_f32(&cursor) == 0 && cursor.failed);
    cursor = icma_cursor_over(bytes, 0);
    assert_true(icma_read_u8(&cursor) == 0 && cursor.failed);
    cursor = icma_cursor_over(bytes, 0);
    assert_true(icma_read_varint(&cursor) == 0 && cursor.failed);
}

static const struct {
    uint64_t value;
    size_t size;
    uint8_t bytes[10];
} varints[] = {
    {0, 1, {0}},
    {1, 1, {1}},
    {127, 1, {0x7f}},
    {128, 2, {0x80, 1}},
    {300, 2, {0xac, 2}},
    {16383, 2, {0xff, 0x7f}},
    {16384, 3, {0x80, 0x80, 1}},
    {UINT32_MAX, 5, {0xff, 0xff, 0xff, 0xff, 0x0f}},
    {UINT64_C(1) << 63, 10, {0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1}},
    {UINT64_MAX, 10, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}},
};

static void varints_have_one_form(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof varints / sizeof *varints; i++) {
        icma_buffer buffer = {0};
        icma_write_varint(&buffer, varints[i].value);
        assert_int_equal(buffer.size, varints[i].size);
        assert_memory_equal(buffer.data, varints[i].bytes, buffer.size);
        icma_cursor cursor = icma_cursor_over(buffer.data, buffer.size);
        assert_true(icma_read_varint(&cursor) == varints[i].value);
        assert_true(icma_cursor_finished(&cursor));
        cursor = icma_cursor_over(buffer.data, buffer.size - 1);
        assert_true(icma_read_varint(&cursor) == 0 && cursor.failed);
        icma_buffer_free(&buffer);
    }
}

static void malformed_varints_are_refused(void **state) {
    (void)state;
    static const struct {
        size_t size;
        uint8_t bytes[11];
    } bad[] = {
        {2, {0x80, 0}},                                                       /* 0 in two bytes */
        {3, {0xff, 0x80, 0}},                                                 /* longer than needed */
        {10, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2}},      /* 2^64 and more */
        {10, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x81}},   /* an eleventh byte */
        {11, {0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1}} /* eleven bytes */
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        icma_cursor cursor = icma_cursor_over(bad[i].bytes, bad[i].size);
        assert_true(icma_read_varint(&cursor) == 0);
        assert_true(cursor.failed);
    }
}

static void zigzag_takes_every_integer(void **state) {
    (void)state;
    const int64_t values[] = {0, -1, 1, -2, 63, -64, 64, INT32_MIN, INT64_MAX, INT64_MIN, INT64_MIN + 1};
    const uint64_t folded[] = {
        0, 1, 2, 3, 126, 127, 128, UINT32_MAX, UINT64_MAX - 1, UINT64_MAX, UINT64_MAX - 2};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        icma_buffer buffer = {0};
        icma_write_varint_signed(&buffer, values[i]);
        icma_cursor cursor = icma_cursor_over(buffer.data, buffer.size);
        assert_true(icma_read_varint(&cursor) == folded[i]);
        cursor = icma_cursor_over(buffer.data, buffer.size);
        assert_true(icma_read_varint_signed(&cursor) == values[i]);
        icma_buffer_free(&buffer);
    }
}

static void what_is_written_is_read(void **state) {
    (void)state;
    icma_buffer buffer = {0};
    icma_write_u8(&buffer, 0xab);
    icma_write_u16(&buffer, 0x1234);
    icma_write_u32(&buffer, 0xdeadbeef);
    icma_write_u64(&buffer, UINT64_C(0x0123456789abcdef));
    icma_write_f32(&buffer, -0.0f);
    icma_write_f32(&buffer, INFINITY);
    icma_write_zeros(&buffer, 3);
    icma_write_bytes(&buffer, "xyz", 3);
    icma_write_bytes(&buffer, NULL, 0);
    assert_int_equal(icma_buffer_status(&buffer, NULL), ICMA_OK);
    icma_cursor cursor = icma_cursor_over(buffer.data, buffer.size);
    assert_int_equal(icma_read_u8(&cursor), 0xab);
    assert_int_equal(icma_read_u16(&cursor), 0x1234);
    assert_true(icma_read_u32(&cursor) == 0xdeadbeef);
    assert_true(icma_read_u64(&cursor) == UINT64_C(0x0123456789abcdef));
    float zero = icma_read_f32(&cursor);
    assert_true(zero == 0 && signbit(zero));
    assert_true(isinf(icma_read_f32(&cursor)));
    assert_memory_equal(icma_read_bytes(&cursor, 3), "\0\0\0", 3);
    assert_memory_equal(icma_read_bytes(&cursor, 3), "xyz", 3);
    assert_true(icma_cursor_finished(&cursor));
    icma_buffer_free(&buffer);
    assert_null(buffer.data);
}

static void a_buffer_grows(void **state) {
    (void)state;
    icma_buffer buffer = {0};
    assert_non_null(icma_buffer_extend(&buffer, 0)); /* so that NULL always means failure */
    for (uint32_t i = 0; i < 100000; i++)
        icma_write_u32(&buffer, i);
    assert_int_equal(buffer.size, 400000);
    for (uint32_t i = 0; i < 100000; i += 997)
        assert_int_equal(icma_load_u32(buffer.data + 4 * (size_t)i), i);
    icma_buffer_free(&buffer);
}

static void a_buffer_that_failed_stays_failed(void **state) {
    (void)state;
    icma_buffer buffer = {0};
    icma_error error = {0};
    icma_write_u32(&buffer, 1);
    failing_allocator(0, false);
    assert_null(icma_buffer_extend(&buffer, 1000));
    icma_write_u8(&buffer, 1); /* there would be room and memory */
    plain_allocator();
    assert_int_equal(buffer.size, 4);
    assert_status(icma_buffer_status(&buffer, &error), ICMA_E_MEMORY);
    icma_buffer_free(&buffer);
    assert_false(buffer.failed);
    icma_write_u8(&buffer, 1);
    assert_null(icma_buffer_extend(&buffer, SIZE_MAX)); /* the size itself would overflow */
    assert_true(buffer.failed);
    icma_buffer_free(&buffer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(little_endian_at_any_alignment),
        cmocka_unit_test(a_cursor_stops_at_the_end),
        cmocka_unit_test(nothing_can_be_read_from_nothing),
        cmocka_unit_test(every_read_fails_beyond_the_end),
        cmocka_unit_test(varints_have_one_form),
        cmocka_unit_test(malformed_varints_are_refused),
        cmocka_unit_test(zigzag_takes_every_integer),
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(a_buffer_grows),
        cmocka_unit_test(a_buffer_that_failed_stays_failed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
