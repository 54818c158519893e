/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backward ops and the CVAE's gradient against central differences of the loss in double.
 *
 * Every check is a function of an op table that returns the worst disagreement it saw. It must be small for
 * the real tables, and large for a table with one mistake in it: a lost factor, sign or row. So each of them
 * is known to be able to fail.
 */
#include "model.h"
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const double agreed = 2e-5; /* of a gradient's largest entry: single precision */
static const double wrong = 1e-2;  /* what a mistake must give at least */

/* --- differences --------------------------------------------------------------------------------------- */

typedef double (*loss_function)(void *context);

/* Central differences of the loss by x[0 .. count - 1], which the context points at. Their error is about h^2
 * and 1e-16 / h. */
static void differentiate(loss_function loss, void *context, double *x, size_t count, double *out) {
    for (size_t i = 0; i < count; i++) {
        double held = x[i], h = 1e-5 * (1 + fabs(held));
        x[i] = held + h;
        double above = loss(context);
        x[i] = held - h;
        out[i] = (above - loss(context)) / (2 * h);
        x[i] = held;
    }
}

/* Largest difference as a share of the largest of the numeric ones. */
static double disagreement(const double *analytic, const double *numeric, size_t count) {
    double worst = 0, largest = 1e-30;
    for (size_t i = 0; i < count; i++) {
        worst = fmax(worst, isfinite(analytic[i]) ? fabs(analytic[i] - numeric[i]) : INFINITY);
        largest = fmax(largest, fabs(numeric[i]));
    }
    return worst / largest;
}

static double compare(loss_function loss, void *context, double *x, size_t count, const double *analytic) {
    double *numeric = calloc(count + 1, sizeof *numeric);
    assert_non_null(numeric);
    differentiate(loss, context, x, count, numeric);
    double worst = disagreement(analytic, numeric, count);
    free(numeric);
    return worst;
}

/* --- single ops ---------------------------------------------------------------------------------------- */

enum { ROWS = 7, IN = 5, OUT = 4, TABLE = 6 };

/* Numbers of every kind that the losses below are made of, and room for what the ops answer. */
typedef struct sheet {
    double x[ROWS * IN], w[IN * OUT], b[OUT], r[ROWS * OUT]; /* dense: sum r (x W + b) */
    double mu[ROWS * IN], logvar[ROWS * IN], noise[ROWS * IN], dz[ROWS * IN], weight;
    double p[ROWS * IN], q[ROWS * IN], weights[IN], scale;
    double rows[TABLE * IN];
    uint32_t index[ROWS];
} sheet;

static void fill_normals(uint64_t *random, double *values, size_t count) {
    for (size_t i = 0; i < count; i++)
        values[i] = (float)support_normal(random);
}

static sheet make_sheet(void) {
    static const uint32_t index[ROWS] = {5, 0, 3, 3, 1, 3, 0}; /* 2 and 4 never, 3 three times */
    uint64_t random = 31;
    sheet s = {.weight = 0.625, .scale = 0.375};
    double *all[] = {s.x, s.w, s.b, s.r, s.mu, s.logvar, s.noise, s.dz, s.p, s.q, s.weights, s.rows};
    const size_t counts[] = {ROWS * IN, IN * OUT,  OUT,       ROWS * OUT, ROWS * IN, ROWS * IN,
                             ROWS * IN, ROWS * IN, ROWS * IN, ROWS * IN,  IN,        TABLE * IN};
    for (size_t i = 0; i < COUNT(all); i++)
        fill_normals(&random, all[i], counts[i]);
    memcpy(s.index, index, sizeof index);
    return s;
}

