/* SPDX-License-Identifier: Apache-2.0 */
/* Packing and reading when something goes wrong: memory that runs out at any allocation, cancelling at any
 * question, archives with any byte changed. */
#include "packing.h"

#include "memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* --- allocations that fail ----------------------------------------------------------------------------- */

/* Fails allocation `at` (from 0), and all later ones if `on`. Growing counts as an allocation, shrinking does
 * not fail. */
typedef struct failing {
    size_t at, seen, live;
    bool on;
} failing;

static void *fail_resize(void *context, void *pointer, size_t size) {
    failing *f = context;
    size_t k = f->seen++;
    if (k == f->at || (f->on && k > f->at))
        return NULL;
    f->live += pointer == NULL;
    return realloc(pointer, size);
}

static void fail_release(void *context, void *pointer) {
    failing *f = context;
    f->live -= pointer != NULL;
    free(pointer);
}

static void install(failing *f) {
    const icma_allocator allocator = {fail_resize, fail_release, f};
    icma_memory_set_allocator(f ? &allocator : NULL);
}

/* Two groups, given and learned conditions, exceptions, side files, an own header: every path that allocates.
 */
static void write_tree(const char *root) {
    const float vector[3] = {1, -2, 3};
    trajectory other = small_trajectory, wide = small_trajectory;
    size_t size;
    other.seed = 2;
    wide.rank = 3;
    wide.modules = 1;
    wide.dtype = ICMA_F16;
    packing_write(root, "a", &small_trajectory, 1, 2);
    packing_write(root, "b", &other, 1, 3);
    packing_write(root, "b", &wide, 40, 1);
    packing_write_npy(root, "a", vector, 3);
    support_write_text(root, "in/a/checkpoint-1/adapter_config.json", "{\"r\": 2, \"lora_alpha\": 4}");
    support_write_text(root, "in/b/checkpoint-1/README.md", "hello");
    /* Another header: a space more, eight in fact. A tensor that is not finite. */
    uint8_t *bytes = packing_original(root, "b", 11, &size), *longer = malloc(size + 8);
    assert_non_null(longer);
    size_t header = bytes[0] | (size_t)bytes[1] << 8;
    memcpy(longer, bytes, 8 + header);
    memset(longer + 8 + header, ' ', 8);
    memcpy(longer + 16 + header, bytes + 8 + header, size - 8 - header);
    memcpy(longer + 16 + header, "\x00\x00\x80\x7F", 4);
    longer[0] = (uint8_t)(header + 8);
    longer[1] = (uint8_t)((header + 8) >> 8);
    support_write_file(root, "in/b/checkpoint-11/adapter_model.safetensors", longer, size + 8);
    free(bytes);
    free(longer);
}

static icma_generator_choice generator; /* trunk, rows or layers, and residuals on top */

static icma_pack_options quick(void) {
    icma_pack_options options = packing_options();
    icma_pack_use_generator(&options, generator);
    options.epochs = 2;
    options.denoiser_epochs = 2;
    options.variance = generator == ICMA_CHOOSE_CONV;
    options.latent_dim = 2;
    options.layers = 2;
    options.kernel = 3;
    options.bound = (icma_bound){ICMA_BOUND_DW, 0.01F};
    return options;
}

static int make_tree(void **state) {
    icma_pack_options options = quick();
    *state = support_new_folder();
    write_tree(*state);
    icma_ops_cpu();
    icma_pack_result result;
    packing_pack(*state, "good.icma", &options, &result);
    assert_true(result.has_generator && result.bytes.latents && result.bytes.residuals && result.bytes.verbatim);
    icma_pack_result_free(&result);
    assert_true(packing_worst_error(*state, "good.icma") < 0.02);
    return 0;
}

static int drop_tree(void **state) {
    icma_set_threads(0);
    support_remove_tree(*state);
    return 0;
}

/* One packing with allocation k failing. Tells how many allocations there were. */
static icma_status pack_short(const char *root, size_t k, bool on, size_t *seen) {
    icma_pack_options options = quick();
    icma_pack_result result, zero = {0};
    icma_error error = {0};
    failing f = {.at = k, .on = on};
    install(&f);
    icma_status status = packing_try(root, "short.icma", &options, &result, &error);
    if (status)
        assert_memory_equal(&result, &zero, sizeof zero);
    icma_pack_result_free(&result);
    install(NULL);
    *seen = f.seen;
    if (f.live)
        fail_msg("allocation %zu failed: %zu blocks are left", k, f.live);
    if (status && (status != ICMA_E_MEMORY || error.status != ICMA_E_MEMORY || !error.message[0]))
        fail_msg("allocation %zu failed: %s: %s", k, icma_status_name(status), error.message);
    if (status) {
        packing_check_folder(root, "good.icma");
        return status;
    }
    /* Whoever goes on without that memory must not do worse. */
    if (!packing_same_files(root, "short.icma", "good.icma"))
        fail_msg("allocation %zu failed, and the archive is another one", k);
    char *path = support_path(root, "short.icma");
    assert_int_equal(remove(path), 0);
    support_free(path);
    return status;
}

