/* SPDX-License-Identifier: Apache-2.0 */
/* The adapters of a group as a convolutional network sees them: modelled tensors end to end, each divided by its rms. */
#ifndef ICMA_CONV_DATA_H
#define ICMA_CONV_DATA_H

#include "dataset.h"

typedef struct icma_conv_data {
    icma_group *group;
    const icma_generator *generator; /* treatments and scales */
    size_t used;   /* L */
    float *all;    /* sources x used, while they fit a budget of 2 GiB; else NULL, and files are read again and again; owned */
    float *tile;   /* a tensor of a batch; owned */
    size_t batch;
} icma_conv_data;

/* `group` and `generator` must outlive it; `batch` is the most rows that are asked for at once. */
icma_status icma_conv_data_open(icma_group *group, const icma_generator *generator, size_t batch, icma_conv_data *out, icma_error *error);
/* x[i * stride ..] = source rows[i], `used` numbers. A tensor that a source keeps verbatim is zeros. */
icma_status icma_conv_data_load(icma_conv_data *data, const uint32_t *rows, size_t count, size_t stride, float *x, icma_error *error);
void icma_conv_data_close(icma_conv_data *data); /* leaves it zeroed */

#endif
