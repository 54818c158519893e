/* SPDX-License-Identifier: Apache-2.0 */
/* Coding to an error bound: that it holds, measured on what a reader decodes and from the definition alone;
 * what is done where it cannot hold; what it costs. */
#include "bound.h"

#include "memory.h"
#include "ops.h"
#include "packing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* --- one adapter, by hand ------------------------------------------------------------------------------ */

enum { MOST = 8, NAME = 40 };

typedef struct adapter {
    support_image image;
    icma_pairs pairs;
    icma_generator g;
    float *prediction;
    uint8_t *classes; /* of residual.h; NULL: one */
    uint8_t *decoded; /* a whole file */
    bool verbatim[MOST];
    icma_residual residual;
} adapter;

/* Tensors m0.lora_A, m0.lora_B, m1.lora_A, ...: rank x in and out x rank; an odd one at the end is a single.
 */
typedef struct shape {
    icma_dtype dtype;
    size_t tensors, rank, in, out;
} shape;

static size_t rows_of(const shape *s, size_t t) {
    return t % 2 ? s->out : s->rank;
}

static size_t columns_of(const shape *s, size_t t) {
    return t % 2 ? s->rank : s->in;
}

/* Scales as a group of this one checkpoint has them; all tensors are modelled. The prediction starts as
 * zeros. */
static void make_adapter(const shape *s, float *const *values, adapter *a) {
    support_tensor tensors[MOST];
    char names[MOST][NAME];
    icma_error error = {0};
    size_t total = 0;
    *a = (adapter){0};
    for (size_t t = 0; t < s->tensors; t++) {
        bool single = t + 1 == s->tensors && s->tensors % 2;
        snprintf(names[t], NAME, single ? "m.lora_magnitude" : "m%zu.lora_%c.weight", t / 2,
                 t % 2 ? 'B' : 'A');
        tensors[t] = (support_tensor){.name = names[t],
                                      .dtype = s->dtype,
                                      .rank = 2,
                                      .shape = {rows_of(s, t), columns_of(s, t)},
                                      .values = values[t]};
        total += rows_of(s, t) * columns_of(s, t);
    }
    support_build_image(tensors, s->tensors, &a->image);
    assert_int_equal(icma_pairs_find(&a->image.tensors, &a->pairs, &error), ICMA_OK);
    assert_int_equal(a->pairs.count, s->tensors / 2);
    a->g = (icma_generator){.kind = ICMA_GENERATOR_NONE, .tensor_count = s->tensors};
    assert_int_equal(icma_generator_allocate(&a->g, &error), ICMA_OK);
    for (size_t t = 0; t < s->tensors; t++) {
        double energy = 0;
        const icma_tensor_info *info = &a->image.tensors.tensors[t];
        for (size_t i = 0; i < info->count; i++) {
            double x;
            icma_element_to_double(s->dtype, a->image.data + info->begin + i * icma_dtype_bits(s->dtype) / 8,
                                   &x);
            energy += x * x;
        }
        a->g.treatment[t] = (uint8_t)a->pairs.roles[t];
        a->g.scale[t] = energy > 0 && isfinite(energy) ? (float)(sqrt(energy) / 64) : 1;
    }
    a->prediction = calloc(total + 1, sizeof *a->prediction);
    a->decoded = malloc(a->image.size);
    assert_true(a->prediction && a->decoded);
}

static void free_adapter(adapter *a) {
    icma_residual_free(&a->residual);
    icma_generator_free(&a->g);
    icma_pairs_free(&a->pairs);
    free(a->prediction);
    free(a->classes);
    free(a->decoded);
    support_free_image(&a->image);
}

static size_t cells(const adapter *a, size_t t) {
    return (size_t)a->image.tensors.tensors[t].count;
}

static uint8_t *decoded_data(const adapter *a) {
    return a->decoded + (a->image.data - a->image.bytes);
}

