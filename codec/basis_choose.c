/* SPDX-License-Identifier: Apache-2.0 */
#include "basis.h"

#include "head.h"
#include "memory.h"
#include "progress.h"
#include "rate.h"
#include "residual_rate.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { CONTEXT_BITS = 8, COEFFICIENT_BITS = 8 }; /* a row costs a table index a tensor, and about a byte a checkpoint */

/* --- choosing K -------------------------------------------------------------------------------------------------- */

typedef struct chooser {
    const icma_ops *ops;
    const icma_gram *gram;
    const uint32_t *task;     /* of each sampled source */
    size_t tasks;
    size_t tensors[ICMA_ROLE_COUNT];   /* modelled tensors of the role */
    icma_eigen eigen[ICMA_ROLE_COUNT];
    double within[ICMA_ROLE_COUNT];    /* within-task variance of the role */
    double file_bytes;                 /* of the sources' tensors */
    double energy_a_weight;            /* mean square of the standardised weights */
    /* The choice that is being tried. */
    double step;                       /* of the standardised rows, one for all */
    size_t taken[ICMA_ROLE_COUNT];
    double spanned[ICMA_ROLE_COUNT];   /* within-task variance in the rows taken */
    double *leftover[ICMA_ROLE_COUNT]; /* of each sampled source: energy outside the rows taken */
    double *noise[ICMA_ROLE_COUNT];    /* of each sampled source: energy of what quantising the rows does to it */
    double bits;                       /* of the rows taken */
    icma_residual_model *residuals;    /* NULL without a bound */
    double *cheapest;                  /* bits that so many rows take at least, with their residuals; NULL where nobody listens */
    size_t most_rows;                  /* over all roles */
} chooser;

static void chooser_free(chooser *c) {
    for (int role = 0; role < ICMA_ROLE_COUNT; role++) {
        icma_eigen_free(&c->eigen[role]);
        icma_free(c->leftover[role]);
        icma_free(c->noise[role]);
    }
    icma_residual_model_free(c->residuals);
    icma_free(c->cheapest);
}

/* Within-task variance of one coordinate. */
static double column_within(const chooser *c, const double *p, size_t stride) {
    double within = 0;
    size_t n = c->gram->count;
    for (size_t first = 0, next; first < n; first = next) {
        double sum = 0;
        for (next = first; next < n && c->task[next] == c->task[first]; next++)
            sum += p[next * stride];
        double mean = sum / (double)(next - first);
        for (size_t i = first; i < next; i++)
            within += (p[i * stride] - mean) * (p[i * stride] - mean);
    }
    return within;
}

/* A row's spread: coordinates divided by it have a mean square of 1 over the tasks, so that in rows multiplied by it one quantiser step does the same harm
 * in all of them (reverse water-filling). */
static double row_spread(const chooser *c, int role, size_t k) {
    return sqrt(c->eigen[role].values[k] / (double)c->tasks);
}

static void take_row(chooser *c, int role) {
    const icma_eigen *e = &c->eigen[role];
    const double *column = e->coordinates + c->taken[role];
    double weights = (double)c->gram->weights[role], spread = row_spread(c, role, c->taken[role]), bits, distortion;
    icma_rate_trellis(spread / sqrt(weights) / c->step, &bits, &distortion);
    c->bits += bits * weights + CONTEXT_BITS * (double)c->tensors[role] + COEFFICIENT_BITS * (double)e->count;
    c->spanned[role] += column_within(c, column, e->rank);
    for (size_t i = 0; i < e->count; i++) {
        double square = column[i * e->rank] * column[i * e->rank];
        c->leftover[role][i] = fmax(0, c->leftover[role][i] - square);
        c->noise[role][i] += square / (spread * spread) * weights * distortion * c->step * c->step;
    }
    c->taken[role]++;
}

