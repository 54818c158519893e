/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The conditional VAE of codec/cvae.h once more, in double and plain loops, as an oracle: the loss, and its
 * gradient by the chain rule.
 *
 * It differs in one thing: what the encoder sees (`inputs` numbers) and what the trunk predicts (`targets`
 * numbers) may have different lengths, so that it can also stand for a model whose last layer gives all L
 * weights.
 */
#ifndef ICMA_TESTS_MODEL_H
#define ICMA_TESTS_MODEL_H

#include "cvae.h"

typedef struct model {
    size_t inputs, targets, latent, coordinates, hidden, encoder_hidden, tasks;
    double *parameter[ICMA_PARAMETERS], *gradient[ICMA_PARAMETERS]; /* owned */
} model;

typedef struct model_batch {
    size_t count;
    const double *p, *u;  /* count x targets, count x inputs */
    const double *weight; /* targets */
    const uint32_t *task; /* count */
    const double *noise;  /* count x latent */
    double kl_weight;
} model_batch;

/* Sizes are set by the caller; makes zeroed parameters and gradients. */
void model_allocate(model *m);
void model_free(model *m);
void model_shape(const model *m, int which, size_t *rows, size_t *columns);
size_t model_cells(const model *m, int which);

/* Returns reconstruction + kl_weight * KL, batch means; the parts where wanted. `q` (count x targets) may be
 * NULL. */
double model_loss(const model *m, const model_batch *b, double *reconstruction, double *kl, double *q);
/* Sets the gradients of model_loss; returns it. */
double model_backward(model *m, const model_batch *b);

/* The same model and batch as an icma_cvae on some op table (inputs = targets). The batch's elements start at
 * 3 and name their rows in reverse, so that an index forgotten somewhere shows. */
typedef struct twin {
    const icma_ops *ops;
    icma_cvae *cvae;
    icma_tensor *p, *u, *weight, *rows, *tasks, *noise;
    icma_cvae_batch batch;
} twin;

void twin_make(twin *t, const icma_ops *ops, const model *m, const model_batch *b);
void twin_free(twin *t);
void twin_set(twin *t, const model *m);                        /* the model's parameters, rounded to float */
double twin_loss(twin *t, double *reconstruction, double *kl); /* runs forward */
/* After twin_loss: runs backward, and copies all gradients to `gradient` (as model.gradient). */
void twin_backward(twin *t, double *const *gradient);
void twin_output(twin *t, double *q); /* after twin_loss: count x targets */

/* `count` random normals that floats hold exactly, times `scale`; the caller frees. */
double *model_normals(uint64_t *random, size_t count, double scale);

#endif
