/* SPDX-License-Identifier: Apache-2.0 */
/* Texts on their way into the archive: side files and headers, each stored once, those that tasks share for the group. */
#include "pack_part.h"

#include "compress.h"
#include "layout_inside.h"
#include "memory.h"

#include <string.h>

enum { MOST_SIDE_FILE = 1 << 20 };

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a task");
}

void icma_text_pool_free(icma_text_pool *pool) {
    for (size_t i = 0; i < pool->count; i++)
        icma_buffer_free(&pool->list[i]);
    icma_free(pool->list);
    memset(pool, 0, sizeof *pool);
}

static bool find_text(const icma_text_pool *pool, const void *data, size_t size, uint64_t *index) {
    for (size_t i = 0; i < pool->count; i++)
        if (pool->list[i].size == size && (size == 0 || memcmp(pool->list[i].data, data, size) == 0)) {
            *index = i;
            return true;
        }
    return false;
}

icma_status icma_text_pool_add(icma_text_pool *pool, const void *data, size_t size, icma_error *error) {
    icma_buffer *more = icma_resize_array(pool->list, pool->count + 1, sizeof *more);
    if (!more)
        return no_memory(error);
    pool->list = more;
    pool->list[pool->count] = (icma_buffer){0};
    icma_write_bytes(&pool->list[pool->count++], data, size);
    return icma_buffer_status(&pool->list[pool->count - 1], error);
}

/* Shared texts are numbered first. */
static icma_status intern(icma_part_writer *w, const void *data, size_t size, uint64_t *index, icma_error *error) {
    if (find_text(&w->g->texts, data, size, index))
        return ICMA_OK;
    icma_status status = find_text(&w->texts, data, size, index) ? ICMA_OK : icma_text_pool_add(&w->texts, data, size, error);
    if (!status && find_text(&w->texts, data, size, index))
        *index += w->g->texts.count;
    return status;
}

const icma_buffer *icma_pack_text(const icma_part_writer *w, uint64_t index) {
    size_t shared = w->g->texts.count;
    return index < shared ? &w->g->texts.list[index] : &w->texts.list[index - shared];
}

/* Names and contents of a checkpoint's side files, in turn. */
static icma_status gather(const icma_input_checkpoint *input, icma_text_pool *out, icma_error *error) {
    icma_status status = ICMA_OK;
    for (size_t f = 0; !status && f < input->side_file_count; f++) {
        const icma_input_side_file *side = &input->side_files[f];
        uint8_t *data;
        size_t size;
        status = icma_file_read_all(side->path, MOST_SIDE_FILE, &data, &size, error);
        if (status)
            break;
        status = icma_text_pool_add(out, side->name, strlen(side->name), error);
        if (!status)
            status = icma_text_pool_add(out, data, size, error);
        icma_free(data);
    }
    return status;
}

icma_status icma_pack_take_side_files(icma_part_writer *w, const icma_input_checkpoint *input, icma_checkpoint *c, icma_error *error) {
    icma_text_pool side = {0};
    if (input->side_file_count && !(c->files = icma_alloc_array(input->side_file_count, 2 * sizeof *c->files)))
        return no_memory(error);
    icma_status status = gather(input, &side, error);
    for (size_t i = 0; !status && i < side.count; i++)
        status = intern(w, side.list[i].data, side.list[i].size, &c->files[i], error);
    if (!status)
        c->file_count = side.count / 2;
    icma_text_pool_free(&side);
    return status;
}

static icma_status write_pool(icma_packer *p, const icma_text_pool *pool, uint32_t group, uint32_t task, icma_error *error) {
    icma_buffer payload = {0};
    if (pool->count == 0)
        return ICMA_OK;
    icma_write_varint(&payload, pool->count);
    for (size_t i = 0; i < pool->count; i++) {
        icma_write_varint(&payload, pool->list[i].size);
        icma_write_bytes(&payload, pool->list[i].data, pool->list[i].size);
    }
    icma_section section = {.kind = ICMA_SECTION_TEXTS, .group = group, .task = task};
    icma_status status = icma_buffer_status(&payload, error);
    if (!status)
        status = icma_container_add(p->writer, &section, payload.data, payload.size, icma_pack_level(payload.size), error);
    icma_buffer_free(&payload);
    return status;
}

icma_status icma_pack_write_texts(icma_part_writer *w, icma_error *error) {
    return write_pool(w->packer, &w->texts, w->g->index, w->owner, error);
}

/* --- shared by tasks ------------------------------------------------------------------------------------ */

