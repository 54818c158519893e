# SPDX-License-Identifier: Apache-2.0
"""XXH3-64 with seed 0 and the default secret, from its public specification (spec/icma-format.md 2.5).

xxh3_64(data) takes bytes and gives an int. Debian's python3-xxhash does it where it is installed, because it is faster.
"""
import struct

import numpy

SECRET = bytes.fromhex(
    'b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c'
    '3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364'
    'eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e')
WORDS = numpy.array([[struct.unpack_from('<Q', SECRET, 8 * (i + j))[0] for j in range(8)] for i in range(16)], numpy.uint64)
P32_1, P32_2, P32_3 = 0x9e3779b1, 0x85ebca77, 0xc2b2ae3d
P64_1, P64_2, P64_3 = 0x9e3779b185ebca87, 0xc2b2ae3d27d4eb4f, 0x165667b19e3779f9
P64_4, P64_5 = 0x85ebca77c2b2ae63, 0x27d4eb2f165667c5
MASK = (1 << 64) - 1


def word(data, at):
    return int.from_bytes(data[at:at + 8], 'little')


def half(data, at):
    return int.from_bytes(data[at:at + 4], 'little')


def secret(at):
    return word(SECRET, at)


def fold(a, b):
    product = a * b
    return (product ^ product >> 64) & MASK


def swap(v):
    return int.from_bytes(v.to_bytes(8, 'little'), 'big')


def rotate(v, n):
    return (v << n | v >> 64 - n) & MASK


def avalanche(h):
    h ^= h >> 37
    h = h * 0x165667919e3779f9 & MASK
    return h ^ h >> 32


def avalanche_64(h):
    h ^= h >> 33
    h = h * P64_2 & MASK
    h ^= h >> 29
    h = h * P64_3 & MASK
    return h ^ h >> 32


def mix(data, at, key):
    return fold(word(data, at) ^ secret(key), word(data, at + 8) ^ secret(key + 8))


def short(data):
    n = len(data)
    if n == 0:
        return avalanche_64(secret(56) ^ secret(64))
    if n <= 3:
        return avalanche_64((data[0] << 16 | data[n >> 1] << 24 | data[n - 1] | n << 8) ^ half(SECRET, 0) ^ half(SECRET, 4))
    if n <= 8:
        h = half(data, n - 4) + (half(data, 0) << 32) ^ secret(8) ^ secret(16)
        h ^= rotate(h, 49) ^ rotate(h, 24)
        h = h * 0x9fb21c651e98df25 & MASK
        h ^= (h >> 35) + n
        h = h * 0x9fb21c651e98df25 & MASK
        return h ^ h >> 28
    low = word(data, 0) ^ secret(24) ^ secret(32)
    high = word(data, n - 8) ^ secret(40) ^ secret(48)
    return avalanche((n + swap(low) + high + fold(low, high)) & MASK)


def middle(data):
    n = len(data)
    h = n * P64_1
    if n <= 128:
        for i in range((n - 1) // 32, -1, -1):
            h += mix(data, 16 * i, 32 * i) + mix(data, n - 16 * (i + 1), 32 * i + 16)
        return avalanche(h & MASK)
    for i in range(8):
        h += mix(data, 16 * i, 16 * i)
    h = avalanche(h & MASK)
    for i in range(8, n // 16):
        h += mix(data, 16 * i, 16 * (i - 8) + 3)
    return avalanche(h + mix(data, n - 16, 119) & MASK)


def stripes(data, keys):
    """Sums over stripes: data has stripes by 8 words in its last axes."""
    key = data ^ keys
    total = (key & numpy.uint64(0xffffffff)) * (key >> numpy.uint64(32)) + data.reshape(*data.shape[:-1], 4, 2)[..., ::-1].reshape(data.shape)
    return total.sum(axis=-2, dtype=numpy.uint64)


def long(data):
    n = len(data)
    sums = numpy.array([P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1], numpy.uint64)
    last = numpy.frombuffer(SECRET, numpy.uint8)[128:].view(numpy.uint64)
    blocks = (n - 1) // 1024
    for start in range(0, blocks, 4096):
        count = min(4096, blocks - start)
        many = numpy.frombuffer(data, '<u8', 128 * count, 1024 * start).reshape(count, 16, 8)
        for total in stripes(many, WORDS):
            sums = sums + total
            sums = (sums ^ sums >> numpy.uint64(47) ^ last) * numpy.uint64(P32_1)
    rest = (n - 1 - 1024 * blocks) // 64
    if rest:
        sums = sums + stripes(numpy.frombuffer(data, '<u8', 8 * rest, 1024 * blocks).reshape(rest, 8), WORDS[:rest])
    key = numpy.frombuffer(SECRET[121:185], '<u8')
    sums = sums + stripes(numpy.frombuffer(bytes(data[n - 64:]), '<u8').reshape(1, 8), key)
    sums = [int(v) for v in sums]
    h = n * P64_1
    for i in range(4):
        h += fold(sums[2 * i] ^ secret(11 + 16 * i), sums[2 * i + 1] ^ secret(19 + 16 * i))
    return avalanche(h & MASK)


def portable(data):
    if len(data) <= 16:
        return short(data)
    return middle(data) if len(data) <= 240 else long(data)


try:
    from xxhash import xxh3_64_intdigest as xxh3_64
except ImportError:
    xxh3_64 = portable
