/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as an archive, as a stranger would send them. */
#include "bundle_walk.h"
#include "container_walk.h"
#include "fuzz_target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (container_walk(data, size))
        bundle_walk(data, size);
    return 0;
}
