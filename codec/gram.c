/* SPDX-License-Identifier: Apache-2.0 */
#include "gram.h"

#include "memory.h"
#include "progress.h"
#include "rng.h"
#include "verbatim_why.h"

#include <math.h>
#include <string.h>

/* A tile's columns: single-precision sums stay this short, longer ones are carried on in double. */
enum { TILE_COLUMNS = 4096 };
enum { TILE_CELLS = 1 << 25 }; /* floats in memory at a time */

typedef struct scan {
    icma_group *group;
    const icma_ops *ops;
    icma_gram *gram;
    icma_generator *generator;      /* treatments and scales are decided here, unless they are `frozen` */
    const icma_generator *frozen;
    size_t columns;       /* of a tile */
    float *tile;          /* n x columns */
    double *tensor;       /* n x n: of one tensor */
    icma_tensor *x, *g;   /* the same on the device, where it is added up */
    float *lowest, *highest; /* of each row, over a tensor */
    bool *finite;
    uint8_t *why; /* icma_why, one a tensor */
} scan;

static void scan_free(scan *s) {
    icma_free(s->tile);
    icma_free(s->tensor);
    icma_free(s->lowest);
    icma_free(s->highest);
    icma_free(s->finite);
    icma_free(s->why);
    s->ops->release(s->ops->device, s->x);
    s->ops->release(s->ops->device, s->g);
}

static icma_status scan_allocate(scan *s, icma_error *error) {
    size_t n = s->gram->count;
    s->columns = TILE_CELLS / n < TILE_COLUMNS ? TILE_CELLS / n : TILE_COLUMNS;
    s->tile = icma_alloc_array(n * s->columns, sizeof *s->tile);
    s->tensor = icma_alloc_array(n * n, sizeof *s->tensor);
    s->lowest = icma_alloc_array(n, sizeof *s->lowest);
    s->highest = icma_alloc_array(n, sizeof *s->highest);
    s->finite = icma_alloc_array(n, sizeof *s->finite);
    s->why = icma_alloc_zeroed(s->group->signature.tensor_count + 1, sizeof *s->why);
    if (!s->why || !s->tile || !s->tensor || !s->lowest || !s->highest || !s->finite)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the Gram matrix of %zu checkpoints", n);
    icma_status status = s->ops->alloc(s->ops->device, ICMA_ELEMENT_F32, n * s->columns, &s->x, error);
    return status ? status : s->ops->alloc(s->ops->device, ICMA_ELEMENT_F64, n * n, &s->g, error);
}

/* Notes the range of each row and zeroes rows that are not finite, so that they do not spoil the products. */
static void inspect_tile(scan *s, size_t columns) {
#pragma omp parallel for schedule(static) num_threads(icma_threads())
    for (size_t i = 0; i < s->gram->count; i++) {
        float *row = s->tile + i * columns, low = s->lowest[i], high = s->highest[i];
        bool finite = s->finite[i];
        for (size_t j = 0; j < columns; j++) {
            finite = finite && isfinite(row[j]);
            low = row[j] < low ? row[j] : low;
            high = row[j] > high ? row[j] : high;
        }
        s->lowest[i] = low;
        s->highest[i] = high;
        s->finite[i] = finite;
        if (!finite)
            memset(row, 0, columns * sizeof *row);
    }
}

/* A power of two near the tile's largest magnitude: dividing by it is exact, and no product over- or underflows. */
static float tile_unit(const scan *s) {
    float largest = 0;
    for (size_t i = 0; i < s->gram->count; i++)
        if (s->finite[i])
            largest = fmaxf(largest, fmaxf(-s->lowest[i], s->highest[i]));
    int exponent;
    frexpf(largest, &exponent);
    return largest > 0 ? ldexpf(1, exponent < -120 ? -120 : exponent) : 0;
}

static icma_status add_tile(scan *s, size_t tensor, uint64_t first, size_t columns, icma_error *error) {
    size_t n = s->gram->count;
    const icma_ops *ops = s->ops;
    icma_status status = icma_group_load(s->group, s->gram->rows, n, tensor, first, columns, s->tile, error);
    if (status)
        return status;
    inspect_tile(s, columns);
    float scale = tile_unit(s);
    if (scale == 0)
        return ICMA_OK;
    for (size_t i = 0; i < n * columns; i++)
        s->tile[i] /= scale;
    status = ops->upload(ops->device, s->x, 0, s->tile, n * columns, error);
    if (!status)
        ops->gram(ops->device, icma_matrix_of(s->x, n, columns), (double)scale * scale, icma_matrix_of(s->g, n, n));
    return status;
}

