/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Facts that several verbs tell, each told in one place: bytes by kind, steps, errors.
 */
#ifndef CLI_FACTS_H
#define CLI_FACTS_H

#include "compare.h"
#include "json_out.h"
#include "table.h"

/* "bytes": {total, generator, ...}. */
void cli_json_bytes(cJSON *to, const icma_bytes *bytes);
icma_status cli_print_bytes(const icma_bytes *bytes, FILE *out, icma_error *error);

/* "dw_error": {max, mean}. */
void cli_json_dw_error(cJSON *to, double mean, double max);
/* dw_error, relative_error, cosine, maximum, snr_db, identical, of a sum over adapters. */
void cli_json_score(cJSON *to, const cli_score *score);

/* "relative_error", "cosine", "maximum", "snr_db", "identical" */
void cli_json_distance(cJSON *to, const icma_distance *distance);

/* "303", "303 to 450", "303 to 450, final", "final": `final` is the one without a number. */
cli_small cli_steps(bool any, uint64_t first, uint64_t last, bool final);
cli_small cli_steps_of(const icma_task_info *info);
/* "checkpoint-303", or "final". */
cli_small cli_checkpoint_name(bool has_step, uint64_t step);
/* "latent", "bounded dw 0.1"; of a task "generate, latent" where it has both. */
cli_small cli_tier_of(const icma_checkpoint_info *info);
cli_small cli_tiers_of(const icma_task_info *info);
/* "bound": {"kind": "dw", "value": 0.1}, or null. */
void cli_json_bound(cJSON *to, icma_bound bound);

/* What packing measured and stored of a task, over its checkpoints. */
typedef struct cli_stored {
    uint64_t file_bytes, parameters;
    double relative_error; /* root of the mean square, by parameters */
    double dw_mean, dw_max;
} cli_stored;
cli_stored cli_stored_of(const icma_task_info *info);

/* The adapters of an archive, summed. */
typedef struct cli_totals {
    size_t tasks, checkpoints;
    uint64_t file_bytes, parameters;
} cli_totals;
icma_status cli_totals_of(icma_bundle *bundle, cli_totals *totals, icma_error *error);

/* What a generator costs and saves against 16-bit casts of the same adapters. */
typedef struct cli_balance {
    uint64_t shared;     /* bytes that one more adapter does not add to */
    double marginal;     /* latents, residuals and verbatim bytes of an adapter, on average */
    uint64_t half_size;  /* all adapters at 2 bytes a parameter */
    int64_t saved;       /* half_size - the archive */
    uint64_t break_even; /* adapters from which the archive is the smaller; 0: never */
} cli_balance;
cli_balance cli_balance_of(const icma_bytes *archive, const cli_totals *totals);

#endif
