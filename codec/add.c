/* SPDX-License-Identifier: Apache-2.0 */
/* Adding tasks to an archive: what is there is copied, newcomers are packed beside it. */
#include "add.h"

#include "memory.h"
#include "ops.h"
#include "progress.h"
#include "sized.h"

#include <math.h>
#include <string.h>

void icma_add_options_init(icma_add_options *options, size_t size) {
    const icma_add_options standard = {.size = size, .same_tier = true};
    icma_sized_fill(options, size, &standard, sizeof standard);
}

/* As in icma_pack: of a program that may have been compiled with less. */
static icma_status take_options(const icma_add_options *options, icma_add_options *out, icma_error *error) {
    icma_add_options_init(out, sizeof *out);
    return icma_sized_take(out, sizeof *out, options, ICMA_ADD_OPTIONS_LEAST, "options of",
                           "icma_add_defaults", error);
}

void icma_add_result_free(icma_add_result *result) {
    icma_pack_result_free(&result->pack);
    icma_free(result->groups);
    icma_free(result->checkpoints_before);
    memset(result, 0, sizeof *result);
}

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory to add to the archive");
}

/* --- what is there
 * ----------------------------------------------------------------------------------------------- */

static bool same_way(icma_tier tier, icma_bound bound, const icma_checkpoint_info *c) {
    return c->tier == tier && c->bound.kind == bound.kind &&
           (bound.kind == ICMA_BOUND_NONE || c->bound.value == bound.value);
}

/* How the archive keeps its checkpoints, and how many bytes of it are the tasks' own. */
static icma_status look_at_tasks(icma_adder *a, icma_error *error) {
    icma_bundle *b = a->change.bundle;
    bool any = false, mixed = false;
    icma_status status = ICMA_OK;
    for (size_t t = 0; !status && t < icma_bundle_task_count(b); t++) {
        icma_task_info info;
        status = icma_bundle_task(b, t, &info, error);
        for (size_t i = 0; !status && i < info.checkpoint_count; i++) {
            const icma_checkpoint_info *c = &info.checkpoints[i];
            if (c->tier == ICMA_TIER_VERBATIM)
                continue; /* its tensors cannot be modelled; it says nothing about others */
            mixed |= any && a->options->same_tier && !same_way(a->pack.tier, a->pack.bound, c);
            if (!any && a->options->same_tier) {
                a->pack.tier = c->tier;
                if (c->tier == ICMA_TIER_BOUNDED)
                    a->pack.bound = c->bound;
                else
                    a->pack.bound.kind = ICMA_BOUND_NONE;
            }
            any = true;
        }
        a->result->old_checkpoints += info.checkpoint_count;
        a->result->old_bytes += info.bytes;
        icma_bundle_forget_task(b, t);
    }
    if (!status && mixed)
        status = icma_fail(error, ICMA_E_USAGE, icma_file_path(a->change.file),
                           "its checkpoints are kept in several ways; say with --tier (and --max-error) how "
                           "new ones are to be");
    return status;
}

/* New tasks go where they belong in natural order among tasks that are in it; old ones keep theirs. */
static icma_status order_tasks(icma_adder *a, icma_error *error) {
    icma_bundle *b = a->change.bundle;
    size_t old = icma_bundle_task_count(b), added = a->wanted.task_count, i = 0, j = 0;
    a->names = icma_alloc_array(old + added + 1, sizeof *a->names);
    a->owners = icma_alloc_array(added + 1, sizeof *a->owners);
    if (!a->names || !a->owners)
        return no_memory(error);
    for (;;) {
        while (j < added && a->steps[j].old != ICMA_NO_OWNER)
            j++;
        if (i == old && j == added)
            break;
        bool take_new = i == old || (j < added && icma_compare_natural(a->wanted.tasks[j].name,
                                                                       icma_bundle_task_name(b, i)) < 0);
        if (take_new)
            a->owners[j] = (uint32_t)a->task_count;
        else
            a->change.tasks[i] = (uint32_t)a->task_count;
        a->names[a->task_count++] = take_new ? a->wanted.tasks[j++].name : icma_bundle_task_name(b, i++);
    }
    for (j = 0; j < added; j++)
        if (a->steps[j].old != ICMA_NO_OWNER)
            a->owners[j] = a->change.tasks[a->steps[j].old];
    return ICMA_OK;
}

