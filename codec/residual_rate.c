/* SPDX-License-Identifier: Apache-2.0 */
#include "residual_rate.h"

#include "memory.h"
#include "rate.h"

#include <math.h>
#include <string.h>

enum {
    FACTORS = 2,
    CURVE_POINTS = 256, /* of the rate over log2 of the reduction in variance */
    SIDE_BITS = 24,     /* a coded tensor: its number, step and context */
    STREAM_BITS = 40,   /* a checkpoint with a residual: its size, and the end of its stream */
};
static const double curve_octaves = 32; /* of variance */

typedef struct rate_unit {
    uint32_t tensor[FACTORS];
    size_t count;
} rate_unit;

struct icma_residual_model {
    const icma_group *group;
    const icma_gram *gram;
    const icma_generator *generator;
    icma_bound bound;
    rate_unit *units;
    size_t unit_count;
    size_t stride;       /* every which source is looked at */
    double *role_spread; /* sources x roles: sums of gram->spread */
    double *role_energy;
    double curve[CURVE_POINTS + 1]; /* bits a weight to reduce the variance by 2^(-octaves i / points) */
};

/* Rate over reduction of the quantiser: walks from coarse steps to fine ones and interpolates in log2 of the
 * distortion. */
static void fill_curve(double *curve) {
    double bits_before = 0, octaves_before = 0;
    int point = 0;
    curve[point++] = 0;
    for (double ratio = 0.4; point <= CURVE_POINTS; ratio *= 1.05) {
        double bits, distortion;
        icma_rate_trellis(ratio, &bits, &distortion);
        double octaves = fmax(octaves_before, log2(ratio * ratio / distortion));
        for (; point <= CURVE_POINTS && point * curve_octaves / CURVE_POINTS <= octaves; point++) {
            double at = point * curve_octaves / CURVE_POINTS;
            curve[point] =
                bits_before + (bits - bits_before) * (at - octaves_before) / (octaves - octaves_before);
        }
        bits_before = bits;
        octaves_before = octaves;
    }
}

static double rate_of(const double *curve, double reduction) {
    double at = log2(reduction) * (CURVE_POINTS / curve_octaves);
    if (at >= CURVE_POINTS)
        return curve[CURVE_POINTS];
    size_t low = (size_t)at;
    return curve[low] + (curve[low + 1] - curve[low]) * (at - (double)low);
}

static bool find_units(icma_residual_model *m) {
    size_t tensors = m->group->signature.tensor_count;
    bool *paired = icma_alloc_zeroed(tensors + 1, sizeof *paired);
    m->units = icma_alloc_zeroed(tensors + 1, sizeof *m->units);
    for (size_t p = 0; paired && m->units && m->bound.kind == ICMA_BOUND_DW && p < m->group->pairs.count;
         p++) {
        const icma_pair *pair = &m->group->pairs.list[p];
        const size_t factors[FACTORS] = {pair->a, pair->b};
        rate_unit u = {.count = 0};
        for (size_t f = 0; f < FACTORS; f++) {
            paired[factors[f]] = true;
            if (icma_generator_is_modelled(m->generator, factors[f]))
                u.tensor[u.count++] = (uint32_t)factors[f];
        }
        if (u.count)
            m->units[m->unit_count++] = u;
    }
    for (size_t t = 0; paired && m->units && t < tensors; t++)
        if (icma_generator_is_modelled(m->generator, t) && !paired[t])
            m->units[m->unit_count++] = (rate_unit){{(uint32_t)t}, 1};
    icma_free(paired);
    return paired && m->units;
}

icma_status icma_residual_model_create(const icma_group *group, const icma_gram *gram,
                                       const icma_generator *generator, icma_bound bound, size_t most,
                                       icma_residual_model **out, icma_error *error) {
    *out = NULL;
    size_t n = gram->count, tensors = group->signature.tensor_count;
    icma_residual_model *m = icma_alloc_zeroed(1, sizeof *m);
    if (m) {
        *m = (icma_residual_model){.group = group,
                                   .gram = gram,
                                   .generator = generator,
                                   .bound = bound,
                                   .stride = (n + most - 1) / most};
        m->role_spread = icma_alloc_zeroed(n * ICMA_ROLE_COUNT, sizeof(double));
        m->role_energy = icma_alloc_zeroed(n * ICMA_ROLE_COUNT, sizeof(double));
    }
    if (!m || !m->role_spread || !m->role_energy || !find_units(m)) {
        icma_residual_model_free(m);
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the rate model");
    }
    fill_curve(m->curve);
    for (size_t i = 0; i < n; i++)
        for (size_t t = 0; t < tensors; t++)
            if (icma_generator_is_modelled(generator, t)) {
                m->role_spread[i * ICMA_ROLE_COUNT + generator->treatment[t]] +=
                    (double)gram->spread[i * tensors + t];
                m->role_energy[i * ICMA_ROLE_COUNT + generator->treatment[t]] +=
                    (double)gram->energy[i * tensors + t];
            }
    *out = m;
    return ICMA_OK;
}

