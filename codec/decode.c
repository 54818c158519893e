/* SPDX-License-Identifier: Apache-2.0 */
#include "decode.h"

#include "head.h"
#include "memory.h"

#include <math.h>
#include <string.h>

static const uint64_t head_budget = UINT64_C(1) << 30;
enum {
    INTEGER_WORK = 32, /* multiply-adds that entropy-decoding an integer is worth, measured */
    INTEGER_BYTES = 8, /* while a chunk is decoded: 32 bits, 16 bits, and 16 on the device */
};

struct icma_decoder {
    const icma_ops *ops;
    const icma_safetensors *signature;
    const icma_generator *generator;
    const icma_section *chunks;
    size_t chunk_count;
    icma_section_loader loader;
    icma_tensor **rows; /* one a tensor: integers, rows of its role x elements; NULL while its chunk is not loaded */
    uint64_t loaded;  /* bytes of rows on the device */
    uint64_t max_memory;
    icma_trunk *trunk;
    icma_conv_engine *engine;
    float *ran;         /* the code that the engine has run on; NULL before */
    icma_matrix output; /* what came of it, times r_t: all modelled tensors end to end */
    icma_tensor *rms, *zero; /* one r_t a tensor; an index of 0 */
    icma_tensor *q, *steps, *y; /* K; K; the widest modelled tensor */
    icma_tensor *integers;      /* of a residual; the widest modelled tensor */
    float *values;      /* the widest modelled tensor */
};

static size_t rows_of(const icma_decoder *d, size_t tensor) {
    return d->generator->components[d->generator->treatment[tensor]];
}

/* Where a modelled tensor's weights start among those of all. */
static size_t place_of(const icma_decoder *d, size_t tensor) {
    size_t place = 0;
    for (size_t t = 0; t < tensor; t++)
        place += icma_generator_is_modelled(d->generator, t) ? (size_t)d->signature->tensors[t].count : 0;
    return place;
}

static size_t widest(const icma_decoder *d) {
    size_t most = 1;
    for (size_t t = 0; t < d->signature->tensor_count; t++)
        if (icma_generator_is_modelled(d->generator, t) && d->signature->tensors[t].count > most)
            most = (size_t)d->signature->tensors[t].count;
    return most;
}

/* The chunks cover the tensors in order. Tensors between chunks must be verbatim ones. */
static icma_status check_chunks(const icma_decoder *d, icma_error *error) {
    size_t next = 0;
    if (d->chunk_count && d->generator->kind != ICMA_GENERATOR_BASIS)
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "head: rows in a group without a basis");
    for (size_t c = 0; c < d->chunk_count; c++) {
        const icma_section *chunk = &d->chunks[c];
        if (chunk->first != next || chunk->count == 0 || chunk->count > d->signature->tensor_count - next ||
            icma_head_integers(d->signature, d->generator, chunk->first, chunk->count) == SIZE_MAX)
            return icma_fail(error, ICMA_E_CORRUPT, NULL, "head: section %zu does not fit the generator", c);
        next += chunk->count;
    }
    for (; next < d->signature->tensor_count; next++)
        if (d->generator->kind == ICMA_GENERATOR_BASIS && icma_generator_is_modelled(d->generator, next) && rows_of(d, next))
            return icma_fail(error, ICMA_E_CORRUPT, NULL, "head: no rows for a modelled tensor");
    return ICMA_OK;
}

static icma_status create_basis(icma_decoder *d, icma_error *error) {
    const icma_ops *ops = d->ops;
    size_t total = d->generator->total;
    icma_status status = icma_trunk_upload(d->generator, ops, &d->trunk, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, total, &d->q, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, total, &d->steps, error);
    return status ? status : ops->upload(ops->device, d->steps, 0, d->generator->head_step, total, error);
}

/* Bytes of the two largest activations next to each other. */
static double activation_bytes(const icma_conv_decoder *c) {
    double most = 0;
    for (size_t l = 0; l < c->layers; l++)
        most = fmax(most, ldexp((double)c->start, (int)l) * (double)(c->channels[l] + 2 * c->channels[l + 1]));
    return most * sizeof(float);
}

