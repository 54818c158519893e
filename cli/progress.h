/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One progress bar on stderr, only where that is a terminal: what, how far, how fast, time left.
 */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include "icma.h"
#include "options.h"

void cli_progress_setup(const cli_common *common);
/* `unit` is what done and total count: "bytes" (shown as sizes), "epochs", ...; NULL: per cent only. */
void cli_progress_show(const char *phase, double done, double total, const char *unit, const char *note);
/* Takes the bar away, so that a line can be printed; the next cli_progress_show draws it again. */
void cli_progress_clear(void);
/* For the library: its phases on the bar, our signals as its `cancelled`, its lines as notes. */
icma_progress cli_progress_hooks(void);

#endif
