#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Gain kept: what packing costs in the adapters' own task, in Markdown.

Runs an evaluation on originals and on what a bundle gives back. The evaluation is a program that is called as
    EVAL TASK ORIGINAL RECONSTRUCTED --gain
and prints a line `retained X`: X = (base - reconstructed) / (base - original), 1 = nothing lost.
Beside the restored checkpoints stand adapters that the bundle generates from a task's condition alone (--sample), and the
average of a task's checkpoints (Model Soup), which is what a generator without latents could at best know.

  gain.py --icma build/release/icma --eval eval.py TREE BUNDLE --steps 303 351 399 450 --seeds 1 2 3 4
"""
import argparse
import glob
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

import numpy as np


def run(*words):
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def retained(o, task, original, other):
    for line in run(sys.executable, o.eval, task, original, other, '--gain').splitlines():
        if line.startswith('retained'):
            return float(line.split()[1])
    sys.exit('gain.py: the evaluation printed no "retained" line')


def average(folder, out):
    """The mean of a task's checkpoints, all F32 with one header, as a checkpoint."""
    paths = sorted(glob.glob(os.path.join(folder, 'checkpoint-*', 'adapter_model.safetensors')))
    total, head = 0, None
    for path in paths:
        raw = open(path, 'rb').read()
        start = 8 + struct.unpack('<Q', raw[:8])[0]
        head = raw[:start]
        total = total + np.frombuffer(raw[start:], '<f4').astype(np.float64)
    os.makedirs(out)
    with open(os.path.join(out, 'adapter_model.safetensors'), 'wb') as f:
        f.write(head + (total / len(paths)).astype('<f4').tobytes())
    shutil.copy(os.path.join(os.path.dirname(paths[0]), 'adapter_config.json'), out)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('tree')
    ap.add_argument('bundle')
    ap.add_argument('--icma', default='build/release/icma')
    ap.add_argument('--eval', required=True)
    ap.add_argument('--steps', type=int, nargs='+', required=True)
    ap.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3, 4])
    o = ap.parse_args()
    tasks = [t['task'] for t in json.loads(run(o.icma, 'list', o.bundle, '--json'))['tasks']]
    last = o.steps[-1]
    rows = {}
    with tempfile.TemporaryDirectory() as work:
        run(o.icma, 'unpack', o.bundle, '-C', f'{work}/all', '--checkpoint', 'all', '-q')
        for seed in o.seeds:
            run(o.icma, 'unpack', o.bundle, '-C', f'{work}/seed{seed}', '--sample', '--seed', str(seed), '-q')
        for task in tasks:
            original = {s: f'{o.tree}/{task}/checkpoint-{s}' for s in o.steps}
            average(f'{o.tree}/{task}', f'{work}/mean/{task}')
            rows[task] = ([retained(o, task, original[s], f'{work}/all/{task}/checkpoint-{s}') for s in o.steps]
                          + [retained(o, task, original[last], f'{work}/mean/{task}')]
                          + [retained(o, task, original[last], f'{work}/seed{s}/{task}') for s in o.seeds])
    heads = [f'checkpoint-{s}' for s in o.steps] + ['average'] + [f'sample {s}' for s in o.seeds]
    print('| task | ' + ' | '.join(heads) + ' |')
    print('|---' * (len(heads) + 1) + '|')
    for task, row in rows.items():
        print(f'| {task} | ' + ' | '.join(f'{x:.4f}' for x in row) + ' |')
    mean = np.mean(list(rows.values()), 0)
    print('| **mean** | ' + ' | '.join(f'{x:.4f}' for x in mean) + ' |')
    n = len(o.steps)
    print(f'\nRestored: mean {mean[:n].mean():.4f}. Average adapter at checkpoint-{last}: {mean[n]:.4f}.', end='')
    if o.seeds:
        print(f' Samples at checkpoint-{last}: mean {mean[n + 1:].mean():.4f}, worst {min(min(r[n + 1:]) for r in rows.values()):.4f}.', end='')
    print()


if __name__ == '__main__':
    main()
