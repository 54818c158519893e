/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fidelity measured from files: many reconstructions against their originals, with sums by task, by tensor
 * and by module. Behind diff, verify --against and report --against.
 */
#ifndef CLI_MEASURE_H
#define CLI_MEASURE_H

#include "compare.h"
#include "json_out.h"
#include "options.h"

/* One tensor, or one module's dW, over all adapters of a signature. */
typedef struct cli_measured_row {
    char *name; /* owned */
    icma_distance sum;
    double worst, mean; /* relative errors of single adapters: the largest, and their mean */
    size_t adapters;
    double spread, unexplained; /* of a float tensor: variance within tasks, and what is left of it */
} cli_measured_row;

typedef struct cli_measured_group {
    icma_safetensors signature; /* owned */
    cli_measured_row *tensors, *modules;
    size_t tensor_count, module_count;
} cli_measured_group;

typedef struct cli_measured_checkpoint {
    bool has_step;
    uint64_t step;
    size_t group;
    double dw_mean, dw_max;
    size_t dw_worst; /* index of the module with dw_max */
    icma_distance total;
    double *modules; /* relative error of each module's dW, in the group's order; owned; may be NULL */
} cli_measured_checkpoint;

typedef struct cli_measured_task {
    char *name; /* owned */
    cli_score score;
    cli_measured_checkpoint *checkpoints; /* owned */
    size_t checkpoint_count;
} cli_measured_task;

/* Sums over the adapters of one task and signature, from which their variance follows. */
typedef struct cli_spread {
    double *sum;            /* of the floats, tensor after tensor; owned; NULL: nothing is open */
    double *energy, *error; /* by tensor; owned */
    size_t group, adapters;
} cli_spread;

/* An original and what a bundle gives back for it. */
typedef struct cli_pair {
    const char *task;
    bool has_step, last; /* last: of its task, in the bundle */
    uint64_t step;
    const cli_adapter *original;
    const icma_decoded *decoded;
} cli_pair;

/* Who else looks at each pair; `look` may be NULL. */
typedef struct cli_judge {
    icma_status (*look)(void *context, const cli_pair *pair, icma_error *error);
    void *context;
} cli_judge;

typedef struct cli_measure {
    cli_measured_group *groups;
    size_t group_count;
    cli_measured_task *tasks;
    size_t task_count;
    cli_score total;
    cli_spread open;
    bool deep;               /* in: the largest elements of dW differences too */
    const struct cli_finding *finding; /* in: how archives are unpacked; or NULL */
    bool zstd;               /* in: compress the originals as well (of a bundle) */
    cli_judge judge;         /* in: of a bundle */
    size_t unmatched;        /* checkpoints without a counterpart, on either side; each task's were named */
    size_t skipped;          /* inputs that were not taken; named */
    size_t damaged;          /* could not be decoded; named */
    size_t worse;            /* further from the original than the archive says */
    uint64_t original_bytes; /* of all compared originals */
    uint64_t zstd_bytes;     /* of the same, each compressed by zstd -19 */
} cli_measure;

void cli_measure_free(cli_measure *measure); /* leaves it zeroed */
icma_status cli_measure_add(cli_measure *measure, const char *task, bool has_step, uint64_t step,
                            const cli_adapter *original, const cli_adapter *other, icma_error *error);
/* After the last one. */
void cli_measure_finish(cli_measure *measure);
/* Share of the variance of checkpoints around their task's mean that the reconstructions explain, every
 * tensor in units of its rms, as the codec sees them; NAN where there is none. */
double cli_measure_explained(const cli_measure *measure);

/* A bundle against the originals below `folder`. `out` is zeroed but for what goes in (measure_inputs.c). */
icma_status cli_measure_bundle(icma_bundle *bundle, const char *path, const char *folder, cli_measure *out,
                               icma_error *error);
/* Two adapters or trees, likewise. */
icma_status cli_measure_paths(const char *original, const char *other, cli_measure *out, icma_error *error);

/* Table of tasks, and the total where there are several (measure_told.c). */
icma_status cli_measure_print(const cli_measure *measure, FILE *out, icma_error *error);
icma_status cli_measure_print_checkpoints(const cli_measure *measure, FILE *out, icma_error *error);
/* The `limit` worst modules and tensors; 0: all, in the file's order. */
icma_status cli_measure_print_modules(const cli_measure *measure, size_t limit, FILE *out, icma_error *error);
icma_status cli_measure_print_tensors(const cli_measure *measure, size_t limit, FILE *out, icma_error *error);
/* "against": {total, tasks [...], groups [{tensors [...], modules [...]}], ...}. */
void cli_measure_to_json(const cli_measure *measure, cJSON *to);

#endif
