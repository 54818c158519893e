/* SPDX-License-Identifier: Apache-2.0 */
#include "device.h"

#include <string.h>

icma_status icma_device_open(const char *name, const icma_ops **out, icma_error *error) {
    *out = NULL;
    if (strcmp(name, "auto") == 0 || strcmp(name, "cpu") == 0)
        *out = icma_ops_cpu();
    else if (strcmp(name, "reference") == 0)
        *out = icma_ops_reference();
    else if (strcmp(name, "cuda") == 0 || strncmp(name, "cuda:", 5) == 0)
        return icma_fail(error, ICMA_E_DEVICE, NULL, "this icma was built without CUDA; use --device cpu");
    else
        return icma_fail(error, ICMA_E_USAGE, NULL, "unknown device \"%s\"; there are auto, cpu, reference and cuda[:N]", name);
    return ICMA_OK;
}
