/* SPDX-License-Identifier: Apache-2.0 */
#define _XOPEN_SOURCE 700 /* nftw, mkdtemp */
#include "support.h"

#include "memory.h"

#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void *require(void *pointer) {
    assert_non_null(pointer);
    return pointer;
}

void support_free(void *pointer) {
    free(pointer);
}

/* --- folders and files --------------------------------------------------------------------------------- */

char *support_path(const char *root, const char *relative) {
    size_t size = strlen(root) + strlen(relative) + 2;
    char *path = require(malloc(size));
    snprintf(path, size, "%s/%s", root, relative);
    return path;
}

size_t support_tables(const icma_ops *list[SUPPORT_TABLES]) {
    list[0] = icma_ops_reference();
    list[1] = icma_ops_cpu();
    list[2] = support_device();
    return list[2] ? 3 : 2;
}

char *support_new_folder(void) {
    const char *base = getenv("TMPDIR");
    char *path = support_path(base && *base ? base : "/tmp", "icma-test-XXXXXX");
    return require(mkdtemp(path));
}

static int remove_one(const char *path, const struct stat *about, int kind, struct FTW *walk) {
    (void)about;
    (void)kind;
    (void)walk;
    return remove(path);
}

void support_remove_tree(char *root) {
    assert_int_equal(nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
    free(root);
}

static void make_parents(char *path, size_t from) {
    for (char *slash = strchr(path + from, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0777); /* may be there */
        *slash = '/';
    }
}

static char *prepare_path(const char *root, const char *relative) {
    char *path = support_path(root, relative);
    make_parents(path, strlen(root) + 1);
    return path;
}

void support_make_folder(const char *root, const char *relative) {
    char *path = prepare_path(root, relative);
    assert_int_equal(mkdir(path, 0777), 0);
    free(path);
}

void support_write_file(const char *root, const char *relative, const void *data, size_t size) {
    char *path = prepare_path(root, relative);
    FILE *file = require(fopen(path, "wb"));
    if (size > 0)
        assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
    free(path);
}

void support_write_text(const char *root, const char *relative, const char *text) {
    support_write_file(root, relative, text, strlen(text));
}

void support_make_link(const char *root, const char *relative, const char *target) {
    char *path = prepare_path(root, relative);
    assert_int_equal(symlink(target, path), 0);
    free(path);
}

void support_make_pipe(const char *root, const char *relative) {
    char *path = prepare_path(root, relative);
    assert_int_equal(mkfifo(path, 0600), 0);
    free(path);
}

/* --- safetensors --------------------------------------------------------------------------------------- */

static uint8_t *join_image(const char *header, const void *data, size_t data_size, size_t *size) {
    size_t length = strlen(header), padded = (length + 7) / 8 * 8;
    uint8_t *image = require(malloc(8 + padded + data_size));
    for (size_t i = 0; i < 8; i++)
        image[i] = (uint8_t)((uint64_t)padded >> (8 * i));
    memcpy(image + 8, header, length);
    memset(image + 8 + length, ' ', padded - length);
    if (data_size > 0)
        memcpy(image + 8 + padded, data, data_size);
    *size = 8 + padded + data_size;
    return image;
}

void support_write_safetensors(const char *root, const char *relative, const char *header, const void *data,
                               size_t size) {
    size_t image_size;
    uint8_t *image = join_image(header, data, size, &image_size);
    support_write_file(root, relative, image, image_size);
    free(image);
}

void support_write_lora(const char *root, const char *relative) {
    const float values[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    support_write_safetensors(
        root, relative,
        "{\"m.lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
        "\"m.lora_B.weight\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[24,40]}}",
        values, sizeof values);
}

static size_t tensor_elements(const support_tensor *tensor) {
    size_t count = 1;
    for (unsigned i = 0; i < tensor->rank; i++)
        count *= (size_t)tensor->shape[i];
    return count;
}

static size_t print_tensor(char *to, size_t room, const support_tensor *tensor, size_t begin, size_t end) {
    int used = snprintf(to, room, "\"%s\":{\"dtype\":\"%s\",\"shape\":[", tensor->name,
                        icma_dtype_name(tensor->dtype));
    for (unsigned i = 0; i < tensor->rank; i++)
        used += snprintf(to + used, room - (size_t)used, "%s%llu", i ? "," : "",
                         (unsigned long long)tensor->shape[i]);
    used += snprintf(to + used, room - (size_t)used, "],\"data_offsets\":[%zu,%zu]}", begin, end);
    assert_true((size_t)used < room);
    return (size_t)used;
}

void support_build_image(const support_tensor *tensors, size_t count, support_image *out) {
    enum { ROOM = 1024 };
    size_t total = 0, at = 1, begin = 0;
    for (size_t i = 0; i < count; i++)
        total += tensor_elements(&tensors[i]) * icma_dtype_bits(tensors[i].dtype) / 8;
    char *header = require(malloc(count * ROOM + 3));
    uint8_t *data = require(calloc(total + 1, 1));
    strcpy(header, "{");
    for (size_t i = 0; i < count; i++) {
        size_t elements = tensor_elements(&tensors[i]),
               size = elements * icma_dtype_bits(tensors[i].dtype) / 8;
        if (i > 0)
            header[at++] = ',';
        at += print_tensor(header + at, ROOM - 1, &tensors[i], begin, begin + size);
        if (tensors[i].bytes)
            memcpy(data + begin, tensors[i].bytes, size);
        else if (tensors[i].values)
            icma_store_floats(tensors[i].dtype, tensors[i].values, elements, data + begin);
        begin += size;
    }
    strcpy(header + at, "}");
    *out = (support_image){0};
    out->bytes = join_image(header, data, total, &out->size);
    icma_error error = {0};
    if (icma_safetensors_view(out->bytes, out->size, &out->tensors, &out->data, &error) != ICMA_OK)
        fail_msg("%s", error.message);
    free(header);
    free(data);
}

void support_free_image(support_image *image) {
    icma_safetensors_free(&image->tensors);
    free(image->bytes);
    *image = (support_image){0};
}

/* --- random numbers ------------------------------------------------------------------------------------ */

/* splitmix64 (Steele, Lea, Flood 2014). */
double support_uniform(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (double)((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
}

double support_normal(uint64_t *state) {
    double radius = sqrt(-2.0 * log(1.0 - support_uniform(state)));
    return radius * cos(6.283185307179586 * support_uniform(state));
}

float *support_normals(uint64_t *state, size_t count) {
    float *values = require(malloc((count + 1) * sizeof *values));
    for (size_t i = 0; i < count; i++)
        values[i] = (float)support_normal(state);
    return values;
}

/* --- memory -------------------------------------------------------------------------------------------- */

static void *spend(void *context, void *pointer, size_t size) {
    support_budget *budget = context;
    if (budget->left == 0)
        return NULL;
    budget->left--;
    budget->live += pointer == NULL;
    return realloc(pointer, size);
}

static void release(void *context, void *pointer) {
    support_budget *budget = context;
    budget->live -= pointer != NULL;
    free(pointer);
}

void support_limit_memory(support_budget *budget) {
    const icma_allocator limited = {spend, release, budget};
    icma_memory_set_allocator(budget ? &limited : NULL);
}

void support_fail_each_allocation(icma_status (*work)(void), size_t least, size_t most) {
    for (size_t k = 0; k < most; k++) {
        support_budget budget = {.left = k};
        support_limit_memory(&budget);
        icma_status status = work();
        support_limit_memory(NULL);
        assert_int_equal(budget.live, 0);
        if (status == ICMA_OK) {
            assert_true(k > least);
            return;
        }
        assert_int_equal(status, ICMA_E_MEMORY);
    }
    fail_msg("it never succeeds");
}
