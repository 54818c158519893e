/* SPDX-License-Identifier: Apache-2.0 */
/* Encoding, measuring and writing one task's checkpoints of one group. */
#include "pack_part.h"

#include "bound.h"
#include "compress.h"
#include "memory.h"
#include "progress.h"
#include "verbatim.h"

#include <math.h>
#include <string.h>

enum { LARGEST_CORRECTION = 1 << 23 };

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a task");
}

/* --- one checkpoint ---------------------------------------------------------------------------------------------- */

/* Tensors of this source that stay verbatim although the group models them, from the group's exceptions; `all`: every one of them. */
static void mark_exceptions(icma_part_writer *w, size_t source, bool all) {
    const icma_generator *g = &w->g->generator;
    for (size_t t = 0; t < g->tensor_count; t++)
        w->verbatim[t] = icma_generator_is_modelled(g, t) && (all || icma_group_is_exception(w->g->group, source, t));
}

static icma_status list_exceptions(icma_part_writer *w, icma_checkpoint *c, icma_error *error) {
    size_t count = 0;
    for (size_t t = 0; t < w->g->generator.tensor_count; t++)
        count += w->verbatim[t];
    icma_free(c->exceptions);
    c->exception_count = 0;
    c->exceptions = count ? icma_alloc_array(count, sizeof *c->exceptions) : NULL;
    if (count && !c->exceptions)
        return no_memory(error);
    for (size_t t = 0; t < w->g->generator.tensor_count; t++)
        if (w->verbatim[t])
            c->exceptions[c->exception_count++] = (uint32_t)t;
    return ICMA_OK;
}

/* The encoder of an old group is not in the archive: a task that goes on starts from where it was, others from 0. */
static void take_last_latent(const icma_part_writer *w, icma_checkpoint *c) {
    for (size_t i = w->past; i-- > 0;)
        if (w->table.list[i].latent) {
            memcpy(c->latent, w->table.list[i].latent, w->g->generator.latent * sizeof *c->latent);
            return;
        }
}

/* z from training; corrections: what the trunk, evaluated exactly as a reader will, leaves of the coordinates. False if one is out of range. */
static icma_status encode_coefficients(icma_part_writer *w, size_t source, icma_checkpoint *c, bool *fits, icma_error *error) {
    icma_pack_group *g = w->g;
    size_t latent = g->generator.latent, total = g->generator.total;
    *fits = true;
    c->latent = icma_alloc_zeroed(latent + 1, sizeof *c->latent);
    c->correction = icma_alloc_zeroed(total + 1, sizeof *c->correction);
    if (!c->latent || !c->correction)
        return no_memory(error);
    if (g->training.latent)
        memcpy(c->latent, g->training.latent + source * latent, latent * sizeof *c->latent);
    else
        take_last_latent(w, c);
    icma_status status = icma_decoder_code(g->decoder, &w->table, c, w->q, error); /* corrections are still 0: the trunk alone */
    for (size_t k = 0; !status && k < total; k++) {
        double integer = round((g->basis.coordinates[source * total + k] - w->q[k]) / g->generator.correction_step[k]);
        if (!(fabs(integer) <= LARGEST_CORRECTION))
            *fits = false;
        else
            c->correction[k] = (int32_t)integer;
    }
    return status;
}

icma_status icma_pack_encode_checkpoint(icma_part_writer *w, size_t i, icma_error *error) {
    icma_checkpoint *c = &w->table.list[i];
    const icma_input_checkpoint *input = w->sources[i]->input;
    bool fits = true;
    c->has_step = input->has_step;
    c->step = input->step;
    c->tier = w->packer->options->tier;
    if (!w->any_modelled && c->tier != ICMA_TIER_LOSSLESS)
        c->tier = ICMA_TIER_VERBATIM;
    if (c->tier == ICMA_TIER_BOUNDED)
        c->bound = w->packer->options->bound;
    icma_status status = icma_pack_take_side_files(w, input, c, error);
    if (!status && icma_has_coefficients(&w->g->generator, c))
        status = encode_coefficients(w, w->source_index[i], c, &fits, error);
    mark_exceptions(w, w->source_index[i], !fits);
    return status ? status : list_exceptions(w, c, error);
}

