/* SPDX-License-Identifier: Apache-2.0 */
/* A text encoder's small files and what a user types: vocab.json, merges.txt, a text, config.json,
 * tokenizer_config.json and special_tokens_map.json, with NUL between. Texts are folded and encoded by a good
 * tokenizer where the input's own is none. */
#include "fuzz_shape.h"
#include "fuzz_target.h"
#include "memory.h"
#include "text_inside.h"
#include "unicode.h"

#include <string.h>

enum { MOST = 77 };
static const char good_vocabulary[] = "{\"<|startoftext|>\":0,\"<|endoftext|>\":1,\"a\":2,\"a</"
                                      "w>\":3,\"aa\":4,\"aa</w>\":5,\"\xC3\x83\":6,\"\xC2\xA9</w>\":7}";
static const char good_merges[] = "#version: 0.2\na a</w>\na a\n";

static const char *take_part(const char **at, const char *end, size_t *size) {
    const char *start = *at, *stop = memchr(start, 0, (size_t)(end - start));
    *size = (size_t)((stop ? stop : end) - start);
    *at = stop ? stop + 1 : end;
    return start;
}

static bool refuses(icma_status status) {
    return status == ICMA_E_FORMAT || fuzz_is_refusal(status);
}

/* Characters, none of them white space but one space. */
static void check_fold(const char *text, size_t size) {
    icma_characters found;
    icma_status status = icma_unicode_fold(text, size, &found, NULL);
    EXPECT(status == ICMA_OK || refuses(status));
    for (size_t i = 0; i < found.count; i++)
        EXPECT(found.list[i] <= 0x10FFFF && (found.list[i] == ' ' || !icma_unicode_is_space(found.list[i])));
    icma_characters_free(&found);
}

static void check_tokens(const icma_tokenizer *tokenizer, const char *text) {
    uint32_t ids[MOST + 1];
    size_t count, shorter;
    ids[MOST] = 0xABCDEF;
    icma_status status = icma_tokenizer_encode(tokenizer, text, MOST, ids, &count, NULL);
    EXPECT(status == ICMA_OK || refuses(status));
    if (status)
        return;
    EXPECT(count >= 2 && count <= MOST && ids[MOST] == 0xABCDEF &&
           ids[count - 1] == icma_tokenizer_end(tokenizer));
    for (size_t i = 0; i < count; i++)
        EXPECT(ids[i] < icma_tokenizer_size(tokenizer));
    uint32_t few[5];
    EXPECT(icma_tokenizer_encode(tokenizer, text, 5, few, &shorter, NULL) == ICMA_OK &&
           shorter == (count < 5 ? count : 5));
    EXPECT(memcmp(few, ids, (shorter - 1) * sizeof *few) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *at = (const char *)data, *end = at + size;
    size_t vocabulary_size, merges_size, text_size, config_size;
    const char *vocabulary = take_part(&at, end, &vocabulary_size),
               *merges = take_part(&at, end, &merges_size);
    const char *text = take_part(&at, end, &text_size), *config = take_part(&at, end, &config_size);
    size_t tokens_size, map_size;
    const char *tokens = take_part(&at, end, &tokens_size), *map = take_part(&at, end, &map_size);
    const icma_tokenizer_files files = {{vocabulary, vocabulary_size, NULL},
                                        {merges, merges_size, NULL},
                                        {tokens_size ? tokens : NULL, tokens_size, NULL},
                                        {map_size ? map : NULL, map_size, NULL}};
    const icma_tokenizer_files good = {.vocabulary = {good_vocabulary, strlen(good_vocabulary), NULL},
                                       .merges = {good_merges, strlen(good_merges), NULL}};
    icma_tokenizer *tokenizer;
    icma_text_shape shape;
    char *name, *copy = icma_copy_text(text, text_size);
    icma_error error = {0};
    EXPECT(copy);
    icma_status status = icma_tokenizer_parse(&files, &tokenizer, &error);
    EXPECT(status == error.status && (status == ICMA_OK) == (tokenizer != NULL) &&
           (status == ICMA_OK || refuses(status)));
    if (!tokenizer)
        EXPECT(icma_tokenizer_parse(&good, &tokenizer, NULL) == ICMA_OK);
    check_fold(text, text_size);
    check_tokens(tokenizer, copy);
    icma_tokenizer_close(tokenizer);
    status = icma_text_shape_parse(config, config_size, &shape, &name, NULL);
    EXPECT(status == ICMA_OK
               ? shape.heads && shape.width % shape.heads == 0 && shape.positions >= 2 && shape.layers
               : refuses(status) && !name);
    icma_free(name);
    icma_free(copy);
    return 0;
}