static icma_matrix put(const icma_ops *ops, const double *values, size_t rows, size_t columns) {
    float rounded[64];
    icma_tensor *tensor;
    icma_error error = {0};
    assert_true(rows * columns <= COUNT(rounded));
    for (size_t i = 0; values && i < rows * columns; i++)
        rounded[i] = (float)values[i];
    assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_F32, rows * columns, &tensor, &error), ICMA_OK);
    if (values)
        assert_int_equal(ops->upload(ops->device, tensor, 0, rounded, rows * columns, &error), ICMA_OK);
    return icma_matrix_of(tensor, rows, columns);
}

/* Downloads and releases. */
static void take(const icma_ops *ops, icma_matrix m, double *out) {
    float values[64];
    icma_error error = {0};
    assert_true(m.rows * m.columns <= COUNT(values));
    assert_int_equal(ops->download(ops->device, m.tensor, 0, values, m.rows * m.columns, &error), ICMA_OK);
    for (size_t i = 0; out && i < m.rows * m.columns; i++)
        out[i] = values[i];
    ops->release(ops->device, m.tensor);
}

static double dense_loss(void *context) {
    const sheet *s = context;
    double sum = 0;
    for (size_t i = 0; i < ROWS; i++)
        for (size_t o = 0; o < OUT; o++) {
            double y = s->b[o];
            for (size_t j = 0; j < IN; j++)
                y += s->x[i * IN + j] * s->w[j * OUT + o];
            sum += s->r[i * OUT + o] * y;
        }
    return sum;
}

static double check_dense(const icma_ops *ops) {
    sheet s = make_sheet();
    double dx[ROWS * IN], dw[IN * OUT], db[OUT];
    icma_matrix x = put(ops, s.x, ROWS, IN), w = put(ops, s.w, IN, OUT), r = put(ops, s.r, ROWS, OUT);
    icma_matrix to_x = put(ops, NULL, ROWS, IN), to_w = put(ops, NULL, IN, OUT),
                to_b = put(ops, NULL, 1, OUT);
    ops->gemm(ops->device, 1, x, true, r, false, 0, to_w);
    ops->gemm(ops->device, 1, r, false, w, true, 0, to_x);
    ops->sum_rows(ops->device, r, to_b);
    take(ops, to_x, dx);
    take(ops, to_w, dw);
    take(ops, to_b, db);
    take(ops, x, NULL);
    take(ops, w, NULL);
    take(ops, r, NULL);
    double worst = compare(dense_loss, &s, s.x, ROWS * IN, dx);
    worst = fmax(worst, compare(dense_loss, &s, s.w, IN * OUT, dw));
    return fmax(worst, compare(dense_loss, &s, s.b, OUT, db));
}

static double softsign_loss(void *context) {
    const sheet *s = context;
    double sum = 0;
    for (size_t i = 0; i < ROWS * IN; i++)
        sum += s->dz[i] * s->x[i] / (1 + fabs(s->x[i]));
    return sum;
}

static double check_softsign(const icma_ops *ops) {
    sheet s = make_sheet();
    double dx[ROWS * IN];
    icma_matrix x = put(ops, s.x, ROWS, IN), d = put(ops, s.dz, ROWS, IN);
    ops->softsign_backward(ops->device, x, d, d);
    take(ops, d, dx);
    take(ops, x, NULL);
    return compare(softsign_loss, &s, s.x, ROWS * IN, dx);
}

static double latent_loss(void *context) {
    const sheet *s = context;
    double sum = 0;
    for (size_t i = 0; i < ROWS * IN; i++) {
        double m = s->mu[i], v = s->logvar[i];
        sum += s->dz[i] * (m + exp(v / 2) * s->noise[i]) + s->weight * (exp(v) + m * m - 1 - v) / 2;
    }
    return sum;
}

