/* SPDX-License-Identifier: Apache-2.0 */
#include "source.h"

#include "bytes.h"
#include "device.h"
#include "file.h"
#include "memory.h"
#include "message.h"
#include "near.h"
#include "ops.h"
#include "progress.h"
#include "sandbox.h"
#include "spool.h"
#include "terminal.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NAMES_TOLD = 4 };

/* A bundle by its name: "x.icma", not hidden, a regular file. */
static int looks_like_bundle(const struct dirent *entry) {
    size_t length = strlen(entry->d_name);
    struct stat info;
    return entry->d_name[0] != '.' && length > 5 && strcmp(entry->d_name + length - 5, ".icma") == 0 &&
           stat(entry->d_name, &info) == 0 && S_ISREG(info.st_mode);
}

static icma_status several_bundles(struct dirent *const *entries, int count, icma_error *error) {
    icma_buffer names = {0};
    for (int i = 0; i < count && i < NAMES_TOLD; i++)
        cli_append(&names, i == 0 ? "%s" : ", %s", entries[i]->d_name);
    icma_status status = icma_fail(
        error, ICMA_E_USAGE, NULL,
        "no archive was named and the current folder has several (%.*s%s); name one", (int)names.size,
        names.size ? (const char *)names.data : "", count > NAMES_TOLD ? ", ..." : "");
    icma_buffer_free(&names);
    return status;
}

/* The only bundle in the current folder, as an owned name; else ICMA_E_USAGE saying what there is. */
static icma_status find_lone_bundle(char **path, icma_error *error) {
    struct dirent **entries;
    int count = scandir(".", &entries, looks_like_bundle, alphasort);
    if (count < 0)
        return icma_fail(error, ICMA_E_IO, ".", "cannot look for an archive here (%s); name one",
                         strerror(errno));
    icma_status status = ICMA_OK;
    if (count == 0)
        status = icma_fail(error, ICMA_E_USAGE, NULL,
                           "no archive was named and there is no .icma file in the current folder; name one, or make one with icma pack");
    else if (count > 1)
        status = several_bundles(entries, count, error);
    else if (!(*path = icma_copy_string(entries[0]->d_name)))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for a name");
    for (int i = 0; i < count; i++)
        free(entries[i]);
    free(entries);
    return status;
}

static void explain_device(const char *name, icma_device_work work, const icma_ops *opened) {
    char why[256];
    icma_device_explain(name, work, opened, why, sizeof why);
    cli_detail("device", "%s", why);
}

static bool is_auto(const cli_decoding *decoding) {
    return !decoding->scalar && (!decoding->device || strcmp(decoding->device, "auto") == 0);
}

size_t cli_bundle_checkpoints(const icma_bundle *bundle) {
    size_t count = 0;
    for (size_t i = 0; i < icma_bundle_section_count(bundle); i++) {
        icma_section_info section = icma_bundle_section(bundle, i);
        count += strcmp(section.kind, "task") == 0 ? section.count : 0;
    }
    return count;
}

void cli_bundle_explain(const icma_bundle *bundle, const char *path, const cli_decoding *decoding) {
    size_t tasks = icma_bundle_task_count(bundle), groups = icma_bundle_group_count(bundle),
           sections = icma_bundle_section_count(bundle);
    cli_detail("archive", "%s: %s, %zu checkpoints of %zu task%s, in %zu signature group%s and %zu section%s",
               path, cli_size(icma_bundle_bytes(bundle).total).text, cli_bundle_checkpoints(bundle), tasks,
               cli_plural(tasks), groups, cli_plural(groups), sections, cli_plural(sections));
    if (!is_auto(decoding))
        cli_detail("device", "%s, as asked for", decoding->scalar ? "reference" : decoding->device);
}

icma_limits cli_limits(const cli_decoding *decoding) {
    icma_limits limits = icma_limits_defaults();
    if (decoding->max_output.given)
        limits.max_output = decoding->max_output.value;
    if (decoding->max_work.given)
        limits.max_work = decoding->max_work.value;
    return limits;
}

icma_status cli_bundle_open(const cli_list *operands, const cli_decoding *decoding, icma_bundle **bundle,
                            char **path, icma_error *error) {
    const char *device = decoding->scalar ? "reference" : is_auto(decoding) ? "cpu" : decoding->device;
    const icma_limits limits = cli_limits(decoding);
    const struct icma_ops *ops = NULL;
    *bundle = NULL;
    *path = NULL;
    if (decoding->scalar && decoding->device)
        return icma_fail(error, ICMA_E_USAGE, NULL, "--scalar computes on the CPU; leave out --device");
    icma_status status;
    if (operands->count > 0) {
        *path = icma_copy_string(operands->items[0]);
        status = *path ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for a name");
    } else {
        status = find_lone_bundle(path, error);
    }
    if (!status)
        status = icma_device_open(device, ICMA_PRECISION_F32, (icma_device_work){0}, &ops, error);
    if (!status) {
        cli_sandbox_enter(ops->name);
        status = icma_bundle_open(*path, ops, &limits, bundle, error);
    }
    if (status == ICMA_E_NOT_FOUND || status == ICMA_E_FORMAT)
        cli_suggest_bundle(error, *path);
    if (status && status != ICMA_E_USAGE && status != ICMA_E_DEVICE && *path)
        icma_error_set_file(error, *path);
    if (status) {
        icma_free(*path);
        *path = NULL;
    }
    return status;
}

