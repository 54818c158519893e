/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of the verb pack. */
#ifndef CLI_PACK_H
#define CLI_PACK_H

#include "icma.h"
#include "options.h"

/* --dry-run: what was found, on stdout. pack_found.c */
icma_status cli_pack_tell_found(const icma_inputs *inputs, const cli_common *common, icma_error *error);

/* What was packed: words on stderr, or with --json the document on stdout. pack_told.c */
icma_status cli_pack_tell_result(const char *path, const icma_pack_result *result, const cli_common *common,
                                 icma_error *error);

/* What tasks were found where, and whence their conditions, as details. */
void cli_pack_explain_found(const icma_inputs *inputs);

#endif
