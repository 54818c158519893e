/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Embeds texts for bench/embed, which sets it beside transformers: bench_embed FOLDER THREADS. Each request
 * on standard input is a line with a number N and N lines, a text each; the answer is a line with the seconds
 * that embedding them took. "floor N" measures the matrix products of N rows through CLIP ViT-B/32's layer,
 * and answers with their seconds for an operation.
 */
#include "bytes.h"
#include "memory.h"
#include "text_encoder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double clock_of(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Seconds that passed, and seconds of processors. */
typedef struct stopwatch {
    double wall, processor;
} stopwatch;

static stopwatch start(void) {
    return (stopwatch){clock_of(CLOCK_MONOTONIC), clock_of(CLOCK_PROCESS_CPUTIME_ID)};
}

static stopwatch stop(stopwatch since) {
    return (stopwatch){clock_of(CLOCK_MONOTONIC) - since.wall,
                       clock_of(CLOCK_PROCESS_CPUTIME_ID) - since.processor};
}

/* The next line without its end; NULL: there is none. */
static char *take_line(void) {
    icma_buffer line = {0};
    int c;
    while ((c = getchar()) != EOF && c != '\n')
        icma_write_u8(&line, (uint8_t)c);
    if (c == EOF)
        icma_buffer_free(&line);
    else
        icma_write_u8(&line, 0);
    return (char *)line.data;
}

static icma_status answer(icma_text_encoder *encoder, size_t count, icma_error *error) {
    char **texts = icma_alloc_zeroed(count, sizeof *texts);
    float *out = icma_alloc_array(count, icma_text_encoder_width(encoder, false) * sizeof *out);
    icma_status status =
        texts && out ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for texts");
    for (size_t i = 0; !status && i < count; i++)
        if (!(texts[i] = take_line()))
            status = icma_fail(error, ICMA_E_IO, NULL, "fewer texts than were announced");
    stopwatch watch = start();
    if (!status)
        status = icma_text_encoder_embed(encoder, (const char *const *)texts, count, false, out, error);
    watch = stop(watch);
    if (!status)
        printf("%.9f %.9f\n", watch.wall, watch.processor);
    for (size_t i = 0; texts && i < count; i++)
        icma_free(texts[i]);
    icma_free(texts);
    icma_free(out);
    return status;
}

static icma_status measure_floor(const icma_ops *ops, size_t rows, icma_error *error) {
    static const struct {
        size_t outputs, inputs;
    } products[] = {{1536, 512}, {512, 512}, {2048, 512}, {512, 2048}};
    enum { MOST = 2048 };
    icma_tensor *x, *y, *w;
    double operations = 0;
    icma_status status = ops->alloc(ops->device, ICMA_ELEMENT_F32, rows * MOST, &x, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, rows * MOST, &y, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, (size_t)4 * MOST * 512, &w, error);
    if (status)
        return status;
    stopwatch watch = start();
    for (size_t p = 0; p < 4; p++) {
        icma_matrix weights = {.tensor = w,
                               .offset = p * MOST * 512,
                               .rows = products[p].outputs,
                               .columns = products[p].inputs,
                               .stride = products[p].inputs};
        ops->gemm(ops->device, 1, icma_matrix_of(x, rows, products[p].inputs), false, weights, true, 0,
                  icma_matrix_of(y, rows, products[p].outputs));
        operations += 2 * (double)rows * (double)products[p].outputs * (double)products[p].inputs;
    }
    watch = stop(watch);
    printf("%.6g %.6g\n", watch.wall / operations, watch.processor / operations);
    ops->release(ops->device, x);
    ops->release(ops->device, y);
    ops->release(ops->device, w);
    return ICMA_OK;
}

int main(int argc, char **argv) {
    icma_error error = {0};
    icma_text_encoder *encoder = NULL;
    icma_set_threads(argc == 3 ? atoi(argv[2]) : 1);
    icma_status status = argc == 3 ? icma_text_encoder_open(argv[1], icma_ops_cpu(), &encoder, &error)
                                   : icma_fail(&error, ICMA_E_USAGE, NULL, "bench_embed FOLDER THREADS");
    char *line = NULL;
    while (!status && (line = take_line())) {
        if (strncmp(line, "floor ", 6) == 0)
            status = measure_floor(icma_ops_cpu(), strtoul(line + 6, NULL, 10), &error);
        else
            status = answer(encoder, strtoul(line, NULL, 10), &error);
        fflush(stdout);
        icma_free(line);
    }
    icma_text_encoder_close(encoder);
    if (status)
        fprintf(stderr, "bench_embed: %s\n", error.message);
    return icma_status_exit_code(status);
}
