/* SPDX-License-Identifier: Apache-2.0 */
/* Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1 to 3. */
#include "npy.h"

#include "bytes.h"
#include "dtype.h"
#include "memory.h"

#include <math.h>
#include <string.h>

enum { MAX_NPY_HEADER = 65536, MAX_TEXT = 16 };

/* The header is a Python dict literal; this reads just the few values that a vector's header can have. */
typedef struct npy_header {
    char descr[MAX_TEXT];
    bool has_descr, has_order, has_shape;
    bool fortran;
    uint64_t sizes[2]; /* the first two dimensions */
    size_t rank;
} npy_header;

static icma_status refuse(icma_error *error, const char *problem) {
    return icma_fail(error, ICMA_E_CORRUPT, NULL, "npy header: %s", problem);
}

static icma_status unsupported(icma_error *error, const char *problem) {
    return icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "%s; save an array of '<f4' in C order", problem);
}

static void skip_space(icma_cursor *cursor) {
    while (cursor->left && (*cursor->at == ' ' || *cursor->at == '\n' || *cursor->at == '\t'))
        icma_read_u8(cursor);
}

/* Skips white space, and then `wanted` if it comes next. */
static bool accept(icma_cursor *cursor, char wanted) {
    skip_space(cursor);
    if (!cursor->left || *cursor->at != (uint8_t)wanted)
        return false;
    icma_read_u8(cursor);
    return true;
}

static bool accept_word(icma_cursor *cursor, const char *word) {
    size_t length = strlen(word);
    skip_space(cursor);
    return cursor->left >= length && memcmp(cursor->at, word, length) == 0 && icma_read_bytes(cursor, length);
}

/* 'text' or "text", without escapes; longer than fits is cut, which then equals nothing known. */
static bool read_text(icma_cursor *cursor, char text[MAX_TEXT]) {
    size_t length = 0;
    uint8_t quote = accept(cursor, '\'') ? '\'' : accept(cursor, '"') ? '"' : 0;
    if (!quote)
        return false;
    while (cursor->left && *cursor->at != quote) {
        uint8_t c = icma_read_u8(cursor);
        if (c < 0x20 || c == '\\')
            return false;
        if (length < MAX_TEXT - 1)
            text[length++] = (char)c;
    }
    text[length] = '\0';
    return icma_read_u8(cursor) == quote;
}

static bool read_size(icma_cursor *cursor, uint64_t *value) {
    size_t digits = 0;
    *value = 0;
    skip_space(cursor);
    for (; cursor->left && *cursor->at >= '0' && *cursor->at <= '9'; digits++) {
        uint64_t digit = (uint64_t)icma_read_u8(cursor) - '0';
        if (*value > (UINT64_MAX - digit) / 10)
            return false;
        *value = *value * 10 + digit;
    }
    return digits > 0;
}

static icma_status read_shape(icma_cursor *cursor, npy_header *header, icma_error *error) {
    bool comma = true;
    if (!accept(cursor, '('))
        return refuse(error, "its shape is not a tuple");
    for (header->rank = 0; !accept(cursor, ')'); header->rank++) {
        uint64_t size;
        if (!comma || !read_size(cursor, &size))
            return refuse(error, "its shape is malformed");
        if (header->rank < 2)
            header->sizes[header->rank] = size;
        comma = accept(cursor, ',');
    }
    if (header->rank == 1 && !comma)
        return refuse(error, "its shape is a number in brackets, not a tuple");
    return ICMA_OK;
}

