#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What -v tells of decisions, and that it agrees with what was done."""
import json
import re
import struct

from harness import Case, QUICK, floats, lora, main, write_adapter, write_tree


def details(result):
    """[(topic, message)] of a run with --json -v."""
    told = [json.loads(line) for line in result.words.splitlines()]
    return [(d['detail']['topic'], d['detail']['message']) for d in told if 'detail' in d]


def of(topic, told):
    return [message for name, message in told if name == topic]


class Pack(Case):
    def pack(self, *arguments, tree=None):
        result = self.run_icma(0, 'pack', tree or self.tree, '-o', 'p.icma', '-f', '--json', '-v', *QUICK, *arguments)
        return result.json, details(result)

    def test_rows_and_bytes(self):
        done, told = self.pack()
        rows, predicted = re.search(r'^(\d+) rows: (\d+) bytes', of('basis', told)[0]).groups()
        self.assertEqual(int(rows), done['generator']['components'])
        self.assertIn(' 0: ', of('basis', told)[0] if int(rows) else ' 0: ')  # none is always a candidate
        self.assertGreater(int(predicted), 0)
        self.assertEqual(len(of('group', told)), 1)
        self.assertIn('12 checkpoints of 3 tasks', of('group', told)[0])

    def test_tasks_and_conditions(self):
        told = self.pack()[1]
        self.assertEqual([re.match('"(.*)"', t)[1] for t in of('task', told)], ['bird', 'cat', 'dog'])
        self.assertIn('4 checkpoints (10-100)', of('task', told)[0])
        self.assertIn('task_vector.safetensors', of('task', told)[0])

    def test_device(self):
        self.assertRegex(of('device', self.pack()[1])[0], r'^cpu: about .* a GPU is woken for')
        self.assertEqual(of('device', self.pack('--device', 'cpu')[1]), ['cpu, as asked for'])

    def test_generator_that_was_asked_for(self):
        self.assertIn('as asked for', of('basis', self.pack('--generator', 'none')[1])[0])
        done, told = self.pack('--tier', 'latent', '--components', '2')
        self.assertIn('2 a role as asked for', of('basis', told)[0])
        self.assertEqual(int(of('basis', told)[0].split()[0]), done['generator']['components'])
        self.assertIn('predicted from later checkpoints', of('basis', self.pack('--tier', 'lossless')[1])[0])
        self.assertIn('wanted: 50 %', of('basis', self.pack('--tier', 'latent', '--explain', '0.5')[1])[0])

    def test_bounds_tried_for_a_size(self):
        done, told = self.pack('--target-bits', '20')
        tries = of('target', told)
        bounds = [float(re.search(r'dw=([^ ]+) ', t)[1]) for t in tries if t.endswith('fits')]
        self.assertTrue(any(abs(bound / done['bound']['value'] - 1) < 1e-3 for bound in bounds), tries)

    def test_kept_bit_for_bit(self):
        extra = {'base_model.model.steps': ('I64', (3,), struct.pack('<3q', 1, 2, 3)),
                 'base_model.model.score.modules_to_save.weight': ('F32', (4, 8), floats(range(32))),
                 'base_model.model.layers.0.alpha': ('F32', (), floats([4])),
                 'base_model.model.layers.0.lora_constant.weight': ('F32', (4, 8), floats([0.5] * 32)),
                 'base_model.model.layers.0.lora_zero.weight': ('F32', (4, 8), floats([0] * 32))}
        for step in (1, 2):
            write_adapter(self.here / f't/cat/checkpoint-{step}', lora('cat', step, extra=extra))
        why = of('verbatim', self.pack(tree=self.here / 't')[1])
        for reason in ('dtype that is not modelled', 'fewer than 16 numbers', 'modules_to_save', 'zero, or not finite', 'one number throughout'):
            self.assertEqual(sum(f'1 of 9 tensors (' in w and reason in w for w in why), 1, (reason, why))

    def test_one_checkpoint_that_is_not_finite(self):
        write_tree(self.here / 't', tasks=('cat',), steps=(1, 2, 3))
        image = bytearray((self.here / 't/cat/checkpoint-2/adapter_model.safetensors').read_bytes())
        image[-4:] = struct.pack('<f', float('nan'))
        (self.here / 't/cat/checkpoint-2/adapter_model.safetensors').write_bytes(image)
        self.assertEqual(of('verbatim', self.pack(tree=self.here / 't')[1]), ['1 tensor of single checkpoints kept bit for bit: zero or not finite there',
                                                                               '1 tensor of single checkpoints kept bit for bit: no residual holds the bound'])  # the other factor

    def test_groups(self):
        write_tree(self.here / 't', tasks=('cat',), steps=(1, 2))
        write_adapter(self.here / 't/cat/checkpoint-3', lora('cat', 3, rank=4))
        groups = of('group', self.pack(tree=self.here / 't')[1])
        self.assertEqual([g.split(':')[0] for g in groups], ['1 of 2', '2 of 2', '2 groups in all'])

    def test_only_where_asked_for(self):
        for arguments in ([], ['-v', '-q']):
            result = self.run_icma(0, 'pack', self.tree, '-o', 'p.icma', '-f', '--json', *QUICK, *arguments)
            self.assertEqual(result.words, '')
        words = self.run_icma(0, 'pack', self.tree, '-o', 'p.icma', '-f', '-v', *QUICK).words
        self.assertRegex(words, r'(?m)^icma: basis: \d+ rows')


class Read(Case):
    def test_unpack_and_verify(self):
        bundle = self.bundle()
        told = details(self.run_icma(0, 'unpack', bundle, '-C', 'out', '--json', '-v'))
        self.assertIn('12 checkpoints of 3 tasks, in 1 signature group', of('archive', told)[0])
        self.assertRegex(of('device', told)[0], '^cpu: about')
        told = details(self.run_icma(0, 'verify', bundle, '--json', '-v', '--device', 'cpu'))
        self.assertEqual(of('device', told), ['cpu, as asked for'])


if __name__ == '__main__':
    main()
