/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The archive as a container: header, 64-byte aligned immutable sections, index, footer. It knows where
 * sections lie, whom they belong to and that their bytes are intact; what is inside them is codec/'s
 * business. Byte layout: spec/icma-format.md, chapter 3.
 */
#ifndef ICMA_CONTAINER_H
#define ICMA_CONTAINER_H

#include "bytes.h"
#include "file.h"

enum {
    ICMA_FORMAT_VERSION = 0,
    ICMA_MAX_TASKS = 131072,
    ICMA_MAX_GROUPS = 65536,
    ICMA_MAX_SECTIONS = 1 << 22,
    ICMA_MAX_INDEX = 1 << 30, /* bytes, before compression */
    ICMA_SECTION_ALIGNMENT = 64,
};
#define ICMA_NO_OWNER UINT32_MAX                 /* group or task of a section that belongs to none */
#define ICMA_MAX_SECTION_RAW (UINT64_C(1) << 40) /* so that sums over all sections cannot overflow */

/* Kinds of section (spec 3.4). `first`/`count` mean what each kind says. */
typedef enum icma_section_kind {
    ICMA_SECTION_SIGNATURE = 1, /* group: the safetensors header that all its checkpoints share */
    ICMA_SECTION_GENERATOR = 2, /* group: architecture, standardisation, trunk */
    ICMA_SECTION_HEAD = 3,      /* group: basis rows of the tensors first .. first + count - 1 */
    ICMA_SECTION_TASK = 4,      /* group, task: the table of its `count` checkpoints */
    ICMA_SECTION_TEXTS = 5,     /* group, task: other headers, side files (verbatim) */
    ICMA_SECTION_VERBATIM =
        6, /* group, task: tensors not modelled, of checkpoints first .. first + count - 1 */
    ICMA_SECTION_RECORD = 7,    /* group: training record and measured errors, JSON; optional */
    ICMA_SECTION_CONDITION = 8, /* group, task: condition vector */
    ICMA_SECTION_RESIDUAL = 9,  /* group, task: residuals of checkpoints first .. first + count - 1 */
    ICMA_SECTION_LINK = 10,     /* group, task: lossless links of checkpoints first .. first + count - 1 */
} icma_section_kind;

typedef enum icma_section_coding {
    ICMA_CODING_RAW = 0,  /* stored as they are */
    ICMA_CODING_ZSTD = 1, /* one zstd frame */
} icma_section_coding;

enum { ICMA_SECTION_OPTIONAL = 1 }; /* flag: a reader that does not know the kind may skip the section */

/* first + count never exceeds 2^32 - 1. */
typedef struct icma_section {
    uint64_t offset;      /* from the start of the file; a multiple of 64 */
    uint64_t stored_size; /* at least 1; with ICMA_CODING_ZSTD less than raw_size */
    uint64_t raw_size;    /* at least 1 */
    uint64_t hash;        /* XXH3-64 of the stored bytes */
    uint16_t kind;
    uint8_t coding;
    uint8_t flags;
    uint32_t group; /* or ICMA_NO_OWNER */
    uint32_t task;  /* or ICMA_NO_OWNER */
    uint32_t first;
    uint32_t count;
} icma_section;

/* --- reading
 * --------------------------------------------------------------------------------------------------- */

typedef struct icma_container icma_container;

/* Opens and checks header, footer and index (and, of the sections, that they tile the file: no holes, no
 * overlap; zero padding is checked when a section is loaded). Every group and task has at least one section,
 * so the counts are never more than the file's size / 64. Not an archive: ICMA_E_FORMAT; another version or
 * an unknown required feature, kind, flag, coding or reserved bit: ICMA_E_UNSUPPORTED; over a limit of
 * spec 3.8: ICMA_E_LIMIT; everything else that is wrong: ICMA_E_CORRUPT. */
icma_status icma_container_open(const char *path, icma_container **out, icma_error *error);
/* The same over bytes in memory, which must outlive the container. */
icma_status icma_container_open_memory(const void *data, size_t size, icma_container **out,
                                       icma_error *error);
void icma_container_close(icma_container *container); /* NULL is fine */

