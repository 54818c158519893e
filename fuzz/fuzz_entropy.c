/* SPDX-License-Identifier: Apache-2.0 */
/* The entropy decoder: a byte tells how many runs, three each their context and count; then comes the stream. What decodes is coded again and
 * decoded to the same. */
#include "fuzz_shape.h"
#include "fuzz_target.h"
#include "memory.h"
#include "rans.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    icma_rans_run runs[16];
    icma_buffer again = {0};
    icma_error error = {0};
    size_t count = fuzz_take(&data, &size) % 17, total = 0;
    for (size_t i = 0; i < count; i++) {
        runs[i].context = fuzz_take(&data, &size);
        runs[i].count = fuzz_take(&data, &size);
        runs[i].count |= (size_t)(fuzz_take(&data, &size) & 15) << 8;
        total += runs[i].count;
    }
    int32_t *symbols = malloc((total + 1) * sizeof *symbols), *twice = malloc((total + 1) * sizeof *twice);
    EXPECT(symbols && twice);
    icma_status status = icma_rans_decode(data, size, runs, count, symbols, &error);
    EXPECT(status == error.status && (status == ICMA_OK || status == ICMA_E_CORRUPT));
    if (status == ICMA_OK) {
        EXPECT(icma_rans_encode(symbols, runs, count, &again, NULL) == ICMA_OK);
        EXPECT(icma_rans_decode(again.data, again.size, runs, count, twice, NULL) == ICMA_OK);
        EXPECT(total == 0 || memcmp(symbols, twice, total * sizeof *symbols) == 0);
    }
    icma_buffer_free(&again);
    free(symbols);
    free(twice);
    return 0;
}
