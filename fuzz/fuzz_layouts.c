/* SPDX-License-Identifier: Apache-2.0 */
/* Any header and configuration, converted into every layout: what comes out is a safetensors file, its parts
 * are those that were announced, and what became kohya's can be read back. A byte says how, a u16 how long
 * the configuration is; the rest is the header. */
#include "fuzz_shape.h"
#include "fuzz_target.h"
#include "layout.h"
#include "layout_place.h"
#include "memory.h"
#include "metadata.h"
#include "safetensors.h"

#include <string.h>

enum { MOST_DATA = 1 << 18 };

static const char config_name[] = "adapter_config.json";

static void add_config(icma_decoded *to, const uint8_t *config, size_t size) {
    to->files = icma_alloc_zeroed(1, sizeof *to->files);
    EXPECT(to->files);
    *to->files = (icma_decoded_file){icma_copy_string(config_name), icma_alloc(size), size};
    EXPECT(to->files->name && to->files->data);
    memcpy(to->files->data, config, size);
    to->file_count = 1;
}

static void make_file(const icma_safetensors *s, const uint8_t *config, size_t config_size,
                      icma_decoded *out) {
    uint32_t noise = 1;
    memset(out, 0, sizeof *out);
    out->size = 8 + s->header_size + (size_t)s->data_size;
    out->data = icma_alloc(out->size);
    EXPECT(out->data);
    icma_store_u64(out->data, s->header_size);
    memcpy(out->data + 8, s->header, s->header_size);
    for (size_t i = 8 + s->header_size; i < out->size; i++)
        out->data[i] = (uint8_t)(fuzz_noise(&noise) >> 24);
    if (config_size)
        add_config(out, config, config_size);
}

/* The bytes of all tensors. */
static uint64_t check_adapter(const icma_decoded *adapter) {
    icma_safetensors seen;
    const uint8_t *data;
    icma_status status = icma_safetensors_view(adapter->data, adapter->size, &seen, &data, NULL);
    EXPECT(status == ICMA_OK || status == ICMA_E_LIMIT); /* names grow */
    uint64_t size = seen.data_size;
    icma_safetensors_free(&seen);
    for (size_t i = 0; i < adapter->file_count; i++)
        EXPECT(adapter->files[i].name);
    return size;
}

static void check_placing(const icma_decoded *file) {
    icma_file_naming naming;
    char *folder, *name;
    if (icma_file_naming_guess(file, true, 10, &naming, NULL))
        return;
    EXPECT(icma_file_place(&naming, "task", true, 10, true, &folder, &name, NULL) == ICMA_OK);
    EXPECT(naming.form == ICMA_FORM_PLAIN ? !*folder : strcmp(folder, "task/checkpoint-10") == 0);
    icma_free(folder);
    icma_free(name);
}

/* A name is given only where the way back is certain. */
static void check_way_back(icma_layout_result *kohya) {
    icma_layout_options options = icma_layout_defaults();
    icma_layout_result back;
    options.layout = ICMA_LAYOUT_PEFT;
    uint64_t size = check_adapter(&kohya->list[0].decoded);
    icma_status status = icma_layout_convert(&kohya->list[0].decoded, &options, &back, NULL);
    EXPECT(status == ICMA_OK || status == ICMA_E_UNSUPPORTED || status == ICMA_E_LIMIT);
    uint64_t total = 0;
    for (size_t i = 0; i < back.count; i++)
        total += check_adapter(&back.list[i].decoded);
    EXPECT(status || total < size); /* without the alphas */
    icma_layout_result_free(&back);
}

static void convert(const icma_safetensors *s, const uint8_t *config, size_t config_size,
                    icma_layout_options options) {
    const char *components[ICMA_MOST_COMPONENTS];
    icma_decoded file;
    icma_layout_result result;
    icma_error error = {0};
    size_t count;
    make_file(s, config, config_size, &file);
    check_placing(&file);
    icma_status announced = icma_layout_components(&file, &options, components, &count, NULL);
    icma_status status = icma_layout_convert(&file, &options, &result, &error);
    EXPECT(status == error.status && !file.data && !file.files);
    EXPECT(status == ICMA_OK || status == ICMA_E_UNSUPPORTED);
    EXPECT(status != ICMA_OK || (announced == ICMA_OK && count == result.count));
    for (size_t i = 0; i < result.count; i++) {
        EXPECT(strcmp(result.list[i].component, components[i]) == 0);
        check_adapter(&result.list[i].decoded);
        EXPECT(icma_layout_check_serving(&result.list[i].decoded, &result, NULL) == ICMA_OK ||
               options.layout != ICMA_LAYOUT_PEFT);
    }
    if (options.layout == ICMA_LAYOUT_KOHYA && !status && result.renamed)
        check_way_back(&result);
    icma_layout_result_free(&result);
}

/* What is cut is gone, and nothing else. */
static void check_cutting(const icma_safetensors *s) {
    static const char *const keys[] = {"sshs_model_hash", "ss_epoch", "format", NULL};
    icma_buffer cut = {0};
    icma_metadata before, after;
    icma_safetensors seen;
    size_t count;
    EXPECT(icma_metadata_cut(s->header, s->header_size, keys, &cut, &count, NULL) == ICMA_OK);
    EXPECT(icma_metadata_read(s->header, s->header_size, &before, NULL) == ICMA_OK);
    if (count) {
        EXPECT(icma_safetensors_parse(cut.data, cut.size, s->data_size, &seen, NULL) == ICMA_OK);
        EXPECT(icma_safetensors_same_signature(s, &seen));
        EXPECT(icma_metadata_read(cut.data, cut.size, &after, NULL) == ICMA_OK);
        EXPECT(after.count + count == before.count && cut.size % 8 == 0);
        for (const char *const *key = keys; *key; key++)
            EXPECT(!icma_metadata_find(&after, *key));
        icma_metadata_free(&after);
        icma_safetensors_free(&seen);
    }
    icma_metadata_free(&before);
    icma_buffer_free(&cut);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const icma_dtype dtypes[] = {ICMA_F32, ICMA_F16, ICMA_BF16};
    icma_safetensors s;
    uint8_t how = fuzz_take(&data, &size);
    size_t config = fuzz_take(&data, &size);
    config |= (size_t)fuzz_take(&data, &size) << 8;
    config = config < size ? config : size;
    if (icma_safetensors_parse_header(data + config, size - config, &s, NULL))
        return 0;
    icma_layout_options options = icma_layout_defaults();
    options.cast = how & 1;
    options.dtype = dtypes[(how >> 1) % 3];
    options.leave_out = how & 8;
    options.other_weights = how & 16;
    options.base_model = how & 32 ? "org/base" : NULL;
    if (s.data_size <= MOST_DATA) {
        check_cutting(&s);
        for (int layout = ICMA_LAYOUT_ORIGINAL; layout <= ICMA_LAYOUT_KOHYA; layout++) {
            options.layout = (icma_layout)layout;
            convert(&s, data, config, options);
        }
    }
    icma_safetensors_free(&s);
    return 0;
}
