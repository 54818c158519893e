/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Training the CVAE of one group, and turning what was learned into a generator.
 */
#ifndef ICMA_TRAIN_H
#define ICMA_TRAIN_H

#include "basis.h"
#include "conditions.h"
#include "cvae.h"
#include "generator.h"
#include "icma.h"

enum { ICMA_LOSS_POINTS = 51 }; /* most points of a loss history */

typedef struct icma_training {
    icma_conditions conditions; /* owned */
    size_t *active;          /* one a task: latent dimensions whose mean varies between its checkpoints (variance over 0.01); owned */
    int32_t *latent;         /* per source: generator->latent integers (z = integer * latent_step); owned */
    double theta;            /* water level: variance of the coding noise of a coefficient */
    size_t epochs, batch;
    const icma_ops *ops;     /* that it was done with in the end; NULL: nothing was trained */
    size_t epochs_done;      /* fewer, where a plateau has ended it */
    size_t loss_count;
    size_t loss_epoch[ICMA_LOSS_POINTS];
    double loss_reconstruction[ICMA_LOSS_POINTS], loss_kl[ICMA_LOSS_POINTS]; /* means over an epoch; not weighted */
} icma_training;

/* What a group is trained with: the options, "auto" values resolved. */
typedef struct icma_training_plan {
    size_t epochs, batch, latent, hidden, encoder_hidden;
    double theta;
} icma_training_plan;

/*
 * Trains on the coordinates in `basis` and fills `generator` (kind, components, sizes, projection, trunk, steps; treatment and scale are there already).
 * `conditions` has one entry per task of the inputs. Given vectors of a group must have one length (else ICMA_E_UNSUPPORTED). `head_bytes` caps the trunk at 5 % of it
 * (or the smallest network there is).
 */
icma_status icma_train(const icma_group *group, const icma_basis *basis, const icma_condition *conditions,
                       const icma_pack_options *options, uint64_t head_bytes, const icma_ops *ops, icma_generator *generator,
                       icma_training *out, icma_error *error);
void icma_training_free(icma_training *training); /* leaves it zeroed */

#endif
