/* SPDX-License-Identifier: Apache-2.0 */
#include "fidelity.h"
#include "support.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static icma_status compare_with(const support_image *x, const support_image *y, const char *config, bool deep,
                                icma_fidelity *out, icma_error *error) {
    icma_pairs pairs;
    assert_int_equal(icma_pairs_find(&x->tensors, &pairs, error), ICMA_OK);
    icma_status status = icma_fidelity_compare(&x->tensors, x->data, &y->tensors, y->data, &pairs, config,
                                               config ? strlen(config) : 0, deep, out, error);
    icma_pairs_free(&pairs);
    return status;
}

static void compare(const support_image *x, const support_image *y, const char *config, bool deep,
                    icma_fidelity *out) {
    icma_error error = {0};
    if (compare_with(x, y, config, deep, out, &error) != ICMA_OK)
        fail_msg("%s", error.message);
}

static void assert_close(double value, double expected, double tolerance, const char *what) {
    if (!(fabs(value - expected) <= tolerance * fabs(expected)))
        fail_msg("%s: %.17g, not %.17g", what, value, expected);
}

/* --- pairs against the plain sum ----------------------------------------------------------------------- */

typedef struct factors {
    size_t rows, columns, rank;
    float *a, *b;
} factors;

static double element(const factors *f, size_t row, size_t column) {
    double sum = 0.0;
    for (size_t k = 0; k < f->rank; k++)
        sum += (double)f->b[row * f->rank + k] * (double)f->a[k * f->columns + column];
    return sum;
}

static icma_distance naive_distance(const factors *x, const factors *y) {
    icma_distance out = {.count = x->rows * x->columns};
    for (size_t i = 0; i < x->rows; i++)
        for (size_t j = 0; j < x->columns; j++) {
            double p = element(x, i, j), q = element(y, i, j);
            out.energy += p * p;
            out.other += q * q;
            out.dot += p * q;
            out.error += (p - q) * (p - q);
            out.maximum = fmax(out.maximum, fabs(p - q));
        }
    return out;
}

static factors new_factors(size_t rows, size_t columns, size_t rank, uint64_t *state) {
    return (factors){rows, columns, rank, support_normals(state, rank * columns),
                     support_normals(state, rows * rank)};
}

static factors perturb(const factors *x, double size, uint64_t *state) {
    factors y = new_factors(x->rows, x->columns, x->rank, state);
    for (size_t i = 0; i < x->rank * x->columns; i++)
        y.a[i] = (float)((double)x->a[i] + size * (double)y.a[i]);
    for (size_t i = 0; i < x->rows * x->rank; i++)
        y.b[i] = (float)((double)x->b[i] + size * (double)y.b[i]);
    return y;
}

static void free_factors(factors *f) {
    support_free(f->a);
    support_free(f->b);
}

static void build_pair(const factors *f, support_image *out) {
    const support_tensor tensors[] = {{.name = "m.lora_A.weight",
                                       .dtype = ICMA_F32,
                                       .rank = 2,
                                       .shape = {f->rank, f->columns},
                                       .values = f->a},
                                      {.name = "m.lora_B.weight",
                                       .dtype = ICMA_F32,
                                       .rank = 2,
                                       .shape = {f->rows, f->rank},
                                       .values = f->b}};
    support_build_image(tensors, 2, out);
}

static void check_against_naive(const factors *x, const factors *y, double tolerance) {
    support_image left, right;
    icma_fidelity deep, flat;
    build_pair(x, &left);
    build_pair(y, &right);
    compare(&left, &right, NULL, true, &deep);
    compare(&left, &right, NULL, false, &flat);
    icma_distance expected = naive_distance(x, y);
    assert_int_equal(deep.pair_count, 1);
    assert_int_equal(deep.pairs[0].count, expected.count);
    assert_close(deep.pairs[0].energy, expected.energy, 1e-12, "energy");
    assert_close(deep.pairs[0].other, expected.other, 1e-12, "other");
    assert_close(deep.pairs[0].dot, expected.dot, 1e-12, "dot");
    assert_close(deep.pairs[0].error, expected.error, tolerance, "error");
    assert_close(deep.pairs[0].maximum, expected.maximum, tolerance, "maximum");
    assert_close(deep.dw_error_max, sqrt(expected.error / expected.energy), tolerance, "relative");
    assert_true(flat.pairs[0].error == deep.pairs[0].error);
    assert_true(isnan(flat.pairs[0].maximum));
    icma_fidelity_free(&deep);
    icma_fidelity_free(&flat);
    support_free_image(&left);
    support_free_image(&right);
}

