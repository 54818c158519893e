/* SPDX-License-Identifier: Apache-2.0 */
#include "file.h"
#include "memory.h"
#include "support.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static void assert_contents(const char *path, const char *wanted) {
    uint8_t *data;
    size_t size;
    assert_status(icma_file_read_all(path, 1000, &data, &size, NULL), ICMA_OK);
    assert_int_equal(size, strlen(wanted));
    assert_memory_equal(data, wanted, size);
    icma_free(data);
}

/* --- reading ------------------------------------------------------------------------------------------- */

static void only_regular_files_are_opened(void **state) {
    icma_file *file;
    icma_error error = {0};
    const char *path = scratch_path(state, "file"), *link = scratch_path(state, "link");
    const char *fifo = scratch_path(state, "fifo");
    write_file(path, "hello", 5);
    assert_int_equal(symlink("file", link), 0);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_status(icma_file_open(path, &file, NULL), ICMA_OK);
    assert_int_equal(icma_file_size(file), 5);
    assert_string_equal(icma_file_path(file), path);
    icma_file_close(file);
    assert_status(icma_file_open(link, &file, NULL), ICMA_OK);
    icma_file_close(file);
    assert_status(icma_file_open(fifo, &file, NULL), ICMA_E_FORMAT); /* and does not block */
    assert_null(file);
    assert_status(icma_file_open(*state, &file, NULL), ICMA_E_FORMAT);
    assert_status(icma_file_open("/dev/null", &file, NULL), ICMA_E_FORMAT);
    assert_status(icma_file_open("", &file, NULL), ICMA_E_NOT_FOUND);
    assert_status(icma_file_open(scratch_path(state, "none"), &file, &error), ICMA_E_NOT_FOUND);
    assert_non_null(strstr(error.file, "none"));
    assert_status(icma_file_open(scratch_path(state, "file/x"), &file, NULL), ICMA_E_IO);
    icma_file_close(NULL);
}

static void reads_stay_inside(void **state) {
    icma_file *file;
    char out[8] = {0};
    const char *path = scratch_path(state, "file");
    write_file(path, "0123456789", 10);
    assert_status(icma_file_open(path, &file, NULL), ICMA_OK);
    assert_status(icma_file_read(file, 3, out, 4, NULL), ICMA_OK);
    assert_memory_equal(out, "3456", 4);
    assert_status(icma_file_read(file, 10, out, 0, NULL), ICMA_OK);
    assert_status(icma_file_read(file, 10, out, 1, NULL), ICMA_E_CORRUPT);
    assert_status(icma_file_read(file, 7, out, 4, NULL), ICMA_E_CORRUPT);
    assert_status(icma_file_read(file, UINT64_MAX, out, 1, NULL), ICMA_E_CORRUPT);
    assert_status(icma_file_read(file, 5, out, SIZE_MAX, NULL), ICMA_E_CORRUPT);
    assert_int_equal(truncate(path, 5), 0);
    assert_status(icma_file_read(file, 3, out, 4, NULL), ICMA_E_CORRUPT);
    icma_file_close(file);
}

static void parked_files_come_back(void **state) {
    icma_file *file;
    char out[4] = {0};
    const char *path = scratch_path(state, "file");
    write_file(path, "abc", 3);
    assert_status(icma_file_open(path, &file, NULL), ICMA_OK);
    icma_file_park(file);
    icma_file_park(file);
    assert_status(icma_file_read(file, 0, out, 3, NULL), ICMA_OK);
    assert_memory_equal(out, "abc", 3);
    icma_file_park(file);
    icma_file_close(file);
}

