/* SPDX-License-Identifier: Apache-2.0 */
/* From a list of adapters to tasks: order, names that clash, conditions. */
#include "input_finder.h"
#include "input_names.h"

#include "file.h"
#include "memory.h"
#include "sort.h"

#include <stdio.h>
#include <string.h>

/* --- tasks --------------------------------------------------------------------------------------------- */

/* By task, then by step, those without one last, then by path so that messages do not depend on order. */
static int compare_found(const void *left, const void *right, const void *context) {
    (void)context;
    const icma_found *a = left, *b = right;
    const icma_input_checkpoint *x = &a->checkpoint, *y = &b->checkpoint;
    int order = icma_compare_natural(a->task, b->task);
    if (order == 0)
        order = (y->has_step > x->has_step) - (y->has_step < x->has_step);
    if (order == 0)
        order = (x->step > y->step) - (x->step < y->step);
    return order != 0 ? order : icma_compare_natural(x->path, y->path);
}

static icma_status check_neighbours(const icma_finder *f, const icma_found *a, const icma_found *b) {
    const icma_input_checkpoint *x = &a->checkpoint, *y = &b->checkpoint;
    if (!icma_same_identity(a->home, b->home))
        return icma_fail(f->error, ICMA_E_USAGE, b->folder,
                         "task '%s' is in %s too; give tasks different names, or one of them only", b->task,
                         a->folder);
    if (x->has_step == y->has_step && x->step == y->step)
        return icma_fail(f->error, ICMA_E_USAGE, y->path,
                         "the same checkpoint of task '%s' as %s; give one of them only", b->task, x->path);
    return ICMA_OK;
}

static char fold_case(char c) {
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static int compare_folded(const char *a, const char *b) {
    while (*a && fold_case(*a) == fold_case(*b)) {
        a++;
        b++;
    }
    return (unsigned char)fold_case(*a) - (unsigned char)fold_case(*b);
}

static int compare_names(const void *left, const void *right, const void *context) {
    (void)context;
    const char *a = ((const icma_input_task *const *)left)[0]->name;
    const char *b = ((const icma_input_task *const *)right)[0]->name;
    int order = compare_folded(a, b);
    return order != 0 ? order : strcmp(a, b);
}

/* Names that differ in case only would overwrite each other where file systems do not care. */
static icma_status check_cases(const icma_finder *f, const icma_inputs *inputs) {
    const icma_input_task **sorted = icma_alloc_array(inputs->task_count, sizeof *sorted);
    if (!sorted)
        return icma_finder_no_memory(f);
    for (size_t i = 0; i < inputs->task_count; i++)
        sorted[i] = &inputs->tasks[i];
    icma_sort(sorted, inputs->task_count, sizeof *sorted, compare_names, NULL);
    icma_status status = ICMA_OK;
    for (size_t i = 1; i < inputs->task_count && status == ICMA_OK; i++)
        if (compare_folded(sorted[i - 1]->name, sorted[i]->name) == 0)
            status = icma_fail(f->error, ICMA_E_USAGE, sorted[i]->folder,
                               "tasks '%s' and '%s' (%s) differ in upper and lower case only; rename one",
                               sorted[i]->name, sorted[i - 1]->name, sorted[i - 1]->folder);
    icma_free(sorted);
    return status;
}

/* Moves found[first .. next - 1], which are one task's, into `task`. */
static bool fill_task(icma_found *found, size_t count, icma_input_task *task) {
    task->checkpoints = icma_alloc_zeroed(count, sizeof *task->checkpoints);
    if (!task->checkpoints)
        return false;
    task->name = found[0].task;
    task->folder = found[0].folder;
    found[0].task = found[0].folder = NULL;
    for (size_t i = 0; i < count; i++) {
        task->checkpoints[i] = found[i].checkpoint;
        found[i].checkpoint = (icma_input_checkpoint){0};
    }
    task->checkpoint_count = count;
    return true;
}

/* Named adapters of several tasks may have one name: then each is called after its task as well. */
static icma_status name_apart(icma_finder *f) {
    bool renamed = false;
    for (size_t first = 0, next; first < f->found_count; first = next) {
        bool apart = false;
        for (next = first + 1;
             next < f->found_count && strcmp(f->found[next].task, f->found[first].task) == 0; next++)
            apart |= !icma_same_identity(f->found[next].home, f->found[first].home);
        for (size_t i = first; apart && i < next; i++) {
            icma_found *found = &f->found[i];
            size_t owner = found->owner ? strlen(found->owner) : 0, size = owner + strlen(found->task) + 2;
            char *name = owner ? icma_alloc(size) : NULL;
            if (owner && !name)
                return icma_finder_no_memory(f);
            if (!name)
                continue;
            snprintf(name, size, "%s.%s", found->owner, found->task);
            icma_free(found->task);
            found->task = name;
            renamed = true;
            if (!icma_path_segment_is_safe(name))
                return icma_fail(
                    f->error, ICMA_E_USAGE, found->checkpoint.path,
                    "its task would be called '%.200s', which is not safe as a file name; rename it", name);
        }
    }
    if (renamed)
        icma_sort(f->found, f->found_count, sizeof *f->found, compare_found, NULL);
    return ICMA_OK;
}

/* Where a task lives. */
typedef struct task_home {
    icma_identity home;
    bool plain; /* all its checkpoints are plain files */
    size_t task;
} task_home;

static icma_status build_tasks(icma_finder *f, icma_inputs *out, task_home *homes) {
    for (size_t first = 0, next; first < f->found_count; first = next) {
        task_home home = {f->found[first].home, f->found[first].plain, out->task_count};
        for (next = first + 1; next < f->found_count; next++) {
            if (strcmp(f->found[next].task, f->found[first].task) != 0)
                break;
            icma_status status = check_neighbours(f, &f->found[next - 1], &f->found[next]);
            if (status != ICMA_OK)
                return status;
            home.plain = home.plain && f->found[next].plain;
        }
        homes[out->task_count] = home;
        icma_input_task *task = &out->tasks[out->task_count++];
        bool folders = next - first > 1 && !f->found[next - 1].plain && !f->found[next - 2].plain;
        if (!fill_task(&f->found[first], next - first, task))
            return icma_finder_no_memory(f);
        icma_status status = icma_finder_merge_final(f, task, folders);
        if (status != ICMA_OK)
            return status;
    }
    return ICMA_OK;
}

/* --- conditions ---------------------------------------------------------------------------------------- */

static int compare_homes(const void *left, const void *right, const void *context) {
    (void)context;
    const task_home *a = left, *b = right;
    int order = (a->home.device > b->home.device) - (a->home.device < b->home.device);
    if (order == 0)
        order = (a->home.inode > b->home.inode) - (a->home.inode < b->home.inode);
    return order != 0 ? order : (a->task > b->task) - (a->task < b->task);
}

/* *path is NULL where the folder has none. */
static icma_status find_condition(const icma_finder *f, const char *folder, char **path) {
    static const char *const names[] = {"task_vector.safetensors", "task_vector.npy"};
    icma_identity id;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        *path = icma_path_join(folder, names[i]);
        if (!*path)
            return icma_finder_no_memory(f);
        if (icma_path_look(*path, &id) == ICMA_ENTRY_FILE)
            return ICMA_OK;
        icma_free(*path);
        *path = NULL;
    }
    return ICMA_OK;
}

