/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The convolutions of the op table: the reference, the fast table and the fast table with every kernel set
 * that the processor has, against definitions written out here, on adversarial shapes, with sentinels around
 * and between the rows of every operand. Exact ops bit for bit; training ops to rounding, their backwards as
 * adjoints and against differences; all independent of the number of threads.
 */
#include "ops.h"
#include "ops_host.h"
#include "rng.h"
#include "support.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { MOST_TABLES = SUPPORT_TABLES + ICMA_KERNEL_SETS, OPERANDS = 12 };
static icma_ops tables[MOST_TABLES];
static char names[MOST_TABLES][16];
static int table_count;

static int open_tables(void **state) {
    (void)state;
    icma_kernels sets[ICMA_KERNEL_SETS];
    size_t count = icma_kernels_all(sets);
    const icma_ops *list[SUPPORT_TABLES];
    size_t found = support_tables(list);
    for (size_t k = 0; k < found; k++)
        tables[table_count++] = *list[k];
    for (size_t s = 0; s < count; s++) {
        tables[table_count] = *icma_ops_cpu();
        icma_conv_ops(&tables[table_count], sets[s].conv);
        strcpy(names[table_count], sets[s].name);
        tables[table_count].name = names[table_count];
        print_message("           %s kernels\n", sets[s].name);
        table_count++;
    }
    return 0;
}

#define FOR_EACH_TABLE for (int t = 0; t < table_count; t++)
#define OP(name, ...) tables[t].name(tables[t].device, __VA_ARGS__)

/* --- operands ------------------------------------------------------------------------------------------- */

/* A matrix somewhere inside a larger tensor, the same one on every table; everything outside it is a NaN,
 * which would spoil what reads it, and may not change. */
typedef struct operand {
    size_t total, offset, rows, columns, stride;
    float *before;
    icma_tensor *tensor[MOST_TABLES];
    bool output;
} operand;

typedef struct bench {
    uint64_t random;
    operand list[OPERANDS];
    size_t count;
    const char *op;
} bench;

static size_t pick(bench *b, size_t bound) {
    return (size_t)(support_uniform(&b->random) * (double)bound);
}

/* All cells hold NaNs until they are set; upload() puts it on the tables. */
static operand *begin(bench *b, size_t rows, size_t columns, bool output) {
    static const size_t pads[] = {0, 0, 0, 1, 3, 16};
    assert_true(b->count < OPERANDS);
    operand *o = &b->list[b->count++];
    *o = (operand){.offset = pick(b, 40),
                   .rows = rows,
                   .columns = columns,
                   .stride = columns + pads[pick(b, COUNT(pads))],
                   .output = output};
    o->total = o->offset + rows * o->stride + 1 + pick(b, 40);
    o->before = malloc(o->total * sizeof *o->before);
    assert_non_null(o->before);
    for (size_t i = 0; i < o->total; i++)
        o->before[i] = NAN;
    return o;
}

static float *cell(const operand *o, size_t i, size_t j) {
    assert_true(i < o->rows && j < o->columns);
    return o->before + o->offset + i * o->stride + j;
}

static operand *upload(operand *o) {
    icma_error error = {0};
    FOR_EACH_TABLE {
        assert_int_equal(tables[t].alloc(tables[t].device, ICMA_ELEMENT_F32, o->total, &o->tensor[t], &error),
                         ICMA_OK);
        assert_int_equal(tables[t].upload(tables[t].device, o->tensor[t], 0, o->before, o->total, &error),
                         ICMA_OK);
    }
    return o;
}

static icma_matrix on(const operand *o, int t) {
    return (icma_matrix){o->tensor[t], o->offset, o->rows, o->columns, o->stride};
}

#define FOR_EACH_CELL(o)                                                                                     \
    for (size_t i = 0; i < (o)->rows; i++)                                                                   \
        for (size_t j = 0; j < (o)->columns; j++)

static operand *blank(bench *b, size_t rows, size_t columns) {
    return upload(begin(b, rows, columns, true));
}

static operand *normals(bench *b, size_t rows, size_t columns, bool output) {
    operand *o = begin(b, rows, columns, output);
    FOR_EACH_CELL(o)
    *cell(o, i, j) = (float)support_normal(&b->random);
    return upload(o);
}

/* Zeros of both signs, denormals, tiny and large numbers. */
static float wild(bench *b) {
    static const float special[] = {
        0.0F, -0.0F,   0x1p-149F, -0x1p-149F, 0x1.fffffcp-127F, -0x1p-126F,    1,
        -1,   0x1p30F, -0x1p30F,  0x1p-60F,   0x1.fffffep40F,   0x1.000002p0F, -0x1.555556p-3F};
    switch (pick(b, 3)) {
    case 0:
        return special[pick(b, COUNT(special))];
    case 1:
        return (float)(support_normal(&b->random) * ldexp(1, (int)pick(b, 80) - 60));
    default:
        return (float)support_normal(&b->random);
    }
}

static operand *wilds(bench *b, size_t rows, size_t columns) {
    operand *o = begin(b, rows, columns, false);
    FOR_EACH_CELL(o)
    *cell(o, i, j) = wild(b);
    return upload(o);
}

static float *download(const operand *o, int t) {
    icma_error error = {0};
    float *values = malloc(o->total * sizeof *values);
    assert_non_null(values);
    assert_int_equal(tables[t].download(tables[t].device, o->tensor[t], 0, values, o->total, &error),
                     ICMA_OK);
    return values;
}

static bool is_inside(const operand *o, size_t at) {
    return at >= o->offset && (at - o->offset) / o->stride < o->rows &&
           (at - o->offset) % o->stride < o->columns;
}

/* What may not change did not; frees everything. */
static void finish(bench *b) {
    for (size_t k = 0; k < b->count; k++) {
        operand *o = &b->list[k];
        FOR_EACH_TABLE {
            float *after = download(o, t);
            for (size_t i = 0; i < o->total; i++)
                if (!(o->output && is_inside(o, i)) && memcmp(after + i, o->before + i, sizeof *after) != 0)
                    fail_msg("%s by %s wrote element %zu of operand %zu (%zu x %zu, stride %zu, offset %zu)",
                             b->op, tables[t].name, i, k, o->rows, o->columns, o->stride, o->offset);
            free(after);
            tables[t].release(tables[t].device, o->tensor[t]);
        }
        free(o->before);
    }
    b->count = 0;
}

