/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The conditional VAE in coordinates: network, loss and gradient, on any device.
 *
 *   encoder  g1 = softsign([u; a] E1 + e1), g2 = softsign(g1 E2 + e2), mu = g2 Em + em, logvar = g2 Ev + ev      q(z | x, c)
 *   latent   z = mu + exp(logvar / 2) eps                                                                       paper eq. 4
 *   trunk    h1 = softsign([z; a] V1 + b1), h2 = softsign(h1 V2 + b2), q = h2 V3 + [z; a] S + b3                  p(x | z, c)
 *   loss     mean over the batch of  sum_k w_k (p_k - q_k)^2 + kl_weight KL(q(z | x, c) || N(0, I))             paper eq. 8
 *
 * p are a checkpoint's coordinates in an orthonormal basis, so sum_k w_k (p_k - q_k)^2 is, up to a constant, the weighted squared error of the weights themselves: an
 * explicit K x L head has the same loss and gradients (CODEC.md; tests/codec/test_cvae.c). u is what the encoder sees of p (it need not be p), a the condition's coordinates: rows
 * of a table, of which the learned ones are parameters too.
 */
#ifndef ICMA_CVAE_H
#define ICMA_CVAE_H

#include "ops.h"
#include "rng.h"

typedef enum icma_parameter {
    ICMA_P_E1, ICMA_P_e1, ICMA_P_E2, ICMA_P_e2, ICMA_P_EM, ICMA_P_em, ICMA_P_EV, ICMA_P_ev,
    ICMA_P_V1, ICMA_P_b1, ICMA_P_V2, ICMA_P_b2, ICMA_P_V3, ICMA_P_S, ICMA_P_b3,
    ICMA_P_CONDITIONS, /* tasks x coordinates */
    ICMA_PARAMETERS
} icma_parameter;

typedef struct icma_cvae_shape {
    size_t targets;      /* K */
    size_t latent, coordinates, hidden, encoder_hidden;
    size_t tasks;
    size_t batch;        /* largest */
} icma_cvae_shape;

typedef struct icma_cvae icma_cvae;

/* Parameters start as Glorot-uniform matrices (Glorot and Bengio 2010) and zero biases, Ev and V3 a hundredth of that, so that training starts from q = [z; a] S + b3. */
icma_status icma_cvae_create(const icma_ops *ops, icma_cvae_shape shape, icma_rng *rng, icma_cvae **out, icma_error *error);
void icma_cvae_free(icma_cvae *cvae); /* NULL is fine */

/* A parameter and its gradient, and how many rows and columns they have. */
icma_matrix icma_cvae_parameter(icma_cvae *cvae, icma_parameter which);
icma_matrix icma_cvae_gradient(icma_cvae *cvae, icma_parameter which);
void icma_cvae_parameter_shape(const icma_cvae_shape *shape, icma_parameter which, size_t *rows, size_t *columns);
icma_status icma_cvae_set(icma_cvae *cvae, icma_parameter which, const float *values, icma_error *error);
icma_status icma_cvae_get(icma_cvae *cvae, icma_parameter which, float *values, icma_error *error);

/* What a pass works on. Rows of p and u are checkpoints; `rows` and `tasks` (U32) say which checkpoint and which row of the condition table each element of a batch is. */
typedef struct icma_cvae_batch {
    icma_matrix p, u;      /* all checkpoints x K */
    icma_matrix weight;    /* 1 x K: w */
    const icma_tensor *rows, *tasks;
    size_t first, count;   /* elements first .. first + count - 1 of `rows` and `tasks` */
    icma_matrix noise;     /* count x latent: eps */
    float kl_weight;
} icma_cvae_batch;

/* Runs encoder, latent and trunk. */
void icma_cvae_forward(icma_cvae *cvae, const icma_cvae_batch *batch);
/* After forward: the batch's mean reconstruction loss and mean KL (nats, not weighted). Either may be NULL. */
icma_status icma_cvae_loss(icma_cvae *cvae, const icma_cvae_batch *batch, double *reconstruction, double *kl, icma_error *error);
/* After forward: gradients of the loss with respect to every parameter. */
void icma_cvae_backward(icma_cvae *cvae, const icma_cvae_batch *batch);
/* One Adam step on all parameters. `trainable` (tasks x coordinates of 0 and 1) masks the condition table's gradient. */
void icma_cvae_adam(icma_cvae *cvae, icma_adam options, icma_matrix trainable);

/* After forward: mu and logvar of the batch, count x latent. */
icma_matrix icma_cvae_mu(icma_cvae *cvae, size_t count);
icma_matrix icma_cvae_logvar(icma_cvae *cvae, size_t count);
/* After forward: q, count x K. */
icma_matrix icma_cvae_output(icma_cvae *cvae, size_t count);

#endif
