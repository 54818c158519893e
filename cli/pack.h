/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of the verb pack. */
#ifndef CLI_PACK_H
#define CLI_PACK_H

#include "device.h"
#include "icma.h"
#include "options.h"

/* The values of --tier, --max-error and --checkpoints (NULL: not given). */
icma_status cli_pack_read_tier(const char *tier, icma_pack_options *options, icma_error *error);
icma_status cli_pack_read_bound(const char *text, icma_pack_options *options, icma_error *error);
icma_status cli_pack_read_checkpoints(const char *checkpoints, icma_pack_options *options, icma_error *error);
/* What packing these inputs takes of a device, about. */
icma_device_work cli_pack_work(const icma_inputs *inputs, const icma_pack_options *options);

/* --dry-run: what was found, on stdout. `texts`: the file of --text-from, or NULL. pack_found.c */
icma_status cli_pack_tell_found(const icma_inputs *inputs, const char *texts, const cli_common *common,
                                icma_error *error);
/* After packing, on stderr: what the archive has once, or whole, and the inputs more than once or in pieces.
 * pack_found.c */
void cli_pack_tell_joined(const icma_inputs *inputs, const cli_common *common);

/* What was packed: words on stderr, or with --json the document on stdout. pack_told.c */
icma_status cli_pack_tell_result(const char *path, const icma_pack_result *result, const cli_common *common,
                                 icma_error *error);

/* What tasks were found where, and whence their conditions, as details. */
void cli_pack_explain_found(const icma_inputs *inputs, const char *texts);

#endif
