/* SPDX-License-Identifier: Apache-2.0 */
/* The tasks' vectors as maps: principal components, and t-SNE as in figure 2 of the ICM-LoRA paper. */
#include "report_html.h"
#include "report_map.h"

#include "memory.h"

#include <math.h>
#include <string.h>

enum { SHAPES = 4, NAMED = 40, LABEL_ROOM = 20, ROWS = 24 };

typedef struct box {
    double left, top, right, bottom;
} box;

/* One picture: where points lie, and names so far. */
typedef struct plane {
    cli_chart chart;
    const cli_report *report;
    const cli_map *map;
    bool tsne;
    size_t *rank; /* of each task among those on the map */
    box taken[NAMED];
    size_t taken_count;
} plane;

static const double *at(const plane *p, size_t i) {
    return p->tsne ? p->map->points[i].tsne : p->map->points[i].pca;
}

/* One unit is as long in both directions. */
static void find_scales(plane *p) {
    double low[2] = {INFINITY, INFINITY}, high[2] = {-INFINITY, -INFINITY};
    cli_chart *c = &p->chart;
    for (size_t i = 0; i < p->map->count; i++)
        for (int axis = 0; axis < 2; axis++) {
            low[axis] = fmin(low[axis], at(p, i)[axis]);
            high[axis] = fmax(high[axis], at(p, i)[axis]);
        }
    double width = c->width - c->left - c->right, height = c->height - c->top - c->bottom;
    double unit = fmax(fmax((high[0] - low[0]) / width, (high[1] - low[1]) / height) * 1.1, 1e-300);
    c->x = (cli_scale){(low[0] + high[0] - width * unit) / 2, (low[0] + high[0] + width * unit) / 2, 0, 0,
                       false};
    c->y = (cli_scale){(low[1] + high[1] - height * unit) / 2, (low[1] + high[1] + height * unit) / 2, 0, 0,
                       false};
}

/* Hue and shape together tell 24 tasks apart; of more, all are alike. Who points at one reads its name. */
static void draw_point(const plane *p, double x, double y, size_t task) {
    FILE *out = p->chart.out;
    bool told_apart = p->map->tasks <= CLI_PAGE_HUES * SHAPES;
    size_t hue = told_apart ? p->rank[task] % CLI_PAGE_HUES : 0,
           shape = told_apart ? p->rank[task] / CLI_PAGE_HUES : 0;
    double r = p->map->count > 300 ? 3 : 4;
    fprintf(out, "<g class=\"h%zu\"><title>", hue);
    cli_html_short(out, p->report->tasks[task].name, 80);
    fputs("</title>", out);
    switch (shape) {
    case 0:
        fprintf(out, "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"%g\"/>", x, y, r);
        break;
    case 1:
        fprintf(out, "<rect class=\"dot\" x=\"%.1f\" y=\"%.1f\" width=\"%g\" height=\"%g\"/>", x - r, y - r,
                2 * r, 2 * r);
        break;
    case 2:
        fprintf(out, "<path class=\"dot\" d=\"M%.1f %.1fL%.1f %.1fL%.1f %.1fL%.1f %.1f\"/>", x, y - r - 1,
                x + r + 1, y + r, x - r - 1, y + r, x, y - r - 1);
        break;
    default:
        fprintf(out, "<path class=\"dot\" d=\"M%.1f %.1fL%.1f %.1fL%.1f %.1fL%.1f %.1fL%.1f %.1f\"/>", x,
                y - r - 1, x + r + 1, y, x, y + r + 1, x - r - 1, y, x, y - r - 1);
    }
    fputs("</g>\n", out);
}

static bool is_free(const plane *p, const box *b) {
    if (b->left < 0 || b->right > p->chart.width || b->top < 0 || b->bottom > p->chart.height)
        return false;
    for (size_t i = 0; i < p->taken_count; i++) {
        const box *t = &p->taken[i];
        if (b->left < t->right && t->left < b->right && b->top < t->bottom && t->top < b->bottom)
            return false;
    }
    return true;
}