/* The whole tensor, tile by tile: its Gram matrix is added up on the device and fetched once. */
static icma_status add_tiles(scan *s, size_t tensor, icma_error *error) {
    const icma_ops *ops = s->ops;
    uint64_t count = s->group->signature.tensors[tensor].count;
    size_t cells = s->gram->count * s->gram->count;
    memset(s->tensor, 0, cells * sizeof *s->tensor);
    icma_status status = ops->upload(ops->device, s->g, 0, s->tensor, cells, error);
    for (uint64_t first = 0; !status && first < count; first += s->columns)
        status = add_tile(s, tensor, first, count - first < s->columns ? (size_t)(count - first) : s->columns, error);
    return status ? status : ops->download(ops->device, s->g, 0, s->tensor, cells, error);
}

/* Rows that were found not to be finite, or that are all zero, leave the tensor's Gram matrix and become exceptions. Returns how many stay. */
static size_t except_rows(scan *s, size_t tensor) {
    size_t n = s->gram->count, stay = 0;
    for (size_t i = 0; i < n; i++) {
        bool zero = s->lowest[i] == 0 && s->highest[i] == 0;
        if (s->finite[i] && !zero) {
            stay++;
            continue;
        }
        icma_group_set_exception(s->group, s->gram->rows[i], tensor);
        for (size_t j = 0; j < n; j++)
            s->tensor[i * n + j] = s->tensor[j * n + i] = 0;
    }
    return stay;
}

/* One number throughout in every source (not the same one in all of them): as verbatim bytes it costs next to nothing. */
static bool is_constant(const scan *s) {
    for (size_t i = 0; i < s->gram->count; i++)
        if (!s->finite[i] || s->lowest[i] != s->highest[i])
            return false;
    return true;
}

static void forget_exceptions(scan *s, size_t tensor) {
    size_t tensors = s->group->signature.tensor_count;
    for (size_t i = 0; i < s->group->count; i++) {
        size_t bit = i * tensors + tensor;
        s->group->exceptions[bit / 8] &= (uint8_t)~(1U << (bit % 8));
    }
}

/* Notes each source's standardised energy in tensor t, and how much of it lies off its task's mean. */
static void note_energies(scan *s, size_t t, double scale) {
    size_t n = s->gram->count, tensors = s->group->signature.tensor_count;
    const icma_source *sources = s->group->sources;
    for (size_t first = 0, next; first < n; first = next) {
        uint32_t task = sources[s->gram->rows[first]].task;
        double block = 0;
        for (next = first; next < n && sources[s->gram->rows[next]].task == task; next++)
            ;
        for (size_t i = first; i < next; i++)
            for (size_t j = first; j < next; j++)
                block += s->tensor[i * n + j];
        double count = (double)(next - first);
        for (size_t i = first; i < next; i++) {
            double row = 0, own = s->tensor[i * n + i];
            for (size_t j = first; j < next; j++)
                row += s->tensor[i * n + j];
            s->gram->energy[i * tensors + t] = (float)(own / (scale * scale));
            s->gram->spread[i * tensors + t] = (float)fmax(0, (own - 2 * row / count + block / (count * count)) / (scale * scale));
        }
    }
}

/* The tensor's Gram matrix to its role's. */
static icma_status add_to_role(scan *s, size_t t, size_t role, float scale, icma_error *error) {
    size_t n = s->gram->count;
    if (!s->gram->matrix[role] && !(s->gram->matrix[role] = icma_alloc_zeroed(n * n, sizeof(double))))
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the Gram matrix of %zu checkpoints", n);
    for (size_t i = 0; i < n * n; i++)
        s->gram->matrix[role][i] += s->tensor[i] / ((double)scale * scale);
    note_energies(s, t, (double)scale);
    s->gram->weights[role] += s->group->signature.tensors[t].count;
    return ICMA_OK;
}

