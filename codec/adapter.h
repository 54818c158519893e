/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the codec knows about LoRA adapters: which tensors are factors of which pair, and the pair's scale.
 *
 * A pair is dW = scale * B A with A of shape (r, in...) and B of shape (out, r, ...); trailing dimensions of
 * convolutions are folded into the second one. The naming styles of PEFT (lora_A.weight,
 * lora_A.<adapter>.weight, lora_embedding_A), kohya (lora_down.weight, lora_up.weight) and diffusers
 * (lora.down.weight, x_lora.down.weight, lora_linear_layer.down.weight) are recognised. Factors are F32, F16
 * or BF16 and not empty. A kohya pair with a lora_mid between its factors is no B A, so not a pair.
 *
 * LyCORIS's LoHa and LoKr make dW of two matrices W1 and W2 (their Hadamard, or Kronecker product), each of
 * which may be a product of two factors: such a product is a pair, so what is measured and bounded is W1 and
 * W2. For LoKr the relative error of dW is that of W2 where W1 is exact. DoRA's dW is that of its factors:
 * the magnitudes, which scale the rows of W + dW, are tensors of their own.
 */
#ifndef ICMA_ADAPTER_H
#define ICMA_ADAPTER_H

#include "safetensors.h"

typedef enum icma_role {
    ICMA_ROLE_A,     /* first factor: down-projection */
    ICMA_ROLE_B,     /* second factor: up-projection */
    ICMA_ROLE_OTHER, /* anything else */
    ICMA_ROLE_COUNT
} icma_role;

/* "A", "B", "other". */
const char *icma_role_name(icma_role role);

/* How a factor is named. Factors pair up within one naming only. */
typedef enum icma_naming {
    ICMA_NAMING_PEFT,      /* lora_A.weight, lora_A.<adapter>.weight */
    ICMA_NAMING_EMBEDDING, /* lora_embedding_A, of PEFT */
    ICMA_NAMING_KOHYA,     /* lora_down.weight; lora_mid, which is no factor, has role "other" */
    ICMA_NAMING_DIFFUSERS, /* lora.down.weight, x_lora.down.weight */
    ICMA_NAMING_LINEAR,    /* lora_linear_layer.down.weight, of diffusers */
    ICMA_NAMING_HADA1,     /* LyCORIS: hada_w1_a (B), hada_w1_b (A); hada_t1, which is no factor */
    ICMA_NAMING_HADA2,     /* the same of w2 */
    ICMA_NAMING_LOKR1,     /* lokr_w1_a, lokr_w1_b */
    ICMA_NAMING_LOKR2      /* lokr_w2_a, lokr_w2_b; lokr_t2 */
} icma_naming;

/* Whether factors of this naming make dW = B A, up to a scale. LyCORIS's make two matrices that dW is made
 * of. */
static inline bool icma_naming_is_lora(icma_naming naming) {
    return naming < ICMA_NAMING_HADA1;
}

typedef struct icma_factor_name {
    const char *module; /* the tensor's name; its first module_length bytes are the module and its separator,
                           "." or "_" */
    size_t module_length;
    const char *adapter;
    size_t adapter_length; /* 0: the name has none */
    icma_naming naming;
    icma_role role;
    size_t index; /* of the tensor: the caller's */
} icma_factor_name;

/* Takes the name of a factor apart; false for another tensor's. Points into `name`. */
bool icma_factor_name_parse(const char *name, icma_factor_name *out);

typedef struct icma_pair {
    size_t a, b;                  /* indices of the two tensors */
    uint64_t rank, rows, columns; /* B is rows x rank, A is rank x columns */
    bool is_half;                 /* LyCORIS's: B A is not dW but one of two matrices that dW is made of */
    char *module; /* the name without the factor's suffix: "base_model.model.layers.0.q_proj"; owned */
} icma_pair;

typedef struct icma_pairs {
    icma_role *roles; /* one a tensor; ICMA_ROLE_A and _B only for tensors that form a pair; owned */
    icma_pair *list;  /* in order of the A tensors; owned */
    size_t count;
} icma_pairs;

/* Whether a tensor's name is one that adapters' tensors have, in a pair or not: LoRA's, DoRA's, LyCORIS's,
 * (IA)3's, ... */
bool icma_adapter_names(const char *name);

/* Finds the pairs of one file in O(n log n). A name that looks like a factor but has no partner, or whose
 * shapes do not fit, is "other". */
icma_status icma_pairs_find(const icma_safetensors *tensors, icma_pairs *out, icma_error *error);
void icma_pairs_free(icma_pairs *pairs); /* leaves it zeroed */

/* lora_alpha / r of an adapter_config.json text (lora_alpha / sqrt(r) with use_rslora), for `module`. r is
 * the entry of rank_pattern, else the pair's own `rank`, else (rank 0) the text's "r"; rank_pattern and
 * alpha_pattern entries match a module that equals them or ends in "." + them, the first one counts (PEFT
 * reads them as regular expressions; here they are plain names). Returns 1 when `config` is NULL, or not to
 * be understood: relative errors do not depend on it, only absolute ones do. */
double icma_pair_scale(const char *config, size_t config_size, const char *module, uint64_t rank);
/* What stands in the file itself goes before that: alpha / rank where a pair has an "alpha" beside it, one
 * number, as kohya and LyCORIS write it. `data` are the tensors'. scales[i] for pairs->list[i]. ICMA_E_MEMORY
 * only. */
icma_status icma_pairs_scales_in(const icma_safetensors *tensors, const uint8_t *data, const char *config,
                                 size_t config_size, const icma_pairs *pairs, double *scales,
                                 icma_error *error);
/* The same for all pairs at once, reading the text once: scales[i] for pairs->list[i]. ICMA_E_MEMORY only. */
icma_status icma_pairs_scales(const char *config, size_t config_size, const icma_pairs *pairs, double *scales,
                              icma_error *error);

#endif
