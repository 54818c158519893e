/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Adapters for conditions that were not packed: for a packed condition they are the samples of its task, bit
 * for bit, whatever the generator; a mix of one task is that task; of a soup a mix is the mixture of its
 * averages; what the file says of itself; and what is refused.
 */
#include "packing.h"

#include "memory.h"
#include "metadata.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VECTOR = 6 };

/* Three tasks; "a" and "b" come with vectors, in the learned tree none does. */
static const float vectors[3][VECTOR] = {
    {1, 0.5F, -1, 2, 0, 0.25F}, {-1, 1.5F, 1, 0.5F, 1, 0}, {0.75F, -1, 0.5F, 0, 1, -2}};
static const char *const names[3] = {"a", "b", "c"};

static void write_tree(const char *root, size_t given) {
    for (size_t t = 0; t < 3; t++) {
        trajectory moves = small_trajectory;
        moves.seed = t + 1;
        packing_write(root, names[t], &moves, 1, 6);
        if (t < given)
            packing_write_vector(root, names[t], ICMA_F32, vectors[t], VECTOR);
        support_write_text(root,
                           t == 0   ? "in/a/checkpoint-51/adapter_config.json"
                           : t == 1 ? "in/b/checkpoint-51/adapter_config.json"
                                    : "in/c/checkpoint-51/adapter_config.json",
                           "{\"r\": 2, \"lora_alpha\": 4}");
    }
}

static int make_folder(void **state) {
    *state = support_new_folder();
    return 0;
}

static int drop_folder(void **state) {
    support_remove_tree(*state);
    return 0;
}

static icma_pack_options options_of(icma_generator_choice generator) {
    icma_pack_options options = packing_options();
    icma_pack_use_generator(&options, generator);
    options.tier = ICMA_TIER_LATENT;
    options.epochs = 20;
    options.denoiser_epochs = 20;
    options.latent_dim = 3;
    options.layers = 3;
    options.channels[0] = 4;
    options.channels[1] = 8;
    options.channels[2] = 4;
    options.kernel = 3;
    return options;
}

static icma_bundle *pack(const char *root, icma_generator_choice generator) {
    icma_pack_options options = options_of(generator);
    options.overwrite = true;
    options.tier = generator == ICMA_CHOOSE_NONE ? ICMA_TIER_BOUNDED : ICMA_TIER_LATENT;
    packing_pack(root, "b.icma", &options, NULL);
    return packing_open(root, "b.icma", icma_ops_cpu());
}

static const uint8_t *data_of(const icma_decoded *d, size_t *size) {
    size_t before = 8 + (size_t)d->data[0] + ((size_t)d->data[1] << 8) + ((size_t)d->data[2] << 16);
    *size = d->size - before;
    return d->data + before;
}

static bool same_data(const icma_decoded *a, const icma_decoded *b) {
    size_t n, m;
    const uint8_t *x = data_of(a, &n), *y = data_of(b, &m);
    return n == m && n > 0 && memcmp(x, y, n) == 0;
}

static void generate(icma_bundle *bundle, icma_generation what, icma_decoded *out, icma_generated *told) {
    icma_error error = {0};
    icma_status status = icma_bundle_generate(bundle, &what, out, told, &error);
    if (status)
        fail_msg("%s: %s", icma_status_name(status), error.message);
}

static icma_generation of_vector(const float *vector) {
    icma_generation what = icma_generation_defaults();
    what.condition = vector;
    what.condition_size = VECTOR;
    return what;
}

static icma_generation of_mix(const size_t *tasks, const double *weights, size_t count) {
    icma_generation what = icma_generation_defaults();
    what.tasks = tasks;
    what.weights = weights;
    what.task_count = count;
    return what;
}

/* --- what was packed
 * --------------------------------------------------------------------------------------------- */

static void same_as_sample(icma_bundle *bundle, size_t task, icma_generation what, bool exact) {
    icma_decoded sample, drawn, mean;
    icma_generated told;
    icma_error error = {0};
    assert_int_equal(icma_bundle_sample(bundle, task, 7, &sample, &error), ICMA_OK);
    generate(bundle, what, &mean, &told);
    assert_int_equal(told.nearest, task);
    assert_int_equal(told.like, task);
    assert_true(exact ? told.distance == 0 : told.distance < 1e-3);
    assert_true(told.cosine > 0.9999 && told.cosine <= 1);
    what.drawn = true;
    what.seed = 7;
    generate(bundle, what, &drawn, &told);
    assert_true(same_data(&sample, &drawn));
    assert_int_equal(drawn.file_count, sample.file_count);
    assert_int_equal(drawn.file_count, 1);
    assert_string_equal(drawn.files[0].name, "adapter_config.json");
    /* The mean is what tier generate restores; other seeds give others where there is anything to draw. */
    icma_generator_info info;
    assert_int_equal(icma_bundle_generator(bundle, 0, &info, &error), ICMA_OK);
    assert_true(same_data(&mean, &drawn) == (info.latent_dim == 0));
    icma_decoded_free(&sample);
    icma_decoded_free(&drawn);
    icma_decoded_free(&mean);
}

