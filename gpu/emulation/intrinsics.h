/* SPDX-License-Identifier: Apache-2.0 */
/* Arithmetic of device code. Compile with -ffp-contract=off: __fadd_rn and its kin promise not to be fused.
 */
#ifndef ICMA_EMULATION_INTRINSICS_H
#define ICMA_EMULATION_INTRINSICS_H

#include <cstdint>
#include <cstring>
#include <limits>
#include <math.h> /* not <cmath>: device code calls exp(float) without std:: */

namespace emulation {

template <class To, class From> To as(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To out;
    std::memcpy(&out, &value, sizeof out);
    return out;
}

/* Conversions saturate on a GPU and NaN becomes 0; in C++ both are undefined. */
template <class To> To saturated(double value) {
    if (isnan(value))
        return 0;
    if (value <= static_cast<double>(std::numeric_limits<To>::min()))
        return std::numeric_limits<To>::min();
    return value >= static_cast<double>(std::numeric_limits<To>::max()) ? std::numeric_limits<To>::max()
                                                                        : static_cast<To>(value);
}

} // namespace emulation

inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
    return __builtin_popcountll(x);
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
    return __builtin_ffsll(x);
}
inline int __clz(int x) {
    return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
inline int __clzll(long long x) {
    return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline unsigned __brev(unsigned x) {
    unsigned out = 0;
    for (int bit = 0; bit < 32; bit++)
        out |= ((x >> bit) & 1u) << (31 - bit);
    return out;
}
inline unsigned long long __brevll(unsigned long long x) {
    return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
           __brev(static_cast<unsigned>(x >> 32));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned nibble = selector >> (4 * i) & 15,
                       byte = static_cast<unsigned>(bytes >> (8 * (nibble & 7))) & 255;
        /* The top bit of a nibble spreads the byte's sign. */
        out |= (nibble & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
    }
    return out;
}
inline unsigned __umulhi(unsigned x, unsigned y) {
    return static_cast<unsigned>(static_cast<uint64_t>(x) * y >> 32);
}
inline int __mulhi(int x, int y) {
    return static_cast<int>(static_cast<int64_t>(x) * y >> 32);
}
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    const uint64_t low = (x & 0xffffffff) * (y & 0xffffffff), a = (x >> 32) * (y & 0xffffffff),
                   b = (x & 0xffffffff) * (y >> 32);
    const uint64_t middle = (low >> 32) + (a & 0xffffffff) + (b & 0xffffffff);
    return (x >> 32) * (y >> 32) + (a >> 32) + (b >> 32) + (middle >> 32);
}

#define ICMA_BITS(name, to, from)                                                                            \
    inline to name(from x) {                                                                                 \
        return emulation::as<to>(x);                                                                         \
    }
ICMA_BITS(__float_as_int, int, float)
ICMA_BITS(__float_as_uint, unsigned, float)
ICMA_BITS(__int_as_float, float, int)
ICMA_BITS(__uint_as_float, float, unsigned)
ICMA_BITS(__double_as_longlong, long long, double)
ICMA_BITS(__longlong_as_double, double, long long)
#undef ICMA_BITS

#define ICMA_CONVERSION(name, to, from, expression)                                                          \
    inline to name(from x) {                                                                                 \
        return expression;                                                                                   \
    }
ICMA_CONVERSION(__int2float_rn, float, int, static_cast<float>(x))
ICMA_CONVERSION(__uint2float_rn, float, unsigned, static_cast<float>(x))
ICMA_CONVERSION(__ll2float_rn, float, long long, static_cast<float>(x))
ICMA_CONVERSION(__ull2float_rn, float, unsigned long long, static_cast<float>(x))
ICMA_CONVERSION(__int2double_rn, double, int, static_cast<double>(x))
ICMA_CONVERSION(__uint2double_rn, double, unsigned, static_cast<double>(x))
ICMA_CONVERSION(__ll2double_rn, double, long long, static_cast<double>(x))
ICMA_CONVERSION(__double2float_rn, float, double, static_cast<float>(x))
ICMA_CONVERSION(__float2int_rn, int, float, emulation::saturated<int>(rint(static_cast<double>(x))))
ICMA_CONVERSION(__float2int_rz, int, float, emulation::saturated<int>(static_cast<double>(x)))
ICMA_CONVERSION(__float2int_rd, int, float, emulation::saturated<int>(floor(static_cast<double>(x))))
ICMA_CONVERSION(__float2int_ru, int, float, emulation::saturated<int>(ceil(static_cast<double>(x))))
ICMA_CONVERSION(__float2uint_rn, unsigned, float,
                emulation::saturated<unsigned>(rint(static_cast<double>(x))))
ICMA_CONVERSION(__float2ll_rn, long long, float,
                emulation::saturated<long long>(rint(static_cast<double>(x))))
ICMA_CONVERSION(__double2int_rn, int, double, emulation::saturated<int>(rint(x)))
ICMA_CONVERSION(__double2int_rz, int, double, emulation::saturated<int>(x))
ICMA_CONVERSION(__double2ll_rn, long long, double, emulation::saturated<long long>(rint(x)))
ICMA_CONVERSION(__fsqrt_rn, float, float, sqrtf(x))
ICMA_CONVERSION(__frcp_rn, float, float, 1.0f / x)
ICMA_CONVERSION(__dsqrt_rn, double, double, sqrt(x))
ICMA_CONVERSION(rsqrtf, float, float, 1.0f / sqrtf(x))
#undef ICMA_CONVERSION

#define ICMA_ARITHMETIC(name, type, operation)                                                               \
    inline type name(type x, type y) {                                                                       \
        return x operation y;                                                                                \
    }
ICMA_ARITHMETIC(__fadd_rn, float, +)
ICMA_ARITHMETIC(__fsub_rn, float, -)
ICMA_ARITHMETIC(__fmul_rn, float, *)
ICMA_ARITHMETIC(__fdiv_rn, float, /)
ICMA_ARITHMETIC(__fdividef, float, /)
ICMA_ARITHMETIC(__dadd_rn, double, +)
ICMA_ARITHMETIC(__dsub_rn, double, -)
ICMA_ARITHMETIC(__dmul_rn, double, *)
ICMA_ARITHMETIC(__ddiv_rn, double, /)
#undef ICMA_ARITHMETIC

inline float __fmaf_rn(float x, float y, float z) {
    return fmaf(x, y, z);
}
inline double __fma_rn(double x, double y, double z) {
    return fma(x, y, z);
}
/* Macros, because glibc declares functions of these names. Exact to an ulp here, approximations on a GPU. */
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)

