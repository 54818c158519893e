# SPDX-License-Identifier: Apache-2.0
"""A wheel that carries libicma where there is one to carry: the one that ICMA_LIBRARY names, else that of the source tree's release build. Without, it is looked for when it is needed."""
import os
import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py
from wheel.bdist_wheel import bdist_wheel

NAME = 'libicma.so.0.1'


def library():
    said = os.environ.get('ICMA_LIBRARY')
    path = pathlib.Path(said) if said else pathlib.Path(__file__).resolve().parent.parent / 'build' / 'release' / NAME
    path = path / NAME if path.is_dir() else path
    if said and not path.exists():
        raise SystemExit(f'ICMA_LIBRARY: {path} does not exist')
    return path if path.exists() else None


class BuildWithLibrary(build_py):
    def run(self):
        super().run()
        if library() and not self.editable_mode:
            shutil.copyfile(library(), pathlib.Path(self.build_lib) / 'icma' / NAME)


class WheelWithLibrary(bdist_wheel):
    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = library() is None

    def get_tag(self):
        tag = super().get_tag()
        return ('py3', 'none', tag[2])  # no extension module: any Python 3 of this platform


setup(cmdclass={'build_py': BuildWithLibrary, 'bdist_wheel': WheelWithLibrary})
