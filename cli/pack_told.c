/* SPDX-License-Identifier: Apache-2.0 */
/* What pack tells in the end: the fidelity summary, in words or as JSON. */
#include "pack.h"

#include "facts.h"
#include "message.h"

#include <math.h>
#include <string.h>

static const char *condition_of(const icma_pack_result *result, const icma_pack_task *task) {
    return !result->has_generator ? "none" : task->condition_learned ? "learned" : "given";
}

static icma_status print_tasks(const icma_pack_result *result, icma_error *error) {
    cli_table table =
        cli_table_of((const char *[]){"task", ">checkpoints", ">dW error, mean", ">max", ">relative error",
                                      ">cosine", ">active latents", "condition", NULL});
    for (size_t i = 0; i < result->task_count; i++) {
        const icma_pack_task *task = &result->tasks[i];
        cli_table_cell(&table, "%s", task->name);
        cli_table_cell(&table, "%zu", task->checkpoints);
        cli_table_cell(&table, "%s", cli_deviation(task->dw_error_mean).text);
        cli_table_cell(&table, "%s", cli_deviation(task->dw_error_max).text);
        cli_table_cell(&table, "%s", cli_deviation(task->relative_error).text);
        cli_table_cell(&table, "%s", cli_cosine(task->cosine).text);
        cli_table_cell(&table, "%zu", task->latents_active);
        cli_table_cell(&table, "%s", condition_of(result, task));
    }
    return cli_table_print(&table, 0, stderr, error);
}

static double ratio_of(const icma_pack_result *result) {
    return (double)result->original_bytes / (double)result->bytes.total;
}

static double bits_of(const icma_pack_result *result) {
    return result->original_parameters ? 8 * (double)result->bytes.total / (double)result->original_parameters
                                       : NAN;
}

static void print_sizes(const icma_pack_result *r) {
    fprintf(stderr, "\n%-11s%s in %s file%s, %s parameters\n", "originals", cli_size(r->original_bytes).text,
            cli_whole_text(r->original_files).text, cli_plural(r->original_files),
            cli_many((double)r->original_parameters).text);
    fprintf(stderr, "%-11s%s, %s of them (%.1f to 1), %.3f bits a parameter\n", "archive",
            cli_size(r->bytes.total).text,
            cli_percent((double)r->bytes.total, (double)r->original_bytes).text, ratio_of(r), bits_of(r));
    if (r->zstd_sample_raw)
        fprintf(stderr, "%-11s%s of them, on a sample (each task's last file)\n", "zstd -19",
                cli_percent((double)r->zstd_sample_size, (double)r->zstd_sample_raw).text);
}

static void print_generator(const icma_pack_result *r) {
    if (!r->has_generator) {
        fprintf(stderr, "%-11snone: %s\n", "generator",
                r->tier == ICMA_TIER_LOSSLESS ? "files are predicted from one another" : "residuals alone, as asked for or because they take fewer bytes");
        return;
    }
    fprintf(stderr, "%-11s%s, ", "generator", r->generator);
    if (r->components)
        fprintf(stderr, "%zu component%s, ", r->components, cli_plural(r->components));
    fprintf(stderr, "%zu latent dimension%s kept\n", r->active_latents, cli_plural(r->active_latents));
    if (!isnan(r->within_task_explained))
        fprintf(stderr, r->within_task_explained > 0 ? "%-11sexplains %.1f %% of the variance within tasks\n"
                                                     : "%-11stells checkpoints of a task hardly apart: they differ by less than the bound\n",
                "", 100 * r->within_task_explained);
    if (r->break_even)
        fprintf(stderr, "%-11ssmaller than 16-bit files from %s adapter%s on\n", "",
                cli_whole_text(r->break_even).text, cli_plural(r->break_even));
    else
        fprintf(stderr, "%-11snever smaller than 16-bit files of the same adapters\n", "");
}

static void print_time(const icma_pack_result *r) {
    double total = r->seconds.read + r->seconds.gram + r->seconds.train + r->seconds.encode +
                   r->seconds.check + r->seconds.write;
    if (strcmp(r->device, "cpu") != 0)
        fprintf(stderr, "%-11s%s\n", "device", r->device);
    fprintf(stderr, "%-11s%s: read %.1f, gram %.1f, train %.1f, encode %.1f, check %.1f, write %.1f\n",
            "time", cli_seconds(total).text, r->seconds.read, r->seconds.gram, r->seconds.train,
            r->seconds.encode, r->seconds.check, r->seconds.write);
}

/* What is promised of every checkpoint. */
static void print_kept(const icma_pack_result *r) {
    static const char *const limits[] = {
        [ICMA_BOUND_DW] = "dW error of every module at most",
        [ICMA_BOUND_REL] = "relative error of every tensor at most",
        [ICMA_BOUND_ABS] = "difference of every weight at most",
    };
    fprintf(stderr, "%-11s%s", "kept", icma_tier_name(r->tier));
    if (r->tier == ICMA_TIER_BOUNDED)
        fprintf(stderr, ": %s %.4g, measured on the decoded files", limits[r->bound.kind], (double)r->bound.value);
    if (r->tier == ICMA_TIER_LOSSLESS)
        fputs(": the files come back bit for bit", stderr);
    fputc('\n', stderr);
    if (r->hashes_dropped)
        fprintf(stderr, "%-11shashes of the weights in the metadata of %s file%s, which would not be those of the decoded ones\n", "left out",
                cli_whole_text(r->hashes_dropped).text, cli_plural(r->hashes_dropped));
}

