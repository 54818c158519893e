/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The payloads of sections: generator, condition, task table, texts, head, verbatim. What is written is read
 * again; every truncation is refused; every change of a byte is refused or gives a structure that keeps its
 * promises; a count that lies does not make the reader allocate.
 */
#include "checkpoints.h"
#include "coarse.h"
#include "decode.h"
#include "head.h"
#include "memory.h"
#include "support.h"
#include "trellis.h"
#include "verbatim.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static uint64_t seed;

static size_t pick(size_t bound) {
    return (size_t)(support_uniform(&seed) * (double)bound);
}

static int start(void **state) {
    (void)state;
    seed = 71;
    return 0;
}

/* --- counting what the library allocates --------------------------------------------------------------- */

/* A header in front of each block tells its size. */
typedef struct meter {
    size_t live, peak, blocks;
} meter;

enum { PREFIX = 64 };

static void *meter_resize(void *context, void *pointer, size_t size) {
    meter *m = context;
    uint8_t *old = pointer ? (uint8_t *)pointer - PREFIX : NULL;
    size_t before = 0;
    if (old)
        memcpy(&before, old, sizeof before);
    if (size > (size_t)1 << 32)
        return NULL;
    uint8_t *block = realloc(old, size + PREFIX);
    if (!block)
        return NULL;
    memcpy(block, &size, sizeof size);
    m->live += size - before;
    m->blocks += !old;
    m->peak = m->live > m->peak ? m->live : m->peak;
    return block + PREFIX;
}

static void meter_release(void *context, void *pointer) {
    meter *m = context;
    size_t size;
    if (!pointer)
        return;
    memcpy(&size, (uint8_t *)pointer - PREFIX, sizeof size);
    m->live -= size;
    m->blocks--;
    free((uint8_t *)pointer - PREFIX);
}

static void measure(meter *m) {
    const icma_allocator allocator = {meter_resize, meter_release, m};
    icma_memory_set_allocator(m ? &allocator : NULL);
}

/* --- readers under attack ------------------------------------------------------------------------------ */

typedef struct subject {
    const char *name;
    /* Reads a payload, checks that what it got is within its promises, and frees it. */
    icma_status (*read)(const void *context, const uint8_t *data, size_t size, icma_error *error);
    const void *context;
    size_t constant, factor; /* bytes allocated at most: constant + factor * size */
} subject;

/* Reads from a block of exactly this size, so that a sanitizer sees a byte too far. */
static icma_status attempt(const subject *s, const uint8_t *data, size_t size) {
    meter m = {0};
    icma_error error = {0};
    uint8_t *copy = malloc(size + !size);
    assert_non_null(copy);
    memcpy(copy, data, size);
    measure(&m);
    icma_status status = s->read(s->context, copy, size, &error);
    measure(NULL);
    free(copy);
    if (m.blocks || m.live)
        fail_msg("%s: %zu blocks are left after %s", s->name, m.blocks, icma_status_name(status));
    if (m.peak > s->constant + s->factor * size)
        fail_msg("%s: %zu bytes allocated for a payload of %zu", s->name, m.peak, size);
    if (status != error.status)
        fail_msg("%s: %s, but the error says %s", s->name, icma_status_name(status),
                 icma_status_name(error.status));
    if (status && status != ICMA_E_CORRUPT && status != ICMA_E_LIMIT && status != ICMA_E_UNSUPPORTED)
        fail_msg("%s: %s", s->name, icma_status_name(status));
    return status;
}

/* Every truncation (of long payloads, those near both ends and every 7th), one byte more, every byte changed
 * in several ways, and varints that say "very many" at every place. */
static void attack(const subject *s, const icma_buffer *payload) {
    size_t size = payload->size;
    assert_int_equal(attempt(s, payload->data, size), ICMA_OK);
    for (size_t cut = 0; cut < size; cut++) {
        if (cut > 400 && size - cut > 100 && cut % 7)
            continue;
        icma_status status = attempt(s, payload->data, cut);
        if (!status)
            fail_msg("%s: %zu of %zu bytes were taken for all", s->name, cut, size);
    }
    uint8_t *copy = malloc(size + 16);
    assert_non_null(copy);
    memcpy(copy, payload->data, size);
    copy[size] = 0;
    assert_int_equal(attempt(s, copy, size + 1), ICMA_E_CORRUPT);
    for (size_t i = 0; i < size; i++) {
        const uint8_t changes[] = {0x01, 0x80, 0xFF, 0x10, (uint8_t)(1 + pick(255))};
        if (i > 1000 && i % 13)
            continue;
        for (size_t c = 0; c < COUNT(changes); c++) {
            copy[i] = payload->data[i] ^ changes[c];
            attempt(s, copy, size);
        }
        copy[i] = payload->data[i];
    }
    static const uint8_t lies[][5] = {{0xFF, 0xFF, 0xFF, 0xFF, 0x0F}, {0xFF, 0xFF, 0x03}, {0xFF, 0x7F}};
    static const size_t lengths[] = {5, 3, 2};
    for (size_t i = 0; i < size && i < 1000; i++)
        for (size_t l = 0; l < COUNT(lies); l++) {
            memcpy(copy, payload->data, i);
            memcpy(copy + i, lies[l], lengths[l]);
            memcpy(copy + i + lengths[l], payload->data + i + 1, size - i - 1);
            attempt(s, copy, size + lengths[l] - 1);
        }
    for (size_t trial = 0; trial < 300; trial++) { /* noise */
        size_t length = pick(80);
        for (size_t i = 0; i < length; i++)
            copy[i < size + 16 ? i : 0] = (uint8_t)pick(256);
        attempt(s, copy, length < size + 16 ? length : size);
    }
    free(copy);
}

/* --- a signature and its generators -------------------------------------------------------------------- */

static void make_signature(support_image *out) {
    static const support_tensor tensors[] = {
        {.name = "a", .dtype = ICMA_F32, .rank = 2, .shape = {4, 8}},
        {.name = "b", .dtype = ICMA_F16, .rank = 2, .shape = {8, 4}},
        {.name = "c", .dtype = ICMA_I64, .rank = 1, .shape = {3}},
        {.name = "d", .dtype = ICMA_BF16, .rank = 1, .shape = {40}},
        {.name = "e", .dtype = ICMA_F32, .rank = 0},
        {.name = "f", .dtype = ICMA_F32, .rank = 2, .shape = {0, 5}},
        {.name = "g", .dtype = ICMA_F32, .rank = 2, .shape = {2, 32}},
    };
    support_build_image(tensors, COUNT(tensors), out);
}

static float any_float(void) {
    return (float)support_normal(&seed);
}

static void set_floats(float *values, size_t count, bool positive) {
    for (size_t i = 0; i < count; i++)
        values[i] = positive ? fabsf(any_float()) + 0.01F : any_float();
}

typedef struct sizes {
    size_t components[ICMA_ROLE_COUNT], latent, coordinates, hidden, condition, given;
} sizes;

static const sizes all_sizes[] = {
    {{3, 2, 1}, 4, 3, 5, 7, 2}, /* given and learned conditions */
    {{3, 0, 0}, 0, 2, 1, 0, 0}, /* no latents; roles without rows; learned only */
    {{0, 6, 0}, 2, 1, 8, 3, 1}, /* given only */
    {{1, 1, 1}, 0, 0, 1, 0, 0}, /* no inputs at all */
};

static void make_generator(const support_image *image, const sizes *s, icma_generator *g) {
    static const uint8_t treatment[] = {ICMA_TREAT_A,     ICMA_TREAT_B,        ICMA_TREAT_VERBATIM,
                                        ICMA_TREAT_OTHER, ICMA_TREAT_VERBATIM, ICMA_TREAT_VERBATIM,
                                        ICMA_TREAT_A};
    icma_error error = {0};
    *g = (icma_generator){.kind = s ? ICMA_GENERATOR_BASIS : ICMA_GENERATOR_NONE,
                          .tensor_count = image->tensors.tensor_count};
    if (s) {
        memcpy(g->components, s->components, sizeof g->components);
        g->latent = s->latent;
        g->coordinates = s->coordinates;
        g->hidden = s->hidden;
        g->condition_size = s->condition;
        g->given_coordinates = s->given;
    }
    assert_int_equal(icma_generator_allocate(g, &error), ICMA_OK);
    for (size_t t = 0; t < g->tensor_count; t++) {
        g->treatment[t] = s ? treatment[t] : ICMA_TREAT_VERBATIM;
        g->scale[t] = icma_generator_is_modelled(g, t) ? 0.5F + (float)t : 0;
    }
    set_floats(g->projection, g->given_coordinates * g->condition_size, false);
    set_floats(g->latent_step, g->latent, true);
    set_floats(g->correction_step, g->total, true);
    set_floats(g->head_step, g->total, true);
    for (int part = 0; part < ICMA_TRUNK_PARTS; part++) {
        size_t rows, columns;
        icma_trunk_shape(g, part, &rows, &columns);
        set_floats(g->trunk[part], rows * columns, false);
    }
}

