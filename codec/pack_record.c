/* SPDX-License-Identifier: Apache-2.0 */
/* The RECORD section (spec 4.9): how a group's generator was trained, and the errors measured by tensor and module. JSON, optional to readers. */
#include "json.h"
#include "layout_place.h"
#include "memory.h"
#include "packer.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

/* Everything that is added goes through these, so that a record is complete or not at all: *whole turns false when memory is short. */
static void note(bool *whole, const cJSON *added) {
    *whole = *whole && added;
}

static void add_text(cJSON *to, const char *key, const char *text, bool *whole) {
    note(whole, cJSON_AddStringToObject(to, key, text));
}

/* Infinities and NaN have no JSON number. */
static void add_digits(cJSON *to, const char *key, double value, int digits, bool *whole) {
    char text[32];
    snprintf(text, sizeof text, "%.*g", digits, value);
    note(whole, isfinite(value) ? cJSON_AddRawToObject(to, key, text) : cJSON_AddNullToObject(to, key));
}

static void add_number(cJSON *to, const char *key, double value, bool *whole) {
    add_digits(to, key, value, 6, whole);
}

/* Errors of every tensor and losses of many epochs are for reading and plotting: three digits do, and the record of a small archive should not weigh a per cent of it. */
static void add_short(cJSON *to, const char *key, double value, bool *whole) {
    add_digits(to, key, value, 3, whole);
}

static cJSON *add_object(cJSON *list, bool *whole) {
    cJSON *item = cJSON_CreateObject();
    if (cJSON_AddItemToArray(list, item))
        return item;
    cJSON_Delete(item);
    *whole = false;
    return NULL;
}

static void add_network(cJSON *options, const icma_packer *p, const icma_pack_group *g, bool *whole) {
    const icma_pack_options *o = p->options;
    add_text(options, "generator", g->generator.prior == ICMA_PRIOR_DIFFUSION ? "diffusion" : "conv", whole);
    add_number(options, "layers", (double)g->generator.conv.layers, whole);
    add_number(options, "kernel", (double)g->generator.conv.width, whole);
    int encoder[ICMA_CONV_MOST_LAYERS] = {0}; /* the decoder's are the same backwards */
    for (size_t l = 0; l < g->generator.conv.layers; l++)
        encoder[l] = (int)g->generator.conv.channels[g->generator.conv.layers - 1 - l];
    cJSON *channels = cJSON_CreateIntArray(encoder, (int)g->generator.conv.layers);
    if (!cJSON_AddItemToObject(options, "channels", channels)) {
        cJSON_Delete(channels);
        *whole = false;
    }
    if (g->generator.conv.outputs == 2)
        note(whole, cJSON_AddTrueToObject(options, "variance"));
    add_number(options, "weight_decay", o->weight_decay, whole);
    add_number(options, "patience", (double)o->patience, whole);
    add_number(options, "epochs_done", (double)g->training.epochs_done, whole);
}

/* Another device gives other rounding errors; the CPU is not worth a word. */
static void add_device(cJSON *options, const icma_packer *p, const icma_pack_group *g, bool *whole) {
    const icma_ops *ops = g->training.ops ? g->training.ops : p->ops;
    if (icma_ops_on_host(ops))
        return;
    add_text(options, "device", ops->name, whole);
    add_text(options, "precision", p->options->precision, whole);
}

static void add_options(cJSON *root, const icma_packer *p, const icma_pack_group *g, bool *whole) {
    const icma_pack_options *o = p->options;
    cJSON *options = cJSON_AddObjectToObject(root, "options");
    char seed[24];
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)o->seed);
    add_text(options, "tier", icma_tier_name(o->tier), whole);
    if (o->tier == ICMA_TIER_BOUNDED) {
        add_text(options, "bound", icma_bound_name(o->bound.kind), whole);
        add_number(options, "bound_value", (double)o->bound.value, whole);
    }
    if (o->tier == ICMA_TIER_LOSSLESS)
        add_number(options, "restart", (double)o->restart, whole);
    if (o->generator == ICMA_CHOOSE_SOUP)
        add_text(options, "generator", o->scorer.score ? "greedy soup" : "soup", whole);
    if (g->generator.kind == ICMA_GENERATOR_CONV)
        add_network(options, p, g, whole);
    add_text(options, "loss", o->loss == ICMA_LOSS_PAPER ? "paper" : "water-level", whole);
    note(whole, cJSON_AddRawToObject(options, "seed", seed));
    add_number(options, "explain", o->explain, whole);
    add_number(options, "max_error", o->max_error, whole);
    add_number(options, "components", (double)o->components, whole);
    add_number(options, "latent_dim", (double)o->latent_dim, whole);
    add_number(options, "epochs", (double)g->training.epochs, whole);
    add_number(options, "batch", (double)g->training.batch, whole);
    add_number(options, "learning_rate", o->learning_rate, whole);
    add_number(options, "kld_weight", o->loss == ICMA_LOSS_PAPER ? o->kld_weight : 1, whole);
    add_device(options, p, g, whole);
}

static void add_eigen(cJSON *root, const icma_pack_group *g, bool *whole) {
    cJSON *eigen = cJSON_AddObjectToObject(root, "eigen");
    add_number(eigen, "checkpoints", (double)g->gram.count, whole);
    add_number(eigen, "energy", g->basis.energy, whole);
    add_number(eigen, "leftover", g->basis.leftover, whole);
    add_number(eigen, "within_task", g->basis.within, whole);
    add_number(eigen, "explained", g->basis.explained, whole);
    add_number(eigen, "predicted_error", g->basis.predicted_error, whole);
    add_number(eigen, "theta", g->training.theta, whole);
}

