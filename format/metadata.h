/* SPDX-License-Identifier: Apache-2.0 */
/* What a safetensors file says of itself: the strings of `__metadata__`. */
#ifndef ICMA_METADATA_H
#define ICMA_METADATA_H

#include "bytes.h"

typedef struct icma_metadata_entry {
    const char *key;
    const char *value; /* bytes that are not UTF-8 are written as the text \xNN */
} icma_metadata_entry;

/* Appends to `out` the header `text` (of a file of less than 10^15 bytes, as icma_safetensors_parse takes it)
 * with these entries in its
 * `__metadata__`, instead of those of the same keys. Everything else keeps its order and value; white space
 * does not. Padded with blanks to a multiple of 8 bytes. ICMA_E_LIMIT over ICMA_MAX_HEADER. */
icma_status icma_metadata_put(const uint8_t *text, size_t size, const icma_metadata_entry *entries,
                              size_t count, icma_buffer *out, icma_error *error);

#endif
