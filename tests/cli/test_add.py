#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""add and remove: what the archive holds then, section by section, and what comes out of it, measured here with numpy and SHA-256."""
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

from harness import PROGRAM, QUICK, Case, files_below, floats, icma, lora, main, safetensors, write_adapter, write_tree
from test_tiers import MODEL, sums, worst_errors

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / 'python'))
import icma_reader  # noqa: E402

STEPS = (10, 20, 30, 100)
FOUR, FIVE = ('bird', 'cat', 'dog', 'fox'), ('ant', 'bird', 'cat', 'dog', 'fox')


def sections(path, names=None):
    """{(kind, group, task's name, first, count): SHA-256 of the stored bytes}; only of these tasks, and of none"""
    with icma_reader.Container(path) as container:
        owner = [*container.names]
        found = {(s.kind, s.group, None if s.task == icma_reader.NONE else owner[s.task], s.first, s.count):
                 hashlib.sha256(container.read(s.offset, s.stored)).hexdigest() for s in container.sections}
    return {key: value for key, value in found.items() if names is None or key[2] is None or key[2] in names}


class Change(Case):
    """A tree of five tasks beside the class' own, and archives of some of them."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.five = cls.shop / 'five'
        write_tree(cls.five, FIVE, STEPS)

    def pack(self, name, tasks, *options):
        self.run_icma(0, 'pack', *(self.five / task for task in tasks), '-o', name, '-f', '-q', *QUICK, *(options or ('--generator', 'basis')))
        return self.here / name

    def add(self, name, *arguments, code=0):
        return self.run_icma(code, 'add', name, *arguments, '--json', '-T', '1')

    def unpack(self, name, *more, to='out'):
        shutil.rmtree(self.here / to, ignore_errors=True)
        self.run_icma(0, 'unpack', name, '-C', to, '--checkpoint', 'all', '-q', *more)
        return sums(self.here / to)

    def worst(self, name, task, kind='dw'):
        self.unpack(name, '--task', task, to='measured')
        paths = sorted((self.five / task).rglob(MODEL))
        self.assertEqual(len(paths), len(STEPS))
        return max(worst_errors(p, self.here / 'measured' / p.relative_to(self.five))[kind] for p in paths)

    def whole(self, name):
        self.run_icma(0, 'verify', name, '--deep')
        with icma_reader.open(self.here / name) as archive:
            archive.check()


class Add(Change):
    def test_each_fifth(self):
        """Whichever is the fifth: no section of the four changes, they come out bit for bit, and the fifth holds the bound."""
        for fifth in FIVE:
            others = [task for task in FIVE if task != fifth]
            for choice in ('auto', 'old', 'new'):
                self.pack('x.icma', others)
                before, files = sections(self.here / 'x.icma'), self.unpack('x.icma')
                told = self.add('x.icma', self.five / fifth, '--generator', choice).json
                after = sections(self.here / 'x.icma')
                self.assertEqual({key: after.get(key) for key in before}, before, fifth)
                self.assertTrue(all(key[2] == fifth or key[1] > 0 for key in after.keys() - before.keys()), fifth)
                got = self.unpack('x.icma')
                self.assertEqual({path: got.get(path) for path in files}, files, fifth)
                self.assertLessEqual(self.worst('x.icma', fifth), 0.1)
                self.assertEqual([task['task'] for task in self.run_icma(0, 'list', 'x.icma', '--json').json['tasks']], list(FIVE))
                self.assertEqual([(g['joined'], g['checkpoints'], g['group']) for g in told['groups']][0][1:], (4, 0 if told['groups'][0]['joined'] else 1))
                self.assertEqual(told['groups'][0]['joined'], {'old': True, 'new': False}.get(choice, told['groups'][0]['expected_old_bytes'] <= told['groups'][0]['expected_new_bytes']))
                self.assertTrue(0 <= told['groups'][0]['explained'] <= 1)
                self.assertEqual(told['bytes']['total'], (self.here / 'x.icma').stat().st_size)
                self.whole('x.icma')

    def test_every_tier(self):
        """As the archive's tasks are kept, when nothing is said; else as asked for."""
        for options, kind in ((('--tier', 'latent'), 'latent'), (('--tier', 'generate'), 'generate'), (('--tier', 'lossless'), 'lossless'), (('--tier', 'lossless', '--generator', 'basis'), 'lossless'),
                              (('--generator', 'none'), 'bounded'), (('--max-error', 'abs=0.01', '--generator', 'basis'), 'bounded'), (('--max-error', 'rel=0.03', '--generator', 'basis'), 'bounded')):
            for choice in ('old', 'new', 'auto'):
                self.pack('x.icma', FOUR, *options)
                files = self.unpack('x.icma')
                told = self.add('x.icma', self.five / 'ant', '--generator', choice).json
                self.assertEqual(told['tier'], kind)
                got = self.unpack('x.icma')
                self.assertEqual({path: got.get(path) for path in files}, files, options)
                self.whole('x.icma')
                if kind == 'lossless':
                    self.assertEqual({p: s for p, s in got.items() if p.startswith('ant/') and p.endswith(MODEL)}, {f'ant/{p}': s for p, s in sums(self.five / 'ant').items() if p.endswith(MODEL)})
                if kind == 'bounded':
                    self.assertEqual(told['bound']['kind'], {'none': 'dw', 'abs=0.01': 'abs'}.get(options[1], 'rel'))
                    self.assertLessEqual(self.worst('x.icma', 'ant', told['bound']['kind']), told['bound']['value'])
        self.pack('x.icma', FOUR)
        self.add('x.icma', self.five / 'ant', '--tier', 'lossless')
        tiers = {task['task']: task['tier'] for task in self.run_icma(0, 'list', 'x.icma', '--json').json['tasks']}
        self.assertEqual((tiers['ant'], tiers['bird']), ('lossless', 'bounded dw 0.1'))
        self.run_icma(0, 'remove', 'x.icma', '--task', 'cat', '-q')
        self.fails(2, 'add', 'x.icma', self.tree / 'cat', saying='--tier')

    def test_there_and_back(self):
        """What is removed again leaves the archive that was before, byte for byte; what is added again makes the same once more."""
        before = self.pack('x.icma', FOUR).read_bytes()
        for choice in ('old', 'new'):
            images = []
            for _ in range(2):
                self.add('x.icma', self.five / 'ant', '--generator', choice)
                images.append((self.here / 'x.icma').read_bytes())
                self.run_icma(0, 'remove', 'x.icma', '--task', 'ant', '-q')
                self.assertEqual((self.here / 'x.icma').read_bytes(), before)
            self.assertEqual(images[0], images[1])

    def test_threads(self):
        self.pack('x.icma', FOUR)
        for choice in ('old', 'new'):
            for threads in (1, 2, 5):
                self.run_icma(0, 'add', 'x.icma', self.five / 'ant', '-o', f'{choice}-{threads}.icma', '-q', '--generator', choice, '-T', threads)
            self.run_icma(0, 'add', 'x.icma', self.five / 'ant', '-o', f'{choice}-scalar.icma', '-q', '--generator', choice, '--scalar')
            images = {path.read_bytes() for path in self.here.glob(f'{choice}-*.icma')}
            self.assertEqual(len(images), 1)

    def test_other_signatures(self):
        """Newcomers of no known signature make a group; with their last task it goes."""
        before = self.pack('x.icma', FOUR).read_bytes()
        for step in STEPS:
            write_adapter(self.here / 'wide' / f'checkpoint-{step}', lora('wide', step, width=20))
            write_adapter(self.here / 'both' / f'checkpoint-{step}', lora('both', step, width=20 if step > 20 else 12))
        self.fails(6, 'add', 'x.icma', 'wide', '--generator', 'old', saying='no group')
        told = self.add('x.icma', 'wide', 'both').json
        self.assertEqual(len(told['groups']), 2)
        self.assertEqual([g['joined'] for g in told['groups'] if g['explained'] is None], [False])
        self.whole('x.icma')
        self.run_icma(0, 'remove', 'x.icma', '--task', 'both', '-q')
        self.whole('x.icma')
        told = self.run_icma(0, 'remove', 'x.icma', '--task', 'wide', '--json').json
        self.assertEqual((told['removed']['groups'], told['left']), (told['removed']['groups'], {'tasks': 4, 'groups': 1}))
        self.assertEqual((self.here / 'x.icma').read_bytes(), before)

    def test_generators_of_networks(self):
        """The encoder is not in the archive: newcomers make a group of their own."""
        self.pack('x.icma', FOUR, '--generator', 'conv', '--layers', '2', '--channels', '2,2', '--latent-dim', '2')
        old = self.unpack('x.icma')
        self.assertEqual(self.fails(6, 'add', 'x.icma', self.five / 'ant', '--generator', 'old', saying='encoder').out, b'')
        told = self.add('x.icma', self.five / 'ant').json
        self.assertEqual((told['groups'][0]['joined'], told['groups'][0]['group']), (False, 1))
        got = self.unpack('x.icma')
        self.assertEqual({path: got.get(path) for path in old}, old)
        self.assertLessEqual(self.worst('x.icma', 'ant'), 0.1)

    def test_odd_newcomers(self):
        """One checkpoint without step, a vector of another size, NaN, zeros, integers; headers and side files of their own."""
        tree = self.here / 'odd'
        write_tree(tree, ('one',), (5,))
        (tree / 'one' / 'checkpoint-5').rename(tree / 'one' / 'x')
        shutil.copytree(tree / 'one' / 'x', tree / 'single')
        shutil.rmtree(tree / 'one')
        (tree / 'single' / 'task_vector.safetensors').write_bytes(safetensors({'v': ('F32', (3,), floats([1, 2, 3]))}))
        (tree / 'single' / 'README.md').write_text('mine')
        image = bytearray(lora('nan', 5))
        image[-8:-4] = b'\x00\x00\xc0\x7f'
        write_adapter(tree / 'nan' / 'checkpoint-1', bytes(image))
        at = len(image) - 96
        write_adapter(tree / 'nan' / 'checkpoint-2', bytes(image[:at]) + bytes(96))
        self.pack('x.icma', FOUR)
        self.add('x.icma', tree, '--generator', 'old')
        self.whole('x.icma')
        listed = {task['task']: task for task in self.run_icma(0, 'list', 'x.icma', '--json').json['tasks']}
        self.assertEqual(listed['single']['condition'], {'origin': 'task_vector.safetensors', 'size': 3})
        self.assertEqual((listed['nan']['condition'], listed['cat']['condition']['size']), ({'origin': 'added', 'size': 0}, 8))
        self.run_icma(0, 'unpack', 'x.icma', '--task', 'nan', '--task', 'single', '--checkpoint', 'all', '-C', 'out', '-q')
        self.assertEqual((self.here / 'out/single/README.md').read_text(), 'mine')
        for step in (1, 2):
            self.assertEqual((self.here / f'out/nan/checkpoint-{step}' / MODEL).read_bytes()[-96:], (tree / f'nan/checkpoint-{step}' / MODEL).read_bytes()[-96:])

    def test_samples(self):
        """From an offset alone: the same for every seed, and near the task's checkpoints as far as the basis reaches."""
        self.pack('x.icma', FOUR)
        self.add('x.icma', self.five / 'ant', '--generator', 'old')
        drawn = [self.run_icma(0, 'unpack', 'x.icma', '--task', 'ant', '--sample', '--seed', seed, '-o', '-').out for seed in (1, 2)]
        self.assertEqual(drawn[0], drawn[1])
        with icma_reader.open(self.here / 'x.icma') as archive:
            self.assertEqual(archive.sample('ant', 1), drawn[0])
        self.fails(6, 'generate', 'x.icma', '--mix', 'ant:0.5,cat:0.5', '-o', 'y', saying='was added')
        self.run_icma(0, 'generate', 'x.icma', '--mix', 'dog:0.5,cat:0.5', '--like', 'ant', '-o', 'y', '-q')

    def test_reports(self):
        self.pack('x.icma', FOUR)
        words = self.run_icma(0, 'add', 'x.icma', self.five / 'ant', '--generator', 'old').words
        for part in ('added 4 checkpoints of 1 task to x.icma', 'joined group 0 (basis)', '% of their energy', 'bytes a new checkpoint'):
            self.assertIn(part, words)
        self.assertIn('ant', self.run_icma(0, 'report', 'x.icma', '-o', '-').text)
        told = self.run_icma(0, 'report', 'x.icma', '--against', self.five, '--json').json
        ant = [task for task in told['tasks'] if task['task'] == 'ant'][0]
        self.assertEqual((ant['checkpoints'], ant['tier']), (4, 'bounded dw 0.1'))
        self.assertEqual(told['against']['worse_than_recorded'], 0)
        self.run_icma(0, 'info', 'x.icma')

    def test_dry_run_and_output(self):
        before = self.pack('x.icma', FOUR).read_bytes()
        dry = self.add('x.icma', self.five / 'ant', '-n').json
        self.assertTrue(dry['dry_run'])
        self.assertEqual(files_below(self.here), ['x.icma'])
        wet = self.add('x.icma', self.five / 'ant', '-o', 'y.icma').json
        self.assertEqual(dry['bytes'], wet['bytes'])
        self.assertEqual((self.here / 'x.icma').read_bytes(), before)
        self.fails(8, 'add', 'x.icma', self.five / 'ant', '-o', 'y.icma', saying='-f')
        self.add('x.icma', self.five / 'ant', '-o', 'y.icma', '-f')
        self.fails(2, 'add', 'x.icma', self.five / 'ant', '-f', saying='-o')
        self.fails(2, 'add', 'x.icma', saying='icma add')
        self.fails(2, 'add', 'x.icma', self.five / 'ant', '--generator', 'basis', saying='old')
        self.fails(7, 'add', 'nowhere.icma', self.five / 'ant', saying='nowhere.icma')
        self.fails(4, 'add', self.five / 'ant/task_vector.safetensors', self.five / 'ant')
        self.assertEqual(files_below(self.here), ['x.icma', 'y.icma'])

    def test_permissions_and_links(self):
        """In place: the file keeps its permissions, a link stays a link."""
        path = self.pack('real.icma', FOUR)
        path.chmod(0o640)
        (self.here / 'link.icma').symlink_to('real.icma')
        self.add('link.icma', self.five / 'ant')
        self.assertTrue((self.here / 'link.icma').is_symlink())
        self.assertEqual(path.stat().st_mode & 0o7777, 0o640)
        self.assertIn('ant', self.run_icma(0, 'list', 'real.icma').text)
        self.run_icma(0, 'remove', 'link.icma', '--task', 'ant', '-q')
        self.assertTrue((self.here / 'link.icma').is_symlink())
        self.assertEqual(path.stat().st_mode & 0o7777, 0o640)

    def test_tasks_that_are_there(self):
        before = self.pack('x.icma', FOUR).read_bytes()
        self.fails(8, 'add', 'x.icma', self.five / 'cat', saying=('cat', 'icma remove'))
        shutil.copytree(self.five / 'ant', self.here / 'CAT')
        self.fails(2, 'add', 'x.icma', 'CAT', saying='case')
        self.assertEqual((self.here / 'x.icma').read_bytes(), before)

    def test_damaged(self):
        """Nothing is added to an archive with a section that does not match its checksum, and it stays as it is."""
        image = self.pack('x.icma', FOUR).read_bytes()
        for section in self.run_icma(0, 'info', 'x.icma', '-v', '--json').json['section_list']:
            for at in (section['offset'], section['offset'] + section['stored'] - 1):
                damaged = bytearray(image)
                damaged[at] ^= 16
                (self.here / 'x.icma').write_bytes(damaged)
                self.fails(4, 'add', 'x.icma', self.five / 'ant')
                self.assertEqual((self.here / 'x.icma').read_bytes(), damaged)
        self.assertEqual(files_below(self.here), ['x.icma'])

    def test_locked(self):
        path = self.pack('x.icma', FOUR)
        with path.open('rb') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for verb in (['add', 'x.icma', self.five / 'ant'], ['remove', 'x.icma', '--task', 'cat']):
                self.fails(1, *verb, saying='another process')
                self.run_icma(0, *verb, '-o', 'y.icma', '-f', '-q')

    def test_many_at_once(self):
        """Of several that change one archive at a time nobody's work is lost: who ends with 0 is in it, the others say why not."""
        write_tree(self.here / 'more', [f'more{i}' for i in range(5)], (1, 2))
        self.pack('x.icma', FOUR)
        for _ in range(3):
            runs = [subprocess.Popen([PROGRAM, 'add', 'x.icma', str(self.here / 'more' / f'more{i}'), '-q', '-T', '1'], cwd=self.here, stderr=subprocess.PIPE) for i in range(5)]
            there = {task['task'] for task in self.run_icma(0, 'list', 'x.icma', '--json').json['tasks']}
            wanted = set(FOUR)
            for i, run in enumerate(runs):
                _, err = run.communicate(timeout=120)
                self.assertIn(run.returncode, (0, 1), err)
                if run.returncode == 0:
                    wanted.add(f'more{i}')
                else:
                    self.assertRegex(err.decode(), 'another process is changing it|somebody else')
            there = {task['task'] for task in self.run_icma(0, 'list', 'x.icma', '--json').json['tasks']}
            self.assertEqual(there, wanted)
            self.assertGreater(len(wanted), len(FOUR))
            self.whole('x.icma')
            self.assertEqual([name for name in files_below(self.here) if name.startswith('.icma-')], [])
            self.pack('x.icma', FOUR)


