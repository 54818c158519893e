/* SPDX-License-Identifier: Apache-2.0 */
#include "safetensors.h"

#include "bytes.h"
#include "json.h"
#include "memory.h"
#include "sort.h"

#include <string.h>

enum { LENGTH_BYTES = 8, HEADER_DEPTH = 3 };

#define DATA_SIZE_UNKNOWN UINT64_MAX

/* --- one tensor ---------------------------------------------------------------------------------------- */

static icma_status refuse_tensor(icma_error *error, icma_status status, const char *name,
                                 const char *problem) {
    return icma_fail(error, status, NULL, "tensor \"%.*s\": %s", ICMA_MAX_NAME, name, problem);
}

static icma_status no_memory(icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for a header");
}

static icma_status read_dtype(icma_json_cursor *from, icma_tensor_info *tensor, icma_buffer *text,
                              icma_error *error) {
    if (!icma_json_take_string(from, text))
        return text->failed ? no_memory(error)
                            : refuse_tensor(error, ICMA_E_CORRUPT, tensor->name, "its dtype is not a string");
    if (!icma_dtype_from_name((const char *)text->data, &tensor->dtype))
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "tensor \"%.*s\": unknown dtype \"%.32s\"",
                         ICMA_MAX_NAME, tensor->name, (const char *)text->data);
    return ICMA_OK;
}

static icma_status read_shape(icma_json_cursor *from, icma_tensor_info *tensor, icma_error *error) {
    if (!icma_json_enter(from, '['))
        return refuse_tensor(error, ICMA_E_CORRUPT, tensor->name, "its shape is not an array");
    tensor->rank = 0;
    tensor->count = 1;
    while (icma_json_next(from)) {
        uint64_t value;
        if (!icma_json_take_whole(from, &value))
            return refuse_tensor(error, ICMA_E_CORRUPT, tensor->name,
                                 "its shape holds something else than sizes");
        if (tensor->rank == ICMA_MAX_RANK)
            return refuse_tensor(error, ICMA_E_LIMIT, tensor->name, "more than 8 dimensions");
        if (value && tensor->count > UINT64_MAX / value)
            return refuse_tensor(error, ICMA_E_CORRUPT, tensor->name, "its size overflows");
        tensor->shape[tensor->rank++] = value;
        tensor->count *= value;
    }
    return ICMA_OK;
}

static icma_status read_range(icma_json_cursor *from, icma_tensor_info *tensor, icma_error *error) {
    uint64_t end;
    if (!icma_json_enter(from, '[') || !icma_json_next(from) || !icma_json_take_whole(from, &tensor->begin) ||
        !icma_json_next(from) || !icma_json_take_whole(from, &end) || icma_json_next(from))
        return refuse_tensor(error, ICMA_E_CORRUPT, tensor->name, "its data_offsets are not two offsets");
    if (end < tensor->begin)
        return refuse_tensor(error, ICMA_E_CORRUPT, tensor->name, "its data ends before it begins");
    tensor->size = end - tensor->begin;
    return ICMA_OK;
}

static icma_status check_size(const icma_tensor_info *tensor, icma_error *error) {
    uint64_t bits = icma_dtype_bits(tensor->dtype);
    if (tensor->count > UINT64_MAX / bits)
        return refuse_tensor(error, ICMA_E_CORRUPT, tensor->name, "its size overflows");
    if (tensor->count * bits % 8)
        return refuse_tensor(error, ICMA_E_CORRUPT, tensor->name, "its elements do not fill whole bytes");
    if (tensor->count * bits / 8 != tensor->size)
        return refuse_tensor(error, ICMA_E_CORRUPT, tensor->name,
                             "its data_offsets do not agree with dtype and shape");
    return ICMA_OK;
}

