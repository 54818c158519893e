/* SPDX-License-Identifier: Apache-2.0 */
#include "model.h"

#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void model_shape(const model *m, int which, size_t *rows, size_t *columns) {
    const size_t in = m->inputs + m->coordinates, latent_in = m->latent + m->coordinates;
    const size_t shapes[ICMA_PARAMETERS][2] = {
        [ICMA_P_E1] = {in, m->encoder_hidden},
        [ICMA_P_e1] = {1, m->encoder_hidden},
        [ICMA_P_E2] = {m->encoder_hidden, m->encoder_hidden},
        [ICMA_P_e2] = {1, m->encoder_hidden},
        [ICMA_P_EM] = {m->encoder_hidden, m->latent},
        [ICMA_P_em] = {1, m->latent},
        [ICMA_P_EV] = {m->encoder_hidden, m->latent},
        [ICMA_P_ev] = {1, m->latent},
        [ICMA_P_V1] = {latent_in, m->hidden},
        [ICMA_P_b1] = {1, m->hidden},
        [ICMA_P_V2] = {m->hidden, m->hidden},
        [ICMA_P_b2] = {1, m->hidden},
        [ICMA_P_V3] = {m->hidden, m->targets},
        [ICMA_P_S] = {latent_in, m->targets},
        [ICMA_P_b3] = {1, m->targets},
        [ICMA_P_CONDITIONS] = {m->tasks, m->coordinates},
    };
    *rows = shapes[which][0];
    *columns = shapes[which][1];
}

size_t model_cells(const model *m, int which) {
    size_t rows, columns;
    model_shape(m, which, &rows, &columns);
    return rows * columns;
}

static double *make(size_t count) {
    double *values = calloc(count + 1, sizeof *values);
    assert_non_null(values);
    return values;
}

void model_allocate(model *m) {
    for (int p = 0; p < ICMA_PARAMETERS; p++) {
        m->parameter[p] = make(model_cells(m, p));
        m->gradient[p] = make(model_cells(m, p));
    }
}

void model_free(model *m) {
    for (int p = 0; p < ICMA_PARAMETERS; p++) {
        free(m->parameter[p]);
        free(m->gradient[p]);
    }
    memset(m, 0, sizeof *m);
}

/* What one checkpoint's pass leaves behind. `in` is [u; a], `latent_in` [z; a]. */
typedef struct pass {
    double *in, *g1_pre, *g1, *g2_pre, *g2, *mu, *logvar, *latent_in, *h1_pre, *h1, *h2_pre, *h2, *q;
} pass;

static pass make_pass(const model *m) {
    size_t in = m->inputs + m->coordinates, latent_in = m->latent + m->coordinates, e = m->encoder_hidden,
           h = m->hidden;
    return (pass){make(in),        make(e), make(e), make(e), make(e), make(m->latent), make(m->latent),
                  make(latent_in), make(h), make(h), make(h), make(h), make(m->targets)};
}

