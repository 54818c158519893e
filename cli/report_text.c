/* SPDX-License-Identifier: Apache-2.0 */
#include "report_eval.h"
#include "report_map.h"

#include "memory.h"

#include <math.h>

static void heading(const char *text, FILE *out) {
    fprintf(out, "\n%s%s%s\n", cli_style(out, CLI_BOLD), text, cli_style(out, CLI_PLAIN));
}

static void label(const char *text, FILE *out) {
    fprintf(out, "%-12s", text);
}

static void print_sizes(const cli_report *r, FILE *out) {
    const cli_totals *t = &r->totals;
    label("adapters", out);
    fprintf(out, "%s of %s task%s, %s parameters\n", cli_whole_text(t->checkpoints).text,
            cli_whole_text(t->tasks).text, cli_plural(t->tasks), cli_many((double)t->parameters).text);
    label("as files", out);
    fprintf(out, "%s (%s bytes)\n", cli_size(t->file_bytes).text, cli_whole_text(t->file_bytes).text);
    label("archive", out);
    fprintf(out, "%s (%s bytes): %s of the files, %.1f to 1", cli_size(r->bytes.total).text,
            cli_whole_text(r->bytes.total).text,
            cli_percent((double)r->bytes.total, (double)t->file_bytes).text,
            (double)t->file_bytes / (double)r->bytes.total);
    if (t->parameters)
        fprintf(out, ", %.3f bits a parameter", 8 * (double)r->bytes.total / (double)t->parameters);
    fputc('\n', out);
    if (!r->measure || !r->measure->zstd)
        return;
    label("zstd -19", out);
    fprintf(out, "%s of the files, each by itself; the archive is %s of that\n",
            cli_percent((double)r->measure->zstd_bytes, (double)r->measure->original_bytes).text,
            cli_percent((double)r->bytes.total, (double)r->measure->zstd_bytes).text);
}

/* Where training started and where it ended, and how it got there at about a quarter, a half and three. */
static void print_losses(const cJSON *record, FILE *out) {
    const cJSON *losses = cli_record_list(record, "losses");
    int count = losses ? cJSON_GetArraySize(losses) : 0;
    for (int i = 0, told = -1; i <= 4 && count > 0; i++) {
        int at = (count - 1) * i / 4;
        if (at == told)
            continue;
        const cJSON *point = cJSON_GetArrayItem(losses, at);
        label(told < 0 ? "training" : "", out);
        fprintf(out, "epoch %.0f: reconstruction %.3g, KL %.3g\n", cli_record_number(point, "epoch"),
                cli_record_number(point, "reconstruction"), cli_record_number(point, "kl"));
        told = at;
    }
}

static void print_generator(const cli_report_group *group, size_t index, FILE *out) {
    const icma_generator_info *g = &group->generator;
    size_t components = g->components_a + g->components_b + g->components_other;
    char name[32];
    snprintf(name, sizeof name, "group %zu", index);
    label(name, out);
    if (!components && !g->trunk_parameters) {
        fprintf(out, "no generator; %zu of %zu tensors verbatim\n", g->tensors_verbatim, g->tensors);
        return;
    }
    fprintf(out, "%s: ", g->kind);
    if (components)
        fprintf(out, "%zu components (%zu A, %zu B, %zu other)", components, g->components_a, g->components_b,
                g->components_other);
    else
        fprintf(out, "%zu layers, %s parameters", g->hidden_layers, cli_whole_text(g->trunk_parameters).text);
    fprintf(out, ", %zu latent dimension%s; %zu of %zu tensors verbatim\n", g->latent_dim,
            cli_plural(g->latent_dim), g->tensors_verbatim, g->tensors);
    print_losses(group->record, out);
    double explained = cli_record_number(group->record, "within_task_explained");
    double active = cli_record_number(group->record, "active_latents");
    if (!isnan(active)) {
        label("", out);
        fprintf(out, "active latent dimensions: %.0f\n", active);
    }
    if (!isnan(explained)) {
        label("", out);
        fprintf(out, "variance within tasks explained, when packed: %.1f %%\n", 100 * explained);
    }
}

static void print_balance(const cli_report *r, FILE *out) {
    const cli_balance *b = &r->balance;
    label("cost", out);
    fprintf(out, "the generator takes %s, each adapter %s more\n", cli_size(r->bytes.generator).text,
            cli_size((uint64_t)(b->marginal + 0.5)).text);
    label("saving", out);
    uint64_t size = (uint64_t)(b->saved < 0 ? -b->saved : b->saved);
    fprintf(out, "%s %s than the same adapters cast to 16 bits (%s)\n", cli_size(size).text,
            b->saved < 0 ? "more" : "less", cli_size(b->half_size).text);
    label("break-even", out);
    if (b->break_even)
        fprintf(out, "from %s adapter%s on the archive is the smaller one\n",
                cli_whole_text(b->break_even).text, cli_plural(b->break_even));
    else
        fputs("never: an adapter takes no less here than as 16-bit file\n", out);
}

