# SPDX-License-Identifier: Apache-2.0
"""The command lines that bench/peers compares: words for each verb, or None where a program has no such verb."""
import pathlib

MODEL, CONFIG = 'adapter_model.safetensors', 'adapter_config.json'
VENV = pathlib.Path(__file__).resolve().parents[2] / 'build' / 'peers-venv'


class Peer:
    """Commands by verb; each is given paths and returns words, or None where there is no such verb. `tree` is <task>/checkpoint-N/,
    `flat` the same adapters as <task>-N/."""
    name, loses = '', 'nothing'

    def pack(self, tree, flat, out):
        raise NotImplementedError

    def add(self, out, folder, label):
        return None

    def remove(self, out, task):
        return None

    def list(self, out):
        return None

    def one(self, out, label, to):
        return None

    def every(self, out, to):
        return None

    def verify(self, out):
        return None

    def found(self, to, label):
        """Where verb `one` or `every` has put an adapter."""
        return pathlib.Path(to) / MODEL


class Icma(Peer):
    program = 'icma'

    def __init__(self, name, *options):
        self.name, self.options = name, options

    def pack(self, tree, flat, out):
        return [self.program, 'pack', tree, '-o', out, '-f', '-q', *self.options]

    def add(self, out, folder, label):
        return [self.program, 'add', out, folder, '-q']

    def remove(self, out, task):
        return [self.program, 'remove', out, '--task', task, '-q']

    def list(self, out):
        return [self.program, 'list', '-v', out]

    def one(self, out, label, to):
        task, step = label.rsplit('-', 1)
        return [self.program, 'unpack', out, '--task', task, '--checkpoint', step, '-C', to, '-q']

    def every(self, out, to):
        return [self.program, 'unpack', out, '--checkpoint', 'all', '-C', to, '-q']

    def verify(self, out):
        return [self.program, 'verify', out, '-q']

    def found(self, to, label):
        task, step = label.rsplit('-', 1)
        deep = pathlib.Path(to) / task / f'checkpoint-{step}' / MODEL
        return deep if deep.exists() else pathlib.Path(to) / task / MODEL


class Lorashare(Peer):
    name = 'lorashare'

    def pack(self, tree, flat, out):
        return [VENV / 'bin/lorashare', 'compress', *sorted(flat.iterdir()), '-o', out, '--device', 'cpu']

    def list(self, out):
        return [VENV / 'bin/lorashare', 'info', out]

    def one(self, out, label, to):
        return [VENV / 'bin/lorashare', 'reconstruct', out, '--adapter', label, '-o', to]

    def every(self, out, to):
        return [VENV / 'bin/lorashare', 'reconstruct', out, '--all', '-o', to]

    def found(self, to, label):
        deep = pathlib.Path(to) / label / MODEL
        return deep if deep.exists() else pathlib.Path(to) / MODEL


class Vlora(Peer):
    name = 'vlora'

    def pack(self, tree, flat, out):
        return [VENV / 'bin/vlora', 'compress', *sorted(flat.iterdir()), '-o', out]

    def add(self, out, folder, label):
        return [VENV / 'bin/vlora', 'add', out, folder, '--task-id', label]

    def list(self, out):
        return [VENV / 'bin/vlora', 'info', out]

    def one(self, out, label, to):
        return [VENV / 'bin/vlora', 'export', out, label, '-o', to]

    def verify(self, out):
        return [VENV / 'bin/vlora', 'validate', out]


class Tar(Peer):
    """tar through zstd -19 into one file, which knows nothing of what is in it."""
    name = 'tar and zstd -19'

    def pack(self, tree, flat, out):
        return ['sh', '-c', 'tar -C "$1" -cf - . | zstd -q -f -19 --long=27 -o "$2"', 'sh', tree, out]

    def list(self, out):
        return ['sh', '-c', 'zstd -qdc --long=27 "$1" | tar -tf -', 'sh', out]

    def one(self, out, label, to):
        task, step = label.rsplit('-', 1)
        return ['sh', '-c', 'mkdir -p "$2" && zstd -qdc --long=27 "$1" | tar -C "$2" -xf - "./$3"', 'sh', out, to, f'{task}/checkpoint-{step}']

    def every(self, out, to):
        return ['sh', '-c', 'mkdir -p "$2" && zstd -qdc --long=27 "$1" | tar -C "$2" -xf -', 'sh', out, to]

    def verify(self, out):
        return ['zstd', '-q', '-t', '--long=27', out]

    def found(self, to, label):
        task, step = label.rsplit('-', 1)
        return pathlib.Path(to) / task / f'checkpoint-{step}' / MODEL


CAST = '''
import os, shutil, sys, torch
from safetensors.torch import load_file, save_file
source, target, dtype = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3])
for folder, _, names in os.walk(source, followlinks=True):
    to = os.path.join(target, os.path.relpath(folder, source))
    os.makedirs(to, exist_ok=True)
    for name in names:
        if name == 'adapter_model.safetensors':
            tensors = load_file(os.path.join(folder, name))
            save_file({k: v.to(dtype) for k, v in tensors.items()}, os.path.join(to, name))
        elif name == 'adapter_config.json':
            shutil.copy(os.path.join(folder, name), os.path.join(to, name))
'''


class Cast(Peer):
    """safetensors' own Python library: a cast to 16 bits, in a few lines, because it has no command."""
    name = 'safetensors, cast to bf16'

    def pack(self, tree, flat, out):
        return [VENV / 'bin/python', '-c', CAST, tree, out, 'bfloat16']

    def add(self, out, folder, label):
        return [VENV / 'bin/python', '-c', CAST, folder, pathlib.Path(out) / 'added', 'bfloat16']

    def remove(self, out, task):
        return ['rm', '-r', pathlib.Path(out) / task]

    def list(self, out):
        return ['ls', '-R', out]

    def one(self, out, label, to):
        task, step = label.rsplit('-', 1)
        return [VENV / 'bin/python', '-c', CAST, pathlib.Path(out) / task / f'checkpoint-{step}', to, 'float32']

    def every(self, out, to):
        return [VENV / 'bin/python', '-c', CAST, out, to, 'float32']

    def found(self, to, label):
        task, step = label.rsplit('-', 1)
        deep = pathlib.Path(to) / task / f'checkpoint-{step}' / MODEL
        return deep if deep.exists() else pathlib.Path(to) / MODEL


PEERS = (Icma('icma (bounded, dW 0.1)'), Icma('icma --tier lossless', '--tier', 'lossless'), Icma('icma --tier latent', '--tier', 'latent'),
         Lorashare(), Vlora(), Cast(), Tar())
