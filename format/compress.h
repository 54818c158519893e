/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two library services that every section uses: XXH3-64 for integrity and zstd for text and verbatim
 * bytes, and byte grouping, which helps zstd on arrays of numbers.
 */
#ifndef ICMA_COMPRESS_H
#define ICMA_COMPRESS_H

#include "bytes.h"

/* XXH3-64 with seed 0. size may be 0 (data is then not read). */
uint64_t icma_hash(const void *data, size_t size);

/* With a seed: for tables, whose order a stranger shall not foresee. */
uint64_t icma_hash_seeded(const void *data, size_t size, uint64_t seed);

/* The same over `size` bytes that `read` delivers block by block, in order, in bounded memory. Fails only
 * with what `read` returns. */
typedef icma_status icma_block_reader(void *context, uint64_t offset, void *out, size_t size,
                                      icma_error *error);
icma_status icma_hash_blocks(icma_block_reader *read, void *context, uint64_t size, uint64_t *hash,
                             icma_error *error);

/* Appends one zstd frame, content size declared, no checksum, no dictionary, single-threaded (so the same
 * bytes on every run). level 1..19; windows stay within zstd's own default limit for the decoder (128 MiB).
 */
icma_status icma_zstd_compress(const void *data, size_t size, int level, icma_buffer *out, icma_error *error);

/* Decompresses exactly one frame of exactly `raw_size` bytes into `out`. A frame that declares, or gives,
 * another size, that is followed by more bytes, or that needs a dictionary is ICMA_E_CORRUPT. */
icma_status icma_zstd_decompress(const void *data, size_t size, void *out, size_t raw_size,
                                 icma_error *error);

/* Byte grouping (spec 2.4): `out` gets byte 0 of all `count` elements, then byte 1 of all, ... `width` bytes
 * an element. Ungroup is the inverse. `out` must not overlap `in`. */
void icma_group_bytes(const uint8_t *in, size_t count, size_t width, uint8_t *out);
void icma_ungroup_bytes(const uint8_t *in, size_t count, size_t width, uint8_t *out);

#endif