/* What a reader makes of prediction and residual must be what was measured. */
static void check_decoding(const adapter *a) {
    size_t offset = 0, part = 0;
    for (size_t t = 0; t < a->g.tensor_count; t++) {
        const icma_tensor_info *info = &a->image.tensors.tensors[t];
        size_t count = cells(a, t);
        float *x = malloc((count + 1) * sizeof *x);
        uint8_t *bytes = malloc((size_t)info->size + 1);
        assert_true(x && bytes);
        memcpy(x, a->prediction + offset, count * sizeof *x);
        if (part < a->residual.count && a->residual.list[part].tensor == t) {
            const icma_residual_tensor *r = &a->residual.list[part++];
            float step = icma_residual_step(a->g.scale[t], r->code);
            assert_true(step > 0 && !a->verbatim[t]);
            for (size_t i = 0; i < count; i++) {
                assert_true(abs(a->residual.integers[r->first + i]) <= ICMA_RESIDUAL_LARGEST);
                x[i] = fmaf((float)a->residual.integers[r->first + i], step, x[i]);
            }
        }
        icma_store_floats(info->dtype, x, count, bytes);
        const uint8_t *wanted = a->verbatim[t] ? a->image.data + info->begin : bytes;
        assert_memory_equal(wanted, decoded_data(a) + info->begin, (size_t)info->size);
        free(x);
        free(bytes);
        offset += count;
    }
    assert_int_equal(part, a->residual.count);
}

/* Codes it and returns its error by the definition. */
static double encode(adapter *a, icma_bound bound) {
    icma_error error = {0};
    icma_bounded b = {.signature = &a->image.tensors,
                      .generator = &a->g,
                      .pairs = &a->pairs,
                      .bound = bound,
                      .original = a->image.data,
                      .prediction = a->prediction,
                      .classes = a->classes,
                      .verbatim = a->verbatim,
                      .decoded = decoded_data(a)};
    memcpy(a->decoded, a->image.bytes, a->image.size);
    icma_residual_free(&a->residual);
    if (icma_bound_encode(&b, &a->residual, &error) != ICMA_OK)
        fail_msg("%s", error.message);
    check_decoding(a);
    return packing_bound_error(a->image.bytes, a->decoded, a->image.size, bound.kind);
}

static bool holds(const adapter *a, icma_bound bound) {
    icma_distance tensors[MOST], pairs[MOST];
    for (size_t t = 0; t < a->g.tensor_count; t++)
        icma_fidelity_tensor(&a->image.tensors.tensors[t], a->image.data, decoded_data(a), &tensors[t]);
    for (size_t p = 0; p < a->pairs.count; p++)
        assert_int_equal(icma_fidelity_pair(&a->image.tensors, &a->pairs.list[p], a->image.data,
                                            decoded_data(a), &pairs[p]),
                         ICMA_OK);
    return icma_bound_holds(bound, &a->pairs, tensors, a->g.tensor_count, pairs);
}

static void make_normals(const shape *s, uint64_t seed, float *values[MOST]) {
    for (size_t t = 0; t < s->tensors; t++) {
        float size = ldexpf(1, (int)(t * 3) - 6); /* factors of unlike sizes */
        values[t] = support_normals(&seed, rows_of(s, t) * columns_of(s, t));
        for (size_t i = 0; i < rows_of(s, t) * columns_of(s, t); i++)
            values[t][i] *= size;
    }
}

static void free_values(const shape *s, float *values[MOST]) {
    for (size_t t = 0; t < s->tensors; t++)
        support_free(values[t]);
}

static void make_gaussian(const shape *s, uint64_t seed, adapter *a) {
    float *values[MOST];
    make_normals(s, seed, values);
    make_adapter(s, values, a);
    free_values(s, values);
}

static double block_bits(const adapter *a) {
    icma_buffer block = {0};
    icma_error error = {0};
    assert_int_equal(icma_residual_write(&a->residual, &a->image.tensors, &a->g, a->classes, &block, &error), ICMA_OK);
    double bits = 8 * (double)block.size;
    icma_buffer_free(&block);
    return bits;
}

/* --- bounds that hold ---------------------------------------------------------------------------------- */

static const shape shapes[] = {
    {ICMA_F32, 2, 4, 16, 16}, {ICMA_F32, 3, 1, 16, 300},  {ICMA_F16, 4, 16, 70, 33},
    {ICMA_BF16, 2, 2, 8, 8},  {ICMA_BF16, 5, 8, 64, 200}, {ICMA_F16, 1, 30, 9, 1},
    {ICMA_F32, 1, 40, 3, 1},  {ICMA_F32, 4, 64, 40, 24},
};
static const float bounds[] = {0.9F, 0.3F, 0.1F, 0.03F, 0.01F, 1e-3F, 1e-4F, 1e-6F, 1e-9F};

