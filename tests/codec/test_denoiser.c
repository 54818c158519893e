/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The denoiser: payloads come back and lies are refused; sampling has the bits that the spec defines, on every table and at any number of threads; gradients are those of the loss; a toy with two conditions
 * is learned; a training that stopped goes on as if it had not.
 */
#include "denoiser.h"
#include "memory.h"
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static uint64_t seed;

static int start(void **state) {
    (void)state;
    seed = 171;
    return 0;
}

static int all_threads(void **state) {
    (void)state;
    icma_set_threads(0);
    return 0;
}

/* --- denoisers --------------------------------------------------------------------------------------------------- */

typedef struct sizes {
    size_t latent, coordinates, embedding, hidden, steps;
} sizes;

static const sizes all_sizes[] = {
    {5, 3, 4, 7, 6},
    {1, 0, 0, 1, 1}, /* as small as there is */
    {9, 1, 3, 20, 2},
    {4, 2, 0, 3, 3},
};

static void set_normals(float *values, size_t count, double scale) {
    for (size_t i = 0; i < count; i++)
        values[i] = (float)(scale * support_normal(&seed));
}

static void make_denoiser(const sizes *s, icma_denoiser *d) {
    icma_error error = {0};
    *d = (icma_denoiser){.latent = s->latent, .coordinates = s->coordinates, .embedding = s->embedding, .hidden = s->hidden, .steps = s->steps};
    assert_int_equal(icma_denoiser_allocate(d, &error), ICMA_OK);
    set_normals(d->centre, s->latent, 1);
    set_normals(d->keep, s->steps, 0.7);
    set_normals(d->add, s->steps, 0.7);
    set_normals(d->time, s->steps * s->embedding, 0.7);
    for (size_t j = 0; j < s->latent; j++)
        d->spread[j] = (float)(0.1 + support_uniform(&seed));
    for (int l = 0; l < ICMA_DENOISER_LAYERS; l++) {
        size_t rows, columns;
        icma_denoiser_layer_shape(d, l, &rows, &columns);
        set_normals(d->weight[l], rows * columns, 0.6);
        set_normals(d->bias[l], columns, 0.3);
    }
}

static void write(icma_denoiser *d, icma_buffer *out) {
    icma_error error = {0};
    *out = (icma_buffer){0};
    icma_denoiser_write(d, out);
    assert_int_equal(icma_buffer_status(out, &error), ICMA_OK);
}

static void check_same_floats(const float *a, const float *b, size_t count) {
    if (count)
        assert_memory_equal(a, b, count * sizeof *a);
}

static void check_same(const icma_denoiser *a, const icma_denoiser *b) {
    assert_true(a->latent == b->latent && a->coordinates == b->coordinates && a->embedding == b->embedding && a->hidden == b->hidden && a->steps == b->steps);
    check_same_floats(a->centre, b->centre, a->latent);
    check_same_floats(a->spread, b->spread, a->latent);
    check_same_floats(a->keep, b->keep, a->steps);
    check_same_floats(a->add, b->add, a->steps);
    check_same_floats(a->time, b->time, a->steps * a->embedding);
    for (int l = 0; l < ICMA_DENOISER_LAYERS; l++) {
        size_t rows, columns;
        icma_denoiser_layer_shape(a, l, &rows, &columns);
        check_same_floats(a->weight[l], b->weight[l], rows * columns);
        check_same_floats(a->bias[l], b->bias[l], columns);
    }
}

/* --- payload ----------------------------------------------------------------------------------------------------- */

static void check_numbers(const float *values, size_t count) {
    for (size_t i = 0; i < count; i++)
        assert_true(values[i] == 0 || isnormal(values[i]));
}

/* Whatever a reader lets through can be used. */
static void check_promises(const icma_denoiser *d, const sizes *s) {
    assert_true(d->latent == s->latent && d->coordinates == s->coordinates);
    assert_true(d->embedding <= ICMA_DENOISER_MOST_EMBEDDING);
    assert_true(d->hidden >= 1 && d->hidden <= ICMA_DENOISER_MOST_HIDDEN && d->steps >= 1 && d->steps <= ICMA_DENOISER_MOST_STEPS);
    for (size_t j = 0; j < d->latent; j++)
        assert_true(isnormal(d->spread[j]) && d->spread[j] > 0);
    check_numbers(d->centre, d->latent);
    check_numbers(d->keep, d->steps);
    check_numbers(d->add, d->steps);
    check_numbers(d->time, d->steps * d->embedding);
    for (int l = 0; l < ICMA_DENOISER_LAYERS; l++) {
        size_t rows, columns;
        icma_denoiser_layer_shape(d, l, &rows, &columns);
        check_numbers(d->weight[l], rows * columns);
        check_numbers(d->bias[l], columns);
    }
}

/* Reads from a block of exactly this size, so that a sanitizer sees a byte too far. */
static icma_status attempt(const uint8_t *data, size_t size, const sizes *s) {
    icma_denoiser d;
    icma_error error = {0};
    uint8_t *copy = malloc(size + !size);
    assert_non_null(copy);
    memcpy(copy, data, size);
    icma_cursor from = icma_cursor_over(copy, size);
    memset(&d, 0x5A, sizeof d);
    icma_status status = icma_denoiser_read(&from, s->latent, s->coordinates, &d, &error);
    if (!status)
        check_promises(&d, s);
    else
        assert_true(d.centre == NULL && d.time == NULL && d.weight[0] == NULL && d.latent == 0 && error.status == status);
    assert_true(status == ICMA_OK || status == ICMA_E_CORRUPT || status == ICMA_E_LIMIT);
    icma_denoiser_free(&d);
    free(copy);
    return status;
}

