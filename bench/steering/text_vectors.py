#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Vectors of the tasks' descriptions by CLIP's text encoder with RANDOM weights, through `icma embed`: OUT/<task>.safetensors.

Where no pretrained weights can be had, this shows that the way from words to adapters works; it cannot show what a trained
encoder knows. With a real one: `icma embed --encoder DIR` in place of this. Needs the packages of tests/interop.

  text_vectors.py OUT [--icma build/release/icma]
"""
import argparse
import json
import pathlib
import subprocess

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from measure import DESCRIPTIONS

START, END = '<|startoftext|>', '<|endoftext|>'


def save_vocabulary(folder):
    """A byte-level BPE learned from the descriptions; its size."""
    spell = bytes_to_unicode()
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix='</w>'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = list(spell.values())
    lines = [' '.join(''.join(spell[b] for b in word.encode()) for word in text.lower().split()) for text in DESCRIPTIONS.values()]
    tokenizer.train_from_iterator(lines * 20, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, end_of_word_suffix='</w>', show_progress=False))
    merges = [tuple(m.split(' ')) if isinstance(m, str) else tuple(m) for m in json.loads(tokenizer.to_str())['model']['merges']]
    tokens = list(dict.fromkeys(alphabet + [c + '</w>' for c in alphabet] + [''.join(m) for m in merges])) + [START, END]
    (folder / 'vocab.json').write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False), encoding='utf-8')
    (folder / 'merges.txt').write_text('#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in merges), encoding='utf-8')
    return len(tokens)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('out')
    ap.add_argument('--icma', default='build/release/icma')
    options = ap.parse_args()
    encoder = pathlib.Path(options.out) / 'encoder'
    encoder.mkdir(parents=True, exist_ok=True)
    size = save_vocabulary(encoder)
    torch.manual_seed(0)
    CLIPTextModel(CLIPTextConfig(vocab_size=size, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, bos_token_id=size - 2,
                                 eos_token_id=size - 1)).save_pretrained(encoder, safe_serialization=True)
    for task, text in DESCRIPTIONS.items():
        subprocess.run([options.icma, 'embed', '--encoder', encoder, '--text', text, '-fqo', pathlib.Path(options.out) / f'{task}.safetensors'], check=True)


if __name__ == '__main__':
    main()
