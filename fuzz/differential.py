#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The program against the second reader, which is written from the spec alone: golden vectors with bytes changed at random, and checksums that fit.

    ICMA=build/release/icma fuzz/differential.py [COUNT [SEED]]      (default 300, 1)

Both must decode every checkpoint to the same bits, or both must refuse; where both refuse, with the same class, but for damage that breaks several rules: which is
met first is the reader's business as long as spec 3.9 and 4 leave it open. A disagreement is written to differential-SEED-NUMBER.icma and fails the run.
"""
import collections
import pathlib
import random
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'tests' / 'vectors'))
sys.dont_write_bytecode = True
import check_vectors  # noqa: E402
import mutants  # noqa: E402

# Those that the second reader decodes in a blink.
BASES = ('basis-given', 'basis-mixed', 'bounded-abs', 'bounded-dw', 'bounded-none', 'conv-bf16', 'conv-f32', 'conv-variance', 'generate', 'lossless-chain', 'lossless-one', 'none', 'one', 'texts-own', 'texts-shared', 'two-groups')
INTERESTING = (0, 1, 2, 3, 4, 15, 16, 127, 128, 254, 255)


def change_bytes(draw, raw):
    raw = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        what, at = draw.randrange(6), draw.randrange(len(raw) + 1)
        if what == 0:
            raw[at:at] = bytes([draw.choice(INTERESTING)])
        elif what == 1 and len(raw) > 1:
            del raw[at:at + draw.choice((1, 1, 2, 8))]
        elif at < len(raw):
            raw[at] = draw.choice((raw[at] ^ 1 << draw.randrange(8), draw.choice(INTERESTING), (raw[at] + draw.choice((1, 255))) % 256))
    return bytes(raw) or b'\0'


def change_entry(draw, piece):
    field = draw.choice(('kind', 'group', 'task', 'first', 'count', 'flags', 'coding', 'raw', 'reserved'))
    setattr(piece, field, draw.choice((0, 1, 2, 5, 2 ** 32 - 1 if field in ('group', 'task', 'first', 'count') else 7)) if field != 'raw' else len(piece.data) + draw.choice((-1, 1, 1 << 20)))


def mutate(draw, base):
    draft = mutants.Draft(base)
    # Of a record only what `info` shows is looked at by the program, and only there; the second reader's check() reads it.
    piece = draw.choice([piece for piece in draft.pieces if piece.kind != mutants.RECORD])
    what = draw.randrange(10)
    if what == 0:
        draft.pieces.remove(piece)
    elif what == 1:
        change_entry(draw, piece)
        piece.raw = max(piece.raw if piece.raw is not None else len(piece.data), 0)
    elif what == 2:
        other = draw.choice(draft.pieces)
        piece.data, piece.coding, piece.raw = other.data, other.coding, other.raw
    else:
        draft.store(piece, change_bytes(draw, draft.raw(piece)))
    return draft.build()


def main():
    count, seed = [int(word) for word in sys.argv[1:]] + [300, 1][len(sys.argv) - 1:]
    tally, failures = collections.Counter(), 0
    with tempfile.TemporaryDirectory(prefix='icma-differential-') as shop:
        bundle = pathlib.Path(shop) / 'x.icma'
        for number in range(count):
            draw = random.Random(f'{seed} {number}')
            base = draw.choice(BASES)
            bundle.write_bytes(mutate(draw, base))
            program, said, words = check_vectors.program_sums(bundle, pathlib.Path(shop) / str(number), 'cpu')
            second, second_said, second_words = check_vectors.reader_sums(bundle)
            tally[said if said == second_said else f'{said} and {second_said}'] += 1
            if program != second or said not in ('good', 'corrupt', 'unsupported', 'limit', 'format'):
                failures += 1
                kept = pathlib.Path(f'differential-{seed}-{number}.icma')
                kept.write_bytes(bundle.read_bytes())
                print(f'FAILED {kept}, of {base}: the program: {said} {words}; the second reader: {second_said} {second_words}')
    print(f'{count} archives: ' + ', '.join(f'{what} {n}' for what, n in tally.most_common()) + f'; {failures} disagreements')
    return failures > 0


if __name__ == '__main__':
    sys.exit(main())
