/* SPDX-License-Identifier: Apache-2.0 */
/* Rate and distortion: where this archive's tasks lie, and what the rate model said when packing about other
 * bounds. */
#include "report_html.h"

#include "memory.h"
#include "sort.h"

#include <math.h>
#include <string.h>

enum {
    CURVE = 32,
    KEPT = CLI_PAGE_LABELS,
    STRIP = 64,
    EXACT = 40
}; /* pixels: of the strip for exact ones, and from there to their place */

/* Tasks that were kept alike. */
typedef struct kept {
    const char *tier;
    size_t tasks;
    double error, bits; /* means */
    double x, y;        /* of the dot */
} kept;

static const char model_note[] =
    "Line: the fewest bits that the rate model found, when packing, for basis rows, trunk and residuals at "
    "other "
    "bounds on dW. Dots: this archive's tasks, as measured, with all of its bytes.";

/* Without pairs there is no dW: the error of all weights then. */
static double error_of(const cli_report_task *task) {
    return task->stored.dw_max > 0 || !(task->stored.relative_error > 0) ? task->stored.dw_mean
                                                                         : task->stored.relative_error;
}

static size_t gather_kept(const cli_report *r, kept *list) {
    size_t count = 0;
    for (size_t i = 0; i < r->task_count; i++) {
        const cli_report_task *task = &r->tasks[i];
        double error = error_of(task), bits = cli_report_bits(r, task);
        size_t k = 0;
        if (!isfinite(error) || !(bits > 0))
            continue;
        while (k < count && strcmp(list[k].tier, task->tiers.text) != 0)
            k++;
        if (k == KEPT)
            continue;
        if (k == count)
            list[count++] = (kept){.tier = task->tiers.text};
        list[k].tasks++;
        list[k].error += (error - list[k].error) / (double)list[k].tasks;
        list[k].bits += (bits - list[k].bits) / (double)list[k].tasks;
    }
    return count;
}

static size_t read_curve(const cJSON *record, double *errors, double *bits) {
    const cJSON *list = cli_record_list(record, "rate");
    size_t count = 0;
    for (const cJSON *point = list ? list->child : NULL; point && count < CURVE; point = point->next) {
        errors[count] = cli_record_number(point, "predicted_error");
        bits[count] = cli_record_number(point, "bits_per_parameter");
        count += errors[count] > 0 && bits[count] > 0 && isfinite(errors[count]) && isfinite(bits[count]);
    }
    return count;
}

static void widen(cli_scale *s, double value) {
    if (!(value > 0 && isfinite(value)))
        return;
    s->low = s->low > 0 ? fmin(s->low, value) : value;
    s->high = fmax(s->high, value);
}

static double bits_of_files(const cli_report *r) {
    return 8 * (double)r->totals.file_bytes / (double)r->totals.parameters;
}

/* Scales over all that is drawn. */
static void find_scales(const cli_report *r, cli_chart *c, bool *exact, bool *curve) {
    double errors[CURVE], bits[CURVE];
    *exact = *curve = false;
    for (size_t i = 0; i < r->task_count; i++) {
        double error = error_of(&r->tasks[i]);
        *exact |= error == 0;
        widen(&c->x, error);
        widen(&c->y, cli_report_bits(r, &r->tasks[i]));
    }
    for (size_t g = 0; g < r->group_count && g < CLI_PAGE_GROUPS; g++) {
        size_t count = read_curve(r->groups[g].record, errors, bits);
        *curve |= count > 0;
        for (size_t i = 0; i < count; i++) {
            widen(&c->x, errors[i]);
            widen(&c->y, bits[i]);
        }
    }
    widen(&c->y, 16);
    widen(&c->y, bits_of_files(r));
    if (!(c->x.low > 0)) { /* all are exact */
        c->x.low = 0.001;
        c->x.high = 0.1;
    }
    cli_scale_round(&c->x);
    cli_scale_round(&c->y);
}

static double place_of(const cli_chart *c, double error) {
    return error > 0 ? cli_scale_at(&c->x, error) : c->x.from - EXACT;
}

static void draw_curves(const cli_report *r, const cli_chart *c) {
    double errors[CURVE], bits[CURVE];
    for (size_t g = 0; g < r->group_count && g < CLI_PAGE_GROUPS; g++) {
        size_t count = read_curve(r->groups[g].record, errors, bits);
        char name[32] = "rate model";
        if (count == 0)
            continue;
        if (r->group_count > 1)
            snprintf(name, sizeof name, "group %zu", g);
        cli_chart_line(c, "line h5", errors, bits, count);
        for (size_t i = 0; i < count; i++)
            fprintf(c->out, "<circle class=\"fill h5\" cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\"/>\n",
                    cli_scale_at(&c->x, errors[i]), cli_scale_at(&c->y, bits[i]));
        cli_chart_text(c, "label", "start", cli_scale_at(&c->x, errors[count - 1]) + 8,
                       cli_scale_at(&c->y, bits[count - 1]) + 2, name, 16);
    }
}

static int compare_labels(const void *a, const void *b, const void *context) {
    const kept *x = a, *y = b;
    (void)context;
    return x->y != y->y ? (x->y < y->y ? -1 : 1) : strcmp(x->tier, y->tier);
}

