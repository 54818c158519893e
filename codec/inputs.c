/* SPDX-License-Identifier: Apache-2.0 */
#define _XOPEN_SOURCE 700 /* realpath, which is POSIX 2008 but an XSI part of it */
#include "inputs.h"

#include "adapter.h"
#include "compress.h"
#include "file.h"
#include "input_archive.h"
#include "input_finder.h"
#include "input_names.h"
#include "input_shards.h"
#include "memory.h"
#include "safetensors.h"
#include "sized.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    MAX_FOLDER_DEPTH = 32,
    MAX_SIDE_FILE = 1 << 20,
};

static icma_status skip_entry(icma_finder *f, const char *folder, const char *name, const char *reason) {
    char *path = icma_path_join(folder, name);
    icma_status status =
        path ? icma_finder_skip(f, ICMA_E_UNSUPPORTED, path, reason) : icma_finder_no_memory(f);
    icma_free(path);
    return status;
}

/* --- taking adapters ----------------------------------------------------------------------------------- */

/* kohya and LyCORIS tell the network in the file; others have to be told by their tensors' names. */
static bool looks_like_adapter(const icma_safetensors *tensors) {
    static const char key[] = "\"ss_network_module\"";
    for (size_t i = 0; i < tensors->tensor_count; i++)
        if (icma_adapter_names(tensors->tensors[i].name))
            return true;
    for (size_t i = 0; i + sizeof key - 1 <= tensors->header_size; i++)
        if (tensors->header[i] == '"' && memcmp(tensors->header + i, key, sizeof key - 1) == 0)
            return true;
    return false;
}

/* Reads a safetensors header. */
static icma_status inspect_adapter(const char *path, bool *is_adapter, icma_error *error) {
    icma_file *file = NULL;
    icma_safetensors tensors = {0};
    *is_adapter = false;
    icma_status status = icma_file_open(path, &file, error);
    if (status == ICMA_OK)
        status = icma_safetensors_read(file, &tensors, error);
    *is_adapter = status == ICMA_OK && looks_like_adapter(&tensors);
    icma_safetensors_free(&tensors);
    icma_file_close(file);
    if (status != ICMA_OK)
        icma_error_set_file(error, path);
    return status;
}

static icma_status check_task_name(const icma_finder *f, const char *name, const char *path) {
    if (icma_path_segment_is_safe(name))
        return ICMA_OK;
    return icma_fail(f->error, ICMA_E_USAGE, path,
                     "its task would be called '%s', which is not safe as a file name; rename it", name);
}

/* Adds an adapter, without side files. Where it has none: *added is NULL, and it is a skip. */
static icma_status add_adapter(icma_finder *f, const icma_place *here, bool plain, const char *path,
                               icma_found **added) {
    bool is_adapter;
    *added = NULL;
    icma_status status = inspect_adapter(path, &is_adapter, f->error);
    if (status != ICMA_OK)
        return status;
    if (!is_adapter)
        return icma_finder_skip(f, ICMA_E_UNSUPPORTED, path,
                                "not a LoRA adapter: none of its tensors is named like one's; if it is a full model, name the adapters that were trained on it");
    status = check_task_name(f, here->task, path);
    if (status != ICMA_OK)
        return status;
    void *grown = icma_finder_grow(f->found, f->found_count, &f->found_capacity, sizeof *f->found);
    if (!grown)
        return icma_finder_no_memory(f);
    f->found = grown;
    icma_found *found = &f->found[f->found_count++];
    *found = (icma_found){.task = icma_copy_string(here->task),
                          .owner = icma_copy_string(here->owner),
                          .folder = icma_copy_string(here->folder),
                          .home = here->home,
                          .plain = plain,
                          .checkpoint = {.path = icma_copy_string(path),
                                         .has_step = here->has_step,
                                         .step = here->has_step ? here->step : 0}};
    if (!found->task || !found->folder || !found->checkpoint.path || (here->owner && !found->owner))
        return icma_finder_no_memory(f);
    *added = found;
    return ICMA_OK;
}