static const icma_generator_choice generators[] = {ICMA_CHOOSE_BASIS, ICMA_CHOOSE_CONV, ICMA_CHOOSE_DIFFUSION,
                                                   ICMA_CHOOSE_SOUP};

static void a_packed_condition_gives_its_sample(void **state) {
    write_tree(*state, 3);
    for (size_t i = 0; i < 4; i++) {
        icma_bundle *bundle = pack(*state, generators[i]);
        for (size_t t = 0; t < 3; t++) {
            const double one = 1;
            same_as_sample(bundle, t, of_vector(vectors[t]), true);
            same_as_sample(bundle, t, of_mix(&t, &one, 1), true);
        }
        icma_bundle_close(bundle);
    }
}

static void a_learned_condition_does_too(void **state) {
    write_tree(*state, 1); /* "a" is given, "b" and "c" are learned */
    for (size_t i = 0; i < 4; i++) {
        icma_bundle *bundle = pack(*state, generators[i]);
        for (size_t t = 0; t < 3; t++) {
            const double one = 1;
            same_as_sample(bundle, t, of_mix(&t, &one, 1), true);
        }
        same_as_sample(bundle, 0, of_vector(vectors[0]), true);
        icma_bundle_close(bundle);
    }
}

static void the_mean_is_tier_generate(void **state) {
    write_tree(*state, 3);
    for (size_t i = 0; i < 4; i++) {
        icma_pack_options options = options_of(generators[i]);
        icma_decoded mean, kept;
        icma_generated told;
        options.tier = ICMA_TIER_GENERATE;
        options.overwrite = true;
        packing_pack(*state, "g.icma", &options, NULL);
        icma_bundle *bundle = packing_open(*state, "g.icma", icma_ops_cpu());
        generate(bundle, of_vector(vectors[1]), &mean, &told);
        packing_decode(bundle, "b", 5, &kept);
        assert_true(same_data(&mean, &kept));
        icma_decoded_free(&mean);
        icma_decoded_free(&kept);
        icma_bundle_close(bundle);
    }
}

/* --- what was not
 * ------------------------------------------------------------------------------------------------ */

/* The mix with weights, less the sum of the tasks' own means times `expected`, by the norm of the former. */
static double error_of_mix(icma_bundle *bundle, const double weights[2], const double expected[2]) {
    const size_t tasks[] = {0, 1};
    icma_decoded mix, own[2];
    icma_generated told;
    size_t size;
    double square = 0, all = 0;
    generate(bundle, of_mix(tasks, weights, 2), &mix, &told);
    for (size_t t = 0; t < 2; t++)
        generate(bundle, of_vector(vectors[t]), &own[t], &told);
    const uint8_t *m = data_of(&mix, &size), *x = data_of(&own[0], &size), *y = data_of(&own[1], &size);
    for (size_t i = 0; i < size; i += 4) {
        float a, b, c;
        memcpy(&a, m + i, 4);
        memcpy(&b, x + i, 4);
        memcpy(&c, y + i, 4);
        double difference = (double)a - expected[0] * (double)b - expected[1] * (double)c;
        square += difference * difference;
        all += (double)a * (double)a;
    }
    icma_decoded_free(&mix);
    icma_decoded_free(&own[0]);
    icma_decoded_free(&own[1]);
    return sqrt(square / all);
}

/* Its trunk is linear. */
static void a_mix_of_soups_is_the_soup_of_both(void **state) {
    const double between[] = {0.25, 0.75}, beyond[] = {1.5, -0.5};
    write_tree(*state, 3);
    icma_bundle *bundle = pack(*state, ICMA_CHOOSE_SOUP);
    assert_true(error_of_mix(bundle, between, between) < 1e-3);
    assert_true(error_of_mix(bundle, beyond, beyond) < 1e-3);
    assert_true(error_of_mix(bundle, beyond, between) > 0.1); /* or that would show nothing */
    icma_bundle_close(bundle);
}

