/* SPDX-License-Identifier: Apache-2.0 */
/* The emulated device: its properties, its memory, and the errors that it keeps. */
#include "internal.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

namespace emulation {

static thread_local cudaError_t last_error = cudaSuccess;
static thread_local int chosen_device = 0;

cudaError_t remember(cudaError_t error) {
    if (error != cudaSuccess)
        last_error = error;
    return error;
}

/* Two tables, of the device and of pinned memory. The addresses are stored inverted, so that LeakSanitizer
 * does not take a table for an owner; that also orders them from high to low, which lets lower_bound find the
 * allocation that an address lies in. */
struct table {
    std::map<uintptr_t, size_t> sizes;
    size_t used = 0;
};
static table &of_device = *new table,
             &of_host = *new table; /* never destroyed: what others do at exit may free */

static uintptr_t key(const void *memory) {
    return ~reinterpret_cast<uintptr_t>(memory);
}

static unsigned long long setting(const char *name, unsigned long long otherwise) {
    const char *value = std::getenv(name);
    return value ? std::strtoull(value, nullptr, 10) : otherwise;
}
static size_t memory_size() {
    return setting("ICMA_EMULATION_MEMORY", 1ull << 30);
}
static int device_count() {
    return static_cast<int>(setting("ICMA_EMULATION_DEVICES", 1));
}

/* Of an allocation; touching all of a large one would take longer than the test. */
static const size_t to_poison = size_t(4) << 20;

static cudaError_t allocate(table &in, void **out, size_t size, size_t limit) {
    if (out == nullptr)
        return cudaErrorInvalidValue;
    *out = nullptr;
    if (size == 0)
        return cudaSuccess;
    if (size > limit || in.used > limit - size || posix_memalign(out, 256, size) != 0)
        return cudaErrorMemoryAllocation;
    std::memset(*out, 0xff,
                std::min(size, to_poison)); /* NaNs, for what is read before it is written to show */
    in.sizes.emplace(key(*out), size);
    in.used += size;
    return cudaSuccess;
}

static cudaError_t release(table &in, void *memory) {
    const auto found = in.sizes.find(key(memory));
    if (memory == nullptr)
        return cudaSuccess;
    if (found == in.sizes.end())
        return cudaErrorInvalidValue;
    in.used -= found->second;
    in.sizes.erase(found);
    std::free(memory);
    return cudaSuccess;
}

enum class place { host, device, astride };

static place place_of(const void *memory, size_t size) {
    const uintptr_t first = reinterpret_cast<uintptr_t>(memory);
    const auto found = of_device.sizes.lower_bound(key(memory));
    if (found == of_device.sizes.end() || first - ~found->first >= found->second)
        return place::host;
    return size <= found->second - (first - ~found->first) ? place::device : place::astride;
}

static bool copy_allowed(const void *to, const void *from, size_t size, cudaMemcpyKind kind) {
    const place target = place_of(to, size), source = place_of(from, size);
    if (target == place::astride || source == place::astride)
        return false;
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    return kind == cudaMemcpyDefault ||
           ((target == place::device) == to_device && (source == place::device) == from_device);
}

static cudaError_t copy(void *to, const void *from, size_t size, cudaMemcpyKind kind, cudaStream_t stream) {
    if (size == 0)
        return cudaSuccess;
    if (!copy_allowed(to, from, size, kind))
        return cudaErrorInvalidValue;
    return submit(stream, [=] { std::memcpy(to, from, size); });
}

static cudaError_t fill(void *to, int byte, size_t size, cudaStream_t stream) {
    if (size == 0)
        return cudaSuccess;
    if (place_of(to, size) != place::device)
        return cudaErrorInvalidValue;
    return submit(stream, [=] { std::memset(to, byte, size); });
}

/* `work`, unless a capture forbids the call. */
template <class Work> static cudaError_t outside_capture(Work work) {
    const cudaError_t refused = refused_by_capture();
    return refused != cudaSuccess ? refused : work();
}

static cudaError_t attribute_value(int *value, cudaDeviceAttr attribute) {
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = 1024;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = 48 << 10;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = 227 << 10;
        return cudaSuccess;
    case cudaDevAttrWarpSize:
        *value = 32;
        return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
        *value = 4;
        return cudaSuccess;
    case cudaDevAttrL2CacheSize:
        *value = 4 << 20;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
        *value = 9;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value = 0;
        return cudaSuccess;
    case cudaDevAttrMemoryPoolsSupported:
        *value = 1;
        return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}

} // namespace emulation

