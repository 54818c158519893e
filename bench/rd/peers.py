# SPDX-License-Identifier: Apache-2.0
"""The peers that need numpy and command-line tools only.

Each has encode(checkpoints, out): writes files below out, whose bytes are its rate; and
decode(checkpoints, out, back): reads nothing but those files and writes adapters below back.
The checkpoints given to decode say where adapters go, and lend them their adapter_config.json."""
import json
import os
import shutil
import subprocess
import tarfile

import numpy as np

from . import files


def model(c):
    return files.read(os.path.join(c.folder, files.MODEL))


def flat(out, c, suffix='.safetensors'):
    """The file of one checkpoint in a folder of files."""
    return os.path.join(out, c.task, f'{c.step}{suffix}')


class Cast:
    """The adapter in 16 bits: its own file format, no tool needed."""

    def __init__(self, dtype):
        self.dtype = dtype

    def encode(self, checkpoints, out):
        for c in checkpoints:
            files.write(flat(out, c), model(c), self.dtype)

    def decode(self, checkpoints, out, back):
        for c in checkpoints:
            folder = files.place(back, c)
            os.makedirs(folder)
            shutil.copyfile(flat(out, c), os.path.join(folder, files.MODEL))
            shutil.copyfile(os.path.join(c.folder, files.CONFIG), os.path.join(folder, files.CONFIG))


