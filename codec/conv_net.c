/* SPDX-License-Identifier: Apache-2.0 */
#include "conv_net.h"

#include "memory.h"

#include <assert.h>
#include <math.h>

static const float norm_epsilon = 1e-5F;
static const float norm_momentum = 0.1F;
enum { MOST_KEPT = 64, KEPT_CELLS = 1 << 20 }; /* steps whose losses stay on the device, and their numbers */

/* A convolution with its norm and activation. The encoder's layers come first, then the decoder's. */
typedef struct layer {
    icma_conv_part weight; /* gamma and beta are the next two parts */
    size_t index;          /* `layer` of these parts */
    bool up;
    icma_activation activation;
    size_t positions, channels;   /* of its output */
    size_t statistics;            /* its mean and variance are at this offset and `channels` after it */
    icma_tensor *before, *after;  /* the norm and the activation: what backward needs */
} layer;

/* Smaller activations and gradients (batch x columns each), losses, and scratch. SLOT_E is [e; a], SLOT_Z [z; a]; SLOT_GRADIENT takes the gradients of the large activations in turn. */
typedef enum slot {
    SLOT_E, SLOT_MU, SLOT_LOGVAR, SLOT_Z, SLOT_G0, SLOT_Y,
    SLOT_D_E, SLOT_D_Z, SLOT_D_MU, SLOT_D_LOGVAR,
    SLOT_BLOCK_LOSS, SLOT_KL,
    SLOT_GRADIENT, SLOT_GRADIENT_OTHER,
    SLOTS_OF_BATCH,
    SLOT_ONES = SLOTS_OF_BATCH, SLOT_SUMS, SLOT_TURNED, SLOT_SCRATCH,
    SLOTS
} slot;

struct icma_conv_net {
    const icma_ops *ops;
    icma_conv_shape shape;
    icma_tensor *state[ICMA_CONV_STATES];
    icma_tensor *statistics; /* of the batch, laid out as the running ones */
    layer layers[2 * ICMA_CONV_MOST_LAYERS];
    icma_tensor *slots[SLOTS];
    size_t batch;            /* the largest */
    /* Full batches: how many steps there were, and the recorded one. */
    size_t full_steps;
    icma_recording *recording;
    /* Losses of steps that were not added up yet, a row each, and the batches of these steps. */
    icma_tensor *kept, *zero; /* zero: an index */
    size_t kept_counts[MOST_KEPT], kept_rows, most_rows;
};

/* --- sizes ------------------------------------------------------------------------------------------------------- */

static size_t saturating_product(size_t a, size_t b) {
    return icma_multiply_size(a, b, &a) ? a : SIZE_MAX;
}

static size_t saturating_sum(size_t a, size_t b) {
    return icma_add_size(a, b, &a) ? a : SIZE_MAX;
}

static size_t encoder_inputs(const icma_conv_shape *s, size_t l) {
    return l ? s->channels[l - 1] : 1;
}

static size_t decoder_outputs(const icma_conv_shape *s, size_t l) {
    return s->channels[l + 1 < s->layers ? s->layers - 2 - l : 0];
}

static size_t decoder_inputs(const icma_conv_shape *s, size_t l) {
    return l ? decoder_outputs(s, l - 1) : s->channels[s->layers - 1];
}

static size_t output_channels(const icma_conv_shape *s) {
    return s->variance ? 2 : 1;
}

/* Positions of h_N and g_0, and their numbers. */
static size_t start_of(const icma_conv_shape *s) {
    return s->length >> s->layers;
}

static size_t flat_of(const icma_conv_shape *s) {
    return saturating_product(start_of(s), s->channels[s->layers - 1]);
}

static size_t block_of(const icma_conv_shape *s) {
    return (size_t)1 << s->layers;
}

size_t icma_conv_padded(size_t used, size_t layers) {
    size_t padded;
    return icma_round_up_size(used, (size_t)1 << layers, &padded) ? padded : SIZE_MAX;
}

static void part_shape(const icma_conv_shape *s, icma_conv_part part, size_t l, size_t *rows, size_t *columns) {
    const size_t e = saturating_sum(s->hidden, s->coordinates), z = saturating_sum(s->latent, s->coordinates);
    const size_t logvar = s->autoencoder ? 0 : s->latent;
    const size_t shapes[ICMA_CONV_PARTS][2] = {
        [ICMA_CONV_ENCODER_W] = {s->width * encoder_inputs(s, l), s->channels[l]},
        [ICMA_CONV_ENCODER_GAMMA] = {1, s->channels[l]},
        [ICMA_CONV_ENCODER_BETA] = {1, s->channels[l]},
        [ICMA_CONV_WE] = {flat_of(s), s->hidden},
        [ICMA_CONV_BE] = {1, s->hidden},
        [ICMA_CONV_WM] = {e, s->latent},
        [ICMA_CONV_BM] = {1, s->latent},
        [ICMA_CONV_WV] = {e, logvar},
        [ICMA_CONV_BV] = {1, logvar},
        [ICMA_CONV_WD] = {z, flat_of(s)},
        [ICMA_CONV_BD] = {1, flat_of(s)},
        [ICMA_CONV_DECODER_W] = {s->width * decoder_inputs(s, l), decoder_outputs(s, l)},
        [ICMA_CONV_DECODER_GAMMA] = {1, decoder_outputs(s, l)},
        [ICMA_CONV_DECODER_BETA] = {1, decoder_outputs(s, l)},
        [ICMA_CONV_FINAL_W] = {s->width * s->channels[0], output_channels(s)},
        [ICMA_CONV_FINAL_B] = {1, output_channels(s)},
    };
    *rows = shapes[part][0];
    *columns = shapes[part][1];
}

