/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of the verb generate. */
#ifndef CLI_GENERATE_H
#define CLI_GENERATE_H

#include "icma.h"
#include "options.h"

/* --mix, read: packed tasks, each with its weight. */
typedef struct cli_mix {
    size_t *tasks;   /* owned */
    double *weights; /* owned */
    size_t count;
    char *text; /* "cat:0.5,dog:0.5"; owned */
} cli_mix;

/* Each item is TASK[:WEIGHT][,TASK[:WEIGHT]]... All have weights, or none: then they are equal and add up
 * to 1. A task whose name has a comma stands alone in its item. ICMA_E_NOT_FOUND names an unknown task. */
icma_status cli_mix_read(const icma_bundle *bundle, const char *path, const cli_list *items, cli_mix *mix,
                         icma_error *error);
double cli_mix_sum(const cli_mix *mix); /* of its weights */
void cli_mix_free(cli_mix *mix);        /* leaves it zeroed */

/* --text, embedded. */
typedef struct cli_text_condition {
    float *values; /* owned */
    size_t count;
    char *origin;     /* "TEXT", by which encoder; owned */
    uint64_t encoder; /* the hash of its weights */
} cli_text_condition;

/* As icma embed does it, with the encoder in a folder. What is in `out` is the caller's, on failure too. */
icma_status cli_text_embed(const char *text, const char *folder, bool projection, cli_text_condition *out,
                           icma_error *error);
void cli_text_condition_free(cli_text_condition *condition); /* leaves it zeroed */

#endif
