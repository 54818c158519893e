/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a safetensors file says of itself: the strings of `__metadata__` in its header. Headers given here are
 * ones that icma_safetensors_parse has taken.
 */
#ifndef ICMA_METADATA_H
#define ICMA_METADATA_H

#include "bytes.h"

typedef struct icma_metadata_pair {
    char *key, *value; /* unescaped UTF-8, no NUL inside; owned */
} icma_metadata_pair;

typedef struct icma_metadata {
    bool present;             /* the header has a __metadata__, if only an empty one */
    icma_metadata_pair *list; /* in the header's order; owned */
    size_t count;
} icma_metadata;

icma_status icma_metadata_read(const void *header, size_t size, icma_metadata *out, icma_error *error);
void icma_metadata_free(icma_metadata *metadata); /* leaves it zeroed */
/* NULL where there is none. */
const char *icma_metadata_find(const icma_metadata *metadata, const char *key);
/* Replaces the value in its place, or appends; `value` NULL removes. */
icma_status icma_metadata_set(icma_metadata *metadata, const char *key, const char *value, icma_error *error);

/* Appends the header to `out` without the entries of these keys (a list that ends in NULL), every other byte
 * as it was, but for padding at the end: spaces, to a multiple of 8. *cut: how many entries that are; with
 * none nothing is appended. */
icma_status icma_metadata_cut(const void *header, size_t size, const char *const *keys, icma_buffer *out,
                              size_t *cut, icma_error *error);

typedef struct icma_metadata_entry {
    const char *key;
    const char *value; /* bytes that are not UTF-8 are written as the text \xNN */
} icma_metadata_entry;

/* Appends to `out` the header `text` (of a file of less than 10^15 bytes, as icma_safetensors_parse takes it)
 * with these entries in its `__metadata__`, instead of those of the same keys. Everything else keeps its
 * order and value; white space does not. Padded with blanks to a multiple of 8 bytes. ICMA_E_LIMIT over
 * ICMA_MAX_HEADER. */
icma_status icma_metadata_put(const uint8_t *text, size_t size, const icma_metadata_entry *entries,
                              size_t count, icma_buffer *out, icma_error *error);

#endif
