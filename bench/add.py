#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What icma add costs: one task after the others, beside packing all at once and beside packing it alone.

    ICMA=build/release/icma bench/add.py ../shared/loras > bench/results/add.md
    ICMA=build/release/icma bench/add.py --steps ../shared/loras       (the part on trainings that go on, alone)

Takes a folder of at least three tasks. Sizes are of whole archives; errors are those of the task that was added, as icma diff measures them on what
icma unpack writes. Needs numpy for the last table.
"""
import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy

PROGRAM = os.environ.get('ICMA', 'icma')
TIERS = (('bounded dw=0.1', ('--max-error', 'dw=0.1')), ('bounded dw=0.02', ('--max-error', 'dw=0.02')), ('lossless', ('--tier', 'lossless')),
         ('latent', ('--tier', 'latent')), ('generate', ('--tier', 'generate')))


def icma(*arguments):
    done = subprocess.run([PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        sys.exit(f'{PROGRAM} {" ".join(map(str, arguments))}: exit {done.returncode}\n{done.stderr.decode()}')
    return done.stdout


def sections(path):
    """What no section of may change: owner, size and hash, but for the tasks' numbers."""
    names = [task['task'] for task in json.loads(icma('list', path, '--json'))['tasks']]
    out = {}
    data = path.read_bytes()
    for s in json.loads(icma('info', path, '-v', '--json'))['section_list']:
        out[s['kind'], s['group'], s['task'], s['first'], s['count']] = data[s['offset']:s['offset'] + s['stored']]
    return out, names


class Bench:
    def __init__(self, root, shop):
        self.tasks = sorted(p for p in root.iterdir() if p.is_dir())
        self.shop = shop
        self.unchanged = 0

    def pack(self, name, tasks, *options):
        path = self.shop / name
        icma('pack', *tasks, '-o', path, '-f', '-q', *options)
        return path

    def add(self, base, task, *options):
        path = self.shop / 'added.icma'
        told = json.loads(icma('add', base, task, '-o', path, '-f', '--json', *options))
        (before, _), (after, _) = sections(base), sections(path)
        if any(after.get(key) != value for key, value in before.items()):
            sys.exit(f'a section of {base} changed')
        self.unchanged += len(before)
        return path.stat().st_size, told


def step_of(path):
    return int(path.name[11:])


def go_on(b, keep):
    """Each task's steps up to and including number `keep` of them are packed; then the whole tree is added."""
    early = b.shop / 'early'
    for task in b.tasks:
        steps = sorted(task.glob('checkpoint-*'), key=step_of)[:keep]
        for path in [*steps, *(p for p in task.iterdir() if p.is_file())]:
            (early / task.name).mkdir(parents=True, exist_ok=True)
            (early / task.name / path.name).symlink_to(path.resolve())
    first, last = step_of(steps[0]), step_of(steps[-1])
    steps = sorted(map(step_of, b.tasks[-1].glob('checkpoint-*')))
    print(f'## A training that goes on: steps {first} to {last} packed, {steps[keep]} to {steps[-1]} added\n')
    print('The whole tree was named to `icma add`, which passes over what is there. Bytes a new checkpoint are those of tables and residuals.\n')
    print('| tier | steps that are there | + new ones | bytes a new checkpoint | all packed at once | added / at once | dW error of the new, mean, max | of those before, mean, max |')
    print('|---|--:|--:|--:|--:|--:|--:|--:|')
    for title, options in TIERS:
        base, path = b.pack('base.icma', [early], *options), b.shop / 'added.icma'
        told = json.loads(icma('add', base, *b.tasks, '-o', path, '-f', '--json'))
        (before, _), (after, _) = sections(base), sections(path)
        if any(after.get(key) != value for key, value in before.items() if key[0] not in ('task', 'texts')):
            sys.exit(f'a section of {base} changed')
        everything = b.pack('all.icma', b.tasks, *options).stat().st_size
        packed = json.loads(icma('list', base, '--json'))['tasks']
        new = [t['dw_error'] for t in told['tasks']]
        old = [t['dw_error'] for t in packed]
        count = sum(t['checkpoints'] for t in told['tasks'])
        size = path.stat().st_size
        print(f'| {title} | {whole(base.stat().st_size)} | {whole(size)} | {whole(sum(g["bytes"] for g in told["groups"]) / count)} | {whole(everything)} | {size / everything:.3f} | '
              + ' | '.join(f'{sum(e["mean"] for e in errors) / len(errors):.4f}, {max(e["max"] for e in errors):.4f}' for errors in (new, old)) + ' |')
    print()


