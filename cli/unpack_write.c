/* SPDX-License-Identifier: Apache-2.0 */
/* icma unpack: files on the disk, and what is told about them. */
#include "unpack.h"

#include "facts.h"
#include "file.h"
#include "memory.h"
#include "progress.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

static const char model_name[] = "adapter_model.safetensors";
static const char config_name[] = "adapter_config.json";

/* first/second/third as an owned string; NULL when memory is short. `first` may be NULL. */
static char *join(const char *first, const char *second, const char *third) {
    icma_buffer path = {0};
    const char *parts[] = {first, second, third};
    for (size_t i = 0; i < 3; i++) {
        if (!parts[i])
            continue;
        if (path.size && path.data[path.size - 1] != '/')
            icma_write_u8(&path, '/');
        icma_write_bytes(&path, parts[i], strlen(parts[i]));
    }
    char *joined = path.failed ? NULL : icma_copy_text((const char *)path.data, path.size);
    icma_buffer_free(&path);
    return joined;
}

/* -1: out of memory. */
static int is_there(const char *first, const char *second, const char *third) {
    struct stat info;
    char *path = join(first, second, third);
    if (!path)
        return -1;
    bool there = lstat(path, &info) == 0;
    icma_free(path);
    return there;
}

char *cli_unpack_path(const cli_unpack *a, const cli_unpack_item *item) {
    return a->output ? icma_copy_string(a->output) : join(a->folder, item->folder, model_name);
}

icma_status cli_unpack_look_first(const cli_unpack *a, cli_unpack_plan *plan, icma_error *error) {
    for (size_t i = 0; i < plan->count && !a->force; i++) {
        cli_unpack_item *item = &plan->items[i];
        const char *in_the_way = model_name;
        int there;
        if (a->output) {
            there = strcmp(a->output, "-") == 0 ? 0 : is_there(NULL, a->output, NULL);
        } else {
            there = is_there(a->folder, item->folder, model_name);
            if (there == 0 && !a->keep_existing) {
                in_the_way = config_name;
                there = is_there(a->folder, item->folder, config_name);
            }
        }
        if (there < 0)
            return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for a path");
        item->kept_existing = there && a->keep_existing;
        if (there && !a->keep_existing) {
            char *path = a->output ? NULL : join(a->folder, item->folder, in_the_way);
            icma_fail(error, ICMA_E_EXISTS, path ? path : a->output,
                      "exists already; nothing was written; -f replaces it, -k keeps it");
            icma_free(path);
            return ICMA_E_EXISTS;
        }
    }
    return ICMA_OK;
}

static icma_status write_file(const char *path, bool overwrite, const void *data, size_t size,
                              icma_error *error) {
    icma_output *output;
    icma_status status = icma_output_create(path, overwrite, &output, error);
    if (status)
        return status;
    status = icma_output_write(output, data, size, error);
    if (status) {
        icma_output_abandon(output);
        return status;
    }
    return icma_output_commit(output, error);
}

/* One file of an adapter's folder, whose folders are made on the way. */
static icma_status write_in_folder(const cli_unpack *a, const cli_unpack_item *item, const char *name,
                                   const void *data, size_t size, icma_error *error) {
    char *relative = join(item->folder, name, NULL), *path = NULL;
    if (!relative)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for a path");
    icma_status status = icma_make_folders(a->folder ? a->folder : ".", relative, &path, error);
    icma_free(relative);
    if (status)
        return status;
    status = write_file(path, a->force, data, size, error);
    icma_free(path);
    return status;
}

icma_status cli_unpack_folder(const cli_unpack *a, cli_unpack_item *item, const icma_decoded *decoded,
                              icma_error *error) {
    item->size = decoded->size;
    for (size_t i = 0; i < decoded->file_count && !a->force; i++) {
        int there = is_there(a->folder, item->folder, decoded->files[i].name);
        if (there > 0 && !a->keep_existing)
            return icma_fail(error, ICMA_E_EXISTS, decoded->files[i].name,
                             "exists already in %s; -f replaces it, -k keeps it", item->folder);
    }
    /* The adapter itself comes last: where it is, everything beside it is too. */
    for (size_t i = 0; i < decoded->file_count; i++) {
        const icma_decoded_file *file = &decoded->files[i];
        if (a->keep_existing && is_there(a->folder, item->folder, file->name) > 0)
            continue;
        icma_status status = write_in_folder(a, item, file->name, file->data, file->size, error);
        if (status)
            return status;
        item->side_files++;
    }
    icma_status status = write_in_folder(a, item, model_name, decoded->data, decoded->size, error);
    item->written = status == ICMA_OK;
    return status;
}

