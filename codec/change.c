/* SPDX-License-Identifier: Apache-2.0 */
#include "change.h"

#include "memory.h"
#include "progress.h"
#include "sized.h"
#include "sort.h"

#include <string.h>

void icma_change_options_init(icma_change_options *options, size_t size) {
    const icma_change_options standard = {.size = size};
    icma_sized_fill(options, size, &standard, sizeof standard);
}

icma_status icma_change_take_options(const icma_change_options *options, icma_change_options *out,
                                     icma_error *error) {
    icma_change_options_init(out, sizeof *out);
    if (!options)
        return ICMA_OK;
    return icma_sized_take(out, sizeof *out, options, ICMA_CHANGE_OPTIONS_LEAST, "options of",
                           "icma_change_defaults", error);
}

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory to change the archive");
}

static uint32_t *count_up(size_t count) {
    uint32_t *numbers = icma_alloc_array(count + 1, sizeof *numbers);
    for (size_t i = 0; numbers && i < count; i++)
        numbers[i] = (uint32_t)i;
    return numbers;
}

static icma_status open_old(icma_change *c, const char *path, const icma_ops *ops, const icma_limits *limits,
                            icma_error *error) {
    icma_status status = icma_file_open(path, &c->file, error);
    if (!status && !c->options->output)
        status = icma_file_lock(c->file, error);
    if (!status)
        status = icma_bundle_open(path, ops, limits, &c->bundle, error);
    /* Whoever held the lock before may have replaced the file since we opened it. */
    return status ? status : icma_file_check_in_place(c->file, error);
}

static icma_status start_new(icma_change *c, icma_error *error) {
    const icma_change_options *o = c->options;
    char *target = NULL;
    if (o->output)
        return icma_container_create(o->output, o->overwrite || o->dry_run, &c->writer, error);
    icma_status status = icma_file_resolve(icma_file_path(c->file), &target, error); /* a link stays */
    if (!status)
        status = icma_container_create(target, true, &c->writer, error);
    if (!status)
        icma_container_keep_mode(c->writer, c->file);
    icma_free(target);
    return status;
}

icma_status icma_change_open(icma_change *c, const char *path, const icma_change_options *options,
                             const icma_ops *ops, const icma_limits *limits, icma_error *error) {
    *c = (icma_change){.options = options};
    icma_status status = open_old(c, path, ops, limits, error);
    if (!status) {
        c->left_out =
            icma_alloc_zeroed(icma_container_section_count(c->bundle->container) + 1, sizeof *c->left_out);
        c->tasks = count_up(icma_bundle_task_count(c->bundle));
        c->groups = count_up(icma_bundle_group_count(c->bundle));
        status = c->tasks && c->groups && c->left_out ? start_new(c, error) : no_memory(error);
    }
    return status;
}

static int compare_offsets(const void *a, const void *b, const void *context) {
    const icma_container *container = context;
    uint64_t x = icma_container_section(container, *(const uint32_t *)a)->offset,
             y = icma_container_section(container, *(const uint32_t *)b)->offset;
    return x < y ? -1 : x > y;
}

static icma_status copy_section(icma_change *c, const icma_section *s, icma_error *error) {
    uint32_t group = s->group == ICMA_NO_OWNER ? ICMA_NO_OWNER : c->groups[s->group],
             task = s->task == ICMA_NO_OWNER ? ICMA_NO_OWNER : c->tasks[s->task];
    if ((s->group != ICMA_NO_OWNER && group == ICMA_NO_OWNER) ||
        (s->task != ICMA_NO_OWNER && task == ICMA_NO_OWNER))
        return ICMA_OK;
    return icma_container_copy(c->writer, c->bundle->container, s, group, task, error);
}

icma_status icma_change_copy(icma_change *c, icma_error *error) {
    const icma_container *container = c->bundle->container;
    size_t count = icma_container_section_count(container);
    uint32_t *order = count_up(count);
    icma_status status = order ? ICMA_OK : no_memory(error);
    if (order)
        icma_sort(order, count, sizeof *order, compare_offsets, container);
    for (size_t i = 0; !status && i < count; i++) {
        const icma_section *section = icma_container_section(container, order[i]);
        icma_tell(&c->options->progress, "copy", (double)section->offset,
                  (double)icma_container_size(container), NULL);
        status = icma_check_cancelled(&c->options->progress, error);
        if (!status && !c->left_out[order[i]])
            status = copy_section(c, section, error);
    }
    icma_free(order);
    return status;
}

icma_status icma_change_commit(icma_change *c, icma_error *error) {
    icma_container_writer *writer = c->writer;
    icma_status status = icma_file_check_in_place(c->file, error);
    if (status || c->options->dry_run)
        return status;
    c->writer = NULL;
    return icma_container_commit(writer, error);
}

void icma_change_close(icma_change *c) {
    icma_container_abandon(c->writer);
    icma_bundle_close(c->bundle);
    icma_file_close(c->file);
    icma_free(c->tasks);
    icma_free(c->groups);
    icma_free(c->left_out);
    memset(c, 0, sizeof *c);
}
