/* SPDX-License-Identifier: Apache-2.0 */
#include "near.h"

#include "memory.h"
#include "options.h"

#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

enum { MOST_ENTRIES = 10000, LONGEST_NAME = 256 };

static bool is_there(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0;
}

/* The entry of a folder that is most like `name`, into `near`; "" if none is. */
static void find_near(const char *folder, const char *name, char near[LONGEST_NAME]) {
    size_t least = SIZE_MAX, seen = 0;
    DIR *entries = opendir(folder);
    near[0] = '\0';
    for (struct dirent *entry = entries ? readdir(entries) : NULL; entry && seen < MOST_ENTRIES;
         entry = readdir(entries), seen++) {
        size_t edits = cli_edit_distance(name, entry->d_name);
        if (entry->d_name[0] == '.' || !cli_is_near(name, entry->d_name) || edits > least ||
            strlen(entry->d_name) >= LONGEST_NAME)
            continue;
        if (edits == least && strcmp(entry->d_name, near) >= 0) /* whatever order the folder has */
            continue;
        least = edits;
        memcpy(near, entry->d_name, strlen(entry->d_name) + 1);
    }
    if (entries)
        closedir(entries);
}

/* In the place of what to do, where that is said already. */
static void ask(icma_error *error, const char *folder, const char *name) {
    size_t used = strcspn(error->message, ";");
    snprintf(error->message + used, sizeof error->message - used, "; did you mean %s%s?", folder, name);
}

static void replace(icma_error *error, const char *path, const char *message) {
    icma_status status = error->status;
    *error = (icma_error){0};
    icma_fail(error, status, path, "%s", message);
}

void cli_suggest_path(icma_error *error, const char *path) {
    char near[LONGEST_NAME], *folder = icma_copy_string(path);
    if (!error || !folder || is_there(path)) {
        icma_free(folder);
        return;
    }
    for (size_t length = strlen(folder); length > 1 && folder[length - 1] == '/';)
        folder[--length] = '\0';
    char *slash = strrchr(folder, '/'), *name = slash ? slash + 1 : folder;
    char *copy = icma_copy_string(name);
    *name = '\0';
    if (copy)
        find_near(*folder ? folder : ".", copy, near);
    if (copy && near[0])
        ask(error, folder, near);
    icma_free(copy);
    icma_free(folder);
}

void cli_suggest_bundle(icma_error *error, const char *path) {
    struct stat info;
    char with_ending[LONGEST_NAME + 8];
    snprintf(with_ending, sizeof with_ending, "%.255s.icma", path);
    if (error && strcmp(path, "-") == 0)
        replace(error, NULL,
                "an archive is read here and there, which a pipe cannot do; save it to a file first");
    else if (error && stat(path, &info) == 0 && S_ISDIR(info.st_mode))
        replace(error, path,
                "a folder, not an archive; icma pack makes an archive of a folder with adapters");
    else if (error && !is_there(path) && is_there(with_ending))
        ask(error, "", with_ending);
    else
        cli_suggest_path(error, path);
}