/* What decoding everything costs, and of how many adapters that is. A group that cannot be read costs
 * nothing: its damage is named when it is decoded. */
static icma_device_work work_of(icma_bundle *bundle, double *adapters) {
    icma_device_work work = {0};
    *adapters = 0;
    for (size_t i = 0; i < icma_bundle_section_count(bundle); i++) {
        icma_section_info section = icma_bundle_section(bundle, i);
        icma_generator_info g;
        if (strcmp(section.kind, "task") != 0 || icma_bundle_generator(bundle, section.group, &g, NULL))
            continue;
        bool network = strcmp(g.kind, "conv") == 0 || strcmp(g.kind, "diffusion") == 0;
        *adapters += section.count;
        *(network ? &work.operations : &work.bytes) +=
            (double)section.count *
            (network ? (double)g.decode_work : sizeof(float) * (double)g.modelled_parameters);
    }
    return work;
}

icma_status cli_bundle_choose_device(icma_bundle *bundle, const cli_decoding *decoding, size_t adapters,
                                     icma_error *error) {
    const struct icma_ops *ops;
    double all;
    if (!is_auto(decoding))
        return ICMA_OK;
    icma_device_work work = work_of(bundle, &all);
    double share = all > 0 && (double)adapters < all ? (double)adapters / all : 1;
    work.operations *= share;
    work.bytes *= share;
    icma_status status = icma_device_open("auto", ICMA_PRECISION_F32, work, &ops, error);
    if (!status)
        explain_device("auto", work, ops);
    return status ? status : icma_bundle_use_device(bundle, ops, error);
}

/* Whether what failed is to be tried again. */
static bool leave_device(icma_bundle *bundle, icma_status status) {
    if (status != ICMA_E_MEMORY || !icma_bundle_leave_device(bundle))
        return false;
    cli_note("the GPU's memory does not hold the decoder; decoding on the CPU");
    return true;
}

icma_status cli_bundle_decode(icma_bundle *bundle, size_t task, size_t checkpoint, icma_decoded *out,
                              icma_error *error) {
    icma_error detail = {0};
    icma_status status = icma_bundle_decode(bundle, task, checkpoint, out, &detail);
    if (leave_device(bundle, status))
        return icma_bundle_decode(bundle, task, checkpoint, out, error);
    return status ? icma_fail(error, status, detail.file, "%s", detail.message) : ICMA_OK;
}

icma_status cli_bundle_sample(icma_bundle *bundle, size_t task, uint64_t seed, icma_decoded *out,
                              icma_error *error) {
    icma_error detail = {0};
    icma_status status = icma_bundle_sample(bundle, task, seed, out, &detail);
    if (leave_device(bundle, status))
        return icma_bundle_sample(bundle, task, seed, out, error);
    return status ? icma_fail(error, status, detail.file, "%s", detail.message) : ICMA_OK;
}

icma_status cli_bundle_generate(icma_bundle *bundle, const icma_generation *what, icma_decoded *out,
                                icma_generated *told, icma_error *error) {
    icma_error detail = {0};
    icma_status status = icma_bundle_generate(bundle, what, out, told, &detail);
    if (leave_device(bundle, status))
        return icma_bundle_generate(bundle, what, out, told, error);
    return status ? icma_fail(error, status, detail.file, "%s", detail.message) : ICMA_OK;
}

void cli_near_tasks(const icma_bundle *bundle, const char *name, char *text, size_t size) {
    size_t count = icma_bundle_task_count(bundle), told = 0;
    text[0] = '\0';
    for (size_t i = 0; i < count && told < NAMES_TOLD; i++) {
        const char *task = icma_bundle_task_name(bundle, i);
        if (count > NAMES_TOLD && !cli_is_near(name, task) && !strstr(task, name) && !strstr(name, task))
            continue;
        size_t used = strlen(text);
        snprintf(text + used, size - used, "%s%.60s", told++ ? ", " : "", task);
    }
}

