#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""icma pack: what it finds, what it says, what it refuses."""
import json
import os
import shutil
import struct

from harness import LATENT, QUICK, Case, files_below, floats, icma, lora, main, safetensors, write_adapter, write_tree

BYTES = {'total', 'generator', 'conditions', 'latents', 'residuals', 'verbatim', 'index', 'metadata'}


class Pack(Case):
    def pack(self, code, tree, *more):
        return self.run_icma(code, 'pack', tree, '-o', self.here / 'x.icma', *QUICK, *more)

    def test_document(self):
        document = self.packed.json
        self.assertEqual(set(document['bytes']), BYTES)
        self.assertEqual(document['bytes']['total'], sum(v for k, v in document['bytes'].items() if k != 'total'))
        self.assertEqual(document['bytes']['total'], (self.shop / 'small.icma').stat().st_size)
        self.assertEqual(document['originals'], {
            'files': 12, 'parameters': 12 * 96,
            'bytes': sum(p.stat().st_size for p in self.tree.rglob('adapter_model.safetensors'))})
        self.assertAlmostEqual(document['ratio'], document['originals']['bytes'] / document['bytes']['total'])
        self.assertAlmostEqual(document['bits_per_parameter'], 8 * document['bytes']['total'] / (12 * 96))
        self.assertEqual((document['tier'], document['bound']), ('latent', None))
        self.assertEqual([t['task'] for t in document['tasks']], ['bird', 'cat', 'dog'])
        for task in document['tasks']:
            self.assertEqual(set(task), {'task', 'checkpoints', 'dw_error', 'relative_error', 'cosine', 'condition',
                                         'active_latents'})
            self.assertEqual(task['checkpoints'], 4)
            self.assertEqual(task['condition'], 'given')
            self.assertGreaterEqual(task['dw_error']['max'], task['dw_error']['mean'])
        self.assertEqual(set(document['generator']), {'kind', 'components', 'active_latents', 'within_task_explained',
                                                      'break_even'})
        self.assertEqual(set(document['zstd19_sample']), {'raw', 'size'})
        self.assertEqual(set(document['seconds']), {'read', 'gram', 'train', 'encode', 'check', 'write'})
        self.assertEqual(self.packed.err, b'')

    def test_words(self):
        result = self.pack(0, self.tree)
        self.assertEqual(result.out, b'')
        for part in ('packed 12 checkpoints of 3 tasks into', 'cat', 'total', 'bits a parameter', 'generator'):
            self.assertIn(part, result.words)
        self.assertRegex(result.words, r'(?m)^kept +bounded: dW error of every module at most 0\.1,')
        self.assertEqual(self.pack(0, self.tree, '-f', '-q').err, b'')

    def test_same_bytes_every_time(self):
        for name, threads in (('a.icma', '1'), ('b.icma', '2')):
            self.run_icma(0, 'pack', self.tree, '-o', name, *LATENT, '--epochs', '20', '-T', threads)
        self.assertEqual((self.here / 'a.icma').read_bytes(), (self.here / 'b.icma').read_bytes())

    def test_dry_run(self):
        result = self.run_icma(0, 'pack', self.tree, '--dry-run', '-v')
        for part in ('bird', '10-100', '8 numbers', 'checkpoint-30', '12 checkpoints of 3 tasks', 'Nothing was written'):
            self.assertIn(part, result.text)
        document = self.run_icma(0, 'pack', self.tree, '-n', '--json').json
        self.assertEqual(document['checkpoints'], 12)
        self.assertEqual([c['step'] for c in document['tasks'][0]['checkpoints']], [10, 20, 30, 100])
        self.assertEqual(document['tasks'][0]['condition_size'], 8)
        self.assertEqual([(g['tasks'], g['pairs'], g['parameters'], g['verbatim_tensors']) for g in document['groups']],
                         [(3, 2, 96, 0)])
        self.assertNothingLeft(self.here)

    def test_shapes_of_trees(self):
        """One task, one checkpoint, no vector; two signatures; unequal numbers of checkpoints; integer tensors."""
        write_adapter(self.here / 't/solo', lora('solo', None))
        for step in (5, 10, 20):
            write_adapter(self.here / f't/wide/checkpoint-{step}', lora('wide', step, width=20))
        counts = {'counts': ('I64', (3,), struct.pack('<3q', 1, 2, 3))}
        write_adapter(self.here / 't/odd/checkpoint-1', lora('odd', 1, extra=counts))
        document = self.pack(0, self.here / 't', *LATENT, '--json').json
        self.assertEqual({t['task']: (t['checkpoints'], t['condition']) for t in document['tasks']},
                         {'odd': (1, 'learned'), 'solo': (1, 'learned'), 'wide': (3, 'learned')})
        self.assertGreater(document['bytes']['verbatim'], 0)
        self.run_icma(0, 'verify', self.here / 'x.icma', '--deep', '--against', self.here / 't')
        self.run_icma(0, 'unpack', self.here / 'x.icma', '-C', self.here / 'out', '--checkpoint', 'all')
        self.assertEqual([p for p in files_below(self.here / 'out') if p.endswith('.safetensors')],
                         ['odd/checkpoint-1/adapter_model.safetensors', 'solo/adapter_model.safetensors'] +
                         [f'wide/checkpoint-{step}/adapter_model.safetensors' for step in (10, 20, 5)])

    def test_single_adapter(self):
        write_adapter(self.here / 't/solo', lora('solo', None))
        for tier in ('latent', 'generate', 'bounded', 'lossless'):
            self.pack(0, self.here / 't', '--tier', tier, '-f')
            self.run_icma(0, 'verify', self.here / 'x.icma', '--deep', '--against', self.here / 't')

    def test_options_that_choose(self):
        self.assertEqual({t['checkpoints'] for t in self.pack(0, self.tree, '--keep', 'last', '--json').json['tasks']}, {1})
        document = self.pack(0, self.tree, '-f', '--checkpoints', 'last:2', '--json').json
        self.assertEqual({t['checkpoints'] for t in document['tasks']}, {2})
        for more in (['--preset', 'paper', '--generator', 'basis', '--kld-weight', '0.01'], ['--components', '2'], ['--explain', '0.5'],
                     ['--max-error', 'dw=0.2'], ['--max-error', '0.2'], ['--scalar'], ['--generator', 'basis'],
                     ['--latent-dim', '2', '--batch', '2', '--lr', '1e-3', '--seed', '18446744073709551615']):
            for tier in ('latent', 'generate', 'bounded'):
                document = self.pack(0, self.tree, '-f', '--tier', tier, *more, '--json').json
                self.assertEqual(document['tier'], tier)
                self.run_icma(0, 'verify', self.here / 'x.icma', '--deep')


