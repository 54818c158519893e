/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target over the files, and the files in the folders, that are named. For builds without
 * libFuzzer. */
#include "fuzz_target.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static size_t replayed;

static int replay_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        return 1;
    }
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    uint8_t *data = malloc(size > 0 ? (size_t)size : 1); /* exact, for the sanitizer */
    int failed = !data || size < 0 || fread(data, 1, (size_t)size, file) != (size_t)size;
    fclose(file);
    if (failed)
        fprintf(stderr, "%s: cannot read\n", path);
    else
        LLVMFuzzerTestOneInput(data, (size_t)size);
    free(data);
    replayed += !failed;
    return failed;
}

static int replay(const char *path) {
    DIR *folder = opendir(path);
    if (!folder)
        return replay_file(path);
    int failed = 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        char inner[4096];
        struct stat seen = {0};
        snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
        if (stat(inner, &seen) == 0 && S_ISREG(seen.st_mode))
            failed |= replay_file(inner);
    }
    closedir(folder);
    return failed;
}

int main(int count, char **arguments) {
    int failed = 0;
    for (int i = 1; i < count; i++)
        failed |= replay(arguments[i]);
    printf("%zu inputs replayed\n", replayed);
    return failed || replayed == 0;
}
