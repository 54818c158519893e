/* SPDX-License-Identifier: Apache-2.0 */
/* What add tells in the end, in words or as JSON. */
#include "add.h"

#include "facts.h"

#include <math.h>

static size_t checkpoints_of(const icma_add_result *r) {
    size_t count = 0;
    for (size_t i = 0; i < r->pack.task_count; i++)
        count += r->pack.tasks[i].checkpoints;
    return count;
}

static double each(double bytes, size_t checkpoints) {
    return checkpoints ? bytes / (double)checkpoints : NAN;
}

static icma_status print_tasks(const icma_add_result *r, icma_error *error) {
    cli_table table = cli_table_of((const char *[]){"task", ">checkpoints", ">before", ">dW error, mean",
                                                    ">max", ">relative error", ">cosine", NULL});
    for (size_t i = 0; i < r->pack.task_count; i++) {
        const icma_pack_task *task = &r->pack.tasks[i];
        cli_table_cell(&table, "%s", task->name);
        cli_table_cell(&table, "%zu", task->checkpoints);
        cli_table_cell(&table, "%zu", r->checkpoints_before[i]);
        cli_table_cell(&table, "%s", cli_deviation(task->dw_error_mean).text);
        cli_table_cell(&table, "%s", cli_deviation(task->dw_error_max).text);
        cli_table_cell(&table, "%s", cli_deviation(task->relative_error).text);
        cli_table_cell(&table, "%s", cli_cosine(task->cosine).text);
    }
    return cli_table_print(&table, 0, stderr, error);
}

static void print_group(const icma_add_group *g) {
    fprintf(stderr, "%-11s%zu checkpoint%s of ", "generator", g->checkpoints, cli_plural(g->checkpoints));
    if (g->task)
        cli_print_safe(stderr, g->task);
    else
        fprintf(stderr, "%zu task%s", g->tasks, cli_plural(g->tasks));
    fprintf(stderr,
            g->task     ? " went on in group %u (%s)"
            : g->joined ? " joined group %u (%s)"
                        : " made group %u (%s)",
            g->group, g->generator);
    fprintf(stderr, ", in %s", cli_size(g->bytes).text);
    if (g->task)
        fprintf(stderr, ", %.0f bytes each", each((double)g->bytes, g->checkpoints));
    if (!isnan(g->explained))
        fprintf(stderr, "\n%-11sthe old basis holds %.1f %% of their energy", "", 100 * g->explained);
    if (!isnan(g->old_bytes) && !isnan(g->new_bytes))
        fprintf(stderr, "\n%-11sabout %s was expected with the old generator, %s with one of their own", "",
                cli_size((uint64_t)g->old_bytes).text, cli_size((uint64_t)g->new_bytes).text);
    fputc('\n', stderr);
}

static void print_sizes(const icma_add_result *r) {
    uint64_t added = r->pack.bytes.total - r->bytes_before;
    size_t checkpoints = checkpoints_of(r);
    fprintf(stderr, "\n%-11s%s in %s file%s\n", "originals", cli_size(r->pack.original_bytes).text,
            cli_whole_text(r->pack.original_files).text, cli_plural(r->pack.original_files));
    fprintf(stderr, "%-11s%s, %s more than before (%s of the new files)\n", "archive",
            cli_size(r->pack.bytes.total).text, cli_size(added).text,
            cli_percent((double)added, (double)r->pack.original_bytes).text);
    fprintf(stderr,
            "%-11s%.0f bytes a new checkpoint, all counted; of the archive before, %.0f a checkpoint, %.0f "
            "of them its task's own\n",
            "", each((double)added, checkpoints), each((double)r->bytes_before, r->old_checkpoints),
            each((double)r->old_bytes, r->old_checkpoints));
}

/* Whether packing everything together would be worth it. */
static void print_advice(const icma_add_result *r) {
    if (isnan(r->packed_anew))
        return;
    double gain = 1 - r->packed_anew / (double)r->pack.bytes.total;
    fprintf(stderr, "%-11sall packed together would take about %s or less, by the rate model: ", "advice",
            cli_size((uint64_t)r->packed_anew).text);
    if (gain > 0.02)
        fprintf(stderr, "%.0f %% less; worth it where the originals are still at hand\n", 100 * gain);
    else
        fputs("not worth it\n", stderr);
}