/* Expected values in double, and the sums of absolute values of what makes them. */
typedef struct expected {
    size_t columns;
    double *value, *terms;
} expected;

static expected expect(const operand *o) {
    expected e = {o->columns, calloc(o->rows * o->columns + 1, sizeof(double)),
                  calloc(o->rows * o->columns + 1, sizeof(double))};
    assert_true(e.value && e.terms);
    return e;
}

static void add_term(expected *e, size_t i, size_t j, double term) {
    e->value[i * e->columns + j] += term;
    e->terms[i * e->columns + j] += fabs(term);
}

/* All tables are within `ulps` roundings of the terms' sum. Frees `e`. */
static void check(const bench *b, const operand *o, expected e, double ulps) {
    FOR_EACH_TABLE {
        float *after = download(o, t);
        FOR_EACH_CELL(o) {
            double found = (double)after[o->offset + i * o->stride + j], wanted = e.value[i * e.columns + j],
                   terms = e.terms[i * e.columns + j];
            if (!(fabs(found - wanted) <= ulps * (double)FLT_EPSILON * terms + 1e-37))
                fail_msg("%s by %s: (%zu, %zu) of %zu x %zu is %.9g, not %.9g (terms %.9g)", b->op,
                         tables[t].name, i, j, o->rows, o->columns, found, wanted, terms);
        }
        free(after);
    }
    free(e.value);
    free(e.terms);
}

/* All tables give the bits of `wanted`, without gaps; a NaN matches any NaN. Frees it. */
static void check_bits(const bench *b, const operand *o, float *wanted) {
    FOR_EACH_TABLE {
        float *after = download(o, t);
        FOR_EACH_CELL(o) {
            float found = after[o->offset + i * o->stride + j], right = wanted[i * o->columns + j];
            if (memcmp(&found, &right, sizeof found) != 0 && !(isnan(found) && isnan(right)))
                fail_msg("%s by %s: (%zu, %zu) of %zu x %zu is %a, not %a", b->op, tables[t].name, i, j,
                         o->rows, o->columns, (double)found, (double)right);
        }
        free(after);
    }
    free(wanted);
}

static float *floats(size_t count) {
    float *values = calloc(count + 1, sizeof *values);
    assert_non_null(values);
    return values;
}

/* --- shapes --------------------------------------------------------------------------------------------- */

typedef struct layer {
    icma_conv shape;
    size_t length, inputs, outputs; /* positions of the shorter side */
} layer;

/* `most` bounds the multiply-adds. */
static layer any_layer(bench *b, size_t most) {
    static const size_t channels[] = {1,  1,  2,  3,  4,  5,  7,  8,  8,  9,  12,  15, 16,
                                      16, 17, 24, 31, 32, 33, 40, 48, 64, 65, 100, 129};
    static const size_t lengths[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,   11,  12,   13,
                                     14, 15, 16, 17, 18, 25, 36, 61, 130, 257, 1100, 2100};
    static const size_t widths[] = {1, 3, 3, 5, 7, 7, 7, 9, 15};
    for (;;) {
        layer l = {{1 + pick(b, 3), widths[pick(b, COUNT(widths))]},
                   lengths[pick(b, COUNT(lengths))],
                   channels[pick(b, COUNT(channels))],
                   channels[pick(b, COUNT(channels))]};
        if (l.shape.batch * l.shape.width * l.length * l.inputs * l.outputs <= most)
            return l;
    }
}

/* --- exact ops ------------------------------------------------------------------------------------------ */

/* y[b, q, o] as spec 4.15 has it, from the definitions' side: the chain over all taps of those for which
 * there is a row. */
static void chain(const layer *l, bool up, const operand *x, const operand *w, const operand *bias,
                  float *y) {
    size_t padding = (l->shape.width - 1) / 2, rows = up ? 2 * l->length : l->length;
    for (size_t s = 0; s < l->shape.batch; s++)
        for (size_t q = 0; q < rows; q++)
            for (size_t o = 0; o < l->outputs; o++) {
                float sum = bias ? *cell(bias, 0, o) : 0;
                for (size_t t = 0; t < l->shape.width; t++)
                    for (size_t i = 0; i < l->inputs; i++) {
                        ptrdiff_t twice = up ? (ptrdiff_t)(q + padding) - (ptrdiff_t)t
                                             : 2 * ((ptrdiff_t)(q + t) - (ptrdiff_t)padding);
                        if (twice >= 0 && twice % 2 == 0 && twice / 2 < (ptrdiff_t)l->length)
                            sum = fmaf(*cell(x, s * l->length + (size_t)twice / 2, i),
                                       *cell(w, t * l->inputs + i, o), sum);
                    }
                y[(s * rows + q) * l->outputs + o] = sum;
            }
}

static void try_exact(bench *b, layer l, bool up, bool with_bias) {
    operand *x = wilds(b, l.shape.batch * l.length, l.inputs),
            *w = wilds(b, l.shape.width * l.inputs, l.outputs), *bias = wilds(b, 1, l.outputs);
    operand *y = blank(b, x->rows * (up ? 2 : 1), l.outputs);
    float *wanted = floats(y->rows * l.outputs);
    icma_matrix none = {0};
    chain(&l, up, x, w, with_bias ? bias : NULL, wanted);
    b->op = up ? "conv_up" : "conv";
    FOR_EACH_TABLE {
        if (up)
            OP(conv_up, l.shape, on(x, t), on(w, t), with_bias ? on(bias, t) : none, on(y, t));
        else
            OP(conv, l.shape, on(x, t), on(w, t), with_bias ? on(bias, t) : none, on(y, t));
    }
    check_bits(b, y, wanted);
    finish(b);
}

