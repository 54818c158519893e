/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Convolutions, batch norm, ELU and Adam of the fast table: how work is cut for kernels and threads. Exact
 * ops may be cut anywhere, since every output is a chain of its own; sums of training ops are cut by shapes
 * alone and added up in a fixed order, so that no result depends on the number of threads.
 */
#include "ops_host.h"

#include <math.h>

/* Below this many multiply-adds, or elements, an op is not worth waking threads for. */
enum { SMALL_CONV = 1 << 18, SMALL_SPAN = 1 << 15 };

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

static size_t most(size_t a, size_t b) {
    return a > b ? a : b;
}

static size_t pieces_of(size_t count, size_t piece) {
    return (count + piece - 1) / piece;
}

/* --- convolutions --------------------------------------------------------------------------------------- */

/*
 * A convolution, or the outputs of one parity of a transposed one: position m of a sequence, m = 0 ..
 * positions - 1, is the chain over k = 0 .. taps - 1 of x's row scale * m + shift + direction * k and tap
 * first_tap + k * tap_step of w, where that row exists, and lies in y's row out_scale * m + out_shift.
 */
typedef struct lattice {
    size_t positions, taps, first_tap, tap_step, out_scale, out_shift;
    ptrdiff_t scale, shift, direction;
} lattice;

typedef struct convolution {
    const icma_conv_kernels *kernels;
    icma_conv shape;
    icma_matrix x, w, bias, y;
    size_t parts; /* 1 or 2 lattices of equally many positions */
    lattice part[2];
} convolution;

/* Outputs first .. first + count - 1 at `positions` positions from m on, taps k = tap .. tap + taps - 1, all
 * of which exist. */
static void convolve_run(const convolution *c, const lattice *at, size_t sequence, size_t m, size_t positions,
                         size_t tap, size_t taps, size_t first, size_t count) {
    size_t length = c->x.rows / c->shape.batch, inputs = c->x.columns, rows_y = c->y.rows / c->shape.batch;
    ptrdiff_t row = taps ? at->scale * (ptrdiff_t)m + at->shift + at->direction * (ptrdiff_t)tap : 0;
    icma_conv_run run = {
        .positions = positions,
        .taps = taps,
        .inputs = inputs,
        .outputs = count,
        .x = icma_row(c->x, sequence * length + (size_t)row),
        .x_position = at->scale * (ptrdiff_t)c->x.stride,
        .x_tap = at->direction * (ptrdiff_t)c->x.stride,
        .x_input = 1,
        .w = icma_row(c->w, (at->first_tap + tap * at->tap_step) * inputs) + first,
        .w_tap = at->tap_step * inputs * c->w.stride,
        .w_row = c->w.stride,
        .bias = c->bias.tensor ? icma_row(c->bias, 0) + first : NULL,
        .y = icma_row(c->y, sequence * rows_y + at->out_scale * m + at->out_shift) + first,
        .y_position = (ptrdiff_t)(at->out_scale * c->y.stride),
    };
    enum { FEW_OUTPUTS = 4, MANY_POSITIONS = 16 };
    if (count <= FEW_OUTPUTS && positions >= MANY_POSITIONS && run.x_tap == run.x_position &&
        inputs <= ICMA_NARROW_INPUTS && taps <= ICMA_NARROW_TAPS) {
        c->kernels->narrow(&run);
        return;
    }
    /* One channel: its taps are as good as inputs. Channels without gaps: so are taps and inputs together. */
    if (inputs == 1 || (run.x_tap == (ptrdiff_t)inputs && run.w_tap == inputs * run.w_row)) {
        run.x_input = inputs == 1 ? run.x_tap : 1;
        run.w_row = inputs == 1 ? run.w_tap : run.w_row;
        run.inputs = taps * inputs;
        run.taps = 1;
    }
    c->kernels->conv(&run);
}

/* At the ends of a sequence positions lack taps: one position at a time. */
static void convolve_edge(const convolution *c, const lattice *at, size_t sequence, size_t m, size_t first,
                          size_t count) {
    ptrdiff_t length = (ptrdiff_t)(c->x.rows / c->shape.batch), start = at->scale * (ptrdiff_t)m + at->shift;
    size_t tap = 0, end = at->taps;
    while (tap < end &&
           (start + at->direction * (ptrdiff_t)tap < 0 || start + at->direction * (ptrdiff_t)tap >= length))
        tap++;
    while (end > tap && (start + at->direction * (ptrdiff_t)(end - 1) < 0 ||
                         start + at->direction * (ptrdiff_t)(end - 1) >= length))
        end--;
    convolve_run(c, at, sequence, m, 1, tap, end - tap, first, count);
}