/* --- residuals --------------------------------------------------------------------------------------------------- */

static icma_status predict(icma_part_writer *w, const icma_checkpoint *c, float *values, icma_error *error) {
    icma_pack_group *g = w->g;
    const icma_safetensors *signature = &g->group->signature;
    icma_status status = ICMA_OK;
    if (icma_generator_predicts(&g->generator))
        status = icma_decoder_code(g->decoder, &w->table, c, w->q, error);
    for (size_t t = 0; !status && t < signature->tensor_count; t++)
        if (icma_generator_is_modelled(&g->generator, t)) {
            status = icma_decoder_predict(g->decoder, w->q, t, values, error);
            values += signature->tensors[t].count;
        }
    if (!status && w->classes)
        status = icma_decoder_classes(g->decoder, w->q, w->classes, error);
    return status;
}

/* Codes checkpoint i to its bound; tensors that cannot hold it join its exceptions. */
static icma_status bound_checkpoint(icma_part_writer *w, size_t i, size_t size, icma_error *error) {
    icma_checkpoint *c = &w->table.list[i];
    icma_pack_group *g = w->g;
    const icma_safetensors *signature = &g->group->signature;
    float *prediction = icma_alloc_array((size_t)icma_generator_modelled_weights(&g->generator, signature) + 1, sizeof *prediction);
    uint8_t *decoded = icma_alloc(size);
    icma_bounded b = {.signature = signature, .generator = &g->generator, .pairs = &g->group->pairs, .bound = c->bound, .original = w->data[i],
                      .prediction = prediction, .classes = w->classes, .verbatim = w->verbatim, .decoded = decoded};
    icma_status status = prediction && decoded ? predict(w, c, prediction, error) : no_memory(error);
    if (!status) {
        memcpy(decoded, w->data[i], (size_t)signature->data_size);
        status = icma_bound_encode(&b, &w->residual, error);
    }
    size_t before = c->exception_count;
    if (!status)
        status = list_exceptions(w, c, error);
    w->packer->missed_tensors += c->exception_count > before ? c->exception_count - before : 0;
    icma_free(prediction);
    icma_free(decoded);
    return status;
}

/* Nothing of the model is good enough: all of the checkpoint's tensors are kept as they are. */
static icma_status keep_all(icma_part_writer *w, size_t i, icma_error *error) {
    icma_residual_free(&w->residual);
    w->packer->missed_checkpoints++;
    mark_exceptions(w, w->source_index[i], true);
    return list_exceptions(w, &w->table.list[i], error);
}

/* --- measuring --------------------------------------------------------------------------------------------------- */

static const char *find_config(const icma_part_writer *w, const icma_checkpoint *c, size_t *size) {
    for (size_t f = 0; f < c->file_count; f++) {
        const icma_buffer *name = icma_pack_text(w, c->files[2 * f]), *content = icma_pack_text(w, c->files[2 * f + 1]);
        if (name->size == 19 && memcmp(name->data, "adapter_config.json", 19) == 0) {
            *size = content->size;
            return (const char *)content->data;
        }
    }
    *size = 0;
    return NULL;
}

static void add_measures(icma_part_writer *w, icma_checkpoint *c, const icma_fidelity *f) {
    icma_pack_group *g = w->g;
    c->relative_error = icma_round_error_up(icma_distance_relative(&f->total));
    c->dw_error_mean = icma_round_error_up(f->dw_error_mean);
    c->dw_error_max = icma_round_error_up(f->dw_error_max);
    for (size_t t = 0; t < f->tensor_count; t++) {
        icma_distance_add(&g->measures.tensors[t], &f->tensors[t]);
        double scale = icma_generator_predicts(&g->generator) ? g->generator.scale[t] : 0;
        if (scale > 0 && isfinite(f->tensors[t].error))
            g->measures.standard_error += f->tensors[t].error / (scale * scale);
    }
    for (size_t p = 0; p < f->pair_count; p++)
        icma_distance_add(&g->measures.pairs[p], &f->pairs[p]);
    g->measures.checkpoints++;
    icma_distance_add(&w->total, &f->total);
    w->dw_sum += f->dw_error_mean;
    w->dw_max = fmax(w->dw_max, f->dw_error_max);
}