static void free_pass(pass *s) {
    double *all[] = {s->in,        s->g1_pre, s->g1, s->g2_pre, s->g2, s->mu, s->logvar,
                     s->latent_in, s->h1_pre, s->h1, s->h2_pre, s->h2, s->q};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* y += x W (bias < 0), or y = x W + b */
static void dense(const model *m, const double *x, int weight, int bias, double *y) {
    size_t rows, columns;
    model_shape(m, weight, &rows, &columns);
    for (size_t j = 0; j < columns; j++) {
        double sum = bias < 0 ? y[j] : m->parameter[bias][j];
        for (size_t i = 0; i < rows; i++)
            sum += x[i] * m->parameter[weight][i * columns + j];
        y[j] = sum;
    }
}

static void softsign(const double *x, size_t count, double *y) {
    for (size_t i = 0; i < count; i++)
        y[i] = x[i] / (1 + fabs(x[i]));
}

static void forward(const model *m, const model_batch *b, size_t i, pass *s) {
    const double *a = m->parameter[ICMA_P_CONDITIONS] + b->task[i] * m->coordinates;
    memcpy(s->in, b->u + i * m->inputs, m->inputs * sizeof(double));
    memcpy(s->in + m->inputs, a, m->coordinates * sizeof(double));
    dense(m, s->in, ICMA_P_E1, ICMA_P_e1, s->g1_pre);
    softsign(s->g1_pre, m->encoder_hidden, s->g1);
    dense(m, s->g1, ICMA_P_E2, ICMA_P_e2, s->g2_pre);
    softsign(s->g2_pre, m->encoder_hidden, s->g2);
    dense(m, s->g2, ICMA_P_EM, ICMA_P_em, s->mu);
    dense(m, s->g2, ICMA_P_EV, ICMA_P_ev, s->logvar);
    for (size_t j = 0; j < m->latent; j++)
        s->latent_in[j] = s->mu[j] + exp(s->logvar[j] / 2) * b->noise[i * m->latent + j];
    memcpy(s->latent_in + m->latent, a, m->coordinates * sizeof(double));
    dense(m, s->latent_in, ICMA_P_V1, ICMA_P_b1, s->h1_pre);
    softsign(s->h1_pre, m->hidden, s->h1);
    dense(m, s->h1, ICMA_P_V2, ICMA_P_b2, s->h2_pre);
    softsign(s->h2_pre, m->hidden, s->h2);
    dense(m, s->h2, ICMA_P_V3, ICMA_P_b3, s->q);
    dense(m, s->latent_in, ICMA_P_S, -1, s->q);
}

static void add_losses(const model *m, const model_batch *b, size_t i, const pass *s, double *reconstruction,
                       double *kl) {
    for (size_t j = 0; j < m->targets; j++) {
        double d = b->p[i * m->targets + j] - s->q[j];
        *reconstruction += b->weight[j] * d * d / (double)b->count;
    }
    for (size_t j = 0; j < m->latent; j++)
        *kl += (exp(s->logvar[j]) + s->mu[j] * s->mu[j] - 1 - s->logvar[j]) / 2 / (double)b->count;
}

double model_loss(const model *m, const model_batch *b, double *reconstruction, double *kl, double *q) {
    double parts[2] = {0, 0};
    pass s = make_pass(m);
    for (size_t i = 0; i < b->count; i++) {
        forward(m, b, i, &s);
        add_losses(m, b, i, &s, &parts[0], &parts[1]);
        if (q)
            memcpy(q + i * m->targets, s.q, m->targets * sizeof(double));
    }
    free_pass(&s);
    if (reconstruction)
        *reconstruction = parts[0];
    if (kl)
        *kl = parts[1];
    return parts[0] + b->kl_weight * parts[1];
}

/* Adds the gradients of W and b, and W dy to dx. */
static void dense_backward(model *m, const double *x, int weight, int bias, const double *dy, double *dx) {
    size_t rows, columns;
    model_shape(m, weight, &rows, &columns);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++) {
            m->gradient[weight][i * columns + j] += x[i] * dy[j];
            dx[i] += m->parameter[weight][i * columns + j] * dy[j];
        }
    for (size_t j = 0; bias >= 0 && j < columns; j++)
        m->gradient[bias][j] += dy[j];
}

static void softsign_backward(const double *x, size_t count, double *d) {
    for (size_t i = 0; i < count; i++)
        d[i] /= (1 + fabs(x[i])) * (1 + fabs(x[i]));
}

