/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decodes one tensor of an archive into memory, with libicma:
 *
 *     cc decode_tensor.c $(pkg-config --cflags --libs icma) -o decode_tensor
 *     ./decode_tensor loras.icma                     its tasks
 *     ./decode_tensor loras.icma cat                 the tensors of the last checkpoint of a task
 *     ./decode_tensor loras.icma cat NAME [DEVICE]   one of them: its first numbers and its sum
 */
#include <icma/device.h>
#include <icma/icma.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int list_tasks(icma_bundle *bundle) {
    for (size_t t = 0; t < icma_bundle_task_count(bundle); t++)
        printf("%s\n", icma_bundle_task_name(bundle, t));
    return 0;
}

static int list_tensors(const icma_adapter_tensor *list, size_t count) {
    for (size_t t = 0; t < count; t++) {
        printf("%s %s [", list[t].name, icma_dtype_name(list[t].dtype));
        for (unsigned d = 0; d < list[t].dims; d++)
            printf(d ? ", %llu" : "%llu", (unsigned long long)list[t].shape[d]);
        printf("]\n");
    }
    return 0;
}

static int print_numbers(const icma_adapter_tensor *tensor, const void *data) {
    size_t count = (size_t)(8 * tensor->size / icma_dtype_bits(tensor->dtype));
    float *values = (float *)malloc((count + 1) * sizeof *values);
    double sum = 0;
    if (!values || !icma_dtype_is_modelled(tensor->dtype)) {
        fprintf(stderr, "%s is no float tensor that fits into memory\n", tensor->name);
        free(values);
        return 1;
    }
    icma_load_floats(tensor->dtype, (const uint8_t *)data, count, values);
    for (size_t i = 0; i < count; i++) {
        sum += (double)values[i];
        if (i < 4)
            printf("%.9g ", (double)values[i]);
    }
    printf("... sum %.9g\n", sum);
    free(values);
    return 0;
}

static int decode(icma_bundle *bundle, size_t task, size_t checkpoint, const icma_adapter_tensor *list,
                  size_t count, const char *name, icma_error *error) {
    size_t t = 0;
    while (t < count && strcmp(list[t].name, name) != 0)
        t++;
    if (t == count) {
        icma_fail(error, ICMA_E_NOT_FOUND, NULL, "no tensor %s", name);
        return 1;
    }
    void *data = malloc((size_t)list[t].size + 1);
    int failed =
        !data || icma_bundle_decode_tensor(bundle, task, checkpoint, t, data, (size_t)list[t].size, error)
            ? 1
            : print_numbers(&list[t], data);
    free(data);
    return failed;
}

/* Tensors of the task's last checkpoint, or one of them. */
static int show(icma_bundle *bundle, const char *task_name, const char *tensor, icma_error *error) {
    size_t task = icma_bundle_find_task(bundle, task_name), count;
    icma_task_info info;
    icma_adapter_tensor *list;
    if (task == SIZE_MAX) {
        icma_fail(error, ICMA_E_NOT_FOUND, NULL, "no task %s", task_name);
        return 1;
    }
    if (icma_bundle_task(bundle, task, &info, error) ||
        icma_bundle_tensors(bundle, task, info.checkpoint_count - 1, &list, &count, error))
        return 1;
    int failed = tensor ? decode(bundle, task, info.checkpoint_count - 1, list, count, tensor, error)
                        : list_tensors(list, count);
    icma_free(list);
    return failed;
}

int main(int argc, char **argv) {
    const struct icma_ops *device = NULL; /* the CPU */
    icma_bundle *bundle = NULL;
    icma_device_work work = {0, 0};
    icma_error error = {ICMA_OK, "", ""};
    int failed = 1;
    if (argc < 2 || argc > 5) {
        fprintf(stderr, "usage: decode_tensor B.icma [TASK [TENSOR [DEVICE]]]\n");
        return 2;
    }
    if (!(argc == 5 && icma_device_open(argv[4], ICMA_PRECISION_F32, work, &device, &error)) &&
        !icma_bundle_open(argv[1], device, NULL, &bundle, &error))
        failed = argc < 3 ? list_tasks(bundle) : show(bundle, argv[2], argc > 3 ? argv[3] : NULL, &error);
    if (error.status)
        fprintf(stderr, "%s: %s (libicma %s)\n", error.file[0] ? error.file : icma_status_text(error.status),
                error.message, icma_version());
    icma_bundle_close(bundle);
    return failed;
}
