/* SPDX-License-Identifier: Apache-2.0 */
/* Lossless links: any bits come back, at any thread count, with any predictions; sizes against what is ideal;
 * damage. */
#include "lossless_host.h"
#include "ops.h"
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
enum { MOST_TENSORS = 24 };
static const icma_dtype float_dtypes[] = {ICMA_F32, ICMA_F16, ICMA_BF16};

/* --- what the tests share ------------------------------------------------------------------------------ */

/* A signature, data of it, and taps. */
typedef struct fixture {
    support_image image;
    bool coded[MOST_TENSORS];
    uint8_t *data; /* owned, as all taps */
    uint8_t *taps[ICMA_LOSSLESS_TAPS];
    size_t size;
    icma_lossless_link link;
} fixture;

static fixture make_fixture(const support_tensor *tensors, size_t count, size_t taps) {
    fixture f = {.coded = {false}};
    assert_true(count <= MOST_TENSORS);
    support_build_image(tensors, count, &f.image);
    f.size = (size_t)f.image.tensors.data_size;
    f.data = malloc(f.size + 1);
    assert_non_null(f.data);
    memcpy(f.data, f.image.data, f.size);
    for (size_t k = 0; k < taps; k++) {
        f.taps[k] = malloc(f.size + 1);
        assert_non_null(f.taps[k]);
        memcpy(f.taps[k], f.data, f.size);
    }
    for (size_t t = 0; t < count; t++)
        f.coded[t] = icma_dtype_is_modelled(f.image.tensors.tensors[t].dtype);
    return f;
}

static icma_lossless_link link_of(fixture *f, size_t taps) {
    return (icma_lossless_link){&f->image.tensors, f->coded, (const uint8_t *const *)f->taps, taps};
}

static void free_fixture(fixture *f) {
    support_free_image(&f->image);
    free(f->data);
    for (size_t k = 0; k < ICMA_LOSSLESS_TAPS; k++)
        free(f->taps[k]);
}

static icma_buffer encoded(fixture *f, size_t taps, int threads) {
    icma_lossless_link link = link_of(f, taps);
    icma_buffer out = {0};
    icma_error error = {0};
    icma_set_threads(threads);
    if (icma_lossless_encode(&link, f->data, &out, &error))
        fail_msg("%s", error.message);
    return out;
}

/* Decodes from a block of exactly `size` bytes into a poisoned one; *out, if it went well, is owned by the
 * caller. */
static icma_status decode(fixture *f, size_t taps, const uint8_t *payload, size_t size, int threads,
                          uint8_t **out) {
    icma_lossless_link link = link_of(f, taps);
    icma_error error = {0};
    uint8_t *exact = malloc(size ? size : 1), *data = malloc(f->size + 1);
    assert_true(exact && data);
    if (size)
        memcpy(exact, payload, size);
    memset(data, 0xa5, f->size + 1);
    icma_set_threads(threads);
    icma_status status = icma_lossless_decode(&link, exact, size, data, &error);
    assert_int_equal(status, error.status);
    free(exact);
    if (status == ICMA_OK && out)
        *out = data;
    else
        free(data);
    return status;
}

static void check_data(const fixture *f, const uint8_t *data) {
    for (size_t t = 0; t < f->image.tensors.tensor_count; t++) {
        const icma_tensor_info *info = &f->image.tensors.tensors[t];
        for (uint64_t i = info->begin; i < info->begin + info->size; i++)
            if (data[i] != (f->coded[t] ? f->data[i] : 0xa5))
                fail_msg("tensor %zu differs at byte %zu", t, (size_t)(i - info->begin));
    }
}

/* Returns the payload's size. */
static size_t round_trip(fixture *f, size_t taps) {
    icma_buffer one = encoded(f, taps, 1), three = encoded(f, taps, 3);
    assert_int_equal(one.size, three.size);
    assert_memory_equal(one.data, three.data, one.size);
    for (int threads = 1; threads <= 3; threads += 2) {
        uint8_t *data = NULL;
        assert_int_equal(decode(f, taps, one.data, one.size, threads, &data), ICMA_OK);
        check_data(f, data);
        free(data);
    }
    size_t size = one.size;
    icma_buffer_free(&one);
    icma_buffer_free(&three);
    return size;
}

static void random_bytes(uint64_t *random, uint8_t *out, size_t size) {
    for (size_t i = 0; i < size; i++)
        out[i] = (uint8_t)(256 * support_uniform(random));
}

