#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Damaged archives: the right exit code, never other bits, nothing left behind."""
import pathlib
import shutil
import struct
import subprocess
import sys
import unittest

from harness import Case, files_below, icma, main

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / 'python'))
try:
    from xxh3 import xxh3_64  # needs numpy
except ImportError:
    xxh3_64 = None

# What a stranger's archive may end in: corrupt, unsupported, over a limit.
REFUSED = (4, 6, 10)


def read_index(image):
    """Where the sections end, and the index as it is before compression."""
    offset, stored, raw = struct.unpack_from('<3Q', image, len(image) - 64)
    index = bytes(image[offset:offset + stored])
    if image[len(image) - 64 + 40]:
        index = subprocess.run(['zstd', '-dcq'], input=index, stdout=subprocess.PIPE, check=True).stdout
    assert len(index) == raw
    return offset, bytearray(index)


def repaired(image):
    """The same archive with checksums that fit, as a hostile writer would make it; its index is stored raw (spec 3.3, 3.4)."""
    end, index = read_index(image)
    count, table = struct.unpack_from('<I', index)[0], 16

    def field(entry, at):
        return int.from_bytes(bytes(index[table + (at + b) * count + entry] for b in range(8)), 'little')
    for entry in range(count):
        offset, stored = field(entry, 0), field(entry, 8)
        for b, value in enumerate(struct.pack('<Q', xxh3_64(bytes(image[offset:offset + stored])))):
            index[table + (24 + b) * count + entry] = value
    out = bytes(image[:end]) + index + bytes(-len(index) % 64)
    footer = struct.pack('<5Q8x8s', end, len(index), len(index), xxh3_64(bytes(index)), len(out) + 64, b'\x8aICMAend')
    return out + footer + struct.pack('<Q', xxh3_64(footer))