static void bounds_hold(void **state) {
    (void)state;
    for (size_t s = 0; s < COUNT(shapes); s++)
        for (int kind = ICMA_BOUND_DW; kind <= ICMA_BOUND_ABS; kind++) {
            double bits = 0;
            for (size_t i = 0; i < COUNT(bounds); i++) {
                const icma_bound bound = {(icma_bound_kind)kind, bounds[i]};
                adapter a;
                make_gaussian(&shapes[s], 10 + s, &a);
                double error = encode(&a, bound);
                if (!packing_within(error, bound))
                    fail_msg("shape %zu: %s %g, but it is %g", s, icma_bound_name(bound.kind),
                             (double)bound.value, error);
                assert_true(holds(&a, bound));
                /* Smaller bounds take more bits, and none is left unused where it takes many. */
                double now = block_bits(&a);
                bool whole = true;
                for (size_t t = 0; t < a.g.tensor_count; t++)
                    whole = whole && !a.verbatim[t];
                assert_true(!whole || now >= 0.999 * bits);
                if (a.residual.count == a.g.tensor_count && bound.value <= 0.1F &&
                    shapes[s].dtype == ICMA_F32)
                    assert_true(error > 0.8 * (double)bound.value);
                bits = whole ? now : bits;
                free_adapter(&a);
            }
        }
}

/* icma_bound_holds is no rubber stamp. */
static void what_is_measured_is_compared(void **state) {
    (void)state;
    const shape s = {ICMA_F32, 3, 4, 30, 20};
    for (int kind = ICMA_BOUND_DW; kind <= ICMA_BOUND_ABS; kind++) {
        const icma_bound bound = {(icma_bound_kind)kind, 0.05F}, less = {bound.kind, 0.02F};
        adapter a;
        make_gaussian(&s, 3, &a);
        encode(&a, bound);
        assert_true(holds(&a, bound) && !holds(&a, less));
        /* One weight far off, in a pair and in the single tensor. */
        for (size_t t = 1; t < 3; t++) {
            encode(&a, bound);
            decoded_data(&a)[a.image.tensors.tensors[t].begin + 3] ^= 0x40;
            assert_false(holds(&a, bound));
            decoded_data(&a)[a.image.tensors.tensors[t].begin + 3] ^= 0x40;
            const float odd = NAN;
            memcpy(decoded_data(&a) + a.image.tensors.tensors[t].begin, &odd, sizeof odd);
            assert_false(holds(&a, bound));
        }
        free_adapter(&a);
    }
}

/* --- predictions --------------------------------------------------------------------------------------- */

static void predict_originals(adapter *a, uint64_t seed, double noise) {
    size_t offset = 0;
    for (size_t t = 0; t < a->g.tensor_count; t++) {
        const icma_tensor_info *info = &a->image.tensors.tensors[t];
        icma_load_floats(info->dtype, a->image.data + info->begin, cells(a, t), a->prediction + offset);
        for (size_t i = 0; i < cells(a, t); i++)
            a->prediction[offset + i] += (float)(noise * 64 * (double)a->g.scale[t] /
                                                 sqrt((double)cells(a, t)) * support_normal(&seed));
        offset += cells(a, t);
    }
}

static void good_predictions_need_no_residual(void **state) {
    (void)state;
    for (size_t s = 0; s < COUNT(shapes); s++)
        for (int kind = ICMA_BOUND_DW; kind <= ICMA_BOUND_REL; kind++) {
            const icma_bound bound = {(icma_bound_kind)kind, 0.1F};
            adapter a;
            make_gaussian(&shapes[s], 20 + s, &a);
            predict_originals(&a, 5, 0); /* the very same */
            assert_true(encode(&a, bound) == 0 && a.residual.count == 0 && !a.residual.total);
            predict_originals(&a, 5, 0.02); /* near enough */
            double error = encode(&a, bound);
            assert_true(error > 0 && packing_within(error, bound) && a.residual.count == 0);
            /* Not near enough: a residual, that costs what the distance is worth and not more. */
            predict_originals(&a, 5, 0.3);
            error = encode(&a, bound);
            assert_true(packing_within(error, bound) && a.residual.count > 0);
            double near = block_bits(&a);
            memset(a.prediction, 0, cells(&a, 0) * sizeof *a.prediction);
            if (a.g.tensor_count == 1) {
                encode(&a, bound);
                assert_true(block_bits(&a) > near);
            }
            free_adapter(&a);
        }
}

