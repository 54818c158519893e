/* SPDX-License-Identifier: Apache-2.0 */
/* Layers by modules: how far each dW is off; the worst modules and tensors; what is kept as it is. */
#include "report_html.h"

#include "memory.h"

#include <ctype.h>
#include <math.h>
#include <string.h>

enum { MOST_ROWS = 160, MOST_COLUMNS = 24, SHADES = 7, VERBATIM_NAMES = 200, NAME_ROOM = 256 };

/* --- names into rows and columns ----------------------------------------------------------------------- */

typedef struct heat_cell {
    size_t row, column;
    double error;
} heat_cell;

typedef struct heat {
    char (*rows)[NAME_ROOM], (*columns)[NAME_ROOM]; /* owned */
    size_t row_count, column_count;
    heat_cell *cells; /* owned */
    size_t cell_count, left_out;
    double least, most; /* of finite errors */
} heat;

/* "model.layers.3.self_attn.q_proj" is row "model.layers.3", column "self_attn.q_proj": cut behind the last
 * part that is a number and has parts behind it. Parts are separated by . or, as kohya does, by _. Without a
 * number the row is "". */
static size_t row_length(const char *name) {
    size_t cut = 0;
    for (size_t i = 0; name[i];) {
        size_t length = strcspn(name + i, "._"), digits = strspn(name + i, "0123456789");
        bool number = length > 0 && digits == length;
        if (number && name[i + length] && !isdigit((unsigned char)name[i + length + 1]))
            cut = i + length;
        i += length + (name[i + length] != '\0');
    }
    return cut;
}

