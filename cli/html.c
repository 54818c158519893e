/* SPDX-License-Identifier: Apache-2.0 */
#include "html.h"

#include <string.h>

static void put_reference(FILE *out, char c) {
    switch (c) {
    case '&':
        fputs("&amp;", out);
        break;
    case '<':
        fputs("&lt;", out);
        break;
    case '>':
        fputs("&gt;", out);
        break;
    case '"':
        fputs("&quot;", out);
        break;
    case '\'':
        fputs("&#39;", out);
        break;
    default:
        fputc(c, out);
    }
}

void cli_html_short(FILE *out, const char *text, size_t most) {
    icma_buffer safe = {0};
    cli_append_safe(&safe, text);
    icma_write_u8(&safe, 0);
    const char *all = safe.failed ? "" : (const char *)safe.data;
    bool fits = cli_width(all) <= most;
    size_t length = fits ? strlen(all) : cli_fitting(all, most - 1);
    for (size_t i = 0; i < length; i++)
        put_reference(out, all[i]);
    if (!fits)
        fputs("\u2026", out);
    icma_buffer_free(&safe);
}

void cli_html_text(FILE *out, const char *text) {
    cli_html_short(out, text, SIZE_MAX);
}

void cli_html_cell(FILE *out, bool number, const char *text) {
    fputs(number ? "<td class=\"n\">" : "<td>", out);
    cli_html_text(out, text);
    fputs("</td>", out);
}

void cli_html_table(FILE *out, const char *const *titles) {
    fputs("<div class=\"wide\"><table>\n<thead><tr>", out);
    for (; *titles; titles++) {
        bool number = **titles == '>';
        fputs(number ? "<th class=\"n\">" : "<th>", out);
        cli_html_text(out, *titles + number);
        fputs("</th>", out);
    }
    fputs("</tr></thead>\n<tbody>\n", out);
}

void cli_html_table_end(FILE *out) {
    fputs("</tbody></table></div>\n", out);
}
