/* SPDX-License-Identifier: Apache-2.0 */
#include "json_out.h"

#include "terminal.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static bool failed; /* something did not fit into memory since the last print */

static cJSON *attach(cJSON *to, const char *key, cJSON *item) {
    bool added = key ? cJSON_AddItemToObject(to, key, item) : cJSON_AddItemToArray(to, item);
    if (added)
        return item;
    cJSON_Delete(item);
    failed = true;
    return NULL;
}

cJSON *cli_json_object(void) {
    cJSON *object = cJSON_CreateObject();
    failed |= !object;
    return object;
}

cJSON *cli_json_add_object(cJSON *to, const char *key) {
    return attach(to, key, cJSON_CreateObject());
}

cJSON *cli_json_add_array(cJSON *to, const char *key) {
    return attach(to, key, cJSON_CreateArray());
}

/* Invalid bytes as \xNN, the rest untouched. */
static void append_valid(icma_buffer *out, const char *text) {
    while (*text) {
        uint32_t character;
        size_t length = cli_utf8_decode(text, &character);
        if (length)
            icma_write_bytes(out, text, length);
        else
            cli_append(out, "\\x%02X", (unsigned)(unsigned char)*text);
        text += length ? length : 1;
    }
    icma_write_u8(out, '\0');
}

void cli_json_text(cJSON *to, const char *key, const char *text) {
    if (!text) {
        cli_json_null(to, key);
        return;
    }
    icma_buffer valid = {0};
    append_valid(&valid, text);
    attach(to, key, valid.failed ? NULL : cJSON_CreateString((const char *)valid.data));
    icma_buffer_free(&valid);
}

void cli_json_whole(cJSON *to, const char *key, uint64_t value) {
    char text[24]; /* raw: a double would round beyond 2^53 */
    snprintf(text, sizeof text, "%" PRIu64, value);
    attach(to, key, cJSON_CreateRaw(text));
}

void cli_json_real(cJSON *to, const char *key, double value) {
    attach(to, key, isfinite(value) ? cJSON_CreateNumber(value) : cJSON_CreateNull());
}

void cli_json_bool(cJSON *to, const char *key, bool value) {
    attach(to, key, cJSON_CreateBool(value));
}

void cli_json_null(cJSON *to, const char *key) {
    attach(to, key, cJSON_CreateNull());
}

void cli_json_hash(cJSON *to, const char *key, uint64_t hash) {
    char text[24];
    snprintf(text, sizeof text, "%016" PRIx64, hash);
    attach(to, key, cJSON_CreateString(text));
}

void cli_json_copy(cJSON *to, const char *key, const cJSON *value) {
    attach(to, key, value ? cJSON_Duplicate(value, true) : cJSON_CreateNull());
}

/* cJSON escapes what JSON demands; here, what a terminal would obey, which all stands inside strings. Its
 * tabs stand outside of them (indentation, and behind colons), and become blanks. */
static void print_escaped(const char *text, FILE *out) {
    for (char before = '\0'; *text;) {
        uint32_t c = 0;
        size_t length = cli_utf8_decode(text, &c);
        if (c == '\t')
            fputs(before == ':' ? " " : "  ", out);
        else if (length < 2 && c != 0x7F)
            fputc(*text, out);
        else if (!cli_is_unsafe(c))
            fwrite(text, 1, length, out);
        else if (c < 0x10000)
            fprintf(out, "\\u%04x", (unsigned)c);
        else
            fprintf(out, "\\u%04x\\u%04x", (unsigned)(0xD800 + ((c - 0x10000) >> 10)),
                    (unsigned)(0xDC00 + ((c - 0x10000) & 0x3FF)));
        before = *text;
        text += length ? length : 1;
    }
    fputc('\n', out);
}

static bool print_document(cJSON *root, bool indented, FILE *out) {
    char *text = failed ? NULL : indented ? cJSON_Print(root) : cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
    failed = false;
    if (text)
        print_escaped(text, out);
    cJSON_free(text);
    return text != NULL;
}

icma_status cli_json_print(cJSON *root, FILE *out, icma_error *error) {
    if (print_document(root, true, out))
        return ICMA_OK;
    return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for the JSON document");
}

void cli_json_print_line(cJSON *root, FILE *out) {
    print_document(root, false, out);
}
