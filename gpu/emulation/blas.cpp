/* SPDX-License-Identifier: Apache-2.0 */
/* cuBLAS: float matrices by plain loops. Sums are float, one product after the other in ascending k. */
#include "blas_api.h"
#include "internal.h"
#include "intrinsics.h"

#include <cstdint>

using emulation::as;
using emulation::call;

struct cublasContext {
    cudaStream_t stream = nullptr;
    cublasMath_t mode = CUBLAS_DEFAULT_MATH;
};

namespace {

/* Where the matrices of a batch lie. */
struct operand {
    const float *first;
    const void *const *list; /* in device memory, read when the product runs; null: `first` and a stride */
    long long stride;
    int ld;

    const float *matrix(int index) const {
        return list ? static_cast<const float *>(list[index]) : first + index * stride;
    }
};

struct product {
    bool ta, tb;
    int m, n, k, batch;
    float alpha, beta;
    operand a, b, c;
    int dropped_bits; /* of the factors' significands */
};

/* Rounds to nearest, ties to even; infinities and NaNs stay. */
float rounded(float x, int dropped_bits) {
    const uint32_t bits = as<uint32_t>(x);
    if (dropped_bits == 0 || !isfinite(x))
        return x;
    const uint32_t half = (1u << (dropped_bits - 1)) - 1, odd = bits >> dropped_bits & 1;
    return as<float>((bits + half + odd) >> dropped_bits << dropped_bits);
}

/* op(matrix), rows x columns, without gaps and rounded as the product wants its factors. */
std::vector<float> packed(const float *matrix, int ld, bool transposed, int rows, int columns,
                          int dropped_bits) {
    std::vector<float> out(static_cast<size_t>(rows) * static_cast<size_t>(columns));
    float *to = out.data();
    for (size_t j = 0; j < static_cast<size_t>(columns); j++)
        for (size_t i = 0; i < static_cast<size_t>(rows); i++)
            *to++ = rounded(
                matrix[transposed ? j + i * static_cast<size_t>(ld) : i + j * static_cast<size_t>(ld)],
                dropped_bits);
    return out;
}

void add_product(float *sums, const float *a, const float *b, size_t m, size_t k) {
    for (size_t l = 0; l < k; l++)
        for (size_t i = 0; i < m; i++)
            sums[i] += a[l * m + i] * b[l];
}

/* Rows first..last-1 of one column of C. With beta 0 C is not read: it may hold NaNs. */
void store_column(float *c, const float *sums, float alpha, float beta, size_t first, size_t last) {
    for (size_t i = first; i < last; i++)
        c[i] = alpha * sums[i] + (beta == 0 ? 0 : beta * c[i]);
}

enum class part { all, lower, upper };

void multiply_one(const product &p, const float *a, const float *b, float *c, part which) {
    const size_t m = static_cast<size_t>(p.m), k = p.alpha == 0 ? 0 : static_cast<size_t>(p.k);
    const std::vector<float> left = packed(a, p.a.ld, p.ta, p.m, static_cast<int>(k), p.dropped_bits);
    const std::vector<float> right = packed(b, p.b.ld, p.tb, static_cast<int>(k), p.n, p.dropped_bits);
    std::vector<float> sums(m);
    for (size_t j = 0; j < static_cast<size_t>(p.n); j++) {
        sums.assign(m, 0);
        add_product(sums.data(), left.data(), right.data() + j * k, m, k);
        store_column(c + j * static_cast<size_t>(p.c.ld), sums.data(), p.alpha, p.beta,
                     which == part::lower ? j : 0, which == part::upper ? j + 1 : m);
    }
}

void multiply(const product &p, part which) {
    for (int i = 0; i < p.batch; i++)
        multiply_one(p, p.a.matrix(i), p.b.matrix(i), const_cast<float *>(p.c.matrix(i)), which);
}

bool valid_ld(int ld, int rows) {
    return ld >= (rows > 1 ? rows : 1);
}

bool valid(const product &p) {
    return p.m >= 0 && p.n >= 0 && p.k >= 0 && p.batch >= 0 && valid_ld(p.a.ld, p.ta ? p.k : p.m) &&
           valid_ld(p.b.ld, p.tb ? p.n : p.k) && valid_ld(p.c.ld, p.m);
}

cublasStatus_t submit(cublasHandle_t handle, const product &p, part which) {
    if (!valid(p))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (p.m == 0 || p.n == 0 || p.batch == 0)
        return CUBLAS_STATUS_SUCCESS;
    const cudaError_t status = emulation::submit(handle->stream, [=] { multiply(p, which); });
    return status == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

constexpr int TF32_DROPPED = 13, BF16_DROPPED = 16, UNSUPPORTED = -1;

int dropped_by(cublasMath_t mode) {
    return (mode & 15) == CUBLAS_TF32_TENSOR_OP_MATH ? TF32_DROPPED : 0;
}

int dropped_by(cublasHandle_t handle, cublasComputeType_t compute) {
    switch (compute) {
    case CUBLAS_COMPUTE_32F:
        return dropped_by(handle->mode);
    case CUBLAS_COMPUTE_32F_PEDANTIC:
        return 0;
    case CUBLAS_COMPUTE_32F_FAST_TF32:
        return TF32_DROPPED;
    case CUBLAS_COMPUTE_32F_FAST_16BF:
        return BF16_DROPPED;
    default:
        return UNSUPPORTED;
    }
}

/* Everything that the Ex functions have in common. */
cublasStatus_t extended(const char *name, cublasHandle_t handle, product p, const void *alpha,
                        const void *beta, bool floats, cublasComputeType_t compute) {
    return call(name, CUBLAS_STATUS_EXECUTION_FAILED, [&] {
        if (handle == nullptr)
            return CUBLAS_STATUS_NOT_INITIALIZED;
        if (alpha == nullptr || beta == nullptr)
            return CUBLAS_STATUS_INVALID_VALUE;
        p.dropped_bits = dropped_by(handle, compute);
        if (!floats || p.dropped_bits == UNSUPPORTED)
            return CUBLAS_STATUS_NOT_SUPPORTED;
        p.alpha = *static_cast<const float *>(alpha);
        p.beta = *static_cast<const float *>(beta);
        return submit(handle, p, part::all);
    });
}

operand strided(const void *first, long long stride, int ld) {
    return {static_cast<const float *>(first), nullptr, stride, ld};
}
operand listed(const void *const *list, int ld) {
    return {nullptr, list, 0, ld};
}

} // namespace

cublasStatus_t cublasCreate(cublasHandle_t *out) {
    return call("cublasCreate", CUBLAS_STATUS_ALLOC_FAILED, [=] {
        *out = new cublasContext;
        return CUBLAS_STATUS_SUCCESS;
    });
}

cublasStatus_t cublasDestroy(cublasHandle_t handle) {
    delete handle;
    return call("cublasDestroy", CUBLAS_STATUS_INTERNAL_ERROR,
                [=] { return handle ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_INITIALIZED; });
}

cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
    return call("cublasSetStream", CUBLAS_STATUS_INTERNAL_ERROR, [=] {
        handle->stream = stream;
        return CUBLAS_STATUS_SUCCESS;
    });
}