static void convolutions_are_exact(void **state) {
    (void)state;
    bench b = {.random = 101};
    for (int trial = 0; trial < 600; trial++)
        try_exact(&b, any_layer(&b, trial % 20 ? 100000 : 800000), trial % 2, trial % 3);
    try_exact(&b, (layer){{2, 7}, 300, 8, 1}, false, true); /* as decoders end */
    try_exact(&b, (layer){{1, 7}, 517, 8, 2}, false, true);
    try_exact(&b, (layer){{2, 7}, 4200, 1, 8}, false, false);
    try_exact(&b, (layer){{1, 31}, 150, 16, 3}, false, true);
    try_exact(&b, (layer){{1, 33}, 150, 16, 3}, false,
              true); /* one tap, one channel too many for the narrow kernel */
    try_exact(&b, (layer){{1, 31}, 150, 17, 3}, false, true);
    /* Whole tiles of a GPU, often enough for views that start at 16 bytes. */
    static const size_t whole[][2] = {{16, 128}, {8, 256}, {24, 64}, {16, 32}, {32, 16}, {8, 8}};
    for (size_t k = 0; k < 12 * COUNT(whole); k++)
        try_exact(&b, (layer){{1 + k % 2, 7}, 130 + k, whole[k % COUNT(whole)][0], whole[k % COUNT(whole)][1]}, k / 2 % 2, true);
}

/* Taps beyond the ends are left out: weights that nothing may touch are NaNs and infinities. */
static void taps_beyond_the_ends_are_left_out(void **state) {
    (void)state;
    bench b = {.random = 102};
    for (int up = 0; up < 2; up++)
        for (size_t channels = 1; channels < 70; channels += 17) {
            const layer l = {{3, 9}, 1, channels, channels};
            operand *x = normals(&b, 3, channels, false), *w = begin(&b, 9 * channels, channels, false),
                    *y = blank(&b, up ? 6 : 3, channels);
            FOR_EACH_CELL(w)
            *cell(w, i, j) = i / channels == 4 || (up && i / channels == 5) ? (float)support_normal(&b.random)
                             : i % 2                                        ? NAN
                                                                            : INFINITY;
            upload(w);
            float *wanted = floats(y->rows * channels);
            chain(&l, up, x, w, NULL, wanted);
            for (size_t k = 0; k < y->rows * channels; k++)
                assert_true(isfinite(wanted[k]));
            b.op = "ends";
            FOR_EACH_TABLE {
                if (up)
                    OP(conv_up, l.shape, on(x, t), on(w, t), (icma_matrix){0}, on(y, t));
                else
                    OP(conv, l.shape, on(x, t), on(w, t), (icma_matrix){0}, on(y, t));
            }
            check_bits(&b, y, wanted);
            finish(&b);
        }
}

/* Spec 4.15, operation by operation. */
static float elu(float x) {
    if (x >= 0)
        return x;
    static const uint32_t inverse_bits = 0x3fb8aa3bU, low_bits = 0xb5bfbe8eU, round_bits = 0x4b400000U;
    float inverse, low, round;
    memcpy(&inverse, &inverse_bits, sizeof inverse);
    memcpy(&low, &low_bits, sizeof low);
    memcpy(&round, &round_bits, sizeof round);
    assert_true(round == 12582912.0F);
    float v = x < -32 ? -32 : x, n = fmaf(v, inverse, round), k = n - round;
    float r = fmaf(k, -0x1.62e4p-1F, v);
    r = fmaf(k, low, r);
    float p = fmaf(1.0F / 5040, r, 1.0F / 720);
    p = fmaf(p, r, 1.0F / 120);
    p = fmaf(p, r, 1.0F / 24);
    p = fmaf(p, r, 1.0F / 6);
    p = fmaf(p, r, 1.0F / 2);
    float q = fmaf(r * r, p, r), s;
    uint32_t bits;
    memcpy(&bits, &n, sizeof bits);
    bits = (bits - round_bits + 127) << 23;
    memcpy(&s, &bits, sizeof s);
    return fmaf(s, q, s - 1);
}

static void elu_is_exact(void **state) {
    (void)state;
    static const float special[] = {0.0F,
                                    -0.0F,
                                    0x1p-149F,
                                    -0x1p-149F,
                                    -0x1p-126F,
                                    -32,
                                    -0x1.000002p5F,
                                    -0x1.fffffep4F,
                                    -FLT_MAX,
                                    FLT_MAX,
                                    INFINITY,
                                    -INFINITY,
                                    NAN,
                                    -0x1.62e430p-2F,
                                    -0x1.62e430p-1F,
                                    -17,
                                    -1,
                                    1};
    bench b = {.random = 103, .op = "elu"};
    for (int trial = 0; trial < 80; trial++) {
        size_t rows = 1 + pick(&b, 40), columns = trial % 10 ? 1 + pick(&b, 70) : 1 + pick(&b, 2000);
        bool in_place = trial % 2;
        operand *x = begin(&b, rows, columns, in_place);
        FOR_EACH_CELL(x)
        *cell(x, i, j) = pick(&b, 3)   ? (float)(support_normal(&b.random) * ldexp(1, (int)pick(&b, 12) - 6))
                         : pick(&b, 2) ? special[pick(&b, COUNT(special))]
                                       : wild(&b);
        upload(x);
        operand *y = in_place ? x : blank(&b, rows, columns);
        float *wanted = floats(rows * columns);
        FOR_EACH_CELL(x)
        wanted[i * columns + j] = elu(*cell(x, i, j));
        FOR_EACH_TABLE OP(elu, on(x, t), on(y, t));
        check_bits(&b, y, wanted);
        finish(&b);
    }
}

/* One unit in the last place of exp(x) - 1, and nowhere falling. */
static void elu_is_accurate(void **state) {
    (void)state;
    float last = -1;
    for (uint32_t bits = 0xc2400000U; bits > 0x80000000U; bits -= 1499) {
        float x;
        memcpy(&x, &bits, sizeof x);
        float y = icma_elu_scalar(x);
        double right = expm1((double)x);
        int exponent;
        frexp(right, &exponent);
        assert_true(fabs((double)y - right) <= 0.9 * ldexp(1, exponent - 24 < -149 ? -149 : exponent - 24));
        assert_true(y >= last);
        last = y;
    }
}

/* --- training ------------------------------------------------------------------------------------------- */

