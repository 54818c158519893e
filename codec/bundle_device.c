/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints of an archive decoded into a device's memory (icma.h). */
#include "bundle_inside.h"
#include "memory.h"
#include "verbatim.h"

#include <string.h>

void icma_device_adapter_free(icma_device_adapter *a) {
    if (a->data)
        a->ops->release(a->ops->device, a->data);
    icma_free(a->tensors);
    memset(a, 0, sizeof *a);
}

static icma_status make_adapter(const icma_bundle *b, const icma_part *p, icma_device_adapter *out, icma_error *error) {
    *out = (icma_device_adapter){.size = b->groups[p->group].signature.data_size, .ops = b->ops};
    icma_status status = icma_part_tensors(b, p, &out->tensors, &out->tensor_count, error);
    return status || !out->size ? status : b->ops->alloc(b->ops->device, ICMA_ELEMENT_U8, (size_t)out->size, &out->data, error);
}

/* Tensors of a checkpoint that are kept verbatim, those that lie end to end in one transfer. */
static icma_status upload_runs(const icma_bundle *b, const icma_part *p, const icma_checkpoint *c, const uint8_t *data, icma_tensor *to, icma_error *error) {
    const icma_group_state *g = &b->groups[p->group];
    icma_status status = ICMA_OK;
    for (size_t t = 0, end; !status && t < g->signature.tensor_count; t = end) {
        end = t + 1;
        if (!icma_is_verbatim(&g->signature, &g->generator, c, t))
            continue;
        while (end < g->signature.tensor_count && icma_is_verbatim(&g->signature, &g->generator, c, end))
            end++;
        size_t first = (size_t)g->signature.tensors[t].begin, last = (size_t)(g->signature.tensors[end - 1].begin + g->signature.tensors[end - 1].size);
        if (first < last)
            status = b->ops->upload(b->ops->device, to, first, data + first, last - first, error);
    }
    return status;
}

static icma_status upload_verbatim(icma_bundle *b, uint32_t task, icma_part *p, size_t index, icma_tensor *to, icma_error *error) {
    const icma_group_state *g = &b->groups[p->group];
    const icma_checkpoint *c = &p->table.list[index];
    bool any = false;
    for (size_t t = 0; t < g->signature.tensor_count; t++)
        any = any || (g->signature.tensors[t].size && icma_is_verbatim(&g->signature, &g->generator, c, t));
    if (!any)
        return ICMA_OK;
    uint8_t *data = icma_alloc((size_t)g->signature.data_size);
    icma_status status = data ? icma_part_read_verbatim(b, task, p, index, data, error) : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for verbatim tensors");
    if (!status)
        status = upload_runs(b, p, c, data, to, error);
    icma_free(data);
    return status;
}

static icma_status upload_lossless(icma_bundle *b, uint32_t task, icma_part *p, size_t index, icma_device_adapter *out, icma_error *error) {
    const uint8_t *data;
    icma_status status = icma_chain_decode(b, task, p, index, &data, error);
    return status || !out->data ? status : b->ops->upload(b->ops->device, out->data, 0, data, (size_t)out->size, error);
}

/* The data of a checkpoint below tier lossless. */
static icma_status decode_modelled(icma_bundle *b, uint32_t task, icma_part *p, size_t index, float *code, icma_tensor *to, icma_error *error) {
    const icma_checkpoint *c = &p->table.list[index];
    icma_decoder *decoder = b->groups[p->group].decoder;
    icma_residual residual = {0};
    icma_status status = code ? icma_decoder_code(decoder, &p->table, c, code, error) : ICMA_OK;
    if (!status)
        status = icma_part_load_residual(b, task, p, index, code, &residual, error);
    if (!status && to)
        status = icma_decoder_tensors_to(decoder, code, &residual, c->exceptions, c->exception_count, to, error);
    icma_residual_free(&residual);
    return status ? status : upload_verbatim(b, task, p, index, to, error);
}

/* The file as icma_bundle_decode gives it, for its checksum. */
static icma_status verify_adapter(icma_bundle *b, size_t task, size_t checkpoint, const icma_part *p, const icma_checkpoint *c, const icma_device_adapter *a, icma_error *error) {
    const uint8_t *header;
    size_t size;
    icma_status status = icma_part_header(b, p, c, &header, &size, error);
    if (status)
        return status;
    uint8_t *file = icma_alloc(8 + size + (size_t)a->size);
    if (!file)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for an adapter of %zu bytes", 8 + size + (size_t)a->size);
    icma_store_u64(file, size);
    memcpy(file + 8, header, size);
    if (a->data)
        status = a->ops->download(a->ops->device, a->data, 0, file + 8 + size, (size_t)a->size, error);
    if (!status)
        status = icma_bundle_check_hash(b, task, checkpoint, file, 8 + size + (size_t)a->size, error);
    icma_free(file);
    return status;
}

static icma_status decode_place(icma_bundle *b, size_t task, icma_place at, icma_device_adapter *out, icma_error *error) {
    icma_part *p = &b->tasks[task].parts[at.part];
    float *code;
    icma_status status = icma_part_open(b, (uint32_t)task, p, at.index, &code, error);
    if (!status)
        status = make_adapter(b, p, out, error);
    if (!status)
        status = p->table.list[at.index].tier == ICMA_TIER_LOSSLESS ? upload_lossless(b, (uint32_t)task, p, at.index, out, error)
                                                                    : decode_modelled(b, (uint32_t)task, p, at.index, code, out->data, error);
    icma_free(code);
    return status;
}

icma_status icma_bundle_decode_on_device(icma_bundle *b, size_t task, size_t checkpoint, bool verify, icma_device_adapter *out, icma_error *error) {
    icma_place at;
    memset(out, 0, sizeof *out);
    icma_status status = icma_bundle_find_checkpoint(b, task, checkpoint, &at, error);
    if (!status)
        status = decode_place(b, task, at, out, error);
    if (!status && verify) {
        const icma_part *p = &b->tasks[task].parts[at.part];
        status = verify_adapter(b, task, checkpoint, p, &p->table.list[at.index], out, error);
    }
    if (status) {
        icma_error_set_file(error, icma_container_path(b->container));
        icma_device_adapter_free(out);
    }
    return status;
}