static icma_status add_side_file(icma_finder *f, const char *folder, const char *name,
                                 icma_input_checkpoint *checkpoint) {
    icma_input_side_file side = {icma_copy_string(name), icma_path_join(folder, name)};
    checkpoint->side_files[checkpoint->side_file_count++] = side;
    return side.name && side.path ? ICMA_OK : icma_finder_no_memory(f);
}

/* Adds the small texts beside a folder's adapter. */
static icma_status add_side_files(icma_finder *f, const char *folder, const icma_listing *entries,
                                  icma_input_checkpoint *checkpoint) {
    size_t count = 0;
    for (size_t i = 0; i < entries->count; i++)
        count += entries->list[i].kind == ICMA_ENTRY_FILE && icma_name_is_side(entries->list[i].name);
    if (count == 0)
        return ICMA_OK;
    checkpoint->side_files = icma_alloc_array(count, sizeof *checkpoint->side_files);
    if (!checkpoint->side_files)
        return icma_finder_no_memory(f);
    icma_status status = ICMA_OK;
    for (size_t i = 0; i < entries->count && status == ICMA_OK; i++) {
        const icma_entry *side = &entries->list[i];
        if (side->kind != ICMA_ENTRY_FILE || !icma_name_is_side(side->name))
            continue;
        if (side->size > MAX_SIDE_FILE)
            status = skip_entry(f, folder, side->name, "a side file over 1 MiB; it is not packed");
        else if (!icma_path_segment_is_safe(side->name))
            status = skip_entry(f, folder, side->name, "a side file whose name is not safe; rename it");
        else
            status = add_side_file(f, folder, side->name, checkpoint);
    }
    return status;
}

static icma_status take_folder_adapter(icma_finder *f, const icma_place *here, const char *name,
                                       const icma_listing *entries) {
    icma_found *added;
    char *path = icma_path_join(here->path, name);
    icma_status status = path ? add_adapter(f, here, false, path, &added) : icma_finder_no_memory(f);
    if (status == ICMA_OK && added) {
        f->named = false; /* a side file was not named, even where its adapter was */
        status = add_side_files(f, here->path, entries, &added->checkpoint);
    }
    icma_free(path);
    return status;
}

static bool holds(const icma_listing *entries, const char *name) {
    for (size_t i = 0; i < entries->count; i++)
        if (strcmp(entries->list[i].name, name) == 0)
            return true;
    return false;
}

/* The first of a folder's shards. */
static icma_identity first_shard(const icma_listing *entries) {
    size_t number, count;
    for (size_t i = 0; i < entries->count; i++)
        if (icma_name_shard(entries->list[i].name, &number, &count))
            return entries->list[i].id;
    return (icma_identity){0};
}

/* Whichever shard is come by or named, all are taken, once. */
static icma_status take_shards(icma_finder *f, const icma_place *here, const char *name,
                               const icma_listing *entries) {
    static const char whole[] = "adapter_model.safetensors";
    size_t number, count, before = f->found_count;
    bool first = true; /* in a folder that cannot be listed joining tells what is missing */
    icma_status status = entries->count > 0 ? icma_finder_visit(f, first_shard(entries), &first) : ICMA_OK;
    if (status || !first || !icma_name_shard(name, &number, &count))
        return status;
    if (holds(entries, whole))
        return skip_entry(f, here->path, name,
                          "a shard beside a whole adapter_model.safetensors, which is taken");
    status = icma_shards_join(f, here->path, entries, count);
    if (!status)
        status = take_folder_adapter(f, here, whole, entries);
    if (!status && f->found_count > before)
        f->found[before].checkpoint.shards = count;
    return status;
}

