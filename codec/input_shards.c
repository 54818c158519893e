/* SPDX-License-Identifier: Apache-2.0 */
#include "input_shards.h"

#include "file.h"
#include "input_names.h"
#include "json.h"
#include "memory.h"
#include "safetensors_write.h"

#include <stdio.h>
#include <string.h>

enum { MOST_SHARDS = 1024, MOST_METADATA = 1024, LARGEST_INDEX = 64 << 20, BLOCK = 1 << 20 };

#define WHOLE "adapter_model.safetensors"

/* Five digits or more, as Python's :05d. */
static bool read_number(const char **text, size_t *out) {
    size_t digits = strspn(*text, "0123456789");
    *out = 0;
    for (size_t i = 0; i < digits && digits <= 9; i++)
        *out = *out * 10 + (size_t)((*text)[i] - '0');
    *text += digits;
    return digits >= 5 && digits <= 9;
}

bool icma_name_shard(const char *name, size_t *number, size_t *count) {
    static const char start[] = "adapter_model-", middle[] = "-of-";
    if (strncmp(name, start, sizeof start - 1) != 0)
        return false;
    name += sizeof start - 1;
    if (!read_number(&name, number) || strncmp(name, middle, sizeof middle - 1) != 0)
        return false;
    name += sizeof middle - 1;
    return read_number(&name, count) && strcmp(name, ".safetensors") == 0;
}

typedef struct shard {
    icma_file *file;
    icma_safetensors tensors;
} shard;

/* Where a tensor's bytes are. A draft's `data` leads here: the bytes are not in memory. */
typedef struct origin {
    shard *shard;
    uint64_t offset;
} origin;

typedef struct joining {
    icma_finder *finder;
    const char *folder;
    const char **names; /* in the listing */
    shard *shards;
    size_t count, tensors;
    icma_metadata metadata;
    icma_tensor_draft *drafts;
    origin *origins;
} joining;

static icma_status fail_corrupt(const joining *j, const char *what, const char *name) {
    return icma_fail(j->finder->error, ICMA_E_CORRUPT, j->folder, "%s %.200s; get all shards again", what,
                     name);
}

/* Which entries are the shards: all of them, of one set. */
static icma_status find_names(joining *j, const icma_listing *entries) {
    for (size_t i = 0; i < entries->count; i++) {
        size_t number, count;
        if (!icma_name_shard(entries->list[i].name, &number, &count))
            continue;
        if (count != j->count || number < 1 || number > count || j->names[number - 1])
            return fail_corrupt(j, "a shard that does not belong to the others:", entries->list[i].name);
        j->names[number - 1] = entries->list[i].name;
    }
    for (size_t i = 0; i < j->count; i++)
        if (!j->names[i]) {
            char name[64];
            snprintf(name, sizeof name, "%zu of %zu", i + 1, j->count);
            return fail_corrupt(j, "a shard is missing:", name);
        }
    return ICMA_OK;
}

/* What a shard says of itself goes to the whole, which says it once. */
static icma_status take_metadata(joining *j, const shard *from, const char *name) {
    icma_metadata own = {0};
    icma_status status =
        icma_metadata_read(from->tensors.header, from->tensors.header_size, &own, j->finder->error);
    if (!status && own.count + j->metadata.count > MOST_METADATA)
        status = fail_corrupt(j, "too much metadata in", name);
    j->metadata.present |= own.present;
    for (size_t i = 0; !status && i < own.count; i++) {
        const char *there = icma_metadata_find(&j->metadata, own.list[i].key);
        if (there && strcmp(there, own.list[i].value) != 0)
            status = fail_corrupt(j, "its shards say different things of", own.list[i].key);
        else if (!there)
            status = icma_metadata_set(&j->metadata, own.list[i].key, own.list[i].value, j->finder->error);
    }
    icma_metadata_free(&own);
    return status;
}

static icma_status open_shard(joining *j, size_t i) {
    shard *out = &j->shards[i];
    icma_error *error = j->finder->error;
    char *path = icma_path_join(j->folder, j->names[i]);
    icma_status status = path ? icma_file_open(path, &out->file, error) : icma_finder_no_memory(j->finder);
    if (!status)
        status = icma_safetensors_read(out->file, &out->tensors, error);
    if (!status)
        status = take_metadata(j, out, j->names[i]);
    if (status)
        icma_error_set_file(error, path);
    icma_free(path);
    if (!status)
        icma_file_park(out->file);
    j->tensors += out->tensors.tensor_count;
    return status;
}

/* --- the index ----------------------------------------------------------------------------------------- */

static icma_status check_map(const joining *j, const cJSON *map) {
    size_t told = 0;
    for (const cJSON *item = cJSON_IsObject(map) ? map->child : NULL; item; item = item->next, told++) {
        size_t number = 0, count;
        if (!cJSON_IsString(item) || !icma_name_shard(item->valuestring, &number, &count) ||
            count != j->count || number < 1 || number > count ||
            icma_safetensors_find(&j->shards[number - 1].tensors, item->string) == SIZE_MAX)
            return fail_corrupt(j, "the shards have not what their index says of", item->string);
    }
    return told == j->tensors
               ? ICMA_OK
               : fail_corrupt(j, "its shards have tensors that are not in", WHOLE ".index.json");
}

