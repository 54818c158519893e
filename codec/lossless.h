/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A lossless link: the exact bits of float tensors of one file, given predictions that the decoder has too
 * (spec 4.14).
 *
 * A prediction, a *tap*, is the data of a file of the same signature: the checkpoint after this one, the one
 * after that, what the lossy tier decodes. A tensor is coded as the difference to a linear combination of the
 * taps, whose weights the encoder fits, or to nothing; where neither pays, as compressed or plain bytes.
 * Every bit comes back: NaN payloads, infinities, denormals, -0. Any bytes can be coded; adversarial ones
 * cost a little more than themselves.
 *
 * List the taps from the nearest to the farthest: what is stored are weights of the first and of the
 * differences between neighbours, and a tap that equals the tensor is found cheaply. A chain n+1, n+2, n+3
 * extrapolates. The lossy decodes of this checkpoint and the next, one after the other, tell by their
 * difference what moved.
 *
 * A payload is the same bytes at any thread count, for one build and CPU type; decoding is exact everywhere.
 */
#ifndef ICMA_LOSSLESS_H
#define ICMA_LOSSLESS_H

#include "bytes.h"
#include "safetensors.h"

enum { ICMA_LOSSLESS_TAPS = 8 }; /* at most */

/* What a link is about: the same at both ends. Everything is the caller's. */
typedef struct icma_lossless_link {
    const icma_safetensors *signature;
    const bool *coded; /* a flag a tensor: coded here; those are F32, F16 or BF16. Others are neither read nor
                          written */
    const uint8_t *const
        *taps; /* tap_count arrays of signature->data_size bytes: data without header, at any alignment */
    size_t tap_count;
} icma_lossless_link;

/* Appends the payload of `original`, signature->data_size bytes. Threads take tensors and blocks; memory
 * beside the payload is some megabytes a thread and one more payload. ICMA_E_USAGE: a coded tensor of another
 * dtype, or too many taps; ICMA_E_MEMORY. */
icma_status icma_lossless_encode(const icma_lossless_link *link, const uint8_t *original, icma_buffer *out,
                                 icma_error *error);

/* Reads exactly `size` bytes and writes the coded tensors into `data`, signature->data_size bytes; the rest
 * of it is left alone. `data` is none of the taps. ICMA_E_CORRUPT: what no encoder makes, or another number
 * of taps; some tensors may then have been written. Damage may also decode to other numbers: checksums are
 * the caller's. Never allocates more than a few times the coded tensors. ICMA_E_USAGE and ICMA_E_MEMORY as
 * above. */
icma_status icma_lossless_decode(const icma_lossless_link *link, const uint8_t *payload, size_t size,
                                 uint8_t *data, icma_error *error);

#endif
