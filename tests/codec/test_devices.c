/* SPDX-License-Identifier: Apache-2.0 */
/* Packing on a device that is not the CPU (fake_device.h): recordings, adapters and losses that stay there
 * change no bit; memory that is too small costs speed, and a line that says so, but no archive. */
#include "fake_device.h"
#include "packing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { ADAPTERS = 9, MUCH = 1 << 28 };

/* What was said, line by line. */
typedef struct speech {
    char text[1024];
    size_t lines;
} speech;

static void listen(void *context, const char *line) {
    speech *s = context;
    size_t used = strlen(s->text);
    snprintf(s->text + used, sizeof s->text - used, "%s\n", line);
    s->lines++;
}

static icma_pack_options conv_options(speech *said) {
    icma_pack_options options = packing_options();
    icma_pack_use_generator(&options, ICMA_CHOOSE_CONV);
    options.tier = ICMA_TIER_LATENT;
    options.epochs = 5;
    options.batch = 4; /* two full ones an epoch, and one of a single adapter */
    options.latent_dim = 2;
    options.layers = 2;
    options.channels[0] = 64;
    options.channels[1] = 2;
    options.kernel = 3;
    options.progress = (icma_progress){.say = listen, .context = said};
    return options;
}

/* Adapters of `in` + `in` numbers a rank. */
static int write_tree(void **state, size_t in) {
    trajectory t = small_trajectory;
    t.modules = 1;
    t.in = t.out = in;
    *state = support_new_folder();
    packing_write(*state, "a", &t, 1, 5);
    t.seed = 2;
    packing_write(*state, "b", &t, 1, ADAPTERS - 5);
    return 0;
}

static int write_small(void **state) {
    return write_tree(state, 22);
}

static int write_large(void **state) {
    return write_tree(state, 4000);
}

static int drop(void **state) {
    support_remove_tree(*state);
    return 0;
}

static void pack_on(const icma_ops *ops, const char *root, const char *name,
                    const icma_pack_options *options) {
    icma_pack_result result;
    icma_error error = {0};
    if (packing_try_on(ops, root, name, options, &result, &error) != ICMA_OK)
        fail_msg("%s: %s", error.file, error.message);
    icma_pack_result_free(&result);
}

static void delete (const char *root, const char *name) {
    char *path = support_path(root, name);
    remove(path);
    support_free(path);
}

/* Both archives decode to the same files; their records may differ. */
static void same_adapters(const char *root, const char *a, const char *b) {
    icma_bundle *bundles[] = {packing_open(root, a, icma_ops_cpu()), packing_open(root, b, icma_ops_cpu())};
    for (size_t t = 0; t < 2; t++) {
        icma_task_info info[2];
        icma_error error = {0};
        for (size_t i = 0; i < 2; i++)
            assert_int_equal(icma_bundle_task(bundles[i], t, &info[i], &error), ICMA_OK);
        assert_int_equal(info[0].checkpoint_count, info[1].checkpoint_count);
        for (size_t c = 0; c < info[0].checkpoint_count; c++)
            assert_true(info[0].checkpoints[c].hash == info[1].checkpoints[c].hash);
    }
    for (size_t i = 0; i < 2; i++)
        icma_bundle_close(bundles[i]);
}

static void assert_record_has(const char *root, const char *name, const char *words, bool wanted) {
    icma_bundle *bundle = packing_open(root, name, icma_ops_cpu());
    char *text;
    icma_error error = {0};
    assert_int_equal(icma_bundle_record(bundle, 0, &text, &error), ICMA_OK);
    assert_int_equal(strstr(text, words) != NULL, wanted);
    support_free(text);
    icma_bundle_close(bundle);
}

/* --- the same bits ------------------------------------------------------------------------------------- */

static void what_stays_on_the_device_changes_no_bit(void **state) {
    const char *root = *state;
    for (int variance = 0; variance < 2; variance++) {
        speech said = {0};
        icma_pack_options options = conv_options(&said);
        options.variance = variance;
        options.precision = "tf32";
        fake_device plain = {.refuses = true}, clever = {0};
        pack_on(icma_ops_cpu(), root, "cpu.icma", &options);
        pack_on(fake_device_open(&plain, 0), root, "plain.icma", &options);
        pack_on(fake_device_open(&clever, MUCH), root, "clever.icma", &options);
        assert_int_equal(said.lines, 0);
        assert_true(packing_same_files(root, "plain.icma", "clever.icma"));
        same_adapters(root, "cpu.icma", "clever.icma");
        assert_record_has(root, "cpu.icma", "\"device\"", false);
        assert_record_has(root, "clever.icma", "\"device\":\"fake:0\",\"precision\":\"tf32\"", true);
        /* Two full batches an epoch, of which the very first is run as it comes. */
        assert_int_equal(plain.replays, 0);
        assert_int_equal(clever.replays, 2 * 5 - 1);
        assert_true(clever.uploaded < plain.uploaded);
        assert_true(plain.live == 0 && plain.recordings == 0 && clever.live == 0 && clever.recordings == 0);
        for (const char *const *name = (const char *const[]){"cpu.icma", "plain.icma", "clever.icma", NULL};
             *name; name++)
            delete (root, *name);
    }
}

