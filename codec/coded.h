/* SPDX-License-Identifier: Apache-2.0 */
/* Entropy-coded integers (icma_coded, ops.h), decoded by this machine's threads: what the CPU table runs, and who needs integers in host memory. */
#ifndef ICMA_CODED_H
#define ICMA_CODED_H

#include "ops.h"

/* Where the walk over the runs of a list's streams stands. Zero-initialise. */
typedef struct icma_coded_walk {
    size_t at, run, used; /* symbols behind it; the run it is in, and how many of that one are behind it */
} icma_coded_walk;
/* The parts of runs in the next stream, none of them empty, to `out`; returns how many. All streams together have at most as many as there are runs and streams, and walking them all takes no longer than that. */
size_t icma_coded_cut(const icma_coded *coded, icma_coded_walk *walk, icma_rans_run *out);
/* Integers of all of `list`. */
size_t icma_coded_total(const icma_coded *list, size_t count);
/* What the op decode_integers gives, written to `out`. One thread a stream; the error is that of the first stream that has one, on any number of threads. */
icma_status icma_coded_decode(const icma_coded *list, size_t count, int16_t *out, icma_error *error);

#endif
