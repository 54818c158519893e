#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Damaged archives: the right exit code, never other bits, nothing left behind."""
import pathlib

from harness import Case, files_below, icma, main

# What a stranger's archive may end in: corrupt, unsupported, over a limit.
REFUSED = (4, 6, 10)


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

    def test_damaged_generator(self):
        self.flip_section('generator', None)
        self.fails(4, 'verify', self.archive, saying='generator')
        self.fails(4, 'unpack', self.archive, '-C', 'out', '--task', 'cat')
        self.assertEqual(files_below(self.here), ['small.icma'])


if __name__ == '__main__':
    main()