static void payloads_come_back(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(all_sizes); i++) {
        icma_denoiser d, back;
        icma_buffer payload, again;
        icma_error error = {0};
        make_denoiser(&all_sizes[i], &d);
        write(&d, &payload);
        icma_write_u8(&payload, 77); /* what follows is another's */
        icma_cursor from = icma_cursor_over(payload.data, payload.size);
        assert_int_equal(icma_denoiser_read(&from, d.latent, d.coordinates, &back, &error), ICMA_OK);
        assert_true(from.left == 1 && icma_read_u8(&from) == 77);
        check_same(&d, &back); /* the writer rounded its own */
        write(&back, &again);
        assert_int_equal(again.size + 1, payload.size);
        assert_memory_equal(again.data, payload.data, again.size);
        icma_buffer_free(&payload);
        icma_buffer_free(&again);
        icma_denoiser_free(&d);
        icma_denoiser_free(&back);
    }
}

/* Sizes, then f32 numbers, then of each layer a matrix as bfloat16 and its bias as f32. */
static void the_payload_is_laid_out_as_written(void **state) {
    (void)state;
    icma_denoiser d;
    icma_buffer payload;
    make_denoiser(&all_sizes[0], &d);
    d.weight[0][0] = 1.00390625F; /* halfway between bfloat16 numbers: to even */
    d.bias[0][0] = 1.00390625F;
    d.centre[0] = 0x1p-130F;      /* denormal: flushed */
    write(&d, &payload);
    const sizes *s = &all_sizes[0];
    size_t inputs = s->latent + s->coordinates + s->embedding, floats = 3 + 4 * (2 * s->latent + 2 * s->steps + s->steps * s->embedding);
    assert_int_equal(payload.size, floats + 2 * (inputs * s->hidden + 2 * s->hidden * s->hidden + s->hidden * s->latent) + 4 * (3 * s->hidden + s->latent));
    assert_true(payload.data[0] == s->embedding && payload.data[1] == s->hidden && payload.data[2] == s->steps);
    assert_int_equal(icma_load_u32(payload.data + 3), 0);
    assert_int_equal(icma_load_u16(payload.data + floats), 0x3F80);
    assert_int_equal(icma_load_u32(payload.data + floats + 2 * inputs * s->hidden), 0x3F808000);
    assert_true(d.weight[0][0] == 1 && d.centre[0] == 0);
    icma_buffer_free(&payload);
    icma_denoiser_free(&d);
}

static void lies_are_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(all_sizes); i++) {
        const sizes *s = &all_sizes[i];
        icma_denoiser d;
        icma_buffer payload;
        make_denoiser(s, &d);
        write(&d, &payload);
        for (size_t cut = 0; cut < payload.size; cut++)
            assert_int_equal(attempt(payload.data, cut, s), ICMA_E_CORRUPT);
        size_t refused = 0;
        for (size_t at = 0; at < payload.size; at++) {
            const uint8_t held = payload.data[at], changes[] = {0x01, 0x80, 0xFF, 0x7F, 0x10};
            for (size_t c = 0; c < COUNT(changes); c++) {
                payload.data[at] = held ^ changes[c];
                refused += attempt(payload.data, payload.size, s) != ICMA_OK;
            }
            payload.data[at] = held;
        }
        assert_true(refused > 5);
        assert_int_equal(attempt(payload.data, payload.size, s), ICMA_OK);
        icma_buffer_free(&payload);
        icma_denoiser_free(&d);
    }
}

/* Numbers that no archive holds, one at a time, at the first place of each kind. */
static void odd_numbers_are_refused(void **state) {
    (void)state;
    static const uint32_t odd[] = {0x7F800000, 0xFF800000, 0x7FC00000, 0x00000001, 0x807FFFFF};
    const sizes *s = &all_sizes[0];
    icma_denoiser d;
    icma_buffer payload;
    make_denoiser(s, &d);
    write(&d, &payload);
    const size_t spread = 3 + 4 * s->latent, keep = spread + 4 * s->latent, add = keep + 4 * s->steps, time = add + 4 * s->steps;
    const size_t matrix = time + 4 * s->steps * s->embedding, bias = matrix + 2 * (s->latent + s->coordinates + s->embedding) * s->hidden;
    const size_t places[] = {3, spread, keep, add, time, bias};
    for (size_t p = 0; p < COUNT(places); p++) {
        uint32_t held = icma_load_u32(payload.data + places[p]);
        for (size_t o = 0; o < COUNT(odd); o++) {
            icma_store_u32(payload.data + places[p], odd[o]);
            assert_int_equal(attempt(payload.data, payload.size, s), ICMA_E_CORRUPT);
        }
        icma_store_u32(payload.data + places[p], held);
    }
    static const uint32_t not_positive[] = {0, 0x80000000, 0xBF800000};
    for (size_t o = 0; o < COUNT(not_positive); o++) {
        icma_store_u32(payload.data + spread, not_positive[o]);
        assert_int_equal(attempt(payload.data, payload.size, s), ICMA_E_CORRUPT);
        icma_store_u32(payload.data + keep, not_positive[o]); /* is fine there */
        icma_store_u32(payload.data + spread, 0x3F800000);
        assert_int_equal(attempt(payload.data, payload.size, s), ICMA_OK);
    }
    icma_store_u16(payload.data + matrix, 0x7F80);
    assert_int_equal(attempt(payload.data, payload.size, s), ICMA_E_CORRUPT);
    icma_buffer_free(&payload);
    icma_denoiser_free(&d);
}

