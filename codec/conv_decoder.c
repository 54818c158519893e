/* SPDX-License-Identifier: Apache-2.0 */
#include "conv_decoder.h"

#include "memory.h"
#include "numbers.h"
#include "rans.h"
#include "residual.h"
#include "trellis.h"

#include <math.h>
#include <string.h>

/* --- shape ------------------------------------------------------------------------------------------------------- */

static size_t times(size_t a, size_t b) {
    size_t product;
    return icma_multiply_size(a, b, &product) ? product : a && b ? SIZE_MAX : 0;
}

static size_t plus(size_t a, size_t b) {
    size_t sum;
    return icma_add_size(a, b, &sum) ? sum : SIZE_MAX;
}

/* Positions of g_level. */
static size_t positions(const icma_conv_decoder *d, size_t level) {
    return times(d->start, (size_t)1 << level);
}

void icma_conv_layer_shape(const icma_conv_decoder *d, size_t layer, size_t *rows, size_t *columns) {
    *rows = layer ? d->width * d->channels[layer - 1] : d->inputs;
    *columns = layer == 0 ? times(d->start, d->channels[0]) : layer <= d->layers ? d->channels[layer] : d->outputs;
}

size_t icma_conv_decoder_length(const icma_conv_decoder *d) {
    return positions(d, d->layers);
}

size_t icma_conv_decoder_parameters(const icma_conv_decoder *d) {
    size_t sum = 0;
    for (size_t l = 0; l <= d->layers + 1; l++) {
        size_t rows, columns;
        icma_conv_layer_shape(d, l, &rows, &columns);
        sum = plus(sum, times(rows + 1, columns));
    }
    return sum;
}

/* How often each weight of a layer is used: in layer 0 every position has its own, and of a transposed convolution each tap reaches every second position. */
static size_t uses(const icma_conv_decoder *d, size_t layer) {
    return layer == 0 ? 1 : positions(d, layer <= d->layers ? layer - 1 : d->layers);
}

uint64_t icma_conv_decoder_work(const icma_conv_decoder *d) {
    size_t sum = 0;
    for (size_t l = 0; l <= d->layers + 1; l++) {
        size_t rows, columns;
        icma_conv_layer_shape(d, l, &rows, &columns);
        sum = plus(sum, times(times(rows, columns), uses(d, l)));
    }
    return sum == SIZE_MAX ? UINT64_MAX : sum;
}

/* Numbers in the two buffers that activations go to and fro between: g_0, g_2, .. are in the first, and the output is where g_(N+1) would be. */
static void buffer_sizes(const icma_conv_decoder *d, size_t sizes[2]) {
    sizes[0] = sizes[1] = 0;
    for (size_t l = 0; l <= d->layers + 1; l++) {
        size_t count = times(positions(d, l <= d->layers ? l : d->layers), l <= d->layers ? d->channels[l] : 1);
        sizes[l % 2] = count > sizes[l % 2] ? count : sizes[l % 2];
    }
}

icma_status icma_conv_decoder_allocate(icma_conv_decoder *d, icma_error *error) {
    bool done = true;
    for (size_t l = 0; done && l <= d->layers + 1; l++) {
        size_t rows, columns;
        icma_conv_layer_shape(d, l, &rows, &columns);
        d->bias[l] = icma_alloc_zeroed(columns, sizeof(float));
        d->weight[l] = rows ? icma_alloc_zeroed(times(rows, columns), sizeof(float)) : NULL;
        done = d->bias[l] && (d->weight[l] || rows == 0);
    }
    if (done)
        return ICMA_OK;
    icma_conv_decoder_free(d);
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the decoder");
}

void icma_conv_decoder_free(icma_conv_decoder *d) {
    for (size_t l = 0; l < ICMA_CONV_MOST_LAYERS + 2; l++) {
        icma_free(d->weight[l]);
        icma_free(d->bias[l]);
    }
    memset(d, 0, sizeof *d);
}

/* --- vectors: what shares a step and a context (spec 4.15) ------------------------------------------------------- */

/* A row of layer 0, where columns would be many and short, or a column of another layer; the last of each layer is its bias. */
typedef struct vector {
    float *first;
    size_t stride, count;
} vector;

