/* SPDX-License-Identifier: Apache-2.0 */
#include "input_archive.h"

#include "bytes.h"
#include "input_names.h"
#include "input_stream.h"
#include "memory.h"
#include "progress.h"
#include "utf8.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>

enum {
    TAR_BLOCK = 512,
    LONGEST_PATH = 1024,
    LONGEST_SEGMENT = 255,
    DEEPEST = 32,
    MOST_NAMES = 1 << 24, /* bytes of all paths */
};

/* --- kinds --------------------------------------------------------------------------------------------- */

static bool starts_with(const uint8_t *head, size_t size, const char *magic, size_t length) {
    return size >= length && memcmp(head, magic, length) == 0;
}

/* By the checksum of the first member's header: old tars have no magic. It counts its own field as spaces. */
static bool is_tar(const uint8_t *head, size_t size) {
    enum { FIELD = 148, FIELD_SIZE = 8 };
    uint32_t sum = 0, told = 0;
    if (size < TAR_BLOCK || head[0] == 0)
        return false;
    for (size_t i = 0; i < TAR_BLOCK; i++)
        sum += i >= FIELD && i < FIELD + FIELD_SIZE ? ' ' : head[i];
    size_t at = FIELD;
    while (at < FIELD + FIELD_SIZE && head[at] == ' ')
        at++;
    while (at < FIELD + FIELD_SIZE && head[at] >= '0' && head[at] <= '7')
        told = told * 8 + (uint32_t)(head[at++] - '0');
    return sum == told;
}

icma_archive_kind icma_archive_tell(const uint8_t *head, size_t size) {
    static const struct {
        const char *magic;
        size_t length;
        icma_archive_kind kind;
    } magics[] = {
        {"\x1f\x8b", 2, ICMA_ARCHIVE_GZIP},
        {"\xfd"
         "7zXZ\0",
         6, ICMA_ARCHIVE_XZ},
        {"\x28\xb5\x2f\xfd", 4, ICMA_ARCHIVE_ZSTD},
        {"PK\3\4", 4, ICMA_ARCHIVE_ZIP},
        {"PK\5\6", 4, ICMA_ARCHIVE_ZIP}, /* without members */
        {"7z\xbc\xaf\x27\x1c", 6, ICMA_ARCHIVE_7Z},
        {"BZh", 3, ICMA_ARCHIVE_OTHER},
        {"Rar!\x1a\x07", 6, ICMA_ARCHIVE_OTHER},
        {"\x04\x22\x4d\x18", 4, ICMA_ARCHIVE_OTHER}, /* lz4 */
    };
    for (size_t i = 0; i < sizeof magics / sizeof *magics; i++)
        if (starts_with(head, size, magics[i].magic, magics[i].length))
            return magics[i].kind;
    return is_tar(head, size) ? ICMA_ARCHIVE_TAR : ICMA_ARCHIVE_NONE;
}

bool icma_archive_is_pickle(const uint8_t *head, size_t size) {
    enum { NAME_LENGTH = 26, NAME = 30 };
    static const char tail[] = "/data.pkl";
    const size_t tail_length = sizeof tail - 1;
    if (!starts_with(head, size, "PK\3\4", 4) || size < NAME)
        return false;
    size_t length = icma_load_u16(head + NAME_LENGTH);
    return length > tail_length && NAME + length <= size &&
           memcmp(head + NAME + length - tail_length, tail, tail_length) == 0;
}

/* --- one unpacking ------------------------------------------------------------------------------------- */

typedef struct unpacking {
    const char *path;
    const icma_input_options *options;
    icma_spool *spool;
    icma_error *error;
    icma_raw_stream raw;
    icma_plain_stream *plain; /* of a tar */
    icma_file *file;          /* of a zip or 7z, which are read from their ends */
    uint64_t at;
    struct archive *archive;
    bool opened; /* before that libarchive does not know whether it is encrypted, and asking crashes it */
    icma_status status; /* of reading, inside of libarchive */
    uint64_t bytes, names;
    size_t members;
    char member[LONGEST_PATH + 1];
    uint8_t in[ICMA_STREAM_BLOCK], block[ICMA_STREAM_BLOCK]; /* what libarchive reads; what comes out of it */
} unpacking;

static icma_status no_memory(const unpacking *u) {
    return icma_fail(u->error, ICMA_E_MEMORY, u->path, "not enough memory to unpack it");
}

