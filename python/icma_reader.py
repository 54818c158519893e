#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A second reader of icma archives, written from spec/icma-format.md and from nothing else; its chapters stand in the comments.

    icma_reader.py list B.icma
    icma_reader.py decode B.icma TASK STEP|final|last -o FILE
    icma_reader.py sample B.icma TASK SEED -o FILE
    icma_reader.py check B.icma

    archive = icma_reader.open('B.icma')
    archive.tasks(); archive.checkpoints('cat'); archive.decode('cat', 300); archive.sample('cat', seed=7)

It is meant to be read beside the specification and to disagree with the C program wherever one of the three is wrong. It
needs numpy, and either the zstandard module or the zstd command.
"""
import argparse
import builtins
import dataclasses
import fractions
import json
import math
import os
import struct
import subprocess
import sys

import numpy

import lossless
import rans
import trellis
from xxh3 import xxh3_64

NONE = 0xffffffff
SIGNATURE, GENERATOR, HEAD, TASK, TEXTS, VERBATIM, RECORD, CONDITION, RESIDUAL, LINK = range(1, 11)
# 3.5: of what kinds a section belongs to a task; all belong to a group.
OWNERS = {SIGNATURE: (False,), GENERATOR: (False,), HEAD: (False,), TASK: (True,), TEXTS: (False, True), VERBATIM: (True,), RECORD: (False,),
          CONDITION: (True,), RESIDUAL: (True,), LINK: (True,)}
GENERATE, LATENT, BOUNDED, LOSSLESS, KEPT = 0, 1, 2, 3, 15
TIERS = {GENERATE: 'generate', LATENT: 'latent', BOUNDED: 'bounded', LOSSLESS: 'lossless', KEPT: 'verbatim'}
# 4.12
MOST_TAPS = 3
# 4.3: kinds of generator; priors of the third
NO_GENERATOR, BASIS, CONV = range(3)
NORMAL, DIFFUSION = range(2)
GIVEN, LEARNED, ADDED = range(1, 4)
# 4.11
MOST_CODE, STREAM = 640, 1 << 18
LOWEST_OCTAVE, HIGHEST_OCTAVE = -32, 31
SIXTEENTHS = (0x3f800000, 0x3f85aac3, 0x3f8b95c2, 0x3f91c3d3, 0x3f9837f0, 0x3f9ef532, 0x3fa5fed7, 0x3fad583f,
              0x3fb504f3, 0x3fbd08a4, 0x3fc5672a, 0x3fce248c, 0x3fd744fd, 0x3fe0ccdf, 0x3feac0c7, 0x3ff5257d)
BITS = {'BOOL': 8, 'F4': 4, 'F6_E2M3': 6, 'F6_E3M2': 6, 'U8': 8, 'I8': 8, 'F8_E5M2': 8, 'F8_E4M3': 8, 'F8_E8M0': 8,
        'I16': 16, 'U16': 16, 'F16': 16, 'BF16': 16, 'I32': 32, 'U32': 32, 'F32': 32,
        'C64': 64, 'F64': 64, 'I64': 64, 'U64': 64}
MODELLED = {'F32', 'F16', 'BF16'}


class IcmaError(Exception):
    """Why a reader refuses (1.2). `kind` is the class: format, corrupt, unsupported, limit, or missing."""
    CODES = {'format': 4, 'corrupt': 4, 'unsupported': 6, 'missing': 7, 'limit': 10}

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind, self.code = kind, self.CODES[kind]


def corrupt(message):
    raise IcmaError('corrupt', message)


def unsupported(message):
    raise IcmaError('unsupported', message)


def limit(message):
    raise IcmaError('limit', message)


def printable(name):
    return ''.join(c if c.isprintable() else f'\\u{ord(c):04x}' for c in name)


def safe_segment(name):
    """3.7"""
    if not 1 <= len(name) <= 255 or name in (b'.', b'..') or name[:1] == b'-':
        return False
    if any(c < 0x20 or c == 0x7f or c in b'/\\' for c in name):
        return False
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def ungroup(data, width):
    """2.4"""
    return numpy.frombuffer(data, numpy.uint8).reshape(width, -1).T.tobytes()


class Cursor:
    """Reads a payload to its last byte."""

    def __init__(self, data, what):
        self.data, self.at, self.what = data, 0, what

    def take(self, count):
        if count > len(self.data) - self.at:
            corrupt(f'{self.what} ends too soon')
        self.at += count
        return self.data[self.at - count:self.at]

    def u8(self):
        return self.take(1)[0]

    def varint(self):
        """2.2"""
        value = 0
        for n in range(10):
            byte = self.u8()
            value |= (byte & 0x7f) << 7 * n
            if byte < 0x80:
                if byte == 0 and n or n == 9 and byte != 1:
                    corrupt(f'{self.what} holds a number that is not in its shortest form')
                return value
        corrupt(f'{self.what} holds a number that is too long')

    def signed(self):
        value = self.varint()
        return -(value + 1) // 2 if value & 1 else value // 2

    def array(self, kind, count):
        return numpy.frombuffer(self.take(count * numpy.dtype(kind).itemsize), kind)

    def coarse(self, count):
        """2.7"""
        numbers = self.array('i1', count + 1).astype(numpy.int64)
        if not -126 <= numbers[0] <= 120 or numpy.any(numbers[1:] == -128):
            corrupt(f'{self.what} has a coarse vector out of range')
        return (numbers[1:] * 2.0 ** int(numbers[0])).astype(numpy.float32)

    def end(self):
        if self.at != len(self.data):
            corrupt(f'{self.what} has bytes after its end')


# 2.6: zstd

def check_frame(data, raw):
    """One frame that declares its size, without dictionary, that ends where the data do; RFC 8878, 3.1.1."""
    def need(count):
        if count > len(data):
            corrupt('a zstd frame is cut off')
    need(5)
    if data[:4] != b'\x28\xb5\x2f\xfd':
        corrupt('not a zstd frame')
    flags, at = data[4], 5
    single, content, dictionary = flags >> 5 & 1, flags >> 6, flags & 3
    if flags & 8:
        corrupt('a zstd frame has a reserved bit set')
    window = None
    if not single:
        need(at + 1)
        base = 1 << 10 + (data[at] >> 3)
        window = base + base // 8 * (data[at] & 7)
        at += 1
    size = (0, 1, 2, 4)[dictionary]
    need(at + size)
    if any(data[at:at + size]):
        corrupt('a zstd frame wants a dictionary')
    at += size
    size = (single, 2, 4, 8)[content]
    if not size:
        corrupt('a zstd frame does not declare its size')
    need(at + size)
    declared = int.from_bytes(data[at:at + size], 'little') + (256 if size == 2 else 0)
    at += size
    if declared != raw:
        corrupt('a zstd frame declares another size')
    if (declared if window is None else window) > 1 << 27:
        corrupt('a zstd frame has a window over 128 MiB')
    last = False
    while not last:
        need(at + 3)
        block = int.from_bytes(data[at:at + 3], 'little')
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        if kind == 3:
            corrupt('a zstd frame has a block of an unknown type')
        at += 3 + (1 if kind == 1 else size)
        need(at)
    at += 4 if flags & 4 else 0
    if at != len(data):
        corrupt('a zstd frame does not end where its section does')


def decompress(data, raw):
    check_frame(data, raw)
    try:
        import zstandard
    except ImportError:
        done = subprocess.run(['zstd', '-d', '-c', '-q'], input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        out = done.stdout if done.returncode == 0 else None
    else:
        try:
            out = zstandard.ZstdDecompressor().decompress(data, max_output_size=raw)
        except zstandard.ZstdError:
            out = None
    if out is None or len(out) != raw:
        corrupt('a zstd frame does not decompress')
    return out


# 3: the container

@dataclasses.dataclass
class Section:
    offset: int
    stored: int
    raw: int
    hash: int
    kind: int
    coding: int
    flags: int
    group: int
    task: int
    first: int
    count: int
    reserved: int

    @property
    def key(self):
        return self.kind, self.group, self.task, self.first


ENTRY = struct.Struct('<QQQQHBBIIIII')


def up(size):
    return -(-size // 64) * 64


class Container:
    def __init__(self, path):
        self.file = builtins.open(path, 'rb')
        try:
            self.size = os.fstat(self.file.fileno()).st_size
            self.read_header()
            self.read_footer()
        except BaseException:
            self.file.close()
            raise

    def close(self):
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def read(self, offset, size):
        data = b''
        while len(data) < size:
            part = os.pread(self.file.fileno(), size - len(data), offset + len(data))
            if not part:
                corrupt('the file shrank while it was read')
            data += part
        return data

    def read_header(self):
        """3.2"""
        head = self.read(0, min(64, self.size))
        if head[:8] != b'\x89ICMA\r\n\x1a':
            raise IcmaError('format', 'not an icma archive')
        if len(head) < 64 or struct.unpack_from('<Q', head, 56)[0] != xxh3_64(head[:56]):
            corrupt('the header is damaged')
        version, reserved, required, _ = struct.unpack_from('<HHII', head, 8)
        if version != 0:
            unsupported(f'format version {version}')
        if required or reserved or any(head[20:56]):
            unsupported('the header has features or reserved bits set')

    def read_footer(self):
        """3.3"""
        if self.size < 192 or self.size % 64:
            corrupt('the length is not that of an archive')
        foot = self.read(self.size - 64, 64)
        if foot[48:56] != b'\x8aICMAend' or struct.unpack_from('<Q', foot, 56)[0] != xxh3_64(foot[:56]):
            corrupt('the footer is damaged')
        offset, stored, raw, digest, length, coding = struct.unpack_from('<QQQQQB', foot)
        if any(foot[41:48]):
            unsupported('the footer has reserved bits set')
        if length != self.size or offset % 64 or offset < 64 or offset + up(stored) != self.size - 64:
            corrupt('the footer does not fit the file')
        if coding > 1:
            unsupported(f'the index has coding {coding}')
        if raw > 1 << 30:
            limit('the index is over 1 GiB')
        n = self.size // 64
        if not 16 <= raw <= 16 + 56 * n + 256 * min(n, 131072):
            corrupt('the index has an impossible size')
        self.index_offset = offset
        index = self.load_bytes(offset, stored, raw, digest, coding, 'the index')
        self.read_index(index)

    def load_bytes(self, offset, stored, raw, digest, coding, what):
        """3.6"""
        if stored < 1 or (stored != raw if coding == 0 else stored >= raw):
            corrupt(f'{what} has sizes that contradict its coding')
        data = self.read(offset, up(stored))
        if any(data[stored:]):
            corrupt(f'{what} has padding that is not zero')
        data = data[:stored]
        if xxh3_64(data) != digest:
            corrupt(f'{what} is damaged')
        return decompress(data, raw) if coding else data

    def read_index(self, index):
        """3.4"""
        s, g, t, reserved = struct.unpack_from('<IIII', index)
        if reserved:
            unsupported('the index has reserved bits set')
        if s > 1 << 22 or g > 1 << 16 or t > 1 << 17:
            limit('too many sections, groups or tasks')
        if g > s or t > s:
            corrupt('more groups or tasks than sections')
        if len(index) - 16 < 56 * s:
            corrupt('the index is too short for its entries')
        entries = ungroup(index[16:16 + 56 * s], 56) if s else b''
        self.sections = [Section(*ENTRY.unpack_from(entries, 56 * i)) for i in range(s)]
        for i, section in enumerate(self.sections):
            optional = section.flags & 1
            if section.reserved or section.flags & 0xfe or section.coding > 1 or section.kind not in OWNERS and not optional:
                unsupported(f'section {i} has an unknown kind, coding or flag')
            if section.raw > 1 << 40:
                limit(f'section {i} is over 1 TiB')
            if section.stored < 1 or section.raw < 1:
                corrupt(f'section {i} is empty')
            if section.stored != section.raw if section.coding == 0 else section.stored >= section.raw:
                corrupt(f'section {i} has sizes that contradict its coding')
            if i and self.sections[i - 1].key >= section.key:
                corrupt(f'section {i} is out of order')
        if sum(s.raw for s in self.sections if s.coding == 1 and s.kind != VERBATIM) > 2 ** 20 + 3 * self.size:
            limit('the compressed sections would become too large for a file of this size')
        self.read_names(index[16 + 56 * s:], t)
        self.groups = g
        groups, tasks = set(), set()
        for i, section in enumerate(self.sections):
            if section.group != NONE and section.group >= g or section.task != NONE and section.task >= t:
                corrupt(f'section {i} has a group or a task that is not there')
            if section.first + section.count > NONE:
                corrupt(f'section {i} has an impossible range')
            groups.add(section.group)
            tasks.add(section.task)
        if len(groups - {NONE}) != g or len(tasks - {NONE}) != t:
            corrupt('a group or a task has no section')
        at = 64
        for section in sorted(self.sections, key=lambda section: section.offset):
            if section.offset != at:
                corrupt('the sections do not tile the file')
            at += up(section.stored)
        if at != self.index_offset:
            corrupt('the sections do not end where the index starts')
        for i, section in enumerate(self.sections):
            if section.kind in OWNERS:
                bad = section.group == NONE or (section.task != NONE) not in OWNERS[section.kind]
                if section.kind not in (HEAD, VERBATIM, RESIDUAL, LINK):
                    bad = bad or section.first != 0 or section.kind != TASK and section.count != 0
                if bad:
                    corrupt(f'section {i} belongs where its kind cannot')

    def read_names(self, data, count):
        """3.7"""
        cursor = Cursor(data, 'the list of names')
        self.names, seen = [], set()
        for _ in range(count):
            name = cursor.take(cursor.u8())
            if not safe_segment(name):
                corrupt('a task has an unsafe name')
            if name.lower() in seen:
                corrupt('two tasks have one name')
            seen.add(name.lower())
            self.names.append(name.decode())
        cursor.end()

    def load(self, section):
        what = f'section {self.sections.index(section)} (kind {section.kind})'
        return self.load_bytes(section.offset, section.stored, section.raw, section.hash, section.coding, what)


# Safetensors headers (4.1)

@dataclasses.dataclass
class Tensor:
    name: str
    dtype: str
    shape: tuple
    begin: int
    end: int

    @property
    def elements(self):
        return math.prod(self.shape)

    @property
    def width(self):
        return max(1, BITS[self.dtype] // 8)


def unique(pairs):
    if len({key for key, _ in pairs}) != len(pairs):
        corrupt('a safetensors header names something twice')
    return dict(pairs)


def whole(value):
    return type(value) is int and value < 1 << 53


def digits(text):
    if text[0] == '-':
        corrupt('a safetensors header has a number with a sign')
    return int(text[:20])


def too_deep(text):
    """Where the header is nested too deeply, or beyond its end."""
    depth, inside, escaped = 0, False, False
    for at, c in enumerate(text):
        if inside:
            inside, escaped = escaped or c != '"', not escaped and c == '\\'
        elif c == '"':
            inside = True
        elif c in '[{':
            depth += 1
            if depth > 3:
                return at
        elif c in ']}':
            depth -= 1
    return len(text) + 1


def no_nul(value):
    if type(value) is dict:
        for key, item in value.items():
            no_nul(key)
            no_nul(item)
    elif type(value) is str and '\0' in value:
        corrupt('a safetensors header has a string with NUL')


def parse_header(text):
    """The tensors in data order, and the size of the data."""
    if text[:1] != b'{':
        corrupt('a safetensors header is not an object')
    if len(text) > 100_000_000:
        limit('a safetensors header is over its limit')
    try:
        deep = too_deep(text.decode())
        header = json.loads(text.decode()[:deep], object_pairs_hook=unique, parse_int=digits,
                            parse_constant=lambda _: corrupt('not a number'))
        json.dumps(header, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        if error.pos >= deep:
            limit('a safetensors header is nested too deeply')
        corrupt('a safetensors header is not JSON')
    except ValueError:
        corrupt('a safetensors header is not JSON')
    no_nul(header)
    metadata = header.pop('__metadata__', {})
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        corrupt('__metadata__ maps to something else than strings')
    if len(header) > 65536:
        limit('a safetensors header has too many tensors')
    tensors = []
    for name, entry in header.items():
        if type(entry) is not dict or set(entry) != {'dtype', 'shape', 'data_offsets'}:
            corrupt('a tensor is not described as it must be')
        dtype, shape, ends = entry['dtype'], entry['shape'], entry['data_offsets']
        if type(dtype) is not str or type(shape) is not list or type(ends) is not list or len(ends) != 2:
            corrupt('a tensor is not described as it must be')
        if len(shape) > 8:
            limit('a tensor has too many dimensions')
        if not all(map(whole, shape)) or not all(map(whole, ends)):
            corrupt('a tensor has a shape or range that is not of whole numbers')
        if dtype not in BITS:
            unsupported(f'dtype {printable(dtype)}')
        tensor = Tensor(name, dtype, tuple(shape), *ends)
        bits = tensor.elements * BITS[dtype]
        if bits % 8 or ends[0] > ends[1] or bits // 8 != ends[1] - ends[0]:
            corrupt('a tensor has a range that is not of its size')
        tensors.append(tensor)
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.begin == tensor.end))
    at, seams = 0, {0}
    for tensor in tensors:
        if tensor.begin < tensor.end:
            if tensor.begin != at:
                corrupt('the tensors do not tile the data')
            at = tensor.end
            seams.add(at)
    if any(tensor.begin not in seams for tensor in tensors):
        corrupt('a tensor without bytes lies inside another, or outside the data')
    return tensors, at


# 4.5: arithmetic

def fma32(a, b, c):
    """a b + c in binary32, rounded once, for every element. The product is exact in binary64; the sum is rounded to odd there, so
    that rounding it again to binary32 gives what one rounding gives."""
    with numpy.errstate(all='ignore'):
        return fma32_quietly(a, b, c)


def fma32_quietly(a, b, c):
    product = numpy.multiply(a, b, dtype=numpy.float64)
    c = c.astype(numpy.float64)
    total = product + c
    back = total - product
    rest = (product - (total - back)) + (c - back)
    even = (total.view(numpy.int64) & 1) == 0
    odd = numpy.nextafter(total, numpy.where(rest > 0, numpy.inf, -numpy.inf))
    return numpy.where(numpy.isfinite(total) & (rest != 0) & even, odd, total).astype(numpy.float32)


def coarse_round(values):
    """2.7: as a writer rounds a vector"""
    e = next(e for e in range(-126, 121) if numpy.rint(numpy.abs(values).max().astype(float) * 2.0 ** -e) <= 127)
    return (numpy.rint(values.astype(float) * 2.0 ** -e) * 2.0 ** e).astype(numpy.float32)


def linear(x, matrix, y):
    for value, row in zip(x, matrix):
        y = fma32(value, row, y)
    return y


def softsign(v):
    return v / (numpy.float32(1) + numpy.abs(v))


def elu(x):
    """4.15"""
    v = numpy.where(x < -32, numpy.float32(-32), x)
    n = fma32(v, ELU_INVERSE, numpy.full_like(v, ELU_ROUND))
    k = n - ELU_ROUND
    r = fma32(k, -ELU_LOW, fma32(k, -ELU_HIGH, v))
    p = numpy.full_like(r, ELU_TERMS[0])
    for term in ELU_TERMS[1:]:
        p = fma32(p, r, numpy.full_like(r, term))
    power = (n.view(numpy.uint32) - ELU_ROUND.view(numpy.uint32) + numpy.uint32(127) << numpy.uint32(23)).view(numpy.float32)
    return numpy.where(x >= 0, x, fma32(power, fma32(r * r, p, r), power - numpy.float32(1)))


def to_bfloat16(x):
    words = x.view(numpy.uint32).astype(numpy.uint64)
    return ((words + 0x7fff + (words >> 16 & 1)) >> 16).astype('<u2')


ELU_INVERSE, ELU_ROUND = numpy.float32(float.fromhex('0x1.715476p0')), numpy.float32(float.fromhex('0x1.8p23'))
ELU_HIGH, ELU_LOW = numpy.float32(float.fromhex('0x1.62e4p-1')), numpy.float32(float.fromhex('0x1.7f7d1cp-20'))
ELU_TERMS = [numpy.float32(1 / k) for k in (5040, 720, 120, 24, 6, 2)]
CASTS = {'F32': lambda x: x.astype('<f4'), 'F16': lambda x: x.astype('<f2'), 'BF16': to_bfloat16}


def fma64(a, b, c):
    """In binary64, rounded once: exact fractions, whose conversion to float rounds correctly."""
    exact = fractions.Fraction(a) * fractions.Fraction(b) + fractions.Fraction(c)
    return exact.numerator / exact.denominator


def log64(x):
    """4.8"""
    f, e = math.frexp(x)
    if f < float.fromhex('0x1.6a09e667f3bcdp-1'):
        f, e = 2 * f, e - 1
    t = (f - 1) / (f + 1)
    y = t * t
    total = 1 / 19
    for k in range(17, 0, -2):
        total = fma64(total, y, 1 / k)
    return fma64(float(e), float.fromhex('0x1.62e42fefa39efp-1'), 2 * t * total)


def normals(seed, count):
    """4.8"""
    mask, state = (1 << 64) - 1, seed

    def uniform():
        nonlocal state
        state = state + 0x9e3779b97f4a7c15 & mask
        z = state
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9 & mask
        z = (z ^ z >> 27) * 0x94d049bb133111eb & mask
        return ((z ^ z >> 31) >> 11) * 2.0 ** -52 - 1

    out = []
    while len(out) < count:
        u, v = uniform(), uniform()
        s = fma64(u, u, v * v)
        if 0 < s < 1:
            out.append(u * math.sqrt(-2 * log64(s) / s))
    return numpy.array(out, numpy.float64).astype(numpy.float32)


# 4: what is in the sections

def plain(values, what, positive=False):
    """f32 or, as u16, bfloat16; zero or normal."""
    if values.dtype == numpy.dtype('<u2'):
        values = (values.astype('<u4') << 16).view('<f4')
    exponent = values.view('<u4') >> 23 & 0xff
    if numpy.any(exponent == 255) or numpy.any((exponent == 0) & (values != 0)):
        corrupt(f'{what}: a number is not finite, or too small')
    if positive and not numpy.all(values > 0):
        corrupt(f'{what}: a number is not positive')
    return values


def size(cursor, most, least=0):
    """A size of the generator: over its limit, or too small"""
    value = cursor.varint()
    if value < least:
        corrupt(f'{cursor.what} has a size that cannot be')
    if value > most:
        limit(f'{cursor.what} has a size over its limit')
    return value


def cut(runs):
    """4.11: runs of whole sequences, cut into streams"""
    left, room = [[]], STREAM
    for count, context in runs:
        while count:
            if not room:
                left.append([])
                room = STREAM
            part = min(count, room)
            left[-1].append((part, context))
            count, room = count - part, room - part
    return left


class Decoder:
    """4.15"""

    def __init__(self, cursor):
        coding = cursor.u8()
        if coding > 2:
            unsupported(f'a decoder of coding {coding}')
        self.inputs, self.start, self.n = size(cursor, 2048), size(cursor, 1 << 28, 1), size(cursor, 16, 1)
        self.width = size(cursor, 31, 1)
        self.channels = [size(cursor, 1024, 1) for _ in range(self.n + 1)]
        self.outputs = size(cursor, 2, 1)
        if self.width % 2 == 0:
            corrupt('a decoder with an even width')
        self.shapes = [(self.inputs, self.start * self.channels[0])]
        self.shapes += [(self.width * before, after) for before, after in zip(self.channels, [*self.channels[1:], self.outputs])]
        numbers = sum((rows + 1) * columns for rows, columns in self.shapes)
        if numbers > 1 << 28:
            limit('a decoder of too many numbers')
        left = len(cursor.data) - cursor.at
        if numbers > (1024 * left if coding == 2 else left // (2 if coding else 4)):
            corrupt('a decoder of more numbers than it has room for')
        if coding == 2:
            self.read_quantised(cursor)
            return
        self.biases, self.weights = [], []
        for rows, columns in self.shapes:
            self.biases.append(plain(cursor.array('<f4', columns), 'a decoder'))
            self.weights.append(plain(cursor.array('<u2' if coding else '<f4', rows * columns), 'a decoder').reshape(rows, columns))

    def read_quantised(self, cursor):
        counts = []
        for l, (rows, columns) in enumerate(self.shapes):
            counts += [rows] * columns if l else [columns] * rows
            counts.append(columns)
        if len(counts) > (len(cursor.data) - cursor.at) // 2:
            corrupt('a decoder of more vectors than it has room for')
        codes, code = [], 0
        for _ in counts:
            code += cursor.signed()
            if abs(code) > MOST_CODE:
                corrupt('a decoder has a step out of its range')
            codes.append(code)
        contexts = cursor.take(len(counts))
        streams, numbers = cut(zip(counts, contexts)), []
        for runs, length in list(zip(streams, [cursor.varint() for _ in streams])):
            try:
                numbers += rans.decode(cursor.take(length), runs)
            except rans.Corrupt as error:
                corrupt(f'a decoder: {error}')
        vectors, at = [], 0
        for count, code, context in zip(counts, codes, contexts):
            step = residual_step(numpy.float32(1), code)
            vectors.append(numpy.array(expand(numbers[at:at + count], context), numpy.float32) * step)
            at += count
        self.biases, self.weights = [], []
        for l, (rows, columns) in enumerate(self.shapes):
            own, vectors = vectors[:columns if l else rows], vectors[columns if l else rows:]
            self.biases.append(vectors.pop(0))
            matrix = numpy.array(own, numpy.float32).reshape(len(own), rows if l else columns)
            self.weights.append(matrix.T if l else matrix)

    def layer(self, l, g):
        """g_l of g_(l-1), before elu; the output of g_N: one tap after the other, all positions that it reaches at once"""
        up, padding = l <= self.n, (self.width - 1) // 2
        after = len(g) * (2 if up else 1)
        y = numpy.tile(self.biases[l], (after, 1))
        for tap in range(self.width):
            to = (2 * numpy.arange(len(g)) + tap if up else numpy.arange(len(g)) + 2 * padding - tap) - padding
            inside = (to >= 0) & (to < after)
            for i in range(g.shape[1]):
                y[to[inside]] = fma32(g[inside, i, None], self.weights[l][tap * g.shape[1] + i], y[to[inside]])
        return y

    def run(self, x):
        """y, one column a channel"""
        with numpy.errstate(all='ignore'):
            g = linear(x, self.weights[0], self.biases[0]).reshape(self.start, self.channels[0])
            for l in range(1, self.n + 1):
                g = elu(self.layer(l, g))
            return self.layer(self.n + 1, g)


class Denoiser:
    """4.16"""

    def __init__(self, cursor, d, m):
        e, h, steps = size(cursor, 256), size(cursor, 4096), size(cursor, 1024)
        if not d or not h or not steps:
            corrupt('a denoiser has a size that cannot be')

        def floats(*shape, kind='<f4', positive=False):
            return plain(cursor.array(kind, math.prod(shape)), 'a denoiser', positive).reshape(shape)

        self.centre, self.spread = floats(d), floats(d, positive=True)
        self.keep, self.add, self.time = floats(steps), floats(steps), floats(steps, e)
        shapes = (d + m + e, h), (h, h), (h, h), (h, d)
        self.layers = [(floats(*shape, kind='<u2'), floats(shape[1])) for shape in shapes]

    def sample(self, noise, a):
        x = noise
        (u1, c1), (u2, c2), (u3, c3), (u4, c4) = self.layers
        with numpy.errstate(all='ignore'):
            for keep, add, time in zip(self.keep, self.add, self.time):
                h1 = softsign(linear(numpy.concatenate([x, a, time]), u1, c1))
                h2 = softsign(linear(h1, u2, c2)) + h1
                h3 = softsign(linear(h2, u3, c3)) + h2
                x = fma32(add, linear(h3, u4, c4), keep * x)
            z = fma32(self.spread, x, self.centre)
        if not numpy.all(numpy.isfinite(z)):
            corrupt('a latent is not finite')
        return z


class Generator:
    """4.3"""

    def __init__(self, data, tensors):
        self.tensors = tensors
        cursor = Cursor(data, 'the generator')
        self.kind = cursor.u8()
        if self.kind > CONV:
            unsupported(f'generator of kind {self.kind}')
        if cursor.varint() != len(tensors):
            corrupt('the generator is for another number of tensors')
        self.treatment = list(cursor.take(len(tensors)))
        for treatment, tensor in zip(self.treatment, tensors):
            if treatment > 3:
                unsupported(f'treatment {treatment}')
            if treatment < 3 and (tensor.dtype not in MODELLED or not tensor.elements):
                corrupt('the generator models a tensor that cannot be modelled')
        self.modelled = [t for t, treatment in enumerate(self.treatment) if treatment < 3]

        def floats(*shape, kind='<f4', positive=False):
            return plain(cursor.array(kind, math.prod(shape)), 'the generator', positive).reshape(shape)

        self.scale = dict(zip(self.modelled, floats(len(self.modelled), positive=True)))
        self.roles, self.k = [0, 0, 0], 0
        if self.kind == BASIS:
            self.read_basis(cursor, floats)
        elif self.kind == CONV:
            self.read_conv(cursor, floats)
        cursor.end()

    def read_condition(self, cursor, most, wrong):
        c, m_g = self.c, self.m_g = size(cursor, 1 << 20), size(cursor, 1024)
        if wrong or m_g > self.m or (m_g == 0) != (c == 0):
            corrupt('the generator has a size out of its range')
        self.condition = numpy.array([cursor.coarse(c) for _ in range(m_g)], numpy.float32).reshape(m_g, c)

    def read_basis(self, cursor, floats):
        self.roles = [size(cursor, 4096) for _ in range(3)]
        k = self.k = sum(self.roles)
        d, m, h = self.d, self.m, self.h = size(cursor, 1024), size(cursor, 1024), size(cursor, 1024)
        self.read_condition(cursor, m, not k or not h)
        self.latent_step = floats(d, positive=True)
        self.correction_step = floats(k, positive=True)
        self.head_step = floats(k, positive=True)
        self.v1, self.b1 = floats(d + m, h, kind='<u2'), floats(h)
        self.v2, self.b2 = floats(h, h, kind='<u2'), floats(h)
        self.v3, self.s, self.b3 = floats(h, k, kind='<u2'), floats(d + m, k), floats(k)

    def read_conv(self, cursor, floats):
        d, m = self.d, self.m = size(cursor, 1024), size(cursor, 1024)
        self.read_condition(cursor, m, False)
        self.prior = cursor.u8()
        if self.prior > DIFFUSION:
            unsupported(f'a prior {self.prior}')
        self.latent_step = floats(d, positive=True)
        self.decoder = Decoder(cursor)
        weights = sum(self.tensors[t].elements for t in self.modelled)
        if self.decoder.inputs != (d + m if self.prior == NORMAL else d) or not weights or self.decoder.start != -(-weights >> self.decoder.n):
            corrupt('a decoder does not fit the tensors')
        if self.prior == DIFFUSION:
            self.denoiser = Denoiser(cursor, d, m)
        self.ran = None

    def coordinates(self, origin, values):
        if origin == LEARNED:
            return values
        a = numpy.zeros(self.m, numpy.float32)
        a[:self.m_g] = linear(values, self.condition.T, a[:self.m_g])
        return a

    def draw(self, noise, a):
        """4.5, 4.8: z, where none is stored"""
        if self.kind == CONV and self.prior == DIFFUSION:
            return self.denoiser.sample(noise, a)
        return noise

    def coefficients(self, z, a):
        """Of a basis q; of a decoder its input"""
        if self.kind == CONV:
            return numpy.concatenate([z, a]) if self.prior == NORMAL else z
        x = numpy.concatenate([z, a])
        with numpy.errstate(all='ignore'):
            h1 = softsign(linear(x, self.v1, self.b1))
            h2 = softsign(linear(h1, self.v2, self.b2))
            q = linear(x, self.s, linear(h2, self.v3, self.b3))
        if not numpy.all(numpy.isfinite(q)):
            corrupt('a coefficient is not finite')
        return q

    def has_rows(self, t):
        return self.treatment[t] < 3 and self.roles[self.treatment[t]] > 0

    def prediction(self, head, t, q):
        """Of modelled tensor t, before residual and cast."""
        if self.kind == CONV:
            return self.decoded(t, q)
        zeros = numpy.zeros(self.tensors[t].elements, numpy.float32)
        if not self.has_rows(t):
            return zeros
        role = self.treatment[t]
        own = slice(sum(self.roles[:role]), sum(self.roles[:role + 1]))
        return linear(q[own] * self.head_step[own], head[t].astype(numpy.float32), zeros) * self.scale[t]

    def decoded(self, t, x):
        """4.5, kind 2: tensor t of what the decoder makes of x"""
        c = self.tensors[t].elements
        return self.output(t, x)[:, 0] * (self.scale[t] * (numpy.float32(64) / numpy.sqrt(numpy.float32(c))))

    def output(self, t, x):
        """The decoder's for the elements of tensor t"""
        if self.ran is None or self.ran[0] != x.tobytes():
            self.ran = x.tobytes(), self.decoder.run(x)
        first, c = sum(self.tensors[u].elements for u in self.modelled if u < t), self.tensors[t].elements
        return self.ran[1][first:first + c]

    def classes(self, x):
        """4.11: {tensor: the class of each element}; nothing where there is no second channel. x is what 4.5 makes of the checkpoint."""
        if self.kind != CONV or self.decoder.outputs != 2:
            return None
        found = {}
        for t in self.modelled:
            v = self.output(t, x)[:, 1]
            if not numpy.all(numpy.isfinite(v)):
                corrupt('a predicted variance is not finite')
            with numpy.errstate(over='ignore'):
                octaves = numpy.clip(v * ELU_INVERSE, LOWEST_OCTAVE, HIGHEST_OCTAVE)
            found[t] = numpy.rint(octaves).astype(numpy.int64) - LOWEST_OCTAVE
        return found

    def weights(self, head, t, q, residual=None):
        """The bytes of modelled tensor t; `residual` is its step and integers (4.11), if it has any."""
        with numpy.errstate(all='ignore'):
            x = self.prediction(head, t, q)
            if residual:
                step, integers = residual
                x = fma32(integers, step, x)
            if not numpy.all(numpy.isfinite(x)):
                corrupt('a weight is not finite')
            return CASTS[self.tensors[t].dtype](x).tobytes()


