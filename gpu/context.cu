/* SPDX-License-Identifier: Apache-2.0 */
#include "context.cuh"

extern "C" {
#include "memory.h"
}

#include <stdio.h>
#include <string.h>

/* A thread may have turned to another GPU, or be a new one. */
static bool choose_device(icma_context *c) {
    int current = -1;
    return icma_context_check(c, cudaGetDevice(&current), "choosing the GPU") &&
           (current == c->index || icma_context_check(c, cudaSetDevice(c->index), "choosing the GPU"));
}

icma_context *icma_context_of(void *device) {
    icma_context *c = (icma_context *)device;
    choose_device(c);
    return c;
}

/* --- failures ------------------------------------------------------------------------------------------- */

static void note(icma_context *c, icma_status status, const char *what, const char *why) {
    if (c->failure)
        return;
    c->failure = status;
    snprintf(c->message, sizeof c->message, "%s: %s: %s", c->name, what, why);
}

bool icma_context_check(icma_context *c, cudaError_t result, const char *what) {
    if (result == cudaSuccess)
        return true;
    note(c, result == cudaErrorMemoryAllocation ? ICMA_E_MEMORY : ICMA_E_DEVICE, what,
         cudaGetErrorString(result));
    cudaGetLastError(); /* or the next launch would find it again */
    return false;
}

bool icma_context_check_blas(icma_context *c, cublasStatus_t result, const char *what) {
    if (result == CUBLAS_STATUS_SUCCESS)
        return true;
    note(c, result == CUBLAS_STATUS_ALLOC_FAILED ? ICMA_E_MEMORY : ICMA_E_DEVICE, what,
         cublasGetStatusString(result));
    return false;
}

void icma_context_launched(icma_context *c, const char *kernel) {
    icma_context_check(c, cudaGetLastError(), kernel);
}

icma_status icma_context_take(icma_context *c, icma_error *error) {
    icma_status status = c->failure;
    c->failure = ICMA_OK;
    return status ? icma_fail(error, status, NULL, "%s; use --device cpu", c->message) : ICMA_OK;
}

/* --- memory --------------------------------------------------------------------------------------------- */

void *icma_context_allocate(icma_context *c, size_t bytes) {
    void *pointer = NULL;
    return icma_context_check(c, cudaMallocAsync(&pointer, bytes, c->stream), "allocating") ? pointer : NULL;
}

void icma_context_free(icma_context *c, void *pointer) {
    if (pointer)
        icma_context_check(c, cudaFreeAsync(pointer, c->stream), "releasing");
}

static void cuda_release(void *device, icma_tensor *tensor) {
    if (!tensor)
        return;
    icma_context_free(icma_context_of(device), tensor->data);
    icma_free(tensor);
}

static icma_status cuda_alloc(void *device, icma_element element, size_t count, icma_tensor **out,
                              icma_error *error) {
    icma_context *c = icma_context_of(device);
    size_t bytes;
    *out = NULL;
    icma_status status = icma_context_take(c, error);
    if (status)
        return status;
    icma_tensor *tensor = (icma_tensor *)icma_alloc_zeroed(1, sizeof *tensor);
    if (!tensor || !icma_multiply_size(count, icma_element_size(element), &bytes)) {
        icma_free(tensor);
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a tensor of %zu elements", count);
    }
    tensor->element = element;
    tensor->count = count;
    tensor->data = icma_context_allocate(c, bytes);
    if (tensor->data)
        icma_context_check(c, cudaMemsetAsync(tensor->data, 0, bytes, c->stream), "clearing");
    status = icma_context_take(c, error);
    if (status)
        cuda_release(device, tensor);
    else
        *out = tensor;
    return status;
}

/* --- transfers ------------------------------------------------------------------------------------------ */

/* The piece of pinned memory to fill next, with room: what was in it has been copied on. */
static icma_stage *next_stage(icma_context *c, size_t room) {
    icma_stage *s = &c->stages[c->stage];
    if (ICMA_STAGE_BYTES - s->used >= room)
        return s;
    icma_context_check(c, cudaEventRecord(s->done, c->stream), "uploading");
    c->stage = (c->stage + 1) % ICMA_STAGES;
    s = &c->stages[c->stage];
    icma_context_check(c, cudaEventSynchronize(s->done), "uploading");
    s->used = 0;
    return s;
}

/*
 * Small pieces are copied by the stream itself. Large ones cross the bus on a stream of their own while the
 * GPU computes, to memory that nobody else uses, and are copied on within the device when it is their turn.
 */
