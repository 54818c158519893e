/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Model soup (Wortsman et al. 2022): what a task is given is the average of its checkpoints' weights.
 *
 * In an archive a soup is a basis generator whose rows span the tasks' averages, and whose trunk is linear: it maps a task's condition to its average's coordinates. There is no
 * latent, so every sample of a task is its average, and so is what tier generate restores; higher tiers code what a checkpoint differs from it by, as with any basis.
 */
#ifndef ICMA_SOUP_H
#define ICMA_SOUP_H

#include "basis.h"
#include "conditions.h"

/* `weight` is, here and below, one number a source of the group: its share in its task's average. They are not negative and sum to 1 over a task. */

/* The uniform soup: all of a task's checkpoints alike. */
void icma_soup_uniform(const icma_group *group, double *weight);

/*
 * The greedy soup (Wortsman et al. 2022, recipe 1): a task's checkpoints are scored one by one (the later of equal ones comes first); from the best on, each joins if the average's
 * score does not get worse. That takes 2 n - 1 scores for a task's n checkpoints in this group. What is scored is the task's last file with the average of each modelled tensor
 * (summed in double, cast to its dtype; a checkpoint's exceptions count as zeros, as in its Gram matrix). What the scorer fails with is passed on.
 */
icma_status icma_soup_greedy(icma_group *group, const icma_generator *generator, const icma_inputs *inputs, icma_scorer scorer, const icma_progress *progress, double *weight,
                             icma_error *error);

/*
 * Fills a basis as icma_basis_choose does, for icma_basis_write_head: eigen-adapters of the tasks' averages, a role at a time, and the coordinates of every sampled source. Rows
 * have the coarsest step at which, for every task, the predicted relative error of dW of its average is at most `max_error` in every module (and of every other modelled tensor,
 * its relative error); rows that are below the coding noise at that step are left out. Equal averages, or ones in a line, share their rows.
 *
 * basis->predicted_error is the largest of those. Where the Gram matrix is of a sample, the rows span the averages of what it has of each task.
 */
icma_status icma_soup_basis(const icma_group *group, const icma_ops *ops, const icma_gram *gram, const icma_generator *generator, const double *weight, double max_error,
                            icma_basis *out, icma_error *error);

/*
 * After icma_basis_write_head, which knows the coordinates of all sources: fills the generator (kind, components, sizes, trunk, correction steps for a water level `theta`) so that each task's
 * condition gives its average's coordinates. `conditions` are settled; treatment, scale, head steps, projection and sizes of conditions are there already. ICMA_E_UNSUPPORTED where
 * the conditions do not tell averages apart: there are more tasks than coordinates, or equal vectors.
 */
icma_status icma_soup_trunk(const icma_group *group, const icma_basis *basis, const double *weight, const icma_conditions *conditions, double theta,
                            icma_generator *generator, icma_error *error);

#endif
