/* SPDX-License-Identifier: Apache-2.0 */
/* Tasks that go on: which checkpoints of the inputs are new, and where they follow those that are there. */
#include "add.h"

#include "fidelity.h"
#include "memory.h"
#include "progress.h"
#include "sort.h"

#include <math.h>
#include <string.h>

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for new checkpoints");
}

void icma_add_steps_free(icma_adder *a) {
    for (size_t t = 0; a->steps && t < a->wanted.task_count; t++)
        icma_dataset_close(&a->steps[t].dataset);
    icma_free(a->steps);
    icma_free(a->wanted.tasks);
    icma_free(a->view.tasks);
}

/* --- which are new
 * --------------------------------------------------------------------------------------------- */

typedef struct known_task {
    const char *name;
    uint32_t task;
} known_task;

static int compare_names(const void *x, const void *y, const void *context) {
    (void)context;
    return strcmp(((const known_task *)x)->name, ((const known_task *)y)->name);
}

static uint32_t find_task(const known_task *sorted, size_t count, const char *name) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(sorted[middle].name, name);
        if (order == 0)
            return sorted[middle].task;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return ICMA_NO_OWNER;
}

/* By step; one without a step comes last. */
static int compare_steps(bool has_step, uint64_t step, const icma_checkpoint_info *info) {
    if (has_step != info->has_step)
        return has_step ? -1 : 1;
    return !has_step || step == info->step ? 0 : step < info->step ? -1 : 1;
}

/* The task's checkpoint of that step; SIZE_MAX: it has none. */
static size_t find_step(const icma_task_info *info, const icma_input_checkpoint *c) {
    size_t low = 0, high = info->checkpoint_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = compare_steps(c->has_step, c->step, &info->checkpoints[middle]);
        if (order == 0)
            return middle;
        if (order > 0)
            low = middle + 1;
        else
            high = middle;
    }
    return SIZE_MAX;
}

/* Of the last pack.train_last checkpoints. */
static size_t first_used(const icma_adder *a, const icma_input_task *task) {
    size_t last = a->pack.train_last;
    return last && last < task->checkpoint_count ? task->checkpoint_count - last : 0;
}

static icma_status refuse(const icma_adder *a, const icma_input_task *task, const icma_input_checkpoint *c,
                          const char *why, icma_error *error) {
    return icma_fail(
        error, ICMA_E_EXISTS, icma_file_path(a->change.file),
        "task %s is in it already, and %s cannot follow: %s; take the task out first (icma remove) "
        "and add it with all its checkpoints, or rename the new one",
        task->name, c->path, why);
}

/* The relative error of a decoded file, as packing measured it; INFINITY for other tensors. */
static icma_status measure_file(icma_group *group, const icma_decoded *decoded, double *relative,
                                icma_error *error) {
    icma_safetensors other = {0};
    icma_fidelity fidelity = {0};
    const uint8_t *data;
    uint8_t *file = NULL;
    size_t size;
    *relative = INFINITY;
    icma_status status = icma_safetensors_view(decoded->data, decoded->size, &other, &data, error);
    if (!status && icma_safetensors_same_signature(&group->signature, &other)) {
        status = icma_source_read(group->sources, &file, &size, error);
        if (!status)
            status = icma_fidelity_compare(&group->signature, file + group->sources->data_offset, &other,
                                           data, &group->pairs, NULL, 0, false, &fidelity, error);
        if (!status)
            *relative = icma_distance_relative(&fidelity.total);
    }
    icma_fidelity_free(&fidelity);
    icma_safetensors_free(&other);
    icma_free(file);
    return status;
}

/* One checkpoint that is there, `at` in the task, against the input of its step: of another training it would
 * be passed over unnoticed. */
