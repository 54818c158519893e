#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Python package over a built libicma: what it loads is what the program unpacks; what it packs the program takes; errors, threads, interruption, memory."""
import gc
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
import unittest.mock
import warnings

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'cli'))
import harness

import icma

VECTORS = ROOT / 'tests' / 'vectors'


def parse(image):
    """Tensors of a safetensors file as (dtype, shape, bytes), without the package's own reader."""
    import json
    import struct
    n, = struct.unpack('<Q', image[:8])
    header = json.loads(image[8:8 + n])
    header.pop('__metadata__', None)
    return {name: (e['dtype'], tuple(e['shape']), image[8 + n:][e['data_offsets'][0]:e['data_offsets'][1]]) for name, e in header.items()}


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.shop = pathlib.Path(tempfile.mkdtemp(prefix='icma-python-'))
        cls.addClassCleanup(shutil.rmtree, cls.shop, True)
        harness.write_tree(cls.shop / 'tree', steps=(10, 20, 30))
        cls.archive = cls.shop / 'b.icma'
        icma.pack(cls.shop / 'tree', cls.archive, generator='basis', epochs=20)

    def setUp(self):
        self.here = pathlib.Path(tempfile.mkdtemp(dir=self.shop))


class Import(unittest.TestCase):
    def python(self, code, **environment):
        return subprocess.run([sys.executable, '-B', '-c', code], capture_output=True, text=True, env={**os.environ, **environment})

    def test_import_needs_no_library(self):
        done = self.python('import icma, sys; print("numpy" in sys.modules, icma._library._loaded)', ICMA_LIBRARY='/nowhere')
        self.assertEqual((done.stdout, done.stderr), ('False None\n', ''))

    def test_a_missing_library_says_what_to_do(self):
        done = self.python('import icma\ntry: icma.open("x")\nexcept icma.LibraryError as e: print(e)', ICMA_LIBRARY='/nowhere/libicma.so')
        self.assertIn('/nowhere/libicma.so does not exist', done.stdout)
        self.assertIn('set ICMA_LIBRARY', done.stdout)

    def test_another_library_is_refused(self):
        done = self.python('import icma\ntry: icma.open("x")\nexcept icma.LibraryError as e: print(e)', ICMA_LIBRARY='libc.so.6')
        self.assertIn('another version', done.stdout)

    def test_a_folder_names_the_library(self):
        folder = os.path.dirname(os.environ['ICMA_LIBRARY'])
        self.assertEqual(self.python('import icma; print(icma.version())', ICMA_LIBRARY=folder).stdout.strip(), icma.version())

    def test_a_build_of_the_source_tree_is_found(self):
        environment = {k: v for k, v in os.environ.items() if k != 'ICMA_LIBRARY'}
        with tempfile.TemporaryDirectory() as folder:
            tree = pathlib.Path(folder)
            shutil.copytree(ROOT / 'python' / 'icma', tree / 'python' / 'icma')
            (tree / 'build' / 'release').mkdir(parents=True)
            (tree / 'build' / 'release' / 'libicma.so.0.1').symlink_to(os.environ['ICMA_LIBRARY'])
            code = 'import icma; print(icma._library.library()._name)'
            done = subprocess.run([sys.executable, '-B', '-c', code], capture_output=True, text=True, env={**environment, 'PYTHONPATH': str(tree / 'python')})
            self.assertTrue(done.stdout.strip().endswith('libicma.so.0.1'), done)


