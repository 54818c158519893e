/* SPDX-License-Identifier: Apache-2.0 */
/* Maps of vectors: distances, principal components, silhouettes and t-SNE, against values by hand and against
 * slow independent definitions. */
#include "points.h"

#include "memory.h"
#include "sample_file.h"
#include "support.h"
#include "tsne.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double *distances_of(const float *values, size_t count, size_t dims) {
    double *squares;
    icma_error error = {0};
    assert_int_equal(icma_points_distances(values, count, dims, &squares, &error), ICMA_OK);
    return squares;
}

static void distances(void **state) {
    static const float values[] = {0, 0, 3, 4, -3, 1};
    static const double wanted[] = {0, 25, 10, 25, 0, 45, 10, 45, 0};
    double *squares = distances_of(values, 3, 2);
    (void)state;
    for (size_t i = 0; i < 9; i++)
        assert_true(squares[i] == wanted[i]);
    icma_free(squares);
    icma_error error = {0};
    assert_int_equal(icma_points_distances(values, ICMA_MAX_POINTS + 1, 0, &squares, &error), ICMA_E_LIMIT);
    assert_null(squares);
}

/* Variance 2 * 9 + 2 * 1 along the axes of a cross; the mean, 10 and 20, is taken off. */
static void components_of_a_cross(void **state) {
    static const float values[] = {13, 20, 0, 7, 20, 0, 10, 21, 0, 10, 19, 0};
    double *squares = distances_of(values, 4, 3), *coordinates, share[3];
    icma_error error = {0};
    (void)state;
    assert_int_equal(icma_points_pca(squares, 4, 3, icma_ops_cpu(), &coordinates, share, &error), ICMA_OK);
    static const double wanted[] = {3, 0, -3, 0, 0, 1, 0, -1};
    for (size_t i = 0; i < 4; i++)
        for (size_t axis = 0; axis < 2; axis++)
            assert_true(fabs(coordinates[3 * i + axis] - wanted[2 * i + axis]) < 1e-12);
    assert_true(fabs(share[0] - 0.9) < 1e-12 && fabs(share[1] - 0.1) < 1e-12 && share[2] == 0);
    icma_free(coordinates);
    icma_free(squares);
}

static void components_of_equal_points(void **state) {
    static const float values[] = {1, 2, 1, 2, 1, 2};
    double *squares = distances_of(values, 3, 2), *coordinates, share[2];
    icma_error error = {0};
    (void)state;
    assert_int_equal(icma_points_pca(squares, 3, 2, icma_ops_cpu(), &coordinates, share, &error), ICMA_OK);
    for (size_t i = 0; i < 6; i++)
        assert_true(coordinates[i] == 0);
    assert_true(share[0] == 0 && share[1] == 0);
    icma_free(coordinates);
    icma_free(squares);
}

/* Points 0, 1 and 4, 6 on a line: 1 - 1/5, 1 - 1/4, 1 - 2/3.5, 1 - 2/5.5. */
static void silhouettes_by_hand(void **state) {
    static const float values[] = {0, 4, 1, 6, 100};
    static const size_t cluster[] = {0, 2, 0, 2, 3};
    double *squares = distances_of(values, 4, 1), by_point[5], by_cluster[4], mean;
    icma_error error = {0};
    (void)state;
    assert_int_equal(icma_points_silhouette(squares, 4, cluster, 4, by_point, by_cluster, &mean, &error),
                     ICMA_OK);
    static const double wanted[] = {0.8, 1 - 2 / 3.5, 0.75, 1 - 2 / 5.5};
    for (size_t i = 0; i < 4; i++)
        assert_true(fabs(by_point[i] - wanted[i]) < 1e-12);
    assert_true(fabs(mean - (wanted[0] + wanted[1] + wanted[2] + wanted[3]) / 4) < 1e-12);
    assert_true(fabs(by_cluster[0] - 0.775) < 1e-12 && isnan(by_cluster[1]) && isnan(by_cluster[3]));
    icma_free(squares);
    /* A cluster of one has 0; one cluster alone has none. */
    squares = distances_of(values, 5, 1);
    assert_int_equal(icma_points_silhouette(squares, 5, cluster, 4, by_point, NULL, &mean, &error), ICMA_OK);
    assert_true(by_point[4] == 0);
    static const size_t alone[] = {1, 1, 1, 1, 1};
    assert_int_equal(icma_points_silhouette(squares, 5, alone, 4, NULL, by_cluster, &mean, &error), ICMA_OK);
    assert_true(isnan(mean) && isnan(by_cluster[1]));
    icma_free(squares);
}

