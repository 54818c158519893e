/* SPDX-License-Identifier: Apache-2.0 */
/* What icma_cuda.so exports: plain C, the only door between the program and CUDA. */
#ifndef ICMA_MODULE_H
#define ICMA_MODULE_H

#include "device.h"

enum { ICMA_MODULE_VERSION = 1 }; /* raised whenever this header, ops.h or what they include changes */

/* The function that the module exports as "icma_module_open". `version` is the caller's ICMA_MODULE_VERSION: another is ICMA_E_DEVICE. */
typedef icma_status (*icma_module_opener)(int version, int device, icma_precision precision, const icma_ops **out, icma_error *error);
#define ICMA_MODULE_OPENER "icma_module_open"

#endif
