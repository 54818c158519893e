/* SPDX-License-Identifier: Apache-2.0 */
#include "basis.h"

#include "head.h"
#include "memory.h"
#include "rate.h"

#include <math.h>
#include <string.h>

enum { CONTEXT_BITS = 8, COEFFICIENT_BITS = 8 }; /* a row costs a table index a tensor, and about a byte a checkpoint */

/* --- choosing K -------------------------------------------------------------------------------------------------- */

typedef struct chooser {
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
} chooser;

static void chooser_free(chooser *c) {
    for (int role = 0; role < ICMA_ROLE_COUNT; role++) {
        icma_eigen_free(&c->eigen[role]);
        icma_free(c->leftover[role]);
        icma_free(c->noise[role]);
    }
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
    icma_rate_gaussian(spread / sqrt(weights) / c->step, &bits, &distortion);
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

/* Coarse steps need more rows and fine ones more bits a row: all are tried, by the rate model, from coarse to fine. */
static void choose_step(chooser *c, icma_basis_target target) {
    double unit = sqrt(c->energy_a_weight), best_bits = INFINITY, best_step = finest_step * unit;
    for (double step = coarsest_step * unit; step >= finest_step * unit; step *= step_ratio)
        if (take_rows(c, step, target) && c->bits < best_bits) {
            best_bits = c->bits;
            best_step = step;
        }
    take_rows(c, best_step, target);
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
    icma_status status = icma_eigen_solve(gram, weight, n, &c->eigen[role], error);
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
    return ICMA_OK;
}

static void count_tensors(const icma_group *group, const icma_generator *generator, chooser *c) {
    for (size_t t = 0; t < group->signature.tensor_count; t++)
        if (icma_generator_is_modelled(generator, t))
            c->tensors[generator->treatment[t]]++;
}

icma_status icma_basis_choose(const icma_group *group, const icma_gram *gram, const icma_generator *generator, icma_basis_target target,
                              icma_basis *out, icma_error *error) {
    memset(out, 0, sizeof *out);
    chooser c = {.gram = gram, .file_bytes = (double)group->count * (double)group->signature.data_size};
    uint32_t *task = icma_alloc_array(gram->count, sizeof *task);
    icma_status status = task ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
    for (size_t i = 0; !status && i < gram->count; i++) {
        task[i] = group->sources[gram->rows[i]].task;
        c.tasks += i == 0 || task[i] != task[i - 1];
    }
    c.task = task;
    count_tensors(group, generator, &c);
    for (int role = 0; !status && role < ICMA_ROLE_COUNT; role++)
        status = solve_role(&c, role, error);
    if (!status) {
        measure_energy(&c);
        choose_step(&c, target);
        status = keep(group, &c, out, error);
    }
    chooser_free(&c);
    icma_free(task);
    if (status)
        icma_basis_free(out);
    return status;
}

void icma_basis_free(icma_basis *basis) {
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        icma_free(basis->mixing[role]);
    icma_free(basis->coordinates);
    icma_free(basis->step);
    memset(basis, 0, sizeof *basis);
}

/* --- the head ---------------------------------------------------------------------------------------------------- */

enum { HEAD_TILE = 8192, HEAD_CELLS = 1 << 24, HEAD_CHUNK = 1 << 20 };

typedef struct head_writer {
    icma_group *group;
    const icma_gram *gram;
    const icma_generator *generator;
    const icma_ops *ops;
    icma_basis *basis;
    uint32_t *others;     /* sources outside the sample */
    size_t other_count;
    bool *zero;           /* of each of those: nothing but zeros in the tensor so far */
    size_t columns;       /* of a tile */
    float *tile;          /* max(n, others) x columns */
    float *projection;    /* others x K of a role */
    icma_tensor *x, *mix[ICMA_ROLE_COUNT], *rows, *p;
    icma_head_chunk chunk;
    icma_buffer payload;
    icma_section *chunks; /* handed to the caller */
    size_t chunk_count;
} head_writer;

static void head_free(head_writer *h) {
    icma_free(h->others);
    icma_free(h->zero);
    icma_free(h->tile);
    icma_free(h->projection);
    icma_head_free(&h->chunk);
    icma_buffer_free(&h->payload);
    h->ops->release(h->ops->device, h->x);
    h->ops->release(h->ops->device, h->rows);
    h->ops->release(h->ops->device, h->p);
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        h->ops->release(h->ops->device, h->mix[role]);
}

static icma_status upload_mixing(head_writer *h, int role, icma_error *error) {
    size_t cells = h->basis->components[role] * h->gram->count;
    if (cells == 0)
        return ICMA_OK;
    float *mix = icma_alloc_array(cells, sizeof *mix);
    if (!mix)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
    for (size_t i = 0; i < cells; i++)
        mix[i] = (float)h->basis->mixing[role][i];
    icma_status status = h->ops->alloc(h->ops->device, ICMA_ELEMENT_F32, cells, &h->mix[role], error);
    if (!status)
        status = h->ops->upload(h->ops->device, h->mix[role], 0, mix, cells, error);
    icma_free(mix);
    return status;
}

static icma_status head_allocate(head_writer *h, icma_error *error) {
    size_t n = h->gram->count, total = h->basis->total, widest = 0;
    h->other_count = h->group->count - n;
    h->others = h->other_count ? icma_alloc_array(h->other_count, sizeof *h->others) : NULL;
    h->zero = h->other_count ? icma_alloc_array(h->other_count, sizeof *h->zero) : NULL;
    for (size_t i = 0, next = 0, o = 0; h->others && i < h->group->count; i++)
        if (next < n && h->gram->rows[next] == i)
            next++;
        else
            h->others[o++] = (uint32_t)i;
    widest = n > h->other_count ? n : h->other_count;
    h->columns = HEAD_CELLS / widest < HEAD_TILE ? HEAD_CELLS / widest : HEAD_TILE;
    h->tile = icma_alloc_array(widest * h->columns, sizeof *h->tile);
    h->projection = h->other_count ? icma_alloc_array(h->other_count * total, sizeof *h->projection) : NULL;
    if (!h->tile || (h->other_count && (!h->others || !h->zero || !h->projection)))
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
    const icma_ops *ops = h->ops;
    icma_status status = ops->alloc(ops->device, ICMA_ELEMENT_F32, widest * h->columns, &h->x, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, total * h->columns, &h->rows, error);
    if (!status && h->other_count)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, h->other_count * total, &h->p, error);
    for (int role = 0; !status && role < ICMA_ROLE_COUNT; role++)
        status = upload_mixing(h, role, error);
    return status;
}

