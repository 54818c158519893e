/* SPDX-License-Identifier: Apache-2.0 */
/* Where the bytes are, beside what other ways would take, and from how many adapters on an archive pays. */
#include "report_html.h"

#include <math.h>
#include <string.h>

enum { BARS = 8, BAR_HEIGHT = 26 };

typedef struct bar {
    const char *name;
    double bytes;
    bool ours, strong;
} bar;

/* Horizontal bars from a common zero, each with its number. */
static void draw_bars(FILE *out, const char *title, const bar *bars, size_t count, double whole) {
    double most = 1;
    for (size_t i = 0; i < count; i++)
        most = fmax(most, bars[i].bytes);
    cli_chart c = {.out = out,
                   .width = 440,
                   .height = (double)count * BAR_HEIGHT + 4,
                   .left = 92,
                   .right = 142,
                   .top = 2,
                   .bottom = 2,
                   .x = {0, most, 0, 0, false},
                   .y = {0, 1, 0, 0, false}};
    cli_chart_open(&c, title);
    for (size_t i = 0; i < count; i++) {
        double y = 2 + (double)i * BAR_HEIGHT, end = cli_scale_at(&c.x, bars[i].bytes);
        char text[128];
        snprintf(text, sizeof text, "%s \u00b7 %s", cli_size((uint64_t)(bars[i].bytes + 0.5)).text,
                 cli_percent(bars[i].bytes, whole).text);
        cli_chart_text(&c, bars[i].strong ? "strong" : "plain", "end", c.left - 8, y + 17, bars[i].name, 16);
        if (bars[i].bytes > 0)
            fprintf(out, "<rect class=\"fill %s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\"/>\n",
                    bars[i].ours ? "h0" : "h5", c.left, y + 4, fmax(1, end - c.left), BAR_HEIGHT - 9);
        cli_chart_text(&c, bars[i].strong ? "strong" : "plain", "start", end + 6, y + 17, text, 40);
    }
    fprintf(out, "<line class=\"axis\" x1=\"%.1f\" y1=\"0\" x2=\"%.1f\" y2=\"%.1f\"/>\n", c.left, c.left,
            c.height);
    cli_chart_close(&c);
}

void cli_page_sizes(const cli_report *r, FILE *out) {
    const icma_bytes *b = &r->bytes;
    const bar kinds[] = {
        {"generator", (double)b->generator, true, false}, {"conditions", (double)b->conditions, true, false},
        {"latents", (double)b->latents, true, false},     {"residuals", (double)b->residuals, true, false},
        {"verbatim", (double)b->verbatim, true, false},   {"metadata", (double)b->metadata, true, false},
        {"index", (double)b->index, true, false}};
    bar others[BARS] = {{"as files", (double)r->totals.file_bytes, false, false}};
    size_t count = 1;
    if (r->measure && r->measure->zstd && r->measure->original_bytes)
        others[count++] =
            (bar){r->measure->original_bytes == r->totals.file_bytes ? "zstd -19" : "zstd -19, part",
                  (double)r->measure->zstd_bytes, false, false};
    others[count++] = (bar){"16-bit casts", (double)r->balance.half_size, false, false};
    others[count++] = (bar){"this archive", (double)b->total, true, true};
    cli_page_section(out, "sizes", "Sizes");
    fputs("<div class=\"pair\">\n", out);
    cli_page_figure(out, "Where the archive\u2019s bytes are",
                    "share of the archive; padding counts with its section");
    draw_bars(out, "Bytes of the archive by kind", kinds, sizeof kinds / sizeof *kinds, (double)b->total);
    cli_page_figure_end(out);
    cli_page_figure(out, "Beside other ways to keep the same adapters",
                    r->measure && r->measure->zstd
                        ? "share of the files; zstd -19 of each file by itself"
                        : "share of the files; --against DIR --zstd compares with zstd -19");
    draw_bars(out, "Bytes of the files, of other ways to keep them, and of the archive", others, count,
              (double)r->totals.file_bytes);
    cli_page_figure_end(out);
    fputs("</div>\n", out);
    cli_page_end(out);
}

