#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""--eval: a command as the judge of adapters, and what the greedy soup makes of its scores."""
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import time

from harness import CONFIG, PROGRAM, Case, icma, lora, main, write_adapter

MODEL = 'adapter_model.safetensors'
STEPS = (10, 20, 30)


def weights(path):
    image = pathlib.Path(path).read_bytes()
    start = 8 + struct.unpack('<Q', image[:8])[0]
    return struct.unpack(f'<{(len(image) - start) // 4}f', image[start:])


def distance(a, b):
    x, y = weights(a), weights(b)
    return (sum((p - q) ** 2 for p, q in zip(x, y)) / sum(p * p for p in x)) ** 0.5


# Logs what it is called with, and scores by the distance to an adapter that it is told.
JUDGE = '''
import json, os, struct, sys
log, wanted, folder, task = sys.argv[1:]
def weights(path):
    image = open(path, 'rb').read()
    start = 8 + struct.unpack('<Q', image[:8])[0]
    return struct.unpack('<%df' % ((len(image) - start) // 4), image[start:])
with open(log, 'a') as f:
    files = {n: open(os.path.join(folder, n), errors='replace').read() if n.endswith('.json') else None for n in os.listdir(folder)}
    print(json.dumps({'folder': folder, 'task': task, 'files': files, 'mode': os.stat(folder).st_mode & 0o777, 'stdin': sys.stdin.read()}), file=f)
x, y = weights(os.path.join(folder, 'adapter_model.safetensors')), weights(wanted.replace('TASK', task))
print('between adapters: 12345')
print(sum((p - q) ** 2 for p, q in zip(x, y)), folder)
'''


