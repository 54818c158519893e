#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Progress: what a terminal shows while work goes on, and what other programs are told."""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import unittest

from harness import Case, PROGRAM, main

ERASED = re.compile(rb'\r\x1b\[(?:K|\d+A\x1b\[J)')
LONG = ('--tier', 'latent', '--epochs', '4000000', '-T', '1')  # minutes: stopped when there is enough to see


class Terminal:
    """A run whose stdin, stdout and stderr are a terminal of so many columns."""

    def __init__(self, *arguments, columns=80, env=None, cwd=None):
        try:
            self.ours, theirs = pty.openpty()
        except OSError as error:  # a container without /dev/pts
            raise unittest.SkipTest(f'no terminal to be had here: {error}')
        self.seen = b''
        self.resize(columns)
        self.process = subprocess.Popen([PROGRAM, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd,
                                        start_new_session=True, env={**os.environ, 'TERM': 'xterm', **(env or {})})
        os.close(theirs)

    def resize(self, columns):
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))

    def read(self):
        """More of what is shown; False at the end."""
        ready, _, _ = select.select([self.ours], [], [], 120)
        try:
            more = os.read(self.ours, 65536) if ready else b''
        except OSError:  # the other end is closed
            more = b''
        self.seen += more
        return bool(more)

    def wait_for(self, pattern):
        start = len(self.seen)
        while not re.search(pattern, self.seen[start:]):
            if not self.read():
                raise AssertionError(f'{pattern} did not come: {self.seen[-2000:]!r}')

    def finish(self, by=None):
        """The exit code, after everything was read."""
        if by:
            self.process.send_signal(by)
        while self.read():
            pass
        os.close(self.ours)
        return self.process.wait()

    def bars(self):
        """What was drawn on one line, one after the other."""
        return [part.split(b'\r\n')[0] for part in ERASED.split(self.seen)[1:]]


class Bar(Case):
    def pack(self, *arguments, **more):
        return Terminal('pack', self.tree, '-o', self.here / 'p.icma', '-f', *arguments, **more)

    def test_what_how_far_how_fast_and_time_left(self):
        run = self.pack(*LONG, columns=100)
        run.wait_for(rb'train +\[#*\.*\] +\d+ %  \d+/4000000 epochs, \d+/s, [^,]+ left  loss ')
        self.assertEqual(run.finish(signal.SIGINT), 130)
        self.assertNothingLeft(self.here)
        self.assertRegex(run.seen, rb'\r\x1b\[Kicma: \x1b\[1;31merror:')  # cleared before the message

    def test_no_time_left_before_it_is_known(self):
        run = self.pack(*LONG)
        run.wait_for(rb'train .* left')
        run.finish(signal.SIGINT)
        first = next(bar for bar in run.bars() if bar.startswith(b'train'))
        self.assertNotIn(b'left', first)
        self.assertNotIn(b'/s', first)

    def test_width(self):
        for columns in (100, 60, 40, 24, 12):
            run = self.pack(*LONG, columns=columns)
            run.wait_for(rb'train.*\r.*train.*\r.*train')
            run.finish(signal.SIGINT)
            bars = [bar for bar in run.bars() if not bar.startswith(b'icma')]
            self.assertLess(max(len(bar) for bar in bars), columns, bars)
            self.assertTrue(all(bar.startswith(b'train'[:columns - 1]) for bar in bars if bar), bars)

    def test_narrower_window(self):
        run = self.pack(*LONG, columns=120)
        run.wait_for(rb'left  loss')
        run.resize(30)
        run.wait_for(rb'\r\x1b\[[23]A\x1b\[J')  # the rows that the old line takes now
        start = len(run.seen)
        run.wait_for(rb'train.*\r.*train.*\r')
        late = [bar for bar in ERASED.split(run.seen[start:])[1:-1]]
        self.assertLess(max(len(bar) for bar in late), 30, late)
        run.finish(signal.SIGINT)

    def test_time_goes_on_where_the_work_is_silent(self):
        (self.here / 'slow').write_text('#!/bin/sh\nsleep 30\necho 1\n')
        (self.here / 'slow').chmod(0o755)
        run = self.pack('--generator', 'soup', '--tier', 'latent', '--eval', f'{self.here}/slow {{adapter}}')
        run.wait_for(rb'soup .* 0/\d+ scores, \d\.\d s so far')
        run.wait_for(rb'soup .* 0/\d+ scores, \d\.\d s so far')
        run.finish(signal.SIGINT)
        told = re.findall(rb'(\d+\.\d) s so far', run.seen)
        self.assertGreater(len(set(told)), 1, told)

    def test_nothing_of_it_is_left(self):
        run = self.pack('--tier', 'latent', '--epochs', '20000', '-T', '1')
        self.assertEqual(run.finish(), 0)
        after = ERASED.split(run.seen)[-1]
        self.assertNotIn(b'epochs', after)
        self.assertIn(b'packed', after)

    def test_quiet(self):
        for more, env in ((['--no-progress'], {}), (['-q'], {}), ([], {'TERM': 'dumb'}), (['--json'], {}), (['--no-progress', '--progress'], {})):
            run = self.pack('--tier', 'latent', '--epochs', '10000', '-T', '1', *more, env=env)
            self.assertEqual(run.finish(), 0)
            self.assertNotIn(b'epochs', run.seen.replace(b'"epochs"', b''), more)
            self.assertNotIn(b'\x1b[K', run.seen)

    def test_without_colour_there_is_a_bar_still(self):
        run = self.pack(*LONG, env={'NO_COLOR': '1'})
        run.wait_for(rb'train .*\d+ %')
        run.finish(signal.SIGINT)
        self.assertNotIn(b'\x1b[1', run.seen.replace(b'\x1b[1A', b''))


