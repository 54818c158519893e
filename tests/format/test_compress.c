/* SPDX-License-Identifier: Apache-2.0 */
#include "compress.h"
#include "memory.h"
#include "support.h"

#include <stdlib.h>
#include <string.h>

static void hashes_are_xxh3(void **state) {
    (void)state;
    /* The values that xxhsum -H3 prints. */
    assert_true(icma_hash(NULL, 0) == UINT64_C(0x2d06800538d394c2));
    assert_true(icma_hash("abc", 3) == UINT64_C(0x78af5f94892f3950));
}

typedef struct memory_reader {
    const uint8_t *data;
    uint64_t next;
    size_t fail_at;
} memory_reader;

static icma_status read_memory(void *context, uint64_t offset, void *out, size_t size, icma_error *error) {
    memory_reader *reader = context;
    assert_true(offset == reader->next);
    if (offset >= reader->fail_at)
        return icma_fail(error, ICMA_E_IO, NULL, "no more");
    memcpy(out, reader->data + offset, size);
    reader->next += size;
    return ICMA_OK;
}

static void blocks_hash_like_the_whole(void **state) {
    (void)state;
    enum { SIZE = 300000 };
    uint8_t *data = malloc(SIZE);
    uint64_t random = 3, hash;
    for (size_t i = 0; i < SIZE; i++)
        data[i] = (uint8_t)next_random(&random);
    const size_t sizes[] = {0, 1, 65535, 65536, 65537, 131072, SIZE};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        memory_reader reader = {data, 0, SIZE_MAX};
        assert_status(icma_hash_blocks(read_memory, &reader, sizes[i], &hash, NULL), ICMA_OK);
        assert_true(hash == icma_hash(data, sizes[i]));
    }
    memory_reader reader = {data, 0, 65536};
    assert_status(icma_hash_blocks(read_memory, &reader, SIZE, &hash, NULL), ICMA_E_IO);
    free(data);
}

static void round_trips(void **state) {
    (void)state;
    const size_t sizes[] = {0, 1, 2, 1000, 200000};
    const int levels[] = {1, 3, 19};
    uint8_t *data = malloc(200000), *back = malloc(200000);
    for (size_t i = 0; i < 200000; i++)
        data[i] = (uint8_t)(i * i >> 7);
    for (size_t s = 0; s < 5; s++) {
        for (size_t l = 0; l < 3; l++) {
            icma_buffer out = {0}, again = {0};
            icma_write_u8(&out, 0x55); /* it appends */
            assert_status(icma_zstd_compress(data, sizes[s], levels[l], &out, NULL), ICMA_OK);
            assert_status(icma_zstd_compress(data, sizes[s], levels[l], &again, NULL), ICMA_OK);
            assert_int_equal(out.data[0], 0x55);
            assert_int_equal(out.size, again.size + 1);
            assert_memory_equal(out.data + 1, again.data, again.size);
            assert_status(
                icma_zstd_decompress(again.data, again.size, sizes[s] ? back : NULL, sizes[s], NULL),
                ICMA_OK);
            assert_memory_equal(back, data, sizes[s]);
            icma_buffer_free(&out);
            icma_buffer_free(&again);
        }
    }
    free(data);
    free(back);
}

static void levels_have_limits(void **state) {
    (void)state;
    icma_buffer out = {0};
    assert_status(icma_zstd_compress("x", 1, 0, &out, NULL), ICMA_E_USAGE);
    assert_status(icma_zstd_compress("x", 1, 20, &out, NULL), ICMA_E_USAGE);
    assert_status(icma_zstd_compress("x", SIZE_MAX, 1, &out, NULL), ICMA_E_LIMIT);
    assert_int_equal(out.size, 0);
    icma_buffer_free(&out);
}

