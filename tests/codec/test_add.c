/* SPDX-License-Identifier: Apache-2.0 */
/* Adding to an archive and removing from it, from inside: rows as they decode, newcomers projected on them,
 * offsets, what the functions of icma.h promise. What comes of it in files: tests/cli/test_add.py. */
#include "bundle_inside.h"
#include "compress.h"
#include "fit.h"
#include "memory.h"
#include "packing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An archive of two tasks in root/x.icma, with a basis. */
typedef struct lab {
    char *root, *path;
    icma_bundle *bundle;
} lab;

static void write_task(const char *root, const char *task, uint64_t seed, size_t rank) {
    trajectory t = small_trajectory;
    t.seed = seed;
    t.rank = rank;
    packing_write(root, task, &t, 1, 4);
}

static void open_again(lab *l) {
    icma_bundle_close(l->bundle);
    l->bundle = packing_open(l->root, "x.icma", icma_ops_cpu());
    icma_error error = {0};
    assert_int_equal(icma_bundle_load_group(l->bundle, 0, &error), ICMA_OK);
    assert_int_equal(icma_bundle_open_decoder(l->bundle, 0, &error), ICMA_OK);
}

static int make_lab(void **state) {
    lab *l = calloc(1, sizeof *l);
    icma_pack_options options = packing_options();
    l->root = support_new_folder();
    write_task(l->root, "a", 1, 2);
    write_task(l->root, "b", 2, 2);
    options.generator = ICMA_CHOOSE_BASIS;
    packing_pack(l->root, "x.icma", &options, NULL);
    l->path = support_path(l->root, "x.icma");
    write_task(l->root, "c", 3, 2);
    open_again(l);
    *state = l;
    return 0;
}

static int free_lab(void **state) {
    lab *l = *state;
    icma_bundle_close(l->bundle);
    support_free(l->path);
    support_remove_tree(l->root);
    free(l);
    return 0;
}

static void find(const lab *l, const char *below, icma_inputs *inputs) {
    icma_error error = {0};
    char *path = support_path(l->root, below);
    assert_int_equal(icma_inputs_find((const char *const[]){path}, 1, inputs, &error), ICMA_OK);
    support_free(path);
}

/* A prediction is the sum of the rows, each times its coefficient. */
static void rows_add_up(void **state) {
    lab *l = *state;
    const icma_group_state *g = &l->bundle->groups[0];
    icma_error error = {0};
    size_t total = g->generator.total;
    float *code = malloc(total * sizeof *code), rows[64 * 32], values[64];
    uint64_t random = 5;
    for (size_t k = 0; k < total; k++)
        code[k] = (float)support_normal(&random);
    for (size_t t = 0; t < g->signature.tensor_count; t++) {
        size_t role = g->generator.treatment[t], k = g->generator.components[role],
               count = (size_t)g->signature.tensors[t].count;
        size_t at = icma_generator_first(&g->generator, role), half = count / 2;
        assert_true(k > 0 && k * count <= sizeof rows / sizeof *rows);
        assert_int_equal(icma_decoder_predict(g->decoder, code, t, values, &error), ICMA_OK);
        for (int part = 0; part < 2; part++) { /* any columns */
            size_t first = part ? half : 0, columns = part ? count - half : half;
            assert_int_equal(icma_decoder_rows(g->decoder, t, first, columns, rows, &error), ICMA_OK);
            for (size_t l2 = 0; l2 < columns; l2++) {
                double sum = 0, size = 0;
                for (size_t i = 0; i < k; i++) {
                    sum += (double)code[at + i] * (double)rows[i * columns + l2];
                    size += fabs((double)code[at + i] * (double)rows[i * columns + l2]);
                }
                double scale = (double)g->generator.scale[t];
                assert_true(fabs(sum * scale - (double)values[first + l2]) <= 1e-5 * size * scale);
            }
        }
    }
    free(code);
}