/* Means of what is at most 1 are, whatever is rounded on the way; so are shares, and no divergence is below
 * 0. */
static void ends_of_scales_are_kept(void **state) {
    enum { HALF = 50, ALL = 2 * HALF };
    float values[ALL], equal[ALL] = {0};
    size_t cluster[ALL];
    double by_cluster[2], mean, share[2], *coordinates, places[2 * ALL], perplexity, divergence;
    icma_error error = {0};
    (void)state;
    for (size_t i = 0; i < ALL; i++) {
        cluster[i] = i / HALF;
        values[i] = (float)cluster[i];
    }
    double *squares = distances_of(values, ALL, 1);
    assert_int_equal(icma_points_silhouette(squares, ALL, cluster, 2, NULL, by_cluster, &mean, &error),
                     ICMA_OK);
    assert_true(mean == 1 && by_cluster[0] == 1 && by_cluster[1] == 1);
    assert_int_equal(icma_points_pca(squares, ALL, 2, icma_ops_cpu(), &coordinates, share, &error), ICMA_OK);
    assert_true(share[0] > 0.999 && share[0] <= 1);
    icma_free(coordinates);
    icma_free(squares);
    squares = distances_of(equal, ALL, 1);
    icma_tsne_options options = icma_tsne_defaults();
    options.steps = 100;
    assert_int_equal(icma_tsne(squares, ALL, NULL, &options, places, &perplexity, &divergence, &error),
                     ICMA_OK);
    assert_true(divergence >= 0 && divergence < 1);
    icma_free(squares);
}

/* --- t-SNE
 * ------------------------------------------------------------------------------------------------------- */

enum { CLUSTERS = 4, EACH = 12, POINTS = CLUSTERS * EACH, DIMS = 10 };

static double *make_clusters(void) {
    float values[POINTS * DIMS];
    uint64_t random = 7;
    float centre[CLUSTERS][DIMS];
    for (size_t c = 0; c < CLUSTERS; c++)
        for (size_t k = 0; k < DIMS; k++)
            centre[c][k] = (float)(3 * support_normal(&random));
    for (size_t i = 0; i < POINTS; i++)
        for (size_t k = 0; k < DIMS; k++)
            values[i * DIMS + k] = centre[i / EACH][k] + (float)support_normal(&random);
    return distances_of(values, POINTS, DIMS);
}

/* P as the paper writes it: sigma by a fine search of its own, sums as they come. */
static void slow_p(const double *squares, size_t n, double perplexity, double *p) {
    for (size_t i = 0; i < n; i++) {
        double low = -60, high = 60, sum = 0; /* log2 of sigma^2 */
        for (int k = 0; k < 200; k++) {
            double middle = (low + high) / 2, sigma = exp2(middle), entropy = 0;
            sum = 0;
            for (size_t j = 0; j < n; j++)
                sum += j == i ? 0 : exp(-squares[i * n + j] / (2 * sigma));
            for (size_t j = 0; j < n; j++) {
                p[i * n + j] = j == i ? 0 : exp(-squares[i * n + j] / (2 * sigma)) / sum;
                entropy -= p[i * n + j] > 0 ? p[i * n + j] * log2(p[i * n + j]) : 0;
            }
            if (sum == 0 || entropy < log2(perplexity))
                low = middle;
            else
                high = middle;
        }
    }
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++)
            p[i * n + j] = p[j * n + i] = (p[i * n + j] + p[j * n + i]) / (2.0 * (double)n);
}