/* Positions *inner .. *outer - 1 have all taps. */
static void whole_positions(const convolution *c, const lattice *at, size_t *inner, size_t *outer) {
    ptrdiff_t length = (ptrdiff_t)(c->x.rows / c->shape.batch),
              reach = at->direction * ((ptrdiff_t)at->taps - 1);
    ptrdiff_t low = at->shift + (reach < 0 ? reach : 0),
              high = length - 1 - at->shift - (reach > 0 ? reach : 0);
    *inner = least(low < 0 ? (size_t)((at->scale - 1 - low) / at->scale) : 0, at->positions);
    *outer = most(*inner, high < 0 ? 0 : least((size_t)(high / at->scale) + 1, at->positions));
}

/* Positions from .. to - 1 of one sequence. */
static void convolve_piece(const convolution *c, const lattice *at, size_t sequence, size_t from, size_t to,
                           size_t first, size_t count) {
    size_t inner, outer;
    whole_positions(c, at, &inner, &outer);
    inner = most(from, least(inner, to));
    outer = most(inner, least(outer, to));
    for (size_t m = from; m < inner; m++)
        convolve_edge(c, at, sequence, m, first, count);
    if (outer > inner)
        convolve_run(c, at, sequence, inner, outer - inner, 0, at->taps, first, count);
    for (size_t m = outer; m < to; m++)
        convolve_edge(c, at, sequence, m, first, count);
}

enum { PANEL = 64 };

/* Whole register tiles of positions whose part of x stays in the second cache beside a panel of weights, and
 * few enough of them for many items to share out. */
static size_t piece_positions(const convolution *c, size_t panels) {
    enum { PIECE = 1 << 15, ITEMS = 64, TILE = 12, LEAST_PIECE = 4 * TILE, MOST_PIECE = 170 * TILE };
    size_t fit = PIECE / most((size_t)c->part[0].scale * c->x.columns, 1),
           share = c->shape.batch * c->part[0].positions * panels / ITEMS;
    return least(most(least(fit, share) / TILE * TILE, LEAST_PIECE), MOST_PIECE);
}

static void convolve(const convolution *c) {
    size_t positions = c->part[0].positions, panels = pieces_of(c->y.columns, PANEL),
           piece = piece_positions(c, panels), pieces = pieces_of(positions, piece);
    size_t items = c->shape.batch * pieces * panels;
#pragma omp parallel for schedule(dynamic)                                                                   \
    num_threads(icma_threads()) if (c->y.rows * c->w.rows * c->w.columns >= SMALL_CONV && items > 1)
    for (size_t item = 0; item < items; item++) {
        size_t first = item % panels * PANEL, from = item / panels % pieces * piece;
        for (size_t k = 0; k < c->parts; k++)
            convolve_piece(c, &c->part[k], item / panels / pieces, from, least(from + piece, positions),
                           first, least(PANEL, c->y.columns - first));
    }
}

static void convolve_strided(const icma_conv_kernels *kernels, icma_conv shape, size_t stride, icma_matrix x,
                             icma_matrix w, icma_matrix bias, icma_matrix y) {
    assert(shape.width % 2 == 1 && w.rows == shape.width * x.columns && w.columns == y.columns &&
           x.rows == stride * y.rows && y.rows % shape.batch == 0);
    const lattice all = {
        .positions = y.rows / shape.batch,
        .taps = shape.width,
        .tap_step = 1,
        .out_scale = 1,
        .scale = (ptrdiff_t)stride,
        .shift = -(ptrdiff_t)(shape.width / 2),
        .direction = 1,
    };
    const convolution c = {kernels, shape, x, w, bias, y, 1, {all}};
    convolve(&c);
}

static void cpu_conv_down(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix y) {
    convolve_strided(device, shape, 2, x, w, (icma_matrix){0}, y);
}

static void cpu_conv(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix bias,
                     icma_matrix y) {
    convolve_strided(device, shape, 1, x, w, bias, y);
}

/* Output 2 m + e takes x[p] by tap t where 2 p + t - P = 2 m + e: every other tap, and p falls as t rises. */
static void cpu_conv_up(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix bias,
                        icma_matrix y) {
    assert(shape.width % 2 == 1 && w.rows == shape.width * x.columns && w.columns == y.columns &&
           y.rows == 2 * x.rows && x.rows % shape.batch == 0);
    size_t padding = shape.width / 2;
    convolution c = {device, shape, x, w, bias, y, 2, {{0}}};
    for (size_t e = 0; e < 2; e++) {
        size_t first = (e + padding) % 2;
        c.part[e] = (lattice){
            .positions = x.rows / shape.batch,
            .taps = shape.width > first ? (shape.width - first + 1) / 2 : 0,
            .first_tap = first,
            .tap_step = 2,
            .out_scale = 2,
            .out_shift = e,
            .scale = 1,
            .shift = (ptrdiff_t)((e + padding - first) / 2),
            .direction = -1,
        };
    }
    convolve(&c);
}

