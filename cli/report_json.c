/* SPDX-License-Identifier: Apache-2.0 */
#include "report_eval.h"
#include "report_map.h"

#include <math.h>

static void timeline_to_json(const cli_report_task *task, cJSON *object) {
    cJSON *list = cli_json_add_array(object, "timeline");
    for (size_t i = 0; i < task->checkpoints; i++) {
        const cli_report_checkpoint *c = &task->list[i];
        cJSON *point = cli_json_add_object(list, NULL);
        if (c->has_step)
            cli_json_whole(point, "step", c->step);
        else
            cli_json_null(point, "step");
        cli_json_real(point, "bytes", c->bytes);
        cli_json_dw_error(point, c->dw_mean, c->dw_max);
        cli_json_real(point, "relative_error", c->relative_error);
    }
}

static void tasks_to_json(const cli_report *r, cJSON *root) {
    cJSON *list = cli_json_add_array(root, "tasks");
    for (size_t i = 0; i < r->task_count; i++) {
        const cli_report_task *task = &r->tasks[i];
        cJSON *object = cli_json_add_object(list, NULL);
        cli_json_text(object, "task", task->name);
        cli_json_whole(object, "checkpoints", task->checkpoints);
        cli_json_text(object, "tier", task->tiers.text);
        cli_json_whole(object, "bytes", task->bytes);
        cli_json_whole(object, "original_bytes", task->stored.file_bytes);
        cli_json_dw_error(object, task->stored.dw_mean, task->stored.dw_max);
        cli_json_real(object, "relative_error", task->stored.relative_error);
        cli_json_real(object, "bits_per_parameter", cli_report_bits(r, task));
        timeline_to_json(task, object);
    }
}

static void generator_to_json(const cli_report *r, cJSON *root) {
    const cli_balance *b = &r->balance;
    cJSON *object = cli_json_add_object(root, "generator");
    cli_json_whole(object, "bytes", r->bytes.generator);
    cli_json_whole(object, "shared_bytes", b->shared);
    cli_json_real(object, "marginal_bytes", b->marginal);
    cli_json_whole(object, "half_precision_bytes", b->half_size);
    cli_json_real(object, "saved_bytes", (double)b->saved);
    if (b->break_even)
        cli_json_whole(object, "break_even", b->break_even);
    else
        cli_json_null(object, "break_even");
}

static void groups_to_json(const cli_report *r, cJSON *root) {
    cJSON *list = cli_json_add_array(root, "groups");
    for (size_t i = 0; i < r->group_count; i++) {
        const icma_generator_info *g = &r->groups[i].generator;
        cJSON *object = cli_json_add_object(list, NULL);
        cli_json_text(object, "kind", g->kind);
        cli_json_whole(object, "components", g->components_a + g->components_b + g->components_other);
        cli_json_whole(object, "latent_dim", g->latent_dim);
        cli_json_whole(object, "tensors", g->tensors);
        cli_json_whole(object, "tensors_verbatim", g->tensors_verbatim);
        cJSON *verbatim = cli_json_add_array(object, "verbatim");
        for (size_t j = 0; j < r->groups[i].verbatim_count; j++)
            cli_json_text(verbatim, NULL, r->groups[i].verbatim[j]);
        cli_json_copy(object, "record", r->groups[i].record);
    }
}

static void place_to_json(cJSON *object, const char *key, const double place[2]) {
    cJSON *list = cli_json_add_array(object, key);
    cli_json_real(list, NULL, place[0]);
    cli_json_real(list, NULL, place[1]);
}

static void map_to_json(const cli_report *r, cJSON *root) {
    const cli_map *m = r->map;
    if (!m) {
        cli_json_null(root, "map");
        return;
    }
    cJSON *object = cli_json_add_object(root, "map");
    cli_json_text(object, "vectors", m->samples ? "samples" : "conditions");
    cli_json_whole(object, "dims", m->dims);
    cli_json_whole(object, "all", m->all);
    place_to_json(object, "explained", m->share);
    cli_json_real(object, "perplexity", m->has_tsne ? m->perplexity : NAN);
    cli_json_real(object, "kl_divergence", m->has_tsne ? m->divergence : NAN);
    cli_json_real(object, "silhouette", m->silhouette);
    cJSON *silhouettes = cli_json_add_array(object, "silhouettes"),
          *points = cli_json_add_array(object, "points");
    for (size_t i = 0; i < r->task_count; i++) {
        if (isnan(m->by_task[i]))
            continue;
        cJSON *task = cli_json_add_object(silhouettes, NULL);
        cli_json_text(task, "task", r->tasks[i].name);
        cli_json_real(task, "silhouette", m->by_task[i]);
    }
    for (size_t i = 0; i < m->count; i++) {
        cJSON *point = cli_json_add_object(points, NULL);
        cli_json_text(point, "task", r->tasks[m->points[i].task].name);
        place_to_json(point, "pca", m->points[i].pca);
        if (m->has_tsne)
            place_to_json(point, "tsne", m->points[i].tsne);
        else
            cli_json_null(point, "tsne");
    }
}

static void eval_to_json(const cli_report *r, cJSON *root) {
    const cli_eval *e = r->eval;
    if (!e) {
        cli_json_null(root, "eval");
        return;
    }
    cJSON *object = cli_json_add_object(root, "eval");
    cli_json_text(object, "command", e->options->command);
    cli_json_text(object, "base_command", e->base_command);
    cli_json_real(object, "gain_kept", cli_eval_kept(e));
    cli_json_whole(object, "failed", e->failed);
    cJSON *list = cli_json_add_array(object, "scores");
    for (size_t i = 0; i < e->count; i++) {
        const cli_eval_row *row = &e->rows[i];
        cJSON *score = cli_json_add_object(list, NULL);
        cli_json_text(score, "task", row->task);
        if (row->has_step)
            cli_json_whole(score, "step", row->step);
        else
            cli_json_null(score, "step");
        cli_json_real(score, "base", row->base);
        cli_json_real(score, "original", row->original);
        cli_json_real(score, "reconstructed", row->reconstructed);
        cli_json_real(score, "gain_kept", row->kept);
        cli_json_text(score, "failure", row->failure);
    }
}

icma_status cli_report_json(const cli_report *r, FILE *out, icma_error *error) {
    cJSON *root = cli_json_object();
    cli_json_text(root, "bundle", r->path);
    cli_json_bytes(root, &r->bytes);
    cJSON *originals = cli_json_add_object(root, "originals");
    cli_json_whole(originals, "files", r->totals.checkpoints);
    cli_json_whole(originals, "bytes", r->totals.file_bytes);
    cli_json_whole(originals, "parameters", r->totals.parameters);
    cli_json_real(root, "bits_per_parameter", 8 * (double)r->bytes.total / (double)r->totals.parameters);
    cli_json_real(root, "ratio", (double)r->totals.file_bytes / (double)r->bytes.total);
    if (r->measure && r->measure->zstd) {
        cJSON *zstd = cli_json_add_object(root, "zstd19");
        cli_json_whole(zstd, "raw", r->measure->original_bytes);
        cli_json_whole(zstd, "size", r->measure->zstd_bytes);
    } else {
        cli_json_null(root, "zstd19");
    }
    generator_to_json(r, root);
    groups_to_json(r, root);
    tasks_to_json(r, root);
    map_to_json(r, root);
    eval_to_json(r, root);
    if (r->measure)
        cli_measure_to_json(r->measure, root);
    else
        cli_json_null(root, "against");
    return cli_json_print(root, out, error);
}