static icma_status create_conv(icma_decoder *d, icma_error *error) {
    const icma_ops *ops = d->ops;
    const uint32_t zero = 0;
    size_t tensors = d->signature->tensor_count;
    double memory = activation_bytes(&d->generator->conv);
    if (memory > (double)d->max_memory)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "a decoder that works in %.0f bytes; raise --max-output if you trust the file", memory);
    icma_status status = icma_conv_engine_create(&d->generator->conv, ops, &d->engine, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, tensors, &d->rms, error);
    for (size_t t = 0; !status && t < tensors; t++) {
        if (!icma_generator_is_modelled(d->generator, t))
            continue;
        float rms = icma_generator_rms(d->generator->scale[t], d->signature->tensors[t].count);
        status = ops->upload(ops->device, d->rms, t, &rms, 1, error);
    }
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_U32, 1, &d->zero, error);
    return status ? status : ops->upload(ops->device, d->zero, 0, &zero, 1, error);
}

icma_status icma_decoder_create(const icma_ops *ops, const icma_safetensors *signature, const icma_generator *generator,
                                const icma_section *chunks, size_t chunk_count, icma_section_loader loader, uint64_t max_memory, icma_decoder **out,
                                icma_error *error) {
    *out = NULL;
    icma_decoder *d = icma_alloc_zeroed(1, sizeof *d);
    if (!d)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the decoder");
    *d = (icma_decoder){.ops = ops, .signature = signature, .generator = generator, .chunks = chunks, .chunk_count = chunk_count, .loader = loader,
                        .max_memory = max_memory};
    icma_status status = check_chunks(d, error);
    d->rows = icma_alloc_zeroed(signature->tensor_count + 1, sizeof *d->rows);
    d->values = icma_alloc_array(widest(d), sizeof *d->values);
    if (!status && (!d->rows || !d->values))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the decoder");
    if (!status && generator->kind == ICMA_GENERATOR_BASIS)
        status = create_basis(d, error);
    if (!status && generator->kind == ICMA_GENERATOR_CONV)
        status = create_conv(d, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, widest(d), &d->y, error);
    if (status)
        icma_decoder_free(d);
    else
        *out = d;
    return status;
}

static void forget_chunk(icma_decoder *d, const icma_section *chunk) {
    for (size_t t = chunk->first; t < (size_t)chunk->first + chunk->count; t++) {
        d->ops->release(d->ops->device, d->rows[t]);
        d->rows[t] = NULL;
    }
}

void icma_decoder_free(icma_decoder *d) {
    if (!d)
        return;
    for (size_t c = 0; d->rows && c < d->chunk_count; c++)
        if (d->chunks[c].first < d->signature->tensor_count && d->chunks[c].count <= d->signature->tensor_count - d->chunks[c].first)
            forget_chunk(d, &d->chunks[c]);
    icma_trunk_free(d->trunk);
    icma_conv_engine_free(d->engine);
    icma_free(d->ran);
    d->ops->release(d->ops->device, d->rms);
    d->ops->release(d->ops->device, d->zero);
    d->ops->release(d->ops->device, d->q);
    d->ops->release(d->ops->device, d->steps);
    d->ops->release(d->ops->device, d->y);
    d->ops->release(d->ops->device, d->integers);
    icma_free(d->rows);
    icma_free(d->values);
    icma_free(d);
}

uint64_t icma_decode_work(const icma_safetensors *signature, const icma_generator *generator) {
    uint64_t work = icma_generator_trunk_parameters(generator);
    if (generator->kind == ICMA_GENERATOR_CONV) {
        uint64_t decoder = icma_conv_decoder_work(&generator->conv), prior = icma_denoiser_work(&generator->denoiser);
        return decoder > UINT64_MAX - prior ? UINT64_MAX : decoder + prior;
    }
    for (size_t t = 0; t < signature->tensor_count; t++) {
        uint64_t count = signature->tensors[t].count;
        uint64_t k = icma_generator_is_modelled(generator, t) ? generator->components[generator->treatment[t]] : 0;
        if (k && count > (UINT64_MAX - work) / k / (INTEGER_WORK + 1))
            return UINT64_MAX;
        work += (INTEGER_WORK + 1) * k * count;
    }
    return work;
}

