/* SPDX-License-Identifier: Apache-2.0 */
/* What the strict check lets through, cJSON must parse; what it lets through as plain integers, it lets
 * through without that rule. */
#include "fuzz_target.h"

#include "json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *text = (const char *)data;
    icma_json_rules loose = {.max_depth = 32}, plain = {.max_depth = 32, .plain_integers = true};
    cJSON *root;
    icma_error error = {0};
    icma_status status = icma_json_parse(text, size, loose, &root, &error);
    EXPECT((status == ICMA_OK) == (root != NULL));
    EXPECT((status == ICMA_OK) == (error.status == ICMA_OK));
    EXPECT(status == ICMA_OK || status == ICMA_E_CORRUPT || status == ICMA_E_LIMIT);
    EXPECT(icma_json_check(text, size, plain, NULL) != ICMA_OK || status == ICMA_OK);
    cJSON_Delete(root);
    return 0;
}
