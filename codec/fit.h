/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Newcomers on an old basis: the coefficients with which a group's decoded rows come nearest to them.
 *
 * With R the rows of a role as they decode (icma_decoder_rows) and x~ a standardised newcomer, p = argmin |x~
 * - p R|^2 solves p (R R^T) = x~ R^T. Rows were orthonormal before they were quantised, so R R^T is nearly
 * the identity; where an archive's is singular, directions below 1e-6 of the largest eigenvalue are left out
 * (the pseudo-inverse). p R R^T p^T is the energy that the basis explains.
 */
#ifndef ICMA_FIT_H
#define ICMA_FIT_H

#include "decode.h"
#include "gram.h"
#include "icma.h"

typedef struct icma_fit {
    double *coordinates;               /* sources x K; owned */
    double *captured[ICMA_ROLE_COUNT]; /* energy that the role's rows explain, one a source; owned */
} icma_fit;

/* Of all sources of `group`, whose signature is the generator's, which has a basis. Tensors that are not
 * finite or all zero become exceptions, and count as zero. */
icma_status icma_fit_project(icma_group *group, const icma_generator *generator, icma_decoder *decoder,
                             const icma_ops *ops, const icma_progress *progress, icma_fit *out,
                             icma_error *error);
void icma_fit_free(icma_fit *fit); /* leaves it zeroed */

#endif
