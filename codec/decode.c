/* SPDX-License-Identifier: Apache-2.0 */
#include "decode.h"

#include "coded.h"
#include "head.h"
#include "memory.h"

#include <math.h>
#include <string.h>

static const uint64_t head_budget = UINT64_C(1) << 30;
enum {
    INTEGER_WORK = 32, /* multiply-adds that entropy-decoding an integer is worth, measured */
    LONG_STREAM = 1 << 22, /* symbols; icma's own chunks have about a quarter of that */
    INTEGER_BYTES = 8, /* while a chunk is decoded: 32 bits, 16 bits, and 16 on the device */
};

/* Where a modelled tensor is in what predicts all of them. */
typedef struct place {
    size_t chunk; /* of the head; SIZE_MAX: none */
    size_t first; /* integers of that chunk before its rows; with a convolutional decoder, weights of the output before its own */
} place;

/* A chunk's integers on the device. */
typedef struct chunk_state {
    icma_tensor *tensor; /* one of `loads`; NULL while it is not loaded */
    size_t first;
} chunk_state;

struct icma_decoder {
    const icma_ops *ops;
    const icma_safetensors *signature;
    const icma_generator *generator;
    const icma_section *chunks;
    size_t chunk_count;
    icma_section_loader loader;
    place *places;        /* one a tensor */
    chunk_state *states;  /* one a chunk */
    icma_tensor **loads;  /* integers of chunks that were decoded together; room for one a chunk */
    size_t load_count;
    uint64_t loaded; /* bytes of them */
    uint64_t max_memory;
    icma_trunk *trunk;
    icma_conv_engine *engine;
    float *ran;         /* the code that the engine has run on; NULL before */
    icma_matrix output; /* what came of it, times r_t: all modelled tensors end to end */
    icma_tensor *rms;   /* r_t, one a weight */
    icma_tensor *q, *steps; /* K */
    icma_tensor *y;         /* the widest modelled tensor; NULL until one is predicted alone */
    icma_tensor *integers;  /* of a residual, integer_room of them */
    size_t integer_room;
};

static size_t rows_of(const icma_decoder *d, size_t tensor) {
    return d->generator->components[d->generator->treatment[tensor]];
}

static size_t widest(const icma_decoder *d) {
    size_t most = 1;
    for (size_t t = 0; t < d->signature->tensor_count; t++)
        if (icma_generator_is_modelled(d->generator, t) && d->signature->tensors[t].count > most)
            most = (size_t)d->signature->tensors[t].count;
    return most;
}

static void find_places(icma_decoder *d) {
    bool conv = d->generator->kind == ICMA_GENERATOR_CONV;
    for (size_t t = 0, c = 0, first = 0; t < d->signature->tensor_count; t++) {
        if (c < d->chunk_count && t - d->chunks[c].first == d->chunks[c].count) {
            c++;
            first = 0;
        }
        d->places[t] = (place){c < d->chunk_count ? c : SIZE_MAX, first};
        if (icma_generator_is_modelled(d->generator, t))
            first += (conv ? 1 : rows_of(d, t)) * (size_t)d->signature->tensors[t].count;
    }
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

/* One a weight, so that one multiplication does for all tensors. */
static icma_status upload_rms(icma_decoder *d, icma_error *error) {
    size_t total = (size_t)icma_generator_modelled_weights(d->generator, d->signature), at = 0;
    float *values = icma_alloc_array(total + 1, sizeof *values);
    if (!values)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the decoder");
    for (size_t t = 0; t < d->signature->tensor_count; t++) {
        uint64_t count = icma_generator_is_modelled(d->generator, t) ? d->signature->tensors[t].count : 0;
        float rms = count ? icma_generator_rms(d->generator->scale[t], count) : 0;
        for (uint64_t l = 0; l < count; l++)
            values[at++] = rms;
    }
    icma_status status = d->ops->alloc(d->ops->device, ICMA_ELEMENT_F32, total + 1, &d->rms, error);
    if (!status)
        status = d->ops->upload(d->ops->device, d->rms, 0, values, total, error);
    icma_free(values);
    return status;
}

static icma_status create_conv(icma_decoder *d, icma_error *error) {
    const icma_ops *ops = d->ops;
    double memory = activation_bytes(&d->generator->conv);
    if (memory > (double)d->max_memory)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "a decoder that works in %.0f bytes; raise --max-output if you trust the file", memory);
    icma_status status = icma_conv_engine_create(&d->generator->conv, ops, &d->engine, error);
    return status ? status : upload_rms(d, error);
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
    d->places = icma_alloc_array(signature->tensor_count + 1, sizeof *d->places);
    d->states = icma_alloc_zeroed(chunk_count + 1, sizeof *d->states);
    d->loads = icma_alloc_array(chunk_count + 1, sizeof *d->loads);
    if (!status && (!d->places || !d->states || !d->loads))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the decoder");
    if (!status)
        find_places(d);
    if (!status && generator->kind == ICMA_GENERATOR_BASIS)
        status = create_basis(d, error);
    if (!status && generator->kind == ICMA_GENERATOR_CONV)
        status = create_conv(d, error);
    if (status)
        icma_decoder_free(d);
    else
        *out = d;
    return status;
}

