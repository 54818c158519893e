/* SPDX-License-Identifier: Apache-2.0 */
#include "rate.h"

#include "rans.h"
#include "trellis.h"

#include <math.h>

static const double pi = 3.14159265358979323846;
static const double high_rate = 4; /* from here on the closed forms are right to 1e-9 */

static double cumulative(double x) {
    return 0.5 * erfc(-x / sqrt(2));
}

static double density(double x) {
    return exp(-0.5 * x * x) / sqrt(2 * pi);
}

void icma_rate_gaussian(double ratio, double *bits, double *distortion) {
    *bits = 0;
    *distortion = ratio * ratio;
    if (ratio >= high_rate) {
        *bits = log2(ratio * sqrt(2 * pi * exp(1)));
        *distortion = 1.0 / 12;
        return;
    }
    if (ratio < 1e-3)
        return;
    /* Cell i is [i - 1/2, i + 1/2). E(x - i)^2 over all cells = ratio^2 + sum p i^2 - 2 sum i E[x; cell]. */
    for (int i = 0; i - 0.5 < 9 * ratio; i++) {
        double low = (i - 0.5) / ratio, high = (i + 0.5) / ratio, twice = i ? 2 : 1;
        double p = i ? cumulative(-low) - cumulative(-high) : 1 - 2 * cumulative(-high);
        double first = ratio * (density(low) - density(high));
        if (p <= 0)
            break;
        *bits -= twice * p * log2(p);
        *distortion += i ? 2 * (p * i * i - 2 * i * first) : 0;
    }
}

void icma_rate_trellis(double ratio, double *bits, double *distortion) {
    double spread = ratio / 2;
    if (spread < icma_rans_spread(ICMA_TRELLIS_CONTEXT)) {
        icma_rate_gaussian(spread, bits, distortion);
        *distortion *= 4;
        return;
    }
    *distortion = ICMA_TRELLIS_NOISE;
    *bits = 0.5 * log2(ratio * ratio / ICMA_TRELLIS_NOISE) + 0.058 + 0.06 / (spread * spread);
}

double icma_rate_cell(double ratio, int k) {
    double low = (k - 0.5) / ratio, high = (k + 0.5) / ratio;
    double p = k ? cumulative(-low) - cumulative(-high) : 1 - 2 * cumulative(-high);
    if (p > 1e-12)
        return -log2(p);
    return 0.5 * (k / ratio) * (k / ratio) / log(2) + log2(ratio * sqrt(2 * pi));
}
