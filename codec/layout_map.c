/* SPDX-License-Identifier: Apache-2.0 */
/* What becomes of every tensor of a file in another layout: by names and shapes alone. */
#include "layout_inside.h"

#include "memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char peft_prefix[] = "base_model.model.";
static const char unknown_parts[] = "kohya's flat name does not tell where its module is in the model";

/* A module's name as a file has it, and where that is. */
typedef struct place {
    icma_component component;
    char *module; /* owned by who asks */
} place;

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the names of a layout");
}

static bool ends_with(const char *text, const char *tail, size_t *stem) {
    size_t length = strlen(text), size = strlen(tail);
    *stem = length >= size ? length - size : 0;
    return length >= size && strcmp(text + *stem, tail) == 0;
}

static bool is_peft_name(const char *name) {
    return strncmp(name, peft_prefix, sizeof peft_prefix - 1) == 0;
}

static bool is_flat(const char *module, size_t length) {
    icma_component ignored;
    return !memchr(module, '.', length) && icma_flat_prefix(module, length, &ignored);
}

/* --- where a module is ---------------------------------------------------------------------------------- */

/* Diffusers' first attention processors held the factors: "attn1.processor.to_out" is "attn1.to_out.0". */
static char *without_processor(const char *path, size_t length) {
    static const char middle[] = ".processor.";
    icma_buffer out = {0};
    size_t size = sizeof middle - 1, at = 0;
    while (at + size < length && memcmp(path + at, middle, size) != 0)
        at++;
    if (at + size >= length)
        return icma_copy_text(path, length);
    icma_write_bytes(&out, path, at + 1);
    icma_write_bytes(&out, path + at + size, length - at - size);
    if (length - at - size == 6 && memcmp(path + at + size, "to_out", 6) == 0)
        icma_write_bytes(&out, ".0", 2);
    char *copy = out.failed ? NULL : icma_copy_text((const char *)out.data, out.size);
    icma_buffer_free(&out);
    return copy;
}

/* *reason is set where the place cannot be told. */
static icma_status locate_flat(const char *module, size_t length, place *out, const char **reason,
                               icma_error *error) {
    bool out_of_memory = false;
    const char *rest = icma_flat_prefix(module, length, &out->component);
    if (!icma_path_from_flat(rest, length - (size_t)(rest - module), &out->module, &out_of_memory)) {
        *reason = unknown_parts;
        return out_of_memory ? no_memory(error) : ICMA_OK;
    }
    if (out->component != ICMA_COMPONENT_UNET || !icma_path_is_ldm(out->module))
        return ICMA_OK;
    char *path;
    if (!icma_path_from_ldm(out->module, &path, &out_of_memory))
        *reason = "it has no counterpart in the UNet of diffusers";
    icma_free(out->module);
    out->module = path;
    return out_of_memory ? no_memory(error) : ICMA_OK;
}

static icma_status locate(const char *module, size_t length, place *out, const char **reason,
                          icma_error *error) {
    const char *rest = module;
    *out = (place){0};
    if (is_flat(module, length))
        return locate_flat(module, length, out, reason, error);
    if (is_peft_name(module) && length >= sizeof peft_prefix - 1)
        rest = module + sizeof peft_prefix - 1;
    else if (!(rest = icma_dotted_prefix(module, length, &out->component)))
        rest = module;
    out->module = without_processor(rest, length - (size_t)(rest - module));
    return out->module ? ICMA_OK : no_memory(error);
}

/* --- names ---------------------------------------------------------------------------------------------- */

static icma_status name_of(icma_error *error, char **out, const char *prefix, const char *module,
                           const char *tail) {
    size_t a = strlen(prefix), b = strlen(module), c = strlen(tail);
    *out = icma_alloc(a + b + c + 1);
    if (!*out)
        return no_memory(error);
    memcpy(*out, prefix, a);
    memcpy(*out + a, module, b);
    memcpy(*out + a + b, tail, c + 1);
    return ICMA_OK;
}

static icma_status name_peft(icma_mapped *m, const icma_factor_name *factor, icma_error *error) {
    bool first = factor->role == ICMA_ROLE_A;
    const char *tail = factor->naming == ICMA_NAMING_EMBEDDING
                           ? (first ? ".lora_embedding_A" : ".lora_embedding_B")
                           : (first ? ".lora_A.weight" : ".lora_B.weight");
    return name_of(error, &m->name, peft_prefix, m->module, tail);
}

/* Which of the pipelines that kohya trains a file's modules are of. */
typedef struct pipeline {
    bool sdxl;    /* its UNet has the names of LDM */
    bool several; /* text encoders */
} pipeline;

