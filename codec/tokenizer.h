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
    ICMA_MOST_SPECIAL = 64,         /* special tokens, and bytes of one */
};

typedef struct icma_tokenizer icma_tokenizer;

/* A file's bytes, and its name for errors, which may be NULL. data NULL: there is none. */
typedef struct icma_token_file {
    const void *data;
    size_t size;
    const char *name;
} icma_token_file;

/*
 * vocabulary: vocab.json, an object of tokens and their numbers.
 * merges: merges.txt, a line that is passed over, then two tokens a line; as in transformers, of CLIP's
 * 48,894 lines at most, and the first of equal ones counts. config, map: tokenizer_config.json and
 * special_tokens_map.json, which may be missing: other special tokens, such as the "!" that fills texts up in
 * some encoders, and whether one is looked for before folding
 *   ("normalized": false) or after it. Where the former has an added_tokens_decoder, the latter is not
 * heeded. Tokens that the vocabulary does not have are passed over.
 */
typedef struct icma_tokenizer_files {
    icma_token_file vocabulary, merges, config, map;
} icma_tokenizer_files;

/* ICMA_E_CORRUPT for files that are something else, for a merge of or to what is no token, and where one of
 * the two tokens at a text's ends is missing; ICMA_E_UNSUPPORTED for special tokens that take white space
 * with them; ICMA_E_LIMIT. */
icma_status icma_tokenizer_parse(const icma_tokenizer_files *files, icma_tokenizer **out, icma_error *error);
/* The same of files in a folder. */
icma_status icma_tokenizer_open(const char *folder, icma_tokenizer **out, icma_error *error);
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
