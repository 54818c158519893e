/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Points of many dimensions to look at: the vectors of tasks, or of their samples. Distances, principal
 * components, and how well clusters are apart. Everything in double and in a fixed order.
 */
#ifndef ICMA_POINTS_H
#define ICMA_POINTS_H

#include "ops.h"

enum { ICMA_MAX_POINTS = 4096 };

/* Squared Euclidean distances of `count` points of `dims` numbers each, point after point, all finite: count
 * x count, owned by the caller (icma_free). ICMA_E_LIMIT for more than ICMA_MAX_POINTS. */
icma_status icma_points_distances(const float *values, size_t count, size_t dims, double **squares,
                                  icma_error *error);

/*
 * Principal components from squared distances D: with J = I - 1/n, -J D J / 2 is the Gram matrix of the
 * centred points (Gower 1966), whose eigenvectors times the roots of its eigenvalues are the points'
 * coordinates along the axes of largest variance. *coordinates (owned by the caller) is count x axes;
 * share[i] is the part of the variance that lies along axis i. Axes that the points do not have are 0. Each
 * axis points so that its coordinate of largest magnitude is positive.
 */
icma_status icma_points_pca(const double *squares, size_t count, size_t axes, const icma_ops *ops,
                            double **coordinates, double *share, icma_error *error);

/*
 * Silhouettes (Rousseeuw 1987): with a the mean distance of a point to the others of its cluster, and b the
 * least mean distance to those of another one, s = (b - a) / max(a, b), between -1 and 1; 0 in a cluster of
 * one, and where a = b = 0. `cluster` has one below `clusters` a point. `by_point` gets s of each;
 * `by_cluster` their means (NAN of an empty one); either may be NULL. Returns the mean of all points: NAN
 * with fewer than two clusters that have points. ICMA_E_MEMORY is the only failure.
 */
icma_status icma_points_silhouette(const double *squares, size_t count, const size_t *cluster,
                                   size_t clusters, double *by_point, double *by_cluster, double *mean,
                                   icma_error *error);

#endif