/* The tensor's object; `text` has its name. */
static icma_status read_tensor(icma_json_cursor *from, icma_tensor_info *tensor, icma_buffer *text,
                               icma_error *error) {
    size_t length = text->size - 1;
    if (length > ICMA_MAX_NAME)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "a tensor name of %zu bytes; the limit is %d", length,
                         (int)ICMA_MAX_NAME);
    tensor->name = icma_copy_text((const char *)text->data, length);
    if (!tensor->name)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for tensor names");
    if (!icma_json_enter(from, '{'))
        return refuse_tensor(error, ICMA_E_CORRUPT, tensor->name, "it is not an object");
    icma_status status = ICMA_OK;
    unsigned fields = 0;
    for (; status == ICMA_OK && icma_json_next(from); fields++) {
        if (!icma_json_take_key(from, text))
            return no_memory(error);
        const char *key = (const char *)text->data;
        if (strcmp(key, "dtype") == 0)
            status = read_dtype(from, tensor, text, error);
        else if (strcmp(key, "shape") == 0)
            status = read_shape(from, tensor, error);
        else if (strcmp(key, "data_offsets") == 0)
            status = read_range(from, tensor, error);
        else
            status = refuse_tensor(error, ICMA_E_CORRUPT, tensor->name, "it has an unknown field");
    }
    if (status != ICMA_OK)
        return status;
    if (fields != 3) /* no key is there twice (icma_json_check), so three known ones are all three */
        return refuse_tensor(error, ICMA_E_CORRUPT, tensor->name, "dtype, shape or data_offsets is missing");
    return check_size(tensor, error);
}

/* --- the header ---------------------------------------------------------------------------------------- */

static bool is_metadata(const icma_buffer *key) {
    return strcmp((const char *)key->data, "__metadata__") == 0;
}

static icma_status check_metadata(icma_json_cursor *from, icma_buffer *text, icma_error *error) {
    if (!icma_json_enter(from, '{'))
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "__metadata__ is not an object");
    while (icma_json_next(from)) {
        if (!icma_json_take_key(from, text))
            return no_memory(error);
        if (icma_json_peek(from) != '"')
            return icma_fail(error, ICMA_E_CORRUPT, NULL, "__metadata__ holds something else than strings");
        icma_json_skip(from);
    }
    return ICMA_OK;
}

static icma_status count_tensors(icma_json_cursor from, icma_buffer *text, size_t *count, icma_error *error) {
    *count = 0;
    icma_json_enter(&from, '{');
    while (icma_json_next(&from)) {
        if (!icma_json_take_key(&from, text))
            return no_memory(error);
        *count += !is_metadata(text);
        icma_json_skip(&from);
    }
    if (*count > ICMA_MAX_TENSORS)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "%zu tensors; the limit is %d", *count,
                         (int)ICMA_MAX_TENSORS);
    return ICMA_OK;
}

static icma_status read_tensors(icma_json_cursor from, icma_buffer *text, icma_safetensors *out,
                                icma_error *error) {
    size_t count;
    icma_status status = count_tensors(from, text, &count, error);
    if (status == ICMA_OK && count && !(out->tensors = icma_alloc_zeroed(count, sizeof *out->tensors)))
        status = icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for %zu tensors", count);
    icma_json_enter(&from, '{');
    while (status == ICMA_OK && icma_json_next(&from)) {
        if (!icma_json_take_key(&from, text))
            status = no_memory(error);
        else if (is_metadata(text))
            status = check_metadata(&from, text, error);
        else
            status = read_tensor(&from, &out->tensors[out->tensor_count++], text, error);
    }
    return status;
}

static int compare_u64(uint64_t a, uint64_t b) {
    return (a > b) - (a < b);
}

/* A tensor and its place in the header, which breaks ties. */
typedef struct placed_tensor {
    icma_tensor_info info;
    size_t place;
} placed_tensor;

static int compare_placed(const void *a, const void *b, const void *context) {
    (void)context;
    const placed_tensor *x = a, *y = b;
    int order = compare_u64(x->info.begin, y->info.begin);
    if (order == 0)
        order = compare_u64(x->info.size, y->info.size);
    return order ? order : compare_u64(x->place, y->place);
}

static icma_status sort_by_data(icma_safetensors *out, icma_error *error) {
    size_t count = out->tensor_count;
    if (count < 2)
        return ICMA_OK;
    placed_tensor *placed = icma_alloc_array(count, sizeof *placed);
    if (!placed)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for %zu tensors", count);
    for (size_t i = 0; i < count; i++)
        placed[i] = (placed_tensor){out->tensors[i], i};
    icma_sort(placed, count, sizeof *placed, compare_placed, NULL);
    for (size_t i = 0; i < count; i++)
        out->tensors[i] = placed[i].info;
    icma_free(placed);
    return ICMA_OK;
}

