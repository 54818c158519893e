/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing safetensors as the safetensors package does: tensors ordered by dtype (the widest first, so that
 * all are aligned) and then by name, a header without white space but padding to a multiple of 8.
 */
#ifndef ICMA_SAFETENSORS_WRITE_H
#define ICMA_SAFETENSORS_WRITE_H

#include "metadata.h"
#include "safetensors.h"

typedef struct icma_tensor_draft {
    const char *name;
    icma_dtype dtype;
    unsigned rank;
    uint64_t shape[ICMA_MAX_RANK];
    const uint8_t *data; /* NULL where there is nothing */
    uint64_t size;       /* bytes */
} icma_tensor_draft;

/* Into the order of a file. ICMA_E_UNSUPPORTED, naming it, where two tensors have one name. */
icma_status icma_drafts_sort(icma_tensor_draft *drafts, size_t count, icma_error *error);
/* Appends the length's 8 bytes and the header of sorted drafts; from `metadata` the entries whose keys start
 * with `prefix` (NULL: all of them). */
icma_status icma_drafts_header(const icma_tensor_draft *drafts, size_t count, const icma_metadata *metadata,
                               const char *prefix, icma_buffer *out, icma_error *error);
/* A whole file of sorted drafts. *image is owned by the caller (icma_free). */
icma_status icma_drafts_compose(const icma_tensor_draft *drafts, size_t count, const icma_metadata *metadata,
                                uint8_t **image, size_t *size, icma_error *error);

#endif
