/* SPDX-License-Identifier: Apache-2.0 */
/* Weights of predictions by least squares (spec 4.14 says what they are for; how they are found is the
 * encoder's business). */
#include "lossless_host.h"

#include "memory.h"

#include <math.h>
#include <string.h>

enum { BATCH = 4096, ROUNDS = 4 };

/* Adds the products of one element's taps and of its difference to tap 0, if all are finite. */
static void add_element(const float *const *taps, size_t tap_count, const float *element, size_t i,
                        icma_lossless_moments *m) {
    double row[ICMA_LOSSLESS_TAPS + 1];
    float finite = element[i] * 0;
    for (size_t k = 0; k < tap_count; k++)
        finite += taps[k][i] * 0;
    if (finite != 0) /* 0 * inf and 0 * NaN are NaN */
        return;
    row[0] = taps[0][i];
    for (size_t k = 1; k < tap_count; k++)
        row[k] = (double)taps[k - 1][i] - taps[k][i];
    row[tap_count] = (double)element[i] - taps[0][i];
    for (size_t j = 0; j <= tap_count; j++)
        for (size_t k = 0; k <= j; k++)
            m->product[j][k] += row[j] * row[k];
    m->count++;
}

icma_status icma_lossless_moments_of(const icma_lossless_link *link, const uint8_t *original, size_t tensor,
                                     icma_lossless_moments *moments, icma_error *error) {
    const icma_tensor_info *info = &link->signature->tensors[tensor];
    size_t width = icma_dtype_bits(info->dtype) / 8, taps = link->tap_count;
    const float *rows[ICMA_LOSSLESS_TAPS] = {NULL};
    memset(moments, 0, sizeof *moments);
    float *values = icma_alloc_array((taps + 1) * BATCH, sizeof *values);
    if (!values)
        return icma_fail(error, ICMA_E_MEMORY, NULL,
                         "no memory for a lossless link; pack fewer checkpoints at once");
    for (size_t k = 0; k < taps; k++)
        rows[k] = values + (k + 1) * BATCH;
    for (uint64_t first = 0; first < info->count; first += BATCH) {
        size_t count = info->count - first < BATCH ? (size_t)(info->count - first) : BATCH,
               offset = (size_t)(info->begin + first * width);
        icma_load_floats(info->dtype, original + offset, count, values);
        for (size_t k = 0; k < taps; k++)
            icma_load_floats(info->dtype, link->taps[k] + offset, count, values + (k + 1) * BATCH);
        for (size_t i = 0; i < count; i++)
            add_element(rows, taps, values, i, moments);
    }
    icma_free(values);
    return ICMA_OK;
}

typedef double square[ICMA_LOSSLESS_TAPS + 1][ICMA_LOSSLESS_TAPS + 1];

/* Solves a x = a[n], lower triangle given, by Cholesky; unknowns that add nothing to those before them are 0.
 */
static void solve(const square a, size_t n, double *x) {
    square l = {{0}};
    for (size_t j = 0; j <= n; j++)
        for (size_t k = 0; k <= j && k < n; k++) {
            double sum = a[j][k];
            for (size_t i = 0; i < k; i++)
                sum -= l[j][i] * l[k][i];
            if (j == k)
                l[k][k] = sum > 1e-11 * a[k][k] ? sqrt(sum) : 0;
            else
                l[j][k] = l[k][k] > 0 ? sum / l[k][k] : 0;
        }
    for (size_t k = n; k-- > 0;) {
        double sum = l[n][k];
        for (size_t j = k + 1; j < n; j++)
            sum -= l[j][k] * x[j];
        x[k] = l[k][k] > 0 ? sum / l[k][k] : 0;
    }
}

/* What x leaves of a tensor, per element. */
static double left_over(const icma_lossless_moments *m, size_t n, const double *x) {
    double sum = m->product[n][n];
    for (size_t j = 0; j < n; j++) {
        sum -= 2 * x[j] * m->product[n][j];
        for (size_t k = 0; k < n; k++)
            sum += x[j] * x[k] * m->product[j > k ? j : k][j > k ? k : j];
    }
    return m->count > 0 ? fmax(sum, 1e-12 * m->product[n][n]) / m->count : 0;
}

static int32_t quantised(double weight) {
    double scaled = nearbyint(weight * ICMA_LOSSLESS_UNIT);
    return (int32_t)fmax(-ICMA_LOSSLESS_WEIGHT + ICMA_LOSSLESS_UNIT, fmin(ICMA_LOSSLESS_WEIGHT, scaled));
}

void icma_lossless_fit(const icma_lossless_moments *const *tensors, size_t count, size_t taps,
                       icma_lossless_profile *profile) {
    double x[ICMA_LOSSLESS_TAPS] = {0};
    memset(profile, 0, sizeof *profile);
    for (int round = 0; round < ROUNDS; round++) {
        square sum = {{0}};
        for (size_t t = 0; t < count; t++) {
            double weight = left_over(tensors[t], taps, x);
            for (size_t j = 0; weight > 0 && j <= taps; j++)
                for (size_t k = 0; k <= j; k++)
                    sum[j][k] += tensors[t]->product[j][k] / weight;
        }
        solve((const double(*)[ICMA_LOSSLESS_TAPS + 1]) sum, taps, x);
    }
    for (size_t k = 0; k < taps; k++)
        profile->weight[k] = isfinite(x[k]) ? quantised(x[k] + (k == 0)) : 0;
}
