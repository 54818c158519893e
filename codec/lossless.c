/* SPDX-License-Identifier: Apache-2.0 */
/* Lossless links: the whole payload (spec 4.14). */
#include "lossless_host.h"

#include "memory.h"
#include "ops.h"

#include <string.h>

/* Of several failures the first in order, so that the report does not depend on the threads. */
static icma_status first_failure(const icma_status *statuses, size_t count, icma_error *error) {
    for (size_t i = 0; i < count; i++)
        if (statuses[i] == ICMA_E_CORRUPT)
            return icma_fail(error, ICMA_E_CORRUPT, NULL,
                             "lossless link: coded bytes are damaged; restore the archive from a copy");
        else if (statuses[i])
            return icma_fail(error, statuses[i], NULL, "no memory for a lossless link; close other programs");
    return ICMA_OK;
}

/* --- Encoder --- */

static icma_status encode_pieces(const icma_lossless_link *link, icma_lossless_plan *plan,
                                 const uint8_t *original, icma_buffer *coded, icma_error *error) {
    icma_status *statuses = icma_alloc_zeroed(plan->piece_count + 1, sizeof *statuses);
    if (!statuses)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a lossless link; close other programs");
#pragma omp parallel for schedule(dynamic) num_threads(icma_threads()) if (plan->piece_count > 1)
    for (size_t i = 0; i < plan->piece_count; i++)
        statuses[i] = icma_lossless_piece_encode(link, plan, &plan->pieces[i], original, &coded[i]);
    icma_status status = first_failure(statuses, plan->piece_count, error);
    icma_free(statuses);
    return status;
}

static void write_plain(const icma_lossless_link *link, const icma_lossless_plan *plan,
                        const uint8_t *original, icma_buffer *out) {
    for (size_t i = 0; i < plan->tensor_count; i++) {
        const icma_tensor_info *info = &link->signature->tensors[plan->tensors[i].tensor];
        if (plan->tensors[i].method == ICMA_LOSSLESS_PLAIN)
            icma_write_bytes(out, original + info->begin, (size_t)info->size);
    }
}

static icma_status write_payload(const icma_lossless_link *link, icma_lossless_plan *plan,
                                 const uint8_t *original, icma_buffer *out, icma_error *error) {
    icma_buffer *coded = icma_alloc_zeroed(plan->piece_count + 1, sizeof *coded);
    if (!coded)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a lossless link; close other programs");
    icma_status status = encode_pieces(link, plan, original, coded, error);
    if (!status) {
        icma_lossless_plan_write(link, plan, out);
        write_plain(link, plan, original, out);
    }
    for (size_t i = 0; i < plan->piece_count; i++) {
        if (!status)
            icma_write_bytes(out, coded[i].data, coded[i].size);
        icma_buffer_free(&coded[i]);
    }
    icma_free(coded);
    return status ? status : icma_buffer_status(out, error);
}

icma_status icma_lossless_encode(const icma_lossless_link *link, const uint8_t *original, icma_buffer *out,
                                 icma_error *error) {
    icma_lossless_plan plan;
    icma_status status = icma_lossless_plan_open(link, &plan, error);
    if (!status)
        status = icma_lossless_choose(link, original, &plan, error);
    if (!status)
        status = icma_lossless_plan_cut(link, &plan, error);
    if (!status)
        status = write_payload(link, &plan, original, out, error);
    icma_lossless_plan_free(&plan);
    return status;
}

/* --- Decoder --- */

static icma_status decode_pieces(const icma_lossless_link *link, const icma_lossless_plan *plan,
                                 const uint8_t *bytes, uint8_t *data, icma_error *error) {
    icma_status *statuses = icma_alloc_zeroed(plan->piece_count + 1, sizeof *statuses);
    if (!statuses)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for a lossless link; close other programs");
#pragma omp parallel for schedule(dynamic) num_threads(icma_threads()) if (plan->piece_count > 1)
    for (size_t i = 0; i < plan->piece_count; i++) {
        const icma_lossless_piece *piece = &plan->pieces[i];
        statuses[i] = icma_lossless_piece_decode(link, plan, piece, bytes + piece->offset, data);
    }
    icma_status status = first_failure(statuses, plan->piece_count, error);
    icma_free(statuses);
    return status;
}

static void read_plain(const icma_lossless_link *link, const icma_lossless_plan *plan, const uint8_t *bytes,
                       uint8_t *data) {
    for (size_t i = 0; i < plan->tensor_count; i++) {
        const icma_tensor_info *info = &link->signature->tensors[plan->tensors[i].tensor];
        if (plan->tensors[i].method != ICMA_LOSSLESS_PLAIN)
            continue;
        memcpy(data + info->begin, bytes, (size_t)info->size);
        bytes += info->size;
    }
}

icma_status icma_lossless_decode(const icma_lossless_link *link, const uint8_t *payload, size_t size,
                                 uint8_t *data, icma_error *error) {
    icma_lossless_plan plan;
    icma_cursor cursor = icma_cursor_over(payload, size);
    icma_status status = icma_lossless_plan_read(link, &cursor, &plan, error);
    if (!status) {
        read_plain(link, &plan, cursor.at, data);
        status = decode_pieces(link, &plan, cursor.at, data, error);
    }
    icma_lossless_plan_free(&plan);
    return status;
}