/* Units are coded each on their own: only the one that is off takes a residual. */
static void only_what_is_off_is_coded(void **state) {
    (void)state;
    const shape s = {ICMA_F32, 5, 4, 30, 20};
    adapter a;
    make_gaussian(&s, 9, &a);
    const icma_bound bounds_of[] = {{ICMA_BOUND_DW, 0.1F}, {ICMA_BOUND_REL, 0.1F}, {ICMA_BOUND_ABS, 1e-4F}};
    for (size_t i = 0; i < COUNT(bounds_of); i++) {
        predict_originals(&a, 1, 0);
        for (size_t j = 0; j < cells(&a, 2); j++)
            a.prediction[cells(&a, 0) + cells(&a, 1) + j] *= 1.5F; /* tensor 2: m1's A */
        assert_true(packing_within(encode(&a, bounds_of[i]), bounds_of[i]));
        assert_true(a.residual.count == (bounds_of[i].kind == ICMA_BOUND_DW ? 2 : 1) &&
                    a.residual.list[0].tensor == 2);
    }
    free_adapter(&a);
}

/* Predictions that are no numbers, or so far off that no integer reaches: the tensors are kept. */
static void hopeless_predictions_are_not_used(void **state) {
    (void)state;
    static const float hopeless[] = {NAN, INFINITY, -INFINITY, 0x1p126F, -0x1.fffffep127F};
    const shape s = {ICMA_F32, 3, 4, 30, 20};
    for (int kind = ICMA_BOUND_DW; kind <= ICMA_BOUND_ABS; kind++)
        for (size_t i = 0; i < COUNT(hopeless); i++) {
            const icma_bound bound = {(icma_bound_kind)kind, 0.01F};
            adapter a;
            make_gaussian(&s, 9, &a);
            a.prediction[cells(&a, 0) + 7] = hopeless[i];                /* in B */
            a.prediction[cells(&a, 0) + cells(&a, 1) + 5] = hopeless[i]; /* in the single one */
            assert_true(packing_within(encode(&a, bound), bound));
            assert_true(a.verbatim[1] && a.verbatim[2] && a.verbatim[0] == (kind == ICMA_BOUND_DW));
            free_adapter(&a);
        }
}

/* --- oddities ------------------------------------------------------------------------------------------ */

/* dW = 0: B is zero, or meets zeros of A only. Then dW' must be 0, too. */
static void products_that_are_zero(void **state) {
    (void)state;
    const shape s = {ICMA_F32, 2, 2, 16, 16};
    for (int which = 0; which < 3; which++)
        for (int predicted = 0; predicted < 2; predicted++)
            for (int kind = ICMA_BOUND_DW; kind <= ICMA_BOUND_ABS; kind++) {
                const icma_bound bound = {(icma_bound_kind)kind, 0.1F};
                float *values[MOST];
                adapter a;
                make_normals(&s, 30, values);
                for (size_t i = 0; i < 32; i++) { /* A: row i / 16; B: column i % 2 */
                    if (which == 0)
                        values[1][i] = 0;
                    if (which == 1)
                        values[0][i] = 0;
                    if (which == 2 && i < 16)
                        values[0][i] = 0;
                    if (which == 2 && i % 2)
                        values[1][i] = 0;
                }
                make_adapter(&s, values, &a);
                for (size_t i = 0; predicted && i < 64; i++)
                    a.prediction[i] = 0.01F * (float)(1 + i % 5);
                double error = encode(&a, bound);
                if (!packing_within(error, bound) || !holds(&a, bound))
                    fail_msg("case %d, %s: %g", which, icma_bound_name(bound.kind), error);
                free_values(&s, values);
                free_adapter(&a);
            }
}

