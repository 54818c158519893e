#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""report -o r.html: every section is there, pictures are well-formed, names are a stranger's, numbers are the JSON report's."""
import html.parser
import json
import math
import pathlib
import random
import re
import struct
import sys
import xml.etree.ElementTree as xml

from harness import Case, QUICK, floats, lora, main, safetensors, write_adapter, write_tree

SECTIONS = ['sizes', 'rates', 'modules', 'timeline', 'tasks', 'map', 'training', 'tensors', 'verbatim', 'method']
VOID = {'meta', 'br', 'hr', 'img', 'link', 'input', 'base'}


class Page(html.parser.HTMLParser):
    """Elements by name with their attributes, text by section, tables as lists of rows; asserts that what opens closes."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.sections, self.tables, self.styles = [], [], {}, {}, ''
        self.section = None
        self.feed(text)
        self.close()
        assert not self.open, self.open
        self.pictures = [xml.fromstring(part) for part in re.findall(r'<svg.*?</svg>', text, re.S)]

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID and not self.get_starttag_text().endswith('/>'):
            self.open.append(tag)
        if tag == 'section':
            self.section = dict(attributes)['id']
            self.sections[self.section], self.tables[self.section] = '', []
        if tag == 'table':
            self.tables[self.section].append([])
        if tag == 'tr':
            self.tables[self.section][-1].append([])
        if tag in ('td', 'th'):
            self.tables[self.section][-1][-1].append('')

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag
        if tag == 'section':
            self.section = None

    def handle_data(self, data):
        if 'style' in self.open:
            self.styles += data
        elif self.section:
            self.sections[self.section] += data
            if 'td' in self.open or 'th' in self.open:
                self.tables[self.section][-1][-1][-1] += data

    def row(self, section, first):
        """The row of a section's tables that starts so."""
        return next(row for table in self.tables[section] for row in table if row[0] == first)


def deviation(error):
    """As the program writes errors for people."""
    return '0' if error == 0 else f'{error:.4f}' if 1e-4 <= abs(error) < 1e4 else f'{error:.1e}'


# Scores an adapter by the sum of its weights, 10 without one; fails, sleeps or says nothing for tasks of those names.
JUDGE = '''
import json, os, struct, subprocess, sys
log, task, *adapter = sys.argv[1:]
seen = {'task': task}
if adapter:
    seen['config'] = open(os.path.join(adapter[0], 'adapter_config.json')).read()
    seen['folder'] = adapter[0]
with open(log, 'a') as f:
    print(json.dumps(seen), file=f)
print('words on stderr', file=sys.stderr)
if task == 'cow':
    print('no such <cow>', file=sys.stderr)
    sys.exit(42)
if task == 'sloth':
    child = subprocess.Popen(['sleep', '1000'])
    open(log + '.pids', 'a').write('%d %d ' % (os.getpid(), child.pid))
    child.wait()
if task == 'fish':
    sys.exit(0)
if not adapter:
    sys.exit(print('base', 10.0))
image = open(os.path.join(adapter[0], 'adapter_model.safetensors'), 'rb').read()
start = 8 + struct.unpack('<Q', image[:8])[0]
print(sum(struct.unpack('<%df' % ((len(image) - start) // 4), image[start:])))
'''


