/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The convolutional decoder of an archive (spec 4.15): from an input [z; a] to standardised weights, exactly.
 *
 *   g_0 = input Wd + bd, `start` positions of channels[0];   g_l = elu(conv_up(g_(l-1)) + b_l), channels[l], l = 1 .. N;   y = conv(g_N) + b, of 1 channel, or 2: mean and log-variance
 */
#ifndef ICMA_CONV_DECODER_H
#define ICMA_CONV_DECODER_H

#include "bytes.h"
#include "ops.h"

enum {
    ICMA_CONV_MOST_INPUTS = 2048,
    ICMA_CONV_MOST_LAYERS = 16,
    ICMA_CONV_MOST_WIDTH = 31,
    ICMA_CONV_MOST_CHANNELS = 1024,
    ICMA_CONV_MOST_PARAMETERS = 1 << 28,
    ICMA_CONV_PARAMETERS_A_BYTE = 1024, /* of a payload, at most: a stream holds more zeros in a byte, but no reader shall make room for them */
};

/* How the weights of a layer are stored. */
typedef enum icma_conv_coding {
    ICMA_CONV_F32 = 0,
    ICMA_CONV_BF16 = 1,
    ICMA_CONV_QUANTISED = 2, /* weights and biases as integers by steps, entropy-coded */
} icma_conv_coding;

/* Weights of every layer: 0 is the linear one, 1 .. N the transposed convolutions, N + 1 the last convolution. */
typedef struct icma_conv_decoder {
    size_t inputs;   /* numbers of z and a; 0 is fine: g_0 is then bd */
    size_t start;    /* positions of g_0 */
    size_t layers;   /* N, at least 1 */
    size_t width;    /* taps, odd */
    size_t channels[ICMA_CONV_MOST_LAYERS + 1];
    size_t outputs;  /* 1 or 2 */
    float *weight[ICMA_CONV_MOST_LAYERS + 2]; /* rows x columns of icma_conv_layer_shape; owned */
    float *bias[ICMA_CONV_MOST_LAYERS + 2];   /* columns; owned */
} icma_conv_decoder;

/* Layer 0: inputs x (start * channels[0]), position after position; l = 1 .. N: (width * channels[l - 1]) x channels[l]; N + 1: (width * channels[N]) x outputs. SIZE_MAX on overflow. */
void icma_conv_layer_shape(const icma_conv_decoder *decoder, size_t layer, size_t *rows, size_t *columns);
/* Allocates weights and biases (zeroed) for the sizes set. On failure everything is freed. */
icma_status icma_conv_decoder_allocate(icma_conv_decoder *decoder, icma_error *error);
void icma_conv_decoder_free(icma_conv_decoder *decoder); /* leaves it zeroed */
/* start * 2^layers: positions of the output. SIZE_MAX on overflow. */
size_t icma_conv_decoder_length(const icma_conv_decoder *decoder);
/* Weights and biases of all layers; SIZE_MAX on overflow. */
size_t icma_conv_decoder_parameters(const icma_conv_decoder *decoder);
/* Multiply-adds of one evaluation; saturates. */
uint64_t icma_conv_decoder_work(const icma_conv_decoder *decoder);

/*
 * The decoder's part of a GENERATOR payload. Writing rounds the numbers in place to what a reader will have.
 *
 * `noise`, with ICMA_CONV_QUANTISED, above 0: what rounding adds to the output, as a share of the output's root mean square, about. Steps are chosen so that every weight adds the same (reverse
 * water-filling), by how often it is used, what it is multiplied by and how far what it changes reaches; all of that is estimated from the weights, for inputs of unit variance. A decoder of nearly
 * nothing but zeros is stored as ICMA_CONV_BF16 instead, because of ICMA_CONV_PARAMETERS_A_BYTE.
 */
icma_status icma_conv_decoder_write(icma_conv_decoder *decoder, icma_conv_coding coding, double noise, icma_buffer *out, icma_error *error);
/* Reads from the cursor as far as the decoder goes. Everything is checked: sizes, limits, finite and normal-or-zero numbers; what sizes imply is allocated only as far as the payload has bytes for it. */
icma_status icma_conv_decoder_read(icma_cursor *from, icma_conv_decoder *out, icma_error *error);

/* The decoder on a device. */
typedef struct icma_conv_engine icma_conv_engine;
icma_status icma_conv_engine_create(const icma_conv_decoder *decoder, const icma_ops *ops, icma_conv_engine **out, icma_error *error);
void icma_conv_engine_free(icma_conv_engine *engine); /* NULL is fine */
/* Runs it on `inputs` numbers; *y is the output's first channel, the mean, length x 1, on the device, until the next run. */
icma_status icma_conv_engine_run(icma_conv_engine *engine, const float *input, icma_matrix *y, icma_error *error);
/* After a run of a decoder of two outputs: *v is the second, the log-variance, likewise. */
icma_status icma_conv_engine_variance(icma_conv_engine *engine, icma_matrix *v, icma_error *error);

#endif