static double slow_divergence(const double *p, const double *y, size_t n) {
    double total = 0, sum = 0;
    for (size_t i = 0; i < n * n; i++) {
        size_t a = i / n, b = i % n;
        total += a == b ? 0 : 1 / (1 + pow(y[2 * a] - y[2 * b], 2) + pow(y[2 * a + 1] - y[2 * b + 1], 2));
    }
    for (size_t i = 0; i < n * n; i++) {
        size_t a = i / n, b = i % n;
        double q = 1 / (1 + pow(y[2 * a] - y[2 * b], 2) + pow(y[2 * a + 1] - y[2 * b + 1], 2)) / total;
        sum += p[i] > 0 ? p[i] * log(p[i] / q) : 0;
    }
    return sum;
}

static double run_tsne(const double *squares, size_t n, const double *start, size_t steps, uint64_t seed,
                       double *y) {
    icma_tsne_options o = icma_tsne_defaults();
    icma_error error = {0};
    double perplexity, divergence;
    o.steps = steps;
    o.seed = seed;
    assert_int_equal(icma_tsne(squares, n, start, &o, y, &perplexity, &divergence, &error), ICMA_OK);
    assert_true(fabs(perplexity - (double)(n - 1) / 3) < 1e-12 || perplexity == 30 || perplexity == 1);
    for (size_t i = 0; i < 2 * n; i++)
        assert_true(isfinite(y[i]));
    return divergence;
}

static void ends_in_a_minimum_of_the_definition(void **state) {
    double *squares = make_clusters(), *p = calloc(POINTS * POINTS, sizeof *p), y[2 * POINTS];
    (void)state;
    slow_p(squares, POINTS, (POINTS - 1) / 3.0, p);
    double divergence = run_tsne(squares, POINTS, NULL, 3000, 1, y);
    assert_true(fabs(divergence - slow_divergence(p, y, POINTS)) < 1e-6);
    /* A minimum: no point gains by moving a little, to any side; and slopes are flat. */
    for (size_t i = 0; i < 2 * POINTS; i++) {
        double there = y[i], h = 1e-4;
        y[i] = there + h;
        double after = slow_divergence(p, y, POINTS);
        y[i] = there - h;
        double before = slow_divergence(p, y, POINTS);
        y[i] = there;
        assert_true(fabs(after - before) / (2 * h) < 1e-4);
    }
    free(p);
    icma_free(squares);
}

static void keeps_neighbours(void **state) {
    double *squares = make_clusters(), y[2 * POINTS], again[2 * POINTS], other[2 * POINTS];
    (void)state;
    double divergence = run_tsne(squares, POINTS, NULL, 500, 1, y);
    for (size_t i = 0; i < POINTS; i++) {
        size_t nearest = SIZE_MAX;
        double least = INFINITY;
        for (size_t j = 0; j < POINTS; j++) {
            double d = pow(y[2 * i] - y[2 * j], 2) + pow(y[2 * i + 1] - y[2 * j + 1], 2);
            if (j != i && d < least) {
                least = d;
                nearest = j;
            }
        }
        assert_int_equal(nearest / EACH, i / EACH);
    }
    assert_true(divergence < run_tsne(squares, POINTS, NULL, 200, 1, other)); /* it goes down */
    assert_true(run_tsne(squares, POINTS, NULL, 500, 1, again) == divergence);
    assert_memory_equal(y, again, sizeof y); /* and is the same each time */
    run_tsne(squares, POINTS, NULL, 500, 2, other);
    assert_memory_not_equal(y, other, sizeof y);
    icma_free(squares);
}

static void odd_inputs(void **state) {
    static const float equal[] = {1, 1, 1, 1}, huge[] = {0, 1e38f, -1e38f, 3e38f, 1, 2},
                       pairs[] = {0, 0, 5, 5, 1e-30f, 7};
    double y[12], *squares = distances_of(equal, 4, 1), start[8] = {0};
    (void)state;
    run_tsne(squares, 4, start, 300, 1, y);
    icma_free(squares);
    squares = distances_of(huge, 6, 1);
    run_tsne(squares, 6, NULL, 300, 1, y);
    icma_free(squares);
    squares = distances_of(pairs, 6, 1);
    run_tsne(squares, 6, NULL, 300, 1, y);
    icma_free(squares);
}

