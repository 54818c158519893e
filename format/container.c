/* SPDX-License-Identifier: Apache-2.0 */
/* Byte layout: spec/icma-format.md, chapter 3. */
#include "container.h"

#include "compress.h"
#include "memory.h"
#include "sort.h"

#include <inttypes.h>
#include <string.h>

enum {
    HEADER_SIZE = 64,
    FOOTER_SIZE = 64,
    FRAME_HASHED = 56, /* bytes of header and footer before their own hash */
    INDEX_HEAD_SIZE = 16,
    ENTRY_SIZE = 56,
    MAX_NAME = 255,
    ALIGNMENT = ICMA_SECTION_ALIGNMENT,
    INDEX_LEVEL = 12,
};

static const uint8_t header_magic[8] = {0x89, 'I', 'C', 'M', 'A', 0x0d, 0x0a, 0x1a};
static const uint8_t footer_magic[8] = {0x8a, 'I', 'C', 'M', 'A', 'e', 'n', 'd'};
static const uint8_t zeros[ALIGNMENT];

static uint64_t padding_after(uint64_t size) {
    return (ALIGNMENT - size % ALIGNMENT) % ALIGNMENT;
}

static bool all_zero(const uint8_t *bytes, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (bytes[i])
            return false;
    return true;
}

static bool kind_is_known(uint16_t kind) {
    return kind >= ICMA_SECTION_SIGNATURE && kind <= ICMA_SECTION_LINK;
}

static int compare_u64(uint64_t a, uint64_t b) {
    return (a > b) - (a < b);
}

/* By (kind, group, task). */
static int compare_owners(const icma_section *a, const icma_section *b) {
    if (a->kind != b->kind)
        return compare_u64(a->kind, b->kind);
    if (a->group != b->group)
        return compare_u64(a->group, b->group);
    return compare_u64(a->task, b->task);
}

static int compare_sections(const void *a, const void *b, const void *context) {
    (void)context;
    const icma_section *x = a, *y = b;
    int order = compare_owners(x, y);
    return order ? order : compare_u64(x->first, y->first);
}

/* --- task names ---------------------------------------------------------------------------------------- */

typedef struct folded_name {
    uint64_t hash; /* of the name in lower case */
    uint32_t task;
} folded_name;

static uint8_t fold(char c) {
    return (uint8_t)(c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c);
}

static uint64_t hash_folded(const char *name) {
    uint8_t folded[MAX_NAME];
    size_t length = 0;
    for (; name[length] && length < sizeof folded; length++)
        folded[length] = fold(name[length]);
    return icma_hash(folded, length);
}

static int compare_folded(const char *a, const char *b) {
    for (; *a && fold(*a) == fold(*b); a++, b++)
        ;
    return fold(*a) - fold(*b);
}

/* By hash, and where hashes are equal by the folded names themselves, so that equal names end up side by
 * side whatever collides. */
static int compare_folded_names(const void *a, const void *b, const void *context) {
    const folded_name *x = a, *y = b;
    const char *const *names = context;
    if (x->hash != y->hash)
        return compare_u64(x->hash, y->hash);
    int order = compare_folded(names[x->task], names[y->task]);
    return order ? order : compare_u64(x->task, y->task);
}

/* Names become folders, on file systems that ignore case too. */
static icma_status check_names(const char *const *names, size_t count, icma_status wrong, const char *path,
                               icma_error *error) {
    for (size_t i = 0; i < count; i++)
        if (!icma_path_segment_is_safe(names[i]))
            return icma_fail(error, wrong, path,
                             "task name \"%.255s\" cannot be a folder's name; rename the task", names[i]);
    if (count < 2)
        return ICMA_OK;
    folded_name *folded = icma_alloc_array(count, sizeof *folded);
    if (!folded)
        return icma_fail(error, ICMA_E_MEMORY, path, "not enough memory for %zu task names", count);
    for (size_t i = 0; i < count; i++)
        folded[i] = (folded_name){hash_folded(names[i]), (uint32_t)i};
    icma_sort(folded, count, sizeof *folded, compare_folded_names, names);
    icma_status status = ICMA_OK;
    for (size_t i = 1; i < count && status == ICMA_OK; i++) {
        const char *a = names[folded[i - 1].task], *b = names[folded[i].task];
        if (folded[i - 1].hash == folded[i].hash && compare_folded(a, b) == 0)
            status = icma_fail(error, wrong, path,
                               "task names \"%.200s\" and \"%.200s\" do not differ but for case; rename one",
                               a, b);
    }
    icma_free(folded);
    return status;
}

icma_status icma_container_check_names(const char *const *names, size_t count, const char *path, icma_error *error) {
    return check_names(names, count, ICMA_E_USAGE, path, error);
}

/* --- sections as a whole ------------------------------------------------------------------------------- */

