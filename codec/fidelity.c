/* SPDX-License-Identifier: Apache-2.0 */
#include "fidelity.h"

#include "memory.h"
#include "ops.h"
#include "sort.h"

#include <cblas.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <string.h>

enum {
    CHUNK = 1024, /* elements converted at a time; a multiple of LANES */
    LANES = 8,    /* partial sums: a fixed order that a compiler may vectorise */
    TILE_COLUMNS = 256,
    TILE_ROWS = 64,
    LARGE_ADAPTER = 1 << 20, /* bytes: below, starting threads costs more than it saves */
};

/* --- distances ----------------------------------------------------------------------------------------- */

double icma_distance_relative(const icma_distance *distance) {
    if (distance->error == 0.0)
        return 0.0;
    if (distance->energy == 0.0 || !isfinite(distance->error))
        return INFINITY;
    return sqrt(distance->error) / sqrt(distance->energy);
}

double icma_distance_cosine(const icma_distance *distance) {
    if (!isfinite(distance->error))
        return 0.0;
    if (distance->energy == 0.0 && distance->other == 0.0)
        return 1.0;
    if (distance->energy == 0.0 || distance->other == 0.0)
        return 0.0;
    double cosine = distance->dot / (sqrt(distance->energy) * sqrt(distance->other));
    return fmax(-1.0, fmin(1.0, cosine));
}

double icma_distance_snr(const icma_distance *distance) {
    return -20.0 * log10(icma_distance_relative(distance));
}

void icma_distance_add(icma_distance *total, const icma_distance *more) {
    total->identical = total->count == 0 ? more->identical : total->identical && more->identical;
    total->count += more->count;
    total->energy += more->energy;
    total->other += more->other;
    total->error += more->error;
    total->dot += more->dot;
    if (isnan(more->maximum) || more->maximum > total->maximum)
        total->maximum = more->maximum;
}

/* --- numbers ------------------------------------------------------------------------------------------- */

/* A tensor's elements in memory. */
typedef struct elements {
    icma_dtype dtype;
    const uint8_t *data;
    size_t width; /* bytes an element; 0: not whole bytes */
} elements;

static elements elements_of(const icma_tensor_info *tensor, const uint8_t *data) {
    unsigned bits = icma_dtype_bits(tensor->dtype);
    return (elements){tensor->dtype, data + tensor->begin, bits % 8 == 0 ? bits / 8 : 0};
}

static bool is_number(icma_dtype dtype) {
    return dtype != ICMA_F4 && dtype != ICMA_F6_E2M3 && dtype != ICMA_F6_E3M2 && dtype != ICMA_C64;
}

/* Elements first .. first + count - 1 of a number dtype as doubles: exact but for integers beyond 2^53. */
static void load_doubles(elements from, uint64_t first, size_t count, double *out) {
    const uint8_t *at = from.data + first * from.width;
    if (!icma_dtype_is_modelled(from.dtype)) {
        for (size_t i = 0; i < count; i++)
            if (!icma_element_to_double(from.dtype, at + i * from.width, &out[i]))
                out[i] = NAN;
        return;
    }
    float floats[CHUNK];
    for (size_t done = 0; done < count;) {
        size_t part = count - done < CHUNK ? count - done : CHUNK;
        icma_load_floats(from.dtype, at + done * from.width, part, floats);
        for (size_t i = 0; i < part; i++)
            out[done + i] = (double)floats[i];
        done += part;
    }
}

static bool all_finite(const double *values, size_t count) {
    size_t strange = 0;
    for (size_t i = 0; i < count; i++)
        strange += !(fabs(values[i]) <= DBL_MAX);
    return strange == 0;
}

/* --- a tensor ------------------------------------------------------------------------------------------ */

typedef struct lane_sums {
    double energy[LANES], other[LANES], error[LANES], dot[LANES], maximum[LANES];
} lane_sums;

static void add_to_lanes(const double *x, const double *y, size_t count, lane_sums *sums) {
    for (size_t i = 0; i < count; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++) {
            double a = x[i + lane], b = y[i + lane], difference = a - b, size = fabs(difference);
            sums->energy[lane] += a * a;
            sums->other[lane] += b * b;
            sums->error[lane] += difference * difference;
            sums->dot[lane] += a * b;
            sums->maximum[lane] = size > sums->maximum[lane] ? size : sums->maximum[lane];
        }
}