/* From a part to the next in the flat parameters: the encoder's layers, each with its norm; the linear ones; the decoder's layers; the last convolution. False after the last. */
static bool next_part(const icma_conv_shape *s, icma_conv_part *part, size_t *l) {
    bool layer_ends = *part == ICMA_CONV_ENCODER_BETA || *part == ICMA_CONV_DECODER_BETA;
    if (layer_ends && *l + 1 < s->layers) {
        *part = *part == ICMA_CONV_ENCODER_BETA ? ICMA_CONV_ENCODER_W : ICMA_CONV_DECODER_W;
        ++*l;
        return true;
    }
    if (layer_ends)
        *l = 0;
    *part = (icma_conv_part)(*part + 1);
    return *part < ICMA_CONV_PARTS;
}

void icma_conv_part_place(const icma_conv_shape *s, icma_conv_part part, size_t l, size_t *offset, size_t *rows, size_t *columns) {
    icma_conv_part at = 0;
    size_t at_layer = 0;
    *offset = 0;
    part_shape(s, at, at_layer, rows, columns);
    while ((at != part || at_layer != l) && next_part(s, &at, &at_layer)) {
        *offset += *rows * *columns;
        part_shape(s, at, at_layer, rows, columns);
    }
}

size_t icma_conv_parameters(const icma_conv_shape *s) {
    icma_conv_part part = 0;
    size_t l = 0, rows, columns, sum = 0;
    do {
        part_shape(s, part, l, &rows, &columns);
        sum = saturating_sum(sum, saturating_product(rows, columns));
    } while (next_part(s, &part, &l));
    return sum;
}

double icma_conv_work(const icma_conv_shape *s) {
    double flat = (double)start_of(s) * (double)s->channels[s->layers - 1], work = 0;
    for (size_t l = 0; l < s->layers; l++) {
        work += (double)(s->length >> (l + 1)) * (double)(s->width * encoder_inputs(s, l) * s->channels[l]);
        work += (double)(start_of(s) << l) * (double)(s->width * decoder_inputs(s, l) * decoder_outputs(s, l));
    }
    work += (double)(s->hidden + s->coordinates) * (double)s->latent * (s->autoencoder ? 1 : 2);
    work += flat * (double)(s->hidden + s->latent + s->coordinates);
    return work + (double)s->length * (double)(s->width * s->channels[0] * output_channels(s));
}

/* Numbers of the k-th gradient that backward makes on its way: of y, g_N .. g_0, h_N .. h_1. */
static size_t gradient_columns(const icma_conv_net *net, size_t k) {
    const icma_conv_shape *s = &net->shape;
    if (k == 0)
        return saturating_product(s->length, output_channels(s));
    if (k == s->layers + 1)
        return flat_of(s);
    const layer *l = &net->layers[k <= s->layers ? 2 * s->layers - k : 2 * s->layers + 1 - k];
    return saturating_product(l->positions, l->channels);
}

static size_t largest_gradient(const icma_conv_net *net, size_t first) {
    size_t most = 0;
    for (size_t k = first; k < 2 * net->shape.layers + 2; k += 2)
        most = gradient_columns(net, k) > most ? gradient_columns(net, k) : most;
    return most;
}

static size_t largest_weight(const icma_conv_shape *s, bool scratch) {
    size_t most = 0;
    for (size_t l = 0; l <= 2 * s->layers; l++) {
        size_t in = l < s->layers ? encoder_inputs(s, l) : l < 2 * s->layers ? decoder_inputs(s, l - s->layers) : s->channels[0];
        size_t out = l < s->layers ? s->channels[l] : l < 2 * s->layers ? decoder_outputs(s, l - s->layers) : output_channels(s);
        size_t count = scratch ? icma_conv_scratch(s->width, in, out) : s->width * in * out;
        most = count > most ? count : most;
    }
    return most;
}

static size_t slot_columns(const icma_conv_net *net, int which) {
    const icma_conv_shape *s = &net->shape;
    const size_t logvar = s->autoencoder ? 0 : s->latent;
    switch ((slot)which) {
    case SLOT_E:
        return saturating_sum(s->hidden, s->coordinates);
    case SLOT_Z:
        return saturating_sum(s->latent, s->coordinates);
    case SLOT_MU:
    case SLOT_D_Z:
    case SLOT_D_MU:
        return s->latent;
    case SLOT_LOGVAR:
    case SLOT_D_LOGVAR:
    case SLOT_KL:
        return logvar;
    case SLOT_G0:
        return flat_of(s);
    case SLOT_Y:
        return saturating_product(s->length, output_channels(s));
    case SLOT_D_E:
        return s->hidden;
    case SLOT_BLOCK_LOSS:
        return start_of(s);
    case SLOT_GRADIENT:
        return largest_gradient(net, 0);
    case SLOT_GRADIENT_OTHER:
        return largest_gradient(net, 1);
    case SLOT_ONES:
        return block_of(s);
    case SLOT_SUMS:
        return block_of(s) * output_channels(s);
    case SLOT_TURNED:
        return largest_weight(s, false);
    case SLOT_SCRATCH:
        return largest_weight(s, true);
    default:
        return 0;
    }
}

static size_t statistics_count(const icma_conv_shape *s) {
    size_t count = 0;
    for (size_t l = 0; l < s->layers; l++)
        count += 2 * (s->channels[l] + decoder_outputs(s, l));
    return count;
}

