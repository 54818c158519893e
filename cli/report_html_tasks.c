/* SPDX-License-Identifier: Apache-2.0 */
/* Tasks as a table, their checkpoints along the training, and how the generator was trained. */
#include "report_html.h"

#include "memory.h"

#include <math.h>
#include <string.h>

void cli_page_tasks(const cli_report *r, FILE *out) {
    cli_page_section(out, "tasks", "Tasks");
    cli_html_table(out,
                   (const char *[]){"task", ">checkpoints", ">steps", "tier", ">stored", ">bits a parameter",
                                    ">dW error, mean", ">max", ">relative error", NULL});
    for (size_t i = 0; i < r->task_count && i < CLI_PAGE_TASKS; i++) {
        const cli_report_task *task = &r->tasks[i];
        char bits[32];
        snprintf(bits, sizeof bits, "%.3f", cli_report_bits(r, task));
        fputs("<tr><td>", out);
        cli_html_short(out, task->name, 48);
        fputs("</td>", out);
        cli_html_cell(out, true, cli_whole_text(task->checkpoints).text);
        cli_html_cell(out, true, task->steps.text);
        cli_html_cell(out, false, task->tiers.text);
        cli_html_cell(out, true, cli_size(task->bytes).text);
        cli_html_cell(out, true, bits);
        cli_html_cell(out, true, cli_deviation(task->stored.dw_mean).text);
        cli_html_cell(out, true, cli_deviation(task->stored.dw_max).text);
        cli_html_cell(out, true, cli_deviation(task->stored.relative_error).text);
        fputs("</tr>\n", out);
    }
    cli_html_table_end(out);
    cli_page_more(out, r->task_count, CLI_PAGE_TASKS, "tasks");
    cli_page_note(out, "Stored: the bytes of a task alone. Bits a parameter: those, and its part by "
                       "parameters of what all tasks share.");
    cli_page_end(out);
}

/* --- along the training --------------------------------------------------------------------------------- */

/* Columns of numbers to draw; each `count` long, owned. */
typedef struct series {
    double *x, *mean, *max, *bytes;
    size_t count;
} series;

static void series_free(series *s) {
    icma_free(s->x);
    *s = (series){0};
}

/* A last one without a step lies as far behind the others as they lie apart. */
static bool series_fill(series *s, const cli_report_task *task) {
    size_t n = task->checkpoints;
    *s = (series){.x = icma_alloc_array(n, 4 * sizeof(double)), .count = n};
    if (!s->x)
        return false;
    s->mean = s->x + n;
    s->max = s->mean + n;
    s->bytes = s->max + n;
    for (size_t i = 0; i < n; i++) {
        const cli_report_checkpoint *c = &task->list[i];
        double gap = i > 1 ? (s->x[i - 1] - s->x[0]) / (double)(i - 1) : 1;
        bool paired = c->dw_max > 0 || !(c->relative_error > 0);
        s->x[i] = c->has_step ? (double)c->step : i ? s->x[i - 1] + gap : 0;
        s->mean[i] = paired ? c->dw_mean : c->relative_error;
        s->max[i] = paired ? c->dw_max : NAN;
        s->bytes[i] = c->bytes;
    }
    return true;
}

static double largest(const double *list, size_t count) {
    double most = 0;
    for (size_t i = 0; i < count; i++)
        most = isfinite(list[i]) ? fmax(most, list[i]) : most;
    return most;
}

/* All panels have the same scales, so that they can be compared. */
static bool find_most(const cli_report *r, double *error, double *bytes) {
    size_t panels = 0;
    *error = *bytes = 0;
    for (size_t i = 0; i < r->task_count && panels < CLI_PAGE_PANELS; i++) {
        series s;
        if (r->tasks[i].checkpoints < 2)
            continue;
        panels++;
        if (!series_fill(&s, &r->tasks[i]))
            return false;
        *error = fmax(*error, fmax(largest(s.mean, s.count), largest(s.max, s.count)));
        *bytes = fmax(*bytes, largest(s.bytes, s.count));
        series_free(&s);
    }
    return true;
}

static void draw_bytes(const series *s, cli_chart *c) {
    double width = (c->x.to - c->x.from) / (double)s->count;
    width = fmin(fmax(width * 0.7, 0.4), 12);
    for (size_t i = 0; i < s->count && s->count <= 2000; i++) {
        double y = cli_scale_at(&c->y, s->bytes[i]), x = cli_scale_at(&c->x, s->x[i]);
        if (isfinite(s->bytes[i]))
            fprintf(c->out,
                    "<rect class=\"fill h5\" x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%.1f\"/>\n",
                    x - width / 2, y, width, c->y.from - y);
    }
    if (s->count > 2000)
        cli_chart_line(c, "line h5", s->x, s->bytes, s->count);
}

