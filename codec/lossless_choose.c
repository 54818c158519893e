/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the encoder of a lossless link decides (spec 4.14 binds decoders only).
 *
 * Candidates are: no prediction; each tap as it is, for what did not change; least squares over all tensors
 * of a dtype, since small tensors cannot pay for weights of their own; least squares of one tensor, if it is
 * large. Each tensor takes the one that costs least on a sample.
 */
#include "lossless_trial.h"

#include "memory.h"
#include "ops.h"

#include <math.h>
#include <string.h>

enum {
    LARGE = 32768,         /* elements of a tensor that can pay for weights of its own */
    SAMPLE = 16384,        /* elements of a tensor that are looked at, */
    SMALL_SAMPLE = 2048,   /* or so many where tensors are many, */
    ALL_SAMPLES = 1 << 21, /* that is, where they would be more than this in all */
    BITS_A_WEIGHT = 24,
    BITS_A_LEVEL = 8,
    LEVELS_OFF = 5 /* eighths of an octave by which a hopeless prediction is worse than another */
};
enum { CORRECT_DOWN = 8, CORRECT_UP = 40, CORRECTIONS = CORRECT_DOWN + CORRECT_UP + 1 };
static const icma_dtype dtypes[] = {ICMA_F32, ICMA_F16, ICMA_BF16};
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

/* Candidates: none, the taps, a fit a dtype; a large tensor's own fit is number `shared` + its item. */
typedef struct chooser {
    const icma_lossless_link *link;
    const uint8_t *original;
    icma_lossless_plan *plan;
    icma_lossless_profile *candidates;
    size_t shared, sample;
    icma_lossless_moments *moments; /* a tensor of the plan; NULL without taps */
    icma_status *statuses;          /* likewise */
    /* Of each kept profile: 1/256 bits by depth and correction. Whole numbers, so that their sums do not
     * depend on the order. */
    uint64_t (*costs)[ICMA_LOSSLESS_DEPTHS][CORRECTIONS];
} chooser;

static const icma_tensor_info *info_of(const chooser *c, size_t item) {
    return &c->link->signature->tensors[c->plan->tensors[item].tensor];
}

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL,
                     "no memory for a lossless link; pack fewer checkpoints at once");
}

/* Runs `work` for every tensor, each thread with a trial of its own. */
static icma_status for_each_tensor(chooser *c,
                                   icma_status (*work)(chooser *c, size_t item, icma_lossless_trial *trial),
                                   icma_error *error) {
#pragma omp parallel for schedule(dynamic) num_threads(icma_threads()) if (c->plan->tensor_count > 1)
    for (size_t item = 0; item < c->plan->tensor_count; item++) {
        icma_lossless_trial trial;
        size_t count = (size_t)info_of(c, item)->count;
        c->statuses[item] =
            icma_lossless_trial_alloc(&trial, c->link, count < c->sample ? count : c->sample, NULL);
        if (!c->statuses[item]) {
            icma_lossless_trial_open(&trial, c->original, c->plan->tensors[item].tensor);
            c->statuses[item] = work(c, item, &trial);
        }
        icma_lossless_trial_free(&trial);
    }
    for (size_t item = 0; item < c->plan->tensor_count; item++)
        if (c->statuses[item])
            return no_memory(error);
    return ICMA_OK;
}

/* --- Candidates --- */

static void copy_tap(icma_lossless_profile *profile, size_t tap) {
    profile->weight[0] = ICMA_LOSSLESS_UNIT;
    for (size_t k = 1; k <= tap; k++)
        profile->weight[k] = -ICMA_LOSSLESS_UNIT;
}

static icma_status find_moments(chooser *c, icma_error *error) {
#pragma omp parallel for schedule(dynamic) num_threads(icma_threads()) if (c->plan->tensor_count > 1)
    for (size_t item = 0; item < c->plan->tensor_count; item++)
        c->statuses[item] = icma_lossless_moments_of(c->link, c->original, c->plan->tensors[item].tensor,
                                                     &c->moments[item], NULL);
    for (size_t item = 0; item < c->plan->tensor_count; item++)
        if (c->statuses[item])
            return no_memory(error);
    return ICMA_OK;
}

static icma_status fit_candidates(chooser *c, icma_error *error) {
    size_t taps = c->link->tap_count, count = c->plan->tensor_count;
    const icma_lossless_moments **list = icma_alloc_array(count + 1, sizeof *list);
    if (!list)
        return no_memory(error);
    for (size_t d = 0; d < DTYPES; d++) {
        size_t listed = 0;
        for (size_t item = 0; item < count; item++)
            if (info_of(c, item)->dtype == dtypes[d])
                list[listed++] = &c->moments[item];
        if (listed)
            icma_lossless_fit(list, listed, taps, &c->candidates[1 + taps + d]);
    }
    for (size_t item = 0; item < count; item++) {
        list[0] = &c->moments[item];
        if (info_of(c, item)->count >= LARGE)
            icma_lossless_fit(list, 1, taps, &c->candidates[c->shared + item]);
    }
    icma_free(list);
    return ICMA_OK;
}

