/* SPDX-License-Identifier: Apache-2.0 */
/*
 * "Did you mean": what else is there where something was not found.
 */
#ifndef CLI_NEAR_H
#define CLI_NEAR_H

#include "status.h"

/* If nothing is at `path`, adds to the error's message the name in its folder that is most like it. */
void cli_suggest_path(icma_error *error, const char *path);
/* The same for an archive, whose name may lack its ending; a folder in the place of one is told as such, and
 * "-". */
void cli_suggest_bundle(icma_error *error, const char *path);

#endif