using namespace emulation;

cudaError_t cudaGetDeviceCount(int *count) {
    return runtime_call("cudaGetDeviceCount", cudaErrorNoDevice, [=] {
        *count = device_count();
        return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
    });
}

cudaError_t cudaSetDevice(int device) {
    return runtime_call("cudaSetDevice", cudaErrorInvalidDevice, [=] {
        if (device < 0 || device >= device_count())
            return cudaErrorInvalidDevice;
        chosen_device = device;
        return cudaSuccess;
    });
}

cudaError_t cudaGetDevice(int *device) {
    return runtime_call("cudaGetDevice", cudaErrorInitializationError, [=] {
        *device = chosen_device;
        return cudaSuccess;
    });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    return runtime_call("cudaGetDeviceProperties", cudaErrorInvalidDevice, [=] {
        if (device < 0 || device >= device_count())
            return cudaErrorInvalidDevice;
        *properties = {};
        std::snprintf(properties->name, sizeof properties->name, "emulated");
        properties->totalGlobalMem = memory_size();
        properties->sharedMemPerBlock = 48 << 10;
        properties->sharedMemPerBlockOptin = 227 << 10;
        properties->warpSize = 32;
        properties->maxThreadsPerBlock = 1024;
        properties->multiProcessorCount = 4;
        properties->major = 9;
        properties->l2CacheSize = 4 << 20;
        properties->pciBusID = device;
        return cudaSuccess;
    });
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    return runtime_call("cudaDeviceGetAttribute", cudaErrorInvalidDevice, [=] {
        return device < 0 || device >= device_count() ? cudaErrorInvalidDevice
                                                      : attribute_value(value, attribute);
    });
}

cudaError_t cudaDriverGetVersion(int *version) {
    return runtime_call("cudaDriverGetVersion", cudaErrorUnknown, [=] {
        *version = CUDART_VERSION;
        return cudaSuccess;
    });
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    return runtime_call("cudaRuntimeGetVersion", cudaErrorUnknown, [=] {
        *version = CUDART_VERSION;
        return cudaSuccess;
    });
}

cudaError_t cudaDeviceSynchronize() {
    return runtime_call("cudaDeviceSynchronize", cudaErrorLaunchFailure, refused_by_capture);
}

cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError() {
    return last_error;
}

#define ICMA_ERRORS(each)                                                                                    \
    each(cudaSuccess, "no error") each(cudaErrorInvalidValue, "invalid argument") each(                      \
        cudaErrorMemoryAllocation, "out of memory") each(cudaErrorInitializationError,                       \
                                                         "initialization error")                             \
        each(cudaErrorInvalidConfiguration, "invalid configuration argument") each(                          \
            cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version")     \
            each(cudaErrorNoDevice, "no CUDA-capable device is detected") each(                              \
                cudaErrorInvalidDevice, "invalid device ordinal") each(cudaErrorInvalidResourceHandle,       \
                                                                       "invalid resource handle")            \
                each(cudaErrorIllegalState, "the operation cannot be performed in the present state") each(  \
                    cudaErrorNotReady, "device not ready") each(cudaErrorIllegalAddress,                     \
                                                                "an illegal memory access was encountered")  \
                    each(cudaErrorLaunchOutOfResources, "too many resources requested for launch") each(     \
                        cudaErrorLaunchFailure,                                                              \
                        "unspecified launch failure") each(cudaErrorNotPermitted, "operation not permitted") \
                        each(cudaErrorNotSupported, "operation not supported")                               \
                            each(cudaErrorStreamCaptureUnsupported,                                          \
                                 "operation not permitted when stream is capturing")                         \
                                each(cudaErrorStreamCaptureInvalidated,                                      \
                                     "operation failed due to a previous error during capture")              \
                                    each(cudaErrorStreamCaptureUnmatched,                                    \
                                         "capture was not initiated in this stream")                         \
                                        each(cudaErrorStreamCaptureUnjoined,                                 \
                                             "capturing stream has unjoined work")                           \
                                            each(cudaErrorStreamCaptureIsolation,                            \
                                                 "dependency created on uncaptured work in another stream")  \
                                                each(cudaErrorCapturedEvent,                                 \
                                                     "operation not permitted on an event last recorded in " \
                                                     "a capturing stream")                                   \
                                                    each(cudaErrorUnknown, "unknown error")

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
#define ICMA_CASE(name, words)                                                                               \
    case name:                                                                                               \
        return words;
        ICMA_ERRORS(ICMA_CASE)
#undef ICMA_CASE
    }
    return "unrecognized error code";
}

