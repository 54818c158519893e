/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Training in coordinates is training with an explicit K x L head (CODEC.md, "Two generators"): equal losses,
 * gradients and plain-gradient steps. Also how the network starts, Adam, and degenerate shapes.
 */
#include "gram.h"
#include "model.h"
#include "support.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = 12, L = 300, TASKS = 3, STEPS = 100, MOST_CELLS = 160 };

static double *make(size_t count) {
    double *values = calloc(count + 1, sizeof *values);
    assert_non_null(values);
    return values;
}

/* c (rows x columns) = a (rows x inner) b, or b^T with b columns x inner */
static void product(const double *a, const double *b, bool transpose, size_t rows, size_t inner,
                    size_t columns, double *c) {
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++) {
            double sum = 0;
            for (size_t k = 0; k < inner; k++)
                sum += a[i * inner + k] * (transpose ? b[j * inner + k] : b[k * columns + j]);
            c[i * columns + j] = sum;
        }
}

/* |a - b| / |b| */
static double distance(const double *a, const double *b, size_t count) {
    double error = 0, energy = 0;
    for (size_t i = 0; i < count; i++) {
        error += (a[i] - b[i]) * (a[i] - b[i]);
        energy += b[i] * b[i];
    }
    return sqrt(error / energy);
}

/* --- coordinates against an explicit head -------------------------------------------------------------- */

/* Checkpoints x = p e with orthonormal e, and the two models of them. */
typedef struct comparison {
    double *x, *e, *p; /* N x L, N x L, N x N */
    double *noise, *weight_p, *weight_x;
    uint32_t task[N];
    model coordinates, whole;
    model_batch batch_p, batch_x;
    twin t; /* the model in coordinates */
} comparison;

static void decompose(comparison *c) {
    double *gram = make((size_t)N * N), one[N];
    icma_eigen eigen;
    icma_error error = {0};
    product(c->x, c->x, true, N, L, N, gram);
    for (size_t i = 0; i < N; i++)
        one[i] = 1;
    assert_int_equal(icma_eigen_solve(icma_ops_cpu(), gram, one, N, &eigen, &error), ICMA_OK);
    assert_int_equal(eigen.rank, N);
    c->e = make((size_t)N * L);
    c->p = make((size_t)N * N);
    product(eigen.mixing, c->x, false, N, N, L, c->e);
    memcpy(c->p, eigen.coordinates, sizeof(double) * N * N);
    icma_eigen_free(&eigen);
    free(gram);
}

/* The last layer's matrices, times e. */
static void lift(comparison *c, double *const *from, double *const *to) {
    for (int p = 0; p < ICMA_PARAMETERS; p++) {
        bool last = p == ICMA_P_V3 || p == ICMA_P_S || p == ICMA_P_b3;
        size_t rows, columns;
        model_shape(&c->coordinates, p, &rows, &columns);
        if (last)
            product(from[p], c->e, false, rows, N, L, to[p]);
        else
            memcpy(to[p], from[p], rows * columns * sizeof(double));
    }
}

static void make_comparison(comparison *c) {
    uint64_t random = 61;
    *c = (comparison){.coordinates = {.inputs = N,
                                      .targets = N,
                                      .latent = 3,
                                      .coordinates = TASKS,
                                      .hidden = 8,
                                      .encoder_hidden = 10,
                                      .tasks = TASKS}};
    c->whole = c->coordinates;
    c->whole.targets = L;
    c->x = model_normals(&random, (size_t)N * L, 0.2);
    decompose(c);
    model_allocate(&c->coordinates);
    model_allocate(&c->whole);
    for (int p = 0; p < ICMA_PARAMETERS; p++) {
        free(c->coordinates.parameter[p]);
        c->coordinates.parameter[p] = model_normals(&random, model_cells(&c->coordinates, p), 0.3);
    }
    lift(c, c->coordinates.parameter, c->whole.parameter);
    c->noise = model_normals(&random, (size_t)N * c->coordinates.latent, 1);
    c->weight_p = make(N);
    c->weight_x = make(L);
    for (size_t j = 0; j < L; j++)
        c->weight_x[j] = 0.5;
    for (size_t j = 0; j < N; j++)
        c->weight_p[j] = 0.5;
    for (size_t i = 0; i < N; i++)
        c->task[i] = (uint32_t)(i * TASKS / N);
    c->batch_p = (model_batch){N, c->p, c->p, c->weight_p, c->task, c->noise, 0.1};
    c->batch_x = (model_batch){N, c->x, c->p, c->weight_x, c->task, c->noise, 0.1};
    c->batch_p.kl_weight = c->batch_x.kl_weight = (float)0.1F;
    twin_make(&c->t, icma_ops_cpu(), &c->coordinates, &c->batch_p);
}

