/* SPDX-License-Identifier: Apache-2.0 */
/* The fidelity report: facts gathered by report.c, told by report_text.c and report_json.c. */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

#include "facts.h"
#include "measure.h"
#include "record.h"

enum { CLI_REPORT_WORST = 20 }; /* rows of the tables of worst modules and tensors in text */

typedef struct cli_report_task {
    char *name; /* owned */
    size_t checkpoints;
    uint64_t bytes;
    cli_stored stored;
    cli_small steps, tiers;
} cli_report_task;

typedef struct cli_report_group {
    icma_generator_info generator;
    cJSON *record; /* owned; may be NULL */
} cli_report_group;

typedef struct cli_report {
    const char *path;
    icma_bytes bytes;
    cli_totals totals;
    cli_balance balance;
    cli_report_task *tasks;
    size_t task_count;
    cli_report_group *groups;
    size_t group_count;
    const cli_measure *measure; /* NULL without --against */
} cli_report;

icma_status cli_report_text(const cli_report *report, FILE *out, icma_error *error);
icma_status cli_report_json(const cli_report *report, FILE *out, icma_error *error);

#endif
