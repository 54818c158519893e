/* SPDX-License-Identifier: Apache-2.0 */
#include "metadata.h"

#include "json.h"
#include "safetensors.h"
#include "utf8.h"

#include <stdio.h>
#include <string.h>

static const char metadata_key[] = "__metadata__";
enum { HEADER_DEPTH = 3, HEADER_ALIGNMENT = 8 };

static cJSON *make_string(const char *value) {
    const uint8_t *bytes = (const uint8_t *)value;
    icma_buffer valid = {0};
    char escape[8];
    for (size_t at = 0, left = strlen(value), n; left; at += n, left -= n) {
        n = icma_utf8_length(bytes + at, left);
        if (n)
            icma_write_bytes(&valid, bytes + at, n);
        else
            icma_write_bytes(&valid, escape, (size_t)snprintf(escape, sizeof escape, "\\x%02X", bytes[at]));
        n += n == 0;
    }
    icma_write_u8(&valid, 0);
    cJSON *item = valid.failed ? NULL : cJSON_CreateString((const char *)valid.data);
    icma_buffer_free(&valid);
    return item;
}

/* False when memory is short. */
static bool put_entries(cJSON *root, const icma_metadata_entry *entries, size_t count) {
    cJSON *metadata = cJSON_GetObjectItemCaseSensitive(root, metadata_key);
    if (!metadata)
        metadata = cJSON_AddObjectToObject(root, metadata_key);
    for (size_t i = 0; metadata && i < count; i++) {
        cJSON *item = make_string(entries[i].value);
        cJSON_DeleteItemFromObjectCaseSensitive(metadata, entries[i].key);
        if (!item || !cJSON_AddItemToObject(metadata, entries[i].key, item)) {
            cJSON_Delete(item);
            return false;
        }
    }
    return metadata != NULL;
}

icma_status icma_metadata_put(const uint8_t *text, size_t size, const icma_metadata_entry *entries,
                              size_t count, icma_buffer *out, icma_error *error) {
    cJSON *root;
    icma_json_rules rules = {.max_depth = HEADER_DEPTH, .plain_integers = true};
    icma_status status = icma_json_parse((const char *)text, size, rules, &root, error);
    if (status)
        return status;
    char *printed = put_entries(root, entries, count) ? cJSON_PrintUnformatted(root) : NULL;
    size_t length = printed ? strlen(printed) : 0;
    cJSON_Delete(root);
    if (!printed)
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a header");
    else if (length > ICMA_MAX_HEADER - HEADER_ALIGNMENT)
        status = icma_fail(error, ICMA_E_LIMIT, NULL,
                           "a header of %zu bytes; what is to be written in it is too long", length);
    else {
        icma_write_bytes(out, printed, length);
        for (; length % HEADER_ALIGNMENT; length++)
            icma_write_u8(out, ' ');
        status = icma_buffer_status(out, error);
    }
    cJSON_free(printed);
    return status;
}