/* Adds one tensor to its role's matrix, standardised, or makes it verbatim. */
static icma_status scan_tensor(scan *s, size_t t, icma_error *error) {
    const icma_tensor_info *info = &s->group->signature.tensors[t];
    icma_role role = s->group->pairs.roles[t];
    size_t n = s->gram->count;
    if (!s->frozen) {
        s->generator->treatment[t] = ICMA_TREAT_VERBATIM;
        s->why[t] = (uint8_t)icma_why_verbatim(info, role);
    }
    if (s->frozen ? !icma_generator_is_modelled(s->frozen, t) : s->why[t] != ICMA_WHY_NOT)
        return ICMA_OK;
    for (size_t i = 0; i < n; i++) {
        s->lowest[i] = INFINITY;
        s->highest[i] = -INFINITY;
        s->finite[i] = true;
    }
    icma_status status = add_tiles(s, t, error);
    if (status)
        return status;
    size_t stay = except_rows(s, t);
    if (s->frozen)
        return add_to_role(s, t, s->frozen->treatment[t], s->frozen->scale[t], error);
    double energy = 0;
    for (size_t i = 0; i < n; i++)
        energy += s->tensor[i * n + i];
    float scale = stay ? (float)sqrt(energy / ((double)stay * ICMA_SCALE_WEIGHTS)) : 0;
    if (!isnormal(scale) || is_constant(s)) {
        s->why[t] = isnormal(scale) ? ICMA_WHY_CONSTANT : ICMA_WHY_EMPTY;
        forget_exceptions(s, t);
        return ICMA_OK;
    }
    s->generator->treatment[t] = (uint8_t)role;
    s->generator->scale[t] = scale;
    return add_to_role(s, t, role, scale, error);
}

/* All sources, or a seeded sample of `limit` of them, ascending. */
static icma_status choose_rows(const icma_group *group, size_t limit, uint64_t seed, icma_gram *out, icma_error *error) {
    uint32_t *all = icma_alloc_array(group->count, sizeof *all);
    if (!all)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the list of checkpoints");
    for (size_t i = 0; i < group->count; i++)
        all[i] = (uint32_t)i;
    out->rows = all;
    out->count = group->count < limit ? group->count : limit;
    if (out->count == group->count)
        return ICMA_OK;
    /* Sources lie task by task: one from each of `limit` equal stretches keeps the tasks' shares. */
    icma_rng rng = icma_rng_seed(seed);
    for (size_t i = 0; i < limit; i++) {
        size_t first = (size_t)((uint64_t)i * group->count / limit), next = (size_t)((uint64_t)(i + 1) * group->count / limit);
        all[i] = (uint32_t)(first + icma_rng_below(&rng, next - first));
    }
    return ICMA_OK;
}

static icma_status compute(scan s, size_t limit, uint64_t seed, const icma_progress *progress, icma_error *error) {
    icma_group *group = s.group;
    icma_gram *out = s.gram;
    memset(out, 0, sizeof *out);
    icma_status status = choose_rows(group, limit, seed, out, error);
    size_t cells = out->count * group->signature.tensor_count;
    out->energy = icma_alloc_zeroed(cells ? cells : 1, sizeof *out->energy);
    out->spread = icma_alloc_zeroed(cells ? cells : 1, sizeof *out->spread);
    if (!status && (!out->energy || !out->spread))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the Gram matrix of %zu checkpoints", out->count);
    if (!status)
        status = scan_allocate(&s, error);
    double bytes = (double)group->signature.data_size * (double)group->count, done = 0;
    for (size_t t = 0; !status && t < group->signature.tensor_count; t++) {
        icma_tell(progress, "gram", done, bytes, NULL);
        status = icma_check_cancelled(progress, error);
        if (!status)
            status = scan_tensor(&s, t, error);
        done += (double)group->signature.tensors[t].size * (double)group->count;
    }
    if (!status && !s.frozen)
        icma_explain_verbatim(progress, group, s.why);
    icma_tell(progress, "gram", done, bytes, NULL);
    scan_free(&s);
    if (status)
        icma_gram_free(out);
    return status;
}

icma_status icma_gram_compute(icma_group *group, const icma_ops *ops, size_t limit, uint64_t seed, const icma_progress *progress,
                              icma_generator *generator, icma_gram *out, icma_error *error) {
    return compute((scan){.group = group, .ops = ops, .gram = out, .generator = generator}, limit, seed, progress, error);
}

icma_status icma_gram_compute_as(icma_group *group, const icma_ops *ops, size_t limit, uint64_t seed, const icma_progress *progress, const icma_generator *generator, icma_gram *out,
                                 icma_error *error) {
    return compute((scan){.group = group, .ops = ops, .gram = out, .frozen = generator}, limit, seed, progress, error);
}

