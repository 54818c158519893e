/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Adapters in memory to compare, and sums over many comparisons.
 */
#ifndef CLI_COMPARE_H
#define CLI_COMPARE_H

#include "fidelity.h"
#include "icma.h"

typedef struct cli_adapter {
    const uint8_t *image; /* the whole file; owned if `owned` is set */
    uint8_t *owned;
    size_t size;
    const uint8_t *data; /* in `image` */
    icma_safetensors tensors;
    icma_pairs pairs;
    char *config; /* adapter_config.json beside the file, NULL if there is none; owned */
    size_t config_size;
} cli_adapter;

/* Reads a safetensors file and the configuration beside it. */
icma_status cli_adapter_load(const char *path, cli_adapter *out, icma_error *error);
/* Looks at a file in memory, which must outlive the adapter. `name` is for messages. */
icma_status cli_adapter_view(const char *name, const uint8_t *image, size_t size, cli_adapter *out,
                             icma_error *error);
void cli_adapter_free(cli_adapter *adapter); /* leaves it zeroed */

/* Sums over adapters. */
typedef struct cli_score {
    size_t adapters;
    size_t identical; /* all tensors the same bits */
    size_t modules;
    double dw_sum, dw_max; /* of the modules' relative errors of dW */
    double dw_maximum;     /* largest |element| of any dW difference; NAN unless deep */
    icma_distance total;
} cli_score;
cli_score cli_score_none(void);
void cli_score_add(cli_score *score, const icma_fidelity *fidelity);
double cli_score_dw_mean(const cli_score *score);

/* The checkpoint of `task` that is at `step`; where one side has no step number and the other has no
 * checkpoint without one, it stands for the last. NULL if there is none. */
const icma_input_checkpoint *cli_find_checkpoint(const icma_input_task *task, bool has_step, uint64_t step,
                                                 bool is_last);
const icma_input_task *cli_find_task(const icma_inputs *inputs, const char *name);

#endif
