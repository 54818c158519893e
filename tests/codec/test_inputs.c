/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* realpath, memmem */
#include "file.h"
#include "inputs.h"
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static int make_root(void **state) {
    *state = support_new_folder();
    return 0;
}

static int drop_root(void **state) {
    support_remove_tree(*state);
    return 0;
}

/* Finds root/relative; "" is root itself. */
static icma_status find(const char *root, const char *relative, icma_inputs *out, icma_error *error) {
    char *path = support_path(root, relative);
    const char *paths[] = {*relative ? path : root};
    icma_status status = icma_inputs_find(paths, 1, out, error);
    support_free(path);
    return status;
}

static void must_find(const char *root, const char *relative, icma_inputs *out) {
    icma_error error = {0};
    if (find(root, relative, out, &error) != ICMA_OK)
        fail_msg("%s: %s", error.file, error.message);
}

/* The error's file and message must hold both texts. */
static void must_fail(const char *root, const char *relative, icma_status expected, const char *one,
                      const char *two) {
    icma_inputs inputs;
    icma_error error = {0};
    char told[ICMA_ERROR_FILE_SIZE + ICMA_ERROR_MESSAGE_SIZE + 4];
    icma_status status = find(root, relative, &inputs, &error);
    snprintf(told, sizeof told, "%s: %s", error.file, error.message);
    if (status != expected || !strstr(told, one) || !strstr(told, two))
        fail_msg("%s, not %s: %s", icma_status_name(status), icma_status_name(expected), told);
    assert_null(inputs.tasks);
    assert_null(inputs.skips);
}

/* What was found as text: "cat: 9 10 - | dog: 1", with skips as "; skipped x". */
static void describe(const icma_inputs *inputs, char *out, size_t size) {
    size_t used = 0;
    *out = '\0';
    for (size_t t = 0; t < inputs->task_count; t++) {
        const icma_input_task *task = &inputs->tasks[t];
        used += (size_t)snprintf(out + used, size - used, "%s%s:", t ? " | " : "", task->name);
        for (size_t c = 0; c < task->checkpoint_count; c++) {
            if (task->checkpoints[c].has_step)
                used += (size_t)snprintf(out + used, size - used, " %llu",
                                         (unsigned long long)task->checkpoints[c].step);
            else
                used += (size_t)snprintf(out + used, size - used, " -");
            if (task->checkpoints[c].final_path)
                used += (size_t)snprintf(out + used, size - used, "=-");
            if (task->checkpoints[c].shards)
                used += (size_t)snprintf(out + used, size - used, "/%zu", task->checkpoints[c].shards);
        }
    }
    for (size_t i = 0; i < inputs->skip_count; i++)
        used += (size_t)snprintf(out + used, size - used, "; skipped %s",
                                 strrchr(inputs->skips[i].path, '/') + 1);
}

static void assert_found(const char *root, const char *relative, const char *expected) {
    icma_inputs inputs;
    char found[4096];
    must_find(root, relative, &inputs);
    describe(&inputs, found, sizeof found);
    assert_string_equal(found, expected);
    icma_inputs_free(&inputs);
}

/* --- order --------------------------------------------------------------------------------------------- */

static void natural_order_counts(void **state) {
    (void)state;
    static const char *const sorted[] = {"",
                                         "1",
                                         "01b",
                                         "2",
                                         "10",
                                         "99999999999999999999998",
                                         "99999999999999999999999",
                                         "A",
                                         "a",
                                         "a-9",
                                         "a-09b",
                                         "a-10",
                                         "a-10-1",
                                         "a-10-2",
                                         "a-10a",
                                         "ab",
                                         "b",
                                         "\xc3\xa9"};
    for (size_t i = 0; i < COUNT(sorted); i++)
        for (size_t j = 0; j < COUNT(sorted); j++) {
            int order = icma_compare_natural(sorted[i], sorted[j]), expected = (i > j) - (i < j);
            if ((order > 0) - (order < 0) != expected)
                fail_msg("'%s' and '%s': %d", sorted[i], sorted[j], order);
        }
    assert_true(icma_compare_natural("a01", "a1") < 0); /* a tie goes by bytes */
    assert_true(icma_compare_natural("a01z", "a1b") > 0);
}

/* --- trees --------------------------------------------------------------------------------------------- */

