/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text in HTML and in SVG inside it. Everything that did not come from us goes through cli_html_text: names
 * of tasks, modules and files are a stranger's.
 */
#ifndef CLI_HTML_H
#define CLI_HTML_H

#include "terminal.h"

/* `text` as cli_append_safe makes it harmless, then with & < > " ' as references: for content and for quoted
 * attributes. */
void cli_html_text(FILE *out, const char *text);
/* The same of at most `most` columns (cli_width), at least 1; an ellipsis tells that there is more. */
void cli_html_short(FILE *out, const char *text, size_t most);
/* A cell of a table, aligned to the right where `number`: "<td class=n>...</td>". */
void cli_html_cell(FILE *out, bool number, const char *text);
/* The head of a table: titles up to a NULL; a leading '>' aligns to the right. */
void cli_html_table(FILE *out, const char *const *titles);
void cli_html_table_end(FILE *out);

#endif
