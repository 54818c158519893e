# SPDX-License-Identifier: Apache-2.0
"""Adapters on disk: safetensors files, trees of checkpoints, and the bytes that they take."""
import collections
import hashlib
import json
import os
import re
import shutil
import struct

import numpy as np

MODEL, CONFIG = 'adapter_model.safetensors', 'adapter_config.json'
DTYPES = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'BF16': '<u2', 'U8': 'u1'}

Checkpoint = collections.namedtuple('Checkpoint', 'task step folder')
"""One saved adapter: folder/adapter_model.safetensors with its adapter_config.json."""


class NotMeasured(Exception):
    """A row that cannot be measured here; its text is the reason and goes into the table."""


def to_bf16(x):
    """The bits of bfloat16, rounded to nearest even."""
    u = np.ascontiguousarray(x, '<f4').view('<u4')
    return ((u + 0x7fff + ((u >> 16) & 1)) >> 16).astype('<u2')


def read(path, numbers=True):
    """{name: array}, bfloat16 widened to float32 where numbers are wanted."""
    with open(path, 'rb') as f:
        raw = f.read()
    start = 8 + struct.unpack('<Q', raw[:8])[0]
    out = {}
    for name, t in json.loads(raw[8:start]).items():
        if name == '__metadata__':
            continue
        a, b = t['data_offsets']
        v = np.frombuffer(raw[start + a:start + b], DTYPES[t['dtype']]).reshape(t['shape'])
        out[name] = (v.astype('<u4') << 16).view('<f4') if numbers and t['dtype'] == 'BF16' else v
    return out


def write(path, tensors, dtype=None):
    """Writes {name: array} as safetensors; dtype F32, F16 or BF16 casts everything, none keeps the arrays' own."""
    header, parts, at = {}, [], 0
    for name, v in tensors.items():
        kind = dtype or {'<f4': 'F32', '<f2': 'F16', '|u1': 'U8', '<f8': 'F64'}[v.dtype.str]
        raw = (to_bf16(v) if kind == 'BF16' else np.ascontiguousarray(v, DTYPES[kind])).tobytes()
        header[name] = {'dtype': kind, 'shape': list(v.shape), 'data_offsets': [at, at + len(raw)]}
        parts.append(raw)
        at += len(raw)
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as f:
        f.write(struct.pack('<Q', len(text)) + text + b''.join(parts))


def find(tree):
    """The checkpoints <task>/checkpoint-N below tree, by task and step."""
    out = []
    for task in sorted(os.listdir(tree)):
        if not os.path.isdir(os.path.join(tree, task)):
            continue
        for name in os.listdir(os.path.join(tree, task)):
            step, folder = re.fullmatch(r'checkpoint-(\d+)', name), os.path.join(tree, task, name)
            if step and os.path.exists(os.path.join(folder, MODEL)):
                out.append(Checkpoint(task, int(step[1]), folder))
    return sorted(out)


def last_of_each(checkpoints):
    return list({c.task: c for c in sorted(checkpoints)}.values())


def place(root, c):
    """Where a checkpoint stands below root, as `icma unpack --checkpoint all` lays it out."""
    return os.path.join(root, c.task, f'checkpoint-{c.step}')


def put(root, c, tensors, dtype=None, config=None):
    """One adapter as PEFT would save it: the tensors, and the original's configuration or another."""
    folder = place(root, c)
    write(os.path.join(folder, MODEL), tensors, dtype)
    if config is not None:
        with open(os.path.join(folder, CONFIG), 'w') as f:
            json.dump(config, f)
    elif os.path.exists(os.path.join(c.folder, CONFIG)):
        shutil.copyfile(os.path.join(c.folder, CONFIG), os.path.join(folder, CONFIG))


def config(folder):
    path = os.path.join(folder, CONFIG)
    if not os.path.exists(path):
        return {}
    with open(path) as f:
        return json.load(f)


def scale(folder):
    """What PEFT multiplies B A with; 2 without a configuration, as shared/lm/eval.py has it."""
    c = config(folder)
    return c['lora_alpha'] / (c['r'] ** 0.5 if c.get('use_rslora') else c['r']) if c else 2.0


def cast_tree(tree, checkpoints, dtype, out):
    """A copy of the tree with its adapters cast, and the tasks' condition vectors beside them."""
    for c in checkpoints:
        put(out, c, read(os.path.join(c.folder, MODEL)), dtype)
    for task in {c.task for c in checkpoints}:
        for name in ('task_vector.safetensors', 'task_vector.npy'):
            path = os.path.join(tree, task, name)
            if os.path.exists(path):
                shutil.copyfile(path, os.path.join(out, task, name))
    return [c._replace(folder=place(out, c)) for c in checkpoints]


def size(folder):
    """The bytes of every file below folder."""
    return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names)


def headers(folder):
    """The bytes of all safetensors headers below folder that are stored as they are."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            if name.endswith('.safetensors'):
                with open(os.path.join(at, name), 'rb') as f:
                    total += 8 + struct.unpack('<Q', f.read(8))[0]
    return total


def digest(checkpoints):
    """One name for the numbers of a collection, to tell whether two runs measured the same."""
    h = hashlib.blake2b(digest_size=8)
    for c in checkpoints:
        h.update(f'{c.task}/{c.step}'.encode())
        with open(os.path.join(c.folder, MODEL), 'rb') as f:
            h.update(f.read())
    return h.hexdigest()
