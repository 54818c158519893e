/* SPDX-License-Identifier: Apache-2.0 */
#include "safetensors_write.h"

#include "memory.h"
#include "sort.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ICMA_DTYPE_TABLE has the package's order. */
static int compare_drafts(const void *left, const void *right, const void *context) {
    (void)context;
    const icma_tensor_draft *a = left, *b = right;
    return a->dtype != b->dtype ? (a->dtype > b->dtype ? -1 : 1) : strcmp(a->name, b->name);
}

static int compare_names(const void *left, const void *right, const void *context) {
    (void)context;
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

icma_status icma_drafts_sort(icma_tensor_draft *drafts, size_t count, icma_error *error) {
    const char **names = icma_alloc_array(count + 1, sizeof *names);
    if (!names)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for a header");
    for (size_t i = 0; i < count; i++)
        names[i] = drafts[i].name;
    icma_sort(names, count, sizeof *names, compare_names, NULL);
    icma_status status = ICMA_OK;
    for (size_t i = 1; i < count && !status; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            status = icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "two tensors would be called \"%.*s\"",
                               ICMA_MAX_NAME, names[i]);
    icma_free(names);
    icma_sort(drafts, count, sizeof *drafts, compare_drafts, NULL);
    return status;
}

static void put_text(icma_buffer *out, const char *text) {
    icma_write_bytes(out, text, strlen(text));
}

/* As serde_json does: only what must be is escaped. */
static void put_string(icma_buffer *out, const char *text) {
    static const char letters[] = "\b\f\n\r\t\"\\", escaped[] = "bfnrt\"\\";
    icma_write_u8(out, '"');
    for (; *text; text++) {
        const char *found = strchr(letters, *text);
        char code[8];
        if (found) {
            icma_write_u8(out, '\\');
            icma_write_u8(out, (uint8_t)escaped[found - letters]);
        } else if ((unsigned char)*text < 0x20) {
            snprintf(code, sizeof code, "\\u%04x", (unsigned)*text);
            put_text(out, code);
        } else {
            icma_write_u8(out, (uint8_t)*text);
        }
    }
    icma_write_u8(out, '"');
}

static void put_whole(icma_buffer *out, uint64_t value) {
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, value);
    put_text(out, text);
}

static void put_metadata(icma_buffer *out, const icma_metadata *metadata, const char *prefix) {
    bool first = true;
    put_text(out, "\"__metadata__\":{");
    for (size_t i = 0; i < metadata->count; i++) {
        if (prefix && strncmp(metadata->list[i].key, prefix, strlen(prefix)) != 0)
            continue;
        if (!first)
            icma_write_u8(out, ',');
        put_string(out, metadata->list[i].key);
        icma_write_u8(out, ':');
        put_string(out, metadata->list[i].value);
        first = false;
    }
    icma_write_u8(out, '}');
}

static void put_draft(icma_buffer *out, const icma_tensor_draft *draft, uint64_t begin) {
    put_string(out, draft->name);
    put_text(out, ":{\"dtype\":");
    put_string(out, icma_dtype_name(draft->dtype));
    put_text(out, ",\"shape\":[");
    for (unsigned i = 0; i < draft->rank; i++) {
        if (i)
            icma_write_u8(out, ',');
        put_whole(out, draft->shape[i]);
    }
    put_text(out, "],\"data_offsets\":[");
    put_whole(out, begin);
    icma_write_u8(out, ',');
    put_whole(out, begin + draft->size);
    put_text(out, "]}");
}

icma_status icma_drafts_header(const icma_tensor_draft *drafts, size_t count, const icma_metadata *metadata,
                               const char *prefix, icma_buffer *out, icma_error *error) {
    size_t start = out->size;
    uint64_t begin = 0;
    bool first = !metadata->present;
    icma_write_u64(out, 0);
    icma_write_u8(out, '{');
    if (metadata->present)
        put_metadata(out, metadata, prefix);
    for (size_t i = 0; i < count; i++) {
        if (!first)
            icma_write_u8(out, ',');
        put_draft(out, &drafts[i], begin);
        begin += drafts[i].size;
        first = false;
    }
    icma_write_u8(out, '}');
    while ((out->size - start) % 8 && !out->failed)
        icma_write_u8(out, ' ');
    if (!out->failed)
        icma_store_u64(out->data + start, out->size - start - 8);
    return icma_buffer_status(out, error);
}

icma_status icma_drafts_compose(const icma_tensor_draft *drafts, size_t count, const icma_metadata *metadata,
                                uint8_t **image, size_t *size, icma_error *error) {
    icma_buffer header = {0};
    *image = NULL;
    *size = 0;
    icma_status status = icma_drafts_header(drafts, count, metadata, NULL, &header, error);
    size_t total = header.size;
    bool fits = true;
    for (size_t i = 0; i < count; i++)
        fits = fits && drafts[i].size <= SIZE_MAX && icma_add_size(total, (size_t)drafts[i].size, &total);
    if (!status && !(fits && (*image = icma_alloc(total))))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for an adapter");
    if (!status) {
        memcpy(*image, header.data, header.size);
        size_t at = header.size;
        for (size_t i = 0; i < count; i++) {
            if (drafts[i].size)
                memcpy(*image + at, drafts[i].data, (size_t)drafts[i].size);
            at += (size_t)drafts[i].size;
        }
        *size = total;
    }
    icma_buffer_free(&header);
    return status;
}
