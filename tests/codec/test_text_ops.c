/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ops of transformers: the reference against definitions written out here in double, and every other
 * table, with every kernel set, against the same, on odd shapes, with NaNs around and between the rows of
 * what is read and sentinels around what is written; independence of the number of threads.
 */
#include "ops_host.h"
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_TABLES = SUPPORT_TABLES + 1, PAD = 5 };
static icma_ops tables[MOST_TABLES];
static size_t table_count;

static int open_tables(void **state) {
    const icma_ops *list[SUPPORT_TABLES];
    size_t found = support_tables(list);
    (void)state;
    for (size_t i = 0; i < found; i++)
        if (list[i]->attention)
            tables[table_count++] = *list[i];
    tables[table_count] = *icma_ops_cpu();
    icma_conv_ops(&tables[table_count], icma_conv_kernels_portable());
    icma_text_ops(&tables[table_count]);
    tables[table_count++].name = "portable";
    return 0;
}

/* rows x columns with a stride of PAD more, PAD elements on; `values` without. */
static icma_matrix put(const icma_ops *ops, const float *values, size_t rows, size_t columns) {
    icma_matrix m = {.offset = PAD, .rows = rows, .columns = columns, .stride = columns + PAD};
    size_t count = 2 * PAD + rows * m.stride;
    float *all = support_normals(&(uint64_t){1}, count);
    for (size_t i = 0; i < count; i++)
        all[i] = NAN;
    for (size_t i = 0; values && i < rows * columns; i++)
        all[PAD + i / columns * m.stride + i % columns] = values[i];
    assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_F32, count, &m.tensor, NULL), ICMA_OK);
    assert_int_equal(ops->upload(ops->device, m.tensor, 0, all, count, NULL), ICMA_OK);
    support_free(all);
    return m;
}

static icma_tensor *put_whole(const icma_ops *ops, const uint32_t *values, size_t count) {
    icma_tensor *tensor;
    assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_U32, count, &tensor, NULL), ICMA_OK);
    assert_int_equal(ops->upload(ops->device, tensor, 0, values, count, NULL), ICMA_OK);
    return tensor;
}

/* That m holds `wanted` to `most`, and NaNs around it; releases it. */
static void take(const icma_ops *ops, icma_matrix m, const double *wanted, double most) {
    size_t count = 2 * PAD + m.rows * m.stride;
    float *all = support_normals(&(uint64_t){1}, count);
    assert_int_equal(ops->download(ops->device, m.tensor, 0, all, count, NULL), ICMA_OK);
    for (size_t i = 0; i < count; i++) {
        size_t row = i < PAD ? m.rows : (i - PAD) / m.stride, column = i < PAD ? 0 : (i - PAD) % m.stride;
        if (row >= m.rows || column >= m.columns)
            assert_true(isnan(all[i]));
        else if (!(fabs((double)all[i] - wanted[row * m.columns + column]) <= most))
            fail_msg("%s: (%zu, %zu) is %g, not %g", ops->name, row, column, (double)all[i],
                     wanted[row * m.columns + column]);
    }
    support_free(all);
    ops->release(ops->device, m.tensor);
}

static double *doubles(size_t count) {
    double *list = calloc(count ? count : 1, sizeof *list);
    assert_non_null(list);
    return list;
}

static void check_layer_norm(size_t rows, size_t columns, float epsilon, float spread) {
    uint64_t random = rows * 100 + columns;
    float *x = support_normals(&random, rows * columns), *gamma = support_normals(&random, columns),
          *beta = support_normals(&random, columns);
    double *wanted = doubles(rows * columns);
    for (size_t i = 0; i < rows; i++) {
        double mean = 0, variance = 0;
        for (size_t j = 0; j < columns; j++)
            mean += (double)(x[i * columns + j] = 3 + spread * x[i * columns + j]) / (double)columns;
        for (size_t j = 0; j < columns; j++)
            variance +=
                ((double)x[i * columns + j] - mean) * ((double)x[i * columns + j] - mean) / (double)columns;
        for (size_t j = 0; j < columns; j++)
            wanted[i * columns + j] =
                (double)gamma[j] * ((double)x[i * columns + j] - mean) / sqrt(variance + (double)epsilon) +
                (double)beta[j];
    }
    for (size_t t = 0; t < table_count; t++)
        for (int in_place = 0; in_place < 2; in_place++) {
            const icma_ops *ops = &tables[t];
            icma_matrix from = put(ops, x, rows, columns), g = put(ops, gamma, 1, columns),
                        b = put(ops, beta, 1, columns);
            icma_matrix to = in_place ? from : put(ops, NULL, rows, columns);
            ops->layer_norm(ops->device, from, g, b, epsilon, to);
            take(ops, to, wanted, spread < 0.1F ? 1e-3 : 2e-5);
            ops->release(ops->device, g.tensor);
            ops->release(ops->device, b.tensor);
            if (!in_place)
                ops->release(ops->device, from.tensor);
        }
    free(wanted);
    support_free(x);
    support_free(gamma);
    support_free(beta);
}

