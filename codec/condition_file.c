/* SPDX-License-Identifier: Apache-2.0 */
#include "condition_file.h"

#include "file.h"
#include "generator.h"
#include "memory.h"
#include "npy.h"
#include "safetensors.h"

#include <math.h>
#include <string.h>

static icma_status condition_from_safetensors(const char *path, float **values, size_t *count,
                                              icma_error *error) {
    icma_file *file;
    icma_safetensors s = {0};
    uint8_t *bytes = NULL;
    icma_status status = icma_file_open(path, &file, error);
    if (status)
        return status;
    status = icma_safetensors_read(file, &s, error);
    const icma_tensor_info *t = s.tensors;
    if (!status &&
        (s.tensor_count != 1 || t->rank != 1 || !icma_dtype_is_modelled(t->dtype) || t->count == 0))
        status = icma_fail(error, ICMA_E_UNSUPPORTED, path,
                           "not a condition vector; one 1-D tensor of F32, F16 or BF16 is");
    if (!status && t->count > ICMA_MAX_CONDITION)
        status = icma_fail(error, ICMA_E_LIMIT, path, "a condition vector of more than %d numbers",
                           ICMA_MAX_CONDITION);
    if (!status) {
        *count = (size_t)t->count;
        bytes = icma_alloc((size_t)t->size);
        *values = icma_alloc_array(*count, sizeof **values);
        status = bytes && *values
                     ? icma_file_read(file, icma_safetensors_data_offset(&s), bytes, (size_t)t->size, error)
                     : icma_fail(error, ICMA_E_MEMORY, path, "no memory for a condition vector");
        if (!status)
            icma_load_floats(t->dtype, bytes, *count, *values);
    }
    icma_free(bytes);
    icma_safetensors_free(&s);
    icma_file_close(file);
    icma_error_set_file(error, path);
    return status;
}

icma_status icma_condition_load(const char *path, float **values, size_t *count, icma_error *error) {
    size_t length = strlen(path);
    bool npy = length > 4 && strcmp(path + length - 4, ".npy") == 0;
    *values = NULL;
    *count = 0;
    icma_status status = npy ? icma_npy_read_vector(path, ICMA_MAX_CONDITION, values, count, error)
                             : condition_from_safetensors(path, values, count, error);
    for (size_t i = 0; !status && i < *count; i++)
        if (!isfinite((*values)[i]))
            status = icma_fail(
                error, ICMA_E_UNSUPPORTED, path,
                "a condition vector that is not finite; make it anew, or remove it to have one learned");
    if (status) {
        icma_free(*values);
        *values = NULL;
        *count = 0;
    }
    return status;
}
