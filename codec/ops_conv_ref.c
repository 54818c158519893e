/* SPDX-License-Identifier: Apache-2.0 */
/* Convolutions, batch norm and ELU of the reference table: what they mean, in plain loops, one thread, sums
 * in ascending order. */
#include "ops_host.h"

#include <math.h>
#include <string.h>

/* Taps first .. last - 1 of position `at` stay within a sequence of `length`: at + t - padding lies in 0 ..
 * length - 1. */
typedef struct taps {
    size_t first, last;
} taps;

static taps taps_inside(size_t at, size_t length, size_t width) {
    size_t padding = (width - 1) / 2;
    taps inside = {at < padding ? padding - at : 0, width};
    if (length + padding < at + width)
        inside.last = length + padding > at ? length + padding - at : 0;
    return inside;
}

static void start_chain(icma_matrix bias, icma_matrix y, size_t row) {
    if (bias.tensor)
        memcpy(icma_row(y, row), icma_row(bias, 0), y.columns * sizeof(float));
    else
        for (size_t o = 0; o < y.columns; o++)
            icma_row(y, row)[o] = 0;
}

static void add_tap(icma_matrix x, size_t row, icma_matrix w, size_t tap, float *y) {
    icma_linear_scalar(icma_row(x, row), x.columns, icma_row(w, tap * x.columns), w.stride, w.columns, y);
}

/* Convolution with a stride, as a chain over taps, then channels. */
static void convolve(icma_conv shape, size_t stride, icma_matrix x, icma_matrix w, icma_matrix bias,
                     icma_matrix y) {
    assert(shape.width % 2 == 1 && w.rows == shape.width * x.columns && w.columns == y.columns &&
           x.rows == stride * y.rows && y.rows % shape.batch == 0);
    size_t length = x.rows / shape.batch, padding = (shape.width - 1) / 2;
    for (size_t row = 0; row < y.rows; row++) {
        size_t sequence = row / (length / stride), at = stride * (row % (length / stride));
        taps inside = taps_inside(at, length, shape.width);
        start_chain(bias, y, row);
        for (size_t t = inside.first; t < inside.last; t++)
            add_tap(x, sequence * length + at + t - padding, w, t, icma_row(y, row));
    }
}

void icma_conv_down_reference(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix y) {
    (void)device;
    convolve(shape, 2, x, w, (icma_matrix){0}, y);
}

void icma_conv_reference(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix bias,
                         icma_matrix y) {
    (void)device;
    convolve(shape, 1, x, w, bias, y);
}

void icma_conv_up_reference(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix bias,
                            icma_matrix y) {
    (void)device;
    assert(shape.width % 2 == 1 && w.rows == shape.width * x.columns && w.columns == y.columns &&
           y.rows == 2 * x.rows && x.rows % shape.batch == 0);
    size_t length = x.rows / shape.batch, padding = (shape.width - 1) / 2;
    for (size_t row = 0; row < y.rows; row++) {
        size_t sequence = row / (2 * length), at = row % (2 * length);
        start_chain(bias, y, row);
        for (size_t t = 0; t < shape.width; t++)
            if (at + padding >= t && (at + padding - t) % 2 == 0 && (at + padding - t) / 2 < length)
                add_tap(x, sequence * length + (at + padding - t) / 2, w, t, icma_row(y, row));
    }
}

void icma_conv_up_training_reference(void *device, icma_conv shape, icma_matrix x, icma_matrix w, icma_matrix y) {
    icma_conv_up_reference(device, shape, x, w, (icma_matrix){0}, y);
}

void icma_turn_weights_reference(void *device, icma_conv shape, icma_matrix w, bool flip, icma_matrix out) {
    (void)device;
    size_t inputs = w.rows / shape.width;
    assert(w.rows == shape.width * inputs && out.rows == shape.width * w.columns && out.columns == inputs);
    for (size_t t = 0; t < shape.width; t++)
        for (size_t i = 0; i < inputs; i++)
            for (size_t o = 0; o < w.columns; o++)
                icma_row(out, (flip ? shape.width - 1 - t : t) * w.columns + o)[i] =
                    icma_row(w, t * inputs + i)[o];
}