static size_t vectors_of(const icma_conv_decoder *d, size_t layer) {
    size_t rows, columns;
    icma_conv_layer_shape(d, layer, &rows, &columns);
    return (layer ? columns : rows) + 1;
}

static size_t all_vectors(const icma_conv_decoder *d) {
    size_t sum = 0;
    for (size_t l = 0; l <= d->layers + 1; l++)
        sum += vectors_of(d, l);
    return sum;
}

static vector vector_at(const icma_conv_decoder *d, size_t layer, size_t v) {
    size_t rows, columns;
    icma_conv_layer_shape(d, layer, &rows, &columns);
    if (v + 1 == vectors_of(d, layer))
        return (vector){d->bias[layer], 1, columns};
    return layer ? (vector){d->weight[layer] + v, columns, rows} : (vector){d->weight[0] + v * columns, 1, columns};
}

/* What is stored of all vectors, one after the other. */
typedef struct quantised {
    icma_rans_run *runs; /* one a vector; owned */
    int32_t *code;       /* of its step; owned */
    size_t count;
    int32_t *symbols; /* owned */
    size_t total;
} quantised;

static void quantised_free(quantised *q) {
    icma_free(q->runs);
    icma_free(q->code);
    icma_free(q->symbols);
}

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the decoder");
}

static icma_status quantised_allocate(const icma_conv_decoder *d, quantised *q, icma_error *error) {
    *q = (quantised){.count = all_vectors(d), .total = icma_conv_decoder_parameters(d)};
    q->runs = icma_alloc_array(q->count, sizeof *q->runs);
    q->code = icma_alloc_array(q->count, sizeof *q->code);
    q->symbols = icma_alloc_array(q->total, sizeof *q->symbols);
    if (!q->runs || !q->code || !q->symbols)
        return no_memory(error);
    for (size_t l = 0, r = 0; l <= d->layers + 1; l++)
        for (size_t v = 0; v < vectors_of(d, l); v++)
            q->runs[r++] = (icma_rans_run){vector_at(d, l, v).count, 0};
    return ICMA_OK;
}

/* Symbols become integers, and these the decoder's numbers. False if one is out of range. */
static bool dequantise(const icma_conv_decoder *d, quantised *q) {
    int32_t *symbols = q->symbols;
    for (size_t l = 0, r = 0; l <= d->layers + 1; l++)
        for (size_t v = 0; v < vectors_of(d, l); v++, r++) {
            vector to = vector_at(d, l, v);
            float step = icma_residual_step(1, q->code[r]);
            if (!icma_trellis_expand(q->runs[r].context, symbols, to.count))
                return false;
            for (size_t i = 0; i < to.count; i++)
                to.first[i * to.stride] = (float)symbols[i] * step;
            symbols += to.count;
        }
    return true;
}

static size_t stream_count(const quantised *q) {
    return (q->total + ICMA_RESIDUAL_STREAM - 1) / ICMA_RESIDUAL_STREAM;
}

/* The runs of stream s; `out` has room for all. Returns how many. */
static size_t runs_of(const quantised *q, size_t s, icma_rans_run *out) {
    size_t first = s * ICMA_RESIDUAL_STREAM;
    return icma_rans_cut(q->runs, q->count, first, q->total - first < ICMA_RESIDUAL_STREAM ? q->total : first + ICMA_RESIDUAL_STREAM, out);
}

/* --- steps ------------------------------------------------------------------------------------------------------- */

/* For weights of unit variance in front of it, what elu leaves of a mean square, and the mean square of its slope. */
static const double elu_square = 0.6, elu_slope = 0.67;
/* Biases are few, and their errors, which are the same at every position, do not average out. */
static const double bias_share = 1.0 / 16;

typedef struct noise_plan {
    double share;                                                         /* what a number may add to the output's sum of squares */
    double square[ICMA_CONV_MOST_LAYERS + 2];                             /* mean square of what a layer's weights are multiplied by */
    double reach[ICMA_CONV_MOST_LAYERS + 2][ICMA_CONV_MOST_CHANNELS];     /* what a change of a channel before its activation adds to the output, of squares, per square */
} noise_plan;

