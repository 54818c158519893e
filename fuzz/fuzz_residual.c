/* SPDX-License-Identifier: Apache-2.0 */
/* A residual's block; the first byte's lowest bit: weights have classes. What is read is written and read to the same. */
#include "fuzz_shape.h"
#include "fuzz_target.h"
#include "residual.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const icma_safetensors *signature = fuzz_signature();
    const icma_generator *generator = fuzz_generator(false);
    static uint8_t kinds[64];
    icma_residual seen, again;
    icma_buffer out = {0};
    icma_error error = {0};
    const uint8_t *classes = fuzz_take(&data, &size) & 1 ? kinds : NULL;
    for (size_t i = 0; i < sizeof kinds; i++)
        kinds[i] = (uint8_t)(20 + i / 9);
    icma_status status = icma_residual_read(data, size, signature, generator, classes, &seen, &error);
    EXPECT(status == error.status && (status == ICMA_OK || fuzz_is_refusal(status)));
    if (status != ICMA_OK) {
        EXPECT(!seen.list && !seen.integers && !seen.runs);
        return 0;
    }
    for (size_t i = 0; i < seen.count; i++)
        EXPECT(icma_generator_is_modelled(generator, seen.list[i].tensor) && seen.list[i].first <= seen.total);
    EXPECT(icma_residual_write(&seen, signature, generator, classes, &out, NULL) == ICMA_OK);
    EXPECT(icma_residual_read(out.data, out.size, signature, generator, classes, &again, NULL) == ICMA_OK);
    EXPECT(again.total == seen.total && again.count == seen.count);
    EXPECT(seen.total == 0 || memcmp(seen.integers, again.integers, seen.total * sizeof *seen.integers) == 0);
    icma_residual_free(&again);
    icma_residual_free(&seen);
    icma_buffer_free(&out);
    return 0;
}
