/* SPDX-License-Identifier: Apache-2.0 */
/* adapter_config.json: read where an adapter has one, made where it has none. */
#include "layout_inside.h"

#include "memory.h"
#include "sort.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char config_name[] = "adapter_config.json";

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for adapter_config.json");
}

const icma_decoded_file *icma_config_find(const icma_decoded *decoded) {
    for (size_t i = 0; i < decoded->file_count; i++)
        if (strcmp(decoded->files[i].name, config_name) == 0)
            return &decoded->files[i];
    return NULL;
}

icma_status icma_config_parse(const icma_decoded_file *file, cJSON **root, icma_error *error) {
    icma_json_rules rules = {.max_depth = 32, .plain_integers = false};
    *root = NULL;
    if (!file || !file->size)
        return ICMA_OK;
    icma_status status = icma_json_parse((const char *)file->data, file->size, rules, root, NULL);
    if (status == ICMA_E_MEMORY)
        return no_memory(error);
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(*root, "peft_type");
    if (*root && (!cJSON_IsObject(*root) ||
                  (type && !(cJSON_IsString(type) && strcmp(type->valuestring, "LORA") == 0)))) {
        cJSON_Delete(*root);
        *root = NULL;
    }
    return ICMA_OK;
}

const char *icma_config_base_model(const cJSON *root) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, "base_model_name_or_path");
    return cJSON_IsString(item) && item->valuestring[0] ? item->valuestring : NULL;
}

/* The items of `from` whose keys start with "<component>." */
static bool copy_items(const cJSON *from, const char *component, cJSON *to) {
    size_t length = strlen(component);
    for (const cJSON *item = from->child; item; item = item->next) {
        if (strncmp(item->string, component, length) != 0 || item->string[length] != '.')
            continue;
        cJSON *copy = cJSON_Duplicate(item, true);
        if (!cJSON_AddItemToObject(to, item->string + length + 1, copy)) {
            cJSON_Delete(copy);
            return false;
        }
    }
    return true;
}

icma_status icma_config_of_component(const icma_metadata *metadata, icma_component component, char **text,
                                     icma_error *error) {
    const char *all = icma_metadata_find(metadata, "lora_adapter_metadata");
    icma_json_rules rules = {.max_depth = 32, .plain_integers = false};
    cJSON *from = NULL;
    *text = NULL;
    icma_status status = all ? icma_json_parse(all, strlen(all), rules, &from, NULL) : ICMA_OK;
    if (status == ICMA_E_MEMORY)
        return no_memory(error);
    if (!cJSON_IsObject(from)) {
        cJSON_Delete(from);
        return ICMA_OK;
    }
    cJSON *own = cJSON_CreateObject();
    bool good = own && copy_items(from, icma_component_name(component), own);
    char *printed = good && own->child ? cJSON_PrintUnformatted(own) : NULL;
    *text = icma_copy_string(printed);
    good = good && (!own->child || *text);
    cJSON_free(printed);
    cJSON_Delete(own);
    cJSON_Delete(from);
    return good ? ICMA_OK : no_memory(error);
}

icma_status icma_config_expression(const char *text, size_t size, char **key, icma_error *error) {
    icma_json_rules rules = {.max_depth = 32, .plain_integers = false};
    cJSON *root = NULL;
    *key = NULL;
    icma_status status = text && size ? icma_json_parse(text, size, rules, &root, NULL) : ICMA_OK;
    if (status == ICMA_E_MEMORY)
        return no_memory(error);
    const cJSON *patterns = cJSON_GetObjectItemCaseSensitive(root, "alpha_pattern"),
                *item = cJSON_IsObject(patterns) ? patterns->child : NULL;
    while (item && !strpbrk(item->string, "^$*+?()[]{}|\\"))
        item = item->next;
    *key = item ? icma_copy_string(item->string) : NULL;
    status = item && !*key ? no_memory(error) : ICMA_OK;
    cJSON_Delete(root);
    return status;
}

/* --- making one ----------------------------------------------------------------------------------------- */

static int compare_paths(const void *left, const void *right, const void *context) {
    (void)context;
    return strcmp(((const icma_config_module *)left)->path, ((const icma_config_module *)right)->path);
}

