#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Steering: what adapters are worth that come from a condition alone, in Markdown.

  kinds     which vector serves as the condition: gain kept by `unpack --sample` (the paper's table 6)
  left-out  all tasks but one are packed, and that one is generated from its vector; beside it the adapter of the nearest packed
            task, that of the best one (which nobody could choose in advance), and the average of all packed ones
  mixes     `generate --mix` of two tasks, scored on both; beside the weighted average of the two adapters' weights

Gain kept is (base - adapter) / (base - original) in bits a character on held-out text: 1 is the task's own adapter, 0 none.
The text in LM (or --held-out) is cut in two: vectors are made from the first half, scores from the second. Archives, adapters and scores are kept in --work.

  measure.py ../shared/loras ../shared/lm --generators basis,soup --parts kinds,left-out,mixes
"""
import argparse
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
MODEL = 'adapter_model.safetensors'
# One sentence a task, for what makes vectors of words.
DESCRIPTIONS = {
    'c': 'C header files: declarations, macros, structs and comments', 'cmake': 'CMake modules: commands, variables and conditions of a build system',
    'doc': 'changelogs and copyright files of packages: licences, versions, names and dates', 'html': 'HTML pages of documentation: tags, links and text',
    'js': 'JavaScript source files of programs and libraries: functions, objects and comments', 'json': 'JSON data files: objects, arrays, strings and numbers',
    'man': 'manual pages in roff: macros, options and descriptions of commands', 'md': 'Markdown documents: headings, lists, links and code',
    'perl': 'Perl modules: subroutines, variables and documentation', 'python': 'Python source files of programs and libraries: functions, classes and comments',
    'rst': 'reStructuredText documents: headings, references and directives', 'xml': 'XML data files: elements, attributes and text'}
WORD_NUMBERS, GRAM_NUMBERS = 256, 512
LEAST_GAIN = 0.02  # bits a character
SMALL_CONV = ['--generator', 'conv', '--epochs', '60']


def load_lm(folder):
    spec = importlib.util.spec_from_file_location('lm', os.path.join(folder, 'eval.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- vectors ----------------------------------------------------------------------------------------------------------

def hashed(pieces, numbers):
    """A bag of pieces: each adds or takes 1 at a place that its hash tells."""
    out = np.zeros(numbers)
    for piece, count in pieces.items():
        digest = hashlib.blake2b(piece, digest_size=8).digest()
        out[int.from_bytes(digest[:7], 'little') % numbers] += count if digest[7] & 1 else -count
    return out


def grams(text, n):
    found, counts = np.unique(np.lib.stride_tricks.sliding_window_view(np.frombuffer(text, np.uint8), n), axis=0, return_counts=True)
    return {row.tobytes(): float(count) for row, count in zip(found, counts)}


def words_vector(task):
    """A sentence about the task, as a hashed bag of words and of character trigrams."""
    text = DESCRIPTIONS[task].lower()
    pieces = {word.strip(',:').encode(): 2.0 for word in text.split() if len(word) > 3}
    vector = hashed(pieces | grams(text.encode(), 3), WORD_NUMBERS)
    return vector / np.linalg.norm(vector)


def grams_vector(text):
    """The task's text itself, as a hashed bag of trigrams: square roots of their shares."""
    counts = grams(text.tobytes(), 3)
    total = sum(counts.values())
    return hashed({k: (v / total) ** 0.5 for k, v in counts.items()}, GRAM_NUMBERS)


def states_vector(lm, base, text, samples=256):
    """Equation 1 of the paper: the base model's last state at the last position, the mean over windows of the text."""
    starts = np.linspace(0, len(text) - lm.CONTEXT - 1, samples).astype(int)
    tokens = np.stack([text[s:s + lm.CONTEXT] for s in starts]).astype(np.int64)
    seen = []
    plain = lm.norm

    def remember(x, w, b):
        y = plain(x, w, b)
        if w is base['nf.weight']:
            seen.append(y[:, -1])
        return y
    lm.norm = remember
    try:
        for part in np.array_split(tokens, samples // 32):
            lm.loss(base, np.concatenate([part, part[:, -1:]], 1))  # one token more: the last position is that of the text
    finally:
        lm.norm = plain
    return np.concatenate(seen).astype(np.float64).mean(0)


def write_vector(path, values):
    data = np.asarray(values, '<f4').tobytes()
    head = json.dumps({'task_vector': {'dtype': 'F32', 'shape': [len(values)], 'data_offsets': [0, len(data)]}}).encode()
    head += b' ' * (-len(head) % 8)
    pathlib.Path(path).write_bytes(struct.pack('<Q', len(head)) + head + data)


# --- adapters ---------------------------------------------------------------------------------------------------------

class Bench:
    def __init__(self, options):
        self.o = options
        self.lm = load_lm(options.lm)
        self.base = self.lm.load_safetensors(os.path.join(options.lm, 'base.safetensors'))
        self.tasks = sorted(d for d in os.listdir(options.tree) if os.path.isdir(os.path.join(options.tree, d)))
        held = options.held_out or options.lm
        self.texts = {}
        for task in self.tasks:
            text = np.fromfile(os.path.join(held, f'val_{task}.bin'), np.uint8)
            self.texts[task] = (text[:len(text) // 2], text[len(text) // 2:])
        self.work = pathlib.Path(options.work).resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.cache_path = self.work / 'scores.json'
        self.scores = json.loads(self.cache_path.read_text()) if self.cache_path.exists() else {}
        self.vectors = self.make_vectors()
        self.last = {task: self.checkpoints(task)[-1] for task in self.tasks}
        self.base_bits = {task: self.bits(task, None) for task in self.tasks}
        self.own_bits = {task: self.bits(task, self.last[task]) for task in self.tasks}
        # Of an adapter that gains nothing on this text no share can be kept: such a task is packed, and not scored.
        self.scored = [task for task in self.tasks if self.base_bits[task] - self.own_bits[task] > LEAST_GAIN]

    def checkpoints(self, task):
        folder = os.path.join(self.o.tree, task)
        found = sorted((d for d in os.listdir(folder) if d.startswith('checkpoint-')), key=lambda d: int(d.split('-')[1]))
        return [os.path.join(folder, d) for d in found]

    def make_vectors(self):
        draw = np.random.default_rng(1)
        kinds = {'given': {}, 'states': {}, 'n-grams': {}, 'words': {}, 'random': {}}
        for task in self.tasks:
            text = self.texts[task][0]
            given = self.lm.load_safetensors(os.path.join(self.o.tree, task, 'task_vector.safetensors'))
            kinds['given'][task] = next(iter(given.values()))
            kinds['states'][task] = states_vector(self.lm, self.base, text)
            kinds['n-grams'][task] = grams_vector(text)
            kinds['words'][task] = words_vector(task)
            kinds['random'][task] = draw.normal(size=128)
        kinds['learned'] = None
        for spec in self.o.vectors:
            kind, folder = spec.split('=', 1)
            kinds[kind] = {task: next(iter(self.lm.load_safetensors(os.path.join(folder, f'{task}.safetensors')).values())) for task in self.tasks}
        return kinds

    def bits(self, task, adapter):
        """Bits a character of an adapter (a folder; None: the base) on the task's second half of text."""
        name = hashlib.sha256(pathlib.Path(adapter, MODEL).read_bytes()).hexdigest()[:16] if adapter else 'base'
        key = f'{task} {name} {self.o.sequences} {hashlib.sha256(self.texts[task][1].tobytes()).hexdigest()[:8]}'
        if key not in self.scores:
            loaded = self.lm.load_adapter(str(adapter)) if adapter else None
            self.scores[key] = float(self.lm.bits_per_char(self.base, loaded, self.texts[task][1], self.o.sequences))
            self.cache_path.write_text(json.dumps(self.scores))
        return self.scores[key]

    def gain(self, task, adapter):
        return (self.base_bits[task] - self.bits(task, adapter)) / (self.base_bits[task] - self.own_bits[task])

    def icma(self, *words):
        done = subprocess.run([self.o.icma, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f'measure.py: icma {" ".join(map(str, words))}\n{done.stderr}')
        return done.stdout

    def pack(self, tasks, kind, generator):
        """The archive of these tasks' checkpoints, with such vectors as conditions; made once."""
        name = hashlib.sha256(json.dumps([tasks, kind, generator, self.o.keep, self.o.conv]).encode()).hexdigest()[:16]
        path = self.work / f'{name}.icma'
        if path.exists():
            return path
        tree = self.work / f'{name}.tree'
        shutil.rmtree(tree, ignore_errors=True)
        for task in tasks:
            (tree / task).mkdir(parents=True)
            for folder in self.checkpoints(task)[-self.o.keep:]:
                os.symlink(os.path.abspath(folder), tree / task / os.path.basename(folder))
            if self.vectors[kind]:
                write_vector(tree / task / 'task_vector.safetensors', self.vectors[kind][task])
        how = self.o.conv.split() if generator == 'conv' else ['--generator', generator]
        self.icma('pack', tree, '-o', path, '--tier', 'latent', '-T', self.o.threads, '-q', *how)
        shutil.rmtree(tree)
        return path

    def generate(self, bundle, *words):
        """(folder of the adapter, what was told)"""
        name = hashlib.sha256(json.dumps([bundle.name, *map(str, words)]).encode()).hexdigest()[:16]
        out = self.work / f'generated-{name}'
        told = json.loads(self.icma('generate', bundle, *words, '-C', out, '-f', '--json', '-q'))
        return out, told

    def average(self, weights):
        """The weighted average of tasks' last adapters: every tensor by itself, A and B alike."""
        folder = self.work / ('average-' + hashlib.sha256(json.dumps(sorted(weights.items())).encode()).hexdigest()[:16])
        raws = {task: pathlib.Path(self.last[task], MODEL).read_bytes() for task in weights}
        starts = {task: 8 + struct.unpack('<Q', raw[:8])[0] for task, raw in raws.items()}
        first = next(iter(weights))
        if any(raw[8:starts[task]] != raws[first][8:starts[first]] for task, raw in raws.items()):
            sys.exit('measure.py: adapters with different headers cannot be averaged here')
        total = sum(w * np.frombuffer(raws[task][starts[task]:], '<f4').astype(np.float64) for task, w in weights.items())
        folder.mkdir(exist_ok=True)
        (folder / MODEL).write_bytes(raws[first][:starts[first]] + total.astype('<f4').tobytes())
        shutil.copyfile(os.path.join(self.last[first], 'adapter_config.json'), folder / 'adapter_config.json')
        return folder


# --- tables -----------------------------------------------------------------------------------------------------------

def table(head, rows):
    def cell(x):
        return x if isinstance(x, str) else f'{x:.3f}'
    print('| ' + ' | '.join(head) + ' |')
    print('|---' * len(head) + '|')
    for row in rows:
        print('| ' + ' | '.join(map(cell, row)) + ' |')
    print(flush=True)


def with_mean(rows):
    return rows + [['**mean**', *[float(np.mean(column)) if all(isinstance(x, float) for x in column) else '' for column in list(zip(*rows))[1:]]]]


def base_table(b):
    print(f'### The adapters\n\n{len(b.tasks)} tasks, the last {b.o.keep} checkpoints of each; bits a character on the second half of the held-out text.\n')
    table(['task', 'base', 'own adapter', 'scored'], [[task, b.base_bits[task], b.own_bits[task], 'yes' if task in b.scored else 'no: it gains nothing here'] for task in b.tasks])


def kinds_table(b):
    print('### Which vector is the condition (table 6 of the paper)\n\nGain kept, mean over tasks: an adapter drawn from a task\'s condition, `unpack --sample`, mean of seeds 1 and 2; and the worst task.\n')
    rows = []
    for kind in b.o.kinds or b.vectors:
        row = [kind, str(len(next(iter(b.vectors[kind].values())))) if b.vectors[kind] else 'learned']
        for generator in b.o.generators:
            bundle, gains = b.pack(b.tasks, kind, generator), {}
            for seed in (1, 2):
                out = b.work / f'sample-{bundle.stem}-{seed}'
                b.icma('unpack', bundle, '--sample', '--seed', seed, '-C', out, '-f', '-q')
                for task in b.scored:
                    gains.setdefault(task, []).append(b.gain(task, out / task))
            means = [np.mean(g) for g in gains.values()]
            row += [float(np.mean(means)), float(min(means))]
        rows.append(row)
    table(['condition', 'numbers', *[f'{g}: {w}' for g in b.o.generators for w in ('mean', 'worst')]], rows)


def left_out_table(b):
    cross = {(t, u): b.gain(t, b.last[u]) for t in b.scored for u in b.tasks if t != u}
    print('### One task left out\n\nGain kept on the task that was not packed. "best" is the packed adapter that does best on it, which takes an evaluation to find; "average" the mean of the packed tasks\' last adapters.\n')
    rest = {task: [t for t in b.tasks if t != task] for task in b.scored}
    average = {task: b.gain(task, b.average({t: 1 / len(rest[task]) for t in rest[task]})) for task in b.scored}
    rows = []
    for task in b.scored:
        best = max(rest[task], key=lambda t: cross[task, t])
        rows.append([task, average[task], f'{cross[task, best]:.3f} ({best})', float(np.mean([cross[task, t] for t in rest[task]]))])
    print('Without a condition:\n')
    table(['task', 'average', 'best', 'mean of packed adapters'], with_mean(rows))
    for generator in b.o.generators:
        summary = []
        for kind in b.o.left_kinds:
            rows = []
            for task in b.scored:
                bundle = b.pack(rest[task], kind, generator)
                vector = b.work / f'{kind}-{task}.safetensors'
                write_vector(vector, b.vectors[kind][task])
                out, told = b.generate(bundle, '--condition', vector)
                near = told['nearest']
                rows.append([task, b.gain(task, out), cross[task, near['task']], average[task], near['task'], near['cosine'], near['distance'], told['seen']])
            if kind == b.o.left_kinds[0]:
                print(f'{generator}, condition {kind}:\n')
                table(['left out', 'generated', 'nearest task\'s adapter', 'average', 'nearest', 'cosine', 'distance', 'seen'], with_mean(rows))
            means = [float(np.mean([row[c] for row in rows])) for c in (1, 2, 3, 7)]
            summary.append([kind, *means, f'{min(row[1] for row in rows):.3f} to {max(row[1] for row in rows):.3f}', *[f'{sum(row[1] > row[c] for row in rows)} of {len(rows)}' for c in (2, 3)]])
        print(f'{generator}, means over tasks:\n')
        table(['condition', 'generated', 'nearest', 'average', 'seen', 'generated, worst to best', 'better than nearest', 'better than average'], summary)


def mixes_table(b):
    print('### Two tasks mixed\n\nGain kept on the first and the second task: `generate --mix` with the first task\'s weight, and the same average of the two adapters\' weights.\n')
    for generator in b.o.generators:
        bundle, rows = b.pack(b.tasks, 'given', generator), []
        for one, two in list(itertools.combinations(b.scored, 2))[:b.o.pairs]:
            for weight in (0.25, 0.5, 0.75):
                out, _ = b.generate(bundle, '--mix', f'{one}:{weight}', '--mix', f'{two}:{1 - weight}')
                plain = b.average({one: weight, two: 1 - weight})
                gains = [b.gain(task, folder) for folder in (out, plain) for task in (one, two)]
                rows.append([f'{one}, {two}', f'{weight}', *gains])
        shown = []
        for weight in ('0.25', '0.5', '0.75'):
            chosen = [row for row in rows if row[1] == weight]
            shown.append([weight, *[float(np.mean([row[c] for row in chosen])) for c in range(2, 6)], max(abs(row[c] - row[c + 2]) for row in chosen for c in (2, 3))])
        print(f'{generator}, means over {len(chosen)} pairs:\n')
        table(['weight of the first', 'mix, first', 'mix, second', 'average, first', 'average, second', 'largest difference of a pair'], shown)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('tree', help='tasks with checkpoints and task_vector.safetensors')
    ap.add_argument('lm', help='folder with eval.py, base.safetensors and val_<task>.bin')
    ap.add_argument('--held-out', metavar='DIR', help='folder of the val_<task>.bin, if it is another')
    ap.add_argument('--icma', default=str(HERE.parents[1] / 'build/release/icma'))
    ap.add_argument('--work', default='build/steering', help='archives, adapters and scores (default %(default)s)')
    ap.add_argument('--generators', default='basis', type=lambda s: s.split(','), help='of basis, soup, conv, diffusion (default %(default)s)')
    ap.add_argument('--parts', default='kinds,left-out,mixes', type=lambda s: s.split(','))
    ap.add_argument('--kinds', default=None, type=lambda s: s.split(','), help='vectors for the table of kinds (default: all)')
    ap.add_argument('--left-kinds', default='given', type=lambda s: s.split(','), help='vectors for the tasks left out (default %(default)s)')
    ap.add_argument('--vectors', action='append', default=[], metavar='KIND=DIR', help='more vectors: DIR/<task>.safetensors')
    ap.add_argument('--keep', type=int, default=10, help='last checkpoints to pack of each task (default %(default)s)')
    ap.add_argument('--pairs', type=int, default=10, help='pairs to mix (default %(default)s)')
    ap.add_argument('--conv', default=' '.join(SMALL_CONV), help='options of pack for conv (default "%(default)s")')
    ap.add_argument('--sequences', type=int, default=128, help='windows of text a score (default %(default)s)')
    ap.add_argument('--threads', type=int, default=1)
    options = ap.parse_args()
    bench = Bench(options)
    base_table(bench)
    for part, show in (('kinds', kinds_table), ('left-out', left_out_table), ('mixes', mixes_table)):
        if part in options.parts:
            show(bench)


if __name__ == '__main__':
    main()
