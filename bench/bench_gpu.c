/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_gpu: training steps, layers and decoding on a device, for scripts/gpu-check, which sets them beside
 * the card's own rates and PyTorch's.
 *
 *     bench_gpu train [--used N] [--steps N] [--precision KIND]... [--batch N]...    lines
 * "icma.step.PRECISION.BATCH.ms MILLISECONDS", the median, and ".gflop", what a step takes; or ".failed
 * REASON" bench_gpu layers --peak GFLOPS [--used N] [--repetitions N] [--precision KIND] one step's ops,
 * layer by layer, as Markdown, batch 2 bench_gpu decode --name NAME [--most N] [--passes N] BUNDLE lines
 * "decode.NAME.DEVICE.WHAT NUMBER": the seconds of a pass (the least of several) over the first N checkpoints
 * of every task (all), its bytes of output, and the bytes that it must move through memory at least
 *
 *     bench_gpu kernels [--repetitions N]                                           lines "kernel.WHAT.ms
 * MILLISECONDS" and ".moved BYTES": an adapter of 42 M weights in 448 tensors put together in device memory,
 *                                                                                   from so many rows of a
 * basis, with and without a residual; and its residual's streams, with ".symbols", uploaded and decoded
 *
 * --device NAME (cuda; cpu), --threads N. A GPU is not done when an op returns: every time ends with a
 * download, which waits.
 */
#include "conv_layers.h"
#include "device.h"
#include "icma.h"
#include "ops.h"
#include "rans.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_CHOICES = 8, WARM_UP = 3 };

typedef struct wishes {
    const char *verb, *device, *name, *bundle;
    const char *precisions[MOST_CHOICES];
    size_t batches[MOST_CHOICES], precision_count, batch_count;
    size_t used, steps, repetitions, most, passes;
    double peak;
} wishes;

static int fail(const char *what, const icma_error *error) {
    fprintf(stderr, "bench_gpu: %s: %s\n", what, error->message);
    return 1;
}

static icma_status open_device(const wishes *w, const char *precision, const icma_ops **ops,
                               icma_error *error) {
    icma_precision kind;
    icma_status status = icma_precision_from_name(precision, &kind, error);
    return status ? status : icma_device_open(w->device, kind, (icma_device_work){0}, ops, error);
}

/* Until everything that was asked of the device is done, or has failed. */
static icma_status wait_for(const icma_ops *ops, const icma_tensor *any, icma_error *error) {
    float number;
    return ops->download(ops->device, any, 0, &number, 1, error);
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *list, size_t count) {
    qsort(list, count, sizeof *list, by_size);
    return count % 2 ? list[count / 2] : (list[count / 2 - 1] + list[count / 2]) / 2;
}

/* --- training ---------------------------------------------------------------------------------------------
 */

typedef struct trainee {
    const icma_ops *ops;
    icma_conv_net *net;
    bench_sequences sequences;
    double losses[2];
    uint64_t step;
} trainee;

static icma_status train_once(trainee *t, double *seconds, icma_error *error) {
    double start = bench_now();
    t->step++;
    icma_status status = icma_conv_step(t->net, &t->sequences.batch, t->losses, error);
    if (!status) {
        icma_conv_adam(
            t->net,
            (icma_adam){
                .learning_rate = 1e-3F, .beta1 = 0.9F, .beta2 = 0.999F, .epsilon = 1e-8F, .step = t->step});
        status = wait_for(t->ops, t->sequences.noise, error);
    }
    *seconds = bench_now() - start;
    return status;
}

static icma_status time_training(const wishes *w, const char *precision, size_t batch, double *seconds,
                                 icma_error *error) {
    icma_rng rng = icma_rng_seed(2);
    icma_conv_shape shape = bench_shape(w->used);
    trainee t = {0};
    double *list = malloc(w->steps * sizeof *list), warming;
    icma_status status = list ? open_device(w, precision, &t.ops, error) : ICMA_E_MEMORY;
    if (!status)
        status = icma_conv_net_create(t.ops, shape, batch, &rng, &t.net, error);
    if (!status)
        t.sequences = bench_sequences_of(t.ops, &rng, &shape, batch);
    for (size_t k = 0; !status && k < WARM_UP; k++)
        status = train_once(&t, &warming, error);
    for (size_t k = 0; !status && k < w->steps; k++)
        status = train_once(&t, &list[k], error);
    if (!status)
        *seconds = median(list, w->steps);
    if (t.sequences.x)
        bench_sequences_free(t.ops, &t.sequences);
    icma_conv_net_free(t.net);
    free(list);
    return status;
}

