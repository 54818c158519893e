/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the parts of the library use icma_progress (icma.h). A hook that is NULL costs nothing, and so does a
 * progress that is.
 */
#ifndef ICMA_PROGRESS_H
#define ICMA_PROGRESS_H

#include "icma.h"

/* Tells how far `phase`, one of icma_progress_unit's, is; before the work that comes next. `total` 0: nobody
 * knows. */
void icma_tell(const icma_progress *progress, const char *phase, double done, double total, const char *note);
/* ICMA_E_CANCELLED if the work is to stop. */
icma_status icma_check_cancelled(const icma_progress *progress, icma_error *error);
void icma_say(const icma_progress *progress, const char *line);
/* Whether decisions are listened to: finding words for them may cost something. */
bool icma_explains(const icma_progress *progress);
void icma_explain(const icma_progress *progress, const char *topic, const char *format, ...)
    ICMA_PRINTF(3, 4);

#endif