static void pairs_agree_with_the_plain_sum(void **state) {
    (void)state;
    static const size_t shapes[][3] = {
        {1, 1, 1},    {1, 300, 1},  {300, 1, 2},  {2, 300, 8},    {7, 9, 4},     {64, 256, 16},
        {65, 257, 1}, {130, 70, 5}, {33, 33, 40}, {300, 520, 16}, {256, 512, 8}, {63, 255, 12},
    };
    uint64_t seed = 1;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        factors x = new_factors(shapes[i][0], shapes[i][1], shapes[i][2], &seed);
        factors near = perturb(&x, 1e-6, &seed), far = perturb(&x, 0.3, &seed);
        check_against_naive(&x, &far, 1e-10);
        check_against_naive(&x, &near, 1e-6); /* the plain sum cancels, ours does not */
        free_factors(&x);
        free_factors(&near);
        free_factors(&far);
    }
}

/* One element of one factor off by its last bit: dW' - dW = d (row of A), known in closed form. */
static void the_smallest_difference_is_exact(void **state) {
    (void)state;
    uint64_t seed = 2;
    factors x = new_factors(200, 300, 8, &seed), y = perturb(&x, 0.0, &seed);
    y.b[5 * 8 + 3] = nextafterf(x.b[5 * 8 + 3], INFINITY);
    double difference = (double)y.b[5 * 8 + 3] - (double)x.b[5 * 8 + 3], row = 0.0;
    for (size_t j = 0; j < 300; j++)
        row += (double)x.a[3 * 300 + j] * (double)x.a[3 * 300 + j];
    support_image left, right;
    icma_fidelity result;
    build_pair(&x, &left);
    build_pair(&y, &right);
    compare(&left, &right, NULL, false, &result);
    assert_close(result.pairs[0].error, difference * difference * row, 1e-12, "error");
    assert_false(result.pairs[0].identical);
    assert_true(result.tensors[0].identical);
    icma_fidelity_free(&result);
    support_free_image(&left);
    support_free_image(&right);
    free_factors(&x);
    free_factors(&y);
}

/* B' = 2 B, A' = A / 2: other factors, the same dW. The Grams cancel here, to no more than 1e-7. */
static void another_gauge_is_no_error(void **state) {
    (void)state;
    uint64_t seed = 3;
    factors x = new_factors(100, 200, 4, &seed), y = perturb(&x, 0.0, &seed);
    for (size_t i = 0; i < 4 * 200; i++)
        y.a[i] *= 0.5f;
    for (size_t i = 0; i < 100 * 4; i++)
        y.b[i] *= 2.0f;
    support_image left, right;
    icma_fidelity result;
    build_pair(&x, &left);
    build_pair(&y, &right);
    compare(&left, &right, NULL, true, &result);
    assert_true(result.dw_error_max < 1e-7);
    assert_true(result.pairs[0].maximum < 1e-13);
    assert_close(icma_distance_relative(&result.tensors[0]), 0.5, 1e-12, "relative error of A");
    icma_fidelity_free(&result);
    support_free_image(&left);
    support_free_image(&right);
    free_factors(&x);
    free_factors(&y);
}

/* Large numbers of one factor that meet zeros of the other are in no product, but in all Gram matrices: they
 * must not hide what is wrong with the rest. Here dW' is 0, so its error is 1, in the pair alone and in the
 * whole. */