static double squared(float value) {
    return isnormal(value) ? (double)value * (double)value : 0;
}

/* Mean squares of channels of a layer's output, before activation, from those that go into it. Weights are taken as independent. */
static void squares_forward(const icma_conv_decoder *d, size_t layer, const double *in, double *out) {
    size_t rows, columns, inputs = layer ? d->channels[layer - 1] : 1;
    double taps = layer >= 1 && layer <= d->layers ? 0.5 : 1; /* of a transposed convolution every output has every second one */
    icma_conv_layer_shape(d, layer, &rows, &columns);
    size_t channels = layer ? columns : d->channels[0];
    for (size_t o = 0; o < channels; o++)
        out[o] = 0;
    for (size_t j = 0; j < columns; j++)
        out[j % channels] += squared(d->bias[layer][j]);
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < columns; j++)
            out[j % channels] += taps * squared(d->weight[layer][r * columns + j]) * (layer ? in[r % inputs] : 1);
    for (size_t o = 0; o < channels; o++)
        out[o] *= (double)channels / (double)columns;
}

static double mean_of(const double *values, size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += values[i];
    return sum / (double)count;
}

static void plan_reach(const icma_conv_decoder *d, noise_plan *p) {
    size_t last = d->layers + 1;
    for (size_t o = 0; o < d->outputs; o++)
        p->reach[last][o] = 1;
    for (size_t l = last; l-- > 0;) {
        size_t rows, columns;
        icma_conv_layer_shape(d, l + 1, &rows, &columns);
        for (size_t i = 0; i < d->channels[l]; i++)
            p->reach[l][i] = 0;
        for (size_t r = 0; r < rows; r++)
            for (size_t j = 0; j < columns; j++)
                p->reach[l][r % d->channels[l]] += squared(d->weight[l + 1][r * columns + j]) * p->reach[l + 1][j] * (l ? elu_slope : 1);
    }
}

/* Spreads the noise evenly over all numbers. */
static void make_plan(const icma_conv_decoder *d, double noise, noise_plan *p) {
    double buffers[2][ICMA_CONV_MOST_CHANNELS] = {{0}};
    size_t last = d->layers + 1;
    p->square[0] = 1;
    for (size_t l = 0; l <= last; l++) {
        double *out = buffers[l % 2];
        size_t channels = l <= d->layers ? d->channels[l] : d->outputs;
        squares_forward(d, l, buffers[1 - l % 2], out);
        for (size_t o = 0; l && l <= d->layers && o < channels; o++)
            out[o] *= elu_square;
        if (l < last)
            p->square[l + 1] = mean_of(out, channels);
        else
            p->share = noise * noise * out[0] * (double)icma_conv_decoder_length(d) / (double)icma_conv_decoder_parameters(d);
    }
    plan_reach(d, p);
}

/* Variance that the rounding errors of a vector may have. */
static double allowed(const icma_conv_decoder *d, const noise_plan *p, size_t layer, size_t v) {
    bool bias = v + 1 == vectors_of(d, layer);
    size_t channels = layer <= d->layers ? d->channels[layer] : d->outputs;
    double reach = layer && !bias ? p->reach[layer][v] : mean_of(p->reach[layer], channels);
    if (bias)
        return p->share * bias_share / ((layer ? (double)positions(d, layer <= d->layers ? layer : d->layers) : 1) * reach);
    return p->share / ((double)uses(d, layer) * p->square[layer] * reach);
}

static float largest_of(vector of) {
    float largest = 0;
    for (size_t i = 0; i < of.count; i++) {
        float size = fabsf(of.first[i * of.stride]);
        largest = isnormal(size) && size > largest ? size : largest;
    }
    return largest;
}

/* Codes in sixteenths of an octave. Steps so small that integers would leave their range, or so large that all would be 0 by far, are of no use. */
static int32_t choose_code(double variance, float largest, int32_t before) {
    const double most_steps = 2 * ICMA_TRELLIS_LARGEST - 4, fewest_steps = 0.125;
    if (!(largest > 0))
        return before;
    double step = sqrt(variance / ICMA_TRELLIS_NOISE), low = (double)largest / most_steps, high = (double)largest / fewest_steps;
    if (!(step < high)) /* or no number: nothing depends on it */
        step = high;
    double code = step > low ? round(16 * log2(step)) : ceil(16 * log2(low));
    return (int32_t)fmin(fmax(code, -ICMA_RESIDUAL_MOST_CODE), ICMA_RESIDUAL_MOST_CODE);
}

