/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How far the work is: a bar on stderr where that is a terminal (what, how far, how fast, time left); with
 * --progress lines elsewhere, and with --json --progress objects (spec/json.md). A bar is redrawn by a thread
 * of its own, so that time goes on where the work tells nothing for a while.
 */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include "icma.h"
#include "options.h"

void cli_progress_setup(const cli_common *common);
/* Before each piece of work: so much of so much is done of `phase`, a word. `total` 0: nobody knows, and the
 * time since the phase began is shown. `unit` is what done and total count: "bytes" (shown as sizes),
 * "checkpoints", ...; NULL: per cent only. `note` is what is being worked on (may be NULL). */
void cli_progress_show(const char *phase, double done, double total, const char *unit, const char *note);
/* Takes the bar away, so that a line can be printed; the next cli_progress_show draws it again. */
void cli_progress_clear(void);
/* For the library: its phases on the bar, our signals as its `cancelled`, its lines as notes and, with -v,
 * its decisions as details. */
icma_progress cli_progress_hooks(void);

#endif