@dataclasses.dataclass
class Checkpoint:
    """A row of a task's table (4.6). `step` is None where there is none."""
    step: int = None
    tier: int = LATENT
    bound: tuple = None
    taps: int = 0
    header: int = 0
    side: list = None
    exceptions: list = None
    latents: list = None
    corrections: list = None
    errors: list = None
    hash: int = 0
    part: object = None
    number: int = 0


def has_coefficients(row, generator):
    """4.6"""
    return generator.kind != NO_GENERATOR and row.tier in (LATENT, BOUNDED, LOSSLESS)


def has_block(row, kind):
    """4.11, 4.12: in a section of this kind"""
    return row.tier == {RESIDUAL: BOUNDED, LINK: LOSSLESS}[kind]


def read_bound(cursor):
    """4.6: kind and value"""
    kind, value = cursor.u8(), float(cursor.array('<f4', 1)[0])
    if kind not in (1, 2, 3):
        unsupported(f'a bound of kind {kind}')
    if not 0 < value < math.inf:
        corrupt('a bound that is not positive and finite')
    return kind, value


def read_taps(cursor, table):
    """4.6, 4.12"""
    for row in table:
        if row.tier == LOSSLESS:
            row.taps = cursor.u8()
    for row, after in zip(table, [*table[1:], Checkpoint()]):
        taps = table[row.number + 1:row.number + 1 + row.taps]
        if row.taps > MOST_TAPS or row.taps > len(taps) or row.taps > after.taps + 1 or any(tap.tier != LOSSLESS for tap in taps):
            corrupt('a checkpoint is predicted from what it cannot be predicted from')


