/* SPDX-License-Identifier: Apache-2.0 */
/* What an open archive is made of. Private to bundle*.c. */
#ifndef ICMA_BUNDLE_INSIDE_H
#define ICMA_BUNDLE_INSIDE_H

#include "checkpoints.h"
#include "container.h"
#include "decode.h"
#include "icma.h"

/* A signature group, loaded on first use. */
typedef struct icma_group_state {
    bool loaded;
    bool refused; /* for what it says: `refusal`. Each of its tasks would else read it again */
    icma_error refusal;
    icma_safetensors signature;
    icma_generator generator;
    icma_decoder *decoder; /* made when something is decoded */
    uint8_t *text_bytes;   /* texts that tasks share */
    icma_texts texts;
} icma_group_state;

/* A section over a range of checkpoints: the one of its kind that was read last. */
typedef struct icma_stream {
    uint8_t *bytes; /* owned; NULL before */
    const icma_section *section;
    size_t *offsets; /* where the block of each of its checkpoints starts in bytes, and where the last ends; owned; NULL for verbatim tensors */
} icma_stream;

/* What one task has in one group. */
typedef struct icma_part {
    uint32_t group;
    icma_checkpoints table;
    uint8_t *text_bytes;
    icma_texts texts;
    bool texts_loaded;
    icma_stream verbatim, residuals, links;
    uint8_t **chain;    /* lossless checkpoints that were decoded, what those before them are predicted from: one a checkpoint, NULL: not remembered; owned */
    size_t *remembered; /* their indices; owned */
    size_t chain_count;
} icma_part;

typedef struct icma_place {
    uint32_t part, index;
} icma_place;

typedef struct icma_task_state {
    bool loaded;
    icma_part *parts;
    size_t part_count;
    icma_checkpoint_info *infos; /* all checkpoints, by step */
    icma_place *places;               /* where each of them is */
    size_t count;
    uint64_t bytes;
} icma_task_state;

struct icma_bundle {
    icma_container *container;
    const icma_section **tables; /* TASK sections by task, then group; owned */
    size_t table_count;
    const icma_ops *ops;
    icma_limits limits;
    bool unchecked; /* decoded files are given out without comparing their checksums */
    icma_group_state *groups;
    icma_task_state *tasks;
};

icma_status icma_bundle_corrupt(const icma_bundle *bundle, icma_error *error, const char *what);
/* The tables of a task, one a group, as indices first .. first + count - 1 of `tables`. */
size_t icma_bundle_tables(const icma_bundle *bundle, uint32_t task, size_t *first);
/* Each loads on first use; nothing to do after that. */
icma_status icma_bundle_load_group(icma_bundle *bundle, uint32_t group, icma_error *error);
icma_status icma_bundle_load_task(icma_bundle *bundle, uint32_t task, icma_error *error);
/* The section of a kind over checkpoints whose range has `index`, or NULL; the ranges do not overlap (checked when the task is loaded). */
const icma_section *icma_bundle_covering(const icma_bundle *bundle, uint16_t kind, uint32_t group, uint32_t task, size_t index);
icma_status icma_bundle_open_decoder(icma_bundle *bundle, uint32_t group, icma_error *error);
/* Where a task's checkpoint is; ICMA_E_NOT_FOUND if there are not so many. */
icma_status icma_bundle_find_checkpoint(icma_bundle *bundle, size_t task, size_t checkpoint, icma_place *out, icma_error *error);
/* What gives a checkpoint's adapter its code. */
typedef icma_status (*icma_code_source)(icma_group_state *group, const icma_part *part, const icma_checkpoint *checkpoint, const void *context, float *code, icma_error *error);
/* Header, data and side files of a checkpoint, its modelled tensors by `source`. `stored`: with all that makes it what was packed; else what its generator makes of the code. On failure `out` is the caller's to free. */
icma_status icma_bundle_decode_place(icma_bundle *bundle, size_t task, icma_place at, icma_code_source source, const void *context, bool stored, icma_decoded *out,
                                     icma_error *error);
/* noise[latent] from a seed (spec 4.8). */
void icma_bundle_draw(const icma_generator *generator, uint64_t seed, float *noise);
/* Compares the checksum of a decoded file of a checkpoint that was found. */
icma_status icma_bundle_check_hash(const icma_bundle *bundle, size_t task, size_t checkpoint, const uint8_t *file, size_t size, icma_error *error);
/* What comes before decoding a checkpoint: its limits are checked, its group's decoder is there. *code, room for its code, is owned by the caller (also on failure); NULL without a generator. */
icma_status icma_part_open(icma_bundle *bundle, uint32_t task, icma_part *part, size_t index, float **code, icma_error *error);
/* The header of the checkpoint's file: the signature's or its own, which must describe the same tensors. Owned by the bundle. Texts are loaded. */
icma_status icma_part_header(icma_bundle *bundle, const icma_part *part, const icma_checkpoint *checkpoint, const uint8_t **header, size_t *size, icma_error *error);
icma_status icma_part_load_texts(icma_bundle *bundle, uint32_t task, icma_part *part, icma_error *error);
/* Text `index` of a part: first its group's, then its own; NULL if there are not so many. Texts are loaded. */
const struct icma_text *icma_part_text(const icma_bundle *bundle, const icma_part *part, uint64_t index);
/* The bytes of one checkpoint in the section of `kind` (RESIDUAL, LINK) that covers it; size 0 where there is none. They live until the next call for the part. */
icma_status icma_part_find_block(icma_bundle *bundle, uint32_t task, icma_part *part, uint16_t kind, size_t index, const uint8_t **data, size_t *size, icma_error *error);
/* The residual of a checkpoint; empty where it has none. It lives until the next call of icma_part_find_block for the part: integers that no classes reorder are still coded. */
icma_status icma_part_load_residual(icma_bundle *bundle, uint32_t task, icma_part *part, size_t index, const float *code, icma_residual *out, icma_error *error);
/* What describes the tensors of the part's adapters; *list is owned by the caller (icma_free). */
icma_status icma_part_tensors(const icma_bundle *bundle, const icma_part *part, icma_adapter_tensor **list, size_t *count, icma_error *error);
/* Copies the checkpoint's verbatim tensors into `data`. */
icma_status icma_part_read_verbatim(icma_bundle *bundle, uint32_t task, icma_part *part, size_t index, uint8_t *data, icma_error *error);
/* The data of a lossless checkpoint, decoding what it is predicted from as far as that is not remembered. *data lives until the next call. */
icma_status icma_chain_decode(icma_bundle *bundle, uint32_t task, icma_part *part, size_t index, const uint8_t **data, icma_error *error);
void icma_part_forget_streams(icma_part *part);

#endif
