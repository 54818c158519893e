/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of the verb unpack. */
#ifndef CLI_UNPACK_H
#define CLI_UNPACK_H

#include "icma.h"
#include "options.h"
#include "source.h"

typedef struct cli_unpack {
    cli_common common;
    cli_decoding decoding;
    cli_list tasks;
    const char *checkpoint, *folder, *output;
    cli_whole seed;
    bool sample, force, keep_existing, dry_run, keep_going, no_check;
} cli_unpack;

typedef struct cli_unpack_item {
    size_t task, checkpoint;
    bool has_step;
    uint64_t step, size;
    char *folder;       /* "<task>" or "<task>/checkpoint-N"; owned */
    bool kept_existing; /* it is there already, and -k says to keep it */
    bool written;
    size_t side_files; /* written beside it */
} cli_unpack_item;

typedef struct cli_unpack_plan {
    cli_unpack_item *items;
    size_t count;
} cli_unpack_plan;

/* Before anything is written: ICMA_E_EXISTS if something is in the way; marks what -k keeps. */
icma_status cli_unpack_look_first(const cli_unpack *a, cli_unpack_plan *plan, icma_error *error);
/* Where its safetensors file goes; owned by the caller, NULL when memory is short. */
char *cli_unpack_path(const cli_unpack *a, const cli_unpack_item *item);
/* Writes an adapter and its side files into its folder. */
icma_status cli_unpack_folder(const cli_unpack *a, cli_unpack_item *item, const icma_decoded *decoded,
                              icma_error *error);
/* -o: the safetensors file alone, to a file or stdout. */
icma_status cli_unpack_one(const cli_unpack *a, cli_unpack_item *item, const icma_decoded *decoded,
                           icma_error *error);
icma_status cli_unpack_tell(const cli_unpack *a, const char *path, const cli_unpack_plan *plan,
                            icma_error *error);

#endif
