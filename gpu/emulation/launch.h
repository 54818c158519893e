/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Launching kernels.
 *
 * ICMA_LAUNCH(kernel, grid, block, stream, arguments...): every thread is a fiber, so barriers and warp
 * collectives work. ICMA_LAUNCH_FLAT, the same arguments: for a kernel that has neither: the threads are a
 * plain loop. A barrier in one aborts.
 *
 * A kernel whose name has a comma stands in parentheses: ICMA_LAUNCH((k<8, 4>), ...). Errors are read with
 * cudaGetLastError, as after <<<>>>.
 */
#ifndef ICMA_EMULATION_LAUNCH_H
#define ICMA_EMULATION_LAUNCH_H

#include "runtime_api.h"
#include "types.h"

#include <functional>
#include <type_traits>

namespace emulation {

enum class threads { fibers, flat };

/* Runs a grid, or notes it where the stream captures. */
void launch(const char *name, dim3 grid, dim3 block, cudaStream_t stream, threads how,
            std::function<void()> body);

/* A call with exactly the kernel's parameters, so that arguments convert as they do in <<<>>>. */
template <class... P> struct launcher {
    const char *name;
    threads how;
    void (*kernel)(P...);

    void operator()(dim3 grid, dim3 block, cudaStream_t stream, P... p) const {
        static_assert((std::is_trivially_copyable_v<P> && ...), "a kernel's parameters are copied as bytes");
        static_assert((sizeof(P) + ... + 0) <= 4096, "a kernel has 4096 bytes of parameters");
        launch(name, grid, block, stream, how, [run = kernel, p...] { run(p...); });
    }
};

template <class... P> launcher<P...> launch_of(const char *name, threads how, void (*kernel)(P...)) {
    return {name, how, kernel};
}

} // namespace emulation

#define ICMA_LAUNCH(kernel, grid, block, ...)                                                                \
    emulation::launch_of(#kernel, emulation::threads::fibers, kernel)(grid, block, __VA_ARGS__)
#define ICMA_LAUNCH_FLAT(kernel, grid, block, ...)                                                           \
    emulation::launch_of(#kernel, emulation::threads::flat, kernel)(grid, block, __VA_ARGS__)

#endif
