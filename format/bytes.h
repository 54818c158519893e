/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading and writing little-endian bytes: a cursor with bounds and a growing buffer.
 *
 * Both are sticky: after a failure every further call is harmless and the flag stays set, so that
 * a parser may read a whole record and test once. Nothing here allocates on behalf of a declared length.
 */
#ifndef ICMA_BYTES_H
#define ICMA_BYTES_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct icma_cursor {
    const uint8_t *at;
    size_t left;
    bool failed; /* something was read beyond the end, or a varint was malformed */
} icma_cursor;

icma_cursor icma_cursor_over(const void *data, size_t size);
/* Reads beyond the end give 0 and set `failed`. */
uint8_t icma_read_u8(icma_cursor *cursor);
uint16_t icma_read_u16(icma_cursor *cursor);
uint32_t icma_read_u32(icma_cursor *cursor);
uint64_t icma_read_u64(icma_cursor *cursor);
float icma_read_f32(icma_cursor *cursor);
/* LEB128, at most 10 bytes, shortest form only; the signed one is zigzag (spec 2.2). */
uint64_t icma_read_varint(icma_cursor *cursor);
int64_t icma_read_varint_signed(icma_cursor *cursor);
/* The next `size` bytes in place, or NULL (and `failed`) where there are fewer. */
const uint8_t *icma_read_bytes(icma_cursor *cursor, size_t size);
/* True when nothing failed and nothing is left: the record was exactly as long as it said. */
bool icma_cursor_finished(const icma_cursor *cursor);

typedef struct icma_buffer {
    uint8_t *data; /* owned; icma_buffer_free */
    size_t size;
    size_t capacity;
    bool failed; /* memory ran out: contents are incomplete */
} icma_buffer;

void icma_buffer_free(icma_buffer *buffer); /* leaves an empty buffer */
void icma_write_u8(icma_buffer *buffer, uint8_t value);
void icma_write_u16(icma_buffer *buffer, uint16_t value);
void icma_write_u32(icma_buffer *buffer, uint32_t value);
void icma_write_u64(icma_buffer *buffer, uint64_t value);
void icma_write_f32(icma_buffer *buffer, float value);
void icma_write_varint(icma_buffer *buffer, uint64_t value);
void icma_write_varint_signed(icma_buffer *buffer, int64_t value);
void icma_write_bytes(icma_buffer *buffer, const void *data, size_t size);
void icma_write_zeros(icma_buffer *buffer, size_t size);
/* Grows by `size` bytes and returns where they start, uninitialised; NULL and `failed` when memory is short,
 * and only then (size may be 0). */
uint8_t *icma_buffer_extend(icma_buffer *buffer, size_t size);
/* ICMA_E_MEMORY if any write failed. */
icma_status icma_buffer_status(const icma_buffer *buffer, icma_error *error);

/* Little-endian loads and stores at any alignment. */
uint16_t icma_load_u16(const void *from);
uint32_t icma_load_u32(const void *from);
uint64_t icma_load_u64(const void *from);
void icma_store_u16(void *to, uint16_t value);
void icma_store_u32(void *to, uint32_t value);
void icma_store_u64(void *to, uint64_t value);

#endif
