/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fast table on the CPU: the reference, with the entries that matter overwritten.
 *
 * OpenBLAS runs on one thread; our threads go over fixed tiles of the output, so that results do not depend on
 * how many there are.
 */
#include "ops_host.h"

#include <cblas.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

static atomic_int thread_count;

void icma_set_threads(int threads) {
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    thread_count = threads > 0 ? threads : processors > 0 ? (int)processors : 1;
}

int icma_threads(void) {
    if (thread_count == 0)
        icma_set_threads(0);
    return thread_count;
}

/* Below this many multiply-adds a product is not worth waking threads for. */
enum { SMALL_PRODUCT = 1 << 20, GEMM_TILE = 256, GRAM_TILE = 64 };

static void gemm_tile(float alpha, icma_matrix a, bool transpose_a, icma_matrix b, bool transpose_b, float beta, icma_matrix c,
                      size_t row, size_t column) {
    size_t rows = c.rows - row < GEMM_TILE ? c.rows - row : GEMM_TILE;
    size_t columns = c.columns - column < GEMM_TILE ? c.columns - column : GEMM_TILE;
    size_t inner = transpose_a ? a.rows : a.columns;
    const float *from_a = transpose_a ? icma_row(a, 0) + row : icma_row(a, row);
    const float *from_b = transpose_b ? icma_row(b, column) : icma_row(b, 0) + column;
    cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans, (int)rows,
                (int)columns, (int)inner, alpha, from_a, (int)a.stride, from_b, (int)b.stride, beta,
                icma_row(c, row) + column, (int)c.stride);
}

static void cpu_gemm(void *device, float alpha, icma_matrix a, bool transpose_a, icma_matrix b, bool transpose_b, float beta,
                     icma_matrix c) {
    size_t inner = transpose_a ? a.rows : a.columns;
    if (c.rows == 0 || c.columns == 0)
        return;
    if (inner == 0) {
        icma_ops_reference()->gemm(device, alpha, a, transpose_a, b, transpose_b, beta, c);
        return;
    }
    size_t tile_rows = (c.rows + GEMM_TILE - 1) / GEMM_TILE, tile_columns = (c.columns + GEMM_TILE - 1) / GEMM_TILE;
    size_t tiles = tile_rows * tile_columns;
    bool small = c.rows * c.columns * inner < SMALL_PRODUCT || tiles == 1;
#pragma omp parallel for schedule(dynamic) num_threads(icma_threads()) if (!small)
    for (size_t t = 0; t < tiles; t++)
        gemm_tile(alpha, a, transpose_a, b, transpose_b, beta, c, t / tile_columns * GEMM_TILE, t % tile_columns * GEMM_TILE);
}

/* Tile t of the lower triangle of tiles, counted row by row, is (row, column) with column <= row. */
static void triangle_tile(size_t t, size_t *row, size_t *column) {
    size_t r = 0;
    while (t > r) {
        t -= r + 1;
        r++;
    }
    *row = r;
    *column = t;
}

static void gram_tile(icma_matrix a, double factor, icma_matrix c, size_t row, size_t column) {
    float product[GRAM_TILE * GRAM_TILE];
    size_t rows = a.rows - row < GRAM_TILE ? a.rows - row : GRAM_TILE;
    size_t columns = a.rows - column < GRAM_TILE ? a.rows - column : GRAM_TILE;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)columns, (int)a.columns, 1, icma_row(a, row),
                (int)a.stride, icma_row(a, column), (int)a.stride, 0, product, GRAM_TILE);
    /* Of a tile on the diagonal one half is enough; the product's two halves may differ in their last bits. */
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < (row == column ? i + 1 : columns); j++)
            icma_row_f64(c, column + j)[row + i] = icma_row_f64(c, row + i)[column + j] += factor * (double)product[i * GRAM_TILE + j];
}

