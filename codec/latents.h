/* SPDX-License-Identifier: Apache-2.0 */
/* From a posterior to stored latents: which dimensions tell something, and how finely each is kept. */
#ifndef ICMA_LATENTS_H
#define ICMA_LATENTS_H

#include "conditions.h"

typedef struct icma_posterior {
    float *mu, *logvar;  /* sources x dimensions, of every source of a group */
    size_t sources, dimensions;
} icma_posterior;

/* kept[] gets the dimensions that are active in some task: whose mean varies between its checkpoints by more than 0.01 (Burda et al. 2016, section 2); returns how many. active[task] counts them. */
size_t icma_latents_active(const icma_posterior *posterior, const icma_conditions *conditions, size_t *active, size_t *kept);
/* Half the posterior's mean spread, as a power of two: finer would store noise, coarser would shift what the decoder makes of it. */
float icma_latents_step(const icma_posterior *posterior, size_t dimension);
/* The integer of a mean. */
int32_t icma_latents_integer(float mu, float step);

#endif
