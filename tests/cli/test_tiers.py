#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Bounded and lossless: what each promises of the files, measured here with numpy and SHA-256, not by icma."""
import hashlib
import json
import pathlib
import random
import shutil
import struct

import numpy

from harness import QUICK, Case, files_below, floats, icma, lora, main, safetensors, write_adapter

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / 'examples' / 'loras'
MODEL = 'adapter_model.safetensors'
WIDTHS = {'F64': 8, 'F32': 4, 'F16': 2, 'BF16': 2, 'I64': 8, 'I8': 1, 'BOOL': 1, 'F8_E4M3': 1, 'F8_E5M2': 1}


def read(path):
    """{name: (dtype, shape, bytes)}, read as the format says and not by icma."""
    image = pathlib.Path(path).read_bytes()
    length = struct.unpack('<Q', image[:8])[0]
    header, data = json.loads(image[8:8 + length]), image[8 + length:]
    return {name: (t['dtype'], t['shape'], data[slice(*t['data_offsets'])]) for name, t in header.items() if name != '__metadata__'}


def numbers(tensor):
    dtype, shape, data = tensor
    if dtype == 'BF16':
        values = (numpy.frombuffer(data, '<u2').astype('<u4') << 16).view('<f4')
    else:
        values = numpy.frombuffer(data, {'F32': '<f4', 'F16': '<f2', 'F64': '<f8'}[dtype])
    return values.astype(numpy.float64).reshape(shape)


def relative(x, y):
    return numpy.linalg.norm(y - x) / numpy.linalg.norm(x) if numpy.any(x) else float(numpy.any(y))


def worst_errors(original, other):
    """The largest dW, relative and absolute errors of one file."""
    a, b = read(original), read(other)
    assert {n: t[:2] for n, t in a.items()} == {n: t[:2] for n, t in b.items()}
    x, y = ({n: numbers(t) for n, t in tensors.items() if t[0] in ('F32', 'F16', 'BF16')} for tensors in (a, b))
    downs = [n for n in x if '.lora_A.' in n]
    assert downs
    ups = {n: n.replace('.lora_A.', '.lora_B.') for n in downs}
    dw = [relative(x[ups[n]] @ x[n], y[ups[n]] @ y[n]) for n in downs]
    return {'dw': max(dw), 'rel': max(relative(x[n], y[n]) for n in x), 'abs': max(numpy.abs(y[n] - x[n]).max() for n in x)}


def sums(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(pathlib.Path(folder).rglob('*')) if p.is_file()}


class Tier(Case):
    def pack(self, tree, *more, name='x.icma', code=0):
        return self.run_icma(code, 'pack', tree, '-o', name, '-f', '--epochs', '20', '--json', *more)

    def unpack(self, *more, name='x.icma', to='out'):
        shutil.rmtree(self.here / to, ignore_errors=True)
        self.run_icma(0, 'unpack', name, '-C', to, '--checkpoint', 'all', *more)
        return self.here / to

    def listed(self, name='x.icma'):
        return self.run_icma(0, 'list', name, '--json').json['tasks']


