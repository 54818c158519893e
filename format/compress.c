/* SPDX-License-Identifier: Apache-2.0 */
/* For ZSTD_customMem, by which zstd's own state comes from our allocation hook; the functions used have
 * been the same since zstd 1.0. */
#define ZSTD_STATIC_LINKING_ONLY
/* For XXH3_state_t on the stack, for the same reason. */
#define XXH_STATIC_LINKING_ONLY
#include "compress.h"

#include "memory.h"

#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
#include <sanitizer/msan_interface.h>
#endif
#endif
#include <string.h>
#include <xxhash.h>
#include <zstd.h>
#include <zstd_errors.h>

enum { HASH_BLOCK = 1 << 16 };

uint64_t icma_hash(const void *data, size_t size) {
    return XXH3_64bits(size ? data : "", size);
}

uint64_t icma_hash_seeded(const void *data, size_t size, uint64_t seed) {
    return XXH3_64bits_withSeed(size ? data : "", size, seed);
}

icma_status icma_hash_blocks(icma_block_reader *read, void *context, uint64_t size, uint64_t *hash,
                             icma_error *error) {
    uint8_t block[HASH_BLOCK];
    XXH3_state_t state;
    XXH3_64bits_reset(&state);
    for (uint64_t at = 0; at < size;) {
        size_t part = size - at < sizeof block ? (size_t)(size - at) : sizeof block;
        icma_status status = read(context, at, block, part, error);
        if (status != ICMA_OK)
            return status;
        XXH3_64bits_update(&state, block, part);
        at += part;
    }
    *hash = XXH3_64bits_digest(&state);
    return ICMA_OK;
}

/* MemorySanitizer cannot see what libzstd, which it did not build, has written. */
static void written_by_zstd(const void *data, size_t size) {
#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
    __msan_unpoison(data, size);
#endif
#endif
    (void)data;
    (void)size;
}

static void *zstd_alloc(void *context, size_t size) {
    (void)context;
    return icma_alloc(size);
}

static void zstd_free(void *context, void *pointer) {
    (void)context;
    icma_free(pointer);
}

static const ZSTD_customMem zstd_memory = {zstd_alloc, zstd_free, NULL};

icma_status icma_zstd_compress(const void *data, size_t size, int level, icma_buffer *out,
                               icma_error *error) {
    if (level < 1 || level > 19)
        return icma_fail(error, ICMA_E_USAGE, NULL, "zstd level %d; use 1 to 19", level);
    size_t bound = ZSTD_compressBound(size);
    if (ZSTD_isError(bound))
        return icma_fail(error, ICMA_E_LIMIT, NULL, "%zu bytes are too many for one zstd frame", size);
    size_t before = out->size;
    uint8_t *to = icma_buffer_extend(out, bound);
    if (!to)
        return icma_buffer_status(out, error);
    icma_status status = ICMA_E_MEMORY;
    size_t written = 0;
    ZSTD_CCtx *context = ZSTD_createCCtx_advanced(zstd_memory);
    if (context && !ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level))) {
        written = ZSTD_compress2(context, to, bound, size ? data : "", size);
        if (!ZSTD_isError(written))
            status = ICMA_OK;
    }
    ZSTD_freeCCtx(context);
    written_by_zstd(to, status == ICMA_OK ? written : 0);
    out->size = before + (status == ICMA_OK ? written : 0);
    if (status != ICMA_OK)
        return icma_fail(error, status, NULL, "not enough memory to compress %zu bytes", size);
    return ICMA_OK;
}

static const uint64_t MOST_WINDOW = UINT64_C(1) << 27;

/* The window that a frame asks for (RFC 8878, 3.1.1.1.2): its content where the frame is a single segment. */
static uint64_t zstd_window(const uint8_t *frame, uint64_t content) {
    bool single_segment = frame[4] >> 5 & 1;
    if (single_segment)
        return content;
    uint64_t base = UINT64_C(1) << (10 + (frame[5] >> 3));
    return base + base / 8 * (frame[5] & 7);
}

/* What the frame header says, before anything is decoded. */
static const char *zstd_frame_fault(const void *data, size_t size, size_t raw_size) {
    if (size < 4 || icma_load_u32(data) != ZSTD_MAGICNUMBER)
        return "it is not a zstd frame";
    unsigned long long declared = ZSTD_getFrameContentSize(data, size);
    if (declared == ZSTD_CONTENTSIZE_ERROR || declared == ZSTD_CONTENTSIZE_UNKNOWN || declared != raw_size)
        return "its zstd frame declares another size";
    if (zstd_window(data, declared) > MOST_WINDOW)
        return "its zstd frame asks for a window over 128 MiB";
    if (ZSTD_getDictID_fromFrame(data, size) != 0)
        return "its zstd frame wants a dictionary";
    if (ZSTD_findFrameCompressedSize(data, size) != size)
        return "its zstd frame ends early or late";
    return NULL;
}

icma_status icma_zstd_decompress(const void *data, size_t size, void *out, size_t raw_size,
                                 icma_error *error) {
    const char *fault = zstd_frame_fault(data, size, raw_size);
    if (fault)
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "%s", fault);
    ZSTD_DCtx *context = ZSTD_createDCtx_advanced(zstd_memory);
    if (!context)
        return icma_fail(error, ICMA_E_MEMORY, NULL, "not enough memory to decompress");
    size_t written = ZSTD_decompressDCtx(context, out, raw_size, data, size);
    ZSTD_freeDCtx(context);
    written_by_zstd(out, ZSTD_isError(written) ? 0 : written);
    if (ZSTD_isError(written)) {
        bool memory = ZSTD_getErrorCode(written) == ZSTD_error_memory_allocation;
        return icma_fail(error, memory ? ICMA_E_MEMORY : ICMA_E_CORRUPT, NULL,
                         "its zstd frame does not decode: %s", ZSTD_getErrorName(written));
    }
    if (written != raw_size)
        return icma_fail(error, ICMA_E_CORRUPT, NULL, "its zstd frame gives %zu bytes, not %zu", written,
                         raw_size);
    return ICMA_OK;
}

void icma_group_bytes(const uint8_t *in, size_t count, size_t width, uint8_t *out) {
    for (size_t byte = 0; byte < width; byte++)
        for (size_t i = 0; i < count; i++)
            *out++ = in[i * width + byte];
}

void icma_ungroup_bytes(const uint8_t *in, size_t count, size_t width, uint8_t *out) {
    for (size_t byte = 0; byte < width; byte++)
        for (size_t i = 0; i < count; i++)
            out[i * width + byte] = *in++;
}
