/* SPDX-License-Identifier: Apache-2.0 */
/* bench_rans: symbols that each entropy decoder decodes a second, 4 bytes each, and the coded size against
 * the ideal. Prints Markdown. */
#include "rans_host.h"
#include "rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds of one decode, best of several; negative if it went wrong. */
static double decode_seconds(const icma_rans_decoder *decoder, const icma_buffer *coded, icma_rans_run run,
                             const int32_t *symbols, int32_t *back) {
    double best = INFINITY;
    int times = run.count < 100000 ? 200 : 20;
    for (int i = 0; i < times; i++) {
        double start = now();
        if (icma_rans_decode_with(decoder, coded->data, coded->size, &run, 1, back, NULL))
            return -1;
        best = fmin(best, now() - start);
    }
    return memcmp(symbols, back, run.count * sizeof *back) ? -1 : best;
}

static int bench(size_t count, double spread, int32_t *symbols, int32_t *back) {
    icma_rng rng = icma_rng_seed(1);
    for (size_t i = 0; i < count; i++)
        symbols[i] = (int32_t)lround(spread * icma_rng_normal(&rng));
    icma_rans_run run = {.count = count};
    double bits, start = now();
    run.context = icma_rans_best_context(symbols, count, &bits);
    double choosing = now() - start;
    icma_buffer coded = {0};
    start = now();
    if (icma_rans_encode(symbols, &run, 1, &coded, NULL))
        return 1;
    double encoding = now() - start;
    icma_rans_decoder list[ICMA_RANS_DECODERS];
    size_t decoders = icma_rans_decoders_all(list);
    printf("| %g | %zu | %.4f | %.3f | %.0f | %.0f |", spread, count, 8 * (double)coded.size / (double)count,
           100 * (8 * (double)coded.size / bits - 1), 4e-6 * (double)count / choosing,
           4e-6 * (double)count / encoding);
    for (size_t d = 0; d < ICMA_RANS_DECODERS; d++)
        if (d < decoders)
            printf(" %.0f |", 4e-6 * (double)count / decode_seconds(&list[d], &coded, run, symbols, back));
        else
            printf(" |");
    printf("\n");
    icma_buffer_free(&coded);
    return 0;
}

int main(void) {
    const double spreads[] = {0.05, 0.3, 1, 4, 16, 200};
    const size_t counts[] = {4096, 65536, 4000000};
    int32_t *symbols = malloc(4000000 * sizeof *symbols), *back = malloc(4000000 * sizeof *back);
    int failed = !symbols || !back;
    printf("| spread | symbols | bits/symbol | %% over cost | choose MB/s | encode MB/s | scalar MB/s | avx2 "
           "| avx512 |\n"
           "|---|---|---|---|---|---|---|---|---|\n");
    for (size_t c = 0; !failed && c < sizeof counts / sizeof *counts; c++)
        for (size_t s = 0; !failed && s < sizeof spreads / sizeof *spreads; s++)
            failed = bench(counts[c], spreads[s], symbols, back);
    free(symbols);
    free(back);
    return failed;
}