static void check_numbers(const float *values, size_t count) {
    for (size_t i = 0; i < count; i++)
        assert_true(values[i] == 0 || isnormal(values[i]));
}

/* Whatever a reader lets through can be used. */
static void check_generator(const icma_generator *g, const icma_safetensors *signature) {
    assert_int_equal(g->tensor_count, signature->tensor_count);
    assert_true(g->kind == ICMA_GENERATOR_NONE || g->kind == ICMA_GENERATOR_BASIS);
    for (size_t t = 0; t < g->tensor_count; t++) {
        assert_true(g->treatment[t] <= ICMA_TREAT_VERBATIM);
        if (icma_generator_is_modelled(g, t)) {
            assert_true(isnormal(g->scale[t]) && g->scale[t] > 0);
            assert_true(icma_dtype_is_modelled(signature->tensors[t].dtype) &&
                        signature->tensors[t].count > 0);
        }
    }
    if (g->kind == ICMA_GENERATOR_NONE)
        return;
    assert_int_equal(g->total, icma_generator_first(g, ICMA_ROLE_COUNT));
    assert_true(g->total > 0 && g->hidden > 0 && g->given_coordinates <= g->coordinates);
    assert_true((g->given_coordinates == 0) == (g->condition_size == 0));
    check_numbers(g->projection, g->given_coordinates * g->condition_size);
    for (size_t i = 0; i < g->latent; i++)
        assert_true(isnormal(g->latent_step[i]) && g->latent_step[i] > 0);
    for (size_t i = 0; i < g->total; i++)
        assert_true(isnormal(g->correction_step[i]) && g->correction_step[i] > 0 &&
                    isnormal(g->head_step[i]) && g->head_step[i] > 0);
    for (int part = 0; part < ICMA_TRUNK_PARTS; part++) {
        size_t rows, columns;
        icma_trunk_shape(g, part, &rows, &columns);
        check_numbers(g->trunk[part], rows * columns);
    }
}

static icma_status read_generator(const void *context, const uint8_t *data, size_t size, icma_error *error) {
    const support_image *image = context;
    icma_generator g;
    memset(&g, 0x5A, sizeof g);
    icma_status status = icma_generator_read(data, size, &image->tensors, &g, error);
    if (!status)
        check_generator(&g, &image->tensors);
    else
        assert_true(g.treatment == NULL && g.scale == NULL && g.tensor_count == 0);
    icma_generator_free(&g);
    return status;
}

static void check_same_floats(const float *a, const float *b, size_t count) {
    if (count)
        assert_memory_equal(a, b, count * sizeof *a);
}

static void generators_come_back(void **state) {
    (void)state;
    support_image image;
    make_signature(&image);
    for (size_t s = 0; s <= COUNT(all_sizes); s++) {
        icma_generator g, back;
        icma_buffer payload = {0};
        icma_error error = {0};
        make_generator(&image, s < COUNT(all_sizes) ? &all_sizes[s] : NULL, &g);
        assert_int_equal(icma_generator_write(&g, &payload, NULL), ICMA_OK);
        assert_int_equal(icma_buffer_status(&payload, &error), ICMA_OK);
        assert_int_equal(icma_generator_read(payload.data, payload.size, &image.tensors, &back, &error),
                         ICMA_OK);
        assert_true(back.kind == g.kind && back.latent == g.latent && back.coordinates == g.coordinates &&
                    back.hidden == g.hidden);
        assert_true(back.condition_size == g.condition_size &&
                    back.given_coordinates == g.given_coordinates && back.total == g.total);
        assert_memory_equal(back.treatment, g.treatment, g.tensor_count);
        check_same_floats(back.scale, g.scale, g.tensor_count);
        check_same_floats(back.projection, g.projection, g.given_coordinates * g.condition_size);
        check_same_floats(back.latent_step, g.latent_step, g.latent);
        check_same_floats(back.correction_step, g.correction_step, g.total);
        check_same_floats(back.head_step, g.head_step, g.total);
        for (int part = 0; part < ICMA_TRUNK_PARTS; part++) {
            size_t rows, columns;
            icma_trunk_shape(&g, part, &rows, &columns);
            check_same_floats(back.trunk[part], g.trunk[part],
                              rows * columns); /* the writer rounded its own */
        }
        icma_generator_free(&back);
        subject s1 = {"generator", read_generator, &image, 1024, 8};
        attack(&s1, &payload);
        icma_buffer_free(&payload);
        icma_generator_free(&g);
    }
    support_free_image(&image);
}

/* Numbers that no archive holds are zero after writing; a bfloat16 that would be infinite, too. Of the projection a row's
 * exponent holds its largest number, up to what the exponent can say. */
static void odd_numbers_are_flushed(void **state) {
    (void)state;
    support_image image;
    icma_generator g, back;
    icma_buffer payload = {0};
    icma_error error = {0};
    make_signature(&image);
    make_generator(&image, &all_sizes[0], &g);
    const float odd[] = {0x1p-149F, -0x1p-130F, NAN, INFINITY, -INFINITY, 0x1.fffffep127F, -0.0F};
    for (size_t i = 0; i < COUNT(odd); i++) {
        g.trunk[ICMA_TRUNK_V2][i] = odd[i];
        g.trunk[ICMA_TRUNK_S][i] = odd[i];
        g.projection[i] = isfinite(odd[i]) ? odd[i] : 0; /* coarse.h takes finite numbers only */
    }
    assert_int_equal(icma_generator_write(&g, &payload, NULL), ICMA_OK);
    assert_int_equal(icma_generator_read(payload.data, payload.size, &image.tensors, &back, &error), ICMA_OK);
    check_generator(&back, &image.tensors);
    for (size_t i = 0; i < 5; i++)
        assert_true(back.trunk[ICMA_TRUNK_V2][i] == 0 && back.trunk[ICMA_TRUNK_S][i] == 0 &&
                    back.projection[i] == 0);
    assert_true(back.projection[5] == 127 * 0x1p120F && back.projection[6] == 0 && !signbit(back.projection[6]));
    assert_true(back.trunk[ICMA_TRUNK_V2][5] == 0 && back.trunk[ICMA_TRUNK_S][5] == odd[5]);
    icma_generator_free(&g);
    icma_generator_free(&back);
    icma_buffer_free(&payload);
    support_free_image(&image);
}

static void generators_of_a_newer_icma_are_unsupported(void **state) {
    (void)state;
    support_image image;
    icma_generator g, back;
    icma_buffer payload = {0};
    icma_error error = {0};
    make_signature(&image);
    make_generator(&image, &all_sizes[0], &g);
    assert_int_equal(icma_generator_write(&g, &payload, NULL), ICMA_OK);
    payload.data[0] = 3;
    assert_int_equal(icma_generator_read(payload.data, payload.size, &image.tensors, &back, &error),
                     ICMA_E_UNSUPPORTED);
    payload.data[0] = 1;
    payload.data[2] = 4; /* treatment of the first tensor */
    error = (icma_error){0};
    assert_int_equal(icma_generator_read(payload.data, payload.size, &image.tensors, &back, &error),
                     ICMA_E_UNSUPPORTED);
    icma_generator_free(&g);
    icma_buffer_free(&payload);
    support_free_image(&image);
}

/* Integers (2) and tensors without elements (5) cannot be modelled, with rows or without. */
static void what_cannot_be_modelled_is_refused(void **state) {
    (void)state;
    support_image image;
    make_signature(&image);
    for (int kind = 0; kind < 2; kind++)
        for (size_t t = 0; t <= 5; t++) {
            icma_generator g, back;
            icma_buffer payload = {0};
            icma_error error = {0};
            make_generator(&image, kind ? &all_sizes[0] : NULL, &g);
            bool good = t != 2 && t != 5;
            g.treatment[t] = good ? g.treatment[t] : ICMA_TREAT_OTHER;
            g.scale[t] = 1;
            assert_int_equal(icma_generator_write(&g, &payload, NULL), ICMA_OK);
            assert_int_equal(icma_generator_read(payload.data, payload.size, &image.tensors, &back, &error),
                             good ? ICMA_OK : ICMA_E_CORRUPT);
            assert_true(good || strstr(error.message, "cannot be"));
            icma_generator_free(&back);
            icma_generator_free(&g);
            icma_buffer_free(&payload);
        }
    support_free_image(&image);
}