class Reading(Case):
    def check_load(self, archive, task):
        """Against what the program unpacks."""
        out = self.here / 'out.safetensors'
        subprocess.run([harness.PROGRAM, 'unpack', '-q', archive, '--task', task, '-o', out], check=True)
        expected = parse(out.read_bytes())
        out.unlink()
        loaded = icma.load_file(archive, task)
        self.assertEqual(list(loaded), list(expected))
        with icma.open(archive) as bundle:
            for name, (dtype, shape, data) in expected.items():
                self.assertEqual((loaded[name].shape, loaded[name].tobytes()), (shape, data), name)
                one = bundle.tensor(task, name)
                self.assertEqual((one.dtype, one.shape, one.tobytes()), (loaded[name].dtype, shape, data), name)
            self.assertEqual({t.name: (t.dtype, t.shape) for t in bundle.tensors(task)}, {n: e[:2] for n, e in expected.items()})

    def test_what_is_loaded_is_what_is_unpacked(self):
        for vector in ('basis-mixed', 'none', 'conv-bf16', 'lossless-chain', 'bounded-abs', 'bounded-verbatim', 'two-groups', 'conv-variance', 'diffusion'):
            archive = VECTORS / f'{vector}.icma'
            with icma.open(archive) as bundle:
                tasks = bundle.tasks
            for task in tasks:
                with self.subTest(vector=vector, task=task):
                    self.check_load(archive, task)

    def test_checkpoints(self):
        with icma.open(self.archive) as bundle:
            self.assertEqual(bundle.tasks, ['bird', 'cat', 'dog'])
            self.assertTrue('cat' in bundle and 'fish' not in bundle and len(bundle) == 3 and list(bundle) == bundle.tasks)
            self.assertEqual([c.step for c in bundle.checkpoints('cat')], [10, 20, 30])
            last, by_step = bundle.load('cat'), bundle.load('cat', 30)
            early = bundle.load('cat', bundle.checkpoints('cat')[0])
            for name in last:
                self.assertEqual(last[name].tobytes(), by_step[name].tobytes())
            self.assertTrue(any(last[n].tobytes() != early[n].tobytes() for n in last))
            original = parse(harness.lora('cat', 10))
            for name, (_, shape, data) in original.items():
                x = np.frombuffer(data, np.float32).reshape(shape)
                self.assertLess(np.linalg.norm(early[name] - x), 0.2 * np.linalg.norm(x))
            self.assertLessEqual(bundle.checkpoints('cat')[0].dw_error_max, 0.1)
            for checkpoint in (31, 'first', True):
                with self.assertRaises(icma.Error):
                    bundle.load('cat', checkpoint)

    def test_what_there_is(self):
        with icma.open(self.archive) as bundle:
            info = bundle['cat']
            self.assertEqual((info.name, info.condition_origin, len(info.condition), info.condition[1]), ('cat', 'task_vector.safetensors', 8, 1.0))
            self.assertEqual(bundle.bytes['total'], self.archive.stat().st_size)
            self.assertEqual({s.kind for s in bundle.sections} & {'signature', 'task', 'record'}, {'signature', 'task', 'record'})
            self.assertIsNone(next(s for s in bundle.sections if s.kind == 'signature').task)
            self.assertEqual(bundle.record()['options']['epochs'], 20)
            self.assertEqual(bundle.groups[0].tensors, 4)
            bundle.verify(deep=True)
            adapter = bundle.read('cat')
            self.assertEqual((adapter.config, adapter.metadata), (harness.CONFIG, {'format': 'pt'}))
            self.assertEqual(set(adapter.files), {'adapter_config.json'})
            with self.assertRaises(icma.NotFoundError):
                bundle.record(1)

    def test_sampling(self):
        with icma.open(VECTORS / 'generate.icma') as bundle:
            task = bundle.tasks[0]
            draws = [bytes(bundle.sample(task, seed).data) for seed in (0, 1, 0)]
            self.assertEqual(draws[0], draws[2])
            self.assertNotEqual(draws[0], draws[1])
            with self.assertRaises(icma.UsageError):
                bundle.sample(task, -1)

    def test_generating(self):
        """A task's own condition gives its mean; a mix says what it is."""
        archive = self.here / 'g.icma'
        icma.pack(self.shop / 'tree', archive, tier='generate', epochs=20)
        with icma.open(archive) as bundle:
            own, told = bundle.generate(bundle['cat'].condition)
            self.assertEqual((told.nearest, told.like), ('cat', 'cat'))
            self.assertAlmostEqual(told.cosine, 1)
            for name, values in bundle.load('cat').items():
                self.assertEqual(own.load()[name].tobytes(), values.tobytes(), name)
            mixed, told = bundle.generate(mix={'cat': 0.5, 'dog': 0.5}, like='dog', origin='half and half', seed=3)
            self.assertEqual((mixed.metadata['icma_generated'], mixed.metadata['icma_from'], mixed.metadata['icma_like']), ('true', 'half and half', 'dog'))
            for wrong in ({}, {'condition': [1.0] * 8, 'mix': {'cat': 1}}, {'condition': [float('nan')] * 8}):
                with self.assertRaises((icma.UsageError, icma.UnsupportedError)):
                    bundle.generate(**wrong)
            with self.assertRaises(icma.NotFoundError):
                bundle.generate(mix={'fish': 1})

    def test_layouts(self):
        """kohya's names and back, beside what the program unpacks; the memory is the adapters' own."""
        tree = self.here / 'tree'
        name = 'base_model.model.model.layers.0.self_attn.q_proj.lora_'
        image = harness.safetensors({f'{name}A.weight': ('F32', (2, 4), harness.floats(range(8))), f'{name}B.weight': ('F32', (4, 2), harness.floats(range(8)))}, {'format': 'pt'})
        harness.write_adapter(tree / 't', image)
        icma.pack(tree, self.here / 'l.icma', tier='lossless')
        with icma.open(self.here / 'l.icma') as bundle:
            adapter, = bundle.convert('t', layout='kohya', dtype='F16').values()
            subprocess.run([harness.PROGRAM, 'unpack', '-q', self.here / 'l.icma', '--layout', 'kohya', '--dtype', 'f16', '-C', self.here / 'out'], check=True)
            unpacked, = (self.here / 'out').rglob('*.safetensors')
            self.assertEqual(bytes(adapter.data), unpacked.read_bytes())
            self.assertTrue(all('lora_down' in t.name or 'lora_up' in t.name or 'alpha' in t.name for t in adapter.tensors))
            again, = bundle.convert('t').values()
            self.assertEqual(bytes(again.data), bytes(bundle.read('t').data))
            for wrong in ({'layout': 'sgml'}, {'dtype': 'I8'}):
                with self.assertRaises(icma.UsageError):
                    bundle.convert('t', **wrong)
            values = adapter.load()
            del adapter, again
            gc.collect()
            self.assertEqual(sorted(values[next(n for n in values if 'lora_down' in n)].ravel().tolist()), list(range(8)))

    def test_bf16_without_ml_dtypes_is_its_bits(self):
        with icma.open(VECTORS / 'conv-bf16.icma') as bundle:
            task = bundle.tasks[0]
            kinds = {t.name: t.dtype for t in bundle.tensors(task)}
            name = next(n for n, kind in kinds.items() if kind == 'BF16')
            blocked, sys.modules['ml_dtypes'] = sys.modules.get('ml_dtypes'), None
            try:
                self.assertEqual(bundle.load(task)[name].dtype, np.uint16)
            finally:
                sys.modules.pop('ml_dtypes')
                if blocked is not None:
                    sys.modules['ml_dtypes'] = blocked

    def test_every_dtype(self):
        kinds = {'BOOL': (np.bool_, [True, False]), 'U8': (np.uint8, [1, 255]), 'I8': (np.int8, [-1, 2]), 'I16': (np.int16, [-3, 4]), 'U16': (np.uint16, [5, 65535]),
                 'F16': (np.float16, [1.5, -2]), 'I32': (np.int32, [-7, 8]), 'U32': (np.uint32, [9, 1]), 'F32': (np.float32, [0.5, 3]), 'I64': (np.int64, [-9, 1]),
                 'U64': (np.uint64, [2, 2 ** 63]), 'F64': (np.float64, [0.1, 2])}
        tree = self.here / 'tree'
        extra = {k.lower(): (k, (2,), np.array(v, t).tobytes()) for k, (t, v) in kinds.items()}
        extra.update({'fp8': ('F8_E4M3', (3,), b'\x01\x02\x03'), 'scalar': ('F32', (), np.float32(7).tobytes()), 'none': ('I32', (0, 2), b'')})
        image = harness.lora('t', 1, extra=extra)
        harness.write_adapter(tree / 't', image)
        icma.pack(tree, self.here / 'd.icma', tier='lossless')
        loaded = icma.load_file(self.here / 'd.icma', 't')
        for k, (t, v) in kinds.items():
            self.assertEqual(loaded[k.lower()].dtype, t)
            self.assertEqual(loaded[k.lower()].tolist(), np.array(v, t).tolist())
        self.assertEqual((loaded['fp8'].tobytes(), loaded['scalar'].shape, float(loaded['scalar']), loaded['none'].shape), (b'\x01\x02\x03', (), 7.0, (0, 2)))

    def test_arrays_outlive_everything(self):
        before = {n: a.copy() for n, a in icma.load_file(self.archive, 'cat').items()}
        bundle = icma.open(self.archive)
        arrays = bundle.load('cat')
        bundle.close()
        del bundle
        gc.collect()
        ballast = [icma.load_file(self.archive, 'dog') for _ in range(50)]
        for name in before:
            np.testing.assert_array_equal(arrays[name], before[name])
        self.assertEqual(len(ballast), 50)

    def test_arrays_last_until_the_process_ends(self):
        """Whatever else runs at its end, and after weakref's own finalizers."""
        code = ('import atexit, sys\natexit.register(lambda: print(bytes(adapter.data) == before))\n'
                'import icma\nadapter = icma.open(sys.argv[1]).read("cat")\nbefore = bytes(adapter.data)')
        done = subprocess.run([sys.executable, '-B', '-c', code, self.archive], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, 'True\n', ''))

    def test_no_memory_is_lost(self):
        def resident():
            with open('/proc/self/statm') as f:
                return int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
        big = self.here / 'tree'
        values = np.ones(1 << 20, np.float32).tobytes()
        harness.write_adapter(big / 't', harness.lora('t', 1, extra={'big': ('F32', (1 << 20,), values)}))
        icma.pack(big, self.here / 'm.icma', tier='lossless')
        with icma.open(self.here / 'm.icma') as bundle:
            bundle.load('t')
            start = resident()
            for _ in range(40):
                bundle.load('t')
            self.assertLess(resident() - start, 20 << 20)

    def test_no_memory_is_taken_for_a_tensor_over_the_limit(self):
        with icma.open(self.archive, max_output=64) as bundle, unittest.mock.patch.object(bundle, '_call', wraps=bundle._call) as called:
            with self.assertRaisesRegex(icma.LimitError, 'max_output is 64'):
                bundle.tensor('cat', bundle.tensors('cat')[0].name)
            self.assertNotIn('icma_bundle_decode_tensor', [call.args[0] for call in called.call_args_list])

    def test_a_closed_bundle_says_so(self):
        bundle = icma.open(self.archive)
        bundle.close()
        bundle.close()
        with self.assertRaisesRegex(icma.UsageError, 'closed'):
            bundle.load('cat')
        self.assertIn('closed', repr(bundle))

    def test_threads_share_a_bundle(self):
        results, failed = {}, []

        def work(bundle, task):
            try:
                for _ in range(5):
                    results[task] = {n: a.tobytes() for n, a in bundle.load(task).items()}
            except BaseException as error:
                failed.append(error)
        with icma.open(self.archive) as bundle:
            threads = [threading.Thread(target=work, args=(bundle, task)) for task in bundle.tasks for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(failed, [])
        for task in results:
            self.assertEqual(results[task], {n: a.tobytes() for n, a in icma.load_file(self.archive, task).items()})

    def test_devices_give_the_same_bits(self):
        expected = {n: a.tobytes() for n, a in icma.load_file(self.archive, 'cat').items()}
        with icma.open(self.archive, device='reference') as bundle:
            self.assertEqual({n: a.tobytes() for n, a in bundle.load('cat').items()}, expected)
        code = ('import icma, sys; b = icma.open(sys.argv[1], device="cuda"); a = b.load("cat"); sys.stdout.buffer.write(b"".join(a[n].tobytes() for n in sorted(a)))')
        done = subprocess.run([sys.executable, '-B', '-c', code, self.archive], capture_output=True, env={**os.environ, 'ICMA_MODULE': os.environ['ICMA_EMULATED']})
        self.assertEqual((done.returncode, done.stdout), (0, b''.join(expected[n] for n in sorted(expected))), done.stderr)


class Errors(Case):
    def test_each_is_what_python_takes_it_for(self):
        damaged = bytearray(self.archive.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (self.here / 'damaged.icma').write_bytes(damaged)
        (self.here / 'text').write_text('no archive, but long enough to be looked at ' * 20)
        cases = [
            (icma.NotFoundError, LookupError, lambda: icma.open(self.here / 'missing')),
            (icma.FormatError, Exception, lambda: icma.open(self.here / 'text')),
            (icma.NotFoundError, LookupError, lambda: icma.load_file(self.archive, 'fish')),
            (icma.UsageError, ValueError, lambda: icma.open(self.archive, device='abacus')),
            (icma.UsageError, ValueError, lambda: icma.open('a\0b')),
            (icma.UsageError, ValueError, lambda: icma.load_file(self.archive, 'cat', framework='jax')),
            (icma.LimitError, icma.Error, lambda: icma.open(self.archive, max_output=100).load('cat')),
            (icma.ExistsError, FileExistsError, lambda: icma.pack(self.shop / 'tree', self.archive)),
            (icma.InputOutputError, OSError, lambda: icma.pack(self.shop / 'tree', self.here / 'no' / 'such' / 'b.icma')),
            (icma.UsageError, ValueError, lambda: icma.pack(self.shop / 'tree', self.here / 'x', tier='perfect')),
            (icma.UsageError, ValueError, lambda: icma.pack(self.shop / 'tree', self.here / 'x', max_error='dw')),
            (icma.UsageError, ValueError, lambda: icma.pack(self.shop / 'tree', self.here / 'x', max_error=-1)),
            (icma.UsageError, ValueError, lambda: icma.pack(self.shop / 'tree', self.here / 'x', epochs=-1)),
            (icma.UsageError, ValueError, lambda: icma.pack(self.shop / 'tree', self.here / 'x', preset='fast')),
            (icma.NotFoundError, LookupError, lambda: icma.pack([], self.here / 'x')),
        ]
        for i, (kind, also, what) in enumerate(cases):
            with self.subTest(case=i):
                with self.assertRaises(kind) as raised:
                    what()
                self.assertIsInstance(raised.exception, also)
                self.assertTrue(str(raised.exception))
        with self.assertRaises(icma.CorruptError) as raised:
            with icma.open(self.here / 'damaged.icma') as bundle:
                bundle.verify(deep=True)
        self.assertEqual(raised.exception.file, str(self.here / 'damaged.icma'))
        self.assertFalse((self.here / 'x').exists())

    def test_no_gpu(self):
        code = 'import icma, sys\ntry: icma.open(sys.argv[1], device="cuda")\nexcept icma.DeviceError as e: print("device")'
        done = subprocess.run([sys.executable, '-B', '-c', code, self.archive], capture_output=True, text=True, env={**os.environ, 'ICMA_MODULE': 'missing.so'})
        self.assertEqual(done.stdout, 'device\n', done)


class Changing(Case):
    def test_adding_and_removing(self):
        """As the program does it; other tasks are what they were."""
        more = self.here / 'more'
        harness.write_tree(more, tasks=('fish',), steps=(10, 20), condition=False)
        mine, its = shutil.copy(self.archive, self.here / 'mine.icma'), shutil.copy(self.archive, self.here / 'its.icma')
        before = {n: a.tobytes() for n, a in icma.load_file(mine, 'cat').items()}
        phases = []
        result = icma.add(mine, more, progress=lambda p: phases.append(p.phase))
        subprocess.run([harness.PROGRAM, 'add', '-q', its, more], check=True)
        self.assertEqual(pathlib.Path(mine).read_bytes(), pathlib.Path(its).read_bytes())
        self.assertEqual(([t.name for t in result.pack.tasks], result.old_checkpoints, result.bytes_before), (['fish'], 9, self.archive.stat().st_size))
        self.assertEqual(result.pack.bytes['total'], os.path.getsize(mine))
        self.assertTrue(phases)
        with self.assertRaises(icma.ExistsError):
            icma.add(mine, more)
        self.assertEqual((result.checkpoints_before, result.skipped, [g.task for g in result.groups]), ((0,), 0, [None]))
        longer = self.here / 'longer'
        harness.write_tree(longer, tasks=('fish',), steps=(10, 20, 30), condition=False)
        result = icma.add(mine, longer, output=self.here / 'longer.icma')
        self.assertEqual((result.checkpoints_before, result.skipped, [g.task for g in result.groups]), ((2,), 2, ['fish']))
        with icma.open(self.here / 'longer.icma') as bundle:
            self.assertEqual([c.step for c in bundle.checkpoints('fish')], [10, 20, 30])
        gone = icma.remove(mine, ['fish', 'dog'], output=self.here / 'less.icma')
        self.assertEqual((gone.tasks, gone.checkpoints, gone.tasks_left, gone.bytes_after), (2, 5, 2, (self.here / 'less.icma').stat().st_size))
        with icma.open(self.here / 'less.icma') as bundle:
            self.assertEqual(bundle.tasks, ['bird', 'cat'])
            self.assertEqual({n: a.tobytes() for n, a in bundle.load('cat').items()}, before)
        with icma.open(mine) as bundle:
            self.assertEqual(bundle.tasks, ['bird', 'cat', 'dog', 'fish'])
        with self.assertRaises(icma.NotFoundError):
            icma.remove(mine, 'unicorn')

    def test_an_interruption_at_the_very_end_is_not_lost(self):
        call = icma._pack._Hooks.call

        def late(hooks, *arguments):
            call(hooks, *arguments)
            hooks.raised = KeyboardInterrupt()
        mine = shutil.copy(self.archive, self.here / 'mine.icma')
        harness.write_tree(self.here / 'more', tasks=('fish',), steps=(10, 20), condition=False)
        with unittest.mock.patch.object(icma._pack._Hooks, 'call', late):
            for work in (lambda: icma.pack(self.here / 'more', self.here / 'new.icma', epochs=2), lambda: icma.add(mine, self.here / 'more'), lambda: icma.remove(mine, 'cat')):
                self.assertRaises(KeyboardInterrupt, work)
        with icma.open(mine) as bundle:
            self.assertEqual(bundle.tasks, ['bird', 'dog', 'fish'])

    def test_numbers_that_do_not_fit_are_refused(self):
        for option in ({'seed': 2 ** 64}, {'seed': -1}, {'threads': 2 ** 32}, {'epochs': 2 ** 64}, {'learning_rate': float('nan')}):
            with self.subTest(option), self.assertRaises(icma.UsageError):
                icma.pack(self.shop / 'tree', self.here / 'out.icma', **option)
        for option in ({'max_output': -1}, {'max_work': 2 ** 64}):
            with self.subTest(option), self.assertRaises(icma.UsageError):
                icma.open(self.archive, **option)

    def test_a_callback_stops_it(self):
        mine = shutil.copy(self.archive, self.here / 'mine.icma')
        harness.write_tree(self.here / 'more', tasks=('fish',), steps=(10, 20), condition=False)

        def stop(p):
            raise ZeroDivisionError
        with self.assertRaises(ZeroDivisionError):
            icma.add(mine, self.here / 'more', progress=stop)
        self.assertEqual(pathlib.Path(mine).read_bytes(), self.archive.read_bytes())


class Packing(Case):
    def test_the_same_as_the_program(self):
        subprocess.run([harness.PROGRAM, 'pack', self.shop / 'tree', '-o', self.here / 'a.icma', '--epochs', '20', '--max-error', 'rel=0.01', '-q'], check=True)
        told = []
        result = icma.pack([self.shop / 'tree'], self.here / 'b.icma', epochs=20, max_error='rel=0.01', progress=told.append)
        self.assertEqual((self.here / 'a.icma').read_bytes(), (self.here / 'b.icma').read_bytes())
        self.assertEqual((result.original_files, result.bound, result.tier, [t.name for t in result.tasks]), (9, 'rel', 'bounded', ['bird', 'cat', 'dog']))
        self.assertEqual(result.bytes['total'], (self.here / 'b.icma').stat().st_size)
        self.assertLessEqual(result.bound_value, 0.01)
        self.assertIn(('encode', 'checkpoints'), {(p.phase, p.unit) for p in told})

    def test_what_the_callback_raises_stops_it(self):
        class Enough(Exception):
            pass

        def progress(p):
            if p.phase == 'train':
                raise Enough
        for stop in (progress, lambda p: (_ for _ in ()).throw(KeyboardInterrupt())):
            with self.assertRaises((Enough, KeyboardInterrupt)):
                icma.pack(self.shop / 'tree', self.here / 'b.icma', generator='basis', epochs=500, progress=stop)
        self.assertEqual(os.listdir(self.here), [])

    def test_interruption(self):
        """Ctrl-C, without a callback of the user's: the packing ends with KeyboardInterrupt, and nothing is left."""
        code = ('import icma, sys\nprint("go", flush=True)\ntry: icma.pack(sys.argv[1], sys.argv[2], generator="conv", epochs=100000000)\n'
                'except KeyboardInterrupt: print("interrupted")')
        with subprocess.Popen([sys.executable, '-B', '-c', code, self.shop / 'tree', self.here / 'b.icma'], stdout=subprocess.PIPE, text=True) as process:
            self.addCleanup(process.kill)
            process.stdout.readline()
            with self.assertRaises(subprocess.TimeoutExpired):
                process.wait(1)
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.communicate(timeout=60)[0], 'interrupted\n')
        self.assertEqual(os.listdir(self.here), [])

    def test_python_runs_meanwhile(self):
        """Another thread gets on while the library works."""
        count, done = 0, threading.Event()
        thread = threading.Thread(target=lambda: (icma.pack(self.shop / 'tree', self.here / 'b.icma', generator='basis', epochs=3000), done.set()))
        thread.start()
        while not done.wait(0.001):
            count += 1
        thread.join()
        self.assertGreater(count, 10)

    def test_a_soup_by_scores_from_python(self):
        seen = []

        def score(task, file):
            seen.append(task)
            return float(sum(np.abs(np.frombuffer(data, np.float32)).sum() for _, _, data in parse(bytes(file)).values()))
        result = icma.pack(self.shop / 'tree', self.here / 'b.icma', generator='soup', scorer=score)
        self.assertEqual((set(seen), result.generator), ({'bird', 'cat', 'dog'}, 'soup'))

        def fail(task, file):
            raise ZeroDivisionError
        with self.assertRaises(ZeroDivisionError):
            icma.pack(self.shop / 'tree', self.here / 'c.icma', generator='soup', scorer=fail)
        with self.assertRaisesRegex(icma.UsageError, 'not finite'):
            icma.pack(self.shop / 'tree', self.here / 'c.icma', generator='soup', scorer=lambda task, file: float('nan'))

    def test_what_is_skipped_is_warned_about(self):
        tree = shutil.copytree(self.shop / 'tree', self.here / 'tree')
        (tree / 'cat' / 'pytorch_model.bin').write_bytes(b'\x80\x02}q\x00.' * 50)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            result = icma.pack(tree, self.here / 'b.icma', epochs=20)
        self.assertEqual(list(result.skipped), [str(tree / 'cat' / 'pytorch_model.bin')])
        self.assertIn('pytorch_model.bin', str(caught[0].message))


if __name__ == '__main__':
    unittest.main()
