/* SPDX-License-Identifier: Apache-2.0 */
/* The bytes of an archive, from a file or a descriptor, decompressed on the way. Private to input_archive.c.
 */
#ifndef ICMA_INPUT_STREAM_H
#define ICMA_INPUT_STREAM_H

#include "file.h"
#include "input_archive.h"

enum { ICMA_STREAM_BLOCK = 1 << 16 };

/* What comes from outside, in order. */
typedef struct icma_raw_stream {
    const char *path;
    icma_file *file; /* borrowed; or NULL: */
    int descriptor;
    uint8_t head[ICMA_ARCHIVE_HEAD]; /* of a descriptor: read to tell the kind, given out first */
    size_t head_size;
    uint64_t at; /* bytes given out */
    const struct icma_progress *progress;
} icma_raw_stream;

/* Fills `to` as far as there are bytes; *got is below `room` only at the end. */
icma_status icma_raw_stream_read(icma_raw_stream *stream, uint8_t *to, size_t room, size_t *got,
                                 icma_error *error);

/* The same, decompressed. */
typedef struct icma_plain_stream icma_plain_stream;

/* ICMA_E_LIMIT once it has given out more than `most` bytes. `raw` is borrowed. */
icma_status icma_plain_stream_open(icma_raw_stream *raw, icma_archive_kind kind, uint64_t most,
                                   icma_plain_stream **out, icma_error *error);
/* The next bytes, until the next call; *size is 0 at the end, and then the compressed form was whole and its
 * checksums were right. */
icma_status icma_plain_stream_next(icma_plain_stream *stream, const uint8_t **data, size_t *size,
                                   icma_error *error);
/* Where the last byte given out so far that is not 0 ends, from the start. */
uint64_t icma_plain_stream_content(const icma_plain_stream *stream);
void icma_plain_stream_close(icma_plain_stream *stream); /* NULL is fine */

#endif
