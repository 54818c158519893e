/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Words on stderr: errors, warnings, notes. With --json each is one JSON object on a line of its own.
 */
#ifndef CLI_MESSAGE_H
#define CLI_MESSAGE_H

#include "status.h"

#include <stdbool.h>

void cli_messages_as_json(bool json);
void cli_messages_quiet(bool quiet); /* no notes */
void cli_messages_verbose(bool verbose); /* details; else there are none */

/* "icma: error: <file>: <message>". */
void cli_error(const icma_error *error);
/* "icma: warning: <file>: <message>"; file may be NULL. */
void cli_warning(const char *file, const char *format, ...) ICMA_PRINTF(2, 3);
/* "icma: note: <message>": what is worth knowing and nothing is wrong about. */
void cli_note(const char *format, ...) ICMA_PRINTF(1, 2);
/* "icma: <topic>: <message>": what -v tells. */
void cli_detail(const char *topic, const char *format, ...) ICMA_PRINTF(2, 3);
/* The process exit code of a failure: a signal's where one ended the work. */
int cli_exit_code(icma_status status);

/* Closes the books on stdout: what was printed must have arrived. On failure tells, and returns the exit code
 * to use; 0 else. */
int cli_finish_stdout(void);

#endif