/* A single tensor of `count` elements. */
static fixture make_vector(icma_dtype dtype, size_t count, size_t taps) {
    const support_tensor tensor = {.name = "w", .dtype = dtype, .rank = 1, .shape = {count}};
    return make_fixture(&tensor, 1, taps);
}

/* Files of a walk with momentum: taps are before the data, the nearest first. Steps have the given spread. */
static void walk(fixture *f, icma_dtype dtype, size_t taps, double spread, uint64_t *random) {
    size_t count = f->size / (icma_dtype_bits(dtype) / 8);
    float *x = support_normals(random, count), *v = support_normals(random, count);
    for (size_t i = 0; i < count; i++) {
        x[i] *= 0.05f;
        v[i] *= (float)spread;
    }
    for (size_t k = taps + 1; k-- > 0;) {
        for (size_t i = 0; i < count; i++)
            x[i] += v[i] = 0.8f * v[i] + (float)(spread * support_normal(random));
        icma_store_floats(dtype, x, count, k ? f->taps[k - 1] : f->data);
    }
    support_free(x);
    support_free(v);
}

/* --- steps --------------------------------------------------------------------------------------------- */

static void check_magnitude(const icma_lossless_step *step, uint32_t magnitude, uint32_t *before) {
    uint32_t high = icma_lossless_high(step, magnitude);
    assert_true(high >= *before);
    *before = high;
    if (icma_lossless_is_deep(step, high)) {
        assert_in_range(magnitude >> step->mantissa, 0, step->zero_binades - 1);
        return;
    }
    unsigned bits = icma_lossless_low_bits(step, high);
    uint32_t low = icma_lossless_low(step, magnitude, bits);
    if (low >> bits || icma_lossless_join(step, high, bits, low) != magnitude)
        fail_msg("magnitude %x at lift %u", magnitude, step->lift);
}

static void every_magnitude_is_split_and_joined(void **state) {
    (void)state;
    uint64_t random = 1;
    const icma_lossless_profile plain = {.corrections = 0};
    for (size_t d = 0; d < COUNT(float_dtypes); d++)
        for (unsigned level = 0; level < icma_lossless_levels(float_dtypes[d]); level += 8) {
            icma_lossless_step step;
            uint32_t before = 0, last = UINT32_MAX >> (33 - icma_dtype_bits(float_dtypes[d]));
            icma_lossless_step_fill(&step, float_dtypes[d], level, &plain);
            for (uint32_t m = 0; m < last;
                 m += float_dtypes[d] == ICMA_F32 ? 1 + (uint32_t)(support_uniform(&random) * 2e6) : 1)
                check_magnitude(&step, m, &before);
            check_magnitude(&step, last, &before);
        }
}

static void folded_elements_ascend(void **state) {
    (void)state;
    icma_lossless_step step;
    for (unsigned level = 0; level < icma_lossless_levels(ICMA_F16); level += 8) {
        icma_lossless_step_fill(&step, ICMA_F16, level, &(icma_lossless_profile){.corrections = 0});
        int32_t before = INT32_MIN;
        for (int32_t i = -0x8000; i < 0x8000; i++) {
            uint32_t folded = icma_lossless_fold(&step, (uint32_t)(i < 0 ? ~i | 0x8000 : i));
            int32_t value;
            memcpy(&value, &folded, sizeof value);
            assert_true(value >= before);
            before = value;
        }
    }
}

/* --- any bits ------------------------------------------------------------------------------------------ */

static void noise_comes_back(void **state) {
    (void)state;
    uint64_t random = 2;
    const size_t counts[] = {1, 2, 7, 512, 5000};
    for (size_t d = 0; d < COUNT(float_dtypes); d++)
        for (size_t c = 0; c < COUNT(counts); c++)
            for (size_t taps = 0; taps <= ICMA_LOSSLESS_TAPS; taps += 1 + taps / 3) {
                fixture f = make_vector(float_dtypes[d], counts[c], taps);
                random_bytes(&random, f.data, f.size);
                for (size_t k = 0; k < taps; k++)
                    random_bytes(&random, f.taps[k], f.size);
                assert_in_range(round_trip(&f, taps), 1, f.size + 16 + 4 * taps);
                free_fixture(&f);
            }
}