class Bounded(Tier):
    def worst(self, tree, out):
        errors = [worst_errors(path, out / path.relative_to(tree)) for path in sorted(pathlib.Path(tree).rglob(MODEL))]
        return {kind: max(e[kind] for e in errors) for kind in errors[0]}

    def check(self, tree, kind, bound, *more, floor=0.0):
        """Packs to a bound and holds the files against it, whatever icma itself says. The error is at least floor * bound."""
        document = self.pack(tree, *more).json
        self.assertEqual((document['tier'], document['bound']['kind']), ('bounded', kind))
        told = document['bound']['value']
        if bound:
            self.assertAlmostEqual(told / bound, 1, delta=1e-6)
            if '--max-error' in more:
                self.assertLessEqual(told, bound)
        for task in self.listed():
            self.assertEqual(task['tier'], f'bounded {kind} {told:.4g}')
            for checkpoint in task['checkpoints']:
                self.assertEqual((checkpoint['tier'], checkpoint['bound']), ('bounded', {'kind': kind, 'value': told}))
        error = self.worst(tree, self.unpack())[kind]
        self.assertLessEqual(error, told)
        self.assertGreaterEqual(error, floor * told)
        verified = self.run_icma(0, 'verify', 'x.icma', '--deep', '--against', tree, '--json').json
        self.assertTrue(verified['intact'])
        self.assertEqual((verified['against']['total']['adapters'], verified['against']['worse_than_recorded'], verified['against']['unmatched']),
                         (len(sorted(pathlib.Path(tree).rglob(MODEL))), 0, 0))
        if kind == 'dw':
            self.assertAlmostEqual(verified['against']['total']['dw_error']['max'], error, delta=1e-6 * error + 1e-9)
        return document

    def test_default(self):
        self.check(EXAMPLES, 'dw', 0.1)
        self.assertRegex(self.run_icma(0, 'list', 'x.icma').text, r'(?m)^python .* bounded dw 0\.1 ')

    def test_default_is_a_tenth(self):
        self.pack(self.tree, name='a.icma')
        self.pack(self.tree, '--tier', 'bounded', '--max-error', 'dw=0.1', name='b.icma')
        self.pack(self.tree, '--max-error', '0.1', name='c.icma')
        whole = [(self.here / f'{name}.icma').read_bytes() for name in 'abc']
        self.assertEqual(whole[1], whole[2])
        self.assertEqual(whole[0], whole[1])

    def test_kinds(self):
        for kind, bound in (('dw', 0.02), ('rel', 0.05), ('rel', 0.5), ('abs', 0.001), ('abs', 2e-5)):
            with self.subTest(kind=kind, bound=bound):
                self.check(EXAMPLES, kind, bound, '--max-error', f'{kind}={bound}', floor=0.3)

    def test_without_a_generator(self):
        for kind, bound in (('dw', 0.1), ('rel', 0.05), ('abs', 0.001)):
            with self.subTest(kind=kind):
                document = self.check(EXAMPLES, kind, bound, '--generator', 'none', '--max-error', f'{kind}={bound}', floor=0.9)
                self.assertEqual((document['generator']['kind'], document['generator']['components']), ('none', 0))
        section_kinds = {s['kind'] for s in self.run_icma(0, 'info', 'x.icma', '-v', '--json').json['section_list']}
        self.assertIn('residual', section_kinds)
        self.assertNotIn('head', section_kinds)

    def test_small_and_large_bounds(self):
        for bound in ('1e-6', '1e-30', '0.9', '3'):
            self.check(self.tree, 'dw', float(bound), '--max-error', f'dw={bound}')

    def test_other_originals_are_noticed(self):
        self.pack(self.tree)
        other = shutil.copytree(self.tree, self.here / 'other')
        write_adapter(other / 'cat/checkpoint-30', lora('cat', 30, seed=1))
        self.fails(5, 'verify', 'x.icma', '--against', other, saying='cat/checkpoint-30')

    def test_what_cannot_be_bounded_is_kept(self):
        """NaN and infinities, integers, a factor of zeros: bit for bit, and the rest still holds the bound."""
        tree = self.here / 'odd'
        for step in (10, 20, 30):
            extra = {'x.lora_A.weight': ('F32', (2, 4), floats([float('nan'), float('inf'), -float('inf'), -0.0, 1e-42, step, 1, 2])),
                     'x.lora_B.weight': ('F32', (4, 2), floats([0.0] * 8)),
                     'counts': ('I64', (2,), struct.pack('<2q', step, -1)), 'empty': ('F32', (0, 3), b''), 'one': ('F32', (), floats([0.5]))}
            write_adapter(tree / 'cat' / f'checkpoint-{step}', lora('cat', step, extra=extra))
        self.pack(tree, '--max-error', 'rel=0.1')
        out = self.unpack()
        for path in sorted(tree.rglob(MODEL)):
            a, b = read(path), read(out / path.relative_to(tree))
            self.assertEqual(list(a), list(b))
            for name in ('x.lora_A.weight', 'x.lora_B.weight', 'counts', 'empty'):
                self.assertEqual(a[name], b[name], name)
            for name in (n for n in a if n.startswith('base_model') or n == 'one'):
                self.assertLessEqual(relative(numbers(a[name]), numbers(b[name])), 0.1, name)
        self.run_icma(0, 'verify', 'x.icma', '--deep', '--against', tree)

    def test_half_precision(self):
        """The bound holds after the cast."""
        tree = self.here / 'half'
        for dtype in ('F16', 'BF16'):
            for step in (10, 20):
                draw = numpy.random.default_rng(step).normal(0, 0.1, (2, 8, 40))
                data = draw.astype('<f2').tobytes() if dtype == 'F16' else (draw.astype('<f4').view('<u4') >> 16).astype('<u2').tobytes()
                half = len(data) // 2
                write_adapter(tree / dtype / f'checkpoint-{step}', safetensors({
                    'm.lora_A.weight': (dtype, (8, 40), data[:half]), 'm.lora_B.weight': (dtype, (40, 8), data[half:])}))
        for kind, bound in (('dw', 0.05), ('rel', 0.02), ('abs', 0.002)):
            for generator in ('none', 'auto'):
                self.check(tree, kind, bound, '--max-error', f'{kind}={bound}', '--generator', generator, floor=0.25)

    def test_target_bits(self):
        for bits, more in ((1, ()), (3, ('--generator', 'none')), (6, ())):
            with self.subTest(bits=bits):
                document = self.check(EXAMPLES, 'dw', None, '--target-bits', bits, *more, floor=0.3)
                parameters = document['originals']['parameters']
                stored = 8 * (self.here / 'x.icma').stat().st_size / parameters
                self.assertAlmostEqual(document['bits_per_parameter'], stored)
                self.assertLessEqual(stored, bits)
                self.assertGreaterEqual(stored, 0.9 * bits)

    def test_target_bits_out_of_reach(self):
        result = self.fails(5, 'pack', self.tree, '-o', 'x.icma', '--target-bits', '0.5', saying=('0.5 bits', ';'))
        self.assertEqual(result.out, b'')
        self.assertNothingLeft(self.here)
        (self.here / 'x.icma').write_bytes(b'precious')
        self.fails(5, 'pack', self.tree, '-o', 'x.icma', '-f', '--target-bits', '0.5')
        self.assertEqual((self.here / 'x.icma').read_bytes(), b'precious')
        self.assertNothingLeft(self.here, ['x.icma'])
        error = json.loads(self.run_icma(5, 'pack', self.tree, '-o', 'y.icma', '--target-bits', '0.5', '--json').err)['error']
        self.assertEqual((error['status'], error['exit']), ('ICMA_E_BOUND', 5))


