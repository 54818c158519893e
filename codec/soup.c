/* SPDX-License-Identifier: Apache-2.0 */
/* Model soup: the rows that span the tasks' averages, and the map from conditions to them. Which checkpoints take part: soup_greedy.c. */
#include "soup.h"

#include "memory.h"
#include "ops.h"
#include "rate.h"

#include <lapacke.h>
#include <math.h>
#include <string.h>

static const double coarsest_step = 2, finest_step = 0x1p-13, step_ratio = 0.8408964152537145; /* in root mean squares of the standardised weights; 2^-1/4 */
static const double told_apart = 1e-3; /* relative error of an average's coordinates from its condition */
static const double cancelled = 1e-3;  /* an average with less of its checkpoints' energy is not asked to be relatively right */

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the tasks' averages");
}

void icma_soup_uniform(const icma_group *group, double *weight) {
    for (size_t first = 0, next; first < group->count; first = next) {
        for (next = first; next < group->count && group->sources[next].task == group->sources[first].task; next++)
            ;
        for (size_t i = first; i < next; i++)
            weight[i] = 1 / (double)(next - first);
    }
}

/* --- averages of a role ------------------------------------------------------------------------------------------ */

typedef struct soup {
    const icma_group *group;
    const icma_ops *ops;
    const icma_gram *gram;
    const icma_generator *generator;
    size_t tasks;     /* that have sampled sources */
    uint32_t *slot;   /* of each sampled source: which of them */
    double *share;    /* of each sampled source in its task's average */
    double *mixed[ICMA_ROLE_COUNT]; /* sampled sources x tasks: inner products with the averages */
    icma_eigen eigen[ICMA_ROLE_COUNT]; /* of the averages */
    double *whole[ICMA_ROLE_COUNT];    /* a task: energy of its average */
    double *energy;   /* tasks x tensors: at least of the average's tensor; 0 where there is nothing to be right about */
    double unit;      /* root mean square of the standardised weights */
    /* The step that is being tried. */
    double step;
    size_t taken[ICMA_ROLE_COUNT];
    double *leftover[ICMA_ROLE_COUNT]; /* a task: energy of its average outside the rows taken */
    double *noise[ICMA_ROLE_COUNT];    /* a task: energy a weight of what quantising the rows does to its average */
} soup;

static void soup_free(soup *s) {
    for (int role = 0; role < ICMA_ROLE_COUNT; role++) {
        icma_eigen_free(&s->eigen[role]);
        icma_free(s->mixed[role]);
        icma_free(s->whole[role]);
        icma_free(s->leftover[role]);
        icma_free(s->noise[role]);
    }
    icma_free(s->slot);
    icma_free(s->share);
    icma_free(s->energy);
}

/* A task of which no chosen checkpoint is in the sample has the average of those that are. */
static icma_status share_out(soup *s, const double *weight, icma_error *error) {
    size_t n = s->gram->count;
    s->slot = icma_alloc_array(n, sizeof *s->slot);
    s->share = icma_alloc_array(n, sizeof *s->share);
    if (!s->slot || !s->share)
        return no_memory(error);
    const icma_source *sources = s->group->sources;
    const uint32_t *rows = s->gram->rows;
    for (size_t first = 0, next; first < n; first = next, s->tasks++) {
        double sum = 0;
        for (next = first; next < n && sources[rows[next]].task == sources[rows[first]].task; next++)
            sum += weight[rows[next]];
        for (size_t i = first; i < next; i++) {
            s->slot[i] = (uint32_t)s->tasks;
            s->share[i] = sum > 0 ? weight[rows[i]] / sum : 1 / (double)(next - first);
        }
    }
    return ICMA_OK;
}

