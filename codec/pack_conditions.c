/* SPDX-License-Identifier: Apache-2.0 */
/* Conditions that are given: of described tasks their texts' embeddings, of others the vectors beside their
 * adapters. */
#include "coarse.h"
#include "condition_file.h"
#include "memory.h"
#include "packer.h"

#include <string.h>

static icma_status load_condition(const char *path, icma_condition *out, icma_error *error) {
    float *values;
    size_t count;
    icma_status status = icma_condition_load(path, &values, &count, error);
    if (status)
        return status;
    icma_coarse_round(values, count); /* as it is stored (spec 4.6) */
    *out = (icma_condition){values, count};
    return ICMA_OK;
}

static icma_status copy_embedding(const icma_described *d, size_t task, icma_condition *out,
                                  icma_error *error) {
    float *values = icma_alloc_array(d->width, sizeof *values);
    if (!values)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the conditions");
    memcpy(values, d->rows + task * d->width, d->width * sizeof *values);
    *out = (icma_condition){values, d->width};
    return ICMA_OK;
}

const char *icma_pack_text_of(const icma_packer *p, size_t task) {
    return p->described ? p->described->text[task] : NULL;
}

icma_status icma_pack_load_conditions(icma_packer *p, icma_error *error) {
    icma_status status = ICMA_OK;
    p->conditions = icma_alloc_zeroed(p->inputs->task_count, sizeof *p->conditions);
    if (!p->conditions)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for the conditions");
    for (size_t t = 0; !status && t < p->inputs->task_count; t++)
        if (icma_pack_text_of(p, t))
            status = copy_embedding(p->described, t, &p->conditions[t], error);
        else if (p->inputs->tasks[t].condition_path)
            status = load_condition(p->inputs->tasks[t].condition_path, &p->conditions[t], error);
    return status;
}
