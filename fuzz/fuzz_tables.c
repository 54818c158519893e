/* SPDX-License-Identifier: Apache-2.0 */
/* Task tables, conditions and texts, by the first byte: its lowest two bits tell which (0 a table, 1 one of a task that was added, 2 a condition, 3 texts), the next whether there is a basis, the others how many
 * checkpoints. What is read of a table or an offset is written and read to the same. */
#include "fuzz_shape.h"
#include "fuzz_target.h"
#include "memory.h"

#include <string.h>

static void try_table(const uint8_t *data, size_t size, const icma_generator *generator, icma_condition_origin origin, size_t count) {
    icma_checkpoints seen, again;
    icma_error error = {0};
    icma_buffer out = {0};
    icma_status status = icma_checkpoints_read(data, size, count, generator, origin, &seen, &error);
    EXPECT(status == error.status && (status == ICMA_OK || fuzz_is_refusal(status)));
    EXPECT((status == ICMA_OK) == (seen.list != NULL));
    if (status != ICMA_OK)
        return;
    EXPECT(seen.count == count);
    for (size_t i = 0; i < count; i++)
        EXPECT(seen.list[i].taps < count - i && (i == 0 || !seen.list[i].has_step || seen.list[i].step > seen.list[i - 1].step));
    icma_checkpoints_write(&seen, generator, &out);
    EXPECT(icma_checkpoints_read(out.data, out.size, count, generator, origin, &again, NULL) == ICMA_OK);
    for (size_t i = 0; i < count; i++)
        EXPECT(again.list[i].hash == seen.list[i].hash && again.list[i].step == seen.list[i].step && again.list[i].tier == seen.list[i].tier);
    icma_buffer_free(&out);
    icma_checkpoints_free(&again);
    icma_checkpoints_free(&seen);
}

static void try_condition(const uint8_t *data, size_t size, const icma_generator *generator) {
    icma_checkpoints seen = {0};
    icma_error error = {0};
    icma_status status = icma_condition_read(data, size, generator, &seen, &error);
    EXPECT(status == error.status && (status == ICMA_OK || fuzz_is_refusal(status)));
    EXPECT(status != ICMA_OK || (seen.condition != NULL) == (seen.condition_size > 0));
    EXPECT(status != ICMA_OK || (seen.offset != NULL) == (seen.origin == ICMA_CONDITION_OFFSET));
    if (status == ICMA_OK) {
        icma_checkpoints again = {0};
        icma_buffer out = {0};
        icma_condition_write(&seen, generator, &out);
        EXPECT(icma_condition_read(out.data, out.size, generator, &again, NULL) == ICMA_OK);
        EXPECT(again.origin == seen.origin && again.condition_size == seen.condition_size);
        EXPECT(!seen.offset || memcmp(again.offset, seen.offset, generator->total * sizeof *seen.offset) == 0);
        icma_buffer_free(&out);
        icma_checkpoints_free(&again);
    }
    icma_checkpoints_free(&seen);
}

static void try_texts(const uint8_t *data, size_t size) {
    icma_texts seen;
    icma_error error = {0};
    icma_status status = icma_texts_read(data, size, &seen, &error);
    EXPECT(status == error.status && (status == ICMA_OK || fuzz_is_refusal(status)));
    for (size_t i = 0; status == ICMA_OK && i < seen.count; i++)
        EXPECT(seen.list[i].data >= data && seen.list[i].size <= size);
    icma_texts_free(&seen);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t what = fuzz_take(&data, &size);
    const icma_generator *generator = fuzz_generator(what >> 2 & 1);
    if ((what & 3) == 3)
        try_texts(data, size);
    else if ((what & 3) == 2)
        try_condition(data, size, generator);
    else
        try_table(data, size, generator, (what & 3) == 1 ? ICMA_CONDITION_OFFSET : ICMA_CONDITION_LEARNED, 1 + (what >> 3));
    return 0;
}