/* H = G W^T (sources x tasks), and W H, the Gram matrix of the averages. */
static icma_status solve_role(soup *s, int role, icma_error *error) {
    size_t n = s->gram->count, tasks = s->tasks;
    const double *gram = s->gram->matrix[role];
    if (!gram)
        return ICMA_OK;
    double *mixed = s->mixed[role] = icma_alloc_zeroed(n * tasks, sizeof *mixed);
    double *averages = icma_alloc_zeroed(tasks * tasks, sizeof *averages), *one = icma_alloc_array(tasks, sizeof *one);
    s->whole[role] = icma_alloc_array(tasks, sizeof(double));
    s->leftover[role] = icma_alloc_array(tasks, sizeof(double));
    s->noise[role] = icma_alloc_array(tasks, sizeof(double));
    icma_status status = mixed && averages && one && s->whole[role] && s->leftover[role] && s->noise[role] ? ICMA_OK : no_memory(error);
    for (size_t i = 0; !status && i < n; i++)
        for (size_t j = 0; j < n; j++)
            mixed[i * tasks + s->slot[j]] += gram[i * n + j] * s->share[j];
    for (size_t i = 0; !status && i < n; i++)
        for (size_t b = 0; b < tasks; b++)
            averages[s->slot[i] * tasks + b] += s->share[i] * mixed[i * tasks + b];
    for (size_t a = 0; !status && a < tasks; a++) {
        one[a] = 1;
        s->whole[role][a] = averages[a * tasks + a];
    }
    if (!status)
        status = icma_eigen_solve(s->ops, averages, one, tasks, &s->eigen[role], error);
    icma_free(averages);
    icma_free(one);
    return status;
}

/* |average|^2 = sum share |x|^2 - sum share |x - average|^2, and no point is nearer to the sources than their average: with the differences to the mean of
 * the task's sampled sources instead, it is at least this. */
static icma_status measure_averages(soup *s, icma_error *error) {
    size_t n = s->gram->count, tensors = s->group->signature.tensor_count;
    s->energy = icma_alloc_zeroed(s->tasks, (tensors ? tensors : 1) * sizeof *s->energy);
    double *whole = icma_alloc_zeroed(s->tasks, (tensors ? tensors : 1) * sizeof *whole);
    if (!s->energy || !whole) {
        icma_free(whole);
        return no_memory(error);
    }
    for (size_t i = 0; i < n; i++)
        for (size_t t = 0; t < tensors; t++) {
            whole[s->slot[i] * tensors + t] += s->share[i] * s->gram->energy[i * tensors + t];
            s->energy[s->slot[i] * tensors + t] += s->share[i] * (s->gram->energy[i * tensors + t] - s->gram->spread[i * tensors + t]);
        }
    for (size_t i = 0; i < s->tasks * tensors; i++)
        s->energy[i] = fmax(s->energy[i], cancelled * whole[i]);
    double energy = 0, weights = 0;
    for (int role = 0; role < ICMA_ROLE_COUNT; role++) {
        for (size_t i = 0; s->gram->matrix[role] && i < n; i++)
            energy += s->gram->matrix[role][i * n + i] / (double)n;
        weights += (double)s->gram->weights[role];
    }
    s->unit = energy > 0 ? sqrt(energy / weights) : 1;
    icma_free(whole);
    return ICMA_OK;
}

/* --- the step ---------------------------------------------------------------------------------------------------- */

/* As in basis_choose.c: rows multiplied by it, one quantiser step does the same harm in all of them. */
static double row_spread(const soup *s, int role, size_t k) {
    return sqrt(s->eigen[role].values[k] / (double)s->tasks);
}

/* Takes the rows of a role that stand out of the noise at the step: at least the first. */
static void take_rows(soup *s, int role) {
    const icma_eigen *e = &s->eigen[role];
    s->taken[role] = 0;
    for (size_t a = 0; a < s->tasks; a++) {
        s->leftover[role][a] = s->whole[role][a];
        s->noise[role][a] = 0;
    }
    for (size_t k = 0; k < e->rank && k < ICMA_MAX_COMPONENTS; k++) {
        double spread = row_spread(s, role, k), ratio = spread / sqrt((double)s->gram->weights[role]) / s->step, bits, distortion;
        icma_rate_trellis(ratio, &bits, &distortion);
        if (k && distortion > 0.5 * ratio * ratio)
            return;
        for (size_t a = 0; a < s->tasks; a++) {
            double square = e->coordinates[a * e->rank + k] * e->coordinates[a * e->rank + k];
            s->noise[role][a] += square / (spread * spread) * distortion * s->step * s->step;
            s->leftover[role][a] = fmax(0, s->leftover[role][a] - square);
        }
        s->taken[role]++;
    }
}