static icma_status upload_rows(icma_decoder *d, size_t tensor, const int16_t *integers, icma_error *error) {
    size_t cells = rows_of(d, tensor) * (size_t)d->signature->tensors[tensor].count;
    icma_status status = d->ops->alloc(d->ops->device, ICMA_ELEMENT_I16, cells, &d->rows[tensor], error);
    return status ? status : d->ops->upload(d->ops->device, d->rows[tensor], 0, integers, cells, error);
}

static icma_status upload_chunk(icma_decoder *d, const icma_section *chunk, const uint8_t *payload, icma_error *error) {
    int16_t *integers, *cell;
    icma_status status = icma_head_read(payload, (size_t)chunk->raw_size, d->signature, d->generator, chunk->first, chunk->count, &integers, error);
    cell = integers;
    for (size_t t = chunk->first; !status && t < (size_t)chunk->first + chunk->count; t++) {
        size_t k = icma_generator_is_modelled(d->generator, t) ? rows_of(d, t) : 0;
        if (k)
            status = upload_rows(d, t, cell, error);
        cell += k * (size_t)d->signature->tensors[t].count;
    }
    icma_free(integers);
    return status;
}

static icma_status load_chunk(icma_decoder *d, const icma_section *chunk, icma_error *error) {
    uint8_t *raw;
    size_t integers = icma_head_integers(d->signature, d->generator, chunk->first, chunk->count);
    if (integers > d->max_memory / INTEGER_BYTES)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "head: a section of %zu integers; raise --max-output if you trust the file", integers);
    if (d->loaded + integers * sizeof(int16_t) > head_budget) {
        for (size_t c = 0; c < d->chunk_count; c++)
            forget_chunk(d, &d->chunks[c]);
        d->loaded = 0;
    }
    icma_status status = d->loader.load(d->loader.context, chunk, (size_t)chunk->raw_size, &raw, error);
    if (status)
        return status;
    status = upload_chunk(d, chunk, raw, error);
    icma_free(raw);
    if (status)
        forget_chunk(d, chunk);
    else
        d->loaded += integers * sizeof(int16_t);
    return status;
}

/* --- codes ------------------------------------------------------------------------------------------------------- */

/* The code of a latent and the condition's coordinates, without corrections. */
static icma_status code_of(icma_decoder *d, const float *z, const float *a, float *code, icma_error *error) {
    const icma_generator *g = d->generator;
    if (g->kind == ICMA_GENERATOR_BASIS)
        return icma_trunk_evaluate(d->trunk, z, a, code, error);
    memcpy(code, z, g->latent * sizeof *z);
    if (g->prior == ICMA_PRIOR_NORMAL)
        memcpy(code + g->latent, a, g->coordinates * sizeof *a);
    return ICMA_OK;
}

/* z by the prior from noise. */
static icma_status draw(icma_decoder *d, const float *noise, const float *a, float *z, icma_error *error) {
    const icma_generator *g = d->generator;
    if (g->kind == ICMA_GENERATOR_CONV && g->prior == ICMA_PRIOR_DIFFUSION)
        return icma_denoiser_sample(&g->denoiser, d->ops, noise, a, z, error);
    memcpy(z, noise, g->latent * sizeof *z);
    return ICMA_OK;
}

/* a and z in one allocation, owned by the caller; NULL: no memory. */
static float *make_inputs(const icma_generator *g, const float *condition, bool learned, float **z) {
    float *a = icma_alloc_zeroed(g->coordinates + g->latent + 1, sizeof *a);
    if (a) {
        icma_generator_coordinates(g, condition, learned, a);
        *z = a + g->coordinates;
    }
    return a;
}

icma_status icma_decoder_sample(icma_decoder *d, const float *noise, const float *condition, bool learned, float *code, icma_error *error) {
    float *z, *a = make_inputs(d->generator, condition, learned, &z);
    if (!a)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a code");
    icma_status status = draw(d, noise, a, z, error);
    if (!status)
        status = code_of(d, z, a, code, error);
    icma_free(a);
    return status;
}

