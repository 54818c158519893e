/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The convolutional conditional VAE of ICM-LoRA (Shao et al. 2025): network, loss and gradient, on any device.
 *
 *   encoder  h_0 = x; h_l = LeakyReLU(BN(conv_down(h_(l-1))))  l = 1 .. N;   e = flat(h_N) We + be
 *            mu = [e; a] Wm + bm, logvar = [e; a] Wv + bv                                                  q(z | x, c), paper eq. 2, 3
 *   latent   z = mu + exp(logvar / 2) eps                                                                  eq. 4
 *   decoder  g_0 = [z; a] Wd + bd; g_l = ELU(BN(conv_up(g_(l-1))))  l = 1 .. N;   y = conv(g_N) + b        p(x | z, c), eq. 5
 *   loss     mean over the batch of  1/L sum_l (x_l - y_l)^2 + kl_weight KL(q(z | x, c) || N(0, I))        eq. 8, the reference's mean squared error
 *            with `variance`, y has a second channel v = log of the variance, and the first term is  1/L sum_l ((x_l - y_l)^2 exp(-v_l) + v_l) / 2     eq. 6
 *
 * Channels of h_1 .. h_N are channels[0 .. N - 1]; g_0 has channels[N - 1], g_1 .. g_(N - 1) have channels[N - 2] .. channels[0] and g_N has channels[0]. Positions L .. length - 1 are padding: zeros in x, left out
 * of the loss. Convolutions in front of a batch norm have no bias, which the norm would take away.
 *
 * An *autoencoder* (kind) has the same layers: no a on either side, z = mu + latent_noise * eps, no KL.
 */
#ifndef ICMA_CONV_NET_H
#define ICMA_CONV_NET_H

#include "conv_decoder.h"
#include "ops.h"
#include "rng.h"

typedef struct icma_conv_shape {
    size_t used;        /* L: weights of an adapter that the network models */
    size_t length;      /* L with its padding: a multiple of 2^layers, icma_conv_padded */
    size_t layers;      /* N, 1 .. ICMA_CONV_MOST_LAYERS */
    size_t width;       /* taps, odd */
    size_t channels[ICMA_CONV_MOST_LAYERS];
    size_t hidden;      /* numbers in e */
    size_t latent;
    size_t coordinates; /* numbers in a; 0 for an autoencoder */
    bool autoencoder, variance;
} icma_conv_shape;

/* The least multiple of 2^layers that holds L. */
size_t icma_conv_padded(size_t used, size_t layers);
/* Trainable numbers. SIZE_MAX on overflow. */
size_t icma_conv_parameters(const icma_conv_shape *shape);
/* Multiply-adds of a forward pass of one adapter. */
double icma_conv_work(const icma_conv_shape *shape);

typedef struct icma_conv_net icma_conv_net;

/* Parameters start as PyTorch's modules do: weights and biases uniform within 1 / sqrt(fan in), gamma 1, beta 0, running mean 0 and variance 1. `batch` is the largest; `length` must be icma_conv_padded.
 * Every convolution keeps what it and its activation give, and two gradients are alive at a time: with the paper's channels some 550 bytes x batch x length, 2.1 GB for a batch of 2 at L = 1,929,928. */
icma_status icma_conv_net_create(const icma_ops *ops, icma_conv_shape shape, size_t batch, icma_rng *rng, icma_conv_net **out, icma_error *error);
void icma_conv_net_free(icma_conv_net *net); /* NULL is fine */

/* Everything that training changes, each one flat tensor of `count` numbers: parameters and their gradients, Adam's moments, and running statistics (mean and variance of every batch norm, encoder's first). */
typedef enum icma_conv_state { ICMA_CONV_PARAMETERS, ICMA_CONV_GRADIENTS, ICMA_CONV_MOMENT1, ICMA_CONV_MOMENT2, ICMA_CONV_RUNNING, ICMA_CONV_STATES } icma_conv_state;
icma_tensor *icma_conv_net_state(icma_conv_net *net, icma_conv_state which, size_t *count);

