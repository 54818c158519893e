/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The convolutional CVAE against the same network in double and plain loops: outputs, loss, running statistics, and every part's gradient by central differences; training, its independence of
 * tables and threads, and the decoder that an archive gets. tests/interop/test_conv.py compares with PyTorch.
 */
#include "conv_net.h"
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { BATCH = 3 };

static const double agreed = 5e-5; /* of the largest gradient looked at in a part: single precision */
static const double epsilon = 1e-5;

static double *make(size_t count) {
    double *values = calloc(count + 1, sizeof *values);
    assert_non_null(values);
    return values;
}

/* Padding or none; one layer; one channel; no coordinates; every kind. Widths 1 to 7; the longest kernels are wider than the shortest sequences. */
static const icma_conv_shape shapes[] = {
    {.used = 37, .layers = 3, .width = 3, .channels = {3, 4, 2}, .hidden = 5, .latent = 4, .coordinates = 2},
    {.used = 48, .layers = 2, .width = 5, .channels = {2, 3}, .hidden = 4, .latent = 3, .coordinates = 1},
    {.used = 9, .layers = 1, .width = 3, .channels = {4}, .hidden = 3, .latent = 2},
    {.used = 29, .layers = 4, .width = 7, .channels = {2, 1, 3, 2}, .hidden = 1, .latent = 1, .coordinates = 3},
    {.used = 37, .layers = 3, .width = 3, .channels = {3, 4, 2}, .hidden = 5, .latent = 4, .autoencoder = true},
    {.used = 21, .layers = 2, .width = 1, .channels = {3, 2}, .hidden = 2, .latent = 2, .coordinates = 2},
    {.used = 37, .layers = 3, .width = 5, .channels = {3, 4, 2}, .hidden = 5, .latent = 4, .coordinates = 2, .variance = true},
    {.used = 42, .layers = 1, .width = 3, .channels = {3}, .hidden = 2, .latent = 2, .autoencoder = true, .variance = true},
};

static icma_conv_shape shape_of(size_t i) {
    icma_conv_shape shape = shapes[i];
    shape.length = icma_conv_padded(shape.used, shape.layers);
    return shape;
}

/* --- the network in double ----------------------------------------------------------------------------- */

typedef struct subject {
    icma_conv_shape shape;
    size_t count;
    double *parameters, *x, *a, *noise; /* owned; x is count x length */
    double kl_weight, latent_noise;
    double *running; /* owned: mean and biased variance of every batch norm, as oracle_loss found them */
    double *y;       /* owned: its output, count x length x outputs */
    double *mu;      /* owned */
} subject;

static size_t outputs_of(const icma_conv_shape *s) {
    return s->variance ? 2 : 1;
}

static const double *part(const subject *c, icma_conv_part which, size_t layer, size_t *columns) {
    size_t offset, rows;
    icma_conv_part_place(&c->shape, which, layer, &offset, &rows, columns);
    return c->parameters + offset;
}

typedef enum direction { SAME, DOWN, UP } direction;

/* x: n sequences of `length` positions with `in` channels. Frees x. */
static double *convolve(direction how, double *x, size_t n, size_t length, size_t in, const double *w, size_t width, size_t out) {
    size_t to = how == DOWN ? length / 2 : how == UP ? 2 * length : length, stride = how == SAME ? 1 : 2, padding = (width - 1) / 2;
    double *y = make(n * to * out);
    for (size_t b = 0; b < n; b++)
        for (size_t p = 0; p < (how == UP ? length : to); p++)
            for (size_t t = 0; t < width; t++) {
                size_t far = stride * p + t; /* the position on the longer side, plus the padding */
                if (far < padding || far - padding >= (how == UP ? to : length))
                    continue;
                size_t from = how == UP ? p : far - padding, at = how == UP ? far - padding : p;
                for (size_t i = 0; i < in; i++)
                    for (size_t o = 0; o < out; o++)
                        y[(b * to + at) * out + o] += x[(b * length + from) * in + i] * w[(t * in + i) * out + o];
            }
    free(x);
    return y;
}

/* In place; the statistics go to `running`. */
static void normalise(double *x, size_t rows, size_t channels, const double *gamma, const double *beta, bool elu, double *running) {
    for (size_t j = 0; j < channels; j++) {
        double mean = 0, variance = 0;
        for (size_t i = 0; i < rows; i++)
            mean += x[i * channels + j] / (double)rows;
        for (size_t i = 0; i < rows; i++)
            variance += (x[i * channels + j] - mean) * (x[i * channels + j] - mean) / (double)rows;
        running[j] = mean;
        running[channels + j] = variance;
        for (size_t i = 0; i < rows; i++) {
            double v = gamma[j] * (x[i * channels + j] - mean) / sqrt(variance + epsilon) + beta[j];
            x[i * channels + j] = v > 0 ? v : elu ? expm1(v) : 0.01 * v;
        }
    }
}

