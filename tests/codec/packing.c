/* SPDX-License-Identifier: Apache-2.0 */
#include "packing.h"

#include "inputs.h"
#include "memory.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const trajectory small_trajectory = {
    .seed = 1, .modules = 2, .rank = 2, .in = 12, .out = 10, .dtype = ICMA_F32, .noise = 0.002};

enum { NAME = 96, PATH = 200, MOST_MODULES = 8 };

/* --- writing ------------------------------------------------------------------------------------------- */

void packing_write_tensors(const char *root, const char *task, size_t step, const support_tensor *tensors,
                           size_t count) {
    char path[PATH];
    support_image image;
    snprintf(path, sizeof path, "in/%s/checkpoint-%zu/adapter_model.safetensors", task, step);
    support_build_image(tensors, count, &image);
    support_write_file(root, path, image.bytes, image.size);
    support_free_image(&image);
}

/* Start, two directions and noise, all from seeds, so that a checkpoint does not depend on those written
 * before it. */
static float *moved(uint64_t seed, uint64_t noise_seed, size_t count, double at, double noise) {
    uint64_t state = seed;
    float *x = support_normals(&state, count), *one = support_normals(&state, count),
          *two = support_normals(&state, count);
    float *grain = support_normals(&noise_seed, count);
    for (size_t i = 0; i < count; i++)
        x[i] += (float)(0.1 * at * one[i] + 0.05 * (at * at - 1) * two[i] + noise * grain[i]);
    support_free(one);
    support_free(two);
    support_free(grain);
    return x;
}

static void write_checkpoint(const char *root, const char *task, const trajectory *t, size_t step,
                             double at) {
    support_tensor tensors[2 * MOST_MODULES];
    char names[2 * MOST_MODULES][NAME];
    float *values[2 * MOST_MODULES];
    assert_true(t->modules <= MOST_MODULES);
    for (size_t i = 0; i < 2 * t->modules; i++) {
        size_t rows = i % 2 ? t->out : t->rank, columns = i % 2 ? t->rank : t->in;
        snprintf(names[i], NAME, "base_model.model.layers.%zu.q_proj.lora_%c.weight", i / 2,
                 i % 2 ? 'B' : 'A');
        values[i] = moved(t->seed * 1000 + i, t->seed * 7919 + step * 131 + i, rows * columns, at, t->noise);
        tensors[i] = (support_tensor){
            .name = names[i], .dtype = t->dtype, .rank = 2, .shape = {rows, columns}, .values = values[i]};
    }
    packing_write_tensors(root, task, step, tensors, 2 * t->modules);
    for (size_t i = 0; i < 2 * t->modules; i++)
        support_free(values[i]);
}

void packing_write(const char *root, const char *task, const trajectory *t, size_t first_step, size_t count) {
    for (size_t i = 0; i < count; i++)
        write_checkpoint(root, task, t, first_step + 10 * i,
                         count > 1 ? 3.0 * (double)i / (double)(count - 1) - 1.5 : 0);
}

void packing_write_npy(const char *root, const char *task, const float *values, size_t count) {
    char path[PATH], header[128];
    uint8_t bytes[10 + 118 + 4 * 64];
    assert_true(count <= 64);
    snprintf(path, sizeof path, "in/%s/task_vector.npy", task);
    int used =
        snprintf(header, sizeof header, "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu,), }", count);
    memcpy(bytes, "\x93NUMPY\x01\x00\x76\x00", 10);
    memset(bytes + 10, ' ', 118);
    memcpy(bytes + 10, header, (size_t)used);
    bytes[10 + 117] = '\n';
    memcpy(bytes + 128, values, count * sizeof *values);
    support_write_file(root, path, bytes, 128 + count * sizeof *values);
}

