/* SPDX-License-Identifier: Apache-2.0 */
/* bench_lossless [FOLDER]: lossless links on FOLDER/TASK/checkpoint-N/adapter_model.safetensors, in f32 and
 * cast to bf16 and f16: every checkpoint alone, and each task as a chain backwards from its last. Then a
 * large synthetic file. Every payload is decoded and compared. Prints Markdown; speeds are of output bytes,
 * on one thread. */
#include "lossless.h"
#include "ops.h"
#include "rng.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST = 512, MOST_TAPS = 3 };

typedef struct totals {
    double raw, coded, encode, decode;
    size_t links;
} totals;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "bench_lossless: %s\n", what);
    exit(1);
}

static void code_link(const icma_safetensors *signature, const uint8_t *original, const uint8_t *const *taps,
                      size_t tap_count, totals *sum) {
    bool *coded = malloc(signature->tensor_count + 1);
    uint8_t *back = calloc(1, (size_t)signature->data_size + 1);
    icma_buffer out = {0};
    icma_error error = {0};
    if (!coded || !back)
        die("no memory");
    memset(coded, 1, signature->tensor_count);
    icma_lossless_link link = {signature, coded, taps, tap_count};
    double start = now();
    if (icma_lossless_encode(&link, original, &out, &error))
        die(error.message);
    sum->encode += now() - start;
    start = now();
    if (icma_lossless_decode(&link, out.data, out.size, back, &error))
        die(error.message);
    sum->decode += now() - start;
    if (memcmp(back, original, (size_t)signature->data_size))
        die("other bytes came back");
    sum->raw += (double)signature->data_size;
    sum->coded += (double)out.size;
    sum->links++;
    icma_buffer_free(&out);
    free(back);
    free(coded);
}

static void print_row(const char *what, const totals *sum, double overhead) {
    printf("| %s | %zu | %.0f | %.2f %% | %.2f %% | %.0f | %.0f |\n", what, sum->links,
           sum->coded / (double)sum->links, 100 * sum->coded / sum->raw,
           100 * sum->coded / (sum->raw + overhead * (double)sum->links), 1e-6 * sum->raw / sum->encode,
           1e-6 * sum->raw / sum->decode);
    fflush(stdout);
}

/* --- Files --- */

static int number_of(const char *name) {
    return atoi(strncmp(name, "checkpoint-", 11) == 0 ? name + 11 : name);
}

static int by_number(const void *a, const void *b) {
    int x = number_of(*(char *const *)a), y = number_of(*(char *const *)b);
    return x == y ? strcmp(*(char *const *)a, *(char *const *)b) : x < y ? -1 : 1;
}

static size_t list(const char *folder, char **names) {
    DIR *dir = opendir(folder);
    size_t count = 0;
    for (struct dirent *entry; dir && count < MOST && (entry = readdir(dir));)
        if (entry->d_name[0] != '.')
            names[count++] = strdup(entry->d_name);
    if (dir)
        closedir(dir);
    qsort(names, count, sizeof *names, by_number);
    return count;
}

typedef struct image {
    uint8_t *bytes;
    icma_safetensors signature;
    const uint8_t *data;
} image;

static bool load(const char *path, image *out) {
    FILE *file = fopen(path, "rb");
    if (!file)
        return false;
    if (fseek(file, 0, SEEK_END))
        die("cannot seek");
    long size = ftell(file);
    rewind(file);
    out->bytes = malloc((size_t)size);
    if (!out->bytes || fread(out->bytes, 1, (size_t)size, file) != (size_t)size ||
        icma_safetensors_view(out->bytes, (size_t)size, &out->signature, &out->data, NULL))
        die("cannot read a safetensors file");
    fclose(file);
    return true;
}

/* Every F32 tensor in another dtype, in place; all tensors are F32. */
static void cast(image *file, icma_dtype dtype) {
    icma_safetensors *s = &file->signature;
    size_t width = icma_dtype_bits(dtype) / 8, count = (size_t)s->data_size / 4;
    float *values = malloc((size_t)s->data_size);
    if (!values)
        die("no memory");
    icma_load_floats(ICMA_F32, file->data, count, values);
    icma_store_floats(dtype, values, count, (uint8_t *)(uintptr_t)file->data);
    for (size_t t = 0; t < s->tensor_count; t++) {
        s->tensors[t].dtype = dtype;
        s->tensors[t].begin = s->tensors[t].begin / 4 * width;
        s->tensors[t].size = s->tensors[t].count * width;
    }
    s->data_size = count * width;
    free(values);
}

