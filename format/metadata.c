/* SPDX-License-Identifier: Apache-2.0 */
#include "metadata.h"

#include "json.h"
#include "memory.h"
#include "safetensors.h"
#include "utf8.h"

#include <stdio.h>
#include <string.h>

static const char metadata_key[] = "__metadata__";
enum { HEADER_DEPTH = 3, HEADER_ALIGNMENT = 8 };

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for metadata");
}

/* Goes into __metadata__; *found is false where there is none. */
static icma_status enter_metadata(icma_json_cursor *from, icma_buffer *text, bool *found, icma_error *error) {
    *found = false;
    icma_json_enter(from, '{');
    while (!*found && icma_json_next(from)) {
        if (!icma_json_take_key(from, text))
            return no_memory(error);
        *found = strcmp((const char *)text->data, metadata_key) == 0;
        if (!*found)
            icma_json_skip(from);
    }
    if (*found)
        icma_json_enter(from, '{');
    return ICMA_OK;
}

static icma_status append(icma_metadata *m, const char *key, const char *value, icma_error *error) {
    icma_metadata_pair *more = icma_resize_array(m->list, m->count + 1, sizeof *more);
    if (!more)
        return no_memory(error);
    m->list = more;
    icma_metadata_pair entry = {icma_copy_string(key), icma_copy_string(value)};
    m->list[m->count++] = entry;
    m->present = true;
    return entry.key && entry.value ? ICMA_OK : no_memory(error);
}

static icma_status read_entries(icma_json_cursor *from, icma_metadata *out, icma_error *error) {
    icma_buffer key = {0}, value = {0};
    icma_status status = ICMA_OK;
    while (!status && icma_json_next(from)) {
        if (!icma_json_take_key(from, &key) || !icma_json_take_string(from, &value))
            status = no_memory(error);
        else
            status = append(out, (const char *)key.data, (const char *)value.data, error);
    }
    icma_buffer_free(&key);
    icma_buffer_free(&value);
    return status;
}

icma_status icma_metadata_read(const void *header, size_t size, icma_metadata *out, icma_error *error) {
    icma_json_cursor from = {header, size, 0};
    icma_buffer text = {0};
    *out = (icma_metadata){0};
    icma_status status = enter_metadata(&from, &text, &out->present, error);
    icma_buffer_free(&text);
    if (!status && out->present)
        status = read_entries(&from, out, error);
    if (status)
        icma_metadata_free(out);
    return status;
}

void icma_metadata_free(icma_metadata *m) {
    for (size_t i = 0; i < m->count; i++) {
        icma_free(m->list[i].key);
        icma_free(m->list[i].value);
    }
    icma_free(m->list);
    *m = (icma_metadata){0};
}

static size_t find(const icma_metadata *m, const char *key) {
    for (size_t i = 0; i < m->count; i++)
        if (strcmp(m->list[i].key, key) == 0)
            return i;
    return SIZE_MAX;
}

const char *icma_metadata_find(const icma_metadata *m, const char *key) {
    size_t at = find(m, key);
    return at == SIZE_MAX ? NULL : m->list[at].value;
}

icma_status icma_metadata_set(icma_metadata *m, const char *key, const char *value, icma_error *error) {
    size_t at = find(m, key);
    if (at == SIZE_MAX)
        return value ? append(m, key, value, error) : ICMA_OK;
    icma_metadata_pair *entry = &m->list[at];
    char *copy = icma_copy_string(value);
    if (value && !copy)
        return no_memory(error);
    icma_free(entry->value);
    entry->value = copy;
    if (!value) {
        icma_free(entry->key);
        memmove(entry, entry + 1, (m->count - at - 1) * sizeof *entry);
        m->count--;
    }
    return ICMA_OK;
}

/* --- cutting -------------------------------------------------------------------------------------------- */

static bool is_listed(const char *key, const char *const *keys) {
    while (*keys && strcmp(key, *keys) != 0)
        keys++;
    return *keys != NULL;
}

static bool is_space(uint8_t c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void pad(const icma_buffer *out, size_t start, size_t *missing) {
    *missing = (HEADER_ALIGNMENT - (out->size - start) % HEADER_ALIGNMENT) % HEADER_ALIGNMENT;
}

/* From the first entry on: keeps what is not listed, with commas between. */
static icma_status copy_entries(icma_json_cursor *from, const char *const *keys, icma_buffer *out,
                                size_t *cut, icma_error *error) {
    icma_buffer key = {0};
    bool first = true;
    icma_status status = ICMA_OK;
    while (!status && icma_json_next(from)) {
        icma_json_peek(from);
        size_t begin = from->at;
        if (!icma_json_take_key(from, &key)) {
            status = no_memory(error);
            break;
        }
        icma_json_skip(from);
        if (is_listed((const char *)key.data, keys)) {
            ++*cut;
            continue;
        }
        if (!first)
            icma_write_u8(out, ',');
        icma_write_bytes(out, from->text + begin, from->at - begin);
        first = false;
    }
    icma_buffer_free(&key);
    return status;
}

icma_status icma_metadata_cut(const void *header, size_t size, const char *const *keys, icma_buffer *out,
                              size_t *cut, icma_error *error) {
    icma_json_cursor from = {header, size, 0};
    icma_buffer text = {0};
    size_t start = out->size, missing;
    bool found;
    *cut = 0;
    icma_status status = enter_metadata(&from, &text, &found, error);
    icma_buffer_free(&text);
    if (status || !found)
        return status;
    icma_write_bytes(out, header, from.at);
    status = copy_entries(&from, keys, out, cut, error);
    if (!status && *cut) {
        while (size > from.at && is_space(from.text[size - 1] & 0xff))
            size--;
        icma_write_u8(out, '}');
        icma_write_bytes(out, from.text + from.at, size - from.at);
        pad(out, start, &missing);
        for (; missing; missing--)
            icma_write_u8(out, ' ');
        status = icma_buffer_status(out, error);
    }
    if (status || !*cut)
        out->size = start;
    return status;
}

/* --- putting -------------------------------------------------------------------------------------------- */

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
        status = no_memory(error);
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
