/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What only a device has: products that go through a library from some size on, recordings, transfers in
 * pieces, failures that come back later; and training on it beside training on the CPU. On the emulation,
 * also with every call failing once.
 */
#include "conv_net.h"
#include "device.h"
#include "ops.h"
#include "rans.h"
#include "support.h"

#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const icma_ops *device;
static const icma_ops *tables[2]; /* the CPU's and the device's */
static double rounding;           /* relative error of a product, by the precision that is tested */
static uint64_t seed = 11;

enum { CPU, DEVICE, TABLES };

/* --- operands ------------------------------------------------------------------------------------------- */

/* The same matrix on both tables. */
typedef struct pair {
    icma_matrix on[TABLES];
} pair;

static pair matrix(size_t rows, size_t columns) {
    pair p;
    icma_error error = {0};
    float *values = support_normals(&seed, rows * columns);
    for (int t = 0; t < TABLES; t++) {
        icma_tensor *tensor;
        assert_int_equal(
            tables[t]->alloc(tables[t]->device, ICMA_ELEMENT_F32, rows * columns, &tensor, &error), ICMA_OK);
        assert_int_equal(tables[t]->upload(tables[t]->device, tensor, 0, values, rows * columns, &error),
                         ICMA_OK);
        p.on[t] = icma_matrix_of(tensor, rows, columns);
    }
    support_free(values);
    return p;
}

static void release(pair p) {
    for (int t = 0; t < TABLES; t++)
        tables[t]->release(tables[t]->device, p.on[t].tensor);
}

static float *download(const icma_ops *ops, icma_matrix m) {
    size_t count = m.rows * m.columns;
    float *values = malloc(count * sizeof *values);
    icma_error error = {0};
    assert_non_null(values);
    assert_int_equal(ops->download(ops->device, m.tensor, m.offset, values, count, &error), ICMA_OK);
    return values;
}

/* |device - cpu| / |cpu| over all elements. */
static double distance(pair p) {
    float *a = download(tables[CPU], p.on[CPU]), *b = download(tables[DEVICE], p.on[DEVICE]);
    double apart = 0, norm = 0;
    for (size_t i = 0; i < p.on[CPU].rows * p.on[CPU].columns; i++) {
        apart += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)a[i] * (double)a[i];
    }
    free(a);
    free(b);
    return sqrt(apart / norm);
}

static void must_agree(const char *what, pair p, double limit) {
    double found = distance(p);
    if (!(found <= limit))
        fail_msg("%s: off by %g, at most %g", what, found, limit);
}

/* --- products that a library does ----------------------------------------------------------------------- */

typedef struct layer {
    size_t batch, positions, inputs, outputs, width; /* positions of the shorter side */
} layer;

/* So large that every one goes through windows, with whole shares and without, and one too small for it. */
static const layer layers[] = {{2, 523, 16, 257, 7},
                               {3, 401, 130, 33, 5},
                               {1, 2053, 32, 40, 7},
                               {2, 1030, 9, 260, 9},
                               {5, 9, 130, 70, 7}};

static void convolutions_by_products(void **state) {
    (void)state;
    for (size_t k = 0; k < sizeof layers / sizeof *layers; k++) {
        layer l = layers[k];
        icma_conv shape = {l.batch, l.width};
        size_t rows = l.batch * l.positions;
        pair x = matrix(2 * rows, l.inputs), w = matrix(l.width * l.inputs, l.outputs),
             y = matrix(rows, l.outputs);
        pair g = matrix(l.width * l.inputs, l.outputs), back = matrix(l.width * l.outputs, l.inputs),
             turned = matrix(l.width * l.outputs, l.inputs), dx = matrix(2 * rows, l.inputs);
        for (int t = 0; t < TABLES; t++) {
            const icma_ops *ops = tables[t];
            icma_tensor *scratch;
            assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_F32,
                                        icma_conv_scratch(l.width, l.inputs, l.outputs), &scratch, NULL),
                             ICMA_OK);
            ops->conv_weights(ops->device, shape, 2, x.on[t], y.on[t], false, scratch, g.on[t]);
            ops->conv_weights(ops->device, shape, 2, x.on[t], y.on[t], true, scratch, back.on[t]);
            ops->turn_weights(ops->device, shape, w.on[t], false, turned.on[t]);
            ops->conv_up_training(ops->device, shape, y.on[t], turned.on[t], dx.on[t]);
            ops->conv_down(ops->device, shape, x.on[t], w.on[t], y.on[t]);
            ops->release(ops->device, scratch);
        }
        must_agree("conv_weights", g, rounding);
        must_agree("conv_weights, turned", back, rounding);
        must_agree("conv_up_training", dx, rounding);
        must_agree("conv_down", y, rounding);
        pair all[] = {x, w, y, g, back, turned, dx};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            release(all[i]);
    }
}

