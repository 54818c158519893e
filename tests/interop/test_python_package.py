#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Python package with the real PEFT and torch: a model that it loads computes what PEFT makes of the unpacked folder; installed by pip; its annotations hold."""
import os
import shutil
import subprocess
import sys
import unittest
import unittest.mock
import warnings
import zipfile

from common import CONFIG, ICMA, LORAS, ROOT, Case, bits, example_model, walk, write_config, lora_shapes  # first: it keeps transformers off the network

import numpy as np
import peft
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

BUILD = os.path.dirname(ICMA)
os.environ.setdefault('ICMA_LIBRARY', os.path.join(BUILD, 'libicma.so'))
sys.path.insert(0, os.path.join(ROOT, 'python'))
import icma


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.arange(2 * 96).reshape(2, 96) * 37 % 256).logits


class Peft(Case):
    def setUp(self):
        super().setUp()
        self.bundle = self.path('b.icma')
        icma.pack(LORAS, self.bundle, generator='basis', epochs=50)
        self.icma('unpack', self.bundle, '-C', self.path('back'))

    def test_the_same_as_from_the_folder(self):
        for task in ('c', 'python'):
            folder = self.path('back', task)
            expected = logits(PeftModel.from_pretrained(example_model(), folder).eval())
            model = icma.peft.load(example_model(), self.bundle, task)
            self.assertIsInstance(model, PeftModel)
            self.assertFalse(model.training)
            self.assertTrue(torch.equal(logits(model), expected), task)
        self.assertFalse(torch.equal(expected, logits(example_model())))

    def test_only_names_that_every_peft_has(self):
        """peft.mapping has not had all of them since 0.15; those of the package itself stay."""
        with unittest.mock.patch.object(peft, 'mapping', None):
            model = icma.peft.load(example_model(), self.bundle, 'c')
        self.assertIsInstance(model, PeftModel)

    def test_several_adapters_in_one_model(self):
        """By name, as load_adapter; the one that was there is what it was."""
        with icma.open(self.bundle) as bundle:
            model = icma.peft.load(example_model(), bundle, 'c')
            before = logits(model)
            self.assertIs(icma.peft.load(model, bundle, 'python', adapter_name='other'), model)
        self.assertTrue(torch.equal(logits(model), before))
        model.set_adapter('other')
        expected = logits(PeftModel.from_pretrained(example_model(), self.path('back', 'python')).eval())
        self.assertTrue(torch.equal(logits(model), expected))

    def test_a_checkpoint_and_training(self):
        step = 336
        self.icma('unpack', self.bundle, '--task', 'c', '--checkpoint', str(step), '-C', self.path('early'))
        model = icma.peft.load(example_model(), self.bundle, 'c', checkpoint=step, trainable=True)
        self.assertTrue(any(p.requires_grad for n, p in model.named_parameters() if 'lora_' in n))
        expected = logits(PeftModel.from_pretrained(example_model(), self.path('early', 'c')).eval())
        self.assertTrue(torch.equal(logits(model.eval()), expected))

    def test_generated_adapters(self):
        with icma.open(self.bundle) as bundle:
            adapter, told = bundle.generate(mix={'c': 0.5, 'python': 0.5})
            model = icma.peft.put(example_model(), adapter)
        self.assertTrue(torch.isfinite(logits(model)).all())
        self.assertIn(told.nearest, ('c', 'python'))

    def test_an_adapter_of_another_model(self):
        os.makedirs(self.path('tree', 't'))
        shapes = lora_shapes(2, layers=1, width=128, out=128)
        alien = {name.replace('model.layers', 'encoder.blocks'): value for name, value in next(walk(1, shapes, 1)).items()}
        save_file(alien, self.path('tree', 't', 'adapter_model.safetensors'))
        write_config(self.path('tree', 't'), 2)
        icma.pack(self.path('tree'), self.path('alien.icma'))
        plain, adapted = example_model(), icma.peft.load(example_model(), self.bundle, 'c')
        for model in (plain, adapted):
            before, names = logits(model), [name for name, _ in model.named_modules()]
            for _ in range(2):  # it is not there the second time either
                with self.assertRaisesRegex(icma.UnsupportedError, 'not of this model'):
                    icma.peft.load(model, self.path('alien.icma'), 't', adapter_name='alien')
            self.assertEqual([name for name, _ in model.named_modules()], names)
            self.assertTrue(torch.equal(logits(model), before))
        self.assertEqual(list(adapted.peft_config), ['default'])

    def test_without_a_config(self):
        os.makedirs(self.path('tree', 't'))
        shutil.copy(os.path.join(LORAS, 'c', 'checkpoint-400', 'adapter_model.safetensors'), self.path('tree', 't'))
        icma.pack(self.path('tree'), self.path('bare.icma'), tier='lossless')
        with self.assertRaisesRegex(icma.UnsupportedError, 'adapter_config.json'):
            icma.peft.load(example_model(), self.path('bare.icma'), 't')
        with icma.open(self.bundle) as bundle:
            config = icma.peft.config_of(bundle.read('c'))
        model = icma.peft.load(example_model(), self.path('bare.icma'), 't', config=config)
        original = PeftModel.from_pretrained(example_model(), os.path.join(LORAS, 'c', 'checkpoint-400')).eval()
        self.assertTrue(torch.equal(logits(model), logits(original)))

    def test_kohya(self):
        """Names, alphas and a configuration of PEFT's are made of kohya's: the same model as the adapter that it came from."""
        self.icma('unpack', self.bundle, '--task', 'c', '--layout', 'kohya', '-C', self.path('kohya'))
        icma.pack(self.path('kohya'), self.path('k.icma'), tier='lossless')
        with icma.open(self.path('k.icma')) as bundle:
            self.assertTrue(any('lora_down' in t.name for t in bundle.tensors(bundle.tasks[0])))
            model = icma.peft.load(example_model(), bundle, bundle.tasks[0])
        torch.testing.assert_close(logits(model), logits(icma.peft.load(example_model(), self.bundle, 'c')))

    def test_a_config_of_a_newer_peft(self):
        os.makedirs(self.path('tree', 't'))
        shutil.copy(os.path.join(LORAS, 'c', 'checkpoint-400', 'adapter_model.safetensors'), self.path('tree', 't'))
        with open(os.path.join(LORAS, 'c', 'checkpoint-400', CONFIG)) as f:
            text = f.read().replace('{', '{"from_the_future": 1, "unused": null,', 1)
        with open(self.path('tree', 't', CONFIG), 'w') as f:
            f.write(text)
        icma.pack(self.path('tree'), self.path('new.icma'), tier='lossless')
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            icma.peft.load(example_model(), self.path('new.icma'), 't')
        self.assertEqual([str(w.message).rsplit(': ')[-1] for w in caught if 'does not know' in str(w.message)], ['from_the_future'])


