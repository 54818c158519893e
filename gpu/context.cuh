/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A GPU as the op table's device: its stream, memory, transfers and first failure.
 *
 * All ops of a table go to one stream, in order. What a kernel or a launch does wrong is noted here and comes
 * back at the next alloc, upload, download or another call that can fail, as ops.h has it. One thread at a
 * time uses a table.
 */
#ifndef ICMA_CONTEXT_CUH
#define ICMA_CONTEXT_CUH

#include "cuda_base.cuh"

enum {
    ICMA_STAGES = 4, /* pieces of pinned memory that uploads go through in turn */
    ICMA_STAGE_BYTES = 8 << 20,
    ICMA_FETCHES = 2,          /* and downloads */
    ICMA_WORKSPACE = 64 << 20, /* partial sums */
    ICMA_BLAS_WORKSPACE = 32 << 20,
};

/* One piece of pinned memory; for uploads with as much on the device behind it. */
typedef struct icma_stage {
    uint8_t *host, *device;
    cudaEvent_t done; /* what was last copied through it */
    size_t used;
} icma_stage;

typedef struct icma_context {
    int index;
    icma_ops table;
    char name[32];
    icma_precision precision;
    cudaStream_t stream, transfers;
    cudaEvent_t transferred;
    cublasHandle_t blas;
    cusolverDnHandle_t solver; /* NULL until it is used */
    void *blas_workspace;
    uint8_t *workspace; /* ICMA_WORKSPACE bytes, for the kernels of one op */
    unsigned *flags;    /* on the device: what decoding kernels found */
    icma_stage stages[ICMA_STAGES], fetches[ICMA_FETCHES];
    size_t stage;
    void *models;        /* tables of the entropy coder; NULL until they are used */
    icma_status failure; /* the first one */
    char message[256];
} icma_context;

/* Also turns the calling thread to this GPU. */
icma_context *icma_context_of(void *device);

/* Notes a failure, unless there is one. False if `result` is one. */
bool icma_context_check(icma_context *c, cudaError_t result, const char *what);
bool icma_context_check_blas(icma_context *c, cublasStatus_t result, const char *what);
/* After a launch. */
void icma_context_launched(icma_context *c, const char *kernel);
/* What was noted, which is thereby told; the table can be used again (a GPU whose context is broken fails
 * again). */
icma_status icma_context_take(icma_context *c, icma_error *error);
/* Raw device memory of the pool; NULL when there is none left. */
void *icma_context_allocate(icma_context *c, size_t bytes);
void icma_context_free(icma_context *c, void *pointer);
/* Copies host memory to the device in the stream's order; the host memory may change as soon as this returns.
 */
void icma_context_send(icma_context *c, void *to, const void *from, size_t bytes);
/* And back, when the stream has come so far. */
icma_status icma_context_fetch(icma_context *c, void *to, const void *from, size_t bytes, icma_error *error);

/* Blocks of `block` threads for so many items, each looping where they are very many. */
static inline unsigned icma_grid(size_t items, size_t block) {
    return (unsigned)icma_least(icma_most(icma_pieces(items, block), 1), 1 << 16);
}

/* Creates the context of a GPU; ICMA_E_DEVICE if it is not there. */
icma_status icma_context_open(int index, icma_context **out, icma_error *error);

/* Each fills its entries of the table. */
void icma_elementwise_ops(icma_ops *table);
void icma_row_ops(icma_ops *table);
void icma_norm_ops(icma_ops *table);
void icma_convolution_ops(icma_ops *table);
void icma_product_ops(icma_ops *table);
void icma_decoding_ops(icma_ops *table);
void icma_stream_ops(icma_ops *table);
void icma_recording_ops(icma_ops *table);

#endif
