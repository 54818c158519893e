/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layouts: a decoded adapter with the names, files and dtype that a program wants.
 *
 * peft: adapter_model.safetensors with "base_model.model.<module>.lora_A.weight" and adapter_config.json;
 * where a file holds several models of a pipeline (kohya's, diffusers'), a folder for each, named as
 * diffusers does ("unet", "text_encoder"). The configuration is the adapter's own, else it is made from its
 * shapes and alphas. kohya: one file with "lora_te_<module with underscores>.lora_down.weight",
 * ".lora_up.weight" and ".alpha". original: as it was packed.
 *
 * Converting renames tensors, makes or takes in alphas, and casts where that is asked for; it never computes
 * with weights. A tensor that the other layout has no place for is an error. Names go by rules and a list of
 * the segments that models have (layout_names.h): a name that these do not tell for certain is refused too.
 *
 * Hashes of the weights in the metadata (kohya's sshs_model_hash and sshs_legacy_hash, modelspec.hash_sha256)
 * that the file no longer has are made anew in layouts original and kohya, where the file has kohya's
 * metadata, and left out else.
 */
#ifndef ICMA_LAYOUT_H
#define ICMA_LAYOUT_H

#include "icma.h"

ICMA_API_BEGIN

typedef enum icma_layout { ICMA_LAYOUT_ORIGINAL, ICMA_LAYOUT_PEFT, ICMA_LAYOUT_KOHYA } icma_layout;

const char *icma_layout_name(icma_layout layout); /* "original", "peft", "kohya" */
bool icma_layout_from_name(const char *name, icma_layout *out);

typedef struct icma_layout_options {
    size_t size; /* of this struct, as the program was compiled with it; icma_layout_defaults fills it in */
    icma_layout layout;
    bool cast;          /* F32, F16 and BF16 tensors but alphas, to nearest, ties to even */
    icma_dtype dtype;   /* to this one of the three */
    bool leave_out;     /* what has no place, instead of ICMA_E_UNSUPPORTED */
    bool other_weights; /* they are not bit for bit those that were packed: hashes in the metadata are not
                           theirs */
    const char
        *base_model; /* for a configuration that names none (PEFT's base_model_name_or_path); or NULL */
} icma_layout_options;

enum { ICMA_LAYOUT_OPTIONS_LEAST = offsetof(icma_layout_options, base_model) + sizeof(const char *) };

/* Fills the first `size` bytes of options: layout original, nothing cast, an error for what has no place. */
void icma_layout_options_init(icma_layout_options *options, size_t size);
static inline icma_layout_options icma_layout_defaults(void) {
    icma_layout_options options;
    icma_layout_options_init(&options, sizeof options);
    return options;
}

typedef struct icma_layout_adapter {
    const char
        *component; /* its folder below the adapter's ("unet"), or "" where it is the only one; static */
    icma_decoded decoded; /* owned */
    bool config_made;
} icma_layout_adapter;

typedef struct icma_layout_result {
    icma_layout_adapter *list; /* owned */
    size_t count;
    bool renamed;        /* it has other tensors, or other names for them */
    size_t cast;         /* tensors that were */
    uint64_t overflowed; /* finite weights that became infinite */
    size_t left_out;     /* tensors; each has a remark */
    bool hashes_made, hashes_dropped;
    char **remarks; /* lines that the user should read: "tensor "x" is left out: ..."; owned */
    size_t remark_count;
} icma_layout_result;

/* Takes `decoded` over and leaves it zeroed, also on failure. ICMA_E_UNSUPPORTED, naming the tensor, for what
 * cannot be converted. */
icma_status icma_layout_convert(icma_decoded *decoded, const icma_layout_options *options,
                                icma_layout_result *out, icma_error *error);
void icma_layout_result_free(icma_layout_result *result); /* leaves it zeroed */

/* The components that icma_layout_convert will make, from the header alone (icma_bundle_header): components[0
 * .. *count - 1], static strings, in order. It fails as the conversion will on names. */
enum { ICMA_MOST_COMPONENTS = 6 };
icma_status icma_layout_components(const icma_decoded *header, const icma_layout_options *options,
                                   const char *components[ICMA_MOST_COMPONENTS], size_t *count,
                                   icma_error *error);

/* What vLLM (its file-system resolver of LoRA adapters and its loader) and LoRAX want of a PEFT folder, and
 * this one breaks: a remark each. Of a language model's adapter only: a diffusion model's is not for them.
 * Rules: see layout_check.c. */
icma_status icma_layout_check_serving(const icma_decoded *adapter, icma_layout_result *to, icma_error *error);

ICMA_API_END

#endif