/* Decodes checkpoint i into a copy of its original file (verbatim tensors are there already), compares and hashes it. *good is false, and nothing
 * is noted, where a modelled weight left its dtype's range (an F16 near its limit), or the bound is missed. */
static icma_status measure_checkpoint(icma_part_writer *w, size_t i, const uint8_t *original, size_t size, bool *good, icma_error *error) {
    icma_pack_group *g = w->g;
    icma_checkpoint *c = &w->table.list[i];
    size_t header = (size_t)w->sources[i]->data_offset, config_size;
    const char *config = find_config(w, c, &config_size);
    uint8_t *copy = icma_alloc(size);
    icma_fidelity fidelity = {0};
    if (!copy)
        return no_memory(error);
    memcpy(copy, original, size);
    icma_status status = ICMA_OK;
    if (icma_generator_predicts(&g->generator))
        status = icma_decoder_code(g->decoder, &w->table, c, w->q, error);
    if (!status)
        status = icma_decoder_tensors(g->decoder, w->q, &w->residual, c->exceptions, c->exception_count, copy + header, error);
    if (!status)
        status = icma_fidelity_compare(&g->group->signature, original + header, &g->group->signature, copy + header, &g->group->pairs, config, config_size,
                                       false, &fidelity, error);
    *good = status || isfinite(fidelity.total.error);
    if (!status && c->tier == ICMA_TIER_BOUNDED)
        *good = icma_bound_holds(c->bound, &g->group->pairs, fidelity.tensors, fidelity.tensor_count, fidelity.pairs);
    if (!status && *good) {
        add_measures(w, c, &fidelity);
        status = icma_pack_hash(w, i, copy, size, &c->hash, error);
    }
    icma_fidelity_free(&fidelity);
    icma_free(copy);
    return status;
}

/* --- verbatim sections ------------------------------------------------------------------------------------------- */

/* spec 4.11: the sizes of the blocks of all checkpoints of the tier, then the blocks. */
static icma_status flush_blocks(icma_part_writer *w, size_t next, uint16_t kind, icma_error *error) {
    icma_buffer payload = {0};
    size_t first = w->section_first, total = 0;
    for (size_t i = first; i < next; i++) {
        total += w->blocks[i].size;
        if (w->table.list[i].tier == ICMA_TIER_BOUNDED || w->table.list[i].tier == ICMA_TIER_LOSSLESS)
            icma_write_varint(&payload, w->blocks[i].size);
    }
    for (size_t i = first; i < next; i++) {
        icma_write_bytes(&payload, w->blocks[i].data, w->blocks[i].size);
        icma_buffer_free(&w->blocks[i]);
    }
    icma_section section = {.kind = kind, .group = w->g->index, .task = w->owner, .first = (uint32_t)first, .count = (uint32_t)(next - first)};
    icma_status status = icma_buffer_status(&payload, error);
    if (!status && total)
        status = icma_container_add(w->packer->writer, &section, payload.data, payload.size, 0, error);
    icma_buffer_free(&payload);
    return status;
}

icma_status icma_pack_flush(icma_part_writer *w, size_t next, uint16_t kind, icma_error *error) {
    const icma_pack_group *g = w->g;
    size_t first = w->section_first, count = next - first;
    icma_buffer payload = {0};
    icma_status status = icma_verbatim_write(&g->group->signature, &g->generator, w->table.list + first, count, w->data + first, &payload, error);
    icma_section section = {.kind = ICMA_SECTION_VERBATIM, .group = g->index, .task = w->owner, .first = (uint32_t)first, .count = (uint32_t)count};
    if (!status && payload.size)
        status = icma_container_add(w->packer->writer, &section, payload.data, payload.size, icma_pack_level(payload.size), error);
    icma_buffer_free(&payload);
    w->held = 0;
    return status ? status : flush_blocks(w, next, kind, error);
}

