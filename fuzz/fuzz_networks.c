/* SPDX-License-Identifier: Apache-2.0 */
/* The payloads of a convolutional decoder (first byte even) and of a denoiser (odd). Small ones are run. */
#include "conv_decoder.h"
#include "denoiser.h"
#include "fuzz_shape.h"
#include "fuzz_target.h"
#include "ops.h"

enum { MOST_WORK = 1 << 18 };

static void try_decoder(const uint8_t *data, size_t size) {
    icma_conv_decoder seen;
    icma_error error = {0};
    icma_cursor from = icma_cursor_over(data, size);
    icma_conv_engine *engine;
    icma_matrix y;
    icma_status status = icma_conv_decoder_read(&from, &seen, &error);
    EXPECT(status == error.status && (status == ICMA_OK || fuzz_is_refusal(status)));
    if (status != ICMA_OK)
        return;
    EXPECT(icma_conv_decoder_length(&seen) != 0 && seen.outputs >= 1 && seen.outputs <= 2 && seen.width % 2 == 1);
    if (icma_conv_decoder_work(&seen) <= MOST_WORK && seen.inputs <= 2048 &&
        icma_conv_engine_create(&seen, icma_ops_reference(), &engine, NULL) == ICMA_OK) {
        static float input[2048];
        (void)icma_conv_engine_run(engine, input, &y, NULL);
        icma_conv_engine_free(engine);
    }
    icma_conv_decoder_free(&seen);
}

static void try_denoiser(const uint8_t *data, size_t size) {
    icma_denoiser seen;
    icma_error error = {0};
    icma_cursor from = icma_cursor_over(data, size);
    float noise[3] = {1, -2, 0}, a[2] = {0.5f, 1}, z[3];
    icma_status status = icma_denoiser_read(&from, 3, 2, &seen, &error);
    EXPECT(status == error.status && (status == ICMA_OK || fuzz_is_refusal(status)));
    if (status != ICMA_OK)
        return;
    if (icma_denoiser_work(&seen) <= MOST_WORK) {
        status = icma_denoiser_sample(&seen, icma_ops_reference(), noise, a, z, NULL);
        EXPECT(status == ICMA_OK || status == ICMA_E_CORRUPT);
    }
    icma_denoiser_free(&seen);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    icma_set_threads(1);
    if (fuzz_take(&data, &size) & 1)
        try_denoiser(data, size);
    else
        try_decoder(data, size);
    return 0;
}
