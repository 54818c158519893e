/* SPDX-License-Identifier: Apache-2.0 */
#include "layout_inside.h"

#include "file.h"
#include "memory.h"
#include "sized.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

_Static_assert((int)ICMA_MOST_COMPONENTS == (int)ICMA_COMPONENT_COUNT, "room for all components");

static const char *const layout_names[] = {"original", "peft", "kohya"};
static const char model_key[] = "ss_sd_model_name"; /* where kohya's metadata has the base model */

const char *icma_layout_name(icma_layout layout) {
    return layout_names[layout];
}

bool icma_layout_from_name(const char *name, icma_layout *out) {
    for (int i = ICMA_LAYOUT_ORIGINAL; i <= ICMA_LAYOUT_KOHYA; i++)
        if (strcmp(name, layout_names[i]) == 0) {
            *out = (icma_layout)i;
            return true;
        }
    return false;
}

void icma_layout_options_init(icma_layout_options *options, size_t size) {
    const icma_layout_options standard = {.size = size, .layout = ICMA_LAYOUT_ORIGINAL, .dtype = ICMA_F32};
    icma_sized_fill(options, size, &standard, sizeof standard);
}

static icma_status take_options(const icma_layout_options *options, icma_layout_options *out,
                                icma_error *error) {
    icma_layout_options_init(out, sizeof *out);
    icma_status status = icma_sized_take(out, sizeof *out, options, ICMA_LAYOUT_OPTIONS_LEAST,
                                         "layout options of", "icma_layout_defaults", error);
    if (status)
        return status;
    if (out->layout > ICMA_LAYOUT_KOHYA || (out->cast && !icma_dtype_is_modelled(out->dtype)))
        return icma_fail(error, ICMA_E_USAGE, NULL,
                         "a layout option is out of range; start from icma_layout_defaults()");
    return ICMA_OK;
}

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a layout");
}

icma_status icma_layout_remark(icma_layout_result *result, icma_error *error, const char *format, ...) {
    char text[ICMA_ERROR_MESSAGE_SIZE];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    char **more = icma_resize_array(result->remarks, result->remark_count + 1, sizeof *more);
    if (!more)
        return no_memory(error);
    result->remarks = more;
    more[result->remark_count] = icma_copy_string(text);
    return more[result->remark_count++] ? ICMA_OK : no_memory(error);
}

void icma_layout_result_free(icma_layout_result *result) {
    for (size_t i = 0; i < result->count; i++)
        icma_decoded_free(&result->list[i].decoded);
    for (size_t i = 0; i < result->remark_count; i++)
        icma_free(result->remarks[i]);
    icma_free(result->list);
    icma_free(result->remarks);
    memset(result, 0, sizeof *result);
}

/* --- the work ------------------------------------------------------------------------------------------- */

/* A conversion under way. */
typedef struct conversion {
    icma_decoded *from;
    const icma_layout_options *options;
    icma_safetensors tensors;
    const uint8_t *data;
    icma_metadata metadata;
    icma_layout_map map;
    cJSON *config;    /* the adapter's own, or NULL */
    double *scales;   /* one a pair */
    char *expression; /* of a configuration that `scales` are from: they may be wrong; or NULL */
    uint8_t *made;    /* data of alphas that are made, 4 bytes a pair */
    uint8_t *cast;    /* data of tensors that are cast */
    icma_layout_result *result;
} conversion;

static void free_conversion(conversion *c) {
    icma_layout_map_free(&c->map, c->map.count);
    icma_metadata_free(&c->metadata);
    icma_safetensors_free(&c->tensors);
    cJSON_Delete(c->config);
    icma_free(c->scales);
    icma_free(c->expression);
    icma_free(c->made);
    icma_free(c->cast);
}

static const char *base_model_of(const conversion *c) {
    const char *own =
        c->config ? icma_config_base_model(c->config) : icma_metadata_find(&c->metadata, model_key);
    return own && own[0] ? own : c->options->base_model;
}

/* The first tensor that has no place; one whose alpha has none because of it comes before the alpha. */
static size_t find_homeless(const icma_layout_map *map) {
    size_t found = SIZE_MAX;
    for (size_t t = 0; t < map->count; t++) {
        if (map->list[t].fate != ICMA_FATE_NOWHERE)
            continue;
        if (!map->list[t].is_alpha)
            return t;
        found = found == SIZE_MAX ? t : found;
    }
    return found;
}

