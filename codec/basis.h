/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Choosing the basis: how many eigen-adapters of each role, and where every checkpoint lies in their coordinates.
 */
#ifndef ICMA_BASIS_H
#define ICMA_BASIS_H

#include "container.h"
#include "icma.h"
#include "gram.h"

/* What packing would take at other bounds on dW: the fewest bits that the rate model finds for rows and residuals, and the error that is left with them. */
enum { ICMA_RATE_POINTS = 8 };
typedef struct icma_rate_point {
    double bound;           /* on the relative error of every module's dW */
    double bits;            /* a modelled parameter of the sampled sources */
    double predicted_error; /* mean relative error of dW */
} icma_rate_point;

typedef struct icma_basis {
    size_t components[ICMA_ROLE_COUNT];
    size_t total;                      /* K */
    double *mixing[ICMA_ROLE_COUNT];   /* components x gram.count: rows of the head from the sampled sources; owned */
    double *coordinates;               /* sources x K: p of every source of the group; owned */
    float *step;                       /* K: quantiser step of each row of E; owned */
    double leftover;                   /* mean over the sampled sources of |x~|^2 - |p|^2 and of the quantised rows' noise, all roles */
    double energy;                     /* mean of |x~|^2 */
    double within;                     /* within-task variance: mean over the sampled sources, all roles */
    double explained;                  /* share of the within-task variance in the span; NAN without any */
    double bits;                       /* under a bound: that rows, trunk and residuals are predicted to take; NAN without one */
    double predicted_error;            /* mean over sources of the predicted relative error of dW */
    icma_rate_point rate[ICMA_RATE_POINTS]; /* by falling bound */
    size_t rate_count;
} icma_basis;

/* What the basis has to reach; as in icma_pack_options. */
typedef struct icma_basis_target {
    size_t components;
    double explain, max_error;
    icma_bound bound; /* of the residuals that come on top; ICMA_BOUND_NONE: there will be none */
    bool required;    /* at least one row a role, even where none pays */
    const icma_progress *progress; /* told of phase "choose", and asked whether to go on; may be NULL */
} icma_basis_target;

/*
 * Chooses rows greedily, always from the role whose next eigenvalue is largest per weight stored, until both targets hold: `explain` of the
 * within-task variance in the span, and a mean predicted relative error of dW of `max_error`. The prediction for a source is sqrt(sum over roles of
 * leftover / energy): dW = B A is linear in each factor, so to first order their relative errors add in squares. `components` > 0 takes that many rows of every role instead.
 * With a bound, the number of rows and their step are those at which rows and residuals together are predicted to take the fewest bits (residual_rate.h); no row at all
 * is a fine answer. Within half as many bits more, a choice that also explains `explain` (auto: 0.70) of the within-task variance is preferred: latents should mean something.
 * Coordinates of sources outside the sample are zero until icma_basis_write_head has projected them.
 */
icma_status icma_basis_choose(const icma_group *group, const icma_ops *ops, const icma_gram *gram, const icma_generator *generator, icma_basis_target target,
                              icma_basis *out, icma_error *error);
void icma_basis_free(icma_basis *basis); /* leaves it zeroed */
/* Water level: variance of the coding noise of a coefficient, a share of what the basis leaves over. */
double icma_basis_water_level(const icma_basis *basis);

/* The second pass over the data: makes the rows tensor by tensor, quantises them and appends them to the archive as HEAD sections of group `index`; projects the sources outside the
 * sample (noting exceptions among them, as icma_gram_compute does). *chunks (owned by the caller, icma_free) lists the sections written. */
icma_status icma_basis_write_head(icma_group *group, uint32_t index, const icma_gram *gram, const icma_generator *generator, const icma_ops *ops,
                                  const icma_progress *progress, icma_basis *basis, icma_container_writer *writer, icma_section **chunks, size_t *chunk_count, icma_error *error);

#endif
