/* SPDX-License-Identifier: Apache-2.0 */
/* Qualifiers and built-in types of CUDA C++. */
#ifndef ICMA_EMULATION_TYPES_H
#define ICMA_EMULATION_TYPES_H

#include <cstddef>
#include <cstdint>

/* Declare kernels static, templates above all: the sanitizers put no red zones around shared memory of
 * functions that several objects may define. */
#define __global__
#define __device__
#define __host__
/* Not always_inline: the stacks of threads are small, and a backtrace should name the function. */
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
/* Empty, so that `static __constant__` and `__constant__` both compile. */
#define __constant__
/* One block runs at a time, so one copy serves. What the last block left stands in it. */
#define __shared__ static

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {
    }
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {
    }
};

/* Aligned as CUDA aligns them, for UBSan to catch a cast of a pointer that is not. */
#define ICMA_VECTOR_TYPE(name, type)                                                                         \
    struct alignas(2 * sizeof(type)) name##2 {                                                               \
        type x, y;                                                                                           \
    };                                                                                                       \
    struct alignas(4 * sizeof(type) < 16 ? 4 * sizeof(type) : 16) name##4 {                                  \
        type x, y, z, w;                                                                                     \
    };                                                                                                       \
    inline name##2 make_##name##2(type x, type y) {                                                          \
        return {x, y};                                                                                       \
    }                                                                                                        \
    inline name##4 make_##name##4(type x, type y, type z, type w) {                                          \
        return {x, y, z, w};                                                                                 \
    }

ICMA_VECTOR_TYPE(char, signed char)
ICMA_VECTOR_TYPE(uchar, unsigned char)
ICMA_VECTOR_TYPE(short, short)
ICMA_VECTOR_TYPE(ushort, unsigned short)
ICMA_VECTOR_TYPE(int, int)
ICMA_VECTOR_TYPE(uint, unsigned)
ICMA_VECTOR_TYPE(longlong, long long)
ICMA_VECTOR_TYPE(ulonglong, unsigned long long)
ICMA_VECTOR_TYPE(float, float)
ICMA_VECTOR_TYPE(double, double)

#undef ICMA_VECTOR_TYPE

struct float3 {
    float x, y, z;
};
struct int3 {
    int x, y, z;
};

inline float3 make_float3(float x, float y, float z) {
    return {x, y, z};
}
inline int3 make_int3(int x, int y, int z) {
    return {x, y, z};
}
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) {
    return {x, y, z};
}

#endif
