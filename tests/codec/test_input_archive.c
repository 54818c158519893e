/* SPDX-License-Identifier: Apache-2.0 */
/* Archives as inputs: every format and filter, damage, and what is refused. The archives are made by
 * libarchive's writer. */
#include "file.h"
#include "inputs.h"
#include "spool.h"
#include "support.h"

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <fcntl.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

typedef struct member {
    const char *path;
    unsigned kind;    /* AE_IFREG by default */
    const char *link; /* what a link leads to */
    const char *text; /* NULL: the adapter */
    bool hard;
} member;

static uint8_t *adapter;
static size_t adapter_size;

static int setup(void **state) {
    char *root = support_new_folder(), *path = support_path(root, "seed.safetensors");
    support_write_lora(root, "seed.safetensors");
    assert_int_equal(icma_file_read_all(path, 1 << 20, &adapter, &adapter_size, NULL), ICMA_OK);
    support_free(path);
    *state = root;
    return 0;
}

static int teardown(void **state) {
    support_free(adapter);
    support_remove_tree(*state);
    return 0;
}

/* --- writing ------------------------------------------------------------------------------------------- */

typedef struct kind {
    const char *name; /* of the file */
    int format, filter;
} kind;

static const kind kinds[] = {
    {"a.tar", ARCHIVE_FORMAT_TAR_USTAR, ARCHIVE_FILTER_NONE},
    {"gnu.tar", ARCHIVE_FORMAT_TAR_GNUTAR, ARCHIVE_FILTER_NONE},
    {"pax.tar", ARCHIVE_FORMAT_TAR_PAX_INTERCHANGE, ARCHIVE_FILTER_NONE},
    {"a.tar.gz", ARCHIVE_FORMAT_TAR_USTAR, ARCHIVE_FILTER_GZIP},
    {"a.tar.xz", ARCHIVE_FORMAT_TAR_USTAR, ARCHIVE_FILTER_XZ},
    {"a.tar.zst", ARCHIVE_FORMAT_TAR_USTAR, ARCHIVE_FILTER_ZSTD},
    {"a.zip", ARCHIVE_FORMAT_ZIP, ARCHIVE_FILTER_NONE},
    {"a.7z", ARCHIVE_FORMAT_7ZIP, ARCHIVE_FILTER_NONE},
};

static void write_member(struct archive *a, const member *m) {
    struct archive_entry *entry = archive_entry_new();
    const void *data = m->text ? (const void *)m->text : adapter;
    unsigned type = m->kind ? m->kind : AE_IFREG;
    size_t size = type != AE_IFREG || m->hard ? 0 : m->text ? strlen(m->text) : adapter_size;
    archive_entry_copy_pathname(entry, m->path);
    archive_entry_set_filetype(entry, type);
    archive_entry_set_perm(entry, 0644);
    archive_entry_set_size(entry, (la_int64_t)size);
    if (m->hard)
        archive_entry_copy_hardlink(entry, m->link);
    else if (m->link)
        archive_entry_copy_symlink(entry, m->link);
    if (archive_write_header(a, entry) < ARCHIVE_WARN)
        fail_msg("%s: %s", m->path, archive_error_string(a));
    if (size > 0)
        assert_int_equal(archive_write_data(a, data, size), size);
    archive_entry_free(entry);
}

/* The path, to be freed with support_free. */
static char *write_archive(const char *root, const kind *k, const member *members, size_t count) {
    char *path = support_path(root, k->name);
    struct archive *a = archive_write_new();
    /* Only here: what is tested runs in the C locale. */
    locale_t names = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0), before = uselocale(names);
    assert_int_equal(archive_write_set_format(a, k->format), ARCHIVE_OK);
    assert_int_equal(archive_write_add_filter(a, k->filter), ARCHIVE_OK);
    assert_int_equal(archive_write_open_filename(a, path), ARCHIVE_OK);
    for (size_t i = 0; i < count; i++)
        write_member(a, &members[i]);
    assert_int_equal(archive_write_close(a), ARCHIVE_OK);
    archive_write_free(a);
    uselocale(before);
    freelocale(names);
    return path;
}

/* --- looking ------------------------------------------------------------------------------------------- */

