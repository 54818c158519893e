/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Training of the denoiser. Batches (noise, times, targets) are made on the host from the one stream of random numbers, everything else is done on the device.
 */
#include "denoiser.h"

#include "memory.h"

#include <math.h>
#include <string.h>

enum { TIMES = ICMA_DENOISER_TIMES };
static const double first_beta = 1e-4, last_beta = 0.02; /* Ho et al. 2020, section 4 */
static const double spread_floor = 1e-3;                 /* of the root mean square of all spreads: a dimension below it counts as constant */
static const double least_spread = 1e-6;                 /* where nothing varies */
static const double longest_wave = 1e4;                  /* of the embedding: Vaswani et al. 2017, section 3.5 */

/*
 * Defaults, from synthetic latents: 5 conditions, 50 or 250 latents of 256 numbers, each condition spread along two directions of its own. With half the hidden numbers or updates a tenth more of the spread gets
 * lost; twice as many, a longer embedding, or more steps of sampling change little. 1024 numbers are learned with the same rate.
 */
enum { DEFAULT_HIDDEN = 256, DEFAULT_EMBEDDING = 32, DEFAULT_STEPS = 50, DEFAULT_BATCH = 64, DEFAULT_UPDATES = 8000, LEAST_EPOCHS = 20 };
static const double default_rate = 5e-3;

enum { STATE_PARAMETERS, STATE_MOMENT1, STATE_MOMENT2, STATE_GRADIENTS, STATES, SAVED_STATES = STATE_GRADIENTS };

/* What a pass leaves for the backward: sums before each softsign, what follows, the output and its target; gradients on the way down. */
enum { SLOT_W, SLOT_PRE1, SLOT_PRE2, SLOT_PRE3, SLOT_H1, SLOT_H2, SLOT_H3, SLOT_E, SLOT_TARGET, SLOT_D_E, SLOT_D_H, SLOT_D_PRE, SLOTS };

struct icma_denoising {
    const icma_ops *ops;
    icma_denoiser sizes; /* without its arrays */
    icma_denoiser_options options;
    size_t count, batch, rows;   /* latents; rows of a batch and of an epoch */
    size_t parameters;
    double signal[TIMES + 1];    /* abar_t */
    float *time;                 /* (TIMES + 1) x embedding */
    float *centre, *spread;      /* latent */
    float *x, *a;                /* count x latent, standardised; count x coordinates */
    uint32_t *order;             /* rows: which latent, this epoch */
    float *w, *target, *errors;  /* batch x inputs, batch x latent, rows */
    icma_tensor *state[STATES];  /* parameters: matrix and bias of each layer in turn */
    icma_tensor *slots[SLOTS], *weight, *error; /* 1 x latent of ones; rows x 1 */
};

/* Latents are gone through again and again until they fill a batch. */
static size_t rows_of_epoch(size_t count, size_t batch) {
    return (batch + count - 1) / count * count;
}

icma_denoiser_options icma_denoiser_defaults(size_t count) {
    size_t updates = count ? (rows_of_epoch(count, DEFAULT_BATCH) + DEFAULT_BATCH - 1) / DEFAULT_BATCH : 1, epochs = DEFAULT_UPDATES / updates;
    return (icma_denoiser_options){.hidden = DEFAULT_HIDDEN,
                                   .embedding = DEFAULT_EMBEDDING,
                                   .steps = DEFAULT_STEPS,
                                   .epochs = epochs < LEAST_EPOCHS ? LEAST_EPOCHS : epochs,
                                   .batch = DEFAULT_BATCH,
                                   .learning_rate = default_rate};
}

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for training the denoiser");
}

/* --- the schedule ------------------------------------------------------------------------------------------------ */

/* abar_t = prod over s <= t of (1 - beta_s), abar_0 = 1. */
static void make_signal(double *signal) {
    signal[0] = 1;
    for (int t = 1; t <= TIMES; t++)
        signal[t] = signal[t - 1] * (1 - (first_beta + (last_beta - first_beta) * (t - 1) / (TIMES - 1)));
}

/* Sines, then cosines, of t times geometric frequencies from 1 down to 1 / longest_wave; the odd one out is 0. */
static void embed(size_t t, size_t embedding, float *out) {
    size_t half = embedding / 2;
    memset(out, 0, embedding * sizeof *out);
    for (size_t k = 0; k < half; k++) {
        double angle = (double)t * pow(longest_wave, -(double)k / (double)half);
        out[k] = (float)sin(angle);
        out[half + k] = (float)cos(angle);
    }
}