/* A plain file's task is its stem, in the folder where it lies. */
static icma_status take_plain_file(icma_finder *f, const char *folder, icma_identity home, const char *path) {
    const char *name = icma_path_last(path), *dot = strrchr(name, '.');
    icma_place here = {.path = folder, .folder = folder, .home = home};
    size_t length = dot && dot > name ? (size_t)(dot - name) : strlen(name);
    char *task = icma_copy_text(name, icma_name_stem(name, length, &here.has_step, &here.step));
    icma_found *added;
    here.task = task;
    icma_status status = task ? add_adapter(f, &here, true, path, &added) : icma_finder_no_memory(f);
    icma_free(task);
    return status;
}

/* A pickle is told by its first bytes: protocol 2 to 5, or the zip that torch.save wraps it in. */
static icma_status look_for_pickle(icma_finder *f, const char *path, uint64_t size) {
    uint8_t magic[4] = {0};
    icma_file *file = NULL;
    if (size < sizeof magic)
        return ICMA_OK;
    icma_status status = icma_file_open(path, &file, f->error);
    if (status == ICMA_OK)
        status = icma_file_read(file, 0, magic, sizeof magic, f->error);
    icma_file_close(file);
    bool pickle =
        (magic[0] == 0x80 && magic[1] >= 2 && magic[1] <= 5) || memcmp(magic, "PK\3\4", sizeof magic) == 0;
    if (status == ICMA_OK && pickle)
        status = icma_finder_skip(f, ICMA_E_UNSUPPORTED, path, ICMA_PICKLE_REASON);
    icma_error_set_file(f->error, path);
    return status;
}

static icma_status take_file(icma_finder *f, const icma_place *here, const icma_entry *file,
                             const icma_listing *entries) {
    const char *name = file->name;
    bool is_safetensors = icma_name_ends_with(name, ".safetensors");
    if (icma_name_is_archive(name))
        return skip_entry(f, here->path, name,
                          here->in_archive ? "an archive in an archive; unpack the outer one first"
                                           : "an archive in a folder; name it to pack what is in it");
    if (icma_name_is_condition(name) || icma_name_is_helper(name) ||
        (!is_safetensors && !icma_name_is_pickle(name)))
        return ICMA_OK;
    if (icma_name_is_folder_adapter(name))
        return take_folder_adapter(f, here, name, entries);
    size_t number, count;
    if (icma_name_shard(name, &number, &count)) /* the first of a row of them */
        return file > entries->list && icma_name_shard(file[-1].name, &number, &count)
                   ? ICMA_OK
                   : take_shards(f, here, name, entries);
    char *path = icma_path_join(here->path, name);
    icma_identity id; /* of this folder, which for checkpoint-N is not here->home */
    icma_status status = ICMA_OK;
    if (!path)
        status = icma_finder_no_memory(f);
    else if (!is_safetensors)
        status = look_for_pickle(f, path, file->size);
    else if (icma_path_look(here->path, &id) == ICMA_ENTRY_NOWHERE)
        status = icma_fail(f->error, ICMA_E_IO, here->path, "%s", strerror(errno));
    else
        status = take_plain_file(f, here->path, id, path);
    icma_free(path);
    return status;
}

static icma_status take_entry(icma_finder *f, const icma_place *here, const icma_entry *found,
                              const icma_listing *entries) {
    switch (found->kind) {
    case ICMA_ENTRY_FILE:
        return take_file(f, here, found, entries);
    case ICMA_ENTRY_SPECIAL:
        return skip_entry(f, here->path, found->name, "a pipe, socket or device");
    case ICMA_ENTRY_NOWHERE:
        if (icma_name_ends_with(found->name, ".safetensors"))
            return skip_entry(f, here->path, found->name, "a link that leads nowhere");
        return ICMA_OK;
    case ICMA_ENTRY_FOLDER:
        break;
    }
    return ICMA_OK;
}

/* --- walking ------------------------------------------------------------------------------------------- */

static icma_status search_folder(icma_finder *f, const icma_place *here);