static icma_status print_result(const char *path, bool dry_run, const icma_add_result *r, icma_error *error) {
    size_t checkpoints = checkpoints_of(r);
    fprintf(stderr, "%s %zu checkpoint%s of %zu task%s to ", dry_run ? "would add" : "added", checkpoints,
            cli_plural(checkpoints), r->pack.task_count, cli_plural(r->pack.task_count));
    cli_print_safe(stderr, path);
    fputs("; every one was decoded again and checked\n", stderr);
    if (r->skipped)
        fprintf(stderr,
                "%zu checkpoint%s of these tasks and steps %s there already: passed over; each task's last "
                "was compared\n",
                r->skipped, cli_plural(r->skipped), r->skipped == 1 ? "is" : "are");
    fputc('\n', stderr);
    icma_status status = print_tasks(r, error);
    print_sizes(r);
    for (size_t i = 0; i < r->group_count; i++)
        print_group(&r->groups[i]);
    print_advice(r);
    return status;
}

static void groups_to_json(const icma_add_result *r, cJSON *root) {
    cJSON *groups = cli_json_add_array(root, "groups");
    for (size_t i = 0; i < r->group_count; i++) {
        const icma_add_group *g = &r->groups[i];
        cJSON *object = cli_json_add_object(groups, NULL);
        cli_json_whole(object, "group", g->group);
        cli_json_bool(object, "joined", g->joined);
        cli_json_text(object, "generator", g->generator);
        cli_json_whole(object, "tasks", g->tasks);
        cli_json_whole(object, "checkpoints", g->checkpoints);
        cli_json_whole(object, "bytes", g->bytes);
        cli_json_text(object, "continues", g->task);
        cli_json_real(object, "explained", g->explained);
        cli_json_real(object, "expected_old_bytes", g->old_bytes);
        cli_json_real(object, "expected_new_bytes", g->new_bytes);
    }
}

static icma_status result_to_json(const char *path, const char *source, bool dry_run,
                                  const icma_add_result *r, icma_error *error) {
    cJSON *root = cli_json_object();
    cli_json_text(root, "bundle", source);
    cli_json_text(root, "output", path);
    cli_json_bool(root, "dry_run", dry_run);
    cli_json_whole(root, "bytes_before", r->bytes_before);
    cli_json_bytes(root, &r->pack.bytes);
    cJSON *originals = cli_json_add_object(root, "originals"), *tasks = cli_json_add_array(root, "tasks");
    cli_json_whole(originals, "files", r->pack.original_files);
    cli_json_whole(originals, "bytes", r->pack.original_bytes);
    cli_json_whole(originals, "parameters", r->pack.original_parameters);
    cli_json_whole(root, "skipped", r->skipped);
    cli_json_text(root, "tier", icma_tier_name(r->pack.tier));
    cli_json_bound(root, r->pack.bound);
    for (size_t i = 0; i < r->pack.task_count; i++) {
        const icma_pack_task *task = &r->pack.tasks[i];
        cJSON *object = cli_json_add_object(tasks, NULL);
        cli_json_text(object, "task", task->name);
        cli_json_whole(object, "checkpoints", task->checkpoints);
        cli_json_whole(object, "checkpoints_before", r->checkpoints_before[i]);
        cli_json_dw_error(object, task->dw_error_mean, task->dw_error_max);
        cli_json_real(object, "relative_error", task->relative_error);
        cli_json_real(object, "cosine", task->cosine);
    }
    groups_to_json(r, root);
    cJSON *before = cli_json_add_object(root, "before");
    cli_json_whole(before, "checkpoints", r->old_checkpoints);
    cli_json_whole(before, "tasks_own_bytes", r->old_bytes);
    cli_json_real(root, "packed_anew_bytes", r->packed_anew);
    return cli_json_print(root, stdout, error);
}

icma_status cli_add_tell(const char *path, const char *source, bool dry_run, const icma_add_result *result,
                         const cli_common *common, icma_error *error) {
    if (common->json)
        return result_to_json(path, source, dry_run, result, error);
    return common->quiet ? ICMA_OK : print_result(path, dry_run, result, error);
}
