/* SPDX-License-Identifier: Apache-2.0 */
/* icma diff: fidelity between two adapters or trees, from files alone. */
#include "measure.h"
#include "message.h"
#include "progress.h"
#include "source.h"
#include "verbs.h"

typedef struct diff_arguments {
    cli_common common;
    cli_finding finding;
    bool deep;
} diff_arguments;

static const cli_option diff_options[] = {
    CLI_ROW_FLAG(0, "deep", offsetof(diff_arguments, deep),
                 "find the largest element of each dW difference too"),
    CLI_ROWS_FINDING(diff_arguments, finding),
    CLI_ROW_VERBOSE("every checkpoint, every module and every tensor"),
    CLI_ROW_JSON,
    CLI_ROW_NO_PROGRESS,
    CLI_ROW_NO_COLOR,
    CLI_ROW_HELP,
    CLI_ROW_END,
};

static icma_status print_diff(const cli_measure *measure, bool verbose, icma_error *error) {
    icma_status status = cli_measure_print(measure, stdout, error);
    if (!verbose)
        return status;
    if (!status && measure->total.adapters > 1) {
        putchar('\n');
        status = cli_measure_print_checkpoints(measure, stdout, error);
    }
    if (!status && measure->total.modules) {
        putchar('\n');
        status = cli_measure_print_modules(measure, 0, stdout, error);
    }
    if (!status) {
        putchar('\n');
        status = cli_measure_print_tensors(measure, 0, stdout, error);
    }
    return status;
}

static icma_status diff_to_json(const cli_measure *measure, const cli_list *operands, icma_error *error) {
    cJSON *root = cli_json_object();
    cli_json_text(root, "original", operands->items[0]);
    cli_json_text(root, "other", operands->items[1]);
    cli_measure_to_json(measure, root);
    return cli_json_print(root, stdout, error);
}

static icma_status run_diff(const void *arguments, const cli_list *operands, icma_error *error) {
    const diff_arguments *a = arguments;
    cli_measure measure = {.deep = a->deep, .finding = &a->finding};
    icma_status status = cli_measure_paths(operands->items[0], operands->items[1], &measure, error);
    cli_progress_clear();
    if (!status && a->common.json)
        status = diff_to_json(&measure, operands, error);
    else if (!status)
        status = print_diff(&measure, a->common.verbose, error);
    bool partial = measure.unmatched || measure.skipped;
    cli_measure_free(&measure);
    return status == ICMA_OK && partial ? ICMA_E_PARTIAL : status;
}

const cli_verb cli_verb_diff = {
    .name = "diff",
    .purpose = CLI_LOOKS,
    .also = "compare cmp",
    .operands = "ORIGINAL OTHER",
    .summary = "measure how far one adapter or tree is from another",
    .description =
        "Compares two safetensors files, two adapter folders, two trees, or archives of them (tar, zip,\n"
        "7z; - is one from standard input). Tasks are matched by name and checkpoints by step; one\n"
        "without a number stands for its task's last. For each LoRA pair it measures dW = scale * B A,\n"
        "with the scale from adapter_config.json beside the original.\n"
        "Relative error is |x - y| / |x|.",
    .options = diff_options,
    .examples = (const char *const[]){"icma diff loras out", "two trees",
                                      "icma diff -v a/adapter_model.safetensors b/adapter_model.safetensors",
                                      "two adapters, tensor by tensor", NULL},
    .exits = (const int[]){0, 1, 2, 3, 4, 6, 7, 9, 10, -1},
    .least_operands = 2,
    .most_operands = 2,
    .arguments_size = sizeof(diff_arguments),
    .run = run_diff,
};
