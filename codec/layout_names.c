/* SPDX-License-Identifier: Apache-2.0 */
#include "layout_names.h"

#include "bytes.h"
#include "memory.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_WORDS = 5 /* in a segment below */ };

/* Segments of paths: of the UNets of diffusers and LDM, CLIP, T5, and the language models that transformers
 * has. Sorted by bytes. */
static const char *const segments[] = {"DenseReluDense",
                                       "EncDecAttention",
                                       "LayerNorm",
                                       "SelfAttention",
                                       "add_embedding",
                                       "add_k_proj",
                                       "add_q_proj",
                                       "add_v_proj",
                                       "attention",
                                       "attentions",
                                       "attn",
                                       "attn1",
                                       "attn2",
                                       "block",
                                       "block_sparse_moe",
                                       "blocks",
                                       "c_attn",
                                       "c_fc",
                                       "c_proj",
                                       "conv",
                                       "conv1",
                                       "conv2",
                                       "conv_in",
                                       "conv_out",
                                       "conv_shortcut",
                                       "cross_attn",
                                       "decoder",
                                       "dense",
                                       "dense_4h_to_h",
                                       "dense_h_to_4h",
                                       "down_blocks",
                                       "down_proj",
                                       "downsamplers",
                                       "emb_layers",
                                       "embed_in",
                                       "embed_out",
                                       "embed_tokens",
                                       "embeddings",
                                       "encoder",
                                       "encoder_attn",
                                       "experts",
                                       "fc1",
                                       "fc2",
                                       "fc_in",
                                       "fc_out",
                                       "feed_forward",
                                       "ff",
                                       "final_layer_norm",
                                       "gate",
                                       "gate_proj",
                                       "gate_up_proj",
                                       "gpt_neox",
                                       "h",
                                       "in_layers",
                                       "in_proj",
                                       "input_blocks",
                                       "intermediate",
                                       "k",
                                       "k_proj",
                                       "key",
                                       "label_emb",
                                       "language_model",
                                       "layer",
                                       "layers",
                                       "linear_1",
                                       "linear_2",
                                       "lm_head",
                                       "mid_block",
                                       "middle_block",
                                       "mlp",
                                       "model",
                                       "net",
                                       "o",
                                       "o_proj",
                                       "op",
                                       "out",
                                       "out_layers",
                                       "out_proj",
                                       "output",
                                       "output_blocks",
                                       "position_embedding",
                                       "proj",
                                       "proj_in",
                                       "proj_out",
                                       "q",
                                       "q_proj",
                                       "qkv",
                                       "qkv_proj",
                                       "query",
                                       "query_key_value",
                                       "resnets",
                                       "self",
                                       "self_attention",
                                       "self_attn",
                                       "shared",
                                       "shared_expert",
                                       "shared_expert_gate",
                                       "skip_connection",
                                       "text_model",
                                       "text_projection",
                                       "time_emb_proj",
                                       "time_embed",
                                       "time_embedding",
                                       "to_add_out",
                                       "to_k",
                                       "to_out",
                                       "to_q",
                                       "to_v",
                                       "token_embedding",
                                       "transformer",
                                       "transformer_blocks",
                                       "up_blocks",
                                       "up_proj",
                                       "upsamplers",
                                       "v",
                                       "v_proj",
                                       "value",
                                       "vision_model",
                                       "w1",
                                       "w2",
                                       "w3",
                                       "wi",
                                       "wi_0",
                                       "wi_1",
                                       "wo",
                                       "wpe",
                                       "wqkv",
                                       "wte"};

static const char *const folders[ICMA_COMPONENT_COUNT] = {
    "", "unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3"};

const char *icma_component_name(icma_component component) {
    return folders[component];
}

/* --- prefixes ------------------------------------------------------------------------------------------- */

static const struct {
    const char *text;
    icma_component component;
} flat_prefixes[] = {{"lora_unet_", ICMA_COMPONENT_UNET},
                     {"lora_te_", ICMA_COMPONENT_TEXT},
                     {"lora_te1_", ICMA_COMPONENT_TEXT},
                     {"lora_te2_", ICMA_COMPONENT_TEXT_2},
                     {"lora_te3_", ICMA_COMPONENT_TEXT_3}};

