/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exact t-SNE (van der Maaten and Hinton 2008): a map in two dimensions that keeps neighbours together.
 *
 * p_j|i = exp(-b_i D_ij) / sum_k exp(-b_i D_ik), b_i by bisection such that 2^entropy(p_i) is the perplexity;
 * P = (p_j|i + p_i|j) / 2n (section 3.1); q_ij = (1 + |y_i - y_j|^2)^-1 / sum of all (eq. 4); gradient of
 * KL(P || Q) = 4 sum_j (p_ij - q_ij) (y_i - y_j) (1 + |y_i - y_j|^2)^-1 (eq. 5), followed with momentum 0.5,
 * then 0.8, gains for each coordinate (Jacobs 1988), and P exaggerated at first; learning rate n / 48, at
 * least 50 (n by the exaggeration, Belkina et al. 2019, whose gradient has no 4). O(n^2) a step; no tree, no
 * sampling.
 */
#ifndef ICMA_TSNE_H
#define ICMA_TSNE_H

#include "status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct icma_tsne_options {
    double perplexity; /* about how many neighbours count; at least 1, and at most (count - 1) / 3 is used */
    size_t steps;
    uint64_t seed;
    /* Asked every step; a failure ends the work. May be NULL. */
    icma_status (*check)(void *context, double done, icma_error *error);
    void *context;
} icma_tsne_options;

icma_tsne_options icma_tsne_defaults(void); /* perplexity 30, 1000 steps, seed 1 */

/* `squares`: squared distances, count x count (points.h), at least 4 points. `start`: count x 2, scaled to a
 * spread of 1e-4 and jittered by the seed, so that equal points part; NULL: from the seed alone. `out` gets
 * count x 2 numbers, centred. *perplexity is the one used, *divergence the final KL(P || Q) in nats. */
icma_status icma_tsne(const double *squares, size_t count, const double *start,
                      const icma_tsne_options *options, double *out, double *perplexity, double *divergence,
                      icma_error *error);

#endif