static icma_status enter_place(icma_finder *f, const icma_place *here, icma_identity id) {
    bool first;
    icma_status status = icma_finder_visit(f, id, &first);
    if (status != ICMA_OK || !first)
        return status;
    if (here->depth > MAX_FOLDER_DEPTH)
        return icma_finder_skip(f, ICMA_E_LIMIT, here->path, "folders are too deep to be searched");
    return search_folder(f, here);
}

/* Links wait until all real folders have their names, so that "best -> checkpoint-30" is not what it leads
 * to. */
static icma_status defer_place(icma_finder *f, const icma_place *here, icma_identity id) {
    void *grown =
        icma_finder_grow(f->deferred, f->deferred_count, &f->deferred_capacity, sizeof *f->deferred);
    if (!grown)
        return icma_finder_no_memory(f);
    f->deferred = grown;
    icma_deferred deferred = {icma_copy_string(here->path),
                              icma_copy_string(here->task),
                              icma_copy_string(here->folder),
                              icma_copy_string(here->owner),
                              id,
                              *here};
    deferred.here.path = deferred.path;
    deferred.here.task = deferred.task;
    deferred.here.folder = deferred.folder;
    deferred.here.owner = deferred.owner;
    f->deferred[f->deferred_count++] = deferred;
    bool copied = deferred.path && deferred.task && deferred.folder && (!here->owner || deferred.owner);
    return copied ? ICMA_OK : icma_finder_no_memory(f);
}

/* Searching may defer more. */
static icma_status search_deferred(icma_finder *f) {
    icma_status status = ICMA_OK;
    for (size_t i = 0; i < f->deferred_count && status == ICMA_OK; i++) {
        icma_deferred deferred = f->deferred[i];
        f->deferred[i] = (icma_deferred){0};
        status = enter_place(f, &deferred.here, deferred.id);
        icma_deferred_free(&deferred);
    }
    return status;
}

/* A checkpoint's named adapter: one more step of the task that <task>/<name> is or would be, which *sibling
 * is for. */
static icma_status place_named(const icma_finder *f, const icma_place *above, const char *name,
                               char **sibling, icma_place *here) {
    *sibling = icma_path_join(above->folder, name);
    if (!*sibling)
        return icma_finder_no_memory(f);
    here->has_step = true;
    here->step = above->step;
    here->folder = *sibling;
    if (icma_path_look(*sibling, &here->home) == ICMA_ENTRY_FOLDER)
        return ICMA_OK;
    here->home = above->home; /* and no file's number: inodes are far smaller */
    here->home.inode ^= (ino_t)(icma_hash(name, strlen(name)) | UINT64_C(1) << 63);
    return ICMA_OK;
}

static icma_status enter_folder(icma_finder *f, const icma_place *above, const icma_entry *folder) {
    char *sibling = NULL, *path = icma_path_join(above->path, folder->name);
    icma_status status = path ? ICMA_OK : icma_finder_no_memory(f);
    icma_place here = *above;
    here.path = path;
    here.depth++;
    here.holds_adapter = false;
    here.has_step = icma_name_checkpoint(folder->name, &here.step);
    if (!here.has_step) {
        here.task = folder->name;
        here.folder = path;
        here.home = folder->id;
        here.owner = above->has_step || above->holds_adapter ? above->task : NULL;
        if (status == ICMA_OK && above->has_step)
            status = place_named(f, above, folder->name, &sibling, &here);
    }
    if (status == ICMA_OK)
        status = folder->link ? defer_place(f, &here, folder->id) : enter_place(f, &here, folder->id);
    icma_free(sibling);
    icma_free(path);
    return status;
}

static bool has_adapter(const icma_listing *entries) {
    size_t number, count;
    for (size_t i = 0; i < entries->count; i++)
        if (entries->list[i].kind == ICMA_ENTRY_FILE &&
            (icma_name_is_folder_adapter(entries->list[i].name) ||
             icma_name_shard(entries->list[i].name, &number, &count)))
            return true;
    return false;
}