static void add_lanes(const lane_sums *sums, icma_distance *out) {
    for (size_t lane = 0; lane < LANES; lane++) {
        out->energy += sums->energy[lane];
        out->other += sums->other[lane];
        out->error += sums->error[lane];
        out->dot += sums->dot[lane];
        out->maximum = fmax(out->maximum, sums->maximum[lane]);
    }
}

/* Takes elements that are not finite out of a chunk, on both sides. False if they are not the same there: the
 * same bytes or, between dtypes, the same value. */
static bool settle_strange(elements x, elements y, uint64_t first, size_t count, double *a, double *b) {
    bool same = true;
    for (size_t i = 0; i < count; i++) {
        if (isfinite(a[i]) && isfinite(b[i]))
            continue;
        const uint8_t *p = x.data + (first + i) * x.width, *q = y.data + (first + i) * y.width;
        if (x.dtype == y.dtype)
            same = same && memcmp(p, q, x.width) == 0;
        else
            same = same && memcmp(&a[i], &b[i], sizeof *a) == 0;
        a[i] = b[i] = 0.0;
    }
    return same;
}

static void set_infinite(icma_distance *out) {
    out->error = INFINITY;
    out->maximum = INFINITY;
}

static void compare_numbers(elements x, elements y, uint64_t count, icma_distance *out) {
    double a[CHUNK], b[CHUNK];
    bool same = true;
    for (uint64_t done = 0; done < count;) {
        size_t part = count - done < CHUNK ? (size_t)(count - done) : CHUNK;
        load_doubles(x, done, part, a);
        load_doubles(y, done, part, b);
        if (!all_finite(a, part) || !all_finite(b, part))
            same = settle_strange(x, y, done, part, a, b) && same;
        size_t padded = (part + LANES - 1) / LANES * LANES;
        for (size_t i = part; i < padded; i++)
            a[i] = b[i] = 0.0;
        lane_sums sums = {0};
        add_to_lanes(a, b, padded, &sums);
        add_lanes(&sums, out);
        done += part;
    }
    if (!same)
        set_infinite(out);
}

static icma_distance compare_tensor(const icma_tensor_info *x, const uint8_t *x_data,
                                    const icma_tensor_info *y, const uint8_t *y_data) {
    icma_distance out = {.count = x->count};
    elements a = elements_of(x, x_data), b = elements_of(y, y_data);
    out.identical = x->dtype == y->dtype && x->size == y->size &&
                    (x->size == 0 || memcmp(a.data, b.data, (size_t)x->size) == 0);
    if (is_number(x->dtype) && is_number(y->dtype))
        compare_numbers(a, b, x->count, &out);
    else if (!out.identical && x->count > 0)
        set_infinite(&out);
    return out;
}

/* --- a pair -------------------------------------------------------------------------------------------- */

/* Both sides of a pair, and room for tiles of them. With A, B the original's factors, A', B' the other's and
 * D, E the differences B' - B, A' - A (exact in double), the stacks are down = [A; A'; E]  (3r x width) up =
 * [B, B', D]  (height x 3r). */
typedef struct product {
    elements a, a_other, b, b_other;
    size_t rank, rows, columns;
    double *stack;    /* one tile of `down` or `up` */
    double *grams[2]; /* 3r x 3r: up^T up, down down^T; NULL when direct */
    double *norms[2]; /* 3r: of the columns of `up`, of the rows of `down` */
    double *row_tile; /* TILE_ROWS x 3r of `up`; NULL unless tiled */
    double *tiles[3]; /* TILE_ROWS x TILE_COLUMNS of B A, B' A', and their difference; the first two direct
                         only */
} product;

/* Forming B A, B' A' and the difference is cheaper than the Grams where the rank is high for the shape; it
 * bounds their size too: r < min(rows, columns) otherwise. */
static bool is_direct(size_t rank, size_t rows, size_t columns) {
    return (double)rows * (double)columns <= (double)rank * ((double)rows + (double)columns);
}

static void load_difference(double *stack, size_t count, const double *x, const double *y) {
    for (size_t i = 0; i < count; i++)
        stack[i] = y[i] - x[i];
}