static icma_status make_candidates(chooser *c, icma_error *error) {
    size_t taps = c->link->tap_count, count = c->plan->tensor_count;
    c->shared = taps ? 1 + taps + DTYPES : 1;
    c->candidates = icma_alloc_zeroed(c->shared + count + 1, sizeof *c->candidates);
    c->moments = icma_alloc_array(count + 1, sizeof *c->moments);
    if (!c->candidates || !c->moments)
        return no_memory(error);
    if (taps == 0)
        return ICMA_OK;
    for (size_t k = 0; k < taps; k++)
        copy_tap(&c->candidates[1 + k], k);
    icma_status status = find_moments(c, error);
    return status ? status : fit_candidates(c, error);
}

/* --- A tensor's choice --- */

/* Is candidate p one for this tensor? */
static bool applies(const chooser *c, size_t item, size_t p) {
    size_t fits = 1 + c->link->tap_count;
    if (p >= c->shared)
        return p == c->shared + item && c->link->tap_count > 0 && info_of(c, item)->count >= LARGE;
    return p < fits || info_of(c, item)->dtype == dtypes[p - fits];
}

static void consider_grouped(chooser *c, icma_lossless_tensor *t, size_t p, icma_lossless_trial *trial,
                             double *best) {
    icma_lossless_trial_predict(trial, &c->candidates[p]);
    double bits = icma_lossless_trial_grouped(trial, *best);
    if (bits >= *best)
        return;
    *best = bits;
    t->method = ICMA_LOSSLESS_GROUPED;
    t->profile = p;
}

typedef struct best_so_far {
    double bits;
    unsigned level;
} best_so_far;

/* A prediction that is off by half as much again as another is not tried further, unless it is often right.
 */
static void consider_modelled(chooser *c, icma_lossless_tensor *t, size_t p, icma_lossless_trial *trial,
                              best_so_far *best) {
    bool often_equal;
    if (!applies(c, (size_t)(t - c->plan->tensors), p))
        return;
    icma_lossless_trial_predict(trial, &c->candidates[p]);
    unsigned level = icma_lossless_trial_level(trial, &often_equal);
    if (!often_equal && isfinite(best->bits) && level >= best->level + LEVELS_OFF)
        return;
    double bits = icma_lossless_trial_modelled(trial, &c->candidates[p], level);
    if (p >= c->shared)
        bits += BITS_A_WEIGHT * (double)c->link->tap_count;
    if (bits >= best->bits)
        return;
    *best = (best_so_far){bits, level};
    t->profile = p;
    t->level = level;
}

static icma_status choose_tensor(chooser *c, size_t item, icma_lossless_trial *trial) {
    icma_lossless_tensor *t = &c->plan->tensors[item];
    best_so_far modelled = {.bits = INFINITY};
    for (size_t p = c->shared; p-- > 0;) /* the likeliest first */
        consider_modelled(c, t, p, trial, &modelled);
    consider_modelled(c, t, c->shared + item, trial, &modelled);
    size_t predicted = t->profile;
    icma_lossless_trial_predict(trial, &c->candidates[predicted]);
    double best = icma_lossless_trial_climb(trial, &c->candidates[predicted], &t->level) + BITS_A_LEVEL;
    t->method = ICMA_LOSSLESS_MODELLED;
    consider_grouped(c, t, predicted, trial, &best);
    if (predicted != 0)
        consider_grouped(c, t, 0, trial, &best);
    if (icma_lossless_trial_plain(trial) <= best)
        t->method = ICMA_LOSSLESS_PLAIN;
    return ICMA_OK;
}

/* --- Profiles --- */

/* Only those that are used, in the order of the candidates. */
static icma_status keep_profiles(chooser *c, icma_error *error) {
    size_t all = c->shared + c->plan->tensor_count, kept = 0;
    size_t *number = icma_alloc_array(all, sizeof *number);
    c->plan->profiles = icma_alloc_zeroed(all, sizeof *c->plan->profiles);
    if (!number || !c->plan->profiles) {
        icma_free(number);
        return no_memory(error);
    }
    for (size_t p = 0; p < all; p++)
        number[p] = SIZE_MAX;
    for (size_t item = 0; item < c->plan->tensor_count; item++)
        if (c->plan->tensors[item].method != ICMA_LOSSLESS_PLAIN)
            number[c->plan->tensors[item].profile] = 0;
    for (size_t p = 0; p < all; p++)
        if (number[p] == 0) {
            c->plan->profiles[kept] = c->candidates[p];
            number[p] = kept++;
        }
    for (size_t item = 0; item < c->plan->tensor_count; item++)
        if (c->plan->tensors[item].method != ICMA_LOSSLESS_PLAIN)
            c->plan->tensors[item].profile = number[c->plan->tensors[item].profile];
    c->plan->profile_count = kept;
    icma_free(number);
    return ICMA_OK;
}

