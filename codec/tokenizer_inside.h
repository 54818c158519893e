/* SPDX-License-Identifier: Apache-2.0 */
/* What a tokenizer is made of. Private to tokenizer*.c. */
#ifndef ICMA_TOKENIZER_INSIDE_H
#define ICMA_TOKENIZER_INSIDE_H

#include "tokenizer.h"
#include "unicode.h"

/* Two neighbours that become one. */
typedef struct icma_merge {
    uint32_t left, right;
    uint32_t rank; /* the least comes first */
    uint32_t joined;
} icma_merge;

/* A token wherever it stands. */
typedef struct icma_special {
    char text[ICMA_MOST_SPECIAL + 1];
    bool folded;                /* looked for in what is folded */
    icma_characters characters; /* what it is there; owned */
    uint32_t id;
} icma_special;

struct icma_tokenizer {
    icma_merge *merges; /* by left, then right; owned */
    size_t merge_count;
    uint32_t inner[256], last[256]; /* tokens of a byte within a word, and at its end */
    uint32_t start, end;            /* of a text; the latter is also what is unknown */
    size_t size;
    icma_special specials[ICMA_MOST_SPECIAL];
    size_t special_count;
};

/* Makes `text` a special token, or changes how it is looked for if it is one and `again`. */
icma_status icma_tokenizer_add_special(icma_tokenizer *tokenizer, const char *text, uint32_t id, bool folded,
                                       bool again, icma_error *error);
/* Those of tokenizer_config.json and special_tokens_map.json; `find` gives a token's number, false: it is
 * none. */
typedef bool icma_find_token(const void *context, const char *text, uint32_t *id);
icma_status icma_tokenizer_read_specials(icma_tokenizer *tokenizer, const icma_token_file *config,
                                         const icma_token_file *map, icma_find_token *find,
                                         const void *context, icma_error *error);

/* NULL: these two stay apart. */
const icma_merge *icma_tokenizer_merge(const icma_tokenizer *tokenizer, uint32_t left, uint32_t right);

#endif
