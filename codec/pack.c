/* SPDX-License-Identifier: Apache-2.0 */
/* Packing: the way of a tree of adapters into an archive, group by group. */
#include "packer.h"

#include "pack_part.h"

#include "compress.h"
#include "conv_train.h"
#include "memory.h"
#include "progress.h"
#include "sized.h"
#include "soup.h"
#include "training_file.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum {
    MOST_GRAM_SOURCES = 4096, /* in the eigenproblem; the rest is projected */
    TEXT_LEVEL = 19,
    ZSTD_SAMPLE = 8 << 20,    /* bytes of originals that zstd -19 is measured on */
};

void icma_pack_options_init(icma_pack_options *options, size_t size) {
    const icma_pack_options standard = {.size = size, .tier = ICMA_TIER_BOUNDED, .bound = {ICMA_BOUND_DW, 0x1.999998p-4F /* the f32 below 0.1 */}, .restart = 50, .explain = ICMA_AUTO, .max_error = 0.05, .loss = ICMA_LOSS_WATER_LEVEL, .kld_weight = 0.005,
                               .latent_dim = 16, .batch = 32, .learning_rate = 2e-3, .layers = 12, .kernel = 7, .save_seconds = 60, .seed = 1, .precision = "f32"};
    icma_sized_fill(options, size, &standard, sizeof standard);
}

/* Options as this library knows them, from a program that may have been compiled with fewer. */
icma_status icma_pack_take_options(const icma_pack_options *options, icma_pack_options *out, icma_error *error) {
    icma_pack_options_init(out, sizeof *out);
    return icma_sized_take(out, sizeof *out, options, ICMA_PACK_OPTIONS_LEAST, "pack options of", "icma_pack_defaults", error);
}

bool icma_choice_is_network(icma_generator_choice generator) {
    return generator == ICMA_CHOOSE_CONV || generator == ICMA_CHOOSE_DIFFUSION;
}

void icma_pack_use_generator(icma_pack_options *options, icma_generator_choice generator) {
    icma_pack_options standard = icma_pack_defaults();
    bool conv = icma_choice_is_network(generator);
    options->generator = generator;
    options->loss = conv ? ICMA_LOSS_PAPER : standard.loss;
    options->latent_dim = conv ? 256 : standard.latent_dim;
    options->batch = conv ? 8 : standard.batch;
    options->learning_rate = conv ? 1e-3 : standard.learning_rate;
}

icma_status icma_pack_preset(const char *name, icma_pack_options *options, icma_error *error) {
    if (strcmp(name, "paper") != 0)
        return icma_fail(error, ICMA_E_USAGE, NULL, "unknown preset \"%s\"; there is \"paper\"", name);
    /* PAPER.md: generator, loss, latent size, learning rate, batch and epochs of ICM-LoRA. With a basis epochs stay ours: in coordinates the loss is flat long before 2,000. */
    if (options->generator == ICMA_CHOOSE_AUTO)
        icma_pack_use_generator(options, ICMA_CHOOSE_CONV);
    options->loss = ICMA_LOSS_PAPER;
    options->kld_weight = 0.005;
    options->latent_dim = 256;
    options->learning_rate = 2e-4;
    options->batch = 2;
    options->epochs = options->generator == ICMA_CHOOSE_CONV ? 2000 : ICMA_AUTO;
    return ICMA_OK;
}

double icma_pack_work(const icma_pack_options *options, size_t adapters, size_t weights) {
    icma_pack_options all;
    return icma_choice_is_network(options->generator) && !icma_pack_take_options(options, &all, NULL) ? icma_conv_train_work(&all, adapters, weights) : 0;
}

void icma_pack_result_free(icma_pack_result *result) {
    for (size_t t = 0; result->tasks && t < result->task_count; t++)
        icma_free(result->tasks[t].name);
    icma_free(result->tasks);
    memset(result, 0, sizeof *result);
}

double icma_lap(double *now) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    double then = *now;
    *now = (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
    return *now - then;
}

/* --- a group ----------------------------------------------------------------------------------------------------- */

