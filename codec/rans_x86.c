/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entropy decoders for x86: a group of 8 or 32 lanes in vectors of 8 or 16. All steps are integer and lane by
 * lane, but for the words, which go to the lanes that need one in order: an "expand". A group is committed
 * only when it is known to have no escape.
 */
#include "rans_host.h"

#if defined(__x86_64__)
#include <immintrin.h>

/* A fine table, any but a coarse one, has at most 8 symbols: they fit one vector. */
enum { FINE_SYMBOLS = 8 };

/* A model in the form that the vectors want. */
typedef struct lookup {
    bool coarse;
    unsigned symbols;
    int start[FINE_SYMBOLS], frequency[FINE_SYMBOLS]; /* of a fine table */
} lookup;

static lookup lookup_of(const icma_rans_model *model) {
    lookup look = {.coarse = model->bits == ICMA_RANS_COARSE, .symbols = model->count};
    for (unsigned s = 0; !look.coarse && s < model->count; s++) {
        look.start[s] = (int)model->start[s];
        look.frequency[s] = (int)model->frequency[s];
    }
    return look;
}

/* What 256 masks of 8 lanes expand by: the n-th lane of a mask gets word n. */
#define BIT(m, i) ((m) >> (i)&1)
#define EXPAND_1(m)                                                                                          \
    {                                                                                                        \
        0, BIT(m, 0), BIT(m, 0) + BIT(m, 1), BIT(m, 0) + BIT(m, 1) + BIT(m, 2),                              \
            BIT(m, 0) + BIT(m, 1) + BIT(m, 2) + BIT(m, 3),                                                   \
            BIT(m, 0) + BIT(m, 1) + BIT(m, 2) + BIT(m, 3) + BIT(m, 4),                                       \
            BIT(m, 0) + BIT(m, 1) + BIT(m, 2) + BIT(m, 3) + BIT(m, 4) + BIT(m, 5),                           \
            BIT(m, 0) + BIT(m, 1) + BIT(m, 2) + BIT(m, 3) + BIT(m, 4) + BIT(m, 5) + BIT(m, 6)                \
    }
#define EXPAND_4(m) EXPAND_1(m), EXPAND_1((m) + 1), EXPAND_1((m) + 2), EXPAND_1((m) + 3)
#define EXPAND_16(m) EXPAND_4(m), EXPAND_4((m) + 4), EXPAND_4((m) + 8), EXPAND_4((m) + 12)
#define EXPAND_64(m) EXPAND_16(m), EXPAND_16((m) + 16), EXPAND_16((m) + 32), EXPAND_16((m) + 48)
static const uint8_t expand_table[256][8] = {EXPAND_64(0), EXPAND_64(64), EXPAND_64(128), EXPAND_64(192)};

/* --- AVX2 --- */

#define AVX2 __attribute__((target("avx2,popcnt"), always_inline)) static inline

/* The symbols of 8 states, which become the states before renormalisation. */
AVX2 __m256i step_avx2(const icma_rans_model *model, const lookup *look, __m256i *x) {
    if (look->coarse) {
        __m256i slot = _mm256_and_si256(*x, _mm256_set1_epi32((1 << ICMA_RANS_COARSE) - 1));
        __m256i entry = _mm256_i32gather_epi32((const int *)(const void *)model->slots, slot, 4);
        __m256i offset = _mm256_and_si256(_mm256_srli_epi32(entry, 8), _mm256_set1_epi32(0xfff));
        *x = _mm256_mullo_epi32(_mm256_srli_epi32(entry, 20), _mm256_srli_epi32(*x, ICMA_RANS_COARSE));
        *x = _mm256_add_epi32(*x, offset);
        return _mm256_and_si256(entry, _mm256_set1_epi32(0xff));
    }
    __m256i slot = _mm256_and_si256(*x, _mm256_set1_epi32((int)((UINT32_C(1) << model->bits) - 1)));
    __m256i symbol = _mm256_setzero_si256();
    for (unsigned s = 1; s < look->symbols; s++) /* one more for each start not above the slot */
        symbol = _mm256_sub_epi32(symbol, _mm256_cmpgt_epi32(slot, _mm256_set1_epi32(look->start[s] - 1)));
    __m256i frequency = _mm256_permutevar8x32_epi32(
        _mm256_loadu_si256((const __m256i *)(const void *)look->frequency), symbol);
    __m256i start =
        _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i *)(const void *)look->start), symbol);
    *x = _mm256_mullo_epi32(frequency, _mm256_srl_epi32(*x, _mm_cvtsi32_si128((int)model->bits)));
    *x = _mm256_add_epi32(*x, _mm256_sub_epi32(slot, start));
    return symbol;
}

/* Lanes that need a word. */
AVX2 __m256i low_avx2(__m256i x) {
    return _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
}

