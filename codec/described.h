/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tasks with descriptions: texts from a JSON file, {"cat": "detect the cat", ...}, and their embeddings
 * (text_encoder.h) as the tasks' conditions.
 */
#ifndef ICMA_DESCRIBED_H
#define ICMA_DESCRIBED_H

#include "inputs.h"
#include "ops.h"

typedef struct icma_described {
    size_t count; /* tasks of the inputs */
    char **text;  /* of each task; NULL: it is not described; owned, as are the texts */
    float *rows;  /* count x width: their embeddings, coarse numbers as an archive has them (spec 2.7); NULL
                     before icma_described_embed; owned */
    size_t width;
    char *encoder;       /* what icma_text_encoder_id says; owned */
    uint64_t hash;       /* icma_text_encoder_hash */
    const char *pooling; /* icma_text_encoder_pooling; static */
    bool projection;
} icma_described;

/* Reads the texts. ICMA_E_CORRUPT for other than an object of strings, ICMA_E_NOT_FOUND for a name that is no
 * task's, ICMA_E_LIMIT for a text of more than ICMA_MOST_TEXT bytes or a file of more than 64 MiB. */
icma_status icma_described_read(const char *path, const icma_inputs *inputs, icma_described *out,
                                icma_error *error);
/* Embeds them with the encoder of a folder. */
icma_status icma_described_embed(icma_described *described, const char *encoder, bool projection,
                                 const icma_ops *ops, icma_error *error);
void icma_described_free(icma_described *described); /* leaves it zeroed */

/* "text: " and as much of a text as goes into `size` bytes with its NUL, cut before a character: what an
 * archive calls such a condition's origin. */
void icma_described_origin(const char *text, char *origin, size_t size);

#endif
