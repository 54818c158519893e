/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Giving up what reading does not need (SECURITY.md): for verbs that look at a stranger's archive and write nothing but to standard output.
 */
#ifndef CLI_SANDBOX_H
#define CLI_SANDBOX_H

#include <stdbool.h>

/* Says that the verb only reads: cli_bundle_open enters the sandbox before it looks at the archive. `tell`: where that cannot be, it is said on standard error. */
void cli_sandbox_want(bool tell);
/* If it is wanted: from here on, in all threads, no file can be opened for writing, made, renamed or removed, no program started, no socket made, no other process
 * traced; new privileges cannot be had. `device` names what computes; drivers of GPUs need more than that. */
void cli_sandbox_enter(const char *device);
/* The filter itself: NULL, or why it could not be. */
const char *cli_sandbox_restrict(void);

#endif