/* Beside the point where nothing is written yet: right, left, above, below; else nowhere. */
static void name_point(plane *p, double x, double y, size_t task) {
    static const struct {
        const char *anchor;
        double dx, dy, part; /* part: of the width that lies left of x + dx */
    } places[] = {{"start", 8, 4, 0}, {"end", -8, 4, 1}, {"middle", 0, -9, 0.5}, {"middle", 0, 18, 0.5}};
    const char *name = p->report->tasks[task].name;
    size_t columns = cli_width(name);
    double width = cli_chart_width(columns < LABEL_ROOM ? columns : LABEL_ROOM) * 1.2;
    char hue[24];
    snprintf(hue, sizeof hue, "hue halo h%zu", p->rank[task] % CLI_PAGE_HUES);
    for (size_t i = 0; i < sizeof places / sizeof *places && p->taken_count < NAMED; i++) {
        double left = x + places[i].dx - places[i].part * width, base = y + places[i].dy;
        box b = {left, base - 11, left + width, base + 3};
        if (!is_free(p, &b))
            continue;
        p->taken[p->taken_count++] = b;
        cli_chart_text(&p->chart, hue, places[i].anchor, x + places[i].dx, base, name, LABEL_ROOM);
        return;
    }
}

/* A name stands at the point nearest to the middle of its task's points: where these are in two places, not
 * between them. */
static size_t find_middle(const plane *p, size_t first, size_t next) {
    double x = 0, y = 0, least = INFINITY;
    size_t nearest = first;
    for (size_t i = first; i < next; i++) {
        x += at(p, i)[0] / (double)(next - first);
        y += at(p, i)[1] / (double)(next - first);
    }
    for (size_t i = first; i < next; i++) {
        double d = hypot(at(p, i)[0] - x, at(p, i)[1] - y);
        if (d < least) {
            least = d;
            nearest = i;
        }
    }
    return nearest;
}

static void name_tasks(plane *p) {
    const cli_map *m = p->map;
    for (size_t first = 0, next; first < m->count; first = next) {
        for (next = first; next < m->count && m->points[next].task == m->points[first].task; next++)
            ;
        size_t middle = find_middle(p, first, next);
        name_point(p, cli_scale_at(&p->chart.x, at(p, middle)[0]),
                   cli_scale_at(&p->chart.y, at(p, middle)[1]), m->points[first].task);
    }
}

static void draw_plane(const cli_report *r, const cli_map *m, size_t *rank, bool tsne, FILE *out) {
    plane p = {
        .chart = {.out = out, .width = 440, .height = 320, .left = 16, .right = 16, .top = 16, .bottom = 16},
        .report = r,
        .map = m,
        .tsne = tsne,
        .rank = rank};
    cli_chart *c = &p.chart;
    find_scales(&p);
    cli_chart_open(c, tsne ? "Map of the vectors by t-SNE" : "Map of the vectors by principal components");
    fprintf(out, "<rect class=\"frame\" x=\"0.5\" y=\"0.5\" width=\"%g\" height=\"%g\"/>\n", c->width - 1,
            c->height - 1);
    for (size_t i = 0; i < m->count; i++)
        draw_point(&p, cli_scale_at(&c->x, at(&p, i)[0]), cli_scale_at(&c->y, at(&p, i)[1]),
                   m->points[i].task);
    if (m->tasks <= CLI_PAGE_HUES * SHAPES)
        name_tasks(&p);
    cli_chart_close(c);
}

/* --- numbers ------------------------------------------------------------------------------------------- */

static void put_task(const cli_report *r, const cli_map *m, size_t first, size_t count, FILE *out) {
    const cli_map_point *point = &m->points[first];
    char text[48];
    fputs("<tr><td>", out);
    cli_html_short(out, r->tasks[point->task].name, 48);
    fputs("</td>", out);
    if (m->tasks < m->count) {
        cli_html_cell(out, true, cli_whole_text(count).text);
        snprintf(text, sizeof text, "%.3f", m->by_task[point->task]);
        cli_html_cell(out, true, text);
    } else {
        for (int axis = 0; axis < 2; axis++) {
            snprintf(text, sizeof text, "%.4g", point->pca[axis]);
            cli_html_cell(out, true, text);
        }
    }
    fputs("</tr>\n", out);
}