static bool starts_with(const char *text, size_t length, const char *start) {
    return length >= strlen(start) && memcmp(text, start, strlen(start)) == 0;
}

const char *icma_flat_prefix(const char *name, size_t length, icma_component *component) {
    for (size_t i = 0; i < sizeof flat_prefixes / sizeof *flat_prefixes; i++)
        if (starts_with(name, length, flat_prefixes[i].text)) {
            *component = flat_prefixes[i].component;
            return name + strlen(flat_prefixes[i].text);
        }
    return NULL;
}

const char *icma_flat_prefix_of(icma_component component, bool several) {
    if (component == ICMA_COMPONENT_TEXT)
        return several ? "lora_te1_" : "lora_te_";
    for (size_t i = 0; i < sizeof flat_prefixes / sizeof *flat_prefixes; i++)
        if (flat_prefixes[i].component == component)
            return flat_prefixes[i].text;
    return NULL;
}

/* Blocks of diffusers' transformers; "transformer.h.0" is a language model's own path. */
static bool is_transformer_block(const char *path, size_t length) {
    return starts_with(path, length, "transformer_blocks.") ||
           starts_with(path, length, "single_transformer_blocks.") ||
           starts_with(path, length, "joint_transformer_blocks.");
}

const char *icma_dotted_prefix(const char *name, size_t length, icma_component *component) {
    for (icma_component c = ICMA_COMPONENT_UNET; c < ICMA_COMPONENT_COUNT; c++) {
        size_t size = strlen(folders[c]);
        if (!starts_with(name, length, folders[c]) || length == size || name[size] != '.')
            continue;
        if (c == ICMA_COMPONENT_TRANSFORMER && !is_transformer_block(name + size + 1, length - size - 1))
            continue;
        *component = c;
        return name + size + 1;
    }
    return NULL;
}

static bool is_unet_path(const char *path) {
    static const char *const starts[] = {"down_blocks.", "mid_block.",      "up_blocks.",     "conv_in",
                                         "conv_out",     "time_embedding.", "add_embedding.", NULL};
    for (size_t i = 0; starts[i]; i++)
        if (starts_with(path, strlen(path), starts[i]))
            return true;
    return icma_path_is_ldm(path);
}

icma_component icma_component_of_path(const char *path) {
    if (is_unet_path(path))
        return ICMA_COMPONENT_UNET;
    return is_transformer_block(path, strlen(path)) ? ICMA_COMPONENT_TRANSFORMER : ICMA_COMPONENT_TEXT;
}

/* --- flat names ----------------------------------------------------------------------------------------- */

typedef struct span {
    const char *text;
    size_t length;
} span;

static int compare_segment(const void *key, const void *element) {
    const span *s = key;
    const char *segment = *(const char *const *)element;
    int order = strncmp(s->text, segment, s->length);
    return order != 0 ? order : -(segment[s->length] != '\0');
}

static bool is_number(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (text[i] < '0' || text[i] > '9')
            return false;
    return length > 0;
}

/* The length of the longest known segment at the start, with what follows it an underscore or the end; 0 if
 * there is none. */
static size_t take_segment(const char *text, size_t length) {
    size_t end = 0, best = 0;
    for (int words = 0; words < MOST_WORDS && end < length; words++) {
        if (words)
            end++; /* the underscore */
        while (end < length && text[end] != '_')
            end++;
        span s = {text, end};
        if ((words == 0 && is_number(text, end)) ||
            bsearch(&s, segments, sizeof segments / sizeof *segments, sizeof *segments, compare_segment))
            best = end;
    }
    return best;
}

static bool finish(icma_buffer *out, bool good, char **path, bool *out_of_memory) {
    *path = good && !out->failed ? icma_copy_text((const char *)out->data, out->size) : NULL;
    *out_of_memory = good && !*path;
    icma_buffer_free(out);
    return *path != NULL;
}

