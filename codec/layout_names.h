/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of modules in the layouts of PEFT, diffusers and kohya's sd-scripts. Private to layout*.c.
 *
 * PEFT names a module by its path in the model ("model.layers.0.self_attn.q_proj"); diffusers puts the
 * model's place in a pipeline before it ("unet.", "text_encoder_2."); kohya joins both with underscores
 * ("lora_te2_text_model_..."). An underscore of a flat name is a dot or one of a segment's own; which, is
 * told by the segments that models are known to have.
 */
#ifndef ICMA_LAYOUT_NAMES_H
#define ICMA_LAYOUT_NAMES_H

#include <stdbool.h>
#include <stddef.h>

/* A model of a pipeline. */
typedef enum icma_component {
    ICMA_COMPONENT_NONE, /* one model, which is not told */
    ICMA_COMPONENT_UNET,
    ICMA_COMPONENT_TRANSFORMER,
    ICMA_COMPONENT_TEXT,
    ICMA_COMPONENT_TEXT_2,
    ICMA_COMPONENT_TEXT_3,
    ICMA_COMPONENT_COUNT
} icma_component;

/* Its folder in a pipeline of diffusers: "unet", "text_encoder_2"; "" for none. */
const char *icma_component_name(icma_component component);

/* Takes "lora_te2_" and the like off the front of a flat name: what is left, or NULL if it has no such
 * prefix. */
const char *icma_flat_prefix(const char *name, size_t length, icma_component *component);
/* kohya's prefix, with its underscore; `several`: the pipeline has more than one text encoder. NULL where
 * kohya has none. */
const char *icma_flat_prefix_of(icma_component component, bool several);

/* A flat name as a path; *path is the caller's (icma_free). False, with *path NULL, where a part of it is not
 * known; or for want of memory, with *out_of_memory set. Segments are taken as long as they are known to be.
 */
bool icma_path_from_flat(const char *flat, size_t length, char **path, bool *out_of_memory);
/* The UNet of SDXL has other names with kohya (those of its first implementation, "input_blocks.4.1...") than
 * with diffusers ("down_blocks.1.attentions.0..."). Both turn one into the other: *path is the caller's;
 * false where it has no counterpart. */
bool icma_path_is_ldm(const char *path);
bool icma_path_from_ldm(const char *ldm, char **path, bool *out_of_memory);
bool icma_path_to_ldm(const char *path, char **ldm, bool *out_of_memory);

/* Takes "unet." and the like off the front of a dotted name. */
const char *icma_dotted_prefix(const char *name, size_t length, icma_component *component);
/* The model that a path without prefix belongs to, by its first segments: a UNet, a transformer of diffusers,
 * else a text model. */
icma_component icma_component_of_path(const char *path);

#endif