/* y = [x; a] W + b */
static double *dense(const subject *c, const double *x, size_t in, bool condition, icma_conv_part w) {
    size_t out, ignored, m = condition ? c->shape.coordinates : 0;
    const double *weights = part(c, w, 0, &out), *bias = part(c, w + 1, 0, &ignored);
    double *y = make(c->count * out);
    for (size_t b = 0; b < c->count; b++)
        for (size_t o = 0; o < out; o++) {
            double sum = bias[o];
            for (size_t i = 0; i < in + m; i++)
                sum += (i < in ? x[b * in + i] : c->a[b * m + i - in]) * weights[i * out + o];
            y[b * out + o] = sum;
        }
    return y;
}

/* The layers of one side, norms and all. Frees x. */
static double *run_side(subject *c, direction how, double *x, size_t length, size_t in, icma_conv_part w, double **running) {
    for (size_t l = 0; l < c->shape.layers; l++) {
        size_t out, ignored;
        const double *weights = part(c, w, l, &out);
        x = convolve(how, x, c->count, length, in, weights, c->shape.width, out);
        length = how == DOWN ? length / 2 : 2 * length;
        normalise(x, c->count * length, out, part(c, w + 1, l, &ignored), part(c, w + 2, l, &ignored), how == UP, *running);
        *running += 2 * out;
        in = out;
    }
    return x;
}

static double *oracle_latent(subject *c, double **running, double *kl) {
    const icma_conv_shape *s = &c->shape;
    double *x = make(c->count * s->length);
    memcpy(x, c->x, c->count * s->length * sizeof *x);
    double *h = run_side(c, DOWN, x, s->length, 1, ICMA_CONV_ENCODER_W, running);
    double *e = dense(c, h, (s->length >> s->layers) * s->channels[s->layers - 1], false, ICMA_CONV_WE);
    double *z = dense(c, e, s->hidden, true, ICMA_CONV_WM), *logvar = s->autoencoder ? NULL : dense(c, e, s->hidden, true, ICMA_CONV_WV);
    memcpy(c->mu, z, c->count * s->latent * sizeof *z);
    *kl = 0;
    for (size_t i = 0; i < c->count * s->latent; i++) {
        if (!s->autoencoder)
            *kl += (exp(logvar[i]) + z[i] * z[i] - 1 - logvar[i]) / 2 / (double)c->count;
        z[i] += (s->autoencoder ? c->latent_noise : exp(logvar[i] / 2)) * c->noise[i];
    }
    free(h);
    free(e);
    free(logvar);
    return z;
}

static double pointwise(const icma_conv_shape *s, double x, const double *y) {
    double square = (x - y[0]) * (x - y[0]);
    return s->variance ? (square * exp(-y[1]) + y[1]) / 2 : square;
}

static double oracle_parts(subject *c, double *kl) {
    const icma_conv_shape *s = &c->shape;
    double *running = c->running, sum = 0;
    double *z = oracle_latent(c, &running, kl), *g = dense(c, z, s->latent, true, ICMA_CONV_WD);
    g = run_side(c, UP, g, s->length >> s->layers, s->channels[s->layers - 1], ICMA_CONV_DECODER_W, &running);
    size_t out, ignored;
    const double *w = part(c, ICMA_CONV_FINAL_W, 0, &out), *bias = part(c, ICMA_CONV_FINAL_B, 0, &ignored);
    double *y = convolve(SAME, g, c->count, s->length, s->channels[0], w, s->width, out);
    for (size_t i = 0; i < c->count * s->length * out; i++)
        c->y[i] = y[i] + bias[i % out];
    for (size_t b = 0; b < c->count; b++)
        for (size_t l = 0; l < s->used; l++)
            sum += pointwise(s, c->x[b * s->length + l], c->y + (b * s->length + l) * out);
    free(z);
    free(y);
    return sum / (double)(c->count * s->used);
}

static double oracle_loss(subject *c) {
    double kl, reconstruction = oracle_parts(c, &kl);
    return reconstruction + c->kl_weight * kl;
}

/* --- the network itself -------------------------------------------------------------------------------- */

