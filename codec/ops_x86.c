/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exact kernels for x86: the scalar chains, eight or sixteen outputs side by side. Each output's chain is the same as in the reference,
 * so are its bits: vfmadd rounds once, like fmaf, and no sum is ever split.
 */
#include "ops_host.h"

#if defined(__x86_64__)
#include <immintrin.h>

/* Vectors of outputs in flight per pass over the rows: enough independent chains to cover the latency of an fma. */
enum { AVX2_VECTORS = 8, AVX512_VECTORS = 8 };

__attribute__((target("avx2,fma"))) static void basis_avx2(const float *a, size_t rows, const int16_t *head, size_t stride,
                                                           size_t count, float scale, float *y) {
    const size_t width = 8 * (size_t)AVX2_VECTORS;
    size_t l = 0;
    for (; l + width <= count; l += width) {
        __m256 sum[AVX2_VECTORS];
        for (int v = 0; v < AVX2_VECTORS; v++)
            sum[v] = _mm256_setzero_ps();
        for (size_t k = 0; k < rows; k++) {
            const __m256 factor = _mm256_set1_ps(a[k]);
            const int16_t *from = head + k * stride + l;
            for (int v = 0; v < AVX2_VECTORS; v++) {
                __m256i wide = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(from + 8 * v)));
                sum[v] = _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(wide), sum[v]);
            }
        }
        for (int v = 0; v < AVX2_VECTORS; v++)
            _mm256_storeu_ps(y + l + 8 * v, _mm256_mul_ps(sum[v], _mm256_set1_ps(scale)));
    }
    icma_basis_scalar(a, rows, head + l, stride, count - l, scale, y + l);
}

__attribute__((target("avx2,fma"))) static void linear_avx2(const float *x, size_t inputs, const float *w, size_t stride,
                                                            size_t count, float *y) {
    size_t o = 0;
    for (; o + 8 <= count; o += 8) {
        __m256 sum = _mm256_loadu_ps(y + o);
        for (size_t j = 0; j < inputs; j++)
            sum = _mm256_fmadd_ps(_mm256_set1_ps(x[j]), _mm256_loadu_ps(w + j * stride + o), sum);
        _mm256_storeu_ps(y + o, sum);
    }
    icma_linear_scalar(x, inputs, w + o, stride, count - o, y + o);
}

__attribute__((target("avx512f,avx512bw"))) static void basis_avx512(const float *a, size_t rows, const int16_t *head,
                                                                     size_t stride, size_t count, float scale, float *y) {
    const size_t width = 16 * (size_t)AVX512_VECTORS;
    size_t l = 0;
    for (; l + width <= count; l += width) {
        __m512 sum[AVX512_VECTORS];
        for (int v = 0; v < AVX512_VECTORS; v++)
            sum[v] = _mm512_setzero_ps();
        for (size_t k = 0; k < rows; k++) {
            const __m512 factor = _mm512_set1_ps(a[k]);
            const int16_t *from = head + k * stride + l;
            for (int v = 0; v < AVX512_VECTORS; v++) {
                __m512i wide = _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(from + 16 * v)));
                sum[v] = _mm512_fmadd_ps(factor, _mm512_cvtepi32_ps(wide), sum[v]);
            }
        }
        for (int v = 0; v < AVX512_VECTORS; v++)
            _mm512_storeu_ps(y + l + 16 * v, _mm512_mul_ps(sum[v], _mm512_set1_ps(scale)));
    }
    basis_avx2(a, rows, head + l, stride, count - l, scale, y + l);
}

__attribute__((target("avx2,fma"))) static void dequantise_avx2(const int16_t *integers, size_t count, float step, float *y) {
    const __m256 factor = _mm256_set1_ps(step);
    size_t l = 0;
    for (; l + 8 <= count; l += 8) {
        __m256i wide = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(integers + l)));
        _mm256_storeu_ps(y + l, _mm256_fmadd_ps(_mm256_cvtepi32_ps(wide), factor, _mm256_loadu_ps(y + l)));
    }
    icma_dequantise_scalar(integers + l, count - l, step, y + l);
}

size_t icma_kernels_all(icma_kernels list[ICMA_KERNEL_SETS]) {
    size_t count = 0;
    list[count++] = (icma_kernels){"scalar", icma_basis_scalar, icma_linear_scalar, icma_dequantise_scalar, icma_conv_kernels_portable()};
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return count;
    list[count++] = (icma_kernels){"avx2", basis_avx2, linear_avx2, dequantise_avx2, icma_conv_kernels_avx2()};
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
        list[count++] = (icma_kernels){"avx512", basis_avx512, linear_avx2, dequantise_avx2, icma_conv_kernels_avx512()};
    return count;
}

#else

size_t icma_kernels_all(icma_kernels list[ICMA_KERNEL_SETS]) {
    list[0] = (icma_kernels){"scalar", icma_basis_scalar, icma_linear_scalar, icma_dequantise_scalar, icma_conv_kernels_portable()};
    return 1;
}

#endif

icma_kernels icma_kernels_best(void) {
    icma_kernels list[ICMA_KERNEL_SETS];
    return list[icma_kernels_all(list) - 1];
}