/* Sizes at and over the limits, and sizes that the payload has no bytes for: nothing is allocated for those. */
static void sizes_are_checked_before_memory_is_taken(void **state) {
    (void)state;
    static const struct {
        uint64_t sizes[3];
        size_t latent;
        icma_status wanted;
    } cases[] = {
        {{ICMA_DENOISER_MOST_EMBEDDING + 1, 1, 1}, 4, ICMA_E_LIMIT},
        {{1, ICMA_DENOISER_MOST_HIDDEN + 1, 1}, 4, ICMA_E_LIMIT},
        {{1, 1, ICMA_DENOISER_MOST_STEPS + 1}, 4, ICMA_E_LIMIT},
        {{UINT64_MAX, 1, 1}, 4, ICMA_E_LIMIT},
        {{1, 0, 1}, 4, ICMA_E_CORRUPT},
        {{1, 1, 0}, 4, ICMA_E_CORRUPT},
        {{1, 1, 1}, 0, ICMA_E_CORRUPT},
        {{ICMA_DENOISER_MOST_EMBEDDING, ICMA_DENOISER_MOST_HIDDEN, ICMA_DENOISER_MOST_STEPS}, 4, ICMA_E_CORRUPT},
        {{1, 1, 1}, SIZE_MAX / 2, ICMA_E_CORRUPT},
        {{1, ICMA_DENOISER_MOST_HIDDEN, 1}, SIZE_MAX / 4096, ICMA_E_CORRUPT},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        icma_buffer payload = {0};
        icma_denoiser d;
        icma_error error = {0};
        for (int k = 0; k < 3; k++)
            icma_write_varint(&payload, cases[i].sizes[k]);
        icma_write_zeros(&payload, 1000);
        icma_cursor from = icma_cursor_over(payload.data, payload.size);
        support_budget budget = {.left = 0};
        support_limit_memory(&budget);
        icma_status status = icma_denoiser_read(&from, cases[i].latent, 3, &d, &error);
        support_limit_memory(NULL);
        assert_int_equal(status, cases[i].wanted);
        icma_buffer_free(&payload);
    }
}

static void work_is_counted(void **state) {
    (void)state;
    icma_denoiser d = {.latent = 5, .coordinates = 3, .embedding = 4, .hidden = 7, .steps = 6};
    assert_int_equal(icma_denoiser_work(&d), 6 * (12 * 7 + 7 * 7 + 7 * 7 + 7 * 5));
    d.latent = SIZE_MAX / 8;
    assert_true(icma_denoiser_work(&d) == UINT64_MAX);
}

/* --- exact sampling ---------------------------------------------------------------------------------------------- */

/* The definition, in f32 as the spec says or in f64. */
static void layer_f32(const icma_denoiser *d, int l, const float *x, float *y) {
    size_t rows, columns;
    icma_denoiser_layer_shape(d, l, &rows, &columns);
    for (size_t o = 0; o < columns; o++) {
        float sum = d->bias[l][o];
        for (size_t j = 0; j < rows; j++)
            sum = fmaf(x[j], d->weight[l][j * columns + o], sum);
        y[o] = l == 3 ? sum : sum / (1 + fabsf(sum));
        if (l == 1 || l == 2)
            y[o] = x[o] + y[o];
    }
}

static void layer_f64(const icma_denoiser *d, int l, const double *x, double *y) {
    size_t rows, columns;
    icma_denoiser_layer_shape(d, l, &rows, &columns);
    for (size_t o = 0; o < columns; o++) {
        double sum = d->bias[l][o];
        for (size_t j = 0; j < rows; j++)
            sum += x[j] * (double)d->weight[l][j * columns + o];
        y[o] = (l == 1 || l == 2 ? x[o] : 0) + (l == 3 ? sum : sum / (1 + fabs(sum)));
    }
}

enum { MOST = 64 };

static void sample_f32(const icma_denoiser *d, const float *noise, const float *a, float *z) {
    float w[MOST], h[4][MOST];
    memcpy(w, noise, d->latent * sizeof *w);
    if (d->coordinates)
        memcpy(w + d->latent, a, d->coordinates * sizeof *w);
    for (size_t i = 0; i < d->steps; i++) {
        for (size_t k = 0; k < d->embedding; k++)
            w[d->latent + d->coordinates + k] = d->time[i * d->embedding + k];
        for (int l = 0; l < 4; l++)
            layer_f32(d, l, l ? h[l - 1] : w, h[l]);
        for (size_t j = 0; j < d->latent; j++) {
            float kept = d->keep[i] * w[j];
            w[j] = fmaf(d->add[i], h[3][j], kept);
        }
    }
    for (size_t j = 0; j < d->latent; j++)
        z[j] = fmaf(d->spread[j], w[j], d->centre[j]);
}