/* To the upper right of a dot, or the lower left where there is no room: curves fall to the right. */
static void name_kept(const cli_chart *c, const kept *k, double *last) {
    char text[96];
    snprintf(text, sizeof text, "%s, %s task%s", k->tier, cli_whole_text(k->tasks).text,
             cli_plural(k->tasks));
    bool right = k->x + cli_chart_width(strlen(text)) * 1.2 < c->width - 8;
    double y = fmax(right ? k->y - 10 : k->y + 18, *last + 15);
    cli_chart_text(c, "strong", right ? "start" : "end", k->x + (right ? 8 : -8), fmin(y, c->y.from - 4),
                   text, 48);
    *last = y;
}

static void draw_kept(const cli_report *r, const cli_chart *c, kept *list, size_t count) {
    double last = -15;
    for (size_t i = 0; i < r->task_count; i++) {
        double error = error_of(&r->tasks[i]), bits = cli_report_bits(r, &r->tasks[i]);
        if (isfinite(error) && bits > 0)
            fprintf(c->out, "<circle class=\"faint h0\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>\n",
                    place_of(c, error), cli_scale_at(&c->y, bits));
    }
    for (size_t i = 0; i < count; i++) {
        list[i].x = place_of(c, list[i].error);
        list[i].y = cli_scale_at(&c->y, list[i].bits);
        fprintf(c->out, "<circle class=\"dot h0\" cx=\"%.1f\" cy=\"%.1f\" r=\"5\"/>\n", list[i].x, list[i].y);
    }
    icma_sort(list, count, sizeof *list, compare_labels, NULL);
    for (size_t i = 0; i < count; i++)
        name_kept(c, &list[i], &last);
}

/* A level to compare with; its name stands so far below the line. */
static void draw_reference(const cli_chart *c, double bits, const char *name, double below) {
    double y = cli_scale_at(&c->y, bits);
    fprintf(c->out, "<line class=\"ref\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", c->x.from, y,
            c->x.to, y);
    cli_chart_text(c, "label", "end", c->x.to, y + below, name, 16);
}

static void draw_rates(const cli_report *r, FILE *out, bool *curve) {
    kept list[KEPT] = {{0}};
    size_t count = gather_kept(r, list);
    bool exact;
    cli_chart c = {.out = out,
                   .width = 440,
                   .height = 300,
                   .left = 46,
                   .right = 16,
                   .top = 26,
                   .bottom = 40,
                   .x = {0, 0, 0, 0, true},
                   .y = {0, 0, 0, 0, true}};
    find_scales(r, &c, &exact, curve);
    if (exact)
        c.left += STRIP; /* a strip of its own: an error of 0 is not on a logarithmic scale */
    cli_chart_open(&c, "Bits a parameter by relative error of dW");
    if (exact) {
        cli_chart_text(&c, "tick tx", "middle", c.left - EXACT, c.y.from + 16, "exact", 16);
        c.left -= STRIP;
        c.x.from -= STRIP;
    }
    cli_chart_axis_y(&c, "bits a parameter");
    if (exact)
        c.x.from += STRIP;
    cli_chart_axis_x(&c, "mean relative error of dW");
    draw_reference(&c, bits_of_files(r), "as files", -5);
    draw_reference(&c, 16, "16-bit casts", 13);
    draw_curves(r, &c);
    draw_kept(r, &c, list, count);
    cli_chart_close(&c);
}

static void put_point(const cJSON *point, const char *group, FILE *out) {
    char bound[32], bits[32];
    snprintf(bound, sizeof bound, "%g", cli_record_number(point, "bound"));
    snprintf(bits, sizeof bits, "%.3f", cli_record_number(point, "bits_per_parameter"));
    fputs("<tr>", out);
    if (group)
        cli_html_cell(out, true, group);
    cli_html_cell(out, true, bound);
    cli_html_cell(out, true, bits);
    cli_html_cell(out, true, cli_deviation(cli_record_number(point, "predicted_error")).text);
    fputs("</tr>\n", out);
}

static void put_curve_table(const cli_report *r, FILE *out) {
    static const char *const titles[] = {">group", ">bound on dW", ">bits a parameter", ">mean error of dW",
                                         NULL};
    cli_html_table(out, titles + (r->group_count == 1));
    for (size_t g = 0; g < r->group_count && g < CLI_PAGE_GROUPS; g++) {
        const cJSON *list = cli_record_list(r->groups[g].record, "rate");
        char group[24];
        size_t told = 0;
        snprintf(group, sizeof group, "%zu", g);
        for (const cJSON *point = list ? list->child : NULL; point && told < CURVE;
             point = point->next, told++)
            put_point(point, r->group_count > 1 ? group : NULL, out);
    }
    cli_html_table_end(out);
}

void cli_page_rates(const cli_report *r, FILE *out) {
    bool curve = false;
    cli_page_section(out, "rates", "What it costs");
    fputs("<div class=\"pair\">\n", out);
    cli_page_figure(out, "Rate and distortion", NULL);
    if (r->totals.parameters)
        draw_rates(r, out, &curve);
    cli_page_note(out, "%s",
                  curve ? model_note
                        : "Dots: this archive\u2019s tasks, as measured. Its records hold no predictions for "
                          "other bounds.");
    cli_page_figure_end(out);
    cli_page_balance(r, out);
    fputs("</div>\n", out);
    if (curve) {
        cli_page_figure(out, "What the rate model predicts",
                        "basis rows, trunk and residuals, by the parameters that they model");
        put_curve_table(r, out);
        cli_page_figure_end(out);
    }
    cli_page_more(out, r->group_count, curve ? CLI_PAGE_GROUPS : r->group_count, "groups");
    cli_page_end(out);
}