static void forget_chunks(icma_decoder *d) {
    for (size_t i = 0; i < d->load_count; i++)
        d->ops->release(d->ops->device, d->loads[i]);
    for (size_t c = 0; d->states && c < d->chunk_count; c++)
        d->states[c] = (chunk_state){0};
    d->load_count = 0;
    d->loaded = 0;
}

void icma_decoder_free(icma_decoder *d) {
    if (!d)
        return;
    forget_chunks(d);
    icma_trunk_free(d->trunk);
    icma_conv_engine_free(d->engine);
    icma_free(d->ran);
    d->ops->release(d->ops->device, d->rms);
    d->ops->release(d->ops->device, d->q);
    d->ops->release(d->ops->device, d->steps);
    d->ops->release(d->ops->device, d->y);
    d->ops->release(d->ops->device, d->integers);
    icma_free(d->places);
    icma_free(d->states);
    icma_free(d->loads);
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

/* --- the head ---------------------------------------------------------------------------------------------------- */

static size_t integers_of(const icma_decoder *d, size_t chunk) {
    return icma_head_integers(d->signature, d->generator, d->chunks[chunk].first, d->chunks[chunk].count);
}

/* A chunk that is read to be decoded. */
typedef struct chunk_input {
    uint8_t *payload; /* owned */
    icma_head_coded head;
} chunk_input;

static icma_status read_chunk(icma_decoder *d, size_t c, chunk_input *in, icma_error *error) {
    const icma_section *chunk = &d->chunks[c];
    size_t integers = integers_of(d, c);
    if (integers > d->max_memory / INTEGER_BYTES)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "head: a section of %zu integers; raise --max-output if you trust the file", integers);
    icma_status status = d->loader.load(d->loader.context, chunk, (size_t)chunk->raw_size, &in->payload, error);
    return status ? status : icma_head_open(in->payload, (size_t)chunk->raw_size, d->signature, d->generator, chunk->first, chunk->count, &in->head, error);
}

/* By this machine's threads, and then to the device: a GPU takes a stream's symbols one after the other, and slower than a processor does, so that a stream of very many would keep it for long. */
static icma_status decode_on_host(icma_decoder *d, const icma_coded *coded, size_t count, icma_tensor *to, icma_error *error) {
    size_t total = icma_coded_total(coded, count);
    int16_t *integers = icma_alloc_array(total + 1, sizeof *integers);
    icma_status status = integers ? icma_coded_decode(coded, count, integers, error) : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
    if (!status)
        status = d->ops->upload(d->ops->device, to, 0, integers, total, error);
    icma_free(integers);
    return status;
}

static bool has_long_stream(const icma_coded *coded, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (coded[i].length > LONG_STREAM && coded[i].total > LONG_STREAM)
            return true;
    return false;
}