static icma_status compare_one(icma_adder *a, const icma_input_task *task, icma_input_checkpoint *input,
                               uint32_t old, size_t at, double recorded, icma_error *error) {
    icma_input_task one = *task;
    icma_inputs inputs = a->wanted; /* for what archives were unpacked to */
    icma_dataset dataset;
    icma_decoded decoded = {0};
    double relative = INFINITY;
    one.checkpoints = input;
    one.checkpoint_count = 1;
    inputs.tasks = &one;
    inputs.task_count = 1;
    icma_status status = icma_dataset_open(&inputs, 0, NULL, &dataset, error);
    if (!status)
        status = icma_bundle_decode(a->change.bundle, old, at, &decoded, error);
    if (!status)
        status = measure_file(&dataset.groups[0], &decoded, &relative, error);
    icma_decoded_free(&decoded);
    icma_dataset_close(&dataset);
    /* What is recorded was rounded up; sums of another CPU type may differ in their last bits. */
    if (!status && !(relative <= recorded * (1 + 1e-6)))
        return icma_fail(error, ICMA_E_EXISTS, icma_file_path(a->change.file),
                         "%s is not the checkpoint of that step of %s in the archive (its relative error "
                         "would be %.3g, not %.3g), so it is of another training; rename its task, or take "
                         "the old one out first (icma remove)",
                         input->path, task->name, relative, recorded);
    return status;
}

/* Of the inputs below `end` that are there the last one, which a training that goes on has kept. */
static icma_status compare_last(icma_adder *a, const icma_input_task *task, const icma_task_info *info,
                                uint32_t old, size_t end, icma_error *error) {
    icma_input_checkpoint *input = &task->checkpoints[end - 1];
    size_t at = find_step(info, input);
    return compare_one(a, task, input, old, at, (double)info->checkpoints[at].relative_error, error);
}

/* Inputs are in the order of steps, so what is new is at the end of them. */
static icma_status find_new(icma_adder *a, const icma_input_task *task, const icma_task_info *info,
                            size_t *first, icma_error *error) {
    const icma_checkpoint_info *last = &info->checkpoints[info->checkpoint_count - 1];
    size_t count = task->checkpoint_count;
    *first = first_used(a, task);
    for (size_t i = *first; i < count; i++) {
        const icma_input_checkpoint *c = &task->checkpoints[i];
        if (find_step(info, c) != SIZE_MAX) {
            a->result->skipped++;
            *first = i + 1;
        } else if (!last->has_step)
            return refuse(a, task, c, "the task's last checkpoint has no step, and nothing comes after it",
                          error);
        else if (compare_steps(c->has_step, c->step, last) < 0)
            return refuse(a, task, c, "its step is before the task's last one, and new ones come after it",
                          error);
    }
    return ICMA_OK;
}

/* Takes what is new of one task; *kept is false if there is nothing. */
static icma_status take_task(icma_adder *a, const icma_input_task *task, uint32_t old, bool *kept,
                             icma_error *error) {
    icma_task_info info;
    size_t first = 0;
    *kept = true;
    if (old != ICMA_NO_OWNER) {
        icma_status status = icma_bundle_task(a->change.bundle, old, &info, error);
        if (!status)
            status = find_new(a, task, &info, &first, error);
        if (!status && first > first_used(a, task))
            status = compare_last(a, task, &info, old, first, error);
        icma_bundle_forget_task(a->change.bundle, old);
        *kept = first < task->checkpoint_count;
        if (status || !*kept)
            return status;
    }
    icma_input_task *to = &a->wanted.tasks[a->wanted.task_count];
    *to = *task;
    to->checkpoints += first;
    to->checkpoint_count -= first;
    a->steps[a->wanted.task_count++].old = old;
    return ICMA_OK;
}

static icma_status nothing_new(const icma_adder *a, const icma_inputs *inputs, icma_error *error) {
    return icma_fail(error, ICMA_E_EXISTS, icma_file_path(a->change.file),
                     "nothing is new: %zu checkpoint%s of %s%s, by task and step, %s in it already; to "
                     "replace a task, take "
                     "it out first (icma remove)",
                     a->result->skipped, a->result->skipped == 1 ? "" : "s", inputs->tasks[0].name,
                     inputs->task_count > 1 ? " and others" : "", a->result->skipped == 1 ? "is" : "are");
}

