/* SPDX-License-Identifier: Apache-2.0 */
#include "cvae.h"

#include "memory.h"

#include <math.h>
#include <string.h>

/* Activations and their gradients, batch x columns each. `in` is [u; a], `latent_in` [z; a]; *_pre are before softsign. */
typedef enum slot {
    SLOT_IN, SLOT_G1_PRE, SLOT_G1, SLOT_G2_PRE, SLOT_G2, SLOT_MU, SLOT_LOGVAR,
    SLOT_LATENT_IN, SLOT_H1_PRE, SLOT_H1, SLOT_H2_PRE, SLOT_H2, SLOT_Q, SLOT_P,
    SLOT_D_Q, SLOT_D_HIDDEN, SLOT_D_LATENT_IN, SLOT_D_MU, SLOT_D_LOGVAR, SLOT_D_ENCODER, SLOT_D_IN,
    SLOT_ROW_LOSS, SLOT_KL,
    SLOTS
} slot;

struct icma_cvae {
    const icma_ops *ops;
    icma_cvae_shape shape;
    icma_tensor *parameter[ICMA_PARAMETERS], *gradient[ICMA_PARAMETERS], *moment1[ICMA_PARAMETERS], *moment2[ICMA_PARAMETERS];
    icma_tensor *slots[SLOTS];
};

void icma_cvae_parameter_shape(const icma_cvae_shape *s, icma_parameter which, size_t *rows, size_t *columns) {
    const size_t in = s->targets + s->coordinates, latent_in = s->latent + s->coordinates;
    const size_t shapes[ICMA_PARAMETERS][2] = {
        {in, s->encoder_hidden}, {1, s->encoder_hidden}, {s->encoder_hidden, s->encoder_hidden}, {1, s->encoder_hidden},
        {s->encoder_hidden, s->latent}, {1, s->latent}, {s->encoder_hidden, s->latent}, {1, s->latent},
        {latent_in, s->hidden}, {1, s->hidden}, {s->hidden, s->hidden}, {1, s->hidden},
        {s->hidden, s->targets}, {latent_in, s->targets}, {1, s->targets},
        {s->tasks, s->coordinates},
    };
    *rows = shapes[which][0];
    *columns = shapes[which][1];
}

static size_t slot_columns(const icma_cvae_shape *s, int which) {
    const size_t columns[SLOTS] = {
        [SLOT_IN] = s->targets + s->coordinates,
        [SLOT_G1_PRE] = s->encoder_hidden,
        [SLOT_G1] = s->encoder_hidden,
        [SLOT_G2_PRE] = s->encoder_hidden,
        [SLOT_G2] = s->encoder_hidden,
        [SLOT_MU] = s->latent,
        [SLOT_LOGVAR] = s->latent,
        [SLOT_LATENT_IN] = s->latent + s->coordinates,
        [SLOT_H1_PRE] = s->hidden,
        [SLOT_H1] = s->hidden,
        [SLOT_H2_PRE] = s->hidden,
        [SLOT_H2] = s->hidden,
        [SLOT_Q] = s->targets,
        [SLOT_P] = s->targets,
        [SLOT_D_Q] = s->targets,
        [SLOT_D_HIDDEN] = s->hidden,
        [SLOT_D_LATENT_IN] = s->latent + s->coordinates,
        [SLOT_D_MU] = s->latent,
        [SLOT_D_LOGVAR] = s->latent,
        [SLOT_D_ENCODER] = s->encoder_hidden,
        [SLOT_D_IN] = s->targets + s->coordinates,
        [SLOT_ROW_LOSS] = 1,
        [SLOT_KL] = s->latent,
    };
    return columns[which];
}

static icma_matrix view(icma_cvae *c, int which, size_t rows) {
    return icma_matrix_of(c->slots[which], rows, slot_columns(&c->shape, which));
}

icma_matrix icma_cvae_parameter(icma_cvae *c, icma_parameter which) {
    size_t rows, columns;
    icma_cvae_parameter_shape(&c->shape, which, &rows, &columns);
    return icma_matrix_of(c->parameter[which], rows, columns);
}

icma_matrix icma_cvae_gradient(icma_cvae *c, icma_parameter which) {
    icma_matrix m = icma_cvae_parameter(c, which);
    m.tensor = c->gradient[which];
    return m;
}

icma_matrix icma_cvae_mu(icma_cvae *c, size_t count) {
    return view(c, SLOT_MU, count);
}

icma_matrix icma_cvae_logvar(icma_cvae *c, size_t count) {
    return view(c, SLOT_LOGVAR, count);
}