/* The ranges, in order, must be one chain from 0 to the end of the data. */
static icma_status check_chain(icma_safetensors *out, uint64_t data_size, icma_error *error) {
    uint64_t end = 0;
    for (size_t i = 0; i < out->tensor_count; i++) {
        const icma_tensor_info *tensor = &out->tensors[i];
        if (tensor->begin != end)
            return refuse_tensor(error, ICMA_E_CORRUPT, tensor->name,
                                 tensor->begin < end ? "its data overlaps another tensor's"
                                                     : "a hole lies before its data");
        end = tensor->begin + tensor->size; /* both at most 2^53 */
    }
    if (data_size != DATA_SIZE_UNKNOWN && end != data_size)
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "tensors take %llu bytes but %llu are there",
                         (unsigned long long)end, (unsigned long long)data_size);
    out->data_size = end;
    return ICMA_OK;
}

static int compare_names(const void *a, const void *b, const void *context) {
    const icma_tensor_info *tensors = context;
    return strcmp(tensors[*(const uint32_t *)a].name, tensors[*(const uint32_t *)b].name);
}

static icma_status sort_by_name(icma_safetensors *out, icma_error *error) {
    if (out->tensor_count == 0)
        return ICMA_OK;
    out->by_name = icma_alloc_array(out->tensor_count, sizeof *out->by_name);
    if (!out->by_name)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for %zu tensors", out->tensor_count);
    for (size_t i = 0; i < out->tensor_count; i++)
        out->by_name[i] = (uint32_t)i;
    icma_sort(out->by_name, out->tensor_count, sizeof *out->by_name, compare_names, out->tensors);
    return ICMA_OK;
}

/* `header` has passed icma_json_check, and starts with '{'. */
static icma_status read_header(const void *header, size_t header_size, uint64_t data_size,
                               icma_safetensors *out, icma_error *error) {
    icma_json_cursor from = {header, header_size, 0};
    icma_buffer text = {0};
    icma_status status = read_tensors(from, &text, out, error);
    icma_buffer_free(&text);
    if (status == ICMA_OK)
        status = sort_by_data(out, error);
    if (status == ICMA_OK)
        status = check_chain(out, data_size, error);
    if (status == ICMA_OK)
        status = sort_by_name(out, error);
    return status;
}

static icma_status parse(const void *header, size_t header_size, uint64_t data_size, icma_safetensors *out,
                         icma_error *error) {
    memset(out, 0, sizeof *out);
    if (header_size > ICMA_MAX_HEADER)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "a safetensors header of %zu bytes; the limit is %d",
                         header_size, (int)ICMA_MAX_HEADER);
    if (header_size == 0 || *(const uint8_t *)header != '{')
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "the safetensors header does not start with '{'");
    icma_json_rules rules = {.max_depth = HEADER_DEPTH, .plain_integers = true};
    icma_status status = icma_json_check(header, header_size, rules, error);
    if (status == ICMA_OK)
        status = read_header(header, header_size, data_size, out, error);
    if (status != ICMA_OK)
        goto fail;
    out->header = icma_alloc(header_size);
    if (!out->header) {
        status =
            icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for a header of %zu bytes", header_size);
        goto fail;
    }
    memcpy(out->header, header, header_size);
    out->header_size = header_size;
    return ICMA_OK;
fail:
    icma_safetensors_free(out);
    return status;
}

icma_status icma_safetensors_parse(const void *header, size_t header_size, uint64_t data_size,
                                   icma_safetensors *out, icma_error *error) {
    if (data_size == DATA_SIZE_UNKNOWN)
        data_size--; /* no tensors can take that many either */
    return parse(header, header_size, data_size, out, error);
}

icma_status icma_safetensors_parse_header(const void *header, size_t header_size, icma_safetensors *out,
                                          icma_error *error) {
    return parse(header, header_size, DATA_SIZE_UNKNOWN, out, error);
}

/* --- files --------------------------------------------------------------------------------------------- */

/* What people hand over instead of safetensors: told by magic, and only where the length makes no sense. */
static const char *foreign_format(const uint8_t *start) {
    if (start[0] == 0x80 && start[1] >= 2 && start[1] <= 5)
        return "a pickle, which icma never loads; convert it to safetensors where you trust it";
    if (memcmp(start, "PK\3\4", 4) == 0)
        return "a zip file, perhaps a PyTorch pickle, which icma never loads; convert it to safetensors";
    if (memcmp(start, "version ", 8) == 0)
        return "a Git LFS pointer, not the file itself; fetch it with git lfs pull";
    if (memcmp(start, "\x89ICMA", 5) == 0)
        return "an icma archive already; icma unpack brings its adapters out";
    if (memcmp(start, "<!DOCTYP", 8) == 0 || memcmp(start, "<html", 5) == 0 || memcmp(start, "<?xml", 5) == 0)
        return "a web page, not the file itself; download it again";
    return NULL;
}