/* Columns first .. first + width - 1 of `down`, `width` a row. */
static void load_down(const product *p, size_t first, size_t width, double *out) {
    size_t block = p->rank * width;
    for (size_t i = 0; i < p->rank; i++) {
        load_doubles(p->a, (uint64_t)i * p->columns + first, width, out + i * width);
        load_doubles(p->a_other, (uint64_t)i * p->columns + first, width, out + block + i * width);
    }
    load_difference(out + 2 * block, block, out, out + block);
}

/* Rows first .. first + height - 1 of `up`, 3r a row. */
static void load_up(const product *p, size_t first, size_t height, double *out) {
    size_t r = p->rank;
    for (size_t i = 0; i < height; i++) {
        double *row = out + i * 3 * r;
        load_doubles(p->b, (uint64_t)(first + i) * r, r, row);
        load_doubles(p->b_other, (uint64_t)(first + i) * r, r, row + r);
        load_difference(row + 2 * r, r, row, row + r);
    }
}

static void mirror(double *gram, size_t side) {
    for (size_t i = 1; i < side; i++)
        for (size_t j = 0; j < i; j++)
            gram[i * side + j] = gram[j * side + i];
}

static void fill_grams(const product *p) {
    int side = (int)(3 * p->rank);
    for (size_t first = 0; first < p->rows; first += TILE_COLUMNS) {
        size_t height = p->rows - first < TILE_COLUMNS ? p->rows - first : TILE_COLUMNS;
        load_up(p, first, height, p->stack);
        cblas_dsyrk(CblasRowMajor, CblasUpper, CblasTrans, side, (int)height, 1.0, p->stack, side,
                    first ? 1.0 : 0.0, p->grams[0], side);
    }
    for (size_t first = 0; first < p->columns; first += TILE_COLUMNS) {
        size_t width = p->columns - first < TILE_COLUMNS ? p->columns - first : TILE_COLUMNS;
        load_down(p, first, width, p->stack);
        cblas_dsyrk(CblasRowMajor, CblasUpper, CblasNoTrans, side, (int)width, 1.0, p->stack, (int)width,
                    first ? 1.0 : 0.0, p->grams[1], side);
    }
    mirror(p->grams[0], 3 * p->rank);
    mirror(p->grams[1], 3 * p->rank);
}

/* Which block of a stack. */
enum { ORIGINAL, OTHER, DIFFERENCE };

/* Squared norms of the columns of `up` and the rows of `down`. */
static void fill_norms(const product *p) {
    size_t side = 3 * p->rank;
    memset(p->norms[0], 0, side * sizeof(double));
    memset(p->norms[1], 0, side * sizeof(double));
    for (size_t row = 0; row < p->rows; row++) {
        load_up(p, row, 1, p->stack);
        for (size_t i = 0; i < side; i++)
            p->norms[0][i] += p->stack[i] * p->stack[i];
    }
    for (size_t first = 0; first < p->columns; first += TILE_COLUMNS) {
        size_t width = p->columns - first < TILE_COLUMNS ? p->columns - first : TILE_COLUMNS;
        load_down(p, first, width, p->stack);
        for (size_t i = 0; i < side * width; i++)
            p->norms[1][i / width] += p->stack[i] * p->stack[i];
    }
}

/* Sum over i of |column i of up's block m| |row i of down's block q|: what the norm of their product cannot exceed, and its rounding is relative to. */
static double product_size(const product *p, size_t m, size_t q) {
    double size = 0.0;
    for (size_t i = 0; i < p->rank; i++)
        size += sqrt(p->norms[0][m * p->rank + i]) * sqrt(p->norms[1][q * p->rank + i]);
    return size;
}

/* Sizes of the two sums that give the difference: D A' + B E, good where the factors are near each other, and B' A' - B A, good where they are not. */
static double sum_size(const product *p) {
    return product_size(p, DIFFERENCE, OTHER) + product_size(p, ORIGINAL, DIFFERENCE);
}

static double plain_size(const product *p) {
    return product_size(p, OTHER, OTHER) + product_size(p, ORIGINAL, ORIGINAL);
}

/* Of sums in the squared sizes of what was added: below, Gram matrices are too coarse, and the product is formed. */
static const double smallest_share = 1e-6;

/* trace((M^T N) (Q P^T)) = <M P, N Q> for blocks m, n of `up` and p, q of `down`. */
static double trace_product(const product *pair, size_t m, size_t n, size_t p, size_t q) {
    size_t r = pair->rank, side = 3 * r;
    double total = 0.0;
    for (size_t i = 0; i < r; i++) {
        const double *left = pair->grams[0] + (m * r + i) * side + n * r;
        const double *right = pair->grams[1] + (p * r + i) * side + q * r;
        double row = 0.0;
        for (size_t j = 0; j < r; j++)
            row += left[j] * right[j];
        total += row;
    }
    return total;
}

