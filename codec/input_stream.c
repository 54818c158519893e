/* SPDX-License-Identifier: Apache-2.0 */
#include "input_stream.h"

#include "memory.h"
#include "progress.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

/* --- from outside -------------------------------------------------------------------------------------- */

/* poll, which a signal always ends, so that one that comes while nothing does is heeded. */
static icma_status wait_for_bytes(icma_raw_stream *stream, icma_error *error) {
    struct pollfd ready = {.fd = stream->descriptor, .events = POLLIN};
    for (;;) {
        icma_status status = icma_check_cancelled(stream->progress, error);
        if (status)
            return status;
        int count = poll(&ready, 1, -1);
        if (count > 0)
            return ICMA_OK;
        if (count < 0 && errno != EINTR)
            return icma_fail(error, ICMA_E_IO, stream->path, "cannot read: %s", strerror(errno));
    }
}

static icma_status read_descriptor(icma_raw_stream *stream, uint8_t *to, size_t room, size_t *got,
                                   icma_error *error) {
    while (*got < room) {
        icma_status status = wait_for_bytes(stream, error);
        if (status)
            return status;
        ssize_t part = read(stream->descriptor, to + *got, room - *got);
        if (part < 0 && errno != EINTR && errno != EAGAIN)
            return icma_fail(error, ICMA_E_IO, stream->path, "cannot read: %s", strerror(errno));
        if (part == 0)
            break;
        *got += part > 0 ? (size_t)part : 0;
    }
    return ICMA_OK;
}

icma_status icma_raw_stream_read(icma_raw_stream *stream, uint8_t *to, size_t room, size_t *got,
                                 icma_error *error) {
    icma_status status = icma_check_cancelled(stream->progress, error);
    *got = 0;
    if (status)
        return status;
    if (stream->file) {
        uint64_t left = icma_file_size(stream->file) - stream->at;
        *got = left < room ? (size_t)left : room;
        status = icma_file_read(stream->file, stream->at, to, *got, error);
    } else {
        if (stream->at < stream->head_size) {
            *got = stream->head_size - (size_t)stream->at;
            *got = *got < room ? *got : room;
            memcpy(to, stream->head + stream->at, *got);
        }
        status = read_descriptor(stream, to, room, got, error);
    }
    stream->at += *got;
    if (!status)
        icma_tell(stream->progress, "unpack", (double)stream->at,
                  stream->file ? (double)icma_file_size(stream->file) : 0, stream->path);
    return status;
}

/* --- decompressed -------------------------------------------------------------------------------------- */

struct icma_plain_stream {
    icma_raw_stream *raw;
    icma_archive_kind kind;
    uint64_t most, given, content;
    z_stream inflating; /* gzip: zlib checks its checksums, which libarchive does not */
    bool inflating_open, ended;
    struct archive *filter; /* xz, zstd */
    icma_status status;     /* of reading, inside of libarchive */
    icma_error *error;
    uint8_t in[ICMA_STREAM_BLOCK], out[ICMA_STREAM_BLOCK];
};

static void *zlib_alloc(void *context, unsigned count, unsigned size) {
    (void)context;
    return icma_alloc_array(count, size);
}

static void zlib_free(void *context, void *pointer) {
    (void)context;
    icma_free(pointer);
}

static icma_status fail_damaged(const icma_plain_stream *s, const char *what, icma_error *error) {
    return icma_fail(error, ICMA_E_CORRUPT, s->raw->path, "damaged or cut off (%s); get it again", what);
}

static la_ssize_t read_compressed(struct archive *filter, void *context, const void **data) {
    icma_plain_stream *s = context;
    size_t got = 0;
    s->status = icma_raw_stream_read(s->raw, s->in, sizeof s->in, &got, s->error);
    *data = s->in;
    if (!s->status)
        return (la_ssize_t)got;
    archive_set_error(filter, EIO, "cannot read");
    return -1;
}

static icma_status fail_filter(icma_plain_stream *s, icma_error *error) {
    const char *told = archive_error_string(s->filter);
    if (s->status)
        return s->status; /* told by then */
    return archive_errno(s->filter) == ENOMEM
               ? icma_fail(error, ICMA_E_MEMORY, s->raw->path, "not enough memory to decompress it")
               : fail_damaged(s, told ? told : "its compression", error);
}

