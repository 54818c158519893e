/* SPDX-License-Identifier: Apache-2.0 */
/* The RECORD section (spec 4.9): how a group's generator was trained, and the errors measured by tensor and module. JSON, optional to readers. */
#include "json.h"
#include "memory.h"
#include "packer.h"

#include <math.h>
#include <stdio.h>

/* Six digits are what a measurement deserves; infinities and NaN have no JSON number. */
static void add_number(cJSON *to, const char *key, double value) {
    char text[32];
    snprintf(text, sizeof text, "%.6g", value);
    if (isfinite(value))
        cJSON_AddRawToObject(to, key, text);
    else
        cJSON_AddNullToObject(to, key);
}

static void add_options(cJSON *root, const icma_packer *p, const icma_pack_group *g) {
    const icma_pack_options *o = p->options;
    cJSON *options = cJSON_AddObjectToObject(root, "options");
    char seed[24];
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)o->seed);
    cJSON_AddStringToObject(options, "tier", icma_tier_name(o->tier));
    cJSON_AddStringToObject(options, "loss", o->loss == ICMA_LOSS_PAPER ? "paper" : "water-level");
    cJSON_AddRawToObject(options, "seed", seed);
    add_number(options, "explain", o->explain);
    add_number(options, "max_error", o->max_error);
    add_number(options, "components", (double)o->components);
    add_number(options, "latent_dim", (double)o->latent_dim);
    add_number(options, "epochs", (double)g->training.epochs);
    add_number(options, "batch", (double)g->training.batch);
    add_number(options, "learning_rate", o->learning_rate);
    add_number(options, "kld_weight", o->loss == ICMA_LOSS_PAPER ? o->kld_weight : 1);
}

static void add_eigen(cJSON *root, const icma_pack_group *g) {
    cJSON *eigen = cJSON_AddObjectToObject(root, "eigen");
    add_number(eigen, "checkpoints", (double)g->gram.count);
    add_number(eigen, "energy", g->basis.energy);
    add_number(eigen, "leftover", g->basis.leftover);
    add_number(eigen, "within_task", g->within);
    add_number(eigen, "explained", g->basis.explained);
    add_number(eigen, "predicted_error", g->basis.predicted_error);
    add_number(eigen, "theta", g->training.theta);
}

static void add_losses(cJSON *root, const icma_training *t) {
    cJSON *losses = cJSON_AddArrayToObject(root, "losses");
    for (size_t i = 0; i < t->loss_count; i++) {
        cJSON *point = cJSON_CreateObject();
        add_number(point, "epoch", (double)t->loss_epoch[i]);
        add_number(point, "reconstruction", t->loss_reconstruction[i]);
        add_number(point, "kl", t->loss_kl[i]);
        cJSON_AddItemToArray(losses, point);
    }
}

static void add_distance(cJSON *list, const char *key, const char *name, const icma_distance *d, bool maximum) {
    cJSON *item = cJSON_CreateObject();
    cJSON_AddStringToObject(item, key, name);
    add_number(item, "relative_error", icma_distance_relative(d));
    add_number(item, "cosine", icma_distance_cosine(d));
    if (maximum)
        add_number(item, "maximum", d->maximum);
    cJSON_AddItemToArray(list, item);
}

static void add_errors(cJSON *root, const icma_pack_group *g) {
    const icma_safetensors *s = &g->group->signature;
    cJSON *tensors = cJSON_AddArrayToObject(root, "tensors"), *modules = cJSON_AddArrayToObject(root, "modules");
    for (size_t t = 0; t < s->tensor_count; t++)
        add_distance(tensors, "name", s->tensors[t].name, &g->measures.tensors[t], true);
    for (size_t p = 0; p < g->group->pairs.count; p++)
        add_distance(modules, "module", g->group->pairs.list[p].module, &g->measures.pairs[p], false);
}

icma_status icma_pack_record(icma_packer *p, const icma_pack_group *g, icma_error *error) {
    cJSON *root = cJSON_CreateObject();
    add_options(root, p, g);
    if (g->generator.kind == ICMA_GENERATOR_BASIS)
        add_eigen(root, g);
    add_losses(root, &g->training);
    add_errors(root, g);
    char *text = cJSON_PrintUnformatted(root);
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