class Torch(Case):
    DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.float64)

    def test_every_dtype(self):
        """Through a lossless archive and back, bit for bit, beside what safetensors reads of the unpacked file."""
        os.makedirs(self.path('tree', 't'))
        tensors = next(walk(3, lora_shapes(2, layers=1), 1))
        for i, dtype in enumerate(self.DTYPES):
            tensors[f'x{i}'] = (torch.arange(12).reshape(3, 4) % 2 == 1) if dtype is torch.bool else torch.arange(12).reshape(3, 4).to(dtype)
        tensors.update({'scalar': torch.tensor(3.5), 'none': torch.zeros(0, 4, dtype=torch.int32)})
        save_file(tensors, self.path('tree', 't', 'adapter_model.safetensors'))
        write_config(self.path('tree', 't'), 2)
        icma.pack(self.path('tree'), self.path('b.icma'), tier='lossless')
        self.icma('unpack', self.path('b.icma'), '-C', self.path('back'))
        unpacked = load_file(self.path('back', 't', 'adapter_model.safetensors'))
        loaded = icma.load_file(self.path('b.icma'), 't', framework='torch')
        self.assertEqual(set(loaded), set(tensors))
        for name, expected in tensors.items():
            self.assertEqual((loaded[name].dtype, loaded[name].shape), (expected.dtype, expected.shape), name)
            self.assertEqual(bits(loaded[name]), bits(expected), name)
            self.assertEqual(bits(loaded[name]), bits(unpacked[name]), name)
        with icma.open(self.path('b.icma')) as bundle:
            self.assertTrue(torch.equal(bundle.tensor('t', 'x2', device='cpu'), tensors['x2']))
        loaded['x0'][0, 0] = 5  # the caller's own

    def test_bf16_of_ml_dtypes(self):
        import ml_dtypes
        os.makedirs(self.path('tree', 't'))
        tensors = {name: value.to(torch.bfloat16) for name, value in next(walk(3, lora_shapes(2, layers=1), 1)).items()}
        save_file(tensors, self.path('tree', 't', 'adapter_model.safetensors'))
        icma.pack(self.path('tree'), self.path('b.icma'), tier='lossless')
        for name, array in icma.load_file(self.path('b.icma'), 't').items():
            self.assertEqual(array.dtype, np.dtype(ml_dtypes.bfloat16))
            np.testing.assert_array_equal(array.astype(np.float32), tensors[name].float().numpy())


