/* SPDX-License-Identifier: Apache-2.0 */
#include "input_finder.h"

#include "memory.h"
#include "sort.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

icma_status icma_finder_no_memory(const icma_finder *f) {
    return icma_fail(f->error, ICMA_E_MEMORY, NULL, "no memory for the list of adapters");
}

void *icma_finder_grow(void *list, size_t count, size_t *capacity, size_t width) {
    if (count < *capacity)
        return list;
    size_t larger = *capacity ? *capacity : 8;
    if (*capacity && !icma_multiply_size(*capacity, 2, &larger))
        return NULL;
    void *grown = icma_resize_array(list, larger, width);
    if (grown)
        *capacity = larger;
    return grown;
}

icma_status icma_finder_need_spool(icma_finder *f) {
    if (!f->spool && f->options->spool)
        f->spool = icma_spool_share(f->options->spool);
    return f->spool ? ICMA_OK : icma_spool_create(f->options->temporary, &f->spool, f->error);
}

void icma_checkpoint_free(icma_input_checkpoint *checkpoint) {
    icma_free(checkpoint->path);
    icma_free(checkpoint->final_path);
    for (size_t i = 0; i < checkpoint->side_file_count; i++) {
        icma_free(checkpoint->side_files[i].name);
        icma_free(checkpoint->side_files[i].path);
    }
    icma_free(checkpoint->side_files);
    *checkpoint = (icma_input_checkpoint){0};
}

static void free_found(icma_found *found) {
    icma_free(found->task);
    icma_free(found->owner);
    icma_free(found->folder);
    icma_checkpoint_free(&found->checkpoint);
}

void icma_skips_free(icma_input_skip *skips, size_t count) {
    for (size_t i = 0; i < count; i++) {
        icma_free(skips[i].path);
        icma_free(skips[i].reason);
    }
    icma_free(skips);
}

void icma_deferred_free(icma_deferred *deferred) {
    icma_free(deferred->path);
    icma_free(deferred->task);
    icma_free(deferred->folder);
    icma_free(deferred->owner);
    *deferred = (icma_deferred){0};
}

void icma_finder_free(icma_finder *f) {
    for (size_t i = 0; i < f->found_count; i++)
        free_found(&f->found[i]);
    icma_free(f->found);
    icma_skips_free(f->skips, f->skip_count);
    for (size_t i = 0; i < f->deferred_count; i++)
        icma_deferred_free(&f->deferred[i]);
    icma_free(f->deferred);
    icma_free(f->visited);
    icma_spool_release(f->spool);
}

icma_status icma_finder_skip(icma_finder *f, icma_status status, const char *path, const char *reason) {
    if (f->named)
        return icma_fail(f->error, status, path, "%s", reason);
    void *grown = icma_finder_grow(f->skips, f->skip_count, &f->skip_capacity, sizeof *f->skips);
    if (!grown)
        return icma_finder_no_memory(f);
    f->skips = grown;
    icma_input_skip skip = {icma_copy_string(path), icma_copy_string(reason)};
    f->skips[f->skip_count++] = skip;
    return skip.path && skip.reason ? ICMA_OK : icma_finder_no_memory(f);
}

/* --- folders seen -------------------------------------------------------------------------------------- */

bool icma_same_identity(icma_identity a, icma_identity b) {
    return a.device == b.device && a.inode == b.inode;
}

static icma_identity *find_slot(icma_identity *table, size_t capacity, icma_identity key) {
    uint64_t hash = ((uint64_t)key.inode + (uint64_t)key.device * 0x9E3779B97F4A7C15u) * 0xD6E8FEB86659FD93u;
    size_t at = (size_t)(hash >> 20) & (capacity - 1);
    while (!icma_same_identity(table[at], key) && !icma_same_identity(table[at], (icma_identity){0}))
        at = (at + 1) & (capacity - 1);
    return &table[at];
}

static bool grow_visited(icma_finder *f) {
    size_t capacity = f->visited_capacity ? f->visited_capacity * 2 : 64;
    icma_identity *table = icma_alloc_zeroed(capacity, sizeof *table);
    if (!table)
        return false;
    for (size_t i = 0; i < f->visited_capacity; i++)
        if (!icma_same_identity(f->visited[i], (icma_identity){0}))
            *find_slot(table, capacity, f->visited[i]) = f->visited[i];
    icma_free(f->visited);
    f->visited = table;
    f->visited_capacity = capacity;
    return true;
}

icma_status icma_finder_visit(icma_finder *f, icma_identity folder, bool *first) {
    if (2 * (f->visited_count + 1) > f->visited_capacity && !grow_visited(f))
        return icma_finder_no_memory(f);
    icma_identity *slot = find_slot(f->visited, f->visited_capacity, folder);
    *first = !icma_same_identity(*slot, folder);
    if (*first) {
        *slot = folder;
        f->visited_count++;
    }
    return ICMA_OK;
}

