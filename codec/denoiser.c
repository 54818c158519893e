/* SPDX-License-Identifier: Apache-2.0 */
#include "denoiser.h"

#include "memory.h"
#include "numbers.h"

#include <math.h>
#include <string.h>

void icma_denoiser_layer_shape(const icma_denoiser *d, int layer, size_t *rows, size_t *columns) {
    *rows = layer == 0 ? d->latent + d->coordinates + d->embedding : d->hidden;
    *columns = layer == ICMA_DENOISER_LAYERS - 1 ? d->latent : d->hidden;
}

icma_status icma_denoiser_allocate(icma_denoiser *d, icma_error *error) {
    bool done = icma_make_floats(&d->centre, d->latent, 1) && icma_make_floats(&d->spread, d->latent, 1) && icma_make_floats(&d->keep, d->steps, 1) &&
                icma_make_floats(&d->add, d->steps, 1) && icma_make_floats(&d->time, d->steps, d->embedding);
    for (int l = 0; done && l < ICMA_DENOISER_LAYERS; l++) {
        size_t rows, columns;
        icma_denoiser_layer_shape(d, l, &rows, &columns);
        done = icma_make_floats(&d->weight[l], rows, columns) && icma_make_floats(&d->bias[l], columns, 1);
    }
    if (done)
        return ICMA_OK;
    icma_denoiser_free(d);
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the denoiser");
}

void icma_denoiser_free(icma_denoiser *d) {
    icma_free(d->centre);
    icma_free(d->spread);
    icma_free(d->keep);
    icma_free(d->add);
    icma_free(d->time);
    for (int l = 0; l < ICMA_DENOISER_LAYERS; l++) {
        icma_free(d->weight[l]);
        icma_free(d->bias[l]);
    }
    memset(d, 0, sizeof *d);
}

uint64_t icma_denoiser_work(const icma_denoiser *d) {
    size_t work = 0;
    for (int l = 0; l < ICMA_DENOISER_LAYERS; l++) {
        size_t rows, columns, cells;
        icma_denoiser_layer_shape(d, l, &rows, &columns);
        if (!icma_multiply_size(rows, columns, &cells) || !icma_add_size(work, cells, &work))
            return UINT64_MAX;
    }
    return icma_multiply_size(work, d->steps, &work) ? work : UINT64_MAX;
}

/* --- payload (spec 4.16) ---------------------------------------------------------------------------------------- */

void icma_denoiser_write(icma_denoiser *d, icma_buffer *out) {
    icma_write_varint(out, d->embedding);
    icma_write_varint(out, d->hidden);
    icma_write_varint(out, d->steps);
    icma_write_floats(out, d->centre, d->latent, ICMA_F32);
    icma_write_floats(out, d->spread, d->latent, ICMA_F32);
    icma_write_floats(out, d->keep, d->steps, ICMA_F32);
    icma_write_floats(out, d->add, d->steps, ICMA_F32);
    icma_write_floats(out, d->time, d->steps * d->embedding, ICMA_F32);
    for (int l = 0; l < ICMA_DENOISER_LAYERS; l++) {
        size_t rows, columns;
        icma_denoiser_layer_shape(d, l, &rows, &columns);
        icma_write_floats(out, d->weight[l], rows * columns, ICMA_BF16);
        icma_write_floats(out, d->bias[l], columns, ICMA_F32);
    }
}

static icma_status corrupt(icma_error *error, const char *what) {
    return icma_fail(error, ICMA_E_CORRUPT, NULL, "denoiser: %s", what);
}

/* Adds rows * columns numbers of `size` bytes. False on overflow: no payload has so many. */
static bool add_bytes(size_t *sum, size_t rows, size_t columns, size_t size) {
    size_t bytes;
    return icma_multiply_size(rows, columns, &bytes) && icma_multiply_size(bytes, size, &bytes) && icma_add_size(*sum, bytes, sum);
}

/* Whether the cursor has bytes enough for all the numbers: nothing is allocated before. */
static bool has_bytes(const icma_cursor *from, const icma_denoiser *d) {
    size_t bytes = 0;
    bool fits = add_bytes(&bytes, 2, d->latent, 4) && add_bytes(&bytes, 2, d->steps, 4) && add_bytes(&bytes, d->steps, d->embedding, 4);
    for (int l = 0; fits && l < ICMA_DENOISER_LAYERS; l++) {
        size_t rows, columns;
        icma_denoiser_layer_shape(d, l, &rows, &columns);
        fits = add_bytes(&bytes, rows, columns, 2) && add_bytes(&bytes, 1, columns, 4);
    }
    return fits && bytes <= from->left;
}