/* --- Corrections of contexts ---
 *
 * Where steps are as large as the spread, rounding of the prediction and of the taps adds to it. How much
 * depends on dtype and taps: it is measured. */

static icma_status add_costs(chooser *c, size_t item, icma_lossless_trial *trial) {
    const icma_lossless_tensor *t = &c->plan->tensors[item];
    if (t->method != ICMA_LOSSLESS_MODELLED || !icma_lossless_predicts(&c->plan->profiles[t->profile]))
        return ICMA_OK;
    icma_lossless_trial_predict(trial, &c->plan->profiles[t->profile]);
    icma_lossless_trial_modelled(trial, &c->plan->profiles[t->profile], t->level);
    for (size_t first = 0, count; first < trial->count; first += count) {
        int context = (int)icma_lossless_trial_run(trial, first, &count);
        unsigned depth = icma_lossless_depth((unsigned)context);
        for (int i = 0; depth > 0 && i < CORRECTIONS; i++) {
            int corrected = context + i - CORRECT_DOWN;
            double bits =
                icma_rans_cost(corrected < 0 ? 0 : (unsigned)corrected, trial->sorted + first, count) *
                trial->scale;
            uint64_t units = (uint64_t)fmin(256 * bits, 0x1p47);
#pragma omp atomic
            c->costs[t->profile][depth][i] += units;
        }
    }
    return ICMA_OK;
}

static void correct_profile(chooser *c, size_t p) {
    icma_lossless_profile *profile = &c->plan->profiles[p];
    for (unsigned depth = 0; depth < ICMA_LOSSLESS_DEPTHS; depth++) {
        const uint64_t *costs = c->costs[p][depth];
        int best = CORRECT_DOWN;
        for (int i = 0; i < CORRECTIONS; i++)
            if (costs[i] < costs[best])
                best = i;
        /* A profile that is hardly corrected is not worth its bytes. */
        if (costs[CORRECT_DOWN] - costs[best] < 256 * BITS_A_LEVEL)
            best = CORRECT_DOWN;
        profile->correction[depth] = (int8_t)(best - CORRECT_DOWN);
        if (best != CORRECT_DOWN)
            profile->corrections = depth + 1;
    }
    for (unsigned depth = profile->corrections; depth < ICMA_LOSSLESS_DEPTHS; depth++)
        profile->correction[depth] = 0;
}

static icma_status refine_level(chooser *c, size_t item, icma_lossless_trial *trial) {
    icma_lossless_tensor *t = &c->plan->tensors[item];
    if (t->method != ICMA_LOSSLESS_MODELLED || c->plan->profiles[t->profile].corrections == 0)
        return ICMA_OK;
    icma_lossless_trial_predict(trial, &c->plan->profiles[t->profile]);
    icma_lossless_trial_climb(trial, &c->plan->profiles[t->profile], &t->level);
    return ICMA_OK;
}

static icma_status correct_profiles(chooser *c, icma_error *error) {
    if (c->link->tap_count == 0)
        return ICMA_OK;
    if (!(c->costs = icma_alloc_zeroed(c->plan->profile_count + 1, sizeof *c->costs)))
        return no_memory(error);
    icma_status status = for_each_tensor(c, add_costs, error);
    for (size_t p = 0; !status && p < c->plan->profile_count; p++)
        correct_profile(c, p);
    return status ? status : for_each_tensor(c, refine_level, error);
}

icma_status icma_lossless_choose(const icma_lossless_link *link, const uint8_t *original,
                                 icma_lossless_plan *plan, icma_error *error) {
    chooser c = {
        .link = link, .original = original, .plan = plan, .sample = ALL_SAMPLES / (plan->tensor_count + 1)};
    c.sample = c.sample > SAMPLE ? SAMPLE : c.sample < SMALL_SAMPLE ? SMALL_SAMPLE : c.sample;
    icma_status status = ICMA_OK;
    if (!(c.statuses = icma_alloc_zeroed(plan->tensor_count + 1, sizeof *c.statuses)))
        status = no_memory(error);
    if (!status)
        status = make_candidates(&c, error);
    if (!status)
        status = for_each_tensor(&c, choose_tensor, error);
    if (!status)
        status = keep_profiles(&c, error);
    if (!status)
        status = correct_profiles(&c, error);
    icma_free(c.statuses);
    icma_free(c.candidates);
    icma_free(c.moments);
    icma_free(c.costs);
    return status;
}