static void add_rate(cJSON *root, const icma_basis *b, bool *whole) {
    if (b->rate_count == 0)
        return;
    cJSON *rate = cJSON_AddArrayToObject(root, "rate");
    note(whole, rate);
    for (size_t i = 0; i < b->rate_count; i++) {
        cJSON *point = add_object(rate, whole);
        add_short(point, "bound", b->rate[i].bound, whole);
        add_short(point, "bits_per_parameter", b->rate[i].bits, whole);
        add_short(point, "predicted_error", b->rate[i].predicted_error, whole);
    }
}

static void add_losses(cJSON *root, const icma_training *t, bool *whole) {
    cJSON *losses = cJSON_AddArrayToObject(root, "losses");
    note(whole, losses);
    for (size_t i = 0; i < t->loss_count; i++) {
        cJSON *point = add_object(losses, whole);
        add_number(point, "epoch", (double)t->loss_epoch[i], whole);
        add_short(point, "reconstruction", t->loss_reconstruction[i], whole);
        add_short(point, "kl", t->loss_kl[i], whole);
    }
}

static void add_distance(cJSON *list, const char *key, const char *name, const icma_distance *d, bool maximum, bool *whole) {
    cJSON *item = add_object(list, whole);
    add_text(item, key, name, whole);
    add_short(item, "relative_error", icma_distance_relative(d), whole);
    add_digits(item, "cosine", icma_distance_cosine(d), 5, whole);
    if (maximum)
        add_short(item, "maximum", d->maximum, whole);
}

static void add_errors(cJSON *root, const icma_pack_group *g, bool *whole) {
    const icma_safetensors *s = &g->group->signature;
    cJSON *tensors = cJSON_AddArrayToObject(root, "tensors"), *modules = cJSON_AddArrayToObject(root, "modules");
    note(whole, tensors);
    note(whole, modules);
    for (size_t t = 0; t < s->tensor_count; t++)
        add_distance(tensors, "name", s->tensors[t].name, &g->measures.tensors[t], true, whole);
    for (size_t p = 0; p < g->group->pairs.count; p++)
        add_distance(modules, "module", g->group->pairs.list[p].module, &g->measures.pairs[p], false, whole);
}

/* How the files of the group were named, where they were all named alike and not as PEFT does. */
static void add_naming(cJSON *root, const icma_packer *p, const icma_pack_group *g, bool *whole) {
    icma_file_naming all = {0}, one;
    bool any_step = false;
    for (size_t i = 0; i < g->group->count; i++) {
        const icma_source *source = &g->group->sources[i];
        const icma_input_checkpoint *c = source->input;
        if (!icma_file_naming_of(c->path, p->inputs->tasks[source->task].name, c->has_step, c->step, &one))
            return;
        if (i > 0 && one.form != all.form)
            return;
        if (any_step && c->has_step && (one.by_step != all.by_step || one.digits != all.digits))
            return;
        if (i == 0 || c->has_step)
            all = one;
        any_step |= c->has_step;
    }
    if (all.form == ICMA_FORM_PEFT)
        return;
    cJSON *files = cJSON_AddObjectToObject(root, "files");
    note(whole, files);
    add_text(files, "form", icma_file_form_name(all.form), whole);
    if (all.by_step)
        add_number(files, "step_digits", all.digits, whole);
}

/* The descriptions of the group's tasks, and what made conditions of them. */
static void add_texts(cJSON *root, const icma_packer *p, const icma_pack_group *g, bool *whole) {
    const icma_described *d = p->described;
    const icma_group *group = g->group;
    char hash[24];
    if (!d)
        return;
    cJSON *encoder = cJSON_AddObjectToObject(root, "text_encoder"), *texts = cJSON_AddArrayToObject(root, "texts");
    snprintf(hash, sizeof hash, "%016" PRIx64, d->hash);
    add_text(encoder, "id", d->encoder, whole);
    add_text(encoder, "hash", hash, whole);
    add_text(encoder, "pooling", d->pooling, whole);
    note(whole, cJSON_AddBoolToObject(encoder, "projection", d->projection));
    note(whole, texts);
    for (size_t i = 0; i < group->count; i++) {
        uint32_t task = group->sources[i].task;
        if ((i && group->sources[i - 1].task == task) || !d->text[task])
            continue;
        cJSON *item = add_object(texts, whole);
        add_text(item, "task", p->inputs->tasks[task].name, whole);
        add_text(item, "text", d->text[task], whole);
    }
}

icma_status icma_pack_record(icma_packer *p, const icma_pack_group *g, icma_error *error) {
    cJSON *root = cJSON_CreateObject();
    bool whole = root != NULL;
    add_options(root, p, g, &whole);
    add_texts(root, p, g, &whole);
    if (icma_generator_predicts(&g->generator))
        add_eigen(root, g, &whole);
    add_rate(root, &g->basis, &whole);
    add_naming(root, p, g, &whole);
    add_losses(root, &g->training, &whole);
    add_errors(root, g, &whole);
    char *text = whole ? cJSON_PrintUnformatted(root) : NULL;
    cJSON_Delete(root);
    if (!text)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the record");
    icma_section section = {.kind = ICMA_SECTION_RECORD, .flags = ICMA_SECTION_OPTIONAL, .group = g->index, .task = ICMA_NO_OWNER};
    size_t size = 0;
    while (text[size])
        size++;
    icma_status status = icma_container_add(p->writer, &section, text, size, 19, error);
    cJSON_free(text);
    return status;
}