static double check_latent(const icma_ops *ops) {
    sheet s = make_sheet();
    double dmu[ROWS * IN], dlogvar[ROWS * IN];
    icma_matrix mu = put(ops, s.mu, ROWS, IN), logvar = put(ops, s.logvar, ROWS, IN),
                noise = put(ops, s.noise, ROWS, IN);
    icma_matrix dz = put(ops, s.dz, ROWS, IN), to_mu = put(ops, NULL, ROWS, IN),
                to_logvar = put(ops, NULL, ROWS, IN);
    ops->latent_backward(ops->device, mu, logvar, noise, dz, (float)s.weight, to_mu, to_logvar);
    take(ops, to_mu, dmu);
    take(ops, to_logvar, dlogvar);
    take(ops, mu, NULL);
    take(ops, logvar, NULL);
    take(ops, noise, NULL);
    take(ops, dz, NULL);
    return fmax(compare(latent_loss, &s, s.mu, ROWS * IN, dmu),
                compare(latent_loss, &s, s.logvar, ROWS * IN, dlogvar));
}

static double squares(void *context) {
    const sheet *s = context;
    double sum = 0;
    for (size_t i = 0; i < ROWS * IN; i++)
        sum += s->scale * s->weights[i % IN] * (s->q[i] - s->p[i]) * (s->q[i] - s->p[i]);
    return sum;
}

static double check_squares(const icma_ops *ops) {
    sheet s = make_sheet();
    double dq[ROWS * IN];
    icma_matrix p = put(ops, s.p, ROWS, IN), q = put(ops, s.q, ROWS, IN), w = put(ops, s.weights, 1, IN),
                to = put(ops, NULL, ROWS, IN);
    ops->squared_error_backward(ops->device, p, q, w, (float)s.scale, to);
    take(ops, to, dq);
    take(ops, p, NULL);
    take(ops, q, NULL);
    take(ops, w, NULL);
    return compare(squares, &s, s.q, ROWS * IN, dq);
}

static double gather_loss(void *context) {
    const sheet *s = context;
    double sum = 0;
    for (size_t i = 0; i < ROWS; i++)
        for (size_t j = 0; j < IN; j++)
            sum += s->dz[i * IN + j] * s->rows[s->index[i] * IN + j];
    return sum;
}

static double check_gather(const icma_ops *ops) {
    sheet s = make_sheet();
    double drows[TABLE * IN];
    icma_tensor *index;
    icma_error error = {0};
    assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_U32, ROWS, &index, &error), ICMA_OK);
    assert_int_equal(ops->upload(ops->device, index, 0, s.index, ROWS, &error), ICMA_OK);
    icma_matrix d = put(ops, s.dz, ROWS, IN), to = put(ops, NULL, TABLE, IN);
    ops->scatter_rows(ops->device, d, index, 0, to);
    take(ops, to, drows);
    take(ops, d, NULL);
    ops->release(ops->device, index);
    return compare(gather_loss, &s, s.rows, TABLE * IN, drows);
}

/* --- the whole ----------------------------------------------------------------------------------------- */

enum { BATCH = 6 };

typedef struct whole {
    model m;
    model_batch b;
    double *p, *u, *weight, *noise;
} whole;

static whole make_whole(void) {
    static const uint32_t task[BATCH] = {2, 0, 2, 2, 0, 3}; /* 1 not at all */
    uint64_t random = 41;
    whole w = {.m = {.inputs = 5,
                     .targets = 5,
                     .latent = 3,
                     .coordinates = 4,
                     .hidden = 6,
                     .encoder_hidden = 7,
                     .tasks = 4}};
    model_allocate(&w.m);
    for (int p = 0; p < ICMA_PARAMETERS; p++) {
        free(w.m.parameter[p]);
        w.m.parameter[p] = model_normals(&random, model_cells(&w.m, p), 0.6);
    }
    w.p = model_normals(&random, BATCH * w.m.targets, 1);
    w.u = model_normals(&random, BATCH * w.m.inputs, 1);
    w.weight = model_normals(&random, w.m.targets, 1);
    for (size_t j = 0; j < w.m.targets; j++)
        w.weight[j] = fabs(w.weight[j]) + 0.25;
    w.noise = model_normals(&random, BATCH * w.m.latent, 1);
    w.b = (model_batch){BATCH, w.p, w.u, w.weight, task, w.noise, 0.75};
    return w;
}

