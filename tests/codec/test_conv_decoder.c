/* SPDX-License-Identifier: Apache-2.0 */
/* The convolutional decoder of an archive (spec 4.15): its payload in every coding, under attack, at its limits; its evaluation, bit for bit on both tables, against plain loops in double. */
#include "conv_decoder.h"
#include "memory.h"
#include "rans.h"
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static uint64_t seed;

static int start(void **state) {
    (void)state;
    seed = 15;
    return 0;
}

static size_t pick(size_t bound) {
    return (size_t)(support_uniform(&seed) * (double)bound);
}

static const icma_conv_decoder shapes[] = {
    {.inputs = 3, .start = 2, .layers = 1, .width = 3, .channels = {2, 3}, .outputs = 1},
    {.inputs = 0, .start = 1, .layers = 1, .width = 1, .channels = {1, 1}, .outputs = 1},
    {.inputs = 1, .start = 1, .layers = 2, .width = 9, .channels = {1, 2, 1}, .outputs = 2}, /* taps beyond both ends at once */
    {.inputs = 5, .start = 3, .layers = 3, .width = 7, .channels = {4, 6, 5, 2}, .outputs = 2},
    {.inputs = 9, .start = 17, .layers = 4, .width = 7, .channels = {8, 16, 24, 12, 8}, .outputs = 1},
};

/* Weights as training leaves them, about: what goes in and what comes out has unit variance. */
static void make_decoder(const icma_conv_decoder *shape, icma_conv_decoder *d) {
    icma_error error = {0};
    *d = *shape;
    assert_int_equal(icma_conv_decoder_allocate(d, &error), ICMA_OK);
    for (size_t l = 0; l <= d->layers + 1; l++) {
        size_t rows, columns;
        icma_conv_layer_shape(d, l, &rows, &columns);
        double taps = l >= 1 && l <= d->layers ? 0.5 : 1;
        for (size_t i = 0; i < rows * columns; i++)
            d->weight[l][i] = (float)(support_normal(&seed) * 1.3 / sqrt(taps * (double)rows));
        for (size_t j = 0; j < columns; j++)
            d->bias[l][j] = (float)(0.3 * support_normal(&seed));
    }
}

static void copy_decoder(const icma_conv_decoder *from, icma_conv_decoder *to) {
    icma_error error = {0};
    *to = *from;
    assert_int_equal(icma_conv_decoder_allocate(to, &error), ICMA_OK);
    for (size_t l = 0; l <= from->layers + 1; l++) {
        size_t rows, columns;
        icma_conv_layer_shape(from, l, &rows, &columns);
        memcpy(to->bias[l], from->bias[l], columns * sizeof(float));
        if (rows)
            memcpy(to->weight[l], from->weight[l], rows * columns * sizeof(float));
    }
}

static void check_same(const icma_conv_decoder *a, const icma_conv_decoder *b) {
    assert_true(a->inputs == b->inputs && a->start == b->start && a->layers == b->layers && a->width == b->width && a->outputs == b->outputs);
    assert_memory_equal(a->channels, b->channels, (a->layers + 1) * sizeof *a->channels);
    for (size_t l = 0; l <= a->layers + 1; l++) {
        size_t rows, columns;
        icma_conv_layer_shape(a, l, &rows, &columns);
        assert_memory_equal(a->bias[l], b->bias[l], columns * sizeof(float));
        if (rows)
            assert_memory_equal(a->weight[l], b->weight[l], rows * columns * sizeof(float));
    }
}

static bool is_plain(const float *values, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (values[i] != 0 && !isnormal(values[i]))
            return false;
    return true;
}

/* What a decoder that was read promises. */
static void check_decoder(const icma_conv_decoder *d) {
    assert_true(d->inputs <= 2048 && d->start >= 1 && d->layers >= 1 && d->layers <= 16 && d->width % 2 == 1 && d->width <= 31);
    assert_true(d->outputs == 1 || d->outputs == 2);
    for (size_t l = 0; l <= d->layers; l++)
        assert_true(d->channels[l] >= 1 && d->channels[l] <= 1024);
    for (size_t l = 0; l <= d->layers + 1; l++) {
        size_t rows, columns;
        icma_conv_layer_shape(d, l, &rows, &columns);
        assert_true(is_plain(d->bias[l], columns) && is_plain(d->weight[l], rows * columns));
    }
}

static void write_decoder(icma_conv_decoder *d, icma_conv_coding coding, double noise, icma_buffer *out) {
    icma_error error = {0};
    out->size = 0;
    assert_int_equal(icma_conv_decoder_write(d, coding, noise, out, &error), ICMA_OK);
}

