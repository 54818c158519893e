/* SPDX-License-Identifier: Apache-2.0 */
/* icma info: format, generator, sections, sizes by kind, training record. */
#include "container.h"
#include "facts.h"
#include "memory.h"
#include "record.h"
#include "sandbox.h"
#include "source.h"
#include "verbs.h"

#include <math.h>

typedef struct info_arguments {
    cli_common common;
    cli_decoding decoding; /* nothing is decoded: all defaults */
} info_arguments;

static const cli_option info_options[] = {
    CLI_ROW_VERBOSE("every section"), CLI_ROW_JSON, CLI_ROW_NO_COLOR, CLI_ROW_HELP, CLI_ROW_END,
};

typedef struct archive_info {
    const char *path;
    icma_bundle *bundle;
    icma_bytes bytes;
    cli_totals totals;
    size_t groups, sections;
} archive_info;

static void heading(const char *text) {
    printf("\n%s%s%s\n", cli_style(stdout, CLI_BOLD), text, cli_style(stdout, CLI_PLAIN));
}

static void label(const char *name) {
    printf("  %-12s", name);
}

static void print_contents(const archive_info *a) {
    printf("%s", cli_style(stdout, CLI_BOLD));
    cli_print_safe(stdout, a->path);
    printf("%s\n", cli_style(stdout, CLI_PLAIN));
    label("archive");
    printf("icma format %d, %s (%s bytes), %zu sections\n", (int)ICMA_FORMAT_VERSION,
           cli_size(a->bytes.total).text, cli_whole_text(a->bytes.total).text, a->sections);
    label("contents");
    printf("%zu checkpoint%s of %zu task%s in %zu group%s\n", a->totals.checkpoints,
           cli_plural(a->totals.checkpoints), a->totals.tasks, cli_plural(a->totals.tasks), a->groups,
           cli_plural(a->groups));
    label("as files");
    printf("%s, %s parameters\n", cli_size(a->totals.file_bytes).text,
           cli_many((double)a->totals.parameters).text);
    if (a->totals.parameters == 0)
        return;
    label("density");
    printf("%.3f bits a parameter, %s of the files (%.1f to 1)\n",
           8 * (double)a->bytes.total / (double)a->totals.parameters,
           cli_percent((double)a->bytes.total, (double)a->totals.file_bytes).text,
           (double)a->totals.file_bytes / (double)a->bytes.total);
}

static void print_generator(const icma_generator_info *g) {
    size_t components = g->components_a + g->components_b + g->components_other;
    label("generator");
    printf("%s", g->kind);
    if (components)
        printf(", %zu components (%zu for A, %zu for B, %zu for others)", components, g->components_a,
               g->components_b, g->components_other);
    putchar('\n');
    if (components) {
        label("");
        printf("%zu latent dimension%s, %zu condition coordinate%s\n", g->latent_dim,
               cli_plural(g->latent_dim), g->condition_dim, cli_plural(g->condition_dim));
        label("trunk");
        printf("%zu hidden layer%s of %zu, %s parameters\n", g->hidden_layers, cli_plural(g->hidden_layers),
               g->hidden, cli_whole_text(g->trunk_parameters).text);
        label("head");
        printf("%s for %s parameters of each adapter\n", cli_size(g->head_bytes).text,
               cli_whole_text(g->modelled_parameters).text);
    } else if (g->trunk_parameters) {
        label("");
        printf("%zu latent dimension%s, %zu condition coordinate%s\n", g->latent_dim, cli_plural(g->latent_dim), g->condition_dim, cli_plural(g->condition_dim));
        label("decoder");
        printf("%zu layers, %s parameters for %s of each adapter\n", g->hidden_layers, cli_whole_text(g->trunk_parameters).text, cli_whole_text(g->modelled_parameters).text);
    }
    label("tensors");
    printf("%zu, of which %zu verbatim\n", g->tensors, g->tensors_verbatim);
}

