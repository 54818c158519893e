/* SPDX-License-Identifier: Apache-2.0 */
/* Packing and reading again through icma.h, on small generated trees: what comes back, for which inputs, with
 * which options. */
#include "packing.h"

#include "coarse.h"
#include "compress.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static int make_root(void **state) {
    *state = support_new_folder();
    return 0;
}

static int drop_root(void **state) {
    icma_set_threads(0);
    support_remove_tree(*state);
    return 0;
}

static trajectory seeded(uint64_t seed) {
    trajectory t = small_trajectory;
    t.seed = seed;
    return t;
}

static void get_task(icma_bundle *bundle, const char *name, icma_task_info *info) {
    icma_error error = {0};
    size_t task = icma_bundle_find_task(bundle, name);
    assert_true(task != SIZE_MAX);
    if (icma_bundle_task(bundle, task, info, &error) != ICMA_OK)
        fail_msg("%s: %s", error.file, error.message);
}

/* --- shapes of trees ----------------------------------------------------------------------------------- */

static void one_checkpoint(void **state) {
    char *root = *state;
    icma_pack_options options = packing_options();
    icma_pack_result result;
    icma_task_info info;
    options.tier = ICMA_TIER_LATENT;
    packing_write(root, "cat", &small_trajectory, 7, 1);
    packing_pack(root, "b.icma", &options, &result);
    assert_true(result.task_count == 1 && result.groups == 1 && result.original_files == 1 &&
                result.has_generator);
    assert_string_equal(result.tasks[0].name, "cat");
    assert_true(result.tasks[0].checkpoints == 1 && result.tasks[0].condition_learned &&
                result.tasks[0].latents_active == 0);
    assert_true(isnan(result.within_task_explained)); /* there is none */
    const icma_bytes *b = &result.bytes;
    assert_int_equal(b->generator + b->conditions + b->latents + b->residuals + b->verbatim + b->index +
                         b->metadata,
                     b->total);
    assert_int_equal(result.original_parameters, 2 * (2 * 12 + 10 * 2));
    icma_bundle *bundle = packing_open(root, "b.icma", icma_ops_cpu());
    get_task(bundle, "cat", &info);
    assert_true(info.checkpoint_count == 1 && info.checkpoints[0].has_step && info.checkpoints[0].step == 7);
    assert_true(info.checkpoints[0].tier == ICMA_TIER_LATENT &&
                info.checkpoints[0].parameters == result.original_parameters);
    assert_string_equal(info.condition_origin, "learned");
    icma_bundle_close(bundle);
    double worst = packing_worst_error(root, "b.icma");
    /* A row a role spans it: what is left is the rounding of the rows, which the target for dW bounds. */
    assert_true(result.components == 2 && result.tasks[0].dw_error_max < 1.1 * options.max_error);
    assert_true(worst < options.max_error && worst > 0 &&
                fabs(worst - result.tasks[0].relative_error) < 1e-9);
    packing_check_folder(root, "b.icma");
    icma_pack_result_free(&result);
    icma_pack_result_free(&result);
}

static void different_numbers_of_checkpoints(void **state) {
    char *root = *state;
    static const size_t counts[] = {1, 2, 9};
    static const char *const names[] = {"one", "three", "two"};
    icma_pack_options options = packing_options();
    icma_pack_result result;
    options.tier = ICMA_TIER_LATENT;
    for (size_t t = 0; t < COUNT(counts); t++) {
        trajectory path = seeded(t + 1);
        packing_write(root, names[t], &path, 95, counts[t]); /* 95, 105: not in the order of their texts */
    }
    packing_pack(root, "b.icma", &options, &result);
    icma_bundle *bundle = packing_open(root, "b.icma", icma_ops_cpu());
    for (size_t t = 0; t < COUNT(counts); t++) {
        icma_task_info info;
        get_task(bundle, names[t], &info);
        assert_int_equal(info.checkpoint_count, counts[t]);
        for (size_t c = 0; c < counts[t]; c++)
            assert_int_equal(info.checkpoints[c].step, 95 + 10 * c);
        assert_int_equal(result.tasks[t].checkpoints, counts[t]);
        assert_true(result.tasks[t].dw_error_mean <= result.tasks[t].dw_error_max &&
                    result.tasks[t].dw_error_mean < 0.06);
    }
    icma_bundle_close(bundle);
    assert_true(packing_worst_error(root, "b.icma") < 0.1);
    icma_pack_result_free(&result);
}

static void two_signatures(void **state) {
    char *root = *state;
    trajectory wide = seeded(2), other = seeded(3);
    icma_pack_options options = packing_options();
    icma_pack_result result;
    icma_task_info info;
    options.tier = ICMA_TIER_LATENT;
    wide.rank = 4;
    packing_write(root, "narrow", &small_trajectory, 10, 4);
    packing_write(root, "wide", &wide, 10, 3);
    packing_write(root, "both", &other, 10, 3); /* 10, 20, 30 of rank 2; 15, 25 of rank 4 */
    wide.seed = 4;
    packing_write(root, "both", &wide, 15, 2);
    packing_pack(root, "b.icma", &options, &result);
    assert_true(result.groups == 2 && result.original_files == 12);
    icma_bundle *bundle = packing_open(root, "b.icma", icma_ops_cpu());
    assert_int_equal(icma_bundle_group_count(bundle), 2);
    get_task(bundle, "both", &info);
    assert_int_equal(info.checkpoint_count, 5);
    for (size_t c = 0; c < 5; c++)
        assert_int_equal(info.checkpoints[c].step, 10 + 5 * c); /* merged by step */
    assert_true(info.checkpoints[0].group != info.checkpoints[1].group &&
                info.checkpoints[0].group == info.checkpoints[4].group);
    icma_bundle_close(bundle);
    assert_true(packing_worst_error(root, "b.icma") < 0.1);
    for (size_t t = 0; t < 3; t++)
        assert_int_equal(result.tasks[t].checkpoints, t == 0 ? 5 : t == 1 ? 4 : 3);
    icma_pack_result_free(&result);
    options.keep_last_only = true; /* "both" ends in the first group */
    options.overwrite = true;
    packing_pack(root, "b.icma", &options, NULL);
    bundle = packing_open(root, "b.icma", icma_ops_cpu());
    get_task(bundle, "both", &info);
    assert_true(info.checkpoint_count == 1 && info.checkpoints[0].step == 30);
    icma_bundle_close(bundle);
    assert_true(packing_worst_error(root, "b.icma") < 0.1);
}

/* --- conditions ---------------------------------------------------------------------------------------- */

