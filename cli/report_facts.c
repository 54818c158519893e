/* SPDX-License-Identifier: Apache-2.0 */
/* What the report tells, from the archive's tables and records. */
#include "report.h"

#include "memory.h"
#include "signals.h"
#include "sort.h"

#include <math.h>
#include <string.h>

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the report");
}

static icma_status gather_checkpoints(icma_bundle *bundle, size_t index, const icma_task_info *info,
                                      cli_report_task *task, icma_error *error) {
    task->list = icma_alloc_zeroed(info->checkpoint_count + 1, sizeof *task->list);
    task->condition = info->condition ? icma_alloc_array(info->condition_size + 1, sizeof(float)) : NULL;
    if (!task->list || (info->condition && !task->condition))
        return no_memory(error);
    if (info->condition)
        memcpy(task->condition, info->condition, info->condition_size * sizeof(float));
    task->condition_size = info->condition ? info->condition_size : 0;
    for (size_t i = 0; i < info->checkpoint_count; i++) {
        const icma_checkpoint_info *c = &info->checkpoints[i];
        double bytes;
        icma_error detail = {0};
        icma_status status = icma_bundle_checkpoint_bytes(bundle, index, i, &bytes, &detail);
        if (status && status != ICMA_E_CORRUPT) { /* verify's business */
            *error = detail;
            return status;
        }
        task->list[i] = (cli_report_checkpoint){c->has_step,
                                                c->step,
                                                c->group,
                                                status ? NAN : bytes,
                                                (double)c->relative_error,
                                                (double)c->dw_error_mean,
                                                (double)c->dw_error_max};
    }
    return cli_check_signal(error);
}

static icma_status gather_verbatim(icma_bundle *bundle, uint32_t index, cli_report_group *group,
                                   icma_error *error) {
    icma_adapter_tensor *list;
    size_t count;
    icma_status status = icma_bundle_verbatim_tensors(bundle, index, &list, &count, error);
    if (status)
        return status;
    group->verbatim = icma_alloc_zeroed(count + 1, sizeof *group->verbatim);
    for (size_t i = 0; group->verbatim && i < count; i++) {
        if (!(group->verbatim[i] = icma_copy_string(list[i].name)))
            break;
        group->verbatim_count++;
        group->verbatim_bytes += list[i].size;
    }
    icma_free(list);
    return group->verbatim && group->verbatim_count == count ? ICMA_OK : no_memory(error);
}

static icma_status gather_tasks(icma_bundle *bundle, cli_report *report, icma_error *error) {
    size_t count = icma_bundle_task_count(bundle);
    report->tasks = icma_alloc_zeroed(count + 1, sizeof *report->tasks);
    if (!report->tasks)
        return no_memory(error);
    for (; report->task_count < count; report->task_count++) {
        cli_report_task *task = &report->tasks[report->task_count];
        icma_task_info info;
        icma_status status = icma_bundle_task(bundle, report->task_count, &info, error);
        if (status)
            return status;
        *task = (cli_report_task){.name = icma_copy_string(info.name),
                                  .checkpoints = info.checkpoint_count,
                                  .bytes = info.bytes,
                                  .stored = cli_stored_of(&info),
                                  .steps = cli_steps_of(&info),
                                  .tiers = cli_tiers_of(&info)};
        report->task_bytes += task->bytes;
        if (!task->name)
            return no_memory(error);
        status = gather_checkpoints(bundle, report->task_count, &info, task, error);
        icma_bundle_forget_task(bundle, report->task_count);
        if (status)
            return status;
    }
    return ICMA_OK;
}

static icma_status gather_groups(icma_bundle *bundle, cli_report *report, icma_error *error) {
    size_t count = icma_bundle_group_count(bundle);
    report->groups = icma_alloc_zeroed(count + 1, sizeof *report->groups);
    if (!report->groups)
        return no_memory(error);
    while (report->group_count < count) {
        uint32_t index = (uint32_t)report->group_count;
        cli_report_group *group = &report->groups[report->group_count++];
        icma_status status = icma_bundle_generator(bundle, index, &group->generator, error);
        if (!status)
            status = cli_record_load(bundle, index, &group->record, error);
        if (!status)
            status = gather_verbatim(bundle, index, group, error);
        if (status)
            return status;
    }
    return ICMA_OK;
}