static icma_status check_index_file(const joining *j, const char *name, bool *found) {
    const icma_json_rules rules = {.max_depth = 8, .plain_integers = false};
    uint8_t *text = NULL;
    size_t size = 0;
    cJSON *root = NULL;
    icma_identity id;
    char *path = icma_path_join(j->folder, name);
    icma_status status = path ? ICMA_OK : icma_finder_no_memory(j->finder);
    *found = path && icma_path_look(path, &id) == ICMA_ENTRY_FILE;
    if (*found)
        status = icma_file_read_all(path, LARGEST_INDEX, &text, &size, j->finder->error);
    if (*found && status == ICMA_OK)
        status = icma_json_parse((const char *)text, size, rules, &root, j->finder->error);
    if (status != ICMA_OK)
        icma_error_set_file(j->finder->error, path);
    if (*found && status == ICMA_OK)
        status = check_map(j, cJSON_GetObjectItemCaseSensitive(root, "weight_map"));
    cJSON_Delete(root);
    icma_free(text);
    icma_free(path);
    return status;
}

/* transformers calls the index after the whole model, or after the adapter. Shards without one are taken as
 * they are: their names say that they are all there. */
static icma_status check_index(const joining *j) {
    bool found;
    icma_status status = check_index_file(j, WHOLE ".index.json", &found);
    return status != ICMA_OK || found ? status : check_index_file(j, "model.safetensors.index.json", &found);
}

/* --- the whole ----------------------------------------------------------------------------------------- */

static icma_status draft_tensors(joining *j) {
    size_t at = 0;
    j->drafts = icma_alloc_zeroed(j->tensors + 1, sizeof *j->drafts);
    j->origins = icma_alloc_zeroed(j->tensors + 1, sizeof *j->origins);
    if (!j->drafts || !j->origins)
        return icma_finder_no_memory(j->finder);
    for (size_t i = 0; i < j->count; i++)
        for (size_t t = 0; t < j->shards[i].tensors.tensor_count; t++, at++) {
            const icma_tensor_info *info = &j->shards[i].tensors.tensors[t];
            icma_tensor_draft *draft = &j->drafts[at];
            j->origins[at] =
                (origin){&j->shards[i], icma_safetensors_data_offset(&j->shards[i].tensors) + info->begin};
            *draft = (icma_tensor_draft){.name = info->name,
                                         .dtype = info->dtype,
                                         .rank = info->rank,
                                         .data = (const uint8_t *)&j->origins[at],
                                         .size = info->size};
            memcpy(draft->shape, info->shape, sizeof draft->shape);
        }
    icma_status status = icma_drafts_sort(j->drafts, j->tensors, j->finder->error);
    if (status)
        icma_error_set_file(j->finder->error, j->folder);
    return status;
}

static icma_status copy_tensor(const joining *j, const icma_tensor_draft *draft, uint8_t *block) {
    const origin *from = (const origin *)(const void *)draft->data;
    icma_status status = ICMA_OK;
    for (uint64_t done = 0, part; !status && done < draft->size; done += part) {
        part = draft->size - done < BLOCK ? draft->size - done : BLOCK;
        status =
            icma_file_read(from->shard->file, from->offset + done, block, (size_t)part, j->finder->error);
        if (!status)
            status = icma_spool_write(j->finder->spool, block, (size_t)part, j->finder->error);
    }
    icma_file_park(from->shard->file);
    return status;
}

static icma_status write_whole(const joining *j) {
    icma_error *error = j->finder->error;
    icma_buffer header = {0};
    uint8_t *block = icma_alloc(BLOCK);
    char *path = icma_path_join(j->folder, WHOLE);
    icma_status status = block && path ? ICMA_OK : icma_finder_no_memory(j->finder);
    if (!status)
        status = icma_drafts_header(j->drafts, j->tensors, &j->metadata, NULL, &header, error);
    if (!status)
        status = icma_spool_begin(j->finder->spool, path, error);
    if (!status)
        status = icma_spool_write(j->finder->spool, header.data, header.size, error);
    for (size_t i = 0; !status && i < j->tensors; i++)
        status = copy_tensor(j, &j->drafts[i], block);
    for (size_t i = 0; !status && i < j->count; i++)
        status = icma_file_check_unchanged(j->shards[i].file, error);
    if (!status)
        status = icma_spool_publish(j->finder->spool, error);
    icma_buffer_free(&header);
    icma_free(path);
    icma_free(block);
    return status;
}

icma_status icma_shards_join(icma_finder *f, const char *folder, const icma_listing *entries, size_t count) {
    joining j = {.finder = f, .folder = folder, .count = count};
    if (count < 1 || count > MOST_SHARDS)
        return icma_fail(f->error, ICMA_E_LIMIT, folder, "an adapter in %zu shards; at most %d can be joined",
                         count, (int)MOST_SHARDS);
    j.names = icma_alloc_zeroed(count, sizeof *j.names);
    j.shards = icma_alloc_zeroed(count, sizeof *j.shards);
    icma_status status = j.names && j.shards ? find_names(&j, entries) : icma_finder_no_memory(f);
    for (size_t i = 0; !status && i < count; i++)
        status = open_shard(&j, i);
    if (!status)
        status = check_index(&j);
    if (!status)
        status = draft_tensors(&j);
    if (!status)
        status = icma_finder_need_spool(f);
    if (!status)
        status = write_whole(&j);
    for (size_t i = 0; j.shards && i < count; i++) {
        icma_file_close(j.shards[i].file);
        icma_safetensors_free(&j.shards[i].tensors);
    }
    icma_metadata_free(&j.metadata);
    icma_free(j.drafts);
    icma_free(j.origins);
    icma_free(j.shards);
    icma_free(j.names);
    return status;
}