class Evaluate(Case):
    def setUp(self):
        super().setUp()
        self.temporary = self.here / 'tmp'
        self.temporary.mkdir()
        self.env = {'TMPDIR': str(self.temporary)}

    def write(self, *tasks):
        """Checkpoints that have nothing in common."""
        for task in tasks:
            for step in STEPS:
                write_adapter(self.here / 'in' / task / f'checkpoint-{step}', lora(task, step, seed=step))

    def soup(self, code, command, *more, **kind):
        act = self.fails if code else self.run_icma
        return act(code, 'pack', 'in', '-o', 'x.icma', '--generator', 'soup', '--tier', 'generate', '--eval', command, *more, env=self.env, **kind)

    def judge(self, wanted):
        (self.here / 'judge.py').write_text(JUDGE)
        return f"'{sys.executable}' judge.py log '{wanted}' {{adapter}} {{task}}"

    def log(self):
        return [json.loads(line) for line in (self.here / 'log').read_text().splitlines()]

    def assertClean(self):
        self.assertEqual(list(self.temporary.iterdir()), [])

    def sampled(self, *tasks):
        self.run_icma(0, 'unpack', 'x.icma', '--sample', '-C', 'out')
        return [self.here / 'out' / task / MODEL for task in tasks]

    def test_the_best_wins(self):
        self.write('cat', 'dog')
        self.soup(0, self.judge('in/TASK/checkpoint-20/' + MODEL))
        for task, path in zip(('cat', 'dog'), self.sampled('cat', 'dog')):
            self.assertLess(distance(self.here / 'in' / task / 'checkpoint-20' / MODEL, path), 0.07)
        self.assertClean()

    def test_all_join_where_nothing_hurts(self):
        self.write('cat', 'dog')
        self.soup(0, 'echo {adapter} score: 1')
        greedy = [p.read_bytes() for p in self.sampled('cat', 'dog')]
        self.run_icma(0, 'pack', 'in', '-o', 'x.icma', '-f', '--generator', 'soup', '--tier', 'generate')
        self.run_icma(0, 'unpack', 'x.icma', '--sample', '-C', 'uniform')
        self.assertEqual(greedy, [(self.here / 'uniform' / task / MODEL).read_bytes() for task in ('cat', 'dog')])

    def test_what_the_command_gets(self):
        self.write('cat', 'dog')
        self.soup(0, self.judge('in/TASK/checkpoint-20/' + MODEL))
        calls = self.log()
        self.assertEqual([c['task'] for c in calls], 5 * ['cat'] + 5 * ['dog'])
        for call in calls:
            self.assertEqual(pathlib.Path(call['folder']).parent, self.temporary)
            self.assertEqual((call['mode'], call['stdin']), (0o700, ''))
            self.assertEqual(sorted(call['files']), ['adapter_config.json', MODEL])
            self.assertEqual(json.loads(call['files']['adapter_config.json']), CONFIG)

    def test_without_a_config(self):
        for step in STEPS:
            write_adapter(self.here / 'in' / 'cat' / f'checkpoint-{step}', lora('cat', step), config=False)
        self.soup(0, self.judge('in/TASK/checkpoint-20/' + MODEL))
        self.assertEqual({tuple(c['files']) for c in self.log()}, {(MODEL,)})

    def test_hostile_names_stay_words(self):
        names = ['$(touch pwned)', "'; touch pwned; '", '{adapter} x', '`touch pwned`', 'a  b']
        self.write(*names)
        self.soup(0, self.judge(f'in/{names[-1]}/checkpoint-20/{MODEL}'))
        self.assertEqual({c['task'] for c in self.log()}, set(names))
        self.assertFalse((self.here / 'pwned').exists())
        self.assertClean()

    def test_words(self):
        """Quotes and backslashes as a shell has them; names within words; nothing else is special."""
        self.write('cat')
        (self.here / 'tell.py').write_text('import sys; open("words", "w").write(repr(sys.argv[1:])); print(1)')
        self.soup(0, f'''  "{sys.executable}" tell.py 'a b' "c \\"d\\\\ \\n" e\\ f '' g"h"'i' $HOME *|;>x "'" '"'\t--at={{task}}/{{task}} x{{adapter}}''')
        words = eval((self.here / 'words').read_text())
        self.assertEqual(words[:-1], ['a b', 'c "d\\ \\n', 'e f', '', 'ghi', '$HOME', '*|;>x', "'", '"', '--at=cat/cat'])
        self.assertTrue(words[-1].startswith(f'x{self.temporary}/'))

    def test_where_the_score_is(self):
        """It only has to be found: what it is, test_the_best_wins sees."""
        self.write('cat')
        for line in ('1', '-1.5e-3', 'bpc=2.5', 'score: 3', 'score:3', '2.5 /tmp/x7 done', '2.5\\n\\n  \\n', '2 \\r\\n', 'x\\n7', 'nan\\n1', 'nan 1', '1 nan=2'):
            self.soup(0, f"printf '%b' '{line}' {{adapter}}".replace('%b', '%b%.0s'), '-f')
        for line in ('', '\\n', 'none', '1\\nnone', 'x1', '1,', '/tmp/1', '1 nan', 'inf', 'bpc=nan', '1e999', '=', ':'):
            self.soup(1, f"printf '%b%.0s' '{line}' {{adapter}}", '-f', saying='printf')
        self.assertClean()

    def test_much_output(self):
        self.write('cat')
        (self.here / 'much.py').write_text('print("9\\n" * 300000, 1)')
        self.soup(0, f"'{sys.executable}' much.py {{adapter}}")

    def test_failures(self):
        self.write('cat')
        self.soup(1, 'false {adapter}', saying=('false', 'exit code 1', 'cat'))
        self.soup(1, "sh -c 'echo 3; exit 7' {adapter}", saying='exit code 7')
        self.soup(1, "sh -c 'echo 3; kill -9 $$' {adapter}", saying='signal 9')
        self.soup(1, 'true {adapter}', saying='no number')
        self.soup(1, 'echo nan {adapter}', saying='not finite')
        self.assertNothingLeft(self.temporary)
        self.assertFalse((self.here / 'x.icma').exists())

    def test_usage(self):
        self.write('cat')
        for command, words in (('', '{adapter}'), ('echo', '{adapter}'), ('echo {task}', '{adapter}'), ('{adapter}', '{adapter}'), ("echo 'x {adapter}", 'quote'),
                               ('echo {adapter} "', 'quote'), ('no-such-program-here {adapter}', 'no-such-program-here'), ('./judge.py {adapter}', './judge.py')):
            self.soup(2, command, saying=words)
        self.fails(2, 'pack', 'in', '-o', 'x.icma', '--generator', 'basis', '--eval', 'echo {adapter}', saying='--eval')

    def test_what_the_command_leaves_goes(self):
        self.write('cat')
        (self.here / 'keep').mkdir()
        (self.here / 'keep' / 'me').write_text('here')
        self.soup(0, "sh -c 'cd $0 && mkdir -p a/b && touch a/b/c .d && ln -s \"$1\" a/l && rm adapter_config.json && echo 1' {adapter} " + f"'{self.here}/keep'")
        self.assertClean()
        self.assertEqual((self.here / 'keep' / 'me').read_text(), 'here')

    def test_no_place_for_the_folder(self):
        self.write('cat')
        self.env = {'TMPDIR': str(self.here / 'none')}
        self.soup(1, 'echo 1 {adapter}', saying='TMPDIR')

    def test_signals(self):
        self.write('cat')
        deaf = "trap : TERM; touch started; while :; do sleep 0.1; done"
        for script in ('touch started; exec sleep 60', deaf):
            for number in (signal.SIGINT, signal.SIGTERM):
                process = subprocess.Popen([PROGRAM, 'pack', 'in', '-o', 'x.icma', '--generator', 'soup', '--tier', 'generate', '--eval', f"sh -c '{script}' {{adapter}}"],
                                           cwd=self.here, env={**os.environ, **self.env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                while not (self.here / 'started').exists() and process.poll() is None:
                    time.sleep(0.01)
                process.send_signal(number)
                _, err = process.communicate(timeout=60)
                self.assertEqual(process.returncode, 128 + number, err)
                (self.here / 'started').unlink()
                self.assertClean()
                self.assertFalse((self.here / 'x.icma').exists())


if __name__ == '__main__':
    main()
