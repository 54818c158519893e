/* SPDX-License-Identifier: Apache-2.0 */
/* An archive, while memory runs out: the first two bytes tell at which allocation, the third whether for good. Whatever is refused, nothing is lost. */
#include "bundle_walk.h"
#include "fuzz_shape.h"
#include "fuzz_target.h"
#include "icma.h"
#include "memory.h"
#include "ops.h"

static struct {
    size_t left, live;
    bool on, failed;
} state;

static void *resize(void *context, void *pointer, size_t size) {
    (void)context;
    if (state.failed ? state.on : state.left == 0) {
        state.failed = true;
        return NULL;
    }
    state.left -= state.left > 0;
    void *made = realloc(pointer, size);
    state.live += made && !pointer;
    return made;
}

static void release(void *context, void *pointer) {
    (void)context;
    state.live -= pointer != NULL;
    free(pointer);
}

static void walk(const char *path) {
    icma_limits limits = {sizeof limits, 1 << 20, 1 << 22};
    icma_bundle *bundle;
    icma_task_info info;
    icma_decoded decoded;
    if (icma_bundle_open(path, icma_ops_reference(), &limits, &bundle, NULL) != ICMA_OK)
        return;
    for (size_t t = 0; t < icma_bundle_task_count(bundle) && t < 4; t++) {
        icma_status status = icma_bundle_task(bundle, t, &info, NULL);
        for (size_t i = status == ICMA_OK ? info.checkpoint_count : 0; i-- > 0;)
            if (i < 8 && icma_bundle_decode(bundle, t, i, &decoded, NULL) == ICMA_OK)
                icma_decoded_free(&decoded);
        if (icma_bundle_sample(bundle, t, 7, &decoded, NULL) == ICMA_OK)
            icma_decoded_free(&decoded);
    }
    icma_bundle_close(bundle);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const icma_allocator failing = {resize, release, NULL};
    size_t left = fuzz_take(&data, &size);
    left |= (size_t)fuzz_take(&data, &size) << 8;
    state.left = left % 2048;
    state.on = fuzz_take(&data, &size) & 1;
    state.failed = false;
    state.live = 0;
    icma_set_threads(1);
    const char *path = fuzz_put_in_file(data, size);
    icma_memory_set_allocator(&failing);
    walk(path);
    icma_memory_set_allocator(NULL);
    EXPECT(state.live == 0);
    return 0;
}
