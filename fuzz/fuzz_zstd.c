/* SPDX-License-Identifier: Apache-2.0 */
/* A zstd frame of a section; the first two bytes tell its raw size. The frame of what comes out decodes to it. */
#include "compress.h"
#include "fuzz_shape.h"
#include "fuzz_target.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t raw = fuzz_take(&data, &size);
    raw = 1 + (raw | (size_t)fuzz_take(&data, &size) << 8);
    uint8_t *out = malloc(raw), *again = malloc(raw);
    icma_buffer packed = {0};
    icma_error error = {0};
    EXPECT(out && again);
    icma_status status = icma_zstd_decompress(data, size, out, raw, &error);
    EXPECT(status == error.status && (status == ICMA_OK || status == ICMA_E_CORRUPT));
    if (status == ICMA_OK) {
        EXPECT(icma_zstd_compress(out, raw, 3, &packed, NULL) == ICMA_OK);
        EXPECT(icma_zstd_decompress(packed.data, packed.size, again, raw, NULL) == ICMA_OK);
        EXPECT(memcmp(out, again, raw) == 0);
    }
    icma_buffer_free(&packed);
    free(out);
    free(again);
    return 0;
}
