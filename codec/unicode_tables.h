/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of unicode.c, each sorted by its first member. Private to it. */
#ifndef ICMA_UNICODE_TABLES_H
#define ICMA_UNICODE_TABLES_H

#include <stddef.h>
#include <stdint.h>

typedef struct icma_unicode_range {
    uint32_t first, last;
} icma_unicode_range;
/* Canonical combining class, other than 0. */
typedef struct icma_unicode_class {
    uint32_t first, last, value;
} icma_unicode_class;
/* Every step-th character from first to last becomes itself + difference. */
typedef struct icma_unicode_lower {
    uint32_t first, last, step;
    int32_t difference;
} icma_unicode_lower;
/* The canonical decomposition, to its end: `count` characters of the part list. Without Hangul. */
typedef struct icma_unicode_parts {
    uint32_t character;
    uint16_t start, count;
} icma_unicode_parts;
/* Canonical composition: sorted by first, then second. Without Hangul. */
typedef struct icma_unicode_pair {
    uint32_t first, second, composed;
} icma_unicode_pair;

extern const icma_unicode_range icma_unicode_letters[], icma_unicode_numbers[], icma_unicode_spaces[];
extern const icma_unicode_class icma_unicode_classes[];
extern const icma_unicode_lower icma_unicode_lowers[];
extern const icma_unicode_parts icma_unicode_apart[];
extern const uint32_t icma_unicode_part_list[];
extern const icma_unicode_pair icma_unicode_pairs[];
extern const size_t icma_unicode_letters_count, icma_unicode_numbers_count, icma_unicode_spaces_count,
    icma_unicode_classes_count, icma_unicode_lowers_count, icma_unicode_apart_count,
    icma_unicode_part_list_count, icma_unicode_pairs_count;

#endif
