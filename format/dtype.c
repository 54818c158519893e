/* SPDX-License-Identifier: Apache-2.0 */
#include "dtype.h"

#include "bytes.h"

#include <math.h>
#include <string.h>

typedef struct dtype_row {
    const char *name;
    unsigned bits;
    bool modelled;
} dtype_row;

static const dtype_row dtypes[] = {
#define DTYPE_ROW(name, text, bits, modelled) [name] = {text, bits, modelled},
    ICMA_DTYPE_TABLE(DTYPE_ROW)
#undef DTYPE_ROW
};

const char *icma_dtype_name(icma_dtype dtype) {
    return (unsigned)dtype < ICMA_DTYPE_COUNT ? dtypes[dtype].name : "?";
}

unsigned icma_dtype_bits(icma_dtype dtype) {
    return (unsigned)dtype < ICMA_DTYPE_COUNT ? dtypes[dtype].bits : 0;
}

bool icma_dtype_is_modelled(icma_dtype dtype) {
    return (unsigned)dtype < ICMA_DTYPE_COUNT && dtypes[dtype].modelled;
}

bool icma_dtype_from_name(const char *name, icma_dtype *out) {
    for (int i = 0; i < ICMA_DTYPE_COUNT; i++) {
        if (strcmp(name, dtypes[i].name) == 0) {
            *out = (icma_dtype)i;
            return true;
        }
    }
    return false;
}

static float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

float icma_f16_to_f32(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    uint32_t exponent = bits >> 10 & 0x1fu;
    uint32_t mantissa = bits & 0x3ffu;
    if (exponent == 0x1f)
        return float_of_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent)
        return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    if (!mantissa)
        return float_of_bits(sign);
    /* Denormal here, normal in f32: shift until the leading one falls off. */
    exponent = 113;
    for (; !(mantissa & 0x400u); exponent--)
        mantissa <<= 1;
    return float_of_bits(sign | exponent << 23 | (mantissa & 0x3ffu) << 13);
}

float icma_bf16_to_f32(uint16_t bits) {
    return float_of_bits((uint32_t)bits << 16);
}

/* value / 2^shift, to nearest, ties to even. */
static uint32_t shift_round(uint32_t value, unsigned shift) {
    uint32_t half = 1u << (shift - 1);
    uint32_t low = value & ((half << 1) - 1);
    uint32_t high = value >> shift;
    return high + (low > half || (low == half && (high & 1)));
}

uint16_t icma_f32_to_f16(float value) {
    uint32_t bits = bits_of_float(value);
    uint32_t sign = bits >> 16 & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) { /* a NaN whose upper payload is empty would read as infinity */
        uint32_t payload = magnitude >> 13 & 0x3ffu;
        return (uint16_t)(sign | 0x7c00u | (payload ? payload : 0x200u));
    }
    if (magnitude >= 0x47800000u) /* 2^16 and up; what rounds up to it overflows by itself below */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude >= 0x38800000u) /* normal: 2^-14 and up; a carry moves into the exponent as it should */
        return (uint16_t)(sign | shift_round(magnitude - 0x38000000u, 13));
    unsigned exponent = magnitude >> 23;
    if (exponent < 102) /* under 2^-25: nearer to zero than to the smallest denormal */
        return (uint16_t)sign;
    uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    return (uint16_t)(sign | shift_round(mantissa, 126 - exponent));
}