cublasStatus_t cublasSetWorkspace(cublasHandle_t, void *workspace, size_t) {
    return call("cublasSetWorkspace", CUBLAS_STATUS_INTERNAL_ERROR, [=] {
        return reinterpret_cast<uintptr_t>(workspace) % 256 ? CUBLAS_STATUS_INVALID_VALUE
                                                            : CUBLAS_STATUS_SUCCESS;
    });
}

cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
    return call("cublasSetMathMode", CUBLAS_STATUS_INTERNAL_ERROR, [=] {
        handle->mode = mode;
        return CUBLAS_STATUS_SUCCESS;
    });
}

const char *cublasGetStatusString(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "the operation completed successfully";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "the library was not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "the resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "an invalid value was used as an argument";
    case CUBLAS_STATUS_ARCH_MISMATCH:
        return "an absent device architectural feature is required";
    case CUBLAS_STATUS_MAPPING_ERROR:
        return "an access to GPU memory space failed";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "the GPU program failed to execute";
    case CUBLAS_STATUS_INTERNAL_ERROR:
        return "an internal operation failed";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "the functionality requested is not supported";
    }
    return "<unknown>";
}

cublasStatus_t cublasSgemm(cublasHandle_t handle, cublasOperation_t ta, cublasOperation_t tb, int m, int n,
                           int k, const float *alpha, const float *a, int lda, const float *b, int ldb,
                           const float *beta, float *c, int ldc) {
    const product p = {ta != CUBLAS_OP_N,  tb != CUBLAS_OP_N,  m, n, k, 1, 0, 0, strided(a, 0, lda),
                       strided(b, 0, ldb), strided(c, 0, ldc), 0};
    return extended("cublasSgemm", handle, p, alpha, beta, true, CUBLAS_COMPUTE_32F);
}

