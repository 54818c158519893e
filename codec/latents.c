/* SPDX-License-Identifier: Apache-2.0 */
#include "latents.h"

#include <math.h>

static const double active_variance = 0.01;

/* Variance of a latent's mean between one task's checkpoints. */
static double task_variance(const icma_posterior *p, const icma_conditions *conditions, size_t slot, size_t j) {
    double sum = 0, square = 0, count = 0;
    for (size_t i = 0; i < p->sources; i++)
        if (conditions->slot[i] == slot) {
            double x = p->mu[i * p->dimensions + j];
            sum += x;
            square += x * x;
            count++;
        }
    return square / count - sum * sum / (count * count);
}

size_t icma_latents_active(const icma_posterior *p, const icma_conditions *conditions, size_t *active, size_t *kept) {
    size_t count = 0;
    for (size_t j = 0; j < p->dimensions; j++) {
        bool any = false;
        for (size_t s = 0; s < conditions->count; s++)
            if (task_variance(p, conditions, s, j) > active_variance) {
                active[s]++;
                any = true;
            }
        if (any)
            kept[count++] = j;
    }
    return count;
}

float icma_latents_step(const icma_posterior *p, size_t j) {
    double mean = 0;
    for (size_t i = 0; i < p->sources; i++)
        mean += exp(0.5 * p->logvar[i * p->dimensions + j]) / (double)p->sources;
    int exponent = (int)floor(log2(fmin(1, fmax(mean, 0x1p-16)) / 2));
    return ldexpf(1, exponent);
}

int32_t icma_latents_integer(float mu, float step) {
    return (int32_t)lroundf(fmaxf(-16, fminf(16, mu)) / step);
}
