/* SPDX-License-Identifier: Apache-2.0 */
/* The low bits of a block: one after the other, from the least significant bit of the first byte on
 * (spec 4.14). */
#ifndef ICMA_LOSSLESS_BITS_H
#define ICMA_LOSSLESS_BITS_H

#include "bytes.h"

typedef struct icma_bit_writer {
    icma_buffer *out;
    uint64_t bits;
    unsigned count;
} icma_bit_writer;

static inline void icma_put_bits(icma_bit_writer *w, uint32_t value, unsigned count) {
    w->bits |= (uint64_t)value << w->count;
    w->count += count;
    if (w->count < 32)
        return;
    icma_write_u32(w->out, (uint32_t)w->bits);
    w->bits >>= 32;
    w->count -= 32;
}

static inline void icma_put_end(icma_bit_writer *w) {
    for (unsigned i = 0; i < w->count; i += 8)
        icma_write_u8(w->out, (uint8_t)(w->bits >> i));
}

typedef struct icma_bit_reader {
    const uint8_t *bytes;
    size_t size; /* bytes */
    uint64_t at; /* bits taken; beyond the end once there were too few */
} icma_bit_reader;

static inline uint64_t icma_bits_near_end(const icma_bit_reader *r) {
    uint64_t bits = 0;
    for (size_t first = (size_t)(r->at / 8), i = first; i < r->size && i < first + 8; i++)
        bits |= (uint64_t)r->bytes[i] << 8 * (i - first);
    return bits;
}

static inline uint64_t icma_bits_load(const uint8_t *from) {
    return (uint64_t)from[0] | (uint64_t)from[1] << 8 | (uint64_t)from[2] << 16 | (uint64_t)from[3] << 24 |
           (uint64_t)from[4] << 32 | (uint64_t)from[5] << 40 | (uint64_t)from[6] << 48 |
           (uint64_t)from[7] << 56;
}

/* At most 31. What lies beyond the end reads as 0; icma_bits_finished tells. */
static inline uint32_t icma_take_bits(icma_bit_reader *r, unsigned count) {
    size_t first = (size_t)(r->at / 8);
    uint64_t bits =
        first < r->size && r->size - first >= 8 ? icma_bits_load(r->bytes + first) : icma_bits_near_end(r);
    uint32_t value = (uint32_t)(bits >> r->at % 8 & ((UINT64_C(1) << count) - 1));
    r->at += count;
    return value;
}

/* All were taken, but for less than a byte of zeros. */
static inline bool icma_bits_finished(icma_bit_reader *r) {
    uint64_t whole = (r->at + 7) / 8;
    return whole == r->size && icma_take_bits(r, (unsigned)(8 * whole - r->at)) == 0;
}

/* A number from 1 to 255 of n bits: n - 1 zeros, a one, then what follows its leading one. */
static inline void icma_put_deep(icma_bit_writer *w, uint32_t number) {
    unsigned below = 0;
    while (number >> (below + 1))
        below++;
    icma_put_bits(w, UINT32_C(1) << below, below + 1);
    icma_put_bits(w, number & ((UINT32_C(1) << below) - 1), below);
}

/* 0: it is no such number. */
static inline uint32_t icma_take_deep(icma_bit_reader *r) {
    unsigned below = 0;
    while (below < 8 && !icma_take_bits(r, 1))
        below++;
    return below < 8 ? UINT32_C(1) << below | icma_take_bits(r, below) : 0;
}

#endif
