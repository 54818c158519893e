#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""icma embed against transformers: the tokens of CLIPTokenizerFast and the embeddings of CLIPTextModel."""
import json
import os
import random
import shutil
import subprocess
import unicodedata
import unittest

import numpy as np
import torch
from common import ADAPTER, ICMA, LORAS, Case
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizerFast
from transformers.models.clip.tokenization_clip import bytes_to_unicode
from transformers.utils import logging

logging.set_verbosity_error()  # of sequences that are longer than a model takes

PROBE = os.path.join(os.path.dirname(os.path.abspath(ICMA)), 'icma_tokenizer_probe')
START, END = '<|startoftext|>', '<|endoftext|>'

WORDS = '''detect the cat a photo of an image with dogs running quickly through forest's edge they're we've I'm you'll don't he'd
    Straße GROSSE ΣΊΣΥΦΟΣ Οδυσσεύς İstanbul ISPARTA ıspanak naïve café crème brûlée Ångström Dvořák Łódź žluťoučký kůň
    Привет мир Ёлка Київ שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก 你好世界 こんにちは 世界 안녕하세요 세계 ấm ghế 12345 3.14159 2024-11-26 ½ ² Ⅷ ٣٤ ५
    C++17 foo_bar() x<y&&z>=w #hashtag @user e-mail@example.org \\n {"json": [1, null]} ... !!! ?! -- “quoted” ‘single’ —dash… €100 £5 ¥ §
    😀 👩‍👩‍👧‍👦 🏳️‍🌈 ❤️ 🇩🇪 👍🏽 ✨ é é ṩ ṩ ñ ñ Ω Å ﬁ ﬂuffy ǅ ǆ ß ẞ'''.split()


def vocabulary():
    """A byte-level BPE with words that end in </w>, trained on the words above: (vocabulary, merges)."""
    alphabet = list(bytes_to_unicode().values())
    spell = bytes_to_unicode()
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix='</w>'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=1400, initial_alphabet=alphabet, end_of_word_suffix='</w>', show_progress=False)
    draw = random.Random(3)
    lines = [''.join(spell[b] for b in w.lower().encode()) for w in WORDS]
    tokenizer.train_from_iterator([' '.join(draw.choices(lines, k=20)) for _ in range(400)], trainer)
    model = json.loads(tokenizer.to_str())['model']
    merges = [tuple(m.split(' ')) if isinstance(m, str) else tuple(m) for m in model['merges']]
    tokens = alphabet + [c + '</w>' for c in alphabet]
    tokens += [''.join(m) for m in merges]
    tokens = list(dict.fromkeys(tokens)) + [START, END]
    return {t: i for i, t in enumerate(tokens)}, merges