uint16_t icma_f32_to_bf16(float value) {
    uint32_t bits = bits_of_float(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        uint32_t top = bits >> 16;
        return (uint16_t)(top & 0x7fu ? top : top | 0x40u);
    }
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

/* Where bytes lie as in the file, f32 arrays are copied whole: a loop over bytes costs more than the rest of a decode. */
#if defined(__BYTE_ORDER__) && defined(__ORDER_LITTLE_ENDIAN__)
enum { HOST_IS_LITTLE_ENDIAN = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ };
#else
enum { HOST_IS_LITTLE_ENDIAN = 0 };
#endif

void icma_load_floats(icma_dtype dtype, const uint8_t *in, size_t count, float *out) {
    if (dtype == ICMA_F16)
        for (size_t i = 0; i < count; i++)
            out[i] = icma_f16_to_f32(icma_load_u16(in + 2 * i));
    else if (dtype == ICMA_BF16)
        for (size_t i = 0; i < count; i++)
            out[i] = icma_bf16_to_f32(icma_load_u16(in + 2 * i));
    else if (dtype == ICMA_F32 && HOST_IS_LITTLE_ENDIAN && count)
        memcpy(out, in, count * sizeof *out);
    else if (dtype == ICMA_F32)
        for (size_t i = 0; i < count; i++)
            out[i] = float_of_bits(icma_load_u32(in + 4 * i));
}

void icma_store_floats(icma_dtype dtype, const float *in, size_t count, uint8_t *out) {
    if (dtype == ICMA_F16)
        for (size_t i = 0; i < count; i++)
            icma_store_u16(out + 2 * i, icma_f32_to_f16(in[i]));
    else if (dtype == ICMA_BF16)
        for (size_t i = 0; i < count; i++)
            icma_store_u16(out + 2 * i, icma_f32_to_bf16(in[i]));
    else if (dtype == ICMA_F32 && HOST_IS_LITTLE_ENDIAN && count)
        memcpy(out, in, count * sizeof *in);
    else if (dtype == ICMA_F32)
        for (size_t i = 0; i < count; i++)
            icma_store_u32(out + 4 * i, bits_of_float(in[i]));
}

static double signed_of_bits(uint64_t bits, unsigned width) {
    uint64_t sign = UINT64_C(1) << (width - 1);
    return bits & sign ? -(double)(~bits & (sign - 1)) - 1.0 : (double)bits;
}

/* OCP 8-bit floats: E4M3 has no infinity and one NaN a sign, E5M2 is IEEE-like (a truncated half). */
static double f8_e4m3_to_double(uint8_t bits) {
    double sign = bits & 0x80 ? -1.0 : 1.0;
    int exponent = bits >> 3 & 15;
    int mantissa = bits & 7;
    if (exponent == 15 && mantissa == 7)
        return NAN;
    return sign * (exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9));
}

bool icma_element_to_double(icma_dtype dtype, const uint8_t *element, double *out) {
    uint64_t bits;
    switch (dtype) {
    case ICMA_BOOL:
        *out = element[0] ? 1.0 : 0.0;
        return true;
    case ICMA_U8:
        *out = element[0];
        return true;
    case ICMA_I8:
        *out = signed_of_bits(element[0], 8);
        return true;
    case ICMA_F8_E5M2:
        *out = icma_f16_to_f32((uint16_t)(element[0] << 8));
        return true;
    case ICMA_F8_E4M3:
        *out = f8_e4m3_to_double(element[0]);
        return true;
    case ICMA_F8_E8M0:
        *out = element[0] == 255 ? NAN : ldexp(1.0, element[0] - 127);
        return true;
    case ICMA_U16:
        *out = icma_load_u16(element);
        return true;
    case ICMA_I16:
        *out = signed_of_bits(icma_load_u16(element), 16);
        return true;
    case ICMA_F16:
        *out = icma_f16_to_f32(icma_load_u16(element));
        return true;
    case ICMA_BF16:
        *out = icma_bf16_to_f32(icma_load_u16(element));
        return true;
    case ICMA_U32:
        *out = icma_load_u32(element);
        return true;
    case ICMA_I32:
        *out = signed_of_bits(icma_load_u32(element), 32);
        return true;
    case ICMA_F32:
        *out = float_of_bits(icma_load_u32(element));
        return true;
    case ICMA_U64:
        *out = (double)icma_load_u64(element);
        return true;
    case ICMA_I64:
        bits = icma_load_u64(element);
        *out = bits >> 63 ? -(double)(~bits + 1) : (double)bits;
        return true;
    case ICMA_F64:
        bits = icma_load_u64(element);
        memcpy(out, &bits, sizeof *out);
        return true;
    default:
        return false;
    }
}
