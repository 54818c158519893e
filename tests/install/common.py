# SPDX-License-Identifier: Apache-2.0
"""What the tests of an installation share: a tree that cmake --install made, moved to where nobody configured it for."""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'cli'))
BUILD = pathlib.Path(os.environ['ICMA_BUILD'])
CMAKE, CC, CXX = os.environ.get('CMAKE', 'cmake'), os.environ.get('CC', 'cc'), os.environ.get('CXX', 'c++')


def run(*words, code=0, **more):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=600, **more)
    if done.returncode != code:
        raise AssertionError(f'{" ".join(map(str, words))}: exit {done.returncode}\n{done.stdout}{done.stderr}')
    return done.stdout


class Installed(unittest.TestCase):
    """`self.prefix` is an installation in a temporary folder, `self.shop` the folder around it."""

    @classmethod
    def setUpClass(cls):
        cls.shop = pathlib.Path(tempfile.mkdtemp(prefix='icma-install-'))
        cls.addClassCleanup(shutil.rmtree, cls.shop, True)
        run(CMAKE, '--install', BUILD, '--prefix', cls.shop / 'first')
        cls.prefix = (cls.shop / 'first').rename(cls.shop / 'moved')

    def find(self, name):
        found = sorted(self.prefix.rglob(name))
        self.assertEqual(len(found), 1, f'{name}: {found}')
        return found[0]
