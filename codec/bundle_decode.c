/* SPDX-License-Identifier: Apache-2.0 */
/* Decoding checkpoints of an archive: the third part of icma.h. */
#include "bundle_inside.h"
#include "compress.h"
#include "memory.h"
#include "rng.h"
#include "verbatim.h"

#include <math.h>
#include <string.h>

void icma_decoded_free(icma_decoded *d) {
    for (size_t i = 0; i < d->file_count; i++) {
        icma_free(d->files[i].name);
        icma_free(d->files[i].data);
    }
    icma_free(d->files);
    icma_free(d->data);
    memset(d, 0, sizeof *d);
}

icma_status icma_part_header(icma_bundle *b, const icma_part *p, const icma_checkpoint *c, const uint8_t **header, size_t *size, icma_error *error) {
    const icma_safetensors *signature = &b->groups[p->group].signature;
    *header = signature->header;
    *size = signature->header_size;
    if (c->header == 0)
        return ICMA_OK;
    const struct icma_text *text = icma_part_text(b, p, c->header - 1);
    if (!text)
        return icma_bundle_corrupt(b, error, "a checkpoint's header is missing");
    *header = text->data;
    *size = text->size;
    icma_safetensors own;
    icma_status status = icma_safetensors_parse(*header, *size, signature->data_size, &own, error);
    if (status)
        return status;
    if (!icma_safetensors_same_signature(signature, &own))
        status = icma_bundle_corrupt(b, error, "a checkpoint's header is not its group's");
    icma_safetensors_free(&own);
    return status;
}

/* By the adapter itself, or by a side file before the last (at most ICMA_MAX_SIDE_FILES). */
static bool is_taken(const icma_decoded *decoded, const char *name) {
    bool taken = strcmp(name, "adapter_model.safetensors") == 0;
    for (size_t i = 0; !taken && i + 1 < decoded->file_count; i++)
        taken = strcmp(name, decoded->files[i].name) == 0;
    return taken;
}

static icma_status decode_files(icma_bundle *b, const icma_part *p, const icma_checkpoint *c, icma_decoded *out, icma_error *error) {
    if (c->file_count && !(out->files = icma_alloc_zeroed(c->file_count, sizeof *out->files)))
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for side files");
    for (size_t f = 0; f < c->file_count; f++) {
        const struct icma_text *name = icma_part_text(b, p, c->files[2 * f]), *content = icma_part_text(b, p, c->files[2 * f + 1]);
        if (!name || !content || (name->size && memchr(name->data, 0, name->size)))
            return icma_bundle_corrupt(b, error, "a side file is missing");
        icma_decoded_file *file = &out->files[out->file_count++];
        file->name = icma_copy_text((const char *)name->data, name->size);
        file->size = content->size;
        file->data = file->size ? icma_alloc(file->size) : NULL;
        if (!file->name || (file->size && !file->data))
            return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for side files");
        if (file->size)
            memcpy(file->data, content->data, file->size);
        if (!icma_path_segment_is_safe(file->name))
            return icma_bundle_corrupt(b, error, "a side file's name is not safe");
        if (is_taken(out, file->name))
            return icma_bundle_corrupt(b, error, "two files of a checkpoint have one name");
    }
    return ICMA_OK;
}

/* Before anything is allocated for a checkpoint. */
static icma_status check_cost(const icma_bundle *b, const icma_part *p, const icma_checkpoint *c, icma_error *error) {
    const icma_group_state *g = &b->groups[p->group];
    uint64_t work = icma_decode_work(&g->signature, &g->generator), size = g->signature.data_size, side = 0;
    uint64_t header = c->header && icma_part_text(b, p, c->header - 1) ? icma_part_text(b, p, c->header - 1)->size : g->signature.header_size;
    if (size > b->limits.max_output || header + 8 > b->limits.max_output - size || size > SIZE_MAX / 2)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "an adapter of %llu bytes; raise --max-output if you trust the file", (unsigned long long)size);
    /* Many names may lead to one text. */
    for (size_t f = 0; f < c->file_count; f++) {
        const struct icma_text *name = icma_part_text(b, p, c->files[2 * f]), *content = icma_part_text(b, p, c->files[2 * f + 1]);
        side += (name ? name->size : 0) + (content ? content->size : 0);
    }
    if (side > b->limits.max_output)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "side files of %llu bytes; raise --max-output if you trust the file", (unsigned long long)side);
    if (work > b->limits.max_work)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "decoding takes %llu multiply-adds; raise --max-work if you trust the file", (unsigned long long)work);
    return ICMA_OK;
}

