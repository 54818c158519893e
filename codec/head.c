/* SPDX-License-Identifier: Apache-2.0 */
#include "head.h"

#include "memory.h"

#include <math.h>
#include <string.h>

enum { HEAD_LARGEST = 32767 };

static float row_step(const float *values, size_t count) {
    float largest = 0;
    for (size_t l = 0; l < count; l++)
        largest = fmaxf(largest, fabsf(values[l]));
    float step = largest / HEAD_LARGEST;
    return isnormal(step) ? step : 0;
}

icma_status icma_head_add_tensor(icma_head_chunk *chunk, const float *values, size_t rows, size_t count, icma_error *error) {
    for (size_t k = 0; k < rows; k++) {
        float step = row_step(values + k * count, count);
        icma_write_f32(&chunk->steps, step > 0 ? step : 1);
        uint8_t *low = icma_buffer_extend(&chunk->low, count), *high = icma_buffer_extend(&chunk->high, count);
        if (!low || !high)
            return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the basis");
        for (size_t l = 0; l < count; l++) {
            float scaled = step > 0 ? roundf(values[k * count + l] / step) : 0;
            uint16_t bits = (uint16_t)(int16_t)fmaxf(-HEAD_LARGEST, fminf(HEAD_LARGEST, scaled));
            low[l] = (uint8_t)bits;
            high[l] = (uint8_t)(bits >> 8);
        }
    }
    return icma_buffer_status(&chunk->steps, error);
}

size_t icma_head_size(const icma_head_chunk *chunk) {
    return chunk->steps.size + chunk->low.size + chunk->high.size;
}

icma_status icma_head_take(icma_head_chunk *chunk, icma_buffer *out, icma_error *error) {
    icma_buffer *parts[3] = {&chunk->steps, &chunk->low, &chunk->high};
    out->size = 0;
    for (int i = 0; i < 3; i++) {
        icma_write_bytes(out, parts[i]->data, parts[i]->size);
        parts[i]->size = 0;
    }
    return icma_buffer_status(out, error);
}

void icma_head_free(icma_head_chunk *chunk) {
    icma_buffer_free(&chunk->steps);
    icma_buffer_free(&chunk->low);
    icma_buffer_free(&chunk->high);
}

bool icma_head_extent(const icma_safetensors *signature, const icma_generator *generator, size_t first, size_t count, size_t *steps, size_t *integers) {
    *steps = 0;
    *integers = 0;
    for (size_t t = first; t < first + count; t++) {
        size_t cells, rows = icma_generator_is_modelled(generator, t) ? generator->components[generator->treatment[t]] : 0;
        if (signature->tensors[t].count > SIZE_MAX / 4 || !icma_multiply_size(rows, (size_t)signature->tensors[t].count, &cells) ||
            !icma_add_size(*integers, cells, integers))
            return false;
        *steps += rows;
    }
    return true;
}

bool icma_head_raw_size(size_t steps, size_t integers, size_t *out) {
    size_t a, b;
    return icma_multiply_size(steps, 4, &a) && icma_multiply_size(integers, 2, &b) && icma_add_size(a, b, out);
}

icma_status icma_head_read(const uint8_t *payload, size_t steps, size_t integers, float *steps_out, int16_t *integers_out, icma_error *error) {
    icma_load_floats(ICMA_F32, payload, steps, steps_out);
    for (size_t k = 0; k < steps; k++)
        if (!(isnormal(steps_out[k]) && steps_out[k] > 0))
            return icma_fail(error, ICMA_E_CORRUPT, NULL, "head: a step is not positive");
    const uint8_t *low = payload + 4 * steps, *high = low + integers;
    int16_t least = 0;
    for (size_t i = 0; i < integers; i++) {
        integers_out[i] = (int16_t)(uint16_t)(low[i] | high[i] << 8);
        least = integers_out[i] < least ? integers_out[i] : least;
    }
    if (least < -HEAD_LARGEST)
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "head: an integer is out of range");
    return ICMA_OK;
}