/* Lanes of x, of which those in `low` still lack their word, that will need one after a shift. No word
 * decides that: a word's bits lie below. So one vector alone, which waits for its own results, works both
 * refills out side by side; with four there is enough else to do. */
AVX2 __m256i low_after_avx2(__m256i x, __m256i low, __m256i shift) {
    __m256i down = _mm256_add_epi32(shift, _mm256_andnot_si256(low, _mm256_set1_epi32(16)));
    return _mm256_cmpeq_epi32(_mm256_srlv_epi32(x, down), _mm256_setzero_si256());
}

/* Where the next word is after this vector's lanes took theirs. */
AVX2 const uint8_t *refill_avx2(__m256i *x, __m256i low, const uint8_t *words) {
    unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(low));
    __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)expand_table[mask]));
    __m256i word = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)words));
    __m256i full = _mm256_or_si256(_mm256_slli_epi32(*x, 16), _mm256_permutevar8x32_epi32(word, order));
    *x = _mm256_blendv_epi8(*x, full, low);
    return words + 2 * (size_t)_mm_popcnt_u32(mask);
}

AVX2 size_t decode_avx2(icma_rans_reader *reader, const icma_rans_model *model, int32_t *symbols,
                        size_t groups, const int vectors) {
    const lookup look = lookup_of(model);
    const size_t lanes = 8 * (size_t)vectors, need = model->shift ? 2 * lanes : lanes;
    const uint8_t *words = reader->words, *end = words + 2 * reader->left;
    const __m256i escape = _mm256_set1_epi32((int)model->count - 1);
    const __m256i middle = _mm256_set1_epi32((int)(model->reach << model->shift) + (1 << model->shift >> 1));
    const __m256i below = _mm256_set1_epi32((1 << model->shift) - 1);
    const __m256i shifts = _mm256_set1_epi32((int)model->shift);
    const __m128i shift = _mm_cvtsi32_si128((int)model->shift);
    __m256i state[4], x[4], symbol[4], after;
    size_t g = 0;
    for (int v = 0; v < vectors; v++)
        state[v] = _mm256_loadu_si256((const __m256i *)(const void *)(reader->state + 8 * v));
    for (; g < groups && (size_t)(end - words) >= 2 * need; g++, symbols += lanes) {
        __m256i escaped = _mm256_setzero_si256();
        for (int v = 0; v < vectors; v++) {
            x[v] = state[v];
            symbol[v] = step_avx2(model, &look, &x[v]);
            escaped = _mm256_or_si256(escaped, _mm256_cmpeq_epi32(symbol[v], escape));
        }
        if (!_mm256_testz_si256(escaped, escaped))
            break;
        for (int v = 0; v < vectors; v++) {
            __m256i low = low_avx2(x[v]);
            after = low_after_avx2(x[v], low, shifts);
            words = refill_avx2(&x[v], low, words);
            symbol[v] = _mm256_sub_epi32(_mm256_sll_epi32(symbol[v], shift), middle);
        }
        for (int v = 0; model->shift && v < vectors; v++) {
            symbol[v] = _mm256_add_epi32(symbol[v], _mm256_and_si256(x[v], below));
            x[v] = _mm256_srl_epi32(x[v], shift);
            words = refill_avx2(&x[v], vectors == 1 ? after : low_avx2(x[v]), words);
        }
        for (int v = 0; v < vectors; v++) {
            state[v] = x[v];
            _mm256_storeu_si256((__m256i *)(void *)(symbols + 8 * v), symbol[v]);
        }
    }
    for (int v = 0; v < vectors; v++)
        _mm256_storeu_si256((__m256i *)(void *)(reader->state + 8 * v), state[v]);
    reader->words = words;
    reader->left = (size_t)(end - words) / 2;
    return g;
}

__attribute__((target("avx2,popcnt"))) static size_t
eight_avx2(icma_rans_reader *reader, const icma_rans_model *model, int32_t *symbols, size_t groups) {
    return decode_avx2(reader, model, symbols, groups, 1);
}

__attribute__((target("avx2,popcnt"))) static size_t
all_avx2(icma_rans_reader *reader, const icma_rans_model *model, int32_t *symbols, size_t groups) {
    return decode_avx2(reader, model, symbols, groups, 4);
}

/* --- AVX-512 --- */

#define AVX512 __attribute__((target("avx512f,popcnt"), always_inline)) static inline

