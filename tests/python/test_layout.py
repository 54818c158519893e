#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Python package's copies of what the C headers say are what they say: apart from the other tests, which end in a crash where they are not."""
import ctypes
import os
import pathlib
import subprocess
import tempfile
import unittest

import icma
from icma import _pack, _structures

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Layout(unittest.TestCase):
    def test_structures_are_those_of_the_headers(self):
        """Sizes and offsets of every field as a compiler has them."""
        structures = [v for v in vars(_structures).values() if isinstance(v, type) and issubclass(v, ctypes.Structure) and hasattr(v, 'C')]
        self.assertGreater(len(structures), 20)
        lines, expected = [], []
        for v in structures:
            lines.append(f'printf("%zu\\n", sizeof({v.C}));')
            expected.append(f'{v.C} {ctypes.sizeof(v)}')
            for field, _ in v._fields_:
                lines.append(f'printf("%zu %zu\\n", offsetof({v.C}, {field}), sizeof((({v.C} *)0)->{field}));')
                expected.append(f'{v.C}.{field} {getattr(v, field).offset} {getattr(v, field).size}')
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder) / 'layout.c'
            source.write_text('#include "icma.h"\n#include "device.h"\n#include "layout.h"\n#include <stdio.h>\nint main(void) {\n' + '\n'.join(lines) + '\nreturn 0;\n}\n')
            include = [f'-I{ROOT / part}' for part in ('format', 'codec', 'gpu')]
            subprocess.run([os.environ.get('CC', 'cc'), source, *include, '-o', source.with_suffix('')], check=True)
            found = subprocess.run([source.with_suffix('')], check=True, capture_output=True, text=True).stdout.splitlines()
        wrong = [f'{e.split()[0]} is {f} in C, {e.split(" ", 1)[1]} in _structures.py' for e, f in zip(expected, found) if e.split(' ', 1)[1] != f]
        self.assertEqual(wrong, [])
        self.assertEqual(len(found), len(expected))

    def test_enums_are_those_of_the_headers(self):
        """Names and statuses in the headers' order: what they are called there is what the library calls them."""
        library = icma._library.library()
        for i, kind in enumerate(icma.errors.BY_STATUS[1:], 1):
            name = library.icma_status_name(i).decode().removeprefix('ICMA_E_').replace('_', '').lower()
            called = {'io': 'inputoutput', 'memory': 'outofmemory'}.get(name, name)
            self.assertEqual(kind.__name__.removesuffix('Error').lower(), called)
        self.assertEqual(library.icma_status_name(len(icma.errors.BY_STATUS)), b'ICMA_E_?')
        self.assertEqual([library.icma_tier_name(i).decode() for i in range(4)], list(_pack.TIERS))
        self.assertEqual([library.icma_bound_name(i).decode() for i in range(4)], list(_pack.BOUNDS))
        source = (ROOT / 'cli' / 'pack.c').read_text()
        for i, generator in enumerate(_pack.GENERATORS):
            self.assertIn(f'[ICMA_CHOOSE_{generator.upper()}] = "{generator}"', source)

    def test_version(self):
        import tomllib
        project = tomllib.loads((ROOT / 'python' / 'pyproject.toml').read_text())['project']
        self.assertEqual(icma.version(), project['version'])
        self.assertEqual(subprocess.run([os.environ['ICMA'], '--version'], capture_output=True, text=True).stdout, f'icma {icma.version()}\n')


if __name__ == '__main__':
    unittest.main()
