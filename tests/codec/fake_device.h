/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device that is none: the CPU's table under another name, with little memory, room for what saves
 * transfers, and recordings. It fails the running test where a contract of ops.h is broken: memory or
 * transfers within a recording, a replay of what was forgotten, tensors that are left.
 */
#ifndef ICMA_TESTS_FAKE_DEVICE_H
#define ICMA_TESTS_FAKE_DEVICE_H

#include "ops.h"

typedef struct fake_device {
    size_t largest;  /* bytes that one tensor may take; 0: any */
    size_t fails_at; /* allocation that fails, counted from 1; 0: none */
    bool fails_on;   /* and all after it */
    bool refuses;    /* `recorded` fails */
    size_t uploaded; /* numbers in all uploads */
    size_t allocations, downloads, recordings, replays, live;
} fake_device;

/* Its table, until the next call; `device` is the caller's. */
const icma_ops *fake_device_open(fake_device *device, size_t room);

#endif
