/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Coding a checkpoint's residual to an error bound (pack side). What is held to the bound is the decoded tensor after its cast, measured by fidelity.h.
 *
 * A unit is what the bound is about: a pair, or a tensor. In a pair dW' - dW is about dB A + B dA, so with uniform noise of step d_t in a factor of n_t weights
 * and norm |x_t| the relative error of dW is about sqrt(sum over its factors of n_t d_t^2 / (12 |x_t|^2)): at a given error the bits are fewest where
 * d_t is in proportion to |x_t|, which is what the scales of the group are in proportion to (gram.h). So both factors start with one step code,
 * and move apart only where that saves bits.
 */
#ifndef ICMA_BOUND_H
#define ICMA_BOUND_H

#include "fidelity.h"
#include "icma.h"
#include "residual.h"

typedef struct icma_bounded {
    const icma_safetensors *signature;
    const icma_generator *generator;
    const icma_pairs *pairs;
    icma_bound bound;
    const uint8_t *original;    /* the file's data */
    const float *prediction;    /* of all modelled tensors in data order, one after the other, before the cast */
    const uint8_t *classes;     /* of residual.h: of all modelled weights; NULL: one class */
    bool *verbatim;             /* one a tensor: kept as it is. On entry the exceptions; tensors that cannot meet the bound are added */
    uint8_t *decoded;           /* on entry a copy of the original; gets what a reader will decode */
} icma_bounded;

/* Chooses steps and integers, as few bits as it can find. `out` is owned by the caller (icma_residual_free). The result does not depend on the number of threads. */
icma_status icma_bound_encode(const icma_bounded *bounded, icma_residual *out, icma_error *error);

/* Whether what fidelity.h measured holds the bound. Tensors that are verbatim always do. */
bool icma_bound_holds(icma_bound bound, const icma_pairs *pairs, const icma_distance *tensors, size_t tensor_count, const icma_distance *pair_distances);

#endif
