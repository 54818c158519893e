/* SPDX-License-Identifier: Apache-2.0 */
/* icma unpack: what is told about the files. */
#include "unpack.h"

#include "facts.h"
#include "memory.h"

#include <string.h>

static const char *state_of(const cli_unpack *a, const cli_unpack_item *item) {
    if (item->place.kept)
        return "kept";
    return item->place.written ? "written" : a->dry_run && !item->left_out ? "planned" : "damaged";
}

static uint64_t bytes_of(const cli_unpack_item *item, const cli_writing_part *part) {
    return item->place.written ? part->bytes : item->size;
}

static void item_to_json(const cli_unpack *a, const cli_unpack_item *item, size_t part, cJSON *list) {
    const cli_writing_part *p = part < item->place.count ? &item->place.parts[part] : NULL;
    cJSON *object = cli_json_add_object(list, NULL);
    char *path = p ? cli_writing_path(&a->writing, p) : NULL;
    cli_json_text(object, "task", item->task_name);
    if (item->has_step && !a->sample)
        cli_json_whole(object, "step", item->step);
    else
        cli_json_null(object, "step");
    cli_json_text(object, "component", p && p->component[0] ? p->component : NULL);
    cli_json_text(object, "path", path);
    cli_json_whole(object, "bytes", p ? bytes_of(item, p) : item->size);
    cli_json_whole(object, "side_files", p ? p->side_files : 0);
    cli_json_text(object, "state", state_of(a, item));
    icma_free(path);
}

static icma_status tell_json(const cli_unpack *a, const char *path, const cli_writing *writing,
                             const cli_unpack_plan *plan, icma_error *error) {
    cJSON *root = cli_json_object();
    cli_json_text(root, "bundle", path);
    cli_json_bool(root, "dry_run", a->dry_run);
    cli_json_bool(root, "sampled", a->sample);
    cli_json_bool(root, "checked", !a->sample && !a->no_check);
    cli_writing_to_json(writing, root);
    cJSON *list = cli_json_add_array(root, "adapters");
    for (size_t i = 0; i < plan->count; i++)
        for (size_t p = 0; p == 0 || p < plan->items[i].place.count; p++)
            item_to_json(a, &plan->items[i], p, list);
    return cli_json_print(root, stdout, error);
}

static icma_status print_files(const cli_unpack *a, const cli_unpack_plan *plan, FILE *out,
                               icma_error *error) {
    cli_table table = cli_table_of((const char *[]){"", "", ">", NULL});
    for (size_t i = 0; i < plan->count; i++) {
        const cli_unpack_item *item = &plan->items[i];
        for (size_t p = 0; p == 0 || p < item->place.count; p++) {
            char *path = item->place.count ? cli_writing_path(&a->writing, &item->place.parts[p])
                                           : icma_copy_string(item->label);
            cli_table_cell(&table, "%s", state_of(a, item));
            cli_table_cell(&table, "%s", path ? path : "?");
            cli_table_cell(
                &table, "%s",
                cli_size(item->place.count ? bytes_of(item, &item->place.parts[p]) : item->size).text);
            icma_free(path);
        }
    }
    return cli_table_print(&table, 0, out, error);
}

static void print_summary(const cli_unpack *a, const cli_unpack_plan *plan) {
    size_t written = 0, kept = 0, damaged = 0;
    uint64_t bytes = 0;
    for (size_t i = 0; i < plan->count; i++) {
        const cli_writing_place *place = &plan->items[i].place;
        kept += place->kept;
        written += place->written;
        damaged += !place->written && !place->kept;
        for (size_t p = 0; place->written && p < place->count; p++)
            bytes += place->parts[p].bytes;
    }
    fprintf(stderr, "%s%s%s %zu adapter%s, %s, into ", cli_style(stderr, CLI_GREEN),
            a->sample ? "drew" : "unpacked", cli_style(stderr, CLI_PLAIN), written, cli_plural(written),
            cli_size(bytes).text);
    cli_print_safe(stderr, a->writing.output   ? a->writing.output
                           : a->writing.folder ? a->writing.folder
                                               : "the current folder");
    if (kept)
        fprintf(stderr, "; kept %zu that existed", kept);
    if (damaged)
        fprintf(stderr, "; left out %zu that %s damaged", damaged, damaged == 1 ? "is" : "are");
    if (a->no_check)
        fputs("; their checksums were not compared", stderr);
    fputc('\n', stderr);
}

icma_status cli_unpack_tell(const cli_unpack *a, const char *path, const cli_writing *writing,
                            const cli_unpack_plan *plan, icma_error *error) {
    bool to_stdout = a->writing.output && strcmp(a->writing.output, "-") == 0;
    icma_status status = ICMA_OK;
    cli_writing_tell(writing);
    if (a->common.json)
        return tell_json(a, path, writing, plan, error);
    if (a->dry_run)
        return print_files(a, plan, stdout, error);
    if (a->common.quiet || to_stdout)
        return ICMA_OK;
    if (a->common.verbose)
        status = print_files(a, plan, stderr, error);
    print_summary(a, plan);
    return status;
}