static void free_comparison(comparison *c) {
    double *all[] = {c->x, c->e, c->p, c->noise, c->weight_p, c->weight_x};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    twin_free(&c->t);
    model_free(&c->coordinates);
    model_free(&c->whole);
}

static void the_basis_is_orthonormal_and_complete(void **state) {
    comparison *c = *state;
    double *gram = make((size_t)N * N), *x = make((size_t)N * L);
    product(c->e, c->e, true, N, L, N, gram);
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < N; j++)
            assert_true(fabs(gram[i * N + j] - (i == j)) < 1e-10);
    product(c->p, c->e, false, N, N, L, x);
    assert_true(distance(x, c->x, (size_t)N * L) < 1e-10);
    free(gram);
    free(x);
}

/* Largest difference as a share of the largest entry. */
static double worst_of(const double *a, const double *b, size_t count) {
    double worst = 0, largest = 1e-30;
    for (size_t i = 0; i < count; i++) {
        worst = fmax(worst, fabs(a[i] - b[i]));
        largest = fmax(largest, fabs(b[i]));
    }
    return worst / largest;
}

static void loss_and_gradient_are_equal(void **state) {
    comparison *c = *state;
    double parts[2], explicit[2];
    double loss = twin_loss(&c->t, &parts[0], &parts[1]);
    double whole = model_loss(&c->whole, &c->batch_x, &explicit[0], &explicit[1], NULL);
    assert_true(fabs(loss - whole) < 2e-6 * whole);
    assert_true(fabs(parts[0] - explicit[0]) < 2e-6 * whole && fabs(parts[1] - explicit[1]) < 2e-6 * whole);
    twin_backward(&c->t, c->coordinates.gradient);
    model_backward(&c->whole, &c->batch_x);
    for (int p = 0; p < ICMA_PARAMETERS; p++) {
        size_t rows, columns;
        model_shape(&c->coordinates, p, &rows, &columns);
        double *expected = make(rows * columns);
        if (p == ICMA_P_V3 || p == ICMA_P_S || p == ICMA_P_b3)
            product(c->whole.gradient[p], c->e, true, rows, L, N, expected); /* times e^T */
        else
            memcpy(expected, c->whole.gradient[p], rows * columns * sizeof(double));
        double worst = worst_of(c->coordinates.gradient[p], expected, rows * columns);
        if (!(worst < 1e-5))
            fail_msg("gradient of parameter %d: off by %g", p, worst);
        free(expected);
    }
    /* The explicit head's gradient lies in the span too: that is why its steps stay there. */
    double **lifted = (double *[ICMA_PARAMETERS]){NULL};
    for (int p = 0; p < ICMA_PARAMETERS; p++)
        lifted[p] = make(model_cells(&c->whole, p));
    lift(c, c->coordinates.gradient, lifted);
    for (int p = 0; p < ICMA_PARAMETERS; p++) {
        assert_true(worst_of(lifted[p], c->whole.gradient[p], model_cells(&c->whole, p)) < 1e-5);
        free(lifted[p]);
    }
}

/* The check above must be able to fail: rows that are not orthonormal give another gradient. */
static void rows_that_are_not_orthonormal_differ(void **state) {
    comparison *c = *state;
    for (size_t l = 0; l < L; l++)
        c->e[l] *= 1.05;
    lift(c, c->coordinates.parameter, c->whole.parameter);
    twin_loss(&c->t, NULL, NULL);
    twin_backward(&c->t, c->coordinates.gradient);
    model_backward(&c->whole, &c->batch_x);
    size_t count = model_cells(&c->coordinates, ICMA_P_V2);
    assert_true(worst_of(c->coordinates.gradient[ICMA_P_V2], c->whole.gradient[ICMA_P_V2], count) > 1e-3);
}

static void descend(comparison *c, double rate) {
    const icma_ops *ops = c->t.ops;
    twin_loss(&c->t, NULL, NULL);
    icma_cvae_backward(c->t.cvae, &c->t.batch);
    model_backward(&c->whole, &c->batch_x);
    for (int p = 0; p < ICMA_PARAMETERS; p++) {
        ops->axpy(ops->device, (float)-rate, icma_cvae_gradient(c->t.cvae, p),
                  icma_cvae_parameter(c->t.cvae, p));
        for (size_t i = 0; i < model_cells(&c->whole, p); i++)
            c->whole.parameter[p][i] -= (double)(float)rate * c->whole.gradient[p][i];
    }
}