/* Elements near their predictions, spoilt here and there. */
static void spoilt_walks_come_back(void **state) {
    (void)state;
    uint64_t random = 3;
    for (size_t d = 0; d < COUNT(float_dtypes); d++)
        for (int i = 0; i < 12; i++) {
            size_t taps = (size_t)(support_uniform(&random) * 5),
                   count = 1 + (size_t)(support_uniform(&random) * 3000);
            fixture f = make_vector(float_dtypes[d], count, taps);
            walk(&f, float_dtypes[d], taps, exp(-25 * support_uniform(&random)), &random);
            for (size_t k = 0; k <= taps; k++)
                for (size_t b = 0; b < f.size; b++)
                    if (support_uniform(&random) < 0.02)
                        (k ? f.taps[k - 1] : f.data)[b] =
                            support_uniform(&random) < 0.5 ? 0xff : (uint8_t)(256 * support_uniform(&random));
            round_trip(&f, taps);
            free_fixture(&f);
        }
}

static uint32_t special_bits(icma_dtype dtype, size_t which) {
    static const uint32_t f32[] = {0,          0x80000000, 1,          0x80000001, 0x007fffff,
                                   0x00800000, 0x7f7fffff, 0x7f800000, 0xff800000, 0x7fc00000,
                                   0xffc00001, 0x7fffffff, 0x3f800000};
    static const uint32_t f16[] = {0,      0x8000, 1,      0x8001, 0x03ff, 0x0400, 0x7bff,
                                   0x7c00, 0xfc00, 0x7e00, 0xfe01, 0x7fff, 0x3c00};
    static const uint32_t bf16[] = {0,      0x8000, 1,      0x8001, 0x007f, 0x0080, 0x7f7f,
                                    0x7f80, 0xff80, 0x7fc0, 0xffc1, 0x7fff, 0x3f80};
    return (dtype == ICMA_F32 ? f32 : dtype == ICMA_F16 ? f16 : bf16)[which];
}
enum { SPECIALS = 13 };

static void fill(icma_dtype dtype, uint8_t *out, size_t size, uint32_t bits) {
    size_t width = icma_dtype_bits(dtype) / 8;
    for (size_t i = 0; i < size; i += width)
        icma_lossless_store(icma_dtype_bits(dtype), bits, out + i);
}

static void constants_are_nearly_free(void **state) {
    (void)state;
    for (size_t d = 0; d < COUNT(float_dtypes); d++)
        for (size_t value = 0; value < SPECIALS; value++)
            for (size_t taps = 0; taps < 3; taps++) {
                fixture f = make_vector(float_dtypes[d], 3000, taps);
                fill(float_dtypes[d], f.data, f.size, special_bits(float_dtypes[d], value));
                for (size_t k = 0; k < taps; k++)
                    fill(float_dtypes[d], f.taps[k], f.size,
                         special_bits(float_dtypes[d], (value + 5 * k) % SPECIALS));
                assert_in_range(round_trip(&f, taps), 1, 100);
                free_fixture(&f);
            }
}

static void every_special_comes_back_from_every_special(void **state) {
    (void)state;
    for (size_t d = 0; d < COUNT(float_dtypes); d++) {
        uint64_t random = 4;
        fixture f = make_vector(float_dtypes[d], SPECIALS * SPECIALS + 2000, 2);
        walk(&f, float_dtypes[d], 2, 1e-3, &random); /* so that it is worth modelling */
        size_t width = icma_dtype_bits(float_dtypes[d]) / 8;
        for (size_t i = 0; i < SPECIALS * SPECIALS; i++) {
            icma_lossless_store(8 * (unsigned)width, special_bits(float_dtypes[d], i % SPECIALS),
                                f.data + i * width);
            icma_lossless_store(8 * (unsigned)width, special_bits(float_dtypes[d], i / SPECIALS),
                                f.taps[0] + i * width);
            icma_lossless_store(8 * (unsigned)width, special_bits(float_dtypes[d], i * i % SPECIALS),
                                f.taps[1] + i * width);
        }
        for (size_t taps = 0; taps <= 2; taps++)
            assert_true(round_trip(&f, taps) < f.size);
        free_fixture(&f);
    }
}