static void changes_of_open_files_are_noticed(void **state) {
    const char *path = scratch_path(state, "file"), *other = scratch_path(state, "other");
    struct timespec past[2] = {{1000000, 0}, {1000000, 1}};
    for (int parked = 0; parked < 2; parked++) {
        icma_file *file;
        write_file(path, "abc", 3);
        assert_status(icma_file_open(path, &file, NULL), ICMA_OK);
        if (parked)
            icma_file_park(file);
        assert_status(icma_file_check_unchanged(file, NULL), ICMA_OK);
        write_file(path, "abcd", 4);
        assert_status(icma_file_check_unchanged(file, NULL), ICMA_E_IO);
        icma_file_close(file);
        assert_status(icma_file_open(path, &file, NULL), ICMA_OK);
        if (parked)
            icma_file_park(file);
        assert_int_equal(utimensat(AT_FDCWD, path, past, 0), 0);
        assert_status(icma_file_check_unchanged(file, NULL), ICMA_E_IO);
        icma_file_close(file);
        /* Replaced by another: an open one is still the old one, which is at rest. */
        assert_status(icma_file_open(path, &file, NULL), ICMA_OK);
        if (parked)
            icma_file_park(file);
        write_file(other, "other", 5);
        assert_int_equal(rename(other, path), 0);
        assert_int_equal(icma_file_check_unchanged(file, NULL), parked ? ICMA_E_IO : ICMA_OK);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(icma_file_check_unchanged(file, NULL), parked ? ICMA_E_NOT_FOUND : ICMA_OK);
        icma_file_close(file);
    }
}

static void parked_files_notice_changes(void **state) {
    const char *path = scratch_path(state, "file"), *other = scratch_path(state, "other");
    for (int change = 0; change < 5; change++) {
        icma_file *file;
        icma_error error = {0};
        char out[4];
        struct timespec past[2] = {{1000000, 0}, {1000000, 1}};
        write_file(path, "abc", 3);
        assert_status(icma_file_open(path, &file, NULL), ICMA_OK);
        icma_file_park(file);
        icma_status wanted = ICMA_E_IO;
        if (change == 0) { /* another file of the same size and time */
            struct stat seen;
            stat(path, &seen);
            write_file(other, "abd", 3);
            struct timespec times[2] = {seen.st_atim, seen.st_mtim};
            assert_int_equal(utimensat(AT_FDCWD, other, times, 0), 0);
            assert_int_equal(rename(other, path), 0);
        } else if (change == 1) { /* another time */
            assert_int_equal(utimensat(AT_FDCWD, path, past, 0), 0);
        } else if (change == 2) { /* another size */
            assert_int_equal(truncate(path, 2), 0);
        } else if (change == 3) { /* gone */
            assert_int_equal(unlink(path), 0);
            wanted = ICMA_E_NOT_FOUND;
        } else { /* something else altogether */
            assert_int_equal(unlink(path), 0);
            assert_int_equal(mkdir(path, 0700), 0);
            wanted = ICMA_E_FORMAT;
        }
        assert_int_equal(icma_file_read(file, 0, out, 2, &error), wanted);
        icma_file_close(file);
    }
}

static void whole_files_up_to_a_limit(void **state) {
    uint8_t *data;
    size_t size;
    const char *path = scratch_path(state, "file");
    write_file(path, "abcd", 4);
    assert_status(icma_file_read_all(path, 4, &data, &size, NULL), ICMA_OK);
    assert_memory_equal(data, "abcd", 4);
    icma_free(data);
    assert_status(icma_file_read_all(path, 3, &data, &size, NULL), ICMA_E_LIMIT);
    assert_null(data);
    write_file(path, "", 0);
    assert_status(icma_file_read_all(path, 0, &data, &size, NULL), ICMA_OK);
    assert_null(data);
    assert_int_equal(size, 0);
    assert_status(icma_file_read_all(scratch_path(state, "none"), 3, &data, &size, NULL), ICMA_E_NOT_FOUND);
}

/* --- writing ------------------------------------------------------------------------------------------- */

static icma_output *start(const char *path, bool overwrite, const char *text) {
    icma_output *output;
    assert_status(icma_output_create(path, overwrite, &output, NULL), ICMA_OK);
    assert_status(icma_output_write(output, text, strlen(text), NULL), ICMA_OK);
    assert_int_equal(icma_output_size(output), strlen(text));
    return output;
}