icma_status icma_part_open(icma_bundle *b, uint32_t task_index, icma_part *p, size_t index, float **code, icma_error *error) {
    const icma_generator *g = &b->groups[p->group].generator;
    *code = NULL;
    icma_status status = icma_part_load_texts(b, task_index, p, error);
    if (!status)
        status = check_cost(b, p, &p->table.list[index], error);
    if (!status)
        status = icma_bundle_open_decoder(b, p->group, error);
    if (!status && icma_generator_predicts(g) && !(*code = icma_alloc_array(icma_generator_code_size(g) + 1, sizeof **code)))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for coefficients");
    return status;
}

/* The data of a checkpoint below tier lossless: modelled tensors from the coefficients q (NULL without a basis) and, if asked for, the residual. */
static icma_status fill_modelled(icma_bundle *b, uint32_t task_index, icma_part *p, size_t index, const float *q, bool with_residual, uint8_t *data,
                                 icma_error *error) {
    const icma_checkpoint *c = &p->table.list[index];
    icma_residual residual = {0};
    icma_status status = with_residual ? icma_part_load_residual(b, task_index, p, index, q, &residual, error) : ICMA_OK;
    if (!status)
        status = icma_decoder_tensors(b->groups[p->group].decoder, q, &residual, c->exceptions, c->exception_count, data, error);
    icma_residual_free(&residual);
    return status ? status : icma_part_read_verbatim(b, task_index, p, index, data, error);
}

/* Header and data. `stored`: as it was packed, not only what its generator makes of it. */
static icma_status assemble(icma_bundle *b, uint32_t task_index, icma_part *p, size_t index, const float *q, bool stored, icma_decoded *out,
                            icma_error *error) {
    icma_group_state *g = &b->groups[p->group];
    const icma_checkpoint *c = &p->table.list[index];
    const uint8_t *header, *original;
    size_t header_size;
    icma_status status = icma_part_header(b, p, c, &header, &header_size, error);
    out->size = 8 + header_size + (size_t)g->signature.data_size;
    if (!status && !(out->data = icma_alloc_zeroed(out->size, 1)))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for an adapter of %zu bytes", out->size);
    if (status)
        return status;
    icma_store_u64(out->data, header_size);
    memcpy(out->data + 8, header, header_size);
    uint8_t *data = out->data + 8 + header_size;
    /* What a sample of a lossless checkpoint has no model for still comes from the file. */
    if (c->tier == ICMA_TIER_LOSSLESS) {
        status = icma_chain_decode(b, task_index, p, index, &original, error);
        if (!status && g->signature.data_size)
            memcpy(data, original, (size_t)g->signature.data_size);
    }
    if (!status && (c->tier != ICMA_TIER_LOSSLESS || !stored))
        status = fill_modelled(b, task_index, p, index, q, stored, data, error);
    return status;
}

static icma_status stored_coefficients(icma_group_state *g, const icma_part *p, const icma_checkpoint *c, const void *context, float *q, icma_error *error) {
    (void)context;
    return icma_decoder_code(g->decoder, &p->table, c, q, error);
}

void icma_bundle_draw(const icma_generator *g, uint64_t seed, float *noise) {
    icma_rng rng = icma_rng_seed(seed);
    for (size_t j = 0; j < g->latent; j++)
        noise[j] = icma_rng_normal(&rng);
}

/* spec 4.8: z from the seed alone, one normal variate a dimension, in order. */
static icma_status sampled_coefficients(icma_group_state *g, const icma_part *p, const icma_checkpoint *c, const void *context, float *q, icma_error *error) {
    (void)c;
    float *z = icma_alloc_array(g->generator.latent + 1, sizeof *z);
    if (!z)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a latent");
    icma_bundle_draw(&g->generator, *(const uint64_t *)context, z);
    icma_status status = icma_decoder_sample_task(g->decoder, z, &p->table, q, error);
    icma_free(z);
    return status;
}

