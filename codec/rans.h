/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The entropy coder: streams of integers that are near-Gaussian around zero (spec 4.10).
 *
 * A stream is coded run by run, each run with a *context*: a static table for one spread. Neither counts nor
 * contexts are in the stream; the reader knows them. Any int32 can be coded in any context; what is far
 * outside a table costs about 20 + log2 |x| bits. A stream costs 3 bytes on average, 4 at most, over its
 * ideal size (24 over 16 KiB, 96 over 256 KiB); one without symbols is empty.
 */
#ifndef ICMA_RANS_H
#define ICMA_RANS_H

#include "bytes.h"
#include "status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct icma_rans_run {
    size_t count;     /* symbols; 0 is fine */
    unsigned context; /* less than icma_rans_contexts() */
} icma_rans_run;

/* Contexts are numbered by ascending spread, fewer than 256. */
unsigned icma_rans_contexts(void);
/* The standard deviation that a context is made for. */
double icma_rans_spread(unsigned context);
/* Bits that the symbols take in a context, without a stream's own overhead. For the pack side: floating
 * point. */
double icma_rans_cost(unsigned context, const int32_t *symbols, size_t count);
/* The context in which they take the fewest (near enough, where more than 1024 are distinct); *bits, if not
 * NULL, gets how many. */
unsigned icma_rans_best_context(const int32_t *symbols, size_t count, double *bits);

/* The same among the contexts first .. end - 1. */
unsigned icma_rans_best_context_among(const int32_t *symbols, size_t count, unsigned first, unsigned end, double *bits);

/* The parts of runs, which lie one after the other, between the symbols first and end - 1: for streams that are cut wherever it falls. `out` has room for `run_count`; returns how many there are. */
size_t icma_rans_cut(const icma_rans_run *runs, size_t run_count, size_t first, size_t end, icma_rans_run *out);
/* Appends the stream of all runs' symbols, which lie one after the other. */
icma_status icma_rans_encode(const int32_t *symbols, const icma_rans_run *runs, size_t run_count,
                             icma_buffer *out, icma_error *error);
/* Reads exactly `size` bytes into exactly the runs' symbols. A stream that no encoder could have made is
 * ICMA_E_CORRUPT, as is a context out of range; symbols may then have been written. Damage can also give
 * other symbols (raw bits have no redundancy): checksums are the caller's, as are caps on the counts. */
icma_status icma_rans_decode(const uint8_t *data, size_t size, const icma_rans_run *runs, size_t run_count,
                             int32_t *symbols, icma_error *error);

#endif