static void conditions_given_and_learned(void **state) {
    char *root = *state;
    enum { SIZE = 16 };
    icma_pack_options options = packing_options();
    icma_pack_result result;
    options.generator = ICMA_CHOOSE_BASIS;
    uint64_t random = 5;
    static const char *const names[] = {"given-bf16", "given-f16", "given-f32",
                                        "given-npy",  "learned",   "zero"};
    static const char *const origins[] = {"task_vector.safetensors",
                                          "task_vector.safetensors",
                                          "task_vector.safetensors",
                                          "task_vector.npy",
                                          "learned",
                                          "learned"};
    float *values[COUNT(names)];
    for (size_t t = 0; t < COUNT(names); t++) {
        trajectory path = seeded(t + 1);
        packing_write(root, names[t], &path, 1, 2);
        values[t] = support_normals(&random, SIZE);
        icma_coarse_round(values[t], SIZE); /* every dtype holds them */
        for (size_t i = 0; t == 5 && i < SIZE; i++)
            values[t][i] = i % 2 ? 0.0F : -0.0F;
    }
    packing_write_vector(root, names[0], ICMA_BF16, values[0], SIZE);
    packing_write_vector(root, names[1], ICMA_F16, values[1], SIZE);
    packing_write_vector(root, names[2], ICMA_F32, values[2], SIZE);
    packing_write_npy(root, names[3], values[3], SIZE);
    packing_write_npy(root, names[5], values[5], SIZE); /* no direction: learned */
    packing_pack(root, "b.icma", &options, &result);
    icma_bundle *bundle = packing_open(root, "b.icma", icma_ops_cpu());
    for (size_t t = 0; t < COUNT(names); t++) {
        icma_task_info info;
        get_task(bundle, names[t], &info);
        assert_string_equal(info.condition_origin, origins[t]);
        assert_int_equal(result.tasks[t].condition_learned, t >= 4);
        if (t < 4) {
            assert_int_equal(info.condition_size, SIZE);
            assert_memory_equal(info.condition, values[t], SIZE * sizeof(float));
        }
        support_free(values[t]);
    }
    icma_bundle_close(bundle);
    assert_true(packing_worst_error(root, "b.icma") < 0.1);
    icma_pack_result_free(&result);
}

/* The message must name `part`; nothing may be left. */
static void must_refuse(const char *root, icma_status expected, const char *part) {
    icma_pack_options options = packing_options();
    icma_pack_result result, zero = {0};
    icma_error error = {0};
    options.generator = ICMA_CHOOSE_BASIS; /* conditions are for something */
    icma_status status = packing_try(root, "b.icma", &options, &result, &error);
    if (status != expected || !(strstr(error.message, part) || strstr(error.file, part)))
        fail_msg("%s, not %s: %s: %s", icma_status_name(status), icma_status_name(expected), error.file,
                 error.message);
    assert_memory_equal(&result, &zero, sizeof zero);
    packing_check_folder(root, NULL);
}

static void conditions_of_two_lengths_are_refused(void **state) {
    char *root = *state;
    const float values[4] = {1, 2, 3, 4};
    trajectory other = seeded(2);
    packing_write(root, "a", &small_trajectory, 1, 2);
    packing_write(root, "b", &other, 1, 2);
    packing_write_npy(root, "a", values, 3);
    packing_write_npy(root, "b", values, 4);
    must_refuse(root, ICMA_E_UNSUPPORTED, "one encoder");
}

static void conditions_of_two_groups_may_differ(void **state) {
    char *root = *state;
    const float values[4] = {1, 2, 3, 4};
    trajectory wide = seeded(2);
    icma_pack_options options = packing_options();
    options.generator = ICMA_CHOOSE_BASIS;
    wide.rank = 3;
    packing_write(root, "a", &small_trajectory, 1, 2);
    packing_write(root, "b", &wide, 1, 2);
    packing_write_npy(root, "a", values, 3);
    packing_write_vector(root, "b", ICMA_F32, values, 4);
    packing_pack(root, "b.icma", &options, NULL);
    assert_true(packing_worst_error(root, "b.icma") < 0.1);
}

static void equal_and_single_number_conditions(void **state) {
    char *root = *state;
    const float values[1] = {3};
    icma_pack_options options = packing_options();
    options.generator = ICMA_CHOOSE_BASIS;
    for (uint64_t t = 1; t <= 3; t++) {
        char name[8] = {(char)('a' + t), 0};
        trajectory path = seeded(t);
        packing_write(root, name, &path, 1, 3);
        packing_write_npy(root, name, values, 1);
    }
    packing_pack(root, "b.icma", &options, NULL);
    assert_true(packing_worst_error(root, "b.icma") < 0.1);
}

static void bad_conditions_are_refused(void **state) {
    char *root = *state;
    const float values[3] = {1, NAN, 3}, infinite[3] = {1, 2, -INFINITY};
    packing_write(root, "a", &small_trajectory, 1, 2);
    packing_write_npy(root, "a", values, 3);
    must_refuse(root, ICMA_E_UNSUPPORTED, "task_vector.npy");
    packing_write_vector(root, "a", ICMA_F32, values, 3); /* comes before the other */
    must_refuse(root, ICMA_E_UNSUPPORTED, "not finite");
    packing_write_vector(root, "a", ICMA_F16, infinite, 3);
    must_refuse(root, ICMA_E_UNSUPPORTED, "not finite");
    packing_write_vector(root, "a", ICMA_I32, NULL, 3);
    must_refuse(root, ICMA_E_UNSUPPORTED, "task_vector.safetensors");
    support_write_text(root, "in/a/task_vector.safetensors", "not one");
    must_refuse(root, ICMA_E_CORRUPT, "task_vector.safetensors");
}

/* --- kinds of tensors ---------------------------------------------------------------------------------- */

enum { KINDS = 18 };

typedef struct zoo {
    support_tensor tensors[KINDS];
    float *values[6];
} zoo;

