/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Conditional diffusion over latents, after COND P-DIFF (Jin et al. 2024): a denoiser e(x_t, t, c) trained as DDPM (Ho et al. 2020, algorithm 1), sampled as DDIM with eta 0 (Song et al. 2021, eq. 12).
 *
 *   e = h3 U4 + c4,  h1 = softsign(w U1 + c1),  h2 = h1 + softsign(h1 U2 + c2),  h3 = h2 + softsign(h2 U3 + c3),   w = [x; a; embedding of t]
 *   x <- keep_i x + add_i e(x, t_i, a),  i = 0, 1, ... (from noise to x_0)
 *   z = centre + spread * x
 *
 * Decoding is exact (spec 4.16): the schedule is stored as numbers, keep_i, add_i and the embedding of each t_i, so that no function but those of spec 4.5 is needed.
 */
#ifndef ICMA_DENOISER_H
#define ICMA_DENOISER_H

#include "bytes.h"
#include "icma.h"
#include "ops.h"
#include "rng.h"

enum { ICMA_DENOISER_LAYERS = 4, ICMA_DENOISER_TIMES = 1000, ICMA_DENOISER_MOST_STEPS = 1024, ICMA_DENOISER_MOST_EMBEDDING = 256, ICMA_DENOISER_MOST_HIDDEN = 4096 };

typedef struct icma_denoiser {
    size_t latent, coordinates, embedding, hidden, steps;
    float *centre, *spread; /* latent; owned */
    float *keep, *add;      /* steps; owned */
    float *time;            /* steps x embedding; owned */
    float *weight[ICMA_DENOISER_LAYERS], *bias[ICMA_DENOISER_LAYERS]; /* inputs x outputs, row-major; owned */
} icma_denoiser;

/* Rows and columns of layer 0 .. 3: U1 .. U4. */
void icma_denoiser_layer_shape(const icma_denoiser *denoiser, int layer, size_t *rows, size_t *columns);
icma_status icma_denoiser_allocate(icma_denoiser *denoiser, icma_error *error); /* for the sizes set; on failure everything is freed */
void icma_denoiser_free(icma_denoiser *denoiser); /* leaves it zeroed */
/* Multiply-adds of sampling once; saturates. */
uint64_t icma_denoiser_work(const icma_denoiser *denoiser);

/* The denoiser's part of a GENERATOR payload. Writing rounds matrices to bfloat16 in place. Reading takes `latent` and `coordinates` from the caller and checks everything else. */
void icma_denoiser_write(icma_denoiser *denoiser, icma_buffer *out);
icma_status icma_denoiser_read(icma_cursor *from, size_t latent, size_t coordinates, icma_denoiser *out, icma_error *error);

/* z from noise (latent numbers, N(0, 1) or zero) and condition coordinates, exactly. ICMA_E_CORRUPT if a number is not finite. */
icma_status icma_denoiser_sample(const icma_denoiser *denoiser, const icma_ops *ops, const float *noise, const float *a, float *z, icma_error *error);

/* --- training --------------------------------------------------------------------------------------------------- */

typedef struct icma_denoiser_options {
    size_t hidden, embedding, steps; /* of sampling */
    size_t epochs, batch;
    double learning_rate;
} icma_denoiser_options;

/* A training that can stop and go on: everything lies in it, so that its state can be saved between epochs. */
typedef struct icma_denoising icma_denoising;
/* z: count x latent (spread per dimension and centre are taken from it), a: count x coordinates; both are copied. */
icma_status icma_denoising_create(const icma_ops *ops, const float *z, const float *a, size_t count, size_t latent, size_t coordinates, icma_denoiser_options options, icma_rng *rng, icma_denoising **out, icma_error *error);
void icma_denoising_free(icma_denoising *training); /* NULL is fine */
/* One pass over the latents; *loss is the mean squared error of the noise. Random numbers come from `rng` alone. */
icma_status icma_denoising_epoch(icma_denoising *training, size_t epoch, icma_rng *rng, double *loss, icma_error *error);
/* What the next epochs depend on, beside `rng`: parameters and both moments, `count` numbers. */
size_t icma_denoising_state_size(const icma_denoising *training);
icma_status icma_denoising_get(icma_denoising *training, float *state, icma_error *error);
icma_status icma_denoising_set(icma_denoising *training, const float *state, icma_error *error);
/* What was learned. *out is owned by the caller. */
icma_status icma_denoising_finish(icma_denoising *training, icma_denoiser *out, icma_error *error);

#endif
