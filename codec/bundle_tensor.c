/* SPDX-License-Identifier: Apache-2.0 */
/* One tensor of a checkpoint, at the cost of its part of the head and of the residual (icma.h). */
#include "bundle_inside.h"
#include "memory.h"
#include "verbatim.h"

#include <string.h>

icma_status icma_part_tensors(const icma_bundle *b, const icma_part *p, icma_adapter_tensor **list,
                              size_t *count, icma_error *error) {
    const icma_safetensors *signature = &b->groups[p->group].signature;
    *count = 0;
    *list = icma_alloc_array(signature->tensor_count + 1, sizeof **list);
    if (!*list)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a list of tensors");
    *count = signature->tensor_count;
    for (size_t t = 0; t < *count; t++) {
        const icma_tensor_info *info = &signature->tensors[t];
        (*list)[t] =
            (icma_adapter_tensor){info->name, info->dtype, info->rank, info->shape, info->begin, info->size};
    }
    return ICMA_OK;
}

icma_status icma_bundle_tensors(icma_bundle *b, size_t task, size_t checkpoint, icma_adapter_tensor **list,
                                size_t *count, icma_error *error) {
    icma_place at;
    *list = NULL;
    *count = 0;
    icma_status status = icma_bundle_find_checkpoint(b, task, checkpoint, &at, error);
    return status ? status : icma_part_tensors(b, &b->tasks[task].parts[at.part], list, count, error);
}

/* Out of what is read or decoded for all tensors together. */
static icma_status copy_verbatim(icma_bundle *b, uint32_t task, icma_part *p, size_t index,
                                 const icma_tensor_info *info, uint8_t *out, icma_error *error) {
    uint8_t *data = icma_alloc_zeroed((size_t)b->groups[p->group].signature.data_size, 1);
    icma_status status = data ? icma_part_read_verbatim(b, task, p, index, data, error)
                              : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for verbatim tensors");
    if (!status)
        memcpy(out, data + info->begin, (size_t)info->size);
    icma_free(data);
    return status;
}

static icma_status copy_lossless(icma_bundle *b, uint32_t task, icma_part *p, size_t index,
                                 const icma_tensor_info *info, uint8_t *out, icma_error *error) {
    const uint8_t *data;
    icma_status status = icma_chain_decode(b, task, p, index, &data, error);
    if (!status)
        memcpy(out, data + info->begin, (size_t)info->size);
    return status;
}

/* Below tier lossless. */
static icma_status decode_modelled(icma_bundle *b, uint32_t task, icma_part *p, size_t index, float *code,
                                   size_t tensor, uint8_t *out, icma_error *error) {
    icma_decoder *decoder = b->groups[p->group].decoder;
    icma_residual all = {0}, one = {0};
    icma_status status =
        code ? icma_decoder_code(decoder, &p->table, &p->table.list[index], code, error) : ICMA_OK;
    if (!status)
        status = icma_part_load_residual(b, task, p, index, code, &all, error);
    if (!status)
        status = icma_residual_of_tensor(&all, (uint32_t)tensor, &one, error);
    if (!status)
        status = icma_decoder_tensor(decoder, code, &one, tensor, out, error);
    icma_residual_free(&one);
    icma_residual_free(&all);
    return status;
}

static icma_status decode_place(icma_bundle *b, uint32_t task, icma_place at, size_t tensor, uint8_t *out,
                                size_t size, icma_error *error) {
    icma_part *p = &b->tasks[task].parts[at.part];
    const icma_group_state *g = &b->groups[p->group];
    const icma_checkpoint *c = &p->table.list[at.index];
    if (tensor >= g->signature.tensor_count)
        return icma_fail(error, ICMA_E_NOT_FOUND, NULL, "no tensor %zu; the adapter has %zu", tensor,
                         g->signature.tensor_count);
    const icma_tensor_info *info = &g->signature.tensors[tensor];
    if (size != info->size)
        return icma_fail(error, ICMA_E_USAGE, NULL,
                         "%s has %llu bytes, and there is room for %zu; ask icma_bundle_tensors", info->name,
                         (unsigned long long)info->size, size);
    float *code;
    icma_status status = icma_part_open(b, task, p, at.index, &code, error);
    if (!status && size)
        status = c->tier == ICMA_TIER_LOSSLESS ? copy_lossless(b, task, p, at.index, info, out, error)
                 : icma_is_verbatim(&g->signature, &g->generator, c, tensor)
                     ? copy_verbatim(b, task, p, at.index, info, out, error)
                     : decode_modelled(b, task, p, at.index, code, tensor, out, error);
    icma_free(code);
    return status;
}

icma_status icma_bundle_decode_tensor(icma_bundle *b, size_t task, size_t checkpoint, size_t tensor,
                                      void *data, size_t size, icma_error *error) {
    icma_place at;
    icma_status status = icma_bundle_find_checkpoint(b, task, checkpoint, &at, error);
    if (!status)
        status = decode_place(b, (uint32_t)task, at, tensor, data, size, error);
    if (status)
        icma_error_set_file(error, icma_container_path(b->container));
    return status;
}