static void cpu_conv_up_training(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix y) {
    cpu_conv_up(device, shape, x, w, (icma_matrix){0}, y);
}

static void cpu_turn_weights(void *device, icma_conv shape, icma_matrix w, bool flip, icma_matrix out) {
    (void)device;
    enum { BLOCK = 16 };
    size_t inputs = w.rows / shape.width, blocks = pieces_of(inputs, BLOCK), items = shape.width * blocks;
    assert(w.rows == shape.width * inputs && out.rows == shape.width * w.columns && out.columns == inputs);
#pragma omp parallel for schedule(static) num_threads(icma_threads()) if (w.rows * w.columns >= SMALL_SPAN)
    for (size_t item = 0; item < items; item++) {
        size_t t = item / blocks, first = item % blocks * BLOCK, count = least(BLOCK, inputs - first);
        const float *from = icma_row(w, t * inputs + first);
        for (size_t o = 0; o < w.columns; o++) {
            float *to = icma_row(out, (flip ? shape.width - 1 - t : t) * w.columns + o) + first;
            for (size_t i = 0; i < count; i++)
                to[i] = from[i * w.stride + o];
        }
    }
}

/* --- gradients of weights ------------------------------------------------------------------------------- */

/*
 * Sums of outer products, tap by tap: of a row of the "row side" and a row of the "vector side", one of x and
 * y each. The vector side has many channels, and where there is a choice those which g has side by side. A
 * row side of few channels leaves registers empty; its taps are then taken together, as if they were channels
 * (`tap_rows`).
 *
 * Where weights are few, chunks of positions sum into parts of the scratch of their own, for threads; where
 * they are many, threads share the weights out and each goes through all positions.
 */
typedef struct weight_plan {
    const icma_conv_kernels *kernels;
    icma_matrix rows, vectors;  /* the two sides */
    size_t batch, taps, length; /* length: positions of a sequence that are gone through */
    ptrdiff_t row_scale, row_shift, row_tap, vector_scale, vector_shift,
        vector_tap; /* tap t at position p: row scale * p + shift + tap * t of either */
    bool tap_rows;
    ptrdiff_t out_tap, out_row,
        out_column; /* as multiples of 1 and of g's stride, set for a part by place() */
    size_t block, blocks, units, unit_rows;
} weight_plan;

/* Positions of tap t at which both sides have a row. */
static void tap_range(const weight_plan *g, size_t t, size_t *from, size_t *to) {
    ptrdiff_t limit_rows = (ptrdiff_t)(g->rows.rows / g->batch),
              limit_vectors = (ptrdiff_t)(g->vectors.rows / g->batch);
    ptrdiff_t row = g->row_shift + g->row_tap * (ptrdiff_t)t,
              vector = g->vector_shift + g->vector_tap * (ptrdiff_t)t;
    size_t low = most(row < 0 ? (size_t)((g->row_scale - 1 - row) / g->row_scale) : 0,
                      vector < 0 ? (size_t)((g->vector_scale - 1 - vector) / g->vector_scale) : 0);
    ptrdiff_t high_rows = limit_rows - 1 - row, high_vectors = limit_vectors - 1 - vector;
    size_t high = least(high_rows < 0 ? 0 : (size_t)(high_rows / g->row_scale) + 1,
                        high_vectors < 0 ? 0 : (size_t)(high_vectors / g->vector_scale) + 1);
    *from = least(low, g->length);
    *to = most(*from, least(high, g->length));
}

/* Positions from .. to - 1 of a sequence, taps t .. t + taps - 1, row-side channels r .. r + rows - 1. Either
 * `taps` or `rows` is 1. */
