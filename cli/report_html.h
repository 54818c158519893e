/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of the page that report_html.c puts together. Private to report_html*.c. */
#ifndef CLI_REPORT_HTML_H
#define CLI_REPORT_HTML_H

#include "chart.h"
#include "html.h"
#include "report.h"

enum {
    CLI_PAGE_TASKS = 60,  /* rows of tables of tasks */
    CLI_PAGE_PANELS = 12, /* small charts of one kind */
    CLI_PAGE_GROUPS = 4,  /* groups that are drawn */
    CLI_PAGE_LABELS = 8,  /* things that are named in a chart */
    CLI_PAGE_HUES = 6,    /* colours h0 to h5 of the style sheet, told apart by the colour-blind */
};

extern const char cli_page_style[];

/* "<section id=ID><h2>TITLE</h2>"; what it shows follows, and cli_page_end. All ours. */
void cli_page_section(FILE *out, const char *id, const char *title);
void cli_page_end(FILE *out);
/* "<figure><figcaption>TITLE <span>MORE</span></figcaption>". */
void cli_page_figure(FILE *out, const char *title, const char *more);
void cli_page_figure_end(FILE *out);
void cli_page_note(FILE *out, const char *format, ...) ICMA_PRINTF(2, 3);
/* "... and 12 more tasks" where not all are told. */
void cli_page_more(FILE *out, size_t all, size_t told, const char *what);

void cli_page_sizes(const cli_report *report, FILE *out);
void cli_page_balance(const cli_report *report, FILE *out);
void cli_page_rates(const cli_report *report, FILE *out);
icma_status cli_page_modules(const cli_report *report, FILE *out, icma_error *error);
icma_status cli_page_tensors(const cli_report *report, FILE *out, icma_error *error);
void cli_page_verbatim(const cli_report *report, FILE *out);
icma_status cli_page_timeline(const cli_report *report, FILE *out, icma_error *error);
/* Nothing without --eval. */
void cli_page_eval(const cli_report *report, FILE *out);
void cli_page_tasks(const cli_report *report, FILE *out);
icma_status cli_page_map(const cli_report *report, FILE *out, icma_error *error);
icma_status cli_page_training(const cli_report *report, FILE *out, icma_error *error);

#endif
