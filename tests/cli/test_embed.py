#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""embed and pack --text-from, with a tiny text encoder whose numbers are computed here once more; encoders that are damaged, hostile or not whole."""
import json
import math
import os
import random
import struct

from harness import Case, floats, main, safetensors

WIDTH, HIDDEN, LAYERS, HEADS, POSITIONS = 6, 10, 2, 2, 9
START, END = '<|startoftext|>', '<|endoftext|>'
CONFIG = {'model_type': 'clip_text_model', 'hidden_size': WIDTH, 'intermediate_size': HIDDEN, 'num_hidden_layers': LAYERS, 'num_attention_heads': HEADS,
          'max_position_embeddings': POSITIONS, 'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5}


def letters():
    return [chr(c) for c in range(ord('!'), ord('~') + 1)]


TOKENS = letters() + [c + '</w>' for c in letters()] + ['ca', 'cat</w>', 'do', 'dog</w>', START, END]
VOCABULARY = {t: i for i, t in enumerate(TOKENS)}
MERGES = '#version: 0.2\nc a\nca t</w>\nd o\ndo g</w>\n'


def shapes(projection=None):
    yield 'text_model.embeddings.token_embedding.weight', (len(TOKENS), WIDTH)
    yield 'text_model.embeddings.position_embedding.weight', (POSITIONS, WIDTH)
    for i in range(LAYERS):
        layer = f'text_model.encoder.layers.{i}.'
        for part in 'qkv':
            yield f'{layer}self_attn.{part}_proj.weight', (WIDTH, WIDTH)
            yield f'{layer}self_attn.{part}_proj.bias', (WIDTH,)
        yield f'{layer}self_attn.out_proj.weight', (WIDTH, WIDTH)
        yield f'{layer}self_attn.out_proj.bias', (WIDTH,)
        yield f'{layer}mlp.fc1.weight', (HIDDEN, WIDTH)
        yield f'{layer}mlp.fc1.bias', (HIDDEN,)
        yield f'{layer}mlp.fc2.weight', (WIDTH, HIDDEN)
        yield f'{layer}mlp.fc2.bias', (WIDTH,)
        for n in '12':
            yield f'{layer}layer_norm{n}.weight', (WIDTH,)
            yield f'{layer}layer_norm{n}.bias', (WIDTH,)
    yield 'text_model.final_layer_norm.weight', (WIDTH,)
    yield 'text_model.final_layer_norm.bias', (WIDTH,)
    if projection:
        yield 'text_projection.weight', (projection, WIDTH)


def weights(projection=None):
    draw = random.Random(8)
    made = {}
    for name, shape in shapes(projection):
        count = math.prod(shape)
        values = [draw.gauss(1 if 'norm' in name and name.endswith('weight') else 0, 0.4) for _ in range(count)]
        made[name] = (shape, list(struct.unpack(f'{count}f', floats(values))))
    return made


def image(tensors):
    return safetensors({name: ('F32', shape, floats(values)) for name, (shape, values) in tensors.items()})


def tokens_of(words):
    """Of lower-case ASCII words of which cat and dog are tokens."""
    ids = [VOCABULARY[START]]
    for word in words.split():
        ids += [VOCABULARY[word + '</w>']] if word + '</w>' in VOCABULARY else [VOCABULARY[c] for c in word[:-1]] + [VOCABULARY[word[-1] + '</w>']]
    return ids[:POSITIONS - 1] + [VOCABULARY[END]]


def embedding(tensors, words):
    """Radford et al. 2021 as transformers has it, number by number."""
    def rows(name):
        (height, width), values = tensors[name]
        return [values[i * width:(i + 1) * width] for i in range(height)]

    def vector(name):
        return tensors[name][1]

    def linear(name, x):
        return [sum(a * b for a, b in zip(row, x)) + bias for row, bias in zip(rows(name + '.weight'), vector(name + '.bias'))]

    def norm(name, x):
        mean = sum(x) / len(x)
        spread = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + 1e-5)
        return [(v - mean) / spread * g + b for v, g, b in zip(x, vector(name + '.weight'), vector(name + '.bias'))]

    def attend(q, keys, values):
        each = WIDTH // HEADS
        out = []
        for h in range(0, WIDTH, each):
            scores = [sum(q[h + j] * k[h + j] for j in range(each)) / math.sqrt(each) for k in keys]
            p = [math.exp(s - max(scores)) for s in scores]
            out += [sum(w * v[h + j] for w, v in zip(p, values)) / sum(p) for j in range(each)]
        return out

    table, places = rows('text_model.embeddings.token_embedding.weight'), rows('text_model.embeddings.position_embedding.weight')
    x = [[a + b for a, b in zip(table[t], places[i])] for i, t in enumerate(tokens_of(words))]
    for n in range(LAYERS):
        layer = f'text_model.encoder.layers.{n}.'
        normed = [norm(layer + 'layer_norm1', row) for row in x]
        q, k, v = ([linear(f'{layer}self_attn.{part}_proj', row) for row in normed] for part in 'qkv')
        for i, row in enumerate(x):
            x[i] = [a + b for a, b in zip(row, linear(layer + 'self_attn.out_proj', attend(q[i], k[:i + 1], v[:i + 1])))]
        for i, row in enumerate(x):
            inner = [z / (1 + math.exp(-1.702 * z)) for z in linear(layer + 'mlp.fc1', norm(layer + 'layer_norm2', row))]
            x[i] = [a + b for a, b in zip(row, linear(layer + 'mlp.fc2', inner))]
    return norm('text_model.final_layer_norm', x[-1])


