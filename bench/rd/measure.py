# SPDX-License-Identifier: Apache-2.0
"""What came back: dW error of every module of every checkpoint, and the gain kept on held-out text."""
import hashlib
import importlib.util
import json
import os

import numpy as np

from . import files


def factors(folder):
    """{module: (B, A)} in float64 with dW = B A: B is multiplied by the adapter's scale."""
    tensors, s = files.read(os.path.join(folder, files.MODEL)), files.scale(folder)
    out = {}
    for name, a in tensors.items():
        if '.lora_A.' in name:
            b = tensors[name.replace('.lora_A.', '.lora_B.')]
            out[name.split('.lora_A.')[0]] = s * b.astype(np.float64), a.astype(np.float64)
    return out


def norms(pairs):
    """|B A| of a stack of pairs. B = Q R and A^T = P S with orthonormal Q, P give |B A| = |R S^T|: as accurate as the product, and small."""
    r = np.linalg.qr(np.stack([b for b, _ in pairs]), mode='r')
    s = np.linalg.qr(np.stack([a.T for _, a in pairs]), mode='r')
    return np.linalg.norm(r @ s.transpose(0, 2, 1), axis=(1, 2))


def distortion(checkpoints, decoded):
    """The relative Frobenius error of dW: mean and maximum over all modules of all checkpoints."""
    stacks = {}
    for c in checkpoints:
        want, got = factors(c.folder), factors(files.place(decoded, c))
        if want.keys() != got.keys():
            raise files.NotMeasured(f'{c.task}/checkpoint-{c.step} came back with other modules')
        for name, (b, a) in want.items():
            gb, ga = got[name]
            # The difference of two products is one product: [B' -B] [A'; A].
            pair = (b, a), (np.concatenate([gb, -b], 1), np.concatenate([ga, a]))
            stacks.setdefault((b.shape, a.shape, gb.shape), []).append(pair)
    errors = []
    for stack in stacks.values():
        for norm, error in zip(norms([p for p, _ in stack]), norms([d for _, d in stack])):
            errors.append(error / norm if norm else float(error > 0))
    return {'dw_mean': float(np.mean(errors)), 'dw_max': float(np.max(errors))}


def same_bytes(checkpoints, decoded):
    """Whether every adapter file came back bit for bit."""
    for c in checkpoints:
        with open(os.path.join(c.folder, files.MODEL), 'rb') as f, \
                open(os.path.join(files.place(decoded, c), files.MODEL), 'rb') as g:
            if f.read() != g.read():
                return False
    return True


class Gain:
    """(base - reconstructed) / (base - original) in bits per character, by the model and texts of a folder with eval.py.

    One evaluation takes seconds, so each is kept in a file, named by all that goes into it."""

    def __init__(self, folder, cache, sequences):
        path = os.path.join(folder, 'eval.py')
        if not os.path.exists(path):
            raise files.NotMeasured(f'no eval.py in {os.path.basename(os.path.normpath(folder))}')
        spec = importlib.util.spec_from_file_location('lm_eval', path)
        self.lm = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.lm)
        self.folder, self.cache, self.sequences, self.texts = folder, cache, sequences, {}
        self.base = self.lm.load_safetensors(os.path.join(folder, 'base.safetensors'))
        with open(path, 'rb') as f, open(os.path.join(folder, 'base.safetensors'), 'rb') as g:
            self.root = hashlib.blake2b(f.read() + g.read()).digest()
        self.known = {}
        if os.path.exists(cache):
            with open(cache) as f:
                self.known = json.load(f)

    def text(self, task):
        if task not in self.texts:
            path = os.path.join(self.folder, f'val_{task}.bin')
            if not os.path.exists(path):
                raise files.NotMeasured(f'no held-out text val_{task}.bin')
            self.texts[task] = np.fromfile(path, np.uint8)
        return self.texts[task]

    def bpc(self, task, folder):
        """Bits per character with the adapter of a folder, or of the base model where folder is None."""
        adapter, text = self.lm.load_adapter(folder) if folder else None, self.text(task)
        h = hashlib.blake2b(self.root + text.tobytes() + str(self.sequences).encode(), digest_size=12)
        if adapter:
            for name in sorted(adapter[0]):
                h.update(name.encode() + adapter[0][name].tobytes())
            h.update(repr(adapter[1]).encode())
        key = h.hexdigest()
        if key not in self.known:
            self.known[key] = float(self.lm.bits_per_char(self.base, adapter, text, self.sequences))
            os.makedirs(os.path.dirname(os.path.abspath(self.cache)), exist_ok=True)
            with open(self.cache + '.new', 'w') as f:
                json.dump(self.known, f)
            os.replace(self.cache + '.new', self.cache)
        return self.known[key]

    def kept(self, c, decoded):
        base = self.bpc(c.task, None)
        return (base - self.bpc(c.task, files.place(decoded, c))) / (base - self.bpc(c.task, c.folder))