/* Time of sampling step i; the step after the last is time 0. */
static size_t time_of(size_t i, size_t steps) {
    return TIMES * (steps - i) / steps;
}

/* --- creation ---------------------------------------------------------------------------------------------------- */

static icma_status check(size_t count, size_t latent, const icma_denoiser_options *o, icma_error *error) {
    if (count == 0 || latent == 0)
        return icma_fail(error, ICMA_E_USAGE, NULL, "no latents for a denoiser to learn");
    if (o->hidden == 0 || o->hidden > ICMA_DENOISER_MOST_HIDDEN || o->embedding > ICMA_DENOISER_MOST_EMBEDDING || o->steps == 0 || o->steps > TIMES ||
        o->epochs == 0 || o->batch == 0 || o->batch > ICMA_DENOISER_MOST_BATCH)
        return icma_fail(error, ICMA_E_USAGE, NULL, "a denoiser has 1 to %d hidden numbers, an embedding of at most %d, 1 to %d steps, some epochs, and a batch of 1 to %d",
                         ICMA_DENOISER_MOST_HIDDEN, ICMA_DENOISER_MOST_EMBEDDING, TIMES, ICMA_DENOISER_MOST_BATCH);
    return ICMA_OK;
}

/* Centre and spread of each dimension over all latents. */
static void standardise(icma_denoising *t, const float *z) {
    size_t n = t->count, d = t->sizes.latent;
    double square = 0;
    for (size_t j = 0; j < d; j++) {
        double mean = 0, variance = 0;
        for (size_t i = 0; i < n; i++)
            mean += z[i * d + j] / (double)n;
        for (size_t i = 0; i < n; i++)
            variance += (z[i * d + j] - mean) * (z[i * d + j] - mean) / (double)n;
        t->centre[j] = (float)mean;
        t->spread[j] = (float)sqrt(variance);
        square += variance / (double)d;
    }
    double least = fmax(spread_floor * sqrt(square), least_spread);
    for (size_t j = 0; j < d; j++)
        t->spread[j] = (float)fmax(t->spread[j], least);
    for (size_t i = 0; i < n * d; i++)
        t->x[i] = (z[i] - t->centre[i % d]) / t->spread[i % d];
}

static icma_status make_host(icma_denoising *t, icma_error *error) {
    size_t inputs, hidden, d = t->sizes.latent, m = t->sizes.coordinates;
    icma_denoiser_layer_shape(&t->sizes, 0, &inputs, &hidden);
    t->time = icma_alloc_zeroed((TIMES + 1) * t->sizes.embedding + 1, sizeof *t->time);
    t->centre = icma_alloc_zeroed(d, sizeof *t->centre);
    t->spread = icma_alloc_zeroed(d, sizeof *t->spread);
    t->x = icma_alloc_zeroed(t->count * d, sizeof *t->x);
    t->a = icma_alloc_zeroed(t->count * m + 1, sizeof *t->a);
    t->order = icma_alloc_zeroed(t->rows, sizeof *t->order);
    t->w = icma_alloc_zeroed(t->batch * inputs, sizeof *t->w);
    t->target = icma_alloc_zeroed(t->batch * d, sizeof *t->target);
    t->errors = icma_alloc_zeroed(t->rows, sizeof *t->errors);
    if (!t->time || !t->centre || !t->spread || !t->x || !t->a || !t->order || !t->w || !t->target || !t->errors)
        return no_memory(error);
    make_signal(t->signal);
    for (size_t time = 0; time <= TIMES; time++)
        embed(time, t->sizes.embedding, t->time + time * t->sizes.embedding);
    return ICMA_OK;
}

static size_t slot_columns(const icma_denoising *t, int which) {
    size_t inputs, hidden;
    icma_denoiser_layer_shape(&t->sizes, 0, &inputs, &hidden);
    return which == SLOT_W ? inputs : which == SLOT_E || which == SLOT_TARGET || which == SLOT_D_E ? t->sizes.latent : hidden;
}

static icma_status make_device(icma_denoising *t, icma_error *error) {
    const icma_ops *ops = t->ops;
    icma_status status = ICMA_OK;
    for (int s = 0; !status && s < STATES; s++)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, t->parameters, &t->state[s], error);
    for (int s = 0; !status && s < SLOTS; s++)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, t->batch * slot_columns(t, s), &t->slots[s], error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, t->sizes.latent, &t->weight, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, t->rows, &t->error, error);
    if (!status)
        ops->fill(ops->device, 1, icma_matrix_of(t->weight, 1, t->sizes.latent));
    return status;
}