static void put_table(const cli_report *r, const cli_map *m, FILE *out) {
    size_t told = 0, all = 0;
    bool clusters = m->tasks < m->count;
    cli_html_table(out, (const char *[]){"task", clusters ? ">points" : ">component 1",
                                         clusters ? ">silhouette" : ">component 2", NULL});
    for (size_t first = 0, next; first < m->count; first = next) {
        for (next = first; next < m->count && m->points[next].task == m->points[first].task; next++)
            ;
        if (all++ < ROWS) {
            put_task(r, m, first, next - first, out);
            told++;
        }
    }
    cli_html_table_end(out);
    cli_page_more(out, all, told, "tasks");
}

static void put_words(const cli_map *m, FILE *out) {
    if (m->samples)
        cli_page_note(out, "%s vectors of %s numbers, a vector a sample, of %s task%s.",
                      cli_whole_text(m->all).text, cli_whole_text(m->dims).text,
                      cli_whole_text(m->tasks).text, cli_plural(m->tasks));
    else
        cli_page_note(out,
                      "The conditions in the archive, one a task, of %s numbers each. --vectors DIR maps the "
                      "vectors of samples.",
                      cli_whole_text(m->dims).text);
    if (m->count < m->all)
        cli_page_note(out, "Drawn and measured are %s of them, taken evenly.", cli_whole_text(m->count).text);
    if (m->left_out)
        cli_page_note(out, "%s task%s without a comparable vector %s left out.",
                      cli_whole_text(m->left_out).text, cli_plural(m->left_out),
                      m->left_out == 1 ? "is" : "are");
    if (!isnan(m->silhouette))
        cli_page_note(out,
                      "Silhouette, in all dimensions: %.3f. 1: every point is far nearer to its own task "
                      "than to the next; 0: between two; below: nearer to another (Rousseeuw 1987).",
                      m->silhouette);
}

/* Ranks of the tasks that have points, in order. */
static size_t *rank_tasks(const cli_report *r, const cli_map *m) {
    size_t *rank = icma_alloc_zeroed(r->task_count + 1, sizeof *rank), next = 0;
    for (size_t i = 0; rank && i < m->count; i++)
        if (i == 0 || m->points[i].task != m->points[i - 1].task)
            rank[m->points[i].task] = next++;
    return rank;
}

icma_status cli_page_map(const cli_report *r, FILE *out, icma_error *error) {
    const cli_map *m = r->map;
    cli_page_section(out, "map", "Map of the tasks");
    if (!m) {
        fputs("<p>There are no two vectors to compare: the archive has fewer than two tasks with conditions "
              "of one size.</p>\n",
              out);
        cli_page_end(out);
        return ICMA_OK;
    }
    size_t *rank = rank_tasks(r, m);
    if (!rank)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the report");
    char more[128];
    fputs("<div class=\"pair\">\n", out);
    snprintf(more, sizeof more, "%.1f %% of the variance from left to right, %.1f %% from bottom to top",
             100 * m->share[0], 100 * m->share[1]);
    cli_page_figure(out, "Principal components", more);
    draw_plane(r, m, rank, false, out);
    cli_page_figure_end(out);
    snprintf(more, sizeof more,
             "exact, perplexity %.3g, seed 1; KL divergence %.3f nats. Nearness counts, distance does not",
             m->perplexity, m->divergence);
    if (m->has_tsne) {
        cli_page_figure(out, "t-SNE", more);
        draw_plane(r, m, rank, true, out);
        cli_page_figure_end(out);
    }
    fputs(m->has_tsne ? "</div>\n" : "<div>\n", out);
    put_words(m, out);
    if (!m->has_tsne)
        cli_page_note(out, "Too few points for t-SNE: of fewer than %d, neighbours mean nothing.",
                      CLI_MAP_LEAST_FOR_TSNE);
    put_table(r, m, out);
    fputs(m->has_tsne ? "" : "</div>\n</div>\n", out);
    icma_free(rank);
    cli_page_end(out);
    return ICMA_OK;
}