/* The options of the training, as the record has them: "seed 0, epochs 400, ...". */
static void print_options(const cJSON *options) {
    size_t told = 0;
    for (const cJSON *item = options ? options->child : NULL; item; item = item->next) {
        if (!item->string || !(cJSON_IsNumber(item) || cJSON_IsString(item) || cJSON_IsBool(item)))
            continue;
        if (told % 6 == 0) {
            fputs(told ? ",\n" : "", stdout);
            label(told ? "" : "options");
        } else {
            fputs(", ", stdout);
        }
        cli_print_safe(stdout, item->string);
        putchar(' ');
        if (cJSON_IsString(item))
            cli_print_safe(stdout, item->valuestring);
        else if (cJSON_IsBool(item))
            fputs(cJSON_IsTrue(item) ? "yes" : "no", stdout);
        else
            printf("%.10g", item->valuedouble);
        told++;
    }
    if (told)
        putchar('\n');
}

static void print_record(const cJSON *record) {
    double first, last;
    if (cli_record_losses(record, &first, &last)) {
        label("training");
        printf("loss from %.4g in the first to %.4g in the last epoch\n", first, last);
    }
    print_options(cJSON_GetObjectItemCaseSensitive(record, "options"));
}

static icma_status print_group(const archive_info *a, uint32_t group, icma_error *error) {
    icma_generator_info generator;
    cJSON *record;
    icma_status status = icma_bundle_generator(a->bundle, group, &generator, error);
    if (!status)
        status = cli_record_load(a->bundle, group, &record, error);
    if (status)
        return status;
    char title[32];
    snprintf(title, sizeof title, "group %u", group);
    heading(title);
    print_generator(&generator);
    print_record(record);
    cJSON_Delete(record);
    return ICMA_OK;
}

static icma_status print_sections(const archive_info *a, icma_error *error) {
    cli_table table = cli_table_of((const char *[]){">section", "kind", "coding", ">offset", ">stored",
                                                    ">raw", ">group", "task", ">first", ">count", NULL});
    for (size_t i = 0; i < a->sections; i++) {
        icma_section_info section = icma_bundle_section(a->bundle, i);
        cli_table_cell(&table, "%zu", i);
        cli_table_cell(&table, "%s", section.kind);
        cli_table_cell(&table, "%s", section.coding);
        cli_table_cell(&table, "%s", cli_whole_text(section.offset).text);
        cli_table_cell(&table, "%s", cli_whole_text(section.stored_size).text);
        cli_table_cell(&table, "%s", cli_whole_text(section.raw_size).text);
        cli_table_cell(&table, section.group == UINT32_MAX ? "-" : "%u", section.group);
        cli_table_cell(&table, "%s",
                       section.task == UINT32_MAX ? "-" : icma_bundle_task_name(a->bundle, section.task));
        cli_table_cell(&table, "%u", section.first);
        cli_table_cell(&table, "%u", section.count);
    }
    putchar('\n');
    return cli_table_print(&table, 0, stdout, error);
}

static icma_status print_info(const archive_info *a, bool verbose, icma_error *error) {
    print_contents(a);
    putchar('\n');
    icma_status status = cli_print_bytes(&a->bytes, stdout, error);
    for (uint32_t group = 0; !status && group < a->groups; group++)
        status = print_group(a, group, error);
    if (!status && verbose)
        status = print_sections(a, error);
    return status;
}

static icma_status group_to_json(const archive_info *a, uint32_t group, cJSON *list, icma_error *error) {
    icma_generator_info g;
    cJSON *record;
    icma_status status = icma_bundle_generator(a->bundle, group, &g, error);
    if (!status)
        status = cli_record_load(a->bundle, group, &record, error);
    if (status)
        return status;
    cJSON *object = cli_json_add_object(list, NULL);
    cJSON *generator = cli_json_add_object(object, "generator");
    cli_json_text(generator, "kind", g.kind);
    cli_json_whole(generator, "components_a", g.components_a);
    cli_json_whole(generator, "components_b", g.components_b);
    cli_json_whole(generator, "components_other", g.components_other);
    cli_json_whole(generator, "latent_dim", g.latent_dim);
    cli_json_whole(generator, "condition_dim", g.condition_dim);
    cli_json_whole(generator, "hidden", g.hidden);
    cli_json_whole(generator, "hidden_layers", g.hidden_layers);
    cli_json_whole(generator, "head_bytes", g.head_bytes);
    cli_json_whole(generator, "trunk_parameters", g.trunk_parameters);
    cli_json_whole(generator, "modelled_parameters", g.modelled_parameters);
    cli_json_whole(object, "tensors", g.tensors);
    cli_json_whole(object, "tensors_verbatim", g.tensors_verbatim);
    cli_json_copy(object, "record", record);
    cJSON_Delete(record);
    return ICMA_OK;
}

