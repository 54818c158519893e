/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs the convolutional CVAE (codec/conv_net.h) on numbers from a file, for test_conv.py to compare with PyTorch: icma_conv_probe reference|cpu INPUT OUTPUT SIGNS.
 *
 * The files are the numbers named here one after another, as this machine stores them. Parameters are flat and in the order of icma_conv_part_place: of each encoder layer W, gamma, beta;
 * We be Wm bm Wv bv Wd bd (no Wv, bv for an autoencoder); of each decoder layer W, gamma, beta; the last convolution's W and b. All are rows x columns as conv_net.h has them: a convolution's W is
 * tap, input, output; We and Wd know positions by channels, channel fastest.
 *
 *   INPUT   uint64  used, layers, width, channels[layers], hidden, latent, coordinates, autoencoder, variance, count, steps
 *           float   kl_weight, latent_noise, beta1, beta2, epsilon, weight_decay, learning rate of each step, parameters
 *           float   of each step: x (count x used), a (count x coordinates), noise (count x latent)
 *   SIGNS   uint8   of each step, of each encoder layer: 1 where h is above 0 (count x positions x channels)
 *   OUTPUT  float   of the first step: y (count x used x (1 or 2)), mu, log-variance (none for an autoencoder) (count x latent each), gradients
 *           float   of each step: reconstruction and KL; after the last: parameters, running statistics (mean, variance of each norm, encoder's first)
 *           float   y of the first step's batch by that network, with the running statistics
 */
#include "conv_net.h"
#include "memory.h"

#include <stdio.h>
#include <string.h>

typedef struct probe {
    const icma_ops *ops;
    FILE *in, *out, *signs;
    icma_conv_shape shape;
    uint64_t count, steps;
    icma_conv_net *net;
    icma_conv_batch batch;
    icma_adam adam;
    float *rates;         /* one a step; owned */
    float *x, *a, *noise; /* of the current step; owned */
    icma_error error;
} probe;

static icma_status no_memory(probe *p) {
    return icma_fail(&p->error, ICMA_E_MEMORY, NULL, "no memory");
}

static icma_status get_sizes(probe *p, uint64_t *to, size_t count) {
    return fread(to, sizeof *to, count, p->in) == count ? ICMA_OK : icma_fail(&p->error, ICMA_E_IO, NULL, "the input is too short");
}

static icma_status get_floats(probe *p, float *to, size_t count) {
    return fread(to, sizeof *to, count, p->in) == count ? ICMA_OK : icma_fail(&p->error, ICMA_E_IO, NULL, "the input is too short");
}

static icma_status put_floats(probe *p, const float *from, size_t count) {
    return fwrite(from, sizeof *from, count, p->out) == count ? ICMA_OK : icma_fail(&p->error, ICMA_E_IO, NULL, "could not write");
}

/* Rows x columns numbers from a tensor on, `skip` columns longer, to the output. */
static icma_status put_rows(probe *p, icma_tensor *from, size_t rows, size_t columns, size_t skip) {
    float *values = icma_alloc_array(columns + 1, sizeof *values);
    icma_status status = values ? ICMA_OK : no_memory(p);
    for (size_t i = 0; !status && i < rows; i++) {
        status = p->ops->download(p->ops->device, from, i * (columns + skip), values, columns, &p->error);
        if (!status)
            status = put_floats(p, values, columns);
    }
    icma_free(values);
    return status;
}

static icma_status put_state(probe *p, icma_conv_state which) {
    size_t count;
    icma_tensor *from = icma_conv_net_state(p->net, which, &count);
    return put_rows(p, from, 1, count, 0);
}

static icma_status put_output(probe *p) {
    size_t outputs = p->shape.variance ? 2 : 1;
    return put_rows(p, icma_conv_output(p->net, p->count).tensor, p->count, p->shape.used * outputs, (p->shape.length - p->shape.used) * outputs);
}

/* --- input --------------------------------------------------------------------------------------------- */

static icma_status read_shape(probe *p) {
    uint64_t head[3], channels[ICMA_CONV_MOST_LAYERS], rest[7];
    icma_status status = get_sizes(p, head, 3);
    if (!status && (head[1] < 1 || head[1] > ICMA_CONV_MOST_LAYERS))
        status = icma_fail(&p->error, ICMA_E_LIMIT, NULL, "too many layers");
    if (!status)
        status = get_sizes(p, channels, head[1]);
    if (!status)
        status = get_sizes(p, rest, 7);
    if (status)
        return status;
    p->shape = (icma_conv_shape){.used = head[0], .length = icma_conv_padded(head[0], head[1]), .layers = head[1], .width = head[2], .hidden = rest[0], .latent = rest[1], .coordinates = rest[2],
                                 .autoencoder = rest[3] != 0, .variance = rest[4] != 0};
    for (size_t l = 0; l < p->shape.layers; l++)
        p->shape.channels[l] = channels[l];
    p->count = rest[5];
    p->steps = rest[6];
    return ICMA_OK;
}

static icma_status read_options(probe *p) {
    float options[6];
    icma_status status = get_floats(p, options, 6);
    p->rates = icma_alloc_array(p->steps, sizeof *p->rates);
    if (status || !p->rates)
        return status ? status : no_memory(p);
    p->batch = (icma_conv_batch){.count = p->count, .kl_weight = options[0], .latent_noise = options[1]};
    p->adam = (icma_adam){.beta1 = options[2], .beta2 = options[3], .epsilon = options[4], .weight_decay = options[5]};
    return get_floats(p, p->rates, p->steps);
}

static icma_status read_parameters(probe *p) {
    size_t count;
    icma_tensor *to = icma_conv_net_state(p->net, ICMA_CONV_PARAMETERS, &count);
    float *values = icma_alloc_array(count, sizeof *values);
    icma_status status = values ? get_floats(p, values, count) : no_memory(p);
    if (!status)
        status = p->ops->upload(p->ops->device, to, 0, values, count, &p->error);
    icma_free(values);
    return status;
}

static icma_status make_matrix(probe *p, size_t rows, size_t columns, icma_matrix *out) {
    icma_tensor *tensor;
    icma_status status = p->ops->alloc(p->ops->device, ICMA_ELEMENT_F32, rows * columns + 1, &tensor, &p->error);
    *out = icma_matrix_of(tensor, rows, columns);
    return status;
}

static icma_status make_network(probe *p) {
    const icma_conv_shape *s = &p->shape;
    icma_rng rng = icma_rng_seed(0);
    icma_status status = icma_conv_net_create(p->ops, *s, p->count, &rng, &p->net, &p->error);
    if (!status)
        status = make_matrix(p, p->count * s->length, 1, &p->batch.x);
    if (!status)
        status = make_matrix(p, p->count, s->coordinates, &p->batch.a);
    if (!status)
        status = make_matrix(p, p->count, s->latent, &p->batch.noise);
    p->x = icma_alloc_array(p->count * s->used, sizeof(float));
    p->a = icma_alloc_array(p->count * s->coordinates + 1, sizeof(float));
    p->noise = icma_alloc_array(p->count * s->latent, sizeof(float));
    if (!status && !(p->x && p->a && p->noise))
        status = no_memory(p);
    return status ? status : read_parameters(p);
}

/* --- steps --------------------------------------------------------------------------------------------- */

static icma_status upload_batch(probe *p) {
    const icma_conv_shape *s = &p->shape;
    const icma_ops *ops = p->ops;
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && i < p->count; i++)
        status = ops->upload(ops->device, p->batch.x.tensor, i * s->length, p->x + i * s->used, s->used, &p->error);
    if (!status)
        status = ops->upload(ops->device, p->batch.a.tensor, 0, p->a, p->count * s->coordinates, &p->error);
    return status ? status : ops->upload(ops->device, p->batch.noise.tensor, 0, p->noise, p->count * s->latent, &p->error);
}