/* Loads a tile, standardises it, zeroes exceptions and puts it on the device. Sources outside the sample are looked at here for the first time: a
 * row that is not finite becomes an exception. */
static icma_status load_tile(head_writer *h, const uint32_t *rows, size_t count, size_t tensor, uint64_t first, size_t columns,
                             icma_error *error) {
    float scale = h->generator->scale[tensor];
    icma_status status = icma_group_load(h->group, rows, count, tensor, first, columns, h->tile, error);
    for (size_t i = 0; !status && i < count; i++) {
        float *row = h->tile + i * columns;
        bool finite = !icma_group_is_exception(h->group, rows[i], tensor);
        for (size_t j = 0; j < columns; j++)
            finite = finite && isfinite(row[j]);
        if (!finite)
            icma_group_set_exception(h->group, rows[i], tensor);
        for (size_t j = 0; j < columns; j++)
            row[j] = finite ? row[j] / scale : 0;
    }
    return status ? status : h->ops->upload(h->ops->device, h->x, 0, h->tile, count * columns, error);
}

/* values (K x count of the tensor) gets the columns of one tile; the sources outside the sample are projected on them. */
static icma_status make_tile(head_writer *h, size_t tensor, uint64_t first, size_t columns, float *values, icma_error *error) {
    const icma_ops *ops = h->ops;
    int role = h->generator->treatment[tensor];
    size_t k = h->basis->components[role], n = h->gram->count, count = (size_t)h->group->signature.tensors[tensor].count;
    icma_status status = load_tile(h, h->gram->rows, n, tensor, first, columns, error);
    if (status)
        return status;
    icma_matrix rows = icma_matrix_of(h->rows, k, columns);
    ops->gemm(ops->device, 1, icma_matrix_of(h->mix[role], k, n), false, icma_matrix_of(h->x, n, columns), false, 0, rows);
    for (size_t i = 0; !status && i < k; i++)
        status = ops->download(ops->device, h->rows, i * columns, values + i * count + first, columns, error);
    if (status || h->other_count == 0)
        return status;
    status = load_tile(h, h->others, h->other_count, tensor, first, columns, error);
    if (status)
        return status;
    for (size_t i = 0; i < h->other_count; i++)
        for (size_t j = 0; h->zero[i] && j < columns; j++)
            h->zero[i] = h->tile[i * columns + j] == 0;
    ops->gemm(ops->device, 1, icma_matrix_of(h->x, h->other_count, columns), false, rows, true, 0, icma_matrix_of(h->p, h->other_count, k));
    status = ops->download(ops->device, h->p, 0, h->projection, h->other_count * k, error);
    size_t at = icma_generator_first(h->generator, (size_t)role);
    for (size_t i = 0; !status && i < h->other_count; i++)
        for (size_t j = 0; j < k; j++)
            h->basis->coordinates[h->others[i] * h->basis->total + at + j] += h->projection[i * k + j];
    return status;
}

