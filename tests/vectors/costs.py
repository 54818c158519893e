#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the costliest files of at most 1 MiB take of the program before it refuses them, or before it starts to decode: processor time and peak memory.

    ICMA=build/release/icma tests/vectors/costs.py            a table; fails over 100 ms or 64 MiB
    ICMA=build/release/icma tests/vectors/costs.py --memory   the same, but of time nothing is asked (for ctest)

Decoding is another matter: what it costs follows from what a file says that it holds, and --max-output and --max-work cap it.
"""
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile

MAKING = '--make' in sys.argv
if MAKING:  # in a process of its own: a child's peak of memory is at least what its parent had when it was started
    import mutants
    from mutants import CONDITION, GENERATOR, RECORD, SIGNATURE, TASK, TEXTS, Draft, Piece, varint
else:
    CONDITION = GENERATOR = RECORD = SIGNATURE = TASK = TEXTS = None

PROGRAM = os.environ.get('ICMA', 'icma')
SIZE, MOST_MS, MOST_MIB = 1 << 20, 100, 64
DIGITS = '0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'
FILES = {}


def file(function):
    FILES[function.__name__.replace('_', '-') + '.icma'] = function
    return function


def key(number, width=4):
    return ''.join(DIGITS[number // 62 ** i % 62] for i in reversed(range(width)))


def many(item, size, start, end):
    """start, then items with commas between until the size is reached, then end"""
    parts, total, i = [], len(start) + len(end), 0
    while True:
        part = item(i)
        total += len(part) + 1
        if total > size:
            return (start + ','.join(parts) + end).encode()
        parts.append(part)
        i += 1


HEADERS = {
    'tensors': lambda n: many(lambda i: f'"{key(i)}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', n, '{', '}'),
    'tensors-backwards': lambda n: many(lambda i: f'"{key(i)}":{{"dtype":"U8","shape":[0],"data_offsets":[{99999 - i},{99999 - i}]}}', n, '{', '}'),
    'keys': lambda n: many(lambda i: f'"{key(i)}":1', n, '{', '}'),
    'keys-short': lambda n: many(lambda i: f'"{key(i, 3)}":1', n, '{', '}'),
    'key-twice-at-the-end': lambda n: many(lambda i: f'"{key(i)}":1', n, '{', ',"0000":1}'),
    'metadata': lambda n: many(lambda i: f'"{key(i)}":""', n, '{"__metadata__":{', '}}'),
    'dimensions': lambda n: many(lambda i: '0', n, '{"a":{"dtype":"F32","shape":[', '],"data_offsets":[0,0]}}'),
    'offsets': lambda n: many(lambda i: '0', n, '{"a":{"dtype":"F32","shape":[0],"data_offsets":[', ']}}'),
    'objects': lambda n: many(lambda i: '{}', n, '{"a":[', ']}'),
    'depth': lambda n: b'{"a":' + b'[' * (n - 5),
    'spaces': lambda n: b'{' + b' ' * (n - 2) + b'}',
    'escapes': lambda n: b'{"' + b'\\u00e9' * ((n - 6) // 6) + b'":1}',
    'number': lambda n: b'{"a":' + b'1' * (n - 6) + b'}',
    'string-without-end': lambda n: b'{"' + b'a' * (n - 2),
}


def adapter(header):
    return struct.pack('<Q', len(header)) + header


def archive_with(kind, raw_of, base='basis-given'):
    """As much of it as an archive of 1 MiB may have compressed: 4 MiB (spec 3.6). An optional section fills the file."""
    draft = Draft(base)
    piece = draft.find(kind)
    others = sum(p.raw for p in draft.pieces if p.coding == 1 and p.kind != mutants.VERBATIM and p is not piece)
    raw = raw_of((1 << 20) + 3 * (SIZE - 8192) - others)
    piece.raw, piece.data, piece.coding = len(raw), mutants.zstd(raw, '-3'), 1
    free = SIZE - len(draft.build()) - 64
    if free > 0:
        draft.pieces.append(Piece(77, 0, data=random.Random(1).randbytes(free // 64 * 64), flags=1))
    image = draft.build()
    assert SIZE - 8192 <= len(image) <= SIZE, len(image)
    return image


for name, make in HEADERS.items():
    FILES[f'header-{name}.safetensors'] = lambda make=make: adapter(make(SIZE - 8))
    FILES[f'signature-{name}.icma'] = lambda make=make: archive_with(SIGNATURE, make)


def longer(kind, base='basis-given'):
    """A payload with zeros after its end."""
    draft = Draft(base)
    raw = draft.raw(draft.find(kind))
    return archive_with(kind, lambda n: raw + bytes(n - len(raw)), base)


FILES['generator-longer.icma'] = lambda: longer(GENERATOR)
FILES['generator-conv-longer.icma'] = lambda: longer(GENERATOR, 'conv-f32')
FILES['condition-longer.icma'] = lambda: longer(CONDITION)
FILES['table-longer.icma'] = lambda: longer(TASK)
FILES['record-zeros.icma'] = lambda: archive_with(RECORD, bytes)
FILES['texts-empty.icma'] = lambda: archive_with(TEXTS, lambda n: varint(1 << 20) + bytes((1 << 20) - 1) + varint(n - (1 << 20) - 7) + bytes(n - (1 << 20) - 7), 'texts-own')


def plain_groups(draft, groups, tasks_of):
    """Groups without generator, of one empty tensor each; `tasks_of` group g: its tasks."""
    header = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    draft.pieces, draft.groups = [], groups
    for g in range(groups):
        draft.pieces += [Piece(SIGNATURE, g, data=header), Piece(GENERATOR, g, data=b'\0\1\3')]
        draft.pieces += [Piece(TASK, g, t, count=1, data=row(g)) for t in tasks_of(g)]


def row(step):
    """A table of one checkpoint of tier verbatim."""
    return varint(step + 1) + b'\x0f\0\0\0' + bytes(14)


@file
def groups_and_tasks():
    """Many of both: looking for a task in every group would be their product."""
    draft = Draft('none')
    groups = 2500
    plain_groups(draft, groups, lambda g: [g])
    draft.names = [key(t).encode() for t in range(groups)]
    return draft.build()


@file
def one_task_in_all_groups():
    draft = Draft('none')
    plain_groups(draft, 2500, lambda g: [0])
    draft.names = [b'a']
    return draft.build()


@file
def many_checkpoints():
    """One table, as many rows as it may hold."""
    def rows(n):
        count = n // 19
        return b'\1' + b'\2' * (count - 1) + b'\x0f' * count + bytes(3 * count) + bytes(14 * count)
    draft = Draft('none')
    plain_groups(draft, 1, lambda g: [0])
    draft.names = [b'a']
    raw = rows((1 << 20) + 3 * (SIZE - 16384))
    piece = draft.find(TASK)
    piece.raw, piece.data, piece.coding, piece.count = len(raw), mutants.zstd(raw, '-3'), 1, len(raw) // 19
    draft.pieces.append(Piece(77, 0, data=random.Random(1).randbytes(SIZE - 8192 - len(piece.data)), flags=1))
    return draft.build()


@file
def damaged_group_of_many_tasks():
    """Each task asks for the same group, whose signature is refused at its end."""
    draft = Draft('none')
    tasks = 3000
    plain_groups(draft, 1, lambda g: range(tasks))
    draft.names = [key(t).encode() for t in range(tasks)]
    draft.find(SIGNATURE).data = many(lambda i: f'"{key(i)}":1', 600000, '{', '}')
    return draft.build()


@file
def names():
    """As many tasks as there is room for, with long names."""
    draft = Draft('none')
    tasks = 2500
    plain_groups(draft, 1, lambda g: range(tasks))
    draft.names = [(key(t) * 60).encode() for t in range(tasks)]
    draft.index_coding = 1
    return draft.build()


def cost(arguments, runs):
    """(exit code, least processor time in ms, largest memory in MiB)

    OpenBLAS starts its threads when it is loaded, and they spin for some 45 ms beside whatever the program does: with one, it starts none.
    """
    best, largest = 1e9, 0
    env = {**os.environ, 'OPENBLAS_NUM_THREADS': '1'}
    for _ in range(runs):
        process = subprocess.Popen([PROGRAM, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        best, largest = min(best, 1000 * (usage.ru_utime + usage.ru_stime)), max(largest, usage.ru_maxrss / 1024)
    return process.returncode, best, largest


def make_all(folder):
    for name, make in FILES.items():
        (folder / name).write_bytes(make())
        assert (folder / name).stat().st_size <= SIZE, (name, (folder / name).stat().st_size)


def main():
    if MAKING:
        return make_all(pathlib.Path(sys.argv[-1]))
    memory_only = '--memory' in sys.argv
    over, count = [], 0
    print(f'{"file":38} {"verb":8} {"exit":>4} {"ms":>7} {"MiB":>6}')
    with tempfile.TemporaryDirectory(prefix='icma-costs-') as shop:
        subprocess.run([sys.executable, '-B', __file__, '--make', shop], check=True)
        for path in sorted(pathlib.Path(shop).iterdir()):
            headers = path.suffix == '.safetensors'
            for verb in [['pack', '--dry-run', '-o', path.with_suffix('.x')]] if headers else [['list'], ['info', '-v'], ['verify'], ['unpack', '-n']]:
                code, ms, mib = cost([*verb, path], 1 if memory_only else 3)
                count += 1
                print(f'{path.name:38} {verb[0]:8} {code:4} {ms:7.1f} {mib:6.1f}')
                if code < 0 or code == 1 or mib > MOST_MIB or not memory_only and ms > MOST_MS:
                    over.append(f'{path.name}, {verb[0]}: exit {code}, {ms:.1f} ms, {mib:.1f} MiB')
    print(f'{len(FILES)} files of at most 1 MiB, {count} runs; over {MOST_MIB} MiB{"" if memory_only else f" or {MOST_MS} ms"}: {len(over)}')
    for line in over:
        print(f'OVER {line}')
    return bool(over)


if __name__ == '__main__':
    sys.exit(main())
