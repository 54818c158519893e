/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Adapters in shards, as transformers writes large ones: adapter_model-00001-of-00003.safetensors and so on,
 * with adapter_model.safetensors.index.json. They are one adapter. PEFT itself reads no shards, so what is
 * packed, and comes back, is the one adapter_model.safetensors that the safetensors package would have
 * written of all tensors; it lies in a spool, under that name in the shards' folder. The index is not kept:
 * it names files that there are no more. Private to inputs.c.
 */
#ifndef ICMA_INPUT_SHARDS_H
#define ICMA_INPUT_SHARDS_H

#include "input_finder.h"

/* "adapter_model-00002-of-00003.safetensors": its number and how many there are. */
bool icma_name_shard(const char *name, size_t *number, size_t *count);
/* Joins the shards of a folder. ICMA_E_CORRUPT for one that is missing, ones of several sets, an index that
 * tells otherwise, a tensor or a metadata key with two values in two of them. */
icma_status icma_shards_join(icma_finder *f, const char *folder, const icma_listing *entries, size_t count);

#endif