static icma_status reread(void *context, const icma_section *section, size_t max_raw, uint8_t **out, icma_error *error) {
    icma_container_writer *writer = context;
    icma_file *file;
    (void)max_raw; /* we wrote it */
    *out = NULL;
    icma_status status = icma_file_open(icma_container_temporary(writer), &file, error);
    if (status)
        return status;
    uint8_t *stored = icma_alloc((size_t)section->stored_size), *raw = icma_alloc((size_t)section->raw_size);
    status = stored && raw ? icma_file_read(file, section->offset, stored, (size_t)section->stored_size, error)
                           : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
    if (!status && section->coding == ICMA_CODING_ZSTD)
        status = icma_zstd_decompress(stored, (size_t)section->stored_size, raw, (size_t)section->raw_size, error);
    else if (!status)
        memcpy(raw, stored, (size_t)section->raw_size);
    icma_free(stored);
    icma_file_close(file);
    if (status)
        icma_free(raw);
    else
        *out = raw;
    return status;
}

static icma_status add_section(icma_packer *p, uint32_t group, icma_section_kind kind, const void *data, size_t size, icma_error *error) {
    icma_section section = {.kind = (uint16_t)kind, .group = group, .task = ICMA_NO_OWNER};
    return icma_container_add(p->writer, &section, data, size, TEXT_LEVEL, error);
}

static bool has_modelled(const icma_pack_group *g) {
    for (size_t t = 0; t < g->generator.tensor_count; t++)
        if (icma_generator_is_modelled(&g->generator, t))
            return true;
    return false;
}

icma_basis_target icma_pack_target(const icma_pack_options *o) {
    icma_basis_target target = {.components = o->components, .explain = o->explain, .max_error = o->max_error, .progress = &o->progress};
    if (o->tier == ICMA_TIER_BOUNDED)
        target.bound = o->bound;
    target.required = o->generator == ICMA_CHOOSE_BASIS || o->tier <= ICMA_TIER_LATENT;
    return target;
}

static icma_status write_head(icma_packer *p, icma_pack_group *g, icma_error *error) {
    memcpy(g->generator.components, g->basis.components, sizeof g->basis.components);
    g->generator.head_step = g->basis.step; /* moves */
    g->basis.step = NULL;
    return icma_basis_write_head(g->group, g->index, &g->gram, &g->generator, p->ops, &p->options->progress, &g->basis, p->writer, &g->chunks, &g->chunk_count, error);
}

/* Basis, head and the CVAE in its coordinates. */
static icma_status learn_basis(icma_packer *p, icma_pack_group *g, icma_error *error) {
    const icma_pack_options *o = p->options;
    double now = 0;
    icma_lap(&now);
    icma_status status = ICMA_OK;
    bool pays = !(o->tier == ICMA_TIER_LOSSLESS && o->generator == ICMA_CHOOSE_AUTO);
    if (!pays)
        icma_explain(&o->progress, "basis", "none: files are predicted from later checkpoints of their task, up to %d of them in chains of %zu, and what a basis would save there is less than it takes",
                     ICMA_CHAIN_TAPS, o->restart);
    else if (o->generator == ICMA_CHOOSE_NONE)
        icma_explain(&o->progress, "basis", "none, as asked for with the generator");
    if (o->generator != ICMA_CHOOSE_NONE && pays)
        status = icma_basis_choose(g->group, p->ops, &g->gram, &g->generator, icma_pack_target(o), &g->basis, error);
    if (status)
        return status;
    if (g->basis.total == 0 && g->gram.count == g->group->count)
        return ICMA_OK; /* residuals alone, and no source that has not been looked at */
    status = write_head(p, g, error);
    p->result->seconds.encode += icma_lap(&now);
    uint64_t head_bytes = 0;
    for (size_t c = 0; c < g->chunk_count; c++)
        head_bytes += g->chunks[c].stored_size;
    if (!status && g->basis.total)
        status = icma_train(g->group, &g->basis, p->conditions, o, head_bytes, p->ops, &g->generator, &g->training, error);
    p->result->seconds.train += icma_lap(&now);
    return status;
}

static icma_status brew(icma_packer *p, icma_pack_group *g, double *weight, icma_error *error) {
    const icma_pack_options *o = p->options;
    icma_training *t = &g->training;
    icma_rng rng = icma_rng_seed(o->seed);
    icma_status status = ICMA_OK;
    icma_soup_uniform(g->group, weight);
    if (o->scorer.score)
        status = icma_soup_greedy(g->group, &g->generator, p->inputs, o->scorer, &o->progress, weight, error);
    if (!status)
        status = icma_conditions_prepare(g->group, p->ops, p->conditions, &rng, &g->generator, &t->conditions, error);
    if (!status)
        status = icma_soup_basis(g->group, p->ops, &g->gram, &g->generator, weight, o->max_error, &g->basis, error);
    if (status)
        return status;
    icma_conditions_settle(&t->conditions, g->generator.coordinates);
    t->active = icma_alloc_zeroed(t->conditions.count, sizeof *t->active);
    t->latent = icma_alloc_zeroed(1, sizeof *t->latent); /* no dimensions */
    if (!t->active || !t->latent)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a soup");
    status = write_head(p, g, error);
    if (!status)
        status = icma_soup_trunk(g->group, &g->basis, weight, &t->conditions, icma_basis_water_level(&g->basis), &g->generator, error);
    return status;
}