static icma_status refuse(void *context, double done, icma_error *error) {
    int *calls = context;
    return ++*calls == 5 && done < 1 ? icma_fail(error, ICMA_E_CANCELLED, NULL, "enough") : ICMA_OK;
}

static void can_be_stopped(void **state) {
    double *squares = make_clusters(), y[2 * POINTS], perplexity, divergence;
    int calls = 0;
    icma_tsne_options o = icma_tsne_defaults();
    icma_error error = {0};
    (void)state;
    o.check = refuse;
    o.context = &calls;
    assert_int_equal(icma_tsne(squares, POINTS, NULL, &o, y, &perplexity, &divergence, &error),
                     ICMA_E_CANCELLED);
    assert_int_equal(calls, 5);
    icma_free(squares);
}

/* --- files of samples
 * -------------------------------------------------------------------------------------------- */

static icma_status read_samples(const char *root, const char *name, float **values, size_t *rows,
                                size_t *columns) {
    icma_error error = {0};
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", root, name);
    icma_status status = icma_samples_read(path, 6, values, rows, columns, &error);
    assert_true(status == ICMA_OK || (error.message[0] && strcmp(error.file, path) == 0));
    return status;
}

static void sample_files(void **state) {
    static const float numbers[] = {1, 2, 3, 4, 5, 6, 7, 8};
    static const struct {
        const char *header;
        size_t size;
        icma_status wanted;
        size_t rows, columns;
    } files[] = {
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 24, ICMA_OK, 2, 3},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]}}", 12, ICMA_OK, 1, 3},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[2,4],\"data_offsets\":[0,32]}}", 32, ICMA_E_LIMIT, 0, 0},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1,2,3],\"data_offsets\":[0,24]}}", 24, ICMA_E_UNSUPPORTED, 0,
         0},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, ICMA_E_UNSUPPORTED, 0, 0},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[0,3],\"data_offsets\":[0,0]}}", 0, ICMA_E_UNSUPPORTED, 0, 0},
        {"{\"x\":{\"dtype\":\"I32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 24, ICMA_E_UNSUPPORTED, 0, 0},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"y\":{\"dtype\":\"F32\",\"shape\":"
         "[1],\"data_offsets\":[4,8]}}",
         8, ICMA_E_UNSUPPORTED, 0, 0},
        {"{}", 0, ICMA_E_UNSUPPORTED, 0, 0},
        {"{\"x\":", 0, ICMA_E_CORRUPT, 0, 0},
    };
    char *root = support_new_folder();
    float *values;
    size_t rows, columns;
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        support_write_safetensors(root, "x.safetensors", files[i].header, numbers, files[i].size);
        assert_int_equal(read_samples(root, "x.safetensors", &values, &rows, &columns), files[i].wanted);
        assert_int_equal(rows, files[i].rows);
        assert_int_equal(columns, files[i].columns);
        for (size_t k = 0; k < rows * columns; k++)
            assert_true(values[k] == numbers[k]);
        icma_free(values);
    }
    static const float nan_values[] = {1, NAN};
    support_write_safetensors(root, "x.safetensors",
                              "{\"x\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]}}",
                              nan_values, 8);
    assert_int_equal(read_samples(root, "x.safetensors", &values, &rows, &columns), ICMA_E_UNSUPPORTED);
    assert_int_equal(read_samples(root, "absent.npy", &values, &rows, &columns), ICMA_E_NOT_FOUND);
    support_remove_tree(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(distances),
        cmocka_unit_test(components_of_a_cross),
        cmocka_unit_test(components_of_equal_points),
        cmocka_unit_test(silhouettes_by_hand),
        cmocka_unit_test(ends_of_scales_are_kept),
        cmocka_unit_test(ends_in_a_minimum_of_the_definition),
        cmocka_unit_test(keeps_neighbours),
        cmocka_unit_test(odd_inputs),
        cmocka_unit_test(can_be_stopped),
        cmocka_unit_test(sample_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
