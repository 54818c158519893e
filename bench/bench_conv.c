/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_conv: the convolutional network. Prints Markdown: the rate of each layer and op beside what the
 * processor can do in registers, and the seconds of a whole training step and of a decoder's run.
 *
 *     bench_conv [-t THREADS] [FILE]    FILE: what bench/conv_torch.py printed here, to be set beside our
 * steps
 */
#include "conv_layers.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { CHAINS = 12 };

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
        double start = bench_now();
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : kept)
        for (int t = 0; t < threads; t++)
            kept += spin(TIMES);
        best = fmin(best, bench_now() - start);
    }
    return isfinite(kept) ? 2.0 * CHAINS * lanes * TIMES * threads / best : 0;
}

/* --- the whole network ---------------------------------------------------------------------------------- */

typedef struct whole {
    double forward, backward, adam, step, decode;
} whole;

static double time_decoder(icma_conv_net *net, const icma_ops *ops) {
    icma_conv_decoder decoder;
    icma_conv_engine *engine = NULL;
    icma_matrix y;
    float input[BENCH_LATENT + BENCH_COORDINATES] = {0};
    double best = INFINITY;
    if (icma_conv_fold(net, &decoder, NULL))
        return best;
    if (!icma_conv_engine_create(&decoder, ops, &engine, NULL))
        for (int run = 0; run < 5; run++) {
            double start = bench_now();
            if (icma_conv_engine_run(engine, input, &y, NULL))
                break;
            best = fmin(best, bench_now() - start);
        }
    icma_conv_engine_free(engine);
    icma_conv_decoder_free(&decoder);
    return best;
}

/* The best of several steps, part by part and whole. */
static whole bench_step(const icma_ops *ops, size_t batch, size_t length) {
    icma_rng rng = icma_rng_seed(2);
    icma_conv_shape shape = bench_shape(length);
    icma_conv_net *net;
    icma_error error = {0};
    whole best = {INFINITY, INFINITY, INFINITY, INFINITY, INFINITY};
    if (icma_conv_net_create(ops, shape, batch, &rng, &net, &error)) {
        fprintf(stderr, "bench_conv: %s\n", error.message);
        return best;
    }
    bench_sequences s = bench_sequences_of(ops, &rng, &shape, batch);
    double spent = 0;
    for (uint64_t step = 1; step <= 3 || (spent < 4 && step <= 30); step++) {
        double start = bench_now();
        icma_conv_forward(net, &s.batch, true);
        double forward = bench_now();
        icma_conv_backward(net, &s.batch);
        double backward = bench_now();
        icma_conv_adam(
            net, (icma_adam){
                     .learning_rate = 1e-3F, .beta1 = 0.9F, .beta2 = 0.999F, .epsilon = 1e-8F, .step = step});
        double end = bench_now();
        best.forward = fmin(best.forward, forward - start);
        best.backward = fmin(best.backward, backward - forward);
        best.adam = fmin(best.adam, end - backward);
        best.step = fmin(best.step, end - start);
        spent += end - start;
    }
    best.decode = time_decoder(net, ops);
    icma_conv_net_free(net);
    bench_sequences_free(ops, &s);
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
    icma_conv_shape shape = bench_shape(length);
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
    bench_conv_layers(ops, peak, "the multiply-adds in registers", 1, 2, 36864);
    bench_conv_layers(ops, peak, "the multiply-adds in registers", 1, 2, 241664);
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
