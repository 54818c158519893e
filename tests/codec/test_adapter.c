/* SPDX-License-Identifier: Apache-2.0 */
#include "adapter.h"
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void find(const support_tensor *tensors, size_t count, support_image *image, icma_pairs *pairs) {
    icma_error error = {0};
    support_build_image(tensors, count, image);
    assert_int_equal(icma_pairs_find(&image->tensors, pairs, &error), ICMA_OK);
}

static void free_both(support_image *image, icma_pairs *pairs) {
    icma_pairs_free(pairs);
    support_free_image(image);
}

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Every style: a pair of (3, 5) and (7, 3), and the module it should get. */
static void every_naming_style_pairs_up(void **state) {
    (void)state;
    static const struct {
        const char *a, *b, *module;
    } cases[] = {
        {"base_model.model.layers.0.q_proj.lora_A.weight", "base_model.model.layers.0.q_proj.lora_B.weight",
         "base_model.model.layers.0.q_proj"},
        {"m.lora_A.default.weight", "m.lora_B.default.weight", "m"},
        {"m.lora_A.weight.weight", "m.lora_B.weight.weight", "m"},
        {"m.lora_embedding_A", "m.lora_embedding_B", "m"},
        {"m.lora_embedding_A.default", "m.lora_embedding_B.default", "m"},
        {"lora_unet_down_0_to_q.lora_down.weight", "lora_unet_down_0_to_q.lora_up.weight",
         "lora_unet_down_0_to_q"},
        {"unet.attn.to_q.lora.down.weight", "unet.attn.to_q.lora.up.weight", "unet.attn.to_q"},
        {"unet.processor.to_q_lora.down.weight", "unet.processor.to_q_lora.up.weight", "unet.processor.to_q"},
        {"text.q_proj.lora_linear_layer.down.weight", "text.q_proj.lora_linear_layer.up.weight",
         "text.q_proj"},
        {"lora_A.weight", "lora_B.weight", ""},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        support_image image;
        icma_pairs pairs;
        const support_tensor tensors[] = {
            {.name = cases[i].b, .dtype = ICMA_F16, .rank = 2, .shape = {7, 3}},
            {.name = cases[i].a, .dtype = ICMA_F32, .rank = 2, .shape = {3, 5}}};
        find(tensors, 2, &image, &pairs);
        if (pairs.count != 1)
            fail_msg("no pair: %s", cases[i].a);
        assert_string_equal(pairs.list[0].module, cases[i].module);
        assert_int_equal(pairs.list[0].a, 1);
        assert_int_equal(pairs.list[0].b, 0);
        assert_int_equal(pairs.list[0].rank, 3);
        assert_int_equal(pairs.list[0].rows, 7);
        assert_int_equal(pairs.list[0].columns, 5);
        assert_int_equal(pairs.roles[0], ICMA_ROLE_B);
        assert_int_equal(pairs.roles[1], ICMA_ROLE_A);
        free_both(&image, &pairs);
    }
}

static void names_that_only_look_alike_do_not_pair(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"m.lora_A.weight", "n.lora_B.weight"},         /* two modules */
        {"m.lora_A.x.weight", "m.lora_B.y.weight"},     /* two adapters */
        {"m.lora_A.x.weight", "m.lora_B.weight"},       /* one named, one not */
        {"m.lora_A.weight", "m.lora_up.weight"},        /* two styles */
        {"m.lora_A.weight", "m.lora_embedding_B"},      /* two kinds */
        {"m_lora.down.weight", "m.lora.up.weight"},     /* two separators */
        {"xlora_A.weight", "xlora_B.weight"},           /* no separator */
        {"m.lora_A.bias", "m.lora_B.bias"},             /* not the weight */
        {"m.lora_A", "m.lora_B"},                       /* no weight at all */
        {"m.lora_A..weight", "m.lora_B..weight"},       /* an adapter without a name */
        {"m.lora_A.x.y.weight", "m.lora_B.x.y.weight"}, /* two segments */
        {"m.lora_magnitude_vector", "m.alpha"},         /* DoRA, kohya */
        {"m.hada_w1_a", "m.hada_w1_b"},                 /* LoHa */
        {".weight", "weight"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        support_image image;
        icma_pairs pairs;
        const support_tensor tensors[] = {
            {.name = cases[i][0], .dtype = ICMA_F32, .rank = 2, .shape = {3, 5}},
            {.name = cases[i][1], .dtype = ICMA_F32, .rank = 2, .shape = {7, 3}}};
        find(tensors, 2, &image, &pairs);
        if (pairs.count != 0)
            fail_msg("a pair: %s", cases[i][0]);
        assert_int_equal(pairs.roles[0], ICMA_ROLE_OTHER);
        assert_int_equal(pairs.roles[1], ICMA_ROLE_OTHER);
        free_both(&image, &pairs);
    }
}

