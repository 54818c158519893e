/* SPDX-License-Identifier: Apache-2.0 */
/* Which file is compared with which. */
#include "measure.h"

#include "compress.h"
#include "facts.h"
#include "memory.h"
#include "message.h"
#include "progress.h"
#include "signals.h"
#include "source.h"

#include <string.h>
#include <sys/stat.h>

/* Checkpoints of one task without a counterpart: told in one line, not in fifty. */
typedef struct missing {
    size_t count;
    char first[64];
} missing;

static void note_missing(missing *list, bool has_step, uint64_t step) {
    if (list->count++ == 0)
        snprintf(list->first, sizeof list->first, "%s", cli_checkpoint_name(has_step, step).text);
}

static void tell_missing(cli_measure *out, const missing *list, const char *file, const char *task,
                         const char *where) {
    out->unmatched += list->count;
    if (list->count == 1)
        cli_warning(file, "task \"%s\": %s is not in %s", task, list->first, where);
    else if (list->count > 1)
        cli_warning(file, "task \"%s\": %zu checkpoints (%s and others) are not in %s", task, list->count,
                    list->first, where);
}

static icma_status find_inputs(const char *path, cli_measure *out, icma_inputs *inputs, icma_error *error) {
    cli_list list = {.items = (const char *[]){path}, .count = 1};
    bool any;
    icma_status status = cli_inputs_find(&list, out->finding, inputs, &any, error);
    out->skipped += inputs->skip_count;
    return status;
}

/* --- a bundle against files ------------------------------------------------------------------------------
 */

typedef struct bundle_walk {
    icma_bundle *bundle;
    const char *path, *folder;
    cli_measure *out;
    size_t all, seen; /* checkpoints */
} bundle_walk;

/* Measured errors may not exceed what packing stored, rounded up. A little more is let pass: packing may have
 * summed in another order. */
static bool is_worse(const icma_checkpoint_info *stored, const cli_measured_checkpoint *measured) {
    if (stored->tier == ICMA_TIER_LOSSLESS && !measured->total.identical)
        return true;
    return icma_distance_relative(&measured->total) > (double)stored->relative_error * 1.01 + 1e-9;
}

static icma_status compress(cli_measure *out, const cli_adapter *original, icma_error *error) {
    icma_buffer compressed = {0};
    icma_status status = icma_zstd_compress(original->image, original->size, 19, &compressed, error);
    out->zstd_bytes += compressed.size;
    icma_buffer_free(&compressed);
    return status;
}

static icma_status compare_decoded(bundle_walk *walk, const icma_task_info *info, size_t checkpoint,
                                   const icma_decoded *decoded, const char *original_path,
                                   icma_error *error) {
    cli_adapter original, other;
    const icma_checkpoint_info *stored = &info->checkpoints[checkpoint];
    icma_status status = cli_adapter_load(original_path, &original, error);
    if (status)
        return status;
    status = cli_adapter_view(walk->path, decoded->data, decoded->size, &other, error);
    if (!status) {
        status =
            cli_measure_add(walk->out, info->name, stored->has_step, stored->step, &original, &other, error);
        cli_adapter_free(&other);
    }
    if (!status && walk->out->zstd)
        status = compress(walk->out, &original, error);
    if (!status && walk->out->judge.look) {
        cli_pair pair = {info->name, stored->has_step, checkpoint + 1 == info->checkpoint_count, stored->step, &original, decoded};
        status = walk->out->judge.look(walk->out->judge.context, &pair, error);
    }
    cli_adapter_free(&original);
    if (status) {
        icma_error_set_file(error, original_path);
        return status;
    }
    const cli_measured_task *task = &walk->out->tasks[walk->out->task_count - 1];
    if (is_worse(stored, &task->checkpoints[task->checkpoint_count - 1])) {
        cli_warning(original_path, "differs by %.4g from what the archive restores, which was packed at %.4g",
                    icma_distance_relative(&task->checkpoints[task->checkpoint_count - 1].total),
                    (double)stored->relative_error);
        walk->out->worse++;
    }
    return ICMA_OK;
}

