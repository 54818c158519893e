/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The op table: the reference and the fast table against definitions written out here, on adversarial shapes,
 * with sentinels around and between the rows of every operand; the exact ops bit for bit, by every kernel set
 * that the processor has; independence of the number of threads.
 */
#include "ops.h"
#include "ops_host.h"
#include "rng.h"
#include "support.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const icma_ops *tables[SUPPORT_TABLES];
static int table_count;

static const icma_ops *table(int which) {
    return tables[which];
}
enum { OPERANDS = 8 };

/* --- operands ------------------------------------------------------------------------------------------ */

/* A matrix somewhere inside a larger tensor, the same one on every table. Everything outside it is a sentinel
 * (a NaN that would spoil any sum that reads it), and operands that are not outputs may not change at all. */
typedef struct operand {
    icma_element element;
    size_t total, offset, rows, columns, stride;
    void *before;
    icma_tensor *tensor[SUPPORT_TABLES];
    bool output;
} operand;

typedef struct bench {
    uint64_t random;
    operand list[OPERANDS];
    size_t count;
    const char *op;
} bench;

static size_t element_size(icma_element element) {
    return element == ICMA_ELEMENT_I16 ? 2 : 4;
}

static size_t pick(bench *b, size_t bound) {
    return (size_t)(support_uniform(&b->random) * (double)bound);
}

static void put_sentinels(operand *o) {
    for (size_t i = 0; i < o->total; i++) {
        uint32_t nan = 0x7FDEADBEU;
        int16_t least = INT16_MIN;
        if (o->element == ICMA_ELEMENT_I16)
            memcpy((char *)o->before + 2 * i, &least, 2);
        else
            memcpy((char *)o->before + 4 * i, &nan, 4);
    }
}

/* Starts an operand; its numbers are all sentinels until they are set, and upload() puts it on the tables. */
static operand *begin(bench *b, icma_element element, size_t rows, size_t columns, bool output) {
    static const size_t pads[] = {0, 0, 1, 3, 16, 61};
    assert_true(b->count < OPERANDS);
    operand *o = &b->list[b->count++];
    *o = (operand){
        .element = element, .offset = pick(b, 40), .rows = rows, .columns = columns, .output = output};
    o->stride = columns + pads[pick(b, COUNT(pads))];
    o->stride += o->stride == 0;
    o->total = o->offset + rows * o->stride + 1 + pick(b, 40);
    o->before = malloc(o->total * element_size(element));
    assert_non_null(o->before);
    put_sentinels(o);
    return o;
}

static size_t index_of(const operand *o, size_t i, size_t j) {
    return o->offset + i * o->stride + j;
}

static float *cell(const operand *o, size_t i, size_t j) {
    assert_true(i < o->rows && j < o->columns);
    return (float *)o->before + index_of(o, i, j);
}

static int16_t *cell_i16(const operand *o, size_t i, size_t j) {
    return (int16_t *)o->before + index_of(o, i, j);
}

static void upload(operand *o) {
    icma_error error = {0};
    for (int t = 0; t < table_count; t++) {
        const icma_ops *ops = table(t);
        assert_int_equal(ops->alloc(ops->device, o->element, o->total, &o->tensor[t], &error), ICMA_OK);
        assert_int_equal(ops->upload(ops->device, o->tensor[t], 0, o->before, o->total, &error), ICMA_OK);
    }
}

static icma_matrix on(const operand *o, int t) {
    return (icma_matrix){o->tensor[t], o->offset, o->rows, o->columns, o->stride};
}

static operand *normals(bench *b, size_t rows, size_t columns, bool output) {
    operand *o = begin(b, ICMA_ELEMENT_F32, rows, columns, output);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            *cell(o, i, j) = (float)support_normal(&b->random);
    upload(o);
    return o;
}

/* An output whose cells hold sentinels at first: an op that reads it gives NaN. */
static operand *blank(bench *b, size_t rows, size_t columns) {
    operand *o = begin(b, ICMA_ELEMENT_F32, rows, columns, true);
    upload(o);
    return o;
}

/* Zeros of both signs, denormals, tiny and large numbers; products of two and sums of 2^40 of those stay
 * finite. */
static float wild(bench *b) {
    static const float special[] = {
        0.0F,  -0.0F,   0x1p-149F, -0x1p-149F, 0x1.fffffcp-127F, -0x1p-126F,    1.0F,
        -1.0F, 0x1p30F, -0x1p30F,  0x1p-60F,   0x1.fffffep40F,   0x1.000002p0F, -0x1.555556p-3F};
    switch (pick(b, 3)) {
    case 0:
        return special[pick(b, COUNT(special))];
    case 1:
        return (float)(support_normal(&b->random) * ldexp(1, (int)pick(b, 80) - 60));
    default:
        return (float)support_normal(&b->random);
    }
}

static operand *wilds(bench *b, size_t rows, size_t columns, bool output) {
    operand *o = begin(b, ICMA_ELEMENT_F32, rows, columns, output);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            *cell(o, i, j) = wild(b);
    upload(o);
    return o;
}

static operand *integers(bench *b, size_t rows, size_t columns) {
    operand *o = begin(b, ICMA_ELEMENT_I16, rows, columns, false);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            *cell_i16(o, i, j) =
                (int16_t)(pick(b, 8) == 0 ? (pick(b, 2) ? 32767 : -32767) : (int)pick(b, 65535) - 32767);
    upload(o);
    return o;
}

static operand *indices(bench *b, size_t count, size_t bound) {
    operand *o = begin(b, ICMA_ELEMENT_U32, 1, count, false);
    for (size_t j = 0; j < count; j++)
        ((uint32_t *)o->before)[index_of(o, 0, j)] = (uint32_t)pick(b, bound);
    upload(o);
    return o;
}

