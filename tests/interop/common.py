# SPDX-License-Identifier: Apache-2.0
"""What the interop tests share: running icma, and making adapters as other software makes them."""
import json
import os
import struct
import subprocess
import tempfile
import unittest

os.environ.setdefault('HF_HUB_OFFLINE', '1')  # a test that reached for the network would only pass with one

import numpy as np
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ICMA = os.environ.get('ICMA', os.path.join(ROOT, 'build', 'release', 'icma'))
LORAS = os.path.join(ROOT, 'examples', 'loras')
ADAPTER, CONFIG = 'adapter_model.safetensors', 'adapter_config.json'


class Case(unittest.TestCase):
    """A test with a folder of its own and an icma to run in it."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix='icma-interop-')
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def icma(self, *words, code=0):
        done = subprocess.run([ICMA, *words], capture_output=True, text=True)
        self.assertEqual(done.returncode, code, f'icma {" ".join(words)}\n{done.stderr}{done.stdout}')
        return done.stdout

    def icma_json(self, *words):
        return json.loads(self.icma(*words, '--json'))


def adapters(tree):
    """Relative folders below tree that hold an adapter, in order."""
    return sorted(os.path.relpath(here, tree) for here, _, files in os.walk(tree) if ADAPTER in files)


def header(path):
    """A safetensors header as it stands in the file: pairs, so that order and repeated names show."""
    with open(path, 'rb') as f:
        size, = struct.unpack('<Q', f.read(8))
        return json.loads(f.read(size), object_pairs_hook=lambda pairs: pairs)


def layout(path):
    """(name, dtype, shape) of each tensor in file order, and the metadata as a dict."""
    pairs = header(path)
    tensors = [(name, dict(value)['dtype'], dict(value)['shape']) for name, value in pairs if name != '__metadata__']
    return tensors, dict(dict(pairs).get('__metadata__', []))


def bits(tensor):
    return tensor.contiguous().view(-1).numpy().tobytes() if tensor.dtype != torch.bfloat16 else \
        tensor.contiguous().view(torch.int16).numpy().tobytes()


def relative_error(restored, original):
    a, b = restored.double(), original.double()
    return float((a - b).norm() / b.norm()) if b.norm() > 0 else float(a.norm())


def walk(seed, shapes, checkpoints, spread=0.05, dtype=torch.float32):
    """Checkpoints of one training run: tensors that drift a little, more in the early steps than in the late ones."""
    draw = np.random.default_rng(seed)
    start = {n: draw.standard_normal(s) for n, s in shapes.items()}
    drift = {n: draw.standard_normal(s) for n, s in shapes.items()}
    noise = 0.1 * spread
    for t in range(checkpoints):
        far = spread * 0.7 ** t
        yield {n: torch.tensor(0.1 * (start[n] + far * drift[n] + noise * 0.7 ** t * draw.standard_normal(s))).to(dtype)
               for n, s in shapes.items()}


def lora_shapes(rank, layers=2, width=24, out=16):
    shapes = {}
    for i in range(layers):
        stem = f'base_model.model.layers.{i}.q_proj.lora_'
        shapes[stem + 'A.weight'], shapes[stem + 'B.weight'] = (rank, width), (out, rank)
    return shapes


def write_config(folder, rank, **more):
    with open(os.path.join(folder, CONFIG), 'w') as f:
        json.dump({'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': 'none', 'r': rank,
                   'lora_alpha': 2 * rank, 'target_modules': ['q_proj'], **more}, f)


def example_model():
    """The transformer of examples/train_adapters.py; weights are random, from a fixed seed."""
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(11)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=128, tie_word_embeddings=True, use_cache=False, bos_token_id=None, eos_token_id=None,
        initializer_range=0.08)).eval()
