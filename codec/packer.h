/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of packing share. Private to pack*.c. */
#ifndef ICMA_PACKER_H
#define ICMA_PACKER_H

#include "basis.h"
#include "checkpoints.h"
#include "decode.h"
#include "described.h"
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
    icma_checkpoints past;     /* of a task that goes on: its table; the part that is written takes it, and owns it then */
    icma_text_pool past_texts; /* and its texts, likewise */
    bool joined;          /* it is an old group of an archive that newcomers are added to: generator, decoder and texts are the archive's */
} icma_pack_group;

typedef struct icma_packer {
    const icma_inputs *inputs;
    const uint32_t *owners; /* the inputs' tasks in the archive; NULL: the same */
    const icma_pack_options *options;
    const icma_ops *ops, *decode_ops;
    const icma_described *described; /* texts of tasks, embedded; NULL: none */
    icma_condition *conditions; /* one a task of the inputs */
    icma_dataset dataset;
    icma_container_writer *writer;
    icma_pack_result *result;
    size_t missed_tensors, missed_checkpoints; /* kept bit for bit, because the model does not hold the bound */
    size_t encoded; /* checkpoints, kept or not */
    double standard_error, within; /* sums over the groups that were packed whole */
    bool trained; /* a network: not to be done again for want of memory elsewhere */
} icma_packer;

/* Sets `now` to the seconds of a monotonic clock and returns those since the old value; for icma_pack_result.seconds. */
double icma_lap(double *now);

/* The inputs' conditions, and the result's list of their tasks. */
icma_status icma_pack_load_conditions(icma_packer *packer, icma_error *error);
icma_status icma_pack_name_tasks(icma_packer *packer, icma_error *error);
void icma_packer_free(icma_packer *packer); /* but for writer and result */
/* Learns from a group and writes all of it, as group `index`. */
icma_status icma_pack_group_whole(icma_packer *packer, icma_group *group, uint32_t index, icma_error *error);
/* Room for measures. */
icma_status icma_pack_group_prepare(icma_pack_group *group, icma_error *error);
/* Encodes, measures and writes all of a group's checkpoints. */
icma_status icma_pack_group_tasks(icma_packer *packer, icma_pack_group *group, icma_error *error);
void icma_pack_group_free(icma_pack_group *group);
/* Encodes, measures and writes the checkpoints first .. first + count - 1 of the group's sources, which are one task's. They follow the group's `past`, if it has one: that task's table and
 * texts are written with what was in them, its condition and the sections of old checkpoints are not. */
icma_status icma_pack_task_part(icma_packer *packer, icma_pack_group *group, size_t first, size_t count, icma_error *error);
/* Tells phase "encode", one checkpoint at a time, and asks whether to go on. */
icma_status icma_pack_next_checkpoint(icma_packer *packer, uint32_t task, icma_error *error);
/* Whether hashes of weights that do not come back bit for bit are left out of headers. */
bool icma_pack_cuts_hashes(const icma_packer *packer, const icma_pack_group *group);
/* Finds texts that the group's tasks share and writes them. */
icma_status icma_pack_shared_texts(icma_packer *packer, icma_pack_group *group, icma_error *error);
void icma_text_pool_free(icma_text_pool *pool);
icma_status icma_text_pool_add(icma_text_pool *pool, const void *data, size_t size, icma_error *error);
/* Options of a program that may have been compiled with an older icma.h, as this library knows them. */
icma_status icma_pack_take_options(const icma_pack_options *options, icma_pack_options *out, icma_error *error);
/* ICMA_E_USAGE for options that are out of range or contradict each other. */
icma_status icma_pack_check_options(const icma_pack_options *options, icma_error *error);
/* What a basis has to reach under these options. */
icma_basis_target icma_pack_target(const icma_pack_options *options);
/* The description of a task of the inputs; NULL: it has none. */
const char *icma_pack_text_of(const icma_packer *packer, size_t task);
/* Writes the group's RECORD section. */
icma_status icma_pack_record(icma_packer *packer, const icma_pack_group *group, icma_error *error);

#endif