icma_status icma_pack_read_original(icma_part_writer *w, size_t i, size_t *size, icma_error *error) {
    icma_status status = icma_source_read(w->sources[i], &w->originals[i], size, error);
    if (status)
        return status;
    w->data[i] = w->originals[i] + w->sources[i]->data_offset;
    w->held += *size;
    w->packer->result->original_files++;
    w->packer->result->original_bytes += *size;
    for (size_t t = 0; t < w->g->group->signature.tensor_count; t++)
        w->packer->result->original_parameters += w->g->group->signature.tensors[t].count;
    return icma_pack_take_header(w, i, w->originals[i], error);
}

/* Writes what was gathered up to `next`, and lets go of the originals. */
static icma_status flush_part(icma_part_writer *w, size_t next, icma_error *error) {
    icma_status status = icma_pack_flush(w, next, ICMA_SECTION_RESIDUAL, error);
    for (size_t i = w->section_first; i < next; i++) {
        icma_free(w->originals[i]);
        w->originals[i] = NULL;
    }
    w->section_first = next;
    return status;
}

static icma_status process_checkpoint(icma_part_writer *w, size_t i, icma_error *error) {
    size_t size;
    icma_status status = icma_pack_encode_checkpoint(w, i, error);
    if (!status)
        status = icma_pack_read_original(w, i, &size, error);
    /* In a series the generator alone is mostly good enough; without one there is nothing to measure before the residual. */
    bool good = w->table.list[i].tier != ICMA_TIER_BOUNDED || icma_generator_predicts(&w->g->generator);
    if (!status && good)
        status = measure_checkpoint(w, i, w->originals[i], size, &good, error);
    if (!status && !good && w->table.list[i].tier == ICMA_TIER_BOUNDED) {
        status = bound_checkpoint(w, i, size, error);
        if (!status)
            status = measure_checkpoint(w, i, w->originals[i], size, &good, error);
    }
    if (!status && !good)
        status = keep_all(w, i, error);
    if (!status && !good)
        status = measure_checkpoint(w, i, w->originals[i], size, &good, error);
    if (!status && !good)
        status = icma_fail(error, ICMA_E_BOUND, NULL, "a checkpoint does not hold its bound even verbatim");
    if (!status)
        status = icma_residual_write(&w->residual, &w->g->group->signature, &w->g->generator, w->classes, &w->blocks[i], error);
    icma_residual_free(&w->residual);
    if (!status && (w->held >= ICMA_PACK_STREAM_BYTES || i + 1 == w->table.count))
        status = flush_part(w, i + 1, error);
    return status;
}

icma_status icma_pack_next_checkpoint(icma_packer *p, uint32_t task, icma_error *error) {
    icma_tell(&p->options->progress, "encode", (double)p->encoded++, (double)p->dataset.files, p->inputs->tasks[task].name);
    return icma_check_cancelled(&p->options->progress, error);
}

static icma_status process_checkpoints(icma_part_writer *w, icma_error *error) {
    icma_status status = ICMA_OK;
    for (size_t i = w->past; !status && i < w->table.count; i++) {
        status = icma_pack_next_checkpoint(w->packer, w->task, error);
        if (!status)
            status = process_checkpoint(w, i, error);
    }
    return status;
}

/* --- the part ---------------------------------------------------------------------------------------------------- */

/* A newcomer's offset is its mean code: what the trunk is for the tasks that it has learned. */
static icma_status set_offset(icma_part_writer *w, icma_error *error) {
    const icma_generator *g = &w->g->generator;
    w->table.origin = ICMA_CONDITION_OFFSET;
    if (!(w->table.offset = icma_alloc_array(g->total, sizeof *w->table.offset)))
        return no_memory(error);
    for (size_t k = 0; k < g->total; k++) {
        double mean = 0;
        for (size_t i = 0; i < w->table.count; i++)
            mean += w->g->basis.coordinates[w->source_index[i] * g->total + k] / (double)w->table.count;
        double integer = round(mean / (double)g->correction_step[k]);
        w->table.offset[k] = (int32_t)fmax(-LARGEST_CORRECTION, fmin(LARGEST_CORRECTION, integer));
    }
    return ICMA_OK;
}

