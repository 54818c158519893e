#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train real LoRA adapters with PEFT, on text found on this machine, on a CPU.

  train_adapters.py OUT                            three tasks, rank 4, the last 5 checkpoints
  train_adapters.py OUT --keep 50 --tasks c,man    more checkpoints, other tasks
  train_adapters.py OUT --quick                    two minutes: for trying icma, not for measuring it
  train_adapters.py OUT --base base.safetensors    adapters of a base that is there already

A byte-level transformer (4 Llama layers, width 128, 0.69 M parameters) is trained from scratch on a
mixture of all kinds of text below, then one LoRA a task on that task's text alone. OUT then holds

  <task>/checkpoint-<step>/adapter_model.safetensors   written by PEFT's save_pretrained
  <task>/checkpoint-<step>/adapter_config.json
  <task>/task_vector.safetensors                       one F32 tensor `task_vector`, 128 numbers

which is what `icma pack OUT -o loras.icma` takes. A base.safetensors holds a pre-norm byte-level transformer with GELU, learned
positions and a tied head (`e.weight`, `p.weight`, `layers.N.{n1,n2}.{weight,bias}`, `layers.N.{q,k,v,o,up,down}_proj.{w,b}`,
`nf.{weight,bias}`; 4 heads); its adapters are on its six projections. The task vector is equation 1 of the ICM-LoRA
paper: the mean, over samples of the task, of the base model's last hidden state at the last position.

The same machine, text, seed and thread count give the same files. Packages: see examples/README.md.
"""
import argparse
import gzip
import math
import os
import random
import sys
import time
import types

# The base model is made here and has no page on any hub; without this PEFT would go and look for one.
os.environ.setdefault('HF_HUB_OFFLINE', '1')

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

BASE_NAME = 'bytelm-example'
CONTEXT = 128
HEADS = 4
TARGETS = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']

# task: (folders, endings, Debian package that has more of it)
SOURCES = {
    'c': (['/usr/include'], ('.h',), 'libc6-dev'),
    'doc': (['/usr/share/doc'], ('copyright', 'changelog.gz', 'changelog.Debian.gz'), 'debian-policy'),
    'json': (['/usr/share'], ('.json',), 'iso-codes'),
    'man': (['/usr/share/man/man%d' % n for n in range(1, 9)], ('.gz',), 'manpages-dev'),
    'perl': (['/usr/share/perl', '/usr/share/perl5'], ('.pm', '.pl'), 'perl-modules'),
    'python': (['/usr/lib/python3.%d' % n for n in range(9, 16)], ('.py',), 'libpython3-stdlib'),
}


def read_text(path):
    with (gzip.open if path.endswith('.gz') else open)(path, 'rb') as f:
        return f.read(1 << 16)  # of one file at most this much, so that no giant header is the whole task


def gather(task, wanted, seed):
    """(training bytes, held-out bytes) of a task; files are held out whole, every tenth."""
    folders, endings, _ = SOURCES[task]
    paths = []
    for folder in folders:
        for here, below, names in os.walk(folder):
            below.sort()
            paths += [os.path.join(here, n) for n in names if n.endswith(endings)]
    paths = sorted(p for p in paths if os.path.isfile(p) and not os.path.islink(p))
    random.Random(seed).shuffle(paths)  # a str or int seed here does not depend on PYTHONHASHSEED
    parts, sizes = ([], []), [0, 0]
    for i, path in enumerate(paths):
        side = i % 10 == 9
        if sizes[side] < (wanted // 8 if side else wanted):
            try:
                text = read_text(path)
            except (OSError, EOFError):
                continue
            parts[side].append(text)
            sizes[side] += len(text)
    return b''.join(parts[0]), b''.join(parts[1])


def gather_all(tasks, seed):
    """The text of every source that has enough; the chosen tasks have to."""
    texts = {}
    for task, (folders, _, package) in SOURCES.items():
        text, held_out = gather(task, 2_000_000, seed)
        if len(text) >= 100_000 and len(held_out) >= 10_000:
            texts[task] = [torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in (text, held_out)]
        elif task in tasks:
            sys.exit(f'train_adapters: too little text for task "{task}" ({len(text)} bytes for training, {len(held_out)} held out, '
                     f'under {", ".join(folders)}); leave it out with --tasks, or install more, for instance {package}')
    return texts


def windows(text, starts):
    return torch.stack([text[s:s + CONTEXT + 1] for s in starts]).long()


class Block(torch.nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.n1, self.n2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        for name in ('q_proj', 'k_proj', 'v_proj', 'o_proj'):
            setattr(self, name, torch.nn.Linear(width, width))
        self.up_proj, self.down_proj = torch.nn.Linear(width, inner), torch.nn.Linear(inner, width)

    def forward(self, x, mask):
        n, length, width = x.shape
        h = self.n1(x)
        q, k, v = (p(h).view(n, length, HEADS, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        a = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(width // HEADS) + mask, -1)
        x = x + self.o_proj((a @ v).transpose(1, 2).reshape(n, length, width))
        return x + self.down_proj(torch.nn.functional.gelu(self.up_proj(self.n2(x))))


class ByteModel(torch.nn.Module):
    """The transformer of a base.safetensors, called as the Llama is."""

    def __init__(self, weights):
        super().__init__()
        (vocabulary, width), (inner, _) = weights['e.weight'].shape, weights['layers.0.up_proj.w'].shape
        self.e, self.p = torch.nn.Embedding(vocabulary, width), torch.nn.Embedding(len(weights['p.weight']), width)
        self.layers = torch.nn.ModuleList(Block(width, inner) for _ in range(sum(n.endswith('.q_proj.w') for n in weights)))
        self.nf = torch.nn.LayerNorm(width)
        rename = lambda n: n[:-1] + {'w': 'weight', 'b': 'bias'}[n[-1]] if n.endswith(('.w', '.b')) else n
        self.load_state_dict({rename(n): w.float() for n, w in weights.items()})

    def forward(self, input_ids, output_hidden_states=False):
        length = input_ids.shape[1]
        mask = torch.full((length, length), -1e9).triu(1)
        x = self.e(input_ids) + self.p.weight[:length]
        for layer in self.layers:
            x = layer(x, mask)
        x = self.nf(x)
        return types.SimpleNamespace(logits=x @ self.e.weight.T, hidden_states=[x])


def is_file(base):
    return base is not None and base.endswith('.safetensors')


def new_base(options):
    """The base model: random, or as its file has it."""
    if is_file(options.base):
        return ByteModel(load_file(options.base))
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, use_cache=False, bos_token_id=None, eos_token_id=None,
        _name_or_path=BASE_NAME))


def name_of(options):
    return os.path.basename(options.base)[:-len('.safetensors')] if is_file(options.base) else BASE_NAME


def loss_of(model, batch):
    logits = model(input_ids=batch[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.reshape(-1, 256), batch[:, 1:].reshape(-1))


@torch.no_grad()
def bits_per_byte(model, text, sequences=256):
    starts = torch.linspace(0, len(text) - CONTEXT - 1, sequences).long().tolist()
    model.eval()
    total = sum(loss_of(model, windows(text, starts[i:i + 32])).item() * len(starts[i:i + 32]) for i in range(0, sequences, 32))
    return total / sequences / math.log(2)


def cosine(step, steps, warmup, peak, final):
    """Learning rate: linear warm-up, then half a cosine from peak to final * peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    turn = (step - warmup) / max(1, steps - warmup)
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * turn)) / 2)


