/* SPDX-License-Identifier: Apache-2.0 */
/* Sections over ranges of checkpoints: verbatim tensors, residuals, lossless links. */
#include "bundle_inside.h"
#include "memory.h"
#include "verbatim.h"

#include <string.h>

const icma_section *icma_bundle_covering(const icma_bundle *b, uint16_t kind, uint32_t group, uint32_t task, size_t index) {
    const icma_section *first = NULL;
    size_t low = 0, high = icma_container_range(b->container, kind, group, task, &first);
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (first[middle].first <= index)
            low = middle + 1;
        else
            high = middle;
    }
    return low && index - first[low - 1].first < first[low - 1].count ? &first[low - 1] : NULL;
}

/* Makes `stream` hold a section of at most `size` bytes, unless it does already. */
static icma_status load_stream(icma_bundle *b, const icma_part *p, icma_stream *stream, const icma_section *section, uint64_t size, icma_error *error) {
    if (stream->section == section)
        return ICMA_OK;
    if (section->count > p->table.count - section->first)
        return icma_bundle_corrupt(b, error, "a section goes beyond its task's checkpoints");
    if (size > b->limits.max_output)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "a section of %llu bytes; raise --max-output if you trust the file", (unsigned long long)size);
    icma_free(stream->bytes);
    icma_free(stream->offsets);
    *stream = (icma_stream){0};
    icma_status status = icma_container_load(b->container, section, (size_t)size, &stream->bytes, error);
    if (!status)
        stream->section = section;
    return status;
}

icma_status icma_part_read_verbatim(icma_bundle *b, uint32_t task, icma_part *p, size_t index, uint8_t *data, icma_error *error) {
    const icma_safetensors *signature = &b->groups[p->group].signature;
    const icma_generator *g = &b->groups[p->group].generator;
    const icma_section *found = icma_bundle_covering(b, ICMA_SECTION_VERBATIM, p->group, task, index);
    size_t size = 0;
    if (!found) {
        if (!icma_verbatim_size(signature, g, &p->table.list[index], 1, &size) || size > 0)
            return icma_bundle_corrupt(b, error, "verbatim tensors are missing");
        return ICMA_OK;
    }
    if (found->count > p->table.count - found->first ||
        !icma_verbatim_size(signature, g, p->table.list + found->first, found->count, &size) || size != found->raw_size)
        return icma_bundle_corrupt(b, error, "a verbatim section does not fit its checkpoints");
    icma_status status = load_stream(b, p, &p->verbatim, found, size, error);
    if (!status)
        icma_verbatim_read(signature, g, p->table.list + found->first, found->count, index - found->first, p->verbatim.bytes, data);
    return status;
}

static bool has_block(const icma_checkpoint *c, uint16_t kind) {
    return kind == ICMA_SECTION_LINK ? c->tier == ICMA_TIER_LOSSLESS : c->tier == ICMA_TIER_BOUNDED;
}

/* spec 4.11: the sizes of all blocks, then the blocks. */
static icma_status find_offsets(icma_bundle *b, const icma_part *p, uint16_t kind, icma_stream *stream, icma_error *error) {
    const icma_section *s = stream->section;
    icma_cursor from = icma_cursor_over(stream->bytes, (size_t)s->raw_size);
    size_t all = 0;
    stream->offsets = icma_alloc_array((size_t)s->count + 1, sizeof *stream->offsets);
    if (!stream->offsets)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a section of blocks");
    for (size_t i = 0; i < s->count; i++) {
        stream->offsets[i] = all;
        uint64_t each = has_block(&p->table.list[s->first + i], kind) ? icma_read_varint(&from) : 0;
        if (from.failed || each > from.left || !icma_add_size(all, (size_t)each, &all))
            return icma_bundle_corrupt(b, error, "a section of blocks that is cut short");
    }
    if (all != from.left)
        return icma_bundle_corrupt(b, error, "a section that is not as long as its blocks");
    stream->offsets[s->count] = all;
    for (size_t i = 0; i <= s->count; i++)
        stream->offsets[i] += (size_t)s->raw_size - all;
    return ICMA_OK;
}

static void forget_stream(icma_stream *stream) {
    icma_free(stream->bytes);
    icma_free(stream->offsets);
    *stream = (icma_stream){0};
}