/* "cat: 10 20 - (README.md)" a task, with a condition "+", with skips as "; skipped path". */
static void describe(const icma_inputs *inputs, char *out, size_t size) {
    size_t used = 0;
    *out = '\0';
    for (size_t t = 0; t < inputs->task_count; t++) {
        const icma_input_task *task = &inputs->tasks[t];
        used += (size_t)snprintf(out + used, size - used, "%s%s%s:", t ? " | " : "", task->name,
                                 task->condition_path ? "+" : "");
        for (size_t c = 0; c < task->checkpoint_count; c++) {
            const icma_input_checkpoint *checkpoint = &task->checkpoints[c];
            if (checkpoint->has_step)
                used +=
                    (size_t)snprintf(out + used, size - used, " %llu", (unsigned long long)checkpoint->step);
            else
                used += (size_t)snprintf(out + used, size - used, " -");
            for (size_t s = 0; s < checkpoint->side_file_count; s++)
                used += (size_t)snprintf(out + used, size - used, "(%s)", checkpoint->side_files[s].name);
        }
    }
    for (size_t i = 0; i < inputs->skip_count; i++)
        used += (size_t)snprintf(out + used, size - used, "; skipped %s: %s",
                                 strrchr(inputs->skips[i].path, '/') + 1, inputs->skips[i].reason);
}

/* Whether every adapter found holds the seed's bytes. */
static bool all_whole(const icma_inputs *inputs) {
    bool whole = true;
    for (size_t t = 0; t < inputs->task_count; t++)
        for (size_t c = 0; c < inputs->tasks[t].checkpoint_count; c++) {
            uint8_t *data;
            size_t size;
            assert_int_equal(
                icma_file_read_all(inputs->tasks[t].checkpoints[c].path, 1 << 20, &data, &size, NULL),
                ICMA_OK);
            whole = whole && size == adapter_size && memcmp(data, adapter, size) == 0;
            support_free(data);
        }
    return whole;
}

static icma_status find_one(const char *path, const icma_input_options *options, icma_inputs *out,
                            icma_error *error) {
    const char *paths[] = {path};
    icma_input_options standard = icma_input_defaults();
    return icma_inputs_find_with(paths, 1, options ? options : &standard, out, error);
}

static void assert_found(const char *path, const icma_input_options *options, const char *expected) {
    icma_inputs inputs;
    icma_error error = {0};
    char found[4096];
    if (find_one(path, options, &inputs, &error) != ICMA_OK)
        fail_msg("%s: %s: %s", path, error.file, error.message);
    describe(&inputs, found, sizeof found);
    if (strcmp(found, expected) != 0)
        fail_msg("%s: found %s, not %s", path, found, expected);
    assert_true(all_whole(&inputs));
    icma_inputs_free(&inputs);
}

static void assert_refused(const char *path, const icma_input_options *options, icma_status expected,
                           const char *saying) {
    icma_inputs inputs;
    icma_error error = {0};
    icma_status status = find_one(path, options, &inputs, &error);
    if (status != expected || !strstr(error.message, saying) || !error.file[0])
        fail_msg("%s: %s, not %s: %s: %s", path, icma_status_name(status), icma_status_name(expected),
                 error.file, error.message);
    assert_null(inputs.tasks);
    assert_null(inputs.spool);
}

/* --- what is taken ------------------------------------------------------------------------------------- */

static const member tree[] = {
    {"./loras/", AE_IFDIR, NULL, NULL, false},
    {"./loras/cat/checkpoint-20/adapter_model.safetensors", 0, NULL, NULL, false},
    {"loras/cat/checkpoint-20/adapter_config.json", 0, NULL, "{}", false},
    {"loras/cat/checkpoint-20/optimizer.pt", 0, NULL, "PK\3\4 no matter", false},
    {"loras/cat/checkpoint-9/adapter_model.safetensors", 0, NULL, NULL, false},
    {"loras/cat/task_vector.safetensors", 0, NULL, "never looked into here", false},
    {"loras/.hidden/adapter_model.safetensors", 0, NULL, "not one", false},
    {"__MACOSX/loras/cat/._adapter_model.safetensors", 0, NULL, "not one", false},
    {"loras/dog/pytorch_lora_weights.safetensors", 0, NULL, NULL, false},
    {"loras//kohya/v\xc3\xb6gel-000010.safetensors", 0, NULL, NULL, false},
    {"loras/kohya/v\xc3\xb6gel.safetensors", 0, NULL, NULL, false},
    {"loras/kohya/notes.bin", 0, NULL, "\x80\x02 a pickle", false},
    {"loras/kohya/more.zip", 0, NULL, "PK\3\4 whatever", false},
};
static const char found_in_tree[] = "cat+: 9 20(adapter_config.json) | dog: - | v\xc3\xb6gel: 10 -; "
                                    "skipped more.zip: an archive in an archive; unpack the outer one first; "
                                    "skipped notes.bin: a pickle, which may run code when it is loaded; "
                                    "convert it with safetensors.torch.save_file";

