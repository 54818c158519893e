# SPDX-License-Identifier: Apache-2.0
"""The paper's tables as this project can measure them, in Markdown."""
import os

import numpy as np

import paper_steps as steps
from rd.files import NotMeasured

# name, what the tables call it, whether a seed changes what it generates
GENERATORS = (('soup', 'Model Soup (average)', False), ('diffusion', 'diffusion (after COND P-DIFF)', True), ('conv', 'convolutional CVAE (ICM-LoRA)', True),
              ('basis', 'basis CVAE (icma\'s own)', True))
GENERATE = ('--tier', 'generate')


class Bench:
    def __init__(self, o, icma, ledger, gain):
        self.o, self.icma, self.ledger, self.judge, self.missing, self.trees, self.costs = o, icma, ledger, gain, {}, {}, {}

    def tree(self):
        return self.keep('tree', lambda: steps.Tree(os.path.basename(os.path.normpath(self.o.tree)), self.o.tree, self.o.last, self.judge))

    def trainer(self):
        o = self.o
        return self.keep('trainer', lambda: steps.Trainer(self.ledger, o.root, o.work, o.lm, self.tree().tasks, o.training, o.sequences))

    def rank_tree(self, rank):
        return self.keep(rank, lambda: self.trainer().tree(rank))

    def keep(self, name, make):
        if name not in self.trees:
            self.trees[name] = make()
        return self.trees[name]

    def words(self, generator, *more):
        return ('--generator', generator, '--seed', str(self.o.seed), *self.o.words.get(generator, ()), *more)

    def seeds(self, generator):
        return range(1, self.o.seeds + 1) if dict((g, s) for g, _, s in GENERATORS)[generator] else (1,)

    def pack(self, tree, generator, label, *more, like=None):
        result = self.icma.pack(tree, label, self.words(generator, *more), like)
        self.costs[f'{tree.name} {label}'] = result
        return result

    def samples(self, tree, generator, label, *more):
        """bits per character: seeds x tasks."""
        self.pack(tree, generator, label, *more)
        by_seed = [self.icma.sampled(tree, label, self.words(generator, *more), seed) for seed in self.seeds(generator)]
        return np.array([[s[t] for t in tree.tasks] for s in by_seed])

    def originals(self, tree):
        base, original = self.icma.originals(tree)
        return np.array([base[t] for t in tree.tasks]), np.array([original[t] for t in tree.tasks])

    def gain(self, tree, bpc):
        """Gain kept: the mean over tasks of (base - x) / (base - original), of the mean over seeds."""
        base, original = self.originals(tree)
        return float(np.mean((base - np.mean(np.atleast_2d(bpc), 0)) / (base - original)))

    def cell(self, what, make):
        """Text of a cell; a dash where it cannot be measured, and the reason for the end of the report."""
        try:
            return make()
        except NotMeasured as why:
            self.missing.setdefault(str(why), []).append(what)
            return '–'


def table(head, rows):
    return ['| ' + ' | '.join(head) + ' |', '|---' + '|--:' * (len(head) - 1) + '|'] + ['| ' + ' | '.join(row) + ' |' for row in rows]


def perplexity(bpc):
    return 2 ** bpc


def pair(bpc):
    return f'{bpc:.4f} / {perplexity(bpc):.3f}'


def table2(b):
    tree = b.tree()
    rows = []

    def whole(name, get):
        values = b.cell(f'table 2, {name}', get)
        if isinstance(values, str):
            rows.append([name] + ['–'] * (len(tree.tasks) + 3))
            return
        means = np.mean(values, 0)
        spread = f'{np.max(np.abs(values - means)):.4f}' if len(values) > 1 else ''
        rows.append([name] + [pair(x) for x in means] + [pair(np.mean(means)), f'{b.gain(tree, values):.4f}', spread])
    whole('original LoRA', lambda: b.originals(tree)[1][None])
    whole('original model', lambda: b.originals(tree)[0][None])
    for generator, name, _ in GENERATORS:
        whole(name, lambda: b.samples(tree, generator, generator, *GENERATE))
    return ['## Table 2: language modelling', '',
            f'Bits per character / perplexity on held-out text, {b.o.sequences} sequences of 128 a task, of adapters that the archive *generates* from a task\'s condition alone (`icma '
            f'unpack --sample --seed 1..{b.o.seeds}`, means over the seeds). *Original* is each task\'s last checkpoint. The model reads bytes, so a character is a byte and '
            'perplexity is 2^bpc: the perplexity per byte, not comparable with the paper\'s, which is per token. *Gain kept* is (base - x) / (base - original), the '
            'mean over tasks; *seeds* the largest difference of a seed to the mean.', '',
            *table(['', *tree.tasks, 'mean', 'gain kept', 'seeds'], rows)]


def table3(b):
    ranks = b.o.ranks
    head = ['', *(f'rank {r}' for r in ranks)]

    def line(name, get):
        return [name] + [b.cell(f'table 3, {name}, rank {r}', lambda: get(b.rank_tree(r))) for r in ranks]

    def size(tree, generator, label, *more, like=None):
        total = b.pack(tree, generator, label, *more, like=like)['bytes']['total']
        return f'{total:,} ({100 * total / tree.bytes:.2f} %)'
    rows = [line('parameters of an adapter', lambda t: f'{t.parameters:,}'), line('checkpoints', lambda t: str(len(t.checkpoints))),
            line('original LoRAs', lambda t: f'{t.bytes:,}')]
    for generator, name, _ in GENERATORS:
        rows.append(line(f'{name}, generate', lambda t: size(t, generator, generator, *GENERATE)))
    for generator, name, _ in GENERATORS:
        rows.append(line(f'{name}, bounded', lambda t: size(t, generator, f'{generator} bounded', like=generator)))
    rows.append(line('no generator, bounded', lambda t: size(t, 'none', 'none bounded')))
    return ['## Table 3: storage', '',
            'Bytes of the whole archive, and per cent of the adapter files that went in. *generate* (`--tier generate`) keeps what makes one adapter a task, as the paper does; '
            '*bounded* (the default tier) gives every checkpoint back with a relative error of dW of at most 0.1 in every module.', '', *table(head, rows)]