static void *download(const operand *o, int t) {
    const icma_ops *ops = table(t);
    icma_error error = {0};
    void *values = malloc(o->total * element_size(o->element));
    assert_non_null(values);
    assert_int_equal(ops->download(ops->device, o->tensor[t], 0, values, o->total, &error), ICMA_OK);
    return values;
}

static bool is_inside(const operand *o, size_t at) {
    return at >= o->offset && (at - o->offset) / o->stride < o->rows &&
           (at - o->offset) % o->stride < o->columns;
}

/* What may not change did not. */
static void check_sentinels(const bench *b) {
    for (size_t k = 0; k < b->count; k++)
        for (int t = 0; t < table_count; t++) {
            const operand *o = &b->list[k];
            size_t size = element_size(o->element);
            char *after = download(o, t);
            for (size_t i = 0; i < o->total; i++)
                if (!(o->output && is_inside(o, i)) &&
                    memcmp(after + i * size, (char *)o->before + i * size, size) != 0)
                    fail_msg("%s by %s wrote element %zu of operand %zu (%zu x %zu, stride %zu, offset %zu)",
                             b->op, table(t)->name, i, k, o->rows, o->columns, o->stride, o->offset);
            free(after);
        }
}

static void finish(bench *b) {
    check_sentinels(b);
    for (size_t k = 0; k < b->count; k++) {
        for (int t = 0; t < table_count; t++)
            table(t)->release(table(t)->device, b->list[k].tensor[t]);
        free(b->list[k].before);
    }
    b->count = 0;
}

/* --- comparing ----------------------------------------------------------------------------------------- */

/* Expected values of an output, in double, and the sum of absolute values of the terms that make each of
 * them. */
typedef struct expected {
    size_t rows, columns;
    double *value, *terms;
} expected;

static expected expect(const operand *o) {
    expected e = {o->rows, o->columns, calloc(o->rows * o->columns + 1, sizeof(double)),
                  calloc(o->rows * o->columns + 1, sizeof(double))};
    assert_true(e.value && e.terms);
    return e;
}

static void add_term(expected *e, size_t i, size_t j, double term) {
    e->value[i * e->columns + j] += term;
    e->terms[i * e->columns + j] += fabs(term);
}

/* Both tables are within `ulps` roundings of the terms' sum. Frees `e`. */
static void check(const bench *b, const operand *o, expected e, double ulps) {
    for (int t = 0; t < table_count; t++) {
        float *after = download(o, t);
        for (size_t i = 0; i < o->rows; i++)
            for (size_t j = 0; j < o->columns; j++) {
                double found = after[index_of(o, i, j)], wanted = e.value[i * e.columns + j];
                if (!(fabs(found - wanted) <= ulps * FLT_EPSILON * e.terms[i * e.columns + j] + 1e-37))
                    fail_msg("%s by %s: (%zu, %zu) of %zu x %zu is %.9g, not %.9g (terms %.9g)", b->op,
                             table(t)->name, i, j, o->rows, o->columns, found, wanted,
                             e.terms[i * e.columns + j]);
            }
        free(after);
    }
    free(e.value);
    free(e.terms);
}

static bool same_bits(float a, float b) {
    return memcmp(&a, &b, sizeof a) == 0;
}

