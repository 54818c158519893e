/* SPDX-License-Identifier: Apache-2.0 */
#include "compress.h"
#include "container.h"
#include "memory.h"
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* --- archives made by the writer ----------------------------------------------------------------------- */

static void add(icma_container_writer *writer, uint16_t kind, uint32_t group, uint32_t task, uint32_t first,
                const void *data, size_t size, int level) {
    icma_section section = {.kind = kind, .group = group, .task = task, .first = first, .count = 1};
    section.flags = kind == 999 ? ICMA_SECTION_OPTIONAL : 0;
    assert_status(icma_container_add(writer, &section, data, size, level, NULL), ICMA_OK);
    assert_int_equal(section.offset % 64, 0);
    assert_int_equal(section.raw_size, size);
}

static char text_of_200[201];

static void write_small(const char *path) {
    static const char *const names[] = {"cat", "dog of 64"};
    icma_container_writer *writer;
    memset(text_of_200, 'z', 200);
    assert_status(icma_container_create(path, true, &writer, NULL), ICMA_OK);
    /* not in index order on purpose */
    add(writer, ICMA_SECTION_TASK, 0, 1, 0, "dog", 3, 0);
    add(writer, ICMA_SECTION_SIGNATURE, 0, ICMA_NO_OWNER, 0, text_of_200, 200, 3);
    add(writer, ICMA_SECTION_TASK, 0, 0, 0, "kitten", 6, 19);
    add(writer, ICMA_SECTION_VERBATIM, 0, 1, 5, text_of_200, 64, 0);
    add(writer, ICMA_SECTION_VERBATIM, 0, 1, 0, text_of_200, 63, 0);
    add(writer, 999, ICMA_NO_OWNER, ICMA_NO_OWNER, 7, "unknown", 7, 0);
    assert_status(icma_container_finish(writer, names, 2, 1, NULL), ICMA_OK);
    icma_container *container; /* what is there before the commit can be checked */
    assert_status(icma_container_open(icma_container_temporary(writer), &container, NULL), ICMA_OK);
    icma_container_close(container);
    assert_status(icma_container_commit(writer, NULL), ICMA_OK);
}

static void read_image(const char *path, uint8_t **image, size_t *size) {
    assert_status(icma_file_read_all(path, 1 << 28, image, size, NULL), ICMA_OK);
}

/* Opens and loads everything; the first status that is not ICMA_OK. */
static icma_status read_everything(const uint8_t *image, size_t size) {
    icma_container *container;
    icma_status status = icma_container_open_memory(image, size, &container, NULL);
    if (status != ICMA_OK) {
        assert_null(container);
        return status;
    }
    for (size_t i = 0; i < icma_container_section_count(container) && status == ICMA_OK; i++) {
        uint8_t *data;
        const icma_section *section = icma_container_section(container, i);
        status = icma_container_load(container, section, 1 << 20, &data, NULL);
        assert_int_equal(status == ICMA_OK ? icma_container_check(container, section, NULL) : 0, 0);
        icma_free(data);
    }
    icma_container_close(container);
    return status;
}

static void assert_section(icma_container *container, const icma_section *section, const char *wanted,
                           size_t size) {
    uint8_t *data;
    assert_non_null(section);
    assert_int_equal(section->raw_size, size);
    assert_status(icma_container_load(container, section, size, &data, NULL), ICMA_OK);
    assert_memory_equal(data, wanted, size);
    icma_free(data);
    assert_status(icma_container_load(container, section, size - 1, &data, NULL), ICMA_E_LIMIT);
    assert_null(data);
    assert_status(icma_container_check(container, section, NULL), ICMA_OK);
}

static void what_goes_in_comes_out(void **state) {
    const char *path = scratch_path(state, "a.icma");
    icma_container *container;
    const icma_section *first;
    write_small(path);
    assert_status(icma_container_open(path, &container, NULL), ICMA_OK);
    assert_string_equal(icma_container_path(container), path);
    assert_int_equal(icma_container_section_count(container), 6);
    assert_int_equal(icma_container_group_count(container), 1);
    assert_int_equal(icma_container_task_count(container), 2);
    assert_string_equal(icma_container_task_name(container, 0), "cat");
    assert_string_equal(icma_container_task_name(container, 1), "dog of 64");
    assert_null(icma_container_task_name(container, 2));
    assert_null(icma_container_section(container, 6));

    const icma_section *signature = icma_container_find(container, ICMA_SECTION_SIGNATURE, 0, ICMA_NO_OWNER);
    assert_section(container, signature, text_of_200, 200);
    assert_int_equal(signature->coding, ICMA_CODING_ZSTD);
    assert_true(signature->stored_size < 200);
    const icma_section *cat = icma_container_find(container, ICMA_SECTION_TASK, 0, 0);
    assert_section(container, cat, "kitten", 6);
    assert_int_equal(cat->coding, ICMA_CODING_RAW); /* zstd would not have paid */
    assert_section(container, cat + 1, "dog", 3);
    assert_int_equal(icma_container_range(container, ICMA_SECTION_VERBATIM, 0, 1, &first), 2);
    assert_section(container, first, text_of_200, 63);
    assert_section(container, first + 1, text_of_200, 64);
    assert_int_equal(first[1].first, 5);
    assert_section(container, icma_container_find(container, 999, ICMA_NO_OWNER, ICMA_NO_OWNER), "unknown",
                   7);

    assert_null(icma_container_find(container, ICMA_SECTION_TASK, 0, 2));
    assert_null(icma_container_find(container, ICMA_SECTION_TASK, 1, 0));
    assert_null(icma_container_find(container, 0, 0, 0));
    assert_int_equal(icma_container_range(container, UINT16_MAX, ICMA_NO_OWNER, ICMA_NO_OWNER, &first), 0);
    assert_null(first);
    icma_container_close(container);
}

