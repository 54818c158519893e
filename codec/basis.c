/* SPDX-License-Identifier: Apache-2.0 */
/* The head: the second pass over the data. */
#include "basis.h"

#include "head.h"
#include "memory.h"
#include "progress.h"

#include <math.h>
#include <string.h>

/* 5 % of the leftover energy may be coding noise; a floor where there is no leftover. */
double icma_basis_water_level(const icma_basis *basis) {
    static const double noise_share = 0.05, noise_floor = 1e-8;
    return fmax(noise_share * basis->leftover, noise_floor * basis->energy) / (double)basis->total;
}

void icma_basis_free(icma_basis *basis) {
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        icma_free(basis->mixing[role]);
    icma_free(basis->coordinates);
    icma_free(basis->step);
    memset(basis, 0, sizeof *basis);
}

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
    h->projection = h->other_count ? icma_alloc_array(h->other_count * (total ? total : 1), sizeof *h->projection) : NULL;
    if (!h->tile || (h->other_count && (!h->others || !h->zero || !h->projection)))
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
    const icma_ops *ops = h->ops;
    icma_status status = ops->alloc(ops->device, ICMA_ELEMENT_F32, widest * h->columns, &h->x, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, (total ? total : 1) * h->columns, &h->rows, error);
    if (!status && h->other_count)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, h->other_count * (total ? total : 1), &h->p, error);
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
    icma_status status = k ? load_tile(h, h->gram->rows, n, tensor, first, columns, error) : ICMA_OK;
    if (status)
        return status;
    icma_matrix rows = icma_matrix_of(h->rows, k, columns);
    if (k)
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
    if (k == 0)
        return ICMA_OK;
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
    float *values = icma_alloc_array(k * count + 1, sizeof *values);
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
    if (!status && k)
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
    double bytes = (double)group->signature.data_size * (double)group->count, done = 0;
    for (size_t t = 0; !status && t < tensors; t++) {
        icma_tell(progress, "basis", done, bytes, NULL);
        done += (double)group->signature.tensors[t].size * (double)group->count;
        status = icma_check_cancelled(progress, error);
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