/* Both tables give the bits of `wanted`, rows x columns without gaps (a NaN matches any NaN). Frees it. */
static void check_bits(const bench *b, const operand *o, float *wanted) {
    for (int t = 0; t < table_count; t++) {
        float *after = download(o, t);
        for (size_t i = 0; i < o->rows; i++)
            for (size_t j = 0; j < o->columns; j++) {
                float found = after[index_of(o, i, j)], right = wanted[i * o->columns + j];
                if (!same_bits(found, right) && !(isnan(found) && isnan(right)))
                    fail_msg("%s by %s: (%zu, %zu) of %zu x %zu is %a, not %a", b->op, table(t)->name, i, j,
                             o->rows, o->columns, found, right);
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

/* --- shapes -------------------------------------------------------------------------------------------- */

static const size_t sizes[] = {1,  2,  7,   8,   9,   15,  16,  17,   31,   33,   63,
                               64, 65, 127, 128, 129, 255, 257, 1000, 1023, 1024, 1025};

static size_t any_size(bench *b, size_t most) {
    for (;;) {
        size_t size = pick(b, 12) == 0 ? 0 : sizes[pick(b, COUNT(sizes))];
        if (size <= most)
            return size;
    }
}

#define FOR_EACH_TABLE for (int t = 0; t < table_count; t++)
#define FOR_EACH_CELL(o)                                                                                     \
    for (size_t i = 0; i < (o)->rows; i++)                                                                   \
        for (size_t j = 0; j < (o)->columns; j++)

/* --- memory -------------------------------------------------------------------------------------------- */

static void tensors_start_zeroed_and_keep_what_they_are_given(void **state) {
    (void)state;
    static const icma_element elements[] = {ICMA_ELEMENT_F32, ICMA_ELEMENT_I16, ICMA_ELEMENT_U32};
    FOR_EACH_TABLE for (size_t e = 0; e < COUNT(elements); e++) {
        const icma_ops *ops = table(t);
        size_t size = element_size(elements[e]);
        icma_tensor *tensor;
        icma_error error = {0};
        uint8_t bytes[4 * 100], read[4 * 100];
        assert_int_equal(ops->alloc(ops->device, elements[e], 100, &tensor, &error), ICMA_OK);
        assert_int_equal(ops->download(ops->device, tensor, 0, read, 100, &error), ICMA_OK);
        for (size_t i = 0; i < 100 * size; i++)
            assert_int_equal(read[i], 0);
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = (uint8_t)(i * 37 + 1);
        assert_int_equal(ops->upload(ops->device, tensor, 40, bytes, 17, &error), ICMA_OK);
        assert_int_equal(ops->upload(ops->device, tensor, 100, bytes, 0, &error), ICMA_OK);
        assert_int_equal(ops->download(ops->device, tensor, 39, read, 19, &error), ICMA_OK);
        for (size_t i = 0; i < 19 * size; i++)
            assert_int_equal(read[i], i < size || i >= 18 * size ? 0 : bytes[i - size]);
        ops->release(ops->device, tensor);
        ops->release(ops->device, NULL);
    }
}

static void a_tensor_that_does_not_fit_is_a_memory_error(void **state) {
    (void)state;
    FOR_EACH_TABLE {
        icma_tensor *tensor = (icma_tensor *)(void *)&tensor;
        icma_error error = {0};
        assert_int_equal(table(t)->alloc(table(t)->device, ICMA_ELEMENT_F32, SIZE_MAX / 2, &tensor, &error),
                         ICMA_E_MEMORY);
        assert_null(tensor);
        assert_int_equal(error.status, ICMA_E_MEMORY);
    }
}

static void blocks_are_where_they_say(void **state) {
    (void)state;
    icma_matrix whole = icma_matrix_of(NULL, 10, 7), block = icma_matrix_block(whole, 2, 3, 4, 2);
    assert_int_equal(whole.stride, 7);
    assert_int_equal(block.offset, 17);
    assert_int_equal(block.stride, 7);
    block = icma_matrix_block(block, 1, 1, 3, 1);
    assert_int_equal(block.offset, 25);
    assert_true(block.rows == 3 && block.columns == 1);
}

/* --- products ------------------------------------------------------------------------------------------ */

static void try_gemm(bench *b, size_t m, size_t n, size_t k, bool ta, bool tb, float alpha, float beta) {
    operand *a = normals(b, ta ? k : m, ta ? m : k, false), *x = normals(b, tb ? n : k, tb ? k : n, false);
    operand *c = beta == 0 ? blank(b, m, n) : normals(b, m, n, true);
    expected e = expect(c);
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            for (size_t l = 0; l < k; l++)
                add_term(&e, i, j,
                         (double)alpha * *cell(a, ta ? l : i, ta ? i : l) * *cell(x, tb ? j : l, tb ? l : j));
            if (beta != 0)
                add_term(&e, i, j, (double)beta * *cell(c, i, j));
        }
    b->op = "gemm";
    FOR_EACH_TABLE table(t)->gemm(table(t)->device, alpha, on(a, t), ta, on(x, t), tb, beta, on(c, t));
    check(b, c, e, 3 + sqrt((double)k));
    finish(b);
}

static void gemm_is_the_product(void **state) {
    (void)state;
    static const float factors[] = {1, 1, 0, -0.75F};
    bench b = {.random = 11};
    for (int trial = 0; trial < 400; trial++) {
        size_t m = any_size(&b, 1025), n = any_size(&b, 1025), k = any_size(&b, 1025);
        if (m * n * k > (trial % 50 == 0 ? 4000000 : 200000)) {
            trial--;
            continue;
        }
        try_gemm(&b, m, n, k, pick(&b, 2), pick(&b, 2), factors[pick(&b, 4)], factors[pick(&b, 4)]);
    }
    /* Over several tiles in both directions, and over the size from which threads are used. */
    try_gemm(&b, 520, 300, 17, false, false, 1, 0);
    try_gemm(&b, 257, 513, 9, true, true, 1, 1);
    try_gemm(&b, 1000, 7, 300, true, false, 1, 0);
}

/* One cell after `gram` was called twice on a matrix of `start`: what was there and twice the product. */
static void check_gram_cell(const operand *a, size_t i, size_t j, double factor, double start, double found) {
    double wanted = 0, terms = 0;
    for (size_t k = 0; k < a->columns; k++) {
        wanted += 2 * factor * *cell(a, i, k) * *cell(a, j, k);
        terms += fabs(2 * factor * *cell(a, i, k) * *cell(a, j, k));
    }
    if (!(fabs(found - start - wanted) <= (3 + sqrt((double)a->columns)) * FLT_EPSILON * terms + 1e-12 * fabs(start)))
        fail_msg("gram: (%zu, %zu) of %zu x %zu is %.17g, not %.17g", i, j, a->rows, a->columns, found, start + wanted);
}

/* Into a block of a larger matrix, of numbers that single precision could not hold beside what is added. */
static void try_gram(bench *b, size_t n, size_t l) {
    enum { OFFSET = 5, PAD = 3 };
    const double start = 1e6 + 1.0 / 3, factor = 1 + 1e-9;
    size_t stride = n + PAD, total = OFFSET + n * stride;
    operand *a = normals(b, n, l, false);
    double *values = calloc(total, sizeof *values);
    assert_non_null(values);
    b->op = "gram";
    FOR_EACH_TABLE {
        const icma_ops *ops = table(t);
        icma_tensor *c;
        icma_error error = {0};
        for (size_t i = 0; i < total; i++)
            values[i] = start;
        assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_F64, total, &c, &error), ICMA_OK);
        assert_int_equal(ops->upload(ops->device, c, 0, values, total, &error), ICMA_OK);
        for (int twice = 0; twice < 2; twice++)
            ops->gram(ops->device, on(a, t), factor, (icma_matrix){c, OFFSET, n, n, stride});
        assert_int_equal(ops->download(ops->device, c, 0, values, total, &error), ICMA_OK);
        for (size_t at = 0; at < total; at++) {
            size_t i = at < OFFSET ? n : (at - OFFSET) / stride, j = at < OFFSET ? n : (at - OFFSET) % stride;
            if (i >= n || j >= n) {
                assert_true(values[at] == start);
                continue;
            }
            check_gram_cell(a, i, j, factor, start, values[at]);
            assert_true(values[at] == values[OFFSET + j * stride + i]);
        }
        ops->release(ops->device, c);
    }
    free(values);
    finish(b);
}

static void gram_adds_up_in_double(void **state) {
    (void)state;
    bench b = {.random = 12};
    for (int trial = 0; trial < 60; trial++) {
        size_t n = any_size(&b, 257), l = any_size(&b, 1025);
        if (n && n * n * l <= 1000000)
            try_gram(&b, n, l);
    }
    try_gram(&b, 5, 0);
    try_gram(&b, 193, 65);
    try_gram(&b, 130, 300);
}