class Refusals(Case):
    """The documented exit code, and nothing is left behind."""

    def refuse(self, code, tree, *saying, output='out/x.icma'):
        (self.here / 'out').mkdir(exist_ok=True)
        result = self.fails(code, 'pack', tree, '-o', self.here / output, *QUICK, saying=saying)
        self.assertNothingLeft(self.here / 'out')
        return result

    def broken(self, image):
        shutil.rmtree(self.here / 't', ignore_errors=True)
        write_adapter(self.here / 't/good', lora('good', 1))
        write_adapter(self.here / 't/bad', image)
        return self.here / 't'

    def test_nothing_there(self):
        (self.here / 'empty').mkdir()
        self.refuse(7, self.here / 'empty', 'empty')
        self.refuse(7, self.here / 'missing', 'missing')

    def test_damaged_safetensors(self):
        whole = lora('bad', 1)
        for size in (0, 4, 8, 20, len(whole) - 1):
            self.refuse(4, self.broken(whole[:size]), 'bad')
        self.refuse(4, self.broken(whole + b'x'), 'bad')
        self.refuse(4, self.broken(whole.replace(b'"dtype"', b'"dtypo"', 1)), 'bad')

    def test_lying_safetensors(self):
        tensors = {'x.lora_A.weight': ('F32', (2, 3), floats([0] * 6)), 'x.lora_B.weight': ('F32', (3, 2), floats([0] * 6))}
        whole = safetensors(tensors)
        for lie in (whole.replace(b'[2, 3]', b'[2, 4]'), whole.replace(b'[0, 24]', b'[0, 23]'),
                    whole.replace(b'[24, 48]', b'[20, 44]'), struct.pack('<Q', 1 << 60) + whole[8:],
                    whole.replace(b'[2, 3]', b'[-2, 3]'.replace(b' ', b''))):
            self.refuse({struct.pack('<Q', 1 << 60): 10}.get(lie[:8], 4), self.broken(lie), 'bad')
        self.refuse(6, self.broken(whole.replace(b'"F32"', b'"F31"')), 'F31')

    def test_existing_output(self):
        self.bundle('x.icma')
        before = (self.here / 'x.icma').read_bytes()
        self.fails(8, 'pack', self.tree, '-o', 'x.icma', *QUICK, saying=('x.icma', '-f'))
        self.assertEqual((self.here / 'x.icma').read_bytes(), before)
        self.run_icma(0, 'pack', self.tree, '-o', 'x.icma', '-f', *QUICK)
        self.assertEqual(files_below(self.here), ['x.icma'])

    def test_unwritable_output(self):
        self.refuse(1, self.tree, 'nowhere', output='nowhere/x.icma')
        (self.here / 'file').write_text('a file, not a folder')
        self.refuse(1, self.tree, output='file/x.icma')
        if os.getuid() != 0:  # root writes anywhere
            (self.here / 'locked').mkdir(mode=0o500)
            self.refuse(1, self.tree, output='locked/x.icma')

    def test_equal_names(self):
        for folder in ('a/cat', 'b/cat'):
            write_adapter(self.here / 't' / folder, lora('cat', 1))
        self.refuse(2, self.here / 't', 'a/cat', 'b/cat')

    def test_bad_condition(self):
        write_adapter(self.here / 't/cat', lora('cat', 1))
        (self.here / 't/cat/task_vector.safetensors').write_bytes(safetensors({'v': ('F32', (2, 2), floats([1] * 4))}))
        result = icma('pack', self.here / 't', '-o', self.here / 'x.icma', *QUICK)
        self.assertIn(result.code, (4, 6), result)
        self.assertIn('task_vector.safetensors', result.words)
        self.assertFalse((self.here / 'x.icma').exists())


