/* SPDX-License-Identifier: Apache-2.0 */
#include "lossless_trial.h"

#include "compress.h"
#include "memory.h"

#include <math.h>
#include <string.h>

enum { WINDOWS = 8, CONTEXTS = 256, FRAME_LEVEL = 1 };

icma_status icma_lossless_trial_alloc(icma_lossless_trial *t, const icma_lossless_link *link, size_t capacity,
                                      icma_error *error) {
    memset(t, 0, sizeof *t);
    t->link = link;
    t->capacity = capacity;
    t->element = icma_alloc_array(capacity, sizeof *t->element);
    t->predicted = icma_alloc_array(capacity, sizeof *t->predicted);
    t->symbols = icma_alloc_array(capacity, sizeof *t->symbols);
    t->sorted = icma_alloc_array(capacity, sizeof *t->sorted);
    t->value = icma_alloc_array(capacity, sizeof *t->value);
    t->predicted_value = icma_alloc_array(capacity, sizeof *t->predicted_value);
    t->context = icma_alloc(capacity);
    t->plain = icma_alloc_array(capacity, sizeof(uint32_t));
    t->grouped = icma_alloc_array(capacity, sizeof(uint32_t));
    if (t->element && t->predicted && t->symbols && t->sorted && t->value && t->predicted_value &&
        t->context && t->plain && t->grouped)
        return ICMA_OK;
    return icma_fail(error, ICMA_E_MEMORY, NULL,
                     "no memory for a lossless link; pack fewer checkpoints at once");
}

void icma_lossless_trial_free(icma_lossless_trial *t) {
    icma_free(t->element);
    icma_free(t->predicted);
    icma_free(t->symbols);
    icma_free(t->sorted);
    icma_free(t->value);
    icma_free(t->predicted_value);
    icma_free(t->context);
    icma_free(t->plain);
    icma_free(t->grouped);
}

/* Window w of the sample starts at this element, and has *count. */
static uint64_t window(const icma_lossless_trial *t, size_t w, size_t *count) {
    if (t->info->count <= t->capacity) {
        *count = w == 0 ? (size_t)t->info->count : 0;
        return 0;
    }
    *count = t->capacity / WINDOWS;
    return (t->info->count - *count) / (WINDOWS - 1) * w;
}

static void values_of(icma_lossless_trial *t, const uint32_t *bits, float *values) {
    const unsigned width = icma_dtype_bits(t->info->dtype);
    for (size_t i = 0; i < t->count; i++)
        icma_lossless_store(width, bits[i], t->plain + i * (width / 8));
    icma_load_floats(t->info->dtype, t->plain, t->count, values);
}

void icma_lossless_trial_open(icma_lossless_trial *t, const uint8_t *original, size_t tensor) {
    t->tensor = tensor;
    t->info = &t->link->signature->tensors[tensor];
    t->count = 0;
    for (size_t w = 0, count; w < WINDOWS; w++, t->count += count) {
        uint64_t first = window(t, w, &count);
        const unsigned width = icma_dtype_bits(t->info->dtype);
        const uint8_t *from = original + t->info->begin + first * (width / 8);
        for (size_t i = 0; i < count; i++)
            t->element[t->count + i] = icma_lossless_load(width, from + i * (width / 8));
    }
    t->scale = (double)t->info->count / (double)t->count;
    values_of(t, t->element, t->value);
}

void icma_lossless_trial_predict(icma_lossless_trial *t, const icma_lossless_profile *profile) {
    for (size_t w = 0, count, done = 0; w < WINDOWS; w++, done += count) {
        uint64_t first = window(t, w, &count);
        if (count)
            icma_lossless_predict(t->link, t->tensor, first, count, profile, t->predicted + done);
    }
}

unsigned icma_lossless_trial_level(icma_lossless_trial *t, bool *often_equal) {
    const int least = t->info->dtype == ICMA_F32    ? -149
                      : t->info->dtype == ICMA_BF16 ? -133
                                                    : -24,
              last = (int)icma_lossless_levels(t->info->dtype) - 1;
    double sum = 0;
    size_t count = 0, equal = 0;
    values_of(t, t->predicted, t->predicted_value);
    for (size_t i = 0; i < t->count; i++) {
        double distance = fabs((double)t->value[i] - t->predicted_value[i]);
        equal += t->element[i] == t->predicted[i];
        sum += isfinite(distance) ? distance : 0;
        count += isfinite(distance) ? 1 : 0;
    }
    *often_equal = equal > t->count / 8;
    if (sum == 0)
        return 0;
    /* Level 40 has the spread of one least step; of a Gaussian the mean is 0.8 spreads. */
    int level = (int)floor(8 * (log2(1.2533 * sum / (double)count) - least) + 40);
    return level < 0 ? 0 : (unsigned)(level > last ? last : level);
}

