/* SPDX-License-Identifier: Apache-2.0 */
/* One task's checkpoints of one group, on their way into the archive. Private to pack_*.c. */
#ifndef ICMA_PACK_PART_H
#define ICMA_PACK_PART_H

#include "packer.h"

enum { ICMA_PACK_SMALL_LEVEL = 19, ICMA_PACK_LARGE_LEVEL = 9, ICMA_PACK_LARGE_BYTES = 4 << 20 };
/* Of originals that share a section. */
#define ICMA_PACK_STREAM_BYTES ((size_t)64 << 20)

typedef struct icma_part_writer {
    icma_packer *packer;
    icma_pack_group *g;
    uint32_t task;  /* of the inputs */
    uint32_t owner; /* the same in the archive */
    icma_checkpoints table;
    size_t past; /* so many of its checkpoints are in the archive already: what is below is NULL for them */
    icma_source **sources; /* one a kept checkpoint */
    size_t *source_index;  /* its index in the group */
    icma_text_pool texts;
    /* Originals (whole files) of the checkpoints of the verbatim section that is being gathered. */
    uint8_t **originals;
    const uint8_t **data;
    size_t section_first;
    size_t held;
    icma_buffer *blocks;    /* residual of each checkpoint of that section */
    icma_residual residual; /* of the checkpoint at hand */
    uint8_t *classes;       /* of its modelled weights (residual.h); NULL where the generator predicts no spreads */
    bool *verbatim;         /* which modelled tensors it keeps as they are */
    bool any_modelled;
    float *q;
    icma_distance total;
    double dw_sum, dw_max;
} icma_part_writer;

/* zstd's level for so many bytes. */
static inline int icma_pack_level(size_t size) {
    return size > ICMA_PACK_LARGE_BYTES ? ICMA_PACK_LARGE_LEVEL : ICMA_PACK_SMALL_LEVEL;
}

/* pack_texts.c */
icma_status icma_pack_take_side_files(icma_part_writer *part, const icma_input_checkpoint *input, icma_checkpoint *checkpoint, icma_error *error);
/* Whether the group's files get back other weights and have hashes of them in their metadata; then, and before anything else of the group's headers is written, the
 * signature's are cut. Call it when it is known what is modelled. */
icma_status icma_pack_cut_hashes(icma_packer *packer, icma_pack_group *group, icma_error *error);
bool icma_pack_has_hashes(const icma_safetensors *header);
icma_status icma_pack_take_header(icma_part_writer *part, size_t i, const uint8_t *original, icma_error *error);
/* Text `index` of a checkpoint. */
const icma_buffer *icma_pack_text(const icma_part_writer *part, uint64_t index);
/* XXH3 of checkpoint i's file as it will be decoded: `file` but for its header, where that is stored otherwise. */
icma_status icma_pack_hash(const icma_part_writer *part, size_t i, const uint8_t *file, size_t size, uint64_t *hash, icma_error *error);
icma_status icma_pack_write_texts(icma_part_writer *part, icma_error *error);

/* pack_task.c */
/* Reads checkpoint i's file into originals[i] and data[i], and notes its header and size. */
icma_status icma_pack_read_original(icma_part_writer *part, size_t i, size_t *size, icma_error *error);
/* Fills what every tier has: step, tier, side files, coefficients, exceptions. */
icma_status icma_pack_encode_checkpoint(icma_part_writer *part, size_t i, icma_error *error);
/* Writes the verbatim tensors and the blocks (as sections of `kind`) of checkpoints section_first .. next - 1. */
icma_status icma_pack_flush(icma_part_writer *part, size_t next, uint16_t kind, icma_error *error);

/* pack_lossless.c: encodes, proves and writes all of the part's checkpoints. */
icma_status icma_pack_lossless(icma_part_writer *part, icma_error *error);

#endif