const char *icma_container_path(const icma_container *container);    /* "(memory)" for open_memory */
uint64_t icma_container_size(const icma_container *container);       /* of the whole file */
/* The footer's hash, by which an archive can be told from others: the footer has the index's hash, and the index those of all sections. */
uint64_t icma_container_hash(const icma_container *container);
uint64_t icma_container_index_size(const icma_container *container); /* header, index, footer and padding:
                                                                        everything that is not a section */
size_t icma_container_section_count(const icma_container *container);
const icma_section *icma_container_section(const icma_container *container, size_t index);
size_t icma_container_task_count(const icma_container *container);
const char *icma_container_task_name(const icma_container *container, size_t task);
size_t icma_container_group_count(const icma_container *container);
/* The first section with this kind, group and task (ICMA_NO_OWNER included); NULL if none. Sections are
 * sorted by (kind, group, task, first), so the answer's successors are *answer + 1 while they match; found by
 * bisection. */
const icma_section *icma_container_find(const icma_container *container, uint16_t kind, uint32_t group,
                                        uint32_t task);
/* The sections of one (kind, group, task): *first points at the first, returns how many. */
size_t icma_container_range(const icma_container *container, uint16_t kind, uint32_t group, uint32_t task,
                            const icma_section **first);

/* Loads one section: reads, compares the checksum and the padding after it, decompresses. *out (owned by the
 * caller) has raw_size bytes. raw_size over `max_raw`: ICMA_E_LIMIT before anything is
 * allocated. Thread-safe. */
icma_status icma_container_load(icma_container *container, const icma_section *section, size_t max_raw,
                                uint8_t **out, icma_error *error);
/* Checksum and padding only, in bounded memory. */
icma_status icma_container_check(icma_container *container, const icma_section *section, icma_error *error);

/* --- writing
 * --------------------------------------------------------------------------------------------------- */

typedef struct icma_container_writer icma_container_writer;

/* Starts an archive that will appear at `path` on commit (see icma_output_create). */
icma_status icma_container_create(const char *path, bool overwrite, icma_container_writer **out,
                                  icma_error *error);
/* Appends a section. size must not be 0: what has no bytes has no section. kind, group, task, first, count
 * and flags of `section` are the caller's; the rest is filled in and given back in it. Each (kind, group,
 * task, first) may come once. `level` 0 stores raw, 1..19 tries zstd and keeps it only where it is smaller.
 */
icma_status icma_container_add(icma_container_writer *writer, icma_section *section, const void *data,
                               size_t size, int level, icma_error *error);
/* Appends a section of another archive with the bytes that it has there, and its coding and checksum, which is compared on the way, like the padding after it (ICMA_E_CORRUPT). Group and task are those that it belongs to
 * here. In bounded memory. */
icma_status icma_container_copy(icma_container_writer *writer, icma_container *from, const icma_section *section, uint32_t group, uint32_t task, icma_error *error);
uint64_t icma_container_written(const icma_container_writer *writer); /* bytes so far */
/* The archive will have the permissions of the file that it replaces. */
void icma_container_keep_mode(icma_container_writer *writer, const icma_file *like);
/* Whether names can be those of an archive's tasks (below): ICMA_E_USAGE if not. `path` is for the message. */
icma_status icma_container_check_names(const char *const *task_names, size_t task_count, const char *path, icma_error *error);
/* Writes index and footer. Names are the tasks', in order: safe path segments (icma_path_segment_is_safe), no
 * two of them equal when ASCII letters lose their case. Each group and task must have a section, and each
 * section's group and task must be under the counts or ICMA_NO_OWNER. ICMA_E_USAGE otherwise; ICMA_E_LIMIT if copied sections are over the limit of spec 3.6. The writer
 * stays: */
icma_status icma_container_finish(icma_container_writer *writer, const char *const *task_names,
                                  size_t task_count, size_t group_count, icma_error *error);
const char *
icma_container_temporary(const icma_container_writer *writer); /* to open and check what was written */
icma_status icma_container_commit(icma_container_writer *writer, icma_error *error); /* frees in every case */
void icma_container_abandon(icma_container_writer *writer);                          /* NULL is fine */

#endif