static double predicted_error(const chooser *c) {
    size_t n = c->gram->count;
    double mean = 0;
    for (size_t i = 0; i < n; i++) {
        double square = 0;
        for (int role = 0; role < ICMA_ROLE_COUNT; role++)
            if (c->gram->matrix[role] && c->gram->matrix[role][i * n + i] > 0)
                square += (c->leftover[role][i] + c->noise[role][i]) / c->gram->matrix[role][i * n + i];
        mean += sqrt(square) / (double)n;
    }
    return mean;
}

static double explained(const chooser *c) {
    double within = 0, spanned = 0, energy = 0;
    size_t n = c->gram->count;
    for (int role = 0; role < ICMA_ROLE_COUNT; role++) {
        within += c->within[role];
        spanned += c->spanned[role];
        for (size_t i = 0; c->gram->matrix[role] && i < n; i++) {
            energy += c->gram->matrix[role][i * n + i];
            spanned -= c->noise[role][i];
        }
    }
    /* Below the rounding of single-precision sums there is no variance to explain. */
    return within > 1e-7 * energy ? spanned / within : NAN;
}

/* The role whose next eigenvalue is largest per weight of a row, or -1 when none has another. */
static int best_role(const chooser *c) {
    int best = -1;
    double most = 0;
    for (int role = 0; role < ICMA_ROLE_COUNT; role++) {
        const icma_eigen *e = &c->eigen[role];
        if (c->taken[role] >= e->rank || c->taken[role] >= ICMA_MAX_COMPONENTS)
            continue;
        double gain = e->values[c->taken[role]] / (double)c->gram->weights[role];
        if (gain > most) {
            most = gain;
            best = role;
        }
    }
    return best;
}

static const double coarsest_step = 2, finest_step = 0x1p-13, step_ratio = 0.8408964152537145; /* in root mean squares of the standardised weights; 2^-1/4 */
static const double noise_of_fixed = 0.2;

/* Without a wish, this much of the variance within tasks is worth having while the basis is a small part of the files; beyond that, this much is enough. */
static const double plenty = 0.85, enough = 0.70, small_part = 0.0275;

static double wanted_share(const chooser *c, double explain) {
    if (explain > 0)
        return explain;
    return c->bits / 8 < small_part * c->file_bytes ? plenty : enough;
}

static bool reached(const chooser *c, icma_basis_target target) {
    return !(explained(c) < wanted_share(c, target.explain)) && predicted_error(c) <= target.max_error;
}

static void start_over(chooser *c, double step) {
    size_t n = c->gram->count;
    c->step = step;
    c->bits = 0;
    for (int role = 0; role < ICMA_ROLE_COUNT; role++) {
        c->taken[role] = 0;
        c->spanned[role] = 0;
        for (size_t i = 0; c->gram->matrix[role] && i < n; i++) {
            c->leftover[role][i] = c->gram->matrix[role][i * n + i];
            c->noise[role][i] = 0;
        }
    }
}

/* Sums over the sampled sources, all roles. */
static double total_of(const chooser *c, double *const *list) {
    double sum = 0;
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        for (size_t i = 0; list[role] && i < c->gram->count; i++)
            sum += list[role][i];
    return sum;
}

/* Rows for one step; true when the target was reached with them. */
static bool take_rows(chooser *c, double step, icma_basis_target target) {
    start_over(c, step);
    for (int role = 0; role < ICMA_ROLE_COUNT && target.components; role++)
        while (c->taken[role] < target.components && c->taken[role] < c->eigen[role].rank && c->taken[role] < ICMA_MAX_COMPONENTS)
            take_row(c, role);
    /* So many rows and no other: a step that spoils them by less than what they leave, or than the target allows. */
    if (target.components)
        return total_of(c, c->noise) <= noise_of_fixed * total_of(c, c->leftover) || predicted_error(c) <= target.max_error / 4;
    /* Every role that is modelled has a row, so that no tensor is modelled by nothing. */
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        if (c->eigen[role].rank)
            take_row(c, role);
    for (int role = best_role(c); role >= 0 && !reached(c, target); role = best_role(c))
        take_row(c, role);
    return reached(c, target);
}

typedef struct words {
    char text[32];
} words;