/* Three pairs in the three dtypes, and everything that is to come back bit for bit. */
static void make_zoo(zoo *z, uint64_t seed) {
    static const uint8_t bytes[64] = {0,    1,    0,    1,    0x80, 0x7F, 0xFF, 0xFE, 3,    1,    4,    1,
                                      5,    9,    2,    6,    0xF0, 0x7F, 0x01, 0xF8, 0x00, 0x80, 0x01, 0x00,
                                      0xFF, 0xFF, 0xFF, 0x7F, 0x80, 7,    7,    7,    1,    2,    3};
    static const float constant[32] = {[0] = 0};
    static float threes[32], odd[32], signs[32];
    const float special[] = {NAN, -NAN, INFINITY, -INFINITY, -0.0F, 0x1p-149F, 1, 2};
    for (size_t i = 0; i < 32; i++) {
        threes[i] = 3;
        odd[i] = special[i % COUNT(special)];
        signs[i] = i % 2 ? 0.0F : -0.0F;
    }
    for (size_t i = 0; i < 6; i++) {
        uint64_t random = 100 + i, other = 200 + 10 * seed + i;
        z->values[i] = support_normals(&random, 32);
        float *more = support_normals(&other, 32);
        for (size_t l = 0; l < 32; l++)
            z->values[i][l] += 0.1F * more[l];
        support_free(more);
    }
    const support_tensor list[KINDS] = {
        {.name = "m1.lora_A.weight", .dtype = ICMA_F32, .rank = 2, .shape = {4, 8}, .values = z->values[0]},
        {.name = "m1.lora_B.weight", .dtype = ICMA_F32, .rank = 2, .shape = {8, 4}, .values = z->values[1]},
        {.name = "m2.lora_A.weight", .dtype = ICMA_F16, .rank = 2, .shape = {4, 8}, .values = z->values[2]},
        {.name = "m2.lora_B.weight", .dtype = ICMA_F16, .rank = 2, .shape = {8, 4}, .values = z->values[3]},
        {.name = "m3.lora_A.weight", .dtype = ICMA_BF16, .rank = 2, .shape = {4, 8}, .values = z->values[4]},
        {.name = "m3.lora_B.weight", .dtype = ICMA_BF16, .rank = 2, .shape = {8, 4}, .values = z->values[5]},
        {.name = "m4.lora_A.weight",
         .dtype = ICMA_F32,
         .rank = 2,
         .shape = {4, 8},
         .values = threes}, /* constant */
        {.name = "m4.lora_B.weight",
         .dtype = ICMA_F32,
         .rank = 2,
         .shape = {8, 4},
         .values = constant}, /* untrained */
        {.name = "m5.lora_A.weight", .dtype = ICMA_F32, .rank = 2, .shape = {4, 8}, .values = odd},
        {.name = "m5.lora_B.weight", .dtype = ICMA_F32, .rank = 2, .shape = {8, 4}, .values = signs},
        {.name = "n.i64", .dtype = ICMA_I64, .rank = 1, .shape = {8}, .bytes = bytes},
        {.name = "n.bool", .dtype = ICMA_BOOL, .rank = 1, .shape = {3}, .bytes = bytes},
        {.name = "n.f64", .dtype = ICMA_F64, .rank = 1, .shape = {4}, .bytes = bytes},
        {.name = "n.f8", .dtype = ICMA_F8_E4M3, .rank = 2, .shape = {5, 7}, .bytes = bytes},
        {.name = "n.c64", .dtype = ICMA_C64, .rank = 1, .shape = {2}, .bytes = bytes},
        {.name = "n.scalar", .dtype = ICMA_F32, .rank = 0, .bytes = bytes + 4},
        {.name = "n.nothing", .dtype = ICMA_F32, .rank = 3, .shape = {2, 0, 5}},
        {.name = "n.whole",
         .dtype = ICMA_F16,
         .rank = 1,
         .shape = {32},
         .values = z->values[0]}, /* a module trained whole */
    };
    memcpy(z->tensors, list, sizeof list);
}

static void free_zoo(zoo *z) {
    for (size_t i = 0; i < COUNT(z->values); i++)
        support_free(z->values[i]);
}

/* Tensor t of both files is equal bit for bit. */
static bool same_tensor(const uint8_t *a, const uint8_t *b, size_t size, size_t t) {
    icma_safetensors s;
    const uint8_t *data;
    icma_error error = {0};
    assert_int_equal(icma_safetensors_view(a, size, &s, &data, &error), ICMA_OK);
    bool same = memcmp(data + s.tensors[t].begin, b + (data - a) + s.tensors[t].begin,
                       (size_t)s.tensors[t].size) == 0;
    icma_safetensors_free(&s);
    return same;
}

static void every_kind_of_tensor_at(const char *root, icma_tier tier, icma_generator_choice generator) {
    icma_pack_options options = packing_options();
    enum { CHECKPOINTS = 4 };
    options.tier = tier;
    options.generator = generator;
    options.bound.value = 0.06F;
    options.overwrite = true;
    for (size_t i = 0; i < CHECKPOINTS; i++) {
        zoo z;
        make_zoo(&z, i);
        packing_write_tensors(root, "zoo", 1 + i, z.tensors, KINDS);
        free_zoo(&z);
    }
    packing_pack(root, "b.icma", &options, NULL);
    icma_bundle *bundle = packing_open(root, "b.icma", icma_ops_cpu());
    for (size_t i = 0; i < CHECKPOINTS; i++) {
        icma_decoded decoded;
        size_t size;
        uint8_t *original = packing_original(root, "zoo", 1 + i, &size);
        packing_decode(bundle, "zoo", i, &decoded);
        assert_int_equal(decoded.size, size);
        assert_true(packing_error(original, decoded.data, size) < 0.05);
        for (size_t t = 6; t < KINDS; t++)
            if (!same_tensor(original, decoded.data, size, t))
                fail_msg("tensor %zu of checkpoint %zu is not the same bits", t, i);
        free(original);
        icma_decoded_free(&decoded);
    }
    icma_bundle_close(bundle);
}

static void every_kind_of_tensor(void **state) {
    every_kind_of_tensor_at(*state, ICMA_TIER_LATENT, ICMA_CHOOSE_AUTO);
    for (int generator = ICMA_CHOOSE_AUTO; generator <= ICMA_CHOOSE_NONE; generator++)
        every_kind_of_tensor_at(*state, ICMA_TIER_BOUNDED, (icma_generator_choice)generator);
}

/* In one checkpoint only: an untrained B (+0 and -0), a factor that is not finite. The others are modelled,
 * these come back bit for bit. */