static void draw_panel(const cli_report_task *task, const series *s, double error, double bytes, FILE *out) {
    enum { WIDTH = 296, HEIGHT = 212, ERRORS_END = 118, BYTES_START = 142 };
    char more[200];
    snprintf(more, sizeof more, "mean %s, worst %s, %s stored", cli_deviation(task->stored.dw_mean).text,
             cli_deviation(task->stored.dw_max).text, cli_size(task->bytes).text);
    fputs("<figure class=\"panel\"><figcaption>", out);
    cli_html_short(out, task->name, 34);
    fprintf(out, "<span>%s</span></figcaption>\n", more);
    cli_chart c = {.out = out,
                   .width = WIDTH,
                   .height = HEIGHT,
                   .left = 46,
                   .right = 16,
                   .top = 24,
                   .bottom = HEIGHT - ERRORS_END,
                   .x = {s->x[0], s->x[s->count - 1], 0, 0, false},
                   .y = {0, error, 0, 0, false}};
    double half =
        fmax(c.x.high - c.x.low, 1) / (double)(2 * (s->count - 1)); /* so that bars at both ends are whole */
    c.x.low -= half;
    c.x.high += half;
    cli_scale_round(&c.y);
    cli_chart_open(&c, "Relative error of dW and stored bytes by step");
    cli_chart_axis_y(&c, "error of dW: mean, and worst module");
    cli_chart_line(&c, "thin h0", s->x, s->max, s->count);
    cli_chart_line(&c, "line h0", s->x, s->mean, s->count);
    c.y = (cli_scale){0, bytes > 0 ? bytes : 1, HEIGHT - 38, BYTES_START + 8, false};
    fprintf(out,
            "<text class=\"label\" text-anchor=\"start\" x=\"0\" y=\"%d\">stored, at most %s a "
            "checkpoint</text>\n",
            BYTES_START, cli_size((uint64_t)(bytes + 0.5)).text);
    cli_chart_axis_x(&c, "step");
    draw_bytes(s, &c);
    cli_chart_close(&c);
    cli_page_figure_end(out);
}

icma_status cli_page_timeline(const cli_report *r, FILE *out, icma_error *error) {
    size_t drawn = 0, candidates = 0;
    double most_error, most_bytes;
    if (!find_most(r, &most_error, &most_bytes))
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the report");
    cli_page_section(out, "timeline", "Checkpoints");
    fputs("<div class=\"many\">\n", out);
    for (size_t i = 0; i < r->task_count; i++) {
        series s;
        if (r->tasks[i].checkpoints < 2 || candidates++ >= CLI_PAGE_PANELS)
            continue;
        if (!series_fill(&s, &r->tasks[i]))
            return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the report");
        draw_panel(&r->tasks[i], &s, most_error, most_bytes, out);
        series_free(&s);
        drawn++;
    }
    fputs("</div>\n", out);
    if (candidates == 0)
        fputs("<p>Every task has one checkpoint: there is nothing to follow over time.</p>\n", out);
    cli_page_more(out, candidates, drawn, "tasks with several checkpoints");
    cli_page_end(out);
    return ICMA_OK;
}

/* --- the generator -------------------------------------------------------------------------------------- */

static void put_option(const char *key, const cJSON *value, FILE *out) {
    char text[128] = "";
    if (cJSON_IsNumber(value))
        snprintf(text, sizeof text, "%.6g", value->valuedouble);
    else if (cJSON_IsBool(value))
        snprintf(text, sizeof text, "%s", cJSON_IsTrue(value) ? "yes" : "no");
    else if (cJSON_IsString(value))
        snprintf(text, sizeof text, "%s", value->valuestring);
    for (const cJSON *item = cJSON_IsArray(value) ? value->child : NULL; item; item = item->next) {
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "%.6g ", item->valuedouble);
    }
    fputs("<tr>", out);
    cli_html_cell(out, false, key);
    cli_html_cell(out, true, text);
    fputs("</tr>\n", out);
}

/* What it is, and what it was asked to be. */
static void put_generator(const cli_report_group *group, FILE *out) {
    const icma_generator_info *g = &group->generator;
    const cJSON *options = cJSON_GetObjectItemCaseSensitive(group->record, "options");
    const struct {
        const char *name;
        size_t value;
    } facts[] = {
        {"components of A", g->components_a},        {"components of B", g->components_b},
        {"other components", g->components_other},   {"latent dimensions", g->latent_dim},
        {"condition coordinates", g->condition_dim}, {"tensors", g->tensors},
        {"verbatim tensors", g->tensors_verbatim},   {"network parameters", (size_t)g->trunk_parameters}};
    enum { MOST_OPTIONS = 40 };
    int told = 0;
    cli_html_table(out, (const char *[]){"generator", ">", NULL});
    fputs("<tr>", out);
    cli_html_cell(out, false, "kind");
    cli_html_cell(out, true, g->kind);
    fputs("</tr>\n", out);
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) {
        fputs("<tr>", out);
        cli_html_cell(out, false, facts[i].name);
        cli_html_cell(out, true, cli_whole_text(facts[i].value).text);
        fputs("</tr>\n", out);
    }
    double explained =
        cli_record_number(cJSON_GetObjectItemCaseSensitive(group->record, "eigen"), "explained");
    if (isfinite(explained)) {
        fputs("<tr>", out);
        cli_html_cell(out, false, "variance within tasks in its span");
        cli_html_cell(out, true, explained > 0 ? cli_percent(explained, 1).text : "none");
        fputs("</tr>\n", out);
    }
    cli_html_table_end(out);
    if (!cJSON_IsObject(options))
        return;
    cli_html_table(out, (const char *[]){"packed with", ">", NULL});
    for (const cJSON *item = options->child; item && told < MOST_OPTIONS; item = item->next, told++)
        put_option(item->string, item, out);
    cli_html_table_end(out);
}