class Told(Case):
    def test_objects(self):
        result = self.run_icma(0, 'pack', self.tree, '-o', 'p.icma', '--json', '--progress', '--tier', 'latent', '--epochs', '30000', '-T', '1')
        self.assertIn('tasks', result.json)
        told = [json.loads(line)['progress'] for line in result.words.splitlines()]
        phases = list(dict.fromkeys(t['phase'] for t in told))
        self.assertEqual(phases, ['find', 'read', 'gram', 'choose', 'basis', 'train', 'encode', 'check', 'zstd', 'write'])
        for t in told:
            self.assertEqual(list(t), ['phase', 'done', 'total', 'unit', 'rate', 'seconds', 'seconds_left', 'note'])
            self.assertTrue(t['total'] is None or 0 <= t['done'] <= t['total'], t)
        units = {t['phase']: t['unit'] for t in told}
        self.assertEqual((units['gram'], units['train'], units['encode']), ('bytes', 'epochs', 'checkpoints'))
        self.assertEqual([t['total'] for t in told if t['phase'] == 'encode'][0], 12)

    def test_objects_only_where_asked_for(self):
        result = self.run_icma(0, 'pack', self.tree, '-o', 'p.icma', '--json', '--epochs', '20')
        self.assertEqual(result.words, '')

    def test_reading_verbs(self):
        bundle = self.bundle()
        for arguments, phases in ((['verify', bundle, '--deep', '--against', self.tree], ['check', 'decode', 'find', 'compare']),
                                  (['report', bundle, '--against', self.tree], ['find', 'compare']),
                                  (['diff', self.tree, self.tree], ['find', 'compare']),
                                  (['unpack', bundle, '-C', 'out'], ['verify', 'unpack']), (['list', bundle], ['list']),
                                  (['generate', bundle, '--mix', 'cat,dog', '-C', 'new'], ['generate'])):
            result = self.run_icma(0, *arguments, '--json', '--progress')
            told = [told['progress']['phase'] for told in map(json.loads, result.words.splitlines()) if 'progress' in told]
            self.assertEqual([phase for phase in dict.fromkeys(told) if phase in phases], phases)

    def test_lines(self):
        process = subprocess.Popen([PROGRAM, 'pack', self.tree, '-o', self.here / 'p.icma', '--progress', *LONG], stderr=subprocess.PIPE)
        line = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        process.stderr.close()
        self.assertEqual(process.wait(), 130)
        self.assertRegex(line, rb'^icma: train: +\d+ %  \d+/4000000 epochs')
        self.assertNotIn(b'\x1b', line + rest)

    def test_silent_without_a_terminal(self):
        result = self.run_icma(0, 'pack', self.tree, '-o', 'p.icma', '--tier', 'latent', '--epochs', '10000', '-T', '1')
        self.assertNotIn('epochs', result.words)
        self.assertNotIn('\r', result.words)


if __name__ == '__main__':
    main()
