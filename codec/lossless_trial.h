/* SPDX-License-Identifier: Apache-2.0 */
/* What a way to code a tensor would cost, tried on a sample of it. Private to the encoder of lossless links;
 * floating point. */
#ifndef ICMA_LOSSLESS_TRIAL_H
#define ICMA_LOSSLESS_TRIAL_H

#include "lossless_host.h"

/* A sample of one tensor, and what a profile predicts of it. */
typedef struct icma_lossless_trial {
    const icma_lossless_link *link;
    const icma_tensor_info *info;
    size_t tensor, capacity, count;
    double scale;                  /* elements of the tensor to each of the sample */
    uint32_t *element, *predicted; /* bits; owned, as all below */
    float *value, *predicted_value;
    int32_t *symbols, *sorted;
    uint8_t *context, *plain, *grouped;
    size_t counts[256]; /* of contexts */
} icma_lossless_trial;

/* For samples of up to `capacity` elements. */
icma_status icma_lossless_trial_alloc(icma_lossless_trial *trial, const icma_lossless_link *link,
                                      size_t capacity, icma_error *error);
void icma_lossless_trial_free(icma_lossless_trial *trial);

/* Takes the sample: all of a small tensor, windows all over a large one. */
void icma_lossless_trial_open(icma_lossless_trial *trial, const uint8_t *original, size_t tensor);
void icma_lossless_trial_predict(icma_lossless_trial *trial, const icma_lossless_profile *profile);
/* The level that the mean distance to the prediction suggests; and whether many elements are just as
 * predicted, so that the mean means little. */
unsigned icma_lossless_trial_level(icma_lossless_trial *trial, bool *often_equal);
/* Bits of the whole tensor, modelled at a level; trial->sorted gets the symbols. */
double icma_lossless_trial_modelled(icma_lossless_trial *trial, const icma_lossless_profile *profile,
                                    unsigned level);
/* After it: the context of the sorted symbols from `first` on, and how many have it. */
unsigned icma_lossless_trial_run(const icma_lossless_trial *trial, size_t first, size_t *count);
/* Climbs from *level to one that costs less, by growing steps. */
double icma_lossless_trial_climb(icma_lossless_trial *trial, const icma_lossless_profile *profile,
                                 unsigned *level);
/* Bits of the whole tensor, grouped; INFINITY where more than `enough` can be told at a glance. */
double icma_lossless_trial_grouped(icma_lossless_trial *trial, double enough);
double icma_lossless_trial_plain(const icma_lossless_trial *trial);

#endif
