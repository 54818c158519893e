/* SPDX-License-Identifier: Apache-2.0 */
#include "sample_file.h"

#include "memory.h"
#include "npy.h"
#include "safetensors.h"

#include <math.h>
#include <string.h>

static icma_status check_tensor(const icma_safetensors *s, size_t most, icma_error *error) {
    const icma_tensor_info *t = s->tensors;
    if (s->tensor_count != 1 || t->rank == 0 || t->rank > 2 || !icma_dtype_is_modelled(t->dtype) ||
        t->count == 0)
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                         "not vectors of samples; one tensor of F32, F16 or BF16 with a row a sample is");
    if (t->count > most)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "%llu numbers; the limit is %zu",
                         (unsigned long long)t->count, most);
    return ICMA_OK;
}

static icma_status read_tensor(icma_file *file, const icma_safetensors *s, float *values, icma_error *error) {
    const icma_tensor_info *t = s->tensors;
    uint8_t *bytes = icma_alloc((size_t)t->size);
    icma_status status =
        bytes ? icma_file_read(file, icma_safetensors_data_offset(s), bytes, (size_t)t->size, error)
              : icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for vectors of samples");
    if (!status)
        icma_load_floats(t->dtype, bytes, (size_t)t->count, values);
    for (uint64_t i = 0; !status && i < t->count; i++)
        if (!isfinite(values[i]))
            status = icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "number %llu is not finite; mend the vectors",
                               (unsigned long long)i);
    icma_free(bytes);
    return status;
}

static icma_status read_safetensors(const char *path, size_t most, float **values, size_t *rows,
                                    size_t *columns, icma_error *error) {
    icma_file *file;
    icma_safetensors s = {0};
    icma_status status = icma_file_open(path, &file, error);
    if (status)
        return status;
    status = icma_safetensors_read(file, &s, error);
    if (!status)
        status = check_tensor(&s, most, error);
    if (!status && !(*values = icma_alloc_array((size_t)s.tensors->count, sizeof **values)))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "no memory for vectors of samples");
    if (!status)
        status = read_tensor(file, &s, *values, error);
    if (!status) {
        *rows = s.tensors->rank == 2 ? (size_t)s.tensors->shape[0] : 1;
        *columns = (size_t)s.tensors->shape[s.tensors->rank - 1];
    } else {
        icma_free(*values);
        *values = NULL;
    }
    icma_safetensors_free(&s);
    icma_file_close(file);
    icma_error_set_file(error, path);
    return status;
}

icma_status icma_samples_read(const char *path, size_t most, float **values, size_t *rows, size_t *columns,
                              icma_error *error) {
    size_t length = strlen(path);
    *values = NULL;
    *rows = *columns = 0;
    if (length > 4 && strcmp(path + length - 4, ".npy") == 0)
        return icma_npy_read_matrix(path, most, values, rows, columns, error);
    return read_safetensors(path, most, values, rows, columns, error);
}