/* A factor that is kept has no error, so the other one has all of the bound. */
static void one_factor_may_be_verbatim(void **state) {
    (void)state;
    const shape s = {ICMA_F32, 2, 8, 100, 100};
    const icma_bound bound = {ICMA_BOUND_DW, 0.05F};
    adapter a;
    make_gaussian(&s, 31, &a);
    encode(&a, bound);
    assert_int_equal(a.residual.count, 2);
    int32_t both = a.residual.list[0].code;
    for (size_t kept = 0; kept < 2; kept++) {
        memset(a.verbatim, 0, sizeof a.verbatim);
        a.verbatim[kept] = true;
        double error = encode(&a, bound);
        assert_true(packing_within(error, bound) && error > 0.8 * (double)bound.value);
        assert_true(a.residual.count == 1 && a.residual.list[0].tensor == !kept && a.verbatim[kept] &&
                    !a.verbatim[!kept]);
        /* sqrt(2) more: eight sixteenths of an octave. */
        assert_true(a.residual.list[0].code >= both + 5 && a.residual.list[0].code <= both + 11);
    }
    a.verbatim[0] = a.verbatim[1] = true;
    assert_true(encode(&a, bound) == 0 && a.residual.count == 0);
    free_adapter(&a);
}

/* Integers have 16 bits: far below what they reach, and below the weights' own rounding, tensors are kept as
 * they are. */
static void bounds_that_cannot_be_met(void **state) {
    (void)state;
    const shape s = {ICMA_F32, 3, 4, 30, 20};
    for (int kind = ICMA_BOUND_DW; kind <= ICMA_BOUND_ABS; kind++) {
        const icma_bound bound = {(icma_bound_kind)kind, 1e-12F};
        adapter a;
        make_gaussian(&s, 32, &a);
        assert_true(encode(&a, bound) == 0 && a.residual.count == 0);
        assert_true(a.verbatim[0] && a.verbatim[1] && a.verbatim[2]);
        free_adapter(&a);
    }
    /* An outlier that no integer reaches at the step that the others need. */
    float *values[MOST];
    adapter a;
    make_normals(&s, 33, values);
    values[2][17] = 1e12F;
    make_adapter(&s, values, &a);
    const icma_bound bound = {ICMA_BOUND_ABS, 0.01F};
    assert_true(packing_within(encode(&a, bound), bound) && a.verbatim[2] && !a.verbatim[0] &&
                !a.verbatim[1]);
    free_values(&s, values);
    free_adapter(&a);
}

/* Originals that are not finite are never coded, whatever the caller says. */
static void originals_that_are_not_finite_are_kept(void **state) {
    (void)state;
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    const shape s = {ICMA_BF16, 3, 4, 30, 20};
    for (int kind = ICMA_BOUND_DW; kind <= ICMA_BOUND_ABS; kind++)
        for (size_t i = 0; i < COUNT(odd); i++) {
            const icma_bound bound = {(icma_bound_kind)kind, 0.1F};
            float *values[MOST];
            adapter a;
            make_normals(&s, 34, values);
            values[0][5] = values[2][6] = odd[i];
            make_adapter(&s, values, &a);
            assert_true(packing_within(encode(&a, bound), bound));
            assert_true(a.verbatim[0] && a.verbatim[2] && a.verbatim[1] == (kind == ICMA_BOUND_DW));
            free_values(&s, values);
            free_adapter(&a);
        }
}

/* Weights near the ends of their range. */
static void weights_of_any_size(void **state) {
    (void)state;
    static const int exponents[] = {-140, -126, -120, -60, 60, 110, 125};
    for (size_t e = 0; e < COUNT(exponents); e++)
        for (int kind = ICMA_BOUND_DW; kind <= ICMA_BOUND_ABS; kind++) {
            const shape s = {ICMA_F32, 3, 4, 30, 20};
            const icma_bound bound = {(icma_bound_kind)kind,
                                      kind == ICMA_BOUND_ABS ? ldexpf(1, exponents[e] - 4) : 0.1F};
            float *values[MOST];
            adapter a;
            make_normals(&s, 35, values);
            for (size_t t = 0; t < 3; t++)
                for (size_t i = 0; i < rows_of(&s, t) * columns_of(&s, t); i++)
                    values[t][i] =
                        ldexpf(fmaxf(-2, fminf(2, ldexpf(values[t][i], 6 - 3 * (int)t))), exponents[e]);
            make_adapter(&s, values, &a);
            for (size_t t = 0; t < 3; t++)
                a.g.scale[t] = fmaxf(a.g.scale[t], 0x1p-126F); /* as a reader wants them */
            double error = encode(&a, bound);
            if (!packing_within(error, bound))
                fail_msg("2^%d, %s: %g", exponents[e], icma_bound_name(bound.kind), error);
            free_values(&s, values);
            free_adapter(&a);
        }
}