static size_t pairs_of_shapes(icma_dtype a_dtype, unsigned a_rank, const uint64_t *a, icma_dtype b_dtype,
                              unsigned b_rank, const uint64_t *b, icma_pair *first) {
    support_tensor tensors[2] = {{.name = "m.lora_A.weight", .dtype = a_dtype, .rank = a_rank},
                                 {.name = "m.lora_B.weight", .dtype = b_dtype, .rank = b_rank}};
    memcpy(tensors[0].shape, a, a_rank * sizeof *a);
    memcpy(tensors[1].shape, b, b_rank * sizeof *b);
    support_image image;
    icma_pairs pairs;
    find(tensors, 2, &image, &pairs);
    size_t count = pairs.count;
    if (count > 0)
        *first = pairs.list[0];
    free_both(&image, &pairs);
    return count;
}

#define SHAPE(...)                                                                                           \
    (const uint64_t[]) {                                                                                     \
        __VA_ARGS__                                                                                          \
    }

static void convolutions_fold_their_trailing_dimensions(void **state) {
    (void)state;
    icma_pair pair;
    assert_int_equal(pairs_of_shapes(ICMA_F32, 4, SHAPE(4, 6, 3, 3), ICMA_BF16, 4, SHAPE(8, 4, 1, 1), &pair),
                     1);
    assert_int_equal(pair.rank, 4);
    assert_int_equal(pair.rows, 8);
    assert_int_equal(pair.columns, 54);
}

static void shapes_that_do_not_fit_are_other(void **state) {
    (void)state;
    icma_pair pair;
    assert_int_equal(pairs_of_shapes(ICMA_F32, 2, SHAPE(4, 6), ICMA_F32, 2, SHAPE(8, 3), &pair), 0);
    assert_int_equal(pairs_of_shapes(ICMA_F32, 2, SHAPE(4, 6), ICMA_F32, 3, SHAPE(8, 4, 2), &pair), 0);
    assert_int_equal(pairs_of_shapes(ICMA_F32, 1, SHAPE(4), ICMA_F32, 2, SHAPE(8, 4), &pair), 0);
    assert_int_equal(pairs_of_shapes(ICMA_F32, 2, SHAPE(4, 6), ICMA_F32, 1, SHAPE(8), &pair), 0);
    assert_int_equal(pairs_of_shapes(ICMA_F32, 2, SHAPE(0, 6), ICMA_F32, 2, SHAPE(8, 0), &pair), 0);
    assert_int_equal(pairs_of_shapes(ICMA_F32, 2, SHAPE(4, 0), ICMA_F32, 2, SHAPE(8, 4), &pair), 0);
    assert_int_equal(pairs_of_shapes(ICMA_F64, 2, SHAPE(4, 6), ICMA_F32, 2, SHAPE(8, 4), &pair), 0);
    assert_int_equal(pairs_of_shapes(ICMA_F32, 2, SHAPE(4, 6), ICMA_I8, 2, SHAPE(8, 4), &pair), 0);
}

static void a_tucker_core_spoils_its_pair(void **state) {
    (void)state;
    support_image image;
    icma_pairs pairs;
    const support_tensor tensors[] = {
        {.name = "m.lora_down.weight", .dtype = ICMA_F32, .rank = 2, .shape = {3, 5}},
        {.name = "m.lora_mid.weight", .dtype = ICMA_F32, .rank = 4, .shape = {3, 3, 3, 3}},
        {.name = "m.lora_up.weight", .dtype = ICMA_F32, .rank = 2, .shape = {7, 3}},
    };
    find(tensors, COUNT(tensors), &image, &pairs);
    assert_int_equal(pairs.count, 0);
    free_both(&image, &pairs);
}

/* B before A, other tensors between, modules whose names are prefixes of each other: pairs in order of A. */
static void pairs_come_in_order_of_their_a(void **state) {
    (void)state;
    enum { MODULES = 500 };
    static char names[2 * MODULES][32];
    static support_tensor tensors[2 * MODULES];
    for (size_t i = 0; i < MODULES; i++) {
        size_t module = (i * 7) % MODULES;
        snprintf(names[i], sizeof names[i], "m.%zu.lora_B.weight", module);
        snprintf(names[MODULES + i], sizeof names[i], "m.%zu.lora_A.weight", i);
        tensors[i] = (support_tensor){.name = names[i], .dtype = ICMA_F16, .rank = 2, .shape = {2, 1}};
        tensors[MODULES + i] =
            (support_tensor){.name = names[MODULES + i], .dtype = ICMA_F16, .rank = 2, .shape = {1, 3}};
    }
    support_image image;
    icma_pairs pairs;
    find(tensors, COUNT(tensors), &image, &pairs);
    assert_int_equal(pairs.count, MODULES);
    for (size_t i = 0; i < MODULES; i++) {
        char module[32];
        snprintf(module, sizeof module, "m.%zu", i);
        assert_string_equal(pairs.list[i].module, module);
        assert_int_equal(pairs.list[i].a, MODULES + i);
        assert_int_equal(pairs.list[i].b * 7 % MODULES, i);
    }
    free_both(&image, &pairs);
}