/* Squared relative error of one tensor of a task's average: quantiser steps are equal, so noise goes by weights; what is outside the rows goes by energy. */
static double tensor_error(const soup *s, size_t task, size_t t) {
    size_t tensors = s->group->signature.tensor_count;
    double energy = s->energy[task * tensors + t];
    if (!icma_generator_is_modelled(s->generator, t) || energy <= 0)
        return 0;
    int role = s->generator->treatment[t];
    double outside = s->whole[role][task] > 0 ? s->leftover[role][task] / s->whole[role][task] : 0;
    return outside + s->noise[role][task] * (double)s->group->signature.tensors[t].count / energy;
}

/* The largest of all tasks' modules and other tensors. dW = B A is linear in each factor: to first order their relative errors add in squares. */
static double worst_error(const soup *s) {
    const icma_pairs *pairs = &s->group->pairs;
    double worst = 0;
    for (size_t a = 0; a < s->tasks; a++) {
        for (size_t p = 0; p < pairs->count; p++)
            worst = fmax(worst, tensor_error(s, a, pairs->list[p].a) + tensor_error(s, a, pairs->list[p].b));
        for (size_t t = 0; t < s->group->signature.tensor_count; t++)
            if (pairs->roles[t] == ICMA_ROLE_OTHER)
                worst = fmax(worst, tensor_error(s, a, t));
    }
    return sqrt(worst);
}

static void choose_step(soup *s, double max_error) {
    for (s->step = coarsest_step * s->unit; s->step >= finest_step * s->unit; s->step *= step_ratio) {
        for (int role = 0; role < ICMA_ROLE_COUNT; role++)
            if (s->gram->matrix[role])
                take_rows(s, role);
        if (worst_error(s) <= max_error)
            return;
    }
    s->step /= step_ratio; /* of the rows that were taken last */
}

/* --- the basis --------------------------------------------------------------------------------------------------- */

/* Rows of a role over the sampled sources, their steps, and the sources' coordinates in them: p = x~ E^T = H (rows over averages)^T. */
static icma_status keep_role(const soup *s, int role, size_t first, icma_basis *out, icma_error *error) {
    size_t n = s->gram->count, tasks = s->tasks, k = s->taken[role];
    const icma_eigen *e = &s->eigen[role];
    if (k == 0)
        return ICMA_OK;
    if (!(out->mixing[role] = icma_alloc_array(k * n, sizeof(double))))
        return no_memory(error);
#pragma omp parallel for schedule(static) num_threads(icma_threads())
    for (size_t j = 0; j < k; j++) {
        const double *row = e->mixing + j * tasks;
        out->step[first + j] = (float)(s->step / row_spread(s, role, j));
        for (size_t i = 0; i < n; i++) {
            double p = 0;
            out->mixing[role][j * n + i] = row[s->slot[i]] * s->share[i];
            for (size_t a = 0; a < tasks; a++)
                p += s->mixed[role][i * tasks + a] * row[a];
            out->coordinates[s->gram->rows[i] * out->total + first + j] = p;
        }
    }
    return ICMA_OK;
}

/* Sum over the sampled sources of one coordinate's squared difference to its task's mean. */
static double coordinate_within(const soup *s, const icma_basis *out, size_t column) {
    size_t n = s->gram->count;
    double within = 0;
    for (size_t first = 0, next; first < n; first = next) {
        double sum = 0, square = 0;
        for (next = first; next < n && s->slot[next] == s->slot[first]; next++) {
            double p = out->coordinates[s->gram->rows[next] * out->total + column];
            sum += p;
            square += p * p;
        }
        within += fmax(0, square - sum * sum / (double)(next - first));
    }
    return within;
}

