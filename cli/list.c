/* SPDX-License-Identifier: Apache-2.0 */
/* icma list: tasks, checkpoints, tier, bytes, error. */
#include "facts.h"
#include "memory.h"
#include "progress.h"
#include "sandbox.h"
#include "source.h"
#include "verbs.h"

typedef struct list_arguments {
    cli_common common;
    cli_decoding decoding; /* nothing is decoded: all defaults */
    cli_list tasks;
    bool names;
} list_arguments;

static const cli_option list_options[] = {
    CLI_ROW(CLI_LIST, 0, "task", "TASK", offsetof(list_arguments, tasks),
            "only this task, checkpoint by checkpoint; may be repeated"),
    CLI_ROW_FLAG(0, "names", offsetof(list_arguments, names), "only the names of tasks, one a line"),
    CLI_ROW_VERBOSE("every checkpoint on its own line"),
    CLI_ROW_JSON,
    CLI_ROW_NO_PROGRESS,
    CLI_ROW_NO_COLOR,
    CLI_ROW_HELP,
    CLI_ROW_END,
};

static void add_task_row(cli_table *table, const icma_task_info *info) {
    cli_stored sums = cli_stored_of(info);
    cli_table_cell(table, "%s", info->name);
    cli_table_cell(table, "%zu", info->checkpoint_count);
    cli_table_cell(table, "%s", cli_steps_of(info).text);
    cli_table_cell(table, "%s", cli_tiers_of(info).text);
    cli_table_cell(table, "%s", cli_size(sums.file_bytes).text);
    cli_table_cell(table, "%s", cli_size(info->bytes).text);
    cli_table_cell(table, "%s", cli_deviation(sums.dw_mean).text);
    cli_table_cell(table, "%s", cli_deviation(sums.dw_max).text);
    cli_table_cell(table, "%s", info->condition_origin);
}

static void add_checkpoint_rows(cli_table *table, const icma_task_info *info) {
    for (size_t i = 0; i < info->checkpoint_count; i++) {
        const icma_checkpoint_info *checkpoint = &info->checkpoints[i];
        cli_table_cell(table, "%s", info->name);
        cli_table_cell(table, "%s", cli_checkpoint_name(checkpoint->has_step, checkpoint->step).text);
        cli_table_cell(table, "%s", cli_tier_of(checkpoint).text);
        cli_table_cell(table, "%s", cli_size(checkpoint->file_size).text);
        cli_table_cell(table, "%s", cli_whole_text(checkpoint->parameters).text);
        cli_table_cell(table, "%s", cli_deviation((double)checkpoint->dw_error_mean).text);
        cli_table_cell(table, "%s", cli_deviation((double)checkpoint->dw_error_max).text);
        cli_table_cell(table, "%s", cli_deviation((double)checkpoint->relative_error).text);
    }
}

static void checkpoint_to_json(const icma_checkpoint_info *checkpoint, cJSON *list) {
    cJSON *object = cli_json_add_object(list, NULL);
    if (checkpoint->has_step)
        cli_json_whole(object, "step", checkpoint->step);
    else
        cli_json_null(object, "step");
    cli_json_text(object, "tier", icma_tier_name(checkpoint->tier));
    cli_json_bound(object, checkpoint->bound);
    cli_json_whole(object, "group", checkpoint->group);
    cli_json_whole(object, "original_bytes", checkpoint->file_size);
    cli_json_whole(object, "parameters", checkpoint->parameters);
    cli_json_dw_error(object, (double)checkpoint->dw_error_mean, (double)checkpoint->dw_error_max);
    cli_json_real(object, "relative_error", (double)checkpoint->relative_error);
    cli_json_hash(object, "xxh3", checkpoint->hash);
}

static void task_to_json(const icma_task_info *info, cJSON *list) {
    cli_stored sums = cli_stored_of(info);
    cJSON *object = cli_json_add_object(list, NULL);
    cli_json_text(object, "task", info->name);
    cli_json_text(object, "tier", cli_tiers_of(info).text);
    cli_json_whole(object, "bytes", info->bytes);
    cli_json_whole(object, "original_bytes", sums.file_bytes);
    cli_json_dw_error(object, sums.dw_mean, sums.dw_max);
    cli_json_real(object, "relative_error", sums.relative_error);
    cJSON *condition = cli_json_add_object(object, "condition");
    cli_json_text(condition, "origin", info->condition_origin);
    cli_json_whole(condition, "size", info->condition_size);
    cJSON *checkpoints = cli_json_add_array(object, "checkpoints");
    for (size_t i = 0; i < info->checkpoint_count; i++)
        checkpoint_to_json(&info->checkpoints[i], checkpoints);
}