/* Attention of SDXL's UNet is deeper than one block. */
static bool is_deep(const char *module) {
    const char *found = strstr(module, ".transformer_blocks.");
    return found && strncmp(found + 20, "0.", 2) != 0;
}

static pipeline pipeline_of(const icma_layout_map *map) {
    pipeline p = {0};
    for (size_t i = 0; i < map->count; i++) {
        const icma_mapped *m = &map->list[i];
        if (!m->module)
            continue;
        icma_component c = m->component ? m->component : icma_component_of_path(m->module);
        p.several |= c == ICMA_COMPONENT_TEXT_2 || c == ICMA_COMPONENT_TEXT_3;
        p.sdxl |=
            c == ICMA_COMPONENT_UNET && (is_deep(m->module) || strncmp(m->module, "add_embedding.", 14) == 0);
    }
    p.sdxl |= p.several;
    p.several |= p.sdxl;
    return p;
}

static void flatten(char *path) {
    for (; *path; path++)
        if (*path == '.')
            *path = '_';
}

/* Only a name that the way back makes the same of. */
static icma_status name_kohya(icma_mapped *m, const char *tail, pipeline p, icma_error *error) {
    icma_component c = m->component ? m->component : icma_component_of_path(m->module);
    const char *prefix = icma_flat_prefix_of(c, p.several);
    char *path = NULL, *back = NULL;
    bool out_of_memory = false;
    icma_status status = ICMA_OK;
    if (!prefix) {
        m->reason = "kohya's names of this transformer are those of another implementation";
        return ICMA_OK;
    }
    if (c != ICMA_COMPONENT_UNET || !p.sdxl || icma_path_is_ldm(m->module))
        path = icma_copy_string(m->module);
    else if (!icma_path_to_ldm(m->module, &path, &out_of_memory) && !out_of_memory)
        m->reason = "it has no counterpart in the UNet that kohya names";
    if (!path)
        return m->reason ? ICMA_OK : no_memory(error);
    char *flat = icma_copy_string(path);
    if (flat) {
        flatten(flat);
        icma_path_from_flat(flat, strlen(flat), &back, &out_of_memory);
    }
    if (!flat || out_of_memory)
        status = no_memory(error);
    else if (!back || strcmp(back, path) != 0)
        m->reason = "its module has parts that could not be told from kohya's flat name again";
    else
        status = name_of(error, &m->name, prefix, flat, tail);
    icma_free(back);
    icma_free(flat);
    icma_free(path);
    return status;
}

/* --- one tensor ----------------------------------------------------------------------------------------- */

static const char *why_nowhere(const char *name) {
    size_t stem;
    if (ends_with(name, ".dora_scale", &stem) || strstr(name, "lora_magnitude_vector"))
        return "DoRA's magnitudes are stored in another shape there";
    if (strstr(name, "lora_mid"))
        return "the core of a factorised convolution has no counterpart there";
    if (strstr(name, ".hada_") || strstr(name, ".lokr_"))
        return "LoHa and LoKr are no B A";
    return "it is neither a LoRA factor nor an alpha";
}

static icma_status map_tensor(const icma_safetensors *tensors, icma_layout layout, size_t t,
                              icma_layout_map *map, icma_error *error) {
    const char *name = tensors->tensors[t].name;
    icma_mapped *m = &map->list[t];
    icma_factor_name factor;
    place where = {0};
    size_t length;
    icma_status status = ICMA_OK;
    bool parsed = icma_factor_name_parse(name, &factor),
         is_factor = parsed && map->pairs.roles[t] != ICMA_ROLE_OTHER && icma_naming_is_lora(factor.naming);
    m->is_alpha = !is_factor && ends_with(name, ".alpha", &length);
    if (layout == ICMA_LAYOUT_ORIGINAL)
        return ICMA_OK;
    if (is_factor)
        length = factor.module_length ? factor.module_length - 1 : 0;
    if (is_factor || m->is_alpha)
        status = locate(name, length, &where, &m->reason, error);
    else if (layout != ICMA_LAYOUT_PEFT || !is_peft_name(name))
        m->reason = parsed && factor.role != ICMA_ROLE_OTHER && icma_naming_is_lora(factor.naming)
                        ? "it has no partner to make a B A with"
                        : why_nowhere(name);
    m->component = m->model = where.component;
    m->module = where.module;
    if (is_factor && factor.naming == ICMA_NAMING_EMBEDDING && layout == ICMA_LAYOUT_KOHYA)
        m->reason = "kohya has no LoRA of embeddings";
    return status;
}