class Damage(Case):
    def setUp(self):
        super().setUp()
        self.archive = self.bundle()
        self.whole = self.archive.read_bytes()

    def sections(self):
        return self.run_icma(0, 'info', self.shop / 'small.icma', '-v', '--json').json['section_list']

    def test_not_an_archive(self):
        for content in (b'', b'x', b'PK\x03\x04' + bytes(100), bytes(4096), (self.tree / 'cat/checkpoint-10/adapter_config.json').read_bytes()):
            self.archive.write_bytes(content)
            for verb in ('list', 'info', 'verify', 'unpack', 'report'):
                self.fails(4, verb, self.archive, saying='small.icma')
        self.assertEqual(files_below(self.here), ['small.icma'])
        self.assertNotEqual(icma('list', self.here).code, 0)

    def test_truncated(self):
        for size in sorted({len(self.whole) * i // 16 for i in range(16)} | {len(self.whole) - 1, 1, 8, 63, 64, 65}):
            self.archive.write_bytes(self.whole[:size])
            self.assertIn(self.fails_any('verify', self.archive), REFUSED, size)
        self.archive.write_bytes(self.whole + b'\0')
        self.assertIn(self.fails_any('verify', self.archive), REFUSED)

    def fails_any(self, *arguments):
        result = icma(*arguments, cwd=self.here)
        self.assertRegex(result.words, r'(?m)^icma: error: ')
        return result.code

    def test_flipped_bits(self):
        step = max(1, len(self.whole) // 150)
        for at in range(0, len(self.whole), step):
            damaged = bytearray(self.whole)
            damaged[at] ^= 1 << (at % 8)
            self.archive.write_bytes(damaged)
            self.assertIn(self.fails_any('verify', self.archive), REFUSED, at)
            result = icma('unpack', self.archive, '-C', 'out', cwd=self.here)
            self.assertIn(result.code, REFUSED, (at, result))
            self.assertEqual(files_below(self.here), ['small.icma'], at)

    def flip_section(self, kind, task):
        section = next(s for s in self.sections() if s['kind'] == kind and s['task'] == task)
        damaged = bytearray(self.whole)
        damaged[section['offset'] + section['stored'] // 2] ^= 0x10
        self.archive.write_bytes(damaged)

    def test_one_damaged_task(self):
        self.flip_section('task', 'cat')
        self.fails(4, 'verify', self.archive, saying='cat')
        self.fails(4, 'unpack', self.archive, '-C', 'out')
        self.assertEqual(files_below(self.here), ['small.icma'])
        self.run_icma(0, 'unpack', self.archive, '--task', 'dog', '-C', 'dog')
        result = self.fails(3, 'unpack', self.archive, '-C', 'out', '--keep-going', saying='cat')
        self.assertIn('unpacked 2 adapters', result.words)
        self.assertEqual({pathlib.Path(p).parts[0] for p in files_below(self.here / 'out')}, {'bird', 'dog'})
        document = self.run_icma(4, 'verify', self.archive, '--deep', '--json').json
        self.assertFalse(document['intact'])
        self.assertEqual(document['damaged_sections'], 1)
        self.assertIn('cat', document['damage'][0]['where'])
        self.assertEqual((document['surviving_tasks'], document['surviving_checkpoints']), (2, 8))
        self.assertEqual(document['losses'], [{'task': 'cat', 'all': True, 'checkpoints': 4, 'lost': []}])
        result = self.run_icma(4, 'verify', self.archive)
        self.assertIn('task "cat" is lost: all 4 checkpoints', result.words)
        self.assertIn('2 of 3 tasks and 8 of 12 checkpoints survive', result.text)

    def test_damaged_generator(self):
        self.flip_section('generator', None)
        self.fails(4, 'unpack', self.archive, '-C', 'out', '--keep-going', saying='nothing of it could be unpacked')
        self.fails(4, 'verify', self.archive, saying='generator')
        self.fails(4, 'unpack', self.archive, '-C', 'out', '--task', 'cat')
        self.assertEqual(files_below(self.here), ['small.icma'])


class DamagedBlocks(Damage):
    """The same, and bytes of the blocks that only bounded and lossless archives have."""
    tier = ('--tier', 'bounded', '--generator', 'none')
    kind = 'residual'

    def section(self, task):
        found = [s for s in self.sections() if s['kind'] == self.kind and s['task'] == task]
        self.assertEqual(len(found), 1)
        return found[0]

    def test_damaged_blocks(self):
        section = self.section('cat')
        for at in {0, section['stored'] // 3, section['stored'] - 1}:
            damaged = bytearray(self.whole)
            damaged[section['offset'] + at] ^= 0x10
            self.archive.write_bytes(damaged)
            self.check_only_cat(all_of_it=True)

    @unittest.skipUnless(xxh3_64 and shutil.which('zstd'), 'wants numpy and zstd')
    def test_lying_blocks(self):
        """Bytes of the section with checksums that fit: the files' own hashes tell, whatever the decoder makes of it."""
        self.archive.write_bytes(repaired(self.whole))
        self.run_icma(0, 'verify', self.archive, '--deep')
        section = self.section('cat')
        partly = 0
        for at in range(0, section['stored'], section['stored'] // 40 + 1):
            damaged = bytearray(self.whole)
            damaged[section['offset'] + at] ^= 1 << at % 8
            self.archive.write_bytes(repaired(damaged))
            self.run_icma(0, 'verify', self.archive, '-q')
            partly += self.check_only_cat(all_of_it=False)
        self.assertGreater(partly, 0, 'damage in one checkpoint leaves others whole')

    @unittest.skipUnless(xxh3_64 and shutil.which('zstd'), 'wants numpy and zstd')
    def test_foreign_blocks(self):
        """Another task's section in the place of cat's: well-formed, and wrong."""
        cat, dog = self.section('cat'), self.section('dog')
        size = min(cat['stored'], dog['stored'])
        damaged = bytearray(self.whole)
        damaged[cat['offset']:cat['offset'] + size] = self.whole[dog['offset']:dog['offset'] + size]
        self.archive.write_bytes(repaired(damaged))
        self.check_only_cat(all_of_it=False)

    @unittest.skipUnless(xxh3_64 and shutil.which('zstd'), 'wants numpy and zstd')
    def test_not_checked(self):
        """--no-check gives out a decoded file whose checksum is not the packed one; nothing else does."""
        section = next(s for s in self.sections() if s['kind'] == 'task' and s['task'] == 'cat')
        for at in range(section['stored']):
            damaged = bytearray(self.whole)
            damaged[section['offset'] + at] ^= 1
            self.archive.write_bytes(repaired(damaged))
            if 'is not what was packed (checksum)' in icma('unpack', self.archive, '--task', 'cat', '-o', self.here / 'x', '-f').words:
                break
        else:
            self.fail('no change of the table is told by the checksum alone')
        (self.here / 'x').unlink(missing_ok=True)
        self.fails(4, 'unpack', self.archive, '--task', 'cat', '-o', 'x')
        self.assertNothingLeft(self.here, ['small.icma'])
        self.fails(4, 'verify', self.archive, '--deep', saying='cat')
        self.assertFalse(self.run_icma(0, 'unpack', self.archive, '--task', 'cat', '-o', 'x', '--json', '--no-check').json['checked'])
        self.assertEqual(len((self.here / 'x').read_bytes()), len(self.files()['cat/checkpoint-100']))
        result = self.run_icma(0, 'unpack', self.archive, '--task', 'dog', '-o', 'z', '--no-check')
        self.assertIn('checksums were not compared', result.words)
        self.assertTrue(self.run_icma(0, 'unpack', self.archive, '--task', 'dog', '-o', 'z', '-f', '--json').json['checked'])

    def check_only_cat(self, all_of_it):
        """cat is refused, and no wrong byte of it is written; the others come. Whether some of cat's checkpoints are fine."""
        result = self.fails(4, 'unpack', self.archive, '--checkpoint', 'all', '-C', 'out', saying=('small.icma', 'cat', '--keep-going'))
        self.assertEqual(result.out, b'')
        if all_of_it:  # known before anything is written
            self.assertNothingLeft(self.here, ['small.icma'])
        self.take_right()
        self.fails(4, 'verify', self.archive, '--deep', saying='cat')
        result = self.fails(3, 'unpack', self.archive, '--checkpoint', 'all', '-C', 'out', '--keep-going', saying='cat')
        self.assertNotIn('bird', result.words)
        got = self.take_right()
        others = {name for name in self.files() if not name.startswith('cat')}
        self.assertLessEqual(others, got)
        fine = len(got - others)
        self.assertIn(fine, (0,) if all_of_it else (0, 1, 2, 3))
        return fine > 0

    def take_right(self):
        """What was unpacked, all of it right; it is removed."""
        got = {str(pathlib.Path(p).parent): (self.here / 'out' / p).read_bytes() for p in files_below(self.here / 'out') if p.endswith('.safetensors')}
        for name, data in got.items():
            self.assertEqual(data, self.files()[name], name)
        shutil.rmtree(self.here / 'out', True)
        return set(got)

    def files(self):
        """What the whole archive gives."""
        cls = type(self)
        if 'whole_files' not in cls.__dict__:
            self.run_icma(0, 'unpack', self.shop / 'small.icma', '--checkpoint', 'all', '-C', self.shop / 'whole')
            cls.whole_files = {str(pathlib.Path(p).parent): (self.shop / 'whole' / p).read_bytes()
                               for p in files_below(self.shop / 'whole') if p.endswith('.safetensors')}
        return cls.whole_files


class DamagedLinks(DamagedBlocks):
    tier = ('--tier', 'lossless')
    kind = 'link'


if __name__ == '__main__':
    main()
