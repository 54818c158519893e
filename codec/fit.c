/* SPDX-License-Identifier: Apache-2.0 */
#include "fit.h"

#include "memory.h"
#include "progress.h"

#include <math.h>
#include <string.h>

enum {
    FIT_BATCH = 256,    /* sources at a time */
    FIT_COLUMNS = 4096, /* of a tile: single-precision sums stay this short */
    FIT_CELLS = 1 << 24,
};
static const double smallest_direction = 1e-6;

typedef struct fitter {
    icma_group *group;
    const icma_generator *generator;
    icma_decoder *decoder;
    const icma_ops *ops;
    icma_fit *fit;
    size_t first, count; /* sources of this batch */
    size_t most_rows;    /* of a role */
    size_t columns;      /* of a tile */
    float *tile;         /* most_rows + count rows, then the sources */
    uint32_t *sources;
    bool *zero; /* one a source of the batch */
    icma_tensor *x, *gram[ICMA_ROLE_COUNT];
} fitter;

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory to project new checkpoints");
}

void icma_fit_free(icma_fit *fit) {
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        icma_free(fit->captured[role]);
    icma_free(fit->coordinates);
    memset(fit, 0, sizeof *fit);
}

static void fitter_free(fitter *f) {
    icma_free(f->tile);
    icma_free(f->sources);
    icma_free(f->zero);
    f->ops->release(f->ops->device, f->x);
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        f->ops->release(f->ops->device, f->gram[role]);
}

static icma_status fitter_allocate(fitter *f, icma_error *error) {
    size_t batch = f->group->count < FIT_BATCH ? f->group->count : FIT_BATCH;
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        f->most_rows =
            f->generator->components[role] > f->most_rows ? f->generator->components[role] : f->most_rows;
    size_t rows = f->most_rows + batch;
    f->columns = FIT_CELLS / rows < FIT_COLUMNS ? FIT_CELLS / rows : FIT_COLUMNS;
    f->tile = icma_alloc_array(rows * f->columns, sizeof *f->tile);
    f->sources = icma_alloc_array(batch, sizeof *f->sources);
    f->zero = icma_alloc_array(batch, sizeof *f->zero);
    if (!f->tile || !f->sources || !f->zero)
        return no_memory(error);
    icma_status status = f->ops->alloc(f->ops->device, ICMA_ELEMENT_F32, rows * f->columns, &f->x, error);
    for (int role = 0; !status && role < ICMA_ROLE_COUNT; role++) {
        size_t side = f->generator->components[role] + batch;
        if (f->generator->components[role])
            status = f->ops->alloc(f->ops->device, ICMA_ELEMENT_F64, side * side, &f->gram[role], error);
    }
    return status;
}

/* Standardises the tile's sources; what is not finite becomes an exception, and exceptions are zero. */
static void standardise(fitter *f, size_t tensor, float *rows, size_t columns) {
    float scale = f->generator->scale[tensor];
    for (size_t i = 0; i < f->count; i++) {
        float *row = rows + i * columns;
        bool finite = !icma_group_is_exception(f->group, f->sources[i], tensor), zero = true;
        for (size_t j = 0; j < columns; j++) {
            finite = finite && isfinite(row[j]);
            zero = zero && row[j] == 0;
        }
        f->zero[i] = f->zero[i] && zero;
        if (!finite)
            icma_group_set_exception(f->group, f->sources[i], tensor);
        for (size_t j = 0; j < columns; j++)
            row[j] = finite ? row[j] / scale : 0;
    }
}

static icma_status add_tile(fitter *f, size_t tensor, size_t first, size_t columns, icma_error *error) {
    size_t role = f->generator->treatment[tensor], k = f->generator->components[role], side = k + f->count;
    icma_status status = icma_decoder_rows(f->decoder, tensor, first, columns, f->tile, error);
    if (!status)
        status = icma_group_load(f->group, f->sources, f->count, tensor, first, columns,
                                 f->tile + k * columns, error);
    if (status)
        return status;
    standardise(f, tensor, f->tile + k * columns, columns);
    status = f->ops->upload(f->ops->device, f->x, 0, f->tile, side * columns, error);
    if (!status)
        f->ops->gram(f->ops->device, icma_matrix_of(f->x, side, columns), 1,
                     icma_matrix_of(f->gram[role], side, side));
    return status;
}

static icma_status add_tensor(fitter *f, size_t tensor, icma_error *error) {
    size_t count = (size_t)f->group->signature.tensors[tensor].count;
    icma_status status = ICMA_OK;
    for (size_t i = 0; i < f->count; i++)
        f->zero[i] = true;
    for (size_t first = 0; !status && first < count; first += f->columns)
        status = add_tile(f, tensor, first, count - first < f->columns ? count - first : f->columns, error);
    for (size_t i = 0; !status && i < f->count; i++)
        if (f->zero[i])
            icma_group_set_exception(f->group, f->sources[i], tensor);
    return status;
}

