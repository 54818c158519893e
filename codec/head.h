/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The head: K basis rows, cut by tensors into HEAD sections (spec 4.4). Of each modelled tensor t the rows of its role: one f32 step a row, then
 * rows x count 16-bit integers, byte-grouped over the tensor. Weight (k, l) of the head is step_k * integer_kl.
 */
#ifndef ICMA_HEAD_H
#define ICMA_HEAD_H

#include "generator.h"

/* Raw bytes of one tensor's rows; false on overflow. */
bool icma_head_tensor_size(size_t rows, size_t count, size_t *out);

/* Quantises `rows` x `count` floats (row-major) at max |row| / 32767 a row and appends steps and integers. `integers` (rows x count) gets
 * what a decoder will see and `steps` (rows) the steps. A row without a normal maximum becomes zeros with step 1. */
icma_status icma_head_write_tensor(const float *values, size_t rows, size_t count, float *steps, int16_t *integers, icma_buffer *out, icma_error *error);
/* The inverse. Steps must be positive, finite and normal. */
icma_status icma_head_read_tensor(icma_cursor *from, size_t rows, size_t count, float *steps, int16_t *integers, icma_error *error);

#endif