static icma_status read_entry(icma_cursor *cursor, npy_header *header, icma_error *error) {
    char key[MAX_TEXT];
    if (!read_text(cursor, key) || !accept(cursor, ':'))
        return refuse(error, "a key is malformed");
    if (strcmp(key, "descr") == 0 && !header->has_descr) {
        header->has_descr = true;
        if (accept(cursor, '['))
            return unsupported(error, "an array of records");
        return read_text(cursor, header->descr) ? ICMA_OK : refuse(error, "its descr is malformed");
    }
    if (strcmp(key, "fortran_order") == 0 && !header->has_order) {
        header->has_order = true;
        header->fortran = accept_word(cursor, "True");
        return header->fortran || accept_word(cursor, "False")
                   ? ICMA_OK
                   : refuse(error, "its fortran_order is malformed");
    }
    if (strcmp(key, "shape") == 0 && !header->has_shape) {
        header->has_shape = true;
        return read_shape(cursor, header, error);
    }
    return refuse(error, "a key is unknown or there twice");
}

static icma_status read_dict(icma_cursor *cursor, npy_header *header, icma_error *error) {
    bool comma = true;
    if (!accept(cursor, '{'))
        return refuse(error, "it is not a dict");
    while (!accept(cursor, '}')) {
        if (!comma)
            return refuse(error, "a comma is missing");
        icma_status status = read_entry(cursor, header, error);
        if (status != ICMA_OK)
            return status;
        comma = accept(cursor, ',');
    }
    skip_space(cursor);
    if (!icma_cursor_finished(cursor) || !header->has_descr || !header->has_order || !header->has_shape)
        return refuse(error, "descr, fortran_order or shape is missing, or something follows");
    return ICMA_OK;
}

/* *width gets the bytes an element. */
static icma_status check_header(const npy_header *header, size_t most_rank, size_t *width,
                                icma_error *error) {
    const char *descr = header->descr;
    *width = strcmp(descr, "<f2") == 0   ? 2
             : strcmp(descr, "<f4") == 0 ? 4
             : strcmp(descr, "<f8") == 0 ? 8
                                         : 0;
    if (*width == 0)
        return unsupported(error, "its elements are not little-endian floats");
    if (header->fortran)
        return unsupported(error, "it is in Fortran order");
    if (header->rank == 0 || header->rank > most_rank)
        return unsupported(error,
                           most_rank == 1 ? "it is not one-dimensional" : "it has not one or two dimensions");
    if (header->sizes[0] == 0 || (header->rank == 2 && header->sizes[1] == 0))
        return unsupported(error, "it is empty");
    return ICMA_OK;
}

/* Where the header's text lies: after the magic, two version bytes and its length in 2 or 4 bytes. */
static icma_status find_header(icma_file *file, uint64_t *offset, size_t *size, icma_error *error) {
    static const uint8_t magic[] = {0x93, 'N', 'U', 'M', 'P', 'Y'};
    uint8_t start[12];
    uint64_t total = icma_file_size(file);
    if (total < sizeof start)
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "too short for an npy file");
    icma_status status = icma_file_read(file, 0, start, sizeof start, error);
    if (status != ICMA_OK)
        return status;
    if (memcmp(start, magic, sizeof magic) != 0)
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "not an npy file");
    if (start[6] < 1 || start[6] > 3 || start[7] != 0)
        return icma_fail(error, ICMA_E_UNSUPPORTED, NULL, "npy version %u.%u; save it as version 1.0",
                         start[6], start[7]);
    *offset = start[6] == 1 ? 10 : 12;
    uint64_t length = start[6] == 1 ? icma_load_u16(start + 8) : icma_load_u32(start + 8);
    if (length > total - *offset)
        return refuse(error, "it is longer than the file");
    if (length > MAX_NPY_HEADER)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "an npy header of more than %d bytes",
                         (int)MAX_NPY_HEADER);
    *size = (size_t)length;
    return ICMA_OK;
}

static icma_status read_header(icma_file *file, npy_header *header, uint64_t *data, icma_error *error) {
    uint64_t offset = 0;
    size_t size = 0;
    icma_status status = find_header(file, &offset, &size, error);
    if (status != ICMA_OK)
        return status;
    if (size == 0)
        return refuse(error, "it is empty");
    uint8_t *text = icma_alloc(size);
    if (!text)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for an npy header");
    status = icma_file_read(file, offset, text, size, error);
    if (status == ICMA_OK) {
        icma_cursor cursor = icma_cursor_over(text, size);
        status = read_dict(&cursor, header, error);
    }
    icma_free(text);
    *data = offset + size;
    return status;
}

