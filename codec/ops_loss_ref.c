/* SPDX-License-Identifier: Apache-2.0 */
/* The Gaussian likelihood of the reference table (paper eq. 6). */
#include "ops_host.h"

#include <math.h>

void icma_gaussian_nll_reference(void *device, icma_matrix x, icma_matrix y, icma_matrix out) {
    (void)device;
    assert(y.rows == x.rows && y.columns == 2 * x.columns && out.rows == x.rows);
    for (size_t i = 0; i < x.rows; i++) {
        float sum = 0;
        for (size_t j = 0; j < x.columns; j++) {
            float d = icma_row(x, i)[j] - icma_row(y, i)[2 * j], v = icma_row(y, i)[2 * j + 1];
            sum += 0.5F * (d * d * expf(-v) + v);
        }
        icma_row(out, i)[0] = sum;
    }
}

void icma_gaussian_nll_backward_reference(void *device, icma_matrix x, icma_matrix y, float scale, icma_matrix dy) {
    (void)device;
    assert(y.rows == x.rows && y.columns == 2 * x.columns && dy.rows == y.rows && dy.columns == y.columns);
    for (size_t i = 0; i < x.rows; i++)
        for (size_t j = 0; j < x.columns; j++) {
            float d = icma_row(x, i)[j] - icma_row(y, i)[2 * j], precision = expf(-icma_row(y, i)[2 * j + 1]);
            icma_row(dy, i)[2 * j] = -scale * d * precision;
            icma_row(dy, i)[2 * j + 1] = 0.5F * scale * (1 - d * d * precision);
        }
}