static void exceptions_survive(void **state) {
    char *root = *state;
    enum { CHECKPOINTS = 5 };
    icma_pack_options options = packing_options();
    static float zero[32], negative[32], odd[32];
    for (size_t i = 0; i < 32; i++) {
        negative[i] = -0.0F;
        odd[i] = i == 17 ? INFINITY : i == 30 ? NAN : 0.5F * (float)i;
    }
    for (size_t i = 0; i < CHECKPOINTS; i++) {
        zoo z;
        make_zoo(&z, i);
        z.tensors[1].values = i == 0 ? zero : z.tensors[1].values;
        z.tensors[3].values = i == 1 ? negative : z.tensors[3].values;
        z.tensors[0].values = i == 2 ? odd : z.tensors[0].values;
        z.tensors[5].values = i == 4 ? odd : z.tensors[5].values;
        packing_write_tensors(root, "odd", 1 + i, z.tensors, 6);
        free_zoo(&z);
    }
    static const int kept[CHECKPOINTS] = {1, 3, 0, -1, 5};
    options.bound = (icma_bound){ICMA_BOUND_REL, 0.05F}; /* tensors each for itself: a pair would keep both */
    for (int tier = ICMA_TIER_GENERATE; tier <= ICMA_TIER_BOUNDED; tier++) {
        options.tier = tier;
        options.overwrite = true;
        packing_pack(root, "b.icma", &options, NULL);
        icma_bundle *bundle = packing_open(root, "b.icma", icma_ops_cpu());
        for (size_t i = 0; i < CHECKPOINTS; i++) {
            icma_decoded decoded;
            size_t size;
            uint8_t *original = packing_original(root, "odd", 1 + i, &size);
            packing_decode(bundle, "odd", i, &decoded);
            assert_true(packing_error(original, decoded.data, size) <
                        (tier == ICMA_TIER_GENERATE ? 0.5 : 0.0501));
            for (size_t t = 0; t < 6; t++)
                if (same_tensor(original, decoded.data, size, t) != ((int)t == kept[i]))
                    fail_msg("tensor %zu of checkpoint %zu is %s", t, i,
                             (int)t == kept[i] ? "not the same bits" : "not modelled");
            free(original);
            icma_decoded_free(&decoded);
        }
        icma_bundle_close(bundle);
    }
}

/* Nothing to model: no generator, every file bit for bit, nothing to sample. */
static void adapters_without_anything_to_model(void **state) {
    char *root = *state;
    icma_pack_options options = packing_options();
    icma_pack_result result;
    static const float zeros[32], values[3] = {1, 2, 3};
    const support_tensor tensors[] = {
        {.name = "m.lora_A.weight", .dtype = ICMA_F32, .rank = 2, .shape = {4, 8}, .values = zeros},
        {.name = "m.lora_B.weight", .dtype = ICMA_F32, .rank = 2, .shape = {8, 4}, .values = zeros},
    };
    packing_write_tensors(root, "a", 1, tensors, 2);
    packing_write_tensors(root, "b", 1, tensors, 2);
    packing_write_npy(root, "b", values, 3);
    packing_pack(root, "b.icma", &options, &result);
    assert_true(!result.has_generator && result.components == 0);
    icma_pack_result_free(&result);
    assert_true(packing_worst_error(root, "b.icma") == 0);
    icma_bundle *bundle = packing_open(root, "b.icma", icma_ops_cpu());
    icma_task_info info;
    icma_decoded decoded;
    icma_error error = {0};
    get_task(bundle, "b", &info);
    assert_true(info.condition_size == 3 && info.checkpoints[0].tier == ICMA_TIER_VERBATIM);
    get_task(bundle, "a", &info);
    assert_string_equal(info.condition_origin, "none");
    assert_int_equal(icma_bundle_sample(bundle, 0, 1, &decoded, &error), ICMA_E_UNSUPPORTED);
    assert_null(decoded.data);
    icma_bundle_close(bundle);
}

/* Large, tiny and denormal weights: standardised, or verbatim where they cannot be. */
static void weights_of_any_size(void **state) {
    char *root = *state;
    static const int exponents[] = {-145, -130, -100, -40, 40, 100, 125};
    icma_pack_options options = packing_options();
    for (size_t i = 0; i < 3; i++) {
        support_tensor tensors[2 * COUNT(exponents)];
        char names[2 * COUNT(exponents)][32];
        float *values[2 * COUNT(exponents)];
        for (size_t t = 0; t < COUNT(tensors); t++) {
            uint64_t random = 10 * t, other = 1000 + 10 * t + i;
            float *more = support_normals(&other, 32);
            values[t] = support_normals(&random, 32);
            for (size_t l = 0; l < 32; l++)
                values[t][l] = ldexpf(values[t][l] + 0.1F * more[l], exponents[t / 2]);
            support_free(more);
            snprintf(names[t], sizeof names[t], "m%zu.lora_%c.weight", t / 2, t % 2 ? 'B' : 'A');
            tensors[t] =
                (support_tensor){.name = names[t], .dtype = ICMA_F32, .rank = 2, .values = values[t]};
            tensors[t].shape[t % 2] = 4;
            tensors[t].shape[!(t % 2)] = 8;
        }
        packing_write_tensors(root, "sizes", 1 + i, tensors, COUNT(tensors));
        for (size_t t = 0; t < COUNT(tensors); t++)
            support_free(values[t]);
    }
    for (int tier = ICMA_TIER_LATENT; tier <= ICMA_TIER_BOUNDED; tier++) {
        options.tier = tier;
        options.overwrite = true;
        packing_pack(root, "b.icma", &options, NULL);
        assert_true(packing_worst_error(root, "b.icma") < 0.1);
    }
}

/* Own headers (metadata, order of the keys), side files. */
static void headers_and_side_files_survive(void **state) {
    char *root = *state;
#define A_RANGE "\"m.lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[2,8],\"data_offsets\":[0,64]}"
#define B_RANGE "\"shape\":[8,2],\"data_offsets\":[64,128]"
    static const char *const headers[] = {
        ("{\"__metadata__\":{\"format\":\"pt\"}," A_RANGE ",\"m.lora_B.weight\":{\"dtype\":\"F32\"," B_RANGE
         "}}"),
        ("{" A_RANGE ",\"m.lora_B.weight\":{" B_RANGE
         ",\"dtype\":\"F32\"},\"__metadata__\":{\"step\":\"2\"}}"),
        ("{\"m.lora_B.weight\":{\"dtype\":\"F32\"," B_RANGE "}, " A_RANGE "}        "),
    };
    icma_pack_options options = packing_options();
    for (size_t i = 0; i < COUNT(headers); i++) {
        char path[100], config[100];
        uint64_t random = 7;
        float *values = support_normals(&random, 32);
        values[3] += 0.2F * (float)i;
        snprintf(path, sizeof path, "in/t/checkpoint-%zu/adapter_model.safetensors", i);
        support_write_safetensors(root, path, headers[i], values, 128);
        snprintf(path, sizeof path, "in/t/checkpoint-%zu/adapter_config.json", i);
        snprintf(config, sizeof config, "{\"r\": 2, \"lora_alpha\": %d}\n", i == 2 ? 8 : 4);
        support_write_text(root, path, config);
        snprintf(path, sizeof path, "in/t/checkpoint-%zu/README.md", i);
        if (i == 1)
            support_write_text(root, path, "");
        support_free(values);
    }
    packing_pack(root, "b.icma", &options, NULL);
    assert_true(packing_worst_error(root, "b.icma") < (double)options.bound.value); /* compares headers, too */
    icma_bundle *bundle = packing_open(root, "b.icma", icma_ops_cpu());
    for (size_t i = 0; i < COUNT(headers); i++) {
        icma_decoded decoded;
        packing_decode(bundle, "t", i, &decoded);
        assert_int_equal(decoded.file_count, i == 1 ? 2 : 1);
        const icma_decoded_file *config = &decoded.files[i == 1];
        assert_string_equal(config->name, "adapter_config.json");
        assert_non_null(strstr((const char *)config->data, i == 2 ? "8}" : "4}"));
        if (i == 1) {
            assert_string_equal(decoded.files[0].name, "README.md");
            assert_int_equal(decoded.files[0].size, 0);
        }
        icma_decoded_free(&decoded);
    }
    icma_bundle_close(bundle);
}