/* Mixed arguments convert as CUDA converts them: of equal size to unsigned, else to the larger. Other
 * mixtures are ambiguous there and here. */
#define ICMA_MIN_MAX(type, first, second)                                                                    \
    inline type min(first a, second b) {                                                                     \
        return static_cast<type>(a) < static_cast<type>(b) ? static_cast<type>(a) : static_cast<type>(b);    \
    }                                                                                                        \
    inline type max(first a, second b) {                                                                     \
        return static_cast<type>(a) > static_cast<type>(b) ? static_cast<type>(a) : static_cast<type>(b);    \
    }
#define ICMA_MIN_MAX_OF(type)                                                                                \
    ICMA_MIN_MAX(type, type, type)                                                                           \
    ICMA_MIN_MAX(unsigned type, unsigned type, unsigned type)                                                \
    ICMA_MIN_MAX(unsigned type, type, unsigned type)                                                         \
    ICMA_MIN_MAX(unsigned type, unsigned type, type)
ICMA_MIN_MAX_OF(int)
ICMA_MIN_MAX_OF(long)
ICMA_MIN_MAX_OF(long long)
#undef ICMA_MIN_MAX_OF
#undef ICMA_MIN_MAX

/* Of a NaN and a number, the number. */
#define ICMA_MIN_MAX(type, first, second)                                                                    \
    inline type min(first a, second b) {                                                                     \
        return fmin(static_cast<type>(a), static_cast<type>(b));                                             \
    }                                                                                                        \
    inline type max(first a, second b) {                                                                     \
        return fmax(static_cast<type>(a), static_cast<type>(b));                                             \
    }
ICMA_MIN_MAX(float, float, float)
ICMA_MIN_MAX(double, double, double)
ICMA_MIN_MAX(double, float, double)
ICMA_MIN_MAX(double, double, float)
#undef ICMA_MIN_MAX

#endif
