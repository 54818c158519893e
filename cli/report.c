/* SPDX-License-Identifier: Apache-2.0 */
/* icma report: gathers the facts of the fidelity report and puts it where it is wanted. */
#include "report.h"

#include "file.h"
#include "memory.h"
#include "progress.h"
#include "report_eval.h"
#include "report_map.h"
#include "source.h"
#include "verbs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct report_arguments {
    cli_common common;
    cli_finding finding;
    cli_decoding decoding;
    const char *output, *against, *vectors;
    const char *eval, *eval_checkpoint;
    cli_list eval_bases;
    cli_real eval_timeout;
    bool force, zstd, deep;
} report_arguments;

#define AT(field) offsetof(report_arguments, field)

static const cli_option report_options[] = {
    CLI_ROW_HEADING("Output"),
    CLI_ROW(CLI_TEXT, 'o', "output", "FILE", AT(output),
            "r.html, r.json or r.txt, by its ending; - (the default) is\nstandard output, as text or with "
            "--json"),
    CLI_ROW_FLAG('f', "force", AT(force), "replace the output if it exists"),
    CLI_ROW_HEADING("Beside the originals"),
    CLI_ROW(CLI_TEXT, 0, "against", "DIR", AT(against),
            "measure against the original adapters below DIR, or in\nan archive, not from what packing recorded"),
    CLI_ROW_FLAG(0, "zstd", AT(zstd),
                 "with --against: compress the originals with zstd -19,\nto compare; slow"),
    CLI_ROW_FLAG(0, "deep", AT(deep), "with --against: the largest element of each dW\ndifference too"),
    CLI_ROWS_FINDING(report_arguments, finding),
    CLI_ROW_HEADING("In the adapters' own task"),
    CLI_ROW(CLI_TEXT, 0, "eval", "CMD", AT(eval),
            "with --against: score originals and what the archive\ngives back by CMD, as in 'score.py {task} "
            "{adapter}':\n{adapter} is a PEFT folder; the last number that it\nprints is the score"),
    CLI_ROW(CLI_LIST, 0, "eval-base", "X", AT(eval_bases),
            "the score without an adapter, to tell the gain kept: a\nnumber, TASK=NUMBER (may be repeated), "
            "or a command, as\n'score.py {task}'"),
    CLI_ROW(CLI_TEXT, 0, "eval-checkpoint", "WHICH", AT(eval_checkpoint),
            "last or all (default last, of each task)"),
    CLI_ROW_RANGE(CLI_REAL, 0, "eval-timeout", "SECONDS", AT(eval_timeout), 0.001, 1e9,
                  "end a run of CMD that takes longer (default: none)"),
    CLI_ROW_HEADING("Map of the tasks"),
    CLI_ROW(CLI_TEXT, 0, "vectors", "DIR", AT(vectors),
            "map the vectors of samples in DIR/TASK.safetensors or\n.npy, a row a sample, not the archive's "
            "conditions"),
    CLI_ROW_HEADING("Machine"),
    CLI_ROWS_DECODING(report_arguments, decoding),
    CLI_ROW_HEADING("Talk"),
    CLI_ROW_QUIET,
    CLI_ROW_JSON,
    CLI_ROW_NO_PROGRESS,
    CLI_ROW_NO_COLOR,
    CLI_ROW_HELP,
    CLI_ROW_END,
};

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the report");
}

/* --- where it goes ---------------------------------------------------------------------------------------
 */

static bool ends_with(const char *text, const char *ending) {
    size_t length = strlen(text), wanted = strlen(ending);
    return length > wanted && strcmp(text + length - wanted, ending) == 0;
}

static bool to_stdout(const report_arguments *a) {
    return !a->output || strcmp(a->output, "-") == 0;
}

typedef enum form { AS_TEXT, AS_JSON, AS_HTML } form;

static icma_status check_eval(const report_arguments *a, icma_error *error) {
    if (a->eval && !a->against)
        return icma_fail(error, ICMA_E_USAGE, NULL, "--eval needs the originals; add --against DIR");
    if (!a->eval && (a->eval_bases.count || a->eval_checkpoint || a->eval_timeout.given))
        return icma_fail(error, ICMA_E_USAGE, NULL,
                         "--eval-base, --eval-checkpoint and --eval-timeout go with --eval CMD");
    if (a->eval_checkpoint && strcmp(a->eval_checkpoint, "last") != 0 &&
        strcmp(a->eval_checkpoint, "all") != 0)
        return icma_fail(error, ICMA_E_USAGE, NULL, "--eval-checkpoint takes last or all, not \"%s\"",
                         a->eval_checkpoint);
    return ICMA_OK;
}

static icma_status check_options(const report_arguments *a, form *as, icma_error *error) {
    *as = a->common.json ? AS_JSON : AS_TEXT;
    icma_status status = check_eval(a, error);
    if (status)
        return status;
    if ((a->zstd || a->deep) && !a->against)
        return icma_fail(error, ICMA_E_USAGE, NULL,
                         "--zstd and --deep look at the originals; add --against DIR");
    if (to_stdout(a))
        return ICMA_OK;
    if (ends_with(a->output, ".json")) {
        *as = AS_JSON;
        return ICMA_OK;
    }
    if (ends_with(a->output, ".html") || ends_with(a->output, ".htm"))
        *as = AS_HTML;
    else if (!ends_with(a->output, ".txt"))
        return icma_fail(error, ICMA_E_USAGE, a->output, "a report ends in .html, .json or .txt; name it so");
    if (a->common.json)
        return icma_fail(error, ICMA_E_USAGE, a->output,
                         "--json does not go with this name; let it end in .json");
    return ICMA_OK;
}