typedef struct twin {
    const icma_ops *ops;
    icma_conv_net *net;
    icma_tensor *x, *a, *noise;
    icma_conv_batch batch;
} twin;

static icma_tensor *upload(const icma_ops *ops, const double *values, size_t count) {
    icma_tensor *tensor;
    icma_error error = {0};
    float *rounded = malloc((count + 1) * sizeof *rounded);
    assert_non_null(rounded);
    for (size_t i = 0; i < count; i++)
        rounded[i] = (float)values[i];
    assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_F32, count ? count : 1, &tensor, &error), ICMA_OK);
    assert_int_equal(ops->upload(ops->device, tensor, 0, rounded, count, &error), ICMA_OK);
    free(rounded);
    return tensor;
}

static float *download(twin *t, icma_tensor *tensor, size_t count) {
    icma_error error = {0};
    float *values = malloc((count + 1) * sizeof *values);
    assert_non_null(values);
    assert_int_equal(t->ops->download(t->ops->device, tensor, 0, values, count, &error), ICMA_OK);
    return values;
}

static float *state_of(twin *t, icma_conv_state which, size_t *count) {
    icma_tensor *tensor = icma_conv_net_state(t->net, which, count);
    return download(t, tensor, *count);
}

static float *output_of(twin *t) {
    icma_matrix y = icma_conv_output(t->net, t->batch.count);
    return download(t, y.tensor, y.rows * y.columns);
}

/* A batch for the network of `shape`, which is made with room for one more. */
static void make_twin(twin *t, const icma_ops *ops, const subject *c, uint64_t seed) {
    icma_rng rng = icma_rng_seed(seed);
    icma_error error = {0};
    const icma_conv_shape *s = &c->shape;
    *t = (twin){.ops = ops};
    assert_int_equal(icma_conv_net_create(ops, *s, c->count + 1, &rng, &t->net, &error), ICMA_OK);
    t->x = upload(ops, c->x, c->count * s->length);
    t->a = upload(ops, c->a, c->count * s->coordinates);
    t->noise = upload(ops, c->noise, c->count * s->latent);
    t->batch = (icma_conv_batch){c->count, icma_matrix_of(t->x, c->count * s->length, 1), icma_matrix_of(t->a, c->count, s->coordinates),
                                 icma_matrix_of(t->noise, c->count, s->latent), (float)c->kl_weight, (float)c->latent_noise};
}

static void free_twin(twin *t) {
    icma_conv_net_free(t->net);
    t->ops->release(t->ops->device, t->x);
    t->ops->release(t->ops->device, t->a);
    t->ops->release(t->ops->device, t->noise);
}

static void set_parameters(twin *t, const double *values) {
    size_t count;
    icma_error error = {0};
    icma_tensor *to = icma_conv_net_state(t->net, ICMA_CONV_PARAMETERS, &count), *from = upload(t->ops, values, count);
    float *rounded = download(t, from, count);
    assert_int_equal(t->ops->upload(t->ops->device, to, 0, rounded, count, &error), ICMA_OK);
    t->ops->release(t->ops->device, from);
    free(rounded);
}

static double loss_of(twin *t, bool training) {
    double reconstruction, kl;
    icma_error error = {0};
    icma_conv_forward(t->net, &t->batch, training);
    assert_int_equal(icma_conv_loss(t->net, &t->batch, &reconstruction, &kl, &error), ICMA_OK);
    return reconstruction + (double)t->batch.kl_weight * kl;
}

static double step(twin *t, uint64_t number, float rate) {
    double loss = loss_of(t, true);
    icma_conv_backward(t->net, &t->batch);
    icma_conv_adam(t->net, (icma_adam){.learning_rate = rate, .beta1 = 0.9F, .beta2 = 0.999F, .epsilon = 1e-8F, .step = number});
    return loss;
}

static size_t running_count(const icma_conv_shape *s) {
    size_t count = 0;
    for (size_t l = 0; l < s->layers; l++)
        count += 2 * s->channels[l] + 2 * s->channels[l + 1 < s->layers ? l : 0];
    return count;
}

static double *rounded_normals(uint64_t *random, size_t count, double scale) {
    double *values = make(count);
    for (size_t i = 0; i < count; i++)
        values[i] = (float)(scale * support_normal(random));
    return values;
}