static void trainer_trees_give_steps_in_order(void **state) {
    const char *root = *state;
    support_write_lora(root, "out/cat/checkpoint-10/adapter_model.safetensors");
    support_write_lora(root, "out/cat/checkpoint-9/adapter_model.safetensors");
    support_write_lora(root, "out/cat/checkpoint-100/adapter_model.safetensors");
    support_write_lora(root, "out/cat/adapter_model.safetensors");
    support_write_lora(root, "out/task10/adapter_model.safetensors");
    support_write_lora(root, "out/task9/pytorch_lora_weights.safetensors");
    assert_found(root, "", "cat: 9 10 100=- | task9: - | task10: -");
    assert_found(root, "out/cat", "cat: 9 10 100=-");
    assert_found(root, "out/cat/", "cat: 9 10 100=-");
    assert_found(root, "out/cat/checkpoint-9", "cat: 9");
    assert_found(root, "out/cat/checkpoint-9/", "cat: 9");
    assert_found(root, "out/cat/checkpoint-9/.", "cat: 9");
    assert_found(root, "out/cat/checkpoint-9/..", "cat: 9 10 100=-");
    assert_found(root, "out/cat/checkpoint-9/adapter_model.safetensors", "cat: 9");
    assert_found(root, "out/task9/./pytorch_lora_weights.safetensors", "task9: -");
}

static void names_come_from_the_working_folder_too(void **state) {
    const char *root = *state;
    support_write_lora(root, "cat/checkpoint-9/adapter_model.safetensors");
    support_write_lora(root, "dog/adapter_model.safetensors");
    char *before = realpath(".", NULL), *cat = support_path(root, "cat"),
         *nine = support_path(cat, "checkpoint-9"), *dog = support_path(root, "dog");
    icma_inputs inputs;
    icma_error error = {0};
    static const struct {
        size_t at;
        const char *path, *expected;
    } cases[] = {{0, ".", "cat: 9"},
                 {0, "checkpoint-9", "cat: 9"},
                 {1, ".", "cat: 9"},
                 {1, "./", "cat: 9"},
                 {1, "adapter_model.safetensors", "cat: 9"},
                 {2, "adapter_model.safetensors", "dog: -"},
                 {2, "../cat//checkpoint-9", "cat: 9"}};
    const char *folders[] = {cat, nine, dog};
    for (size_t i = 0; i < COUNT(cases); i++) {
        char found[256];
        assert_int_equal(chdir(folders[cases[i].at]), 0);
        assert_int_equal(icma_inputs_find(&cases[i].path, 1, &inputs, &error), ICMA_OK);
        describe(&inputs, found, sizeof found);
        assert_string_equal(found, cases[i].expected);
        icma_inputs_free(&inputs);
    }
    assert_int_equal(chdir(before), 0);
    free(before);
    support_free(cat);
    support_free(nine);
    support_free(dog);
}

static void plain_files_lose_their_step(void **state) {
    const char *root = *state;
    support_write_lora(root, "style-000010.safetensors");
    support_write_lora(root, "style-000002.safetensors");
    support_write_lora(root, "style-step5.safetensors");
    support_write_lora(root, "style.safetensors");
    support_write_lora(root, "style-v1-2.safetensors");
    support_write_lora(root, "a.b-step.safetensors");
    support_write_lora(root, "x-0000010.safetensors");
    assert_found(root, "", "a.b-step: - | style: 2 5 10 - | style-v1-2: - | x-0000010: -");
    assert_found(root, "style-step5.safetensors", "style: 5");
}

static void an_extension_is_not_needed_where_a_file_is_named(void **state) {
    const char *root = *state;
    support_write_lora(root, "style-000010.lora");
    assert_found(root, "style-000010.lora", "style: 10");
    must_fail(root, "", ICMA_E_NOT_FOUND, "no LoRA adapters", "");
}

static void plain_files_may_lie_beside_a_folders_adapter(void **state) {
    const char *root = *state;
    support_write_lora(root, "cat/adapter_model.safetensors");
    support_write_lora(root, "cat/dog.safetensors");
    support_write_lora(root, "cat/cat-000007.safetensors");
    assert_found(root, "", "cat: 7 - | dog: -");
}

