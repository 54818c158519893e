/* SPDX-License-Identifier: Apache-2.0 */
#include "conv_data.h"

#include "memory.h"

#include <string.h>

static const size_t most_in_memory = (size_t)2 << 30;

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the adapters of a training step");
}

void icma_conv_data_close(icma_conv_data *d) {
    icma_free(d->all);
    icma_free(d->tile);
    memset(d, 0, sizeof *d);
}

/* One tensor of `count` sources, into column `place` of x. */
static icma_status load_tensor(icma_conv_data *d, size_t t, const uint32_t *rows, size_t count, size_t place, size_t stride, float *x, icma_error *error) {
    size_t n = (size_t)d->group->signature.tensors[t].count;
    icma_status status = icma_group_load(d->group, rows, count, t, 0, n, d->tile, error);
    float rms = icma_generator_rms(d->generator->scale[t], n);
    for (size_t i = 0; !status && i < count; i++) {
        float *to = x + i * stride + place;
        if (icma_group_is_exception(d->group, rows[i], t))
            memset(to, 0, n * sizeof *to);
        else
            for (size_t l = 0; l < n; l++)
                to[l] = d->tile[i * n + l] / rms;
    }
    return status;
}

static icma_status load_files(icma_conv_data *d, const uint32_t *rows, size_t count, size_t stride, float *x, icma_error *error) {
    icma_status status = ICMA_OK;
    for (size_t t = 0, place = 0; !status && t < d->group->signature.tensor_count; t++)
        if (icma_generator_is_modelled(d->generator, t)) {
            status = load_tensor(d, t, rows, count, place, stride, x, error);
            place += (size_t)d->group->signature.tensors[t].count;
        }
    return status;
}

static icma_status load_all(icma_conv_data *d, icma_error *error) {
    icma_status status = ICMA_OK;
    size_t cells;
    if (!icma_multiply_size(d->group->count, d->used, &cells) || cells > most_in_memory / sizeof(float))
        return ICMA_OK;
    float *all = icma_alloc_array(cells, sizeof *all);
    if (!all)
        return ICMA_OK; /* then from the files */
    for (uint32_t i = 0; !status && i < d->group->count; i++)
        status = load_files(d, &i, 1, d->used, all + i * d->used, error);
    d->all = all;
    return status;
}

icma_status icma_conv_data_open(icma_group *group, const icma_generator *generator, size_t batch, icma_conv_data *out, icma_error *error) {
    size_t widest = 0, cells;
    *out = (icma_conv_data){.group = group, .generator = generator, .batch = batch, .used = (size_t)icma_generator_modelled_weights(generator, &group->signature)};
    for (size_t t = 0; t < group->signature.tensor_count; t++)
        if (icma_generator_is_modelled(generator, t) && group->signature.tensors[t].count > widest)
            widest = (size_t)group->signature.tensors[t].count;
    out->tile = icma_multiply_size(batch, widest, &cells) ? icma_alloc_array(cells, sizeof *out->tile) : NULL;
    icma_status status = out->tile ? load_all(out, error) : no_memory(error);
    if (status)
        icma_conv_data_close(out);
    return status;
}

icma_status icma_conv_data_load(icma_conv_data *d, const uint32_t *rows, size_t count, size_t stride, float *x, icma_error *error) {
    if (!d->all)
        return load_files(d, rows, count, stride, x, error);
    for (size_t i = 0; i < count; i++)
        memcpy(x + i * stride, d->all + rows[i] * d->used, d->used * sizeof *x);
    return ICMA_OK;
}