/* --- views ------------------------------------------------------------------------------------------------------- */

static icma_matrix view(icma_conv_net *net, int which, size_t count) {
    return icma_matrix_of(net->slots[which], count, slot_columns(net, which));
}

static icma_matrix part_of(icma_conv_net *net, icma_conv_state state, icma_conv_part part, size_t l) {
    icma_matrix m = {.tensor = net->state[state]};
    icma_conv_part_place(&net->shape, part, l, &m.offset, &m.rows, &m.columns);
    m.stride = m.columns;
    return m;
}

static icma_matrix parameter(icma_conv_net *net, int part, size_t l) {
    return part_of(net, ICMA_CONV_PARAMETERS, (icma_conv_part)part, l);
}

static icma_matrix gradient(icma_conv_net *net, int part, size_t l) {
    return part_of(net, ICMA_CONV_GRADIENTS, (icma_conv_part)part, l);
}

/* The same numbers in other rows and columns. */
static icma_matrix reshape(icma_matrix m, size_t rows, size_t columns) {
    assert(m.stride == m.columns && rows * columns == m.rows * m.columns);
    return (icma_matrix){m.tensor, m.offset, rows, columns, columns};
}

/* Mean (which 0) or variance (1) of a layer's norm. */
static icma_matrix statistic(const layer *l, icma_tensor *from, size_t which) {
    return (icma_matrix){from, l->statistics + which * l->channels, 1, l->channels, l->channels};
}

static icma_matrix before_norm(const layer *l, size_t count) {
    return icma_matrix_of(l->before, count * l->positions, l->channels);
}

static icma_matrix after_norm(const layer *l, size_t count) {
    return icma_matrix_of(l->after, count * l->positions, l->channels);
}

static icma_conv conv_of(const icma_conv_net *net, size_t count) {
    return (icma_conv){count, net->shape.width};
}

icma_matrix icma_conv_mu(icma_conv_net *net, size_t count) {
    return view(net, SLOT_MU, count);
}

icma_matrix icma_conv_logvar(icma_conv_net *net, size_t count) {
    return view(net, SLOT_LOGVAR, count);
}

icma_matrix icma_conv_output(icma_conv_net *net, size_t count) {
    return icma_matrix_of(net->slots[SLOT_Y], count * net->shape.length, output_channels(&net->shape));
}

icma_matrix icma_conv_hidden(icma_conv_net *net, size_t l, size_t count) {
    return after_norm(&net->layers[l], count);
}

icma_tensor *icma_conv_net_state(icma_conv_net *net, icma_conv_state which, size_t *count) {
    *count = which == ICMA_CONV_RUNNING ? statistics_count(&net->shape) : icma_conv_parameters(&net->shape);
    return net->state[which];
}

/* --- creation ---------------------------------------------------------------------------------------------------- */

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the network");
}

static icma_status make(icma_conv_net *net, icma_tensor **out, size_t rows, size_t columns, icma_error *error) {
    size_t count = saturating_product(rows, columns);
    if (count > SIZE_MAX / sizeof(float))
        return no_memory(error);
    return net->ops->alloc(net->ops->device, ICMA_ELEMENT_F32, count ? count : 1, out, error);
}

static void describe_layers(icma_conv_net *net) {
    const icma_conv_shape *s = &net->shape;
    size_t statistics = 0;
    for (size_t i = 0; i < 2 * s->layers; i++) {
        layer *l = &net->layers[i];
        l->up = i >= s->layers;
        l->index = l->up ? i - s->layers : i;
        l->weight = l->up ? ICMA_CONV_DECODER_W : ICMA_CONV_ENCODER_W;
        l->activation = l->up ? ICMA_ACTIVATION_ELU : ICMA_ACTIVATION_LEAKY_RELU;
        l->positions = l->up ? start_of(s) << (l->index + 1) : s->length >> (l->index + 1);
        l->channels = l->up ? decoder_outputs(s, l->index) : s->channels[l->index];
        l->statistics = statistics;
        statistics += 2 * l->channels;
    }
}

/* What a step's losses take: blocks' and KL's, of all sequences of a batch. */
static size_t kept_columns(const icma_conv_net *net) {
    return saturating_product(net->batch, saturating_sum(slot_columns(net, SLOT_BLOCK_LOSS), slot_columns(net, SLOT_KL)));
}

static icma_status make_tensors(icma_conv_net *net, icma_error *error) {
    size_t batch = net->batch;
    icma_status status = make(net, &net->statistics, 1, statistics_count(&net->shape), error);
    for (int i = 0; !status && i < ICMA_CONV_STATES; i++)
        status = make(net, &net->state[i], 1, i == ICMA_CONV_RUNNING ? statistics_count(&net->shape) : icma_conv_parameters(&net->shape), error);
    for (size_t i = 0; !status && i < 2 * net->shape.layers; i++) {
        layer *l = &net->layers[i];
        status = make(net, &l->before, batch, saturating_product(l->positions, l->channels), error);
        if (!status)
            status = make(net, &l->after, batch, saturating_product(l->positions, l->channels), error);
    }
    for (int i = 0; !status && i < SLOTS; i++)
        status = make(net, &net->slots[i], i < SLOTS_OF_BATCH ? batch : 1, slot_columns(net, i), error);
    size_t cells = kept_columns(net), rows = cells < KEPT_CELLS ? KEPT_CELLS / cells : 1;
    net->most_rows = rows < MOST_KEPT ? rows : MOST_KEPT;
    if (!status)
        status = make(net, &net->kept, net->most_rows, cells, error);
    return status ? status : net->ops->alloc(net->ops->device, ICMA_ELEMENT_U32, 1, &net->zero, error);
}

