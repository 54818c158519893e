/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Training the convolutional generators of a group: the CVAE of ICM-LoRA, and the autoencoder with a denoiser over its latents after COND P-DIFF.
 *
 * Adapters go in as their modelled tensors end to end, each tensor divided by its rms (icma_generator_rms), padded with zeros. Everything random comes from one generator whose state is saved with the rest, so a training
 * that was stopped and resumed ends in the same bits as one that was not, and nothing depends on the number of threads.
 */
#ifndef ICMA_CONV_TRAIN_H
#define ICMA_CONV_TRAIN_H

#include "gram.h"
#include "train.h"

/* Fills `generator` (kind, sizes, projection, decoder, denoiser, steps, coding; treatment and scale are there already) and `out`. `index` numbers the group, for the name of its training file. Under cancellation the state
 * is saved first, where options name a file. A device that is not the CPU and whose memory is too small gets half the batch, and so on; if it holds not even one adapter the CPU trains. Each time a line is said. */
icma_status icma_conv_train(icma_group *group, uint32_t index, const icma_gram *gram, const icma_condition *conditions, const icma_pack_options *options, const icma_ops *ops, icma_generator *generator,
                            icma_training *out, icma_error *error);
/* Multiply-adds of training on so many adapters of so many modelled weights each, about. */
double icma_conv_train_work(const icma_pack_options *options, size_t adapters, size_t weights);
/* The name of a group's training file: owned by the caller; NULL: no memory. */
char *icma_conv_training_path(const icma_pack_options *options, uint32_t index);

#endif
