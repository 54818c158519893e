/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_conv: the convolutional network. Prints Markdown: the rate of each layer and op beside what the
 * processor can do in registers, and the seconds of a whole training step and of a decoder's run.
 *
 *     bench_conv [-t THREADS] [FILE]    FILE: what bench/conv_torch.py printed here, to be set beside our
 * steps
 */
#include "conv_net.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { LAYERS = 12, WIDTH = 7, HIDDEN = 256, LATENT = 64, COORDINATES = 16, CHAINS = 12 };
static const size_t channels[LAYERS] = {8, 16, 32, 64, 128, 256, 256, 128, 64, 32, 16, 8};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* --- what there is to reach ----------------------------------------------------------------------------- */

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static float spin_avx512(size_t times) {
    __m512 sum[CHAINS], total = _mm512_setzero_ps();
    float lanes[16];
    for (int k = 0; k < CHAINS; k++)
        sum[k] = _mm512_set1_ps((float)k);
    for (size_t i = 0; i < times; i++)
        for (int k = 0; k < CHAINS; k++)
            sum[k] = _mm512_fmadd_ps(sum[k], _mm512_set1_ps(0.999F), _mm512_set1_ps(0.1F));
    for (int k = 0; k < CHAINS; k++)
        total = _mm512_add_ps(total, sum[k]);
    _mm512_storeu_ps(lanes, total);
    return lanes[0];
}

__attribute__((target("avx2,fma"))) static float spin_avx2(size_t times) {
    __m256 sum[CHAINS], total = _mm256_setzero_ps();
    float lanes[8];
    for (int k = 0; k < CHAINS; k++)
        sum[k] = _mm256_set1_ps((float)k);
    for (size_t i = 0; i < times; i++)
        for (int k = 0; k < CHAINS; k++)
            sum[k] = _mm256_fmadd_ps(sum[k], _mm256_set1_ps(0.999F), _mm256_set1_ps(0.1F));
    for (int k = 0; k < CHAINS; k++)
        total = _mm256_add_ps(total, sum[k]);
    _mm256_storeu_ps(lanes, total);
    return lanes[0];
}
#endif

static float spin_plain(size_t times) {
    float sum[CHAINS] = {0}, total = 0;
    for (size_t i = 0; i < times; i++)
        for (int k = 0; k < CHAINS; k++)
            sum[k] = fmaf(sum[k], 0.999F, 0.1F);
    for (int k = 0; k < CHAINS; k++)
        total += sum[k];
    return total;
}

/* Floating-point operations a second of multiply-adds that never leave registers, on all threads. */
static double peak_rate(void) {
    enum { TIMES = 4000000 };
    float (*spin)(size_t) = spin_plain;
    double lanes = 1, best = INFINITY;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        spin = spin_avx512;
        lanes = 16;
    } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        spin = spin_avx2;
        lanes = 8;
    }
#endif
    float kept = 0;
    int threads = icma_threads();
    for (int run = 0; run < 5; run++) {
        double start = now();
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : kept)
        for (int t = 0; t < threads; t++)
            kept += spin(TIMES);
        best = fmin(best, now() - start);
    }
    return isfinite(kept) ? 2.0 * CHAINS * lanes * TIMES * threads / best : 0;
}

/* --- layers --------------------------------------------------------------------------------------------- */

typedef struct lab {
    const icma_ops *ops;
    icma_rng rng;
    double peak;
    size_t batch, length;
    icma_tensor *x, *y, *dx, *w, *turned, *g, *scratch, *factors;
} lab;

static icma_tensor *numbers(lab *l, size_t count) {
    icma_tensor *tensor;
    float *values = malloc(count * sizeof *values);
    if (!values || l->ops->alloc(l->ops->device, ICMA_ELEMENT_F32, count, &tensor, NULL))
        exit(1);
    for (size_t i = 0; i < count; i++)
        values[i] = icma_rng_normal(&l->rng);
    l->ops->upload(l->ops->device, tensor, 0, values, count, NULL);
    free(values);
    return tensor;
}

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
        ops->conv_up(ops->device, shape, x, w, none, y);
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

