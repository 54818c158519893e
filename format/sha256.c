/* SPDX-License-Identifier: Apache-2.0 */
#include "sha256.h"

#include <string.h>

enum { ROUNDS = 64, BLOCK = 64, LENGTH_AT = 56 };

/* FIPS 180-4, 4.2.2: the fractional parts of the cube roots of the first 64 primes. */
static const uint32_t round_constants[ROUNDS] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

/* Big-endian, unlike everything else here. */
static uint32_t load(const uint8_t *from) {
    return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

static void store(uint8_t *to, uint32_t value) {
    for (int i = 0; i < 4; i++)
        to[i] = (uint8_t)(value >> (24 - 8 * i));
}

static uint32_t rotate(uint32_t x, unsigned by) {
    return x >> by | x << (32 - by);
}

/* FIPS 180-4, 6.2.2. */
static void add_block(uint32_t state[8], const uint8_t *block) {
    uint32_t w[ROUNDS], v[8];
    for (int t = 0; t < 16; t++)
        w[t] = load(block + 4 * t);
    for (int t = 16; t < ROUNDS; t++) {
        uint32_t small0 = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ w[t - 15] >> 3;
        uint32_t small1 = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ w[t - 2] >> 10;
        w[t] = small1 + w[t - 7] + small0 + w[t - 16];
    }
    memcpy(v, state, sizeof v);
    for (int t = 0; t < ROUNDS; t++) {
        uint32_t big1 = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
        uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
        uint32_t first = v[7] + big1 + choice + round_constants[t] + w[t];
        uint32_t big0 = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
        uint32_t majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += first;
        v[0] = first + big0 + majority;
    }
    for (int i = 0; i < 8; i++)
        state[i] += v[i];
}

icma_sha256 icma_sha256_start(void) {
    return (icma_sha256){.state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c,
                                   0x1f83d9ab, 0x5be0cd19}};
}

void icma_sha256_add(icma_sha256 *hash, const void *data, size_t size) {
    const uint8_t *from = data;
    size_t held = (size_t)(hash->length % BLOCK);
    hash->length += size;
    while (size > 0) {
        if (held == 0 && size >= BLOCK) {
            add_block(hash->state, from);
            from += BLOCK;
            size -= BLOCK;
            continue;
        }
        size_t part = size < BLOCK - held ? size : BLOCK - held;
        memcpy(hash->block + held, from, part);
        from += part;
        size -= part;
        held = (held + part) % BLOCK;
        if (held == 0)
            add_block(hash->state, hash->block);
    }
}

void icma_sha256_finish(icma_sha256 *hash, uint8_t digest[ICMA_SHA256_BYTES]) {
    static const uint8_t padding[BLOCK] = {0x80};
    uint64_t bits = hash->length * 8;
    size_t held = (size_t)(hash->length % BLOCK);
    uint8_t length[8];
    store(length, (uint32_t)(bits >> 32));
    store(length + 4, (uint32_t)bits);
    icma_sha256_add(hash, padding, (held < LENGTH_AT ? LENGTH_AT : LENGTH_AT + BLOCK) - held);
    icma_sha256_add(hash, length, sizeof length);
    for (int i = 0; i < 8; i++)
        store(digest + 4 * i, hash->state[i]);
}

void icma_sha256_text(const uint8_t digest[ICMA_SHA256_BYTES], char text[ICMA_SHA256_TEXT]) {
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < ICMA_SHA256_BYTES; i++) {
        text[2 * i] = digits[digest[i] >> 4];
        text[2 * i + 1] = digits[digest[i] & 15];
    }
    text[2 * ICMA_SHA256_BYTES] = '\0';
}
