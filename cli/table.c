/* SPDX-License-Identifier: Apache-2.0 */
#include "table.h"

#include "memory.h"

#include <stdarg.h>
#include <string.h>

cli_table cli_table_of(const char *const *titles) {
    cli_table table = {0};
    for (; *titles && table.columns < CLI_TABLE_COLUMNS; titles++)
        table.titles[table.columns++] = *titles;
    return table;
}

void cli_table_cell(cli_table *table, const char *format, ...) {
    char text[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    icma_buffer safe = {0};
    cli_append_safe(&safe, text);
    char *cell = icma_copy_text(safe.size ? (const char *)safe.data : "", safe.size);
    icma_buffer_free(&safe);
    char **cells = icma_resize_array(table->cells, table->cell_count + 1, sizeof *cells);
    if (cells)
        table->cells = cells;
    if (!cell || !cells) {
        table->failed = true;
        icma_free(cell);
        return;
    }
    cells[table->cell_count++] = cell;
}

static bool is_right(const cli_table *table, size_t column) {
    return table->titles[column][0] == '>';
}

static const char *title_of(const cli_table *table, size_t column) {
    return table->titles[column] + is_right(table, column);
}

/* The last column is not padded: no blanks at line ends. */
static void print_cell(const cli_table *table, size_t column, const char *text, size_t width, FILE *out) {
    size_t gap = width - cli_width(text);
    bool last = column + 1 == table->columns;
    if (is_right(table, column))
        fprintf(out, "%*s%s", (int)gap, "", text);
    else
        fprintf(out, "%s%*s", text, last ? 0 : (int)gap, "");
    fputs(last ? "\n" : "  ", out);
}

static void find_widths(const cli_table *table, size_t *widths, bool *headed) {
    *headed = false;
    for (size_t column = 0; column < table->columns; column++) {
        widths[column] = cli_width(title_of(table, column));
        *headed |= widths[column] > 0;
    }
    for (size_t i = 0; i < table->cell_count; i++) {
        size_t width = cli_width(table->cells[i]), *widest = &widths[i % table->columns];
        *widest = width > *widest ? width : *widest;
    }
}

void cli_table_free(cli_table *table) {
    for (size_t i = 0; i < table->cell_count; i++)
        icma_free(table->cells[i]);
    icma_free(table->cells);
    *table = (cli_table){0};
}

icma_status cli_table_print(cli_table *table, size_t indent, FILE *out, icma_error *error) {
    size_t widths[CLI_TABLE_COLUMNS];
    bool headed;
    find_widths(table, widths, &headed);
    if (headed) {
        fprintf(out, "%*s%s", (int)indent, "", cli_style(out, CLI_BOLD));
        for (size_t column = 0; column < table->columns; column++)
            print_cell(table, column, title_of(table, column), widths[column], out);
        fputs(cli_style(out, CLI_PLAIN), out);
    }
    for (size_t i = 0; i < table->cell_count; i++) {
        size_t column = i % table->columns;
        if (column == 0)
            fprintf(out, "%*s", (int)indent, "");
        print_cell(table, column, table->cells[i], widths[column], out);
    }
    bool failed = table->failed;
    cli_table_free(table);
    return failed ? icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for a table") : ICMA_OK;
}