/* PyTorch takes the fan in of a transposed convolution from its outputs. */
static size_t fan_in(const icma_conv_shape *s, icma_conv_part part, size_t l) {
    static const icma_conv_part weights_of[ICMA_CONV_PARTS] = {
        [ICMA_CONV_BE] = ICMA_CONV_WE, [ICMA_CONV_BM] = ICMA_CONV_WM, [ICMA_CONV_BV] = ICMA_CONV_WV,
        [ICMA_CONV_BD] = ICMA_CONV_WD, [ICMA_CONV_FINAL_B] = ICMA_CONV_FINAL_W,
    };
    if (part == ICMA_CONV_DECODER_W)
        return s->width * decoder_outputs(s, l);
    size_t rows, columns;
    part_shape(s, weights_of[part] ? weights_of[part] : part, l, &rows, &columns);
    return rows;
}

static void initial_part(const icma_conv_shape *s, icma_conv_part part, size_t l, icma_rng *rng, float *values) {
    size_t offset, rows, columns;
    icma_conv_part_place(s, part, l, &offset, &rows, &columns);
    bool gamma = part == ICMA_CONV_ENCODER_GAMMA || part == ICMA_CONV_DECODER_GAMMA;
    bool beta = part == ICMA_CONV_ENCODER_BETA || part == ICMA_CONV_DECODER_BETA;
    double bound = 1 / sqrt((double)fan_in(s, part, l));
    for (size_t i = offset; i < offset + rows * columns; i++)
        values[i] = gamma ? 1 : beta ? 0 : (float)(bound * ((double)(icma_rng_next(rng) >> 11) * 0x1p-52 - 1));
}

static icma_status initialise(icma_conv_net *net, icma_rng *rng, icma_error *error) {
    const icma_ops *ops = net->ops;
    size_t count = icma_conv_parameters(&net->shape), l = 0;
    icma_conv_part part = 0;
    float *values = icma_alloc_array(count, sizeof *values);
    if (!values)
        return no_memory(error);
    do
        initial_part(&net->shape, part, l, rng, values);
    while (next_part(&net->shape, &part, &l));
    for (size_t i = 0; i < 2 * net->shape.layers; i++)
        ops->fill(ops->device, 1, statistic(&net->layers[i], net->state[ICMA_CONV_RUNNING], 1));
    ops->fill(ops->device, 1, view(net, SLOT_ONES, 1));
    icma_status status = ops->upload(ops->device, net->state[ICMA_CONV_PARAMETERS], 0, values, count, error); /* tells, too, whether filling failed */
    icma_free(values);
    return status;
}

icma_status icma_conv_net_create(const icma_ops *ops, icma_conv_shape shape, size_t batch, icma_rng *rng, icma_conv_net **out, icma_error *error) {
    assert(shape.layers >= 1 && shape.layers <= ICMA_CONV_MOST_LAYERS && shape.width % 2 == 1);
    assert(shape.used >= 1 && shape.length == icma_conv_padded(shape.used, shape.layers));
    *out = NULL;
    icma_conv_net *net = icma_alloc_zeroed(1, sizeof *net);
    if (!net)
        return no_memory(error);
    net->ops = ops;
    net->shape = shape;
    net->batch = batch;
    describe_layers(net);
    icma_status status = make_tensors(net, error);
    if (!status)
        status = initialise(net, rng, error);
    if (status)
        icma_conv_net_free(net);
    else
        *out = net;
    return status;
}

void icma_conv_net_free(icma_conv_net *net) {
    if (!net)
        return;
    const icma_ops *ops = net->ops;
    for (int i = 0; i < ICMA_CONV_STATES; i++)
        ops->release(ops->device, net->state[i]);
    for (size_t i = 0; i < 2 * net->shape.layers; i++) {
        ops->release(ops->device, net->layers[i].before);
        ops->release(ops->device, net->layers[i].after);
    }
    for (int i = 0; i < SLOTS; i++)
        ops->release(ops->device, net->slots[i]);
    ops->release(ops->device, net->statistics);
    ops->release(ops->device, net->kept);
    ops->release(ops->device, net->zero);
    if (ops->forget)
        ops->forget(ops->device, net->recording);
    icma_free(net);
}

/* --- forward ----------------------------------------------------------------------------------------------------- */

/* y = x W + b; the bias's part is the next one. */
static void dense(icma_conv_net *net, icma_matrix x, icma_conv_part w, icma_matrix y) {
    net->ops->gemm(net->ops->device, 1, x, false, parameter(net, w, 0), false, 0, y);
    net->ops->add_row(net->ops->device, parameter(net, w + 1, 0), y);
}

static void copy(icma_conv_net *net, icma_matrix from, icma_matrix to) {
    net->ops->fill(net->ops->device, 0, to);
    net->ops->axpy(net->ops->device, 1, from, to);
}

static void track(icma_conv_net *net, const layer *l, size_t rows) {
    const icma_ops *ops = net->ops;
    /* A single row has no unbiased variance. */
    float unbiased = rows > 1 ? (float)((double)rows / (double)(rows - 1)) : 1;
    for (size_t which = 0; which < 2; which++)
        ops->blend(ops->device, 1 - norm_momentum, norm_momentum * (which ? unbiased : 1), statistic(l, net->statistics, which),
                   statistic(l, net->state[ICMA_CONV_RUNNING], which));
}

