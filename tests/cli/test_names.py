#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Hostile names: escaped wherever they are shown, and never a way out of the folder."""
import json
import os

from harness import Case, icma, lora, main, write_adapter

RAW = (b'\x1b', b'\x07', b'\r', b'\xe2\x80\xae', b'\xff')


class Names(Case):
    def assertHarmless(self, result):
        for raw in RAW:
            self.assertNotIn(raw, result.out)
            self.assertNotIn(raw, result.err)

    def test_missing_files(self):
        for name in ('\x1b[31mred', 'a\rb', 'a\nb', 'abc\u202etxt', b'\xff\xfe', 'a\u200bb'):
            for verb in (['list'], ['unpack'], ['verify'], ['pack', '-o', 'x.icma'], ['diff', self.tree]):
                result = self.fails(7, *verb, os.fsdecode(name))
                self.assertHarmless(result)
                self.assertEqual(result.err.count(b'\n'), 1)
                self.assertIn('\\x', result.words)

    def test_as_json(self):
        for name in ('\x1b[31mred', 'abc\u202etxt', b'\xff\xfe'):
            result = self.run_icma(7, 'list', os.fsdecode(name), '--json')
            self.assertHarmless(result)
            shown = json.loads(result.err)['error']['file']
            self.assertEqual(shown, r'\xFF\xFE' if isinstance(name, bytes) else name)

    def test_options(self):
        self.assertHarmless(self.fails(2, 'list', '--\x1b[31m'))
        self.assertHarmless(self.fails(2, '\x1b[31m'))
        self.assertHarmless(self.fails(2, 'pack', 'x', '-o', 'y', '--epochs', '\x1b[31m'))
        self.assertHarmless(self.fails(7, 'unpack', self.bundle(), '--task', '\x1b[31m'))

    def test_task_names(self):
        for name in ('\x1b[31mred', 'a\rb', b'\xff\xfe', 'abc\u202etxt', '-rf', 'ordinary name', 'größe', '猫'):
            with self.subTest(name=name):
                tree = self.here / f'tree{len(os.listdir(self.here))}'
                write_adapter(os.path.join(os.fsencode(tree), os.fsencode(name)), lora('x', 1))
                bundle = self.here / f'{tree.name}.icma'
                result = self.run_icma_any('pack', tree, '-o', bundle, '--epochs', '2')
                self.assertHarmless(result)
                if result.code:
                    self.assertFalse(bundle.exists())
                    continue
                listed = self.run_icma(0, 'list', bundle)
                self.assertHarmless(listed)
                self.assertEqual(self.run_icma(0, 'list', bundle, '--json').json['tasks'][0]['task'], name)
                self.run_icma(0, 'unpack', bundle, '-C', self.here / f'{tree.name}.out')

    def run_icma_any(self, *arguments):
        result = icma(*arguments, cwd=self.here)
        self.assertIn(result.code, (0, 2, 3, 6, 7), result)
        return result


if __name__ == '__main__':
    main()