icma_status icma_decoder_code(icma_decoder *d, const icma_checkpoints *task, const icma_checkpoint *checkpoint, float *code, icma_error *error) {
    const icma_generator *g = d->generator;
    float *z, *a = make_inputs(g, task->condition, task->origin == ICMA_CONDITION_LEARNED, &z);
    if (!a)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a code");
    bool stored = icma_has_coefficients(g, checkpoint);
    icma_status status = stored ? ICMA_OK : draw(d, z, a, z, error); /* z is 0 */
    for (size_t j = 0; stored && j < g->latent; j++)
        z[j] = (float)checkpoint->latent[j] * g->latent_step[j];
    if (!status)
        status = code_of(d, z, a, code, error);
    for (size_t k = 0; !status && stored && k < g->total; k++)
        code[k] = fmaf((float)checkpoint->correction[k], g->correction_step[k], code[k]);
    icma_free(a);
    return status;
}

/* --- tensors ----------------------------------------------------------------------------------------------------- */

/* On the bits, so that the loop vectorises: an exponent of all ones carries into the top bit. */
static bool all_finite(const float *values, size_t count) {
    uint32_t carry = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        carry |= (bits & 0x7f800000U) + 0x00800000U;
    }
    return !(carry & 0x80000000U);
}

/* y on the device = a modelled tensor's part of the output. Copied, because a residual is added in place. */
static void copy_output(icma_decoder *d, size_t t) {
    size_t count = (size_t)d->signature->tensors[t].count;
    icma_matrix from = {d->output.tensor, d->output.offset + place_of(d, t), 1, count, count};
    d->ops->gather_rows(d->ops->device, from, d->zero, 0, icma_matrix_of(d->y, 1, count));
}

/* y on the device = the generator's prediction of a tensor from the code that is there; zeros without rows. */
static icma_status predict_tensor(icma_decoder *d, size_t t, icma_error *error) {
    const icma_ops *ops = d->ops;
    size_t k = rows_of(d, t), count = (size_t)d->signature->tensors[t].count, first = icma_generator_first(d->generator, d->generator->treatment[t]);
    icma_matrix y = icma_matrix_of(d->y, 1, count);
    if (d->generator->kind == ICMA_GENERATOR_CONV) {
        copy_output(d, t);
        return ICMA_OK;
    }
    if (k == 0) {
        ops->fill(ops->device, 0, y);
        return ICMA_OK;
    }
    icma_status status = ICMA_OK;
    for (size_t c = 0; !status && c < d->chunk_count && !d->rows[t]; c++)
        if (d->chunks[c].first <= t && t - d->chunks[c].first < d->chunks[c].count)
            status = load_chunk(d, &d->chunks[c], error);
    if (status)
        return status;
    icma_matrix q = icma_matrix_block(icma_matrix_of(d->q, 1, d->generator->total), 0, first, 1, k);
    icma_matrix steps = icma_matrix_block(icma_matrix_of(d->steps, 1, d->generator->total), 0, first, 1, k);
    ops->basis(ops->device, q, steps, icma_matrix_of(d->rows[t], k, count), d->generator->scale[t], y);
    return ICMA_OK;
}

static icma_status add_residual(icma_decoder *d, const icma_residual *residual, const icma_residual_tensor *r, icma_error *error) {
    const icma_ops *ops = d->ops;
    size_t count = (size_t)d->signature->tensors[r->tensor].count;
    icma_status status = d->integers ? ICMA_OK : ops->alloc(ops->device, ICMA_ELEMENT_I16, widest(d), &d->integers, error);
    if (!status)
        status = ops->upload(ops->device, d->integers, 0, residual->integers + r->first, count, error);
    if (!status)
        ops->dequantise(ops->device, icma_matrix_of(d->integers, 1, count), icma_residual_step(d->generator->scale[r->tensor], r->code),
                        icma_matrix_of(d->y, 1, count));
    return status;
}

/* Runs the decoder, unless this code was the last one. */
static icma_status run_engine(icma_decoder *d, const float *code, icma_error *error) {
    const icma_ops *ops = d->ops;
    size_t size = d->generator->conv.inputs;
    if (d->ran && memcmp(d->ran, code, size * sizeof *code) == 0)
        return ICMA_OK;
    float *ran = d->ran;
    d->ran = NULL; /* what was there is gone, also if this fails */
    if (!ran && !(ran = icma_alloc_array(size + 1, sizeof *ran)))
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a code");
    memcpy(ran, code, size * sizeof *code);
    icma_status status = icma_conv_engine_run(d->engine, code, &d->output, error);
    for (size_t t = 0, place = 0; !status && t < d->signature->tensor_count; t++) {
        if (!icma_generator_is_modelled(d->generator, t))
            continue;
        size_t count = (size_t)d->signature->tensors[t].count;
        icma_matrix rms = icma_matrix_block(icma_matrix_of(d->rms, 1, d->signature->tensor_count), 0, t, 1, 1);
        ops->multiply(ops->device, rms, (icma_matrix){d->output.tensor, d->output.offset + place, count, 1, 1});
        place += count;
    }
    if (status)
        icma_free(ran);
    else
        d->ran = ran;
    return status;
}