/* Recursion is bounded by MAX_FOLDER_DEPTH. */
static icma_status search_folder(icma_finder *f, const icma_place *here) {
    icma_listing entries = {0};
    int problem;
    icma_status status = icma_listing_read(f, here->path, &entries, &problem);
    if (status == ICMA_OK && problem != 0) {
        f->named = here->depth == 0;
        status = icma_finder_skip(f, ICMA_E_IO, here->path, strerror(problem));
        f->named = false;
    }
    for (size_t i = 0; i < entries.count && status == ICMA_OK; i++)
        status = take_entry(f, here, &entries.list[i], &entries);
    icma_place inside = *here;
    inside.holds_adapter = has_adapter(&entries);
    for (size_t i = 0; i < entries.count && status == ICMA_OK; i++)
        if (entries.list[i].kind == ICMA_ENTRY_FOLDER)
            status = enter_folder(f, &inside, &entries.list[i]);
    icma_listing_free(&entries);
    return status;
}

/* --- what the user named ------------------------------------------------------------------------------- */

/* Makes sure that the last segment of *path is a name, not "." or "..". */
static icma_status resolve_name(const icma_finder *f, char **path) {
    size_t length = strlen(*path);
    while (length > 1 && (*path)[length - 1] == '/')
        (*path)[--length] = '\0';
    const char *name = icma_path_last(*path);
    if (*name && strcmp(name, ".") != 0 && strcmp(name, "..") != 0)
        return ICMA_OK;
    char *real = realpath(*path, NULL); /* from libc's malloc */
    if (!real)
        return icma_fail(f->error, ICMA_E_IO, *path, "%s", strerror(errno));
    icma_free(*path);
    *path = icma_copy_string(real);
    free(real);
    return *path ? ICMA_OK : icma_finder_no_memory(f);
}

/* Tells the place of a folder that the user named. *folder owns the strings of `out`, but `path`. */
static icma_status locate_folder(const icma_finder *f, const char *path, char **folder, icma_place *out) {
    uint64_t ignored;
    struct stat about;
    *folder = icma_copy_string(path);
    *out = (icma_place){.path = path};
    icma_status status = *folder ? resolve_name(f, folder) : icma_finder_no_memory(f);
    if (status == ICMA_OK)
        out->has_step = icma_name_checkpoint(icma_path_last(*folder), &out->step);
    while (status == ICMA_OK && icma_name_checkpoint(icma_path_last(*folder), &ignored)) {
        char *parent = icma_path_parent(*folder);
        icma_free(*folder);
        *folder = parent;
        status = parent ? resolve_name(f, folder) : icma_finder_no_memory(f);
    }
    if (status != ICMA_OK)
        return status;
    if (stat(*folder, &about) != 0)
        return icma_fail(f->error, ICMA_E_IO, *folder, "%s", strerror(errno));
    out->folder = *folder;
    out->task = icma_path_last(*folder);
    out->home = (icma_identity){about.st_dev, about.st_ino};
    return ICMA_OK;
}

static icma_status find_in_folder(icma_finder *f, const char *path, icma_identity id) {
    bool first;
    char *folder = NULL;
    icma_place here;
    icma_status status = icma_finder_visit(f, id, &first);
    if (status != ICMA_OK || !first)
        return status;
    status = locate_folder(f, path, &folder, &here);
    if (status == ICMA_OK)
        status = search_folder(f, &here);
    icma_free(folder);
    return status;
}

static icma_status find_folder_adapter(icma_finder *f, const char *parent, const char *name) {
    icma_listing entries = {0};
    char *folder = NULL;
    icma_place here;
    int problem; /* a folder that may be entered but not listed has no side files for us */
    icma_status status = icma_listing_read(f, parent, &entries, &problem);
    if (status == ICMA_OK)
        status = locate_folder(f, parent, &folder, &here);
    size_t number, count;
    if (status == ICMA_OK && icma_name_shard(name, &number, &count))
        status = take_shards(f, &here, name, &entries);
    else if (status == ICMA_OK)
        status = take_folder_adapter(f, &here, name, &entries);
    icma_free(folder);
    icma_listing_free(&entries);
    return status;
}

