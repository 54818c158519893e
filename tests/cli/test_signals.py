#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Signals, closed pipes, full disks: the right exit code, nothing left behind."""
import contextlib
import os
import pathlib
import signal
import subprocess
import time
import unittest

from harness import Case, PROGRAM, files_below, icma, main

ENDLESS = ['--tier', 'latent', '--epochs', '1000000000', '-T', '1']


class Signals(Case):
    def stop(self, *signals, wait=1.0):
        process = subprocess.Popen([PROGRAM, 'pack', str(self.tree), '-o', 'x.icma', *ENDLESS], cwd=self.here,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(wait)
        self.assertIsNone(process.poll(), 'it should still train')
        for number in signals:
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
        self.assertEqual(out, b'')
        return process.returncode, err

    def test_exit_codes(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            code, err = self.stop(number)
            self.assertEqual(code, 128 + number, err)
            self.assertRegex(err, rb'^icma: error: ')
            self.assertNothingLeft(self.here)

    def test_twice(self):
        code, _ = self.stop(signal.SIGINT, signal.SIGINT)
        self.assertEqual(code, 130)
        self.assertNothingLeft(self.here)

    def test_at_once(self):
        for wait in (0.0, 0.01, 0.03, 0.1):
            process = subprocess.Popen([PROGRAM, 'pack', str(self.tree), '-o', 'x.icma', *ENDLESS], cwd=self.here,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(wait)
            process.send_signal(signal.SIGTERM)
            self.assertIn(process.wait(timeout=60), (128 + signal.SIGTERM, -signal.SIGTERM))
            self.assertNothingLeft(self.here)

    def test_existing_output_survives(self):
        (self.here / 'x.icma').write_bytes(b'precious')
        process = subprocess.Popen([PROGRAM, 'pack', str(self.tree), '-o', 'x.icma', '-f', *ENDLESS], cwd=self.here,
                                   stderr=subprocess.DEVNULL)
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(timeout=60), 130)
        self.assertEqual((self.here / 'x.icma').read_bytes(), b'precious')
        self.assertEqual(files_below(self.here), ['x.icma'])

    def test_other_tiers(self):
        """Wherever they are: reading, choosing, encoding, checking, trying the next bound."""
        examples = pathlib.Path(__file__).resolve().parents[2] / 'examples' / 'loras'
        stopped = 0
        for options in (['--tier', 'bounded'], ['--generator', 'none'], ['--tier', 'lossless'], ['--target-bits', '2', '--generator', 'none']):
            for wait in (0.05, 0.15, 0.4, 0.8):
                process = subprocess.Popen([PROGRAM, 'pack', str(examples), '-o', 'x.icma', '-f', '-T', '1', *options], cwd=self.here,
                                           stderr=subprocess.DEVNULL)
                time.sleep(wait)
                process.send_signal(signal.SIGTERM)
                code = process.wait(timeout=60)
                self.assertIn(code, (0, 128 + signal.SIGTERM, -signal.SIGTERM))
                stopped += code != 0
                self.assertNothingLeft(self.here, [] if code else ['x.icma'])
                (self.here / 'x.icma').unlink(missing_ok=True)
        self.assertGreater(stopped, 4)

    def test_ignored_signals_stay_ignored(self):
        process = subprocess.Popen([PROGRAM, 'pack', str(self.tree), '-o', 'x.icma', *ENDLESS], cwd=self.here,
                                   stderr=subprocess.DEVNULL,
                                   preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        time.sleep(0.5)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        self.assertIsNone(process.poll())
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(timeout=60), 128 + signal.SIGTERM)


class Output(Case):
    def test_reader_has_left(self):
        for arguments in (['list', '--json'], ['unpack', '--task', 'cat', '-o', '-'], ['info', '-v'], ['--help']):
            reading, writing = os.pipe()
            os.close(reading)
            verb = arguments if arguments[0].startswith('-') else [arguments[0], str(self.bundle()), *arguments[1:]]
            result = icma(*verb, stdout=writing)
            os.close(writing)
            said = [line for line in result.err.splitlines() if b'without a sandbox' not in line]  # as -v says where there is none
            self.assertEqual((result.code, said), (128 + signal.SIGPIPE, []), arguments)

    def test_full_disk(self):
        for arguments in (['list'], ['list', '--json'], ['unpack', '--task', 'cat', '-o', '-'], ['report']):
            with open('/dev/full', 'wb') as full:
                result = icma(arguments[0], self.bundle(), *arguments[1:], stdout=full)
            self.assertEqual(result.code, 1, result)
            self.assertIn('No space left', result.words)

    @unittest.skipUnless(pathlib.Path('/proc/self/status').exists(), 'no /proc')
    def test_sandbox(self):
        """list, info and verify give up what they do not need before they look at an archive; unpack writes, and does not. They are caught while they wait for a full pipe."""
        states = {}
        for arguments in (['list', '-v'], ['info', '-v'], ['verify', '-v'], ['unpack', '--task', 'cat', '-o', '-']):
            reading, writing = os.pipe()
            os.set_blocking(writing, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writing, bytes(1024))
            os.set_blocking(writing, True)
            process = subprocess.Popen([PROGRAM, arguments[0], str(self.bundle()), *arguments[1:]], stdout=writing, stderr=subprocess.PIPE)
            for _ in range(1000):
                if 'pipe' in pathlib.Path(f'/proc/{process.pid}/wchan').read_text() or process.poll() is not None:
                    break
                time.sleep(0.01)
            status = dict(line.split(':\t', 1) for line in pathlib.Path(f'/proc/{process.pid}/status').read_text().splitlines() if ':\t' in line)
            os.close(writing)
            os.close(reading)
            words = process.communicate(timeout=60)[1].decode()
            states[arguments[0]] = (int(status.get('Seccomp_filters', -1)), int(status['NoNewPrivs']), words)
        if states['unpack'][0] < 0:
            self.skipTest('this kernel does not tell how many filters there are')
        for verb in ('list', 'info', 'verify'):
            if 'without a sandbox' not in states[verb][2]:  # a container has filters of its own
                self.assertEqual(states[verb][:2], (states['unpack'][0] + 1, 1), states)

    def test_closed_descriptors(self):
        bundle = self.bundle()
        for closed, code in (('>&-', 1), ('2>&-', 0), ('<&-', 0)):
            done = subprocess.run(['sh', '-c', f'exec "$0" list "$1" {closed}', PROGRAM, str(bundle)],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.assertEqual(done.returncode, code, closed)
        # an output must not become somebody's stdout
        done = subprocess.run(['sh', '-c', 'exec "$0" unpack "$1" -C out >&- 2>&- <&-', PROGRAM, str(bundle)],
                              cwd=self.here)
        self.assertEqual(done.returncode, 0)
        self.assertEqual(len(files_below(self.here / 'out')), 6)


if __name__ == '__main__':
    main()