static void send_piece(icma_context *c, void *to, const void *from, size_t bytes) {
    enum { SMALL = 1 << 16, ALIGNMENT = 256 };
    icma_stage *s = next_stage(c, bytes);
    uint8_t *host = s->host + s->used, *device = s->device + s->used;
    memcpy(host, from, bytes);
    s->used = icma_least(ICMA_STAGE_BYTES, icma_pieces(s->used + bytes, ALIGNMENT) * ALIGNMENT);
    if (bytes <= SMALL) {
        icma_context_check(c, cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, c->stream),
                           "uploading");
        return;
    }
    icma_context_check(c, cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, c->transfers),
                       "uploading");
    icma_context_check(c, cudaEventRecord(c->transferred, c->transfers), "uploading");
    icma_context_check(c, cudaStreamWaitEvent(c->stream, c->transferred, 0), "uploading");
    icma_context_check(c, cudaMemcpyAsync(to, device, bytes, cudaMemcpyDeviceToDevice, c->stream),
                       "uploading");
}

void icma_context_send(icma_context *c, void *to, const void *from, size_t bytes) {
    for (size_t done = 0, piece; done < bytes && !c->failure; done += piece) {
        piece = icma_least(bytes - done, ICMA_STAGE_BYTES / 2);
        send_piece(c, (uint8_t *)to + done, (const uint8_t *)from + done, piece);
    }
}

/* Piece k crosses the bus while piece k - 1 is copied out of pinned memory. */
icma_status icma_context_fetch(icma_context *c, void *to, const void *from, size_t bytes, icma_error *error) {
    size_t pieces = icma_pieces(bytes, ICMA_STAGE_BYTES);
    for (size_t k = 0; k <= pieces && !c->failure; k++) {
        if (k < pieces) {
            icma_stage *s = &c->fetches[k % ICMA_FETCHES];
            s->used = icma_least(bytes - k * ICMA_STAGE_BYTES, ICMA_STAGE_BYTES);
            icma_context_check(c,
                               cudaMemcpyAsync(s->host, (const uint8_t *)from + k * ICMA_STAGE_BYTES, s->used,
                                               cudaMemcpyDeviceToHost, c->stream),
                               "downloading");
            icma_context_check(c, cudaEventRecord(s->done, c->stream), "downloading");
        }
        if (k > 0) {
            icma_stage *s = &c->fetches[(k - 1) % ICMA_FETCHES];
            if (icma_context_check(c, cudaEventSynchronize(s->done), "downloading"))
                memcpy((uint8_t *)to + (k - 1) * ICMA_STAGE_BYTES, s->host, s->used);
        }
    }
    return icma_context_take(c, error);
}

static icma_status cuda_upload(void *device, icma_tensor *to, size_t offset, const void *from, size_t count,
                               icma_error *error) {
    icma_context *c = icma_context_of(device);
    size_t size = icma_element_size(to->element);
    icma_context_send(c, (uint8_t *)to->data + offset * size, from, count * size);
    return icma_context_take(c, error);
}

static icma_status cuda_download(void *device, const icma_tensor *from, size_t offset, void *to, size_t count,
                                 icma_error *error) {
    size_t size = icma_element_size(from->element);
    return icma_context_fetch(icma_context_of(device), to, (const uint8_t *)from->data + offset * size,
                              count * size, error);
}

/* --- recording ------------------------------------------------------------------------------------------ */

struct icma_recording {
    cudaGraphExec_t graph;
};

static cudaError_t free_recording(icma_recording *r) {
    cudaError_t result = r && r->graph ? cudaGraphExecDestroy(r->graph) : cudaSuccess;
    icma_free(r);
    return result;
}

static icma_status cuda_record(void *device, icma_error *error) {
    icma_context *c = icma_context_of(device);
    icma_status status = icma_context_take(c, error);
    if (!status)
        icma_context_check(c, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal),
                           "recording");
    return status ? status : icma_context_take(c, error);
}

static icma_status cuda_recorded(void *device, icma_recording **out, icma_error *error) {
    icma_context *c = icma_context_of(device);
    cudaGraph_t graph = NULL;
    *out = NULL;
    icma_recording *r = (icma_recording *)icma_alloc_zeroed(1, sizeof *r);
    bool good = icma_context_check(c, cudaStreamEndCapture(c->stream, &graph), "recording") && !c->failure;
    if (good && r)
        icma_context_check(c, cudaGraphInstantiate(&r->graph, graph, 0), "recording");
    if (graph)
        icma_context_check(c, cudaGraphDestroy(graph), "recording");
    icma_status status = icma_context_take(c, error);
    if (!status && !r)
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a recording");
    if (status)
        free_recording(r);
    else
        *out = r;
    return status;
}

static icma_status cuda_replay(void *device, icma_recording *r, icma_error *error) {
    icma_context *c = icma_context_of(device);
    icma_context_check(c, cudaGraphLaunch(r->graph, c->stream), "replaying");
    return icma_context_take(c, error);
}

static void cuda_forget(void *device, icma_recording *r) {
    icma_context_check(icma_context_of(device), free_recording(r), "forgetting");
}