static float clamp(float value) {
    const float largest = 2 * ICMA_TRELLIS_LARGEST - 4;
    return value > largest ? largest : value < -largest ? -largest : value;
}

/* --- writing ----------------------------------------------------------------------------------------------------- */

static size_t longest_vector(const quantised *q) {
    size_t longest = 0;
    for (size_t r = 0; r < q->count; r++)
        longest = q->runs[r].count > longest ? q->runs[r].count : longest;
    return longest;
}

static void quantise_vector(vector from, float step, float *scaled, uint8_t *scratch, int32_t *symbols, icma_rans_run *run) {
    for (size_t i = 0; i < from.count; i++) {
        float value = from.first[i * from.stride];
        scaled[i] = isnormal(value) ? clamp(value / step) : 0;
    }
    run->context = icma_trellis_quantise(scaled, from.count, 1, symbols, scratch, NULL);
}

static icma_status quantise(const icma_conv_decoder *d, double noise, quantised *q, icma_error *error) {
    icma_status status = quantised_allocate(d, q, error);
    noise_plan *plan = status ? NULL : icma_alloc(sizeof *plan);
    float *scaled = status ? NULL : icma_alloc_array(longest_vector(q), sizeof *scaled);
    uint8_t *scratch = status ? NULL : icma_alloc(ICMA_TRELLIS_SCRATCH);
    if (!status && (!plan || !scaled || !scratch))
        status = no_memory(error);
    if (!status)
        make_plan(d, noise, plan);
    for (size_t l = 0, r = 0, at = 0; !status && l <= d->layers + 1; l++)
        for (size_t v = 0; v < vectors_of(d, l); at += q->runs[r++].count, v++) {
            vector from = vector_at(d, l, v);
            q->code[r] = choose_code(allowed(d, plan, l, v), largest_of(from), r ? q->code[r - 1] : 0);
            quantise_vector(from, icma_residual_step(1, q->code[r]), scaled, scratch, q->symbols + at, &q->runs[r]);
        }
    icma_free(plan);
    icma_free(scaled);
    icma_free(scratch);
    return status;
}

/* Codes, contexts, sizes of streams, streams. */
static icma_status write_symbols(const quantised *q, icma_buffer *out, icma_error *error) {
    icma_status status = ICMA_OK;
    icma_buffer streams = {0};
    icma_rans_run *runs = icma_alloc_array(q->count, sizeof *runs);
    if (!runs)
        return no_memory(error);
    for (size_t r = 0; r < q->count; r++)
        icma_write_varint_signed(out, q->code[r] - (r ? q->code[r - 1] : 0));
    for (size_t r = 0; r < q->count; r++)
        icma_write_u8(out, (uint8_t)q->runs[r].context);
    for (size_t s = 0; !status && s < stream_count(q); s++) {
        size_t before = streams.size, count = runs_of(q, s, runs);
        status = icma_rans_encode(q->symbols + s * ICMA_RESIDUAL_STREAM, runs, count, &streams, error);
        icma_write_varint(out, streams.size - before);
    }
    if (!status)
        icma_write_bytes(out, streams.data, streams.size);
    if (!status)
        status = icma_buffer_status(&streams, error);
    icma_buffer_free(&streams);
    icma_free(runs);
    return status ? status : icma_buffer_status(out, error);
}

static void write_sizes(const icma_conv_decoder *d, icma_conv_coding coding, icma_buffer *out) {
    icma_write_u8(out, (uint8_t)coding);
    icma_write_varint(out, d->inputs);
    icma_write_varint(out, d->start);
    icma_write_varint(out, d->layers);
    icma_write_varint(out, d->width);
    for (size_t l = 0; l <= d->layers; l++)
        icma_write_varint(out, d->channels[l]);
    icma_write_varint(out, d->outputs);
}