/* Owners under the counts, and each group and task with a section of its own. */
static icma_status check_owners(const icma_section *sections, size_t count, size_t groups, size_t tasks,
                                icma_status wrong, const char *path, icma_error *error) {
    icma_status status = ICMA_OK;
    if (groups + tasks == 0 && count == 0)
        return ICMA_OK;
    uint8_t *seen = icma_alloc_zeroed(groups + tasks + 1, 1);
    if (!seen)
        return icma_fail(error, ICMA_E_MEMORY, path, "not enough memory for %zu tasks", tasks);
    for (size_t i = 0; i < count && status == ICMA_OK; i++) {
        const icma_section *s = &sections[i];
        if ((s->group != ICMA_NO_OWNER && s->group >= groups) ||
            (s->task != ICMA_NO_OWNER && s->task >= tasks))
            status = icma_fail(error, wrong, path,
                               "section %zu belongs to a group or task that does not exist", i);
        else if (s->count > UINT32_MAX - s->first)
            status = icma_fail(error, wrong, path, "section %zu covers a range that overflows", i);
        else {
            seen[s->group == ICMA_NO_OWNER ? groups + tasks : s->group] = 1;
            seen[s->task == ICMA_NO_OWNER ? groups + tasks : groups + s->task] = 1;
        }
    }
    for (size_t i = 0; i < groups + tasks && status == ICMA_OK; i++)
        if (!seen[i])
            status = icma_fail(error, wrong, path, "%s %zu has no section", i < groups ? "group" : "task",
                               i < groups ? i : i - groups);
    icma_free(seen);
    return status;
}

/* What all compressed sections but verbatim ones may become together, in a file of that size (spec 3.6): so that what a reader does before it
 * decodes anything stays in proportion to the file. Sizes of files are under 2^63, of sections at most 2^40. */
static uint64_t most_unpacked(uint64_t file_size) {
    return file_size < UINT64_MAX / 4 ? (UINT64_C(1) << 20) + 3 * file_size : UINT64_MAX;
}

static bool is_counted(const icma_section *section) {
    return section->coding == ICMA_CODING_ZSTD && section->kind != ICMA_SECTION_VERBATIM;
}

typedef struct span {
    uint64_t begin;
    uint64_t size;
} span;

static int compare_spans(const void *a, const void *b, const void *context) {
    (void)context;
    const span *x = a, *y = b;
    return compare_u64(x->begin, y->begin);
}

/* Sections and their padding must fill the file from the header to `end`, each byte once. */
static icma_status check_tiling(const icma_section *sections, size_t count, uint64_t end, const char *path,
                                icma_error *error) {
    uint64_t at = HEADER_SIZE;
    span *spans = count ? icma_alloc_array(count, sizeof *spans) : NULL;
    if (count && !spans)
        return icma_fail(error, ICMA_E_MEMORY, path, "not enough memory for %zu sections", count);
    for (size_t i = 0; i < count; i++)
        spans[i] = (span){sections[i].offset, sections[i].stored_size};
    if (count)
        icma_sort(spans, count, sizeof *spans, compare_spans, NULL);
    icma_status status = ICMA_OK;
    for (size_t i = 0; i < count && status == ICMA_OK; i++) {
        if (spans[i].begin != at)
            status = icma_fail(error, ICMA_E_CORRUPT, path, "%s before the section at offset %" PRIu64,
                               spans[i].begin < at ? "an overlap" : "a hole", spans[i].begin);
        else if (spans[i].size > end - at) /* `end` is a multiple of 64, so the padding fits too */
            status = icma_fail(error, ICMA_E_CORRUPT, path,
                               "the section at offset %" PRIu64 " reaches into the index", at);
        else
            at += spans[i].size + padding_after(spans[i].size);
    }
    icma_free(spans);
    if (status == ICMA_OK && at != end)
        status = icma_fail(error, ICMA_E_CORRUPT, path, "a hole before the index");
    return status;
}

/* --- reading ------------------------------------------------------------------------------------------- */

struct icma_container {
    icma_file *file;       /* or NULL: */
    const uint8_t *memory; /* borrowed */
    const char *path;
    uint64_t size;
    uint64_t hash; /* of the footer */
    uint64_t sections_end; /* where the index begins */
    icma_section *sections;
    size_t section_count;
    const char **names;
    char *name_bytes;
    size_t task_count;
    size_t group_count;
};

static icma_status read_at(icma_container *container, uint64_t offset, void *out, size_t size,
                           icma_error *error) {
    if (container->file)
        return icma_file_read(container->file, offset, out, size, error);
    if (offset > container->size || size > container->size - offset)
        return icma_fail(error, ICMA_E_CORRUPT, container->path, "ends before the data it announces");
    if (size)
        memcpy(out, container->memory + offset, size);
    return ICMA_OK;
}

static icma_status read_header(icma_container *container, icma_error *error) {
    uint8_t header[HEADER_SIZE];
    const char *path = container->path;
    size_t size = container->size < HEADER_SIZE ? (size_t)container->size : HEADER_SIZE;
    icma_status status = read_at(container, 0, header, size, error);
    if (status != ICMA_OK)
        return status;
    if (size < sizeof header_magic || memcmp(header, header_magic, sizeof header_magic) != 0)
        return icma_fail(error, ICMA_E_FORMAT, path, "not an icma archive; icma pack makes one of adapters");
    if (size < HEADER_SIZE)
        return icma_fail(error, ICMA_E_CORRUPT, path, "truncated; get it again");
    if (icma_load_u64(header + FRAME_HASHED) != icma_hash(header, FRAME_HASHED))
        return icma_fail(error, ICMA_E_CORRUPT, path, "the header's checksum does not match; get it again");
    unsigned version = icma_load_u16(header + 8);
    if (version != ICMA_FORMAT_VERSION)
        return icma_fail(error, ICMA_E_UNSUPPORTED, path,
                         "format version %u, this icma reads version %d; use a newer icma", version,
                         (int)ICMA_FORMAT_VERSION);
    /* Unknown optional features (offset 16) may be ignored by definition. */
    if (icma_load_u16(header + 10) || icma_load_u32(header + 12) || !all_zero(header + 20, FRAME_HASHED - 20))
        return icma_fail(error, ICMA_E_UNSUPPORTED, path,
                         "it requires features that this icma does not have; use a newer icma");
    return ICMA_OK;
}