/* The decompressed bytes are the one member of what libarchive calls a raw archive. */
static icma_status open_filter(icma_plain_stream *s, icma_error *error) {
    struct archive_entry *entry;
    s->error = error;
    s->filter = archive_read_new();
    if (!s->filter)
        return icma_fail(error, ICMA_E_MEMORY, s->raw->path, "not enough memory to decompress it");
    archive_read_support_format_raw(s->filter);
    archive_read_support_format_empty(s->filter);
    if ((s->kind == ICMA_ARCHIVE_XZ ? archive_read_support_filter_xz
                                    : archive_read_support_filter_zstd)(s->filter) != ARCHIVE_OK)
        return icma_fail(error, ICMA_E_UNSUPPORTED, s->raw->path,
                         "this build's libarchive does not decompress it; unpack it first");
    if (archive_read_open(s->filter, s, NULL, read_compressed, NULL) != ARCHIVE_OK)
        return fail_filter(s, error);
    int result = archive_read_next_header(s->filter, &entry);
    s->ended = result == ARCHIVE_EOF;
    return result == ARCHIVE_OK || s->ended ? ICMA_OK : fail_filter(s, error);
}

icma_status icma_plain_stream_open(icma_raw_stream *raw, icma_archive_kind kind, uint64_t most,
                                   icma_plain_stream **out, icma_error *error) {
    icma_status status = ICMA_OK;
    *out = NULL;
    icma_plain_stream *s = icma_alloc_zeroed(1, sizeof *s);
    if (!s)
        return icma_fail(error, ICMA_E_MEMORY, raw->path, "not enough memory to unpack it");
    s->raw = raw;
    s->kind = kind;
    s->most = most;
    if (kind == ICMA_ARCHIVE_GZIP) {
        s->inflating.zalloc = zlib_alloc;
        s->inflating.zfree = zlib_free;
        s->inflating_open = inflateInit2(&s->inflating, 16 + MAX_WBITS) == Z_OK;
        if (!s->inflating_open)
            status = icma_fail(error, ICMA_E_MEMORY, raw->path, "not enough memory to decompress it");
    } else if (kind != ICMA_ARCHIVE_TAR) {
        status = open_filter(s, error);
    }
    if (status)
        icma_plain_stream_close(s);
    else
        *out = s;
    return status;
}

void icma_plain_stream_close(icma_plain_stream *s) {
    if (!s)
        return;
    if (s->inflating_open)
        inflateEnd(&s->inflating);
    archive_read_free(s->filter); /* NULL is fine */
    icma_free(s);
}

/* A gzip file is one or more members one behind another. */
static icma_status inflate_some(icma_plain_stream *s, size_t *size, icma_error *error) {
    z_stream *z = &s->inflating;
    bool between = s->ended; /* members */
    z->next_out = s->out;
    z->avail_out = sizeof s->out;
    while (z->avail_out == sizeof s->out) {
        size_t got = z->avail_in;
        if (got == 0) {
            icma_status status = icma_raw_stream_read(s->raw, s->in, sizeof s->in, &got, error);
            if (status)
                return status;
            z->next_in = s->in;
            z->avail_in = (unsigned)got;
        }
        if (got == 0 && !between)
            return fail_damaged(s, "the end of its gzip data is missing", error);
        if (got == 0)
            break;
        if (between)
            inflateReset(z);
        int result = inflate(z, Z_NO_FLUSH);
        if (result == Z_MEM_ERROR)
            return icma_fail(error, ICMA_E_MEMORY, s->raw->path, "not enough memory to decompress it");
        if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR)
            return fail_damaged(s, z->msg ? z->msg : "its gzip data", error);
        between = result == Z_STREAM_END;
    }
    s->ended = between;
    *size = sizeof s->out - z->avail_out;
    return ICMA_OK;
}

static icma_status filter_some(icma_plain_stream *s, size_t *size, icma_error *error) {
    s->error = error;
    la_ssize_t got = s->ended ? 0 : archive_read_data(s->filter, s->out, sizeof s->out);
    if (got < 0)
        return fail_filter(s, error);
    *size = (size_t)got;
    s->ended = got == 0;
    return ICMA_OK;
}

icma_status icma_plain_stream_next(icma_plain_stream *s, const uint8_t **data, size_t *size,
                                   icma_error *error) {
    *data = s->out;
    *size = 0;
    icma_status status = s->kind == ICMA_ARCHIVE_TAR
                             ? icma_raw_stream_read(s->raw, s->out, sizeof s->out, size, error)
                         : s->kind == ICMA_ARCHIVE_GZIP ? inflate_some(s, size, error)
                                                        : filter_some(s, size, error);
    for (size_t i = *size; i > 0; i--)
        if (s->out[i - 1]) {
            s->content = s->given + i;
            break;
        }
    s->given += *size;
    if (!status && s->given > s->most)
        status =
            icma_fail(error, ICMA_E_LIMIT, s->raw->path,
                      "more than %llu bytes when unpacked; see --max-input", (unsigned long long)s->most);
    return status;
}

uint64_t icma_plain_stream_content(const icma_plain_stream *s) {
    return s->content;
}
