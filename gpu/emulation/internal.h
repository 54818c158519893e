/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the emulation share. Nothing here is CUDA's. */
#ifndef ICMA_EMULATION_INTERNAL_H
#define ICMA_EMULATION_INTERNAL_H

#include "launch.h"
#include "runtime_api.h"

#include <functional>
#include <mutex>
#include <string>
#include <vector>

namespace emulation {

/* One for all: the device does one thing at a time, and shared memory is there once. */
std::recursive_mutex &device_mutex();

/* True if this call of `name` is the one that is to fail (icma_emulation_fail). */
bool fault(const char *name);

/* Keeps an error for cudaGetLastError. */
cudaError_t remember(cudaError_t error);

/* What a call that no capture allows returns while one goes on; it spoils the capture. cudaSuccess where none
 * does. */
cudaError_t refused_by_capture();

/* Runs `work` now, or notes it where the stream captures. */
cudaError_t submit(cudaStream_t stream, std::function<void()> work);

void run_grid(const char *name, dim3 blocks, dim3 block, threads how, const std::function<void()> &body);

/* The order in which blocks run and threads are resumed: ICMA_EMULATION_ORDER=forward|backward|random:SEED,
 * read anew each time. */
class ordering {
  public:
    /* A permutation of 0..count-1, valid until the next call. */
    const std::vector<unsigned> &of(unsigned count);

  private:
    void follow(const char *wanted);
    void arrange(unsigned count);

    enum { forward, backward, random } kind_ = forward;
    std::string wanted_;
    unsigned long long state_ = 0;
    std::vector<unsigned> order_;
};

/* One call of an API: with the device's lock, and failing where the test says so. */
template <class Status, class Work> Status call(const char *name, Status failure, Work work) {
    const std::lock_guard<std::recursive_mutex> held(device_mutex());
    return fault(name) ? failure : work();
}

template <class Work> cudaError_t runtime_call(const char *name, cudaError_t failure, Work work) {
    return remember(call(name, failure, work));
}
/* Freeing happens also where it fails, as on a device that reports what went wrong earlier. */
template <class Work> cudaError_t release_call(const char *name, Work work) {
    const std::lock_guard<std::recursive_mutex> held(device_mutex());
    const cudaError_t status = work();
    return remember(fault(name) ? cudaErrorLaunchFailure : status);
}

} // namespace emulation

#endif