static void numbers_that_meet_nothing_hide_nothing(void **state) {
    (void)state;
    for (int exponent = 0; exponent <= 40; exponent += 10) {
        uint64_t seed = 5;
        factors x = new_factors(60, 50, 4, &seed), y = perturb(&x, 0.0, &seed);
        memset(y.a, 0, 4 * 50 * sizeof *y.a);
        memset(y.b, 0, 60 * 4 * sizeof *y.b);
        y.a[2 * 50 + 7] = ldexpf(1.25f, exponent); /* row 2 of A' meets column 2 of B', which is 0 */
        y.b[31 * 4 + 1] = ldexpf(1.75f, exponent);
        support_image left, right;
        icma_fidelity result;
        icma_distance alone;
        icma_pairs pairs;
        icma_error error = {0};
        build_pair(&x, &left);
        build_pair(&y, &right);
        compare(&left, &right, NULL, false, &result);
        assert_close(result.dw_error_max, 1.0, 1e-6, "error of dW");
        assert_int_equal(icma_pairs_find(&left.tensors, &pairs, &error), ICMA_OK);
        assert_int_equal(icma_fidelity_pair(&left.tensors, &pairs.list[0], left.data, right.data, &alone),
                         ICMA_OK);
        assert_close(icma_distance_relative(&alone), 1.0, 1e-6, "error of dW alone");
        /* And the other way round: an original whose dW is far smaller than its factors. */
        icma_fidelity_free(&result);
        y.a[1 * 50 + 3] = 1.5f;
        y.b[8 * 4 + 2] = 0.5f; /* 1.5 * 1.75 * 2^e and 1.25 * 0.5 * 2^e at two places */
        support_free_image(&right);
        build_pair(&y, &right);
        compare(&right, &left, NULL, false, &result);
        assert_close(result.pairs[0].energy / ldexp(1, 2 * exponent), 2.625 * 2.625 + 0.625 * 0.625, 1e-6,
                     "energy");
        icma_fidelity_free(&result);
        icma_pairs_free(&pairs);
        support_free_image(&left);
        support_free_image(&right);
        free_factors(&x);
        free_factors(&y);
    }
}

/* dW' = 0 by a B' of zeros under an A' that is far larger than A: B' - B and A' - A, which double rounds,
 * cancel to 0. By either way of measuring: rank 4 has Gram matrices, rank 40 the product itself. */
static void small_originals_are_not_lost_in_large_ones(void **state) {
    (void)state;
    for (size_t rank = 4; rank <= 40; rank += 36) {
        uint64_t seed = 6;
        factors x = new_factors(60, 50, rank, &seed), y = perturb(&x, 0.0, &seed);
        for (size_t i = 0; i < rank * 50; i++)
            x.a[i] = ldexpf(x.a[i], -110);
        memset(y.b, 0, 60 * rank * sizeof *y.b);
        support_image left, right;
        icma_fidelity result;
        build_pair(&x, &left);
        build_pair(&y, &right);
        compare(&left, &right, NULL, true, &result);
        assert_close(result.dw_error_max, 1.0, 1e-6, "error of dW");
        assert_true(result.pairs[0].energy > 0.0 && result.pairs[0].maximum > 0.0);
        icma_fidelity_free(&result);
        support_free_image(&left);
        support_free_image(&right);
        free_factors(&x);
        free_factors(&y);
    }
}

static void equal_adapters_have_no_error_at_all(void **state) {
    (void)state;
    uint64_t seed = 4;
    factors x = new_factors(70, 300, 4, &seed);
    support_image image;
    icma_fidelity result;
    build_pair(&x, &image);
    compare(&image, &image, NULL, true, &result);
    assert_true(result.dw_error_max == 0.0 && result.dw_error_mean == 0.0);
    assert_true(result.pairs[0].identical && result.total.identical);
    assert_true(result.pairs[0].maximum == 0.0);
    assert_true(result.pairs[0].energy > 0.0);
    assert_true(isinf(icma_distance_snr(&result.total)) && icma_distance_snr(&result.total) > 0);
    assert_close(icma_distance_cosine(&result.pairs[0]), 1.0, 1e-12, "cosine");
    icma_fidelity_free(&result);
    support_free_image(&image);
    free_factors(&x);
}

static double error_between(const factors *x, const factors *y) {
    support_image left, right;
    icma_fidelity result;
    build_pair(x, &left);
    build_pair(y, &right);
    compare(&left, &right, NULL, false, &result);
    double relative = result.dw_error_max;
    icma_fidelity_free(&result);
    support_free_image(&left);
    support_free_image(&right);
    return relative;
}

