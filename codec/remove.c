/* SPDX-License-Identifier: Apache-2.0 */
/* Removing tasks: all sections but theirs, copied. */
#include "change.h"
#include "memory.h"
#include "ops.h"

#include <string.h>

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory to change the archive");
}

static icma_status mark_tasks(icma_change *c, const char *const *tasks, size_t count, icma_error *error) {
    for (size_t i = 0; i < count; i++) {
        size_t task = icma_bundle_find_task(c->bundle, tasks[i]);
        if (task == SIZE_MAX)
            return icma_fail(error, ICMA_E_NOT_FOUND, icma_file_path(c->file), "no task \"%.255s\"",
                             tasks[i]);
        c->tasks[task] = ICMA_NO_OWNER;
    }
    return ICMA_OK;
}

/* A group goes with its last task. */
static icma_status mark_groups(icma_change *c, icma_remove_result *r, icma_error *error) {
    const icma_bundle *b = c->bundle;
    size_t groups = icma_bundle_group_count(b);
    bool *stays = icma_alloc_zeroed(groups + 1, sizeof *stays);
    if (!stays)
        return no_memory(error);
    for (size_t i = 0; i < b->table_count; i++) {
        bool task_stays = c->tasks[b->tables[i]->task] != ICMA_NO_OWNER;
        r->checkpoints += task_stays ? 0 : b->tables[i]->count;
        stays[b->tables[i]->group] |= task_stays;
    }
    for (size_t g = 0; g < groups; g++)
        c->groups[g] = stays[g] ? (uint32_t)r->groups_left++ : ICMA_NO_OWNER;
    r->groups = groups - r->groups_left;
    icma_free(stays);
    return ICMA_OK;
}

/* Those that stay, in the order in which they were. */
static const char **renumber_tasks(icma_change *c, icma_remove_result *r) {
    size_t count = icma_bundle_task_count(c->bundle);
    const char **names = icma_alloc_array(count + 1, sizeof *names);
    for (size_t t = 0; names && t < count; t++) {
        if (c->tasks[t] == ICMA_NO_OWNER)
            continue;
        names[r->tasks_left] = icma_bundle_task_name(c->bundle, t);
        c->tasks[t] = (uint32_t)r->tasks_left++;
    }
    r->tasks = count - r->tasks_left;
    return names;
}

/* What a reader makes of the new archive's index and tables. */
static icma_status check_result(const icma_change *c, icma_remove_result *r, icma_error *error) {
    icma_limits none = icma_limits_defaults();
    none.max_output = none.max_work = UINT64_MAX;
    icma_bundle *bundle;
    icma_status status =
        icma_bundle_open(icma_container_temporary(c->writer), icma_ops_cpu(), &none, &bundle, error);
    for (size_t t = 0; !status && t < icma_bundle_task_count(bundle); t++) {
        icma_task_info info;
        status = icma_bundle_task(bundle, t, &info, error);
        icma_bundle_forget_task(bundle, t);
    }
    if (!status)
        r->bytes_after = icma_bundle_bytes(bundle).total;
    icma_bundle_close(bundle);
    return status;
}

static icma_status remove_marked(icma_change *c, icma_remove_result *r, icma_error *error) {
    icma_status status = mark_groups(c, r, error);
    const char **names = status ? NULL : renumber_tasks(c, r);
    if (!status && !names)
        status = no_memory(error);
    if (!status && r->tasks_left == 0)
        status = icma_fail(error, ICMA_E_USAGE, icma_file_path(c->file),
                           "no task would be left; delete the file instead");
    if (!status)
        status = icma_change_copy(c, error);
    if (!status)
        status = icma_container_finish(c->writer, names, r->tasks_left, r->groups_left, error);
    icma_free((void *)names);
    if (!status)
        status = check_result(c, r, error);
    return status ? status : icma_change_commit(c, error);
}

icma_status icma_bundle_remove(const char *path, const char *const *tasks, size_t task_count,
                               const icma_change_options *options, icma_remove_result *result,
                               icma_error *error) {
    icma_change_options all;
    icma_change c = {0};
    memset(result, 0, sizeof *result);
    icma_status status = icma_change_take_options(options, &all, error);
    if (!status)
        status = icma_change_open(&c, path, &all, icma_ops_cpu(), NULL, error);
    if (!status) {
        result->bytes_before = icma_bundle_bytes(c.bundle).total;
        status = mark_tasks(&c, tasks, task_count, error);
    }
    if (!status)
        status = remove_marked(&c, result, error);
    icma_change_close(&c);
    if (status)
        memset(result, 0, sizeof *result);
    return status;
}
