/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What servers of language models want of an adapter's folder, as far as the folder alone tells.
 *
 * vLLM's resolver of LoRA adapters from a file system (vllm/plugins/lora_resolvers/filesystem_resolver.py)
 * takes <folder>/<name> where adapter_config.json has peft_type "LORA" and base_model_name_or_path equal to
 * the name of the model that is served. Its loader (vllm/lora/peft_helper.py, utils.py, lora_model.py) wants
 * r, lora_alpha and target_modules; no modules_to_save, no DoRA, no bias; r at most --max-lora-rank, of which
 * 512 is the largest; of tensors, lora_A.weight and lora_B.weight (lora_embedding_A and _B) alone; and it
 * scales all modules by one lora_alpha / r, whatever rank_pattern and alpha_pattern say. LoRAX
 * (lorax_server/adapters/lora.py) reads the same files, "base_model.model.<module>.lora_A.weight", scales
 * alike, and stacks the layers of a kind, so that they must have one rank. Neither the modules that the
 * served model has nor its name are known here.
 */
#include "layout_inside.h"

#include "file.h"
#include "memory.h"

#include <math.h>
#include <string.h>

enum { LARGEST_RANK = 512 };

static bool is_empty(const cJSON *item) {
    return !item || cJSON_IsNull(item) || cJSON_IsFalse(item) ||
           ((cJSON_IsArray(item) || cJSON_IsObject(item)) && !item->child);
}

static const cJSON *get(const cJSON *config, const char *key) {
    return cJSON_GetObjectItemCaseSensitive(config, key);
}

static icma_status check_config(const cJSON *config, icma_layout_result *to, icma_error *error) {
    const cJSON *type = get(config, "peft_type"), *bias = get(config, "bias");
    icma_status status = ICMA_OK;
    if (!(cJSON_IsString(type) && strcmp(type->valuestring, "LORA") == 0))
        status = icma_layout_remark(
            to, error, "adapter_config.json has no peft_type LORA: vLLM's resolver passes it over");
    if (!status && !icma_config_base_model(config))
        status = icma_layout_remark(to, error,
                                    "adapter_config.json names no base model: vLLM's resolver finds the "
                                    "adapter by it; name it with --base-model");
    if (!status && (!cJSON_IsNumber(get(config, "r")) || !cJSON_IsNumber(get(config, "lora_alpha")) ||
                    is_empty(get(config, "target_modules"))))
        status = icma_layout_remark(
            to, error, "adapter_config.json lacks r, lora_alpha or target_modules: vLLM refuses it");
    if (!status && !is_empty(get(config, "modules_to_save")))
        status = icma_layout_remark(
            to, error, "the adapter has modules_to_save: vLLM refuses it, LoRAX leaves them out");
    if (!status && cJSON_IsTrue(get(config, "use_dora")))
        status = icma_layout_remark(to, error,
                                    "the adapter is a DoRA: vLLM refuses it, LoRAX takes it for a LoRA");
    if (!status && cJSON_IsString(bias) && strcmp(bias->valuestring, "none") != 0)
        status =
            icma_layout_remark(to, error, "the adapter has biases: vLLM refuses it, LoRAX leaves them out");
    return status;
}

/* vLLM passes over the base model's own embeddings, which PEFT may store with an adapter. */
static bool is_base_embedding(const char *name) {
    static const char *const tails[] = {".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight"};
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++)
        if (strlen(name) >= strlen(tails[i]) && strcmp(name + strlen(name) - strlen(tails[i]), tails[i]) == 0)
            return true;
    return false;
}

static icma_status check_names(const icma_safetensors *tensors, icma_layout_result *to, icma_error *error) {
    for (size_t t = 0; t < tensors->tensor_count; t++) {
        const char *name = tensors->tensors[t].name;
        icma_factor_name factor;
        if (is_base_embedding(name))
            continue;
        if (!icma_factor_name_parse(name, &factor) || factor.naming > ICMA_NAMING_EMBEDDING ||
            factor.adapter_length)
            return icma_layout_remark(to, error,
                                      "tensor \"%.200s\" is no LoRA factor: vLLM refuses the adapter", name);
    }
    return ICMA_OK;
}

