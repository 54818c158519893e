/* SPDX-License-Identifier: Apache-2.0 */
/* What every table needs of its views and elements. */
#include "ops.h"

icma_matrix icma_matrix_of(icma_tensor *tensor, size_t rows, size_t columns) {
    return (icma_matrix){tensor, 0, rows, columns, columns};
}

icma_matrix icma_matrix_block(icma_matrix of, size_t row, size_t column, size_t rows, size_t columns) {
    return (icma_matrix){of.tensor, of.offset + row * of.stride + column, rows, columns, of.stride};
}

size_t icma_element_size(icma_element element) {
    static const size_t sizes[] = {[ICMA_ELEMENT_F32] = 4, [ICMA_ELEMENT_I16] = 2, [ICMA_ELEMENT_U32] = 4, [ICMA_ELEMENT_U8] = 1, [ICMA_ELEMENT_F64] = 8};
    return sizes[element];
}
