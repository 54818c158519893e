/* SPDX-License-Identifier: Apache-2.0 */
/* The state of one search for adapters, and folders as lists. Private to inputs.c and its neighbours
 * input_*.c. */
#ifndef ICMA_INPUT_FINDER_H
#define ICMA_INPUT_FINDER_H

#include "inputs.h"
#include "spool.h"

#include <stddef.h>
#include <sys/types.h>

typedef struct icma_identity {
    dev_t device;
    ino_t inode;
} icma_identity;

/* A folder, and what it means for the adapters in it. Borrows its strings. */
typedef struct icma_place {
    const char *path;
    const char *task;   /* name */
    const char *folder; /* the task's: `path` or, for checkpoint-N, above it */
    icma_identity home; /* of `folder` */
    bool has_step;
    uint64_t step;
    unsigned depth;
    bool in_archive;
    bool holds_adapter; /* the folder has one: those in folders below it are its named ones */
    const char *owner;  /* the task whose named adapter this is, or NULL */
} icma_place;

typedef struct icma_found {
    char *task;
    char *owner; /* the task whose named adapter it is, or NULL */
    char *folder;
    icma_identity home;
    bool plain; /* a file that is not its folder's adapter */
    icma_input_checkpoint checkpoint;
} icma_found;

/* A folder behind a link. Owns the strings of `here`. */
typedef struct icma_deferred {
    char *path, *task, *folder, *owner;
    icma_identity id;
    icma_place here;
} icma_deferred;

typedef struct icma_finder {
    icma_found *found;
    size_t found_count, found_capacity;
    icma_input_skip *skips;
    size_t skip_count, skip_capacity;
    icma_deferred *deferred; /* folders behind links, searched last */
    size_t deferred_count, deferred_capacity;
    icma_identity *visited; /* hash table with open addressing; a free slot has inode 0 and device 0 */
    size_t visited_count, visited_capacity;
    const icma_input_options *options;
    icma_spool *spool; /* what archives were unpacked to; owned; NULL: none yet */
    bool named;        /* the file at hand was named by the user: what would be a skip is an error */
    icma_error *error;
} icma_finder;

/* Raises ICMA_E_MEMORY. */
icma_status icma_finder_no_memory(const icma_finder *f);
/* Makes f->spool, if there is none yet. */
icma_status icma_finder_need_spool(icma_finder *f);
/* Makes room for one element more; NULL when memory is short, and `list` is as it was. */
void *icma_finder_grow(void *list, size_t count, size_t *capacity, size_t width);
/* Not an adapter that we can take, for `reason`: a skip or, where the user named the file, an error. */
icma_status icma_finder_skip(icma_finder *f, icma_status status, const char *path, const char *reason);
bool icma_same_identity(icma_identity a, icma_identity b);
/* *first: whether the folder was not seen before. Each is searched once, which ends loops of links, and
 * ladders of links that would double the work with each rung. */
icma_status icma_finder_visit(icma_finder *f, icma_identity folder, bool *first);
/* Sorts what was found into tasks with their conditions; input_tasks.c. On failure the caller frees `out`. */
icma_status icma_finder_gather(icma_finder *f, icma_inputs *out);
/* Where the task's own adapter, its last checkpoint without a number, is its last numbered one byte for byte,
 * takes it away and puts its side files to that one's; input_final.c. `folders`: none of them is a plain
 * file. */
icma_status icma_finder_merge_final(const icma_finder *f, icma_input_task *task, bool folders);
void icma_finder_free(icma_finder *f);
void icma_deferred_free(icma_deferred *deferred);
void icma_checkpoint_free(icma_input_checkpoint *checkpoint);
void icma_skips_free(icma_input_skip *skips, size_t count);

typedef enum icma_entry_kind {
    ICMA_ENTRY_FILE,
    ICMA_ENTRY_FOLDER,
    ICMA_ENTRY_SPECIAL,
    ICMA_ENTRY_NOWHERE
} icma_entry_kind;

typedef struct icma_entry {
    char *name;
    icma_entry_kind kind; /* of what a link leads to */
    bool link;
    icma_identity id;
    uint64_t size;
} icma_entry;

typedef struct icma_listing {
    icma_entry *list; /* natural order of names */
    size_t count, capacity;
} icma_listing;

/* What is at a path, in the file system or in a published spool; ICMA_ENTRY_NOWHERE: errno says why. */
icma_entry_kind icma_path_look(const char *path, icma_identity *id);
/* Of a folder in a published spool; zeros where none has it. */
icma_identity icma_path_spooled(const char *path);
/* Hidden entries are left out. *problem is errno where the folder cannot be read. */
icma_status icma_listing_read(icma_finder *f, const char *path, icma_listing *out, int *problem);
void icma_listing_free(icma_listing *entries);

#endif