/* Parameters are normals, not what a network starts from, so that no gamma is 1 and no beta 0. */
static subject make_subject(icma_conv_shape shape, size_t count) {
    uint64_t random = 100 + shape.used;
    size_t parameters = icma_conv_parameters(&shape);
    subject c = {.shape = shape, .count = count, .kl_weight = 0.0625, .latent_noise = 0.25};
    c.parameters = rounded_normals(&random, parameters, 0.4);
    c.x = rounded_normals(&random, count * shape.length, 1);
    for (size_t i = 0; i < count * shape.length; i++)
        c.x[i] *= i % shape.length < shape.used;
    c.a = rounded_normals(&random, count * shape.coordinates, 1);
    c.noise = rounded_normals(&random, count * shape.latent, 1);
    c.running = make(running_count(&shape));
    c.y = make(count * shape.length * outputs_of(&shape));
    c.mu = make(count * shape.latent);
    return c;
}

static void free_subject(subject *c) {
    double *all[] = {c->parameters, c->x, c->a, c->noise, c->running, c->y, c->mu};
    for (size_t i = 0; i < COUNT(all); i++)
        free(all[i]);
}

/* --- places -------------------------------------------------------------------------------------------- */

static size_t layers_of(const icma_conv_shape *s, icma_conv_part which) {
    bool many = which <= ICMA_CONV_ENCODER_BETA || (which >= ICMA_CONV_DECODER_W && which <= ICMA_CONV_DECODER_BETA);
    return many ? s->layers : 1;
}

static void parts_tile_the_parameters(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        icma_conv_shape s = shape_of(i);
        size_t total = icma_conv_parameters(&s), covered = 0;
        char *seen = calloc(total, 1);
        assert_non_null(seen);
        for (int p = 0; p < ICMA_CONV_PARTS; p++)
            for (size_t l = 0; l < layers_of(&s, p); l++) {
                size_t offset, rows, columns;
                icma_conv_part_place(&s, p, l, &offset, &rows, &columns);
                assert_true(offset + rows * columns <= total);
                for (size_t k = offset; k < offset + rows * columns; k++)
                    assert_int_equal(seen[k]++, 0);
                covered += rows * columns;
            }
        assert_int_equal(covered, total);
        free(seen);
    }
}

static void expect_part(const icma_conv_shape *s, icma_conv_part which, size_t layer, size_t rows, size_t columns) {
    size_t offset, r, c;
    icma_conv_part_place(s, which, layer, &offset, &r, &c);
    assert_int_equal(r, rows);
    assert_int_equal(c, columns);
}

/* PAPER.md's network at rank 1: 8 16 32 64 128 256 256 128 64 32 16 8, kernel 7, hidden and latent 256. */
static void the_papers_network_has_its_shapes(void **state) {
    (void)state;
    icma_conv_shape s = {.used = 241241, .length = 241664, .layers = 12, .width = 7, .channels = {8, 16, 32, 64, 128, 256, 256, 128, 64, 32, 16, 8}, .hidden = 256, .latent = 256, .coordinates = 5};
    assert_int_equal(icma_conv_padded(s.used, s.layers), s.length);
    expect_part(&s, ICMA_CONV_ENCODER_W, 0, 7, 8);
    expect_part(&s, ICMA_CONV_ENCODER_W, 6, 7 * 256, 256);
    expect_part(&s, ICMA_CONV_WE, 0, 59 * 8, 256);
    expect_part(&s, ICMA_CONV_WM, 0, 261, 256);
    expect_part(&s, ICMA_CONV_WD, 0, 261, 59 * 8);
    expect_part(&s, ICMA_CONV_DECODER_W, 0, 7 * 8, 16);
    expect_part(&s, ICMA_CONV_DECODER_W, 10, 7 * 16, 8);
    expect_part(&s, ICMA_CONV_DECODER_W, 11, 7 * 8, 8);
    expect_part(&s, ICMA_CONV_DECODER_GAMMA, 11, 1, 8);
    expect_part(&s, ICMA_CONV_FINAL_W, 0, 7 * 8, 1);
    /* Convolutions 7 (8 + 2 sum of products of neighbours + 8^2 + 8), norms 2 (2 (1008) - 8 + 8), linear layers with biases. */
    size_t neighbours = 8 * 16 + 16 * 32 + 32 * 64 + 64 * 128 + 128 * 256 + 256 * 256 + 256 * 128 + 128 * 64 + 64 * 32 + 32 * 16 + 16 * 8;
    size_t linear = (472 + 1) * 256 + 2 * (261 + 1) * 256 + (261 + 1) * 472;
    assert_int_equal(icma_conv_parameters(&s), 7 * (8 + 2 * neighbours + 64 + 8) + 1 + 4 * 1008 + linear);
    assert_true(icma_conv_work(&s) > 7.0 * 8 * 241664 && icma_conv_work(&s) < 1e12);
    s.variance = true;
    expect_part(&s, ICMA_CONV_FINAL_W, 0, 7 * 8, 2);
    s.hidden = SIZE_MAX / 2;
    assert_int_equal(icma_conv_parameters(&s), SIZE_MAX);
    assert_int_equal(icma_conv_padded(SIZE_MAX - 1, 12), SIZE_MAX);
}