icma_status cli_unpack_one(const cli_unpack *a, cli_unpack_item *item, const icma_decoded *decoded,
                           icma_error *error) {
    item->size = decoded->size;
    item->written = true;
    if (strcmp(a->output, "-") != 0)
        return write_file(a->output, a->force, decoded->data, decoded->size, error);
    cli_progress_clear();
    errno = 0;
    if (fwrite(decoded->data, 1, decoded->size, stdout) == decoded->size && fflush(stdout) == 0)
        return ICMA_OK;
    return icma_fail(error, ICMA_E_IO, "standard output", "cannot write (%s); check where it goes to",
                     strerror(errno));
}

/* --- what is told ----------------------------------------------------------------------------------------
 */

static const char *state_of(const cli_unpack *a, const cli_unpack_item *item) {
    if (item->kept_existing)
        return "kept";
    return item->written ? "written" : a->dry_run ? "planned" : "damaged";
}

static icma_status tell_json(const cli_unpack *a, const char *path, const cli_unpack_plan *plan,
                             icma_error *error) {
    cJSON *root = cli_json_object();
    cli_json_text(root, "bundle", path);
    cli_json_bool(root, "dry_run", a->dry_run);
    cli_json_bool(root, "sampled", a->sample);
    cli_json_bool(root, "checked", !a->sample && !a->no_check);
    cJSON *list = cli_json_add_array(root, "adapters");
    for (size_t i = 0; i < plan->count; i++) {
        const cli_unpack_item *item = &plan->items[i];
        cJSON *object = cli_json_add_object(list, NULL);
        char *file = cli_unpack_path(a, item);
        size_t task = strcspn(item->folder, "/");
        char *name = icma_copy_text(item->folder, task);
        cli_json_text(object, "task", name);
        if (item->has_step && !a->sample)
            cli_json_whole(object, "step", item->step);
        else
            cli_json_null(object, "step");
        cli_json_text(object, "path", file);
        cli_json_whole(object, "bytes", item->size);
        cli_json_whole(object, "side_files", item->side_files);
        cli_json_text(object, "state", state_of(a, item));
        icma_free(file);
        icma_free(name);
    }
    return cli_json_print(root, stdout, error);
}

static icma_status print_files(const cli_unpack *a, const cli_unpack_plan *plan, FILE *out,
                               icma_error *error) {
    cli_table table = cli_table_of((const char *[]){"", "", ">", NULL});
    for (size_t i = 0; i < plan->count; i++) {
        char *file = cli_unpack_path(a, &plan->items[i]);
        cli_table_cell(&table, "%s", state_of(a, &plan->items[i]));
        cli_table_cell(&table, "%s", file ? file : "?");
        cli_table_cell(&table, "%s", cli_size(plan->items[i].size).text);
        icma_free(file);
    }
    return cli_table_print(&table, 0, out, error);
}

static void print_summary(const cli_unpack *a, const cli_unpack_plan *plan) {
    size_t written = 0, kept = 0, damaged = 0;
    uint64_t bytes = 0;
    for (size_t i = 0; i < plan->count; i++) {
        kept += plan->items[i].kept_existing;
        written += plan->items[i].written;
        damaged += !plan->items[i].written && !plan->items[i].kept_existing;
        bytes += plan->items[i].written ? plan->items[i].size : 0;
    }
    fprintf(stderr, "%s%s%s %zu adapter%s, %s, into ", cli_style(stderr, CLI_GREEN),
            a->sample ? "drew" : "unpacked", cli_style(stderr, CLI_PLAIN), written, cli_plural(written),
            cli_size(bytes).text);
    cli_print_safe(stderr, a->output ? a->output : a->folder ? a->folder : "the current folder");
    if (kept)
        fprintf(stderr, "; kept %zu that existed", kept);
    if (damaged)
        fprintf(stderr, "; left out %zu that %s damaged", damaged, damaged == 1 ? "is" : "are");
    if (a->no_check)
        fputs("; their checksums were not compared", stderr);
    fputc('\n', stderr);
}

icma_status cli_unpack_tell(const cli_unpack *a, const char *path, const cli_unpack_plan *plan,
                            icma_error *error) {
    bool to_stdout = a->output && strcmp(a->output, "-") == 0;
    icma_status status = ICMA_OK;
    if (a->common.json)
        return tell_json(a, path, plan, error);
    if (a->dry_run)
        return print_files(a, plan, stdout, error);
    if (a->common.quiet || to_stdout)
        return ICMA_OK;
    if (a->common.verbose)
        status = print_files(a, plan, stderr, error);
    print_summary(a, plan);
    return status;
}