static void normalise(icma_conv_net *net, const layer *l, size_t count, bool training) {
    const icma_ops *ops = net->ops;
    icma_matrix x = before_norm(l, count), y = after_norm(l, count);
    icma_matrix gamma = parameter(net, l->weight + 1, l->index), beta = parameter(net, l->weight + 2, l->index);
    icma_tensor *from = training ? net->statistics : net->state[ICMA_CONV_RUNNING];
    (training ? ops->batch_norm : ops->batch_norm_given)(ops->device, x, gamma, beta, norm_epsilon, l->activation, statistic(l, from, 0), statistic(l, from, 1), y);
    if (training)
        track(net, l, x.rows);
}

static icma_matrix run_layer(icma_conv_net *net, const layer *l, icma_matrix x, size_t count, bool training) {
    const icma_ops *ops = net->ops;
    icma_matrix w = parameter(net, l->weight, l->index);
    if (l->up)
        ops->conv_up_training(ops->device, conv_of(net, count), x, w, before_norm(l, count));
    else
        ops->conv_down(ops->device, conv_of(net, count), x, w, before_norm(l, count));
    normalise(net, l, count, training);
    return after_norm(l, count);
}

static void put_condition(icma_conv_net *net, const icma_conv_batch *b, icma_matrix in, size_t column) {
    if (net->shape.coordinates)
        copy(net, b->a, icma_matrix_block(in, 0, column, b->count, net->shape.coordinates));
}

static void encode(icma_conv_net *net, const icma_conv_batch *b, bool training) {
    const icma_conv_shape *s = &net->shape;
    size_t n = b->count;
    icma_matrix h = b->x, e = view(net, SLOT_E, n);
    for (size_t l = 0; l < s->layers; l++)
        h = run_layer(net, &net->layers[l], h, n, training);
    dense(net, reshape(h, n, flat_of(s)), ICMA_CONV_WE, icma_matrix_block(e, 0, 0, n, s->hidden));
    put_condition(net, b, e, s->hidden);
    dense(net, e, ICMA_CONV_WM, view(net, SLOT_MU, n));
    if (!s->autoencoder)
        dense(net, e, ICMA_CONV_WV, view(net, SLOT_LOGVAR, n));
}

static void sample(icma_conv_net *net, const icma_conv_batch *b) {
    const icma_ops *ops = net->ops;
    size_t n = b->count;
    icma_matrix z = icma_matrix_block(view(net, SLOT_Z, n), 0, 0, n, net->shape.latent), mu = view(net, SLOT_MU, n);
    if (net->shape.autoencoder) {
        copy(net, mu, z);
        ops->axpy(ops->device, b->latent_noise, b->noise, z);
    } else {
        ops->reparameterise(ops->device, mu, view(net, SLOT_LOGVAR, n), b->noise, z);
    }
    put_condition(net, b, view(net, SLOT_Z, n), net->shape.latent);
}

/* Zero beyond L in what is laid out as y. */
static void clear_padding(icma_conv_net *net, icma_matrix y, size_t count) {
    const icma_conv_shape *s = &net->shape;
    size_t outputs = output_channels(s);
    if (s->length > s->used)
        net->ops->fill(net->ops->device, 0, icma_matrix_block(reshape(y, count, s->length * outputs), 0, s->used * outputs, count, (s->length - s->used) * outputs));
}

/* The padding of y is cleared, as that of x is: so it adds nothing to a squared error, nor to its gradient. */
static void decode(icma_conv_net *net, const icma_conv_batch *b, bool training) {
    const icma_ops *ops = net->ops;
    const icma_conv_shape *s = &net->shape;
    size_t n = b->count;
    icma_matrix g0 = view(net, SLOT_G0, n);
    dense(net, view(net, SLOT_Z, n), ICMA_CONV_WD, g0);
    icma_matrix g = reshape(g0, n * start_of(s), s->channels[s->layers - 1]);
    for (size_t l = s->layers; l < 2 * s->layers; l++)
        g = run_layer(net, &net->layers[l], g, n, training);
    ops->conv(ops->device, conv_of(net, n), g, parameter(net, ICMA_CONV_FINAL_W, 0), parameter(net, ICMA_CONV_FINAL_B, 0), icma_conv_output(net, n));
    clear_padding(net, icma_conv_output(net, n), n);
}

void icma_conv_forward(icma_conv_net *net, const icma_conv_batch *b, bool training) {
    encode(net, b, training);
    sample(net, b);
    decode(net, b, training);
}

/* --- loss -------------------------------------------------------------------------------------------------------- */

/* A sequence in blocks of 2^N positions: sums of that many floats, added up in double, stay exact enough at any length. */
static icma_matrix blocks(const icma_conv_net *net, icma_matrix m, size_t count) {
    return reshape(m, count * start_of(&net->shape), block_of(&net->shape) * m.columns);
}

static void block_losses(icma_conv_net *net, const icma_conv_batch *b) {
    const icma_ops *ops = net->ops;
    size_t n = b->count;
    icma_matrix x = blocks(net, b->x, n), y = blocks(net, icma_conv_output(net, n), n), out = icma_matrix_of(net->slots[SLOT_BLOCK_LOSS], x.rows, 1);
    if (net->shape.variance)
        ops->gaussian_nll(ops->device, x, y, out);
    else
        ops->squared_error(ops->device, x, y, view(net, SLOT_ONES, 1), out);
}

