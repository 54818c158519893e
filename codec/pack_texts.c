/* SPDX-License-Identifier: Apache-2.0 */
/* The texts of a task on their way into the archive: side files and headers, each stored once. */
#include "pack_part.h"

#include "compress.h"
#include "memory.h"

#include <string.h>

enum { MOST_SIDE_FILE = 1 << 20 };

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a task");
}

static icma_status intern(icma_text_pool *pool, const void *data, size_t size, uint64_t *index, icma_error *error) {
    for (size_t i = 0; i < pool->count; i++)
        if (pool->list[i].size == size && (size == 0 || memcmp(pool->list[i].data, data, size) == 0)) {
            *index = i;
            return ICMA_OK;
        }
    icma_buffer *more = icma_resize_array(pool->list, pool->count + 1, sizeof *more);
    if (!more)
        return no_memory(error);
    pool->list = more;
    pool->list[pool->count] = (icma_buffer){0};
    icma_write_bytes(&pool->list[pool->count], data, size);
    *index = pool->count++;
    return icma_buffer_status(&pool->list[*index], error);
}

icma_status icma_pack_take_side_files(icma_part_writer *w, const icma_input_checkpoint *input, icma_checkpoint *c, icma_error *error) {
    icma_status status = ICMA_OK;
    if (input->side_file_count && !(c->files = icma_alloc_array(input->side_file_count, 2 * sizeof *c->files)))
        return no_memory(error);
    for (size_t f = 0; !status && f < input->side_file_count; f++) {
        const icma_input_side_file *side = &input->side_files[f];
        uint8_t *data;
        size_t size;
        status = icma_file_read_all(side->path, MOST_SIDE_FILE, &data, &size, error);
        if (status)
            break;
        status = intern(&w->texts, side->name, strlen(side->name), &c->files[2 * f], error);
        if (!status)
            status = intern(&w->texts, data, size, &c->files[2 * f + 1], error);
        icma_free(data);
        c->file_count = f + 1;
    }
    return status;
}

icma_status icma_pack_write_texts(icma_part_writer *w, icma_error *error) {
    icma_buffer payload = {0};
    if (w->texts.count == 0)
        return ICMA_OK;
    icma_write_varint(&payload, w->texts.count);
    for (size_t i = 0; i < w->texts.count; i++) {
        icma_write_varint(&payload, w->texts.list[i].size);
        icma_write_bytes(&payload, w->texts.list[i].data, w->texts.list[i].size);
    }
    icma_section section = {.kind = ICMA_SECTION_TEXTS, .group = w->g->index, .task = w->task};
    icma_status status = icma_buffer_status(&payload, error);
    if (!status)
        status = icma_container_add(w->packer->writer, &section, payload.data, payload.size, icma_pack_level(payload.size), error);
    icma_buffer_free(&payload);
    return status;
}

icma_status icma_pack_take_header(icma_part_writer *w, size_t i, const uint8_t *original, icma_error *error) {
    uint64_t index;
    if (!w->sources[i]->own_header)
        return ICMA_OK;
    icma_status status = intern(&w->texts, original + 8, (size_t)w->sources[i]->data_offset - 8, &index, error);
    w->table.list[i].header = index + 1;
    return status;
}