/* An untrained B is zero. */
static void a_zero_product_is_kept_or_infinitely_wrong(void **state) {
    (void)state;
    uint64_t seed = 5;
    factors x = new_factors(40, 60, 4, &seed), zero = perturb(&x, 0.0, &seed),
            other = perturb(&x, 0.1, &seed);
    for (size_t i = 0; i < 40 * 4; i++)
        zero.b[i] = 0.0f;
    for (size_t i = 0; i < 40 * 4; i++)
        other.b[i] = -0.0f;
    assert_true(error_between(&zero, &zero) == 0.0);
    assert_true(error_between(&zero, &other) == 0.0); /* A differs, dW does not */
    assert_true(isinf(error_between(&zero, &x)));
    assert_close(error_between(&x, &zero), 1.0, 1e-12, "all lost");
    free_factors(&x);
    free_factors(&zero);
    free_factors(&other);
}

static void scale_counts_for_absolute_errors_only(void **state) {
    (void)state;
    uint64_t seed = 6;
    factors x = new_factors(40, 60, 4, &seed), y = perturb(&x, 0.1, &seed);
    support_image left, right;
    icma_fidelity plain, scaled;
    build_pair(&x, &left);
    build_pair(&y, &right);
    compare(&left, &right, NULL, true, &plain);
    compare(&left, &right, "{\"r\":4,\"lora_alpha\":-8}", true, &scaled);
    assert_true(scaled.dw_error_max == plain.dw_error_max);
    assert_true(scaled.pairs[0].energy == 4.0 * plain.pairs[0].energy);
    assert_true(scaled.pairs[0].error == 4.0 * plain.pairs[0].error);
    assert_true(scaled.pairs[0].maximum == 2.0 * plain.pairs[0].maximum);
    icma_fidelity_free(&plain);
    icma_fidelity_free(&scaled);
    support_free_image(&left);
    support_free_image(&right);
    free_factors(&x);
    free_factors(&y);
}

/* --- tensors ------------------------------------------------------------------------------------------- */

static void tensors_agree_with_the_plain_sum(void **state) {
    (void)state;
    static const size_t counts[] = {0, 1, 7, 8, 9, 1023, 1024, 1025, 5000};
    uint64_t seed = 7;
    for (size_t c = 0; c < COUNT(counts); c++) {
        size_t count = counts[c];
        float *x = support_normals(&seed, count), *y = support_normals(&seed, count);
        icma_distance expected = {.count = count};
        for (size_t i = 0; i < count; i++) {
            y[i] = x[i] + 1e-4f * y[i];
            double p = (double)x[i], q = (double)y[i];
            expected.energy += p * p;
            expected.error += (p - q) * (p - q);
            expected.dot += p * q;
            expected.maximum = fmax(expected.maximum, fabs(p - q));
        }
        const support_tensor left = {
            .name = "t", .dtype = ICMA_F32, .rank = 1, .shape = {count}, .values = x};
        const support_tensor right = {
            .name = "t", .dtype = ICMA_F32, .rank = 1, .shape = {count}, .values = y};
        support_image a, b;
        icma_fidelity result;
        support_build_image(&left, 1, &a);
        support_build_image(&right, 1, &b);
        compare(&a, &b, NULL, false, &result);
        assert_close(result.tensors[0].energy, expected.energy, 1e-13, "energy");
        assert_close(result.tensors[0].error, expected.error, 1e-13, "error");
        assert_close(result.total.dot, expected.dot, 1e-13, "dot");
        assert_true(result.tensors[0].maximum == expected.maximum);
        assert_int_equal(result.total.count, count);
        assert_int_equal(result.pair_count, 0);
        icma_fidelity_free(&result);
        support_free_image(&a);
        support_free_image(&b);
        support_free(x);
        support_free(y);
    }
}

