/* SPDX-License-Identifier: Apache-2.0 */
#include "coarse.h"

#include <math.h>

enum { LARGEST = 127, LOWEST_EXPONENT = -126, HIGHEST_EXPONENT = 120 };

static int exponent_of(const float *values, size_t count) {
    float largest = 0;
    int exponent = LOWEST_EXPONENT;
    for (size_t i = 0; i < count; i++)
        largest = fabsf(values[i]) > largest ? fabsf(values[i]) : largest;
    while (exponent < HIGHEST_EXPONENT && rint(ldexp((double)largest, -exponent)) > LARGEST)
        exponent++;
    return exponent;
}

static int integer_of(float value, int exponent) {
    double integer = rint(ldexp((double)value, -exponent));
    return (int)(integer > LARGEST ? LARGEST : integer < -LARGEST ? -LARGEST : integer);
}

void icma_coarse_round(float *values, size_t count) {
    int exponent = exponent_of(values, count);
    for (size_t i = 0; i < count; i++)
        values[i] = ldexpf((float)integer_of(values[i], exponent), exponent);
}

void icma_coarse_write(icma_buffer *out, float *values, size_t count) {
    int exponent = exponent_of(values, count);
    icma_write_u8(out, (uint8_t)(int8_t)exponent);
    for (size_t i = 0; i < count; i++) {
        int integer = integer_of(values[i], exponent);
        icma_write_u8(out, (uint8_t)(int8_t)integer);
        values[i] = ldexpf((float)integer, exponent);
    }
}

bool icma_coarse_read(icma_cursor *from, float *values, size_t count) {
    int exponent = (int8_t)icma_read_u8(from);
    const uint8_t *bytes = icma_read_bytes(from, count);
    if (!bytes || exponent < LOWEST_EXPONENT || exponent > HIGHEST_EXPONENT)
        return false;
    for (size_t i = 0; i < count; i++) {
        if ((int8_t)bytes[i] < -LARGEST)
            return false;
        values[i] = ldexpf((float)(int8_t)bytes[i], exponent);
    }
    return true;
}