/* --- listing a folder ---------------------------------------------------------------------------------- */

void icma_listing_free(icma_listing *entries) {
    for (size_t i = 0; i < entries->count; i++)
        icma_free(entries->list[i].name);
    icma_free(entries->list);
    *entries = (icma_listing){0};
}

static int compare_entries(const void *a, const void *b, const void *context) {
    (void)context;
    return icma_compare_natural(((const icma_entry *)a)->name, ((const icma_entry *)b)->name);
}

static icma_entry_kind kind_of(mode_t mode) {
    return S_ISREG(mode) ? ICMA_ENTRY_FILE : S_ISDIR(mode) ? ICMA_ENTRY_FOLDER : ICMA_ENTRY_SPECIAL;
}

static icma_entry describe_entry(int folder, const char *name) {
    icma_entry out = {.kind = ICMA_ENTRY_NOWHERE};
    struct stat about;
    if (fstatat(folder, name, &about, AT_SYMLINK_NOFOLLOW) != 0)
        return out;
    out.link = S_ISLNK(about.st_mode);
    if (out.link && fstatat(folder, name, &about, 0) != 0)
        return out;
    out.kind = kind_of(about.st_mode);
    out.id = (icma_identity){about.st_dev, about.st_ino};
    out.size = about.st_size > 0 ? (uint64_t)about.st_size : 0;
    return out;
}

static icma_status add_entry(icma_finder *f, DIR *folder, const char *name, icma_listing *out) {
    void *grown = icma_finder_grow(out->list, out->count, &out->capacity, sizeof *out->list);
    if (!grown)
        return icma_finder_no_memory(f);
    out->list = grown;
    icma_entry described = describe_entry(dirfd(folder), name);
    described.name = icma_copy_string(name);
    if (!described.name)
        return icma_finder_no_memory(f);
    out->list[out->count++] = described;
    return ICMA_OK;
}

/* No file system's numbers: those of spools come from the other end. */
static icma_identity spooled_identity(const icma_spool_about *about) {
    return (icma_identity){(dev_t)~about->spool, (ino_t)about->number};
}

icma_identity icma_path_spooled(const char *path) {
    icma_spool_about about;
    return icma_spool_look(path, &about) ? spooled_identity(&about) : (icma_identity){0};
}

icma_entry_kind icma_path_look(const char *path, icma_identity *id) {
    struct stat about;
    icma_spool_about spooled;
    if (stat(path, &about) == 0) {
        *id = (icma_identity){about.st_dev, about.st_ino};
        return kind_of(about.st_mode);
    }
    int problem = errno;
    if (!icma_spool_look(path, &spooled)) {
        errno = problem;
        return ICMA_ENTRY_NOWHERE;
    }
    *id = spooled_identity(&spooled);
    return spooled.is_folder ? ICMA_ENTRY_FOLDER : ICMA_ENTRY_FILE;
}

typedef struct spooled_listing {
    icma_finder *finder;
    icma_listing *out;
} spooled_listing;

static icma_status add_spooled(void *context, const char *name, size_t length,
                               const icma_spool_about *about) {
    spooled_listing *to = context;
    icma_listing *out = to->out;
    if (name[0] == '.')
        return ICMA_OK;
    void *grown = icma_finder_grow(out->list, out->count, &out->capacity, sizeof *out->list);
    if (!grown)
        return icma_finder_no_memory(to->finder);
    out->list = grown;
    icma_entry entry = {.name = icma_copy_text(name, length),
                        .kind = about->is_folder ? ICMA_ENTRY_FOLDER : ICMA_ENTRY_FILE,
                        .id = spooled_identity(about),
                        .size = about->size};
    if (!entry.name)
        return icma_finder_no_memory(to->finder);
    out->list[out->count++] = entry;
    return ICMA_OK;
}

static icma_status list_spooled(icma_finder *f, const char *path, icma_listing *out) {
    spooled_listing to = {f, out};
    icma_status status = icma_spool_list(path, add_spooled, &to);
    icma_sort(out->list, out->count, sizeof *out->list, compare_entries, NULL);
    return status;
}

icma_status icma_listing_read(icma_finder *f, const char *path, icma_listing *out, int *problem) {
    *problem = 0;
    icma_status status = ICMA_OK;
    DIR *folder = opendir(path);
    if (!folder) {
        icma_spool_about about;
        *problem = errno;
        if (!icma_spool_look(path, &about) || !about.is_folder)
            return ICMA_OK;
        *problem = 0;
        return list_spooled(f, path, out);
    }
    while (status == ICMA_OK) {
        errno = 0;
        const struct dirent *next = readdir(folder);
        if (!next) {
            *problem = errno;
            break;
        }
        if (next->d_name[0] != '.')
            status = add_entry(f, folder, next->d_name, out);
    }
    closedir(folder);
    icma_sort(out->list, out->count, sizeof *out->list, compare_entries, NULL);
    return status;
}
