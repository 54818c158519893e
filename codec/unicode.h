/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a tokenizer must know of characters: Unicode 14.0.0's letters, numbers and white space, simple
 * lower-casing, and canonical composition (NFC; Unicode Standard Annex 15). Where the `tokenizers` package
 * (0.15), whose tokens users have, knows an older version, so does this: see scripts/make-unicode-tables.
 */
#ifndef ICMA_UNICODE_H
#define ICMA_UNICODE_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct icma_characters {
    uint32_t *list; /* code points; owned */
    size_t count;
} icma_characters;

bool icma_unicode_is_letter(uint32_t c); /* general category L */
bool icma_unicode_is_number(uint32_t c); /* general category N */
bool icma_unicode_is_space(uint32_t c);  /* property White_Space */

/*
 * `size` bytes of UTF-8 as CLIP's tokenizer sees them: composed (NFC), each run of white space one space,
 * lower-case, character by character. ICMA_E_FORMAT if they are not UTF-8. O(n log n).
 */
icma_status icma_unicode_fold(const char *text, size_t size, icma_characters *out, icma_error *error);
void icma_characters_free(icma_characters *characters); /* leaves it zeroed */

#endif
