/* SPDX-License-Identifier: Apache-2.0 */
/* What adding to an archive and removing from it share: the old one, opened and locked, the new one beside
 * it, and what is copied from one to the other. Private to change.c, remove.c, add*.c. */
#ifndef ICMA_CHANGE_H
#define ICMA_CHANGE_H

#include "bundle_inside.h"

typedef struct icma_change {
    const icma_change_options *options;
    icma_file *file; /* the old archive, locked where it is to be replaced */
    icma_bundle *bundle;
    icma_container_writer *writer;
    uint32_t *tasks, *groups; /* the numbers that they have in the new archive; ICMA_NO_OWNER: it goes. At
                                 first those that they have in the old one; owned */
    bool *left_out; /* one a section of the old archive: it is not copied, because another takes its place;
                       owned */
} icma_change;

/* Opens the archive at `path`; *change is to be closed also on failure. */
icma_status icma_change_open(icma_change *change, const char *path, const icma_change_options *options,
                             const icma_ops *ops, const icma_limits *limits, icma_error *error);
/* Copies every section whose group and task stay, and that is not left out, in the order in which they lie in
 * the file. */
icma_status icma_change_copy(icma_change *change, icma_error *error);
/* Lets the new archive appear, if the old one is still what was opened. */
icma_status icma_change_commit(icma_change *change, icma_error *error);
void icma_change_close(icma_change *change); /* what was not committed is gone */
/* Options of a program that may have been compiled with an older icma.h (NULL: none), as this library knows
 * them. */
icma_status icma_change_take_options(const icma_change_options *options, icma_change_options *out,
                                     icma_error *error);

#endif