static icma_status take_code(icma_decoder *d, const float *code, icma_error *error) {
    if (d->generator->kind == ICMA_GENERATOR_CONV)
        return run_engine(d, code, error);
    return d->generator->kind == ICMA_GENERATOR_BASIS ? d->ops->upload(d->ops->device, d->q, 0, code, d->generator->total, error) : ICMA_OK;
}

icma_status icma_decoder_predict(icma_decoder *d, const float *code, size_t tensor, float *values, icma_error *error) {
    icma_status status = take_code(d, code, error);
    if (!status)
        status = predict_tensor(d, tensor, error);
    return status ? status : d->ops->download(d->ops->device, d->y, 0, values, (size_t)d->signature->tensors[tensor].count, error);
}

icma_status icma_decoder_classes(icma_decoder *d, const float *code, uint8_t *classes, icma_error *error) {
    size_t count = (size_t)icma_generator_modelled_weights(d->generator, d->signature);
    float *values = icma_alloc_array(count + 1, sizeof *values);
    icma_matrix v = {0};
    icma_status status = values ? take_code(d, code, error) : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for classes of weights");
    if (!status)
        status = icma_conv_engine_variance(d->engine, &v, error);
    if (!status)
        status = d->ops->download(d->ops->device, v.tensor, v.offset, values, count, error);
    for (size_t i = 0; !status && i < count; i++)
        if (!icma_residual_class(values[i], &classes[i]))
            status = icma_fail(error, ICMA_E_CORRUPT, NULL, "a predicted variance is not finite");
    icma_free(values);
    return status;
}

static icma_status decode_tensor(icma_decoder *d, size_t t, const icma_residual *residual, const icma_residual_tensor *r, uint8_t *data, icma_error *error) {
    const icma_tensor_info *info = &d->signature->tensors[t];
    icma_status status = predict_tensor(d, t, error);
    if (!status && r)
        status = add_residual(d, residual, r, error);
    if (!status)
        status = d->ops->download(d->ops->device, d->y, 0, d->values, (size_t)info->count, error);
    if (!status && !all_finite(d->values, (size_t)info->count))
        status = icma_fail(error, ICMA_E_CORRUPT, NULL, "a decoded weight of %s is not finite", info->name);
    if (!status)
        icma_store_floats(info->dtype, d->values, (size_t)info->count, data + info->begin);
    return status;
}

icma_status icma_decoder_tensors(icma_decoder *d, const float *code, const icma_residual *residual, const uint32_t *exceptions, size_t exception_count,
                                 uint8_t *data, icma_error *error) {
    icma_status status = take_code(d, code, error);
    size_t next = 0, part = 0, parts = residual ? residual->count : 0;
    for (size_t t = 0; !status && t < d->signature->tensor_count; t++) {
        while (next < exception_count && exceptions[next] < t)
            next++;
        while (part < parts && residual->list[part].tensor < t)
            part++;
        if (!icma_generator_is_modelled(d->generator, t) || (next < exception_count && exceptions[next] == t))
            continue;
        status = decode_tensor(d, t, residual, part < parts && residual->list[part].tensor == t ? &residual->list[part] : NULL, data, error);
    }
    return status;
}

icma_status icma_decoder_model(icma_decoder *d, const icma_checkpoints *task, const icma_checkpoint *checkpoint, uint8_t *data, icma_error *error) {
    float *code = icma_alloc_array(icma_generator_code_size(d->generator) + 1, sizeof *code);
    icma_status status = code ? icma_decoder_code(d, task, checkpoint, code, error) : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a code");
    if (!status)
        status = icma_decoder_tensors(d, code, NULL, NULL, 0, data, error);
    icma_free(code);
    return status;
}