static void eigenvectors_are_orthonormal(void **state) {
    (void)state;
    enum { N = 23 };
    bench b = {.random = 25};
    double matrix[N][N], vectors[N][N], values[N];
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j <= i; j++)
            matrix[i][j] = matrix[j][i] = support_normal(&b.random);
    FOR_EACH_TABLE {
        icma_error error = {0};
        memcpy(vectors, matrix, sizeof matrix);
        assert_int_equal(table(t)->eigen(table(t)->device, N, vectors[0], values, &error), ICMA_OK);
        for (size_t k = 0; k < N; k++) {
            assert_true(k == 0 || values[k - 1] <= values[k]);
            for (size_t i = 0; i < N; i++) {
                double image = 0, product = 0;
                for (size_t j = 0; j < N; j++) {
                    image += matrix[i][j] * vectors[k][j];
                    product += vectors[k][j] * vectors[i][j];
                }
                assert_true(fabs(image - values[k] * vectors[k][i]) < 1e-12);
                assert_true(fabs(product - (i == k)) < 1e-12);
            }
        }
    }
}

/* --- rows and columns ---------------------------------------------------------------------------------- */

static void rows_are_added_and_summed(void **state) {
    (void)state;
    bench b = {.random = 13};
    for (int trial = 0; trial < 100; trial++) {
        size_t rows = any_size(&b, 129), columns = any_size(&b, 257);
        b.op = "add_row";
        operand *row = normals(&b, 1, columns, false), *y = normals(&b, rows, columns, true);
        expected e = expect(y);
        FOR_EACH_CELL(y) {
            add_term(&e, i, j, *cell(y, i, j));
            add_term(&e, i, j, *cell(row, 0, j));
        }
        FOR_EACH_TABLE table(t)->add_row(table(t)->device, on(row, t), on(y, t));
        check(&b, y, e, 1);
        finish(&b);

        b.op = "sum_rows";
        operand *x = normals(&b, rows, columns, false), *sum = blank(&b, 1, columns);
        e = expect(sum);
        FOR_EACH_CELL(x)
        add_term(&e, 0, j, *cell(x, i, j));
        FOR_EACH_TABLE table(t)->sum_rows(table(t)->device, on(x, t), on(sum, t));
        check(&b, sum, e, 1 + sqrt((double)rows));
        finish(&b);
    }
}

static void rows_are_gathered_and_scattered(void **state) {
    (void)state;
    bench b = {.random = 14};
    for (int trial = 0; trial < 100; trial++) {
        size_t from = 1 + any_size(&b, 65), count = any_size(&b, 65), columns = any_size(&b, 129),
               skip = pick(&b, 9);
        operand *index = indices(&b, skip + count, from);
        const uint32_t *at = (const uint32_t *)index->before + index->offset + skip;
        size_t first = index->offset + skip;
        b.op = "gather_rows";
        operand *x = normals(&b, from, columns, false), *y = blank(&b, count, columns);
        expected e = expect(y);
        FOR_EACH_CELL(y)
        add_term(&e, i, j, *cell(x, at[i], j));
        FOR_EACH_TABLE table(t)->gather_rows(table(t)->device, on(x, t), index->tensor[t], first, on(y, t));
        check(&b, y, e, 0);
        b.op = "scatter_rows"; /* some rows never, some often */
        operand *d = normals(&b, count, columns, false), *sum = normals(&b, from, columns, true);
        e = expect(sum);
        FOR_EACH_CELL(sum)
        add_term(&e, i, j, *cell(sum, i, j));
        FOR_EACH_CELL(d)
        add_term(&e, at[i], j, *cell(d, i, j));
        FOR_EACH_TABLE table(t)->scatter_rows(table(t)->device, on(d, t), index->tensor[t], first,
                                              on(sum, t));
        check(&b, sum, e, 2 + sqrt((double)count));
        finish(&b);
    }
}

static void axpy_multiply_and_fill(void **state) {
    (void)state;
    bench b = {.random = 15};
    for (int trial = 0; trial < 100; trial++) {
        size_t rows = any_size(&b, 129), columns = any_size(&b, 257);
        float alpha = (float)support_normal(&b.random);
        b.op = "axpy";
        operand *x = normals(&b, rows, columns, false), *y = normals(&b, rows, columns, true);
        expected e = expect(y);
        FOR_EACH_CELL(y) {
            add_term(&e, i, j, *cell(y, i, j));
            add_term(&e, i, j, (double)alpha * *cell(x, i, j));
        }
        FOR_EACH_TABLE table(t)->axpy(table(t)->device, alpha, on(x, t), on(y, t));
        check(&b, y, e, 2);
        finish(&b);

        b.op = "multiply"; /* by as many rows, or by one for all */
        bool broadcast = trial % 2;
        x = normals(&b, broadcast ? 1 : rows, columns, false);
        y = normals(&b, rows, columns, true);
        e = expect(y);
        FOR_EACH_CELL(y)
        add_term(&e, i, j, (double)*cell(y, i, j) * *cell(x, broadcast ? 0 : i, j));
        FOR_EACH_TABLE table(t)->multiply(table(t)->device, on(x, t), on(y, t));
        check(&b, y, e, 1);
        finish(&b);

        b.op = "fill";
        y = blank(&b, rows, columns);
        e = expect(y);
        FOR_EACH_CELL(y)
        add_term(&e, i, j, alpha);
        FOR_EACH_TABLE table(t)->fill(table(t)->device, alpha, on(y, t));
        check(&b, y, e, 0);
        finish(&b);
    }
}

/* --- the variational parts ----------------------------------------------------------------------------- */

