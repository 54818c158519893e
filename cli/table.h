/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Aligned tables. Fill a row cell by cell; widths are found when it is printed.
 */
#ifndef CLI_TABLE_H
#define CLI_TABLE_H

#include "terminal.h"

enum { CLI_TABLE_COLUMNS = 12 };

typedef struct cli_table {
    const char *titles[CLI_TABLE_COLUMNS]; /* a leading '>' aligns the column to the right; all "" or ">": no
                                              head line */
    size_t columns;
    char **cells; /* row by row; owned */
    size_t cell_count;
    bool failed;
} cli_table;

/* Titles up to a NULL; at most CLI_TABLE_COLUMNS. */
cli_table cli_table_of(const char *const *titles);
/* The next cell. The text is escaped; `format` itself is ours. */
void cli_table_cell(cli_table *table, const char *format, ...) ICMA_PRINTF(2, 3);
/* Prints and frees. Each line starts with `indent` blanks. ICMA_E_MEMORY if a cell did not fit into memory.
 */
icma_status cli_table_print(cli_table *table, size_t indent, FILE *out, icma_error *error);
/* For a table that is not printed after all. */
void cli_table_free(cli_table *table);

#endif