/* C = op(A) op(A)^T, of which only one triangle is touched. */
cublasStatus_t cublasSsyrk(cublasHandle_t handle, cublasFillMode_t uplo, cublasOperation_t trans, int n,
                           int k, const float *alpha, const float *a, int lda, const float *beta, float *c,
                           int ldc) {
    return call("cublasSsyrk", CUBLAS_STATUS_EXECUTION_FAILED, [=] {
        if (handle == nullptr)
            return CUBLAS_STATUS_NOT_INITIALIZED;
        if (alpha == nullptr || beta == nullptr)
            return CUBLAS_STATUS_INVALID_VALUE;
        const bool transposed = trans != CUBLAS_OP_N;
        const product p = {transposed,
                           !transposed,
                           n,
                           n,
                           k,
                           1,
                           *alpha,
                           *beta,
                           strided(a, 0, lda),
                           strided(a, 0, lda),
                           strided(c, 0, ldc),
                           dropped_by(handle->mode)};
        return submit(handle, p, uplo == CUBLAS_FILL_MODE_LOWER ? part::lower : part::upper);
    });
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t ta, cublasOperation_t tb, int m, int n,
                            int k, const void *alpha, const void *a, cudaDataType a_type, int lda,
                            const void *b, cudaDataType b_type, int ldb, const void *beta, void *c,
                            cudaDataType c_type, int ldc, cublasComputeType_t compute, cublasGemmAlgo_t) {
    const product p = {ta != CUBLAS_OP_N,  tb != CUBLAS_OP_N,  m, n, k, 1, 0, 0, strided(a, 0, lda),
                       strided(b, 0, ldb), strided(c, 0, ldc), 0};
    const bool floats = a_type == CUDA_R_32F && b_type == CUDA_R_32F && c_type == CUDA_R_32F;
    return extended("cublasGemmEx", handle, p, alpha, beta, floats, compute);
}

cublasStatus_t cublasGemmBatchedEx(cublasHandle_t handle, cublasOperation_t ta, cublasOperation_t tb, int m,
                                   int n, int k, const void *alpha, const void *const a[],
                                   cudaDataType a_type, int lda, const void *const b[], cudaDataType b_type,
                                   int ldb, const void *beta, void *const c[], cudaDataType c_type, int ldc,
                                   int batch, cublasComputeType_t compute, cublasGemmAlgo_t) {
    const product p = {ta != CUBLAS_OP_N, tb != CUBLAS_OP_N, m, n, k, batch, 0, 0, listed(a, lda),
                       listed(b, ldb),    listed(c, ldc),    0};
    const bool floats = a_type == CUDA_R_32F && b_type == CUDA_R_32F && c_type == CUDA_R_32F;
    return extended("cublasGemmBatchedEx", handle, p, alpha, beta, floats, compute);
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t ta, cublasOperation_t tb,
                                          int m, int n, int k, const void *alpha, const void *a,
                                          cudaDataType a_type, int lda, long long a_stride, const void *b,
                                          cudaDataType b_type, int ldb, long long b_stride, const void *beta,
                                          void *c, cudaDataType c_type, int ldc, long long c_stride,
                                          int batch, cublasComputeType_t compute, cublasGemmAlgo_t) {
    const product p = {
        ta != CUBLAS_OP_N,         tb != CUBLAS_OP_N,         m, n, k, batch, 0, 0, strided(a, a_stride, lda),
        strided(b, b_stride, ldb), strided(c, c_stride, ldc), 0};
    const bool floats = a_type == CUDA_R_32F && b_type == CUDA_R_32F && c_type == CUDA_R_32F;
    return extended("cublasGemmStridedBatchedEx", handle, p, alpha, beta, floats, compute);
}