/* All that a bound asked for had to be kept as it was. */
static bool is_too_tight(const icma_pack_result *r) {
    bool exact = r->tier == ICMA_TIER_BOUNDED && r->bytes.residuals == 0 && r->bytes.verbatim > r->bytes.total / 2;
    for (size_t i = 0; i < r->task_count; i++)
        exact = exact && r->tasks[i].relative_error == 0;
    return exact;
}

static icma_status print_result(const char *path, const icma_pack_result *r, icma_error *error) {
    size_t checkpoints = 0;
    for (size_t i = 0; i < r->task_count; i++)
        checkpoints += r->tasks[i].checkpoints;
    fprintf(stderr, "%spacked", cli_style(stderr, CLI_GREEN));
    fprintf(stderr, "%s %zu checkpoint%s of %zu task%s into ", cli_style(stderr, CLI_PLAIN), checkpoints,
            cli_plural(checkpoints), r->task_count, cli_plural(r->task_count));
    cli_print_safe(stderr, path);
    fputs("; every one was decoded again and checked\n\n", stderr);
    icma_status status = print_tasks(r, error);
    fputc('\n', stderr);
    if (!status)
        status = cli_print_bytes(&r->bytes, stderr, error);
    print_sizes(r);
    print_kept(r);
    print_generator(r);
    print_time(r);
    if (is_too_tight(r))
        cli_note("no weight could be coded to a bound this tight, all are kept bit for bit; --tier lossless is as exact and mostly smaller");
    return status;
}

static void tasks_to_json(const icma_pack_result *result, cJSON *root) {
    cJSON *tasks = cli_json_add_array(root, "tasks");
    for (size_t i = 0; i < result->task_count; i++) {
        const icma_pack_task *task = &result->tasks[i];
        cJSON *object = cli_json_add_object(tasks, NULL);
        cli_json_text(object, "task", task->name);
        cli_json_whole(object, "checkpoints", task->checkpoints);
        cli_json_dw_error(object, task->dw_error_mean, task->dw_error_max);
        cli_json_real(object, "relative_error", task->relative_error);
        cli_json_real(object, "cosine", task->cosine);
        cli_json_text(object, "condition", condition_of(result, task));
        cli_json_whole(object, "active_latents", task->latents_active);
    }
}

static void generator_to_json(const icma_pack_result *r, cJSON *root) {
    cJSON *object = cli_json_add_object(root, "generator");
    cli_json_text(object, "kind", r->generator ? r->generator : "none");
    cli_json_whole(object, "components", r->components);
    cli_json_whole(object, "active_latents", r->active_latents);
    cli_json_real(object, "within_task_explained", r->within_task_explained);
    if (r->break_even)
        cli_json_whole(object, "break_even", r->break_even);
    else
        cli_json_null(object, "break_even");
}

static icma_status result_to_json(const char *path, const icma_pack_result *r, icma_error *error) {
    cJSON *root = cli_json_object();
    cli_json_text(root, "bundle", path);
    cli_json_bytes(root, &r->bytes);
    cJSON *originals = cli_json_add_object(root, "originals");
    cli_json_whole(originals, "files", r->original_files);
    cli_json_whole(originals, "bytes", r->original_bytes);
    cli_json_whole(originals, "parameters", r->original_parameters);
    cli_json_real(root, "bits_per_parameter", bits_of(r));
    cli_json_real(root, "ratio", ratio_of(r));
    cli_json_text(root, "tier", icma_tier_name(r->tier));
    cli_json_bound(root, r->bound);
    cli_json_whole(root, "hashes_dropped", r->hashes_dropped);
    cli_json_text(root, "device", r->device);
    tasks_to_json(r, root);
    cli_json_whole(root, "groups", r->groups);
    generator_to_json(r, root);
    cJSON *sample = cli_json_add_object(root, "zstd19_sample");
    cli_json_whole(sample, "raw", r->zstd_sample_raw);
    cli_json_whole(sample, "size", r->zstd_sample_size);
    cJSON *seconds = cli_json_add_object(root, "seconds");
    cli_json_real(seconds, "read", r->seconds.read);
    cli_json_real(seconds, "gram", r->seconds.gram);
    cli_json_real(seconds, "train", r->seconds.train);
    cli_json_real(seconds, "encode", r->seconds.encode);
    cli_json_real(seconds, "check", r->seconds.check);
    cli_json_real(seconds, "write", r->seconds.write);
    return cli_json_print(root, stdout, error);
}

icma_status cli_pack_tell_result(const char *path, const icma_pack_result *result, const cli_common *common,
                                 icma_error *error) {
    if (common->json)
        return result_to_json(path, result, error);
    return common->quiet ? ICMA_OK : print_result(path, result, error);
}
