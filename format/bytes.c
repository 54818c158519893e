/* SPDX-License-Identifier: Apache-2.0 */
#include "bytes.h"

#include "memory.h"

#include <string.h>

uint16_t icma_load_u16(const void *from) {
    const uint8_t *b = from;
    return (uint16_t)(b[0] | b[1] << 8);
}

uint32_t icma_load_u32(const void *from) {
    const uint8_t *b = from;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

uint64_t icma_load_u64(const void *from) {
    const uint8_t *b = from;
    return (uint64_t)icma_load_u32(b) | (uint64_t)icma_load_u32(b + 4) << 32;
}

void icma_store_u16(void *to, uint16_t value) {
    uint8_t *b = to;
    b[0] = (uint8_t)value;
    b[1] = (uint8_t)(value >> 8);
}

void icma_store_u32(void *to, uint32_t value) {
    uint8_t *b = to;
    b[0] = (uint8_t)value;
    b[1] = (uint8_t)(value >> 8);
    b[2] = (uint8_t)(value >> 16);
    b[3] = (uint8_t)(value >> 24);
}

void icma_store_u64(void *to, uint64_t value) {
    uint8_t *b = to;
    icma_store_u32(b, (uint32_t)value);
    icma_store_u32(b + 4, (uint32_t)(value >> 32));
}

/* --- cursor -------------------------------------------------------------------------------------------- */

static const uint8_t nothing[1];

icma_cursor icma_cursor_over(const void *data, size_t size) {
    /* Never NULL, so that a caller who reads 0 bytes can tell them from a failure. */
    return (icma_cursor){data ? data : nothing, data ? size : 0, false};
}

const uint8_t *icma_read_bytes(icma_cursor *cursor, size_t size) {
    if (cursor->failed || size > cursor->left) {
        cursor->failed = true;
        cursor->left = 0;
        return NULL;
    }
    const uint8_t *bytes = cursor->at;
    cursor->at += size;
    cursor->left -= size;
    return bytes;
}

uint8_t icma_read_u8(icma_cursor *cursor) {
    const uint8_t *bytes = icma_read_bytes(cursor, 1);
    return bytes ? *bytes : 0;
}

uint16_t icma_read_u16(icma_cursor *cursor) {
    const uint8_t *bytes = icma_read_bytes(cursor, 2);
    return bytes ? icma_load_u16(bytes) : 0;
}

uint32_t icma_read_u32(icma_cursor *cursor) {
    const uint8_t *bytes = icma_read_bytes(cursor, 4);
    return bytes ? icma_load_u32(bytes) : 0;
}

uint64_t icma_read_u64(icma_cursor *cursor) {
    const uint8_t *bytes = icma_read_bytes(cursor, 8);
    return bytes ? icma_load_u64(bytes) : 0;
}

float icma_read_f32(icma_cursor *cursor) {
    uint32_t bits = icma_read_u32(cursor);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint64_t icma_read_varint(icma_cursor *cursor) {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        uint8_t byte = icma_read_u8(cursor);
        if (cursor->failed)
            return 0;
        /* The tenth byte has room for one bit; a last byte of 0 would be a longer form of the same value. */
        if ((shift == 63 && byte > 1) || (shift && byte == 0))
            break;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return value;
    }
    cursor->failed = true;
    cursor->left = 0;
    return 0;
}

int64_t icma_read_varint_signed(icma_cursor *cursor) {
    uint64_t folded = icma_read_varint(cursor);
    uint64_t half = folded >> 1;
    return folded & 1 ? -(int64_t)half - 1 : (int64_t)half;
}

bool icma_cursor_finished(const icma_cursor *cursor) {
    return !cursor->failed && cursor->left == 0;
}

/* --- buffer -------------------------------------------------------------------------------------------- */

void icma_buffer_free(icma_buffer *buffer) {
    icma_free(buffer->data);
    *buffer = (icma_buffer){0};
}

static bool reserve(icma_buffer *buffer, size_t needed) {
    if (needed <= buffer->capacity)
        return true;
    size_t capacity;
    if (!icma_add_size(buffer->capacity, buffer->capacity / 2, &capacity) || capacity < needed)
        capacity = needed;
    if (capacity < 64)
        capacity = 64;
    uint8_t *data = icma_resize_array(buffer->data, capacity, 1);
    if (!data)
        return false;
    buffer->data = data;
    buffer->capacity = capacity;
    return true;
}

uint8_t *icma_buffer_extend(icma_buffer *buffer, size_t size) {
    size_t needed;
    if (buffer->failed || !icma_add_size(buffer->size, size, &needed) ||
        !reserve(buffer, needed ? needed : 1)) {
        buffer->failed = true;
        return NULL;
    }
    uint8_t *start = buffer->data + buffer->size;
    buffer->size = needed;
    return start;
}

void icma_write_bytes(icma_buffer *buffer, const void *data, size_t size) {
    uint8_t *to = icma_buffer_extend(buffer, size);
    if (to && size)
        memcpy(to, data, size);
}

void icma_write_zeros(icma_buffer *buffer, size_t size) {
    uint8_t *to = icma_buffer_extend(buffer, size);
    if (to)
        memset(to, 0, size);
}

void icma_write_u8(icma_buffer *buffer, uint8_t value) {
    icma_write_bytes(buffer, &value, 1);
}

void icma_write_u16(icma_buffer *buffer, uint16_t value) {
    uint8_t bytes[2];
    icma_store_u16(bytes, value);
    icma_write_bytes(buffer, bytes, sizeof bytes);
}

void icma_write_u32(icma_buffer *buffer, uint32_t value) {
    uint8_t bytes[4];
    icma_store_u32(bytes, value);
    icma_write_bytes(buffer, bytes, sizeof bytes);
}

void icma_write_u64(icma_buffer *buffer, uint64_t value) {
    uint8_t bytes[8];
    icma_store_u64(bytes, value);
    icma_write_bytes(buffer, bytes, sizeof bytes);
}

void icma_write_f32(icma_buffer *buffer, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    icma_write_u32(buffer, bits);
}

void icma_write_varint(icma_buffer *buffer, uint64_t value) {
    uint8_t bytes[10];
    size_t count = 0;
    for (; value >= 0x80; value >>= 7)
        bytes[count++] = (uint8_t)(value | 0x80);
    bytes[count++] = (uint8_t)value;
    icma_write_bytes(buffer, bytes, count);
}

void icma_write_varint_signed(icma_buffer *buffer, int64_t value) {
    uint64_t doubled = (uint64_t)value << 1;
    icma_write_varint(buffer, value < 0 ? ~doubled : doubled);
}

icma_status icma_buffer_status(const icma_buffer *buffer, icma_error *error) {
    return buffer->failed ? icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for %zu bytes and more",
                                      buffer->size)
                          : ICMA_OK;
}