icma_status icma_add_find_steps(icma_adder *a, const icma_inputs *inputs, icma_error *error) {
    const icma_bundle *b = a->change.bundle;
    size_t count = icma_bundle_task_count(b);
    known_task *sorted = icma_alloc_array(count + 1, sizeof *sorted);
    bool kept = false;
    a->wanted = a->view = *inputs;
    a->wanted.task_count = 0;
    a->wanted.tasks = icma_alloc_array(inputs->task_count + 1, sizeof *a->wanted.tasks);
    a->view.tasks = icma_alloc_array(inputs->task_count + 1, sizeof *a->view.tasks);
    a->steps = icma_alloc_zeroed(inputs->task_count + 1, sizeof *a->steps);
    icma_status status = sorted && a->wanted.tasks && a->view.tasks && a->steps ? ICMA_OK : no_memory(error);
    for (uint32_t t = 0; !status && t < count; t++)
        sorted[t] = (known_task){icma_bundle_task_name(b, t), t};
    if (!status && count)
        icma_sort(sorted, count, sizeof *sorted, compare_names, NULL);
    for (size_t t = 0; !status && t < inputs->task_count; t++)
        status =
            take_task(a, &inputs->tasks[t], find_task(sorted, count, inputs->tasks[t].name), &kept, error);
    if (!status && a->wanted.task_count == 0)
        status = nothing_new(a, inputs, error);
    icma_free(sorted);
    return status;
}

/* --- what they follow
 * --------------------------------------------------------------------------------------------- */

/* The table and texts of a part that goes on are written anew. */
static void leave_out(icma_adder *a, uint32_t task, uint32_t group) {
    static const uint16_t kinds[] = {ICMA_SECTION_TASK, ICMA_SECTION_TEXTS};
    const icma_container *container = a->change.bundle->container;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        const icma_section *section = icma_container_find(container, kinds[k], group, task);
        if (section)
            a->change.left_out[section - icma_container_section(container, 0)] = true;
    }
}

/* The dataset's first groups are those that the task is in, in the order of its parts. */
static icma_status open_dataset(icma_adder *a, icma_add_steps *s, const icma_task_state *task,
                                icma_error *error) {
    const icma_safetensors **known = icma_alloc_array(task->part_count, sizeof *known);
    if (!known)
        return no_memory(error);
    for (size_t p = 0; p < task->part_count; p++)
        known[p] = &a->change.bundle->groups[task->parts[p].group].signature;
    icma_status status =
        icma_dataset_open_beside(&a->view, 0, known, task->part_count, &a->pack.progress, &s->dataset, error);
    icma_free((void *)known);
    for (size_t g = 0; !status && g < s->dataset.count; g++) {
        const icma_group *group = &s->dataset.groups[g];
        if (group->count && g >= task->part_count)
            return icma_fail(
                error, ICMA_E_UNSUPPORTED, group->sources->input->path,
                "its tensors (names, dtypes, shapes) are not those of %s in the archive, which it "
                "would follow; rename its task, and add it as another",
                a->wanted.tasks[group->sources->task].name);
        if (group->count) {
            leave_out(a, s->old, task->parts[g].group);
            s->groups++;
        }
    }
    return status;
}

icma_status icma_add_open_steps(icma_adder *a, size_t *groups, uint64_t *files, icma_error *error) {
    icma_bundle *b = a->change.bundle;
    icma_status status = ICMA_OK;
    a->view.task_count = a->wanted.task_count;
    memcpy(a->view.tasks, a->wanted.tasks, a->wanted.task_count * sizeof *a->view.tasks);
    for (size_t t = 0; t < a->view.task_count; t++)
        a->view.tasks[t].checkpoint_count = 0;
    for (size_t t = 0; !status && t < a->wanted.task_count; t++) {
        icma_add_steps *s = &a->steps[t];
        if (s->old == ICMA_NO_OWNER)
            continue;
        a->view.tasks[t].checkpoint_count = a->wanted.tasks[t].checkpoint_count;
        status = icma_bundle_load_task(b, s->old, error);
        if (!status)
            status = open_dataset(a, s, &b->tasks[s->old], error);
        a->view.tasks[t].checkpoint_count = 0;
        icma_bundle_forget_task(b, s->old);
        *groups += s->groups;
        *files += s->dataset.files;
    }
    for (size_t t = 0; t < a->view.task_count; t++) /* then it has those of new tasks */
        if (a->steps[t].old == ICMA_NO_OWNER)
            a->view.tasks[t].checkpoint_count = a->wanted.tasks[t].checkpoint_count;
    return status;
}