static int bench_training(const wishes *w) {
    icma_conv_shape shape = bench_shape(w->used);
    int failures = 0;
    for (size_t p = 0; p < w->precision_count; p++)
        for (size_t b = 0; b < w->batch_count; b++) {
            icma_error error = {0};
            double seconds = 0;
            icma_status status = time_training(w, w->precisions[p], w->batches[b], &seconds, &error);
            printf("icma.step.%s.%zu.", w->precisions[p], w->batches[b]);
            if (status)
                printf("failed %s\n", error.message);
            else
                printf("ms %.4f\nicma.step.%s.%zu.gflop %.3f\n", 1e3 * seconds, w->precisions[p],
                       w->batches[b], 6e-9 * (double)w->batches[b] * icma_conv_work(&shape));
            fflush(stdout);
            failures += status != ICMA_OK;
        }
    return failures > 0;
}

static int bench_all_layers(const wishes *w) {
    icma_error error = {0};
    const icma_ops *ops;
    if (open_device(w, w->precisions[0], &ops, &error))
        return fail(w->device, &error);
    bench_conv_layers(ops, 1e9 * w->peak, "the card's measured product rate", w->repetitions, 2,
                      bench_shape(w->used).length);
    return 0;
}

/* --- decoding ---------------------------------------------------------------------------------------------
 */

typedef struct passed {
    double bytes, moved, seconds;
} passed;

/* One checkpoint, to the memory where it would be used: the host's, its checksum compared, or the device's.
 */
static icma_status decode_one(const wishes *w, icma_bundle *bundle, size_t task, size_t checkpoint,
                              icma_error *error) {
    icma_decoded decoded = {0};
    icma_device_adapter adapter = {0};
    bool host = strcmp(w->device, "cpu") == 0;
    icma_status status = host
                             ? icma_bundle_decode(bundle, task, checkpoint, &decoded, error)
                             : icma_bundle_decode_on_device(bundle, task, checkpoint, false, &adapter, error);
    icma_decoded_free(&decoded);
    icma_device_adapter_free(&adapter);
    return status;
}

/* Bytes of a checkpoint's decoding: the basis' rows in 16 bits a number, each read once; integers of a
 * residual in 16 bits; the output. */
static double must_move(icma_bundle *bundle, const icma_checkpoint_info *c) {
    icma_generator_info g;
    if (icma_bundle_generator(bundle, c->group, &g, NULL))
        return 0;
    double rows = (double)(g.components_a + g.components_b) / 2,
           integers = c->tier == ICMA_TIER_BOUNDED ? 1 : 0;
    return 2 * (rows + integers) * (double)g.modelled_parameters + (double)c->file_size;
}

static icma_status decode_pass(const wishes *w, const icma_ops *ops, icma_bundle *bundle,
                               const icma_tensor *any, passed *out, icma_error *error) {
    icma_status status = ICMA_OK;
    double start = bench_now();
    *out = (passed){0};
    for (size_t t = 0; !status && t < icma_bundle_task_count(bundle); t++) {
        icma_task_info info;
        status = icma_bundle_task(bundle, t, &info, error);
        for (size_t c = 0; !status && c < info.checkpoint_count && c < w->most; c++) {
            status = decode_one(w, bundle, t, c, error);
            out->bytes += (double)info.checkpoints[c].file_size;
            out->moved += must_move(bundle, &info.checkpoints[c]);
        }
    }
    if (!status)
        status = wait_for(ops, any, error);
    out->seconds = bench_now() - start;
    return status;
}

/* The first pass loads and unpacks what all checkpoints share, and is not counted. */
static icma_status time_decoding(const wishes *w, const icma_ops *ops, icma_bundle *bundle, passed *best,
                                 icma_error *error) {
    icma_tensor *any;
    passed pass;
    icma_status status = ops->alloc(ops->device, ICMA_ELEMENT_F32, 1, &any, error);
    if (status)
        return status;
    status = decode_pass(w, ops, bundle, any, best, error);
    best->seconds = INFINITY;
    for (size_t k = 0; !status && k < w->passes; k++) {
        status = decode_pass(w, ops, bundle, any, &pass, error);
        best->seconds = fmin(best->seconds, pass.seconds);
    }
    ops->release(ops->device, any);
    return status;
}

static int bench_decoding(const wishes *w) {
    icma_error error = {0};
    const icma_ops *ops;
    icma_bundle *bundle = NULL;
    passed pass;
    icma_status status = open_device(w, "f32", &ops, &error);
    if (!status)
        status = icma_bundle_open(w->bundle, ops, NULL, &bundle, &error);
    if (!status)
        status = time_decoding(w, ops, bundle, &pass, &error);
    icma_bundle_close(bundle);
    if (status)
        return fail(w->bundle, &error);
    printf("decode.%s.%s.s %.6f\n", w->name, w->device, pass.seconds);
    printf("decode.%s.%s.bytes %.0f\n", w->name, w->device, pass.bytes);
    printf("decode.%s.%s.moved %.0f\n", w->name, w->device, pass.moved);
    return 0;
}

