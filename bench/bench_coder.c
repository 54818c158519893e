/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_coder: the entropy coder and the trellis on Gaussian numbers, by rate. Prints Markdown: coded size against the cross-entropy of the symbols under their own table, symbols
 * decoded a second by each decoder, and how far quantiser and coder together are from the rate-distortion function 1/2 log2(variance / error), beside plain rounding with the same coder.
 */
#include "rans_host.h"
#include "rng.h"
#include "trellis.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST = 1 << 22 };

typedef struct lab {
    float *normal, *values;
    int32_t *symbols, *back;
    uint8_t scratch[ICMA_TRELLIS_SCRATCH];
} lab;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Symbols a second of one decoder, best of several runs; negative if it went wrong. */
static double decode_rate(const icma_rans_decoder *decoder, const icma_buffer *coded, icma_rans_run run, const lab *l) {
    double best = INFINITY;
    int times = run.count < 100000 ? 200 : 10;
    for (int i = 0; i < times; i++) {
        double start = now();
        if (icma_rans_decode_with(decoder, coded->data, coded->size, &run, 1, l->back, NULL))
            return -1;
        best = fmin(best, now() - start);
    }
    return memcmp(l->symbols, l->back, run.count * sizeof *l->back) ? -1 : (double)run.count / best;
}

static void round_to_symbols(lab *l, size_t count, double spread) {
    for (size_t i = 0; i < count; i++)
        l->symbols[i] = (int32_t)lround(spread * (double)l->normal[i]);
}

static int bench_coder(lab *l, size_t count, double spread) {
    round_to_symbols(l, count, spread);
    icma_rans_run run = {.count = count};
    double bits;
    run.context = icma_rans_best_context(l->symbols, count, &bits);
    icma_buffer coded = {0};
    if (icma_rans_encode(l->symbols, &run, 1, &coded, NULL))
        return 1;
    icma_rans_decoder list[ICMA_RANS_DECODERS];
    size_t decoders = icma_rans_decoders_all(list);
    printf("| %.2f | %zu | %.2f |", bits / (double)count, count, 100 * (8 * (double)coded.size / bits - 1));
    for (size_t d = 0; d < ICMA_RANS_DECODERS; d++)
        if (d < decoders)
            printf(" %.0f |", 1e-6 * decode_rate(&list[d], &coded, run, l));
        else
            printf(" |");
    printf("\n");
    icma_buffer_free(&coded);
    return 0;
}

static double squared_error(const lab *l, size_t count, const int32_t *integers, double step) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        double error = (double)l->normal[i] - step * (double)integers[i];
        sum += error * error;
    }
    return sum / (double)count;
}

/* Bits over the rate-distortion function. */
static double gap(double bits, double error) {
    return bits - 0.5 * log2(1 / error);
}

static void bench_trellis(lab *l, size_t count, double step) {
    double bits, rounded;
    for (size_t i = 0; i < count; i++)
        l->values[i] = (float)((double)l->normal[i] / step);
    double start = now();
    unsigned context = icma_trellis_quantise(l->values, count, 1, l->symbols, l->scratch, &bits);
    double quantising = now() - start;
    memcpy(l->back, l->symbols, count * sizeof *l->back);
    start = now();
    icma_trellis_expand(context, l->back, count);
    double expanding = now() - start, error = squared_error(l, count, l->back, step);
    double coarser = step * exp2(ICMA_TRELLIS_OCTAVES);
    round_to_symbols(l, count, 1 / coarser);
    icma_rans_best_context(l->symbols, count, &rounded);
    double rounding = squared_error(l, count, l->symbols, coarser);
    printf("| %.2f | %s | %.3f | %.3f | %.0f | %.0f |\n", bits / (double)count, context >= ICMA_TRELLIS_CONTEXT ? "trellis" : "rounding",
           gap(bits / (double)count, error), gap(rounded / (double)count, rounding), 1e-6 * (double)count / quantising, 1e-6 * (double)count / expanding);
}

int main(void) {
    static lab l;
    l.normal = malloc(MOST * sizeof *l.normal);
    l.values = malloc(MOST * sizeof *l.values);
    l.symbols = malloc(MOST * sizeof *l.symbols);
    l.back = malloc(MOST * sizeof *l.back);
    if (!l.normal || !l.values || !l.symbols || !l.back)
        return 1;
    icma_rng rng = icma_rng_seed(1);
    for (size_t i = 0; i < MOST; i++)
        l.normal[i] = icma_rng_normal(&rng);
    const double spreads[] = {0.165, 0.3, 0.48, 1, 2, 3.9, 15.5};
    const size_t counts[] = {1 << 16, 1 << 20, MOST};
    int failed = 0;
    printf("Entropy coder, one thread, million symbols a second.\n\n| bits a symbol | symbols | %% over cross-entropy | scalar | AVX2 | AVX-512 |\n|--:|--:|--:|--:|--:|--:|\n");
    for (size_t c = 0; !failed && c < sizeof counts / sizeof *counts; c++)
        for (size_t s = 0; !failed && s < sizeof spreads / sizeof *spreads; s++)
            failed = bench_coder(&l, counts[c], spreads[s]);
    printf("\nQuantiser, 2^20 Gaussian numbers: bits over the rate-distortion function at the same error, million numbers a second.\n\n"
           "| bits a weight | by | gap | gap of plain rounding | quantised/s | expanded/s |\n|--:|---|--:|--:|--:|--:|\n");
    for (double step = 1.6; step > 0.02; step *= 0.7)
        bench_trellis(&l, 1 << 20, step);
    free(l.normal);
    free(l.values);
    free(l.symbols);
    free(l.back);
    return failed;
}
