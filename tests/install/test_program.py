#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The program as installed: its manual page, what shells complete, and the Debian packages."""
import os
import re
import shutil
import subprocess
import unittest

from common import BUILD, CMAKE, Installed, run
import harness

HOSTILE = 'a $(touch pwned) `touch pwned`;touch pwned'
TRY = '''source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_POINT=0
compopt() { :; }
_icma
((${#COMPREPLY[@]} == 0)) || printf '%s\\n' "${COMPREPLY[@]}"'''


class Program(Installed):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        harness.write_tree(cls.shop / 'tree', tasks=('bird', 'cat', HOSTILE))
        cls.icma = cls.prefix / 'bin' / 'icma'
        cls.here = cls.shop / 'here'
        cls.here.mkdir()
        run(cls.icma, 'pack', cls.shop / 'tree', '-o', cls.here / 'my.icma', '--tier', 'lossless', '-q')
        (cls.here / 'folder').mkdir()
        (cls.here / 'notes.txt').touch()
        cls.bash = cls.prefix / 'share' / 'bash-completion' / 'completions' / 'icma'

    def complete(self, *words):
        """What bash offers for the last of these words; `=` is a word of its own, as bash has it."""
        return run('bash', '--norc', '-c', TRY, 'bash', self.bash, self.icma, *words, cwd=self.here).split('\n')[:-1]

    # --- the manual page

    def verbs(self):
        return re.findall(r'(?m)^  ([a-z]+)(?:, [a-z]+)? +[a-z]', run(self.icma, '--help').split('Options')[0])

    def test_manual_has_every_option(self):
        page = self.find('icma.1').read_text()
        self.assertIn('unpack', self.verbs())
        for verb in self.verbs():
            part = page.split(f'\n.SS {verb}\n')[1].split('\n.S')[0]
            told = run(self.icma, verb, '--help').split('\n\n', 1)[1]
            options = re.findall(r'(?m)^  (?:-., |    )--([a-z-]+)', told)
            self.assertIn('help', options)
            for option in options:
                self.assertIn(r'\fB\-\-' + option.replace('-', r'\-') + r'\fR', part, verb)

    @unittest.skipUnless(shutil.which('man'), 'no man here')
    def test_manual_is_shown(self):
        for page, says in (('icma.1', ('EXIT STATUS', 'icma unpack loras.icma')), ('icma.3', ('icma_bundle_decode_tensor', 'find_package(icma REQUIRED)'))):
            done = subprocess.run(['man', '--warnings', '-l', self.find(page)], capture_output=True, text=True, env={**os.environ, 'MANWIDTH': '80', 'LC_ALL': 'C.UTF-8'})
            self.assertEqual((done.returncode, done.stderr), (0, ''))
            for words in says:
                self.assertIn(words, done.stdout)

    # --- completion

    def test_verbs_and_options(self):
        self.assertEqual(self.complete('un'), ['unpack'])
        self.assertEqual(set(self.complete('')), {*self.verbs(), 'help', '--help', '--version'})
        self.assertEqual(self.complete('unpack', '--keep'), ['--keep-existing', '--keep-going'])
        self.assertEqual(self.complete('help', 'un'), ['unpack'])

    def test_every_option_of_every_verb(self):
        for verb in self.verbs():
            told = re.findall(r'(?m)^  (?:-., |    )--([a-z-]+)', run(self.icma, verb, '--help').split('\n\n', 1)[1])
            self.assertEqual(sorted(self.complete(verb, '-')), sorted(f'--{o}' for o in told))

    def test_values(self):
        self.assertEqual(self.complete('unpack', '--checkpoint', ''), ['last', 'all'])
        self.assertEqual(self.complete('unpack', '--checkpoint', '=', 'a'), ['all'])
        self.assertEqual(self.complete('pack', 'tree', '--max-error', ''), ['dw=', 'rel=', 'abs='])
        self.assertEqual(self.complete('pack', '--epochs', ''), [])

    def test_values_are_those_that_the_program_takes(self):
        """Each is taken, and what is none of them is not."""
        for option in ('tier', 'keep', 'generator', 'preset', 'weights', 'precision'):
            values = self.complete('pack', f'--{option}', '')
            self.assertTrue(values, option)
            for value in [*values, 'nonsense']:
                more = ['--device', 'auto'] if option == 'precision' else ['--generator', 'conv'] if option == 'weights' else []
                done = subprocess.run([self.icma, 'pack', self.shop / 'tree', '-n', f'--{option}', value, *more], capture_output=True, text=True)
                self.assertEqual(done.returncode, 2 if value == 'nonsense' else 0, f'--{option} {value}: {done.stderr}')

    def test_files(self):
        self.assertEqual(sorted(self.complete('unpack', '')), ['folder', 'my.icma'])
        self.assertEqual(sorted(self.complete('pack', '')), ['folder', 'my.icma', 'notes.txt'])
        self.assertEqual(self.complete('unpack', '-C', ''), ['folder'])

    def test_tasks(self):
        """Of the archive that stands there, or of the only one here; no name is evaluated."""
        for words in (('unpack', 'my.icma', '--task'), ('unpack', '--task', '='), ('list', '--task')):
            self.assertEqual(self.complete(*words, 'c'), ['cat'])
        offered = self.complete('unpack', '--task', 'a')
        self.assertEqual(run('bash', '-c', f'printf %s {offered[0]}', cwd=self.here), HOSTILE)
        self.assertFalse((self.here / 'pwned').exists())

    def test_other_shells(self):
        """Scripts that zsh and fish can read, where they are installed; what fish offers."""
        for shell, name in (('zsh', '_icma'), ('fish', 'icma.fish')):
            if shutil.which(shell):
                run(shell, '-n', self.find(name))
            else:
                print(f'SKIPPED {shell}: not installed')
        if shutil.which('fish'):
            def offers(line):
                script = f'source {self.find("icma.fish")}; complete -C "{line}"'
                environment = {**os.environ, 'PATH': f'{self.icma.parent}:{os.environ["PATH"]}', 'HOME': str(self.shop)}
                return [word.split('\t')[0] for word in run('fish', '--no-config', '-c', script, cwd=self.here, env=environment).splitlines()]
            self.assertEqual(offers('icma un'), ['unpack'])
            self.assertEqual(offers('icma unpack --task c'), ['cat'])
            self.assertEqual(offers('icma pack --tier l'), ['latent', 'lossless'])

    def test_unknown_shell(self):
        self.assertIn('bash, zsh and fish', subprocess.run([self.icma, 'help', '--completion', 'csh'], capture_output=True, text=True).stderr)
        run(self.icma, 'help', '--completion', code=2)

    # --- the rest

    def test_gpu_module_of_the_installation(self):
        modules = self.find('libicma.a').parent / 'icma'
        modules.mkdir(exist_ok=True)
        shutil.copy(os.environ['ICMA_EMULATED'], modules / 'emulated.so')
        environment = {**os.environ, 'ICMA_MODULE': 'emulated.so'}
        run(self.icma, 'verify', '--deep', '--device', 'cuda', self.here / 'my.icma', env=environment)

    @unittest.skipUnless(all(map(shutil.which, ('dpkg-deb', 'dpkg-shlibdeps', 'file'))), 'dpkg-deb, dpkg-shlibdeps or file is not here')
    def test_debian_packages(self):
        folder = self.shop / 'debian'
        folder.mkdir()
        run(os.path.join(os.path.dirname(CMAKE), 'cpack'), '-G', 'DEB', '--config', BUILD / 'CPackConfig.cmake', '-B', folder)
        packages = {deb.name.split('_')[0]: deb for deb in folder.glob('*.deb')}
        names = {'icma', 'libicma0.1', 'libicma-dev'}
        self.assertEqual(set(packages) - {'icma-cuda'}, names)
        holds = {name: run('dpkg-deb', '-c', packages[name]) for name in names}
        depends = {name: run('dpkg-deb', '-f', packages[name], 'Depends') for name in names}
        for name, file in (('icma', '/bin/icma'), ('icma', '/man1/icma.1'), ('libicma0.1', '/libicma.so.0.1.0'), ('libicma-dev', '/include/icma/icma.h'),
                           ('libicma-dev', '/pkgconfig/icma.pc'), ('libicma-dev', '/libicma.a'), ('libicma-dev', '/libicma.so -> libicma.so.0.1')):
            self.assertRegex(holds[name], rf'(?m) \./usr\S*{re.escape(file)}$')
        for name in ('icma', 'libicma0.1'):
            self.assertIn('libzstd1', depends[name])
            self.assertIn('libopenblas0', depends[name])
        self.assertIn('libicma0.1 (= 0.1.0)', depends['libicma-dev'])


if __name__ == '__main__':
    unittest.main()
