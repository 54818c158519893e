/* SPDX-License-Identifier: Apache-2.0 */
/* A generator's payload. What is read is written and read again; a small one is evaluated, and gives finite numbers or says why not. */
#include "fuzz_shape.h"
#include "fuzz_target.h"
#include "memory.h"
#include "ops.h"

#include <math.h>

enum { MOST_WORK = 1 << 20 };

static void evaluate(const icma_generator *g) {
    icma_trunk *trunk;
    float z[ICMA_MAX_LATENT] = {0}, a[ICMA_MAX_COORDINATES] = {0};
    if (icma_generator_trunk_parameters(g) > MOST_WORK || icma_trunk_upload(g, icma_ops_reference(), &trunk, NULL) != ICMA_OK)
        return;
    float *q = malloc((g->total + 1) * sizeof *q);
    EXPECT(q);
    for (size_t i = 0; i < g->latent; i++)
        z[i] = (float)i - 3;
    icma_status status = icma_trunk_evaluate(trunk, z, a, q, NULL);
    EXPECT(status == ICMA_OK || status == ICMA_E_CORRUPT);
    for (size_t k = 0; status == ICMA_OK && k < g->total; k++)
        EXPECT(isfinite(q[k]));
    free(q);
    icma_trunk_free(trunk);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    icma_generator seen, again;
    icma_error error = {0};
    icma_buffer out = {0};
    icma_set_threads(1);
    icma_status status = icma_generator_read(data, size, fuzz_signature(), &seen, &error);
    EXPECT(status == error.status && (status == ICMA_OK || fuzz_is_refusal(status)));
    if (status != ICMA_OK) {
        EXPECT(!seen.treatment && !seen.scale && !seen.projection);
        return 0;
    }
    if (seen.kind == ICMA_GENERATOR_BASIS)
        evaluate(&seen);
    if (seen.kind != ICMA_GENERATOR_CONV) { /* whose numbers would be quantised anew: fuzz_networks */
        EXPECT(icma_generator_write(&seen, &out, NULL) == ICMA_OK);
        EXPECT(icma_generator_read(out.data, out.size, fuzz_signature(), &again, NULL) == ICMA_OK);
        EXPECT(again.kind == seen.kind && again.total == seen.total && again.latent == seen.latent);
        icma_generator_free(&again);
    }
    icma_buffer_free(&out);
    icma_generator_free(&seen);
    return 0;
}
