/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entropy-coded integers (spec 4.10, 4.13): a warp decodes a stream, a lane of the warp is a lane of the stream, so that thousands of streams decode side by side.
 *
 * All lanes take a symbol at once; which of them then need a word, and which word each gets, follows from a ballot. The trellis behind it is a linear recurrence over GF(2), v_n = parity(k_n) + v_(n-3) + v_(n-4): its state
 * is v's last four bits, and 32 steps of it are a product of polynomials. So a warp expands 32 symbols at a time, and parts of 65,536 symbols side by side.
 */
#include "context.cuh"

extern "C" {
#include "memory.h"
#include "rans_host.h"
#include "trellis.h"
}

namespace {

enum { BLOCK = 128, WARPS = BLOCK / ICMA_WARP, SMALL_ALPHABET = 8, COARSE_SLOTS = 1 << ICMA_RANS_COARSE };
static const unsigned full_warp = 0xffffffffu;

/* A shape's table, as icma_rans_model has it. Shapes that are not coarse have at most SMALL_ALPHABET symbols. */
struct shape_table {
    unsigned bits, reach, count;
    uint32_t start[SMALL_ALPHABET + 1], frequency[SMALL_ALPHABET];
    uint32_t slots[COARSE_SLOTS];
};

struct device_run {
    size_t count;
    unsigned shape, shift;
};

struct device_stream {
    size_t offset, size; /* its bytes */
    size_t first;        /* its first symbol */
    size_t run, run_count;
    unsigned lanes;
    int least, largest; /* symbols allowed */
};

/* A run's part of up to 65,536 symbols that is a trellis of its own, or a stretch of symbols without one. */
struct device_part {
    size_t first;
    unsigned count;
    bool trellis;
};

/* --- streams ----------------------------------------------------------------------------------------------------- */

/* A lane's view of its stream. `words` is how many are left, the same in all lanes. */
struct stream_reader {
    const uint8_t *next;
    size_t words;
    uint32_t state;
    unsigned lane, mask; /* mask: bits of the lanes before this one */
    bool good;
};

__device__ __forceinline__ uint32_t word_at(const uint8_t *p) {
    return p[0] | (uint32_t)p[1] << 8;
}

/* Lanes whose state is below the least take a word each, in order. All lanes come here together; `active` ones have a state that counts. */
__device__ __forceinline__ void refill(stream_reader &r, bool active) {
    unsigned need = __ballot_sync(full_warp, active && r.state < ICMA_RANS_LOW), count = (unsigned)__popc(need);
    if (count > r.words) {
        r.good = false; /* in all lanes */
        return;
    }
    if (active && r.state < ICMA_RANS_LOW)
        r.state = r.state << 16 | word_at(r.next + 2 * __popc(need & r.mask));
    r.next += 2 * count;
    r.words -= count;
}

/* A symbol's number, and the state behind it, before its word. */
__device__ __forceinline__ unsigned take_symbol(const shape_table *t, uint32_t *state) {
    uint32_t x = *state;
    if (t->bits == ICMA_RANS_COARSE) {
        uint32_t slot = t->slots[x & (COARSE_SLOTS - 1)];
        *state = (slot >> 20) * (x >> ICMA_RANS_COARSE) + (slot >> 8 & (COARSE_SLOTS - 1));
        return slot & 0xff;
    }
    uint32_t at = x & ((1u << t->bits) - 1);
    unsigned symbol = 0;
    while (symbol + 1 < t->count && t->start[symbol + 1] <= at)
        symbol++;
    *state = t->frequency[symbol] * (x >> t->bits) + at - t->start[symbol];
    return symbol;
}

/* One lane's raw bits, 0 to 16, while the others wait. False: no words. */
__device__ bool take_raw_alone(stream_reader &r, unsigned bits, uint32_t *value) {
    *value = r.state & ((1u << bits) - 1);
    r.state >>= bits;
    if (r.state >= ICMA_RANS_LOW)
        return true;
    if (r.words == 0)
        return false;
    r.state = r.state << 16 | word_at(r.next);
    r.next += 2;
    r.words--;
    return true;
}

__device__ bool take_escape_alone(stream_reader &r, unsigned reach, int64_t *high) {
    uint32_t head, below, above = 0;
    if (!take_raw_alone(r, 6, &head))
        return false;
    unsigned n = head & 31;
    if (n == 31 || !take_raw_alone(r, n > 16 ? 16 : n, &below))
        return false;
    if (n > 16 && !take_raw_alone(r, n - 16, &above))
        return false;
    int64_t distance = ((int64_t)1 << n) + ((int64_t)above << 16) + below;
    *high = head & 32 ? -distance - (int64_t)reach : distance + (int64_t)reach;
    return true;
}

/* What escaped, lane after lane. */
__device__ void take_escapes(stream_reader &r, unsigned escaped, unsigned reach, int64_t *high) {
    while (escaped) {
        unsigned lane = (unsigned)__ffs((int)escaped) - 1;
        size_t before = r.words;
        bool good = true;
        escaped &= escaped - 1;
        if (r.lane == lane)
            good = take_escape_alone(r, reach, high);
        r.good = r.good && __all_sync(full_warp, good);
        unsigned used = __shfl_sync(full_warp, (unsigned)(before - r.words), (int)lane);
        if (r.lane != lane) {
            r.words -= used;
            r.next += 2 * used;
        }
    }
}

/* A group: a symbol for each of the first `count` lanes. */
__device__ __forceinline__ void take_group(stream_reader &r, const shape_table *t, unsigned shift, unsigned count, int least, int largest, int16_t *symbols) {
    bool active = r.lane < count;
    unsigned symbol = active ? take_symbol(t, &r.state) : 0;
    refill(r, active);
    int64_t high = (int64_t)symbol - (int64_t)t->reach;
    unsigned escaped = __ballot_sync(full_warp, active && symbol == t->count - 1);
    if (escaped && r.good)
        take_escapes(r, escaped, t->reach, &high);
    uint32_t low = 0;
    if (shift && r.good) {
        if (active) {
            low = r.state & ((1u << shift) - 1);
            r.state >>= shift;
        }
        refill(r, active);
    }
    int64_t x = high * ((int64_t)1 << shift) + low - ((int64_t)1 << shift >> 1);
    bool in_range = !active || (x <= largest && x >= least);
    r.good = r.good && __all_sync(full_warp, in_range);
    if (active && r.good)
        symbols[r.lane] = (int16_t)x;
}

__device__ bool open_stream(stream_reader &r, const device_stream &s, const uint8_t *data) {
    size_t states = 4 * (size_t)s.lanes;
    r.lane = threadIdx.x % ICMA_WARP;
    r.mask = (1u << r.lane) - 1;
    r.state = ICMA_RANS_LOW;
    if (s.size < states || (s.size - states) % 2)
        return false;
    const uint8_t *own = data + s.offset + 4 * r.lane;
    if (r.lane < s.lanes)
        r.state = word_at(own) | word_at(own + 2) << 16;
    r.next = data + s.offset + states;
    r.words = (s.size - states) / 2;
    return __all_sync(full_warp, r.state >= ICMA_RANS_LOW);
}

__global__ void __launch_bounds__(BLOCK) decode_streams(const device_stream *streams, size_t count, const device_run *runs, const shape_table *shapes, const uint8_t *data, int16_t *symbols, unsigned *damaged) {
    size_t index = (size_t)blockIdx.x * WARPS + threadIdx.x / ICMA_WARP;
    if (index >= count)
        return; /* a whole warp */
    const device_stream s = streams[index];
    stream_reader r;
    r.good = open_stream(r, s, data);
    int16_t *out = symbols + s.first;
    for (size_t k = 0; r.good && k < s.run_count; k++) {
        const device_run run = runs[s.run + k];
        const shape_table *t = &shapes[run.shape];
        for (size_t done = 0; r.good && done < run.count; done += s.lanes) {
            unsigned group = run.count - done < s.lanes ? (unsigned)(run.count - done) : s.lanes;
            take_group(r, t, run.shift, group, s.least, s.largest, out + done);
        }
        out += run.count;
    }
    bool finished = r.good && r.words == 0 && r.state == ICMA_RANS_LOW;
    if (!__all_sync(full_warp, finished) && r.lane == 0)
        atomicMin(damaged, (unsigned)index);
}

/* --- trellis ----------------------------------------------------------------------------------------------------- */

/* The product with 1 / (1 + x^3 + x^4) modulo x^32: with a = x^3 + x^4 that is (1 + a)(1 + a^2)(1 + a^4)(1 + a^8), since a^16 is 0 there. */
__device__ __forceinline__ unsigned divide_by_recurrence(unsigned u) {
    u ^= u << 3 ^ u << 4;
    u ^= u << 6 ^ u << 8;
    u ^= u << 12 ^ u << 16;
    return u ^ u << 24; /* and x^32 */
}

/*
 * Symbols to integers, in place: i_n = 2 k_n + v_(n-1) + v_(n-3) (mod 2), with v as above. v's bits before a word, in its word before, reach over its first four steps.
 */
__global__ void __launch_bounds__(BLOCK) expand_parts(const device_part *parts, size_t count, int16_t *symbols) {
    size_t index = (size_t)blockIdx.x * WARPS + threadIdx.x / ICMA_WARP;
    if (index >= count)
        return; /* a whole warp */
    const device_part p = parts[index];
    unsigned lane = threadIdx.x % ICMA_WARP, before = 0;
    int16_t *at = symbols + p.first;
    for (unsigned first = 0; first < p.count; first += ICMA_WARP) {
        bool inside = first + lane < p.count;
        int k = inside ? at[first + lane] : 0;
        unsigned u = __ballot_sync(full_warp, k & 1);
        unsigned v = divide_by_recurrence(u ^ before >> 29 ^ before >> 28);
        unsigned offset = (v << 1 | before >> 31) ^ (v << 3 | before >> 29); /* bit n: v_(n-1) + v_(n-3) */
        if (inside)
            at[first + lane] = (int16_t)(2 * k + (p.trellis ? (int)(offset >> lane & 1) : 0));
        before = v;
    }
}

/* --- preparing --------------------------------------------------------------------------------------------------- */

/* Lists of what a call decodes. */
struct plan {
    device_stream *streams;
    device_run *runs;
    device_part *parts;
    size_t stream_count, run_count, part_count, bytes, symbols;
};

void plan_free(plan *p) {
    icma_free(p->streams);
    icma_free(p->runs);
    icma_free(p->parts);
}

/* Rooms that suffice: a cut adds a run to each stream, and a part to each 65,536 symbols. */
bool plan_allocate(plan *p, const icma_coded *list, size_t count) {
    size_t streams = 0, runs = 0, parts = 0;
    for (size_t i = 0; i < count; i++) {
        streams += list[i].streams;
        runs += list[i].run_count + list[i].streams;
        parts += list[i].run_count + list[i].total / ICMA_TRELLIS_BLOCK;
    }
    p->streams = (device_stream *)icma_alloc_array(streams + 1, sizeof *p->streams);
    p->runs = (device_run *)icma_alloc_array(runs + 1, sizeof *p->runs);
    p->parts = (device_part *)icma_alloc_array(parts + 1, sizeof *p->parts);
    return p->streams && p->runs && p->parts;
}

void plan_parts(plan *p, const icma_coded *coded) {
    size_t at = p->symbols;
    for (size_t r = 0; r < coded->run_count; at += coded->runs[r++].count)
        for (size_t done = 0, piece; done < coded->runs[r].count; done += piece) {
            piece = icma_least(coded->runs[r].count - done, ICMA_TRELLIS_BLOCK);
            device_part part = {at + done, (unsigned)piece, coded->runs[r].context >= ICMA_TRELLIS_CONTEXT};
            p->parts[p->part_count++] = part;
        }
}

void plan_stream(plan *p, const icma_coded *coded, size_t s, icma_rans_run *cut) {
    size_t first = s * coded->length, end = icma_least(first + coded->length, coded->total), runs = icma_rans_cut(coded->runs, coded->run_count, first, end, cut);
    device_stream stream = {p->bytes + coded->offsets[s] - coded->offsets[0], coded->offsets[s + 1] - coded->offsets[s], p->symbols + first, p->run_count, runs, icma_rans_lanes_of(cut, runs),
                            coded->trellis ? ~ICMA_TRELLIS_LARGEST : INT16_MIN, coded->trellis ? ICMA_TRELLIS_LARGEST : INT16_MAX};
    for (size_t r = 0; r < runs; r++) {
        unsigned shift;
        const icma_rans_shape *shape = icma_rans_shape_of(cut[r].context, &shift);
        device_run run = {cut[r].count, (unsigned)(shape - icma_rans_shapes), shift};
        p->runs[p->run_count++] = run;
    }
    p->streams[p->stream_count++] = stream;
}

icma_status plan_coded(plan *p, const icma_coded *coded, icma_error *error) {
    for (size_t r = 0; r < coded->run_count; r++)
        if (coded->runs[r].context >= icma_rans_contexts())
            return icma_fail(error, ICMA_E_CORRUPT, NULL, "context %u of a coded stream does not exist; there are %u", coded->runs[r].context, icma_rans_contexts());
    icma_rans_run *cut = (icma_rans_run *)icma_alloc_array(coded->run_count + 1, sizeof *cut);
    if (!cut)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory to decode coded streams");
    for (size_t s = 0; s < coded->streams; s++)
        plan_stream(p, coded, s, cut);
    icma_free(cut);
    if (coded->trellis)
        plan_parts(p, coded);
    p->bytes += coded->offsets[coded->streams] - coded->offsets[0];
    p->symbols += coded->total;
    return ICMA_OK;
}

/* --- the op ------------------------------------------------------------------------------------------------------ */

void fill_shape(shape_table *to, const icma_rans_model *from) {
    to->bits = from->bits;
    to->reach = from->reach;
    to->count = from->count;
    for (unsigned s = 0; s < from->count && s < SMALL_ALPHABET; s++) {
        to->start[s] = from->start[s];
        to->frequency[s] = from->frequency[s];
    }
    for (unsigned k = 0; from->bits == ICMA_RANS_COARSE && k < COARSE_SLOTS; k++)
        to->slots[k] = from->slots[k];
}

/* All shapes' tables, 1.7 MB, once. */
icma_status make_models(icma_context *c, icma_error *error) {
    size_t bytes = ICMA_RANS_SHAPES * sizeof(shape_table);
    shape_table *tables = (shape_table *)icma_alloc_zeroed(ICMA_RANS_SHAPES, sizeof *tables);
    icma_rans_model *model = (icma_rans_model *)icma_alloc(sizeof *model);
    icma_status status = tables && model ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the coder's tables");
    for (unsigned context = 0; !status && context < ICMA_RANS_SHAPES; context++) {
        icma_rans_model_fill(model, context); /* the first contexts are the shapes themselves */
        fill_shape(&tables[context], model);
    }
    if (!status && !(c->models = icma_context_allocate(c, bytes)))
        status = icma_context_take(c, error);
    if (!status)
        icma_context_send(c, c->models, tables, bytes);
    icma_free(tables);
    icma_free(model);
    return status;
}

/* Device memory for one call, laid out by take(). */
struct arena {
    uint8_t *base;
    size_t used;
};

void *take(arena *a, size_t bytes) {
    enum { ALIGNMENT = 256 };
    void *at = a->base + a->used;
    a->used += icma_pieces(bytes, ALIGNMENT) * ALIGNMENT;
    return at;
}

void launch_plan(icma_context *c, const plan *p, const icma_coded *list, size_t count, int16_t *symbols) {
    enum { TAILS = 4 * 256 };
    arena a = {NULL, 0};
    a.base = (uint8_t *)icma_context_allocate(c, p->stream_count * sizeof *p->streams + p->run_count * sizeof *p->runs + p->part_count * sizeof *p->parts + p->bytes + TAILS);
    if (!a.base)
        return;
    device_stream *streams = (device_stream *)take(&a, p->stream_count * sizeof *streams);
    device_run *runs = (device_run *)take(&a, p->run_count * sizeof *runs);
    device_part *parts = (device_part *)take(&a, p->part_count * sizeof *parts);
    uint8_t *data = (uint8_t *)take(&a, p->bytes);
    icma_context_send(c, streams, p->streams, p->stream_count * sizeof *streams);
    icma_context_send(c, runs, p->runs, p->run_count * sizeof *runs);
    icma_context_send(c, parts, p->parts, p->part_count * sizeof *parts);
    for (size_t i = 0, at = 0, size; i < count; at += size, i++) {
        size = list[i].offsets[list[i].streams] - list[i].offsets[0];
        icma_context_send(c, data + at, list[i].data + list[i].offsets[0], size);
    }
    icma_context_check(c, cudaMemsetAsync(c->flags, 0xff, sizeof *c->flags, c->stream), "decoding streams");
    if (p->stream_count)
        ICMA_LAUNCH(decode_streams, (unsigned)icma_pieces(p->stream_count, WARPS), BLOCK, c->stream, streams, p->stream_count, runs, (const shape_table *)c->models, data, symbols, c->flags);
    if (p->part_count)
        ICMA_LAUNCH(expand_parts, (unsigned)icma_pieces(p->part_count, WARPS), BLOCK, c->stream, parts, p->part_count, symbols);
    icma_context_launched(c, "decoding streams");
    icma_context_free(c, a.base);
}

icma_status cuda_decode_integers(void *device, const icma_coded *list, size_t count, icma_tensor *integers, size_t first, icma_error *error) {
    icma_context *c = icma_context_of(device);
    plan p = {};
    unsigned damaged = 0;
    icma_status status = icma_context_take(c, error);
    if (!status && !plan_allocate(&p, list, count))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory to decode coded streams");
    for (size_t i = 0; !status && i < count; i++)
        status = plan_coded(&p, &list[i], error);
    if (!status && !c->models)
        status = make_models(c, error);
    if (!status) {
        launch_plan(c, &p, list, count, (int16_t *)integers->data + first);
        status = c->failure ? icma_context_take(c, error) : icma_context_fetch(c, &damaged, c->flags, sizeof damaged, error);
    }
    if (!status && damaged != UINT32_MAX)
        status = icma_fail(error, ICMA_E_CORRUPT, NULL, "a coded stream of %zu bytes is damaged; restore the archive from a copy", p.streams[damaged].size);
    plan_free(&p);
    return status;
}

} /* namespace */

void icma_stream_ops(icma_ops *table) {
    table->decode_integers = cuda_decode_integers;
}
