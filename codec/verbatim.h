/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verbatim streams (VERBATIM section, spec 4.7): of checkpoints first .. first + count - 1 of a task, tensor by tensor in data order, the bytes of those
 * checkpoints that keep the tensor as it is, byte-grouped over the run by the dtype's width.
 */
#ifndef ICMA_VERBATIM_H
#define ICMA_VERBATIM_H

#include "checkpoints.h"

/* Whether a checkpoint keeps a tensor verbatim: one that is not modelled, or an exception; under tier lossless what a link cannot code. */
bool icma_is_verbatim(const icma_safetensors *signature, const icma_generator *generator, const icma_checkpoint *checkpoint, size_t tensor);

/* Raw bytes of the section over these checkpoints; false on overflow. */
bool icma_verbatim_size(const icma_safetensors *signature, const icma_generator *generator, const icma_checkpoint *list, size_t count, size_t *out);

/* Appends the stream. data[i] is the data part of list[i]'s file. */
icma_status icma_verbatim_write(const icma_safetensors *signature, const icma_generator *generator, const icma_checkpoint *list, size_t count,
                                const uint8_t *const *data, icma_buffer *out, icma_error *error);
/* Copies the verbatim tensors of list[which] from a stream of icma_verbatim_size bytes into `data`. */
void icma_verbatim_read(const icma_safetensors *signature, const icma_generator *generator, const icma_checkpoint *list, size_t count, size_t which,
                        const uint8_t *stream, uint8_t *data);

#endif