/* Bits of the symbols, sorted by their contexts. */
static double cost_of_symbols(icma_lossless_trial *t) {
    size_t *counts = t->counts, start[CONTEXTS], sum = 0;
    double bits = 0;
    memset(counts, 0, sizeof t->counts);
    for (size_t i = 0; i < t->count; i++)
        counts[t->context[i]]++;
    for (size_t c = 0; c < CONTEXTS; c++) {
        start[c] = sum;
        sum += counts[c];
    }
    for (size_t i = 0; i < t->count; i++)
        t->sorted[start[t->context[i]]++] = t->symbols[i];
    for (unsigned c = 0; c < CONTEXTS; c++)
        if (counts[c])
            bits += icma_rans_cost(c, t->sorted + start[c] - counts[c], counts[c]);
    return bits;
}

double icma_lossless_trial_modelled(icma_lossless_trial *t, const icma_lossless_profile *profile,
                                    unsigned level) {
    icma_lossless_step step;
    icma_lossless_step_fill(&step, t->info->dtype, level, profile);
    const uint32_t magnitudes = (UINT32_C(1) << (step.width - 1)) - 1;
    uint64_t low = 0;
    for (size_t i = 0; i < t->count; i++) {
        uint32_t predicted = icma_lossless_fold(&step, t->predicted[i]),
                 magnitude = t->element[i] & magnitudes;
        uint32_t high = icma_lossless_high(&step, magnitude);
        uint32_t difference = (t->element[i] > magnitudes ? ~high : high) - predicted;
        memcpy(&t->symbols[i], &difference, sizeof difference);
        t->context[i] = icma_lossless_context(&step, predicted);
        low += icma_lossless_is_deep(&step, high) ? icma_lossless_deep_bits(&step, magnitude)
                                                  : icma_lossless_low_bits(&step, high);
    }
    return t->scale * ((double)low + cost_of_symbols(t));
}

unsigned icma_lossless_trial_run(const icma_lossless_trial *t, size_t first, size_t *count) {
    unsigned c = 0;
    for (size_t end = t->counts[0]; end <= first; end += t->counts[c])
        c++;
    *count = t->counts[c];
    return c;
}

/* A step up or down from a level, held within those that there are. */
static unsigned stepped(unsigned level, unsigned step, bool down, unsigned last) {
    if (down)
        return step < level ? level - step : 0;
    return step < last - level ? level + step : last;
}

double icma_lossless_trial_climb(icma_lossless_trial *t, const icma_lossless_profile *profile,
                                 unsigned *level) {
    const unsigned last = icma_lossless_levels(t->info->dtype) - 1;
    double best = icma_lossless_trial_modelled(t, profile, *level);
    for (int down = 0; down < 2; down++)
        for (unsigned step = 1; step > 0;) {
            unsigned next = stepped(*level, step, down, last);
            double bits = next == *level ? best : icma_lossless_trial_modelled(t, profile, next);
            bool better = bits < best;
            *level = better ? next : *level;
            best = better ? bits : best;
            step = better ? 2 * step : step / 2;
        }
    return best;
}

/* Bits of bytes of these frequencies; what so few of them hide of their entropy is added (Miller and Madow).
 */
static double entropy(const uint32_t *counts, size_t total) {
    double bits = 0, values = 0;
    for (size_t v = 0; v < 256; v++)
        if (counts[v]) {
            bits += counts[v] * log2((double)total / counts[v]);
            values++;
        }
    return bits + (values - 1) * 0.72;
}

static double glance(const icma_lossless_trial *t, size_t width) {
    double bits = 0;
    for (size_t b = 0; b < width; b++) {
        uint32_t counts[256] = {0};
        for (size_t i = 0; i < t->count; i++)
            counts[t->grouped[b * t->count + i]]++;
        bits += entropy(counts, t->count);
    }
    return bits;
}

double icma_lossless_trial_grouped(icma_lossless_trial *t, double enough) {
    size_t width = icma_dtype_bits(t->info->dtype) / 8;
    icma_lossless_step step;
    icma_lossless_step_fill(&step, t->info->dtype, 0, &(icma_lossless_profile){0});
    for (size_t i = 0; i < t->count; i++) {
        uint32_t difference =
            icma_lossless_fold(&step, t->element[i]) - icma_lossless_fold(&step, t->predicted[i]);
        icma_lossless_store(step.width, icma_lossless_zigzag(difference, step.width), t->plain + i * width);
    }
    icma_group_bytes(t->plain, t->count, width, t->grouped);
    if (t->scale * glance(t, width) > 1.05 * enough)
        return INFINITY;
    icma_buffer coded = {0};
    double bits = icma_zstd_compress(t->grouped, t->count * width, FRAME_LEVEL, &coded, NULL)
                      ? INFINITY
                      : t->scale * 8 * (double)coded.size;
    icma_buffer_free(&coded);
    return bits + 16; /* its size, in the plan */
}

double icma_lossless_trial_plain(const icma_lossless_trial *t) {
    return 8 * (double)t->info->size;
}
