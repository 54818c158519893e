/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two passes. Streams become 16-bit symbols, a thread a stream: 32-bit ones are there only for streams that are being decoded. Then runs of a trellis become integers, a thread a block of theirs: blocks start
 * in state 0 wherever streams were cut, so that no state has to pass from stream to stream.
 */
#include "coded.h"

#include "memory.h"
#include "trellis.h"

#include <assert.h>

/* Fewer integers than this are not worth waking threads for. */
enum { FEW_INTEGERS = 1 << 18 };

typedef struct stream {
    const uint8_t *data;
    size_t size;
    size_t place, count; /* its symbols, among all */
    size_t first, pieces; /* its runs, or what it has of them: plan.pieces[first] .. */
    bool trellis;
} stream;

typedef struct block {
    size_t place, count;
} block;

typedef struct plan {
    stream *streams;       /* owned */
    icma_rans_run *pieces; /* owned */
    block *blocks;         /* of runs in a context of the trellis; owned */
    size_t stream_count, piece_count, block_count;
    bool threads;
} plan;

size_t icma_coded_total(const icma_coded *list, size_t count) {
    size_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += list[i].total;
    return total;
}

static bool has_states(const icma_coded *c, size_t run) {
    return c->trellis && c->runs[run].context >= ICMA_TRELLIS_CONTEXT;
}

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory to decode integers; close other programs");
}

static icma_status plan_allocate(plan *p, const icma_coded *list, size_t count, icma_error *error) {
    size_t streams = 0, pieces = 0, blocks = 0;
    for (size_t i = 0; i < count; i++) {
        streams += list[i].streams;
        pieces += list[i].streams + list[i].run_count;
        for (size_t r = 0; r < list[i].run_count; r++) {
            if (list[i].runs[r].context >= icma_rans_contexts())
                return icma_fail(error, ICMA_E_CORRUPT, NULL, "context %u of coded integers does not exist; there are %u", list[i].runs[r].context, icma_rans_contexts());
            blocks += has_states(&list[i], r) ? (list[i].runs[r].count + ICMA_TRELLIS_BLOCK - 1) / ICMA_TRELLIS_BLOCK : 0;
        }
    }
    p->streams = icma_alloc_array(streams + 1, sizeof *p->streams);
    p->pieces = icma_alloc_array(pieces + 1, sizeof *p->pieces);
    p->blocks = icma_alloc_array(blocks + 1, sizeof *p->blocks);
    return p->streams && p->pieces && p->blocks ? ICMA_OK : no_memory(error);
}

static void plan_free(plan *p) {
    icma_free(p->streams);
    icma_free(p->pieces);
    icma_free(p->blocks);
}

size_t icma_coded_cut(const icma_coded *c, icma_coded_walk *w, icma_rans_run *out) {
    size_t end = w->at + (c->total - w->at < c->length ? c->total - w->at : c->length), parts = 0;
    while (w->at < end) {
        size_t left = c->runs[w->run].count - w->used, take = left < end - w->at ? left : end - w->at;
        if (take)
            out[parts++] = (icma_rans_run){take, c->runs[w->run].context};
        w->at += take;
        w->used = take == left ? 0 : w->used + take;
        w->run += take == left;
    }
    return parts;
}

static void cut_streams(plan *p, const icma_coded *c, size_t place) {
    icma_coded_walk walk = {0};
    for (size_t s = 0; s < c->streams; s++) {
        size_t at = walk.at, parts = icma_coded_cut(c, &walk, p->pieces + p->piece_count);
        p->streams[p->stream_count++] = (stream){c->data + c->offsets[s], c->offsets[s + 1] - c->offsets[s], place + at, walk.at - at, p->piece_count, parts, c->trellis};
        p->piece_count += parts;
    }
    assert(walk.at == c->total);
}

static void cut_blocks(plan *p, const icma_coded *c, size_t place) {
    for (size_t r = 0; r < c->run_count; place += c->runs[r++].count)
        for (size_t first = 0; has_states(c, r) && first < c->runs[r].count; first += ICMA_TRELLIS_BLOCK) {
            size_t left = c->runs[r].count - first;
            p->blocks[p->block_count++] = (block){place + first, left < ICMA_TRELLIS_BLOCK ? left : ICMA_TRELLIS_BLOCK};
        }
}

/* To 16 bits, doubled where an integer is 2 k. False if a symbol is out of range; both ranges are -2^n .. 2^n - 1. */
static bool narrow(const int32_t *symbols, size_t count, bool trellis, bool doubled, int16_t *out) {
    uint32_t all = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t symbol = (uint32_t)symbols[i];
        all |= symbols[i] < 0 ? ~symbol : symbol;
        out[i] = (int16_t)(symbol << doubled);
    }
    return all <= (trellis ? (uint32_t)ICMA_TRELLIS_LARGEST : (uint32_t)INT16_MAX);
}

static icma_status decode_stream(const plan *p, const stream *s, int16_t *out, icma_error *error) {
    int32_t *symbols = icma_alloc_array(s->count + 1, sizeof *symbols);
    const icma_rans_run *pieces = p->pieces + s->first;
    icma_status status = symbols ? icma_rans_decode(s->data, s->size, pieces, s->pieces, symbols, error) : no_memory(error);
    bool fits = true;
    for (size_t r = 0, at = 0; !status && r < s->pieces; at += pieces[r++].count)
        fits = narrow(symbols + at, pieces[r].count, s->trellis, s->trellis && pieces[r].context < ICMA_TRELLIS_CONTEXT, out + s->place + at) && fits;
    icma_free(symbols);
    return fits ? status : icma_fail(error, ICMA_E_CORRUPT, NULL, "a coded integer is out of range; restore the archive from a copy");
}

static icma_status decode_streams(const plan *p, int16_t *out, icma_error *error) {
    size_t failed = SIZE_MAX;
    icma_error first = {0};
#pragma omp parallel for schedule(dynamic) num_threads(icma_threads()) if (p->threads && p->stream_count > 1)
    for (size_t s = 0; s < p->stream_count; s++) {
        icma_error own = {0};
        if (decode_stream(p, &p->streams[s], out, &own)) {
#pragma omp critical(icma_coded_failed)
            if (s < failed) {
                failed = s;
                first = own;
            }
        }
    }
    return failed == SIZE_MAX ? ICMA_OK : icma_fail(error, first.status, NULL, "%s", first.message);
}

static void expand_blocks(const plan *p, int16_t *out) {
#pragma omp parallel for schedule(dynamic) num_threads(icma_threads()) if (p->threads && p->block_count > 1)
    for (size_t b = 0; b < p->block_count; b++)
        icma_trellis_expand_block(out + p->blocks[b].place, p->blocks[b].count);
}

icma_status icma_coded_decode(const icma_coded *list, size_t count, int16_t *out, icma_error *error) {
    plan p = {.threads = icma_coded_total(list, count) > FEW_INTEGERS};
    icma_status status = plan_allocate(&p, list, count, error);
    for (size_t i = 0, place = 0; !status && i < count; place += list[i++].total) {
        cut_streams(&p, &list[i], place);
        cut_blocks(&p, &list[i], place);
    }
    if (!status)
        status = decode_streams(&p, out, error);
    if (!status)
        expand_blocks(&p, out);
    plan_free(&p);
    return status;
}
