/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals: the first SIGINT, SIGTERM or SIGHUP asks the work to stop, a second one stops it. Either way no
 * temporary file stays.
 */
#ifndef CLI_SIGNALS_H
#define CLI_SIGNALS_H

#include "status.h"

#include <stdbool.h>

void cli_signals_setup(void);
int cli_signal_received(void); /* 0: none */
bool cli_pipe_broken(void);    /* a write met a closed pipe */
/* ICMA_E_CANCELLED once a signal came; for loops to return. */
icma_status cli_check_signal(icma_error *error);

#endif
