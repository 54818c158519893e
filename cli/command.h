/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Running a program of the user's: no shell, no input, the last of its outputs kept, in a process group of
 * its own, so that it ends with all that it has started: after a time limit, or when we are to end.
 */
#ifndef CLI_COMMAND_H
#define CLI_COMMAND_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>

enum { CLI_COMMAND_TAIL = 1 << 16 }; /* bytes of output that are kept: the last */

typedef struct cli_tail {
    char text[CLI_COMMAND_TAIL];
    size_t size;
} cli_tail;

typedef enum cli_outcome {
    CLI_RAN,         /* to its end: `how` tells which */
    CLI_INTERRUPTED, /* a signal to us came first; it was ended */
    CLI_TOO_LONG,    /* it was ended */
} cli_outcome;

typedef struct cli_command {
    char **arguments; /* in: the program, looked for in PATH, and what it gets; NULL after the last */
    double seconds;   /* in: that it may take; 0: any */
    bool quote;       /* in: keep its stderr too; else that goes to ours */
    cli_tail output, errors;
    cli_outcome outcome;
    int how; /* as waitpid tells */
} cli_command;

/* ICMA_E_IO where it cannot be started; what comes of it is the caller's to judge. */
icma_status cli_command_run(cli_command *command, icma_error *error);

#endif
