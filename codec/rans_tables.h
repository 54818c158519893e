/* SPDX-License-Identifier: Apache-2.0 */
/* The frequency tables of the entropy coder (spec 4.10). Private to rans*.c. */
#ifndef ICMA_RANS_TABLES_H
#define ICMA_RANS_TABLES_H

#include <stdint.h>

/* As scripts/make-rans-tables says when it writes the tables. */
enum { ICMA_RANS_SHAPES = 105, ICMA_RANS_HALVES = 755, ICMA_RANS_OCTAVE = 8, ICMA_RANS_LAST_SHIFT = 15 };
/* The largest reach is that of the last shape: symbols -REACH .. REACH and the escape. */
enum { ICMA_RANS_REACH = 127, ICMA_RANS_ALPHABET = 2 * ICMA_RANS_REACH + 2, ICMA_RANS_COARSE = 12 };

typedef struct icma_rans_shape {
    uint32_t spread; /* standard deviation, in 2^-16 */
    uint32_t rate;   /* bits a symbol, in 2^-16 */
    uint16_t first;  /* where its frequencies start in icma_rans_halves: those of 1, 2, .. reach, and of their
                        negatives */
    uint16_t escape; /* frequency of the escape; 0 has what is left */
    uint8_t reach;
    uint8_t bits; /* log2 of the sum of all frequencies: COARSE, or 14 to 16 and reach at most 3 */
} icma_rans_shape;

extern const icma_rans_shape icma_rans_shapes[ICMA_RANS_SHAPES];
extern const uint16_t icma_rans_halves[ICMA_RANS_HALVES];

#endif
