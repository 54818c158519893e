/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The checkpoints of a pack as matrices: grouped by signature, read tensor by tensor, so that at most one tile of one tensor of all of them is
 * in memory.
 */
#ifndef ICMA_DATASET_H
#define ICMA_DATASET_H

#include "adapter.h"
#include "generator.h"
#include "icma.h"

/* One checkpoint file. Its data starts where the header's size says, so headers may differ between sources of one group. */
typedef struct icma_source {
    icma_file *file; /* owned */
    const icma_input_checkpoint *input;
    uint32_t task;      /* index into the inputs' tasks */
    uint64_t data_offset;
    bool own_header;    /* its header's bytes differ from the signature's (metadata, order of keys, padding) */
} icma_source;

typedef struct icma_group {
    icma_safetensors signature; /* of the first source; owned */
    uint64_t fingerprint;       /* hash of names, dtypes and shapes: cheap inequality */
    icma_pairs pairs;           /* owned */
    icma_source *sources;       /* in input order: task by task, by step; owned */
    size_t count, capacity;
    uint8_t *exceptions;        /* bit n * tensors + t: tensor t of source n is kept verbatim although the group models it; owned */
} icma_group;

typedef struct icma_dataset {
    icma_group *groups; /* in order of first appearance; owned */
    size_t count;
    uint64_t files, bytes, parameters; /* of all sources */
} icma_dataset;

/* Opens and groups the inputs' checkpoints (the last `train_last` of each task; 0: all), telling phase "read" (progress may be NULL). `inputs` must outlive the dataset. */
icma_status icma_dataset_open(const icma_inputs *inputs, size_t train_last, const icma_progress *progress, icma_dataset *out, icma_error *error);
/* The same beside groups that are there already: the first known_count groups have these signatures (copied), in this order, and may stay without sources. Others follow. */
icma_status icma_dataset_open_beside(const icma_inputs *inputs, size_t train_last, const icma_safetensors *const *known, size_t known_count, const icma_progress *progress, icma_dataset *out,
                                     icma_error *error);
void icma_dataset_close(icma_dataset *dataset); /* leaves it zeroed */

/* ICMA_E_IO if a source's file is not what it was when it was opened: what was read of it may be a mixture. */
icma_status icma_dataset_check_unchanged(const icma_dataset *dataset, icma_error *error);

bool icma_group_is_exception(const icma_group *group, size_t source, size_t tensor);
void icma_group_set_exception(icma_group *group, size_t source, size_t tensor);

/* Reads elements first .. first + columns - 1 of one tensor of the sources rows[0 .. count - 1] (NULL: all) into x, row-major, unscaled. In parallel over rows. */
icma_status icma_group_load(icma_group *group, const uint32_t *rows, size_t count, size_t tensor, uint64_t first, size_t columns, float *x, icma_error *error);
/* Reads a source's whole file: *data (owned by the caller) has its header and data. */
icma_status icma_source_read(icma_source *source, uint8_t **data, size_t *size, icma_error *error);

#endif
