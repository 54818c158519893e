/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* O_TMPFILE */
#include "spool.h"

#include "memory.h"
#include "sort.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TRANSFER = 1 << 30 };

typedef struct member {
    char *path;
    uint64_t offset, size;
    uint64_t number; /* in the order of coming, from 1: it stays when others are put between */
} member;

struct icma_spool {
    int descriptor;
    size_t owners;
    uint64_t size, number;
    member *members; /* the first `published` of them sorted */
    size_t count, capacity, published;
    bool listed; /* in `spools` */
    struct icma_spool *next;
};

/* The published ones. `lock` guards this list, and owners, members and published of every spool in it. */
static icma_spool *spools;
static uint64_t last_number;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* --- the temporary ------------------------------------------------------------------------------------- */

static int open_nameless(const char *folder) {
    int descriptor = -1;
#if defined(O_TMPFILE)
    descriptor = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (descriptor >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL))
        return descriptor;
#endif
    static const char tail[] = "/icma-XXXXXX";
    size_t length = strlen(folder);
    char *path = icma_alloc(length + sizeof tail);
    if (!path) {
        errno = ENOMEM;
        return -1;
    }
    memcpy(path, folder, length);
    memcpy(path + length, tail, sizeof tail);
    descriptor = mkostemp(path, O_CLOEXEC);
    if (descriptor >= 0)
        unlink(path);
    icma_free(path);
    return descriptor;
}

icma_status icma_spool_create(const char *folder, icma_spool **out, icma_error *error) {
    const char *set = getenv("TMPDIR");
    if (!folder)
        folder = set && *set ? set : "/tmp";
    *out = NULL;
    icma_spool *spool = icma_alloc_zeroed(1, sizeof *spool);
    if (!spool)
        return icma_fail(error, ICMA_E_MEMORY, folder, "not enough memory for a temporary file");
    spool->owners = 1;
    spool->descriptor = open_nameless(folder);
    if (spool->descriptor < 0) {
        icma_status status = icma_fail(
            error, ICMA_E_IO, folder,
            "cannot make a temporary file in it: %s; name another folder with --tmp", strerror(errno));
        icma_free(spool);
        return status;
    }
    pthread_mutex_lock(&lock);
    spool->number = ++last_number;
    pthread_mutex_unlock(&lock);
    *out = spool;
    return ICMA_OK;
}

icma_spool *icma_spool_share(icma_spool *spool) {
    pthread_mutex_lock(&lock);
    if (spool)
        spool->owners++;
    pthread_mutex_unlock(&lock);
    return spool;
}

void icma_spool_release(icma_spool *spool) {
    if (!spool)
        return;
    pthread_mutex_lock(&lock);
    bool last = --spool->owners == 0;
    for (icma_spool **at = &spools; last && *at; at = &(*at)->next)
        if (*at == spool) {
            *at = spool->next;
            break;
        }
    pthread_mutex_unlock(&lock);
    if (!last)
        return;
    for (size_t i = 0; i < spool->count; i++)
        icma_free(spool->members[i].path);
    icma_free(spool->members);
    close(spool->descriptor);
    icma_free(spool);
}

/* --- filling ------------------------------------------------------------------------------------------- */

static bool grow_members(icma_spool *spool) {
    size_t capacity = spool->capacity ? 2 * spool->capacity : 16;
    pthread_mutex_lock(&lock); /* the published ones among them may be looked at */
    member *more = icma_resize_array(spool->members, capacity, sizeof *more);
    if (more) {
        spool->members = more;
        spool->capacity = capacity;
    }
    pthread_mutex_unlock(&lock);
    return more != NULL;
}

icma_status icma_spool_begin(icma_spool *spool, const char *path, icma_error *error) {
    char *copy = icma_copy_string(path);
    if (!copy || (spool->count == spool->capacity && !grow_members(spool))) {
        icma_free(copy);
        return icma_fail(error, ICMA_E_MEMORY, path, "not enough memory for the list of files");
    }
    spool->members[spool->count] = (member){copy, spool->size, 0, spool->count + 1};
    spool->count++;
    return ICMA_OK;
}

icma_status icma_spool_write(icma_spool *spool, const void *data, size_t size, icma_error *error) {
    member *last = &spool->members[spool->count - 1];
    for (const uint8_t *from = data; size > 0;) {
        ssize_t put =
            pwrite(spool->descriptor, from, size < MAX_TRANSFER ? size : MAX_TRANSFER, (off_t)spool->size);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return icma_fail(
                error, ICMA_E_IO, last->path,
                "cannot be unpacked to a temporary file: %s; name a folder with more room with --tmp",
                strerror(errno));
        from += put;
        size -= (size_t)put;
        spool->size += (uint64_t)put;
        last->size += (uint64_t)put;
    }
    return ICMA_OK;
}

uint64_t icma_spool_size(const icma_spool *spool) {
    return spool->size;
}

size_t icma_spool_members(const icma_spool *spool) {
    return spool->count;
}

/* --- order: '/' before any other byte, so that what lies in a folder follows it ------------------------- */

static int rank_byte(char c) {
    return c == '/' ? 1 : c ? (unsigned char)c + 1 : 0;
}

static int compare_paths(const char *a, const char *b) {
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return rank_byte(*a) - rank_byte(*b);
}

static int compare_members(const void *a, const void *b, const void *context) {
    (void)context;
    return compare_paths(((const member *)a)->path, ((const member *)b)->path);
}

/* Whether `path` lies in `folder`, which may end in a slash or not. */
static bool is_below(const char *path, const char *folder, size_t length) {
    return strncmp(path, folder, length) == 0 && path[length] == '/';
}