static void outputs_appear_on_commit(void **state) {
    const char *path = scratch_path(state, "out");
    struct stat seen;
    mode_t mask = umask(027);
    icma_output *output = start(path, false, "new");
    assert_status(icma_output_write(output, " text", 5, NULL), ICMA_OK);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(stat(icma_output_temporary(output), &seen), 0);
    assert_int_equal(seen.st_mode & 0777, 0600);
    assert_contents(icma_output_temporary(output), "new text");
    assert_status(icma_output_commit(output, NULL), ICMA_OK);
    assert_contents(path, "new text");
    assert_int_equal(count_entries(*state), 1);
    assert_int_equal(stat(path, &seen), 0);
    assert_int_equal(seen.st_mode & 0777, 0640);
    assert_int_equal(umask(mask), 027); /* asked for, and put back */
}

static void abandoned_outputs_leave_nothing(void **state) {
    const char *path = scratch_path(state, "out");
    icma_output_abandon(NULL);
    icma_output_abandon(start(path, false, "x"));
    assert_int_equal(count_entries(*state), 0);
    write_file(path, "old", 3);
    icma_output_abandon(start(path, true, "x"));
    assert_int_equal(count_entries(*state), 1);
    assert_contents(path, "old");
}

static void nothing_is_overwritten_unasked(void **state) {
    const char *path = scratch_path(state, "out");
    icma_output *output;
    icma_error error = {0};
    write_file(path, "old", 3);
    assert_status(icma_output_create(path, false, &output, &error), ICMA_E_EXISTS);
    assert_null(output);
    assert_string_equal(error.file, path);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("nowhere", path), 0); /* a dangling link exists too */
    assert_status(icma_output_create(path, false, &output, NULL), ICMA_E_EXISTS);
    assert_int_equal(unlink(path), 0);
    output = start(path, false, "new");
    write_file(path, "meanwhile", 9);
    assert_status(icma_output_commit(output, NULL), ICMA_E_EXISTS);
    assert_contents(path, "meanwhile");
    assert_int_equal(count_entries(*state), 1);
    assert_status(icma_output_commit(start(path, true, "asked"), NULL), ICMA_OK);
    assert_contents(path, "asked");
    assert_int_equal(count_entries(*state), 1);
}

static void links_are_replaced_not_followed(void **state) {
    const char *path = scratch_path(state, "out"), *target = scratch_path(state, "target");
    struct stat seen;
    write_file(target, "precious", 8);
    assert_int_equal(symlink("target", path), 0);
    assert_status(icma_output_commit(start(path, true, "new"), NULL), ICMA_OK);
    assert_contents(target, "precious");
    assert_int_equal(lstat(path, &seen), 0);
    assert_true(S_ISREG(seen.st_mode));
}

static void bad_targets(void **state) {
    icma_output *output;
    const char *fifo = scratch_path(state, "fifo");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_status(icma_output_create(fifo, true, &output, NULL), ICMA_E_IO);
    assert_status(icma_output_create("/dev/full", true, &output, NULL), ICMA_E_IO);
    assert_status(icma_output_create(*state, true, &output, NULL), ICMA_E_IO);
    assert_status(icma_output_create(scratch_path(state, "none/out"), true, &output, NULL), ICMA_E_IO);
    assert_status(icma_output_create(scratch_path(state, "fifo/out"), true, &output, NULL), ICMA_E_IO);
    assert_status(icma_output_create("", true, &output, NULL), ICMA_E_IO);
    assert_status(icma_output_create(scratch_path(state, ""), true, &output, NULL), ICMA_E_IO);
    assert_int_equal(count_entries(*state), 1);
}

static void relative_paths(void **state) {
    char before[4096];
    assert_non_null(getcwd(before, sizeof before));
    assert_int_equal(chdir(*state), 0);
    assert_status(icma_output_commit(start("out", false, "here"), NULL), ICMA_OK);
    assert_contents("out", "here");
    assert_int_equal(chdir(before), 0);
}