/* Where a given condition came from: a text, or a file's name. */
static char *copy_origin(const icma_part_writer *w) {
    const char *path = w->packer->inputs->tasks[w->task].condition_path, *slash = path ? strrchr(path, '/') : NULL;
    const char *text = icma_pack_text_of(w->packer, w->task);
    char origin[256]; /* as long as it may be (spec 4.6) */
    if (!text)
        return icma_copy_string(slash ? slash + 1 : path);
    icma_described_origin(text, origin, sizeof origin);
    return icma_copy_string(origin);
}

static icma_status set_condition(icma_part_writer *w, icma_error *error) {
    const icma_condition *given = &w->packer->conditions[w->task];
    const icma_pack_group *g = w->g;
    const float *values = given->vector;
    size_t size = given->size;
    w->table.origin = values ? ICMA_CONDITION_GIVEN : ICMA_CONDITION_NONE;
    for (size_t s = 0; s < g->training.conditions.count; s++)
        if (g->training.conditions.task[s] == w->task && g->training.conditions.learned[s]) {
            w->table.origin = ICMA_CONDITION_LEARNED;
            values = g->training.conditions.learned[s];
            size = g->generator.coordinates;
        }
    w->table.condition_name = w->table.origin == ICMA_CONDITION_GIVEN ? copy_origin(w) : icma_copy_string("");
    w->table.condition = size ? icma_alloc_array(size, sizeof(float)) : NULL;
    if (!w->table.condition_name || (size && !w->table.condition))
        return no_memory(error);
    if (size)
        memcpy(w->table.condition, values, size * sizeof(float));
    w->table.condition_size = size;
    return w->g->joined && g->generator.kind == ICMA_GENERATOR_BASIS ? set_offset(w, error) : ICMA_OK;
}

static icma_status write_condition(icma_part_writer *w, icma_error *error) {
    icma_buffer payload = {0};
    if (w->table.origin == ICMA_CONDITION_NONE)
        return ICMA_OK;
    icma_condition_write(&w->table, &w->g->generator, &payload);
    icma_section section = {.kind = ICMA_SECTION_CONDITION, .group = w->g->index, .task = w->owner};
    icma_status status = icma_buffer_status(&payload, error);
    if (!status)
        status = icma_container_add(w->packer->writer, &section, payload.data, payload.size, 0, error);
    icma_buffer_free(&payload);
    return status;
}

static icma_status write_table(icma_part_writer *w, icma_error *error) {
    icma_buffer payload = {0};
    icma_checkpoints_write(&w->table, &w->g->generator, &payload);
    icma_section section = {.kind = ICMA_SECTION_TASK, .group = w->g->index, .task = w->owner, .count = (uint32_t)w->table.count};
    icma_status status = icma_buffer_status(&payload, error);
    if (!status)
        status = icma_container_add(w->packer->writer, &section, payload.data, payload.size, ICMA_PACK_SMALL_LEVEL, error);
    icma_buffer_free(&payload);
    return status;
}

/* Adds this part's errors to the task's in the result: parts weigh by their checkpoints. */
static void tell_task(icma_part_writer *w) {
    icma_pack_task *task = &w->packer->result->tasks[w->task];
    double before = (double)task->checkpoints, now = (double)(w->table.count - w->past);
    task->dw_error_mean = (task->dw_error_mean * before + w->dw_sum) / (before + now);
    task->dw_error_max = fmax(task->dw_error_max, w->dw_max);
    double relative = icma_distance_relative(&w->total), cosine = icma_distance_cosine(&w->total);
    task->relative_error = sqrt((task->relative_error * task->relative_error * before + relative * relative * now) / (before + now));
    task->cosine = (task->cosine * before + cosine * now) / (before + now);
    task->checkpoints += w->table.count - w->past;
}

