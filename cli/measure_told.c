/* SPDX-License-Identifier: Apache-2.0 */
/* What was measured, as tables and as JSON. */
#include "measure.h"

#include "facts.h"
#include "memory.h"
#include "sort.h"

#include <math.h>

static void add_score_row(cli_table *table, const char *name, const cli_score *score, bool deep) {
    cli_table_cell(table, "%s", name);
    cli_table_cell(table, "%zu", score->adapters);
    cli_table_cell(table, "%zu", score->identical);
    cli_table_cell(table, "%s", cli_deviation(score->modules ? cli_score_dw_mean(score) : NAN).text);
    cli_table_cell(table, "%s", cli_deviation(score->modules ? score->dw_max : NAN).text);
    cli_table_cell(table, "%s", cli_deviation(icma_distance_relative(&score->total)).text);
    cli_table_cell(table, "%s", cli_cosine(icma_distance_cosine(&score->total)).text);
    cli_table_cell(table, "%s", cli_deviation(score->total.maximum).text);
    if (deep)
        cli_table_cell(table, "%s", cli_deviation(score->dw_maximum).text);
}

icma_status cli_measure_print(const cli_measure *measure, FILE *out, icma_error *error) {
    cli_table table = cli_table_of(
        (const char *[]){"task", ">compared", ">identical", ">dW error, mean", ">max", ">relative error",
                         ">cosine", ">largest difference", measure->deep ? ">largest in dW" : NULL, NULL});
    for (size_t i = 0; i < measure->task_count; i++)
        add_score_row(&table, measure->tasks[i].name, &measure->tasks[i].score, measure->deep);
    if (measure->task_count > 1)
        add_score_row(&table, "all", &measure->total, measure->deep);
    icma_status status = cli_table_print(&table, 0, out, error);
    double explained = cli_measure_explained(measure);
    if (!status && explained <= 0)
        fputs("\nvariance within tasks explained: none; checkpoints of a task differ by less than the errors\n", out);
    else if (!status && !isnan(explained))
        fprintf(out, "\nvariance within tasks explained: %.1f %%\n", 100 * explained);
    return status;
}

icma_status cli_measure_print_checkpoints(const cli_measure *measure, FILE *out, icma_error *error) {
    cli_table table = cli_table_of((const char *[]){"task", "checkpoint", ">dW error, mean", ">max",
                                                    ">relative error", ">cosine", "worst module", NULL});
    for (size_t i = 0; i < measure->task_count; i++)
        for (size_t j = 0; j < measure->tasks[i].checkpoint_count; j++) {
            const cli_measured_checkpoint *c = &measure->tasks[i].checkpoints[j];
            const cli_measured_group *group = &measure->groups[c->group];
            bool paired = group->module_count > 0;
            cli_table_cell(&table, "%s", measure->tasks[i].name);
            cli_table_cell(&table, "%s", cli_checkpoint_name(c->has_step, c->step).text);
            cli_table_cell(&table, "%s", cli_deviation(paired ? c->dw_mean : NAN).text);
            cli_table_cell(&table, "%s", cli_deviation(paired ? c->dw_max : NAN).text);
            cli_table_cell(&table, "%s", cli_deviation(icma_distance_relative(&c->total)).text);
            cli_table_cell(&table, "%s", cli_cosine(icma_distance_cosine(&c->total)).text);
            cli_table_cell(&table, "%s", paired && c->dw_max > 0 ? group->modules[c->dw_worst].name : "-");
        }
    return cli_table_print(&table, 0, out, error);
}

/* --- rows ------------------------------------------------------------------------------------------------
 */

static int compare_rows(const void *a, const void *b, const void *context) {
    const cli_measured_row *x = *(const cli_measured_row *const *)a, *y = *(const cli_measured_row *const *)b;
    (void)context;
    if (x->worst != y->worst)
        return x->worst > y->worst ? -1 : 1;
    return (x > y) - (x < y);
}

/* Pointers to the tensors' or modules' rows of all groups; owned by the caller. */
static icma_status gather_rows(const cli_measure *measure, bool modules, const cli_measured_row ***rows,
                               size_t *count, icma_error *error) {
    *count = 0;
    for (size_t i = 0; i < measure->group_count; i++)
        *count += modules ? measure->groups[i].module_count : measure->groups[i].tensor_count;
    *rows = icma_alloc_array(*count + 1, sizeof **rows);
    if (!*rows)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for a table");
    size_t at = 0;
    for (size_t i = 0; i < measure->group_count; i++) {
        const cli_measured_group *group = &measure->groups[i];
        const cli_measured_row *list = modules ? group->modules : group->tensors;
        for (size_t j = 0; j < (modules ? group->module_count : group->tensor_count); j++)
            (*rows)[at++] = &list[j];
    }
    return ICMA_OK;
}