/* --- forward and backward ------------------------------------------------------------------------------ */

/* |a - b| / |b| */
static double distance(const float *a, const double *b, size_t count) {
    double error = 0, energy = 1e-300;
    for (size_t i = 0; i < count; i++) {
        error += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        energy += b[i] * b[i];
    }
    return sqrt(error / energy);
}

static void close_to(const char *what, double got, double wanted, double tolerance) {
    if (!(fabs(got - wanted) <= tolerance * fabs(wanted)))
        fail_msg("%s: %.9g, not %.9g", what, got, wanted);
}

static void forward_gives_output_and_loss(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        subject c = make_subject(shape_of(i), BATCH);
        const icma_conv_shape *s = &c.shape;
        double kl, reconstruction = oracle_parts(&c, &kl), got, got_kl;
        twin t;
        icma_error error = {0};
        make_twin(&t, icma_ops_reference(), &c, 1);
        set_parameters(&t, c.parameters);
        icma_conv_forward(t.net, &t.batch, true);
        assert_int_equal(icma_conv_loss(t.net, &t.batch, &got, &got_kl, &error), ICMA_OK);
        close_to("reconstruction", got, reconstruction, 1e-5);
        close_to("KL", got_kl, kl, 1e-5);
        float *y = output_of(&t), *mu = download(&t, icma_conv_mu(t.net, BATCH).tensor, BATCH * s->latent);
        size_t out = outputs_of(s);
        for (size_t k = 0; k < BATCH * s->length * out; k++)
            if (k / out % s->length >= s->used)
                assert_true(y[k] == 0);
            else if (!(fabs((double)y[k] - c.y[k]) < 1e-4))
                fail_msg("shape %zu, output %zu: %.9g, not %.9g", i, k, y[k], c.y[k]);
        assert_true(distance(mu, c.mu, BATCH * s->latent) < 1e-5);
        free(y);
        free(mu);
        free_twin(&t);
        free_subject(&c);
    }
}

/* Central differences of the oracle's loss at some numbers of one part, against the network's gradient. */
static void check_part(subject *c, const float *gradient, int which, size_t layer, uint64_t *random) {
    enum { MOST = 12 };
    size_t offset, rows, columns;
    icma_conv_part_place(&c->shape, which, layer, &offset, &rows, &columns);
    size_t count = rows * columns, picks = count < MOST ? count : MOST;
    double worst = 0, largest = 1e-4; /* smaller gradients are compared as if they were as large as this */
    for (size_t k = 0; k < picks; k++) {
        size_t at = offset + (picks == count ? k : (size_t)(support_uniform(random) * (double)count));
        double held = c->parameters[at], h = 1e-6 * (1 + fabs(held));
        c->parameters[at] = held + h;
        double above = oracle_loss(c);
        c->parameters[at] = held - h;
        double numeric = (above - oracle_loss(c)) / (2 * h);
        c->parameters[at] = held;
        worst = fmax(worst, isfinite(gradient[at]) ? fabs((double)gradient[at] - numeric) : INFINITY);
        largest = fmax(largest, fabs(numeric));
    }
    if (!(worst <= agreed * largest))
        fail_msg("part %d of layer %zu: gradients differ by %.3g of %.3g", which, layer, worst, largest);
}

static void gradients_are_the_losss(void **state) {
    (void)state;
    uint64_t random = 5;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        subject c = make_subject(shape_of(i), BATCH);
        twin t;
        make_twin(&t, icma_ops_reference(), &c, 1);
        set_parameters(&t, c.parameters);
        /* Backward leaves the outputs alone: the loss is the same after it. */
        double loss = loss_of(&t, true), again, kl;
        icma_error error = {0};
        icma_conv_backward(t.net, &t.batch);
        assert_int_equal(icma_conv_loss(t.net, &t.batch, &again, &kl, &error), ICMA_OK);
        assert_true(loss == again + (double)t.batch.kl_weight * kl);
        size_t count;
        float *gradient = state_of(&t, ICMA_CONV_GRADIENTS, &count);
        for (int p = 0; p < ICMA_CONV_PARTS; p++)
            for (size_t l = 0; l < layers_of(&c.shape, p); l++)
                check_part(&c, gradient, p, l, &random);
        free(gradient);
        free_twin(&t);
        free_subject(&c);
    }
}