static icma_status learn_soup(icma_packer *p, icma_pack_group *g, icma_error *error) {
    double now = 0, *weight = icma_alloc_array(g->group->count, sizeof *weight);
    icma_lap(&now);
    icma_status status = weight ? brew(p, g, weight, error) : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a soup");
    icma_free(weight);
    p->result->seconds.train += icma_lap(&now);
    return status;
}

static icma_status learn_conv(icma_packer *p, icma_pack_group *g, icma_error *error) {
    double now = 0;
    icma_lap(&now);
    icma_status status = icma_gram_measure(g->group, &g->gram, &g->basis.within, &g->basis.energy, error);
    if (!status)
        status = icma_conv_train(g->group, g->index, &g->gram, p->conditions, p->options, p->ops, &g->generator, &g->training, error);
    p->trained |= !status;
    p->result->seconds.train += icma_lap(&now);
    return status;
}

/* Everything that is learned from a group. */
static icma_status learn(icma_packer *p, icma_pack_group *g, icma_error *error) {
    const icma_pack_options *o = p->options;
    double now = 0;
    icma_lap(&now);
    icma_status status = icma_gram_compute(g->group, p->ops, MOST_GRAM_SOURCES, o->seed, &o->progress, &g->generator, &g->gram, error);
    p->result->seconds.gram += icma_lap(&now);
    if (status || !has_modelled(g))
        return status;
    if (o->generator == ICMA_CHOOSE_SOUP)
        return learn_soup(p, g, error);
    return icma_choice_is_network(o->generator) ? learn_conv(p, g, error) : learn_basis(p, g, error);
}

/* Writes the generator and goes on with what a reader will read, not with what was trained. */
static icma_status settle_generator(icma_packer *p, icma_pack_group *g, icma_error *error) {
    icma_buffer payload = {0};
    icma_status status = icma_generator_write(&g->generator, &payload, error);
    if (!status)
        status = add_section(p, g->index, ICMA_SECTION_GENERATOR, payload.data, payload.size, error);
    icma_generator_free(&g->generator);
    if (!status)
        status = icma_generator_read(payload.data, payload.size, &g->group->signature, &g->generator, error);
    icma_buffer_free(&payload);
    icma_section_loader loader = {reread, p->writer};
    if (!status)
        status = icma_decoder_create(p->decode_ops, &g->group->signature, &g->generator, g->chunks, g->chunk_count, loader, UINT64_MAX,
                                     &g->decoder, error);
    return status;
}

static void tell_group(icma_packer *p, const icma_pack_group *g) {
    icma_pack_result *r = p->result;
    r->has_generator |= icma_generator_predicts(&g->generator);
    if (icma_generator_predicts(&g->generator) || !r->generator)
        r->generator = p->options->generator == ICMA_CHOOSE_SOUP ? "soup" : icma_generator_name(&g->generator);
    if (g->training.ops)
        r->device = g->training.ops->name;
    r->components += g->generator.total;
    r->active_latents += g->generator.latent;
    for (size_t s = 0; s < g->training.conditions.count; s++) {
        icma_pack_task *task = &r->tasks[g->training.conditions.task[s]];
        task->latents_active += g->training.active[s];
        task->condition_learned |= g->training.conditions.learned[s] != NULL;
    }
}

void icma_pack_group_free(icma_pack_group *g) {
    if (!g->joined) {
        icma_decoder_free(g->decoder);
        icma_generator_free(&g->generator);
    }
    icma_gram_free(&g->gram);
    icma_basis_free(&g->basis);
    icma_training_free(&g->training);
    icma_free(g->chunks);
    icma_free(g->measures.tensors);
    icma_free(g->measures.pairs);
    icma_text_pool_free(&g->texts);
    icma_text_pool_free(&g->past_texts);
    icma_checkpoints_free(&g->past);
}