static void test_layer_norm(void **state) {
    (void)state;
    check_layer_norm(1, 1, 1e-5F, 1);
    check_layer_norm(3, 7, 1e-5F, 1);
    check_layer_norm(70, 513, 1e-5F, 1);
    check_layer_norm(5, 64, 0.5F, 1e-3F);
    check_layer_norm(9, 100, 1e-12F, 0.01F);
}

static void test_gelu(void **state) {
    static const float points[] = {0,     -0.0F, 1e-30F, -1e-30F, 1,   -1,  5,    -5,   8.5F,
                                   -8.5F, 20,    -20,    60,      -60, 100, -100, 1e30F};
    enum { ROWS = 67, COLUMNS = 1003 };
    uint64_t random = 9;
    (void)state;
    float *y = support_normals(&random, ROWS * COLUMNS), *bias = support_normals(&random, COLUMNS);
    double *wanted = doubles(ROWS * COLUMNS);
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        y[i] = points[i];
        bias[i] = 0;
    }
    for (int quick = 0; quick < 2; quick++) {
        for (size_t i = 0; i < ROWS * COLUMNS; i++) {
            double z = (double)(y[i] + bias[i % COLUMNS]);
            wanted[i] = quick ? z / (1 + exp(-1.702 * z)) : z / 2 * erfc(-z / sqrt(2));
        }
        for (size_t t = 0; t < table_count; t++) {
            icma_matrix m = put(&tables[t], y, ROWS, COLUMNS), b = put(&tables[t], bias, 1, COLUMNS);
            tables[t].gelu(tables[t].device, quick, b, m);
            take(&tables[t], m, wanted, 2e-6);
            tables[t].release(tables[t].device, b.tensor);
        }
    }
    free(wanted);
    support_free(y);
    support_free(bias);
}

/* A query sees 1 .. keys rows, in any order. */
static void check_attention(size_t queries, size_t keys, size_t heads, size_t columns, float scale) {
    uint64_t random = queries * 31 + keys;
    size_t width = heads * columns;
    float *q = support_normals(&random, queries * width), *k = support_normals(&random, keys * width),
          *v = support_normals(&random, keys * width);
    uint32_t *seen = calloc(2 * keys, sizeof *seen), *first = calloc(queries, sizeof *first),
             *length = calloc(queries, sizeof *length);
    double *wanted = doubles(queries * width), *p = doubles(keys);
    for (size_t i = 0; i < 2 * keys; i++)
        seen[i] = (uint32_t)(support_uniform(&random) * (double)keys);
    for (size_t i = 0; i < queries; i++) {
        first[i] = (uint32_t)(support_uniform(&random) * (double)keys);
        length[i] = i == 0 ? (uint32_t)keys : 1 + (uint32_t)(support_uniform(&random) * (double)keys);
        for (size_t h = 0; h < heads; h++) {
            double total = 0, most = -INFINITY;
            for (size_t n = 0; n < length[i]; n++) {
                p[n] = 0;
                for (size_t j = 0; j < columns; j++)
                    p[n] += (double)scale * (double)q[i * width + h * columns + j] *
                            (double)k[seen[first[i] + n] * width + h * columns + j];
                most = fmax(most, p[n]);
            }
            for (size_t n = 0; n < length[i]; n++)
                total += p[n] = exp(p[n] - most);
            for (size_t n = 0; n < length[i]; n++)
                for (size_t j = 0; j < columns; j++)
                    wanted[i * width + h * columns + j] +=
                        p[n] / total * (double)v[seen[first[i] + n] * width + h * columns + j];
        }
    }
    for (size_t t = 0; t < table_count; t++) {
        const icma_ops *ops = &tables[t];
        icma_matrix mq = put(ops, q, queries, width), mk = put(ops, k, keys, width),
                    mv = put(ops, v, keys, width), my = put(ops, NULL, queries, width);
        icma_tensor *lists[] = {put_whole(ops, seen, 2 * keys), put_whole(ops, first, queries),
                                put_whole(ops, length, queries)};
        ops->attention(ops->device, (icma_attention){heads, lists[0], lists[1], lists[2]}, scale, mq, mk, mv,
                       my);
        take(ops, my, wanted, scale > 10 ? 2e-3 : 2e-5);
        ops->release(ops->device, mq.tensor);
        ops->release(ops->device, mk.tensor);
        ops->release(ops->device, mv.tensor);
        for (size_t i = 0; i < 3; i++)
            ops->release(ops->device, lists[i]);
    }
    free(wanted);
    free(p);
    free(seen);
    free(first);
    free(length);
    support_free(q);
    support_free(k);
    support_free(v);
}