/* --- training ------------------------------------------------------------------------------------------ */

static void networks_start_as_pytorchs(void **state) {
    (void)state;
    subject c = make_subject(shape_of(0), BATCH);
    const icma_conv_shape *s = &c.shape;
    twin t, same, other;
    make_twin(&t, icma_ops_reference(), &c, 7);
    make_twin(&same, icma_ops_reference(), &c, 7);
    make_twin(&other, icma_ops_reference(), &c, 8);
    size_t count, running;
    float *values = state_of(&t, ICMA_CONV_PARAMETERS, &count), *again = state_of(&same, ICMA_CONV_PARAMETERS, &count), *different = state_of(&other, ICMA_CONV_PARAMETERS, &count);
    assert_int_equal(count, icma_conv_parameters(s));
    assert_memory_equal(values, again, count * sizeof *values);
    const double fans[ICMA_CONV_PARTS] = {
        [ICMA_CONV_WE] = 10, [ICMA_CONV_BE] = 10, [ICMA_CONV_WM] = 7, [ICMA_CONV_BM] = 7, [ICMA_CONV_WV] = 7, [ICMA_CONV_BV] = 7, [ICMA_CONV_WD] = 6, [ICMA_CONV_BD] = 6, [ICMA_CONV_FINAL_W] = 9, [ICMA_CONV_FINAL_B] = 9,
    };
    const double encoder_fans[] = {3, 9, 12}, decoder_fans[] = {12, 9, 9};
    for (int p = 0; p < ICMA_CONV_PARTS; p++)
        for (size_t l = 0; l < layers_of(s, p); l++) {
            size_t offset, rows, columns;
            icma_conv_part_place(s, p, l, &offset, &rows, &columns);
            double fan = p == ICMA_CONV_ENCODER_W ? encoder_fans[l] : p == ICMA_CONV_DECODER_W ? decoder_fans[l] : fans[p], largest = 0;
            for (size_t k = offset; k < offset + rows * columns; k++) {
                if (p == ICMA_CONV_ENCODER_GAMMA || p == ICMA_CONV_DECODER_GAMMA)
                    assert_true(values[k] == 1);
                else if (p == ICMA_CONV_ENCODER_BETA || p == ICMA_CONV_DECODER_BETA)
                    assert_true(values[k] == 0);
                else
                    assert_true(values[k] != different[k]);
                largest = fmax(largest, fabs((double)values[k]));
            }
            if (fan > 0)
                assert_true(largest <= 1 / sqrt(fan) * (1 + 1e-6) && (rows * columns < 9 || largest > 0.7 / sqrt(fan)));
        }
    float *statistics = state_of(&t, ICMA_CONV_RUNNING, &running);
    assert_int_equal(running, running_count(s));
    for (size_t l = 0, k = 0; l < 2 * s->layers; l++)
        for (size_t channels = l < s->layers ? s->channels[l] : l == s->layers ? s->channels[1] : s->channels[0], j = 0; j < 2 * channels; j++, k++)
            assert_true(statistics[k] == (j < channels ? 0 : 1));
    float *all[] = {values, again, different, statistics};
    for (size_t i = 0; i < COUNT(all); i++)
        free(all[i]);
    free_twin(&t);
    free_twin(&same);
    free_twin(&other);
    free_subject(&c);
}

static void twenty_steps_lower_the_loss(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        subject c = make_subject(shape_of(i), BATCH);
        twin t;
        make_twin(&t, icma_ops_cpu(), &c, 3);
        double first = step(&t, 1, 0.01F);
        for (uint64_t k = 2; k <= 20; k++)
            step(&t, k, 0.01F);
        double last = loss_of(&t, true);
        print_message("           loss %.4f to %.4f\n", first, last);
        assert_true(last < 0.95 * first);
        free_twin(&t);
        free_subject(&c);
    }
}