/* What the basis itself makes is found again, coefficient by coefficient, and explained in full. */
static void projection_finds_codes(void **state) {
    lab *l = *state;
    const icma_group_state *g = &l->bundle->groups[0];
    icma_error error = {0};
    icma_progress none = {0};
    size_t total = g->generator.total, size = (size_t)g->signature.data_size;
    float *code = malloc(total * sizeof *code);
    uint8_t *file = malloc(8 + g->signature.header_size + size);
    uint64_t random = 9;
    for (size_t k = 0; k < total; k++)
        code[k] = (float)(support_normal(&random) * 3);
    icma_store_u64(file, g->signature.header_size);
    memcpy(file + 8, g->signature.header, g->signature.header_size);
    assert_int_equal(
        icma_decoder_tensors(g->decoder, code, NULL, NULL, 0, file + 8 + g->signature.header_size, &error),
        ICMA_OK);
    support_write_file(l->root, "made/m/adapter_model.safetensors", file,
                       8 + g->signature.header_size + size);
    icma_inputs inputs;
    icma_dataset data;
    icma_fit fit;
    find(l, "made", &inputs);
    const icma_safetensors *known = &g->signature;
    assert_int_equal(icma_dataset_open_beside(&inputs, 0, &known, 1, NULL, &data, &error), ICMA_OK);
    assert_int_equal(data.count, 1);
    assert_int_equal(data.groups[0].count, 1);
    assert_false(data.groups[0].sources[0].own_header);
    assert_int_equal(
        icma_fit_project(&data.groups[0], &g->generator, g->decoder, icma_ops_cpu(), &none, &fit, &error),
        ICMA_OK);
    for (size_t k = 0; k < total; k++)
        assert_true(fabs(fit.coordinates[k] - (double)code[k]) < 1e-3 * (1 + fabs((double)code[k])));
    icma_gram gram;
    assert_int_equal(
        icma_gram_compute_as(&data.groups[0], icma_ops_cpu(), 4096, 1, &none, &g->generator, &gram, &error),
        ICMA_OK);
    for (int role = 0; role < ICMA_ROLE_COUNT; role++)
        if (gram.matrix[role])
            assert_true(fabs(fit.captured[role][0] / gram.matrix[role][0] - 1) < 1e-4);
    icma_gram_free(&gram);
    icma_fit_free(&fit);
    icma_dataset_close(&data);
    icma_inputs_free(&inputs);
    free(code);
    free(file);
}

/* In place; the old tasks' adapters are the same bits, the new one's hold the bound, on every table. */
static void added_and_removed(void **state) {
    lab *l = *state;
    icma_inputs inputs;
    icma_error error = {0};
    icma_add_result result;
    icma_remove_result removed;
    size_t size, again;
    uint8_t *before = packing_read(l->root, "x.icma", &size), *after;
    find(l, "in/c", &inputs);
    icma_add_options options = icma_add_defaults();
    options.choice = ICMA_ADD_OLD;
    assert_int_equal(icma_bundle_add(l->path, &inputs, &options, NULL, &result, &error), ICMA_OK);
    assert_int_equal(result.group_count, 1);
    assert_true(result.groups[0].joined && result.groups[0].checkpoints == 4 && result.pack.task_count == 1);
    assert_true(result.groups[0].explained > 0 && result.groups[0].explained < 1);
    assert_true(result.packed_anew > (double)result.bytes_before);
    icma_add_result_free(&result);
    icma_bound bound = {ICMA_BOUND_DW, 0.1F};
    assert_true(packing_within(packing_worst_error(l->root, "x.icma"), bound));
    open_again(l);
    assert_int_equal(icma_bundle_find_task(l->bundle, "c"), 2);
    const icma_task_state *task = &l->bundle->tasks[2];
    assert_int_equal(icma_bundle_load_task(l->bundle, 2, &error), ICMA_OK);
    assert_int_equal(task->parts[0].table.origin, ICMA_CONDITION_OFFSET);
    const char *name = "c";
    assert_int_equal(icma_bundle_add(l->path, &inputs, &options, NULL, &result, &error), ICMA_E_EXISTS);
    memset(&error, 0, sizeof error);
    assert_int_equal(icma_bundle_remove(l->path, &name, 1, NULL, &removed, &error), ICMA_OK);
    assert_int_equal(removed.tasks, 1);
    assert_int_equal(removed.tasks_left, 2);
    after = packing_read(l->root, "x.icma", &again);
    assert_int_equal(size, again);
    assert_memory_equal(before, after, size);
    assert_int_equal(icma_bundle_remove(l->path, &name, 1, NULL, &removed, &error), ICMA_E_NOT_FOUND);
    support_free(before);
    support_free(after);
    icma_inputs_free(&inputs);
}