/* More sequences than a grid is high. */
static void very_many_sequences(void **state) {
    (void)state;
    enum { BATCH_OF_MANY = 40000 };
    icma_conv shape = {BATCH_OF_MANY, 3};
    pair x = matrix(2 * BATCH_OF_MANY, 2), w = matrix(3 * 2, 1), y = matrix(4 * BATCH_OF_MANY, 1),
         z = matrix(BATCH_OF_MANY, 1);
    for (int t = 0; t < TABLES; t++) {
        const icma_ops *ops = tables[t];
        ops->conv_up_training(ops->device, shape, x.on[t], w.on[t], y.on[t]);
        ops->conv_down(ops->device, shape, x.on[t], w.on[t], z.on[t]);
    }
    must_agree("conv_up_training", y, 2e-6);
    must_agree("conv_down", z, 2e-6);
    release(x);
    release(w);
    release(y);
    release(z);
}

/* --- recordings ----------------------------------------------------------------------------------------- */

static void recordings_run_again(void **state) {
    (void)state;
    icma_error error = {0};
    icma_recording *recording;
    pair x = matrix(40, 30), y = matrix(30, 20), z = matrix(40, 20), row = matrix(1, 20);
    if (!device->record)
        skip();
    assert_int_equal(device->record(device->device, &error), ICMA_OK);
    device->gemm(device->device, 0.5F, x.on[DEVICE], false, y.on[DEVICE], false, 1, z.on[DEVICE]);
    device->add_row(device->device, row.on[DEVICE], z.on[DEVICE]);
    device->sum_rows(device->device, z.on[DEVICE], row.on[DEVICE]);
    assert_int_equal(device->recorded(device->device, &recording, &error), ICMA_OK);
    for (int turn = 0; turn < 3; turn++) {
        assert_int_equal(device->replay(device->device, recording, &error), ICMA_OK);
        tables[CPU]->gemm(NULL, 0.5F, x.on[CPU], false, y.on[CPU], false, 1, z.on[CPU]);
        tables[CPU]->add_row(NULL, row.on[CPU], z.on[CPU]);
        tables[CPU]->sum_rows(NULL, z.on[CPU], row.on[CPU]);
    }
    must_agree("a recording", z, 1e-5);
    must_agree("a recording", row, 1e-5);
    device->forget(device->device, recording);
    device->forget(device->device, NULL);
    release(x);
    release(y);
    release(z);
    release(row);
}

/* --- transfers ------------------------------------------------------------------------------------------ */

/* Over many pieces of pinned memory, at odd places, large and small in turn. */
static void transfers_of_any_size(void **state) {
    (void)state;
    enum { SIZE = 60000001, STEPS = 40 };
    icma_error error = {0};
    icma_tensor *tensor;
    uint8_t *expected = calloc(SIZE, 1), *found = malloc(SIZE);
    assert_true(expected && found);
    assert_int_equal(device->alloc(device->device, ICMA_ELEMENT_U8, SIZE, &tensor, &error), ICMA_OK);
    for (int step = 0; step < STEPS; step++) {
        size_t size = step % 4 == 0 ? (size_t)(support_uniform(&seed) * 2e7)
                                    : (size_t)(support_uniform(&seed) * 3000),
               at = (size_t)(support_uniform(&seed) * (double)(SIZE - size));
        for (size_t i = 0; i < size; i++)
            expected[at + i] = (uint8_t)(i * 31 + (size_t)step);
        assert_int_equal(device->upload(device->device, tensor, at, expected + at, size, &error), ICMA_OK);
    }
    assert_int_equal(device->download(device->device, tensor, 0, found, SIZE, &error), ICMA_OK);
    assert_memory_equal(found, expected, SIZE);
    assert_int_equal(device->download(device->device, tensor, 12345, found, 20000003, &error), ICMA_OK);
    assert_memory_equal(found, expected + 12345, 20000003);
    device->release(device->device, tensor);
    free(expected);
    free(found);
}

