/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The residual of one checkpoint: what its generator left, quantised (spec 4.11). A tensor that has one decodes to
 *
 *   x_l = fma(integer_l, step, y_l),   step = scale_t * 2^(code / 16),   y the generator's prediction
 *
 * before the cast to its dtype. Their symbols are coded as rANS streams, a run and its context a tensor; the integers are those of trellis.h, or, where errors must not exceed half a step, the symbols
 * themselves.
 *
 * Where the generator predicts a spread for every weight, weights have *classes* by it, and a tensor's integers are coded class after class, a run each. `classes` below is one number for each weight of all modelled
 * tensors in data order, one tensor after the other, less than ICMA_RESIDUAL_CLASSES; NULL: one class.
 */
#ifndef ICMA_RESIDUAL_H
#define ICMA_RESIDUAL_H

#include "generator.h"

enum {
    ICMA_RESIDUAL_LARGEST = 32767,    /* of |integer| without a trellis */
    ICMA_RESIDUAL_MOST_CODE = 640,    /* of |code|: steps within 40 octaves of the scale */
    ICMA_RESIDUAL_STREAM = 1 << 18,   /* integers a stream: so many decode in parallel with others */
    ICMA_RESIDUAL_CLASSES = 64,
};

typedef struct icma_residual_tensor {
    uint32_t tensor;
    int32_t code;
    size_t run;   /* its runs: residual.runs[run] .., ascending by class */
    size_t first; /* its integers: residual.integers[first] .. */
} icma_residual_tensor;

/* Zero-initialise; an empty one is no residual. */
typedef struct icma_residual {
    icma_residual_tensor *list; /* ascending; owned */
    size_t count;
    icma_rans_run *runs; /* of all tensors, in order, none of them empty; owned */
    size_t run_count;
    bool trellis;
    int16_t *integers; /* in the order of the elements; owned. NULL: only `streams` are there */
    size_t total;
    const uint8_t *streams; /* of one that was opened: into the block, which outlives it */
    size_t *offsets;        /* where they lie in there; owned */
} icma_residual;

void icma_residual_free(icma_residual *residual); /* leaves it zeroed */

/* scale * 2^(code / 16) in f32: the sixteenths are constants (spec 4.11), the octaves exact. 0 where that is denormal. */
float icma_residual_step(float scale, int32_t code);

/* The class of a predicted logarithm of a variance: half octaves of the spread, from 2^-16 to 2^15.5 of it (spec 4.11). False if it is not finite. */
bool icma_residual_class(float log_variance, uint8_t *out);
/* How many weights of a tensor are in each class; `classes` are its own. */
void icma_residual_count(const uint8_t *classes, size_t count, size_t sizes[ICMA_RESIDUAL_CLASSES]);
/* Where element after element goes: next[class] is the place of the class's next one, and starts with its first. */
void icma_residual_places(const size_t sizes[ICMA_RESIDUAL_CLASSES], size_t next[ICMA_RESIDUAL_CLASSES]);

/* Appends the block of one checkpoint; nothing for an empty residual. The runs must be those of the classes. */
icma_status icma_residual_write(const icma_residual *residual, const icma_safetensors *signature, const icma_generator *generator, const uint8_t *classes, icma_buffer *out, icma_error *error);
/* Everything of a block of `size` bytes but the integers. Tensors must be modelled, and every step above 0. */
icma_status icma_residual_open(const uint8_t *data, size_t size, const icma_safetensors *signature, const icma_generator *generator, const uint8_t *classes,
                               icma_residual *out, icma_error *error);
/* What decodes one tensor alone: of one that was opened, only the streams that hold its integers (`all` outlives it); of one that was read, a copy of the integers, without runs. Empty where the tensor has none. */
icma_status icma_residual_of_tensor(const icma_residual *all, uint32_t tensor, icma_residual *out, icma_error *error);
/* The streams of one that was opened, for the op decode_integers: without classes, its integers are in the order of the elements. Valid as long as the residual and its block. */
icma_coded icma_residual_coded(const icma_residual *residual);
/* Opens a block and decodes its integers. */
icma_status icma_residual_read(const uint8_t *data, size_t size, const icma_safetensors *signature, const icma_generator *generator, const uint8_t *classes,
                               icma_residual *out, icma_error *error);

#endif