static void bench_task(const char *folder, icma_dtype dtype, totals *alone, totals *chain) {
    char *names[MOST], path[8192];
    image files[MOST];
    size_t listed = list(folder, names), count = 0;
    for (size_t i = 0; i < listed; i++) {
        int length = snprintf(path, sizeof path, "%s/%s/adapter_model.safetensors", folder, names[i]);
        if (length < (int)sizeof path && load(path, &files[count]))
            cast(&files[count++], dtype);
        free(names[i]);
    }
    for (size_t n = count; n-- > 0;) {
        const uint8_t *taps[MOST_TAPS];
        size_t tap_count = 0;
        while (tap_count < MOST_TAPS && n + tap_count + 1 < count) {
            taps[tap_count] = files[n + tap_count + 1].data;
            tap_count++;
        }
        code_link(&files[n].signature, files[n].data, taps, 0, alone);
        code_link(&files[n].signature, files[n].data, taps, tap_count, chain);
    }
    for (size_t i = 0; i < count; i++) {
        icma_safetensors_free(&files[i].signature);
        free(files[i].bytes);
    }
}

static void bench_folder(const char *folder) {
    const struct {
        icma_dtype dtype;
        const char *alone, *chain;
    } rows[] = {{ICMA_F32, "f32 alone", "f32 chain"},
                {ICMA_BF16, "bf16 alone", "bf16 chain"},
                {ICMA_F16, "f16 alone", "f16 chain"}};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        char *names[MOST], path[8192];
        size_t tasks = list(folder, names);
        totals alone = {0}, chain = {0};
        for (size_t t = 0; t < tasks; t++) {
            snprintf(path, sizeof path, "%s/%s", folder, names[t]);
            bench_task(path, rows[r].dtype, &alone, &chain);
            free(names[t]);
        }
        if (alone.links == 0)
            die("no checkpoints there");
        const double header = 5376; /* of these files, with its length */
        print_row(rows[r].alone, &alone, header);
        print_row(rows[r].chain, &chain, header);
    }
}

/* --- Synthetic --- */

/* A walk with momentum: `steps` files of `count` weights, the last first. */
static void bench_synthetic(icma_dtype dtype, const char *what, size_t count) {
    enum { FILES = 4 };
    char header[256], name[64];
    size_t width = icma_dtype_bits(dtype) / 8;
    int length =
        snprintf(header, sizeof header, "{\"w\":{\"dtype\":\"%s\",\"shape\":[%zu],\"data_offsets\":[0,%zu]}}",
                 icma_dtype_name(dtype), count, count * width);
    icma_safetensors signature;
    if (icma_safetensors_parse(header, (size_t)length, count * width, &signature, NULL))
        die("cannot parse the synthetic header");
    float *x = malloc(count * sizeof *x), *v = calloc(count, sizeof *v);
    uint8_t *files[FILES];
    icma_rng rng = icma_rng_seed(1);
    if (!x || !v)
        die("no memory");
    for (size_t i = 0; i < count; i++)
        x[i] = (float)(0.05 * icma_rng_normal(&rng));
    for (int f = 0; f < FILES; f++) {
        if (!(files[f] = malloc(count * width)))
            die("no memory");
        for (size_t i = 0; i < count; i++)
            x[i] += v[i] = 0.8f * v[i] + (float)(1e-4 * icma_rng_normal(&rng));
        icma_store_floats(dtype, x, count, files[f]);
    }
    const uint8_t *const taps[] = {files[2], files[1], files[0]};
    for (size_t k = 0; k <= MOST_TAPS; k += MOST_TAPS) {
        totals sum = {0};
        for (int times = 0; times < 3; times++)
            code_link(&signature, files[3], taps, k, &sum);
        snprintf(name, sizeof name, "synthetic %s, %zu taps", what, k);
        print_row(name, &sum, 0);
    }
    for (int f = 0; f < FILES; f++)
        free(files[f]);
    free(x);
    free(v);
    icma_safetensors_free(&signature);
}

int main(int argc, char **argv) {
    icma_set_threads(1);
    printf("| what | links | bytes a link | of the tensors | of the file | encode MB/s | decode MB/s "
           "|\n|---|---|---|---|---|---|---|\n");
    if (argc > 1)
        bench_folder(argv[1]);
    bench_synthetic(ICMA_F32, "f32", 10000000);
    bench_synthetic(ICMA_BF16, "bf16", 10000000);
    bench_synthetic(ICMA_F16, "f16", 10000000);
    return 0;
}