def train(model, batches, steps, peak, final, after_step=lambda step: None):
    weights = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(weights, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for step in range(steps):
        adam.param_groups[0]['lr'] = cosine(step, steps, min(50, steps // 10 + 1), peak, final)
        adam.zero_grad()
        loss_of(model, next(batches)).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        after_step(step + 1)


def mixture(texts, batch):
    """Endless batches, every row from a random place of a random text."""
    texts = list(texts)
    while True:
        rows = [texts[i] for i in torch.randint(len(texts), (batch,)).tolist()]
        yield torch.cat([windows(t, [torch.randint(len(t) - CONTEXT, ()).item()]) for t in rows])


@torch.no_grad()
def task_vector(base, text, samples):
    base.eval()
    batch = windows(text, torch.linspace(0, len(text) - CONTEXT - 1, samples).long().tolist())[:, :CONTEXT]
    last = [base(input_ids=part, output_hidden_states=True).hidden_states[-1][:, -1] for part in batch.split(32)]
    return torch.cat(last).mean(0).float().contiguous()


def train_base(options, texts):
    torch.manual_seed(options.seed)
    base = new_base(options)
    if is_file(options.base):
        return base
    saved = options.base and os.path.join(options.base, 'model.safetensors')
    if saved and os.path.exists(saved):
        base.load_state_dict(load_file(saved), strict=False)  # the tied head is stored once
        return base
    train(base, mixture(texts, options.batch), options.base_steps, 3e-3, 0.05)
    if saved:
        base.save_pretrained(options.base)
    return base


def save_checkpoint(model, folder):
    model.save_pretrained(folder, save_embedding_layers=False)
    os.remove(os.path.join(folder, 'README.md'))  # PEFT's model card: a form with every field empty


def make_model(options, base):
    """The base with a new adapter on it."""
    targets = TARGETS if not is_file(options.base) else [t for t in TARGETS if t != 'gate_proj']
    model = get_peft_model(base, LoraConfig(task_type=None if is_file(options.base) else 'CAUSAL_LM', r=options.rank,
                                            lora_alpha=2 * options.rank, lora_dropout=0.0, target_modules=targets))
    model.peft_config['default'].target_modules = targets  # PEFT holds a set, whose order changes from run to run
    return model


def train_task(options, base_state, task, text, held_out, say):
    torch.manual_seed(options.seed)  # equal for all tasks: every A starts from the same values
    base = new_base(options)
    base.load_state_dict(base_state)
    folder = os.path.join(options.out, task)
    os.makedirs(folder, exist_ok=options.force)
    vector = task_vector(base, text, options.samples)
    # One key only: safetensors writes several in an order that changes from run to run.
    save_file({'task_vector': vector}, os.path.join(folder, 'task_vector.safetensors'),
              {'encoder': f'{name_of(options)}: last layer, last position, mean of {options.samples} samples'})
    before = bits_per_byte(base, held_out)
    model = make_model(options, base)
    steps = options.epochs * options.steps
    kept = {(options.epochs - i * options.save_every) * options.steps for i in range(options.keep)}

    def after_step(step):
        if step in kept:
            save_checkpoint(model, os.path.join(folder, f'checkpoint-{step}'))

    started = time.monotonic()
    train(model, mixture([text], options.batch), steps, options.lr, options.final_lr, after_step)
    say(f'{task:8} {before:6.3f} -> {bits_per_byte(model, held_out):6.3f} bits a byte on held-out text, '
        f'{time.monotonic() - started:.0f} s, {len(kept)} checkpoints in {folder}')


def parse():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('out', metavar='OUT', help='folder to write; its task folders must not exist yet')
    ap.add_argument('--tasks', default='c,doc,python', help='comma-separated, of: ' + ' '.join(SOURCES) + ' (default %(default)s)')
    ap.add_argument('--rank', type=int, default=4, help='LoRA rank; alpha is twice that (default %(default)s)')
    ap.add_argument('--keep', type=int, default=5, help='last checkpoints to keep of each task (default %(default)s)')
    ap.add_argument('--save-every', type=int, default=1, metavar='E', help='epochs between two kept checkpoints (default %(default)s)')
    ap.add_argument('--epochs', type=int, default=25, help='epochs a task; all windows of text are fresh ones (default %(default)s)')
    ap.add_argument('--steps', type=int, default=16, help='optimiser steps an epoch (default %(default)s)')
    ap.add_argument('--batch', type=int, default=16, help='sequences of 128 bytes a step (default %(default)s)')
    ap.add_argument('--lr', type=float, default=2e-3, help='peak learning rate of the adapters (default %(default)s)')
    ap.add_argument('--final-lr', type=float, default=0.05, metavar='F', help='share of it left at the end (default %(default)s)')
    ap.add_argument('--base', metavar='PATH',
                    help='a folder: take the base model from it, or keep it there when it is not there yet; or a file as described above')
    ap.add_argument('--base-steps', type=int, default=1200, help='steps of base training (default %(default)s)')
    ap.add_argument('--samples', type=int, default=256, help='samples behind a task vector (default %(default)s)')
    ap.add_argument('--seed', type=int, default=0)
    ap.add_argument('--threads', type=int, default=2)
    ap.add_argument('--quick', action='store_true', help='60 base steps, 8 epochs of 4 steps: weak adapters, soon')
    ap.add_argument('--held-out', action='store_true', help='train nothing: write the text that judges the tasks to OUT/val_<task>.bin')
    ap.add_argument('-f', '--force', action='store_true', help='write into task folders that exist')
    options = ap.parse_args()
    if options.quick:
        options.base_steps, options.epochs, options.steps, options.samples = 60, 8, 4, 32
    options.tasks = options.tasks.split(',')
    unknown = [t for t in options.tasks if t not in SOURCES]
    if unknown:
        ap.error(f'no such task: {", ".join(unknown)}; there are {", ".join(SOURCES)}')
    if options.keep < 1 or (options.keep - 1) * options.save_every >= options.epochs:
        ap.error('--keep and --save-every ask for more checkpoints than there are epochs')
    present = [t for t in options.tasks if os.path.exists(os.path.join(options.out, t))]
    if present and not options.force and not options.held_out:
        ap.error(f'{os.path.join(options.out, present[0])} exists; give another folder, or --force')
    return options


def write_held_out(options, texts):
    os.makedirs(options.out, exist_ok=True)
    for task in options.tasks:
        with open(os.path.join(options.out, f'val_{task}.bin'), 'wb') as f:
            f.write(texts[task][1].numpy().tobytes())


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    say = lambda words: print(words, flush=True)
    started = time.monotonic()
    texts = gather_all(options.tasks, options.seed)
    if options.held_out:
        return write_held_out(options, texts)
    # The base sees every kind of text there is, so that it does not depend on the tasks and leaves each something to learn.
    base = train_base(options, [text for text, _ in texts.values()])
    size = sum(p.numel() for p in base.parameters())
    say(f'base     {size} parameters, {len(texts)} kinds of text ({", ".join(texts)}), {time.monotonic() - started:.0f} s')
    for task in options.tasks:
        train_task(options, base.state_dict(), task, *texts[task], say)


if __name__ == '__main__':
    main()
