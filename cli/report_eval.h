/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Functional fidelity: the user's command scores originals and what the archive gives back (report --eval),
 * and the model without an adapter where a base is told (--eval-base). Gain kept = (base - reconstructed) /
 * (base - original): 1 is nothing lost, whether lower or higher scores are better.
 */
#ifndef CLI_REPORT_EVAL_H
#define CLI_REPORT_EVAL_H

#include "evaluate.h"
#include "measure.h"

typedef struct cli_eval_row {
    char *task; /* owned */
    bool has_step;
    uint64_t step;
    double base, original, reconstructed; /* scores; NAN where there is none */
    double kept;                          /* NAN without a base, or where the original is no gain */
    char *failure;                        /* owned; NULL: none */
} cli_eval_row;

typedef struct cli_eval_options {
    const char *command;   /* NULL: nothing is evaluated */
    const cli_list *bases; /* each a number, TASK=NUMBER, or a command */
    bool all;              /* every checkpoint; else each task's last */
    double seconds;        /* that a run may take; 0: any */
} cli_eval_options;

typedef struct cli_eval {
    const cli_eval_options *options;
    const icma_bundle *bundle; /* for names of tasks */
    cli_evaluator *judge, *base_judge;
    const char *base_command; /* or NULL */
    double common_base;       /* NAN: none */
    cli_eval_row *rows;       /* by task, in the archive's order, then by step; owned */
    size_t count, failed;
} cli_eval;

/* ICMA_E_USAGE for what cannot be: before minutes of measuring. Free it in every case. */
icma_status cli_eval_open(const cli_eval_options *options, const icma_bundle *bundle, cli_eval *out,
                          icma_error *error);
void cli_eval_free(cli_eval *eval);
/* What a cli_measure calls for each pair (measure.h). A run that fails is told in a warning and noted; only
 * signals and memory end it. */
cli_judge cli_eval_judge(cli_eval *eval);
/* After the last one. */
void cli_eval_finish(cli_eval *eval);
/* Mean of the rows' gains kept; NAN without any. */
double cli_eval_kept(const cli_eval *eval);

#endif
