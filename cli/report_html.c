/* SPDX-License-Identifier: Apache-2.0 */
/* The report as one page: HTML with pictures as SVG in it, one style sheet for both themes, no script,
 * nothing from elsewhere. No date: the same archive gives the same page. */
#include "report_html.h"

#include "report_eval.h"
#include "version.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

void cli_page_section(FILE *out, const char *id, const char *title) {
    fprintf(out, "<section id=\"%s\">\n<h2>%s</h2>\n", id, title);
}

void cli_page_end(FILE *out) {
    fputs("</section>\n", out);
}

void cli_page_figure(FILE *out, const char *title, const char *more) {
    fputs("<figure><figcaption>", out);
    cli_html_text(out, title);
    if (more) {
        fputs("<span>", out);
        cli_html_text(out, more);
        fputs("</span>", out);
    }
    fputs("</figcaption>\n", out);
}

void cli_page_figure_end(FILE *out) {
    fputs("</figure>\n", out);
}

void cli_page_note(FILE *out, const char *format, ...) {
    char text[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fputs("<p class=\"note\">", out);
    cli_html_text(out, text);
    fputs("</p>\n", out);
}

void cli_page_more(FILE *out, size_t all, size_t told, const char *what) {
    if (all > told)
        cli_page_note(out, "and %s more %s", cli_whole_text(all - told).text, what);
}

static void put_key(FILE *out, const char *value, const char *format, ...) {
    char text[256];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fputs("<div><b>", out);
    cli_html_text(out, value);
    fputs("</b><span>", out);
    cli_html_text(out, text);
    fputs("</span></div>\n", out);
}

/* The archive's name without its folders, which are nobody's business. */
static const char *name_of(const cli_report *r) {
    const char *slash = strrchr(r->path, '/');
    return slash && slash[1] ? slash + 1 : r->path;
}

/* The mean over checkpoints and the worst: measured, or stored when packing. */
static void errors_of(const cli_report *r, double *mean, double *worst) {
    if (r->measure && r->measure->total.adapters) {
        *mean = r->measure->total.modules ? cli_score_dw_mean(&r->measure->total) : NAN;
        *worst = r->measure->total.modules ? r->measure->total.dw_max : NAN;
        return;
    }
    double sum = 0, count = 0;
    *worst = 0;
    for (size_t i = 0; i < r->task_count; i++) {
        sum += r->tasks[i].stored.dw_mean * (double)r->tasks[i].checkpoints;
        count += (double)r->tasks[i].checkpoints;
        *worst = fmax(*worst, r->tasks[i].stored.dw_max);
    }
    *mean = count > 0 ? sum / count : NAN;
}

static void put_head(const cli_report *r, FILE *out) {
    double mean, worst;
    char ratio[32];
    errors_of(r, &mean, &worst);
    snprintf(ratio, sizeof ratio, "%.4g : 1", (double)r->totals.file_bytes / (double)r->bytes.total);
    fputs("<p class=\"sub\">Fidelity report</p>\n<h1>", out);
    cli_html_text(out, name_of(r));
    fputs("</h1>\n<div class=\"keys\">\n", out);
    put_key(out, ratio, "%s of adapters in %s", cli_size(r->totals.file_bytes).text,
            cli_size(r->bytes.total).text);
    put_key(out, cli_whole_text(r->totals.checkpoints).text, "adapter%s of %s task%s",
            cli_plural(r->totals.checkpoints), cli_whole_text(r->totals.tasks).text,
            cli_plural(r->totals.tasks));
    if (r->totals.parameters) {
        char bits[32];
        snprintf(bits, sizeof bits, "%.3f", 8 * (double)r->bytes.total / (double)r->totals.parameters);
        put_key(out, bits, "bits a parameter, all bytes counted");
    }
    put_key(out, cli_deviation(mean).text, "mean relative error of dW, %s",
            r->measure ? "measured on the originals" : "as stored when packing");
    put_key(out, cli_deviation(worst).text, "largest relative error of any module");
    double kept = r->eval ? cli_eval_kept(r->eval) : NAN;
    if (!isnan(kept))
        put_key(out, cli_percent(kept, 1).text, "of the adapters\u2019 gain is kept in use");
    fputs("</div>\n", out);
}

static void put_method(const cli_report *r, FILE *out) {
    cli_page_section(out, "method", "How to read this");
    fputs("<p>Errors are relative: |x - y| / |x|, Frobenius norm. dW = scale &middot; B A is what an adapter "
          "adds to a weight matrix; its error is a module&#8217;s. ",
          out);
    fputs(r->measure ? "Errors of modules, tensors and checkpoints were measured now, on the originals; "
                       "those of the table of tasks were stored when packing.</p>\n"
                     : "All errors were measured and stored when packing, on the decoded files; --against "
                       "DIR measures again, on the originals.</p>\n",
          out);
    cli_page_end(out);
}

static const char head[] = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                           "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
                           "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n"
                           "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta "
                           "name=\"color-scheme\" content=\"light dark\">\n";

icma_status cli_report_html(const cli_report *r, FILE *out, icma_error *error) {
    fputs(head, out);
    fprintf(out, "<meta name=\"generator\" content=\"icma %s\">\n<title>", icma_version());
    cli_html_text(out, name_of(r));
    fprintf(out, " &#8211; fidelity report</title>\n<style>\n%s</style>\n</head>\n<body>\n<main>\n",
            cli_page_style);
    put_head(r, out);
    cli_page_sizes(r, out);
    cli_page_rates(r, out);
    cli_page_eval(r, out);
    icma_status status = cli_page_modules(r, out, error);
    if (!status)
        status = cli_page_timeline(r, out, error);
    if (!status)
        cli_page_tasks(r, out);
    if (!status)
        status = cli_page_map(r, out, error);
    if (!status)
        status = cli_page_training(r, out, error);
    if (!status)
        status = cli_page_tensors(r, out, error);
    if (status)
        return status;
    cli_page_verbatim(r, out);
    put_method(r, out);
    fputs("</main>\n</body>\n</html>\n", out);
    return ICMA_OK;
}
