#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""icma reads whatever the safetensors package writes, and finds no difference between a file and itself."""
import os
import unittest

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch

from common import ADAPTER, Case, lora_shapes, relative_error, walk, write_config

SHAPES = [(), (1,), (7,), (0,), (0, 4), (4, 0), (3, 5), (2, 3, 4), (1, 1, 1, 1, 1, 1, 1, 2)]
NUMPY = [np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64,
         np.float16, np.float32, np.float64]
TORCH = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
         torch.float16, torch.bfloat16, torch.float32, torch.float64]


def numpy_tensors():
    draw = np.random.default_rng(5)
    return {f'odd.{np.dtype(d).name}.{i}': np.asarray(draw.integers(0, 100, s)).astype(d) for d in NUMPY for i, s in enumerate(SHAPES)}


def torch_tensors():
    generator = torch.Generator().manual_seed(5)
    return {f'odd.{str(d)[6:]}.{i}': torch.randint(0, 100, s, generator=generator).to(d) for d in TORCH for i, s in enumerate(SHAPES)}


def pairs():
    tensors, = walk(1, lora_shapes(4), 1)
    return tensors


def all_of(document, key):
    """Every value that key has, at any depth."""
    if isinstance(document, list):
        return [v for part in document for v in all_of(part, key)]
    if not isinstance(document, dict):
        return []
    return [v for k, v in document.items() if k == key] + [v for part in document.values() for v in all_of(part, key)]


class Accept(Case):
    def adapter(self, save, tensors, **metadata):
        """A PEFT folder with a pair or two and these tensors."""
        folder = self.path('tree', 'task')
        os.makedirs(folder)
        write_config(folder, 4)
        save(tensors, os.path.join(folder, ADAPTER), **metadata)
        return self.path('tree')

    def accepted(self, tree):
        self.icma('pack', tree, '--dry-run', '-o', self.path('b.icma'))
        self.assertFalse(os.path.exists(self.path('b.icma')))
        file = os.path.join(tree, 'task', ADAPTER)
        self.assert_equal_to_itself(file)
        return file

    def assert_equal_to_itself(self, file):
        found = self.icma_json('diff', file, file)
        errors, identical = all_of(found, 'relative_error'), all_of(found, 'identical')
        self.assertTrue(errors and identical)
        self.assertEqual(set(errors), {0})
        self.assertEqual(set(identical), {True})

    def test_numpy_dtypes_and_shapes(self):
        tensors = {**{n: t.numpy() for n, t in pairs().items()}, **numpy_tensors()}
        self.accepted(self.adapter(safetensors.numpy.save_file, tensors))

    def test_torch_dtypes_and_shapes(self):
        self.accepted(self.adapter(safetensors.torch.save_file, {**pairs(), **torch_tensors()}, metadata={'format': 'pt'}))

    def test_metadata_of_every_kind_of_text(self):
        texts = {'': 'empty key', 'plain': '', 'quotes': '"\\/\b\f\n\r\t', 'control': '\x01\x1f\x7f', 'wide': 'größe 日本 🜁 \u2028',
                 '__metadata__': 'its own name', 'long': 'x' * 100_000}
        self.accepted(self.adapter(safetensors.torch.save_file, pairs(), metadata=texts))

    def test_names_of_every_kind_of_text(self):
        odd = {n: torch.arange(4.0) for n in ('größe', 'with space', 'a/b', '日本.weight', 'quote"d', 'back\\slash', 'n' * 255)}
        self.accepted(self.adapter(safetensors.torch.save_file, {**pairs(), **odd}))

    def test_a_difference_is_found(self):
        file = os.path.join(self.adapter(safetensors.torch.save_file, pairs()), 'task', ADAPTER)
        tensors = safetensors.torch.load_file(file)
        name = sorted(tensors)[0]
        before = tensors[name].clone()
        tensors[name].view(-1)[0] += 1
        other = self.path('changed.safetensors')
        safetensors.torch.save_file(tensors, other)
        found = self.icma_json('diff', file, other)
        self.assertIn(False, all_of(found, 'identical'))
        self.assertTrue(any(abs(e - relative_error(tensors[name], before)) < 1e-6 for e in all_of(found, 'relative_error')), found)
        self.assertTrue(any(abs(m - 1) < 1e-6 for m in all_of(found, 'maximum') if m is not None), found)


if __name__ == '__main__':
    unittest.main()