static void conv_down_is_a_strided_convolution(void **state) {
    (void)state;
    bench b = {.random = 104, .op = "conv_down"};
    for (int trial = 0; trial < 300; trial++) {
        layer l = any_layer(&b, trial % 20 ? 100000 : 800000);
        size_t padding = l.shape.width / 2;
        operand *x = normals(&b, 2 * l.shape.batch * l.length, l.inputs, false),
                *w = normals(&b, l.shape.width * l.inputs, l.outputs, false);
        operand *y = blank(&b, x->rows / 2, l.outputs);
        expected e = expect(y);
        FOR_EACH_CELL(y)
        for (size_t t = 0; t < l.shape.width; t++)
            for (size_t c = 0; c < l.inputs; c++) {
                size_t at = 2 * (i % l.length) + t;
                if (at >= padding && at - padding < 2 * l.length)
                    add_term(&e, i, j,
                             (double)*cell(x, i / l.length * 2 * l.length + at - padding, c) *
                                 (double)*cell(w, t * l.inputs + c, j));
            }
        FOR_EACH_TABLE OP(conv_down, l.shape, on(x, t), on(w, t), on(y, t));
        check(&b, y, e, 2 + sqrt((double)(l.shape.width * l.inputs)));
        finish(&b);
    }
}

static void weights_are_turned(void **state) {
    (void)state;
    bench b = {.random = 105, .op = "turn_weights"};
    for (int trial = 0; trial < 100; trial++) {
        layer l = any_layer(&b, 2000000);
        bool flip = trial % 2;
        operand *w = normals(&b, l.shape.width * l.inputs, l.outputs, false),
                *out = blank(&b, l.shape.width * l.outputs, l.inputs);
        float *wanted = floats(out->rows * out->columns);
        for (size_t t = 0; t < l.shape.width; t++)
            for (size_t i = 0; i < l.inputs; i++)
                for (size_t o = 0; o < l.outputs; o++)
                    wanted[((flip ? l.shape.width - 1 - t : t) * l.outputs + o) * l.inputs + i] =
                        *cell(w, t * l.inputs + i, o);
        FOR_EACH_TABLE OP(turn_weights, l.shape, on(w, t), flip, on(out, t));
        check_bits(&b, out, wanted);
        finish(&b);
    }
}

static operand *scratch_for(bench *b, const layer *l) {
    operand *o = begin(b, 1, icma_conv_scratch(l->shape.width, l->inputs, l->outputs), true);
    o->offset = 0;
    o->stride = o->columns;
    o->total = o->columns;
    return upload(o);
}

static void try_weights(bench *b, layer l, size_t stride, bool turned) {
    size_t padding = l.shape.width / 2;
    operand *x = normals(b, stride * l.shape.batch * l.length, l.inputs, false),
            *y = normals(b, l.shape.batch * l.length, l.outputs, false), *scratch = scratch_for(b, &l);
    operand *g = blank(b, l.shape.width * (turned ? l.outputs : l.inputs), turned ? l.inputs : l.outputs);
    expected e = expect(g);
    for (size_t t = 0; t < l.shape.width; t++)
        for (size_t row = 0; row < y->rows; row++) {
            size_t at = stride * (row % l.length) + t;
            if (at < padding || at - padding >= stride * l.length)
                continue;
            for (size_t i = 0; i < l.inputs; i++)
                for (size_t j = 0; j < l.outputs; j++)
                    add_term(&e, turned ? t * l.outputs + j : t * l.inputs + i, turned ? i : j,
                             (double)*cell(x, row / l.length * stride * l.length + at - padding, i) *
                                 (double)*cell(y, row, j));
        }
    b->op = "conv_weights";
    FOR_EACH_TABLE OP(conv_weights, l.shape, stride, on(x, t), on(y, t), turned, scratch->tensor[t],
                      on(g, t));
    check(b, g, e, 2 + sqrt((double)y->rows));
    finish(b);
}

static void gradients_of_weights_are_sums_over_positions(void **state) {
    (void)state;
    bench b = {.random = 106};
    for (int trial = 0; trial < 400; trial++)
        try_weights(&b, any_layer(&b, trial % 20 ? 100000 : 800000), 1 + pick(&b, 2), pick(&b, 2));
    try_weights(&b, (layer){{2, 7}, 2100, 1, 8}, 2, false); /* as encoders begin */
    try_weights(&b, (layer){{2, 7}, 2100, 8, 1}, 1, false); /* as decoders end */
    try_weights(&b, (layer){{2, 7}, 2100, 8, 2}, 1, false);
    try_weights(&b, (layer){{1, 7}, 70, 129, 65}, 2, true); /* many weights */
    try_weights(&b, (layer){{2, 7}, 300, 40, 65}, 2, false);
}

/* --- adjoints ------------------------------------------------------------------------------------------- */

static double dot(const float *a, const operand *shape_a, const operand *v) {
    double sum = 0;
    FOR_EACH_CELL(shape_a)
    sum += (double)a[shape_a->offset + i * shape_a->stride + j] * (double)*cell(v, i, j);
    return sum;
}

static void same_dot(const bench *b, int t, const char *what, double found, double wanted, double size) {
    if (!(fabs(found - wanted) <= 1e-5 * size))
        fail_msg("%s by %s: %s is %.9g, not %.9g", b->op, tables[t].name, what, found, wanted);
}

/* <layer(x, w), v> = <x, backward(v, w)> = <w, weights(x, v)>: the layer is linear in both, so that these are
 * its directional derivatives. `which`: 0 conv_down, 1 conv_up, 2 conv. */
