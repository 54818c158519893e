/* SPDX-License-Identifier: Apache-2.0 */
/* icma unpack: which adapters, and in what order they are decoded. How they are written: unpack_write.c. */
#include "unpack.h"

#include "facts.h"
#include "memory.h"
#include "message.h"
#include "progress.h"
#include "signals.h"
#include "source.h"
#include "verbs.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define AT(field) offsetof(cli_unpack, field)

static const cli_option unpack_options[] = {
    CLI_ROW_HEADING("What to unpack"),
    CLI_ROW(CLI_LIST, 0, "task", "TASK", AT(tasks), "only this task; may be repeated (default all)"),
    CLI_ROW(CLI_TEXT, 0, "checkpoint", "last|N|all", AT(checkpoint),
            "each task's last checkpoint (default), the one of\nstep N, or all"),
    CLI_ROW_FLAG(0, "sample", AT(sample), "draw a new adapter from the task's condition alone"),
    CLI_ROW(CLI_WHOLE, 0, "seed", "S", AT(seed), "seed of --sample (default 0)"),
    CLI_ROW_HEADING("Where to"),
    CLI_ROW(CLI_TEXT, 'C', "directory", "DIR", AT(folder),
            "folder to unpack into (default: the current one)"),
    CLI_ROW(CLI_TEXT, 'o', "output", "FILE", AT(output),
            "one adapter's safetensors, into FILE or, with -, to\nstandard output"),
    CLI_ROW_FLAG('f', "force", AT(force), "replace what exists"),
    CLI_ROW_FLAG('k', "keep-existing", AT(keep_existing), "keep what exists, unpack the rest"),
    CLI_ROW_FLAG('n', "dry-run", AT(dry_run), "show what would be written; write nothing"),
    CLI_ROW_FLAG(0, "keep-going", AT(keep_going), "name damaged adapters and unpack the others (exit 3)"),
    CLI_ROW_FLAG(0, "no-check", AT(no_check), "do not compare the checksums of decoded adapters"),
    CLI_ROW_HEADING("Machine"),
    CLI_ROWS_DECODING(cli_unpack, decoding),
    CLI_ROW_HEADING("Talk"),
    CLI_ROW_QUIET,
    CLI_ROW_VERBOSE("name every file, and tell what decodes it and why"),
    CLI_ROW_JSON,
    CLI_ROW_NO_PROGRESS,
    CLI_ROW_NO_COLOR,
    CLI_ROW_HELP,
    CLI_ROW_END,
};

/* --- the plan --------------------------------------------------------------------------------------------
 */

static icma_status add_to_plan(cli_unpack_plan *plan, const icma_task_info *info, size_t task,
                               size_t checkpoint, bool in_subfolder, icma_error *error) {
    cli_unpack_item *items = icma_resize_array(plan->items, plan->count + 1, sizeof *items);
    if (!items)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the plan");
    plan->items = items;
    const icma_checkpoint_info *kept = &info->checkpoints[checkpoint];
    cli_unpack_item *item = &items[plan->count++];
    *item = (cli_unpack_item){.task = task,
                              .checkpoint = checkpoint,
                              .has_step = kept->has_step,
                              .step = kept->step,
                              .size = kept->file_size};
    icma_buffer folder = {0};
    icma_write_bytes(&folder, info->name, strlen(info->name));
    if (in_subfolder && kept->has_step)
        cli_append(&folder, "/checkpoint-%" PRIu64, kept->step);
    item->folder = folder.failed ? NULL : icma_copy_text((const char *)folder.data, folder.size);
    icma_buffer_free(&folder);
    return item->folder ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the plan");
}

static icma_status no_such_checkpoint(const char *path, const icma_task_info *info, uint64_t step,
                                      icma_error *error) {
    return icma_fail(error, ICMA_E_NOT_FOUND, path,
                     "task \"%s\" has no checkpoint %" PRIu64 "; it has %s (icma list -v)", info->name, step,
                     cli_steps_of(info).text);
}

static icma_status plan_task(const cli_unpack *a, icma_bundle *bundle, const char *path, size_t task,
                             cli_unpack_plan *plan, icma_error *error) {
    icma_task_info info;
    icma_status status = icma_bundle_task(bundle, task, &info, error);
    uint64_t step;
    if (status)
        return status;
    if (info.checkpoint_count == 0)
        return icma_fail(error, ICMA_E_NOT_FOUND, path, "task \"%s\" has no checkpoints", info.name);
    if (!a->checkpoint || strcmp(a->checkpoint, "last") == 0)
        return add_to_plan(plan, &info, task, info.checkpoint_count - 1, false, error);
    bool all = !cli_parse_whole(a->checkpoint, &step), found = all;
    /* Backwards: lossless checkpoints are predicted from those that follow. */
    for (size_t i = info.checkpoint_count; !status && i-- > 0;) {
        if (!all && (!info.checkpoints[i].has_step || info.checkpoints[i].step != step))
            continue;
        found = true;
        status = add_to_plan(plan, &info, task, i, all, error);
    }
    return status || found ? status : no_such_checkpoint(path, &info, step, error);
}