size_t icma_conv_scratch(size_t width, size_t inputs, size_t outputs) {
    size_t weights = width * inputs * outputs;
    return weights <= ICMA_CONV_FEW_WEIGHTS ? ICMA_CONV_CHUNKS * weights : weights;
}

/* Sum over positions of x[b, stride p + t - P, i] y[b, p, j]. */
static double weight_gradient(icma_conv shape, size_t stride, icma_matrix x, icma_matrix y, size_t t,
                              size_t i, size_t j) {
    size_t length = y.rows / shape.batch, padding = (shape.width - 1) / 2;
    double sum = 0;
    for (size_t row = 0; row < y.rows; row++) {
        size_t at = stride * (row % length) + t;
        if (at >= padding && at - padding < stride * length)
            sum += (double)icma_row(x, row / length * stride * length + at - padding)[i] *
                   (double)icma_row(y, row)[j];
    }
    return sum;
}

void icma_conv_weights_reference(void *device, icma_conv shape, size_t stride, icma_matrix x, icma_matrix y,
                                 bool turned, icma_tensor *scratch, icma_matrix g) {
    (void)device, (void)scratch;
    assert(x.rows == stride * y.rows && y.rows % shape.batch == 0);
    assert(g.rows == shape.width * (turned ? y.columns : x.columns) &&
           g.columns == (turned ? x.columns : y.columns));
    for (size_t t = 0; t < shape.width; t++)
        for (size_t i = 0; i < x.columns; i++)
            for (size_t j = 0; j < y.columns; j++)
                icma_row(g, turned ? t * y.columns + j : t * x.columns + i)[turned ? i : j] =
                    (float)weight_gradient(shape, stride, x, y, t, i, j);
}

/* n = v / ln 2, rounded to an integer by adding 1.5 * 2^23; r = v - n ln 2 with ln 2 in two parts, the first
 * of 16 bits; exp(v) - 1 = 2^n (exp(r) - 1) + (2^n - 1). */