def save_vocabulary(folder, tokens, merges):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, 'vocab.json'), 'w', encoding='utf-8') as f:
        json.dump(tokens, f, ensure_ascii=False)
    with open(os.path.join(folder, 'merges.txt'), 'w', encoding='utf-8') as f:
        f.write('#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in merges))


def characters():
    """Those that mean something in Unicode 14, and some of the others, which are all alike."""
    return [chr(c) for c in range(1, 0x110000)
            if not 0xD800 <= c <= 0xDFFF and (c % 101 == 0 or unicodedata.category(chr(c)) not in ('Cn', 'Co'))]


def texts(count):
    """Texts of all kinds, `count` of them."""
    draw = random.Random(11)
    everything = characters()
    marks = [c for c in everything if unicodedata.combining(c)]
    composed = [c for c in everything if unicodedata.decomposition(c)]
    letters = [c for c in everything if c.upper() != c or c.lower() != c]
    spaces = ' \t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u2003\u2028\u3000\u200b\ufeff'
    special = [START, END, START.upper(), '<|ENDofText|>', '<|endoftext', '|>', "'s", "'S", "'ll", "'", "''", "'re", '\u2019s']
    kinds = [
        lambda: ' '.join(draw.choices(WORDS, k=draw.randint(0, 12))),
        lambda: ''.join(draw.choices(WORDS + list(' \n'), k=draw.randint(1, 8))),
        lambda: ''.join(chr(draw.randint(1, 126)) for _ in range(draw.randint(1, 60))),
        lambda: ''.join(draw.choices(everything, k=draw.randint(1, 20))),
        lambda: ''.join(draw.choices(WORDS, k=1) + draw.choices(marks, k=draw.randint(1, 10))),
        lambda: ''.join(unicodedata.normalize('NFD', c) + draw.choice(marks) for c in draw.choices(composed, k=draw.randint(1, 8))),
        lambda: ''.join(draw.choices(letters, k=draw.randint(1, 20))),
        lambda: ''.join(draw.choices(list(spaces) + WORDS + special, k=draw.randint(1, 15))),
        lambda: ''.join(draw.choice(everything[:0x3000]) for _ in range(draw.randint(1, 30))),
        lambda: ''.join(chr(draw.choice((draw.randint(0x1100, 0x11ff), draw.randint(0xac00, 0xd7a3)))) for _ in range(draw.randint(1, 12))),
        lambda: draw.choice(WORDS) * draw.randint(1, 300),
        lambda: ''.join(draw.choices(special + WORDS, k=draw.randint(1, 12))),
    ]
    found = ['', ' ', 'a', END, END + END, 'a' * 5000, '\u0301', '\u0301' * 50, 'İ', 'ΑΣ', 'ß', '\U0010ffff', 'a\u0315\u0300\u05ae\u0300\u0315b']
    found += [''.join(everything[i:i + 64]) for i in range(0, 0x3400, 64)]
    while len(found) < count:
        found.append(kinds[len(found) % len(kinds)]())
    return found


class Tokens(Case):
    """Numbers of tokens, all of them, as CLIPTokenizerFast has them."""

    def probe(self, folder, words, most):
        done = subprocess.run([PROBE, folder, str(most)],
                              input=b''.join(w.encode() + b'\0' for w in words), capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        return [list(map(int, line.split())) for line in done.stdout.decode().splitlines()]

    def compare(self, folder, words, most):
        theirs = CLIPTokenizerFast.from_pretrained(folder)
        wanted = theirs(words, truncation=True, max_length=most)['input_ids']
        found = self.probe(folder, words, most)
        self.assertEqual(len(found), len(wanted))
        for word, a, b in zip(words, found, wanted):
            self.assertEqual(a, b, repr(word))

    def test_many_texts(self):
        save_vocabulary(self.folder, *vocabulary())
        words = texts(20000)
        self.assertEqual(len(words), 20000)
        self.compare(self.folder, words, 77)
        self.compare(self.folder, words[:2000], 10000)
        self.compare(self.folder, words[:200], 2)

    def test_every_character(self):
        save_vocabulary(self.folder, *vocabulary())
        everything = characters()
        self.compare(self.folder, [f'a{c}a {c}{c}' for c in everything], 77)
        self.compare(self.folder, [unicodedata.normalize('NFD', c) for c in everything if unicodedata.normalize('NFD', c) != c], 77)

    def test_special_tokens(self):
        """Of tokenizer_config.json and special_tokens_map.json, in the forms that models' folders have."""
        tokens, merges = vocabulary()
        whole = lambda content, normalized: {'content': content, 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': normalized}
        typed = lambda content, normalized: {'__type': 'AddedToken', **whole(content, normalized)}
        three = lambda make, normalized: {'bos_token': make(START, normalized), 'eos_token': make(END, normalized), 'unk_token': make(END, normalized)}
        named = {'bos_token': START, 'eos_token': END, 'unk_token': END, 'pad_token': '!'}
        added = lambda normalized: {str(tokens[t]): {**whole(t, n), 'special': True} for t, n in (('!', False), (START, normalized), (END, normalized))}
        ascii_tokens = [t for t in tokens if t.isascii() and t.isalpha() and len(t) > 1]
        words = texts(1500) + ['hello!!', '!', 'a ! b', 'A' + START.upper() + '!' + END.upper() + END, 'caté!', '!' * 90]
        for n, (config, special) in enumerate([
                (None, {**three(whole, True), 'pad_token': END}), (None, {**three(whole, True), 'pad_token': '!'}), (None, {**three(whole, False), 'pad_token': whole('!', True)}),
                ({'pad_token': '!'}, None), ({**three(typed, False), 'pad_token': '!'}, None), ({**three(typed, True), 'pad_token': '!'}, {**three(whole, False), 'pad_token': END}),
                ({'added_tokens_decoder': added(True), **named}, named), ({'added_tokens_decoder': added(False), **named}, {**three(whole, True), 'pad_token': END}),
                (None, {'additional_special_tokens': ascii_tokens[:2], 'cls_token': ascii_tokens[2]})]):
            with self.subTest(config=config, special=special):
                folder = self.path(str(n))
                save_vocabulary(folder, tokens, merges)
                for name, content in (('tokenizer_config.json', config), ('special_tokens_map.json', special)):
                    if content is not None:
                        with open(os.path.join(folder, name), 'w', encoding='utf-8') as f:
                            json.dump(content, f)
                self.compare(folder, words, 77)

    def test_unknown_bytes_and_equal_merges(self):
        tokens, merges = vocabulary()
        for gone in ('a</w>', 'q', 'ã'):
            tokens.pop(gone)
        tokens = {t: i for i, t in enumerate(tokens)}
        known = [m for m in merges if all(t in tokens for t in (*m, ''.join(m)))]
        save_vocabulary(self.folder, tokens, known[:40] + known[10:60] + known)
        self.compare(self.folder, texts(2000), 77)


SHORT = ['detect the cat', 'detect the dog', '', 'a photo of an image with dogs running quickly through forest', 'a photo', 'a photo', 'İstanbul 😀 ' * 60,
         'cat', 'x ' + END + ' and what follows', START]


def shake(model, seed):
    """Weights as after training: no bias is 0, no gain 1, and attention is not nearly even."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p += 0.1 * torch.randn(p.shape, generator=draw)
            elif 'q_proj' in name or 'k_proj' in name:
                p *= 6
    return model.eval()


def numbered(end):
    """The vocabulary with its last two tokens renumbered, so that texts end with `end`."""
    tokens, merges = vocabulary()
    tokens[START], tokens[END] = end - 1, end
    return tokens, merges


class Encoder(Case):
    """Embeddings as those of transformers' models, from the files that they save."""

    def save(self, model, end, **how):
        save_vocabulary(self.folder, *numbered(end))
        model.save_pretrained(self.folder, safe_serialization=True, **how)
        with open(self.path('vocab.json'), encoding='utf-8') as f:
            self.assertEqual(json.load(f)[END], end)

    def wanted(self, model, words, name='pooler_output'):
        tokenizer = CLIPTokenizerFast(self.path('vocab.json'), self.path('merges.txt'))
        most = getattr(model.config, 'text_config', model.config).max_position_embeddings
        ids = tokenizer(words, truncation=True, max_length=most, padding=True, return_tensors='pt')['input_ids']
        with torch.no_grad():
            if name == 'features':
                return model.get_text_features(input_ids=ids).numpy()
            return model(input_ids=ids)[name].numpy()

    def embed(self, words, *options, folder=None):
        texts = [w for text in words for w in ('--text=' + text,)]
        done = self.icma_json('embed', '--encoder', folder or self.folder, *texts, *options)
        self.assertEqual([t['text'] for t in done['texts']], words)
        return np.array([t['embedding'] for t in done['texts']], dtype=np.float32), done

    def close(self, found, wanted, most=1e-4):
        self.assertEqual(found.shape, wanted.shape)
        error = np.linalg.norm(found.astype(float) - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        self.assertLess(error.max(), most)
        if len(wanted) > 1:  # and texts are told apart
            self.assertGreater(np.linalg.norm(wanted[0] - wanted[1]) / np.linalg.norm(wanted[0]), 100 * most)

    def real(self, dtype, **options):
        """CLIP ViT-B/32's text encoder with random weights."""
        torch.manual_seed(5)
        model = shake(CLIPTextModel(CLIPTextConfig(**options)), 6).to(dtype)
        self.save(model, 49407)
        found, done = self.embed(SHORT)
        self.close(found, self.wanted(model.float(), SHORT))
        return done

    def test_real_size_f32_quick_gelu_legacy_pooling(self):
        self.assertEqual(self.real(torch.float32, hidden_act='quick_gelu', eos_token_id=2)['pooling'], 'largest id')

    def test_real_size_f16_gelu(self):
        self.assertEqual(self.real(torch.float16, hidden_act='gelu')['pooling'], 'first end token')

    def test_real_size_bf16_quick_gelu(self):
        self.real(torch.bfloat16, hidden_act='quick_gelu')

    def small(self, seed=0, **options):
        torch.manual_seed(seed)
        shape = dict(vocab_size=1100, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=21,
                     eos_token_id=1099, bos_token_id=1098, projection_dim=24)
        return CLIPTextConfig(**{**shape, **options})

    def test_shapes(self):
        """One layer, one head, odd widths, few positions, each activation and pooling."""
        for n, options in enumerate([dict(num_hidden_layers=1), dict(num_attention_heads=1, hidden_size=33), dict(hidden_size=5, num_attention_heads=5, intermediate_size=3),
                                     dict(max_position_embeddings=2), dict(max_position_embeddings=300, hidden_act='gelu'), dict(eos_token_id=2), dict(layer_norm_eps=0.1),
                                     dict(eos_token_id=2, hidden_act='gelu', num_hidden_layers=2)]):
            with self.subTest(options):
                model = shake(CLIPTextModel(self.small(n, **options)), n)
                self.save(model, 1099)
                words = texts(120)[:120]
                wanted = self.wanted(model, words)
                for how in ((), ('--scalar',)):
                    found, _ = self.embed(words, *how)
                    error = np.abs(found - wanted).max() / np.abs(wanted).max()
                    self.assertLess(error, 1e-4, how)

    def test_threads_change_nothing(self):
        self.save(shake(CLIPTextModel(self.small(hidden_size=256, intermediate_size=512)), 1), 1099)
        words = texts(400)[:300]
        one, _ = self.embed(words, '-T', '1')
        self.assertTrue((one == self.embed(words, '-T', '3')[0]).all())
        self.assertTrue((one == self.embed(words[::-1], '-T', '2')[0][::-1]).all())
        some, _ = self.embed(words[::7])  # in other company: to rounding
        self.assertLess(np.abs(some - one[::7]).max() / np.abs(one).max(), 1e-5)

    def test_projection(self):
        model = shake(CLIPTextModelWithProjection(self.small()), 2)
        self.save(model, 1099)
        self.close(self.embed(SHORT, '--projection')[0], self.wanted(model, SHORT, 'text_embeds'))

    def test_generate_from_text(self):
        """What was packed with a text's vector comes from that text; another text is another condition, whose nearest task is told."""
        self.save(shake(CLIPTextModelWithProjection(self.small()), 2), 1099)
        shutil.copytree(LORAS, self.path('tree'))
        said = {'c': 'detect the cat', 'doc': 'a photo of an image', 'python': 'dogs running quickly'}
        for task, text in said.items():
            self.icma('embed', '--encoder', self.folder, '--projection', '--text', text, '-fo', self.path('tree', task, 'task_vector.safetensors'))
        bundle = self.path('b.icma')
        self.icma('pack', self.path('tree'), '-o', bundle, '--tier', 'latent', '--generator', 'basis', '-q')
        self.icma('unpack', bundle, '--sample', '--seed', '4', '-C', self.path('drawn'), '-q')

        def generate(text, *options):
            return self.icma_json('generate', bundle, '--text', text, '--encoder', self.folder, '--projection', '-C', self.path('made'), '-f', '--seed', '4', *options)
        for task, text in said.items():
            told = generate(text)
            self.assertEqual((told['nearest']['task'], told['nearest']['distance'], told['from']['text']), (task, 0, text))
            drawn, made = (load_file(os.path.join(folder, ADAPTER)) for folder in (self.path('drawn', task), self.path('made')))
            self.assertTrue(all(torch.equal(drawn[name], made[name]) for name in drawn))
        told = generate('a photo of the image')
        self.assertTrue(told['nearest']['distance'] > 0)
        with safe_open(self.path('made', ADAPTER), 'pt') as file:
            self.assertTrue(file.metadata()['icma_from'].startswith('"a photo of the image", by '))
        self.icma('generate', bundle, '--text', 'cat', '--encoder', self.folder, '-C', self.path('no'), code=6)  # unprojected: another length

    def test_no_projection(self):
        self.save(shake(CLIPTextModel(self.small()), 2), 1099)
        self.icma('embed', '--encoder', self.folder, '--text', 'cat', '--json', '--projection', code=6)

    def test_whole_clip(self):
        """A CLIPModel's folder, and one of several files."""
        vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
        config = CLIPConfig(text_config=self.small().to_dict(), vision_config=vision, projection_dim=24)
        model = shake(CLIPModel(config), 3)
        for how in ({}, {'max_shard_size': '50KB'}):
            with self.subTest(how):
                for name in os.listdir(self.folder):
                    os.remove(self.path(name))
                self.save(model, 1099, **how)
                self.assertEqual(os.path.exists(self.path('model.safetensors')), not how)
                self.close(self.embed(SHORT, '--projection')[0], self.wanted(model, SHORT, 'features'))

    def test_pipeline(self):
        """A diffusers pipeline's folder, or its text_encoder, with half weights under another name."""
        model = shake(CLIPTextModel(self.small()), 4).half()
        save_vocabulary(self.path('tokenizer'), *numbered(1099))
        model.save_pretrained(self.path('text_encoder'), safe_serialization=True)
        os.rename(self.path('text_encoder', 'model.safetensors'), self.path('text_encoder', 'model.fp16.safetensors'))
        a, told = self.embed(SHORT)
        b, _ = self.embed(SHORT, folder=self.path('text_encoder'))
        self.assertTrue((a == b).all())
        self.assertEqual(told['encoder'], os.path.basename(self.folder))
        tokenizer = CLIPTokenizerFast(self.path('tokenizer', 'vocab.json'), self.path('tokenizer', 'merges.txt'))
        ids = tokenizer(SHORT, truncation=True, max_length=21, padding=True, return_tensors='pt')['input_ids']
        with torch.no_grad():
            self.close(a, model.float()(input_ids=ids)['pooler_output'].numpy())

    def test_file(self):
        """What -o writes: read by safetensors, with what it was made from."""
        model = shake(CLIPTextModel(self.small()), 5)
        self.save(model, 1099)
        one, many = self.path('one.safetensors'), self.path('many.safetensors')
        self.icma('embed', '--encoder', self.folder, '--text', SHORT[0], '-o', one)
        self.icma('embed', '--encoder', self.folder, '--text', SHORT[0], '--text', SHORT[1], '-o', many)
        wanted, told = self.embed(SHORT[:2])
        with safe_open(one, 'np') as f:
            self.assertEqual(list(f.keys()), ['text_embeds'])
            self.assertEqual(f.get_tensor('text_embeds').shape, (48,))
            self.close(f.get_tensor('text_embeds')[None], wanted[:1], 1e-6)
            self.assertEqual(f.metadata(), {'encoder': os.path.basename(self.folder), 'encoder_hash': told['encoder_hash'], 'pooling': 'first end token',
                                            'projection': 'false', 'text': SHORT[0]})
        with safe_open(many, 'np') as f:
            self.assertTrue((f.get_tensor('text_embeds') == wanted).all())
            self.assertEqual(json.loads(f.metadata()['texts']), SHORT[:2])


if __name__ == '__main__':
    unittest.main()