bool icma_path_from_flat(const char *flat, size_t length, char **path, bool *out_of_memory) {
    icma_buffer out = {0};
    size_t at = 0;
    bool good = length > 0;
    while (good && at < length) {
        size_t size = take_segment(flat + at, length - at);
        good = size > 0;
        if (at)
            icma_write_u8(&out, '.');
        icma_write_bytes(&out, flat + at, size);
        at += size + 1;
    }
    return finish(&out, good && at == length + 1, path, out_of_memory);
}

/* --- the UNet of SDXL ----------------------------------------------------------------------------------- */

enum {
    LDM_LAYERS = 3 /* of a level of SDXL: two pairs of resnet and attention, and what changes the resolution;
                      going up, three pairs */
};

static const struct {
    const char *ldm, *diffusers;
} whole_modules[] =
    {
        {"input_blocks.0.0", "conv_in"},
        {"out.2", "conv_out"},
        {"time_embed.0", "time_embedding.linear_1"},
        {"time_embed.2", "time_embedding.linear_2"},
        {"label_emb.0.0", "add_embedding.linear_1"},
        {"label_emb.0.2", "add_embedding.linear_2"},
},
  resnet_parts[] = {
      {"in_layers.2", "conv1"},
      {"out_layers.3", "conv2"},
      {"emb_layers.1", "time_emb_proj"},
      {"skip_connection", "conv_shortcut"},
};

bool icma_path_is_ldm(const char *path) {
    static const char *const starts[] = {
        "input_blocks.", "middle_block.", "output_blocks.", "out.2", "time_embed.", "label_emb.", NULL};
    for (size_t i = 0; starts[i]; i++)
        if (starts_with(path, strlen(path), starts[i]))
            return true;
    return false;
}

static void put(icma_buffer *out, const char *text) {
    icma_write_bytes(out, text, strlen(text));
}

/* "12." or "12" at the end; false if there is no such number. Small ones only: a UNet has a dozen blocks. */
static bool take_number(const char **at, unsigned *value) {
    char *end;
    if (!is_number(*at, strspn(*at, "0123456789")) || strspn(*at, "0123456789") > 3)
        return false;
    *value = (unsigned)strtoul(*at, &end, 10);
    *at = *end == '.' ? end + 1 : end;
    return *end == '.' || *end == '\0';
}

static bool take_text(const char **at, const char *text) {
    size_t length = strlen(text);
    if (strncmp(*at, text, length) != 0 || ((*at)[length] != '.' && (*at)[length] != '\0'))
        return false;
    *at += length + ((*at)[length] == '.');
    return true;
}

/* What a block holds behind its number: a resnet, whose parts have other names, or an attention or sampler,
 * whose parts have not. */
static bool put_resnet(icma_buffer *out, const char *part, bool to_ldm) {
    for (size_t i = 0; i < sizeof resnet_parts / sizeof *resnet_parts; i++)
        if (strcmp(part, to_ldm ? resnet_parts[i].diffusers : resnet_parts[i].ldm) == 0) {
            put(out, to_ldm ? resnet_parts[i].ldm : resnet_parts[i].diffusers);
            return true;
        }
    return false;
}

static void put_path(icma_buffer *out, const char *blocks, unsigned level, const char *kind, unsigned index) {
    char text[80];
    snprintf(text, sizeof text, "%s.%u.%s.%u.", blocks, level, kind, index);
    put(out, text);
}

/* input_blocks.N.K. and output_blocks.N.K. */
static bool level_from_ldm(const char *rest, bool up, icma_buffer *out) {
    unsigned n, k;
    const char *blocks = up ? "up_blocks" : "down_blocks";
    if (!take_number(&rest, &n) || !take_number(&rest, &k) || (!up && n == 0))
        return false;
    n -= !up;
    unsigned level = n / LDM_LAYERS, layer = n % LDM_LAYERS;
    if (!up && layer == 2) {
        put_path(out, blocks, level, "downsamplers", 0);
        put(out, "conv");
        return k == 0 && strcmp(rest, "op") == 0;
    }
    if (up && strcmp(rest, "conv") == 0) {
        put_path(out, blocks, level, "upsamplers", 0);
        put(out, "conv");
        return layer == 2 && (k == 1 || k == 2);
    }
    put_path(out, blocks, level, k == 0 ? "resnets" : "attentions", layer);
    if (k == 0)
        return put_resnet(out, rest, false);
    put(out, rest);
    return k == 1 && *rest;
}

