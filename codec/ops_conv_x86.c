/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel sets of convolutions: ops_conv_lanes.h for any processor, for AVX2 and for AVX-512. Chains of exact ops are never split, so that all give the same bits; a set leaves what is narrower than its
 * vectors to the one below.
 */
#include "ops_host.h"

#include <math.h>
#include <string.h>

/* Tiles are loops over constants that must be unrolled into registers. */
#define INLINED __attribute__((always_inline))
/* The most vectors that a register tile sums in. */
enum { MOST_CHAINS = 24 };
#define NARROW_ROW (NARROW_POSITIONS + ICMA_NARROW_TAPS)

/* --- any processor -------------------------------------------------------------------------------------- */

/* Outputs that fill no vector: the chain of each, one after another. */
static inline INLINED void conv_rest(const icma_conv_run *run) {
    for (ptrdiff_t p = 0; p < (ptrdiff_t)run->positions; p++)
        for (size_t o = 0; o < run->outputs; o++) {
            float sum = run->bias ? run->bias[o] : 0;
            for (size_t t = 0; t < run->taps; t++)
                for (size_t i = 0; i < run->inputs; i++)
                    sum = fmaf(run->x[p * run->x_position + (ptrdiff_t)t * run->x_tap + (ptrdiff_t)i * run->x_input], run->w[t * run->w_tap + i * run->w_row + o], sum);
            run->y[p * run->y_position + (ptrdiff_t)o] = sum;
        }
}

static inline INLINED void outer_rest(const icma_outer_run *run) {
    for (ptrdiff_t r = 0; r < (ptrdiff_t)run->rows; r++)
        for (ptrdiff_t c = 0; c < (ptrdiff_t)run->columns; c++) {
            float sum = 0, *to = run->out + r * run->out_row + c * run->out_column;
            for (ptrdiff_t p = 0; p < (ptrdiff_t)run->positions; p++)
                sum += run->a[p * run->a_position + r * run->a_row] * run->b[p * run->b_position + c];
            *to = run->fresh ? sum : *to + sum;
        }
}

#define NAME(x) x##_portable
#define TARGET
#define LANES 1
#define V float
#define V_LOAD(p) (*(p))
#define V_STORE(p, a) (*(p) = (a))
#define V_SET(a) ((float)(a))
#define V_ADD(a, b) ((a) + (b))
#define V_SUB(a, b) ((a) - (b))
#define V_MUL(a, b) ((a) * (b))
#define V_DIV(a, b) ((a) / (b))
#define V_SQRT(a) sqrtf(a)