static void what_did_not_change_is_nearly_free(void **state) {
    (void)state;
    for (size_t d = 0; d < COUNT(float_dtypes); d++)
        for (size_t same = 0; same < 3; same++) {
            uint64_t random = 5;
            fixture f = make_vector(float_dtypes[d], 20000, 3);
            for (size_t k = 0; k < 3; k++)
                random_bytes(&random, f.taps[k], f.size);
            memcpy(f.data, f.taps[same], f.size);
            assert_in_range(round_trip(&f, 3), 1, 200);
            free_fixture(&f);
        }
}

/* --- shapes and dtypes --------------------------------------------------------------------------------- */

static fixture make_mixed(size_t taps, uint64_t *random) {
    static const uint8_t bytes[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    float *values = support_normals(random, 200000);
    const support_tensor tensors[] = {
        {.name = "a", .dtype = ICMA_F32, .rank = 2, .shape = {4, 128}, .values = values},
        {.name = "b",
         .dtype = ICMA_U8,
         .rank = 1,
         .shape = {3},
         .bytes = bytes}, /* the rest is not aligned */
        {.name = "c", .dtype = ICMA_F16, .rank = 1, .shape = {70000}, .values = values},
        {.name = "d", .dtype = ICMA_F32, .rank = 2, .shape = {0, 4}},
        {.name = "e", .dtype = ICMA_F32, .rank = 0, .values = values},
        {.name = "f", .dtype = ICMA_BF16, .rank = 2, .shape = {100, 1500}, .values = values},
        {.name = "g", .dtype = ICMA_BF16, .rank = 0, .values = values},
        {.name = "h", .dtype = ICMA_F32, .rank = 1, .shape = {300000}}, /* zeros, in two frames */
        {.name = "i", .dtype = ICMA_F64, .rank = 1, .shape = {1}, .bytes = bytes},
        {.name = "j", .dtype = ICMA_F32, .rank = 2, .shape = {512, 128}, .values = values},
        {.name = "k", .dtype = ICMA_F16, .rank = 1, .shape = {0}},
    };
    fixture f = make_fixture(tensors, COUNT(tensors), taps);
    support_free(values);
    for (size_t t = 0; t < COUNT(tensors); t++) {
        const icma_tensor_info *info = &f.image.tensors.tensors[t];
        for (size_t k = 0; f.coded[t] && k < taps; k++)
            for (uint64_t i = 0; i < info->size; i += icma_dtype_bits(info->dtype) / 8)
                f.taps[k][info->begin + i] = (uint8_t)(256 * support_uniform(random));
    }
    return f;
}

static void mixed_files_come_back(void **state) {
    (void)state;
    for (size_t taps = 0; taps <= 4; taps += 2) {
        uint64_t random = 6;
        fixture f = make_mixed(taps, &random);
        size_t all = round_trip(&f, taps);
        f.coded[5] = f.coded[9] = false;
        assert_true(round_trip(&f, taps) < all);
        memset(f.coded, 0, sizeof f.coded);
        assert_in_range(round_trip(&f, taps), 1, 8);
        free_fixture(&f);
    }
}

static void files_without_tensors_come_back(void **state) {
    (void)state;
    fixture f = make_fixture(NULL, 0, 2);
    assert_in_range(round_trip(&f, 0), 1, 8);
    assert_in_range(round_trip(&f, 2), 1, 8);
    free_fixture(&f);
}

static void payloads_are_appended(void **state) {
    (void)state;
    uint64_t random = 7;
    fixture f = make_vector(ICMA_F32, 600, 1);
    walk(&f, ICMA_F32, 1, 1e-3, &random);
    icma_lossless_link link = link_of(&f, 1);
    icma_buffer alone = encoded(&f, 1, 1), out = {0};
    icma_write_bytes(&out, "before", 6);
    assert_int_equal(icma_lossless_encode(&link, f.data, &out, NULL), ICMA_OK);
    assert_int_equal(out.size, alone.size + 6);
    assert_memory_equal(out.data, "before", 6);
    assert_memory_equal(out.data + 6, alone.data, alone.size);
    icma_buffer_free(&out);
    icma_buffer_free(&alone);
    free_fixture(&f);
}

/* --- sizes --------------------------------------------------------------------------------------------- */

/* Bits an element of what is left when a Gaussian of this spread is known but for `noise`, on the grid of the
 * dtype's own elements of spread 0.05 or so. */
static double ideal_bits(const fixture *f, icma_dtype dtype, double noise) {
    size_t width = icma_dtype_bits(dtype) / 8, count = f->size / width;
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        float value;
        int exponent;
        icma_load_floats(dtype, f->data + i * width, 1, &value);
        frexp(value, &exponent);
        sum += log2(noise * sqrt(2 * 3.141592653589793 * 2.718281828459045)) -
               (exponent - (dtype == ICMA_F32   ? 24
                            : dtype == ICMA_F16 ? 11
                                                : 8));
    }
    return sum / 8;
}