float icma_elu_scalar(float x) {
    if (x >= 0)
        return x;
    static const float inverse = 0x1.715476p0F, high = 0x1.62e4p-1F, low = 0x1.7f7d1cp-20F, round = 0x1.8p23F;
    static const float term[] = {1.0F / 5040, 1.0F / 720, 1.0F / 120, 1.0F / 24, 1.0F / 6, 1.0F / 2};
    float v = x < -32 ? -32 : x;
    float n = fmaf(v, inverse, round), k = n - round;
    float r = fmaf(k, -low, fmaf(k, -high, v)), p = term[0];
    for (size_t i = 1; i < sizeof term / sizeof *term; i++)
        p = fmaf(p, r, term[i]);
    uint32_t bits, zero;
    memcpy(&bits, &n, sizeof bits);
    memcpy(&zero, &round, sizeof zero);
    bits = (bits - zero + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return fmaf(power, fmaf(r * r, p, r), power - 1);
}

void icma_elu_reference(void *device, icma_matrix x, icma_matrix y) {
    (void)device;
    for (size_t i = 0; i < y.rows; i++)
        for (size_t j = 0; j < y.columns; j++)
            icma_row(y, i)[j] = icma_elu_scalar(icma_row(x, i)[j]);
}

float icma_activate_scalar(icma_activation act, float x) {
    switch (act) {
    case ICMA_ACTIVATION_LEAKY_RELU:
        return x > 0 ? x : 0.01F * x;
    case ICMA_ACTIVATION_ELU:
        return icma_elu_scalar(x);
    default:
        return x;
    }
}

float icma_slope_scalar(icma_activation act, float x) {
    switch (act) {
    case ICMA_ACTIVATION_LEAKY_RELU:
        return x > 0 ? 1 : 0.01F;
    case ICMA_ACTIVATION_ELU:
        return x > 0 ? 1 : icma_elu_scalar(x) + 1;
    default:
        return 1;
    }
}

void icma_activation_backward_reference(void *device, icma_activation act, icma_matrix x, icma_matrix dy,
                                        icma_matrix dx) {
    (void)device;
    for (size_t i = 0; i < x.rows; i++)
        for (size_t j = 0; j < x.columns; j++)
            icma_row(dx, i)[j] = icma_row(dy, i)[j] * icma_slope_scalar(act, icma_row(x, i)[j]);
}

void icma_batch_norm_given_reference(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta,
                                     float epsilon, icma_activation act, icma_matrix mean,
                                     icma_matrix variance, icma_matrix y) {
    (void)device;
    for (size_t j = 0; j < x.columns; j++) {
        float scale = icma_row(gamma, 0)[j] / sqrtf(icma_row(variance, 0)[j] + epsilon);
        for (size_t i = 0; i < x.rows; i++)
            icma_row(y, i)[j] = icma_activate_scalar(
                act, fmaf(icma_row(x, i)[j] - icma_row(mean, 0)[j], scale, icma_row(beta, 0)[j]));
    }
}

void icma_batch_norm_reference(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta,
                               float epsilon, icma_activation act, icma_matrix mean, icma_matrix variance,
                               icma_matrix y) {
    for (size_t j = 0; j < x.columns; j++) {
        double sum = 0, squares = 0;
        for (size_t i = 0; i < x.rows; i++)
            sum += (double)icma_row(x, i)[j];
        double centre = sum / (double)x.rows;
        for (size_t i = 0; i < x.rows; i++)
            squares += ((double)icma_row(x, i)[j] - centre) * ((double)icma_row(x, i)[j] - centre);
        icma_row(mean, 0)[j] = (float)centre;
        icma_row(variance, 0)[j] = (float)(squares / (double)x.rows);
    }
    icma_batch_norm_given_reference(device, x, gamma, beta, epsilon, act, mean, variance, y);
}

/* With u = (x - mean) / deviation and d = dy act'(gamma u + beta): dbeta = sum d, dgamma = sum d u, dx =
 * gamma / deviation (d - dbeta / rows - u dgamma / rows). */
void icma_batch_norm_backward_reference(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta,
                                        float epsilon, icma_activation act, icma_matrix mean,
                                        icma_matrix variance, icma_matrix dy, icma_matrix dgamma,
                                        icma_matrix dbeta, icma_matrix dx) {
    (void)device;
    for (size_t j = 0; j < x.columns; j++) {
        float inverse = 1 / sqrtf(icma_row(variance, 0)[j] + epsilon), centre = icma_row(mean, 0)[j],
              scale = icma_row(gamma, 0)[j] * inverse;
        double sum = 0, product = 0;
        for (size_t i = 0; i < x.rows; i++) {
            float apart = icma_row(x, i)[j] - centre;
            float d = icma_row(dy, i)[j] * icma_slope_scalar(act, fmaf(apart, scale, icma_row(beta, 0)[j]));
            sum += (double)d;
            product += (double)d * (double)(apart * inverse);
        }
        icma_row(dbeta, 0)[j] = (float)sum;
        icma_row(dgamma, 0)[j] = (float)product;
        double rows = (double)x.rows;
        for (size_t i = 0; i < x.rows; i++) {
            float apart = icma_row(x, i)[j] - centre;
            float d = icma_row(dy, i)[j] * icma_slope_scalar(act, fmaf(apart, scale, icma_row(beta, 0)[j]));
            icma_row(dx, i)[j] =
                scale * (float)((double)d - sum / rows - (double)(apart * inverse) * (product / rows));
        }
    }
}

void icma_blend_reference(void *device, float keep, float add, icma_matrix x, icma_matrix y) {
    (void)device;
    for (size_t i = 0; i < y.rows; i++)
        for (size_t j = 0; j < y.columns; j++)
            icma_row(y, i)[j] = keep * icma_row(y, i)[j] + add * icma_row(x, i)[j];
}
