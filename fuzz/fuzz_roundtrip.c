/* SPDX-License-Identifier: Apache-2.0 */
/* Any data as an adapter's tensors: through a lossless link, through the entropy coder, through a head and a residual, and back. */
#include "compress.h"
#include "fuzz_shape.h"
#include "fuzz_target.h"
#include "head.h"
#include "lossless.h"
#include "memory.h"
#include "rans.h"
#include "residual.h"

#include <math.h>
#include <string.h>

enum { BYTES = 170 };

static void through_link(const uint8_t *original, const uint8_t *tap, size_t taps) {
    const uint8_t *places[] = {tap, original};
    uint8_t decoded[BYTES];
    bool coded[8];
    icma_buffer out = {0};
    icma_mark_linked(fuzz_signature(), coded);
    icma_lossless_link link = {fuzz_signature(), coded, places, taps};
    EXPECT(icma_lossless_encode(&link, original, &out, NULL) == ICMA_OK);
    memcpy(decoded, original, BYTES);
    memset(decoded, 0, 146); /* the coded tensors; integers are left alone */
    EXPECT(icma_lossless_decode(&link, out.data, out.size, decoded, NULL) == ICMA_OK);
    EXPECT(memcmp(decoded, original, BYTES) == 0);
    icma_buffer_free(&out);
}

static void through_coder(const uint8_t *data, unsigned context) {
    int32_t symbols[BYTES / 4], decoded[BYTES / 4];
    icma_rans_run run = {BYTES / 4, context % icma_rans_contexts()};
    icma_buffer out = {0};
    memcpy(symbols, data, sizeof symbols);
    EXPECT(icma_rans_encode(symbols, &run, 1, &out, NULL) == ICMA_OK);
    EXPECT(icma_rans_decode(out.data, out.size, &run, 1, decoded, NULL) == ICMA_OK);
    EXPECT(memcmp(symbols, decoded, sizeof symbols) == 0);
    icma_buffer_free(&out);
}

/* What is read is near what was written: the trellis trades bits against errors, but never more than some steps. */
static void through_head(const uint8_t *data) {
    float values[3 * 18], step[3] = {0.5f, 1, 2};
    icma_head_chunk chunk = {0};
    icma_buffer out = {0};
    int16_t *integers;
    for (size_t i = 0; i < 54; i++)
        values[i] = (float)(int8_t)data[i % BYTES] * (i % 5 ? 1.0f : 300.0f);
    EXPECT(icma_head_add_tensor(&chunk, values, step, 3, 18, NULL) == ICMA_OK);
    EXPECT(icma_head_take(&chunk, &out, NULL) == ICMA_OK);
    EXPECT(fuzz_read_head(out.data, out.size, 1, 1, &integers, NULL) == ICMA_OK);
    for (size_t i = 0; i < 54; i++) {
        float wanted = values[i] / step[i / 18];
        EXPECT(fabsf(wanted) > 30000 || fabsf((float)integers[i] - wanted) < 8);
    }
    icma_free(integers);
    icma_head_free(&chunk);
    icma_buffer_free(&out);
}

static void through_zstd(const uint8_t *data, size_t size) {
    icma_buffer out = {0};
    uint8_t grouped[BYTES], plain[BYTES], *raw = malloc(size + 1);
    EXPECT(raw);
    icma_group_bytes(data, BYTES / 2, 2, grouped);
    icma_ungroup_bytes(grouped, BYTES / 2, 2, plain);
    EXPECT(memcmp(plain, data, BYTES) == 0);
    EXPECT(icma_zstd_compress(data, size, 1, &out, NULL) == ICMA_OK);
    EXPECT(icma_zstd_decompress(out.data, out.size, raw, size, NULL) == ICMA_OK && memcmp(raw, data, size) == 0);
    icma_buffer_free(&out);
    free(raw);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t original[BYTES] = {0}, tap[BYTES] = {0};
    if (size < 3)
        return 0;
    memcpy(original, data + 2, size - 2 < BYTES ? size - 2 : BYTES);
    memcpy(tap, original, BYTES);
    for (size_t i = BYTES + 2; i < size; i++)
        tap[i % BYTES] ^= data[i];
    through_link(original, tap, data[0] % 3);
    through_coder(original, data[1]);
    through_head(original);
    through_zstd(original, BYTES);
    return 0;
}