/* B' A' - B A = D A' + B E. False where that cancels so far that rounding shows: large numbers in one factor may meet nothing in the other. */
static bool measure_by_grams(const product *p, icma_distance *out) {
    fill_grams(p);
    out->energy = trace_product(p, ORIGINAL, ORIGINAL, ORIGINAL, ORIGINAL);
    out->other = trace_product(p, OTHER, OTHER, OTHER, OTHER);
    out->dot = trace_product(p, ORIGINAL, OTHER, ORIGINAL, OTHER);
    out->error = trace_product(p, DIFFERENCE, DIFFERENCE, OTHER, OTHER) +
                 2.0 * trace_product(p, DIFFERENCE, ORIGINAL, OTHER, DIFFERENCE) +
                 trace_product(p, ORIGINAL, ORIGINAL, DIFFERENCE, DIFFERENCE);
    double size = product_size(p, ORIGINAL, ORIGINAL), wrong = sum_size(p);
    return out->energy >= smallest_share * size * size && out->error >= smallest_share * wrong * wrong;
}

/* tile = (beta) tile + up[u] down[d], height x width. */
static void multiply_tile(const product *p, size_t height, size_t width, size_t u, size_t d, double beta,
                          double *tile) {
    size_t r = p->rank;
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)height, (int)width, (int)r, 1.0,
                p->row_tile + u * r, (int)(3 * r), p->stack + d * r * width, (int)width, beta, tile,
                (int)width);
}

static double largest_magnitude(const double *values, size_t count) {
    double lanes[LANES] = {0}, largest = 0.0;
    size_t whole = count / LANES * LANES;
    for (size_t i = 0; i < whole; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++) {
            double size = fabs(values[i + lane]);
            lanes[lane] = size > lanes[lane] ? size : lanes[lane];
        }
    for (size_t i = whole; i < count; i++)
        lanes[i - whole] = fmax(lanes[i - whole], fabs(values[i]));
    for (size_t lane = 0; lane < LANES; lane++)
        largest = fmax(largest, lanes[lane]);
    return largest;
}

static void measure_tile(const product *p, size_t height, size_t width, bool sums, icma_distance *out) {
    size_t count = height * width;
    double *error = p->tiles[DIFFERENCE];
    multiply_tile(p, height, width, DIFFERENCE, OTHER, 0.0, error);
    multiply_tile(p, height, width, ORIGINAL, DIFFERENCE, 1.0, error);
    if (!sums || plain_size(p) >= sum_size(p))
        out->maximum = fmax(out->maximum, largest_magnitude(error, count));
    if (!sums)
        return;
    const double *x = p->tiles[ORIGINAL], *y = p->tiles[OTHER];
    multiply_tile(p, height, width, ORIGINAL, ORIGINAL, 0.0, p->tiles[ORIGINAL]);
    multiply_tile(p, height, width, OTHER, OTHER, 0.0, p->tiles[OTHER]);
    if (plain_size(p) < sum_size(p)) {
        load_difference(error, count, x, y);
        out->maximum = fmax(out->maximum, largest_magnitude(error, count));
    }
    for (size_t i = 0; i < count; i++) {
        out->energy += x[i] * x[i];
        out->other += y[i] * y[i];
        out->dot += x[i] * y[i];
        out->error += error[i] * error[i];
    }
}

static void measure_by_tiles(const product *p, bool sums, icma_distance *out) {
    out->maximum = 0.0;
    for (size_t column = 0; column < p->columns; column += TILE_COLUMNS) {
        size_t width = p->columns - column < TILE_COLUMNS ? p->columns - column : TILE_COLUMNS;
        load_down(p, column, width, p->stack);
        for (size_t row = 0; row < p->rows; row += TILE_ROWS) {
            size_t height = p->rows - row < TILE_ROWS ? p->rows - row : TILE_ROWS;
            load_up(p, row, height, p->row_tile);
            measure_tile(p, height, width, sums, out);
        }
    }
}

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

static double *alloc_doubles(size_t a, size_t b, bool *failed) {
    size_t count;
    double *values = icma_multiply_size(a, b, &count) ? icma_alloc_array(count, sizeof *values) : NULL;
    *failed = *failed || !values;
    return values;
}