static void what_kills_have_left_is_removed(void **state) {
    static const char *const kept[] = {".icma-0123456789abcdef.tm",  ".icma-0123456789abcdef.tmp2",
                                       ".icma-0123456789abcdeg.tmp", ".icma-0123456789ABCDEF.tmp",
                                       "icma-0123456789abcdef.tmp",  ".icma-0123456789abcde.tmp"};
    int before = open(".", O_RDONLY | O_DIRECTORY); /* scratch_path holds eight paths at a time */
    assert_int_equal(chdir(*state), 0);
    write_file(".icma-0123456789abcdef.tmp", "half", 4);
    write_file(".icma-00000000000000ff.tmp", "busy", 4);
    write_file("target", "precious", 8);
    assert_int_equal(symlink("target", ".icma-00000000000000aa.tmp"), 0);
    assert_int_equal(mkdir(".icma-00000000000000bb.tmp", 0700), 0);
    assert_int_equal(mkfifo(".icma-00000000000000cc.tmp", 0600), 0);
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        write_file(kept[i], "x", 1);
    int held = open(".icma-00000000000000ff.tmp", O_RDONLY);
    assert_int_equal(flock(held, LOCK_EX), 0);
    icma_output *first = start("a", false, "one");
    assert_int_equal(access(".icma-0123456789abcdef.tmp", F_OK), -1);
    assert_contents(".icma-00000000000000ff.tmp", "busy");
    /* That of an output which is being written is not taken away, however often others start. */
    icma_output *second = start("a", true, "two");
    assert_status(icma_output_commit(first, NULL), ICMA_OK);
    assert_contents("a", "one");
    assert_status(icma_output_commit(second, NULL), ICMA_OK);
    assert_contents("a", "two");
    close(held);
    icma_output_abandon(start("b", false, "x"));
    assert_int_equal(access(".icma-00000000000000ff.tmp", F_OK), -1);
    assert_contents("target", "precious");
    /* a, target, the link, the folder, the pipe */
    assert_int_equal(count_entries("."), 5 + sizeof kept / sizeof *kept);
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        assert_int_equal(access(kept[i], F_OK), 0);
    assert_int_equal(fchdir(before), 0);
    close(before);
}

static void full_disks(void **state) {
    const char *path = scratch_path(state, "out");
    struct rlimit before, small;
    char block[1000] = {0};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 1500;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    icma_output *output;
    icma_error error = {0};
    assert_status(icma_output_create(path, false, &output, NULL), ICMA_OK);
    assert_status(icma_output_write(output, block, sizeof block, NULL), ICMA_OK);
    icma_status second = icma_output_write(output, block, sizeof block, &error); /* short, then EFBIG */
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, handler);
    assert_status(second, ICMA_E_IO);
    assert_string_equal(error.file, path);
    icma_output_abandon(output);
    assert_int_equal(count_entries(*state), 0);
}

static void a_signal_handler_can_remove_all(void **state) {
    icma_output *a = start(scratch_path(state, "a"), false, "x"),
                *b = start(scratch_path(state, "b"), false, "y");
    assert_int_equal(count_entries(*state), 2);
    icma_output_unlink_all();
    assert_int_equal(count_entries(*state), 0);
    icma_output_unlink_all();
    assert_status(icma_output_commit(a, NULL), ICMA_E_IO);
    icma_output_abandon(b);
    assert_int_equal(count_entries(*state), 0);
}

static void many_outputs_at_once(void **state) {
    enum { MANY = 257 };
    static icma_output *outputs[MANY];
    struct rlimit files;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &files), 0);
    if (files.rlim_cur < 2 * MANY + 20)
        skip();
    for (int i = 0; i < MANY; i++) {
        char name[16];
        sprintf(name, "%d", i);
        icma_status status = icma_output_create(scratch_path(state, name), false, &outputs[i], NULL);
        assert_int_equal(status, i < 256 ? ICMA_OK : ICMA_E_LIMIT);
    }
    for (int i = 0; i < MANY; i++)
        icma_output_abandon(outputs[i]);
    assert_int_equal(count_entries(*state), 0);
}