class Installed(Case):
    def run_in(self, *words, **more):
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True, **more)
        self.assertEqual(done.returncode, 0, f'{words}\n{done.stdout}{done.stderr}')
        return done.stdout

    def installed(self, **environment):
        """pip makes a wheel of a copy of python/ and puts it into a new environment, without the network."""
        source = shutil.copytree(os.path.join(ROOT, 'python'), self.path('source'), ignore=shutil.ignore_patterns('build', '*.egg-info', '__pycache__'))
        clean = {k: v for k, v in os.environ.items() if k not in ('ICMA_LIBRARY', 'PYTHONPATH')}
        pip = (sys.executable, '-m', 'pip', '--disable-pip-version-check')
        offline = ('--no-index', '--no-deps', '--quiet')
        self.run_in(*pip, 'wheel', *offline, '--no-build-isolation', '-w', self.path('wheels'), source, env={**clean, **environment})
        wheel, = os.listdir(self.path('wheels'))
        self.run_in('/usr/bin/python3', '-m', 'venv', '--system-site-packages', '--without-pip', self.path('venv'))
        python = self.path('venv', 'bin', 'python')
        self.run_in(*pip, '--python', python, 'install', *offline, self.path('wheels', wheel))
        return wheel, python, clean

    def test_a_wheel_that_carries_libicma(self):
        wheel, python, clean = self.installed(ICMA_LIBRARY=os.environ['ICMA_LIBRARY'])
        self.assertRegex(wheel, r'^icma-0\.1\.0-py3-none-linux_\w+\.whl$')
        with zipfile.ZipFile(self.path('wheels', wheel)) as archive:
            licence, = (name for name in archive.namelist() if name.endswith('/LICENSE'))
            self.assertIn(b'Apache License', archive.read(licence))
        told = self.run_in(python, '-c', 'import icma; print(icma.version(), icma._library.library()._name, icma.__file__)', env=clean, cwd=self.folder).split()
        self.assertEqual(told[0], icma.version())
        self.assertTrue(all(path.startswith(self.path('venv')) for path in told[1:]), told)
        names = self.run_in(python, '-c', f'import icma; print(icma.open({os.path.join(ROOT, "tests", "vectors", "one.icma")!r}).tasks)', env=clean, cwd=self.folder)
        self.assertIn('[', names)

    def test_a_wheel_that_finds_it(self):
        wheel, python, clean = self.installed()
        self.assertEqual(wheel, 'icma-0.1.0-py3-none-any.whl')
        code = 'import icma\ntry: print(icma.version())\nexcept icma.LibraryError as e: print(e)'
        self.assertEqual(self.run_in(python, '-c', code, env={**clean, 'ICMA_LIBRARY': os.environ['ICMA_LIBRARY']}, cwd=self.folder).strip(), icma.version())
        folder = self.path('lib')
        os.mkdir(folder)
        os.symlink(os.path.realpath(os.environ['ICMA_LIBRARY']), os.path.join(folder, 'libicma.so.0.1'))
        self.assertEqual(self.run_in(python, '-c', code, env={**clean, 'LD_LIBRARY_PATH': folder}, cwd=self.folder).strip(), icma.version())

    def test_annotations(self):
        """mypy, as strictly as pyproject.toml says."""
        done = subprocess.run([sys.executable, '-m', 'mypy', '--cache-dir', self.path('cache')], cwd=os.path.join(ROOT, 'python'), capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn('no issues found', done.stdout)


if __name__ == '__main__':
    unittest.main()