static void every_format_is_a_folder(void **state) {
    for (size_t i = 0; i < COUNT(kinds); i++) {
        char *path = write_archive(*state, &kinds[i], tree, COUNT(tree));
        assert_true(icma_input_is_archive(path));
        assert_found(path, NULL, found_in_tree);
        support_free(path);
    }
}

static void formats_are_told_by_content(void **state) {
    for (size_t i = 0; i < COUNT(kinds); i++) {
        kind renamed = {"adapters", kinds[i].format, kinds[i].filter};
        char *path = write_archive(*state, &renamed, tree, COUNT(tree));
        assert_found(path, NULL, found_in_tree);
        support_free(path);
    }
}

static void standard_input_is_any_of_them(void **state) {
    for (size_t i = 0; i < COUNT(kinds); i++) {
        icma_input_options options = icma_input_defaults();
        char *path = write_archive(*state, &kinds[i], tree, COUNT(tree));
        options.standard_input = open(path, O_RDONLY);
        assert_true(options.standard_input >= 0);
        assert_found("-", &options, found_in_tree);
        close(options.standard_input);
        support_free(path);
    }
}

/* At the top: the archive's name is the task's. */
static void an_archive_has_a_name(void **state) {
    static const member top[] = {{"adapter_model.safetensors", 0, NULL, NULL, false},
                                 {"adapter_config.json", 0, NULL, "{}", false}};
    static const kind names[] = {{"cat.tar.gz", ARCHIVE_FORMAT_TAR_USTAR, ARCHIVE_FILTER_GZIP},
                                 {"cat.7z", ARCHIVE_FORMAT_7ZIP, ARCHIVE_FILTER_NONE}};
    for (size_t i = 0; i < COUNT(names); i++) {
        char *path = write_archive(*state, &names[i], top, COUNT(top));
        assert_found(path, NULL, "cat: -(adapter_config.json)");
        support_free(path);
    }
    support_make_folder(*state, "dog");
    kind step = {"dog/checkpoint-30.zip", ARCHIVE_FORMAT_ZIP, ARCHIVE_FILTER_NONE};
    char *path = write_archive(*state, &step, top, COUNT(top));
    assert_found(path, NULL, "dog: 30(adapter_config.json)");
    support_free(path);
    icma_input_options options = icma_input_defaults();
    path = write_archive(*state, &names[0], top, COUNT(top));
    options.standard_input = open(path, O_RDONLY);
    assert_found("-", &options, "stdin: -(adapter_config.json)");
    close(options.standard_input);
    support_free(path);
}

static void archives_in_folders_are_named(void **state) {
    support_write_lora(*state, "mixed/cat/adapter_model.safetensors");
    support_write_text(*state, "mixed/dog.zip", "PK\3\4");
    char *path = support_path(*state, "mixed");
    assert_found(path, NULL,
                 "cat: -; skipped dog.zip: an archive in a folder; name it to pack what is in it");
    support_free(path);
}