def read_table(cursor, n, generator, latents):
    """4.6"""
    if n > len(cursor.data) // 19:
        corrupt('a task table is too short for its checkpoints')
    table = [Checkpoint(number=i) for i in range(n)]
    step = 0
    for i, row in enumerate(table):
        value = cursor.varint()
        if value == 0 and i != n - 1:
            corrupt('a checkpoint that is not the last has no step')
        if value == 1 and i:
            corrupt('steps do not ascend')
        if value:
            step += value - 1
            row.step = step
            if step >= 1 << 64:
                corrupt('a step is too large')
    for row in table:
        row.tier = cursor.u8()
        if row.tier not in TIERS:
            unsupported(f'tier {row.tier}')
        if row.tier == KEPT if generator.kind else row.tier in (GENERATE, LATENT):
            corrupt('a tier that its group cannot have')
    for row in table:
        if row.tier == BOUNDED:
            row.bound = read_bound(cursor)
    read_taps(cursor, table)
    for row in table:
        row.header = cursor.varint()
        row.side, files = [], cursor.varint()
        if files > (len(cursor.data) - cursor.at) // 2:
            corrupt('more side files than there are bytes for')
        if files > 1024:
            limit('more than 1024 side files')
        for _ in range(files):
            name = cursor.varint()
            row.side.append((name, cursor.varint()))
        row.exceptions, tensor = [], -1
        for _ in range(cursor.varint()):
            tensor += cursor.varint() + 1
            if tensor >= len(generator.treatment) or generator.treatment[tensor] == 3:
                corrupt('an exception that is not a modelled tensor')
            row.exceptions.append(tensor)
    latent = [row for row in table if has_coefficients(row, generator)]

    def column(differences):
        last, out = 0, []
        for _ in latent:
            value = cursor.signed() + (last if differences else 0)
            if abs(value) > 1 << 23:
                corrupt('a latent or a correction is too large')
            last = value
            out.append(value)
        return out

    if generator.kind:
        latents = [column(True) for _ in range(latents)]
        corrections = [column(False) for _ in range(generator.k)]
        for i, row in enumerate(latent):
            row.latents, row.corrections = [c[i] for c in latents], [c[i] for c in corrections]
    errors = [cursor.array('<u2', n) for _ in range(3)]
    for measure in errors:
        if numpy.any((measure > 0x7f80) & (measure != 0x8000)):
            corrupt('an error measure is negative or not a number')
    hashes = cursor.array('<u8', n)
    cursor.end()
    for i, row in enumerate(table):
        row.errors, row.hash = [int(measure[i]) for measure in errors], int(hashes[i])
    return table


