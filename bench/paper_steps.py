# SPDX-License-Identifier: Apache-2.0
"""What bench/paper measures, a step at a time: each step's result is kept and is not measured again.

A step is named, and belongs to all that it depends on: adapters (by their bytes), options, seeds, evaluation. The icma program is not among these, so that a new
build does not throw hours of training away: --again does."""
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

from rd import files, measure
from rd.files import NotMeasured

VECTOR = 'task_vector.safetensors'


def say(words):
    print('paper: ' + words, file=sys.stderr, flush=True)


class Ledger:
    """Results by name, in a file."""

    def __init__(self, path, again=None):
        self.path, self.again, self.frozen, self.known, self.fresh = path, again, False, {}, set()
        if os.path.exists(path):
            with open(path) as f:
                self.known = json.load(f)

    def once(self, name, of, make, still_there=lambda: True):
        of = json.loads(json.dumps(of))
        entry = self.known.get(name)
        redo = self.again and re.search(self.again, name) and name not in self.fresh
        if entry and entry['of'] == of and not redo and still_there():
            return entry['is']
        if self.frozen:
            raise NotMeasured('not measured yet')
        say(name)
        self.known[name] = {'of': of, 'is': make()}
        self.fresh.add(name)
        with open(self.path + '.new', 'w') as f:
            json.dump(self.known, f, indent=1)
        os.replace(self.path + '.new', self.path)
        return self.known[name]['is']


class Tree:
    """Adapters below a folder, of which the last `last` of each task take part, and what judges them (rd.measure.Gain, or None)."""

    def __init__(self, name, folder, last, gain):
        self.name, self.folder, self.last, self.gain = name, folder, last, gain
        found = files.find(folder) if os.path.isdir(folder) else []
        if not found:
            raise NotMeasured(f'no <task>/checkpoint-N/{files.MODEL} below {os.path.basename(os.path.normpath(folder))}')
        self.tasks = sorted({c.task for c in found})
        own = [[c for c in found if c.task == task][-last:] for task in self.tasks]
        self.checkpoints = [c for task in own for c in task]
        self.final = {task[-1].task: task[-1].folder for task in own}
        tensors = files.read(os.path.join(self.checkpoints[0].folder, files.MODEL), numbers=False)
        self.parameters = sum(v.size for v in tensors.values())
        self.bytes = sum(os.path.getsize(os.path.join(c.folder, files.MODEL)) for c in self.checkpoints)
        vectors = [os.path.join(folder, task, VECTOR) for task in self.tasks]
        self.digest = files.digest(self.checkpoints) + ''.join(digest_of(v) for v in vectors)


def digest_of(path):
    if not os.path.exists(path):
        return '-'
    with open(path, 'rb') as f:
        return hashlib.blake2b(f.read(), digest_size=4).hexdigest()


def with_vectors(tree, folder, vector):
    """A copy of the tree's checkpoints with vector(task number) as each task's vector, or none."""
    shutil.rmtree(folder, ignore_errors=True)
    for c in tree.checkpoints:
        shutil.copytree(c.folder, files.place(folder, c))
    for number, task in enumerate(tree.tasks):
        if vector:
            files.write(os.path.join(folder, task, VECTOR), {'task_vector': vector(number)})
    return Tree(os.path.basename(folder), folder, tree.last, tree.gain)


def random_vectors(tree, seed):
    """Of the given ones' length, from N(0, 1)."""
    path = os.path.join(tree.folder, tree.tasks[0], VECTOR)
    if not os.path.exists(path):
        raise NotMeasured('no task vectors to put others in the place of')
    size = next(iter(files.read(path).values())).size
    return lambda number: np.random.default_rng([seed, number]).standard_normal(size).astype('<f4')


def evaluation(tree):
    """All that a judgement depends on, beside the adapter."""
    if not tree.gain:
        raise NotMeasured('no evaluation')
    text = hashlib.blake2b(b''.join(tree.gain.text(t).tobytes() for t in tree.tasks), digest_size=8).hexdigest()
    return [tree.gain.root.hex()[:16], text, tree.gain.sequences]


class Keeper(threading.Thread):
    """Keeps the last state of a training that icma saves while it runs: icma removes its own when the archive is there, but another tier of the same
    generator can go on from it instead of training again."""

    def __init__(self, path, kept):
        super().__init__(daemon=True)
        self.path, self.kept, self.over = path, kept, threading.Event()

    def run(self):
        while not self.over.wait(1):
            try:
                if not os.path.exists(self.kept) or not os.path.samefile(self.path, self.kept):
                    os.link(self.path, self.kept + '.new')
                    os.replace(self.kept + '.new', self.kept)
            except FileNotFoundError:
                pass    # not saved yet, or between two names

    def __enter__(self):
        self.start()

    def __exit__(self, *_):
        self.over.set()
        self.join()


