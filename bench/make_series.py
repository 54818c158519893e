#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a tree of synthetic adapter series of any size, for timing and memory only.

Each task is a random adapter that drifts along three random directions while a seeded walk shrinks, in the proportions that were
measured on real series (spread within a task 0.1 % of A's energy, 0.3 % of B's; A shares a start over tasks). Compression figures on
it say nothing about real adapters.

  make_series.py OUT --tasks 5 --checkpoints 50 --modules 60 --rank 8 --width 2010
"""
import argparse
import json
import os
import struct

import numpy as np


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('out')
    ap.add_argument('--tasks', type=int, default=5)
    ap.add_argument('--task', type=int, help='only this one, counted from 0: tasks do not depend on each other, so that each can have its own process')
    ap.add_argument('--checkpoints', type=int, default=50)
    ap.add_argument('--modules', type=int, default=60)
    ap.add_argument('--rank', type=int, default=8)
    ap.add_argument('--width', type=int, default=2010)
    o = ap.parse_args()
    names, shapes = [], []
    for m in range(o.modules):
        stem = f'base_model.model.layers.{m // 6}.p{m % 6}.lora_'
        names += [stem + 'A.weight', stem + 'B.weight']
        shapes += [(o.rank, o.width), (o.width, o.rank)]
    header, at = {'__metadata__': {'format': 'pt'}}, 0
    for n, s in zip(names, shapes):
        size = 4 * s[0] * s[1]
        header[n] = {'dtype': 'F32', 'shape': list(s), 'data_offsets': [at, at + size]}
        at += size
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    each = o.rank * o.width
    start = np.random.default_rng(1).standard_normal((o.modules, each), np.float32) * 0.02
    config = json.dumps({'peft_type': 'LORA', 'r': o.rank, 'lora_alpha': 2 * o.rank})
    for t in range(o.tasks) if o.task is None else [o.task]:
        rng = np.random.default_rng((1, t))
        mean = np.stack([start + rng.standard_normal(start.shape, np.float32) * 0.015,
                         rng.standard_normal(start.shape, np.float32) * 0.01], 1).reshape(-1)
        spread = np.tile(np.repeat(np.float32([0.025 * 0.032, 0.01 * 0.055]), each), o.modules)
        drift = [rng.standard_normal(mean.shape, np.float32) * spread for _ in range(4)]
        for c in range(o.checkpoints):
            x = 2 * c / max(1, o.checkpoints - 1) - 1
            w = mean + 1.5 * x * drift[0] + 0.6 * (x * x - 1 / 3) * drift[1] + 0.3 * np.sin(5 * x) * drift[2]
            w += 0.1 * rng.standard_normal(mean.shape, np.float32) * spread
            folder = os.path.join(o.out, f'task{t}', f'checkpoint-{3 * c + 3}')
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, 'adapter_model.safetensors'), 'wb') as f:
                f.write(struct.pack('<Q', len(text)) + text + w.astype('<f4').tobytes())
            with open(os.path.join(folder, 'adapter_config.json'), 'w') as f:
                f.write(config)


if __name__ == '__main__':
    main()
