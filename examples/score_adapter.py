#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Bits a byte on a task's held-out text, of a base model alone or with an adapter on it: a command for `icma report --eval`.

  score_adapter.py BASE TEXT TASK            BASE: a folder kept by train_adapters.py --base
  score_adapter.py BASE TEXT TASK ADAPTER    TEXT: a folder written by train_adapters.py --held-out
"""
import pathlib
import sys

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from train_adapters import bits_per_byte


def main():
    if len(sys.argv) not in (4, 5) or sys.argv[1].startswith('-'):
        sys.exit(__doc__)
    base, text, task, *adapter = sys.argv[1:]
    model = LlamaForCausalLM.from_pretrained(base)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter[0])
    held_out = pathlib.Path(text, f'val_{task}.bin').read_bytes()
    print(f'{bits_per_byte(model, torch.frombuffer(bytearray(held_out), dtype=torch.uint8)):.6f}')


if __name__ == '__main__':
    main()