class Groups:
    """Symmetric integers of some bits in groups along the longer side, one F16 scale a group, bits packed into U8.

    step widens or narrows the quantiser by a few per cent: gain kept is taken over several."""

    def __init__(self, bits, group, step=1.0, zstd=False):
        self.bits, self.group, self.step, self.zstd = bits, group, step, zstd
        self.top = 2 ** (bits - 1) - 1

    def steps(self, factors):
        return [Groups(self.bits, self.group, f, self.zstd) for f in factors]

    def quantises(self):
        return self.bits <= 4

    def pack(self, v):
        rows, columns = v.shape
        if columns * self.bits % 8:
            raise files.NotMeasured(f'rows of {columns} values do not fill bytes at {self.bits} bits')
        padded = np.zeros((rows, -(-columns // self.group) * self.group), np.float32)
        padded[:, :columns] = v
        groups = padded.reshape(rows, -1, self.group)
        scales = (np.abs(groups).max(-1) / self.top * self.step).astype(np.float16)
        safe = np.where(scales > 0, scales, 1).astype(np.float32)[..., None]
        q = np.clip(np.rint(groups / safe), -self.top, self.top).astype(np.int64).reshape(rows, -1)[:, :columns] + self.top
        bits = (q[..., None] >> np.arange(self.bits)) & 1
        return np.packbits(bits.astype(np.uint8).reshape(rows, -1), axis=1), scales

    def unpack(self, packed, scales):
        rows, columns = packed.shape[0], packed.shape[1] * 8 // self.bits
        bits = np.unpackbits(packed, axis=1).reshape(rows, columns, self.bits).astype(np.int64)
        q = (bits << np.arange(self.bits)).sum(-1) - self.top
        return (q * np.repeat(scales.astype(np.float32), self.group, 1)[:, :columns]).astype(np.float32)

    def encode(self, checkpoints, out):
        for c in checkpoints:
            tensors = {}
            for name, v in model(c).items():
                stem = name[:-len('.weight')]
                tensors[stem + '.q'], tensors[stem + '.s'] = self.pack(v.T if '.lora_B.' in name else v)
            files.write(flat(out, c), tensors)
        if self.zstd:
            tool('zstd', '-19', '-q', '--rm', '-r', out)

    def decode(self, checkpoints, out, back):
        if self.zstd:
            tool('zstd', '-d', '-q', '-r', out)
        for c in checkpoints:
            stored, tensors = files.read(flat(out, c)), {}
            for name in [n[:-2] for n in stored if n.endswith('.q')]:
                v = self.unpack(stored[name + '.q'], stored[name + '.s'])
                tensors[name + '.weight'] = v.T if name.endswith('.lora_B') else v
            files.put(back, c, tensors)


class Rank:
    """The best approximation of dW of a lower rank (singular value decomposition), as an adapter of that rank."""

    def __init__(self, rank, dtype):
        self.rank, self.dtype = rank, dtype

    def truncate(self, a, b):
        qb, rb = np.linalg.qr(b.astype(np.float64))
        qa, ra = np.linalg.qr(a.astype(np.float64).T)
        u, s, v = np.linalg.svd(rb @ ra.T)
        root = np.sqrt(s[:self.rank])
        return (root[:, None] * v[:self.rank]) @ qa.T, (qb @ u[:, :self.rank]) * root

    def encode(self, checkpoints, out):
        for c in checkpoints:
            tensors, new = model(c), {}
            for name, a in tensors.items():
                if '.lora_A.' in name:
                    other = name.replace('.lora_A.', '.lora_B.')
                    new[name], new[other] = self.truncate(a, tensors[other])
            files.write(flat(out, c), new, self.dtype)

    def decode(self, checkpoints, out, back):
        for c in checkpoints:
            config = files.config(c.folder)
            config.update(r=self.rank, lora_alpha=files.scale(c.folder) * self.rank, use_rslora=False)
            folder = files.place(back, c)
            os.makedirs(folder)
            shutil.copyfile(flat(out, c), os.path.join(folder, files.MODEL))
            with open(os.path.join(folder, files.CONFIG), 'w') as f:
                json.dump(config, f)


class Soup:
    """One average a task, in place of all its checkpoints."""

    def __init__(self, dtype):
        self.dtype = dtype

    def encode(self, checkpoints, out):
        for task in {c.task for c in checkpoints}:
            own = [model(c) for c in checkpoints if c.task == task]
            mean = {name: np.mean([m[name] for m in own], 0, dtype=np.float64) for name in own[0]}
            files.write(os.path.join(out, task + '.safetensors'), mean, self.dtype)

    def decode(self, checkpoints, out, back):
        for c in checkpoints:
            files.put(back, c, files.read(os.path.join(out, c.task + '.safetensors')), self.dtype)


class Pca:
    """The mathematics of vlora (SHARE) in one file: a mean and k principal components for each layer and side over all
    adapters, k loadings an adapter. Without a package's file headers, so a lower bound of what it can store."""

    def __init__(self, k, dtype):
        self.k, self.dtype = k, dtype

    def encode(self, checkpoints, out):
        adapters = [model(c) for c in checkpoints]
        if self.k >= len(adapters):
            raise files.NotMeasured(f'k = {self.k} needs more than {len(adapters)} adapters')
        tensors, loadings = {}, []
        for name in adapters[0]:
            x = np.stack([m[name].ravel() for m in adapters]).astype(np.float64)
            mean = x.mean(0)
            values, vectors = np.linalg.eigh((x - mean) @ (x - mean).T)
            keep = np.argsort(-values)[:self.k]
            basis = vectors[:, keep].T @ (x - mean) / np.sqrt(np.maximum(values[keep], 1e-30))[:, None]
            shape = adapters[0][name].shape
            tensors[name] = np.concatenate([mean[None], basis]).reshape((self.k + 1,) + shape)
            loadings.append((x - mean) @ basis.T)
        tensors['loadings'] = np.stack(loadings, 1)
        files.write(os.path.join(out, 'shared.safetensors'), tensors, self.dtype)

    def decode(self, checkpoints, out, back):
        stored = files.read(os.path.join(out, 'shared.safetensors'))
        loadings = stored.pop('loadings').astype(np.float64)
        for n, c in enumerate(checkpoints):
            files.put(back, c, {name: v[0] + np.tensordot(loadings[n, i], v[1:].astype(np.float64), 1)
                                for i, (name, v) in enumerate(stored.items())}, 'F32')


def tool(*words, **more):
    """Runs a program, or says why not."""
    if not shutil.which(words[0]):
        raise files.NotMeasured(f'{words[0]} is not installed')
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, **more)
    if done.returncode:
        raise files.NotMeasured(f'{words[0]} failed: {(done.stderr.strip().splitlines() or ["no message"])[-1]}')


class EachFile:
    """A general compressor on each file: words compress in place, undo restores in place."""

    def __init__(self, suffix, words, undo):
        self.suffix, self.words, self.undo = suffix, words, undo

    def encode(self, checkpoints, out):
        for c in checkpoints:
            os.makedirs(os.path.dirname(flat(out, c)), exist_ok=True)
            shutil.copyfile(os.path.join(c.folder, files.MODEL), flat(out, c))
        tool(*self.words, *[flat(out, c) for c in checkpoints])

    def decode(self, checkpoints, out, back):
        tool(*self.undo, *[flat(out, c) + self.suffix for c in checkpoints])
        for c in checkpoints:
            os.makedirs(files.place(back, c))
            os.replace(flat(out, c), os.path.join(files.place(back, c), files.MODEL))


class Tar:
    """All files in one tar, compressed in one stream."""

    def __init__(self, suffix, words, undo):
        self.suffix, self.words, self.undo = suffix, words, undo

    def encode(self, checkpoints, out):
        os.makedirs(out, exist_ok=True)
        path = os.path.join(out, 'all.tar')
        with tarfile.open(path, 'w', format=tarfile.USTAR_FORMAT) as tar:
            for c in checkpoints:
                member = tarfile.TarInfo(f'{c.task}/checkpoint-{c.step}/{files.MODEL}')
                member.size = os.path.getsize(os.path.join(c.folder, files.MODEL))
                with open(os.path.join(c.folder, files.MODEL), 'rb') as f:
                    tar.addfile(member, f)
        tool(*self.words, path)

    def decode(self, checkpoints, out, back):
        tool(*self.undo, os.path.join(out, 'all.tar' + self.suffix))
        with tarfile.open(os.path.join(out, 'all.tar')) as tar:
            tar.extractall(back)


class Package:
    """A peer that is a Python package, run by the interpreter of its own environment (rd/package_peers.py)."""

    def __init__(self, python, name, **options):
        self.python, self.name, self.options = python, name, options

    def call(self, verb, checkpoints, out, back=None):
        job = {'verb': verb, 'peer': self.name, 'options': self.options, 'out': out, 'back': back,
               'adapters': [[c.task, c.step, c.folder] for c in checkpoints]}
        done = subprocess.run([self.python(), os.path.join(os.path.dirname(__file__), 'package_peers.py')], text=True,
                              input=json.dumps(job), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode:
            raise files.NotMeasured(f'{self.name} failed: {(done.stderr.strip().splitlines() or ["no message"])[-1]}')

    def encode(self, checkpoints, out):
        os.makedirs(out, exist_ok=True)
        self.call('encode', checkpoints, out)

    def decode(self, checkpoints, out, back):
        self.call('decode', checkpoints, out, back)
        for c in checkpoints:
            at = os.path.join(files.place(back, c), files.CONFIG)
            if not os.path.exists(at):
                shutil.copyfile(os.path.join(c.folder, files.CONFIG), at)
