/* SPDX-License-Identifier: Apache-2.0 */
#include "verbatim.h"

#include "compress.h"
#include "memory.h"

#include <string.h>

bool icma_is_verbatim(const icma_safetensors *signature, const icma_generator *generator, const icma_checkpoint *checkpoint, size_t tensor) {
    if (checkpoint->tier == ICMA_TIER_LOSSLESS)
        return !icma_dtype_is_modelled(signature->tensors[tensor].dtype);
    if (!icma_generator_is_modelled(generator, tensor))
        return true;
    size_t low = 0, high = checkpoint->exception_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (checkpoint->exceptions[middle] < tensor)
            low = middle + 1;
        else
            high = middle;
    }
    return low < checkpoint->exception_count && checkpoint->exceptions[low] == tensor;
}

static size_t users(const icma_safetensors *signature, const icma_generator *generator, const icma_checkpoint *list, size_t count, size_t tensor) {
    size_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += icma_is_verbatim(signature, generator, &list[i], tensor);
    return sum;
}

/* Width of the groups; sub-byte dtypes are grouped as bytes. */
static size_t width_of(const icma_tensor_info *info) {
    unsigned bits = icma_dtype_bits(info->dtype);
    return bits % 8 ? 1 : bits / 8;
}

bool icma_verbatim_size(const icma_safetensors *signature, const icma_generator *generator, const icma_checkpoint *list, size_t count, size_t *out) {
    *out = 0;
    for (size_t t = 0; t < signature->tensor_count; t++) {
        size_t run;
        if (!icma_multiply_size((size_t)signature->tensors[t].size, users(signature, generator, list, count, t), &run) || !icma_add_size(*out, run, out))
            return false;
    }
    return true;
}

icma_status icma_verbatim_write(const icma_safetensors *signature, const icma_generator *generator, const icma_checkpoint *list, size_t count,
                                const uint8_t *const *data, icma_buffer *out, icma_error *error) {
    icma_buffer run = {0};
    for (size_t t = 0; t < signature->tensor_count; t++) {
        const icma_tensor_info *info = &signature->tensors[t];
        run.size = 0;
        for (size_t i = 0; i < count; i++)
            if (icma_is_verbatim(signature, generator, &list[i], t))
                icma_write_bytes(&run, data[i] + info->begin, (size_t)info->size);
        uint8_t *to = run.size ? icma_buffer_extend(out, run.size) : NULL;
        if (to && !run.failed)
            icma_group_bytes(run.data, run.size / width_of(info), width_of(info), to);
    }
    icma_status status = icma_buffer_status(&run, error);
    icma_buffer_free(&run);
    return status ? status : icma_buffer_status(out, error);
}

void icma_verbatim_read(const icma_safetensors *signature, const icma_generator *generator, const icma_checkpoint *list, size_t count, size_t which,
                        const uint8_t *stream, uint8_t *data) {
    for (size_t t = 0; t < signature->tensor_count; t++) {
        const icma_tensor_info *info = &signature->tensors[t];
        size_t all = users(signature, generator, list, count, t), before = users(signature, generator, list, which, t), width = width_of(info);
        size_t each = (size_t)info->size / width;
        if (icma_is_verbatim(signature, generator, &list[which], t))
            for (size_t plane = 0; plane < width; plane++)
                for (size_t i = 0; i < each; i++)
                    data[info->begin + i * width + plane] = stream[plane * all * each + before * each + i];
        stream += (size_t)info->size * all;
    }
}