def odd_image(dtypes, seed, header):
    """A file whose header is `header` over the fields of each tensor, and whose bits are all sorts of bits."""
    draw, fields, data = random.Random(seed), {}, b''
    for name, (dtype, shape) in dtypes.items():
        count = 1
        for extent in shape:
            count *= extent
        raw = draw.randbytes(count * WIDTHS[dtype])  # NaN with payloads, denormals, infinities and -0 among them
        if dtype == 'BOOL':
            raw = bytes(b & 1 for b in raw)
        fields[name] = json.dumps({'shape': list(shape), 'dtype': dtype, 'data_offsets': [len(data), len(data) + len(raw)]})
        data += raw
    text = header(fields).encode()
    return struct.pack('<Q', len(text)) + text + data


def odd_tree(root):
    """Headers that no library writes, dtypes of every width, numbers that are none."""
    mixed = {'b.lora_B.weight': ('F32', (30, 2)), 'b.lora_A.weight': ('F32', (2, 30)), 'h.lora_A.weight': ('F16', (2, 25)),
             'h.lora_B.weight': ('F16', (25, 2)), 'f.lora_A.weight': ('BF16', (3, 17)), 'f.lora_B.weight': ('BF16', (17, 3)),
             'n': ('I64', (5,)), 'e4': ('F8_E4M3', (7,)), 'e5': ('F8_E5M2', (1, 3)), 'truth': ('BOOL', (3, 3)), 'point': ('F32', ()),
             'halfpoint': ('BF16', ()), 'nothing': ('F32', (0, 4)), 'none': ('I8', (2, 0, 2))}

    def plain(fields):
        return '{' + ','.join(f'{json.dumps(n)}:{f}' for n, f in fields.items()) + '}'

    def spaced(fields):  # the metadata last, names out of order, blanks within, not padded to eight bytes
        rest = ' ,\n '.join(f'{json.dumps(n)} :\t{f}' for n, f in sorted(fields.items()))
        return '{ ' + rest + ', "__metadata__" : {"b":"2","a":"gr\\u00fc\\u00dfe ü"} }' + ' ' * 3

    def padded(fields):
        return plain(fields) + ' ' * 64
    for number, step in enumerate((10, 20, 30, 40, 50, 60, 70)):  # noise: nothing predicts anything
        write_adapter(root / 'noise' / f'checkpoint-{step}', odd_image(mixed, step, (plain, spaced, padded)[number % 3]))
    for step in (1, 2, 5, 9):  # a walk, with a few numbers that are none
        odd = [float('nan'), float('inf'), -float('inf'), -0.0, 1e-45, -1e-40, 3.4e38, 0.0]
        extra = {'odd.lora_A.weight': ('F32', (2, 4), floats(odd)), 'odd.lora_B.weight': ('F32', (4, 2), floats(odd[::-1]))}
        write_adapter(root / 'walk' / f'checkpoint-{step}', lora('walk', step, rank=3, width=70, extra=extra))
    write_adapter(root / 'walk', lora('walk', 10, rank=3, width=70, extra=extra))  # without a number: the last
    for step in (1, 2, 3):
        write_adapter(root / 'same' / f'checkpoint-{step}', lora('same', 1))
    write_adapter(root / 'single', odd_image(mixed, 'single', spaced))
    zeros = {n: ('F32', s, bytes(4 * s[0] * s[1])) for n, s in (('z.lora_A.weight', (2, 9)), ('z.lora_B.weight', (9, 2)))}
    write_adapter(root / 'zeros', safetensors(zeros), config=False)
    (root / 'walk/checkpoint-2/adapter_config.json').write_bytes(b'{ "r":3,\r\n\t"lora_alpha" : 4}\n\n')