void icma_residual_model_free(icma_residual_model *m) {
    if (!m)
        return;
    icma_free(m->units);
    icma_free(m->role_spread);
    icma_free(m->role_energy);
    icma_free(m);
}

/* Predicted relative variance of the error in tensor t of source i. */
static double relative_variance(const icma_residual_model *m, size_t i, size_t t, double leftover,
                                double noise) {
    size_t cell = i * m->group->signature.tensor_count + t, role = m->generator->treatment[t];
    double energy = (double)m->gram->energy[cell], all_spread = m->role_spread[i * ICMA_ROLE_COUNT + role];
    double all_energy = m->role_energy[i * ICMA_ROLE_COUNT + role];
    if (!(energy > 0))
        return 0;
    double near = fmin(leftover, all_spread), far = leftover - near;
    double share = all_spread > 0 ? near * (double)m->gram->spread[cell] / all_spread : 0;
    share += far * energy / all_energy +
             noise * (double)m->group->signature.tensors[t].count / (double)m->gram->weights[role];
    return share / energy;
}

/* The relative variance that a unit may keep. A largest difference X is what a step of 2 X gives: X^2 / 3 of
 * noise a weight. */
static double allowed(const icma_residual_model *m, size_t i, const rate_unit *u) {
    double x = (double)m->bound.value, count = (double)m->group->signature.tensors[u->tensor[0]].count;
    if (m->bound.kind != ICMA_BOUND_ABS)
        return x * x;
    double scale = (double)m->generator->scale[u->tensor[0]],
           energy =
               (double)m->gram->energy[i * m->group->signature.tensor_count + u->tensor[0]] * scale * scale;
    return energy > 0 ? x * x / 3 * count / energy : 1;
}

/* Predicted relative variance of a unit's error without a residual; *weights: of its factors. */
static double unit_variance(const icma_residual_model *m, size_t i, const rate_unit *u,
                            double *const *leftover, double *const *noise, double *weights) {
    double variance = 0;
    *weights = 0;
    for (size_t f = 0; f < u->count; f++) {
        size_t t = u->tensor[f], role = m->generator->treatment[t];
        variance += relative_variance(m, i, t, leftover[role][i], noise[role][i]);
        *weights += (double)m->group->signature.tensors[t].count;
    }
    return variance;
}

double icma_residual_model_error(const icma_residual_model *m, double *const leftover[ICMA_ROLE_COUNT],
                                 double *const noise[ICMA_ROLE_COUNT]) {
    double sum = 0, weights;
    size_t n = m->gram->count, seen = 0;
    for (size_t i = 0; i < n; i += m->stride, seen++)
        for (size_t j = 0; j < m->unit_count; j++)
            sum += sqrt(fmin(unit_variance(m, i, &m->units[j], leftover, noise, &weights),
                             allowed(m, i, &m->units[j])));
    return seen && m->unit_count ? sum / (double)(seen * m->unit_count) : 0;
}

double icma_residual_model_bits(const icma_residual_model *m, double *const leftover[ICMA_ROLE_COUNT],
                                double *const noise[ICMA_ROLE_COUNT]) {
    double bits = 0;
    size_t n = m->gram->count, seen = 0;
    for (size_t i = 0; i < n; i += m->stride, seen++) {
        double own = 0;
        for (size_t j = 0; j < m->unit_count; j++) {
            const rate_unit *u = &m->units[j];
            double weights, most = allowed(m, i, u),
                            variance = unit_variance(m, i, u, leftover, noise, &weights);
            if (variance > most)
                own += weights * rate_of(m->curve, variance / most) + SIDE_BITS * (double)u->count;
        }
        bits += own > 0 ? own + STREAM_BITS : 0;
    }
    return seen ? bits * (double)n / (double)seen : 0;
}
