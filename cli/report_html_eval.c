/* SPDX-License-Identifier: Apache-2.0 */
/* What packing cost in the adapters' own task, as the user's command scores it. */
#include "report_eval.h"
#include "report_html.h"

#include <math.h>
#include <string.h>

enum { ROW_HEIGHT = 28 };

static void widen(cli_scale *s, double value) {
    if (isfinite(value)) {
        s->low = fmin(s->low, value);
        s->high = fmax(s->high, value);
    }
}

static void draw_row(const cli_chart *c, const cli_eval_row *row, double y) {
    char text[64] = "failed";
    double original = cli_scale_at(&c->x, row->original),
           reconstructed = cli_scale_at(&c->x, row->reconstructed), base = cli_scale_at(&c->x, row->base);
    cli_chart_text(c, "plain ty", "end", c->left - 10, y + 4, row->task, 18);
    if (!row->failure) {
        fprintf(c->out, "<line class=\"axis\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n",
                isnan(row->base) ? reconstructed : base, y, original, y);
        if (!isnan(row->base))
            fprintf(c->out, "<circle class=\"dot h5\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>\n", base, y);
        fprintf(c->out,
                "<circle class=\"ring h1\" cx=\"%.1f\" cy=\"%.1f\" r=\"6.5\"/>\n<circle class=\"dot h0\" "
                "cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>\n",
                original, y, reconstructed, y);
        snprintf(text, sizeof text, isnan(row->kept) ? "%.5g" : "%.1f %%",
                 isnan(row->kept) ? row->reconstructed - row->original : 100 * row->kept);
    }
    cli_chart_text(c, "strong", "start", c->width - c->right + 14, y + 4, text, 16);
}

static void draw_key(const cli_chart *c, bool base) {
    double x = c->left, y = 10;
    fprintf(c->out, "<circle class=\"ring h1\" cx=\"%.1f\" cy=\"%.1f\" r=\"6.5\"/>\n", x, y);
    cli_chart_text(c, "label", "start", x + 11, y + 4, "original", 16);
    fprintf(c->out, "<circle class=\"dot h0\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>\n", x + 80, y);
    cli_chart_text(c, "label", "start", x + 89, y + 4, "reconstructed", 16);
    if (base) {
        fprintf(c->out, "<circle class=\"dot h5\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>\n", x + 188, y);
        cli_chart_text(c, "label", "start", x + 197, y + 4, "no adapter", 16);
    }
    cli_chart_text(c, "label", "start", c->width - c->right + 14, y + 4, base ? "gain kept" : "difference",
                   16);
}

/* Whether there is something to draw, and the scale. */
static bool find_scale(const cli_eval *e, size_t count, cli_scale *s, bool *base) {
    s->low = INFINITY;
    s->high = -INFINITY;
    *base = false;
    for (size_t i = 0; i < count; i++) {
        if (e->rows[i].failure)
            continue;
        widen(s, e->rows[i].original);
        widen(s, e->rows[i].reconstructed);
        widen(s, e->rows[i].base);
        *base |= !isnan(e->rows[i].base);
    }
    if (!(s->high >= s->low))
        return false;
    cli_scale_round(s);
    return true;
}

static void draw_scores(const cli_eval *e, FILE *out) {
    size_t count = e->count < CLI_PAGE_TASKS ? e->count : CLI_PAGE_TASKS;
    bool base;
    cli_chart c = {.out = out,
                   .width = 640,
                   .height = 74 + (double)count * ROW_HEIGHT,
                   .left = 130,
                   .right = 104,
                   .top = 26,
                   .bottom = 42};
    if (!find_scale(e, count, &c.x, &base))
        return;
    cli_chart_open(&c, "Scores of originals and reconstructions");
    cli_chart_axis_x(&c, "score");
    draw_key(&c, base);
    for (size_t i = 0; i < count; i++)
        draw_row(&c, &e->rows[i], c.top + ((double)i + 0.6) * ROW_HEIGHT);
    cli_chart_close(&c);
}

static void put_score(FILE *out, double score, const char *format) {
    char text[48] = "-";
    if (!isnan(score))
        snprintf(text, sizeof text, format, score);
    cli_html_cell(out, true, text);
}

static void put_row(const cli_eval_row *row, FILE *out) {
    fputs("<tr><td>", out);
    cli_html_short(out, row->task, 48);
    fputs("</td>", out);
    cli_html_cell(out, false, cli_checkpoint_name(row->has_step, row->step).text);
    put_score(out, row->base, "%.6g");
    put_score(out, row->original, "%.6g");
    put_score(out, row->reconstructed, "%.6g");
    put_score(out, row->reconstructed - row->original, "%+.3g");
    put_score(out, row->kept, "%.4f");
    if (row->failure) {
        fputs("<td class=\"words\">", out);
        cli_html_text(out, row->failure);
        fputs("</td>", out);
    }
    fputs("</tr>\n", out);
}

void cli_page_eval(const cli_report *r, FILE *out) {
    const cli_eval *e = r->eval;
    if (!e)
        return;
    cli_page_section(out, "eval", "What it costs in use");
    fputs("<p>Scored by <code>", out);
    cli_html_text(out, e->options->command);
    fputs("</code>", out);
    if (e->base_command) {
        fputs(", without an adapter by <code>", out);
        cli_html_text(out, e->base_command);
        fputs("</code>", out);
    }
    fputs(".</p>\n", out);
    double kept = cli_eval_kept(e);
    if (!isnan(kept))
        cli_page_note(
            out, "Gain kept: %.4f on average. (base - reconstructed) / (base - original): 1 is nothing lost.",
            kept);
    cli_page_figure(out, "Scores", e->options->all ? "every checkpoint" : "each task\u2019s last checkpoint");
    draw_scores(e, out);
    cli_html_table(out, (const char *[]){"task", "checkpoint", ">no adapter", ">original", ">reconstructed",
                                         ">difference", ">gain kept", e->failed ? "failure" : NULL, NULL});
    for (size_t i = 0; i < e->count && i < CLI_PAGE_TASKS; i++)
        put_row(&e->rows[i], out);
    cli_html_table_end(out);
    cli_page_figure_end(out);
    cli_page_more(out, e->count, CLI_PAGE_TASKS, "evaluations");
    cli_page_end(out);
}