static icma_status read_batch(probe *p) {
    icma_status status = get_floats(p, p->x, p->count * p->shape.used);
    if (!status)
        status = get_floats(p, p->a, p->count * p->shape.coordinates);
    if (!status)
        status = get_floats(p, p->noise, p->count * p->shape.latent);
    return status ? status : upload_batch(p);
}

static icma_status put_first(probe *p) {
    icma_status status = put_output(p);
    if (!status)
        status = put_rows(p, icma_conv_mu(p->net, p->count).tensor, p->count, p->shape.latent, 0);
    if (!status && !p->shape.autoencoder)
        status = put_rows(p, icma_conv_logvar(p->net, p->count).tensor, p->count, p->shape.latent, 0);
    return status ? status : put_state(p, ICMA_CONV_GRADIENTS);
}

/* On which side of LeakyReLU's kink each number of the encoder lies. */
static icma_status put_signs(probe *p, size_t layer) {
    icma_matrix h = icma_conv_hidden(p->net, layer, p->count);
    size_t count = h.rows * h.columns;
    float *values = icma_alloc_array(count, sizeof *values);
    uint8_t *signs = icma_alloc_array(count, 1);
    icma_status status = values && signs ? p->ops->download(p->ops->device, h.tensor, h.offset, values, count, &p->error) : no_memory(p);
    for (size_t i = 0; !status && i < count; i++)
        signs[i] = values[i] > 0;
    if (!status && fwrite(signs, 1, count, p->signs) != count)
        status = icma_fail(&p->error, ICMA_E_IO, NULL, "could not write");
    icma_free(values);
    icma_free(signs);
    return status;
}

