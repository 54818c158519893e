/* SPDX-License-Identifier: Apache-2.0 */
#include "chart.h"

#include "html.h"

#include <math.h>
#include <string.h>

static const double character = 6.4, line_gap = 22, word_gap = 14;
static const double largest = 1e300; /* powers of ten near it, and near its inverse, are finite and above 0 */

/* --- scales ------------------------------------------------------------------------------------------- */

static double unit_of(const cli_scale *s, double value) {
    if (!s->log)
        return (value - s->low) / (s->high - s->low);
    return value > 0 ? log(value / s->low) / log(s->high / s->low) : 0;
}

double cli_scale_at(const cli_scale *s, double value) {
    double unit = unit_of(s, value);
    unit = unit > 0 ? unit < 1 ? unit : 1 : 0; /* NaN: 0 */
    return s->from + unit * (s->to - s->from);
}

/* The smallest of 1, 2, 5 times a power of ten that is not below x > 0. */
static double round_up(double x) {
    double power = pow(10, floor(log10(x))), digits = x / power;
    return power * (digits <= 1.0000001 ? 1 : digits <= 2.0000001 ? 2 : digits <= 5.0000001 ? 5 : 10);
}

static double round_down(double x) {
    double power = pow(10, floor(log10(x) + 1e-9)), digits = x / power;
    return power * (digits >= 4.9999999 ? 5 : digits >= 1.9999999 ? 2 : 1);
}

static double clamp(double value, double least, double most) {
    return fmin(fmax(value, least), most);
}

/* An archive's record may say any number. */
void cli_scale_round(cli_scale *s) {
    double least = s->log ? 1 / largest : -largest;
    s->low = clamp(s->low, least, largest);
    s->high = clamp(s->high, least, largest);
    if (s->log) {
        s->low = round_down(s->low);
        s->high = round_up(s->high);
        if (!(s->high > s->low))
            s->high = round_up(s->low * 1.5);
        return;
    }
    if (!(s->high > s->low))
        s->high = s->low + (s->low != 0 ? fabs(s->low) : 1);
    double step = round_up((s->high - s->low) / 6);
    s->low = floor(s->low / step + 1e-9) * step;
    s->high = ceil(s->high / step - 1e-9) * step;
}

/* 1, 2, 5 times powers of ten; 1 only; every tenth, hundredth ... only. */
static size_t log_ticks(const cli_scale *s, int density, double *ticks) {
    static const double digits[] = {1, 2, 5};
    size_t count = 0;
    int stride = density > 1 ? density - 1 : 1;
    int first = (int)floor(log10(s->low) + 1e-9), last = (int)ceil(log10(s->high) - 1e-9);
    for (int power = first; power <= last; power++)
        for (int i = 0; i < (density == 0 ? 3 : 1) && count < CLI_MOST_TICKS; i++) {
            double tick = digits[i] * pow(10, power);
            if (tick > s->low * 0.999999 && tick < s->high * 1.000001 && power % stride == 0)
                ticks[count++] = tick;
        }
    return count;
}

static size_t linear_ticks(const cli_scale *s, int density, double *ticks) {
    size_t count = 0;
    double step = round_up((s->high - s->low) / (double)(12 - density));
    for (double i = ceil(s->low / step - 1e-9); i * step <= s->high + 1e-9 * step && count < CLI_MOST_TICKS;
         i++)
        ticks[count++] = i * step;
    return count;
}

static bool are_apart(const cli_scale *s, const double *ticks, size_t count, double gap) {
    for (size_t i = 1; i < count; i++)
        if (fabs(cli_scale_at(s, ticks[i]) - cli_scale_at(s, ticks[i - 1])) < gap)
            return false;
    return true;
}

size_t cli_scale_ticks(const cli_scale *s, double gap, double ticks[CLI_MOST_TICKS]) {
    size_t count = 0;
    for (int density = 0; density < 11; density++) {
        count = s->log ? log_ticks(s, density, ticks) : linear_ticks(s, density, ticks);
        if (are_apart(s, ticks, count, gap))
            break;
    }
    return count;
}

