/* SPDX-License-Identifier: Apache-2.0 */
/* A signature and a generator for the targets that decode one section's payload: what else an archive would tell. */
#ifndef ICMA_FUZZ_SHAPE_H
#define ICMA_FUZZ_SHAPE_H

#include "checkpoints.h"
#include "generator.h"
#include "safetensors.h"

/* Two factors, a vector (role other), a matrix without elements, integers. Made once; the caller's to look at. */
const icma_safetensors *fuzz_signature(void);
/* Models the first three: without a basis, or with 2, 3 and 1 rows, 2 latents, 2 coordinates of conditions of 3 numbers. */
const icma_generator *fuzz_generator(bool basis);
/* The parts of an input: a byte (0 at its end), and what is left. */
uint8_t fuzz_take(const uint8_t **data, size_t *size);
/* A head's integers: opened, then decoded on this machine. *integers is the caller's (icma_free), NULL unless ICMA_OK. */
icma_status fuzz_read_head(const uint8_t *payload, size_t size, size_t first, size_t count, int16_t **integers, icma_error *error);
/* A repeatable number, for data that is not the input's. */
uint32_t fuzz_noise(uint32_t *state);
/* The statuses with which a parser may refuse. */
bool fuzz_is_refusal(icma_status status);

#endif