static icma_status write_out(const char *path, bool overwrite, const char *text, size_t size,
                             icma_error *error) {
    icma_output *output;
    icma_status status = icma_output_create(path, overwrite, &output, error);
    if (status)
        return status;
    status = icma_output_write(output, text, size, error);
    if (!status)
        return icma_output_commit(output, error);
    icma_output_abandon(output);
    return status;
}

static icma_status tell(const cli_report *report, form as, FILE *out, icma_error *error) {
    switch (as) {
    case AS_JSON:
        return cli_report_json(report, out, error);
    case AS_HTML:
        return cli_report_html(report, out, error);
    case AS_TEXT:
        break;
    }
    return cli_report_text(report, out, error);
}

static icma_status tell_to_file(const report_arguments *a, const cli_report *report, form as,
                                icma_error *error) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return no_memory(error);
    icma_status status = tell(report, as, out, error);
    bool failed = ferror(out);
    if (fclose(out) != 0 || failed)
        status = status ? status : no_memory(error);
    if (!status)
        status = write_out(a->output, a->force, text, size, error);
    free(text);
    if (!status && !a->common.quiet) {
        fputs("wrote ", stderr);
        cli_print_safe(stderr, a->output);
        fputc('\n', stderr);
    }
    return status;
}

/* Everything there is to tell, into `report`; what it points to stays the caller's. */
static icma_status gather(const report_arguments *a, form as, icma_bundle *bundle, cli_report *report,
                          cli_measure *measure, cli_eval *eval, cli_map **map, icma_error *error) {
    icma_status status = cli_report_gather(bundle, report, error);
    if (!status && a->against)
        status = cli_bundle_choose_device(bundle, &a->decoding, SIZE_MAX, error);
    if (!status && a->against) {
        measure->judge = cli_eval_judge(eval);
        status = cli_measure_bundle(bundle, report->path, a->against, measure, error);
        cli_eval_finish(eval);
        report->measure = measure;
        report->eval = a->eval ? eval : NULL;
    }
    if (!status)
        status = cli_map_make(report, a->vectors, as != AS_TEXT, map, error);
    report->map = *map;
    cli_progress_clear();
    return status;
}

static icma_status report_bundle(const report_arguments *a, icma_bundle *bundle, const char *path, form as,
                                 icma_error *error) {
    cli_report report = {.path = path};
    cli_measure measure = {.deep = a->deep, .zstd = a->zstd, .finding = &a->finding};
    cli_eval_options options = {
        .command = a->eval, .bases = &a->eval_bases, .seconds = a->eval_timeout.value};
    options.all = a->eval_checkpoint && strcmp(a->eval_checkpoint, "all") == 0;
    cli_eval eval;
    cli_map *map = NULL;
    icma_status status = cli_eval_open(&options, bundle, &eval, error);
    if (!status && !to_stdout(a))
        status = cli_try_output(a->output, a->force, error);
    if (!status)
        status = gather(a, as, bundle, &report, &measure, &eval, &map, error);
    if (!status && to_stdout(a))
        status = tell(&report, as, stdout, error);
    else if (!status)
        status = tell_to_file(a, &report, as, error);
    if (!status && measure.damaged)
        status = ICMA_E_CORRUPT; /* named already */
    else if (!status && (measure.unmatched || measure.skipped || measure.worse || eval.failed))
        status = ICMA_E_PARTIAL;
    cli_measure_free(&measure);
    cli_eval_free(&eval);
    cli_map_free(map);
    cli_report_free(&report);
    return status;
}

static icma_status run_report(const void *arguments, const cli_list *operands, icma_error *error) {
    const report_arguments *a = arguments;
    icma_bundle *bundle;
    char *path;
    form as;
    icma_status status = check_options(a, &as, error);
    if (status)
        return status;
    status = cli_bundle_open(operands, &a->decoding, &bundle, &path, error);
    if (status)
        return status;
    status = report_bundle(a, bundle, path, as, error);
    if (status)
        icma_error_set_file(error, path);
    icma_bundle_close(bundle);
    icma_free(path);
    return status;
}

const cli_verb cli_verb_report = {
    .name = "report",
    .purpose = CLI_LOOKS,
    .also = "stats summary analyse analyze evaluate",
    .operands = "[B.icma] [-o r.html|r.json|r.txt|-]",
    .summary = "write the fidelity report",
    .description =
        "Tells where an archive's bytes went, how far each task, module and tensor is from its original,\n"
        "and what the generator cost and saved. Without --against the errors are those that were\n"
        "measured and recorded when packing.",
    .options = report_options,
    .examples =
        (const char *const[]){
            "icma report loras.icma", "on the terminal", "icma report loras.icma -o r.html",
            "one page with pictures, complete in itself", "icma report loras.icma -o r.json --against loras",
            "measured on the originals, for a script",
            "icma report loras.icma -o r.txt --against loras --zstd",
            "beside what zstd -19 makes of the same files",
            "icma report loras.icma -o r.html --against loras --eval 'score.py {task} {adapter}'",
            "with what packing cost in the adapters' own task", NULL},
    .exits = (const int[]){0, 1, 2, 3, 4, 6, 7, 8, 9, 10, -1},
    .most_operands = 1,
    .arguments_size = sizeof(report_arguments),
    .run = run_report,
};
