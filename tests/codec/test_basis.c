/* SPDX-License-Identifier: Apache-2.0 */
/* Gram matrices, their eigenproblem, the choice of rows, and the projection of checkpoints outside the
 * sample, against plain double loops. */
#include "basis.h"
#include "head.h"
#include "memory.h"
#include "packing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SOURCES = 12, TENSORS = 4, ROLES = 2, CELLS = 40 };

/* Two tasks of six checkpoints, two modules; oddities go to places that the test knows. */
typedef struct lab {
    char *root;
    icma_inputs inputs;
    icma_dataset data;
    icma_group *group;
    icma_generator g;
    icma_gram gram;
    icma_basis basis;
    float x[SOURCES][TENSORS][CELLS]; /* what was written */
} lab;

static const size_t tensor_cells[TENSORS] = {24, 20, 24, 20}; /* of small_trajectory */

static void fill(lab *l) {
    for (size_t i = 0; i < SOURCES; i++) {
        size_t size;
        uint8_t *bytes = packing_original(l->root, i < 6 ? "a" : "b", 1 + 10 * (i % 6), &size);
        float *from = l->x[i][0];
        const uint8_t *data = bytes + size - 4 * (24 + 20 + 24 + 20);
        for (size_t t = 0; t < TENSORS; t++) {
            icma_load_floats(ICMA_F32, data, tensor_cells[t], from);
            data += 4 * tensor_cells[t];
            from += CELLS;
        }
        free(bytes);
    }
}

/* Overwrites one tensor of one checkpoint. */
static void spoil(lab *l, size_t source, size_t tensor, float value, bool all) {
    size_t size, at = 0;
    uint8_t *bytes = packing_original(l->root, source < 6 ? "a" : "b", 1 + 10 * (source % 6), &size);
    char path[100];
    for (size_t t = 0; t < tensor; t++)
        at += 4 * tensor_cells[t];
    for (size_t i = 0; i < (all ? tensor_cells[tensor] : 1); i++)
        memcpy(bytes + size - 4 * 88 + at + 4 * i, &value, sizeof value);
    snprintf(path, sizeof path, "in/%s/checkpoint-%zu/adapter_model.safetensors", source < 6 ? "a" : "b",
             1 + 10 * (source % 6));
    support_write_file(l->root, path, bytes, size);
    free(bytes);
}

static int make_lab(void **state) {
    lab *l = calloc(1, sizeof *l);
    trajectory other = small_trajectory;
    assert_non_null(l);
    other.seed = 2;
    l->root = support_new_folder();
    packing_write(l->root, "a", &small_trajectory, 1, 6);
    packing_write(l->root, "b", &other, 1, 6);
    *state = l;
    return 0;
}

static int drop_lab(void **state) {
    lab *l = *state;
    icma_basis_free(&l->basis);
    icma_gram_free(&l->gram);
    icma_generator_free(&l->g);
    icma_dataset_close(&l->data);
    icma_inputs_free(&l->inputs);
    support_remove_tree(l->root);
    free(l);
    return 0;
}

static void compute(lab *l, size_t limit) {
    char *in = support_path(l->root, "in");
    const char *paths[] = {in};
    icma_progress none = {0};
    icma_error error = {0};
    fill(l);
    assert_int_equal(icma_inputs_find(paths, 1, &l->inputs, &error), ICMA_OK);
    support_free(in);
    assert_int_equal(icma_dataset_open(&l->inputs, 0, NULL, &l->data, &error), ICMA_OK);
    assert_true(l->data.count == 1 && l->data.groups[0].count == SOURCES);
    l->group = &l->data.groups[0];
    l->g.tensor_count = TENSORS;
    assert_int_equal(icma_generator_allocate(&l->g, &error), ICMA_OK);
    assert_int_equal(icma_gram_compute(l->group, icma_ops_cpu(), limit, 9, &none, &l->g, &l->gram, &error),
                     ICMA_OK);
}

