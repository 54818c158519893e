/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SHA-256 (FIPS 180-4), for hashes that other programs write into metadata. Not for secrets, and not what the
 * archive is checked with (compress.h).
 */
#ifndef ICMA_SHA256_H
#define ICMA_SHA256_H

#include <stddef.h>
#include <stdint.h>

enum { ICMA_SHA256_BYTES = 32, ICMA_SHA256_TEXT = 65 };

typedef struct icma_sha256 {
    uint32_t state[8];
    uint64_t length; /* bytes so far */
    uint8_t block[64];
} icma_sha256;

icma_sha256 icma_sha256_start(void);
void icma_sha256_add(icma_sha256 *hash, const void *data, size_t size);
/* `hash` is not to be used afterwards. */
void icma_sha256_finish(icma_sha256 *hash, uint8_t digest[ICMA_SHA256_BYTES]);
/* 64 lower-case hexadecimal digits. */
void icma_sha256_text(const uint8_t digest[ICMA_SHA256_BYTES], char text[ICMA_SHA256_TEXT]);

#endif