static void sections_to_json(const archive_info *a, cJSON *root) {
    cJSON *list = cli_json_add_array(root, "section_list");
    for (size_t i = 0; i < a->sections; i++) {
        icma_section_info section = icma_bundle_section(a->bundle, i);
        cJSON *object = cli_json_add_object(list, NULL);
        cli_json_text(object, "kind", section.kind);
        cli_json_text(object, "coding", section.coding);
        cli_json_whole(object, "offset", section.offset);
        cli_json_whole(object, "stored", section.stored_size);
        cli_json_whole(object, "raw", section.raw_size);
        if (section.group == UINT32_MAX)
            cli_json_null(object, "group");
        else
            cli_json_whole(object, "group", section.group);
        cli_json_text(object, "task",
                      section.task == UINT32_MAX ? NULL : icma_bundle_task_name(a->bundle, section.task));
        cli_json_whole(object, "first", section.first);
        cli_json_whole(object, "count", section.count);
    }
}

static icma_status info_to_json(const archive_info *a, bool verbose, icma_error *error) {
    cJSON *root = cli_json_object();
    cli_json_text(root, "bundle", a->path);
    cli_json_whole(root, "format", ICMA_FORMAT_VERSION);
    cli_json_bytes(root, &a->bytes);
    cli_json_whole(root, "tasks", a->totals.tasks);
    cli_json_whole(root, "checkpoints", a->totals.checkpoints);
    cJSON *originals = cli_json_add_object(root, "originals");
    cli_json_whole(originals, "files", a->totals.checkpoints);
    cli_json_whole(originals, "bytes", a->totals.file_bytes);
    cli_json_whole(originals, "parameters", a->totals.parameters);
    cli_json_real(root, "bits_per_parameter", 8 * (double)a->bytes.total / (double)a->totals.parameters);
    cli_json_real(root, "ratio", (double)a->totals.file_bytes / (double)a->bytes.total);
    cli_json_whole(root, "sections", a->sections);
    cJSON *groups = cli_json_add_array(root, "groups");
    icma_status status = ICMA_OK;
    for (uint32_t group = 0; !status && group < a->groups; group++)
        status = group_to_json(a, group, groups, error);
    if (status) {
        cJSON_Delete(root);
        return status;
    }
    if (verbose)
        sections_to_json(a, root);
    return cli_json_print(root, stdout, error);
}

static icma_status run_info(const void *arguments, const cli_list *operands, icma_error *error) {
    const info_arguments *a = arguments;
    archive_info archive = {0};
    char *path;
    cli_sandbox_want(a->common.verbose);
    icma_status status = cli_bundle_open(operands, &a->decoding, &archive.bundle, &path, error);
    if (status)
        return status;
    archive.path = path;
    archive.bytes = icma_bundle_bytes(archive.bundle);
    archive.groups = icma_bundle_group_count(archive.bundle);
    archive.sections = icma_bundle_section_count(archive.bundle);
    status = cli_totals_of(archive.bundle, &archive.totals, error);
    if (!status && a->common.json)
        status = info_to_json(&archive, a->common.verbose, error);
    else if (!status)
        status = print_info(&archive, a->common.verbose, error);
    if (status)
        icma_error_set_file(error, path);
    icma_bundle_close(archive.bundle);
    icma_free(path);
    return status;
}

const cli_verb cli_verb_info = {
    .name = "info",
    .purpose = CLI_LOOKS,
    .also = "inspect stat header",
    .operands = "[B.icma]",
    .summary = "show format, generator, sections and training record",
    .description =
        "Shows what an archive is made of: its size by kind, the generator of each signature group,\n"
        "how it was trained, and with -v every section.",
    .options = info_options,
    .examples = (const char *const[]){"icma info loras.icma", "the archive in a page",
                                      "icma info --json | jq .bytes", "sizes by kind, for a script", NULL},
    .exits = (const int[]){0, 1, 2, 4, 6, 7, 9, 10, -1},
    .most_operands = 1,
    .arguments_size = sizeof(info_arguments),
    .run = run_info,
};
