/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of one task's checkpoints in one signature group: the payload of a TASK section (spec 4.6), and the texts that belong to it
 * (TEXTS section, spec 4.2).
 */
#ifndef ICMA_CHECKPOINTS_H
#define ICMA_CHECKPOINTS_H

#include "generator.h"
#include "icma.h"

enum {
    ICMA_CHAIN_TAPS = 3,
    ICMA_MAX_TEXTS = 1 << 20,      /* in a section */
    ICMA_MAX_SIDE_FILES = 1 << 10, /* beside a checkpoint */
};

typedef enum icma_condition_origin {
    ICMA_CONDITION_NONE = 0,    /* the group has no generator, and the task came without a vector */
    ICMA_CONDITION_GIVEN = 1,   /* from a file beside the checkpoints */
    ICMA_CONDITION_LEARNED = 2, /* trained jointly with the generator */
    ICMA_CONDITION_OFFSET = 3,  /* of a task that was added to a group with a basis: coefficients of its own, in place of what the trunk would make of a condition */
} icma_condition_origin;

typedef struct icma_checkpoint {
    bool has_step;
    uint64_t step;
    icma_tier tier;
    uint8_t taps;              /* under tier lossless: it is predicted from so many checkpoints that follow it; 0 for an anchor */
    icma_bound bound;          /* under tier bounded; else kind ICMA_BOUND_NONE */
    uint64_t hash;             /* XXH3-64 of the decoded file */
    float relative_error, dw_error_mean, dw_error_max; /* representable in bfloat16 */
    uint64_t header;           /* 0: the signature's; h: text h - 1 of the TEXTS section */
    uint64_t *files;           /* pairs (name text, content text) in the TEXTS section; owned */
    size_t file_count;
    uint32_t *exceptions;      /* tensors kept verbatim for this checkpoint only, ascending; owned */
    size_t exception_count;
    int32_t *latent;           /* generator->latent integers; owned; NULL unless icma_has_coefficients */
    int32_t *correction;       /* generator->total integers; owned; NULL unless icma_has_coefficients */
} icma_checkpoint;

typedef struct icma_checkpoints {
    icma_condition_origin origin;
    char *condition_name;      /* the file it came from, or ""; owned */
    float *condition;          /* rounded (coarse.h); owned; NULL if none */
    size_t condition_size;
    int32_t *offset;           /* with ICMA_CONDITION_OFFSET: generator->total integers, in correction steps; owned */
    icma_checkpoint *list;     /* owned */
    size_t count;
} icma_checkpoints;

/* Whether a checkpoint stores latent and corrections: tiers latent to lossless, of a group with a basis. */
bool icma_has_coefficients(const icma_generator *generator, const icma_checkpoint *checkpoint);
/* Numbers in a stored latent: none where an offset takes the trunk's place. */
size_t icma_stored_latents(const icma_generator *generator, const icma_checkpoints *checkpoints);
/* Which tensors a lossless link codes: all of F32, F16 and BF16, modelled or not. `coded` has a flag a tensor. */
void icma_mark_linked(const icma_safetensors *signature, bool *coded);

void icma_checkpoints_free(icma_checkpoints *checkpoints); /* leaves it zeroed */
/* The payload of a CONDITION section; reading fills what comes before `list` in `out` (freed by the caller on failure, too). */
void icma_condition_write(const icma_checkpoints *checkpoints, const icma_generator *generator, icma_buffer *out);
icma_status icma_condition_read(const void *data, size_t size, const icma_generator *generator, icma_checkpoints *out,
                                icma_error *error);

/* The payload of a TASK section. Reading fills `list` and `count`, given `origin` (of the part's condition). */
void icma_checkpoints_write(const icma_checkpoints *checkpoints, const icma_generator *generator, icma_buffer *out);
/* `count` is the section's; everything else is checked against it and the generator. */
icma_status icma_checkpoints_read(const void *data, size_t size, size_t count, const icma_generator *generator, icma_condition_origin origin,
                                  icma_checkpoints *out, icma_error *error);

/* Rounds up to the next bfloat16, so that a stored error is never below the measured one. Infinity stays. */
float icma_round_error_up(double value);

/* A list of byte strings (TEXTS section): varint count, then varint size and bytes of each. */
typedef struct icma_texts {
    struct icma_text {
        const uint8_t *data;
        size_t size;
    } *list; /* owned; points into the payload */
    size_t count;
} icma_texts;
icma_status icma_texts_read(const uint8_t *data, size_t size, icma_texts *out, icma_error *error);
void icma_texts_free(icma_texts *texts);

#endif
