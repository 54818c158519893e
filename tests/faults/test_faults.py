#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""System calls that fail, kills and signals at every one of them, full disks, several runs at once, sources that change.

    ICMA=build/release/icma ICMA_FAULTS=build/release/icma_faults.so tests/faults/test_faults.py pack|unpack|change|training|machine [--all]

Whatever happens, a file is what it was or what it should become, the exit code tells, no temporary stays (but after SIGKILL,
and then the next run removes it). Without --all a stride is taken: of the calls that open, read or close every seventh is
tried, of those that write every third. Each run prints how many points it tried, and what the program did there.
"""
import collections
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'cli'))
from harness import PROGRAM, Result, files_below, icma, write_tree  # noqa: E402

LIBRARY = os.environ.get('ICMA_FAULTS', 'icma_faults.so')
ALL = '--all' in sys.argv
QUICK = ['--tier', 'latent', '--epochs', '2', '-T', '1', '-q']
CONV = ['--generator', 'conv', '--tier', 'latent', '--layers', '3', '--channels', '4,6,4', '--latent-dim', '8', '--batch', '3', '--epochs', '4', '-T', '1', '-q']
KINDS = ('create', 'open', 'read', 'write', 'fsync', 'close', 'chmod', 'rename', 'link', 'unlink', 'mkdir', 'lock')
STRIDES = {'open': 7, 'read': 7, 'close': 7, 'write': 3}  # there are many, and one is like the next
# What a call may say. Those that the program has to take in its stride:
HARMLESS = {'create': ['EINTR'], 'open': ['EINTR'], 'read': ['EINTR', 'short'], 'write': ['EINTR', 'short'], 'chmod': ['EPERM'], 'lock': ['ENOLCK', 'EWOULDBLOCK', 'EIO']}
# those that end it, with exit code 1 and a message that says so:
FATAL = {'create': ['ENOSPC', 'EACCES'], 'write': ['ENOSPC', 'ENOSPC+', 'EIO', 'EDQUOT'], 'chmod': ['EIO'], 'rename': ['EIO', 'ENOSPC'], 'mkdir': ['ENOSPC', 'EACCES'], 'lock': ['EWOULDBLOCK+']}
# and those that end it or not, depending on what was opened, closed or synchronised:
EITHER = {'open': ['EIO', 'EMFILE', 'EACCES'], 'read': ['EIO'], 'fsync': ['EIO', 'ENOSPC', 'EINVAL'], 'close': ['EIO'], 'unlink': ['EIO']}
WORDS = {'EIO': 'Input/output error', 'ENOSPC': 'No space left', 'EDQUOT': 'quota', 'EACCES': 'Permission denied', 'EMFILE': 'Too many open files', 'EINVAL': 'Invalid argument'}


def contents(folder):
    """{relative path: bytes} of all files below; temporaries included."""
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


def temporaries(folder):
    return [name for name in files_below(folder) if pathlib.PurePath(name).name.startswith('.icma-')]


class Fault(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.shop = pathlib.Path(tempfile.mkdtemp(prefix='icma-faults-')).resolve()
        cls.addClassCleanup(shutil.rmtree, cls.shop, True)
        write_tree(cls.shop / 'tree', tasks=('a', 'b'), steps=(1, 2))
        write_tree(cls.shop / 'other', tasks=('c',), steps=(1,))
        for name in ('tree', 'other'):
            done = icma('pack', cls.shop / name, '-o', cls.shop / f'{name}.icma', *QUICK)
            assert done.code == 0, done
        cls.tally = collections.Counter()

    @classmethod
    def tearDownClass(cls):
        for (scenario, what), count in sorted(cls.tally.items()):
            print(f'{scenario:12} {what:32} {count}')

    def run_with(self, fault, *arguments):
        """(result, the line that tells at which call, or None where there were not so many)"""
        log = self.shop / 'log'
        log.unlink(missing_ok=True)
        env = {'LD_PRELOAD': LIBRARY, 'ICMA_FAULT': fault, 'ICMA_FAULT_BELOW': f'{self.shop}/', 'ICMA_FAULT_LOG': '/tmp/icma-faults-log-%d' % os.getpid(),
               'ASAN_OPTIONS': 'verify_asan_link_order=0:detect_leaks=0'}
        path = pathlib.Path(env['ICMA_FAULT_LOG'])
        path.unlink(missing_ok=True)
        done = icma(*arguments, env=env)
        self.assertNotEqual(done.code, 99, done)
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return done, next((line for line in lines if line.startswith('fired')), None), lines

    def count(self, *arguments):
        done, _, lines = self.run_with('any:0:count', *arguments)
        self.assertEqual(done.code, 0, done)
        return {word: int(number) for word, number in (line.split() for line in lines)}

    def points(self, kind, count):
        return range(1, count + 1, 1 if ALL else STRIDES.get(kind, 1))


class Scenario:
    """Something icma does: how it starts, and what may be there in the end."""

    def __init__(self, name, folder, old, command, again=None):
        self.name, self.folder, self.old, self.command, self.again = name, folder, old, command, again or command

    def prepare(self):
        shutil.rmtree(self.folder, True)
        self.folder.mkdir()
        for name, data in self.old.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(data)


class Sweep(Fault):
    def sweep(self, scenario):
        scenario.prepare()
        counts = self.count(*scenario.command)
        self.new = contents(scenario.folder)
        self.assertNotEqual(self.new, scenario.old)
        self.assertFalse(temporaries(scenario.folder))
        for kind in KINDS:
            for k in self.points(kind, counts[kind]):
                for action in HARMLESS.get(kind, []):
                    self.try_fault(scenario, kind, k, action, (0,))
                for action in FATAL.get(kind, []):
                    self.try_fault(scenario, kind, k, action, (1,))
                for action in EITHER.get(kind, []):
                    self.try_fault(scenario, kind, k, action, (0, 1))
                for action in ('kill', 'killed'):
                    self.try_kill(scenario, kind, k, action)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[k % 3:][:1]:
                    self.try_fault(scenario, kind, k, number.name, (0, 128 + number))

    def check_files(self, scenario, point, all_new):
        """Each is what it was or what it should become."""
        got = contents(scenario.folder)
        for name, data in got.items():
            self.assertIn(data, [x for x in (scenario.old.get(name), self.new.get(name)) if x is not None], f'{point}: {name}')
        for name in scenario.old:
            self.assertIn(name, got, point)
        if all_new:
            self.assertEqual(got, self.new, point)

    def try_fault(self, scenario, kind, k, action, codes):
        fault = f'{kind}:{k}:{action}'
        point = f'{scenario.name} {fault}'
        scenario.prepare()
        done, fired, _ = self.run_with(fault, *scenario.command)
        self.assertIsNotNone(fired, f'{point} was never reached: {done!r}')
        self.assertIn(done.code, codes, f'{point}: {done!r}')
        self.assertEqual(temporaries(scenario.folder), [], point)
        self.check_files(scenario, point, done.code == 0)
        if done.code:
            self.assertIn('icma: error: ', done.words, point)
        if done.code == 1 and kind != 'lock':
            self.assertIn(WORDS[action.rstrip('+')], done.words, point)
        self.tally[scenario.name, f'{kind} {action}: exit {done.code}'] += 1

    def try_kill(self, scenario, kind, k, action):
        fault = f'{kind}:{k}:{action}'
        point = f'{scenario.name} {fault}'
        scenario.prepare()
        done, fired, _ = self.run_with(fault, *scenario.command)
        self.assertIsNotNone(fired, point)
        self.assertEqual(done.code, -signal.SIGKILL, f'{point}: {done!r}')
        left = temporaries(scenario.folder)
        self.assertLessEqual(len(left), 1, point)
        for name in left if kind in ('create', 'write', 'lock') else []:
            self.assertEqual((scenario.folder / name).stat().st_mode & 0o7777, 0o600, point)
        kept = [(scenario.folder / name, (scenario.folder / name).read_bytes()) for name in left]
        for path, _ in kept:
            path.unlink()
        self.check_files(scenario, point, False)
        for path, data in kept:
            path.write_bytes(data)
        done = icma(*scenario.again)
        self.assertEqual(done.code, 0, f'after {point}: {done!r}')
        self.assertEqual(contents(scenario.folder), self.new, f'after {point}')
        self.tally[scenario.name, f'{kind} {action}: temporary {"removed" if left else "none"}'] += 1


class Pack(Sweep):
    def scenario(self, name, old, *options):
        folder = self.shop / 'out'
        command = ['pack', self.shop / 'tree', '-o', folder / 'x.icma', *QUICK]
        return Scenario(name, folder, old, [*command, *options], [*command, '-f'])

    def test_new(self):
        """Where nothing is; and where the file system cannot rename without replacing."""
        scenario = self.scenario('pack', {})
        self.sweep(scenario)
        for action in ('ENOSYS', 'EINVAL'):
            self.try_fault(scenario, 'rename', 1, action, (0,))

    def test_over_old(self):
        self.sweep(self.scenario('pack -f', {'x.icma': (self.shop / 'other.icma').read_bytes(), 'notes.txt': b'mine'}, '-f'))

    def test_what_there_is_verifies(self):
        """The archives that check_files compares with are whole."""
        for name in ('tree', 'other'):
            self.assertEqual(icma('verify', self.shop / f'{name}.icma', '--deep').code, 0)


class Unpack(Sweep):
    def scenario(self, name, old, *options):
        folder = self.shop / 'out'
        command = ['unpack', self.shop / 'tree.icma', '-C', folder, '-q']
        return Scenario(name, folder, old, [*command, *options], [*command, *options, '-f'])

    def test_new(self):
        self.sweep(self.scenario('unpack', {}))

    def test_all_checkpoints(self):
        self.sweep(self.scenario('unpack all', {}, '--checkpoint', 'all') if ALL else self.scenario('unpack one', {}, '--task', 'b'))

    def test_over_old(self):
        self.sweep(self.scenario('unpack -f', {'a/adapter_model.safetensors': b'old', 'a/adapter_config.json': b'{}', 'a/README.md': b'mine'}, '-f'))

    def test_one_file(self):
        folder = self.shop / 'out'
        self.sweep(Scenario('unpack -o', folder, {'x': b'old'}, ['unpack', self.shop / 'tree.icma', '--task', 'a', '-o', folder / 'x', '-f', '-q']))

    def test_one_archive(self):
        folder = self.shop / 'out'
        self.sweep(Scenario('unpack --format', folder, {'x': b'old'}, ['unpack', self.shop / 'tree.icma', '--format', 'zip', '-o', folder / 'x', '-f', '-q']))


class Change(Sweep):
    """add and remove, in place: the archive is what it was or what it should become."""

    def scenario(self, name, *command):
        old = {'x.icma': (self.shop / 'tree.icma').read_bytes(), 'notes.txt': b'mine'}
        return Scenario(name, self.shop / 'out', old, [command[0], self.shop / 'out' / 'x.icma', *command[1:], '-q'])

    def try_fault(self, scenario, kind, k, action, codes):
        # The first lock is that of the archive: who cannot have it because another has it does not go on.
        super().try_fault(scenario, kind, k, action, (0, 1) if (kind, k, action) == ('lock', 1, 'EWOULDBLOCK') else codes)

    def try_kill(self, scenario, kind, k, action):
        """Once more is an error where it was done already."""
        point = f'{scenario.name} {kind}:{k}:{action}'
        scenario.prepare()
        done, fired, _ = self.run_with(f'{kind}:{k}:{action}', *scenario.command)
        self.assertIsNotNone(fired, point)
        self.assertEqual(done.code, -signal.SIGKILL, f'{point}: {done!r}')
        self.assertLessEqual(len(temporaries(scenario.folder)), 1, point)
        was_done = contents(scenario.folder)['x.icma'] == self.new['x.icma']
        done = icma(*scenario.command)
        self.assertEqual(done.code, scenario.again if was_done else 0, f'after {point}: {done!r}')
        if was_done and scenario.again == 7:  # told from the names alone, before anything is written
            for name in temporaries(scenario.folder):
                (scenario.folder / name).unlink()
        self.assertEqual(contents(scenario.folder), self.new, f'after {point}')
        self.tally[scenario.name, f'{kind} {action}: {"done" if was_done else "done again"}'] += 1

    def test_add(self):
        for choice in ('old', 'new') if ALL else ('old',):
            scenario = self.scenario(f'add {choice}', 'add', self.shop / 'other' / 'c', '--generator', choice, '--epochs', '2', '-T', '1')
            scenario.again = 8
            self.sweep(scenario)

    def test_remove(self):
        scenario = self.scenario('remove', 'remove', '--task', 'a')
        scenario.again = 7
        self.sweep(scenario)


class Training(Fault):
    """A training that saves its state all the time, stopped at every call that writes, goes on to the same archive."""

    def test_stopped_and_resumed(self):
        folder = self.shop / 'out'
        command = ['pack', self.shop / 'tree', '-o', folder / 'x.icma', '--save-every', '0', *CONV]
        folder.mkdir()
        counts = self.count(*command)
        wanted = contents(folder)
        self.assertEqual(list(wanted), ['x.icma'])
        for kind in ('create', 'write', 'fsync', 'chmod', 'rename', 'unlink', 'lock'):
            for k in range(1, counts[kind] + 1, 1 if ALL else 3 if kind == 'write' else 2):
                for action in ('kill', 'killed', *FATAL.get(kind, [])[:1], *(['EIO'] if kind == 'fsync' else [])):
                    shutil.rmtree(folder)
                    folder.mkdir()
                    point = f'training {kind}:{k}:{action}'
                    done, fired, _ = self.run_with(f'{kind}:{k}:{action}', *command)
                    self.assertIsNotNone(fired, point)
                    self.assertIn(done.code, (-signal.SIGKILL,) if action.startswith('kill') else (0, 1), f'{point}: {done!r}')
                    if action.startswith('E'):
                        self.assertEqual(temporaries(folder), [], point)
                    done = icma(*command, '--resume', '-f')
                    self.assertEqual(done.code, 0, f'after {point}: {done!r}')
                    self.assertEqual(contents(folder), wanted, f'after {point}')
                    self.tally['training', f'{kind} {action}: same archive'] += 1


class Machine(Fault):
    """Other programs, and the machine's limits."""

    def start(self, *arguments):
        return subprocess.Popen([PROGRAM, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def test_several_at_once(self):
        """With -f the last one wins, without it the first; never a mixture, and no run takes another's temporary away."""
        folder = self.shop / 'out'
        images = {}
        for seed in '1234':
            self.assertEqual(icma('pack', self.shop / 'tree', '-o', self.shop / 'seed.icma', '-f', '--seed', seed, *QUICK).code, 0)
            images[seed] = (self.shop / 'seed.icma').read_bytes()
        for force in (False, True):
            for _ in range(25):
                shutil.rmtree(folder, True)
                folder.mkdir()
                runs = [self.start('pack', self.shop / 'tree', '-o', folder / 'x.icma', '--seed', seed, *QUICK, *(['-f'] if force else [])) for seed in images]
                codes = []
                for run in runs:
                    _, err = run.communicate(timeout=120)
                    codes.append(run.returncode)
                    self.assertIn(run.returncode, (0,) if force else (0, 8), err)
                if not force:
                    self.assertEqual(codes.count(0), 1, codes)
                self.assertEqual(files_below(folder), ['x.icma'])
                self.assertIn((folder / 'x.icma').read_bytes(), images.values())
                self.tally['at once', f'four packs{" -f" if force else ""}: one archive'] += 1

    def test_sources_change(self):
        """At every read: what is packed is a file as it was or as it became, or nothing is."""
        tree, folder = self.shop / 'changing', self.shop / 'out'
        original = (self.shop / 'tree' / 'a' / 'checkpoint-2' / 'adapter_model.safetensors').read_bytes()
        poked = original[:-1] + bytes([original[-1] ^ 1])
        path = tree / 'a' / 'checkpoint-2' / 'adapter_model.safetensors'
        noticed = 0
        for action in ('poke', 'grow'):
            for options in (['--tier', 'lossless'], ['--tier', 'latent', '--epochs', '2']):
                command = ['pack', tree, '-o', folder / 'x.icma', '-T', '1', '-q', *options]

                def prepare():
                    shutil.rmtree(tree, True)
                    shutil.rmtree(folder, True)
                    shutil.copytree(self.shop / 'tree', tree)
                    folder.mkdir()
                prepare()
                reads = self.count(*command)['read']
                for k in range(1, reads + 1, 1 if ALL else 3):
                    prepare()
                    point = f'{action} read {k} {options}'
                    done, fired, _ = self.run_with(f'read:{k}:{action}={path}', *command)
                    self.assertIsNotNone(fired, point)
                    # 3: the changed file alone was found broken, named and left out
                    self.assertIn(done.code, (0, 1, 3, 4), f'{point}: {done!r}')
                    self.assertEqual(temporaries(folder), [])
                    noticed += 'changed while it was read' in done.words
                    if done.code in (0, 3):
                        self.assertEqual(icma('verify', folder / 'x.icma', '--deep').code, 0, point)
                    else:
                        self.assertEqual(files_below(folder), [], point)
                    if done.code == 0:
                        # before it was opened, or after all was read
                        self.assertTrue(k < 24 or k > reads - 4, point)
                    if done.code == 0 and 'lossless' in options:
                        self.assertEqual(icma('unpack', folder / 'x.icma', '--task', 'a', '-o', folder / 'y', '-q').code, 0)
                        self.assertIn((folder / 'y').read_bytes(), (original, poked), point)
                    self.tally['changing', f'{action} {options[1]}: exit {done.code}'] += 1
        self.assertGreater(noticed, 0)

    def test_file_size_limit(self):
        """ulimit -f, at every kilobyte: a message and exit 1, not a death by SIGXFSZ."""
        folder = self.shop / 'out'
        whole = len((self.shop / 'tree.icma').read_bytes())
        done = 0
        for size in range(0, whole + 512, 64 if ALL else 256):
            shutil.rmtree(folder, True)
            folder.mkdir()
            result = icma('pack', self.shop / 'tree', '-o', folder / 'x.icma', *QUICK,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)))
            self.assertEqual(result.code, 0 if size >= whole else 1, f'{size}: {result!r}')
            self.assertEqual(files_below(folder), ['x.icma'] if size >= whole else [], size)
            if result.code:
                self.assertIn('File too large', result.words)
            done += result.code == 0
            self.tally['limit', f'ulimit -f: exit {result.code}'] += 1
        self.assertGreater(done, 0)

    def test_small_disk(self):
        """A tmpfs of every size: the archive is there and whole, or nothing is."""
        script = 'mount -t tmpfs -o size=$1 none "$2" && { [ -z "$3" ] || cp "$3" "$2/x.icma"; } && shift 3 && "$@"; code=$?; ls -A "$OUT"; exit $code'
        folder = self.shop / 'out'
        folder.mkdir(exist_ok=True)
        probe = subprocess.run(['unshare', '-Urm', 'mount', '-t', 'tmpfs', 'none', folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE) if shutil.which('unshare') else None
        if not probe or probe.returncode:
            self.skipTest(f'no tmpfs may be mounted here: {probe.stderr.decode().strip() if probe else "no unshare"}')
        sources = HERE.parents[1] / 'examples' / 'loras'
        command = [PROGRAM, 'pack', sources, '--tier', 'lossless', '-T', '1', '-q']
        whole = icma(*map(str, command[1:]), '-o', self.shop / 'whole.icma')
        self.assertEqual(whole.code, 0, whole)
        pages = (self.shop / 'whole.icma').stat().st_size // 4096 + 1
        for size in sorted({1, 2, 3, pages // 2, pages - 2, pages - 1, pages, pages + 1, pages + 2}):
            result = Result(subprocess.run(['unshare', '-Urm', 'sh', '-c', script, 'sh', f'{4 * size}k', folder, '', *command, '-o', folder / 'x.icma'],
                                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, 'OUT': str(folder)}))
            self.assertIn(result.code, (0, 1), f'{size} pages: {result!r}')
            self.assertEqual(result.text.split(), ['x.icma'] if result.code == 0 else [], f'{size} pages: {result!r}')
            self.assertEqual(result.code == 0, size >= pages, f'{size} pages of {pages}: {result!r}')
            self.tally['tmpfs', f'{"full" if result.code else "fits"}: exit {result.code}'] += 1

    def test_devices(self):
        """An output that is a device is refused, not replaced."""
        for verb in (['pack', self.shop / 'tree', *QUICK], ['unpack', self.shop / 'tree.icma', '--task', 'a']):
            for device in ('/dev/full', '/dev/null'):
                done = icma(*verb, '-o', device, '-f')
                self.assertEqual(done.code, 1, done)
                self.assertIn('not a regular file', done.words)


if __name__ == '__main__':
    topics = {'pack': Pack, 'unpack': Unpack, 'change': Change, 'training': Training, 'machine': Machine}
    chosen = [topics[word] for word in sys.argv[1:] if word in topics] or list(topics.values())
    suite = unittest.TestSuite(unittest.defaultTestLoader.loadTestsFromTestCase(case) for case in chosen)
    sys.exit(not unittest.TextTestRunner(verbosity=1).run(suite).wasSuccessful())
