/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Element types of safetensors, and exact conversions between the float ones.
 */
#ifndef ICMA_DTYPE_H
#define ICMA_DTYPE_H

#include "api.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

ICMA_API_BEGIN

/*      enum              name in the file  bits  modelled as numbers by the codec */
#define ICMA_DTYPE_TABLE(X)                                                                                  \
    X(ICMA_BOOL, "BOOL", 8, false)                                                                           \
    X(ICMA_F4, "F4", 4, false)                                                                               \
    X(ICMA_F6_E2M3, "F6_E2M3", 6, false)                                                                     \
    X(ICMA_F6_E3M2, "F6_E3M2", 6, false)                                                                     \
    X(ICMA_U8, "U8", 8, false)                                                                               \
    X(ICMA_I8, "I8", 8, false)                                                                               \
    X(ICMA_F8_E5M2, "F8_E5M2", 8, false)                                                                     \
    X(ICMA_F8_E4M3, "F8_E4M3", 8, false)                                                                     \
    X(ICMA_F8_E8M0, "F8_E8M0", 8, false)                                                                     \
    X(ICMA_I16, "I16", 16, false)                                                                            \
    X(ICMA_U16, "U16", 16, false)                                                                            \
    X(ICMA_F16, "F16", 16, true)                                                                             \
    X(ICMA_BF16, "BF16", 16, true)                                                                           \
    X(ICMA_I32, "I32", 32, false)                                                                            \
    X(ICMA_U32, "U32", 32, false)                                                                            \
    X(ICMA_F32, "F32", 32, true)                                                                             \
    X(ICMA_C64, "C64", 64, false)                                                                            \
    X(ICMA_F64, "F64", 64, false)                                                                            \
    X(ICMA_I64, "I64", 64, false)                                                                            \
    X(ICMA_U64, "U64", 64, false)

typedef enum icma_dtype {
#define ICMA_DTYPE_ENUM(name, text, bits, modelled) name,
    ICMA_DTYPE_TABLE(ICMA_DTYPE_ENUM)
#undef ICMA_DTYPE_ENUM
        ICMA_DTYPE_COUNT
} icma_dtype;

const char *icma_dtype_name(icma_dtype dtype);
unsigned icma_dtype_bits(icma_dtype dtype);
bool icma_dtype_is_modelled(icma_dtype dtype); /* F32, F16, BF16 */
bool icma_dtype_from_name(const char *name, icma_dtype *out);

/* Bits of the 16-bit formats to and from f32. To f32 is exact. From f32 rounds to nearest, ties to even; a
 * finite value too large becomes infinity (IEEE overflow: "overflow to infinity", spec 4.5); NaN stays NaN
 * with the top payload bits. */
float icma_f16_to_f32(uint16_t bits);
float icma_bf16_to_f32(uint16_t bits);
uint16_t icma_f32_to_f16(float value);
uint16_t icma_f32_to_bf16(float value);

/* Arrays, little-endian bytes on the outside. dtype must be modelled. `in` and `out` at any alignment; no
 * overlap. */
void icma_load_floats(icma_dtype dtype, const uint8_t *in, size_t count, float *out);
void icma_store_floats(icma_dtype dtype, const float *in, size_t count, uint8_t *out);

/* One element of ANY dtype as a double, for comparing files (F4, F6 are not byte-addressable: false).
 * Integers beyond 2^53 round. BOOL is 0 or 1, C64 is refused (false). */
bool icma_element_to_double(icma_dtype dtype, const uint8_t *element, double *out);

ICMA_API_END

#endif
