/* SPDX-License-Identifier: Apache-2.0 */
/* The fidelity report: facts gathered by report_facts.c, told by report_text.c, report_json.c and
 * report_html*.c. */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

#include "facts.h"
#include "measure.h"
#include "record.h"

enum { CLI_REPORT_WORST = 20 }; /* rows of the tables of worst modules and tensors in text */

typedef struct cli_report_checkpoint {
    bool has_step;
    uint64_t step;
    uint32_t group;
    double bytes; /* that are stored for it; NAN where they are damaged */
    double relative_error, dw_mean, dw_max;
} cli_report_checkpoint;

typedef struct cli_report_task {
    char *name; /* owned */
    size_t checkpoints;
    uint64_t bytes;
    cli_stored stored;
    cli_small steps, tiers;
    cli_report_checkpoint *list; /* `checkpoints` of them, by step; owned */
    float *condition;            /* owned; NULL if none */
    size_t condition_size;
} cli_report_task;

typedef struct cli_report_group {
    icma_generator_info generator;
    cJSON *record;   /* owned; may be NULL */
    char **verbatim; /* names of tensors that are kept as they are; owned, as is each */
    size_t verbatim_count;
    uint64_t verbatim_bytes; /* of them in one adapter */
} cli_report_group;

typedef struct cli_report {
    const char *path;
    icma_bytes bytes;
    cli_totals totals;
    cli_balance balance;
    cli_report_task *tasks;
    size_t task_count;
    uint64_t task_bytes; /* of the tasks' own sections, all tasks */
    cli_report_group *groups;
    size_t group_count;
    const cli_measure *measure; /* NULL without --against */
    const struct cli_eval *eval; /* report_eval.h; NULL without --eval */
    const struct cli_map *map;  /* report_map.h; NULL with fewer than two vectors */
} cli_report;

/* Fills everything but `path` and `measure`. Free it in every case. */
icma_status cli_report_gather(icma_bundle *bundle, cli_report *report, icma_error *error);
void cli_report_free(cli_report *report);

/* Bits that a task takes by its parameters: its own bytes, and of those that are shared its part by
 * parameters. */
double cli_report_bits(const cli_report *report, const cli_report_task *task);

/* A row of the tables of worst modules and tensors: over all adapters of its group. */
typedef struct cli_report_row {
    const char *name; /* the report's */
    size_t group;
    double error; /* relative, over all adapters */
    double worst; /* of a single one; NAN where only sums were recorded */
    double cosine, maximum;
} cli_report_row;
/* Rows as measured or, without --against, as recorded, the worst first (or in the groups' order); owned by
 * the caller (icma_free). Not finite errors are the worst. */
icma_status cli_report_rows(const cli_report *report, bool modules, bool sorted, cli_report_row **rows,
                            size_t *count, icma_error *error);

icma_status cli_report_html(const cli_report *report, FILE *out, icma_error *error);
icma_status cli_report_text(const cli_report *report, FILE *out, icma_error *error);
icma_status cli_report_json(const cli_report *report, FILE *out, icma_error *error);

#endif