/* The first of the published members that does not come before `path`. */
static size_t lower_bound(const icma_spool *spool, const char *path) {
    size_t first = 0, count = spool->published;
    while (count > 0) {
        size_t half = count / 2;
        if (compare_paths(spool->members[first + half].path, path) < 0) {
            first += half + 1;
            count -= half + 1;
        } else {
            count = half;
        }
    }
    return first;
}

static const member *find_clash(const icma_spool *spool) {
    for (size_t i = 1; i < spool->count; i++) {
        const char *before = spool->members[i - 1].path, *path = spool->members[i].path;
        if (strcmp(before, path) == 0 || is_below(path, before, strlen(before)))
            return &spool->members[i];
    }
    return NULL;
}

/* A few new ones find their places among the many; many new ones are sorted. */
static void sort_members(icma_spool *spool) {
    if (spool->count - spool->published > 1) {
        icma_sort(spool->members, spool->count, sizeof *spool->members, compare_members, NULL);
    } else if (spool->count > spool->published) {
        member added = spool->members[spool->count - 1];
        size_t at = lower_bound(spool, added.path);
        memmove(&spool->members[at + 1], &spool->members[at], (spool->count - 1 - at) * sizeof added);
        spool->members[at] = added;
    }
}

icma_status icma_spool_publish(icma_spool *spool, icma_error *error) {
    icma_status status = ICMA_OK;
    pthread_mutex_lock(&lock);
    sort_members(spool);
    const member *clash = find_clash(spool);
    if (clash)
        status = icma_fail(error, ICMA_E_CORRUPT, clash->path,
                           "is there twice, or as a file and a folder; make the archive anew");
    spool->published = clash ? 0 : spool->count;
    if (!spool->listed && !clash) {
        spool->listed = true;
        spool->next = spools;
        spools = spool;
    }
    pthread_mutex_unlock(&lock);
    return status;
}

/* --- looking ------------------------------------------------------------------------------------------- */

/* Folders have no entry of their own: a folder is the first member in it, and how deep it lies. */
enum { DEPTHS = 1 << 12 };

static icma_spool_about about_member(const icma_spool *spool, size_t at) {
    return (icma_spool_about){.size = spool->members[at].size,
                              .number = spool->members[at].number * DEPTHS,
                              .spool = spool->number};
}

static icma_spool_about about_folder(const icma_spool *spool, size_t at, const char *path, size_t length) {
    uint64_t depth = 1;
    for (size_t i = 0; i < length; i++)
        depth += path[i] == '/';
    return (icma_spool_about){
        .is_folder = true, .number = spool->members[at].number * DEPTHS + depth, .spool = spool->number};
}

/* `path` without the slashes at its end. */
static size_t trimmed_length(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    return length;
}

/* The first published member that is `path`, or lies in it: *at, with the spool. */
static icma_spool *find_member(const char *path, size_t *at) {
    size_t length = trimmed_length(path);
    for (icma_spool *spool = spools; spool; spool = spool->next) {
        *at = lower_bound(spool, path);
        if (*at == spool->published)
            continue;
        const char *found = spool->members[*at].path;
        if (strcmp(found, path) == 0 || is_below(found, path, length))
            return spool;
    }
    return NULL;
}

bool icma_spool_look(const char *path, icma_spool_about *out) {
    size_t at;
    pthread_mutex_lock(&lock);
    const icma_spool *spool = find_member(path, &at);
    if (spool && strcmp(spool->members[at].path, path) == 0)
        *out = about_member(spool, at);
    else if (spool)
        *out = about_folder(spool, at, path, trimmed_length(path));
    pthread_mutex_unlock(&lock);
    return spool != NULL;
}

icma_status icma_spool_list(const char *folder,
                            icma_status (*each)(void *context, const char *name, size_t length,
                                                const icma_spool_about *about),
                            void *context) {
    icma_status status = ICMA_OK;
    size_t at, length = trimmed_length(folder);
    pthread_mutex_lock(&lock);
    const icma_spool *spool = find_member(folder, &at);
    while (spool && status == ICMA_OK && at < spool->published &&
           is_below(spool->members[at].path, folder, length)) {
        const char *path = spool->members[at].path, *name = path + length + 1;
        size_t name_length = strcspn(name, "/");
        bool is_folder = name[name_length] == '/';
        icma_spool_about about =
            is_folder ? about_folder(spool, at, path, length + 1 + name_length) : about_member(spool, at);
        status = each(context, name, name_length, &about);
        for (at++; is_folder && at < spool->published &&
                   is_below(spool->members[at].path, path, length + 1 + name_length);)
            at++;
    }
    pthread_mutex_unlock(&lock);
    return status;
}

bool icma_spool_open(const char *path, icma_spool **out, uint64_t *offset, uint64_t *size) {
    size_t at;
    pthread_mutex_lock(&lock);
    icma_spool *spool = spools ? find_member(path, &at) : NULL;
    bool found = spool && strcmp(spool->members[at].path, path) == 0;
    if (found) {
        *out = spool;
        spool->owners++;
        *offset = spool->members[at].offset;
        *size = spool->members[at].size;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

icma_status icma_spool_read(icma_spool *spool, uint64_t offset, void *out, size_t size, const char *path,
                            icma_error *error) {
    for (uint8_t *to = out; size > 0;) {
        ssize_t got = pread(spool->descriptor, to, size < MAX_TRANSFER ? size : MAX_TRANSFER, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return icma_fail(error, ICMA_E_IO, path, "cannot read its temporary copy: %s", strerror(errno));
        if (got == 0)
            return icma_fail(error, ICMA_E_IO, path, "its temporary copy is too short");
        to += got;
        offset += (uint64_t)got;
        size -= (size_t)got;
    }
    return ICMA_OK;
}