static icma_status unknown_task(const icma_bundle *bundle, const char *path, const char *name,
                                icma_error *error) {
    char near[320];
    cli_near_tasks(bundle, name, near, sizeof near);
    if (!near[0])
        return icma_fail(error, ICMA_E_NOT_FOUND, path, "no task \"%s\"; `icma list` names all %zu", name,
                         icma_bundle_task_count(bundle));
    return icma_fail(error, ICMA_E_NOT_FOUND, path, "no task \"%s\"; %s %s", name,
                     icma_bundle_task_count(bundle) > NAMES_TOLD ? "near ones:" : "the tasks are", near);
}

icma_status cli_choose_task(const icma_bundle *bundle, const char *path, const char *name, size_t *task,
                          icma_error *error) {
    *task = icma_bundle_find_task(bundle, name);
    return *task == SIZE_MAX ? unknown_task(bundle, path, name, error) : ICMA_OK;
}

/* Insertion keeps the order of the archive and drops repetitions. */
static size_t insert_index(size_t *list, size_t count, size_t value) {
    size_t at = count;
    while (at > 0 && list[at - 1] > value)
        at--;
    if (at > 0 && list[at - 1] == value)
        return count;
    memmove(list + at + 1, list + at, (count - at) * sizeof *list);
    list[at] = value;
    return count + 1;
}

icma_status cli_choose_tasks(const icma_bundle *bundle, const char *path, const cli_list *names,
                             size_t **tasks, size_t *count, icma_error *error) {
    size_t all = icma_bundle_task_count(bundle);
    *count = 0;
    *tasks = icma_alloc_array((names->count ? names->count : all) + 1, sizeof **tasks);
    if (!*tasks)
        return icma_fail(error, ICMA_E_MEMORY, path, "not enough memory for the list of tasks");
    for (size_t i = 0; !names->count && i < all; i++)
        (*tasks)[(*count)++] = i;
    for (size_t i = 0; i < names->count; i++) {
        size_t found;
        icma_status status = cli_choose_task(bundle, path, names->items[i], &found, error);
        if (status) {
            icma_free(*tasks);
            *tasks = NULL;
            *count = 0;
            return status;
        }
        *count = insert_index(*tasks, *count, found);
    }
    return ICMA_OK;
}

static icma_spool *prepared;

void cli_finding_prepare(const cli_finding *finding) {
    icma_error error = {0};
    if (icma_spool_create(finding->temporary, &prepared, &error) != ICMA_OK)
        cli_warning(error.file, "%s; archives will not be unpacked", error.message);
}

void cli_finding_done(void) {
    icma_spool_release(prepared);
    prepared = NULL;
}

icma_status cli_inputs_find(const cli_list *paths, const cli_finding *finding, icma_inputs *inputs, bool *skipped,
                            icma_error *error) {
    icma_input_options options = icma_input_defaults();
    icma_progress hooks = cli_progress_hooks();
    options.standard_input = STDIN_FILENO;
    options.progress = &hooks;
    options.spool = prepared;
    if (finding && finding->temporary)
        options.temporary = finding->temporary;
    if (finding && finding->max_input.given)
        options.most_bytes = finding->max_input.value;
    *skipped = false;
    cli_progress_show("find", 0, 0, NULL, NULL);
    icma_status status = icma_inputs_find_with(paths->items, paths->count, &options, inputs, error);
    for (size_t i = 0; i < inputs->skip_count; i++) {
        cli_warning(inputs->skips[i].path, "skipped: %s", inputs->skips[i].reason);
        *skipped = true;
    }
    for (size_t i = 0; status == ICMA_E_NOT_FOUND && i < paths->count; i++)
        cli_suggest_path(error, paths->items[i]);
    if (status && paths->count == 1)
        icma_error_set_file(error, paths->items[0]);
    return status;
}

icma_status cli_try_output(const char *path, bool overwrite, icma_error *error) {
    icma_output *output;
    icma_error detail = {0};
    struct stat info;
    if (stat(path, &info) == 0 && S_ISDIR(info.st_mode))
        return icma_fail(error, ICMA_E_EXISTS, path, "is a folder; name a file, such as %s.icma", path);
    icma_status status = icma_output_create(path, overwrite, &output, &detail);
    if (status == ICMA_E_EXISTS)
        return icma_fail(error, status, path, "exists already; name another file, or replace it with -f");
    if (status)
        *error = detail;
    else
        icma_output_abandon(output);
    return status;
}

icma_status cli_check_change_output(const char *output, bool force, bool dry_run, const char *verb, icma_error *error) {
    if (force && !output)
        return icma_fail(error, ICMA_E_USAGE, NULL, "-f replaces the file that -o names; without -o, %s changes the archive itself and needs none", verb);
    if (output && !output[0])
        return icma_fail(error, ICMA_E_USAGE, NULL, "the output's name is empty; name a file with -o");
    if (output && strcmp(output, "-") == 0)
        return icma_fail(error, ICMA_E_USAGE, NULL, "an archive cannot be written to a pipe; name a file with -o");
    return output && !dry_run ? cli_try_output(output, force, error) : ICMA_OK;
}
