/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of the verb unpack. */
#ifndef CLI_UNPACK_H
#define CLI_UNPACK_H

#include "icma.h"
#include "options.h"
#include "source.h"
#include "writing.h"

typedef struct cli_unpack {
    cli_common common;
    cli_decoding decoding;
    cli_list tasks;
    cli_writing_options writing;
    const char *checkpoint;
    cli_whole seed;
    bool sample, dry_run, keep_going, no_check;
} cli_unpack;

typedef struct cli_unpack_item {
    size_t task, checkpoint;
    uint32_t group;
    bool has_step, exact, in_tree; /* exact: its tier keeps every bit; in_tree: with its step in the path */
    bool left_out;                 /* --keep-going, and it cannot be had */
    uint64_t step, size;           /* size: of the packed file */
    char *task_name, *label;       /* label: "<task>" or "<task>/checkpoint-N", for messages; owned */
    cli_writing_place place;
} cli_unpack_item;

typedef struct cli_unpack_plan {
    cli_unpack_item *items;
    size_t count;
} cli_unpack_plan;

icma_status cli_unpack_tell(const cli_unpack *a, const char *path, const cli_writing *writing,
                            const cli_unpack_plan *plan, icma_error *error);

#endif