static void sample_f64(const icma_denoiser *d, const float *noise, const float *a, double *z) {
    double w[MOST], h[4][MOST];
    for (size_t j = 0; j < d->latent + d->coordinates; j++)
        w[j] = j < d->latent ? noise[j] : a[j - d->latent];
    for (size_t i = 0; i < d->steps; i++) {
        for (size_t k = 0; k < d->embedding; k++)
            w[d->latent + d->coordinates + k] = d->time[i * d->embedding + k];
        for (int l = 0; l < 4; l++)
            layer_f64(d, l, l ? h[l - 1] : w, h[l]);
        for (size_t j = 0; j < d->latent; j++)
            w[j] = (double)d->keep[i] * w[j] + (double)d->add[i] * h[3][j];
    }
    for (size_t j = 0; j < d->latent; j++)
        z[j] = d->centre[j] + d->spread[j] * w[j];
}

static void samples_have_the_bits_of_the_definition(void **state) {
    (void)state;
    static const sizes shapes[] = {{5, 3, 4, 7, 6}, {1, 0, 0, 1, 1}, {17, 5, 16, 33, 20}, {32, 2, 30, 64, 5}};
    for (size_t i = 0; i < COUNT(shapes); i++) {
        icma_denoiser d;
        float noise[MOST], a[MOST], wanted[MOST], z[MOST];
        double plain[MOST];
        icma_error error = {0};
        make_denoiser(&shapes[i], &d);
        set_normals(noise, d.latent, 1);
        set_normals(a, MOST, 1);
        sample_f32(&d, noise, a, wanted);
        sample_f64(&d, noise, a, plain);
        for (int threads = 1; threads <= 3; threads++)
            for (int table = 0; table < 2; table++) {
                icma_set_threads(threads);
                assert_int_equal(icma_denoiser_sample(&d, table ? icma_ops_cpu() : icma_ops_reference(), noise, a, z, &error), ICMA_OK);
                assert_memory_equal(z, wanted, d.latent * sizeof *z);
            }
        for (size_t j = 0; j < d.latent; j++)
            if (!(fabs(z[j] - plain[j]) < 1e-3 * (1 + fabs(plain[j]))))
                fail_msg("latent %zu is %g, not %g", j, z[j], plain[j]);
        icma_denoiser_free(&d);
    }
}

static void what_is_not_finite_is_corrupt(void **state) {
    (void)state;
    const float noise[5] = {1, 2, 3, 4, 5}, a[3] = {1, 1, 1};
    float z[5];
    for (int which = 0; which < 4; which++) {
        icma_denoiser d;
        icma_error error = {0};
        make_denoiser(&all_sizes[0], &d);
        if (which == 0)
            d.weight[3][1] = d.bias[3][1] = 3e38F;
        else if (which == 1)
            d.keep[0] = d.keep[1] = 3e38F;
        else if (which == 2)
            d.weight[0][0] = d.weight[0][7] = 3e38F; /* infinite before the first softsign, which makes it NaN */
        else
            d.spread[4] = d.centre[4] = 3e38F;
        if (which == 3)
            d.add[5] = 0, d.keep[5] = 1e10F;
        assert_int_equal(icma_denoiser_sample(&d, icma_ops_cpu(), noise, a, z, &error), ICMA_E_CORRUPT);
        assert_int_equal(icma_denoiser_sample(&d, icma_ops_reference(), noise, a, z, &error), ICMA_E_CORRUPT);
        icma_denoiser_free(&d);
    }
}

/* --- training ---------------------------------------------------------------------------------------------------- */

typedef struct data {
    size_t count, latent, coordinates;
    float *z, *a;
} data;

/* Clusters of conditions that differ in every dimension: corner c of a cube of side 2, plus `spread` times a normal number along one direction of the condition's own, plus a constant last dimension. */
enum { TOY_LATENT = 8, TOY_CONDITIONS = 2 };
static const double toy_spread = 0.4, toy_constant = 7;

static double toy_centre(size_t condition, size_t j) {
    return j == TOY_LATENT - 1 ? toy_constant : (condition + j) % 2 ? 1 : -1;
}

/* A unit vector that leaves the last dimension alone. */
static double toy_direction(size_t condition, size_t j) {
    static const double directions[TOY_CONDITIONS][TOY_LATENT] = {{0.5, 0.5, 0.5, 0.5}, {0, 0, 0, 0.5, -0.5, 0.5, 0.5}};
    return directions[condition][j];
}

static data make_toy(size_t count) {
    data d = {.count = count, .latent = TOY_LATENT, .coordinates = TOY_CONDITIONS};
    d.z = malloc(count * TOY_LATENT * sizeof *d.z);
    d.a = calloc(count * TOY_CONDITIONS, sizeof *d.a);
    assert_true(d.z && d.a);
    for (size_t i = 0; i < count; i++) {
        size_t c = i % TOY_CONDITIONS;
        double along = toy_spread * support_normal(&seed);
        d.a[i * TOY_CONDITIONS + c] = 1;
        for (size_t j = 0; j < TOY_LATENT; j++)
            d.z[i * TOY_LATENT + j] = (float)(toy_centre(c, j) + along * toy_direction(c, j));
    }
    return d;
}