/* More steps than the device keeps losses of, none of them at an epoch's end. */
static void losses_are_fetched_seldom(void **state) {
    const char *root = *state;
    speech said = {0};
    icma_pack_options options = conv_options(&said);
    fake_device short_one = {0}, long_one = {0};
    options.batch = 1;
    pack_on(fake_device_open(&short_one, MUCH), root, "short.icma", &options);
    options.epochs = 25;
    pack_on(fake_device_open(&long_one, MUCH), root, "long.icma", &options);
    assert_true(long_one.replays > 200 && long_one.downloads - short_one.downloads <= 20 + 64);
    delete (root, "short.icma");
    delete (root, "long.icma");
}

/* --- memory -------------------------------------------------------------------------------------------- */

/* As if the smaller batch had been asked for. */
static void less_memory_is_a_smaller_batch(void **state) {
    const char *root = *state;
    speech said = {0}, silent = {0};
    icma_pack_options options = conv_options(&said);
    fake_device small = {.largest = 9 << 20}, large = {0};
    options.batch = 8;
    pack_on(fake_device_open(&small, MUCH), root, "small.icma", &options);
    assert_string_equal(said.text, "the GPU's memory does not hold a batch of 8; training with 4\n"
                                   "the GPU's memory does not hold a batch of 4; training with 2\n");
    options.batch = 2;
    options.progress.context = &silent;
    pack_on(fake_device_open(&large, 0), root, "large.icma", &options);
    assert_true(packing_same_files(root, "small.icma", "large.icma"));
    assert_record_has(root, "small.icma", "\"batch\":2", true);
    assert_int_equal(silent.lines, 0);
    assert_true(small.live == 0 && small.recordings == 0);
    delete (root, "small.icma");
    delete (root, "large.icma");
}

static void no_batch_is_small_enough(void **state) {
    const char *root = *state;
    speech said = {0};
    icma_pack_options options = conv_options(&said);
    fake_device tiny = {.largest = 5 << 20};
    pack_on(icma_ops_cpu(), root, "cpu.icma", &options);
    pack_on(fake_device_open(&tiny, MUCH), root, "tiny.icma", &options);
    assert_int_equal(said.lines, 3);
    assert_non_null(
        strstr(said.text, "the GPU's memory does not hold a batch of 1; training on the CPU, with 4\n"));
    assert_true(packing_same_files(root, "cpu.icma", "tiny.icma"));
    assert_int_equal(tiny.live, 0);
    delete (root, "cpu.icma");
    delete (root, "tiny.icma");
}

static void a_basis_is_packed_on_the_cpu(void **state) {
    const char *root = *state;
    speech said = {0};
    icma_pack_options options = packing_options();
    fake_device tiny = {.largest = 1 << 12};
    options.generator = ICMA_CHOOSE_BASIS;
    options.progress = (icma_progress){.say = listen, .context = &said};
    pack_on(icma_ops_cpu(), root, "cpu.icma", &options);
    pack_on(fake_device_open(&tiny, MUCH), root, "tiny.icma", &options);
    assert_string_equal(said.text, "the GPU's memory does not hold these adapters; packing on the CPU\n");
    assert_true(packing_same_files(root, "cpu.icma", "tiny.icma"));
    assert_int_equal(tiny.live, 0);
    delete (root, "cpu.icma");
    delete (root, "tiny.icma");
}

/* One packing with allocation k failing on the device. Returns whether there was such an allocation. */
static bool pack_short(const char *root, const icma_pack_options *options, size_t k, bool on) {
    speech *said = options->progress.context;
    fake_device device = {.fails_at = k, .fails_on = on};
    icma_pack_result result;
    icma_error error = {0};
    memset(said, 0, sizeof *said);
    icma_status status =
        packing_try_on(fake_device_open(&device, MUCH), root, "x.icma", options, &result, &error);
    if (device.live || device.recordings)
        fail_msg("allocation %zu failed: %zu tensors and %zu recordings are left", k, device.live,
                 device.recordings);
    /* A network that was learned is kept rather than learned again on the CPU. */
    if (status != ICMA_OK && !(on && status == ICMA_E_DEVICE && strstr(error.message, "--resume")))
        fail_msg("allocation %zu failed: %s: %s", k, icma_status_name(status), error.message);
    if (status == ICMA_OK)
        assert_true(packing_worst_error(root, "x.icma") < 1.5);
    icma_pack_result_free(&result);
    delete (root, "x.icma");
    delete (root, "training");
    return device.allocations >= k;
}