/* The archive's groups come first in the dataset, with the same numbers. */
static icma_status open_dataset(icma_adder *a, icma_error *error) {
    icma_bundle *b = a->change.bundle;
    icma_status status = ICMA_OK;
    a->old_groups = a->groups = icma_bundle_group_count(b);
    const icma_safetensors **known = icma_alloc_array(a->old_groups + 1, sizeof *known);
    if (!known)
        return no_memory(error);
    for (uint32_t g = 0; !status && g < a->old_groups; g++) {
        status = icma_bundle_load_group(b, g, error);
        known[g] = &b->groups[g].signature;
    }
    if (!status)
        status = icma_dataset_open_beside(&a->view, a->pack.train_last, known, a->old_groups,
                                          &a->pack.progress, &a->packer.dataset, error);
    icma_free((void *)known);
    return status;
}

/* --- newcomers
 * --------------------------------------------------------------------------------------------------- */

/* Texts that the old group's tasks share serve newcomers, too. */
static icma_status take_texts(icma_pack_group *g, const icma_group_state *old, icma_error *error) {
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && i < old->texts.count; i++)
        status = icma_text_pool_add(&g->texts, old->texts.list[i].data, old->texts.list[i].size, error);
    return status;
}

icma_status icma_add_join(icma_adder *a, icma_group *group, icma_add_plan *plan, icma_pack_group *g,
                          icma_error *error) {
    icma_bundle *b = a->change.bundle;
    const icma_group_state *old = &b->groups[plan->group];
    g->index = plan->group;
    g->group = group;
    g->generator = old->generator;
    g->decoder = old->decoder;
    g->joined = true;
    g->basis = (icma_basis){.coordinates = plan->fit.coordinates, .total = old->generator.total};
    plan->fit.coordinates = NULL; /* the group's now */
    g->cuts_hashes = icma_pack_cuts_hashes(&a->packer, g);
    icma_status status = icma_pack_group_prepare(g, error);
    if (!status)
        status = take_texts(g, old, error);
    return status ? status : icma_pack_group_tasks(&a->packer, g, error);
}

static icma_status join(icma_adder *a, icma_group *group, icma_add_plan *plan, icma_error *error) {
    icma_pack_group g = {0};
    icma_status status = icma_add_join(a, group, plan, &g, error);
    icma_pack_group_free(&g);
    return status;
}

static size_t count_tasks(const icma_group *group) {
    size_t tasks = 0;
    for (size_t i = 0; i < group->count; i++)
        tasks += i == 0 || group->sources[i].task != group->sources[i - 1].task;
    return tasks;
}

/* Packed with the others they would take what the better of both takes, without a group more; and less by
 * what they would share with old tasks beyond the old basis, which nobody knows without the originals. */
static void note_anew(icma_adder *a, const icma_add_plan *plan) {
    double bytes = fmin(plan->old_bytes, plan->new_bytes - plan->beside);
    a->estimated = a->estimated && !isnan(plan->old_bytes) && !isnan(plan->new_bytes);
    a->anew += bytes;
}

static icma_status add_group(icma_adder *a, size_t index, icma_error *error) {
    icma_group *group = &a->packer.dataset.groups[index];
    icma_add_group *told = &a->result->groups[a->result->group_count];
    icma_add_plan plan;
    double now = 0;
    uint64_t before = icma_container_written(a->change.writer);
    icma_lap(&now);
    icma_status status = icma_add_decide(a, index, &plan, error);
    a->result->pack.seconds.gram += icma_lap(&now);
    if (!status) {
        *told = (icma_add_group){.group = plan.joined ? plan.group : (uint32_t)a->groups,
                                 .joined = plan.joined,
                                 .tasks = count_tasks(group),
                                 .checkpoints = group->count,
                                 .explained = plan.explained,
                                 .old_bytes = plan.old_bytes,
                                 .new_bytes = plan.new_bytes};
        a->result->group_count++;
        note_anew(a, &plan);
        a->result->pack.generator = "none";
        status = plan.joined ? join(a, group, &plan, error)
                             : icma_pack_group_whole(&a->packer, group, (uint32_t)a->groups++, error);
        told->generator = plan.joined ? icma_generator_name(&a->change.bundle->groups[plan.group].generator)
                                      : a->result->pack.generator;
        told->bytes = icma_container_written(a->change.writer) - before;
    }
    if (plan.joined)
        a->result->pack.seconds.encode += icma_lap(&now);
    icma_add_plan_free(&plan);
    return status;
}