/* What is measured of LoHa and LoKr is not their dW, so that is not what is promised either. */
static void tell_halves(const icma_packer *p, const icma_group *group) {
    char line[256];
    size_t halves = 0;
    if (p->options->tier != ICMA_TIER_BOUNDED || p->options->bound.kind != ICMA_BOUND_DW)
        return;
    for (size_t i = 0; i < group->pairs.count; i++)
        halves += group->pairs.list[i].is_half;
    snprintf(line, sizeof line,
             "%zu pairs of factors are LoHa's or LoKr's: what is measured and bounded is the matrix that each "
             "makes, not the dW that two of those make, which may be off by more",
             halves);
    if (halves)
        icma_say(&p->options->progress, line);
}

icma_status icma_pack_group_tasks(icma_packer *p, icma_pack_group *g, icma_error *error) {
    size_t n = g->group->count;
    icma_status status = ICMA_OK;
    tell_halves(p, g->group);
    for (size_t first = 0, next; !status && first < n; first = next) {
        for (next = first; next < n && g->group->sources[next].task == g->group->sources[first].task; next++)
            ;
        status = icma_pack_task_part(p, g, first, next - first, error);
    }
    return status;
}

static void explain_group(const icma_packer *p, const icma_group *group) {
    size_t tasks = 0;
    uint64_t numbers = 0;
    for (size_t i = 0; i < group->count; i++)
        tasks += i == 0 || group->sources[i].task != group->sources[i - 1].task;
    for (size_t t = 0; t < group->signature.tensor_count; t++)
        numbers += group->signature.tensors[t].count;
    icma_explain(&p->options->progress, "group", "%zu of %zu: %zu checkpoints of %zu tasks have the same tensors (%zu, in %zu LoRA pairs; %llu numbers) and are learned together",
                 (size_t)(group - p->dataset.groups) + 1, p->dataset.count, group->count, tasks, group->signature.tensor_count, group->pairs.count, (unsigned long long)numbers);
}

static void explain_misses(icma_packer *p) {
    const icma_progress *progress = &p->options->progress;
    if (p->missed_tensors)
        icma_explain(progress, "verbatim", "%zu tensor%s of single checkpoints kept bit for bit: no residual holds the bound", p->missed_tensors,
                     p->missed_tensors == 1 ? "" : "s");
    if (p->missed_checkpoints)
        icma_explain(progress, "verbatim", "%zu checkpoint%s kept bit for bit: a decoded number left its dtype's range, or the bound was missed", p->missed_checkpoints,
                     p->missed_checkpoints == 1 ? "" : "s");
    p->missed_tensors = p->missed_checkpoints = 0;
}

/* The signature comes first, but where hashes may have to be cut out of it: that depends on what is modelled. */
static icma_status learn_and_sign(icma_packer *p, icma_pack_group *g, icma_error *error) {
    const icma_safetensors *signature = &g->group->signature;
    bool waits = icma_pack_has_hashes(signature);
    icma_status status = waits ? ICMA_OK : add_section(p, g->index, ICMA_SECTION_SIGNATURE, signature->header, signature->header_size, error);
    if (!status)
        status = learn(p, g, error);
    if (!status)
        status = icma_pack_cut_hashes(p, g, error);
    if (waits)
        icma_explain(&p->options->progress, "metadata", g->cuts_hashes ? "hashes of the weights are left out of the headers: the decoded weights are others"
                                                                       : "hashes of the weights stay in the headers: the files come back bit for bit");
    if (!status && waits)
        status = add_section(p, g->index, ICMA_SECTION_SIGNATURE, signature->header, signature->header_size, error);
    return status;
}

icma_status icma_pack_group_prepare(icma_pack_group *g, icma_error *error) {
    g->measures.tensors = icma_alloc_zeroed(g->group->signature.tensor_count + 1, sizeof(icma_distance));
    g->measures.pairs = icma_alloc_zeroed(g->group->pairs.count + 1, sizeof(icma_distance));
    return g->measures.tensors && g->measures.pairs ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a group");
}

icma_status icma_pack_group_whole(icma_packer *p, icma_group *group, uint32_t index, icma_error *error) {
    icma_pack_group g = {.index = index, .group = group, .generator = {.tensor_count = group->signature.tensor_count}};
    double now = 0;
    explain_group(p, group);
    icma_status status = icma_generator_allocate(&g.generator, error);
    if (!status)
        status = icma_pack_group_prepare(&g, error);
    if (!status)
        status = learn_and_sign(p, &g, error);
    icma_lap(&now);
    if (!status)
        status = settle_generator(p, &g, error);
    if (!status)
        status = icma_pack_shared_texts(p, &g, error);
    if (!status) {
        tell_group(p, &g);
        status = icma_pack_group_tasks(p, &g, error);
    }
    if (!status)
        status = icma_pack_record(p, &g, error);
    if (!status)
        explain_misses(p);
    p->result->seconds.encode += icma_lap(&now);
    if (g.measures.checkpoints) {
        p->standard_error += g.measures.standard_error / (double)g.measures.checkpoints * (double)g.gram.count;
        p->within += g.basis.within * (double)g.gram.count;
    }
    icma_pack_group_free(&g);
    return status;
}

