/* SPDX-License-Identifier: Apache-2.0 */
/* The emulation's own test: what it promises to run runs, and what it promises to catch is caught. With
 * "cost" as its argument it measures instead. */
#include "cuda_on_host.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

static int failures;

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                             \
            failures++;                                                                                      \
        }                                                                                                    \
    } while (0)
#define OK(call) CHECK((call) == cudaSuccess)

/* Device memory with the values of a vector. */
template <class T> struct buffer {
    T *at = nullptr;
    size_t count;

    explicit buffer(const std::vector<T> &values) : count(values.size()) {
        OK(cudaMalloc(&at, count * sizeof(T)));
        OK(cudaMemcpy(at, values.data(), count * sizeof(T), cudaMemcpyHostToDevice));
    }
    buffer(const buffer &) = delete;
    ~buffer() {
        cudaFree(at);
    }
    std::vector<T> read() const {
        std::vector<T> out(count);
        OK(cudaMemcpy(out.data(), at, count * sizeof(T), cudaMemcpyDeviceToHost));
        return out;
    }
};

/* Standard error of a child that runs `work`; `died` tells whether it was killed or exited with an error. */
template <class Work> static std::string child(Work work, bool *died) {
    int ends[2];
    if (pipe(ends) != 0)
        std::abort();
    const pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], 2);
        alarm(60);
        work();
        _exit(0);
    }
    close(ends[1]);
    std::string out;
    char part[4096];
    for (ssize_t got; (got = read(ends[0], part, sizeof part)) > 0;)
        out.append(part, static_cast<size_t>(got));
    close(ends[0]);
    int status = 0;
    waitpid(pid, &status, 0);
    *died = status != 0;
    return out;
}

#define CHECK_DIES(words, work)                                                                              \
    do {                                                                                                     \
        bool died = false;                                                                                   \
        const std::string said = child([&] { work; }, &died);                                                \
        CHECK(died);                                                                                         \
        CHECK(said.find(words) != std::string::npos);                                                        \
    } while (0)

static __device__ float warp_sum(float x) {
#pragma GCC unroll 5
    for (int step = 16; step > 0; step /= 2)
        x = __fadd_rn(x, __shfl_down_sync(0xffffffffu, x, static_cast<unsigned>(step)));
    return x;
}

template <int WARPS, int UNUSED>
static __global__ void __launch_bounds__(WARPS * 32)
    block_sum(const float *__restrict__ x, int n, float *__restrict__ out) {
    __shared__ float sums[WARPS];
    float sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x))
        sum += x[static_cast<int>(blockIdx.x) * n + i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        const float all = warp_sum(threadIdx.x < WARPS ? sums[threadIdx.x] : 0);
        if (threadIdx.x == 0)
            out[blockIdx.x] = all;
    }
}

static std::vector<float> sums_of(const std::vector<float> &x, int blocks) {
    const buffer<float> from(x), to(std::vector<float>(static_cast<size_t>(blocks)));
    ICMA_LAUNCH((block_sum<8, 4>), static_cast<unsigned>(blocks), 256, nullptr, from.at,
                static_cast<int>(x.size()) / blocks, to.at);
    OK(cudaGetLastError());
    return to.read();
}

static std::vector<float> counting(size_t n) {
    std::vector<float> x(n);
    for (size_t i = 0; i < n; i++)
        x[i] = static_cast<float>(i % 97);
    return x;
}

static void test_block_sum() {
    const std::vector<float> x = counting(5 * 1000), out = sums_of(x, 5);
    for (size_t b = 0; b < 5; b++) {
        float sum = 0;
        for (size_t i = 0; i < 1000; i++)
            sum += x[b * 1000 + i];
        CHECK(out[b] == sum);
    }
}