/* Names that a shell's "task/\*" brings along and that are no adapters are passed over. */
static icma_status find_file(icma_finder *f, const char *path, uint64_t size) {
    const char *name = icma_path_last(path);
    if (icma_name_is_condition(name) || icma_name_is_helper(name) || icma_name_is_side(name))
        return ICMA_OK;
    struct stat about;
    size_t number, count;
    icma_status status;
    char *parent = icma_path_parent(path);
    f->named = true;
    if (!parent)
        status = icma_finder_no_memory(f);
    else if ((status = look_for_pickle(f, path, size)) != ICMA_OK)
        goto fail;
    else if (icma_name_is_folder_adapter(name) || icma_name_shard(name, &number, &count))
        status = find_folder_adapter(f, parent, name);
    else if (stat(parent, &about) != 0)
        status = icma_fail(f->error, ICMA_E_IO, parent, "%s", strerror(errno));
    else
        status = take_plain_file(f, parent, (icma_identity){about.st_dev, about.st_ino}, path);
fail:
    f->named = false;
    icma_free(parent);
    return status;
}

/* --- archives ------------------------------------------------------------------------------------------ */

#define STANDARD_INPUT "<standard input>"

/* Where an archive stands for a folder: `path` without the archive's ending. *folder owns the strings of
 * `out`, but `path`. */
static icma_status locate_archive(const icma_finder *f, const char *path, char **folder, icma_place *out) {
    const char *name = icma_path_last(path);
    icma_status status = ICMA_OK;
    uint64_t step;
    *out = (icma_place){0};
    *folder = strcmp(path, STANDARD_INPUT) == 0
                  ? icma_copy_string("stdin")
                  : icma_copy_text(path, (size_t)(name - path) + icma_name_archive_stem(name));
    if (!*folder)
        return icma_finder_no_memory(f);
    if (icma_name_checkpoint(icma_path_last(*folder), &step)) {
        char *parent = icma_path_parent(*folder);
        icma_free(*folder);
        *folder = NULL;
        status = parent ? locate_folder(f, parent, folder, out) : icma_finder_no_memory(f);
        icma_free(parent);
        out->has_step = true;
        out->step = step;
    } else {
        *out = (icma_place){.folder = path, .task = icma_path_last(*folder), .home = icma_path_spooled(path)};
    }
    out->path = path;
    out->in_archive = true;
    return status;
}

static icma_status find_in_archive(icma_finder *f, const char *path, int descriptor) {
    char *folder = NULL;
    icma_place here;
    icma_status status = icma_finder_need_spool(f);
    if (!status)
        status = icma_archive_unpack(path, descriptor, f->options, f->spool, f->error);
    icma_spool_about about; /* without anything of use in it there is nothing to search */
    if (status || !icma_spool_look(path, &about))
        return status;
    status = locate_archive(f, path, &folder, &here);
    if (!status)
        status = search_folder(f, &here);
    icma_free(folder);
    return status;
}

static bool tell_archive(const char *path, uint64_t size, bool *is_pickle) {
    uint8_t head[ICMA_ARCHIVE_HEAD];
    icma_file *file = NULL;
    size_t length = size < sizeof head ? (size_t)size : sizeof head;
    bool known = icma_file_open(path, &file, NULL) == ICMA_OK &&
                 icma_file_read(file, 0, head, length, NULL) == ICMA_OK;
    icma_file_close(file);
    *is_pickle = known && icma_archive_is_pickle(head, length);
    return known && icma_archive_tell(head, length) != ICMA_ARCHIVE_NONE;
}

/* A name with an archive's ending is one in any case, so that what is wrong with it is told as of one. */
static bool is_archive(const char *path, uint64_t size) {
    bool is_pickle;
    const char *name = icma_path_last(path);
    bool told = tell_archive(path, size, &is_pickle);
    return icma_name_is_archive(name) ||
           (told && !is_pickle && !icma_name_is_pickle(name) && !icma_name_ends_with(name, ".safetensors"));
}