static void add_outer(const weight_plan *g, size_t sequence, size_t from, size_t to, size_t t, size_t taps,
                      size_t r, size_t rows, float *out, bool fresh) {
    if (to <= from && !fresh)
        return;
    size_t length_rows = g->rows.rows / g->batch, length_vectors = g->vectors.rows / g->batch;
    ptrdiff_t row = to > from ? g->row_scale * (ptrdiff_t)from + g->row_shift + g->row_tap * (ptrdiff_t)t : 0;
    ptrdiff_t vector =
        to > from ? g->vector_scale * (ptrdiff_t)from + g->vector_shift + g->vector_tap * (ptrdiff_t)t : 0;
    const icma_outer_run run = {
        .positions = to > from ? to - from : 0,
        .rows = taps > 1 ? taps : rows,
        .columns = g->vectors.columns,
        .a = icma_row(g->rows, sequence * length_rows + (size_t)row) + r,
        .a_position = g->row_scale * (ptrdiff_t)g->rows.stride,
        .a_row = taps > 1 ? g->row_tap * (ptrdiff_t)g->rows.stride : 1,
        .b = icma_row(g->vectors, sequence * length_vectors + (size_t)vector),
        .b_position = g->vector_scale * (ptrdiff_t)g->vectors.stride,
        .out = out + (ptrdiff_t)t * g->out_tap + (ptrdiff_t)r * g->out_row,
        .out_row = taps > 1 ? g->out_tap : g->out_row,
        .out_column = g->out_column,
        .fresh = fresh,
    };
    g->kernels->outer(&run);
}

/* All taps of row-side channel r: together where all exist, then one by one what is left at the ends of the
 * sequence. */
static void add_taps(const weight_plan *g, size_t sequence, size_t from, size_t to, size_t r, float *out,
                     bool fresh) {
    size_t inner = from, outer = to, low, high;
    for (size_t t = 0; t < g->taps; t++) {
        tap_range(g, t, &low, &high);
        inner = most(inner, low);
        outer = least(outer, high);
    }
    outer = most(inner, outer);
    add_outer(g, sequence, inner, outer, 0, g->taps, r, 1, out, fresh);
    for (size_t t = 0; t < g->taps; t++) {
        tap_range(g, t, &low, &high);
        low = most(low, from);
        high = least(high, to);
        add_outer(g, sequence, low, least(high, inner), t, 1, r, 1, out, false);
        add_outer(g, sequence, most(low, outer), high, t, 1, r, 1, out, false);
    }
}

static void add_unit(const weight_plan *g, size_t block, size_t unit, float *out, bool fresh) {
    size_t each = g->blocks / g->batch, sequence = block / each, from = block % each * g->block,
           to = least(from + g->block, g->length), low, high;
    if (g->tap_rows) {
        add_taps(g, sequence, from, to, unit, out, fresh);
        return;
    }
    size_t groups = g->units / g->taps, t = unit / groups, r = unit % groups * g->unit_rows;
    tap_range(g, t, &low, &high);
    add_outer(g, sequence, most(from, low), least(to, high), t, 1, r,
              least(g->unit_rows, g->rows.columns - r), out, fresh);
}

/* Which side is which, for weights in the order [t, i, j], or [t, j, i] if `turned`, with `stride` numbers
 * from one row to the next. */
static weight_plan plan_weights(const icma_conv_kernels *kernels, icma_conv shape, size_t stride,
                                icma_matrix x, icma_matrix y, bool turned, size_t row_stride) {
    enum {
        FEW_ROWS = 4,
        FULL_VECTOR = 16,
        BLOCK = 512,
        LONG_BLOCK = 1024,
        FEW_CHANNELS = 64,
        UNIT_ROWS = 12
    };
    size_t beside = turned ? x.columns : y.columns, other = turned ? y.columns : x.columns;
    bool vector_is_x = (beside >= FULL_VECTOR || beside >= other) == turned;
    ptrdiff_t down = (ptrdiff_t)row_stride, shift = -(ptrdiff_t)(shape.width / 2);
    weight_plan g = {
        .kernels = kernels,
        .rows = vector_is_x ? y : x,
        .vectors = vector_is_x ? x : y,
        .batch = shape.batch,
        .taps = shape.width,
        .length = y.rows / shape.batch,
        .row_scale = 1,
        .vector_scale = 1,
        .out_tap = (ptrdiff_t)other * down,
        .out_row = vector_is_x == turned ? down : 1,
        .out_column = vector_is_x == turned ? 1 : down,
    };
    g.tap_rows = shape.width > 1 && g.rows.columns < FEW_ROWS && (!vector_is_x || stride == 1);
    if (g.tap_rows && vector_is_x) { /* position q of x: y's row q - t + P */
        g.row_shift = -shift;
        g.row_tap = -1;
    } else if (vector_is_x) {
        g.vector_scale = (ptrdiff_t)stride;
        g.vector_shift = shift;
        g.vector_tap = 1;
    } else {
        g.row_scale = (ptrdiff_t)stride;
        g.row_shift = shift;
        g.row_tap = 1;
    }
    g.unit_rows = UNIT_ROWS;
    g.units = g.tap_rows ? g.rows.columns : g.taps * pieces_of(g.rows.columns, UNIT_ROWS);
    g.block = x.columns + y.columns <= FEW_CHANNELS ? LONG_BLOCK : BLOCK;
    g.blocks = g.batch * pieces_of(g.length, g.block);
    return g;
}

