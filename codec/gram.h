/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gram matrices of standardised checkpoints, a role at a time, and their eigenproblem.
 *
 * With X~ = X / s_t, s_t = |x_t| / 64 (Frobenius norm, root mean square over the group), so that every tensor of a role weighs the same, as bounds on dW do: with the
 * norms of both factors fixed, bits are fewest at equal noise *relative to the norm* and G = X~ X~^T, the eigenvectors of W G W (W diagonal: 1 / sqrt(checkpoints of the task), so
 * that a task of 50 checkpoints needs no finer rows than a task of one) give eigen-adapters E = Lambda^-1/2 U^T W X~ with orthonormal rows
 * and coordinates P = X~ E^T = G W U Lambda^-1/2 (the snapshot method of Sirovich 1987).
 */
#ifndef ICMA_GRAM_H
#define ICMA_GRAM_H

#include "dataset.h"

enum { ICMA_SCALE_WEIGHTS = 4096 }; /* a tensor of so many weights has its rms as scale; standardised, every tensor has this energy */

typedef struct icma_gram {
    size_t count;                  /* n: sources that take part */
    uint32_t *rows;                /* which; ascending; owned */
    double *matrix[ICMA_ROLE_COUNT]; /* n x n; NULL for a role without modelled tensors; owned */
    uint64_t weights[ICMA_ROLE_COUNT]; /* L: modelled weights of the role */
    float *energy, *spread;        /* n x tensors: |x~_t|^2 of each source, and of its difference to the mean of its task's; 0 for verbatim ones; owned */
} icma_gram;

/* One pass over the data. Decides for every tensor how it is treated and sets generator->treatment and ->scale (allocated by the caller for the signature):
 * verbatim are dtypes that are not modelled, tensors under 16 or over 2^26 elements (2^20 for "other" ones),
 * "other" tensors whose name is not a low-rank adapter's (modules_to_save), constants, and those that are nowhere finite or
 * nowhere but zero; a single source whose tensor is non-finite or all zero becomes an exception. At most `limit` sources take part: beyond that a sample from `seed`, task by
 * task. */
icma_status icma_gram_compute(icma_group *group, const icma_ops *ops, size_t limit, uint64_t seed, const icma_progress *progress,
                              icma_generator *generator, icma_gram *out, icma_error *error);
/* The same with the treatments and scales that the generator has: for newcomers to its group. A source whose tensor is not finite or all zero is an exception there, too. */
icma_status icma_gram_compute_as(icma_group *group, const icma_ops *ops, size_t limit, uint64_t seed, const icma_progress *progress, const icma_generator *generator, icma_gram *out, icma_error *error);
void icma_gram_free(icma_gram *gram); /* leaves it zeroed */
/* Within-task variance and energy of a sampled source, means over them, all roles together. */
icma_status icma_gram_measure(const icma_group *group, const icma_gram *gram, double *within, double *energy, icma_error *error);

typedef struct icma_eigen {
    size_t count, rank; /* rank: eigenvalues over n eps max */
    double *values;     /* descending; rank; owned */
    double *mixing;     /* rank x n: E = mixing X~; owned */
    double *coordinates; /* n x rank: P; owned */
} icma_eigen;

/* `weight` has one number a source (W's diagonal). Signs are fixed so that each row of `mixing` has its largest entry positive. */
icma_status icma_eigen_solve(const icma_ops *ops, const double *gram, const double *weight, size_t count, icma_eigen *out, icma_error *error);
void icma_eigen_free(icma_eigen *eigen); /* leaves it zeroed */

/* Sum over tasks of the squared deviations from the task's mean, from a Gram matrix: trace(G) - sum_t 1/n_t sum_{i,j in t} G_ij. task[i] is source i's, and equal tasks are adjacent. */
double icma_within_task(const double *gram, const uint32_t *task, size_t count);

#endif