icma_matrix icma_cvae_output(icma_cvae *c, size_t count) {
    return view(c, SLOT_Q, count);
}

icma_status icma_cvae_set(icma_cvae *c, icma_parameter which, const float *values, icma_error *error) {
    icma_matrix m = icma_cvae_parameter(c, which);
    return c->ops->upload(c->ops->device, m.tensor, 0, values, m.rows * m.columns, error);
}

icma_status icma_cvae_get(icma_cvae *c, icma_parameter which, float *values, icma_error *error) {
    icma_matrix m = icma_cvae_parameter(c, which);
    return c->ops->download(c->ops->device, m.tensor, 0, values, m.rows * m.columns, error);
}

/* --- creation ---------------------------------------------------------------------------------------------------- */

static icma_status make(icma_cvae *c, icma_tensor **out, size_t count, icma_error *error) {
    return c->ops->alloc(c->ops->device, ICMA_ELEMENT_F32, count ? count : 1, out, error);
}

static icma_status initialise(icma_cvae *c, icma_parameter which, icma_rng *rng, icma_error *error) {
    icma_matrix m = icma_cvae_parameter(c, which);
    if (m.rows <= 1 || m.columns == 0 || which == ICMA_P_CONDITIONS)
        return ICMA_OK; /* biases, and tables that the caller sets, start at zero */
    float *values = icma_alloc_array(m.rows * m.columns, sizeof *values);
    if (!values)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the network");
    double bound = sqrt(6.0 / (double)(m.rows + m.columns));
    if (which == ICMA_P_EV || which == ICMA_P_V3)
        bound /= 100;
    for (size_t i = 0; i < m.rows * m.columns; i++)
        values[i] = (float)(bound * ((double)(icma_rng_next(rng) >> 11) * 0x1p-52 - 1));
    icma_status status = icma_cvae_set(c, which, values, error);
    icma_free(values);
    return status;
}

icma_status icma_cvae_create(const icma_ops *ops, icma_cvae_shape shape, icma_rng *rng, icma_cvae **out, icma_error *error) {
    *out = NULL;
    icma_cvae *c = icma_alloc_zeroed(1, sizeof *c);
    if (!c)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the network");
    c->ops = ops;
    c->shape = shape;
    icma_status status = ICMA_OK;
    for (int p = 0; !status && p < ICMA_PARAMETERS; p++) {
        size_t rows, columns;
        icma_cvae_parameter_shape(&shape, p, &rows, &columns);
        icma_tensor **all[4] = {&c->parameter[p], &c->gradient[p], &c->moment1[p], &c->moment2[p]};
        for (int i = 0; !status && i < 4; i++)
            status = make(c, all[i], rows * columns, error);
        if (!status)
            status = initialise(c, p, rng, error);
    }
    for (int s = 0; !status && s < SLOTS; s++)
        status = make(c, &c->slots[s], shape.batch * slot_columns(&shape, s), error);
    if (status)
        icma_cvae_free(c);
    else
        *out = c;
    return status;
}

void icma_cvae_free(icma_cvae *c) {
    if (!c)
        return;
    for (int p = 0; p < ICMA_PARAMETERS; p++) {
        icma_tensor *all[4] = {c->parameter[p], c->gradient[p], c->moment1[p], c->moment2[p]};
        for (int i = 0; i < 4; i++)
            c->ops->release(c->ops->device, all[i]);
    }
    for (int s = 0; s < SLOTS; s++)
        c->ops->release(c->ops->device, c->slots[s]);
    icma_free(c);
}

/* --- forward ----------------------------------------------------------------------------------------------------- */

/* y = x W + b */
static void dense(icma_cvae *c, icma_matrix x, icma_parameter w, icma_parameter b, icma_matrix y) {
    c->ops->gemm(c->ops->device, 1, x, false, icma_cvae_parameter(c, w), false, 0, y);
    c->ops->add_row(c->ops->device, icma_cvae_parameter(c, b), y);
}