static void free_whole(whole *w) {
    model_free(&w->m);
    free(w->p);
    free(w->u);
    free(w->weight);
    free(w->noise);
}

static double whole_loss(void *context) {
    const whole *w = context;
    return model_loss(&w->m, &w->b, NULL, NULL, NULL);
}

/* Worst parameter of icma_cvae_backward against differences of the same loss in double. */
static double check_cvae(const icma_ops *ops) {
    whole w = make_whole();
    twin t;
    double worst = 0;
    twin_make(&t, ops, &w.m, &w.b);
    twin_loss(&t, NULL, NULL);
    twin_backward(&t, w.m.gradient);
    for (int p = 0; p < ICMA_PARAMETERS; p++)
        worst = fmax(worst, compare(whole_loss, &w, w.m.parameter[p], model_cells(&w.m, p), w.m.gradient[p]));
    twin_free(&t);
    free_whole(&w);
    return worst;
}

/* --- tables with a mistake ----------------------------------------------------------------------------- */

static void scale_by(const icma_ops *ops, icma_matrix m, float factor) {
    ops->axpy(ops->device, factor - 1, m, m);
}

static void gemm_doubled(void *device, float alpha, icma_matrix a, bool ta, icma_matrix b, bool tb,
                         float beta, icma_matrix c) {
    icma_ops_reference()->gemm(device, ta && !tb ? 2 * alpha : alpha, a, ta, b, tb, beta,
                               c); /* weight gradients only */
}
static void gemm_without_beta(void *device, float alpha, icma_matrix a, bool ta, icma_matrix b, bool tb,
                              float beta, icma_matrix c) {
    icma_ops_reference()->gemm(device, alpha, a, ta, b, tb, tb ? 0 : beta,
                               c); /* where two paths meet, one is lost */
}
static void sum_but_one(void *device, icma_matrix x, icma_matrix row) {
    x.rows--;
    icma_ops_reference()->sum_rows(device, x, row);
}
static void softsign_negated(void *device, icma_matrix x, icma_matrix dy, icma_matrix dx) {
    icma_ops_reference()->softsign_backward(device, x, dy, dx);
    scale_by(icma_ops_reference(), dx, -1);
}
/* dy / (1 + |x|): softsign(x) / x times dy, for x that are not 0. */
static void softsign_not_squared(void *device, icma_matrix x, icma_matrix dy, icma_matrix dx) {
    const icma_ops *ops = icma_ops_reference();
    float cells[64], slopes[64];
    icma_error error = {0};
    size_t columns = x.columns, count = x.rows * x.columns;
    assert_true(count <= COUNT(cells) && x.stride == columns && dy.stride == columns && dx.stride == columns);
    ops->download(device, x.tensor, x.offset, cells, count, &error);
    ops->download(device, dy.tensor, dy.offset, slopes, count, &error);
    for (size_t i = 0; i < count; i++)
        slopes[i] /= 1 + fabsf(cells[i]);
    ops->upload(device, dx.tensor, dx.offset, slopes, count, &error);
}
static void latent_without_kl(void *device, icma_matrix mu, icma_matrix logvar, icma_matrix noise,
                              icma_matrix dz, float weight, icma_matrix dmu, icma_matrix dlogvar) {
    (void)weight;
    icma_ops_reference()->latent_backward(device, mu, logvar, noise, dz, 0, dmu, dlogvar);
}
static void latent_doubled(void *device, icma_matrix mu, icma_matrix logvar, icma_matrix noise,
                           icma_matrix dz, float weight, icma_matrix dmu, icma_matrix dlogvar) {
    icma_ops_reference()->latent_backward(device, mu, logvar, noise, dz, weight, dmu, dlogvar);
    scale_by(icma_ops_reference(), dlogvar, 2);
}
static void latent_against_noise(void *device, icma_matrix mu, icma_matrix logvar, icma_matrix noise,
                                 icma_matrix dz, float weight, icma_matrix dmu, icma_matrix dlogvar) {
    const icma_ops *ops = icma_ops_reference();
    scale_by(ops, noise, -1);
    ops->latent_backward(device, mu, logvar, noise, dz, weight, dmu, dlogvar);
    scale_by(ops, noise, -1);
}
static void squares_halved(void *device, icma_matrix p, icma_matrix q, icma_matrix weight, float scale,
                           icma_matrix dq) {
    icma_ops_reference()->squared_error_backward(device, p, q, weight, scale / 2, dq);
}
static void squares_negated(void *device, icma_matrix p, icma_matrix q, icma_matrix weight, float scale,
                            icma_matrix dq) {
    icma_ops_reference()->squared_error_backward(device, q, p, weight, scale, dq);
}
static void scatter_but_one(void *device, icma_matrix y, const icma_tensor *index, size_t first,
                            icma_matrix x) {
    y.rows--;
    icma_ops_reference()->scatter_rows(device, y, index, first, x);
}
static void axpy_nothing(void *device, float alpha, icma_matrix x, icma_matrix y) {
    (void)device, (void)alpha, (void)x, (void)y; /* the condition's way through the trunk is lost */
}