/* --- the same, however many threads -------------------------------------------------------------------- */

static void threads_do_not_matter(void **state) {
    (void)state;
    const shape s = {ICMA_BF16, 7, 8, 50, 40};
    for (int kind = ICMA_BOUND_DW; kind <= ICMA_BOUND_ABS; kind++) {
        const icma_bound bound = {(icma_bound_kind)kind, 0.02F};
        icma_buffer first = {0};
        for (int threads = 1; threads <= 3; threads++) {
            adapter a;
            icma_buffer block = {0};
            icma_error error = {0};
            icma_set_threads(threads);
            make_gaussian(&s, 36, &a);
            encode(&a, bound);
            assert_int_equal(icma_residual_write(&a.residual, &a.image.tensors, &a.g, a.classes, &block, &error), ICMA_OK);
            if (threads == 1) {
                first = block;
            } else {
                assert_int_equal(block.size, first.size);
                assert_memory_equal(block.data, first.data, first.size);
                icma_buffer_free(&block);
            }
            free_adapter(&a);
        }
        icma_buffer_free(&first);
    }
    icma_set_threads(0);
}

/* Weights of two spreads, 64 times apart and mixed: known to the coder, and shuffled, so that they say nothing. */
static void classes_of_spread_save_bits(void **state) {
    (void)state;
    const shape s = {ICMA_F32, 3, 4, 300, 200};
    const icma_bound asked[] = {{ICMA_BOUND_DW, 0.1F}, {ICMA_BOUND_REL, 0.05F}, {ICMA_BOUND_ABS, 0.01F}};
    adapter a;
    float *values[MOST];
    uint64_t seed = 41;
    make_normals(&s, 38, values);
    size_t total = 0;
    for (size_t t = 0; t < s.tensors; t++)
        total += rows_of(&s, t) * columns_of(&s, t);
    uint8_t *classes = malloc(total);
    assert_non_null(classes);
    for (size_t t = 0, at = 0; t < s.tensors; t++)
        for (size_t i = 0; i < rows_of(&s, t) * columns_of(&s, t); i++, at++) {
            bool wide = support_uniform(&seed) < 0.3;
            values[t][i] *= wide ? 1 : 0x1p-6F;
            classes[at] = wide ? 32 : 20;
        }
    make_adapter(&s, values, &a);
    for (size_t b = 0; b < COUNT(asked); b++) {
        double bits[2];
        for (int known = 0; known < 2; known++) {
            a.classes = known ? classes : NULL;
            assert_true(encode(&a, asked[b]) <= (double)asked[b].value);
            assert_true(holds(&a, asked[b]));
            bits[known] = block_bits(&a);
        }
        if (bits[1] > 0.92 * bits[0])
            fail_msg("bound %zu: %.0f bits, without classes %.0f", b, bits[1], bits[0]);
    }
    free_adapter(&a); /* and the classes */
    free_values(&s, values);
}

static void memory_may_end(void **state) {
    (void)state;
    const shape s = {ICMA_F32, 3, 2, 10, 10};
    const icma_bound bound = {ICMA_BOUND_DW, 0.1F};
    adapter a;
    icma_status status = ICMA_E_MEMORY;
    icma_set_threads(1);
    make_gaussian(&s, 37, &a);
    for (size_t k = 0; status; k++) {
        icma_error error = {0};
        icma_residual residual;
        support_budget budget = {k, 0};
        icma_bounded b = {.signature = &a.image.tensors,
                          .generator = &a.g,
                          .pairs = &a.pairs,
                          .bound = bound,
                          .original = a.image.data,
                          .prediction = a.prediction,
                          .verbatim = a.verbatim,
                          .decoded = decoded_data(&a)};
        memcpy(a.decoded, a.image.bytes, a.image.size);
        memset(&residual, 0x5A, sizeof residual);
        support_limit_memory(&budget);
        status = icma_bound_encode(&b, &residual, &error);
        if (status)
            assert_true(status == ICMA_E_MEMORY && error.status == ICMA_E_MEMORY && !residual.list &&
                        !residual.integers);
        icma_residual_free(&residual);
        support_limit_memory(NULL);
        assert_true(budget.live == 0 && (status || k > 10));
    }
    icma_set_threads(0);
    free_adapter(&a);
}