static void a_file_without_tensors_has_no_pairs(void **state) {
    (void)state;
    icma_safetensors empty = {0};
    icma_pairs pairs;
    icma_error error = {0};
    assert_int_equal(icma_pairs_find(&empty, &pairs, &error), ICMA_OK);
    assert_int_equal(pairs.count, 0);
    icma_pairs_free(&pairs);
}

/* --- the k-th allocation fails ------------------------------------------------------------------------- */

static void running_out_of_memory_leaves_nothing(void **state) {
    (void)state;
    support_image image;
    const support_tensor tensors[] = {
        {.name = "m.lora_A.weight", .dtype = ICMA_F32, .rank = 2, .shape = {3, 5}},
        {.name = "m.lora_B.weight", .dtype = ICMA_F32, .rank = 2, .shape = {7, 3}},
    };
    support_build_image(tensors, COUNT(tensors), &image);
    icma_status status = ICMA_E_MEMORY;
    for (size_t k = 0; status != ICMA_OK; k++) {
        support_budget budget = {.left = k};
        icma_error error = {0};
        icma_pairs pairs;
        support_limit_memory(&budget);
        status = icma_pairs_find(&image.tensors, &pairs, &error);
        if (status == ICMA_OK)
            icma_pairs_free(&pairs);
        support_limit_memory(NULL);
        assert_int_equal(budget.live, 0);
        assert_true(status == ICMA_OK || status == ICMA_E_MEMORY);
        assert_int_equal(status, error.status);
    }
    support_free_image(&image);
}

/* --- scale --------------------------------------------------------------------------------------------- */

static double scale_of(const char *config, const char *module, uint64_t rank) {
    return icma_pair_scale(config, config ? strlen(config) : 0, module, rank);
}

static void scale_is_alpha_over_rank(void **state) {
    (void)state;
    assert_true(scale_of("{\"r\":4,\"lora_alpha\":8}", "m", 4) == 2.0);
    assert_true(scale_of("{\"r\":4,\"lora_alpha\":8}", "m", 0) == 2.0);
    assert_true(scale_of("{\"r\":4,\"lora_alpha\":8}", "m", 16) == 0.5);
    assert_true(scale_of("{\"r\":4,\"lora_alpha\":8,\"use_rslora\":true}", "m", 4) == 4.0);
    assert_true(scale_of("{\"r\":4,\"lora_alpha\":8,\"use_rslora\":false}", "m", 4) == 2.0);
}

static void scale_follows_patterns(void **state) {
    (void)state;
    const char *config = "{\"r\":4,\"lora_alpha\":8,\"rank_pattern\":{\"q_proj\":2,\"layers.1.q_proj\":8},"
                         "\"alpha_pattern\":{\"layers.1.q_proj\":32,\"q_proj\":16,\"v\":0}}";
    assert_true(scale_of(config, "q_proj", 2) == 8.0);
    assert_true(scale_of(config, "base.layers.0.q_proj", 2) == 8.0);
    /* rank: the first that matches is q_proj; alpha: the longer one comes first */
    assert_true(scale_of(config, "base.layers.1.q_proj", 2) == 16.0);
    assert_true(scale_of(config, "base.layers.0.xq_proj", 4) == 2.0);
    assert_true(scale_of(config, "base.v", 4) == 2.0);
}

static void scale_is_one_where_the_text_says_nothing(void **state) {
    (void)state;
    static const char *const texts[] = {
        NULL,
        "",
        "{",
        "[]",
        "7",
        "{}",
        "{\"r\":4}",
        "{\"r\":4,\"lora_alpha\":0}",
        "{\"r\":4,\"lora_alpha\":\"8\"}",
        "{\"r\":4,\"lora_alpha\":null}",
        "{\"r\":4,\"lora_alpha\":1e300}",
        "{\"r\":4,\"lora_alpha\":8,\"lora_alpha\":16}",
        "{\"r\":4,\"lora_alpha\":8,\"rank_pattern\":{\"m\":-1}}",
    };
    for (size_t i = 0; i < COUNT(texts); i++)
        if (scale_of(texts[i], "m", 4) != 1.0)
            fail_msg("%s", texts[i]);
    assert_true(scale_of("{\"lora_alpha\":8}", "m", 0) == 1.0);
    const char *strange = "{\"lora_alpha\":8,\"r\":2,\"rank_pattern\":[],\"alpha_pattern\":7}";
    assert_true(scale_of(strange, "m", 0) == 4.0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_naming_style_pairs_up),
        cmocka_unit_test(names_that_only_look_alike_do_not_pair),
        cmocka_unit_test(convolutions_fold_their_trailing_dimensions),
        cmocka_unit_test(shapes_that_do_not_fit_are_other),
        cmocka_unit_test(a_tucker_core_spoils_its_pair),
        cmocka_unit_test(pairs_come_in_order_of_their_a),
        cmocka_unit_test(a_file_without_tensors_has_no_pairs),
        cmocka_unit_test(running_out_of_memory_leaves_nothing),
        cmocka_unit_test(scale_is_alpha_over_rank),
        cmocka_unit_test(scale_follows_patterns),
        cmocka_unit_test(scale_is_one_where_the_text_says_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