static void latents_are_drawn_and_weighed(void **state) {
    (void)state;
    bench b = {.random = 16};
    for (int trial = 0; trial < 60; trial++) {
        size_t rows = any_size(&b, 65), columns = any_size(&b, 65);
        float weight = trial % 3 == 0 ? 0 : (float)support_uniform(&b.random);
        operand *mu = normals(&b, rows, columns, false), *logvar = normals(&b, rows, columns, false);
        operand *noise = normals(&b, rows, columns, false), *dz = normals(&b, rows, columns, false);
        operand *z = blank(&b, rows, columns), *dmu = blank(&b, rows, columns),
                *dlogvar = blank(&b, rows, columns);
        operand *kl = blank(&b, rows, columns);
        expected ez = expect(z), emu = expect(dmu), elogvar = expect(dlogvar), ekl = expect(kl);
        FOR_EACH_CELL(z) {
            double m = *cell(mu, i, j), v = *cell(logvar, i, j), n = *cell(noise, i, j), d = *cell(dz, i, j);
            add_term(&ez, i, j, m);
            add_term(&ez, i, j, exp(v / 2) * n);
            add_term(&emu, i, j, d);
            add_term(&emu, i, j, weight * m);
            add_term(&elogvar, i, j, d * n * exp(v / 2) / 2);
            add_term(&elogvar, i, j, weight * exp(v) / 2);
            add_term(&elogvar, i, j, -weight / 2.0);
            add_term(&ekl, i, j, exp(v) / 2);
            add_term(&ekl, i, j, m * m / 2);
            add_term(&ekl, i, j, -0.5);
            add_term(&ekl, i, j, -v / 2);
        }
        FOR_EACH_TABLE {
            const icma_ops *ops = table(t);
            ops->reparameterise(ops->device, on(mu, t), on(logvar, t), on(noise, t), on(z, t));
            ops->latent_backward(ops->device, on(mu, t), on(logvar, t), on(noise, t), on(dz, t), weight,
                                 on(dmu, t), on(dlogvar, t));
            ops->kl(ops->device, on(mu, t), on(logvar, t), on(kl, t));
        }
        b.op = "reparameterise";
        check(&b, z, ez, 6);
        b.op = "latent_backward (mu)";
        check(&b, dmu, emu, 3);
        b.op = "latent_backward (logvar)";
        check(&b, dlogvar, elogvar, 8);
        b.op = "kl";
        check(&b, kl, ekl, 6);
        finish(&b);
    }
}

static void errors_are_squared_and_weighed(void **state) {
    (void)state;
    bench b = {.random = 17};
    for (int trial = 0; trial < 60; trial++) {
        size_t rows = any_size(&b, 65), columns = any_size(&b, 257);
        float scale = (float)support_normal(&b.random);
        operand *p = normals(&b, rows, columns, false), *q = normals(&b, rows, columns, false),
                *weight = normals(&b, 1, columns, false);
        operand *out = blank(&b, rows, 1), *dq = blank(&b, rows, columns);
        expected e = expect(out), edq = expect(dq);
        FOR_EACH_CELL(p) {
            double d = (double)*cell(q, i, j) - *cell(p, i, j), w = *cell(weight, 0, j);
            add_term(&e, i, 0, w * d * d);
            add_term(&edq, i, j, 2 * scale * w * d);
        }
        b.op = "squared_error";
        FOR_EACH_TABLE table(t)->squared_error(table(t)->device, on(p, t), on(q, t), on(weight, t),
                                               on(out, t));
        check(&b, out, e, 5 + sqrt((double)columns));
        b.op = "squared_error_backward";
        FOR_EACH_TABLE table(t)->squared_error_backward(table(t)->device, on(p, t), on(q, t), on(weight, t),
                                                        scale, on(dq, t));
        check(&b, dq, edq, 6);
        finish(&b);
    }
}

static void softsign_goes_backward(void **state) {
    (void)state;
    bench b = {.random = 18};
    for (int trial = 0; trial < 60; trial++) {
        size_t rows = any_size(&b, 65), columns = any_size(&b, 257);
        bool in_place = trial % 2;
        operand *x = normals(&b, rows, columns, false), *dy = normals(&b, rows, columns, in_place);
        operand *dx = in_place ? dy : blank(&b, rows, columns);
        expected e = expect(dx);
        FOR_EACH_CELL(x) {
            double s = 1 + fabs((double)*cell(x, i, j));
            add_term(&e, i, j, *cell(dy, i, j) / (s * s));
        }
        b.op = "softsign_backward";
        FOR_EACH_TABLE table(t)->softsign_backward(table(t)->device, on(x, t), on(dy, t), on(dx, t));
        check(&b, dx, e, 3);
        finish(&b);
    }
}

static void adam_steps(void **state) {
    (void)state;
    bench b = {.random = 19};
    for (int trial = 0; trial < 60; trial++) {
        size_t rows = any_size(&b, 65), columns = any_size(&b, 129);
        icma_adam o = {.learning_rate = 0.01F, .beta1 = 0.9F, .beta2 = 0.999F, .epsilon = 1e-8F, .step = 1 + pick(&b, 1000)};
        operand *g = normals(&b, rows, columns, false), *m = normals(&b, rows, columns, true),
                *v = begin(&b, ICMA_ELEMENT_F32, rows, columns, true);
        FOR_EACH_CELL(v)
        *cell(v, i, j) = (float)(0.01 + support_uniform(&b.random));
        upload(v);
        operand *p = normals(&b, rows, columns, true);
        expected em = expect(m), ev = expect(v), ep = expect(p);
        double c1 = 1 - pow(o.beta1, (double)o.step), c2 = 1 - pow(o.beta2, (double)o.step);
        FOR_EACH_CELL(p) {
            double d = *cell(g, i, j), one = o.beta1 * (double)*cell(m, i, j) + (1 - (double)o.beta1) * d;
            double two = o.beta2 * (double)*cell(v, i, j) + (1 - (double)o.beta2) * d * d;
            add_term(&em, i, j, o.beta1 * (double)*cell(m, i, j));
            add_term(&em, i, j, (1 - (double)o.beta1) * d);
            add_term(&ev, i, j, two);
            add_term(&ep, i, j, *cell(p, i, j));
            double rate = o.learning_rate / c1 / (sqrt(two / c2) + o.epsilon);
            add_term(&ep, i, j, -rate * one);
            /* A moment near zero carries the roundings of what cancelled in it. */
            ep.terms[i * columns + j] += rate * em.terms[i * columns + j];
        }
        b.op = "adam";
        FOR_EACH_TABLE table(t)->adam(table(t)->device, o, on(g, t), on(m, t), on(v, t), on(p, t));
        check(&b, m, em, 4);
        check(&b, v, ev, 6);
        check(&b, p, ep, 12);
        finish(&b);
    }
}