/* --- options ------------------------------------------------------------------------------------------- */

static void write_three(const char *root, size_t count) {
    static const char *const names[] = {"a", "b", "c"};
    for (uint64_t t = 0; t < 3; t++) {
        trajectory path = seeded(t + 1);
        packing_write(root, names[t], &path, 1, count);
    }
}

static void only_the_last_is_kept(void **state) {
    char *root = *state;
    icma_pack_options options = packing_options();
    icma_pack_result result;
    options.tier = ICMA_TIER_LATENT;
    write_three(root, 4);
    packing_pack(root, "all.icma", &options, NULL);
    options.keep_last_only = true;
    packing_pack(root, "last.icma", &options, &result);
    assert_true(result.original_files == 3 && result.tasks[0].checkpoints == 1);
    icma_pack_result_free(&result);
    icma_bundle *all = packing_open(root, "all.icma", icma_ops_cpu()),
                *last = packing_open(root, "last.icma", icma_ops_cpu());
    assert_true(icma_bundle_bytes(last).total < icma_bundle_bytes(all).total);
    for (size_t t = 0; t < 3; t++) {
        icma_task_info info;
        icma_decoded one, two;
        get_task(last, icma_bundle_task_name(last, t), &info);
        assert_true(info.checkpoint_count == 1 && info.checkpoints[0].step == 31);
        packing_decode(last, info.name, 0, &one);
        packing_decode(all, info.name, 3, &two); /* trained with all of them: the very same */
        assert_int_equal(one.size, two.size);
        assert_memory_equal(one.data, two.data, one.size);
        icma_decoded_free(&one);
        icma_decoded_free(&two);
    }
    icma_bundle_close(all);
    icma_bundle_close(last);
}

static void only_the_last_are_trained_with(void **state) {
    char *root = *state;
    icma_pack_options options = packing_options();
    icma_pack_result result;
    write_three(root, 4);
    options.train_last = 2;
    packing_pack(root, "b.icma", &options, &result);
    assert_int_equal(result.original_files, 6);
    icma_pack_result_free(&result);
    icma_bundle *bundle = packing_open(root, "b.icma", icma_ops_cpu());
    icma_task_info info;
    get_task(bundle, "a", &info);
    assert_true(info.checkpoint_count == 2 && info.checkpoints[0].step == 21);
    icma_bundle_close(bundle);
}

static void generated_checkpoints_are_one_per_task(void **state) {
    char *root = *state;
    icma_pack_options options = packing_options();
    write_three(root, 4);
    options.tier = ICMA_TIER_GENERATE;
    packing_pack(root, "b.icma", &options, NULL);
    icma_bundle *bundle = packing_open(root, "b.icma", icma_ops_cpu());
    icma_decoded first, other;
    packing_decode(bundle, "a", 0, &first);
    for (size_t c = 1; c < 4; c++) {
        packing_decode(bundle, "a", c, &other);
        assert_memory_equal(first.data, other.data, first.size);
        icma_decoded_free(&other);
    }
    packing_decode(bundle, "b", 0, &other);
    assert_true(memcmp(first.data, other.data, first.size) != 0);
    icma_decoded_free(&other);
    icma_decoded_free(&first);
    icma_bundle_close(bundle);
    assert_true(packing_worst_error(root, "b.icma") < 0.5);
}

static void unusual_options(void **state) {
    char *root = *state;
    write_three(root, 3);
    for (int which = 0; which < 6; which++) {
        icma_pack_options options = packing_options();
        icma_error error = {0};
        options.tier = ICMA_TIER_LATENT;
        options.overwrite = true;
        if (which == 0)
            options.latent_dim = 0;
        if (which == 1) {
            options.generator = ICMA_CHOOSE_BASIS; /* alone, the preset trains the paper's network for hours */
            assert_int_equal(icma_pack_preset("paper", &options, &error), ICMA_OK);
        }
        if (which == 2)
            options.components = 1000; /* there are nine */
        if (which == 3)
            options.components = 1;
        if (which == 4) {
            options.explain = 1e-9;
            options.max_error = 100;
        }
        if (which == 5)
            options.batch = 1;
        packing_pack(root, "b.icma", &options, NULL);
        double worst = packing_worst_error(root, "b.icma");
        if (!(worst < (which == 3 || which == 4 ? 1 : 0.1)))
            fail_msg("case %d: error %g", which, worst);
    }
    icma_pack_options options;
    icma_error error = {0};
    assert_int_equal(icma_pack_preset("papers", &options, &error), ICMA_E_USAGE);
}

/* Corrections catch what training does not learn; where it runs away beyond all numbers, that is said. */
static void training_that_runs_away(void **state) {
    char *root = *state;
    icma_pack_options options = packing_options();
    icma_pack_result result;
    icma_error error = {0};
    write_three(root, 3);
    options.tier = ICMA_TIER_LATENT;
    options.learning_rate = 0.3;
    packing_pack(root, "b.icma", &options, NULL);
    assert_true(packing_worst_error(root, "b.icma") < 0.1);
    options.learning_rate = 1e9;
    options.overwrite = true;
    assert_int_equal(packing_try(root, "b.icma", &options, &result, &error), ICMA_E_USAGE);
    assert_non_null(strstr(error.message, "learning rate"));
    packing_check_folder(root, "b.icma");
    assert_true(packing_worst_error(root, "b.icma") < 0.1); /* the old one is still there */
}