static void helper_files_are_passed_over_and_others_told(void **state) {
    const char *root = *state;
    static const uint8_t pickle[] = {0x80, 0x02, '}', 'q', 0}, zip[] = {'P', 'K', 3, 4, 0, 0};
    support_write_lora(root, "cat/checkpoint-1/adapter_model.safetensors");
    support_write_file(root, "cat/checkpoint-1/optimizer.pt", pickle, sizeof pickle);
    support_write_file(root, "cat/checkpoint-1/rng_state_0.pth", zip, sizeof zip);
    support_write_file(root, "cat/checkpoint-1/training_args.bin", zip, sizeof zip);
    support_write_file(root, "cat/checkpoint-1/scheduler.pt", zip, sizeof zip);
    support_write_text(root, "cat/checkpoint-1/notes.bin", "not a pickle");
    support_write_text(root, "cat/checkpoint-1/short.bin", "P");
    support_write_text(root, "cat/checkpoint-1/optimizer.safetensors", "nothing of the kind");
    support_write_text(root, "cat/.hidden/adapter_model.safetensors", "not looked at");
    support_write_file(root, "cat/checkpoint-2/adapter_model.bin", pickle, sizeof pickle);
    support_write_file(root, "cat/old.ckpt", zip, sizeof zip);
    support_write_safetensors(root, "cat/model.safetensors",
                              "{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", "x", 1);
    support_make_pipe(root, "cat/pipe");
    assert_found(
        root, "",
        "cat: 1; skipped model.safetensors; skipped old.ckpt; skipped pipe; skipped adapter_model.bin");
    icma_inputs inputs;
    must_find(root, "", &inputs);
    assert_non_null(strstr(inputs.skips[0].reason, "not a LoRA adapter"));
    assert_non_null(strstr(inputs.skips[1].reason, "pickle"));
    icma_inputs_free(&inputs);
    must_fail(root, "cat/old.ckpt", ICMA_E_UNSUPPORTED, "old.ckpt", "pickle");
    must_fail(root, "cat/model.safetensors", ICMA_E_UNSUPPORTED, "model.safetensors", "not a LoRA adapter");
    must_fail(root, "cat/pipe", ICMA_E_FORMAT, "pipe", "");
    must_fail(root, "cat/checkpoint-2", ICMA_E_NOT_FOUND, "adapter_model.bin", "pickle");
}

/* What "task/\*" of a shell brings along. */
static void named_helpers_are_passed_over(void **state) {
    const char *root = *state;
    support_write_lora(root, "cat/adapter_model.safetensors");
    support_write_text(root, "cat/README.md", "a cat");
    support_write_text(root, "cat/task_vector.npy", "");
    support_write_text(root, "cat/trainer_state.json", "{}");
    static const char *const names[] = {"cat/README.md", "cat/adapter_model.safetensors",
                                        "cat/task_vector.npy", "cat/trainer_state.json"};
    char *paths[COUNT(names)];
    for (size_t i = 0; i < COUNT(names); i++)
        paths[i] = support_path(root, names[i]);
    icma_inputs inputs;
    icma_error error = {0};
    assert_int_equal(icma_inputs_find((const char *const *)paths, COUNT(paths), &inputs, &error), ICMA_OK);
    assert_int_equal(inputs.task_count, 1);
    assert_int_equal(inputs.skip_count, 0);
    assert_int_equal(inputs.tasks[0].checkpoints[0].side_file_count, 1);
    icma_inputs_free(&inputs);
    for (size_t i = 0; i < COUNT(names); i++)
        support_free(paths[i]);
}

static void side_files_come_with_folders_only(void **state) {
    const char *root = *state;
    static char large[(1 << 20) + 1];
    memset(large, ' ', sizeof large);
    support_write_lora(root, "cat/checkpoint-1/adapter_model.safetensors");
    support_write_text(root, "cat/checkpoint-1/adapter_config.json", "{}");
    support_write_text(root, "cat/checkpoint-1/README.md", "");
    support_write_text(root, "cat/checkpoint-1/note10.txt", "x");
    support_write_text(root, "cat/checkpoint-1/note9.txt", "x");
    support_write_text(root, "cat/checkpoint-1/trainer_state.json", "{}");
    support_write_text(root, "cat/checkpoint-1/tokenizer_config.json", "{}");
    support_write_text(root, "cat/checkpoint-1/vocab.txt", "x");
    support_write_text(root, "cat/checkpoint-1/code.py", "x");
    support_write_file(root, "cat/checkpoint-1/limit.txt", large, sizeof large - 1);
    support_write_file(root, "cat/checkpoint-1/over.txt", large, sizeof large);
    support_write_lora(root, "cat/plain.safetensors");
    support_write_text(root, "cat/plain.json", "{}");
    icma_inputs inputs;
    must_find(root, "", &inputs);
    static const char *const expected[] = {"README.md", "adapter_config.json", "limit.txt", "note9.txt",
                                           "note10.txt"};
    assert_int_equal(inputs.task_count, 2);
    const icma_input_checkpoint *checkpoint = &inputs.tasks[0].checkpoints[0];
    assert_int_equal(checkpoint->side_file_count, COUNT(expected));
    for (size_t i = 0; i < COUNT(expected); i++) {
        assert_string_equal(checkpoint->side_files[i].name, expected[i]);
        assert_non_null(strstr(checkpoint->side_files[i].path, "cat/checkpoint-1/"));
        assert_int_equal(access(checkpoint->side_files[i].path, R_OK), 0);
    }
    assert_int_equal(inputs.tasks[1].checkpoints[0].side_file_count, 0);
    assert_int_equal(inputs.skip_count, 1);
    assert_non_null(strstr(inputs.skips[0].path, "over.txt"));
    icma_inputs_free(&inputs);
}