/* Without a basis there are scales and nothing else: they are what residuals are coded with. */
static void generators_without_a_basis_have_scales(void **state) {
    (void)state;
    support_image image;
    icma_generator g, back;
    icma_buffer payload = {0};
    icma_error error = {0};
    make_signature(&image);
    make_generator(&image, NULL, &g);
    for (size_t t = 0; t < g.tensor_count; t++)
        g.treatment[t] = ICMA_TREAT_VERBATIM;
    g.treatment[0] = ICMA_TREAT_A;
    g.treatment[1] = ICMA_TREAT_B;
    g.scale[0] = 0.25F;
    g.scale[1] = 3;
    assert_int_equal(icma_generator_write(&g, &payload, NULL), ICMA_OK);
    assert_int_equal(payload.size, 2 + g.tensor_count + 2 * 4);
    assert_int_equal(icma_generator_read(payload.data, payload.size, &image.tensors, &back, &error), ICMA_OK);
    assert_true(back.kind == ICMA_GENERATOR_NONE && back.scale[0] == 0.25F && back.scale[1] == 3 &&
                back.total == 0);
    icma_generator_free(&back);
    for (size_t cut = 0; cut < payload.size; cut++) { /* too short */
        error = (icma_error){0};
        assert_int_equal(icma_generator_read(payload.data, cut, &image.tensors, &back, &error),
                         ICMA_E_CORRUPT);
    }
    static const float bad[] = {0, -1, 0x1p-130F, INFINITY, NAN};
    for (size_t i = 0; i < COUNT(bad); i++) {
        uint8_t kept[4];
        memcpy(kept, payload.data + payload.size - 4, 4);
        icma_store_floats(ICMA_F32, &bad[i], 1, payload.data + payload.size - 4);
        error = (icma_error){0};
        assert_int_equal(icma_generator_read(payload.data, payload.size, &image.tensors, &back, &error),
                         ICMA_E_CORRUPT);
        memcpy(payload.data + payload.size - 4, kept, 4);
    }
    subject s = {"generator without a basis", read_generator, &image, 1024, 8};
    attack(&s, &payload);
    icma_generator_free(&g);
    icma_buffer_free(&payload);
    support_free_image(&image);
}

/* --- the trunk ----------------------------------------------------------------------------------------- */

static float chain(const icma_generator *g, int part, const float *x, size_t j, float from) {
    size_t rows, columns;
    icma_trunk_shape(g, part, &rows, &columns);
    for (size_t i = 0; i < rows; i++)
        from = fmaf(x[i], g->trunk[part][i * columns + j], from);
    return from;
}

static void trunks_evaluate_exactly(void **state) {
    (void)state;
    support_image image;
    make_signature(&image);
    for (size_t s = 0; s < COUNT(all_sizes); s++)
        for (int table = 0; table < 2; table++) {
            icma_generator g;
            icma_trunk *trunk;
            icma_error error = {0};
            float in[16], h1[16], h2[16], q[16];
            make_generator(&image, &all_sizes[s], &g);
            set_floats(in, g.latent + g.coordinates, false);
            assert_int_equal(
                icma_trunk_upload(&g, table ? icma_ops_cpu() : icma_ops_reference(), &trunk, &error),
                ICMA_OK);
            assert_int_equal(icma_trunk_evaluate(trunk, in, in + g.latent, q, &error), ICMA_OK);
            for (size_t j = 0; j < g.hidden; j++) {
                float v = chain(&g, ICMA_TRUNK_V1, in, j, g.trunk[ICMA_TRUNK_B1][j]);
                h1[j] = v / (1 + fabsf(v));
            }
            for (size_t j = 0; j < g.hidden; j++) {
                float v = chain(&g, ICMA_TRUNK_V2, h1, j, g.trunk[ICMA_TRUNK_B2][j]);
                h2[j] = v / (1 + fabsf(v));
            }
            for (size_t k = 0; k < g.total; k++) {
                float v = chain(&g, ICMA_TRUNK_V3, h2, k, g.trunk[ICMA_TRUNK_B3][k]);
                v = chain(&g, ICMA_TRUNK_S, in, k, v);
                assert_memory_equal(&v, &q[k], sizeof v);
            }
            if (g.latent) { /* a number that leaves the range is corrupt */
                in[0] = INFINITY;
                assert_int_equal(icma_trunk_evaluate(trunk, in, in + g.latent, q, &error), ICMA_E_CORRUPT);
            }
            icma_trunk_free(trunk);
            icma_generator_free(&g);
        }
    icma_trunk_free(NULL);
    support_free_image(&image);
}

static void conditions_have_coordinates(void **state) {
    (void)state;
    support_image image;
    icma_generator g;
    float c[7], a[3], learned[3] = {1, -2, 3};
    make_signature(&image);
    make_generator(&image, &all_sizes[0], &g);
    set_floats(c, 7, false);
    icma_generator_coordinates(&g, c, false, a);
    for (size_t i = 0; i < 3; i++) {
        float sum = 0;
        for (size_t j = 0; i < 2 && j < 7; j++)
            sum = fmaf(c[j], g.projection[i * 7 + j], sum);
        assert_memory_equal(&a[i], &sum, sizeof sum);
    }
    icma_generator_coordinates(&g, learned, true, a);
    assert_memory_equal(a, learned, sizeof a);
    icma_generator_free(&g);
    support_free_image(&image);
}

/* --- conditions ---------------------------------------------------------------------------------------- */

static icma_status read_condition(const void *context, const uint8_t *data, size_t size, icma_error *error) {
    const icma_generator *g = context;
    icma_checkpoints c = {0};
    icma_status status = icma_condition_read(data, size, g, &c, error);
    if (!status) {
        assert_true(c.origin >= ICMA_CONDITION_GIVEN && c.origin <= ICMA_CONDITION_OFFSET);
        assert_true((c.offset != NULL) == (c.origin == ICMA_CONDITION_OFFSET));
        assert_non_null(c.condition_name);
        if (g->kind == ICMA_GENERATOR_BASIS && !c.offset)
            assert_int_equal(c.condition_size,
                             c.origin == ICMA_CONDITION_GIVEN ? g->condition_size : g->coordinates);
        for (size_t i = 0; i < c.condition_size; i++)
            assert_true(isfinite(c.condition[i]));
    }
    icma_checkpoints_free(&c);
    return status;
}

static void try_condition(const icma_generator *g, icma_condition_origin origin, const char *name,
                          size_t count) {
    float values[16];
    set_floats(values, count, false);
    icma_coarse_round(values, count);
    icma_checkpoints c = {.origin = origin,
                          .condition_name = (char *)name,
                          .condition = values,
                          .condition_size = count},
                     back = {0};
    icma_buffer payload = {0};
    icma_error error = {0};
    icma_condition_write(&c, g, &payload);
    assert_int_equal(payload.size, 3 + strlen(name) + count);
    assert_int_equal(icma_condition_read(payload.data, payload.size, g, &back, &error), ICMA_OK);
    assert_true(back.origin == origin && back.condition_size == count);
    assert_string_equal(back.condition_name, name);
    assert_memory_equal(back.condition, values, count * sizeof *values);
    icma_checkpoints_free(&back);
    subject s = {"condition", read_condition, g, 512, 4};
    if (g->kind == ICMA_GENERATOR_BASIS)
        attack(&s, &payload);
    icma_buffer_free(&payload);
}