/* "71 %", "none"; for what the rows taken explain. */
static words explained_words(const chooser *c) {
    words w = {"none"};
    double share = explained(c);
    if (isnan(share))
        snprintf(w.text, sizeof w.text, "all (there is none)");
    else if (share > 0)
        snprintf(w.text, sizeof w.text, "%.0f %%", 100 * share);
    return w;
}

static void explain_rows(const chooser *c, icma_basis_target target, bool good) {
    size_t rows = 0;
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        rows += c->taken[role];
    if (target.components)
        icma_explain(target.progress, "basis", "%zu rows in all, %zu a role as asked for: predicted to take %.0f bytes, to explain %s of the variance within tasks and to leave a dW error of %.4f",
                     rows, target.components, c->bits / 8, explained_words(c).text, predicted_error(c));
    else
        icma_explain(target.progress, "basis", "%zu rows, predicted to take %.0f bytes, explain %s of the variance within tasks (wanted: %.0f %%) and leave a dW error of %.4f (wanted: %.4f): %s", rows, c->bits / 8,
                     explained_words(c).text, 100 * wanted_share(c, target.explain), predicted_error(c), target.max_error,
                     good ? "the fewest bytes that do, over all steps" : "all rows there are, which is not enough");
}

/* Coarse steps need more rows and fine ones more bits a row: all are tried, by the rate model, from coarse to fine. */
static icma_status choose_step(chooser *c, icma_basis_target target, icma_error *error) {
    double unit = sqrt(c->energy_a_weight), best_bits = INFINITY, best_step = finest_step * unit;
    double all = ceil(log(finest_step / coarsest_step) / log(step_ratio)), tried = 0;
    icma_status status = ICMA_OK;
    for (double step = coarsest_step * unit; !status && step >= finest_step * unit; step *= step_ratio) {
        icma_tell(target.progress, "choose", tried++, all, NULL);
        status = icma_check_cancelled(target.progress, error);
        if (!status && take_rows(c, step, target) && c->bits < best_bits) {
            best_bits = c->bits;
            best_step = step;
        }
    }
    bool good = take_rows(c, best_step, target);
    if (!status)
        explain_rows(c, target, good);
    return status;
}

/* --- with residuals on top ------------------------------------------------------------------------------------- */

static const double meaningful = 0.70, worth_meaning = 1.5; /* share of the within-task variance, and what it may cost */
static const double coarsest_bounded = 8;                    /* steps of rows, in those that would just use the bound up */
enum { BOUNDED_STEPS = 44, TRUNK_BITS = 1 << 13, HOPELESS_ROWS = 12 };
static const double trunk_share = 0.05; /* of the rows' bits */

typedef struct choice {
    double step, cost;
    size_t taken[ICMA_ROLE_COUNT];
} choice;

static void take_choice(chooser *c, const choice *chosen) {
    start_over(c, chosen->step);
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        while (c->taken[role] < chosen->taken[role])
            take_row(c, role);
}

static size_t rows_of(const choice *made) {
    size_t rows = 0;
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        rows += made->taken[role];
    return rows;
}

/* Of the rows taken, with a trunk and the residuals. */
static double predicted_bits(const chooser *c) {
    double rows = c->bits > 0 ? c->bits * (1 + trunk_share) + TRUNK_BITS : 0;
    return rows + icma_residual_model_bits(c->residuals, c->leftover, c->noise);
}

/* Keeps the rows taken as the choice, if they and their residuals take fewer bits; *explaining only among those that explain enough. */
static double consider(const chooser *c, icma_basis_target target, choice *best, choice *explaining) {
    choice now = {c->step, predicted_bits(c), {0}};
    memcpy(now.taken, c->taken, sizeof now.taken);
    if (c->cheapest)
        c->cheapest[rows_of(&now)] = fmin(c->cheapest[rows_of(&now)], now.cost);
    if (now.cost < best->cost)
        *best = now;
    if (now.cost < explaining->cost && !(explained(c) < (target.explain > 0 ? target.explain : meaningful)))
        *explaining = now;
    return now.cost;
}

