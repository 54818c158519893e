/* SPDX-License-Identifier: Apache-2.0 */
#include "points.h"

#include "gram.h"
#include "memory.h"

#include <math.h>
#include <string.h>

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for a map of the vectors");
}

icma_status icma_points_distances(const float *values, size_t count, size_t dims, double **squares,
                                  icma_error *error) {
    *squares = NULL;
    if (count > ICMA_MAX_POINTS)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "more than %d points", ICMA_MAX_POINTS);
    double *out = icma_alloc_zeroed(count * count + 1, sizeof *out);
    if (!out)
        return no_memory(error);
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < i; j++) {
            const float *x = values + i * dims, *y = values + j * dims;
            double sum = 0;
            for (size_t k = 0; k < dims; k++) {
                double difference = (double)x[k] - (double)y[k];
                sum += difference * difference;
            }
            out[i * count + j] = out[j * count + i] = sum;
        }
    *squares = out;
    return ICMA_OK;
}

/* --- principal components
 * ------------------------------------------------------------------------------------------ */

/* Centres -D / 2 in both directions; returns its trace, the variance of all points. */
static double centre(const double *squares, size_t n, double *mean, double *gram) {
    double all = 0, trace = 0;
    for (size_t i = 0; i < n; i++) {
        mean[i] = 0;
        for (size_t j = 0; j < n; j++)
            mean[i] += squares[i * n + j] / (double)n;
        all += mean[i] / (double)n;
    }
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < n; j++)
            gram[i * n + j] = -0.5 * (squares[i * n + j] - mean[i] - mean[j] + all);
        trace += gram[i * n + i];
    }
    return trace;
}

static void copy_axis(const icma_eigen *e, size_t n, size_t axis, size_t axes, double *coordinates) {
    double largest = 0;
    for (size_t i = 0; i < n; i++) {
        double value = e->coordinates[i * e->rank + axis];
        largest = fabs(value) > fabs(largest) * (1 + 1e-9) ? value : largest; /* of equal ones the first */
    }
    for (size_t i = 0; i < n; i++)
        coordinates[i * axes + axis] =
            largest < 0 ? -e->coordinates[i * e->rank + axis] : e->coordinates[i * e->rank + axis];
}

icma_status icma_points_pca(const double *squares, size_t n, size_t axes, const icma_ops *ops,
                            double **coordinates, double *share, icma_error *error) {
    icma_eigen eigen = {0};
    double *gram = icma_alloc_array(n * n + 1, sizeof *gram), *mean = icma_alloc_array(n + 1, sizeof *mean);
    icma_status status = ICMA_OK;
    memset(share, 0, axes * sizeof *share);
    *coordinates = icma_alloc_zeroed(n * axes + 1, sizeof **coordinates);
    if (!gram || !mean || !*coordinates)
        status = no_memory(error);
    double trace = status ? 0 : centre(squares, n, mean, gram);
    if (trace > 0) { /* equal points have no axes */
        for (size_t i = 0; i < n; i++)
            mean[i] = 1; /* every point counts alike */
        status = icma_eigen_solve(ops, gram, mean, n, &eigen, error);
        for (size_t axis = 0; !status && axis < axes && axis < eigen.rank; axis++) {
            share[axis] = fmin(eigen.values[axis] / trace, 1);
            copy_axis(&eigen, n, axis, axes, *coordinates);
        }
    }
    icma_eigen_free(&eigen);
    icma_free(gram);
    icma_free(mean);
    if (status) {
        icma_free(*coordinates);
        *coordinates = NULL;
    }
    return status;
}

/* --- silhouettes
 * --------------------------------------------------------------------------------------------------- */

/* The sums of distances of point i to each cluster's points. */
static void sum_distances(const double *squares, size_t n, size_t i, const size_t *cluster, size_t clusters,
                          double *sums) {
    memset(sums, 0, clusters * sizeof *sums);
    for (size_t j = 0; j < n; j++)
        sums[cluster[j]] += sqrt(squares[i * n + j]);
}

static double silhouette_of(const double *sums, const size_t *sizes, size_t own, size_t clusters) {
    double a = 0, b = INFINITY;
    if (sizes[own] < 2)
        return 0;
    a = sums[own] / (double)(sizes[own] - 1);
    for (size_t c = 0; c < clusters; c++)
        if (c != own && sizes[c])
            b = fmin(b, sums[c] / (double)sizes[c]);
    double most = fmax(a, b);
    return most > 0 ? (b - a) / most : 0;
}

icma_status icma_points_silhouette(const double *squares, size_t n, const size_t *cluster, size_t clusters,
                                   double *by_point, double *by_cluster, double *mean, icma_error *error) {
    double *sums = icma_alloc_array(clusters + 1, sizeof *sums);
    size_t *sizes = icma_alloc_zeroed(clusters + 1, sizeof *sizes), filled = 0;
    *mean = NAN;
    if (!sums || !sizes) {
        icma_free(sums);
        icma_free(sizes);
        return no_memory(error);
    }
    for (size_t i = 0; i < n; i++)
        filled += sizes[cluster[i]]++ == 0;
    for (size_t c = 0; by_cluster && c < clusters; c++)
        by_cluster[c] = sizes[c] && filled > 1 ? 0 : NAN;
    double all = 0;
    for (size_t i = 0; i < n && filled > 1; i++) {
        sum_distances(squares, n, i, cluster, clusters, sums);
        double s = silhouette_of(sums, sizes, cluster[i], clusters);
        all += s;
        if (by_point)
            by_point[i] = s;
        if (by_cluster)
            by_cluster[cluster[i]] += s;
    }
    /* Divided in the end: a mean of what is at most 1 is then at most 1. */
    for (size_t c = 0; by_cluster && c < clusters; c++)
        by_cluster[c] /= sizes[c] ? (double)sizes[c] : 1;
    if (filled > 1)
        *mean = all / (double)n;
    icma_free(sums);
    icma_free(sizes);
    return ICMA_OK;
}
