# SPDX-License-Identifier: Apache-2.0
"""What the tests of the command line share: running icma, and small trees of adapters written by hand."""
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import tempfile
import unittest

PROGRAM = os.environ.get('ICMA', 'icma')
SIZES = {'F32': 4, 'F16': 2, 'BF16': 2, 'I64': 8, 'U8': 1}


class Result:
    def __init__(self, process):
        self.code, self.out, self.err = process.returncode, process.stdout, process.stderr

    @property
    def words(self):
        return self.err.decode('utf-8', 'backslashreplace')

    @property
    def text(self):
        return self.out.decode('utf-8', 'backslashreplace')

    @property
    def json(self):
        return json.loads(self.out)

    def __repr__(self):
        return f'exit {self.code}\nstdout: {self.text}\nstderr: {self.words}'


def icma(*arguments, cwd=None, env=None, stdin=subprocess.DEVNULL, **more):
    return Result(subprocess.run([PROGRAM, *map(os.fsencode, map(str, arguments))], cwd=cwd, stdin=stdin,
                                 stdout=more.pop('stdout', subprocess.PIPE), stderr=subprocess.PIPE,
                                 env={**os.environ, **(env or {})}, timeout=300, **more))


def safetensors(tensors, metadata=None):
    """{name: (dtype, shape, bytes)} as a file's bytes, in the order given."""
    header, at = {}, 0
    if metadata is not None:
        header['__metadata__'] = metadata
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {'dtype': dtype, 'shape': list(shape), 'data_offsets': [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    return struct.pack('<Q', len(text)) + text + b''.join(data for _, _, data in tensors.values())


def header_of(image):
    return image[:8 + struct.unpack('<Q', image[:8])[0]]


def floats(values):
    return struct.pack(f'<{len(values)}f', *values)


def lora(task, step, modules=('q_proj', 'v_proj'), rank=2, width=12, seed=0, extra=None):
    """One adapter: an average that depends on the task, and a drift along one direction with the step."""
    tensors = {}
    for module in modules:
        for factor, shape in (('A', (rank, width)), ('B', (width, rank))):
            draw = random.Random(f'{task} {module} {factor} {seed}')
            count = shape[0] * shape[1]
            base = [draw.gauss(0, 0.1) for _ in range(count)]
            drift = [draw.gauss(0, 0.01) for _ in range(count)]
            name = f'base_model.model.layers.0.{module}.lora_{factor}.weight'
            tensors[name] = ('F32', shape, floats([b + d * (step or 0) / 50 for b, d in zip(base, drift)]))
    tensors.update(extra or {})
    return safetensors(tensors, {'format': 'pt'})


CONFIG = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 4, 'target_modules': ['q_proj', 'v_proj']}


def write_adapter(folder, image, config=True):
    folder = pathlib.Path(os.fsdecode(folder))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'adapter_model.safetensors').write_bytes(image)
    if config:
        (folder / 'adapter_config.json').write_text(json.dumps(CONFIG, indent=2))


def write_tree(root, tasks=('bird', 'cat', 'dog'), steps=(10, 20, 30, 100), condition=True):
    for number, task in enumerate(tasks):
        for step in steps:
            write_adapter(pathlib.Path(root) / task / f'checkpoint-{step}', lora(task, step))
        if condition:
            vector = floats([1.0 if i == number else 0.1 * i for i in range(8)])
            (pathlib.Path(root) / task / 'task_vector.safetensors').write_bytes(
                safetensors({'task_vector': ('F32', (8,), vector)}))


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in pathlib.Path(folder).rglob('*') if not p.is_dir())


# Few epochs: these tests look at manners, not at fidelity.
QUICK = ('--epochs', '20', '-T', '1')
# The tier that has all kinds of sections that training makes, whatever the tree.
LATENT = ('--tier', 'latent')


class Case(unittest.TestCase):
    """Each test has a fresh folder `self.here`; `self.tree` and `self.bundle` are made once, with `self.tier`, and copied."""
    tier = LATENT

    @classmethod
    def setUpClass(cls):
        cls.shop = pathlib.Path(tempfile.mkdtemp(prefix='icma-cli-'))
        cls.addClassCleanup(shutil.rmtree, cls.shop, True)
        write_tree(cls.shop / 'tree')
        cls.tree = cls.shop / 'tree'
        cls.packed = icma('pack', cls.tree, '-o', cls.shop / 'small.icma', '--json', *cls.tier, *QUICK)

    def setUp(self):
        self.here = pathlib.Path(tempfile.mkdtemp(dir=self.shop))

    def bundle(self, name='small.icma'):
        self.assertEqual(self.packed.code, 0, self.packed)
        return pathlib.Path(shutil.copy(self.shop / 'small.icma', self.here / name))

    def run_icma(self, code, *arguments, **more):
        result = icma(*arguments, cwd=more.pop('cwd', self.here), **more)
        self.assertEqual(result.code, code, f'icma {" ".join(map(str, arguments))}\n{result!r}')
        return result

    def fails(self, code, *arguments, saying=(), **more):
        """A failure: this exit code, one clear line on stderr that says all of `saying`, no document."""
        result = self.run_icma(code, *arguments, **more)
        as_json = '--json' in arguments and '--' not in arguments
        self.assertRegex(result.words, r'(?m)^{"(error|warning)":' if as_json else r'(?m)^icma: (error|warning): ')
        for part in [saying] if isinstance(saying, str) else saying:
            self.assertIn(part, result.words)
        return result

    def assertNothingLeft(self, folder, expected=()):
        self.assertEqual(files_below(folder), sorted(expected))


def main():
    unittest.main(verbosity=1)