typedef double (*gradient_check)(const icma_ops *ops);

typedef struct mistake {
    const char *name;
    icma_ops table;
    gradient_check op; /* which check of a single op sees it; NULL: only the whole one */
} mistake;

static size_t list_mistakes(mistake *list) {
    size_t count = 0;
#define MISTAKE(entry, function, check)                                                                      \
    list[count] = (mistake){#function, *icma_ops_reference(), check};                                        \
    list[count++].table.entry = function
    MISTAKE(gemm, gemm_doubled, check_dense);
    MISTAKE(gemm, gemm_without_beta, NULL);
    MISTAKE(sum_rows, sum_but_one, check_dense);
    MISTAKE(softsign_backward, softsign_negated, check_softsign);
    MISTAKE(softsign_backward, softsign_not_squared, check_softsign);
    MISTAKE(latent_backward, latent_without_kl, check_latent);
    MISTAKE(latent_backward, latent_doubled, check_latent);
    MISTAKE(latent_backward, latent_against_noise, check_latent);
    MISTAKE(squared_error_backward, squares_halved, check_squares);
    MISTAKE(squared_error_backward, squares_negated, check_squares);
    MISTAKE(scatter_rows, scatter_but_one, check_gather);
    MISTAKE(axpy, axpy_nothing, NULL);
#undef MISTAKE
    return count;
}

/* --- tests --------------------------------------------------------------------------------------------- */

static void must_agree(gradient_check check) {
    const icma_ops *tables[SUPPORT_TABLES];
    size_t table_count = support_tables(tables);
    for (size_t t = 0; t < table_count; t++) {
        double worst = check(tables[t]);
        if (!(worst < agreed))
            fail_msg("%s: a gradient is off by %g of its largest entry", tables[t]->name, worst);
    }
}

static void dense_gradients(void **state) {
    (void)state;
    must_agree(check_dense);
}
static void softsign_gradient(void **state) {
    (void)state;
    must_agree(check_softsign);
}
static void latent_gradients(void **state) {
    (void)state;
    must_agree(check_latent);
}
static void squared_error_gradient(void **state) {
    (void)state;
    must_agree(check_squares);
}
static void gather_gradient(void **state) {
    (void)state;
    must_agree(check_gather);
}
static void cvae_gradients(void **state) {
    (void)state;
    must_agree(check_cvae);
}

static void mistakes_are_seen(void **state) {
    (void)state;
    mistake list[16];
    size_t count = list_mistakes(list);
    for (size_t i = 0; i < count; i++) {
        if (list[i].op && !(list[i].op(&list[i].table) > wrong))
            fail_msg("%s: the check of the op does not see it", list[i].name);
        if (!(check_cvae(&list[i].table) > wrong))
            fail_msg("%s: the check of the whole loss does not see it (%g)", list[i].name,
                     check_cvae(&list[i].table));
    }
}

/* The oracle itself: its loss is icma_cvae_loss, its chain rule its own differences. */
static void the_double_model_is_the_same(void **state) {
    (void)state;
    whole w = make_whole();
    double parts[2], oracle[2];
    const icma_ops *tables[SUPPORT_TABLES];
    size_t table_count = support_tables(tables);
    double loss = model_backward(&w.m, &w.b);
    assert_true(fabs(loss - model_loss(&w.m, &w.b, &oracle[0], &oracle[1], NULL)) < 1e-12);
    for (int p = 0; p < ICMA_PARAMETERS; p++)
        assert_true(compare(whole_loss, &w, w.m.parameter[p], model_cells(&w.m, p), w.m.gradient[p]) < 1e-7);
    for (size_t i = 0; i < table_count; i++) {
        twin t;
        twin_make(&t, tables[i], &w.m, &w.b);
        assert_true(fabs(twin_loss(&t, &parts[0], &parts[1]) - loss) < 2e-6 * loss);
        assert_true(fabs(parts[0] - oracle[0]) < 2e-6 * oracle[0] &&
                    fabs(parts[1] - oracle[1]) < 2e-6 * oracle[1]);
        twin_free(&t);
    }
    free_whole(&w);
}

/* And without any oracle: differences of icma_cvae_loss itself along a random direction of each parameter.
 * Single precision leaves some 1e-7 of the loss over the step, so this is coarse. */
static void the_loss_falls_as_its_gradient_says(void **state) {
    (void)state;
    whole w = make_whole();
    uint64_t random = 51;
    twin t;
    twin_make(&t, icma_ops_cpu(), &w.m, &w.b);
    twin_loss(&t, NULL, NULL);
    twin_backward(&t, w.m.gradient);
    for (int p = 0; p < ICMA_PARAMETERS; p++) {
        size_t count = model_cells(&w.m, p);
        double slope = 0, norm = 0, h = 2e-3, found = 0;
        double *way = model_normals(&random, count, 1), *held = w.m.parameter[p];
        for (size_t i = 0; i < count; i++) {
            way[i] +=
                (w.m.gradient[p][i] > 0 ? 1
                                        : -1); /* mostly uphill, so that the slope is not small by chance */
            slope += way[i] * w.m.gradient[p][i];
            norm += fabs(way[i] * w.m.gradient[p][i]);
        }
        for (int side = -1; side <= 1; side += 2) {
            double *moved = calloc(count + 1, sizeof *moved);
            assert_non_null(moved);
            for (size_t i = 0; i < count; i++)
                moved[i] = held[i] + side * h * way[i];
            w.m.parameter[p] = moved;
            twin_set(&t, &w.m);
            found += side * twin_loss(&t, NULL, NULL) / (2 * h);
            free(moved);
        }
        w.m.parameter[p] = held;
        free(way);
        if (!(fabs(found - slope) < 5e-3 * norm + 2e-3))
            fail_msg("parameter %d: slope %g, differences %g", p, slope, found);
    }
    twin_free(&t);
    free_whole(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_gradients),
        cmocka_unit_test(softsign_gradient),
        cmocka_unit_test(latent_gradients),
        cmocka_unit_test(squared_error_gradient),
        cmocka_unit_test(gather_gradient),
        cmocka_unit_test(cvae_gradients),
        cmocka_unit_test(mistakes_are_seen),
        cmocka_unit_test(the_double_model_is_the_same),
        cmocka_unit_test(the_loss_falls_as_its_gradient_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
