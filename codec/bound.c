/* SPDX-License-Identifier: Apache-2.0 */
#include "bound.h"

#include "memory.h"
#include "ops.h"
#include "rans.h"
#include "trellis.h"

#include <math.h>
#include <string.h>

enum { FACTORS = 2, WIDEST_SEARCH = 32 };

/* Of a bit, as icma_trellis_quantise takes it. */
static const double usual_price = 1, highest_price = 2.5;

typedef struct unit {
    const icma_pair *pair;    /* NULL: one tensor */
    size_t tensor[FACTORS];   /* the modelled ones that are not verbatim */
    size_t offset[FACTORS];   /* of its prediction */
    size_t count;
    /* What was chosen. */
    bool coded, failed;
    int32_t code[FACTORS];
    uint8_t context[FACTORS][ICMA_RESIDUAL_CLASSES]; /* of the classes that there are, ascending */
    int16_t *integers[FACTORS];                      /* owned */
} unit;

typedef struct attempt {
    int32_t code[FACTORS];
    double price;
    double bits;
    bool holds;
} attempt;

/* --- one unit ---------------------------------------------------------------------------------------------------- */

typedef struct search {
    const icma_bounded *b;
    unit *u;
    size_t sizes[FACTORS][ICMA_RESIDUAL_CLASSES];
    float *values;  /* the longer factor, class after class; then what it decodes to */
    float *target;  /* x, the same */
    int32_t *symbols; /* class after class; then integers */
    uint8_t *scratch;
    icma_status status;
} search;

static const icma_tensor_info *info_of(const search *s, size_t f) {
    return &s->b->signature->tensors[s->u->tensor[f]];
}

static double measured_error(search *s) {
    icma_distance d;
    const icma_bounded *b = s->b;
    if (s->u->pair && b->bound.kind == ICMA_BOUND_DW) {
        icma_status status = icma_fidelity_pair(b->signature, s->u->pair, b->original, b->decoded, &d);
        s->status = s->status ? s->status : status;
        if (d.energy > 0 || !(d.error == 0))
            return icma_distance_relative(&d);
    }
    /* dW = 0: its factors are held one by one. */
    double worst = 0;
    for (size_t f = 0; f < s->u->count; f++) {
        icma_fidelity_tensor(info_of(s, f), b->original, b->decoded, &d);
        worst = fmax(worst, b->bound.kind == ICMA_BOUND_ABS ? d.maximum : icma_distance_relative(&d));
    }
    return worst;
}

static bool holds(search *s) {
    return measured_error(s) <= (double)s->b->bound.value;
}

static bool is_plain(const icma_bounded *b) {
    return b->bound.kind == ICMA_BOUND_ABS;
}

/* Classes of a factor's weights; NULL: one. */
static const uint8_t *classes_of(const search *s, size_t f) {
    return s->b->classes ? s->b->classes + s->u->offset[f] : NULL;
}

/* Symbols of the weights of one class, and the integers that they stand for. */
static bool quantise_class(search *s, size_t first, size_t count, double price, uint8_t *context, double *bits) {
    int32_t *symbols = s->symbols + first;
    if (!is_plain(s->b)) {
        *context = (uint8_t)icma_trellis_quantise(s->values + first, count, price, symbols, s->scratch, bits);
        return icma_trellis_expand(*context, symbols, count);
    }
    for (size_t i = 0; i < count; i++)
        symbols[i] = (int32_t)roundf(s->values[first + i]);
    *context = (uint8_t)icma_rans_best_context(symbols, count, bits);
    return true;
}

/* Integers for (target - prediction) / step, class after class. False if one is out of range. */
static bool quantise(search *s, size_t f, const float *prediction, float step, double price, double *bits) {
    const uint8_t *classes = classes_of(s, f);
    size_t next[ICMA_RESIDUAL_CLASSES], count = (size_t)info_of(s, f)->count;
    uint8_t *context = s->u->context[f];
    bool fits = true;
    icma_residual_places(s->sizes[f], next);
    for (size_t i = 0; i < count; i++) {
        float value = (s->target[i] - prediction[i]) / step;
        s->values[next[classes ? classes[i] : 0]++] = value;
        fits = fits && fabsf(value) < 2 * ICMA_TRELLIS_LARGEST - 4; /* NaN does not */
    }
    *bits = 0;
    for (size_t c = 0; fits && c < ICMA_RESIDUAL_CLASSES; c++) {
        double more;
        if (s->sizes[f][c] == 0)
            continue;
        fits = quantise_class(s, next[c] - s->sizes[f][c], s->sizes[f][c], price, context++, &more);
        *bits += more;
    }
    return fits;
}