/* x~ of a source and tensor, 0 for an exception. */
static double standardised(const lab *l, size_t source, size_t tensor, size_t i) {
    bool exception = icma_group_is_exception(l->group, source, tensor);
    return exception ? 0 : l->x[source][tensor][i] / (double)l->g.scale[tensor];
}

static double inner(const lab *l, size_t a, size_t b, size_t role) {
    double sum = 0;
    for (size_t t = role; t < TENSORS; t += 2)
        for (size_t i = 0; i < tensor_cells[t]; i++)
            sum += standardised(l, a, t, i) * standardised(l, b, t, i);
    return sum;
}

static void gram_matrices_are_inner_products(void **state) {
    lab *l = *state;
    spoil(l, 3, 1, 0, true); /* an untrained B */
    spoil(l, 7, 2, NAN, false);
    compute(l, 4096);
    assert_int_equal(l->gram.count, SOURCES);
    for (size_t i = 0; i < SOURCES; i++)
        for (size_t t = 0; t < TENSORS; t++)
            assert_int_equal(icma_group_is_exception(l->group, i, t),
                             (i == 3 && t == 1) || (i == 7 && t == 2));
    for (size_t t = 0; t < TENSORS; t++) {
        double square = 0, count = 0;
        for (size_t s = 0; s < SOURCES; s++) {
            count += !icma_group_is_exception(l->group, s, t);
            for (size_t i = 0; i < tensor_cells[t] && !icma_group_is_exception(l->group, s, t); i++)
                square += (double)l->x[s][t][i] * l->x[s][t][i];
        }
        assert_int_equal(l->g.treatment[t], t % 2 ? ICMA_TREAT_B : ICMA_TREAT_A);
        /* A 64th of the norm, however many weights it is spread over. */
        assert_true(fabs(64 * l->g.scale[t] / sqrt(square / count) - 1) < 1e-6);
    }
    assert_true(l->gram.weights[ICMA_ROLE_A] == 48 && l->gram.weights[ICMA_ROLE_B] == 40 &&
                !l->gram.matrix[ICMA_ROLE_OTHER]);
    for (size_t role = 0; role < ROLES; role++)
        for (size_t i = 0; i < SOURCES; i++)
            for (size_t j = 0; j < SOURCES; j++)
                assert_true(fabs(l->gram.matrix[role][i * SOURCES + j] - inner(l, i, j, role)) <
                            2e-6 * 2 * 64 * 64);
}

static void eigen_adapters_are_orthonormal(void **state) {
    lab *l = *state;
    icma_eigen e;
    icma_error error = {0};
    double weight[SOURCES];
    compute(l, 4096);
    for (size_t i = 0; i < SOURCES; i++)
        weight[i] = i < 6 ? 0.5 : 1.25;
    const double *gram = l->gram.matrix[0];
    assert_int_equal(icma_eigen_solve(icma_ops_cpu(), gram, weight, SOURCES, &e, &error), ICMA_OK);
    assert_int_equal(e.count, SOURCES);
    for (size_t a = 0; a < e.rank; a++) {
        double largest = 0;
        for (size_t b = 0; b < e.rank; b++) { /* <e_a, e_b> = m_a G m_b */
            double sum = 0;
            for (size_t i = 0; i < SOURCES; i++)
                for (size_t j = 0; j < SOURCES; j++)
                    sum += e.mixing[a * SOURCES + i] * gram[i * SOURCES + j] * e.mixing[b * SOURCES + j];
            assert_true(fabs(sum - (a == b)) < 1e-6);
        }
        for (size_t i = 0; i < SOURCES; i++) { /* p = x~ e^T = G m */
            double p = 0, m = e.mixing[a * SOURCES + i];
            for (size_t j = 0; j < SOURCES; j++)
                p += gram[i * SOURCES + j] * e.mixing[a * SOURCES + j];
            assert_true(fabs(p - e.coordinates[i * e.rank + a]) < 1e-6);
            largest = fabs(m / weight[i]) > fabs(largest) ? m / weight[i] : largest;
        }
        assert_true(largest > 0 && (a == 0 || e.values[a] <= e.values[a - 1]));
    }
    icma_eigen_free(&e);
    double zero[4] = {0}, one[2] = {1, 1};
    assert_int_equal(icma_eigen_solve(icma_ops_cpu(), zero, one, 2, &e, &error), ICMA_OK);
    assert_int_equal(e.rank, 0);
    icma_eigen_free(&e);
}