/* The matrix or the bias of a layer, in one of the flat states. */
static icma_matrix part(const icma_denoising *t, int state, int layer, bool bias) {
    icma_matrix m = {.tensor = t->state[state]};
    for (int l = 0;; l++) {
        size_t rows, columns;
        icma_denoiser_layer_shape(&t->sizes, l, &rows, &columns);
        m.rows = bias && l == layer ? 1 : rows;
        m.columns = m.stride = columns;
        if (l == layer) {
            m.offset += bias ? rows * columns : 0;
            return m;
        }
        m.offset += (rows + 1) * columns;
    }
}

/* Glorot-uniform matrices (Glorot and Bengio 2010), the last a hundredth of that; zero biases. */
static icma_status initialise(icma_denoising *t, icma_rng *rng, icma_error *error) {
    float *values = icma_alloc_zeroed(t->parameters, sizeof *values);
    if (!values)
        return no_memory(error);
    for (int l = 0; l < ICMA_DENOISER_LAYERS; l++) {
        icma_matrix m = part(t, STATE_PARAMETERS, l, false);
        double bound = sqrt(6.0 / (double)(m.rows + m.columns)) / (l == ICMA_DENOISER_LAYERS - 1 ? 100 : 1);
        for (size_t i = 0; i < m.rows * m.columns; i++)
            values[m.offset + i] = (float)(bound * ((double)(icma_rng_next(rng) >> 11) * 0x1p-52 - 1));
    }
    icma_status status = t->ops->upload(t->ops->device, t->state[STATE_PARAMETERS], 0, values, t->parameters, error);
    icma_free(values);
    return status;
}

icma_status icma_denoising_create(const icma_ops *ops, const float *z, const float *a, size_t count, size_t latent, size_t coordinates, icma_denoiser_options options, icma_rng *rng,
                                  icma_denoising **out, icma_error *error) {
    *out = NULL;
    icma_status status = check(count, latent, &options, error);
    if (status)
        return status;
    icma_denoising *t = icma_alloc_zeroed(1, sizeof *t);
    if (!t)
        return no_memory(error);
    *t = (icma_denoising){.ops = ops, .options = options, .count = count, .batch = options.batch,
                          .sizes = {.latent = latent, .coordinates = coordinates, .embedding = options.embedding, .hidden = options.hidden, .steps = options.steps}};
    t->rows = rows_of_epoch(count, options.batch);
    icma_matrix last = part(t, STATE_PARAMETERS, ICMA_DENOISER_LAYERS - 1, true);
    t->parameters = last.offset + last.columns;
    status = make_host(t, error);
    if (!status)
        status = make_device(t, error);
    if (!status)
        status = initialise(t, rng, error);
    if (!status) {
        if (coordinates)
            memcpy(t->a, a, count * coordinates * sizeof *t->a);
        standardise(t, z);
        *out = t;
    } else
        icma_denoising_free(t);
    return status;
}

void icma_denoising_free(icma_denoising *t) {
    if (!t)
        return;
    for (int s = 0; s < STATES; s++)
        t->ops->release(t->ops->device, t->state[s]);
    for (int s = 0; s < SLOTS; s++)
        t->ops->release(t->ops->device, t->slots[s]);
    t->ops->release(t->ops->device, t->weight);
    t->ops->release(t->ops->device, t->error);
    float *arrays[] = {t->time, t->centre, t->spread, t->x, t->a, t->w, t->target, t->errors};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        icma_free(arrays[i]);
    icma_free(t->order);
    icma_free(t);
}

/* --- a step ------------------------------------------------------------------------------------------------------ */

static icma_matrix slot(const icma_denoising *t, int which, size_t rows) {
    return icma_matrix_of(t->slots[which], rows, slot_columns(t, which));
}

/* T times the cube of a uniform number, rounded up. The error of the noise at even times is that of x_0 weighted by abar / (1 - abar), which hardly looks at large times, where all begins; the error of x_0 at even
 * times hardly looks at small ones, where the latents of one condition begin to differ. This lies between. */
static size_t draw_time(icma_rng *rng) {
    double u = (double)(icma_rng_next(rng) >> 11) * 0x1p-53;
    return 1 + (size_t)(TIMES * (u * u * u));
}