class Eval(Case):
    def setUp(self):
        super().setUp()
        (self.here / 'judge.py').write_text(JUDGE)
        self.command = f'{sys.executable} {self.here}/judge.py {self.here}/log'

    def report(self, code, *more, tree=None, bundle=None, **kind):
        bundle = bundle or self.bundle()
        return self.run_icma(code, 'report', bundle, '--against', tree or self.tree, '--eval', self.command + ' {task} {adapter}', *more, **kind)

    def log(self):
        return [json.loads(line) for line in (self.here / 'log').read_text().splitlines()]

    def sum_of(self, path):
        image = path.read_bytes()
        start = 8 + struct.unpack('<Q', image[:8])[0]
        return sum(struct.unpack(f'<{(len(image) - start) // 4}f', image[start:]))

    def test_scores(self):
        facts = self.report(0, '--eval-base', self.command + ' {task}', '--json').json['eval']
        self.run_icma(0, 'unpack', 'small.icma', '-C', 'out', '-q')
        self.assertEqual([(s['task'], s['step'], s['failure']) for s in facts['scores']], [(t, 100, None) for t in ('bird', 'cat', 'dog')])
        for score in facts['scores']:
            original = self.sum_of(self.tree / score['task'] / 'checkpoint-100/adapter_model.safetensors')
            other = self.sum_of(self.here / 'out' / score['task'] / 'adapter_model.safetensors')
            self.assertEqual((score['base'], score['original'], score['reconstructed']), (10, original, other))
            self.assertAlmostEqual(score['gain_kept'], (10 - other) / (10 - original), 12)
        self.assertAlmostEqual(facts['gain_kept'], sum(s['gain_kept'] for s in facts['scores']) / 3, 12)
        self.assertEqual((facts['failed'], facts['base_command']), (0, self.command + ' {task}'))
        log = self.log()
        self.assertEqual([entry['task'] for entry in log], ['bird'] * 3 + ['cat'] * 3 + ['dog'] * 3)
        config = (self.tree / 'cat/checkpoint-100/adapter_config.json').read_text()
        self.assertEqual({entry['config'] for entry in log if 'folder' in entry}, {config})
        self.assertFalse(any(pathlib.Path(entry['folder']).exists() for entry in log if 'folder' in entry))

    def test_text_and_page(self):
        bases = ['--eval-base', '10', '--eval-base', 'cat=20']
        facts = self.report(0, *bases, '--json').json['eval']
        self.assertEqual([s['base'] for s in facts['scores']], [10, 20, 10])
        text = self.report(0, *bases).text
        self.report(0, *bases, '-o', 'r.html')
        page = Page((self.here / 'r.html').read_text())
        for score in facts['scores']:
            self.assertRegex(text, rf'{score["task"]} +checkpoint-100 +{score["base"]} +{score["original"]:.6g} +{score["reconstructed"]:.6g} +\S+ +{score["gain_kept"]:.4f}')
            row = page.row('eval', score['task'])
            self.assertEqual(row[2:5] + row[6:], [f'{score["base"]:.6g}', f'{score["original"]:.6g}', f'{score["reconstructed"]:.6g}', f'{score["gain_kept"]:.4f}'])
        self.assertIn(f'{facts["gain_kept"]:.4f}', text)
        self.assertIn(f'{facts["gain_kept"]:.4f}', page.sections['eval'])

    def test_without_a_base_and_every_checkpoint(self):
        facts = self.report(0, '--eval-checkpoint', 'all', '--json').json['eval']
        self.assertEqual([(s['task'], s['step']) for s in facts['scores']], [(t, s) for t in ('bird', 'cat', 'dog') for s in (10, 20, 30, 100)])
        self.assertEqual({(s['base'], s['gain_kept']) for s in facts['scores']}, {(None, None)})
        self.assertIsNone(facts['gain_kept'])

    def pack(self, *tasks):
        write_tree(self.here / 'in', tasks=tasks, steps=(1, 2))
        self.run_icma(0, 'pack', self.here / 'in', '-o', 'f.icma', '--tier', 'latent', *QUICK)
        return {'tree': self.here / 'in', 'bundle': self.here / 'f.icma'}

    def test_failures(self):
        inputs = self.pack('cat', 'cow', 'fish')
        result = self.report(3, '--json', **inputs)
        scores = {s['task']: s for s in result.json['eval']['scores']}
        self.assertEqual(result.json['eval']['failed'], 2)
        self.assertIsNone(scores['cat']['failure'])
        for task, words in (('cow', ('exit code 42 at task cow', 'no such <cow>')), ('fish', ('no number', 'task fish'))):
            for part in words:
                self.assertIn(part, scores[task]['failure'])
            self.assertIn(json.dumps(scores[task]['failure'])[1:-1], result.words)
            self.assertIsNone(scores[task]['reconstructed'])
        self.assertEqual(len(result.words.splitlines()), 2, 'what commands say on stderr is quoted, not passed on')
        self.report(3, '-o', 'r.html', **inputs)
        page = Page((self.here / 'r.html').read_text())
        self.assertIn('no such <cow>', page.row('eval', 'cow')[-1])

    def test_commands_without_end(self):
        # Long enough for it to start, on any machine; what it has started ends with it.
        result = self.report(3, '--eval-timeout', '8', '--json', **self.pack('sloth'))
        failure = result.json['eval']['scores'][0]['failure']
        for part in ('longer than 8 seconds at task sloth', '--eval-timeout', 'words on stderr'):
            self.assertIn(part, failure)
        for pid in (self.here / 'log.pids').read_text().split():
            state = pathlib.Path(f'/proc/{pid}/stat')
            self.assertTrue(not state.exists() or state.read_text().rsplit(')')[-1].split()[0] == 'Z', pid)

    def test_usage(self):
        bundle = self.bundle()
        for arguments in (['--eval', 'true {adapter}'], ['--against', self.tree, '--eval-base', '1'], ['--against', self.tree, '--eval-timeout', '1'],
                          ['--against', self.tree, '--eval', 'true'], ['--against', self.tree, '--eval', 'true {adapter}', '--eval-base', 'true {adapter}'],
                          ['--against', self.tree, '--eval', 'no-such-program {adapter}'], ['--against', self.tree, '--eval', 'true {adapter}', '--eval-checkpoint', 'first'],
                          ['--against', self.tree, '--eval', 'true {adapter}', '--eval-base', '1', '--eval-base', '2'],
                          ['--against', self.tree, '--eval', 'true {adapter}', '--eval-base', 'cow=2'], ['--against', self.tree, '--eval', 'true {adapter}', '--eval-timeout', '0']):
            self.fails(2, 'report', bundle, *arguments)