static void encode(icma_cvae *c, const icma_cvae_batch *b) {
    const icma_ops *ops = c->ops;
    size_t n = b->count;
    icma_matrix in = view(c, SLOT_IN, n);
    ops->gather_rows(ops->device, b->u, b->rows, b->first, icma_matrix_block(in, 0, 0, n, c->shape.targets));
    ops->gather_rows(ops->device, icma_cvae_parameter(c, ICMA_P_CONDITIONS), b->tasks, b->first,
                     icma_matrix_block(in, 0, c->shape.targets, n, c->shape.coordinates));
    dense(c, in, ICMA_P_E1, ICMA_P_e1, view(c, SLOT_G1_PRE, n));
    ops->softsign(ops->device, view(c, SLOT_G1_PRE, n), view(c, SLOT_G1, n));
    dense(c, view(c, SLOT_G1, n), ICMA_P_E2, ICMA_P_e2, view(c, SLOT_G2_PRE, n));
    ops->softsign(ops->device, view(c, SLOT_G2_PRE, n), view(c, SLOT_G2, n));
    dense(c, view(c, SLOT_G2, n), ICMA_P_EM, ICMA_P_em, view(c, SLOT_MU, n));
    dense(c, view(c, SLOT_G2, n), ICMA_P_EV, ICMA_P_ev, view(c, SLOT_LOGVAR, n));
}

static void decode(icma_cvae *c, const icma_cvae_batch *b) {
    const icma_ops *ops = c->ops;
    size_t n = b->count, d = c->shape.latent;
    icma_matrix in = view(c, SLOT_LATENT_IN, n), q = view(c, SLOT_Q, n);
    ops->reparameterise(ops->device, view(c, SLOT_MU, n), view(c, SLOT_LOGVAR, n), b->noise, icma_matrix_block(in, 0, 0, n, d));
    ops->gather_rows(ops->device, icma_cvae_parameter(c, ICMA_P_CONDITIONS), b->tasks, b->first, icma_matrix_block(in, 0, d, n, c->shape.coordinates));
    dense(c, in, ICMA_P_V1, ICMA_P_b1, view(c, SLOT_H1_PRE, n));
    ops->softsign(ops->device, view(c, SLOT_H1_PRE, n), view(c, SLOT_H1, n));
    dense(c, view(c, SLOT_H1, n), ICMA_P_V2, ICMA_P_b2, view(c, SLOT_H2_PRE, n));
    ops->softsign(ops->device, view(c, SLOT_H2_PRE, n), view(c, SLOT_H2, n));
    dense(c, view(c, SLOT_H2, n), ICMA_P_V3, ICMA_P_b3, q);
    ops->gemm(ops->device, 1, in, false, icma_cvae_parameter(c, ICMA_P_S), false, 1, q);
}

void icma_cvae_forward(icma_cvae *c, const icma_cvae_batch *b) {
    encode(c, b);
    decode(c, b);
    c->ops->gather_rows(c->ops->device, b->p, b->rows, b->first, view(c, SLOT_P, b->count));
}

static icma_status mean_of(icma_cvae *c, int which, size_t n, double *out, icma_error *error) {
    size_t count = n * slot_columns(&c->shape, which);
    float *values = icma_alloc_array(count ? count : 1, sizeof *values);
    if (!values)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the loss");
    icma_status status = c->ops->download(c->ops->device, c->slots[which], 0, values, count, error);
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += values[i];
    *out = sum / (double)n;
    icma_free(values);
    return status;
}

icma_status icma_cvae_loss(icma_cvae *c, const icma_cvae_batch *b, double *reconstruction, double *kl, icma_error *error) {
    const icma_ops *ops = c->ops;
    size_t n = b->count;
    icma_status status = ICMA_OK;
    if (reconstruction) {
        ops->squared_error(ops->device, view(c, SLOT_P, n), view(c, SLOT_Q, n), b->weight, view(c, SLOT_ROW_LOSS, n));
        status = mean_of(c, SLOT_ROW_LOSS, n, reconstruction, error);
    }
    if (!status && kl) {
        ops->kl(ops->device, view(c, SLOT_MU, n), view(c, SLOT_LOGVAR, n), view(c, SLOT_KL, n));
        status = mean_of(c, SLOT_KL, n, kl, error);
    }
    return status;
}

/* --- backward ---------------------------------------------------------------------------------------------------- */

/* Gradients of y = x W + b: of W and b from dy, and dx = (beta dx +) dy W^T where dx is wanted (dx.tensor not NULL). */
static void dense_backward(icma_cvae *c, icma_matrix x, icma_parameter w, int b, icma_matrix dy, float beta, icma_matrix dx) {
    const icma_ops *ops = c->ops;
    ops->gemm(ops->device, 1, x, true, dy, false, 0, icma_cvae_gradient(c, w));
    if (b >= 0)
        ops->sum_rows(ops->device, dy, icma_cvae_gradient(c, (icma_parameter)b));
    if (dx.tensor)
        ops->gemm(ops->device, 1, dy, false, icma_cvae_parameter(c, w), true, beta, dx);
}

