/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The __metadata__ of a safetensors header: strings by name. Headers given here are ones that
 * icma_safetensors_parse has taken.
 */
#ifndef ICMA_METADATA_LIST_H
#define ICMA_METADATA_LIST_H

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

#endif