/* --- exact ops ----------------------------------------------------------------------------------------- */

static void softsign_is_exact(void **state) {
    (void)state;
    static const float special[] = {0.0F,     -0.0F,   0x1p-149F, -0x1p-149F, 0x1.fffffcp-127F, FLT_MAX,
                                    -FLT_MAX, FLT_MIN, 1,         -1,         0x1p24F,          0x1p-24F};
    bench b = {.random = 20, .op = "softsign"};
    for (int trial = 0; trial < 100; trial++) {
        size_t rows = any_size(&b, 65), columns = any_size(&b, 257);
        bool in_place = trial % 2;
        operand *x = begin(&b, ICMA_ELEMENT_F32, rows, columns, in_place);
        FOR_EACH_CELL(x)
        *cell(x, i, j) = pick(&b, 2) ? special[pick(&b, COUNT(special))] : wild(&b);
        upload(x);
        operand *y = in_place ? x : blank(&b, rows, columns);
        float *wanted = floats(rows * columns);
        FOR_EACH_CELL(x) {
            float value = *cell(x, i, j);
            wanted[i * columns + j] = value / (1 + fabsf(value));
        }
        FOR_EACH_TABLE table(t)->softsign(table(t)->device, on(x, t), on(y, t));
        check_bits(&b, y, wanted);
        finish(&b);
    }
}

static void try_linear(bench *b, size_t rows, size_t inputs, size_t outputs, bool with_bias) {
    operand *x = wilds(b, rows, inputs, false), *w = wilds(b, inputs, outputs, false);
    operand *bias = wilds(b, 1, outputs, false),
            *y = with_bias ? blank(b, rows, outputs) : wilds(b, rows, outputs, true);
    float *wanted = floats(rows * outputs);
    for (size_t i = 0; i < rows; i++)
        for (size_t o = 0; o < outputs; o++) {
            float sum = with_bias ? *cell(bias, 0, o) : *cell(y, i, o);
            for (size_t j = 0; j < inputs; j++)
                sum = fmaf(*cell(x, i, j), *cell(w, j, o), sum);
            wanted[i * outputs + o] = sum;
        }
    b->op = with_bias ? "linear with a bias" : "linear";
    icma_matrix none = {0};
    FOR_EACH_TABLE table(t)->linear(table(t)->device, on(x, t), on(w, t), with_bias ? on(bias, t) : none,
                                    on(y, t));
    check_bits(b, y, wanted);
    finish(b);
}

static void linear_is_exact(void **state) {
    (void)state;
    bench b = {.random = 21};
    for (int trial = 0; trial < 300; trial++) {
        size_t rows = any_size(&b, 9), inputs = any_size(&b, 257), outputs = any_size(&b, 1025);
        if (rows * inputs * outputs <= 300000)
            try_linear(&b, rows, inputs, outputs, trial % 2);
    }
    try_linear(&b, 3, 0, 17, true);
    try_linear(&b, 3, 0, 17, false);
}

static float *expect_basis(const operand *q, const operand *step, const operand *head, float scale) {
    float *wanted = floats(q->rows * head->columns);
    for (size_t i = 0; i < q->rows; i++)
        for (size_t l = 0; l < head->columns; l++) {
            float sum = 0;
            for (size_t k = 0; k < head->rows; k++) {
                float factor = *cell(q, i, k) * *cell(step, 0, k);
                sum = fmaf(factor, *cell_i16(head, k, l), sum);
            }
            wanted[i * head->columns + l] = sum * scale;
        }
    return wanted;
}

static void try_basis(bench *b, size_t rows, size_t k, size_t l) {
    static const float scales[] = {1, 0x1.8p-20F, -0x1.234568p3F, 0x1p-126F};
    operand *q = wilds(b, rows, k, false), *step = wilds(b, 1, k, false), *head = integers(b, k, l),
            *y = blank(b, rows, l);
    float scale = scales[pick(b, COUNT(scales))];
    float *wanted = expect_basis(q, step, head, scale);
    b->op = "basis";
    FOR_EACH_TABLE table(t)->basis(table(t)->device, on(q, t), on(step, t), on(head, t), scale, on(y, t));
    check_bits(b, y, wanted);
    finish(b);
}

static void basis_is_exact(void **state) {
    (void)state;
    bench b = {.random = 22};
    for (int trial = 0; trial < 300; trial++) {
        size_t rows = any_size(&b, 9), k = any_size(&b, 129), l = any_size(&b, 1025);
        if (rows * k * l <= 300000)
            try_basis(&b, rows, k, l);
    }
    try_basis(&b, 2, 0, 33);
    try_basis(&b, 1, 5, 5000);
    try_basis(&b, 1, 4097, 19); /* more rows than the fast table takes at once */
}