static icma_status print_rows(const cli_measure *measure, bool modules, size_t limit, FILE *out,
                              icma_error *error) {
    const cli_measured_row **rows;
    size_t count;
    icma_status status = gather_rows(measure, modules, &rows, &count, error);
    if (status)
        return status;
    if (limit)
        icma_sort(rows, count, sizeof *rows, compare_rows, NULL);
    cli_table table =
        cli_table_of((const char *[]){modules ? "module (dW)" : "tensor", ">worst error", ">mean", ">cosine",
                                      ">SNR, dB", ">largest difference", NULL});
    for (size_t i = 0; i < count && (!limit || i < limit); i++) {
        double snr = icma_distance_snr(&rows[i]->sum);
        cli_table_cell(&table, "%s", rows[i]->name);
        cli_table_cell(&table, "%s", cli_deviation(rows[i]->worst).text);
        cli_table_cell(&table, "%s", cli_deviation(rows[i]->mean).text);
        cli_table_cell(&table, "%s", cli_cosine(icma_distance_cosine(&rows[i]->sum)).text);
        cli_table_cell(&table, isfinite(snr) ? "%.1f" : "-", snr);
        cli_table_cell(&table, "%s", cli_deviation(rows[i]->sum.maximum).text);
    }
    icma_free(rows);
    return cli_table_print(&table, 0, out, error);
}

icma_status cli_measure_print_modules(const cli_measure *measure, size_t limit, FILE *out,
                                      icma_error *error) {
    return print_rows(measure, true, limit, out, error);
}

icma_status cli_measure_print_tensors(const cli_measure *measure, size_t limit, FILE *out,
                                      icma_error *error) {
    return print_rows(measure, false, limit, out, error);
}

/* --- JSON ------------------------------------------------------------------------------------------------
 */

static void rows_to_json(const cli_measured_row *rows, size_t count, const char *key, const char *name,
                         cJSON *to) {
    cJSON *list = cli_json_add_array(to, key);
    for (size_t i = 0; i < count; i++) {
        cJSON *object = cli_json_add_object(list, NULL);
        cli_json_text(object, name, rows[i].name);
        cli_json_real(object, "worst_error", rows[i].worst);
        cli_json_real(object, "mean_error", rows[i].mean);
        cli_json_distance(object, &rows[i].sum);
    }
}

static void checkpoint_to_json(const cli_measure *measure, const cli_measured_checkpoint *c, cJSON *list) {
    cJSON *object = cli_json_add_object(list, NULL);
    if (c->has_step)
        cli_json_whole(object, "step", c->step);
    else
        cli_json_null(object, "step");
    cli_json_whole(object, "group", c->group);
    cli_json_dw_error(object, c->dw_mean, c->dw_max);
    cli_json_distance(object, &c->total);
    cJSON *errors = cli_json_add_array(object, "module_errors");
    for (size_t i = 0; i < measure->groups[c->group].module_count; i++)
        cli_json_real(errors, NULL, c->modules[i]);
}

void cli_measure_to_json(const cli_measure *measure, cJSON *to) {
    cJSON *root = cli_json_add_object(to, "against");
    cJSON *total = cli_json_add_object(root, "total");
    cli_json_score(total, &measure->total);
    cli_json_real(root, "within_task_explained", cli_measure_explained(measure));
    cli_json_whole(root, "unmatched", measure->unmatched);
    cli_json_whole(root, "skipped", measure->skipped);
    cli_json_whole(root, "damaged", measure->damaged);
    cli_json_whole(root, "worse_than_recorded", measure->worse);
    cJSON *tasks = cli_json_add_array(root, "tasks");
    for (size_t i = 0; i < measure->task_count; i++) {
        const cli_measured_task *task = &measure->tasks[i];
        cJSON *object = cli_json_add_object(tasks, NULL);
        cli_json_text(object, "task", task->name);
        cli_json_score(object, &task->score);
        cJSON *checkpoints = cli_json_add_array(object, "checkpoints");
        for (size_t j = 0; j < task->checkpoint_count; j++)
            checkpoint_to_json(measure, &task->checkpoints[j], checkpoints);
    }
    cJSON *groups = cli_json_add_array(root, "groups");
    for (size_t i = 0; i < measure->group_count; i++) {
        const cli_measured_group *group = &measure->groups[i];
        cJSON *object = cli_json_add_object(groups, NULL);
        rows_to_json(group->modules, group->module_count, "modules", "module", object);
        rows_to_json(group->tensors, group->tensor_count, "tensors", "name", object);
    }
}