static void within_task_variance(void **state) {
    (void)state;
    uint64_t random = 3;
    const uint32_t task[7] = {4, 4, 4, 0, 9, 9, 9};
    double x[7][5], gram[49], expected = 0;
    for (size_t i = 0; i < 7; i++)
        for (size_t l = 0; l < 5; l++)
            x[i][l] = support_normal(&random);
    for (size_t i = 0; i < 7; i++)
        for (size_t j = 0; j < 7; j++) {
            gram[i * 7 + j] = 0;
            for (size_t l = 0; l < 5; l++)
                gram[i * 7 + j] += x[i][l] * x[j][l];
        }
    for (size_t i = 0; i < 7; i++)
        for (size_t l = 0; l < 5; l++) {
            double mean = 0, count = 0;
            for (size_t j = 0; j < 7; j++)
                if (task[j] == task[i]) {
                    mean += x[j][l];
                    count++;
                }
            expected += (x[i][l] - mean / count) * (x[i][l] - mean / count);
        }
    assert_true(fabs(icma_within_task(gram, task, 7) - expected) < 1e-12);
}

static void choose(lab *l, size_t components, double explain, double max_error) {
    icma_error error = {0};
    const icma_basis_target target = {.components = components, .explain = explain, .max_error = max_error};
    icma_basis_free(&l->basis);
    assert_int_equal(icma_basis_choose(l->group, icma_ops_cpu(), &l->gram, &l->g, target, &l->basis, &error),
                     ICMA_OK);
    assert_int_equal(l->basis.total,
                     l->basis.components[0] + l->basis.components[1] + l->basis.components[2]);
}

static void rows_are_chosen_until_both_targets_hold(void **state) {
    lab *l = *state;
    compute(l, 4096);
    choose(l, 0, 1e-9, 100);
    assert_true(l->basis.components[0] == 1 && l->basis.components[1] == 1); /* never none */
    choose(l, 3, 0, 0);
    assert_true(l->basis.components[0] == 3 && l->basis.components[1] == 3 && l->basis.components[2] == 0);
    size_t before = 0;
    static const double targets[] = {0.3, 0.6, 0.9, 0.99};
    for (size_t i = 0; i < 4; i++) {
        choose(l, 0, targets[i], 100);
        assert_true(l->basis.explained >= targets[i] && l->basis.total >= before);
        before = l->basis.total;
    }
    choose(l, 0, 1e-9, 0.02);
    assert_true(l->basis.predicted_error <= 0.02 && l->basis.total > 2);
    choose(l, 1000, 0, 0);
    assert_true(l->basis.predicted_error < 1e-2 && l->basis.leftover < 1e-4 * l->basis.energy);
}

/* --- sources outside the sample ------------------------------------------------------------------------ */

static bool in_sample(const lab *l, size_t source) {
    for (size_t i = 0; i < l->gram.count; i++)
        if (l->gram.rows[i] == source)
            return true;
    return false;
}