void icma_gram_free(icma_gram *gram) {
    icma_free(gram->rows);
    icma_free(gram->energy);
    icma_free(gram->spread);
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        icma_free(gram->matrix[role]);
    memset(gram, 0, sizeof *gram);
}

/* --- eigenproblem ------------------------------------------------------------------------------------------------ */

/* Row k of mixing: u_k W / sqrt(lambda_k), with its largest entry positive. Column k of the coordinates is G times that, which is
 * u_k sqrt(lambda_k) / W because W G W u_k = lambda_k u_k. */
static void fill_component(icma_eigen *e, const double *weight, const double *vector, double value, size_t k) {
    size_t n = e->count, largest = 0;
    for (size_t i = 1; i < n; i++)
        if (fabs(vector[i]) > fabs(vector[largest]))
            largest = i;
    double root = vector[largest] < 0 ? -sqrt(value) : sqrt(value);
    for (size_t i = 0; i < n; i++) {
        e->mixing[k * n + i] = vector[i] * weight[i] / root;
        e->coordinates[i * e->rank + k] = vector[i] * root / weight[i];
    }
}

icma_status icma_eigen_solve(const icma_ops *ops, const double *gram, const double *weight, size_t count, icma_eigen *out, icma_error *error) {
    memset(out, 0, sizeof *out);
    out->count = count;
    double *a = icma_alloc_array(count * count, sizeof *a), *w = icma_alloc_array(count, sizeof *w);
    icma_status status = ICMA_OK;
    if (!a || !w) {
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for an eigenproblem of %zu checkpoints", count);
        goto done;
    }
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < count; j++)
            a[i * count + j] = gram[i * count + j] * weight[i] * weight[j];
    status = ops->eigen(ops->device, count, a, w, error);
    if (status)
        goto done;
    /* Single-precision products carry errors of some FLT_EPSILON of the largest eigenvalue: below that there is no direction. */
    while (out->rank < count && w[count - 1 - out->rank] > 0x1p-24 * w[count - 1])
        out->rank++;
    size_t room = out->rank ? out->rank : 1; /* a matrix of zeros has no directions; that is no lack of memory */
    out->values = icma_alloc_array(room, sizeof(double));
    out->mixing = icma_alloc_array(room * count, sizeof(double));
    out->coordinates = icma_alloc_array(count * room, sizeof(double));
    if (!out->values || !out->mixing || !out->coordinates) {
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for %zu eigen-adapters", out->rank);
        goto done;
    }
#pragma omp parallel for schedule(static) num_threads(icma_threads())
    for (size_t k = 0; k < out->rank; k++) {
        out->values[k] = w[count - 1 - k];
        fill_component(out, weight, a + (count - 1 - k) * count, out->values[k], k);
    }
done:
    icma_free(a);
    icma_free(w);
    if (status)
        icma_eigen_free(out);
    return status;
}

void icma_eigen_free(icma_eigen *eigen) {
    icma_free(eigen->values);
    icma_free(eigen->mixing);
    icma_free(eigen->coordinates);
    memset(eigen, 0, sizeof *eigen);
}

double icma_within_task(const double *gram, const uint32_t *task, size_t count) {
    double within = 0;
    for (size_t first = 0, next; first < count; first = next) {
        double block = 0, trace = 0;
        for (next = first; next < count && task[next] == task[first]; next++)
            trace += gram[next * count + next];
        for (size_t i = first; i < next; i++)
            for (size_t j = first; j < next; j++)
                block += gram[i * count + j];
        within += trace - block / (double)(next - first);
    }
    return within;
}

icma_status icma_gram_measure(const icma_group *group, const icma_gram *gram, double *within, double *energy, icma_error *error) {
    size_t n = gram->count;
    uint32_t *task = icma_alloc_array(n + 1, sizeof *task);
    *within = *energy = 0;
    if (!task)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the tasks");
    for (size_t i = 0; i < n; i++)
        task[i] = group->sources[gram->rows[i]].task;
    for (int role = 0; role < ICMA_ROLE_COUNT; role++) {
        const double *matrix = gram->matrix[role];
        *within += matrix ? icma_within_task(matrix, task, n) / (double)n : 0;
        for (size_t i = 0; matrix && i < n; i++)
            *energy += matrix[i * n + i] / (double)n;
    }
    icma_free(task);
    return ICMA_OK;
}
