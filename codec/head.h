/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The head: K basis rows, cut by tensors into chunks, a HEAD section each (spec 4.4). Weight (k, l) of tensor t is step_tk * integer_tkl. A chunk holds, of its
 * modelled tensors in data order, all steps (f32), then the low bytes of all integers, then their high bytes: the high ones are far from uniform, and
 * zstd finds that only when they lie together.
 */
#ifndef ICMA_HEAD_H
#define ICMA_HEAD_H

#include "generator.h"

/* A chunk being gathered. Zero-initialise. */
typedef struct icma_head_chunk {
    icma_buffer steps, low, high;
} icma_head_chunk;

/* Quantises `rows` x `count` floats (row-major) at max |row| / 32767 a row and adds them. A row without a normal step becomes zeros with step 1. */
icma_status icma_head_add_tensor(icma_head_chunk *chunk, const float *values, size_t rows, size_t count, icma_error *error);
/* Bytes of the payload so far. */
size_t icma_head_size(const icma_head_chunk *chunk);
/* Moves the payload into `out` (emptied first) and starts over. */
icma_status icma_head_take(icma_head_chunk *chunk, icma_buffer *out, icma_error *error);
void icma_head_free(icma_head_chunk *chunk);

/* Steps and integers of the modelled tensors first .. first + count - 1 of a group; false on overflow. */
bool icma_head_extent(const icma_safetensors *signature, const icma_generator *generator, size_t first, size_t count, size_t *steps, size_t *integers);
/* Raw bytes of a chunk with so many; false on overflow. */
bool icma_head_raw_size(size_t steps, size_t integers, size_t *out);
/* `steps_out` and `integers_out` get the chunk's, tensor by tensor, row by row. ICMA_E_CORRUPT for steps that are not positive, finite and normal, and for -32768. */
icma_status icma_head_read(const uint8_t *payload, size_t steps, size_t integers, float *steps_out, int16_t *integers_out, icma_error *error);

#endif
