#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Archives made of files that the real safetensors package wrote come back as files that it reads: same names, order, dtypes,
shapes and metadata; equal bits where nothing was modelled; near values elsewhere."""
import os
import subprocess
import unittest

import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

from common import ADAPTER, CONFIG, ICMA, LORAS, Case, adapters, bits, layout, lora_shapes, relative_error, walk, write_config

NEAR = 0.15  # default bound on dW is 0.10; one factor alone may be a little further off


class RoundTrip(Case):
    def round_trip(self, tree, *words):
        bundle, back = self.path('b.icma'), self.path('back')
        self.icma('pack', tree, *words, '-o', bundle)
        self.icma('verify', '--deep', bundle)
        self.icma('unpack', bundle, '-C', back, '--checkpoint', 'all')
        self.assertEqual(adapters(back), adapters(tree))
        return back

    def assert_same_layout(self, restored, original):
        """Header for header, and through the package's own reader, which checks offsets, sizes and alignment."""
        self.assertEqual(layout(restored), layout(original))
        with safe_open(restored, 'pt') as new, safe_open(original, 'pt') as old:
            self.assertEqual(new.metadata(), old.metadata())
            self.assertEqual(list(new.keys()), list(old.keys()))
            for name in old.keys():
                a, b = new.get_tensor(name), old.get_tensor(name)
                self.assertEqual((a.dtype, a.shape), (b.dtype, b.shape), name)

    def test_example_adapters(self):
        back = self.round_trip(LORAS)
        self.assertEqual(len(adapters(LORAS)), 15)
        for folder in adapters(LORAS):
            restored, original = (os.path.join(tree, folder, ADAPTER) for tree in (back, LORAS))
            self.assert_same_layout(restored, original)
            new, old = load_file(restored), load_file(original)
            for name in old:
                self.assertLess(relative_error(new[name], old[name]), NEAR, f'{folder} {name}')
            with open(os.path.join(back, folder, CONFIG), 'rb') as a, open(os.path.join(LORAS, folder, CONFIG), 'rb') as b:
                self.assertEqual(a.read(), b.read())

    def mixed_tree(self):
        """Three dtypes, two ranks, and tensors of every kind that is kept as it is. Returns {folder: names kept verbatim}."""
        tree, kept = self.path('tree'), {}
        for seed, (task, dtype, rank) in enumerate([('single', torch.float32, 4), ('half', torch.float16, 4),
                                                    ('brain', torch.bfloat16, 4), ('other-rank', torch.float32, 2)]):
            for t, tensors in enumerate(walk(seed, lora_shapes(rank), 3, dtype=dtype)):
                folder = os.path.join(task, f'checkpoint-{9 + t}')  # 9, 10, 11: as text these sort wrongly
                extra = self.odd_tensors(seed, t) if task == 'other-rank' else {}
                os.makedirs(os.path.join(tree, folder))
                save_file({**tensors, **extra}, os.path.join(tree, folder, ADAPTER),
                          {'format': 'pt', 'note': f'größe {t} "quoted" \\ \n', 'step': str(9 + t)})
                write_config(os.path.join(tree, folder), rank)
                kept[folder] = set(extra)
        return tree, kept

    @staticmethod
    def odd_tensors(seed, t):
        generator = torch.Generator().manual_seed(100 * seed + t)
        broken = torch.randn(8, 4, generator=generator)
        broken[0, 0], broken[1, 1], broken[2, 2], broken[3, 3] = float('nan'), float('inf'), -float('inf'), -0.0
        return {'base_model.model.count': torch.randint(-2 ** 62, 2 ** 62, (5,), generator=generator),
                'base_model.model.flags': torch.tensor([True, False, True]),
                'base_model.model.layers.0.q_proj.alpha': torch.tensor(8.0 + t),
                'base_model.model.empty': torch.zeros(0, 4),
                'base_model.model.broken': broken,
                'base_model.model.level': torch.full((6, 6), 0.25)}

    def test_mixed_tree(self):
        tree, kept = self.mixed_tree()
        back = self.round_trip(tree)
        for folder, verbatim in kept.items():
            restored, original = (os.path.join(root, folder, ADAPTER) for root in (back, tree))
            self.assert_same_layout(restored, original)
            new, old = load_file(restored), load_file(original)
            for name in old:
                if name in verbatim:
                    self.assertEqual(bits(new[name]), bits(old[name]), f'{folder} {name}')
                else:
                    self.assertLess(relative_error(new[name], old[name]), NEAR, f'{folder} {name}')

    def test_one_adapter_without_config(self):
        os.makedirs(self.path('tree', 'alone'))
        original = self.path('tree', 'alone', ADAPTER)
        tensors, = walk(7, lora_shapes(4), 1)
        save_file(tensors, original)
        self.icma('pack', self.path('tree'), '-o', self.path('b.icma'))
        self.icma('unpack', self.path('b.icma'), '-C', self.path('back'))
        self.assert_same_layout(self.path('back', 'alone', ADAPTER), original)

    def test_which_checkpoint(self):
        """The default is the last by number; a number gives that one; and these are what `all` gives, byte for byte."""
        back = self.round_trip(LORAS, '--tier', 'latent')  # no two alike, as they may be within a bound
        steps = [int(c.rsplit('-', 1)[1]) for c in adapters(LORAS)]
        for step, words in ((max(steps), ()), (max(steps), ('--checkpoint', 'last')), (min(steps), ('--checkpoint', str(min(steps))))):
            out = self.path('-'.join(('one',) + words))
            self.icma('unpack', self.path('b.icma'), '-C', out, *words)
            tasks = adapters(out)
            self.assertEqual(tasks, sorted({os.path.dirname(a) for a in adapters(LORAS)}))
            for task in tasks:
                with open(os.path.join(out, task, ADAPTER), 'rb') as one:
                    got = one.read()
                same = [s for s in sorted(set(steps)) if self.content(back, task, s) == got]
                self.assertEqual(same, [step], f'{task} {words}')

    @staticmethod
    def content(tree, task, step):
        with open(os.path.join(tree, task, f'checkpoint-{step}', ADAPTER), 'rb') as f:
            return f.read()

    def test_sample_repeats_and_differs_by_seed(self):
        self.icma('pack', LORAS, '--tier', 'latent', '-o', self.path('b.icma'))
        task = adapters(LORAS)[0].split(os.sep)[0]
        read = {}
        for name, seed in (('first', '1'), ('again', '1'), ('other', '2')):
            self.icma('unpack', self.path('b.icma'), '--task', task, '--sample', '--seed', seed, '-C', self.path(name))
            read[name] = load_file(self.path(name, task, ADAPTER))
        original = os.path.join(LORAS, adapters(LORAS)[0], ADAPTER)
        self.assertEqual(layout(self.path('first', task, ADAPTER))[0], layout(original)[0])
        self.assertTrue(all(torch.equal(read['first'][n], read['again'][n]) for n in read['first']))
        self.assertFalse(all(torch.equal(read['first'][n], read['other'][n]) for n in read['first']))

    def test_one_adapter_on_stdout(self):
        self.icma('pack', LORAS, '-o', self.path('b.icma'))
        task = adapters(LORAS)[0].split(os.sep)[0]
        self.icma('unpack', self.path('b.icma'), '--task', task, '-C', self.path('back'))
        stdout = subprocess.run([ICMA, 'unpack', self.path('b.icma'), '--task', task, '-o', '-'],
                                capture_output=True, check=True).stdout
        with open(self.path('back', task, ADAPTER), 'rb') as f:
            self.assertEqual(stdout, f.read())
        self.assertEqual(len(load(stdout)), len(layout(self.path('back', task, ADAPTER))[0]))


if __name__ == '__main__':
    unittest.main()