static void decode_backward(icma_cvae *c, const icma_cvae_batch *b) {
    const icma_ops *ops = c->ops;
    size_t n = b->count;
    icma_matrix dq = view(c, SLOT_D_Q, n), dh = view(c, SLOT_D_HIDDEN, n), din = view(c, SLOT_D_LATENT_IN, n), in = view(c, SLOT_LATENT_IN, n);
    ops->squared_error_backward(ops->device, view(c, SLOT_P, n), view(c, SLOT_Q, n), b->weight, 1 / (float)n, dq);
    dense_backward(c, view(c, SLOT_H2, n), ICMA_P_V3, ICMA_P_b3, dq, 0, dh);
    dense_backward(c, in, ICMA_P_S, -1, dq, 0, din);
    ops->softsign_backward(ops->device, view(c, SLOT_H2_PRE, n), dh, dh);
    /* dh2 is read while dh1 is written: two buffers. H2's own slot is free by now. */
    icma_matrix dh1 = view(c, SLOT_H2, n);
    dense_backward(c, view(c, SLOT_H1, n), ICMA_P_V2, ICMA_P_b2, dh, 0, dh1);
    ops->softsign_backward(ops->device, view(c, SLOT_H1_PRE, n), dh1, dh1);
    dense_backward(c, in, ICMA_P_V1, ICMA_P_b1, dh1, 1, din);
}

static void encode_backward(icma_cvae *c, const icma_cvae_batch *b) {
    const icma_ops *ops = c->ops;
    size_t n = b->count;
    icma_matrix none = {0}, dmu = view(c, SLOT_D_MU, n), dlogvar = view(c, SLOT_D_LOGVAR, n), dg2 = view(c, SLOT_D_ENCODER, n);
    dense_backward(c, view(c, SLOT_G2, n), ICMA_P_EM, ICMA_P_em, dmu, 0, dg2);
    dense_backward(c, view(c, SLOT_G2, n), ICMA_P_EV, ICMA_P_ev, dlogvar, 1, dg2);
    ops->softsign_backward(ops->device, view(c, SLOT_G2_PRE, n), dg2, dg2);
    icma_matrix dg1 = view(c, SLOT_G2, n); /* free by now, as above */
    dense_backward(c, view(c, SLOT_G1, n), ICMA_P_E2, ICMA_P_e2, dg2, 0, dg1);
    ops->softsign_backward(ops->device, view(c, SLOT_G1_PRE, n), dg1, dg1);
    dense_backward(c, view(c, SLOT_IN, n), ICMA_P_E1, ICMA_P_e1, dg1, 0, c->shape.coordinates ? view(c, SLOT_D_IN, n) : none);
}

void icma_cvae_backward(icma_cvae *c, const icma_cvae_batch *b) {
    const icma_ops *ops = c->ops;
    size_t n = b->count, d = c->shape.latent, m = c->shape.coordinates;
    decode_backward(c, b);
    icma_matrix din = view(c, SLOT_D_LATENT_IN, n);
    ops->latent_backward(ops->device, view(c, SLOT_MU, n), view(c, SLOT_LOGVAR, n), b->noise, icma_matrix_block(din, 0, 0, n, d),
                         b->kl_weight / (float)n, view(c, SLOT_D_MU, n), view(c, SLOT_D_LOGVAR, n));
    encode_backward(c, b);
    icma_matrix table = icma_cvae_gradient(c, ICMA_P_CONDITIONS);
    ops->fill(ops->device, 0, table);
    /* The condition enters encoder and trunk. */
    icma_matrix da = icma_matrix_block(view(c, SLOT_D_IN, n), 0, c->shape.targets, n, m);
    ops->axpy(ops->device, 1, icma_matrix_block(din, 0, d, n, m), da);
    ops->scatter_rows(ops->device, da, b->tasks, b->first, table);
}

void icma_cvae_adam(icma_cvae *c, icma_adam options, icma_matrix trainable) {
    c->ops->multiply(c->ops->device, trainable, icma_cvae_gradient(c, ICMA_P_CONDITIONS));
    for (int p = 0; p < ICMA_PARAMETERS; p++) {
        icma_matrix value = icma_cvae_parameter(c, p), m1 = value, m2 = value;
        m1.tensor = c->moment1[p];
        m2.tensor = c->moment2[p];
        c->ops->adam(c->ops->device, options, icma_cvae_gradient(c, p), m1, m2, value);
    }
}
