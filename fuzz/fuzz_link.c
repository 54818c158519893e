/* SPDX-License-Identifier: Apache-2.0 */
/* A lossless link; the first byte tells how many taps. What it decodes to is coded again and decodes to the same bits. */
#include "fuzz_shape.h"
#include "fuzz_target.h"
#include "lossless.h"

#include <string.h>

enum { BYTES = 170, TAPS = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const icma_safetensors *signature = fuzz_signature();
    static uint8_t taps[TAPS][BYTES];
    const uint8_t *places[TAPS] = {taps[0], taps[1], taps[2], taps[3]};
    uint8_t decoded[BYTES] = {0}, again[BYTES] = {0};
    bool coded[8];
    uint32_t state = 1;
    icma_error error = {0};
    icma_buffer out = {0};
    for (size_t i = 0; i < BYTES; i++) /* neighbours differ in a few bits, as checkpoints do */
        for (size_t k = 0; k < TAPS; k++)
            taps[k][i] = k ? taps[k - 1][i] ^ (uint8_t)(fuzz_noise(&state) % 7 == 0) : (uint8_t)fuzz_noise(&state);
    EXPECT(signature->data_size == BYTES);
    icma_mark_linked(signature, coded);
    icma_lossless_link link = {signature, coded, places, fuzz_take(&data, &size) % (TAPS + 1)};
    icma_status status = icma_lossless_decode(&link, data, size, decoded, &error);
    EXPECT(status == error.status && (status == ICMA_OK || fuzz_is_refusal(status)));
    if (status == ICMA_OK) {
        EXPECT(icma_lossless_encode(&link, decoded, &out, NULL) == ICMA_OK);
        EXPECT(icma_lossless_decode(&link, out.data, out.size, again, NULL) == ICMA_OK);
        EXPECT(memcmp(decoded, again, BYTES) == 0);
    }
    icma_buffer_free(&out);
    return 0;
}
