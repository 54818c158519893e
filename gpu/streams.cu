/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entropy-coded integers (spec 4.10, 4.13): a warp decodes a stream, a lane of the warp is a lane of the
 * stream, so that thousands of streams decode side by side. What counts is the time from one symbol of a lane
 * to its next: tables lie in shared memory, and words are in registers before they are needed.
 *
 * All lanes take a symbol at once; which of them then need a word, and which word each gets, follows from a
 * ballot. A stream of one lane is decoded by all lanes of the warp alike, without ballots. The trellis behind
 * it is a linear recurrence over GF(2), v_n = parity(k_n) + v_(n-3) + v_(n-4): its state is v's last four
 * bits, and 32 steps of it are a product of polynomials. So a warp expands 32 symbols at a time, and parts of
 * 65,536 symbols side by side.
 */
#include "context.cuh"

extern "C" {
#include "coded.h"
#include "memory.h"
#include "rans_host.h"
#include "trellis.h"
}

namespace {

enum { BLOCK = 64, WARPS = BLOCK / ICMA_WARP, SMALL_ALPHABET = 8, COARSE_SLOTS = 1 << ICMA_RANS_COARSE };
static const unsigned full_warp = 0xffffffffu;

/* A shape's table, as icma_rans_model has it. Shapes that are not coarse have at most SMALL_ALPHABET symbols.
 */
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

/* --- streams -------------------------------------------------------------------------------------------- */

__device__ __forceinline__ uint32_t word_at(const uint8_t *p) {
    return p[0] | (uint32_t)p[1] << 8;
}

/*
 * The words of a stream, the same for all lanes. Lane l holds word l of the next 32 in the lower half of
 * `packed`, of the 32 after these in the upper half, and of those behind in `ahead`, on its way from memory;
 * `used` of the first 32 are taken already.
 */
struct word_source {
    const uint8_t *from;
    size_t total, loaded, left;
    unsigned used, lane;
    uint32_t packed, ahead;
};

__device__ __forceinline__ uint32_t load_word(const word_source &w, size_t first) {
    return first + w.lane < w.total ? word_at(w.from + 2 * (first + w.lane)) : 0;
}

__device__ __forceinline__ void open_words(word_source &w, const uint8_t *from, size_t total) {
    w.from = from;
    w.total = w.left = total;
    w.lane = threadIdx.x % ICMA_WARP;
    w.used = 0;
    w.packed = load_word(w, 0) | load_word(w, ICMA_WARP) << 16;
    w.ahead = load_word(w, 2 * ICMA_WARP);
    w.loaded = 3 * ICMA_WARP;
}

__device__ __forceinline__ void take_words(word_source &w, unsigned count) {
    w.left -= count;
    w.used += count;
    if (w.used < ICMA_WARP)
        return;
    w.used -= ICMA_WARP;
    w.packed = w.packed >> 16 | w.ahead << 16;
    w.ahead = load_word(w, w.loaded);
    w.loaded += ICMA_WARP;
}

/* A table as a warp uses it. */
struct symbol_table {
    unsigned bits, reach, count;
    uint32_t zero_start, zero_frequency;       /* of symbol 0, which nearly all are where tables are fine */
    const uint32_t *slots, *start, *frequency; /* in shared memory */
};

/* A symbol's number, and the state behind it, before its word. */
__device__ __forceinline__ unsigned take_symbol(const symbol_table &t, uint32_t *state) {
    uint32_t x = *state;
    if (t.bits == ICMA_RANS_COARSE) {
        uint32_t slot = t.slots[x & (COARSE_SLOTS - 1)];
        *state = (slot >> 20) * (x >> ICMA_RANS_COARSE) + (slot >> 8 & (COARSE_SLOTS - 1));
        return slot & 0xff;
    }
    uint32_t at = x & ((1u << t.bits) - 1);
    if (at - t.zero_start < t.zero_frequency) {
        *state = t.zero_frequency * (x >> t.bits) + at - t.zero_start;
        return t.reach;
    }
    unsigned symbol = 0;
    while (symbol + 1 < t.count && t.start[symbol + 1] <= at)
        symbol++;
    *state = t.frequency[symbol] * (x >> t.bits) + at - t.start[symbol];
    return symbol;
}

/* A word for one state that all lanes hold alike. False: there is none. */
__device__ __forceinline__ bool refill_alike(word_source &w, uint32_t *state) {
    if (*state >= ICMA_RANS_LOW)
        return true;
    if (w.left == 0)
        return false;
    *state = *state << 16 | (__shfl_sync(full_warp, w.packed, (int)w.used) & 0xffff);
    take_words(w, 1);
    return true;
}

/* 0 to 16 bits, likewise. */
__device__ __forceinline__ bool take_raw_alike(word_source &w, uint32_t *state, unsigned bits,
                                               uint32_t *value) {
    *value = *state & ((1u << bits) - 1);
    *state >>= bits;
    return refill_alike(w, state);
}

__device__ bool take_escape_alike(word_source &w, uint32_t *state, unsigned reach, int64_t *high) {
    uint32_t head, below, above = 0;
    if (!take_raw_alike(w, state, 6, &head))
        return false;
    unsigned n = head & 31;
    if (n == 31 || !take_raw_alike(w, state, n > 16 ? 16 : n, &below))
        return false;
    if (n > 16 && !take_raw_alike(w, state, n - 16, &above))
        return false;
    int64_t distance = ((int64_t)1 << n) + ((int64_t)above << 16) + below;
    *high = head & 32 ? -distance - (int64_t)reach : distance + (int64_t)reach;
    return true;
}

/* Lanes whose state is below the least take a word each, in order. False, in all lanes: there are too few. */
__device__ __forceinline__ bool refill(word_source &w, bool active, uint32_t *state) {
    bool needs = active && *state < ICMA_RANS_LOW;
    unsigned need = __ballot_sync(full_warp, needs), count = (unsigned)__popc(need);
    if (count == 0)
        return true;
    if (count > w.left)
        return false;
    unsigned at = w.used + (unsigned)__popc(need & ((1u << w.lane) - 1));
    uint32_t both = __shfl_sync(full_warp, w.packed, (int)(at % ICMA_WARP)),
             word = at < ICMA_WARP ? both & 0xffff : both >> 16;
    if (needs)
        *state = *state << 16 | word;
    take_words(w, count);
    return true;
}

/* What escaped, lane after lane; meanwhile all lanes do as that one. */
__device__ bool take_escapes(word_source &w, unsigned escaped, unsigned reach, uint32_t *state,
                             int64_t *high) {
    for (; escaped; escaped &= escaped - 1) {
        int lane = __ffs((int)escaped) - 1;
        uint32_t its = __shfl_sync(full_warp, *state, lane);
        int64_t value;
        if (!take_escape_alike(w, &its, reach, &value))
            return false;
        if (w.lane == (unsigned)lane) {
            *state = its;
            *high = value;
        }
    }
    return true;
}

/* A part of a stream: a run, with the table that is loaded. */
struct run_job {
    size_t count;
    unsigned shift, lanes;
    int least, largest;
    int16_t *out;
};

__device__ __forceinline__ bool in_range(const run_job &job, int64_t x) {
    return x >= job.least && x <= job.largest;
}

__device__ __forceinline__ int64_t join(int64_t high, uint32_t low, unsigned shift) {
    return high * ((int64_t)1 << shift) + low - ((int64_t)1 << shift >> 1);
}

/* One lane: every lane of the warp keeps one of 32 symbols, and then all are stored together. */
__device__ bool take_run_alike(word_source &w, const symbol_table &t, const run_job &job, uint32_t *state) {
    int16_t mine = 0;
    for (size_t i = 0; i < job.count; i++) {
        unsigned symbol = take_symbol(t, state);
        int64_t high = (int64_t)symbol - (int64_t)t.reach;
        uint32_t low = 0;
        if (!refill_alike(w, state) ||
            (symbol == t.count - 1 && !take_escape_alike(w, state, t.reach, &high)) ||
            (job.shift && !take_raw_alike(w, state, job.shift, &low)))
            return false;
        int64_t x = join(high, low, job.shift);
        if (!in_range(job, x))
            return false;
        unsigned at = (unsigned)i % ICMA_WARP;
        mine = at == w.lane ? (int16_t)x : mine;
        if ((at == ICMA_WARP - 1 || i + 1 == job.count) && w.lane <= at)
            job.out[i - at + w.lane] = mine;
    }
    return true;
}

/* Groups of a symbol a lane; the last one may be smaller. */
__device__ bool take_run(word_source &w, const symbol_table &t, const run_job &job, uint32_t *state) {
    for (size_t done = 0; done < job.count; done += job.lanes) {
        bool active = w.lane < job.lanes && done + w.lane < job.count;
        unsigned symbol = active ? take_symbol(t, state) : 0;
        int64_t high = (int64_t)symbol - (int64_t)t.reach;
        uint32_t low = 0;
        if (!refill(w, active, state))
            return false;
        unsigned escaped = __ballot_sync(full_warp, active && symbol == t.count - 1);
        if (escaped && !take_escapes(w, escaped, t.reach, state, &high))
            return false;
        if (job.shift) {
            low = *state & ((1u << job.shift) - 1);
            *state = active ? *state >> job.shift : *state;
            if (!refill(w, active, state))
                return false;
        }
        int64_t x = join(high, low, job.shift);
        if (active)
            job.out[done + w.lane] = (int16_t)x;
        if ((escaped || job.shift) && !__all_sync(full_warp, !active || in_range(job, x)))
            return false; /* without either, symbols are within the reach of a table */
    }
    return true;
}

/* A shape's table to the warp's shared memory. */
__device__ void load_table(const shape_table *from, uint32_t *slots, uint32_t *small, symbol_table &t) {
    unsigned lane = threadIdx.x % ICMA_WARP;
    __syncwarp(full_warp);
    for (unsigned k = lane; from->bits == ICMA_RANS_COARSE && k < COARSE_SLOTS; k += ICMA_WARP)
        slots[k] = from->slots[k];
    if (lane < SMALL_ALPHABET) {
        small[lane] = from->start[lane];
        small[SMALL_ALPHABET + 1 + lane] = from->frequency[lane];
    }
    __syncwarp(full_warp);
    t.bits = from->bits;
    t.reach = from->reach;
    t.count = from->count;
    t.slots = slots;
    t.start = small;
    t.frequency = small + SMALL_ALPHABET + 1;
    t.zero_start = t.bits == ICMA_RANS_COARSE ? 0 : t.start[t.reach];
    t.zero_frequency = t.bits == ICMA_RANS_COARSE ? 0 : t.frequency[t.reach];
}

/* The state of this lane, and the words behind the states. */
__device__ bool open_stream(word_source &w, const device_stream &s, const uint8_t *data, uint32_t *state) {
    size_t states = 4 * (size_t)s.lanes;
    unsigned lane = threadIdx.x % ICMA_WARP, own = s.lanes == 1 ? 0 : lane;
    *state = ICMA_RANS_LOW;
    if (s.size < states || (s.size - states) % 2)
        return false;
    const uint8_t *at = data + s.offset;
    if (own < s.lanes)
        *state = word_at(at + 4 * own) | word_at(at + 4 * own + 2) << 16;
    open_words(w, at + states, (s.size - states) / 2);
    return __all_sync(full_warp, *state >= ICMA_RANS_LOW);
}

__global__ void __launch_bounds__(BLOCK)
    decode_streams(const device_stream *streams, size_t count, const device_run *runs,
                   const shape_table *shapes, const uint8_t *data, int16_t *symbols, unsigned *damaged) {
    __shared__ uint32_t slots[WARPS][COARSE_SLOTS], small[WARPS][2 * SMALL_ALPHABET + 1];
    unsigned warp = threadIdx.x / ICMA_WARP, loaded = UINT32_MAX;
    size_t index = (size_t)blockIdx.x * WARPS + warp;
    if (index >= count)
        return; /* a whole warp */
    const device_stream s = streams[index];
    word_source w = {};
    symbol_table t = {};
    uint32_t state;
    bool good = open_stream(w, s, data, &state);
    int16_t *out = symbols + s.first;
    for (size_t k = 0; good && k < s.run_count; k++) {
        const device_run run = runs[s.run + k];
        run_job job = {run.count, run.shift, s.lanes, s.least, s.largest, out};
        if (run.shape != loaded)
            load_table(&shapes[loaded = run.shape], slots[warp], small[warp], t);
        good = s.lanes == 1 ? take_run_alike(w, t, job, &state) : take_run(w, t, job, &state);
        out += run.count;
    }
    if (!__all_sync(full_warp, good && w.left == 0 && state == ICMA_RANS_LOW) && threadIdx.x % ICMA_WARP == 0)
        atomicMin(damaged, (unsigned)index);
}

/* --- trellis -------------------------------------------------------------------------------------------- */

/* The product with 1 / (1 + x^3 + x^4) modulo x^32: with a = x^3 + x^4 that is (1 + a)(1 + a^2)(1 + a^4)(1 +
 * a^8), since a^16 is 0 there. */
__device__ __forceinline__ unsigned divide_by_recurrence(unsigned u) {
    u ^= u << 3 ^ u << 4;
    u ^= u << 6 ^ u << 8;
    u ^= u << 12 ^ u << 16;
    return u ^ u << 24; /* and x^32 */
}

/*
 * Symbols to integers, in place: i_n = 2 k_n + v_(n-1) + v_(n-3) (mod 2), with v as above. v's bits before a
 * word, in its word before, reach over its first four steps.
 */
__global__ void __launch_bounds__(BLOCK)
    expand_parts(const device_part *parts, size_t count, int16_t *symbols) {
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

/* --- preparing ------------------------------------------------------------------------------------------ */

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

void plan_stream(plan *p, const icma_coded *coded, size_t s, icma_coded_walk *walk, icma_rans_run *cut) {
    size_t first = walk->at, runs = icma_coded_cut(coded, walk, cut);
    device_stream stream = {p->bytes + coded->offsets[s] - coded->offsets[0],
                            coded->offsets[s + 1] - coded->offsets[s],
                            p->symbols + first,
                            p->run_count,
                            runs,
                            icma_rans_lanes_of(cut, runs),
                            coded->trellis ? ~ICMA_TRELLIS_LARGEST : INT16_MIN,
                            coded->trellis ? ICMA_TRELLIS_LARGEST : INT16_MAX};
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
            return icma_fail(error, ICMA_E_CORRUPT, NULL,
                             "context %u of a coded stream does not exist; there are %u",
                             coded->runs[r].context, icma_rans_contexts());
    icma_rans_run *cut = (icma_rans_run *)icma_alloc_array(coded->run_count + 1, sizeof *cut);
    if (!cut)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory to decode coded streams");
    icma_coded_walk walk = {};
    for (size_t s = 0; s < coded->streams; s++)
        plan_stream(p, coded, s, &walk, cut);
    icma_free(cut);
    if (coded->trellis)
        plan_parts(p, coded);
    p->bytes += coded->offsets[coded->streams] - coded->offsets[0];
    p->symbols += coded->total;
    return ICMA_OK;
}

/* --- the op --------------------------------------------------------------------------------------------- */

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
    icma_status status =
        tables && model ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the coder's tables");
    for (unsigned context = 0; !status && context < ICMA_RANS_SHAPES; context++) {
        icma_rans_model_fill(model, context); /* the first contexts are the shapes themselves */
        fill_shape(&tables[context], model);
    }
    if (!status && !(c->models = icma_context_allocate(c, bytes)))
        status = icma_context_take(c, error);
    if (!status)
        icma_context_send(c, c->models, tables, bytes);
    if (!status && c->failure) {
        icma_context_free(c, c->models);
        c->models = NULL;
        status = icma_context_take(c, error);
    }
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
    a.base = (uint8_t *)icma_context_allocate(c, p->stream_count * sizeof *p->streams +
                                                     p->run_count * sizeof *p->runs +
                                                     p->part_count * sizeof *p->parts + p->bytes + TAILS);
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
    if (c->failure) { /* what was to be sent is not there */
        icma_context_free(c, a.base);
        return;
    }
    if (p->stream_count)
        ICMA_LAUNCH(decode_streams, (unsigned)icma_pieces(p->stream_count, WARPS), BLOCK, c->stream, streams,
                    p->stream_count, runs, (const shape_table *)c->models, data, symbols, c->flags);
    if (p->part_count)
        ICMA_LAUNCH(expand_parts, (unsigned)icma_pieces(p->part_count, WARPS), BLOCK, c->stream, parts,
                    p->part_count, symbols);
    icma_context_launched(c, "decoding streams");
    icma_context_free(c, a.base);
}

icma_status cuda_decode_integers(void *device, const icma_coded *list, size_t count, icma_tensor *integers,
                                 size_t first, icma_error *error) {
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
        status = c->failure ? icma_context_take(c, error)
                            : icma_context_fetch(c, &damaged, c->flags, sizeof damaged, error);
    }
    if (!status && damaged != UINT32_MAX)
        status = icma_fail(error, ICMA_E_CORRUPT, NULL,
                           "a coded stream of %zu bytes is damaged; restore the archive from a copy",
                           p.streams[damaged].size);
    plan_free(&p);
    return status;
}

} /* namespace */

void icma_stream_ops(icma_ops *table) {
    table->decode_integers = cuda_decode_integers;
}