static void measure(icma_conv_net *net, const icma_conv_batch *b) {
    size_t n = b->count;
    block_losses(net, b);
    if (!net->shape.autoencoder)
        net->ops->kl(net->ops->device, view(net, SLOT_MU, n), view(net, SLOT_LOGVAR, n), view(net, SLOT_KL, n));
}

/* In double, from single-precision sums over blocks. */
static double mean_of(const float *values, size_t n, size_t columns) {
    double sum = 0;
    for (size_t i = 0; i < n * columns; i++)
        sum += values[i];
    return sum / (double)n;
}

static double reconstruction_of(const icma_conv_net *net, const float *blocks, size_t n) {
    return mean_of(blocks, n, start_of(&net->shape)) / (double)net->shape.used;
}

icma_status icma_conv_loss(icma_conv_net *net, const icma_conv_batch *b, double *reconstruction, double *kl, icma_error *error) {
    const icma_ops *ops = net->ops;
    size_t n = b->count, blocks = n * slot_columns(net, SLOT_BLOCK_LOSS), columns = slot_columns(net, SLOT_KL);
    float *values = icma_alloc_array(blocks + n * columns, sizeof *values);
    *reconstruction = *kl = 0;
    if (!values)
        return no_memory(error);
    measure(net, b);
    icma_status status = ops->download(ops->device, net->slots[SLOT_BLOCK_LOSS], 0, values, blocks, error);
    if (!status)
        status = ops->download(ops->device, net->slots[SLOT_KL], 0, values + blocks, n * columns, error);
    if (!status) {
        *reconstruction = reconstruction_of(net, values, n);
        *kl = mean_of(values + blocks, n, columns);
    }
    icma_free(values);
    return status;
}

/* --- backward ---------------------------------------------------------------------------------------------------- */

/* Where the k-th gradient goes: never where the one before is. */
static icma_matrix gradient_slot(icma_conv_net *net, size_t k, size_t rows, size_t columns) {
    return icma_matrix_of(net->slots[k % 2 ? SLOT_GRADIENT_OTHER : SLOT_GRADIENT], rows, columns);
}

static void output_backward(icma_conv_net *net, const icma_conv_batch *b, icma_matrix dy) {
    const icma_ops *ops = net->ops;
    size_t n = b->count;
    icma_matrix x = blocks(net, b->x, n), y = blocks(net, icma_conv_output(net, n), n);
    float scale = (float)(1 / ((double)n * (double)net->shape.used));
    if (net->shape.variance) {
        ops->gaussian_nll_backward(ops->device, x, y, scale, blocks(net, dy, n));
        clear_padding(net, dy, n); /* where x, m and v are 0, the gradient by v is not */
    } else {
        ops->squared_error_backward(ops->device, x, y, view(net, SLOT_ONES, 1), scale, blocks(net, dy, n));
    }
}

/* Gradients of y = x W + b: of W and b (the next part) from dy, and dx = (beta dx +) dy W^T for the inputs that dx has columns for. */
static void dense_backward(icma_conv_net *net, icma_matrix x, icma_conv_part w, icma_matrix dy, float beta, icma_matrix dx) {
    const icma_ops *ops = net->ops;
    icma_matrix weights = parameter(net, w, 0);
    ops->gemm(ops->device, 1, x, true, dy, false, 0, gradient(net, w, 0));
    ops->sum_rows(ops->device, dy, gradient(net, w + 1, 0));
    ops->gemm(ops->device, 1, dy, false, icma_matrix_block(weights, 0, 0, dx.columns, weights.columns), true, beta, dx);
}

static icma_matrix turned(icma_conv_net *net, icma_matrix w, bool flip) {
    size_t width = net->shape.width;
    icma_matrix out = icma_matrix_of(net->slots[SLOT_TURNED], width * w.columns, w.rows / width);
    net->ops->turn_weights(net->ops->device, conv_of(net, 1), w, flip, out);
    return out;
}

/* From d, the gradient of a layer's output, which is overwritten, to those of its parameters and of its input (dx, unless its tensor is NULL). */
static void layer_backward(icma_conv_net *net, const layer *l, icma_matrix x, size_t count, icma_matrix d, icma_matrix dx) {
    const icma_ops *ops = net->ops;
    icma_conv shape = conv_of(net, count);
    icma_matrix w = parameter(net, l->weight, l->index);
    ops->batch_norm_backward(ops->device, before_norm(l, count), parameter(net, l->weight + 1, l->index), parameter(net, l->weight + 2, l->index), norm_epsilon,
                             l->activation, statistic(l, net->statistics, 0), statistic(l, net->statistics, 1), d, gradient(net, l->weight + 1, l->index),
                             gradient(net, l->weight + 2, l->index), d);
    ops->conv_weights(ops->device, shape, 2, l->up ? d : x, l->up ? x : d, l->up, net->slots[SLOT_SCRATCH], gradient(net, l->weight, l->index));
    if (dx.tensor && l->up)
        ops->conv_down(ops->device, shape, d, turned(net, w, false), dx);
    else if (dx.tensor)
        ops->conv_up_training(ops->device, shape, d, turned(net, w, false), dx);
}