/* What has no place: an error, or a remark. */
static icma_status refuse(const icma_safetensors *tensors, const icma_layout_map *map,
                          const icma_layout_options *options, icma_layout_result *result, icma_error *error) {
    size_t first = find_homeless(map);
    if (first != SIZE_MAX && !options->leave_out)
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                         "tensor \"%.200s\" has no place in layout %s: %s; --layout original gives it back, "
                         "--keep-going leaves it out",
                         tensors->tensors[first].name, icma_layout_name(options->layout),
                         map->list[first].reason);
    icma_status status = ICMA_OK;
    for (size_t t = 0; t < map->count && !status; t++) {
        if (map->list[t].fate != ICMA_FATE_NOWHERE)
            continue;
        result->left_out++;
        status = icma_layout_remark(result, error, "tensor \"%.200s\" is left out: %s",
                                    tensors->tensors[t].name, map->list[t].reason);
    }
    return status;
}

/* Sets the scales of one component's pairs. */
static icma_status set_scales(conversion *c, icma_component component, const char *config, size_t size,
                              double *scales, icma_error *error) {
    bool any = false;
    icma_status status = icma_pairs_scales(config, size, &c->map.pairs, scales, error);
    for (size_t p = 0; !status && p < c->map.pairs.count; p++)
        if (c->map.list[c->map.pairs.list[p].a].model == component) {
            c->scales[p] = scales[p];
            any = true;
        }
    return status || !any || c->expression ? status
                                           : icma_config_expression(config, size, &c->expression, error);
}

/* The pair's own alpha tensor, or SIZE_MAX. */
static size_t find_alpha(const conversion *c, const icma_pair *pair) {
    char name[ICMA_MAX_NAME + 8];
    snprintf(name, sizeof name, "%s.alpha", pair->module);
    return icma_safetensors_find(&c->tensors, name);
}

/* PEFT's files tell no alphas. Elsewhere none means 1: in kohya's files, in diffusers'. */
static icma_status tell_assumed_scales(conversion *c, icma_error *error) {
    static const char peft[] = "base_model.model.";
    icma_layout layout = c->options->layout;
    bool kept = layout == ICMA_LAYOUT_ORIGINAL || (layout == ICMA_LAYOUT_PEFT && c->config);
    if (kept || cJSON_IsNumber(cJSON_GetObjectItemCaseSensitive(c->config, "lora_alpha")))
        return ICMA_OK;
    for (size_t p = 0; p < c->map.pairs.count; p++) {
        const icma_pair *pair = &c->map.pairs.list[p];
        if (!pair->is_half && strncmp(pair->module, peft, sizeof peft - 1) == 0 &&
            find_alpha(c, pair) == SIZE_MAX)
            return icma_layout_remark(
                c->result, error,
                "it has no adapter_config.json that tells lora_alpha: the rank is taken "
                "for it, which scales by 1");
    }
    return ICMA_OK;
}

/* By the adapter's own configuration, or what diffusers keeps of it in the metadata; else 1. */
static icma_status prepare_scales(conversion *c, icma_error *error) {
    const icma_decoded_file *file = c->config ? icma_config_find(c->from) : NULL;
    size_t pairs = c->map.pairs.count;
    c->scales = icma_alloc_array(pairs + 1, sizeof *c->scales);
    double *scales = icma_alloc_array(pairs + 1, sizeof *scales);
    icma_status status = c->scales && scales ? ICMA_OK : no_memory(error);
    for (icma_component k = ICMA_COMPONENT_NONE; !status && k < ICMA_COMPONENT_COUNT; k++) {
        char *text = NULL;
        if (k != ICMA_COMPONENT_NONE)
            status = icma_config_of_component(&c->metadata, k, &text, error);
        if (!status && text)
            status = set_scales(c, k, text, strlen(text), scales, error);
        else if (!status)
            status = set_scales(c, k, file ? (const char *)file->data : NULL, file ? file->size : 0, scales,
                                error);
        icma_free(text);
    }
    icma_free(scales);
    return status ? status : tell_assumed_scales(c, error);
}

/* --- alphas --------------------------------------------------------------------------------------------- */