/* --- training ------------------------------------------------------------------------------------------- */

enum { BATCH = 3, STEPS = 50 };

typedef struct run {
    double loss[STEPS], kl[STEPS];
    float *parameters;
    size_t count;
} run;

static run train(const icma_ops *ops, icma_conv_shape shape) {
    run r;
    icma_rng rng = icma_rng_seed(5);
    uint64_t random = 77;
    icma_conv_net *net;
    icma_error error = {0};
    icma_tensor *x, *a, *noise;
    size_t m = shape.coordinates, d = shape.latent;
    assert_int_equal(icma_conv_net_create(ops, shape, BATCH, &rng, &net, &error), ICMA_OK);
    assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_F32, BATCH * shape.length, &x, &error), ICMA_OK);
    assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_F32, BATCH * m, &a, &error), ICMA_OK);
    assert_int_equal(ops->alloc(ops->device, ICMA_ELEMENT_F32, BATCH * d, &noise, &error), ICMA_OK);
    for (uint64_t step = 1; step <= STEPS; step++) {
        icma_conv_batch b = {BATCH,
                             icma_matrix_of(x, BATCH * shape.length, 1),
                             icma_matrix_of(a, BATCH, m),
                             icma_matrix_of(noise, BATCH, d),
                             0.005F,
                             0};
        float *xs = support_normals(&random, BATCH * shape.length), *as = support_normals(&random, BATCH * m),
              *ns = support_normals(&random, BATCH * d);
        for (size_t s = 0; s < BATCH;
             s++) /* something to learn: each sequence is a wave of the condition, and noise */
            for (size_t i = 0; i < shape.length; i++)
                xs[s * shape.length + i] = i < shape.used ? sinf((float)i * 0.05F * (1 + as[s * m])) +
                                                                0.1F * xs[s * shape.length + i]
                                                          : 0;
        assert_int_equal(ops->upload(ops->device, x, 0, xs, BATCH * shape.length, &error), ICMA_OK);
        assert_int_equal(ops->upload(ops->device, a, 0, as, BATCH * m, &error), ICMA_OK);
        assert_int_equal(ops->upload(ops->device, noise, 0, ns, BATCH * d, &error), ICMA_OK);
        icma_conv_forward(net, &b, true);
        assert_int_equal(icma_conv_loss(net, &b, &r.loss[step - 1], &r.kl[step - 1], &error), ICMA_OK);
        icma_conv_backward(net, &b);
        icma_conv_adam(
            net, (icma_adam){
                     .learning_rate = 1e-3F, .beta1 = 0.9F, .beta2 = 0.999F, .epsilon = 1e-5F, .step = step});
        support_free(xs);
        support_free(as);
        support_free(ns);
    }
    icma_tensor *parameters = icma_conv_net_state(net, ICMA_CONV_PARAMETERS, &r.count);
    r.parameters = malloc(r.count * sizeof *r.parameters);
    assert_non_null(r.parameters);
    assert_int_equal(ops->download(ops->device, parameters, 0, r.parameters, r.count, &error), ICMA_OK);
    icma_tensor *all[] = {x, a, noise};
    for (size_t i = 0; i < 3; i++)
        ops->release(ops->device, all[i]);
    icma_conv_net_free(net);
    return r;
}

/* Fifty steps of the paper's kind of network end in the same place, but for rounding, which training makes
 * grow; and they learn. */