typedef struct index_place {
    uint64_t offset;
    uint64_t stored_size;
    uint64_t raw_size;
    uint64_t hash;
    uint8_t coding;
} index_place;

/* No index is larger than this: each section takes at least 64 bytes of the file, and each task at least one
 * section, so a short file cannot make us allocate for a long index. */
static uint64_t largest_index(uint64_t file_size) {
    uint64_t sections = file_size / ALIGNMENT;
    uint64_t tasks = sections < ICMA_MAX_TASKS ? sections : ICMA_MAX_TASKS;
    return INDEX_HEAD_SIZE + sections * ENTRY_SIZE + tasks * (MAX_NAME + 1);
}

static icma_status check_place(const index_place *place, uint64_t size, const char *path, icma_error *error) {
    uint64_t room = size - HEADER_SIZE - FOOTER_SIZE;
    if (place->offset < HEADER_SIZE || place->offset % ALIGNMENT || place->offset - HEADER_SIZE > room ||
        place->stored_size > room - (place->offset - HEADER_SIZE))
        return icma_fail(error, ICMA_E_CORRUPT, path, "the footer points outside the file");
    uint64_t rest = room - (place->offset - HEADER_SIZE) - place->stored_size;
    if (rest != padding_after(place->stored_size))
        return icma_fail(error, ICMA_E_CORRUPT, path, "a hole between index and footer");
    if (place->coding > ICMA_CODING_ZSTD)
        return icma_fail(error, ICMA_E_UNSUPPORTED, path, "unknown coding of the index; use a newer icma");
    if (place->raw_size > ICMA_MAX_INDEX)
        return icma_fail(error, ICMA_E_LIMIT, path, "an index of %" PRIu64 " bytes; the limit is %d",
                         place->raw_size, (int)ICMA_MAX_INDEX);
    bool agrees = place->coding == ICMA_CODING_RAW ? place->stored_size == place->raw_size
                                                   : place->stored_size < place->raw_size;
    if (!agrees || place->stored_size == 0 || place->raw_size < INDEX_HEAD_SIZE ||
        place->raw_size > largest_index(size))
        return icma_fail(error, ICMA_E_CORRUPT, path, "the index cannot have the size that the footer tells");
    return ICMA_OK;
}

static icma_status read_footer(icma_container *container, index_place *place, icma_error *error) {
    uint8_t footer[FOOTER_SIZE];
    const char *path = container->path;
    uint64_t size = container->size;
    if (size % ALIGNMENT || size < HEADER_SIZE + ALIGNMENT + FOOTER_SIZE)
        return icma_fail(error, ICMA_E_CORRUPT, path, "truncated; get it again");
    icma_status status = read_at(container, size - FOOTER_SIZE, footer, FOOTER_SIZE, error);
    if (status != ICMA_OK)
        return status;
    if (memcmp(footer + 48, footer_magic, sizeof footer_magic) != 0 ||
        icma_load_u64(footer + FRAME_HASHED) != icma_hash(footer, FRAME_HASHED))
        return icma_fail(error, ICMA_E_CORRUPT, path,
                         "no footer at its end: truncated or damaged; get it again");
    container->hash = icma_load_u64(footer + FRAME_HASHED);
    *place = (index_place){icma_load_u64(footer), icma_load_u64(footer + 8), icma_load_u64(footer + 16),
                           icma_load_u64(footer + 24), footer[40]};
    if (!all_zero(footer + 41, 7))
        return icma_fail(error, ICMA_E_UNSUPPORTED, path, "unknown bits in the footer; use a newer icma");
    if (icma_load_u64(footer + 32) != size)
        return icma_fail(error, ICMA_E_CORRUPT, path, "not as long as its footer tells; get it again");
    return check_place(place, size, path, error);
}

/* *raw (owned by the caller) gets the index's raw_size bytes. */
static icma_status read_index(icma_container *container, const index_place *place, uint8_t **raw,
                              icma_error *error) {
    const char *path = container->path;
    uint8_t *plain = NULL;
    size_t stored_size = (size_t)place->stored_size;
    size_t padded = stored_size + (size_t)padding_after(stored_size);
    icma_status status = ICMA_OK;
    *raw = NULL;
    uint8_t *stored = icma_alloc(padded);
    if (!stored)
        return icma_fail(error, ICMA_E_MEMORY, path, "not enough memory for an index of %zu bytes", padded);
    status = read_at(container, place->offset, stored, padded, error);
    if (status != ICMA_OK)
        goto fail;
    if (icma_hash(stored, stored_size) != place->hash ||
        !all_zero(stored + stored_size, padded - stored_size)) {
        status = icma_fail(error, ICMA_E_CORRUPT, path, "the index's checksum does not match; get it again");
        goto fail;
    }
    if (place->coding == ICMA_CODING_RAW) {
        *raw = stored;
        return ICMA_OK;
    }
    plain = icma_alloc((size_t)place->raw_size);
    status = plain ? icma_zstd_decompress(stored, stored_size, plain, (size_t)place->raw_size, error)
                   : icma_fail(error, ICMA_E_MEMORY, path,
                               "not enough memory for an index of %" PRIu64 " bytes", place->raw_size);
    if (status != ICMA_OK)
        goto fail;
    icma_free(stored);
    *raw = plain;
    return ICMA_OK;
fail:
    icma_free(plain);
    icma_free(stored);
    return status;
}

