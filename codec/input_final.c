/* SPDX-License-Identifier: Apache-2.0 */
/* Trainers write the last checkpoint once more as the task's own adapter: stored once. */
#include "input_finder.h"
#include "input_names.h"

#include "file.h"
#include "memory.h"
#include "sort.h"

#include <stdio.h>
#include <string.h>

enum { BLOCK = 1 << 18 };

static icma_status compare_files(const icma_finder *f, const char *a, const char *b, bool *same) {
    icma_file *x = NULL, *y = NULL;
    uint8_t *blocks = icma_alloc((size_t)2 * BLOCK);
    icma_status status = blocks ? icma_file_open(a, &x, f->error) : icma_finder_no_memory(f);
    if (status == ICMA_OK)
        status = icma_file_open(b, &y, f->error);
    uint64_t size = status == ICMA_OK ? icma_file_size(x) : 0;
    *same = status == ICMA_OK && icma_file_size(y) == size;
    for (uint64_t at = 0; status == ICMA_OK && *same && at < size; at += BLOCK) {
        size_t part = size - at < BLOCK ? (size_t)(size - at) : BLOCK;
        status = icma_file_read(x, at, blocks, part, f->error);
        if (status == ICMA_OK)
            status = icma_file_read(y, at, blocks + BLOCK, part, f->error);
        *same = status == ICMA_OK && memcmp(blocks, blocks + BLOCK, part) == 0;
    }
    icma_file_close(x);
    icma_file_close(y);
    icma_free(blocks);
    return status;
}

static icma_input_side_file *find_side(icma_input_checkpoint *checkpoint, const char *name) {
    for (size_t i = 0; i < checkpoint->side_file_count; i++)
        if (strcmp(checkpoint->side_files[i].name, name) == 0)
            return &checkpoint->side_files[i];
    return NULL;
}

/* "README.checkpoint-450.md" of "README.md". */
static char *name_of_step(const char *name, uint64_t step) {
    const char *dot = strrchr(name, '.');
    size_t stem = dot ? (size_t)(dot - name) : strlen(name), room = strlen(name) + 40;
    char *out = icma_alloc(room);
    if (out)
        snprintf(out, room, "%.*s.checkpoint-%llu%s", (int)stem, name, (unsigned long long)step,
                 dot ? dot : "");
    return out;
}

/* Both are the same adapter to whoever loads them: with one configuration, or one has none. */
static icma_status same_meaning(const icma_finder *f, icma_input_checkpoint *last,
                                icma_input_checkpoint *final, bool *same) {
    static const char config[] = "adapter_config.json";
    const icma_input_side_file *a = find_side(last, config), *b = find_side(final, config);
    *same = !a == !b;
    return a && b ? compare_files(f, a->path, b->path, same) : ICMA_OK;
}

/* Puts one side file of the final adapter to the checkpoint's; theirs of the same name, if it differs, gives
 * way. */
static icma_status put_side_file(const icma_finder *f, icma_input_checkpoint *last,
                                 icma_input_side_file *side) {
    icma_input_side_file *there = find_side(last, side->name);
    bool same = false;
    icma_status status = there ? compare_files(f, there->path, side->path, &same) : ICMA_OK;
    if (status != ICMA_OK || same)
        return status;
    if (there) {
        char *name = name_of_step(there->name, last->step);
        if (!name)
            return icma_finder_no_memory(f);
        icma_free(there->name);
        there->name = name;
    }
    last->side_files[last->side_file_count++] = *side;
    *side = (icma_input_side_file){0};
    return ICMA_OK;
}

static int compare_sides(const void *a, const void *b, const void *context) {
    (void)context;
    return icma_compare_natural(((const icma_input_side_file *)a)->name,
                                ((const icma_input_side_file *)b)->name);
}

/* Whether a name that gives way is free. */
static icma_status names_are_free(const icma_finder *f, icma_input_checkpoint *last,
                                  icma_input_checkpoint *final, bool *yes) {
    *yes = true;
    for (size_t i = 0; *yes && i < final->side_file_count; i++) {
        char *name = name_of_step(final->side_files[i].name, last->step);
        if (!name)
            return icma_finder_no_memory(f);
        *yes = icma_path_segment_is_safe(name) && !find_side(last, name) && !find_side(final, name);
        icma_free(name);
    }
    return ICMA_OK;
}

static icma_status merge(const icma_finder *f, icma_input_task *task) {
    icma_input_checkpoint *final = &task->checkpoints[task->checkpoint_count - 1], *last = final - 1;
    size_t most = last->side_file_count + final->side_file_count;
    icma_input_side_file *more = most ? icma_resize_array(last->side_files, most, sizeof *more) : NULL;
    if (most && !more)
        return icma_finder_no_memory(f);
    last->side_files = more;
    icma_status status = ICMA_OK;
    for (size_t i = 0; i < final->side_file_count && status == ICMA_OK; i++)
        status = put_side_file(f, last, &final->side_files[i]);
    icma_sort(last->side_files, last->side_file_count, sizeof *last->side_files, compare_sides, NULL);
    if (status != ICMA_OK)
        return status;
    last->final_path = final->path;
    final->path = NULL;
    icma_checkpoint_free(final);
    task->checkpoint_count--;
    return ICMA_OK;
}

icma_status icma_finder_merge_final(const icma_finder *f, icma_input_task *task, bool folders) {
    size_t count = task->checkpoint_count;
    if (!folders || count < 2 || task->checkpoints[count - 1].has_step ||
        !task->checkpoints[count - 2].has_step)
        return ICMA_OK;
    icma_input_checkpoint *final = &task->checkpoints[count - 1], *last = final - 1;
    bool same = true;
    icma_status status = strcmp(icma_path_last(final->path), icma_path_last(last->path)) == 0
                             ? same_meaning(f, last, final, &same)
                             : (same = false, ICMA_OK);
    if (status == ICMA_OK && same)
        status = compare_files(f, last->path, final->path, &same);
    if (status == ICMA_OK && same)
        status = names_are_free(f, last, final, &same);
    return status == ICMA_OK && same ? merge(f, task) : status;
}
