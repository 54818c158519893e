/* SPDX-License-Identifier: Apache-2.0 */
#include "head.h"

#include "memory.h"

#include <math.h>

enum { HEAD_LARGEST = 32767 };

bool icma_head_tensor_size(size_t rows, size_t count, size_t *out) {
    size_t integers, bytes, steps;
    return icma_multiply_size(rows, count, &integers) && icma_multiply_size(integers, 2, &bytes) &&
           icma_multiply_size(rows, 4, &steps) && icma_add_size(bytes, steps, out);
}

static float row_step(const float *values, size_t count) {
    float largest = 0;
    for (size_t l = 0; l < count; l++)
        largest = fmaxf(largest, fabsf(values[l]));
    float step = largest / HEAD_LARGEST;
    return isnormal(step) ? step : 0;
}

icma_status icma_head_write_tensor(const float *values, size_t rows, size_t count, float *steps, int16_t *integers,
                                   icma_buffer *out, icma_error *error) {
    for (size_t k = 0; k < rows; k++) {
        float step = row_step(values + k * count, count);
        for (size_t l = 0; l < count; l++) {
            float scaled = step > 0 ? roundf(values[k * count + l] / step) : 0;
            integers[k * count + l] = (int16_t)fmaxf(-HEAD_LARGEST, fminf(HEAD_LARGEST, scaled));
        }
        steps[k] = step > 0 ? step : 1;
        icma_write_f32(out, steps[k]);
    }
    size_t cells = rows * count;
    uint8_t *grouped = icma_buffer_extend(out, cells * 2);
    for (size_t i = 0; grouped && i < cells; i++) {
        grouped[i] = (uint8_t)(uint16_t)integers[i];
        grouped[cells + i] = (uint8_t)((uint16_t)integers[i] >> 8);
    }
    return icma_buffer_status(out, error);
}

icma_status icma_head_read_tensor(icma_cursor *from, size_t rows, size_t count, float *steps, int16_t *integers,
                                  icma_error *error) {
    for (size_t k = 0; k < rows; k++) {
        steps[k] = icma_read_f32(from);
        if (!from->failed && !(isnormal(steps[k]) && steps[k] > 0))
            return icma_fail(error, ICMA_E_CORRUPT, NULL, "head: a step is not positive");
    }
    size_t cells = rows * count;
    const uint8_t *grouped = cells <= from->left / 2 ? icma_read_bytes(from, cells * 2) : NULL;
    if (from->failed || (!grouped && cells))
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "head: truncated");
    for (size_t i = 0; i < cells; i++) {
        integers[i] = (int16_t)(uint16_t)(grouped[i] | grouped[cells + i] << 8);
        if (integers[i] == INT16_MIN)
            return icma_fail(error, ICMA_E_CORRUPT, NULL, "head: an integer is out of range");
    }
    return ICMA_OK;
}