/* --- encoding them
 * --------------------------------------------------------------------------------------------- */

/* The part's table, which is the new part's then, and a copy of its texts. */
static icma_status take_past(icma_adder *a, icma_pack_group *g, uint32_t task, icma_part *part,
                             icma_error *error) {
    icma_status status = icma_part_load_texts(a->change.bundle, task, part, error);
    for (size_t i = 0; !status && i < part->texts.count; i++)
        status =
            icma_text_pool_add(&g->past_texts, part->texts.list[i].data, part->texts.list[i].size, error);
    if (!status) {
        g->past = part->table;
        part->table = (icma_checkpoints){0};
    }
    return status;
}

static icma_status add_part(icma_adder *a, size_t t, size_t index, icma_error *error) {
    icma_add_steps *s = &a->steps[t];
    icma_group *group = &s->dataset.groups[index];
    icma_part *part = &a->change.bundle->tasks[s->old].parts[index];
    icma_add_group *told = &a->result->groups[a->result->group_count];
    icma_pack_group g = {0};
    icma_add_plan plan = {0};
    icma_status status = icma_add_decide_steps(a, group, part->group, &plan, error);
    if (!status)
        status = take_past(a, &g, s->old, part, error);
    if (!status)
        status = icma_add_join(a, group, &plan, &g, error);
    if (!status) {
        *told = (icma_add_group){.group = part->group,
                                 .joined = true,
                                 .tasks = 1,
                                 .checkpoints = group->count,
                                 .generator =
                                     icma_generator_name(&a->change.bundle->groups[part->group].generator),
                                 .explained = plan.explained,
                                 .old_bytes = plan.old_bytes,
                                 .new_bytes = plan.new_bytes,
                                 .task = a->result->pack.tasks[t].name};
        a->result->group_count++;
    }
    icma_pack_group_free(&g);
    icma_add_plan_free(&plan);
    return status;
}

icma_status icma_add_write_steps(icma_adder *a, size_t t, icma_error *error) {
    icma_add_steps *s = &a->steps[t];
    icma_bundle *b = a->change.bundle;
    double now = 0;
    icma_lap(&now);
    icma_status status = icma_bundle_load_task(b, s->old, error);
    if (!status)
        a->result->checkpoints_before[t] = b->tasks[s->old].count;
    for (size_t g = 0; !status && g < s->dataset.count; g++)
        if (s->dataset.groups[g].count)
            status = add_part(a, t, g, error);
    icma_bundle_forget_task(b, s->old);
    a->estimated = false; /* what a task that goes on would take, packed with the others, no model says */
    a->result->pack.seconds.encode += icma_lap(&now);
    return status;
}

static uint64_t bytes_of(const icma_container *c, uint32_t group, uint32_t task) {
    static const uint16_t kinds[] = {ICMA_SECTION_TASK, ICMA_SECTION_TEXTS, ICMA_SECTION_VERBATIM,
                                     ICMA_SECTION_RESIDUAL, ICMA_SECTION_LINK};
    uint64_t bytes = 0;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        const icma_section *first = NULL;
        size_t count = icma_container_range(c, kinds[k], group, task, &first);
        for (size_t i = 0; i < count; i++)
            bytes += first[i].stored_size;
    }
    return bytes;
}

/* Tasks that go on were written first, part by part. */
void icma_add_measure_steps(icma_adder *a, const icma_bundle *written) {
    icma_add_group *told = a->result->groups;
    for (size_t t = 0; t < a->wanted.task_count; t++)
        for (size_t g = 0; g < a->steps[t].groups; g++, told++) {
            uint64_t before = bytes_of(a->change.bundle->container, told->group, a->steps[t].old),
                     now = bytes_of(written->container, told->group, a->owners[t]);
            told->bytes = now > before ? now - before : 0;
        }
}