class Lossless(Tier):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.odd = cls.shop / 'odd'
        odd_tree(cls.odd)

    def files(self, tree):
        return {name: digest for name, digest in sums(tree).items() if 'task_vector' not in name}

    def check(self, tree, *more):
        document = self.pack(tree, '--tier', 'lossless', *more).json
        self.assertEqual((document['tier'], document['bound']), ('lossless', None))
        for task in self.listed():
            self.assertEqual(task['tier'], 'lossless')
            self.assertEqual({(c['tier'], c['bound'], c['relative_error']) for c in task['checkpoints']}, {('lossless', None, 0)})
        # a task's only checkpoint lies in the task's folder; of several each has its own
        out = self.unpack()
        self.assertEqual(self.files(tree), sums(out))
        verified = self.run_icma(0, 'verify', 'x.icma', '--deep', '--against', tree, '--json').json
        self.assertEqual((verified['against']['total']['identical_adapters'], verified['against']['unmatched']),
                         (len(sorted(pathlib.Path(tree).rglob(MODEL))), 0))
        return document

    def test_examples(self):
        document = self.check(EXAMPLES)
        self.assertLess(document['bytes']['total'], 0.7 * document['originals']['bytes'])

    def test_small(self):
        self.check(self.tree)

    def test_odd_files(self):
        self.check(self.odd)

    def test_chains(self):
        sizes = []
        for restart in (1, 2, 3, 50):
            sizes.append(self.check(EXAMPLES, '--restart', restart)['bytes']['residuals'])
            self.check(self.odd, '--restart', restart)
            for task, step in (('noise', 40), ('walk', 2), ('same', 2)):
                whole = (self.odd / task / f'checkpoint-{step}' / MODEL).read_bytes()
                got = self.run_icma(0, 'unpack', 'x.icma', '--task', task, '--checkpoint', step, '-o', '-')
                self.assertEqual(got.out, whole)
            self.run_icma(0, 'unpack', 'x.icma', '--task', 'noise', '--checkpoint', 10, '-C', 'one')
            self.assertEqual(sums(self.here / 'one'), {f'noise/{f}': s for f, s in sums(self.odd / 'noise/checkpoint-10').items()})
            shutil.rmtree(self.here / 'one')
            self.run_icma(0, 'unpack', 'x.icma', '-C', 'last')
            self.assertEqual((self.here / 'last/walk' / MODEL).read_bytes(), (self.odd / 'walk' / MODEL).read_bytes())
            shutil.rmtree(self.here / 'last')
        self.assertGreater(sizes[0], sizes[1], 'a chain of one predicts nothing')
        self.assertGreater(sizes[1], sizes[-1])

    def test_options(self):
        self.check(self.odd, '--scalar')
        self.assertEqual(self.check(self.tree, '--generator', 'basis')['generator']['kind'], 'basis')
        self.assertEqual(self.pack(self.odd, '--tier', 'lossless', '--keep', 'last').json['tier'], 'lossless')
        self.run_icma(0, 'unpack', 'x.icma', '--task', 'noise', '-C', 'out')
        self.assertEqual((self.here / 'out/noise' / MODEL).read_bytes(), (self.odd / 'noise/checkpoint-70' / MODEL).read_bytes())
        scalar = self.run_icma(0, 'unpack', 'x.icma', '--task', 'noise', '--scalar', '-o', '-').out
        self.assertEqual(scalar, (self.odd / 'noise/checkpoint-70' / MODEL).read_bytes())

    def test_one_file(self):
        plain = self.here / 'plain-step7.safetensors'
        plain.write_bytes((self.odd / 'noise/checkpoint-20' / MODEL).read_bytes())
        self.pack(plain, '--tier', 'lossless')
        self.assertEqual(self.run_icma(0, 'unpack', 'x.icma', '-o', '-').out, plain.read_bytes())

    def test_other_originals_are_noticed(self):
        self.pack(self.odd, '--tier', 'lossless')
        other = shutil.copytree(self.odd, self.here / 'other')
        path = other / 'walk/checkpoint-5' / MODEL
        image = bytearray(path.read_bytes())
        image[-30] ^= 1
        path.write_bytes(image)
        self.fails(5, 'verify', 'x.icma', '--against', other, saying='walk/checkpoint-5')