static icma_status read_sizes(icma_cursor *from, icma_denoiser *d, icma_error *error) {
    static const uint64_t limits[3] = {ICMA_DENOISER_MOST_EMBEDDING, ICMA_DENOISER_MOST_HIDDEN, ICMA_DENOISER_MOST_STEPS};
    uint64_t sizes[3];
    for (int i = 0; i < 3; i++)
        sizes[i] = icma_read_varint(from);
    if (from->failed)
        return corrupt(error, "truncated");
    for (int i = 0; i < 3; i++)
        if (sizes[i] > limits[i])
            return icma_fail(error, ICMA_E_LIMIT, NULL, "denoiser: size %d is %llu, the limit is %llu", i, (unsigned long long)sizes[i],
                             (unsigned long long)limits[i]);
    d->embedding = (size_t)sizes[0];
    d->hidden = (size_t)sizes[1];
    d->steps = (size_t)sizes[2];
    if (d->latent == 0 || d->hidden == 0 || d->steps == 0)
        return corrupt(error, "sizes that do not fit together");
    return has_bytes(from, d) ? ICMA_OK : corrupt(error, "truncated");
}

static bool read_numbers(icma_cursor *from, icma_denoiser *d) {
    if (!icma_read_floats(from, d->centre, d->latent, ICMA_F32) || !icma_read_floats(from, d->spread, d->latent, ICMA_F32) ||
        !icma_all_positive(d->spread, d->latent) || !icma_read_floats(from, d->keep, d->steps, ICMA_F32) ||
        !icma_read_floats(from, d->add, d->steps, ICMA_F32) || !icma_read_floats(from, d->time, d->steps * d->embedding, ICMA_F32))
        return false;
    for (int l = 0; l < ICMA_DENOISER_LAYERS; l++) {
        size_t rows, columns;
        icma_denoiser_layer_shape(d, l, &rows, &columns);
        if (!icma_read_floats(from, d->weight[l], rows * columns, ICMA_BF16) || !icma_read_floats(from, d->bias[l], columns, ICMA_F32))
            return false;
    }
    return true;
}

icma_status icma_denoiser_read(icma_cursor *from, size_t latent, size_t coordinates, icma_denoiser *out, icma_error *error) {
    icma_denoiser d = {.latent = latent, .coordinates = coordinates};
    memset(out, 0, sizeof *out);
    icma_status status = read_sizes(from, &d, error);
    if (!status)
        status = icma_denoiser_allocate(&d, error); /* frees all on failure */
    if (status)
        return status;
    if (!read_numbers(from, &d)) {
        icma_denoiser_free(&d);
        return corrupt(error, "a number that is not finite, denormal, or not positive where it must be");
    }
    *out = d;
    return ICMA_OK;
}

/* --- exact sampling (spec 4.16) --------------------------------------------------------------------------------- */

typedef struct sampler {
    const icma_denoiser *denoiser;
    const icma_ops *ops;
    icma_tensor *weight[ICMA_DENOISER_LAYERS], *bias[ICMA_DENOISER_LAYERS];
    icma_tensor *input, *odd, *even, *output; /* w; h1 and h3; h2; e */
    float *w, *e;                             /* the same, here: the steps of x are taken on the host */
} sampler;

static icma_status put(const icma_ops *ops, const float *values, size_t count, icma_tensor **out, icma_error *error) {
    icma_status status = ops->alloc(ops->device, ICMA_ELEMENT_F32, count, out, error);
    return status ? status : ops->upload(ops->device, *out, 0, values, count, error);
}