/* Rows of w and of the target: x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps (Ho et al. 2020, eq. 4), and x_0. */
static icma_status prepare(icma_denoising *t, const uint32_t *order, size_t n, icma_rng *rng, icma_error *error) {
    const icma_ops *ops = t->ops;
    size_t d = t->sizes.latent, m = t->sizes.coordinates, k = t->sizes.embedding, inputs = d + m + k;
    for (size_t i = 0; i < n; i++) {
        size_t time = draw_time(rng);
        float signal = (float)sqrt(t->signal[time]), noise = (float)sqrt(1 - t->signal[time]);
        float *w = t->w + i * inputs;
        const float *x = t->x + order[i] * d;
        for (size_t j = 0; j < d; j++)
            w[j] = signal * x[j] + noise * icma_rng_normal(rng);
        memcpy(t->target + i * d, x, d * sizeof *x);
        memcpy(w + d, t->a + order[i] * m, m * sizeof *w);
        memcpy(w + d + m, t->time + time * k, k * sizeof *w);
    }
    icma_status status = ops->upload(ops->device, t->slots[SLOT_W], 0, t->w, n * inputs, error);
    return status ? status : ops->upload(ops->device, t->slots[SLOT_TARGET], 0, t->target, n * d, error);
}

/* y = x U + c */
static void dense(icma_denoising *t, int layer, icma_matrix x, icma_matrix y) {
    t->ops->gemm(t->ops->device, 1, x, false, part(t, STATE_PARAMETERS, layer, false), false, 0, y);
    t->ops->add_row(t->ops->device, part(t, STATE_PARAMETERS, layer, true), y);
}

static void forward(icma_denoising *t, size_t n) {
    const icma_ops *ops = t->ops;
    for (int l = 0; l < ICMA_DENOISER_LAYERS - 1; l++) {
        icma_matrix pre = slot(t, SLOT_PRE1 + l, n), h = slot(t, SLOT_H1 + l, n), from = slot(t, l ? SLOT_H1 + l - 1 : SLOT_W, n);
        dense(t, l, from, pre);
        ops->softsign(ops->device, pre, h);
        if (l)
            ops->axpy(ops->device, 1, from, h);
    }
    dense(t, ICMA_DENOISER_LAYERS - 1, slot(t, SLOT_H3, n), slot(t, SLOT_E, n));
}

/* Gradients of y = x U + c: of U and c from dy, and dx = (beta dx +) dy U^T where dx is wanted (dx.tensor not NULL). */
static void dense_backward(icma_denoising *t, int layer, icma_matrix x, icma_matrix dy, float beta, icma_matrix dx) {
    const icma_ops *ops = t->ops;
    ops->gemm(ops->device, 1, x, true, dy, false, 0, part(t, STATE_GRADIENTS, layer, false));
    ops->sum_rows(ops->device, dy, part(t, STATE_GRADIENTS, layer, true));
    if (dx.tensor)
        ops->gemm(ops->device, 1, dy, false, part(t, STATE_PARAMETERS, layer, false), true, beta, dx);
}

static void backward(icma_denoising *t, size_t n) {
    const icma_ops *ops = t->ops;
    icma_matrix none = {0}, de = slot(t, SLOT_D_E, n), dh = slot(t, SLOT_D_H, n), dpre = slot(t, SLOT_D_PRE, n);
    ops->squared_error_backward(ops->device, slot(t, SLOT_TARGET, n), slot(t, SLOT_E, n), icma_matrix_of(t->weight, 1, t->sizes.latent),
                                1 / (float)(n * t->sizes.latent), de);
    dense_backward(t, ICMA_DENOISER_LAYERS - 1, slot(t, SLOT_H3, n), de, 0, dh);
    for (int l = ICMA_DENOISER_LAYERS - 2; l >= 0; l--) {
        ops->softsign_backward(ops->device, slot(t, SLOT_PRE1 + l, n), dh, dpre);
        /* h_(l + 1) = h_l + softsign(...): what came to it goes on to h_l, and more is added. */
        dense_backward(t, l, slot(t, l ? SLOT_H1 + l - 1 : SLOT_W, n), dpre, 1, l ? dh : none);
    }
}

static void adam_step(icma_denoising *t, size_t step) {
    size_t steps = t->options.epochs * ((t->rows + t->batch - 1) / t->batch);
    double rate = t->options.learning_rate * 0.5 * (1 + cos(3.14159265358979323846 * (double)step / (double)steps));
    icma_adam adam = {.learning_rate = (float)rate, .beta1 = 0.9F, .beta2 = 0.999F, .epsilon = 1e-8F, .step = step + 1};
    icma_matrix all[STATES];
    for (int s = 0; s < STATES; s++)
        all[s] = icma_matrix_of(t->state[s], 1, t->parameters);
    t->ops->adam(t->ops->device, adam, all[STATE_GRADIENTS], all[STATE_MOMENT1], all[STATE_MOMENT2], all[STATE_PARAMETERS]);
}