/* --- kernels of decoding ----------------------------------------------------------------------------------
 */

enum {
    TENSORS = 448,
    ELEMENTS = 5851 * 16,
    MOST_ROWS = 32,
    STREAM = 1 << 18,
    CONTEXT = 84 /* symbols of a spread of 5.7, about 4.5 bits */
};

/* What an adapter is put together from. */
typedef struct kitchen {
    const icma_ops *ops;
    icma_tensor *head, *q, *integers, *out;
    icma_buffer streams;
    size_t *offsets, stream_count;
    icma_rans_run runs[TENSORS];
} kitchen;

static icma_status make_streams(kitchen *k, icma_error *error) {
    icma_rng rng = icma_rng_seed(3);
    size_t total = (size_t)TENSORS * ELEMENTS;
    int32_t *symbols = malloc(total * sizeof *symbols);
    icma_rans_run *cut = malloc(TENSORS * sizeof *cut);
    k->stream_count = (total + STREAM - 1) / STREAM;
    k->offsets = calloc(k->stream_count + 1, sizeof *k->offsets);
    icma_status status = symbols && cut && k->offsets
                             ? ICMA_OK
                             : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for symbols");
    double spread = icma_rans_spread(CONTEXT);
    for (size_t i = 0; !status && i < total; i++) /* a sum of bytes is normal enough */
        symbols[i] = (int32_t)lrint(spread * ((double)__builtin_popcountll(icma_rng_next(&rng)) - 32) / 4);
    for (size_t t = 0; t < TENSORS; t++)
        k->runs[t] = (icma_rans_run){ELEMENTS, CONTEXT};
    for (size_t s = 0; !status && s < k->stream_count; s++) {
        size_t first = s * STREAM, end = total - first < STREAM ? total : first + STREAM;
        status = icma_rans_encode(symbols + first, cut, icma_rans_cut(k->runs, TENSORS, first, end, cut),
                                  &k->streams, error);
        k->offsets[s + 1] = k->streams.size;
    }
    free(symbols);
    free(cut);
    return status;
}

static icma_status open_kitchen(kitchen *k, icma_error *error) {
    const icma_ops *ops = k->ops;
    size_t total = (size_t)TENSORS * ELEMENTS;
    float coefficients[MOST_ROWS];
    for (size_t r = 0; r < MOST_ROWS; r++)
        coefficients[r] = 0.01F * (float)(r + 1);
    icma_status status = ops->alloc(ops->device, ICMA_ELEMENT_I16, MOST_ROWS * total, &k->head, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, MOST_ROWS, &k->q, error);
    if (!status)
        status = ops->upload(ops->device, k->q, 0, coefficients, MOST_ROWS, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_I16, total, &k->integers, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_U8, 4 * total, &k->out, error);
    return status ? status : make_streams(k, error);
}

static void close_kitchen(kitchen *k) {
    icma_tensor *all[] = {k->head, k->q, k->integers, k->out};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        k->ops->release(k->ops->device, all[i]);
    icma_buffer_free(&k->streams);
    free(k->offsets);
}

static icma_status decode_streams(const kitchen *k, icma_error *error) {
    icma_coded coded = {.data = k->streams.data,
                        .offsets = k->offsets,
                        .streams = k->stream_count,
                        .length = STREAM,
                        .runs = k->runs,
                        .run_count = TENSORS,
                        .total = (size_t)TENSORS * ELEMENTS,
                        .trellis = true};
    return k->ops->decode_integers(k->ops->device, &coded, 1, k->integers, 0, error);
}

static icma_status put_together(const kitchen *k, size_t rows, bool residual, icma_error *error) {
    static icma_assembly list[TENSORS];
    size_t bad;
    for (size_t t = 0; t < TENSORS; t++)
        list[t] = (icma_assembly){
            .count = ELEMENTS,
            .head = {rows ? k->head : NULL, t * MOST_ROWS * ELEMENTS, rows, ELEMENTS, ELEMENTS},
            .q = {k->q, 0, 1, rows, rows},
            .steps = {k->q, 0, 1, rows, rows},
            .scale = 1,
            .integers = residual ? k->integers : NULL,
            .first = t * ELEMENTS,
            .step = 0.001F,
            .dtype = ICMA_F32,
            .place = 4 * t * ELEMENTS};
    return k->ops->assemble(k->ops->device, list, TENSORS, k->out, NULL, &bad, error);
}