/* Moves the elements of a block that are odd to its front; lanes beyond n leave early. */
static __global__ void compact_odd(const int *x, int n, int *out, int *count) {
    __shared__ int warps[32];
    const int i = static_cast<int>(threadIdx.x), lane = i % 32;
    const bool odd = i < n && x[i] % 2 != 0;
    const unsigned ballot = __ballot_sync(0xffffffffu, odd);
    if (lane == 0)
        warps[i / 32] = __popc(ballot);
    if (!__syncthreads_or(odd))
        return;
    int before = __popc(ballot & ((1u << lane) - 1));
    for (int w = 0; w < i / 32; w++)
        before += warps[w];
    if (odd) {
        out[before] = x[i];
        atomicAdd(count, 1);
    }
}

static void test_ballot_scan() {
    std::vector<int> x(1000), expected;
    for (int i = 0; i < 1000; i++) {
        x[static_cast<size_t>(i)] = i * 7919 % 1009;
        if (x[static_cast<size_t>(i)] % 2 != 0)
            expected.push_back(x[static_cast<size_t>(i)]);
    }
    const buffer<int> from(x), to(std::vector<int>(1000)), count(std::vector<int>(1));
    ICMA_LAUNCH(compact_odd, 1, 1024, nullptr, from.at, 1000, to.at, count.at);
    std::vector<int> out = to.read();
    out.resize(static_cast<size_t>(count.read()[0]));
    CHECK(out == expected);
}

/* Every lane type and direction, in segments, after half of the lanes have left. */
static __global__ void shuffles(long long *out) {
    const unsigned lane = threadIdx.x;
    if (lane >= 16)
        return;
    long long *mine = out + lane * 8;
    mine[0] = __shfl_sync(0xffffffffu, static_cast<int>(lane), 3, 8);
    mine[1] = __shfl_up_sync(0xffffu, lane, 2, 8);
    mine[2] = static_cast<long long>(__shfl_down_sync(0xffffu, static_cast<float>(lane), 2, 8));
    mine[3] = __shfl_xor_sync(0xffffu, 0x100000000ll + lane, 5);
    mine[4] = static_cast<long long>(__shfl_sync(0xffffu, static_cast<double>(lane), 15));
    mine[5] = __all_sync(0xffffffffu, lane < 16);
    mine[6] = __any_sync(0xffffffffu, lane == 9) + 2 * __any_sync(0xffffffffu, lane == 20);
    if (lane < 4) {
        __syncwarp(0xf);
        mine[7] = __ballot_sync(0xf, lane & 1);
    } else {
        mine[7] = __ballot_sync(0xfff0, lane & 1);
    }
}

static void test_shuffles() {
    const buffer<long long> to(std::vector<long long>(16 * 8));
    ICMA_LAUNCH(shuffles, 1, 32, nullptr, to.at);
    const std::vector<long long> out = to.read();
    for (long long lane = 0; lane < 16; lane++) {
        const long long *mine = &out[static_cast<size_t>(lane) * 8], in = lane % 8;
        CHECK(mine[0] == lane - in + 3);
        CHECK(mine[1] == (in < 2 ? lane : lane - 2));
        CHECK(mine[2] == (in >= 6 ? lane : lane + 2));
        CHECK(mine[3] == 0x100000000ll + (lane ^ 5));
        CHECK(mine[4] == 15);
        CHECK(mine[5] == 1 && mine[6] == 1);
        CHECK(mine[7] == (lane < 4 ? 0xa : 0xaaa0));
    }
}

/* Threads leave one by one; the others go on meeting. */
static __global__ void leaving(unsigned *rounds) {
    for (unsigned i = 0; i < threadIdx.x; i++)
        __syncthreads();
    atomicMax(rounds, threadIdx.x);
}

static void test_leaving() {
    const buffer<unsigned> rounds(std::vector<unsigned>(1));
    ICMA_LAUNCH(leaving, 3, 70, nullptr, rounds.at);
    CHECK(rounds.read()[0] == 69);
}