/* Two archives and a folder at once; twice the same; both at the same time. */
static void archives_go_together(void **state) {
    static const member one[] = {{"bird/adapter_model.safetensors", 0, NULL, NULL, false}};
    support_write_lora(*state, "folder/cow/adapter_model.safetensors");
    kind tar = {"b.tar", ARCHIVE_FORMAT_TAR_USTAR, ARCHIVE_FILTER_NONE};
    char *paths[] = {write_archive(*state, &kinds[0], tree, COUNT(tree)), write_archive(*state, &tar, one, 1),
                     support_path(*state, "folder")};
    icma_inputs first, second;
    char found[4096];
    for (int round = 0; round < 2; round++) {
        assert_int_equal(icma_inputs_find((const char *const *)paths, 3, &first, NULL), ICMA_OK);
        assert_int_equal(icma_inputs_find((const char *const *)paths, 2, &second, NULL), ICMA_OK);
        icma_inputs_free(round ? &first : &second);
        icma_inputs *left = round ? &second : &first;
        describe(left, found, sizeof found);
        assert_memory_equal(found, "bird: - | cat+: 9", 17);
        assert_true(all_whole(left));
        icma_inputs_free(left);
    }
    const char *twice[] = {paths[1], paths[1]};
    assert_int_equal(icma_inputs_find(twice, 2, &first, NULL),
                     ICMA_OK); /* as a folder, it is searched once */
    assert_int_equal(first.task_count, 1);
    icma_inputs_free(&first);
    for (size_t i = 0; i < COUNT(paths); i++)
        support_free(paths[i]);
}

/* A file of its own outlives the inputs, as it would outlive its name. */
static void open_files_stay(void **state) {
    char *path = write_archive(*state, &kinds[3], tree, COUNT(tree));
    icma_inputs inputs;
    icma_file *file;
    uint8_t bytes[16];
    assert_int_equal(find_one(path, NULL, &inputs, NULL), ICMA_OK);
    char *inside = support_path(inputs.tasks[0].checkpoints[0].path, "");
    inside[strlen(inside) - 1] = '\0';
    assert_int_equal(icma_file_open(inside, &file, NULL), ICMA_OK);
    icma_inputs_free(&inputs);
    icma_file_park(file);
    assert_int_equal(icma_file_read(file, 0, bytes, sizeof bytes, NULL), ICMA_OK);
    assert_memory_equal(bytes, adapter, sizeof bytes);
    assert_int_equal(icma_file_check_unchanged(file, NULL), ICMA_OK);
    assert_int_equal(icma_file_read(file, adapter_size - 8, bytes, sizeof bytes, NULL), ICMA_E_CORRUPT);
    icma_file_close(file);
    assert_int_not_equal(icma_file_open(inside, &file, NULL), ICMA_OK);
    support_free(inside);
    support_free(path);
}

/* --- damage -------------------------------------------------------------------------------------------- */

static const member small[] = {{"cat/adapter_model.safetensors", 0, NULL, NULL, false},
                               {"cat/adapter_config.json", 0, NULL, "{\"r\": 2}", false}};

static uint8_t *load(const char *path, size_t *size) {
    uint8_t *image;
    assert_int_equal(icma_file_read_all(path, 1 << 20, &image, size, NULL), ICMA_OK);
    return image;
}

static bool is_refusal(icma_status status) {
    return status == ICMA_E_CORRUPT || status == ICMA_E_FORMAT || status == ICMA_E_UNSUPPORTED ||
           status == ICMA_E_LIMIT || status == ICMA_E_NOT_FOUND || status == ICMA_E_USAGE;
}

/* A prefix of a tar that has a block of zeros is whole; of anything else none is. */
static void every_prefix_is_refused(void **state) {
    for (size_t i = 0; i < COUNT(kinds); i++) {
        size_t size;
        char *path = write_archive(*state, &kinds[i], small, COUNT(small));
        uint8_t *image = load(path, &size);
        bool plain = strstr(kinds[i].name, ".tar") && kinds[i].filter == ARCHIVE_FILTER_NONE;
        size_t content = size, step = size > 4000 ? 37 : 1;
        while (plain && image[content - 1] == 0)
            content--;
        for (size_t length = 0; length < size; length += step) {
            icma_inputs inputs;
            icma_error error = {0};
            support_write_file(*state, kinds[i].name, image, length);
            icma_status status = find_one(path, NULL, &inputs, &error);
            if (status == ICMA_OK && (!plain || length < content + 512 || !all_whole(&inputs)))
                fail_msg("%s: %zu of %zu bytes are taken", path, length, size);
            if (status != ICMA_OK && !is_refusal(status))
                fail_msg("%s: %zu of %zu bytes: %s: %s", path, length, size, icma_status_name(status),
                         error.message);
            icma_inputs_free(&inputs);
        }
        support_free(image);
        support_free(path);
    }
}