static void training_is_the_same(void **state) {
    (void)state;
    icma_conv_shape shape = {.used = 1500,
                             .layers = 4,
                             .width = 7,
                             .channels = {16, 32, 16, 8},
                             .hidden = 32,
                             .latent = 8,
                             .coordinates = 3};
    shape.length = icma_conv_padded(shape.used, shape.layers);
    run cpu = train(tables[CPU], shape), gpu = train(device, shape);
    /* Training makes rounding grow: Adam divides gradients that are nearly 0 by themselves. KL, which little
     * depends on here, wanders most. */
    bool exact = rounding < 1e-5;
    double apart = 0, norm = 0, limit = exact ? 2e-3 : 0.05;
    for (int s = 0; s < STEPS; s++)
        if (!(fabs(cpu.loss[s] - gpu.loss[s]) <= limit * cpu.loss[s] &&
              (!exact || fabs(cpu.kl[s] - gpu.kl[s]) <= limit * (1 + cpu.kl[s]))))
            fail_msg("step %d: loss %.9g and %.9g, KL %.9g and %.9g", s + 1, cpu.loss[s], gpu.loss[s],
                     cpu.kl[s], gpu.kl[s]);
    for (size_t i = 0; i < cpu.count; i++) {
        apart += pow((double)cpu.parameters[i] - (double)gpu.parameters[i], 2);
        norm += pow((double)cpu.parameters[i], 2);
    }
    if (!(sqrt(apart / norm) <= limit))
        fail_msg("after %d steps parameters are %g apart, at most %g", STEPS, sqrt(apart / norm), limit);
    if (!(gpu.loss[STEPS - 1] < 0.9 * gpu.loss[0]))
        fail_msg("the loss went from %g to %g only", gpu.loss[0], gpu.loss[STEPS - 1]);
    print_message("           %d steps: losses to %.1e, parameters to %.1e\n", STEPS,
                  fabs(cpu.loss[STEPS - 1] - gpu.loss[STEPS - 1]) / cpu.loss[STEPS - 1], sqrt(apart / norm));
    free(cpu.parameters);
    free(gpu.parameters);
}

/* --- failures ------------------------------------------------------------------------------------------- */

/* What was noted and not told yet. */
static icma_status settle(void) {
    icma_tensor *x;
    icma_status status = device->alloc(device->device, ICMA_ELEMENT_F32, 1, &x, NULL);
    device->release(device->device, x);
    return status;
}

/* A stream of its own making to integers, and these to a tensor. */
static icma_status decode_something(void) {
    enum { COUNT = 300 };
    int32_t symbols[COUNT];
    uint8_t found[4 * COUNT];
    icma_rans_run all = {COUNT, 90};
    icma_buffer bytes = {0};
    icma_tensor *integers = NULL;
    size_t bad;
    for (int i = 0; i < COUNT; i++)
        symbols[i] = i % 13 - 6;
    assert_int_equal(icma_rans_encode(symbols, &all, 1, &bytes, NULL), ICMA_OK);
    size_t offsets[2] = {0, bytes.size};
    icma_coded coded = {.data = bytes.data,
                        .offsets = offsets,
                        .streams = 1,
                        .length = COUNT,
                        .runs = &all,
                        .run_count = 1,
                        .total = COUNT,
                        .trellis = false};
    icma_status status = device->alloc(device->device, ICMA_ELEMENT_I16, COUNT, &integers, NULL);
    if (!status)
        status = device->decode_integers(device->device, &coded, 1, integers, 0, NULL);
    icma_assembly one = {.count = COUNT, .integers = integers, .step = 0.5F, .dtype = ICMA_F32};
    if (!status)
        status = device->assemble(device->device, &one, 1, NULL, found, &bad, NULL);
    for (int i = 0; !status && i < COUNT; i++) {
        float value;
        memcpy(&value, found + 4 * i, sizeof value);
        assert_true(value == 0.5F * (float)symbols[i]);
    }
    device->release(device->device, integers);
    icma_buffer_free(&bytes);
    return status;
}