class Encoder(Case):
    def encoder(self, name='clip', config=(), vocabulary=VOCABULARY, merges=MERGES, tensors=None, drop=()):
        folder = self.here / name
        folder.mkdir(exist_ok=True)
        files = {'config.json': json.dumps({**CONFIG, 'vocab_size': len(TOKENS), 'eos_token_id': VOCABULARY[END], **dict(config)}),
                 'vocab.json': vocabulary if isinstance(vocabulary, str) else json.dumps(vocabulary), 'merges.txt': merges}
        for file, text in files.items():
            (folder / file).write_text(text)
        (folder / 'model.safetensors').write_bytes(image(weights() if tensors is None else tensors))
        for file in drop:
            (folder / file).unlink()
        return folder



class Embed(Encoder):
    def embed(self, words, *options):
        done = self.run_icma(0, 'embed', '--encoder', 'clip', *(f'--text={w}' for w in words), '--json', *options)
        return [t['embedding'] for t in done.json['texts']]

    def assertNear(self, found, wanted):
        self.assertEqual(len(found), len(wanted))
        self.assertLess(max(abs(a - b) for a, b in zip(found, wanted)), 2e-5)

    def test_numbers(self):
        self.encoder()
        words = ['cat', 'dog', 'a cat', 'a cat and a dog', '', 'cat', 'far too many letters for it', 'a']
        for options in ((), ('--scalar',), ('-T', '3')):
            for found, text in zip(self.embed(words, *options), words):
                self.assertNear(found, embedding(weights(), text))

    def test_projection(self):
        tensors = weights(4)
        self.encoder(tensors=tensors)
        matrix, pooled = tensors['text_projection.weight'][1], embedding(tensors, 'cat')
        self.assertNear(self.embed(['cat'], '--projection')[0], [sum(matrix[i * WIDTH + j] * pooled[j] for j in range(WIDTH)) for i in range(4)])
        self.assertNear(self.embed(['cat'])[0], pooled)

    def test_pooling(self):
        """eos_token_id 2 stands for the largest number, which here is the end's too; then for a token that ends nothing."""
        self.encoder(config={'eos_token_id': 2})
        self.assertNear(self.embed(['a cat'])[0], embedding(weights(), 'a cat'))
        self.assertNear(self.embed([f'a cat{END}dog'])[0], embedding(weights(), 'a cat'))
        self.encoder()
        self.assertNear(self.embed([f'a cat{END}dog'])[0], embedding(weights(), 'a cat'))

    def test_names_before_tensors(self):
        for prefix in ('', 'clip.'):
            self.encoder(tensors={prefix + n.replace('text_model.', '' if not prefix else 'text_model.'): t for n, t in weights().items()})
            self.assertNear(self.embed(['cat'])[0], embedding(weights(), 'cat'))

    def test_output(self):
        self.encoder()
        file = self.here / 'cat.safetensors'
        self.run_icma(0, 'embed', '--encoder', 'clip/', '--text', 'cat', '-o', file)
        data = file.read_bytes()
        header = json.loads(data[8:8 + struct.unpack('<Q', data[:8])[0]])
        self.assertEqual(header['text_embeds']['shape'], [WIDTH])
        self.assertEqual((header['__metadata__']['encoder'], header['__metadata__']['text']), ('clip', 'cat'))
        self.fails(8, 'embed', '--encoder', 'clip', '--text', 'dog', '-o', file, saying='exists already')
        self.assertEqual(file.read_bytes(), data)
        self.run_icma(0, 'embed', '--encoder', 'clip', '--text', 'dog', '-o', file, '-f')
        self.assertNotEqual(file.read_bytes(), data)
        self.assertEqual(self.run_icma(0, 'embed', '--encoder', 'clip', '--text', 'cat', '-o', '-').out.replace(b'clip/', b'clip'), data)

    def test_folder_that_is_no_text(self):
        """Its name stands for the encoder's, in a header that is JSON."""
        folder = self.here / os.fsdecode(b'n\xff\xc3\xa9')
        os.rename(self.encoder(), folder)
        self.run_icma(0, 'embed', '--encoder', folder, '--text', 'cat', '-o', 'v.safetensors')
        image = (self.here / 'v.safetensors').read_bytes()
        header = json.loads(image[8:8 + int.from_bytes(image[:8], 'little')].decode())
        self.assertEqual(header['__metadata__']['encoder'], 'n?\u00e9')

    def test_hash(self):
        """Of the weights: another number, another hash; another dtype too."""
        self.encoder()
        tell = lambda: self.run_icma(0, 'embed', '--encoder', 'clip', '--text', 'a', '--json').json['encoder_hash']
        one = tell()
        self.assertEqual(one, tell())
        tensors = weights()
        tensors['text_model.encoder.layers.1.mlp.fc2.bias'][1][3] += 1
        self.encoder(tensors=tensors)
        self.assertNotEqual(one, tell())

    def refused(self, code, saying='', text='cat', **how):
        self.encoder(**how)
        result = self.fails(code, 'embed', '--encoder', 'clip', '--text', text, '-o', 'x.safetensors', saying=saying)
        self.assertFalse((self.here / 'x.safetensors').exists())
        return result

    def test_missing_files(self):
        for file in ('config.json', 'vocab.json', 'merges.txt', 'model.safetensors'):
            with self.subTest(file):
                self.refused(7, saying=file, drop=[file])

    def test_configurations(self):
        for config, code, saying in [
                ({'hidden_size': 0}, 10, 'hidden_size'), ({'hidden_size': 10**9}, 10, 'hidden_size'), ({'hidden_size': -6}, 4, 'hidden_size'), ({'hidden_size': 6.5}, 4, 'hidden_size'),
                ({'hidden_size': '6'}, 4, 'hidden_size'), ({'hidden_size': 8}, 4, 'shape'), ({'num_attention_heads': 4}, 4, 'multiple'), ({'num_attention_heads': 0}, 10, 'heads'),
                ({'num_hidden_layers': 3}, 7, 'layers.2'), ({'num_hidden_layers': 10**6}, 10, 'num_hidden_layers'), ({'max_position_embeddings': 10}, 4, 'position_embedding'),
                ({'max_position_embeddings': 1}, 10, 'max_position'), ({'hidden_act': 'relu'}, 6, 'relu'), ({'hidden_act': 7}, 6, 'hidden_act'),
                ({'layer_norm_eps': -1}, 4, 'layer_norm_eps'), ({'layer_norm_eps': 'x'}, 4, 'layer_norm_eps'), ({'eos_token_id': 5}, 4, 'eos_token_id'),
                ({'vocab_size': 100}, 4, 'vocabulary'), ({'model_type': 't5'}, 6, 't5'), ({'intermediate_size': 11}, 4, 'fc1')]:
            with self.subTest(config):
                self.refused(code, saying=saying, config=config)

    def test_configurations_that_are_none(self):
        for text, code in [('', 4), ('[]', 4), ('{', 4), ('{"a":1,"a":2}', 4), ('[' * 100, 10), ('\x00', 4), ('{"text_config": {"hidden_size": 7}}', 4)]:
            with self.subTest(text):
                folder = self.encoder()
                (folder / 'config.json').write_text(text)
                self.fails(code, 'embed', '--encoder', 'clip', '--text', 'cat', '--json')

    def test_tokenizers(self):
        without = {t: i for t, i in VOCABULARY.items() if t != END}
        for how, code, saying in [
                ({'vocabulary': without}, 4, END), ({'vocabulary': '[]'}, 4, 'vocab'), ({'vocabulary': '{"a": 1.5}'}, 4, ''), ({'vocabulary': '{"a": -1}'}, 4, ''), ({'vocabulary': '{"a": "b"}'}, 4, ''),
                ({'vocabulary': '{"a": {"b": 1}}'}, 10, ''), ({'vocabulary': {**VOCABULARY, 'x': 2**30}}, 10, ''), ({'vocabulary': {**VOCABULARY, 'xx': len(TOKENS)}}, 4, 'config.json'),
                ({'merges': '#version\na b c\n'}, 4, 'line 2'), ({'merges': '#version\nc a\nca\n'}, 4, 'line 3'), ({'merges': '#version\nq q\n'}, 4, 'not in the vocabulary')]:
            with self.subTest(how['merges'] if 'merges' in how else str(how)[:60]):
                self.refused(code, saying=saying, **how)

    def test_texts(self):
        self.encoder()
        self.fails(4, 'embed', '--encoder', 'clip', '--text=a\udcff', '--json', saying='UTF-8')
        self.fails(10, 'embed', '--encoder', 'clip', '--text', 'a' * 70000, '--json', saying='70000')
        self.assertNear(self.embed(['cat ' * 9000])[0], embedding(weights(), 'cat ' * 20))

    def test_weights(self):
        name = 'text_model.encoder.layers.0.mlp.fc1.weight'
        for value in (math.nan, math.inf):
            tensors = weights()
            tensors[name][1][3] = value
            self.refused(6, saying='not finite', tensors=tensors)
        tensors = weights()
        tensors.pop(name)
        self.refused(7, saying=name, tensors=tensors)
        self.refused(6, saying='token_embedding', tensors={'x': ((1,), [1.0])})
        tensors = weights()
        tensors[name] = ((WIDTH, HIDDEN), tensors[name][1])
        self.refused(4, saying=name, tensors=tensors)
        folder = self.encoder()
        (folder / 'model.safetensors').write_bytes(image(weights())[:-4])
        self.fails(4, 'embed', '--encoder', 'clip', '--text', 'cat', '--json', saying='model.safetensors')
        (folder / 'model.safetensors').write_bytes(safetensors({n: ('I64', s, b'\0' * 8 * math.prod(s)) for n, (s, _) in weights().items()}))
        self.fails(6, 'embed', '--encoder', 'clip', '--text', 'cat', '--json', saying='I64')

    def test_indices(self):
        folder = self.encoder(drop=['model.safetensors'])
        half = dict(list(weights().items())[:9])
        rest = {n: t for n, t in weights().items() if n not in half}
        (folder / 'a.safetensors').write_bytes(image(half))
        (folder / 'b.safetensors').write_bytes(image(rest))
        index = {n: 'a.safetensors' if n in half else 'b.safetensors' for n in weights()}
        (folder / 'model.safetensors.index.json').write_text(json.dumps({'metadata': {'total_size': 1}, 'weight_map': index}))
        self.assertNear(self.embed(['dog'])[0], embedding(weights(), 'dog'))
        for text, code in [('{}', 4), ('{"weight_map": 3}', 4), ('{"weight_map": {}}', 4), ('{"weight_map": {"a": "../a.safetensors"}}', 4), ('{"weight_map": {"a": 3}}', 4), ('{"weight_map": {"a": "c.safetensors"}}', 7),
                           ('{"weight_map": {"a": "a.safetensors"}}', 7), (json.dumps({'weight_map': {f'{i}': f'{i}.safetensors' for i in range(3)}}), 7)]:
            with self.subTest(text):
                (folder / 'model.safetensors.index.json').write_text(text)
                self.fails(code, 'embed', '--encoder', 'clip', '--text', 'cat', '--json')


