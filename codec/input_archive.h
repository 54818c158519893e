/* SPDX-License-Identifier: Apache-2.0 */
/* Archives of adapters: told by their first bytes, unpacked to a spool. Private to inputs.c. */
#ifndef ICMA_INPUT_ARCHIVE_H
#define ICMA_INPUT_ARCHIVE_H

#include "inputs.h"
#include "spool.h"

typedef enum icma_archive_kind {
    ICMA_ARCHIVE_NONE,
    ICMA_ARCHIVE_TAR,
    ICMA_ARCHIVE_GZIP, /* of a tar, as the next two */
    ICMA_ARCHIVE_XZ,
    ICMA_ARCHIVE_ZSTD,
    ICMA_ARCHIVE_ZIP,
    ICMA_ARCHIVE_7Z,
    ICMA_ARCHIVE_OTHER, /* bzip2, rar, ...: known, and not read */
} icma_archive_kind;

enum { ICMA_ARCHIVE_HEAD = 512 }; /* what telling takes */

icma_archive_kind icma_archive_tell(const uint8_t *head, size_t size);
/* Whether a zip is torch.save's: a pickle in it is its first member. */
bool icma_archive_is_pickle(const uint8_t *head, size_t size);

/* Unpacks what the finder may look at (input_names.h) of the archive `path`, or of `descriptor` where it is
 * not -1, as
 * "<path>/<member>", and publishes it. inputs.h lists what is refused. */
icma_status icma_archive_unpack(const char *path, int descriptor, const icma_input_options *options,
                                icma_spool *spool, icma_error *error);

#endif