static icma_status read_decoder(const void *data, size_t size, size_t *left) {
    icma_conv_decoder d;
    icma_error error = {0};
    icma_cursor from = icma_cursor_over(data, size);
    memset(&d, 0x5A, sizeof d);
    icma_status status = icma_conv_decoder_read(&from, &d, &error);
    assert_int_equal(error.status, status);
    if (status)
        assert_true(d.weight[0] == NULL && d.bias[0] == NULL && d.layers == 0);
    else
        check_decoder(&d);
    if (left)
        *left = from.left;
    icma_conv_decoder_free(&d);
    return status;
}

/* --- sizes ------------------------------------------------------------------------------------------------------- */

/* The network of the paper, for an adapter of 241,241 weights. */
static void sizes_are_counted(void **state) {
    (void)state;
    const icma_conv_decoder paper = {.inputs = 262, .start = 59, .layers = 12, .width = 7, .channels = {8, 16, 32, 64, 128, 256, 256, 128, 64, 32, 16, 8, 8}, .outputs = 1};
    size_t rows, columns;
    icma_conv_layer_shape(&paper, 0, &rows, &columns);
    assert_true(rows == 262 && columns == 472);
    icma_conv_layer_shape(&paper, 6, &rows, &columns);
    assert_true(rows == 1792 && columns == 256);
    icma_conv_layer_shape(&paper, 13, &rows, &columns);
    assert_true(rows == 56 && columns == 1);
    assert_int_equal(icma_conv_decoder_length(&paper), 241664);
    assert_int_equal(icma_conv_decoder_parameters(&paper), 263 * 472 + 1070272 + 1008 + 57);
    uint64_t work = 262 * 472, before = 8;
    for (size_t l = 1; l <= 12; before = paper.channels[l++])
        work += (UINT64_C(59) << (l - 1)) * 7 * before * paper.channels[l];
    assert_true(icma_conv_decoder_work(&paper) == work + UINT64_C(241664) * 56);
    icma_conv_decoder huge = paper;
    huge.start = SIZE_MAX / 64;
    assert_true(icma_conv_decoder_length(&huge) == SIZE_MAX && icma_conv_decoder_parameters(&huge) == SIZE_MAX);
    assert_true(icma_conv_decoder_work(&huge) == UINT64_MAX);
}

/* --- payloads ---------------------------------------------------------------------------------------------------- */

static void check_round_trip(const icma_conv_decoder *shape, icma_conv_coding coding) {
    icma_conv_decoder d, original, back;
    icma_buffer payload = {0}, again = {0};
    icma_error error = {0};
    make_decoder(shape, &d);
    copy_decoder(&d, &original);
    write_decoder(&d, coding, 0.05, &payload);
    assert_int_equal(payload.data[0], coding);
    icma_write_u8(&payload, 77); /* what follows is not the decoder's */
    icma_cursor from = icma_cursor_over(payload.data, payload.size);
    assert_int_equal(icma_conv_decoder_read(&from, &back, &error), ICMA_OK);
    assert_int_equal(from.left, 1);
    check_same(&back, &d);
    check_decoder(&back);
    if (coding == ICMA_CONV_F32)
        check_same(&d, &original);
    if (coding != ICMA_CONV_QUANTISED) {
        write_decoder(&back, coding, 0, &again);
        assert_int_equal(again.size, payload.size - 1);
        assert_memory_equal(again.data, payload.data, again.size);
    }
    icma_conv_decoder_free(&d);
    icma_conv_decoder_free(&original);
    icma_conv_decoder_free(&back);
    icma_buffer_free(&payload);
    icma_buffer_free(&again);
}

static void decoders_come_back(void **state) {
    (void)state;
    for (size_t s = 0; s < COUNT(shapes); s++)
        for (icma_conv_coding coding = ICMA_CONV_F32; coding <= ICMA_CONV_QUANTISED; coding++)
            check_round_trip(&shapes[s], coding);
}

/* Several streams, cut within vectors; the same at any number of threads. */
static void long_decoders_come_back(void **state) {
    (void)state;
    const icma_conv_decoder shape = {.inputs = 7, .start = 10007, .layers = 2, .width = 5, .channels = {9, 3, 2}, .outputs = 1};
    assert_true(icma_conv_decoder_parameters(&shape) > 2 << 18);
    icma_set_threads(3);
    check_round_trip(&shape, ICMA_CONV_QUANTISED);
    icma_set_threads(1);
    check_round_trip(&shape, ICMA_CONV_QUANTISED);
    icma_set_threads(0);
}

