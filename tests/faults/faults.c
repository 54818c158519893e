/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library to preload (LD_PRELOAD) that makes one system call of a program fail, or ends the program there.
 *
 *   ICMA_FAULT        CALL:K:ACTION   the K-th call (from 1) of a kind; "any" counts all of them together
 *   ICMA_FAULT_BELOW  a folder: only calls about files below it count
 *   ICMA_FAULT_LOG    a file that gets a line for the fault, and at the end one "CALL COUNT" a kind
 *
 * Kinds: create (open with O_CREAT), open, read, write, fsync, close, chmod, rename, link, unlink, mkdir, lock.
 * Actions: an errno's name (E..., with + after it: this call and all later ones of the kind), short (half the bytes are
 * written or read), kill (SIGKILL instead of the call), killed (SIGKILL after it), a signal's name (SIG..., raised, then
 * the call), grow=PATH (a byte is appended to PATH, then the call), poke=PATH (PATH's last byte is changed), count (nothing).
 */
#define _GNU_SOURCE /* RTLD_NEXT, and the names that are taken over: open64, pread64, renameat2 */
#undef _FILE_OFFSET_BITS /* the plain names and those with 64 are separate symbols */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef enum kind { CREATE, OPEN, READ, WRITE, FSYNC, CLOSE, CHMOD, RENAME, LINK, UNLINK, MKDIR, LOCK, KINDS } kind;
static const char *const names[KINDS] = {"create", "open",   "read", "write",  "fsync", "close",
                                         "chmod",  "rename", "link", "unlink", "mkdir", "lock"};

static const struct {
    const char *name;
    int value;
} words[] = {{"EIO", EIO},       {"ENOSPC", ENOSPC},   {"EDQUOT", EDQUOT},   {"EINTR", EINTR},     {"EACCES", EACCES},  {"EMFILE", EMFILE},
             {"EROFS", EROFS},   {"ENOLCK", ENOLCK},   {"ENOSYS", ENOSYS},   {"EINVAL", EINVAL},   {"EPERM", EPERM},    {"EWOULDBLOCK", EWOULDBLOCK},
             {"SIGINT", SIGINT}, {"SIGTERM", SIGTERM}, {"SIGHUP", SIGHUP}};

static struct {
    int kind; /* KINDS: any */
    unsigned long k;
    bool for_good, is_short, is_kill, is_killed, is_poke;
    int code, signal;
    const char *touched;
    const char *below, *log;
    atomic_ulong seen[KINDS + 1];
} fault = {.kind = -1};

static void say(const char *line) {
    int descriptor = fault.log ? (int)syscall(SYS_openat, AT_FDCWD, fault.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (descriptor < 0)
        return;
    (void)!syscall(SYS_write, descriptor, line, strlen(line));
    syscall(SYS_close, descriptor);
}

static void give_up(const char *what) {
    fprintf(stderr, "faults: ICMA_FAULT is wrong: %s\n", what);
    _exit(99);
}

static void read_action(char *action) {
    size_t length = strlen(action);
    if (length && action[length - 1] == '+') {
        fault.for_good = true;
        action[length - 1] = '\0';
    }
    fault.is_short = strcmp(action, "short") == 0;
    fault.is_kill = strcmp(action, "kill") == 0;
    fault.is_killed = strcmp(action, "killed") == 0;
    fault.is_poke = strncmp(action, "poke=", 5) == 0;
    fault.touched = fault.is_poke || strncmp(action, "grow=", 5) == 0 ? action + 5 : NULL;
    bool known = fault.is_short || fault.is_kill || fault.is_killed || fault.touched || strcmp(action, "count") == 0;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(action, words[i].name) == 0) {
            *(action[0] == 'E' ? &fault.code : &fault.signal) = words[i].value;
            known = true;
        }
    if (!known)
        give_up(action);
}

__attribute__((constructor)) static void start(void) {
    static char text[PATH_MAX + 64];
    const char *told = getenv("ICMA_FAULT");
    if (!told)
        return;
    snprintf(text, sizeof text, "%s", told);
    char *number = strchr(text, ':'), *action = number ? strchr(number + 1, ':') : NULL;
    if (!action)
        give_up(text);
    *number++ = *action++ = '\0';
    fault.below = getenv("ICMA_FAULT_BELOW");
    fault.log = getenv("ICMA_FAULT_LOG");
    if (!fault.below)
        give_up("no ICMA_FAULT_BELOW");
    fault.k = strtoul(number, NULL, 10);
    read_action(action);
    int wanted = strcmp(text, "any") == 0 ? KINDS : -1;
    for (int i = 0; i < KINDS; i++)
        if (strcmp(text, names[i]) == 0)
            wanted = i;
    if (wanted < 0)
        give_up(text);
    fault.kind = wanted;
}

__attribute__((destructor)) static void stop(void) {
    for (int i = 0; fault.kind >= 0 && i <= KINDS; i++) {
        char line[64];
        snprintf(line, sizeof line, "%s %lu\n", i < KINDS ? names[i] : "any", atomic_load(&fault.seen[i]));
        say(line);
    }
}

static bool is_below(const char *path) {
    size_t length = fault.kind < 0 ? 0 : strlen(fault.below);
    return length && strncmp(path, fault.below, length) == 0;
}

static bool path_counts(int folder, const char *path) {
    char base[PATH_MAX], link[64];
    if (fault.kind < 0 || !path)
        return false;
    if (path[0] == '/')
        return is_below(path);
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t size = readlink(link, base, sizeof base - 1);
    if (size < 0)
        return false;
    base[size] = '\0';
    return is_below(base);
}

static bool descriptor_counts(int descriptor) {
    return fault.kind >= 0 && descriptor >= 0 && path_counts(descriptor, ".");
}

/* As somebody else would who writes it just now. */
static void change_file(void) {
    int descriptor = (int)syscall(SYS_openat, AT_FDCWD, fault.touched, O_RDWR | O_CLOEXEC, 0);
    unsigned char byte = 0;
    off_t end = lseek(descriptor, 0, SEEK_END), at = fault.is_poke ? end - 1 : end;
    if (fault.is_poke)
        (void)!syscall(SYS_pread64, descriptor, &byte, 1, at);
    byte ^= 1;
    (void)!syscall(SYS_pwrite64, descriptor, &byte, 1, at);
    syscall(SYS_close, descriptor);
}

static void fired(kind which, unsigned long k) {
    char line[64];
    snprintf(line, sizeof line, "fired %s %lu\n", names[which], k);
    say(line);
}

/* Whether this call, which counts, is to fail: with *code, an errno or 0 for a short transfer. *after: to be killed after it. */
static bool strikes(kind which, int *code, bool *after) {
    *after = false;
    unsigned long all = atomic_fetch_add(&fault.seen[KINDS], 1) + 1, own = atomic_fetch_add(&fault.seen[which], 1) + 1;
    if (fault.kind != KINDS && fault.kind != (int)which)
        return false;
    unsigned long k = fault.kind == KINDS ? all : own;
    if (k != fault.k && !(fault.for_good && k > fault.k))
        return false;
    if (k == fault.k)
        fired(which, k);
    if (fault.touched) {
        change_file();
        return false;
    }
    if (fault.is_kill)
        kill(getpid(), SIGKILL);
    if (fault.signal)
        raise(fault.signal);
    *after = fault.is_killed;
    *code = fault.code;
    return fault.code || (fault.is_short && (which == WRITE || which == READ));
}

/* The library's function of that name. */
#define REAL(type, name, parameters)                                                                         \
    static type(*real) parameters;                                                                           \
    if (!real)                                                                                               \
        *(void **)&real = dlsym(RTLD_NEXT, name)

/* Runs `call` into `result`, or makes it fail. */
#define FAIL_OR(which, counts, call)                                                                         \
    do {                                                                                                     \
        int code = 0, before = errno;                                                                        \
        bool after = false;                                                                                  \
        bool failing = (counts) && strikes(which, &code, &after);                                            \
        errno = before; /* readlink may have set it, and the call may leave it */                            \
        if (failing) {                                                                                       \
            errno = code;                                                                                    \
            return -1;                                                                                       \
        }                                                                                                    \
        __typeof__(call) result = call;                                                                      \
        before = errno;                                                                                      \
        if (after)                                                                                           \
            kill(getpid(), SIGKILL);                                                                         \
        errno = before;                                                                                      \
        return result;                                                                                       \
    } while (0)

static int open_flags_mode(int flags, va_list list) {
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, int) : 0;
}

