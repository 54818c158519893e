/* SPDX-License-Identifier: Apache-2.0 */
#include "archive_out.h"

#include "file.h"
#include "memory.h"
#include "progress.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>

enum { FILE_MODE = 0644, NO_PADDING = 1 };

/* 1980-01-01: GNU tar warns of older ones. Zip gets none: its times are local ones. */
static const time_t tar_time = 315532800;

struct cli_archive {
    struct archive *writer;
    icma_output *output; /* NULL: standard output */
    locale_t utf8;       /* (locale_t)0 where the system has none */
    cli_archive_format format;
    bool dropped;     /* what still comes goes nowhere */
    icma_error error; /* of a write, behind libarchive's back */
};

bool cli_archive_format_from_name(const char *name, cli_archive_format *out) {
    bool tar = strcmp(name, "tar") == 0;
    *out = tar ? CLI_ARCHIVE_TAR : CLI_ARCHIVE_ZIP;
    return tar || strcmp(name, "zip") == 0;
}

static la_ssize_t write_part(struct archive *writer, void *context, const void *data, size_t size) {
    cli_archive *a = context;
    icma_status status = ICMA_OK;
    if (a->dropped)
        return (la_ssize_t)size;
    if (a->output)
        status = icma_output_write(a->output, data, size, &a->error);
    else {
        cli_progress_clear();
        errno = 0;
        if (fwrite(data, 1, size, stdout) != size)
            status = icma_fail(&a->error, ICMA_E_IO, "standard output",
                               "cannot write (%s); check where it goes to", strerror(errno));
    }
    if (status)
        archive_set_error(writer, EIO, "a write failed");
    return status ? -1 : (la_ssize_t)size;
}

/* The write's own words where there are some. */
static icma_status fail(const cli_archive *a, icma_error *error) {
    const char *words = a->writer ? archive_error_string(a->writer) : NULL;
    if (a->error.status)
        return icma_fail(error, a->error.status, a->error.file, "%s", a->error.message);
    return icma_fail(error, ICMA_E_IO, NULL, "cannot write the archive (%s)",
                     words ? words : "not enough memory");
}

/* libarchive takes names through the character set of the locale. */
static locale_t enter_locale(const cli_archive *a) {
    return a->utf8 ? uselocale(a->utf8) : (locale_t)0;
}

static void leave_locale(const cli_archive *a, locale_t before) {
    if (a->utf8)
        uselocale(before);
}

static bool set_up(cli_archive *a) {
    a->writer = archive_write_new();
    if (!a->writer)
        return false;
    bool tar = a->format == CLI_ARCHIVE_TAR;
    int done =
        tar ? archive_write_set_format_pax_restricted(a->writer) : archive_write_set_format_zip(a->writer);
    if (done == ARCHIVE_OK && !tar)
        done = archive_write_zip_set_compression_store(a->writer);
    if (done == ARCHIVE_OK && !tar)
        done = archive_write_set_options(a->writer, "hdrcharset=UTF-8");
    if (done == ARCHIVE_OK)
        done = archive_write_add_filter_none(a->writer);
    if (done == ARCHIVE_OK)
        done = archive_write_set_bytes_in_last_block(a->writer, NO_PADDING);
    return done == ARCHIVE_OK && archive_write_open(a->writer, a, NULL, write_part, NULL) == ARCHIVE_OK;
}

icma_status cli_archive_create(cli_archive_format format, const char *path, bool overwrite, cli_archive **out,
                               icma_error *error) {
    cli_archive *a = icma_alloc_zeroed(1, sizeof *a);
    *out = NULL;
    if (!a)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory for an archive");
    a->format = format;
    a->utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    icma_status status =
        strcmp(path, "-") == 0 ? ICMA_OK : icma_output_create(path, overwrite, &a->output, error);
    locale_t before = enter_locale(a);
    if (!status && !set_up(a))
        status = fail(a, error);
    leave_locale(a, before);
    if (status) {
        cli_archive_abandon(a);
        return status;
    }
    *out = a;
    return ICMA_OK;
}

static bool add(cli_archive *a, struct archive_entry *entry, const char *name, const void *data,
                size_t size) {
    archive_entry_set_pathname_utf8(entry, name);
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, FILE_MODE);
    archive_entry_set_size(entry, (la_int64_t)size);
    if (a->format == CLI_ARCHIVE_TAR)
        archive_entry_set_mtime(entry, tar_time, 0);
    if (archive_write_header(a->writer, entry) < ARCHIVE_WARN)
        return false;
    return size == 0 || archive_write_data(a->writer, data, size) == (la_ssize_t)size;
}

icma_status cli_archive_add(cli_archive *a, const char *name, const void *data, size_t size,
                            icma_error *error) {
    struct archive_entry *entry = archive_entry_new();
    locale_t before = enter_locale(a);
    bool good = entry && add(a, entry, name, data, size);
    leave_locale(a, before);
    archive_entry_free(entry);
    return good ? ICMA_OK : fail(a, error);
}

static void dispose(cli_archive *a) {
    if (a->writer) {
        a->dropped = true;
        archive_write_close(a->writer); /* after a write that failed, freeing alone would leave its buffer */
        archive_write_free(a->writer);
    }
    if (a->utf8)
        freelocale(a->utf8);
    icma_free(a);
}

icma_status cli_archive_commit(cli_archive *a, icma_error *error) {
    locale_t before = enter_locale(a);
    bool good = archive_write_close(a->writer) == ARCHIVE_OK;
    leave_locale(a, before);
    icma_status status = good ? ICMA_OK : fail(a, error);
    errno = 0;
    if (!status && !a->output && fflush(stdout) != 0)
        status = icma_fail(error, ICMA_E_IO, "standard output", "cannot write (%s); check where it goes to",
                           strerror(errno));
    if (a->output && status)
        icma_output_abandon(a->output);
    else if (a->output)
        status = icma_output_commit(a->output, error);
    dispose(a);
    return status;
}

void cli_archive_abandon(cli_archive *a) {
    if (!a)
        return;
    icma_output_abandon(a->output);
    dispose(a);
}