/* The index of a name among those that are there, as a new one if there is room; SIZE_MAX without. */
static size_t intern(char (*names)[NAME_ROOM], size_t *count, size_t most, const char *text, size_t length) {
    char name[NAME_ROOM];
    snprintf(name, sizeof name, "%.*s", (int)(length < NAME_ROOM ? length : NAME_ROOM - 1), text);
    for (size_t i = 0; i < *count; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    if (*count == most)
        return SIZE_MAX;
    memcpy(names[*count], name, sizeof name);
    return (*count)++;
}

static void heat_free(heat *h) {
    icma_free(h->rows);
    icma_free(h->columns);
    icma_free(h->cells);
}

static icma_status heat_fill(heat *h, const cli_report_row *list, size_t count, icma_error *error) {
    *h = (heat){.rows = icma_alloc_zeroed(MOST_ROWS, NAME_ROOM),
                .columns = icma_alloc_zeroed(MOST_COLUMNS, NAME_ROOM),
                .cells = icma_alloc_array(count + 1, sizeof *h->cells),
                .least = INFINITY,
                .most = -INFINITY};
    if (!h->rows || !h->columns || !h->cells) {
        heat_free(h);
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the report");
    }
    for (size_t i = 0; i < count; i++) {
        const char *name = list[i].name;
        size_t cut = row_length(name), next = cut ? cut + 1 : 0;
        size_t row = intern(h->rows, &h->row_count, MOST_ROWS, name, cut),
               column = intern(h->columns, &h->column_count, MOST_COLUMNS, name + next, strlen(name + next));
        if (row == SIZE_MAX || column == SIZE_MAX) {
            h->left_out++;
            continue;
        }
        h->cells[h->cell_count++] = (heat_cell){row, column, list[i].error};
        if (isfinite(list[i].error)) {
            h->least = fmin(h->least, list[i].error);
            h->most = fmax(h->most, list[i].error);
        }
    }
    return ICMA_OK;
}

/* What all names start with, up to a separator. */
static size_t common_length(char (*names)[NAME_ROOM], size_t count) {
    size_t length = 0;
    for (size_t i = 0, same = 1; count > 1 && same && names[0][i]; i++) {
        for (size_t j = 1; j < count && same; j++)
            same = names[j][i] == names[0][i];
        if (same && strchr("._", names[0][i]))
            length = i + 1;
    }
    return length;
}

/* --- the picture --------------------------------------------------------------------------------------- */

static int shade_of(const heat *h, double error) {
    if (!(h->most > h->least))
        return h->most > 0 ? SHADES / 2 : 0;
    double part = (error / 2 - h->least / 2) /
                  (h->most / 2 - h->least / 2); /* halves: of any numbers that a record says */
    return (int)fmin(SHADES * part, SHADES - 1);
}

static double widest(char (*names)[NAME_ROOM], size_t count, size_t skip, size_t most) {
    size_t characters = 0;
    for (size_t i = 0; i < count; i++) {
        size_t width = cli_width(names[i] + skip);
        characters = width > characters ? width : characters;
    }
    return cli_chart_width(characters < most ? characters : most);
}

static void draw_legend(const heat *h, const cli_chart *c, double y) {
    enum { WIDTH = 34 };
    for (int i = 0; i < SHADES; i++)
        fprintf(c->out, "<g class=\"m%d\"><rect x=\"%.1f\" y=\"%.1f\" width=\"%d\" height=\"10\"/></g>\n", i,
                c->left + i * WIDTH, y, WIDTH);
    cli_chart_text(c, "tick", "start", c->left, y + 23, cli_deviation(h->least).text, 16);
    cli_chart_text(c, "tick", "end", c->left + SHADES * WIDTH, y + 23, cli_deviation(h->most).text, 16);
    cli_chart_text(c, "label", "start", c->left + SHADES * WIDTH + 10, y + 9,
                   "relative error of dW over all adapters", 60);
}

typedef struct heat_size {
    double width, height, most_label;
    bool slanted; /* names of columns */
} heat_size;

static void draw_cells(const heat *h, const cli_chart *c, const heat_size *size) {
    for (size_t i = 0; i < h->cell_count; i++) {
        const heat_cell *cell = &h->cells[i];
        double x = c->left + (double)cell->column * size->width,
               y = c->top + (double)cell->row * size->height;
        bool finite = isfinite(cell->error);
        fprintf(c->out, finite ? "<g class=\"m%d\">" : "<g class=\"mx\">",
                finite ? shade_of(h, cell->error) : 0);
        fprintf(c->out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>", x + 1, y + 1,
                size->width - 2, size->height - 2);
        if (size->width >= 52)
            cli_chart_text(c, "on tick", "middle", x + size->width / 2, y + size->height / 2 + 4,
                           cli_deviation(cell->error).text, 12);
        else if (!finite)
            cli_chart_text(c, "on tick", "middle", x + size->width / 2, y + size->height / 2 + 4, "\u221e",
                           2);
        fputs("</g>\n", c->out);
    }
}

static void draw_names(const heat *h, const cli_chart *c, const heat_size *size, size_t skip) {
    for (size_t i = 0; i < h->row_count; i++)
        cli_chart_text(c, "tick ty", "end", c->left - 8, c->top + ((double)i + 0.5) * size->height + 4,
                       h->rows[i][skip] ? h->rows[i] + skip : "\u2013", 40);
    for (size_t i = 0; i < h->column_count; i++) {
        double x = c->left + ((double)i + 0.5) * size->width, y = c->top - 8;
        if (!size->slanted) {
            cli_chart_text(c, "tick tx", "middle", x, y, h->columns[i], 40);
            continue;
        }
        fprintf(c->out, "<g transform=\"rotate(-45 %.1f %.1f)\">", x, y);
        cli_chart_text(c, "tick slanted", "start", x, y, h->columns[i], 28);
        fputs("</g>\n", c->out);
    }
}

static void draw_heat(const heat *h, FILE *out) {
    size_t skip = common_length(h->rows, h->row_count);
    double left = fmax(24, widest(h->rows, h->row_count, skip, 40) + 16),
           name = widest(h->columns, h->column_count, 0, 28);
    heat_size size = {.width = fmin(112, (900 - left) / (double)h->column_count),
                      .height = h->row_count > 48 ? 16 : 24};
    size.slanted = name + 10 > size.width;
    double over = size.slanted ? name * 0.71 : 0;
    cli_chart c = {.out = out, .left = left, .right = 8 + over, .top = 26 + over, .bottom = 44};
    c.width = fmax(left + (double)h->column_count * size.width + c.right, left + 470);
    c.height = c.top + (double)h->row_count * size.height + c.bottom;
    cli_chart_open(&c, "Relative error of dW, layers by modules");
    draw_names(h, &c, &size, skip);
    draw_cells(h, &c, &size);
    if (isfinite(h->least))
        draw_legend(h, &c, c.height - 30);
    cli_chart_close(&c);
    if (skip)
        cli_page_note(out, "Rows are %.*sN.", (int)skip, h->rows[0]);
    cli_page_more(out, h->left_out, 0, "modules, which did not fit");
}

/* --- tables -------------------------------------------------------------------------------------------- */

/* Columns that there are numbers for: of single adapters only where they were measured, the largest element
 * of a dW only where it was looked for. */
static void put_row(const cli_report_row *row, bool worst, bool maximum, FILE *out) {
    fputs("<tr><td><code>", out);
    cli_html_text(out, row->name);
    fputs("</code></td>", out);
    if (worst)
        cli_html_cell(out, true, cli_deviation(row->worst).text);
    cli_html_cell(out, true, cli_deviation(row->error).text);
    cli_html_cell(out, true, cli_cosine(row->cosine).text);
    if (maximum)
        cli_html_cell(out, true, cli_deviation(row->maximum).text);
    fputs("</tr>\n", out);
}

static icma_status put_rows(const cli_report *r, bool modules, FILE *out, icma_error *error) {
    cli_report_row *rows;
    size_t count, at = 0;
    bool worst = r->measure, maximum = !modules || (r->measure && r->measure->deep);
    icma_status status = cli_report_rows(r, modules, true, &rows, &count, error);
    if (status)
        return status;
    const char *titles[6] = {modules ? "module" : "tensor"};
    if (worst)
        titles[++at] = ">error, worst adapter";
    titles[++at] = worst ? ">over all" : ">relative error";
    titles[++at] = ">cosine";
    if (maximum)
        titles[++at] = ">largest difference";
    if (count && rows[0].error == 0 && !(rows[0].worst > 0)) { /* the worst */
        cli_page_note(out, "All %s %s are exact, in every adapter.", cli_whole_text(count).text,
                      modules ? "modules" : "tensors");
        icma_free(rows);
        return ICMA_OK;
    }
    if (count)
        cli_html_table(out, titles);
    for (size_t i = 0; i < count && i < CLI_REPORT_WORST; i++)
        put_row(&rows[i], worst, maximum, out);
    if (count)
        cli_html_table_end(out);
    else
        cli_page_note(out, "Nothing was recorded. --against DIR measures.");
    cli_page_more(out, count, CLI_REPORT_WORST,
                  modules ? "modules, each nearer to its original" : "tensors, each nearer to its original");
    icma_free(rows);
    return ICMA_OK;
}

/* One map for each group that has pairs. */
static icma_status put_maps(const cli_report *r, FILE *out, icma_error *error) {
    cli_report_row *rows;
    size_t count, drawn = 0, groups = 0;
    icma_status status = cli_report_rows(r, true, false, &rows, &count, error);
    for (size_t first = 0, next; !status && first < count; first = next) {
        heat h;
        for (next = first; next < count && rows[next].group == rows[first].group; next++)
            ;
        if (groups++ >= CLI_PAGE_GROUPS)
            continue;
        status = heat_fill(&h, rows + first, next - first, error);
        if (status)
            break;
        char title[64] = "Error by layer and module";
        if (next - first < count)
            snprintf(title, sizeof title, "Error by layer and module, group %zu", rows[first].group);
        cli_page_figure(out, title,
                        r->measure ? "measured on the originals, over all adapters"
                                   : "as recorded when packing, over all adapters");
        draw_heat(&h, out);
        cli_page_figure_end(out);
        heat_free(&h);
        drawn++;
    }
    cli_page_more(out, groups, drawn, "groups");
    icma_free(rows);
    return status;
}

icma_status cli_page_modules(const cli_report *r, FILE *out, icma_error *error) {
    cli_page_section(out, "modules", "Modules");
    icma_status status = put_maps(r, out, error);
    if (!status)
        status = put_rows(r, true, out, error);
    cli_page_end(out);
    return status;
}

icma_status cli_page_tensors(const cli_report *r, FILE *out, icma_error *error) {
    cli_page_section(out, "tensors", "Worst tensors");
    icma_status status = put_rows(r, false, out, error);
    cli_page_end(out);
    return status;
}

void cli_page_verbatim(const cli_report *r, FILE *out) {
    size_t all = 0, told = 0;
    uint64_t bytes = 0;
    for (size_t i = 0; i < r->group_count; i++) {
        all += r->groups[i].verbatim_count;
        bytes += r->groups[i].verbatim_bytes;
    }
    cli_page_section(out, "verbatim", "Kept as they are");
    if (all == 0)
        fputs("<p>No tensor is kept verbatim: all are modelled.</p>\n", out);
    else
        fprintf(out, "<p>%s tensor%s, %s of one adapter a group, bit for bit as packed.</p>\n<ul>\n",
                cli_whole_text(all).text, cli_plural(all), cli_size(bytes).text);
    for (size_t i = 0; i < r->group_count; i++)
        for (size_t j = 0; j < r->groups[i].verbatim_count && told < VERBATIM_NAMES; j++, told++) {
            fputs("<li><code>", out);
            cli_html_text(out, r->groups[i].verbatim[j]);
            fputs("</code></li>\n", out);
        }
    if (all)
        fputs("</ul>\n", out);
    cli_page_more(out, all, told, "tensors");
    cli_page_end(out);
}
