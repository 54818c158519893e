# SPDX-License-Identifier: Apache-2.0
"""Archives that are made while the tests run, by taking a golden vector apart, changing one thing, and putting it together
again with checksums that fit. MUTANTS lists them: each is (name, vector, what a reader must say, what was done).

What a reader must say: 'good' (decodes to the vector's own SHA-256 sums), 'equal' (to other sums, the same in both readers), or
the class of spec 1.2 with which it refuses.
"""
import copy
import dataclasses
import json
import math
import pathlib
import random
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / 'python'))

import icma_reader as reader  # noqa: E402
import lossless  # noqa: E402
import numpy  # noqa: E402
import rans  # noqa: E402
import trellis  # noqa: E402
from icma_reader import BOUNDED, CONDITION, GENERATE, GENERATOR, HEAD, KEPT, LATENT, LINK, LOSSLESS, NONE, RECORD, RESIDUAL, SIGNATURE, TASK, TEXTS, VERBATIM  # noqa: E402
from xxh3 import portable as xxh3_64  # noqa: E402

MUTANTS = []


def up(size):
    return -(-size // 64) * 64


def varint(value):
    out = b''
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def signed(value):
    return varint(2 * value if value >= 0 else -2 * value - 1)


def zstd(data, *options):
    """With the content's size and a checksum, as the command writes it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return subprocess.run(['zstd', '-q', '-c', '-19', *options, file.name], stdout=subprocess.PIPE, check=True).stdout


@dataclasses.dataclass
class Piece:
    """A section: its entry's fields, its stored bytes, and its raw bytes while they are worked on."""
    kind: int
    group: int = NONE
    task: int = NONE
    first: int = 0
    count: int = 0
    data: bytes = b''
    coding: int = 0
    raw: int = None
    flags: int = 0
    reserved: int = 0
    hash: int = None
    offset: int = None
    padding: bytes = None
    at: int = 1 << 60

    @property
    def key(self):
        return self.kind, self.group, self.task, self.first


class Draft:
    """An archive in pieces. What is None is computed when it is put together."""

    def __init__(self, name):
        with reader.Container(HERE / f'{name}.icma') as container:
            self.names = [name.encode() for name in container.names]
            self.groups = container.groups
            self.pieces = [Piece(s.kind, s.group, s.task, s.first, s.count, container.read(s.offset, s.stored), s.coding, s.raw,
                                 at=s.offset) for s in container.sections]
        self.version = self.reserved = self.required = self.optional = 0
        self.magic, self.tail = b'\x89ICMA\r\n\x1a', bytes(36)
        self.counts, self.index_reserved, self.index_coding, self.sort = [None, None, None], 0, 0, True
        self.footer, self.more_names, self.index_padding, self.hole = {}, b'', b'', 0
        self.patch_header = self.patch_index = self.patch_entries = self.patch_footer = self.patch = lambda data: data

    def find(self, kind, task=None, group=None):
        for piece in self.pieces:
            if piece.kind == kind and task in (None, piece.task) and group in (None, piece.group):
                return piece
        raise KeyError(kind)

    def raw(self, piece):
        return reader.decompress(piece.data, piece.raw) if piece.coding else piece.data

    def store(self, piece, raw):
        piece.data, piece.coding, piece.raw = raw, 0, len(raw)

    def edit(self, kind, change, **where):
        piece = self.find(kind, **where)
        self.store(piece, bytes(change(bytearray(self.raw(piece)))))
        return piece

    def tensors(self, group=0):
        return reader.parse_header(self.raw(self.find(SIGNATURE, group=group)))[0]

    def generator(self, group=0):
        return reader.Generator(self.raw(self.find(GENERATOR, group=group)), self.tensors(group))

    def build(self):
        if self.sort:
            self.pieces.sort(key=lambda piece: piece.key)
        body, at, entries = b'', 64, {}
        for piece in sorted(self.pieces, key=lambda piece: piece.at):
            size = len(piece.data)
            padding = piece.padding if piece.padding is not None else bytes(up(size) - size)
            offset = at if piece.offset is None else piece.offset(at) if callable(piece.offset) else piece.offset
            digest = xxh3_64(piece.data) if piece.hash is None else piece.hash
            raw = size if piece.raw is None else piece.raw
            entries[id(piece)] = struct.pack('<QQQQHBBIIIII', offset, size, raw, digest, piece.kind, piece.coding, piece.flags,
                                             piece.group, piece.task, piece.first, piece.count, piece.reserved)
            body, at = body + piece.data + padding, at + size + len(padding)
        entries = self.patch_entries(b''.join(entries[id(piece)] for piece in self.pieces))
        grouped = bytes(entries[56 * i + b] for b in range(56) for i in range(len(entries) // 56))
        own = [len(self.pieces), self.groups, len(self.names)]
        counts = [c if c is not None else o for c, o in zip(self.counts, own)]
        names = b''.join(bytes([len(name)]) + name for name in self.names) + self.more_names
        index = self.patch_index(struct.pack('<IIII', *counts, self.index_reserved) + grouped + names)
        stored = zstd(index) if self.index_coding == 1 else index
        body += bytes(self.hole)
        offset = 64 + len(body)
        tail = stored + (bytes(up(len(stored)) - len(stored)) if not self.index_padding else self.index_padding)
        head = self.magic + struct.pack('<HHII', self.version, self.reserved, self.required, self.optional) + self.tail
        head = self.patch_header(head + struct.pack('<Q', xxh3_64(head)))
        fields = dict(offset=offset, stored=len(stored), raw=len(index), hash=xxh3_64(stored), length=offset + len(tail) + 64,
                      coding=self.index_coding, reserved=bytes(7), magic=b'\x8aICMAend')
        fields.update(self.footer)
        foot = struct.pack('<QQQQQB7s8s', *(fields[k] for k in ('offset', 'stored', 'raw', 'hash', 'length', 'coding', 'reserved', 'magic')))
        foot = self.patch_footer(foot + struct.pack('<Q', xxh3_64(foot)))
        return self.patch(head + body + tail + foot)


def mutant(verdict, base='basis-given', what=None):
    """Registers a function that changes a Draft; its name and docstring go into the table."""
    def add(function):
        MUTANTS.append((function.__name__.replace('_', '-').strip('-'), base, verdict, what or ' '.join(function.__doc__.split()), function))
        return function
    return add


def build(function, base):
    draft = Draft(base)
    function(draft)
    return draft.build()


def simple(name, verdict, what, change, base='basis-given'):
    """Registers a change that one expression makes."""
    MUTANTS.append((name, base, verdict, what, change))


def like(context, draw):
    """A context in which the same symbols are the same integers (4.13)."""
    return draw.randrange(*((0, trellis.CONTEXT) if context < trellis.CONTEXT else (trellis.CONTEXT, rans.CONTEXTS)))


def set_(draft, **fields):
    for name, value in fields.items():
        if not hasattr(draft, name):
            raise AttributeError(name)
        setattr(draft, name, value)


def at(offset, value):
    """A change of bytes: those at offset become value."""
    def change(data):
        data = bytearray(data)
        where = offset if offset >= 0 else len(data) + offset
        data[where:where + len(value)] = value
        return bytes(data)
    return change


def flip(offset):
    return lambda data: at(offset, bytes([data[offset] ^ 1]))(data)


# Streams, heads and residuals (4.4, 4.10, 4.11): all numbers here are symbols

def split(symbol, c):
    """Escape or value, the steps of an escape as (bits, number), the low bits."""
    middle = symbol + (1 << c.low - 1 if c.low else 0)
    h, low = middle >> c.low, middle & (1 << c.low) - 1
    if abs(h) <= c.reach:
        return h + c.reach, [], low
    d = abs(h) - c.reach
    n = d.bit_length() - 1
    rest = d - (1 << n)
    return 2 * c.reach + 1, [(6, n + (32 if h < 0 else 0)), (min(n, 16), rest & 0xffff), (max(n - 16, 0), rest >> 16)], low


def encode(runs, symbols, final=rans.LOW, escape=None):
    """A stream; `escape` replaces the first escape's six bits, `final` lane 0's final state."""
    width, steps, at = rans.lanes(runs), [], 0
    for count, number in runs:
        c = rans.context(number)
        for start in range(0, count, width):
            group = [split(symbol, c) for symbol in symbols[at:at + min(width, count - start)]]
            at += len(group)
            steps += [(lane, c.frequencies[v], c.bits, c.starts[v]) for lane, (v, _, _) in enumerate(group)]
            for lane, (_, parts, _) in enumerate(group):
                if parts and escape is not None:
                    parts, escape = [(6, escape), *parts[1:]], None
                steps += [(lane, 1, bits, part) for bits, part in parts if bits]
            steps += [(lane, 1, c.low, low) for lane, (_, _, low) in enumerate(group) if c.low]
    assert at == len(symbols)
    states, words = [final] + [rans.LOW] * (width - 1), []
    for lane, frequency, bits, start in reversed(steps):
        x = states[lane]
        if x >= frequency << 32 - bits:
            words.append(x & 0xffff)
            x >>= 16
        states[lane] = (x // frequency << bits) + x % frequency + start
    return struct.pack(f'<{width}I', *states) + struct.pack(f'<{len(words)}H', *reversed(words))


def head_shape(draft):
    """The elements of each row."""
    g, tensors = draft.generator(), draft.tensors()
    return [tensors[t].elements for t in g.modelled for _ in range(g.roles[g.treatment[t]])]


def read_head(draft):
    """The runs and the numbers of a head that is one section."""
    sizes, raw = head_shape(draft), draft.raw(draft.find(HEAD))
    runs = list(zip(sizes, raw))
    return runs, rans.decode(raw[len(sizes):], runs)


def write_head(runs, numbers, **odd):
    return bytes(number for _, number in runs) + encode(runs, numbers, **odd)


# Good: other ways to write the same

@mutant('good')
def same_again(draft):
    """taken apart and put together again, index not compressed"""


@mutant('good', 'basis-mixed')
def all_raw(draft):
    """no section compressed, index compressed with a zstd checksum"""
    for piece in draft.pieces:
        draft.store(piece, draft.raw(piece))
    draft.index_coding = 1


@mutant('good', 'two-groups')
def backwards(draft):
    """sections in the opposite order in the file"""
    for piece in draft.pieces:
        piece.at = -piece.at


@mutant('good')
def unknown_optional(draft):
    """sections of unknown kinds with the optional flag: of nothing, of a group, of a task, empty of sense"""
    draft.pieces += [Piece(76, data=b'?', flags=1), Piece(77, 0, data=b'to come' * 30, flags=1, first=5, count=7),
                     Piece(65535, 0, 1, data=b'zstd?', raw=6, coding=1, flags=1), Piece(0, NONE, 2, data=bytes(64), flags=1)]


@mutant('good')
def optional_features(draft):
    """optional feature bits that nobody knows"""
    draft.optional = 0xffffffff


@mutant('good', 'basis-wide')
def head_in_chunks(draft):
    """the head in three sections of 1, 4 and 7 tensors"""
    runs, numbers = read_head(draft)
    generator, tensors = draft.generator(), draft.tensors()
    draft.pieces.remove(draft.find(HEAD))
    rows = [generator.roles[treatment] for treatment in generator.treatment]
    first = 0
    for count in (1, 4, len(tensors) - 5):
        own, runs = runs[:sum(rows[first:first + count])], runs[sum(rows[first:first + count]):]
        size = sum(c for c, _ in own)
        draft.pieces.append(Piece(HEAD, 0, NONE, first, count, write_head(own, numbers[:size])))
        first, numbers = first + count, numbers[size:]


@mutant('good', 'basis-mixed')
def verbatim_in_pieces(draft):
    """one verbatim section a checkpoint"""
    tensors, generator = draft.tensors(), draft.generator()
    for piece in [p for p in draft.pieces if p.kind == VERBATIM]:
        rows, kept = table_of(draft, piece.task), {}
        data, draft_at = draft.raw(piece), 0
        for t, tensor in enumerate(tensors):
            having = [r for r in rows if generator.treatment[t] == 3 or t in r.exceptions]
            size = tensor.end - tensor.begin
            if size and having:
                plain = reader.ungroup(data[draft_at:draft_at + size * len(having)], tensor.width)
                draft_at += size * len(having)
                for i, row in enumerate(having):
                    own = plain[i * size:(i + 1) * size]
                    kept.setdefault(row.number, []).append(bytes(own[e + b] for b in range(tensor.width) for e in range(0, size, tensor.width)))
        draft.pieces.remove(piece)
        for number, parts in kept.items():
            draft.pieces.append(Piece(VERBATIM, piece.group, piece.task, number, 1, b''.join(parts)))


@mutant('good')
def no_record(draft):
    """without the optional training record"""
    draft.pieces.remove(draft.find(RECORD))


# The header

for name, verdict, what, fields in (
        ('version-1', 'unsupported', 'format version 1', dict(version=1)),
        ('version-65535', 'unsupported', 'format version 65535', dict(version=65535)),
        ('required-feature', 'unsupported', 'a required feature bit', dict(required=1 << 31)),
        ('header-reserved-word', 'unsupported', 'reserved u16 of the header is 1', dict(reserved=1)),
        ('header-reserved-byte', 'unsupported', 'last reserved byte of the header is 1', dict(tail=bytes(35) + b'\1')),
        ('magic', 'format', 'line end of the magic number converted', dict(magic=b'\x89ICMA\n\x1a\0')),
        ('header-hash', 'corrupt', "header's hash is wrong", dict(patch_header=flip(60)))):
    simple(name, verdict, what, lambda draft, fields=fields: set_(draft, **fields))

# The file as a whole

for name, verdict, what, patch in (
        ('empty-file', 'format', 'no bytes', lambda data: b''),
        ('seven-bytes', 'format', 'cut after 7 bytes', lambda data: data[:7]),
        ('eight-bytes', 'corrupt', 'cut after the magic number', lambda data: data[:8]),
        ('header-only', 'corrupt', 'cut after the header', lambda data: data[:64]),
        ('truncated-1', 'corrupt', 'last byte missing', lambda data: data[:-1]),
        ('truncated-64', 'corrupt', 'footer missing', lambda data: data[:-64]),
        ('trailing-byte', 'corrupt', 'a byte after the footer', lambda data: data + b'\0'),
        ('trailing-64', 'corrupt', '64 zero bytes after the footer', lambda data: data + bytes(64)),
        ('second-footer', 'corrupt', 'the footer twice', lambda data: data + data[-64:]),
        ('prefix-64', 'format', '64 zero bytes before the header', lambda data: bytes(64) + data)):
    simple(name, verdict, what, lambda draft, patch=patch: set_(draft, patch=patch))

# The footer

for name, verdict, what, fields in (
        ('footer-magic', 'corrupt', 'another second magic number', dict(magic=b'\x89ICMAend')),
        ('footer-reserved', 'unsupported', 'a reserved byte of the footer is 1', dict(reserved=b'\1' + bytes(6))),
        ('footer-length', 'corrupt', "the footer's length is not the file's", dict(length=1 << 12)),
        ('index-coding', 'unsupported', 'the index has coding 2', dict(coding=2)),
        ('index-hash', 'corrupt', "the index's hash is wrong", dict(hash=1)),
        ('index-offset', 'corrupt', 'the index starts at 1', dict(offset=1)),
        ('index-offset-huge', 'corrupt', 'the index starts at 2^64 - 64', dict(offset=2**64 - 64)),
        ('index-stored-huge', 'corrupt', 'the index has 2^64 - 1 stored bytes', dict(stored=2**64 - 1)),
        ('index-raw-limit', 'limit', 'the index has 2^30 + 1 raw bytes', dict(raw=2**30 + 1)),
        ('index-raw-impossible', 'corrupt', 'the index has more raw bytes than the file can need', dict(raw=2**20, coding=1)),
        ('index-raw-other', 'corrupt', 'raw and stored size of an index that is not compressed differ', dict(raw=17))):
    simple(name, verdict, what, lambda draft, fields=fields: set_(draft, footer=fields))
simple('footer-hash', 'corrupt', "the footer's hash is wrong", lambda draft: set_(draft, patch_footer=flip(63)))
simple('footer-hole', 'corrupt', '64 zero bytes between index and footer',
       lambda draft: set_(draft, index_padding=bytes(64 + up(len(draft.pieces) * 56 + 16 + 12) - (len(draft.pieces) * 56 + 16 + 12))))


@mutant('corrupt')
def index_padding(draft):
    """the index's padding is not zero"""
    size = 16 + 56 * len(draft.pieces) + sum(1 + len(name) for name in draft.names)
    draft.index_padding = b'\1' * (up(size) - size)


@mutant('corrupt')
def index_zstd(draft):
    """a compressed index whose zstd frame is followed by another byte"""
    size = 16 + 56 * len(draft.pieces) + sum(1 + len(name) for name in draft.names)

    def patch(index):
        frame = zstd(index) + b'\0'
        draft.footer.update(coding=1, raw=size)
        return frame
    draft.patch_index = patch


# The index

for name, verdict, what, fields in (
        ('index-reserved', 'unsupported', "the index's reserved field is 1", dict(index_reserved=1)),
        ('sections-limit', 'limit', '2^22 + 1 sections', dict(counts=[2**22 + 1, None, None])),
        ('groups-limit', 'limit', '2^16 + 1 groups', dict(counts=[None, 2**16 + 1, None])),
        ('tasks-limit', 'limit', '2^17 + 1 tasks', dict(counts=[None, None, 2**17 + 1])),
        ('sections-2-22', 'corrupt', '2^22 sections in a small index', dict(counts=[2**22, None, None])),
        ('groups-lie', 'corrupt', 'a group that has no section', dict(counts=[None, 2, None])),
        ('groups-none', 'corrupt', 'no groups, but sections of one', dict(counts=[None, 0, None])),
        ('tasks-lie', 'corrupt', 'a task without a name', dict(counts=[None, None, 4])),
        ('tasks-lie-less', 'corrupt', 'a name too many', dict(counts=[None, None, 2])),
        ('names-more', 'corrupt', 'bytes after the names', dict(more_names=b'\0')),
        ('names-cut', 'corrupt', "the last name's end is missing", dict(patch_index=lambda data: data[:-1])),
        ('task-without-section', 'corrupt', 'a name that no section has', dict(more_names=b'\4none', counts=[None, None, 4]))):
    simple(name, verdict, what, lambda draft, fields=fields: set_(draft, **fields))

for name, verdict, what, field, more in (
        ('sections-lie', 'corrupt', 'a section more than there is', 0, 1),
        ('sections-lie-less', 'unsupported', 'a section less than there is: bytes fall into other fields', 0, -1),
        ('groups-over-sections', 'corrupt', 'more groups than sections', 1, 1)):
    simple(name, verdict, what, lambda draft, field=field, more=more: draft.counts.__setitem__(field, len(draft.pieces) + more))

for name, what, first in (
        ('name-up', 'a task is called ../x', b'../x'), ('name-dots', 'a task is called ..', b'..'), ('name-dot', 'a task is called .', b'.'),
        ('name-empty', 'a task has an empty name', b''), ('name-dash', 'a task is called -rf', b'-rf'),
        ('name-absolute', 'a task is called /x', b'/x'), ('name-backslash', 'a task is called a\\b', b'a\\b'),
        ('name-nul', 'a name with NUL', b'a\0b'), ('name-newline', 'a name with a newline', b'a\nb'), ('name-delete', 'a name with 0x7f', b'a\x7f'),
        ('name-utf8', 'a name that is not UTF-8', b'\xff'), ('name-overlong', 'a name with an overlong slash', b'a\xc0\xaf'),
        ('name-surrogate', 'a name with a lone surrogate', b'\xed\xa0\x80'), ('name-beyond', 'a name beyond U+10FFFF', b'\xf4\x90\x80\x80'),
        ('name-twice', 'two tasks of one name', b'cat'), ('name-case', 'two names that differ in case', b'DOG')):
    simple(name, 'corrupt', what, lambda draft, first=first: set_(draft, names=[first, *draft.names[1:]]))


@mutant('good')
def names_allowed(draft):
    """names that are safe though odd: spaces, a trailing dot, U+0085, a bidi control, 255 bytes"""
    draft.names = ['x . '.encode(), 'a\u0085\u202e'.encode(), b'n' * 255]


@mutant('corrupt')
def swapped_entries(draft):
    """two index entries in the wrong order"""
    draft.sort = False
    draft.pieces.sort(key=lambda piece: piece.key)
    draft.pieces[3], draft.pieces[4] = draft.pieces[4], draft.pieces[3]


@mutant('corrupt')
def entry_twice(draft):
    """a section twice: equal kind, group, task and first"""
    draft.pieces.append(copy.copy(draft.find(TASK)))


@mutant('corrupt')
def overlap(draft):
    """two sections at one place"""
    draft.find(TEXTS).offset = lambda at: 64


@mutant('corrupt')
def overlap_footer(draft):
    """the last section reaches over the index"""
    draft.patch_entries = at(0, struct.pack('<Q', 2**63))


@mutant('corrupt')
def hole(draft):
    """64 zero bytes between two sections"""
    piece = draft.find(TEXTS)
    piece.padding = bytes(up(len(piece.data)) - len(piece.data) + 64)


@mutant('corrupt')
def hole_before_index(draft):
    """64 zero bytes before the index"""
    draft.hole = 64


@mutant('corrupt')
def padding(draft):
    """a section's padding is not zero"""
    piece = draft.find(TASK, task=1)
    piece.padding = bytes(up(len(piece.data)) - len(piece.data) - 1) + b'\x80'


@mutant('corrupt')
def in_header(draft):
    """a section that starts in the header"""
    draft.patch_entries = at(0, struct.pack('<Q', 0))


@mutant('corrupt')
def empty_section(draft):
    """an optional section of no bytes"""
    draft.pieces.append(Piece(99, data=b'', flags=1))


for name, verdict, what, fields in (
        ('section-hash', 'corrupt', "a section's hash is wrong", dict(hash=0)),
        ('section-coding', 'unsupported', 'a section of coding 2', dict(coding=2)),
        ('section-flag', 'unsupported', 'a reserved flag', dict(flags=2)),
        ('section-reserved', 'unsupported', "a section's reserved field is 1", dict(reserved=1)),
        ('section-raw-limit', 'limit', 'a section of 2^40 + 1 raw bytes', dict(raw=2**40 + 1)),
        ('section-group', 'corrupt', 'a group that is not there', dict(group=1)),
        ('section-task', 'corrupt', 'a task that is not there', dict(task=3)),
        ('section-range', 'corrupt', 'first + count over 2^32 - 1', dict(first=2**32 - 5)),
        ('kind-unknown', 'unsupported', 'a section of kind 99 that is not optional', dict(kind=99)),
        ('kind-0', 'unsupported', 'a section of kind 0 that is not optional', dict(kind=0))):
    simple(name, verdict, what, lambda draft, fields=fields: set_(draft.find(TASK, task=2), **fields))


@mutant('corrupt')
def section_raw_more(draft):
    """a raw size that is one more than the frame declares"""
    draft.find(TASK).raw += 1


@mutant('corrupt')
def section_raw_equal(draft):
    """a compressed section whose raw size is its stored size"""
    draft.find(TASK).raw = len(draft.find(TASK).data)


@mutant('corrupt')
def owner(draft):
    """a signature that belongs to a task"""
    draft.find(SIGNATURE).task = 0


@mutant('corrupt')
def owner_none(draft):
    """a condition that belongs to no group"""
    draft.find(CONDITION).group = NONE


@mutant('corrupt')
def owner_first(draft):
    """a task section that starts at 1"""
    draft.find(TASK).first = 1


@mutant('corrupt')
def owner_count(draft):
    """a generator with a count"""
    draft.find(GENERATOR).count = 1


@mutant('corrupt')
def condition_twice(draft):
    """a second condition, whose first is 1"""
    draft.pieces.append(dataclasses.replace(draft.find(CONDITION), first=1))


@mutant('corrupt')
def signature_twice_section(draft):
    """a second signature, whose first is 1"""
    draft.pieces.append(dataclasses.replace(draft.find(SIGNATURE), first=1))


@mutant('corrupt')
def known_kind_optional(draft):
    """a damaged task section with the optional flag, which has no effect on known kinds"""
    piece = draft.find(TASK)
    piece.flags, piece.hash = 1, 1


for kind, task, name, field in (
        (SIGNATURE, NONE, 'signature-first', 'first'), (TEXTS, NONE, 'texts-first', 'first'), (CONDITION, 2, 'condition-first', 'first'),
        (CONDITION, 0, 'condition-count', 'count'), (RECORD, NONE, 'record-count', 'count'), (RECORD, NONE, 'record-task', 'task'),
        (HEAD, NONE, 'head-task', 'task')):
    simple(name, 'corrupt', f'a section of kind {kind} whose {field} is 1',
           lambda draft, kind=kind, task=task, field=field: set_(draft.find(kind, task=task), **{field: 1}))


# zstd frames

def frame(change, kind=SIGNATURE):
    """A section's bytes as another frame."""
    def change_draft(draft):
        piece = draft.find(kind)
        raw = draft.raw(piece)
        piece.coding, piece.raw, piece.data = 1, len(raw), change(raw)
        assert len(piece.data) < piece.raw
    return change_draft


def headed(raw, window, dictionary=b''):
    """A frame whose header has a window byte, perhaps a dictionary of one byte, and a content size of 4 bytes."""
    data = zstd(raw, '--no-check')
    blocks = data[5 + (1, 2, 4, 8)[data[4] >> 6]:]
    assert data[4] & 0x20 and not data[4] & 7
    return data[:4] + bytes([0x80 | len(dictionary), window]) + dictionary + struct.pack('<I', len(raw)) + blocks


def run_length(draft):
    """a frame of two blocks, the first raw, the second one byte repeated"""
    piece = draft.find(RECORD)
    text, tail = b'{}', 200000 * b' '
    runs = b''.join((min(1 << 17, len(tail) - i) << 3 | 2 | (i + (1 << 17) >= len(tail))).to_bytes(3, 'little') + b' '
                    for i in range(0, len(tail), 1 << 17))
    piece.data = struct.pack('<IBBI', 0xfd2fb528, 0x80, 0x40, len(text + tail)) + (len(text) << 3).to_bytes(3, 'little') + text + runs
    piece.coding, piece.raw = 1, len(text + tail)


simple('frame-blocks', 'good', 'a zstd frame of a raw block and two of one byte repeated', run_length)
for name, verdict, what, change in (
        ('frame-checksum', 'good', 'a zstd frame with a checksum', lambda raw: zstd(raw)),
        ('frame-checksum-wrong', 'corrupt', "a zstd frame's checksum is wrong", lambda raw: flip(len(zstd(raw)) - 1)(zstd(raw))),
        ('frame-second', 'corrupt', 'a second, empty zstd frame', lambda raw: zstd(raw) + bytes.fromhex('28b52ffd2000010000')),
        ('frame-skippable', 'corrupt', 'a skippable frame after it', lambda raw: zstd(raw) + bytes.fromhex('502a4d1800000000')),
        ('frame-skippable-before', 'corrupt', 'a skippable frame before it', lambda raw: bytes.fromhex('502a4d1800000000') + zstd(raw)),
        ('frame-trailing', 'corrupt', 'a byte after the frame', lambda raw: zstd(raw) + b'\0'),
        ('frame-cut', 'corrupt', "the frame's last byte is missing", lambda raw: zstd(raw, '--no-check')[:-1]),
        ('frame-no-size', 'corrupt', 'a frame that does not declare its size', lambda raw: zstd(raw, '--no-content-size')),
        ('frame-other-size', 'corrupt', 'a frame of one byte less', lambda raw: zstd(raw[:-1])),
        ('frame-window-max', 'good', 'a window of 128 MiB', lambda raw: headed(raw, 17 << 3)),
        ('frame-window', 'corrupt', 'a window of 144 MiB', lambda raw: headed(raw, 17 << 3 | 1)),
        ('frame-window-4-GiB', 'corrupt', 'a window of 4 GiB', lambda raw: headed(raw, 22 << 3)),
        ('frame-dictionary', 'corrupt', 'a frame that names a dictionary', lambda raw: headed(raw, 0x40, b'\5')),
        ('frame-dictionary-0', 'good', 'a frame with the field for a dictionary, which says none', lambda raw: headed(raw, 0x40, b'\0')),
        ('frame-reserved', 'corrupt', 'a reserved bit of the frame is set', lambda raw: at(4, bytes([zstd(raw)[4] | 8]))(zstd(raw))),
        ('frame-magic', 'corrupt', 'not a zstd frame', lambda raw: at(0, b'PK')(zstd(raw)))):
    simple(name, verdict, what, frame(change))


# Signature

def header(change, base='basis-given'):
    return lambda draft: draft.edit(SIGNATURE, lambda raw: change(bytes(raw)))


def replaced(old, new):
    def change(raw):
        raw = bytes(raw)
        assert old in raw, (old, raw)
        return raw.replace(old, new, 1)
    return change


for name, verdict, what, change in (
        ('signature-json', 'corrupt', 'the signature is not JSON', replaced(b'{', b'[')),
        ('signature-twice', 'corrupt', 'a tensor twice', replaced(b'v_proj.lora_A', b'q_proj.lora_A')),
        ('signature-hole', 'corrupt', 'data ranges with a hole', replaced(b'[288,384]', b'[292,388]')),
        ('signature-shape', 'corrupt', 'a shape that is not of its range', replaced(b'[2,12]', b'[2,13]')),
        ('signature-dtype', 'unsupported', 'a dtype that nobody knows', replaced(b'F32', b'F33')),
        ('signature-bom', 'corrupt', 'a byte order mark before the header', lambda raw: b'\xef\xbb\xbf' + raw),
        ('signature-space', 'corrupt', 'a space before the header', lambda raw: b' ' + raw),
        ('signature-nul', 'corrupt', 'a zero byte after the header', lambda raw: raw + b'\0'),
        ('signature-utf8', 'corrupt', 'a header that is not UTF-8', replaced(b'"pt"', b'"\xff"')),
        ('signature-surrogate', 'corrupt', 'a lone surrogate', replaced(b'"pt"', b'"\\ud800"')),
        ('signature-escaped-nul', 'corrupt', 'an escaped NUL', replaced(b'"pt"', b'"\\u0000"')),
        ('signature-key-escaped', 'corrupt', 'a key twice, once escaped', replaced(b'{"format":"pt"}', b'{"a":"x","\\u0061":"y"}')),
        ('signature-metadata', 'corrupt', 'metadata that are not strings', replaced(b'"pt"', b'1')),
        ('signature-fraction', 'corrupt', 'a shape of fractions', replaced(b'[2,12]', b'[2.0,12]')),
        ('signature-sign', 'corrupt', 'an offset of -0', replaced(b'[0,96]', b'[-0,96]')),
        ('signature-nan', 'corrupt', 'a shape of NaN', replaced(b'[2,12]', b'[NaN,12]')),
        ('signature-large', 'corrupt', 'a dimension of 2^53', replaced(b'[2,12]', b'[9007199254740992,12]')),
        ('signature-overflow', 'corrupt', 'dimensions whose product is 2^64 + 24', replaced(b'[2,12]', b'[1688849860263936,10923]')),
        ('signature-field', 'corrupt', 'a field too many', replaced(b'"dtype"', b'"x":1,"dtype"')),
        ('signature-field-missing', 'corrupt', 'a tensor without shape', replaced(b'"shape":[2,12],', b'')),
        ('signature-alias', 'corrupt', 'two tensors at one place', replaced(b'[96,192]', b'[0,96]')),
        ('signature-dimensions', 'limit', '9 dimensions', replaced(b'[2,12]', b'[2,12,1,1,1,1,1,1,1]')),
        ('signature-deep', 'limit', 'a header of 4 levels', replaced(b'"pt"', b'{"a":{}}')),
        ('signature-tensors', 'limit', '65,537 tensors', lambda raw: b'{' + b','.join(
            b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(65537)) + b'}'),
        ('signature-changed', 'corrupt', 'a space more in the header: decoded files do not have their hashes', lambda raw: raw + b' ')):
    simple(name, verdict, what, header(change))


@mutant('corrupt')
def signature_missing(draft):
    """a group without signature"""
    draft.pieces.remove(draft.find(SIGNATURE))


# Generator: where its fields lie

def fields(draft, group=0):
    raw, tensors = draft.raw(draft.find(GENERATOR, group=group)), draft.tensors(group)
    g = reader.Generator(raw, tensors)
    cursor = reader.Cursor(raw, '')
    cursor.u8()
    cursor.varint()
    out = {'treatment': cursor.at}
    cursor.take(len(tensors))
    out['s_t'] = cursor.at
    cursor.take(4 * len(g.modelled))
    if g.kind == 0:
        return out
    for name in ('K_A', 'K_B', 'K_other', 'd', 'm', 'h', 'C', 'm_g'):
        out[name] = cursor.at
        cursor.varint()
    for name, size in (('M', g.m_g * (g.c + 1)), ('latent step', 4 * g.d), ('correction step', 4 * g.k),
                       ('head step', 4 * g.k), ('V1', 2 * (g.d + g.m) * g.h), ('b1', 4 * g.h), ('V2', 2 * g.h * g.h), ('b2', 4 * g.h), ('V3', 2 * g.h * g.k),
                       ('S', 4 * (g.d + g.m) * g.k), ('b3', 4 * g.k)):
        out[name] = cursor.at
        cursor.take(size)
    assert cursor.at == len(raw)
    return out


def index_of(draft, name):
    return next(t for t, tensor in enumerate(draft.tensors()) if tensor.name == name)


def floats(*values):
    return struct.pack(f'<{len(values)}f', *values)


def set_exponent(value):
    """Of a condition: it follows origin and name."""
    return lambda raw: raw[:2 + raw[1]] + bytes([value]) + raw[3 + raw[1]:]


def trunk(field, value):
    def change(draft):
        where = fields(draft)[field]
        draft.edit(GENERATOR, at(where, value))
    return change


def large_skip(draft):
    where = fields(draft)
    draft.edit(GENERATOR, at(where['S'], floats(*[3e38] * ((where['b3'] - where['S']) // 4))))


NAN, INF, TINY = b'\0\0\xc0\x7f', b'\0\0\x80\x7f', b'\1\0\0\0'
for name, verdict, what, change in (
        ('generator-nan', 'corrupt', 'a weight of V1 is NaN', trunk('V1', b'\xc0\x7f')),
        ('generator-infinity', 'corrupt', 'a weight of V3 is infinite', trunk('V3', b'\x80\xff')),
        ('generator-denormal', 'corrupt', 'a weight of V2 is denormal', trunk('V2', b'\1\0')),
        ('generator-bias-nan', 'corrupt', 'a bias of b1 is NaN', trunk('b1', NAN)),
        ('generator-skip-denormal', 'corrupt', 'a number of S is denormal', trunk('S', TINY)),
        ('generator-last-nan', 'corrupt', 'the last bias is NaN',
         lambda draft: draft.edit(GENERATOR, at(-4, NAN))),
        ('generator-condition-exponent', 'corrupt', 'an exponent of M is 121', trunk('M', b'\x79')),
        ('generator-condition-low', 'corrupt', 'an exponent of M is -127', trunk('M', b'\x81')),
        ('generator-condition-least', 'corrupt', 'a number of M is -128', trunk('M', b'\0\x80')),
        ('scale-zero', 'corrupt', 'a scale of 0', trunk('s_t', floats(0))),
        ('scale-negative', 'corrupt', 'a negative scale', trunk('s_t', floats(-1))),
        ('scale-infinite', 'corrupt', 'an infinite scale', trunk('s_t', INF)),
        ('scale-denormal', 'corrupt', 'a denormal scale', trunk('s_t', TINY)),
        ('latent-step-zero', 'corrupt', 'a latent step of 0', trunk('latent step', floats(0))),
        ('correction-step-negative', 'corrupt', 'a negative correction step', trunk('correction step', floats(-1))),
        ('generator-kind', 'unsupported', 'a generator of kind 3', lambda draft: draft.edit(GENERATOR, at(0, b'\3'))),
        ('generator-tensors', 'corrupt', 'a generator for another number of tensors', lambda draft: draft.edit(GENERATOR, at(1, b'\5'))),
        ('treatment-unknown', 'unsupported', 'treatment 4', trunk('treatment', b'\4')),
        ('rows-other', 'corrupt', 'a row more than is there', trunk('K_other', b'\1')),
        ('hidden-none', 'corrupt', 'no hidden units', trunk('h', b'\0')),
        ('hidden-other', 'corrupt', 'another number of hidden units', trunk('h', b'\7')),
        ('condition-coordinates', 'corrupt', 'm_g over m', trunk('m_g', b'\4')),
        ('condition-none', 'corrupt', 'C is 0 but m_g is not', trunk('C', b'\0')),
        ('rows-over-limit', 'limit', 'K_other is 4097',
         lambda draft: draft.edit(GENERATOR, lambda raw, p=fields(draft)['K_other']: raw[:p] + varint(4097) + raw[p + 1:])),
        ('varint-long', 'corrupt', 'a varint that is not in its shortest form',
         lambda draft: draft.edit(GENERATOR, lambda raw, p=fields(draft)['K_other']: raw[:p] + b'\x80\0' + raw[p + 1:])),
        ('varint-65-bits', 'corrupt', 'a varint over 2^64 - 1',
         lambda draft: draft.edit(GENERATOR, lambda raw, p=fields(draft)['C']: raw[:p] + b'\xff' * 9 + b'\2' + raw[p + 1:])),
        ('latents-over-limit', 'limit', 'd is 1025',
         lambda draft: draft.edit(GENERATOR, lambda raw, p=fields(draft)['d']: raw[:p] + varint(1025) + raw[p + 1:])),
        ('condition-over-limit', 'limit', 'C is 2^20 + 1',
         lambda draft: draft.edit(GENERATOR, lambda raw, p=fields(draft)['C']: raw[:p] + varint(2**20 + 1) + raw[p + 1:])),
        ('generator-trailing', 'corrupt', 'a byte after the generator', lambda draft: draft.edit(GENERATOR, lambda raw: raw + b'\0')),
        ('generator-cut', 'corrupt', "the generator's last byte is missing", lambda draft: draft.edit(GENERATOR, lambda raw: raw[:-1])),
        ('weights-infinite', 'corrupt', 'scales so large that a weight is not finite', trunk('s_t', floats(*[3e38] * 4))),
        ('coefficients-infinite', 'corrupt', 'numbers of S so large that a coefficient is not finite', large_skip)):
    simple(name, verdict, what, change)


def model_too(draft, name, treatment=2):
    """One more tensor with a treatment and a scale."""
    where, t = fields(draft), index_of(draft, name)
    scale = where['s_t'] + 4 * sum(m < t for m in draft.generator().modelled)
    draft.edit(GENERATOR, lambda raw: at(where['treatment'] + t, bytes([treatment]))(raw[:scale] + floats(1) + raw[scale:]))


@mutant('corrupt', 'basis-mixed')
def treatment_of_integers(draft):
    """the generator models a tensor of integers"""
    model_too(draft, 'count')


@mutant('corrupt', 'basis-mixed')
def treatment_of_nothing(draft):
    """the generator models a tensor without elements"""
    model_too(draft, 'empty')


@mutant('corrupt', 'none')
def treatment_without_scale(draft):
    """a group without basis that models a tensor without telling its scale"""
    draft.edit(GENERATOR, at(2, b'\0'))


@mutant('corrupt', 'none')
def treatment_without_residual(draft):
    """a group without basis that models a tensor, whose bytes are still verbatim"""
    draft.edit(GENERATOR, lambda raw: at(2, b'\0')(raw) + floats(1))


for name, what, change in (
        ('none-scale-zero', 'a scale of 0', trunk('s_t', floats(0))), ('none-scale-nan', 'a scale that is NaN', trunk('s_t', floats(1) + NAN)),
        ('none-scale-denormal', 'a denormal scale', trunk('s_t', TINY)), ('none-scale-infinite', 'an infinite scale', trunk('s_t', INF)),
        ('none-trailing', 'a byte after the scales', lambda draft: draft.edit(GENERATOR, lambda raw: raw + b'\0')),
        ('none-cut', "the last scale's last byte is missing", lambda draft: draft.edit(GENERATOR, lambda raw: raw[:-1]))):
    simple(name, 'corrupt', f'no basis: {what}', change, 'bounded-none')


@mutant('corrupt')
def generator_missing(draft):
    """a group without generator section"""
    draft.pieces.remove(draft.find(GENERATOR))


# Head

def number(where, value, context=None, **odd):
    """A head with another number, perhaps in another context."""
    def change(draft):
        runs, numbers = read_head(draft)
        numbers[where] = value
        if context is not None:
            runs[where] = runs[where][0], context
        draft.store(draft.find(HEAD), write_head(runs, numbers, **odd))
    return change


def stream(change):
    """Another stream: change of its bytes."""
    def edit(draft):
        rows = len(head_shape(draft))
        draft.edit(HEAD, lambda raw: raw[:rows] + change(bytes(raw[rows:])))
    return edit


for name, verdict, what, change in (
        ('head-step-zero', 'corrupt', 'a head step of 0', trunk('head step', floats(0))),
        ('head-step-nan', 'corrupt', 'a head step that is NaN', trunk('head step', floats(1) + NAN)),
        ('head-step-negative', 'corrupt', 'a negative head step', trunk('head step', floats(1, -1))),
        ('head-step-denormal', 'corrupt', 'a denormal head step', trunk('head step', floats(1, 1) + TINY)),
        ('head-step-infinite', 'corrupt', 'an infinite head step', trunk('head step', INF)),
        ('head-step-other', 'corrupt', 'another head step: the decoded file does not have its hash', trunk('head step', floats(1))),
        ('head-lowest', 'corrupt', 'a head symbol of -16385', number(0, -16385)),
        ('head-highest-last', 'corrupt', 'the last head symbol is 16384', number(-1, 16384)),
        ('head-highest-rounded', 'corrupt', 'a head symbol of 16384 in a context without trellis', number(0, 16384, 56)),
        ('head-far', 'corrupt', 'a head symbol of -2^31', number(0, -2**31)),
        ('head-beyond', 'corrupt', 'a head symbol of 2^31, in a context with low bits', number(0, 2**31, 120)),
        ('head-escape', 'corrupt', 'an escape of n = 31', number(0, 40000, 0, escape=31)),
        ('head-final-state', 'corrupt', "a lane's last state is 2^16 + 1", lambda draft: draft.store(
            draft.find(HEAD), write_head(*read_head(draft), final=rans.LOW + 1))),
        ('head-number-other', 'corrupt', 'another symbol: the decoded file does not have its hash', number(0, 16383)),
        ('head-context', 'corrupt', 'a context of 225', lambda draft: draft.edit(HEAD, at(0, b'\xe1'))),
        ('head-context-last', 'corrupt', "the last row's context is 255",
         lambda draft: draft.edit(HEAD, at(len(head_shape(draft)) - 1, b'\xff'))),
        ('head-context-other', 'corrupt', 'a context that is not that of the stream', lambda draft: draft.edit(HEAD, flip(0))),
        ('head-context-missing', 'corrupt', 'a head that ends within its contexts',
         lambda draft: draft.edit(HEAD, lambda raw: raw[:len(head_shape(draft)) - 1])),
        ('head-stream-missing', 'corrupt', 'a head that ends after its contexts', stream(lambda data: b'')),
        ('head-state-cut', 'corrupt', 'a stream of two bytes', stream(lambda data: data[:2])),
        ('head-state-low', 'corrupt', 'a state of 2^16 - 1', stream(at(0, b'\xff\xff\0\0'))),
        ('head-state-other', 'corrupt', 'another bit of a state', stream(flip(0))),
        ('head-short', 'corrupt', 'a head without its last byte', lambda draft: draft.edit(HEAD, lambda raw: raw[:-1])),
        ('head-word-missing', 'corrupt', 'a head without its last word', lambda draft: draft.edit(HEAD, lambda raw: raw[:-2])),
        ('head-long', 'corrupt', 'a head with a byte more', lambda draft: draft.edit(HEAD, lambda raw: raw + b'\0')),
        ('head-word-more', 'corrupt', 'a head with a word more', lambda draft: draft.edit(HEAD, lambda raw: raw + b'\0\0')),
        ('head-missing', 'corrupt', 'no head', lambda draft: draft.pieces.remove(draft.find(HEAD))),
        ('head-starts-late', 'corrupt', 'a head that starts at tensor 1', lambda draft: set_(draft.find(HEAD), first=1, count=3)),
        ('head-ends-early', 'corrupt', 'a head that ends before the last tensor', lambda draft: set_(draft.find(HEAD), count=3)),
        ('head-ends-late', 'corrupt', 'a head that ends after the last tensor', lambda draft: set_(draft.find(HEAD), count=5))):
    simple(name, verdict, what, change)


@mutant('good')
def head_contexts(draft):
    """the same head in other contexts"""
    runs, numbers = read_head(draft)
    draw = random.Random('contexts')
    draft.store(draft.find(HEAD), write_head([(count, like(context, draw)) for count, context in runs], numbers))


@mutant('corrupt', 'none')
def head_without_basis(draft):
    """a head in a group without basis"""
    draft.pieces.append(Piece(HEAD, 0, NONE, 0, 9, b'????'))


# Task tables

def group_of(draft, task):
    return draft.find(TASK, task=task).group


def table_of(draft, task, group=None):
    piece = draft.find(TASK, task=task, group=group)
    generator = draft.generator(piece.group)
    added = any(p.kind == CONDITION and (p.group, p.task) == (piece.group, piece.task) and draft.raw(p)[:1] == b'\3' for p in draft.pieces)
    return reader.read_table(reader.Cursor(draft.raw(piece), ''), piece.count, generator, generator.d if generator.kind and not added else 0)


def write_table(rows, generator):
    out, step = b'', 0
    for i, row in enumerate(rows):
        out += varint(0 if row.step is None else row.step - step + 1)
        step = row.step or 0
    out += bytes(row.tier for row in rows)
    out += b''.join(struct.pack('<Bf', *row.bound) for row in rows if row.tier == BOUNDED)
    out += bytes(row.taps for row in rows if row.tier == LOSSLESS)
    for row in rows:
        out += varint(row.header) + varint(len(row.side)) + b''.join(varint(a) + varint(b) for a, b in row.side)
        out += varint(len(row.exceptions))
        last = -1
        for t in row.exceptions:
            out, last = out + varint(t - last - 1), t
    latent = [row for row in rows if reader.has_coefficients(row, generator)]
    if generator.kind:
        for j in range(len(latent[0].latents) if latent else 0):
            last = 0
            for row in latent:
                out, last = out + signed(row.latents[j] - last), row.latents[j]
        for j in range(generator.k):
            out += b''.join(signed(row.corrections[j]) for row in latent)
    for j in range(3):
        out += struct.pack(f'<{len(rows)}H', *(row.errors[j] for row in rows))
    return out + struct.pack(f'<{len(rows)}Q', *(row.hash for row in rows))


def table(change, task=1):
    def change_draft(draft):
        piece = draft.find(TASK, task=task)
        generator, rows = draft.generator(piece.group), table_of(draft, task, piece.group)
        assert write_table(rows, generator) == draft.raw(piece)
        change(rows)
        draft.store(piece, write_table(rows, generator))
    return change_draft


def on(number, **values):
    """A change of one row: fields, or one number of a list as name_index=value."""
    def change(rows):
        for name, value in values.items():
            if '_' in name:
                name, index = name.split('_')
                getattr(rows[number], name)[int(index)] = value
            else:
                setattr(rows[number], name, value)
    return change


def raw_table(change, task=1):
    return lambda draft: draft.edit(TASK, change, task=task)


for name, verdict, what, change in (
        ('tier-unknown', 'unsupported', 'tier 4', raw_table(at(5, b'\4'))),
        ('tier-bounded-alone', 'unsupported', 'tier bounded without a bound: other bytes fall into its kind', raw_table(at(5, b'\2'))),
        ('tier-lossless', 'corrupt', 'tier lossless without a link', table(on(0, tier=LOSSLESS))),
        ('tier-lossless-alone', 'corrupt', 'tier lossless without a number of taps: another byte falls into it', raw_table(at(5, b'\3'))),
        ('tier-verbatim', 'corrupt', 'tier verbatim in a group with a basis', raw_table(at(5, b'\x0f'))),
        ('step-twice', 'corrupt', 'two checkpoints of one step', raw_table(at(1, b'\1'))),
        ('step-none', 'corrupt', 'a checkpoint without step that is not the last', raw_table(at(1, b'\0'))),
        ('header-text', 'corrupt', 'a header text that is not there', table(on(0, header=9))),
        ('side-name', 'corrupt', "a side file's name that is not there", table(on(0, side=[(9, 0)]))),
        ('side-text', 'corrupt', 'a side file that is not there', table(on(0, side=[(0, 9)]))),
        ('exception-range', 'corrupt', 'an exception that is no tensor', table(on(0, exceptions=[4]))),
        ('exception-no-bytes', 'corrupt', 'an exception without verbatim bytes', table(on(0, exceptions=[1]))),
        ('latent-max', 'corrupt', 'a latent of 2^23 + 1', table(on(0, latents_0=2**23 + 1))),
        ('latent-min', 'corrupt', 'a latent of -2^23 - 1', table(on(4, latents_3=-2**23 - 1))),
        ('correction-max', 'corrupt', 'a correction of 2^23 + 1', table(on(0, corrections_0=2**23 + 1))),
        ('correction-min', 'corrupt', 'a correction of -2^63', table(on(2, corrections_2=-2**63))),
        ('latent-other', 'corrupt', 'another latent: the decoded file does not have its hash', table(on(0, latents_0=2**23))),
        ('error-nan', 'corrupt', 'an error measure that is NaN', table(on(0, errors_0=0x7fc0))),
        ('error-negative', 'corrupt', 'a negative error measure', table(on(0, errors_1=0xbf80))),
        ('error-minus-zero', 'good', 'an error measure of -0', table(on(0, errors_2=0x8000))),
        ('file-hash', 'corrupt', "a decoded file's hash is wrong", table(on(3, hash=1))),
        ('table-trailing', 'corrupt', 'a byte after the table', raw_table(lambda raw: raw + b'\0')),
        ('table-cut', 'corrupt', "the table's last byte is missing", raw_table(lambda raw: raw[:-1])),
        ('table-count', 'corrupt', 'a checkpoint more than the table has', lambda draft: set_(draft.find(TASK), count=6)),
        ('table-count-huge', 'corrupt', '2^32 - 1 checkpoints in a small table', lambda draft: set_(draft.find(TASK), count=2**32 - 1)),
        ('table-count-none', 'corrupt', 'no checkpoints', lambda draft: set_(draft.find(TASK), count=0)),
        ('table-missing', 'corrupt', 'a task part without table', lambda draft: draft.pieces.remove(draft.find(TASK))),
        ('error-infinite', 'good', 'an infinite error measure', table(on(0, errors_2=0x7f80))),
        ('side-files-many', 'corrupt', '2^64 - 1 side files', raw_table(lambda raw: raw[:10] + b'\0' + b'\xff' * 9 + b'\1' + raw[12:]))):
    simple(name, verdict, what, change)


@mutant('corrupt', 'basis-mixed')
def exception_verbatim(draft):
    """an exception that is verbatim anyway"""
    table(on(0, exceptions=[index_of(draft, 'mask')]))(draft)


@mutant('corrupt', 'none')
def tier_latent_without_basis(draft):
    """tier latent in a group without basis"""
    draft.edit(TASK, at(3, b'\1'), task=0)


# Texts, conditions, verbatim bytes

def texts_of(draft, piece):
    cursor = reader.Cursor(draft.raw(piece), '')
    return [cursor.take(cursor.varint()) for _ in range(cursor.varint())]


def write_texts(texts):
    return varint(len(texts)) + b''.join(varint(len(t)) + t for t in texts)


def text(number, change, task=NONE):
    def change_draft(draft):
        piece = draft.find(TEXTS, task=task)
        texts = texts_of(draft, piece)
        texts[number] = change(texts[number])
        draft.store(piece, write_texts(texts))
    return change_draft


for name, verdict, what, change in (
        ('side-name-up', 'corrupt', 'a side file is called ../x', text(0, lambda old: b'../x')),
        ('side-name-empty', 'corrupt', 'a side file has an empty name', text(0, lambda old: b'')),
        ('side-name-nul', 'corrupt', 'a side file with NUL in its name', text(0, lambda old: b'a\0')),
        ('texts-trailing', 'corrupt', 'a byte after the texts', lambda draft: draft.edit(TEXTS, lambda raw: raw + b'\0')),
        ('texts-cut', 'corrupt', 'the last text is cut off', lambda draft: draft.edit(TEXTS, lambda raw: raw[:-1])),
        ('texts-count', 'corrupt', '2^64 - 1 texts', lambda draft: draft.edit(TEXTS, lambda raw: b'\xff' * 9 + b'\1' + raw[1:])),
        ('texts-size', 'corrupt', 'a text of 2^64 - 1 bytes', lambda draft: draft.edit(TEXTS, lambda raw: raw[:1] + b'\xff' * 9 + b'\1' + raw[2:])),
        ('texts-missing', 'corrupt', 'no texts, though checkpoints have some', lambda draft: draft.pieces.remove(draft.find(TEXTS))),
        ('condition-least', 'corrupt', 'a condition with -128', lambda draft: draft.edit(CONDITION, at(-4, b'\x80'))),
        ('condition-exponent', 'corrupt', 'a condition with exponent 121', lambda draft: draft.edit(CONDITION, set_exponent(121))),
        ('condition-huge', 'corrupt', 'a condition so large that a coefficient is not finite',
         lambda draft: draft.edit(CONDITION, lambda raw: set_exponent(120)(raw[:-4] + b'\x7f' * 4))),
        ('condition-origin', 'unsupported', 'a condition of origin 4', lambda draft: draft.edit(CONDITION, at(0, b'\4'))),
        ('condition-offset', 'corrupt', 'a given condition that says it is an offset', lambda draft: draft.edit(CONDITION, at(0, b'\3'))),
        ('condition-learned', 'corrupt', 'a given condition that says it was learned', lambda draft: draft.edit(CONDITION, at(0, b'\2'))),
        ('condition-short', 'corrupt', 'a condition of one number less', lambda draft: draft.edit(CONDITION, lambda raw: raw[:-1])),
        ('condition-odd', 'corrupt', 'a condition of five bytes more', lambda draft: draft.edit(CONDITION, lambda raw: raw + b'12345')),
        ('condition-nul', 'corrupt', "NUL in the name of a condition's file", lambda draft: draft.edit(CONDITION, at(3, b'\0'))),
        ('condition-missing', 'corrupt', 'no condition', lambda draft: draft.pieces.remove(draft.find(CONDITION)))):
    simple(name, verdict, what, change)


# Offsets of tasks that were added (4.6)

def read_offset(draft, task):
    """The file's name, the coarse vector, the offset."""
    raw, k = draft.raw(draft.find(CONDITION, task=task)), draft.generator().k
    cursor = reader.Cursor(raw, '')
    cursor.u8()
    name, count = cursor.take(cursor.u8()), cursor.varint()
    vector = cursor.take(1 + count if count else 0)
    return [name, vector, [cursor.signed() for _ in range(k)]]


def write_offset(name, vector, offset, count=None):
    count = max(len(vector) - 1, 0) if count is None else count
    return bytes([3, len(name)]) + name + varint(count) + vector + b''.join(map(signed, offset))


def offset(change, task=0, **more):
    def change_draft(draft):
        own = read_offset(draft, task)
        change(own)
        draft.store(draft.find(CONDITION, task=task), write_offset(*own, **more))
    return change_draft


def offset_and_corrections(draft):
    """The whole offset moved into the corrections."""
    own = read_offset(draft, 0)
    moved, own[2] = own[2], [0] * len(own[2])
    draft.store(draft.find(CONDITION, task=0), write_offset(*own))
    table(lambda rows: [setattr(row, 'corrections', [c + o for c, o in zip(row.corrections, moved)]) for row in rows], 0)(draft)


for name, verdict, what, change in (
        ('offset-in-corrections', 'good', 'no offset, and corrections that are larger by it', offset_and_corrections),
        ('offset-vector', 'good', 'a vector beside the offset, where there was none', offset(lambda own: own.__setitem__(1, b'\0' + bytes(range(100))))),
        ('offset-vector-gone', 'good', 'no vector beside the offset, where there was one', offset(lambda own: own.__setitem__(1, b''), 3)),
        ('offset-vector-at-limit', 'good', 'a vector of 2^20 numbers beside the offset', offset(lambda own: own.__setitem__(1, bytes(1 + (1 << 20))))),
        ('offset-vector-over-limit', 'limit', 'a vector of 2^20 + 1 numbers beside the offset', offset(lambda own: own.__setitem__(1, bytes(2 + (1 << 20))))),
        ('offset-vector-huge', 'corrupt', 'a vector of 2^64 - 1 numbers beside the offset', offset(lambda own: None, count=2**64 - 1)),
        ('offset-vector-more', 'corrupt', 'a vector of more numbers than bytes are left', offset(lambda own: None, count=5000)),
        ('offset-vector-least', 'corrupt', 'a vector with -128 beside the offset', offset(lambda own: own.__setitem__(1, own[1][:-1] + b'\x80'), 3)),
        ('offset-vector-exponent', 'corrupt', 'a vector with exponent 121 beside the offset', offset(lambda own: own.__setitem__(1, b'\x79' + own[1][1:]), 3)),
        ('offset-nul', 'corrupt', 'NUL in the name of the file of a vector beside an offset', offset(lambda own: own.__setitem__(0, b'a\0b'))),
        ('offset-other', 'corrupt', 'another offset: the decoded files do not have their hashes', offset(lambda own: own[2].__setitem__(0, own[2][0] + 9))),
        ('offset-high', 'corrupt', 'an offset of 2^23 + 1', offset(lambda own: own[2].__setitem__(0, (1 << 23) + 1))),
        ('offset-low', 'corrupt', 'an offset of -2^23 - 1', offset(lambda own: own[2].__setitem__(-1, -(1 << 23) - 1))),
        ('offset-short', 'corrupt', 'an offset of one number less', offset(lambda own: own[2].pop())),
        ('offset-odd', 'corrupt', 'an offset of one number more', offset(lambda own: own[2].append(0))),
        ('offset-cut', 'corrupt', 'an offset whose last number is cut off', lambda draft: (
            offset(lambda own: own[2].__setitem__(-1, 1 << 20))(draft), draft.edit(CONDITION, lambda raw: raw[:-1], task=0))),
        ('offset-none', 'corrupt', 'a condition that ends after its name', lambda draft: draft.edit(CONDITION, lambda raw: b'\3\0', task=0)),
        ('offset-latents', 'corrupt', 'latents in the table of a task with an offset', lambda draft: draft.edit(
            TASK, lambda raw: raw[:-14 * 3] + bytes(3 * draft.generator().d) + raw[-14 * 3:], task=0)),
        ('offset-learned', 'corrupt', 'an offset that says it is a learned condition', lambda draft: draft.edit(CONDITION, at(0, b'\2'), task=0))):
    simple(name, verdict, what, change, 'added')
for base, task in (('bounded-none', 1), ('conv-bounded', 0)):
    simple(f'offset-in-{base}', 'corrupt', 'an offset in a group without basis', lambda draft, task=task: draft.store(
        draft.find(CONDITION, task=task), bytes([3, 0, 0]) + bytes(30)), base)


@mutant('equal', 'added-generate')
def offset_extreme(draft):
    """offsets of 2^23 and -2^23, of a task of tier generate"""
    name = draft.names.index(b'star')
    own = read_offset(draft, name)
    own[2] = [(1 << 23) * (1 - k % 2 * 2) for k in range(len(own[2]))]
    draft.store(draft.find(CONDITION, task=name), write_offset(*own))
    rehash(draft)


@mutant('corrupt', 'added-generate')
def offset_infinite(draft):
    """a correction step so large that an offset's coefficient is not finite"""
    name = draft.names.index(b'star')
    own = read_offset(draft, name)
    own[2][0] = 1 << 23
    draft.store(draft.find(CONDITION, task=name), write_offset(*own))
    steps = draft.generator().correction_step.astype('<f4').tobytes()
    draft.edit(GENERATOR, lambda raw: bytes(raw).replace(steps, struct.pack('<f', 3e38) + steps[4:]))


def more_texts(count):
    """So many in a section, empty after those that are used."""
    def change(draft):
        piece = draft.find(TEXTS)
        texts = texts_of(draft, piece)
        draft.store(piece, write_texts(texts + [b''] * (count - len(texts))))
    return change


def more_side_files(count):
    """All with one content."""
    def change(draft):
        piece, table = draft.find(TEXTS), draft.find(TASK)
        texts, rows = texts_of(draft, piece), table_of(draft, 0)
        shared = len(texts) if piece.task == NONE else sum(len(texts_of(draft, p)) for p in draft.pieces if p.kind == TEXTS)
        rows[0].side += [(shared + i, rows[0].side[0][1]) for i in range(count - len(rows[0].side))]
        draft.store(piece, write_texts(texts + [b'file %d' % i for i in range(1024)]))
        draft.store(table, write_table(rows, draft.generator()))
    return change


def unpacked(more):
    """An optional section with which all compressed ones would become as much as they may, and `more`; nobody loads it."""
    def change(draft):
        small = Piece(77, 0, data=b'zstd?', coding=1, flags=1, raw=6)
        draft.pieces.append(small)
        size = len(draft.build())
        small.raw = (1 << 20) + 3 * size + more - sum(p.raw for p in draft.pieces if p.coding == 1 and p.kind != VERBATIM and p is not small)
        assert len(draft.build()) == size
    return change


def side_file_named(name):
    """A second side file, called so."""
    def change(draft):
        rows, texts, piece = table_of(draft, 0), texts_of(draft, draft.find(TEXTS)), draft.find(TEXTS)
        draft.store(piece, write_texts(texts + [name or texts[rows[0].side[0][0]]]))
        rows[0].side.append((len(texts), rows[0].side[0][1]))
        draft.store(draft.find(TASK), write_table(rows, draft.generator()))
    return change


for name, verdict, what, change in (
        ('side-file-second', 'good', 'another side file', side_file_named(b'notes')),
        ('side-file-twice', 'corrupt', 'two side files of one name', side_file_named(None)),
        ('side-file-of-the-adapter', 'corrupt', 'a side file called adapter_model.safetensors', side_file_named(b'adapter_model.safetensors')),
        ('texts-at-limit', 'good', '2^20 texts', more_texts(1 << 20)),
        ('texts-over-limit', 'limit', '2^20 + 1 texts', more_texts((1 << 20) + 1)),
        ('side-files-at-limit', 'good', '1024 side files', more_side_files(1024)),
        ('side-files-over-limit', 'limit', '1025 side files', more_side_files(1025)),
        ('unpacked-at-limit', 'good', 'compressed sections that together become as much as they may', unpacked(0)),
        ('unpacked-over-limit', 'limit', 'compressed sections that together become a byte more than they may', unpacked(1)),
        ('unpacked-huge', 'limit', 'a compressed section of half a TiB', unpacked(1 << 39))):
    simple(name, verdict, what, change, 'one')


@mutant('corrupt', 'basis-mixed')
def header_of_others(draft):
    """a header text with another shape"""
    piece = draft.find(TEXTS, task=1)
    texts = texts_of(draft, piece)
    assert any(b'[4, 9]' in t for t in texts)
    texts = [t.replace(b'[4, 9]', b'[9, 4]') for t in texts]
    draft.store(piece, write_texts(texts))


for name, verdict, what, change in (
        ('verbatim-short', 'corrupt', 'verbatim bytes that end too soon', lambda draft: draft.edit(VERBATIM, lambda raw: raw[:-1])),
        ('verbatim-long', 'corrupt', 'a byte after the verbatim bytes', lambda draft: draft.edit(VERBATIM, lambda raw: raw + b'\0')),
        ('verbatim-missing', 'corrupt', 'no verbatim section', lambda draft: draft.pieces.remove(draft.find(VERBATIM))),
        ('verbatim-range', 'corrupt', 'a verbatim section that ends too soon', lambda draft: set_(draft.find(VERBATIM), count=3)),
        ('verbatim-beyond', 'corrupt', 'a verbatim section over more checkpoints than there are', lambda draft: set_(draft.find(VERBATIM), count=5)),
        ('verbatim-overlap', 'corrupt', 'two verbatim sections of one checkpoint',
         lambda draft: draft.pieces.append(dataclasses.replace(draft.find(VERBATIM), first=3, count=1))),
        ('verbatim-outside', 'corrupt', 'a verbatim section of checkpoints after the last',
         lambda draft: draft.pieces.append(dataclasses.replace(draft.find(VERBATIM), first=4))),
        ('verbatim-bytes', 'corrupt', 'other verbatim bytes: the decoded file does not have its hash', lambda draft: draft.edit(VERBATIM, flip(0)))):
    simple(name, verdict, what, change, 'basis-mixed')


# Parts of tasks

@mutant('corrupt', 'two-groups')
def part_without_table(draft):
    """texts of a task in a group where it has no checkpoints"""
    draft.pieces.append(Piece(TEXTS, 1, 1, data=b'\0'))


@mutant('corrupt', 'two-groups')
def step_in_two_parts(draft):
    """checkpoints of one step in two parts of a task"""
    piece, rows = draft.find(TASK, task=0, group=0), table_of(draft, 0, 0)
    for row in rows:
        row.step += 1
    draft.store(piece, write_table(rows, draft.generator(0)))


@mutant('corrupt', 'two-groups')
def final_in_two_parts(draft):
    """a checkpoint without step in each of two parts of a task"""
    for group in (0, 1):
        piece, rows = draft.find(TASK, task=0, group=group), table_of(draft, 0, group)
        rows[-1].step = None
        draft.store(piece, write_table(rows, draft.generator(group)))


@mutant('corrupt')
def step_over(draft):
    """a step over 2^64 - 1"""
    draft.edit(TASK, lambda raw: varint(2**64 - 1) + varint(5) + raw[2:])



@mutant('good', 'two-groups')
def task_renumbered(draft):
    """tasks in another order in the index"""
    draft.names.reverse()
    for piece in draft.pieces:
        if piece.task != NONE:
            piece.task = 2 - piece.task


# Other numbers: the second reader computes the hashes of what they decode to, and the program has to find the same

def rehash(draft):
    with tempfile.NamedTemporaryFile(suffix='.icma') as file:
        file.write(draft.build())
        file.flush()
        with reader.open(file.name) as archive:
            for piece in [p for p in draft.pieces if p.kind == TASK]:
                generator = draft.generator(piece.group)
                rows = table_of(draft, piece.task, piece.group)
                for row in archive.checkpoints(draft.names[piece.task].decode()):
                    if row.part.group.number == piece.group:
                        rows[row.number].hash = xxh3_64(row.part.compute(row))
                draft.store(piece, write_table(rows, generator))


def scaled(scale):
    def change(draft):
        draft.edit(GENERATOR, at(fields(draft)['s_t'], floats(*[scale] * len(draft.generator().modelled))))
        rehash(draft)
    return change


for name, what, scale in (
        ('scale-2-120', 'scales of 2^-120: denormal results in every dtype', 2.0 ** -120),
        ('scale-2-126', 'the smallest scales', 2.0 ** -126),
        ('scale-2-13', 'scales of 2^-13: F16 results denormal and not', 2.0 ** -13), ('scale-2-20', 'scales of 2^-20', 2.0 ** -20),
        ('scale-65504', 'scales that make some F16 results infinite', 30000.0), ('scale-2-100', 'scales that make all F16 results infinite', 2.0 ** 100)):
    simple(name, 'equal', what, scaled(scale), 'basis-mixed')


def shuffled(seed, spread):
    """Every number of a group: weights with exponents over `spread` powers of two and random last bits, heads, latents."""
    def change(draft):
        draw = random.Random(f'shuffled {seed}')

        def number(positive=False):
            value = draw.uniform(1, 2) * 2.0 ** draw.uniform(-spread, spread / 4)
            return value if positive or draw.random() < 0.5 else -value
        generator, where = draft.generator(), fields(draft)
        order = sorted(where.items(), key=lambda item: item[1]) + [('end', len(draft.raw(draft.find(GENERATOR))))]
        for (name, start), (_, end) in zip(order, order[1:]):
            if name == 'M':
                rows = [bytes([draw.randint(-spread, 0) & 0xff]) + bytes(draw.randint(-127, 127) & 0xff for _ in range(generator.c)) for _ in range(generator.m_g)]
                draft.edit(GENERATOR, at(start, b''.join(rows)))
            elif name in ('V1', 'V2', 'V3'):
                words = [struct.unpack('<I', floats(number()))[0] >> 16 for _ in range((end - start) // 2)]
                draft.edit(GENERATOR, at(start, struct.pack(f'<{len(words)}H', *words)))
            elif name[0] in 'slchbS' and name != 'h':
                values = [number(name in ('s_t', 'latent step', 'correction step', 'head step')) for _ in range((end - start) // 4)]
                draft.edit(GENERATOR, at(start, floats(*values)))

        def integer():
            return draw.choice((draw.randint(-16384, 16383), draw.randint(-9, 9), 0, 16383, -16384))
        if generator.kind:
            runs = [(count, draw.randrange(rans.CONTEXTS)) for count in head_shape(draft)]
            draft.store(draft.find(HEAD), write_head(runs, [integer() for count, _ in runs for _ in range(count)]))
        for piece in [p for p in draft.pieces if p.kind == RESIDUAL]:
            tensors, made = draft.tensors(), []
            for row in [row for row in table_of(draft, piece.task) if row.tier == BOUNDED]:
                chosen = [t for t in generator.modelled if t not in row.exceptions and draw.random() < 0.8]
                made.append(write_block(Block(int(draw.random() < 0.7), [Coded(t, draw.choice((draw.randint(-640, 640), draw.randint(-90, 9), 640, -640)), draw.randrange(rans.CONTEXTS),
                                                                    [integer() for _ in range(tensors[t].elements)]) for t in chosen])))
            draft.store(piece, write_blocks(made))
        for piece in [p for p in draft.pieces if p.kind == TASK]:
            rows = table_of(draft, piece.task)
            for row in rows:
                if reader.has_coefficients(row, generator):
                    row.latents = [draw.choice((0, 1, -1, draw.randint(-99, 99), 2**23, -2**23)) for _ in row.latents]
                    row.corrections = [draw.choice((0, draw.randint(-99, 99), 2**23, -2**23)) for _ in row.corrections]
            draft.store(piece, write_table(rows, generator))
        rehash(draft)
    return change


for seed, base in enumerate(('basis-given', 'basis-learned', 'basis-mixed', 'basis-wide', 'generate', 'paper', 'one', 'stepless') * 2):
    simple(f'shuffled-{seed}', 'equal', 'all numbers of generator, head and latents random', shuffled(seed, 4 if seed < 8 else 16), base)


def longer(factor, lanes, least=0):
    """Tensors of `factor` times as many elements, so that the head's stream has so many lanes."""
    def change(draft):
        header = json.loads(draft.raw(draft.find(SIGNATURE)))
        for name, entry in header.items():
            if name != '__metadata__':
                entry['shape'][0] *= factor
                entry['data_offsets'] = [factor * end for end in entry['data_offsets']]
        draft.store(draft.find(SIGNATURE), json.dumps(header).encode())
        draw = random.Random(f'longer {factor}')
        runs = [(count, draw.randrange(least, rans.CONTEXTS)) for count in head_shape(draft)]
        assert rans.lanes(runs) == lanes
        symbols = [max(-16384, min(16383, round(draw.gauss(0, 2 * rans.context(number).rate / 65536)) << rans.context(number).low))
                   for count, number in runs for _ in range(count)]
        symbols[::97] = [16383] * len(symbols[::97])
        draft.store(draft.find(HEAD), write_head(runs, symbols))
        rehash(draft)
    return change


for seed, base in enumerate(('bounded-dw', 'bounded-rel', 'bounded-abs', 'bounded-none') * 2):
    simple(f'shuffled-{16 + seed}', 'equal', 'all numbers of generator, head, latents and residuals random', shuffled(16 + seed, 4 if seed < 4 else 16), base)


simple('lanes-8', 'equal', "tensors so much longer that the head's stream has 8 lanes", longer(64, 8))
simple('lanes-32', 'equal', "tensors so much longer that the head's stream has 32 lanes", longer(320, 32, rans.WIDE))
simple('trellis-long', 'equal', 'rows so much longer that the trellis starts anew within them', longer(2800, 32, trellis.CONTEXT), 'one')


# Residuals (4.11) and bounds

@dataclasses.dataclass
class Coded:
    """One tensor's part of a block."""
    tensor: int
    code: int
    context: int
    symbols: list


class Block(list):
    """The parts of a block, its trellis flag, and of which tensors it is where it lists none."""

    def __init__(self, trellis, parts, unlisted=None):
        super().__init__(parts)
        self.trellis, self.unlisted = trellis, unlisted


def read_blocks(draft, task, kind=RESIDUAL):
    """The blocks of a residual or link section over a whole task."""
    cursor = reader.Cursor(draft.raw(draft.find(kind, task=task)), '')
    sizes = [cursor.varint() for row in table_of(draft, task) if reader.has_block(row, kind)]
    return [cursor.take(size) for size in sizes]


def write_blocks(blocks):
    return b''.join(varint(len(block)) for block in blocks) + b''.join(blocks)


def read_block(draft, block):
    """A block of one stream."""
    cursor, codes = reader.Cursor(block, ''), []
    count, flag = divmod(cursor.varint(), 2)
    unlisted, tensors = None if count else list(draft.generator().modelled), []
    for _ in range(count):
        tensors.append((tensors[-1] + 1 if tensors else 0) + cursor.varint())
    tensors = tensors or unlisted
    for _ in tensors:
        codes.append((codes[-1] if codes else 0) + cursor.signed())
    contexts = cursor.take(len(tensors))
    counts = [draft.tensors()[t].elements for t in tensors]
    symbols, out = rans.decode(cursor.take(len(block) - cursor.at), list(zip(counts, contexts))), Block(flag, [], unlisted)
    for tensor, code, context, count in zip(tensors, codes, contexts, counts):
        out.append(Coded(tensor, code, context, symbols[:count]))
        symbols = symbols[count:]
    return out


def write_block(parts, sizes=None, classes=None, **odd):
    """`sizes` replaces those of the streams. A plain list has no trellis. With `classes`, so many a tensor, all have their tensor's context, and the symbols are those of class after class."""
    if not parts:
        return b''
    flag, unlisted = getattr(parts, 'trellis', 0), getattr(parts, 'unlisted', None)
    tensors, codes = [-1, *(part.tensor for part in parts)], [0, *(part.code for part in parts)]
    out = varint(flag)
    if tensors[1:] != unlisted:
        out = varint(2 * len(parts) + flag) + b''.join(varint(b - a - 1) for a, b in zip(tensors, tensors[1:]))
    out += b''.join(signed(b - a) for a, b in zip(codes, codes[1:])) + b''.join(bytes([part.context]) * n for part, n in zip(parts, classes or [1] * len(parts)))
    streams, runs, numbers = [], [], []
    for part in parts:
        rest = part.symbols
        while rest:
            room = reader.STREAM - len(numbers)
            runs.append((min(room, len(rest)), part.context))
            numbers, rest = numbers + rest[:room], rest[room:]
            if len(numbers) == reader.STREAM or not rest and part is parts[-1]:
                streams.append(encode(runs, numbers, **odd))
                runs, numbers = [], []
    return out + b''.join(varint(size) for size in (sizes or [len(stream) for stream in streams[:-1]])) + b''.join(streams)


def blocks(change, task=1):
    """A change of the list of a task's blocks."""
    def change_draft(draft):
        piece, own = draft.find(RESIDUAL, task=task), read_blocks(draft, task)
        assert write_blocks(own) == draft.raw(piece)
        draft.store(piece, write_blocks(change(own)))
    return change_draft


def block(change, number=0, task=1):
    """A change of one block's bytes."""
    def change_blocks(own):
        own[number] = change(own[number])
        return own
    return blocks(change_blocks, task)


def parts(change, number=0, task=1, **odd):
    """A change of what one block says, which is then coded again."""
    def change_draft(draft):
        def again(data):
            own = read_block(draft, data)
            assert write_block(own) == data
            change(own)
            return write_block(own, **odd)
        block(again, number, task)(draft)
    return change_draft


def part(index, **values):
    """Fields of one tensor's part, or number i of its symbols as symbols_i."""
    def change(own):
        for name, value in values.items():
            if '_' in name:
                own[index].symbols[int(name.split('_')[1])] = value
            else:
                setattr(own[index], name, value)
    return parts(change)


def contexts_of(data, modelled=5):
    """Where the contexts of a block of few tensors lie, and how many there are; bounded-dw models five."""
    cursor = reader.Cursor(data, '')
    listed = cursor.varint() // 2
    for _ in range(2 * listed or modelled):
        cursor.varint()
    return cursor.at, listed or modelled


def stream_of(change):
    """A change of the stream of a block that has one."""
    def change_block(data):
        start = sum(contexts_of(data))
        return data[:start] + change(data[start:])
    return block(change_block)


def residual(**values):
    return lambda draft: set_(draft.find(RESIDUAL, task=1), **values)


for name, verdict, what, change in (
        ('residual-missing', 'corrupt', 'no residuals: the decoded file does not have its hash', lambda draft: draft.pieces.remove(draft.find(RESIDUAL, task=1))),
        ('residual-short', 'corrupt', 'a residual section without its last byte', lambda draft: draft.edit(RESIDUAL, lambda raw: raw[:-1])),
        ('residual-long', 'corrupt', 'a residual section with a byte more', lambda draft: draft.edit(RESIDUAL, lambda raw: raw + b'\0')),
        ('residual-sizes-cut', 'corrupt', 'a residual section that ends within its sizes', lambda draft: draft.edit(RESIDUAL, lambda raw: raw[:3])),
        ('residual-size-huge', 'corrupt', 'a block of 2^64 - 1 bytes', lambda draft: draft.edit(RESIDUAL, lambda raw: b'\xff' * 9 + b'\1' + raw[2:])),
        ('residual-sizes-other', 'corrupt', 'the first block a byte longer, the second a byte shorter', lambda draft: draft.edit(
            RESIDUAL, lambda raw, own=read_blocks(draft, 0): b''.join(varint(len(b) + more) for b, more in zip(own, (1, -1, 0, 0, 0))) + b''.join(own))),
        ('residual-empty-block', 'corrupt', 'a block that is empty: the decoded file does not have its hash', block(lambda data: b'')),
        ('residual-flag-alone', 'corrupt', 'a block of one byte', block(lambda data: b'\0')),
        ('residual-no-codes', 'corrupt', 'a block of all tensors without step codes and contexts', block(lambda data: b'\1' + data[sum(contexts_of(data)):])),
        ('residual-flag', 'corrupt', 'without the trellis flag: the decoded file does not have its hash', block(at(0, b'\0'))),
        ('residual-flag-listed', 'corrupt', 'a block that says that it lists its tensors, and does not', block(at(0, b'\x0b'))),
        ('residual-tensors-many', 'corrupt', 'a block of six tensors, where there are five', block(lambda data: b'\x0d' + bytes(6) + data[1:])),
        ('residual-tensors-huge', 'corrupt', 'a block of 2^63 - 1 tensors', block(lambda data: b'\xff' * 9 + b'\1' + data[1:])),
        ('residual-gap', 'corrupt', 'a tensor beyond the last', part(-1, tensor=5)),
        ('residual-gap-huge', 'corrupt', 'a gap of 2^64 - 1', block(lambda data: b'\x0b' + b'\xff' * 9 + b'\1' + bytes(4) + data[1:])),
        ('residual-code', 'corrupt', 'a step of code 641', part(0, code=641)),
        ('residual-code-low', 'corrupt', 'a step of code -641', part(2, code=-641)),
        ('residual-code-huge', 'corrupt', 'a step of code -2^63', part(0, code=-2**63)),
        ('residual-code-far', 'corrupt', 'a step of code 640 and the next of -641', lambda draft: parts(
            lambda own: (setattr(own[0], 'code', 640), setattr(own[1], 'code', -641)))(draft)),
        ('residual-code-other', 'corrupt', 'another step: the decoded file does not have its hash', part(0, code=0)),
        ('residual-context', 'corrupt', 'a context of 225', block(lambda data: at(contexts_of(data)[0], b'\xe1')(data))),
        ('residual-context-last', 'corrupt', "the last tensor's context is 255", block(lambda data: at(sum(contexts_of(data)) - 1, b'\xff')(data))),
        ('residual-context-other', 'corrupt', 'a context that is not that of the stream', block(lambda data: flip(contexts_of(data)[0])(data))),
        ('residual-contexts-cut', 'corrupt', 'a block that ends within its contexts', block(lambda data: data[:sum(contexts_of(data)) - 1])),
        ('residual-stream-missing', 'corrupt', 'a block that ends after its contexts', stream_of(lambda data: b'')),
        ('residual-word-missing', 'corrupt', 'a block without its last word', stream_of(lambda data: data[:-2])),
        ('residual-word-more', 'corrupt', 'a block with a word more', stream_of(lambda data: data + b'\0\0')),
        ('residual-byte-more', 'corrupt', 'a block with a byte more', stream_of(lambda data: data + b'\0')),
        ('residual-state-low', 'corrupt', 'a state of 2^16 - 1', stream_of(at(0, b'\xff\xff\0\0'))),
        ('residual-final-state', 'corrupt', "a lane's last state is 2^16 + 1", parts(lambda own: None, final=rans.LOW + 1)),
        ('residual-highest', 'corrupt', 'a symbol of 16384 in a trellis', part(0, symbols_0=16384)),
        ('residual-lowest', 'corrupt', 'the last symbol, in a trellis, is -16385', part(-1, symbols_39=-16385)),
        ('residual-highest-rounded', 'corrupt', 'a symbol of 16384 in a context without trellis', part(0, symbols_0=16384, context=56)),
        ('residual-far', 'corrupt', 'a symbol of 2^31 - 1', part(1, symbols_1=2**31 - 1)),
        ('residual-far-low', 'corrupt', 'a symbol of -2^31', part(1, symbols_1=-2**31)),
        ('residual-other', 'corrupt', 'another symbol: the decoded file does not have its hash', part(0, symbols_0=16383)),
        ('residual-last-other', 'corrupt', 'the last symbol of all is another: the decoded file does not have its hash', part(-1, symbols_39=16383)),
        ('residual-beyond', 'corrupt', 'a residual section over more checkpoints than there are', residual(count=6)),
        ('residual-range', 'corrupt', 'a residual section that ends too soon', residual(count=4)),
        ('residual-late', 'corrupt', 'a residual section that starts at the second checkpoint', residual(first=1, count=4)),
        ('residual-overlap', 'corrupt', 'two residual sections of one checkpoint',
         lambda draft: draft.pieces.append(dataclasses.replace(draft.find(RESIDUAL, task=1), first=4, count=1))),
        ('residual-outside', 'corrupt', 'a residual section of checkpoints after the last', lambda draft: draft.pieces.append(
            dataclasses.replace(draft.find(RESIDUAL, task=1), first=5))),
        ('residual-count-none', 'corrupt', 'a residual section of no checkpoints', residual(count=0)),
        ('residual-owner', 'corrupt', 'a residual section that belongs to no task', residual(task=NONE)),
        ('residual-group', 'corrupt', 'a residual section that belongs to no group', residual(group=NONE)),
        ('residual-task', 'corrupt', "a task's residuals are another's", lambda draft: (
            residual(task=99)(draft), set_(draft.find(RESIDUAL, task=2), task=1), set_(draft.find(RESIDUAL, task=99), task=2))),
        ('residual-hash', 'corrupt', "a residual section's hash is wrong", residual(hash=1))):
    simple(name, verdict, what, change, 'bounded-dw')


@mutant('good', 'bounded-dw')
def residual_listed(draft):
    """blocks of all modelled tensors that list them all the same"""
    for task in range(3):
        for number in range(5):
            parts(lambda own: setattr(own, 'unlisted', None), number, task)(draft)


@mutant('good', 'bounded-dw')
def residual_integers(draft):
    """symbols that are the integers, without trellis, in contexts of either side"""
    draw = random.Random('residual integers')

    def change(own):
        for coded in own:
            coded.symbols = trellis.expand(coded.symbols, coded.context)
            coded.context = draw.randrange(rans.CONTEXTS)
        own.trellis = 0
    for task in range(3):
        for number in range(5):
            parts(change, number, task)(draft)


@mutant('good', 'bounded-none')
def residual_unlisted(draft):
    """blocks that list no tensors and those that do, of all modelled ones"""
    for number in range(3):
        parts(lambda own, number=number: setattr(own, 'unlisted', draft.generator().modelled if number else None), number, 0)(draft)


@mutant('corrupt', 'none')
def residual_of_no_model(draft):
    """a block of all modelled tensors, where none is"""
    table(on(0, tier=BOUNDED, bound=(1, 0.5)), 0)(draft)
    draft.pieces.append(Piece(RESIDUAL, 0, 0, 0, 1, write_blocks([b'\0'])))


@mutant('corrupt')
def residual_of_latents(draft):
    """a residual section whose checkpoints are all of tier latent"""
    draft.pieces.append(Piece(RESIDUAL, 0, 1, 0, 5, b'?'))


@mutant('good', 'bounded-dw')
def residual_contexts(draft):
    """the same residuals in other contexts"""
    draw = random.Random('residual contexts')

    def change(own):
        for coded in own:
            coded.context = like(coded.context, draw)
    for task in range(3):
        for number in range(5):
            parts(change, number, task)(draft)


@mutant('good', 'bounded-dw')
def residual_in_pieces(draft):
    """residual sections of one and of two checkpoints"""
    for task in range(3):
        own = read_blocks(draft, task)
        draft.pieces.remove(draft.find(RESIDUAL, task=task))
        for first, count in ((0, 2), (2, 1), (3, 2)):
            draft.pieces.append(Piece(RESIDUAL, 0, task, first, count, write_blocks(own[first:first + count])))


@mutant('good', 'bounded-rel')
def residual_left_out(draft):
    """residual sections that leave out a checkpoint whose block is empty"""
    own, piece = read_blocks(draft, 0), draft.find(RESIDUAL, task=0)
    assert own[0] and not own[1] and not own[2] and own[3]
    draft.pieces.remove(piece)
    draft.pieces += [Piece(RESIDUAL, 0, 0, 0, 2, write_blocks(own[:2])), Piece(RESIDUAL, 0, 0, 3, 1, write_blocks(own[3:]))]


@mutant('corrupt', 'bounded-rel')
def residual_of_exception(draft):
    """a residual of a tensor that the checkpoint keeps verbatim"""
    assert table_of(draft, 1)[1].exceptions == [1]
    parts(lambda own: own.insert([part.tensor > 1 for part in own].index(True), Coded(1, 9, 60, [3] * 80)), 1)(draft)


@mutant('corrupt', 'bounded-none')
def residual_of_exception_unlisted(draft):
    """a block of all modelled tensors, of which the checkpoint keeps two verbatim"""
    assert table_of(draft, 1)[1].exceptions == [0, 1]

    def change(own):
        own[:0] = [Coded(t, 9, 60, [3] * draft.tensors()[t].elements) for t in (0, 1)]
        own.unlisted = draft.generator().modelled
    parts(change, 1, 1)(draft)


for name, what, tensor in (('residual-of-integers', 'a tensor of integers', 'count'), ('residual-of-nothing', 'a tensor without elements', 'empty')):
    simple(name, 'corrupt', f'a residual of {what}', lambda draft, tensor=tensor: parts(
        lambda own: own.append(Coded(index_of(draft, tensor), 9, 60, [])), 4)(draft), 'bounded-rel')


@mutant('good', 'bounded-none')
def residual_of_the_last_alone(draft):
    """a residual section a checkpoint"""
    own, piece = read_blocks(draft, 0), draft.find(RESIDUAL, task=0)
    draft.pieces.remove(piece)
    draft.pieces += [Piece(RESIDUAL, 0, 0, i, 1, write_blocks([data])) for i, data in enumerate(own)]


def bounds(kind, value, task=1):
    def change(rows):
        rows[0].bound = kind, value
    return table(change, task)


def bound_word(word):
    """The first bound's value as a u32."""
    return lambda draft: raw_table(at(11, struct.pack('<I', word)))(draft)


for name, verdict, what, change in (
        ('bound-0', 'unsupported', 'a bound of kind 0', bounds(0, 0.5)),
        ('bound-4', 'unsupported', 'a bound of kind 4', bounds(4, 0.5)),
        ('bound-255', 'unsupported', 'a bound of kind 255', bounds(255, 0.5)),
        ('bound-rel', 'good', 'another kind of bound', bounds(2, 0.5)),
        ('bound-zero', 'corrupt', 'a bound of 0', bounds(1, 0.0)),
        ('bound-minus-zero', 'corrupt', 'a bound of -0', bounds(1, -0.0)),
        ('bound-negative', 'corrupt', 'a negative bound', bounds(1, -0.5)),
        ('bound-nan', 'corrupt', 'a bound that is NaN', bound_word(0x7fc00000)),
        ('bound-infinite', 'corrupt', 'an infinite bound', bound_word(0x7f800000)),
        ('bound-denormal', 'good', 'a bound of 2^-149', bound_word(1)),
        ('bound-largest', 'good', 'the largest bound', bound_word(0x7f7fffff)),
        ('bound-cut', 'corrupt', 'a table that ends within a bound', raw_table(lambda raw: raw[:13])),
        ('tier-lossless-bound', 'corrupt', 'tier lossless with a bound', raw_table(at(5, b'\3'))),
        ('tier-latent-bound', 'corrupt', 'tier latent with a bound', raw_table(at(5, b'\1'))),
        ('tier-latent-block', 'corrupt', 'a block too many, since a checkpoint has become latent', table(on(2, tier=LATENT))),
        ('tier-lossless-bounded', 'corrupt', 'tier lossless, and a residual section', table(lambda rows: [setattr(row, 'tier', LOSSLESS) for row in rows]))):
    simple(name, verdict, what, change, 'bounded-dw')

def long_condition(draft):
    piece = draft.find(CONDITION)
    raw = draft.raw(piece) + bytes(1 << 20)
    piece.data, piece.coding, piece.raw = zstd(raw), 1, len(raw)


def first_stream(draft, sizes):
    """The blocks of bounded-streams, where the sizes of the first one's streams are others."""
    own = read_blocks(draft, 0)
    start = sum(contexts_of(own[0], 3))
    cursor = reader.Cursor(own[0], '')
    cursor.take(start)
    size = cursor.varint()
    own[0] = own[0][:start] + b''.join(map(varint, sizes(size))) + own[0][cursor.at:]
    draft.store(draft.find(RESIDUAL), write_blocks(own))


for name, verdict, what, change in (
        ('tier-generate-without-basis', 'corrupt', 'tier generate in a group without basis', table(on(1, tier=GENERATE))),
        ('tier-lossless-without-basis', 'corrupt', 'tier lossless in a group without basis, without a link', table(on(1, tier=LOSSLESS))),
        ('tier-verbatim-modelled', 'corrupt', 'tier verbatim, but tensors are modelled, and there is no residual', lambda draft: (
            draft.pieces.remove(draft.find(RESIDUAL, task=1)), table(lambda rows: [setattr(row, 'tier', KEPT) for row in rows])(draft))),
        ('condition-learned-none', 'corrupt', 'a learned condition in a group without basis', lambda draft: draft.edit(CONDITION, at(0, b'\2'))),
        ('condition-other-none', 'good', 'a longer condition in a group without basis', lambda draft: draft.edit(CONDITION, lambda raw: raw + bytes(20))),
        ('condition-long-none', 'limit', 'a condition of 2^20 + 1 numbers', long_condition),
        ('head-without-rows', 'corrupt', 'a head in a group without basis that has residuals', lambda draft: draft.pieces.append(
            Piece(HEAD, 0, NONE, 0, 5, b'????')))):
    simple(name, verdict, what, change, 'bounded-none')

for name, what, sizes in (
        ('streams-size-more', "the first stream's size is two more", lambda size: [size + 2]),
        ('streams-size-less', "the first stream's size is two less", lambda size: [size - 2]),
        ('streams-size-missing', "no size of the first stream", lambda size: []),
        ('streams-size-over', 'a stream that ends after its block', lambda size: [1 << 40]),
        ('streams-size-huge', 'a stream of 2^64 - 1 bytes', lambda size: [2**64 - 1])):
    simple(name, 'corrupt', what, lambda draft, sizes=sizes: first_stream(draft, sizes), 'bounded-streams')


# Residuals and tiers with other numbers

@mutant('equal', 'bounded-dw')
def tiers_mixed(draft):
    """checkpoints of tiers generate, latent, bounded and lossless in one task"""
    own, piece = read_blocks(draft, 1), draft.find(RESIDUAL, task=1)
    rows, generator = table_of(draft, 1), draft.generator()
    for row, tier in zip(rows, (GENERATE, LATENT, LOSSLESS, BOUNDED, LOSSLESS)):
        row.tier = tier
    draft.store(draft.find(TASK, task=1), write_table(rows, generator))
    draft.store(piece, write_blocks([own[3]]))
    draw = random.Random('tiers mixed')
    links = [write_plain_link([bytes(draw.randrange(256) for _ in range(tensor.end - tensor.begin)) for tensor in draft.tensors()], 1) for _ in range(2)]
    draft.pieces += [Piece(LINK, 0, 1, 1, 2, write_blocks(links[:1])), Piece(LINK, 0, 1, 4, 1, write_blocks(links[1:]))]
    rehash(draft)


@mutant('equal', 'bounded-dw')
def role_without_rows(draft):
    """the rows of role other taken out, and the head ends before its tensor"""
    generator, tensors, where = draft.generator(), draft.tensors(), fields(draft)
    k, gone = generator.k, generator.roles[2]
    assert gone and [t for t in generator.modelled if generator.treatment[t] == 2] == [4]
    runs, numbers = read_head(draft)
    own = sum(count for count, _ in runs[:-gone])
    draft.store(draft.find(HEAD), write_head(runs[:-gone], numbers[:own]))
    draft.find(HEAD).count = 4
    order = sorted(where.items(), key=lambda item: item[1]) + [('end', len(draft.raw(draft.find(GENERATOR))))]
    raw = draft.raw(draft.find(GENERATOR))
    out = raw[:where['treatment']]
    for (name, start), (_, end) in zip(order, order[1:]):
        data = raw[start:end]
        if name == 'K_other':
            data = varint(0)
        elif name in ('correction step', 'head step', 'V3', 'S', 'b3'):
            width = (2 if name == 'V3' else 4) * k
            data = b''.join(data[i:i + width - width // k * gone] for i in range(0, len(data), width))
        out += data
    for piece in [p for p in draft.pieces if p.kind == TASK]:
        rows = table_of(draft, piece.task)
        for row in rows:
            row.corrections = row.corrections[:k - gone]
        draft.store(piece, write_table(rows, reader.Generator(out, tensors)))
    draft.store(draft.find(GENERATOR), out)
    rehash(draft)


def extremes(draft):
    """The largest integers times steps as large and as small as codes and dtypes allow."""
    for task in range(2):
        piece, generator, tensors = draft.find(RESIDUAL, task=task), draft.generator(), draft.tensors()
        codes = [[640, -640, 640, -640], [320, 0, -320, 111], [-100, -200, -300, -400]]
        draft.store(piece, write_blocks([write_block([
            Coded(t, code, 224, ([32767, -32768, 1, -1, 0] * tensors[t].elements)[:tensors[t].elements])
            for t, code in zip(generator.modelled, own) if t not in row.exceptions]) for row, own in zip(table_of(draft, task), codes)]))
    rehash(draft)


def smallest_steps(draft):
    """Steps of exactly 2^-126, the smallest normal number."""
    draft.edit(GENERATOR, at(fields(draft)['s_t'], floats(*[2.0 ** -126, 2.0 ** -127 * 2, 2.0 ** -86, 2.0 ** -100])))
    for task in range(2):
        generator, tensors = draft.generator(), draft.tensors()
        draft.store(draft.find(RESIDUAL, task=task), write_blocks([write_block([
            Coded(t, code, 30, [i % 9 - 4 for i in range(tensors[t].elements)]) for t, code in zip(generator.modelled, (0, 0, -640, -416))
            if t not in row.exceptions]) for row in table_of(draft, task)]))
    rehash(draft)


def both_ends(context, lowest, highest, trellis_flag):
    """Symbols at both ends of what is allowed, in every checkpoint."""
    def change(draft):
        for task in range(2):
            draft.store(draft.find(RESIDUAL, task=task), write_blocks([write_block(Block(trellis_flag, [
                Coded(t, -200, context, ([lowest, highest, 0, highest, lowest, 1] * draft.tensors()[t].elements)[:draft.tensors()[t].elements])
                for t in draft.generator().modelled if t not in row.exceptions])) for row in table_of(draft, task)]))
        rehash(draft)
    return change


def trellis_streams(draft):
    """A tensor in two streams, of more than 65,536 symbols."""
    draw = random.Random('trellis streams')
    made = [write_block(Block(1, [Coded(t, -30, context, [round(draw.gauss(0, spread)) for _ in range(draft.tensors()[t].elements)])
                                  for t, (context, spread) in zip(draft.generator().modelled, choice)]))
            for choice in (((57, 0.57), (70, 3.0), (56, 0.5)), ((120, 60.0), (58, 0.6), (200, 900.0)))]
    draft.store(draft.find(RESIDUAL), write_blocks(made))
    rehash(draft)


simple('trellis-streams', 'equal', 'a trellis that goes on from one stream into the next, and starts anew every 65,536 symbols', trellis_streams, 'bounded-streams')
for name, what, context, lowest, highest, flag in (
        ('trellis-both-ends', 'symbols of -16384 and 16383 in a trellis', 57, -16384, 16383, 1),
        ('trellis-both-ends-rounded', 'symbols of -16384 and 16383 in context 56, with the trellis flag', 56, -16384, 16383, 1),
        ('residual-both-ends', 'integers of -32768 and 32767', 210, -32768, 32767, 0)):
    simple(name, 'equal', what, both_ends(context, lowest, highest, flag), 'bounded-none')
for name, what, context, lowest, highest, flag in (
        ('residual-highest-integer', 'an integer of 32768, without trellis', 210, -1, 32768, 0),
        ('residual-lowest-integer', 'an integer of -32769, without trellis', 20, -32769, 1, 0)):
    simple(name, 'corrupt', what, lambda draft, context=context, lowest=lowest, highest=highest: draft.store(draft.find(RESIDUAL), write_blocks([write_block([
        Coded(t, -200, context, ([lowest, highest] * draft.tensors()[t].elements)[:draft.tensors()[t].elements]) for t in draft.generator().modelled])] * 3)), 'bounded-none')
simple('residual-extremes', 'equal', 'residuals of the largest and smallest codes and integers', extremes, 'bounded-none')
simple('residual-step-smallest', 'equal', 'steps of 2^-126: denormal results', smallest_steps, 'bounded-none')
for name, what, scale, code in (
        ('residual-step-denormal', 'a step that is denormal', 2.0 ** -126, -1), ('residual-step-zero', 'a step that is 0', 2.0 ** -126, -640),
        ('residual-step-infinite', 'a step that is infinite', 3e38, 16), ('residual-weight-infinite', 'a residual that makes a weight infinite', 2.0 ** 100, 320)):
    simple(name, 'corrupt', what, lambda draft, scale=scale, code=code: (
        draft.edit(GENERATOR, at(fields(draft)['s_t'], floats(scale))), parts(lambda own: setattr(own[0], 'code', code), 0, 0)(draft)), 'bounded-none')


# Texts (4.2)

def pools(draft, task):
    """How many texts the group shares, and how many a task part can name."""
    count = {piece.task: len(texts_of(draft, piece)) for piece in draft.pieces if piece.kind == TEXTS}
    return count[NONE], count[NONE] + count.get(task, 0)


@mutant('good', 'texts-shared')
def texts_unshared(draft):
    """what tasks share is stored with each of them"""
    shared = draft.find(TEXTS, task=NONE)
    draft.pieces.remove(shared)
    for task in range(2):
        own = draft.find(TEXTS, task=task)
        draft.store(own, write_texts(texts_of(draft, shared) + texts_of(draft, own)))


@mutant('good', 'texts-shared')
def texts_all_shared(draft):
    """all texts are shared, though only one task has use for them"""
    shared, first, second = (draft.find(TEXTS, task=task) for task in (NONE, 0, 1))
    here, more = pools(draft, 0)[0], len(texts_of(draft, first))
    draft.store(shared, write_texts([text for piece in (shared, first, second) for text in texts_of(draft, piece)]))
    draft.pieces.remove(first)
    draft.pieces.remove(second)

    def change(rows):
        for row in rows:
            row.header += more * (row.header > here)
            row.side = [tuple(n + more * (n >= here) for n in pair) for pair in row.side]
    table(change, 1)(draft)


@mutant('good', 'lossless-large')
def texts_empty(draft):
    """texts sections, shared and own, of no texts"""
    draft.pieces += [Piece(TEXTS, 0, NONE, data=b'\0'), Piece(TEXTS, 0, 0, data=b'\0')]


for name, what, change in (
        ('texts-shared-missing', 'no shared texts', lambda draft: draft.pieces.remove(draft.find(TEXTS, task=NONE))),
        ('texts-own-missing', 'no texts of a task', lambda draft: draft.pieces.remove(draft.find(TEXTS, task=0))),
        ('texts-shared-cut', 'shared texts that are cut off', lambda draft: draft.edit(TEXTS, lambda raw: raw[:-1], task=NONE)),
        ('texts-shared-long', 'a byte after the shared texts', lambda draft: draft.edit(TEXTS, lambda raw: raw + b'\0', task=NONE)),
        ('texts-shared-hash', "the shared texts' hash is wrong", lambda draft: set_(draft.find(TEXTS, task=NONE), hash=1)),
        ('texts-shared-twice', 'two sections of shared texts', lambda draft: draft.pieces.append(dataclasses.replace(draft.find(TEXTS, task=NONE), first=1))),
        ('texts-shared-count', 'a section of shared texts with a count', lambda draft: set_(draft.find(TEXTS, task=NONE), count=1)),
        ('texts-no-group', 'texts of no group', lambda draft: set_(draft.find(TEXTS, task=NONE), group=NONE)),
        ('texts-shared-one-less', "one shared text less, so that numbers of a task's own mean others", lambda draft: draft.store(
            draft.find(TEXTS, task=NONE), write_texts(texts_of(draft, draft.find(TEXTS, task=NONE))[:-1]))),
        ('text-header-beyond', 'a header text beyond both pools', lambda draft: table(on(0, header=pools(draft, 1)[1] + 1))(draft)),
        ('text-header-huge', 'header text 2^64 - 2', lambda draft: table(on(0, header=2**64 - 1))(draft)),
        ('text-name-beyond', "a side file's name beyond both pools", lambda draft: table(on(0, side=[(pools(draft, 1)[1], 0)]))(draft)),
        ('text-file-beyond', 'a side file beyond both pools', lambda draft: table(on(0, side=[(0, pools(draft, 1)[1])]))(draft)),
        ('text-file-huge', 'a side file of number 2^64 - 1', lambda draft: table(on(0, side=[(0, 2**64 - 1)]))(draft)),
        ('text-header-shared', "a header text among the shared ones, which is none", lambda draft: table(on(0, header=1))(draft))):
    simple(name, 'corrupt', what, change, 'texts-shared')


# Lossless links (4.12, 4.14)

def coded_of(draft):
    return [tensor for tensor in draft.tensors() if tensor.dtype in reader.MODELLED]


def write_link(taps, profiles, tensors, elements, odd=None, packed=False):
    """A link. `tensors`: lossless.Tensor with method, profile (its number) and level; `elements`: the bits of each. `odd` may change the plan's columns."""
    some = [(t, bits) for t, bits in zip(tensors, elements) if t.count]
    plain = frames = b''
    plan = dict(profiles=varint(len(profiles)) + b''.join(b''.join(signed(w) for w in weights) + bytes([len(more)]) + struct.pack(f'{len(more)}b', *more)
                                                          for weights, more in profiles), methods=b'', levels=b'', sizes=[], lows=[])
    level = dict.fromkeys(lossless.FORMATS, 0)
    for t, bits in some:
        plan['methods'] += varint({'plain': 0, 'grouped': 1 + 2 * (t.number or 0), 'modelled': 2 + 2 * (t.number or 0)}[t.method])
        if t.method == 'modelled':
            plan['levels'] += signed(t.level - level[t.dtype])
            level[t.dtype] = t.level
        size = t.width // 8
        if t.method == 'plain':
            plain += bits.astype(f'<u{size}').tobytes()
        for first in range(0, t.count if t.method == 'grouped' else 0, lossless.FRAME):
            part = bits[first:first + lossless.FRAME]
            difference = lossless.wrap(lossless.fold(t, 0, part) - lossless.fold(t, 0, lossless.predict(t, t.profile, first, len(part))), t.width)
            stored = numpy.where(difference < 0, -2 * difference - 1, 2 * difference).astype(f'<u{size}')
            frame = zstd(numpy.frombuffer(stored.tobytes(), numpy.uint8).reshape(-1, size).T.tobytes())
            frames, plan['sizes'] = frames + frame, [*plan['sizes'], len(frame)]
    bits_of = {id(t): bits for t, bits in some}
    for block in lossless.cut_blocks([t for t, _ in some]):
        stream, low = code_block(block, bits_of)
        frames, plan['sizes'], plan['lows'] = frames + stream + low, [*plan['sizes'], len(stream)], [*plan['lows'], len(low)]
    if odd:
        odd(plan)
    data = plan['profiles'] + plan['methods'] + plan['levels'] + b''.join(map(varint, plan['sizes'] + plan['lows'])) + plan.get('tail', b'')
    stored = zstd(data) if packed else data
    return bytes([taps]) + varint(plan.get('size', len(data))) + varint(plan.get('packed', len(stored) if packed else 0)) + stored + plain + frames


def low_bits(t, u, high, lift):
    """(bits, number) of what a high integer lacks."""
    m = t.mantissa
    if high == 0 and lift > m:
        z = lift - m + 1 - (u >> m)
        i = z.bit_length() - 1
        return [(i + 1, 1 << i), (i, z - (1 << i)), (m, u & (1 << m) - 1)]
    size = min(lift, max(m + 1 - high.bit_length(), 0))
    rest = u - (lift - size << m) - (high << size)
    assert 0 <= rest < 1 << size
    return [(size, rest)]


def pack_bits(numbers):
    out, value, size = bytearray(), 0, 0
    for bits, number in numbers:
        value, size = value | number << size, size + bits
        while size >= 8:
            out.append(value & 255)
            value, size = value >> 8, size - 8
    return bytes(out) + bytes([value] * (size > 0))


def code_block(block, bits_of):
    """A stream and low bits."""
    predicted, folded, low = [], [], []
    for t, first, count in block:
        lift = max(t.level // 8, 8) - 8
        own = bits_of[id(t)][first:first + count]
        predicted.append(lossless.fold(t, lift, lossless.predict(t, t.profile, first, count)))
        folded.append(lossless.fold(t, lift, own))
        for bits, f in zip(own.tolist(), folded[-1].tolist()):
            low += low_bits(t, bits & (1 << t.width - 1) - 1, f if f >= 0 else ~f, lift)
    context = numpy.concatenate([lossless.contexts(t, p) for (t, _, _), p in zip(block, predicted)])
    symbols = lossless.wrap(numpy.concatenate(folded) - numpy.concatenate(predicted), 32)[numpy.argsort(context, kind='stable')]
    numbers, counts = numpy.unique(context, return_counts=True)
    return encode(list(zip(counts.tolist(), numbers.tolist())), symbols.tolist()), pack_bits(low)


def link_tensor(tensor, taps, method='plain', number=None, profiles=(), level=0):
    t = lossless.Tensor(tensor.dtype, tensor.elements, taps)
    t.method, t.number, t.level = method, number, level
    t.profile = None
    if number is not None and number < len(profiles):
        t.profile = lossless.Profile.__new__(lossless.Profile)
        weights, t.profile.corrections = profiles[number]
        t.profile.weights = [w + (0 if k else lossless.UNIT) for k, w in enumerate(weights)]
    return t


def write_plain_link(data, taps):
    """Of tensors that are all coded, as they are."""
    return bytes([taps]) + varint(1 + len(data)) + b'\0' + bytes(1 + len(data)) + b''.join(data)


def open_links(draft, task):
    """(rows, their data, what the basis decodes for each or None) as the second reader has them."""
    with tempfile.NamedTemporaryFile(suffix='.icma') as file:
        file.write(draft.build())
        file.flush()
        with reader.open(file.name) as archive:
            rows = [row for row in archive.checkpoints(draft.names[task].decode())]
            data = [row.part.original(row) for row in rows]
            models = []
            for row in rows:
                part, generator = row.part, row.part.group.generator
                models.append(b''.join(
                    generator.weights(part.group.head(), t, part.coefficients(row)) if generator.treatment[t] < 3 else bytes(tensor.end - tensor.begin)
                    for t, tensor in enumerate(part.group.tensors)) if generator.kind else None)
    return rows, data, models


def relinked(make, task=None, taps=None):
    """All links of an archive written again: make(tensors, their bits, number of taps, number of the checkpoint) gives one. `taps` changes the table first."""
    def change(draft):
        for piece in [p for p in draft.pieces if p.kind == LINK and task in (None, p.task)]:
            rows, data, models = open_links(draft, piece.task)
            if taps:
                table(lambda rows: [setattr(row, 'taps', n) for row, n in zip(rows, taps(len(rows)))], piece.task)(draft)
                for row, n in zip(rows, taps(len(rows))):
                    row.taps = n
            links = []
            for i, row in enumerate(rows):
                own = [data[i + k] for k in range(1, row.taps + 1)] + [models[i]] * (models[i] is not None)
                coded = coded_of(draft)
                tapped = [(tensor, [lossless.load(tensor.dtype, tap[tensor.begin:tensor.end]) for tap in own]) for tensor in coded]
                links.append(make(tapped, [lossless.load(tensor.dtype, data[i][tensor.begin:tensor.end]) for tensor in coded], len(own), i))
            draft.store(piece, write_blocks(links))
            piece.first, piece.count = 0, len(rows)
    return change


def all_plain(tensors, elements, taps, number):
    return write_link(taps, [], [link_tensor(tensor, own) for tensor, own in tensors], elements)


def at_random(seed, least=0):
    """Links with methods, profiles and levels at random."""
    draw = random.Random(f'links {seed}')

    def make(tensors, elements, taps, number):
        profiles = [([draw.choice((0, -4096, 4096, draw.randint(-5000, 5000), draw.choice((-1, 1)) << 20)) for _ in range(taps)],
                     [draw.choice((0, draw.randint(-30, 30), 127, -128)) for _ in range(draw.randrange(9))])
                    for _ in range(draw.randint(1, sum(tensor.elements > 0 for tensor, _ in tensors)))]
        coded = []
        for tensor, own in tensors:
            method, profile = draw.choice(('plain', 'grouped', 'modelled', 'modelled')), draw.randrange(len(profiles))
            levels = lossless.FORMATS[tensor.dtype][2]
            coded.append(link_tensor(tensor, own, method, profile, profiles, draw.choice((draw.randrange(levels), draw.randrange(levels // 2, levels), 0, levels - 1))))
        return write_link(taps, profiles, coded, elements, packed=draw.random() < 0.5)
    return make


def down(n):
    """Numbers of taps of a chain of n with one anchor."""
    return [min(3, n - 1 - i) for i in range(n)]


for base in ('lossless-chain', 'lossless-basis', 'lossless-one'):
    simple(f'links-plain-{base[9:]}', 'good', 'links of plain tensors only', relinked(all_plain), base)
for seed, base in enumerate(('lossless-chain', 'lossless-basis', 'lossless-one') * 4):
    simple(f'links-random-{seed}', 'good', 'the same files in links with methods, profiles and levels at random', relinked(at_random(seed)), base)
simple('links-no-taps', 'good', 'every checkpoint an anchor', relinked(at_random('anchors'), taps=lambda n: [0] * n), 'lossless-chain')
simple('links-one-chain', 'good', 'one chain, with one anchor', relinked(at_random('chain'), taps=down), 'lossless-chain')
simple('links-one-chain-basis', 'good', 'one chain, with one anchor, and what the basis decodes', relinked(at_random('basis'), taps=down), 'lossless-basis')
simple('links-one-tap', 'good', 'never more than one tap, and anchors among them', relinked(at_random('one'), taps=lambda n: [int(i % 3 < 2 and i < n - 1) for i in range(n)]), 'lossless-chain')
simple('links-fall', 'good', 'numbers of taps that fall by more than one towards the anchor', relinked(
    at_random('fall'), taps=lambda n: [0, 0, 1, 1, 1, 0, 0] if n > 2 else [0, 0]), 'lossless-chain')


@mutant('good', 'lossless-chain')
def links_in_pieces(draft):
    """link sections of two checkpoints, of four and of one"""
    own = read_blocks(draft, 0, LINK)
    draft.pieces.remove(draft.find(LINK, task=0))
    draft.pieces += [Piece(LINK, 0, 0, first, count, write_blocks(own[first:first + count])) for first, count in ((0, 2), (2, 4), (6, 1))]


@mutant('good', 'lossless-basis')
def links_without_exceptions(draft):
    """no exceptions in the table, which have no meaning"""
    for task in range(3):
        table(lambda rows: [setattr(row, 'exceptions', []) for row in rows], task)(draft)


@mutant('good', 'lossless-basis')
def links_all_exceptions(draft):
    """all modelled tensors are exceptions, which have no meaning"""
    for task in range(3):
        table(lambda rows: [setattr(row, 'exceptions', list(draft.generator().modelled)) for row in rows], task)(draft)


@mutant('good', 'lossless-chain')
def lossless_among_verbatim(draft):
    """a checkpoint of tier verbatim after the anchor of a chain, which keeps everything as it was"""
    rows, data, _ = open_links(draft, 0)
    generator, piece, own = draft.raw(draft.find(GENERATOR)), draft.find(LINK, task=0), read_blocks(draft, 0, LINK)
    where = fields(draft)
    draft.store(draft.find(GENERATOR), generator[:where['treatment']] + b'\3' * len(draft.tensors()))
    for task in range(2):
        piece_of = draft.find(TASK, task=task)
        again = reader.read_table(reader.Cursor(draft.raw(piece_of), ''), piece_of.count, reader.Generator(generator, draft.tensors()), 0)
        for row in again:
            row.exceptions = []
        if task == 0:
            again[6].tier, again[6].taps = KEPT, 0
            for row, n in zip(again, (0, 0, 0, 2, 1, 0)):
                row.taps = n
        draft.store(piece_of, write_table(again, draft.generator()))
    coded = coded_of(draft)

    def link(i, n):
        own = [data[i + k] for k in range(1, n + 1)]
        return all_plain([(t, [lossless.load(t.dtype, tap[t.begin:t.end]) for tap in own]) for t in coded], [lossless.load(t.dtype, data[i][t.begin:t.end]) for t in coded], n, i)
    draft.store(piece, write_blocks([link(i, n) for i, n in enumerate((0, 0, 0, 2, 1, 0))]))
    piece.count = 6
    draft.store(draft.find(VERBATIM, task=0), verbatim_of(draft, table_of(draft, 0), data))


def verbatim_of(draft, rows, data):
    """A verbatim section over all checkpoints."""
    out, generator = b'', draft.generator()
    for t, tensor in enumerate(draft.tensors()):
        keep = b''.join(data[row.number][tensor.begin:tensor.end] for row in rows if (
            tensor.dtype not in reader.MODELLED if row.tier == LOSSLESS else generator.treatment[t] == 3 or t in row.exceptions))
        out += bytes(keep[e + b] for b in range(tensor.width) for e in range(0, len(keep), tensor.width))
    return out


def link(**values):
    return lambda draft: set_(draft.find(LINK, task=0), **values)


def links(change, task=0):
    """A change of the list of a task's links."""
    def change_draft(draft):
        piece, own = draft.find(LINK, task=task), read_blocks(draft, task, LINK)
        assert write_blocks(own) == draft.raw(piece)
        draft.store(piece, write_blocks(change(own)))
    return change_draft


def one_link(change, number=0):
    """A change of one link's bytes."""
    def change_links(own):
        own[number] = change(own[number])
        return own
    return links(change_links)


def raw_links(change):
    return lambda draft: draft.edit(LINK, change, task=0)


def taps_of(number, taps):
    return table(on(number, taps=taps), 0)


for name, what, change in (
        ('link-missing', 'no links', lambda draft: draft.pieces.remove(draft.find(LINK, task=0))),
        ('link-short', 'a link section without its last byte', raw_links(lambda raw: raw[:-1])),
        ('link-long', 'a link section with a byte more', raw_links(lambda raw: raw + b'\0')),
        ('link-sizes-cut', 'a link section that ends within its sizes', raw_links(lambda raw: raw[:5])),
        ('link-sizes-alone', 'a link section of sizes only, all 0', raw_links(lambda raw: bytes(7))),
        ('link-size-huge', 'a link of 2^64 - 1 bytes', raw_links(lambda raw: b'\xff' * 9 + b'\1' + raw[2:])),
        ('link-sizes-other', 'the first link a byte longer, the second a byte shorter', lambda draft: raw_links(
            lambda raw, own=read_blocks(draft, 0, LINK): b''.join(varint(len(b) + more) for b, more in zip(own, (1, -1, 0, 0, 0, 0, 0))) + b''.join(own))(draft)),
        ('link-size-less', 'a size that is one less', lambda draft: raw_links(
            lambda raw, own=read_blocks(draft, 0, LINK): b''.join(varint(len(b) - (i == 6)) for i, b in enumerate(own)) + b''.join(own))(draft)),
        ('link-one-missing', 'a link less than there are lossless checkpoints', links(lambda own: own[:-1])),
        ('link-one-more', 'a link more than there are lossless checkpoints', links(lambda own: [*own, own[-1]])),
        ('link-empty', 'a link of no bytes', one_link(lambda data: b'', 2)),
        ('link-swapped', 'two links swapped', links(lambda own: [*own[1::-1], *own[2:]])),
        ('link-beyond', 'a link section over more checkpoints than there are', link(count=8)),
        ('link-range', 'a link section that ends too soon', link(count=6)),
        ('link-late', 'a link section that starts at the second checkpoint', link(first=1, count=6)),
        ('link-range-short', 'links of all but the last checkpoint', lambda draft: (links(lambda own: own[:-1])(draft), link(count=6)(draft))),
        ('link-range-late', 'links of all but the first checkpoint', lambda draft: (links(lambda own: own[1:])(draft), link(first=1, count=6)(draft))),
        ('link-overlap', 'two link sections of one checkpoint', lambda draft: draft.pieces.append(dataclasses.replace(draft.find(LINK, task=0), first=6, count=1))),
        ('link-outside', 'a link section of checkpoints after the last', lambda draft: draft.pieces.append(dataclasses.replace(draft.find(LINK, task=0), first=7))),
        ('link-count-none', 'a link section of no checkpoints', link(count=0)),
        ('link-owner', 'a link section that belongs to no task', link(task=NONE)),
        ('link-group', 'a link section that belongs to no group', link(group=NONE)),
        ('link-hash', "a link section's hash is wrong", link(hash=1)),
        ('link-optional', 'a damaged link section with the optional flag', link(hash=1, flags=1)),
        ('taps-4', 'four taps', taps_of(2, 4)),
        ('taps-255', '255 taps', taps_of(0, 255)),
        ('taps-steep', 'two taps, where the next checkpoint has none', taps_of(1, 2)),
        ('taps-steeper', 'three taps, where the next checkpoint has one', taps_of(4, 3)),
        ('taps-beyond', 'a tap beyond the end: the last checkpoint has one', taps_of(6, 1)),
        ('taps-beyond-all', 'three taps of the last checkpoint', taps_of(6, 3)),
        ('taps-less', 'a tap less than the link says', taps_of(3, 2)),
        ('taps-more', 'a tap more than the link says', taps_of(2, 1)),
        ('taps-missing', 'a table without numbers of taps', raw_table(lambda raw: raw[:14] + raw[21:], 0)),
        ('taps-through', 'a chain through a checkpoint that is not lossless', table(on(4, tier=BOUNDED, bound=(1, 0.5)), 0)),
        ('taps-through-verbatim', 'a chain through a checkpoint of tier verbatim', table(on(5, tier=KEPT), 0)),
        ('taps-of-itself', 'the same link for the next checkpoint too', links(lambda own: [own[0], own[0], *own[2:]])),
        ('lossless-exception', 'an exception that is not modelled', table(on(0, exceptions=[7]), 0)),
        ('lossless-hash', "a lossless file's hash is wrong", table(on(3, hash=1), 0)),
        ('lossless-verbatim-missing', 'no verbatim section', lambda draft: draft.pieces.remove(draft.find(VERBATIM, task=0))),
        ('lossless-verbatim-short', 'verbatim bytes that end too soon', lambda draft: draft.edit(VERBATIM, lambda raw: raw[:-1], task=0)),
        ('taps-of-bounded', 'an anchor that is bounded instead', table(on(6, tier=BOUNDED, bound=(1, 0.5)), 0)),
        ('link-and-residual', 'a residual section of lossless checkpoints', lambda draft: draft.pieces.append(Piece(RESIDUAL, 0, 0, 0, 7, bytes(7))))):
    simple(name, 'corrupt', what, change, 'lossless-chain')
simple('link-swapped-tasks', 'corrupt', "a task's links are another's", lambda draft: (
    link(task=99)(draft), set_(draft.find(LINK, task=1), task=0), set_(draft.find(LINK, task=99), task=1)), 'lossless-basis')
for base, what in (('basis-given', 'latent'), ('bounded-dw', 'bounded'), ('none', 'verbatim')):
    simple(f'link-of-{what}-alone', 'corrupt', f'a link section whose checkpoints are all of tier {what}',
           lambda draft: draft.pieces.append(Piece(LINK, 0, 0, 0, draft.find(TASK, task=0).count, b'?')), base)
simple('verbatim-of-nothing', 'corrupt', 'a verbatim section of lossless checkpoints that keep nothing verbatim',
       lambda draft: draft.pieces.append(Piece(VERBATIM, 0, 0, 0, 3, b'?')), 'lossless-large')
simple('taps-model', 'corrupt', 'a link with a tap less than there are with what the basis decodes', one_link(lambda data: bytes([data[0] - 1]) + data[1:]), 'lossless-basis')
simple('lossless-latent-other', 'corrupt', 'another latent: what the basis decodes is no longer the tap', table(lambda rows: [
    row.latents.__setitem__(0, 2**22) for row in rows], 0), 'lossless-basis')
simple('lossless-coefficients', 'corrupt', 'numbers of S so large that a coefficient of a lossless checkpoint is not finite', large_skip, 'lossless-basis')
simple('lossless-weights', 'corrupt', 'scales so large that a weight of a tap is not finite', trunk('s_t', floats(*[3e38] * 4)), 'lossless-basis')
simple('link-bits', 'corrupt', 'another bit at the end of a link: the decoded file does not have its hash', one_link(lambda data: flip(len(data) - 2)(data)), 'lossless-one')


# Links, damaged one by one: of one checkpoint, whose tensors have these methods

def crafted(verdict, name, what, odd=None, methods=('modelled', 'grouped', 'plain', 'modelled'), levels=(1201, 0, 0, 100), profiles=(([], [3]), ([], [])), taps=0,
            after=lambda data: data, packed=False):
    def change(draft):
        def make(tensors, elements, count, number):
            coded = [link_tensor(tensor, own, method, i % 2, profiles, level) for i, ((tensor, own), method, level) in enumerate(zip(tensors, methods, levels))]
            return after(write_link(taps, list(profiles), coded, elements, odd, packed))
        relinked(make)(draft)
    simple(name, verdict, what, change, 'lossless-one')


def column(name, change):
    return lambda plan: plan.__setitem__(name, change(plan[name]))


def listed(name, index, more):
    return column(name, lambda own: [size + more * (i == index % len(own)) for i, size in enumerate(own)])


for verdict, name, what, odd in (
        ('good', 'link-crafted', 'a link of tensors that are modelled, grouped, plain and modelled', None),
        ('corrupt', 'link-taps', 'a number of taps where there are none', dict(after=at(0, b'\1'))),
        ('corrupt', 'link-taps-9', 'nine taps', dict(after=at(0, b'\x09'))),
        ('corrupt', 'link-plan-huge', 'a plan of 2^64 - 1 bytes', lambda plan: plan.update(size=2**64 - 1)),
        ('corrupt', 'link-plan-most', 'a plan of more bytes than its tensors can need', dict(odd=lambda plan: plan.update(tail=bytes(800)))),
        ('corrupt', 'link-plan-long', 'a plan with a byte more', lambda plan: plan.update(tail=b'\0')),
        ('corrupt', 'link-plan-short', 'a plan that is a byte shorter', lambda plan: plan.update(lows=plan['lows'][:-1])),
        ('corrupt', 'link-plan-none', 'a plan of no bytes', lambda plan: plan.update(size=0)),
        ('good', 'link-plan-packed', 'a plan in a zstd frame', dict(packed=True)),
        ('corrupt', 'link-plan-packed-other', 'a plan in a zstd frame of another size', dict(packed=True, odd=lambda plan: plan.update(size=5))),
        ('corrupt', 'link-plan-packed-huge', 'a packed plan of 2^64 - 1 bytes', lambda plan: plan.update(packed=2**64 - 1)),
        ('corrupt', 'link-plan-packed-not', 'a plan that is no zstd frame, though it says so', lambda plan: plan.update(packed=10)),
        ('good', 'link-profiles-most', 'as many profiles as tensors', dict(profiles=(([], [3]), ([], []), ([], [1] * 8), ([], [-128])))),
        ('corrupt', 'link-profiles-more', 'a profile more than tensors', dict(profiles=(([], [3]),) * 5)),
        ('corrupt', 'link-profiles-huge', '2^64 - 1 profiles', column('profiles', lambda old: b'\xff' * 9 + b'\1' + old[1:])),
        ('corrupt', 'link-profiles-none', 'no profiles, though tensors have some', column('profiles', lambda old: b'\0')),
        ('corrupt', 'link-corrections', 'nine corrections', column('profiles', lambda old: varint(1) + b'\x09' + bytes(9))),
        ('corrupt', 'link-corrections-other', 'another correction: another context', column('profiles', lambda old: varint(2) + b'\1\4\0')),
        ('corrupt', 'link-method', 'a profile that is not there', column('methods', lambda old: varint(6) + old[1:])),
        ('corrupt', 'link-method-grouped', 'a grouped tensor whose profile is not there', column('methods', lambda old: old[:1] + varint(5) + old[2:])),
        ('corrupt', 'link-method-huge', 'method 2^64 - 1', column('methods', lambda old: b'\xff' * 9 + b'\1' + old[1:])),
        ('corrupt', 'link-method-other', 'a modelled tensor that says it is plain', column('methods', lambda old: b'\0' + old[1:])),
        ('corrupt', 'link-level', 'level 2104 of F32', column('levels', lambda old: signed(8 * 263) + old[2:])),
        ('corrupt', 'link-level-half', 'level 312 of F16', column('levels', lambda old: old[:2] + signed(8 * 39))),
        ('corrupt', 'link-level-below', 'level -1', column('levels', lambda old: signed(-1) + old[2:])),
        ('corrupt', 'link-level-huge', 'level 2^63 - 1', column('levels', lambda old: signed(2**63 - 1) + old[2:])),
        ('corrupt', 'link-level-lowest', 'level -2^63', column('levels', lambda old: signed(-2**63) + old[2:])),
        ('corrupt', 'link-level-other', 'another level', column('levels', lambda old: signed(1300) + old[2:])),
        ('corrupt', 'link-frame-size', 'a frame a byte longer', listed('sizes', 0, 1)),
        ('corrupt', 'link-frame-size-less', 'a frame a byte shorter, its block a byte longer', lambda plan: (listed('sizes', 0, -1)(plan), listed('sizes', 1, 1)(plan))),
        ('corrupt', 'link-stream-size', 'a stream two bytes longer', listed('sizes', -1, 2)),
        ('corrupt', 'link-stream-into-low', 'a stream two bytes longer, its low bits two bytes shorter', lambda plan: (listed('sizes', -1, 2)(plan), listed('lows', -1, -2)(plan))),
        ('corrupt', 'link-low-into-stream', 'a stream two bytes shorter, its low bits two bytes longer', lambda plan: (listed('sizes', -1, -2)(plan), listed('lows', -1, 2)(plan))),
        ('corrupt', 'link-stream-huge', 'a stream of 2^64 - 1 bytes', lambda plan: plan.update(sizes=[*plan['sizes'][:-1], 2**64 - 1])),
        ('corrupt', 'link-low-huge', 'low bits of 2^64 - 1 bytes', lambda plan: plan.update(lows=[2**64 - 1])),
        ('corrupt', 'link-sum-wraps', 'sizes whose sum wraps around to the right one', lambda plan: plan.update(sizes=[plan['sizes'][0], plan['sizes'][1] + 2**63], lows=[plan['lows'][0] + 2**63])),
        ('corrupt', 'link-low-cut', 'low bits that end a byte too soon', dict(odd=listed('lows', 0, -1), after=lambda data: data[:-1])),
        ('corrupt', 'link-low-more', 'low bits with a byte more', dict(odd=listed('lows', 0, 1), after=lambda data: data + b'\0')),
        ('corrupt', 'link-low-none', 'no low bits', dict(odd=lambda plan: plan.update(lows=[0]), after=lambda data: data[:-60])),
        ('corrupt', 'link-ends', 'a byte after the link', dict(after=lambda data: data + b'\0')),
        ('corrupt', 'link-cut', "the link's last byte is missing", dict(after=lambda data: data[:-1]))):
    more = odd if isinstance(odd, dict) else dict(odd=odd)
    crafted(verdict, name, what, **more)


def one_modelled(width, level, stream_of, low_of):
    """A link whose first tensor of that width is modelled, as zeros, and whose others are plain."""
    def make(tensors, elements, count, number):
        chosen = next(i for i, (tensor, _) in enumerate(tensors) if 8 * tensor.width == width)
        coded = [link_tensor(tensor, own, 'modelled' if i == chosen else 'plain', 0 if i == chosen else None, [([], [])], level)
                 for i, (tensor, own) in enumerate(tensors)]
        t = coded[chosen]
        context = int(lossless.contexts(t, numpy.zeros(1, numpy.int64))[0])
        stream, low = encode([(t.count, context)], stream_of(t)), low_of(t)
        plan = varint(1) + b'\0' + b''.join(varint(2 * (own is t)) for own in coded) + signed(level) + varint(len(stream)) + varint(len(low))
        plain = b''.join(e.astype(f'<u{own.width // 8}').tobytes() for own, e in zip(coded, elements) if own is not t)
        return b'\0' + varint(len(plan)) + b'\0' + plan + plain + stream + low
    return relinked(make)


for name, what, first in (
        ('link-binade-none', 'the binade of an element has 8 zeros and no number', [(8, 0)]),
        ('link-binade-beyond', 'the binade of an element is 255, which is not there', [(8, 1 << 7), (7, 127)]),
        ('link-binade-last', 'the binade of an element is one beyond the last', [(8, 1 << 7), (7, 254 - 23 + 2 - 128)])):
    simple(name, 'corrupt', what, one_modelled(32, 2103, lambda t: [0] * t.count, lambda t, first=first: pack_bits(
        [*first, (t.mantissa, 0), *[(1, 1), (t.mantissa, 0)] * (t.count - 1)])), 'lossless-one')
simple('link-bits-many', 'corrupt', 'an element of 16 bits without its sign', one_modelled(16, 0, lambda t: [1 << 15] + [0] * (t.count - 1), lambda t: b''), 'lossless-one')
for name, what, weight, verdict in (('link-weight-most', 'a weight of 2^20', 1 << 20, 'good'), ('link-weight-least', 'a weight of -2^20', -(1 << 20), 'good'),
                                    ('link-weight-over', 'a weight of 2^20 + 1', (1 << 20) + 1, 'corrupt'), ('link-weight-under', 'a weight of -2^20 - 1', -(1 << 20) - 1, 'corrupt'),
                                    ('link-weight-huge', 'a weight of 2^63 - 1', 2**63 - 1, 'corrupt')):
    def weighted(tensors, elements, taps, number, weight=weight):
        profiles = [([weight] * taps, [])]
        kept = [([max(-(1 << 20), min(1 << 20, weight))] * taps, [])]
        coded = [link_tensor(tensor, own, 'modelled' if i % 2 else 'grouped', 0, kept, 1500 if tensor.dtype != 'F16' else 200) for i, (tensor, own) in enumerate(tensors)]
        return write_link(taps, profiles, coded, elements)
    simple(name, verdict, what, relinked(weighted), 'lossless-basis')


# Decoders and denoisers (4.3, 4.15, 4.16)

@dataclasses.dataclass
class Conv:
    """A generator payload of kind 2: `front` is what comes before d; of a decoder's numbers there are either arrays, or codes, contexts and symbols a vector."""
    front: bytes
    d: int
    m: int
    c: int
    m_g: int
    projection: bytes
    prior: int
    steps: bytes
    coding: int
    inputs: int
    start: int
    layers: int
    width: int
    channels: list
    outputs: int
    biases: list = None
    weights: list = None
    codes: list = None
    contexts: list = None
    symbols: list = None
    sizes: list = None
    denoiser: list = None

    def shapes(self):
        inner = [(self.width * before, after) for before, after in zip(self.channels, [*self.channels[1:], self.outputs])]
        return [(self.inputs, self.start * self.channels[0]), *inner]

    def vectors(self):
        """How many numbers each has."""
        return [count for l, (rows, columns) in enumerate(self.shapes()) for count in ([rows] * columns if l else [columns] * rows) + [columns]]

    def before(self):
        """What comes before the decoder."""
        return self.front + varint(self.d) + varint(self.m) + varint(self.c) + varint(self.m_g) + self.projection + bytes([self.prior]) + self.steps

    def write(self):
        out = self.before() + bytes([self.coding]) + b''.join(map(varint, (self.inputs, self.start, self.layers, self.width, *self.channels, self.outputs)))
        if self.coding == 2:
            codes = [0, *self.codes]
            streams, numbers = [], [symbol for vector in self.symbols for symbol in vector]
            for runs in reader.cut([(len(vector), context if context < rans.CONTEXTS else 0) for vector, context in zip(self.symbols, self.contexts)]):
                count = sum(count for count, _ in runs)
                streams.append(encode(runs, numbers[:count]))
                numbers = numbers[count:]
            out += b''.join(signed(b - a) for a, b in zip(codes, codes[1:])) + bytes(self.contexts)
            out += b''.join(map(varint, self.sizes or map(len, streams))) + b''.join(streams)
        else:
            for bias, weights in zip(self.biases, self.weights):
                out += bias.astype('<f4').tobytes()
                out += (weights.astype('<f4').view('<u4') >> 16).astype('<u2').tobytes() if self.coding else weights.astype('<f4').tobytes()
        return out + (b''.join(map(varint, self.denoiser[:3])) + self.denoiser[3] if self.prior else b'')


def read_conv(draft):
    raw, tensors = draft.raw(draft.find(GENERATOR)), draft.tensors()
    cursor, g = reader.Cursor(raw, ''), draft.generator()
    cursor.take(1)
    cursor.varint()
    cursor.take(len(tensors) + 4 * len(g.modelled))
    front = raw[:cursor.at]
    sizes = [cursor.varint() for _ in range(4)]
    out = Conv(front, *sizes, cursor.take(sizes[3] * (sizes[2] + 1)), cursor.u8(), cursor.take(4 * sizes[0]), cursor.u8(), *(cursor.varint() for _ in range(4)),
               [cursor.varint() for _ in range(g.decoder.n + 1)], cursor.varint())
    if out.coding == 2:
        counts, out.codes, out.symbols, code = out.vectors(), [], [], 0
        for _ in counts:
            code += cursor.signed()
            out.codes.append(code)
        out.contexts = list(cursor.take(len(counts)))
        streams = reader.cut(zip(counts, out.contexts))
        numbers = [symbol for runs, size in list(zip(streams, [cursor.varint() for _ in streams])) for symbol in rans.decode(cursor.take(size), runs)]
        for count in counts:
            out.symbols.append(numbers[:count])
            numbers = numbers[count:]
    else:
        out.biases, out.weights = [bias.copy() for bias in g.decoder.biases], [weights.copy() for weights in g.decoder.weights]
        cursor.take(sum(4 * columns + (2 if out.coding else 4) * rows * columns for rows, columns in out.shapes()))
    if out.prior:
        out.denoiser = [cursor.varint() for _ in range(3)] + [raw[cursor.at:]]
    assert out.write() == raw
    return out


def conv(change, again=False):
    """A change of a Conv; `again` computes hashes anew."""
    def change_draft(draft):
        own = read_conv(draft)
        change(own)
        draft.store(draft.find(GENERATOR), own.write())
        if again:
            rehash(draft)
    return change_draft


def having(**values):
    return conv(lambda own: set_(own, **values))


def by(**values):
    """Fields that are other by so much."""
    return conv(lambda own: set_(own, **{name: getattr(own, name) + value for name, value in values.items()}))


def put_in(name, index, where, value):
    """One number of one array, or symbol of one vector."""
    def change(own):
        getattr(own, name)[index][where] = value
    return conv(change)


def denoiser(index, value):
    """A size (index 0, 1, 2), or bytes at a place among the numbers."""
    def change(own):
        if index < 3:
            own.denoiser[index] = value
        else:
            own.denoiser[3] = at(index - 3, value)(own.denoiser[3])
    return conv(change)


@mutant('good', 'conv-f32')
def conv_treatments(draft):
    """a decoder has no roles: every tensor modelled as other"""
    draft.edit(GENERATOR, at(2, bytes([2] * len(draft.tensors()))))


@mutant('good', 'conv-f32')
def conv_two_outputs(draft):
    """a second channel, which nothing needs without residuals"""
    def change(own):
        own.outputs = 2
        own.biases[-1] = numpy.append(own.biases[-1], numpy.float32(-7.5))
        own.weights[-1] = numpy.stack([own.weights[-1][:, 0], numpy.linspace(-9, 3e38, len(own.weights[-1]), dtype=numpy.float32)], axis=1)
    conv(change)(draft)


@mutant('good', 'conv-bounded')
def conv_two_outputs_quantised(draft):
    """a second channel of zeros, quantised: all weights have one class"""
    def change(own):
        own.outputs, last = 2, [len(own.symbols) - 1, own.symbols[-1]]
        own.symbols[last[0]:] = [[0] * len(own.symbols[last[0] - 1]), last[1] + [0]]
        own.codes.insert(last[0], 640)
        own.contexts.insert(last[0], 99)
    conv(change)(draft)


@mutant('good', 'conv-bounded')
def conv_contexts(draft):
    """the same decoder in other contexts"""
    draw = random.Random('conv contexts')
    conv(lambda own: set_(own, contexts=[like(context, draw) for context in own.contexts]))(draft)


@mutant('good', 'conv-f32')
def conv_idle_channel(draft):
    """a channel more, of weights -0, which is taken in with weights 0"""
    def change(own):
        own.channels[1] += 1
        own.biases[1] = numpy.append(own.biases[1], numpy.float32(0))
        own.weights[1] = numpy.append(own.weights[1], numpy.full((len(own.weights[1]), 1), -0.0, numpy.float32), axis=1)
        taps = numpy.split(own.weights[2], own.width)
        own.weights[2] = numpy.concatenate([numpy.append(tap, numpy.zeros((1, tap.shape[1]), numpy.float32), axis=0) for tap in taps])
    conv(change)(draft)


def reclass(draft, task, kept):
    """The symbols of the blocks `kept` again, for the classes that the decoder that is there now predicts."""
    with tempfile.NamedTemporaryFile(suffix='.icma') as file:
        file.write(draft.build())
        file.flush()
        with reader.open(file.name) as archive:
            rows = [row for row in archive.checkpoints(draft.names[task].decode()) if reader.has_block(row, RESIDUAL)]
            found = [row.part.group.generator.classes(row.part.coefficients(row)) for row in rows]
    draft.store(draft.find(RESIDUAL, task=task), write_blocks([write_block(own, classes=[len(set(classes[part.tensor])) for part in own]) for own, classes in zip(kept, found)]))


def network(seed, wild=False, long=False):
    """Another decoder of any architecture, with another prior where that comes, and other latents; some checkpoints of tier generate."""
    def change(draft):
        draw, noise = random.Random(f'network {seed}'), numpy.random.RandomState(seed)
        weights = sum(tensor.elements for tensor, treatment in zip(draft.tensors(), draft.generator().treatment) if treatment < 3)

        def make(own):
            own.prior, own.coding = draw.randrange(2) if own.d else 0, 2 if long else draw.randrange(3)
            own.layers = 2 if long else draw.choice((1, 2, 3)) if wild else draw.choice((1, 2, 3, 5, 8, 16))
            own.width = 7 if long else draw.choice((1, 3, 5, 9, 31)) if own.layers < 8 else draw.choice((1, 3, 7))
            own.start = -(-weights >> own.layers)
            own.channels = [1, 200, 190] if long else [draw.randint(1, 5 if own.layers < 8 else 2) for _ in range(own.layers + 1)]
            own.outputs = draw.randint(1, 2)
            own.inputs = own.d if own.prior else own.d + own.m

            def array(rows, columns, fan=1):
                values = noise.standard_normal((rows, columns)) * 1.4 / math.sqrt(fan)
                if wild:
                    values *= 2.0 ** noise.randint(-12, 7, (rows, columns))
                return numpy.array(values, '<f4').view('<u4') & (0xffff0000 if own.coding == 1 else 0xffffffff)
            own.biases = [numpy.array(array(1, columns)[0]).view('<f4') for _, columns in own.shapes()]
            own.weights = [array(rows, columns, (rows + 1) / 2).view('<f4') for rows, columns in own.shapes()]
            if own.coding == 2:
                counts = own.vectors()
                own.codes = [draw.randint(-60, -30) if wild or long else draw.randint(-45, -30) for _ in counts]
                own.contexts = [draw.randrange(40 if long else rans.CONTEXTS) for _ in counts]
                own.symbols = [[draw.choice((0,) * (60 if long else 3) + (1, -1, 2, -3, 9 if wild else 1)) for _ in range(count)] for count in counts]
            e, h, n = draw.randint(0, 5), draw.randint(1, 9), draw.randint(1, 4)
            own.denoiser = [e, h, n, floats(*(draw.gauss(0, 1) for _ in range(own.d)), *(draw.uniform(0.1, 2) for _ in range(own.d)),
                                            *(draw.gauss(0, 1) for _ in range(n * (2 + e))))]
            for rows, columns in ((own.d + own.m + e, h), (h, h), (h, h), (h, own.d)):
                own.denoiser[3] += (numpy.array(noise.standard_normal(rows * columns), '<f4').view('<u4') >> 16).astype('<u2').tobytes()
                own.denoiser[3] += noise.standard_normal(columns).astype('<f4').tobytes()
            own.steps = floats(*(2.0 ** draw.uniform(-9, 0) for _ in range(own.d)))
        bounded = [p.task for p in draft.pieces if p.kind == RESIDUAL]
        kept = {task: [read_block(draft, data) for data in read_blocks(draft, task)] for task in bounded}
        conv(make)(draft)
        for piece in [p for p in draft.pieces if p.kind == TASK]:
            rows = table_of(draft, piece.task)
            for row in rows:
                if row.tier == LATENT and draw.random() < 0.3:
                    row.tier = GENERATE
                elif row.latents is not None:
                    row.latents = [draw.choice((0, 1, -1, draw.randint(-99, 99), draw.randint(-999, 999))) for _ in row.latents]
            draft.store(piece, write_table(rows, draft.generator()))
        for task in bounded if draft.generator().decoder.outputs == 2 else ():
            reclass(draft, task, kept[task])
        rehash(draft)
    return change


for seed in range(16):
    simple(f'conv-network-{seed}', 'equal', 'another decoder, perhaps a denoiser, and other latents', network(seed), ('conv-f32', 'conv-bf16', 'conv-bounded', 'conv-generate')[seed % 4])
for seed in range(16, 24):
    simple(f'conv-network-{seed}', 'equal', 'the same with numbers of very different magnitudes', network(seed, True), ('conv-f32', 'conv-bf16')[seed % 2])
simple('conv-streams', 'equal', "a decoder of more than 2^18 numbers, so in two streams", network(24, long=True), 'conv-f32')


def as_floats(change):
    """The same decoder with its numbers as f32, and then a change of it."""
    def change_draft(draft):
        own, decoder = read_conv(draft), draft.generator().decoder
        set_(own, coding=0, biases=[bias.copy() for bias in decoder.biases], weights=[weights.copy() for weights in decoder.weights])
        change(own)
        draft.store(draft.find(GENERATOR), own.write())
    return change_draft


def of_variance(value):
    """All weights of the second channel, and its bias."""
    def change(own):
        own.weights[-1][:, 1] = own.biases[-1][1] = value
    return as_floats(change)


def contexts_at(draft, task=1):
    """Where those of a task's first block of all tensors start."""
    cursor = reader.Cursor(read_blocks(draft, task)[0], '')
    assert cursor.varint() < 2
    for _ in draft.generator().modelled:
        cursor.signed()
    return cursor.at


for name, verdict, what, change in (
        ('as-floats', 'good', 'the same decoder as f32', as_floats(lambda own: None)),
        ('infinite', 'corrupt', 'a predicted variance that is not finite', of_variance(numpy.float32(3e38))),
        ('none', 'corrupt', 'all weights of one class: too many contexts', of_variance(numpy.float32(0))),
        ('one-output', 'corrupt', 'no second channel: too many contexts', as_floats(lambda own: set_(own, outputs=1, biases=[*own.biases[:-1], own.biases[-1][:1]],
                                                                                                      weights=[*own.weights[:-1], own.weights[-1][:, :1]]))),
        ('context-missing', 'corrupt', 'a class without context', lambda draft: block(lambda data, at=contexts_at(draft): data[:at] + data[at + 1:])(draft)),
        ('context-over', 'corrupt', 'a class of context 225', lambda draft: block(lambda data, at=contexts_at(draft): data[:at + 1] + b'\xe1' + data[at + 2:])(draft)),
        ('contexts-swapped', 'corrupt', 'contexts of two classes the other way round',
         lambda draft: block(lambda data, at=contexts_at(draft): data[:at] + data[at:at + 2][::-1] + data[at + 2:])(draft)),
        ('contexts-cut', 'corrupt', 'a block that ends within its contexts', lambda draft: block(lambda data, at=contexts_at(draft): data[:at + 20])(draft))):
    simple(f'variance-{name}', verdict, what, change, 'conv-variance')


@mutant('equal', 'diffusion')
def diffusion_from_nothing(draft):
    """the same denoiser, with checkpoints of tier generate among those of tier bounded"""
    for piece in [p for p in draft.pieces if p.kind == TASK]:
        rows = table_of(draft, piece.task)
        rows[0].tier = GENERATE
        for section in [p for p in draft.pieces if p.kind == RESIDUAL and p.task == piece.task]:
            blocks = read_blocks(draft, piece.task)
            draft.store(section, write_blocks(blocks[1:]))
        draft.store(piece, write_table(rows, draft.generator()))
    rehash(draft)


NEVER = numpy.float32(numpy.nan)
for name, verdict, what, change in (
        ('latents-over-limit', 'limit', 'd is 1025', having(d=1025)), ('coordinates-over-limit', 'limit', 'm is 1025', having(m=1025)),
        ('condition-over-limit', 'limit', 'C is 2^20 + 1', having(c=2**20 + 1)), ('m-g-over-limit', 'limit', 'm_g is 1025', having(m_g=1025)),
        ('m-g-over', 'corrupt', 'm_g over m', by(m_g=1)), ('condition-none', 'corrupt', 'C is 0 but m_g is not', having(c=0)),
        ('projection', 'corrupt', 'a number of M is -128', conv(lambda own: set_(own, projection=at(1, b'\x80')(own.projection)))),
        ('prior', 'unsupported', 'prior 2', having(prior=2, denoiser=[1, 1, 1, b''])),
        ('prior-other', 'corrupt', 'prior 1 with a decoder for prior 0', having(prior=1, denoiser=[1, 1, 1, b''])),
        ('step-zero', 'corrupt', 'a latent step of 0', conv(lambda own: set_(own, steps=at(0, floats(0))(own.steps)))),
        ('step-negative', 'corrupt', 'a negative latent step', conv(lambda own: set_(own, steps=at(0, floats(-1))(own.steps)))),
        ('coding', 'unsupported', 'coding 3', having(coding=3)),
        ('coding-other', 'corrupt', 'coding 1, but the numbers of coding 0', lambda draft: draft.edit(GENERATOR, at(len(read_conv(draft).before()), b'\1'))),
        ('inputs-over-limit', 'limit', '2049 inputs', having(inputs=2049)), ('inputs-more', 'corrupt', 'an input more than d + m', by(inputs=1)),
        ('inputs-fewer', 'corrupt', 'an input fewer than d + m', by(inputs=-1)),
        ('start-zero', 'corrupt', 'start is 0', having(start=0)), ('start-over-limit', 'limit', 'start is 2^28 + 1', having(start=2**28 + 1)),
        ('start-huge', 'limit', 'start is 2^64 - 1', having(start=2**64 - 1)), ('numbers-over-limit', 'limit', 'more than 2^28 numbers', having(start=2**28)),
        ('layers-zero', 'corrupt', 'N is 0', having(layers=0)), ('layers-over-limit', 'limit', 'N is 17', having(layers=17, channels=[1] * 18)),
        ('width-zero', 'corrupt', 'width is 0', having(width=0)), ('width-even', 'corrupt', 'width is 6', having(width=6)),
        ('width-over-limit', 'limit', 'width is 33', having(width=33)), ('channels-zero', 'corrupt', 'no channels', having(channels=[4, 0, 4, 4])),
        ('channels-over-limit', 'limit', '1025 channels', having(channels=[4, 1025, 4, 4])), ('channels-more', 'corrupt', 'channels without numbers for them', having(channels=[4, 1024, 1024, 4])),
        ('outputs-zero', 'corrupt', 'no outputs', having(outputs=0)), ('outputs-over-limit', 'limit', '3 outputs', having(outputs=3)),
        ('bias-nan', 'corrupt', 'a bias that is NaN', put_in('biases', 1, 0, NEVER)), ('bias-denormal', 'corrupt', 'a denormal bias', put_in('biases', 0, 3, numpy.float32(1e-40))),
        ('weight-nan', 'corrupt', 'a weight that is NaN', put_in('weights', 0, (1, 2), NEVER)), ('weight-infinite', 'corrupt', 'an infinite weight', put_in('weights', 3, (0, 0), numpy.float32(numpy.inf))),
        ('weight-denormal', 'corrupt', 'a denormal weight', put_in('weights', 2, (0, 0), numpy.float32(1e-39))),
        ('weight-other', 'corrupt', 'another weight: the decoded file does not have its hash', put_in('weights', 2, (4, 0), numpy.float32(3))),
        ('output-infinite', 'corrupt', 'weights so large that what is decoded is not finite', conv(lambda own: set_(own, weights=[*own.weights[:3], numpy.full_like(own.weights[3], 3e38)],
                                                                                                                      biases=[*own.biases[:3], numpy.full_like(own.biases[3], 3e38)]))),
        ('trailing', 'corrupt', 'a byte after the decoder', lambda draft: draft.edit(GENERATOR, lambda raw: raw + b'\0')),
        ('cut', 'corrupt', "the decoder's last byte is missing", lambda draft: draft.edit(GENERATOR, lambda raw: raw[:-1])),
        ('no-condition', 'corrupt', 'a task without condition', lambda draft: draft.pieces.remove(draft.find(CONDITION, task=1))),
        ('head', 'corrupt', 'a head in a group with a decoder', lambda draft: draft.pieces.append(Piece(HEAD, 0, NONE, 0, 4, b'1234'))),
        ('tier-verbatim', 'corrupt', 'a checkpoint of tier verbatim', table(on(0, tier=KEPT))),
        ('latent-other', 'corrupt', 'another latent: the decoded file does not have its hash', table(on(1, latents_0=77))),
        ('start-more', 'corrupt', 'a start that is one more than it has to be', conv(lambda own: set_(
            own, start=own.start + 1, biases=[numpy.resize(own.biases[0], own.biases[0].size + own.channels[0]), *own.biases[1:]],
            weights=[numpy.resize(own.weights[0], (own.inputs, own.weights[0].shape[1] + own.channels[0])), *own.weights[1:]]))),
        ('start-less', 'corrupt', 'a start that is one less than it has to be', conv(lambda own: set_(
            own, start=own.start - 1, biases=[own.biases[0][own.channels[0]:], *own.biases[1:]], weights=[own.weights[0][:, own.channels[0]:], *own.weights[1:]]))),
        ('nothing-modelled', 'corrupt', 'no tensor is modelled', lambda draft: draft.edit(GENERATOR, lambda raw: raw[:2] + b'\3' * raw[1] + raw[2 + raw[1] + 4 * raw[1]:]))):
    simple(f'conv-{name}', verdict, what, change, 'conv-f32')

for name, what, change in (
        ('code-over', 'a step code of 641', conv(lambda own: set_(own, codes=[641, *own.codes[1:]]))), ('code-under', 'the last step code is -641', conv(lambda own: set_(own, codes=[*own.codes[:-1], -641]))),
        ('context', 'a context of 225', conv(lambda own: set_(own, contexts=[225, *own.contexts[1:]]))), ('context-last', 'the last context is 255', conv(lambda own: set_(own, contexts=[*own.contexts[:-1], 255]))),
        ('symbol-high', 'a symbol of 16384', put_in('symbols', 0, 0, 16384)), ('symbol-low', 'the last symbol is -16385', put_in('symbols', -1, -1, -16385)),
        ('symbol-other', 'another symbol: the decoded file does not have its hash', put_in('symbols', -1, -1, 1000)),
        ('size-more', 'a stream with more bytes than there are', having(sizes=[10**6])), ('size-huge', 'a stream of 2^64 - 1 bytes', having(sizes=[2**64 - 1])), ('size-none', 'a stream of no bytes', having(sizes=[0])),
        ('trailing', 'a byte after the last stream', lambda draft: draft.edit(GENERATOR, lambda raw: raw + b'\0')), ('cut', "the last stream's last byte is missing", lambda draft: draft.edit(GENERATOR, lambda raw: raw[:-1])),
        ('codes-cut', 'a decoder that ends within its codes', lambda draft: draft.edit(GENERATOR, lambda raw: raw[:-len(raw) // 2 - 200])),
        ('out-of-proportion', 'more than 1,024 numbers a byte', lambda draft: draft.store(
            draft.find(GENERATOR), dataclasses.replace(read_conv(draft), channels=[1024] * 5, coding=2, codes=[], contexts=[], symbols=[]).write() + bytes(20000)))):
    simple(f'conv-quantised-{name}', 'corrupt', f'quantised decoder: {what}', change, 'conv-bounded')

for name, verdict, what, change in (
        ('embedding-over-limit', 'limit', 'e is 257', denoiser(0, 257)), ('hidden-over-limit', 'limit', 'h is 4097', denoiser(1, 4097)), ('steps-over-limit', 'limit', 'n is 1025', denoiser(2, 1025)),
        ('hidden-none', 'corrupt', 'no hidden units', denoiser(1, 0)), ('steps-none', 'corrupt', 'no steps', denoiser(2, 0)), ('steps-more', 'corrupt', 'a step more than is there', denoiser(2, 51)),
        ('centre-nan', 'corrupt', 'a centre that is NaN', denoiser(3, NAN)), ('spread-zero', 'corrupt', 'a spread of 0', lambda draft: denoiser(3 + 4 * draft.generator().d, floats(0))(draft)),
        ('spread-negative', 'corrupt', 'a negative spread', lambda draft: denoiser(3 + 4 * draft.generator().d, floats(-1))(draft)),
        ('keep-infinite', 'corrupt', 'an infinite number of keep', lambda draft: denoiser(3 + 8 * draft.generator().d, INF)(draft)), ('bias-denormal', 'corrupt', 'the last bias is denormal', lambda draft: draft.edit(GENERATOR, at(-4, TINY))),
        ('trailing', 'corrupt', 'a byte after the denoiser', lambda draft: draft.edit(GENERATOR, lambda raw: raw + b'\0')), ('cut', 'corrupt', "the denoiser's last byte is missing", lambda draft: draft.edit(GENERATOR, lambda raw: raw[:-1])),
        ('missing', 'corrupt', 'no denoiser', lambda draft: draft.edit(GENERATOR, lambda raw, own=read_conv(draft): raw[:len(dataclasses.replace(own, prior=0).write())]))):
    simple(f'denoiser-{name}', verdict, what, change, 'diffusion')


# The classes of hostile input, as tests/README.md numbers them: what each is, which of the mutants above are in it (a vector may be in several), and which
# other tests there are.
CLASSES = (
    (1, 'a length beyond the file or a cap', 'offset-vector-more groups-over-sections *-huge *-over *-lie *-lie-less residual-size-* streams-size-* link-size-* link-*-size* conv-quantised-size-* texts-size residual-sizes-*',
     'format/test_safetensors.c, test_container.c'),
    (2, 'truncated, trailing bytes, padding, a second footer', 'empty-file seven-bytes eight-bytes header-only truncated-* trailing-* second-footer frame-second frame-skippable* prefix-64 padding index-padding *-cut *-short *-trailing *-long '
     '*-longer footer-magic frame-cut frame-trailing table-missing *-ends *-byte-more *-word-more *-word-missing *-state-cut link-plan-long link-plan-short names-more footer-length link-low-more link-empty '
     'residual-no-codes residual-flag-alone residual-empty-block head-context-missing *-stream-missing',
     'vectors_flips: every prefix; format/test_safetensors.c, test_json.c, test_npy.c: every prefix'),
    (3, 'holes, overlaps, aliased ranges', 'hole* overlap* *-overlap footer-hole in-header signature-hole signature-alias entry-twice swapped-entries', 'format/test_safetensors.c'),
    (4, 'one fact told twice, differently', 'offset-learned offset-in-* offset-latents *-twice *-twice-section index-raw-other frame-other-size frame-no-size section-raw-* *-other generator-tensors owner* condition-count record-count record-task head-task '
     'signature-first texts-first condition-first header-text header-of-others signature-changed known-kind-optional *-owner *-group *-task *-hash *-beyond *-outside *-late *-range *-range-* *-count* *-missing '
     '*-from-* verbatim-* texts-* step-in-two-parts final-in-two-parts taps-* tier-* *-of-* link-* residual-* index-raw-impossible index-offset task-without-section part-without-table text-* side-*',
     'format/test_container.c: counts, owners, order'),
    (5, 'unknown version, feature, reserved bit, kind, dtype', 'version-* required-feature header-reserved-* footer-reserved index-reserved index-coding section-coding section-flag section-reserved kind-* tier-unknown '
     'treatment-unknown generator-kind condition-origin bound-0 bound-4 bound-255 conv-prior conv-coding signature-dtype frame-reserved sections-lie-less tier-bounded-alone', 'format/test_dtype.c'),
    (6, 'told by extension, not by magic', 'magic empty-file seven-bytes frame-magic', 'cli/test_damage.py: no archive; codec/test_inputs.c: an extension is not needed'),
    (7, 'a failed checksum', '*-hash file-hash header-hash footer-hash index-hash frame-checksum-wrong latent-other *-number-other *-symbol-other *-last-other *-weight-other conv-latent-other link-swapped*',
     'vectors_flips: every bit; cli/test_damage.py: blocks that lie, --no-check'),
    (8, 'overflow in products and sums', '*-overflow link-sum-wraps conv-numbers-over-limit index-offset-huge index-stored-huge step-over varint-65-bits conv-start-huge', 'format/test_memory.c, test_safetensors.c; codec/test_payloads.c'),
    (9, 'nothing where something must be', '*-none empty-section name-empty *-zero table-count-none groups-none hidden-none condition-none *-of-nothing side-name-empty', 'format/test_safetensors.c: no tensors, no elements, no dimensions'),
    (10, 'more declared than there is', 'table-count-huge residual-tensors-huge residual-tensors-many texts-count names-cut sections-lie groups-lie tasks-lie frame-other-size conv-channels-more conv-inputs-more denoiser-steps-more '
     'link-profiles-huge link-profiles-more link-one-more link-plan-most', 'codec/test_payloads.c: every truncation; msan preset'),
    (11, 'over a limit', '*-limit sections-2-22 rows-over-limit signature-dimensions signature-tensors signature-deep frame-window* side-files-many unpacked-*', 'good at n: *-at-limit; format/test_container.c, test_safetensors.c'),
    (12, 'ranges and numbers that are none', 'offset-vector-least offset-vector-exponent signature-fraction signature-sign signature-nan signature-large signature-shape signature-dtype varint-* *-low *-high *-lowest *-level* *-code* *-gap* *-under link-method* link-level*',
     'format/test_json.c, test_safetensors.c'),
    (13, 'JSON: depth, tokens, size', 'signature-deep signature-tensors', 'format/test_json.c: depth and values at the limit and beyond; vectors_costs'),
    (14, 'duplicate keys after unescaping', 'signature-twice signature-key-escaped', 'format/test_json.c, test_safetensors.c'),
    (15, 'UTF-8, surrogates, NUL, control characters', 'offset-nul signature-utf8 signature-surrogate signature-nul signature-escaped-nul signature-bom name-utf8 name-overlong name-surrogate name-beyond name-nul name-newline name-delete '
     'condition-nul side-name-nul', 'format/test_json.c'),
    (16, 'endless numbers, strings without end', 'varint-long link-bits-many', 'format/test_json.c: numbers of 64 characters, every prefix; vectors_costs: number, string-without-end'),
    (17, 'missing and extra fields, metadata', 'signature-field signature-field-missing signature-metadata signature-json signature-space signature-missing', 'format/test_safetensors.c'),
    (18, 'names as paths', 'name-* side-name*', 'format/test_file.c: segments, folders, links; cli/test_unpack.py: links; codec/test_inputs.c; fuzz_names'),
    (19, 'bombs of output and of computing', 'unpacked-* conv-quantised-out-of-proportion index-raw-* frame-window* side-files-over-limit conv-*-over-limit', 'vectors_costs; cli/test_unpack.py: limits; codec/test_pack_faults.c'),
    (20, 'super-linear work', '', 'vectors_costs: groups and tasks, one task in all groups, a damaged group of many tasks, keys; format/test_container.c: 50,000 tasks'),
    (21, 'entropy tables and streams', 'index-zstd frame-dictionary head-* residual-* streams-size-* link-* conv-quantised-* variance-*', 'codec/test_rans.c, test_trellis.c, test_payloads.c; fuzz_entropy'),
    (22, 'numbers that are not finite or denormal', '*-nan *-infinite *-infinity *-denormal weights-infinite coefficients-infinite condition-huge *-negative *-minus-zero error-* lossless-weights', 'good: basis-mixed, lossless-chain (NaN and infinities of users)'),
    (23, 'dimensions that disagree', 'offset-odd offset-in-* rows-other hidden-other generator-tensors condition-coordinates condition-short condition-odd condition-long-none conv-inputs-* conv-channels-* conv-start-* conv-width-even conv-m-g-over conv-prior-other '
     'head-starts-late head-ends-* head-without-* treatment-* scale-* generator-* none-* conv-* denoiser-* latent-* correction-* exception-* head-step-* condition-* lossless-*', 'codec/test_conv_decoder.c, test_denoiser.c'),
    (24, 'a file that changes while it is read', '', 'format/test_file.c: shrinks, grows, is replaced; faults_machine: sources change at every read'),
    (25, 'pickles and other formats', '', 'format/test_safetensors.c: advice for pickle, zip, Git LFS; cli/test_pack.py: each is named; codec/test_inputs.c'),
    (26, 'odd arguments and files: empty, a dash, FIFOs, devices, links', '', 'cli/test_words.py, test_names.py; format/test_file.c: only regular files; faults_machine: devices; codec/test_inputs.c: links, loops; fuzz_options'),
)
