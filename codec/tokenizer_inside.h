/* SPDX-License-Identifier: Apache-2.0 */
/* What a tokenizer is made of. Private to tokenizer*.c. */
#ifndef ICMA_TOKENIZER_INSIDE_H
#define ICMA_TOKENIZER_INSIDE_H

#include "tokenizer.h"

/* Two neighbours that become one. */
typedef struct icma_merge {
    uint32_t left, right;
    uint32_t rank; /* the least comes first */
    uint32_t joined;
} icma_merge;

struct icma_tokenizer {
    icma_merge *merges; /* by left, then right; owned */
    size_t merge_count;
    uint32_t inner[256], last[256]; /* tokens of a byte within a word, and at its end */
    uint32_t start, end;            /* of a text; the latter is also what is unknown */
    size_t size;
};

/* NULL: these two stay apart. */
const icma_merge *icma_tokenizer_merge(const icma_tokenizer *tokenizer, uint32_t left, uint32_t right);

#endif