/* PyTorch: running = 0.9 running + 0.1 (mean, unbiased variance). */
static void running_statistics_follow_the_batches(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        subject c = make_subject(shape_of(i), BATCH);
        const icma_conv_shape *s = &c.shape;
        twin t;
        make_twin(&t, icma_ops_reference(), &c, 1);
        set_parameters(&t, c.parameters);
        oracle_loss(&c);
        size_t count, k = 0;
        loss_of(&t, true);
        loss_of(&t, false); /* changes none of them */
        float *running = state_of(&t, ICMA_CONV_RUNNING, &count);
        for (size_t l = 0; l < 2 * s->layers; l++) {
            size_t decoder = l - s->layers, channels = s->channels[l < s->layers ? l : decoder + 1 < s->layers ? s->layers - 2 - decoder : 0];
            double rows = (double)(BATCH * (l < s->layers ? s->length >> (l + 1) : s->length >> (s->layers - decoder - 1)));
            for (size_t j = 0; j < 2 * channels; j++, k++) {
                double wanted = j < channels ? 0.1 * c.running[k] : 0.9 + 0.1 * c.running[k] * rows / (rows - 1);
                assert_true(fabs((double)running[k] - wanted) < 1e-6 * (1 + fabs(wanted)));
            }
        }
        assert_int_equal(k, count);
        free(running);
        free_twin(&t);
        free_subject(&c);
    }
}

static void take(twin *t, const subject *c, size_t count) {
    t->batch.count = count;
    t->batch.x.rows = count * c->shape.length;
    t->batch.a.rows = t->batch.noise.rows = count;
}

/* Without training, what a checkpoint becomes does not depend on the others of its batch. */
static void evaluation_uses_the_running_statistics(void **state) {
    (void)state;
    subject c = make_subject(shape_of(0), BATCH);
    twin t;
    make_twin(&t, icma_ops_cpu(), &c, 3);
    for (uint64_t k = 1; k <= 5; k++)
        step(&t, k, 0.01F);
    for (int training = 0; training < 2; training++) {
        take(&t, &c, BATCH);
        loss_of(&t, training);
        float *many = output_of(&t);
        take(&t, &c, 1);
        loss_of(&t, training);
        float *one = output_of(&t);
        double worst = 0;
        /* No fmax: gcc 12 for aarch64 breaks down on it, on widened numbers. */
        for (size_t k = 0; k < c.shape.used; k++) {
            double difference = fabs((double)many[k] - (double)one[k]);
            worst = difference > worst ? difference : worst;
        }
        assert_true(training ? worst > 1e-2 : worst < 1e-5);
        free(many);
        free(one);
    }
    free_twin(&t);
    free_subject(&c);
}

static void tables_agree(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        subject c = make_subject(shape_of(i), BATCH);
        twin slow, fast;
        make_twin(&slow, icma_ops_reference(), &c, 3);
        make_twin(&fast, icma_ops_cpu(), &c, 3);
        close_to("loss", step(&fast, 1, 0.001F), step(&slow, 1, 0.001F), 1e-5);
        for (int which = 0; which < ICMA_CONV_STATES; which++) {
            size_t count;
            float *a = state_of(&slow, which, &count), *b = state_of(&fast, which, &count);
            double *exact = make(count);
            for (size_t k = 0; k < count; k++)
                exact[k] = (double)a[k];
            assert_true(distance(b, exact, count) < 1e-4);
            free(a);
            free(b);
            free(exact);
        }
        free_twin(&slow);
        free_twin(&fast);
        free_subject(&c);
    }
}

/* Long enough for the threads to have something to share. */
static void threads_change_no_bit(void **state) {
    (void)state;
    icma_conv_shape shape = {.used = 20001, .layers = 6, .width = 7, .channels = {8, 16, 32, 32, 16, 8}, .hidden = 32, .latent = 16, .coordinates = 3};
    shape.length = icma_conv_padded(shape.used, shape.layers);
    subject c = make_subject(shape, 2);
    float *first[ICMA_CONV_STATES] = {0};
    for (int threads = 1; threads <= 3; threads++) {
        icma_set_threads(threads);
        twin t;
        make_twin(&t, icma_ops_cpu(), &c, 3);
        for (uint64_t k = 1; k <= 2; k++)
            step(&t, k, 0.001F);
        for (int which = 0; which < ICMA_CONV_STATES; which++) {
            size_t count;
            float *values = state_of(&t, which, &count);
            if (threads == 1) {
                first[which] = values;
                continue;
            }
            assert_memory_equal(values, first[which], count * sizeof *values);
            free(values);
        }
        free_twin(&t);
    }
    icma_set_threads(0);
    for (int which = 0; which < ICMA_CONV_STATES; which++)
        free(first[which]);
    free_subject(&c);
}

/* --- the decoder of an archive ------------------------------------------------------------------------- */