static void every_allocation_may_fail(void **state) {
    const char *path = scratch_path(state, "out");
    write_file(path, "old", 3);
    for (size_t k = 0;; k++) {
        icma_output *output;
        icma_file *file;
        char *made = NULL;
        failing_allocator(k, false);
        icma_status status = icma_output_create(path, true, &output, NULL);
        icma_output_abandon(output);
        if (status == ICMA_OK) {
            status = icma_file_open(path, &file, NULL);
            icma_file_close(file);
        }
        if (status == ICMA_OK)
            status = icma_make_folders(*state, "f/g", &made, NULL);
        icma_free(made);
        bool failed = allocation_failed();
        assert_int_equal(live_allocations(), 0);
        plain_allocator();
        assert_int_equal(status, failed ? ICMA_E_MEMORY : ICMA_OK);
        if (!failed)
            break;
    }
    assert_int_equal(count_entries(*state), 2);
}

/* --- paths --------------------------------------------------------------------------------------------- */

static void safe_and_unsafe_segments(void **state) {
    (void)state;
    static const char *const safe[] = {"a",        "task 1", "...", "..a", ".hidden",         "a-b",
                                       "\xc3\xa9", "CON",    "a:b", "~",   "\xf0\x9f\x98\x80"};
    static const char *const unsafe[] = {"",     ".",        "..",           "a/b",    "/",
                                         "a\\b", "-rf",      "a\nb",         "a\x1b[", "a\x7f",
                                         "\x80", "\xc0\xaf", "\xed\xa0\x80", "a\xff",  "\xe2\x82"};
    for (size_t i = 0; i < sizeof safe / sizeof *safe; i++)
        if (!icma_path_segment_is_safe(safe[i]))
            fail_msg("\"%s\" should be safe", safe[i]);
    for (size_t i = 0; i < sizeof unsafe / sizeof *unsafe; i++)
        if (icma_path_segment_is_safe(unsafe[i]))
            fail_msg("\"%s\" should not be safe", unsafe[i]);
    char name[257];
    memset(name, 'n', 256);
    name[256] = '\0';
    assert_false(icma_path_segment_is_safe(name));
    name[255] = '\0';
    assert_true(icma_path_segment_is_safe(name));
}

static void folders_are_made_beneath_a_root(void **state) {
    char *path;
    struct stat seen;
    const char *root = scratch_path(state, "root");
    assert_status(icma_make_folders(root, "a/b/file", &path, NULL), ICMA_OK);
    assert_string_equal(path, scratch_path(state, "root/a/b/file"));
    icma_free(path);
    assert_int_equal(stat(scratch_path(state, "root/a/b"), &seen), 0);
    assert_true(S_ISDIR(seen.st_mode));
    assert_int_equal(count_entries(scratch_path(state, "root/a/b")), 0);
    assert_status(icma_make_folders(scratch_path(state, "root/"), "a/c", &path, NULL), ICMA_OK);
    assert_string_equal(path, scratch_path(state, "root/a/c"));
    icma_free(path);
    assert_status(icma_make_folders(root, "file", &path, NULL), ICMA_OK);
    icma_free(path);
}

static void folders_never_leave_the_root(void **state) {
    char *path;
    static const char *const bad[] = {"",      "..",   "../x", "a/../../x", "/etc/x", "a//b", "a/",
                                      "a/./b", "-a/b", "a/-b", "a\\b/c",    "./a",    "a/..", "\xff/a"};
    const char *root = scratch_path(state, "root");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (icma_make_folders(root, bad[i], &path, NULL) != ICMA_E_IO)
            fail_msg("\"%s\" should be refused", bad[i]);
        assert_null(path);
    }
    assert_int_equal(count_entries(*state), 0);
}

