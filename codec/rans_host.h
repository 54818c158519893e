/* SPDX-License-Identifier: Apache-2.0 */
/* What the decoders of rans*.c share. */
#ifndef ICMA_RANS_HOST_H
#define ICMA_RANS_HOST_H

#include "rans.h"
#include "rans_tables.h"

enum { ICMA_RANS_LANES = 32 };            /* at most */
#define ICMA_RANS_LOW (UINT32_C(1) << 16) /* states are at least this; below it, 16 bits are read */

/* A context as the coder uses it. Symbols are numbered from 0: -reach, .., reach, escape. */
typedef struct icma_rans_model {
    unsigned bits, shift; /* log2 of the sum; raw low bits under each symbol */
    unsigned reach, count;
    uint32_t frequency[ICMA_RANS_ALPHABET];
    uint32_t start[ICMA_RANS_ALPHABET + 1]; /* sums of the frequencies before */
    /* Coarse tables only: for each of 2^12 slots frequency << 20 | slot - start << 8 | symbol. */
    uint32_t slots[1 << ICMA_RANS_COARSE];
} icma_rans_model;

/* Fills the model of a context; less than icma_rans_contexts(). */
void icma_rans_model_fill(icma_rans_model *model, unsigned context);
/* How many lanes the stream of so many symbols in these contexts has: 0 (no symbols), 1, 8 or 32. */
unsigned icma_rans_lanes_of(const icma_rans_run *runs, size_t run_count);

/* The shape of a context, and how many raw low bits lie under its symbols. */
const icma_rans_shape *icma_rans_shape_of(unsigned context, unsigned *shift);

/* x = high * 2^shift + low - 2^(shift - 1), with 0 <= low < 2^shift: bins that lie about evenly around 0. */
static inline int64_t icma_rans_high(int64_t x, unsigned shift) {
    if (shift == 0)
        return x;
    x += INT64_C(1) << (shift - 1);
    return x >= 0 ? x >> shift : ~(~x >> shift);
}

/* Of a value above 0. */
static inline unsigned icma_rans_log2(uint32_t value) {
    unsigned n = 0;
    for (unsigned step = 16; step > 0; step /= 2)
        if (value >> step) {
            value >>= step;
            n += step;
        }
    return n;
}

/* A high part beyond the reach: its sign, and how far beyond, from 1. */
static inline uint32_t icma_rans_distance(int64_t high, unsigned reach) {
    return (uint32_t)((high < 0 ? -high : high) - reach);
}

/* A stream that is being decoded. */
typedef struct icma_rans_reader {
    const uint8_t *words; /* 16 bits each */
    size_t left;          /* words */
    unsigned lanes;
    uint32_t state[ICMA_RANS_LANES];
} icma_rans_reader;

/* Decodes up to `groups` full groups of reader->lanes symbols, and returns how many: it stops, having changed
 * nothing, at a group for which it may lack words or which has an escape. The scalar decoder does that group.
 * So all give the same, on any stream. */
typedef size_t (*icma_rans_kernel)(icma_rans_reader *reader, const icma_rans_model *model, int32_t *symbols,
                                   size_t groups);
typedef struct icma_rans_decoder {
    const char *name;            /* "scalar", "avx2", "avx512" */
    icma_rans_kernel eight, all; /* for 8 and 32 lanes; NULL: none */
} icma_rans_decoder;
enum { ICMA_RANS_DECODERS = 3 };
/* Every decoder that this processor runs, slowest ("scalar") first; returns how many. */
size_t icma_rans_decoders_all(icma_rans_decoder list[ICMA_RANS_DECODERS]);
/* icma_rans_decode with a decoder of choice. */
icma_status icma_rans_decode_with(const icma_rans_decoder *decoder, const uint8_t *data, size_t size,
                                  const icma_rans_run *runs, size_t run_count, int32_t *symbols,
                                  icma_error *error);

#endif