static void conditions_come_back(void **state) {
    (void)state;
    support_image image;
    icma_generator g, none;
    make_signature(&image);
    make_generator(&image, &all_sizes[0], &g);
    make_generator(&image, NULL, &none);
    try_condition(&g, ICMA_CONDITION_GIVEN, "task_vector.npy", 7);
    try_condition(&g, ICMA_CONDITION_GIVEN, "", 7);
    try_condition(&g, ICMA_CONDITION_LEARNED, "", 3);
    try_condition(&none, ICMA_CONDITION_GIVEN, "task_vector.safetensors",
                  5); /* kept, though nothing uses it */
    icma_checkpoints back = {0};
    icma_error error = {0};
    uint8_t bytes[3 + 7] = {ICMA_CONDITION_GIVEN, 0, 0, 0, 0, 0, 0x81}; /* exponent 0; the fourth is -127 */
    static const uint8_t exponents[] = {0, 120, 0x82 /* -126 */, 121, 127, 0x81, 0x80};
    for (size_t i = 0; i < COUNT(exponents); i++) {
        error = (icma_error){0};
        bytes[2] = exponents[i];
        assert_int_equal(icma_condition_read(bytes, sizeof bytes, &g, &back, &error),
                         i < 3 ? ICMA_OK : ICMA_E_CORRUPT);
        if (i < 3)
            assert_true(back.condition[3] == ldexpf(-127, (int8_t)exponents[i]));
        icma_checkpoints_free(&back);
    }
    bytes[2] = 0;
    bytes[3 + 3] = 0x80; /* -128 */
    error = (icma_error){0};
    assert_int_equal(icma_condition_read(bytes, sizeof bytes, &g, &back, &error), ICMA_E_CORRUPT);
    icma_checkpoints_free(&back);
    bytes[0] = 4;
    error = (icma_error){0};
    assert_int_equal(icma_condition_read(bytes, sizeof bytes, &g, &back, &error), ICMA_E_UNSUPPORTED);
    icma_checkpoints_free(&back);
    icma_generator_free(&g);
    icma_generator_free(&none);
    support_free_image(&image);
}

/* Offsets of tasks that were added, with a vector of any size or none (spec 4.6). */
static void try_offset(const icma_generator *g, size_t count) {
    float values[16];
    int32_t offset[64];
    icma_checkpoints back = {0}, c = {.origin = ICMA_CONDITION_OFFSET, .condition_name = (char *)"v.npy", .condition = values, .condition_size = count, .offset = offset};
    icma_buffer payload = {0};
    icma_error error = {0};
    assert_true(g->total <= COUNT(offset));
    set_floats(values, count, false);
    icma_coarse_round(values, count);
    for (size_t k = 0; k < g->total; k++)
        offset[k] = (k % 2 ? -1 : 1) * (k < 2 ? 1 << 23 : (int32_t)(k * k));
    icma_condition_write(&c, g, &payload);
    assert_int_equal(icma_condition_read(payload.data, payload.size, g, &back, &error), ICMA_OK);
    assert_int_equal(back.origin, ICMA_CONDITION_OFFSET);
    assert_string_equal(back.condition_name, "v.npy");
    assert_int_equal(back.condition_size, count);
    assert_true((back.condition != NULL) == (count > 0));
    if (count)
        assert_memory_equal(back.condition, values, count * sizeof *values);
    assert_memory_equal(back.offset, offset, g->total * sizeof *offset);
    icma_checkpoints_free(&back);
    subject s = {"offset", read_condition, g, 512, 4};
    attack(&s, &payload);
    icma_buffer_free(&payload);
}

static void offsets_come_back(void **state) {
    (void)state;
    support_image image;
    icma_generator g, none;
    icma_checkpoints back = {0};
    icma_error error = {0};
    make_signature(&image);
    make_generator(&image, &all_sizes[0], &g);
    make_generator(&image, NULL, &none);
    try_offset(&g, 0);
    try_offset(&g, 7);
    try_offset(&g, 13);
    assert_int_equal(icma_condition_read("\3\0\0\0\0\0\0\0", 8, &none, &back, &error), ICMA_E_CORRUPT);
    icma_checkpoints_free(&back);
    icma_checkpoints added = {.origin = ICMA_CONDITION_OFFSET}, learned = {.origin = ICMA_CONDITION_LEARNED};
    assert_int_equal(icma_stored_latents(&g, &added), 0);
    assert_int_equal(icma_stored_latents(&g, &learned), g.latent);
    icma_generator_free(&g);
    icma_generator_free(&none);
    support_free_image(&image);
}

/* --- task tables --------------------------------------------------------------------------------------- */

static void *copy_of(const void *data, size_t size) {
    void *copy = size ? icma_alloc(size) : NULL;
    assert_true(copy || size == 0);
    if (size)
        memcpy(copy, data, size);
    return copy;
}

static void make_integers(int32_t **out, size_t count) {
    *out = icma_alloc_array(count + 1, sizeof **out);
    assert_non_null(*out);
    for (size_t i = 0; i < count; i++) {
        static const int32_t special[] = {0, 1, -1, 1 << 23, -(1 << 23), 127, -128};
        (*out)[i] = pick(3) ? (int32_t)pick(201) - 100 : special[pick(COUNT(special))];
    }
}

/* A table in all tiers that the generator allows, with side files, own headers and exceptions. */
static void make_table(const icma_generator *g, size_t count, bool last_without_step, icma_checkpoints *c) {
    static const uint32_t some[] = {0, 3, 6}, all[] = {0, 1, 3, 6};
    uint64_t step = pick(3);
    *c = (icma_checkpoints){.count = count, .list = icma_alloc_zeroed(count, sizeof *c->list)};
    assert_non_null(c->list);
    for (size_t i = 0; i < count; i++) {
        icma_checkpoint *p = &c->list[i];
        p->has_step = !(last_without_step && i + 1 == count);
        p->step = p->has_step ? step : 0;
        step += 1 + (pick(5) ? pick(100) : (uint64_t)1 << 60);
        static const icma_tier without[] = {ICMA_TIER_VERBATIM, ICMA_TIER_BOUNDED, ICMA_TIER_LOSSLESS},
                               with[] = {ICMA_TIER_LATENT, ICMA_TIER_LATENT, ICMA_TIER_GENERATE,
                                         ICMA_TIER_BOUNDED, ICMA_TIER_LOSSLESS};
        p->tier = g->kind == ICMA_GENERATOR_NONE ? without[pick(COUNT(without))] : with[pick(COUNT(with))];
        if (p->tier == ICMA_TIER_BOUNDED)
            p->bound = (icma_bound){(icma_bound_kind)(1 + pick(3)), (float)exp(support_normal(&seed))};
        p->hash = (uint64_t)pick(1 << 30) << 33 | pick(1 << 30);
        p->relative_error = icma_round_error_up(support_uniform(&seed));
        p->dw_error_mean = icma_round_error_up(pick(9) ? support_uniform(&seed) : INFINITY);
        p->dw_error_max = pick(9) ? icma_round_error_up(1000 * support_uniform(&seed)) : 0;
        p->header = pick(2) ? pick(1000) : 0;
        p->file_count = pick(3);
        const uint64_t files[] = {pick(5), pick(500), pick(5), UINT64_MAX};
        p->files = copy_of(files, 2 * p->file_count * sizeof *files);
        if (g->kind == ICMA_GENERATOR_BASIS && pick(2)) {
            bool few = pick(2);
            p->exception_count = few ? COUNT(some) : COUNT(all);
            p->exceptions = copy_of(few ? some : all, p->exception_count * sizeof *some);
        }
        if (p->tier != ICMA_TIER_GENERATE && g->kind == ICMA_GENERATOR_BASIS) {
            make_integers(&p->latent, g->latent);
            make_integers(&p->correction, g->total);
        }
    }
    for (size_t i = count - 1; i-- > 0;) { /* chains: from 0 to one more than the next one takes */
        bool linked = c->list[i].tier == ICMA_TIER_LOSSLESS && c->list[i + 1].tier == ICMA_TIER_LOSSLESS;
        size_t most = linked ? c->list[i + 1].taps + 1u : 0;
        c->list[i].taps = (uint8_t)(pick(3) ? (most < ICMA_CHAIN_TAPS ? most : ICMA_CHAIN_TAPS) : 0);
    }
}

static void check_same_table(const icma_generator *g, const icma_checkpoints *a, const icma_checkpoints *b) {
    assert_int_equal(a->count, b->count);
    for (size_t i = 0; i < a->count; i++) {
        const icma_checkpoint *p = &a->list[i], *q = &b->list[i];
        assert_true(p->has_step == q->has_step && p->step == q->step && p->tier == q->tier &&
                    p->hash == q->hash && p->header == q->header);
        assert_true(p->bound.kind == q->bound.kind && p->bound.value == q->bound.value);
        assert_int_equal(p->taps, q->taps);
        assert_true(p->relative_error == q->relative_error && p->dw_error_mean == q->dw_error_mean &&
                    p->dw_error_max == q->dw_error_max);
        assert_true(p->file_count == q->file_count && p->exception_count == q->exception_count);
        for (size_t f = 0; f < 2 * p->file_count; f++)
            assert_true(p->files[f] == q->files[f]);
        for (size_t e = 0; e < p->exception_count; e++)
            assert_int_equal(p->exceptions[e], q->exceptions[e]);
        assert_true((p->latent != NULL) == (q->latent != NULL) &&
                    (p->correction != NULL) == (q->correction != NULL));
        for (size_t j = 0; p->latent && j < g->latent; j++)
            assert_int_equal(p->latent[j], q->latent[j]);
        for (size_t k = 0; p->correction && k < g->total; k++)
            assert_int_equal(p->correction[k], q->correction[k]);
    }
}

