/* SPDX-License-Identifier: Apache-2.0 */
#include "support.h"

#include "memory.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int scratch_setup(void **state) {
    const char *base = getenv("TMPDIR");
    char *path = malloc(4096);
    snprintf(path, 4096, "%s/icma-test-XXXXXX", base && *base ? base : "/tmp");
    *state = mkdtemp(path);
    return *state ? 0 : -1;
}

static void remove_tree(const char *path) {
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        char inner[8192];
        struct stat seen;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
        if (lstat(inner, &seen) == 0 && S_ISDIR(seen.st_mode))
            remove_tree(inner);
        else
            unlink(inner);
    }
    if (folder)
        closedir(folder);
    rmdir(path);
}

int scratch_teardown(void **state) {
    remove_tree(*state);
    free(*state);
    return 0;
}

const char *scratch_path(void **state, const char *name) {
    static char paths[8][8192];
    static unsigned turn;
    char *path = paths[turn++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", (const char *)*state, name);
    return path;
}

void write_file(const char *path, const void *data, size_t size) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(size ? fwrite(data, 1, size, file) : 0, size);
    assert_int_equal(fclose(file), 0);
}

size_t count_entries(const char *path) {
    size_t count = 0;
    DIR *folder = opendir(path);
    assert_non_null(folder);
    for (struct dirent *entry; (entry = readdir(folder));)
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(folder);
    return count;
}

static struct {
    size_t left;
    bool for_good, failed;
    size_t live;
} failing;

static void *failing_resize(void *context, void *pointer, size_t size) {
    (void)context;
    if (failing.failed ? failing.for_good : failing.left == 0) {
        failing.failed = true;
        return NULL;
    }
    if (!failing.failed)
        failing.left--;
    void *moved = realloc(pointer, size);
    failing.live += !pointer && moved;
    return moved;
}

static void failing_release(void *context, void *pointer) {
    (void)context;
    failing.live--;
    free(pointer);
}

void failing_allocator(size_t successes, bool for_good) {
    static const icma_allocator allocator = {failing_resize, failing_release, NULL};
    failing.left = successes;
    failing.for_good = for_good;
    failing.failed = false;
    failing.live = 0;
    icma_memory_set_allocator(&allocator);
}

void plain_allocator(void) {
    icma_memory_set_allocator(NULL);
}

bool allocation_failed(void) {
    return failing.failed;
}

size_t live_allocations(void) {
    return failing.live;
}

uint64_t next_random(uint64_t *state) {
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    uint64_t x = *state ^ *state >> 29;
    return x * UINT64_C(0xbf58476d1ce4e5b9) ^ x >> 32;
}
