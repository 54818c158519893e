/* SPDX-License-Identifier: Apache-2.0 */
/* The command line: words with NUL between, the first byte tells which verb's. They are parsed, not run. */
#include "fuzz_target.h"
#include "memory.h"
#include "options.h"
#include "verbs.h"

#include <string.h>

enum { MOST_WORDS = 32 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const cli_verb *const verbs[] = {&cli_verb_pack, &cli_verb_unpack, &cli_verb_generate, &cli_verb_list, &cli_verb_info, &cli_verb_verify, &cli_verb_diff, &cli_verb_report};
    if (size == 0)
        return 0;
    const cli_verb *verb = verbs[data[0] % (sizeof verbs / sizeof *verbs)];
    char *text = malloc(size + 1), *words[MOST_WORDS + 1];
    int count = 0;
    EXPECT(text);
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    for (char *word = text; word < text + size && count < MOST_WORDS; word += strlen(word) + 1)
        words[count++] = word;
    words[count] = NULL;
    void *arguments = icma_alloc_zeroed(1, verb->arguments_size);
    cli_list operands = {0};
    icma_error error = {0};
    EXPECT(arguments);
    icma_status status = cli_options_parse(verb, count, words, arguments, &operands, &error);
    EXPECT(status == error.status && (status == ICMA_OK || status == ICMA_E_USAGE));
    EXPECT(status != ICMA_OK || ((const cli_common *)arguments)->help || (operands.count >= verb->least_operands && operands.count <= verb->most_operands));
    cli_options_free(verb, arguments, &operands);
    icma_free(arguments);
    free(text);
    return 0;
}
