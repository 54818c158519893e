/* SPDX-License-Identifier: Apache-2.0 */
#include "tsne.h"

#include "memory.h"
#include "rng.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

enum { BISECTIONS = 100, EXAGGERATED = 250 }; /* steps of the first phase, or a quarter of all */
static const double exaggeration = 12, start_spread = 1e-4, jitter = 1e-2, least_gain = 0.01,
                    early_momentum = 0.5, late_momentum = 0.8;

icma_tsne_options icma_tsne_defaults(void) {
    return (icma_tsne_options){.perplexity = 30, .steps = 1000, .seed = 1};
}

typedef struct map {
    size_t n;
    double *p;                               /* n x n: P */
    double *x, *y;                           /* n each; one block with what follows, at x */
    double *step[2], *gain[2], *gradient[2]; /* n each, of x and of y */
} map;

/* --- P ------------------------------------------------------------------------------------------------ */

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

/* --- descent ------------------------------------------------------------------------------------------ */

enum { LANES = 8 }; /* partial sums, added pairwise in the end: a fixed order that fills vector registers */

/* Over all j, with k = (1 + |y_i - y_j|^2)^-1: k, and p k d and k^2 d for both coordinates of d = y_i - y_j.
 */
typedef struct sums {
    double kernel[LANES], pull[2][LANES], push[2][LANES];
} sums;

static double fold(const double *lanes) {
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

static void add_term(sums *s, size_t lane, double p, double dx, double dy) {
    double k = 1 / (1 + dx * dx + dy * dy), pull = p * k, push = k * k;
    s->kernel[lane] += k;
    s->pull[0][lane] += pull * dx;
    s->pull[1][lane] += pull * dy;
    s->push[0][lane] += push * dx;
    s->push[1][lane] += push * dy;
}

static sums sum_over(const map *m, size_t i) {
    sums s = {{0}, {{0}}, {{0}}};
    const double *p = m->p + i * m->n, x = m->x[i], y = m->y[i];
    size_t j = 0;
    for (; j + LANES <= m->n; j += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            add_term(&s, lane, p[j + lane], x - m->x[j + lane], y - m->y[j + lane]);
    for (; j < m->n; j++)
        add_term(&s, 0, p[j], x - m->x[j], y - m->y[j]);
    return s;
}

/* The gradient is 4 (factor sum p k d - sum k^2 d / total), and the total of k over all pairs is known only
 * in the end: `push`, 2 n numbers, holds the second sums until then. Returns the total. */
static double find_gradient(map *m, double factor, double *push) {
    double total = 0;
    for (size_t i = 0; i < m->n; i++) {
        sums s = sum_over(m, i);
        total += fold(s.kernel) - 1; /* j = i */
        for (size_t axis = 0; axis < 2; axis++) {
            m->gradient[axis][i] = 4 * factor * fold(s.pull[axis]);
            push[2 * i + axis] = 4 * fold(s.push[axis]);
        }
    }
    for (size_t i = 0; i < m->n; i++)
        for (size_t axis = 0; axis < 2; axis++)
            m->gradient[axis][i] -= push[2 * i + axis] / total;
    return total;
}

static void move(map *m, double rate, double momentum) {
    double *const places[2] = {m->x, m->y};
    for (int axis = 0; axis < 2; axis++) {
        double *place = places[axis], *step = m->step[axis], *gain = m->gain[axis], mean = 0;
        const double *gradient = m->gradient[axis];
        for (size_t i = 0; i < m->n; i++) {
            bool turned = (gradient[i] > 0) != (step[i] > 0);
            gain[i] = turned ? gain[i] + 0.2 : fmax(gain[i] * 0.8, least_gain);
            step[i] = momentum * step[i] - rate * gain[i] * gradient[i];
            place[i] += step[i];
            mean += place[i] / (double)m->n;
        }
        for (size_t i = 0; i < m->n; i++)
            place[i] -= mean;
    }
}

static double divergence_of(const map *m, double total) {
    double sum = 0;
    for (size_t i = 0; i < m->n; i++)
        for (size_t j = 0; j < m->n; j++) {
            double p = m->p[i * m->n + j], dx = m->x[i] - m->x[j], dy = m->y[i] - m->y[j];
            if (p > 0)
                sum += p * log(p * total * (1 + dx * dx + dy * dy));
        }
    return fmax(sum, 0); /* of equal distributions, but for rounding */
}

/* Where it starts: small, so that no point has far to go. */
static void place(map *m, const double *start, uint64_t seed) {
    icma_rng rng = icma_rng_seed(seed);
    double square = 0;
    for (size_t i = 0; start && i < m->n; i++)
        square += start[2 * i] * start[2 * i] / (double)m->n;
    double scale = square > 0 ? 1 / sqrt(square) : 0, noise = scale > 0 ? jitter : 1;
    for (size_t i = 0; i < m->n; i++) {
        double x = start ? start[2 * i] * scale : 0, y = start ? start[2 * i + 1] * scale : 0;
        m->x[i] = start_spread * (x + noise * (double)icma_rng_normal(&rng));
        m->y[i] = start_spread * (y + noise * (double)icma_rng_normal(&rng));
        for (int axis = 0; axis < 2; axis++) {
            m->gain[axis][i] = 1;
            m->step[axis][i] = 0;
        }
    }
}

static icma_status descend(map *m, const icma_tsne_options *o, double *push, icma_error *error) {
    size_t early = o->steps / 4 < EXAGGERATED ? o->steps / 4 : EXAGGERATED;
    double rate = fmax((double)m->n / exaggeration / 4, 50);
    for (size_t i = 0; i < o->steps; i++) {
        icma_status status = o->check ? o->check(o->context, (double)i / (double)o->steps, error) : ICMA_OK;
        if (status)
            return status;
        find_gradient(m, i < early ? exaggeration : 1, push);
        move(m, rate, i < early ? early_momentum : late_momentum);
    }
    return ICMA_OK;
}

static bool allocate(map *m) {
    double *block = icma_alloc_array(8 * m->n, sizeof *block);
    m->p = icma_alloc_zeroed(m->n * m->n, sizeof *m->p);
    m->x = block;
    if (!block || !m->p)
        return false;
    m->y = block + m->n;
    for (size_t axis = 0; axis < 2; axis++) {
        m->step[axis] = block + (2 + axis) * m->n;
        m->gain[axis] = block + (4 + axis) * m->n;
        m->gradient[axis] = block + (6 + axis) * m->n;
    }
    return true;
}

icma_status icma_tsne(const double *squares, size_t n, const double *start, const icma_tsne_options *o,
                      double *out, double *perplexity, double *divergence, icma_error *error) {
    map m = {.n = n};
    *perplexity = fmax(fmin(o->perplexity, (double)(n - 1) / 3), 1);
    icma_status status =
        allocate(&m) ? ICMA_OK : icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for t-SNE");
    if (!status) {
        find_p(&m, squares, *perplexity);
        place(&m, start, o->seed);
        status = descend(&m, o, out, error); /* `out` has room for its sums until it gets the places */
    }
    if (!status) {
        *divergence = divergence_of(&m, find_gradient(&m, 1, out));
        for (size_t i = 0; i < n; i++) {
            out[2 * i] = m.x[i];
            out[2 * i + 1] = m.y[i];
        }
    }
    icma_free(m.p);
    icma_free(m.x);
    return status;
}
