/* SPDX-License-Identifier: Apache-2.0 */
/* Transformers in the reference table: in double, one thread. */
#include "ops_host.h"

#include <math.h>

void icma_layer_norm_reference(void *device, icma_matrix x, icma_matrix gamma, icma_matrix beta,
                               float epsilon, icma_matrix y) {
    (void)device;
    assert(x.rows == y.rows && x.columns == y.columns && gamma.columns == x.columns &&
           beta.columns == x.columns);
    for (size_t i = 0; i < x.rows; i++) {
        double sum = 0, squares = 0, count = (double)x.columns;
        for (size_t j = 0; j < x.columns; j++)
            sum += (double)icma_row(x, i)[j];
        for (size_t j = 0; j < x.columns; j++) {
            double d = (double)icma_row(x, i)[j] - sum / count;
            squares += d * d;
        }
        for (size_t j = 0; j < x.columns; j++) {
            double d = ((double)icma_row(x, i)[j] - sum / count) / sqrt(squares / count + (double)epsilon);
            icma_row(y, i)[j] = (float)(d * (double)icma_row(gamma, 0)[j] + (double)icma_row(beta, 0)[j]);
        }
    }
}

void icma_gelu_reference(void *device, bool quick, icma_matrix bias, icma_matrix y) {
    (void)device;
    assert(bias.columns == y.columns);
    for (size_t i = 0; i < y.rows; i++)
        for (size_t j = 0; j < y.columns; j++) {
            double z = (double)icma_row(y, i)[j] + (double)icma_row(bias, 0)[j];
            icma_row(y, i)[j] = (float)(quick ? z / (1 + exp(-1.702 * z)) : z * (1 + erf(z / sqrt(2))) / 2);
        }
}

static double dot(const float *a, const float *b, size_t count) {
    double sum = 0;
    for (size_t j = 0; j < count; j++)
        sum += (double)a[j] * (double)b[j];
    return sum;
}

/* One head of one query: columns first .. first + count - 1. */
static void attend(const uint32_t *seen, size_t length, float scale, const float *q, icma_matrix k,
                   icma_matrix v, size_t first, size_t count, float *y) {
    double most = -INFINITY, total = 0, sum;
    for (size_t n = 0; n < length; n++)
        most = fmax(most, (double)scale * dot(q, icma_row(k, seen[n]) + first, count));
    for (size_t n = 0; n < length; n++)
        total += exp((double)scale * dot(q, icma_row(k, seen[n]) + first, count) - most);
    for (size_t j = 0; j < count; j++) {
        sum = 0;
        for (size_t n = 0; n < length; n++)
            sum += exp((double)scale * dot(q, icma_row(k, seen[n]) + first, count) - most) *
                   (double)icma_row(v, seen[n])[first + j];
        y[j] = (float)(sum / total);
    }
}

void icma_attention_reference(void *device, icma_attention who, float scale, icma_matrix q, icma_matrix k,
                              icma_matrix v, icma_matrix y) {
    (void)device;
    assert(who.heads && q.columns % who.heads == 0 && k.columns == q.columns && v.columns == q.columns &&
           y.columns == q.columns && y.rows == q.rows);
    size_t columns = q.columns / who.heads;
    for (size_t i = 0; i < q.rows; i++)
        for (size_t h = 0; h < who.heads; h++)
            attend(icma_u32(who.seen) + icma_u32(who.first)[i], icma_u32(who.length)[i], scale,
                   icma_row(q, i) + h * columns, k, v, h * columns, columns, icma_row(y, i) + h * columns);
}
