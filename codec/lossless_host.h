/* SPDX-License-Identifier: Apache-2.0 */
/* What lossless*.c share. */
#ifndef ICMA_LOSSLESS_HOST_H
#define ICMA_LOSSLESS_HOST_H

#include "lossless.h"
#include "rans.h"

enum {
    ICMA_LOSSLESS_BLOCK = 65536, /* modelled elements in a block: one coded stream, one task of a thread */
    ICMA_LOSSLESS_PART = 262144, /* elements of a grouped tensor in one zstd frame */
    ICMA_LOSSLESS_DEPTHS = 8,    /* halvings of spreads, in steps, that contexts tell apart */
    ICMA_LOSSLESS_UNIT = 4096,   /* weights are integers in 1 / UNIT */
    ICMA_LOSSLESS_WEIGHT = 1 << 20,
    ICMA_LOSSLESS_BINADES = 256,
};

/* --- Steps: a float as an integer and some low bits (lossless_predict.c) --- */

/* Floats of one dtype as they would be with a larger least step, 2^lift of its own: a *high* integer that
 * counts them from zero upwards, and *low* bits, those of the magnitude that are under the step. Steps grow
 * with the binade only above the lifted range. Below the first step high is 0, and there can be many binades:
 * the low bits are then the number of the binade and a significand (lossless_bits.h). */
typedef struct icma_lossless_step {
    unsigned mantissa, width; /* stored bits of the significand; bits of an element */
    unsigned lift;            /* binary orders of magnitude */
    unsigned zero_binades;    /* below the first step, where they are coded by number; else 0, and there are
                                 `lift` low bits */
    uint8_t context[ICMA_LOSSLESS_BINADES]; /* of a difference, by how many binades the prediction is above
                                               the lifted range */
} icma_lossless_step;

/* A prediction, and what is added to the contexts of its differences. */
typedef struct icma_lossless_profile {
    int32_t weight[ICMA_LOSSLESS_TAPS]; /* of tap 0, and of tap k - 1 less tap k, in 1 / UNIT; all 0: nothing
                                           is predicted */
    unsigned corrections; /* how many there are, at most one a depth; the others are as the last, or 0 */
    int8_t correction[ICMA_LOSSLESS_DEPTHS];
} icma_lossless_profile;

/* How many levels (eighths of an octave of spread) a dtype has. */
unsigned icma_lossless_levels(icma_dtype dtype);
void icma_lossless_step_fill(icma_lossless_step *step, icma_dtype dtype, unsigned level,
                             const icma_lossless_profile *profile);

/* The depth that a context has without corrections. */
unsigned icma_lossless_depth(unsigned context);

/* Of a value under 2^31. */
static inline unsigned icma_lossless_bit_length(uint32_t value) {
#if defined(__GNUC__)
    return 31u - (unsigned)__builtin_clz(value << 1 | 1);
#else
    unsigned n = 0;
    for (; value; value >>= 1)
        n++;
    return n;
#endif
}

/* Of a magnitude (an element's bits without its sign). Here and below nothing branches: where steps and
 * spread are alike, no branch could be foretold. */
static inline uint32_t icma_lossless_high(const icma_lossless_step *step, uint32_t magnitude) {
    uint32_t exponent = magnitude >> step->mantissa, binade = exponent - (exponent > 0);
    uint32_t lifted = binade < step->lift ? binade : step->lift, below = step->lift - lifted;
    return (magnitude - (lifted << step->mantissa)) >>
           (below < step->mantissa + 1 ? below : step->mantissa + 1);
}

/* How many low bits a high integer has; 0 only if zero_binades is. */
static inline unsigned icma_lossless_low_bits(const icma_lossless_step *step, uint32_t high) {
    unsigned length = icma_lossless_bit_length(high), most = step->mantissa + 1;
    unsigned room = length < most ? most - length : 0;
    return room < step->lift ? room : step->lift;
}

static inline uint32_t icma_lossless_low(const icma_lossless_step *step, uint32_t magnitude, unsigned bits) {
    return (magnitude - ((step->lift - bits) << step->mantissa)) & ((UINT32_C(1) << bits) - 1);
}

/* The magnitude again; one of more than width - 1 bits is nobody's. */
static inline uint64_t icma_lossless_join(const icma_lossless_step *step, uint32_t high, unsigned bits,
                                          uint32_t low) {
    return ((uint64_t)(step->lift - bits) << step->mantissa) + ((uint64_t)high << bits | low);
}

/* Is the magnitude of this high integer coded by number of binade? */
static inline bool icma_lossless_is_deep(const icma_lossless_step *step, uint32_t high) {
    return high == 0 && step->zero_binades > 0;
}

/* Numbers of binades, from 1 for the one next to the step, take 2 n - 1 bits, n the bit length of the number.
 */
static inline unsigned icma_lossless_deep_bits(const icma_lossless_step *step, uint32_t magnitude) {
    return 2 * icma_lossless_bit_length(step->zero_binades - (magnitude >> step->mantissa)) - 1 +
           step->mantissa;
}

/* Signed: the bits of -h - 1 stand for a negative number of high integer h, so that -0 is next to +0. */
static inline uint32_t icma_lossless_fold(const icma_lossless_step *step, uint32_t element) {
    uint32_t sign = element >> (step->width - 1),
             high = icma_lossless_high(step, element & ((UINT32_C(1) << (step->width - 1)) - 1));
    return sign ? ~high : high;
}

static inline uint32_t icma_lossless_unfold(uint32_t folded) {
    return folded >> 31 ? ~folded : folded;
}

static inline uint8_t icma_lossless_context(const icma_lossless_step *step, uint32_t folded) {
    uint32_t binade = icma_lossless_unfold(folded) >> step->mantissa;
    return step->context[binade ? binade - 1 : 0];
}

