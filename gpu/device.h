/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening a device: the op table (codec/ops.h) that the codec is to compute with.
 */
#ifndef ICMA_DEVICE_H
#define ICMA_DEVICE_H

#include "ops.h"

/* `name` is "auto", "cpu", "reference" (plain scalar loops: the oracle), "cuda" or "cuda:N". ICMA_E_USAGE for
 * any other; ICMA_E_DEVICE with the reason when it is not there. The table is owned by the library and lives
 * as long as the process. */
icma_status icma_device_open(const char *name, const icma_ops **out, icma_error *error);

#endif
