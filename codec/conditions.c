/* SPDX-License-Identifier: Apache-2.0 */
#include "conditions.h"

#include "coarse.h"
#include "gram.h"
#include "memory.h"

#include <math.h>
#include <string.h>

enum {
    MOST_GIVEN_COORDINATES = 64, /* of the span of the given conditions, largest directions first */
    MOST_LANDMARKS = 1024,       /* given conditions that the projection is made from */
};
static const double condition_floor = 1e-4; /* directions of conditions below this share of the largest are noise */

typedef struct preparer {
    const icma_group *group;
    const icma_ops *ops;
    const icma_condition *given;
    icma_generator *generator;
    icma_conditions *out;
} preparer;

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for conditions");
}

void icma_conditions_free(icma_conditions *c) {
    for (size_t i = 0; c->learned && i < c->count; i++)
        icma_free(c->learned[i]);
    icma_free(c->learned);
    icma_free(c->task);
    icma_free(c->slot);
    icma_free(c->table);
    memset(c, 0, sizeof *c);
}

static icma_status list_tasks(preparer *p, icma_error *error) {
    icma_conditions *out = p->out;
    size_t n = p->group->count;
    out->slot = icma_alloc_array(n, sizeof *out->slot);
    out->task = icma_alloc_array(n, sizeof *out->task);
    if (!out->slot || !out->task)
        return no_memory(error);
    for (size_t i = 0; i < n; i++) {
        uint32_t task = p->group->sources[i].task;
        if (out->count == 0 || out->task[out->count - 1] != task)
            out->task[out->count++] = task;
        out->slot[i] = (uint32_t)(out->count - 1);
    }
    out->learned = icma_alloc_zeroed(out->count, sizeof *out->learned);
    return out->learned ? ICMA_OK : no_memory(error);
}

/* A vector of zeros, or none, has no direction: the task's condition is learned. */
static bool is_given(const icma_condition *c) {
    for (size_t i = 0; c->vector && i < c->size; i++)
        if (c->vector[i] != 0)
            return true;
    return false;
}

static icma_status condition_sizes(preparer *p, size_t *given, icma_error *error) {
    size_t size = 0;
    *given = 0;
    for (size_t i = 0; i < p->out->count; i++) {
        const icma_condition *c = &p->given[p->out->task[i]];
        if (!is_given(c))
            continue;
        if (size && c->size != size)
            return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                             "condition vectors of %zu and of %zu numbers in one group; use vectors of one encoder", size, c->size);
        size = c->size;
        ++*given;
    }
    p->generator->condition_size = size;
    return ICMA_OK;
}

/* Gram matrix of the landmark conditions, each divided by the rms over all of them. */
static double *landmark_gram(float *const *landmarks, size_t count, size_t size, double *rms) {
    double *gram = icma_alloc_array(count * count, sizeof *gram), square = 0;
    for (size_t i = 0; gram && i < count; i++)
        for (size_t j = 0; j <= i; j++) {
            double sum = 0;
            for (size_t l = 0; l < size; l++)
                sum += (double)landmarks[i][l] * landmarks[j][l];
            gram[i * count + j] = gram[j * count + i] = sum;
            square += i == j ? sum : 0;
        }
    *rms = sqrt(square / (double)(count * size));
    for (size_t i = 0; gram && i < count * count; i++)
        gram[i] /= *rms * *rms;
    return gram;
}