class Steps(Change):
    """A training that goes on: archives of the first steps, to which the whole tree is added."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.five, cls.early = cls.shop / 'late', cls.shop / 'early'
        write_tree(cls.five, FIVE, (10, 20, 30, 40))
        shutil.copytree(cls.five, cls.early, ignore=shutil.ignore_patterns('checkpoint-40', 'ant'))

    def pack_early(self, *options):
        self.run_icma(0, 'pack', self.early, '-o', 'x.icma', '-f', '-q', *QUICK, *(options or ('--generator', 'basis')))
        return self.here / 'x.icma'

    def refused(self, code, *arguments, saying):
        before = (self.here / 'x.icma').read_bytes()
        self.fails(code, 'add', 'x.icma', *arguments, saying=saying)
        self.assertEqual((self.here / 'x.icma').read_bytes(), before)
        self.assertNotIn('.icma-', ' '.join(files_below(self.here)))

    def test_every_tier(self):
        """Only tables and texts of the tasks that go on change; old checkpoints come out bit for bit, new ones as the tier says; a second reader agrees."""
        for options, kind in (((), 'bounded'), (('--max-error', 'abs=0.001', '--generator', 'basis'), 'bounded'), (('--max-error', 'rel=0.01', '--generator', 'none'), 'bounded'),
                              (('--tier', 'lossless'), 'lossless'), (('--tier', 'lossless', '--restart', '2', '--generator', 'basis'), 'lossless'), (('--tier', 'latent'), 'latent'),
                              (('--tier', 'generate'), 'generate')):
            with self.subTest(options=options):
                before, files = sections(self.pack_early(*options)), self.unpack('x.icma')
                told = self.add('x.icma', self.five).json
                after, got = sections(self.here / 'x.icma'), self.unpack('x.icma')
                same = {key: value for key, value in before.items() if key[0] not in (4, 5) or key[2] is None}
                self.assertEqual({key: after.get(key) for key in same}, same)
                self.assertTrue(any(key[0] == 4 for key in before.keys() - same.keys()))
                self.assertEqual({path: got.get(path) for path in files}, files)
                self.assertEqual(len(got), len([p for p in sums(self.five) if 'task_vector' not in p]))
                self.assertEqual((told['skipped'], told['tier']), (12, kind))
                self.assertEqual([(t['task'], t['checkpoints'], t['checkpoints_before']) for t in told['tasks']], [('ant', 4, 0), *((task, 1, 3) for task in FOUR)])
                self.assertEqual([(g['continues'], g['checkpoints'], g['joined'], g['group']) for g in told['groups']][:4], [(task, 1, True, 0) for task in FOUR])
                self.assertEqual({key[3] for key in after if key[0] in (6, 9, 10) and key[2] in FOUR} - {0}, {3} if kind == 'lossless' or any(key[0] == 9 for key in after.keys() - before.keys() if key[2] in FOUR) else set())
                self.whole('x.icma')
                if kind == 'lossless':
                    self.assertEqual({p: s for p, s in got.items() if p.endswith(MODEL)}, {p: s for p, s in sums(self.five).items() if p.endswith(MODEL)})
                if kind == 'bounded':
                    for task in FIVE:
                        self.assertLessEqual(self.worst('x.icma', task, told['bound']['kind']), told['bound']['value'])
                self.refused(8, self.five, saying='nothing is new: 20 checkpoints')

    def test_step_after_step(self):
        """Each in its turn, to tasks that were packed and to one that was added, which keeps its offset; then a last one without step, which nothing follows."""
        self.pack_early()
        self.add('x.icma', self.five / 'ant', '--generator', 'old', '--checkpoints', 'last:3')
        for step in (200, 300):
            write_adapter(self.here / 'ant' / f'checkpoint-{step}', lora('ant', step))
            write_adapter(self.here / 'dog' / f'checkpoint-{step}', lora('dog', step))
            (self.here / 'dog' / f'checkpoint-{step}' / 'README.md').write_text(f'step {step}')
            told = self.add('x.icma', 'ant', 'dog').json
            self.assertEqual((told['skipped'], [t['checkpoints'] for t in told['tasks']]), (0 if step == 200 else 2, [1, 1]))
            self.whole('x.icma')
        listed = {task['task']: task for task in self.run_icma(0, 'list', 'x.icma', '--json').json['tasks']}
        self.assertEqual((listed['ant']['condition']['origin'], listed['dog']['condition']['origin']), ('task_vector.safetensors', 'task_vector.safetensors'))
        self.unpack('x.icma')
        self.assertEqual([(self.here / f'out/dog/checkpoint-{step}/README.md').read_text() for step in (200, 300)], ['step 200', 'step 300'])
        for task, steps in (('ant', (20, 30, 40, 200, 300)), ('dog', (10, 20, 30, 200, 300))):
            self.assertEqual(sorted(p.parent.name for p in (self.here / 'out' / task).rglob(MODEL)), sorted(f'checkpoint-{step}' for step in steps))
            for path in (self.here / task).rglob(MODEL):
                self.assertLessEqual(worst_errors(path, self.here / 'out' / path.relative_to(self.here))['dw'], 0.1)
        write_adapter(self.here / 'dog', lora('dog', 400))
        self.assertEqual(self.add('x.icma', 'dog').json['tasks'][0]['checkpoints_before'], 5)
        self.whole('x.icma')
        self.refused(8, 'dog', saying='nothing is new: 3 checkpoints of dog')
        write_adapter(self.here / 'dog' / 'checkpoint-500', lora('dog', 500))
        self.refused(8, 'dog', saying=('checkpoint-500', 'has no step', 'icma remove'))
        self.run_icma(0, 'remove', 'x.icma', '--task', 'dog', '-q')
        self.whole('x.icma')

    def test_refusals(self):
        self.pack_early()
        shutil.copytree(self.five / 'cat', self.here / 'cat')
        shutil.copytree(self.here / 'cat/checkpoint-20', self.here / 'cat/checkpoint-25')
        self.refused(8, 'cat', saying=('checkpoint-25', 'before the task', 'icma remove'))
        self.assertEqual(self.add('x.icma', 'cat', '--checkpoints', 'last:1', '-n').json['skipped'], 0)
        write_adapter(self.here / 'dog' / 'checkpoint-100', lora('dog', 100, width=20))
        self.refused(6, 'dog', saying=('checkpoint-100', 'not those of dog'))
        write_adapter(self.here / 'fox' / 'checkpoint-30', lora('fox', 30, seed=7))
        self.refused(8, 'fox', saying=('checkpoint-30', 'another training', 'icma remove'))
        write_adapter(self.here / 'fox' / 'checkpoint-40', lora('fox', 40, seed=7))
        self.refused(8, 'fox', saying=('checkpoint-30', 'another training'))
        write_adapter(self.here / 'fox' / 'checkpoint-30', lora('fox', 30, width=20))
        self.refused(8, 'fox', saying=('checkpoint-30', 'another training'))
        self.pack_early('--generator', 'conv', '--layers', '2', '--channels', '2,2', '--latent-dim', '2')
        self.refused(6, self.five, saying='encoder')
        self.pack_early('--generator', 'none')
        self.refused(6, self.five / 'dog', '--tier', 'latent', saying='no generator')

    def test_far_away(self):
        """Tier latent keeps what the generator predicts and nothing else: what it does not predict is not added so."""
        self.pack_early('--tier', 'latent')
        write_adapter(self.here / 'dog' / 'checkpoint-100', lora('dog', 100, seed=7))
        self.refused(6, 'dog', saying=('tier latent', '--tier bounded'))
        self.add('x.icma', 'dog', '--max-error', 'dw=0.1')
        self.whole('x.icma')
        self.unpack('x.icma', '--task', 'dog')
        self.assertLessEqual(worst_errors(self.here / 'dog/checkpoint-100' / MODEL, self.here / 'out/dog/checkpoint-100' / MODEL)['dw'], 0.1)

    def test_odd_ones_are_the_same(self):
        """NaN, zeros and tensors that are kept verbatim, under every tier: what is there is known again."""
        image = bytearray(lora('nan', 5, extra={'ids': ('I32', (3,), bytes(range(12)))}))
        image[-8:-4] = b'\x00\x00\xc0\x7f'
        for step in (1, 2):
            write_adapter(self.here / 'in' / 'nan' / f'checkpoint-{step}', bytes(image))
            write_adapter(self.here / 'in' / 'plain' / f'checkpoint-{step}', lora('plain', step))
        for options in ((), ('--tier', 'lossless'), ('--tier', 'latent'), ('--tier', 'generate'), ('--generator', 'conv', '--layers', '2', '--channels', '2,2', '--latent-dim', '2')):
            self.run_icma(0, 'pack', 'in', '-o', 'x.icma', '-f', '-q', *QUICK, *options)
            self.refused(8, 'in', saying='nothing is new: 4')

    def test_two_groups(self):
        """A task whose rank changed on the way goes on in both of its groups."""
        for step in (10, 20, 30, 40):
            write_adapter(self.here / 'both' / f'checkpoint-{step}', lora('both', step, rank=4 if step > 20 else 2))
        self.run_icma(0, 'pack', 'both', '-o', 'x.icma', '-q', *QUICK)
        files = self.unpack('x.icma')
        for step in (50, 60):
            write_adapter(self.here / 'both' / f'checkpoint-{step}', lora('both', step, rank=4 if step == 60 else 2))
        told = self.add('x.icma', 'both').json
        self.assertEqual([(g['group'], g['continues'], g['checkpoints']) for g in told['groups']], [(0, 'both', 1), (1, 'both', 1)])
        got = self.unpack('x.icma')
        self.assertEqual({path: got.get(path) for path in files}, files)
        self.whole('x.icma')

    def test_words_threads_and_dry_run(self):
        before = self.pack_early().read_bytes()
        words = self.run_icma(0, 'add', 'x.icma', self.five, '-n').words
        for part in ('would add 8 checkpoints of 5 tasks', '12 checkpoints of these tasks and steps are there already', '1 checkpoint of cat went on in group 0 (basis)', 'bytes each'):
            self.assertIn(part, words)
        self.assertEqual((self.here / 'x.icma').read_bytes(), before)
        for threads in (1, 2, 5):
            self.run_icma(0, 'add', 'x.icma', self.five, '-o', f'{threads}.icma', '-q', '-T', threads)
        self.run_icma(0, 'add', 'x.icma', self.five, '-o', 'scalar.icma', '-q', '--scalar')
        self.assertEqual(len({(self.here / f'{name}.icma').read_bytes() for name in (1, 2, 5, 'scalar')}), 1)


class Remove(Change):
    def test_sections(self):
        for gone in (('bird',), ('fox', 'cat'), ('bird', 'cat', 'dog')):
            self.pack('x.icma', FOUR)
            stay = [task for task in FOUR if task not in gone]
            before, files = sections(self.here / 'x.icma', stay), self.unpack('x.icma')
            told = self.run_icma(0, 'remove', 'x.icma', *(word for task in gone for word in ('--task', task)), '--json').json
            self.assertEqual((told['removed'], told['left']['tasks']), ({'tasks': len(gone), 'checkpoints': 4 * len(gone), 'groups': 0}, len(stay)))
            self.assertEqual(told['bytes_after'], (self.here / 'x.icma').stat().st_size)
            self.assertEqual(sections(self.here / 'x.icma'), before)
            self.assertEqual(self.unpack('x.icma'), {path: value for path, value in files.items() if path.split('/')[0] in stay})
            self.whole('x.icma')

    def test_refusals(self):
        before = self.pack('x.icma', FOUR).read_bytes()
        self.fails(7, 'remove', 'x.icma', '--task', 'brid', saying='bird')
        self.fails(7, 'remove', 'x.icma', '--task', 'bird', '--task', 'nobody', saying='nobody')
        self.fails(2, 'remove', 'x.icma', saying='--task')
        self.fails(2, 'remove', 'x.icma', *(word for task in FOUR for word in ('--task', task)), saying='no task would be left')
        self.fails(2, 'remove', 'x.icma', '--task', 'bird', '-f', saying='-o')
        self.run_icma(0, 'remove', 'x.icma', '--task', 'bird', '-n')
        self.assertEqual((self.here / 'x.icma').read_bytes(), before)
        self.run_icma(0, 'remove', 'x.icma', '--task', 'bird', '-o', 'y.icma', '-q')
        self.fails(8, 'remove', 'x.icma', '--task', 'bird', '-o', 'y.icma', saying='-f')
        self.assertEqual((self.here / 'x.icma').read_bytes(), before)
        words = self.run_icma(0, 'remove', 'x.icma', '--task', 'bird').words
        self.assertIn('pack the others again', words)

    def test_damaged(self):
        """What is damaged cannot stay; what goes may be damaged."""
        image = self.pack('x.icma', FOUR).read_bytes()
        listed = self.run_icma(0, 'info', 'x.icma', '-v', '--json').json['section_list']
        for section in listed:
            damaged = bytearray(image)
            damaged[section['offset']] ^= 1
            (self.here / 'x.icma').write_bytes(damaged)
            goes = section['task'] == 'cat'
            result = self.run_icma(0 if goes else 4, 'remove', 'x.icma', '--task', 'cat', '-q')
            self.assertEqual((self.here / 'x.icma').read_bytes() == damaged, not goes, result)
            if goes:
                self.whole('x.icma')

    def test_too_compressed(self):
        """Texts that compress well are paid for by the bytes of other tasks (spec 3.6): without them they are over the limit."""
        for name in ('texts', 'bytes'):
            write_adapter(self.here / 'in' / name, lora(name, 1, extra={'ids': ('U8', (1 << 21,), os.urandom(1 << 21) if name == 'bytes' else bytes(1 << 21))}))
        for number in range(3):
            (self.here / 'in' / 'texts' / f'{number}.md').write_bytes(b'%d' % number * (1 << 20))
        self.run_icma(0, 'pack', 'in', '-o', 'x.icma', '-q', *QUICK)
        before = (self.here / 'x.icma').read_bytes()
        self.fails(10, 'remove', 'x.icma', '--task', 'bytes', saying='pack it again')
        self.assertEqual((self.here / 'x.icma').read_bytes(), before)
        self.run_icma(0, 'remove', 'x.icma', '--task', 'texts', '-q')

    def test_json_errors(self):
        self.pack('x.icma', FOUR)
        error = json.loads(self.run_icma(7, 'remove', 'x.icma', '--task', 'x', '--json').words)['error']
        self.assertEqual((error['status'], error['exit']), ('ICMA_E_NOT_FOUND', 7))


if __name__ == '__main__':
    main()