static void memory_may_end_anywhere_on_the_device(void **state) {
    const char *root = *state;
    char *file = support_path(root, "training");
    speech said;
    static const icma_generator_choice generators[] = {ICMA_CHOOSE_BASIS, ICMA_CHOOSE_CONV,
                                                       ICMA_CHOOSE_DIFFUSION};
    for (size_t g = 0; g < COUNT(generators); g++)
        for (int on = 0; on < 2; on++) {
            bool network = icma_choice_is_network(generators[g]);
            icma_pack_options options = network ? conv_options(&said) : packing_options();
            options.generator = generators[g];
            options.progress = (icma_progress){.say = listen, .context = &said};
            options.training_file = network ? file : NULL;
            options.epochs = options.denoiser_epochs = 2;
            size_t k = 1, silent = 0;
            for (; pack_short(root, &options, k, on); k += network ? 3 : 1)
                silent += said.lines == 0;
            print_message("           some %zu allocations, %zu of which did not matter\n", k, silent);
            assert_true(k > 30);
            assert_true(silent <= 1); /* what only saves transfers */
            packing_check_folder(root, NULL);
        }
    support_free(file);
}

/* --- reading ------------------------------------------------------------------------------------------- */

static void a_bundle_changes_its_device(void **state) {
    const char *root = *state;
    speech said = {0};
    icma_pack_options options = conv_options(&said);
    fake_device device = {0};
    icma_decoded wanted, found;
    icma_generator_info info;
    icma_error error = {0};
    pack_on(icma_ops_cpu(), root, "x.icma", &options);
    icma_bundle *bundle = packing_open(root, "x.icma", icma_ops_cpu());
    packing_decode(bundle, "a", 0, &wanted);
    assert_int_equal(icma_bundle_use_device(bundle, fake_device_open(&device, 0), &error), ICMA_E_USAGE);
    assert_false(icma_bundle_leave_device(bundle));
    icma_bundle_close(bundle);
    /* What there is to do is known before the device is chosen. */
    error = (icma_error){0};
    bundle = packing_open(root, "x.icma", icma_ops_cpu());
    assert_int_equal(icma_bundle_generator(bundle, 0, &info, &error), ICMA_OK);
    assert_true(info.decode_work > info.modelled_parameters);
    assert_int_equal(icma_bundle_use_device(bundle, fake_device_open(&device, 0), &error), ICMA_OK);
    packing_decode(bundle, "a", 0, &found);
    assert_true(device.live > 0 && found.size == wanted.size);
    assert_memory_equal(found.data, wanted.data, wanted.size);
    icma_decoded_free(&found);
    assert_true(icma_bundle_leave_device(bundle));
    assert_int_equal(device.live, 0);
    packing_decode(bundle, "a", 0, &found);
    assert_memory_equal(found.data, wanted.data, wanted.size);
    icma_decoded_free(&found);
    icma_decoded_free(&wanted);
    icma_bundle_close(bundle);
    delete (root, "x.icma");
}

/* Each allocation of decoding fails on the device: the CPU gives the same file. */
static void a_device_without_memory_is_left(void **state) {
    const char *root = *state;
    speech said = {0};
    icma_pack_options options = conv_options(&said);
    size_t k = 0, failures = 0;
    bool reached = true;
    pack_on(icma_ops_cpu(), root, "x.icma", &options);
    while (reached) {
        fake_device device = {.fails_at = ++k};
        icma_decoded decoded;
        icma_error error = {0};
        icma_bundle *bundle = packing_open(root, "x.icma", fake_device_open(&device, 0));
        icma_status status = icma_bundle_decode(bundle, 0, 0, &decoded, &error);
        assert_true(status == ICMA_OK || status == ICMA_E_MEMORY);
        failures += status != ICMA_OK;
        icma_decoded_free(&decoded);
        assert_true(icma_bundle_leave_device(bundle));
        assert_int_equal(device.live, 0);
        packing_decode(bundle, "a", 0, &decoded); /* compares checksums */
        icma_decoded_free(&decoded);
        icma_bundle_close(bundle);
        reached = device.allocations >= k;
    }
    assert_true(failures > 5 && failures == k - 1);
    delete (root, "x.icma");
}

int main(void) {
    const struct CMUnitTest small[] = {
        cmocka_unit_test(what_stays_on_the_device_changes_no_bit),
        cmocka_unit_test(losses_are_fetched_seldom),
        cmocka_unit_test(a_basis_is_packed_on_the_cpu),
        cmocka_unit_test(memory_may_end_anywhere_on_the_device),
        cmocka_unit_test(a_bundle_changes_its_device),
        cmocka_unit_test(a_device_without_memory_is_left),
    };
    const struct CMUnitTest large[] = {
        cmocka_unit_test(less_memory_is_a_smaller_batch),
        cmocka_unit_test(no_batch_is_small_enough),
    };
    return cmocka_run_group_tests(small, write_small, drop) +
           cmocka_run_group_tests(large, write_large, drop);
}
