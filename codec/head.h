/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The head: K basis rows as integers, cut by tensors into chunks, a HEAD section each (spec 4.4). Weight (k, l) of the head is
 * head_step_k * integer_kl. A chunk holds one context for each row of each of its modelled tensors, then all their symbols (trellis.h) as one rANS stream
 * (spec 4.10).
 */
#ifndef ICMA_HEAD_H
#define ICMA_HEAD_H

#include "generator.h"

/* A chunk being gathered. Zero-initialise. */
typedef struct icma_head_chunk {
    icma_rans_run *runs; /* one a tensor and row; owned */
    size_t run_count, run_capacity;
    int32_t *symbols; /* owned */
    size_t count, capacity;
    uint8_t *scratch; /* owned */
    float *scaled;     /* owned */
    size_t widest;
} icma_head_chunk;

/* Quantises `rows` x `count` floats (row-major), row k at step[k], and adds them, with the context that codes each row in the fewest bits. What is beyond the range of
 * integers is held within it. */
icma_status icma_head_add_tensor(icma_head_chunk *chunk, const float *values, const float *step, size_t rows, size_t count, icma_error *error);
/* Writes the payload into `out` (emptied first) and starts over. */
icma_status icma_head_take(icma_head_chunk *chunk, icma_buffer *out, icma_error *error);
void icma_head_free(icma_head_chunk *chunk);

/* Integers of the modelled tensors first .. first + count - 1 of a group; SIZE_MAX on overflow. */
size_t icma_head_integers(const icma_safetensors *signature, const icma_generator *generator, size_t first, size_t count);

/* A chunk's payload, opened: what decodes it. */
typedef struct icma_head_coded {
    const uint8_t *payload; /* outlives it */
    icma_rans_run *runs;    /* owned */
    size_t run_count, total;
    size_t stream[2]; /* where its stream begins and ends in the payload */
} icma_head_coded;

/* Reads the contexts of tensors first .. first + count - 1. ICMA_E_CORRUPT if there are too few. */
icma_status icma_head_open(const uint8_t *payload, size_t size, const icma_safetensors *signature, const icma_generator *generator, size_t first, size_t count,
                           icma_head_coded *out, icma_error *error);
void icma_head_close(icma_head_coded *coded); /* leaves it zeroed */
/* For the op decode_integers, which gives its integers tensor by tensor, row by row. Valid as long as `coded` stays where it is. */
icma_coded icma_head_stream(const icma_head_coded *coded);

#endif
