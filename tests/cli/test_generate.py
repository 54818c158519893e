#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""icma generate: adapters for conditions that were not packed, computed once more by the second reader; what their files and messages say; what is refused."""
import json
import pathlib
import struct
import sys

import numpy

from harness import CONFIG, QUICK, Case, files_below, floats, header_of, main, safetensors, write_adapter, lora

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / 'python'))
import icma_reader  # noqa: E402

MODEL = 'adapter_model.safetensors'
GENERATORS = {'basis': ['--generator', 'basis'], 'soup': ['--generator', 'soup'],
              'conv': ['--generator', 'conv', '--layers', '4', '--channels', '8,16,16,8', '--latent-dim', '4', '--epochs', '6', '--batch', '4'],
              'diffusion': ['--generator', 'diffusion', '--layers', '4', '--channels', '8,16,16,8', '--latent-dim', '4', '--epochs', '6', '--batch', '4']}


def split(image):
    head = header_of(image)
    return json.loads(head[8:]), image[len(head):]


def npy(values):
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({len(values)},), }}".ljust(117) + '\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(head)) + head.encode() + floats(values)


class Generate(Case):
    def setUp(self):
        super().setUp()
        self.archive = self.bundle()

    def vector(self, values, name='new.safetensors', dtype='F32', shape=None):
        data = {'F32': floats(values), 'F64': struct.pack(f'<{len(values)}d', *values)}[dtype]
        (self.here / name).write_bytes(safetensors({'task_vector': (dtype, shape or (len(values),), data)}))
        return name

    def made(self, *arguments):
        return self.run_icma(0, 'generate', self.archive, *arguments, '-o', '-', '-q').out

    def test_the_second_reader_makes_the_same(self):
        vector = [0.3, -1.2, 0.4, 0, 2, 0.7, 0.1, -0.6]
        self.vector(vector)
        for name, options in GENERATORS.items():
            self.archive = self.here / f'{name}.icma'
            self.run_icma(0, 'pack', self.tree, '-o', self.archive, '--tier', 'latent', '-T', '1', *options)
            with icma_reader.open(self.archive) as reader:
                for seed in (None, 5):
                    drawn = [] if seed is None else ['--seed', seed]
                    for arguments, wanted in ((['--condition', 'new.safetensors'], {'condition': vector}),
                                              (['--mix', 'cat:0.75,bird:0.25'], {'mix': {'cat': 0.75, 'bird': 0.25}}),
                                              (['--mix', 'cat:1.5,bird:-0.5'], {'mix': {'cat': 1.5, 'bird': -0.5}})):
                        other = split(reader.generate('cat', seed=seed, **wanted))[1]
                        self.assertEqual(split(self.made(*arguments, *drawn, '--like', 'cat'))[1], other, (name, arguments, seed))

    def test_a_packed_condition_is_its_sample(self):
        for task in ('bird', 'dog'):
            sample = self.run_icma(0, 'unpack', self.archive, '--task', task, '--sample', '--seed', '9', '-o', '-').out
            vector = self.tree / task / 'task_vector.safetensors'
            for arguments in (['--condition', vector], ['--mix', task], ['--mix', f'{task}:1']):
                header, data = split(self.made(*arguments, '--seed', '9'))
                self.assertEqual(data, split(sample)[1])
                self.assertEqual(header.pop('__metadata__')['format'], 'pt')
                self.assertEqual(header, {k: v for k, v in split(sample)[0].items() if k != '__metadata__'})
            told = self.run_icma(0, 'generate', self.archive, '--condition', vector, '-n')
            self.assertIn(f'the condition is that of "{task}"', told.words)
            self.assertNotIn('warning', told.words)

    def test_folder_and_metadata(self):
        self.vector([1, 0.2, 0.2, 0.4, 0.5, 0.6, 0.7, 0.9])
        result = self.run_icma(0, 'generate', '--condition', 'new.safetensors', '-C', 'out')
        self.assertEqual(files_below(self.here / 'out'), ['adapter_config.json', MODEL])
        self.assertEqual(json.loads((self.here / 'out/adapter_config.json').read_text()), CONFIG)
        for part in ('never packed', 'nearest', '"bird"', 'cosine 0.9', 'evaluate', 'generated an adapter', 'like bird'):
            self.assertIn(part, result.words)
        says = split((self.here / 'out' / MODEL).read_bytes())[0]['__metadata__']
        self.assertEqual(says['icma_generated'], 'true')
        self.assertEqual(says['icma_from'], 'new.safetensors')
        self.assertEqual(says['icma_seed'], 'none: the mean')
        self.assertEqual(says['icma_like'], 'bird')
        self.assertRegex(says['icma_nearest'], r'^bird, cosine 0\.9\d+, distance 0\.\d+$')
        self.assertRegex(says['icma_condition_xxh3'], r'^[0-9a-f]{16}$')
        self.assertRegex(says['icma_bundle'], r'^small\.icma [0-9a-f]{16}$')
        self.fails(8, 'generate', '--condition', 'new.safetensors', '-C', 'out', saying='-f replaces it')
        self.run_icma(0, 'generate', '--mix', 'cat,dog', '-C', 'out', '-f')
        self.assertEqual(split((self.here / 'out' / MODEL).read_bytes())[0]['__metadata__']['icma_from'], 'cat:0.5,dog:0.5')
        # What was generated can be packed like any adapter, and generated from once more.
        self.run_icma(0, 'pack', 'out', '-o', 'again.icma', *QUICK, '--generator', 'basis', '--tier', 'latent')
        header = split(self.run_icma(0, 'generate', 'again.icma', '--mix', 'out', '-o', '-', '-q').out)[0]
        self.assertRegex(header['__metadata__']['icma_bundle'], r'^again\.icma ')

    def test_json(self):
        self.vector([1, 0.2, 0.2, 0.4, 0.5, 0.6, 0.7, 0.9])
        told = self.run_icma(0, 'generate', '--condition', 'new.safetensors', '-C', 'out', '--json', '--seed', '3').json
        stored = numpy.array([1] + [0.1 * i for i in range(1, 8)])
        new = numpy.array([1, 0.2, 0.2, 0.4, 0.5, 0.6, 0.7, 0.9])
        self.assertEqual(told['nearest']['task'], 'bird')
        self.assertAlmostEqual(told['nearest']['cosine'], new @ stored / numpy.linalg.norm(new) / numpy.linalg.norm(stored), 2)
        self.assertAlmostEqual(told['nearest']['distance'], numpy.linalg.norm(new - stored) / numpy.linalg.norm(stored), delta=0.01)
        self.assertEqual((told['seed'], told['like'], told['group'], told['dry_run']), (3, 'bird', 0, False))
        self.assertEqual(told['from'], {'condition': 'new.safetensors', 'text': None, 'mix': None})
        self.assertEqual(told['adapter'], {'path': f'out/{MODEL}', 'bytes': (self.here / 'out' / MODEL).stat().st_size, 'side_files': 1, 'state': 'written'})
        told = self.run_icma(0, 'generate', '--mix', 'cat:2,dog:-1', '-n', '--json')
        self.assertEqual(told.json['from'], {'condition': None, 'text': None, 'mix': [{'task': 'cat', 'weight': 2}, {'task': 'dog', 'weight': -1}]})
        self.assertEqual((told.json['seed'], told.json['adapter']['path'], told.json['adapter']['state']), (None, None, 'planned'))
        self.assertIn('{"warning":', told.words)

    def test_the_generator_sees_the_span_of_what_was_packed(self):
        stored = numpy.array([[1.0 if i == n else 0.1 * i for i in range(8)] for n in range(3)])
        outside = numpy.linalg.svd(stored)[2][3:]  # at right angles to all three
        self.vector(list(outside[0]))
        told = self.run_icma(0, 'generate', '--condition', 'new.safetensors', '-n', '--json').json
        self.assertLess(told['seen'], 0.03)
        self.assertIn('the generator sees', self.run_icma(0, 'generate', '--condition', 'new.safetensors', '-n').words)
        self.vector(list(stored.sum(0)), 'sum.safetensors')
        self.assertGreater(self.run_icma(0, 'generate', '--condition', 'sum.safetensors', '-n', '--json').json['seen'], 0.97)

    def test_weights(self):
        whole = self.made('--mix', 'cat:0.5', '--mix', 'dog:0.5')
        self.assertEqual(split(self.made('--mix', 'cat,dog'))[1], split(whole)[1])
        beyond = self.run_icma(0, 'generate', '--mix', 'cat:1,dog:1', '-n')
        self.assertIn('add up to 2', beyond.words)
        self.assertNotIn('add up', self.run_icma(0, 'generate', '--mix', 'cat:0.33,dog:0.33,bird:0.33', '-n').words)

    def test_hard_names(self):
        for number, task in enumerate(('a,b', 'a', 'b:0.5')):
            write_adapter(self.here / 'hard' / task / 'checkpoint-1', lora(task, 1))
            (self.here / 'hard' / task / 'task_vector.npy').write_bytes(npy([float(number == i) for i in range(3)]))
        self.run_icma(0, 'pack', 'hard', '-o', 'hard.icma', '--generator', 'basis', *QUICK)
        def mix(*items):
            more = [word for item in items for word in ('--mix', item)]
            return {p['task']: p['weight'] for p in self.run_icma(0, 'generate', 'hard.icma', *more, '-n', '--json').json['from']['mix']}
        self.assertEqual(mix('a,b'), {'a,b': 1})
        self.assertEqual(mix('a,b:0.25', 'a:0.75'), {'a,b': 0.25, 'a': 0.75})
        self.assertEqual(mix('b:0.5'), {'b:0.5': 1})
        self.assertEqual(mix('a:0.5,b:0.5:0.5'), {'a': 0.5, 'b:0.5': 0.5})

    def test_added_tasks(self):
        """A task with an offset has no place among the conditions: it lends its shape, and nothing more. One with a generator of its own is mixed with nothing else."""
        write_adapter(self.here / 'more' / 'fish' / 'checkpoint-7', lora('fish', 7))
        vector = self.vector([0.3, 2, 0.1, 0, 0, 1, 0, 0.4], 'more/fish/task_vector.safetensors')
        for choice in ('old', 'new'):
            self.run_icma(0, 'add', self.archive, 'more', '-o', f'{choice}.icma', '-q', '--generator', choice)
        self.fails(6, 'generate', 'old.icma', '--mix', 'fish', '-n', saying=('fish', 'icma add'))
        self.fails(6, 'generate', 'old.icma', '--mix', 'cat:0.5,fish:0.5', '-n', saying=('fish', 'icma add'))
        self.fails(6, 'generate', 'new.icma', '--mix', 'cat:0.5,fish:0.5', '-n', saying=('fish', 'no generator in common'))
        told = self.run_icma(0, 'generate', 'old.icma', '--condition', vector, '-n', '--json').json
        self.assertIn(told['nearest']['task'], ('bird', 'cat', 'dog'))
        self.assertGreater(told['nearest']['distance'], 0.1)
        told = self.run_icma(0, 'generate', 'old.icma', '--mix', 'cat,dog', '--like', 'fish', '-C', 'out', '--json').json
        self.assertEqual(told['like'], 'fish')
        alone = self.run_icma(0, 'generate', self.archive, '--mix', 'cat,dog', '-o', '-', '-q').out
        self.assertEqual(split((self.here / 'out' / MODEL).read_bytes())[1], split(alone)[1])

    def test_hostile_conditions(self):
        def refused(code, saying, name='new.safetensors'):
            self.fails(code, 'generate', self.archive, '--condition', name, '-C', 'out', saying=saying)
            self.assertFalse((self.here / 'out').exists())
        self.vector([1] * 7)
        refused(6, ('7 numbers', '8'))
        self.vector([0] * 8)
        refused(6, 'zeros')
        for bad in (float('nan'), float('inf')):
            self.vector([1] * 7 + [bad])
            refused(6, 'not finite')
        self.vector([3e38] + [1] * 7)
        refused(6, 'scale')
        self.vector([1] * 8, dtype='F64')
        refused(6, '1-D tensor of F32')
        self.vector([1] * 8, shape=(2, 4))
        refused(6, '1-D tensor')
        (self.here / 'new.safetensors').write_bytes(safetensors({'a': ('F32', (1,), floats([1])), 'b': ('F32', (1,), floats([1]))}))
        refused(6, '1-D tensor')
        (self.here / 'new.safetensors').write_bytes(b'\x80\x02pickle')
        refused(6, 'pickle')
        (self.here / 'new.safetensors').write_bytes(b'\x08' + bytes(7) + b'{"a":{}}')
        refused(4, 'new.safetensors')
        (self.here / 'cut.npy').write_bytes(npy([1] * 8)[:-3])
        refused(4, 'cut.npy', 'cut.npy')
        refused(7, 'none.npy', 'none.npy')
        refused(4, 'tree', self.tree)

    def test_what_is_refused(self):
        self.fails(2, 'generate', saying='from what?')
        self.fails(2, 'generate', '--condition', 'x', '--mix', 'cat', '-C', 'o', saying='choose one')
        self.fails(2, 'generate', '--text', 'cat', '-C', 'o', saying='--encoder')
        self.fails(2, 'generate', '--mix', 'cat', '--encoder', 'e', '-C', 'o', saying='belongs to --text')
        self.fails(2, 'generate', '--mix', 'cat', '--projection', '-C', 'o', saying='belongs to --text')
        self.fails(2, 'generate', '--text', 'cat', '--encoder', '', '-C', 'o', saying='empty')
        self.fails(7, 'generate', '--text', 'cat', '--encoder', 'none', '-C', 'o', saying='none')
        self.fails(2, 'generate', '--mix', 'cat', saying='where to?')
        self.fails(2, 'generate', '--mix', 'cat', '-C', 'o', '-o', 'f', saying='leave out -C')
        self.fails(2, 'generate', '--mix', 'cat', '-o', '-', '--json', saying='choose one')
        self.fails(2, 'generate', '--mix', 'cat', '-C', '', saying='empty')
        self.fails(2, 'generate', '--mix', 'cat:0.5,dog', '-n', saying='or none')
        self.fails(2, 'generate', '--mix', 'cat,cat', '-n', saying='twice')
        for empty in ('', ',', 'cat,', ',cat'):
            self.fails(2, 'generate', '--mix', empty, '-n', saying='empty name')
        self.fails(7, 'generate', '--mix', 'cta:0.5,dog:0.5', '-n', saying=('cta', 'cat'))
        self.fails(7, 'generate', '--mix', 'cat:0.5x', '-n', saying='cat:0.5x')
        self.fails(7, 'generate', '--mix', 'cat', '--like', 'fish', '-n', saying='fish')
        self.run_icma(0, 'pack', self.tree, '-o', 'none.icma', '--generator', 'none', *QUICK)
        self.fails(6, 'generate', 'none.icma', '--mix', 'cat', '-n', saying='no generator')
        self.fails(10, 'generate', self.archive, '--mix', 'cat', '-o', 'x', '--max-output', '100', saying='--max-output')
        self.assertEqual(files_below(self.here), ['none.icma', 'small.icma'])

    def test_scalar_gives_the_same_bits(self):
        self.assertEqual(self.made('--mix', 'cat,dog', '--seed', '2'), self.made('--mix', 'cat,dog', '--seed', '2', '--scalar'))


if __name__ == '__main__':
    main()