/* Makes the head as packing does, and throws the archive away. */
static void write_head(lab *l) {
    char *path = support_path(l->root, "head.icma");
    icma_container_writer *writer;
    icma_section *chunks;
    size_t count;
    icma_progress none = {0};
    icma_error error = {0};
    memcpy(l->g.components, l->basis.components, sizeof l->g.components);
    icma_free(l->g.head_step);
    l->g.head_step = l->basis.step; /* moves */
    l->basis.step = NULL;
    assert_int_equal(icma_container_create(path, false, &writer, &error), ICMA_OK);
    assert_int_equal(icma_basis_write_head(l->group, 0, &l->gram, &l->g, icma_ops_cpu(), &none, &l->basis,
                                           writer, &chunks, &count, &error),
                     ICMA_OK);
    assert_true(count == 1 && chunks[0].first == 0 && chunks[0].count == TENSORS);
    icma_free(chunks);
    icma_container_abandon(writer);
    support_free(path);
}

static void sources_outside_the_sample_are_projected(void **state) {
    lab *l = *state;
    enum { SAMPLE = 5 };
    compute(l, SAMPLE);
    assert_int_equal(l->gram.count, SAMPLE);
    for (size_t i = 1; i < SAMPLE; i++)
        assert_true(l->gram.rows[i] > l->gram.rows[i - 1] && l->gram.rows[i] < SOURCES);
    choose(l, 1000, 0, 0);
    write_head(l);
    for (size_t s = 0; s < SOURCES; s++)
        for (size_t role = 0, first = 0; role < ROLES; first += l->basis.components[role++])
            for (size_t k = 0; k < l->basis.components[role]; k++) {
                double p = 0, size = sqrt(inner(l, s, s, role));
                for (size_t i = 0; i < SAMPLE; i++)
                    p += l->basis.mixing[role][k * SAMPLE + i] * inner(l, s, l->gram.rows[i], role);
                double found = l->basis.coordinates[s * l->basis.total + first + k];
                if (!(fabs(found - p) < 1e-4 * size))
                    fail_msg("source %zu, role %zu, row %zu: %g, not %g", s, role, k, found, p);
            }
}

/* What cannot be modelled is noticed in sources that the Gram matrix did not see. */
static void exceptions_outside_the_sample_are_noticed(void **state) {
    lab *l = *state;
    enum { SAMPLE = 5 };
    size_t others[SOURCES], count = 0;
    compute(l, SAMPLE); /* which are sampled depends on the seed alone */
    for (size_t s = 0; s < SOURCES; s++)
        if (!in_sample(l, s))
            others[count++] = s;
    assert_int_equal(count, SOURCES - SAMPLE);
    icma_gram_free(&l->gram);
    icma_generator_free(&l->g);
    icma_dataset_close(&l->data);
    icma_inputs_free(&l->inputs);
    spoil(l, others[0], 3, 0, true);
    spoil(l, others[1], 1, -0.0F, true);
    spoil(l, others[2], 0, INFINITY, false);
    compute(l, SAMPLE);
    choose(l, 1000, 0, 0);
    write_head(l);
    for (size_t s = 0; s < SOURCES; s++)
        for (size_t t = 0; t < TENSORS; t++) {
            bool wanted =
                (s == others[0] && t == 3) || (s == others[1] && t == 1) || (s == others[2] && t == 0);
            if (icma_group_is_exception(l->group, s, t) != wanted)
                fail_msg("source %zu, tensor %zu: %s", s, t, wanted ? "not noticed" : "an exception");
        }
    for (size_t i = 0; i < SOURCES * l->basis.total; i++)
        assert_true(isfinite(l->basis.coordinates[i]));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(gram_matrices_are_inner_products, make_lab, drop_lab),
        cmocka_unit_test_setup_teardown(eigen_adapters_are_orthonormal, make_lab, drop_lab),
        cmocka_unit_test(within_task_variance),
        cmocka_unit_test_setup_teardown(rows_are_chosen_until_both_targets_hold, make_lab, drop_lab),
        cmocka_unit_test_setup_teardown(sources_outside_the_sample_are_projected, make_lab, drop_lab),
        cmocka_unit_test_setup_teardown(exceptions_outside_the_sample_are_noticed, make_lab, drop_lab),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