static icma_status add_groups(icma_adder *a, icma_error *error) {
    icma_status status = ICMA_OK;
    size_t count = a->packer.dataset.count;
    a->result->groups = icma_alloc_zeroed(count + a->step_groups + 1, sizeof *a->result->groups);
    a->result->checkpoints_before =
        icma_alloc_zeroed(a->wanted.task_count, sizeof *a->result->checkpoints_before);
    if (!a->result->groups || !a->result->checkpoints_before)
        return no_memory(error);
    for (size_t t = 0; !status && t < a->wanted.task_count; t++)
        if (a->steps[t].old != ICMA_NO_OWNER)
            status = icma_add_write_steps(a, t, error);
    for (size_t g = 0; !status && g < count; g++)
        if (a->packer.dataset.groups[g].count)
            status = add_group(a, g, error);
    a->result->pack.groups = a->result->group_count;
    return status;
}

/* --- the whole
 * --------------------------------------------------------------------------------------------------- */

/* Its last checkpoints, `count` of them. */
static icma_status check_task(icma_adder *a, icma_bundle *bundle, size_t task, size_t count, size_t *done,
                              icma_error *error) {
    icma_task_info info;
    icma_status status = icma_bundle_task(bundle, task, &info, error);
    /* backwards: lossless ones are predicted from those that follow */
    for (size_t c = info.checkpoint_count; !status && c-- > info.checkpoint_count - count;) {
        icma_decoded decoded;
        icma_tell(&a->pack.progress, "check", (double)(*done)++, (double)a->packer.dataset.files, info.name);
        status = icma_check_cancelled(&a->pack.progress, error);
        if (!status)
            status = icma_bundle_decode(bundle, task, c, &decoded, error);
        if (!status)
            icma_decoded_free(&decoded);
    }
    icma_bundle_forget_task(bundle, task);
    return status;
}

/* Decodes the newcomers from what was written. Of the others the tables are read; their bytes are those that
 * were compared with their checksums when they were copied. */
static icma_status check_archive(icma_adder *a, icma_error *error) {
    icma_limits none = icma_limits_defaults();
    icma_bundle *bundle = NULL;
    size_t done = 0;
    none.max_output = none.max_work = UINT64_MAX;
    icma_status status = icma_bundle_open(icma_container_temporary(a->change.writer), a->packer.decode_ops,
                                          &none, &bundle, error);
    for (size_t t = 0; !status && t < a->wanted.task_count; t++)
        status = check_task(a, bundle, a->owners[t], a->result->pack.tasks[t].checkpoints, &done, error);
    for (size_t t = 0; !status && t < icma_bundle_task_count(bundle); t++) {
        icma_task_info info;
        status = icma_bundle_task(bundle, t, &info, error);
        icma_bundle_forget_task(bundle, t);
    }
    if (!status)
        a->result->pack.bytes = icma_bundle_bytes(bundle);
    if (!status)
        icma_add_measure_steps(a, bundle);
    icma_bundle_close(bundle);
    return status;
}

static icma_status prepare(icma_adder *a, const icma_inputs *inputs, icma_error *error) {
    uint64_t files = 0;
    icma_status status = icma_add_find_steps(a, inputs, error);
    if (!status)
        status = look_at_tasks(a, error);
    if (!status)
        status = icma_pack_check_options(&a->pack, error);
    if (!status)
        status = order_tasks(a, error);
    if (!status)
        status = icma_container_check_names(a->names, a->task_count, icma_file_path(a->change.file), error);
    if (!status)
        status = icma_pack_name_tasks(&a->packer, error);
    if (!status)
        status = icma_pack_load_conditions(&a->packer, error);
    if (!status)
        status = icma_add_open_steps(a, &a->step_groups, &files, error);
    if (!status)
        status = open_dataset(a, error);
    a->packer.dataset.files += files; /* of all that is told of */
    return status;
}