static void backward(model *m, const model_batch *b, size_t i, const pass *s) {
    size_t d = m->latent;
    pass g = make_pass(m); /* gradients of what is in s, as far as they are needed */
    for (size_t j = 0; j < m->targets; j++)
        g.q[j] = 2 * b->weight[j] * (s->q[j] - b->p[i * m->targets + j]) / (double)b->count;
    dense_backward(m, s->latent_in, ICMA_P_S, -1, g.q, g.latent_in);
    dense_backward(m, s->h2, ICMA_P_V3, ICMA_P_b3, g.q, g.h2);
    softsign_backward(s->h2_pre, m->hidden, g.h2);
    dense_backward(m, s->h1, ICMA_P_V2, ICMA_P_b2, g.h2, g.h1);
    softsign_backward(s->h1_pre, m->hidden, g.h1);
    dense_backward(m, s->latent_in, ICMA_P_V1, ICMA_P_b1, g.h1, g.latent_in);
    double share = b->kl_weight / (double)b->count;
    for (size_t j = 0; j < d; j++) {
        g.mu[j] = g.latent_in[j] + share * s->mu[j];
        g.logvar[j] = g.latent_in[j] * b->noise[i * d + j] * exp(s->logvar[j] / 2) / 2 +
                      share * (exp(s->logvar[j]) - 1) / 2;
    }
    dense_backward(m, s->g2, ICMA_P_EM, ICMA_P_em, g.mu, g.g2);
    dense_backward(m, s->g2, ICMA_P_EV, ICMA_P_ev, g.logvar, g.g2);
    softsign_backward(s->g2_pre, m->encoder_hidden, g.g2);
    dense_backward(m, s->g1, ICMA_P_E2, ICMA_P_e2, g.g2, g.g1);
    softsign_backward(s->g1_pre, m->encoder_hidden, g.g1);
    dense_backward(m, s->in, ICMA_P_E1, ICMA_P_e1, g.g1, g.in);
    for (size_t j = 0; j < m->coordinates; j++)
        m->gradient[ICMA_P_CONDITIONS][b->task[i] * m->coordinates + j] +=
            g.latent_in[d + j] + g.in[m->inputs + j];
    free_pass(&g);
}

double model_backward(model *m, const model_batch *b) {
    double parts[2] = {0, 0};
    pass s = make_pass(m);
    for (int p = 0; p < ICMA_PARAMETERS; p++)
        memset(m->gradient[p], 0, model_cells(m, p) * sizeof(double));
    for (size_t i = 0; i < b->count; i++) {
        forward(m, b, i, &s);
        add_losses(m, b, i, &s, &parts[0], &parts[1]);
        backward(m, b, i, &s);
    }
    free_pass(&s);
    return parts[0] + b->kl_weight * parts[1];
}

/* --- the twin ------------------------------------------------------------------------------------------ */

double *model_normals(uint64_t *random, size_t count, double scale) {
    double *values = make(count);
    for (size_t i = 0; i < count; i++)
        values[i] = (float)(scale * support_normal(random));
    return values;
}

static icma_tensor *put(const icma_ops *ops, const double *values, size_t count) {
    icma_tensor *tensor;
    icma_error error = {0};
    float *rounded = malloc((count + 1) * sizeof *rounded);
    assert_non_null(rounded);
    for (size_t i = 0; i < count; i++)
        rounded[i] = (float)values[i];
    assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_F32, count + 1, &tensor, &error), ICMA_OK);
    assert_int_equal(ops->upload(ops->device, tensor, 0, rounded, count, &error), ICMA_OK);
    free(rounded);
    return tensor;
}

static icma_tensor *put_indices(const icma_ops *ops, const uint32_t *values, size_t count) {
    icma_tensor *tensor;
    icma_error error = {0};
    assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_U32, count, &tensor, &error), ICMA_OK);
    assert_int_equal(ops->upload(ops->device, tensor, 0, values, count, &error), ICMA_OK);
    return tensor;
}

static void get(const icma_ops *ops, icma_matrix from, double *to) {
    size_t count = from.rows * from.columns;
    float *values = malloc((count + 1) * sizeof *values);
    icma_error error = {0};
    assert_non_null(values);
    assert_int_equal(ops->download(ops->device, from.tensor, 0, values, count, &error), ICMA_OK);
    for (size_t i = 0; i < count; i++)
        to[i] = values[i];
    free(values);
}