static void free_plan(cli_unpack_plan *plan) {
    for (size_t i = 0; i < plan->count; i++)
        icma_free(plan->items[i].folder);
    icma_free(plan->items);
}

/* With --keep-going a task whose table is damaged is named and left out. */
static icma_status make_plan(const cli_unpack *a, icma_bundle *bundle, const char *path,
                             cli_unpack_plan *plan, bool *partial, icma_error *error) {
    size_t *tasks, count;
    icma_status status = cli_choose_tasks(bundle, path, &a->tasks, &tasks, &count, error);
    for (size_t i = 0; !status && i < count; i++) {
        icma_error detail = {0};
        icma_status planned = plan_task(a, bundle, path, tasks[i], plan, &detail);
        icma_bundle_forget_task(bundle, tasks[i]);
        if (planned == ICMA_OK)
            continue;
        icma_error_set_file(&detail, path);
        if (a->keep_going && planned == ICMA_E_CORRUPT) {
            cli_warning(path, "task \"%s\" is left out: %s", icma_bundle_task_name(bundle, tasks[i]),
                        detail.message);
            *partial = true;
            continue;
        }
        status = planned;
        *error = detail;
    }
    icma_free(tasks);
    return status;
}

/* --- the work --------------------------------------------------------------------------------------------
 */

/* Damage is found before anything is written, as far as checksums tell: what belongs to the planned tasks or
 * to all. */
static icma_status check_sections(icma_bundle *bundle, const cli_unpack_plan *plan, icma_error *error) {
    for (size_t i = 0; i < icma_bundle_section_count(bundle); i++) {
        icma_section_info section = icma_bundle_section(bundle, i);
        bool wanted = section.task == UINT32_MAX;
        for (size_t j = 0; !wanted && j < plan->count; j++)
            wanted = plan->items[j].task == section.task;
        icma_error detail = {0};
        icma_status status = wanted ? icma_bundle_check_section(bundle, i, &detail) : ICMA_OK;
        if (status == ICMA_E_CORRUPT && section.task != UINT32_MAX)
            icma_fail(error, status, detail.file, "task %s: %s; --keep-going unpacks the others",
                      icma_bundle_task_name(bundle, section.task), detail.message);
        else if (status)
            *error = detail;
        else
            status = cli_check_signal(error);
        if (status)
            return status;
    }
    return ICMA_OK;
}

static icma_status decode(const cli_unpack *a, icma_bundle *bundle, const cli_unpack_item *item,
                          icma_decoded *decoded, icma_error *error) {
    icma_status status = cli_check_signal(error);
    if (status)
        return status;
    if (a->sample)
        return cli_bundle_sample(bundle, item->task, a->seed.value, decoded, error);
    return cli_bundle_decode(bundle, item->task, item->checkpoint, decoded, error);
}

static icma_status unpack_item(const cli_unpack *a, icma_bundle *bundle, cli_unpack_item *item,
                               icma_error *error) {
    icma_decoded decoded = {0};
    icma_status status = decode(a, bundle, item, &decoded, error);
    if (!status && a->output)
        status = cli_unpack_one(a, item, &decoded, error);
    else if (!status)
        status = cli_unpack_folder(a, item, &decoded, error);
    icma_decoded_free(&decoded);
    return status;
}

static icma_status unpack_all(const cli_unpack *a, icma_bundle *bundle, const char *path,
                              cli_unpack_plan *plan, bool *partial, icma_error *error) {
    for (size_t i = 0; i < plan->count; i++) {
        cli_unpack_item *item = &plan->items[i];
        cli_progress_show("unpack", (double)i, (double)plan->count, "adapters", item->folder);
        if (item->kept_existing)
            continue;
        icma_error detail = {0};
        icma_status status = unpack_item(a, bundle, item, &detail);
        bool damage = status == ICMA_E_CORRUPT || status == ICMA_E_LIMIT || status == ICMA_E_UNSUPPORTED;
        if (status && a->keep_going && damage) {
            cli_warning(path, "%s is left out: %s", item->folder, detail.message);
            *partial = true;
        } else if (status) {
            if (status == ICMA_E_CORRUPT)
                icma_fail(error, status, path, "%s: %s%s", item->folder, detail.message, plan->count > 1 ? "; --keep-going unpacks the others" : "");
            else {
                icma_error_set_file(&detail, path);
                *error = detail;
            }
            return status;
        }
        if (i + 1 == plan->count || plan->items[i + 1].task != item->task)
            icma_bundle_forget_task(bundle, item->task);
    }
    return ICMA_OK;
}

static bool any_is_there(const cli_unpack_plan *plan) {
    for (size_t i = 0; i < plan->count; i++)
        if (plan->items[i].written || plan->items[i].kept_existing)
            return true;
    return false;
}

/* That will be decoded. */
static size_t adapters_of(const cli_unpack_plan *plan) {
    size_t count = 0;
    for (size_t i = 0; i < plan->count; i++)
        count += !plan->items[i].kept_existing;
    return count;
}

