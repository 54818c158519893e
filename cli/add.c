/* SPDX-License-Identifier: Apache-2.0 */
/* icma add: new tasks into an archive, without retraining. */
#include "add.h"

#include "device.h"
#include "memory.h"
#include "pack.h"
#include "progress.h"
#include "source.h"
#include "verbs.h"

#include <string.h>
#include <sys/stat.h>

typedef struct add_arguments {
    cli_common common;
    cli_finding finding;
    cli_decoding decoding;
    const char *output;
    bool force, dry_run;
    const char *tier, *max_error, *checkpoints, *generator;
    cli_whole restart, epochs, seed, threads;
} add_arguments;

#define AT(field) offsetof(add_arguments, field)

static const cli_option add_options[] = {
    CLI_ROW_HEADING("Output"),
    CLI_ROW(CLI_TEXT, 'o', "output", "FILE", AT(output),
            "write the new archive to FILE, leave the old one as it is"),
    CLI_ROW_FLAG('f', "force", AT(force), "replace FILE if it exists"),
    CLI_ROW_FLAG('n', "dry-run", AT(dry_run),
                 "do all but let the new archive appear; tell what would come of it"),
    CLI_ROW_HEADING("What to keep"),
    CLI_ROW_CHOICE(0, "tier", "TIER", "bounded|lossless|latent|generate", AT(tier),
                   "bounded, lossless, latent or generate (default: as the archive's\ntasks are kept)"),
    CLI_ROW(CLI_TEXT, 0, "max-error", "dw=X|rel=X|abs=X", AT(max_error),
            "as for pack (default: the archive's)"),
    CLI_ROW(CLI_TEXT, 0, "checkpoints", "all|last:N", AT(checkpoints),
            "which checkpoints of each task to add (default all)"),
    CLI_ROW_RANGE(CLI_WHOLE, 0, "restart", "N", AT(restart), 1, 1e9,
                  "lossless: most checkpoints in a chain of predictions"),
    CLI_ROW_HEADING("What predicts it"),
    CLI_ROW_CHOICE(0, "generator", "KIND", "auto|old|new", AT(generator),
                   "auto: whichever is expected to take fewer bytes (default);\n"
                   "old: the archive's, with an offset for each new task;\n"
                   "new: their own, learned from them alone, as pack would;\n"
                   "new steps of a task always have the task's"),
    CLI_ROW_RANGE(CLI_WHOLE, 0, "epochs", "N", AT(epochs), 1, 1e9,
                  "of a new generator: passes over the checkpoints"),
    CLI_ROW(CLI_WHOLE, 0, "seed", "N", AT(seed), "seed of every random choice"),
    CLI_ROW_HEADING("Machine"),
    CLI_ROWS_DECODING(add_arguments, decoding),
    CLI_ROW_RANGE(CLI_WHOLE, 'T', "threads", "N", AT(threads), 1, 4096,
                  "threads (default: as many as the machine has)"),
    CLI_ROWS_FINDING(add_arguments, finding),
    CLI_ROW_HEADING("Talk"),
    CLI_ROW_QUIET,
    CLI_ROW_VERBOSE("what is decided, and why"),
    CLI_ROW_JSON,
    CLI_ROW_NO_PROGRESS,
    CLI_ROW_NO_COLOR,
    CLI_ROW_HELP,
    CLI_ROW_END,
};

static void tell_default(const cli_option *option, char *text, size_t size) {
    icma_pack_options standard = icma_pack_defaults();
    if (option->kind != CLI_HEADING && option->target == AT(restart))
        snprintf(text, size, "%zu", standard.restart);
    if (option->kind != CLI_HEADING && option->target == AT(seed))
        snprintf(text, size, "%llu", (unsigned long long)standard.seed);
}

static icma_status read_choice(const char *generator, icma_add_options *options, icma_error *error) {
    static const char *const names[] = {
        [ICMA_ADD_AUTO] = "auto", [ICMA_ADD_OLD] = "old", [ICMA_ADD_NEW] = "new"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!generator || strcmp(generator, names[i]) == 0) {
            options->choice = (icma_add_choice)i;
            return ICMA_OK;
        }
    return icma_fail(error, ICMA_E_USAGE, NULL, "--generator takes auto, old or new, not \"%s\"", generator);
}

/* The options of the library, which point at each other. */
typedef struct wishes {
    icma_change_options change;
    icma_pack_options pack;
    icma_limits limits;
    icma_add_options add;
} wishes;