typedef struct table_context {
    const icma_generator *g;
    size_t count;
} table_context;

static icma_status read_table(const void *context, const uint8_t *data, size_t size, icma_error *error) {
    const table_context *t = context;
    icma_checkpoints c;
    memset(&c, 0x5A, sizeof c);
    icma_status status = icma_checkpoints_read(data, size, t->count, t->g, ICMA_CONDITION_LEARNED, &c, error);
    if (status) {
        assert_true(c.list == NULL && c.count == 0);
        return status;
    }
    assert_int_equal(c.count, t->count);
    for (size_t i = 0; i < c.count; i++) {
        const icma_checkpoint *p = &c.list[i];
        assert_true(p->has_step || i + 1 == c.count);
        assert_true(i == 0 || !p->has_step || p->step > c.list[i - 1].step);
        assert_true(p->tier <= ICMA_TIER_LOSSLESS || p->tier == ICMA_TIER_VERBATIM);
        assert_true((p->tier >= ICMA_TIER_LATENT && p->tier <= ICMA_TIER_LOSSLESS &&
                     t->g->kind == ICMA_GENERATOR_BASIS) == (p->correction != NULL));
        assert_true(p->taps <= ICMA_CHAIN_TAPS && p->taps < c.count - i);
        assert_true(p->taps == 0 || (p->tier == ICMA_TIER_LOSSLESS && p->taps <= c.list[i + 1].taps + 1));
        for (size_t j = 1; j <= p->taps; j++)
            assert_int_equal(c.list[i + j].tier, ICMA_TIER_LOSSLESS);
        assert_true((p->tier == ICMA_TIER_BOUNDED) == (p->bound.kind != ICMA_BOUND_NONE));
        assert_true(p->bound.kind <= ICMA_BOUND_ABS && isfinite(p->bound.value) &&
                    (p->bound.value > 0) == (p->tier == ICMA_TIER_BOUNDED));
        for (size_t e = 0; e < p->exception_count; e++)
            assert_true(p->exceptions[e] < t->g->tensor_count &&
                        icma_generator_is_modelled(t->g, p->exceptions[e]) &&
                        (e == 0 || p->exceptions[e] > p->exceptions[e - 1]));
        for (size_t j = 0; p->latent && j < t->g->latent; j++)
            assert_true(abs(p->latent[j]) <= 1 << 23);
        for (size_t k = 0; p->correction && k < t->g->total; k++)
            assert_true(abs(p->correction[k]) <= 1 << 23);
        assert_true(p->relative_error >= 0 && p->dw_error_mean >= 0 && p->dw_error_max >= 0);
    }
    icma_checkpoints_free(&c);
    return ICMA_OK;
}

static void tables_come_back(void **state) {
    (void)state;
    support_image image;
    make_signature(&image);
    for (size_t s = 0; s <= COUNT(all_sizes); s++)
        for (size_t count = 1; count < 30; count = count * 3 + 1) {
            icma_generator g;
            icma_checkpoints c, back;
            icma_buffer payload = {0};
            icma_error error = {0};
            make_generator(&image, s < COUNT(all_sizes) ? &all_sizes[s] : NULL, &g);
            make_table(&g, count, pick(2), &c);
            icma_checkpoints_write(&c, &g, &payload);
            assert_int_equal(icma_buffer_status(&payload, &error), ICMA_OK);
            assert_int_equal(icma_checkpoints_read(payload.data, payload.size, count, &g, ICMA_CONDITION_LEARNED, &back, &error),
                             ICMA_OK);
            check_same_table(&g, &c, &back);
            icma_checkpoints_free(&back);
            table_context context = {&g, count};
            subject s1 = {"task table", read_table, &context, 1024, 40};
            attack(&s1, &payload);
            /* Counts of the section that are not the table's. */
            const size_t lies[] = {
                0, count - 1, count + 1, 2 * count, payload.size / 19, (size_t)1 << 31, SIZE_MAX};
            for (size_t l = 0; l < COUNT(lies); l++) {
                if (lies[l] == count)
                    continue;
                context.count = lies[l];
                assert_true(attempt(&s1, payload.data, payload.size) != ICMA_OK);
            }
            icma_checkpoints_free(&c);
            icma_buffer_free(&payload);
            icma_generator_free(&g);
        }
    support_free_image(&image);
}

/* Bounds of a kind that is not known are somebody else's; those that bound nothing are damage. */
static void bounds_are_checked(void **state) {
    (void)state;
    static const struct {
        uint8_t kind;
        float value;
        icma_status expected;
    } cases[] = {
        {ICMA_BOUND_DW, 0.1F, ICMA_OK},
        {ICMA_BOUND_REL, 1e-30F, ICMA_OK},
        {ICMA_BOUND_ABS, 1e30F, ICMA_OK},
        {ICMA_BOUND_ABS, 0x1p-149F, ICMA_OK},
        {ICMA_BOUND_NONE, 1, ICMA_E_UNSUPPORTED},
        {4, 1, ICMA_E_UNSUPPORTED},
        {255, 1, ICMA_E_UNSUPPORTED},
        {ICMA_BOUND_DW, 0, ICMA_E_CORRUPT},
        {ICMA_BOUND_REL, -1, ICMA_E_CORRUPT},
        {ICMA_BOUND_ABS, INFINITY, ICMA_E_CORRUPT},
        {ICMA_BOUND_DW, NAN, ICMA_E_CORRUPT},
    };
    support_image image;
    icma_generator g;
    make_signature(&image);
    make_generator(&image, NULL, &g);
    for (size_t i = 0; i < COUNT(cases); i++) {
        icma_checkpoint one = {
            .has_step = true, .tier = ICMA_TIER_BOUNDED, .bound = {cases[i].kind, cases[i].value}};
        icma_checkpoints c = {.list = &one, .count = 1}, back;
        icma_buffer payload = {0};
        icma_error error = {0};
        icma_checkpoints_write(&c, &g, &payload);
        icma_status status = icma_checkpoints_read(payload.data, payload.size, 1, &g, ICMA_CONDITION_LEARNED, &back, &error);
        if (status != cases[i].expected)
            fail_msg("bound %u of %g: %s", cases[i].kind, (double)cases[i].value, icma_status_name(status));
        icma_checkpoints_free(&back);
        icma_buffer_free(&payload);
    }
    icma_generator_free(&g);
    support_free_image(&image);
}

/* Numbers of taps of three checkpoints: of a chain that reaches its anchor, or not. */
static void chains_are_checked(void **state) {
    (void)state;
    static const struct {
        uint8_t taps[3], verbatim; /* which of them is of another tier; 3: none */
        icma_status expected;
    } cases[] = {
        {{0, 0, 0}, 3, ICMA_OK},        {{2, 1, 0}, 3, ICMA_OK},        {{1, 1, 0}, 3, ICMA_OK},
        {{1, 0, 0}, 3, ICMA_OK},        {{0, 1, 0}, 3, ICMA_OK},        {{0, 0, 1}, 3, ICMA_E_CORRUPT},
        {{2, 0, 0}, 3, ICMA_E_CORRUPT}, {{3, 1, 0}, 3, ICMA_E_CORRUPT}, {{0, 2, 0}, 3, ICMA_E_CORRUPT},
        {{0, 0, 255}, 3, ICMA_E_CORRUPT}, {{0, 0, 0}, 1, ICMA_OK},      {{1, 0, 0}, 1, ICMA_E_CORRUPT},
        {{0, 1, 0}, 2, ICMA_E_CORRUPT}, {{0, 1, 0}, 0, ICMA_OK},
    };
    support_image image;
    icma_generator g;
    make_signature(&image);
    make_generator(&image, NULL, &g);
    for (size_t i = 0; i < COUNT(cases); i++) {
        icma_checkpoint list[3] = {0};
        icma_checkpoints c = {.list = list, .count = 3}, back;
        icma_buffer payload = {0};
        icma_error error = {0};
        for (size_t j = 0; j < 3; j++)
            list[j] = (icma_checkpoint){.has_step = true,
                                        .step = j,
                                        .tier = j == cases[i].verbatim ? ICMA_TIER_VERBATIM : ICMA_TIER_LOSSLESS,
                                        .taps = cases[i].taps[j]};
        icma_checkpoints_write(&c, &g, &payload);
        icma_status status = icma_checkpoints_read(payload.data, payload.size, 3, &g, ICMA_CONDITION_LEARNED, &back, &error);
        if (status != cases[i].expected)
            fail_msg("chain %zu: %s", i, icma_status_name(status));
        for (size_t j = 0; !status && j < 3; j++)
            assert_int_equal(back.list[j].taps, cases[i].taps[j]);
        icma_checkpoints_free(&back);
        icma_buffer_free(&payload);
    }
    icma_generator_free(&g);
    support_free_image(&image);
}