/* Decodes the integers of one factor as a reader will; they are kept when `keep`. */
static void decode_factor(search *s, size_t f, const float *prediction, float step, bool keep) {
    const icma_tensor_info *info = info_of(s, f);
    const uint8_t *classes = classes_of(s, f);
    size_t next[ICMA_RESIDUAL_CLASSES];
    icma_residual_places(s->sizes[f], next);
    for (size_t i = 0; i < info->count; i++) {
        int32_t integer = s->symbols[next[classes ? classes[i] : 0]++];
        s->values[i] = fmaf((float)integer, step, prediction[i]);
        if (keep)
            s->u->integers[f][i] = (int16_t)integer;
    }
    icma_store_floats(info->dtype, s->values, (size_t)info->count, s->b->decoded + info->begin);
}

/* Codes the unit with these steps and this price; its integers are kept when `keep`. */
static void try(search *s, attempt *a, bool keep) {
    a->bits = 0;
    a->holds = true;
    for (size_t f = 0; f < s->u->count && a->holds; f++) {
        const icma_tensor_info *info = info_of(s, f);
        const float *prediction = s->b->prediction + s->u->offset[f];
        float step = icma_residual_step(s->b->generator->scale[s->u->tensor[f]], a->code[f]);
        double bits;
        icma_load_floats(info->dtype, s->b->original + info->begin, (size_t)info->count, s->target);
        a->holds = step > 0 && a->code[f] >= -ICMA_RESIDUAL_MOST_CODE && a->code[f] <= ICMA_RESIDUAL_MOST_CODE &&
                   quantise(s, f, prediction, step, a->price, &bits);
        if (!a->holds)
            break;
        a->bits += bits;
        decode_factor(s, f, prediction, step, keep);
    }
    a->holds = a->holds && holds(s);
}

/* The step code of uniform noise at the bound. */
static int32_t first_code(search *s) {
    const icma_bounded *b = s->b;
    double sum = 0;
    for (size_t f = 0; f < s->u->count; f++) {
        const icma_tensor_info *info = info_of(s, f);
        double scale = (double)b->generator->scale[s->u->tensor[f]];
        icma_distance d;
        icma_fidelity_tensor(info, b->original, b->original, &d);
        if (b->bound.kind == ICMA_BOUND_ABS)
            sum = fmax(sum, scale * scale / 4); /* step = 2 * bound */
        else if (d.energy > 0)
            sum += scale * scale * (double)info->count * ICMA_TRELLIS_NOISE / d.energy;
    }
    double code = sum > 0 ? floor(8 * log2((double)b->bound.value * (double)b->bound.value / sum)) : 0;
    return (int32_t)fmax(-ICMA_RESIDUAL_MOST_CODE, fmin(ICMA_RESIDUAL_MOST_CODE, code));
}

static attempt at_code(search *s, int32_t code, double price) {
    attempt a = {{code, code}, price, 0, false};
    try(s, &a, false);
    return a;
}

/* The coarsest common step that holds: up or down in growing strides, then by halves. */
static attempt common_step(search *s, double price) {
    int32_t code = first_code(s), stride = 2;
    attempt best = at_code(s, code, price), next;
    bool up = best.holds;
    int32_t good = code, wrong = code;
    while (!s->status && stride <= WIDEST_SEARCH * 32) {
        next = at_code(s, up ? good + stride : wrong - stride, price);
        if (next.holds)
            best = next;
        if (up && next.holds)
            good += stride;
        else if (up) {
            wrong = good + stride;
            break;
        } else if (next.holds) {
            good = wrong - stride;
            break;
        } else
            wrong -= stride;
        stride *= 2;
    }
    while (best.holds && wrong - good > 1) {
        int32_t middle = good + (wrong - good) / 2;
        next = at_code(s, middle, price);
        if (next.holds) {
            best = next;
            good = middle;
        } else
            wrong = middle;
    }
    return best;
}

static void better_of(search *s, attempt *best, attempt other) {
    try(s, &other, false);
    if (other.holds && other.bits < best->bits)
        *best = other;
}