class Pack(Encoder):
    """Texts as tasks' conditions."""
    TEXTS = {'bird': 'a', 'cat': 'a cat', 'dog': 'dog'}

    def pack(self, code, texts, *options, **more):
        (self.here / 'map.json').write_text(texts if isinstance(texts, str) else json.dumps(texts))
        options = ('pack', self.tree, '-o', 'x.icma', '--text-from', 'map.json', '--encoder', 'clip', '--tier', 'latent', '--epochs', '20', *options)
        return self.fails(code, *options, **more) if code else self.run_icma(0, *options)

    def origins(self):
        return {t['task']: t['condition'] for t in self.run_icma(0, 'list', 'x.icma', '--json').json['tasks']}

    def test_conditions(self):
        self.encoder()
        self.pack(0, self.TEXTS)
        self.assertEqual(self.origins(), {t: {'origin': 'text: ' + w, 'size': WIDTH} for t, w in self.TEXTS.items()})
        record = self.run_icma(0, 'info', 'x.icma', '--json').json['groups'][0]['record']
        told = self.run_icma(0, 'embed', '--encoder', 'clip', '--text', 'a', '--json').json
        self.assertEqual(record['text_encoder'], {'id': 'clip', 'hash': told['encoder_hash'], 'pooling': 'first end token', 'projection': False})
        self.assertEqual(record['texts'], [{'task': t, 'text': w} for t, w in self.TEXTS.items()])
        # The stored conditions are those that embed gives: generate finds the task that a vector belongs to.
        for task, text in self.TEXTS.items():
            self.run_icma(0, 'embed', '--encoder', 'clip', '--text', text, '-o', f'{task}.safetensors')
            said = self.run_icma(0, 'generate', 'x.icma', '--condition', f'{task}.safetensors', '-n').words
            self.assertIn(f'"{task}", as it was packed', said)

    def test_generating_by_the_encoder_that_packed(self):
        """Vectors of another, or made otherwise, are as long and mean something else."""
        self.encoder(tensors=weights(WIDTH))
        other = {name: (shape, [2 * v for v in values]) for name, (shape, values) in weights(WIDTH).items()}
        self.encoder('other', tensors=other)
        self.pack(0, self.TEXTS)
        said = {}
        for words in (('clip',), ('other',), ('clip', '--projection')):
            said[words] = self.run_icma(0, 'generate', 'x.icma', '-n', '--text', 'cat', '--encoder', *words).words
        self.assertNotIn('packed vectors', said['clip',])
        self.assertIn('the packed vectors are of another text encoder, "clip"', said['other',])
        self.assertIn('the packed vectors were made without --projection', said['clip', '--projection'])

    def test_same_archive(self):
        self.encoder()
        self.pack(0, self.TEXTS, '-T', '1')
        first = (self.here / 'x.icma').read_bytes()
        self.pack(0, self.TEXTS, '-T', '3', '-f')
        self.assertEqual((self.here / 'x.icma').read_bytes(), first)

    def test_some_tasks(self):
        """A task that is not in the map keeps its vector, if it is of the same length."""
        self.encoder()
        self.pack(6, {'cat': 'a cat'}, saying='numbers in one group')
        for task in ('bird', 'dog'):
            (self.tree / task / 'task_vector.safetensors').rename(self.here / task)
            self.addCleanup((self.here / task).rename, self.tree / task / 'task_vector.safetensors')
        self.pack(0, {'cat': 'a cat'})
        self.assertEqual({t: c['origin'] for t, c in self.origins().items()}, {'bird': 'learned', 'cat': 'text: a cat', 'dog': 'learned'})

    def test_long_text(self):
        """An origin has room for 255 bytes, and is cut between characters; the record has all of the text."""
        self.encoder()
        texts = dict(self.TEXTS, cat='a' * 248 + '\u00e9\u00e9', dog='a' * 249 + '\u00e9\u00e9')
        self.pack(0, texts)
        cut = {t: 'text: ' + w.encode()[:249].decode(errors='ignore') for t, w in texts.items()}
        self.assertEqual({t: c['origin'] for t, c in self.origins().items()}, cut)
        self.assertEqual([t['text'] for t in self.run_icma(0, 'info', 'x.icma', '--json').json['groups'][0]['record']['texts']], list(texts.values()))

    def test_refused(self):
        self.encoder()
        for texts, code, saying in [({'cow': 'a cow'}, 7, 'cow'), ('[]', 4, 'map'), ('{"cat": 3}', 4, 'cat'), ('{"cat": "a", "cat": "b"}', 4, ''), ({'cat': 'a' * 70000}, 10, 'cat'),
                                    ('', 4, '')]:
            with self.subTest(str(texts)[:40]):
                self.pack(code, texts, saying=saying)
                self.assertFalse((self.here / 'x.icma').exists())
        self.fails(7, 'pack', self.tree, '-o', 'x.icma', '--text-from', 'none.json', '--encoder', 'clip')
        self.fails(2, 'pack', self.tree, '-o', 'x.icma', '--text-from', 'map.json', saying='--encoder')
        self.fails(2, 'pack', self.tree, '-o', 'x.icma', '--encoder', 'clip', saying='--text-from')
        self.pack(6, self.TEXTS, '--projection', saying='projection')

    def test_dry_run(self):
        self.encoder()
        said = self.pack(0, {'cat': 'a cat'}, '-n').text
        self.assertIn('text: a cat', said)
        self.pack(7, {'cow': 'moo'}, '-n', saying='cow')
        tasks = self.pack(0, {'cat': 'a cat'}, '-n', '--json').json['tasks']
        self.assertEqual([t['text'] for t in tasks], [None, 'a cat', None])
        self.assertFalse((self.here / 'x.icma').exists())


if __name__ == '__main__':
    main()
