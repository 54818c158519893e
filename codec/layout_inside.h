/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of layouts share. Private to layout*.c. */
#ifndef ICMA_LAYOUT_INSIDE_H
#define ICMA_LAYOUT_INSIDE_H

#include "adapter.h"
#include "json.h"
#include "layout.h"
#include "layout_names.h"
#include "safetensors_write.h"

typedef enum icma_fate {
    ICMA_FATE_KEPT,   /* under `name`, or its own where that is NULL */
    ICMA_FATE_TAKEN,  /* an alpha: into the configuration */
    ICMA_FATE_NOWHERE /* for `reason` */
} icma_fate;

typedef struct icma_mapped {
    icma_fate fate;
    icma_component component; /* that it becomes part of */
    icma_component model;     /* that its name tells; of factors and alphas */
    char *module;             /* its path in the model, of factors and alphas; owned */
    char *name;               /* owned */
    const char *reason;
    bool is_alpha;
} icma_mapped;

/* The header at the start of a file, or of as much of one as there is. */
icma_status icma_layout_parse_header(const icma_decoded *from, icma_safetensors *out, icma_error *error);

/* What becomes of a file's tensors. */
typedef struct icma_layout_map {
    icma_mapped *list; /* one a tensor; owned */
    size_t count;
    icma_pairs pairs; /* owned */
    bool as_is;       /* all keep their names */
    bool several;     /* more than one component */
} icma_layout_map;

icma_status icma_layout_map_make(const icma_safetensors *tensors, icma_layout layout, icma_layout_map *out,
                                 icma_error *error);
void icma_layout_map_free(icma_layout_map *map, size_t count);

/* A module of a configuration that is made. */
typedef struct icma_config_module {
    const char *path;
    uint64_t rank;
    double alpha;
} icma_config_module;

/* adapter_config.json as PEFT writes it; the list is sorted on the way. *text is the caller's (icma_free). */
icma_status icma_config_make(icma_config_module *modules, size_t count, const char *base_model, char **text,
                             icma_error *error);
/* Its text, indented as PEFT does. *text is the caller's (icma_free). */
icma_status icma_config_print(const cJSON *root, char **text, icma_error *error);
/* A configuration; NULL where it is none (of another PEFT method, or no JSON). *root is the caller's
 * (cJSON_Delete). ICMA_E_MEMORY only. */
icma_status icma_config_parse(const icma_decoded_file *file, cJSON **root, icma_error *error);
/* What diffusers keeps of a model's configuration in a file's metadata ("lora_adapter_metadata": JSON with
 * keys such as "unet.lora_alpha"), as the text of a configuration; NULL where there is none. *text is the
 * caller's (icma_free). ICMA_E_MEMORY only. */
icma_status icma_config_of_component(const icma_metadata *metadata, icma_component component, char **text,
                                     icma_error *error);
/* The first key of a configuration's alpha_pattern that is a regular expression beyond a plain name: PEFT
 * matches it, and icma_pair_scale does not. NULL: none. *key is the caller's (icma_free). ICMA_E_MEMORY only.
 */
icma_status icma_config_expression(const char *text, size_t size, char **key, icma_error *error);
const icma_decoded_file *icma_config_find(const icma_decoded *decoded);
/* Of a parsed one; NULL where it has none. */
const char *icma_config_base_model(const cJSON *root);

/* The metadata keys of hashes of the weights; the list ends in NULL. */
extern const char *const icma_hash_keys[];

/* Sets or removes the hashes of sorted drafts in `metadata`, which has those of other weights. */
icma_status icma_layout_rehash(const icma_tensor_draft *drafts, size_t count, bool make,
                               icma_metadata *metadata, icma_layout_result *told, icma_error *error);

/* Adds a line. */
icma_status icma_layout_remark(icma_layout_result *result, icma_error *error, const char *format, ...)
    ICMA_PRINTF(3, 4);

#endif
