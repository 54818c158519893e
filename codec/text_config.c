/* SPDX-License-Identifier: Apache-2.0 */
/* config.json of a text encoder. Values that are not given are those of transformers' CLIPTextConfig. */
#include "file.h"
#include "json.h"
#include "memory.h"
#include "text_inside.h"

#include <math.h>
#include <string.h>

enum { MOST_CONFIG = 1 << 20 };

static const cJSON *item_of(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNull(item) ? NULL : item;
}

static icma_status read_size(const cJSON *config, const char *key, size_t standard, size_t least, size_t most,
                             size_t *out, icma_error *error) {
    const cJSON *item = item_of(config, key);
    uint64_t value = standard;
    if (item && !icma_json_whole(item, &value))
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "%s is no whole number", key);
    if (value < least || value > most)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "%s is %llu; from %zu to %zu are possible", key,
                         (unsigned long long)value, least, most);
    *out = (size_t)value;
    return ICMA_OK;
}

static icma_status read_activation(const cJSON *config, icma_text_shape *out, icma_error *error) {
    const cJSON *item = item_of(config, "hidden_act");
    const char *name = item ? cJSON_GetStringValue(item) : "quick_gelu";
    if (!name || (strcmp(name, "quick_gelu") != 0 && strcmp(name, "gelu") != 0))
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                         "hidden_act is \"%.40s\"; quick_gelu and gelu are possible", name ? name : "");
    out->quick = strcmp(name, "quick_gelu") == 0;
    return ICMA_OK;
}

static icma_status read_epsilon(const cJSON *config, icma_text_shape *out, icma_error *error) {
    const cJSON *item = item_of(config, "layer_norm_eps");
    double value = !item ? 1e-5 : cJSON_IsNumber(item) ? item->valuedouble : NAN;
    if (!(value >= 1e-30 && value <= 1))
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "layer_norm_eps is no number from 1e-30 to 1");
    out->epsilon = (float)value;
    return ICMA_OK;
}

static icma_status read_shape(const cJSON *config, icma_text_shape *out, icma_error *error) {
    size_t end = 0;
    icma_status status =
        read_size(config, "vocab_size", 49408, 1, ICMA_MOST_VOCABULARY, &out->vocabulary, error);
    if (!status)
        status = read_size(config, "hidden_size", 512, 1, ICMA_MOST_TEXT_WIDTH, &out->width, error);
    if (!status)
        status = read_size(config, "intermediate_size", 2048, 1, ICMA_MOST_TEXT_HIDDEN, &out->hidden, error);
    if (!status)
        status = read_size(config, "num_hidden_layers", 12, 1, ICMA_MOST_TEXT_LAYERS, &out->layers, error);
    if (!status)
        status = read_size(config, "num_attention_heads", 8, 1, ICMA_MOST_TEXT_WIDTH, &out->heads, error);
    if (!status)
        status = read_size(config, "max_position_embeddings", 77, 2, ICMA_MOST_TEXT_POSITIONS,
                           &out->positions, error);
    if (!status)
        status = read_size(config, "eos_token_id", 49407, 0, ICMA_MOST_VOCABULARY - 1, &end, error);
    if (!status && out->width % out->heads != 0)
        status =
            icma_fail(error, ICMA_E_CORRUPT, NULL,
                      "hidden_size %zu is no multiple of num_attention_heads %zu", out->width, out->heads);
    out->end = (uint32_t)end;
    out->largest_id = end == 2;
    if (!status)
        status = read_activation(config, out, error);
    return status ? status : read_epsilon(config, out, error);
}

/* The text encoder's part: of a whole CLIP text_config, or, as in transformers, text_config_dict where old
 * files have both. */
static const cJSON *text_part(const cJSON *root) {
    static const char *const keys[] = {"text_config_dict", "text_config"};
    for (size_t i = 0; i < 2; i++)
        if (cJSON_IsObject(item_of(root, keys[i])))
            return item_of(root, keys[i]);
    return root;
}

static icma_status check_type(const cJSON *root, icma_error *error) {
    const char *type = cJSON_GetStringValue(item_of(root, "model_type"));
    if (!cJSON_IsObject(root))
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "not the configuration of a model; an object is");
    if (type && strcmp(type, "clip") != 0 && strcmp(type, "clip_text_model") != 0)
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                         "model_type is \"%.40s\"; a CLIP or its text encoder is possible", type);
    return ICMA_OK;
}

icma_status icma_text_shape_parse(const void *text, size_t size, icma_text_shape *out, char **name,
                                  icma_error *error) {
    static const icma_json_rules rules = {.max_depth = 16};
    cJSON *root;
    *name = NULL;
    memset(out, 0, sizeof *out);
    icma_status status = icma_json_parse(text, size, rules, &root, error);
    if (status)
        return status;
    status = check_type(root, error);
    if (!status)
        status = read_shape(text_part(root), out, error);
    const char *given = cJSON_GetStringValue(item_of(root, "_name_or_path"));
    if (!status && given && *given && !(*name = icma_copy_string(given)))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a name");
    cJSON_Delete(root);
    return status;
}

icma_status icma_text_shape_read(const char *path, icma_text_shape *out, char **name, icma_error *error) {
    uint8_t *text = NULL;
    size_t size = 0;
    *name = NULL;
    icma_status status = icma_file_read_all(path, MOST_CONFIG, &text, &size, error);
    if (!status)
        status = icma_text_shape_parse(text, size, out, name, error);
    icma_free(text);
    icma_error_set_file(error, path);
    return status;
}