/* Behind a checksum every flipped bit is refused or changes nothing that is taken. */
static void flipped_bits_change_nothing(void **state) {
    for (size_t i = 3; i < COUNT(kinds); i++) {
        if (kinds[i].filter == ARCHIVE_FILTER_ZSTD)
            continue; /* libarchive writes no checksums there; zstd itself does */
        size_t size;
        char *path = write_archive(*state, &kinds[i], small, COUNT(small));
        uint8_t *image = load(path, &size);
        for (size_t bit = 0; bit<8 * size; bit += size> 1000 ? 5 : 1) {
            icma_inputs inputs;
            icma_error error = {0};
            image[bit / 8] ^= (uint8_t)(1U << bit % 8);
            support_write_file(*state, kinds[i].name, image, size);
            image[bit / 8] ^= (uint8_t)(1U << bit % 8);
            icma_status status = find_one(path, NULL, &inputs, &error);
            if (status == ICMA_OK && !all_whole(&inputs))
                fail_msg("%s: bit %zu makes another adapter", path, bit);
            if (status != ICMA_OK && !is_refusal(status))
                fail_msg("%s: bit %zu: %s: %s", path, bit, icma_status_name(status), error.message);
            icma_inputs_free(&inputs);
        }
        support_free(image);
        support_free(path);
    }
}

static void what_follows_is_refused(void **state) {
    for (size_t i = 0; i < 6; i++) {
        size_t size;
        char *path = write_archive(*state, &kinds[i], small, COUNT(small));
        uint8_t *image = load(path, &size);
        FILE *file = fopen(path, "ab");
        assert_non_null(file);
        assert_int_equal(fwrite(image, 1, size / 2, file), size / 2);
        assert_int_equal(fclose(file), 0);
        icma_inputs inputs;
        icma_error error = {0};
        assert_int_equal(find_one(path, NULL, &inputs, &error), ICMA_E_CORRUPT);
        support_free(image);
        support_free(path);
    }
}

/* --- refused ------------------------------------------------------------------------------------------- */

