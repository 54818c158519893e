/* SPDX-License-Identifier: Apache-2.0 */
/* icma unpack: which adapters, and in what order they are decoded. How they are written: writing.c; what is
 * told: unpack_told.c. */
#include "unpack.h"

#include "facts.h"
#include "memory.h"
#include "message.h"
#include "progress.h"
#include "signals.h"
#include "sort.h"
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
    CLI_ROWS_WRITING(cli_unpack, writing),
    CLI_ROW_HEADING("How"),
    CLI_ROW_FLAG('n', "dry-run", AT(dry_run), "show what would be written; write nothing"),
    CLI_ROW_FLAG(
        0, "keep-going", AT(keep_going),
        "leave out damaged adapters, and tensors that the\nlayout has no place for; name them (exit 3)"),
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

/* --- the plan ------------------------------------------------------------------------------------------- */

static icma_status add_to_plan(cli_unpack_plan *plan, const icma_task_info *info, size_t task,
                               size_t checkpoint, bool in_tree, icma_error *error) {
    cli_unpack_item *items = icma_resize_array(plan->items, plan->count + 1, sizeof *items);
    if (!items)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the plan");
    plan->items = items;
    const icma_checkpoint_info *kept = &info->checkpoints[checkpoint];
    cli_unpack_item *item = &items[plan->count++];
    *item = (cli_unpack_item){.task = task,
                              .checkpoint = checkpoint,
                              .group = kept->group,
                              .has_step = kept->has_step,
                              .exact = kept->tier == ICMA_TIER_LOSSLESS || kept->tier == ICMA_TIER_VERBATIM,
                              .in_tree = in_tree,
                              .step = kept->step,
                              .size = kept->file_size,
                              .task_name = icma_copy_string(info->name)};
    icma_buffer label = {0};
    icma_write_bytes(&label, info->name, strlen(info->name));
    if (in_tree && kept->has_step)
        cli_append(&label, "/checkpoint-%" PRIu64, kept->step);
    item->label = label.failed ? NULL : icma_copy_text((const char *)label.data, label.size);
    icma_buffer_free(&label);
    return item->label && item->task_name
               ? ICMA_OK
               : icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the plan");
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
    for (size_t i = 0; i < plan->count; i++) {
        icma_free(plan->items[i].label);
        icma_free(plan->items[i].task_name);
        cli_writing_place_free(&plan->items[i].place);
    }
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

static int compare_items(const void *left, const void *right, const void *context) {
    (void)context;
    const cli_unpack_item *a = left, *b = right;
    int order = icma_compare_natural(a->task_name, b->task_name);
    if (order == 0)
        order = (a->checkpoint > b->checkpoint) - (a->checkpoint < b->checkpoint);
    return order;
}

/* --- where they will lie -------------------------------------------------------------------------------- */

/* How a group's files were named, where its record tells; read once a group. */
typedef struct names {
    struct group_names {
        bool asked, told;
        icma_file_naming naming;
    } * groups; /* owned */
} names;

static icma_status naming_of(icma_bundle *bundle, names *n, const cli_unpack_item *item,
                             const icma_decoded *header, icma_file_naming *out, icma_error *error) {
    struct group_names *g = &n->groups[item->group];
    if (!g->asked) {
        char *record = NULL;
        icma_status status = icma_bundle_record(bundle, item->group, &record, NULL);
        g->told = status == ICMA_OK &&
                  icma_file_naming_from_record(record, &g->naming); /* a damaged one is not needed */
        g->asked = true;
        icma_free(record);
    }
    *out = g->naming;
    bool plain_with_files = g->naming.form == ICMA_FORM_PLAIN && header->file_count; /* added later */
    return g->told && !plain_with_files ? ICMA_OK : icma_file_naming_guess(header, item->has_step, item->step, out, error);
}

static icma_status place_item(const cli_unpack *a, icma_bundle *bundle, const cli_writing *writing, names *n,
                              cli_unpack_item *item, icma_error *error) {
    icma_decoded header = {0};
    icma_file_naming naming;
    icma_status status = icma_bundle_header(bundle, item->task, item->checkpoint, &header, error);
    if (!status)
        status = naming_of(bundle, n, item, &header, &naming, error);
    cli_writing_subject subject = {.header = &header,
                                   .naming = &naming,
                                   .task = item->task_name,
                                   .in_tree = item->in_tree,
                                   .has_step = item->has_step && !a->sample,
                                   .step = item->step};
    if (!status)
        status = cli_writing_place_of(writing, &subject, &item->place, error);
    icma_decoded_free(&header);
    return status;
}

/* Finds the places of all, and whether something is in the way. What is damaged is left to the decoding,
 * which tells of it, unless --keep-going leaves it out here. */
static icma_status place_items(const cli_unpack *a, icma_bundle *bundle, const char *path,
                               cli_writing *writing, cli_unpack_plan *plan, bool *partial,
                               icma_error *error) {
    names n = {.groups = icma_alloc_zeroed(icma_bundle_group_count(bundle) + 1, sizeof *n.groups)};
    icma_status status =
        n.groups ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the plan");
    for (size_t i = 0; !status && i < plan->count; i++) {
        cli_unpack_item *item = &plan->items[i];
        icma_error detail = {0};
        icma_status placed = place_item(a, bundle, writing, &n, item, &detail);
        if (placed && a->keep_going &&
            (placed == ICMA_E_CORRUPT || placed == ICMA_E_LIMIT || placed == ICMA_E_UNSUPPORTED)) {
            cli_warning(path, "%s is left out: %s", item->label, detail.message);
            item->left_out = *partial = true;
        } else if (placed) {
            bool named = placed == ICMA_E_CORRUPT || placed == ICMA_E_UNSUPPORTED;
            status = icma_fail(error, placed, detail.file[0] ? detail.file : path, "%s%s%s",
                               named ? item->label : "", named ? ": " : "", detail.message);
        } else {
            status = cli_writing_look(writing, &item->place, error);
        }
        if (!status)
            status = cli_check_signal(error);
        if (i + 1 == plan->count || plan->items[i + 1].task != item->task)
            icma_bundle_forget_task(bundle, item->task);
    }
    icma_free(n.groups);
    return status;
}

/* --- the work ------------------------------------------------------------------------------------------- */

/* Damage is found before anything is written, as far as checksums tell: what belongs to the planned tasks or
 * to all. */
static icma_status check_sections(icma_bundle *bundle, const cli_unpack_plan *plan, icma_error *error) {
    for (size_t i = 0; i < icma_bundle_section_count(bundle); i++) {
        icma_section_info section = icma_bundle_section(bundle, i);
        bool wanted = section.task == UINT32_MAX;
        for (size_t j = 0; !wanted && j < plan->count; j++)
            wanted = plan->items[j].task == section.task;
        icma_error detail = {0};
        cli_progress_show("verify", (double)section.offset, (double)icma_bundle_bytes(bundle).total, "bytes", NULL);
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

static icma_status unpack_item(const cli_unpack *a, icma_bundle *bundle, cli_writing *writing,
                               cli_unpack_item *item, icma_error *error) {
    icma_decoded decoded = {0};
    icma_status status = decode(a, bundle, item, &decoded, error);
    return status ? status
                  : cli_writing_write(writing, &item->place, &decoded, item->exact && !a->sample, item->label,
                                      error);
}

static icma_status unpack_all(const cli_unpack *a, icma_bundle *bundle, const char *path,
                              cli_writing *writing, cli_unpack_plan *plan, bool *partial, icma_error *error) {
    for (size_t i = 0; i < plan->count; i++) {
        cli_unpack_item *item = &plan->items[i];
        cli_progress_show("unpack", (double)i, (double)plan->count, "adapters", item->label);
        if (item->place.kept || item->left_out)
            continue;
        icma_error detail = {0};
        icma_status status = unpack_item(a, bundle, writing, item, &detail);
        bool damage = status == ICMA_E_CORRUPT || status == ICMA_E_LIMIT || status == ICMA_E_UNSUPPORTED;
        if (status && a->keep_going && damage) {
            cli_warning(path, "%s is left out: %s", item->label, detail.message);
            *partial = true;
        } else if (status) {
            if (status == ICMA_E_CORRUPT)
                icma_fail(error, status, path, "%s: %s%s", item->label, detail.message,
                          plan->count > 1 ? "; --keep-going unpacks the others" : "");
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
        if (plan->items[i].place.written || plan->items[i].place.kept)
            return true;
    return false;
}

/* That will be decoded. */
static size_t adapters_of(const cli_unpack_plan *plan) {
    size_t count = 0;
    for (size_t i = 0; i < plan->count; i++)
        count += !plan->items[i].place.kept && !plan->items[i].left_out;
    return count;
}

static int compare_texts(const void *left, const void *right, const void *context) {
    (void)context;
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* Tasks "a" with a step and "a-000010" may want one name for a plain file. */
static icma_status check_clashes(const cli_unpack_plan *plan, const char *path, icma_error *error) {
    const char **list = icma_alloc_array(plan->count * ICMA_MOST_COMPONENTS + 1, sizeof *list);
    icma_status status =
        list ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the plan");
    size_t count = 0;
    for (size_t i = 0; !status && i < plan->count; i++)
        for (size_t p = 0; p < plan->items[i].place.count; p++)
            list[count++] = plan->items[i].place.parts[p].path;
    icma_sort(list, count, sizeof *list, compare_texts, NULL);
    for (size_t i = 1; !status && i < count; i++)
        if (strcmp(list[i - 1], list[i]) == 0)
            status = icma_fail(error, ICMA_E_USAGE, path,
                               "two adapters would be written to %s; unpack them one by one with --task, or "
                               "with --layout peft",
                               list[i]);
    icma_free(list);
    return status;
}

/* Decodes and writes what is planned. */
static icma_status unpack_planned(const cli_unpack *a, icma_bundle *bundle, const char *path,
                                  cli_writing *writing, cli_unpack_plan *plan, bool *partial,
                                  icma_error *error) {
    icma_status status = cli_bundle_choose_device(bundle, &a->decoding, adapters_of(plan), error);
    if (!status)
        status = unpack_all(a, bundle, path, writing, plan, partial, error);
    cli_progress_clear();
    *partial |= writing->told.left_out > 0;
    return status;
}

static icma_status unpack_plan(const cli_unpack *a, icma_bundle *bundle, const char *path,
                               cli_writing *writing, cli_unpack_plan *plan, bool *partial,
                               icma_error *error) {
    if (a->writing.output && !a->writing.format && plan->count != 1 && !*partial)
        return icma_fail(error, ICMA_E_USAGE, path,
                         "-o takes one adapter and this would be %zu; choose one with --task and "
                         "--checkpoint, or add --format tar or zip",
                         plan->count);
    if (a->writing.format)
        icma_sort(plan->items, plan->count, sizeof *plan->items, compare_items, NULL);
    icma_status status = place_items(a, bundle, path, writing, plan, partial, error);
    if (!status && !(a->writing.output && !a->writing.format)) /* its one file is named */
        status = check_clashes(plan, path, error);
    if (!status && !a->keep_going)
        status = check_sections(bundle, plan, error);
    if (!status && !a->dry_run)
        status = unpack_planned(a, bundle, path, writing, plan, partial, error);
    bool nothing = !status && !a->dry_run && *partial && !any_is_there(plan);
    icma_status closed = cli_writing_close(writing, status == ICMA_OK && !a->dry_run && !nothing, error);
    if (!status)
        status = closed;
    if (!status)
        status = cli_unpack_tell(a, path, writing, plan, error);
    /* Nothing at all is not a part. */
    if (!status && nothing)
        status = icma_fail(error, ICMA_E_CORRUPT, path, "nothing of it could be unpacked");
    return status;
}

static icma_status check_options(const cli_unpack *a, icma_error *error) {
    const char *wrong = NULL;
    uint64_t step;
    bool to_stdout = a->writing.output && strcmp(a->writing.output, "-") == 0;
    if (a->sample && a->checkpoint)
        wrong = "--sample draws a new adapter; leave out --checkpoint";
    else if (a->seed.given && !a->sample)
        wrong = "--seed belongs to --sample";
    else if (a->sample && a->no_check)
        wrong = "a sample has no checksum; leave out --no-check";
    else if (to_stdout && a->common.json)
        wrong = "-o - and --json both want standard output; choose one";
    else if (to_stdout && !a->dry_run && isatty(STDOUT_FILENO))
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
    cli_writing writing;
    bool partial = false;
    icma_status status = check_options(a, error);
    if (!status)
        status = cli_writing_open(&writing, &a->writing, a->keep_going, error);
    if (!status)
        status = cli_bundle_open(operands, &a->decoding, &bundle, &path, error);
    if (!status) {
        cli_bundle_explain(bundle, path, &a->decoding);
        icma_bundle_compare_checksums(bundle, !a->no_check);
        status = make_plan(a, bundle, path, &plan, &partial, error);
    }
    if (!status)
        status = unpack_plan(a, bundle, path, &writing, &plan, &partial, error);
    if (status && path)
        icma_error_set_file(error, path);
    free_plan(&plan);
    icma_bundle_close(bundle);
    icma_free(path);
    return status == ICMA_OK && partial ? ICMA_E_PARTIAL : status;
}

const cli_verb cli_verb_unpack = {
    .name = "unpack",
    .purpose = CLI_TAKES,
    .also = "extract decompress decode restore unzip x get",
    .surplus = "a folder to unpack into is -C DIR, a task to unpack --task TASK",
    .operands = "[B.icma]",
    .summary = "get adapters back, ready for PEFT",
    .description =
        "Decodes adapters to where they came from: PEFT's and diffusers' into <task>/ with the files that\n"
        "were packed beside them, or <task>/checkpoint-N/ with --checkpoint all; plain files, such as\n"
        "kohya's, under their names. --layout gives them the names that another program wants; a tensor\n"
        "that has no place there is an error. Without an archive it takes the only .icma file in the current\n"
        "folder. Nothing that exists is touched without -f.",
    .options = unpack_options,
    .examples = (const char *const[]){"icma unpack loras.icma -C out", "every task's last checkpoint",
                                      "icma unpack --task cat --checkpoint 300", "one checkpoint of one task",
                                      "icma unpack --task cat --sample --seed 7 -C drawn",
                                      "a new adapter for the task's condition",
                                      "icma unpack --task cat -o - | sha256sum", "to standard output",
                                      "icma unpack loras.icma --layout peft --base-model org/model -C loras",
                                      "folders for vLLM's resolver and LoRAX",
                                      "icma unpack loras.icma --format tar -o - | ssh host tar x",
                                      "everything as a tar", NULL},
    .exits = (const int[]){0, 1, 2, 3, 4, 6, 7, 8, 9, 10, -1},
    .most_operands = 1,
    .arguments_size = sizeof(cli_unpack),
    .run = run_unpack,
};
