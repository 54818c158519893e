/* SPDX-License-Identifier: Apache-2.0 */
/* icma pack --dry-run: what was found, from the files' headers alone. */
#include "pack.h"

#include "adapter.h"
#include "described.h"
#include "facts.h"
#include "file.h"
#include "memory.h"
#include "message.h"
#include "npy.h"
#include "signals.h"

#include <string.h>

typedef struct found_group {
    icma_safetensors signature; /* of its first checkpoint; owned */
    size_t checkpoints, tasks;
    size_t last_task; /* the task counted last */
    size_t pairs, verbatim;
    uint64_t bytes, parameters, modelled;
} found_group;

typedef struct found_task {
    uint64_t bytes;
    size_t condition_size; /* 0: none */
    size_t first_group;
    bool several_groups;
} found_task;

typedef struct found {
    found_group *groups;
    size_t group_count;
    found_task *tasks;
    size_t checkpoints;
    uint64_t bytes;
    icma_described texts;
} found;

static void free_found(found *f) {
    for (size_t i = 0; i < f->group_count; i++)
        icma_safetensors_free(&f->groups[i].signature);
    icma_described_free(&f->texts);
    icma_free(f->groups);
    icma_free(f->tasks);
}

static const char *text_of(const found *f, size_t task) {
    return f->texts.text ? f->texts.text[task] : NULL;
}

static icma_status read_header(const char *path, icma_safetensors *header, uint64_t *size,
                               icma_error *error) {
    icma_file *file;
    icma_status status = icma_file_open(path, &file, error);
    if (!status) {
        *size = icma_file_size(file);
        status = icma_safetensors_read(file, header, error);
        icma_file_close(file);
    }
    if (status)
        icma_error_set_file(error, path);
    return status;
}

/* The group of a header; takes the header over. */
static icma_status place(found *f, icma_safetensors *header, size_t *group, icma_error *error) {
    for (*group = 0; *group < f->group_count; (*group)++)
        if (icma_safetensors_same_signature(&f->groups[*group].signature, header)) {
            icma_safetensors_free(header);
            return ICMA_OK;
        }
    icma_pairs pairs;
    icma_status status = icma_pairs_find(header, &pairs, error);
    found_group *groups = status ? NULL : icma_resize_array(f->groups, f->group_count + 1, sizeof *groups);
    if (!groups) {
        icma_safetensors_free(header);
        if (!status)
            icma_pairs_free(&pairs);
        return status ? status : icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the inputs");
    }
    f->groups = groups;
    found_group *added = &groups[f->group_count++];
    *added = (found_group){.signature = *header, .pairs = pairs.count, .last_task = SIZE_MAX};
    for (size_t i = 0; i < header->tensor_count; i++) {
        const icma_tensor_info *tensor = &header->tensors[i];
        added->parameters += tensor->count;
        added->modelled += icma_dtype_is_modelled(tensor->dtype) ? tensor->count : 0;
        added->verbatim += !icma_dtype_is_modelled(tensor->dtype);
    }
    icma_pairs_free(&pairs);
    return ICMA_OK;
}

static icma_status look_at_checkpoint(found *f, size_t task, const char *path, icma_error *error) {
    icma_safetensors header = {0};
    uint64_t size = 0;
    size_t group;
    icma_status status = read_header(path, &header, &size, error);
    if (!status)
        status = place(f, &header, &group, error);
    if (status)
        return status;
    found_task *t = &f->tasks[task];
    if (t->bytes == 0)
        t->first_group = group;
    t->several_groups |= t->first_group != group;
    t->bytes += size;
    f->groups[group].tasks += f->groups[group].last_task != task;
    f->groups[group].last_task = task;
    f->groups[group].checkpoints++;
    f->groups[group].bytes += size;
    f->checkpoints++;
    f->bytes += size;
    return ICMA_OK;
}

/* How many numbers a condition has; pack itself checks them. */
static icma_status look_at_condition(const char *path, size_t *count, icma_error *error) {
    size_t length = strlen(path);
    if (length > 4 && strcmp(path + length - 4, ".npy") == 0) {
        float *values = NULL;
        icma_status status = icma_npy_read_vector(path, 1 << 20, &values, count, error);
        icma_free(values);
        return status;
    }
    icma_safetensors header = {0};
    uint64_t size;
    icma_status status = read_header(path, &header, &size, error);
    if (!status && header.tensor_count > 0)
        *count = (size_t)header.tensors[0].count;
    icma_safetensors_free(&header);
    return status;
}

static icma_status look(const icma_inputs *inputs, found *f, icma_error *error) {
    f->tasks = icma_alloc_zeroed(inputs->task_count, sizeof *f->tasks);
    if (!f->tasks)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the inputs");
    for (size_t i = 0; i < inputs->task_count; i++) {
        const icma_input_task *task = &inputs->tasks[i];
        icma_status status = ICMA_OK;
        if (task->condition_path && !text_of(f, i))
            status = look_at_condition(task->condition_path, &f->tasks[i].condition_size, error);
        for (size_t j = 0; !status && j < task->checkpoint_count; j++)
            status = look_at_checkpoint(f, i, task->checkpoints[j].path, error);
        if (!status)
            status = cli_check_signal(error);
        if (status)
            return status;
    }
    return ICMA_OK;
}