const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define ICMA_CASE(name, words)                                                                               \
    case name:                                                                                               \
        return #name;
        ICMA_ERRORS(ICMA_CASE)
#undef ICMA_CASE
    }
    return "unrecognized error code";
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    return runtime_call("cudaMemGetInfo", cudaErrorUnknown, [=] {
        *total = memory_size();
        *free_bytes = *total - std::min(*total, of_device.used);
        return cudaSuccess;
    });
}

cudaError_t cudaMalloc(void **out, size_t size) {
    return runtime_call("cudaMalloc", cudaErrorMemoryAllocation, [=] {
        return outside_capture([=] { return allocate(of_device, out, size, memory_size()); });
    });
}

cudaError_t cudaFree(void *memory) {
    return release_call("cudaFree",
                        [=] { return outside_capture([=] { return release(of_device, memory); }); });
}

/* CUDA can capture allocations of a stream; the emulation cannot. */
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int) {
    *pool = nullptr;
    return runtime_call("cudaDeviceGetDefaultMemPool", cudaErrorUnknown, [] { return cudaSuccess; });
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *) {
    return runtime_call("cudaMemPoolSetAttribute", cudaErrorUnknown, [] { return cudaSuccess; });
}

cudaError_t cudaMallocAsync(void **out, size_t size, cudaStream_t) {
    return runtime_call("cudaMallocAsync", cudaErrorMemoryAllocation, [=] {
        return outside_capture([=] { return allocate(of_device, out, size, memory_size()); });
    });
}

cudaError_t cudaFreeAsync(void *memory, cudaStream_t) {
    return release_call("cudaFreeAsync",
                        [=] { return outside_capture([=] { return release(of_device, memory); }); });
}

cudaError_t cudaMallocHost(void **out, size_t size) {
    return runtime_call("cudaMallocHost", cudaErrorMemoryAllocation, [=] {
        return outside_capture([=] { return allocate(of_host, out, size, SIZE_MAX); });
    });
}

cudaError_t cudaHostAlloc(void **out, size_t size, unsigned) {
    return runtime_call("cudaHostAlloc", cudaErrorMemoryAllocation, [=] {
        return outside_capture([=] { return allocate(of_host, out, size, SIZE_MAX); });
    });
}

cudaError_t cudaFreeHost(void *memory) {
    return release_call("cudaFreeHost",
                        [=] { return outside_capture([=] { return release(of_host, memory); }); });
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind kind) {
    return runtime_call("cudaMemcpy", cudaErrorLaunchFailure,
                        [=] { return outside_capture([=] { return copy(to, from, size, kind, nullptr); }); });
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return runtime_call("cudaMemcpyAsync", cudaErrorLaunchFailure,
                        [=] { return copy(to, from, size, kind, stream); });
}

cudaError_t cudaMemset(void *to, int byte, size_t size) {
    return runtime_call("cudaMemset", cudaErrorLaunchFailure,
                        [=] { return outside_capture([=] { return fill(to, byte, size, nullptr); }); });
}

cudaError_t cudaMemsetAsync(void *to, int byte, size_t size, cudaStream_t stream) {
    return runtime_call("cudaMemsetAsync", cudaErrorLaunchFailure,
                        [=] { return fill(to, byte, size, stream); });
}