def read_texts(archive, sections):
    """4.2: of the one section there may be"""
    if not sections:
        return []
    cursor, texts = Cursor(archive.container.load(sections[0]), 'the texts'), []
    count = cursor.varint()
    if count > len(cursor.data) - cursor.at:
        corrupt('more texts than there are bytes')
    if count > 1 << 20:
        limit('more than 2^20 texts')
    for _ in range(count):
        texts.append(cursor.take(cursor.varint()))
    cursor.end()
    return texts


def expand(symbols, context):
    """4.13"""
    try:
        return trellis.expand(symbols, context)
    except trellis.Corrupt as error:
        corrupt(str(error))


class Group:
    def __init__(self, archive, number):
        self.archive, self.number = archive, number
        own = [s for s in archive.container.sections if s.group == number]
        self.signature_section = archive.only(own, SIGNATURE, 'signature')
        self.generator_section = archive.only(own, GENERATOR, 'generator')
        self.head_sections = [s for s in own if s.kind == HEAD]
        self.header = archive.container.load(self.signature_section)
        self.tensors, self.size = parse_header(self.header)
        self.generator = Generator(archive.container.load(self.generator_section), self.tensors)
        self.texts = read_texts(archive, [s for s in own if s.kind == TEXTS and s.task == NONE])
        self.heads = None
        at = 0
        for section in self.head_sections:
            if section.first != at or not section.count:
                corrupt('the head has a gap or an overlap')
            at += section.count
        last = max((t for t in self.generator.modelled if self.generator.has_rows(t)), default=-1)
        if not last < at <= len(self.tensors) or self.head_sections and self.generator.kind != BASIS:
            corrupt('the head is not that of its group')

    def head(self):
        """4.4: {tensor: rows}"""
        if self.heads is None:
            heads, generator = {}, self.generator
            for section in self.head_sections:
                cursor = Cursor(self.archive.container.load(section), 'the head')
                covered = [t for t in generator.modelled if section.first <= t < section.first + section.count]
                shapes = {t: (generator.roles[generator.treatment[t]], self.tensors[t].elements) for t in covered}
                counts = [c for rows, c in shapes.values() for _ in range(rows)]
                contexts = cursor.take(len(counts))
                try:
                    numbers = rans.decode(cursor.take(len(cursor.data) - cursor.at), list(zip(counts, contexts)))
                except rans.Corrupt as error:
                    corrupt(f'the head: {error}')
                at, contexts = 0, iter(contexts)
                for t, (rows, c) in shapes.items():
                    heads[t] = numpy.array([expand(numbers[at + c * k:at + c * (k + 1)], next(contexts)) for k in range(rows)], numpy.int16).reshape(rows, c)
                    at += rows * c
            self.heads = heads
        return self.heads