static void only_one_exact_frame_will_do(void **state) {
    (void)state;
    static const uint8_t skippable[] = {0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0};
    /* one block "abc", single segment, content size 3 */
    static const uint8_t good[] = {0x28, 0xb5, 0x2f, 0xfd, 0x20, 3, 0x19, 0, 0, 'a', 'b', 'c'};
    static const uint8_t unsized[] = {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0x19, 0, 0, 'a', 'b', 'c'};
    static const uint8_t dictionary[] = {0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 3, 0x19, 0, 0, 'a', 'b', 'c'};
    static const uint8_t lies[] = {0x28, 0xb5, 0x2f, 0xfd, 0x20, 4, 0x19, 0, 0, 'a', 'b', 'c'};
    static const uint8_t garbage[] = {0x28, 0xb5, 0x2f, 0xfd, 0x20, 8, 0x1d, 0, 0, 0xff, 0xff, 0xff};
    static const uint8_t empty[] = {0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0};
    uint8_t back[8];
    assert_status(icma_zstd_decompress(garbage, sizeof garbage, back, 8, NULL), ICMA_E_CORRUPT);
    assert_status(icma_zstd_decompress(good, sizeof good, back, 3, NULL), ICMA_OK);
    assert_memory_equal(back, "abc", 3);
    assert_status(icma_zstd_decompress(good, sizeof good, back, 2, NULL), ICMA_E_CORRUPT);
    assert_status(icma_zstd_decompress(good, sizeof good, back, 4, NULL), ICMA_E_CORRUPT);
    assert_status(icma_zstd_decompress(lies, sizeof lies, back, 4, NULL), ICMA_E_CORRUPT);
    assert_status(icma_zstd_decompress(unsized, sizeof unsized, back, 3, NULL), ICMA_E_CORRUPT);
    assert_status(icma_zstd_decompress(dictionary, sizeof dictionary, back, 3, NULL), ICMA_E_CORRUPT);
    assert_status(icma_zstd_decompress(skippable, sizeof skippable, NULL, 0, NULL), ICMA_E_CORRUPT);
    for (size_t size = 0; size < sizeof good; size++)
        assert_status(icma_zstd_decompress(good, size, back, 3, NULL), ICMA_E_CORRUPT);
    uint8_t twice[2 * sizeof good];
    memcpy(twice, good, sizeof good);
    memcpy(twice + sizeof good, good, sizeof good);
    assert_status(icma_zstd_decompress(twice, sizeof twice, back, 3, NULL), ICMA_E_CORRUPT);
    assert_status(icma_zstd_decompress(twice, sizeof twice, back, 6, NULL), ICMA_E_CORRUPT);
    assert_status(icma_zstd_decompress(twice, sizeof good + 1, back, 3, NULL), ICMA_E_CORRUPT);
    /* zstd itself takes these two */
    memcpy(twice + sizeof good, skippable, sizeof skippable);
    assert_status(icma_zstd_decompress(twice, sizeof good + sizeof skippable, back, 3, NULL), ICMA_E_CORRUPT);
    memcpy(twice + sizeof good, empty, sizeof empty);
    assert_status(icma_zstd_decompress(twice, sizeof good + sizeof empty, back, 3, NULL), ICMA_E_CORRUPT);
}

static void memory_may_run_out(void **state) {
    (void)state;
    for (size_t k = 0;; k++) {
        icma_buffer out = {0};
        uint8_t back[100], data[100] = {0};
        failing_allocator(k, true);
        icma_status status = icma_zstd_compress(data, sizeof data, 3, &out, NULL);
        if (status == ICMA_OK)
            status = icma_zstd_decompress(out.data, out.size, back, sizeof back, NULL);
        bool failed = allocation_failed();
        icma_buffer_free(&out);
        assert_int_equal(live_allocations(), 0);
        plain_allocator();
        assert_int_equal(status, failed ? ICMA_E_MEMORY : ICMA_OK);
        if (!failed)
            break;
    }
}

static void bytes_are_grouped(void **state) {
    (void)state;
    static const uint8_t in[] = {1, 2, 3, 11, 12, 13};
    uint8_t out[6], back[6];
    icma_group_bytes(in, 2, 3, out);
    assert_memory_equal(out, ((const uint8_t[]){1, 11, 2, 12, 3, 13}), 6);
    icma_ungroup_bytes(out, 2, 3, back);
    assert_memory_equal(back, in, 6);
    icma_group_bytes(in, 6, 1, out);
    assert_memory_equal(out, in, 6);
    icma_group_bytes(NULL, 0, 4, NULL);
    icma_ungroup_bytes(NULL, 0, 4, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hashes_are_xxh3),
        cmocka_unit_test(blocks_hash_like_the_whole),
        cmocka_unit_test(round_trips),
        cmocka_unit_test(levels_have_limits),
        cmocka_unit_test(only_one_exact_frame_will_do),
        cmocka_unit_test(memory_may_run_out),
        cmocka_unit_test(bytes_are_grouped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