static void existing_outputs_stay(void **state) {
    char *root = *state;
    icma_pack_options options = packing_options();
    icma_pack_result result;
    icma_error error = {0};
    size_t size;
    packing_write(root, "cat", &small_trajectory, 1, 2);
    support_write_text(root, "b.icma", "mine");
    assert_int_equal(packing_try(root, "b.icma", &options, &result, &error), ICMA_E_EXISTS);
    uint8_t *bytes = packing_read(root, "b.icma", &size);
    assert_true(size == 4 && memcmp(bytes, "mine", 4) == 0);
    free(bytes);
    options.overwrite = true;
    packing_pack(root, "b.icma", &options, NULL);
    assert_true(packing_worst_error(root, "b.icma") < 0.1);
    packing_check_folder(root, "b.icma");
}

/* --- the same bytes ------------------------------------------------------------------------------------ */

static void threads_and_kernels_do_not_matter(void **state) {
    char *root = *state;
    icma_pack_options options = packing_options();
    trajectory large = {
        .seed = 1, .modules = 2, .rank = 8, .in = 300, .out = 200, .dtype = ICMA_F32, .noise = 0.002};
    options.tier = ICMA_TIER_LATENT;
    write_three(root, 5);
    packing_write(root, "large", &large, 1, 70); /* enough for several tiles and threads */
    packing_pack(root, "one.icma", &options, NULL);
    options.threads = 2;
    packing_pack(root, "two.icma", &options, NULL);
    options.threads = 3;
    options.scalar = true;
    packing_pack(root, "scalar.icma", &options, NULL);
    assert_true(packing_same_files(root, "one.icma", "two.icma"));
    assert_true(packing_same_files(root, "one.icma", "scalar.icma"));
    options.seed = 2; /* it can differ */
    packing_pack(root, "other.icma", &options, NULL);
    assert_false(packing_same_files(root, "one.icma", "other.icma"));
    icma_bundle *fast = packing_open(root, "one.icma", icma_ops_cpu()),
                *plain = packing_open(root, "one.icma", icma_ops_reference());
    for (size_t c = 0; c < 70; c += 23) {
        icma_decoded a, b;
        packing_decode(fast, "large", c, &a);
        packing_decode(plain, "large", c, &b);
        assert_memory_equal(a.data, b.data, a.size);
        icma_decoded_free(&a);
        icma_decoded_free(&b);
    }
    icma_bundle_close(fast);
    icma_bundle_close(plain);
}

static void samples_follow_their_seed(void **state) {
    char *root = *state;
    icma_pack_options options = icma_pack_defaults();
    options.tier = ICMA_TIER_LATENT;
    write_three(root, 8);
    packing_pack(root, "b.icma", &options, NULL);
    icma_bundle *fast = packing_open(root, "b.icma", icma_ops_cpu()),
                *plain = packing_open(root, "b.icma", icma_ops_reference());
    icma_decoded decoded[4];
    icma_error error = {0};
    assert_int_equal(icma_bundle_sample(fast, 1, 42, &decoded[0], &error), ICMA_OK);
    assert_int_equal(icma_bundle_sample(fast, 1, 43, &decoded[1], &error), ICMA_OK);
    assert_int_equal(icma_bundle_sample(fast, 1, 42, &decoded[2], &error), ICMA_OK);
    assert_int_equal(icma_bundle_sample(plain, 1, 42, &decoded[3], &error), ICMA_OK);
    assert_memory_equal(decoded[0].data, decoded[2].data, decoded[0].size);
    assert_memory_equal(decoded[0].data, decoded[3].data, decoded[0].size);
    assert_int_equal(decoded[0].size, decoded[1].size);
    assert_true(memcmp(decoded[0].data, decoded[1].data, decoded[0].size) != 0);
    size_t size; /* near the task's, far from another's */
    uint8_t *own = packing_original(root, "b", 41, &size), *other = packing_original(root, "a", 41, &size);
    assert_true(packing_error(own, decoded[0].data, size) < 0.3);
    assert_true(packing_error(other, decoded[0].data, size) > 0.7);
    free(own);
    free(other);
    for (size_t i = 0; i < 4; i++)
        icma_decoded_free(&decoded[i]);
    icma_bundle_close(fast);
    icma_bundle_close(plain);
}

/* --- what is learned ----------------------------------------------------------------------------------- */

/* Latents must tell the checkpoints of a task apart. The same archive without them must not, or this would
 * show nothing. */
static void the_structure_within_tasks_is_kept(void **state) {
    char *root = *state;
    icma_pack_options options = icma_pack_defaults();
    icma_pack_result kept, generated;
    options.tier = ICMA_TIER_LATENT;
    options.threads = 2;
    write_three(root, 20);
    packing_pack(root, "latent.icma", &options, &kept);
    options.tier = ICMA_TIER_GENERATE;
    packing_pack(root, "generate.icma", &options, &generated);
    print_message("           explained within tasks: %.3f with latents, %.3f without\n",
                  kept.within_task_explained, generated.within_task_explained);
    assert_true(kept.within_task_explained >= 0.6);
    assert_true(generated.within_task_explained < 0.1);
    for (size_t t = 0; t < 3; t++) {
        print_message("           task %s: %zu active latents, dW error %.4f and %.4f\n", kept.tasks[t].name,
                      kept.tasks[t].latents_active, kept.tasks[t].dw_error_mean,
                      generated.tasks[t].dw_error_mean);
        assert_true(kept.tasks[t].latents_active >= 1);
        assert_true(kept.tasks[t].dw_error_mean < 0.06 &&
                    generated.tasks[t].dw_error_mean > 2 * kept.tasks[t].dw_error_mean);
    }
    icma_pack_result_free(&kept);
    icma_pack_result_free(&generated);
}

/* What the result says is what the files say. */
static void tells_the_truth(const char *root, icma_tier tier, icma_generator_choice generator) {
    icma_pack_options options = packing_options();
    icma_pack_result result;
    options.tier = tier;
    options.generator = generator;
    options.overwrite = true;
    packing_pack(root, "b.icma", &options, &result);
    icma_bundle *bundle = packing_open(root, "b.icma", icma_ops_cpu());
    for (size_t t = 0; t < 3; t++) {
        icma_task_info info;
        get_task(bundle, result.tasks[t].name, &info);
        double square = 0, mean = 0, most = 0;
        for (size_t c = 0; c < info.checkpoint_count; c++) {
            icma_decoded decoded;
            size_t size;
            uint8_t *original = packing_original(root, info.name, info.checkpoints[c].step, &size);
            packing_decode(bundle, info.name, c, &decoded);
            double error = packing_error(original, decoded.data, size);
            assert_true(info.checkpoints[c].relative_error >= error &&
                        info.checkpoints[c].relative_error <= error * 1.01);
            assert_true(info.checkpoints[c].hash == icma_hash(decoded.data, decoded.size));
            square += error * error;
            mean += info.checkpoints[c].dw_error_mean;
            most = fmax(most, info.checkpoints[c].dw_error_max);
            icma_decoded_free(&decoded);
            free(original);
        }
        assert_true(fabs(result.tasks[t].relative_error / sqrt(square / 6) - 1) < 0.02);
        assert_true(fabs(result.tasks[t].dw_error_mean / (mean / 6) - 1) < 0.01);
        assert_true(fabs(result.tasks[t].dw_error_max / most - 1) < 0.01);
    }
    icma_bytes bytes = icma_bundle_bytes(bundle);
    assert_memory_equal(&bytes, &result.bytes, sizeof bytes);
    icma_bundle_close(bundle);
    icma_pack_result_free(&result);
}