static void add_chunks(const weight_plan *g, size_t chunks, float *parts, size_t part) {
#pragma omp parallel for schedule(dynamic) num_threads(icma_threads()) if (chunks > 1)
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        size_t first = chunk * g->blocks / chunks, end = (chunk + 1) * g->blocks / chunks;
        for (size_t block = first; block < end; block++)
            for (size_t unit = 0; unit < g->units; unit++)
                add_unit(g, block, unit, parts + chunk * part, block == first);
    }
}

static void add_units(const weight_plan *g, float *out, bool small) {
    size_t groups = small ? 1 : least((size_t)icma_threads(), g->units);
#pragma omp parallel for schedule(static) num_threads(icma_threads()) if (groups > 1)
    for (size_t group = 0; group < groups; group++)
        for (size_t block = 0; block < g->blocks; block++)
            for (size_t unit = group * g->units / groups; unit < (group + 1) * g->units / groups; unit++)
                add_unit(g, block, unit, out, block == 0);
}

static void sum_parts(const float *parts, size_t chunks, icma_matrix g) {
    size_t part = g.rows * g.columns;
#pragma omp parallel for schedule(static) num_threads(icma_threads()) if (chunks * part >= SMALL_SPAN)
    for (size_t i = 0; i < g.rows; i++) {
        const float *from = parts + i * g.columns;
        float *to = icma_row(g, i);
        for (size_t j = 0; j < g.columns; j++)
            to[j] = from[j];
        for (size_t k = 1; k < chunks; k++)
            for (size_t j = 0; j < g.columns; j++)
                to[j] += from[k * part + j];
    }
}

static void cpu_conv_weights(void *device, icma_conv shape, size_t stride, icma_matrix x, icma_matrix y,
                             bool turned, icma_tensor *scratch, icma_matrix g) {
    enum { CHUNK_POSITIONS = 256 };
    assert(shape.width % 2 == 1 && x.rows == stride * y.rows && y.rows % shape.batch == 0);
    assert(g.rows == shape.width * (turned ? y.columns : x.columns) &&
           g.columns == (turned ? x.columns : y.columns));
    assert(scratch->element == ICMA_ELEMENT_F32 &&
           scratch->count >= icma_conv_scratch(shape.width, x.columns, y.columns));
    size_t weights = g.rows * g.columns;
    weight_plan in_place = plan_weights(device, shape, stride, x, y, turned, g.stride),
                dense = plan_weights(device, shape, stride, x, y, turned, g.columns);
    size_t chunks = least(least(y.rows / CHUNK_POSITIONS, dense.blocks), ICMA_CONV_CHUNKS);
    if (weights == 0)
        return;
    if (weights > ICMA_CONV_FEW_WEIGHTS || chunks < 2) {
        add_units(&in_place, icma_row(g, 0), y.rows * weights < SMALL_CONV);
        return;
    }
    add_chunks(&dense, chunks, scratch->data, weights);
    sum_parts(scratch->data, chunks, g);
}

/* --- element by element --------------------------------------------------------------------------------- */

/* Matrices of one shape as pieces of rows, or of one long row where none has gaps. Pieces do not depend on
 * threads. */
typedef struct pieces {
    size_t rows, columns, count;
    bool flat;
} pieces;

enum { SPAN = 1 << 14 };

static pieces cut(icma_matrix shape, bool flat) {
    pieces p = {shape.rows, shape.columns, 0, flat};
    if (flat) {
        p.rows = 1;
        p.columns = shape.rows * shape.columns;
    }
    p.count = p.rows * pieces_of(p.columns, SPAN);
    return p;
}

static bool has_gaps(icma_matrix m) {
    return m.stride != m.columns;
}

static float *piece_at(const pieces *p, icma_matrix m, size_t index) {
    size_t each = pieces_of(p->columns, SPAN);
    return icma_row(m, index / each) + index % each * SPAN;
}

static size_t piece_size(const pieces *p, size_t index) {
    return least(SPAN, p->columns - index % pieces_of(p->columns, SPAN) * SPAN);
}

static void cpu_elu(void *device, icma_matrix x, icma_matrix y) {
    const icma_conv_kernels *kernels = device;
    pieces p = cut(y, !has_gaps(x) && !has_gaps(y));
#pragma omp parallel for schedule(static) num_threads(icma_threads()) if (y.rows * y.columns >= SMALL_SPAN)
    for (size_t i = 0; i < p.count; i++)
        kernels->elu(piece_at(&p, x, i), piece_size(&p, i), piece_at(&p, y, i));
}

