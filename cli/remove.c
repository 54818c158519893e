/* SPDX-License-Identifier: Apache-2.0 */
/* icma remove: tasks out of an archive. */
#include "facts.h"
#include "memory.h"
#include "message.h"
#include "progress.h"
#include "source.h"
#include "verbs.h"

typedef struct remove_arguments {
    cli_common common;
    cli_decoding decoding; /* nothing is decoded: all defaults */
    cli_list tasks;
    const char *output;
    bool force, dry_run;
} remove_arguments;

#define AT(field) offsetof(remove_arguments, field)

static const cli_option remove_options[] = {
    CLI_ROW(CLI_LIST, 0, "task", "TASK", AT(tasks), "the task to remove; may be repeated"),
    CLI_ROW(CLI_TEXT, 'o', "output", "FILE", AT(output),
            "write the new archive to FILE, leave the old one as it is"),
    CLI_ROW_FLAG('f', "force", AT(force), "replace FILE if it exists"),
    CLI_ROW_FLAG('n', "dry-run", AT(dry_run), "do all but let the new archive appear; tell what would go"),
    CLI_ROW_QUIET,
    CLI_ROW_JSON,
    CLI_ROW_NO_PROGRESS,
    CLI_ROW_NO_COLOR,
    CLI_ROW_HELP,
    CLI_ROW_END,
};

/* Unknown names are told with near ones, before anything is written. */
static icma_status check_names(const remove_arguments *a, const cli_list *operands, icma_error *error) {
    icma_bundle *bundle;
    char *path;
    size_t *tasks, count;
    icma_status status = cli_bundle_open(operands, &a->decoding, &bundle, &path, error);
    if (status)
        return status;
    status = cli_choose_tasks(bundle, path, &a->tasks, &tasks, &count, error);
    if (!status)
        icma_free(tasks);
    icma_bundle_close(bundle);
    icma_free(path);
    return status;
}

static void print_result(const remove_arguments *a, const char *path, const icma_remove_result *r) {
    fprintf(stderr, "%s%zu task%s with %zu checkpoint%s", a->dry_run ? "would remove " : "removed ", r->tasks,
            cli_plural(r->tasks), r->checkpoints, cli_plural(r->checkpoints));
    if (r->groups)
        fprintf(stderr, ", and %zu group%s that had no other", r->groups, cli_plural(r->groups));
    fputs(" from ", stderr);
    cli_print_safe(stderr, path);
    fprintf(stderr, "\n%-11s%s instead of %s; %zu task%s left, every byte of their sections as it was\n",
            "archive", cli_size(r->bytes_after).text, cli_size(r->bytes_before).text, r->tasks_left,
            cli_plural(r->tasks_left));
    if (r->groups == 0)
        fputs("generator  still knows what it learned from what was removed; to be rid of that, pack the "
              "others again\n",
              stderr);
}

static icma_status result_to_json(const remove_arguments *a, const char *path, const icma_remove_result *r,
                                  icma_error *error) {
    cJSON *root = cli_json_object();
    cli_json_text(root, "bundle", path);
    cli_json_text(root, "output", a->output ? a->output : path);
    cli_json_bool(root, "dry_run", a->dry_run);
    cli_json_whole(root, "bytes_before", r->bytes_before);
    cli_json_whole(root, "bytes_after", r->bytes_after);
    cJSON *removed = cli_json_add_object(root, "removed"), *left = cli_json_add_object(root, "left");
    cli_json_whole(removed, "tasks", r->tasks);
    cli_json_whole(removed, "checkpoints", r->checkpoints);
    cli_json_whole(removed, "groups", r->groups);
    cli_json_whole(left, "tasks", r->tasks_left);
    cli_json_whole(left, "groups", r->groups_left);
    return cli_json_print(root, stdout, error);
}

static icma_status run_remove(const void *arguments, const cli_list *operands, icma_error *error) {
    const remove_arguments *a = arguments;
    const char *path = operands->items[0];
    icma_remove_result result;
    if (a->tasks.count == 0)
        return icma_fail(error, ICMA_E_USAGE, NULL,
                         "no task was named; add --task TASK (icma list names them)");
    icma_status status = cli_check_change_output(a->output, a->force, a->dry_run, "remove", error);
    if (!status)
        status = check_names(a, operands, error);
    icma_change_options options = icma_change_defaults();
    options.output = a->output;
    options.overwrite = a->force;
    options.dry_run = a->dry_run;
    options.progress = cli_progress_hooks();
    if (!status)
        status = icma_bundle_remove(path, a->tasks.items, a->tasks.count, &options, &result, error);
    cli_progress_clear();
    if (status) {
        icma_error_set_file(error, path);
        return status;
    }
    if (a->common.json)
        return result_to_json(a, path, &result, error);
    if (!a->common.quiet)
        print_result(a, path, &result);
    return ICMA_OK;
}

const cli_verb cli_verb_remove = {
    .name = "remove",
    .also = "rm delete del drop",
    .surplus = "a task to remove is --task TASK",
    .operands = "B.icma --task TASK...",
    .summary = "remove tasks from an archive",
    .description =
        "Takes tasks out of an archive, in place or into another file. All other sections keep their\n"
        "bytes, so their adapters come out as before. What the generator learned from the removed\n"
        "tasks stays in it: to erase them altogether, pack the others again.",
    .options = remove_options,
    .examples = (const char *const[]){"icma remove loras.icma --task cat", "without cat",
                                      "icma remove loras.icma --task cat -o fewer.icma",
                                      "loras.icma stays as it is", NULL},
    .exits = (const int[]){0, 1, 2, 4, 6, 7, 8, 9, 10, -1},
    .least_operands = 1,
    .most_operands = 1,
    .arguments_size = sizeof(remove_arguments),
    .run = run_remove,
};