AVX512 __m512i step_avx512(const icma_rans_model *model, const lookup *look, __m512i *x) {
    if (look->coarse) {
        __m512i slot = _mm512_and_si512(*x, _mm512_set1_epi32((1 << ICMA_RANS_COARSE) - 1));
        __m512i entry = _mm512_i32gather_epi32(slot, model->slots, 4);
        __m512i offset = _mm512_and_si512(_mm512_srli_epi32(entry, 8), _mm512_set1_epi32(0xfff));
        *x = _mm512_mullo_epi32(_mm512_srli_epi32(entry, 20), _mm512_srli_epi32(*x, ICMA_RANS_COARSE));
        *x = _mm512_add_epi32(*x, offset);
        return _mm512_and_si512(entry, _mm512_set1_epi32(0xff));
    }
    __m512i slot = _mm512_and_si512(*x, _mm512_set1_epi32((int)((UINT32_C(1) << model->bits) - 1)));
    __m512i symbol = _mm512_setzero_si512(), one = _mm512_set1_epi32(1);
    for (unsigned s = 1; s < look->symbols; s++)
        symbol = _mm512_mask_add_epi32(
            symbol, _mm512_cmpge_epi32_mask(slot, _mm512_set1_epi32(look->start[s])), symbol, one);
    __m512i frequencies =
        _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)look->frequency));
    __m512i starts = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)look->start));
    *x = _mm512_srl_epi32(*x, _mm_cvtsi32_si128((int)model->bits));
    *x = _mm512_mullo_epi32(_mm512_permutexvar_epi32(symbol, frequencies), *x);
    *x = _mm512_add_epi32(*x, _mm512_sub_epi32(slot, _mm512_permutexvar_epi32(symbol, starts)));
    return symbol;
}

AVX512 const uint8_t *refill_avx512(__m512i *x, const uint8_t *words) {
    __mmask16 low = _mm512_cmplt_epu32_mask(*x, _mm512_set1_epi32((int)ICMA_RANS_LOW));
    __m512i word = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)words));
    *x = _mm512_mask_or_epi32(*x, low, _mm512_slli_epi32(*x, 16), _mm512_maskz_expand_epi32(low, word));
    return words + 2 * (size_t)_mm_popcnt_u32(low);
}

/* Two vectors: 32 lanes. */
__attribute__((target("avx512f,popcnt"))) static size_t
all_avx512(icma_rans_reader *reader, const icma_rans_model *model, int32_t *symbols, size_t groups) {
    const lookup look = lookup_of(model);
    const size_t need = model->shift ? 2 * ICMA_RANS_LANES : ICMA_RANS_LANES;
    const uint8_t *words = reader->words, *end = words + 2 * reader->left;
    const __m512i escape = _mm512_set1_epi32((int)model->count - 1);
    const __m512i middle = _mm512_set1_epi32((int)(model->reach << model->shift) + (1 << model->shift >> 1));
    const __m512i below = _mm512_set1_epi32((1 << model->shift) - 1);
    const __m128i shift = _mm_cvtsi32_si128((int)model->shift);
    __m512i state[2], x[2], symbol[2];
    size_t g = 0;
    for (int v = 0; v < 2; v++)
        state[v] = _mm512_loadu_si512(reader->state + 16 * v);
    for (; g < groups && (size_t)(end - words) >= 2 * need; g++, symbols += ICMA_RANS_LANES) {
        for (int v = 0; v < 2; v++) {
            x[v] = state[v];
            symbol[v] = step_avx512(model, &look, &x[v]);
        }
        if (_mm512_cmpeq_epi32_mask(symbol[0], escape) | _mm512_cmpeq_epi32_mask(symbol[1], escape))
            break;
        for (int v = 0; v < 2; v++) {
            words = refill_avx512(&x[v], words);
            symbol[v] = _mm512_sub_epi32(_mm512_sll_epi32(symbol[v], shift), middle);
        }
        for (int v = 0; model->shift && v < 2; v++) {
            symbol[v] = _mm512_add_epi32(symbol[v], _mm512_and_si512(x[v], below));
            x[v] = _mm512_srl_epi32(x[v], shift);
            words = refill_avx512(&x[v], words);
        }
        for (int v = 0; v < 2; v++) {
            state[v] = x[v];
            _mm512_storeu_si512(symbols + 16 * v, symbol[v]);
        }
    }
    for (int v = 0; v < 2; v++)
        _mm512_storeu_si512(reader->state + 16 * v, state[v]);
    reader->words = words;
    reader->left = (size_t)(end - words) / 2;
    return g;
}

size_t icma_rans_decoders_all(icma_rans_decoder list[ICMA_RANS_DECODERS]) {
    size_t count = 0;
    list[count++] = (icma_rans_decoder){"scalar", NULL, NULL};
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("popcnt"))
        return count;
    list[count++] = (icma_rans_decoder){"avx2", eight_avx2, all_avx2};
    if (__builtin_cpu_supports("avx512f")) /* 8 lanes are half a vector: no gain */
        list[count++] = (icma_rans_decoder){"avx512", eight_avx2, all_avx512};
    return count;
}

#else

size_t icma_rans_decoders_all(icma_rans_decoder list[ICMA_RANS_DECODERS]) {
    list[0] = (icma_rans_decoder){"scalar", NULL, NULL};
    return 1;
}

#endif