static void memory_may_end_anywhere_in_packing(void **state) {
    const char *root = *state;
    size_t total, seen, tolerated = 0;
    assert_int_equal(pack_short(root, SIZE_MAX, false, &total), ICMA_OK);
    print_message("           %zu allocations\n", total);
    /* Training's own steps allocate alike, over and over: of the networks' every fifth. */
    size_t stride = generator == ICMA_CHOOSE_BASIS ? 1 : 5;
    for (size_t k = 0; k < total; k += stride) {
        assert_int_equal(pack_short(root, k, true, &seen), ICMA_E_MEMORY);
        tolerated += pack_short(root, k, false, &seen) == ICMA_OK;
    }
    if (tolerated)
        print_message("           %zu of them did not matter\n", tolerated);
}

/* A mix of one task, and a vector. */
static icma_status generate_two(icma_bundle *bundle, size_t task, icma_error *error) {
    const double one = 1;
    const float vector[3] = {1, -2, 4};
    icma_generation list[] = {icma_generation_defaults(), icma_generation_defaults()};
    list[0].tasks = &task;
    list[0].weights = &one;
    list[0].task_count = 1;
    list[1].condition = vector;
    list[1].condition_size = 3;
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && i < 2; i++) {
        icma_decoded decoded;
        icma_generated told;
        status = icma_bundle_generate(bundle, &list[i], &decoded, &told, error);
        assert_true((status == ICMA_OK) == (decoded.data != NULL));
        icma_decoded_free(&decoded);
    }
    return status;
}

/* Opens, decodes and samples everything, and generates more. */
static icma_status read_all(const char *root, const char *name) {
    char *path = support_path(root, name);
    icma_bundle *bundle = NULL;
    icma_error error = {0};
    icma_status status = icma_bundle_open(path, icma_ops_cpu(), NULL, &bundle, &error);
    assert_true((status == ICMA_OK) == (bundle != NULL));
    for (size_t t = 0; !status && t < icma_bundle_task_count(bundle); t++) {
        icma_task_info info;
        icma_decoded decoded;
        status = icma_bundle_task(bundle, t, &info, &error);
        for (size_t c = 0; !status && c < info.checkpoint_count; c++) {
            status = icma_bundle_decode(bundle, t, c, &decoded, &error);
            assert_true((status == ICMA_OK) == (decoded.data != NULL));
            icma_decoded_free(&decoded);
        }
        if (!status)
            status = icma_bundle_sample(bundle, t, 3, &decoded, &error);
        if (!status)
            icma_decoded_free(&decoded);
        if (!status)
            status = generate_two(bundle, t, &error);
    }
    for (uint32_t g = 0; !status && g < icma_bundle_group_count(bundle); g++) {
        icma_generator_info info;
        char *record;
        status = icma_bundle_generator(bundle, g, &info, &error);
        if (!status)
            status = icma_bundle_record(bundle, g, &record, &error);
        if (!status)
            icma_free(record);
    }
    for (size_t s = 0; !status && s < icma_bundle_section_count(bundle); s++)
        status = icma_bundle_check_section(bundle, s, &error);
    assert_int_equal(error.status, status);
    icma_bundle_close(bundle);
    support_free(path);
    return status;
}

/* A stream of a network's weights that fails in a thread is decoded once more for its error, and may then succeed:
 * what comes out is compared with its checksum all the same. No other allocation may fail without being told, and
 * none when there is no memory from then on. */
static void memory_may_end_anywhere_in_reading(void **state) {
    const char *root = *state;
    icma_status status = ICMA_E_MEMORY;
    icma_set_threads(1);
    for (int on = 0; on < 2; on++) {
        size_t k = 0, total = SIZE_MAX, tolerated = 0;
        for (; k < total; k++) {
            failing f = {.at = k, .on = on};
            install(&f);
            status = read_all(root, "good.icma");
            install(NULL);
            if (f.live)
                fail_msg("allocation %zu failed: %zu blocks are left", k, f.live);
            if (f.seen <= k)
                break; /* it never came to that */
            tolerated += status == ICMA_OK;
            if (status != ICMA_E_MEMORY && (on || status != ICMA_OK))
                fail_msg("allocation %zu failed: %s", k, icma_status_name(status));
        }
        assert_true(status == ICMA_OK && k > 50);
        bool network = generator == ICMA_CHOOSE_CONV || generator == ICMA_CHOOSE_DIFFUSION;
        assert_true(tolerated <= (network ? 64 : 0));
    }
}

/* --- cancelling ---------------------------------------------------------------------------------------- */

typedef struct patience {
    size_t left, asked, told;
} patience;

static bool lose_patience(void *context) {
    patience *p = context;
    p->asked++;
    if (p->left == 0)
        return true;
    p->left--;
    return false;
}

static void listen(void *context, const char *phase, double done, double total, const char *note) {
    patience *p = context;
    p->told++;
    (void)note;
    assert_true(phase && *phase && done >= 0 && done <= total);
}

