/* SPDX-License-Identifier: Apache-2.0 */
#include "container_walk.h"

#include "container.h"
#include "fuzz_target.h"
#include "memory.h"

#include <string.h>

enum { MAX_RAW = 1 << 20, MAX_LOADED = 64 };

static void check_section(icma_container *container, size_t index) {
    const icma_section *section = icma_container_section(container, index), *first;
    uint64_t size = icma_container_size(container);
    EXPECT(section->offset % 64 == 0 && section->offset >= 64 && section->offset < size);
    EXPECT(section->stored_size > 0 && section->stored_size <= size - section->offset);
    EXPECT(section->raw_size >= section->stored_size);
    EXPECT(section->group == ICMA_NO_OWNER || section->group < icma_container_group_count(container));
    EXPECT(section->task == ICMA_NO_OWNER || section->task < icma_container_task_count(container));
    size_t count = icma_container_range(container, section->kind, section->group, section->task, &first);
    EXPECT(count > 0 && section >= first && (size_t)(section - first) < count);
    EXPECT(icma_container_find(container, section->kind, section->group, section->task) == first);
}

static void load_section(icma_container *container, const icma_section *section) {
    uint8_t *data;
    icma_error error = {0};
    icma_status checked = icma_container_check(container, section, NULL);
    icma_status loaded = icma_container_load(container, section, MAX_RAW, &data, &error);
    EXPECT(loaded == error.status && (loaded == ICMA_OK) == (data != NULL));
    EXPECT(loaded == ICMA_OK || loaded == ICMA_E_CORRUPT || loaded == ICMA_E_LIMIT);
    EXPECT(checked == ICMA_OK || loaded != ICMA_OK);
    uint8_t sum = 0;
    for (uint64_t i = 0; data && i < section->raw_size; i++)
        sum = (uint8_t)(sum + data[i]); /* all of it is there and was written */
    if (sum == 1 && data)
        memset(data, 0, 1); /* so that the sum is not optimised away */
    icma_free(data);
}

bool container_walk(const uint8_t *data, size_t size) {
    icma_container *container;
    icma_error error = {0};
    icma_status status = icma_container_open_memory(data, size, &container, &error);
    EXPECT(status == error.status && (status == ICMA_OK) == (container != NULL));
    EXPECT(status == ICMA_OK || status == ICMA_E_FORMAT || status == ICMA_E_CORRUPT ||
           status == ICMA_E_UNSUPPORTED || status == ICMA_E_LIMIT);
    if (status != ICMA_OK)
        return false;
    size_t count = icma_container_section_count(container), tasks = icma_container_task_count(container);
    EXPECT(count <= size / 64 && tasks <= count && icma_container_group_count(container) <= count);
    EXPECT(icma_container_index_size(container) <= size);
    for (size_t i = 0; i < count; i++)
        check_section(container, i);
    for (size_t i = 0; i < count && i < MAX_LOADED; i++)
        load_section(container, icma_container_section(container, i));
    for (size_t i = 0; i < tasks; i++)
        EXPECT(icma_path_segment_is_safe(icma_container_task_name(container, i)));
    icma_container_close(container);
    return true;
}