static icma_status make_tensor(head_writer *h, size_t tensor, icma_error *error) {
    size_t k = h->basis->components[h->generator->treatment[tensor]];
    size_t count = (size_t)h->group->signature.tensors[tensor].count;
    float *values = icma_alloc_array(k * count, sizeof *values);
    icma_status status = ICMA_OK;
    if (!values)
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis of a tensor of %zu weights", count);
    for (size_t i = 0; i < h->other_count; i++)
        h->zero[i] = true;
    for (size_t first = 0; !status && first < count; first += h->columns)
        status = make_tile(h, tensor, first, count - first < h->columns ? count - first : h->columns, values, error);
    /* An untrained factor is to come back as exactly zero: as in the sample (gram.c, except_rows). */
    for (size_t i = 0; !status && i < h->other_count; i++)
        if (h->zero[i])
            icma_group_set_exception(h->group, h->others[i], tensor);
    if (!status)
        status = icma_head_add_tensor(&h->chunk, values, h->generator->head_step + icma_generator_first(h->generator, h->generator->treatment[tensor]), k,
                                      count, error);
    icma_free(values);
    return status;
}

static icma_status flush_chunk(head_writer *h, uint32_t index, size_t first, size_t next, icma_container_writer *writer, icma_error *error) {
    if (h->chunk.run_count == 0)
        return ICMA_OK;
    icma_section *more = icma_resize_array(h->chunks, h->chunk_count + 1, sizeof *more);
    if (!more)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
    h->chunks = more;
    h->chunks[h->chunk_count] = (icma_section){.kind = ICMA_SECTION_HEAD, .group = index, .task = ICMA_NO_OWNER, .first = (uint32_t)first,
                                               .count = (uint32_t)(next - first)};
    icma_status status = icma_head_take(&h->chunk, &h->payload, error);
    if (!status)
        status = icma_container_add(writer, &h->chunks[h->chunk_count++], h->payload.data, h->payload.size, 0, error);
    return status;
}

icma_status icma_basis_write_head(icma_group *group, uint32_t index, const icma_gram *gram, const icma_generator *generator, const icma_ops *ops,
                                  const icma_progress *progress, icma_basis *basis, icma_container_writer *writer, icma_section **chunks,
                                  size_t *chunk_count, icma_error *error) {
    head_writer h = {.group = group, .gram = gram, .generator = generator, .ops = ops, .basis = basis};
    size_t tensors = group->signature.tensor_count, first = 0;
    icma_status status = head_allocate(&h, error);
    for (size_t t = 0; !status && t < tensors; t++) {
        if (progress->update)
            progress->update(progress->context, "basis", (double)t, (double)tensors, NULL);
        if (progress->cancelled && progress->cancelled(progress->context))
            status = icma_fail(error, ICMA_E_CANCELLED, NULL, "cancelled");
        if (!status && icma_generator_is_modelled(generator, t))
            status = make_tensor(&h, t, error);
        if (!status && h.chunk.count >= HEAD_CHUNK) {
            status = flush_chunk(&h, index, first, t + 1, writer, error);
            first = t + 1;
        }
    }
    if (!status)
        status = flush_chunk(&h, index, first, tensors, writer, error);
    if (status) {
        icma_free(h.chunks);
        h.chunks = NULL;
        h.chunk_count = 0;
    }
    *chunks = h.chunks;
    *chunk_count = h.chunk_count;
    head_free(&h);
    return status;
}