static cli_small steps_of(const icma_input_task *task) {
    size_t count = task->checkpoint_count;
    bool final = count && !task->checkpoints[count - 1].has_step;
    size_t numbered = count - final;
    return cli_steps(numbered > 0, numbered ? task->checkpoints[0].step : 0,
                     numbered ? task->checkpoints[numbered - 1].step : 0, final);
}

void cli_pack_explain_found(const icma_inputs *inputs, const char *texts) {
    for (size_t i = 0; i < inputs->task_count; i++) {
        const icma_input_task *task = &inputs->tasks[i];
        cli_detail("task", "\"%s\": %zu checkpoint%s (%s) in %s; condition: %s%s", task->name,
                   task->checkpoint_count, cli_plural(task->checkpoint_count), steps_of(task).text,
                   task->folder, texts ? "its text, where --text-from has one, else " : "",
                   task->condition_path ? task->condition_path : "none given, to be learned");
    }
}

static icma_status print_tasks(const icma_inputs *inputs, const found *f, icma_error *error) {
    cli_table table = cli_table_of((const char *[]){"task", ">checkpoints", ">steps", ">size", ">condition",
                                                    ">group", "found in", NULL});
    for (size_t i = 0; i < inputs->task_count; i++) {
        const icma_input_task *task = &inputs->tasks[i];
        const found_task *t = &f->tasks[i];
        cli_table_cell(&table, "%s", task->name);
        cli_table_cell(&table, "%zu", task->checkpoint_count);
        cli_table_cell(&table, "%s", steps_of(task).text);
        cli_table_cell(&table, "%s", cli_size(t->bytes).text);
        if (text_of(f, i))
            cli_table_cell(&table, "text: %s", text_of(f, i));
        else if (task->condition_path)
            cli_table_cell(&table, "%zu numbers", t->condition_size);
        else
            cli_table_cell(&table, "to be learned");
        cli_table_cell(&table, t->several_groups ? "several" : "%zu", t->first_group);
        cli_table_cell(&table, "%s", task->folder);
    }
    return cli_table_print(&table, 0, stdout, error);
}

static icma_status print_groups(const found *f, icma_error *error) {
    cli_table table =
        cli_table_of((const char *[]){"group", ">tasks", ">checkpoints", ">tensors", ">LoRA pairs",
                                      ">parameters", ">verbatim tensors", ">size", NULL});
    for (size_t i = 0; i < f->group_count; i++) {
        const found_group *g = &f->groups[i];
        cli_table_cell(&table, "%zu", i);
        cli_table_cell(&table, "%zu", g->tasks);
        cli_table_cell(&table, "%zu", g->checkpoints);
        cli_table_cell(&table, "%zu", g->signature.tensor_count);
        cli_table_cell(&table, "%zu", g->pairs);
        cli_table_cell(&table, "%s", cli_whole_text(g->parameters).text);
        cli_table_cell(&table, "%zu", g->verbatim);
        cli_table_cell(&table, "%s", cli_size(g->bytes).text);
    }
    putchar('\n');
    return cli_table_print(&table, 0, stdout, error);
}

static icma_status print_checkpoints(const icma_inputs *inputs, icma_error *error) {
    cli_table table = cli_table_of((const char *[]){"task", "checkpoint", ">side files", "file", NULL});
    for (size_t i = 0; i < inputs->task_count; i++)
        for (size_t j = 0; j < inputs->tasks[i].checkpoint_count; j++) {
            const icma_input_checkpoint *checkpoint = &inputs->tasks[i].checkpoints[j];
            cli_table_cell(&table, "%s", inputs->tasks[i].name);
            cli_table_cell(&table, "%s", cli_checkpoint_name(checkpoint->has_step, checkpoint->step).text);
            cli_table_cell(&table, "%zu", checkpoint->side_file_count);
            cli_table_cell(&table, "%s", checkpoint->path);
        }
    putchar('\n');
    return cli_table_print(&table, 0, stdout, error);
}