/* What is left of the bound goes into one factor's step, then into the price. */
static attempt use_slack(search *s, attempt best) {
    for (size_t f = 0; f < s->u->count; f++)
        for (int32_t more = 1; more <= 2; more++) {
            attempt other = best;
            other.code[f] += more;
            better_of(s, &best, other);
        }
    double low = best.price, high = highest_price;
    for (int i = 0; i < 4; i++) {
        attempt other = best;
        other.price = (low + high) / 2;
        try(s, &other, false);
        if (other.holds) {
            low = other.price;
            if (other.bits < best.bits)
                best = other;
        } else
            high = other.price;
    }
    return best;
}

static bool search_allocate(search *s) {
    size_t most = 1;
    bool done = true;
    for (size_t f = 0; f < s->u->count; f++) {
        size_t count = (size_t)info_of(s, f)->count;
        most = count > most ? count : most;
        icma_residual_count(classes_of(s, f), count, s->sizes[f]);
        s->u->integers[f] = icma_alloc_array(count ? count : 1, sizeof(int16_t));
        done = done && s->u->integers[f];
    }
    s->values = icma_alloc_array(most, sizeof *s->values);
    s->target = icma_alloc_array(most, sizeof *s->target);
    s->symbols = icma_alloc_array(most, sizeof *s->symbols);
    s->scratch = icma_alloc(ICMA_TRELLIS_SCRATCH);
    return done && s->values && s->target && s->symbols && s->scratch;
}

static void keep_original(search *s) {
    s->u->failed = true;
    for (size_t f = 0; f < s->u->count; f++) {
        const icma_tensor_info *info = info_of(s, f);
        memcpy(s->b->decoded + info->begin, s->b->original + info->begin, (size_t)info->size);
    }
}

static icma_status code_unit(const icma_bounded *b, unit *u) {
    search s = {.b = b, .u = u};
    /* A prediction that is good enough is taken as it is. */
    for (size_t f = 0; f < u->count; f++) {
        const icma_tensor_info *info = info_of(&s, f);
        icma_store_floats(info->dtype, b->prediction + u->offset[f], (size_t)info->count, b->decoded + info->begin);
    }
    if (holds(&s) || s.status)
        return s.status;
    if (search_allocate(&s)) {
        attempt best = common_step(&s, usual_price);
        if (best.holds && !is_plain(b))
            best = use_slack(&s, best);
        u->coded = best.holds;
        if (best.holds)
            try(&s, &best, true);
        memcpy(u->code, best.code, sizeof u->code);
        if (!best.holds)
            keep_original(&s);
    } else
        s.status = ICMA_E_MEMORY;
    icma_free(s.values);
    icma_free(s.target);
    icma_free(s.symbols);
    icma_free(s.scratch);
    return s.status;
}

/* --- all units --------------------------------------------------------------------------------------------------- */

static bool is_coded(const icma_bounded *b, size_t tensor) {
    return icma_generator_is_modelled(b->generator, tensor) && !b->verbatim[tensor];
}

/* One a pair, under a bound on dW; one a tensor for the others. *units has room for all tensors. */
static size_t find_units(const icma_bounded *b, const size_t *offset, bool *paired, unit *units) {
    size_t count = 0;
    for (size_t p = 0; b->bound.kind == ICMA_BOUND_DW && p < b->pairs->count; p++) {
        const icma_pair *pair = &b->pairs->list[p];
        const size_t factors[FACTORS] = {pair->a, pair->b};
        unit u = {.pair = pair};
        for (size_t f = 0; f < FACTORS; f++) {
            paired[factors[f]] = true;
            if (is_coded(b, factors[f])) {
                u.tensor[u.count] = factors[f];
                u.offset[u.count++] = offset[factors[f]];
            }
        }
        if (u.count)
            units[count++] = u;
    }
    for (size_t t = 0; t < b->signature->tensor_count; t++)
        if (is_coded(b, t) && !paired[t])
            units[count++] = (unit){.tensor = {t}, .offset = {offset[t]}, .count = 1};
    return count;
}

/* The classes that are there have a run each, with the contexts of a unit's factor. */
static void gather_runs(const icma_bounded *b, const unit *u, size_t f, icma_residual *out) {
    size_t sizes[ICMA_RESIDUAL_CLASSES];
    const uint8_t *context = u->context[f];
    icma_residual_count(b->classes ? b->classes + u->offset[f] : NULL, (size_t)b->signature->tensors[u->tensor[f]].count, sizes);
    for (size_t c = 0; c < ICMA_RESIDUAL_CLASSES; c++)
        if (sizes[c])
            out->runs[out->run_count++] = (icma_rans_run){sizes[c], *context++};
}