static void write_steps(const lab *l, const char *task, uint64_t seed, size_t first, size_t count) {
    trajectory t = small_trajectory;
    t.seed = seed;
    packing_write(l->root, task, &t, first, count);
}

/* Hashes of a task's checkpoints, each decoded and compared with its own. */
static size_t hashes(lab *l, size_t task, uint64_t *out, size_t room) {
    icma_error error = {0};
    icma_task_info info;
    open_again(l);
    assert_int_equal(icma_bundle_task(l->bundle, task, &info, &error), ICMA_OK);
    assert_true(info.checkpoint_count <= room);
    for (size_t c = 0; c < info.checkpoint_count; c++) {
        icma_decoded decoded;
        assert_int_equal(icma_bundle_decode(l->bundle, task, c, &decoded, &error), ICMA_OK);
        out[c] = icma_hash(decoded.data, decoded.size);
        assert_int_equal(out[c], info.checkpoints[c].hash);
        icma_decoded_free(&decoded);
    }
    return info.checkpoint_count;
}

/* New steps of a task that is there, beside a new task: what was there is passed over and keeps its bits, the
 * condition stays, latents go on from the last ones. */
static void steps_go_on(void **state) {
    lab *l = *state;
    icma_inputs inputs;
    icma_error error = {0};
    icma_add_result result;
    uint64_t old[8], now[8];
    assert_int_equal(hashes(l, 0, old, 8), 4);
    write_steps(l, "a", 1, 41, 2);
    find(l, "in", &inputs);
    icma_add_options options = icma_add_defaults();
    options.choice = ICMA_ADD_NEW; /* of new tasks */
    assert_int_equal(icma_bundle_add(l->path, &inputs, &options, NULL, &result, &error), ICMA_OK);
    assert_int_equal(result.skipped, 8);
    assert_int_equal(result.pack.task_count, 2);
    assert_true(result.checkpoints_before[0] == 4 && result.checkpoints_before[1] == 0);
    assert_true(result.pack.tasks[0].checkpoints == 2 && result.pack.tasks[1].checkpoints == 4);
    assert_int_equal(result.group_count, 2);
    assert_string_equal(result.groups[0].task, "a");
    assert_null(result.groups[1].task);
    assert_true(result.groups[0].joined && result.groups[0].group == 0 && result.groups[0].checkpoints == 2);
    assert_true(result.groups[0].bytes >= 2 * 8 && isnan(result.packed_anew)); /* a hash each, at least */
    icma_add_result_free(&result);
    icma_inputs_free(&inputs);
    assert_int_equal(hashes(l, 0, now, 8), 6);
    assert_memory_equal(now, old, 4 * sizeof *now);
    icma_bound bound = {ICMA_BOUND_DW, 0.1F};
    assert_true(packing_within(packing_worst_error(l->root, "x.icma"), bound));
    assert_int_equal(icma_bundle_load_task(l->bundle, 0, &error), ICMA_OK);
    const icma_checkpoints *table = &l->bundle->tasks[0].parts[0].table;
    assert_int_equal(table->origin, ICMA_CONDITION_LEARNED);
    size_t latents = l->bundle->groups[0].generator.latent;
    assert_true(latents > 0);
    for (size_t c = 4; c < 6; c++)
        assert_memory_equal(table->list[c].latent, table->list[3].latent,
                            latents * sizeof *table->list[3].latent);
}

/* What cannot follow: all that is there, a step before the last, other tensors. The archive stays as it is.
 */
