#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""icma unpack: the right files, the original headers, nothing overwritten unasked."""
import json
import stat

from harness import Case, files_below, header_of, main

MODEL, CONFIG = 'adapter_model.safetensors', 'adapter_config.json'


class Unpack(Case):
    def setUp(self):
        super().setUp()
        self.archive = self.bundle()

    def test_last_of_every_task(self):
        result = self.run_icma(0, 'unpack', self.archive, '-C', 'out')
        self.assertEqual(result.out, b'')
        self.assertIn('unpacked 3 adapters', result.words)
        self.assertEqual(files_below(self.here / 'out'),
                         sorted(f'{t}/{f}' for t in ('bird', 'cat', 'dog') for f in (MODEL, CONFIG)))
        self.assertEqual((self.here / 'out/cat' / CONFIG).read_bytes(),
                         (self.tree / 'cat/checkpoint-100' / CONFIG).read_bytes())
        mode = stat.S_IMODE((self.here / 'out/cat' / MODEL).stat().st_mode)
        self.assertEqual(mode & 0o600, 0o600)
        self.assertFalse(mode & 0o111)

    def test_headers_and_sizes_are_the_originals(self):
        self.run_icma(0, 'unpack', '--checkpoint', 'all', '-C', 'out', '-q')
        originals = sorted(self.tree.rglob(MODEL))
        self.assertEqual(len(originals), 12)
        for path in originals:
            image, original = (self.here / 'out' / path.relative_to(self.tree)).read_bytes(), path.read_bytes()
            self.assertEqual(header_of(image), header_of(original))
            self.assertEqual(len(image), len(original))

    def test_one_checkpoint(self):
        self.run_icma(0, 'unpack', self.archive, '--task', 'cat', '--checkpoint', '20', '-C', 'out')
        self.assertEqual(files_below(self.here / 'out'), [f'cat/{CONFIG}', f'cat/{MODEL}'])
        self.run_icma(0, 'unpack', self.archive, '--task=cat', '--checkpoint=all', '-C', 'all')
        self.assertEqual((self.here / 'out/cat' / MODEL).read_bytes(),
                         (self.here / 'all/cat/checkpoint-20' / MODEL).read_bytes())

    def test_to_a_file_and_to_stdout(self):
        self.run_icma(0, 'unpack', self.archive, '--task', 'cat', '-C', 'out')
        whole = (self.here / 'out/cat' / MODEL).read_bytes()
        piped = self.run_icma(0, 'unpack', self.archive, '--task', 'cat', '-o', '-')
        self.assertEqual(piped.out, whole)
        self.assertEqual(piped.err, b'')
        self.run_icma(0, 'unpack', self.archive, '--task', 'cat', '-o', 'one.safetensors')
        self.assertEqual((self.here / 'one.safetensors').read_bytes(), whole)
        self.fails(2, 'unpack', self.archive, '-o', '-', saying='3')
        self.fails(2, 'unpack', self.archive, '--task', 'cat', '--checkpoint', 'all', '-o', '-')

    def test_scalar_gives_the_same_bits(self):
        for more in ([], ['--sample', '--seed', '3']):
            plain = self.run_icma(0, 'unpack', self.archive, '--task', 'dog', '-o', '-', *more)
            scalar = self.run_icma(0, 'unpack', self.archive, '--task', 'dog', '-o', '-', '--scalar', *more)
            self.assertEqual(plain.out, scalar.out)

    def test_sample(self):
        def draw(*more):
            return self.run_icma(0, 'unpack', self.archive, '--task', 'cat', '--sample', '-o', '-', *more).out
        self.assertEqual(draw('--seed', '1'), draw('--seed', '1'))
        self.assertEqual(draw(), draw('--seed', '0'))
        original = (self.tree / 'cat/checkpoint-100' / MODEL).read_bytes()
        self.assertEqual(header_of(draw('--seed', '1')), header_of(original))
        self.run_icma(0, 'unpack', self.archive, '--sample', '-C', 'drawn')
        self.assertEqual(len(files_below(self.here / 'drawn')), 6)

    def test_unknown_names(self):
        self.fails(7, 'unpack', self.archive, '--task', 'cta', saying=('cta', 'cat'))
        self.fails(7, 'unpack', self.archive, '--task', 'cat', '--checkpoint', '21', saying=('21', '10-100'))
        self.assertEqual(files_below(self.here), ['small.icma'])

    def test_existing_files(self):
        (self.here / 'out/dog').mkdir(parents=True)
        (self.here / 'out/dog' / MODEL).write_bytes(b'precious')
        before = files_below(self.here)
        self.fails(8, 'unpack', self.archive, '-C', 'out', saying=f'out/dog/{MODEL}')
        self.assertEqual(files_below(self.here), before)  # not even bird and cat, which come first
        self.run_icma(0, 'unpack', self.archive, '-C', 'out', '-k')
        self.assertEqual((self.here / 'out/dog' / MODEL).read_bytes(), b'precious')
        self.assertTrue((self.here / 'out/cat' / MODEL).exists())
        self.run_icma(0, 'unpack', self.archive, '-C', 'out', '-f')
        self.assertNotEqual((self.here / 'out/dog' / MODEL).read_bytes(), b'precious')
        self.fails(8, 'unpack', self.archive, '--task', 'cat', '-o', 'small.icma')

    def test_existing_side_file(self):
        (self.here / 'out/cat').mkdir(parents=True)
        (self.here / 'out/cat' / CONFIG).write_text('mine')
        self.fails(8, 'unpack', self.archive, '-C', 'out', saying=CONFIG)
        self.assertEqual(files_below(self.here / 'out'), [f'cat/{CONFIG}'])

    def test_links_are_not_followed(self):
        (self.here / 'elsewhere').mkdir()
        (self.here / 'out').mkdir()
        (self.here / 'out/cat').symlink_to(self.here / 'elsewhere')
        self.fails(1, 'unpack', self.archive, '--task', 'cat', '-C', 'out')
        self.assertNothingLeft(self.here / 'elsewhere')

    def test_unwritable(self):
        (self.here / 'file').write_text('')
        self.fails(1, 'unpack', self.archive, '-C', 'file/out')
        self.fails(1, 'unpack', self.archive, '--task', 'cat', '-o', 'nowhere/x')

    def test_dry_run_and_json(self):
        planned = self.run_icma(0, 'unpack', self.archive, '-n', '-C', 'out')
        self.assertIn(f'out/cat/{MODEL}', planned.text)
        self.assertEqual(files_below(self.here), ['small.icma'])
        document = self.run_icma(0, 'unpack', self.archive, '--json', '-C', 'out', '--checkpoint', 'all').json
        adapters = {(a['task'], a['step']): a for a in document['adapters']}
        self.assertEqual(sorted(adapters), [(t, s) for t in ('bird', 'cat', 'dog') for s in (10, 20, 30, 100)])
        self.assertEqual(len(document['adapters']), 12)
        self.assertEqual(adapters['bird', 10], {
            'task': 'bird', 'step': 10, 'component': None, 'path': f'out/bird/checkpoint-10/{MODEL}', 'side_files': 1, 'state': 'written',
            'bytes': (self.tree / 'bird/checkpoint-10' / MODEL).stat().st_size})

    def test_limits(self):
        self.fails(10, 'unpack', self.archive, '-C', 'out', '--max-output', '100')
        self.fails(10, 'unpack', self.archive, '-C', 'out', '--max-work', '10')
        self.assertEqual(files_below(self.here), ['small.icma'])
        self.run_icma(0, 'unpack', self.archive, '-C', 'out', '--max-output', '1M', '--max-work', '100000000')

    def test_equal_tasks_once(self):
        document = json.loads(self.run_icma(0, 'unpack', '--task', 'dog', '--task', 'cat', '--task', 'dog', '--json').out)
        self.assertEqual([a['task'] for a in document['adapters']], ['cat', 'dog'])


if __name__ == '__main__':
    main()
