/* SPDX-License-Identifier: Apache-2.0 */
/* Functions of single numbers, with the bits that the CPU gives them where decoding needs them
 * (spec 4.5, 4.15). */
#ifndef ICMA_NUMBERS_CUH
#define ICMA_NUMBERS_CUH

#include "cuda_base.cuh"

/* spec 4.15; codec/ops_conv_ref.c says why each step is as it is. */
__device__ __forceinline__ float icma_device_elu(float x) {
    if (x >= 0)
        return x;
    const float inverse = 0x1.715476p0F, high = 0x1.62e4p-1F, low = 0x1.7f7d1cp-20F, round = 0x1.8p23F;
    float v = x < -32 ? -32 : x;
    float n = __fmaf_rn(v, inverse, round), k = __fadd_rn(n, -round);
    float r = __fmaf_rn(k, -low, __fmaf_rn(k, -high, v)), p = 1.0F / 5040;
    p = __fmaf_rn(p, r, 1.0F / 720);
    p = __fmaf_rn(p, r, 1.0F / 120);
    p = __fmaf_rn(p, r, 1.0F / 24);
    p = __fmaf_rn(p, r, 1.0F / 6);
    p = __fmaf_rn(p, r, 1.0F / 2);
    float power = __uint_as_float((__float_as_uint(n) - __float_as_uint(round) + 127) << 23);
    return __fmaf_rn(power, __fmaf_rn(__fmul_rn(r, r), p, r), __fadd_rn(power, -1.0F));
}

__device__ __forceinline__ float icma_device_activate(icma_activation act, float x) {
    if (act == ICMA_ACTIVATION_LEAKY_RELU)
        return x > 0 ? x : 0.01F * x;
    return act == ICMA_ACTIVATION_ELU ? icma_device_elu(x) : x;
}

__device__ __forceinline__ float icma_device_slope(icma_activation act, float x) {
    if (act == ICMA_ACTIVATION_LEAKY_RELU)
        return x > 0 ? 1 : 0.01F;
    return act == ICMA_ACTIVATION_ELU && !(x > 0) ? icma_device_elu(x) + 1 : 1;
}

/* value / 2^shift, to nearest, ties to even. */
__device__ __forceinline__ unsigned icma_device_shift_round(unsigned value, unsigned shift) {
    unsigned half = 1u << (shift - 1), low = value & ((half << 1) - 1), high = value >> shift;
    return high + (low > half || (low == half && (high & 1)));
}

/* As icma_f32_to_f16 and icma_f32_to_bf16 (format/dtype.h), for finite values. */
__device__ __forceinline__ uint16_t icma_device_f16(float value) {
    unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu,
             exponent = magnitude >> 23;
    if (magnitude >= 0x47800000u)
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude >= 0x38800000u)
        return (uint16_t)(sign | icma_device_shift_round(magnitude - 0x38000000u, 13));
    if (exponent < 102)
        return (uint16_t)sign;
    return (uint16_t)(sign | icma_device_shift_round((magnitude & 0x7fffffu) | 0x800000u, 126 - exponent));
}

__device__ __forceinline__ uint16_t icma_device_bf16(float value) {
    unsigned bits = __float_as_uint(value);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

__device__ __forceinline__ bool icma_device_finite(float value) {
    return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

#endif