static void try_dequantise(bench *b, size_t rows, size_t columns) {
    static const float steps[] = {1, 0x1.0b5586p-4F, 0x1.234568p-20F, 0x1p-126F, 0x1.8p100F, -0x1.1p3F, 0};
    operand *k = integers(b, rows, columns), *y = wilds(b, rows, columns, true);
    float step = steps[pick(b, COUNT(steps))], *wanted = floats(rows * columns);
    FOR_EACH_CELL(y)
    wanted[i * columns + j] = fmaf((float)*cell_i16(k, i, j), step, *cell(y, i, j));
    b->op = "dequantise";
    FOR_EACH_TABLE table(t)->dequantise(table(t)->device, on(k, t), step, on(y, t));
    check_bits(b, y, wanted);
    finish(b);
}

static void dequantise_is_exact(void **state) {
    (void)state;
    bench b = {.random = 25};
    for (int trial = 0; trial < 300; trial++)
        try_dequantise(&b, any_size(&b, 17), any_size(&b, 1025));
    try_dequantise(&b, 0, 33);
    try_dequantise(&b, 3, 0);
    try_dequantise(&b, 1, 70001); /* as a reader has it: one long row */
    try_dequantise(&b, 5000, 1);
}

/* One rounding: a product that is rounded before the sum gives other bits. */
static void dequantise_rounds_once(void **state) {
    (void)state;
    bench b = {.random = 26, .op = "dequantise"};
    operand *k = begin(&b, ICMA_ELEMENT_I16, 1, 97, false), *y = begin(&b, ICMA_ELEMENT_F32, 1, 97, true);
    const float step = 0x1.000002p0F;
    float *wanted = floats(97);
    bool differs = false;
    FOR_EACH_CELL(y) {
        *cell_i16(k, i, j) = (int16_t)(j % 2 ? 32767 - j : j - 32767);
        *cell(y, i, j) = -(float)*cell_i16(k, i, j);
        float rounded = (float)*cell_i16(k, i, j) * step;
        wanted[j] = (float)((double)*cell_i16(k, i, j) * (double)step + (double)*cell(y, i, j));
        differs = differs || wanted[j] != rounded + *cell(y, i, j);
    }
    assert_true(differs);
    upload(k);
    upload(y);
    FOR_EACH_TABLE table(t)->dequantise(table(t)->device, on(k, t), step, on(y, t));
    check_bits(&b, y, wanted);
    finish(&b);
}

/* Every kernel set on its own, whatever the table would choose, with sentinels around the output. */
static void try_kernels(bench *b, const icma_kernels *set, size_t rows, size_t count, size_t pad) {
    size_t stride = count + pad;
    float *a = floats(rows), *w = floats(rows * stride), *y = floats(count + 2), *wanted = floats(count);
    int16_t *head = calloc(rows * stride + 1, sizeof *head);
    assert_non_null(head);
    for (size_t i = 0; i < rows * stride; i++) {
        w[i] = i % stride < count ? wild(b) : NAN;
        head[i] = (int16_t)(i % stride < count ? (int)pick(b, 65535) - 32767 : INT16_MIN);
    }
    for (size_t k = 0; k < rows; k++)
        a[k] = wild(b);
    const float scale = 0x1.234568p-7F;
    for (int linear = 0; linear < 2; linear++) {
        for (size_t l = 0; l < count + 2; l++)
            y[l] = linear ? wild(b) : NAN;
        y[0] = y[count + 1] = 12345.0F;
        for (size_t l = 0; l < count; l++) {
            wanted[l] = linear ? y[l + 1] : 0;
            for (size_t k = 0; k < rows; k++)
                wanted[l] = fmaf(a[k], linear ? w[k * stride + l] : (float)head[k * stride + l], wanted[l]);
            wanted[l] = linear ? wanted[l] : wanted[l] * scale;
        }
        if (linear)
            set->linear(a, rows, w, stride, count, y + 1);
        else
            set->basis(a, rows, head, stride, count, scale, y + 1);
        for (size_t l = 0; l < count; l++)
            if (!same_bits(y[l + 1], wanted[l]))
                fail_msg("%s by %s: output %zu of %zu over %zu rows is %a, not %a",
                         linear ? "linear" : "basis", set->name, l, count, rows, y[l + 1], wanted[l]);
        assert_true(y[0] == 12345.0F && y[count + 1] == 12345.0F);
    }
    free(a);
    free(w);
    free(y);
    free(wanted);
    free(head);
}

static void try_dequantise_kernel(bench *b, const icma_kernels *set, size_t count) {
    float *y = floats(count + 2), *wanted = floats(count), step = wild(b);
    int16_t *k = malloc(count ? count * sizeof *k : 1); /* a sanitizer sees a read too far */
    assert_non_null(k);
    y[0] = y[count + 1] = 12345.0F;
    for (size_t l = 0; l < count; l++) {
        static const int16_t special[] = {0, 1, -1, 32767, -32767, INT16_MIN};
        k[l] = pick(b, 2) ? special[pick(b, COUNT(special))] : (int16_t)((int)pick(b, 65535) - 32767);
        y[l + 1] = wild(b);
        wanted[l] = fmaf((float)k[l], step, y[l + 1]);
    }
    set->dequantise(k, count, step, y + 1);
    for (size_t l = 0; l < count; l++)
        if (!same_bits(y[l + 1], wanted[l]))
            fail_msg("dequantise by %s: output %zu of %zu is %a, not %a", set->name, l, count, y[l + 1],
                     wanted[l]);
    assert_true(y[0] == 12345.0F && y[count + 1] == 12345.0F);
    free(y);
    free(wanted);
    free(k);
}