/* --- conditions ---------------------------------------------------------------------------------------- */

static const char *condition_of(const icma_inputs *inputs, const char *task) {
    for (size_t i = 0; i < inputs->task_count; i++)
        if (strcmp(inputs->tasks[i].name, task) == 0)
            return inputs->tasks[i].condition_path ? strrchr(inputs->tasks[i].condition_path, '/') + 1 : NULL;
    fail_msg("no task %s", task);
    return NULL;
}

static void a_task_vector_is_its_folders_condition(void **state) {
    const char *root = *state;
    support_write_lora(root, "both/adapter_model.safetensors");
    support_write_text(root, "both/task_vector.npy", "x");
    support_write_text(root, "both/task_vector.safetensors", "x");
    support_write_lora(root, "npy/checkpoint-3/adapter_model.safetensors");
    support_write_text(root, "npy/task_vector.npy", "x");
    support_write_lora(root, "none/adapter_model.safetensors");
    support_write_lora(root, "one/style-000001.safetensors");
    support_write_lora(root, "one/style-000002.safetensors");
    support_write_text(root, "one/task_vector.npy", "x");
    support_write_lora(root, "many/p.safetensors");
    support_write_lora(root, "many/q.safetensors");
    support_write_text(root, "many/task_vector.npy", "x");
    icma_inputs inputs;
    must_find(root, "", &inputs);
    assert_string_equal(condition_of(&inputs, "both"), "task_vector.safetensors");
    assert_string_equal(condition_of(&inputs, "npy"), "task_vector.npy");
    assert_null(condition_of(&inputs, "none"));
    assert_string_equal(condition_of(&inputs, "style"), "task_vector.npy");
    assert_null(condition_of(&inputs, "p"));
    assert_null(condition_of(&inputs, "q"));
    assert_int_equal(inputs.skip_count, 1);
    icma_inputs_free(&inputs);
    must_find(root, "npy/checkpoint-3", &inputs);
    assert_string_equal(condition_of(&inputs, "npy"), "task_vector.npy");
    icma_inputs_free(&inputs);
}

/* --- refusals ------------------------------------------------------------------------------------------ */

static void duplicates_name_both(void **state) {
    const char *root = *state;
    support_write_lora(root, "a/checkpoint-7/adapter_model.safetensors");
    support_write_lora(root, "a/checkpoint-007/adapter_model.safetensors");
    must_fail(root, "a", ICMA_E_USAGE, "checkpoint-7/", "checkpoint-007/");
    support_write_lora(root, "b/adapter_model.safetensors");
    support_write_lora(root, "b/pytorch_lora_weights.safetensors");
    must_fail(root, "b", ICMA_E_USAGE, "adapter_model", "pytorch_lora_weights");
    support_write_lora(root, "c/one/x/adapter_model.safetensors");
    support_write_lora(root, "c/two/x/checkpoint-1/adapter_model.safetensors");
    must_fail(root, "c", ICMA_E_USAGE, "one/x", "two/x");
    support_write_lora(root, "d/Cat/adapter_model.safetensors");
    support_write_lora(root, "d/dog/adapter_model.safetensors");
    support_write_lora(root, "d/cat/adapter_model.safetensors");
    must_fail(root, "d", ICMA_E_USAGE, "d/Cat", "d/cat");
    support_write_lora(root, "e/s.safetensors");
    char *path = support_path(root, "e/s.safetensors");
    const char *const twice[] = {path, path};
    icma_inputs inputs;
    assert_int_equal(icma_inputs_find(twice, 2, &inputs, NULL), ICMA_E_USAGE);
    support_free(path);
}

static void a_folder_named_twice_counts_once(void **state) {
    const char *root = *state;
    support_write_lora(root, "cat/checkpoint-7/adapter_model.safetensors");
    support_write_lora(root, "cat/checkpoint-8/adapter_model.safetensors");
    char *cat = support_path(root, "cat"), *seven = support_path(root, "cat/checkpoint-7/../checkpoint-7");
    const char *const paths[] = {seven, cat, root};
    icma_inputs inputs;
    icma_error error = {0};
    assert_int_equal(icma_inputs_find(paths, 3, &inputs, &error), ICMA_OK);
    assert_int_equal(inputs.task_count, 1);
    assert_int_equal(inputs.tasks[0].checkpoint_count, 2);
    icma_inputs_free(&inputs);
    support_free(cat);
    support_free(seven);
}