static void mixes_lie_where_they_are_told_to(void **state) {
    const size_t tasks[] = {2, 0};
    const double weights[] = {0.25, 0.75}, nothing[] = {0, 0};
    icma_generated told;
    icma_decoded mix, sum;
    float vector[VECTOR];
    double square = 0, own = 0;
    write_tree(*state, 3);
    icma_bundle *bundle = pack(*state, ICMA_CHOOSE_BASIS);
    generate(bundle, of_mix(tasks, weights, 2), &mix, &told);
    assert_int_equal(told.nearest, 0);
    assert_int_equal(told.like, 0);
    icma_task_info a, c;
    icma_error error = {0};
    assert_int_equal(icma_bundle_task(bundle, 0, &a, &error), ICMA_OK);
    assert_int_equal(icma_bundle_task(bundle, 2, &c, &error), ICMA_OK);
    for (size_t i = 0; i < VECTOR; i++) {
        double d = 0.25 * ((double)c.condition[i] - (double)a.condition[i]);
        vector[i] = (float)(0.25 * (double)c.condition[i] + 0.75 * (double)a.condition[i]);
        square += d * d;
        own += (double)a.condition[i] * (double)a.condition[i];
    }
    assert_true(fabs(told.distance - sqrt(square / own)) < 1e-6);
    assert_true(told.seen > 0.99);
    /* The same condition as a vector, but for its rounding. */
    icma_generated again;
    generate(bundle, of_vector(vector), &sum, &again);
    assert_int_equal(again.nearest, 0);
    assert_true(fabs(again.distance - told.distance) < 0.02);
    icma_decoded_free(&mix);
    icma_decoded_free(&sum);
    /* `like` gives shape and files, not the condition. */
    icma_generation liked = of_mix(tasks, weights, 2);
    liked.like = 1;
    generate(bundle, liked, NULL, &again);
    assert_int_equal(again.like, 1);
    assert_int_equal(again.nearest, 0);
    assert_int_equal(again.hash, told.hash);
    generate(bundle, of_mix(tasks, nothing, 2), NULL,
             &again); /* no direction, but coordinates all the same */
    assert_true(isnan(again.cosine));
    icma_bundle_close(bundle);
}

static void a_strange_condition_is_seen_in_part(void **state) {
    float strange[VECTOR], along[VECTOR];
    icma_generated told;
    icma_decoded out;
    write_tree(*state, 2);
    icma_bundle *bundle = pack(*state, ICMA_CHOOSE_BASIS);
    /* At right angles to a and b: Gram and Schmidt. */
    double aa = 0, ab = 0, ac = 0, bb = 0, bc = 0;
    for (size_t i = 0; i < VECTOR; i++) {
        aa += (double)vectors[0][i] * (double)vectors[0][i];
        ab += (double)vectors[0][i] * (double)vectors[1][i];
        ac += (double)vectors[0][i] * (double)vectors[2][i];
    }
    for (size_t i = 0; i < VECTOR; i++) {
        double b = (double)vectors[1][i] - ab / aa * (double)vectors[0][i];
        bb += b * b;
        bc += b * (double)vectors[2][i];
    }
    for (size_t i = 0; i < VECTOR; i++) {
        double b = (double)vectors[1][i] - ab / aa * (double)vectors[0][i];
        strange[i] = (float)((double)vectors[2][i] - ac / aa * (double)vectors[0][i] - bc / bb * b);
        along[i] = vectors[0][i] + vectors[1][i];
    }
    generate(bundle, of_vector(strange), &out, &told);
    assert_true(told.seen < 0.02);
    icma_decoded_free(&out);
    generate(bundle, of_vector(along), &out, &told);
    assert_true(told.seen > 0.98);
    icma_decoded_free(&out);
    icma_bundle_close(bundle);
}

/* --- what the file says
 * ------------------------------------------------------------------------------------------ */

static bool says(const icma_decoded *d, const char *text) {
    size_t size;
    const uint8_t *data = data_of(d, &size);
    for (const uint8_t *at = d->data + 8; at + strlen(text) <= data; at++)
        if (memcmp(at, text, strlen(text)) == 0)
            return true;
    return false;
}