static void free_part(icma_part_writer *w) {
    for (size_t i = 0; w->originals && i < w->table.count; i++)
        icma_free(w->originals[i]);
    icma_text_pool_free(&w->texts);
    for (size_t i = 0; w->blocks && i < w->table.count; i++)
        icma_buffer_free(&w->blocks[i]);
    icma_residual_free(&w->residual);
    icma_free(w->blocks);
    icma_free(w->classes);
    icma_free(w->verbatim);
    icma_free(w->originals);
    icma_free(w->data);
    icma_free(w->sources);
    icma_free(w->source_index);
    icma_free(w->q);
    icma_checkpoints_free(&w->table);
}

/* The table and texts of a task that goes on are the part's now; `added` checkpoints have room in it. */
static icma_status take_past(icma_part_writer *w, size_t added, icma_error *error) {
    w->table = w->g->past;
    w->texts = w->g->past_texts;
    w->g->past = (icma_checkpoints){0};
    w->g->past_texts = (icma_text_pool){0};
    w->past = w->section_first = w->table.count;
    icma_checkpoint *list = icma_resize_array(w->table.list, w->past + added, sizeof *list);
    if (!list)
        return no_memory(error);
    memset(list + w->past, 0, added * sizeof *list);
    w->table.list = list;
    w->table.count += added;
    return ICMA_OK;
}

static icma_status allocate_part(icma_part_writer *w, size_t first, size_t added, icma_error *error) {
    icma_status status = take_past(w, added, error);
    size_t count = w->past + added;
    if (status)
        return status;
    w->sources = icma_alloc_zeroed(count, sizeof *w->sources);
    w->source_index = icma_alloc_zeroed(count, sizeof *w->source_index);
    w->originals = icma_alloc_zeroed(count, sizeof *w->originals);
    w->data = icma_alloc_zeroed(count, sizeof *w->data);
    w->q = icma_alloc_array(icma_generator_code_size(&w->g->generator) + 1, sizeof *w->q);
    w->blocks = icma_alloc_zeroed(count, sizeof *w->blocks);
    w->verbatim = icma_alloc_zeroed(w->g->generator.tensor_count + 1, sizeof *w->verbatim);
    w->any_modelled = icma_generator_modelled_weights(&w->g->generator, &w->g->group->signature) > 0;
    bool classes = icma_generator_has_classes(&w->g->generator);
    w->classes = classes ? icma_alloc((size_t)icma_generator_modelled_weights(&w->g->generator, &w->g->group->signature) + 1) : NULL;
    if (!w->blocks || !w->verbatim || (classes && !w->classes))
        return no_memory(error);
    if (!w->sources || !w->source_index || !w->originals || !w->data || !w->q)
        return no_memory(error);
    for (size_t i = 0; i < added; i++) {
        w->source_index[w->past + i] = first + i;
        w->sources[w->past + i] = &w->g->group->sources[first + i];
    }
    return ICMA_OK;
}

/* With --keep last a task keeps its last checkpoint, whichever group that is in. */
static bool is_kept(const icma_packer *p, const icma_source *source) {
    const icma_input_task *task = &p->inputs->tasks[source->task];
    return !p->options->keep_last_only || source->input == &task->checkpoints[task->checkpoint_count - 1];
}

icma_status icma_pack_task_part(icma_packer *packer, icma_pack_group *group, size_t first, size_t count, icma_error *error) {
    icma_part_writer w = {.packer = packer, .g = group, .task = group->group->sources[first].task};
    w.owner = packer->owners ? packer->owners[w.task] : w.task;
    while (count > 0 && !is_kept(packer, &group->group->sources[first])) {
        first++;
        count--;
        packer->encoded++;
    }
    if (count == 0)
        return ICMA_OK;
    icma_status status = allocate_part(&w, first, count, error);
    if (!status && !w.past)
        status = set_condition(&w, error);
    if (!status && packer->options->tier == ICMA_TIER_LOSSLESS)
        status = icma_pack_lossless(&w, error);
    else if (!status)
        status = process_checkpoints(&w, error);
    if (!status)
        status = icma_pack_write_texts(&w, error);
    if (!status && !w.past)
        status = write_condition(&w, error);
    if (!status)
        status = write_table(&w, error);
    if (!status)
        tell_task(&w);
    free_part(&w);
    return status;
}
