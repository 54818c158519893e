/* SPDX-License-Identifier: Apache-2.0 */
/* What device code calls: built-in variables, barriers, warp collectives, atomics, and (in intrinsics.h)
 * arithmetic. */
#ifndef ICMA_EMULATION_DEVICE_FUNCTIONS_H
#define ICMA_EMULATION_DEVICE_FUNCTIONS_H

#include "intrinsics.h"
#include "types.h"

#include <cstdlib>
#include <cstring>
#include <type_traits>

namespace emulation {

struct coordinates {
    uint3 thread, block;
    dim3 block_size, grid_size;
};
extern coordinates here; /* of the thread that runs */

struct block_votes {
    int yes, present;
};
/* Waits for every thread of the block that has not left the kernel. `line` tells barriers apart: threads of a
 * block that meet at two of them are an error. */
block_votes block_barrier(const char *kind, int line, bool vote);

struct warp_votes {
    unsigned long long value; /* that the lane `source` gave; all ones if it is not there */
    unsigned ballot, present;
};
/* Waits for every lane of `mask` that has not left the kernel. */
warp_votes warp_barrier(const char *kind, int line, unsigned mask, unsigned long long value, unsigned source);
unsigned lane();

template <class T> T shuffle(const char *kind, int line, unsigned mask, T value, unsigned source) {
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                  "CUDA shuffles values of 4 or 8 bytes");
    unsigned long long bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = warp_barrier(kind, line, mask, bits, source).value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

} // namespace emulation

inline const uint3 &threadIdx = emulation::here.thread;
inline const uint3 &blockIdx = emulation::here.block;
inline const dim3 &blockDim = emulation::here.block_size;
inline const dim3 &gridDim = emulation::here.grid_size;
constexpr int warpSize = 32;

inline void __syncthreads(int line = __builtin_LINE()) {
    emulation::block_barrier("__syncthreads", line, false);
}
inline int __syncthreads_or(int predicate, int line = __builtin_LINE()) {
    return emulation::block_barrier("__syncthreads_or", line, predicate != 0).yes != 0;
}
inline int __syncthreads_and(int predicate, int line = __builtin_LINE()) {
    const emulation::block_votes votes = emulation::block_barrier("__syncthreads_and", line, predicate != 0);
    return votes.yes == votes.present;
}
inline int __syncthreads_count(int predicate, int line = __builtin_LINE()) {
    return emulation::block_barrier("__syncthreads_count", line, predicate != 0).yes;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
    emulation::warp_barrier("__syncwarp", line, mask, 0, emulation::lane());
}
inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return emulation::warp_barrier("__ballot_sync", line, mask, predicate != 0, 0).ballot;
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return emulation::warp_barrier("__any_sync", line, mask, predicate != 0, 0).ballot != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    const emulation::warp_votes votes = emulation::warp_barrier("__all_sync", line, mask, predicate != 0, 0);
    return votes.ballot == votes.present;
}

/* A warp may be cut into segments of `width` lanes, a power of two; a source beyond the segment is the lane
 * itself. */
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
    const unsigned within = static_cast<unsigned>(width) - 1, first = emulation::lane() & ~within;
    return emulation::shuffle("__shfl_sync", line, mask, value,
                              first | (static_cast<unsigned>(source) & within));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    const unsigned lane = emulation::lane(), position = lane & (static_cast<unsigned>(width) - 1);
    return emulation::shuffle("__shfl_up_sync", line, mask, value, delta > position ? lane : lane - delta);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    const unsigned lane = emulation::lane(),
                   after = static_cast<unsigned>(width) - 1 - (lane & (static_cast<unsigned>(width) - 1));
    return emulation::shuffle("__shfl_down_sync", line, mask, value, delta > after ? lane : lane + delta);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, int line = __builtin_LINE()) {
    const unsigned lane = emulation::lane(), end = (lane | (static_cast<unsigned>(width) - 1)) + 1;
    const unsigned source = (lane ^ static_cast<unsigned>(bits)) & 31;
    return emulation::shuffle("__shfl_xor_sync", line, mask, value, source >= end ? lane : source);
}

inline void __threadfence() {
}
inline void __threadfence_block() {
}
[[noreturn]] inline void __trap() {
    std::abort();
}
template <class T> T __ldg(const T *from) {
    return *from;
}

/* Overloads for the types that CUDA has, and no template: uint64_t, an unsigned long here, compiles in
 * neither. */
#define ICMA_ATOMIC(name, type, next)                                                                        \
    inline type name(type *at, type value) {                                                                 \
        const type old = *at;                                                                                \
        *at = static_cast<type>(next);                                                                       \
        return old;                                                                                          \
    }
/* The sum wraps, which in a signed type would be undefined. */
#define ICMA_ATOMIC_INTEGERS(type)                                                                           \
    ICMA_ATOMIC(atomicAdd, type,                                                                             \
                static_cast<unsigned long long>(old) + static_cast<unsigned long long>(value))               \
    ICMA_ATOMIC(atomicMin, type, old < value ? old : value)                                                  \
    ICMA_ATOMIC(atomicMax, type, old > value ? old : value)                                                  \
    ICMA_ATOMIC(atomicAnd, type, old &value)                                                                 \
    ICMA_ATOMIC(atomicOr, type, old | value)                                                                 \
    ICMA_ATOMIC(atomicXor, type, old ^ value)                                                                \
    ICMA_ATOMIC(atomicExch, type, value)                                                                     \
    inline type atomicCAS(type *at, type expected, type value) {                                             \
        const type old = *at;                                                                                \
        *at = old == expected ? value : old;                                                                 \
        return old;                                                                                          \
    }

ICMA_ATOMIC_INTEGERS(int)
ICMA_ATOMIC_INTEGERS(unsigned)
ICMA_ATOMIC_INTEGERS(unsigned long long)
ICMA_ATOMIC(atomicAdd, float, old + value)
ICMA_ATOMIC(atomicAdd, double, old + value)

#undef ICMA_ATOMIC_INTEGERS
#undef ICMA_ATOMIC

#endif