/* Where each tensor's part of a unit is, for putting the residual in the tensors' order. */
typedef struct part {
    const unit *unit;
    size_t factor;
} part;

static icma_status gather(const icma_bounded *b, const unit *units, size_t count, icma_residual *out, icma_error *error) {
    size_t tensors = b->signature->tensor_count;
    part *parts = icma_alloc_zeroed(tensors + 1, sizeof *parts);
    icma_status status = parts ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a residual");
    for (size_t u = 0; !status && u < count; u++)
        for (size_t f = 0; units[u].coded && f < units[u].count; f++) {
            parts[units[u].tensor[f]] = (part){&units[u], f};
            out->count++;
            out->total += (size_t)b->signature->tensors[units[u].tensor[f]].count;
        }
    out->list = icma_alloc_zeroed(out->count + 1, sizeof *out->list);
    out->runs = icma_alloc_zeroed((b->classes ? ICMA_RESIDUAL_CLASSES : 1) * out->count + 1, sizeof *out->runs);
    out->integers = icma_alloc_array(out->total + 1, sizeof *out->integers);
    out->trellis = !is_plain(b);
    if (!status && (!out->list || !out->runs || !out->integers))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a residual");
    for (size_t t = 0, i = 0, first = 0; !status && t < tensors; t++) {
        if (!parts[t].unit)
            continue;
        size_t length = (size_t)b->signature->tensors[t].count;
        const unit *u = parts[t].unit;
        size_t f = parts[t].factor;
        memcpy(out->integers + first, u->integers[f], length * sizeof *out->integers);
        out->list[i++] = (icma_residual_tensor){(uint32_t)t, u->code[f], out->run_count, first};
        gather_runs(b, u, f, out);
        first += length;
    }
    icma_free(parts);
    return status;
}

static icma_status code_units(const icma_bounded *b, unit *units, size_t count, icma_error *error) {
    icma_status worst = ICMA_OK;
#pragma omp parallel for schedule(dynamic) num_threads(icma_threads()) reduction(max : worst)
    for (size_t u = 0; u < count; u++) {
        icma_status status = code_unit(b, &units[u]);
        worst = status > worst ? status : worst;
    }
    return worst ? icma_fail(error, worst, NULL, "no memory for a residual") : ICMA_OK;
}

icma_status icma_bound_encode(const icma_bounded *b, icma_residual *out, icma_error *error) {
    size_t tensors = b->signature->tensor_count, next = 0, count = 0;
    memset(out, 0, sizeof *out);
    size_t *offset = icma_alloc_zeroed(tensors + 1, sizeof *offset);
    bool *paired = icma_alloc_zeroed(tensors + 1, sizeof *paired);
    unit *units = icma_alloc_zeroed(tensors + 1, sizeof *units);
    icma_status status = offset && paired && units ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a residual");
    for (size_t t = 0; !status && t < tensors; t++) {
        offset[t] = next;
        next += icma_generator_is_modelled(b->generator, t) ? (size_t)b->signature->tensors[t].count : 0;
    }
    if (!status) {
        count = find_units(b, offset, paired, units);
        status = code_units(b, units, count, error);
    }
    if (!status)
        status = gather(b, units, count, out, error);
    for (size_t u = 0; u < count; u++)
        for (size_t f = 0; f < FACTORS; f++) {
            if (!status && units[u].failed && f < units[u].count)
                b->verbatim[units[u].tensor[f]] = true;
            icma_free(units[u].integers[f]);
        }
    icma_free(units);
    icma_free(paired);
    icma_free(offset);
    if (status)
        icma_residual_free(out);
    return status;
}

bool icma_bound_holds(icma_bound bound, const icma_pairs *pairs, const icma_distance *tensors, size_t tensor_count, const icma_distance *pair_distances) {
    bool good = true;
    for (size_t p = 0; bound.kind == ICMA_BOUND_DW && p < pairs->count; p++)
        if (pair_distances[p].energy > 0 || !(pair_distances[p].error == 0))
            good = good && icma_distance_relative(&pair_distances[p]) <= (double)bound.value;
    for (size_t t = 0; t < tensor_count; t++) {
        double error = bound.kind == ICMA_BOUND_ABS ? tensors[t].maximum : icma_distance_relative(&tensors[t]);
        if (bound.kind != ICMA_BOUND_DW || pairs->roles[t] == ICMA_ROLE_OTHER)
            good = good && (tensors[t].identical || error <= (double)bound.value);
    }
    return good;
}