static void write_plain(icma_conv_decoder *d, icma_conv_coding coding, icma_buffer *out) {
    write_sizes(d, coding, out);
    for (size_t l = 0; l <= d->layers + 1; l++) {
        size_t rows, columns;
        icma_conv_layer_shape(d, l, &rows, &columns);
        icma_write_floats(out, d->bias[l], columns, ICMA_F32);
        icma_write_floats(out, d->weight[l], rows * columns, coding == ICMA_CONV_F32 ? ICMA_F32 : ICMA_BF16);
    }
}

static icma_status write_quantised(icma_conv_decoder *d, double noise, icma_buffer *out, icma_error *error) {
    quantised q = {0};
    icma_buffer coded = {0};
    icma_status status = quantise(d, noise, &q, error);
    if (!status)
        status = write_symbols(&q, &coded, error);
    if (!status && (q.total - 1) / ICMA_CONV_PARAMETERS_A_BYTE >= coded.size) {
        write_plain(d, ICMA_CONV_BF16, out);
    } else if (!status) {
        write_sizes(d, ICMA_CONV_QUANTISED, out);
        icma_write_bytes(out, coded.data, coded.size);
        dequantise(d, &q); /* symbols of our own are in range */
    }
    icma_buffer_free(&coded);
    quantised_free(&q);
    return status;
}

icma_status icma_conv_decoder_write(icma_conv_decoder *d, icma_conv_coding coding, double noise, icma_buffer *out, icma_error *error) {
    icma_status status = ICMA_OK;
    if (coding == ICMA_CONV_QUANTISED)
        status = write_quantised(d, noise, out, error);
    else
        write_plain(d, coding, out);
    return status ? status : icma_buffer_status(out, error);
}

/* --- reading ----------------------------------------------------------------------------------------------------- */

static icma_status corrupt(icma_error *error, const char *what) {
    return icma_fail(error, ICMA_E_CORRUPT, NULL, "decoder: %s", what);
}

static icma_status read_size(icma_cursor *from, uint64_t least, uint64_t most, size_t *out, icma_error *error) {
    uint64_t size = icma_read_varint(from);
    if (from->failed || size < least)
        return corrupt(error, "truncated, or a size of 0");
    if (size > most)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "decoder: a size is %llu, the limit is %llu", (unsigned long long)size, (unsigned long long)most);
    *out = (size_t)size;
    return ICMA_OK;
}

static icma_status read_sizes(icma_cursor *from, icma_conv_decoder *d, icma_error *error) {
    icma_status status = read_size(from, 0, ICMA_CONV_MOST_INPUTS, &d->inputs, error);
    if (!status)
        status = read_size(from, 1, ICMA_CONV_MOST_PARAMETERS, &d->start, error);
    if (!status)
        status = read_size(from, 1, ICMA_CONV_MOST_LAYERS, &d->layers, error);
    if (!status)
        status = read_size(from, 1, ICMA_CONV_MOST_WIDTH, &d->width, error);
    for (size_t l = 0; !status && l <= d->layers; l++)
        status = read_size(from, 1, ICMA_CONV_MOST_CHANNELS, &d->channels[l], error);
    if (!status)
        status = read_size(from, 1, 2, &d->outputs, error);
    if (!status && d->width % 2 == 0)
        status = corrupt(error, "an even width");
    if (!status && icma_conv_decoder_parameters(d) > ICMA_CONV_MOST_PARAMETERS)
        status = icma_fail(error, ICMA_E_LIMIT, NULL, "decoder: more than %d numbers", ICMA_CONV_MOST_PARAMETERS);
    return status;
}

/* Whether the payload has bytes enough for the sizes: nothing is allocated before. */
static bool has_bytes(const icma_conv_decoder *d, icma_conv_coding coding, size_t left) {
    size_t biases = 0, all = icma_conv_decoder_parameters(d);
    if (coding == ICMA_CONV_QUANTISED)
        return all_vectors(d) <= left / 2 && (all - 1) / ICMA_CONV_PARAMETERS_A_BYTE < left;
    for (size_t l = 0; l <= d->layers + 1; l++) {
        size_t rows, columns;
        icma_conv_layer_shape(d, l, &rows, &columns);
        biases += columns;
    }
    return coding == ICMA_CONV_F32 ? all <= left / 4 : all + biases <= left / 2;
}