static void sizes_are_near_the_ideal(void **state) {
    (void)state;
    const struct {
        icma_dtype dtype;
        size_t count, taps;
        double spread, most;
    } cases[] = {{ICMA_F32, 100000, 0, 1e-4, 1.005}, {ICMA_F32, 100000, 2, 1e-4, 1.005},
                 {ICMA_F32, 512, 2, 1e-4, 1.03},     {ICMA_BF16, 100000, 0, 1e-4, 1.005},
                 {ICMA_F16, 100000, 0, 1e-4, 1.005}, {ICMA_F16, 100000, 2, 1e-3, 1.02}};
    for (size_t c = 0; c < COUNT(cases); c++) {
        uint64_t random = 8;
        fixture f = make_vector(cases[c].dtype, cases[c].count, cases[c].taps);
        walk(&f, cases[c].dtype, cases[c].taps, cases[c].spread, &random);
        double ideal = ideal_bits(&f, cases[c].dtype, cases[c].taps ? cases[c].spread : 0.05);
        double size = (double)round_trip(&f, cases[c].taps);
        if (size > cases[c].most * ideal + 32)
            fail_msg("case %zu: %.0f bytes, ideal %.0f", c, size, ideal);
        free_fixture(&f);
    }
}

/* Difference of two lossy decodes tells what moved, though both are far off. */
static void two_far_taps_help(void **state) {
    (void)state;
    uint64_t random = 9;
    fixture f = make_vector(ICMA_F32, 40000, 3);
    walk(&f, ICMA_F32, 1, 1e-3, &random);
    for (size_t i = 0; i < 40000; i++) {
        float now, next, error = (float)(5e-3 * support_normal(&random));
        icma_load_floats(ICMA_F32, f.data + 4 * i, 1, &now);
        icma_load_floats(ICMA_F32, f.taps[0] + 4 * i, 1, &next);
        now += error + (float)(1e-5 * support_normal(&random));
        next += error;
        icma_store_floats(ICMA_F32, &now, 1, f.taps[1] + 4 * i);
        icma_store_floats(ICMA_F32, &next, 1, f.taps[2] + 4 * i);
    }
    size_t one = round_trip(&f, 1), three = round_trip(&f, 3);
    assert_true((double)one - (double)three > 40000 * 6 / 8.0);
    free_fixture(&f);
}

/* --- refusals and damage ------------------------------------------------------------------------------- */

static void wrong_links_are_refused(void **state) {
    (void)state;
    uint64_t random = 10;
    fixture f = make_mixed(1, &random);
    icma_buffer out = {0};
    icma_lossless_link link = link_of(&f, 1);
    link.tap_count = ICMA_LOSSLESS_TAPS + 1;
    assert_int_equal(icma_lossless_encode(&link, f.data, &out, NULL), ICMA_E_USAGE);
    assert_int_equal(icma_lossless_decode(&link, f.data, 1, f.data, NULL), ICMA_E_USAGE);
    link.tap_count = 1;
    f.coded[1] = true;
    assert_int_equal(icma_lossless_encode(&link, f.data, &out, NULL), ICMA_E_USAGE);
    assert_int_equal(icma_lossless_decode(&link, f.data, 1, f.data, NULL), ICMA_E_USAGE);
    assert_int_equal(out.size, 0);
    f.coded[1] = false;
    icma_buffer coded = encoded(&f, 1, 1);
    assert_int_equal(decode(&f, 0, coded.data, coded.size, 1, NULL), ICMA_E_CORRUPT);
    icma_buffer_free(&coded);
    free_fixture(&f);
}