static void the_file_says_what_it_is(void **state) {
    icma_generation what = of_vector(vectors[0]);
    icma_decoded out;
    icma_generated told;
    write_tree(*state, 3);
    icma_bundle *bundle = pack(*state, ICMA_CHOOSE_BASIS);
    what.origin = "bird \"1\"\xFF.npy";
    what.bundle = "loras.icma";
    what.drawn = true;
    what.seed = UINT64_MAX;
    generate(bundle, what, &out, &told);
    assert_true(says(&out, "\"icma_generated\":\"true\""));
    assert_true(says(&out, "\"icma_from\":\"bird \\\"1\\\"\\\\xFF.npy\""));
    assert_true(says(&out, "\"icma_seed\":\"18446744073709551615\""));
    assert_true(says(&out, "\"icma_like\":\"a\""));
    assert_true(says(&out, "\"icma_nearest\":\"a, cosine 1.0000, distance 0.0000\""));
    assert_true(says(&out, "\"icma_bundle\":\"loras.icma "));
    /* A whole safetensors file, with the same tensors. */
    icma_safetensors header;
    const uint8_t *data;
    icma_error error = {0};
    assert_int_equal(icma_safetensors_view(out.data, out.size, &header, &data, &error), ICMA_OK);
    assert_int_equal(header.header_size % 8, 0);
    assert_int_equal(header.tensor_count, 4);
    icma_safetensors_free(&header);
    icma_decoded_free(&out);
    icma_bundle_close(bundle);
}

static void check_metadata(const char *before, const char *after) {
    const icma_metadata_entry entries[] = {{"k", "new"}, {"l", "\x01"}};
    icma_buffer out = {0};
    icma_error error = {0};
    assert_int_equal(icma_metadata_put((const uint8_t *)before, strlen(before), entries, 2, &out, &error),
                     ICMA_OK);
    assert_int_equal(out.size % 8, 0);
    assert_true(out.size >= strlen(after) && out.size < strlen(after) + 8);
    assert_memory_equal(out.data, after, strlen(after));
    for (size_t i = strlen(after); i < out.size; i++)
        assert_int_equal(out.data[i], ' ');
    icma_buffer_free(&out);
}

static void metadata_is_put_into_headers(void **state) {
    (void)state;
    check_metadata("{}", "{\"__metadata__\":{\"k\":\"new\",\"l\":\"\\u0001\"}}");
    check_metadata(
        "{\"t\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [2147483648, 999999999999999]}}   ",
        "{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[2147483648,999999999999999]},\"__metadata_"
        "_\":{\"k\":\"new\",\"l\":\"\\u0001\"}}");
    check_metadata("{\"__metadata__\":{\"a\":\"b\",\"\\u006b\":\"old\",\"K\":\"other\"}}",
                   "{\"__metadata__\":{\"a\":\"b\",\"K\":\"other\",\"k\":\"new\",\"l\":\"\\u0001\"}}");
    icma_buffer out = {0};
    icma_error error = {0};
    assert_int_equal(icma_metadata_put((const uint8_t *)"{\"a\":{},\"a\":{}}", 15, NULL, 0, &out, &error),
                     ICMA_E_CORRUPT);
    icma_buffer_free(&out);
}

/* --- what is refused
 * --------------------------------------------------------------------------------------------- */

static void refused(icma_bundle *bundle, icma_generation what, icma_status wanted, const char *saying) {
    icma_decoded out;
    icma_generated told;
    icma_error error = {0};
    assert_int_equal(icma_bundle_generate(bundle, &what, &out, &told, &error), wanted);
    if (!strstr(error.message, saying))
        fail_msg("\"%s\" is not in \"%s\"", saying, error.message);
    assert_null(out.data);
    assert_null(out.files);
}

static void numbers_that_mean_nothing_are_refused(void **state) {
    const size_t tasks[] = {0, 1};
    const double endless[] = {1, INFINITY}, huge[] = {1, 1e30};
    float vector[VECTOR + 1] = {0};
    write_tree(*state, 3);
    icma_bundle *bundle = pack(*state, ICMA_CHOOSE_BASIS);
    refused(bundle, of_vector(vector), ICMA_E_UNSUPPORTED, "nothing but zeros");
    vector[3] = NAN;
    refused(bundle, of_vector(vector), ICMA_E_USAGE, "not finite");
    vector[3] = -INFINITY;
    refused(bundle, of_vector(vector), ICMA_E_USAGE, "not finite");
    vector[3] = 3e38F;
    refused(bundle, of_vector(vector), ICMA_E_UNSUPPORTED, "check its scale");
    vector[3] = 1;
    icma_generation longer = of_vector(vector), none = of_vector(vector);
    longer.condition_size++;
    refused(bundle, longer, ICMA_E_UNSUPPORTED,
            "a condition of 7 numbers, and those that were packed have 6");
    none.condition_size = 0;
    refused(bundle, none, ICMA_E_UNSUPPORTED, "a condition of 0 numbers");
    refused(bundle, of_mix(tasks, endless, 2), ICMA_E_USAGE, "not finite");
    refused(bundle, of_mix(tasks, huge, 2), ICMA_E_UNSUPPORTED, "check its scale");
    refused(bundle, of_mix(tasks, huge, 0), ICMA_E_USAGE, "neither");
    none = of_vector(vectors[0]);
    none.size = 0;
    refused(bundle, none, ICMA_E_USAGE, "another libicma");
    icma_bundle_close(bundle);
}

