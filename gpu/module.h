/* SPDX-License-Identifier: Apache-2.0 */
/* What icma_cuda.so exports: plain C, the only door between the program and CUDA. */
#ifndef ICMA_MODULE_H
#define ICMA_MODULE_H

#include "device.h"
#include "ops.h"

#include <stdbool.h>

/* Tells builds apart that do not fit together: the first number is raised whenever what this header or ops.h
 * mean changes, and tables of another size are other tables. */
enum { ICMA_MODULE_VERSION = 1 << 16 | (int)sizeof(icma_ops) };

/* What the module does. */
typedef struct icma_module {
    icma_status (*open)(int device, icma_precision precision, const icma_ops **out, icma_error *error);
    bool (*owns)(const icma_ops *ops); /* whether a table is one that it opened */
    void *(*pointer)(const icma_tensor *tensor);
    void *(*stream)(const icma_ops *ops);
} icma_module;

/* The one function that the module exports, as "icma_module_enter". `version` is the caller's
 * ICMA_MODULE_VERSION: for another it gives NULL. */
typedef const icma_module *(*icma_module_entrance)(int version);
#define ICMA_MODULE_ENTRANCE "icma_module_enter"

#endif