/* --- what it costs ------------------------------------------------------------------------------------- */

/* Gaussian weights, nothing predicted. A mean error of D that the bound leaves to a factor takes 0.064 over the rate-distortion
 * function, log2(1 / sqrt(D)), with the trellis; a bound of every error is rounding's, h(X) - log2(step) with step twice
 * the bound. A twentieth of a bit on either side (rounding would be 0.19 above the trellis); a tenth for rounding. */
static void rates_are_what_theory_says(void **state) {
    (void)state;
    static const icma_dtype dtypes[] = {ICMA_F32, ICMA_F16, ICMA_BF16};
    const double entropy = 0.5 * log2(2 * 3.14159265358979323846 * exp(1)); /* of N(0, 1) */
    for (size_t d = 0; d < COUNT(dtypes); d++)
        for (int kind = ICMA_BOUND_DW; kind <= ICMA_BOUND_ABS; kind++) {
            const shape s = {dtypes[d], 2, 16, 400, 300};
            float *values[MOST];
            adapter a;
            uint64_t seed = 40;
            values[0] = support_normals(&seed, 16 * 400);
            values[1] = support_normals(&seed, 16 * 300);
            make_adapter(&s, values, &a);
            const icma_bound bound = {(icma_bound_kind)kind, 0.1F};
            double theory = kind == ICMA_BOUND_ABS ? entropy - log2(2 * 0.1)
                                                   : -log2(0.1 / (kind == ICMA_BOUND_DW ? sqrt(2) : 1)) + 0.064;
            assert_true(packing_within(encode(&a, bound), bound));
            double bits = block_bits(&a) / (16 * 700);
            print_message("           %s, %s 0.1: %.3f bits a weight, in theory %.3f\n",
                          icma_dtype_name(dtypes[d]), icma_bound_name(bound.kind), bits, theory);
            /* A largest difference is not a mean: bfloat16 rounds by up to 2^-9 of a weight once more. */
            double slack = kind != ICMA_BOUND_ABS ? 0.05 : dtypes[d] == ICMA_BF16 ? 0.13 : 0.1;
            assert_true(a.residual.trellis == (kind != ICMA_BOUND_ABS));
            assert_true(bits < theory + slack && bits > theory - (kind == ICMA_BOUND_ABS ? 0.1 : 0.05));
            free_values(&s, values);
            free_adapter(&a);
        }
}

/* Factors of any size, together: the same relative error takes the same bits. */
static void sizes_do_not_matter(void **state) {
    (void)state;
    const shape s = {ICMA_F32, 2, 8, 100, 100};
    const icma_bound bound = {ICMA_BOUND_DW, 0.03F};
    double first = 0;
    for (int exponent = -60; exponent <= 60; exponent += 30) {
        float *values[MOST];
        adapter a;
        uint64_t seed = 41;
        values[0] = support_normals(&seed, 800);
        values[1] = support_normals(&seed, 800);
        for (size_t i = 0; i < 800; i++)
            values[0][i] = ldexpf(values[0][i], exponent);
        make_adapter(&s, values, &a);
        assert_true(packing_within(encode(&a, bound), bound));
        double bits = block_bits(&a);
        assert_true(exponent == -60 || bits == first);
        first = bits;
        free_values(&s, values);
        free_adapter(&a);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bounds_hold),
        cmocka_unit_test(what_is_measured_is_compared),
        cmocka_unit_test(good_predictions_need_no_residual),
        cmocka_unit_test(only_what_is_off_is_coded),
        cmocka_unit_test(hopeless_predictions_are_not_used),
        cmocka_unit_test(products_that_are_zero),
        cmocka_unit_test(one_factor_may_be_verbatim),
        cmocka_unit_test(bounds_that_cannot_be_met),
        cmocka_unit_test(originals_that_are_not_finite_are_kept),
        cmocka_unit_test(weights_of_any_size),
        cmocka_unit_test(threads_do_not_matter),
        cmocka_unit_test(classes_of_spread_save_bits),
        cmocka_unit_test(memory_may_end),
        cmocka_unit_test(rates_are_what_theory_says),
        cmocka_unit_test(sizes_do_not_matter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