static void try_adjoint(bench *b, layer l, int which) {
    size_t long_side = which == 2 ? 1 : 2, rows = l.shape.batch * l.length, down = which == 1 ? 1 : long_side,
           up = which == 1 ? 2 : 1;
    operand *x = normals(b, rows * down, l.inputs, false),
            *w = normals(b, l.shape.width * l.inputs, l.outputs, false),
            *v = normals(b, rows * up, l.outputs, false);
    operand *y = blank(b, v->rows, l.outputs), *turned = blank(b, l.shape.width * l.outputs, l.inputs),
            *dx = blank(b, x->rows, l.inputs), *dw = blank(b, w->rows, w->columns),
            *scratch = scratch_for(b, &l);
    icma_matrix none = {0};
    b->op = which == 0 ? "adjoint of conv_down" : which == 1 ? "adjoint of conv_up" : "adjoint of conv";
    FOR_EACH_TABLE {
        OP(turn_weights, l.shape, on(w, t), which == 2, on(turned, t));
        if (which == 0) {
            OP(conv_down, l.shape, on(x, t), on(w, t), on(y, t));
            OP(conv_up, l.shape, on(v, t), on(turned, t), none, on(dx, t));
            OP(conv_weights, l.shape, 2, on(x, t), on(v, t), false, scratch->tensor[t], on(dw, t));
        } else if (which == 1) {
            OP(conv_up, l.shape, on(x, t), on(w, t), none, on(y, t));
            OP(conv_down, l.shape, on(v, t), on(turned, t), on(dx, t));
            OP(conv_weights, l.shape, 2, on(v, t), on(x, t), true, scratch->tensor[t], on(dw, t));
        } else {
            OP(conv, l.shape, on(x, t), on(w, t), none, on(y, t));
            OP(conv, l.shape, on(v, t), on(turned, t), none, on(dx, t));
            OP(conv_weights, l.shape, 1, on(x, t), on(v, t), false, scratch->tensor[t], on(dw, t));
        }
        float *ys = download(y, t), *dxs = download(dx, t), *dws = download(dw, t);
        double wanted = dot(ys, y, v), size = sqrt((double)(v->rows * l.outputs * l.inputs * l.shape.width));
        same_dot(b, t, "<x, dx>", dot(dxs, dx, x), wanted, size);
        same_dot(b, t, "<w, dw>", dot(dws, dw, w), wanted, size);
        free(ys);
        free(dxs);
        free(dws);
    }
    finish(b);
}

static void backwards_are_adjoints(void **state) {
    (void)state;
    bench b = {.random = 107};
    for (int trial = 0; trial < 240; trial++)
        try_adjoint(&b, any_layer(&b, 60000), trial % 3);
}

/* --- batch norm ----------------------------------------------------------------------------------------- */

static const icma_activation activations[] = {ICMA_ACTIVATION_NONE, ICMA_ACTIVATION_LEAKY_RELU,
                                              ICMA_ACTIVATION_ELU};

static double activate(icma_activation act, double x) {
    return x > 0 || act == ICMA_ACTIVATION_NONE ? x
           : act == ICMA_ACTIVATION_ELU         ? expm1(x)
                                                : x * (double)0.01F;
}

static double slope(icma_activation act, double x) {
    return x > 0 || act == ICMA_ACTIVATION_NONE ? 1 : act == ICMA_ACTIVATION_ELU ? exp(x) : (double)0.01F;
}

typedef struct norm {
    operand *x, *gamma, *beta, *mean, *variance;
    icma_activation act;
    float epsilon;
} norm;

static size_t some_rows(bench *b, size_t columns) {
    static const size_t rows[] = {1, 2, 3, 5, 8, 31, 33, 64, 257, 1000, 4099};
    for (;;) {
        size_t r = rows[pick(b, COUNT(rows))];
        if (r * columns <= 60000)
            return r;
    }
}

static size_t some_columns(bench *b) {
    static const size_t columns[] = {1,  2,  3,  5,  7,  8,   8,   12,  16,  16,
                                     24, 31, 32, 33, 64, 100, 128, 129, 256, 300};
    return columns[pick(b, COUNT(columns))];
}

static norm any_norm(bench *b, size_t rows, size_t columns, bool given) {
    norm n = {.act = activations[pick(b, 3)], .epsilon = 1e-5F};
    double centre = pick(b, 3) ? 0.3 : 300, spread = pick(b, 3) ? 1 : 0.01;
    n.x = begin(b, rows, columns, false);
    FOR_EACH_CELL(n.x)
    *cell(n.x, i, j) =
        (float)(centre * (1 + (double)j / (double)columns) + spread * support_normal(&b->random));
    upload(n.x);
    n.gamma = normals(b, 1, columns, false);
    n.beta = normals(b, 1, columns, false);
    n.mean = given ? normals(b, 1, columns, false) : blank(b, 1, columns);
    n.variance = begin(b, 1, columns, !given);
    for (size_t j = 0; given && j < columns; j++)
        *cell(n.variance, 0, j) = (float)(0.1 + support_uniform(&b->random));
    upload(n.variance);
    return n;
}

static void true_moments(const norm *n, size_t j, double *mean, double *variance) {
    double rows = (double)n->x->rows;
    *mean = *variance = 0;
    for (size_t i = 0; i < n->x->rows; i++)
        *mean += (double)*cell(n->x, i, j) / rows;
    for (size_t i = 0; i < n->x->rows; i++)
        *variance += ((double)*cell(n->x, i, j) - *mean) * ((double)*cell(n->x, i, j) - *mean) / rows;
}

/* The activation's argument, and how far rounding may carry it: the mean is rounded, and x - mean takes that
 * over. */
static double argument(const norm *n, size_t i, size_t j, double mean, double variance, double *rounding) {
    double inverse = 1 / sqrt(variance + (double)n->epsilon), gamma = (double)*cell(n->gamma, 0, j),
           apart = (double)*cell(n->x, i, j) - mean;
    *rounding = fabs(gamma) * inverse * (fabs(mean) + fabs(apart)) + fabs((double)*cell(n->beta, 0, j));
    return gamma * inverse * apart + (double)*cell(n->beta, 0, j);
}