/* A file in F16 with its tensors in another order, against F32. */
static void order_and_dtype_may_differ(void **state) {
    (void)state;
    uint64_t seed = 8;
    factors x = new_factors(20, 30, 2, &seed), rounded = perturb(&x, 0.0, &seed);
    for (size_t i = 0; i < 2 * 30; i++)
        rounded.a[i] = icma_f16_to_f32(icma_f32_to_f16(x.a[i]));
    for (size_t i = 0; i < 20 * 2; i++)
        rounded.b[i] = icma_bf16_to_f32(icma_f32_to_bf16(x.b[i]));
    const float alpha = 8.0f;
    const support_tensor left[] = {
        {.name = "m.lora_A.weight", .dtype = ICMA_F32, .rank = 2, .shape = {2, 30}, .values = x.a},
        {.name = "m.lora_B.weight", .dtype = ICMA_F32, .rank = 2, .shape = {20, 2}, .values = x.b},
        {.name = "m.alpha", .dtype = ICMA_F32, .rank = 0, .values = &alpha}};
    const support_tensor right[] = {
        {.name = "m.alpha", .dtype = ICMA_F16, .rank = 0, .values = &alpha},
        {.name = "m.lora_B.weight", .dtype = ICMA_BF16, .rank = 2, .shape = {20, 2}, .values = x.b},
        {.name = "m.lora_A.weight", .dtype = ICMA_F16, .rank = 2, .shape = {2, 30}, .values = x.a}};
    support_image a, b;
    icma_fidelity result;
    support_build_image(left, 3, &a);
    support_build_image(right, 3, &b);
    compare(&a, &b, NULL, true, &result);
    icma_distance expected = naive_distance(&x, &rounded);
    const double scale = alpha / 2; /* by the rank; errors are squares */
    assert_close(result.pairs[0].error, scale * scale * expected.error, 1e-9, "error");
    assert_close(result.pairs[0].maximum, scale * expected.maximum, 1e-9, "maximum");
    assert_int_equal(result.tensor_count, 3);
    assert_true(result.tensors[2].error == 0.0 && !result.tensors[2].identical);
    icma_fidelity_free(&result);
    support_free_image(&a);
    support_free_image(&b);
    free_factors(&x);
    free_factors(&rounded);
}

/* Compares two one-tensor files of raw bytes. */
static icma_distance distance_of_bytes(icma_dtype dtype, uint64_t count, const void *x, const void *y) {
    const support_tensor left = {.name = "t", .dtype = dtype, .rank = 1, .shape = {count}, .bytes = x};
    const support_tensor right = {.name = "t", .dtype = dtype, .rank = 1, .shape = {count}, .bytes = y};
    support_image a, b;
    icma_fidelity result;
    support_build_image(&left, 1, &a);
    support_build_image(&right, 1, &b);
    compare(&a, &b, NULL, false, &result);
    icma_distance distance = result.tensors[0];
    icma_fidelity_free(&result);
    support_free_image(&a);
    support_free_image(&b);
    return distance;
}

static void strange_values_equal_only_themselves(void **state) {
    (void)state;
    const uint32_t x[] = {0x3f800000, 0x7fc00000, 0x7f800000, 0xff800000, 0x80000000, 0x7f800001};
    uint32_t y[COUNT(x)];
    icma_distance same = distance_of_bytes(ICMA_F32, COUNT(x), x, x);
    assert_true(same.identical && same.error == 0.0 && same.maximum == 0.0 && same.energy == 1.0);
    static const struct {
        size_t at;
        uint32_t bits;
    } changes[] = {{0, 0x7fc00000}, {1, 0x7fc00001}, {1, 0xffc00000}, {1, 0x3f800000},
                   {2, 0xff800000}, {2, 0x7f7fffff}, {2, 0x7fc00000}, {5, 0x7fc00001}};
    for (size_t i = 0; i < COUNT(changes); i++) {
        memcpy(y, x, sizeof x);
        y[changes[i].at] = changes[i].bits;
        icma_distance other = distance_of_bytes(ICMA_F32, COUNT(x), x, y);
        assert_false(other.identical);
        assert_true(isinf(icma_distance_relative(&other)) && isinf(other.maximum));
        assert_true(icma_distance_cosine(&other) == 0.0);
        assert_true(icma_distance_snr(&other) == -INFINITY);
    }
    memcpy(y, x, sizeof x);
    y[4] = 0; /* -0 is 0, but not the same bits */
    icma_distance zero = distance_of_bytes(ICMA_F32, COUNT(x), x, y);
    assert_true(!zero.identical && zero.error == 0.0);
}