/* What the rows leave of the sources, as icma_basis has it. */
static icma_status measure_sources(const soup *s, icma_basis *out, icma_error *error) {
    size_t n = s->gram->count;
    double spanned = 0;
    uint32_t *task = icma_alloc_array(n, sizeof *task);
    if (!task)
        return no_memory(error);
    for (size_t i = 0; i < n; i++)
        task[i] = s->group->sources[s->gram->rows[i]].task;
    for (size_t role = 0, first = 0; role < ICMA_ROLE_COUNT; first += s->taken[role], role++) {
        const double *gram = s->gram->matrix[role];
        for (size_t i = 0; gram && i < n; i++)
            out->energy += gram[i * n + i] / (double)n;
        for (size_t i = 0; gram && i < n; i++)
            out->leftover += gram[i * n + i] / (double)n;
        out->within += gram ? icma_within_task(gram, task, n) / (double)n : 0;
        for (size_t j = 0; j < s->taken[role]; j++) {
            double spread = row_spread(s, (int)role, j), weights = (double)s->gram->weights[role], square = 0, bits, distortion;
            icma_rate_trellis(spread / sqrt(weights) / s->step, &bits, &distortion);
            for (size_t i = 0; i < n; i++) {
                double p = out->coordinates[s->gram->rows[i] * out->total + first + j];
                square += p * p / (double)n;
            }
            double noise = square / (spread * spread) * weights * distortion * s->step * s->step;
            out->leftover += noise - square;
            spanned += coordinate_within(s, out, first + j) / (double)n - noise;
        }
    }
    out->leftover = fmax(0, out->leftover);
    out->explained = out->within > 1e-7 * out->energy ? spanned / out->within : NAN;
    out->predicted_error = worst_error(s);
    icma_free(task);
    return ICMA_OK;
}

static icma_status keep(const soup *s, icma_basis *out, icma_error *error) {
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        out->total += out->components[role] = s->taken[role];
    out->coordinates = icma_alloc_zeroed(s->group->count, (out->total ? out->total : 1) * sizeof(double));
    out->step = icma_alloc_array(out->total ? out->total : 1, sizeof *out->step);
    icma_status status = out->coordinates && out->step ? ICMA_OK : no_memory(error);
    for (size_t role = 0, first = 0; !status && role < ICMA_ROLE_COUNT; first += s->taken[role], role++)
        status = keep_role(s, (int)role, first, out, error);
    return status ? status : measure_sources(s, out, error);
}

icma_status icma_soup_basis(const icma_group *group, const icma_ops *ops, const icma_gram *gram, const icma_generator *generator, const double *weight, double max_error,
                            icma_basis *out, icma_error *error) {
    soup s = {.group = group, .ops = ops, .gram = gram, .generator = generator};
    memset(out, 0, sizeof *out);
    icma_status status = share_out(&s, weight, error);
    for (int role = 0; !status && role < ICMA_ROLE_COUNT; role++)
        status = solve_role(&s, role, error);
    if (!status)
        status = measure_averages(&s, error);
    if (!status) {
        choose_step(&s, max_error);
        status = keep(&s, out, error);
        if (!status && out->total == 0)
            status = icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "every task's average is zero, so there is nothing to make a soup of; use another --generator");
    }
    soup_free(&s);
    if (status)
        icma_basis_free(out);
    return status;
}

/* --- the trunk --------------------------------------------------------------------------------------------------- */

/* A task's condition as a reader will see it. */
static const float *condition_of(const icma_conditions *c, size_t task, size_t coordinates) {
    return c->learned[task] ? c->learned[task] : c->table + task * coordinates;
}

/* The smallest [S; b3] (coordinates + 1 rows, row-major) with [a 1] [S; b3] nearest to the averages, as rows 0 .. coordinates of `values`, which holds the averages (tasks rows, but room for the
 * larger of both). */
