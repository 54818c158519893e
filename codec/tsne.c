/* SPDX-License-Identifier: Apache-2.0 */
#include "tsne.h"

#include "memory.h"
#include "rng.h"

#include <math.h>
#include <string.h>

enum { BISECTIONS = 100, EXAGGERATED = 250 }; /* steps of the first phase, or a quarter of all */
static const double exaggeration = 12, start_spread = 1e-4, jitter = 1e-2, least_gain = 0.01,
                    early_momentum = 0.5, late_momentum = 0.8;

icma_tsne_options icma_tsne_defaults(void) {
    return (icma_tsne_options){.perplexity = 30, .steps = 1000, .seed = 1};
}

typedef struct map {
    size_t n;
    double *p;                          /* n x n: P */
    double *kernel;                     /* n x n: (1 + |y_i - y_j|^2)^-1 */
    double *y, *step, *gain, *gradient; /* n x 2 each; y is the caller's */
    double total;                       /* of the kernel */
} map;

/* --- P
 * -------------------------------------------------------------------------------------------------------------
 */

/* Row i of p_j|i for one b; returns its entropy in bits. Distances less the least one: the largest term is
 * then 1 and the sum never 0. */
static double fill_row(const double *squares, size_t n, size_t i, double b, double least, double *row) {
    double sum = 0, weighted = 0;
    for (size_t j = 0; j < n; j++) {
        double d = squares[j] - least;
        row[j] = j == i ? 0 : exp(-b * d);
        sum += row[j];
        weighted += j == i ? 0 : row[j] * d;
    }
    for (size_t j = 0; j < n; j++)
        row[j] /= sum;
    return (log(sum) + b * weighted / sum) / log(2);
}

/* Entropy falls as b grows. Points at one distance have one entropy, whatever b: the bisection then ends
 * somewhere, with the uniform row. */
static void find_row(const double *squares, size_t n, size_t i, double entropy, double *row) {
    double low = 0, high = INFINITY, least = INFINITY, mean = 0;
    for (size_t j = 0; j < n; j++)
        least = j == i ? least : fmin(least, squares[j]);
    for (size_t j = 0; j < n; j++)
        mean += j == i ? 0 : (squares[j] - least) / (double)(n - 1);
    double b = mean > 0 ? 1 / mean : 1;
    for (int k = 0; k < BISECTIONS; k++) {
        double found = fill_row(squares, n, i, b, least, row);
        if (fabs(found - entropy) < 1e-7)
            return;
        if (found > entropy)
            low = b;
        else
            high = b;
        b = isinf(high) ? 2 * b : (low + high) / 2;
        if (!isfinite(b))
            return;
    }
}

static void find_p(map *m, const double *squares, double perplexity) {
    size_t n = m->n;
    for (size_t i = 0; i < n; i++)
        find_row(squares + i * n, n, i, log2(perplexity), m->p + i * n);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++)
            m->p[i * n + j] = m->p[j * n + i] = (m->p[i * n + j] + m->p[j * n + i]) / (double)(2 * n);
}

/* --- descent
 * ------------------------------------------------------------------------------------------------------- */

static void find_kernel(map *m) {
    size_t n = m->n;
    m->total = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++) {
            double dx = m->y[2 * i] - m->y[2 * j], dy = m->y[2 * i + 1] - m->y[2 * j + 1];
            double k = 1 / (1 + dx * dx + dy * dy);
            m->kernel[i * n + j] = m->kernel[j * n + i] = k;
            m->total += 2 * k;
        }
}

static void find_gradient(map *m, double factor) {
    size_t n = m->n;
    for (size_t i = 0; i < n; i++) {
        const double *p = m->p + i * n, *kernel = m->kernel + i * n;
        double gx = 0, gy = 0;
        for (size_t j = 0; j < n; j++) {
            double pull = (factor * p[j] - kernel[j] / m->total) * kernel[j];
            gx += pull * (m->y[2 * i] - m->y[2 * j]);
            gy += pull * (m->y[2 * i + 1] - m->y[2 * j + 1]);
        }
        m->gradient[2 * i] = 4 * gx;
        m->gradient[2 * i + 1] = 4 * gy;
    }
}

static void move(map *m, double rate, double momentum) {
    double mean[2] = {0, 0};
    for (size_t i = 0; i < 2 * m->n; i++) {
        bool turned = (m->gradient[i] > 0) != (m->step[i] > 0);
        m->gain[i] = turned ? m->gain[i] + 0.2 : fmax(m->gain[i] * 0.8, least_gain);
        m->step[i] = momentum * m->step[i] - rate * m->gain[i] * m->gradient[i];
        m->y[i] += m->step[i];
        mean[i % 2] += m->y[i] / (double)m->n;
    }
    for (size_t i = 0; i < 2 * m->n; i++)
        m->y[i] -= mean[i % 2];
}

static double divergence_of(const map *m) {
    double sum = 0;
    for (size_t i = 0; i < m->n * m->n; i++)
        if (m->p[i] > 0)
            sum += m->p[i] * log(m->p[i] * m->total / m->kernel[i]);
    return sum;
}

/* Where it starts: small, so that no point has far to go. */
static void place(map *m, const double *start, uint64_t seed) {
    icma_rng rng = icma_rng_seed(seed);
    double square = 0;
    for (size_t i = 0; start && i < 2 * m->n; i += 2)
        square += start[i] * start[i] / (double)m->n;
    double scale = square > 0 ? 1 / sqrt(square) : 0, noise = scale > 0 ? jitter : 1;
    for (size_t i = 0; i < 2 * m->n; i++) {
        m->y[i] = start_spread * ((start ? start[i] * scale : 0) + noise * (double)icma_rng_normal(&rng));
        m->gain[i] = 1;
        m->step[i] = 0;
    }
}

static icma_status descend(map *m, const icma_tsne_options *o, icma_error *error) {
    size_t early = o->steps / 4 < EXAGGERATED ? o->steps / 4 : EXAGGERATED;
    double rate = fmax((double)m->n / exaggeration / 4, 50);
    for (size_t i = 0; i < o->steps; i++) {
        icma_status status = o->check ? o->check(o->context, (double)i / (double)o->steps, error) : ICMA_OK;
        if (status)
            return status;
        find_kernel(m);
        find_gradient(m, i < early ? exaggeration : 1);
        move(m, rate, i < early ? early_momentum : late_momentum);
    }
    return ICMA_OK;
}

icma_status icma_tsne(const double *squares, size_t n, const double *start, const icma_tsne_options *o,
                      double *out, double *perplexity, double *divergence, icma_error *error) {
    map m = {.n = n, .y = out};
    *perplexity = fmax(fmin(o->perplexity, (double)(n - 1) / 3), 1);
    m.p = icma_alloc_zeroed(n * n, sizeof *m.p);
    m.kernel = icma_alloc_zeroed(n * n, sizeof *m.kernel);
    m.step = icma_alloc_array(6 * n, sizeof *m.step);
    icma_status status = m.p && m.kernel && m.step
                             ? ICMA_OK
                             : icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for t-SNE");
    if (!status) {
        m.gain = m.step + 2 * n;
        m.gradient = m.gain + 2 * n;
        find_p(&m, squares, *perplexity);
        place(&m, start, o->seed);
        status = descend(&m, o, error);
    }
    if (!status) {
        find_kernel(&m);
        *divergence = divergence_of(&m);
    }
    icma_free(m.p);
    icma_free(m.kernel);
    icma_free(m.step);
    return status;
}
