/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lossless checkpoints (spec 4.12): each is predicted from up to three that come after it, so that a chain is decoded backwards, from its anchor. What was
 * decoded is remembered while there is room: walking a task from its last checkpoint to its first decodes each once.
 */
#include "bundle_inside.h"
#include "lossless.h"
#include "memory.h"

static const uint64_t chain_budget = UINT64_C(1) << 30;

static const uint8_t *recall(const icma_part *p, size_t index) {
    return p->chain ? p->chain[index] : NULL;
}

static size_t distance(size_t a, size_t b) {
    return a < b ? b - a : a - b;
}

/* What the next one down needs is nearest. */
static void forget_farthest(icma_part *p, size_t index) {
    size_t farthest = 0;
    for (size_t i = 1; i < p->chain_count; i++)
        if (distance(p->remembered[i], index) > distance(p->remembered[farthest], index))
            farthest = i;
    icma_free(p->chain[p->remembered[farthest]]);
    p->chain[p->remembered[farthest]] = NULL;
    p->remembered[farthest] = p->remembered[--p->chain_count];
}

/* Adds a checkpoint; beyond the budget another makes room. */
static icma_status remember(icma_part *p, size_t index, uint8_t *data, uint64_t size, icma_error *error) {
    size_t most = ICMA_CHAIN_TAPS + 1;
    if (size && chain_budget / size > most)
        most = (size_t)(chain_budget / size);
    if (!p->chain)
        p->chain = icma_alloc_zeroed(p->table.count, sizeof *p->chain);
    if (!p->remembered)
        p->remembered = icma_alloc_array(p->table.count, sizeof *p->remembered);
    if (!p->chain || !p->remembered) {
        icma_free(data);
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a chain of checkpoints");
    }
    if (p->chain_count == most)
        forget_farthest(p, index);
    p->chain[index] = data;
    p->remembered[p->chain_count++] = index;
    return ICMA_OK;
}

/* What the generator makes of the checkpoint, as a further tap. */
static icma_status decode_model(icma_bundle *b, const icma_part *p, const icma_checkpoint *c, uint8_t *data, icma_error *error) {
    icma_status status = icma_bundle_open_decoder(b, p->group, error);
    return status ? status : icma_decoder_model(b->groups[p->group].decoder, &p->table, c, data, error);
}

static icma_status decode_link(icma_bundle *b, uint32_t task, icma_part *p, size_t index, uint8_t *model, uint8_t *data, icma_error *error) {
    const icma_group_state *g = &b->groups[p->group];
    const icma_checkpoint *c = &p->table.list[index];
    const uint8_t *taps[ICMA_CHAIN_TAPS + 1], *payload;
    size_t count = 0, size;
    for (; count < c->taps; count++)
        taps[count] = recall(p, index + 1 + count);
    icma_status status = model ? decode_model(b, p, c, model, error) : ICMA_OK;
    if (model)
        taps[count++] = model;
    bool *coded = icma_alloc_zeroed(g->signature.tensor_count + 1, sizeof *coded);
    if (!coded)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a lossless checkpoint");
    icma_mark_linked(&g->signature, coded);
    icma_lossless_link link = {.signature = &g->signature, .coded = coded, .taps = taps, .tap_count = count};
    if (!status)
        status = icma_part_find_block(b, task, p, ICMA_SECTION_LINK, index, &payload, &size, error);
    if (!status && !payload)
        status = icma_bundle_corrupt(b, error, "a lossless checkpoint is missing");
    if (!status)
        status = icma_lossless_decode(&link, payload, size, data, error);
    icma_free(coded);
    return status ? status : icma_part_read_verbatim(b, task, p, index, data, error);
}

static icma_status decode_and_remember(icma_bundle *b, uint32_t task, icma_part *p, size_t index, icma_error *error) {
    const icma_group_state *g = &b->groups[p->group];
    size_t size = (size_t)g->signature.data_size;
    uint8_t *data = icma_alloc_zeroed(size + 1, 1), *model = NULL;
    icma_status status = data ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a lossless checkpoint");
    if (!status && icma_generator_predicts(&g->generator) && !(model = icma_alloc_zeroed(size + 1, 1)))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a lossless checkpoint");
    if (!status)
        status = decode_link(b, task, p, index, model, data, error);
    icma_free(model);
    if (!status)
        return remember(p, index, data, size, error);
    icma_free(data);
    return status;
}

static bool is_ready(const icma_part *p, size_t index) {
    for (size_t i = 1; i <= p->table.list[index].taps; i++)
        if (!recall(p, index + i))
            return false;
    return true;
}

icma_status icma_chain_decode(icma_bundle *b, uint32_t task, icma_part *p, size_t index, const uint8_t **data, icma_error *error) {
    size_t at = index;
    icma_status status = ICMA_OK;
    *data = recall(p, index);
    if (*data)
        return ICMA_OK;
    while (!is_ready(p, at))
        at++; /* ends at an anchor: the last checkpoint has no taps (icma_checkpoints_read) */
    for (;; at--) {
        if (!recall(p, at))
            status = decode_and_remember(b, task, p, at, error);
        if (status || at == index)
            break;
    }
    *data = status ? NULL : recall(p, index);
    return status;
}
