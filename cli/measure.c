/* SPDX-License-Identifier: Apache-2.0 */
#include "measure.h"

#include "memory.h"

#include <math.h>
#include <string.h>

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the comparison");
}

/* --- groups ----------------------------------------------------------------------------------------------
 */

static icma_status name_rows(cli_measured_group *group, const cli_adapter *first, icma_error *error) {
    group->tensor_count = first->tensors.tensor_count;
    group->module_count = first->pairs.count;
    group->tensors = icma_alloc_zeroed(group->tensor_count + 1, sizeof *group->tensors);
    group->modules = icma_alloc_zeroed(group->module_count + 1, sizeof *group->modules);
    if (!group->tensors || !group->modules)
        return no_memory(error);
    bool complete = true;
    for (size_t i = 0; i < group->tensor_count; i++) {
        group->tensors[i] = (cli_measured_row){.name = icma_copy_string(first->tensors.tensors[i].name),
                                               .sum = {.identical = true}};
        complete &= group->tensors[i].name != NULL;
    }
    for (size_t i = 0; i < group->module_count; i++) {
        group->modules[i] = (cli_measured_row){.name = icma_copy_string(first->pairs.list[i].module),
                                               .sum = {.identical = true}};
        complete &= group->modules[i].name != NULL;
    }
    return complete ? ICMA_OK : no_memory(error);
}

static icma_status find_group(cli_measure *measure, const cli_adapter *adapter, size_t *found,
                              icma_error *error) {
    for (*found = 0; *found < measure->group_count; (*found)++)
        if (icma_safetensors_same_signature(&measure->groups[*found].signature, &adapter->tensors))
            return ICMA_OK;
    cli_measured_group *groups = icma_resize_array(measure->groups, measure->group_count + 1, sizeof *groups);
    if (!groups)
        return no_memory(error);
    measure->groups = groups;
    cli_measured_group *group = &groups[measure->group_count++];
    *group = (cli_measured_group){0};
    icma_status status = icma_safetensors_parse(adapter->tensors.header, adapter->tensors.header_size,
                                                adapter->tensors.data_size, &group->signature, error);
    return status ? status : name_rows(group, adapter, error);
}

static void add_row(cli_measured_row *row, const icma_distance *distance) {
    double relative = icma_distance_relative(distance);
    row->adapters++;
    row->mean += (relative - row->mean) / (double)row->adapters;
    row->worst = fmax(row->worst, relative);
    icma_distance_add(&row->sum, distance);
}

/* --- variance within a task ------------------------------------------------------------------------------
 */

static size_t count_floats(const icma_safetensors *tensors) {
    size_t count = 0;
    for (size_t i = 0; i < tensors->tensor_count; i++)
        if (icma_dtype_is_modelled(tensors->tensors[i].dtype))
            count += (size_t)tensors->tensors[i].count;
    return count;
}

static void free_spread(cli_spread *spread) {
    icma_free(spread->sum);
    icma_free(spread->energy);
    icma_free(spread->error);
    *spread = (cli_spread){0};
}

static icma_status open_spread(cli_spread *spread, size_t group, const icma_safetensors *tensors,
                               icma_error *error) {
    spread->group = group;
    spread->sum = icma_alloc_zeroed(count_floats(tensors) + 1, sizeof *spread->sum);
    spread->energy = icma_alloc_zeroed(tensors->tensor_count + 1, sizeof *spread->energy);
    spread->error = icma_alloc_zeroed(tensors->tensor_count + 1, sizeof *spread->error);
    if (spread->sum && spread->energy && spread->error)
        return ICMA_OK;
    free_spread(spread);
    return no_memory(error);
}

/* The sum of |x - mean|^2 is that of |x|^2 less |sum x|^2 / n: in double, and with a spread of a thousandth,
 * enough digits are left. */
static void close_spread(cli_measure *measure) {
    cli_spread *spread = &measure->open;
    if (!spread->sum)
        return;
    cli_measured_group *group = &measure->groups[spread->group];
    const double *sum = spread->sum;
    for (size_t i = 0; i < group->tensor_count && spread->adapters > 1; i++) {
        const icma_tensor_info *tensor = &group->signature.tensors[i];
        if (!icma_dtype_is_modelled(tensor->dtype))
            continue;
        double mean_energy = 0;
        for (uint64_t j = 0; j < tensor->count; j++, sum++)
            mean_energy += *sum * *sum;
        group->tensors[i].spread += spread->energy[i] - mean_energy / (double)spread->adapters;
        group->tensors[i].unexplained += spread->error[i];
    }
    free_spread(spread);
}

static void add_floats(const icma_tensor_info *tensor, const uint8_t *at, double *sum) {
    enum { BLOCK = 512 };
    float block[BLOCK];
    size_t width = icma_dtype_bits(tensor->dtype) / 8;
    for (uint64_t done = 0; done < tensor->count; done += BLOCK) {
        size_t count = tensor->count - done < BLOCK ? (size_t)(tensor->count - done) : BLOCK;
        icma_load_floats(tensor->dtype, at + done * width, count, block);
        for (size_t i = 0; i < count; i++)
            sum[done + i] += (double)block[i];
    }
}

static icma_status add_spread(cli_measure *measure, size_t group, const cli_adapter *original,
                              const icma_fidelity *fidelity, icma_error *error) {
    cli_spread *spread = &measure->open;
    if (spread->sum && spread->group != group)
        close_spread(measure);
    if (!spread->sum) {
        icma_status status = open_spread(spread, group, &original->tensors, error);
        if (status)
            return status;
    }
    double *sum = spread->sum;
    for (size_t i = 0; i < original->tensors.tensor_count; i++) {
        const icma_tensor_info *tensor = &original->tensors.tensors[i];
        if (!icma_dtype_is_modelled(tensor->dtype))
            continue;
        add_floats(tensor, original->data + tensor->begin, sum);
        sum += tensor->count;
        spread->energy[i] += fidelity->tensors[i].energy;
        spread->error[i] += fidelity->tensors[i].error;
    }
    spread->adapters++;
    return ICMA_OK;
}