/* What dW = alpha / rank * B A has: its own, the configuration's, or the rank. */
static icma_status alpha_of(const conversion *c, size_t p, double *alpha, icma_error *error) {
    const icma_pair *pair = &c->map.pairs.list[p];
    size_t t = find_alpha(c, pair);
    *alpha = c->scales[p] * (double)pair->rank;
    if (t == SIZE_MAX && c->expression)
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                         "\"%.200s\" in its alpha_pattern is a regular expression, which is not evaluated "
                         "here, so that alphas are not known; --layout original gives it back",
                         c->expression);
    if (t == SIZE_MAX)
        return ICMA_OK;
    const icma_tensor_info *info = &c->tensors.tensors[t];
    if (info->count != 1 || !icma_element_to_double(info->dtype, c->data + info->begin, alpha) ||
        !isfinite(*alpha) || *alpha == 0)
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                         "tensor \"%.200s\" is no alpha: one finite number other than 0 is; --layout "
                         "original gives it back",
                         info->name);
    return ICMA_OK;
}

/* --- drafts --------------------------------------------------------------------------------------------- */

static icma_tensor_draft draft_of(const conversion *c, size_t t) {
    const icma_tensor_info *info = &c->tensors.tensors[t];
    icma_tensor_draft draft = {.name = c->map.list[t].name ? c->map.list[t].name : info->name,
                               .dtype = info->dtype,
                               .rank = info->rank,
                               .data = info->size ? c->data + info->begin : NULL,
                               .size = info->size};
    memcpy(draft.shape, info->shape, sizeof draft.shape);
    return draft;
}

static bool is_cast(const conversion *c, size_t t) {
    const icma_tensor_info *info = &c->tensors.tensors[t];
    return c->options->cast && icma_dtype_is_modelled(info->dtype) && info->dtype != c->options->dtype &&
           !c->map.list[t].is_alpha;
}

/* Into `to`; returns the bytes that it takes. */
static size_t cast_tensor(conversion *c, size_t t, uint8_t *to, icma_tensor_draft *draft) {
    enum { PART = 1024 };
    const icma_tensor_info *info = &c->tensors.tensors[t];
    size_t from_width = icma_dtype_bits(info->dtype) / 8, to_width = icma_dtype_bits(c->options->dtype) / 8,
           count = (size_t)info->count;
    float values[PART], back[PART];
    for (size_t at = 0; at < count; at += PART) {
        size_t part = count - at < PART ? count - at : PART;
        icma_load_floats(info->dtype, c->data + info->begin + at * from_width, part, values);
        icma_store_floats(c->options->dtype, values, part, to + at * to_width);
        icma_load_floats(c->options->dtype, to + at * to_width, part, back);
        for (size_t i = 0; i < part; i++)
            c->result->overflowed += isfinite(values[i]) && isinf(back[i]);
    }
    draft->dtype = c->options->dtype;
    draft->data = count ? to : NULL;
    draft->size = count * to_width;
    c->result->cast++;
    return count * to_width;
}

static icma_status prepare_cast(conversion *c, icma_error *error) {
    size_t total = 0;
    for (size_t t = 0; t < c->tensors.tensor_count; t++)
        if (is_cast(c, t)) {
            size_t size;
            if (!icma_multiply_size((size_t)c->tensors.tensors[t].count,
                                    icma_dtype_bits(c->options->dtype) / 8, &size) ||
                !icma_add_size(total, size, &total))
                return no_memory(error);
        }
    c->cast = icma_alloc(total + 1);
    return c->cast ? ICMA_OK : no_memory(error);
}

/* kohya's .alpha of a pair that has none: a scalar, in F32. */
static icma_status draft_alpha(conversion *c, size_t p, icma_tensor_draft *draft, char **name,
                               icma_error *error) {
    const icma_mapped *a = &c->map.list[c->map.pairs.list[p].a];
    double alpha;
    icma_status status = alpha_of(c, p, &alpha, error);
    if (status)
        return status;
    size_t stem = strlen(a->name) - strlen(".lora_down.weight");
    *name = icma_alloc(stem + sizeof ".alpha");
    if (!*name)
        return no_memory(error);
    memcpy(*name, a->name, stem);
    memcpy(*name + stem, ".alpha", sizeof ".alpha");
    float value = (float)alpha;
    icma_store_floats(ICMA_F32, &value, 1, c->made + 4 * p);
    *draft = (icma_tensor_draft){.name = *name, .dtype = ICMA_F32, .data = c->made + 4 * p, .size = 4};
    return ICMA_OK;
}