static void free_product(product *p) {
    icma_free(p->stack);
    icma_free(p->grams[0]);
    icma_free(p->grams[1]);
    icma_free(p->norms[0]);
    icma_free(p->norms[1]);
    icma_free(p->row_tile);
    for (size_t i = 0; i < 3; i++)
        icma_free(p->tiles[i]);
    p->stack = p->grams[0] = p->grams[1] = p->norms[0] = p->norms[1] = p->row_tile = p->tiles[0] = p->tiles[1] = p->tiles[2] = NULL;
}

static bool alloc_product(product *p, bool direct, bool tiled) {
    bool failed = false;
    size_t side = 3 * p->rank, height = smaller(p->rows, TILE_ROWS),
           width = smaller(p->columns, TILE_COLUMNS);
    size_t longest = direct ? width : smaller(p->rows > p->columns ? p->rows : p->columns, TILE_COLUMNS);
    p->stack = alloc_doubles(side, longest, &failed);
    for (size_t i = 0; i < 2; i++) {
        p->norms[i] = alloc_doubles(side, 1, &failed);
        p->grams[i] = direct ? NULL : alloc_doubles(side, side, &failed);
    }
    if (tiled)
        p->row_tile = alloc_doubles(side, height, &failed);
    for (size_t i = direct ? ORIGINAL : DIFFERENCE; i <= DIFFERENCE && tiled; i++)
        p->tiles[i] = alloc_doubles(height, width, &failed);
    return !failed;
}

static icma_status measure_product(product *p, bool deep, icma_distance *out) {
    bool direct = is_direct(p->rank, p->rows, p->columns);
    if (p->rank > INT_MAX / 3)
        return ICMA_E_LIMIT; /* beyond what BLAS counts */
    if (!alloc_product(p, direct, direct || deep)) {
        free_product(p);
        return ICMA_E_MEMORY;
    }
    fill_norms(p);
    if (!direct && !measure_by_grams(p, out)) {
        out->energy = out->other = out->dot = out->error = 0.0;
        free_product(p);
        direct = true;
        if (!alloc_product(p, true, true)) {
            free_product(p);
            return ICMA_E_MEMORY;
        }
        fill_norms(p);
    }
    if (direct || deep)
        measure_by_tiles(p, direct, out);
    /* What rounding may have hidden: an error is never understated. */
    double hidden = 0x1p-52 * fmin(plain_size(p), sum_size(p));
    out->error += direct ? hidden * hidden : 0.0;
    free_product(p);
    return ICMA_OK;
}

static void scale_distance(icma_distance *distance, double scale, bool deep) {
    double square = scale * scale;
    distance->energy = fmax(0.0, distance->energy) * square;
    distance->other = fmax(0.0, distance->other) * square;
    distance->error = fmax(0.0, distance->error) * square;
    distance->dot *= square;
    distance->maximum = deep ? distance->maximum * fabs(scale) : NAN;
}

/* --- two adapters -------------------------------------------------------------------------------------- */

typedef struct comparison {
    const icma_safetensors *original, *other;
    const uint8_t *original_data, *other_data;
    const icma_pairs *pairs;
    const double *scales;
    size_t *partner; /* of each tensor of the original, its index in the other; owned */
    bool *strange;   /* of each tensor of the original: not finite, or no numbers, on either side; owned */
    bool deep;
    bool large; /* worth more than one thread */
} comparison;

static int compare_tensor_names(const void *left, const void *right, const void *context) {
    const icma_safetensors *tensors = context;
    const size_t *a = left, *b = right;
    return strcmp(tensors->tensors[*a].name, tensors->tensors[*b].name);
}

static size_t *order_by_name(const icma_safetensors *tensors) {
    size_t *order = icma_alloc_array(tensors->tensor_count, sizeof *order);
    if (!order)
        return NULL;
    for (size_t i = 0; i < tensors->tensor_count; i++)
        order[i] = i;
    icma_sort(order, tensors->tensor_count, sizeof *order, compare_tensor_names, tensors);
    return order;
}

static icma_status check_shapes(const icma_tensor_info *a, const icma_tensor_info *b, icma_error *error) {
    bool same = a->rank == b->rank;
    for (unsigned i = 0; i < a->rank && same; i++)
        same = a->shape[i] == b->shape[i];
    if (same)
        return ICMA_OK;
    return icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "tensor '%s' has different shapes; nothing to compare",
                     a->name);
}

