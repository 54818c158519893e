/* SPDX-License-Identifier: Apache-2.0 */
/* The module's door: opens GPUs, each once. */
#include "context.cuh"

enum { MOST_GPUS = 64 };
static icma_context *opened[MOST_GPUS];

static void fill_table(icma_ops *table) {
    icma_recording_ops(table);
    icma_elementwise_ops(table);
    icma_row_ops(table);
    icma_norm_ops(table);
    icma_convolution_ops(table);
    icma_product_ops(table);
    icma_decoding_ops(table);
    icma_stream_ops(table);
}

extern "C" __attribute__((visibility("default"))) icma_status icma_module_open(int version, int index, icma_precision precision, const icma_ops **out, icma_error *error) {
    *out = NULL;
    if (version != ICMA_MODULE_VERSION)
        return icma_fail(error, ICMA_E_DEVICE, NULL, "the CUDA part is of another build (%d, not %d); install both again", ICMA_MODULE_VERSION, version);
    if (index < 0 || index >= MOST_GPUS)
        return icma_fail(error, ICMA_E_DEVICE, NULL, "there is no GPU %d; use --device cpu", index);
    if (!opened[index]) {
        icma_status status = icma_context_open(index, &opened[index], error);
        if (status)
            return status;
        fill_table(&opened[index]->table);
    }
    opened[index]->precision = precision;
    *out = &opened[index]->table;
    return ICMA_OK;
}

extern "C" __attribute__((visibility("default"))) void *icma_module_pointer(const icma_tensor *tensor) {
    return tensor->data;
}

extern "C" __attribute__((visibility("default"))) void *icma_module_stream(const icma_ops *table) {
    return (void *)icma_context_of(table->device)->stream;
}
