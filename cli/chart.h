/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Charts as SVG inside HTML: scales, ticks, axes, lines. Lengths are CSS pixels at the picture's own size;
 * colours and fonts are the page's style sheet's business, so elements carry classes, not colours.
 */
#ifndef CLI_CHART_H
#define CLI_CHART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum { CLI_MOST_TICKS = 24 };

/* From values to pixels. */
typedef struct cli_scale {
    double low, high; /* values; with `log` both above 0 */
    double from, to;  /* where they lie */
    bool log;
} cli_scale;

/* A value beyond the scale, and NaN, lie at its nearer end (NaN at its start). */
double cli_scale_at(const cli_scale *scale, double value);
/* Widens a linear scale's ends to even numbers, and a logarithmic one's to 1, 2 or 5 times a power of ten.
 * Equal ends are moved apart; those beyond 1e300, or of a logarithmic one below 1e-300, are moved there. */
void cli_scale_round(cli_scale *scale);
/* Round numbers in the scale, at least `gap` pixels apart; how many. */
size_t cli_scale_ticks(const cli_scale *scale, double gap, double ticks[CLI_MOST_TICKS]);

typedef struct cli_chart {
    FILE *out;
    double width, height;            /* of the picture */
    double left, right, top, bottom; /* margins: what is between is the plot */
    cli_scale x, y;
} cli_chart;

/* Starts a picture: sets both scales' from and to by the margins. `title` is for who cannot see it; both are
 * ours, not a stranger's. */
void cli_chart_open(cli_chart *chart, const char *title);
void cli_chart_close(cli_chart *chart);
/* Lines of the grid, numbers and the label; `label` may be NULL. Labels are ours. */
void cli_chart_axis_x(const cli_chart *chart, const char *label);
void cli_chart_axis_y(const cli_chart *chart, const char *label);
/* A line through the points that are finite, with a gap where one is not, of class `name`. */
void cli_chart_line(const cli_chart *chart, const char *name, const double *x, const double *y, size_t count);
/* A label of class `name`; anchor "start", "middle" or "end". The text is a stranger's, cut at `most`
 * characters. */
void cli_chart_text(const cli_chart *chart, const char *name, const char *anchor, double x, double y,
                    const char *text, size_t most);

/* About as wide as `text` of so many characters is in small print. */
double cli_chart_width(size_t characters);
/* "0.05", "20k", "3M": short numbers for axes. */
typedef struct cli_tick {
    char text[24];
} cli_tick;
cli_tick cli_tick_text(double value);

#endif