static void the_same_in_gives_the_same_bytes(void **state) {
    uint8_t *a, *b;
    size_t a_size, b_size;
    write_small(scratch_path(state, "a.icma"));
    write_small(scratch_path(state, "b.icma"));
    read_image(scratch_path(state, "a.icma"), &a, &a_size);
    read_image(scratch_path(state, "b.icma"), &b, &b_size);
    assert_int_equal(a_size, b_size);
    assert_memory_equal(a, b, a_size);
    icma_free(a);
    icma_free(b);
}

static void sections_tile_the_file(void **state) {
    const char *path = scratch_path(state, "a.icma");
    icma_container *container;
    struct stat seen;
    uint64_t covered = 0;
    write_small(path);
    assert_int_equal(stat(path, &seen), 0);
    assert_status(icma_container_open(path, &container, NULL), ICMA_OK);
    assert_true(icma_container_size(container) == (uint64_t)seen.st_size);
    for (size_t i = 0; i < icma_container_section_count(container); i++)
        covered += icma_container_section(container, i)->stored_size;
    assert_true(covered + icma_container_index_size(container) == (uint64_t)seen.st_size);
    icma_container_close(container);
}

static void every_bit_flip_is_noticed(void **state) {
    uint8_t *image;
    size_t size;
    write_small(scratch_path(state, "a.icma"));
    read_image(scratch_path(state, "a.icma"), &image, &size);
    assert_status(read_everything(image, size), ICMA_OK);
    for (size_t bit = 0; bit < 8 * size; bit++) {
        image[bit / 8] ^= (uint8_t)(1 << bit % 8);
        icma_status status = read_everything(image, size);
        if (status != (bit < 64 ? ICMA_E_FORMAT : ICMA_E_CORRUPT))
            fail_msg("bit %zu: %s", bit, icma_status_name(status));
        image[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    icma_free(image);
}

static void every_prefix_is_noticed(void **state) {
    const char *path = scratch_path(state, "a.icma"), *cut_path = scratch_path(state, "cut.icma");
    uint8_t *image;
    size_t size;
    write_small(path);
    read_image(path, &image, &size);
    for (size_t prefix = 0; prefix < size; prefix++) {
        uint8_t *cut = malloc(prefix ? prefix : 1); /* no byte more, for the sanitizer */
        memcpy(cut, image, prefix);
        icma_status wanted = prefix < 8 ? ICMA_E_FORMAT : ICMA_E_CORRUPT;
        assert_int_equal(read_everything(cut, prefix), wanted);
        free(cut);
        if (prefix % 61 == 0) {
            icma_container *container;
            icma_error error = {0};
            write_file(cut_path, image, prefix);
            assert_int_equal(icma_container_open(cut_path, &container, &error), wanted);
            assert_string_equal(error.file, cut_path);
        }
    }
    icma_free(image);
}

static void nothing_may_follow(void **state) {
    uint8_t *image;
    size_t size;
    write_small(scratch_path(state, "a.icma"));
    read_image(scratch_path(state, "a.icma"), &image, &size);
    uint8_t *more = calloc(1, 2 * size + 128);
    memcpy(more, image, size);
    assert_status(read_everything(more, size + 1), ICMA_E_CORRUPT);
    assert_status(read_everything(more, size + 64), ICMA_E_CORRUPT);
    memcpy(more + size, image + size - 64, 64); /* a second footer */
    assert_status(read_everything(more, size + 64), ICMA_E_CORRUPT);
    memcpy(more + size, image, size); /* a second archive */
    assert_status(read_everything(more, 2 * size), ICMA_E_CORRUPT);
    memset(more, 0, 64); /* something before it */
    memcpy(more + 64, image, size);
    assert_status(read_everything(more, size + 64), ICMA_E_FORMAT);
    free(more);
    icma_free(image);
}

/* All sections of an archive into another, task `gone` left out and the others renumbered. */
static icma_status copy_all(icma_container *from, const char *path, uint32_t gone) {
    const char *names[2];
    uint32_t numbers[2] = {0};
    size_t count = 0;
    icma_container_writer *writer;
    for (uint32_t t = 0; t < 2; t++)
        if (t != gone) {
            numbers[t] = (uint32_t)count;
            names[count++] = icma_container_task_name(from, t);
        }
    assert_status(icma_container_create(path, true, &writer, NULL), ICMA_OK);
    icma_status status = ICMA_OK;
    for (size_t i = 0; !status && i < icma_container_section_count(from); i++) {
        const icma_section *s = icma_container_section(from, i);
        if (s->task != gone)
            status = icma_container_copy(writer, from, s, s->group,
                                         s->task == ICMA_NO_OWNER ? ICMA_NO_OWNER : numbers[s->task], NULL);
    }
    if (!status)
        status = icma_container_finish(writer, names, count, 1, NULL);
    if (!status)
        return icma_container_commit(writer, NULL);
    icma_container_abandon(writer);
    return status;
}

/* A copied section has the bytes, coding and checksum that it had, whatever its number; a damaged one is not
 * copied. */
static void sections_are_copied_as_they_are(void **state) {
    const char *path = scratch_path(state, "a.icma"), *other = scratch_path(state, "b.icma");
    icma_container *from, *to;
    uint8_t *image;
    size_t size;
    write_small(path);
    assert_status(icma_container_open(path, &from, NULL), ICMA_OK);
    assert_status(copy_all(from, other, 0), ICMA_OK);
    assert_status(icma_container_open(other, &to, NULL), ICMA_OK);
    assert_int_equal(icma_container_section_count(to), 5);
    assert_int_equal(icma_container_task_count(to), 1);
    assert_string_equal(icma_container_task_name(to, 0), "dog of 64");
    for (size_t i = 0; i < icma_container_section_count(from); i++) {
        const icma_section *s = icma_container_section(from, i), *copy;
        if (s->task == 0)
            continue;
        copy = icma_container_find(to, s->kind, s->group, s->task == 1 ? 0 : ICMA_NO_OWNER);
        while (copy && copy->first != s->first)
            copy++;
        assert_non_null(copy);
        assert_true(copy->hash == s->hash && copy->stored_size == s->stored_size &&
                    copy->raw_size == s->raw_size);
        assert_true(copy->coding == s->coding && copy->flags == s->flags && copy->count == s->count);
        assert_status(icma_container_check(to, copy, NULL), ICMA_OK);
    }
    icma_container_close(to);
    read_image(path, &image, &size);
    for (size_t i = 0; i < icma_container_section_count(from); i++) {
        const icma_section *s = icma_container_section(from, i);
        size_t last = (size_t)(s->offset + s->stored_size - 1),
               places[] = {(size_t)s->offset, last, last / 64 * 64 + 63};
        for (size_t k = 0; k < sizeof places / sizeof *places; k++) {
            image[places[k]] ^= 1;
            assert_status(icma_container_open_memory(image, size, &to, NULL), ICMA_OK);
            assert_status(copy_all(to, other, UINT32_MAX - 1), ICMA_E_CORRUPT);
            assert_int_equal(copy_all(to, other, 0), s->task == 0 ? ICMA_OK : ICMA_E_CORRUPT);
            icma_container_close(to);
            image[places[k]] ^= 1;
        }
    }
    icma_free(image);
    icma_container_close(from);
}

/* The status of each section of write_small's archive, in index order, by load and by check. */
static void assert_only_this_fails(const uint8_t *image, size_t size, size_t damaged) {
    icma_container *container;
    assert_status(icma_container_open_memory(image, size, &container, NULL), ICMA_OK);
    for (size_t i = 0; i < icma_container_section_count(container); i++) {
        uint8_t *data;
        const icma_section *section = icma_container_section(container, i);
        icma_status wanted = i == damaged ? ICMA_E_CORRUPT : ICMA_OK;
        assert_int_equal(icma_container_check(container, section, NULL), wanted);
        assert_int_equal(icma_container_load(container, section, 1000, &data, NULL), wanted);
        assert_true((data == NULL) == (wanted != ICMA_OK));
        icma_free(data);
    }
    icma_container_close(container);
}

static void one_damaged_section_leaves_the_others(void **state) {
    icma_container *container;
    uint8_t *image;
    size_t size;
    write_small(scratch_path(state, "a.icma"));
    read_image(scratch_path(state, "a.icma"), &image, &size);
    assert_only_this_fails(image, size, SIZE_MAX);
    assert_status(icma_container_open_memory(image, size, &container, NULL), ICMA_OK);
    for (size_t i = 0; i < icma_container_section_count(container); i++) {
        const icma_section *section = icma_container_section(container, i);
        size_t last = (size_t)(section->offset + section->stored_size - 1);
        size_t padding = last / 64 * 64 + 63;
        image[last] ^= 1;
        assert_only_this_fails(image, size, i);
        image[last] ^= 1;
        if (padding == last)
            continue;
        image[padding] = 1;
        assert_only_this_fails(image, size, i);
        image[padding] = 0;
    }
    icma_container_close(container);
    icma_free(image);
}

/* --- archives forged by hand ---------------------------------------------------------------------------- */

/* An archive written from the spec, not with the writer: what it says can be made wrong piece by piece, with
 * every checksum right. By default it has three sections of one group and two tasks. */
typedef struct forgery {
    uint8_t header[64];
    uint8_t body[192];
    icma_section sections[4];
    uint32_t section_count, group_count, task_count, index_reserved, entry_reserved;
    const char *names; /* length-prefixed */
    size_t names_size;
    uint8_t index_padding;
    uint64_t footer_gap; /* bytes between the index's padding and the footer */
    uint64_t index_gap;  /* bytes between sections and index */
    uint64_t index_cut;  /* bytes that the index lacks at its end */
    uint64_t footer[6];  /* xor-ed into the footer's fields; [5]: coding and reserved */
} forgery;

static forgery honest(void) {
    forgery f = {
        .section_count = 3, .group_count = 1, .task_count = 2, .names = "\3cat\3dog", .names_size = 8};
    memcpy(f.header, "\x89ICMA\r\n\x1a", 8);
    for (size_t i = 0; i < 3; i++) {
        memset(f.body + 64 * i, 'a' + (int)i, 10 + i);
        f.sections[i] = (icma_section){.offset = 64 + 64 * i, .stored_size = 10 + i, .raw_size = 10 + i};
        f.sections[i].hash = icma_hash(f.body + 64 * i, 10 + i);
        f.sections[i].kind = i ? ICMA_SECTION_TASK : ICMA_SECTION_SIGNATURE;
        f.sections[i].task = i ? (uint32_t)i - 1 : ICMA_NO_OWNER;
    }
    return f;
}

static void put_index(const forgery *f, icma_buffer *index) {
    uint8_t table[4 * 56], grouped[4 * 56];
    size_t count = f->section_count < 4 ? f->section_count : 4;
    for (size_t i = 0; i < count; i++) {
        const icma_section *s = &f->sections[i];
        uint8_t *e = table + 56 * i;
        icma_store_u64(e, s->offset);
        icma_store_u64(e + 8, s->stored_size);
        icma_store_u64(e + 16, s->raw_size);
        icma_store_u64(e + 24, s->hash);
        icma_store_u16(e + 32, s->kind);
        e[34] = s->coding;
        e[35] = s->flags;
        icma_store_u32(e + 36, s->group);
        icma_store_u32(e + 40, s->task);
        icma_store_u32(e + 44, s->first);
        icma_store_u32(e + 48, s->count);
        icma_store_u32(e + 52, f->entry_reserved);
    }
    icma_group_bytes(table, count, 56, grouped);
    icma_write_u32(index, f->section_count);
    icma_write_u32(index, f->group_count);
    icma_write_u32(index, f->task_count);
    icma_write_u32(index, f->index_reserved);
    icma_write_bytes(index, grouped, 56 * count);
    icma_write_bytes(index, f->names, f->names_size);
    index->size -= (size_t)f->index_cut;
}

static void forge(const forgery *f, icma_buffer *image) {
    icma_buffer index = {0};
    put_index(f, &index);
    icma_write_bytes(image, f->header, 56);
    icma_write_u64(image, icma_hash(f->header, 56));
    icma_write_bytes(image, f->body, sizeof f->body);
    icma_write_zeros(image, (size_t)f->index_gap);
    uint64_t offset = image->size;
    icma_write_bytes(image, index.data, index.size);
    while (image->size % 64)
        icma_write_u8(image, f->index_padding);
    icma_write_zeros(image, (size_t)f->footer_gap);
    size_t start = image->size;
    icma_write_u64(image, offset ^ f->footer[0]);
    icma_write_u64(image, index.size ^ f->footer[1]);
    icma_write_u64(image, index.size ^ f->footer[2]);
    icma_write_u64(image, icma_hash(index.data, index.size) ^ f->footer[3]);
    icma_write_u64(image, (start + 64) ^ f->footer[4]);
    icma_write_u64(image, f->footer[5]);
    icma_write_bytes(image, "\x8aICMAend", 8);
    icma_write_u64(image, icma_hash(image->data + start, 56));
    icma_buffer_free(&index);
}

static icma_status read_forgery(const forgery *f) {
    icma_buffer image = {0};
    forge(f, &image);
    icma_status status = read_everything(image.data, image.size);
    icma_buffer_free(&image);
    return status;
}

/* Tells which change was not answered as it should. */
#define EXPECT(wanted, ...)                                                                                  \
    do {                                                                                                     \
        forgery f = honest();                                                                                \
        __VA_ARGS__;                                                                                         \
        icma_status got = read_forgery(&f);                                                                  \
        if (got != (wanted))                                                                                 \
            fail_msg("%s: %s", #__VA_ARGS__, icma_status_name(got));                                         \
    } while (0)

static void the_spec_suffices_for_an_archive(void **state) {
    (void)state;
    EXPECT(ICMA_OK, f.index_cut = 0);
    EXPECT(ICMA_OK, f.names = "\3dog\3cat");
    EXPECT(ICMA_OK, f.sections[1].count = UINT32_MAX);
}

static void headers_and_footers_from_the_future(void **state) {
    (void)state;
    EXPECT(ICMA_E_UNSUPPORTED, f.header[8] = 1);
    EXPECT(ICMA_E_UNSUPPORTED, f.header[9] = 0xff);
    EXPECT(ICMA_E_UNSUPPORTED, f.header[10] = 1);
    EXPECT(ICMA_E_UNSUPPORTED, f.header[12] = 1);
    EXPECT(ICMA_E_UNSUPPORTED, f.header[15] = 0x80);
    EXPECT(ICMA_E_UNSUPPORTED, f.header[20] = 1);
    EXPECT(ICMA_E_UNSUPPORTED, f.header[55] = 1);
    EXPECT(ICMA_OK, f.header[16] = 1); /* optional features may be ignored */
    EXPECT(ICMA_OK, f.header[19] = 0x80);
    EXPECT(ICMA_E_FORMAT, f.header[7] = 0);
    EXPECT(ICMA_E_UNSUPPORTED, f.footer[5] = 2);
    EXPECT(ICMA_E_UNSUPPORTED, f.footer[5] = 0x100);
    EXPECT(ICMA_E_UNSUPPORTED, f.footer[5] = UINT64_C(1) << 63);
    EXPECT(ICMA_E_UNSUPPORTED, f.index_reserved = 1);
    EXPECT(ICMA_E_UNSUPPORTED, f.entry_reserved = 0x80000000);
}

static void indexes_in_impossible_places(void **state) {
    (void)state;
    EXPECT(ICMA_E_CORRUPT, f.footer[0] = 1);
    EXPECT(ICMA_E_CORRUPT, f.footer[0] = 64);
    EXPECT(ICMA_E_CORRUPT, f.footer[0] = 256);
    EXPECT(ICMA_E_CORRUPT, f.footer[0] = UINT64_C(1) << 63);
    EXPECT(ICMA_E_CORRUPT, f.footer[1] = 1);
    EXPECT(ICMA_E_CORRUPT, f.footer[1] = 64);
    EXPECT(ICMA_E_CORRUPT, f.footer[1] = UINT64_C(1) << 63);
    EXPECT(ICMA_E_CORRUPT, f.footer[2] = 1);
    EXPECT(ICMA_E_LIMIT, f.footer[2] = UINT64_C(1) << 30);
    EXPECT(ICMA_E_LIMIT, f.footer[2] = UINT64_C(1) << 63);
    EXPECT(ICMA_E_CORRUPT, f.footer[3] = 1);
    EXPECT(ICMA_E_CORRUPT, f.footer[4] = 64);
    EXPECT(ICMA_E_CORRUPT, f.footer[5] = ICMA_CODING_ZSTD);
    /* more than a file of this size can have an index for: refused before it is allocated */
    EXPECT(ICMA_E_CORRUPT, f.footer[5] = ICMA_CODING_ZSTD, f.footer[2] = UINT64_C(1) << 29);
    EXPECT(ICMA_E_CORRUPT, f.footer[5] = ICMA_CODING_ZSTD, f.footer[2] = 1 << 20); /* not zstd after all */
    EXPECT(ICMA_E_CORRUPT, f.names = "\3cat\4dogs", f.names_size = 9, f.index_padding = 1);
    EXPECT(ICMA_E_CORRUPT, f.index_gap = 64);
    EXPECT(ICMA_E_CORRUPT, f.index_gap = 8);
    EXPECT(ICMA_E_CORRUPT, f.footer_gap = 64);
}

static void indexes_with_impossible_lengths(void **state) {
    (void)state;
    EXPECT(ICMA_E_CORRUPT, f.index_cut = 1);
    EXPECT(ICMA_E_CORRUPT, f.index_cut = 5);
    EXPECT(ICMA_E_CORRUPT, f.index_cut = 20);
    EXPECT(ICMA_E_CORRUPT, f.index_cut = 8 + 3 * 56);
    EXPECT(ICMA_E_CORRUPT, f.index_cut = 8 + 3 * 56 + 1);
    EXPECT(ICMA_E_CORRUPT, f.section_count = 5);
    EXPECT(ICMA_E_UNSUPPORTED, f.section_count = 4); /* the fourth is all zero, and there is no kind 0 */
    EXPECT(ICMA_E_CORRUPT, f.section_count = 2);
    EXPECT(ICMA_E_CORRUPT, f.section_count = 0);
    EXPECT(ICMA_E_CORRUPT, f.section_count = ICMA_MAX_SECTIONS);
    EXPECT(ICMA_E_LIMIT, f.section_count = ICMA_MAX_SECTIONS + 1);
    EXPECT(ICMA_E_LIMIT, f.section_count = UINT32_MAX);
    EXPECT(ICMA_E_CORRUPT, f.group_count = 2);
    EXPECT(ICMA_E_CORRUPT, f.group_count = ICMA_MAX_GROUPS);
    EXPECT(ICMA_E_LIMIT, f.group_count = ICMA_MAX_GROUPS + 1);
    EXPECT(ICMA_E_CORRUPT, f.group_count = 0);
    EXPECT(ICMA_E_CORRUPT, f.task_count = 1);
    EXPECT(ICMA_E_CORRUPT, f.task_count = 3);
    EXPECT(ICMA_E_CORRUPT, f.task_count = 3, f.names = "\3cat\3dog\3pig", f.names_size = 12);
    EXPECT(ICMA_E_CORRUPT, f.task_count = ICMA_MAX_TASKS);
    EXPECT(ICMA_E_LIMIT, f.task_count = ICMA_MAX_TASKS + 1);
}

static void names_that_will_not_do(void **state) {
    (void)state;
    EXPECT(ICMA_E_CORRUPT, f.names = "\3cat\3cat");
    EXPECT(ICMA_E_CORRUPT, f.names = "\3cat\3cAT");
    EXPECT(ICMA_E_CORRUPT, f.names = "\3cat\3a/b");
    EXPECT(ICMA_E_CORRUPT, f.names = "\3cat\3-rf");
    EXPECT(ICMA_E_CORRUPT, f.names = "\3cat\3a\0b");
    EXPECT(ICMA_E_CORRUPT, f.names = "\3cat\2..", f.names_size = 7);
    EXPECT(ICMA_E_CORRUPT, f.names = "\3cat\0", f.names_size = 5);
    EXPECT(ICMA_E_CORRUPT, f.names = "\3cat\4dog");
    EXPECT(ICMA_E_CORRUPT, f.names = "\3cat\2dog");
    EXPECT(ICMA_E_CORRUPT, f.names = "\3cat\3\xff\xff\xff");
    EXPECT(ICMA_OK, f.names = "\3cat\3c\xc3\xa9");
}

static void swap_places(forgery *f, size_t a, size_t b) {
    icma_section *x = &f->sections[a], *y = &f->sections[b], held = *x;
    x->offset = y->offset, x->stored_size = y->stored_size, x->raw_size = y->raw_size, x->hash = y->hash;
    y->offset = held.offset, y->stored_size = held.stored_size, y->raw_size = held.raw_size,
    y->hash = held.hash;
}

/* Sizes that add up are not enough: a hole first, and the last section in the index. Refused on opening. */
static void sections_that_are_shifted(void **state) {
    (void)state;
    forgery f = honest();
    icma_buffer image = {0};
    icma_container *container;
    for (size_t i = 0; i < 3; i++)
        f.sections[i].offset += 64;
    forge(&f, &image);
    assert_status(icma_container_open_memory(image.data, image.size, &container, NULL), ICMA_E_CORRUPT);
    icma_buffer_free(&image);
}

static void sections_that_do_not_tile(void **state) {
    (void)state;
    EXPECT(ICMA_E_CORRUPT, f.sections[0].offset = 0);   /* the header */
    EXPECT(ICMA_E_CORRUPT, f.sections[0].offset = 65);  /* not aligned */
    EXPECT(ICMA_E_CORRUPT, f.sections[1].offset = 64);  /* aliases another */
    EXPECT(ICMA_E_CORRUPT, f.sections[2].offset = 256); /* the index */
    EXPECT(ICMA_E_CORRUPT, f.sections[2].offset = UINT64_MAX - 63);
    EXPECT(ICMA_E_CORRUPT, f.sections[0].stored_size = f.sections[0].raw_size = 65); /* overlap */
    EXPECT(ICMA_E_CORRUPT, f.sections[2].stored_size = f.sections[2].raw_size = 65); /* into the index */
    EXPECT(ICMA_E_CORRUPT, f.sections[2].stored_size = f.sections[2].raw_size = UINT64_C(1) << 40);
    EXPECT(ICMA_E_LIMIT, f.sections[2].stored_size = f.sections[2].raw_size = (UINT64_C(1) << 40) + 1);
    EXPECT(ICMA_E_CORRUPT, f.sections[1].stored_size = f.sections[1].raw_size = 0); /* empty */
    EXPECT(ICMA_OK, swap_places(&f, 1, 2)); /* sections may lie in any order */
}

static void sections_that_make_no_sense(void **state) {
    (void)state;
    EXPECT(ICMA_E_UNSUPPORTED, f.sections[2].kind = 999);
    EXPECT(ICMA_E_UNSUPPORTED, f.sections[0].kind = 0);
    EXPECT(ICMA_OK, f.sections[2].kind = 999, f.sections[2].flags = ICMA_SECTION_OPTIONAL);
    EXPECT(ICMA_OK, f.sections[2].flags = ICMA_SECTION_OPTIONAL);
    EXPECT(ICMA_E_UNSUPPORTED, f.sections[2].flags = 2);
    EXPECT(ICMA_E_UNSUPPORTED, f.sections[2].flags = 0x81);
    EXPECT(ICMA_E_UNSUPPORTED, f.sections[2].coding = 2);
    EXPECT(ICMA_E_CORRUPT, f.sections[2].raw_size++);
    EXPECT(ICMA_E_CORRUPT, f.sections[2].coding = ICMA_CODING_ZSTD);
    EXPECT(ICMA_E_CORRUPT, f.sections[2].coding = ICMA_CODING_ZSTD, f.sections[2].raw_size++); /* at load */
    EXPECT(ICMA_E_LIMIT, f.sections[2].coding = ICMA_CODING_ZSTD, f.sections[2].raw_size = (1 << 20) + 1);
    EXPECT(ICMA_E_LIMIT, f.sections[2].coding = ICMA_CODING_ZSTD, f.sections[2].raw_size = UINT64_MAX);
    EXPECT(ICMA_E_CORRUPT, f.sections[1].group = 1);
    EXPECT(ICMA_E_CORRUPT, f.sections[2].task = 2);
    EXPECT(ICMA_E_CORRUPT, f.sections[2].task = 0);                          /* twice the same */
    EXPECT(ICMA_E_CORRUPT, f.sections[2].task = 0, f.sections[2].first = 1); /* dog has none then */
    EXPECT(ICMA_E_CORRUPT, f.sections[1].task = 1, f.sections[2].task = 0);  /* out of order */
    EXPECT(ICMA_E_CORRUPT, f.sections[1].kind = 7, f.sections[2].kind = 6);
    EXPECT(ICMA_E_CORRUPT, f.sections[2].first = UINT32_MAX, f.sections[2].count = 1);
    EXPECT(ICMA_OK, f.sections[2].first = UINT32_MAX - 1, f.sections[2].count = 1);
    EXPECT(ICMA_E_CORRUPT, f.sections[2].hash++); /* at load */
    EXPECT(ICMA_E_CORRUPT, f.body[191] = 1);      /* padding, at load */
    EXPECT(ICMA_E_CORRUPT, f.body[10] = 1);
}

static void an_archive_may_be_empty(void **state) {
    const char *path = scratch_path(state, "a.icma");
    icma_container_writer *writer;
    icma_container *container;
    assert_status(icma_container_create(path, false, &writer, NULL), ICMA_OK);
    assert_status(icma_container_finish(writer, NULL, 0, 0, NULL), ICMA_OK);
    assert_status(icma_container_commit(writer, NULL), ICMA_OK);
    assert_status(icma_container_open(path, &container, NULL), ICMA_OK);
    assert_int_equal(icma_container_section_count(container) + icma_container_task_count(container), 0);
    assert_int_equal(icma_container_size(container), 192);
    assert_int_equal(icma_container_index_size(container), 192);
    assert_null(icma_container_find(container, 1, 0, 0));
    icma_container_close(container);
}

/* --- the writer's refusals ------------------------------------------------------------------------------ */

static icma_status finish_with(void **state, const char *const *names, size_t tasks, size_t groups,
                               icma_error *error) {
    icma_container_writer *writer;
    assert_status(icma_container_create(scratch_path(state, "w.icma"), false, &writer, NULL), ICMA_OK);
    add(writer, ICMA_SECTION_TASK, 0, 0, 0, "a", 1, 0);
    add(writer, ICMA_SECTION_TASK, 0, 1, 0, "b", 1, 0);
    icma_status status = icma_container_finish(writer, names, tasks, groups, error);
    icma_container_abandon(writer);
    assert_int_equal(count_entries(*state), 0);
    return status;
}

static void bad_names_are_not_written(void **state) {
    icma_error error = {0};
    assert_status(finish_with(state, (const char *[]){"a", "b"}, 2, 1, NULL), ICMA_OK);
    assert_status(finish_with(state, (const char *[]){"Task-A", "task-a"}, 2, 1, &error), ICMA_E_USAGE);
    assert_non_null(strstr(error.message, "Task-A"));
    assert_non_null(strstr(error.message, "task-a"));
    assert_status(finish_with(state, (const char *[]){"a", "a"}, 2, 1, NULL), ICMA_E_USAGE);
    assert_status(finish_with(state, (const char *[]){"a", ".."}, 2, 1, NULL), ICMA_E_USAGE);
    assert_status(finish_with(state, (const char *[]){"a", ""}, 2, 1, NULL), ICMA_E_USAGE);
}

static void owners_must_exist_and_own(void **state) {
    assert_status(finish_with(state, (const char *[]){"a"}, 1, 1, NULL), ICMA_E_USAGE);
    assert_status(finish_with(state, (const char *[]){"a", "b", "c"}, 3, 1, NULL), ICMA_E_USAGE);
    assert_status(finish_with(state, (const char *[]){"a", "b"}, 2, 0, NULL), ICMA_E_USAGE);
    assert_status(finish_with(state, (const char *[]){"a", "b"}, 2, 2, NULL), ICMA_E_USAGE);
    assert_status(finish_with(state, NULL, ICMA_MAX_TASKS + 1, 1, NULL), ICMA_E_LIMIT);
    assert_status(finish_with(state, NULL, 0, ICMA_MAX_GROUPS + 1, NULL), ICMA_E_LIMIT);
}

static void bad_sections_are_not_written(void **state) {
    const char *path = scratch_path(state, "w.icma");
    icma_container_writer *writer;
    icma_error error = {0};
    assert_status(icma_container_create(path, false, &writer, NULL), ICMA_OK);
    icma_section section = {.kind = ICMA_SECTION_TASK};
    assert_status(icma_container_add(writer, &section, "", 0, 0, &error), ICMA_E_USAGE);
    assert_string_equal(error.file, path);
    assert_status(icma_container_add(writer, &section, "x", 1, 20, NULL), ICMA_E_USAGE);
    assert_status(icma_container_add(writer, &section, "x", 1, -1, NULL), ICMA_E_USAGE);
    section.flags = 2;
    assert_status(icma_container_add(writer, &section, "x", 1, 0, NULL), ICMA_E_USAGE);
    section.flags = 0;
    section.first = section.count = UINT32_MAX;
    assert_status(icma_container_add(writer, &section, "x", 1, 0, NULL), ICMA_E_USAGE);
    section.first = section.count = 0;
    assert_status(icma_container_add(writer, &section, "x", 1, 0, NULL), ICMA_OK);
    assert_status(icma_container_add(writer, &section, "y", 1, 0, NULL), ICMA_OK); /* found out at the end */
    const char *names[] = {"a"};
    assert_status(icma_container_finish(writer, names, 1, 1, NULL), ICMA_E_USAGE);
    icma_container_abandon(writer);
    icma_container_abandon(NULL);
    assert_int_equal(count_entries(*state), 0);
    write_file(path, "old", 3);
    assert_status(icma_container_create(path, false, &writer, NULL), ICMA_E_EXISTS);
    assert_null(writer);
}

/* --- size and memory ------------------------------------------------------------------------------------ */

static void write_many(const char *path, size_t tasks, size_t sections_each) {
    icma_container_writer *writer;
    char *text = malloc(tasks * 24);
    const char **names = malloc(tasks * sizeof *names);
    assert_status(icma_container_create(path, false, &writer, NULL), ICMA_OK);
    for (size_t task = 0; task < tasks; task++) {
        names[task] = text + 24 * task;
        sprintf(text + 24 * task, "Task-%zu", task * 7919 % tasks);
        for (size_t kind = 0; kind < sections_each; kind++)
            add(writer, (uint16_t)(ICMA_SECTION_TASK + kind), (uint32_t)(task % 3), (uint32_t)task, 0, &task,
                sizeof task, 0);
    }
    assert_status(icma_container_finish(writer, names, tasks, 3, NULL), ICMA_OK);
    assert_status(icma_container_commit(writer, NULL), ICMA_OK);
    free(names);
    free(text);
}

static void fifty_thousand_tasks(void **state) {
    const char *path = scratch_path(state, "many.icma");
    icma_container *container;
    write_many(path, 50000, 3);
    assert_status(icma_container_open(path, &container, NULL), ICMA_OK);
    assert_int_equal(icma_container_section_count(container), 150000);
    assert_string_equal(icma_container_task_name(container, 49999), "Task-42081");
    for (size_t task = 0; task < 50000; task += 997) {
        const icma_section *section =
            icma_container_find(container, ICMA_SECTION_VERBATIM, (uint32_t)(task % 3), (uint32_t)task);
        assert_section(container, section, (const char *)&task, sizeof task);
    }
    icma_container_close(container);
}

static void as_many_tasks_as_allowed(void **state) {
    const char *path = scratch_path(state, "most.icma");
    icma_container *container;
    write_many(path, ICMA_MAX_TASKS, 1);
    assert_status(icma_container_open(path, &container, NULL), ICMA_OK);
    assert_int_equal(icma_container_task_count(container), ICMA_MAX_TASKS);
    icma_container_close(container);
}

static icma_status write_with_little_memory(const char *path) {
    static const char *const names[] = {"a", "b"};
    icma_container_writer *writer;
    icma_status status = icma_container_create(path, true, &writer, NULL);
    if (status != ICMA_OK)
        return status;
    for (uint32_t i = 0; i < 40 && status == ICMA_OK; i++) {
        icma_section section = {.kind = ICMA_SECTION_TASK, .task = i % 2, .first = i};
        status = icma_container_add(writer, &section, text_of_200, 100 + i, i == 7 ? 3 : 0, NULL);
    }
    if (status == ICMA_OK)
        status = icma_container_finish(writer, names, 2, 1, NULL);
    if (status == ICMA_OK)
        return icma_container_commit(writer, NULL);
    icma_container_abandon(writer);
    return status;
}

static icma_status read_with_little_memory(const char *path) {
    icma_container *container;
    icma_status status = icma_container_open(path, &container, NULL);
    for (size_t i = 6; i < 9 && status == ICMA_OK; i++) {
        uint8_t *data;
        status = icma_container_load(container, icma_container_section(container, i), 1000, &data, NULL);
        icma_free(data);
    }
    icma_container_close(container);
    return status;
}

static void every_allocation_may_fail(void **state) {
    const char *path = scratch_path(state, "a.icma");
    icma_status (*const steps[])(const char *) = {write_with_little_memory, read_with_little_memory};
    for (size_t step = 0; step < 2; step++) {
        for (int for_good = 0; for_good < 2; for_good++) {
            for (size_t k = 0;; k++) {
                failing_allocator(k, for_good);
                icma_status status = steps[step](path);
                bool failed = allocation_failed();
                assert_int_equal(live_allocations(), 0);
                plain_allocator();
                if (status != (failed ? ICMA_E_MEMORY : ICMA_OK))
                    fail_msg("allocation %zu: %s", k, icma_status_name(status));
                if (!failed)
                    break;
            }
        }
        assert_int_equal(count_entries(*state), 1);
    }
}

#define WITH_SCRATCH(test) cmocka_unit_test_setup_teardown(test, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_SCRATCH(what_goes_in_comes_out),
        WITH_SCRATCH(the_same_in_gives_the_same_bytes),
        WITH_SCRATCH(sections_tile_the_file),
        WITH_SCRATCH(every_bit_flip_is_noticed),
        WITH_SCRATCH(every_prefix_is_noticed),
        WITH_SCRATCH(nothing_may_follow),
        WITH_SCRATCH(sections_are_copied_as_they_are),
        WITH_SCRATCH(one_damaged_section_leaves_the_others),
        cmocka_unit_test(the_spec_suffices_for_an_archive),
        cmocka_unit_test(headers_and_footers_from_the_future),
        cmocka_unit_test(indexes_in_impossible_places),
        cmocka_unit_test(indexes_with_impossible_lengths),
        cmocka_unit_test(names_that_will_not_do),
        cmocka_unit_test(sections_that_do_not_tile),
        cmocka_unit_test(sections_that_are_shifted),
        cmocka_unit_test(sections_that_make_no_sense),
        WITH_SCRATCH(an_archive_may_be_empty),
        WITH_SCRATCH(bad_names_are_not_written),
        WITH_SCRATCH(owners_must_exist_and_own),
        WITH_SCRATCH(bad_sections_are_not_written),
        WITH_SCRATCH(fifty_thousand_tasks),
        WITH_SCRATCH(as_many_tasks_as_allowed),
        WITH_SCRATCH(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
