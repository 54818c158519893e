/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_decode BUNDLE: bytes of adapters decoded a second, to memory, checksums compared, on one thread and on all; beside the floor: the bytes that a
 * decode must move (the basis once for each adapter, the output once) at the speed of a plain copy on this machine, measured in this run. Then what one tensor costs beside the whole, on an archive
 * that was just opened and on one that has decoded before. Prints Markdown.
 */
#include "device.h"
#include "icma.h"
#include "ops.h"

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

/* Bytes moved a second by memcpy between buffers of `size` bytes (read + written), best of several. */
static double copy_speed(size_t size) {
    char *a = malloc(size), *b = malloc(size);
    double best = INFINITY;
    if (!a || !b)
        return NAN;
    memset(a, 1, size);
    for (int i = 0; i < 10; i++) {
        double start = now();
        memcpy(b, a, size);
        best = fmin(best, now() - start);
        a[i] = b[size - 1];
    }
    free(a);
    free(b);
    return 2 * (double)size / best;
}

/* Decodes every checkpoint; the first pass loads and unpacks the basis and is not counted. */
static icma_status decode_all(icma_bundle *bundle, uint64_t *bytes, double *seconds, icma_error *error) {
    icma_status status = ICMA_OK;
    for (int pass = 0; pass < 2; pass++) {
        double start = now();
        *bytes = 0;
        for (size_t t = 0; !status && t < icma_bundle_task_count(bundle); t++) {
            icma_task_info info;
            status = icma_bundle_task(bundle, t, &info, error);
            for (size_t c = 0; !status && c < info.checkpoint_count; c++) {
                icma_decoded decoded;
                status = icma_bundle_decode(bundle, t, c, &decoded, error);
                *bytes += decoded.size;
                icma_decoded_free(&decoded);
            }
        }
        *seconds = now() - start;
    }
    return status;
}

static double traffic(icma_bundle *bundle) {
    double bytes = 0;
    icma_generator_info g;
    for (uint32_t i = 0; i < icma_bundle_group_count(bundle); i++)
        if (icma_bundle_generator(bundle, i, &g, NULL) == ICMA_OK)
            bytes += (double)g.modelled_parameters * ((double)(g.components_a + g.components_b) / 2 * 2 + 4);
    return bytes;
}

/* The largest tensor of the last checkpoint of the first task, and the whole: seconds, each the first or the second time after opening. */
static icma_status time_tensor(const char *path, bool whole, double seconds[2], uint64_t *bytes, icma_error *error) {
    icma_bundle *bundle;
    icma_task_info info = {0};
    icma_adapter_tensor *list = NULL;
    size_t count = 0, largest = 0;
    icma_status status = icma_bundle_open(path, NULL, NULL, &bundle, error);
    if (!status)
        status = icma_bundle_task(bundle, 0, &info, error);
    if (!status)
        status = icma_bundle_tensors(bundle, 0, info.checkpoint_count - 1, &list, &count, error);
    for (size_t t = 0; t < count; t++)
        largest = list[t].size > list[largest].size ? t : largest;
    *bytes = count ? list[largest].size : 0;
    void *data = malloc((size_t)*bytes + 1);
    for (int pass = 0; data && !status && pass < 2; pass++) {
        icma_decoded decoded = {0};
        double start = now();
        status = whole ? icma_bundle_decode(bundle, 0, info.checkpoint_count - 1, &decoded, error)
                       : icma_bundle_decode_tensor(bundle, 0, info.checkpoint_count - 1, largest, data, (size_t)*bytes, error);
        seconds[pass] = now() - start;
        if (whole)
            *bytes = decoded.size;
        icma_decoded_free(&decoded);
    }
    free(data);
    icma_free(list);
    icma_bundle_close(bundle);
    return status;
}

static icma_status print_tensor(const char *path, icma_error *error) {
    static const char *const what[] = {"all", "one tensor"};
    icma_status status = ICMA_OK;
    printf("\n| decoded, on %d threads | bytes | ms, first time | ms, again |\n|---|---|---|---|\n", icma_threads());
    for (int i = 0; !status && i < 2; i++) {
        double best[2] = {INFINITY, INFINITY}, seconds[2];
        uint64_t bytes = 0;
        for (int run = 0; !status && run < 5; run++) {
            status = time_tensor(path, i == 0, seconds, &bytes, error);
            best[0] = fmin(best[0], seconds[0]);
            best[1] = fmin(best[1], seconds[1]);
        }
        if (!status)
            printf("| %s | %llu | %.2f | %.2f |\n", what[i], (unsigned long long)bytes, 1e3 * best[0], 1e3 * best[1]);
    }
    return status;
}

int main(int argc, char **argv) {
    icma_error error = {0};
    if (argc < 2) {
        fprintf(stderr, "usage: bench_decode BUNDLE\n");
        return 2;
    }
    printf("| device | threads | MB/s decoded | of the floor |\n|---|---|---|---|\n");
    const char *devices[] = {"reference", "cpu", "cpu"};
    const int threads[] = {1, 1, 0};
    for (int i = 0; i < 3; i++) {
        const icma_ops *ops;
        icma_bundle *bundle;
        uint64_t bytes;
        double seconds;
        icma_set_threads(threads[i]);
        if (icma_device_open(devices[i], ICMA_PRECISION_F32, (icma_device_work){0}, &ops, &error) || icma_bundle_open(argv[1], ops, NULL, &bundle, &error) ||
            decode_all(bundle, &bytes, &seconds, &error)) {
            fprintf(stderr, "bench_decode: %s: %s\n", error.file, error.message);
            return 1;
        }
        icma_task_info info;
        icma_bundle_task(bundle, 0, &info, &error);
        size_t moved = (size_t)traffic(bundle);
        double adapters = (double)bytes / (double)info.checkpoints[0].file_size;
        double floor_seconds = adapters * (double)moved / copy_speed(moved);
        printf("| %s | %d | %.0f | %.2f |\n", devices[i], icma_threads(), 1e-6 * (double)bytes / seconds, floor_seconds / seconds);
        icma_bundle_close(bundle);
    }
    if (print_tensor(argv[1], &error)) {
        fprintf(stderr, "bench_decode: %s: %s\n", error.file, error.message);
        return 1;
    }
    return 0;
}
