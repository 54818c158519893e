/* SPDX-License-Identifier: Apache-2.0 */
/* What the benchmarks of the convolutional network share: the paper's network, random batches for it, and the
 * time of each of its layers. Any device. */
#ifndef ICMA_BENCH_CONV_LAYERS_H
#define ICMA_BENCH_CONV_LAYERS_H

#include "conv_net.h"

enum { BENCH_LATENT = 64, BENCH_COORDINATES = 16 };

double bench_now(void); /* seconds */

/* The paper's network for adapters of so many weights; bench/conv_torch.py has the same. */
icma_conv_shape bench_shape(size_t used);

/* A tensor of normal numbers. Ends the program where there is no memory for it. */
icma_tensor *bench_numbers(const icma_ops *ops, icma_rng *rng, size_t count);

/* Random sequences to train on, zero beyond `used` as training has them. */
typedef struct bench_sequences {
    icma_tensor *x, *a, *noise;
    icma_conv_batch batch;
} bench_sequences;
bench_sequences bench_sequences_of(const icma_ops *ops, icma_rng *rng, const icma_conv_shape *shape,
                                   size_t batch);
void bench_sequences_free(const icma_ops *ops, bench_sequences *s);

/*
 * Prints the rate of each layer and op as a Markdown table, beside `peak` operations a second, which the text
 * calls `of`. A GPU is not done when an op returns: so many repetitions are timed together, and then waited
 * for. The CPU takes 1.
 */
void bench_conv_layers(const icma_ops *ops, double peak, const char *of, size_t repetitions, size_t batch,
                       size_t length);

#endif