static void cpu_activation_backward(void *device, icma_activation act, icma_matrix x, icma_matrix dy,
                                    icma_matrix dx) {
    const icma_conv_kernels *kernels = device;
    pieces p = cut(x, !has_gaps(x) && !has_gaps(dy) && !has_gaps(dx));
#pragma omp parallel for schedule(static) num_threads(icma_threads()) if (x.rows * x.columns >= SMALL_SPAN)
    for (size_t i = 0; i < p.count; i++)
        kernels->activation_backward(act, piece_at(&p, x, i), piece_at(&p, dy, i), piece_size(&p, i),
                                     piece_at(&p, dx, i));
}

static void cpu_adam(void *device, icma_adam o, icma_matrix gradient, icma_matrix moment1,
                     icma_matrix moment2, icma_matrix parameter) {
    const icma_conv_kernels *kernels = device;
    double correct1 = 1 - pow((double)o.beta1, (double)o.step),
           correct2 = 1 - pow((double)o.beta2, (double)o.step);
    const icma_adam_factors factors = {
        .keep1 = o.beta1,
        .add1 = 1 - o.beta1,
        .keep2 = o.beta2,
        .add2 = 1 - o.beta2,
        .decay = o.learning_rate * o.weight_decay,
        .rate = (float)((double)o.learning_rate / correct1),
        .inverse2 = (float)(1 / correct2),
        .epsilon = o.epsilon,
    };
    pieces p = cut(parameter,
                   !has_gaps(gradient) && !has_gaps(moment1) && !has_gaps(moment2) && !has_gaps(parameter));
#pragma omp parallel for schedule(static)                                                                    \
    num_threads(icma_threads()) if (parameter.rows * parameter.columns >= SMALL_SPAN)
    for (size_t i = 0; i < p.count; i++)
        kernels->adam(&factors, piece_size(&p, i), piece_at(&p, gradient, i), piece_at(&p, moment1, i),
                      piece_at(&p, moment2, i), piece_at(&p, parameter, i));
}

/* --- batch norm ----------------------------------------------------------------------------------------- */

/*
 * Columns are taken at most SLICE at a time. Rows of few columns without gaps are joined, `joined` of them,
 * until they make whole vectors: a row of a band is then joined * columns wide, and its factors are repeated.
 */
enum { SLICE = 128, JOINED_UNTIL = 32, BAND = JOINED_UNTIL * JOINED_UNTIL, NORM_CHUNKS = 32 };

typedef struct band {
    size_t columns, joined, rows;
    float mean[BAND], scale[BAND], beta[BAND], constant[BAND], linear[BAND];
} band;

static size_t joined_rows(size_t columns, bool gaps) {
    size_t joined = 1;
    if (columns < JOINED_UNTIL && !gaps)
        while (joined * columns % JOINED_UNTIL)
            joined++;
    return joined;
}

static icma_norm_band band_view(const band *b, bool joined) {
    return (icma_norm_band){
        joined ? b->columns * b->joined : b->columns, b->mean, b->scale, b->beta, b->constant, b->linear};
}

static void repeat_factors(band *b) {
    for (size_t j = b->columns; j < b->columns * b->joined; j++) {
        b->mean[j] = b->mean[j - b->columns];
        b->scale[j] = b->scale[j - b->columns];
        b->beta[j] = b->beta[j - b->columns];
        b->constant[j] = b->constant[j - b->columns];
        b->linear[j] = b->linear[j - b->columns];
    }
}

static void set_factors(band *b, icma_matrix x, bool gaps, size_t first, icma_matrix gamma, icma_matrix beta,
                        float epsilon, icma_matrix mean, icma_matrix variance) {
    b->columns = least(SLICE, x.columns - first);
    b->joined = joined_rows(x.columns, gaps);
    b->rows = x.rows;
    for (size_t j = 0; j < b->columns; j++) {
        b->mean[j] = icma_row(mean, 0)[first + j];
        b->scale[j] = icma_row(gamma, 0)[first + j] / sqrtf(icma_row(variance, 0)[first + j] + epsilon);
        b->beta[j] = icma_row(beta, 0)[first + j];
        b->constant[j] = b->linear[j] = 0;
    }
    repeat_factors(b);
}

/* Rows of a chunk, by the shape alone: at most NORM_CHUNKS chunks, none very small. */
static size_t chunk_rows(size_t rows, size_t columns, size_t joined) {
    enum { LEAST_CHUNK = 1 << 12 };
    size_t chunk = most(pieces_of(rows, NORM_CHUNKS), pieces_of(LEAST_CHUNK, columns));
    return pieces_of(chunk, joined) * joined;
}

/* Two sums for each column and chunk; `wide` holds those of a band's row. */
typedef struct sums {
    double first[BAND], second[BAND];
} sums;

