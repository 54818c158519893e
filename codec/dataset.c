/* SPDX-License-Identifier: Apache-2.0 */
#include "dataset.h"

#include "compress.h"
#include "memory.h"
#include "ops.h"
#include "progress.h"

#include <string.h>

/* Above this many sources their descriptors are closed between reads (most systems allow 1024). */
enum { MANY_SOURCES = 448 };

static uint64_t fingerprint_of(const icma_safetensors *s) {
    uint64_t hash = s->tensor_count;
    for (size_t t = 0; t < s->tensor_count; t++) {
        const icma_tensor_info *info = &s->tensors[t];
        uint64_t parts[ICMA_MAX_RANK + 4] = {hash, icma_hash(info->name, strlen(info->name)), info->dtype, info->rank};
        memcpy(parts + 4, info->shape, info->rank * sizeof *info->shape);
        hash = icma_hash(parts, (info->rank + 4) * sizeof *parts);
    }
    return hash;
}

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the list of checkpoints");
}

/* Takes the signature over and leaves *header zeroed. */
static icma_status add_group(icma_dataset *d, icma_safetensors *header, icma_error *error) {
    icma_group *more = icma_resize_array(d->groups, d->count + 1, sizeof *more);
    if (!more)
        return no_memory(error);
    d->groups = more;
    icma_group group = {.fingerprint = fingerprint_of(header)};
    icma_status status = icma_pairs_find(header, &group.pairs, error);
    if (status)
        return status;
    group.signature = *header;
    memset(header, 0, sizeof *header);
    d->groups[d->count++] = group;
    return ICMA_OK;
}

/* The group of this signature; a new one takes the signature over and leaves *header zeroed. */
static icma_status find_group(icma_dataset *d, icma_safetensors *header, icma_group **out, icma_error *error) {
    uint64_t fingerprint = fingerprint_of(header);
    for (size_t g = 0; g < d->count; g++)
        if (d->groups[g].fingerprint == fingerprint && icma_safetensors_same_signature(&d->groups[g].signature, header)) {
            *out = &d->groups[g];
            return ICMA_OK;
        }
    icma_status status = add_group(d, header, error);
    if (!status)
        *out = &d->groups[d->count - 1];
    return status;
}

static bool grow_sources(icma_group *group) {
    if (group->count < group->capacity)
        return true;
    size_t capacity = group->capacity ? 2 * group->capacity : 64;
    icma_source *more = icma_resize_array(group->sources, capacity, sizeof *more);
    if (!more)
        return false;
    group->sources = more;
    group->capacity = capacity;
    return true;
}

static icma_status add_source(icma_dataset *d, const icma_input_checkpoint *input, uint32_t task, icma_error *error) {
    icma_safetensors header = {0};
    icma_group *group = NULL;
    icma_source source = {.input = input, .task = task};
    icma_status status = icma_file_open(input->path, &source.file, error);
    if (!status)
        status = icma_safetensors_read(source.file, &header, error);
    if (status)
        goto fail;
    source.data_offset = icma_safetensors_data_offset(&header);
    for (size_t t = 0; t < header.tensor_count; t++)
        d->parameters += header.tensors[t].count;
    d->files++;
    d->bytes += icma_file_size(source.file);
    if (d->files > MANY_SOURCES)
        icma_file_park(source.file);
    size_t groups = d->count;
    status = find_group(d, &header, &group, error);
    if (!status && !grow_sources(group))
        status = no_memory(error);
    if (status)
        goto fail;
    source.own_header = groups == d->count && (header.header_size != group->signature.header_size ||
                                               memcmp(header.header, group->signature.header, header.header_size) != 0);
    group->sources[group->count++] = source;
    icma_safetensors_free(&header);
    return ICMA_OK;
fail:
    icma_error_set_file(error, input->path);
    icma_safetensors_free(&header);
    icma_file_close(source.file);
    return status;
}

static icma_status make_exceptions(icma_group *group, icma_error *error) {
    size_t bits = 0;
    if (!icma_multiply_size(group->count, group->signature.tensor_count, &bits) ||
        !(group->exceptions = icma_alloc_zeroed(bits / 8 + 1, 1)))
        return no_memory(error);
    return ICMA_OK;
}

/* The first of a task's checkpoints that is used. */
static size_t first_used(const icma_input_task *task, size_t train_last) {
    return train_last && task->checkpoint_count > train_last ? task->checkpoint_count - train_last : 0;
}

icma_status icma_dataset_open(const icma_inputs *inputs, size_t train_last, const icma_progress *progress, icma_dataset *out, icma_error *error) {
    return icma_dataset_open_beside(inputs, train_last, NULL, 0, progress, out, error);
}