static void free_data(data *d) {
    free(d->z);
    free(d->a);
}

static const icma_denoiser_options small_options = {.hidden = 24, .embedding = 8, .steps = 10, .epochs = 6, .batch = 16, .learning_rate = 2e-3};

static icma_denoising *create(const icma_ops *ops, const data *d, icma_denoiser_options options, icma_rng *rng) {
    icma_denoising *training;
    icma_error error = {0};
    assert_int_equal(icma_denoising_create(ops, d->z, d->a, d->count, d->latent, d->coordinates, options, rng, &training, &error), ICMA_OK);
    return training;
}

/* Epochs first .. last - 1; the loss of the last. */
static double run(icma_denoising *training, size_t first, size_t last, icma_rng *rng) {
    double loss = NAN;
    icma_error error = {0};
    for (size_t e = first; e < last; e++)
        assert_int_equal(icma_denoising_epoch(training, e, rng, &loss, &error), ICMA_OK);
    return loss;
}

static icma_denoiser finish(icma_denoising *training) {
    icma_denoiser d;
    icma_error error = {0};
    assert_int_equal(icma_denoising_finish(training, &d, &error), ICMA_OK);
    return d;
}

static float *get_state(icma_denoising *training) {
    icma_error error = {0};
    float *state = malloc(icma_denoising_state_size(training) * sizeof *state);
    assert_non_null(state);
    assert_int_equal(icma_denoising_get(training, state, &error), ICMA_OK);
    return state;
}

static void set_state(icma_denoising *training, const float *state) {
    icma_error error = {0};
    assert_int_equal(icma_denoising_set(training, state, &error), ICMA_OK);
}

/* The loss of one epoch of one batch from these parameters, always the same batch. Adam's first step leaves a tenth of the gradient in the first moments. */
static double loss_at(icma_denoising *training, const float *state, float *after) {
    icma_rng rng = icma_rng_seed(99);
    icma_error error = {0};
    set_state(training, state);
    double loss = run(training, 0, 1, &rng);
    if (after)
        assert_int_equal(icma_denoising_get(training, after, &error), ICMA_OK);
    return loss;
}

/* Of every matrix and bias: along its own gradient, and along a random direction, the loss changes as the gradient says. */
static void gradients_are_those_of_the_loss(void **state) {
    (void)state;
    static const icma_denoiser_options options = {.hidden = 9, .embedding = 6, .steps = 4, .epochs = 4, .batch = 12, .learning_rate = 1e-3};
    for (int table = 0; table < 2; table++) {
        data toy = make_toy(12);
        icma_rng rng = icma_rng_seed(5);
        icma_denoising *training = create(table ? icma_ops_cpu() : icma_ops_reference(), &toy, options, &rng);
        size_t size = icma_denoising_state_size(training), parameters = size / 3;
        float *at = calloc(size, sizeof *at), *moved = calloc(size, sizeof *moved), *after = calloc(size, sizeof *after);
        double *direction = calloc(parameters, sizeof *direction);
        assert_true(at && moved && after && direction);
        set_normals(at, parameters, 0.4);
        loss_at(training, at, after);
        icma_denoiser shape = finish(training);
        size_t offset = 0;
        for (int part = 0; part < 2 * ICMA_DENOISER_LAYERS; part++) {
            size_t rows, columns;
            icma_denoiser_layer_shape(&shape, part / 2, &rows, &columns);
            size_t count = part % 2 ? columns : rows * columns;
            for (int random = 0; random < 2; random++) {
                double norm = 0, wanted = 0;
                for (size_t i = 0; i < count; i++) {
                    direction[i] = random ? support_normal(&seed) : after[parameters + offset + i];
                    norm += direction[i] * direction[i];
                }
                assert_true(norm > 0);
                memcpy(moved, at, size * sizeof *at);
                double loss[2], step = 0.02;
                for (int side = 0; side < 2; side++) {
                    for (size_t i = 0; i < count; i++)
                        moved[offset + i] = (float)(at[offset + i] + (side ? step : -step) * direction[i] / sqrt(norm));
                    loss[side] = loss_at(training, moved, NULL);
                }
                for (size_t i = 0; i < count; i++)
                    wanted += 10 * (double)after[parameters + offset + i] * direction[i] / sqrt(norm);
                double slope = (loss[1] - loss[0]) / (2 * step);
                if (!(fabs(slope - wanted) < 2e-4 + 0.01 * fabs(wanted)))
                    fail_msg("part %d: the loss has slope %g, the gradient says %g", part, slope, wanted);
            }
            offset += count;
        }
        assert_int_equal(offset, parameters);
        icma_denoiser_free(&shape);
        icma_denoising_free(training);
        free(at);
        free(moved);
        free(after);
        free(direction);
        free_data(&toy);
    }
}