static void links_beneath_the_root_are_not_followed(void **state) {
    char *path;
    icma_error error = {0};
    const char *root = scratch_path(state, "root"), *outside = scratch_path(state, "outside");
    assert_int_equal(mkdir(root, 0700), 0);
    assert_int_equal(mkdir(outside, 0700), 0);
    assert_int_equal(symlink("../outside", scratch_path(state, "root/link")), 0);
    write_file(scratch_path(state, "root/file"), "x", 1);
    assert_status(icma_make_folders(root, "link/sub/x", &path, &error), ICMA_E_IO);
    assert_non_null(strstr(error.message, "link"));
    assert_int_equal(count_entries(outside), 0);
    assert_status(icma_make_folders(root, "file/x", &path, NULL), ICMA_E_IO);
    /* the root itself is the user's own choice */
    assert_int_equal(symlink("root", scratch_path(state, "rootlink")), 0);
    assert_status(icma_make_folders(scratch_path(state, "rootlink"), "a/x", &path, NULL), ICMA_OK);
    icma_free(path);
    assert_status(icma_make_folders(scratch_path(state, "none/root"), "x", &path, NULL), ICMA_E_IO);
}

/* One at a time, and nobody else in between. */
static void files_are_locked_and_watched(void **state) {
    const char *path = scratch_path(state, "file"), *other = scratch_path(state, "other"),
               *link = scratch_path(state, "link");
    icma_file *mine, *yours;
    char *resolved;
    struct stat seen;
    icma_output *output;
    write_file(path, "one", 3);
    write_file(other, "two", 3);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(symlink("file", link), 0);
    assert_status(icma_file_resolve(link, &resolved, NULL), ICMA_OK);
    assert_string_equal(strrchr(resolved, '/'), "/file");
    icma_free(resolved);
    assert_status(icma_file_resolve(scratch_path(state, "none"), &resolved, NULL), ICMA_E_NOT_FOUND);
    assert_status(icma_file_open(path, &mine, NULL), ICMA_OK);
    assert_status(icma_file_open(link, &yours, NULL), ICMA_OK);
    assert_status(icma_file_lock(mine, NULL), ICMA_OK);
    assert_status(icma_file_lock(yours, NULL), ICMA_E_IO);
    assert_status(icma_file_check_in_place(mine, NULL), ICMA_OK);
    assert_status(icma_output_create(path, true, &output, NULL), ICMA_OK);
    icma_output_keep_mode(output, mine);
    assert_status(icma_output_write(output, "three", 5, NULL), ICMA_OK);
    assert_status(icma_output_commit(output, NULL), ICMA_OK);
    assert_int_equal(stat(path, &seen), 0);
    assert_int_equal(seen.st_mode & 07777, 0640);
    assert_status(icma_file_check_in_place(mine, NULL), ICMA_E_IO);
    icma_file_close(mine);
    icma_file_close(yours);
}

#define WITH_SCRATCH(test) cmocka_unit_test_setup_teardown(test, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_SCRATCH(only_regular_files_are_opened),
        WITH_SCRATCH(reads_stay_inside),
        WITH_SCRATCH(parked_files_come_back),
        WITH_SCRATCH(files_are_locked_and_watched),
        WITH_SCRATCH(parked_files_notice_changes),
        WITH_SCRATCH(changes_of_open_files_are_noticed),
        WITH_SCRATCH(whole_files_up_to_a_limit),
        WITH_SCRATCH(outputs_appear_on_commit),
        WITH_SCRATCH(abandoned_outputs_leave_nothing),
        WITH_SCRATCH(nothing_is_overwritten_unasked),
        WITH_SCRATCH(links_are_replaced_not_followed),
        WITH_SCRATCH(bad_targets),
        WITH_SCRATCH(relative_paths),
        WITH_SCRATCH(what_kills_have_left_is_removed),
        WITH_SCRATCH(full_disks),
        WITH_SCRATCH(a_signal_handler_can_remove_all),
        WITH_SCRATCH(many_outputs_at_once),
        WITH_SCRATCH(every_allocation_may_fail),
        cmocka_unit_test(safe_and_unsafe_segments),
        WITH_SCRATCH(folders_are_made_beneath_a_root),
        WITH_SCRATCH(folders_never_leave_the_root),
        WITH_SCRATCH(links_beneath_the_root_are_not_followed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