static void parse_entry(const uint8_t *entry, icma_section *section) {
    section->offset = icma_load_u64(entry);
    section->stored_size = icma_load_u64(entry + 8);
    section->raw_size = icma_load_u64(entry + 16);
    section->hash = icma_load_u64(entry + 24);
    section->kind = icma_load_u16(entry + 32);
    section->coding = entry[34];
    section->flags = entry[35];
    section->group = icma_load_u32(entry + 36);
    section->task = icma_load_u32(entry + 40);
    section->first = icma_load_u32(entry + 44);
    section->count = icma_load_u32(entry + 48);
}

static icma_status check_section(const icma_section *section, size_t index, const char *path,
                                 icma_error *error) {
    if (section->flags & ~ICMA_SECTION_OPTIONAL || section->coding > ICMA_CODING_ZSTD)
        return icma_fail(error, ICMA_E_UNSUPPORTED, path,
                         "section %zu has an unknown flag or coding; use a newer icma", index);
    if (!kind_is_known(section->kind) && !(section->flags & ICMA_SECTION_OPTIONAL))
        return icma_fail(error, ICMA_E_UNSUPPORTED, path,
                         "section %zu is of unknown kind %u; use a newer icma", index, section->kind);
    if (section->raw_size > ICMA_MAX_SECTION_RAW)
        return icma_fail(error, ICMA_E_LIMIT, path, "section %zu has %" PRIu64 " bytes; the limit is 2^40",
                         index, section->raw_size);
    bool agrees = section->coding == ICMA_CODING_RAW ? section->stored_size == section->raw_size
                                                     : section->stored_size < section->raw_size;
    if (!agrees || section->stored_size == 0)
        return icma_fail(error, ICMA_E_CORRUPT, path, "section %zu has impossible sizes", index);
    return ICMA_OK;
}

/* `table` holds the entries one after the other. */
static icma_status parse_entries(icma_container *container, const uint8_t *table, size_t count,
                                 icma_error *error) {
    const char *path = container->path;
    uint64_t unpacked = 0; /* 2^22 sections of 2^40 bytes do not overflow it */
    for (size_t i = 0; i < count; i++) {
        const uint8_t *entry = table + i * ENTRY_SIZE;
        icma_section *section = &container->sections[i];
        parse_entry(entry, section);
        if (icma_load_u32(entry + 52))
            return icma_fail(error, ICMA_E_UNSUPPORTED, path,
                             "section %zu has unknown bits; use a newer icma", i);
        icma_status status = check_section(section, i, path, error);
        if (status != ICMA_OK)
            return status;
        if (i && compare_sections(section - 1, section, NULL) >= 0)
            return icma_fail(error, ICMA_E_CORRUPT, path, "section %zu is out of order", i);
        unpacked += is_counted(section) ? section->raw_size : 0;
    }
    if (unpacked > most_unpacked(container->size))
        return icma_fail(error, ICMA_E_LIMIT, path, "its compressed sections would become %" PRIu64 " bytes; a file of its size may have %" PRIu64,
                         unpacked, most_unpacked(container->size));
    return ICMA_OK;
}

static icma_status parse_sections(icma_container *container, icma_cursor *cursor, size_t count,
                                  icma_error *error) {
    const char *path = container->path;
    if (cursor->left / ENTRY_SIZE < count)
        return icma_fail(error, ICMA_E_CORRUPT, path, "the index is shorter than its %zu sections", count);
    if (count == 0)
        return ICMA_OK;
    uint8_t *table = icma_alloc_array(count, ENTRY_SIZE);
    container->sections = icma_alloc_array(count, sizeof *container->sections);
    icma_status status = ICMA_E_MEMORY;
    if (table && container->sections) {
        icma_ungroup_bytes(icma_read_bytes(cursor, count * ENTRY_SIZE), count, ENTRY_SIZE, table);
        container->section_count = count;
        status = parse_entries(container, table, count, error);
    }
    icma_free(table);
    return status == ICMA_E_MEMORY
               ? icma_fail(error, status, path, "not enough memory for %zu sections", count)
               : status;
}

/* The rest of the index: a length byte and the name, task by task. Each length byte but the first becomes
 * the NUL of the name before it. */
static icma_status parse_names(icma_container *container, icma_cursor *cursor, size_t count,
                               icma_error *error) {
    const char *path = container->path;
    size_t size = cursor->left;
    if (count > size)
        return icma_fail(error, ICMA_E_CORRUPT, path, "the index is shorter than its %zu task names", count);
    container->task_count = count;
    if (count) {
        container->names = icma_alloc_array(count, sizeof *container->names);
        container->name_bytes = icma_copy_text((const char *)cursor->at, size);
        if (!container->names || !container->name_bytes)
            return icma_fail(error, ICMA_E_MEMORY, path, "not enough memory for %zu task names", count);
    }
    for (size_t i = 0; i < count; i++) {
        char *length_byte = container->name_bytes + (size - cursor->left);
        size_t length = icma_read_u8(cursor);
        const uint8_t *name = icma_read_bytes(cursor, length);
        if (!name || memchr(name, 0, length))
            return icma_fail(error, ICMA_E_CORRUPT, path, "task name %zu is cut off or holds a NUL", i);
        *length_byte = '\0';
        container->names[i] = length_byte + 1;
    }
    if (!icma_cursor_finished(cursor))
        return icma_fail(error, ICMA_E_CORRUPT, path, "something follows the task names in the index");
    return check_names(container->names, count, ICMA_E_CORRUPT, path, error);
}