static void unsafe_names_are_refused(void **state) {
    const char *root = *state;
    support_write_lora(root, "a/-x/adapter_model.safetensors");
    must_fail(root, "a", ICMA_E_USAGE, "'-x'", "rename");
    support_write_lora(root, "b/new\nline.safetensors");
    must_fail(root, "b", ICMA_E_USAGE, "new\nline", "");
    support_write_lora(root, "c/latin\xe9/adapter_model.safetensors");
    must_fail(root, "c", ICMA_E_USAGE, "latin\xe9", "");
    support_write_lora(root, "d/-000010.safetensors");
    must_fail(root, "d", ICMA_E_USAGE, "''", "");
}

static void missing_and_empty_are_not_found(void **state) {
    const char *root = *state;
    support_make_folder(root, "empty");
    must_fail(root, "empty", ICMA_E_NOT_FOUND, "no LoRA adapters", "");
    must_fail(root, "missing", ICMA_E_NOT_FOUND, "missing", "");
    support_write_text(root, "file", "x");
    must_fail(root, "file/beneath", ICMA_E_NOT_FOUND, "file/beneath", "");
    icma_inputs inputs;
    assert_int_equal(icma_inputs_find(NULL, 0, &inputs, NULL), ICMA_E_NOT_FOUND);
    const char *nothing = "";
    assert_int_equal(icma_inputs_find(&nothing, 1, &inputs, NULL), ICMA_E_NOT_FOUND);
}