static void batch_norm_normalises(void **state) {
    (void)state;
    bench b = {.random = 108};
    for (int trial = 0; trial < 300; trial++) {
        bool given = trial % 3 == 0;
        size_t columns = some_columns(&b), rows = some_rows(&b, columns);
        norm n = any_norm(&b, rows, columns, given);
        operand *y = blank(&b, rows, columns);
        expected ey = expect(y), em = expect(n.mean), ev = expect(n.variance);
        for (size_t j = 0; j < columns; j++) {
            double mean, variance, rounding;
            true_moments(&n, j, &mean, &variance);
            add_term(&em, 0, j, mean);
            add_term(&ev, 0, j, variance);
            ev.terms[j] += 1e-10 * mean * mean;
            if (given) {
                mean = (double)*cell(n.mean, 0, j);
                variance = (double)*cell(n.variance, 0, j);
            }
            for (size_t i = 0; i < rows; i++) {
                add_term(&ey, i, j, activate(n.act, argument(&n, i, j, mean, variance, &rounding)));
                ey.terms[i * columns + j] += rounding;
            }
        }
        b.op = given ? "batch_norm_given" : "batch_norm";
        FOR_EACH_TABLE {
            if (given)
                OP(batch_norm_given, on(n.x, t), on(n.gamma, t), on(n.beta, t), n.epsilon, n.act,
                   on(n.mean, t), on(n.variance, t), on(y, t));
            else
                OP(batch_norm, on(n.x, t), on(n.gamma, t), on(n.beta, t), n.epsilon, n.act, on(n.mean, t),
                   on(n.variance, t), on(y, t));
        }
        check(&b, y, ey, 6);
        if (!given) {
            check(&b, n.mean, em, 2);
            check(&b, n.variance, ev, 4);
        } else {
            free(em.value);
            free(em.terms);
            free(ev.value);
            free(ev.terms);
        }
        finish(&b);
    }
}

/* sum of v act(batch norm(x + shift at (row, column))) over that column, all in double. */
static double objective(const norm *n, const operand *v, size_t row, size_t column, double shift,
                        double shift_gamma, double shift_beta) {
    double rows = (double)n->x->rows, mean = 0, variance = 0, sum = 0;
    for (size_t i = 0; i < n->x->rows; i++)
        mean += ((double)*cell(n->x, i, column) + (i == row ? shift : 0)) / rows;
    for (size_t i = 0; i < n->x->rows; i++) {
        double apart = (double)*cell(n->x, i, column) + (i == row ? shift : 0) - mean;
        variance += apart * apart / rows;
    }
    double scale = ((double)*cell(n->gamma, 0, column) + shift_gamma) / sqrt(variance + (double)n->epsilon);
    for (size_t i = 0; i < n->x->rows; i++) {
        double apart = (double)*cell(n->x, i, column) + (i == row ? shift : 0) - mean;
        sum += (double)*cell(v, i, column) *
               activate(n->act, scale * apart + (double)*cell(n->beta, 0, column) + shift_beta);
    }
    return sum;
}

/* Where an argument lies so close to 0 that rounding, or the step of a difference, decides which side it is
 * on. */
static bool near_the_bend(const norm *n, double within) {
    for (size_t j = 0; j < n->x->columns; j++) {
        double mean, variance, rounding;
        true_moments(n, j, &mean, &variance);
        for (size_t i = 0; i < n->x->rows; i++)
            if (fabs(argument(n, i, j, mean, variance, &rounding)) <= within + 4e-7 * rounding)
                return n->act == ICMA_ACTIVATION_LEAKY_RELU;
    }
    return false;
}

static norm norm_off_the_bend(bench *b, size_t rows, size_t columns, double within) {
    for (;;) {
        norm n = any_norm(b, rows, columns, false);
        if (!near_the_bend(&n, within))
            return n;
        FOR_EACH_TABLE OP(fill, 0, on(n.mean, t));
        b->op = "fill";
        finish(b);
    }
}

/* Runs forward, then backward from `dy`. */
static void run_backward(const norm *n, const operand *y, const operand *dy, const operand *dgamma,
                         const operand *dbeta, const operand *dx) {
    FOR_EACH_TABLE {
        OP(batch_norm, on(n->x, t), on(n->gamma, t), on(n->beta, t), n->epsilon, n->act, on(n->mean, t),
           on(n->variance, t), on(y, t));
        OP(batch_norm_backward, on(n->x, t), on(n->gamma, t), on(n->beta, t), n->epsilon, n->act,
           on(n->mean, t), on(n->variance, t), on(dy, t), on(dgamma, t), on(dbeta, t), on(dx, t));
    }
}

static void batch_norm_backward_is_the_difference(void **state) {
    (void)state;
    bench b = {.random = 109, .op = "batch_norm_backward"};
    for (int trial = 0; trial < 60; trial++) {
        size_t rows = 2 + pick(&b, 12), columns = 1 + pick(&b, 40);
        norm n = norm_off_the_bend(&b, rows, columns, 1e-3);
        b.op = "batch_norm_backward";
        operand *dy = normals(&b, rows, columns, false), *y = blank(&b, rows, columns),
                *dx = blank(&b, rows, columns), *dgamma = blank(&b, 1, columns),
                *dbeta = blank(&b, 1, columns);
        run_backward(&n, y, dy, dgamma, dbeta, dx);
        FOR_EACH_TABLE {
            float *found = download(dx, t), *found_gamma = download(dgamma, t),
                  *found_beta = download(dbeta, t);
            for (size_t j = 0; j < columns; j++) {
                double mean, variance;
                true_moments(&n, j, &mean, &variance);
                double h = 1e-5, step = h * sqrt(variance + 1e-5),
                       tolerance = 2e-4 * (double)rows + 1e-5 * fabs(mean) / sqrt(variance),
                       scale = 1 + fabs((double)*cell(n.gamma, 0, j));
                double by_gamma =
                    (objective(&n, dy, 0, j, 0, h, 0) - objective(&n, dy, 0, j, 0, -h, 0)) / (2 * h);
                double by_beta =
                    (objective(&n, dy, 0, j, 0, 0, h) - objective(&n, dy, 0, j, 0, 0, -h)) / (2 * h);
                assert_true(fabs((double)found_gamma[dgamma->offset + j] - by_gamma) <= tolerance * scale);
                assert_true(fabs((double)found_beta[dbeta->offset + j] - by_beta) <= tolerance * scale);
                for (size_t i = 0; i < rows; i++) {
                    double by_x =
                        (objective(&n, dy, i, j, step, 0, 0) - objective(&n, dy, i, j, -step, 0, 0)) /
                        (2 * h); /* times the deviation */
                    double got = (double)found[dx->offset + i * dx->stride + j] * step / h;
                    if (!(fabs(got - by_x) <= tolerance * scale))
                        fail_msg("batch_norm_backward by %s, activation %d: (%zu, %zu) of %zu x %zu is %.9g, "
                                 "the difference %.9g",
                                 tables[t].name, (int)n.act, i, j, rows, columns, got, by_x);
                }
            }
            free(found);
            free(found_gamma);
            free(found_beta);
        }
        finish(&b);
    }
}

