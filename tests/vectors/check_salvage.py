#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One damaged section after the other, of every golden vector: `verify` says which checkpoints are lost with it, and
`unpack --keep-going` brings out exactly the others, bit for bit (spec 3.11).

    ICMA=build/release/icma tests/vectors/check_salvage.py [--all] [NAME]...

--all asks `verify --deep` too.
"""
import collections
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = os.environ.get('ICMA', 'icma')
ALL = '--all' in sys.argv
failures = 0
tally = collections.defaultdict(collections.Counter)


def fail(message):
    global failures
    failures += 1
    print(f'FAILED {message}')


def icma(*arguments):
    return subprocess.run([PROGRAM, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300)


def name_of(step):
    return 'final' if step is None else str(step)


def lost_of(document, all_of):
    """{(task, step)} that verify's document says are lost"""
    lost = set()
    for entry in document['losses']:
        steps = [key for key in all_of if key[0] == entry['task']] if entry['all'] else [(entry['task'], name_of(x['step'])) for x in entry['lost']]
        lost.update(steps)
        if len([key for key in all_of if key[0] == entry['task']]) != entry['checkpoints']:
            fail(f'{entry["task"]} does not have {entry["checkpoints"]} checkpoints')
    return lost


def check(name, vector, section, image, shop):
    where = f'{name}, section {section["kind"]} at {section["offset"]}'
    all_of = {(task, step): digest for task, out in vector['tasks'].items() for step, digest in out['checkpoints'].items()}
    damaged = bytearray(image)
    damaged[section['offset'] + section['stored'] // 2] ^= 4
    bundle, out = shop / 'damaged.icma', shop / 'out'
    bundle.write_bytes(damaged)
    shutil.rmtree(out, True)
    done = icma('verify', bundle, '--json')
    if done.returncode != 4:
        return fail(f'{where}: verify exits {done.returncode}')
    document = json.loads(done.stdout)
    lost = lost_of(document, all_of)
    if document['surviving_checkpoints'] != len(all_of) - len(lost):
        fail(f'{where}: verify counts {document["surviving_checkpoints"]} survivors and names {len(lost)} of {len(all_of)} lost')
    deep = json.loads(icma('verify', bundle, '--deep', '--json').stdout) if ALL else None
    if deep and deep['decoded_checkpoints'] != len(all_of) - len(lost):
        fail(f'{where}: {deep["decoded_checkpoints"]} can be decoded; verify names {len(lost)} of {len(all_of)} lost')
    done = icma('unpack', bundle, '--checkpoint', 'all', '--keep-going', '-C', out, '--json')
    wanted = 0 if not lost else 4 if len(lost) == len(all_of) else 3
    if done.returncode != wanted:
        return fail(f'{where}: unpack --keep-going exits {done.returncode}, not {wanted}: {done.stderr.decode()}')
    got = {(item['task'], name_of(item['step'])): hashlib.sha256(pathlib.Path(item['path']).read_bytes()).hexdigest()
           for item in json.loads(done.stdout)['adapters'] if item['state'] == 'written'}
    if got != {key: digest for key, digest in all_of.items() if key not in lost}:
        fail(f'{where}: what came out is not what verify says survives')
    files = [path for path in out.rglob('*') if path.name == 'adapter_model.safetensors'] if out.exists() else []
    if len(files) != len(got):
        fail(f'{where}: {len(files)} files, {len(got)} of them told')
    tally[section['kind']]['sections'] += 1
    tally[section['kind']]['everything lost' if len(lost) == len(all_of) else 'nothing lost' if not lost else 'a part lost'] += 1


def main():
    vectors = json.loads((HERE / 'vectors.json').read_text())
    with tempfile.TemporaryDirectory(prefix='icma-salvage-') as shop:
        for name in [word for word in sys.argv[1:] if word != '--all'] or sorted(vectors):
            image = (HERE / f'{name}.icma').read_bytes()
            for section in json.loads(icma('info', HERE / f'{name}.icma', '-v', '--json').stdout)['section_list']:
                check(name, vectors[name], section, image, pathlib.Path(shop))
    for kind, counts in sorted(tally.items()):
        print(f'{kind:10} ' + ', '.join(f'{what} {count}' for what, count in sorted(counts.items())))
    return failures > 0


if __name__ == '__main__':
    sys.exit(main())