#define TAKE_OVER_OPEN(name)                                                                                 \
    int name(const char *path, int flags, ...) {                                                             \
        REAL(int, #name, (const char *, int, ...));                                                          \
        va_list list;                                                                                        \
        va_start(list, flags);                                                                               \
        int mode = open_flags_mode(flags, list);                                                             \
        va_end(list);                                                                                        \
        FAIL_OR(flags & O_CREAT ? CREATE : OPEN, path_counts(AT_FDCWD, path), real(path, flags, mode));      \
    }
TAKE_OVER_OPEN(open)
TAKE_OVER_OPEN(open64)

#define TAKE_OVER_OPENAT(name)                                                                               \
    int name(int folder, const char *path, int flags, ...) {                                                 \
        REAL(int, #name, (int, const char *, int, ...));                                                     \
        va_list list;                                                                                        \
        va_start(list, flags);                                                                               \
        int mode = open_flags_mode(flags, list);                                                             \
        va_end(list);                                                                                        \
        FAIL_OR(flags & O_CREAT ? CREATE : OPEN, path_counts(folder, path), real(folder, path, flags, mode)); \
    }
TAKE_OVER_OPENAT(openat)
TAKE_OVER_OPENAT(openat64)

/* Transfers may be short instead. */
#define TRANSFER(which, descriptor, size, call)                                                              \
    do {                                                                                                     \
        int code = 0, before = errno;                                                                        \
        bool after = false;                                                                                  \
        bool failing = descriptor_counts(descriptor) && strikes(which, &code, &after);                       \
        errno = before;                                                                                      \
        if (failing && code) {                                                                               \
            errno = code;                                                                                    \
            return -1;                                                                                       \
        }                                                                                                    \
        if (failing)                                                                                         \
            size = (size + 1) / 2;                                                                           \
        ssize_t result = call;                                                                               \
        if (after)                                                                                           \
            kill(getpid(), SIGKILL);                                                                         \
        return result;                                                                                       \
    } while (0)

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(ssize_t, "write", (int, const void *, size_t));
    TRANSFER(WRITE, descriptor, size, real(descriptor, data, size));
}

ssize_t pread(int descriptor, void *data, size_t size, off_t offset) {
    REAL(ssize_t, "pread", (int, void *, size_t, off_t));
    TRANSFER(READ, descriptor, size, real(descriptor, data, size, offset));
}

ssize_t pread64(int descriptor, void *data, size_t size, off64_t offset) {
    REAL(ssize_t, "pread64", (int, void *, size_t, off64_t));
    TRANSFER(READ, descriptor, size, real(descriptor, data, size, offset));
}

int fsync(int descriptor) {
    REAL(int, "fsync", (int));
    FAIL_OR(FSYNC, descriptor_counts(descriptor), real(descriptor));
}

int fchmod(int descriptor, mode_t mode) {
    REAL(int, "fchmod", (int, mode_t));
    FAIL_OR(CHMOD, descriptor_counts(descriptor), real(descriptor, mode));
}

int flock(int descriptor, int operation) {
    REAL(int, "flock", (int, int));
    FAIL_OR(LOCK, descriptor_counts(descriptor), real(descriptor, operation));
}

/* A descriptor is closed, whatever close says. */
int close(int descriptor) {
    REAL(int, "close", (int));
    int code = 0;
    bool after = false;
    bool failing = descriptor_counts(descriptor) && strikes(CLOSE, &code, &after);
    int result = real(descriptor);
    if (after)
        kill(getpid(), SIGKILL);
    if (!failing)
        return result;
    errno = code;
    return -1;
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", (const char *, const char *));
    FAIL_OR(RENAME, path_counts(AT_FDCWD, to), real(from, to));
}

int link(const char *from, const char *to) {
    REAL(int, "link", (const char *, const char *));
    FAIL_OR(LINK, path_counts(AT_FDCWD, to), real(from, to));
}

int unlink(const char *path) {
    REAL(int, "unlink", (const char *));
    FAIL_OR(UNLINK, path_counts(AT_FDCWD, path), real(path));
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(int, "unlinkat", (int, const char *, int));
    FAIL_OR(UNLINK, path_counts(folder, path), real(folder, path, flags));
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", (const char *, mode_t));
    FAIL_OR(MKDIR, path_counts(AT_FDCWD, path), real(path, mode));
}

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(int, "mkdirat", (int, const char *, mode_t));
    FAIL_OR(MKDIR, path_counts(folder, path), real(folder, path, mode));
}

/* renameat2 is called by its number. Six words are passed on, as the function itself does. */
long syscall(long number, ...) {
    REAL(long, "syscall", (long, ...));
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long), d = va_arg(list, long), e = va_arg(list, long), f = va_arg(list, long);
    va_end(list);
    FAIL_OR(RENAME, number == SYS_renameat2 && path_counts((int)c, (const char *)d), real(number, a, b, c, d, e, f));
}