/* Rows for one step, one by one, until more of them have long stopped to pay and explain enough. */
static void walk_rows(chooser *c, double step, icma_basis_target target, choice *best, choice *explaining) {
    start_over(c, step);
    for (int role = 0; role < ICMA_ROLE_COUNT && target.required; role++)
        if (c->eigen[role].rank)
            take_row(c, role);
    double lowest = consider(c, target, best, explaining);
    size_t since = 0, rows = 0;
    for (int role = best_role(c); role >= 0; role = best_role(c)) {
        take_row(c, role);
        /* Far out one row changes little: not every number of them is tried. */
        if (++rows > 64 && rows % (rows / 32))
            continue;
        double cost = consider(c, target, best, explaining);
        since = cost < lowest ? 0 : since + 1;
        lowest = fmin(lowest, cost);
        if (since > HOPELESS_ROWS && (cost > 1.5 * lowest || explaining->cost < INFINITY))
            return;
    }
}

/* Tries steps from coarse to fine, every so manyth; told as the progress of `phase`. */
static icma_status walk_steps(chooser *c, icma_basis_target target, int stride, const char *phase, choice *best, choice *explaining, icma_error *error) {
    double first = sqrt(c->energy_a_weight * 12 / 2) * (double)target.bound.value;
    if (target.bound.kind == ICMA_BOUND_ABS) /* no relative error is known: all that rows can be */
        first = sqrt(c->energy_a_weight);
    icma_status status = ICMA_OK;
    for (int i = 0; !status && i < BOUNDED_STEPS; i += stride) {
        if (phase)
            icma_tell(target.progress, phase, i, BOUNDED_STEPS, NULL);
        walk_rows(c, first * coarsest_bounded * pow(step_ratio, i), target, best, explaining);
        status = icma_check_cancelled(target.progress, error);
    }
    return status;
}

/* "0: 70123, 6: 40321, ...": bytes that none, halves and doubles of the rows chosen were predicted to take. */
static void list_candidates(const chooser *c, size_t chosen, char *text, size_t size) {
    size_t candidates[] = {0, chosen / 4, chosen / 2, chosen * 2, chosen * 4}, last = SIZE_MAX;
    text[0] = '\0';
    for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++) {
        size_t rows = candidates[i], used = strlen(text);
        while (rows < c->most_rows && rows > 0 && isinf(c->cheapest[rows])) /* not every number is tried far out */
            rows++;
        if (rows > c->most_rows || rows == chosen || rows == last || isinf(c->cheapest[rows]))
            continue;
        snprintf(text + used, size - used, "%s%zu: %.0f", used ? ", " : "", rows, c->cheapest[rows] / 8);
        last = rows;
    }
}

static void explain_bounded(chooser *c, icma_basis_target target, const choice *chosen, const choice *best, bool explaining) {
    char others[160];
    size_t rows = rows_of(chosen);
    list_candidates(c, rows, others, sizeof others);
    icma_explain(target.progress, "basis", "%zu rows: %.0f bytes predicted, with the residuals on top%s%s", rows, chosen->cost / 8, others[0] ? "; other numbers of rows would take " : "", others);
    if (rows == 0)
        icma_explain(target.progress, "basis", "no row is worth its bytes: residuals alone are smaller");
    else if (explaining && rows_of(best) != rows)
        icma_explain(target.progress, "basis", "%zu rows at %.0f bytes would be the smallest; these explain %s of the variance within tasks, and latents that mean something are %s", rows_of(best),
                     best->cost / 8, explained_words(c).text, target.explain > 0 ? "asked for with explain" : "worth up to half as much again");
    else
        icma_explain(target.progress, "basis", "that is the smallest of all that was tried; it explains %s of the variance within tasks", explained_words(c).text);
}