static icma_status check_ranks(const icma_pairs *pairs, const double *scales, const cJSON *config,
                               icma_layout_result *to, icma_error *error) {
    const cJSON *r = get(config, "r"), *alpha = get(config, "lora_alpha");
    double rank = cJSON_IsNumber(r) ? r->valuedouble : 0,
           all = cJSON_IsNumber(alpha) && rank > 0 ? alpha->valuedouble / rank : NAN;
    if (cJSON_IsTrue(get(config, "use_rslora")))
        all *= sqrt(rank);
    uint64_t largest = 0, other = 0, scaled = 0;
    for (size_t p = 0; p < pairs->count; p++) {
        largest = pairs->list[p].rank > largest ? pairs->list[p].rank : largest;
        other += pairs->list[p].rank != pairs->list[0].rank;
        scaled += fabs(scales[p] - all) > 1e-6 * fabs(all);
    }
    icma_status status = ICMA_OK;
    if (largest > LARGEST_RANK)
        status = icma_layout_remark(to, error, "rank %llu: vLLM takes at most %d",
                                    (unsigned long long)largest, LARGEST_RANK);
    if (!status && other)
        status = icma_layout_remark(
            to, error, "its modules have several ranks: LoRAX wants one for all layers of a kind");
    if (!status && (double)largest > rank && rank > 0)
        status = icma_layout_remark(to, error,
                                    "a module has rank %llu and adapter_config.json r %g: vLLM compares the "
                                    "latter with --max-lora-rank, and fails later",
                                    (unsigned long long)largest, rank);
    if (!status && scaled)
        status = icma_layout_remark(to, error,
                                    "%llu of %zu modules have another alpha / rank than the adapter: vLLM "
                                    "and LoRAX scale them all by lora_alpha / r",
                                    (unsigned long long)scaled, pairs->count);
    return status;
}

static icma_status check_expressions(const icma_decoded_file *config, icma_layout_result *to,
                                     icma_error *error) {
    char *key;
    icma_status status = icma_config_expression((const char *)config->data, config->size, &key, error);
    if (key)
        status = icma_layout_remark(to, error,
                                    "adapter_config.json has an alpha_pattern of regular expressions: vLLM "
                                    "and LoRAX scale all modules by lora_alpha / r");
    icma_free(key);
    return status;
}

static bool is_language_model(const icma_pairs *pairs) {
    for (size_t p = 0; p < pairs->count; p++) {
        const char *path = pairs->list[p].module, *prefix = "base_model.model.";
        if (strncmp(path, prefix, strlen(prefix)) == 0)
            path += strlen(prefix);
        if (icma_component_of_path(path) != ICMA_COMPONENT_TEXT)
            return false;
    }
    return true;
}

static icma_status check_all(const icma_decoded *adapter, const icma_safetensors *tensors,
                             const icma_pairs *pairs, icma_layout_result *to, icma_error *error) {
    const icma_decoded_file *file = icma_config_find(adapter);
    cJSON *config = NULL;
    double *scales = icma_alloc_array(pairs->count + 1, sizeof *scales);
    icma_status status = scales ? icma_config_parse(file, &config, error)
                                : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for scales");
    if (!status)
        status = icma_pairs_scales(config ? (const char *)file->data : NULL, config ? file->size : 0, pairs,
                                   scales, error);
    if (!status && !config)
        status = icma_layout_remark(
            to, error,
            "adapter_config.json is missing or not a LoRA's: neither vLLM nor LoRAX takes the adapter");
    else if (!status)
        status = check_config(config, to, error);
    if (!status && config)
        status = check_ranks(pairs, scales, config, to, error);
    if (!status && config)
        status = check_expressions(file, to, error);
    if (!status)
        status = check_names(tensors, to, error);
    cJSON_Delete(config);
    icma_free(scales);
    return status;
}

icma_status icma_layout_check_serving(const icma_decoded *adapter, icma_layout_result *to,
                                      icma_error *error) {
    icma_safetensors tensors = {0};
    icma_pairs pairs = {0};
    const uint8_t *data;
    icma_status status = icma_safetensors_view(adapter->data, adapter->size, &tensors, &data, error);
    if (!status)
        status = icma_pairs_find(&tensors, &pairs, error);
    if (!status && is_language_model(&pairs))
        status = check_all(adapter, &tensors, &pairs, to, error);
    icma_pairs_free(&pairs);
    icma_safetensors_free(&tensors);
    return status;
}