/* Alphas that only a configuration, or nothing, has told so far. `names` keeps the strings. */
static icma_status draft_alphas(conversion *c, icma_tensor_draft *drafts, size_t *count, char **names,
                                icma_error *error) {
    icma_status status = ICMA_OK;
    for (size_t p = 0; !status && p < c->map.pairs.count; p++) {
        const icma_mapped *a = &c->map.list[c->map.pairs.list[p].a];
        if (a->fate == ICMA_FATE_KEPT && find_alpha(c, &c->map.pairs.list[p]) == SIZE_MAX)
            status = draft_alpha(c, p, &drafts[(*count)++], &names[p], error);
    }
    return status;
}

static icma_status draft_component(conversion *c, icma_component component, icma_tensor_draft *drafts,
                                   size_t *count, size_t *cast_at, char **names, icma_error *error) {
    *count = 0;
    for (size_t t = 0; t < c->tensors.tensor_count; t++) {
        if (c->map.list[t].fate != ICMA_FATE_KEPT || c->map.list[t].component != component)
            continue;
        drafts[*count] = draft_of(c, t);
        if (is_cast(c, t))
            *cast_at += cast_tensor(c, t, c->cast + *cast_at, &drafts[*count]);
        ++*count;
    }
    if (c->options->layout == ICMA_LAYOUT_KOHYA && !c->map.as_is)
        return draft_alphas(c, drafts, count, names, error);
    return ICMA_OK;
}

static icma_status fill_metadata(conversion *c, const icma_tensor_draft *drafts, size_t count,
                                 icma_metadata *metadata, icma_error *error) {
    const char *base = base_model_of(c);
    icma_status status = icma_metadata_read(c->tensors.header, c->tensors.header_size, metadata, error);
    if (!status && c->options->layout == ICMA_LAYOUT_KOHYA && !c->map.as_is && base &&
        !icma_metadata_find(metadata, model_key))
        status = icma_metadata_set(metadata, model_key, base, error);
    bool same =
        c->map.as_is && !c->options->other_weights && c->result->cast == 0 && c->result->left_out == 0;
    if (!status && !same)
        status = icma_layout_rehash(drafts, count, c->options->layout != ICMA_LAYOUT_PEFT, metadata,
                                    c->result, error);
    return status;
}

/* --- side files ----------------------------------------------------------------------------------------- */

static icma_status add_file(icma_decoded *to, const char *name, const void *data, size_t size,
                            icma_error *error) {
    icma_decoded_file *more = icma_resize_array(to->files, to->file_count + 1, sizeof *more);
    if (!more)
        return no_memory(error);
    to->files = more;
    icma_decoded_file *file = &more[to->file_count++];
    *file = (icma_decoded_file){icma_copy_string(name), size ? icma_alloc(size) : NULL, size};
    if (!file->name || (size && !file->data))
        return no_memory(error);
    if (size)
        memcpy(file->data, data, size);
    return ICMA_OK;
}

static icma_status make_config(conversion *c, icma_component component, icma_layout_adapter *to,
                               icma_error *error) {
    icma_config_module *modules = icma_alloc_array(c->map.pairs.count + 1, sizeof *modules);
    icma_status status = modules ? ICMA_OK : no_memory(error);
    size_t count = 0;
    char *text = NULL;
    for (size_t p = 0; !status && p < c->map.pairs.count; p++) {
        const icma_pair *pair = &c->map.pairs.list[p];
        const icma_mapped *a = &c->map.list[pair->a];
        if (a->fate != ICMA_FATE_KEPT || a->component != component || !a->module)
            continue;
        modules[count] = (icma_config_module){.path = a->module, .rank = pair->rank};
        status = alpha_of(c, p, &modules[count++].alpha, error);
    }
    if (!status && count)
        status = icma_config_make(modules, count, base_model_of(c), &text, error);
    if (text) {
        to->config_made = true;
        status = add_file(&to->decoded, "adapter_config.json", text, strlen(text), error);
    }
    icma_free(text);
    icma_free(modules);
    return status;
}