static void other_dtypes_are_numbers_or_bytes(void **state) {
    (void)state;
    const int64_t big[] = {1, -3}, bigger[] = {1, 1};
    icma_distance whole = distance_of_bytes(ICMA_I64, 2, big, bigger);
    assert_true(whole.energy == 10.0 && whole.error == 16.0 && whole.maximum == 4.0);
    const double wide[] = {1.0}, close[] = {1.0 + DBL_EPSILON};
    icma_distance fine = distance_of_bytes(ICMA_F64, 1, wide, close);
    assert_true(fine.maximum == DBL_EPSILON);
    const uint8_t bytes[] = {1, 2, 3, 4, 5, 6, 7, 8}, changed[] = {1, 2, 3, 4, 5, 6, 7, 9};
    static const struct {
        icma_dtype dtype;
        uint64_t count;
    } opaque[] = {{ICMA_C64, 1}, {ICMA_F4, 16}};
    for (size_t i = 0; i < COUNT(opaque); i++) {
        icma_distance same = distance_of_bytes(opaque[i].dtype, opaque[i].count, bytes, bytes);
        icma_distance other = distance_of_bytes(opaque[i].dtype, opaque[i].count, bytes, changed);
        assert_true(same.identical && same.error == 0.0 && icma_distance_relative(&same) == 0.0);
        assert_true(!other.identical && isinf(icma_distance_relative(&other)));
    }
}

static void strange_factors_are_identical_or_infinitely_wrong(void **state) {
    (void)state;
    uint64_t seed = 9;
    factors x = new_factors(10, 20, 2, &seed), y = perturb(&x, 0.0, &seed);
    x.a[3] = y.a[3] = NAN;
    x.b[3] = y.b[3] = INFINITY;
    assert_true(error_between(&x, &y) == 0.0);
    y.b[0] = nextafterf(y.b[0], 1.0f);
    assert_true(isinf(error_between(&x, &y)));
    free_factors(&x);
    free_factors(&y);
}

static void assert_unlike(const support_tensor *x, size_t x_count, const support_tensor *y, size_t y_count,
                          const char *named) {
    support_image a, b;
    icma_fidelity result;
    icma_error error = {0};
    support_build_image(x, x_count, &a);
    support_build_image(y, y_count, &b);
    assert_int_equal(compare_with(&a, &b, NULL, false, &result, &error), ICMA_E_UNSUPPORTED);
    assert_non_null(strstr(error.message, named));
    assert_null(result.tensors);
    support_free_image(&a);
    support_free_image(&b);
}

static void other_names_and_shapes_are_refused(void **state) {
    (void)state;
    const support_tensor x[] = {{.name = "p", .dtype = ICMA_F32, .rank = 1, .shape = {4}},
                                {.name = "q", .dtype = ICMA_F32, .rank = 2, .shape = {2, 3}}};
    const support_tensor turned[] = {x[0], {.name = "q", .dtype = ICMA_F32, .rank = 2, .shape = {3, 2}}};
    const support_tensor flat[] = {x[0], {.name = "q", .dtype = ICMA_F32, .rank = 1, .shape = {6}}};
    const support_tensor renamed[] = {x[0], {.name = "o", .dtype = ICMA_F32, .rank = 2, .shape = {2, 3}}};
    assert_unlike(x, 2, turned, 2, "'q'");
    assert_unlike(x, 2, flat, 2, "'q'");
    assert_unlike(x, 2, renamed, 2, "'o' is only in the second");
    assert_unlike(x, 2, x, 1, "'q' is only in the first");
    assert_unlike(x, 1, x, 2, "'q' is only in the second");
    assert_unlike(x, 1, x, 0, "'p'");
}

