/* SPDX-License-Identifier: Apache-2.0 */
/* Steps and predictions of lossless links (spec 4.14): all that encoder and decoder must compute alike. */
#include "lossless_host.h"

#include <string.h>

/* DEPTH octaves of levels lie below the least step, for tensors that hardly differ from their prediction. */
enum { OCTAVE = 8, DEPTH = 8, DEEPEST = ICMA_LOSSLESS_DEPTHS - 1 };

/* Row d: contexts whose spread is 2^-d of those with a spread of 8 to 16, in the first row. (A difference of
 * such a spread has some bits that can be coded well; what is below them is noise.) */
static const uint8_t context_table[DEEPEST][OCTAVE] = {
    {97, 98, 99, 100, 101, 102, 103, 104}, {87, 89, 90, 91, 92, 93, 94, 95}, {78, 79, 80, 82, 83, 84, 85, 86},
    {67, 68, 70, 71, 72, 74, 75, 76},      {54, 56, 58, 59, 61, 62, 64, 65}, {37, 40, 42, 45, 47, 49, 51, 53},
    {1, 6, 12, 17, 22, 26, 30, 34},
};

static unsigned mantissa_of(icma_dtype dtype) {
    return dtype == ICMA_F32 ? 23 : dtype == ICMA_BF16 ? 7 : 10;
}

unsigned icma_lossless_levels(icma_dtype dtype) {
    return OCTAVE * (DEPTH + (dtype == ICMA_F16 ? 31 : 255));
}

unsigned icma_lossless_depth(unsigned context) {
    unsigned depth = 0;
    while (depth < DEEPEST && context < context_table[depth][0])
        depth++;
    return depth;
}

static uint8_t context_at(unsigned depth, unsigned level, const icma_lossless_profile *profile) {
    int context = depth < DEEPEST ? context_table[depth][level % OCTAVE] : 0,
        last = (int)icma_rans_contexts() - 1;
    if (profile->corrections)
        context += profile->correction[depth < profile->corrections ? depth : profile->corrections - 1];
    return (uint8_t)(context < 0 ? 0 : context > last ? last : context);
}

/* Far down all are alike. */
static void fill_contexts(icma_lossless_step *step, unsigned level, const icma_lossless_profile *profile) {
    unsigned octave = level / OCTAVE, depth = octave < DEPTH ? DEPTH - octave : 0, j = 0;
    for (; depth < DEEPEST || depth < profile->corrections; depth++)
        step->context[j++] = context_at(depth, level, profile);
    memset(step->context + j, context_at(depth, level, profile), ICMA_LOSSLESS_BINADES - j);
}

void icma_lossless_step_fill(icma_lossless_step *step, icma_dtype dtype, unsigned level,
                             const icma_lossless_profile *profile) {
    unsigned m = mantissa_of(dtype), octave = level / OCTAVE, lift = octave > DEPTH ? octave - DEPTH : 0;
    step->mantissa = m;
    step->width = icma_dtype_bits(dtype);
    step->lift = lift;
    step->zero_binades = lift > m ? lift - m + 1 : 0;
    fill_contexts(step, level, profile);
}

bool icma_lossless_predicts(const icma_lossless_profile *profile) {
    for (size_t k = 0; k < ICMA_LOSSLESS_TAPS; k++)
        if (profile->weight[k])
            return true;
    return false;
}

/* Of tap k itself: weight 0 is its own where k = 0; weight k + 1 is of (tap k - tap k + 1), weight k of (tap
 * k - 1 - tap k). */
static int32_t coefficient(const icma_lossless_profile *profile, size_t taps, size_t k) {
    int32_t next = k + 1 < taps ? profile->weight[k + 1] : 0;
    return k == 0 ? profile->weight[0] + next : next - profile->weight[k];
}

/* --- Casts, as icma_load_floats and icma_store_floats do them, without branches, so that they vectorise ---
 */

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float widen_f16(uint32_t bits) {
    uint32_t magnitude = bits & 0x7fff, special = (magnitude >= 0x7c00) * UINT32_C(0x7f800000);
    return float_of((bits & 0x8000) << 16 | bits_of(float_of(magnitude << 13) * 0x1p112f) | special);
}

/* Of a finite value. */
static inline uint32_t narrow_f16(float value) {
    uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    uint32_t denormal =
        bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f); /* an ulp of 0.5 is the least step of F16 */
    uint32_t cast = magnitude < 0x38800000 ? denormal : normal;
    return sign | (magnitude >= 0x47800000 ? 0x7c00 : cast);
}