static void odd_numbers_are_flushed(void **state) {
    (void)state;
    const float odd[] = {0x1p-149F, -0x1p-130F, NAN, INFINITY, -INFINITY};
    for (icma_conv_coding coding = ICMA_CONV_F32; coding <= ICMA_CONV_QUANTISED; coding++) {
        icma_conv_decoder d, back;
        icma_buffer payload = {0};
        icma_error error = {0};
        make_decoder(&shapes[3], &d);
        for (size_t i = 0; i < COUNT(odd); i++)
            d.weight[0][i] = d.weight[2][i] = d.bias[1][i] = odd[i];
        write_decoder(&d, coding, 0.02, &payload);
        icma_cursor from = icma_cursor_over(payload.data, payload.size);
        assert_int_equal(icma_conv_decoder_read(&from, &back, &error), ICMA_OK);
        check_same(&back, &d);
        for (size_t i = 0; i < COUNT(odd); i++) /* a trellis cannot make every number 0 */
            assert_true(fabsf(d.weight[0][i]) < 0.2F && fabsf(d.weight[2][i]) < 0.2F && fabsf(d.bias[1][i]) < 0.2F);
        assert_true(coding == ICMA_CONV_QUANTISED || (d.weight[0][2] == 0 && d.bias[1][3] == 0));
        icma_conv_decoder_free(&d);
        icma_conv_decoder_free(&back);
        icma_buffer_free(&payload);
    }
}

/* Numbers as large as floats get, and steps that would be far too small: within the range of integers all the same. */
static void magnitudes_are_held(void **state) {
    (void)state;
    static const float scales[] = {1e-30F, 1e-6F, 1, 1e6F, 1e30F};
    for (size_t i = 0; i < COUNT(scales); i++)
        for (int fine = 0; fine < 2; fine++) {
            icma_conv_decoder d, original;
            icma_buffer payload = {0};
            make_decoder(&shapes[0], &d);
            for (size_t k = 0; k < 18; k++)
                d.weight[1][k] *= scales[i];
            copy_decoder(&d, &original);
            write_decoder(&d, ICMA_CONV_QUANTISED, fine ? 1e-12 : 0.1, &payload);
            assert_int_equal(read_decoder(payload.data, payload.size, NULL), ICMA_OK);
            for (size_t k = 0; fine && i > 0 && i < 4 && k < 18; k++) /* steps of a 32,762th of the largest at most, one sixteenth of an octave more */
                assert_true(fabsf(d.weight[1][k] - original.weight[1][k]) < 4 * scales[i] / 20000);
            icma_conv_decoder_free(&d);
            icma_conv_decoder_free(&original);
            icma_buffer_free(&payload);
        }
}

/* A decoder of zeros takes so few bytes that no reader would make room for it. */
static void zeros_are_stored_plainly(void **state) {
    (void)state;
    icma_conv_decoder d = shapes[4];
    icma_buffer payload = {0};
    icma_error error = {0};
    d.start = 3000;
    assert_int_equal(icma_conv_decoder_allocate(&d, &error), ICMA_OK);
    write_decoder(&d, ICMA_CONV_QUANTISED, 0.1, &payload);
    assert_int_equal(payload.data[0], ICMA_CONV_BF16);
    assert_int_equal(read_decoder(payload.data, payload.size, NULL), ICMA_OK);
    icma_conv_decoder_free(&d);
    icma_buffer_free(&payload);
}

static void run_once(const icma_conv_decoder *d, const icma_ops *ops, const float *input, float *y) {
    icma_conv_engine *engine;
    icma_matrix out;
    icma_error error = {0};
    assert_int_equal(icma_conv_engine_create(d, ops, &engine, &error), ICMA_OK);
    assert_int_equal(icma_conv_engine_run(engine, input, &out, &error), ICMA_OK);
    assert_true(out.rows == icma_conv_decoder_length(d) && out.columns == 1 && out.stride == 1);
    assert_int_equal(ops->download(ops->device, out.tensor, out.offset, y, out.rows * out.columns, &error), ICMA_OK);
    icma_conv_engine_free(engine);
}

/* Root mean square of the output for one input, and of how far it moved from what it was. */
static void compare_outputs(const icma_conv_decoder *before, const icma_conv_decoder *after, double *size, double *moved) {
    size_t length = icma_conv_decoder_length(before);
    float *input = support_normals(&seed, before->inputs), *y = icma_alloc_array(length, sizeof *y), *z = icma_alloc_array(length, sizeof *z);
    run_once(before, icma_ops_reference(), input, y);
    run_once(after, icma_ops_reference(), input, z);
    *size = *moved = 0;
    for (size_t i = 0; i < length; i++) {
        *size += (double)y[i] * (double)y[i] / (double)length;
        *moved += (double)(y[i] - z[i]) * (double)(y[i] - z[i]) / (double)length;
    }
    *size = sqrt(*size);
    *moved = sqrt(*moved);
    support_free(input);
    icma_free(y);
    icma_free(z);
}

