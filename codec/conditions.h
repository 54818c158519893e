/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tasks of a group and their conditions as a generator sees them: coordinates of a given vector in the span of the given ones (whitened, never centred: one task is legal), or learned ones.
 */
#ifndef ICMA_CONDITIONS_H
#define ICMA_CONDITIONS_H

#include "dataset.h"
#include "rng.h"

/* A task's condition as it came; `vector` NULL: to be learned. */
typedef struct icma_condition {
    const float *vector;
    size_t size;
} icma_condition;

typedef struct icma_conditions {
    size_t count;    /* tasks of the group, in order of their first source */
    uint32_t *task;  /* the inputs' task index; owned */
    uint32_t *slot;  /* per source: which of these tasks; owned */
    float **learned; /* room for the coordinates of a learned condition, NULL for a given one; owned */
    float *table;    /* count x coordinates: where training starts, and in the end what was learned; owned */
} icma_conditions;

/*
 * Lists the group's tasks and fills the generator's condition_size, coordinates, given_coordinates and projection. `given` has one entry per task of the inputs. Given vectors of a group must have one length
 * (else ICMA_E_UNSUPPORTED). Learned tasks start on an axis each, as long as there are axes (ICMA_LEARNED_COORDINATES), in random directions from `rng` beyond.
 */
enum { ICMA_LEARNED_COORDINATES = 32 };
icma_status icma_conditions_prepare(const icma_group *group, const icma_ops *ops, const icma_condition *given, icma_rng *rng, icma_generator *generator, icma_conditions *out, icma_error *error);
/* Copies the table's rows of learned tasks to `learned`, rounded as they will be stored (coarse.h). */
void icma_conditions_settle(icma_conditions *conditions, size_t coordinates);
void icma_conditions_free(icma_conditions *conditions); /* leaves it zeroed */

#endif