static icma_status sampler_create(sampler *s, icma_error *error) {
    const icma_denoiser *d = s->denoiser;
    const icma_ops *ops = s->ops;
    size_t inputs, columns;
    icma_status status = ICMA_OK;
    for (int l = 0; !status && l < ICMA_DENOISER_LAYERS; l++) {
        size_t rows;
        icma_denoiser_layer_shape(d, l, &rows, &columns);
        status = put(ops, d->weight[l], rows * columns, &s->weight[l], error);
        if (!status)
            status = put(ops, d->bias[l], columns, &s->bias[l], error);
    }
    icma_denoiser_layer_shape(d, 0, &inputs, &columns);
    const struct {
        icma_tensor **tensor;
        size_t count;
    } rooms[] = {{&s->input, inputs}, {&s->odd, d->hidden}, {&s->even, d->hidden}, {&s->output, d->latent}};
    for (size_t i = 0; !status && i < sizeof rooms / sizeof *rooms; i++)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, rooms[i].count, rooms[i].tensor, error);
    if (!status && (!(s->w = icma_alloc_array(inputs, sizeof *s->w)) || !(s->e = icma_alloc_array(d->latent, sizeof *s->e))))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for sampling");
    return status;
}

static void sampler_free(sampler *s) {
    icma_tensor *rooms[] = {s->input, s->odd, s->even, s->output};
    for (int l = 0; l < ICMA_DENOISER_LAYERS; l++) {
        s->ops->release(s->ops->device, s->weight[l]);
        s->ops->release(s->ops->device, s->bias[l]);
    }
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++)
        s->ops->release(s->ops->device, rooms[i]);
    icma_free(s->w);
    icma_free(s->e);
}

/* y = x U + c of a layer, or its softsign. */
static void apply(sampler *s, int layer, icma_tensor *x, bool activated, icma_tensor *y) {
    size_t rows, columns;
    icma_denoiser_layer_shape(s->denoiser, layer, &rows, &columns);
    icma_matrix to = icma_matrix_of(y, 1, columns);
    s->ops->linear(s->ops->device, icma_matrix_of(x, 1, rows), icma_matrix_of(s->weight[layer], rows, columns), icma_matrix_of(s->bias[layer], 1, columns), to);
    if (activated)
        s->ops->softsign(s->ops->device, to, to);
}

/* y += x. axpy by 1 is one addition, rounded once, on every device. */
static void add(sampler *s, icma_tensor *x, icma_tensor *y) {
    size_t h = s->denoiser->hidden;
    s->ops->axpy(s->ops->device, 1, icma_matrix_of(x, 1, h), icma_matrix_of(y, 1, h));
}

/* e of w. */
static icma_status run_network(sampler *s, icma_error *error) {
    size_t inputs, hidden;
    icma_denoiser_layer_shape(s->denoiser, 0, &inputs, &hidden);
    icma_status status = s->ops->upload(s->ops->device, s->input, 0, s->w, inputs, error);
    if (status)
        return status;
    apply(s, 0, s->input, true, s->odd);
    apply(s, 1, s->odd, true, s->even);
    add(s, s->odd, s->even);
    apply(s, 2, s->even, true, s->odd);
    add(s, s->even, s->odd);
    apply(s, 3, s->odd, false, s->output);
    return s->ops->download(s->ops->device, s->output, 0, s->e, s->denoiser->latent, error);
}

icma_status icma_denoiser_sample(const icma_denoiser *d, const icma_ops *ops, const float *noise, const float *a, float *z, icma_error *error) {
    sampler s = {.denoiser = d, .ops = ops};
    icma_status status = sampler_create(&s, error);
    if (!status) {
        memcpy(s.w, noise, d->latent * sizeof *s.w);
        if (d->coordinates)
            memcpy(s.w + d->latent, a, d->coordinates * sizeof *s.w);
    }
    for (size_t i = 0; !status && i < d->steps; i++) {
        if (d->embedding)
            memcpy(s.w + d->latent + d->coordinates, d->time + i * d->embedding, d->embedding * sizeof *s.w);
        status = run_network(&s, error);
        for (size_t j = 0; !status && j < d->latent; j++)
            s.w[j] = fmaf(d->add[i], s.e[j], d->keep[i] * s.w[j]);
    }
    for (size_t j = 0; !status && j < d->latent; j++) {
        z[j] = fmaf(d->spread[j], s.w[j], d->centre[j]);
        if (!isfinite(z[j]))
            status = icma_fail(error, ICMA_E_CORRUPT, NULL, "denoiser: latent %zu is not finite", j);
    }
    sampler_free(&s);
    return status;
}
