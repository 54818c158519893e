/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CLIP's byte-pair tokenizer (Sennrich et al. 2016; Radford et al. 2021): the tokens of transformers'
 * CLIPTokenizerFast, token by token.
 *
 * A text is folded (unicode.h), cut at "<|startoftext|>" and "<|endoftext|>", which are tokens wherever they
 * stand, and the rest into words: 's 't 're 've 'm 'll 'd, else runs of letters, single numbers, runs of what
 * is neither, nor white space. A word's UTF-8 bytes are its first tokens, the last with "</w>"; then the
 * neighbours that come first in merges.txt become one, the leftmost first, until none do. Bytes that the
 * vocabulary does not have become "<|endoftext|>".
 */
#ifndef ICMA_TOKENIZER_H
#define ICMA_TOKENIZER_H

#include "status.h"

#include <stddef.h>
#include <stdint.h>

enum {
    ICMA_MOST_TOKEN_FILE = 1 << 26, /* bytes of vocab.json, and of merges.txt */
    ICMA_MOST_VOCABULARY = 1 << 20, /* tokens */
    ICMA_MOST_TEXT = 1 << 16,       /* bytes of a text */
};

typedef struct icma_tokenizer icma_tokenizer;

/*
 * From the bytes of vocab.json (an object of tokens and their numbers) and merges.txt (a line that is passed
 * over, then two tokens a line; as in transformers, of CLIP's 48,894 lines at most, and the first of equal
 * ones counts). ICMA_E_CORRUPT for other than that, for a merge of or to what is no token, and where one of
 * the two special tokens is missing; ICMA_E_LIMIT. Errors name `vocab_name` or `merges_name`, which may be
 * NULL.
 */
icma_status icma_tokenizer_parse(const void *vocab, size_t vocab_size, const char *vocab_name,
                                 const void *merges, size_t merges_size, const char *merges_name,
                                 icma_tokenizer **out, icma_error *error);
/* The same of files. */
icma_status icma_tokenizer_open(const char *vocab_path, const char *merges_path, icma_tokenizer **out,
                                icma_error *error);
void icma_tokenizer_close(icma_tokenizer *tokenizer); /* NULL is fine */

uint32_t icma_tokenizer_end(const icma_tokenizer *tokenizer); /* the number of "<|endoftext|>" */
size_t icma_tokenizer_size(const icma_tokenizer *tokenizer);  /* its largest number + 1 */

/*
 * Start token, the text's tokens, end token into `ids`, which has room for `most` >= 2; what is too much of
 * the text is left out. ICMA_E_FORMAT if it is not UTF-8, ICMA_E_LIMIT if it is longer than ICMA_MOST_TEXT.
 * Thread-safe.
 */
icma_status icma_tokenizer_encode(const icma_tokenizer *tokenizer, const char *text, size_t most,
                                  uint32_t *ids, size_t *count, icma_error *error);

#endif