static icma_status read_plain(icma_cursor *from, icma_conv_coding coding, icma_conv_decoder *d, icma_error *error) {
    for (size_t l = 0; l <= d->layers + 1; l++) {
        size_t rows, columns;
        icma_conv_layer_shape(d, l, &rows, &columns);
        if (!icma_read_floats(from, d->bias[l], columns, ICMA_F32) || !icma_read_floats(from, d->weight[l], rows * columns, coding == ICMA_CONV_F32 ? ICMA_F32 : ICMA_BF16))
            return corrupt(error, "a number that is not finite, or denormal");
    }
    return ICMA_OK;
}

static icma_status read_vectors(icma_cursor *from, quantised *q, icma_error *error) {
    int64_t code = 0;
    for (size_t r = 0; r < q->count; r++) {
        int64_t difference = icma_read_varint_signed(from);
        if (from->failed || difference < -2 * ICMA_RESIDUAL_MOST_CODE || difference > 2 * ICMA_RESIDUAL_MOST_CODE)
            return corrupt(error, "truncated, or a step out of range");
        code += difference;
        if (code < -ICMA_RESIDUAL_MOST_CODE || code > ICMA_RESIDUAL_MOST_CODE)
            return corrupt(error, "a step out of range");
        q->code[r] = (int32_t)code;
    }
    for (size_t r = 0; r < q->count; r++)
        q->runs[r].context = icma_read_u8(from);
    return from->failed ? corrupt(error, "truncated") : ICMA_OK;
}

/* Where the streams lie: offsets[s] .. offsets[s + 1] of what follows. */
static icma_status read_offsets(icma_cursor *from, size_t streams, size_t *offsets, icma_error *error) {
    offsets[0] = 0;
    for (size_t s = 0; s < streams; s++) {
        uint64_t size = icma_read_varint(from);
        if (from->failed || size > from->left || !icma_add_size(offsets[s], (size_t)size, &offsets[s + 1]))
            return corrupt(error, "truncated");
    }
    return offsets[streams] > from->left ? corrupt(error, "truncated") : ICMA_OK;
}

static icma_status decode_stream(quantised *q, size_t s, const uint8_t *data, size_t size, icma_error *error) {
    icma_rans_run *runs = icma_alloc_array(q->count, sizeof *runs);
    icma_status status = runs ? icma_rans_decode(data, size, runs, runs_of(q, s, runs), q->symbols + s * ICMA_RESIDUAL_STREAM, error) : no_memory(error);
    icma_free(runs);
    return status;
}

/* One thread a stream. The first stream's error counts, so that it does not depend on the threads. */
static icma_status decode_streams(quantised *q, const uint8_t *data, const size_t *offsets, size_t streams, icma_error *error) {
    size_t failed = SIZE_MAX;
#pragma omp parallel for schedule(dynamic) num_threads(icma_threads()) if (streams > 1)
    for (size_t s = 0; s < streams; s++)
        if (decode_stream(q, s, data + offsets[s], offsets[s + 1] - offsets[s], NULL)) {
#pragma omp critical(icma_conv_failed)
            failed = s < failed ? s : failed;
        }
    return failed == SIZE_MAX ? ICMA_OK : decode_stream(q, failed, data + offsets[failed], offsets[failed + 1] - offsets[failed], error);
}

static icma_status read_quantised(icma_cursor *from, icma_conv_decoder *d, icma_error *error) {
    quantised q = {0};
    icma_status status = quantised_allocate(d, &q, error);
    size_t streams = stream_count(&q), *offsets = status ? NULL : icma_alloc_array(streams + 1, sizeof *offsets);
    if (!status && !offsets)
        status = no_memory(error);
    if (!status)
        status = read_vectors(from, &q, error);
    if (!status)
        status = read_offsets(from, streams, offsets, error);
    if (!status)
        status = decode_streams(&q, icma_read_bytes(from, offsets[streams]), offsets, streams, error);
    if (!status && !dequantise(d, &q))
        status = corrupt(error, "an integer is out of range");
    icma_free(offsets);
    quantised_free(&q);
    return status;
}