static void cancelling_leaves_nothing(void **state) {
    const char *root = *state;
    icma_status status = ICMA_E_CANCELLED;
    size_t k = 0;
    for (; status; k++) {
        icma_pack_options options = quick();
        icma_pack_result result, zero = {0};
        icma_error error = {0};
        patience p = {.left = k};
        options.progress = (icma_progress){.update = listen, .cancelled = lose_patience, .context = &p};
        status = packing_try(root, "cancelled.icma", &options, &result, &error);
        assert_true(status == ICMA_OK || status == ICMA_E_CANCELLED);
        if (status) {
            assert_int_equal(p.asked, k + 1); /* it stops at once */
            assert_memory_equal(&result, &zero, sizeof zero);
            packing_check_folder(root, "good.icma");
        } else {
            assert_true(p.told > 10);
            icma_pack_result_free(&result);
        }
    }
    assert_true(k > 15);
    assert_true(packing_same_files(root, "cancelled.icma", "good.icma")); /* being asked changes nothing */
    char *path = support_path(root, "cancelled.icma");
    remove(path);
    support_free(path);
}

/* --- damage -------------------------------------------------------------------------------------------- */

static bool is_refusal(icma_status status) {
    return status == ICMA_E_CORRUPT || status == ICMA_E_FORMAT || status == ICMA_E_UNSUPPORTED ||
           status == ICMA_E_LIMIT;
}

/* Everything in an archive is covered by a checksum or checked: no change of a byte goes unseen when all of
 * it is read. */
static void every_changed_byte_is_seen(void **state) {
    const char *root = *state;
    size_t size;
    uint8_t *bytes = packing_read(root, "good.icma", &size);
    for (size_t i = 0; i < size; i += i < 512 || size - i < 512 ? 1 : 5) {
        bytes[i] ^= (uint8_t)(1 + i * 37 % 255);
        support_write_file(root, "bad.icma", bytes, size);
        bytes[i] ^= (uint8_t)(1 + i * 37 % 255);
        icma_status status = read_all(root, "bad.icma");
        if (!is_refusal(status))
            fail_msg("byte %zu of %zu changed: %s", i, size, icma_status_name(status));
    }
    for (size_t cut = 0; cut < size; cut += cut < 512 || size - cut < 512 ? 1 : 29) {
        support_write_file(root, "bad.icma", bytes, cut);
        icma_status status = read_all(root, "bad.icma");
        if (!is_refusal(status))
            fail_msg("cut at %zu of %zu: %s", cut, size, icma_status_name(status));
    }
    free(bytes);
    char *path = support_path(root, "bad.icma");
    remove(path);
    support_free(path);
}

static void costly_adapters_are_over_the_limits(void **state) {
    const char *root = *state;
    char *path = support_path(root, "good.icma");
    for (int which = 0; which < 2; which++) {
        icma_limits limits = icma_limits_defaults();
        icma_bundle *bundle;
        icma_decoded decoded;
        icma_error error = {0};
        if (which)
            limits.max_output = 100;
        else
            limits.max_work = 100;
        assert_int_equal(icma_bundle_open(path, icma_ops_cpu(), &limits, &bundle, &error), ICMA_OK);
        assert_int_equal(icma_bundle_decode(bundle, 0, 0, &decoded, &error), ICMA_E_LIMIT);
        assert_null(decoded.data);
        icma_bundle_close(bundle);
    }
    support_free(path);
}

static void what_is_not_there_is_not_found(void **state) {
    const char *root = *state;
    icma_bundle *bundle = packing_open(root, "good.icma", icma_ops_cpu()), *none;
    icma_decoded decoded;
    icma_error error = {0};
    assert_true(icma_bundle_find_task(bundle, "c") == SIZE_MAX);
    assert_int_equal(icma_bundle_decode(bundle, 0, 2, &decoded, &error), ICMA_E_NOT_FOUND);
    icma_bundle_close(bundle);
    icma_bundle_close(NULL);
    error = (icma_error){0};
    assert_int_equal(icma_bundle_open("/nonexistent/b.icma", icma_ops_cpu(), NULL, &none, &error),
                     ICMA_E_NOT_FOUND);
    assert_null(none);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_may_end_anywhere_in_packing),
        cmocka_unit_test(memory_may_end_anywhere_in_reading),
        cmocka_unit_test(cancelling_leaves_nothing),
        cmocka_unit_test(every_changed_byte_is_seen),
        cmocka_unit_test(costly_adapters_are_over_the_limits),
        cmocka_unit_test(what_is_not_there_is_not_found),
    };
    static const icma_generator_choice generators[] = {ICMA_CHOOSE_BASIS, ICMA_CHOOSE_CONV, ICMA_CHOOSE_DIFFUSION, ICMA_CHOOSE_SOUP};
    int failed = 0;
    for (size_t i = 0; i < COUNT(generators); i++) {
        generator = generators[i];
        failed += cmocka_run_group_tests(tests, make_tree, drop_tree);
    }
    return failed;
}
