/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CLIP's text encoder (Radford et al. 2021): from a text to a vector, as transformers' CLIPTextModel
 * (`pooler_output`) and CLIPTextModelWithProjection (`text_embeds`) have it, to rounding.
 *
 * Tokens (tokenizer.h) and positions are embedded; layers of x += attention(norm(x)), x += mlp(norm(x))
 * follow, where each position sees itself and those before it; the last norm; the row of the end token is the
 * embedding; with a projection, that times the projection's matrix. As no position sees a later one, what
 * follows the end token is never computed, and beginnings that texts share are computed once.
 *
 * A folder is one that transformers or diffusers saved: config.json (a CLIPTextConfig, or a CLIPConfig with a
 * text_config); model.safetensors, model.fp16.safetensors or the files of model.safetensors.index.json, F32,
 * F16 or BF16, of a text encoder or of a whole CLIP; vocab.json and merges.txt, there or in `tokenizer` in it
 * or beside it. Of a diffusers pipeline, its folder or text_encoder in it.
 */
#ifndef ICMA_TEXT_ENCODER_H
#define ICMA_TEXT_ENCODER_H

#include "ops.h"

typedef struct icma_text_encoder icma_text_encoder;

/*
 * Loads the encoder; its weights go to the device of `ops`, or stay with the CPU's table where that cannot
 * compute transformers. ICMA_E_NOT_FOUND for a file or tensor that is missing, ICMA_E_UNSUPPORTED for what is
 * no CLIP text encoder of these dtypes, ICMA_E_CORRUPT for files that do not fit each other, ICMA_E_LIMIT.
 * Not thread-safe, neither is what follows, as ops are not.
 */
icma_status icma_text_encoder_open(const char *folder, const icma_ops *ops, icma_text_encoder **out,
                                   icma_error *error);
void icma_text_encoder_close(icma_text_encoder *encoder); /* NULL is fine */

/* Numbers in an embedding; 0 if `projected` and there is no projection. */
size_t icma_text_encoder_width(const icma_text_encoder *encoder, bool projected);

/*
 * Embeds `count` texts, NUL-terminated UTF-8, into `out`, count x width, row-major. Tokens beyond what the
 * encoder takes are left out. A text's embedding does not depend on threads; it depends on the other texts of
 * a call only in rounding. ICMA_E_USAGE for `project` without a projection, what icma_tokenizer_encode says,
 * and ICMA_E_UNSUPPORTED where an embedding is not finite; `out` is then undefined.
 */
icma_status icma_text_encoder_embed(icma_text_encoder *encoder, const char *const *texts, size_t count,
                                    bool project, float *out, icma_error *error);

/* What to record, so that an embedding can be made again. The strings are the encoder's. */
const char *icma_text_encoder_id(
    const icma_text_encoder *encoder); /* `_name_or_path` of config.json, else the folder's name */
uint64_t icma_text_encoder_hash(
    const icma_text_encoder *encoder); /* XXH3-64 of the little-endian XXH3-64 of each tensor's bytes, in the
                                          order of text_weights.c, the projection last where there is one */
const char *icma_text_encoder_pooling(
    const icma_text_encoder *encoder); /* "largest id" where config.json's eos_token_id is 2 (the first
                                          largest), else "first end token" */

#endif