static void fold(const sums *wide, size_t columns, size_t joined, double *first, double *second) {
    for (size_t j = 0; j < columns; j++) {
        first[j] = second[j] = 0;
        for (size_t k = 0; k < joined; k++) {
            first[j] += wide->first[k * columns + j];
            second[j] += wide->second[k * columns + j];
        }
    }
}

static void add_chunks_up(size_t chunks, size_t columns, double (*part)[2][SLICE]) {
    for (size_t k = 1; k < chunks; k++)
        for (size_t j = 0; j < columns; j++) {
            part[0][0][j] += part[k][0][j];
            part[0][1][j] += part[k][1][j];
        }
}

/* Sums and sums of squares of columns first .. first + columns - 1, counted from those of row 0, come to
 * part[0]. */
static void sum_moments(const icma_conv_kernels *kernels, icma_matrix x, size_t first, size_t columns,
                        double (*part)[2][SLICE]) {
    float origin[BAND];
    size_t joined = joined_rows(x.columns, has_gaps(x)), chunk = chunk_rows(x.rows, columns, joined),
           chunks = pieces_of(x.rows, chunk);
    for (size_t j = 0; j < columns * joined; j++)
        origin[j] = icma_row(x, 0)[first + j % columns];
#pragma omp parallel for schedule(static) num_threads(icma_threads()) if (x.rows * columns >= SMALL_SPAN)
    for (size_t c = 0; c < chunks; c++) {
        sums wide = {{0}, {0}};
        size_t from = c * chunk, rows = least(chunk, x.rows - from), whole = rows / joined;
        kernels->moments(icma_row(x, from) + first, joined * x.stride, whole, joined * columns, origin,
                         wide.first, wide.second);
        if (rows > whole * joined)
            kernels->moments(icma_row(x, from + whole * joined) + first, x.stride, rows - whole * joined,
                             columns, origin, wide.first, wide.second);
        fold(&wide, columns, joined, part[c][0], part[c][1]);
    }
    add_chunks_up(chunks, columns, part);
}

static void apply_norm(const icma_conv_kernels *kernels, icma_activation act, const band *b, size_t first,
                       icma_matrix x, icma_matrix y) {
    size_t chunk = pieces_of(SPAN, b->columns * b->joined) * b->joined, chunks = pieces_of(x.rows, chunk);
    icma_norm_band wide = band_view(b, true), single = band_view(b, false);
#pragma omp parallel for schedule(static) num_threads(icma_threads()) if (x.rows * b->columns >= SMALL_SPAN)
    for (size_t c = 0; c < chunks; c++) {
        size_t from = c * chunk, rows = least(chunk, x.rows - from), whole = rows / b->joined,
               left = from + whole * b->joined;
        kernels->norm(act, &wide, icma_row(x, from) + first, b->joined * x.stride, whole,
                      icma_row(y, from) + first, b->joined * y.stride);
        if (left < from + rows)
            kernels->norm(act, &single, icma_row(x, left) + first, x.stride, from + rows - left,
                          icma_row(y, left) + first, y.stride);
    }
}

static void cpu_batch_norm_given(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta,
                                 float epsilon, icma_activation act, icma_matrix mean, icma_matrix variance,
                                 icma_matrix y) {
    assert(x.rows == y.rows && x.columns == y.columns);
    for (size_t first = 0; x.rows && first < x.columns; first += SLICE) {
        band b;
        set_factors(&b, x, has_gaps(x) || has_gaps(y), first, gamma, beta, epsilon, mean, variance);
        apply_norm(device, act, &b, first, x, y);
    }
}

static void cpu_batch_norm(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta, float epsilon,
                           icma_activation act, icma_matrix mean, icma_matrix variance, icma_matrix y) {
    for (size_t first = 0; x.rows && first < x.columns; first += SLICE) {
        double part[NORM_CHUNKS][2][SLICE];
        size_t columns = least(SLICE, x.columns - first);
        sum_moments(device, x, first, columns, part);
        for (size_t j = 0; j < columns; j++) {
            double apart = part[0][0][j] / (double)x.rows,
                   spread = part[0][1][j] / (double)x.rows - apart * apart;
            icma_row(mean, 0)[first + j] = (float)((double)icma_row(x, 0)[first + j] + apart);
            icma_row(variance, 0)[first + j] = (float)(spread > 0 ? spread : 0);
        }
    }
    cpu_batch_norm_given(device, x, gamma, beta, epsilon, act, mean, variance, y);
}

