/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The generator of one signature group as the archive holds it: how each tensor is treated, the standardisation, the trunk, and the shape
 * of the head (spec 4.3). The head itself, the basis rows, lies in its own sections (head.h).
 *
 *   a = M c / rms             condition coordinates (a task's vector c; a learned condition is its coordinates)
 *   q = trunk([z; a])         K coefficients: h1 = softsign([z; a] V1 + b1), h2 = softsign(h1 V2 + b2), q = h2 V3 + [z; a] S + b3
 *   x = s_t * (q + correction) H_t      per tensor t, from the rows of its role only
 *
 * or, with a convolutional decoder,
 *
 *   y = decoder([z; a])                 all modelled tensors end to end
 *   x = r_t y_t                         r_t the tensor's rms (icma_generator_rms)
 *
 * What a checkpoint is predicted from, q or the decoder's input, is its *code*.
 */
#ifndef ICMA_GENERATOR_H
#define ICMA_GENERATOR_H

#include "adapter.h"
#include "bytes.h"
#include "conv_decoder.h"
#include "denoiser.h"
#include "ops.h"

enum {
    ICMA_MAX_COMPONENTS = 4096,      /* rows a role */
    ICMA_MAX_LATENT = 1024,
    ICMA_MAX_HIDDEN = 1024,
    ICMA_MAX_CONDITION = 1 << 20,    /* numbers in a condition vector */
    ICMA_MAX_COORDINATES = 1024,     /* numbers the trunk sees of it */
};

typedef enum icma_generator_kind {
    ICMA_GENERATOR_NONE = 0,  /* no basis: modelled tensors come from residuals alone */
    ICMA_GENERATOR_BASIS = 1,
    ICMA_GENERATOR_CONV = 2,  /* a convolutional decoder (spec 4.15) */
} icma_generator_kind;

/* What a latent is drawn from where none is stored. */
typedef enum icma_prior {
    ICMA_PRIOR_NORMAL = 0,    /* N(0, I), whatever the condition: the CVAE's */
    ICMA_PRIOR_DIFFUSION = 1, /* a denoiser given the condition (spec 4.16); the decoder does not see the condition */
} icma_prior;

/* How a tensor of the signature is kept. The first three are the roles whose basis models it. */
typedef enum icma_treatment {
    ICMA_TREAT_A = ICMA_ROLE_A,
    ICMA_TREAT_B = ICMA_ROLE_B,
    ICMA_TREAT_OTHER = ICMA_ROLE_OTHER,
    ICMA_TREAT_VERBATIM = 3,
} icma_treatment;

/* Weights of the trunk, in the order in which they are stored. rows x columns, row-major. */
typedef enum icma_trunk_part {
    ICMA_TRUNK_V1, /* inputs x hidden, inputs = latent + coordinates */
    ICMA_TRUNK_B1, /* 1 x hidden */
    ICMA_TRUNK_V2, /* hidden x hidden */
    ICMA_TRUNK_B2,
    ICMA_TRUNK_V3, /* hidden x K */
    ICMA_TRUNK_S,  /* inputs x K */
    ICMA_TRUNK_B3, /* 1 x K */
    ICMA_TRUNK_PARTS
} icma_trunk_part;

typedef struct icma_generator {
    icma_generator_kind kind;
    size_t tensor_count;
    uint8_t *treatment; /* icma_treatment, one a tensor in data order */
    float *scale;       /* s_t: rms, one a tensor; 0 for verbatim ones */
    size_t components[ICMA_ROLE_COUNT]; /* rows a role; coefficients lie role after role */
    size_t total;                       /* K: their sum */
    size_t latent, coordinates, hidden;
    size_t condition_size; /* numbers in a given condition vector; 0: all conditions are learned */
    size_t given_coordinates; /* the first of them come from M; the others are 0 for a given condition */
    float *projection;     /* M with 1/rms inside: given_coordinates x condition_size */
    float *trunk[ICMA_TRUNK_PARTS];
    float *latent_step;     /* z = integer * latent_step, one a dimension */
    float *correction_step; /* one a coefficient */
    float *head_step;       /* one a row: weight of the row = head_step * integer */
    /* ICMA_GENERATOR_CONV; components, total and hidden are 0 */
    icma_prior prior;
    icma_conv_decoder conv;  /* owned */
    icma_denoiser denoiser;  /* with ICMA_PRIOR_DIFFUSION; owned */
    /* How icma_generator_write stores the decoder; not in the payload as such */
    icma_conv_coding coding;
    double coding_noise;
} icma_generator;

/* Rows and columns of a trunk part. */
void icma_trunk_shape(const icma_generator *generator, icma_trunk_part part, size_t *rows, size_t *columns);
/* First coefficient of a role. */
size_t icma_generator_first(const icma_generator *generator, size_t role);
size_t icma_generator_trunk_parameters(const icma_generator *generator);
/* Weights of a convolutional decoder and its denoiser. */
size_t icma_generator_network_parameters(const icma_generator *generator);
bool icma_generator_is_modelled(const icma_generator *generator, size_t tensor);
/* "none", "basis", "conv" or "diffusion". */
const char *icma_generator_name(const icma_generator *generator);
/* Whether it predicts a spread for every weight, by which residuals are coded: a decoder of two outputs (spec 4.11). */
bool icma_generator_has_classes(const icma_generator *generator);
/* Whether it predicts anything: kinds but ICMA_GENERATOR_NONE. */
bool icma_generator_predicts(const icma_generator *generator);
/* Numbers in a code: K, or inputs of the decoder; 0 without a generator. */
size_t icma_generator_code_size(const icma_generator *generator);
/* r_t = s_t * (64 / sqrt(count)), each operation rounded once (spec 4.15). */
float icma_generator_rms(float scale, uint64_t count);
/* Elements of all modelled tensors. */
uint64_t icma_generator_modelled_weights(const icma_generator *generator, const icma_safetensors *signature);

/* Allocates the arrays (zeroed) for the sizes already set in `generator`; treatment, scale, projection and head steps are kept
 * if they are there, because they are known before the other sizes. On failure everything is freed. */
icma_status icma_generator_allocate(icma_generator *generator, icma_error *error);
void icma_generator_free(icma_generator *generator); /* leaves it zeroed */

/* The payload of a GENERATOR section. Writing rounds numbers in place to how they are stored, so that writer and reader hold the same. */
icma_status icma_generator_write(icma_generator *generator, icma_buffer *out, icma_error *error);
/* Checks everything: sizes, limits, finite and normal-or-zero numbers, a treatment that the dtype allows. */
icma_status icma_generator_read(const void *data, size_t size, const icma_safetensors *signature, icma_generator *out, icma_error *error);

/* --- exact evaluation (spec 4.5) ------------------------------------------------------------------------------- */

/* The trunk on a device, ready to evaluate. */
typedef struct icma_trunk icma_trunk;
icma_status icma_trunk_upload(const icma_generator *generator, const icma_ops *ops, icma_trunk **out, icma_error *error);
void icma_trunk_free(icma_trunk *trunk); /* NULL is fine */
/* q[K] for latents z[latent] and condition coordinates a[coordinates]. ICMA_E_CORRUPT if a coefficient is not finite. */
icma_status icma_trunk_evaluate(icma_trunk *trunk, const float *z, const float *a, float *q, icma_error *error);
/* a[coordinates] of a condition: a given one (condition_size numbers) through M; a learned one has `coordinates` numbers, copied. */
void icma_generator_coordinates(const icma_generator *generator, const float *condition, bool learned, float *a);

#endif