/* A small payload with every method in it. */
static fixture make_small(icma_dtype dtype, uint64_t *random) {
    const support_tensor tensors[] = {{.name = "a", .dtype = dtype, .rank = 1, .shape = {600}},
                                      {.name = "b", .dtype = dtype, .rank = 1, .shape = {3}},
                                      {.name = "c", .dtype = dtype, .rank = 1, .shape = {700}},
                                      {.name = "d", .dtype = dtype, .rank = 1, .shape = {300}}};
    fixture f = make_fixture(tensors, COUNT(tensors), 2);
    walk(&f, dtype, 2, 1e-3, random);
    const icma_tensor_info *info = f.image.tensors.tensors;
    random_bytes(random, f.data + info[1].begin, info[1].size);
    for (uint64_t i = 0; i < info[2].size; i++) /* mostly zeros: grouped */
        f.data[info[2].begin + i] = support_uniform(random) < 0.01 ? 77 : 0;
    return f;
}

static void damage_is_harmless(void **state) {
    (void)state;
    for (size_t d = 0; d < COUNT(float_dtypes); d++) {
        uint64_t random = 11;
        fixture f = make_small(float_dtypes[d], &random);
        icma_buffer coded = encoded(&f, 2, 1);
        for (size_t size = 0; size < coded.size; size++)
            assert_int_equal(decode(&f, 2, coded.data, size, 1, NULL), ICMA_E_CORRUPT);
        icma_write_u8(&coded, 0);
        assert_int_equal(decode(&f, 2, coded.data, coded.size, 1, NULL), ICMA_E_CORRUPT);
        coded.size--;
        for (size_t bit = 0; bit < 8 * coded.size; bit++) {
            coded.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
            icma_status status = decode(&f, 2, coded.data, coded.size, 1, NULL);
            assert_true(status == ICMA_OK || status == ICMA_E_CORRUPT);
            coded.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        icma_buffer_free(&coded);
        free_fixture(&f);
    }
}

/* Plans without compression, so that every field is met in the clear, then noise. */
static void noise_is_harmless(void **state) {
    (void)state;
    uint64_t random = 12;
    fixture f = make_small(ICMA_F16, &random);
    for (int i = 0; i < 30000; i++) {
        uint8_t data[96];
        size_t size = 4 + (size_t)(support_uniform(&random) * (sizeof data - 4));
        for (size_t k = 0; k < size; k++)
            data[k] = support_uniform(&random) < 0.6 ? (uint8_t)(8 * support_uniform(&random))
                                                     : (uint8_t)(256 * support_uniform(&random));
        data[0] = 2;
        data[1] = (uint8_t)(support_uniform(&random) * (double)size);
        data[2] = 0;
        icma_status status = decode(&f, 2, data, size, 1, NULL);
        assert_true(status == ICMA_OK || status == ICMA_E_CORRUPT);
    }
    free_fixture(&f);
}

static void every_failed_allocation_is_a_memory_error(void **state) {
    (void)state;
    uint64_t random = 13;
    fixture f = make_small(ICMA_BF16, &random);
    icma_lossless_link link = link_of(&f, 2);
    uint8_t *data = malloc(f.size);
    assert_non_null(data);
    icma_set_threads(1);
    icma_status status = ICMA_E_MEMORY;
    for (size_t allowed = 0; status; allowed++) {
        support_budget budget = {.left = allowed};
        icma_buffer out = {0};
        support_limit_memory(&budget);
        status = icma_lossless_encode(&link, f.data, &out, NULL);
        if (!status)
            status = icma_lossless_decode(&link, out.data, out.size, data, NULL);
        icma_buffer_free(&out);
        support_limit_memory(NULL);
        assert_true(status == ICMA_OK || status == ICMA_E_MEMORY);
        assert_int_equal(budget.live, 0);
    }
    assert_memory_equal(data, f.data, f.size);
    free(data);
    free_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_magnitude_is_split_and_joined),
        cmocka_unit_test(folded_elements_ascend),
        cmocka_unit_test(noise_comes_back),
        cmocka_unit_test(spoilt_walks_come_back),
        cmocka_unit_test(constants_are_nearly_free),
        cmocka_unit_test(every_special_comes_back_from_every_special),
        cmocka_unit_test(what_did_not_change_is_nearly_free),
        cmocka_unit_test(mixed_files_come_back),
        cmocka_unit_test(files_without_tensors_come_back),
        cmocka_unit_test(payloads_are_appended),
        cmocka_unit_test(sizes_are_near_the_ideal),
        cmocka_unit_test(two_far_taps_help),
        cmocka_unit_test(wrong_links_are_refused),
        cmocka_unit_test(damage_is_harmless),
        cmocka_unit_test(noise_is_harmless),
        cmocka_unit_test(every_failed_allocation_is_a_memory_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