/* --- what libarchive reads ----------------------------------------------------------------------------- */

static la_ssize_t failed_read(unpacking *u) {
    archive_set_error(u->archive, EIO, "cannot read");
    return -1;
}

static la_ssize_t read_tar(struct archive *archive, void *context, const void **data) {
    (void)archive;
    unpacking *u = context;
    const uint8_t *bytes;
    size_t size;
    u->status = icma_plain_stream_next(u->plain, &bytes, &size, u->error);
    *data = bytes;
    return u->status ? failed_read(u) : (la_ssize_t)size;
}

static la_ssize_t read_file(struct archive *archive, void *context, const void **data) {
    (void)archive;
    unpacking *u = context;
    uint64_t total = icma_file_size(u->file), left = u->at < total ? total - u->at : 0;
    size_t size = left < sizeof u->in ? (size_t)left : sizeof u->in;
    u->status = icma_check_cancelled(u->options->progress, u->error);
    if (!u->status)
        u->status = icma_file_read(u->file, u->at < total ? u->at : total, u->in, size, u->error);
    u->at += size;
    *data = u->in;
    if (!u->status)
        icma_tell(u->options->progress, "unpack", (double)(u->at < total ? u->at : total), (double)total,
                  u->path);
    return u->status ? failed_read(u) : (la_ssize_t)size;
}

static la_int64_t seek_file(struct archive *archive, void *context, la_int64_t offset, int whence) {
    (void)archive;
    unpacking *u = context;
    int64_t from = whence == SEEK_CUR   ? (int64_t)u->at
                   : whence == SEEK_END ? (int64_t)icma_file_size(u->file)
                                        : 0;
    if ((offset < 0 && from < -offset) || (offset > 0 && from > INT64_MAX - offset))
        return ARCHIVE_FATAL;
    u->at = (uint64_t)(from + offset);
    return (la_int64_t)u->at;
}

/* --- failures ------------------------------------------------------------------------------------------ */

static icma_status fail_archive(const unpacking *u) {
    const char *told = archive_error_string(u->archive);
    if (u->status)
        return u->status; /* told by then */
    if (u->opened && archive_read_has_encrypted_entries(u->archive) > 0)
        return icma_fail(u->error, ICMA_E_UNSUPPORTED, u->path, "encrypted; decrypt it first");
    if (archive_errno(u->archive) == ENOMEM)
        return no_memory(u);
    if (told && (strstr(told, "nsupported") || strstr(told, "not supported")))
        return icma_fail(u->error, ICMA_E_UNSUPPORTED, u->path,
                         "libarchive cannot read it (%s); unpack it first", told);
    return icma_fail(u->error, ICMA_E_CORRUPT, u->path, "damaged or cut off (%s); get it again",
                     told ? told : "no reason told");
}

static icma_status fail_member(const unpacking *u, icma_status status, const char *name,
                               const char *problem) {
    return icma_fail(u->error, status, u->path, "its member \"%.200s\" %s", name, problem);
}

/* --- members ------------------------------------------------------------------------------------------- */

/* One segment of a path: why it cannot be, or NULL. */
static const char *judge_segment(const char *segment, size_t length) {
    if (length == 2 && memcmp(segment, "..", 2) == 0)
        return "has \"..\" in its path; make the archive anew";
    for (size_t i = 0, step; i < length; i += step) {
        step = icma_utf8_length((const uint8_t *)segment + i, length - i);
        if (step == 0)
            return "has a name that is not UTF-8; rename it";
        if ((unsigned char)segment[i] < 0x20 || segment[i] == 0x7f || segment[i] == '\\')
            return "has a control character or a backslash in its name; rename it";
    }
    return NULL;
}

/* Writes "<archive>/<segment>/<segment>" without empty segments and "." to u->member. */
static icma_status join_member(unpacking *u, const char *name) {
    size_t used = (size_t)snprintf(u->member, sizeof u->member, "%s", u->path);
    unsigned depth = 0;
    if (name[0] == '/')
        return fail_member(u, ICMA_E_CORRUPT, name, "has an absolute path; make the archive anew");
    for (const char *next = name; *next;) {
        size_t length = strcspn(next, "/");
        const char *problem = judge_segment(next, length);
        if (problem)
            return fail_member(u, ICMA_E_CORRUPT, name, problem);
        if (length > 0 && !(length == 1 && *next == '.')) {
            if (length > LONGEST_SEGMENT || used + 1 + length > LONGEST_PATH || ++depth > DEEPEST)
                return fail_member(u, ICMA_E_LIMIT, name, "has too long a path, or lies too deep");
            u->member[used++] = '/';
            memcpy(u->member + used, next, length);
            used += length;
            u->member[used] = '\0';
        }
        next += length + (next[length] == '/');
    }
    return ICMA_OK;
}

