/* SPDX-License-Identifier: Apache-2.0 */
/* Seeds of the target of archives: a small adapter with its texts in each format and filter, and what is
 * refused. */
#include "fuzz_corpus.h"

#include <archive.h>
#include <archive_entry.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct member {
    const char *path;
    unsigned kind;
    const char *link, *text;
    size_t size;
} member;

static const char adapter[] =
    "{\"m.lora_A.weight\":{\"dtype\":\"F16\",\"shape\":[1,2],\"data_offsets\":[0,4]},"
    "\"m.lora_B.weight\":{\"dtype\":\"F16\",\"shape\":[2,1],\"data_offsets\":[4,8]}}";

/* The adapter's image: the header's length, the header, padded, and 8 bytes of numbers. */
static size_t make_adapter(char *image) {
    size_t header = strlen(adapter), padded = (header + 7) / 8 * 8;
    memset(image, ' ', 8 + padded);
    memcpy(image + 8, adapter, header);
    for (int i = 0; i < 8; i++)
        image[i] = (char)(padded >> (8 * i) & 0xff);
    memcpy(image + 8 + padded, "12345678", 8);
    return 8 + padded + 8;
}

static size_t write_archive(int format, int filter, const member *members, size_t count, char *image,
                            size_t room) {
    size_t used = 0;
    struct archive *a = archive_write_new();
    if (!a || archive_write_set_format(a, format) != ARCHIVE_OK ||
        archive_write_add_filter(a, filter) != ARCHIVE_OK ||
        archive_write_set_bytes_in_last_block(a, 1) != ARCHIVE_OK ||
        archive_write_open_memory(a, image, room, &used) != ARCHIVE_OK)
        exit(1);
    for (size_t i = 0; i < count; i++) {
        struct archive_entry *entry = archive_entry_new();
        archive_entry_set_pathname(entry, members[i].path);
        archive_entry_set_filetype(entry, members[i].kind);
        archive_entry_set_perm(entry, 0644);
        archive_entry_set_size(entry, members[i].kind == AE_IFREG ? (la_int64_t)members[i].size : 0);
        if (members[i].link)
            archive_entry_set_symlink(entry, members[i].link);
        if (archive_write_header(a, entry) < ARCHIVE_WARN ||
            (members[i].kind == AE_IFREG && archive_write_data(a, members[i].text, members[i].size) < 0))
            exit(1);
        archive_entry_free(entry);
    }
    if (archive_write_close(a) != ARCHIVE_OK)
        exit(1);
    archive_write_free(a);
    return used;
}

void put_archives(void (*put)(const char *folder, const char *name, const void *data, size_t size),
                  void (*make_folder)(const char *name)) {
    static const struct {
        const char *name;
        int format, filter;
    } kinds[] = {
        {"tar", ARCHIVE_FORMAT_TAR_USTAR, ARCHIVE_FILTER_NONE},
        {"gnutar", ARCHIVE_FORMAT_TAR_GNUTAR, ARCHIVE_FILTER_NONE},
        {"pax", ARCHIVE_FORMAT_TAR_PAX_INTERCHANGE, ARCHIVE_FILTER_NONE},
        {"gz", ARCHIVE_FORMAT_TAR_USTAR, ARCHIVE_FILTER_GZIP},
        {"xz", ARCHIVE_FORMAT_TAR_USTAR, ARCHIVE_FILTER_XZ},
        {"zst", ARCHIVE_FORMAT_TAR_USTAR, ARCHIVE_FILTER_ZSTD},
        {"zip", ARCHIVE_FORMAT_ZIP, ARCHIVE_FILTER_NONE},
        {"7z", ARCHIVE_FORMAT_7ZIP, ARCHIVE_FILTER_NONE},
    };
    static char image[1 << 16], whole[256];
    size_t size = make_adapter(whole);
    const member good[] = {{"cat/checkpoint-1/adapter_model.safetensors", AE_IFREG, NULL, whole, size},
                           {"cat/checkpoint-1/adapter_config.json", AE_IFREG, NULL, "{\"r\": 1}", 8},
                           {"cat/adapter_model.safetensors", AE_IFREG, NULL, whole, size}};
    const member link[] = {good[0], {"cat/x.safetensors", AE_IFLNK, "/etc/passwd", NULL, 0}};
    const member up[] = {{"../x.safetensors", AE_IFREG, NULL, whole, size}};
    make_folder("archive");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char name[64];
        snprintf(name, sizeof name, "good-%s", kinds[i].name);
        put("archive", name, image,
            write_archive(kinds[i].format, kinds[i].filter, good, 3, image, sizeof image));
        snprintf(name, sizeof name, "bad-up-%s", kinds[i].name);
        put("archive", name, image,
            write_archive(kinds[i].format, kinds[i].filter, up, 1, image, sizeof image));
    }
    put("archive", "bad-link", image,
        write_archive(kinds[2].format, kinds[2].filter, link, 2, image, sizeof image));
    put("archive", "edge-empty", "", 0);
}