void packing_write_vector(const char *root, const char *task, icma_dtype dtype, const float *values,
                          size_t count) {
    char path[PATH];
    support_image image;
    const support_tensor tensor = {
        .name = "task_vector", .dtype = dtype, .rank = 1, .shape = {count}, .values = values};
    snprintf(path, sizeof path, "in/%s/task_vector.safetensors", task);
    support_build_image(&tensor, 1, &image);
    support_write_file(root, path, image.bytes, image.size);
    support_free_image(&image);
}

/* --- packing ------------------------------------------------------------------------------------------- */

icma_pack_options packing_options(void) {
    icma_pack_options options = icma_pack_defaults();
    options.epochs = 20;
    options.threads = 1;
    return options;
}

icma_status packing_try_on(const icma_ops *ops, const char *root, const char *name,
                           const icma_pack_options *options, icma_pack_result *result, icma_error *error) {
    char *in = support_path(root, "in"), *out = support_path(root, name);
    const char *paths[] = {in};
    icma_inputs inputs;
    memset(result, 0x5A, sizeof *result);
    icma_status status = icma_inputs_find(paths, 1, &inputs, error);
    if (!status) {
        status = icma_pack(&inputs, out, options, ops, result, error);
        icma_inputs_free(&inputs);
    } else {
        memset(result, 0, sizeof *result);
    }
    support_free(in);
    support_free(out);
    return status;
}

icma_status packing_try(const char *root, const char *name, const icma_pack_options *options,
                        icma_pack_result *result, icma_error *error) {
    return packing_try_on(icma_ops_cpu(), root, name, options, result, error);
}

void packing_pack(const char *root, const char *name, const icma_pack_options *options,
                  icma_pack_result *result) {
    icma_pack_result own;
    icma_error error = {0};
    if (packing_try(root, name, options, result ? result : &own, &error) != ICMA_OK)
        fail_msg("%s: %s", error.file, error.message);
    if (!result)
        icma_pack_result_free(&own);
}

/* --- reading ------------------------------------------------------------------------------------------- */

uint8_t *packing_read(const char *root, const char *relative, size_t *size) {
    char *path = support_path(root, relative);
    FILE *file = fopen(path, "rb");
    if (!file)
        fail_msg("cannot open %s", path);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    uint8_t *bytes = malloc(*size + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *size, file), *size);
    fclose(file);
    support_free(path);
    return bytes;
}

bool packing_same_files(const char *root, const char *a, const char *b) {
    size_t size_a, size_b;
    uint8_t *bytes_a = packing_read(root, a, &size_a), *bytes_b = packing_read(root, b, &size_b);
    bool same = size_a == size_b && memcmp(bytes_a, bytes_b, size_a) == 0;
    free(bytes_a);
    free(bytes_b);
    return same;
}

void packing_check_folder(const char *root, const char *only) {
    DIR *folder = opendir(root);
    assert_non_null(folder);
    for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") && strcmp(entry->d_name, "in") &&
            !(only && strcmp(entry->d_name, only) == 0))
            fail_msg("%s is left in the folder", entry->d_name);
    closedir(folder);
}

icma_bundle *packing_open(const char *root, const char *name, const icma_ops *ops) {
    char *path = support_path(root, name);
    icma_bundle *bundle;
    icma_error error = {0};
    if (icma_bundle_open(path, ops, NULL, &bundle, &error) != ICMA_OK)
        fail_msg("%s: %s", error.file, error.message);
    support_free(path);
    return bundle;
}

void packing_decode(icma_bundle *bundle, const char *task, size_t index, icma_decoded *out) {
    icma_error error = {0};
    size_t t = icma_bundle_find_task(bundle, task);
    assert_true(t != SIZE_MAX);
    if (icma_bundle_decode(bundle, t, index, out, &error) != ICMA_OK)
        fail_msg("%s: %s", error.file, error.message);
}

uint8_t *packing_original(const char *root, const char *task, uint64_t step, size_t *size) {
    char path[PATH];
    snprintf(path, sizeof path, "in/%s/checkpoint-%llu/adapter_model.safetensors", task,
             (unsigned long long)step);
    return packing_read(root, path, size);
}

