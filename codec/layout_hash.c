/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hashes of the weights that a file's metadata has of itself.
 *
 * kohya's sd-scripts (library/train_util.py, precalculate_safetensors_hashes) write the file once with those
 * metadata entries alone whose keys start with "ss_", and take sshs_model_hash, the SHA-256 of what follows
 * the header, and sshs_legacy_hash, the first 8 digits of the SHA-256 of the 65,536 bytes from 1 MiB on,
 * header and all (fewer or none in smaller files). The order of the entries in that header is not defined, so
 * that the latter has no value where the header is longer than 1 MiB. modelspec.hash_sha256 (Stability AI's
 * Model Metadata Standard) is "0x" and the SHA-256 of what follows the header.
 */
#include "layout_inside.h"

#include "memory.h"
#include "sha256.h"

#include <string.h>

enum { LEGACY_START = 1 << 20, LEGACY_BYTES = 1 << 16, LEGACY_DIGITS = 8 };

static const char model_hash[] = "sshs_model_hash", legacy_hash[] = "sshs_legacy_hash",
                  spec_hash[] = "modelspec.hash_sha256", training[] = "ss_";

const char *const icma_hash_keys[] = {model_hash, legacy_hash, spec_hash, NULL};

/* Of bytes begin .. end - 1 of the data that the drafts make. */
static void hash_data(const icma_tensor_draft *drafts, size_t count, uint64_t begin, uint64_t end,
                      char text[ICMA_SHA256_TEXT]) {
    icma_sha256 hash = icma_sha256_start();
    uint8_t digest[ICMA_SHA256_BYTES];
    uint64_t at = 0;
    for (size_t i = 0; i < count && at < end; at += drafts[i++].size) {
        uint64_t from = begin > at ? begin - at : 0,
                 to = end - at < drafts[i].size ? end - at : drafts[i].size;
        if (from < to)
            icma_sha256_add(&hash, drafts[i].data + from, (size_t)(to - from));
    }
    icma_sha256_finish(&hash, digest);
    icma_sha256_text(digest, text);
}

static bool is_trained(const icma_metadata *metadata) {
    for (size_t i = 0; i < metadata->count; i++)
        if (strncmp(metadata->list[i].key, training, sizeof training - 1) == 0)
            return true;
    return false;
}

static icma_status set_legacy(const icma_tensor_draft *drafts, size_t count, icma_metadata *metadata,
                              icma_error *error) {
    char text[ICMA_SHA256_TEXT];
    icma_buffer header = {0};
    icma_status status = icma_drafts_header(drafts, count, metadata, training, &header, error);
    if (!status && header.size > LEGACY_START)
        status = icma_metadata_set(metadata, legacy_hash, NULL, error);
    else if (!status) {
        uint64_t begin = LEGACY_START - header.size;
        hash_data(drafts, count, begin, begin + LEGACY_BYTES, text);
        text[LEGACY_DIGITS] = '\0';
        status = icma_metadata_set(metadata, legacy_hash, text, error);
    }
    icma_buffer_free(&header);
    return status;
}

static icma_status make_hashes(const icma_tensor_draft *drafts, size_t count, bool spec,
                               icma_metadata *metadata, icma_error *error) {
    char text[2 + ICMA_SHA256_TEXT] = "0x";
    hash_data(drafts, count, 0, UINT64_MAX, text + 2);
    icma_status status = icma_metadata_set(metadata, model_hash, text + 2, error);
    if (!status)
        status = set_legacy(drafts, count, metadata, error);
    if (!status && spec)
        status = icma_metadata_set(metadata, spec_hash, text, error);
    return status;
}

icma_status icma_layout_rehash(const icma_tensor_draft *drafts, size_t count, bool make,
                               icma_metadata *metadata, icma_layout_result *told, icma_error *error) {
    bool any = false, spec = icma_metadata_find(metadata, spec_hash) != NULL;
    for (const char *const *key = icma_hash_keys; *key; key++)
        any |= icma_metadata_find(metadata, *key) != NULL;
    if (make && (any || is_trained(metadata))) {
        told->hashes_made = true;
        return make_hashes(drafts, count, spec, metadata, error);
    }
    icma_status status = ICMA_OK;
    for (const char *const *key = icma_hash_keys; any && !status && *key; key++)
        status = icma_metadata_set(metadata, *key, NULL, error);
    told->hashes_dropped |= any;
    return status;
}