static void every_kernel_set_is_exact(void **state) {
    (void)state;
    static const size_t rows[] = {0, 1, 2, 3, 17, 130};
    icma_kernels list[ICMA_KERNEL_SETS];
    size_t sets = icma_kernels_all(list);
    bench b = {.random = 23};
    assert_true(sets >= 1);
    assert_string_equal(list[0].name, "scalar");
    assert_true(icma_kernels_best().basis == list[sets - 1].basis &&
                icma_kernels_best().linear == list[sets - 1].linear &&
                icma_kernels_best().dequantise == list[sets - 1].dequantise);
    for (size_t s = 0; s < sets; s++) {
        print_message("           %s kernels\n", list[s].name);
        for (size_t count = 0; count <= 300; count++)
            try_dequantise_kernel(&b, &list[s], count);
        try_dequantise_kernel(&b, &list[s], 10007);
        for (size_t r = 0; r < COUNT(rows); r++) {
            for (size_t count = 0; count <= 36; count++)
                try_kernels(&b, &list[s], rows[r], count, pick(&b, 5));
            static const size_t counts[] = {63,  64,  65,  71,  72,  127,  128,  129,
                                            191, 192, 193, 255, 257, 1000, 1023, 1024};
            for (size_t c = 0; c < COUNT(counts); c++)
                try_kernels(&b, &list[s], rows[r], counts[c], pick(&b, 5));
        }
    }
}

/* --- threads ------------------------------------------------------------------------------------------- */

/* Runs gemm, linear, basis and dequantise on shapes that are worth several threads. */
static void run_large(const icma_ops *ops, icma_matrix a, icma_matrix x, icma_matrix head, icma_matrix q,
                      icma_matrix step, icma_matrix c, icma_matrix l, icma_matrix y) {
    icma_matrix none = {0};
    ops->gemm(ops->device, 1, a, false, x, false, 0, c);
    ops->fill(ops->device, 1, l);
    ops->linear(ops->device, a, x, none, l);
    ops->basis(ops->device, q, step, head, 0.37F, y);
    head.rows = y.rows;
    ops->dequantise(ops->device, head, 0.11F, y);
}

static void threads_do_not_matter(void **state) {
    (void)state;
    enum { M = 333, K = 300, N = 611, ROWS = 97, WIDE = 20000 };
    const int threads[] = {1, 2, 3, 7};
    bench b = {.random = 24, .op = "threads"};
    operand *a = normals(&b, M, K, false), *x = normals(&b, K, N, false), *head = integers(&b, ROWS, WIDE);
    operand *q = normals(&b, 2, ROWS, false), *step = normals(&b, 1, ROWS, false);
    operand *out[2] = {blank(&b, M, N), blank(&b, 2, WIDE)};
    const icma_ops *ops = icma_ops_cpu();
    icma_tensor *linear;
    icma_error error = {0};
    assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_F32, M * N, &linear, &error), ICMA_OK);
    void *first[3] = {NULL}, *again[3];
    for (size_t i = 0; i < COUNT(threads); i++) {
        icma_set_threads(threads[i]);
        assert_int_equal(icma_threads(), threads[i]);
        run_large(ops, on(a, 1), on(x, 1), on(head, 1), on(q, 1), on(step, 1), on(out[0], 1),
                  icma_matrix_of(linear, M, N), on(out[1], 1));
        for (size_t k = 0; k < 2; k++)
            again[k] = download(out[k], 1);
        again[2] = floats(M * N);
        assert_int_equal(ops->download(ops->device, linear, 0, again[2], M * N, &error), ICMA_OK);
        for (size_t k = 0; k < 3; k++) {
            if (i == 0) {
                first[k] = again[k];
                continue;
            }
            assert_memory_equal(first[k], again[k], (k < 2 ? out[k]->total : M * N) * sizeof(float));
            free(again[k]);
        }
    }
    for (size_t k = 0; k < 3; k++)
        free(first[k]);
    ops->release(ops->device, linear);
    icma_set_threads(0);
    assert_true(icma_threads() >= 1);
    finish(&b);
}

/* What gram gives with so many threads; to be freed. */
static void *gram_by(int threads, const operand *a) {
    const icma_ops *ops = icma_ops_cpu();
    icma_tensor *c;
    icma_error error = {0};
    double *values = malloc(a->rows * a->rows * sizeof *values);
    assert_non_null(values);
    icma_set_threads(threads);
    assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_F64, a->rows * a->rows, &c, &error), ICMA_OK);
    ops->gram(ops->device, on(a, 1), 0.3, icma_matrix_of(c, a->rows, a->rows));
    assert_int_equal(ops->download(ops->device, c, 0, values, a->rows * a->rows, &error), ICMA_OK);
    ops->release(ops->device, c);
    return values;
}

static void threads_do_not_matter_to_gram(void **state) {
    (void)state;
    bench b = {.random = 26, .op = "gram"};
    operand *a = normals(&b, 333, 300, false);
    void *first = gram_by(1, a);
    for (int threads = 2; threads < 8; threads += 2) {
        void *again = gram_by(threads, a);
        assert_memory_equal(first, again, a->rows * a->rows * sizeof(double));
        free(again);
    }
    free(first);
    icma_set_threads(0);
    finish(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_start_zeroed_and_keep_what_they_are_given),
        cmocka_unit_test(a_tensor_that_does_not_fit_is_a_memory_error),
        cmocka_unit_test(blocks_are_where_they_say),
        cmocka_unit_test(gemm_is_the_product),
        cmocka_unit_test(gram_adds_up_in_double),
        cmocka_unit_test(eigenvectors_are_orthonormal),
        cmocka_unit_test(rows_are_added_and_summed),
        cmocka_unit_test(rows_are_gathered_and_scattered),
        cmocka_unit_test(axpy_multiply_and_fill),
        cmocka_unit_test(latents_are_drawn_and_weighed),
        cmocka_unit_test(errors_are_squared_and_weighed),
        cmocka_unit_test(softsign_goes_backward),
        cmocka_unit_test(adam_steps),
        cmocka_unit_test(softsign_is_exact),
        cmocka_unit_test(linear_is_exact),
        cmocka_unit_test(basis_is_exact),
        cmocka_unit_test(dequantise_is_exact),
        cmocka_unit_test(dequantise_rounds_once),
        cmocka_unit_test(every_kernel_set_is_exact),
        cmocka_unit_test(threads_do_not_matter),
        cmocka_unit_test(threads_do_not_matter_to_gram),
    };
    table_count = (int)support_tables(tables);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
