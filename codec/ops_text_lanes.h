/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernels of transformers, in loops that compilers turn into vectors; ops_text.c includes this for each
 * kernel set after defining NAME(x), x with the set's suffix, TARGET, attributes of every function here, and
 * MULTIPLY_ADD(a, b, c), a b + c in one rounding or two, whichever is faster. This header undefines them.
 */

/* e^x to 2 ulp or so, for x in -87 .. 88; beyond, that of the nearer end. Ends are chosen by masks: compilers
 * make branches of choices, and no vectors of branches. */
TARGET static inline INLINED float NAME(exponential)(float x) {
    const float_bits least = {.f = -87}, most = {.f = 88}, round = {.f = 0x1.8p23F};
    float_bits v = {.f = x}, n, power;
    uint32_t below = 0U - (uint32_t)(x < least.f), above = 0U - (uint32_t)(x > most.f);
    v.u = (below & least.u) | (above & most.u) | (~(below | above) & v.u);
    n.f = v.f * 0x1.715476p0F + round.f;
    float k = n.f - round.f, r = v.f - k * 0x1.62e4p-1F - k * 0x1.7f7d1cp-20F;
    float p =
        ((((1.0F / 720 * r + 1.0F / 120) * r + 1.0F / 24) * r + 1.0F / 6) * r + 1.0F / 2) * r * r + r + 1;
    power.u = (n.u + 127) << 23; /* the low bits of n are k */
    return p * power.f;
}

TARGET static inline INLINED float NAME(quick_gelu_of)(float z) {
    return z / (1 + NAME(exponential)(-1.702F * z));
}

/* erf as in Abramowitz and Stegun, 7.1.26: to 1.5e-7. */
TARGET static inline INLINED float NAME(gelu_of)(float z) {
    float a = fabsf(z) * 0.70710678F, t = 1 / (1 + 0.3275911F * a);
    float p =
        ((((1.061405429F * t - 1.453152027F) * t + 1.421413741F) * t - 0.284496736F) * t + 0.254829592F) * t *
        NAME(exponential)(-a * a);
    return 0.5F * (z + fabsf(z) * (1 - p)); /* erf is odd */
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

/* q . k of four rows of k at once, so that none waits for another's sum. */
TARGET static inline INLINED void NAME(four_scores)(const icma_attend_run *run, const float *q,
                                                    const float *k, size_t n, float *score) {
    const float *k0 = k + run->seen[n] * run->stride_k, *k1 = k + run->seen[n + 1] * run->stride_k;
    const float *k2 = k + run->seen[n + 2] * run->stride_k, *k3 = k + run->seen[n + 3] * run->stride_k;
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (size_t j = 0; j < run->columns; j++) {
        s0 = MULTIPLY_ADD(q[j], k0[j], s0);
        s1 = MULTIPLY_ADD(q[j], k1[j], s1);
        s2 = MULTIPLY_ADD(q[j], k2[j], s2);
        s3 = MULTIPLY_ADD(q[j], k3[j], s3);
    }
    score[n] = s0 * run->scale;
    score[n + 1] = s1 * run->scale;
    score[n + 2] = s2 * run->scale;
    score[n + 3] = s3 * run->scale;
}

TARGET static inline INLINED void NAME(add_four)(const icma_attend_run *run, const float *part,
                                                 const float *v, size_t n, float *y) {
    const float *v0 = v + run->seen[n] * run->stride_v, *v1 = v + run->seen[n + 1] * run->stride_v;
    const float *v2 = v + run->seen[n + 2] * run->stride_v, *v3 = v + run->seen[n + 3] * run->stride_v;
#pragma omp simd
    for (size_t j = 0; j < run->columns; j++) {
        float sum = MULTIPLY_ADD(part[n], v0[j], y[j]);
        sum = MULTIPLY_ADD(part[n + 1], v1[j], sum);
        sum = MULTIPLY_ADD(part[n + 2], v2[j], sum);
        y[j] = MULTIPLY_ADD(part[n + 3], v3[j], sum);
    }
}

/* One head of one query, `columns` of them; `seen` are `length` rows of k and v. */
TARGET static void NAME(attend)(const icma_attend_run *run, const float *q, const float *k, const float *v,
                                float *y) {
    float score[ICMA_MOST_SEEN], most = -INFINITY, total = 0;
    const size_t fours = run->length / 4 * 4;
    for (size_t n = 0; n < fours; n += 4)
        NAME(four_scores)(run, q, k, n, score);
    for (size_t n = fours; n < run->length; n++) {
        const float *key = k + run->seen[n] * run->stride_k;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t j = 0; j < run->columns; j++)
            sum = MULTIPLY_ADD(q[j], key[j], sum);
        score[n] = sum * run->scale;
    }
    for (size_t n = 0; n < run->length; n++)
        most = score[n] > most ? score[n] : most;
#pragma omp simd reduction(+ : total)
    for (size_t n = 0; n < run->length; n++) {
        score[n] = NAME(exponential)(score[n] - most);
        total += score[n];
    }
    for (size_t j = 0; j < run->columns; j++)
        y[j] = 0;
    for (size_t n = 0; n < fours; n += 4)
        NAME(add_four)(run, score, v, n, y);
    for (size_t n = fours; n < run->length; n++) {
        const float *value = v + run->seen[n] * run->stride_v;
#pragma omp simd
        for (size_t j = 0; j < run->columns; j++)
            y[j] = MULTIPLY_ADD(score[n], value[j], y[j]);
    }
    const float share = 1 / total;
#pragma omp simd
    for (size_t j = 0; j < run->columns; j++)
        y[j] *= share;
}

static const icma_text_kernels NAME(kernels) = {NAME(layer_norm), NAME(gelu), NAME(attend)};

#undef NAME
#undef TARGET
#undef MULTIPLY_ADD