/* Rows SIZE_MAX: the streams. Both ops come back when they are done. */
static icma_status time_kernel(const wishes *w, const kitchen *k, size_t rows, bool residual, double *seconds,
                               icma_error *error) {
    double *list = malloc(w->repetitions * sizeof *list);
    icma_status status = list ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for times");
    for (size_t i = 0; !status && i < WARM_UP + w->repetitions; i++) {
        double start = bench_now();
        status = rows == SIZE_MAX ? decode_streams(k, error) : put_together(k, rows, residual, error);
        if (i >= WARM_UP)
            list[i - WARM_UP] = bench_now() - start;
    }
    if (!status)
        *seconds = median(list, w->repetitions);
    free(list);
    return status;
}

static int bench_kernels(const wishes *w) {
    static const size_t rows[] = {0, 4, 8, 16, 32};
    icma_error error = {0};
    kitchen k = {0};
    double seconds = 0, weights = (double)TENSORS * ELEMENTS;
    icma_status status = open_device(w, "f32", &k.ops, &error);
    if (status)
        return fail(w->device, &error);
    status = open_kitchen(&k, &error);
    if (!status)
        status = time_kernel(w, &k, SIZE_MAX, false, &seconds, &error);
    if (!status)
        printf("kernel.streams.ms %.4f\nkernel.streams.symbols %.0f\nkernel.streams.coded %zu\n",
               1e3 * seconds, weights, k.streams.size);
    for (size_t r = 0; !status && r < sizeof rows / sizeof *rows; r++)
        for (int residual = rows[r] == 0; !status && residual < 2; residual++) {
            status = time_kernel(w, &k, rows[r], residual, &seconds, &error);
            if (!status)
                printf("kernel.rows%zu%s.ms %.4f\nkernel.rows%zu%s.moved %.0f\n", rows[r],
                       residual ? "+residual" : "", 1e3 * seconds, rows[r], residual ? "+residual" : "",
                       weights * (2 * (double)rows[r] + 2 * residual + 4));
        }
    close_kitchen(&k);
    return status ? fail("kernels", &error) : 0;
}

/* --- what is asked for ------------------------------------------------------------------------------------
 */

static bool read_wish(wishes *w, const char *option, const char *value) {
    size_t *const numbers[] = {&w->used, &w->steps, &w->repetitions, &w->most, &w->passes};
    static const char *const names[] = {"--used", "--steps", "--repetitions", "--most", "--passes"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++)
        if (strcmp(option, names[k]) == 0)
            return (*numbers[k] = strtoul(value, NULL, 10)) > 0;
    if (strcmp(option, "--device") == 0)
        w->device = value;
    else if (strcmp(option, "--name") == 0)
        w->name = value;
    else if (strcmp(option, "--peak") == 0)
        w->peak = strtod(value, NULL);
    else if (strcmp(option, "--threads") == 0)
        icma_set_threads(atoi(value));
    else if (strcmp(option, "--precision") == 0 && w->precision_count < MOST_CHOICES)
        w->precisions[w->precision_count++] = value;
    else if (strcmp(option, "--batch") == 0 && w->batch_count < MOST_CHOICES)
        return (w->batches[w->batch_count++] = strtoul(value, NULL, 10)) > 0;
    else
        return false;
    return true;
}

static bool read_wishes(int count, char **arguments, wishes *w) {
    *w = (wishes){.verb = count > 1 ? arguments[1] : "",
                  .device = "cuda",
                  .name = "bundle",
                  .used = 1929928,
                  .steps = 20,
                  .repetitions = 10,
                  .most = SIZE_MAX,
                  .passes = 3,
                  .peak = 1};
    for (int k = 2; k < count; k++)
        if (strncmp(arguments[k], "--", 2) != 0)
            w->bundle = arguments[k];
        else if (k + 1 == count || !read_wish(w, arguments[k], arguments[k + 1]))
            return false;
        else
            k++;
    if (w->precision_count == 0)
        w->precisions[w->precision_count++] = "f32";
    if (w->batch_count == 0)
        w->batches[w->batch_count++] = 2;
    return strcmp(w->verb, "decode") != 0 || w->bundle;
}

int main(int count, char **arguments) {
    wishes w;
    bool good = read_wishes(count, arguments, &w);
    if (good && strcmp(w.verb, "train") == 0)
        return bench_training(&w);
    if (good && strcmp(w.verb, "layers") == 0)
        return bench_all_layers(&w);
    if (good && strcmp(w.verb, "decode") == 0)
        return bench_decoding(&w);
    if (good && strcmp(w.verb, "kernels") == 0)
        return bench_kernels(&w);
    fprintf(stderr, "usage: bench_gpu train|layers|decode|kernels [options]; bench/bench_gpu.c says which\n");
    return 2;
}