static icma_status check_length(const uint8_t *start, uint64_t file_size, size_t *header_size,
                                icma_error *error) {
    uint64_t length = icma_load_u64(start);
    uint64_t room = file_size - LENGTH_BYTES;
    if (length > ICMA_MAX_HEADER || length > room) {
        const char *foreign = foreign_format(start);
        if (foreign)
            return icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "%s", foreign);
    }
    if (length > ICMA_MAX_HEADER)
        return icma_fail(error, ICMA_E_LIMIT, NULL,
                         "a header of %llu bytes, the limit is %d; this is no safetensors file, or its start is damaged: get it again",
                         (unsigned long long)length, (int)ICMA_MAX_HEADER);
    if (length > room)
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "a header of %llu bytes in a file of %llu; the file is cut off: get it again",
                         (unsigned long long)length, (unsigned long long)file_size);
    *header_size = (size_t)length;
    return ICMA_OK;
}

static icma_status too_short(icma_error *error) {
    return icma_fail(error, ICMA_E_CORRUPT, NULL, "too short for a safetensors file");
}

icma_status icma_safetensors_read(icma_file *file, icma_safetensors *out, icma_error *error) {
    uint8_t start[LENGTH_BYTES];
    uint8_t *header = NULL;
    size_t header_size = 0;
    uint64_t file_size = icma_file_size(file);
    memset(out, 0, sizeof *out);
    icma_status status =
        file_size < LENGTH_BYTES ? too_short(error) : icma_file_read(file, 0, start, sizeof start, error);
    if (status == ICMA_OK)
        status = check_length(start, file_size, &header_size, error);
    if (status == ICMA_OK && header_size) {
        header = icma_alloc(header_size);
        status = header ? icma_file_read(file, LENGTH_BYTES, header, header_size, error)
                        : icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for a header of %zu bytes",
                                    header_size);
    }
    if (status == ICMA_OK)
        status =
            icma_safetensors_parse(header, header_size, file_size - LENGTH_BYTES - header_size, out, error);
    icma_free(header);
    if (status != ICMA_OK)
        icma_error_set_file(error, icma_file_path(file));
    return status;
}

icma_status icma_safetensors_view(const uint8_t *image, size_t size, icma_safetensors *out,
                                  const uint8_t **data, icma_error *error) {
    size_t header_size = 0;
    memset(out, 0, sizeof *out);
    *data = NULL;
    if (size < LENGTH_BYTES)
        return too_short(error);
    icma_status status = check_length(image, size, &header_size, error);
    if (status == ICMA_OK)
        status = icma_safetensors_parse(image + LENGTH_BYTES, header_size, size - LENGTH_BYTES - header_size,
                                        out, error);
    if (status == ICMA_OK)
        *data = image + LENGTH_BYTES + header_size;
    return status;
}

void icma_safetensors_free(icma_safetensors *safetensors) {
    for (size_t i = 0; i < safetensors->tensor_count; i++)
        icma_free(safetensors->tensors[i].name);
    icma_free(safetensors->tensors);
    icma_free(safetensors->by_name);
    icma_free(safetensors->header);
    memset(safetensors, 0, sizeof *safetensors);
}

/* --- questions ----------------------------------------------------------------------------------------- */

uint64_t icma_safetensors_data_offset(const icma_safetensors *safetensors) {
    return LENGTH_BYTES + (uint64_t)safetensors->header_size;
}

static bool same_tensor(const icma_tensor_info *a, const icma_tensor_info *b) {
    return a->dtype == b->dtype && a->rank == b->rank && a->begin == b->begin && a->size == b->size &&
           memcmp(a->shape, b->shape, a->rank * sizeof *a->shape) == 0 && strcmp(a->name, b->name) == 0;
}

bool icma_safetensors_same_signature(const icma_safetensors *a, const icma_safetensors *b) {
    if (a->tensor_count != b->tensor_count || a->data_size != b->data_size)
        return false;
    for (size_t i = 0; i < a->tensor_count; i++)
        if (!same_tensor(&a->tensors[i], &b->tensors[i]))
            return false;
    return true;
}

size_t icma_safetensors_find(const icma_safetensors *safetensors, const char *name) {
    size_t low = 0, high = safetensors->tensor_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        uint32_t tensor = safetensors->by_name[middle];
        int order = strcmp(name, safetensors->tensors[tensor].name);
        if (order == 0)
            return tensor;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return SIZE_MAX;
}