static inline uint32_t narrow_bf16(float value) {
    uint32_t bits = bits_of(value);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

/* --- Predictions --- */

enum { BATCH = 512 };

static void widen(icma_dtype dtype, const uint8_t *from, size_t count, float *values) {
    if (dtype == ICMA_F16)
        for (size_t i = 0; i < count; i++)
            values[i] = widen_f16(icma_lossless_load(16, from + 2 * i));
    else if (dtype == ICMA_BF16)
        for (size_t i = 0; i < count; i++)
            values[i] = float_of(icma_lossless_load(16, from + 2 * i) << 16);
    else
        for (size_t i = 0; i < count; i++)
            values[i] = float_of(icma_lossless_load(32, from + 4 * i));
}

/* A product and a sum are rounded each, never fused, so that processors without fma are as fast. */
static void add_product(const float *tap, float c, size_t count, bool first, float *sum) {
    if (first)
        for (size_t i = 0; i < count; i++)
            sum[i] = c * tap[i];
    else
        for (size_t i = 0; i < count; i++)
            sum[i] += c * tap[i];
}

/* The sums in the dtype. What is no finite number differs between processors: there the nearest tap that
 * counts predicts, bit for bit. */
static void narrow(icma_dtype dtype, const float *sum, const uint32_t *nearest, size_t count,
                   uint32_t *predicted) {
    const uint32_t special = dtype == ICMA_F16 ? 0x7c00 : dtype == ICMA_BF16 ? 0x7f80 : 0x7f800000;
    if (dtype == ICMA_F16)
        for (size_t i = 0; i < count; i++)
            predicted[i] = narrow_f16(sum[i]);
    else if (dtype == ICMA_BF16)
        for (size_t i = 0; i < count; i++)
            predicted[i] = narrow_bf16(sum[i]);
    else
        memcpy(predicted, sum, count * sizeof *sum);
    for (size_t i = 0; i < count; i++) {
        bool finite = (bits_of(sum[i]) & 0x7f800000) != 0x7f800000 && (predicted[i] & special) != special;
        predicted[i] = finite ? predicted[i] : nearest[i];
    }
}

typedef struct mix {
    const uint8_t *tap[ICMA_LOSSLESS_TAPS]; /* those that count, from the nearest on */
    float factor[ICMA_LOSSLESS_TAPS];
    size_t count;
} mix;

static mix mix_of(const icma_lossless_link *link, const icma_lossless_profile *profile, size_t offset) {
    mix m = {.count = 0};
    for (size_t k = 0; k < link->tap_count; k++) {
        int32_t c = coefficient(profile, link->tap_count, k);
        if (c == 0)
            continue;
        m.tap[m.count] = link->taps[k] + offset;
        m.factor[m.count++] = (float)c / ICMA_LOSSLESS_UNIT;
    }
    return m;
}

static void predict_batch(icma_dtype dtype, const mix *m, size_t first, size_t count, uint32_t *predicted) {
    float sum[BATCH], tap[BATCH];
    uint32_t nearest[BATCH];
    const unsigned width = icma_dtype_bits(dtype);
    for (size_t k = 0; k < m->count; k++) {
        widen(dtype, m->tap[k] + first * (width / 8), count, tap);
        add_product(tap, m->factor[k], count, k == 0, sum);
    }
    for (size_t i = 0; i < count; i++)
        nearest[i] = icma_lossless_load(width, m->tap[0] + (first + i) * (width / 8));
    if (m->count == 1 && bits_of(m->factor[0]) == bits_of(1))
        memcpy(predicted, nearest, count * sizeof *predicted);
    else
        narrow(dtype, sum, nearest, count, predicted);
}

void icma_lossless_predict(const icma_lossless_link *link, size_t tensor, uint64_t first, size_t count,
                           const icma_lossless_profile *profile, uint32_t *predicted) {
    const icma_tensor_info *info = &link->signature->tensors[tensor];
    const mix m = mix_of(link, profile, (size_t)(info->begin + first * (icma_dtype_bits(info->dtype) / 8)));
    if (m.count == 0) {
        memset(predicted, 0, count * sizeof *predicted);
        return;
    }
    for (size_t done = 0; done < count; done += BATCH)
        predict_batch(info->dtype, &m, done, count - done < BATCH ? count - done : BATCH, predicted + done);
}