icma_status icma_conv_decoder_read(icma_cursor *from, icma_conv_decoder *out, icma_error *error) {
    icma_conv_decoder d = {0};
    memset(out, 0, sizeof *out);
    uint8_t coding = icma_read_u8(from);
    if (from->failed)
        return corrupt(error, "truncated");
    if (coding > ICMA_CONV_QUANTISED)
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "decoder: unknown coding %u; a newer icma may know it", coding);
    icma_status status = read_sizes(from, &d, error);
    if (!status && !has_bytes(&d, coding, from->left))
        status = corrupt(error, "truncated, or more numbers than it has room for");
    if (!status)
        status = icma_conv_decoder_allocate(&d, error); /* frees all on failure */
    if (status)
        return status;
    status = coding == ICMA_CONV_QUANTISED ? read_quantised(from, &d, error) : read_plain(from, coding, &d, error);
    if (status)
        icma_conv_decoder_free(&d);
    else
        *out = d;
    return status;
}

/* --- exact evaluation -------------------------------------------------------------------------------------------- */

enum { ENGINE_LAYERS = ICMA_CONV_MOST_LAYERS + 3 };

struct icma_conv_engine {
    const icma_ops *ops;
    icma_conv_decoder shape; /* its sizes only */
    icma_tensor *weight[ENGINE_LAYERS], *bias[ENGINE_LAYERS]; /* each channel of the output is a layer of its own: the last is computed only when asked for */
    icma_tensor *input, *activation[2];
    icma_tensor *variance; /* the second channel; NULL until it is asked for */
};

/* One of the output's channels. */
static icma_status upload_channel(icma_conv_engine *e, const icma_conv_decoder *d, size_t channel, icma_error *error) {
    const icma_ops *ops = e->ops;
    size_t last = d->layers + 1, rows, columns;
    icma_conv_layer_shape(d, last, &rows, &columns);
    float *column = icma_alloc_array(rows, sizeof *column);
    if (!column)
        return no_memory(error);
    for (size_t r = 0; r < rows; r++)
        column[r] = d->weight[last][r * columns + channel];
    icma_status status = ops->alloc(ops->device, ICMA_ELEMENT_F32, 1, &e->bias[last + channel], error);
    if (!status)
        status = ops->upload(ops->device, e->bias[last + channel], 0, d->bias[last] + channel, 1, error);
    if (!status)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, rows, &e->weight[last + channel], error);
    if (!status)
        status = ops->upload(ops->device, e->weight[last + channel], 0, column, rows, error);
    icma_free(column);
    return status;
}

static icma_status upload_layer(icma_conv_engine *e, const icma_conv_decoder *d, size_t layer, icma_error *error) {
    const icma_ops *ops = e->ops;
    size_t rows, columns;
    icma_conv_layer_shape(d, layer, &rows, &columns);
    icma_status status = ops->alloc(ops->device, ICMA_ELEMENT_F32, columns, &e->bias[layer], error);
    if (!status)
        status = ops->upload(ops->device, e->bias[layer], 0, d->bias[layer], columns, error);
    if (status || rows == 0)
        return status;
    status = ops->alloc(ops->device, ICMA_ELEMENT_F32, rows * columns, &e->weight[layer], error);
    return status ? status : ops->upload(ops->device, e->weight[layer], 0, d->weight[layer], rows * columns, error);
}

icma_status icma_conv_engine_create(const icma_conv_decoder *d, const icma_ops *ops, icma_conv_engine **out, icma_error *error) {
    *out = NULL;
    size_t sizes[2];
    buffer_sizes(d, sizes);
    icma_conv_engine *e = icma_alloc_zeroed(1, sizeof *e);
    if (!e)
        return no_memory(error);
    e->ops = ops;
    e->shape = *d;
    memset(e->shape.weight, 0, sizeof e->shape.weight);
    memset(e->shape.bias, 0, sizeof e->shape.bias);
    icma_status status = ops->alloc(ops->device, ICMA_ELEMENT_F32, d->inputs ? d->inputs : 1, &e->input, error);
    for (int i = 0; !status && i < 2; i++)
        status = ops->alloc(ops->device, ICMA_ELEMENT_F32, sizes[i], &e->activation[i], error);
    for (size_t l = 0; !status && l <= d->layers; l++)
        status = upload_layer(e, d, l, error);
    for (size_t channel = 0; !status && channel < d->outputs; channel++)
        status = upload_channel(e, d, channel, error);
    if (status)
        icma_conv_engine_free(e);
    else
        *out = e;
    return status;
}

