/* SPDX-License-Identifier: Apache-2.0 */
/* Products of training that cuBLAS does, for convolution.cu. */
#ifndef ICMA_PRODUCTS_CUH
#define ICMA_PRODUCTS_CUH

#include "context.cuh"

/*
 * `positions` rows of y, each the product of a window of x and w: y[m * y_step + o] = sum over k of x[m *
 * x_step + k] w[k * w_row + o], k = 0 .. inner - 1. Windows may overlap (inner > x_step): every `residues`-th
 * position makes a matrix without overlaps, and those go to cuBLAS as one batch. Only the first positions /
 * residues * residues of them are made.
 */
typedef struct icma_window_product {
    const float *x, *w;
    float *y;
    size_t positions, inner, outputs, x_step, w_row, y_step;
} icma_window_product;

size_t icma_window_residues(size_t inner, size_t x_step);
void icma_product_windows(icma_context *c, const icma_window_product *product);
/* Whether such a product is worth cuBLAS in the precision that was asked for. */
bool icma_product_pays(const icma_context *c, size_t positions, size_t inner, size_t outputs);

#endif