/* M: directions of the given conditions, whitened: coordinates have a mean square of 1. Never centred, one task is legal. */
static icma_status make_projection(preparer *p, float *const *landmarks, size_t count, icma_error *error) {
    icma_generator *g = p->generator;
    icma_eigen e = {0};
    double rms, *gram = landmark_gram(landmarks, count, g->condition_size, &rms);
    double *one = icma_alloc_array(count, sizeof *one);
    icma_status status = gram && one ? ICMA_OK : no_memory(error);
    for (size_t i = 0; !status && i < count; i++)
        one[i] = 1;
    if (!status)
        status = icma_eigen_solve(p->ops, gram, one, count, &e, error);
    while (!status && g->given_coordinates < e.rank && g->given_coordinates < MOST_GIVEN_COORDINATES &&
           e.values[g->given_coordinates] > condition_floor * e.values[0])
        g->given_coordinates++;
    if (!status && !(g->projection = icma_alloc_array(g->given_coordinates * g->condition_size, sizeof(float))))
        status = no_memory(error);
    for (size_t k = 0; !status && k < g->given_coordinates; k++)
        for (size_t l = 0; l < g->condition_size; l++) {
            double sum = 0;
            for (size_t i = 0; i < count; i++)
                sum += e.mixing[k * count + i] * landmarks[i][l] / rms;
            /* generator sections hold no denormals */
            float entry = (float)(sum * sqrt((double)count / e.values[k]) / rms);
            g->projection[k * g->condition_size + l] = isnormal(entry) ? entry : 0;
        }
    for (size_t k = 0; !status && k < g->given_coordinates; k++)
        icma_coarse_round(g->projection + k * g->condition_size, g->condition_size);
    icma_eigen_free(&e);
    icma_free(gram);
    icma_free(one);
    return status;
}

static icma_status prepare_projection(preparer *p, size_t given, icma_error *error) {
    size_t used = given < MOST_LANDMARKS ? given : MOST_LANDMARKS, seen = 0, taken = 0;
    if (given == 0)
        return ICMA_OK;
    float **landmarks = icma_alloc_array(used, sizeof *landmarks);
    if (!landmarks)
        return no_memory(error);
    for (size_t i = 0; i < p->out->count && taken < used; i++) {
        const icma_condition *c = &p->given[p->out->task[i]];
        if (is_given(c) && seen++ == taken * given / used)
            landmarks[taken++] = (float *)c->vector;
    }
    icma_status status = make_projection(p, landmarks, taken, error);
    icma_free(landmarks);
    return status;
}

/* Projection of the given conditions, room for the learned ones, and the table of coordinates that training starts from. */
static icma_status fill_table(preparer *p, icma_rng *rng, icma_error *error) {
    icma_generator *g = p->generator;
    size_t given, tasks = p->out->count;
    icma_status status = condition_sizes(p, &given, error);
    if (!status)
        status = prepare_projection(p, given, error);
    if (status)
        return status;
    size_t learned = tasks - given;
    g->coordinates = g->given_coordinates + (learned < ICMA_LEARNED_COORDINATES ? learned : ICMA_LEARNED_COORDINATES);
    p->out->table = icma_alloc_zeroed(tasks * g->coordinates, sizeof *p->out->table);
    if (!p->out->table)
        return no_memory(error);
    for (size_t i = 0, l = 0; i < tasks; i++) {
        const icma_condition *c = &p->given[p->out->task[i]];
        float *a = p->out->table + i * g->coordinates;
        if (is_given(c)) {
            icma_generator_coordinates(g, c->vector, false, a);
            continue;
        }
        if (!(p->out->learned[i] = icma_alloc_zeroed(g->coordinates, sizeof(float))))
            return no_memory(error);
        /* Learned tasks start far from each other: an axis each, while there are axes; random directions beyond. */
        for (size_t j = g->given_coordinates; j < g->coordinates; j++)
            a[j] = learned <= ICMA_LEARNED_COORDINATES ? (float)(j - g->given_coordinates == l) * sqrtf((float)learned)
                                                       : icma_rng_normal(rng);
        l++;
    }
    return ICMA_OK;
}

icma_status icma_conditions_prepare(const icma_group *group, const icma_ops *ops, const icma_condition *given, icma_rng *rng, icma_generator *generator, icma_conditions *out, icma_error *error) {
    preparer p = {group, ops, given, generator, out};
    memset(out, 0, sizeof *out);
    icma_status status = list_tasks(&p, error);
    if (!status)
        status = fill_table(&p, rng, error);
    if (status)
        icma_conditions_free(out);
    return status;
}

void icma_conditions_settle(icma_conditions *c, size_t coordinates) {
    for (size_t i = 0; i < c->count; i++)
        if (c->learned[i]) {
            memcpy(c->learned[i], c->table + i * coordinates, coordinates * sizeof(float));
            icma_coarse_round(c->learned[i], coordinates);
        }
}