/* Whether the finder would look at it. What is hidden, or in a folder that is, it does not see. */
static bool is_wanted(const unpacking *u) {
    const char *inside = u->member + strlen(u->path), *name = icma_path_last(inside);
    if (strstr(inside, "/."))
        return false;
    return icma_name_is_condition(name) || icma_name_is_archive(name) ||
           icma_name_ends_with(name, ".safetensors.index.json") || icma_name_is_side(name) ||
           icma_name_is_pickle(name) ||
           (icma_name_ends_with(name, ".safetensors") && !icma_name_is_helper(name));
}

static icma_status copy_member(unpacking *u, bool first_block_only) {
    uint64_t before = icma_spool_size(u->spool);
    icma_status status = icma_spool_begin(u->spool, u->member, u->error);
    while (!status) {
        la_ssize_t got = archive_read_data(u->archive, u->block, sizeof u->block);
        if (got == 0)
            break;
        if (got < 0)
            return fail_archive(u);
        status = icma_spool_write(u->spool, u->block, (size_t)got, u->error);
        if (!status && icma_spool_size(u->spool) - before > u->options->most_bytes)
            status = icma_fail(u->error, ICMA_E_LIMIT, u->path,
                               "more than %llu bytes when unpacked; see --max-input",
                               (unsigned long long)u->options->most_bytes);
        if (first_block_only)
            break;
    }
    return status;
}

/* Bytes count whether they are wanted or not: passing over them takes time as well. */
static icma_status count_member(unpacking *u, struct archive_entry *entry) {
    uint64_t size = archive_entry_size(entry) > 0 ? (uint64_t)archive_entry_size(entry) : 0;
    u->bytes = size > UINT64_MAX - u->bytes ? UINT64_MAX : u->bytes + size;
    if (u->bytes > u->options->most_bytes)
        return icma_fail(u->error, ICMA_E_LIMIT, u->path,
                         "more than %llu bytes when unpacked; see --max-input",
                         (unsigned long long)u->options->most_bytes);
    if (++u->members > u->options->most_members)
        return icma_fail(u->error, ICMA_E_LIMIT, u->path, "more than %llu files and folders in it",
                         (unsigned long long)u->options->most_members);
    return ICMA_OK;
}

static icma_status check_kind(const unpacking *u, struct archive_entry *entry, const char *name) {
    mode_t kind = archive_entry_filetype(entry);
    if (archive_entry_hardlink(entry) || kind == AE_IFLNK)
        return fail_member(
            u, ICMA_E_UNSUPPORTED, name,
            "is a link; make the archive with what links lead to (tar: --dereference --hard-dereference)");
    if (kind != AE_IFREG && kind != AE_IFDIR)
        return fail_member(u, ICMA_E_UNSUPPORTED, name,
                           "is a pipe, socket or device; make the archive without it");
    if (archive_entry_is_encrypted(entry))
        return fail_member(u, ICMA_E_UNSUPPORTED, name, "is encrypted; decrypt it first");
    return ICMA_OK;
}

static icma_status take_member(unpacking *u, struct archive_entry *entry) {
    const char *name = archive_entry_pathname_utf8(entry);
    if (!name)
        name = archive_entry_pathname(entry); /* bytes of no known character set */
    if (!name || !*name)
        return icma_fail(u->error, ICMA_E_CORRUPT, u->path,
                         "has a member without a name; make the archive anew");
    icma_status status = count_member(u, entry);
    if (!status)
        status = check_kind(u, entry, name);
    if (!status)
        status = join_member(u, name);
    if (status || archive_entry_filetype(entry) == AE_IFDIR || !is_wanted(u))
        return status;
    u->names += strlen(u->member);
    if (u->names > MOST_NAMES)
        return icma_fail(u->error, ICMA_E_LIMIT, u->path, "the names of its members take more than %d bytes",
                         (int)MOST_NAMES);
    /* Of what is only told to be a pickle or an archive, the beginning will do. */
    return copy_member(u, !icma_name_ends_with(u->member, ".safetensors") &&
                              !icma_name_is_condition(icma_path_last(u->member)) &&
                              !icma_name_ends_with(u->member, ".json") &&
                              !icma_name_is_side(icma_path_last(u->member)));
}

