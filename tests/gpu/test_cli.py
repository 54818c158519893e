#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The command line with --device cuda, on the emulation that ICMA_MODULE names: the same archives decode to the same bytes, memory that runs out costs a line, and without a GPU or the CUDA part there is a clear error."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'cli'))
from harness import Case, QUICK, files_below, icma, main  # noqa: E402

SMALL_NETWORK = ('--generator', 'conv', '--layers', '4', '--channels', '8,16,16,8', '--latent-dim', '4', '--epochs', '6', '--batch', '4', '-T', '1')
LITTLE = 170 << 20  # bytes: what opening a device takes, and not much more


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


class Cuda(Case):
    def decode(self, bundle, device, **more):
        folder = self.here / f'{bundle.stem}-{device}'
        result = self.run_icma(0, 'unpack', bundle, '--checkpoint', 'all', '--device', device, '-C', folder, **more)
        return contents(folder), result

    def same_on_both(self, bundle):
        cpu, _ = self.decode(bundle, 'cpu')
        gpu, _ = self.decode(bundle, 'cuda')
        self.assertTrue(cpu)
        self.assertEqual(cpu, gpu)
        self.run_icma(0, 'verify', bundle, '--deep', '--device', 'cuda')
        self.run_icma(0, 'verify', bundle, '--deep', '--device', 'reference')

    def test_what_it_packs_decodes_everywhere(self):
        for name, options in (('basis', QUICK), ('bounded', (*QUICK, '--tier', 'bounded', '--max-error', 'dw=0.05')), ('lossless', (*QUICK, '--tier', 'lossless')), ('conv', SMALL_NETWORK)):
            bundle = self.here / f'{name}.icma'
            self.run_icma(0, 'pack', self.tree, '-o', bundle, '--device', 'cuda', *options)
            self.same_on_both(bundle)

    def test_precisions_train(self):
        for precision in ('f32', 'tf32', 'bf16'):
            bundle = self.here / f'{precision}.icma'
            self.run_icma(0, 'pack', self.tree, '-o', bundle, '--device', 'cuda', '--precision', precision, *SMALL_NETWORK)
            record = self.run_icma(0, 'info', bundle, '--json').json['groups'][0]['record']
            self.assertEqual((record['options']['device'], record['options']['precision']), ('cuda:0', precision))
            self.assertLess(record['losses'][-1]['reconstruction'], record['losses'][0]['reconstruction'])

    def test_samples_are_the_same(self):
        bundle = self.here / 'conv.icma'
        self.run_icma(0, 'pack', self.tree, '-o', bundle, *SMALL_NETWORK)
        for words in (['unpack', bundle, '--task', 'cat', '--sample'], ['generate', bundle, '--mix', 'cat:0.7,dog:0.3', '-q']):
            one, other = (self.run_icma(0, *words, '--seed', '7', '-o', '-', '--device', device).out for device in ('cpu', 'cuda'))
            self.assertEqual(one, other)

    def test_memory_that_runs_out_costs_a_line(self):
        bundle = self.here / 'little.icma'
        little = {'ICMA_EMULATION_MEMORY': str(LITTLE)}
        result = self.run_icma(0, 'pack', self.tree, '-o', bundle, '--device', 'cuda', *SMALL_NETWORK, '--batch', '12', env=little | {'ICMA_EMULATION_FAIL': 'cudaMallocAsync:9'})
        self.assertIn('note: ', result.words)
        self.same_on_both(bundle)

    def test_failures_are_told(self):
        for call in ('launch:1', 'cudaMemcpyAsync:1'):
            self.fails(9, 'verify', self.bundle(), '--deep', '--device', 'cuda', env={'ICMA_EMULATION_FAIL': call}, saying='use --device cpu')

    def test_a_network_is_not_trained_on_after_a_failure(self):
        for k in range(1, 40, 2):
            result = icma('pack', self.tree, '-o', f'{k}.icma', '--device', 'cuda', *SMALL_NETWORK, cwd=self.here, env={'ICMA_EMULATION_FAIL': f'launch:{k}'})
            self.assertEqual(result.code, 9, f'launch {k}: {result!r}')
            self.assertNothingLeft(self.here)

    def test_where_there_is_none(self):
        for env, saying in (({'ICMA_MODULE': '/nonexistent.so'}, 'cannot be loaded'), ({'ICMA_EMULATION_DEVICES': '0'}, 'no GPU')):
            for arguments in (('pack', self.tree, '-o', 'x.icma'), ('unpack', self.bundle(), '-C', 'out')):
                self.fails(9, *arguments, '--device', 'cuda', env=env, saying=[saying, 'use --device cpu'])
            self.run_icma(0, 'verify', self.bundle(), '--deep', '--device', 'auto', env=env)
        self.fails(9, 'unpack', self.bundle(), '-C', 'out', '--device', 'cuda:3', saying='there is no GPU 3')
        self.fails(2, 'unpack', self.bundle(), '-C', 'out', '--device', 'cuda:x', saying='unknown device')


if __name__ == '__main__':
    main()