void icma_recording_ops(icma_ops *table) {
    table->alloc = cuda_alloc;
    table->release = cuda_release;
    table->upload = cuda_upload;
    table->download = cuda_download;
    table->record = cuda_record;
    table->recorded = cuda_recorded;
    table->replay = cuda_replay;
    table->forget = cuda_forget;
}

/* --- opening -------------------------------------------------------------------------------------------- */

static bool make_stage(icma_context *c, icma_stage *s, bool with_device) {
    return icma_context_check(c, cudaMallocHost((void **)&s->host, ICMA_STAGE_BYTES), "pinned memory") &&
           icma_context_check(c, cudaEventCreateWithFlags(&s->done, cudaEventDisableTiming), "an event") &&
           (!with_device ||
            icma_context_check(c, cudaMalloc((void **)&s->device, ICMA_STAGE_BYTES), "memory"));
}

static bool make_streams(icma_context *c) {
    bool good =
        choose_device(c) &&
        icma_context_check(c, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking), "a stream") &&
        icma_context_check(c, cudaStreamCreateWithFlags(&c->transfers, cudaStreamNonBlocking), "a stream") &&
        icma_context_check(c, cudaEventCreateWithFlags(&c->transferred, cudaEventDisableTiming), "an event");
    for (int i = 0; good && i < ICMA_STAGES; i++)
        good = make_stage(c, &c->stages[i], true);
    for (int i = 0; good && i < ICMA_FETCHES; i++)
        good = make_stage(c, &c->fetches[i], false);
    return good;
}

/* Freed memory stays with the pool, so that the next allocation costs nothing. */
static bool keep_memory(icma_context *c) {
    cudaMemPool_t pool;
    uint64_t all = UINT64_MAX;
    return icma_context_check(c, cudaDeviceGetDefaultMemPool(&pool, c->index), "the memory pool") &&
           icma_context_check(c, cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all),
                              "the memory pool");
}

static bool make_workspaces(icma_context *c) {
    return icma_context_check(c, cudaMalloc((void **)&c->workspace, ICMA_WORKSPACE), "memory") &&
           icma_context_check(c, cudaMalloc((void **)&c->flags, 256), "memory") &&
           icma_context_check(c, cudaMalloc(&c->blas_workspace, ICMA_BLAS_WORKSPACE), "memory") &&
           icma_context_check_blas(c, cublasCreate(&c->blas), "cuBLAS") &&
           icma_context_check_blas(c, cublasSetStream(c->blas, c->stream), "cuBLAS") &&
           icma_context_check_blas(c, cublasSetWorkspace(c->blas, c->blas_workspace, ICMA_BLAS_WORKSPACE),
                                   "cuBLAS");
}

/* What a GPU that could not be opened has got. */
static void close_context(icma_context *c) {
    for (int i = 0; i < ICMA_STAGES; i++) {
        cudaFreeHost(c->stages[i].host);
        cudaFree(c->stages[i].device);
        if (c->stages[i].done)
            cudaEventDestroy(c->stages[i].done);
    }
    for (int i = 0; i < ICMA_FETCHES; i++) {
        cudaFreeHost(c->fetches[i].host);
        if (c->fetches[i].done)
            cudaEventDestroy(c->fetches[i].done);
    }
    if (c->blas)
        cublasDestroy(c->blas);
    cudaFree(c->blas_workspace);
    cudaFree(c->workspace);
    cudaFree(c->flags);
    if (c->transferred)
        cudaEventDestroy(c->transferred);
    if (c->transfers)
        cudaStreamDestroy(c->transfers);
    if (c->stream)
        cudaStreamDestroy(c->stream);
    icma_free(c);
}

/* Half of what is free now may be kept on the device to save transfers. */
static size_t free_room(icma_context *c) {
    size_t available = 0, total = 0;
    return icma_context_check(c, cudaMemGetInfo(&available, &total), "its memory") ? available / 2 : 0;
}

icma_status icma_context_open(int index, icma_context **out, icma_error *error) {
    int count = 0;
    *out = NULL;
    cudaError_t found = cudaGetDeviceCount(&count);
    if (found != cudaSuccess)
        return icma_fail(error, ICMA_E_DEVICE, NULL, "no GPU can be used: %s; use --device cpu",
                         cudaGetErrorString(found));
    if (index >= count)
        return icma_fail(error, ICMA_E_DEVICE, NULL, "there is no GPU %d, only %d of them; use --device cpu",
                         index, count);
    icma_context *c = (icma_context *)icma_alloc_zeroed(1, sizeof *c);
    if (!c)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a device");
    c->index = index;
    snprintf(c->name, sizeof c->name, "cuda:%d", index);
    bool good = make_streams(c) && keep_memory(c) && make_workspaces(c);
    c->table.name = c->name;
    c->table.device = c;
    c->table.room = good ? free_room(c) : 0;
    icma_status status = icma_context_take(c, error);
    if (status)
        close_context(c);
    else
        *out = c;
    return status;
}