static void the_result_tells_the_truth(void **state) {
    write_three(*state, 6);
    tells_the_truth(*state, ICMA_TIER_LATENT, ICMA_CHOOSE_AUTO);
    tells_the_truth(*state, ICMA_TIER_BOUNDED, ICMA_CHOOSE_BASIS);
    tells_the_truth(*state, ICMA_TIER_BOUNDED, ICMA_CHOOSE_NONE);
}

/* --- bounds -------------------------------------------------------------------------------------------- */

static const icma_bound every_bound[] = {
    {ICMA_BOUND_DW, 0.1F},   {ICMA_BOUND_DW, 0.01F},  {ICMA_BOUND_REL, 0.2F},
    {ICMA_BOUND_REL, 1e-4F}, {ICMA_BOUND_ABS, 0.05F}, {ICMA_BOUND_ABS, 1e-3F},
};

/* Every checkpoint has the tier and the bound that were asked for, and holds it by the definition; what is
 * stored of its error is true. Returns the largest error beside the bound. */
static double check_bounded(const char *root, const char *name, icma_bound bound) {
    icma_bundle *bundle = packing_open(root, name, icma_ops_cpu());
    double worst = 0;
    for (size_t t = 0; t < icma_bundle_task_count(bundle); t++) {
        icma_task_info info;
        get_task(bundle, icma_bundle_task_name(bundle, t), &info);
        for (size_t c = 0; c < info.checkpoint_count; c++) {
            const icma_checkpoint_info *p = &info.checkpoints[c];
            icma_decoded decoded;
            size_t size;
            uint8_t *original = packing_original(root, info.name, p->step, &size);
            packing_decode(bundle, info.name, c, &decoded);
            assert_int_equal(decoded.size, size);
            assert_true(p->tier == ICMA_TIER_BOUNDED && p->bound.kind == bound.kind &&
                        p->bound.value == bound.value);
            double error = packing_bound_error(original, decoded.data, size, bound.kind);
            if (!packing_within(error, bound))
                fail_msg("%s, checkpoint %zu: %s %g, but it is %g", info.name, c, icma_bound_name(bound.kind),
                         (double)bound.value, error);
            double dw = packing_bound_error(original, decoded.data, size, ICMA_BOUND_DW);
            assert_true(dw <= (double)p->dw_error_max * (1 + 1e-7) && (double)p->dw_error_max <= dw * 1.01);
            worst = fmax(worst, error / (double)bound.value);
            free(original);
            icma_decoded_free(&decoded);
        }
    }
    icma_bundle_close(bundle);
    return worst;
}

static void bounds_hold_in_every_checkpoint(void **state) {
    char *root = *state;
    static const icma_dtype dtypes[] = {ICMA_F32, ICMA_F16, ICMA_BF16};
    for (uint64_t t = 0; t < 3; t++) {
        trajectory path = seeded(t + 1);
        path.dtype = dtypes[t]; /* three groups */
        packing_write(root, t == 0 ? "a" : t == 1 ? "b" : "c", &path, 1, 4);
    }
    for (size_t b = 0; b < COUNT(every_bound); b++)
        for (int generator = ICMA_CHOOSE_AUTO; generator <= ICMA_CHOOSE_NONE; generator++) {
            icma_pack_options options = packing_options();
            icma_pack_result result;
            options.epochs = 3;
            options.bound = every_bound[b];
            options.generator = (icma_generator_choice)generator;
            options.overwrite = true;
            packing_pack(root, "b.icma", &options, &result);
            double worst = check_bounded(root, "b.icma", every_bound[b]);
            assert_true(worst > 0.5); /* and no bits were spent for nothing */
            assert_true(generator == ICMA_CHOOSE_AUTO ||
                        result.has_generator == (generator == ICMA_CHOOSE_BASIS));
            assert_true(
                generator != ICMA_CHOOSE_NONE ||
                (result.components == 0 && result.bytes.residuals > 0 && result.bytes.latents < 2000));
            icma_pack_result_free(&result);
        }
}

static void bounds_hold_in_the_last_that_is_kept(void **state) {
    char *root = *state;
    write_three(root, 5);
    for (int generator = ICMA_CHOOSE_AUTO; generator <= ICMA_CHOOSE_NONE; generator++)
        for (size_t b = 0; b < COUNT(every_bound); b += 2) {
            icma_pack_options options = packing_options();
            icma_task_info info;
            options.epochs = 3;
            options.bound = every_bound[b];
            options.generator = (icma_generator_choice)generator;
            options.keep_last_only = true;
            options.overwrite = true;
            packing_pack(root, "b.icma", &options, NULL);
            assert_true(check_bounded(root, "b.icma", every_bound[b]) > 0);
            icma_bundle *bundle = packing_open(root, "b.icma", icma_ops_cpu());
            get_task(bundle, "b", &info);
            assert_true(info.checkpoint_count == 1 && info.checkpoints[0].step == 41);
            icma_bundle_close(bundle);
        }
}

static void bounded_archives_are_the_same_bytes(void **state) {
    char *root = *state;
    trajectory large = {
        .seed = 9, .modules = 3, .rank = 8, .in = 90, .out = 70, .dtype = ICMA_BF16, .noise = 0.01};
    write_three(root, 4);
    packing_write(root, "large", &large, 1, 12);
    for (int generator = ICMA_CHOOSE_BASIS; generator <= ICMA_CHOOSE_NONE; generator++)
        for (size_t b = 1; b < COUNT(every_bound); b += 2) {
            icma_pack_options options = packing_options();
            options.epochs = 3;
            options.bound = every_bound[b];
            options.generator = (icma_generator_choice)generator;
            options.overwrite = true;
            packing_pack(root, "one.icma", &options, NULL);
            for (int threads = 2; threads <= 4; threads++) {
                options.threads = threads < 4 ? threads : 2;
                options.scalar = threads == 4;
                packing_pack(root, "other.icma", &options, NULL);
                assert_true(packing_same_files(root, "one.icma", "other.icma"));
            }
            icma_bundle *fast = packing_open(root, "one.icma", icma_ops_cpu()),
                        *plain = packing_open(root, "one.icma", icma_ops_reference());
            for (size_t c = 0; c < 12; c += 5) {
                icma_decoded one, two;
                packing_decode(fast, "large", c, &one);
                packing_decode(plain, "large", c, &two);
                assert_memory_equal(one.data, two.data, one.size);
                icma_decoded_free(&one);
                icma_decoded_free(&two);
            }
            icma_bundle_close(fast);
            icma_bundle_close(plain);
        }
}