static icma_status compare_checkpoint(bundle_walk *walk, size_t task, const icma_task_info *info,
                                      size_t checkpoint, const char *original_path, icma_error *error) {
    icma_decoded decoded;
    icma_error detail = {0};
    icma_status status = cli_bundle_decode(walk->bundle, task, checkpoint, &decoded, &detail);
    if (status == ICMA_E_CORRUPT) {
        const icma_checkpoint_info *stored = &info->checkpoints[checkpoint];
        cli_warning(walk->path, "%s/%s is damaged: %s", info->name,
                    cli_checkpoint_name(stored->has_step, stored->step).text, detail.message);
        walk->out->damaged++;
        return ICMA_OK;
    }
    if (status) {
        *error = detail;
        return status;
    }
    status = compare_decoded(walk, info, checkpoint, &decoded, original_path, error);
    icma_decoded_free(&decoded);
    return status;
}

/* Originals of a task that the archive does not have. */
static void tell_unpacked(bundle_walk *walk, const icma_input_task *originals, const icma_task_info *info) {
    missing list = {0};
    for (size_t i = 0; i < originals->checkpoint_count; i++) {
        const icma_input_checkpoint *original = &originals->checkpoints[i];
        bool found = false;
        for (size_t j = 0; info && !found && j < info->checkpoint_count; j++) {
            const icma_checkpoint_info *stored = &info->checkpoints[j];
            found = cli_find_checkpoint(originals, stored->has_step, stored->step,
                                        j + 1 == info->checkpoint_count) == original;
        }
        if (!found)
            note_missing(&list, original->has_step, original->step);
    }
    tell_missing(walk->out, &list, originals->folder, originals->name, "the archive");
}

static icma_status compare_task(bundle_walk *walk, size_t task, const icma_inputs *inputs,
                                icma_error *error) {
    icma_task_info info;
    missing list = {0};
    icma_status status = icma_bundle_task(walk->bundle, task, &info, error);
    if (status == ICMA_E_CORRUPT && error) {
        cli_warning(walk->path, "task \"%s\" is damaged: %s", icma_bundle_task_name(walk->bundle, task),
                    error->message);
        *error = (icma_error){0};
        walk->out->damaged++;
        return ICMA_OK;
    }
    if (status)
        return status;
    const icma_input_task *originals = cli_find_task(inputs, info.name);
    /* Backwards: lossless checkpoints are predicted from those that follow. */
    for (size_t i = info.checkpoint_count; !status && i-- > 0;) {
        const icma_checkpoint_info *stored = &info.checkpoints[i];
        const icma_input_checkpoint *original =
            originals ? cli_find_checkpoint(originals, stored->has_step, stored->step,
                                            i + 1 == info.checkpoint_count)
                      : NULL;
        cli_progress_show("compare", (double)walk->seen++, (double)walk->all, "checkpoints", info.name);
        if (original)
            status = compare_checkpoint(walk, task, &info, i, original->path, error);
        else
            note_missing(&list, stored->has_step, stored->step);
        if (!status)
            status = cli_check_signal(error);
    }
    if (status)
        return status;
    tell_missing(walk->out, &list, walk->path, info.name, walk->folder);
    if (originals)
        tell_unpacked(walk, originals, &info);
    return ICMA_OK;
}

icma_status cli_measure_bundle(icma_bundle *bundle, const char *path, const char *folder, cli_measure *out,
                               icma_error *error) {
    bundle_walk walk = {.bundle = bundle, .path = path, .folder = folder, .out = out};
    icma_inputs inputs = {0};
    out->total = cli_score_none();
    icma_status status = find_inputs(folder, out, &inputs, error);
    size_t tasks = icma_bundle_task_count(bundle);
    walk.all = cli_bundle_checkpoints(bundle);
    for (size_t i = 0; !status && i < tasks; i++) {
        status = compare_task(&walk, i, &inputs, error);
        icma_bundle_forget_task(bundle, i);
    }
    for (size_t i = 0; !status && i < inputs.task_count; i++)
        if (icma_bundle_find_task(bundle, inputs.tasks[i].name) == SIZE_MAX)
            tell_unpacked(&walk, &inputs.tasks[i], NULL);
    cli_measure_finish(out);
    icma_inputs_free(&inputs);
    return status;
}

/* --- files against files ---------------------------------------------------------------------------------
 */

