/* SPDX-License-Identifier: Apache-2.0 */
#include "report_eval.h"

#include "facts.h"
#include "memory.h"
#include "message.h"
#include "options.h"
#include "progress.h"

#include <math.h>
#include <string.h>

static const char config_name[] = "adapter_config.json";

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for evaluations");
}

/* --- bases --------------------------------------------------------------------------------------------- */

/* TASK=NUMBER, of a task that is in the archive: the last '=' divides. */
static bool read_task_base(const cli_eval *e, const char *text, size_t *task, double *value) {
    const char *equals = strrchr(text, '=');
    char *name =
        equals && cli_parse_real(equals + 1, value) ? icma_copy_text(text, (size_t)(equals - text)) : NULL;
    *task = name ? icma_bundle_find_task(e->bundle, name) : SIZE_MAX;
    icma_free(name);
    return *task != SIZE_MAX;
}

static icma_status read_base(cli_eval *e, const char *text, icma_error *error) {
    size_t task;
    double value;
    if (cli_parse_real(text, &value)) {
        if (!isnan(e->common_base))
            return icma_fail(error, ICMA_E_USAGE, NULL,
                             "--eval-base gives two numbers for all tasks; name the task, as TASK=NUMBER");
        e->common_base = value;
        return ICMA_OK;
    }
    if (read_task_base(e, text, &task, &value))
        return ICMA_OK;
    if (e->base_command)
        return icma_fail(error, ICMA_E_USAGE, NULL,
                         "--eval-base names two commands, or a task that is not in the archive: %s", text);
    e->base_command = text;
    return cli_evaluate_open_base(text, &e->base_judge, error);
}

static icma_status open_all(cli_eval *e, icma_error *error) {
    const cli_eval_options *o = e->options;
    icma_status status = cli_evaluate_open(o->command, &e->judge, error);
    for (size_t i = 0; !status && i < o->bases->count; i++)
        status = read_base(e, o->bases->items[i], error);
    cli_evaluator *both[] = {e->judge, e->base_judge};
    for (size_t i = 0; !status && i < 2; i++)
        if (both[i]) {
            cli_evaluator_limit(both[i], o->seconds);
            cli_evaluator_quote(both[i]);
        }
    return status;
}

icma_status cli_eval_open(const cli_eval_options *options, const icma_bundle *bundle, cli_eval *out,
                          icma_error *error) {
    *out = (cli_eval){.options = options, .bundle = bundle, .common_base = NAN};
    return options->command ? open_all(out, error) : ICMA_OK;
}

void cli_eval_free(cli_eval *e) {
    for (size_t i = 0; i < e->count; i++) {
        icma_free(e->rows[i].task);
        icma_free(e->rows[i].failure);
    }
    icma_free(e->rows);
    cli_evaluator_close(e->judge);
    cli_evaluator_close(e->base_judge);
    *e = (cli_eval){0};
}

/* What was said of the task, last word first; else the command's score; else the number for all. */
static icma_status find_base(const cli_eval *e, const char *name, double *out, icma_error *error) {
    const cli_list *bases = e->options->bases;
    size_t task, wanted = icma_bundle_find_task(e->bundle, name);
    for (size_t i = bases->count; i-- > 0;)
        if (!cli_parse_real(bases->items[i], out) && read_task_base(e, bases->items[i], &task, out) &&
            task == wanted)
            return ICMA_OK;
    *out = e->common_base;
    return e->base_judge ? cli_evaluator_run(e->base_judge, name, NULL, 0, NULL, 0, out, error) : ICMA_OK;
}

/* --- a pair -------------------------------------------------------------------------------------------- */

/* A failure of the command is the row's; anything else ends the work. */
static icma_status note_failure(cli_eval *e, cli_eval_row *row, icma_status status, const icma_error *detail,
                                icma_error *error) {
    if (status != ICMA_E_IO) {
        *error = *detail;
        return status;
    }
    cli_warning(NULL, "%s", detail->message);
    e->failed++;
    row->failure = icma_copy_string(detail->message);
    return row->failure ? ICMA_OK : no_memory(error);
}

/* The configuration that unpacking gives, else the original's. */
static const void *config_of(const cli_pair *pair, size_t *size) {
    for (size_t i = 0; i < pair->decoded->file_count; i++)
        if (strcmp(pair->decoded->files[i].name, config_name) == 0) {
            *size = pair->decoded->files[i].size;
            return pair->decoded->files[i].data ? (const void *)pair->decoded->files[i].data : "";
        }
    *size = pair->original->config_size;
    return pair->original->config;
}

static icma_status run_pair(cli_eval *e, const cli_pair *pair, cli_eval_row *row, icma_error *error) {
    const cli_eval_row *before =
        row > e->rows && strcmp(row[-1].task, row->task) == 0 && !isnan(row[-1].base) ? row - 1 : NULL;
    size_t size;
    icma_status status = ICMA_OK;
    row->base = before ? before->base : NAN;
    if (!before)
        status = find_base(e, pair->task, &row->base, error);
    if (!status)
        status =
            cli_evaluator_run(e->judge, pair->task, pair->original->image, pair->original->size,
                              pair->original->config, pair->original->config_size, &row->original, error);
    const void *config = config_of(pair, &size);
    if (!status)
        status = cli_evaluator_run(e->judge, pair->task, pair->decoded->data, pair->decoded->size, config,
                                   size, &row->reconstructed, error);
    if (!status && row->base != row->original)
        row->kept = (row->base - row->reconstructed) / (row->base - row->original);
    return status;
}

static icma_status judge(void *context, const cli_pair *pair, icma_error *error) {
    cli_eval *e = context;
    icma_error detail = {0};
    if (!pair->last && !e->options->all)
        return ICMA_OK;
    cli_eval_row *rows = icma_resize_array(e->rows, e->count + 1, sizeof *rows);
    if (!rows)
        return no_memory(error);
    e->rows = rows;
    cli_eval_row *row = &rows[e->count];
    *row = (cli_eval_row){.task = icma_copy_string(pair->task),
                          .has_step = pair->has_step,
                          .step = pair->step,
                          .base = NAN,
                          .original = NAN,
                          .reconstructed = NAN,
                          .kept = NAN};
    if (!row->task)
        return no_memory(error);
    e->count++;
    cli_progress_show("evaluate", (double)e->count - 1, 0, "adapters", pair->task);
    icma_status status = run_pair(e, pair, row, &detail);
    return status ? note_failure(e, row, status, &detail, error) : ICMA_OK;
}

cli_judge cli_eval_judge(cli_eval *e) {
    return (cli_judge){e->judge ? judge : NULL, e};
}

void cli_eval_finish(cli_eval *e) {
    /* Measuring walks a task's checkpoints backwards. */
    for (size_t first = 0, next; first < e->count; first = next) {
        for (next = first; next < e->count && strcmp(e->rows[next].task, e->rows[first].task) == 0; next++)
            ;
        for (size_t i = first, j = next; i + 1 < j; i++) {
            cli_eval_row row = e->rows[i];
            e->rows[i] = e->rows[--j];
            e->rows[j] = row;
        }
    }
}

double cli_eval_kept(const cli_eval *e) {
    double sum = 0, count = 0;
    for (size_t i = 0; i < e->count; i++)
        if (!isnan(e->rows[i].kept)) {
            sum += e->rows[i].kept;
            count++;
        }
    return count > 0 ? sum / count : NAN;
}