double packing_error(const uint8_t *original, const uint8_t *decoded, size_t size) {
    icma_safetensors s;
    const uint8_t *data;
    icma_error error = {0};
    double wrong = 0, energy = 0;
    assert_int_equal(icma_safetensors_view(original, size, &s, &data, &error), ICMA_OK);
    size_t header = (size_t)(data - original);
    assert_memory_equal(original, decoded, header);
    for (size_t t = 0; t < s.tensor_count; t++) {
        const icma_tensor_info *info = &s.tensors[t];
        const uint8_t *a = data + info->begin, *b = decoded + header + info->begin;
        size_t width = icma_dtype_bits(info->dtype) / 8;
        if (!icma_dtype_is_modelled(info->dtype)) {
            assert_memory_equal(a, b, (size_t)info->size);
            continue;
        }
        for (size_t i = 0; i < info->count; i++) {
            double x, y;
            assert_true(icma_element_to_double(info->dtype, a + i * width, &x) &&
                        icma_element_to_double(info->dtype, b + i * width, &y));
            if (!isfinite(x) || !isfinite(y)) {
                assert_memory_equal(a + i * width, b + i * width, width);
                continue;
            }
            wrong += (x - y) * (x - y);
            energy += x * x;
        }
    }
    icma_safetensors_free(&s);
    return energy > 0 ? sqrt(wrong / energy) : wrong > 0 ? INFINITY : 0;
}

/* --- bounds -------------------------------------------------------------------------------------------- */

enum { WORDS = 128 };

static double *numbers_of(const icma_tensor_info *info, const uint8_t *data, bool *finite) {
    double *x = malloc((size_t)(info->count + 1) * sizeof *x);
    size_t width = icma_dtype_bits(info->dtype) / 8;
    assert_non_null(x);
    *finite = true;
    for (size_t i = 0; i < info->count; i++) {
        assert_true(icma_element_to_double(info->dtype, data + info->begin + i * width, &x[i]));
        *finite = *finite && isfinite(x[i]);
    }
    return x;
}

static bool same_bytes(const icma_tensor_info *info, const uint8_t *a, const uint8_t *b) {
    return info->size == 0 || memcmp(a + info->begin, b + info->begin, (size_t)info->size) == 0;
}

static double one_error(const icma_tensor_info *info, const uint8_t *a, const uint8_t *b,
                        icma_bound_kind kind) {
    bool finite_a, finite_b;
    double wrong = 0, energy = 0, most = 0;
    if (same_bytes(info, a, b))
        return 0;
    if (!icma_dtype_is_modelled(info->dtype))
        return INFINITY;
    double *x = numbers_of(info, a, &finite_a), *y = numbers_of(info, b, &finite_b);
    for (size_t i = 0; finite_a && finite_b && i < info->count; i++) {
        wrong += (x[i] - y[i]) * (x[i] - y[i]);
        energy += x[i] * x[i];
        most = fmax(most, fabs(x[i] - y[i]));
    }
    free(x);
    free(y);
    if (!finite_a || !finite_b)
        return INFINITY;
    return kind == ICMA_BOUND_ABS ? most : wrong == 0 ? 0 : energy > 0 ? sqrt(wrong / energy) : INFINITY;
}

/* Relative error of B A, B being rows x rank and A rank x columns. */
static double product_error(const icma_tensor_info *info_a, const icma_tensor_info *info_b,
                            const uint8_t *original, const uint8_t *decoded) {
    bool finite[4];
    double *a = numbers_of(info_a, original, &finite[0]), *b = numbers_of(info_b, original, &finite[1]);
    double *a2 = numbers_of(info_a, decoded, &finite[2]), *b2 = numbers_of(info_b, decoded, &finite[3]);
    size_t rank = (size_t)info_a->shape[0], columns = (size_t)info_a->shape[1],
           rows = (size_t)info_b->shape[0];
    double wrong = 0, energy = 0;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++) {
            double was = 0, is = 0;
            for (size_t k = 0; k < rank; k++) {
                was += b[i * rank + k] * a[k * columns + j];
                is += b2[i * rank + k] * a2[k * columns + j];
            }
            wrong += (is - was) * (is - was);
            energy += was * was;
        }
    free(a);
    free(b);
    free(a2);
    free(b2);
    if (!finite[0] || !finite[1] || !finite[2] || !finite[3])
        return INFINITY;
    return wrong == 0 ? 0 : energy > 0 ? sqrt(wrong / energy) : INFINITY;
}

