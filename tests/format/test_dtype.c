/* SPDX-License-Identifier: Apache-2.0 */
/* The 16-bit floats against arithmetic in double: a format with p fraction bits and smallest exponent e has
 * steps of 2^(max(exponent, e) - p), and nearbyint rounds to a multiple of that with ties to even. */
#include "bytes.h"
#include "dtype.h"
#include "support.h"

#include <math.h>
#include <string.h>

typedef struct narrow {
    const char *name;
    int fraction_bits, smallest_exponent, largest_exponent;
    float (*widen)(uint16_t);
    uint16_t (*shorten)(float);
} narrow;

static const narrow formats[] = {
    {"F16", 10, -14, 15, icma_f16_to_f32, icma_f32_to_f16},
    {"BF16", 7, -126, 127, icma_bf16_to_f32, icma_f32_to_bf16},
};

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The value of a pattern, from the definition. */
static double value_of(const narrow *format, unsigned bits) {
    int exponent_bits = 15 - format->fraction_bits;
    int field = (int)(bits >> format->fraction_bits & ((1u << exponent_bits) - 1));
    int fraction = (int)(bits & ((1u << format->fraction_bits) - 1));
    double sign = bits & 0x8000 ? -1 : 1;
    if (field == (1 << exponent_bits) - 1)
        return fraction ? NAN : sign * INFINITY;
    if (field)
        return sign * ldexp(fraction + (1 << format->fraction_bits),
                            field - 1 + format->smallest_exponent - format->fraction_bits);
    return sign * ldexp(fraction, format->smallest_exponent - format->fraction_bits);
}

/* The rounded value of a finite number, from the definition. */
static double rounded(const narrow *format, double value) {
    int exponent;
    if (value == 0)
        return value;
    frexp(value, &exponent);
    exponent--;
    if (exponent < format->smallest_exponent)
        exponent = format->smallest_exponent;
    double step = ldexp(1, exponent - format->fraction_bits);
    double result = nearbyint(value / step) * step;
    return fabs(result) >= ldexp(1, format->largest_exponent + 1) ? copysign(INFINITY, value) : result;
}

static void all_patterns_round_trip(void **state) {
    (void)state;
    for (size_t f = 0; f < 2; f++) {
        const narrow *format = &formats[f];
        for (unsigned bits = 0; bits < 65536; bits++) {
            float wide = format->widen((uint16_t)bits);
            double wanted = value_of(format, bits);
            if (isnan(wanted))
                assert_true(isnan(wide));
            else
                assert_true((double)wide == wanted && !signbit(wide) == !signbit(wanted));
            assert_int_equal(format->shorten(wide), bits);
        }
    }
}

static void check_rounding(const narrow *format, float value) {
    double wanted = rounded(format, value);
    uint16_t bits = format->shorten(value);
    double got = value_of(format, bits);
    if (!(got == wanted && !signbit(got) == !signbit(wanted)))
        fail_msg("%s: %a becomes %a, not %a", format->name, (double)value, got, wanted);
}

/* Between any two neighbours: the middle goes to the even one, and its own neighbours each to their side. */
static void ties_go_to_even(void **state) {
    (void)state;
    for (size_t f = 0; f < 2; f++) {
        const narrow *format = &formats[f];
        unsigned infinity = 0x7fffu >> format->fraction_bits << format->fraction_bits;
        for (unsigned bits = 0; bits < infinity; bits++) {
            double low = value_of(format, bits);
            double high =
                bits + 1 == infinity ? ldexp(1, format->largest_exponent + 1) : value_of(format, bits + 1);
            float middle = (float)((low + high) / 2);
            if ((double)middle != (low + high) / 2)
                continue; /* bf16 denormals: no float lies between */
            assert_int_equal(format->shorten(middle), bits + (bits & 1));
            assert_int_equal(format->shorten(-middle), 0x8000 | (bits + (bits & 1)));
            assert_int_equal(format->shorten(nextafterf(middle, 0)), bits);
            assert_int_equal(format->shorten(nextafterf(middle, INFINITY)), bits + 1);
            check_rounding(format, middle);
        }
    }
}