static icma_status check_unchanged(const icma_adder *a, icma_error *error) {
    icma_status status = icma_dataset_check_unchanged(&a->packer.dataset, error);
    for (size_t t = 0; !status && t < a->wanted.task_count; t++)
        status = icma_dataset_check_unchanged(&a->steps[t].dataset, error);
    return status;
}

static icma_status add_all(icma_adder *a, const icma_inputs *inputs, icma_error *error) {
    icma_pack_result *r = &a->result->pack;
    double now = 0;
    icma_lap(&now);
    a->result->bytes_before = icma_bundle_bytes(a->change.bundle).total;
    a->packer.writer = a->change.writer;
    icma_status status = prepare(a, inputs, error);
    a->packer.owners = a->owners;
    r->seconds.read = icma_lap(&now);
    if (!status)
        status = icma_change_copy(&a->change, error);
    r->seconds.write = icma_lap(&now);
    if (!status)
        status = add_groups(a, error);
    a->result->packed_anew = a->estimated ? (double)a->result->bytes_before + a->anew : NAN;
    r->within_task_explained = a->packer.within > 0 ? 1 - a->packer.standard_error / a->packer.within : NAN;
    r->tier = a->pack.tier;
    r->bound = a->pack.tier == ICMA_TIER_BOUNDED ? a->pack.bound : (icma_bound){0};
    icma_lap(&now);
    if (!status)
        status = icma_container_finish(a->change.writer, a->names, a->task_count, a->groups, error);
    if (!status)
        status = check_archive(a, error);
    if (!status)
        status = check_unchanged(a, error);
    r->seconds.check = icma_lap(&now);
    if (!status)
        status = icma_change_commit(&a->change, error);
    r->seconds.write += icma_lap(&now);
    return status;
}

static icma_status add_with(const char *path, const icma_inputs *inputs, const icma_add_options *options,
                            const icma_change_options *change, const icma_pack_options *pack,
                            const icma_ops *ops, icma_add_result *result, icma_error *error) {
    const icma_ops *decode = pack->scalar ? icma_ops_reference() : ops;
    icma_adder a = {.options = options, .pack = *pack, .result = result, .estimated = true};
    a.pack.progress = change->progress;
    a.pack.generator = ICMA_CHOOSE_AUTO;
    a.pack.keep_last_only = false;
    a.pack.target_bits = 0;
    a.packer = (icma_packer){
        .inputs = &a.wanted, .options = &a.pack, .ops = ops, .decode_ops = decode, .result = &result->pack};
    result->pack.device = ops->name;
    icma_status status = icma_change_open(&a.change, path, change, decode, options->limits, error);
    if (!status)
        status = add_all(&a, inputs, error);
    icma_packer_free(&a.packer);
    icma_add_steps_free(&a);
    icma_change_close(&a.change);
    icma_free((void *)a.names);
    icma_free(a.owners);
    if (status)
        icma_add_result_free(result);
    return status;
}

icma_status icma_bundle_add(const char *path, const icma_inputs *inputs, const icma_add_options *given,
                            const icma_ops *ops, icma_add_result *result, icma_error *error) {
    icma_add_options options;
    icma_change_options change;
    icma_pack_options pack = icma_pack_defaults();
    icma_error detail = {0};
    memset(result, 0, sizeof *result);
    icma_status status = take_options(given, &options, error);
    if (!status)
        status = icma_change_take_options(options.change, &change, error);
    if (!status && options.pack)
        status = icma_pack_take_options(options.pack, &pack, error);
    if (status)
        return status;
    if (!ops)
        ops = icma_ops_cpu();
    if (pack.threads)
        icma_set_threads(pack.threads);
    status = add_with(path, inputs, &options, &change, &pack, ops, result, &detail);
    if (status == ICMA_E_MEMORY && !icma_ops_on_host(ops)) {
        icma_say(&change.progress, "the GPU's memory does not hold these adapters; adding them on the CPU");
        memset(&detail, 0, sizeof detail);
        status = add_with(path, inputs, &options, &change, &pack, icma_ops_cpu(), result, &detail);
    }
    return status ? icma_fail(error, status, detail.file, "%s", detail.message) : ICMA_OK;
}