icma_status icma_dataset_open_beside(const icma_inputs *inputs, size_t train_last, const icma_safetensors *const *known, size_t known_count, const icma_progress *progress, icma_dataset *out,
                                     icma_error *error) {
    icma_status status = ICMA_OK;
    double files = 0;
    memset(out, 0, sizeof *out);
    for (size_t t = 0; t < inputs->task_count; t++)
        files += (double)(inputs->tasks[t].checkpoint_count - first_used(&inputs->tasks[t], train_last));
    for (size_t g = 0; !status && g < known_count; g++) {
        icma_safetensors copy = {0};
        status = icma_safetensors_parse(known[g]->header, known[g]->header_size, known[g]->data_size, &copy, error);
        if (!status)
            status = add_group(out, &copy, error);
        icma_safetensors_free(&copy);
    }
    for (size_t t = 0; !status && t < inputs->task_count; t++) {
        const icma_input_task *task = &inputs->tasks[t];
        for (size_t i = first_used(task, train_last); !status && i < task->checkpoint_count; i++) {
            icma_tell(progress, "read", (double)out->files, files, task->name);
            status = icma_check_cancelled(progress, error);
            if (!status)
                status = add_source(out, &task->checkpoints[i], (uint32_t)t, error);
        }
    }
    /* The first files were opened before it was known how many there are. */
    for (size_t g = 0; !status && out->files > MANY_SOURCES && g < out->count; g++)
        for (size_t i = 0; i < out->groups[g].count; i++)
            icma_file_park(out->groups[g].sources[i].file);
    for (size_t g = 0; !status && g < out->count; g++)
        status = make_exceptions(&out->groups[g], error);
    if (status)
        icma_dataset_close(out);
    return status;
}

void icma_dataset_close(icma_dataset *dataset) {
    for (size_t g = 0; g < dataset->count; g++) {
        icma_group *group = &dataset->groups[g];
        for (size_t i = 0; i < group->count; i++)
            icma_file_close(group->sources[i].file);
        icma_free(group->sources);
        icma_free(group->exceptions);
        icma_pairs_free(&group->pairs);
        icma_safetensors_free(&group->signature);
    }
    icma_free(dataset->groups);
    memset(dataset, 0, sizeof *dataset);
}

icma_status icma_dataset_check_unchanged(const icma_dataset *dataset, icma_error *error) {
    icma_status status = ICMA_OK;
    for (size_t g = 0; !status && g < dataset->count; g++)
        for (size_t i = 0; !status && i < dataset->groups[g].count; i++)
            status = icma_file_check_unchanged(dataset->groups[g].sources[i].file, error);
    return status;
}

bool icma_group_is_exception(const icma_group *group, size_t source, size_t tensor) {
    size_t bit = source * group->signature.tensor_count + tensor;
    return group->exceptions[bit / 8] >> (bit % 8) & 1;
}

void icma_group_set_exception(icma_group *group, size_t source, size_t tensor) {
    size_t bit = source * group->signature.tensor_count + tensor;
    group->exceptions[bit / 8] |= (uint8_t)(1U << (bit % 8));
}

static icma_status load_row(icma_group *group, icma_source *source, const icma_tensor_info *info, uint64_t first, size_t columns,
                            float *row, icma_error *error) {
    unsigned width = icma_dtype_bits(info->dtype) / 8;
    /* Narrow dtypes are read into the row's own tail, then widened from the front: no buffer a thread. */
    uint8_t *bytes = (uint8_t *)row + columns * (sizeof *row - width);
    icma_status status = icma_file_read(source->file, source->data_offset + info->begin + first * width, bytes, columns * width, error);
    if (!status && info->dtype == ICMA_F32)
        icma_load_floats(info->dtype, bytes, columns, row);
    for (size_t i = 0; !status && info->dtype != ICMA_F32 && i < columns; i++) {
        uint16_t bits = icma_load_u16(bytes + 2 * i);
        row[i] = info->dtype == ICMA_F16 ? icma_f16_to_f32(bits) : icma_bf16_to_f32(bits);
    }
    if (group->count > MANY_SOURCES)
        icma_file_park(source->file);
    return status;
}

icma_status icma_group_load(icma_group *group, const uint32_t *rows, size_t count, size_t tensor, uint64_t first, size_t columns,
                            float *x, icma_error *error) {
    const icma_tensor_info *info = &group->signature.tensors[tensor];
    icma_status result = ICMA_OK;
#pragma omp parallel for schedule(static) num_threads(icma_threads())
    for (size_t i = 0; i < count; i++) {
        icma_error own = {0};
        icma_source *source = &group->sources[rows ? rows[i] : i];
        icma_status status = load_row(group, source, info, first, columns, x + i * columns, &own);
        if (status) {
#pragma omp critical(icma_group_load)
            {
                if (!result && error)
                    *error = own;
                result = status;
            }
        }
    }
    return result;
}

icma_status icma_source_read(icma_source *source, uint8_t **data, size_t *size, icma_error *error) {
    uint64_t total = icma_file_size(source->file);
    *data = NULL;
    *size = 0;
    uint8_t *bytes = total <= SIZE_MAX ? icma_alloc((size_t)total) : NULL;
    if (!bytes)
        return icma_fail(error, ICMA_E_MEMORY, icma_file_path(source->file), "no memory for a file of %llu bytes",
                         (unsigned long long)total);
    icma_status status = icma_file_read(source->file, 0, bytes, (size_t)total, error);
    if (status) {
        icma_free(bytes);
        return status;
    }
    *data = bytes;
    *size = (size_t)total;
    return ICMA_OK;
}
