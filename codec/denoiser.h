/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Conditional diffusion over latents, after COND P-DIFF (Jin et al. 2024): trained as DDPM (Ho et al. 2020, algorithm 1), sampled as DDIM with eta 0 (Song et al. 2021, eq. 12).
 *
 *   f(w) = h3 U4 + c4,  h1 = softsign(w U1 + c1),  h2 = h1 + softsign(h1 U2 + c2),  h3 = h2 + softsign(h2 U3 + c3),   w = [x; a; embedding of t]
 *   x <- keep_i x + add_i f(w),  i = 0, 1, ...: from noise, x_T, to x_0, w with the t_i of the step
 *   z = centre + spread * x
 *
 * The network says x_0, of which the noise that it finds in x_t is the other side: e = (x_t - sqrt(abar_t) f) / sqrt(1 - abar_t). Its loss is the squared error of x_0: that of the noise, weighted by
 * (1 - abar_t) / abar_t, with small t drawn more often. The plain error of the noise is no good here: DDIM divides what is wrong with e at large t by sqrt(abar_t), 1 / 157 at t = T, and a small network
 * trained on few latents is wrong by enough to throw samples far away.
 *
 * Sampling is exact (spec 4.16): the schedule is stored as numbers, keep_i, add_i and the embedding of each t_i, so that no function but those of spec 4.5 is needed. Every operation is rounded once to f32:
 *
 *   linear layers  chains of fma over the inputs, ascending, from the bias       (op `linear`)
 *   softsign       v / (1 + |v|), one addition, one division                     (op `softsign`)
 *   h2, h3         s + h, one addition                                           (op `axpy` by 1)
 *   a step         x_j = fma(add_i, f_j, keep_i * x_j)                           (on the host)
 *   at the end     z_j = fma(spread_j, x_j, centre_j)                            (on the host)
 */
#ifndef ICMA_DENOISER_H
#define ICMA_DENOISER_H

#include "bytes.h"
#include "icma.h"
#include "ops.h"
#include "rng.h"

enum {
    ICMA_DENOISER_LAYERS = 4,
    ICMA_DENOISER_TIMES = 1000, /* T */
    ICMA_DENOISER_MOST_STEPS = 1024,
    ICMA_DENOISER_MOST_EMBEDDING = 256,
    ICMA_DENOISER_MOST_HIDDEN = 4096,
    ICMA_DENOISER_MOST_BATCH = 65536,
};

typedef struct icma_denoiser {
    size_t latent, coordinates, embedding, hidden, steps; /* latent, hidden and steps at least 1 */
    float *centre, *spread; /* latent; owned */
    float *keep, *add;      /* steps; owned */
    float *time;            /* steps x embedding; owned */
    float *weight[ICMA_DENOISER_LAYERS], *bias[ICMA_DENOISER_LAYERS]; /* inputs x outputs, row-major, and outputs; owned */
} icma_denoiser;

/* Rows and columns of the matrix of layer 0 .. 3: U1 .. U4. */
void icma_denoiser_layer_shape(const icma_denoiser *denoiser, int layer, size_t *rows, size_t *columns);
icma_status icma_denoiser_allocate(icma_denoiser *denoiser, icma_error *error); /* zeroed, for the sizes set; on failure everything is freed */
void icma_denoiser_free(icma_denoiser *denoiser); /* leaves it zeroed */
/* Multiply-adds of sampling once; saturates. */
uint64_t icma_denoiser_work(const icma_denoiser *denoiser);

/*
 * The denoiser's part of a GENERATOR payload: varints embedding, hidden, steps; f32 centre[latent], spread[latent] (positive), keep[steps], add[steps], time[steps x embedding]; for each layer its matrix as
 * bfloat16, then its bias as f32. All numbers are zero or normal.
 * Writing rounds the numbers in place to what a reader will have. Reading takes `latent` and `coordinates` from the caller, checks everything else, and leaves the cursor behind the last number. A size over its
 * limit is ICMA_E_LIMIT, anything else ICMA_E_CORRUPT; nothing is allocated that the payload has no bytes for.
 */
void icma_denoiser_write(icma_denoiser *denoiser, icma_buffer *out);
icma_status icma_denoiser_read(icma_cursor *from, size_t latent, size_t coordinates, icma_denoiser *out, icma_error *error);

/* z from noise (latent numbers, N(0, 1) or zero) and condition coordinates, exactly. ICMA_E_CORRUPT if a number is not finite. */
icma_status icma_denoiser_sample(const icma_denoiser *denoiser, const icma_ops *ops, const float *noise, const float *a, float *z, icma_error *error);

/* --- training --------------------------------------------------------------------------------------------------- */

typedef struct icma_denoiser_options {
    size_t hidden, embedding;
    size_t steps;         /* of sampling, evenly spaced over 1 .. T; at most T */
    size_t epochs, batch;
    double learning_rate; /* falls to 0 as a half cosine over all epochs */
} icma_denoiser_options;

/* What works for so many latents: see denoiser_train.c. */
icma_denoiser_options icma_denoiser_defaults(size_t count);

/* A training that can stop and go on: everything lies in it, so that its state can be saved between epochs. */
typedef struct icma_denoising icma_denoising;
/* z: count x latent (spread per dimension and centre are taken from it), a: count x coordinates; both are copied. ICMA_E_USAGE without latents, or with options out of range. */
icma_status icma_denoising_create(const icma_ops *ops, const float *z, const float *a, size_t count, size_t latent, size_t coordinates, icma_denoiser_options options, icma_rng *rng, icma_denoising **out, icma_error *error);
void icma_denoising_free(icma_denoising *training); /* NULL is fine */
/* One pass over the latents, or as many as fill a batch; epochs count from 0 and come in order. *loss is the mean squared error of the standardised x_0. Random numbers come from `rng` alone.
 * ICMA_E_USAGE when the loss is no longer finite. */
icma_status icma_denoising_epoch(icma_denoising *training, size_t epoch, icma_rng *rng, double *loss, icma_error *error);
/* What the next epochs depend on, beside `rng`: parameters and both moments, in all so many numbers. Each is flat, matrix and bias of a layer in turn. */
size_t icma_denoising_state_size(const icma_denoising *training);
icma_status icma_denoising_get(icma_denoising *training, float *state, icma_error *error);
icma_status icma_denoising_set(icma_denoising *training, const float *state, icma_error *error);
/* What was learned. *out is owned by the caller. */
icma_status icma_denoising_finish(icma_denoising *training, icma_denoiser *out, icma_error *error);

#endif
