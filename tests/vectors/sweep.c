/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every bit flipped, every prefix: an error, or the very same files.
 *
 *   icma_sweep STRIDE FILE...
 *
 * Of each archive every STRIDE-th bit is flipped, and every prefix is taken (of archives over 16 KiB those of 64 bytes and the last
 * 4096). What can still be decoded is compared with what the whole archive gives: tensors, headers and side files.
 */
#include "file.h"
#include "icma.h"
#include "memory.h"
#include "ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_TASKS = 16, MOST_CHECKPOINTS = 64, SMALL = 16384 };

static struct {
    unsigned long flips, refused_at_opening, refused_in_part, identical, prefixes;
} counts;

static void die(const char *what, const char *file, size_t at) {
    fprintf(stderr, "FAILED %s: %s at %zu\n", file, what, at);
    exit(1);
}

/* A bundle opens by name: one file without a name, the same in every run. */
static int descriptor = -1;
static char path[64];

static void put(const uint8_t *data, size_t size, size_t at) {
    if (descriptor < 0) {
        char name[] = "/tmp/icma-sweep-XXXXXX";
        descriptor = mkstemp(name);
        if (descriptor < 0 || unlink(name) != 0)
            die("cannot make a file", name, 0);
        snprintf(path, sizeof path, "/dev/fd/%d", descriptor);
    }
    if (pwrite(descriptor, data + at, size - at, (off_t)at) != (ssize_t)(size - at))
        die("cannot write", path, at);
}

typedef struct picture {
    size_t tasks, checkpoints[MOST_TASKS];
    uint64_t hashes[MOST_TASKS][MOST_CHECKPOINTS]; /* of all that a checkpoint decodes to */
} picture;

static uint64_t mix(uint64_t hash, const void *data, size_t size) {
    const uint8_t *bytes = data;
    hash = (hash ^ size) * UINT64_C(0x100000001b3);
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
    return hash;
}

static uint64_t hash_of(const icma_decoded *decoded) {
    uint64_t hash = mix(UINT64_C(0xcbf29ce484222325), decoded->data, decoded->size);
    for (size_t i = 0; i < decoded->file_count; i++) {
        hash = mix(hash, decoded->files[i].name, strlen(decoded->files[i].name));
        hash = mix(hash, decoded->files[i].data, decoded->files[i].size);
    }
    return hash;
}

/* Whether a task is the same, or refused; without `compare` it is remembered. Counts what is refused. */
static bool walk_task(icma_bundle *bundle, size_t task, picture *seen, bool compare, size_t *refused) {
    icma_task_info info;
    if (icma_bundle_task(bundle, task, &info, NULL) != ICMA_OK)
        return ++*refused, true;
    if (info.checkpoint_count > MOST_CHECKPOINTS || (compare && info.checkpoint_count != seen->checkpoints[task]))
        return false;
    seen->checkpoints[task] = info.checkpoint_count;
    for (size_t i = info.checkpoint_count; i-- > 0;) {
        icma_decoded decoded;
        if (icma_bundle_decode(bundle, task, i, &decoded, NULL) != ICMA_OK) {
            ++*refused;
            continue;
        }
        uint64_t hash = hash_of(&decoded);
        icma_decoded_free(&decoded);
        if (compare && hash != seen->hashes[task][i])
            return false;
        seen->hashes[task][i] = hash;
    }
    return true;
}

/* 0: refused at opening; else 1 + how much was refused. */
static size_t walk(picture *seen, bool compare, const char *file, size_t at) {
    icma_bundle *bundle;
    size_t refused = 0;
    if (icma_bundle_open(path, icma_ops_cpu(), NULL, &bundle, NULL) != ICMA_OK)
        return 0;
    size_t tasks = icma_bundle_task_count(bundle);
    if (tasks > MOST_TASKS || (compare && tasks != seen->tasks))
        die("other tasks", file, at);
    seen->tasks = tasks;
    for (size_t t = 0; t < tasks; t++)
        if (!walk_task(bundle, t, seen, compare, &refused))
            die("other files", file, at);
    /* What no task needs (records, unknown sections) is told by its checksum alone. */
    for (size_t i = 0; i < icma_bundle_section_count(bundle); i++)
        refused += icma_bundle_check_section(bundle, i, NULL) != ICMA_OK;
    icma_bundle_close(bundle);
    return 1 + refused;
}

static void sweep(const char *file, size_t stride) {
    static picture whole;
    uint8_t *data;
    size_t size;
    memset(&whole, 0, sizeof whole);
    if (icma_file_read_all(file, (size_t)1 << 30, &data, &size, NULL) != ICMA_OK)
        die("cannot be read", file, 0);
    put(data, size, 0);
    if (ftruncate(descriptor, (off_t)size) != 0 || walk(&whole, false, file, 0) != 1)
        die("is not whole", file, 0);
    for (size_t bit = 0; bit < 8 * size; bit += stride) {
        uint8_t flipped = data[bit / 8] ^ (uint8_t)(1 << bit % 8);
        if (pwrite(descriptor, &flipped, 1, (off_t)(bit / 8)) != 1)
            die("cannot write", path, bit);
        size_t result = walk(&whole, true, file, bit);
        counts.flips++;
        counts.refused_at_opening += result == 0;
        counts.refused_in_part += result > 1;
        counts.identical += result == 1;
        put(data, bit / 8 + 1, bit / 8);
    }
    for (size_t length = size; length-- > 0;) {
        if (ftruncate(descriptor, (off_t)length) != 0)
            die("cannot be cut", path, length);
        if (size > SMALL && length % 64 != 0 && size - length > 4096)
            continue;
        if (walk(&whole, true, file, length) != 0)
            die("a prefix is taken", file, length);
        counts.prefixes++;
    }
    icma_free(data);
}

int main(int count, char **arguments) {
    size_t stride = count > 2 ? strtoul(arguments[1], NULL, 10) : 0;
    if (!stride)
        die("usage: icma_sweep STRIDE FILE...", "icma_sweep", 0);
    icma_set_threads(1);
    for (int i = 2; i < count; i++)
        sweep(arguments[i], stride);
    printf("%lu bits flipped: %lu refused at opening, %lu when a section was used, %lu with no effect; %lu prefixes refused\n", counts.flips,
           counts.refused_at_opening, counts.refused_in_part, counts.identical, counts.prefixes);
    return counts.identical != 0; /* every byte is checked */
}
