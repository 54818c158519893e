/* SPDX-License-Identifier: Apache-2.0 */
#include "conv_layers.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LAYERS = 12, WIDTH = 7, HIDDEN = 256 };
static const size_t channels[LAYERS] = {8, 16, 32, 64, 128, 256, 256, 128, 64, 32, 16, 8};

double bench_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

icma_conv_shape bench_shape(size_t used) {
    icma_conv_shape shape = {.used = used,
                             .length = icma_conv_padded(used, LAYERS),
                             .layers = LAYERS,
                             .width = WIDTH,
                             .hidden = HIDDEN,
                             .latent = BENCH_LATENT,
                             .coordinates = BENCH_COORDINATES};
    memcpy(shape.channels, channels, sizeof channels);
    return shape;
}

icma_tensor *bench_numbers(const icma_ops *ops, icma_rng *rng, size_t count) {
    icma_tensor *tensor;
    icma_error error = {0};
    float *values = malloc(count * sizeof *values);
    icma_status status =
        values ? ops->alloc(ops->device, ICMA_ELEMENT_F32, count, &tensor, &error) : ICMA_E_MEMORY;
    for (size_t i = 0; !status && i < count; i++)
        values[i] = icma_rng_normal(rng);
    if (!status)
        status = ops->upload(ops->device, tensor, 0, values, count, &error);
    free(values);
    if (status) {
        fprintf(stderr, "no memory for %zu numbers: %s\n", count, error.message);
        exit(1);
    }
    return tensor;
}

bench_sequences bench_sequences_of(const icma_ops *ops, icma_rng *rng, const icma_conv_shape *shape,
                                   size_t batch) {
    bench_sequences s = {.x = bench_numbers(ops, rng, batch * shape->length),
                         .a = bench_numbers(ops, rng, batch * BENCH_COORDINATES),
                         .noise = bench_numbers(ops, rng, batch * BENCH_LATENT)};
    s.batch = (icma_conv_batch){batch,
                                icma_matrix_of(s.x, batch * shape->length, 1),
                                icma_matrix_of(s.a, batch, BENCH_COORDINATES),
                                icma_matrix_of(s.noise, batch, BENCH_LATENT),
                                1e-3F,
                                0};
    size_t padding = shape->length - shape->used;
    for (size_t b = 0; padding && b < batch; b++)
        ops->fill(ops->device, 0, (icma_matrix){s.x, b * shape->length + shape->used, padding, 1, 1});
    return s;
}

void bench_sequences_free(const icma_ops *ops, bench_sequences *s) {
    ops->release(ops->device, s->x);
    ops->release(ops->device, s->a);
    ops->release(ops->device, s->noise);
}

/* --- layers --------------------------------------------------------------------------------------------- */

typedef struct lab {
    const icma_ops *ops;
    icma_rng rng;
    double peak;
    size_t batch, length, repetitions;
    icma_tensor *x, *y, *dx, *w, *turned, *g, *scratch, *factors;
} lab;

typedef enum job { DOWN, UP, SAME, DOWN_WEIGHTS, UP_WEIGHTS, SAME_WEIGHTS, NORM, NORM_BACKWARD, TURN } job;

/* x has `rows` rows of `inputs` channels; y twice, half, or as many of `outputs`. */
static void run_job(lab *l, job what, icma_activation act, size_t rows, size_t inputs, size_t outputs) {
    const icma_conv shape = {l->batch, WIDTH};
    size_t rows_y = what == UP || what == UP_WEIGHTS       ? 2 * rows
                    : what == DOWN || what == DOWN_WEIGHTS ? rows / 2
                                                           : rows;
    icma_matrix x = icma_matrix_of(l->x, rows, inputs), y = icma_matrix_of(l->y, rows_y, outputs),
                w = icma_matrix_of(l->w, WIDTH * inputs, outputs),
                g = icma_matrix_of(l->g, WIDTH * inputs, outputs), none = {0};
    icma_matrix wide = icma_matrix_of(l->y, rows, inputs), back = icma_matrix_of(l->dx, rows, inputs), row[6];
    for (size_t k = 0; k < 6; k++)
        row[k] = (icma_matrix){l->factors, 256 * k, 1, inputs, inputs};
    const icma_ops *ops = l->ops;
    switch (what) {
    case DOWN:
        ops->conv_down(ops->device, shape, x, w, y);
        break;
    case UP:
        ops->conv_up_training(ops->device, shape, x, w, y);
        break;
    case SAME:
        ops->conv(ops->device, shape, x, w, none, y);
        break;
    case DOWN_WEIGHTS:
        ops->conv_weights(ops->device, shape, 2, x, y, false, l->scratch, g);
        break;
    case UP_WEIGHTS:
        ops->conv_weights(ops->device, shape, 2, y, x, true, l->scratch, g);
        break;
    case SAME_WEIGHTS:
        ops->conv_weights(ops->device, shape, 1, x, y, false, l->scratch, g);
        break;
    case NORM:
        ops->batch_norm(ops->device, x, row[0], row[1], 1e-5F, act, row[2], row[3], wide);
        break;
    case NORM_BACKWARD:
        ops->batch_norm_backward(ops->device, x, row[0], row[1], 1e-5F, act, row[2], row[3], wide, row[4],
                                 row[5], back);
        break;
    case TURN:
        ops->turn_weights(ops->device, shape, w, false, icma_matrix_of(l->turned, WIDTH * outputs, inputs));
        break;
    }
}

