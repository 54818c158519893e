#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Decodes every vector with the program that ICMA names and with the second reader, and compares what comes out.

    ICMA=build/release/icma tests/vectors/check_vectors.py [--only golden|mutants|table] [--program-only] [--device NAME]... [NAME]...

golden: each NAME.icma gives the SHA-256 sums of vectors.json, on --device cpu and --device reference (or those that are named), and from
python/icma_reader.py. mutants: what mutants.py makes of them decodes to the same sums, or both refuse with the same class.
table: README.md lists every one.
"""
import argparse
import fnmatch
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
import mutants  # noqa: E402
from mutants import HERE, reader, xxh3_64  # noqa: E402

PROGRAM = os.environ.get('ICMA', 'icma')
DEVICES = 'cpu', 'reference'
CLASSES = {'ICMA_E_FORMAT': 'format', 'ICMA_E_CORRUPT': 'corrupt', 'ICMA_E_UNSUPPORTED': 'unsupported', 'ICMA_E_LIMIT': 'limit'}
EXITS = {'format': 4, 'corrupt': 4, 'unsupported': 6, 'limit': 10}
failures = 0


def fail(message):
    global failures
    failures += 1
    print(f'FAILED {message}')


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def icma(*arguments):
    return subprocess.run([PROGRAM, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=300)


def step_of(step):
    return 'final' if step is None else str(step)


def program_sums(bundle, folder, device):
    """({task: {step: sum}}, None) or (None, the class with which the program refuses, what it says)"""
    done = icma('unpack', bundle, '--checkpoint', 'all', '-C', folder, '--json', '--device', device)
    if done.returncode:
        lines = done.stderr.decode('utf-8', 'replace').splitlines()
        error = next((json.loads(line)['error'] for line in lines if line.startswith('{"error"')), {'status': '?', 'message': done.stderr})
        verdict = CLASSES.get(error['status'], error['status'])
        if EXITS.get(verdict) != done.returncode:
            verdict = f'{verdict} with exit code {done.returncode}'
        return None, verdict, error['message']
    sums = {}
    for item in json.loads(done.stdout)['adapters']:
        sums.setdefault(item['task'], {})[step_of(item['step'])] = sha256(pathlib.Path(item['path']).read_bytes())
    return sums, 'good', ''


def reader_sums(bundle):
    try:
        with reader.open(bundle) as archive:
            archive.check()
            return {task: {step_of(row.step): sha256(archive.decode(task, row)) for row in archive.checkpoints(task)}
                    for task in archive.tasks()}, 'good', ''
    except reader.IcmaError as error:
        return None, error.kind, str(error)


def wanted(name, patterns):
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_golden(name, vector, shop, program_only, devices):
    bundle = HERE / f'{name}.icma'
    if sha256(bundle.read_bytes()) != vector['sha256']:
        fail(f'{name}: the archive itself has changed')
        return
    sums_wanted = {task: out['checkpoints'] for task, out in vector['tasks'].items()}
    for device in devices:
        sums, verdict, words = program_sums(bundle, shop / f'{name} {device}', device)
        if sums != sums_wanted:
            fail(f'{name}, icma --device {device}: {verdict} {words}')
        for task, out in vector['tasks'].items():
            for seed, digest in out['samples'].items():
                done = icma('unpack', bundle, '--task', task, '--sample', '--seed', seed, '-o', '-', '--device', device)
                if done.returncode != (0 if digest else 6) or digest and sha256(done.stdout) != digest:
                    fail(f'{name}, icma --device {device} --sample: task {task}, seed {seed}')
    if program_only:
        return
    sums, verdict, words = reader_sums(bundle)
    if sums != sums_wanted:
        fail(f'{name}, second reader: {verdict} {words}')
        return
    with reader.open(bundle) as archive:
        for task, out in vector['tasks'].items():
            for seed, digest in out['samples'].items():
                try:
                    drawn = sha256(archive.sample(task, int(seed)))
                except reader.IcmaError as error:
                    drawn = None if error.kind == 'unsupported' else error.kind
                if drawn != digest:
                    fail(f'{name}, second reader: sample of task {task}, seed {seed}')


def check_side_files(name, shop):
    """What stands beside the adapters is the same too."""
    folder = shop / f'{name} cpu'
    with reader.open(HERE / f'{name}.icma') as archive:
        files = {}
        for task in archive.tasks():
            for row in archive.checkpoints(task):
                where = task if row.step is None else f'{task}/checkpoint-{row.step}'
                for file, data in archive.side_files(task, row).items():
                    files[f'{where}/{file}'] = data
    for path, data in files.items():
        if not (folder / path).is_file() or (folder / path).read_bytes() != data:
            fail(f'{name}: side file {path} differs')


def check_mutant_on(name, base, verdict, change, shop, device):
    """What another device makes of it is what the CPU makes of it."""
    bundle = shop / f'{name}.icma'
    bundle.write_bytes(mutants.build(change, base))
    cpu, found = (program_sums(bundle, shop / f'{name} {where}', where) for where in ('cpu', device))
    if found[:2] != cpu[:2] or verdict != 'equal' and found[1] != verdict:
        fail(f'{name}: should be {verdict}; --device cpu: {cpu[1]}; --device {device}: {found[1]} {found[2]}; or they differ')


def check_mutant(name, base, verdict, change, vectors, shop):
    bundle = shop / f'{name}.icma'
    bundle.write_bytes(mutants.build(change, base))
    program, said, words = program_sums(bundle, shop / name, 'cpu')
    second, second_said, second_words = reader_sums(bundle)
    if verdict == 'equal':
        scalar = program_sums(bundle, shop / f'{name} reference', 'reference')[0]
        if program is None or program != second or program != scalar:
            fail(f'{name}: the program: {said} {words}; the second reader: {second_said} {second_words}; or they differ')
        return
    if said != verdict:
        fail(f'{name}: should be {verdict}; the program: {said} {words}')
    if second_said != verdict:
        fail(f'{name}: should be {verdict}; the second reader: {second_said} {second_words}')
    if verdict == 'good' and said == second_said == 'good':
        sums_wanted = [out['checkpoints'] for out in vectors[base]['tasks'].values()]
        for who, sums in (('the program', program), ('the second reader', second)):
            if sorted(sorted(one.items()) for one in sums.values()) != sorted(sorted(one.items()) for one in sums_wanted):
                fail(f'{name}: {who} decodes something else')
        if icma('verify', '--deep', bundle).returncode:
            fail(f'{name}: icma verify --deep does not find it intact')


def table(vectors):
    lines = ['| archive | bytes | what |', '|---|---|---|']
    lines += [f'| `{name}.icma` | {vector["size"]:,} | {vector["description"]} |' for name, vector in vectors.items()]
    lines += ['', '### By class of hostile input', '', '| class | refused | good | other tests |', '|---|---|---|---|']
    for number, title, patterns, tests in mutants.CLASSES:
        inside = [m for m in mutants.MUTANTS if any(fnmatch.fnmatchcase(m[0], pattern) for pattern in patterns.split())]
        bad = sum(m[2] not in ('good', 'equal') for m in inside)
        lines.append(f'| {number} {title} | {bad} | {len(inside) - bad} | {tests.replace("*", chr(92) + "*")} |')
        if patterns and not bad:
            fail(f'class {number} has no vector')
    lost = [m[0] for m in mutants.MUTANTS if m[2] not in ('good', 'equal') and not any(fnmatch.fnmatchcase(m[0], p) for c in mutants.CLASSES for p in c[2].split())]
    if lost:
        fail(f'of no class: {" ".join(lost)}')
    for title, verdicts in (('Good', ('good',)), ('Good, with other numbers', ('equal',)), ('Bad', ('format', 'corrupt', 'limit')), ('Unsupported', ('unsupported',))):
        lines += ['', f'### {title}', '']
        if title == 'Bad':
            lines += ['| name | of | class | what |', '|---|---|---|---|']
        else:
            lines += ['| name | of | what |', '|---|---|---|']
        for name, base, verdict, what, _ in mutants.MUTANTS:
            if verdict in verdicts:
                what = what.replace('|', '\\|').replace('<', '\\<')
                lines.append(f'| {name} | {base} | {verdict + " | " if title == "Bad" else ""}{what} |')
    return '\n'.join(lines) + '\n'


def check_table(vectors, write):
    path = HERE / 'README.md'
    text = path.read_text() if path.exists() else ''
    mark = '<!-- made by check_vectors.py --write-table -->\n'
    head = text.partition(mark)[0]
    if write:
        path.write_text(head + mark + table(vectors))
    elif text != head + mark + table(vectors):
        fail('README.md does not list the vectors as they are; run check_vectors.py --write-table')


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--only', choices=('golden', 'mutants', 'table'))
    parser.add_argument('--program-only', action='store_true', help='golden: without the second reader')
    parser.add_argument('--device', action='append', metavar='NAME', help='golden: these instead of cpu and reference; mutants: these beside the CPU, without the second reader')
    parser.add_argument('--write-table', action='store_true', help='write the tables of README.md')
    parser.add_argument('names', nargs='*', metavar='NAME', help='only these; * and ? match')
    options = parser.parse_args()
    vectors = json.loads((HERE / 'vectors.json').read_text())
    if options.write_table:
        check_table(vectors, True)
        return 0
    with tempfile.TemporaryDirectory(prefix='icma-vectors-') as shop:
        shop, count = pathlib.Path(shop), 0
        if options.only in (None, 'golden'):
            if xxh3_64(b'') != 0x2d06800538d394c2 or xxh3_64(b'abc') != 0x78af5f94892f3950:
                fail('xxh3.py does not give the hashes of spec 2.5')
            for name, vector in vectors.items():
                if wanted(name, options.names):
                    count += 1
                    check_golden(name, vector, shop, options.program_only, options.device or DEVICES)
                    if not options.program_only:
                        check_side_files(name, shop)
        if options.only in (None, 'mutants'):
            for name, base, verdict, _, change in mutants.MUTANTS:
                if wanted(name, options.names):
                    count += 1
                    for device in options.device or ():
                        check_mutant_on(name, base, verdict, change, shop, device)
                    if not options.device:
                        check_mutant(name, base, verdict, change, vectors, shop)
        if options.only in (None, 'table') and not options.names:
            check_table(vectors, False)
            if len({m[0] for m in mutants.MUTANTS}) != len(mutants.MUTANTS):
                fail('mutants.py: a name twice')
    print(f'{count} vectors, {failures} failures')
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
