/* SPDX-License-Identifier: Apache-2.0 */
/* cuSOLVER: symmetric eigenproblems by cyclic Jacobi. */
#include "solver_api.h"

#include "internal.h"

#include <algorithm>
#include <cmath>
#include <numeric>

using emulation::call;

struct cusolverDnContext {
    cudaStream_t stream = nullptr;
};

namespace {

struct problem {
    bool vectors, lower;
    size_t n, ld;
    double *a, *w, *work;
    int *info;
};

/* Column-major n x n, without gaps. */
struct square {
    size_t n;
    double *at;

    double &operator()(size_t row, size_t column) const {
        return at[column * n + row];
    }
};

/* The whole of the matrix from the triangle that is given. */
void complete(const problem &p, square s) {
    for (size_t j = 0; j < p.n; j++)
        for (size_t i = j; i < p.n; i++)
            s(i, j) = s(j, i) = p.lower ? p.a[j * p.ld + i] : p.a[i * p.ld + j];
}

void rotate(double &x, double &y, double c, double s) {
    const double old = x;
    x = c * old - s * y;
    y = s * old + c * y;
}

/* Makes s(i, j) zero by a rotation of i and j, which `v` gathers. */
void annihilate(square s, square v, size_t i, size_t j) {
    const double theta = (s(j, j) - s(i, i)) / (2 * s(i, j));
    const double t = std::copysign(1 / (std::fabs(theta) + std::hypot(theta, 1.0)), theta),
                 c = 1 / std::hypot(t, 1.0);
    for (size_t k = 0; k < s.n; k++)
        rotate(s(k, i), s(k, j), c, t * c);
    for (size_t k = 0; k < s.n; k++)
        rotate(s(i, k), s(j, k), c, t * c);
    s(i, j) = s(j, i) = 0;
    for (size_t k = 0; k < s.n; k++)
        rotate(v(k, i), v(k, j), c, t * c);
}

/* True if nothing was left to annihilate. Small is what cannot change the norm of the matrix. */
bool sweep(square s, square v, double small) {
    bool done = true;
    for (size_t i = 0; i + 1 < s.n; i++)
        for (size_t j = i + 1; j < s.n; j++)
            if (!(std::fabs(s(i, j)) <= small)) {
                done = false;
                annihilate(s, v, i, j);
            }
    return done;
}

bool diagonalise(square s, square v) {
    const double norm = std::sqrt(std::inner_product(s.at, s.at + s.n * s.n, s.at, 0.0));
    if (!std::isfinite(norm))
        return false;
    for (int i = 0; i < 60; i++)
        if (sweep(s, v, norm * 1e-17))
            return true;
    return false;
}

/* Eigenvalues ascending, and their vectors into A. */
void deliver(const problem &p, square s, square v) {
    std::vector<size_t> order(p.n);
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t i, size_t j) { return s(i, i) < s(j, j); });
    for (size_t j = 0; j < p.n; j++) {
        p.w[j] = s(order[j], order[j]);
        for (size_t i = 0; p.vectors && i < p.n; i++)
            p.a[j * p.ld + i] = v(i, order[j]);
    }
}

/* The caller's workspace holds both squares: one that is too small shows under ASan. */
void solve(const problem &p) {
    const square s = {p.n, p.work}, v = {p.n, p.work + p.n * p.n};
    complete(p, s);
    for (size_t j = 0; j < p.n; j++)
        for (size_t i = 0; i < p.n; i++)
            v(i, j) = i == j;
    const bool solved = diagonalise(s, v);
    *p.info = solved ? 0 : static_cast<int>(p.n);
    if (solved)
        deliver(p, s, v);
}

int work_size(int n) {
    return n > 0 ? 2 * n * n : 1;
}

bool valid(int n, int lda) {
    return n >= 0 && n <= 32767 && lda >= std::max(n, 1);
}

} // namespace

cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t *out) {
    return call("cusolverDnCreate", CUSOLVER_STATUS_ALLOC_FAILED, [=] {
        *out = new cusolverDnContext;
        return CUSOLVER_STATUS_SUCCESS;
    });
}

cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle) {
    delete handle;
    return call("cusolverDnDestroy", CUSOLVER_STATUS_INTERNAL_ERROR,
                [=] { return handle ? CUSOLVER_STATUS_SUCCESS : CUSOLVER_STATUS_NOT_INITIALIZED; });
}

cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream) {
    return call("cusolverDnSetStream", CUSOLVER_STATUS_INTERNAL_ERROR, [=] {
        handle->stream = stream;
        return CUSOLVER_STATUS_SUCCESS;
    });
}

cusolverStatus_t cusolverDnDsyevd_bufferSize(cusolverDnHandle_t, cusolverEigMode_t, cublasFillMode_t, int n,
                                             const double *, int lda, const double *, int *lwork) {
    return call("cusolverDnDsyevd_bufferSize", CUSOLVER_STATUS_INTERNAL_ERROR, [=] {
        if (!valid(n, lda))
            return CUSOLVER_STATUS_INVALID_VALUE;
        *lwork = work_size(n);
        return CUSOLVER_STATUS_SUCCESS;
    });
}

cusolverStatus_t cusolverDnDsyevd(cusolverDnHandle_t handle, cusolverEigMode_t jobz, cublasFillMode_t uplo,
                                  int n, double *a, int lda, double *w, double *work, int lwork, int *info) {
    return call("cusolverDnDsyevd", CUSOLVER_STATUS_EXECUTION_FAILED, [=] {
        if (handle == nullptr)
            return CUSOLVER_STATUS_NOT_INITIALIZED;
        if (!valid(n, lda) || lwork < work_size(n))
            return CUSOLVER_STATUS_INVALID_VALUE;
        const problem p = {jobz == CUSOLVER_EIG_MODE_VECTOR,
                           uplo == CUBLAS_FILL_MODE_LOWER,
                           static_cast<size_t>(n),
                           static_cast<size_t>(lda),
                           a,
                           w,
                           work,
                           info};
        const cudaError_t status = emulation::submit(handle->stream, [=] { solve(p); });
        return status == cudaSuccess ? CUSOLVER_STATUS_SUCCESS : CUSOLVER_STATUS_EXECUTION_FAILED;
    });
}