/* A generator of very many coefficients, and a table of a few bytes that says it has them all. */
static void short_tables_do_not_make_long_ones(void **state) {
    (void)state;
    enum { CHECKPOINTS = 40 };
    uint8_t treatment[1] = {ICMA_TREAT_A};
    icma_generator g = {.kind = ICMA_GENERATOR_BASIS, .tensor_count = 1, .treatment = treatment};
    g.components[0] = g.total = 4096;
    g.latent = 1024;
    icma_buffer payload = {0};
    for (size_t i = 0; i < CHECKPOINTS; i++)
        icma_write_varint(&payload, 2); /* steps */
    for (size_t i = 0; i < CHECKPOINTS; i++)
        icma_write_u8(&payload, ICMA_TIER_LATENT);
    icma_write_zeros(&payload, 3 * (size_t)CHECKPOINTS); /* no own headers, files, exceptions */
    icma_write_zeros(&payload, 2000);
    table_context context = {&g, CHECKPOINTS};
    subject s = {"short table", read_table, &context, 1024, 40};
    assert_int_equal(attempt(&s, payload.data, payload.size), ICMA_E_CORRUPT);
    icma_buffer_free(&payload);
}

static void errors_are_rounded_up(void **state) {
    (void)state;
    for (int i = 0; i < 20000; i++) {
        double value = support_uniform(&seed) * ldexp(1, (int)pick(200) - 100);
        float up = icma_round_error_up(value);
        assert_true(up >= value && up <= value * (1 + 0x1p-7) &&
                    icma_bf16_to_f32(icma_f32_to_bf16(up)) == up);
    }
    assert_true(icma_round_error_up(0) == 0 && icma_round_error_up(1) == 1);
    assert_true(icma_round_error_up(INFINITY) == INFINITY && icma_round_error_up(NAN) == INFINITY);
    assert_true(icma_round_error_up(1e300) == INFINITY && icma_round_error_up(1e-300) > 0);
}

/* --- texts --------------------------------------------------------------------------------------------- */

static icma_status read_texts(const void *context, const uint8_t *data, size_t size, icma_error *error) {
    icma_texts texts;
    (void)context;
    icma_status status = icma_texts_read(data, size, &texts, error);
    for (size_t i = 0; !status && i < texts.count; i++)
        assert_true(texts.list[i].data >= data &&
                    texts.list[i].size <= (size_t)(data + size - texts.list[i].data));
    if (status)
        assert_true(texts.list == NULL && texts.count == 0);
    icma_texts_free(&texts);
    return status;
}

static void texts_come_back(void **state) {
    (void)state;
    for (size_t count = 0; count < 20; count = count * 2 + 1) {
        icma_buffer payload = {0};
        icma_texts texts;
        icma_error error = {0};
        uint8_t bytes[200];
        size_t lengths[20];
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = (uint8_t)pick(256);
        icma_write_varint(&payload, count);
        for (size_t i = 0; i < count; i++) {
            lengths[i] = i % 3 == 2 || i + 1 == count ? 0 : pick(sizeof bytes);
            icma_write_varint(&payload, lengths[i]);
            icma_write_bytes(&payload, bytes, lengths[i]);
        }
        assert_int_equal(icma_texts_read(payload.data, payload.size, &texts, &error), ICMA_OK);
        assert_int_equal(texts.count, count);
        for (size_t i = 0; i < count; i++) {
            assert_int_equal(texts.list[i].size, lengths[i]);
            if (lengths[i])
                assert_memory_equal(texts.list[i].data, bytes, lengths[i]);
        }
        icma_texts_free(&texts);
        subject s = {"texts", read_texts, NULL, 64, 20};
        attack(&s, &payload);
        icma_buffer_free(&payload);
    }
}

/* --- verbatim ------------------------------------------------------------------------------------------ */

static void verbatim_tensors_come_back(void **state) {
    (void)state;
    enum { CHECKPOINTS = 5 };
    support_image image;
    make_signature(&image);
    size_t size = (size_t)image.tensors.data_size;
    for (size_t s = 0; s <= COUNT(all_sizes); s++) {
        icma_generator g;
        icma_checkpoints c;
        icma_buffer stream = {0};
        icma_error error = {0};
        uint8_t *data[CHECKPOINTS], *back = malloc(size);
        size_t wanted;
        assert_non_null(back);
        make_generator(&image, s < COUNT(all_sizes) ? &all_sizes[s] : NULL, &g);
        make_table(&g, CHECKPOINTS, false, &c);
        for (size_t i = 0; i < CHECKPOINTS; i++) {
            data[i] = malloc(size);
            assert_non_null(data[i]);
            for (size_t b = 0; b < size; b++)
                data[i][b] = (uint8_t)pick(256);
        }
        assert_int_equal(icma_verbatim_write(&image.tensors, &g, c.list, CHECKPOINTS,
                                             (const uint8_t *const *)data, &stream, &error),
                         ICMA_OK);
        assert_true(icma_verbatim_size(&image.tensors, &g, c.list, CHECKPOINTS, &wanted) &&
                    wanted == stream.size);
        for (size_t i = 0; i < CHECKPOINTS; i++) {
            memset(back, 0xEE, size);
            icma_verbatim_read(&image.tensors, &g, c.list, CHECKPOINTS, i, stream.data, back);
            for (size_t t = 0; t < image.tensors.tensor_count; t++) {
                const icma_tensor_info *info = &image.tensors.tensors[t];
                bool listed = false;
                for (size_t e = 0; e < c.list[i].exception_count; e++)
                    listed |= c.list[i].exceptions[e] == t;
                bool wanted_verbatim = c.list[i].tier == ICMA_TIER_LOSSLESS
                                           ? !icma_dtype_is_modelled(info->dtype)
                                           : listed || !icma_generator_is_modelled(&g, t);
                assert_int_equal(icma_is_verbatim(&image.tensors, &g, &c.list[i], t), wanted_verbatim);
                for (size_t b = 0; b < info->size; b++) /* the others stay untouched */
                    assert_int_equal(back[info->begin + b], wanted_verbatim ? data[i][info->begin + b] : 0xEE);
            }
        }
        for (size_t i = 0; i < CHECKPOINTS; i++)
            free(data[i]);
        free(back);
        icma_buffer_free(&stream);
        icma_checkpoints_free(&c);
        icma_generator_free(&g);
    }
    support_free_image(&image);
}

/* --- the head, through the decoder --------------------------------------------------------------------- */

/* One chunk a run of tensors, as an archive would have them. */
typedef struct heads {
    icma_section sections[8];
    icma_buffer payloads[8];
    size_t count;
    size_t loads;
} heads;

static icma_status load_head(void *context, const icma_section *section, size_t max_raw, uint8_t **out,
                             icma_error *error) {
    heads *h = context;
    size_t i = (size_t)(section - h->sections);
    (void)error;
    assert_true(i < h->count && max_raw >= h->payloads[i].size);
    *out = copy_of(h->payloads[i].data, h->payloads[i].size);
    h->loads++;
    return ICMA_OK;
}