class Skips(Case):
    def test_each_is_named(self):
        write_tree(self.here / 't', tasks=('cat',), steps=(1, 2))
        (self.here / 't/cat/checkpoint-1/adapter_model.bin').write_bytes(b'\x80\x02}q\x00.')
        (self.here / 't/cat/checkpoint-2/optimizer.pt').write_bytes(b'\x80\x02}q\x00.')  # a trainer's: ignored
        (self.here / 't/notes.safetensors').write_bytes(safetensors({'w': ('F32', (2,), floats([1, 2]))}))
        result = self.run_icma(3, 'pack', self.here / 't', '-o', 'x.icma', *QUICK)
        warnings = [line for line in result.words.splitlines() if line.startswith('icma: warning: ')]
        self.assertEqual(len(warnings), 2, result)
        self.assertIn('adapter_model.bin', result.words)
        self.assertIn('notes.safetensors', result.words)
        self.assertNotIn('optimizer', result.words)
        self.run_icma(0, 'verify', 'x.icma', '--deep')
        as_json = self.run_icma(3, 'pack', self.here / 't', '-o', 'x.icma', '-f', '--json', *QUICK)
        self.assertEqual(len([json.loads(line)['warning'] for line in as_json.words.splitlines()]), 2)
        self.assertIn('bytes', as_json.json)

    def test_only_skips(self):
        (self.here / 't').mkdir()
        (self.here / 't/notes.safetensors').write_bytes(safetensors({'w': ('F32', (2,), floats([1, 2]))}))
        self.fails(7, 'pack', self.here / 't', '-o', 'x.icma', saying='notes.safetensors')
        self.assertEqual(files_below(self.here), ['t/notes.safetensors'])


if __name__ == '__main__':
    main()
