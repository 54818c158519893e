/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_pack DIR: what packing a tree costs, phase by phase, beside what it must cost at least.
 *
 * The floor: the Gram matrix and the basis each need every byte once (two reads at the speed at which the very files can be read), and
 * the Gram matrix needs N^2 L / 2 multiply-adds (it is symmetric), the basis N K L, at the speed that the machine's own matrix product reaches on
 * such tiles. All three are measured here, in this run. Prints Markdown.
 */
#include "dataset.h"
#include "device.h"
#include "icma.h"
#include "memory.h"
#include "ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int fail(const icma_error *error) {
    fprintf(stderr, "bench_pack: %s: %s\n", error->file, error->message);
    return 1;
}

/* Seconds to read every file of the dataset whole, second time (the first fills the page cache). */
static double read_all(icma_dataset *d) {
    double start = 0;
    for (int pass = 0; pass < 2; pass++) {
        start = now();
        for (size_t g = 0; g < d->count; g++)
#pragma omp parallel for num_threads(icma_threads())
            for (size_t i = 0; i < d->groups[g].count; i++) {
                uint8_t *data;
                size_t size;
                if (icma_source_read(&d->groups[g].sources[i], &data, &size, NULL) == ICMA_OK)
                    icma_free(data);
            }
    }
    return now() - start;
}

/* Multiply-adds a second of a large symmetric product on this device (half of the square counted). */
static double product_speed(const icma_ops *ops) {
    enum { N = 1024, L = 4096, TIMES = 4 };
    icma_tensor *x = NULL, *g = NULL;
    if (ops->alloc(ops->device, ICMA_ELEMENT_F32, (size_t)N * L, &x, NULL) || ops->alloc(ops->device, ICMA_ELEMENT_F64, (size_t)N * N, &g, NULL))
        return NAN;
    ops->fill(ops->device, 0.5F, icma_matrix_of(x, N, L));
    double best = INFINITY;
    for (int i = 0; i < TIMES; i++) {
        double start = now();
        ops->gram(ops->device, icma_matrix_of(x, N, L), 1, icma_matrix_of(g, N, N));
        best = fmin(best, now() - start);
    }
    ops->release(ops->device, x);
    ops->release(ops->device, g);
    return 0.5 * N * N * (double)L / best;
}

static void tell(const icma_pack_result *r, const icma_dataset *d, double read, double speed) {
    double multiply_adds = 0;
    for (size_t g = 0; g < d->count; g++) {
        double weights = 0, n = (double)d->groups[g].count;
        for (size_t t = 0; t < d->groups[g].signature.tensor_count; t++)
            weights += (double)d->groups[g].signature.tensors[t].count;
        multiply_adds += (n * n / 2 + n * (double)r->components / 2) * weights;
    }
    double floor_read = 2 * read, floor_products = multiply_adds / speed;
    double total = r->seconds.read + r->seconds.gram + r->seconds.train + r->seconds.encode + r->seconds.check + r->seconds.write;
    printf("| phase | s |\n|---|---|\n| find and open | %.3f |\n| gram (first pass) | %.3f |\n| train | %.3f |\n"
           "| encode (second pass, measuring against the originals) | %.3f |\n| check (decode the archive again, zstd -19 sample) | %.3f |\n"
           "| write | %.3f |\n| **total** | **%.3f** |\n\n",
           r->seconds.read, r->seconds.gram, r->seconds.train, r->seconds.encode, r->seconds.check, r->seconds.write, total);
    printf("| floor | | s |\n|---|---|---|\n| bytes read twice | 2 x %.1f MB at %.0f MB/s | %.3f |\n| multiply-adds | %.3g at %.3g/s | %.3f |\n"
           "| **sum; total / floor** | **%.1f** | **%.3f** |\n\n",
           1e-6 * (double)d->bytes, 1e-6 * (double)d->bytes / read, floor_read, multiply_adds, speed, floor_products, total / (floor_read + floor_products),
           floor_read + floor_products);
    printf("%llu files of %llu bytes -> %llu bytes (%.2f %%), %zu components, explained %.1f %%, %d threads\n", (unsigned long long)r->original_files,
           (unsigned long long)r->original_bytes, (unsigned long long)r->bytes.total, 100 * (double)r->bytes.total / (double)r->original_bytes, r->components,
           100 * r->within_task_explained, icma_threads());
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "examples/loras";
    const char *target = "bench_pack.icma";
    icma_error error = {0};
    icma_inputs inputs;
    icma_dataset dataset;
    icma_pack_result result;
    const icma_ops *ops;
    icma_pack_options options = icma_pack_defaults();
    options.overwrite = true;
    if (icma_device_open("auto", ICMA_PRECISION_F32, (icma_device_work){0}, &ops, &error) || icma_inputs_find(&path, 1, &inputs, &error) || icma_dataset_open(&inputs, 0, NULL, &dataset, &error))
        return fail(&error);
    double read = read_all(&dataset), speed = product_speed(ops);
    if (icma_pack(&inputs, target, &options, ops, &result, &error))
        return fail(&error);
    tell(&result, &dataset, read, speed);
    unlink(target);
    icma_pack_result_free(&result);
    icma_dataset_close(&dataset);
    icma_inputs_free(&inputs);
    return 0;
}