static void wait_for_device(lab *l) {
    float one;
    icma_error error = {0};
    if (l->ops->download(l->ops->device, l->w, 0, &one, 1, &error)) {
        fprintf(stderr, "%s: %s\n", l->ops->name, error.message);
        exit(1);
    }
}

static double seconds(lab *l, job what, icma_activation act, size_t rows, size_t inputs, size_t outputs) {
    double best = INFINITY, spent = 0;
    for (int run = 0; run < 3 || (spent < 0.15 && run < 50); run++) {
        double start = bench_now();
        for (size_t k = 0; k < l->repetitions; k++)
            run_job(l, what, act, rows, inputs, outputs);
        wait_for_device(l);
        double took = bench_now() - start;
        best = fmin(best, took / (double)l->repetitions);
        spent += took;
    }
    return best;
}

static void print_rate(const lab *l, double operations, double took) {
    printf(" %.2f | %.1f | %.0f %% |", 1e3 * took, 1e-9 * operations / took,
           100 * operations / took / l->peak);
}

/* One layer: forward, backward to its input, backward to its weights, and the batch norm behind it. */
static double bench_layer(lab *l, const char *name, job forward, icma_activation act, size_t rows,
                          size_t inputs, size_t outputs) {
    bool up = forward == UP, same = forward == SAME, first = forward == DOWN && inputs == 1;
    size_t out_rows = up ? 2 * rows : same ? rows : rows / 2;
    double operations = 2.0 * (double)(WIDTH * inputs * outputs) * (double)(up ? rows : out_rows), total,
           took;
    printf("| %s %zu -> %zu | %zu |", name, inputs, outputs, out_rows / l->batch);
    total = took = seconds(l, forward, act, rows, inputs, outputs);
    print_rate(l, operations, took);
    if (first) {
        printf(" | | |");
    } else {
        took = seconds(l, same ? SAME : up ? DOWN : UP, act, out_rows, outputs, inputs);
        print_rate(l, operations, took);
        total += took;
    }
    took = seconds(l, same ? SAME_WEIGHTS : up ? UP_WEIGHTS : DOWN_WEIGHTS, act, rows, inputs, outputs);
    print_rate(l, operations, took);
    total += took;
    if (same) {
        printf(" | | |\n");
        return total;
    }
    double norm = seconds(l, NORM, act, out_rows, outputs, outputs),
           back = seconds(l, NORM_BACKWARD, act, out_rows, outputs, outputs),
           turn = first ? 0 : seconds(l, TURN, act, out_rows, inputs, outputs);
    printf(" %.2f | %.2f | %.2f |\n", 1e3 * norm, 1e3 * back, 1e3 * turn);
    return total + norm + back + turn;
}

void bench_conv_layers(const icma_ops *ops, double peak, const char *of, size_t repetitions, size_t batch,
                       size_t length) {
    lab l = {.ops = ops,
             .rng = icma_rng_seed(1),
             .peak = peak,
             .batch = batch,
             .length = length,
             .repetitions = repetitions};
    size_t most = 8 * batch * length, rows = batch * length, inputs = 1;
    l.x = bench_numbers(ops, &l.rng, most);
    l.y = bench_numbers(ops, &l.rng, most);
    l.dx = bench_numbers(ops, &l.rng, most);
    l.w = bench_numbers(ops, &l.rng, WIDTH * 256 * 256);
    l.turned = bench_numbers(ops, &l.rng, WIDTH * 256 * 256);
    l.g = bench_numbers(ops, &l.rng, WIDTH * 256 * 256);
    l.scratch = bench_numbers(ops, &l.rng, icma_conv_scratch(WIDTH, 256, 256));
    l.factors = bench_numbers(ops, &l.rng, 6 * 256);
    double total = 0;
    printf("\n### Batch %zu, length %zu\n\nEach op: milliseconds, GFLOP/s, share of %s.\n\n", batch, length,
           of);
    printf("| layer | positions | forward | | | to the input | | | to the weights | | | norm | norm backward "
           "| turned |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for (size_t k = 0; k < LAYERS; k++, rows /= 2) {
        total += bench_layer(&l, "conv_down", DOWN, ICMA_ACTIVATION_LEAKY_RELU, rows, inputs, channels[k]);
        inputs = channels[k];
    }
    for (size_t k = 0; k < LAYERS; k++, rows *= 2) {
        size_t outputs = channels[k + 1 < LAYERS ? LAYERS - 2 - k : 0];
        total += bench_layer(&l, "conv_up", UP, ICMA_ACTIVATION_ELU, rows, inputs, outputs);
        inputs = outputs;
    }
    total += bench_layer(&l, "conv", SAME, ICMA_ACTIVATION_NONE, rows, inputs, 1);
    printf("\nAll of them together: %.1f ms.\n", 1e3 * total);
    icma_tensor *all[] = {l.x, l.y, l.dx, l.w, l.turned, l.g, l.scratch, l.factors};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
        ops->release(ops->device, all[k]);
}