static icma_status run_step(probe *p, size_t step, float losses[2]) {
    double reconstruction, kl;
    icma_conv_forward(p->net, &p->batch, true);
    icma_status status = icma_conv_loss(p->net, &p->batch, &reconstruction, &kl, &p->error);
    icma_conv_backward(p->net, &p->batch);
    for (size_t l = 0; !status && l < p->shape.layers; l++)
        status = put_signs(p, l);
    if (!status && step == 0)
        status = put_first(p);
    p->adam.step = step + 1;
    p->adam.learning_rate = p->rates[step];
    icma_conv_adam(p->net, p->adam);
    losses[0] = (float)reconstruction;
    losses[1] = (float)kl;
    return status;
}

static icma_status run_steps(probe *p) {
    float *losses = icma_alloc_array(p->steps, 2 * sizeof *losses);
    icma_status status = losses ? ICMA_OK : no_memory(p);
    for (size_t step = 0; !status && step < p->steps; step++) {
        status = read_batch(p);
        if (!status)
            status = run_step(p, step, losses + 2 * step);
    }
    if (!status)
        status = put_floats(p, losses, 2 * p->steps);
    icma_free(losses);
    return status;
}

/* `batches`: where in the input those of the steps begin. */
static icma_status evaluate(probe *p, long batches) {
    icma_status status = fseek(p->in, batches, SEEK_SET) ? icma_fail(&p->error, ICMA_E_IO, NULL, "the input cannot be read twice") : read_batch(p);
    if (status)
        return status;
    icma_conv_forward(p->net, &p->batch, false);
    return put_output(p);
}

static icma_status run(probe *p) {
    icma_status status = read_shape(p);
    if (!status)
        status = read_options(p);
    if (!status)
        status = make_network(p);
    long batches = ftell(p->in);
    if (!status)
        status = run_steps(p);
    if (!status)
        status = put_state(p, ICMA_CONV_PARAMETERS);
    if (!status)
        status = put_state(p, ICMA_CONV_RUNNING);
    return status ? status : evaluate(p, batches);
}

static void clean_up(probe *p) {
    icma_tensor *tensors[] = {p->batch.x.tensor, p->batch.a.tensor, p->batch.noise.tensor};
    float *arrays[] = {p->rates, p->x, p->a, p->noise};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++)
        p->ops->release(p->ops->device, tensors[i]);
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        icma_free(arrays[i]);
    icma_conv_net_free(p->net);
}

int main(int count, char **words) {
    probe p = {0};
    bool reference = count == 5 && strcmp(words[1], "reference") == 0;
    if (count != 5 || !(reference || strcmp(words[1], "cpu") == 0) || !(p.in = fopen(words[2], "rb")) || !(p.out = fopen(words[3], "wb")) || !(p.signs = fopen(words[4], "wb"))) {
        fprintf(stderr, "usage: icma_conv_probe reference|cpu INPUT OUTPUT SIGNS\n");
        return 2;
    }
    p.ops = reference ? icma_ops_reference() : icma_ops_cpu();
    icma_status status = run(&p);
    clean_up(&p);
    fclose(p.in);
    int failed = fclose(p.out) | fclose(p.signs);
    if (failed && !status)
        status = icma_fail(&p.error, ICMA_E_IO, NULL, "could not write");
    if (status)
        fprintf(stderr, "icma_conv_probe: %s\n", p.error.message);
    return status ? 1 : 0;
}