/* The adapter's own configuration, which only lacks its base model. */
static icma_status name_base_model(conversion *c, icma_decoded_file *file, icma_error *error) {
    if (!c->config || !c->options->base_model || icma_config_base_model(c->config))
        return ICMA_OK;
    cJSON_DeleteItemFromObjectCaseSensitive(c->config, "base_model_name_or_path");
    char *text = NULL;
    if (!cJSON_AddStringToObject(c->config, "base_model_name_or_path", c->options->base_model))
        return no_memory(error);
    icma_status status = icma_config_print(c->config, &text, error);
    if (status)
        return status;
    icma_free(file->data);
    file->data = (uint8_t *)text;
    file->size = strlen(text);
    return ICMA_OK;
}

/* What they say is then in no tensor any more, and in a configuration only if that is made. */
static bool takes_alphas(const icma_layout_map *map) {
    for (size_t t = 0; t < map->count; t++)
        if (map->list[t].fate == ICMA_FATE_TAKEN)
            return true;
    return false;
}

/* LyCORIS's has none: no configuration can be made for it. */
static bool has_lora(const icma_layout_map *map) {
    for (size_t p = 0; p < map->pairs.count; p++)
        if (map->list[map->pairs.list[p].a].module)
            return true;
    return false;
}

/* Side files that go with no adapter; what a configuration says is in alphas, or in those that are made. */
static icma_status tell_dropped_files(const conversion *c, icma_error *error) {
    const char *reason = c->options->layout == ICMA_LAYOUT_KOHYA ? "a file of layout kohya stands alone"
                         : c->map.several                        ? "each of its models has a folder now"
                                                                 : NULL;
    icma_status status = ICMA_OK;
    for (size_t i = 0; reason && !status && i < c->from->file_count; i++)
        if (&c->from->files[i] != icma_config_find(c->from))
            status = icma_layout_remark(c->result, error, "\"%.200s\" is left out: %s",
                                        c->from->files[i].name, reason);
    return status;
}

/* Side files go with the only adapter there is; kohya's file stands alone. */
static icma_status place_files(conversion *c, icma_component component, icma_layout_adapter *to,
                               icma_error *error) {
    icma_layout layout = c->options->layout;
    if (layout == ICMA_LAYOUT_KOHYA)
        return ICMA_OK;
    icma_status status = ICMA_OK;
    bool own = !c->map.several && (layout != ICMA_LAYOUT_PEFT || (c->config && !takes_alphas(&c->map)) ||
                                   (c->map.as_is && !has_lora(&c->map)));
    for (size_t i = 0; !status && !c->map.several && i < c->from->file_count; i++) {
        icma_decoded_file *file = &c->from->files[i];
        bool config = file == icma_config_find(c->from);
        if (config && layout == ICMA_LAYOUT_PEFT && !own)
            continue;
        if (config && layout == ICMA_LAYOUT_PEFT)
            status = name_base_model(c, file, error);
        if (!status)
            status = add_file(&to->decoded, file->name, file->data, file->size, error);
    }
    return status || layout != ICMA_LAYOUT_PEFT || own ? status : make_config(c, component, to, error);
}

/* --- all together --------------------------------------------------------------------------------------- */

/* Nothing about the file itself changes: its bytes stay. */
static bool stays(const conversion *c, const icma_metadata *metadata) {
    if (!c->map.as_is || c->result->cast)
        return false;
    if (c->result->hashes_made || c->result->hashes_dropped)
        return false;
    return metadata->count == c->metadata.count;
}

static icma_status convert_component(conversion *c, icma_component component, icma_tensor_draft *drafts,
                                     size_t *cast_at, char **names, icma_error *error) {
    icma_layout_adapter *to = &c->result->list[c->result->count++];
    icma_metadata metadata = {0};
    size_t count;
    *to = (icma_layout_adapter){.component = c->map.several ? icma_component_name(component) : ""};
    icma_status status = draft_component(c, component, drafts, &count, cast_at, names, error);
    if (!status)
        status = icma_drafts_sort(drafts, count, error);
    if (!status)
        status = fill_metadata(c, drafts, count, &metadata, error);
    if (!status)
        status = place_files(c, component, to, error);
    if (!status && stays(c, &metadata)) {
        to->decoded.data = c->from->data;
        to->decoded.size = c->from->size;
        c->from->data = NULL;
    } else if (!status) {
        status = icma_drafts_compose(drafts, count, &metadata, &to->decoded.data, &to->decoded.size, error);
    }
    icma_metadata_free(&metadata);
    return status;
}

