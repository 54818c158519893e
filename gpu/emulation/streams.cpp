/* SPDX-License-Identifier: Apache-2.0 */
/* Streams, events, graphs and launches: what runs at once, and what a capture notes instead. */
#include "internal.h"

#include <algorithm>
#include <chrono>
#include <memory>

namespace emulation {

typedef std::vector<std::function<void()>> notes;

/* Streams that join by an event share one capture: its notes in the order of the calls are an order that
 * CUDA's graph allows. */
struct capture {
    CUstream_st *origin;
    cudaStreamCaptureMode mode;
    bool spoilt = false;
    notes noted;
    std::vector<CUstream_st *> streams;
};

} // namespace emulation

using namespace emulation;

struct CUstream_st {
    std::shared_ptr<capture> capturing;
};
struct CUevent_st {
    unsigned flags = 0;
    bool recorded = false;
    std::chrono::steady_clock::time_point at;
    std::weak_ptr<capture> captured; /* where it was recorded, as long as that goes on */
};
struct CUgraph_st {
    notes noted;
};
struct CUgraphExec_st {
    notes noted;
};

namespace emulation {

static std::vector<capture *> &captures = *new std::vector<capture *>; /* that go on */

/* Null for the default stream, which cannot capture. */
static capture *capture_of(cudaStream_t stream) {
    return stream ? stream->capturing.get() : nullptr;
}

static cudaError_t spoil(capture *c) {
    c->spoilt = true;
    return cudaErrorStreamCaptureUnsupported;
}

cudaError_t refused_by_capture() {
    cudaError_t status = cudaSuccess;
    for (capture *c : captures)
        if (c->mode != cudaStreamCaptureModeRelaxed)
            status = spoil(c);
    return status;
}

cudaError_t submit(cudaStream_t stream, std::function<void()> work) {
    capture *c = capture_of(stream);
    if (c == nullptr)
        work();
    else if (c->spoilt)
        return cudaErrorStreamCaptureInvalidated;
    else
        c->noted.push_back(std::move(work));
    return cudaSuccess;
}

static bool valid_shape(dim3 grid, dim3 block) {
    const unsigned long long in_block = 1ull * block.x * block.y * block.z;
    const unsigned long long blocks = 1ull * grid.x * grid.y * grid.z;
    if (block.x > 1024 || block.y > 1024 || block.z > 64 || in_block == 0 || in_block > 1024)
        return false;
    return grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535 && blocks != 0 && blocks <= 0xffffffff;
}

void launch(const char *name, dim3 grid, dim3 block, cudaStream_t stream, threads how,
            std::function<void()> body) {
    runtime_call("launch", cudaErrorLaunchOutOfResources, [&] {
        if (!valid_shape(grid, block))
            return cudaErrorInvalidConfiguration;
        return submit(stream, [=] { run_grid(name, grid, block, how, body); });
    });
}

static void join(cudaStream_t stream, const std::shared_ptr<capture> &c) {
    stream->capturing = c;
    c->streams.push_back(stream);
}

static cudaError_t wait_event(cudaStream_t stream, cudaEvent_t event) {
    const std::shared_ptr<capture> c = event->captured.lock();
    capture *own = capture_of(stream);
    if (own != nullptr && own != c.get() && (c || event->recorded)) {
        spoil(own);
        return cudaErrorStreamCaptureIsolation;
    }
    if (c && own == nullptr) {
        if (stream == nullptr)
            return spoil(c.get());
        join(stream, c);
    }
    return cudaSuccess;
}

static cudaError_t record_event(cudaEvent_t event, cudaStream_t stream) {
    event->captured.reset();
    if (capture_of(stream) != nullptr) {
        event->captured = stream->capturing;
        return cudaSuccess;
    }
    event->recorded = true;
    event->at = std::chrono::steady_clock::now();
    return cudaSuccess;
}

static cudaError_t finished_event(cudaEvent_t event) {
    const std::shared_ptr<capture> c = event->captured.lock();
    if (!c)
        return cudaSuccess;
    spoil(c.get());
    return cudaErrorCapturedEvent;
}

static cudaError_t elapsed(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    if (!from->recorded || !to->recorded || ((from->flags | to->flags) & cudaEventDisableTiming))
        return cudaErrorInvalidResourceHandle;
    *milliseconds = std::chrono::duration<float, std::milli>(to->at - from->at).count();
    return cudaSuccess;
}

static cudaError_t begin_capture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    if (stream == nullptr)
        return cudaErrorStreamCaptureUnsupported;
    if (stream->capturing)
        return cudaErrorIllegalState;
    const auto c = std::make_shared<capture>();
    c->origin = stream;
    c->mode = mode;
    join(stream, c);
    captures.push_back(c.get());
    return cudaSuccess;
}

