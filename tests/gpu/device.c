/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device that tests of the first floor are run on again: a GPU, or with ICMA_MODULE=.../icma_emulated.so
 * its emulation. ICMA_TEST_PRECISION (f32, tf32, bf16) says how products are multiplied.
 */
#include "device.h"
#include "ops.h"
#include "support.h"

#include <stdio.h>
#include <stdlib.h>

const icma_ops *support_device(void) {
    static const icma_ops *table;
    const char *name = getenv("ICMA_TEST_PRECISION");
    icma_precision precision = ICMA_PRECISION_F32;
    icma_error error = {0};
    if (!table && ((name && icma_precision_from_name(name, &precision, &error)) ||
                   icma_device_open("cuda", precision, (icma_device_work){0}, &table, &error))) {
        fprintf(stderr, "no device to test: %s\n", error.message);
        exit(1);
    }
    return table;
}