/* Matches tensors by name. Both lists are sorted, so the first difference is the first in byte order. */
static icma_status match_tensors(const comparison *c, const size_t *left, const size_t *right,
                                 icma_error *error) {
    size_t count = c->original->tensor_count, other_count = c->other->tensor_count;
    for (size_t i = 0; i < count || i < other_count; i++) {
        const icma_tensor_info *a = i < count ? &c->original->tensors[left[i]] : NULL;
        const icma_tensor_info *b = i < other_count ? &c->other->tensors[right[i]] : NULL;
        int order = !a ? 1 : !b ? -1 : strcmp(a->name, b->name);
        if (order != 0)
            return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                             "tensor '%s' is only in the %s; nothing to compare",
                             order < 0 ? a->name : b->name, order < 0 ? "first adapter" : "second adapter");
        icma_status status = check_shapes(a, b, error);
        if (status != ICMA_OK)
            return status;
        c->partner[left[i]] = right[i];
    }
    return ICMA_OK;
}

static icma_status pair_up(const comparison *c, icma_error *error) {
    size_t *left = order_by_name(c->original), *right = order_by_name(c->other);
    icma_status status;
    if ((!left && c->original->tensor_count > 0) || (!right && c->other->tensor_count > 0))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the list of tensors");
    else
        status = match_tensors(c, left, right, error);
    icma_free(left);
    icma_free(right);
    return status;
}

static bool has_strange(const icma_tensor_info *tensor, const uint8_t *data) {
    double values[CHUNK];
    elements from = elements_of(tensor, data);
    if (!is_number(tensor->dtype))
        return true;
    for (uint64_t done = 0; done < tensor->count;) {
        size_t part = tensor->count - done < CHUNK ? (size_t)(tensor->count - done) : CHUNK;
        load_doubles(from, done, part, values);
        if (!all_finite(values, part))
            return true;
        done += part;
    }
    return false;
}

/* Each result is one thread's, in a fixed order of sums. */
static void compare_tensors(const comparison *c, icma_fidelity *out) {
#pragma omp parallel for schedule(dynamic) num_threads(icma_threads()) if (c->large)
    for (size_t i = 0; i < c->original->tensor_count; i++) {
        const icma_tensor_info *x = &c->original->tensors[i], *y = &c->other->tensors[c->partner[i]];
        out->tensors[i] = compare_tensor(x, c->original_data, y, c->other_data);
        if (c->pairs->roles[i] != ICMA_ROLE_OTHER)
            c->strange[i] = has_strange(x, c->original_data) || has_strange(y, c->other_data);
    }
}

static icma_status compare_pair(const comparison *c, size_t index, const icma_fidelity *tensors,
                                icma_distance *out) {
    const icma_pair *pair = &c->pairs->list[index];
    *out = (icma_distance){.count = pair->rows * pair->columns};
    out->identical = tensors->tensors[pair->a].identical && tensors->tensors[pair->b].identical;
    if (c->strange[pair->a] || c->strange[pair->b]) {
        if (!out->identical)
            set_infinite(out);
        if (!c->deep)
            out->maximum = NAN;
        return ICMA_OK;
    }
    const icma_tensor_info *ours = c->original->tensors, *theirs = c->other->tensors;
    product p = {.a = elements_of(&ours[pair->a], c->original_data),
                 .a_other = elements_of(&theirs[c->partner[pair->a]], c->other_data),
                 .b = elements_of(&ours[pair->b], c->original_data),
                 .b_other = elements_of(&theirs[c->partner[pair->b]], c->other_data),
                 .rank = (size_t)pair->rank,
                 .rows = (size_t)pair->rows,
                 .columns = (size_t)pair->columns};
    icma_status status = measure_product(&p, c->deep, out);
    scale_distance(out, c->scales[index], c->deep);
    return status;
}

static icma_status compare_pairs(const comparison *c, icma_fidelity *out, icma_error *error) {
    icma_status worst = ICMA_OK;
#pragma omp parallel for schedule(dynamic) num_threads(icma_threads()) reduction(max : worst) if (c->large)
    for (size_t i = 0; i < c->pairs->count; i++) {
        icma_status status = compare_pair(c, i, out, &out->pairs[i]);
        worst = status > worst ? status : worst;
    }
    if (worst != ICMA_OK)
        return icma_fail(error, worst, NULL, "no memory for a comparison of LoRA pairs");
    return ICMA_OK;
}

