/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files without a place of their own: members of archives, joined shards. They lie one behind another in one
 * temporary file that has no name, so nothing is left behind however the process ends, and no member's name
 * ever reaches the file system. Once published they are opened by path like any other file (icma_file_open
 * and all that stands on it), before the file system is asked; "loras.tar/cat/adapter_model.safetensors"
 * cannot be there, for loras.tar is no folder.
 *
 * Published spools are known to the whole process. Every function may be called from any thread; one spool is
 * filled by one thread at a time.
 */
#ifndef ICMA_SPOOL_H
#define ICMA_SPOOL_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct icma_spool icma_spool;

/* An empty spool in `folder` (NULL: $TMPDIR, else /tmp). ICMA_E_IO where no file can be made there. */
icma_status icma_spool_create(const char *folder, icma_spool **out, icma_error *error);
icma_spool *icma_spool_share(icma_spool *spool); /* one owner more; NULL is fine */
void icma_spool_release(
    icma_spool *spool); /* one owner less; the last one's takes the files away; NULL is fine */

/* Starts the member `path`, which what is written from now on belongs to. Segments with '/' between them. */
icma_status icma_spool_begin(icma_spool *spool, const char *path, icma_error *error);
icma_status icma_spool_write(icma_spool *spool, const void *data, size_t size,
                             icma_error *error);   /* appends */
uint64_t icma_spool_size(const icma_spool *spool); /* bytes of all members */
size_t icma_spool_members(const icma_spool *spool);
/* Makes all members visible; again after further ones. ICMA_E_CORRUPT, naming it, for a path that is there
 * twice, or as a file and a folder; then nothing of what was new is visible. */
icma_status icma_spool_publish(icma_spool *spool, icma_error *error);

typedef struct icma_spool_about {
    bool is_folder;
    uint64_t size;   /* of a file */
    uint64_t number; /* the same for the same member or folder, another for any other; never 0 */
    uint64_t spool;  /* the same for all of one spool */
} icma_spool_about;

/* Whether a published spool has this file, or a folder with files in it. */
bool icma_spool_look(const char *path, icma_spool_about *out);
/* Tells what lies in a folder, in the order of bytes. Stops when `each` fails; `each` may not call this
 * module. */
icma_status icma_spool_list(const char *folder,
                            icma_status (*each)(void *context, const char *name, size_t length,
                                                const icma_spool_about *about),
                            void *context);

/* For icma_file: where a file's bytes are, with one owner more for *spool; and those bytes. */
bool icma_spool_open(const char *path, icma_spool **spool, uint64_t *offset, uint64_t *size);
icma_status icma_spool_read(icma_spool *spool, uint64_t offset, void *out, size_t size, const char *path,
                            icma_error *error);

#endif
