/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as an archive whose magic numbers, file length and checksums are put right first, as a hostile
 * writer would, so that mutations get past them. */
#include "bundle_walk.h"
#include "bytes.h"
#include "compress.h"
#include "container_walk.h"
#include "fuzz_target.h"

#include <string.h>

enum { BLOCK = 64, INDEX_HEAD = 16, ENTRY = 56, ENTRY_HASH = 24 };

/* A number of an entry in the byte-grouped table: byte b of entry i lies at b * count + i. */
static uint64_t entry_u64(const uint8_t *table, size_t count, size_t entry, size_t at) {
    uint64_t value = 0;
    for (size_t b = 0; b < 8; b++)
        value |= (uint64_t)table[(at + b) * count + entry] << 8 * b;
    return value;
}

static void repair_entries(const uint8_t *image, size_t size, uint8_t *index, size_t index_size) {
    size_t count = icma_load_u32(index);
    uint8_t *table = index + INDEX_HEAD;
    if (count > (index_size - INDEX_HEAD) / ENTRY)
        return;
    for (size_t i = 0; i < count; i++) {
        uint64_t offset = entry_u64(table, count, i, 0), stored = entry_u64(table, count, i, 8);
        if (offset > size || stored > size - offset)
            continue;
        uint64_t hash = icma_hash(image + offset, (size_t)stored);
        for (size_t b = 0; b < 8; b++)
            table[(ENTRY_HASH + b) * count + i] = (uint8_t)(hash >> 8 * b);
    }
}

static void repair(uint8_t *image, size_t size) {
    uint8_t *footer = image + size - BLOCK;
    uint64_t offset = icma_load_u64(footer), stored = icma_load_u64(footer + 8);
    memcpy(image, "\x89ICMA\r\n\x1a", 8);
    icma_store_u64(image + 56, icma_hash(image, 56));
    if (offset <= size && stored <= size - offset) {
        if (footer[40] == 0 && stored >= INDEX_HEAD)
            repair_entries(image, size, image + offset, (size_t)stored);
        icma_store_u64(footer + 24, icma_hash(image + offset, (size_t)stored));
    }
    icma_store_u64(footer + 32, size);
    memcpy(footer + 48, "\x8aICMAend", 8);
    icma_store_u64(footer + 56, icma_hash(footer, 56));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size -= size % BLOCK;
    if (size < 3 * BLOCK)
        return 0;
    uint8_t *image = malloc(size);
    if (!image)
        return 0;
    memcpy(image, data, size);
    repair(image, size);
    if (container_walk(image, size))
        bundle_walk(image, size);
    free(image);
    return 0;
}