icma_status cli_report_gather(icma_bundle *bundle, cli_report *report, icma_error *error) {
    report->bytes = icma_bundle_bytes(bundle);
    icma_status status = cli_totals_of(bundle, &report->totals, error);
    report->balance = cli_balance_of(&report->bytes, &report->totals);
    if (!status)
        status = gather_tasks(bundle, report, error);
    if (!status)
        status = gather_groups(bundle, report, error);
    return status;
}

void cli_report_free(cli_report *report) {
    for (size_t i = 0; report->tasks && i <= report->task_count;
         i++) { /* one more: a task that failed while it was gathered */
        icma_free(report->tasks[i].name);
        icma_free(report->tasks[i].list);
        icma_free(report->tasks[i].condition);
    }
    for (size_t i = 0; i < report->group_count; i++) {
        cli_report_group *group = &report->groups[i];
        cJSON_Delete(group->record);
        for (size_t j = 0; j < group->verbatim_count; j++)
            icma_free(group->verbatim[j]);
        icma_free(group->verbatim);
    }
    icma_free(report->tasks);
    icma_free(report->groups);
}

double cli_report_bits(const cli_report *r, const cli_report_task *task) {
    double part = r->totals.parameters ? (double)task->stored.parameters / (double)r->totals.parameters : 0;
    double bytes = (double)task->bytes + ((double)r->bytes.total - (double)r->task_bytes) * part;
    return task->stored.parameters ? 8 * bytes / (double)task->stored.parameters : NAN;
}

/* --- worst modules and tensors ------------------------------------------------------------------------- */

/* The worst first: what is not finite, then by error; equals in their order. */
static int compare_rows(const void *a, const void *b, const void *context) {
    const cli_report_row *x = a, *y = b;
    double error_x = isnan(x->worst) ? x->error : x->worst, error_y = isnan(y->worst) ? y->error : y->worst;
    (void)context;
    if (isnan(error_x) != isnan(error_y))
        return isnan(error_x) ? -1 : 1;
    if (error_x != error_y && !isnan(error_x))
        return error_x > error_y ? -1 : 1;
    if (x->group != y->group)
        return x->group < y->group ? -1 : 1;
    return strcmp(x->name, y->name);
}

static size_t measured_rows(const cli_measured_group *group, size_t index, bool modules,
                            cli_report_row *rows) {
    const cli_measured_row *list = modules ? group->modules : group->tensors;
    size_t count = modules ? group->module_count : group->tensor_count;
    for (size_t i = 0; rows && i < count; i++)
        rows[i] = (cli_report_row){list[i].name,
                                   index,
                                   icma_distance_relative(&list[i].sum),
                                   list[i].worst,
                                   icma_distance_cosine(&list[i].sum),
                                   list[i].sum.maximum};
    return count;
}

/* JSON has no infinity: an error that is null was one. */
static double recorded_error(const cJSON *row) {
    double value = cli_record_number(row, "relative_error");
    return cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(row, "relative_error")) ? INFINITY : value;
}

static size_t recorded_rows(const cJSON *record, size_t index, bool modules, cli_report_row *rows) {
    const cJSON *list = cli_record_list(record, modules ? "modules" : "tensors");
    size_t count = 0;
    for (const cJSON *row = list ? list->child : NULL; row; row = row->next, count++) {
        const char *name = cli_record_text(row, modules ? "module" : "name");
        if (rows)
            rows[count] = (cli_report_row){name ? name : "?",
                                           index,
                                           recorded_error(row),
                                           NAN,
                                           cli_record_number(row, "cosine"),
                                           cli_record_number(row, "maximum")};
    }
    return count;
}

icma_status cli_report_rows(const cli_report *r, bool modules, bool sorted, cli_report_row **rows,
                            size_t *count, icma_error *error) {
    size_t groups = r->measure ? r->measure->group_count : r->group_count;
    *rows = NULL;
    for (int pass = 0; pass < 2; pass++) {
        *count = 0;
        for (size_t i = 0; i < groups; i++) {
            cli_report_row *to = *rows ? *rows + *count : NULL;
            *count += r->measure ? measured_rows(&r->measure->groups[i], i, modules, to)
                                 : recorded_rows(r->groups[i].record, i, modules, to);
        }
        if (!*rows && !(*rows = icma_alloc_array(*count + 1, sizeof **rows)))
            return no_memory(error);
    }
    if (sorted && *count)
        icma_sort(*rows, *count, sizeof **rows, compare_rows, NULL);
    return ICMA_OK;
}