static icma_status choose_bounded(chooser *c, icma_basis_target target, icma_error *error) {
    choice best = {.cost = INFINITY}, explaining = {.cost = INFINITY};
    icma_status status = walk_steps(c, target, 1, "choose", &best, &explaining, error);
    bool explain = target.explain > 0 ? explaining.cost < INFINITY : explaining.cost <= worth_meaning * best.cost;
    take_choice(c, explain ? &explaining : &best);
    if (c->cheapest && !status)
        explain_bounded(c, target, explain ? &explaining : &best, &best, explain);
    return status;
}

/* --- what other bounds would take ------------------------------------------------------------------------------- */

enum { CURVE_STRIDE = 4, CURVE_SOURCES = 32 }; /* a curve to look at: a thirtieth of the work of a choice, each point */

/* Replaces the choice and the residual model that are there. */
static icma_status predict_point(chooser *c, const icma_group *group, const icma_generator *generator, const icma_progress *progress, double bound,
                                 icma_rate_point *out, icma_error *error) {
    icma_basis_target target = {.bound = {ICMA_BOUND_DW, (float)bound}, .progress = progress};
    choice best = {.cost = INFINITY}, explaining = {.cost = INFINITY};
    icma_residual_model_free(c->residuals);
    c->residuals = NULL;
    icma_status status = icma_residual_model_create(group, c->gram, generator, target.bound, CURVE_SOURCES, &c->residuals, error);
    if (!status)
        status = walk_steps(c, target, CURVE_STRIDE, NULL, &best, &explaining, error);
    if (status)
        return status;
    take_choice(c, &best);
    double weights = 0;
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        weights += (double)c->gram->weights[role] * (double)c->gram->count;
    *out = (icma_rate_point){bound, weights > 0 ? best.cost / weights : 0, icma_residual_model_error(c->residuals, c->leftover, c->noise)};
    return ICMA_OK;
}

static icma_status predict_rates(chooser *c, const icma_group *group, const icma_generator *generator, const icma_progress *progress, icma_basis *out,
                                 icma_error *error) {
    static const double bounds[ICMA_RATE_POINTS] = {0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002};
    icma_status status = ICMA_OK;
    for (; !status && out->rate_count < ICMA_RATE_POINTS; out->rate_count += !status)
        status = predict_point(c, group, generator, progress, bounds[out->rate_count], &out->rate[out->rate_count], error);
    return status;
}

static void measure_energy(chooser *c) {
    double energy = 0, weights = 0;
    size_t n = c->gram->count;
    for (int role = 0; role < ICMA_ROLE_COUNT; role++) {
        for (size_t i = 0; c->gram->matrix[role] && i < n; i++)
            energy += c->gram->matrix[role][i * n + i];
        weights += (double)c->gram->weights[role] * (double)n;
    }
    c->energy_a_weight = weights > 0 && energy > 0 ? energy / weights : 1;
}

static icma_status solve_role(chooser *c, int role, icma_error *error) {
    size_t n = c->gram->count;
    const double *gram = c->gram->matrix[role];
    if (!gram)
        return ICMA_OK;
    double *weight = icma_alloc_array(n, sizeof *weight);
    c->leftover[role] = icma_alloc_array(n, sizeof(double));
    c->noise[role] = icma_alloc_array(n, sizeof(double));
    if (!weight || !c->leftover[role] || !c->noise[role]) {
        icma_free(weight);
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
    }
    for (size_t first = 0, next; first < n; first = next) {
        for (next = first; next < n && c->task[next] == c->task[first]; next++)
            ;
        for (size_t i = first; i < next; i++)
            weight[i] = 1 / sqrt((double)(next - first));
    }
    c->within[role] = icma_within_task(gram, c->task, n);
    icma_status status = icma_eigen_solve(c->ops, gram, weight, n, &c->eigen[role], error);
    icma_free(weight);
    return status;
}