/* A warning is taken for a failure: nothing is packed from what is not as it should be. But libarchive also
 * warns where a name has no form in the process's character set, which is nobody's fault. */
static bool is_about_names(const unpacking *u) {
    const char *told = archive_error_string(u->archive);
    return told && (strstr(told, "current locale") || strstr(told, "converted"));
}

static icma_status take_members(unpacking *u, uint64_t *end) {
    for (;;) {
        struct archive_entry *entry;
        *end = (uint64_t)archive_filter_bytes(u->archive, 0);
        int result = archive_read_next_header(u->archive, &entry);
        if (result == ARCHIVE_EOF)
            return u->status;
        if (result != ARCHIVE_OK && !(result == ARCHIVE_WARN && is_about_names(u)))
            return fail_archive(u);
        icma_status status = take_member(u, entry);
        if (status)
            return status;
        result = archive_read_data_skip(u->archive);
        if (result != ARCHIVE_OK)
            return fail_archive(u);
    }
}

/* --- tar ----------------------------------------------------------------------------------------------- */

/* After the last member comes a block of zeros, and then nothing but zeros: a tar that ends before was cut
 * off between two members, which libarchive lets pass, and what stands behind is for other eyes. */
static icma_status check_tar_end(unpacking *u, uint64_t end) {
    uint64_t read = (uint64_t)archive_filter_bytes(u->archive, 0);
    const uint8_t *bytes;
    size_t size = 1;
    icma_status status = ICMA_OK;
    while (!status && size > 0)
        status = icma_plain_stream_next(u->plain, &bytes, &size, u->error);
    if (status)
        return status;
    if (read < end + TAR_BLOCK)
        return icma_fail(u->error, ICMA_E_CORRUPT, u->path,
                         "cut off: a tar ends in blocks of zeros; get it again");
    if (icma_plain_stream_content(u->plain) > read)
        return icma_fail(u->error, ICMA_E_CORRUPT, u->path,
                         "goes on behind the end of its tar; make the archive anew");
    return ICMA_OK;
}

static icma_status unpack_tar(unpacking *u, icma_archive_kind kind) {
    uint64_t end = 0;
    icma_status status = icma_plain_stream_open(&u->raw, kind, u->options->most_bytes, &u->plain, u->error);
    if (status)
        return status;
    archive_read_support_format_tar(u->archive);
    archive_read_support_format_empty(u->archive);
    if (archive_read_open(u->archive, u, NULL, read_tar, NULL) != ARCHIVE_OK)
        return fail_archive(u);
    u->opened = true;
    status = take_members(u, &end);
    return status ? status : check_tar_end(u, end);
}

/* --- zip and 7z ---------------------------------------------------------------------------------------- */

/* What comes from a pipe is laid down first: these are read from their ends. */
static icma_status lay_down(unpacking *u, char **name) {
    static const char tail[] = " (as it came)";
    size_t got = 1, length = strlen(u->path);
    *name = icma_alloc(length + sizeof tail);
    if (!*name)
        return no_memory(u);
    memcpy(*name, u->path, length);
    memcpy(*name + length, tail, sizeof tail);
    icma_status status = icma_spool_begin(u->spool, *name, u->error);
    while (!status && got > 0) {
        status = icma_raw_stream_read(&u->raw, u->block, sizeof u->block, &got, u->error);
        if (!status)
            status = icma_spool_write(u->spool, u->block, got, u->error);
        if (!status && u->raw.at > u->options->most_bytes)
            status = icma_fail(u->error, ICMA_E_LIMIT, u->path, "more than %llu bytes; see --max-input",
                               (unsigned long long)u->options->most_bytes);
    }
    return status ? status : icma_spool_publish(u->spool, u->error);
}