static void a_hundred_steps_are_equal(void **state) {
    comparison *c = *state;
    double *q = make((size_t)N * N), *y = make((size_t)N * L), *whole = make((size_t)N * L),
           *start = make((size_t)N * L);
    double before = model_loss(&c->whole, &c->batch_x, NULL, NULL, start);
    for (int step = 0; step < STEPS; step++)
        descend(c, 0.05);
    double after = model_loss(&c->whole, &c->batch_x, NULL, NULL, whole);
    twin_loss(&c->t, NULL, NULL);
    twin_output(&c->t, q);
    product(q, c->e, false, N, N, L, y);
    print_message("           loss %.4f to %.4f, predictions differ by %.2g\n", before, after,
                  distance(y, whole, (size_t)N * L));
    assert_true(distance(y, whole, (size_t)N * L) < 1e-5);
    assert_true(after < 0.8 * before &&
                distance(start, whole, (size_t)N * L) > 0.2); /* it has gone somewhere */
    free(q);
    free(y);
    free(whole);
    free(start);
}

static int setup(void **state) {
    comparison *c = malloc(sizeof *c);
    assert_non_null(c);
    make_comparison(c);
    *state = c;
    return 0;
}

static int teardown(void **state) {
    free_comparison(*state);
    free(*state);
    return 0;
}

/* --- Adam ---------------------------------------------------------------------------------------------- */

static void get(comparison *c, int p, float *values) {
    icma_error error = {0};
    assert_int_equal(icma_cvae_get(c->t.cvae, p, values, &error), ICMA_OK);
}

/* Three steps by the formula of Kingma and Ba, from the gradients that the network says; the masked
 * conditions stay as they are. */
static void adam_steps_as_written(void **state) {
    comparison *c = *state;
    const icma_ops *ops = c->t.ops;
    const float mask[TASKS * TASKS] = {1, 1, 1, 0, 0, 0, 1, 0, 1};
    icma_tensor *trainable;
    icma_error error = {0};
    assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_F32, TASKS * TASKS, &trainable, &error), ICMA_OK);
    assert_int_equal(ops->upload(ops->device, trainable, 0, mask, TASKS * TASKS, &error), ICMA_OK);
    double *m[ICMA_PARAMETERS], *v[ICMA_PARAMETERS];
    for (int p = 0; p < ICMA_PARAMETERS; p++) {
        m[p] = make(model_cells(&c->coordinates, p));
        v[p] = make(model_cells(&c->coordinates, p));
    }
    float before[MOST_CELLS], after[MOST_CELLS];
    for (uint64_t step = 1; step <= 3; step++) {
        icma_adam options = {.learning_rate = 0.01F, .beta1 = 0.9F, .beta2 = 0.999F, .epsilon = 1e-8F, .step = step};
        twin_loss(&c->t, NULL, NULL);
        twin_backward(&c->t, c->coordinates.gradient);
        float held[ICMA_PARAMETERS][MOST_CELLS];
        for (int p = 0; p < ICMA_PARAMETERS; p++) {
            assert_true(model_cells(&c->coordinates, p) <= MOST_CELLS);
            get(c, p, held[p]);
        }
        icma_cvae_adam(c->t.cvae, options, icma_matrix_of(trainable, TASKS, TASKS));
        for (int p = 0; p < ICMA_PARAMETERS; p++) {
            memcpy(before, held[p], sizeof before);
            get(c, p, after);
            for (size_t i = 0; i < model_cells(&c->coordinates, p); i++) {
                double g = c->coordinates.gradient[p][i];
                bool fixed = p == ICMA_P_CONDITIONS && mask[i] == 0;
                g = fixed ? 0 : g;
                m[p][i] = 0.9 * m[p][i] + 0.1 * g;
                v[p][i] = 0.999 * v[p][i] + 0.001 * g * g;
                double hat_m = m[p][i] / (1 - pow(0.9, (double)step)),
                       hat_v = v[p][i] / (1 - pow(0.999, (double)step));
                double wanted = before[i] - 0.01 * hat_m / (sqrt(hat_v) + 1e-8);
                if (fixed)
                    assert_memory_equal(&before[i], &after[i], sizeof(float));
                else if (!(fabs(after[i] - wanted) < 1e-6))
                    fail_msg("step %d, parameter %d: %.9g, not %.9g", (int)step, p, after[i], wanted);
            }
        }
    }
    for (int p = 0; p < ICMA_PARAMETERS; p++) {
        free(m[p]);
        free(v[p]);
    }
    ops->release(ops->device, trainable);
}

/* --- the start ----------------------------------------------------------------------------------------- */

static const icma_cvae_shape usual = {
    .targets = 20, .latent = 6, .coordinates = 3, .hidden = 16, .encoder_hidden = 24, .tasks = 3, .batch = 5};

static icma_cvae *create(icma_cvae_shape shape, uint64_t seed) {
    icma_rng rng = icma_rng_seed(seed);
    icma_cvae *cvae;
    icma_error error = {0};
    assert_int_equal(icma_cvae_create(icma_ops_cpu(), shape, &rng, &cvae, &error), ICMA_OK);
    return cvae;
}