/* From noise, samples of a condition lie about its centre, spread along its own direction and nowhere else; without noise, a point of the cluster. */
static void a_toy_is_learned(void **state) {
    (void)state;
    enum { SAMPLES = 200 };
    static const icma_denoiser_options options = {.hidden = 64, .embedding = 32, .steps = 50, .epochs = 3000, .batch = 64, .learning_rate = 5e-3};
    data toy = make_toy(128);
    icma_rng rng = icma_rng_seed(11);
    icma_denoising *training = create(icma_ops_cpu(), &toy, options, &rng);
    double first = run(training, 0, 1, &rng), last = run(training, 1, options.epochs, &rng);
    assert_true(first > 0.5 && last < 0.5 * first);
    icma_denoiser d = finish(training);
    icma_buffer payload;
    write(&d, &payload); /* with rounded matrices, as in an archive */
    for (size_t c = 0; c < TOY_CONDITIONS; c++) {
        float noise[TOY_LATENT] = {0}, a[TOY_CONDITIONS] = {0}, z[TOY_LATENT];
        icma_error error = {0};
        double mean[TOY_LATENT] = {0}, along = 0, across = 0, distance = 0;
        a[c] = 1;
        assert_int_equal(icma_denoiser_sample(&d, icma_ops_cpu(), noise, a, z, &error), ICMA_OK);
        for (size_t j = 0; j < TOY_LATENT; j++)
            distance += pow(z[j] - toy_centre(c, j), 2);
        for (size_t s = 0; s < SAMPLES; s++) {
            double dot = 0, square = 0;
            set_normals(noise, TOY_LATENT, 1);
            assert_int_equal(icma_denoiser_sample(&d, icma_ops_cpu(), noise, a, z, &error), ICMA_OK);
            for (size_t j = 0; j < TOY_LATENT; j++) {
                double off = z[j] - toy_centre(c, j);
                mean[j] += off / SAMPLES;
                dot += off * toy_direction(c, j);
                square += off * off;
            }
            along += dot * dot / SAMPLES;
            across += (square - dot * dot) / SAMPLES;
        }
        double worst = 0;
        for (size_t j = 0; j < TOY_LATENT; j++)
            worst = fmax(worst, fabs(mean[j]));
        print_message("           condition %zu: mean off by %.3f at most, rms %.3f along (%.3f), %.3f across; without noise off by %.3f\n", c, worst, sqrt(along), toy_spread,
                      sqrt(across), sqrt(distance));
        assert_true(worst < 0.15);
        assert_true(sqrt(along) > 0.6 * toy_spread && sqrt(along) < 1.5 * toy_spread);
        assert_true(sqrt(across) < 0.12 && sqrt(distance) < 0.5);
    }
    icma_buffer_free(&payload);
    icma_denoiser_free(&d);
    icma_denoising_free(training);
    free_data(&toy);
}

/* The schedule that training leaves: from pure noise to x_0, times of falling order. */
static void the_schedule_ends_at_the_estimate(void **state) {
    (void)state;
    data toy = make_toy(6);
    for (size_t steps = 1; steps <= ICMA_DENOISER_TIMES; steps = steps * 3 + 1) {
        icma_denoiser_options options = small_options;
        icma_rng rng = icma_rng_seed(1);
        options.steps = steps;
        icma_denoising *training = create(icma_ops_cpu(), &toy, options, &rng);
        icma_denoiser d = finish(training);
        double signal = 1;
        for (int t = 1; t <= ICMA_DENOISER_TIMES; t++)
            signal *= 1 - (1e-4 + (0.02 - 1e-4) * (t - 1) / (ICMA_DENOISER_TIMES - 1));
        assert_true(d.keep[steps - 1] == 0 && d.add[steps - 1] == 1);
        for (size_t i = 0; i < steps; i++) {
            assert_true(d.keep[i] >= 0 && d.keep[i] < 1 && d.add[i] > 0 && d.add[i] <= 1);
            assert_true(i == 0 || memcmp(d.time + i * d.embedding, d.time + (i - 1) * d.embedding, d.embedding * sizeof *d.time) != 0);
        }
        /* At T, sin T and cos T lead the two halves. */
        assert_true(fabs(d.time[0] - sin(1000)) < 1e-6 && fabs(d.time[d.embedding / 2] - cos(1000)) < 1e-6);
        /* An estimate f = x_0 all the way takes x from signal x_0 + noise eps to x_0; at each step it stays such a sum. */
        double of_x0 = sqrt(signal), of_noise = sqrt(1 - signal);
        for (size_t i = 0; i < steps; i++) {
            of_x0 = d.keep[i] * of_x0 + d.add[i];
            of_noise *= d.keep[i];
            assert_true(fabs(of_x0 * of_x0 + of_noise * of_noise - 1) < 1e-5);
        }
        assert_true(of_noise == 0 && of_x0 == 1);
        icma_denoiser_free(&d);
        icma_denoising_free(training);
    }
    free_data(&toy);
}