static void hostile_members_are_refused(void **state) {
    char deep[3 * 40 + 40] = "", long_name[300], long_path[1300];
    for (int i = 0; i < 40; i++)
        strcat(deep, "a/");
    strcat(deep, "adapter_model.safetensors");
    memset(long_name, 'n', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    for (size_t i = 0; i < sizeof long_path - 1; i++)
        long_path[i] = i % 101 == 100 ? '/' : 'p';
    long_path[sizeof long_path - 1] = '\0';
    const struct {
        member it;
        icma_status status;
        const char *saying;
    } cases[] = {
        {{"../evil/adapter_model.safetensors", 0, NULL, NULL, false}, ICMA_E_CORRUPT, "\"..\""},
        {{"cat/../../evil.safetensors", 0, NULL, NULL, false}, ICMA_E_CORRUPT, "\"..\""},
        {{"cat/..", AE_IFDIR, NULL, NULL, false}, ICMA_E_CORRUPT, "\"..\""},
        {{"/etc/adapter_model.safetensors", 0, NULL, NULL, false}, ICMA_E_CORRUPT, "absolute"},
        {{"cat\\dog.safetensors", 0, NULL, NULL, false}, ICMA_E_CORRUPT, "backslash"},
        {{"cat/\x1b[2Jdog.safetensors", 0, NULL, NULL, false}, ICMA_E_CORRUPT, "control"},
        {{"cat/\xff\xfe.safetensors", 0, NULL, NULL, false}, ICMA_E_CORRUPT, "UTF-8"},
        {{"cat/link.safetensors", AE_IFLNK, "/etc/passwd", NULL, false}, ICMA_E_UNSUPPORTED, "link"},
        {{"cat/link.safetensors", 0, "cat/adapter_model.safetensors", NULL, true},
         ICMA_E_UNSUPPORTED,
         "link"},
        {{"cat/pipe.safetensors", AE_IFIFO, NULL, NULL, false}, ICMA_E_UNSUPPORTED, "pipe"},
        {{"cat/null.safetensors", AE_IFCHR, NULL, NULL, false}, ICMA_E_UNSUPPORTED, "device"},
        {{"cat/sda.safetensors", AE_IFBLK, NULL, NULL, false}, ICMA_E_UNSUPPORTED, "device"},
        {{"cat/adapter_model.safetensors", 0, NULL, NULL, false}, ICMA_E_CORRUPT, "twice"},
        {{"./cat//adapter_model.safetensors", 0, NULL, NULL, false}, ICMA_E_CORRUPT, "twice"},
        {{"cat/adapter_model.safetensors/x.safetensors", 0, NULL, NULL, false},
         ICMA_E_CORRUPT,
         "file and a folder"},
        {{deep, 0, NULL, NULL, false}, ICMA_E_LIMIT, "deep"},
        {{long_name, 0, NULL, NULL, false}, ICMA_E_LIMIT, "too long"},
        {{long_path, 0, NULL, NULL, false}, ICMA_E_LIMIT, "too long"},
        {{"-rf/adapter_model.safetensors", 0, NULL, NULL, false}, ICMA_E_USAGE, "not safe"},
        {{"cat/broken.safetensors", 0, NULL, "no safetensors", false}, ICMA_E_LIMIT, "a header of"},
    };
    kind pax = {"hostile.tar", ARCHIVE_FORMAT_TAR_GNUTAR, ARCHIVE_FILTER_NONE};
    for (size_t i = 0; i < COUNT(cases); i++) {
        member members[] = {small[0], cases[i].it};
        char *path = write_archive(*state, &pax, members, 2);
        assert_refused(path, NULL, cases[i].status, cases[i].saying);
        support_free(path);
    }
}

static void caps_hold(void **state) {
    member many[64];
    char names[64][32];
    for (size_t i = 0; i < COUNT(many); i++) {
        snprintf(names[i], sizeof names[i], "t%zu/adapter_model.safetensors", i);
        many[i] = (member){names[i], 0, NULL, NULL, false};
    }
    for (size_t i = 0; i < COUNT(kinds); i++) {
        char *path = write_archive(*state, &kinds[i], many, COUNT(many));
        icma_input_options options = icma_input_defaults();
        options.most_members = COUNT(many) - 1;
        assert_refused(path, &options, ICMA_E_LIMIT, "more than 63 files");
        options.most_members = COUNT(many);
        options.most_bytes = 40 * adapter_size;
        assert_refused(path, &options, ICMA_E_LIMIT, "bytes when unpacked");
        support_free(path);
    }
}

/* A megabyte of zeros in a kilobyte: what nobody wants counts as well. */
static void bombs_are_refused(void **state) {
    char *zeros = calloc(1 << 20, 1);
    memset(zeros, '0', (1 << 20) - 1);
    for (size_t i = 0; i < COUNT(kinds); i++) {
        const member bomb[] = {{"cat/events.out.tfevents", 0, NULL, zeros, false}, small[0]};
        char *path = write_archive(*state, &kinds[i], bomb, COUNT(bomb));
        icma_input_options options = icma_input_defaults();
        options.most_bytes = 1 << 19;
        assert_refused(path, &options, ICMA_E_LIMIT, "bytes when unpacked");
        options.most_bytes = 1 << 21;
        assert_found(path, &options, "cat: -");
        support_free(path);
    }
    free(zeros);
}

static void encryption_is_told(void **state) {
    char *path = support_path(*state, "locked.zip");
    struct archive *a = archive_write_new();
    archive_write_set_format_zip(a);
    if (archive_write_set_options(a, "zip:encryption=traditional") != ARCHIVE_OK) {
        archive_write_free(a);
        support_free(path);
        skip();
    }
    archive_write_set_passphrase(a, "secret");
    assert_int_equal(archive_write_open_filename(a, path), ARCHIVE_OK);
    write_member(a, &small[0]);
    assert_int_equal(archive_write_close(a), ARCHIVE_OK);
    archive_write_free(a);
    assert_refused(path, NULL, ICMA_E_UNSUPPORTED, "encrypted");
    support_free(path);
}

static void other_archives_are_told(void **state) {
    static const struct {
        const char *name, *text;
        icma_status status;
        const char *saying;
    } cases[] = {
        {"x.tar.bz2", "BZh91AY&SY", ICMA_E_UNSUPPORTED, "does not read"},
        {"x.rar", "Rar!\x1a\x07\x01", ICMA_E_UNSUPPORTED, "does not read"},
        {"x.zip", "no zip", ICMA_E_FORMAT, "no tar, zip or 7z"},
        {"x.tar", "", ICMA_E_FORMAT, "no tar, zip or 7z"},
        {"model.pt", "PK\3\4 and more", ICMA_E_UNSUPPORTED, "pickle"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        support_write_text(*state, cases[i].name, cases[i].text);
        char *path = support_path(*state, cases[i].name);
        assert_refused(path, NULL, cases[i].status, cases[i].saying);
        support_free(path);
    }
    static const member torch[] = {{"archive/data.pkl", 0, NULL, "\x80\x02", false}};
    kind zip = {"renamed", ARCHIVE_FORMAT_ZIP, ARCHIVE_FILTER_NONE};
    char *path = write_archive(*state, &zip, torch, 1);
    assert_refused(path, NULL, ICMA_E_UNSUPPORTED, "pickle");
    support_free(path);
}

/* --- the temporary ------------------------------------------------------------------------------------- */

static size_t count_entries(const char *folder) {
    size_t count = 0;
    DIR *list = opendir(folder);
    assert_non_null(list);
    for (const struct dirent *next = readdir(list); next; next = readdir(list))
        count += next->d_name[0] != '.' || strlen(next->d_name) > 2;
    closedir(list);
    return count;
}

static void nothing_lies_about(void **state) {
    support_make_folder(*state, "tmp");
    char *temporary = support_path(*state, "tmp"), *nowhere = support_path(*state, "nowhere");
    char *path = write_archive(*state, &kinds[4], tree, COUNT(tree));
    icma_input_options options = icma_input_defaults();
    icma_inputs inputs;
    options.temporary = temporary;
    assert_int_equal(find_one(path, &options, &inputs, NULL), ICMA_OK);
    assert_true(icma_spool_size(inputs.spool) > 0);
    assert_int_equal(count_entries(temporary), 0);
    icma_inputs_free(&inputs);
    options.temporary = nowhere;
    icma_error error = {0};
    assert_int_equal(find_one(path, &options, &inputs, &error), ICMA_E_IO);
    assert_non_null(strstr(error.message, "temporary"));
    icma_spool *spool;
    assert_int_equal(icma_spool_create(temporary, &spool, NULL), ICMA_OK);
    options.spool = spool;
    assert_found(path, &options, found_in_tree);
    icma_spool_release(spool);
    support_free(path);
    support_free(nowhere);
    support_free(temporary);
}

static void memory_may_run_out(void **state) {
    for (size_t i = 0; i < COUNT(kinds); i++) {
        char *path = write_archive(*state, &kinds[i], small, COUNT(small));
        for (size_t k = 0;; k++) {
            support_budget budget = {.left = k};
            icma_inputs inputs;
            icma_error error = {0};
            support_limit_memory(&budget);
            icma_status status = find_one(path, NULL, &inputs, &error);
            icma_inputs_free(&inputs);
            support_limit_memory(NULL);
            assert_int_equal(budget.live, 0);
            if (status == ICMA_OK)
                break;
            /* An archive that cannot be opened to be told is taken for a file, which cannot be opened either.
             */
            assert_int_equal(status, ICMA_E_MEMORY);
        }
        support_free(path);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_format_is_a_folder, setup, teardown),
        cmocka_unit_test_setup_teardown(formats_are_told_by_content, setup, teardown),
        cmocka_unit_test_setup_teardown(standard_input_is_any_of_them, setup, teardown),
        cmocka_unit_test_setup_teardown(an_archive_has_a_name, setup, teardown),
        cmocka_unit_test_setup_teardown(archives_in_folders_are_named, setup, teardown),
        cmocka_unit_test_setup_teardown(archives_go_together, setup, teardown),
        cmocka_unit_test_setup_teardown(open_files_stay, setup, teardown),
        cmocka_unit_test_setup_teardown(every_prefix_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(flipped_bits_change_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(what_follows_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(hostile_members_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(caps_hold, setup, teardown),
        cmocka_unit_test_setup_teardown(bombs_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(encryption_is_told, setup, teardown),
        cmocka_unit_test_setup_teardown(other_archives_are_told, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_lies_about, setup, teardown),
        cmocka_unit_test_setup_teardown(memory_may_run_out, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