/* What the first and the last task have alike, nearly all will: only these two are looked at. */
icma_status icma_pack_shared_texts(icma_packer *p, icma_pack_group *g, icma_error *error) {
    const icma_source *sources = g->group->sources, *last = &sources[g->group->count - 1];
    icma_text_pool first = {0}, other = {0};
    uint64_t index;
    if (sources->task == last->task)
        return ICMA_OK;
    icma_status status = gather(sources->input, &first, error);
    if (!status)
        status = gather(last->input, &other, error);
    for (size_t i = 0; !status && i < first.count; i++)
        if (find_text(&other, first.list[i].data, first.list[i].size, &index) && !find_text(&g->texts, first.list[i].data, first.list[i].size, &index))
            status = icma_text_pool_add(&g->texts, first.list[i].data, first.list[i].size, error);
    icma_text_pool_free(&first);
    icma_text_pool_free(&other);
    return status ? status : write_pool(p, &g->texts, g->index, ICMA_NO_OWNER, error);
}

/* --- headers -------------------------------------------------------------------------------------------- */

bool icma_pack_has_hashes(const icma_safetensors *header) {
    icma_metadata metadata;
    bool any = false;
    if (icma_metadata_read(header->header, header->header_size, &metadata, NULL))
        return false; /* for want of memory, which is told elsewhere */
    for (const char *const *key = icma_hash_keys; *key; key++)
        any |= icma_metadata_find(&metadata, *key) != NULL;
    icma_metadata_free(&metadata);
    return any;
}

bool icma_pack_cuts_hashes(const icma_packer *p, const icma_pack_group *g) {
    return p->options->tier != ICMA_TIER_LOSSLESS && icma_generator_modelled_weights(&g->generator, &g->group->signature) > 0;
}

icma_status icma_pack_cut_hashes(icma_packer *p, icma_pack_group *g, icma_error *error) {
    icma_safetensors *s = &g->group->signature;
    icma_buffer cut = {0};
    size_t count = 0;
    g->cuts_hashes = icma_pack_cuts_hashes(p, g);
    if (!g->cuts_hashes)
        return ICMA_OK;
    icma_status status = icma_metadata_cut(s->header, s->header_size, icma_hash_keys, &cut, &count, error);
    uint8_t *header = !status && count ? icma_alloc(cut.size) : NULL;
    if (!status && count && !header)
        status = no_memory(error);
    if (header) {
        memcpy(header, cut.data, cut.size);
        icma_free(s->header);
        s->header = header;
        s->header_size = cut.size;
    }
    icma_buffer_free(&cut);
    return status;
}

/* One that is the signature's once it is cut has no text. */
static icma_status intern_header(icma_part_writer *w, const void *text, size_t size, uint64_t *header, icma_error *error) {
    const icma_safetensors *s = &w->g->group->signature;
    uint64_t index = 0;
    *header = 0;
    if (size == s->header_size && memcmp(text, s->header, size) == 0)
        return ICMA_OK;
    icma_status status = intern(w, text, size, &index, error);
    *header = index + 1;
    return status;
}

icma_status icma_pack_take_header(icma_part_writer *w, size_t i, const uint8_t *original, icma_error *error) {
    const uint8_t *text = original + 8;
    size_t size = (size_t)w->sources[i]->data_offset - 8, count = 0;
    icma_buffer cut = {0};
    icma_status status = w->g->cuts_hashes ? icma_metadata_cut(text, size, icma_hash_keys, &cut, &count, error) : ICMA_OK;
    w->packer->result->hashes_dropped += count > 0;
    if (!status && (w->sources[i]->own_header || w->g->cuts_hashes))
        status = intern_header(w, count ? cut.data : text, count ? cut.size : size, &w->table.list[i].header, error);
    icma_buffer_free(&cut);
    return status;
}

icma_status icma_pack_hash(const icma_part_writer *w, size_t i, const uint8_t *file, size_t size, uint64_t *hash, icma_error *error) {
    const icma_safetensors *s = &w->g->group->signature;
    uint64_t index = w->table.list[i].header;
    const icma_buffer *own = index ? icma_pack_text(w, index - 1) : NULL;
    const uint8_t *header = own ? own->data : s->header;
    size_t header_size = own ? own->size : s->header_size, data_at = (size_t)w->sources[i]->data_offset;
    icma_buffer image = {0};
    if (!w->g->cuts_hashes) {
        *hash = icma_hash(file, size);
        return ICMA_OK;
    }
    icma_write_u64(&image, header_size);
    icma_write_bytes(&image, header, header_size);
    icma_write_bytes(&image, file + data_at, size - data_at);
    icma_status status = icma_buffer_status(&image, error);
    if (!status)
        *hash = icma_hash(image.data, image.size);
    icma_buffer_free(&image);
    return status;
}