/* The integers of a chunk's payload, owned by the caller (icma_free); NULL on failure. */
static icma_status read_head(const uint8_t *payload, size_t size, const icma_safetensors *signature, const icma_generator *g,
                             size_t first, size_t count, int16_t **out, icma_error *error) {
    const icma_ops *ops = icma_ops_cpu();
    icma_head_coded head;
    icma_tensor *tensor = NULL;
    *out = NULL;
    icma_status status = icma_head_open(payload, size, signature, g, first, count, &head, error);
    if (status) {
        assert_null(head.runs);
        return status;
    }
    const icma_coded coded = icma_head_stream(&head);
    assert_int_equal(head.total, icma_head_integers(signature, g, first, count));
    status = ops->alloc(ops->device, ICMA_ELEMENT_I16, head.total + 1, &tensor, error);
    if (!status)
        status = ops->decode_integers(ops->device, &coded, 1, tensor, 0, error);
    if (!status)
        *out = icma_alloc_array(head.total + 1, sizeof **out);
    if (*out)
        status = ops->download(ops->device, tensor, 0, *out, head.total, error);
    ops->release(ops->device, tensor);
    icma_head_close(&head);
    return status;
}

/* What a chunk holds, in place of the values that it was made from: integers within 2 of the values in steps (a symbol of either parity is as near). */
static void replace_by_stored(const icma_safetensors *signature, const icma_generator *g, size_t first, size_t next,
                              const icma_buffer *payload, float **values) {
    int16_t *integers;
    icma_error error = {0};
    assert_int_equal(read_head(payload->data, payload->size, signature, g, first, next - first, &integers, &error),
                     ICMA_OK);
    for (size_t t = first, at = 0; t < next; t++) {
        size_t rows = icma_generator_is_modelled(g, t) ? g->components[g->treatment[t]] : 0,
               count = (size_t)signature->tensors[t].count;
        for (size_t i = 0; i < rows * count; i++, at++) {
            float step = g->head_step[icma_generator_first(g, g->treatment[t]) + i / count];
            double inside = fmax(-32762, fmin(32762, (double)(values[t][i] / step)));
            assert_true(fabs(integers[at] - inside) <= 2);
            values[t][i] = step * integers[at];
        }
    }
    icma_free(integers);
}

/* Random rows; tensor t's are values[t] (components x elements), as a reader will see them. */
static void make_heads(const icma_safetensors *signature, const icma_generator *g, size_t run, float **values,
                       heads *h) {
    icma_head_chunk chunk = {0};
    icma_error error = {0};
    *h = (heads){0};
    for (size_t first = 0; first < g->tensor_count; first += run) {
        size_t next = first + run < g->tensor_count ? first + run : g->tensor_count;
        for (size_t t = first; t < next; t++) {
            size_t rows = icma_generator_is_modelled(g, t) ? g->components[g->treatment[t]] : 0,
                   count = (size_t)signature->tensors[t].count;
            values[t] = support_normals(&seed, rows * count);
            for (size_t l = 0; rows > 1 && l < count; l++)
                values[t][l] = 0; /* a row of zeros costs next to nothing */
            if (icma_generator_is_modelled(g, t))
                assert_int_equal(icma_head_add_tensor(&chunk, values[t],
                                                      g->head_step + icma_generator_first(g, g->treatment[t]),
                                                      rows, count, &error),
                                 ICMA_OK);
        }
        size_t i = h->count++;
        assert_int_equal(icma_head_take(&chunk, &h->payloads[i], &error), ICMA_OK);
        assert_int_equal(chunk.count, 0);
        replace_by_stored(signature, g, first, next, &h->payloads[i], values);
        h->sections[i] = (icma_section){
            .first = (uint32_t)first, .count = (uint32_t)(next - first), .raw_size = h->payloads[i].size};
    }
    icma_head_free(&chunk);
}

static void free_heads(heads *h, float **values, size_t tensors) {
    for (size_t i = 0; i < h->count; i++)
        icma_buffer_free(&h->payloads[i]);
    for (size_t t = 0; t < tensors; t++)
        support_free(values[t]);
}

/* Each modelled tensor is s_t q E_t up to f32's rounding, plus the cast. */
static void check_decoded(const icma_safetensors *signature, const icma_generator *g, float *const *values,
                          const float *q, const uint8_t *data, const uint32_t *exceptions,
                          size_t exception_count) {
    for (size_t t = 0; t < g->tensor_count; t++) {
        const icma_tensor_info *info = &signature->tensors[t];
        bool skip = !icma_generator_is_modelled(g, t);
        for (size_t e = 0; e < exception_count; e++)
            skip |= exceptions[e] == t;
        for (size_t b = 0; skip && b < info->size; b++)
            assert_int_equal(data[info->begin + b], 0xEE);
        if (skip)
            continue;
        size_t rows = g->components[g->treatment[t]], count = (size_t)info->count,
               first = icma_generator_first(g, g->treatment[t]);
        float found[128];
        assert_true(count <= COUNT(found));
        icma_load_floats(info->dtype, data + info->begin, count, found);
        for (size_t l = 0; l < count; l++) {
            double wanted = 0, slack = 0;
            for (size_t k = 0; k < rows; k++) {
                wanted += (double)q[first + k] * values[t][k * count + l];
                slack += 0x1p-20 * fabs((double)q[first + k] * values[t][k * count + l]);
            }
            wanted *= g->scale[t];
            double cast = info->dtype == ICMA_BF16 ? 0x1p-8 : info->dtype == ICMA_F16 ? 0x1p-11 : 0x1p-20;
            if (!(fabs(found[l] - wanted) <= g->scale[t] * slack + cast * (fabs(wanted) + 0.01)))
                fail_msg("tensor %zu, weight %zu: %g, not %g", t, l, (double)found[l], wanted);
        }
    }
}

static void heads_decode(void **state) {
    (void)state;
    static const uint32_t exceptions[] = {1, 6};
    support_image image;
    make_signature(&image);
    size_t size = (size_t)image.tensors.data_size;
    for (size_t s = 0; s < COUNT(all_sizes); s++)
        for (size_t run = 1; run <= 7; run += 3) {
            icma_generator g;
            heads h;
            float *values[8], q[16];
            icma_decoder *decoder;
            icma_error error = {0};
            uint8_t *data = malloc(size);
            assert_non_null(data);
            make_generator(&image, &all_sizes[s], &g);
            make_heads(&image.tensors, &g, run, values, &h);
            icma_section_loader loader = {load_head, &h};
            assert_int_equal(icma_decoder_create(icma_ops_cpu(), &image.tensors, &g, h.sections, h.count,
                                                 loader, UINT64_MAX, &decoder, &error),
                             ICMA_OK);
            for (int pass = 0; pass < 3; pass++) {
                set_floats(q, g.total, false);
                memset(data, 0xEE, size);
                size_t skipped = pass == 1 ? COUNT(exceptions) : 0;
                assert_int_equal(icma_decoder_tensors(decoder, q, NULL, exceptions, skipped, data, &error),
                                 ICMA_OK);
                check_decoded(&image.tensors, &g, values, q, data, exceptions, skipped);
            }
            assert_true(h.loads <= h.count); /* once each */
            q[0] = INFINITY;
            if (g.components[ICMA_ROLE_A] > 1)
                assert_int_equal(icma_decoder_tensors(decoder, q, NULL, NULL, 0, data, &error),
                                 ICMA_E_CORRUPT);
            icma_decoder_free(decoder);
            free_heads(&h, values, g.tensor_count);
            icma_generator_free(&g);
            free(data);
        }
    icma_decoder_free(NULL);
    support_free_image(&image);
}

/* Chunks that do not fit the generator, and payloads with what a head may not hold. */
static void bad_heads_are_refused(void **state) {
    (void)state;
    support_image image;
    icma_generator g;
    heads h;
    float *values[8], q[16];
    icma_decoder *decoder;
    uint8_t data[1024];
    make_signature(&image);
    make_generator(&image, &all_sizes[0], &g);
    make_heads(&image.tensors, &g, 4, values, &h);
    set_floats(q, g.total, false);
    assert_int_equal(h.count, 2);
    icma_section_loader loader = {load_head, &h};
    for (int lie = 0; lie < 6; lie++) {
        icma_section held[2] = {h.sections[0], h.sections[1]};
        size_t count = 2;
        icma_error error = {0};
        h.sections[0].first += lie == 0;
        h.sections[1].first -= lie == 1;
        h.sections[1].count += lie == 2;
        h.sections[1].count = lie == 3 ? UINT32_MAX : h.sections[1].count;
        count -= lie == 4;
        count -= lie == 5 ? 2 : 0;
        assert_int_equal(icma_decoder_create(icma_ops_cpu(), &image.tensors, &g, h.sections, count, loader,
                                             UINT64_MAX, &decoder, &error),
                         ICMA_E_CORRUPT);
        assert_null(decoder);
        memcpy(h.sections, held, sizeof held);
    }
    for (size_t c = 0; c < h.count; c++)
        for (size_t i = 0; i < h.payloads[c].size; i++)
            for (int bit = 0; bit < 8; bit++) {
                meter m = {0};
                icma_error error = {0};
                h.payloads[c].data[i] ^= (uint8_t)(1 << bit);
                measure(&m);
                assert_int_equal(icma_decoder_create(icma_ops_cpu(), &image.tensors, &g, h.sections, h.count,
                                                     loader, UINT64_MAX, &decoder, &error),
                                 ICMA_OK);
                icma_status status = icma_decoder_tensors(decoder, q, NULL, NULL, 0, data, &error);
                icma_decoder_free(decoder);
                measure(NULL);
                assert_true(status == ICMA_OK || status == ICMA_E_CORRUPT);
                assert_true(m.live == 0 && m.blocks == 0);
                h.payloads[c].data[i] ^= (uint8_t)(1 << bit);
            }
    free_heads(&h, values, g.tensor_count);
    icma_generator_free(&g);
    support_free_image(&image);
}