static double seconds(lab *l, job what, icma_activation act, size_t rows, size_t inputs, size_t outputs) {
    double best = INFINITY, spent = 0;
    for (int run = 0; run < 3 || (spent < 0.15 && run < 50); run++) {
        double start = now();
        run_job(l, what, act, rows, inputs, outputs);
        double took = now() - start;
        best = fmin(best, took);
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

static void bench_layers(const icma_ops *ops, double peak, size_t batch, size_t length) {
    lab l = {.ops = ops, .rng = icma_rng_seed(1), .peak = peak, .batch = batch, .length = length};
    size_t most = 8 * batch * length, rows = batch * length, inputs = 1;
    l.x = numbers(&l, most);
    l.y = numbers(&l, most);
    l.dx = numbers(&l, most);
    l.w = numbers(&l, WIDTH * 256 * 256);
    l.turned = numbers(&l, WIDTH * 256 * 256);
    l.g = numbers(&l, WIDTH * 256 * 256);
    l.scratch = numbers(&l, icma_conv_scratch(WIDTH, 256, 256));
    l.factors = numbers(&l, 6 * 256);
    double total = 0;
    printf("\n### Batch %zu, length %zu\n\nEach op: milliseconds, GFLOP/s, share of the multiply-adds in "
           "registers.\n\n",
           batch, length);
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

/* --- the whole network ---------------------------------------------------------------------------------- */

typedef struct whole {
    double forward, backward, adam, step, decode;
} whole;

static icma_conv_shape shape_of(size_t length) {
    icma_conv_shape shape = {.used = length,
                             .length = length,
                             .layers = LAYERS,
                             .width = WIDTH,
                             .hidden = HIDDEN,
                             .latent = LATENT,
                             .coordinates = COORDINATES};
    memcpy(shape.channels, channels, sizeof channels);
    return shape;
}

static double time_decoder(icma_conv_net *net, const icma_ops *ops) {
    icma_conv_decoder decoder;
    icma_conv_engine *engine = NULL;
    icma_matrix y;
    float input[LATENT + COORDINATES] = {0};
    double best = INFINITY;
    if (icma_conv_fold(net, &decoder, NULL))
        return best;
    if (!icma_conv_engine_create(&decoder, ops, &engine, NULL))
        for (int run = 0; run < 5; run++) {
            double start = now();
            if (icma_conv_engine_run(engine, input, &y, NULL))
                break;
            best = fmin(best, now() - start);
        }
    icma_conv_engine_free(engine);
    icma_conv_decoder_free(&decoder);
    return best;
}

/* The best of several steps, part by part and whole. */
static whole bench_step(const icma_ops *ops, size_t batch, size_t length) {
    lab l = {.ops = ops, .rng = icma_rng_seed(2)};
    icma_conv_net *net;
    icma_error error = {0};
    whole best = {INFINITY, INFINITY, INFINITY, INFINITY, INFINITY};
    if (icma_conv_net_create(ops, shape_of(length), batch, &l.rng, &net, &error)) {
        fprintf(stderr, "bench_conv: %s\n", error.message);
        return best;
    }
    icma_tensor *x = numbers(&l, batch * length), *a = numbers(&l, batch * COORDINATES),
                *noise = numbers(&l, batch * LATENT);
    const icma_conv_batch b = {batch,
                               icma_matrix_of(x, batch * length, 1),
                               icma_matrix_of(a, batch, COORDINATES),
                               icma_matrix_of(noise, batch, LATENT),
                               1e-3F,
                               0};
    double spent = 0;
    for (uint64_t step = 1; step <= 3 || (spent < 4 && step <= 30); step++) {
        double start = now();
        icma_conv_forward(net, &b, true);
        double forward = now();
        icma_conv_backward(net, &b);
        double backward = now();
        icma_conv_adam(
            net, (icma_adam){
                     .learning_rate = 1e-3F, .beta1 = 0.9F, .beta2 = 0.999F, .epsilon = 1e-8F, .step = step});
        double end = now();
        best.forward = fmin(best.forward, forward - start);
        best.backward = fmin(best.backward, backward - forward);
        best.adam = fmin(best.adam, end - backward);
        best.step = fmin(best.step, end - start);
        spent += end - start;
    }
    best.decode = time_decoder(net, ops);
    icma_conv_net_free(net);
    ops->release(ops->device, x);
    ops->release(ops->device, a);
    ops->release(ops->device, noise);
    return best;
}

/* Seconds of a step in conv_torch.py's output; negative where it has none. */
static double peer_seconds(FILE *peer, size_t batch, size_t length) {
    char line[256];
    size_t b, n;
    double took;
    if (!peer)
        return -1;
    rewind(peer);
    while (fgets(line, sizeof line, peer))
        if (sscanf(line, "%zu %zu %lf", &b, &n, &took) == 3 && b == batch && n == length)
            return took;
    return -1;
}

static void bench_whole(const icma_ops *ops, double peak, size_t batch, size_t length, FILE *peer) {
    whole w = bench_step(ops, batch, length);
    icma_conv_shape shape = shape_of(length);
    double operations = 6 * (double)batch * icma_conv_work(&shape), other = peer_seconds(peer, batch, length);
    printf("| %zu | %zu | %.1f | %.1f | %.1f | %.1f | %.1f | %.0f %% |", batch, length, 1e3 * w.forward,
           1e3 * w.backward, 1e3 * w.adam, 1e3 * w.step, 1e-9 * operations / w.step,
           100 * operations / w.step / peak);
    if (other > 0)
        printf(" %.1f | %.1f | %.2f |", 1e3 * other, 1e-9 * operations / other, other / w.step);
    else
        printf(" | | |");
    printf(" %.1f | %.1f |\n", 1e3 * w.decode, 1e-6 * (double)length / w.decode);
    fflush(stdout);
}

int main(int count, char **arguments) {
    static const size_t cases[][2] = {{2, 36864}, {8, 36864}, {2, 241664}, {2, 1933312}};
    FILE *peer = NULL;
    for (int k = 1; k < count; k++)
        if (strcmp(arguments[k], "-t") == 0 && k + 1 < count)
            icma_set_threads(atoi(arguments[++k]));
        else if (!(peer = fopen(arguments[k], "r")))
            return perror(arguments[k]), 1;
    const icma_ops *ops = icma_ops_cpu();
    double peak = peak_rate();
    printf("%d threads; multiply-adds in registers: %.1f GFLOP/s.\n", icma_threads(), 1e-9 * peak);
    bench_layers(ops, peak, 2, 36864);
    bench_layers(ops, peak, 2, 241664);
    printf("\n### Training steps and decoding\n\nMilliseconds; the peer is PyTorch (bench/conv_torch.py) on "
           "the same machine. Decoding: one run of the decoder, million weights a second.\n\n");
    printf("| batch | length | forward | backward | Adam | step | GFLOP/s | of peak | peer's step | GFLOP/s "
           "| times ours | decoding | M/s |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++)
        bench_whole(ops, peak, cases[k][0], cases[k][1], peer);
    if (peer)
        fclose(peer);
    return 0;
}