/* The last convolution. Its bias's gradient sums over all positions: first over blocks, then within one, so that float suffices. */
static void final_backward(icma_conv_net *net, size_t n, icma_matrix dy, icma_matrix dg) {
    const icma_ops *ops = net->ops;
    const icma_conv_shape *s = &net->shape;
    icma_matrix g = after_norm(&net->layers[2 * s->layers - 1], n), none = {0}, sums = view(net, SLOT_SUMS, 1);
    ops->sum_rows(ops->device, blocks(net, dy, n), sums);
    ops->sum_rows(ops->device, reshape(sums, block_of(s), output_channels(s)), gradient(net, ICMA_CONV_FINAL_B, 0));
    ops->conv_weights(ops->device, conv_of(net, n), 1, g, dy, false, net->slots[SLOT_SCRATCH], gradient(net, ICMA_CONV_FINAL_W, 0));
    ops->conv(ops->device, conv_of(net, n), dy, turned(net, parameter(net, ICMA_CONV_FINAL_W, 0), true), none, dg);
}

/* From dy to the gradient of z. */
static void decode_backward(icma_conv_net *net, size_t n, icma_matrix dy) {
    const icma_conv_shape *s = &net->shape;
    icma_matrix d = gradient_slot(net, 1, n * s->length, s->channels[0]);
    final_backward(net, n, dy, d);
    for (size_t l = s->layers; l-- > 0;) {
        icma_matrix g0 = reshape(view(net, SLOT_G0, n), n * start_of(s), s->channels[s->layers - 1]);
        icma_matrix x = l ? after_norm(&net->layers[s->layers + l - 1], n) : g0, dx = gradient_slot(net, s->layers + 1 - l, x.rows, x.columns);
        layer_backward(net, &net->layers[s->layers + l], x, n, d, dx);
        d = dx;
    }
    dense_backward(net, view(net, SLOT_Z, n), ICMA_CONV_WD, reshape(d, n, flat_of(s)), 0, view(net, SLOT_D_Z, n));
}

/* From the gradients of mu and log-variance. */
static void encode_backward(icma_conv_net *net, const icma_conv_batch *b) {
    const icma_conv_shape *s = &net->shape;
    size_t n = b->count;
    icma_matrix e = view(net, SLOT_E, n), de = view(net, SLOT_D_E, n), h = after_norm(&net->layers[s->layers - 1], n), none = {0};
    dense_backward(net, e, ICMA_CONV_WM, view(net, SLOT_D_MU, n), 0, de);
    if (!s->autoencoder)
        dense_backward(net, e, ICMA_CONV_WV, view(net, SLOT_D_LOGVAR, n), 1, de);
    icma_matrix d = gradient_slot(net, s->layers + 2, h.rows, h.columns);
    dense_backward(net, reshape(h, n, flat_of(s)), ICMA_CONV_WE, de, 0, reshape(d, n, flat_of(s)));
    for (size_t l = s->layers; l-- > 0;) {
        icma_matrix x = l ? after_norm(&net->layers[l - 1], n) : b->x, dx = l ? gradient_slot(net, 2 * s->layers + 2 - l, x.rows, x.columns) : none;
        layer_backward(net, &net->layers[l], x, n, d, dx);
        d = dx;
    }
}

void icma_conv_backward(icma_conv_net *net, const icma_conv_batch *b) {
    const icma_ops *ops = net->ops;
    const icma_conv_shape *s = &net->shape;
    size_t n = b->count;
    icma_matrix dy = gradient_slot(net, 0, n * s->length, output_channels(s)), dz = view(net, SLOT_D_Z, n);
    output_backward(net, b, dy);
    decode_backward(net, n, dy);
    if (s->autoencoder)
        copy(net, dz, view(net, SLOT_D_MU, n));
    else
        ops->latent_backward(ops->device, view(net, SLOT_MU, n), view(net, SLOT_LOGVAR, n), b->noise, dz, b->kl_weight / (float)n, view(net, SLOT_D_MU, n),
                             view(net, SLOT_D_LOGVAR, n));
    encode_backward(net, b);
}

/* --- a step ------------------------------------------------------------------------------------------------------ */

static void run_step(icma_conv_net *net, const icma_conv_batch *b) {
    icma_conv_forward(net, b, true);
    measure(net, b);
    icma_conv_backward(net, b);
}

/* A device that cannot, for want of memory say, runs every step as it comes. */
static void record_step(icma_conv_net *net, const icma_conv_batch *b) {
    const icma_ops *ops = net->ops;
    if (ops->record(ops->device, NULL))
        return;
    run_step(net, b);
    if (ops->recorded(ops->device, &net->recording, NULL))
        net->recording = NULL;
}

/* A row that lies in one piece, copied as it is. */
static void copy_row(icma_conv_net *net, int from, size_t count, size_t place) {
    icma_matrix to = {net->kept, place, 1, count, count};
    if (count)
        net->ops->gather_rows(net->ops->device, icma_matrix_of(net->slots[from], 1, count), net->zero, 0, to);
}

static icma_status keep_losses(icma_conv_net *net, size_t n, double losses[2], icma_error *error) {
    size_t blocks = slot_columns(net, SLOT_BLOCK_LOSS), row = net->kept_rows * kept_columns(net);
    copy_row(net, SLOT_BLOCK_LOSS, n * blocks, row);
    copy_row(net, SLOT_KL, n * slot_columns(net, SLOT_KL), row + net->batch * blocks);
    net->kept_counts[net->kept_rows++] = n;
    return net->kept_rows == net->most_rows ? icma_conv_collect(net, losses, error) : ICMA_OK;
}

