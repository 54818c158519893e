# SPDX-License-Identifier: Apache-2.0
"""What bench/paper measures, a step at a time: each step's result is kept and is not measured again.

A step is named, and belongs to all that it depends on: adapters (by their bytes), options, seeds, evaluation. The icma program is not among these, so that a new
build does not throw hours of training away: --again does."""
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

from rd import files
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
    """Adapters below a folder, of which the last `last` of each task take part."""

    def __init__(self, name, folder, last):
        self.name, self.folder, self.last = name, folder, last
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
        self.digest = files.digest(self.checkpoints) + ''.join(files_hash(v) for v in vectors)


def files_hash(path):
    import hashlib
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
    return Tree(os.path.basename(folder), folder, tree.last)


def random_vectors(tree, seed):
    """Of the given ones' length, from N(0, 1)."""
    path = os.path.join(tree.folder, tree.tasks[0], VECTOR)
    if not os.path.exists(path):
        raise NotMeasured('no task vectors to put others in the place of')
    size = next(iter(files.read(path).values())).size
    return lambda number: np.random.default_rng([seed, number]).standard_normal(size).astype('<f4')


class Keeper(threading.Thread):
    """Keeps the last state of a training that icma saves while it runs: icma removes its own when the archive is there, but another tier of the same
    generator can go on from it instead of training again."""

    def __init__(self, path, kept):
        super().__init__(daemon=True)
        self.path, self.kept, self.over = path, kept, threading.Event()

    def run(self):
        while not self.over.wait(1):
            try:
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

    def __init__(self, program, work, ledger, gain, threads):
        self.program, self.work, self.ledger, self.gain, self.threads = program, work, ledger, gain, threads
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

    def pack(self, tree, label, words, like=None):
        """Bytes by kind and seconds of an archive, which then lies at self.archive(tree, label); `like` is the label of one with the same training."""
        path = self.archive(tree, label)

        def make():
            state, more = path + '.training', []
            before = self.archive(tree, like) + '.kept' if like else state
            if before != state and os.path.exists(before) and not os.path.exists(state):
                shutil.copyfile(before, state)
            resumed = os.path.exists(state)
            if words[1] in ('conv', 'diffusion'):
                more = ['--save-every', '15'] + (['--resume'] if resumed else [])
            start = time.monotonic()
            with Keeper(state, path + '.kept'):
                document = pack(more)
            return {'bytes': document['bytes'], 'seconds': time.monotonic() - start, 'resumed': resumed, 'train': document['seconds']['train'],
                    'explained': document['generator']['within_task_explained'],
                    'dw_mean': float(np.mean([t['dw_error']['mean'] for t in document['tasks']]))}

        def pack(more):
            return json.loads(self.run('pack', tree.folder, '-o', path, '-f', '--json', '--no-progress', '-T', str(self.threads),
                                       '--checkpoints', f'last:{tree.last}', *words, *more))
        return self.ledger.once(f'pack {tree.name} {label}', {'words': list(words), 'adapters': tree.digest}, make, lambda: os.path.exists(path))

    def sampled(self, tree, label, words, seed):
        """{task: bits per character} of one adapter a task, generated from its condition and a seed."""
        self.pack(tree, label, words)

        def make():
            with tempfile.TemporaryDirectory(dir=self.work) as out:
                self.run('unpack', self.archive(tree, label), '--sample', '--seed', str(seed), '-C', out, '-q')
                return {task: self.gain.bpc(task, os.path.join(out, task)) for task in tree.tasks}
        return self.ledger.once(f'sample {tree.name} {label} seed {seed}',
                                {'words': list(words), 'adapters': tree.digest, 'seed': seed, 'evaluation': self.evaluation()}, make)

    def evaluation(self):
        if not self.gain:
            raise NotMeasured('no evaluation')
        return [self.gain.root.hex()[:16], self.gain.sequences]

    def originals(self, tree):
        """({task: bits per character of the base model}, the same with each task's last checkpoint)."""
        def make():
            return [{t: self.gain.bpc(t, None) for t in tree.tasks}, {t: self.gain.bpc(t, tree.final[t]) for t in tree.tasks}]
        return self.ledger.once(f'originals {tree.name}', {'adapters': tree.digest, 'evaluation': self.evaluation()}, make)


TRAINING = {'epochs': 25, 'steps': 16, 'keep': 10}
QUICK_TRAINING = {'epochs': 8, 'steps': 4, 'keep': 4}


def trained(ledger, root, work, rank, tasks, training, lm):
    """The tree of adapters of a rank, trained here where it is not there yet: a task at a time, so that it can be continued."""
    folder = os.path.join(work, f'loras-r{rank}')
    done = lambda task: os.path.isdir(os.path.join(folder, task)) and sum(c.task == task for c in files.find(folder)) >= training['keep']
    missing = [t for t in tasks if not done(t)]
    if missing and ledger.frozen:
        raise NotMeasured(f'adapters of rank {rank} are not trained yet')
    if missing:
        made = subprocess.run([os.path.join(root, 'scripts', 'interop-venv')], stdout=subprocess.PIPE, text=True)
        if made.returncode:
            raise NotMeasured('adapters cannot be trained: scripts/interop-venv failed')
    for task in missing:
        say(f'train rank {rank} {task}')
        shutil.rmtree(os.path.join(folder, task), ignore_errors=True)
        words = [w for name, value in training.items() for w in (f'--{name}', str(value))]
        done_with = subprocess.run([made.stdout.strip(), os.path.join(root, 'examples', 'train_adapters.py'), folder, '--base', os.path.join(lm, 'base.safetensors'),
                                    '--rank', str(rank), '--tasks', task, '--threads', '1', *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done_with.returncode:
            shutil.rmtree(os.path.join(folder, task), ignore_errors=True)
            raise NotMeasured('training failed: ' + (done_with.stderr.strip().splitlines() or ['no message'])[-1])
    return Tree(f'r{rank}', folder, training['keep'])