static icma_status name_tensor(const char *name, icma_layout layout, pipeline p, icma_mapped *m,
                               icma_error *error) {
    icma_factor_name factor;
    icma_status status = ICMA_OK;
    if (m->reason || !m->module)
        return ICMA_OK;
    if (m->is_alpha && layout == ICMA_LAYOUT_PEFT)
        m->fate = ICMA_FATE_TAKEN;
    else if (m->is_alpha)
        status = name_kohya(m, ".alpha", p, error);
    else if (!icma_factor_name_parse(name, &factor))
        m->reason = why_nowhere(name);
    else if (layout == ICMA_LAYOUT_PEFT)
        status = name_peft(m, &factor, error);
    else
        status =
            name_kohya(m, factor.role == ICMA_ROLE_A ? ".lora_down.weight" : ".lora_up.weight", p, error);
    return status;
}

/* An alpha counts where there is a pair that it scales. */
static bool has_pair(const icma_layout_map *map, const icma_safetensors *tensors, size_t alpha) {
    static const char *const tails[] = {".lora_down.weight", ".lora_A.weight", ".lora.down.weight",
                                        ".lora_linear_layer.down.weight"};
    const char *name = tensors->tensors[alpha].name;
    char first[ICMA_MAX_NAME + 64];
    size_t stem = strlen(name) - strlen(".alpha");
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        snprintf(first, sizeof first, "%.*s%s", (int)stem, name, tails[i]);
        size_t found = icma_safetensors_find(tensors, first);
        if (found != SIZE_MAX && map->pairs.roles[found] == ICMA_ROLE_A)
            return true;
    }
    return false;
}

/* A file that is in the layout already keeps everything that it has. */
static bool is_there_already(const icma_safetensors *tensors, icma_layout layout,
                             const icma_layout_map *map) {
    bool any = false;
    for (size_t t = 0; t < tensors->tensor_count; t++) {
        const char *name = tensors->tensors[t].name;
        bool flat = is_flat(name, strcspn(name, "."));
        if (layout == ICMA_LAYOUT_KOHYA ? !flat : !is_peft_name(name))
            return false;
        any |= map->pairs.roles[t] == ICMA_ROLE_A;
        if (layout == ICMA_LAYOUT_PEFT && map->list[t].name && strcmp(map->list[t].name, name) != 0)
            return false;
        if (layout == ICMA_LAYOUT_PEFT && map->list[t].is_alpha)
            return false;
    }
    return any;
}

static void forget_names(icma_layout_map *map) {
    for (size_t t = 0; t < map->count; t++) {
        icma_mapped *m = &map->list[t];
        icma_free(m->name);
        m->name = NULL;
        m->reason = NULL;
        m->fate = ICMA_FATE_KEPT;
        m->component = ICMA_COMPONENT_NONE;
    }
}

static void count_components(icma_layout_map *map, icma_layout layout) {
    icma_component first = ICMA_COMPONENT_COUNT;
    for (size_t t = 0; t < map->count; t++) {
        icma_mapped *m = &map->list[t];
        if (layout != ICMA_LAYOUT_PEFT)
            m->component = ICMA_COMPONENT_NONE; /* one file has all of them */
        if (m->fate == ICMA_FATE_NOWHERE)
            continue;
        map->several |= first != ICMA_COMPONENT_COUNT && m->component != first;
        first = m->component;
    }
}

icma_status icma_layout_map_make(const icma_safetensors *tensors, icma_layout layout, icma_layout_map *out,
                                 icma_error *error) {
    *out = (icma_layout_map){.count = tensors->tensor_count};
    icma_status status = icma_pairs_find(tensors, &out->pairs, error);
    out->list = icma_alloc_zeroed(out->count + 1, sizeof *out->list);
    if (!status && !out->list)
        status = no_memory(error);
    for (size_t t = 0; !status && t < out->count; t++)
        status = map_tensor(tensors, layout, t, out, error);
    pipeline p = status ? (pipeline){0} : pipeline_of(out);
    for (size_t t = 0; !status && t < out->count; t++) {
        icma_mapped *m = &out->list[t];
        status = name_tensor(tensors->tensors[t].name, layout, p, m, error);
        if (m->is_alpha && layout != ICMA_LAYOUT_ORIGINAL && !m->reason && !has_pair(out, tensors, t))
            m->reason = "it scales no pair of factors";
        if (m->reason)
            m->fate = ICMA_FATE_NOWHERE;
    }
    out->as_is = !status && (layout == ICMA_LAYOUT_ORIGINAL || is_there_already(tensors, layout, out));
    if (out->as_is)
        forget_names(out);
    if (!status)
        count_components(out, layout);
    if (status)
        icma_layout_map_free(out, out->count);
    return status;
}

void icma_layout_map_free(icma_layout_map *map, size_t count) {
    for (size_t t = 0; map->list && t < count; t++) {
        icma_free(map->list[t].module);
        icma_free(map->list[t].name);
    }
    icma_free(map->list);
    icma_pairs_free(&map->pairs);
    *map = (icma_layout_map){0};
}