static void steps_that_cannot_follow(void **state) {
    lab *l = *state;
    icma_inputs inputs;
    icma_add_result result;
    size_t size, again;
    uint8_t *before = packing_read(l->root, "x.icma", &size), *after;
    static const size_t steps[] = {11, 26, 41};
    static const icma_status wanted[] = {ICMA_E_EXISTS, ICMA_E_EXISTS, ICMA_E_UNSUPPORTED};
    static const char *const saying[] = {"nothing is new", "checkpoint-26", "checkpoint-41"};
    icma_add_options options = icma_add_defaults();
    for (size_t i = 0; i < 3; i++) {
        icma_error error = {0};
        trajectory t = small_trajectory;
        t.seed = 1;
        t.rank = i == 2 ? 3 : 2;
        if (i == 2)
            support_remove_tree(support_path(l->root, "in/a"));
        packing_write(l->root, "a", &t, steps[i], 1);
        find(l, "in/a", &inputs);
        assert_int_equal(icma_bundle_add(l->path, &inputs, &options, NULL, &result, &error), wanted[i]);
        assert_non_null(strstr(error.message, saying[i]) ? strstr(error.message, saying[i])
                                                         : strstr(error.file, saying[i]));
        icma_inputs_free(&inputs);
    }
    after = packing_read(l->root, "x.icma", &again);
    assert_int_equal(size, again);
    assert_memory_equal(before, after, size);
    support_free(before);
    support_free(after);
}

/* Options of another size are another library's. */
static void options_are_sized(void **state) {
    lab *l = *state;
    icma_inputs inputs;
    icma_error error = {0};
    icma_add_result result;
    icma_remove_result removed;
    const char *name = "a";
    find(l, "in/c", &inputs);
    icma_add_options options = icma_add_defaults();
    icma_change_options change = icma_change_defaults();
    options.size = 8;
    assert_int_equal(icma_bundle_add(l->path, &inputs, &options, NULL, &result, &error), ICMA_E_USAGE);
    options = icma_add_defaults();
    change.size = sizeof change + 1;
    options.change = &change;
    assert_int_equal(icma_bundle_add(l->path, &inputs, &options, NULL, &result, &error), ICMA_E_USAGE);
    assert_int_equal(icma_bundle_remove(l->path, &name, 1, &change, &removed, &error), ICMA_E_USAGE);
    icma_inputs_free(&inputs);
}

/* Every allocation of an add and of a remove fails once: nothing leaks, and the archive is as it was. */
static void survives_without_memory(void **state) {
    lab *l = *state;
    icma_inputs inputs, steps;
    icma_add_result result;
    icma_remove_result removed;
    const char *name = "a";
    size_t size, again;
    uint8_t *before = packing_read(l->root, "x.icma", &size);
    icma_add_options options = icma_add_defaults();
    icma_change_options change = icma_change_defaults();
    icma_pack_options pack = packing_options();
    pack.epochs = 1;
    change.dry_run = true;
    options.change = &change;
    options.pack = &pack;
    find(l, "in/c", &inputs);
    write_steps(l, "a", 1, 41, 2);
    find(l, "in/a", &steps);
    for (int verb = 0; verb < 4; verb++) {
        icma_status status = ICMA_E_MEMORY;
        options.choice = verb ? ICMA_ADD_NEW : ICMA_ADD_OLD;
        for (size_t left = 0; status; left += left < 40 ? 1 : 37) {
            icma_error error = {0};
            support_budget budget = {.left = left};
            support_limit_memory(&budget);
            status = verb < 3 ? icma_bundle_add(l->path, verb < 2 ? &inputs : &steps, &options, NULL, &result,
                                                &error)
                              : icma_bundle_remove(l->path, &name, 1, &change, &removed, &error);
            if (!status && verb < 3)
                icma_add_result_free(&result);
            support_limit_memory(NULL);
            assert_true(status == ICMA_OK || status == ICMA_E_MEMORY);
            assert_int_equal(budget.live, 0);
        }
    }
    uint8_t *after = packing_read(l->root, "x.icma", &again);
    assert_int_equal(size, again);
    assert_memory_equal(before, after, size);
    support_free(before);
    support_free(after);
    icma_inputs_free(&inputs);
    icma_inputs_free(&steps);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(rows_add_up, make_lab, free_lab),
        cmocka_unit_test_setup_teardown(projection_finds_codes, make_lab, free_lab),
        cmocka_unit_test_setup_teardown(added_and_removed, make_lab, free_lab),
        cmocka_unit_test_setup_teardown(steps_go_on, make_lab, free_lab),
        cmocka_unit_test_setup_teardown(steps_that_cannot_follow, make_lab, free_lab),
        cmocka_unit_test_setup_teardown(options_are_sized, make_lab, free_lab),
        cmocka_unit_test_setup_teardown(survives_without_memory, make_lab, free_lab),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
