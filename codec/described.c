/* SPDX-License-Identifier: Apache-2.0 */
#include "described.h"

#include "coarse.h"
#include "file.h"
#include "json.h"
#include "memory.h"
#include "text_encoder.h"
#include "tokenizer.h"

#include <stdio.h>
#include <string.h>

enum { MOST_MAP = 1 << 26 };

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for descriptions");
}

/* Tasks stand in natural order. */
static size_t find_task(const icma_inputs *inputs, const char *name) {
    size_t low = 0, high = inputs->task_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = icma_compare_natural(inputs->tasks[middle].name, name);
        if (order == 0)
            return middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return SIZE_MAX;
}

static icma_status take_text(const cJSON *item, const icma_inputs *inputs, icma_described *out,
                             icma_error *error) {
    const char *text = cJSON_GetStringValue(item);
    size_t task = find_task(inputs, item->string);
    if (!text)
        return icma_fail(
            error, ICMA_E_CORRUPT, NULL,
            "\"%.60s\" has no text; a map of tasks to texts looks like {\"cat\": \"detect the cat\"}",
            item->string);
    if (task == SIZE_MAX)
        return icma_fail(error, ICMA_E_NOT_FOUND, NULL,
                         "\"%.60s\" is none of the tasks that were found; icma pack --dry-run lists them",
                         item->string);
    if (strlen(text) > ICMA_MOST_TEXT)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "the text of \"%.60s\" has more than %d bytes",
                         item->string, ICMA_MOST_TEXT);
    out->text[task] = icma_copy_string(text);
    return out->text[task] ? ICMA_OK : no_memory(error);
}

icma_status icma_described_read(const char *path, const icma_inputs *inputs, icma_described *out,
                                icma_error *error) {
    static const icma_json_rules rules = {.max_depth = 1};
    uint8_t *map = NULL;
    size_t size = 0;
    cJSON *root = NULL;
    memset(out, 0, sizeof *out);
    icma_status status = icma_file_read_all(path, MOST_MAP, &map, &size, error);
    if (!status)
        status = icma_json_parse((const char *)map, size, rules, &root, error);
    if (!status && !cJSON_IsObject(root))
        status = icma_fail(error, ICMA_E_CORRUPT, NULL,
                           "not a map of tasks to texts; that looks like {\"cat\": \"detect the cat\"}");
    out->count = inputs->task_count;
    if (!status && !(out->text = icma_alloc_zeroed(out->count, sizeof *out->text)))
        status = no_memory(error);
    for (const cJSON *item = status ? NULL : root->child; !status && item; item = item->next)
        status = take_text(item, inputs, out, error);
    cJSON_Delete(root);
    icma_free(map);
    icma_error_set_file(error, path);
    if (status)
        icma_described_free(out);
    return status;
}

/* Texts of tasks that have one, and which tasks those are. */
static size_t gather(const icma_described *d, const char **texts, size_t *tasks) {
    size_t count = 0;
    for (size_t t = 0; t < d->count; t++)
        if (d->text[t]) {
            texts[count] = d->text[t];
            tasks[count++] = t;
        }
    return count;
}

static icma_status embed(icma_described *d, icma_text_encoder *encoder, icma_error *error) {
    const char **texts = icma_alloc_array(d->count, sizeof *texts);
    size_t *tasks = icma_alloc_array(d->count, sizeof *tasks);
    d->rows = icma_alloc_zeroed(d->count, d->width * sizeof *d->rows);
    icma_status status = texts && tasks && d->rows ? ICMA_OK : no_memory(error);
    size_t count = status ? 0 : gather(d, texts, tasks);
    if (!status)
        status = icma_text_encoder_embed(encoder, texts, count, d->projection, d->rows, error);
    /* From the last on: a task's row is never before its text's. */
    for (size_t i = count; !status && i-- > 0;) {
        memmove(d->rows + tasks[i] * d->width, d->rows + i * d->width, d->width * sizeof *d->rows);
        icma_coarse_round(d->rows + tasks[i] * d->width, d->width);
    }
    icma_free(texts);
    icma_free(tasks);
    return status;
}

icma_status icma_described_embed(icma_described *d, const char *folder, bool projection, const icma_ops *ops,
                                 icma_error *error) {
    icma_text_encoder *encoder;
    icma_status status = icma_text_encoder_open(folder, ops, &encoder, error);
    if (status)
        return status;
    d->projection = projection;
    d->width = icma_text_encoder_width(encoder, projection);
    d->hash = icma_text_encoder_hash(encoder);
    d->pooling = icma_text_encoder_pooling(encoder);
    d->encoder = icma_copy_string(icma_text_encoder_id(encoder));
    if (!d->encoder)
        status = no_memory(error);
    else if (!d->width)
        status = icma_fail(error, ICMA_E_UNSUPPORTED, folder,
                           "an encoder without text projection; leave out --projection");
    if (!status)
        status = embed(d, encoder, error);
    icma_text_encoder_close(encoder);
    return status;
}

void icma_described_free(icma_described *d) {
    for (size_t t = 0; d->text && t < d->count; t++)
        icma_free(d->text[t]);
    icma_free(d->text);
    icma_free(d->rows);
    icma_free(d->encoder);
    memset(d, 0, sizeof *d);
}

void icma_described_origin(const char *text, char *origin, size_t size) {
    int written = snprintf(origin, size, "text: %s", text);
    if (written < 0 || (size_t)written < size)
        return;
    size_t end = size - 1, start = end;
    while (start > 0 && ((unsigned char)origin[start - 1] & 0xC0) == 0x80)
        start--;
    /* `start` is behind a first byte; how many bytes its character has says whether it is whole */
    unsigned char first = start ? (unsigned char)origin[start - 1] : 0;
    size_t length = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    origin[start && start - 1 + length > end ? start - 1 : end] = '\0';
}