icma_status icma_bundle_decode_place(icma_bundle *b, size_t task_index, icma_place at, icma_code_source source, const void *context, bool stored, icma_decoded *out,
                                     icma_error *error) {
    icma_part *p = &b->tasks[task_index].parts[at.part];
    icma_group_state *g = &b->groups[p->group];
    const icma_checkpoint *c = &p->table.list[at.index];
    float *q;
    icma_status status = icma_part_open(b, (uint32_t)task_index, p, at.index, &q, error);
    if (!status && q)
        status = source(g, p, c, context, q, error);
    if (!status)
        status = assemble(b, (uint32_t)task_index, p, at.index, q, stored, out, error);
    if (!status)
        status = decode_files(b, p, c, out, error);
    icma_free(q);
    return status;
}

static icma_status finish_decode(icma_bundle *b, icma_status status, icma_decoded *out, icma_error *error) {
    if (status) {
        icma_error_set_file(error, icma_container_path(b->container));
        icma_decoded_free(out);
    }
    return status;
}

void icma_bundle_compare_checksums(icma_bundle *b, bool compare) {
    b->unchecked = !compare;
}

icma_status icma_bundle_find_checkpoint(icma_bundle *b, size_t task_index, size_t checkpoint, icma_place *out, icma_error *error) {
    icma_status status = icma_bundle_load_task(b, (uint32_t)task_index, error);
    const icma_task_state *t = &b->tasks[task_index];
    if (!status && checkpoint >= t->count)
        return icma_fail(error, ICMA_E_NOT_FOUND, NULL, "no checkpoint %zu", checkpoint);
    if (!status)
        *out = t->places[checkpoint];
    return status;
}

icma_status icma_bundle_check_hash(const icma_bundle *b, size_t task_index, size_t checkpoint, const uint8_t *file, size_t size, icma_error *error) {
    if (b->unchecked || icma_hash(file, size) == b->tasks[task_index].infos[checkpoint].hash)
        return ICMA_OK;
    return icma_fail(error, ICMA_E_CORRUPT, NULL, "a decoded checkpoint of task %s is not what was packed (checksum)", icma_bundle_task_name(b, task_index));
}

icma_status icma_bundle_header(icma_bundle *b, size_t task_index, size_t checkpoint, icma_decoded *out, icma_error *error) {
    icma_place place = {0};
    const uint8_t *header;
    size_t size;
    memset(out, 0, sizeof *out);
    icma_status status = icma_bundle_find_checkpoint(b, task_index, checkpoint, &place, error);
    if (status)
        return finish_decode(b, status, out, error);
    icma_part *p = &b->tasks[task_index].parts[place.part];
    status = icma_part_load_texts(b, (uint32_t)task_index, p, error);
    if (!status)
        status = check_cost(b, p, &p->table.list[place.index], error);
    if (!status)
        status = icma_part_header(b, p, &p->table.list[place.index], &header, &size, error);
    if (!status && !(out->data = icma_alloc(8 + size)))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a header");
    if (!status) {
        out->size = 8 + size;
        icma_store_u64(out->data, size);
        memcpy(out->data + 8, header, size);
        status = decode_files(b, p, &p->table.list[place.index], out, error);
    }
    return finish_decode(b, status, out, error);
}

icma_status icma_bundle_decode(icma_bundle *b, size_t task_index, size_t checkpoint, icma_decoded *out, icma_error *error) {
    icma_place place;
    memset(out, 0, sizeof *out);
    icma_status status = icma_bundle_find_checkpoint(b, task_index, checkpoint, &place, error);
    if (!status)
        status = icma_bundle_decode_place(b, task_index, place, stored_coefficients, NULL, true, out, error);
    if (!status)
        status = icma_bundle_check_hash(b, task_index, checkpoint, out->data, out->size, error);
    return finish_decode(b, status, out, error);
}

icma_status icma_bundle_sample(icma_bundle *b, size_t task_index, uint64_t seed, icma_decoded *out, icma_error *error) {
    memset(out, 0, sizeof *out);
    icma_status status = icma_bundle_load_task(b, (uint32_t)task_index, error);
    const icma_task_state *t = &b->tasks[task_index];
    if (!status && b->groups[t->infos[t->count - 1].group].generator.kind == ICMA_GENERATOR_NONE)
        status = icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "task %s has no generator to sample from; pack it with --generator basis, or unpack what is there without --sample", icma_bundle_task_name(b, task_index));
    if (!status)
        status = icma_bundle_decode_place(b, task_index, t->places[t->count - 1], sampled_coefficients, &seed, false, out, error);
    return finish_decode(b, status, out, error);
}
