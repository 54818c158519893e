/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of packing share. Private to pack*.c. */
#ifndef ICMA_PACKER_H
#define ICMA_PACKER_H

#include "basis.h"
#include "checkpoints.h"
#include "decode.h"
#include "fidelity.h"
#include "train.h"

/* Sums over the checkpoints of a group, for the record and the result. */
typedef struct icma_measures {
    icma_distance *tensors;  /* one a tensor */
    icma_distance *pairs;    /* one a pair */
    double standard_error;   /* sum of |x~ - y~|^2 over modelled tensors */
    size_t checkpoints;      /* measured */
} icma_measures;

/* Texts, each stored once. */
typedef struct icma_text_pool {
    icma_buffer *list;
    size_t count;
} icma_text_pool;

/* One group being packed. */
typedef struct icma_pack_group {
    uint32_t index;
    icma_group *group;
    icma_gram gram;
    icma_basis basis;
    icma_generator generator;
    icma_training training;
    icma_section *chunks;
    size_t chunk_count;
    icma_decoder *decoder;
    icma_measures measures;
    icma_text_pool texts; /* that tasks share */
    bool cuts_hashes;     /* its files' headers are stored without the hashes of the weights */
} icma_pack_group;

typedef struct icma_packer {
    const icma_inputs *inputs;
    const icma_pack_options *options;
    const icma_ops *ops, *decode_ops;
    icma_condition *conditions; /* one a task of the inputs */
    icma_dataset dataset;
    icma_container_writer *writer;
    icma_pack_result *result;
    size_t missed_tensors, missed_checkpoints; /* kept bit for bit, because the model does not hold the bound */
    size_t encoded; /* checkpoints, kept or not */
    bool trained; /* a network: not to be done again for want of memory elsewhere */
} icma_packer;

/* Sets `now` to the seconds of a monotonic clock and returns those since the old value; for icma_pack_result.seconds. */
double icma_lap(double *now);

/* Encodes, measures and writes the checkpoints first .. first + count - 1 of the group's sources, which are one task's. */
icma_status icma_pack_task_part(icma_packer *packer, icma_pack_group *group, size_t first, size_t count, icma_error *error);
/* Tells phase "encode", one checkpoint at a time, and asks whether to go on. */
icma_status icma_pack_next_checkpoint(icma_packer *packer, uint32_t task, icma_error *error);
/* Finds texts that the group's tasks share and writes them. */
icma_status icma_pack_shared_texts(icma_packer *packer, icma_pack_group *group, icma_error *error);
void icma_text_pool_free(icma_text_pool *pool);
/* Writes the group's RECORD section. */
icma_status icma_pack_record(icma_packer *packer, const icma_pack_group *group, icma_error *error);

#endif