/* Sums of d and d (x - mean) come to part[0]. */
static void sum_norm_gradients(const icma_conv_kernels *kernels, icma_activation act, const band *b,
                               size_t first, icma_matrix x, icma_matrix dy, double (*part)[2][SLICE]) {
    size_t chunk = chunk_rows(x.rows, b->columns, b->joined), chunks = pieces_of(x.rows, chunk);
    icma_norm_band view = band_view(b, true), single = band_view(b, false);
#pragma omp parallel for schedule(static) num_threads(icma_threads()) if (x.rows * b->columns >= SMALL_SPAN)
    for (size_t c = 0; c < chunks; c++) {
        sums wide = {{0}, {0}};
        size_t from = c * chunk, rows = least(chunk, x.rows - from), whole = rows / b->joined,
               left = from + whole * b->joined;
        kernels->norm_sums(act, &view, icma_row(x, from) + first, b->joined * x.stride,
                           icma_row(dy, from) + first, b->joined * dy.stride, whole, wide.first, wide.second);
        if (left < from + rows)
            kernels->norm_sums(act, &single, icma_row(x, left) + first, x.stride, icma_row(dy, left) + first,
                               dy.stride, from + rows - left, wide.first, wide.second);
        fold(&wide, b->columns, b->joined, part[c][0], part[c][1]);
    }
    add_chunks_up(chunks, b->columns, part);
}

static void apply_norm_gradients(const icma_conv_kernels *kernels, icma_activation act, const band *b,
                                 size_t first, icma_matrix x, icma_matrix dy, icma_matrix dx) {
    size_t chunk = pieces_of(SPAN, b->columns * b->joined) * b->joined, chunks = pieces_of(x.rows, chunk);
    icma_norm_band wide = band_view(b, true), single = band_view(b, false);
#pragma omp parallel for schedule(static) num_threads(icma_threads()) if (x.rows * b->columns >= SMALL_SPAN)
    for (size_t c = 0; c < chunks; c++) {
        size_t from = c * chunk, rows = least(chunk, x.rows - from), whole = rows / b->joined,
               left = from + whole * b->joined;
        kernels->norm_backward(act, &wide, icma_row(x, from) + first, b->joined * x.stride,
                               icma_row(dy, from) + first, b->joined * dy.stride, whole,
                               icma_row(dx, from) + first, b->joined * dx.stride);
        if (left < from + rows)
            kernels->norm_backward(act, &single, icma_row(x, left) + first, x.stride,
                                   icma_row(dy, left) + first, dy.stride, from + rows - left,
                                   icma_row(dx, left) + first, dx.stride);
    }
}

/* As in the reference, with u = (x - mean) / deviation: product = deviation * dgamma, so the term u dgamma /
 * rows is (x - mean) * product / (rows deviation^2). */
static void cpu_batch_norm_backward(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta,
                                    float epsilon, icma_activation act, icma_matrix mean,
                                    icma_matrix variance, icma_matrix dy, icma_matrix dgamma,
                                    icma_matrix dbeta, icma_matrix dx) {
    assert(x.rows == dy.rows && x.columns == dy.columns && x.rows == dx.rows && x.columns == dx.columns);
    double rows = (double)x.rows;
    for (size_t first = 0; x.rows && first < x.columns; first += SLICE) {
        double part[NORM_CHUNKS][2][SLICE];
        band b;
        set_factors(&b, x, has_gaps(x) || has_gaps(dy) || has_gaps(dx), first, gamma, beta, epsilon, mean,
                    variance);
        sum_norm_gradients(device, act, &b, first, x, dy, part);
        for (size_t j = 0; j < b.columns; j++) {
            double square = (double)icma_row(variance, 0)[first + j] + (double)epsilon;
            icma_row(dbeta, 0)[first + j] = (float)part[0][0][j];
            icma_row(dgamma, 0)[first + j] = (float)(part[0][1][j] / sqrt(square));
            b.constant[j] = (float)(part[0][0][j] / rows);
            b.linear[j] = (float)(part[0][1][j] / square / rows);
        }
        repeat_factors(&b);
        apply_norm_gradients(device, act, &b, first, x, dy, dx);
    }
}

void icma_conv_ops(icma_ops *table, const icma_conv_kernels *kernels) {
    table->device = (void *)kernels;
    table->adam = cpu_adam;
    table->conv_down = cpu_conv_down;
    table->turn_weights = cpu_turn_weights;
    table->conv_weights = cpu_conv_weights;
    table->batch_norm = cpu_batch_norm;
    table->batch_norm_given = cpu_batch_norm_given;
    table->batch_norm_backward = cpu_batch_norm_backward;
    table->activation_backward = cpu_activation_backward;
    table->conv = cpu_conv;
    table->conv_up = cpu_conv_up;
    table->conv_up_training = cpu_conv_up_training;
    table->elu = cpu_elu;
}
