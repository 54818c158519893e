/* SPDX-License-Identifier: Apache-2.0 */
/* What symbols cost in each context, and the context in which they cost least. For the pack side: floating
 * point. */
#include "memory.h"
#include "rans_host.h"

#include <math.h>

/* Bits of a context's symbols by magnitude, raw low bits aside; the escape's without its distance. */
typedef struct cost_table {
    unsigned reach;
    double bits[ICMA_RANS_REACH + 1], escape;
} cost_table;

static void cost_fill(cost_table *table, const icma_rans_shape *shape) {
    uint32_t rest = (UINT32_C(1) << shape->bits) - shape->escape;
    table->reach = shape->reach;
    table->escape = shape->bits - log2(shape->escape);
    for (unsigned k = 1; k <= shape->reach; k++) {
        uint32_t frequency = icma_rans_halves[shape->first + k - 1];
        table->bits[k] = shape->bits - log2(frequency);
        rest -= 2 * frequency;
    }
    table->bits[0] = shape->bits - log2(rest);
}

/* Symbols, weights[i] times each; once each where weights is NULL. */
typedef struct weighted {
    const int32_t *values;
    const double *weights;
    size_t count;
} weighted;

static double weighted_cost(const cost_table *table, unsigned shift, weighted symbols) {
    double sum = 0;
    for (size_t i = 0; i < symbols.count; i++) {
        int64_t high = icma_rans_high(symbols.values[i], shift), size = high < 0 ? -high : high;
        double bits = size <= (int64_t)table->reach
                          ? table->bits[size]
                          : table->escape + 6 + icma_rans_log2(icma_rans_distance(high, table->reach));
        sum += (bits + shift) * (symbols.weights ? symbols.weights[i] : 1);
    }
    return sum;
}

double icma_rans_cost(unsigned context, const int32_t *symbols, size_t count) {
    unsigned shift;
    cost_table table;
    cost_fill(&table, icma_rans_shape_of(context, &shift));
    return weighted_cost(&table, shift, (weighted){symbols, NULL, count});
}

/* The distinct symbols and how often each occurs, where they lie close together; else, or without memory, as
 * they are. Both arrays, if not NULL, are to be freed. */
static weighted histogram(const int32_t *symbols, size_t count, int32_t **values, double **weights) {
    const weighted plain = {symbols, NULL, count};
    int32_t low = count ? symbols[0] : 0, high = low;
    *values = NULL;
    *weights = NULL;
    for (size_t i = 0; i < count; i++) {
        low = symbols[i] < low ? symbols[i] : low;
        high = symbols[i] > high ? symbols[i] : high;
    }
    size_t span = (size_t)((int64_t)high - low) + 1, distinct = 0;
    if (span > count + 256)
        return plain;
    *values = icma_alloc_array(span, sizeof **values);
    *weights = icma_alloc_zeroed(span, sizeof **weights);
    if (!*values || !*weights)
        return plain;
    for (size_t i = 0; i < count; i++)
        (*weights)[(int64_t)symbols[i] - low]++;
    for (size_t i = 0; i < span; i++) {
        if ((*weights)[i] == 0)
            continue;
        (*values)[distinct] = (int32_t)(low + (int64_t)i);
        (*weights)[distinct++] = (*weights)[i];
    }
    return (weighted){*values, *weights, distinct};
}

typedef struct best_context {
    unsigned context;
    double bits;
} best_context;

/* Tries contexts first, first + stride, .. below last. */
static void find_best(best_context *best, weighted symbols, unsigned first, unsigned last, unsigned stride) {
    cost_table table;
    for (unsigned c = first; c < last && c < icma_rans_contexts(); c += stride) {
        unsigned shift;
        cost_fill(&table, icma_rans_shape_of(c, &shift));
        double bits = weighted_cost(&table, shift, symbols);
        if (bits < best->bits)
            *best = (best_context){c, bits};
    }
}

/* A table twice as wide as the symbols' root mean square cannot be the best: what is beyond is not tried. (Below a spread of 0.7 rounded numbers say too little of it. A narrow table can be
 * the best for symbols with one outlier, so there is no such limit from below.) */
static unsigned narrow(weighted symbols, unsigned first, unsigned end) {
    double squares = 0, count = 0;
    for (size_t i = 0; i < symbols.count; i++) {
        double size = fabs((double)symbols.values[i]), weight = symbols.weights ? symbols.weights[i] : 1;
        squares += weight * size * size;
        count += weight;
    }
    double high = fmax(0.7, count > 0 ? 2 * sqrt(squares / count) : 0);
    while (first + 1 < end && icma_rans_spread(end - 2) > high)
        end--;
    return end;
}

/* Over this many distinct symbols neighbours differ smoothly: every STRIDE-th is tried, then those around the
 * best. */
enum { MANY_SYMBOLS = 1024, STRIDE = 6 };

unsigned icma_rans_best_context_among(const int32_t *symbols, size_t count, unsigned first, unsigned end, double *bits) {
    int32_t *values;
    double *weights;
    weighted all = histogram(symbols, count, &values, &weights);
    best_context best = {first, INFINITY};
    end = narrow(all, first, end);
    find_best(&best, all, first, end, all.count > MANY_SYMBOLS ? STRIDE : 1);
    if (all.count > MANY_SYMBOLS)
        find_best(&best, all, best.context < first + STRIDE ? first : best.context - STRIDE + 1, best.context + STRIDE < end ? best.context + STRIDE : end, 1);
    icma_free(values);
    icma_free(weights);
    if (bits)
        *bits = best.bits;
    return best.context;
}

unsigned icma_rans_best_context(const int32_t *symbols, size_t count, double *bits) {
    return icma_rans_best_context_among(symbols, count, 0, icma_rans_contexts(), bits);
}