/* Larger shapes, in place too, against the formula in double. */
static void batch_norm_goes_backward(void **state) {
    (void)state;
    bench b = {.random = 110};
    for (int trial = 0; trial < 150; trial++) {
        size_t columns = some_columns(&b), rows = some_rows(&b, columns);
        bool in_place = trial % 2;
        norm n = norm_off_the_bend(&b, rows, columns, 0);
        b.op = "batch_norm_backward";
        operand *dy = normals(&b, rows, columns, in_place), *y = blank(&b, rows, columns),
                *dx = in_place ? dy : blank(&b, rows, columns), *dgamma = blank(&b, 1, columns),
                *dbeta = blank(&b, 1, columns);
        expected ex = expect(dx), eg = expect(dgamma), eb = expect(dbeta);
        for (size_t j = 0; j < columns; j++) {
            double mean, variance, rounding, relative = 0;
            true_moments(&n, j, &mean, &variance);
            double inverse = 1 / sqrt(variance + (double)n.epsilon), shift = inverse * fabs(mean);
            for (size_t i = 0; i < rows; i++) {
                double d = (double)*cell(dy, i, j) *
                           slope(n.act, argument(&n, i, j, mean, variance, &rounding)),
                       u = inverse * ((double)*cell(n.x, i, j) - mean);
                add_term(&eb, 0, j, d);
                add_term(&eg, 0, j, d * u);
                eb.terms[j] += fabs(d) * rounding; /* the slope of ELU at a rounded argument */
                eg.terms[j] += fabs(d) * (shift + rounding * fabs(u));
                relative += (fabs(d) * (1 + rounding)) / (double)rows;
            }
            for (size_t i = 0; i < rows; i++) {
                double d = (double)*cell(dy, i, j) *
                           slope(n.act, argument(&n, i, j, mean, variance, &rounding)),
                       u = inverse * ((double)*cell(n.x, i, j) - mean),
                       scale = (double)*cell(n.gamma, 0, j) * inverse;
                add_term(&ex, i, j, scale * d);
                add_term(&ex, i, j, -scale * eb.value[j] / (double)rows);
                add_term(&ex, i, j, -scale * u * eg.value[j] / (double)rows);
                ex.terms[i * columns + j] +=
                    fabs(scale) *
                    (fabs(d) * rounding + relative +
                     (eg.terms[j] * (fabs(u) + shift) + fabs(u) * shift * eg.terms[j]) / (double)rows);
            }
        }
        run_backward(&n, y, dy, dgamma, dbeta, dx);
        check(&b, dx, ex, 12);
        check(&b, dgamma, eg, 12);
        check(&b, dbeta, eb, 12);
        finish(&b);
    }
}

static void activations_go_backward(void **state) {
    (void)state;
    bench b = {.random = 111, .op = "activation_backward"};
    for (int trial = 0; trial < 90; trial++) {
        icma_activation act = activations[trial % 3];
        size_t rows = 1 + pick(&b, 40), columns = 1 + pick(&b, trial % 10 ? 70 : 1500);
        bool in_place = trial % 2;
        operand *x = normals(&b, rows, columns, false), *dy = normals(&b, rows, columns, in_place),
                *dx = in_place ? dy : blank(&b, rows, columns);
        expected e = expect(dx);
        FOR_EACH_CELL(x)
        add_term(&e, i, j, (double)*cell(dy, i, j) * slope(act, (double)*cell(x, i, j)));
        FOR_EACH_CELL(x)
        e.terms[i * columns + j] += fabs((double)*cell(dy, i, j)); /* elu + 1 rounds near -1 */
        FOR_EACH_TABLE OP(activation_backward, act, on(x, t), on(dy, t), on(dx, t));
        check(&b, dx, e, 2);
        finish(&b);
    }
}

/* --- the rest ------------------------------------------------------------------------------------------- */

static void blends(void **state) {
    (void)state;
    bench b = {.random = 112, .op = "blend"};
    for (int trial = 0; trial < 30; trial++) {
        operand *x = normals(&b, 1 + pick(&b, 9), 1 + pick(&b, 50), false),
                *y = normals(&b, x->rows, x->columns, true);
        expected e = expect(y);
        FOR_EACH_CELL(y) {
            add_term(&e, i, j, (double)0.9F * (double)*cell(y, i, j));
            add_term(&e, i, j, (double)-0.3F * (double)*cell(x, i, j));
        }
        FOR_EACH_TABLE OP(blend, 0.9F, -0.3F, on(x, t), on(y, t));
        check(&b, y, e, 3);
        finish(&b);
    }
}

static void adam_decays_weights(void **state) {
    (void)state;
    bench b = {.random = 113, .op = "adam"};
    for (int trial = 0; trial < 40; trial++) {
        size_t rows = 1 + pick(&b, 9), columns = 1 + pick(&b, trial % 8 ? 100 : 40000);
        icma_adam o = {.learning_rate = 0.05F,
                       .beta1 = 0.9F,
                       .beta2 = 0.99F,
                       .epsilon = 1e-8F,
                       .weight_decay = trial % 2 ? 0.3F : 0,
                       .step = 1 + pick(&b, 100)};
        operand *g = normals(&b, rows, columns, false), *m = normals(&b, rows, columns, true),
                *v = begin(&b, rows, columns, true), *p = normals(&b, rows, columns, true);
        FOR_EACH_CELL(v)
        *cell(v, i, j) = (float)(0.5 + support_uniform(&b.random));
        upload(v);
        expected e = expect(p);
        double c1 = 1 - pow((double)o.beta1, (double)o.step), c2 = 1 - pow((double)o.beta2, (double)o.step);
        FOR_EACH_CELL(p) {
            double d = (double)*cell(g, i, j),
                   one = (double)o.beta1 * (double)*cell(m, i, j) + (1 - (double)o.beta1) * d,
                   two = (double)o.beta2 * (double)*cell(v, i, j) + (1 - (double)o.beta2) * d * d;
            double rate = (double)o.learning_rate / c1 / (sqrt(two / c2) + (double)o.epsilon);
            add_term(&e, i, j,
                     (double)*cell(p, i, j) * (1 - (double)o.learning_rate * (double)o.weight_decay));
            add_term(&e, i, j, -rate * one);
            e.terms[i * columns + j] += rate * (fabs((double)*cell(m, i, j)) + fabs(d));
        }
        FOR_EACH_TABLE OP(adam, o, on(g, t), on(m, t), on(v, t), on(p, t));
        check(&b, p, e, 12);
        finish(&b);
    }
}