static void random_floats_round_to_nearest(void **state) {
    (void)state;
    uint64_t random = 2;
    for (int i = 0; i < 1000000; i++) {
        float value = of_bits((uint32_t)next_random(&random));
        if (!isfinite(value))
            continue;
        check_rounding(&formats[0], value);
        check_rounding(&formats[1], value);
        check_rounding(&formats[0], value * 0x1p-60f * 0x1p60f);
        /* and in the range of half precision, where most patterns are not */
        check_rounding(&formats[0], of_bits((bits_of(value) & 0x87ffffff) | 0x38000000));
        check_rounding(&formats[0], of_bits((bits_of(value) & 0x807fffff) | (102u + i % 12u) << 23));
    }
}

static void overflow_and_underflow(void **state) {
    (void)state;
    assert_int_equal(icma_f32_to_f16(65504.0f), 0x7bff);
    assert_int_equal(icma_f32_to_f16(nextafterf(65520.0f, 0)), 0x7bff);
    assert_int_equal(icma_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(icma_f32_to_f16(65536.0f), 0x7c00);
    assert_int_equal(icma_f32_to_f16(-1e30f), 0xfc00);
    assert_int_equal(icma_f32_to_f16(0x1p-24f), 1);
    assert_int_equal(icma_f32_to_f16(0x1p-25f), 0);
    assert_int_equal(icma_f32_to_f16(-0x1p-25f), 0x8000);
    assert_int_equal(icma_f32_to_f16(nextafterf(0x1p-25f, 1)), 1);
    assert_int_equal(icma_f32_to_f16(nextafterf(0x1p-14f, 0)), 0x400);
    assert_int_equal(icma_f32_to_f16(of_bits(1)), 0);
    assert_int_equal(icma_f32_to_bf16(of_bits(0x7f7f7fff)), 0x7f7f);
    assert_int_equal(icma_f32_to_bf16(of_bits(0x7f7f8000)), 0x7f80);
    assert_int_equal(icma_f32_to_bf16(of_bits(0xff7fffff)), 0xff80);
}

static void nan_stays_nan(void **state) {
    (void)state;
    assert_int_equal(icma_f32_to_f16(of_bits(0x7f800001)), 0x7e00); /* its payload does not fit */
    assert_int_equal(icma_f32_to_bf16(of_bits(0xff800001)), 0xffc0);
    assert_int_equal(icma_f32_to_f16(of_bits(0x7fa02000)), 0x7d01); /* the top of its payload is kept */
    assert_int_equal(icma_f32_to_bf16(of_bits(0x7fa1ffff)), 0x7fa1);
}

static void arrays_at_any_alignment(void **state) {
    (void)state;
    const float values[] = {0.0f, -0.0f, 1.5f, -65504.0f, 0x1p-14f, INFINITY};
    const icma_dtype dtypes[] = {ICMA_F16, ICMA_BF16, ICMA_F32};
    for (size_t d = 0; d < 3; d++) {
        uint8_t bytes[32];
        float back[6];
        size_t width = icma_dtype_bits(dtypes[d]) / 8;
        icma_store_floats(dtypes[d], values, 6, bytes + 1);
        icma_load_floats(dtypes[d], bytes + 1, 6, back);
        for (size_t i = 0; i < 6; i++)
            if (dtypes[d] != ICMA_BF16 || i != 3) /* -65504 has no bf16 */
                assert_int_equal(bits_of(back[i]), bits_of(values[i]));
        assert_int_equal(bytes[1 + 2 * width - 1], 0x80); /* little-endian */
    }
    /* signalling NaNs pass through as they are */
    uint8_t nan[4] = {1, 0, 0x80, 0x7f}, out[4];
    float value;
    icma_load_floats(ICMA_F32, nan, 1, &value);
    icma_store_floats(ICMA_F32, &value, 1, out);
    assert_memory_equal(nan, out, 4);
}

static void names_and_bits(void **state) {
    (void)state;
    size_t modelled = 0;
    for (int i = 0; i < ICMA_DTYPE_COUNT; i++) {
        icma_dtype found;
        assert_true(icma_dtype_from_name(icma_dtype_name((icma_dtype)i), &found));
        assert_int_equal(found, i);
        modelled += icma_dtype_is_modelled((icma_dtype)i);
    }
    assert_int_equal(ICMA_DTYPE_COUNT, 20);
    assert_int_equal(modelled, 3);
    assert_int_equal(icma_dtype_bits(ICMA_F6_E2M3), 6);
    assert_int_equal(icma_dtype_bits(ICMA_C64), 64);
    icma_dtype untouched = ICMA_I8;
    assert_false(icma_dtype_from_name("f32", &untouched));
    assert_false(icma_dtype_from_name("", &untouched));
    assert_int_equal(untouched, ICMA_I8);
    assert_string_equal(icma_dtype_name(ICMA_DTYPE_COUNT), "?");
}

static void elements_of_every_dtype(void **state) {
    (void)state;
    static const struct {
        icma_dtype dtype;
        uint64_t bits;
        double value;
    } cases[] = {
        {ICMA_BOOL, 0, 0},
        {ICMA_BOOL, 1, 1},
        {ICMA_U8, 255, 255},
        {ICMA_I8, 0x80, -128},
        {ICMA_I8, 0xff, -1},
        {ICMA_U16, 0xffff, 65535},
        {ICMA_I16, 0x8000, -32768},
        {ICMA_U32, 0xffffffff, 4294967295.0},
        {ICMA_I32, 0x80000000, -2147483648.0},
        {ICMA_U64, UINT64_C(1) << 63, 0x1p63},
        {ICMA_I64, UINT64_C(1) << 63, -0x1p63},
        {ICMA_I64, UINT64_MAX, -1},
        {ICMA_F16, 0x3c00, 1},
        {ICMA_BF16, 0xc000, -2},
        {ICMA_F32, 0x3f000000, 0.5},
        {ICMA_F64, UINT64_C(0x3fd0000000000000), 0.25},
        {ICMA_F8_E5M2, 0x3c, 1},
        {ICMA_F8_E5M2, 0x7b, 57344},
        {ICMA_F8_E5M2, 0x01, 0x1p-16},
        {ICMA_F8_E5M2, 0xfc, -INFINITY},
        {ICMA_F8_E5M2, 0x7d, NAN},
        {ICMA_F8_E4M3, 0x38, 1},
        {ICMA_F8_E4M3, 0x7e, 448},
        {ICMA_F8_E4M3, 0x01, 0x1p-9},
        {ICMA_F8_E4M3, 0x88, -0x1p-6},
        {ICMA_F8_E4M3, 0xff, NAN},
        {ICMA_F8_E8M0, 127, 1},
        {ICMA_F8_E8M0, 0, 0x1p-127},
        {ICMA_F8_E8M0, 254, 0x1p127},
        {ICMA_F8_E8M0, 255, NAN},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t bytes[8];
        double value = 77;
        icma_store_u64(bytes, cases[i].bits);
        assert_true(icma_element_to_double(cases[i].dtype, bytes, &value));
        assert_true(value == cases[i].value || (isnan(value) && isnan(cases[i].value)));
    }
    double value;
    const uint8_t zeros[8] = {0};
    assert_false(icma_element_to_double(ICMA_C64, zeros, &value));
    assert_false(icma_element_to_double(ICMA_F4, zeros, &value));
    assert_false(icma_element_to_double(ICMA_F6_E3M2, zeros, &value));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_patterns_round_trip),
        cmocka_unit_test(ties_go_to_even),
        cmocka_unit_test(random_floats_round_to_nearest),
        cmocka_unit_test(overflow_and_underflow),
        cmocka_unit_test(nan_stays_nan),
        cmocka_unit_test(arrays_at_any_alignment),
        cmocka_unit_test(names_and_bits),
        cmocka_unit_test(elements_of_every_dtype),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
