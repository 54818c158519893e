/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernels of transformers, in loops that compilers turn into vectors; ops_text.c includes this for each
 * kernel set after defining NAME(x), x with the set's suffix, and TARGET, attributes of every function here.
 * This header undefines both.
 */

/* e^x to 2 ulp or so, for x in -87 .. 88; beyond, that of the nearer end. */
TARGET static inline INLINED float NAME(exponential)(float x) {
    const float round = 0x1.8p23F;
    float v = x < -87 ? -87 : x > 88 ? 88 : x;
    float n = v * 0x1.715476p0F + round, k = n - round;
    float r = v - k * 0x1.62e4p-1F - k * 0x1.7f7d1cp-20F;
    float p =
        ((((1.0F / 720 * r + 1.0F / 120) * r + 1.0F / 24) * r + 1.0F / 6) * r + 1.0F / 2) * r * r + r + 1;
    union {
        float f;
        uint32_t u;
    } power = {.f = n};
    power.u = (power.u + 127) << 23; /* the low bits of n are k */
    return p * power.f;
}

TARGET static inline INLINED float NAME(quick_gelu_of)(float z) {
    return z / (1 + NAME(exponential)(-1.702F * z));
}

/* erf as in Abramowitz and Stegun, 7.1.26: to 1.5e-7. */
TARGET static inline INLINED float NAME(gelu_of)(float z) {
    float a = (z < 0 ? -z : z) * 0.70710678F, t = 1 / (1 + 0.3275911F * a);
    float p =
        ((((1.061405429F * t - 1.453152027F) * t + 1.421413741F) * t - 0.284496736F) * t + 0.254829592F) * t *
        NAME(exponential)(-a * a);
    return 0.5F * z * (z < 0 ? p : 2 - p);
}

TARGET static void NAME(gelu)(bool quick, const float *bias, size_t count, float *y) {
    if (quick) {
#pragma omp simd
        for (size_t j = 0; j < count; j++)
            y[j] = NAME(quick_gelu_of)(y[j] + bias[j]);
    } else {
#pragma omp simd
        for (size_t j = 0; j < count; j++)
            y[j] = NAME(gelu_of)(y[j] + bias[j]);
    }
}

TARGET static void NAME(layer_norm)(const float *x, const float *gamma, const float *beta, float epsilon,
                                    size_t count, float *y) {
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t j = 0; j < count; j++)
        sum += x[j];
    const float mean = sum / (float)count;
#pragma omp simd reduction(+ : squares)
    for (size_t j = 0; j < count; j++)
        squares += (x[j] - mean) * (x[j] - mean);
    const float scale = 1 / sqrtf(squares / (float)count + epsilon);
#pragma omp simd
    for (size_t j = 0; j < count; j++)
        y[j] = (x[j] - mean) * scale * gamma[j] + beta[j];
}

/* One head of one query, `count` columns; `seen` are `length` rows of k and v. */
TARGET static void NAME(attend)(const icma_attend_run *run, const float *q, const float *k, const float *v,
                                float *y) {
    float score[ICMA_MOST_SEEN], most = -INFINITY, total = 0;
    const size_t count = run->columns;
    for (size_t n = 0; n < run->length; n++) {
        const float *key = k + run->seen[n] * run->stride_k;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t j = 0; j < count; j++)
            sum += q[j] * key[j];
        score[n] = sum * run->scale;
        most = score[n] > most ? score[n] : most;
    }
#pragma omp simd reduction(+ : total)
    for (size_t n = 0; n < run->length; n++) {
        score[n] = NAME(exponential)(score[n] - most);
        total += score[n];
    }
    for (size_t j = 0; j < count; j++)
        y[j] = 0;
    for (size_t n = 0; n < run->length; n++) {
        const float *value = v + run->seen[n] * run->stride_v, part = score[n] / total;
#pragma omp simd
        for (size_t j = 0; j < count; j++)
            y[j] += part * value[j];
    }
}

static const icma_text_kernels NAME(kernels) = {NAME(layer_norm), NAME(gelu), NAME(attend)};

#undef NAME
#undef TARGET