/* --- break-even ---------------------------------------------------------------------------------------- */

typedef struct unit {
    const char *name;
    double bytes;
} unit;

static unit unit_for(double bytes) {
    static const unit units[] = {{"GiB", 0x1p30}, {"MiB", 0x1p20}, {"KiB", 0x1p10}};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (bytes >= units[i].bytes)
            return units[i];
    return (unit){"bytes", 1};
}

static void draw_balance(const cli_report *r, FILE *out) {
    const cli_balance *b = &r->balance;
    double adapters = (double)r->totals.checkpoints, half = (double)b->half_size / adapters;
    double most = b->break_even
                      ? fmin(fmax(4 * (double)b->break_even, 8), 4 * fmax(adapters, (double)b->break_even))
                      : fmax(adapters, 2);
    unit u = unit_for(fmax(most * half, (double)b->shared + most * b->marginal));
    double x[] = {0, most}, casts[] = {0, most * half / u.bytes},
           ours[] = {(double)b->shared / u.bytes, ((double)b->shared + most * b->marginal) / u.bytes};
    char label[64];
    snprintf(label, sizeof label, "%s in all", u.name);
    cli_chart c = {.out = out,
                   .width = 440,
                   .height = 240,
                   .left = 46,
                   .right = 96,
                   .top = 26,
                   .bottom = 40,
                   .x = {0, most, 0, 0, false},
                   .y = {0, fmax(casts[1], ours[1]), 0, 0, false}};
    cli_scale_round(&c.y);
    cli_chart_open(&c, "Bytes of an archive and of 16-bit casts by number of adapters");
    cli_chart_axis_y(&c, label);
    cli_chart_axis_x(&c, "adapters");
    cli_chart_line(&c, "line h5", x, casts, 2);
    cli_chart_line(&c, "line h0", x, ours, 2);
    double at[] = {cli_scale_at(&c.y, casts[1]), cli_scale_at(&c.y, ours[1])};
    if (fabs(at[0] - at[1]) < 16) /* labels would touch: the lower line's goes down */
        at[at[0] > at[1] ? 0 : 1] = fmin(fmax(at[0], at[1]) + 16, c.y.from + 4);
    cli_chart_text(&c, "plain", "start", c.x.to + 6, at[0] + 4, "16-bit casts", 16);
    cli_chart_text(&c, "strong", "start", c.x.to + 6, at[1] + 4, "archive", 16);
    if (b->break_even) {
        double n = (double)b->break_even, y = (double)b->shared + n * b->marginal;
        fprintf(out, "<circle class=\"dot h1\" cx=\"%.1f\" cy=\"%.1f\" r=\"5\"/>\n", cli_scale_at(&c.x, n),
                cli_scale_at(&c.y, y / u.bytes));
    }
    cli_chart_close(&c);
}

void cli_page_balance(const cli_report *r, FILE *out) {
    const cli_balance *b = &r->balance;
    char more[160];
    if (b->break_even)
        snprintf(more, sizeof more, "smaller than 16-bit casts from %s adapter%s on",
                 cli_whole_text(b->break_even).text, cli_plural(b->break_even));
    else
        snprintf(more, sizeof more, "never: an adapter takes no less here than as a 16-bit file");
    cli_page_figure(out, "Break-even", more);
    if (r->totals.checkpoints && r->totals.parameters)
        draw_balance(r, out);
    cli_page_note(out,
                  "%s are shared by all; each adapter adds %s on average, and would be %s at 16 bits a "
                  "parameter. The %s packed here take %s %s than casts.",
                  cli_size(b->shared).text, cli_size((uint64_t)(b->marginal + 0.5)).text,
                  cli_size(r->totals.checkpoints ? b->half_size / r->totals.checkpoints : 0).text,
                  cli_whole_text(r->totals.checkpoints).text,
                  cli_size((uint64_t)(b->saved < 0 ? -b->saved : b->saved)).text,
                  b->saved < 0 ? "more" : "less");
    cli_page_figure_end(out);
}
