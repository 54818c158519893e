#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""list, info, verify, diff and report: what they say, and that spec/json.md documents every key."""
import json
import pathlib
import re
import shutil

from harness import Case, files_below, lora, main, write_adapter

SPEC = pathlib.Path(__file__).resolve().parents[2] / 'spec' / 'json.md'
DOCUMENTED = set(re.findall(r'`([a-z0-9_]+)`', SPEC.read_text()))


class Read(Case):
    def setUp(self):
        super().setUp()
        self.archive = self.bundle()

    def document(self, code, *arguments):
        """The JSON document, all of whose keys must be documented."""
        document = self.run_icma(code, *arguments, '--json').json
        self.check_keys(document)
        return document

    def check_keys(self, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                self.assertIn(key, DOCUMENTED)
                if key != 'record':  # as the archive has it: the format's specification
                    self.check_keys(inner)
        elif isinstance(value, list):
            for inner in value:
                self.check_keys(inner)

    def unpacked(self):
        self.run_icma(0, 'unpack', self.archive, '-C', 'out', '--checkpoint', 'all', '-q')
        return self.here / 'out'

    def test_pack_documents(self):
        self.check_keys(self.packed.json)
        self.document(0, 'pack', self.tree, '-n')
        self.document(0, 'unpack', self.archive, '-n')

    def test_documents_of_other_tiers(self):
        for options in (['--max-error', 'rel=0.2'], ['--tier', 'lossless'], ['--tier', 'generate']):
            self.document(0, 'pack', self.tree, '-o', 'x.icma', '-f', *options)
            for arguments in (['list'], ['info', '-v'], ['verify', '--deep', '--against', self.tree], ['report', '--against', self.tree], ['unpack', '-n']):
                self.document(0, arguments[0], 'x.icma', *arguments[1:])

    def test_list(self):
        lines = self.run_icma(0, 'list', self.archive).text.splitlines()
        self.assertEqual(len(lines), 4)
        self.assertRegex(lines[2], r'^cat +4 +10-100 +latent ')
        self.assertEqual(len({len(line) for line in lines[1:]}), 1, 'columns line up')
        self.assertEqual(len(self.run_icma(0, 'ls', self.archive, '-v').text.splitlines()), 13)
        self.assertEqual(len(self.run_icma(0, 'list', self.archive, '--task', 'cat').text.splitlines()), 5)
        self.fails(7, 'list', self.archive, '--task', 'cow')
        task = self.document(0, 'list', self.archive)['tasks'][1]
        self.assertEqual((task['task'], task['tier']), ('cat', 'latent'))
        self.assertEqual([(c['tier'], c['bound']) for c in task['checkpoints']], [('latent', None)] * 4)
        self.assertEqual([c['step'] for c in task['checkpoints']], [10, 20, 30, 100])
        self.assertEqual(task['condition'], {'origin': 'task_vector.safetensors', 'size': 8})

    def test_info(self):
        text = self.run_icma(0, 'info', self.archive).text
        for part in ('icma format 0', '12 checkpoints of 3 tasks', 'bits a parameter', 'generator', 'total'):
            self.assertIn(part, text)
        brief, full = self.document(0, 'info', self.archive), self.document(0, 'info', self.archive, '-v')
        self.assertNotIn('section_list', brief)
        self.assertEqual(len(full['section_list']), brief['sections'])
        self.assertEqual(brief['bytes'], self.packed.json['bytes'])
        self.assertEqual(brief['originals'], self.packed.json['originals'])
        self.assertIsInstance(brief['groups'][0]['record'], dict)
        self.assertIn('section', self.run_icma(0, 'info', self.archive, '-v').text)

    def test_verify(self):
        self.assertIn('intact', self.run_icma(0, 'verify', self.archive).text)
        self.assertIn('all 12 checkpoints decode', self.run_icma(0, 'test', self.archive, '--deep').text)
        self.assertEqual(self.run_icma(0, 'verify', self.archive, '-q').out, b'')
        document = self.document(0, 'verify', self.archive, '--deep', '--against', self.tree)
        self.assertTrue(document['intact'])
        self.assertEqual(document['against']['total']['adapters'], 12)
        self.assertEqual(document['against']['worse_than_recorded'], 0)

    def test_verify_notices_other_originals(self):
        other = shutil.copytree(self.tree, self.here / 'other')
        write_adapter(other / 'cat/checkpoint-30', lora('cat', 30, seed=1))
        self.fails(5, 'verify', self.archive, '--against', other, saying='cat/checkpoint-30')
        shutil.rmtree(other / 'cat/checkpoint-30')
        self.fails(3, 'verify', self.archive, '--against', other, saying=('cat', 'checkpoint-30'))
        shutil.rmtree(other / 'cat')
        write_adapter(other / 'cow/checkpoint-30', lora('cow', 30))
        self.fails(3, 'verify', self.archive, '--against', other, saying=('cow', 'cat'))

    def test_diff(self):
        out = self.unpacked()
        result = self.run_icma(0, 'diff', self.tree, out)
        self.assertEqual(result.err, b'')
        self.assertIn('cat', result.text)
        document = self.document(0, 'diff', self.tree, out, '--deep')['against']
        self.assertEqual(document['total']['adapters'], 12)
        self.assertEqual(len(document['groups'][0]['modules']), 2)
        self.assertEqual(len(document['groups'][0]['tensors']), 4)
        self.assertIsNotNone(document['total']['dw_maximum'])
        same = self.document(0, 'diff', self.tree, self.tree)['against']['total']
        self.assertEqual((same['identical_adapters'], same['relative_error'], same['snr_db']), (12, 0, None))
        verbose = self.run_icma(0, 'diff', '-v', self.tree / 'cat/checkpoint-30', out / 'cat/checkpoint-30').text
        self.assertIn('base_model.model.layers.0.q_proj', verbose)
        self.assertIn('lora_B.weight', verbose)

    def test_diff_agrees_with_pack(self):
        against = self.document(0, 'diff', self.tree, self.unpacked())['against']
        for measured, packed in zip(against['tasks'], self.packed.json['tasks']):
            for key in ('max', 'mean'):
                self.assertAlmostEqual(measured['dw_error'][key], packed['dw_error'][key], delta=1e-6)
            self.assertAlmostEqual(measured['relative_error'], packed['relative_error'], delta=1e-6)
            self.assertAlmostEqual(measured['cosine'], packed['cosine'], delta=1e-6)
        self.assertAlmostEqual(against['within_task_explained'],
                               self.packed.json['generator']['within_task_explained'], delta=0.02)

    def test_diff_of_strangers(self):
        write_adapter(self.here / 'wide', lora('wide', 1, width=20))
        self.fails(6, 'diff', self.tree / 'cat/checkpoint-10', self.here / 'wide')
        shutil.copytree(self.tree / 'cat', self.here / 'some/cat')
        self.fails(3, 'diff', self.tree, self.here / 'some', saying=('bird', 'dog'))
        shutil.copytree(self.tree / 'cat', self.here / 'renamed/lion')
        self.fails(7, 'diff', self.tree, self.here / 'renamed', saying='matched by name')
        self.fails(7, 'diff', self.tree, self.here / 'nothing')
        model = 'adapter_model.safetensors'
        self.run_icma(0, 'diff', self.tree / 'cat/checkpoint-10' / model, self.tree / 'dog/checkpoint-10' / model)

    def test_last_stands_for_a_step(self):
        self.run_icma(0, 'unpack', self.archive, '-C', 'last', '-q')
        document = self.document(3, 'diff', self.tree, 'last')['against']
        self.assertEqual([t['checkpoints'][0]['step'] for t in document['tasks']], [100, 100, 100])

    def test_report(self):
        text = self.run_icma(0, 'report', self.archive).text
        for part in ('Fidelity report', 'total', 'bits a parameter', 'break-even', 'base_model.model.layers.0.q_proj'):
            self.assertIn(part, text)
        self.assertEqual(self.run_icma(0, 'report', self.archive, '-o', '-').text, text)
        self.run_icma(0, 'report', self.archive, '-o', 'r.txt')
        self.assertEqual((self.here / 'r.txt').read_text(), text)
        self.run_icma(0, 'report', self.archive, '-o', 'r.json', '--against', self.tree, '--zstd', '--deep')
        document = json.loads((self.here / 'r.json').read_text())
        self.check_keys(document)
        self.assertEqual(document['zstd19']['raw'], document['originals']['bytes'])
        self.assertLess(0, document['zstd19']['size'])
        self.assertEqual(len(document['against']['tasks'][0]['checkpoints'][0]['module_errors']), 2)
        self.assertEqual(document['generator']['break_even'], self.packed.json['generator']['break_even'])
        self.assertIsNone(self.document(0, 'report', self.archive)['against'])
        self.assertIn('zstd -19', self.run_icma(0, 'report', self.archive, '--against', self.tree, '--zstd').text)

    def test_report_does_not_overwrite(self):
        (self.here / 'r.txt').write_text('mine')
        self.fails(8, 'report', self.archive, '-o', 'r.txt')
        self.assertEqual((self.here / 'r.txt').read_text(), 'mine')
        self.run_icma(0, 'report', self.archive, '-o', 'r.txt', '-f')
        self.fails(1, 'report', self.archive, '-o', 'nowhere/r.txt')
        self.assertEqual(files_below(self.here), ['r.txt', 'small.icma'])


if __name__ == '__main__':
    main()