typedef struct listing {
    cli_table table;
    cJSON *root, *tasks;
    bool json, by_checkpoint;
} listing;

static void add_task(listing *out, const icma_task_info *info) {
    if (out->json)
        task_to_json(info, out->tasks);
    else if (out->by_checkpoint)
        add_checkpoint_rows(&out->table, info);
    else
        add_task_row(&out->table, info);
}

static listing start_listing(const list_arguments *a, const char *path) {
    listing out = {.json = a->common.json, .by_checkpoint = a->common.verbose || a->tasks.count > 0};
    if (out.by_checkpoint)
        out.table = cli_table_of((const char *[]){"task", "checkpoint", "tier", ">file", ">parameters",
                                                  ">dW error, mean", ">max", ">relative error", NULL});
    else
        out.table = cli_table_of((const char *[]){"task", ">checkpoints", ">steps", "tier", ">files",
                                                  ">stored", ">dW error, mean", ">max", "condition", NULL});
    if (out.json) {
        out.root = cli_json_object();
        cli_json_text(out.root, "bundle", path);
        out.tasks = cli_json_add_array(out.root, "tasks");
    }
    return out;
}

/* Of their sections nothing is read. */
static void print_names(const icma_bundle *bundle, const size_t *tasks, size_t count) {
    for (size_t i = 0; i < count; i++) {
        cli_print_safe(stdout, icma_bundle_task_name(bundle, tasks[i]));
        putchar('\n');
    }
}

static icma_status list_tasks(const list_arguments *a, icma_bundle *bundle, const char *path,
                              icma_error *error) {
    size_t *tasks, count;
    icma_status status = cli_choose_tasks(bundle, path, &a->tasks, &tasks, &count, error);
    if (status)
        return status;
    if (a->names) {
        print_names(bundle, tasks, count);
        icma_free(tasks);
        return ICMA_OK;
    }
    listing out = start_listing(a, path);
    for (size_t i = 0; !status && i < count; i++) {
        icma_task_info info;
        cli_progress_show("list", (double)i, (double)count, "tasks", NULL);
        status = icma_bundle_task(bundle, tasks[i], &info, error);
        if (!status)
            add_task(&out, &info);
        icma_bundle_forget_task(bundle, tasks[i]);
    }
    icma_free(tasks);
    cli_progress_clear();
    if (status) {
        icma_error_set_file(error, path);
        cJSON_Delete(out.root);
        cli_table_free(&out.table);
        return status;
    }
    return out.json ? cli_json_print(out.root, stdout, error) : cli_table_print(&out.table, 0, stdout, error);
}

static icma_status run_list(const void *arguments, const cli_list *operands, icma_error *error) {
    const list_arguments *a = arguments;
    icma_bundle *bundle;
    char *path;
    if (a->names && (a->common.json || a->common.verbose))
        return icma_fail(error, ICMA_E_USAGE, NULL,
                         "--names prints nothing but names; leave out --json and --verbose");
    cli_sandbox_want(a->common.verbose);
    icma_status status = cli_bundle_open(operands, &a->decoding, &bundle, &path, error);
    if (status)
        return status;
    status = list_tasks(a, bundle, path, error);
    icma_bundle_close(bundle);
    icma_free(path);
    return status;
}

const cli_verb cli_verb_list = {
    .name = "list",
    .purpose = CLI_LOOKS,
    .also = "show dir cat tasks l",
    .alias = "ls",
    .operands = "[B.icma]",
    .summary = "list tasks and checkpoints with their errors",
    .description =
        "Lists the tasks of an archive: checkpoints, what was kept of them, the bytes that belong to\n"
        "them alone, and how far their decoded dW is from the originals, as measured when packing.",
    .options = list_options,
    .examples = (const char *const[]){"icma list loras.icma", "one line a task", "icma list --task cat",
                                      "checkpoints of cat in the only .icma file here", NULL},
    .exits = (const int[]){0, 1, 2, 4, 6, 7, 9, 10, -1},
    .most_operands = 1,
    .arguments_size = sizeof(list_arguments),
    .run = run_list,
};