/* Rows in reverse. */
static icma_tensor *put_reversed(const icma_ops *ops, const double *values, size_t rows, size_t columns) {
    double *reversed = make(rows * columns);
    for (size_t i = 0; i < rows; i++)
        memcpy(reversed + (rows - 1 - i) * columns, values + i * columns, columns * sizeof *reversed);
    icma_tensor *tensor = put(ops, reversed, rows * columns);
    free(reversed);
    return tensor;
}

enum { TWIN_FIRST = 3 };

void twin_make(twin *t, const icma_ops *ops, const model *m, const model_batch *b) {
    icma_cvae_shape shape = {m->targets,        m->latent, m->coordinates, m->hidden,
                             m->encoder_hidden, m->tasks,  b->count + 2};
    icma_rng rng = icma_rng_seed(1);
    icma_error error = {0};
    size_t n = b->count, total = n + TWIN_FIRST;
    uint32_t *rows = calloc(total, sizeof *rows), *tasks = calloc(total, sizeof *tasks);
    assert_true(rows && tasks && m->inputs == m->targets);
    for (size_t i = 0; i < n; i++) {
        rows[TWIN_FIRST + i] = (uint32_t)(n - 1 - i);
        tasks[TWIN_FIRST + i] = b->task[i];
    }
    *t = (twin){.ops = ops};
    assert_int_equal(icma_cvae_create(ops, shape, &rng, &t->cvae, &error), ICMA_OK);
    t->p = put_reversed(ops, b->p, n, m->targets);
    t->u = put_reversed(ops, b->u, n, m->inputs);
    t->weight = put(ops, b->weight, m->targets);
    t->noise = put(ops, b->noise, n * m->latent);
    t->rows = put_indices(ops, rows, total);
    t->tasks = put_indices(ops, tasks, total);
    t->batch = (icma_cvae_batch){
        .p = icma_matrix_of(t->p, n, m->targets),
        .u = icma_matrix_of(t->u, n, m->inputs),
        .weight = icma_matrix_of(t->weight, 1, m->targets),
        .rows = t->rows,
        .tasks = t->tasks,
        .first = TWIN_FIRST,
        .count = n,
        .noise = icma_matrix_of(t->noise, n, m->latent),
        .kl_weight = (float)b->kl_weight,
    };
    free(rows);
    free(tasks);
    twin_set(t, m);
}

void twin_free(twin *t) {
    icma_tensor *all[] = {t->p, t->u, t->weight, t->rows, t->tasks, t->noise};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        t->ops->release(t->ops->device, all[i]);
    icma_cvae_free(t->cvae);
}

void twin_set(twin *t, const model *m) {
    for (int p = 0; p < ICMA_PARAMETERS; p++) {
        size_t count = model_cells(m, p);
        float *values = malloc((count + 1) * sizeof *values);
        icma_error error = {0};
        assert_non_null(values);
        for (size_t i = 0; i < count; i++)
            values[i] = (float)m->parameter[p][i];
        assert_int_equal(icma_cvae_set(t->cvae, p, values, &error), ICMA_OK);
        free(values);
    }
}

double twin_loss(twin *t, double *reconstruction, double *kl) {
    icma_error error = {0};
    double parts[2];
    icma_cvae_forward(t->cvae, &t->batch);
    assert_int_equal(icma_cvae_loss(t->cvae, &t->batch, &parts[0], &parts[1], &error), ICMA_OK);
    if (reconstruction)
        *reconstruction = parts[0];
    if (kl)
        *kl = parts[1];
    return parts[0] + (double)t->batch.kl_weight * parts[1];
}

void twin_backward(twin *t, double *const *gradient) {
    icma_cvae_backward(t->cvae, &t->batch);
    for (int p = 0; p < ICMA_PARAMETERS; p++)
        get(t->ops, icma_cvae_gradient(t->cvae, p), gradient[p]);
}

void twin_output(twin *t, double *q) {
    get(t->ops, icma_cvae_output(t->cvae, t->batch.count), q);
}
