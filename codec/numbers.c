/* SPDX-License-Identifier: Apache-2.0 */
#include "numbers.h"

#include "memory.h"

#include <math.h>

size_t icma_number_size(icma_dtype dtype) {
    return dtype == ICMA_BF16 ? 2 : 4;
}

static float flush(float value) {
    return isnormal(value) ? value : 0;
}

void icma_write_floats(icma_buffer *out, float *values, size_t count, icma_dtype dtype) {
    for (size_t i = 0; i < count; i++) {
        if (dtype == ICMA_BF16) {
            values[i] = flush(icma_bf16_to_f32(icma_f32_to_bf16(values[i])));
            icma_write_u16(out, icma_f32_to_bf16(values[i]));
        } else {
            values[i] = flush(values[i]);
            icma_write_f32(out, values[i]);
        }
    }
}

bool icma_read_floats(icma_cursor *from, float *values, size_t count, icma_dtype dtype) {
    if (count > from->left / icma_number_size(dtype)) {
        from->failed = true;
        return false;
    }
    const uint8_t *bytes = count ? icma_read_bytes(from, count * icma_number_size(dtype)) : NULL;
    if (!bytes)
        return count == 0;
    icma_load_floats(dtype, bytes, count, values);
    for (size_t i = 0; i < count; i++)
        if (values[i] != 0 && !isnormal(values[i]))
            return false;
    return true;
}

bool icma_all_positive(const float *values, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!(values[i] > 0))
            return false;
    return true;
}

bool icma_make_floats(float **out, size_t rows, size_t columns) {
    size_t count;
    *out = NULL;
    if (rows == 0 || columns == 0)
        return true;
    if (!icma_multiply_size(rows, columns, &count))
        return false;
    *out = icma_alloc_zeroed(count, sizeof(float));
    return *out != NULL;
}