void icma_conv_engine_free(icma_conv_engine *e) {
    if (!e)
        return;
    for (size_t l = 0; l < ENGINE_LAYERS; l++) {
        e->ops->release(e->ops->device, e->weight[l]);
        e->ops->release(e->ops->device, e->bias[l]);
    }
    e->ops->release(e->ops->device, e->input);
    e->ops->release(e->ops->device, e->activation[0]);
    e->ops->release(e->ops->device, e->activation[1]);
    e->ops->release(e->ops->device, e->variance);
    icma_free(e);
}

/* g_0 = input Wd + bd, as one row. */
static void run_linear(icma_conv_engine *e) {
    size_t rows, columns;
    icma_conv_layer_shape(&e->shape, 0, &rows, &columns);
    icma_matrix y = icma_matrix_of(e->activation[0], 1, columns), w = icma_matrix_of(rows ? e->weight[0] : e->bias[0], rows, columns);
    e->ops->linear(e->ops->device, icma_matrix_of(e->input, 1, rows), w, icma_matrix_of(e->bias[0], 1, columns), y);
}

/* Layers 1 .. N. */
static void run_layer(icma_conv_engine *e, size_t layer) {
    const icma_ops *ops = e->ops;
    const icma_conv_decoder *d = &e->shape;
    const icma_conv shape = {.batch = 1, .width = d->width};
    size_t before = layer - 1, rows = d->width * d->channels[before], columns = d->channels[layer];
    icma_matrix x = icma_matrix_of(e->activation[before % 2], positions(d, before), d->channels[before]);
    icma_matrix y = icma_matrix_of(e->activation[layer % 2], positions(d, layer), columns);
    ops->conv_up(ops->device, shape, x, icma_matrix_of(e->weight[layer], rows, columns), icma_matrix_of(e->bias[layer], 1, columns), y);
    ops->elu(ops->device, y, y);
}

/* A channel of the output, from g_N, which stays as it is. */
static icma_matrix run_channel(icma_conv_engine *e, size_t channel, icma_tensor *to) {
    const icma_ops *ops = e->ops;
    const icma_conv_decoder *d = &e->shape;
    const icma_conv shape = {.batch = 1, .width = d->width};
    size_t n = d->layers, rows = d->width * d->channels[n];
    icma_matrix x = icma_matrix_of(e->activation[n % 2], positions(d, n), d->channels[n]), y = icma_matrix_of(to, positions(d, n), 1);
    ops->conv(ops->device, shape, x, icma_matrix_of(e->weight[n + 1 + channel], rows, 1), icma_matrix_of(e->bias[n + 1 + channel], 1, 1), y);
    return y;
}

icma_status icma_conv_engine_run(icma_conv_engine *e, const float *input, icma_matrix *y, icma_error *error) {
    icma_status status = ICMA_OK;
    if (e->shape.inputs)
        status = e->ops->upload(e->ops->device, e->input, 0, input, e->shape.inputs, error);
    if (status)
        return status;
    run_linear(e);
    for (size_t l = 1; l <= e->shape.layers; l++)
        run_layer(e, l);
    *y = run_channel(e, 0, e->activation[(e->shape.layers + 1) % 2]);
    return ICMA_OK;
}

icma_status icma_conv_engine_variance(icma_conv_engine *e, icma_matrix *v, icma_error *error) {
    const icma_ops *ops = e->ops;
    icma_status status = e->variance ? ICMA_OK : ops->alloc(ops->device, ICMA_ELEMENT_F32, icma_conv_decoder_length(&e->shape), &e->variance, error);
    if (!status)
        *v = run_channel(e, 1, e->variance);
    return status;
}
