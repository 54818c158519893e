/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tokens of many texts, for test_embed.py to compare with transformers': icma_tokenizer_probe VOCAB
 * MERGES MOST < texts. Each text ends with a NUL; each gives a line of numbers, from the start token to the
 * end token, MOST at most.
 */
#include "bytes.h"
#include "memory.h"
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>

static icma_status take_text(icma_buffer *text, bool *more) {
    int c;
    text->size = 0;
    while ((c = getchar()) != EOF && c != 0)
        icma_write_u8(text, (uint8_t)c);
    *more = c == 0;
    icma_write_u8(text, 0);
    return text->failed ? ICMA_E_MEMORY : ICMA_OK;
}

static icma_status tell(const icma_tokenizer *tokenizer, const char *text, size_t most, uint32_t *ids,
                        icma_error *error) {
    size_t count;
    icma_status status = icma_tokenizer_encode(tokenizer, text, most, ids, &count, error);
    for (size_t i = 0; !status && i < count; i++)
        printf("%s%u", i ? " " : "", ids[i]);
    if (!status)
        putchar('\n');
    return status;
}

static icma_status probe(char **argv, icma_error *error) {
    icma_tokenizer *tokenizer;
    icma_buffer text = {0};
    bool more = true;
    size_t most = strtoul(argv[2], NULL, 10);
    uint32_t *ids = icma_alloc_array(most, sizeof *ids);
    icma_status status = icma_tokenizer_open(argv[1], &tokenizer, error);
    if (!status && !ids)
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for tokens");
    while (!status && more) {
        status = take_text(&text, &more);
        if (!status && more)
            status = tell(tokenizer, (const char *)text.data, most, ids, error);
    }
    icma_buffer_free(&text);
    icma_free(ids);
    icma_tokenizer_close(tokenizer);
    return status;
}

int main(int argc, char **argv) {
    icma_error error = {0};
    icma_status status =
        argc == 3 ? probe(argv, &error)
                  : icma_fail(&error, ICMA_E_USAGE, NULL, "icma_tokenizer_probe FOLDER MOST < texts");
    if (status)
        fprintf(stderr, "icma_tokenizer_probe: %s\n", error.message);
    return icma_status_exit_code(status);
}