def residual_step(scale, code):
    """4.11: the f32, or None where it is not a positive normal number."""
    octave, sixteenth = divmod(code, 16)
    power = numpy.uint32(SIXTEENTHS[sixteenth] + (octave << 23)).view(numpy.float32)
    with numpy.errstate(all='ignore'):
        step = scale * power
    return step if numpy.finfo(numpy.float32).tiny <= step < numpy.inf else None


def read_residual(cursor, generator, classes):
    """4.11: a block, {tensor: (step, integers)}"""
    tensors, codes, tensor, code = [], [], -1, 0
    n, with_trellis = divmod(cursor.varint(), 2)
    if n > len(generator.modelled) or not generator.modelled:
        corrupt('a residual of too many tensors')
    if n == 0:
        tensors = list(generator.modelled)
    for _ in range(n):
        tensor += cursor.varint() + 1
        if tensor >= len(generator.treatment) or generator.treatment[tensor] == 3:
            corrupt('a residual of a tensor that is not modelled')
        tensors.append(tensor)
    for tensor in tensors:
        code += cursor.signed()
        if abs(code) > MOST_CODE or residual_step(generator.scale[tensor], code) is None:
            corrupt('a residual has a step out of its range')
        codes.append(code)
    orders = [numpy.arange(generator.tensors[t].elements) if classes is None else numpy.argsort(classes[t], kind='stable') for t in tensors]
    counts = [[len(order)] if classes is None else list(filter(None, numpy.bincount(classes[t]).tolist())) for t, order in zip(tensors, orders)]
    contexts = iter(cursor.take(sum(map(len, counts))))
    runs_of = [[(count, next(contexts)) for count in own] for own in counts]
    runs = [run for own in runs_of for run in own]
    if -(-sum(count for count, _ in runs) // STREAM) > len(cursor.data) - cursor.at + 1:
        corrupt('a residual ends too soon')
    streams, numbers = cut(runs), []
    sizes = [cursor.varint() for _ in streams[1:]]
    for s, runs in enumerate(streams):
        data = cursor.take(sizes[s] if s < len(sizes) else len(cursor.data) - cursor.at)
        try:
            numbers += rans.decode(data, runs)
        except rans.Corrupt as error:
            corrupt(f'a residual: {error}')
    at, out = 0, {}
    for tensor, code, own, order in zip(tensors, codes, runs_of, orders):
        integers = []
        for count, context in own:
            part = numbers[at:at + count]
            integers += expand(part, context) if with_trellis else part
            at += count
        if any(not -32768 <= integer <= 32767 for integer in integers):
            corrupt('a residual holds a number out of its range')
        placed = numpy.empty(len(order), numpy.float32)
        placed[order] = integers
        out[tensor] = residual_step(generator.scale[tensor], code), placed
    return out


class Part:
    """What one task has in one group."""

    def __init__(self, archive, group, task):
        self.archive, self.group, self.task = archive, group, task
        own = [s for s in archive.container.sections if s.group == group.number and s.task == task]
        table = archive.only(own, TASK, 'task')
        self.texts = group.texts + read_texts(archive, [s for s in own if s.kind == TEXTS])
        self.sections = {kind: [s for s in own if s.kind == kind] for kind in (VERBATIM, RESIDUAL, LINK)}
        conditions = [s for s in own if s.kind == CONDITION]
        if group.generator.kind and len(conditions) != 1:
            corrupt('a task part has no condition')
        self.origin, self.condition, self.offset = 0, None, None
        if conditions:
            self.read_condition(archive.container.load(conditions[0]))
        latents = group.generator.d if group.generator.kind and self.origin != ADDED else 0
        self.rows = read_table(Cursor(archive.container.load(table), 'a task table'), table.count, group.generator, latents)
        if not self.rows:
            corrupt('a task part without checkpoints')
        for row in self.rows:
            row.part = self
            if row.header > len(self.texts) or any(max(pair) >= len(self.texts) for pair in row.side):
                corrupt('a checkpoint has a text that is not there')
            for name, _ in row.side:
                if not safe_segment(self.texts[name]):
                    corrupt('a side file has an unsafe name')
            names = [self.texts[name] for name, _ in row.side] + [b'adapter_model.safetensors']
            if len(set(map(bytes, names))) != len(names):
                corrupt('two files of a checkpoint have one name')
        self.headers = {}
        for number in {row.header for row in self.rows} - {0}:
            self.check_header(self.texts[number - 1])
        self.data, self.found, self.chain = {}, {}, {}
        for kind, sections in self.sections.items():
            at = 0
            for section in sections:
                if section.first < at or not section.count or section.first + section.count > len(self.rows):
                    corrupt(f'a section of kind {kind} has another range than its task')
                if kind != VERBATIM and not any(has_block(row, kind) for row in self.rows[section.first:section.first + section.count]):
                    corrupt(f'a section of kind {kind} without a checkpoint that has any')
                at = section.first + section.count

    def read_condition(self, data):
        """4.6"""
        cursor = Cursor(data, 'a condition')
        self.origin = cursor.u8()
        if self.origin not in (GIVEN, LEARNED, ADDED):
            unsupported(f'condition of origin {self.origin}')
        if 0 in cursor.take(cursor.u8()):
            corrupt('a condition has a file name with NUL')
        generator = self.group.generator
        if self.origin == ADDED:
            self.read_offset(cursor, generator)
            return
        count = len(data) - cursor.at - 1
        if generator.kind:
            wrong = count != (generator.c if self.origin == GIVEN else generator.m)
        else:
            wrong = self.origin != GIVEN
        if count < 1 or wrong:
            corrupt('a condition has another size than its generator takes')
        if count > 1 << 20:
            limit('a condition has too many numbers')
        self.condition = cursor.coarse(count)

    def read_offset(self, cursor, generator):
        """4.6: of a task that was added"""
        count = cursor.varint()
        if generator.kind != BASIS:
            corrupt('a condition is an offset in a group without a basis')
        if count > len(cursor.data) - cursor.at:
            corrupt('a condition ends too soon')
        if count > 1 << 20:
            limit('a condition has too many numbers')
        if count:
            self.condition = cursor.coarse(count)
        self.offset = [cursor.signed() for _ in range(generator.k)]
        cursor.end()
        if any(abs(number) > 1 << 23 for number in self.offset):
            corrupt('an offset is out of its range')

    def check_header(self, text):
        """4.2"""
        mine = {t.name: t for t in parse_header(text)[0]}
        if mine != {t.name: t for t in self.group.tensors}:
            corrupt('a header describes other tensors than its group')

    def kept(self, row):
        """The tensors that a checkpoint keeps verbatim and that have bytes."""
        def keeps(t, tensor):
            if row.tier == LOSSLESS:
                return tensor.dtype not in MODELLED
            return self.group.generator.treatment[t] == 3 or t in row.exceptions
        return [t for t, tensor in enumerate(self.group.tensors) if tensor.begin < tensor.end and keeps(t, tensor)]

    def covering(self, kind, row):
        for section in self.sections[kind]:
            if section.first <= row.number < section.first + section.count:
                return section
        return None

    def verbatim(self, row):
        """4.7: {tensor: bytes}"""
        section = self.covering(VERBATIM, row)
        if not section:
            if self.kept(row):
                corrupt('a checkpoint has no verbatim section')
            return {}
        if section.first not in self.data:
            cursor = Cursor(self.archive.container.load(section), 'a verbatim section')
            rows = self.rows[section.first:section.first + section.count]
            kept = {r.number: {} for r in rows}
            for t, tensor in enumerate(self.group.tensors):
                having = [r for r in rows if t in self.kept(r)]
                size = tensor.end - tensor.begin
                data = cursor.take(size * len(having))
                data = ungroup(data, tensor.width) if data else b''
                for i, r in enumerate(having):
                    kept[r.number][t] = data[i * size:(i + 1) * size]
            cursor.end()
            self.data[section.first] = kept
        return self.data[section.first][row.number]

    def block(self, kind, row):
        """4.11, 4.12: of the section that covers the checkpoint; nothing where none does"""
        section = self.covering(kind, row)
        if not section:
            return b''
        if (kind, section.first) not in self.found:
            cursor = Cursor(self.archive.container.load(section), f'a section of kind {kind}')
            rows = [r for r in self.rows[section.first:section.first + section.count] if has_block(r, kind)]
            sizes = [cursor.varint() for _ in rows]
            self.found[kind, section.first] = {r.number: cursor.take(size) for r, size in zip(rows, sizes)}
            cursor.end()
        return self.found[kind, section.first][row.number]

    def residual(self, row, x):
        """4.11: {tensor: (step, integers)}; x is the checkpoint's code"""
        block, generator = self.block(RESIDUAL, row) if has_block(row, RESIDUAL) else b'', self.group.generator
        found = read_residual(Cursor(block, 'a residual'), generator, generator.classes(x)) if block else {}
        if any(t in row.exceptions for t in found):
            corrupt('a residual of a tensor that is kept verbatim')
        return found

    def original(self, row):
        """4.12: the data of a lossless checkpoint, and before that of what it is predicted from"""
        at = row.number
        while any(at + k not in self.chain for k in range(1, self.rows[at].taps + 1)):
            at += 1
        for number in range(at, row.number - 1, -1):
            if number not in self.chain:
                self.chain[number] = self.link(self.rows[number])
        return self.chain[row.number]

    def link(self, row):
        """4.12, of whose taps all are there"""
        generator = self.group.generator
        taps = [self.chain[row.number + k] for k in range(1, row.taps + 1)]
        if generator.kind:
            q = self.coefficients(row)
            taps.append(b''.join(generator.weights(self.group.head(), t, q) if generator.treatment[t] < 3 else bytes(tensor.end - tensor.begin)
                                 for t, tensor in enumerate(self.group.tensors)))
        parts = self.verbatim(row)
        coded = [(t, tensor) for t, tensor in enumerate(self.group.tensors) if tensor.dtype in MODELLED]
        try:
            decoded = lossless.decode(self.block(LINK, row), [(tensor.dtype, tensor.elements, [tap[tensor.begin:tensor.end] for tap in taps])
                                                              for _, tensor in coded], len(taps), decompress)
        except (lossless.Corrupt, rans.Corrupt) as error:
            corrupt(f'a lossless link: {error}')
        for (t, _), data in zip(coded, decoded):
            parts[t] = data
        return b''.join(parts[t] for t, tensor in enumerate(self.group.tensors) if tensor.begin < tensor.end)

    def tensors(self, row, q, residual):
        """4.5: the data, from the coefficients (None where the group has no basis) and the residual, below tier lossless."""
        verbatim, parts = self.verbatim(row), []
        for t, tensor in enumerate(self.group.tensors):
            if tensor.begin < tensor.end:
                parts.append(verbatim[t] if t in verbatim else self.group.generator.weights(self.group.head(), t, q, residual.get(t)))
        return b''.join(parts)

    def file(self, row, data):
        header = self.texts[row.header - 1] if row.header else self.group.header
        return struct.pack('<Q', len(header)) + header + data

    def coefficients(self, row):
        generator = self.group.generator
        if not generator.kind:
            return None
        if self.origin == ADDED:
            return self.added(row.corrections if has_coefficients(row, generator) else [0] * generator.k)
        a = generator.coordinates(self.origin, self.condition)
        if not has_coefficients(row, generator):
            return generator.coefficients(generator.draw(numpy.zeros(generator.d, numpy.float32), a), a)
        q = generator.coefficients(numpy.array(row.latents, numpy.float32) * generator.latent_step, a)
        return fma32(numpy.array(row.corrections, numpy.float32), generator.correction_step, q) if generator.kind == BASIS else q

    def added(self, corrections):
        """4.5: the coefficients of a task that was added"""
        with numpy.errstate(over='ignore'):
            q = numpy.array([o + c for o, c in zip(self.offset, corrections)], numpy.float32) * self.group.generator.correction_step
        if not numpy.isfinite(q).all():
            corrupt('a coefficient is not finite')
        return q

    def compute(self, row):
        if row.tier == LOSSLESS:
            return self.file(row, self.original(row))
        q = self.coefficients(row)
        return self.file(row, self.tensors(row, q, self.residual(row, q)))

    def decode(self, row):
        data = self.compute(row)
        if xxh3_64(data) != row.hash:
            corrupt('a decoded checkpoint does not have its hash')
        return data

    def sample(self, row, seed):
        """4.8"""
        if not self.group.generator.kind:
            unsupported('the task has no generator to sample from')
        if self.origin == ADDED:
            return self.made(row, self.added([0] * self.group.generator.k))
        return self.generate(row, self.group.generator.coordinates(self.origin, self.condition), seed)

    def generate(self, row, a, seed):
        """4.8: of condition coordinates; without a seed the mean"""
        generator = self.group.generator
        noise = numpy.zeros(generator.d, numpy.float32) if seed is None else normals(seed, generator.d)
        return self.made(row, generator.coefficients(generator.draw(noise, a), a))

    def made(self, row, q):
        """4.8: from a code alone"""
        generator = self.group.generator
        if row.tier != LOSSLESS:
            return self.file(row, self.tensors(row, q, {}))
        data, out = self.original(row), []
        for t, tensor in enumerate(self.group.tensors):
            if generator.treatment[t] == 3 or t in row.exceptions:
                out.append(data[tensor.begin:tensor.end])
            else:
                out.append(generator.weights(self.group.head(), t, q))
        return self.file(row, b''.join(out))


class Archive:
    def __init__(self, path):
        self.container = Container(path)
        try:
            sections = [s for s in self.container.sections if s.kind in OWNERS]
            groups = [Group(self, number) for number in range(self.container.groups)]
            pairs = sorted({(s.task, s.group) for s in sections if s.task != NONE})
            parts = [Part(self, groups[group], task) for task, group in pairs]
            self.table = {name: [] for name in self.container.names}
            for part in parts:
                self.table[self.container.names[part.task]] += part.rows
            for rows in self.table.values():
                rows.sort(key=lambda row: (row.step is None, row.step or 0))
                if len({row.step for row in rows}) != len(rows):
                    corrupt('a task has two checkpoints of one step')
        except BaseException:
            self.container.close()
            raise

    def close(self):
        self.container.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def only(self, sections, kind, name):
        found = [s for s in sections if s.kind == kind]
        if len(found) != 1:
            corrupt(f'there is not one {name} section')
        return found[0]

    def tasks(self):
        return list(self.table)

    def checkpoints(self, task):
        if task not in self.table:
            raise IcmaError('missing', f'no task {printable(task)}')
        return list(self.table[task])

    def find(self, task, checkpoint):
        """By step; None or 'final' is the one without a step, 'last' the last."""
        rows = self.checkpoints(task)
        if checkpoint == 'last' and rows:
            return rows[-1]
        step = None if checkpoint in (None, 'final') else int(checkpoint)
        for row in rows:
            if row.step == step:
                return row
        raise IcmaError('missing', f'task {printable(task)} has no checkpoint {checkpoint}')

    def decode(self, task, checkpoint='last'):
        row = checkpoint if isinstance(checkpoint, Checkpoint) else self.find(task, checkpoint)
        return row.part.decode(row)

    def side_files(self, task, checkpoint='last'):
        row = checkpoint if isinstance(checkpoint, Checkpoint) else self.find(task, checkpoint)
        return {row.part.texts[name].decode(): row.part.texts[text] for name, text in row.side}

    def sample(self, task, seed):
        row = self.find(task, 'last')
        return row.part.sample(row, seed)

    def generate(self, like, condition=None, mix=None, seed=None):
        """4.8: for a vector, or for {task: weight}, in the shape of task `like`; without the metadata that marks it."""
        row = self.find(like, 'last')
        generator = row.part.group.generator
        if condition is not None:
            a = generator.coordinates(1, coarse_round(numpy.asarray(condition, numpy.float32)))
        else:
            own = [self.find(task, 'last').part for task in mix]
            if any(part.origin == ADDED for part in own):
                unsupported('an added task has no condition to mix')
            a = sum(weight * generator.coordinates(part.origin, part.condition).astype(float) for weight, part in zip(mix.values(), own)).astype(numpy.float32)
        return row.part.generate(row, a, seed)

    def check(self):
        """Loads every section that is known and decodes everything; the number of checkpoints."""
        for section in self.container.sections:
            if section.kind in OWNERS:
                self.container.load(section)
        rows = [row for rows in self.table.values() for row in rows]
        for row in rows:
            row.part.group.head()
            row.part.decode(row)
        return len(rows)


def open(path):
    return Archive(path)


def write(path, data):
    if path == '-':
        sys.stdout.buffer.write(data)
    else:
        with builtins.open(path, 'wb') as file:
            file.write(data)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    verbs = parser.add_subparsers(dest='verb', required=True)
    for verb, more in (('list', ()), ('check', ()), ('decode', ('task', 'step')), ('sample', ('task', 'seed'))):
        sub = verbs.add_parser(verb)
        sub.add_argument('bundle')
        for name in more:
            sub.add_argument(name, type=int if name == 'seed' else str)
        if more:
            sub.add_argument('-o', '--output', required=True)
    options = parser.parse_args()
    try:
        with open(options.bundle) as archive:
            if options.verb == 'list':
                for task in archive.tasks():
                    for row in archive.checkpoints(task):
                        print(printable(task), 'final' if row.step is None else row.step, TIERS[row.tier], f'{row.hash:016x}', sep='\t')
            elif options.verb == 'check':
                print(f'{archive.check()} checkpoints have their hashes')
            elif options.verb == 'decode':
                write(options.output, archive.decode(options.task, options.step))
            else:
                write(options.output, archive.sample(options.task, options.seed))
    except IcmaError as error:
        print(f'icma_reader: {error.kind}: {options.bundle}: {error}', file=sys.stderr)
        return error.code
    except OSError as error:
        print(f'icma_reader: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