/* --- the whole --------------------------------------------------------------------------------------------------- */

icma_status icma_pack_name_tasks(icma_packer *p, icma_error *error) {
    icma_pack_result *r = p->result;
    r->tasks = icma_alloc_zeroed(p->inputs->task_count, sizeof *r->tasks);
    if (!r->tasks)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the tasks");
    for (r->task_count = 0; r->task_count < p->inputs->task_count; r->task_count++)
        if (!(r->tasks[r->task_count].name = icma_copy_string(p->inputs->tasks[r->task_count].name)))
            return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the tasks");
    return ICMA_OK;
}

static icma_status finish_container(icma_packer *p, icma_error *error) {
    const char **names = icma_alloc_array(p->inputs->task_count, sizeof *names);
    if (!names)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the tasks");
    for (size_t t = 0; t < p->inputs->task_count; t++)
        names[t] = p->inputs->tasks[t].name;
    icma_status status = icma_container_finish(p->writer, names, p->inputs->task_count, p->dataset.count, error);
    icma_free(names);
    return status;
}

/* Opens what was written and decodes every checkpoint: only an archive that gives back what was measured is committed. */
static icma_status check_archive(icma_packer *p, icma_error *error) {
    icma_limits none = {sizeof none, UINT64_MAX, UINT64_MAX};
    icma_bundle *bundle = NULL;
    size_t done = 0;
    icma_status status = icma_bundle_open(icma_container_temporary(p->writer), p->decode_ops, &none, &bundle, error);
    for (size_t t = 0; !status && t < p->inputs->task_count; t++) {
        icma_task_info info;
        status = icma_bundle_task(bundle, t, &info, error);
        for (size_t c = info.checkpoint_count; !status && c-- > 0;) { /* backwards: lossless ones are predicted from those that follow */
            icma_decoded decoded;
            icma_tell(&p->options->progress, "check", (double)done++, (double)p->result->original_files, info.name);
            status = icma_check_cancelled(&p->options->progress, error);
            if (!status)
                status = icma_bundle_decode(bundle, t, c, &decoded, error);
            if (!status)
                icma_decoded_free(&decoded);
        }
        if (!status)
            icma_bundle_forget_task(bundle, t);
    }
    if (!status)
        p->result->bytes = icma_bundle_bytes(bundle);
    icma_bundle_close(bundle);
    return status;
}

/* zstd -19 of the tasks' last files, as many as fit the sample: what a user would get without us, measured. */
static icma_status sample_zstd(icma_packer *p, icma_error *error) {
    const icma_progress *progress = &p->options->progress;
    double share = (double)p->result->original_bytes / (double)p->result->original_files * (double)p->inputs->task_count; /* of the last files, about */
    icma_status status = ICMA_OK;
    for (size_t t = 0; !status && t < p->inputs->task_count; t++) {
        const icma_input_task *task = &p->inputs->tasks[t];
        uint8_t *data;
        size_t size;
        icma_buffer packed = {0};
        icma_tell(progress, "zstd", (double)p->result->zstd_sample_raw, fmin(share, ZSTD_SAMPLE), task->name);
        status = icma_check_cancelled(progress, error);
        if (!status)
            status = icma_file_read_all(task->checkpoints[task->checkpoint_count - 1].path, SIZE_MAX, &data, &size, error);
        if (status)
            return status;
        if (p->result->zstd_sample_raw + size <= ZSTD_SAMPLE) {
            status = icma_zstd_compress(data, size, 19, &packed, error);
            p->result->zstd_sample_raw += size;
            p->result->zstd_sample_size += packed.size;
        }
        icma_buffer_free(&packed);
        icma_free(data);
        if (p->result->zstd_sample_raw + size > ZSTD_SAMPLE)
            break;
    }
    return status;
}