static const char *const loss_keys[] = {"reconstruction", "kl"};

static void draw_losses(const cJSON *losses, FILE *out, double *columns, size_t count) {
    double *epoch = columns;
    cli_chart c = {.out = out,
                   .width = 440,
                   .height = 260,
                   .left = 46,
                   .right = 100,
                   .top = 26,
                   .bottom = 40,
                   .x = {0, 0, 0, 0, false},
                   .y = {0, 0, 0, 0, true}};
    size_t i = 0;
    for (const cJSON *point = losses->child; point && i < count; point = point->next, i++) {
        epoch[i] = cli_record_number(point, "epoch");
        c.x.high = isfinite(epoch[i]) ? fmax(c.x.high, epoch[i]) : c.x.high;
        for (size_t k = 0; k < 2; k++) {
            double value = cli_record_number(point, loss_keys[k]);
            columns[(k + 1) * count + i] = value > 0 && isfinite(value) ? value : NAN;
            if (value > 0 && isfinite(value)) {
                c.y.low = c.y.low > 0 ? fmin(c.y.low, value) : value;
                c.y.high = fmax(c.y.high, value);
            }
        }
    }
    if (!(c.y.low > 0)) {
        cli_page_note(out, "No loss on record is above 0.");
        return;
    }
    c.y.low = fmax(c.y.low, c.y.high * 1e-9);
    c.x.high = fmax(c.x.high, 1);
    cli_scale_round(&c.y);
    cli_chart_open(&c, "Losses by epoch");
    cli_chart_axis_y(&c, "nats, mean over an epoch");
    cli_chart_axis_x(&c, "epoch");
    double at[2] = {0, 0};
    for (size_t k = 0; k < 2; k++) {
        const double *values = columns + (k + 1) * count;
        cli_chart_line(&c, k ? "line h1" : "line h0", epoch, values, count);
        size_t last = count - 1;
        while (last > 0 && isnan(values[last]))
            last--;
        at[k] = isnan(values[last]) ? NAN : cli_scale_at(&c.y, values[last]);
    }
    if (fabs(at[0] - at[1]) < 15)
        at[at[0] > at[1] ? 0 : 1] += 15 - fabs(at[0] - at[1]);
    for (size_t k = 0; k < 2; k++)
        if (isfinite(at[k]))
            cli_chart_text(&c, k ? "hue h1" : "hue h0", "start", c.x.to + 6, at[k] + 4,
                           k ? "KL" : "reconstruction", 16);
    cli_chart_close(&c);
}

static icma_status put_losses(const cli_report_group *group, FILE *out, icma_error *error) {
    const cJSON *losses = cli_record_list(group->record, "losses");
    size_t count = losses ? (size_t)cJSON_GetArraySize(losses) : 0;
    if (count == 0) {
        cli_page_note(out, group->record ? "Nothing was trained: there are no losses."
                                         : "The archive has no record of a training.");
        return ICMA_OK;
    }
    double *columns = icma_alloc_array(count, 3 * sizeof *columns);
    if (!columns)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the report");
    draw_losses(losses, out, columns, count);
    cli_page_note(out, "Epoch %.0f: reconstruction %.3g, KL %.3g. Epoch %.0f: reconstruction %.3g, KL %.3g.",
                  columns[0], columns[count], columns[2 * count], columns[count - 1], columns[2 * count - 1],
                  columns[3 * count - 1]);
    icma_free(columns);
    return ICMA_OK;
}

icma_status cli_page_training(const cli_report *r, FILE *out, icma_error *error) {
    icma_status status = ICMA_OK;
    cli_page_section(out, "training", "Generator and training");
    for (size_t i = 0; !status && i < r->group_count && i < CLI_PAGE_GROUPS; i++) {
        char title[64] = "Losses";
        if (r->group_count > 1)
            snprintf(title, sizeof title, "Losses, group %zu", i);
        fputs("<div class=\"pair\">\n", out);
        cli_page_figure(out, title, NULL);
        status = put_losses(&r->groups[i], out, error);
        cli_page_figure_end(out);
        fputs("<div class=\"facts\">\n", out);
        put_generator(&r->groups[i], out);
        fputs("</div>\n</div>\n", out);
    }
    cli_page_more(out, r->group_count, CLI_PAGE_GROUPS, "groups");
    cli_page_end(out);
    return status;
}
