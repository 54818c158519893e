/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The residual of one checkpoint: what its generator left, quantised (spec 4.11). A tensor that has one decodes to
 *
 *   x_l = fma(integer_l, step, y_l),   step = scale_t * 2^(code / 16),   y the generator's prediction
 *
 * before the cast to its dtype. Their symbols are coded as rANS streams, a context a tensor; the integers are those of trellis.h, or, where errors must not exceed half a step, the symbols
 * themselves.
 */
#ifndef ICMA_RESIDUAL_H
#define ICMA_RESIDUAL_H

#include "generator.h"

enum {
    ICMA_RESIDUAL_LARGEST = 32767,    /* of |integer| without a trellis */
    ICMA_RESIDUAL_MOST_CODE = 640,    /* of |code|: steps within 40 octaves of the scale */
    ICMA_RESIDUAL_STREAM = 1 << 18,   /* integers a stream: so many decode in parallel with others */
};

typedef struct icma_residual_tensor {
    uint32_t tensor;
    int32_t code;
    unsigned context;
    size_t first; /* its integers: residual.integers[first] .. */
} icma_residual_tensor;

/* Zero-initialise; an empty one is no residual. */
typedef struct icma_residual {
    icma_residual_tensor *list; /* ascending; owned */
    size_t count;
    bool trellis;
    int16_t *integers; /* owned */
    size_t total;
} icma_residual;

void icma_residual_free(icma_residual *residual); /* leaves it zeroed */

/* scale * 2^(code / 16) in f32: the sixteenths are constants (spec 4.11), the octaves exact. 0 where that is denormal. */
float icma_residual_step(float scale, int32_t code);

/* Appends the block of one checkpoint; nothing for an empty residual. */
icma_status icma_residual_write(const icma_residual *residual, const icma_generator *generator, icma_buffer *out, icma_error *error);
/* Reads a block of `size` bytes. Tensors must be modelled, and every step above 0. */
icma_status icma_residual_read(const uint8_t *data, size_t size, const icma_safetensors *signature, const icma_generator *generator,
                               icma_residual *out, icma_error *error);

#endif