/* Adapters at which generator, names and index are paid for, if every adapter would else be a 16-bit cast. */
static void find_break_even(icma_pack_result *r) {
    double files = (double)r->original_files, each = (double)(r->bytes.latents + r->bytes.residuals + r->bytes.verbatim) / files;
    double cast = 2 * (double)r->original_parameters / files, fixed = (double)r->bytes.total - each * files;
    r->break_even = cast > each ? (uint64_t)floor(fixed / (cast - each)) + 1 : 0;
}

void icma_packer_free(icma_packer *p) {
    icma_dataset_close(&p->dataset);
    for (size_t i = 0; p->conditions && i < p->inputs->task_count; i++)
        icma_free((void *)p->conditions[i].vector);
    icma_free(p->conditions);
    p->conditions = NULL;
}

/* Everything but the commit. */
static icma_status pack_all(icma_packer *p, const char *path, icma_error *error) {
    double now = 0;
    icma_lap(&now);
    icma_status status = icma_container_create(path, p->options->overwrite, &p->writer, error);
    if (!status)
        status = icma_pack_name_tasks(p, error);
    if (!status)
        status = icma_pack_load_conditions(p, error);
    if (!status)
        status = icma_dataset_open(p->inputs, p->options->train_last, &p->options->progress, &p->dataset, error);
    p->result->seconds.read = icma_lap(&now);
    p->result->groups = p->dataset.count;
    for (size_t g = 0; !status && g < p->dataset.count; g++)
        status = icma_pack_group_whole(p, &p->dataset.groups[g], (uint32_t)g, error);
    p->result->within_task_explained = p->within > 0 ? 1 - p->standard_error / p->within : NAN;
    icma_lap(&now);
    if (!status && p->dataset.count > 1)
        icma_explain(&p->options->progress, "group", "%zu groups in all: adapters of other ranks, modules or dtypes have nothing to share", p->dataset.count);
    if (!status)
        status = finish_container(p, error);
    p->result->seconds.write = icma_lap(&now);
    if (!status)
        status = check_archive(p, error);
    if (!status)
        status = sample_zstd(p, error);
    if (!status)
        status = icma_dataset_check_unchanged(&p->dataset, error);
    p->result->seconds.check = icma_lap(&now);
    if (!status)
        find_break_even(p->result);
    return status;
}

icma_status icma_pack_check_options(const icma_pack_options *o, icma_error *error) {
    if (o->tier > ICMA_TIER_LOSSLESS)
        return icma_fail(error, ICMA_E_USAGE, NULL, "this tier cannot be asked for; use generate, latent, bounded or lossless");
    if (o->tier == ICMA_TIER_BOUNDED && (o->bound.kind == ICMA_BOUND_NONE || o->bound.kind > ICMA_BOUND_ABS || !(o->bound.value > 0 && isfinite(o->bound.value))))
        return icma_fail(error, ICMA_E_USAGE, NULL, "tier bounded needs a bound above 0");
    if (!(o->target_bits >= 0) || (o->target_bits > 0 && o->tier != ICMA_TIER_BOUNDED))
        return icma_fail(error, ICMA_E_USAGE, NULL, "target bits belong to tier bounded");
    if (!o->text_from != !o->text_encoder)
        return icma_fail(error, ICMA_E_USAGE, NULL, "descriptions need an encoder, and an encoder descriptions; name both");
    if (o->restart == 0)
        return icma_fail(error, ICMA_E_USAGE, NULL, "a chain of checkpoints has at least one");
    if (o->generator == ICMA_CHOOSE_NONE && o->tier <= ICMA_TIER_LATENT)
        return icma_fail(error, ICMA_E_USAGE, NULL, "tiers generate and latent need a generator; leave out --generator none, or use tier bounded");
    if (o->layers < 1 || o->layers > ICMA_MOST_LAYERS || o->kernel % 2 == 0 || o->kernel > ICMA_CONV_MOST_WIDTH || !(o->weight_decay >= 0))
        return icma_fail(error, ICMA_E_USAGE, NULL, "a network of this shape is out of range");
    if (icma_choice_is_network(o->generator) && (o->latent_dim == 0 || o->latent_dim > ICMA_MAX_LATENT))
        return icma_fail(error, ICMA_E_USAGE, NULL, "a network needs 1 to %d latent dimensions", ICMA_MAX_LATENT);
    for (size_t l = 0; l < o->layers; l++)
        if ((o->channels[0] != ICMA_AUTO) != (o->channels[l] != ICMA_AUTO) || o->channels[l] > ICMA_CONV_MOST_CHANNELS)
            return icma_fail(error, ICMA_E_USAGE, NULL, "channels need a number for every layer, each at most %d", ICMA_CONV_MOST_CHANNELS);
    if (o->variance && o->generator != ICMA_CHOOSE_CONV)
        return icma_fail(error, ICMA_E_USAGE, NULL, "a variance is predicted by the convolutional CVAE alone");
    if (o->batch == 0 || !(o->learning_rate > 0) || !(o->max_error > 0) || !(o->explain >= 0 && o->explain <= 1) || !(o->kld_weight >= 0))
        return icma_fail(error, ICMA_E_USAGE, NULL, "a pack option is out of range; start from icma_pack_defaults()");
    return ICMA_OK;
}