static cudaError_t end_capture(cudaStream_t stream, cudaGraph_t *out) {
    *out = nullptr;
    if (capture_of(stream) == nullptr)
        return cudaErrorIllegalState;
    const std::shared_ptr<capture> c = stream->capturing;
    if (c->origin != stream) {
        spoil(c.get());
        return cudaErrorStreamCaptureUnmatched;
    }
    for (cudaStream_t joined : c->streams)
        joined->capturing.reset();
    captures.erase(std::find(captures.begin(), captures.end(), c.get()));
    if (c->spoilt)
        return cudaErrorStreamCaptureInvalidated;
    *out = new CUgraph_st{std::move(c->noted)};
    return cudaSuccess;
}

static void destroy_stream(cudaStream_t stream) {
    if (capture *c = capture_of(stream)) {
        spoil(c);
        c->streams.erase(std::find(c->streams.begin(), c->streams.end(), stream));
        if (c->origin == stream)
            captures.erase(std::find(captures.begin(), captures.end(), c));
    }
    delete stream;
}

static cudaError_t launch_graph(cudaGraphExec_t graph, cudaStream_t stream) {
    for (const std::function<void()> &work : graph->noted) {
        const cudaError_t status = submit(stream, work);
        if (status != cudaSuccess)
            return status;
    }
    return cudaSuccess;
}

} // namespace emulation

cudaError_t cudaStreamCreate(cudaStream_t *out) {
    return runtime_call("cudaStreamCreate", cudaErrorMemoryAllocation, [=] {
        *out = new CUstream_st;
        return cudaSuccess;
    });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned) {
    return runtime_call("cudaStreamCreateWithFlags", cudaErrorMemoryAllocation, [=] {
        *out = new CUstream_st;
        return cudaSuccess;
    });
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return release_call("cudaStreamDestroy", [=] {
        if (stream == nullptr)
            return cudaErrorInvalidResourceHandle;
        destroy_stream(stream);
        return cudaSuccess;
    });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return runtime_call("cudaStreamSynchronize", cudaErrorLaunchFailure,
                        [=] { return capture_of(stream) ? spoil(capture_of(stream)) : cudaSuccess; });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    return runtime_call("cudaStreamWaitEvent", cudaErrorLaunchFailure,
                        [=] { return wait_event(stream, event); });
}

cudaError_t cudaEventCreate(cudaEvent_t *out) {
    return runtime_call("cudaEventCreate", cudaErrorMemoryAllocation, [=] {
        *out = new CUevent_st;
        return cudaSuccess;
    });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) {
    return runtime_call("cudaEventCreateWithFlags", cudaErrorMemoryAllocation, [=] {
        *out = new CUevent_st;
        (*out)->flags = flags;
        return cudaSuccess;
    });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return release_call("cudaEventDestroy", [=] {
        delete event;
        return event ? cudaSuccess : cudaErrorInvalidResourceHandle;
    });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return runtime_call("cudaEventRecord", cudaErrorLaunchFailure,
                        [=] { return record_event(event, stream); });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    return runtime_call("cudaEventSynchronize", cudaErrorLaunchFailure,
                        [=] { return finished_event(event); });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    return runtime_call("cudaEventQuery", cudaErrorLaunchFailure, [=] { return finished_event(event); });
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    return runtime_call("cudaEventElapsedTime", cudaErrorLaunchFailure,
                        [=] { return elapsed(milliseconds, from, to); });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    return runtime_call("cudaStreamBeginCapture", cudaErrorUnknown,
                        [=] { return begin_capture(stream, mode); });
}

/* A failing call ends the capture none the less: without that a stream could never be used again. */
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out) {
    return release_call("cudaStreamEndCapture", [=] { return end_capture(stream, out); });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    return runtime_call("cudaStreamIsCapturing", cudaErrorUnknown, [=] {
        const capture *c = capture_of(stream);
        *status = c == nullptr ? cudaStreamCaptureStatusNone
                  : c->spoilt  ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
        return cudaSuccess;
    });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long) {
    return runtime_call("cudaGraphInstantiate", cudaErrorMemoryAllocation, [=] {
        *out = nullptr;
        if (graph == nullptr)
            return cudaErrorInvalidValue;
        *out = new CUgraphExec_st{graph->noted};
        return cudaSuccess;
    });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    return runtime_call("cudaGraphLaunch", cudaErrorLaunchFailure,
                        [=] { return graph ? launch_graph(graph, stream) : cudaErrorInvalidValue; });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    return release_call("cudaGraphExecDestroy", [=] {
        delete graph;
        return graph ? cudaSuccess : cudaErrorInvalidValue;
    });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    return release_call("cudaGraphDestroy", [=] {
        delete graph;
        return graph ? cudaSuccess : cudaErrorInvalidValue;
    });
}