/* The B of an A by its name: its place, or the number of tensors where there is none that fits. */
static size_t partner_of(const icma_safetensors *s, size_t a) {
    char name[WORDS];
    const icma_tensor_info *info = &s->tensors[a];
    const char *at = strstr(info->name, ".lora_A.");
    if (!at || strlen(info->name) >= WORDS || info->rank != 2 || info->count == 0 ||
        !icma_dtype_is_modelled(info->dtype))
        return s->tensor_count;
    strcpy(name, info->name);
    name[at - info->name + 6] = 'B';
    for (size_t step = 1; step < s->tensor_count; step++) { /* mostly the next one */
        size_t b = (a + step) % s->tensor_count;
        const icma_tensor_info *other = &s->tensors[b];
        if (strcmp(other->name, name) == 0)
            return other->rank == 2 && other->count && icma_dtype_is_modelled(other->dtype) &&
                           other->shape[1] == info->shape[0]
                       ? b
                       : s->tensor_count;
    }
    return s->tensor_count;
}

double packing_bound_error(const uint8_t *original, const uint8_t *decoded, size_t size,
                           icma_bound_kind kind) {
    icma_safetensors s;
    const uint8_t *data;
    icma_error error = {0};
    double worst = 0;
    assert_int_equal(icma_safetensors_view(original, size, &s, &data, &error), ICMA_OK);
    size_t header = (size_t)(data - original);
    assert_memory_equal(original, decoded, header);
    const uint8_t *other = decoded + header;
    bool *paired = calloc(s.tensor_count + 1, sizeof *paired);
    assert_non_null(paired);
    for (size_t t = 0; kind == ICMA_BOUND_DW && t < s.tensor_count; t++) {
        size_t b = partner_of(&s, t);
        if (b == s.tensor_count)
            continue;
        paired[t] = paired[b] = true;
        if (!same_bytes(&s.tensors[t], data, other) || !same_bytes(&s.tensors[b], data, other))
            worst = fmax(worst, product_error(&s.tensors[t], &s.tensors[b], data, other));
    }
    for (size_t t = 0; t < s.tensor_count; t++)
        if (!paired[t])
            worst = fmax(worst, one_error(&s.tensors[t], data, other, kind));
    free(paired);
    icma_safetensors_free(&s);
    return worst;
}

bool packing_within(double error, icma_bound bound) {
    return error <= (double)bound.value * (1 + 1e-7);
}

double packing_worst_error(const char *root, const char *name) {
    icma_bundle *bundle = packing_open(root, name, icma_ops_cpu());
    double worst = 0;
    for (size_t t = 0; t < icma_bundle_task_count(bundle); t++) {
        icma_task_info info;
        icma_error error = {0};
        assert_int_equal(icma_bundle_task(bundle, t, &info, &error), ICMA_OK);
        for (size_t c = 0; c < info.checkpoint_count; c++) {
            icma_decoded decoded;
            size_t size;
            uint8_t *original = packing_original(root, info.name, info.checkpoints[c].step, &size);
            packing_decode(bundle, info.name, c, &decoded);
            assert_int_equal(decoded.size, size);
            assert_int_equal(info.checkpoints[c].file_size, size);
            worst = fmax(worst, packing_error(original, decoded.data, size));
            icma_decoded_free(&decoded);
            free(original);
        }
    }
    icma_bundle_close(bundle);
    return worst;
}