static icma_status check_counts(uint32_t sections, uint32_t groups, uint32_t tasks, const char *path,
                                icma_error *error) {
    if (sections > ICMA_MAX_SECTIONS || groups > ICMA_MAX_GROUPS || tasks > ICMA_MAX_TASKS)
        return icma_fail(
            error, ICMA_E_LIMIT, path,
            "%" PRIu32 " sections, %" PRIu32 " groups, %" PRIu32 " tasks; the limits are %d, %d and %d",
            sections, groups, tasks, (int)ICMA_MAX_SECTIONS, (int)ICMA_MAX_GROUPS, (int)ICMA_MAX_TASKS);
    if (groups > sections || tasks > sections)
        return icma_fail(error, ICMA_E_CORRUPT, path, "more groups or tasks than sections");
    return ICMA_OK;
}

static icma_status parse_index(icma_container *container, const uint8_t *raw, size_t size,
                               icma_error *error) {
    const char *path = container->path;
    icma_cursor cursor = icma_cursor_over(raw, size);
    uint32_t sections = icma_read_u32(&cursor), groups = icma_read_u32(&cursor),
             tasks = icma_read_u32(&cursor);
    if (icma_read_u32(&cursor))
        return icma_fail(error, ICMA_E_UNSUPPORTED, path, "unknown bits in the index; use a newer icma");
    icma_status status = check_counts(sections, groups, tasks, path, error);
    if (status == ICMA_OK)
        status = parse_sections(container, &cursor, sections, error);
    if (status == ICMA_OK)
        status = parse_names(container, &cursor, tasks, error);
    if (status == ICMA_OK)
        status = check_owners(container->sections, sections, groups, tasks, ICMA_E_CORRUPT, path, error);
    if (status == ICMA_OK)
        status = check_tiling(container->sections, sections, container->sections_end, path, error);
    container->group_count = groups;
    return status;
}

static icma_status open_any(icma_container *container, icma_error *error) {
    index_place place = {0};
    uint8_t *raw = NULL;
    icma_status status = read_header(container, error);
    if (status == ICMA_OK)
        status = read_footer(container, &place, error);
    if (status == ICMA_OK) {
        container->sections_end = place.offset;
        status = read_index(container, &place, &raw, error);
    }
    if (status == ICMA_OK)
        status = parse_index(container, raw, (size_t)place.raw_size, error);
    icma_free(raw);
    if (status != ICMA_OK)
        icma_error_set_file(error, container->path);
    return status;
}

static icma_status fail_to_open(icma_error *error, const char *path) {
    return icma_fail(error, ICMA_E_MEMORY, path, "not enough memory to open it");
}

icma_status icma_container_open(const char *path, icma_container **out, icma_error *error) {
    *out = NULL;
    icma_container *container = icma_alloc_zeroed(1, sizeof *container);
    if (!container)
        return fail_to_open(error, path);
    icma_status status = icma_file_open(path, &container->file, error);
    if (status == ICMA_OK) {
        container->path = icma_file_path(container->file);
        container->size = icma_file_size(container->file);
        status = open_any(container, error);
    }
    if (status != ICMA_OK) {
        icma_container_close(container);
        return status;
    }
    *out = container;
    return ICMA_OK;
}

icma_status icma_container_open_memory(const void *data, size_t size, icma_container **out,
                                       icma_error *error) {
    *out = NULL;
    icma_container *container = icma_alloc_zeroed(1, sizeof *container);
    if (!container)
        return fail_to_open(error, "(memory)");
    container->path = "(memory)";
    container->memory = data;
    container->size = size;
    icma_status status = open_any(container, error);
    if (status != ICMA_OK) {
        icma_container_close(container);
        return status;
    }
    *out = container;
    return ICMA_OK;
}

void icma_container_close(icma_container *container) {
    if (!container)
        return;
    icma_file_close(container->file);
    icma_free(container->sections);
    icma_free((void *)container->names);
    icma_free(container->name_bytes);
    icma_free(container);
}

const char *icma_container_path(const icma_container *container) {
    return container->path;
}

uint64_t icma_container_hash(const icma_container *container) {
    return container->hash;
}

uint64_t icma_container_size(const icma_container *container) {
    return container->size;
}

uint64_t icma_container_index_size(const icma_container *container) {
    uint64_t rest = container->size;
    for (size_t i = 0; i < container->section_count; i++)
        rest -= container->sections[i].stored_size;
    return rest;
}

size_t icma_container_section_count(const icma_container *container) {
    return container->section_count;
}

const icma_section *icma_container_section(const icma_container *container, size_t index) {
    return index < container->section_count ? &container->sections[index] : NULL;
}

size_t icma_container_task_count(const icma_container *container) {
    return container->task_count;
}

const char *icma_container_task_name(const icma_container *container, size_t task) {
    return task < container->task_count ? container->names[task] : NULL;
}

size_t icma_container_group_count(const icma_container *container) {
    return container->group_count;
}