/* Gives the condition of one folder to its tasks: to the folder's own or, among plain files, to the only one.
 */
static icma_status give_condition(icma_finder *f, const task_home *homes, size_t count, icma_inputs *out) {
    char *path;
    bool taken = false;
    icma_status status = find_condition(f, out->tasks[homes[0].task].folder, &path);
    if (status != ICMA_OK || !path)
        return status;
    for (size_t i = 0; i < count && status == ICMA_OK; i++) {
        if (homes[i].plain && count > 1)
            continue;
        icma_input_task *task = &out->tasks[homes[i].task];
        task->condition_path = icma_copy_string(path);
        status = task->condition_path ? ICMA_OK : icma_finder_no_memory(f);
        taken = true;
    }
    if (status == ICMA_OK && !taken)
        status = icma_finder_skip(f, ICMA_E_USAGE, path,
                                  "a task vector beside several tasks: it is not clear whose it is");
    icma_free(path);
    return status;
}

static icma_status give_conditions(icma_finder *f, task_home *homes, icma_inputs *out) {
    icma_status status = ICMA_OK;
    icma_sort(homes, out->task_count, sizeof *homes, compare_homes, NULL);
    for (size_t first = 0, next; first < out->task_count && status == ICMA_OK; first = next) {
        next = first + 1;
        while (next < out->task_count && icma_same_identity(homes[first].home, homes[next].home))
            next++;
        status = give_condition(f, &homes[first], next - first, out);
    }
    return status;
}

static icma_status nothing_found(const icma_finder *f) {
    if (f->skip_count == 0)
        return icma_fail(
            f->error, ICMA_E_NOT_FOUND, NULL,
            "no LoRA adapters found; give folders with adapter_model.safetensors, or .safetensors files");
    return icma_fail(f->error, ICMA_E_NOT_FOUND, f->skips[0].path, "%s; no LoRA adapters were found",
                     f->skips[0].reason);
}

icma_status icma_finder_gather(icma_finder *f, icma_inputs *out) {
    if (f->found_count == 0)
        return nothing_found(f);
    icma_sort(f->found, f->found_count, sizeof *f->found, compare_found, NULL);
    icma_status status = name_apart(f);
    if (status != ICMA_OK)
        return status;
    task_home *homes = icma_alloc_array(f->found_count, sizeof *homes);
    out->tasks = icma_alloc_zeroed(f->found_count, sizeof *out->tasks);
    status = homes && out->tasks ? build_tasks(f, out, homes) : icma_finder_no_memory(f);
    if (status == ICMA_OK)
        status = check_cases(f, out);
    if (status == ICMA_OK)
        status = give_conditions(f, homes, out);
    icma_free(homes);
    return status;
}