static void networks_start_glorot_uniform(void **state) {
    (void)state;
    icma_cvae *cvae = create(usual, 7), *same = create(usual, 7), *other = create(usual, 8);
    float values[24 * 24], again[24 * 24], different[24 * 24];
    icma_error error = {0};
    for (int p = 0; p < ICMA_PARAMETERS; p++) {
        size_t rows, columns;
        icma_cvae_parameter_shape(&usual, p, &rows, &columns);
        size_t count = rows * columns;
        assert_true(count <= 24 * 24);
        assert_int_equal(icma_cvae_get(cvae, p, values, &error), ICMA_OK);
        assert_int_equal(icma_cvae_get(same, p, again, &error), ICMA_OK);
        assert_int_equal(icma_cvae_get(other, p, different, &error), ICMA_OK);
        assert_memory_equal(values, again, count * sizeof *values);
        bool zero = rows == 1 || p == ICMA_P_CONDITIONS;
        assert_int_equal(memcmp(values, different, count * sizeof *values) == 0, zero);
        double bound = sqrt(6.0 / (double)(rows + columns)) / (p == ICMA_P_EV || p == ICMA_P_V3 ? 100 : 1),
               largest = 0;
        /* No fmax: gcc 12 for aarch64 breaks down on it, on widened numbers. */
        for (size_t i = 0; i < count; i++) {
            double size = fabs((double)values[i]);
            largest = size > largest ? size : largest;
        }
        if (zero)
            assert_true(largest == 0);
        else
            assert_true(largest <= bound * (1 + FLT_EPSILON) && largest > 0.8 * bound);
    }
    icma_cvae_free(cvae);
    icma_cvae_free(same);
    icma_cvae_free(other);
    icma_cvae_free(NULL);
}

/* Without latents, with one checkpoint, one task, one of everything: nothing is out of bounds, the numbers
 * are finite. */
static void the_smallest_networks_run(void **state) {
    (void)state;
    for (int latent = 0; latent < 2; latent++) {
        model m = {.inputs = 1,
                   .targets = 1,
                   .latent = (size_t)latent,
                   .coordinates = 1,
                   .hidden = 1,
                   .encoder_hidden = 1,
                   .tasks = 1};
        const double p = 1.5, u = 0, weight = 2, noise = 0.5;
        const uint32_t task = 0;
        model_batch b = {1, &p, &u, &weight, &task, &noise, 1};
        double kl;
        twin t;
        model_allocate(&m);
        m.parameter[ICMA_P_b3][0] = 0.25;
        twin_make(&t, icma_ops_cpu(), &m, &b);
        assert_true(twin_loss(&t, NULL, &kl) == 2 * 1.25 * 1.25 && kl == 0);
        twin_backward(&t, m.gradient);
        assert_true(m.gradient[ICMA_P_b3][0] == -5);
        for (int k = 0; k < ICMA_PARAMETERS; k++)
            for (size_t i = 0; i < model_cells(&m, k); i++)
                assert_true(isfinite(m.gradient[k][i]));
        twin_free(&t);
        model_free(&m);
    }
}

static void memory_that_is_short_leaves_nothing(void **state) {
    (void)state;
    icma_ops_cpu();
    size_t k = 0;
    for (icma_status status = ICMA_E_MEMORY; status; k++) {
        support_budget budget = {.left = k};
        icma_rng rng = icma_rng_seed(1);
        icma_cvae *cvae = (icma_cvae *)(void *)&budget;
        icma_error error = {0};
        support_limit_memory(&budget);
        status = icma_cvae_create(icma_ops_cpu(), usual, &rng, &cvae, &error);
        assert_true(status == ICMA_OK || status == ICMA_E_MEMORY);
        assert_true((status == ICMA_OK) == (cvae != NULL));
        icma_cvae_free(cvae);
        support_limit_memory(NULL);
        assert_int_equal(budget.live, 0);
    }
    assert_true(k > 50);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_basis_is_orthonormal_and_complete, setup, teardown),
        cmocka_unit_test_setup_teardown(loss_and_gradient_are_equal, setup, teardown),
        cmocka_unit_test_setup_teardown(rows_that_are_not_orthonormal_differ, setup, teardown),
        cmocka_unit_test_setup_teardown(a_hundred_steps_are_equal, setup, teardown),
        cmocka_unit_test_setup_teardown(adam_steps_as_written, setup, teardown),
        cmocka_unit_test(networks_start_glorot_uniform),
        cmocka_unit_test(the_smallest_networks_run),
        cmocka_unit_test(memory_that_is_short_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
