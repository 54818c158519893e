/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoding one checkpoint of a group, exactly (spec 4.5). Pack and unpack both come through here, so what pack checked is what
 * unpack does.
 */
#ifndef ICMA_DECODE_H
#define ICMA_DECODE_H

#include "checkpoints.h"
#include "container.h"
#include "residual.h"

/* Loads a section's raw bytes (owned by the caller, icma_free): from an archive, or from one that is still being written. */
typedef struct icma_section_loader {
    icma_status (*load)(void *context, const icma_section *section, size_t max_raw, uint8_t **out, icma_error *error);
    void *context;
} icma_section_loader;

typedef struct icma_decoder icma_decoder;

/* `signature`, `generator`, `chunks` (the group's HEAD sections, ascending) and `ops` must outlive the decoder. Head chunks are loaded when first
 * needed and kept while they fit a budget of 1 GiB; one whose integers take more than `max_memory` bytes is ICMA_E_LIMIT, as is a convolutional decoder whose activations do. ICMA_E_CORRUPT if the
 * chunks do not cover the modelled tensors exactly. */
icma_status icma_decoder_create(const icma_ops *ops, const icma_safetensors *signature, const icma_generator *generator, const icma_section *chunks,
                                size_t chunk_count, icma_section_loader loader, uint64_t max_memory, icma_decoder **out, icma_error *error);
void icma_decoder_free(icma_decoder *decoder); /* NULL is fine */

/* Multiply-adds that decoding one checkpoint takes, an integer of the head counting as many as its decoding is worth; saturates. */
uint64_t icma_decode_work(const icma_safetensors *signature, const icma_generator *generator);

/* The code (icma_generator_code_size numbers) of an adapter that is not stored: from `noise` (latent numbers: variates of N(0, 1), or zeros), which the prior makes a latent of, and a condition
 * (condition_size or coordinates numbers). */
icma_status icma_decoder_sample(icma_decoder *decoder, const float *noise, const float *condition, bool learned, float *code, icma_error *error);
/* The same for a stored task: of one that was added (ICMA_CONDITION_OFFSET) its offset, whatever the noise. */
icma_status icma_decoder_sample_task(icma_decoder *decoder, const float *noise, const icma_checkpoints *task, float *code, icma_error *error);
/* The code of a stored checkpoint: z from its integers (under tier generate as icma_decoder_sample without noise), the trunk and the corrections where there are any. */
icma_status icma_decoder_code(icma_decoder *decoder, const icma_checkpoints *task, const icma_checkpoint *checkpoint, float *code, icma_error *error);
/* Writes every modelled tensor into `data` (signature->data_size bytes), except those listed in exceptions. A value that is not finite before the
 * cast is ICMA_E_CORRUPT. `residual` may be NULL. */
icma_status icma_decoder_tensors(icma_decoder *decoder, const float *code, const icma_residual *residual, const uint32_t *exceptions, size_t exception_count,
                                 uint8_t *data, icma_error *error);
/* One modelled tensor alone into `data`, which has room for its bytes: only its part of the head is loaded. `residual`: all that it has is of this tensor. */
icma_status icma_decoder_tensor(icma_decoder *decoder, const float *code, const icma_residual *residual, size_t tensor, uint8_t *data, icma_error *error);
/* The same into a tensor (U8, signature->data_size bytes) of the decoder's device. Bytes of other tensors stay as they are there. */
icma_status icma_decoder_tensors_to(icma_decoder *decoder, const float *code, const icma_residual *residual, const uint32_t *exceptions, size_t exception_count,
                                    icma_tensor *out, icma_error *error);
/* What the generator alone makes of a stored checkpoint: no residual, no exceptions. */
icma_status icma_decoder_model(icma_decoder *decoder, const icma_checkpoints *task, const icma_checkpoint *checkpoint, uint8_t *data, icma_error *error);
/* What the generator alone makes of one modelled tensor, before the cast; values has room for its elements. */
icma_status icma_decoder_predict(icma_decoder *decoder, const float *code, size_t tensor, float *values, icma_error *error);
/* With a basis: columns first .. first + columns - 1 of the rows of a modelled tensor's role, each times its head step, standardised (not times s_t). `rows` has room for rows x columns. */
icma_status icma_decoder_rows(icma_decoder *decoder, size_t tensor, size_t first, size_t columns, float *rows, icma_error *error);
/* Where icma_generator_has_classes: the class (residual.h) of each weight of all modelled tensors, one tensor after the other. ICMA_E_CORRUPT if a predicted variance is not finite. */
icma_status icma_decoder_classes(icma_decoder *decoder, const float *code, uint8_t *classes, icma_error *error);

#endif