/* Rounding moves the output about as much as was asked for, and less noise takes more bytes: one bit a weight for half of it. */
static void noise_is_what_was_asked_for(void **state) {
    (void)state;
    static const double noises[] = {0.3, 0.1, 0.05, 0.025};
    const icma_conv_decoder shape = {.inputs = 20, .start = 8, .layers = 5, .width = 7, .channels = {8, 16, 32, 24, 12, 8}, .outputs = 1};
    double bits[COUNT(noises)];
    icma_conv_decoder original;
    make_decoder(&shape, &original);
    for (size_t i = 0; i < COUNT(noises); i++) {
        icma_conv_decoder d;
        icma_buffer payload = {0};
        double size, moved, ratio = 0;
        copy_decoder(&original, &d);
        write_decoder(&d, ICMA_CONV_QUANTISED, noises[i], &payload);
        bits[i] = 8 * (double)payload.size / (double)icma_conv_decoder_parameters(&d);
        for (int trial = 0; trial < 4; trial++) {
            compare_outputs(&original, &d, &size, &moved);
            ratio += moved / size / noises[i] / 4;
        }
        print_message("noise %g: %.3f bits a number, output moved by %.2f of that\n", noises[i], bits[i], ratio);
        assert_true(ratio > 0.4 && ratio < 2.5);
        icma_conv_decoder_free(&d);
        icma_buffer_free(&payload);
    }
    assert_true(bits[0] < bits[1] && bits[1] < bits[2]);
    assert_true(fabs(bits[3] - bits[2] - 1) < 0.1);
    icma_conv_decoder_free(&original);
}

/* --- attacks ----------------------------------------------------------------------------------------------------- */

/* A header in front of each block tells its size. */
typedef struct meter {
    size_t live, peak;
} meter;

enum { PREFIX = 64 };

static void *meter_resize(void *context, void *pointer, size_t size) {
    meter *m = context;
    uint8_t *old = pointer ? (uint8_t *)pointer - PREFIX : NULL;
    size_t before = 0;
    if (old)
        memcpy(&before, old, sizeof before);
    uint8_t *block = size < (size_t)1 << 32 ? realloc(old, size + PREFIX) : NULL;
    if (!block)
        return NULL;
    memcpy(block, &size, sizeof size);
    m->live += size - before;
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
    free((uint8_t *)pointer - PREFIX);
}

/* Reads a block of exactly this size, so that a sanitizer sees a byte too far; `factor` bytes may be allocated for each of it. */
static icma_status attempt(const uint8_t *data, size_t size, size_t factor) {
    meter m = {0};
    const icma_allocator allocator = {meter_resize, meter_release, &m};
    uint8_t *copy = malloc(size + !size);
    assert_non_null(copy);
    if (size)
        memcpy(copy, data, size);
    icma_memory_set_allocator(&allocator);
    icma_status status = read_decoder(copy, size, NULL);
    icma_memory_set_allocator(NULL);
    free(copy);
    assert_int_equal(m.live, 0);
    if (m.peak > 4096 + factor * size)
        fail_msg("%zu bytes allocated for a payload of %zu", m.peak, size);
    if (status && status != ICMA_E_CORRUPT && status != ICMA_E_LIMIT && status != ICMA_E_UNSUPPORTED)
        fail_msg("%s", icma_status_name(status));
    return status;
}

static void damage_is_refused_or_harmless(void **state) {
    (void)state;
    static const size_t which[] = {0, 1, 3};
    for (size_t s = 0; s < COUNT(which); s++)
        for (icma_conv_coding coding = ICMA_CONV_F32; coding <= ICMA_CONV_QUANTISED; coding++) {
            /* Eight bytes a number, thirty and more a vector, of which there is one in two bytes. */
            size_t factor = coding == ICMA_CONV_QUANTISED ? 8 * ICMA_CONV_PARAMETERS_A_BYTE + 64 : 8;
            icma_conv_decoder d;
            icma_buffer payload = {0};
            make_decoder(&shapes[which[s]], &d);
            write_decoder(&d, coding, 0.1, &payload);
            assert_int_equal(attempt(payload.data, payload.size, factor), ICMA_OK);
            for (size_t cut = 0; cut < payload.size; cut++)
                assert_int_not_equal(attempt(payload.data, cut, factor), ICMA_OK);
            for (size_t i = 0; i < payload.size; i++) {
                const uint8_t changes[] = {0x01, 0x80, 0xFF, 0x10, (uint8_t)(1 + pick(255))};
                for (size_t c = 0; c < COUNT(changes); c++) {
                    payload.data[i] ^= changes[c];
                    attempt(payload.data, payload.size, factor);
                    payload.data[i] ^= changes[c];
                }
            }
            icma_conv_decoder_free(&d);
            icma_buffer_free(&payload);
        }
}