/* p of every source of the batch from the Gram matrix of rows and sources, by the eigenvectors of the rows'
 * part. */
static void solve(const fitter *f, size_t role, const double *gram, const double *vectors,
                  const double *values) {
    size_t k = f->generator->components[role], side = k + f->count, total = f->generator->total,
           at = icma_generator_first(f->generator, role);
    for (size_t i = 0; i < f->count; i++) {
        const double *b = gram + (k + i) * side;
        double *p = f->fit->coordinates + (f->first + i) * total + at, captured = 0;
        for (size_t j = 0; j < k; j++) {
            double projection = 0;
            if (!(values[j] > smallest_direction * values[k - 1]))
                continue;
            for (size_t l = 0; l < k; l++)
                projection += vectors[j * k + l] * b[l];
            for (size_t l = 0; l < k; l++)
                p[l] += vectors[j * k + l] * projection / values[j];
            captured += projection * projection / values[j];
        }
        f->fit->captured[role][f->first + i] = captured;
    }
}

static icma_status solve_role(const fitter *f, size_t role, icma_error *error) {
    size_t k = f->generator->components[role], side = k + f->count;
    double *gram = icma_alloc_array(side * side, sizeof *gram),
           *vectors = icma_alloc_array(k * k, sizeof *vectors), *values = icma_alloc_array(k, sizeof *values);
    icma_status status = gram && vectors && values
                             ? f->ops->download(f->ops->device, f->gram[role], 0, gram, side * side, error)
                             : no_memory(error);
    for (size_t i = 0; !status && i < k; i++)
        memcpy(vectors + i * k, gram + i * side, k * sizeof *vectors);
    if (!status)
        status = f->ops->eigen(f->ops->device, k, vectors, values, error);
    if (!status)
        solve(f, role, gram, vectors, values);
    icma_free(gram);
    icma_free(vectors);
    icma_free(values);
    return status;
}

static icma_status fit_batch(fitter *f, const icma_progress *progress, icma_error *error) {
    size_t tensors = f->group->signature.tensor_count;
    icma_status status = ICMA_OK;
    for (size_t i = 0; i < f->count; i++)
        f->sources[i] = (uint32_t)(f->first + i);
    for (int role = 0; !status && role < ICMA_ROLE_COUNT; role++) {
        size_t side = f->generator->components[role] + f->count;
        double *zeros = f->gram[role] ? icma_alloc_zeroed(side * side, sizeof *zeros) : NULL;
        if (f->gram[role])
            status = zeros ? f->ops->upload(f->ops->device, f->gram[role], 0, zeros, side * side, error)
                           : no_memory(error);
        icma_free(zeros);
    }
    for (size_t t = 0; !status && t < tensors; t++) {
        icma_tell(progress, "project", (double)(f->first * tensors + f->count * t),
                  (double)(f->group->count * tensors), NULL);
        status = icma_check_cancelled(progress, error);
        if (!status && icma_generator_is_modelled(f->generator, t) &&
            f->generator->components[f->generator->treatment[t]])
            status = add_tensor(f, t, error);
    }
    for (size_t role = 0; !status && role < ICMA_ROLE_COUNT; role++)
        if (f->gram[role])
            status = solve_role(f, role, error);
    return status;
}

icma_status icma_fit_project(icma_group *group, const icma_generator *generator, icma_decoder *decoder,
                             const icma_ops *ops, const icma_progress *progress, icma_fit *out,
                             icma_error *error) {
    fitter f = {.group = group, .generator = generator, .decoder = decoder, .ops = ops, .fit = out};
    memset(out, 0, sizeof *out);
    out->coordinates = icma_alloc_zeroed(group->count, generator->total * sizeof *out->coordinates);
    icma_status status = out->coordinates ? ICMA_OK : no_memory(error);
    for (int role = 0; !status && role < ICMA_ROLE_COUNT; role++)
        if (!(out->captured[role] = icma_alloc_zeroed(group->count, sizeof(double))))
            status = no_memory(error);
    if (!status)
        status = fitter_allocate(&f, error);
    for (; !status && f.first < group->count; f.first += f.count) {
        f.count = group->count - f.first < FIT_BATCH ? group->count - f.first : FIT_BATCH;
        status = fit_batch(&f, progress, error);
    }
    fitter_free(&f);
    if (status)
        icma_fit_free(out);
    return status;
}