icma_status icma_part_find_block(icma_bundle *b, uint32_t task, icma_part *p, uint16_t kind, size_t index, const uint8_t **data, size_t *size,
                                 icma_error *error) {
    const icma_section *found = icma_bundle_covering(b, kind, p->group, task, index);
    icma_stream *stream = kind == ICMA_SECTION_LINK ? &p->links : &p->residuals;
    *data = NULL;
    *size = 0;
    if (!found)
        return ICMA_OK;
    icma_status status = load_stream(b, p, stream, found, found->raw_size, error);
    if (!status && !stream->offsets && (status = find_offsets(b, p, kind, stream, error)))
        forget_stream(stream);
    if (status)
        return status;
    size_t place = index - found->first;
    *data = stream->bytes + stream->offsets[place];
    *size = stream->offsets[place + 1] - stream->offsets[place];
    return ICMA_OK;
}

/* An even share of a section of several checkpoints; 0 without one. */
static double share_of(const icma_section *section, size_t checkpoints) {
    return section && checkpoints ? (double)section->stored_size / (double)checkpoints : 0;
}

/* A block is coded already: where zstd has squeezed the section of several a little more, all are taken to have shrunk alike. */
static double block_bytes(const icma_section *section, size_t size) {
    return section && section->raw_size ? (double)size * (double)section->stored_size / (double)section->raw_size : 0;
}

icma_status icma_bundle_checkpoint_bytes(icma_bundle *b, size_t task, size_t checkpoint, double *bytes, icma_error *error) {
    static const uint16_t blocks[] = {ICMA_SECTION_RESIDUAL, ICMA_SECTION_LINK};
    icma_place place;
    *bytes = 0;
    icma_status status = icma_bundle_find_checkpoint(b, task, checkpoint, &place, error);
    if (status)
        return status;
    icma_part *p = &b->tasks[task].parts[place.part];
    *bytes += share_of(icma_container_find(b->container, ICMA_SECTION_TASK, p->group, (uint32_t)task), p->table.count);
    *bytes += share_of(icma_container_find(b->container, ICMA_SECTION_TEXTS, p->group, (uint32_t)task), p->table.count);
    const icma_section *verbatim = icma_bundle_covering(b, ICMA_SECTION_VERBATIM, p->group, (uint32_t)task, place.index);
    *bytes += share_of(verbatim, verbatim ? verbatim->count : 0);
    for (size_t i = 0; !status && i < sizeof blocks / sizeof *blocks; i++) {
        const uint8_t *data;
        size_t size;
        status = icma_part_find_block(b, (uint32_t)task, p, blocks[i], place.index, &data, &size, error);
        if (!status)
            *bytes += block_bytes(icma_bundle_covering(b, blocks[i], p->group, (uint32_t)task, place.index), size);
    }
    return status;
}

/* *out is owned by the caller; NULL where the generator predicts no spreads. */
static icma_status make_classes(const icma_group_state *g, const float *code, uint8_t **out, icma_error *error) {
    *out = NULL;
    if (!icma_generator_has_classes(&g->generator))
        return ICMA_OK;
    *out = icma_alloc((size_t)icma_generator_modelled_weights(&g->generator, &g->signature) + 1);
    return *out ? icma_decoder_classes(g->decoder, code, *out, error) : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for classes of weights");
}

icma_status icma_part_load_residual(icma_bundle *b, uint32_t task, icma_part *p, size_t index, const float *code, icma_residual *out, icma_error *error) {
    const icma_group_state *g = &b->groups[p->group];
    const uint8_t *data;
    uint8_t *classes = NULL;
    size_t size;
    memset(out, 0, sizeof *out);
    if (!has_block(&p->table.list[index], ICMA_SECTION_RESIDUAL))
        return ICMA_OK;
    icma_status status = icma_part_find_block(b, task, p, ICMA_SECTION_RESIDUAL, index, &data, &size, error);
    if (!status && size)
        status = make_classes(g, code, &classes, error);
    if (!status)
        status = classes ? icma_residual_read(data, size, &g->signature, &g->generator, classes, out, error)
                         : icma_residual_open(data, size, &g->signature, &g->generator, NULL, out, error);
    icma_free(classes);
    for (size_t i = 0; !status && i < out->count; i++)
        if (icma_is_verbatim(&g->signature, &g->generator, &p->table.list[index], out->list[i].tensor))
            status = icma_bundle_corrupt(b, error, "a residual of a tensor that is kept verbatim");
    if (status)
        icma_residual_free(out);
    return status;
}

void icma_part_forget_streams(icma_part *p) {
    forget_stream(&p->verbatim);
    forget_stream(&p->residuals);
    forget_stream(&p->links);
    for (size_t i = 0; i < p->chain_count; i++)
        icma_free(p->chain[p->remembered[i]]);
    icma_free(p->chain);
    icma_free(p->remembered);
    p->chain = NULL;
    p->remembered = NULL;
    p->chain_count = 0;
}