static bool middle_from_ldm(const char *rest, icma_buffer *out) {
    unsigned k;
    if (!take_number(&rest, &k) || k > 2)
        return false;
    put(out, k == 1 ? "mid_block.attentions.0." : k == 0 ? "mid_block.resnets.0." : "mid_block.resnets.1.");
    if (k != 1)
        return put_resnet(out, rest, false);
    put(out, rest);
    return *rest != '\0';
}

bool icma_path_from_ldm(const char *ldm, char **path, bool *out_of_memory) {
    icma_buffer out = {0};
    const char *rest = ldm;
    for (size_t i = 0; i < sizeof whole_modules / sizeof *whole_modules; i++)
        if (strcmp(ldm, whole_modules[i].ldm) == 0) {
            put(&out, whole_modules[i].diffusers);
            return finish(&out, true, path, out_of_memory);
        }
    bool good = take_text(&rest, "input_blocks") ? level_from_ldm(rest, false, &out)
                : take_text(&rest, "output_blocks")
                    ? level_from_ldm(rest, true, &out)
                    : take_text(&rest, "middle_block") && middle_from_ldm(rest, &out);
    return finish(&out, good, path, out_of_memory);
}

static void put_ldm(icma_buffer *out, const char *blocks, unsigned n, unsigned k) {
    char text[80];
    snprintf(text, sizeof text, "%s.%u.%u.", blocks, n, k);
    put(out, text);
}

static bool level_to_ldm(const char *rest, bool up, icma_buffer *out) {
    unsigned level, index;
    const char *blocks = up ? "output_blocks" : "input_blocks";
    if (!take_number(&rest, &level))
        return false;
    unsigned first = LDM_LAYERS * level + !up;
    /* The upsampler comes after the attention, and SDXL's highest level, where there is none, has no
     * upsampler. */
    if (take_text(&rest, up ? "upsamplers" : "downsamplers")) {
        put_ldm(out, blocks, first + 2, up ? 2 : 0);
        put(out, up ? "conv" : "op");
        return take_number(&rest, &index) && index == 0 && strcmp(rest, "conv") == 0;
    }
    bool resnet = take_text(&rest, "resnets");
    if ((!resnet && !take_text(&rest, "attentions")) || !take_number(&rest, &index) ||
        index >= (up ? LDM_LAYERS : LDM_LAYERS - 1))
        return false;
    put_ldm(out, blocks, first + index, resnet ? 0 : 1);
    if (resnet)
        return put_resnet(out, rest, true);
    put(out, rest);
    return *rest != '\0';
}

static bool middle_to_ldm(const char *rest, icma_buffer *out) {
    unsigned index;
    bool resnet = take_text(&rest, "resnets");
    if ((!resnet && !take_text(&rest, "attentions")) || !take_number(&rest, &index) ||
        index > (resnet ? 1U : 0U))
        return false;
    put(out, !resnet ? "middle_block.1." : index == 0 ? "middle_block.0." : "middle_block.2.");
    if (resnet)
        return put_resnet(out, rest, true);
    put(out, rest);
    return *rest != '\0';
}

bool icma_path_to_ldm(const char *path, char **ldm, bool *out_of_memory) {
    icma_buffer out = {0};
    const char *rest = path;
    for (size_t i = 0; i < sizeof whole_modules / sizeof *whole_modules; i++)
        if (strcmp(path, whole_modules[i].diffusers) == 0) {
            put(&out, whole_modules[i].ldm);
            return finish(&out, true, ldm, out_of_memory);
        }
    bool good = take_text(&rest, "down_blocks") ? level_to_ldm(rest, false, &out)
                : take_text(&rest, "up_blocks") ? level_to_ldm(rest, true, &out)
                                                : take_text(&rest, "mid_block") && middle_to_ldm(rest, &out);
    return finish(&out, good, ldm, out_of_memory);
}
