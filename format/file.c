/* SPDX-License-Identifier: Apache-2.0 */
/* For syscall(2): renameat2 has no POSIX name. _DEFAULT_SOURCE leaves strerror_r the POSIX one. */
#define _DEFAULT_SOURCE
#include "file.h"

#include "memory.h"
#include "spool.h"
#include "utf8.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif

#if defined(__linux__) && defined(SYS_renameat2)
#define HAVE_RENAMEAT2 1
enum { RENAME_WITHOUT_REPLACING = 1 }; /* RENAME_NOREPLACE of linux/fs.h */
#else
#define HAVE_RENAMEAT2 0
#endif

enum { MAX_TRANSFER = 1 << 30 }; /* Linux moves at most 2^31 - 4096 bytes a call, macOS 2^31 - 1 */

/* What can be done about a system call's failure; "" where nothing is to be said that helps. */
static const char *remedy(int code) {
    static const struct {
        int code;
        const char *words;
    } remedies[] = {
        {ENOENT, "; check the name"},
        {ENOTDIR, "; a part of the path is a file: check the name"},
        {EACCES, "; choose another place, or have its permissions changed"},
        {EPERM, "; choose another place, or have its permissions changed"},
        {EROFS, "; choose another place"},
        {ENOSPC, "; free some space, or choose another place"},
        {EDQUOT, "; free some space, or choose another place"},
        {EFBIG, "; raise the limit of file sizes (ulimit -f)"},
        {EMFILE, "; raise the limit of open files (ulimit -n)"},
        {ENFILE, "; close other programs"},
        {ENAMETOOLONG, "; choose a shorter name"},
        {EIO, "; the disk or the network may be failing"},
    };
    for (size_t i = 0; i < sizeof remedies / sizeof remedies[0]; i++)
        if (remedies[i].code == code)
            return remedies[i].words;
    return "";
}

icma_status icma_fail_errno(icma_error *error, icma_status status, const char *path, const char *action,
                            int code) {
    char reason[128];
    if (strerror_r(code, reason, sizeof reason) != 0)
        snprintf(reason, sizeof reason, "error %d", code);
    return icma_fail(error, status, path, "%s: %s%s", action, reason, remedy(code));
}

static icma_status fail_memory(icma_error *error, const char *path) {
    return icma_fail(error, ICMA_E_MEMORY, path, "not enough memory to open it");
}

/* close(2) after which the descriptor is gone whatever it says; EINTR too, on Linux. */
static int close_once(int *descriptor) {
    int result = *descriptor < 0 ? 0 : close(*descriptor);
    *descriptor = -1;
    return result < 0 && errno == EINTR ? 0 : result;
}

/* --- reading ------------------------------------------------------------------------------------------- */

struct icma_file {
    int descriptor; /* -1 while parked */
    char *path;
    struct stat seen; /* at opening */
    icma_spool *spool; /* where its bytes are, from `base` on; NULL: in a file of their own */
    uint64_t base;
};

static int open_retrying(const char *path, int flags) {
    int descriptor;
    do
        descriptor = open(path, flags | O_CLOEXEC);
    while (descriptor < 0 && errno == EINTR);
    return descriptor;
}

/* Asks before it opens, because opening a FIFO blocks and opening a device may do things; and again after,
 * because the path may have changed in between. */
