#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the golden vectors again: small trees of adapters with fixed contents, packed with the program that ICMA names.

    ICMA=build/release/icma tests/vectors/make_vectors.py [--keep DIR] [--all | NAME...]

Packing gives the same bytes for one build and one type of CPU only, so a vector that is made again is another vector: the
committed ones stay, once the format is no longer version 0, and only a new NAME is added. Until then a change of the format
makes them --all again. Without names it makes those that are missing. It ends with the table of README.md, which needs numpy as
the second reader does. The SHA-256 sums that it writes into vectors.json are those of the program's output; check_vectors.py has the
second reader confirm them.
"""
import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = os.environ.get('ICMA', 'icma')


def f32(values):
    return struct.pack(f'<{len(values)}f', *values)


def f16(values):
    return struct.pack(f'<{len(values)}e', *values)


def bf16(values):
    words = struct.unpack(f'<{len(values)}I', f32(values))
    return struct.pack(f'<{len(values)}H', *((w + 0x7fff + (w >> 16 & 1)) >> 16 for w in words))


FLOATS = {'F32': f32, 'F16': f16, 'BF16': bf16}


def safetensors(tensors, metadata=None, spread=False):
    """{name: (dtype, shape, bytes)} as a file's bytes. The data lie in the order given; `spread` lists them backwards."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {'dtype': dtype, 'shape': list(shape), 'data_offsets': [at, at + len(data)]}
        at += len(data)
    if spread:
        header = dict(reversed(header.items()))
    if metadata is not None:
        header = {'__metadata__': metadata, **header}
    text = json.dumps(header, ensure_ascii=False, separators=(', ', ': ') if spread else (',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    return struct.pack('<Q', len(text)) + text + b''.join(data for _, _, data in tensors.values())


def numbers(key, count, size=1.0):
    draw = random.Random(key)
    return [draw.gauss(0, size) for _ in range(count)]


def moving(key, task, progress, count, size):
    """What training does: a start that all share, an average of the task, a drift along two directions, a little noise."""
    parts = [numbers(f'{key} shared', count, size), numbers(f'{key} {task}', count, size),
             numbers(f'{key} {task} drift', count, size * 0.3), numbers(f'{key} bend', count, size * 0.2),
             numbers(f'{key} {task} {progress} noise', count, size * 0.02)]
    weights = [1.0, 0.7, progress, progress * progress, 1.0]
    return [sum(w * v for w, v in zip(weights, row)) for row in zip(*parts)]


def lora(task, progress, modules=('q', 'v'), rank=2, width=12, dtypes=('F32',)):
    """LoRA pairs in PEFT's names."""
    tensors = {}
    for m, module in enumerate(modules):
        for f, (factor, shape) in enumerate((('A', (rank, width)), ('B', (width, rank)))):
            dtype = dtypes[(2 * m + f) % len(dtypes)]
            values = moving(f'{module} {factor} {rank} {width}', task, progress, rank * width, 0.05 if factor == 'A' else 0.02)
            tensors[f'base_model.model.{module}_proj.lora_{factor}.weight'] = (dtype, shape, FLOATS[dtype](values))
    return tensors


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def config(rank=2, **more):
    return json.dumps({'peft_type': 'LORA', 'r': rank, 'lora_alpha': 2 * rank, 'target_modules': ['q_proj', 'v_proj'], **more})


def adapter(folder, image, rank=2, **more):
    put(folder / 'adapter_model.safetensors', image)
    put(folder / 'adapter_config.json', config(rank, **more))


def condition(folder, values, dtype='F32'):
    put(folder / 'task_vector.safetensors', safetensors({'task_vector': (dtype, (len(values),), FLOATS[dtype](values))}))


QUICK = ('--epochs', '40', '-T', '1')
LATENT = (*QUICK, '--tier', 'latent')
LOSSLESS = (*QUICK, '--tier', 'lossless')


def basis_given(root):
    """basis, latents; 3 tasks x 5 checkpoints of F32, given conditions of 6 numbers"""
    for task in ('bird', 'cat', 'dog'):
        for n, step in enumerate((10, 20, 30, 40, 100)):
            adapter(root / task / f'checkpoint-{step}', safetensors(lora(task, n / 4), {'format': 'pt'}))
        condition(root / task, numbers(f'{task} condition', 6))
    return LATENT


def basis_learned(root):
    """basis, latents; 4 tasks with 1 to 6 checkpoints, learned conditions, no metadata, no side files, loose files"""
    for task, count in (('one', 1), ('two', 2), ('four', 4), ('six', 6)):
        for n in range(count):
            put(root / task / f'{task}-{n + 1:06}.safetensors', safetensors(lora(task, n / 5, rank=3)))
    return (*LATENT, '--latent-dim', '4', '--explain', '0.95')


def basis_mixed(root):
    """basis; F32, F16 and BF16 in one file, magnitudes (role other), verbatim floats and integers, 0-d, zero-size and boolean tensors, NaN and
    infinities as exceptions, zero B, metadata that differ, side files shared and not, UTF-8 names; given conditions"""
    for task in ('Ärger', 'plain', 'zero B', 'UPPER.v1'):
        for n, step in enumerate((5, 7, 1000, 123456)):
            tensors = lora(task, n / 3, dtypes=('F32', 'F16', 'BF16', 'F32'))
            names = list(tensors)
            if task == 'zero B':
                for name in names:
                    dtype, shape, data = tensors[name]
                    if 'lora_B' in name and (n == 0 or 'v_proj' in name):
                        tensors[name] = (dtype, shape, bytes(len(data)))
            if task == 'plain' and n in (1, 3):
                dtype, shape, data = tensors[names[0]]
                tensors[names[0]] = (dtype, shape, struct.pack('<If', 0x7fc01234, float('inf')) + data[8:])
            if task == 'plain' and n == 3:
                dtype, shape, data = tensors[names[2]]
                tensors[names[2]] = (dtype, shape, data[:-2] + b'\xc0\xff')
            for module, dtype, size in (('q', 'F32', 40), ('v', 'F16', 36)):
                values = [1 + v for v in moving(f'{module} magnitude', task, n / 3, size, 0.1)]
                tensors[f'base_model.model.{module}_proj.lora_magnitude_vector'] = (dtype, (size,), FLOATS[dtype](values))
            tensors['classifier.bias'] = ('F16', (4, 9), f16(moving('bias', task, n / 3, 36, 0.1)))
            tensors['count'] = ('I64', (), struct.pack('<q', step * 1000 - 7))
            tensors['empty'] = ('F32', (0, 4), b'')
            tensors['mask'] = ('BOOL', (5,), bytes(int(v > 0) for v in numbers(f'mask {task}', 5)))
            tensors['ids'] = ('I32', (2, 3), struct.pack('<6i', *(int(1000 * v) for v in numbers(f'ids {task} {n}', 6))))
            tensors['wide'] = ('F64', (4,), struct.pack('<4d', *numbers(f'wide {n}', 4)))
            tensors['bytes'] = ('U8', (7,), bytes(random.Random(f'{task} {n}').randrange(256) for _ in range(7)))
            image = safetensors(tensors, {'format': 'pt', 'note': f'{task} "{step}"'} if n == 2 else {'format': 'pt'}, task == 'plain')
            folder = root / task / f'checkpoint-{step}'
            adapter(folder, image, **({'use_dora': False} if n == 3 else {}))
            if task == 'UPPER.v1':
                put(folder / 'README.md', f'# {task}\n\nSaved at {step if n > 1 else "start"}.\n')
        condition(root / task, numbers(f'{task} mixed', 5), 'F16' if task == 'plain' else 'F32')
    return (*LATENT, '--explain', '0.9')


def basis_wide(root):
    """basis; more tensors and rows than the others: 6 modules of two widths, 12 checkpoints, 9 components a role, 24 latents"""
    for task in ('left', 'right'):
        for n in range(6):
            tensors = {**lora(task, n / 5, ('q', 'k', 'v'), 1, 40), **lora(task, n / 5, ('up', 'down', 'gate'), 2, 17, ('BF16',))}
            put(root / task / f'checkpoint-{n + 1}' / 'adapter_model.safetensors', safetensors(tensors, {'format': 'pt'}))
        condition(root / task, numbers(f'{task} condition', 3))
    return (*LATENT, '--components', '9', '--latent-dim', '24')


def paper(root):
    """basis, --preset paper --generator basis: 2 tasks x 4 checkpoints of F16"""
    for task in ('a', 'b'):
        for n in range(4):
            put(root / task / f'checkpoint-{n + 1}' / 'adapter_model.safetensors', safetensors(lora(task, n / 3, dtypes=('F16',))))
    return (*LATENT, '--preset', 'paper', '--generator', 'basis', '--latent-dim', '2')


def generate(root):
    """tier generate: 3 tasks x 3 checkpoints, given conditions; an exception and integers beside it"""
    for task in ('sun', 'moon', 'star'):
        for n in range(3):
            tensors = lora(task, n / 2)
            if task == 'moon' and n == 2:
                name = next(iter(tensors))
                dtype, shape, data = tensors[name]
                tensors[name] = (dtype, shape, b'\x01\x00\x80\xff' + data[4:])
            tensors['steps'] = ('I32', (1,), struct.pack('<i', n))
            adapter(root / task / f'checkpoint-{n + 1}', safetensors(tensors, {'format': 'pt'}))
        condition(root / task, numbers(f'{task} condition', 4))
    return (*QUICK, '--tier', 'generate')


def stepless(root):
    """basis; tasks with one step-less checkpoint, with steps and a step-less last one, and a single loose file; one condition
    given, the others learned"""
    for task in ('with', 'without'):
        if task == 'with':
            condition(root / task, numbers('with condition', 5))
            for n in range(3):
                adapter(root / task / f'checkpoint-{10 * n}', safetensors(lora(task, n / 3), {'format': 'pt'}))
        adapter(root / task, safetensors(lora(task, 1.0), {'format': 'pt'}))
    put(root / 'loose.safetensors', safetensors(lora('loose', 0.5), {'format': 'pt'}))
    return LATENT


def none(root):
    """no generator: LoRA factors too small to be modelled, integers, doubles, 8-bit floats, tensors without elements, no side
    files; given conditions, which nothing reads"""
    for task in ('ints', 'more'):
        for n in range(3):
            tensors = {**lora(task, n, width=3), 'i': ('I64', (3,), struct.pack('<3q', n, -1, 1 << 40)),
                       'd': ('F64', (2,), struct.pack('<2d', 0.1, n)), 'e': ('I32', (0,), b''), 's': ('U8', (), bytes([n])),
                       'f': ('F8_E4M3', (2, 2), bytes([0, 56, 126, n]))}
            put(root / task / f'checkpoint-{n + 1}' / 'adapter_model.safetensors', safetensors(tensors, {'task': task, 'n': str(n // 2)}))
        condition(root / task, numbers(f'{task} condition', 4))
    return QUICK


def one(root):
    """one task with one checkpoint"""
    adapter(root / 'only', safetensors(lora('only', 0.5), {'format': 'pt'}))
    return LATENT


def two_groups(root):
    """two groups; one task has checkpoints in both, steps interleaved"""
    for n in range(8):
        rank = 2 if n % 2 else 3
        adapter(root / 'both' / f'checkpoint-{n + 1}', safetensors(lora('both', n / 7, rank=rank), {'format': 'pt'}), rank)
    for n in range(3):
        adapter(root / 'low' / f'checkpoint-{n + 1}', safetensors(lora('low', n / 2, rank=2), {'format': 'pt'}), 2)
        adapter(root / 'high' / f'checkpoint-{n + 1}', safetensors(lora('high', n / 2, rank=3), {'format': 'pt'}), 3)
    for n, task in enumerate(('both', 'low', 'high')):
        condition(root / task, numbers(f'{task} condition', 4))
    return LATENT


def bounded_dw(root):
    """tier bounded, dW within 4 %: basis, latents and residuals; 3 tasks x 5 checkpoints of F32, magnitudes without basis rows, given conditions"""
    for task in ('bird', 'cat', 'dog'):
        for n, step in enumerate((10, 20, 30, 40, 100)):
            tensors = lora(task, n / 4, rank=4, width=24)
            tensors['base_model.model.q_proj.lora_magnitude_vector'] = ('F32', (40,), f32(numbers(f'{task} {n} magnitude', 40)))
            adapter(root / task / f'checkpoint-{step}', safetensors(tensors, {'format': 'pt'}), 4)
        condition(root / task, numbers(f'{task} condition', 6))
    return (*QUICK, '--max-error', 'dw=0.04')


def bounded_rel(root):
    """tier bounded, every tensor within 2 %: F32, F16 and BF16 in one file, NaN and infinities as exceptions, zero B,
    zero-size tensors and integers, a step-less checkpoint; basis, learned conditions"""
    for task, count in (('first', 4), ('second', 5), ('third', 3)):
        for n in range(count):
            tensors = lora(task, n / 4, rank=4, width=20, dtypes=('F32', 'F16', 'BF16', 'BF16'))
            names = list(tensors)
            if n == 0:
                dtype, shape, data = tensors[names[3]]
                tensors[names[3]] = (dtype, shape, bytes(len(data)))
            if task == 'second' and n == 1:
                dtype, shape, data = tensors[names[1]]
                tensors[names[1]] = (dtype, shape, b'\x01\x7e\x00\xfc' + data[4:])
            tensors['base_model.model.v_proj.lora_magnitude_vector'] = ('F16', (18,), f16(numbers(f'{task} {n} magnitude', 18)))
            tensors['empty'] = ('F32', (3, 0), b'')
            tensors['count'] = ('I32', (1,), struct.pack('<i', n - 1))
            folder = root / task if task == 'third' and n == 2 else root / task / f'checkpoint-{n + 1}'
            adapter(folder, safetensors(tensors, {'format': 'pt', 'n': str(n // 2)}), 4)
    return (*QUICK, '--max-error', 'rel=0.02', '--generator', 'basis')


def bounded_abs(root):
    """tier bounded, every weight within 0.004: F16 and BF16, some predictions good enough without residual; given conditions"""
    for task in ('hot', 'cold'):
        for n in range(5):
            tensors = lora(task, n / 4, ('q', 'k', 'v'), 2, 30, ('F16', 'BF16'))
            put(root / task / f'checkpoint-{n + 1}' / 'adapter_model.safetensors', safetensors(tensors, {'format': 'pt'}))
        condition(root / task, numbers(f'{task} condition', 3))
    return (*QUICK, '--max-error', 'abs=0.004', '--generator', 'basis')


def bounded_none(root):
    """tier bounded, --generator none: residuals alone; F32, F16 and BF16, an exception, integers; one condition given, none learned"""
    for task in ('east', 'west'):
        for n in range(3):
            tensors = lora(task, n / 2, rank=3, width=15, dtypes=('F32', 'F16', 'BF16'))
            if task == 'west' and n == 1:
                name = next(iter(tensors))
                dtype, shape, data = tensors[name]
                tensors[name] = (dtype, shape, b'\x00\x00\x80\x7f' + data[4:])
            tensors['ids'] = ('I32', (3,), struct.pack('<3i', n, -1, 7))
            adapter(root / task / f'checkpoint-{n + 1}', safetensors(tensors, {'format': 'pt'}), 3)
    condition(root / 'west', numbers('west condition', 4))
    return (*QUICK, '--generator', 'none')


def bounded_verbatim(root):
    """tier bounded, every weight within 10^-6: tensors whose range is too wide for that are exceptions, others have residuals of up to 32767 steps"""
    for task in ('wide', 'narrow'):
        for n in range(3):
            tensors = {}
            for name, size in (('small', 0.003), ('middle', 0.02), ('large', 0.5)):
                values = moving(name, task, n / 2, 64, size)
                tensors[f'{name}.lora_A.weight'] = ('F32', (4, 16), f32([v * (0.2 if task == 'narrow' else 1) for v in values]))
                tensors[f'{name}.lora_B.weight'] = ('F16', (12, 4), f16(moving(f'{name} B', task, n / 2, 48, size / 2)))
            put(root / task / f'checkpoint-{n + 1}' / 'adapter_model.safetensors', safetensors(tensors, {'format': 'pt'}))
    return (*QUICK, '--max-error', 'abs=1e-6', '--generator', 'basis')


def bounded_streams(root):
    """tier bounded, --generator none: a residual of more than 2^18 integers, so in two streams, the first of 8 lanes; a tensor lies in both"""
    for n in range(2):
        draw = random.Random(f'streams {n}')
        dense = [draw.gauss(0, 0.3) for _ in range(60000)]
        sparse = [0.0] * 240000
        for _ in range(400):
            sparse[draw.randrange(240000)] = draw.gauss(0, 40)
        tensors = {'x.lora_B.weight': ('BF16', (250, 240), bf16(dense)), 'x.lora_A.weight': ('F16', (240, 1000), f16(sparse)),
                   'x.lora_magnitude_vector': ('F32', (30,), f32(dense[:30]))}
        put(root / 'long' / f'checkpoint-{n + 1}' / 'adapter_model.safetensors', safetensors(tensors, {'format': 'pt'}))
    return (*QUICK, '--max-error', 'abs=0.25', '--generator', 'none')


def odd(data, dtype, n):
    """NaN of some payload, an infinity, -0 and a denormal in place of the first elements."""
    words = {'F32': (0x7f812345 + n, 0xff800000, 0x80000000, 0x1), 'F16': (0x7d23 + n, 0xfc00, 0x8000, 0x1), 'BF16': (0xff85 + n, 0x7f80, 0x8000, 0x1)}[dtype]
    special = struct.pack('<4I' if dtype == 'F32' else '<4H', *words)
    return special + data[len(special):]


def lossless_chain(root):
    """tier lossless, chains of at most 4 of 7 checkpoints: F32, F16 and BF16 beside integers and booleans, 0-d and zero-size tensors, NaN of several
    payloads, infinities, -0 and denormals, zero B; the last checkpoint without step, metadata that differ"""
    for task, count in (('long', 7), ('short', 2)):
        for n in range(count):
            tensors = lora(task, n / 6, ('q', 'k', 'v'), 3, 20, ('F32', 'F16', 'BF16'))
            names = list(tensors)
            for name in names[:3] if n % 3 == 0 else names[2:3]:
                dtype, shape, data = tensors[name]
                tensors[name] = (dtype, shape, odd(data, dtype, n // 2))
            dtype, shape, data = tensors[names[4]]
            tensors[names[4]] = (dtype, shape, bytes(len(data)) if n < 2 else data)
            tensors['scale'] = ('F32', (), f32([1.5 + n]))
            tensors['half'] = ('F16', (), f16([0.25]))
            tensors['step'] = ('I64', (), struct.pack('<q', 10 * n - 5))
            tensors['none'] = ('F32', (0, 3), b'')
            tensors['nothing'] = ('BF16', (2, 0), b'')
            tensors['mask'] = ('BOOL', (5,), bytes(int(v > 0) for v in numbers(f'mask {task} {n}', 5)))
            folder = root / task if n == 6 else root / task / f'checkpoint-{n + 1}'
            adapter(folder, safetensors(tensors, {'format': 'pt', 'n': str(n // 3)}), 3)
    return (*LOSSLESS, '--restart', '4')


def lossless_basis(root):
    """tier lossless, --generator basis: what the basis decodes is one more tap; floats that are not modelled, an exception, integers; chains of at most 3;
    given conditions"""
    for task in ('red', 'green', 'blue'):
        for n in range(5):
            tensors = lora(task, n / 4, rank=4, width=24, dtypes=('F32', 'BF16', 'F16', 'F32'))
            name = next(iter(tensors))
            if task == 'green' and n in (1, 4):
                dtype, shape, data = tensors[name]
                tensors[name] = (dtype, shape, odd(data, dtype, n))
            tensors['tiny'] = ('F32', (2,), f32([n, 1e-40]))
            tensors['empty'] = ('F16', (0,), b'')
            tensors['ids'] = ('I32', (3,), struct.pack('<3i', n, -1, 7))
            adapter(root / task / f'checkpoint-{n + 1}', safetensors(tensors, {'format': 'pt'}), 4)
        condition(root / task, numbers(f'{task} condition', 4))
    return (*LOSSLESS, '--generator', 'basis', '--restart', '3')


def lossless_one(root):
    """tier lossless, one checkpoint, which nothing predicts"""
    tensors = lora('only', 0.5, dtypes=('F32', 'F16', 'BF16', 'F16'))
    tensors['count'] = ('U8', (3,), bytes([1, 2, 3]))
    adapter(root / 'only', safetensors(tensors, {'format': 'pt'}))
    return LOSSLESS


def lossless_large(root):
    """tier lossless: tensors of more than one block and of more than one frame, magnitudes from denormal to large, spreads far below and far above what they
    are predicted from"""
    draw = random.Random('large')
    start = [draw.gauss(0, 1) * 2.0 ** draw.randrange(-3, 3) if i % 17 == 0 else 0.0 for i in range(70000)]
    pattern = bf16([draw.gauss(0, 1) for _ in range(250)])
    for n in range(3):
        moved = [v if draw.random() < 0.97 else v + draw.gauss(0, 0.01) for v in start]
        tensors = {'x.lora_A.weight': ('F16', (10, 7000), f16(moved)), 'x.lora_B.weight': ('BF16', (27000, 10), pattern * 1080),
                   'wide': ('F32', (600,), f32([draw.gauss(0, 1) * 2.0 ** draw.randrange(-140, 60) for _ in range(600)])),
                   'fine': ('F32', (600,), f32([1 + draw.gauss(0, 1e-6) for _ in range(600)])),
                   'same': ('BF16', (500,), bf16(start[:8500:17]))}
        put(root / 'large' / f'checkpoint-{n + 1}' / 'adapter_model.safetensors', safetensors(tensors, {'format': 'pt'}))
    return LOSSLESS


def texts_shared(root):
    """tier bounded: one TEXTS section that two tasks share, with the adapter_config.json of both, and one of each task, with a README.md and headers of its own"""
    for task in ('uno', 'due'):
        for n in range(3):
            folder = root / task / f'checkpoint-{n + 1}'
            adapter(folder, safetensors(lora(task, n / 2, rank=3, width=16), {'format': 'pt', 'n': f'{task} {n}'}), 3)
            put(folder / 'README.md', f'# {task}\n\nNumber {n // 2}.\n')
    return (*QUICK, '--generator', 'none')


def texts_own(root):
    """tier bounded: two tasks whose adapter_config.json differ, so that each has the file's content among its own texts"""
    for rank, task in enumerate(('uno', 'due')):
        for n in range(2):
            adapter(root / task / f'checkpoint-{n + 1}', safetensors(lora(task, n / 2, rank=3, width=16), {'format': 'pt'}), 3, lora_dropout=rank / 10)
    return (*QUICK, '--generator', 'none')


def conv(channels, latents, *more):
    return ('--epochs', '300', '--lr', '0.01', '--kld-weight', '1e-6', '-T', '1', '--generator', 'conv', '--channels', channels, '--latent-dim', str(latents), *more)


def conv_f32(root):
    """decoder of three layers, weights as f32, latents; 3 tasks x 5 checkpoints of F32, given conditions"""
    for task in ('bird', 'cat', 'dog'):
        for n, step in enumerate((10, 20, 30, 40, 100)):
            adapter(root / task / f'checkpoint-{step}', safetensors(lora(task, n / 4), {'format': 'pt'}))
        condition(root / task, numbers(f'{task} condition', 6))
    return conv('4,6,3', 4, '--weights', 'f32', '--tier', 'latent')


def conv_bf16(root):
    """decoder of two layers and 9 taps, weights as bf16, latents; F32, F16 and BF16, magnitudes, an exception, a verbatim tensor and one without elements; learned
    conditions; a task's last checkpoint without step"""
    for task, count in (('one', 1), ('two', 3), ('six', 6)):
        for n in range(count):
            tensors = lora(task, n / 5, rank=3, dtypes=('F32', 'F16', 'BF16'))
            if task == 'two' and n == 1:
                name = next(iter(tensors))
                dtype, shape, data = tensors[name]
                tensors[name] = (dtype, shape, b'\x00\x00\x80\x7f' + data[4:])
            tensors['base_model.model.q_proj.lora_magnitude_vector'] = ('F16', (35,), f16(moving('magnitude', task, n / 5, 35, 0.1)))
            tensors['empty'] = ('F32', (0, 4), b'')
            tensors['ids'] = ('I32', (2,), struct.pack('<2i', n, -1))
            put(root / task / ('' if task == 'six' and n == 5 else f'checkpoint-{n + 1}') / 'adapter_model.safetensors', safetensors(tensors, {'format': 'pt'}))
    return conv('5,2', 3, '--kernel', '9', '--weights', 'bf16', '--tier', 'latent')


def conv_bounded(root):
    """decoder of four layers, quantised, latents and residuals, dW within 4 %; 3 tasks x 5 checkpoints of F32 and BF16, given conditions"""
    for task in ('bird', 'cat', 'dog'):
        for n in range(5):
            adapter(root / task / f'checkpoint-{n + 1}', safetensors(lora(task, n / 4, ('q', 'k', 'v'), 4, 24, ('F32', 'BF16')), {'format': 'pt'}), 4)
        condition(root / task, numbers(f'{task} condition', 5))
    return conv('4,8,8,4', 4, '--max-error', 'dw=0.04')


def conv_variance(root):
    """decoder of two outputs: residuals coded by the spread that it predicts for every weight; 3 tasks x 4 checkpoints of F32 and BF16, weights that move much beside others that
    hardly do, magnitudes kept verbatim, given conditions"""
    for task in ('bird', 'cat', 'dog'):
        for n in range(4):
            tensors = {}
            for module in ('q', 'k'):
                for factor, dtype in (('A', 'F32'), ('B', 'BF16')):
                    name = f'base_model.model.{module}_proj.lora_{factor}.weight'
                    base, noise = numbers(f'{name} {task}', 96, 0.1), numbers(f'{name} {task} {n}', 96, 0.1)
                    values = [b + v * (0.002 if i % 32 < 16 else 0.9) for i, (b, v) in enumerate(zip(base, noise))]
                    tensors[name] = (dtype, (4, 24) if factor == 'A' else (24, 4), FLOATS[dtype](values))
            tensors['base_model.model.q_proj.lora_magnitude_vector'] = ('F32', (2,), f32([1.0, 1.0 + n / 8]))
            adapter(root / task / f'checkpoint-{n + 1}', safetensors(tensors, {'format': 'pt'}), 4)
        condition(root / task, numbers(f'{task} condition', 5))
    return conv('4,8,8,4', 4, '--variance', '--max-error', 'dw=0.04')


def conv_generate(root):
    """decoder of three layers and 5 taps, quantised, tier generate; 3 tasks x 3 checkpoints of F16, given and learned conditions, integers"""
    for task in ('sun', 'moon', 'star'):
        for n in range(3):
            tensors = lora(task, n / 2, dtypes=('F16',))
            tensors['steps'] = ('I32', (1,), struct.pack('<i', n))
            adapter(root / task / f'checkpoint-{n + 1}', safetensors(tensors, {'format': 'pt'}))
        if task != 'star':
            condition(root / task, numbers(f'{task} condition', 4))
    return conv('4,4,2', 3, '--kernel', '5', '--tier', 'generate')


def conv_lossless(root):
    """tier lossless: what a decoder makes is one more tap; a tensor that is not modelled, an exception, integers; chains of at most 3; given conditions"""
    for task in ('red', 'green'):
        for n in range(4):
            tensors = lora(task, n / 3, rank=4, width=24, dtypes=('F32', 'BF16', 'F16', 'F32'))
            name = next(iter(tensors))
            if task == 'green' and n in (1, 3):
                dtype, shape, data = tensors[name]
                tensors[name] = (dtype, shape, odd(data, dtype, n))
            tensors['tiny'] = ('F32', (2,), f32([n, 1e-40]))
            tensors['ids'] = ('I32', (3,), struct.pack('<3i', n, -1, 7))
            adapter(root / task / f'checkpoint-{n + 1}', safetensors(tensors, {'format': 'pt'}), 4)
        condition(root / task, numbers(f'{task} condition', 4))
    return conv('4,6,4', 3, '--tier', 'lossless', '--restart', '3')


def diffusion(root):
    """diffusion: a denoiser and a decoder that sees no condition, latents and residuals; 3 tasks x 4 checkpoints of F32, given conditions"""
    for task in ('bird', 'cat', 'dog'):
        for n in range(4):
            adapter(root / task / f'checkpoint-{n + 1}', safetensors(lora(task, n / 3), {'format': 'pt'}))
        condition(root / task, numbers(f'{task} condition', 4))
    return (*conv('4,4', 3, '--max-error', 'dw=0.1'), '--generator', 'diffusion')


def added(root):
    """tier bounded, dW within 10 %: two tasks were added to a basis of three, one with a vector of other size than theirs, one with none, exceptions, zero B and texts of its own; a third of another rank made a group
    of its own"""
    for task in ('bird', 'cat', 'dog'):
        for n in range(4):
            adapter(root / task / f'checkpoint-{n + 1}', safetensors(lora(task, n / 3, rank=4, width=24), {'format': 'pt'}), 4)
        condition(root / task, numbers(f'{task} condition', 6))
    more = root.with_name(root.name + '-more')
    for n in range(3):
        tensors = lora('ant', n / 2, rank=4, width=24)
        names = list(tensors)
        if n == 0:
            dtype, shape, data = tensors[names[3]]
            tensors[names[3]] = (dtype, shape, bytes(len(data)))
        if n == 1:
            dtype, shape, data = tensors[names[0]]
            tensors[names[0]] = (dtype, shape, b'\x00\x00\x80\x7f' + data[4:])
        adapter(more / 'ant' / f'checkpoint-{n + 1}', safetensors(tensors, {'format': 'pt', 'n': str(n)}), 4)
        adapter(more / 'cow' / f'checkpoint-{n + 1}', safetensors(lora('cow', n / 2, rank=4, width=24), {'format': 'pt'}), 4)
        adapter(more / 'eel' / f'checkpoint-{n + 1}', safetensors(lora('eel', n / 2, rank=2, width=24), {'format': 'pt'}), 2)
    condition(more / 'cow', numbers('cow condition', 4))
    return (*QUICK, '--generator', 'basis'), (more / 'ant', more / 'cow'), ('--generator', 'old'), (more / 'eel',), ('--epochs', '40')


def added_latent(root):
    """tier latent: a task was added to a basis of two with latents; offset and corrections, no latents; an integer tensor"""
    for task in ('left', 'right', 'up'):
        folder = root if task != 'up' else root.with_name(root.name + '-more')
        for n in range(5):
            tensors = lora(task, n / 4, dtypes=('F16', 'BF16'))
            tensors['steps'] = ('I32', (1,), struct.pack('<i', n))
            put(folder / task / ('' if n == 4 else f'checkpoint-{n + 1}') / 'adapter_model.safetensors', safetensors(tensors, {'format': 'pt'}))
    return LATENT, (folder / 'up',), ('--generator', 'old')


def added_generate(root):
    """tier generate: a task was added to a basis of two, of which only the offset is kept"""
    for task in ('sun', 'moon', 'star'):
        folder = root if task != 'star' else root.with_name(root.name + '-more')
        for n in range(3):
            adapter(folder / task / f'checkpoint-{n + 1}', safetensors(lora(task, n / 2), {'format': 'pt'}))
        condition(folder / task, numbers(f'{task} condition', 4))
    return (*QUICK, '--tier', 'generate'), (folder / 'star',), ('--generator', 'old')


def added_lossless(root):
    """tier lossless: a task was added to a basis of two, which with its offset is one more tap"""
    for task in ('red', 'green', 'blue'):
        folder = root if task != 'blue' else root.with_name(root.name + '-more')
        for n in range(4):
            adapter(folder / task / f'checkpoint-{n + 1}', safetensors(lora(task, n / 3, rank=4, width=24, dtypes=('F32', 'BF16')), {'format': 'pt'}), 4)
    return (*LOSSLESS, '--generator', 'basis'), (folder / 'blue',), ()


MAKERS = {f.__name__.replace('_', '-'): f for f in (basis_given, basis_learned, basis_mixed, basis_wide, paper, generate,
                                                     stepless, none, one, two_groups, bounded_dw, bounded_rel, bounded_abs,
                                                     bounded_none, bounded_verbatim, bounded_streams, lossless_chain, lossless_basis, lossless_one,
                                                     lossless_large, texts_shared, texts_own, conv_f32, conv_bf16, conv_bounded, conv_generate, conv_lossless, conv_variance,
                                                     diffusion, added, added_latent, added_generate, added_lossless)}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def run(*arguments, unsupported=False):
    done = subprocess.run([PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if unsupported and done.returncode == 6:
        return None
    if done.returncode:
        sys.exit(f'{PROGRAM} {" ".join(map(str, arguments))}: exit {done.returncode}\n{done.stderr.decode()}')
    return done.stdout


def make(name, shop):
    tree, bundle = shop / name, HERE / f'{name}.icma'
    options = MAKERS[name](tree)
    more = options[1:] if options and isinstance(options[0], tuple) else ()
    run('pack', tree, '-o', bundle, '-f', *(options[0] if more else options))
    for paths, choices in zip(more[::2], more[1::2]):
        run('add', bundle, *paths, '-T', '1', *choices)
    tasks = {}
    for task in json.loads(run('list', bundle, '-v', '--json'))['tasks']:
        out = {'checkpoints': {}, 'samples': {}}
        for checkpoint in task['checkpoints']:
            step = 'final' if checkpoint['step'] is None else str(checkpoint['step'])
            out['checkpoints'][step] = None
        tasks[task['task']] = out
    folder = shop / f'{name} out'
    for item in json.loads(run('unpack', bundle, '--checkpoint', 'all', '-C', folder, '--json'))['adapters']:
        step = 'final' if item['step'] is None else str(item['step'])
        path = pathlib.Path(item['path'])
        tasks[item['task']]['checkpoints'][step] = sha256(path.read_bytes())
    for task, out in tasks.items():
        for seed in (1, 2):
            drawn = run('unpack', bundle, '--task', task, '--sample', '--seed', seed, '-o', '-', unsupported=True)
            out['samples'][str(seed)] = drawn and sha256(drawn)
    return {'description': ' '.join(MAKERS[name].__doc__.split()), 'size': bundle.stat().st_size,
            'sha256': sha256(bundle.read_bytes()), 'tasks': tasks}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--keep', metavar='DIR', help='leave the trees of adapters there')
    parser.add_argument('--all', action='store_true', help='make every one again')
    parser.add_argument('names', nargs='*', metavar='NAME', help=', '.join(MAKERS))
    options = parser.parse_args()
    listing = HERE / 'vectors.json'
    known = json.loads(listing.read_text()) if listing.exists() else {}
    names = options.names or [name for name in MAKERS if options.all or name not in known]
    for name in names:
        if name not in MAKERS:
            parser.error(f'{name}: not a vector; there are {", ".join(MAKERS)}')
    shop = pathlib.Path(options.keep or tempfile.mkdtemp(prefix='icma-vectors-'))
    try:
        for name in names:
            known[name] = make(name, shop)
            print(f'{name}: {known[name]["size"]} bytes', file=sys.stderr)
    finally:
        if not options.keep:
            shutil.rmtree(shop, ignore_errors=True)
        listing.write_text(json.dumps(dict(sorted(known.items())), indent=1, ensure_ascii=False) + '\n')
    return subprocess.run([sys.executable, '-B', HERE / 'check_vectors.py', '--write-table']).returncode


if __name__ == '__main__':
    sys.exit(main())