/* Elements as they lie in the file. Not calls: there is one for each. */
static inline uint32_t icma_lossless_load(unsigned width, const uint8_t *from) {
    uint32_t low = (uint32_t)from[0] | (uint32_t)from[1] << 8;
    return width == 32 ? low | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24 : low;
}

static inline void icma_lossless_store(unsigned width, uint32_t element, uint8_t *to) {
    to[0] = (uint8_t)element;
    to[1] = (uint8_t)(element >> 8);
    if (width == 32) {
        to[2] = (uint8_t)(element >> 16);
        to[3] = (uint8_t)(element >> 24);
    }
}

/* Differences of folded elements of a width, small ones of either sign next to each other: 2 x, or -2 x - 1.
 */
static inline uint32_t icma_lossless_zigzag(uint32_t difference, unsigned width) {
    uint32_t all = UINT32_MAX >> (32 - width), sign = difference >> (width - 1) & 1;
    return (difference << 1 ^ (sign ? all : 0)) & all;
}

/* Equal to the difference in its lowest `width` bits. */
static inline uint32_t icma_lossless_unzigzag(uint32_t value) {
    return value >> 1 ^ (value & 1 ? UINT32_MAX : 0);
}

/* --- Predictions (lossless_predict.c) --- */

bool icma_lossless_predicts(const icma_lossless_profile *profile);
/* The bits of the predicted elements first .. first + count - 1 of a tensor. */
void icma_lossless_predict(const icma_lossless_link *link, size_t tensor, uint64_t first, size_t count,
                           const icma_lossless_profile *profile, uint32_t *predicted);

/* --- The plan: how each tensor is coded (lossless_plan.c) --- */

typedef enum icma_lossless_method {
    ICMA_LOSSLESS_PLAIN,
    ICMA_LOSSLESS_GROUPED,
    ICMA_LOSSLESS_MODELLED
} icma_lossless_method;

typedef struct icma_lossless_tensor {
    size_t tensor; /* number in the signature; it has elements */
    icma_lossless_method method;
    size_t profile; /* not if plain */
    unsigned level; /* modelled only */
    uint64_t first; /* modelled: elements of modelled tensors before it */
} icma_lossless_tensor;

/* A frame of a grouped tensor, or a block: a range of bytes of the payload. */
typedef struct icma_lossless_piece {
    size_t item;                   /* index of the plan's tensor; of a block, the first that it is of */
    uint64_t first;                /* element of that tensor; of a block, counted over all modelled tensors */
    size_t count;                  /* elements */
    bool block;                    /* size is then of the coded stream, low_size of the low bits after it */
    size_t size, low_size, offset; /* offset: from the end of the plan */
} icma_lossless_piece;

typedef struct icma_lossless_plan {
    icma_lossless_profile *profiles; /* owned */
    size_t profile_count;
    icma_lossless_tensor *tensors; /* coded ones with elements, in order; owned */
    size_t tensor_count;
    icma_lossless_piece *pieces; /* frames, tensor by tensor, then blocks; owned */
    size_t piece_count;
    uint64_t modelled; /* elements */
    size_t plain_size; /* bytes of plain tensors */
} icma_lossless_plan;

/* Checks the link and lists its tensors, all plain; no profiles. */
icma_status icma_lossless_plan_open(const icma_lossless_link *link, icma_lossless_plan *plan,
                                    icma_error *error);
/* Cuts what is to be coded into pieces, once methods are known. */
icma_status icma_lossless_plan_cut(const icma_lossless_link *link, icma_lossless_plan *plan,
                                   icma_error *error);
void icma_lossless_plan_write(const icma_lossless_link *link, const icma_lossless_plan *plan,
                              icma_buffer *out);
/* Reads what write wrote, checked against the link; the pieces lie within the `left` bytes that follow it and
 * are all of them. */
icma_status icma_lossless_plan_read(const icma_lossless_link *link, icma_cursor *cursor,
                                    icma_lossless_plan *plan, icma_error *error);
void icma_lossless_plan_free(icma_lossless_plan *plan);

/* --- Pieces (lossless_piece.c) --- */

/* They run in threads and say nothing: what goes wrong is memory, or damage. */

/* Appends a piece's bytes; sets piece->size and low_size. */
icma_status icma_lossless_piece_encode(const icma_lossless_link *link, const icma_lossless_plan *plan,
                                       icma_lossless_piece *piece, const uint8_t *original, icma_buffer *out);
/* bytes: of this piece. */
icma_status icma_lossless_piece_decode(const icma_lossless_link *link, const icma_lossless_plan *plan,
                                       const icma_lossless_piece *piece, const uint8_t *bytes, uint8_t *data);

/* --- Choosing (lossless_fit.c, lossless_choose.c; the encoder alone, floating point) --- */

/* Products of a tensor's taps and of what is to be predicted, over the elements where all are finite. Row k:
 * tap 0, then differences of neighbours; the last row is the element less tap 0. */
typedef struct icma_lossless_moments {
    double product[ICMA_LOSSLESS_TAPS + 1][ICMA_LOSSLESS_TAPS + 1];
    double count;
} icma_lossless_moments;

icma_status icma_lossless_moments_of(const icma_lossless_link *link, const uint8_t *original, size_t tensor,
                                     icma_lossless_moments *moments, icma_error *error);
/* Weights of least squares over some tensors, each tensor weighted by the inverse of what it leaves. */
void icma_lossless_fit(const icma_lossless_moments *const *tensors, size_t count, size_t taps,
                       icma_lossless_profile *profile);

/* Decides methods, profiles and levels. */
icma_status icma_lossless_choose(const icma_lossless_link *link, const uint8_t *original,
                                 icma_lossless_plan *plan, icma_error *error);

#endif