static icma_status read_pack(const add_arguments *a, icma_pack_options *pack, icma_error *error) {
    icma_status status = cli_pack_read_tier(a->tier, pack, error);
    if (!status && a->max_error)
        status = cli_pack_read_bound(a->max_error, pack, error);
    if (!status)
        status = cli_pack_read_checkpoints(a->checkpoints, pack, error);
    if (a->restart.given)
        pack->restart = (size_t)a->restart.value;
    if (a->epochs.given)
        pack->epochs = (size_t)a->epochs.value;
    if (a->seed.given)
        pack->seed = a->seed.value;
    pack->threads = a->threads.given ? (int)a->threads.value : 0;
    pack->scalar = a->decoding.scalar;
    return status;
}

static icma_status read_options(const add_arguments *a, wishes *w, icma_error *error) {
    w->change = icma_change_defaults();
    w->change.output = a->output;
    w->change.overwrite = a->force;
    w->change.dry_run = a->dry_run;
    w->change.progress = cli_progress_hooks();
    w->pack = icma_pack_defaults();
    w->limits = cli_limits(&a->decoding);
    w->add = icma_add_defaults();
    w->add.change = &w->change;
    w->add.pack = &w->pack;
    w->add.limits = &w->limits;
    w->add.same_tier = !a->tier && !a->max_error;
    icma_status status = cli_check_change_output(a->output, a->force, a->dry_run, "add", error);
    if (!status)
        status = read_choice(a->generator, &w->add, error);
    return status ? status : read_pack(a, &w->pack, error);
}

static icma_status add_found(const add_arguments *a, const char *path, const icma_inputs *inputs,
                             const wishes *w, icma_error *error) {
    const struct icma_ops *ops;
    icma_add_result result;
    icma_status status = icma_device_open(a->decoding.device ? a->decoding.device : "auto",
                                          ICMA_PRECISION_F32, cli_pack_work(inputs, &w->pack), &ops, error);
    if (!status)
        status = icma_bundle_add(path, inputs, &w->add, ops, &result, error);
    cli_progress_clear();
    if (status) {
        icma_error_set_file(error, path);
        return status;
    }
    status = cli_add_tell(a->output ? a->output : path, path, a->dry_run, &result, &a->common, error);
    icma_add_result_free(&result);
    return status;
}

/* A first operand that is no archive is told as such, before the others are searched. */
static icma_status check_bundle(const add_arguments *a, const cli_list *operands, icma_error *error) {
    const cli_decoding plain = {.max_output = a->decoding.max_output, .max_work = a->decoding.max_work};
    icma_bundle *bundle;
    char *path;
    icma_status status = cli_bundle_open(operands, &plain, &bundle, &path, error);
    if (status)
        return status;
    icma_bundle_close(bundle);
    icma_free(path);
    return ICMA_OK;
}

static icma_status run_add(const void *arguments, const cli_list *operands, icma_error *error) {
    const add_arguments *a = arguments;
    const cli_list paths = {operands->items + 1, operands->count - 1};
    wishes w;
    icma_inputs inputs = {0};
    bool skipped = false;
    if (operands->count < 2)
        return icma_fail(error, ICMA_E_USAGE, NULL,
                         "what is to be added was not named; icma add B.icma DIR...");
    icma_status status = read_options(a, &w, error);
    if (!status)
        status = check_bundle(a, operands, error);
    if (!status)
        status = cli_inputs_find(&paths, &a->finding, &inputs, &skipped, error);
    if (!status)
        status = add_found(a, operands->items[0], &inputs, &w, error);
    icma_inputs_free(&inputs);
    return status == ICMA_OK && skipped ? ICMA_E_PARTIAL : status;
}

const cli_verb cli_verb_add = {
    .name = "add",
    .also = "append insert update extend",
    .operands = "B.icma DIR|FILE...",
    .summary = "add tasks, or new steps of tasks, to an archive, without retraining",
    .description =
        "Adds LoRA adapters to an archive, in place or into another file. New tasks are predicted by\n"
        "the archive's generator as well as it can, or by one of their own, and coded to the same\n"
        "error bound as the others; all other sections keep their bytes. New adapters are decoded\n"
        "again and checked before the archive changes. Tells how well the old generator serves them.\n"
        "A task that is there goes on: checkpoints after its last step are added to it, those whose\n"
        "steps are there are passed over; the last of these must be the archive's.",
    .options = add_options,
    .examples = (const char *const[]){"icma add loras.icma dog", "the task dog, found below dog/",
                                      "icma add loras.icma dog -o more.icma", "loras.icma stays as it is",
                                      "icma add loras.icma loras", "new tasks, and new steps of those it has",
                                      "icma add loras.icma dog -n", "what would come of it", NULL},
    .exits = (const int[]){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, -1},
    .least_operands = 1,
    .most_operands = SIZE_MAX,
    .tell_default = tell_default,
    .arguments_size = sizeof(add_arguments),
    .run = run_add,
};
