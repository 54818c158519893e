/* SPDX-License-Identifier: Apache-2.0 */
/* The module's door: opens GPUs, each once. */
#include "context.cuh"

namespace {

enum { MOST_GPUS = 64 };
icma_context *opened[MOST_GPUS];

void fill_table(icma_ops *table) {
    icma_recording_ops(table);
    icma_elementwise_ops(table);
    icma_row_ops(table);
    icma_norm_ops(table);
    icma_convolution_ops(table);
    icma_product_ops(table);
    icma_decoding_ops(table);
    icma_stream_ops(table);
}

icma_status open_gpu(int index, icma_precision precision, const icma_ops **out, icma_error *error) {
    *out = NULL;
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

bool owns(const icma_ops *ops) {
    for (int i = 0; i < MOST_GPUS; i++)
        if (opened[i] && ops == &opened[i]->table)
            return true;
    return false;
}

void *pointer_of(const icma_tensor *tensor) {
    return tensor->data;
}

void *stream_of(const icma_ops *ops) {
    return (void *)icma_context_of(ops->device)->stream;
}

} /* namespace */

extern "C" __attribute__((visibility("default"))) const icma_module *icma_module_enter(int version) {
    static const icma_module module = {open_gpu, owns, pointer_of, stream_of};
    return version == ICMA_MODULE_VERSION ? &module : NULL;
}