/* Adapters that share nothing: a basis would only hold them once more. */
static void unrelated_adapters_take_no_rows(void **state) {
    char *root = *state;
    icma_pack_options options = packing_options();
    icma_pack_result result;
    for (uint64_t t = 0; t < 5; t++) {
        char name[8] = {(char)('a' + t), 0};
        trajectory path = {
            .seed = t + 1, .modules = 2, .rank = 8, .in = 256, .out = 192, .dtype = ICMA_BF16, .noise = 0};
        packing_write(root, name, &path, 1, 1);
    }
    packing_pack(root, "b.icma", &options, &result);
    assert_true(result.components == 0 && !result.has_generator && result.active_latents == 0);
    check_bounded(root, "b.icma", options.bound);
    /* About four bits a weight at dw 0.1, and little else. */
    double bits = 8 * (double)result.bytes.residuals / (double)result.original_parameters;
    print_message("           %.2f bits a weight\n", bits);
    assert_true(bits < 4.2 && bits > 3.9);
    icma_pack_result_free(&result);
}

/* Five series of twenty checkpoints that are nearly one: rows hold what they share, at a fraction of what
 * they take each on its own. */
static void series_of_checkpoints_take_rows(void **state) {
    char *root = *state;
    icma_pack_options options = packing_options();
    icma_pack_result with, without;
    for (uint64_t t = 0; t < 5; t++) {
        char name[8] = {(char)('a' + t), 0};
        trajectory path = {
            .seed = t + 1, .modules = 4, .rank = 4, .in = 64, .out = 64, .dtype = ICMA_BF16, .noise = 0.002};
        packing_write(root, name, &path, 1, 20);
    }
    options.threads = 2;
    packing_pack(root, "with.icma", &options, &with);
    check_bounded(root, "with.icma", options.bound);
    options.generator = ICMA_CHOOSE_NONE;
    packing_pack(root, "without.icma", &options, &without);
    check_bounded(root, "without.icma", options.bound);
    print_message("           %zu rows: %llu bytes; without %llu\n", with.components,
                  (unsigned long long)with.bytes.total, (unsigned long long)without.bytes.total);
    assert_true(with.has_generator && with.components >= 10); /* five tasks, two roles */
    assert_true(!without.has_generator && with.bytes.total * 4 < without.bytes.total);
    icma_pack_result_free(&with);
    icma_pack_result_free(&without);
}

static void bounds_that_bound_nothing_are_refused(void **state) {
    char *root = *state;
    const icma_bound bad[] = {{ICMA_BOUND_NONE, 0.1F},
                              {ICMA_BOUND_ABS + 1, 0.1F},
                              {ICMA_BOUND_DW, 0},
                              {ICMA_BOUND_REL, -1},
                              {ICMA_BOUND_ABS, NAN}};
    packing_write(root, "a", &small_trajectory, 1, 2);
    for (size_t b = 0; b < COUNT(bad); b++) {
        icma_pack_options options = packing_options();
        icma_pack_result result;
        icma_error error = {0};
        options.bound = bad[b];
        assert_int_equal(packing_try(root, "b.icma", &options, &result, &error), ICMA_E_USAGE);
        packing_check_folder(root, NULL);
    }
    for (int tier = ICMA_TIER_GENERATE; tier <= ICMA_TIER_LATENT; tier++) {
        icma_pack_options options = packing_options();
        icma_pack_result result;
        icma_error error = {0};
        options.tier = (icma_tier)tier;
        options.generator = ICMA_CHOOSE_NONE;
        assert_int_equal(packing_try(root, "b.icma", &options, &result, &error), ICMA_E_USAGE);
        packing_check_folder(root, NULL);
    }
}

/* A bound that no integers reach: kept bit for bit, and still said to be bounded. */
static void bounds_out_of_reach_keep_everything(void **state) {
    char *root = *state;
    write_three(root, 3);
    for (int generator = ICMA_CHOOSE_BASIS; generator <= ICMA_CHOOSE_NONE; generator++) {
        icma_pack_options options = packing_options();
        options.bound = (icma_bound){ICMA_BOUND_REL, 1e-12F};
        options.generator = (icma_generator_choice)generator;
        options.overwrite = true;
        packing_pack(root, "b.icma", &options, NULL);
        assert_true(check_bounded(root, "b.icma", options.bound) == 0);
    }
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_root, drop_root)
    const struct CMUnitTest tests[] = {
        TEST(one_checkpoint),
        TEST(different_numbers_of_checkpoints),
        TEST(two_signatures),
        TEST(conditions_given_and_learned),
        TEST(conditions_of_two_lengths_are_refused),
        TEST(conditions_of_two_groups_may_differ),
        TEST(equal_and_single_number_conditions),
        TEST(bad_conditions_are_refused),
        TEST(every_kind_of_tensor),
        TEST(exceptions_survive),
        TEST(adapters_without_anything_to_model),
        TEST(weights_of_any_size),
        TEST(headers_and_side_files_survive),
        TEST(only_the_last_is_kept),
        TEST(only_the_last_are_trained_with),
        TEST(generated_checkpoints_are_one_per_task),
        TEST(unusual_options),
        TEST(training_that_runs_away),
        TEST(existing_outputs_stay),
        TEST(threads_and_kernels_do_not_matter),
        TEST(samples_follow_their_seed),
        TEST(the_structure_within_tasks_is_kept),
        TEST(the_result_tells_the_truth),
        TEST(bounds_hold_in_every_checkpoint),
        TEST(bounds_hold_in_the_last_that_is_kept),
        TEST(bounded_archives_are_the_same_bytes),
        TEST(unrelated_adapters_take_no_rows),
        TEST(series_of_checkpoints_take_rows),
        TEST(bounds_that_bound_nothing_are_refused),
        TEST(bounds_out_of_reach_keep_everything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