static icma_status print_tasks(const cli_report *r, FILE *out, icma_error *error) {
    cli_table table = cli_table_of((const char *[]){"task", ">checkpoints", ">steps", "tier", ">stored",
                                                    ">dW error, mean", ">max", ">relative error", NULL});
    for (size_t i = 0; i < r->task_count; i++) {
        const cli_report_task *task = &r->tasks[i];
        cli_table_cell(&table, "%s", task->name);
        cli_table_cell(&table, "%zu", task->checkpoints);
        cli_table_cell(&table, "%s", task->steps.text);
        cli_table_cell(&table, "%s", task->tiers.text);
        cli_table_cell(&table, "%s", cli_size(task->bytes).text);
        cli_table_cell(&table, "%s", cli_deviation(task->stored.dw_mean).text);
        cli_table_cell(&table, "%s", cli_deviation(task->stored.dw_max).text);
        cli_table_cell(&table, "%s", cli_deviation(task->stored.relative_error).text);
    }
    return cli_table_print(&table, 0, out, error);
}

static void add_score(cli_table *table, double score, const char *format) {
    char text[48] = "-";
    if (!isnan(score))
        snprintf(text, sizeof text, format, score);
    cli_table_cell(table, "%s", text);
}

static icma_status print_eval(const cli_report *r, FILE *out, icma_error *error) {
    const cli_eval *e = r->eval;
    if (!e)
        return ICMA_OK;
    heading("In use (scores of --eval)", out);
    cli_table table = cli_table_of((const char *[]){"task", "checkpoint", ">no adapter", ">original",
                                                    ">reconstructed", ">difference", ">gain kept", NULL});
    for (size_t i = 0; i < e->count; i++) {
        const cli_eval_row *row = &e->rows[i];
        cli_table_cell(&table, "%s", row->task);
        cli_table_cell(&table, "%s", cli_checkpoint_name(row->has_step, row->step).text);
        add_score(&table, row->base, "%.6g");
        add_score(&table, row->original, "%.6g");
        add_score(&table, row->reconstructed, "%.6g");
        add_score(&table, row->reconstructed - row->original, "%+.3g");
        add_score(&table, row->kept, "%.4f");
    }
    icma_status status = cli_table_print(&table, 0, out, error);
    double kept = cli_eval_kept(e);
    if (!status && !isnan(kept))
        fprintf(out, "\ngain kept, on average: %.4f (1: nothing lost)\n", kept);
    if (!status && e->failed)
        fprintf(out, "failed: %zu\n", e->failed);
    return status;
}

/* Only what words can tell of a map. */
static void print_map(const cli_report *r, FILE *out) {
    const cli_map *m = r->map;
    if (!m || isnan(m->silhouette))
        return;
    heading("Task vectors", out);
    label("silhouette", out);
    fprintf(out, "%.3f over %s samples of %s tasks (1: every sample is nearest to its own task)\n",
            m->silhouette, cli_whole_text(m->count).text, cli_whole_text(m->tasks).text);
}

/* --- recorded tables -------------------------------------------------------------------------------------
 */

static icma_status print_recorded(const cli_report *r, bool modules, FILE *out, icma_error *error) {
    cli_report_row *rows;
    size_t count;
    icma_status status = cli_report_rows(r, modules, true, &rows, &count, error);
    if (status)
        return status;
    cli_table table = cli_table_of((const char *[]){modules ? "module" : "name", ">relative error", ">cosine",
                                                    ">largest difference", NULL});
    for (size_t i = 0; i < count && i < CLI_REPORT_WORST; i++) {
        cli_table_cell(&table, "%s", rows[i].name);
        cli_table_cell(&table, "%s", cli_deviation(rows[i].error).text);
        cli_table_cell(&table, "%s", cli_cosine(rows[i].cosine).text);
        cli_table_cell(&table, "%s", cli_deviation(rows[i].maximum).text);
    }
    icma_free(rows);
    if (count == 0) {
        fputs("nothing was recorded; add --against DIR to measure\n", out);
        cli_table_free(&table);
        return ICMA_OK;
    }
    status = cli_table_print(&table, 0, out, error);
    if (!status && count > CLI_REPORT_WORST)
        fprintf(out, "... and %zu better ones\n", count - CLI_REPORT_WORST);
    return status;
}

/* --- the page --------------------------------------------------------------------------------------------
 */

static icma_status print_details(const cli_report *r, FILE *out, icma_error *error) {
    icma_status status;
    if (!r->measure) {
        heading("Modules, worst first (dW over all adapters, as recorded when packing)", out);
        status = print_recorded(r, true, out, error);
        if (status)
            return status;
        heading("Tensors, worst first (over all adapters, as recorded when packing)", out);
        return print_recorded(r, false, out, error);
    }
    heading("Against the originals", out);
    status = cli_measure_print(r->measure, out, error);
    if (status)
        return status;
    heading("Modules, worst first", out);
    status = cli_measure_print_modules(r->measure, CLI_REPORT_WORST, out, error);
    if (status)
        return status;
    heading("Tensors, worst first", out);
    return cli_measure_print_tensors(r->measure, CLI_REPORT_WORST, out, error);
}

icma_status cli_report_text(const cli_report *r, FILE *out, icma_error *error) {
    fprintf(out, "%sFidelity report of ", cli_style(out, CLI_BOLD));
    cli_print_safe(out, r->path);
    fprintf(out, "%s\n\n", cli_style(out, CLI_PLAIN));
    print_sizes(r, out);
    fputc('\n', out);
    icma_status status = cli_print_bytes(&r->bytes, out, error);
    if (status)
        return status;
    heading("Generator", out);
    for (size_t i = 0; i < r->group_count; i++)
        print_generator(&r->groups[i], i, out);
    print_balance(r, out);
    heading("Tasks (errors as stored when packing)", out);
    status = print_tasks(r, out, error);
    if (!status)
        print_map(r, out);
    if (!status)
        status = print_eval(r, out, error);
    return status ? status : print_details(r, out, error);
}