static icma_status compare_files(cli_measure *out, const char *task, bool has_step, uint64_t step,
                                 const char *original_path, const char *other_path, icma_error *error) {
    cli_adapter original, other;
    icma_status status = cli_check_signal(error);
    if (!status)
        status = cli_adapter_load(original_path, &original, error);
    if (status)
        return status;
    status = cli_adapter_load(other_path, &other, error);
    if (!status) {
        status = cli_measure_add(out, task, has_step, step, &original, &other, error);
        cli_adapter_free(&other);
    }
    cli_adapter_free(&original);
    if (status)
        icma_error_set_file(error, other_path);
    return status;
}

static icma_status compare_input_task(cli_measure *out, const icma_input_task *a, const icma_input_task *b,
                                      const char *path_b, icma_error *error) {
    missing list = {0};
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && i < a->checkpoint_count; i++) {
        const icma_input_checkpoint *original = &a->checkpoints[i], *other = NULL;
        if (b)
            other = cli_find_checkpoint(b, original->has_step, original->step, i + 1 == a->checkpoint_count);
        if (other)
            status = compare_files(out, a->name, original->has_step, original->step, original->path,
                                   other->path, error);
        else
            note_missing(&list, original->has_step, original->step);
    }
    if (!status)
        tell_missing(out, &list, a->folder, a->name, path_b);
    return status;
}

/* What is in `b` only. */
static void tell_extra(cli_measure *out, const icma_inputs *a, const icma_inputs *b, const char *path_a) {
    for (size_t i = 0; i < b->task_count; i++) {
        const icma_input_task *task = &b->tasks[i], *counterpart = cli_find_task(a, task->name);
        missing list = {0};
        for (size_t j = 0; j < task->checkpoint_count; j++) {
            const icma_input_checkpoint *checkpoint = &task->checkpoints[j];
            if (!counterpart || !cli_find_checkpoint(counterpart, checkpoint->has_step, checkpoint->step,
                                                     j + 1 == task->checkpoint_count))
                note_missing(&list, checkpoint->has_step, checkpoint->step);
        }
        tell_missing(out, &list, task->folder, task->name, path_a);
    }
}

static bool is_single(const icma_inputs *inputs) {
    return inputs->task_count == 1 && inputs->tasks[0].checkpoint_count == 1;
}

static icma_status compare_trees(cli_measure *out, const icma_inputs *a, const icma_inputs *b,
                                 const char *path_a, const char *path_b, icma_error *error) {
    /* Two single adapters are compared whatever they are called. */
    if (is_single(a) && is_single(b)) {
        const icma_input_checkpoint *original = &a->tasks[0].checkpoints[0];
        return compare_files(out, a->tasks[0].name, original->has_step, original->step, original->path,
                             b->tasks[0].checkpoints[0].path, error);
    }
    icma_status status = ICMA_OK;
    size_t all = 0, seen = 0;
    for (size_t i = 0; i < a->task_count; i++)
        all += a->tasks[i].checkpoint_count;
    for (size_t i = 0; !status && i < a->task_count; i++) {
        cli_progress_show("compare", (double)seen, (double)all, "checkpoints", a->tasks[i].name);
        status = compare_input_task(out, &a->tasks[i], cli_find_task(b, a->tasks[i].name), path_b, error);
        seen += a->tasks[i].checkpoint_count;
    }
    if (!status)
        tell_extra(out, a, b, path_a);
    if (!status && out->total.adapters == 0)
        status = icma_fail(
            error, ICMA_E_NOT_FOUND, path_b,
            "nothing in it has a counterpart in %s; tasks are matched by name, checkpoints by step", path_a);
    return status;
}

static bool is_file(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode) && !icma_input_is_archive(path);
}

icma_status cli_measure_paths(const char *original, const char *other, cli_measure *out, icma_error *error) {
    icma_inputs a = {0}, b = {0};
    out->total = cli_score_none();
    icma_status status;
    if (is_file(original) && is_file(other)) {
        /* Any two safetensors files, LoRA or not. */
        status = compare_files(out, original, false, 0, original, other, error);
    } else {
        status = find_inputs(original, out, &a, error);
        if (!status)
            status = find_inputs(other, out, &b, error);
        if (!status)
            status = compare_trees(out, &a, &b, original, other, error);
    }
    cli_measure_finish(out);
    icma_inputs_free(&a);
    icma_inputs_free(&b);
    return status;
}
