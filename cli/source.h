/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What reading verbs start from: the bundle (named, or the only one here), the device and the limits.
 */
#ifndef CLI_SOURCE_H
#define CLI_SOURCE_H

#include "icma.h"
#include "options.h"

typedef struct cli_decoding {
    const char *device; /* NULL: auto */
    bool scalar;
    cli_whole max_output, max_work;
} cli_decoding;

/* Rows for a verb that decodes; `member` is the cli_decoding in `type`. */
#define CLI_ROWS_DECODING(type, member)                                                                      \
    CLI_ROW_CHOICE(0, "device", "NAME", "auto|cpu|cuda", offsetof(type, member.device),                      \
                   "auto, cpu, cuda or cuda:N (default auto: a GPU if there is\none and enough to decode)"), \
        CLI_ROW_FLAG(0, "scalar", offsetof(type, member.scalar),                                             \
                     "compute with the scalar reference: the same bits, slowly"),                            \
        CLI_ROW(CLI_SIZE, 0, "max-output", "SIZE", offsetof(type, member.max_output),                        \
                "refuse an adapter larger than this (default 4G)"),                                          \
        CLI_ROW(CLI_WHOLE, 0, "max-work", "N", offsetof(type, member.max_work),                              \
                "refuse an adapter that takes more than N multiply-adds\n(default 2^40)")

/* Those that were given, else the defaults. */
icma_limits cli_limits(const cli_decoding *decoding);
/* Opens operands[0] or, without operands, the one .icma file in the current folder, on the device that was
 * named, else on the CPU. *path is owned by the caller (icma_free). */
icma_status cli_bundle_open(const cli_list *operands, const cli_decoding *decoding, icma_bundle **bundle,
                            char **path, icma_error *error);

/* What there is to read and, where the user has chosen, with which device, as details. */
void cli_bundle_explain(const icma_bundle *bundle, const char *path, const cli_decoding *decoding);
/* Checkpoints of all tasks, by the index alone. */
size_t cli_bundle_checkpoints(const icma_bundle *bundle);

/* Chooses the device of the decoding that is ahead, of so many adapters (SIZE_MAX: all), where the user has
 * left that to us. */
icma_status cli_bundle_choose_device(icma_bundle *bundle, const cli_decoding *decoding, size_t adapters,
                                     icma_error *error);
/* icma_bundle_decode, icma_bundle_sample and icma_bundle_generate; on the CPU from then on, with a note,
 * where a device's memory is too small. */
icma_status cli_bundle_decode(icma_bundle *bundle, size_t task, size_t checkpoint, icma_decoded *out,
                              icma_error *error);
icma_status cli_bundle_sample(icma_bundle *bundle, size_t task, uint64_t seed, icma_decoded *out,
                              icma_error *error);
icma_status cli_bundle_generate(icma_bundle *bundle, const icma_generation *what, icma_decoded *out,
                                icma_generated *told, icma_error *error);

/* "its name, or that of a near one" for messages: the tasks of `bundle` most like `name`, as "a", "a or b".
 */
void cli_near_tasks(const icma_bundle *bundle, const char *name, char *text, size_t size);
/* The task of that name; ICMA_E_NOT_FOUND, with near ones, if there is none. */
icma_status cli_choose_task(const icma_bundle *bundle, const char *path, const char *name, size_t *task,
                            icma_error *error);
/* The tasks that were asked for, or all: indices in archive order, without repetition; owned by the caller.
 */
icma_status cli_choose_tasks(const icma_bundle *bundle, const char *path, const cli_list *names,
                             size_t **tasks, size_t *count, icma_error *error);

/* How archives of adapters are unpacked. */
typedef struct cli_finding {
    const char *temporary; /* NULL: the library's default */
    cli_whole max_input;
} cli_finding;

/* Rows for a verb that finds adapters; `member` is the cli_finding in `type`. */
#define CLI_ROWS_FINDING(type, member)                                                                       \
    CLI_ROW(CLI_TEXT, 0, "tmp", "DIR", offsetof(type, member.temporary),                                     \
            "where archives of adapters are unpacked to\n(default $TMPDIR, else /tmp)"),                     \
        CLI_ROW(CLI_SIZE, 0, "max-input", "SIZE", offsetof(type, member.max_input),                          \
                "refuse an archive of adapters that holds more\n(default 16G)")

/* Unpacks to this file from now on, and makes it: for verbs that give up making files (sandbox.h). Only worth
 * a warning where it cannot be: folders are searched without. */
void cli_finding_prepare(const cli_finding *finding);
void cli_finding_done(void);

/* Finds adapters below `paths`, "-" being standard input (`finding` NULL: all by default); what was not taken
 * is named in warnings, and *skipped says whether there was any. */
icma_status cli_inputs_find(const cli_list *paths, const cli_finding *finding, icma_inputs *inputs,
                            bool *skipped, icma_error *error);
/* The options -o, -f and -n of verbs that change an archive: what cannot be, told at once. `verb` names it. */
icma_status cli_check_change_output(const char *output, bool force, bool dry_run, const char *verb, icma_error *error);
/* An output that cannot be is told before minutes of work, not after. */
icma_status cli_try_output(const char *path, bool overwrite, icma_error *error);

#endif