/* A packing that is not committed. */
typedef struct attempt {
    icma_container_writer *writer; /* owned; NULL: none */
    icma_pack_result result;       /* owned */
    bool trained;
} attempt;

/* What is learned with, what is decoded with, and what all tries share. */
typedef struct tables {
    const icma_ops *learn, *decode;
    const icma_described *described;
} tables;

static void forget(attempt *a) {
    icma_container_abandon(a->writer);
    icma_pack_result_free(&a->result);
    a->writer = NULL;
}

static icma_status pack_with(const icma_inputs *inputs, const char *path, const icma_pack_options *options, const tables *t, attempt *out, icma_error *error) {
    memset(out, 0, sizeof *out);
    out->result.device = t->learn->name;
    out->result.tier = options->tier;
    out->result.bound = options->tier == ICMA_TIER_BOUNDED ? options->bound : (icma_bound){0};
    icma_packer p = {.inputs = inputs, .options = options, .ops = t->learn, .decode_ops = t->decode, .described = t->described, .result = &out->result};
    icma_status status = pack_all(&p, path, error);
    out->writer = p.writer;
    icma_packer_free(&p);
    out->trained = p.trained;
    if (status)
        forget(out);
    return status;
}

/* Leaves to the CPU what a device had no memory for, or more than that: a trained network is the only thing that is worth keeping. False: it was the host's memory. */
static bool retreat(tables *t, bool trained) {
    if (icma_ops_on_host(trained ? t->decode : t->learn))
        return false;
    if (!trained)
        t->learn = icma_ops_cpu();
    if (!icma_ops_on_host(t->decode))
        t->decode = icma_ops_cpu();
    return true;
}

/* `t` changes for good when a device's memory is too small. What the first try has trained, the second finds in the training's file. */
static icma_status try_packing(const icma_inputs *inputs, const char *path, const icma_pack_options *options, tables *t, attempt *out, icma_error *error) {
    icma_pack_options o = *options;
    icma_error detail = {0};
    icma_status status = pack_with(inputs, path, &o, t, out, &detail);
    bool trained = out->trained;
    while (status == ICMA_E_MEMORY && retreat(t, trained)) {
        icma_say(&o.progress, trained ? "the GPU's memory does not hold the decoder; encoding on the CPU" : "the GPU's memory does not hold these adapters; packing on the CPU");
        o.resume |= trained;
        memset(&detail, 0, sizeof detail);
        status = pack_with(inputs, path, &o, t, out, &detail);
        trained |= out->trained;
    }
    if (status == ICMA_E_MEMORY && trained && o.training_file && !icma_ops_on_host(t->learn))
        return icma_fail(error, ICMA_E_DEVICE, o.training_file, "the GPU's memory has run out; the training is kept here: go on with --resume");
    return status ? icma_fail(error, status, detail.file, "%s", detail.message) : ICMA_OK;
}

static double bits_of(const attempt *a) {
    return 8 * (double)a->result.bytes.total / (double)a->result.original_parameters;
}

enum { MOST_ATTEMPTS = 12 };
static const double close_enough = 0.985, largest_bound = 64, smallest_bound = 1e-6, narrow_bracket = 1.01;

typedef struct trial {
    double bound, bits; /* bound 0: none yet */
} trial;

/* The next bound to try. Between one that fits and one that does not, where the line through both, in logarithms, meets the target (but not at either); else beyond
 * the only one, at least as far as a bit for every halving goes. */
static double next_bound(trial fits, trial misses, double target) {
    if (fits.bound > 0 && misses.bound > 0) {
        double part = log(target * 0.995 / misses.bits) / log(fits.bits / misses.bits);
        return misses.bound * pow(fits.bound / misses.bound, fmax(0.1, fmin(0.9, part)));
    }
    trial t = fits.bound > 0 ? fits : misses;
    double factor = fmax(1.2, fmin(16, exp2(fmax(fabs(t.bits - target), fabs(log2(t.bits / target))))));
    return fits.bound > 0 ? t.bound / factor : t.bound * factor;
}