class Icma:
    """Packs trees and judges what the archives generate."""

    def __init__(self, program, work, ledger, threads):
        self.program, self.work, self.ledger, self.threads = program, work, ledger, threads
        os.makedirs(os.path.join(work, 'archives'), exist_ok=True)

    def run(self, *words):
        if not os.access(self.program, os.X_OK):
            raise NotMeasured('no icma program: build it, or name it with --icma')
        done = subprocess.run([self.program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ['no message'])[-1].replace('icma: error: ', '')
            raise NotMeasured(f'exit code {done.returncode}: ' + re.sub(r'\S*/', '', said))  # without this machine's folders
        return done.stdout

    def archive(self, tree, label):
        return os.path.join(self.work, 'archives', re.sub(r'[^\w.-]+', '_', f'{tree.name}-{label}') + '.icma')

    def pack(self, tree, label, words, like=None, file=False):
        """Bytes by kind and seconds of an archive; `like` is the label of one with the same training. With `file` it lies at self.archive(tree, label)."""
        path = self.archive(tree, label)

        def make():
            state = path + '.training'
            before = like and self.archive(tree, like) + '.kept'
            if before and os.path.exists(before) and not os.path.exists(state):
                shutil.copyfile(before, state)
            resumed, start = os.path.exists(state), time.monotonic()
            try:
                document = pack(state, resumed)
            except NotMeasured as why:
                if not resumed or 'exit code 2' not in str(why):
                    raise
                os.remove(state)    # of other options, or of another build
                resumed, document = False, pack(state, False)
            return {'bytes': document['bytes'], 'seconds': time.monotonic() - start, 'resumed': resumed, 'train': document['seconds']['train'],
                    'explained': document['generator']['within_task_explained'],
                    'dw_mean': float(np.mean([t['dw_error']['mean'] for t in document['tasks']]))}

        def pack(state, resumed):
            network = words[1] in ('conv', 'diffusion')
            more = (['--save-every', '15'] if network else []) + (['--resume'] if resumed else [])
            with contextlib.nullcontext() if like or not network else Keeper(state, path + '.kept'):
                return json.loads(self.run('pack', tree.folder, '-o', path, '-f', '--json', '--no-progress', '-T', str(self.threads),
                                           '--checkpoints', f'last:{tree.last}', *words, *more))
        return self.ledger.once(f'pack {tree.name} {label}', {'words': list(words), 'adapters': tree.digest}, make, lambda: not file or os.path.exists(path))

    def sampled(self, tree, label, words, seed):
        """{task: bits per character} of one adapter a task, generated from its condition and a seed."""
        def make():
            self.pack(tree, label, words, file=True)
            with tempfile.TemporaryDirectory(dir=self.work) as out:
                self.run('unpack', self.archive(tree, label), '--sample', '--seed', str(seed), '-C', out, '-q')
                return {task: tree.gain.bpc(task, os.path.join(out, task)) for task in tree.tasks}
        return self.ledger.once(f'sample {tree.name} {label} seed {seed}',
                                {'words': list(words), 'adapters': tree.digest, 'seed': seed, 'evaluation': evaluation(tree)}, make)

    def originals(self, tree):
        """({task: bits per character of the base model}, the same with each task's last checkpoint)."""
        def make():
            return [{t: tree.gain.bpc(t, None) for t in tree.tasks}, {t: tree.gain.bpc(t, tree.final[t]) for t in tree.tasks}]
        return self.ledger.once(f'originals {tree.name}', {'adapters': tree.digest, 'evaluation': evaluation(tree)}, make)


TRAINING = {'epochs': 25, 'steps': 16, 'keep': 10}
QUICK_TRAINING = {'epochs': 8, 'steps': 4, 'keep': 4}


class Trainer:
    """Adapters of other ranks on the same base, by examples/train_adapters.py, a task at a time where they are not there yet, and the text that it holds out."""

    def __init__(self, ledger, root, work, lm, tasks, training, sequences):
        self.ledger, self.root, self.work, self.lm, self.tasks, self.training, self.sequences = ledger, root, work, lm, tasks, training, sequences
        self.python, self.judge = None, None

    def run(self, *words):
        if self.ledger.frozen:
            raise NotMeasured('not measured yet')
        if not self.python:
            made = subprocess.run([os.path.join(self.root, 'scripts', 'interop-venv')], stdout=subprocess.PIPE, text=True)
            if made.returncode:
                raise NotMeasured('adapters cannot be trained: scripts/interop-venv failed')
            self.python = made.stdout.strip()
        say('train_adapters.py ' + ' '.join(os.path.basename(w) for w in words))
        done = subprocess.run([self.python, os.path.join(self.root, 'examples', 'train_adapters.py'), *words, '--threads', '1'], stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise NotMeasured('training failed: ' + (done.stderr.strip().splitlines() or ['no message'])[-1])

    def gain(self):
        """The judge with the trainer's own held-out text."""
        folder = os.path.join(self.work, 'lm')
        if not self.judge:
            os.makedirs(folder, exist_ok=True)
            for name in ('eval.py', 'base.safetensors'):
                if not os.path.exists(os.path.join(folder, name)):
                    if not os.path.exists(os.path.join(self.lm, name)):
                        raise NotMeasured(f'no {name} in {os.path.basename(self.lm)}')
                    os.symlink(os.path.join(self.lm, name), os.path.join(folder, name))
            missing = [t for t in self.tasks if not os.path.exists(os.path.join(folder, f'val_{t}.bin'))]
            if missing:
                self.run(folder, '--held-out', '--tasks', ','.join(missing))
            self.judge = measure.Gain(folder, os.path.join(self.work, 'bpc-trained.json'), self.sequences)
        return self.judge

    def tree(self, rank):
        folder = os.path.join(self.work, f'loras-r{rank}')
        done = lambda task: os.path.isdir(os.path.join(folder, task)) and sum(c.task == task for c in files.find(folder)) >= self.training['keep']
        for task in [t for t in self.tasks if not done(t)]:
            if not self.ledger.frozen:
                shutil.rmtree(os.path.join(folder, task), ignore_errors=True)
            words = [w for name, value in self.training.items() for w in (f'--{name}', str(value))]
            self.run(folder, '--base', os.path.join(self.lm, 'base.safetensors'), '--rank', str(rank), '--tasks', task, *words)
        return Tree(f'r{rank}', folder, self.training['keep'], self.gain())