/* Decodes chunks, which were read, into one tensor. */
static icma_status decode_chunks(icma_decoder *d, const size_t *list, const icma_coded *coded, size_t count, icma_error *error) {
    const icma_ops *ops = d->ops;
    size_t total = icma_coded_total(coded, count);
    icma_tensor *tensor;
    icma_status status = ops->alloc(ops->device, ICMA_ELEMENT_I16, total, &tensor, error);
    if (!status && !icma_ops_on_host(ops) && has_long_stream(coded, count))
        status = decode_on_host(d, coded, count, tensor, error);
    else if (!status)
        status = ops->decode_integers(ops->device, coded, count, tensor, 0, error);
    if (status) {
        ops->release(ops->device, tensor);
        return status;
    }
    d->loads[d->load_count++] = tensor;
    d->loaded += total * sizeof(int16_t);
    for (size_t i = 0, first = 0; i < count; first += coded[i++].total)
        d->states[list[i]] = (chunk_state){tensor, first};
    return ICMA_OK;
}

static icma_status load_together(icma_decoder *d, const size_t *list, size_t count, icma_error *error) {
    chunk_input *inputs = icma_alloc_zeroed(count, sizeof *inputs);
    icma_coded *coded = icma_alloc_array(count, sizeof *coded);
    icma_status status = inputs && coded ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
    for (size_t i = 0; !status && i < count; i++) {
        status = read_chunk(d, list[i], &inputs[i], error);
        coded[i] = icma_head_stream(&inputs[i].head);
    }
    if (!status)
        status = decode_chunks(d, list, coded, count, error);
    for (size_t i = 0; inputs && i < count; i++) {
        icma_head_close(&inputs[i].head);
        icma_free(inputs[i].payload);
    }
    icma_free(inputs);
    icma_free(coded);
    return status;
}

/* How many of these chunks, at least 1, decode within the memory that one may take. */
static size_t fit_together(const icma_decoder *d, const size_t *list, size_t count) {
    size_t n = 1, integers = integers_of(d, list[0]);
    for (; n < count; n++) {
        integers += integers_of(d, list[n]);
        if (integers > d->max_memory / INTEGER_BYTES)
            break;
    }
    return n;
}