static icma_status mean_error(icma_denoising *t, double *loss, icma_error *error) {
    icma_status status = t->ops->download(t->ops->device, t->error, 0, t->errors, t->rows, error);
    double sum = 0;
    for (size_t i = 0; i < t->rows; i++)
        sum += t->errors[i];
    *loss = sum / (double)t->rows / (double)t->sizes.latent;
    if (!status && !isfinite(*loss))
        status = icma_fail(error, ICMA_E_USAGE, NULL, "training of the denoiser ran away: its loss is not finite; use a smaller learning rate than %g", t->options.learning_rate);
    return status;
}

icma_status icma_denoising_epoch(icma_denoising *t, size_t epoch, icma_rng *rng, double *loss, icma_error *error) {
    const icma_ops *ops = t->ops;
    size_t step = epoch * ((t->rows + t->batch - 1) / t->batch);
    icma_status status = ICMA_OK;
    *loss = 0;
    for (size_t i = 0; i < t->rows; i++)
        t->order[i] = (uint32_t)(i % t->count);
    icma_rng_shuffle(rng, t->order, t->rows);
    for (size_t first = 0; !status && first < t->rows; first += t->batch, step++) {
        size_t n = t->rows - first < t->batch ? t->rows - first : t->batch;
        status = prepare(t, t->order + first, n, rng, error);
        if (status)
            break;
        forward(t, n);
        ops->squared_error(ops->device, slot(t, SLOT_TARGET, n), slot(t, SLOT_E, n), icma_matrix_of(t->weight, 1, t->sizes.latent),
                           icma_matrix_block(icma_matrix_of(t->error, t->rows, 1), first, 0, n, 1));
        backward(t, n);
        adam_step(t, step);
    }
    return status ? status : mean_error(t, loss, error);
}

/* --- its state, and what it learned ------------------------------------------------------------------------------ */

size_t icma_denoising_state_size(const icma_denoising *t) {
    return SAVED_STATES * t->parameters;
}

icma_status icma_denoising_get(icma_denoising *t, float *state, icma_error *error) {
    icma_status status = ICMA_OK;
    for (int s = 0; !status && s < SAVED_STATES; s++)
        status = t->ops->download(t->ops->device, t->state[s], 0, state + (size_t)s * t->parameters, t->parameters, error);
    return status;
}

icma_status icma_denoising_set(icma_denoising *t, const float *state, icma_error *error) {
    icma_status status = ICMA_OK;
    for (int s = 0; !status && s < SAVED_STATES; s++)
        status = t->ops->upload(t->ops->device, t->state[s], 0, state + (size_t)s * t->parameters, t->parameters, error);
    return status;
}

/* DDIM with eta 0, x_s = sqrt(abar_s) f + sqrt(1 - abar_s) e with e = (x_t - sqrt(abar_t) f) / sqrt(1 - abar_t), sorted by x_t and f. */
static void make_schedule(const icma_denoising *t, icma_denoiser *out) {
    for (size_t i = 0; i < out->steps; i++) {
        size_t from = time_of(i, out->steps), to = time_of(i + 1, out->steps);
        double keep = sqrt((1 - t->signal[to]) / (1 - t->signal[from]));
        out->keep[i] = (float)keep;
        out->add[i] = (float)(sqrt(t->signal[to]) - keep * sqrt(t->signal[from]));
        if (out->embedding)
            memcpy(out->time + i * out->embedding, t->time + from * out->embedding, out->embedding * sizeof *out->time);
    }
}

icma_status icma_denoising_finish(icma_denoising *t, icma_denoiser *out, icma_error *error) {
    *out = t->sizes;
    icma_status status = icma_denoiser_allocate(out, error);
    if (status)
        return status;
    memcpy(out->centre, t->centre, out->latent * sizeof *out->centre);
    memcpy(out->spread, t->spread, out->latent * sizeof *out->spread);
    make_schedule(t, out);
    for (int l = 0; !status && l < ICMA_DENOISER_LAYERS; l++) {
        icma_matrix u = part(t, STATE_PARAMETERS, l, false), c = part(t, STATE_PARAMETERS, l, true);
        status = t->ops->download(t->ops->device, u.tensor, u.offset, out->weight[l], u.rows * u.columns, error);
        if (!status)
            status = t->ops->download(t->ops->device, c.tensor, c.offset, out->bias[l], c.columns, error);
    }
    if (status)
        icma_denoiser_free(out);
    return status;
}
