/* SPDX-License-Identifier: Apache-2.0 */
/* A head's payload; the first byte tells of which tensors. */
#include "fuzz_shape.h"
#include "fuzz_target.h"
#include "head.h"
#include "memory.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const icma_safetensors *signature = fuzz_signature();
    const icma_generator *generator = fuzz_generator(true);
    uint8_t which = fuzz_take(&data, &size);
    size_t first = which % 5, count = 1 + which / 5 % (5 - first);
    int16_t *integers;
    int32_t sum = 0;
    icma_error error = {0};
    icma_status status = fuzz_read_head(data, size, first, count, &integers, &error);
    EXPECT(status == error.status && (status == ICMA_OK || fuzz_is_refusal(status)));
    EXPECT((status == ICMA_OK) == (integers != NULL));
    for (size_t i = 0; integers && i < icma_head_integers(signature, generator, first, count); i++)
        sum += integers[i]; /* all of them were written */
    if (sum == 1)
        integers[0] = 0;
    icma_free(integers);
    return 0;
}