/* One of everything that can fail. The first failure of any call comes back from this. */
static icma_status use_device(void) {
    icma_status status = ICMA_OK;
    icma_tensor *x = NULL, *sum = NULL;
    icma_recording *recording = NULL;
    float values[64] = {1, 2, 3};
    double matrix_values[4] = {2, 1, 1, 2}, eigenvalues[2];
    status = device->alloc(device->device, ICMA_ELEMENT_F32, 64, &x, NULL);
    if (!status)
        status = device->alloc(device->device, ICMA_ELEMENT_F64, 64, &sum, NULL);
    if (!status)
        status = device->upload(device->device, x, 0, values, 64, NULL);
    if (!status) {
        device->gram(device->device, icma_matrix_of(x, 8, 8), 1, icma_matrix_of(sum, 8, 8));
        device->softsign(device->device, icma_matrix_of(x, 8, 8), icma_matrix_of(x, 8, 8));
        status = device->download(device->device, x, 0, values, 64, NULL);
    }
    if (!status)
        status = device->record(device->device, NULL);
    if (!status) {
        device->fill(device->device, 1, icma_matrix_of(x, 8, 8));
        status = device->recorded(device->device, &recording, NULL);
    }
    if (!status)
        status = device->replay(device->device, recording, NULL);
    if (!status)
        status = device->eigen(device->device, 2, matrix_values, eigenvalues, NULL);
    if (!status)
        status = decode_something();
    device->forget(device->device, recording);
    device->release(device->device, x);
    device->release(device->device, sum);
    return status ? status : settle();
}

static void every_failure_is_told_once(void **state) {
    (void)state;
    void *module = dlopen(getenv("ICMA_MODULE") ? getenv("ICMA_MODULE") : "", RTLD_NOW | RTLD_NOLOAD);
    void *symbols[2] = {module ? dlsym(module, "icma_emulation_fail") : NULL,
                        module ? dlsym(module, "icma_emulation_calls") : NULL};
    void (*fail_call)(const char *, long);
    long (*calls)(void);
    if (!symbols[0] || !symbols[1]) {
        print_message("           only on the emulation\n");
        skip();
    }
    memcpy(&fail_call, &symbols[0], sizeof fail_call);
    memcpy(&calls, &symbols[1], sizeof calls);
    assert_int_equal(use_device(), ICMA_OK);
    long k = 1;
    for (;; k++) {
        fail_call("any", k);
        icma_status status = use_device();
        if (calls() < k)
            break;
        if (!status)
            status = settle(); /* the last thing that was released */
        if (status != ICMA_E_DEVICE && status != ICMA_E_MEMORY)
            fail_msg("call %ld failed, and %s came back", k, icma_status_name(status));
        fail_call(NULL, 0);
        settle();
        assert_int_equal(use_device(), ICMA_OK);
    }
    fail_call(NULL, 0);
    assert_true(k > 40);
    print_message("           %ld calls failed in turn\n", k - 1);
}

static void memory_runs_out_and_comes_back(void **state) {
    (void)state;
    enum { MOST = 1 << 16 };
    static icma_tensor *taken[MOST];
    icma_error error = {0};
    size_t count = 0, size = (size_t)1 << 28;
    icma_status status = ICMA_OK;
    while (!status && count < MOST &&
           !(status = device->alloc(device->device, ICMA_ELEMENT_U8, size, &taken[count], &error)))
        count++;
    assert_int_equal(status, ICMA_E_MEMORY);
    assert_null(taken[count]);
    for (size_t i = 0; i < count; i++)
        device->release(device->device, taken[i]);
    assert_int_equal(use_device(), ICMA_OK);
}

int main(void) {
    const char *precision = getenv("ICMA_TEST_PRECISION");
    const struct CMUnitTest products[] = {cmocka_unit_test(convolutions_by_products),
                                          cmocka_unit_test(training_is_the_same)};
    const struct CMUnitTest others[] = {
        cmocka_unit_test(very_many_sequences), cmocka_unit_test(recordings_run_again),
        cmocka_unit_test(transfers_of_any_size), cmocka_unit_test(every_failure_is_told_once),
        cmocka_unit_test(memory_runs_out_and_comes_back)};
    device = support_device();
    tables[CPU] = icma_ops_cpu();
    tables[DEVICE] = device;
    rounding = !precision || strcmp(precision, "f32") == 0 ? 2e-6
               : strcmp(precision, "bf16") == 0            ? 1e-2
                                                           : 1e-3;
    int failed = cmocka_run_group_tests(products, NULL, NULL);
    /* The others do not depend on the precision, and run without one. */
    return failed || precision ? failed : cmocka_run_group_tests(others, NULL, NULL);
}