/* Loads those chunks of a list that are not; `list` is overwritten. What all of them take is within the budget, or there is only one. */
static icma_status load_chunks(icma_decoder *d, size_t *list, size_t count, icma_error *error) {
    uint64_t bytes = 0;
    size_t missing = 0;
    for (size_t i = 0; i < count; i++)
        bytes += d->states[list[i]].tensor ? 0 : integers_of(d, list[i]) * sizeof(int16_t);
    if (d->loaded + bytes > head_budget)
        forget_chunks(d);
    for (size_t i = 0; i < count; i++)
        if (!d->states[list[i]].tensor)
            list[missing++] = list[i];
    icma_status status = ICMA_OK;
    for (size_t i = 0, n; !status && i < missing; i += n) {
        n = fit_together(d, list + i, missing - i);
        status = load_together(d, list + i, n, error);
    }
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

/* The code of a task that was added: its own offset, and the checkpoint's corrections (NULL: none), in steps of these. Sums of the integers are exact in f32. */
static icma_status code_of_offset(const icma_generator *g, const int32_t *offset, const int32_t *correction, float *code, icma_error *error) {
    for (size_t k = 0; k < g->total; k++) {
        code[k] = (float)(offset[k] + (correction ? correction[k] : 0)) * g->correction_step[k];
        if (!isfinite(code[k]))
            return icma_fail(error, ICMA_E_CORRUPT, NULL, "generator: coefficient %zu is not finite", k);
    }
    return ICMA_OK;
}

icma_status icma_decoder_sample_task(icma_decoder *d, const float *noise, const icma_checkpoints *task, float *code, icma_error *error) {
    if (task->origin == ICMA_CONDITION_OFFSET)
        return code_of_offset(d->generator, task->offset, NULL, code, error);
    return icma_decoder_sample(d, noise, task->condition, task->origin == ICMA_CONDITION_LEARNED, code, error);
}

icma_status icma_decoder_code(icma_decoder *d, const icma_checkpoints *task, const icma_checkpoint *checkpoint, float *code, icma_error *error) {
    const icma_generator *g = d->generator;
    bool stored = icma_has_coefficients(g, checkpoint);
    if (task->origin == ICMA_CONDITION_OFFSET)
        return code_of_offset(g, task->offset, stored ? checkpoint->correction : NULL, code, error);
    float *z, *a = make_inputs(g, task->condition, task->origin == ICMA_CONDITION_LEARNED, &z);
    if (!a)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a code");
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
    size_t total = (size_t)icma_generator_modelled_weights(d->generator, d->signature);
    if (!status)
        ops->multiply(ops->device, icma_matrix_of(d->rms, 1, total), (icma_matrix){d->output.tensor, d->output.offset, 1, total, total});
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

/* Rows of a tensor whose chunk is loaded, and the coefficients and steps that go with them. */
static void find_rows(const icma_decoder *d, size_t t, icma_matrix *head, icma_matrix *q, icma_matrix *steps) {
    size_t k = rows_of(d, t), count = (size_t)d->signature->tensors[t].count, first = icma_generator_first(d->generator, d->generator->treatment[t]);
    const chunk_state *chunk = &d->states[d->places[t].chunk];
    *head = (icma_matrix){chunk->tensor, chunk->first + d->places[t].first, k, count, count};
    *q = icma_matrix_block(icma_matrix_of(d->q, 1, d->generator->total), 0, first, 1, k);
    *steps = icma_matrix_block(icma_matrix_of(d->steps, 1, d->generator->total), 0, first, 1, k);
}

static icma_status predict_rows(icma_decoder *d, size_t t, float *values, icma_error *error) {
    const icma_ops *ops = d->ops;
    size_t count = (size_t)d->signature->tensors[t].count, chunk = d->places[t].chunk;
    icma_matrix head, q, steps;
    icma_status status = load_chunks(d, &chunk, 1, error);
    if (!status && !d->y)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, widest(d), &d->y, error);
    if (status)
        return status;
    find_rows(d, t, &head, &q, &steps);
    ops->basis(ops->device, q, steps, head, d->generator->scale[t], icma_matrix_of(d->y, 1, count));
    return ops->download(ops->device, d->y, 0, values, count, error);
}

icma_status icma_decoder_predict(icma_decoder *d, const float *code, size_t tensor, float *values, icma_error *error) {
    size_t count = (size_t)d->signature->tensors[tensor].count;
    icma_status status = take_code(d, code, error);
    if (status)
        return status;
    if (d->generator->kind == ICMA_GENERATOR_CONV)
        return d->ops->download(d->ops->device, d->output.tensor, d->output.offset + d->places[tensor].first, values, count, error);
    if (rows_of(d, tensor))
        return predict_rows(d, tensor, values, error);
    for (size_t l = 0; l < count; l++)
        values[l] = 0;
    return ICMA_OK;
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

icma_status icma_decoder_rows(icma_decoder *d, size_t tensor, size_t first, size_t columns, float *rows, icma_error *error) {
    const icma_ops *ops = d->ops;
    size_t k = rows_of(d, tensor), chunk = d->places[tensor].chunk, total = d->generator->total;
    icma_matrix head, q, steps;
    float *ones = icma_alloc_array(total, sizeof *ones);
    icma_status status = ones ? load_chunks(d, &chunk, 1, error) : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for rows of the basis");
    for (size_t j = 0; ones && j < total; j++)
        ones[j] = 1;
    if (!status && !d->y)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, widest(d), &d->y, error);
    if (!status)
        status = ops->upload(ops->device, d->q, 0, ones, total, error);
    icma_free(ones);
    if (status)
        return status;
    find_rows(d, tensor, &head, &q, &steps);
    for (size_t j = 0; !status && j < k; j++) {
        ops->basis(ops->device, icma_matrix_block(q, 0, j, 1, 1), icma_matrix_block(steps, 0, j, 1, 1), icma_matrix_block(head, j, first, 1, columns), 1, icma_matrix_of(d->y, 1, columns));
        status = ops->download(ops->device, d->y, 0, rows + j * columns, columns, error);
    }
    return status;
}

/* One decoding of all that is wanted. */
typedef struct job {
    const icma_residual *residual; /* NULL: none */
    bool *wanted;                  /* one a tensor; owned */
    size_t *chunks;                /* room for all; owned */
    icma_assembly *list;           /* room for all; owned */
    icma_tensor *out;
    uint8_t *host;
    size_t base; /* where in the adapter's data `out` and `host` start */
} job;

static icma_status make_job(const icma_decoder *d, const uint32_t *exceptions, size_t exception_count, job *j, icma_error *error) {
    size_t tensors = d->signature->tensor_count;
    j->wanted = icma_alloc_array(tensors + 1, sizeof *j->wanted);
    j->chunks = icma_alloc_array(d->chunk_count + 1, sizeof *j->chunks);
    j->list = icma_alloc_array(tensors + 1, sizeof *j->list);
    if (!j->wanted || !j->chunks || !j->list)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory to decode %zu tensors", tensors);
    for (size_t t = 0; t < tensors; t++)
        j->wanted[t] = icma_generator_is_modelled(d->generator, t);
    for (size_t e = 0; e < exception_count; e++)
        j->wanted[exceptions[e]] = false;
    return ICMA_OK;
}

static void free_job(job *j) {
    icma_free(j->wanted);
    icma_free(j->chunks);
    icma_free(j->list);
}

/* A residual's integers to the device. */
static icma_status take_residual(icma_decoder *d, const icma_residual *r, icma_error *error) {
    const icma_ops *ops = d->ops;
    if (!r || r->total == 0)
        return ICMA_OK;
    if (d->integer_room < r->total) {
        ops->release(ops->device, d->integers);
        d->integer_room = 0;
        icma_status status = ops->alloc(ops->device, ICMA_ELEMENT_I16, r->total, &d->integers, error);
        if (status)
            return status;
        d->integer_room = r->total;
    }
    if (r->integers)
        return ops->upload(ops->device, d->integers, 0, r->integers, r->total, error);
    const icma_coded coded = icma_residual_coded(r);
    return ops->decode_integers(ops->device, &coded, 1, d->integers, 0, error);
}

static bool needs_chunk(const icma_decoder *d, const job *j, size_t c) {
    const icma_section *chunk = &d->chunks[c];
    for (size_t t = chunk->first; t < (size_t)chunk->first + chunk->count; t++)
        if (j->wanted[t] && rows_of(d, t))
            return true;
    return false;
}

/* Loads what is needed of chunks first .. as far as that fits the budget; returns where it ends in *end. */
static icma_status load_some(icma_decoder *d, job *j, size_t first, size_t *end, icma_error *error) {
    uint64_t bytes = 0;
    size_t count = 0, c = first;
    for (; c < d->chunk_count; c++) {
        if (!needs_chunk(d, j, c))
            continue;
        bytes += integers_of(d, c) * sizeof(int16_t);
        if (count && bytes > head_budget)
            break;
        j->chunks[count++] = c;
    }
    *end = c;
    return load_chunks(d, j->chunks, count, error);
}

static icma_assembly assembly_of(const icma_decoder *d, size_t t) {
    const icma_tensor_info *info = &d->signature->tensors[t];
    size_t count = (size_t)info->count;
    icma_assembly a = {.count = count, .scale = d->generator->scale[t], .dtype = info->dtype, .place = (size_t)info->begin};
    if (d->generator->kind == ICMA_GENERATOR_CONV)
        a.model = (icma_matrix){d->output.tensor, d->output.offset + d->places[t].first, 1, count, count};
    else if (rows_of(d, t))
        find_rows(d, t, &a.head, &a.q, &a.steps);
    return a;
}

/* Puts the wanted ones of tensors first .. end - 1 together. */
static icma_status assemble_some(icma_decoder *d, job *j, size_t first, size_t end, icma_error *error) {
    const icma_residual *r = j->residual;
    size_t count = 0, bad = SIZE_MAX, part = 0;
    for (size_t t = first; t < end; t++) {
        if (!j->wanted[t])
            continue;
        icma_assembly *a = &j->list[count++];
        *a = assembly_of(d, t);
        a->place -= j->base;
        while (r && part < r->count && r->list[part].tensor < t)
            part++;
        if (r && part < r->count && r->list[part].tensor == t) {
            a->integers = d->integers;
            a->first = r->list[part].first;
            a->step = icma_residual_step(d->generator->scale[t], r->list[part].code);
        }
    }
    icma_status status = count ? d->ops->assemble(d->ops->device, j->list, count, j->out, j->host, &bad, error) : ICMA_OK;
    for (size_t t = first, i = 0; !status && bad != SIZE_MAX && t < end; t++)
        if (j->wanted[t] && i++ == bad)
            status = icma_fail(error, ICMA_E_CORRUPT, NULL, "a decoded weight of %s is not finite", d->signature->tensors[t].name);
    return status;
}

/* All at once, unless the head is more than the budget holds. */
static icma_status run_job(icma_decoder *d, const float *code, job *j, icma_error *error) {
    icma_status status = take_code(d, code, error);
    if (!status)
        status = take_residual(d, j->residual, error);
    for (size_t chunk = 0, tensor = 0; !status && tensor < d->signature->tensor_count;) {
        status = load_some(d, j, chunk, &chunk, error);
        size_t end = chunk < d->chunk_count ? d->chunks[chunk].first : d->signature->tensor_count;
        if (!status)
            status = assemble_some(d, j, tensor, end, error);
        tensor = end;
    }
    return status;
}

static icma_status decode_tensors(icma_decoder *d, const float *code, const icma_residual *residual, const uint32_t *exceptions, size_t exception_count, icma_tensor *out,
                                  uint8_t *host, icma_error *error) {
    job j = {.residual = residual, .out = out, .host = host};
    icma_status status = make_job(d, exceptions, exception_count, &j, error);
    if (!status)
        status = run_job(d, code, &j, error);
    free_job(&j);
    return status;
}

icma_status icma_decoder_tensors(icma_decoder *d, const float *code, const icma_residual *residual, const uint32_t *exceptions, size_t exception_count,
                                 uint8_t *data, icma_error *error) {
    return decode_tensors(d, code, residual, exceptions, exception_count, NULL, data, error);
}

icma_status icma_decoder_tensor(icma_decoder *d, const float *code, const icma_residual *residual, size_t tensor, uint8_t *data, icma_error *error) {
    job j = {.residual = residual, .host = data, .base = (size_t)d->signature->tensors[tensor].begin};
    icma_status status = make_job(d, NULL, 0, &j, error);
    for (size_t t = 0; !status && t < d->signature->tensor_count; t++)
        j.wanted[t] = t == tensor;
    if (!status)
        status = run_job(d, code, &j, error);
    free_job(&j);
    return status;
}

icma_status icma_decoder_tensors_to(icma_decoder *d, const float *code, const icma_residual *residual, const uint32_t *exceptions, size_t exception_count,
                                    icma_tensor *out, icma_error *error) {
    return decode_tensors(d, code, residual, exceptions, exception_count, out, NULL, error);
}

icma_status icma_decoder_model(icma_decoder *d, const icma_checkpoints *task, const icma_checkpoint *checkpoint, uint8_t *data, icma_error *error) {
    float *code = icma_alloc_array(icma_generator_code_size(d->generator) + 1, sizeof *code);
    icma_status status = code ? icma_decoder_code(d, task, checkpoint, code, error) : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a code");
    if (!status)
        status = icma_decoder_tensors(d, code, NULL, NULL, 0, data, error);
    icma_free(code);
    return status;
}