static icma_status open_regular(const char *path, int *descriptor, struct stat *seen, icma_error *error) {
    *descriptor = -1;
    if (stat(path, seen) != 0)
        return icma_fail_errno(error, errno == ENOENT ? ICMA_E_NOT_FOUND : ICMA_E_IO, path, "cannot open",
                               errno);
    if (S_ISREG(seen->st_mode)) {
        *descriptor = open_retrying(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
        if (*descriptor < 0)
            return icma_fail_errno(error, errno == ENOENT ? ICMA_E_NOT_FOUND : ICMA_E_IO, path, "cannot open",
                                   errno);
        if (fstat(*descriptor, seen) != 0) {
            int code = errno;
            close_once(descriptor);
            return icma_fail_errno(error, ICMA_E_IO, path, "cannot examine", code);
        }
    }
    if (!S_ISREG(seen->st_mode)) {
        close_once(descriptor);
        return icma_fail(error, ICMA_E_FORMAT, path, "not a regular file; give a file");
    }
    return ICMA_OK;
}

icma_status icma_file_open(const char *path, icma_file **out, icma_error *error) {
    *out = NULL;
    icma_file *file = icma_alloc_zeroed(1, sizeof *file);
    if (!file)
        return fail_memory(error, path);
    file->descriptor = -1;
    file->path = icma_copy_string(path);
    uint64_t size;
    icma_status status = file->path ? ICMA_OK : fail_memory(error, path);
    if (status == ICMA_OK && icma_spool_open(path, &file->spool, &file->base, &size))
        file->seen.st_size = (off_t)size;
    else if (status == ICMA_OK)
        status = open_regular(path, &file->descriptor, &file->seen, error);
    if (status != ICMA_OK) {
        icma_file_close(file);
        return status;
    }
    *out = file;
    return ICMA_OK;
}

void icma_file_close(icma_file *file) {
    if (!file)
        return;
    close_once(&file->descriptor);
    icma_spool_release(file->spool);
    icma_free(file->path);
    icma_free(file);
}

uint64_t icma_file_size(const icma_file *file) {
    return (uint64_t)file->seen.st_size;
}

const char *icma_file_path(const icma_file *file) {
    return file->path;
}

void icma_file_park(icma_file *file) {
    close_once(&file->descriptor);
}

static bool same_file(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static icma_status fail_changed(icma_error *error, const char *path) {
    return icma_fail(error, ICMA_E_IO, path, "changed while it was read; start again when it is at rest");
}

icma_status icma_file_check_unchanged(const icma_file *file, icma_error *error) {
    struct stat now = {0};
    if (file->spool)
        return ICMA_OK;
    if ((file->descriptor >= 0 ? fstat(file->descriptor, &now) : stat(file->path, &now)) != 0)
        return icma_fail_errno(error, errno == ENOENT ? ICMA_E_NOT_FOUND : ICMA_E_IO, file->path,
                               "cannot examine", errno);
    return same_file(&now, &file->seen) ? ICMA_OK : fail_changed(error, file->path);
}

icma_status icma_file_resolve(const char *path, char **out, icma_error *error) {
    char *resolved = realpath(path, NULL);
    if (!resolved)
        return icma_fail_errno(error, errno == ENOENT ? ICMA_E_NOT_FOUND : ICMA_E_IO, path, "cannot find", errno);
    *out = icma_copy_string(resolved);
    free(resolved);
    return *out ? ICMA_OK : fail_memory(error, path);
}

icma_status icma_file_check_in_place(const icma_file *file, icma_error *error) {
    struct stat now = {0};
    if (stat(file->path, &now) != 0)
        return icma_fail_errno(error, ICMA_E_IO, file->path, "cannot examine", errno);
    return same_file(&now, &file->seen) ? ICMA_OK
                                        : icma_fail(error, ICMA_E_IO, file->path, "was changed or replaced by somebody else meanwhile; start again");
}

icma_status icma_file_lock(icma_file *file, icma_error *error) {
    if (flock(file->descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return icma_fail(error, ICMA_E_IO, file->path, "another process is changing it; try again when that is done");
    return ICMA_OK;
}

static icma_status unpark(icma_file *file, icma_error *error) {
    struct stat now = {0};
    if (file->descriptor >= 0)
        return ICMA_OK;
    icma_status status = open_regular(file->path, &file->descriptor, &now, error);
    if (status != ICMA_OK)
        return status;
    if (same_file(&now, &file->seen))
        return ICMA_OK;
    close_once(&file->descriptor);
    return fail_changed(error, file->path);
}

icma_status icma_file_read(icma_file *file, uint64_t offset, void *out, size_t size, icma_error *error) {
    uint64_t total = icma_file_size(file);
    if (offset > total || size > total - offset)
        return icma_fail(error, ICMA_E_CORRUPT, file->path, "ends before the data it announces");
    if (file->spool)
        return icma_spool_read(file->spool, file->base + offset, out, size, file->path, error);
    icma_status status = unpark(file, error);
    if (status != ICMA_OK)
        return status;
    for (uint8_t *to = out; size > 0;) {
        size_t part = size < MAX_TRANSFER ? size : MAX_TRANSFER;
        ssize_t got = pread(file->descriptor, to, part, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return icma_fail_errno(error, ICMA_E_IO, file->path, "cannot read", errno);
        if (got == 0)
            return icma_fail(error, ICMA_E_CORRUPT, file->path, "has shrunk while it was read");
        to += got;
        offset += (uint64_t)got;
        size -= (size_t)got;
    }
    return ICMA_OK;
}

icma_status icma_file_read_all(const char *path, size_t limit, uint8_t **out, size_t *size,
                               icma_error *error) {
    *out = NULL;
    *size = 0;
    icma_file *file;
    uint8_t *data = NULL;
    icma_status status = icma_file_open(path, &file, error);
    if (status != ICMA_OK)
        return status;
    uint64_t total = icma_file_size(file);
    if (total > limit) {
        status = icma_fail(error, ICMA_E_LIMIT, path, "%llu bytes; the limit is %zu",
                           (unsigned long long)total, limit);
        goto done;
    }
    if (total == 0)
        goto done;
    data = icma_alloc((size_t)total);
    status = data ? icma_file_read(file, 0, data, (size_t)total, error)
                  : icma_fail(error, ICMA_E_MEMORY, path, "not enough memory for %llu bytes",
                              (unsigned long long)total);
    if (status != ICMA_OK)
        goto done;
    *out = data;
    *size = (size_t)total;
    data = NULL;
done:
    icma_free(data);
    icma_file_close(file);
    return status;
}

/* --- the temporaries that a fatal signal must remove --------------------------------------------------- */

/* Whoever exchanges a slot's path for NULL may use it: its output, to free it, or a signal handler, to unlink
 * it. So the handler never reads freed memory, and needs nothing but atomics and unlink; where the two meet,
 * the output leaks its path, which a process on its way out may. */
enum { MAX_OUTPUTS = 256 };
static _Atomic(char *) temporaries[MAX_OUTPUTS];

static bool remember_temporary(char *path, size_t *slot) {
    for (size_t i = 0; i < MAX_OUTPUTS; i++) {
        char *expected = NULL;
        if (atomic_compare_exchange_strong(&temporaries[i], &expected, path)) {
            *slot = i;
            return true;
        }
    }
    return false;
}

static bool forget_temporary(char *path, size_t slot) {
    return slot == MAX_OUTPUTS || atomic_compare_exchange_strong(&temporaries[slot], &path, NULL);
}

void icma_output_unlink_all(void) {
    for (size_t i = 0; i < MAX_OUTPUTS; i++) {
        char *path = atomic_exchange(&temporaries[i], NULL), *expected = NULL;
        if (!path)
            continue;
        unlink(path);
        atomic_compare_exchange_strong(&temporaries[i], &expected, path);
    }
}

/* --- writing ------------------------------------------------------------------------------------------- */

struct icma_output {
    int descriptor;
    int lock;   /* a second descriptor of the temporary: keeps its lock from the close before the rename to
                   after it */
    int folder; /* for its fsync; opened early, so that little can fail after the rename */
    bool overwrite;
    bool created;
    mode_t mode;     /* 0: a new file's */
    size_t slot;     /* in `temporaries`; MAX_OUTPUTS if none */
    char *path;      /* the file's name to be */
    char *temporary; /* owned by the slot while there is one */
    uint64_t size;
};

static void free_output(icma_output *output) {
    if (forget_temporary(output->temporary, output->slot))
        icma_free(output->temporary);
    close_once(&output->descriptor);
    close_once(&output->lock);
    close_once(&output->folder);
    icma_free(output->path);
    icma_free(output);
}

void icma_output_abandon(icma_output *output) {
    if (!output)
        return;
    if (output->created)
        unlink(output->temporary);
    free_output(output);
}

/* Length of the folder part with its slash; 0 where there is none. */
static size_t folder_length(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) + 1 : 0;
}

#define TEMPORARY_NAME ".icma-0123456789abcdef.tmp"

/* Names need only differ from those of other runs in the same folder; O_EXCL sees to the rest. */
static uint64_t name_seed(void) {
    static atomic_uint_fast64_t counter;
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t mixed = (uint64_t)now.tv_sec * 1000000007u + (uint64_t)now.tv_nsec;
    mixed ^= (uint64_t)getpid() << 40;
    return (mixed + atomic_fetch_add(&counter, 1)) * UINT64_C(0x9e3779b97f4a7c15);
}

static void name_temporary(icma_output *output) {
    size_t folder = folder_length(output->path);
    snprintf(output->temporary + folder, sizeof TEMPORARY_NAME, ".icma-%016llx.tmp",
             (unsigned long long)name_seed());
}

/* A temporary is locked (flock) for as long as its writer lives, so one that can be locked has been left
 * behind by a kill or a power cut. Between creating and locking it another run may have taken it for such a
 * one: then the lock is held, or the file has no name any more. False: take another name. A file system
 * without locks keeps its stale files, for nobody can tell them. */
static bool lock_temporary(icma_output *output) {
    struct stat seen = {0};
    if (flock(output->descriptor, LOCK_EX | LOCK_NB) != 0)
        return errno != EWOULDBLOCK;
    if (fstat(output->descriptor, &seen) != 0 || seen.st_nlink == 0)
        return false;
    output->lock = fcntl(output->descriptor, F_DUPFD_CLOEXEC, 0);
    return true; /* without the second descriptor another run may remove the file in the end: commit fails
                    then */
}

static icma_status create_temporary(icma_output *output, icma_error *error) {
    size_t folder = folder_length(output->path);
    output->temporary = icma_alloc(folder + sizeof TEMPORARY_NAME);
    if (!output->temporary)
        return fail_memory(error, output->path);
    memcpy(output->temporary, output->path, folder);
    name_temporary(output); /* before a signal handler can see it */
    if (!remember_temporary(output->temporary, &output->slot))
        return icma_fail(error, ICMA_E_LIMIT, output->path, "more than %d files are being written",
                         (int)MAX_OUTPUTS);
    int code = EEXIST;
    for (int attempt = 0; attempt < 100; attempt++) {
        output->descriptor = open(output->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        code = output->descriptor < 0 ? errno : 0;
        if (code == 0 && lock_temporary(output))
            break;
        if (code == 0) {
            unlink(output->temporary);
            close_once(&output->descriptor);
            code = EEXIST;
        }
        if (code != EEXIST && code != EINTR)
            break;
        name_temporary(output);
    }
    if (output->descriptor < 0)
        return icma_fail_errno(error, ICMA_E_IO, output->path, "cannot create a file in its folder", code);
    output->created = true;
    return ICMA_OK;
}

static bool is_temporary_name(const char *name) {
    if (strlen(name) != sizeof TEMPORARY_NAME - 1 || strncmp(name, ".icma-", 6) != 0)
        return false;
    return strspn(name + 6, "0123456789abcdef") == 16 && strcmp(name + 22, ".tmp") == 0;
}

/* Removes one if it is a regular file of ours (`user`) that no living process has locked. */
static void remove_if_stale(int folder, const char *name, uid_t user) {
    struct stat seen = {0}, named = {0};
    int descriptor = openat(folder, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (descriptor < 0)
        return;
    if (fstat(descriptor, &seen) == 0 && S_ISREG(seen.st_mode) && seen.st_uid == user &&
        flock(descriptor, LOCK_EX | LOCK_NB) == 0 &&
        fstatat(folder, name, &named, AT_SYMLINK_NOFOLLOW) == 0 && named.st_dev == seen.st_dev &&
        named.st_ino == seen.st_ino)
        unlinkat(folder, name, 0);
    close_once(&descriptor);
}

/* What runs that were killed have left in the folder. Nothing that goes wrong here matters to the output. */
static void remove_stale(int folder) {
    int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = copy < 0 ? NULL : fdopendir(copy);
    if (!list) {
        close_once(&copy);
        return;
    }
    for (struct dirent *entry; (entry = readdir(list));)
        if (is_temporary_name(entry->d_name))
            remove_if_stale(folder, entry->d_name, geteuid());
    closedir(list);
}

static icma_status open_folder(icma_output *output, icma_error *error) {
    size_t length = folder_length(output->path);
    char *folder = length ? icma_copy_text(output->path, length) : icma_copy_string(".");
    if (!folder)
        return fail_memory(error, output->path);
    output->folder = open_retrying(folder, O_RDONLY | O_DIRECTORY);
    int code = errno;
    icma_free(folder);
    if (output->folder < 0 && code == ENOENT)
        return icma_fail(error, ICMA_E_IO, output->path,
                         "its folder does not exist; make it first (mkdir -p)");
    return output->folder < 0
               ? icma_fail_errno(error, ICMA_E_IO, output->path, "cannot open its folder", code)
               : ICMA_OK;
}

static icma_status check_target(const char *path, bool overwrite, icma_error *error) {
    struct stat seen = {0};
    size_t folder = folder_length(path);
    if (!path[folder])
        return icma_fail(error, ICMA_E_IO, path, "a file name is missing; give one");
    if (lstat(path, &seen) != 0)
        return errno == ENOENT ? ICMA_OK : icma_fail_errno(error, ICMA_E_IO, path, "cannot examine", errno);
    if (!overwrite)
        return icma_fail(error, ICMA_E_EXISTS, path, "exists already; choose another name or overwrite it");
    if (!S_ISREG(seen.st_mode) && !S_ISLNK(seen.st_mode)) /* a device would be replaced by a file */
        return icma_fail(error, ICMA_E_IO, path, "is not a regular file; choose another name");
    return ICMA_OK;
}

icma_status icma_output_create(const char *path, bool overwrite, icma_output **out, icma_error *error) {
    *out = NULL;
    icma_status status = check_target(path, overwrite, error);
    if (status != ICMA_OK)
        return status;
    icma_output *output = icma_alloc_zeroed(1, sizeof *output);
    if (!output)
        return fail_memory(error, path);
    output->descriptor = output->lock = output->folder = -1;
    output->slot = MAX_OUTPUTS;
    output->overwrite = overwrite;
    output->path = icma_copy_string(path);
    status = output->path ? open_folder(output, error) : fail_memory(error, path);
    if (status == ICMA_OK) {
        remove_stale(output->folder);
        status = create_temporary(output, error);
    }
    if (status != ICMA_OK) {
        icma_output_abandon(output);
        return status;
    }
    *out = output;
    return ICMA_OK;
}

icma_status icma_output_write(icma_output *output, const void *data, size_t size, icma_error *error) {
    for (const uint8_t *from = data; size > 0;) {
        size_t part = size < MAX_TRANSFER ? size : MAX_TRANSFER;
        ssize_t put = write(output->descriptor, from, part);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return icma_fail_errno(error, ICMA_E_IO, output->path, "cannot write", put < 0 ? errno : EIO);
        from += put;
        size -= (size_t)put;
        output->size += (uint64_t)put;
    }
    return ICMA_OK;
}

uint64_t icma_output_size(const icma_output *output) {
    return output->size;
}

const char *icma_output_temporary(const icma_output *output) {
    return output->temporary;
}

void icma_output_keep_mode(icma_output *output, const icma_file *like) {
    output->mode = like->seen.st_mode & 07777;
}

/* umask(2) cannot be asked without being set; 077 keeps what another thread creates meanwhile private. */
static mode_t current_umask(void) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    mode_t mask = umask(077);
    umask(mask);
    pthread_mutex_unlock(&lock);
    return mask;
}

/* fsync is tried once: after a failure the kernel has dropped the pages, a second try would succeed falsely.
 */
static icma_status settle(icma_output *output, icma_error *error) {
    /* File systems without permissions say EPERM. */
    if (fchmod(output->descriptor, output->mode ? output->mode : 0666 & ~current_umask()) != 0 && errno != EPERM)
        return icma_fail_errno(error, ICMA_E_IO, output->path, "cannot set permissions", errno);
    if (fsync(output->descriptor) != 0)
        return icma_fail_errno(error, ICMA_E_IO, output->path, "cannot write to the disk", errno);
    if (close_once(&output->descriptor) != 0)
        return icma_fail_errno(error, ICMA_E_IO, output->path, "cannot close", errno);
    return ICMA_OK;
}

/* 0, or an errno value; EEXIST if there is something at `to`. */
static int rename_without_replacing(const char *from, const char *to) {
#if HAVE_RENAMEAT2
    if (syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, RENAME_WITHOUT_REPLACING) == 0)
        return 0;
    if (errno != ENOSYS && errno != EINVAL)
        return errno;
#endif
    if (link(from, to) != 0)
        return errno;
    unlink(from); /* should this fail, a second name is left over, but the output is whole */
    return 0;
}

static icma_status put_in_place(icma_output *output, icma_error *error) {
    int code = output->overwrite ? rename(output->temporary, output->path) == 0 ? 0 : errno
                                 : rename_without_replacing(output->temporary, output->path);
    if (code == EEXIST)
        return icma_fail(error, ICMA_E_EXISTS, output->path,
                         "has come into being meanwhile; choose another name or overwrite it");
    if (code != 0)
        return icma_fail_errno(error, ICMA_E_IO, output->path, "cannot move into place", code);
    output->created = false;
    if (fsync(output->folder) != 0 && errno != EINVAL) /* EINVAL: this file system does not sync folders */
        return icma_fail_errno(error, ICMA_E_IO, output->path, "cannot write its folder to the disk", errno);
    return ICMA_OK;
}

icma_status icma_output_commit(icma_output *output, icma_error *error) {
    icma_status status = settle(output, error);
    if (status == ICMA_OK)
        status = put_in_place(output, error);
    icma_output_abandon(output); /* removes the temporary only if it is still there */
    return status;
}

/* --- paths --------------------------------------------------------------------------------------------- */

bool icma_path_segment_is_safe(const char *segment) {
    size_t length = strlen(segment);
    if (length == 0 || length > 255 || segment[0] == '-' || strcmp(segment, ".") == 0 ||
        strcmp(segment, "..") == 0)
        return false;
    const uint8_t *bytes = (const uint8_t *)segment;
    for (size_t at = 0; at < length;) {
        uint8_t c = bytes[at];
        size_t step = icma_utf8_length(bytes + at, length - at);
        if (step == 0 || c < 0x20 || c == 0x7f || c == '/' || c == '\\')
            return false;
        at += step;
    }
    return true;
}

/* Cuts "a/b/c" at its slashes into NUL-terminated segments. False if one is not safe. */
static bool split_segments(char *path) {
    for (char *segment = path;;) {
        char *slash = strchr(segment, '/');
        if (slash)
            *slash = '\0';
        if (!icma_path_segment_is_safe(segment))
            return false;
        if (!slash)
            return true;
        segment = slash + 1;
    }
}

/* Replaces *folder by the folder `name` in it, made if need be; a link does not count as one. */
static int enter_folder(int *folder, const char *name) {
    if (mkdirat(*folder, name, 0777) != 0 && errno != EEXIST)
        return errno;
    int next;
    do
        next = openat(*folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    while (next < 0 && errno == EINTR);
    if (next < 0)
        return errno;
    close_once(folder);
    *folder = next;
    return 0;
}

static icma_status make_below(const char *root, const char *segments, size_t length, icma_error *error) {
    if (mkdir(root, 0777) != 0 && errno != EEXIST)
        return icma_fail_errno(error, ICMA_E_IO, root, "cannot make the folder", errno);
    int folder = open_retrying(root, O_RDONLY | O_DIRECTORY);
    if (folder < 0)
        return icma_fail_errno(error, ICMA_E_IO, root, "cannot open the folder", errno);
    const char *segment = segments;
    for (const char *next; (next = segment + strlen(segment) + 1) <= segments + length; segment = next) {
        int code = enter_folder(&folder, segment);
        if (code != 0) {
            close_once(&folder);
            if (code == ELOOP || code == ENOTDIR)
                return icma_fail(error, ICMA_E_IO, root,
                                 "\"%s\" in it is a link or a file, not a folder; remove it", segment);
            return icma_fail_errno(error, ICMA_E_IO, root, "cannot make a folder in it", code);
        }
    }
    close_once(&folder);
    return ICMA_OK;
}

static char *join_path(const char *root, const char *relative) {
    size_t length = strlen(root), more = strlen(relative), size;
    bool slash = length > 0 && root[length - 1] != '/';
    if (!icma_add_size(length + slash, more, &size))
        return NULL;
    char *path = icma_alloc(size + 1);
    if (!path)
        return NULL;
    memcpy(path, root, length);
    if (slash)
        path[length++] = '/';
    memcpy(path + length, relative, more + 1);
    return path;
}

icma_status icma_make_folders(const char *root, const char *relative, char **path, icma_error *error) {
    *path = NULL;
    size_t length = strlen(relative);
    char *joined = join_path(root, relative);
    char *segments = icma_copy_text(relative, length);
    icma_status status;
    if (!joined || !segments)
        status = fail_memory(error, root);
    else if (!split_segments(segments))
        status =
            icma_fail(error, ICMA_E_IO, root, "\"%.255s\" is not a path that may be made in it", relative);
    else
        status = make_below(root, segments, length, error);
    icma_free(segments);
    if (status != ICMA_OK) {
        icma_free(joined);
        return status;
    }
    *path = joined;
    return ICMA_OK;
}
