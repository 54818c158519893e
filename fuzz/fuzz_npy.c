/* SPDX-License-Identifier: Apache-2.0 */
/* A condition vector's file. */
#include "bundle_walk.h"
#include "fuzz_shape.h"
#include "fuzz_target.h"
#include "memory.h"
#include "npy.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    float *values;
    size_t count;
    icma_error error = {0};
    icma_status status = icma_npy_read_vector(fuzz_put_in_file(data, size), 1000, &values, &count, &error);
    EXPECT(status == error.status && (status == ICMA_OK || status == ICMA_E_FORMAT || fuzz_is_refusal(status)));
    EXPECT((status == ICMA_OK) == (values != NULL) && count <= 1000);
    for (size_t i = 0; values && i < count; i++)
        EXPECT(isfinite(values[i]));
    icma_free(values);
    return 0;
}