/* A generator of one row of `count` weights. */
static void make_row(size_t count, support_image *image, icma_generator *g) {
    const support_tensor tensor = {.name = "a", .dtype = ICMA_F32, .rank = 1, .shape = {count}};
    static const sizes one_row = {{1, 0, 0}, 0, 0, 1, 0, 0};
    support_build_image(&tensor, 1, image);
    make_generator(image, &one_row, g);
}

/* Mean squared error, in squared steps, of the integers that a row of values at step 1/2 is stored as. */
static double error_of_row(const float *row, size_t count, double most) {
    const float step = 0.5F;
    support_image image;
    icma_generator g;
    icma_head_chunk chunk = {0};
    icma_buffer payload = {0};
    icma_error error = {0};
    int16_t *back;
    double sum = 0;
    make_row(count, &image, &g);
    assert_int_equal(icma_head_add_tensor(&chunk, row, &step, 1, count, &error), ICMA_OK);
    assert_int_equal(chunk.count, count);
    assert_int_equal(icma_head_take(&chunk, &payload, &error), ICMA_OK);
    assert_int_equal(read_head(payload.data, payload.size, &image.tensors, &g, 0, 1, &back, &error), ICMA_OK);
    for (size_t i = 0; i < count; i++) {
        double inside = fmax(-32762, fmin(32762, (double)row[i] / 0.5)), off = back[i] - inside;
        assert_true(fabs(off) <= most);
        sum += off * off;
    }
    icma_head_free(&chunk);
    icma_free(back);
    icma_buffer_free(&payload);
    icma_generator_free(&g);
    support_free_image(&image);
    return sum / (double)count;
}

/* Integers are the trellis's of the values in steps, held within its range. */
static void a_head_rounds_and_clamps(void **state) {
    (void)state;
    const float row[5] = {1, -2, 0.6F, 1e9F, -1e30F};
    error_of_row(row, COUNT(row), 2);
    float *normals = support_normals(&seed, 5000), small[1000] = {[17] = 0.6F, [500] = -0.6F};
    double mean = error_of_row(normals, 5000, 2); /* 0.2535 at high rates; this is 1 in 2 steps */
    assert_true(mean > 0.2 && mean < 0.4);
    for (size_t i = 0; i < 5000; i++)
        normals[i] *= 50;
    mean = error_of_row(normals, 5000, 2);
    if (fabs(mean / ICMA_TRELLIS_NOISE - 1) > 0.05)
        fail_msg("mean squared error %g", mean);
    support_free(normals);
    assert_true(error_of_row(small, COUNT(small), 1.3) < 0.003); /* a table under 57 */
}

/* A head of one row of four symbols, at a chosen table. */
static icma_status read_row(const int32_t symbols[4], uint8_t context, size_t cut, bool longer) {
    support_image image;
    icma_generator g;
    icma_buffer payload = {0};
    icma_error error = {0};
    int16_t *back;
    const icma_rans_run run = {4, context};
    make_row(4, &image, &g);
    icma_write_u8(&payload, context);
    assert_int_equal(icma_rans_encode(symbols, &run, 1, &payload, &error), ICMA_OK);
    if (longer)
        icma_write_u8(&payload, 0);
    icma_status status =
        read_head(payload.data, payload.size - cut, &image.tensors, &g, 0, 1, &back, &error);
    unsigned s = 0;
    for (size_t i = 0; !status && i < 4; i++) { /* spec 4.13 */
        unsigned offset = (s ^ s >> 2) & 1, twist = (s >> 2 ^ s >> 3) & 1;
        assert_int_equal(back[i], 2 * symbols[i] + (int32_t)(context >= 57 ? offset : 0));
        s = (2 * s + (((unsigned)symbols[i] & 1) ^ twist)) % 16;
    }
    assert_true(status == error.status && !back == (status != ICMA_OK));
    icma_free(back);
    icma_buffer_free(&payload);
    icma_generator_free(&g);
    support_free_image(&image);
    return status;
}

/* The coder takes any 32 bits; a head only symbols of the trellis's range (spec 4.13), and only a whole stream. */
static void integers_of_a_head_are_in_range(void **state) {
    (void)state;
    static const int32_t most[4] = {16383, 1, -16384, 3},
                         over[] = {16384, -16385, 32767, -32768, 65537, -65535, INT32_MAX, INT32_MIN};
    for (unsigned c = 0; c < icma_rans_contexts(); c += c == 56 ? 1 : 14) {
        assert_int_equal(read_row(most, (uint8_t)c, 0, false), ICMA_OK);
        assert_int_equal(read_row(most, (uint8_t)c, 0, true), ICMA_E_CORRUPT);
        for (size_t cut = 1; cut <= 5; cut++)
            assert_int_equal(read_row(most, (uint8_t)c, cut, false), ICMA_E_CORRUPT);
        for (size_t i = 0; i < COUNT(over); i++) {
            const int32_t row[4] = {0, 1, over[i], 0};
            assert_int_equal(read_row(row, (uint8_t)c, 0, false), ICMA_E_CORRUPT);
        }
    }
}

/* A head whose tables alone do not fit the payload is refused before there is memory for its integers. */
static void short_heads_do_not_make_long_ones(void **state) {
    (void)state;
    support_image image;
    icma_generator g;
    int16_t *back;
    const uint8_t payload[8] = {0};
    make_signature(&image);
    make_generator(&image, &all_sizes[0], &g); /* 3 + 2 + 1 + 3 rows */
    for (size_t size = 0; size < sizeof payload; size++) {
        meter m = {0};
        icma_error error = {0};
        measure(&m);
        assert_int_equal(read_head(payload, size, &image.tensors, &g, 0, g.tensor_count, &back, &error),
                         ICMA_E_CORRUPT);
        measure(NULL);
        assert_true(m.peak == 0 && !back);
    }
    icma_generator_free(&g);
    support_free_image(&image);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(generators_come_back, start),
        cmocka_unit_test_setup(odd_numbers_are_flushed, start),
        cmocka_unit_test_setup(generators_of_a_newer_icma_are_unsupported, start),
        cmocka_unit_test_setup(what_cannot_be_modelled_is_refused, start),
        cmocka_unit_test_setup(generators_without_a_basis_have_scales, start),
        cmocka_unit_test_setup(trunks_evaluate_exactly, start),
        cmocka_unit_test_setup(conditions_have_coordinates, start),
        cmocka_unit_test_setup(conditions_come_back, start),
        cmocka_unit_test_setup(offsets_come_back, start),
        cmocka_unit_test_setup(tables_come_back, start),
        cmocka_unit_test_setup(bounds_are_checked, start),
        cmocka_unit_test_setup(chains_are_checked, start),
        cmocka_unit_test_setup(short_tables_do_not_make_long_ones, start),
        cmocka_unit_test_setup(errors_are_rounded_up, start),
        cmocka_unit_test_setup(texts_come_back, start),
        cmocka_unit_test_setup(verbatim_tensors_come_back, start),
        cmocka_unit_test_setup(heads_decode, start),
        cmocka_unit_test_setup(bad_heads_are_refused, start),
        cmocka_unit_test_setup(a_head_rounds_and_clamps, start),
        cmocka_unit_test_setup(integers_of_a_head_are_in_range, start),
        cmocka_unit_test_setup(short_heads_do_not_make_long_ones, start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