static void cpu_gram(void *device, icma_matrix a, double factor, icma_matrix c) {
    (void)device;
    assert(c.rows == a.rows && c.columns == a.rows);
    if (a.columns == 0)
        return;
    size_t side = (a.rows + GRAM_TILE - 1) / GRAM_TILE;
    size_t tiles = side * (side + 1) / 2;
#pragma omp parallel for schedule(dynamic) num_threads(icma_threads()) if (a.rows * a.rows * a.columns >= SMALL_PRODUCT)
    for (size_t t = 0; t < tiles; t++) {
        size_t row, column;
        triangle_tile(t, &row, &column);
        gram_tile(a, factor, c, row * GRAM_TILE, column * GRAM_TILE);
    }
}

static icma_kernels kernels;

static void cpu_linear(void *device, icma_matrix x, icma_matrix w, icma_matrix bias, icma_matrix y) {
    (void)device;
    assert(x.columns == w.rows && w.columns == y.columns && x.rows == y.rows);
    for (size_t i = 0; i < y.rows; i++) {
        if (bias.tensor)
            memcpy(icma_row(y, i), icma_row(bias, 0), y.columns * sizeof(float));
        if (w.rows)
            kernels.linear(icma_row(x, i), w.rows, icma_row(w, 0), w.stride, y.columns, icma_row(y, i));
    }
}

/* Scaled coefficients live on the stack; a basis with more rows than this goes through the reference. */
enum { BASIS_ROWS = 4096 };

static void cpu_basis(void *device, icma_matrix q, icma_matrix step, icma_matrix head, float scale, icma_matrix y) {
    assert(q.columns == head.rows && q.rows == y.rows && head.columns == y.columns);
    if (head.rows > BASIS_ROWS || head.rows == 0) {
        icma_ops_reference()->basis(device, q, step, head, scale, y);
        return;
    }
    size_t blocks = (y.columns + ICMA_BASIS_BLOCK - 1) / ICMA_BASIS_BLOCK;
    bool small = y.rows * y.columns * head.rows < SMALL_PRODUCT;
#pragma omp parallel for schedule(static) num_threads(icma_threads()) if (!small)
    for (size_t b = 0; b < blocks; b++) {
        size_t first = b * ICMA_BASIS_BLOCK;
        size_t count = y.columns - first < ICMA_BASIS_BLOCK ? y.columns - first : ICMA_BASIS_BLOCK;
        float a[BASIS_ROWS];
        for (size_t i = 0; i < y.rows; i++) {
            for (size_t k = 0; k < head.rows; k++)
                a[k] = icma_row(q, i)[k] * icma_row(step, 0)[k];
            kernels.basis(a, head.rows, icma_row_i16(head, 0) + first, head.stride, count, scale, icma_row(y, i) + first);
        }
    }
}

static void cpu_dequantise(void *device, icma_matrix integers, float step, icma_matrix y) {
    (void)device;
    assert(integers.rows == y.rows && integers.columns == y.columns);
    for (size_t i = 0; i < y.rows; i++)
        kernels.dequantise(icma_row_i16(integers, i), y.columns, step, icma_row(y, i));
}

bool icma_ops_on_host(const icma_ops *ops) {
    return ops == icma_ops_cpu() || ops == icma_ops_reference();
}

static icma_ops cpu_table;

static void fill_table(void) {
    openblas_set_num_threads(1);
    kernels = icma_kernels_best();
    cpu_table = *icma_ops_reference();
    cpu_table.name = "cpu";
    cpu_table.gemm = cpu_gemm;
    cpu_table.gram = cpu_gram;
    cpu_table.linear = cpu_linear;
    cpu_table.basis = cpu_basis;
    cpu_table.dequantise = cpu_dequantise;
    icma_conv_ops(&cpu_table, kernels.conv);
    icma_decode_ops(&cpu_table, kernels);
    icma_text_ops(&cpu_table);
}

/* Different archives may be opened by different threads, each the first. */
const icma_ops *icma_ops_cpu(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill_table);
    return &cpu_table;
}
