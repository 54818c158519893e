#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""libicma as a program outside meets it: found by pkg-config and by CMake, shared and static, from C and C++; what it exports is what its headers declare."""
import os
import re
import shutil
import unittest

from common import BUILD, CC, CMAKE, CXX, ROOT, Installed, run
import harness

EXAMPLE = ROOT / 'examples' / 'decode_tensor.c'
CMAKELISTS = '''cmake_minimum_required(VERSION 3.25)
project(example LANGUAGES C)
find_package(icma %s REQUIRED COMPONENTS %s)
add_executable(decode_tensor %s)
target_link_libraries(decode_tensor PRIVATE icma::icma)
'''


class Library(Installed):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        harness.write_tree(cls.shop / 'tree')
        run(cls.prefix / 'bin' / 'icma', 'pack', cls.shop / 'tree', '-o', cls.shop / 'b.icma', '--tier', 'lossless', '-q')
        cls.libdir = next(cls.prefix.rglob('libicma.a')).parent

    def setUp(self):
        self.here = self.shop / self.id().rsplit('.', 1)[1]
        self.here.mkdir()

    def pkg_config(self, *words):
        return run('pkg-config', *words, env={**os.environ, 'PKG_CONFIG_PATH': str(self.libdir / 'pkgconfig')}).split()

    def check_program(self, program, **environment):
        """It lists tasks, and a tensor of a lossless archive has the numbers that were packed."""
        env = {**os.environ, **environment}
        self.assertEqual(run(program, self.shop / 'b.icma', env=env).split(), ['bird', 'cat', 'dog'])
        tensors = run(program, self.shop / 'b.icma', 'cat', env=env).splitlines()
        self.assertIn('base_model.model.layers.0.v_proj.lora_B.weight F32 [12, 2]', tensors)
        told = run(program, self.shop / 'b.icma', 'cat', 'base_model.model.layers.0.v_proj.lora_B.weight', env=env).split()
        self.assertEqual([float(x) for x in told[:4]], [float(f'{x:.9g}') for x in self.original()[:4]])
        self.assertAlmostEqual(float(told[-1]), sum(self.original()), places=6)
        failed = run(program, self.shop / 'b.icma', 'fish', env=env, code=1)
        self.assertEqual(failed, '')

    def original(self):
        image = harness.lora('cat', 100)
        # v_proj's B is the last of the four tensors.
        return memoryview(image)[-12 * 2 * 4:].cast('B').cast('f').tolist()

    def test_pkg_config_shared(self):
        run(CC, EXAMPLE, *self.pkg_config('--cflags', '--libs', 'icma'), f'-Wl,-rpath,{self.libdir}', '-o', self.here / 'program')
        self.check_program(self.here / 'program')

    def test_pkg_config_static(self):
        libraries = ['-l:libicma.a' if word == '-licma' else word for word in self.pkg_config('--static', '--libs', 'icma')]
        run(CC, EXAMPLE, *self.pkg_config('--cflags', 'icma'), *libraries, '-o', self.here / 'program')
        self.assertNotIn('libicma', run('readelf', '-d', self.here / 'program'))
        self.check_program(self.here / 'program')

    def build_by_cmake(self, component, version='0.1'):
        (self.here / 'CMakeLists.txt').write_text(CMAKELISTS % (version, component, EXAMPLE))
        run(CMAKE, '-S', self.here, '-B', self.here / 'build', f'-DCMAKE_PREFIX_PATH={self.prefix}', f'-DCMAKE_C_COMPILER={CC}')
        run(CMAKE, '--build', self.here / 'build')
        return self.here / 'build' / 'decode_tensor'

    def test_cmake_shared(self):
        self.check_program(self.build_by_cmake('shared'))

    def test_cmake_static(self):
        program = self.build_by_cmake('static')
        self.assertNotIn('libicma', run('readelf', '-d', program))
        self.check_program(program)

    def test_cmake_refuses_another_version(self):
        with self.assertRaisesRegex(AssertionError, 'compatible\\s+with\\s+requested\\s+version'):
            self.build_by_cmake('shared', '0.0')

    def test_headers_from_cpp(self):
        for header in sorted((self.prefix / 'include' / 'icma').iterdir()):
            source = self.here / f'{header.stem}.cpp'
            source.write_text(f'#include <icma/{header.name}>\n#include <icma/{header.name}>\nint main(void) {{ return 0; }}\n')
            run(CXX, '-std=c++11', '-Wall', '-Wextra', '-Wpedantic', '-Werror', '-fsyntax-only', *self.pkg_config('--cflags', 'icma'), source)
            run(CC, '-x', 'c', '-std=c11', '-Wall', '-Wextra', '-Wpedantic', '-Wstrict-prototypes', '-Werror', '-fsyntax-only', *self.pkg_config('--cflags', 'icma'), source)
        program = self.here / 'program'
        shutil.copy(EXAMPLE, self.here / 'example.cpp')
        run(CXX, '-std=c++11', '-Wall', '-Wextra', '-Werror', self.here / 'example.cpp', *self.pkg_config('--cflags', '--libs', 'icma'), f'-Wl,-rpath,{self.libdir}', '-o', program)
        self.check_program(program)

    def listed(self):
        return sorted(re.findall(r'^ +(icma_\w+);', (ROOT / 'cmake' / 'library' / 'libicma.map').read_text(), re.M))

    def test_exports_are_the_list(self):
        lines = run('nm', '-D', '--defined-only', self.libdir / 'libicma.so').splitlines()
        symbols = [line.split()[-1] for line in lines]
        self.assertEqual(sorted(s for s in symbols if not s.startswith('ICMA_')), [f'{s}@@ICMA_0.1' for s in self.listed()])

    def test_list_is_what_the_headers_declare(self):
        (self.here / 'all.c').write_text(''.join(f'#include <icma/{h.name}>\n' for h in (self.prefix / 'include' / 'icma').iterdir()))
        text = run(CC, '-E', '-P', *self.pkg_config('--cflags', 'icma'), self.here / 'all.c')
        text = re.sub(r'static inline [^{]*\{.*?\}', '', text, flags=re.S)
        declared = set(re.findall(r'\b(icma_\w+)\([^;{}]*\)[^;{}]*;', text))
        self.assertEqual(sorted(declared), self.listed())

    def test_static_library_keeps_its_names_to_itself(self):
        lines = run('nm', '--defined-only', '--extern-only', self.libdir / 'libicma.a').splitlines()
        names = {line.split()[-1] for line in lines if len(line.split()) == 3 and not line.split()[-1].startswith('.gomp_')}
        self.assertGreater(len(names), len(self.listed()))
        self.assertEqual([n for n in names if not n.startswith('icma_')], [])

    def test_soname_is_the_minor_version(self):
        self.assertRegex(run('readelf', '-d', self.libdir / 'libicma.so'), r'SONAME.*\[libicma\.so\.0\.1\]')

    def test_gpu_module_beside_the_library(self):
        """A module in lib/icma is found by its bare name. The real one needs a GPU; CUDA's emulation stands in for it."""
        (self.libdir / 'icma').mkdir(exist_ok=True)
        shutil.copy(os.environ['ICMA_EMULATED'], self.libdir / 'icma' / 'emulated.so')
        program, tensor = self.here / 'program', 'base_model.model.layers.0.v_proj.lora_B.weight'
        run(CC, EXAMPLE, *self.pkg_config('--cflags', '--libs', 'icma'), f'-Wl,-rpath,{self.libdir}', '-o', program)
        found = run(program, self.shop / 'b.icma', 'cat', tensor, 'cuda', env={**os.environ, 'ICMA_MODULE': 'emulated.so'})
        self.assertEqual(found, run(program, self.shop / 'b.icma', 'cat', tensor))
        run(program, self.shop / 'b.icma', 'cat', tensor, 'cuda', env={**os.environ, 'ICMA_MODULE': 'missing.so'}, code=1)


if __name__ == '__main__':
    unittest.main()