/* Where a part lies in the flat parameters; rows x columns, row-major. `layer` counts from 0; it is 0 for parts there is one of. */
typedef enum icma_conv_part {
    ICMA_CONV_ENCODER_W, ICMA_CONV_ENCODER_GAMMA, ICMA_CONV_ENCODER_BETA, /* layers 0 .. N - 1 */
    ICMA_CONV_WE, ICMA_CONV_BE, ICMA_CONV_WM, ICMA_CONV_BM, ICMA_CONV_WV, ICMA_CONV_BV, ICMA_CONV_WD, ICMA_CONV_BD,
    ICMA_CONV_DECODER_W, ICMA_CONV_DECODER_GAMMA, ICMA_CONV_DECODER_BETA, /* layers 0 .. N - 1 */
    ICMA_CONV_FINAL_W, ICMA_CONV_FINAL_B,
    ICMA_CONV_PARTS
} icma_conv_part;
void icma_conv_part_place(const icma_conv_shape *shape, icma_conv_part part, size_t layer, size_t *offset, size_t *rows, size_t *columns);

typedef struct icma_conv_batch {
    size_t count;
    icma_matrix x;     /* (count * length) x 1, stride 1, standardised, zero beyond L */
    icma_matrix a;     /* count x coordinates */
    icma_matrix noise; /* count x latent: eps */
    float kl_weight, latent_noise;
} icma_conv_batch;

/* Runs encoder, latent and decoder. `training`: batch norms take the batch's statistics, and blend them into the running ones (momentum 0.1, variance unbiased, as PyTorch); else the running ones. */
void icma_conv_forward(icma_conv_net *net, const icma_conv_batch *batch, bool training);
/* After forward: means over the batch of the reconstruction term and of the KL (nats, not weighted; 0 for an autoencoder). */
icma_status icma_conv_loss(icma_conv_net *net, const icma_conv_batch *batch, double *reconstruction, double *kl, icma_error *error);
/* After forward with `training`: gradients of the loss with respect to every parameter. */
void icma_conv_backward(icma_conv_net *net, const icma_conv_batch *batch);
/*
 * A training step up to its gradients: forward with `training`, loss, backward. Where the device can record, the step of a full batch (as many sequences as the network was made for) is recorded the second time and replayed from then on: views
 * and numbers of all full batches must be the same.
 *
 * Reading losses makes a device wait, so they stay there for many steps: losses[0] += count * reconstruction and losses[1] += count * KL of a step, as icma_conv_loss has them, are added up in the order of the steps by a later
 * icma_conv_step, or by icma_conv_collect at the latest.
 */
icma_status icma_conv_step(icma_conv_net *net, const icma_conv_batch *batch, double losses[2], icma_error *error);
icma_status icma_conv_collect(icma_conv_net *net, double losses[2], icma_error *error);
/* One Adam step on all parameters. */
void icma_conv_adam(icma_conv_net *net, icma_adam options);

/* After forward: mu and logvar (none for an autoencoder), count x latent; y, (count * length) x (1 or 2), zero beyond L. */
icma_matrix icma_conv_mu(icma_conv_net *net, size_t count);
icma_matrix icma_conv_logvar(icma_conv_net *net, size_t count);
icma_matrix icma_conv_output(icma_conv_net *net, size_t count);
/* After forward: h_(layer + 1), (count * positions) x channels[layer]. */
icma_matrix icma_conv_hidden(icma_conv_net *net, size_t layer, size_t count);

/* The decoder as an archive holds it: batch norms folded with the running statistics (w gamma / sqrt(variance + epsilon), beta - mean gamma / sqrt(...)), in f32. *out is owned by the caller. */
icma_status icma_conv_fold(icma_conv_net *net, icma_conv_decoder *out, icma_error *error);

#endif
