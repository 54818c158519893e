/* SPDX-License-Identifier: Apache-2.0 */
/* Tier lossless: a chain of predictions, backwards from the part's last checkpoint (spec 4.12). */
#include "pack_part.h"

#include "compress.h"
#include "lossless.h"
#include "memory.h"
#include "progress.h"

#include <string.h>

typedef struct chain {
    icma_part_writer *w;
    bool *coded;    /* one a tensor */
    uint8_t *model; /* what the generator makes of a checkpoint; NULL without a generator */
    uint8_t *check;
} chain;

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a lossless checkpoint");
}

/* Decodes what was just encoded and compares every bit. */
static icma_status prove(const chain *c, const icma_lossless_link *link, size_t i, icma_error *error) {
    const icma_safetensors *s = &c->w->g->group->signature;
    const uint8_t *original = c->w->data[i];
    icma_status status = icma_lossless_decode(link, c->w->blocks[i].data, c->w->blocks[i].size, c->check, error);
    for (size_t t = 0; !status && t < s->tensor_count; t++)
        if (c->coded[t] && s->tensors[t].size && memcmp(c->check + s->tensors[t].begin, original + s->tensors[t].begin, (size_t)s->tensors[t].size) != 0)
            status = icma_fail(error, ICMA_E_BOUND, NULL, "%s does not come back bit for bit", s->tensors[t].name);
    return status;
}

static icma_status link_checkpoint(chain *c, size_t i, size_t size, icma_error *error) {
    icma_part_writer *w = c->w;
    icma_checkpoint *checkpoint = &w->table.list[i];
    size_t after = w->table.count - 1 - i, count = 0;
    const uint8_t *taps[ICMA_CHAIN_TAPS + 1];
    size_t place = after % w->packer->options->restart;
    checkpoint->taps = (uint8_t)(place < ICMA_CHAIN_TAPS ? place : ICMA_CHAIN_TAPS);
    for (; count < checkpoint->taps; count++)
        taps[count] = w->data[i + 1 + count];
    icma_status status = c->model ? icma_decoder_model(w->g->decoder, &w->table, checkpoint, c->model, error) : ICMA_OK;
    if (c->model)
        taps[count++] = c->model;
    icma_lossless_link link = {.signature = &w->g->group->signature, .coded = c->coded, .taps = taps, .tap_count = count};
    if (!status)
        status = icma_lossless_encode(&link, w->data[i], &w->blocks[i], error);
    if (!status)
        status = prove(c, &link, i, error);
    checkpoint->hash = icma_hash(w->originals[i], size);
    w->g->measures.checkpoints++;
    return status;
}

static icma_status chain_allocate(chain *c, icma_error *error) {
    const icma_pack_group *g = c->w->g;
    size_t size = (size_t)g->group->signature.data_size;
    c->coded = icma_alloc_zeroed(g->group->signature.tensor_count + 1, sizeof *c->coded);
    c->check = icma_alloc(size + 1);
    bool predicts = icma_generator_predicts(&g->generator);
    c->model = predicts ? icma_alloc_zeroed(size + 1, 1) : NULL;
    if (!c->coded || !c->check || (predicts && !c->model))
        return no_memory(error);
    icma_mark_linked(&g->group->signature, c->coded);
    return ICMA_OK;
}

/* Lets go of originals that no checkpoint before `first` is predicted from. */
static void free_originals(icma_part_writer *w, size_t first, size_t next) {
    for (size_t i = first + ICMA_CHAIN_TAPS; i < next + ICMA_CHAIN_TAPS && i < w->table.count; i++) {
        icma_free(w->originals[i]);
        w->originals[i] = NULL;
    }
}

icma_status icma_pack_lossless(icma_part_writer *w, icma_error *error) {
    chain c = {.w = w};
    icma_status status = chain_allocate(&c, error);
    size_t next = w->table.count;
    for (size_t i = w->table.count; !status && i-- > w->past;) {
        size_t size = 0;
        status = icma_pack_next_checkpoint(w->packer, w->task, error);
        if (!status)
            status = icma_pack_encode_checkpoint(w, i, error);
        if (!status)
            status = icma_pack_read_original(w, i, &size, error);
        if (!status)
            status = link_checkpoint(&c, i, size, error);
        if (!status && (w->held >= ICMA_PACK_STREAM_BYTES || i == w->past)) {
            w->section_first = i;
            status = icma_pack_flush(w, next, ICMA_SECTION_LINK, error);
            free_originals(w, i, next);
            next = i;
        }
    }
    icma_free(c.coded);
    icma_free(c.check);
    icma_free(c.model);
    return status;
}
