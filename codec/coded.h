/* SPDX-License-Identifier: Apache-2.0 */
/* Entropy-coded integers (icma_coded, ops.h), decoded by this machine's threads: what the CPU table runs, and who needs integers in host memory. */
#ifndef ICMA_CODED_H
#define ICMA_CODED_H

#include "ops.h"

/* Integers of all of `list`. */
size_t icma_coded_total(const icma_coded *list, size_t count);
/* What the op decode_integers gives, written to `out`. One thread a stream; the error is that of the first stream that has one, on any number of threads. */
icma_status icma_coded_decode(const icma_coded *list, size_t count, int16_t *out, icma_error *error);

#endif
