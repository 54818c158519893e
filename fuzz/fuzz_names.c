/* SPDX-License-Identifier: Apache-2.0 */
/* Names from strangers, one after the other with NUL between: safe segments, natural order, what names tell; and folders that are made beneath one stay there. */
#include "file.h"
#include "fuzz_target.h"
#include "input_names.h"
#include "inputs.h"
#include "memory.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int sign(int value) {
    return (value > 0) - (value < 0);
}

static void check_segment(const char *name) {
    if (!icma_path_segment_is_safe(name))
        return;
    EXPECT(name[0] && name[0] != '-' && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strlen(name) <= 255);
    for (const char *c = name; *c; c++)
        EXPECT(*c != '/' && *c != '\\' && (unsigned char)*c >= 0x20 && *c != 0x7f);
}

static void check_told(const char *name) {
    bool has_step;
    uint64_t step;
    EXPECT(icma_name_stem(name, strlen(name), &has_step, &step) <= strlen(name));
    (void)icma_name_checkpoint(name, &step);
    (void)icma_name_is_folder_adapter(name);
    (void)icma_name_is_condition(name);
    (void)icma_name_is_helper(name);
    (void)icma_name_is_pickle(name);
    (void)icma_name_is_side(name);
}

/* The path of what is made starts with the root, and every part of it is a safe segment. Nothing is left. */
static void check_folders(const char *name) {
    static char root[64];
    char *path;
    if (!root[0]) {
        snprintf(root, sizeof root, "/tmp/icma-fuzz-XXXXXX");
        EXPECT(mkdtemp(root));
    }
    icma_status status = icma_make_folders(root, name, &path, NULL);
    EXPECT((status == ICMA_OK) == (path != NULL));
    if (!path)
        return;
    size_t length = strlen(root);
    EXPECT(strncmp(path, root, length) == 0 && path[length] == '/' && strcmp(path + length + 1, name) == 0);
    EXPECT(!strstr(path + length, "/../") && !strstr(path + length, "//"));
    for (char *slash; (slash = strrchr(path, '/')) > path + length - 1;) {
        *slash = '\0';
        rmdir(path);
        if (strlen(path) <= length)
            break;
    }
    icma_free(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = malloc(size + 2);
    const char *before = "";
    EXPECT(text);
    memcpy(text, data, size);
    text[size] = text[size + 1] = '\0';
    size_t names = 0;
    for (const char *name = text; name <= text + size && names < 8; name += strlen(name) + 1, names++) {
        check_segment(name);
        check_told(name);
        check_folders(name);
        EXPECT(sign(icma_compare_natural(before, name)) == -sign(icma_compare_natural(name, before)));
        EXPECT((icma_compare_natural(before, name) == 0) == (strcmp(before, name) == 0));
        before = name;
    }
    free(text);
    return 0;
}