/* y = [mu; a] through the decoder, in double. */
static double *evaluate(const icma_conv_decoder *d, const double *input) {
    size_t positions = d->start, rows, columns;
    icma_conv_layer_shape(d, 0, &rows, &columns);
    double *g = make(columns);
    for (size_t o = 0; o < columns; o++) {
        g[o] = (double)d->bias[0][o];
        for (size_t i = 0; i < rows; i++)
            g[o] += input[i] * (double)d->weight[0][i * columns + o];
    }
    for (size_t l = 1; l <= d->layers + 1; l++) {
        icma_conv_layer_shape(d, l, &rows, &columns);
        double *w = make(rows * columns);
        for (size_t i = 0; i < rows * columns; i++)
            w[i] = (double)d->weight[l][i];
        g = convolve(l <= d->layers ? UP : SAME, g, 1, positions, rows / d->width, w, d->width, columns);
        positions *= l <= d->layers ? 2 : 1;
        for (size_t i = 0; i < positions * columns; i++) {
            g[i] += (double)d->bias[l][i % columns];
            g[i] = g[i] > 0 || l > d->layers ? g[i] : expm1(g[i]);
        }
        free(w);
    }
    return g;
}

static void a_folded_decoder_is_the_decoder(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        subject c = make_subject(shape_of(i), BATCH);
        const icma_conv_shape *s = &c.shape;
        memset(c.noise, 0, BATCH * s->latent * sizeof *c.noise); /* z = mu */
        twin t;
        make_twin(&t, icma_ops_cpu(), &c, 3);
        for (uint64_t k = 1; k <= 10; k++)
            step(&t, k, 0.01F);
        loss_of(&t, false);
        icma_conv_decoder decoder;
        icma_error error = {0};
        assert_int_equal(icma_conv_fold(t.net, &decoder, &error), ICMA_OK);
        assert_int_equal(icma_conv_decoder_length(&decoder), s->length);
        assert_int_equal(decoder.inputs, s->latent + s->coordinates);
        assert_int_equal(decoder.outputs, outputs_of(s));
        float *mu = download(&t, icma_conv_mu(t.net, BATCH).tensor, BATCH * s->latent), *y = output_of(&t);
        double *input = make(decoder.inputs);
        for (size_t b = 0; b < BATCH; b++) {
            for (size_t k = 0; k < decoder.inputs; k++)
                input[k] = k < s->latent ? (double)mu[b * s->latent + k] : c.a[b * s->coordinates + k - s->latent];
            double *wanted = evaluate(&decoder, input);
            assert_true(distance(y + b * s->length * outputs_of(s), wanted, s->used * outputs_of(s)) < 1e-5);
            free(wanted);
        }
        free(input);
        free(mu);
        free(y);
        icma_conv_decoder_free(&decoder);
        free_twin(&t);
        free_subject(&c);
    }
}

/* --- memory -------------------------------------------------------------------------------------------- */

static void memory_that_is_short_leaves_nothing(void **state) {
    (void)state;
    icma_ops_cpu();
    size_t k = 0;
    for (icma_status status = ICMA_E_MEMORY; status; k++) {
        support_budget budget = {.left = k};
        icma_rng rng = icma_rng_seed(1);
        icma_conv_net *net = (icma_conv_net *)(void *)&budget;
        icma_conv_decoder decoder = {0};
        icma_error error = {0};
        support_limit_memory(&budget);
        status = icma_conv_net_create(icma_ops_cpu(), shape_of(0), BATCH, &rng, &net, &error);
        assert_true((status == ICMA_OK) == (net != NULL));
        if (!status)
            status = icma_conv_fold(net, &decoder, &error);
        assert_true(status == ICMA_OK || status == ICMA_E_MEMORY);
        icma_conv_decoder_free(&decoder);
        icma_conv_net_free(net);
        support_limit_memory(NULL);
        assert_int_equal(budget.live, 0);
    }
    assert_true(k > 60);
    icma_conv_net_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_tile_the_parameters),
        cmocka_unit_test(the_papers_network_has_its_shapes),
        cmocka_unit_test(forward_gives_output_and_loss),
        cmocka_unit_test(gradients_are_the_losss),
        cmocka_unit_test(networks_start_as_pytorchs),
        cmocka_unit_test(twenty_steps_lower_the_loss),
        cmocka_unit_test(running_statistics_follow_the_batches),
        cmocka_unit_test(evaluation_uses_the_running_statistics),
        cmocka_unit_test(tables_agree),
        cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(a_folded_decoder_is_the_decoder),
        cmocka_unit_test(memory_that_is_short_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