class Html(Case):
    def page(self, *arguments, code=0):
        self.run_icma(code, 'report', *arguments, '-o', 'r.html', '-f')
        self.text = (self.here / 'r.html').read_text()
        page = Page(self.text)
        self.assertHarmless(page)
        self.assertEqual([s for s in page.sections if s in SECTIONS], SECTIONS)
        self.assertTrue(all(text.strip() for text in page.sections.values()))
        return page

    def assertHarmless(self, page):
        """Nothing runs, nothing is fetched, nothing hides."""
        tags = {tag for tag, _ in page.elements}
        self.assertFalse(tags & {'script', 'link', 'iframe', 'object', 'embed', 'img', 'image', 'base', 'form', 'foreignobject', 'a', 'use', 'animate'}, tags)
        for tag, attributes in page.elements:
            for name, value in attributes.items():
                self.assertFalse(name.startswith('on') or name in ('src', 'href', 'xlink:href', 'style', 'action'), (tag, name))
        policy = next(a['content'] for t, a in page.elements if t == 'meta' and a.get('http-equiv') == 'Content-Security-Policy')
        self.assertIn("default-src 'none'", policy)
        self.assertEqual(re.findall(r"([a-z]+-src) 'unsafe-inline'", policy), ['style-src'])
        self.assertNotRegex(page.styles, r'url\(|@import|expression')
        self.assertNotIn('http', self.text.replace('xmlns="http://www.w3.org/2000/svg"', '').replace('http-equiv', ''))
        self.assertNotRegex(self.text, '[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]')
        for picture in page.pictures:
            self.assertPlaced(picture)

    def assertPlaced(self, picture):
        """No number is NaN, and shapes are inside the picture."""
        width, height = map(float, picture.get('viewBox').split()[2:])
        name = '{http://www.w3.org/2000/svg}'
        self.assertTrue(picture.find(name + 'title').text)
        for element in picture.iter():
            box = {k: float(element.get(k)) for k in ('x', 'y', 'width', 'height', 'x1', 'x2', 'y1', 'y2', 'cx', 'cy', 'r') if element.get(k) is not None and element is not picture}
            for key, value in box.items():
                self.assertTrue(-0.1 <= value <= (height if 'y' in key or key == 'height' else width) + 0.1, (element.tag, box))
            if element.tag == name + 'path':
                numbers = [float(n) for n in re.findall(r'-?[\d.]+', element.get('d'))]
                self.assertRegex(element.get('d'), r'^([ML]-?[\d.]+ -?[\d.]+)*$')
                self.assertTrue(all(-0.1 <= n <= max(width, height) + 0.1 for n in numbers))

    def test_numbers_are_those_of_json(self):
        bundle = self.bundle()
        for arguments in ([], ['--against', self.tree, '--zstd']):
            page = self.page(bundle, *arguments)
            facts = self.run_icma(0, 'report', bundle, *arguments, '--json').json
            for task in facts['tasks']:
                row = page.row('tasks', task['task'])
                self.assertEqual(row[1], str(task['checkpoints']))
                self.assertEqual(row[5], f'{task["bits_per_parameter"]:.3f}')
                self.assertEqual(row[6:9], [deviation(task['dw_error']['mean']), deviation(task['dw_error']['max']), deviation(task['relative_error'])])
            self.assertIn(f'{facts["bytes"]["generator"]} B' if facts['bytes']['generator'] < 1024 else f'{facts["bytes"]["generator"] / 1024:.2f} KiB', page.sections['sizes'])
            self.assertIn('smaller than 16-bit casts from' if facts['generator']['break_even'] else 'never', page.sections['rates'])
            if arguments:
                modules = facts['against']['groups'][0]['modules']
                self.assertIn('zstd -19', page.sections['sizes'])
                for module in modules:
                    self.assertEqual(page.row('modules', module['module'])[1:3], [deviation(module['worst_error']), deviation(module['relative_error'])])
            else:
                for module in facts['groups'][0]['record']['modules']:
                    self.assertEqual(page.row('modules', module['module'])[1], deviation(module['relative_error']))
            losses = facts['groups'][0]['record']['losses']
            self.assertIn(f'Epoch {losses[-1]["epoch"]}: reconstruction {losses[-1]["reconstruction"]:.3g}', page.sections['training'])
            # One dot a task, and one for what is kept alike.
            dots = [c for p in page.pictures for c in p.iter('{http://www.w3.org/2000/svg}circle') if c.get('class') == 'faint h0']
            self.assertEqual(len(dots), len(facts['tasks']))

    def test_timeline_of_json(self):
        facts = self.run_icma(0, 'report', self.bundle(), '--json').json
        for task in facts['tasks']:
            self.assertEqual([c['step'] for c in task['timeline']], [10, 20, 30, 100])
            # The condition's section is the rest.
            self.assertTrue(0 < sum(c['bytes'] for c in task['timeline']) < task['bytes'])
            self.assertEqual(max(c['dw_error']['max'] for c in task['timeline']), task['dw_error']['max'])

    def write_vectors(self, values, name='vectors'):
        """{task: rows} as .npy files."""
        (self.here / name).mkdir()
        for task, rows in values.items():
            header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({len(rows)}, {len(rows[0])}), }}\n".encode()
            image = b'\x93NUMPY\x01\0' + struct.pack('<H', len(header)) + header + floats([x for row in rows for x in row])
            (self.here / name / f'{task}.npy').write_bytes(image)

    def test_map_of_conditions(self):
        bundle = self.bundle()
        facts = self.run_icma(0, 'report', bundle, '--json').json['map']
        self.assertEqual((facts['vectors'], facts['all'], facts['dims'], facts['silhouette']), ('conditions', 3, 8, None))
        self.assertEqual([p['task'] for p in facts['points']], ['bird', 'cat', 'dog'])
        self.assertEqual([p['tsne'] for p in facts['points']], [None] * 3)
        self.assertAlmostEqual(sum(facts['explained']), 1)  # three points span a plane
        page = self.page(bundle)
        for point in facts['points']:
            self.assertEqual([float(x) for x in page.row('map', point['task'])[1:]], [float(f'{x:.4g}') for x in point['pca']])

    def test_map_of_samples(self):
        draw = random.Random(5)
        tasks = {task: [[4 * (k == i) + draw.gauss(0, 1) for k in range(5)] for _ in range(10)] for i, task in enumerate(('bird', 'cat', 'dog'))}
        self.write_vectors(tasks)
        bundle = self.bundle()
        facts = self.run_icma(0, 'report', bundle, '--vectors', 'vectors', '--json').json['map']
        points = [(task, [struct.unpack('<f', struct.pack('<f', x))[0] for x in row]) for task, rows in tasks.items() for row in rows]
        silhouettes = {task: [] for task in tasks}
        for i, (task, row) in enumerate(points):
            means = {other: [math.dist(row, x) for j, (t, x) in enumerate(points) if t == other and j != i] for other in tasks}
            means = {other: sum(list) / len(list) for other, list in means.items()}
            a, b = means[task], min(mean for other, mean in means.items() if other != task)
            silhouettes[task].append((b - a) / max(a, b))
        self.assertEqual([s['task'] for s in facts['silhouettes']], list(tasks))
        for entry in facts['silhouettes']:
            self.assertAlmostEqual(entry['silhouette'], sum(silhouettes[entry['task']]) / 10, 9)
        self.assertAlmostEqual(facts['silhouette'], sum(sum(s) for s in silhouettes.values()) / 30, 9)
        self.assertAlmostEqual(facts['perplexity'], 29 / 3)
        self.assertTrue(0 < facts['kl_divergence'] < 2 and all(len(p['tsne']) == 2 for p in facts['points']))
        self.assertIn(f'{facts["silhouette"]:.3f}', self.run_icma(0, 'report', bundle, '--vectors', 'vectors').text)
        page = self.page(bundle, '--vectors', 'vectors')
        for entry in facts['silhouettes']:
            self.assertEqual(page.row('map', entry['task'])[1:], ['10', f'{entry["silhouette"]:.3f}'])
        shapes = [e for p in page.pictures for e in p.iter() if e.get('class') == 'dot' and 'Map' in p.find('{http://www.w3.org/2000/svg}title').text]
        self.assertEqual(len(shapes), 2 * 30)

    def test_vectors_that_do_not_fit(self):
        bundle = self.bundle()
        self.fails(7, 'report', bundle, '--vectors', 'nowhere', saying='TASK.npy')
        self.write_vectors({'cat': [[1, 2], [3, 4]], 'dog': [[1, 2, 3]]}, 'two')
        self.fails(6, 'report', bundle, '--vectors', 'two', saying='one encoder')
        self.write_vectors({'cat': [[1, 2]], 'dog': [[3, 5]]}, 'one')
        result = self.run_icma(0, 'report', bundle, '--vectors', 'one', '--json')
        self.assertIn('neither bird.safetensors nor .npy', result.words)
        self.assertEqual([p['task'] for p in result.json['map']['points']], ['cat', 'dog'])
        self.write_vectors({'cat': [[i, j] for i in range(40) for j in range(40)], 'dog': [[0, 0]] * 5}, 'many')
        points = self.run_icma(0, 'report', bundle, '--vectors', 'many', '--json').json['map']
        self.assertEqual((points['all'], len(points['points'])), (1605, 333 + 5))

    def test_both_themes_and_print(self):
        page = self.page(self.bundle())
        light, dark = (re.search(pattern + r':root \{(.*?)\}', page.styles, re.S).group(1) for pattern in ('', r'prefers-color-scheme: dark\) \{ '))
        names = lambda text: set(re.findall(r'--\w+', text))
        self.assertEqual(names(light), names(dark))
        self.assertIn('@media print', page.styles)
        used = {c for _, a in page.elements for c in a.get('class', '').split()}
        self.assertFalse({c for c in used if re.fullmatch(r'[hm][\dx]', c) and f'.{c}' not in page.styles}, 'classes without a style')

    def test_deterministic(self):
        bundle = self.bundle()
        first = (self.page(bundle), self.text)[1]
        self.assertEqual((self.page(bundle), self.text)[1], first)

    def test_hostile_names(self):
        tasks = ['<script>alert(1)<script>', '"onload="alert(1)', "'&lt;&#x3c;", ']]><svg onload=x>', 'bidi\u202eevil\u2066', 'zero\u200bwidth', 'x-->', 'a' * 200]
        modules = ['<img src=x onerror=alert(1)>', '"\'></text></svg><script>', 'layers.0.</title>', 'layers.0.\u202eproj', '{{7*7}}']
        extra = {'<b>kept</b>': ('I64', (1,), struct.pack('<q', 7))}
        for number, task in enumerate(tasks):
            for step in (1, 2):
                write_adapter(self.here / 'in' / task.replace('/', '_'), lora(f'{number}', step, modules=modules, extra=extra))
        self.run_icma(0, 'pack', self.here / 'in', '-o', 'h.icma', '--tier', 'latent', *QUICK)
        for arguments in ([], ['--against', self.here / 'in']):
            page = self.page('h.icma', *arguments)
            self.assertIn('<img src=x onerror=alert(1)>', page.sections['modules'])
            self.assertIn('<b>kept</b>', page.sections['verbatim'])
            self.assertIn('<script>alert(1)<script>', page.sections['tasks'])
            self.assertIn('bidi\\xE2\\x80\\xAEevil', page.sections['tasks'])

    def test_name_of_the_archive(self):
        page = self.page(self.bundle('a<b>&".icma'))
        self.assertIn('<title>a&lt;b&gt;&amp;&quot;.icma', self.text)
        self.assertNotIn(str(self.here), self.text)
        self.assertTrue(page.pictures)

    def test_every_kind(self):
        kinds = {'none': ['--generator', 'none', '--max-error', 'dw=0.1'], 'lossless': ['--tier', 'lossless'], 'generate': ['--tier', 'generate'], 'soup': ['--generator', 'soup', '--tier', 'latent'],
                 'conv': ['--generator', 'conv', '--tier', 'latent', '--layers', '2', '--epochs', '2', '-T', '1'], 'bounded': ['--max-error', 'rel=0.01']}
        for kind, options in kinds.items():
            with self.subTest(kind):
                self.run_icma(0, 'pack', self.tree, '-o', f'{kind}.icma', *options)
                page = self.page(f'{kind}.icma', '--against', self.tree)
                self.assertEqual(page.row('training', 'kind')[1], {'none': 'none', 'lossless': 'none', 'conv': 'conv'}.get(kind, 'basis'))
                if kind == 'lossless':
                    self.assertIn('exact', page.sections['rates'])

    def test_several_groups_one_checkpoint_and_many_tasks(self):
        for i in range(70):
            write_adapter(self.here / 'many' / f'task-{i:02}', lora(f'{i}', 0, rank=2 + i % 2, modules=('q_proj',)))
        self.run_icma(0, 'pack', self.here / 'many', '-o', 'many.icma', '--tier', 'bounded', *QUICK)
        page = self.page('many.icma')
        self.assertIn('and 10 more tasks', page.sections['tasks'])
        self.assertNotIn('halo', self.text.split('</style>')[1], 'so many are not named in a map')
        self.assertIn('group 1', page.sections['modules'])
        self.assertIn('nothing to follow', page.sections['timeline'])

    def test_errors_that_are_not_finite(self):
        # One element of an original is NaN: the checkpoint's own exception. Against another original, it is infinitely wrong.
        write_tree(self.here / 'in', tasks=('cat', 'dog'))
        self.run_icma(0, 'pack', self.here / 'in', '-o', 'n.icma', '--tier', 'latent', *QUICK)
        path = self.here / 'in/cat/checkpoint-20/adapter_model.safetensors'
        image = path.read_bytes()
        path.write_bytes(image[:-4] + struct.pack('<f', float('nan')))
        page = self.page('n.icma', '--against', self.here / 'in', code=3)
        self.assertIn('inf', page.row('modules', 'base_model.model.layers.0.v_proj'))
        self.assertIn('mx', {c for _, a in page.elements for c in a.get('class', '').split()})

    def test_without_a_record(self):
        self.run_icma(0, 'report', VECTORS / 'basis-given.icma', '-o', 'v.html')
        for path in sorted(VECTORS.glob('*.icma')):
            page = self.page(path)
            self.assertTrue(page.pictures, path)

    def test_files(self):
        self.run_icma(0, 'report', self.bundle(), '-o', 'r.html')
        self.fails(8, 'report', self.here / 'small.icma', '-o', 'r.html', saying='exists')
        self.fails(2, 'report', self.here / 'small.icma', '-o', 'r.htmlx', saying='.html')


VECTORS = pathlib.Path(__file__).resolve().parent.parent / 'vectors'

if __name__ == '__main__':
    main()