static void tasks_that_there_are_not_are_not_found(void **state) {
    const size_t tasks[] = {0, SIZE_MAX};
    const double halves[] = {0.5, 0.5};
    write_tree(*state, 3);
    icma_bundle *bundle = pack(*state, ICMA_CHOOSE_BASIS);
    icma_generation liked = of_vector(vectors[0]);
    liked.like = icma_bundle_task_count(bundle);
    refused(bundle, liked, ICMA_E_NOT_FOUND, "no task 3; there are 3");
    refused(bundle, of_mix(tasks, halves, 2), ICMA_E_NOT_FOUND, "no task");
    icma_task_info task;
    icma_generator_info group;
    icma_decoded decoded;
    assert_int_equal(icma_bundle_task(bundle, icma_bundle_find_task(bundle, "nobody"), &task, NULL),
                     ICMA_E_NOT_FOUND);
    assert_int_equal(icma_bundle_decode(bundle, SIZE_MAX, 0, &decoded, NULL), ICMA_E_NOT_FOUND);
    assert_int_equal(icma_bundle_sample(bundle, 3, 1, &decoded, NULL), ICMA_E_NOT_FOUND);
    assert_int_equal(icma_bundle_generator(bundle, (uint32_t)icma_bundle_group_count(bundle), &group, NULL),
                     ICMA_E_NOT_FOUND);
    icma_bundle_close(bundle);
}

static void learned_conditions_have_no_vectors(void **state) {
    write_tree(*state, 0);
    icma_bundle *bundle = pack(*state, ICMA_CHOOSE_BASIS);
    refused(bundle, of_vector(vectors[0]), ICMA_E_UNSUPPORTED, "were learned in packing");
    icma_bundle_close(bundle);
    bundle = pack(*state, ICMA_CHOOSE_NONE);
    const size_t task = 1;
    const double one = 1;
    refused(bundle, of_vector(vectors[0]), ICMA_E_UNSUPPORTED, "--generator basis");
    refused(bundle, of_mix(&task, &one, 1), ICMA_E_UNSUPPORTED, "task b has no generator");
    icma_bundle_close(bundle);
}

/* A fourth task of another shape, with a vector: two groups. */
static void groups_are_not_mixed(void **state) {
    const size_t across[] = {0, 3};
    const double halves[] = {0.5, 0.5};
    const float vector[VECTOR] = {0, 0, 0, 0, 0, 5};
    trajectory wide = small_trajectory;
    icma_generated told;
    wide.rank = 3;
    write_tree(*state, 3);
    packing_write(*state, "d", &wide, 1, 6);
    packing_write_vector(*state, "d", ICMA_F32, vector, VECTOR);
    icma_bundle *bundle = pack(*state, ICMA_CHOOSE_BASIS);
    assert_int_equal(icma_bundle_group_count(bundle), 2);
    refused(bundle, of_mix(across, halves, 2), ICMA_E_UNSUPPORTED,
            "tasks a and d have no generator in common");
    generate(bundle, of_vector(vector), NULL, &told); /* the nearest task decides */
    assert_int_equal(told.nearest, 3);
    assert_int_equal(told.like, 3);
    icma_generation liked = of_vector(vector);
    liked.like = 1; /* or the user */
    uint32_t group = told.group;
    generate(bundle, liked, NULL, &told);
    assert_int_equal(told.like, 1);
    assert_true(told.nearest != 3 && told.group != group);
    liked = of_mix(across, halves, 1);
    liked.like = 3;
    refused(bundle, liked, ICMA_E_UNSUPPORTED, "tasks d and a have no generator in common");
    icma_bundle_close(bundle);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, drop_folder)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_packed_condition_gives_its_sample),
        TEST(a_learned_condition_does_too),
        TEST(the_mean_is_tier_generate),
        TEST(a_mix_of_soups_is_the_soup_of_both),
        TEST(mixes_lie_where_they_are_told_to),
        TEST(a_strange_condition_is_seen_in_part),
        TEST(the_file_says_what_it_is),
        TEST(metadata_is_put_into_headers),
        TEST(numbers_that_mean_nothing_are_refused),
        TEST(tasks_that_there_are_not_are_not_found),
        TEST(learned_conditions_have_no_vectors),
        TEST(groups_are_not_mixed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
