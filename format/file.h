/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files: positioned reads of regular files that notice when the file changes, and outputs that appear whole
 * or not at all (HOSTILE.md, "Survive").
 */
#ifndef ICMA_FILE_H
#define ICMA_FILE_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- reading ------------------------------------------------------------------------------------------- */

/* "<action>: <the system's reason>; <what to do about it>", of an errno. */
icma_status icma_fail_errno(icma_error *error, icma_status status, const char *path, const char *action, int code);

typedef struct icma_file icma_file;

/* Opens a regular file (or a link to one, or what a published spool has at this path, spool.h) for reading; FIFOs, devices and directories are ICMA_E_FORMAT, a
 * missing file is ICMA_E_NOT_FOUND, anything else that open(2) says is ICMA_E_IO. Never mmaps. */
icma_status icma_file_open(const char *path, icma_file **out, icma_error *error);
void icma_file_close(icma_file *file);          /* NULL is fine */
uint64_t icma_file_size(const icma_file *file); /* at opening */
const char *icma_file_path(const icma_file *file);

/* Reads exactly `size` bytes at `offset`, or fails: ICMA_E_CORRUPT when the range is not inside the size at
 * opening or the file has shrunk, ICMA_E_IO on read errors. Thread-safe. */
icma_status icma_file_read(icma_file *file, uint64_t offset, void *out, size_t size, icma_error *error);

/* Parks the descriptor: closes it and keeps the path, device, inode, size and mtime; the next read reopens
 * and fails with ICMA_E_IO ("changed while it was read") if any of them differs. Lets one hold thousands of
 * sources with few descriptors open. NOT thread-safe against reads of the same file. */
void icma_file_park(icma_file *file);

/* ICMA_E_IO ("changed while it was read") if the file that was opened has another size or mtime by now, or, parked, its
 * path leads to another one. For whoever has read it in pieces: they may be of different ages. */
icma_status icma_file_check_unchanged(const icma_file *file, icma_error *error);

/* The path without links, as an owned name (icma_free). What is there must exist. */
icma_status icma_file_resolve(const char *path, char **out, icma_error *error);
/* Locks the file (flock) until it is closed: ICMA_E_IO if another process has. Whoever replaces a file that others may be replacing, too, locks it first. A file system without locks is no error. */
icma_status icma_file_lock(icma_file *file, icma_error *error);

/* ICMA_E_IO if what is at the file's path is not what was opened: another file, or another size or mtime. */
icma_status icma_file_check_in_place(const icma_file *file, icma_error *error);

/* Reads a whole regular file of at most `limit` bytes (larger: ICMA_E_LIMIT). *out is owned by the caller
 * (icma_free), NULL for an empty file. */
icma_status icma_file_read_all(const char *path, size_t limit, uint8_t **out, size_t *size,
                               icma_error *error);

/* --- writing ------------------------------------------------------------------------------------------- */

typedef struct icma_output icma_output;

/* Starts a file that will appear at `path` on commit: a temporary beside it, `.icma-<16 hexadecimal digits>.tmp` (O_EXCL,
 * 0600). It is locked (flock) while this process lives; such files of this user that nobody has locked, which a kill
 * or a power cut has left in the folder, are removed first. If `overwrite` is
 * false and `path` exists: ICMA_E_EXISTS at once; commit checks again, atomically (RENAME_NOREPLACE or link).
 * Missing parents are an error. */
icma_status icma_output_create(const char *path, bool overwrite, icma_output **out, icma_error *error);
icma_status icma_output_write(icma_output *output, const void *data, size_t size,
                              icma_error *error);     /* appends */
uint64_t icma_output_size(const icma_output *output); /* bytes written so far */
const char *icma_output_temporary(
    const icma_output *output); /* where the bytes are until commit: to read back and check */
/* The file will have the permissions of `like`, not those of a new file: for an output that replaces it. */
void icma_output_keep_mode(icma_output *output, const icma_file *like);
/* fsync, mode 0666 less the umask, rename, fsync of the folder. Frees `output` in every case; on failure the
 * temporary is removed and `path` is as it was (unless it is the folder's fsync that fails: then `path` is
 * the new file, but may not survive a power cut). */
icma_status icma_output_commit(icma_output *output, icma_error *error);
void icma_output_abandon(icma_output *output); /* removes the temporary, frees; NULL is fine */

/* Removes the temporaries of every output that is neither committed nor abandoned. Async-signal-safe (unlink
 * only): for a handler of fatal signals. */
void icma_output_unlink_all(void);

/* Makes the folders of `relative` (its last segment is the file's name and is not made) beneath `root`, and
 * `root` itself, whose parent must exist. Each segment must be safe (icma_path_segment_is_safe), links are
 * not followed beneath root: ICMA_E_IO otherwise. *path (owned by the caller) is the joined path. */
icma_status icma_make_folders(const char *root, const char *relative, char **path, icma_error *error);

/* One path segment that cannot leave its folder or hide: not empty, ".", "..", no '/', '\\', control bytes or
 * NUL, valid UTF-8, at most 255 bytes, not starting with '-'. (spec 3.7) */
bool icma_path_segment_is_safe(const char *segment);

#endif