static int compare_doubles(const void *left, const void *right, const void *context) {
    (void)context;
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* The most frequent value, the least of several such. `values` is sorted on the way. */
static double mode_of(double *values, size_t count) {
    size_t best = 0, most = 0;
    icma_sort(values, count, sizeof *values, compare_doubles, NULL);
    for (size_t first = 0, next; first < count; first = next) {
        for (next = first; next < count && !(values[next] > values[first]); next++)
            ;
        if (next - first > most) {
            most = next - first;
            best = first;
        }
    }
    return values[best];
}

static icma_status find_defaults(const icma_config_module *modules, size_t count, double *rank, double *alpha,
                                 icma_error *error) {
    double *values = icma_alloc_array(count, sizeof *values);
    if (!values)
        return no_memory(error);
    for (size_t i = 0; i < count; i++)
        values[i] = (double)modules[i].rank;
    *rank = mode_of(values, count);
    for (size_t i = 0; i < count; i++)
        values[i] = modules[i].alpha;
    *alpha = mode_of(values, count);
    icma_free(values);
    return ICMA_OK;
}

/* As short as a number can be told exactly; whole ones without a point. */
static bool add_number(cJSON *to, const char *key, double value) {
    char text[40];
    int digits = 1;
    do
        snprintf(text, sizeof text, "%.*g", digits, value);
    while (++digits <= 17 && (strtod(text, NULL) < value || strtod(text, NULL) > value));
    return cJSON_AddRawToObject(to, key, text) != NULL;
}

static bool add_patterns(cJSON *root, const icma_config_module *modules, size_t count, double rank,
                         double alpha) {
    cJSON *alphas = cJSON_GetObjectItemCaseSensitive(root, "alpha_pattern"),
          *ranks = cJSON_GetObjectItemCaseSensitive(root, "rank_pattern");
    bool whole = alphas && ranks;
    for (size_t i = 0; whole && i < count; i++) {
        const icma_config_module *m = &modules[i];
        if (m->alpha < alpha || m->alpha > alpha)
            whole = add_number(alphas, m->path, m->alpha);
        if (whole && ((double)m->rank < rank || (double)m->rank > rank))
            whole = add_number(ranks, m->path, (double)m->rank);
    }
    return whole;
}

static bool add_targets(cJSON *root, const icma_config_module *modules, size_t count) {
    cJSON *list = cJSON_AddArrayToObject(root, "target_modules");
    for (size_t i = 0; list && i < count; i++) {
        cJSON *item = cJSON_CreateString(modules[i].path);
        if (cJSON_AddItemToArray(list, item))
            continue;
        cJSON_Delete(item);
        return false;
    }
    return list != NULL;
}

/* The keys in the order of the alphabet, as PEFT writes them. */
static bool fill(cJSON *root, const icma_config_module *modules, size_t count, const char *base_model,
                 double rank, double alpha) {
    bool whole =
        cJSON_AddObjectToObject(root, "alpha_pattern") && cJSON_AddNullToObject(root, "auto_mapping");
    whole = whole && (base_model ? cJSON_AddStringToObject(root, "base_model_name_or_path", base_model)
                                 : cJSON_AddNullToObject(root, "base_model_name_or_path"));
    whole = whole && cJSON_AddStringToObject(root, "bias", "none") &&
            cJSON_AddFalseToObject(root, "fan_in_fan_out");
    whole = whole && cJSON_AddTrueToObject(root, "inference_mode") &&
            cJSON_AddTrueToObject(root, "init_lora_weights");
    whole = whole && add_number(root, "lora_alpha", alpha) && add_number(root, "lora_dropout", 0);
    whole = whole && cJSON_AddNullToObject(root, "modules_to_save") &&
            cJSON_AddStringToObject(root, "peft_type", "LORA");
    whole = whole && add_number(root, "r", rank) && cJSON_AddObjectToObject(root, "rank_pattern");
    whole = whole && cJSON_AddNullToObject(root, "revision") && add_targets(root, modules, count);
    whole = whole && cJSON_AddNullToObject(root, "task_type") && cJSON_AddFalseToObject(root, "use_rslora");
    return whole && add_patterns(root, modules, count, rank, alpha);
}

/* PEFT takes the first pattern that a module's path ends in: where one path ends in another, that may be a
 * wrong one. */
static icma_status check_scales(const char *text, const icma_config_module *modules, size_t count,
                                icma_error *error) {
    icma_pairs pairs = {.list = icma_alloc_zeroed(count, sizeof *pairs.list), .count = count};
    double *scales = icma_alloc_array(count, sizeof *scales);
    icma_status status = pairs.list && scales ? ICMA_OK : no_memory(error);
    for (size_t i = 0; !status && i < count; i++)
        pairs.list[i] = (icma_pair){.rank = modules[i].rank, .module = (char *)(uintptr_t)modules[i].path};
    if (!status)
        status = icma_pairs_scales(text, strlen(text), &pairs, scales, error);
    for (size_t i = 0; !status && i < count; i++)
        if (fabs(scales[i] * (double)modules[i].rank - modules[i].alpha) > 1e-9 * fabs(modules[i].alpha))
            status = icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                               "module \"%.255s\" ends like another one of other rank or alpha, which PEFT "
                               "cannot tell apart",
                               modules[i].path);
    icma_free(pairs.list);
    icma_free(scales);
    return status;
}

/* cJSON's print with two blanks for a tab, as PEFT writes it: there is no tab or line break inside a string.
 */
static char *indent(const char *printed) {
    icma_buffer out = {0};
    for (const char *c = printed; c && *c; c++) {
        size_t empty = strspn(c, "\n\t");
        bool closes = *c == '\n' && (c[empty] == '}' && c[-1] == '{');
        if (closes)
            c += empty;
        if (*c == '\t')
            icma_write_bytes(&out, "  ", c[-1] == ':' ? 1 : 2);
        else
            icma_write_u8(&out, (uint8_t)*c);
    }
    icma_write_u8(&out, '\n');
    char *text = printed && !out.failed ? icma_copy_text((const char *)out.data, out.size) : NULL;
    icma_buffer_free(&out);
    return text;
}

icma_status icma_config_print(const cJSON *root, char **text, icma_error *error) {
    char *printed = root ? cJSON_Print(root) : NULL;
    *text = indent(printed);
    cJSON_free(printed);
    return *text ? ICMA_OK : no_memory(error);
}

icma_status icma_config_make(icma_config_module *modules, size_t count, const char *base_model, char **text,
                             icma_error *error) {
    double rank = 0, alpha = 0;
    *text = NULL;
    icma_sort(modules, count, sizeof *modules, compare_paths, NULL);
    icma_status status = find_defaults(modules, count, &rank, &alpha, error);
    if (status)
        return status;
    cJSON *root = cJSON_CreateObject();
    bool whole = root && fill(root, modules, count, base_model, rank, alpha);
    status = whole ? icma_config_print(root, text, error) : no_memory(error);
    cJSON_Delete(root);
    if (status)
        return status;
    status = check_scales(*text, modules, count, error);
    if (status) {
        icma_free(*text);
        *text = NULL;
    }
    return status;
}