cli_tick cli_tick_text(double value) {
    cli_tick out;
    double size = fabs(value);
    if (size >= 1e15 || (size > 0 && size < 1e-5))
        snprintf(out.text, sizeof out.text, "%.0e", value);
    else if (size >= 1e9)
        snprintf(out.text, sizeof out.text, "%gG", value / 1e9);
    else if (size >= 1e6)
        snprintf(out.text, sizeof out.text, "%gM", value / 1e6);
    else if (size >= 1e4)
        snprintf(out.text, sizeof out.text, "%gk", value / 1e3);
    else if (size >= 1e-4 || size == 0)
        snprintf(out.text, sizeof out.text, "%g", value + 0.0); /* no "-0" */
    else
        snprintf(out.text, sizeof out.text, "%.5f", value);
    return out;
}

/* --- pictures ----------------------------------------------------------------------------------------- */

double cli_chart_width(size_t characters) {
    return character * (double)characters;
}

void cli_chart_open(cli_chart *c, const char *title) {
    c->x.from = c->left;
    c->x.to = c->width - c->right;
    c->y.from = c->height - c->bottom;
    c->y.to = c->top;
    fprintf(c->out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" width=\"%g\" height=\"%g\" "
            "role=\"img\"><title>",
            c->width, c->height, c->width, c->height);
    cli_html_text(c->out, title);
    fputs("</title>\n", c->out);
}

void cli_chart_close(cli_chart *c) {
    fputs("</svg>\n", c->out);
}

void cli_chart_text(const cli_chart *c, const char *name, const char *anchor, double x, double y,
                    const char *text, size_t most) {
    fprintf(c->out, "<text class=\"%s\" text-anchor=\"%s\" x=\"%.1f\" y=\"%.1f\">", name, anchor, x, y);
    cli_html_short(c->out, text, most);
    fputs("</text>\n", c->out);
}

/* Numbers of an axis need so much room each: tried with the ticks of the room before. */
static size_t ticks_of_x(const cli_chart *c, double *ticks) {
    double gap = 0;
    size_t count = 0;
    for (int round = 0; round < 3; round++) {
        count = cli_scale_ticks(&c->x, gap, ticks);
        size_t widest = 1;
        for (size_t i = 0; i < count; i++)
            widest =
                strlen(cli_tick_text(ticks[i]).text) > widest ? strlen(cli_tick_text(ticks[i]).text) : widest;
        double wanted = cli_chart_width(widest) + word_gap;
        if (wanted <= gap)
            break;
        gap = wanted;
    }
    return count;
}

void cli_chart_axis_x(const cli_chart *c, const char *label) {
    double ticks[CLI_MOST_TICKS];
    size_t count = ticks_of_x(c, ticks);
    for (size_t i = 0; i < count; i++) {
        double x = cli_scale_at(&c->x, ticks[i]);
        fprintf(c->out, "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", x,
                c->y.to, x, c->y.from);
        cli_chart_text(c, "tick tx", "middle", x, c->y.from + 16, cli_tick_text(ticks[i]).text, 24);
    }
    fprintf(c->out, "<line class=\"axis\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", c->x.from,
            c->y.from, c->x.to, c->y.from);
    if (label)
        cli_chart_text(c, "label", "end", c->x.to, c->y.from + 34, label, 200);
}

void cli_chart_axis_y(const cli_chart *c, const char *label) {
    double ticks[CLI_MOST_TICKS];
    size_t count = cli_scale_ticks(&c->y, line_gap, ticks);
    for (size_t i = 0; i < count; i++) {
        double y = cli_scale_at(&c->y, ticks[i]);
        fprintf(c->out, "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", c->x.from,
                y, c->x.to, y);
        cli_chart_text(c, "tick ty", "end", c->x.from - 6, y + 4, cli_tick_text(ticks[i]).text, 24);
    }
    if (label)
        cli_chart_text(c, "label", "start", 0, c->y.to - 10, label, 200);
}

void cli_chart_line(const cli_chart *c, const char *name, const double *x, const double *y, size_t count) {
    bool drawing = false;
    fprintf(c->out, "<path class=\"%s\" d=\"", name);
    for (size_t i = 0; i < count; i++) {
        bool there = isfinite(x[i]) && isfinite(y[i]);
        if (there)
            fprintf(c->out, "%s%.1f %.1f", drawing ? "L" : "M", cli_scale_at(&c->x, x[i]),
                    cli_scale_at(&c->y, y[i]));
        drawing = there;
    }
    fputs("\"/>\n", c->out);
}
