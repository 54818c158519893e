/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ICMA_THREADS_H
#define ICMA_THREADS_H

#include "api.h"

ICMA_API_BEGIN

/* How many threads the CPU and the readers use from now on; 0: as many as there are processors. Process-wide;
 * not to be called while work is going on. Results never depend on it. */
void icma_set_threads(int threads);
int icma_threads(void);

ICMA_API_END

#endif
