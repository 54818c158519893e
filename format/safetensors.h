/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A strict reader for safetensors.
 *
 * A file is an 8-byte little-endian header length n, n bytes of JSON, then the data. The reader keeps the
 * header's bytes verbatim: a bundle stores them as they are, and an unpacked file starts with the very same
 * bytes.
 *
 * Refused (ICMA_E_CORRUPT unless said otherwise): n over 100,000,000 (ICMA_E_LIMIT) or beyond the file; JSON
 * that icma_json_check refuses; a header that does not start with '{'; fields missing or extra; unknown
 * dtypes (ICMA_E_UNSUPPORTED); a __metadata__ that is not an object of strings; ranges that are not the
 * shape's size, overlap, leave holes, or do not cover the data exactly; products that overflow; more than
 * ICMA_MAX_TENSORS tensors, ICMA_MAX_RANK dimensions or 255-byte names (ICMA_E_LIMIT). A pickle or zip by
 * magic (looked at where the length n makes no sense) is ICMA_E_UNSUPPORTED with what to do instead.
 * Zero-size tensors, 0-d tensors and headers without tensors are fine.
 */
#ifndef ICMA_SAFETENSORS_H
#define ICMA_SAFETENSORS_H

#include "dtype.h"
#include "file.h"

enum {
    ICMA_MAX_HEADER = 100000000,
    ICMA_MAX_RANK = 8,
    ICMA_MAX_TENSORS = 65536,
    ICMA_MAX_NAME = 255,
};

typedef struct icma_tensor_info {
    char *name; /* owned by the icma_safetensors; unescaped UTF-8, no NUL inside */
    icma_dtype dtype;
    unsigned rank;
    uint64_t shape[ICMA_MAX_RANK];
    uint64_t count; /* elements: the product of the shape, 1 for rank 0 */
    uint64_t begin; /* bytes, from the start of the data */
    uint64_t size;  /* bytes */
} icma_tensor_info;

typedef struct icma_safetensors {
    uint8_t *header;           /* the JSON text with its padding, verbatim; owned; not NUL-terminated */
    size_t header_size;        /* n above: bytes of `header` */
    icma_tensor_info *tensors; /* in data order: by begin, then size, then place in the header; owned */
    size_t tensor_count;
    uint64_t data_size; /* bytes */
    uint32_t *by_name;  /* tensor indices in the order of their names, for find; owned */
} icma_safetensors;

/* Parses header text (without the 8 length bytes) for a data part of `data_size` bytes. Copies what it keeps.
 */
icma_status icma_safetensors_parse(const void *header, size_t header_size, uint64_t data_size,
                                   icma_safetensors *out, icma_error *error);
/* Like parse, for a header whose data size is not known beforehand: it is what the ranges cover. */
icma_status icma_safetensors_parse_header(const void *header, size_t header_size, icma_safetensors *out,
                                          icma_error *error);
/* Reads and parses the header of an open file. */
icma_status icma_safetensors_read(icma_file *file, icma_safetensors *out, icma_error *error);
/* Parses a whole image in memory (length, header, data). *data points into `image`. */
icma_status icma_safetensors_view(const uint8_t *image, size_t size, icma_safetensors *out,
                                  const uint8_t **data, icma_error *error);
void icma_safetensors_free(icma_safetensors *safetensors); /* leaves it zeroed */

/* Where the data starts in the file: 8 + header_size. */
uint64_t icma_safetensors_data_offset(const icma_safetensors *safetensors);
/* The same names, dtypes, shapes and ranges in the same data order (metadata may differ): one "signature". */
bool icma_safetensors_same_signature(const icma_safetensors *a, const icma_safetensors *b);
/* The index of a tensor by name (bisection), or SIZE_MAX. */
size_t icma_safetensors_find(const icma_safetensors *safetensors, const char *name);

#endif