icma_status icma_conv_collect(icma_conv_net *net, double losses[2], icma_error *error) {
    size_t columns = kept_columns(net), rows = net->kept_rows;
    if (rows == 0)
        return ICMA_OK;
    float *values = icma_alloc_array(rows * columns, sizeof *values);
    icma_status status = values ? net->ops->download(net->ops->device, net->kept, 0, values, rows * columns, error) : no_memory(error);
    for (size_t i = 0; !status && i < rows; i++) {
        const float *blocks = values + i * columns, *kl = blocks + net->batch * slot_columns(net, SLOT_BLOCK_LOSS);
        size_t n = net->kept_counts[i];
        losses[0] += reconstruction_of(net, blocks, n) * (double)n;
        losses[1] += mean_of(kl, n, slot_columns(net, SLOT_KL)) * (double)n;
    }
    net->kept_rows = 0;
    icma_free(values);
    return status;
}

icma_status icma_conv_step(icma_conv_net *net, const icma_conv_batch *b, double losses[2], icma_error *error) {
    const icma_ops *ops = net->ops;
    bool full = b->count == net->batch && ops->record;
    icma_status status = ICMA_OK;
    /* Not the first: what a device sets up when it meets an op would get into the recording. */
    if (full && net->full_steps++ == 1)
        record_step(net, b);
    if (full && net->recording)
        status = ops->replay(ops->device, net->recording, error);
    else
        run_step(net, b);
    return status ? status : keep_losses(net, b->count, losses, error);
}

void icma_conv_adam(icma_conv_net *net, icma_adam options) {
    size_t count = icma_conv_parameters(&net->shape);
    icma_matrix all[ICMA_CONV_STATES];
    for (int i = 0; i < ICMA_CONV_STATES; i++)
        all[i] = icma_matrix_of(net->state[i], 1, count);
    net->ops->adam(net->ops->device, options, all[ICMA_CONV_GRADIENTS], all[ICMA_CONV_MOMENT1], all[ICMA_CONV_MOMENT2], all[ICMA_CONV_PARAMETERS]);
}

/* --- the decoder of an archive ----------------------------------------------------------------------------------- */

/* What a fold reads: parameters and running statistics, in host memory. */
typedef struct numbers {
    float *parameters, *running;
} numbers;

static icma_status fetch(icma_conv_net *net, icma_conv_state which, float **out, icma_error *error) {
    size_t count;
    icma_tensor *from = icma_conv_net_state(net, which, &count);
    *out = icma_alloc_array(count, sizeof **out);
    if (!*out)
        return no_memory(error);
    return net->ops->download(net->ops->device, from, 0, *out, count, error);
}

static void copy_part(const icma_conv_shape *s, const float *parameters, icma_conv_part part, size_t l, float *to) {
    size_t offset, rows, columns;
    icma_conv_part_place(s, part, l, &offset, &rows, &columns);
    for (size_t i = 0; i < rows * columns; i++)
        to[i] = parameters[offset + i];
}

/* A norm's scale and offset go into the weights and biases in front of it. */
static void fold_layer(const icma_conv_shape *s, const layer *l, const numbers *from, float *weight, float *bias) {
    size_t offset, gamma, beta, one, rows, columns;
    icma_conv_part_place(s, l->weight + 1, l->index, &gamma, &one, &columns);
    icma_conv_part_place(s, l->weight + 2, l->index, &beta, &one, &columns);
    icma_conv_part_place(s, l->weight, l->index, &offset, &rows, &columns);
    for (size_t o = 0; o < columns; o++) {
        double mean = from->running[l->statistics + o], variance = from->running[l->statistics + columns + o];
        double scale = from->parameters[gamma + o] / sqrt(variance + norm_epsilon);
        bias[o] = (float)(from->parameters[beta + o] - mean * scale);
        for (size_t i = 0; i < rows; i++)
            weight[i * columns + o] = (float)(from->parameters[offset + i * columns + o] * scale);
    }
}

static icma_status fold(const icma_conv_net *net, const numbers *from, icma_conv_decoder *out, icma_error *error) {
    const icma_conv_shape *s = &net->shape;
    *out = (icma_conv_decoder){.inputs = s->latent + s->coordinates, .start = start_of(s), .layers = s->layers, .width = s->width, .outputs = output_channels(s)};
    for (size_t l = 0; l <= s->layers; l++)
        out->channels[l] = l ? decoder_outputs(s, l - 1) : s->channels[s->layers - 1];
    icma_status status = icma_conv_decoder_allocate(out, error);
    if (status)
        return status;
    copy_part(s, from->parameters, ICMA_CONV_WD, 0, out->weight[0]);
    copy_part(s, from->parameters, ICMA_CONV_BD, 0, out->bias[0]);
    for (size_t l = 0; l < s->layers; l++)
        fold_layer(s, &net->layers[s->layers + l], from, out->weight[l + 1], out->bias[l + 1]);
    copy_part(s, from->parameters, ICMA_CONV_FINAL_W, 0, out->weight[s->layers + 1]);
    copy_part(s, from->parameters, ICMA_CONV_FINAL_B, 0, out->bias[s->layers + 1]);
    return ICMA_OK;
}

icma_status icma_conv_fold(icma_conv_net *net, icma_conv_decoder *out, icma_error *error) {
    numbers from = {0};
    *out = (icma_conv_decoder){0};
    icma_status status = fetch(net, ICMA_CONV_PARAMETERS, &from.parameters, error);
    if (!status)
        status = fetch(net, ICMA_CONV_RUNNING, &from.running, error);
    if (!status)
        status = fold(net, &from, out, error);
    icma_free(from.parameters);
    icma_free(from.running);
    return status;
}