/* Several pairs: mean, maximum and which one. */
static void the_worst_pair_is_named(void **state) {
    (void)state;
    uint64_t seed = 10;
    float *x = support_normals(&seed, 3 * 64), *y = support_normals(&seed, 3 * 64);
    memcpy(y, x, 3 * 64 * sizeof *x);
    for (size_t i = 0; i < 16; i++) {
        y[64 + i] *= 1.5f;   /* B of pair 1: error 0.5 */
        y[128 + i] *= 1.25f; /* B of pair 2: error 0.25 */
    }
    support_tensor left[6], right[6];
    static const char *const names[] = {"a.lora_A.weight", "a.lora_B.weight", "b.lora_A.weight",
                                        "b.lora_B.weight", "c.lora_A.weight", "c.lora_B.weight"};
    for (size_t i = 0; i < 6; i++) {
        bool down = i % 2 == 0;
        left[i] = (support_tensor){.name = names[i], .dtype = ICMA_F32, .rank = 2};
        left[i].shape[0] = down ? 2 : 8;
        left[i].shape[1] = down ? 24 : 2;
        left[i].values = x + i / 2 * 64 + (down ? 16 : 0);
        right[i] = left[i];
        right[i].values = y + i / 2 * 64 + (down ? 16 : 0);
    }
    support_image a, b;
    icma_fidelity result;
    support_build_image(left, 6, &a);
    support_build_image(right, 6, &b);
    compare(&a, &b, NULL, false, &result);
    assert_int_equal(result.pair_count, 3);
    assert_int_equal(result.dw_worst, 1);
    assert_close(result.dw_error_max, 0.5, 1e-6, "worst");
    assert_close(result.dw_error_mean, 0.25, 1e-6, "mean");
    icma_fidelity_free(&result);
    support_free_image(&a);
    support_free_image(&b);
    support_free(x);
    support_free(y);
}

static void distances_add_up(void **state) {
    (void)state;
    icma_distance total = {0};
    const icma_distance one = {
        .count = 2, .energy = 3, .other = 4, .error = 5, .dot = 6, .maximum = 7, .identical = true};
    const icma_distance two = {.count = 1, .energy = 1, .other = 1, .error = 1, .dot = 1, .maximum = 1};
    const icma_distance unknown = {.count = 1, .maximum = NAN};
    icma_distance_add(&total, &one);
    assert_true(total.identical && total.maximum == 7.0);
    icma_distance_add(&total, &two);
    assert_true(!total.identical && total.count == 3 && total.energy == 4.0 && total.other == 5.0);
    assert_true(total.error == 6.0 && total.dot == 7.0 && total.maximum == 7.0);
    icma_distance_add(&total, &unknown);
    icma_distance_add(&total, &one);
    assert_true(isnan(total.maximum));
}

/* --- the k-th allocation fails ------------------------------------------------------------------------- */

/* One pair, so that one thread allocates. */
static void running_out_of_memory_leaves_nothing(void **state) {
    (void)state;
    uint64_t seed = 11;
    factors x = new_factors(40, 60, 4, &seed);
    support_image image;
    build_pair(&x, &image);
    icma_pairs pairs;
    icma_error error = {0};
    assert_int_equal(icma_pairs_find(&image.tensors, &pairs, &error), ICMA_OK);
    icma_status status = ICMA_E_MEMORY;
    for (size_t k = 0; status != ICMA_OK; k++) {
        support_budget budget = {.left = k};
        icma_fidelity result;
        error = (icma_error){0};
        support_limit_memory(&budget);
        status = icma_fidelity_compare(&image.tensors, image.data, &image.tensors, image.data, &pairs, NULL,
                                       0, true, &result, &error);
        icma_fidelity_free(&result);
        support_limit_memory(NULL);
        assert_int_equal(budget.live, 0);
        assert_true(status == ICMA_OK || status == ICMA_E_MEMORY);
        assert_int_equal(status, error.status);
    }
    icma_pairs_free(&pairs);
    support_free_image(&image);
    free_factors(&x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pairs_agree_with_the_plain_sum),
        cmocka_unit_test(the_smallest_difference_is_exact),
        cmocka_unit_test(another_gauge_is_no_error),
        cmocka_unit_test(numbers_that_meet_nothing_hide_nothing),
        cmocka_unit_test(small_originals_are_not_lost_in_large_ones),
        cmocka_unit_test(equal_adapters_have_no_error_at_all),
        cmocka_unit_test(a_zero_product_is_kept_or_infinitely_wrong),
        cmocka_unit_test(scale_counts_for_absolute_errors_only),
        cmocka_unit_test(tensors_agree_with_the_plain_sum),
        cmocka_unit_test(order_and_dtype_may_differ),
        cmocka_unit_test(strange_values_equal_only_themselves),
        cmocka_unit_test(other_dtypes_are_numbers_or_bytes),
        cmocka_unit_test(strange_factors_are_identical_or_infinitely_wrong),
        cmocka_unit_test(other_names_and_shapes_are_refused),
        cmocka_unit_test(the_worst_pair_is_named),
        cmocka_unit_test(distances_add_up),
        cmocka_unit_test(running_out_of_memory_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