/* What the inputs have more than once, or in pieces, and the archive once and whole. */
static void tell_joined(const icma_inputs *inputs, FILE *out) {
    size_t finals = 0, sharded = 0;
    const icma_input_task *one = NULL;
    for (size_t i = 0; i < inputs->task_count; i++)
        for (size_t j = 0; j < inputs->tasks[i].checkpoint_count; j++) {
            const icma_input_checkpoint *checkpoint = &inputs->tasks[i].checkpoints[j];
            if (checkpoint->final_path && finals++ == 0)
                one = &inputs->tasks[i];
            sharded += checkpoint->shards > 0;
        }
    if (finals == 1) {
        fputs("the final adapter of task \"", out);
        cli_print_safe(out, one->name);
        fprintf(out, "\" is its %s, byte for byte: stored once\n",
                cli_checkpoint_name(true, one->checkpoints[one->checkpoint_count - 1].step).text);
    } else if (finals > 1) {
        fprintf(out, "the final adapters of %zu tasks are their last checkpoints, byte for byte: stored once\n", finals);
    }
    if (sharded > 0)
        fprintf(out, "%zu adapter%s of several shards: joined to one adapter_model.safetensors\n", sharded, cli_plural(sharded));
}

void cli_pack_tell_joined(const icma_inputs *inputs, const cli_common *common) {
    if (!common->json && !common->quiet)
        tell_joined(inputs, stderr);
}

static icma_status print_found(const icma_inputs *inputs, const found *f, bool verbose, icma_error *error) {
    icma_status status = print_tasks(inputs, f, error);
    if (!status)
        status = print_groups(f, error);
    if (!status && verbose)
        status = print_checkpoints(inputs, error);
    if (!status)
        putchar('\n');
    if (!status)
        tell_joined(inputs, stdout);
    if (!status)
        printf("%zu checkpoint%s of %zu task%s, %s in all. Nothing was written.\n", f->checkpoints,
               cli_plural(f->checkpoints), inputs->task_count, cli_plural(inputs->task_count),
               cli_size(f->bytes).text);
    return status;
}

static void task_to_json(const icma_input_task *task, const found_task *t, const char *text, cJSON *tasks) {
    cJSON *object = cli_json_add_object(tasks, NULL);
    cli_json_text(object, "task", task->name);
    cli_json_text(object, "folder", task->folder);
    cli_json_whole(object, "bytes", t->bytes);
    cli_json_text(object, "condition", text ? NULL : task->condition_path);
    cli_json_whole(object, "condition_size", t->condition_size);
    cli_json_text(object, "text", text);
    cJSON *checkpoints = cli_json_add_array(object, "checkpoints");
    for (size_t i = 0; i < task->checkpoint_count; i++) {
        const icma_input_checkpoint *checkpoint = &task->checkpoints[i];
        cJSON *item = cli_json_add_object(checkpoints, NULL);
        if (checkpoint->has_step)
            cli_json_whole(item, "step", checkpoint->step);
        else
            cli_json_null(item, "step");
        cli_json_text(item, "path", checkpoint->path);
        cli_json_text(item, "final", checkpoint->final_path);
        cli_json_whole(item, "shards", checkpoint->shards);
        cJSON *files = cli_json_add_array(item, "side_files");
        for (size_t j = 0; j < checkpoint->side_file_count; j++)
            cli_json_text(files, NULL, checkpoint->side_files[j].name);
    }
}

static icma_status found_to_json(const icma_inputs *inputs, const found *f, icma_error *error) {
    cJSON *root = cli_json_object(), *tasks = cli_json_add_array(root, "tasks");
    for (size_t i = 0; i < inputs->task_count; i++)
        task_to_json(&inputs->tasks[i], &f->tasks[i], text_of(f, i), tasks);
    cJSON *groups = cli_json_add_array(root, "groups");
    for (size_t i = 0; i < f->group_count; i++) {
        const found_group *g = &f->groups[i];
        cJSON *object = cli_json_add_object(groups, NULL);
        cli_json_whole(object, "tasks", g->tasks);
        cli_json_whole(object, "checkpoints", g->checkpoints);
        cli_json_whole(object, "tensors", g->signature.tensor_count);
        cli_json_whole(object, "pairs", g->pairs);
        cli_json_whole(object, "parameters", g->parameters);
        cli_json_whole(object, "verbatim_tensors", g->verbatim);
        cli_json_whole(object, "bytes", g->bytes);
    }
    cJSON *skipped = cli_json_add_array(root, "skipped");
    for (size_t i = 0; i < inputs->skip_count; i++) {
        cJSON *object = cli_json_add_object(skipped, NULL);
        cli_json_text(object, "path", inputs->skips[i].path);
        cli_json_text(object, "reason", inputs->skips[i].reason);
    }
    cli_json_whole(root, "checkpoints", f->checkpoints);
    cli_json_whole(root, "bytes", f->bytes);
    return cli_json_print(root, stdout, error);
}

icma_status cli_pack_tell_found(const icma_inputs *inputs, const char *texts, const cli_common *common,
                                icma_error *error) {
    found f = {0};
    icma_status status = texts ? icma_described_read(texts, inputs, &f.texts, error) : ICMA_OK;
    if (!status)
        status = look(inputs, &f, error);
    if (!status && common->json)
        status = found_to_json(inputs, &f, error);
    else if (!status)
        status = print_found(inputs, &f, common->verbose, error);
    free_found(&f);
    return status;
}
