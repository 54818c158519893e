/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tree of files as one tar or zip archive, written as it comes: to a file, which appears whole or not at
 * all, or to standard output. The same files give the same bytes: no times, owners or modes of this machine
 * are in it, and nothing is compressed (weights hardly shrink, and zlibs differ).
 */
#ifndef CLI_ARCHIVE_OUT_H
#define CLI_ARCHIVE_OUT_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum cli_archive_format { CLI_ARCHIVE_NONE, CLI_ARCHIVE_TAR, CLI_ARCHIVE_ZIP } cli_archive_format;

bool cli_archive_format_from_name(const char *name, cli_archive_format *out);

typedef struct cli_archive cli_archive;

/* `path` "-" is standard output. ICMA_E_EXISTS as icma_output_create. */
icma_status cli_archive_create(cli_archive_format format, const char *path, bool overwrite, cli_archive **out,
                               icma_error *error);
/* `name` is a path of safe segments in UTF-8. */
icma_status cli_archive_add(cli_archive *archive, const char *name, const void *data, size_t size,
                            icma_error *error);
/* Ends the archive and lets the file appear. Frees `archive` in every case. */
icma_status cli_archive_commit(cli_archive *archive, icma_error *error);
void cli_archive_abandon(cli_archive *archive); /* NULL is fine */

#endif
