/* SPDX-License-Identifier: Apache-2.0 */
#include "device.h"

#include "icma_cuda.h"
#include "module.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Waking a GPU takes about half a second, in which two cores do so much (bench/results/cpu.md, conv.md); what
 * goes over the bus and back is worth it only with much to do on the way. */
static const double worth_operations = 4e11, worth_bytes = 16e9;

#ifndef ICMA_MODULE_FILE
#define ICMA_MODULE_FILE "" /* built without CUDA */
#endif

/* By its bare name, which the loader finds beside the program or in its library folder (its run path, or that
 * of libicma.so). Tests name another file. */
static const char *module_file(void) {
    const char *other = getenv("ICMA_MODULE");
    return other && *other ? other : ICMA_MODULE_FILE;
}

static const icma_module *module; /* NULL until a GPU was asked for */

/* A program that links libicma.a has a run path of its own: where libicma was to be installed is the second
 * guess. `reason` is that of the first. */
static void *open_library(const char *file, char *reason, size_t size) {
    char installed[1024];
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (library)
        return library;
    snprintf(reason, size, "%s", dlerror());
    int length = snprintf(installed, sizeof installed, "%s/%s", ICMA_MODULE_FOLDER, file);
    return strchr(file, '/') || length >= (int)sizeof installed ? NULL
                                                                : dlopen(installed, RTLD_NOW | RTLD_LOCAL);
}

static icma_status load_module(icma_error *error) {
    const char *file = module_file();
    char reason[ICMA_ERROR_MESSAGE_SIZE / 2];
    icma_module_entrance enter = NULL;
    if (module)
        return ICMA_OK;
    if (!*file)
        return icma_fail(error, ICMA_E_DEVICE, NULL, "this icma was built without CUDA; use --device cpu");
    void *library = open_library(file, reason, sizeof reason);
    if (!library)
        return icma_fail(error, ICMA_E_DEVICE, NULL, "the CUDA part cannot be loaded: %s; use --device cpu",
                         reason);
    void *symbol = dlsym(library, ICMA_MODULE_ENTRANCE);
    memcpy(&enter, &symbol, sizeof enter); /* ISO C has no cast from an object's pointer to a function's */
    if (!enter || !(module = enter(ICMA_MODULE_VERSION))) {
        dlclose(library);
        return icma_fail(error, ICMA_E_DEVICE, NULL,
                         "%s is of another build of icma; install both again, or use --device cpu", file);
    }
    return ICMA_OK;
}

static icma_status open_cuda(int index, icma_precision precision, const icma_ops **out, icma_error *error) {
    icma_status status = load_module(error);
    return status ? status : module->open(index, precision, out, error);
}

void *icma_cuda_pointer(const icma_ops *ops, const icma_tensor *tensor) {
    return module && tensor && module->owns(ops) ? module->pointer(tensor) : NULL;
}

void *icma_cuda_stream(const icma_ops *ops) {
    return module && module->owns(ops) ? module->stream(ops) : NULL;
}

/* The N of "cuda:N"; -1 if it is none. */
static int device_index(const char *name) {
    if (strcmp(name, "cuda") == 0)
        return 0;
    char *end;
    long index =
        strncmp(name, "cuda:", 5) == 0 && name[5] >= '0' && name[5] <= '9' ? strtol(name + 5, &end, 10) : -1;
    return index >= 0 && index < 1024 && *end == '\0' ? (int)index : -1;
}

static bool is_worth_waking(icma_device_work work) {
    return work.operations >= worth_operations || work.bytes >= worth_bytes;
}

icma_status icma_device_open(const char *name, icma_precision precision, icma_device_work work,
                             const icma_ops **out, icma_error *error) {
    *out = NULL;
    if (strcmp(name, "auto") == 0) {
        if (!is_worth_waking(work) || open_cuda(0, precision, out, NULL))
            *out = icma_ops_cpu();
    } else if (strcmp(name, "cpu") == 0) {
        *out = icma_ops_cpu();
    } else if (strcmp(name, "reference") == 0) {
        *out = icma_ops_reference();
    } else if (device_index(name) >= 0) {
        return open_cuda(device_index(name), precision, out, error);
    } else {
        return icma_fail(error, ICMA_E_USAGE, NULL,
                         "unknown device \"%s\"; there are auto, cpu, reference and cuda[:N]", name);
    }
    return ICMA_OK;
}

void icma_device_explain(const char *name, icma_device_work work, const icma_ops *opened, char *text,
                         size_t size) {
    icma_error reason = {0};
    const icma_ops *cuda;
    if (strcmp(name, "auto") != 0)
        snprintf(text, size, "%s, as asked for", opened->name);
    else if (!is_worth_waking(work))
        snprintf(text, size,
                 "%s: about %.2g billion multiply-adds and %.2g GB to move; a GPU is woken for %.0f billion "
                 "or %.0f GB",
                 opened->name, work.operations / 1e9, work.bytes / 1e9, worth_operations / 1e9,
                 worth_bytes / 1e9);
    else if (icma_ops_on_host(opened) && open_cuda(0, ICMA_PRECISION_F32, &cuda, &reason))
        snprintf(text, size, "%s: the work would be worth a GPU, but %s", opened->name, reason.message);
    else
        snprintf(text, size, "%s: about %.3g billion multiply-adds and %.3g GB to move are worth waking it",
                 opened->name, work.operations / 1e9, work.bytes / 1e9);
}

icma_status icma_precision_from_name(const char *name, icma_precision *out, icma_error *error) {
    static const char *const names[] = {"f32", "tf32", "bf16"};
    for (int i = 0; i < 3; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (icma_precision)i;
            return ICMA_OK;
        }
    return icma_fail(error, ICMA_E_USAGE, NULL, "unknown precision \"%s\"; there are f32, tf32 and bf16",
                     name);
}