static void damaged_files_are_named(void **state) {
    const char *root = *state;
    support_write_lora(root, "cat/checkpoint-1/adapter_model.safetensors");
    support_write_text(root, "cat/checkpoint-2/adapter_model.safetensors", "\x08\0\0\0\0\0\0\0{");
    must_fail(root, "", ICMA_E_CORRUPT, "checkpoint-2/adapter_model.safetensors", "");
    static const uint8_t pickle[] = {0x80, 0x04, 0x95, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    support_write_file(root, "dog/adapter_model.safetensors", pickle, sizeof pickle);
    must_fail(root, "dog", ICMA_E_UNSUPPORTED, "dog/adapter_model.safetensors", "");
}

/* --- links and depth ----------------------------------------------------------------------------------- */

static void loops_of_links_end(void **state) {
    const char *root = *state;
    support_write_lora(root, "cat/checkpoint-1/adapter_model.safetensors");
    support_make_link(root, "cat/checkpoint-1/up", "..");
    support_make_link(root, "cat/self", ".");
    support_make_link(root, "cat/knot", "knot");
    support_make_link(root, "dog", "cat");
    support_make_link(root, "best", "cat/checkpoint-1");
    assert_found(root, "", "cat: 1");
}

static void links_are_followed(void **state) {
    const char *root = *state;
    support_write_lora(root, "store/blob");
    support_make_link(root, "tree/cat/checkpoint-1/adapter_model.safetensors", "../../../store/blob");
    support_make_link(root, "tree/cat/adapter_model.safetensors", "checkpoint-1/adapter_model.safetensors");
    support_make_link(root, "tree/gone/adapter_model.safetensors", "nowhere");
    support_make_link(root, "tree/gone/other", "nowhere");
    support_make_link(root, "alias", "tree/cat");
    assert_found(root, "tree", "cat: 1=-; skipped adapter_model.safetensors");
    assert_found(root, "alias", "alias: 1=-");
    assert_found(root, "alias/checkpoint-1", "alias: 1");
}

/* Each rung links twice to the next: 2^40 paths, 41 folders. */
static void a_ladder_of_links_is_climbed_once(void **state) {
    const char *root = *state;
    char name[64], target[64];
    for (unsigned i = 0; i < 40; i++) {
        snprintf(target, sizeof target, "../%u", i + 1);
        snprintf(name, sizeof name, "%u/a", i);
        support_make_link(root, name, target);
        snprintf(name, sizeof name, "%u/b", i);
        support_make_link(root, name, target);
    }
    support_write_lora(root, "40/adapter_model.safetensors");
    assert_found(root, "", "40: -");
}

static void depth_ends_at_32(void **state) {
    const char *root = *state;
    char deep[256] = "", shallow[300];
    for (unsigned i = 0; i < 32; i++)
        strcat(deep, "d/");
    snprintf(shallow, sizeof shallow, "%sadapter_model.safetensors", deep);
    support_write_lora(root, shallow);
    assert_found(root, "", "d: -");
    strcat(deep, "e/adapter_model.safetensors");
    support_write_lora(root, deep);
    assert_found(root, "", "d: -; skipped e");
}

/* --- the k-th allocation fails ------------------------------------------------------------------------- */

static void running_out_of_memory_leaves_nothing(void **state) {
    const char *root = *state;
    support_write_lora(root, "cat/checkpoint-1/adapter_model.safetensors");
    support_write_text(root, "cat/checkpoint-1/adapter_config.json", "{}");
    support_write_lora(root, "cat/dog.safetensors");
    support_write_text(root, "cat/task_vector.npy", "x");
    support_make_pipe(root, "pipe");
    icma_status status = ICMA_E_MEMORY;
    for (size_t k = 0; status != ICMA_OK; k++) {
        support_budget budget = {.left = k};
        icma_inputs inputs;
        icma_error error = {0};
        support_limit_memory(&budget);
        status = icma_inputs_find(&root, 1, &inputs, &error);
        icma_inputs_free(&inputs);
        support_limit_memory(NULL);
        assert_int_equal(budget.live, 0);
        if (status != ICMA_OK && status != ICMA_E_MEMORY)
            fail_msg("%zu: %s: %s", k, error.file, error.message);
        assert_int_equal(status, error.status);
    }
}

#define TREE_TEST(name) cmocka_unit_test_setup_teardown(name, make_root, drop_root)

/* --- a final that is the last checkpoint --------------------------------------------------------------- */

static char *text_of(const icma_input_checkpoint *checkpoint, const char *name) {
    for (size_t i = 0; i < checkpoint->side_file_count; i++)
        if (strcmp(checkpoint->side_files[i].name, name) == 0) {
            uint8_t *data;
            size_t size;
            assert_int_equal(icma_file_read_all(checkpoint->side_files[i].path, 1 << 20, &data, &size, NULL),
                             ICMA_OK);
            char *text = strndup((const char *)data, size);
            support_free(data);
            return text;
        }
    return strdup("(none)");
}

static void assert_side(const icma_input_checkpoint *checkpoint, const char *name, const char *expected) {
    char *text = text_of(checkpoint, name);
    assert_string_equal(text, expected);
    free(text);
}

static void an_equal_final_is_taken_once(void **state) {
    const char *root = *state;
    support_write_lora(root, "t/cat/checkpoint-10/adapter_model.safetensors");
    support_write_lora(root, "t/cat/checkpoint-20/adapter_model.safetensors");
    support_write_lora(root, "t/cat/adapter_model.safetensors");
    support_write_text(root, "t/cat/checkpoint-20/adapter_config.json", "{}");
    support_write_text(root, "t/cat/adapter_config.json", "{}");
    support_write_text(root, "t/cat/checkpoint-20/README.md", "of 20");
    support_write_text(root, "t/cat/README.md", "final");
    support_write_text(root, "t/cat/notes.txt", "only the final has these");
    support_write_text(root, "t/cat/checkpoint-20/state.json", "only 20 has this");
    assert_found(root, "t", "cat: 10 20=-");
    icma_inputs inputs;
    must_find(root, "t", &inputs);
    const icma_input_checkpoint *last = &inputs.tasks[0].checkpoints[1];
    assert_int_equal(last->side_file_count, 5);
    assert_side(last, "README.md", "final");
    assert_side(last, "README.checkpoint-20.md", "of 20");
    assert_side(last, "notes.txt", "only the final has these");
    assert_side(last, "state.json", "only 20 has this");
    assert_non_null(strstr(last->path, "checkpoint-20"));
    icma_inputs_free(&inputs);

    support_write_text(root, "t/cat/adapter_config.json",
                       "{\"lora_alpha\": 3}"); /* another adapter to who loads it */
    assert_found(root, "t", "cat: 10 20 -");
    support_write_text(root, "t/cat/adapter_config.json", "{}");
    support_write_text(root, "t/cat/README.checkpoint-20.md", "in the way");
    assert_found(root, "t", "cat: 10 20 -");
    support_write_safetensors(
        root, "u/dog/checkpoint-5/adapter_model.safetensors",
        "{\"m.lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
        "\"m.lora_B.weight\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[24,40]}}",
        "0123456789012345678901234567890123456789", 40);
    support_write_lora(root, "u/dog/adapter_model.safetensors");
    assert_found(root, "u", "dog: 5 -");
    support_write_lora(root, "v/kohya-000010.safetensors"); /* plain files have names of their own to keep */
    support_write_lora(root, "v/kohya.safetensors");
    assert_found(root, "v", "kohya: 10 -");
}

/* --- shards -------------------------------------------------------------------------------------------- */

#define A_OF(begin, end)                                                                                     \
    "\"m.lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[" begin "," end "]}"
#define B_OF(begin, end)                                                                                     \
    "\"m.lora_B.weight\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[" begin "," end "]}"
#define SHARD(n) "adapter_model-0000" n "-of-00002.safetensors"

static const float numbers[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};

static void write_shards(const char *root, const char *first, const char *second) {
    support_write_safetensors(root, "s/cat/" SHARD("1"), first, numbers + 6, 16);
    support_write_safetensors(root, "s/cat/" SHARD("2"), second, numbers, 24);
    support_write_text(root, "s/cat/adapter_config.json", "{}");
    support_write_text(root, "s/cat/adapter_model.safetensors.index.json",
                       "{\"metadata\": {\"total_size\": 40}, \"weight_map\": {\"m.lora_A.weight\": \"" SHARD(
                           "2") "\","
                                " \"m.lora_B.weight\": \"" SHARD("1") "\"}}");
}

static void shards_are_one_adapter(void **state) {
    const char *root = *state;
    static const char b[] = "{\"__metadata__\":{\"format\":\"pt\"}," B_OF("0", "16") "}";
    static const char a[] = "{\"__metadata__\":{\"format\":\"pt\",\"more\":\"1\"}," A_OF("0", "24") "}";
    write_shards(root, b, a);
    assert_found(root, "s", "cat: -/2");
    assert_found(root, "s/cat/" SHARD("1"), "cat: -/2");
    icma_inputs inputs;
    must_find(root, "s", &inputs);
    const icma_input_checkpoint *whole = &inputs.tasks[0].checkpoints[0];
    assert_string_equal(strrchr(whole->path, '/'), "/adapter_model.safetensors");
    assert_int_equal(whole->side_file_count, 1); /* no index */
    uint8_t *image;
    size_t size;
    icma_safetensors tensors;
    const uint8_t *data;
    assert_int_equal(icma_file_read_all(whole->path, 1 << 20, &image, &size, NULL), ICMA_OK);
    assert_int_equal(icma_safetensors_view(image, size, &tensors, &data, NULL), ICMA_OK);
    assert_int_equal(tensors.tensor_count, 2);
    assert_string_equal(tensors.tensors[0].name,
                        "m.lora_A.weight"); /* as the safetensors package orders them */
    assert_memory_equal(data, numbers, sizeof numbers);
    assert_non_null(memmem(tensors.header, tensors.header_size, "\"more\":\"1\"", 10));
    icma_safetensors_free(&tensors);
    support_free(image);
    icma_inputs_free(&inputs);

    support_write_lora(root, "s/cat/adapter_model.safetensors");
    assert_found(root, "s", "cat: -; skipped " SHARD("1"));
}

static void shards_that_do_not_fit_are_refused(void **state) {
    const char *root = *state;
    static const char b[] = "{" B_OF("0", "16") "}", a[] = "{" A_OF("0", "24") "}";
    static const char one[] = "{\"__metadata__\":{\"k\":\"1\"}," B_OF("0", "16") "}";
    static const char two[] = "{\"__metadata__\":{\"k\":\"2\"}," A_OF("0", "24") "}";
    write_shards(root, one, two);
    must_fail(root, "s", ICMA_E_CORRUPT, "different things", "k");
    write_shards(root, b, a);
    support_write_text(root, "s/cat/adapter_model.safetensors.index.json",
                       "{\"weight_map\": {\"m.lora_B.weight\": \"" SHARD("1") "\"}}");
    must_fail(root, "s", ICMA_E_CORRUPT, "not in", "index");
    support_write_text(root, "s/cat/adapter_model.safetensors.index.json",
                       "{\"weight_map\": {\"m.lora_B.weight\": \"" SHARD(
                           "2") "\", \"m.lora_A.weight\": \"" SHARD("1") "\"}}");
    must_fail(root, "s", ICMA_E_CORRUPT, "index", "m.lora_B.weight");
    support_write_safetensors(root, "x/" SHARD("2"), a, numbers, 24);
    must_fail(root, "x", ICMA_E_CORRUPT, "missing", "1 of 2");
    support_write_safetensors(root, "x/adapter_model-00001-of-00003.safetensors", a, numbers, 24);
    must_fail(root, "x", ICMA_E_CORRUPT, "does not belong", "");
    support_write_safetensors(root, "y/" SHARD("1"), a, numbers, 24);
    support_write_safetensors(root, "y/" SHARD("2"), a, numbers, 24);
    must_fail(root, "y", ICMA_E_UNSUPPORTED, "two tensors", "m.lora_A.weight");
}

/* --- named adapters, and names ------------------------------------------------------------------------- */

static void named_adapters_are_tasks(void **state) {
    const char *root = *state;
    support_write_lora(root, "t/cat/adapter_model.safetensors");
    support_write_lora(root, "t/cat/ref/adapter_model.safetensors");
    assert_found(root, "t", "cat: - | ref: -");
    support_write_lora(root, "t/cat/checkpoint-10/adapter_model.safetensors");
    support_write_lora(root, "t/cat/checkpoint-9/ref/adapter_model.safetensors");
    support_write_lora(root, "t/cat/checkpoint-10/ref/adapter_model.safetensors");
    support_write_lora(root, "t/cat/checkpoint-10/other/adapter_model.safetensors");
    assert_found(root, "t/cat", "cat: 10=- | other: 10 | ref: 9 10=-");
    support_write_lora(root, "t/dog/checkpoint-3/ref/adapter_model.safetensors");
    assert_found(root, "t", "cat: 10=- | cat.ref: 9 10=- | dog.ref: 3 | other: 10");
}

static void trainers_names_give_steps(void **state) {
    const char *root = *state;
    static const char *const names[] = {"a_000001000",  "a_000000500",    "a",
                                        "b-000010",     "b-step00000100", "c_00000100",
                                        "d_0000001000", "_000000001"};
    for (size_t i = 0; i < COUNT(names); i++) {
        char path[64];
        snprintf(path, sizeof path, "k/%s.safetensors", names[i]);
        support_write_lora(root, path);
    }
    assert_found(root, "k", "_000000001: - | a: 500 1000 - | b: 10 100 | c_00000100: - | d_0000001000: -");
}

static void adapters_without_pairs_are_taken(void **state) {
    static const struct {
        const char *name;
        bool taken;
    } names[] = {
        {"base_model.model.h.0.attn.ia3_l", true},
        {"lora_unet_x.diff", true},
        {"lora_unet_x.w_norm", true},
        {"lora_unet_x.lokr_w1", true},
        {"m.oft_r", true},
        {"m.lora_magnitude_vector", true},
        {"m.lora_A.weight", true},
        {"lora_te_x.dora_scale", true},
        {"prompt_embeddings", true},
        {"model.layers.0.self_attn.q_proj.weight", false},
        {"diff.weight", false},
        {"lora_block.weight", false},
    };
    for (size_t i = 0; i < COUNT(names); i++) {
        char header[256], path[64];
        snprintf(header, sizeof header,
                 "{\"%s\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[0,4]}}", names[i].name);
        snprintf(path, sizeof path, "n%zu/x.safetensors", i);
        support_write_safetensors(*state, path, header, "abcd", 4);
        path[strlen(path) - strlen("/x.safetensors")] = '\0';
        if (names[i].taken)
            assert_found(*state, path, "x: -");
        else
            must_fail(*state, path, ICMA_E_NOT_FOUND, "not a LoRA adapter", "");
    }
    support_write_safetensors(*state, "kohya/x.safetensors",
                              "{\"__metadata__\":{\"ss_network_module\":\"lycoris.kohya\"},\"a\":{\"dtype\":"
                              "\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
                              "abcd", 4);
    assert_found(*state, "kohya", "x: -");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(natural_order_counts),
        TREE_TEST(trainer_trees_give_steps_in_order),
        TREE_TEST(names_come_from_the_working_folder_too),
        TREE_TEST(plain_files_lose_their_step),
        TREE_TEST(an_extension_is_not_needed_where_a_file_is_named),
        TREE_TEST(plain_files_may_lie_beside_a_folders_adapter),
        TREE_TEST(helper_files_are_passed_over_and_others_told),
        TREE_TEST(named_helpers_are_passed_over),
        TREE_TEST(side_files_come_with_folders_only),
        TREE_TEST(a_task_vector_is_its_folders_condition),
        TREE_TEST(duplicates_name_both),
        TREE_TEST(a_folder_named_twice_counts_once),
        TREE_TEST(unsafe_names_are_refused),
        TREE_TEST(missing_and_empty_are_not_found),
        TREE_TEST(damaged_files_are_named),
        TREE_TEST(loops_of_links_end),
        TREE_TEST(links_are_followed),
        TREE_TEST(a_ladder_of_links_is_climbed_once),
        TREE_TEST(depth_ends_at_32),
        TREE_TEST(running_out_of_memory_leaves_nothing),
        cmocka_unit_test_setup_teardown(an_equal_final_is_taken_once, make_root, drop_root),
        cmocka_unit_test_setup_teardown(shards_are_one_adapter, make_root, drop_root),
        cmocka_unit_test_setup_teardown(shards_that_do_not_fit_are_refused, make_root, drop_root),
        cmocka_unit_test_setup_teardown(named_adapters_are_tasks, make_root, drop_root),
        cmocka_unit_test_setup_teardown(trainers_names_give_steps, make_root, drop_root),
        cmocka_unit_test_setup_teardown(adapters_without_pairs_are_taken, make_root, drop_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