static icma_status unpack_plan(const cli_unpack *a, icma_bundle *bundle, const char *path,
                               cli_unpack_plan *plan, bool *partial, icma_error *error) {
    if (a->output && plan->count != 1 && !*partial)
        return icma_fail(
            error, ICMA_E_USAGE, path,
            "-o takes one adapter and this would be %zu; choose one with --task and --checkpoint",
            plan->count);
    icma_status status = cli_unpack_look_first(a, plan, error);
    if (!status && !a->keep_going)
        status = check_sections(bundle, plan, error);
    if (!status && !a->dry_run)
        status = cli_bundle_choose_device(bundle, &a->decoding, adapters_of(plan), error);
    if (!status && !a->dry_run)
        status = unpack_all(a, bundle, path, plan, partial, error);
    cli_progress_clear();
    if (!status)
        status = cli_unpack_tell(a, path, plan, error);
    /* Nothing at all is not a part. */
    if (!status && *partial && !a->dry_run && !any_is_there(plan))
        status = icma_fail(error, ICMA_E_CORRUPT, path, "nothing of it could be unpacked");
    return status;
}

static icma_status check_options(const cli_unpack *a, icma_error *error) {
    const char *wrong = NULL;
    uint64_t step;
    if (a->sample && a->checkpoint)
        wrong = "--sample draws a new adapter; leave out --checkpoint";
    else if (a->seed.given && !a->sample)
        wrong = "--seed belongs to --sample";
    else if (a->sample && a->no_check)
        wrong = "a sample has no checksum; leave out --no-check";
    else if (a->output && a->folder)
        wrong = "-o names the file; leave out -C";
    else if ((a->folder && !a->folder[0]) || (a->output && !a->output[0]))
        wrong = "the output's name is empty; name a folder with -C or a file with -o";
    else if (a->force && a->keep_existing)
        wrong = "-f replaces what exists and -k keeps it; choose one";
    else if (a->output && strcmp(a->output, "-") == 0 && a->common.json)
        wrong = "-o - and --json both want standard output; choose one";
    else if (a->output && strcmp(a->output, "-") == 0 && !a->dry_run && isatty(STDOUT_FILENO))
        wrong = "an adapter is not for reading on a terminal; redirect standard output or name a file";
    else if (a->checkpoint && strcmp(a->checkpoint, "last") != 0 && strcmp(a->checkpoint, "all") != 0 &&
             !cli_parse_whole(a->checkpoint, &step))
        return icma_fail(error, ICMA_E_USAGE, NULL,
                         "--checkpoint takes last, all or a step number, not \"%s\"", a->checkpoint);
    return wrong ? icma_fail(error, ICMA_E_USAGE, NULL, "%s", wrong) : ICMA_OK;
}

static icma_status run_unpack(const void *arguments, const cli_list *operands, icma_error *error) {
    const cli_unpack *a = arguments;
    icma_bundle *bundle = NULL;
    char *path = NULL;
    cli_unpack_plan plan = {0};
    bool partial = false;
    icma_status status = check_options(a, error);
    if (!status)
        status = cli_bundle_open(operands, &a->decoding, &bundle, &path, error);
    if (!status) {
        cli_bundle_explain(bundle, path);
        icma_bundle_compare_checksums(bundle, !a->no_check);
        status = make_plan(a, bundle, path, &plan, &partial, error);
    }
    if (!status)
        status = unpack_plan(a, bundle, path, &plan, &partial, error);
    if (status && path)
        icma_error_set_file(error, path);
    free_plan(&plan);
    icma_bundle_close(bundle);
    icma_free(path);
    return status == ICMA_OK && partial ? ICMA_E_PARTIAL : status;
}

const cli_verb cli_verb_unpack = {
    .name = "unpack",
    .also = "extract decompress decode restore unzip x get",
    .surplus = "a folder to unpack into is -C DIR, a task to unpack --task TASK",
    .operands = "[B.icma]",
    .summary = "get adapters back, ready for PEFT",
    .description =
        "Decodes adapters into <task>/adapter_model.safetensors with the files that were packed beside\n"
        "them, or <task>/checkpoint-N/... with --checkpoint all. Without an archive it takes the only\n"
        ".icma file in the current folder. Nothing that exists is touched without -f.",
    .options = unpack_options,
    .examples = (const char *const[]){"icma unpack loras.icma -C out", "every task's last checkpoint",
                                      "icma unpack --task cat --checkpoint 300", "one checkpoint of one task",
                                      "icma unpack --task cat --sample --seed 7 -C drawn",
                                      "a new adapter for the task's condition",
                                      "icma unpack --task cat -o - | sha256sum", "to standard output", NULL},
    .exits = (const int[]){0, 1, 2, 3, 4, 6, 7, 8, 9, 10, -1},
    .most_operands = 1,
    .arguments_size = sizeof(cli_unpack),
    .run = run_unpack,
};
