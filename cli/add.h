/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of the verb add. */
#ifndef CLI_ADD_H
#define CLI_ADD_H

#include "icma.h"
#include "options.h"

/* What came of adding to `source` (as `path`): words on stderr, or with --json the document on stdout. */
icma_status cli_add_tell(const char *path, const char *source, bool dry_run, const icma_add_result *result,
                         const cli_common *common, icma_error *error);

#endif