static float element(const uint8_t *from, size_t width) {
    double value = NAN;
    icma_element_to_double(width == 2 ? ICMA_F16 : width == 4 ? ICMA_F32 : ICMA_F64, from, &value);
    /* Halfway beyond the largest float and more would be infinity; converting it would be undefined. */
    return fabs(value) < 0x1.ffffffp127 ? (float)value : NAN;
}

static icma_status convert(const uint8_t *bytes, size_t count, size_t width, float *values,
                           icma_error *error) {
    for (size_t i = 0; i < count; i++) {
        values[i] = element(bytes + i * width, width);
        if (!isfinite(values[i]))
            return icma_fail(error, ICMA_E_UNSUPPORTED, NULL,
                             "value %zu is not a finite float; mend the vector", i);
    }
    return ICMA_OK;
}

/* What an array of `most_rank` dimensions at most holds; *header tells its shape. */
static icma_status read_array(icma_file *file, size_t most_rank, size_t max_count, npy_header *header,
                              float **values, icma_error *error) {
    uint64_t data = 0;
    size_t width = 0;
    uint8_t *bytes = NULL;
    float *floats = NULL;
    icma_status status = read_header(file, header, &data, error);
    if (status == ICMA_OK)
        status = check_header(header, most_rank, &width, error);
    if (status != ICMA_OK)
        return status;
    uint64_t rows = header->sizes[0], columns = header->rank == 2 ? header->sizes[1] : 1;
    if (rows > max_count || columns > max_count / rows)
        return icma_fail(error, ICMA_E_LIMIT, NULL, "%llu times %llu values; the limit is %zu",
                         (unsigned long long)rows, (unsigned long long)columns, max_count);
    uint64_t number = rows * columns, room = icma_file_size(file) - data;
    if (room % width || room / width != number)
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "its data is not as long as its shape tells");
    bytes = icma_alloc((size_t)room);
    floats = icma_alloc_array((size_t)number, sizeof *floats);
    status = bytes && floats ? icma_file_read(file, data, bytes, (size_t)room, error)
                             : icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for %llu values",
                                         (unsigned long long)number);
    if (status == ICMA_OK)
        status = convert(bytes, (size_t)number, width, floats, error);
    icma_free(bytes);
    if (status != ICMA_OK) {
        icma_free(floats);
        return status;
    }
    *values = floats;
    return ICMA_OK;
}

static icma_status read_path(const char *path, size_t most_rank, size_t max_count, npy_header *header,
                             float **values, icma_error *error) {
    icma_file *file;
    *values = NULL;
    icma_status status = icma_file_open(path, &file, error);
    if (status != ICMA_OK)
        return status;
    status = read_array(file, most_rank, max_count, header, values, error);
    icma_file_close(file);
    if (status != ICMA_OK)
        icma_error_set_file(error, path);
    return status;
}

icma_status icma_npy_read_vector(const char *path, size_t max_count, float **values, size_t *count,
                                 icma_error *error) {
    npy_header header = {0};
    icma_status status = read_path(path, 1, max_count, &header, values, error);
    *count = status ? 0 : (size_t)header.sizes[0];
    return status;
}

icma_status icma_npy_read_matrix(const char *path, size_t max_count, float **values, size_t *rows,
                                 size_t *columns, icma_error *error) {
    npy_header header = {0};
    icma_status status = read_path(path, 2, max_count, &header, values, error);
    *rows = status ? 0 : header.rank == 2 ? (size_t)header.sizes[0] : 1;
    *columns = status ? 0 : (size_t)header.sizes[header.rank - 1];
    return status;
}