def table4(b):
    names = [('original LoRA', None), *((name, g) for g, name, _ in GENERATORS)]
    rows, gains = [], []
    for rank in b.o.ranks:
        def get(generator):
            tree = b.rank_tree(rank)
            return b.samples(tree, generator, generator, *GENERATE) if generator else b.originals(tree)[1][None]
        cells = [b.cell(f'table 4, {name}, rank {rank}', lambda: get(g)) for name, g in names]
        parameters = b.cell(f'table 4, rank {rank}', lambda: f'{b.rank_tree(rank).parameters:,}')
        base = b.cell(f'table 4, rank {rank}', lambda: f'{np.mean(b.originals(b.rank_tree(rank))[0]):.4f}')
        rows.append([str(rank), parameters, base] + [c if isinstance(c, str) else f'{np.mean(c):.4f}' for c in cells])
        gains.append([str(rank)] + [c if isinstance(c, str) else f'{b.gain(b.rank_tree(rank), c):.4f}' for c in cells[1:]])
    t = b.o.training
    return ['## Table 4: rank', '',
            f'Adapters of the same base, trained by `examples/train_adapters.py --base` ({t["epochs"]} epochs of {t["steps"]} steps, the last {t["keep"]} kept) and judged on the text that it holds out '
            '(whole files); bits per character, mean over tasks.', '', *table(['rank', 'parameters', 'base', *(n for n, _ in names)], rows), '', 'Gain kept:', '', *table(['rank', *(n for n, _ in names[1:])], gains)]


def table5(b):
    rows = []
    for layers in b.o.layers:
        row = [str(layers)]
        for rank in b.o.layer_ranks:
            def get():
                tree = b.rank_tree(rank)
                more = (*GENERATE, '--layers', str(layers))
                bpc = b.samples(tree, 'conv', f'conv {layers} layers', *more)
                packed = b.pack(tree, 'conv', f'conv {layers} layers', *more)
                return f'{np.mean(bpc):.4f} | {b.gain(tree, bpc):.4f} | {packed["bytes"]["total"]:,} | {packed["train"]:.0f}'
            cell = b.cell(f'table 5, {layers} layers, rank {rank}', get)
            row += cell.split(' | ') if ' | ' in cell else ['–'] * 4
        rows.append(row)
    head = ['layers', *(f'rank {r}: {w}' for r in b.o.layer_ranks for w in ('bpc', 'gain kept', 'bytes', 'training, s'))]
    return ['## Table 5: number of convolution layers', '', 'The convolutional CVAE with so many layers in the encoder and in the decoder, on adapters of table 4; bits per character, mean over tasks.', '',
            *table(head, rows)]


def table6(b):
    whole = b.tree()
    kinds = (('task vectors as given', lambda: whole),
             ('none given: learned', lambda: b.keep('learned', lambda: steps.with_vectors(whole, os.path.join(b.o.work, 'learned'), None))),
             ('random', lambda: b.keep('random', lambda: steps.with_vectors(whole, os.path.join(b.o.work, 'random'), steps.random_vectors(whole, b.o.seed)))))
    which = [(g, name) for g, name, seeded in GENERATORS if seeded]
    rows = []
    for name, get in kinds:
        row = [name]
        for generator, _ in which:
            def measure():
                bpc = b.samples(get(), generator, generator, *GENERATE)
                return f'{np.mean(bpc):.4f} | {b.gain(get(), bpc):.4f}'
            cell = b.cell(f'table 6, {name}, {generator}', measure)
            row += cell.split(' | ') if ' | ' in cell else ['–'] * 2
        rows.append(row)
    head = ['condition', *(f'{name}: {w}' for _, name in which for w in ('bpc', 'gain kept'))]
    return ['## Table 6: condition vectors', '',
            'The paper compares text and image encoders. Here: the base model\'s hidden states (eq. 1, as the adapters came), conditions learned with the generator, and random ones '
            'from N(0, 1), which only tell tasks apart. Bits per character, mean over tasks.', '', *table(head, rows)]


TABLES = {2: table2, 3: table3, 4: table4, 5: table5, 6: table6}


def costs(b):
    rows = [[name, f'{c["bytes"]["total"]:,}', f'{c["bytes"]["generator"]:,}', f'{c["train"]:.1f}', f'{c["seconds"]:.1f}' + (' (continued)' if c['resumed'] else '')]
            for name, c in sorted(b.costs.items())]
    return ['## What each archive cost', '', f'{b.o.threads} thread{"s" if b.o.threads > 1 else ""}; on a machine with other work these are upper bounds.', '',
            *table(['adapters and generator', 'bytes', 'of them generator', 'training, s', 'packing in all, s'], rows)]


def reasons(b):
    lines = ['## Not measured', '', '- Table 1, detection: needs Florence-2 and COCO.']
    for why, what in b.missing.items():
        names = sorted({w.split(',')[0] for w in what}) if why.startswith('not measured') else dict.fromkeys(what)
        lines.append(f'- {why}: ' + '; '.join(names))
    return lines