/* --- threads -------------------------------------------------------------------------------------------- */

enum { RESULTS = 9 };

/* Every op on a shape that is worth several threads; `out` are copies of the results. */
static void run_all(bench *b, layer l, float *out[RESULTS]) {
    const int t = 1;
    size_t rows = l.shape.batch * l.length;
    icma_adam o = {.learning_rate = 0.05F, .beta1 = 0.9F, .beta2 = 0.99F, .epsilon = 1e-8F, .step = 1};
    operand *x = normals(b, 2 * rows, l.inputs, false),
            *w = normals(b, l.shape.width * l.inputs, l.outputs, true), *y = blank(b, rows, l.outputs),
            *up = blank(b, 2 * rows, l.inputs);
    operand *turned = blank(b, l.shape.width * l.outputs, l.inputs), *g = blank(b, w->rows, w->columns),
            *scratch = scratch_for(b, &l), *factors = normals(b, 2, l.outputs, false),
            *means = normals(b, 4, l.outputs, true);
    operand *normal = blank(b, rows, l.outputs), *dx = blank(b, rows, l.outputs),
            *moments = normals(b, 2 * w->rows, w->columns, true);
    icma_matrix none = {0}, gamma = icma_matrix_block(on(factors, t), 0, 0, 1, l.outputs),
                beta = icma_matrix_block(on(factors, t), 1, 0, 1, l.outputs);
    icma_matrix row[4];
    for (size_t k = 0; k < 4; k++)
        row[k] = icma_matrix_block(on(means, t), k, 0, 1, l.outputs);
    OP(conv_down, l.shape, on(x, t), on(w, t), on(y, t));
    OP(turn_weights, l.shape, on(w, t), false, on(turned, t));
    OP(conv_up, l.shape, on(y, t), on(turned, t), none, on(up, t));
    OP(conv_weights, l.shape, 2, on(x, t), on(y, t), false, scratch->tensor[t], on(g, t));
    OP(batch_norm, on(y, t), gamma, beta, 1e-5F, ICMA_ACTIVATION_ELU, row[0], row[1], on(normal, t));
    OP(batch_norm_backward, on(y, t), gamma, beta, 1e-5F, ICMA_ACTIVATION_ELU, row[0], row[1], on(normal, t),
       row[2], row[3], on(dx, t));
    OP(activation_backward, ICMA_ACTIVATION_ELU, on(y, t), on(dx, t), on(dx, t));
    OP(elu, on(up, t), on(up, t));
    OP(fill, 1, icma_matrix_block(on(moments, t), w->rows, 0, w->rows, w->columns));
    OP(adam, o, on(g, t), icma_matrix_block(on(moments, t), 0, 0, w->rows, w->columns),
       icma_matrix_block(on(moments, t), w->rows, 0, w->rows, w->columns), on(w, t));
    const operand *results[RESULTS] = {y, turned, up, g, means, normal, dx, moments, w};
    for (size_t k = 0; k < RESULTS; k++) {
        float *all = download(results[k], t);
        out[k] = floats(results[k]->rows * results[k]->columns);
        for (size_t i = 0; i < results[k]->rows; i++)
            memcpy(out[k] + i * results[k]->columns, all + results[k]->offset + i * results[k]->stride,
                   results[k]->columns * sizeof(float));
        free(all);
    }
    b->op = "threads";
    finish(b);
}

static void threads_do_not_matter(void **state) {
    (void)state;
    static const layer layers[] = {{{2, 7}, 5000, 1, 8},
                                   {{2, 7}, 3001, 8, 16},
                                   {{1, 7}, 900, 33, 48},
                                   {{2, 7}, 150, 129, 100},
                                   {{3, 5}, 700, 8, 8}};
    static const int threads[] = {1, 2, 3, 7};
    for (size_t k = 0; k < COUNT(layers); k++) {
        float *first[RESULTS], *again[RESULTS];
        for (size_t i = 0; i < COUNT(threads); i++) {
            bench b = {.random = 114 + k};
            const layer *l = &layers[k];
            size_t rows = l->shape.batch * l->length, weights = l->shape.width * l->inputs * l->outputs;
            const size_t sizes[RESULTS] = {rows * l->outputs, weights,        2 * rows * l->inputs,
                                           weights,           4 * l->outputs, rows * l->outputs,
                                           rows * l->outputs, 2 * weights,    weights};
            icma_set_threads(threads[i]);
            run_all(&b, *l, i == 0 ? first : again);
            for (size_t r = 0; i > 0 && r < RESULTS; r++) {
                assert_memory_equal(first[r], again[r], sizes[r] * sizeof(float));
                free(again[r]);
            }
        }
        for (size_t r = 0; r < RESULTS; r++)
            free(first[r]);
    }
    icma_set_threads(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convolutions_are_exact),
        cmocka_unit_test(taps_beyond_the_ends_are_left_out),
        cmocka_unit_test(elu_is_exact),
        cmocka_unit_test(elu_is_accurate),
        cmocka_unit_test(conv_down_is_a_strided_convolution),
        cmocka_unit_test(weights_are_turned),
        cmocka_unit_test(gradients_of_weights_are_sums_over_positions),
        cmocka_unit_test(backwards_are_adjoints),
        cmocka_unit_test(batch_norm_normalises),
        cmocka_unit_test(batch_norm_backward_is_the_difference),
        cmocka_unit_test(batch_norm_goes_backward),
        cmocka_unit_test(activations_go_backward),
        cmocka_unit_test(blends),
        cmocka_unit_test(adam_decays_weights),
        cmocka_unit_test(threads_do_not_matter),
    };
    return cmocka_run_group_tests(tests, open_tables, NULL);
}