static __global__ void deadlocked() {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __shfl_sync(0xffffffffu, 1, threadIdx.x == 40 ? (__syncthreads(), 0) : 0);
}
static __global__ void two_barriers() {
    if (threadIdx.x == 0)
        __syncthreads();
    else
        __syncthreads();
}
static __global__ void two_collectives() {
    if (threadIdx.x == 0)
        __syncwarp();
    else
        __ballot_sync(0xffffffffu, 1);
}
static __global__ void masks_cross() {
    __syncwarp(threadIdx.x == 0 ? 3 : threadIdx.x == 1 ? 7 : 0xffffffffu);
}
static __global__ void not_in_mask() {
    __syncwarp(1);
}
#ifdef ICMA_TEST_SANITIZED
/* A call, so that what overruns is not what UBSan sees within one function but what only ASan can. */
static __device__ __attribute__((noinline)) int read_shared(const int *shared, unsigned at) {
    return shared[at];
}
static __global__ void overruns_shared(int *out) {
    __shared__ int x[8];
    if (threadIdx.x < 8)
        x[threadIdx.x] = 1;
    __syncthreads();
    *out = read_shared(x, threadIdx.x);
}
static __global__ void overruns(int *x, int at) {
    __syncthreads();
    x[at] = 1;
}
static __global__ void reads_four(const float *x, float *out) {
    *out = reinterpret_cast<const float4 *>(x)->w;
}
#endif

static void test_caught() {
    CHECK_DIES("deadlock", ICMA_LAUNCH(deadlocked, 2, 64, nullptr));
    CHECK_DIES("kernel deadlocked, block (0, 0, 0)", ICMA_LAUNCH(deadlocked, 2, 64, nullptr));
    CHECK_DIES("the block diverged", ICMA_LAUNCH(two_barriers, 1, 64, nullptr));
    CHECK_DIES("a warp diverged", ICMA_LAUNCH(two_collectives, 1, 32, nullptr));
    CHECK_DIES("deadlock", ICMA_LAUNCH(masks_cross, 1, 32, nullptr));
    CHECK_DIES("lacks the calling lane", ICMA_LAUNCH(not_in_mask, 1, 32, nullptr));
    CHECK_DIES("launched as flat", ICMA_LAUNCH_FLAT(two_barriers, 1, 64, nullptr));
    CHECK_DIES("outside of a kernel", __syncthreads());
#ifdef ICMA_TEST_SANITIZED
    const buffer<int> x(std::vector<int>(3));
    CHECK_DIES("global-buffer-overflow", ICMA_LAUNCH(overruns_shared, 1, 64, nullptr, x.at));
    CHECK_DIES("heap-buffer-overflow", ICMA_LAUNCH(overruns, 1, 1, nullptr, x.at, 3));
    const buffer<float> y(std::vector<float>(8));
    CHECK_DIES("misaligned", ICMA_LAUNCH_FLAT(reads_four, 1, 1, nullptr, y.at + 1, y.at));
#endif
}

static __global__ void scale(float *x, float by) {
    x[blockIdx.x * blockDim.x + threadIdx.x] *= by;
}

static void note(cudaStream_t stream, cublasHandle_t blas, float *x, float *y) {
    const float one = 1;
    ICMA_LAUNCH_FLAT(scale, 2, 4, stream, x, 2);
    OK(cudaMemcpyAsync(y, x, 8 * sizeof(float), cudaMemcpyDeviceToDevice, stream));
    CHECK(cublasSgemm(blas, CUBLAS_OP_N, CUBLAS_OP_N, 1, 1, 8, &one, x, 1, y, 8, &one, y + 8, 1) ==
          CUBLAS_STATUS_SUCCESS);
}