static void write_sizes(icma_buffer *out, uint8_t coding, uint64_t inputs, uint64_t positions, uint64_t layers, uint64_t width, const uint64_t *channels, uint64_t outputs) {
    out->size = 0;
    icma_write_u8(out, coding);
    icma_write_varint(out, inputs);
    icma_write_varint(out, positions);
    icma_write_varint(out, layers);
    icma_write_varint(out, width);
    for (uint64_t l = 0; l <= layers && l < 20; l++)
        icma_write_varint(out, channels ? channels[l] : 1);
    icma_write_varint(out, outputs);
}

static void limits_are_exact(void **state) {
    (void)state;
    const uint64_t wide[20] = {1024, 1}, wider[20] = {1025, 1}, within[20] = {1, 1024}, beyond[20] = {1, 1025}, nothing[20] = {1, 0};
    const struct {
        uint64_t inputs, positions, layers, width;
        const uint64_t *channels;
        uint64_t outputs;
        icma_status expected;
    } cases[] = {
        {2048, 1, 1, 1, NULL, 1, ICMA_OK},        {2049, 1, 1, 1, NULL, 1, ICMA_E_LIMIT},
        {0, 1, 16, 1, NULL, 1, ICMA_OK},          {0, 1, 17, 1, NULL, 1, ICMA_E_LIMIT},
        {0, 1, 0, 1, NULL, 1, ICMA_E_CORRUPT},    {0, 0, 1, 1, NULL, 1, ICMA_E_CORRUPT},
        {0, 1, 1, 31, NULL, 1, ICMA_OK},          {0, 1, 1, 33, NULL, 1, ICMA_E_LIMIT},
        {0, 1, 1, 32, NULL, 1, ICMA_E_LIMIT},     {0, 1, 1, 30, NULL, 1, ICMA_E_CORRUPT},
        {0, 1, 1, 0, NULL, 1, ICMA_E_CORRUPT},    {0, 1, 1, 1, wide, 1, ICMA_OK},
        {0, 1, 1, 1, wider, 1, ICMA_E_LIMIT},     {0, 1, 1, 1, within, 1, ICMA_OK},
        {0, 1, 1, 1, beyond, 1, ICMA_E_LIMIT},    {0, 1, 1, 1, nothing, 1, ICMA_E_CORRUPT},
        {0, 1, 1, 1, NULL, 2, ICMA_OK},           {0, 1, 1, 1, NULL, 3, ICMA_E_LIMIT},
        {0, 1, 1, 1, NULL, 0, ICMA_E_CORRUPT},    {0, (1 << 28) + 1, 1, 1, NULL, 1, ICMA_E_LIMIT},
        {0, 1 << 28, 1, 1, NULL, 1, ICMA_E_LIMIT} /* 2^28 biases, and some more */,
        {0, UINT64_MAX, 1, 1, NULL, 1, ICMA_E_LIMIT},
        {2048, 1 << 28, 1, 1, NULL, 1, ICMA_E_LIMIT},
        {0, (1 << 28) - 4, 1, 1, NULL, 1, ICMA_E_CORRUPT}, /* 2^28 numbers exactly, and no bytes for them */
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        for (uint8_t coding = 0; coding < 2; coding++) {
            icma_buffer payload = {0};
            write_sizes(&payload, coding, cases[i].inputs, cases[i].positions, cases[i].layers, cases[i].width, cases[i].channels, cases[i].outputs);
            icma_write_zeros(&payload, 1 << 14);
            icma_status status = attempt(payload.data, payload.size, 8);
            if (status != cases[i].expected)
                fail_msg("case %zu: %s", i, icma_status_name(status));
            icma_buffer_free(&payload);
        }
}

static void codings_of_a_newer_icma_are_unsupported(void **state) {
    (void)state;
    icma_buffer payload = {0};
    write_sizes(&payload, 3, 0, 1, 1, 1, NULL, 1);
    icma_write_zeros(&payload, 64);
    assert_int_equal(attempt(payload.data, payload.size, 8), ICMA_E_UNSUPPORTED);
    icma_buffer_free(&payload);
}

/* A quantised decoder of `biases` zeros in g_0 and little else, `spare` bytes after it. */
static void write_zeros(icma_buffer *out, size_t biases, size_t spare) {
    const icma_rans_run runs[] = {{biases, 0}, {4, 0}};
    int32_t *symbols = icma_alloc_zeroed(biases + 4, sizeof *symbols);
    icma_buffer stream = {0};
    icma_error error = {0};
    write_sizes(out, ICMA_CONV_QUANTISED, 0, biases, 1, 1, NULL, 1);
    icma_write_zeros(out, 2 * 5); /* codes and contexts of five vectors */
    assert_int_equal(icma_rans_encode(symbols, runs, 2, &stream, &error), ICMA_OK);
    icma_write_varint(out, stream.size);
    icma_write_bytes(out, stream.data, stream.size);
    icma_write_zeros(out, spare);
    icma_buffer_free(&stream);
    icma_free(symbols);
}

/* 1,024 numbers for each byte that follows the sizes, and not one more. */
static void zeros_out_of_proportion_are_refused(void **state) {
    (void)state;
    icma_buffer payload = {0};
    size_t left, biases = 50 * 1024 - 4;
    write_zeros(&payload, biases, 100);
    assert_int_equal(read_decoder(payload.data, payload.size, &left), ICMA_OK);
    assert_int_equal(left, 100);
    size_t front = 1 + 1 + 3 + 1 + 1 + 2 + 1; /* coding, sizes */
    assert_true(payload.size - left <= front + 50);
    assert_int_equal(attempt(payload.data, front + 50, 8 * 1024), ICMA_OK);
    assert_int_equal(attempt(payload.data, front + 49, 8 * 1024), ICMA_E_CORRUPT);
    write_zeros(&payload, biases + 1, 100);
    assert_int_equal(attempt(payload.data, front + 51, 8 * 1024), ICMA_OK);
    assert_int_equal(attempt(payload.data, front + 50, 8 * 1024), ICMA_E_CORRUPT);
    icma_buffer_free(&payload);
}

/* Numbers of a quantised decoder of five vectors: bias, weight and bias, weight and bias. */
static void write_five(icma_buffer *out, const int64_t *codes, const uint8_t *contexts, const int32_t *symbols, int64_t more) {
    icma_rans_run runs[5];
    icma_buffer stream = {0};
    icma_error error = {0};
    write_sizes(out, ICMA_CONV_QUANTISED, 0, 1, 1, 1, NULL, 1);
    for (size_t i = 0; i < 5; i++) {
        icma_write_varint_signed(out, codes[i]);
        runs[i] = (icma_rans_run){1, contexts[i] > 224 ? 0 : contexts[i]};
    }
    icma_write_bytes(out, contexts, 5);
    assert_int_equal(icma_rans_encode(symbols, runs, 5, &stream, &error), ICMA_OK);
    icma_write_varint(out, (uint64_t)((int64_t)stream.size + more));
    icma_write_bytes(out, stream.data, stream.size);
    icma_buffer_free(&stream);
}

static void numbers_out_of_range_are_refused(void **state) {
    (void)state;
    static const struct {
        int64_t codes[5];
        uint8_t contexts[5];
        int32_t symbols[5];
        int64_t more;
        icma_status expected;
    } cases[] = {
        {{0, 0, 0, 0, 0}, {60, 0, 224, 57, 56}, {1, -1, 16383, -16384, 3}, 0, ICMA_OK},
        {{640, -1280, 1280, 0, 0}, {60, 0, 224, 57, 56}, {16383, -16384, 16383, 3, 3}, 0, ICMA_OK},
        {{641, 0, 0, 0, 0}, {0}, {0}, 0, ICMA_E_CORRUPT},
        {{-640, -1, 0, 0, 0}, {0}, {0}, 0, ICMA_E_CORRUPT},
        {{640, -1281, 0, 0, 0}, {0}, {0}, 0, ICMA_E_CORRUPT},
        {{INT64_MAX, 1, 0, 0, 0}, {0}, {0}, 0, ICMA_E_CORRUPT},
        {{0}, {225}, {0}, 0, ICMA_E_CORRUPT},
        {{0}, {0, 0, 0, 0, 255}, {0}, 0, ICMA_E_CORRUPT},
        {{0}, {60}, {16384}, 0, ICMA_E_CORRUPT},
        {{0}, {0}, {0, 0, 0, 0, -16385}, 0, ICMA_E_CORRUPT},
        {{0}, {0}, {0}, 1, ICMA_E_CORRUPT},
        {{0}, {0}, {0}, -1, ICMA_E_CORRUPT},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        icma_buffer payload = {0};
        write_five(&payload, cases[i].codes, cases[i].contexts, cases[i].symbols, cases[i].more);
        icma_status status = attempt(payload.data, payload.size, 8 * 1024 + 64);
        if (status != cases[i].expected)
            fail_msg("case %zu: %s", i, icma_status_name(status));
        icma_buffer_free(&payload);
    }
    /* Steps of 1, 2, 1/2, 1, 1 and integers 2, 2, ..: of trellises of one symbol, twice that. */
    static const int64_t codes[5] = {0, 16, -32, 16, 0};
    static const uint8_t contexts[5] = {60, 0, 60, 0, 60};
    static const int32_t symbols[5] = {1, 2, -3, 4, -5};
    icma_conv_decoder d;
    icma_buffer payload = {0};
    icma_error error = {0};
    write_five(&payload, codes, contexts, symbols, 0);
    icma_cursor from = icma_cursor_over(payload.data, payload.size);
    assert_int_equal(icma_conv_decoder_read(&from, &d, &error), ICMA_OK);
    assert_true(d.bias[0][0] == 2 && d.weight[1][0] == 8 && d.bias[1][0] == -3 && d.weight[2][0] == 8 && d.bias[2][0] == -10);
    icma_conv_decoder_free(&d);
    icma_buffer_free(&payload);
}

/* --- evaluation -------------------------------------------------------------------------------------------------- */

/* g_(l - 1) to g_l, or to the output: from where each tap of each position goes. */
static double *oracle_layer(const icma_conv_decoder *d, size_t layer, const double *x, size_t length) {
    bool up = layer <= d->layers;
    size_t rows, columns, inputs = d->channels[layer - 1], after = up ? 2 * length : length;
    icma_conv_layer_shape(d, layer, &rows, &columns);
    double *y = icma_alloc_zeroed(after * columns, sizeof *y);
    for (size_t p = 0; p < length; p++)
        for (size_t r = 0; r < rows; r++) {
            size_t tap = r / inputs, padding = (d->width - 1) / 2;
            size_t to = up ? 2 * p + tap : p + d->width - 1 - tap; /* + padding */
            for (size_t o = 0; to >= padding && to - padding < after && o < columns; o++)
                y[(to - padding) * columns + o] += x[p * inputs + r % inputs] * (double)d->weight[layer][r * columns + o];
        }
    for (size_t i = 0; i < after * columns; i++) {
        y[i] += (double)d->bias[layer][i % columns];
        if (up && y[i] < 0)
            y[i] = expm1(y[i]);
    }
    return y;
}

static double *oracle(const icma_conv_decoder *d, const float *input) {
    size_t rows, columns, length = d->start;
    icma_conv_layer_shape(d, 0, &rows, &columns);
    double *x = icma_alloc_zeroed(columns, sizeof *x);
    for (size_t j = 0; j < columns; j++) {
        x[j] = (double)d->bias[0][j];
        for (size_t i = 0; i < rows; i++)
            x[j] += (double)input[i] * (double)d->weight[0][i * columns + j];
    }
    for (size_t l = 1; l <= d->layers + 1; l++) {
        double *y = oracle_layer(d, l, x, length);
        icma_free(x);
        x = y;
        length *= l <= d->layers ? 2 : 1;
    }
    return x;
}

/* The second channel, twice; the first is still there after it. */
static void check_variance(icma_conv_engine *engine, const icma_ops *ops, const icma_conv_decoder *d, const double *expected) {
    size_t length = icma_conv_decoder_length(d);
    float *v = icma_alloc_array(length, sizeof *v);
    for (int turn = 0; d->outputs == 2 && turn < 2; turn++) {
        icma_matrix out;
        icma_error error = {0};
        assert_int_equal(icma_conv_engine_variance(engine, &out, &error), ICMA_OK);
        assert_true(out.rows == length && out.columns == 1);
        assert_int_equal(ops->download(ops->device, out.tensor, out.offset, v, length, &error), ICMA_OK);
        for (size_t i = 0; i < length; i++)
            assert_true(fabs((double)v[i] - expected[2 * i + 1]) < 1e-4 * (1 + fabs(expected[2 * i + 1])));
    }
    icma_free(v);
}

static void engines_evaluate_exactly(void **state) {
    (void)state;
    const icma_ops *tables[SUPPORT_TABLES];
    size_t table_count = support_tables(tables);
    for (size_t s = 0; s < COUNT(shapes); s++) {
        icma_conv_decoder d;
        make_decoder(&shapes[s], &d);
        size_t length = icma_conv_decoder_length(&d);
        float *first = icma_alloc_array(length, sizeof *first), *y = icma_alloc_array(length, sizeof *y), *other = support_normals(&seed, d.inputs + 1);
        float *input = support_normals(&seed, d.inputs + 1);
        double *expected = oracle(&d, input);
        for (size_t t = 0; t < table_count; t++) {
            icma_conv_engine *engine;
            icma_matrix out;
            icma_error error = {0};
            assert_int_equal(icma_conv_engine_create(&d, tables[t], &engine, &error), ICMA_OK);
            for (int turn = 0; turn < 2; turn++) /* another input first, of which nothing must be left */
                assert_int_equal(icma_conv_engine_run(engine, turn ? input : other, &out, &error), ICMA_OK);
            assert_true(out.rows == length && out.columns == 1);
            check_variance(engine, tables[t], &d, expected);
            assert_int_equal(tables[t]->download(tables[t]->device, out.tensor, out.offset, y, length, &error), ICMA_OK);
            icma_conv_engine_free(engine);
            if (t == 0)
                memcpy(first, y, length * sizeof *y);
            assert_memory_equal(first, y, length * sizeof *y);
        }
        for (size_t i = 0; i < length; i++)
            assert_true(fabs((double)y[i] - expected[i * d.outputs]) < 1e-4 * (1 + fabs(expected[i * d.outputs])));
        icma_conv_decoder_free(&d);
        icma_free(first);
        icma_free(y);
        icma_free(expected);
        support_free(other);
        support_free(input);
    }
    icma_conv_engine_free(NULL);
}

/* The example of spec 4.15. */
static void the_example_is_right(void **state) {
    (void)state;
    static const uint8_t payload[] = {0x02, 0x01, 0x01, 0x01, 0x03, 0x01, 0x01, 0x01, 0x3f, 0x00, 0x00, 0x00, 0x00, 0x1f, 0x38,
                                      0x38, 0x38, 0x38, 0x38, 0x38, 0x08, 0xf5, 0x9f, 0x38, 0x06, 0xfa, 0x6f, 0x42, 0x2e};
    static const float input[] = {1}, up[] = {1, -1, 0.5F}, last[] = {0, 1, 0};
    icma_conv_decoder d;
    icma_error error = {0};
    icma_cursor from = icma_cursor_over(payload, sizeof payload);
    float y[2];
    uint32_t bits[2];
    assert_int_equal(icma_conv_decoder_read(&from, &d, &error), ICMA_OK);
    assert_true(icma_cursor_finished(&from));
    assert_true(d.weight[0][0] == 1 && d.bias[0][0] == 0.5F && d.bias[1][0] == 0 && d.bias[2][0] == -0.25F);
    assert_memory_equal(d.weight[1], up, sizeof up);
    assert_memory_equal(d.weight[2], last, sizeof last);
    run_once(&d, icma_ops_cpu(), input, y);
    memcpy(bits, y, sizeof bits);
    assert_true(bits[0] == 0xbf837078 && bits[1] == 0x3f000000);
    icma_conv_decoder_free(&d);
}

/* --- memory ------------------------------------------------------------------------------------------------------ */

static icma_status all_steps(void) {
    icma_conv_decoder d = shapes[0], back = {0};
    icma_buffer payload = {0};
    icma_conv_engine *engine = NULL;
    icma_matrix y;
    icma_error error = {0};
    const float input[3] = {1, 2, 3};
    icma_status status = icma_conv_decoder_allocate(&d, &error);
    if (!status) {
        d.weight[1][4] = 1;
        status = icma_conv_decoder_write(&d, ICMA_CONV_QUANTISED, 0.1, &payload, &error);
    }
    icma_cursor from = icma_cursor_over(payload.data, payload.size);
    if (!status)
        status = icma_conv_decoder_read(&from, &back, &error);
    if (!status)
        status = icma_conv_engine_create(&back, icma_ops_reference(), &engine, &error);
    if (!status)
        status = icma_conv_engine_run(engine, input, &y, &error);
    icma_conv_engine_free(engine);
    icma_conv_decoder_free(&d);
    icma_conv_decoder_free(&back);
    icma_buffer_free(&payload);
    return status;
}

static void failing_allocations_are_survived(void **state) {
    (void)state;
    icma_status status = ICMA_E_MEMORY;
    for (size_t left = 0; status; left++) {
        support_budget budget = {.left = left};
        assert_true(left < 1000);
        support_limit_memory(&budget);
        status = all_steps();
        support_limit_memory(NULL);
        assert_true(status == ICMA_OK || status == ICMA_E_MEMORY);
        assert_int_equal(budget.live, 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(sizes_are_counted, start),
        cmocka_unit_test_setup(decoders_come_back, start),
        cmocka_unit_test_setup(long_decoders_come_back, start),
        cmocka_unit_test_setup(odd_numbers_are_flushed, start),
        cmocka_unit_test_setup(magnitudes_are_held, start),
        cmocka_unit_test_setup(zeros_are_stored_plainly, start),
        cmocka_unit_test_setup(noise_is_what_was_asked_for, start),
        cmocka_unit_test_setup(damage_is_refused_or_harmless, start),
        cmocka_unit_test_setup(limits_are_exact, start),
        cmocka_unit_test_setup(codings_of_a_newer_icma_are_unsupported, start),
        cmocka_unit_test_setup(zeros_out_of_proportion_are_refused, start),
        cmocka_unit_test_setup(numbers_out_of_range_are_refused, start),
        cmocka_unit_test_setup(engines_evaluate_exactly, start),
        cmocka_unit_test_setup(the_example_is_right, start),
        cmocka_unit_test_setup(failing_allocations_are_survived, start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