static icma_status solve_trunk(const icma_conditions *c, size_t coordinates, size_t total, double *values, icma_error *error) {
    size_t tasks = c->count, columns = coordinates + 1, most = tasks < columns ? tasks : columns;
    double *a = icma_alloc_array(tasks * columns, sizeof *a), *singular = icma_alloc_array(most, sizeof *singular);
    lapack_int rank;
    icma_status status = a && singular ? ICMA_OK : no_memory(error);
    for (size_t i = 0; !status && i < tasks; i++) {
        const float *condition = condition_of(c, i, coordinates);
        for (size_t j = 0; j < coordinates; j++)
            a[i * columns + j] = condition[j];
        a[i * columns + coordinates] = 1;
    }
    if (!status && LAPACKE_dgelsd(LAPACK_ROW_MAJOR, (lapack_int)tasks, (lapack_int)columns, (lapack_int)total, a, (lapack_int)columns, values, (lapack_int)total, singular, 1e-6,
                                  &rank) != 0)
        status = icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "the tasks' condition vectors are degenerate; leave them out to have conditions learned");
    icma_free(a);
    icma_free(singular);
    return status;
}

/* Whether a task's condition gives its average. */
static bool is_told(const icma_generator *g, const float *condition, const double *average) {
    double wrong = 0, energy = 0;
    for (size_t k = 0; k < g->total; k++) {
        double q = g->trunk[ICMA_TRUNK_B3][k];
        for (size_t j = 0; j < g->coordinates; j++)
            q += (double)condition[j] * g->trunk[ICMA_TRUNK_S][j * g->total + k];
        wrong += (q - average[k]) * (q - average[k]);
        energy += average[k] * average[k];
    }
    return wrong <= told_apart * told_apart * energy;
}

static icma_status fit_trunk(const icma_conditions *c, const double *averages, icma_generator *g, icma_error *error) {
    size_t rows = c->count > g->coordinates + 1 ? c->count : g->coordinates + 1, untold = 0;
    double *values = icma_alloc_zeroed(rows * g->total, sizeof *values);
    if (!values)
        return no_memory(error);
    memcpy(values, averages, c->count * g->total * sizeof *values);
    icma_status status = solve_trunk(c, g->coordinates, g->total, values, error);
    for (size_t i = 0; !status && i < g->coordinates * g->total; i++)
        g->trunk[ICMA_TRUNK_S][i] = (float)values[i];
    for (size_t k = 0; !status && k < g->total; k++)
        g->trunk[ICMA_TRUNK_B3][k] = (float)values[g->coordinates * g->total + k];
    for (size_t i = 0; !status && i < c->count; i++)
        untold += !is_told(g, condition_of(c, i, g->coordinates), averages + i * g->total);
    if (untold)
        status = icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                           "the conditions of %zu tasks do not tell their averages apart (%zu tasks, %zu coordinates); give each task a vector of its own", untold, c->count,
                           g->coordinates);
    icma_free(values);
    return status;
}

icma_status icma_soup_trunk(const icma_group *group, const icma_basis *basis, const double *weight, const icma_conditions *conditions, double theta,
                            icma_generator *generator, icma_error *error) {
    double *averages = icma_alloc_zeroed(conditions->count * basis->total, sizeof *averages);
    if (!averages)
        return no_memory(error);
    for (size_t i = 0; i < group->count; i++)
        for (size_t k = 0; k < basis->total; k++)
            averages[conditions->slot[i] * basis->total + k] += weight[i] * basis->coordinates[i * basis->total + k];
    generator->kind = ICMA_GENERATOR_BASIS;
    memcpy(generator->components, basis->components, sizeof generator->components);
    generator->latent = 0;
    generator->hidden = 1; /* the least there is: V1, V2, V3 stay zero */
    icma_status status = icma_generator_allocate(generator, error);
    for (size_t k = 0; !status && k < generator->total; k++)
        generator->correction_step[k] = (float)sqrt(12 * theta);
    if (!status)
        status = fit_trunk(conditions, averages, generator, error);
    icma_free(averages);
    return status;
}
