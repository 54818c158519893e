/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many bits the residuals of a group will take, before there are any: the part of the rate model that
 * decides how much a basis is worth.
 *
 * A role's energy outside the basis and its rows' noise, of each source, are shared out to the role's
 * tensors: noise by weights, because quantiser steps are equal; the rest by how far each tensor lies from its
 * task's mean, or by its energy where that is more than lies there. A unit of the bound (a pair, a tensor)
 * whose predicted error is over the bound takes a residual at the rate at which the quantiser reaches it.
 */
#ifndef ICMA_RESIDUAL_RATE_H
#define ICMA_RESIDUAL_RATE_H

#include "gram.h"
#include "icma.h"

typedef struct icma_residual_model icma_residual_model;

enum { ICMA_RATE_SOURCES = 256 }; /* evenly spread ones are enough for a sum */

/* `group`, `gram` and `generator` (treatments) must outlive it. At most `most` sources are looked at. */
icma_status icma_residual_model_create(const icma_group *group, const icma_gram *gram,
                                       const icma_generator *generator, icma_bound bound, size_t most,
                                       icma_residual_model **out, icma_error *error);
void icma_residual_model_free(icma_residual_model *model); /* NULL is fine */

/* Bits over all the sampled sources. leftover[role][i], noise[role][i]: standardised energies of source i;
 * NULL for a role without tensors. */
double icma_residual_model_bits(const icma_residual_model *model, double *const leftover[ICMA_ROLE_COUNT],
                                double *const noise[ICMA_ROLE_COUNT]);
/* The relative error that is left, with residuals: the mean over sources and units. Arguments as above. */
double icma_residual_model_error(const icma_residual_model *model, double *const leftover[ICMA_ROLE_COUNT],
                                 double *const noise[ICMA_ROLE_COUNT]);

#endif