void cli_measure_finish(cli_measure *measure) {
    close_spread(measure);
}

double cli_measure_explained(const cli_measure *measure) {
    double spread = 0, unexplained = 0;
    for (size_t i = 0; i < measure->group_count; i++)
        for (size_t j = 0; j < measure->groups[i].tensor_count; j++) {
            const cli_measured_row *row = &measure->groups[i].tensors[j];
            double square = row->sum.count ? row->sum.energy / (double)row->sum.count : 0;
            if (square <= 0)
                continue;
            spread += row->spread / square;
            unexplained += row->unexplained / square;
        }
    return spread > 0 ? 1 - unexplained / spread : NAN;
}

/* --- tasks -----------------------------------------------------------------------------------------------
 */

/* Adapters come task by task, so only the last can be the one. */
static icma_status find_task(cli_measure *measure, const char *name, cli_measured_task **found,
                             icma_error *error) {
    *found = measure->task_count ? &measure->tasks[measure->task_count - 1] : NULL;
    if (*found && strcmp((*found)->name, name) == 0)
        return ICMA_OK;
    close_spread(measure);
    cli_measured_task *tasks = icma_resize_array(measure->tasks, measure->task_count + 1, sizeof *tasks);
    char *copy = icma_copy_string(name);
    if (tasks)
        measure->tasks = tasks;
    if (!tasks || !copy) {
        icma_free(copy);
        return no_memory(error);
    }
    *found = &tasks[measure->task_count++];
    **found = (cli_measured_task){.name = copy, .score = cli_score_none()};
    return ICMA_OK;
}

static icma_status add_checkpoint(cli_measured_task *task, bool has_step, uint64_t step, size_t group,
                                  const icma_fidelity *fidelity, icma_error *error) {
    cli_measured_checkpoint *list =
        icma_resize_array(task->checkpoints, task->checkpoint_count + 1, sizeof *list);
    if (!list)
        return no_memory(error);
    task->checkpoints = list;
    cli_measured_checkpoint *added = &list[task->checkpoint_count++];
    *added = (cli_measured_checkpoint){.has_step = has_step,
                                       .step = step,
                                       .group = group,
                                       .dw_mean = fidelity->dw_error_mean,
                                       .dw_max = fidelity->dw_error_max,
                                       .dw_worst = fidelity->dw_worst,
                                       .total = fidelity->total};
    added->modules = icma_alloc_array(fidelity->pair_count, sizeof *added->modules);
    for (size_t i = 0; added->modules && i < fidelity->pair_count; i++)
        added->modules[i] = icma_distance_relative(&fidelity->pairs[i]);
    return added->modules || fidelity->pair_count == 0 ? ICMA_OK : no_memory(error);
}

static icma_status add_fidelity(cli_measure *measure, const char *name, bool has_step, uint64_t step,
                                const cli_adapter *original, const icma_fidelity *fidelity,
                                icma_error *error) {
    size_t group;
    cli_measured_task *task;
    icma_status status = find_group(measure, original, &group, error);
    if (!status)
        status = find_task(measure, name, &task, error);
    if (!status)
        status = add_checkpoint(task, has_step, step, group, fidelity, error);
    if (!status)
        status = add_spread(measure, group, original, fidelity, error);
    if (status)
        return status;
    for (size_t i = 0; i < fidelity->tensor_count; i++)
        add_row(&measure->groups[group].tensors[i], &fidelity->tensors[i]);
    for (size_t i = 0; i < fidelity->pair_count; i++)
        add_row(&measure->groups[group].modules[i], &fidelity->pairs[i]);
    cli_score_add(&task->score, fidelity);
    cli_score_add(&measure->total, fidelity);
    measure->original_bytes += original->size;
    return ICMA_OK;
}

icma_status cli_measure_add(cli_measure *measure, const char *task, bool has_step, uint64_t step,
                            const cli_adapter *original, const cli_adapter *other, icma_error *error) {
    icma_fidelity fidelity;
    icma_status status = icma_fidelity_compare(&original->tensors, original->data, &other->tensors,
                                               other->data, &original->pairs, original->config,
                                               original->config_size, measure->deep, &fidelity, error);
    if (status)
        return status;
    status = add_fidelity(measure, task, has_step, step, original, &fidelity, error);
    icma_fidelity_free(&fidelity);
    return status;
}

static void free_rows(cli_measured_row *rows, size_t count) {
    for (size_t i = 0; rows && i < count; i++)
        icma_free(rows[i].name);
    icma_free(rows);
}

void cli_measure_free(cli_measure *measure) {
    free_spread(&measure->open);
    for (size_t i = 0; i < measure->group_count; i++) {
        cli_measured_group *group = &measure->groups[i];
        icma_safetensors_free(&group->signature);
        free_rows(group->tensors, group->tensor_count);
        free_rows(group->modules, group->module_count);
    }
    for (size_t i = 0; i < measure->task_count; i++) {
        cli_measured_task *task = &measure->tasks[i];
        for (size_t j = 0; j < task->checkpoint_count; j++)
            icma_free(task->checkpoints[j].modules);
        icma_free(task->checkpoints);
        icma_free(task->name);
    }
    icma_free(measure->groups);
    icma_free(measure->tasks);
    *measure = (cli_measure){0};
}