static void test_graph() {
    cudaStream_t stream, side;
    cudaEvent_t event;
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    cublasHandle_t blas;
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
    OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    CHECK(cublasCreate(&blas) == CUBLAS_STATUS_SUCCESS &&
          cublasSetStream(blas, side) == CUBLAS_STATUS_SUCCESS);
    const buffer<float> x(std::vector<float>(8, 1)), y(std::vector<float>(9));
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    OK(cudaEventRecord(event, stream));
    OK(cudaStreamWaitEvent(side, event));
    note(side, blas, x.at, y.at);
    OK(cudaEventRecord(event, side));
    OK(cudaStreamWaitEvent(stream, event));
    OK(cudaStreamEndCapture(stream, &graph));
    CHECK(x.read()[0] == 1);
    OK(cudaGraphInstantiate(&ready, graph, 0));
    OK(cudaGraphDestroy(graph));
    OK(cudaGraphLaunch(ready, stream));
    OK(cudaGraphLaunch(ready, stream));
    OK(cudaStreamSynchronize(stream));
    CHECK(x.read()[7] == 4 && y.read()[0] == 4 && y.read()[8] == 8 * (4 + 16));

    void *memory;
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    CHECK(cudaMalloc(&memory, 16) == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated && graph == nullptr);
    CHECK(cudaGetLastError() == cudaErrorStreamCaptureInvalidated);
    OK(cudaGraphExecDestroy(ready));
    CHECK(cublasDestroy(blas) == CUBLAS_STATUS_SUCCESS);
    OK(cudaEventDestroy(event));
    OK(cudaStreamDestroy(side));
    OK(cudaStreamDestroy(stream));
}

static float noise(size_t i) {
    return static_cast<float>(static_cast<double>((i * 2654435761u) % 1000003u) / 500001.5 - 1);
}

static std::vector<float> noises(size_t n, size_t seed) {
    std::vector<float> out(n);
    for (size_t i = 0; i < n; i++)
        out[i] = noise(i + seed);
    return out;
}

constexpr int M = 7, N = 5, K = 9, LDA = 11, LDB = 12, LDC = 8, BATCH = 3;
constexpr size_t SA = LDA * 10, SB = LDB * 10, SC = LDC * N;

/* Largest difference to the formula, over the batch; what lies outside of C must not have changed. */
static double gemm_error(bool ta, bool tb, const std::vector<float> &a, const std::vector<float> &b,
                         const std::vector<float> &before, const std::vector<float> &after) {
    double worst = 0;
    for (size_t z = 0; z < BATCH; z++)
        for (size_t j = 0; j < N; j++)
            for (size_t i = 0; i < LDC; i++) {
                double sum = 0;
                for (size_t k = 0; k < K && i < M; k++)
                    sum += static_cast<double>(a[z * SA + (ta ? i * LDA + k : k * LDA + i)]) *
                           static_cast<double>(b[z * SB + (tb ? k * LDB + j : j * LDB + k)]);
                const size_t at = z * SC + j * LDC + i;
                const double wanted = i < M ? 1.5 * sum - 0.5 * static_cast<double>(before[at])
                                            : static_cast<double>(before[at]);
                worst = fmax(worst, fabs(wanted - static_cast<double>(after[at])));
            }
    return worst;
}