def share_of_nearest(tasks, fifth):
    """How much of a task's energy the nearest checkpoint of another explains, as it is; every tensor in units of its root mean square over the others."""
    def load(path):
        image = path.read_bytes()
        length = struct.unpack('<Q', image[:8])[0]
        header = json.loads(image[8:8 + length])
        return {n: numpy.frombuffer(image[8 + length:][slice(*t['data_offsets'])], '<f4').astype(float) for n, t in header.items() if n != '__metadata__'}
    last = {task: load(sorted(task.glob('checkpoint-*'), key=lambda p: int(p.name[11:]))[-1] / 'adapter_model.safetensors') for task in tasks}
    scale = {n: math.sqrt(sum(float(x[n] @ x[n]) for t, x in last.items() if t != fifth) / (len(tasks) - 1)) for n in last[fifth]}
    energy = sum(float(v @ v) / scale[n] ** 2 for n, v in last[fifth].items())
    return max(1 - sum(float((v - x[n]) @ (v - x[n])) / scale[n] ** 2 for n, v in last[fifth].items()) / energy for t, x in last.items() if t != fifth)


def whole(value):
    return f'{value:,.0f}' if value is not None else '-'


def compare(b, title, options, single):
    """A table of each task in turn; `single`: only its last checkpoint is added, to all checkpoints of the others."""
    print(f'## {title}, within dW 0.1\n')
    print('| added | the others | + it, `--generator old` | `new` | chosen | all packed at once | alone | added / at once | dW error of it, mean, max (old; new) | of its energy in the old basis | expected (old; new) |')
    print('|---|--:|--:|--:|---|--:|--:|--:|---|--:|--:|')
    for fifth in b.tasks:
        others = [t for t in b.tasks if t != fifth]
        new = max(fifth.glob('checkpoint-*'), key=lambda p: int(p.name[11:])) if single else fifth
        everything = b.pack('all.icma', [*others, new], *options).stat().st_size
        base = b.pack('base.icma', others, *options)
        alone = b.pack('alone.icma', [new], *options).stat().st_size
        before = base.stat().st_size
        sizes, told = zip(*(b.add(base, new, '--generator', choice, *options) for choice in ('old', 'new', 'auto')))
        group = told[2]['groups'][0]
        errors = '; '.join(f'{t["tasks"][0]["dw_error"]["mean"]:.4f}, {t["tasks"][0]["dw_error"]["max"]:.4f}' for t in told[:2])
        explained = '-' if group['explained'] is None else f'{100 * group["explained"]:.1f} %'
        print(f'| {fifth.name} | {whole(before)} | {whole(sizes[0])} | {whole(sizes[1])} | {"old" if group["joined"] else "new"} | {whole(everything)} | {whole(alone)} | {sizes[2] / everything:.3f} | {errors} | '
              f'{explained} | {whole(group["expected_old_bytes"])}; {whole(group["expected_new_bytes"])} (were {whole(sizes[0] - before)}; {whole(sizes[1] - before)}) |')
    print()


def main():
    root = pathlib.Path(sys.argv[-1])
    with tempfile.TemporaryDirectory(prefix='icma-add-') as shop:
        b = Bench(root, pathlib.Path(shop))
        if '--steps' in sys.argv:
            go_on(b, 40)
            return
        print('# Adding tasks without retraining\n')
        print(f'Written by `bench/add.py`: {len(b.tasks)} tasks, {", ".join(t.name for t in b.tasks)}; each in turn is left out, packed alone, and added to the others. Bytes of whole archives.\n')
        compare(b, 'All checkpoints', (), False)
        compare(b, 'One checkpoint, to all checkpoints of the others', (), True)
        compare(b, "Each task's last checkpoint", ('--checkpoints', 'last:1'), False)
        fifth = b.tasks[-1]
        print(f'## Every tier, {fifth.name} added, all checkpoints\n')
        print('| tier | the others | + it, `old` | dW error | `new` | dW error | chosen | all packed at once | alone |')
        print('|---|--:|--:|---|--:|---|---|--:|--:|')
        for title, options in TIERS:
            base = b.pack('base.icma', b.tasks[:-1], *options)
            row = [title, whole(base.stat().st_size)]
            for choice in ('old', 'new'):
                size, told = b.add(base, fifth, '--generator', choice)
                row += [whole(size), f'{told["tasks"][0]["dw_error"]["mean"]:.4f}, {told["tasks"][0]["dw_error"]["max"]:.4f}']
            _, told = b.add(base, fifth)
            row += ['old' if told['groups'][0]['joined'] else 'new', whole(b.pack('all.icma', b.tasks, *options).stat().st_size), whole(b.pack('alone.icma', [fifth], *options).stat().st_size)]
            print('| ' + ' | '.join(row) + ' |')
        print(f'\nIn all these, {b.unchanged:,} sections that were there before kept their bytes.\n')
        go_on(b, 40)
        print('## What a decoder of a network could offer\n')
        print("A decoder that gives back the old tasks' checkpoints and no more cannot scale them: the nearest of them explains, of the last checkpoint of a new task,\n")
        print('| added | share of its energy that the nearest old checkpoint explains |')
        print('|---|--:|')
        for fifth in b.tasks:
            print(f'| {fifth.name} | {100 * share_of_nearest(b.tasks, fifth):.0f} % |')
        print('\nNegative: a residual against it takes more bits than one against nothing. So newcomers do not join groups of networks.')


if __name__ == '__main__':
    main()
