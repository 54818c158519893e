/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a safetensors image, and as a header without its length: what is accepted must hold to what
 * safetensors.h promises. */
#include "fuzz_target.h"

#include "safetensors.h"

#include <string.h>

static void check_promises(const icma_safetensors *seen) {
    uint64_t end = 0;
    EXPECT(seen->header_size >= 2 && seen->header[0] == '{');
    EXPECT(seen->tensor_count <= ICMA_MAX_TENSORS);
    for (size_t i = 0; i < seen->tensor_count; i++) {
        const icma_tensor_info *tensor = &seen->tensors[i];
        uint64_t count = 1;
        EXPECT(tensor->rank <= ICMA_MAX_RANK && strlen(tensor->name) <= ICMA_MAX_NAME);
        for (unsigned d = 0; d < tensor->rank; d++)
            count *= tensor->shape[d];
        EXPECT(count == tensor->count);
        EXPECT(tensor->begin == end);
        EXPECT(tensor->size * 8 == tensor->count * icma_dtype_bits(tensor->dtype));
        end += tensor->size;
        EXPECT(icma_safetensors_find(seen, tensor->name) == i);
    }
    EXPECT(seen->data_size == end);
}

static void check_header_alone(const void *header, size_t size) {
    icma_safetensors seen, again;
    if (icma_safetensors_parse_header(header, size, &seen, NULL) != ICMA_OK)
        return;
    check_promises(&seen);
    EXPECT(icma_safetensors_parse(header, size, seen.data_size, &again, NULL) == ICMA_OK);
    EXPECT(icma_safetensors_same_signature(&seen, &again));
    icma_safetensors_free(&again);
    icma_safetensors_free(&seen);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    icma_safetensors seen;
    icma_error error = {0};
    const uint8_t *tensors;
    icma_status status = icma_safetensors_view(data, size, &seen, &tensors, &error);
    EXPECT(status == error.status);
    if (status == ICMA_OK) {
        check_promises(&seen);
        EXPECT(tensors + seen.data_size == data + size);
        EXPECT(icma_safetensors_data_offset(&seen) + seen.data_size == size);
        icma_safetensors_free(&seen);
    } else {
        EXPECT(status == ICMA_E_CORRUPT || status == ICMA_E_LIMIT || status == ICMA_E_UNSUPPORTED);
        EXPECT(!seen.tensors && !seen.header && !tensors);
    }
    if (size > 0)
        check_header_alone(data, size);
    return 0;
}