/* Searches for the smallest bound at which the archive has at most the target's bits. */
static icma_status pack_to_size(const icma_inputs *inputs, const char *path, const icma_pack_options *options, tables *t, attempt *best, icma_error *error) {
    icma_pack_options o = *options;
    trial fits = {0, 0}, misses = {0, 0};
    double value = (double)o.bound.value;
    memset(best, 0, sizeof *best);
    for (int i = 0; i < MOST_ATTEMPTS; i++) {
        attempt now;
        o.bound.value = (float)value;
        icma_status status = try_packing(inputs, path, &o, t, &now, error);
        if (status) {
            forget(best);
            return status;
        }
        o.resume |= now.trained; /* a network does not depend on the bound: it is trained once */
        double bits = bits_of(&now);
        icma_explain(&o.progress, "target", "try %d: %s=%.4g takes %.4f bits a parameter, %s", i + 1, icma_bound_name(o.bound.kind), value, bits,
                     bits <= options->target_bits ? "which fits" : "which is too many");
        bool good = bits <= options->target_bits;
        *(good ? &fits : &misses) = (trial){value, bits};
        if (good) {
            forget(best);
            *best = now;
        } else
            forget(&now);
        if ((good && bits >= close_enough * options->target_bits) || (fits.bound > 0 && misses.bound > 0 && fits.bound / misses.bound < narrow_bracket))
            break;
        value = next_bound(fits, misses, options->target_bits);
        if (value < smallest_bound || value > largest_bound)
            break;
    }
    return best->writer ? ICMA_OK
                        : icma_fail(error, ICMA_E_BOUND, NULL, "no error bound gives %g bits a parameter; ask for more bits or pack more adapters at once",
                                    options->target_bits);
}

/* The archive is there: what it could be made again from is not needed any more. */
static void forget_trainings(const icma_pack_options *options, size_t groups) {
    for (size_t g = 0; options->training_file && g < groups; g++) {
        char *path = icma_conv_training_path(options, (uint32_t)g);
        if (path)
            icma_training_file_remove(path);
        icma_free(path);
    }
}

static icma_status describe(const icma_inputs *inputs, const icma_pack_options *options, const icma_ops *ops, icma_described *out, icma_error *error) {
    size_t texts = 0;
    icma_status status = icma_described_read(options->text_from, inputs, out, error);
    if (status)
        return status;
    for (size_t t = 0; t < out->count; t++)
        texts += out->text[t] != NULL;
    icma_tell(&options->progress, "embed", 0, (double)texts, NULL);
    status = icma_described_embed(out, options->text_encoder, options->text_projection, ops, error);
    if (!status)
        icma_explain(&options->progress, "condition", "%zu of %zu tasks have texts, embedded by \"%s\" as %zu numbers each", texts, out->count, out->encoder, out->width);
    return status;
}

icma_status icma_pack(const icma_inputs *inputs, const char *path, const icma_pack_options *given, const icma_ops *ops, icma_pack_result *result,
                      icma_error *error) {
    attempt a = {0};
    icma_pack_options all, *options = &all;
    double now = 0;
    memset(result, 0, sizeof *result);
    icma_status status = icma_pack_take_options(given, options, error);
    if (status)
        return status;
    if (!ops)
        ops = icma_ops_cpu();
    icma_described described = {0};
    tables t = {ops, options->scalar ? icma_ops_reference() : ops, options->text_from ? &described : NULL};
    if (options->threads)
        icma_set_threads(options->threads);
    status = icma_pack_check_options(options, error);
    if (!status && options->text_from)
        status = describe(inputs, options, ops, &described, error);
    if (!status && options->target_bits > 0)
        status = pack_to_size(inputs, path, options, &t, &a, error);
    else if (!status)
        status = try_packing(inputs, path, options, &t, &a, error);
    icma_described_free(&described);
    if (status)
        return status;
    icma_lap(&now);
    icma_tell(&options->progress, "write", 0, 0, NULL); /* until the disk has it */
    icma_container_writer *writer = a.writer;
    a.writer = NULL;
    status = icma_container_commit(writer, error);
    a.result.seconds.write += icma_lap(&now);
    if (status)
        forget(&a);
    else {
        *result = a.result;
        forget_trainings(options, a.result.groups);
    }
    return status;
}