class Both(Tier):
    def test_same_bytes_at_any_thread_count(self):
        for options in (['--max-error', 'dw=0.02'], ['--max-error', 'abs=0.001', '--generator', 'none'], ['--tier', 'lossless'],
                        ['--tier', 'lossless', '--restart', '2'], ['--target-bits', '1']):
            digests = set()
            for threads in (1, 2, 3):
                self.pack(EXAMPLES, *options, '-T', threads)
                digests.add(hashlib.sha256((self.here / 'x.icma').read_bytes()).hexdigest())
            self.assertEqual(len(digests), 1, options)

    def test_scalar_unpacks_the_same_bits(self):
        for options in ([], ['--generator', 'none'], ['--tier', 'lossless']):
            self.pack(EXAMPLES, *options)
            self.assertEqual(sums(self.unpack()), sums(self.unpack('--scalar', to='scalar')))

    def test_no_generator_no_sample(self):
        for options in (['--generator', 'none'], ['--tier', 'lossless']):
            self.pack(self.tree, *options)
            for more in (['-C', 'out'], ['-o', '-', '--task', 'cat'], ['-o', 'one', '--task', 'cat']):
                result = self.fails(6, 'unpack', 'x.icma', '--sample', *more, saying=('x.icma', 'no generator to sample from'))
                self.assertEqual(result.out, b'')
            self.assertNothingLeft(self.here, ['x.icma'])

    def test_tiers_in_words(self):
        words = self.run_icma(0, 'pack', self.tree, '-o', 'y.icma', '--tier', 'lossless', *QUICK).words
        self.assertRegex(words, r'(?m)^kept +lossless: the files come back bit for bit$')
        self.assertEqual([line.split()[3:5] for line in self.run_icma(0, 'list', 'y.icma').text.splitlines()[1:]][0][0], 'lossless')
        for kind, said in (('rel', 'relative error of every tensor at most 0.3'), ('abs', 'difference of every weight at most 0.3')):
            words = self.run_icma(0, 'pack', self.tree, '-o', 'y.icma', '-f', '--max-error', f'{kind}=0.3', *QUICK).words
            self.assertRegex(words, rf'(?m)^kept +bounded: {said}, measured on the decoded files$')
            self.assertIn(f'bounded {kind} 0.3', self.run_icma(0, 'list', 'y.icma').text)
            self.assertIn(f'bounded {kind} 0.3', self.run_icma(0, 'list', 'y.icma', '-v').text)
            self.assertIn(f'bounded {kind} 0.3', self.run_icma(0, 'report', 'y.icma').text + self.run_icma(0, 'report', 'y.icma', '--json').text)

    def test_usage(self):
        for arguments in (['--target-bits', '4', '--max-error', 'dw=0.1'], ['--target-bits', '4', '--tier', 'lossless'],
                          ['--target-bits', '4', '--tier', 'latent'], ['--target-bits', '0'], ['--target-bits', '-1'], ['--target-bits', 'x'],
                          ['--target-bits', 'nan'], ['--target-bits', '1e9'], ['--restart', '3'], ['--restart', '3', '--tier', 'latent'],
                          ['--restart', '0', '--tier', 'lossless'], ['--restart', '-1', '--tier', 'lossless'],
                          ['--restart', 'x', '--tier', 'lossless'], ['--max-error', 'rel=0.1', '--tier', 'latent'],
                          ['--max-error', 'abs=0.1', '--tier', 'generate'], ['--max-error', 'rel=0.1', '--tier', 'lossless'],
                          ['--max-error', 'dw=0.1', '--tier', 'lossless'],
                          ['--tier', 'latent', '--generator', 'none'], ['--tier', 'generate', '--generator', 'none'],
                          *(['--max-error', f'{kind}{value}'] for kind in ('dw=', 'rel=', 'abs=', '')
                            for value in ('0', '-0.1', '', 'x', 'nan', 'inf', '0.1x', '0x1', ' 0.1', '1e-60', '1e60', '0.1=0.1')),
                          ['--max-error', 'max=0.1'], ['--max-error', 'DW=0.1'], ['--max-error', 'dw'], ['--max-error', 'dw=0.1,rel=0.1'],
                          ['--tier', 'Bounded'], ['--tier', ''], ['--tier', 'verbatim'], ['--generator', 'None'], ['--generator', '']):
            with self.subTest(arguments=arguments):
                output = f'{len(files_below(self.here))}.icma'
                self.fails(2, 'pack', self.tree, '-o', output, *arguments)
                self.assertFalse((self.here / output).exists())
        self.assertNothingLeft(self.here)


if __name__ == '__main__':
    main()