static void a_stopped_training_goes_on(void **state) {
    (void)state;
    data toy = make_toy(40);
    icma_rng rng = icma_rng_seed(21);
    icma_denoising *whole = create(icma_ops_cpu(), &toy, small_options, &rng);
    run(whole, 0, 2, &rng);
    float *saved = get_state(whole);
    icma_rng saved_rng = rng;
    run(whole, 2, small_options.epochs, &rng);
    icma_rng other = icma_rng_seed(1234); /* another start, overwritten */
    icma_denoising *resumed = create(icma_ops_cpu(), &toy, small_options, &other);
    set_state(resumed, saved);
    run(resumed, 2, small_options.epochs, &saved_rng);
    icma_denoiser a = finish(whole), b = finish(resumed);
    check_same(&a, &b);
    assert_true(rng.state == saved_rng.state);
    /* The comparison can fail: without the moments it is another training. */
    size_t size = icma_denoising_state_size(resumed);
    memset(saved + size / 3, 0, (size - size / 3) * sizeof *saved);
    set_state(resumed, saved);
    run(resumed, 2, small_options.epochs, &other);
    icma_denoiser_free(&b);
    b = finish(resumed);
    assert_memory_not_equal(a.weight[1], b.weight[1], a.hidden * a.hidden * sizeof *a.weight[1]);
    icma_denoiser_free(&a);
    icma_denoiser_free(&b);
    icma_denoising_free(whole);
    icma_denoising_free(resumed);
    free(saved);
    free_data(&toy);
}

/* The rate falls to nothing over all epochs: the last moves parameters far less than the first. */
static void the_learning_rate_falls(void **state) {
    (void)state;
    data toy = make_toy(40);
    icma_rng rng = icma_rng_seed(4);
    icma_denoising *training = create(icma_ops_cpu(), &toy, small_options, &rng);
    size_t parameters = icma_denoising_state_size(training) / 3;
    double moved[2] = {0, 0};
    for (int last = 0; last < 2; last++) {
        size_t epoch = last ? small_options.epochs - 1 : 0;
        float *before = get_state(training);
        run(training, epoch, epoch + 1, &rng);
        float *after = get_state(training);
        for (size_t i = 0; i < parameters; i++)
            moved[last] += pow((double)after[i] - before[i], 2);
        free(before);
        free(after);
        if (!last)
            run(training, 1, small_options.epochs - 1, &rng);
    }
    assert_true(moved[0] > 0 && moved[1] > 0 && sqrt(moved[1]) < 0.2 * sqrt(moved[0]));
    icma_denoising_free(training);
    free_data(&toy);
}

static void threads_do_not_matter(void **state) {
    (void)state;
    icma_denoiser_options options = small_options;
    options.hidden = 300; /* more than one tile of a product */
    options.batch = 64;
    options.epochs = 2;
    data toy = make_toy(64);
    icma_denoiser first = {0};
    for (int threads = 1; threads <= 3; threads++) {
        icma_set_threads(threads);
        icma_rng rng = icma_rng_seed(3);
        icma_denoising *training = create(icma_ops_cpu(), &toy, options, &rng);
        run(training, 0, options.epochs, &rng);
        icma_denoiser d = finish(training);
        if (threads == 1)
            first = d;
        else {
            check_same(&first, &d);
            icma_denoiser_free(&d);
        }
        icma_denoising_free(training);
    }
    icma_denoiser_free(&first);
    free_data(&toy);
}

/* One latent; all the same; fewer than a batch; a batch that leaves one over; no condition, no embedding. */
static void degenerate_data_is_learned(void **state) {
    (void)state;
    static const struct {
        size_t count, batch, coordinates, embedding;
        bool same;
    } cases[] = {{1, 8, 2, 4, true}, {7, 3, 2, 4, true}, {5, 8, 2, 5, false}, {9, 4, 0, 0, false}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        data toy = make_toy(cases[i].count);
        toy.coordinates = cases[i].coordinates;
        for (size_t k = 1; cases[i].same && k < toy.count; k++)
            memcpy(toy.z + k * TOY_LATENT, toy.z, TOY_LATENT * sizeof *toy.z);
        icma_denoiser_options options = small_options;
        options.batch = cases[i].batch;
        options.embedding = cases[i].embedding;
        options.epochs = 30;
        icma_rng rng = icma_rng_seed(2);
        icma_denoising *training = create(icma_ops_cpu(), &toy, options, &rng);
        assert_true(isfinite(run(training, 0, options.epochs, &rng)));
        icma_denoiser d = finish(training);
        float noise[TOY_LATENT], z[TOY_LATENT];
        icma_error error = {0};
        set_normals(noise, TOY_LATENT, 1);
        assert_int_equal(icma_denoiser_sample(&d, icma_ops_cpu(), noise, toy.a, z, &error), ICMA_OK);
        assert_true(fabs(z[TOY_LATENT - 1] - toy_constant) < 0.01); /* a dead dimension stays where it is */
        for (size_t j = 0; cases[i].same && j < TOY_LATENT; j++)
            assert_true(fabsf(z[j] - toy.z[j]) < 1e-4F);
        icma_denoiser_free(&d);
        icma_denoising_free(training);
        free_data(&toy);
    }
}

static void options_are_checked(void **state) {
    (void)state;
    data toy = make_toy(4);
    icma_denoiser_options wrong[9];
    for (size_t i = 0; i < COUNT(wrong); i++)
        wrong[i] = small_options;
    wrong[0].hidden = 0;
    wrong[1].hidden = ICMA_DENOISER_MOST_HIDDEN + 1;
    wrong[2].embedding = ICMA_DENOISER_MOST_EMBEDDING + 1;
    wrong[3].steps = 0;
    wrong[4].steps = ICMA_DENOISER_TIMES + 1;
    wrong[5].epochs = 0;
    wrong[6].batch = 0;
    wrong[7].batch = SIZE_MAX;
    wrong[8] = small_options; /* without latents */
    for (size_t i = 0; i < COUNT(wrong); i++) {
        icma_rng rng = icma_rng_seed(1);
        icma_error error = {0};
        icma_denoising *training = (icma_denoising *)(void *)&rng;
        size_t count = i == 8 ? 0 : toy.count;
        assert_int_equal(icma_denoising_create(icma_ops_cpu(), toy.z, toy.a, count, toy.latent, toy.coordinates, wrong[i], &rng, &training, &error), ICMA_E_USAGE);
        assert_null(training);
    }
    icma_denoising_free(NULL);
    free_data(&toy);
}