/* The first section whose (kind, group, task) is at least `wanted`'s, or, with `after`, more. */
static size_t bisect(const icma_container *container, const icma_section *wanted, bool after) {
    size_t low = 0, high = container->section_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = compare_owners(&container->sections[middle], wanted);
        if (order < 0 || (after && order == 0))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

size_t icma_container_range(const icma_container *container, uint16_t kind, uint32_t group, uint32_t task,
                            const icma_section **first) {
    icma_section wanted = {.kind = kind, .group = group, .task = task};
    size_t begin = bisect(container, &wanted, false), end = bisect(container, &wanted, true);
    *first = begin < end ? &container->sections[begin] : NULL;
    return end - begin;
}

const icma_section *icma_container_find(const icma_container *container, uint16_t kind, uint32_t group,
                                        uint32_t task) {
    const icma_section *first;
    icma_container_range(container, kind, group, task, &first);
    return first;
}

static icma_status fail_section(icma_container *container, const icma_section *section, icma_status status,
                                const char *problem, icma_error *error) {
    return icma_fail(error, status, container->path, "section of kind %u at offset %" PRIu64 ": %s",
                     section->kind, section->offset, problem);
}

static icma_status check_padding(icma_container *container, const icma_section *section, icma_error *error) {
    uint8_t padding[ALIGNMENT];
    size_t size = (size_t)padding_after(section->stored_size);
    if (size == 0)
        return ICMA_OK;
    icma_status status = read_at(container, section->offset + section->stored_size, padding, size, error);
    if (status == ICMA_OK && !all_zero(padding, size))
        status = fail_section(container, section, ICMA_E_CORRUPT, "padding that is not zero", error);
    return status;
}

static icma_status read_stored(icma_container *container, const icma_section *section, uint8_t *out,
                               icma_error *error) {
    size_t size = (size_t)section->stored_size;
    icma_status status = read_at(container, section->offset, out, size, error);
    if (status == ICMA_OK && icma_hash(out, size) != section->hash)
        status = fail_section(container, section, ICMA_E_CORRUPT, "its checksum does not match", error);
    return status == ICMA_OK ? check_padding(container, section, error) : status;
}

static icma_status decompress(icma_container *container, const icma_section *section, const uint8_t *stored,
                              uint8_t *out, icma_error *error) {
    icma_error inner = {0};
    icma_status status =
        icma_zstd_decompress(stored, (size_t)section->stored_size, out, (size_t)section->raw_size, &inner);
    return status == ICMA_OK ? ICMA_OK : fail_section(container, section, status, inner.message, error);
}

icma_status icma_container_load(icma_container *container, const icma_section *section, size_t max_raw,
                                uint8_t **out, icma_error *error) {
    *out = NULL;
    if (section->raw_size > max_raw)
        return fail_section(container, section, ICMA_E_LIMIT, "larger than may be loaded", error);
    bool packed = section->coding == ICMA_CODING_ZSTD;
    uint8_t *raw = icma_alloc((size_t)section->raw_size);
    uint8_t *stored = packed ? icma_alloc((size_t)section->stored_size) : raw;
    icma_status status = raw && stored ? read_stored(container, section, stored, error)
                                       : fail_section(container, section, ICMA_E_MEMORY,
                                                      "not enough memory to load it", error);
    if (status == ICMA_OK && packed)
        status = decompress(container, section, stored, raw, error);
    if (packed)
        icma_free(stored);
    if (status != ICMA_OK) {
        icma_free(raw);
        return status;
    }
    *out = raw;
    return ICMA_OK;
}

typedef struct section_source {
    icma_container *container;
    const icma_section *section;
} section_source;

static icma_status read_section_block(void *context, uint64_t offset, void *out, size_t size,
                                      icma_error *error) {
    const section_source *source = context;
    return read_at(source->container, source->section->offset + offset, out, size, error);
}

icma_status icma_container_check(icma_container *container, const icma_section *section, icma_error *error) {
    section_source source = {container, section};
    uint64_t hash;
    icma_status status = icma_hash_blocks(read_section_block, &source, section->stored_size, &hash, error);
    if (status == ICMA_OK && hash != section->hash)
        status = fail_section(container, section, ICMA_E_CORRUPT, "its checksum does not match", error);
    return status == ICMA_OK ? check_padding(container, section, error) : status;
}

/* --- writing ------------------------------------------------------------------------------------------- */

struct icma_container_writer {
    icma_output *output;
    char *path;
    icma_section *sections;
    size_t count;
    size_t capacity;
    uint64_t unpacked; /* raw bytes of the sections that most_unpacked is about */
};

static icma_status fail_to_write(const icma_container_writer *writer, icma_error *error) {
    return icma_fail(error, ICMA_E_MEMORY, writer->path, "not enough memory to write it");
}

static icma_status write_padded(icma_container_writer *writer, const void *data, size_t size,
                                icma_error *error) {
    icma_status status = icma_output_write(writer->output, data, size, error);
    if (status == ICMA_OK)
        status = icma_output_write(writer->output, zeros, (size_t)padding_after(size), error);
    return status;
}

static icma_status write_header(icma_container_writer *writer, icma_error *error) {
    uint8_t header[HEADER_SIZE] = {0};
    memcpy(header, header_magic, sizeof header_magic);
    icma_store_u16(header + 8, ICMA_FORMAT_VERSION);
    icma_store_u64(header + FRAME_HASHED, icma_hash(header, FRAME_HASHED));
    return icma_output_write(writer->output, header, sizeof header, error);
}

icma_status icma_container_create(const char *path, bool overwrite, icma_container_writer **out,
                                  icma_error *error) {
    *out = NULL;
    icma_container_writer *writer = icma_alloc_zeroed(1, sizeof *writer);
    if (!writer)
        return fail_to_open(error, path);
    writer->path = icma_copy_string(path);
    icma_status status = writer->path ? icma_output_create(path, overwrite, &writer->output, error)
                                      : fail_to_write(writer, error);
    if (status == ICMA_OK)
        status = write_header(writer, error);
    if (status != ICMA_OK) {
        icma_container_abandon(writer);
        return status;
    }
    *out = writer;
    return ICMA_OK;
}

static icma_status reserve_section(icma_container_writer *writer, icma_error *error) {
    if (writer->count == ICMA_MAX_SECTIONS)
        return icma_fail(error, ICMA_E_LIMIT, writer->path, "more than %d sections", (int)ICMA_MAX_SECTIONS);
    if (writer->count < writer->capacity)
        return ICMA_OK;
    size_t capacity = writer->capacity ? 2 * writer->capacity : 16;
    icma_section *sections = icma_resize_array(writer->sections, capacity, sizeof *sections);
    if (!sections)
        return fail_to_write(writer, error);
    writer->sections = sections;
    writer->capacity = capacity;
    return ICMA_OK;
}

static icma_status check_new_section(const icma_container_writer *writer, const icma_section *section,
                                     size_t size, int level, icma_error *error) {
    if (size == 0)
        return icma_fail(error, ICMA_E_USAGE, writer->path, "a section without bytes; leave it out");
    if (level < 0 || level > 19)
        return icma_fail(error, ICMA_E_USAGE, writer->path, "zstd level %d; use 0 to 19", level);
    if ((section->flags & ~ICMA_SECTION_OPTIONAL) || section->count > UINT32_MAX - section->first)
        return icma_fail(error, ICMA_E_USAGE, writer->path,
                         "a section with an unknown flag or impossible range");
    if (size > ICMA_MAX_SECTION_RAW)
        return icma_fail(error, ICMA_E_LIMIT, writer->path, "a section of %zu bytes; the limit is 2^40",
                         size);
    return ICMA_OK;
}

icma_status icma_container_add(icma_container_writer *writer, icma_section *section, const void *data,
                               size_t size, int level, icma_error *error) {
    icma_buffer packed = {0};
    icma_status status = check_new_section(writer, section, size, level, error);
    if (status == ICMA_OK)
        status = reserve_section(writer, error);
    if (status == ICMA_OK && level > 0)
        status = icma_zstd_compress(data, size, level, &packed, error);
    if (status != ICMA_OK)
        goto fail;
    /* The file will be larger still. */
    bool counted = section->kind != ICMA_SECTION_VERBATIM;
    bool pays = level > 0 && packed.size < size &&
                (!counted || writer->unpacked + size <= most_unpacked(icma_output_size(writer->output) + packed.size));
    writer->unpacked += pays && counted ? size : 0;
    const void *stored = pays ? packed.data : data;
    section->offset = icma_output_size(writer->output);
    section->stored_size = pays ? packed.size : size;
    section->raw_size = size;
    section->hash = icma_hash(stored, (size_t)section->stored_size);
    section->coding = pays ? ICMA_CODING_ZSTD : ICMA_CODING_RAW;
    status = write_padded(writer, stored, (size_t)section->stored_size, error);
    if (status != ICMA_OK)
        goto fail;
    writer->sections[writer->count++] = *section;
    icma_buffer_free(&packed);
    return ICMA_OK;
fail:
    icma_error_set_file(error, writer->path);
    icma_buffer_free(&packed);
    return status;
}

typedef struct section_copier {
    section_source source;
    icma_output *output;
} section_copier;

/* Blocks come in order, so that what is hashed is what is written. */
static icma_status copy_section_block(void *context, uint64_t offset, void *out, size_t size, icma_error *error) {
    section_copier *copier = context;
    icma_status status = read_section_block(&copier->source, offset, out, size, error);
    return status == ICMA_OK ? icma_output_write(copier->output, out, size, error) : status;
}

icma_status icma_container_copy(icma_container_writer *writer, icma_container *from, const icma_section *section, uint32_t group, uint32_t task, icma_error *error) {
    section_copier copier = {{from, section}, writer->output};
    icma_section copy = *section;
    uint64_t hash;
    icma_status status = reserve_section(writer, error);
    if (status != ICMA_OK)
        return status;
    copy.offset = icma_output_size(writer->output);
    copy.group = group;
    copy.task = task;
    status = icma_hash_blocks(copy_section_block, &copier, section->stored_size, &hash, error);
    if (status == ICMA_OK && hash != section->hash)
        status = fail_section(from, section, ICMA_E_CORRUPT, "its checksum does not match", error);
    if (status == ICMA_OK)
        status = check_padding(from, section, error);
    if (status == ICMA_OK)
        status = icma_output_write(writer->output, zeros, (size_t)padding_after(section->stored_size), error);
    if (status == ICMA_OK) {
        writer->sections[writer->count++] = copy;
        writer->unpacked += is_counted(section) ? section->raw_size : 0;
    }
    return status;
}

uint64_t icma_container_written(const icma_container_writer *writer) {
    return icma_output_size(writer->output);
}

void icma_container_keep_mode(icma_container_writer *writer, const icma_file *like) {
    icma_output_keep_mode(writer->output, like);
}

static void write_entry(icma_buffer *index, const icma_section *section) {
    icma_write_u64(index, section->offset);
    icma_write_u64(index, section->stored_size);
    icma_write_u64(index, section->raw_size);
    icma_write_u64(index, section->hash);
    icma_write_u16(index, section->kind);
    icma_write_u8(index, section->coding);
    icma_write_u8(index, section->flags);
    icma_write_u32(index, section->group);
    icma_write_u32(index, section->task);
    icma_write_u32(index, section->first);
    icma_write_u32(index, section->count);
    icma_write_u32(index, 0);
}

/* The entries, byte-grouped: columns of like bytes compress to two thirds of what rows do. */
static void write_entries(icma_buffer *index, const icma_section *sections, size_t count) {
    icma_buffer table = {0};
    for (size_t i = 0; i < count; i++)
        write_entry(&table, &sections[i]);
    uint8_t *to = table.failed ? NULL : icma_buffer_extend(index, table.size);
    if (to)
        icma_group_bytes(table.data, count, ENTRY_SIZE, to);
    else
        index->failed = true;
    icma_buffer_free(&table);
}

static icma_status check_all(icma_container_writer *writer, const char *const *names, size_t tasks,
                             size_t groups, icma_error *error) {
    const char *path = writer->path;
    if (tasks > ICMA_MAX_TASKS || groups > ICMA_MAX_GROUPS)
        return icma_fail(error, ICMA_E_LIMIT, path, "%zu tasks in %zu groups; the limits are %d and %d",
                         tasks, groups, (int)ICMA_MAX_TASKS, (int)ICMA_MAX_GROUPS);
    if (writer->count)
        icma_sort(writer->sections, writer->count, sizeof *writer->sections, compare_sections, NULL);
    for (size_t i = 1; i < writer->count; i++)
        if (compare_sections(&writer->sections[i - 1], &writer->sections[i], NULL) == 0)
            return icma_fail(error, ICMA_E_USAGE, path,
                             "two sections of kind %u for the same owner and range",
                             writer->sections[i].kind);
    icma_status status = check_names(names, tasks, ICMA_E_USAGE, path, error);
    if (status == ICMA_OK)
        status = check_owners(writer->sections, writer->count, groups, tasks, ICMA_E_USAGE, path, error);
    return status;
}

static void build_index(const icma_container_writer *writer, const char *const *names, size_t tasks,
                        size_t groups, icma_buffer *index) {
    icma_write_u32(index, (uint32_t)writer->count);
    icma_write_u32(index, (uint32_t)groups);
    icma_write_u32(index, (uint32_t)tasks);
    icma_write_u32(index, 0);
    write_entries(index, writer->sections, writer->count);
    for (size_t i = 0; i < tasks; i++) {
        size_t length = strlen(names[i]); /* at most 255: a safe segment */
        icma_write_u8(index, (uint8_t)length);
        icma_write_bytes(index, names[i], length);
    }
}

static icma_status write_footer(icma_container_writer *writer, const index_place *place, icma_error *error) {
    uint8_t footer[FOOTER_SIZE] = {0};
    icma_store_u64(footer, place->offset);
    icma_store_u64(footer + 8, place->stored_size);
    icma_store_u64(footer + 16, place->raw_size);
    icma_store_u64(footer + 24, place->hash);
    icma_store_u64(footer + 32, icma_output_size(writer->output) + FOOTER_SIZE);
    footer[40] = place->coding;
    memcpy(footer + 48, footer_magic, sizeof footer_magic);
    icma_store_u64(footer + FRAME_HASHED, icma_hash(footer, FRAME_HASHED));
    return icma_output_write(writer->output, footer, sizeof footer, error);
}

icma_status icma_container_finish(icma_container_writer *writer, const char *const *task_names,
                                  size_t task_count, size_t group_count, icma_error *error) {
    icma_buffer index = {0}, packed = {0};
    icma_status status = check_all(writer, task_names, task_count, group_count, error);
    if (status != ICMA_OK)
        goto done;
    build_index(writer, task_names, task_count, group_count, &index);
    status = icma_buffer_status(&index, error);
    if (status == ICMA_OK)
        status = icma_zstd_compress(index.data, index.size, INDEX_LEVEL, &packed, error);
    if (status != ICMA_OK)
        goto done;
    bool pays = packed.size < index.size;
    const icma_buffer *stored = pays ? &packed : &index;
    index_place place = {icma_output_size(writer->output), stored->size, index.size,
                         icma_hash(stored->data, stored->size), pays ? ICMA_CODING_ZSTD : ICMA_CODING_RAW};
    status = write_padded(writer, stored->data, stored->size, error);
    /* Sections that were copied were compressed for another file. */
    if (status == ICMA_OK && writer->unpacked > most_unpacked(icma_output_size(writer->output) + FOOTER_SIZE))
        status = icma_fail(error, ICMA_E_LIMIT, writer->path, "what is left would have more compressed bytes than a file of its size may have; pack it again");
    if (status == ICMA_OK)
        status = write_footer(writer, &place, error);
done:
    if (status != ICMA_OK)
        icma_error_set_file(error, writer->path);
    icma_buffer_free(&index);
    icma_buffer_free(&packed);
    return status;
}

const char *icma_container_temporary(const icma_container_writer *writer) {
    return icma_output_temporary(writer->output);
}

static void free_writer(icma_container_writer *writer) {
    icma_free(writer->sections);
    icma_free(writer->path);
    icma_free(writer);
}

icma_status icma_container_commit(icma_container_writer *writer, icma_error *error) {
    icma_status status = icma_output_commit(writer->output, error);
    free_writer(writer);
    return status;
}

void icma_container_abandon(icma_container_writer *writer) {
    if (!writer)
        return;
    icma_output_abandon(writer->output);
    free_writer(writer);
}