bool icma_input_is_archive(const char *path) {
    struct stat about;
    return stat(path, &about) == 0 && S_ISREG(about.st_mode) && is_archive(path, (uint64_t)about.st_size);
}

static icma_status find_path(icma_finder *f, const char *path) {
    struct stat about;
    if (strcmp(path, "-") == 0 && f->options->standard_input >= 0)
        return find_in_archive(f, STANDARD_INPUT, f->options->standard_input);
    if (stat(path, &about) != 0) {
        bool missing = errno == ENOENT || errno == ENOTDIR;
        return icma_fail(f->error, missing ? ICMA_E_NOT_FOUND : ICMA_E_IO, path, "%s", strerror(errno));
    }
    if (S_ISDIR(about.st_mode))
        return find_in_folder(f, path, (icma_identity){about.st_dev, about.st_ino});
    if (S_ISREG(about.st_mode) && is_archive(path, (uint64_t)about.st_size)) {
        bool first; /* named twice, it is searched once, as a folder */
        icma_status status = icma_finder_visit(f, (icma_identity){about.st_dev, about.st_ino}, &first);
        return status || !first ? status : find_in_archive(f, path, -1);
    }
    if (S_ISREG(about.st_mode))
        return find_file(f, path, (uint64_t)about.st_size);
    return icma_fail(f->error, ICMA_E_FORMAT, path, "a pipe, socket or device; give a file or a folder");
}

/* --- all together -------------------------------------------------------------------------------------- */

void icma_input_options_init(icma_input_options *options, size_t size) {
    const icma_input_options standard = {
        .size = size, .standard_input = -1, .most_bytes = UINT64_C(16) << 30, .most_members = 100000};
    icma_sized_fill(options, size, &standard, sizeof standard);
}

icma_status icma_inputs_find(const char *const *paths, size_t path_count, icma_inputs *out,
                             icma_error *error) {
    icma_input_options options = icma_input_defaults();
    return icma_inputs_find_with(paths, path_count, &options, out, error);
}

icma_status icma_inputs_find_with(const char *const *paths, size_t path_count,
                                  const icma_input_options *options, icma_inputs *out, icma_error *error) {
    *out = (icma_inputs){0};
    icma_error ignored = {0};
    icma_input_options own = icma_input_defaults();
    icma_finder f = {.options = &own, .error = error ? error : &ignored};
    icma_status status = icma_sized_take(&own, sizeof own, options, ICMA_INPUT_OPTIONS_LEAST, "options of",
                                         "icma_input_defaults", error);
    if (status)
        return status;
    for (size_t i = 0; i < path_count && status == ICMA_OK; i++)
        status = find_path(&f, paths[i]);
    if (status == ICMA_OK)
        status = search_deferred(&f);
    if (status == ICMA_OK)
        status = icma_finder_gather(&f, out);
    if (status == ICMA_OK) {
        out->skips = f.skips;
        out->skip_count = f.skip_count;
        f.skips = NULL;
        f.skip_count = 0;
        out->spool = f.spool;
        f.spool = NULL;
    } else {
        icma_inputs_free(out);
    }
    icma_finder_free(&f);
    return status;
}

static void free_task(icma_input_task *task) {
    icma_free(task->name);
    icma_free(task->folder);
    icma_free(task->condition_path);
    for (size_t i = 0; i < task->checkpoint_count; i++)
        icma_checkpoint_free(&task->checkpoints[i]);
    icma_free(task->checkpoints);
}

void icma_inputs_free(icma_inputs *inputs) {
    for (size_t i = 0; i < inputs->task_count; i++)
        free_task(&inputs->tasks[i]);
    icma_free(inputs->tasks);
    icma_skips_free(inputs->skips, inputs->skip_count);
    icma_spool_release(inputs->spool);
    *inputs = (icma_inputs){0};
}