/* Few latents or many: options that create takes, and about as much training for all until many latents need more. */
static void defaults_fit_the_latents(void **state) {
    (void)state;
    data toy = make_toy(3);
    for (size_t count = 0; count <= 1000000; count = count * 3 + 1) {
        icma_denoiser_options options = icma_denoiser_defaults(count);
        size_t latents = count ? count : 1, updates = ((options.batch + latents - 1) / latents * latents + options.batch - 1) / options.batch * options.epochs;
        assert_true(updates > 5000 && updates < (count < 10000 ? 10000 : count));
        icma_rng rng = icma_rng_seed(1);
        icma_denoising_free(create(icma_ops_cpu(), &toy, options, &rng));
    }
    free_data(&toy);
}

static void a_training_that_runs_away_says_so(void **state) {
    (void)state;
    data toy = make_toy(8);
    icma_denoiser_options options = small_options;
    options.learning_rate = 1e38;
    icma_rng rng = icma_rng_seed(1);
    icma_denoising *training = create(icma_ops_cpu(), &toy, options, &rng);
    icma_status status = ICMA_OK;
    double loss;
    for (size_t e = 0; !status && e < options.epochs; e++) {
        icma_error error = {0};
        status = icma_denoising_epoch(training, e, &rng, &loss, &error);
    }
    assert_int_equal(status, ICMA_E_USAGE);
    icma_denoising_free(training);
    free_data(&toy);
}

static icma_status whole_life(const data *toy, icma_error *error) {
    icma_rng rng = icma_rng_seed(1);
    icma_denoising *training;
    icma_denoiser d = {0}, back = {0};
    icma_buffer payload = {0};
    double loss;
    float z[TOY_LATENT];
    icma_status status = icma_denoising_create(icma_ops_cpu(), toy->z, toy->a, toy->count, toy->latent, toy->coordinates, small_options, &rng, &training, error);
    if (!status)
        status = icma_denoising_epoch(training, 0, &rng, &loss, error);
    if (!status)
        status = icma_denoising_finish(training, &d, error);
    if (!status) {
        icma_denoiser_write(&d, &payload);
        status = icma_buffer_status(&payload, error);
    }
    icma_cursor from = icma_cursor_over(payload.data, payload.size);
    if (!status)
        status = icma_denoiser_read(&from, d.latent, d.coordinates, &back, error);
    if (!status)
        status = icma_denoiser_sample(&back, icma_ops_cpu(), toy->z, toy->a, z, error);
    icma_denoising_free(training);
    icma_denoiser_free(&d);
    icma_denoiser_free(&back);
    icma_buffer_free(&payload);
    return status;
}

static void memory_that_is_short_leaves_nothing(void **state) {
    (void)state;
    icma_ops_cpu();
    data toy = make_toy(10);
    size_t k = 0;
    for (icma_status status = ICMA_E_MEMORY; status; k++) {
        support_budget budget = {.left = k};
        icma_error error = {0};
        support_limit_memory(&budget);
        status = whole_life(&toy, &error);
        support_limit_memory(NULL);
        assert_true(status == ICMA_OK || (status == ICMA_E_MEMORY && error.status == status));
        assert_int_equal(budget.live, 0);
    }
    assert_true(k > 50);
    free_data(&toy);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(payloads_come_back, start),
        cmocka_unit_test_setup(the_payload_is_laid_out_as_written, start),
        cmocka_unit_test_setup(lies_are_refused, start),
        cmocka_unit_test_setup(odd_numbers_are_refused, start),
        cmocka_unit_test_setup(sizes_are_checked_before_memory_is_taken, start),
        cmocka_unit_test(work_is_counted),
        cmocka_unit_test_setup_teardown(samples_have_the_bits_of_the_definition, start, all_threads),
        cmocka_unit_test_setup(what_is_not_finite_is_corrupt, start),
        cmocka_unit_test_setup(gradients_are_those_of_the_loss, start),
        cmocka_unit_test_setup(a_toy_is_learned, start),
        cmocka_unit_test_setup(the_schedule_ends_at_the_estimate, start),
        cmocka_unit_test_setup(a_stopped_training_goes_on, start),
        cmocka_unit_test_setup(the_learning_rate_falls, start),
        cmocka_unit_test_setup_teardown(threads_do_not_matter, start, all_threads),
        cmocka_unit_test_setup(degenerate_data_is_learned, start),
        cmocka_unit_test_setup(options_are_checked, start),
        cmocka_unit_test_setup(defaults_fit_the_latents, start),
        cmocka_unit_test_setup(a_training_that_runs_away_says_so, start),
        cmocka_unit_test_setup(memory_that_is_short_leaves_nothing, start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