/* Copies what was chosen: mixing rows a role, and coordinates of the sampled sources among all. */
static icma_status keep(const icma_group *group, const chooser *c, icma_basis *out, icma_error *error) {
    size_t n = c->gram->count;
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        out->total += out->components[role] = c->taken[role];
    out->coordinates = icma_alloc_zeroed(group->count, (out->total ? out->total : 1) * sizeof(double));
    out->step = icma_alloc_array(out->total ? out->total : 1, sizeof *out->step);
    if (!out->coordinates || !out->step)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the coordinates");
    for (size_t role = 0, first = 0; role < ICMA_ROLE_COUNT; first += c->taken[role], role++) {
        const icma_eigen *e = &c->eigen[role];
        size_t k = c->taken[role];
        if (k == 0)
            continue;
        out->mixing[role] = icma_alloc_array(k * n, sizeof(double));
        if (!out->mixing[role])
            return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
        memcpy(out->mixing[role], e->mixing, k * n * sizeof(double));
        for (size_t j = 0; j < k; j++)
            out->step[first + j] = (float)(c->step / row_spread(c, (int)role, j));
        for (size_t i = 0; i < n; i++)
            memcpy(out->coordinates + c->gram->rows[i] * out->total + first, e->coordinates + i * e->rank, k * sizeof(double));
        for (size_t i = 0; i < n; i++) {
            out->leftover += (c->leftover[role][i] + c->noise[role][i]) / (double)n;
            out->energy += c->gram->matrix[role][i * n + i] / (double)n;
        }
        out->within += c->within[role] / (double)n;
    }
    out->explained = explained(c);
    out->predicted_error = predicted_error(c);
    out->bits = c->residuals ? predicted_bits(c) : NAN;
    return ICMA_OK;
}

static void count_tensors(const icma_group *group, const icma_generator *generator, chooser *c) {
    for (size_t t = 0; t < group->signature.tensor_count; t++)
        if (icma_generator_is_modelled(generator, t))
            c->tensors[generator->treatment[t]]++;
}

/* Room to remember what is only told. */
static icma_status listen(chooser *c, icma_basis_target target, icma_error *error) {
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        c->most_rows += c->eigen[role].rank < ICMA_MAX_COMPONENTS ? c->eigen[role].rank : ICMA_MAX_COMPONENTS;
    if (!icma_explains(target.progress))
        return ICMA_OK;
    c->cheapest = icma_alloc_array(c->most_rows + 1, sizeof *c->cheapest);
    for (size_t i = 0; c->cheapest && i <= c->most_rows; i++)
        c->cheapest[i] = INFINITY;
    return c->cheapest ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
}

icma_status icma_basis_choose(const icma_group *group, const icma_ops *ops, const icma_gram *gram, const icma_generator *generator, icma_basis_target target,
                              icma_basis *out, icma_error *error) {
    memset(out, 0, sizeof *out);
    chooser c = {.ops = ops, .gram = gram, .file_bytes = (double)group->count * (double)group->signature.data_size};
    uint32_t *task = icma_alloc_array(gram->count, sizeof *task);
    icma_status status = task ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
    for (size_t i = 0; !status && i < gram->count; i++) {
        task[i] = group->sources[gram->rows[i]].task;
        c.tasks += i == 0 || task[i] != task[i - 1];
    }
    c.task = task;
    count_tensors(group, generator, &c);
    icma_tell(target.progress, "choose", 0, 0, NULL); /* eigenvalues: nobody knows how long */
    for (int role = 0; !status && role < ICMA_ROLE_COUNT; role++)
        status = solve_role(&c, role, error);
    if (!status)
        status = listen(&c, target, error);
    if (!status) {
        measure_energy(&c);
        if (target.bound.kind == ICMA_BOUND_NONE || target.components)
            status = choose_step(&c, target, error);
        else if (!(status = icma_residual_model_create(group, gram, generator, target.bound, ICMA_RATE_SOURCES, &c.residuals, error)))
            status = choose_bounded(&c, target, error);
    }
    if (!status)
        status = keep(group, &c, out, error);
    if (!status)
        status = predict_rates(&c, group, generator, target.progress, out, error);
    chooser_free(&c);
    icma_free(task);
    if (status)
        icma_basis_free(out);
    return status;
}