static icma_status open_seekable(unpacking *u, icma_archive_kind kind) {
    struct archive *a = u->archive;
    if (kind == ICMA_ARCHIVE_ZIP)
        archive_read_support_format_zip_seekable(a);
    else
        archive_read_support_format_7zip(a);
    archive_read_set_callback_data(a, u);
    archive_read_set_read_callback(a, read_file);
    archive_read_set_seek_callback(a, seek_file);
    u->opened = archive_read_open1(a) == ARCHIVE_OK;
    return u->opened ? ICMA_OK : fail_archive(u);
}

static icma_status unpack_seekable(unpacking *u, icma_archive_kind kind) {
    uint64_t end;
    char *name = NULL;
    icma_status status = u->raw.file ? ICMA_OK : lay_down(u, &name);
    u->file = u->raw.file;
    if (!status && !u->file)
        status = icma_file_open(name, &u->file, u->error);
    if (!status)
        status = open_seekable(u, kind);
    if (!status)
        status = take_members(u, &end);
    if (u->file != u->raw.file)
        icma_file_close(u->file);
    icma_free(name);
    return status;
}

/* --- all together -------------------------------------------------------------------------------------- */

static icma_status read_head(unpacking *u, icma_archive_kind *kind) {
    size_t size = sizeof u->raw.head;
    icma_status status;
    if (u->raw.file) {
        uint64_t total = icma_file_size(u->raw.file);
        size = total < size ? (size_t)total : size;
        status = icma_file_read(u->raw.file, 0, u->raw.head, size, u->error);
    } else {
        status = icma_raw_stream_read(&u->raw, u->raw.head, size, &size, u->error);
        u->raw.head_size = size;
        u->raw.at = 0;
    }
    *kind = status ? ICMA_ARCHIVE_NONE : icma_archive_tell(u->raw.head, size);
    if (!status && size > 0 && icma_archive_is_pickle(u->raw.head, size))
        return icma_fail(u->error, ICMA_E_UNSUPPORTED, u->path, ICMA_PICKLE_REASON);
    return status;
}

static icma_status unpack(unpacking *u) {
    icma_archive_kind kind;
    icma_status status = read_head(u, &kind);
    if (status)
        return status;
    u->archive = archive_read_new();
    if (!u->archive)
        return no_memory(u);
    switch (kind) {
    case ICMA_ARCHIVE_NONE:
        return icma_fail(u->error, ICMA_E_FORMAT, u->path, "no tar, zip or 7z; give an archive of adapters");
    case ICMA_ARCHIVE_OTHER:
        return icma_fail(u->error, ICMA_E_UNSUPPORTED, u->path,
                         "an archive that icma does not read; unpack it, or make it tar (plain, gzip, xz, "
                         "zstd), zip or 7z");
    case ICMA_ARCHIVE_ZIP:
    case ICMA_ARCHIVE_7Z:
        status = unpack_seekable(u, kind);
        break;
    default:
        status = unpack_tar(u, kind);
    }
    return status ? status : icma_spool_publish(u->spool, u->error);
}

icma_status icma_archive_unpack(const char *path, int descriptor, const icma_input_options *options,
                                icma_spool *spool, icma_error *error) {
    if (strlen(path) >= LONGEST_PATH)
        return icma_fail(error, ICMA_E_LIMIT, path, "its path is too long");
    unpacking *u = icma_alloc_zeroed(1, sizeof *u);
    icma_error own = {0};
    if (!u)
        return icma_fail(error, ICMA_E_MEMORY, path, "not enough memory to unpack it");
    u->path = u->raw.path = path;
    u->options = options;
    u->spool = spool;
    u->error = error ? error : &own;
    u->raw.descriptor = descriptor;
    u->raw.progress = options->progress;
    icma_status status = descriptor < 0 ? icma_file_open(path, &u->raw.file, u->error) : ICMA_OK;
    /* libarchive converts names to this thread's character set; where there is no such locale, it warns of
     * some. */
    locale_t names = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0),
             before = names ? uselocale(names) : (locale_t)0;
    if (!status)
        status = unpack(u);
    if (names) {
        uselocale(before);
        freelocale(names);
    }
    if (!status && u->raw.file)
        status = icma_file_check_unchanged(u->raw.file, u->error);
    archive_read_free(u->archive); /* NULL is fine */
    icma_plain_stream_close(u->plain);
    icma_file_close(u->raw.file);
    icma_free(u);
    if (status)
        icma_error_set_file(error, path);
    return status;
}
