/* SPDX-License-Identifier: Apache-2.0 */
/* A condition vector's file, which is also read as vectors of samples. */
#include "bundle_walk.h"
#include "fuzz_shape.h"
#include "fuzz_target.h"
#include "memory.h"
#include "npy.h"

#include <math.h>

static void read_matrix(const char *path, icma_status as_vector) {
    float *values;
    size_t rows, columns;
    icma_error error = {0};
    icma_status status = icma_npy_read_matrix(path, 1000, &values, &rows, &columns, &error);
    EXPECT(status == error.status && (status == ICMA_OK || status == ICMA_E_FORMAT || fuzz_is_refusal(status)));
    EXPECT((status == ICMA_OK) == (values != NULL) && rows * columns <= 1000);
    EXPECT(as_vector != ICMA_OK || (status == ICMA_OK && rows == 1)); /* one dimension is one row */
    for (size_t i = 0; values && i < rows * columns; i++)
        EXPECT(isfinite(values[i]));
    icma_free(values);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    float *values;
    size_t count;
    icma_error error = {0};
    const char *path = fuzz_put_in_file(data, size);
    icma_status status = icma_npy_read_vector(path, 1000, &values, &count, &error);
    EXPECT(status == error.status && (status == ICMA_OK || status == ICMA_E_FORMAT || fuzz_is_refusal(status)));
    EXPECT((status == ICMA_OK) == (values != NULL) && count <= 1000);
    for (size_t i = 0; values && i < count; i++)
        EXPECT(isfinite(values[i]));
    icma_free(values);
    read_matrix(path, status);
    return 0;
}