static double gemm_error(cublasHandle_t blas, bool ta, bool tb, bool list, cublasComputeType_t compute) {
    const std::vector<float> ha = noises(SA * BATCH, 1), hb = noises(SB * BATCH, 5000),
                             hc = noises(SC * BATCH, 9000);
    const buffer<float> a(ha), b(hb), c(hc);
    const buffer<const void *> la({a.at, a.at + SA, a.at + 2 * SA}), lb({b.at, b.at + SB, b.at + 2 * SB});
    const buffer<void *> lc({c.at, c.at + SC, c.at + 2 * SC});
    const cublasOperation_t oa = ta ? CUBLAS_OP_T : CUBLAS_OP_N, ob = tb ? CUBLAS_OP_T : CUBLAS_OP_N;
    const float alpha = 1.5f, beta = -0.5f;
    if (list)
        CHECK(cublasGemmBatchedEx(blas, oa, ob, M, N, K, &alpha, la.at, CUDA_R_32F, LDA, lb.at, CUDA_R_32F,
                                  LDB, &beta, lc.at, CUDA_R_32F, LDC, BATCH, compute,
                                  CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS);
    else
        CHECK(cublasGemmStridedBatchedEx(blas, oa, ob, M, N, K, &alpha, a.at, CUDA_R_32F, LDA, SA, b.at,
                                         CUDA_R_32F, LDB, SB, &beta, c.at, CUDA_R_32F, LDC, SC, BATCH,
                                         compute, CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS);
    return gemm_error(ta, tb, ha, hb, hc, c.read());
}

static void test_gemm() {
    cublasHandle_t blas;
    CHECK(cublasCreate(&blas) == CUBLAS_STATUS_SUCCESS);
    for (int i = 0; i < 8; i++) {
        CHECK(gemm_error(blas, i & 1, i & 2, i & 4, CUBLAS_COMPUTE_32F) < 1e-5);
        const double tf32 = gemm_error(blas, i & 1, i & 2, i & 4, CUBLAS_COMPUTE_32F_FAST_TF32);
        const double bf16 = gemm_error(blas, i & 1, i & 2, i & 4, CUBLAS_COMPUTE_32F_FAST_16BF);
        CHECK(tf32 > 1e-5 && tf32 < 4e-3 && bf16 > 2 * tf32 && bf16 < 3e-2);
    }
    const buffer<float> x({3, 1, 1, 3}), nans(std::vector<float>(4, NAN));
    const float one = 1, zero = 0;
    CHECK(cublasSgemm(blas, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, 2, &one, x.at, 1, x.at, 2, &zero, nans.at, 2) ==
          CUBLAS_STATUS_INVALID_VALUE);
    CHECK(cublasSsyrk(blas, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_T, 2, 2, &one, x.at, 2, &zero, nans.at, 2) ==
          CUBLAS_STATUS_SUCCESS);
    const std::vector<float> lower = nans.read();
    CHECK(lower[0] == 10 && lower[1] == 6 && isnan(lower[2]) && lower[3] == 10);
    CHECK(cublasGemmEx(blas, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, 2, &one, x.at, CUDA_R_16F, 2, x.at, CUDA_R_16F,
                       2, &zero, nans.at, CUDA_R_32F, 2, CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_NOT_SUPPORTED);
    CHECK(cublasDestroy(blas) == CUBLAS_STATUS_SUCCESS);
}

/* The largest of |A v - w v| and |v'v - 1|, and whether w ascends. */
static double syevd_error(int n, int lda, cublasFillMode_t uplo) {
    const size_t size = static_cast<size_t>(n), ld = static_cast<size_t>(lda);
    std::vector<double> whole(size * size), given(ld * size, NAN);
    for (size_t j = 0; j < size; j++)
        for (size_t i = 0; i < size; i++) {
            whole[j * size + i] = static_cast<double>(noise(i * j + i + j));
            if (uplo == CUBLAS_FILL_MODE_LOWER ? i >= j : i <= j)
                given[j * ld + i] = whole[j * size + i];
        }
    cusolverDnHandle_t solver;
    int lwork = 0;
    CHECK(cusolverDnCreate(&solver) == CUSOLVER_STATUS_SUCCESS);
    const buffer<double> a(given), w((std::vector<double>(size)));
    CHECK(cusolverDnDsyevd_bufferSize(solver, CUSOLVER_EIG_MODE_VECTOR, uplo, n, a.at, lda, w.at, &lwork) ==
          CUSOLVER_STATUS_SUCCESS);
    const buffer<double> work(std::vector<double>(static_cast<size_t>(lwork)));
    const buffer<int> info({-7});
    CHECK(cusolverDnDsyevd(solver, CUSOLVER_EIG_MODE_VECTOR, uplo, n, a.at, lda, w.at, work.at, lwork,
                           info.at) == CUSOLVER_STATUS_SUCCESS);
    CHECK(info.read()[0] == 0);
    CHECK(cusolverDnDestroy(solver) == CUSOLVER_STATUS_SUCCESS);
    const std::vector<double> v = a.read(), values = w.read();
    double worst = 0;
    for (size_t j = 0; j < size; j++) {
        CHECK(j == 0 || values[j - 1] <= values[j]);
        for (size_t i = 0; i < size; i++) {
            double residual = -values[j] * v[j * ld + i], inner = i == j ? -1 : 0;
            for (size_t k = 0; k < size; k++) {
                residual += whole[k * size + i] * v[j * ld + k];
                inner += v[i * ld + k] * v[j * ld + k];
            }
            worst = fmax(worst, fmax(fabs(residual), fabs(inner)));
        }
    }
    return worst;
}

static void test_syevd() {
    CHECK(syevd_error(1, 1, CUBLAS_FILL_MODE_LOWER) < 1e-15);
    CHECK(syevd_error(40, 43, CUBLAS_FILL_MODE_LOWER) < 1e-12);
    CHECK(syevd_error(33, 33, CUBLAS_FILL_MODE_UPPER) < 1e-12);
}

static void test_faults() {
    void *first = nullptr, *second = nullptr;
    icma_emulation_fail("cudaMalloc", 2);
    OK(cudaMalloc(&first, 10));
    CHECK(cudaMalloc(&second, 10) == cudaErrorMemoryAllocation && second == nullptr);
    CHECK(cudaPeekAtLastError() == cudaErrorMemoryAllocation &&
          cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess);
    OK(cudaMalloc(&second, 10));
    CHECK(icma_emulation_calls() == 3);
    icma_emulation_fail("any", 2);
    OK(cudaMemset(first, 0, 10));
    ICMA_LAUNCH_FLAT(scale, 1, 1, nullptr, static_cast<float *>(first), 1.0f);
    CHECK(cudaGetLastError() == cudaErrorLaunchOutOfResources);
    icma_emulation_fail(nullptr, 0);
    OK(cudaFree(first));
    OK(cudaFree(second));
    CHECK(cudaFree(&first) == cudaErrorInvalidValue);
    bool died = true;
    setenv("ICMA_EMULATION_FAIL", "cublasCreate:1", 1);
    const std::string said =
        child([] { execl("/proc/self/exe", "test_emulation", "first-cublas", static_cast<char *>(nullptr)); },
              &died);
    CHECK(died && said.find("allocation failed") != std::string::npos);
    unsetenv("ICMA_EMULATION_FAIL");
}

static void test_memory() {
    size_t before, after, total;
    char *memory, host[8];
    OK(cudaMemGetInfo(&before, &total));
    OK(cudaMalloc(&memory, 1000));
    OK(cudaMemGetInfo(&after, &total));
    CHECK(before - after == 1000 && reinterpret_cast<uintptr_t>(memory) % 256 == 0);
    CHECK(cudaMemcpy(memory + 996, host, 8, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host, memory, 8, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    OK(cudaMemcpy(host, memory + 992, 8, cudaMemcpyDeviceToHost));
    OK(cudaFree(memory));
    void *all = nullptr;
    CHECK(cudaMalloc(&all, total + 1) == cudaErrorMemoryAllocation);
    ICMA_LAUNCH_FLAT(scale, 1, 1025, nullptr, nullptr, 1.0f);
    CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess);
}

static void test_intrinsics() {
    CHECK(__brev(1) == 0x80000000u && __clz(0) == 32 && __ffs(8) == 4 && __popcll(~0ull) == 64);
    CHECK(__funnelshift_l(0x80000000u, 1, 1) == 3 && __funnelshift_r(1, 3, 1) == 0x80000000u &&
          __funnelshift_l(5, 7, 32) == 7);
    CHECK(__byte_perm(0x33221100, 0x77665544, 0x7610) == 0x77661100 &&
          __byte_perm(0x80, 0, 0x0008) == 0x808080ffu);
    CHECK(__umul64hi(~0ull, ~0ull) == ~0ull - 1 && __mulhi(-1, 1) == -1);
    CHECK(min(-1, 1u) == 1u && max(1.0f, 2.0) == 2.0 && min(NAN, 1.0f) == 1.0f && max(3ll, 4ll) == 4);
    CHECK(__float2int_rn(2.5f) == 2 && __float2int_rz(3e9f) == 2147483647 && __float2int_rn(NAN) == 0);
    CHECK(__fmaf_rn(1 + 0x1p-23f, 1 - 0x1p-23f, -1) == -0x1p-46f && __float_as_uint(1) == 0x3f800000u);
}

/* What it writes depends on the order if the barrier is left out. */
static __global__ void neighbours(int *out, int with_barrier) {
    __shared__ int x[96];
    x[threadIdx.x] = -1;
    __syncthreads();
    x[threadIdx.x] = static_cast<int>(threadIdx.x + blockIdx.x);
    if (with_barrier)
        __syncthreads();
    out[blockIdx.x * 96 + threadIdx.x] = x[(threadIdx.x + 1) % 96];
}

static std::vector<int> neighbours_in(const char *order, int with_barrier) {
    setenv("ICMA_EMULATION_ORDER", order, 1);
    const buffer<int> to(std::vector<int>(4 * 96));
    ICMA_LAUNCH(neighbours, dim3(2, 2), 96, nullptr, to.at, with_barrier);
    return to.read();
}

static void test_order() {
    const std::vector<float> x = counting(3 * 777), sums = sums_of(x, 3);
    const std::vector<int> right = neighbours_in("forward", 1), wrong = neighbours_in("forward", 0);
    for (const char *order : {"backward", "random:1", "random:2"}) {
        CHECK(neighbours_in(order, 1) == right);
        CHECK(neighbours_in(order, 0) != wrong);
        CHECK(sums_of(x, 3) == sums);
        test_ballot_scan();
        test_shuffles();
        test_leaving();
    }
    unsetenv("ICMA_EMULATION_ORDER");
}

static __global__ void barriers(int count) {
    for (int i = 0; i < count; i++)
        __syncthreads();
}
static __global__ void warps(int count) {
    for (int i = 0; i < count; i++)
        __syncwarp();
}

template <class Work> static void measure(const char *what, double events, Work work) {
    const auto from = std::chrono::steady_clock::now();
    work();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
    std::printf("%-44s %8.1f million/s\n", what, events / seconds * 1e-6);
}

static int cost() {
    ICMA_LAUNCH(barriers, 1, 1024, nullptr, 1); /* makes the fibers */
    measure("threads without a barrier, flat", 256e4, [] {
        const buffer<float> x(std::vector<float>(2560000, 1));
        ICMA_LAUNCH_FLAT(scale, 10000, 256, nullptr, x.at, 2.0f);
    });
    measure("threads without a barrier, as fibers", 256e4,
            [] { ICMA_LAUNCH(barriers, 10000, 256, nullptr, 0); });
    measure("threads at a __syncthreads", 256e4, [] { ICMA_LAUNCH(barriers, 100, 256, nullptr, 100); });
    measure("lanes at a __syncwarp", 256e4, [] { ICMA_LAUNCH(warps, 100, 256, nullptr, 100); });
    measure("launches of one block of 32", 1e5, [] {
        for (int i = 0; i < 100000; i++)
            ICMA_LAUNCH(barriers, 1, 32, nullptr, 0);
    });
    return 0;
}

static int first_cublas() {
    cublasHandle_t blas;
    const cublasStatus_t status = cublasCreate(&blas);
    std::fprintf(stderr, "%s\n", cublasGetStatusString(status));
    return status == CUBLAS_STATUS_SUCCESS ? 0 : 1;
}

int main(int count, char **arguments) {
    if (count > 1)
        return std::strcmp(arguments[1], "cost") == 0 ? cost() : first_cublas();
    test_block_sum();
    test_ballot_scan();
    test_shuffles();
    test_leaving();
    test_caught();
    test_graph();
    test_gemm();
    test_syevd();
    test_faults();
    test_memory();
    test_intrinsics();
    test_order();
    std::printf("%d failures\n", failures);
    return failures != 0;
}