static void test_attention(void **state) {
    (void)state;
    check_attention(1, 1, 1, 1, 1);
    check_attention(5, 3, 2, 7, 0.5F);
    check_attention(70, 77, 8, 64, 0.125F);
    check_attention(9, ICMA_MOST_SEEN, 1, 33, 0.1F);
    check_attention(20, 40, 3, 16, 100); /* scores of which e to the power of is far out of range */
}

/* Every thread count, bit for bit. */
static void test_threads(void **state) {
    enum { ROWS = 200, COLUMNS = 384 };
    uint64_t random = 4;
    const icma_ops *ops = icma_ops_cpu();
    float *x = support_normals(&random, ROWS * COLUMNS), *results[2];
    uint32_t list[ROWS], zeros[ROWS] = {0}, lengths[ROWS];
    (void)state;
    for (uint32_t i = 0; i < ROWS; i++) {
        list[i] = i;
        lengths[i] = i + 1;
    }
    for (int run = 0; run < 2; run++) {
        icma_set_threads(run ? 5 : 1);
        icma_tensor *a, *b, *c,
            *lists[] = {put_whole(ops, list, ROWS), put_whole(ops, zeros, ROWS),
                        put_whole(ops, lengths, ROWS)};
        assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_F32, ROWS * COLUMNS, &a, NULL), ICMA_OK);
        assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_F32, ROWS * COLUMNS, &b, NULL), ICMA_OK);
        assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_F32, ROWS * COLUMNS, &c, NULL), ICMA_OK);
        assert_int_equal(ops->upload(ops->device, a, 0, x, ROWS * COLUMNS, NULL), ICMA_OK);
        icma_matrix m = icma_matrix_of(a, ROWS, COLUMNS), y = icma_matrix_of(b, ROWS, COLUMNS),
                    z = icma_matrix_of(c, ROWS, COLUMNS), row = icma_matrix_block(m, 3, 0, 1, COLUMNS);
        ops->layer_norm(ops->device, m, row, row, 1e-5F, y);
        ops->gelu(ops->device, true, row, y);
        ops->gelu(ops->device, false, row, y);
        ops->attention(ops->device, (icma_attention){6, lists[0], lists[1], lists[2]}, 0.1F, m, y, m, z);
        results[run] = support_normals(&random, ROWS * COLUMNS);
        assert_int_equal(ops->download(ops->device, c, 0, results[run], ROWS * COLUMNS, NULL), ICMA_OK);
        ops->release(ops->device, a);
        ops->release(ops->device, b);
        ops->release(ops->device, c);
        for (size_t i = 0; i < 3; i++)
            ops->release(ops->device, lists[i]);
    }
    icma_set_threads(0);
    assert_memory_equal(results[0], results[1], ROWS * COLUMNS * sizeof(float));
    support_free(results[0]);
    support_free(results[1]);
    support_free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_layer_norm), cmocka_unit_test(test_gelu),
                                       cmocka_unit_test(test_attention), cmocka_unit_test(test_threads)};
    return cmocka_run_group_tests_name("text_ops", tests, open_tables, NULL);
}