static void summarise(icma_fidelity *out) {
    double total = 0.0;
    out->total = (icma_distance){.identical = true};
    for (size_t i = 0; i < out->tensor_count; i++)
        icma_distance_add(&out->total, &out->tensors[i]);
    for (size_t i = 0; i < out->pair_count; i++) {
        double relative = icma_distance_relative(&out->pairs[i]);
        total += relative;
        if (relative > out->dw_error_max) {
            out->dw_error_max = relative;
            out->dw_worst = i;
        }
    }
    out->dw_error_mean = out->pair_count > 0 ? total / (double)out->pair_count : 0.0;
}

static icma_status alloc_results(comparison *c, double **scales, icma_fidelity *out, icma_error *error) {
    size_t tensors = c->original->tensor_count, pairs = c->pairs->count;
    c->partner = icma_alloc_zeroed(tensors, sizeof *c->partner);
    c->strange = icma_alloc_zeroed(tensors, sizeof *c->strange);
    out->tensors = icma_alloc_zeroed(tensors, sizeof *out->tensors);
    out->pairs = icma_alloc_zeroed(pairs, sizeof *out->pairs);
    *scales = icma_alloc_zeroed(pairs, sizeof **scales);
    bool failed = tensors > 0 && (!c->partner || !c->strange || !out->tensors);
    if (failed || (pairs > 0 && (!out->pairs || !*scales)))
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a comparison of %zu tensors", tensors);
    out->tensor_count = tensors;
    out->pair_count = pairs;
    c->scales = *scales;
    return ICMA_OK;
}

icma_status icma_fidelity_compare(const icma_safetensors *original, const uint8_t *original_data,
                                  const icma_safetensors *other, const uint8_t *other_data,
                                  const icma_pairs *pairs, const char *config, size_t config_size, bool deep,
                                  icma_fidelity *out, icma_error *error) {
    *out = (icma_fidelity){0};
    double *scales = NULL;
    comparison c = {.original = original,
                    .other = other,
                    .original_data = original_data,
                    .other_data = other_data,
                    .pairs = pairs,
                    .deep = deep,
                    .large = original->data_size >= LARGE_ADAPTER};
    icma_status status = alloc_results(&c, &scales, out, error);
    if (status == ICMA_OK)
        status = icma_pairs_scales_in(original, original_data, config, config_size, pairs, scales, error);
    if (status == ICMA_OK)
        status = pair_up(&c, error);
    if (status == ICMA_OK) {
        compare_tensors(&c, out);
        status = compare_pairs(&c, out, error);
    }
    if (status == ICMA_OK)
        summarise(out);
    else
        icma_fidelity_free(out);
    icma_free(scales);
    icma_free(c.partner);
    icma_free(c.strange);
    return status;
}

void icma_fidelity_free(icma_fidelity *fidelity) {
    icma_free(fidelity->tensors);
    icma_free(fidelity->pairs);
    *fidelity = (icma_fidelity){0};
}

void icma_fidelity_tensor(const icma_tensor_info *tensor, const uint8_t *original_data, const uint8_t *other_data, icma_distance *out) {
    *out = compare_tensor(tensor, original_data, tensor, other_data);
}

icma_status icma_fidelity_pair(const icma_safetensors *tensors, const icma_pair *pair, const uint8_t *original_data, const uint8_t *other_data,
                               icma_distance *out) {
    const icma_tensor_info *a = &tensors->tensors[pair->a], *b = &tensors->tensors[pair->b];
    *out = (icma_distance){.count = pair->rows * pair->columns, .maximum = NAN};
    if (has_strange(a, original_data) || has_strange(a, other_data) || has_strange(b, original_data) || has_strange(b, other_data)) {
        set_infinite(out);
        return ICMA_OK;
    }
    product p = {.a = elements_of(a, original_data), .a_other = elements_of(a, other_data), .b = elements_of(b, original_data),
                 .b_other = elements_of(b, other_data), .rank = (size_t)pair->rank, .rows = (size_t)pair->rows, .columns = (size_t)pair->columns};
    icma_status status = measure_product(&p, false, out);
    scale_distance(out, 1, false);
    return status;
}