/* In order of icma_component; *count of them have a tensor. */
static void list_components(const icma_layout_map *map, icma_component list[ICMA_COMPONENT_COUNT],
                            size_t *count) {
    bool has[ICMA_COMPONENT_COUNT] = {false};
    *count = 0;
    for (size_t t = 0; t < map->count; t++)
        if (map->list[t].fate == ICMA_FATE_KEPT)
            has[map->list[t].component] = true;
    for (icma_component k = ICMA_COMPONENT_NONE; k < ICMA_COMPONENT_COUNT; k++)
        if (has[k])
            list[(*count)++] = k;
}

static icma_status convert_all(conversion *c, icma_error *error) {
    icma_component list[ICMA_COMPONENT_COUNT];
    size_t count, pairs = c->map.pairs.count, cast_at = 0;
    list_components(&c->map, list, &count);
    c->result->list = icma_alloc_zeroed(count + 1, sizeof *c->result->list);
    c->made = icma_alloc_zeroed(pairs + 1, 4);
    char **names = icma_alloc_zeroed(pairs + 1, sizeof *names);
    icma_tensor_draft *drafts = icma_alloc_array(c->tensors.tensor_count + pairs + 1, sizeof *drafts);
    icma_status status = c->result->list && c->made && names && drafts ? ICMA_OK : no_memory(error);
    if (!status && count == 0)
        status = icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "nothing of the adapter has a place in layout %s",
                           icma_layout_name(c->options->layout));
    for (size_t i = 0; !status && i < count; i++)
        status = convert_component(c, list[i], drafts, &cast_at, names, error);
    for (size_t p = 0; names && p < pairs; p++)
        icma_free(names[p]);
    icma_free(names);
    icma_free(drafts);
    return status;
}

icma_status icma_layout_convert(icma_decoded *decoded, const icma_layout_options *options,
                                icma_layout_result *out, icma_error *error) {
    icma_layout_options taken;
    conversion c = {.from = decoded, .options = &taken, .result = out};
    memset(out, 0, sizeof *out);
    icma_status status = take_options(options, &taken, error);
    if (!status)
        status = icma_safetensors_view(decoded->data, decoded->size, &c.tensors, &c.data, error);
    if (!status)
        status = icma_metadata_read(c.tensors.header, c.tensors.header_size, &c.metadata, error);
    if (!status)
        status = icma_config_parse(icma_config_find(decoded), &c.config, error);
    if (!status)
        status = icma_layout_map_make(&c.tensors, taken.layout, &c.map, error);
    if (!status)
        status = refuse(&c.tensors, &c.map, &taken, out, error);
    if (!status)
        status = prepare_scales(&c, error);
    if (!status)
        status = prepare_cast(&c, error);
    if (!status)
        status = tell_dropped_files(&c, error);
    if (!status)
        status = convert_all(&c, error);
    out->renamed = !c.map.as_is;
    free_conversion(&c);
    icma_decoded_free(decoded);
    if (status)
        icma_layout_result_free(out);
    return status;
}

icma_status icma_layout_parse_header(const icma_decoded *from, icma_safetensors *out, icma_error *error) {
    memset(out, 0, sizeof *out);
    if (from->size < 8 || icma_load_u64(from->data) > from->size - 8)
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "a safetensors header is cut off");
    return icma_safetensors_parse_header(from->data + 8, (size_t)icma_load_u64(from->data), out, error);
}

icma_status icma_layout_components(const icma_decoded *header, const icma_layout_options *options,
                                   const char *components[ICMA_MOST_COMPONENTS], size_t *count,
                                   icma_error *error) {
    icma_component list[ICMA_COMPONENT_COUNT];
    icma_safetensors tensors;
    icma_layout_map map = {0};
    icma_layout_result told = {0};
    icma_layout_options taken;
    *count = 0;
    icma_status status = take_options(options, &taken, error);
    if (!status)
        status = icma_layout_parse_header(header, &tensors, error);
    if (status)
        return status;
    status = icma_layout_map_make(&tensors, taken.layout, &map, error);
    if (!status)
        status = refuse(&tensors, &map, &taken, &told, error);
    if (!status)
        list_components(&map, list, count);
    for (size_t i = 0; i < *count; i++)
        components[i] = map.several ? icma_component_name(list[i]) : "";
    icma_layout_map_free(&map, map.count);
    icma_layout_result_free(&told);
    icma_safetensors_free(&tensors);
    return status;
}
