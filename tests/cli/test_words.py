#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Options, help, errors, suggestions, colour and progress."""
import json
import os
import pty
import select
import subprocess
import unittest

from harness import Case, PROGRAM, icma, main

VERBS = ['pack', 'unpack', 'generate', 'embed', 'list', 'info', 'verify', 'diff', 'report']


def on_terminal(*arguments, env=None, cwd=None):
    """What icma prints when stdout and stderr are a terminal."""
    try:
        ours, theirs = pty.openpty()
    except OSError as error:  # a container without /dev/pts
        raise unittest.SkipTest(f'no terminal to be had here: {error}')
    process = subprocess.Popen([PROGRAM, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd,
                               env={**os.environ, 'TERM': 'xterm', **(env or {})})
    os.close(theirs)
    seen = b''
    while True:
        ready, _, _ = select.select([ours], [], [], 60)
        try:
            more = os.read(ours, 65536) if ready else b''
        except OSError:  # the other end is closed
            more = b''
        if not more:
            break
        seen += more
    os.close(ours)
    return process.wait(), seen


class Help(Case):
    def test_every_verb_has_help(self):
        for verb in VERBS:
            by_option = self.run_icma(0, verb, '--help')
            self.assertTrue(by_option.text.startswith(f'Usage: icma {verb} '))
            for part in ('Examples', 'Exit codes', '--help'):
                self.assertIn(part, by_option.text)
            self.assertEqual(by_option.err, b'')
            self.assertEqual(self.run_icma(0, 'help', verb).text, by_option.text)
            self.assertEqual(self.run_icma(0, verb, '-h').text, by_option.text)
            self.assertLessEqual(max(map(len, by_option.text.splitlines())), 100)

    def test_overview_names_every_verb(self):
        overview = self.run_icma(0, '--help').text
        for verb in VERBS:
            self.assertIn(f'\n  {verb}', overview)
        self.assertEqual(self.run_icma(0, 'help').text, overview)

    def test_version(self):
        self.assertRegex(self.run_icma(0, '-V').text, r'^icma \d+\.\d+\.\d+\n$')
        self.run_icma(0, '--version')

    def test_aliases(self):
        self.assertEqual(icma('ls', '-h').out, icma('list', '-h').out)
        self.assertEqual(icma('test', '-h').out, icma('verify', '-h').out)


class Usage(Case):
    def test_no_verb_and_unknown_verbs(self):
        self.fails(2, saying='no verb')
        self.fails(2, 'unpakc', saying='did you mean unpack?')
        self.fails(2, 'frobnicate', saying='icma --help')
        self.fails(2, '--json', saying='verb comes first')

    def test_unknown_options(self):
        self.fails(2, 'pack', 'x', '--epoch', '3', saying='did you mean --epochs?')  # no abbreviations
        self.fails(2, 'list', '--frobnicate', saying='no option --frobnicate')
        self.fails(2, 'list', '-Z', saying='no option -Z')
        self.fails(2, 'list', '-v\033', saying='\\x1B')

    def test_forms_of_options(self):
        for form in (['--output=o.icma'], ['--output', 'o.icma'], ['-o', 'o.icma'], ['-oo.icma'], ['-nqoo.icma']):
            self.run_icma(0, 'pack', self.tree, '--dry-run', *form)
        self.run_icma(0, 'pack', '-n', '--', self.tree)
        self.fails(2, 'pack', '-n', '--', self.tree, '--json', '', saying='empty')

    def test_values(self):
        self.fails(2, 'pack', 'x', '-o', saying='needs a value')
        self.fails(2, 'pack', 'x', '--force=yes', saying='takes no value')
        for option, value in (('--epochs', 'many'), ('--epochs', '0'), ('--epochs', '-1'), ('--epochs', '1e3'),
                              ('--lr', 'nan'), ('--lr', 'inf'), ('--lr', '0x1'), ('--explain', '1.5'), ('-T', '0'),
                              ('--seed', '18446744073709551616'), ('--seed', ' 1'), ('--seed', '')):
            self.fails(2, 'pack', 'x', '-o', 'y', option, value, saying='takes a')
        for value in ('1X', '-1', '', '99999999999999999999', '17000000T'):
            self.fails(2, 'unpack', 'x', '--max-output', value, saying='takes a size')

    def test_combinations(self):
        for arguments in (['pack', 'x'], ['pack', 'x', '-o', '-'], ['pack', 'x', '-o', 'y', '--kld-weight', '1'],
                          ['pack', 'x', '-o', 'y', '--components', '3', '--explain', '0.9'],
                          ['pack', 'x', '-o', 'y', '--preset', 'nope'], ['pack', 'x', '-o', 'y', '--tier', 'best'],
                          ['pack', 'x', '-o', 'y', '--keep', 'first'], ['pack', 'x', '-o', 'y', '--checkpoints', 'last:0'],
                          ['pack', 'x', '-o', 'y', '--device', 'tpu'], ['pack'], ['diff', 'a'], ['diff', 'a', 'b', 'c'],
                          ['unpack', 'x', '--seed', '1'], ['unpack', 'x', '--sample', '--checkpoint', 'last'],
                          ['unpack', 'x', '-f', '-k'], ['unpack', 'x', '-o', '-', '--json'],
                          ['unpack', 'x', '--checkpoint', 'first'], ['unpack', 'x', '-C', ''],
                          ['report', 'x', '-o', 'r.pdf'], ['report', 'x', '-o', 'r.html', '--json'], ['report', 'x', '--zstd'], ['help', 'a', 'b']):
            arguments = [str(self.tree) if a == 'x' and arguments[0] == 'pack' else a for a in arguments]
            self.fails(2, *arguments)
        self.assertNothingLeft(self.here)


class Errors(Case):
    def test_as_json(self):
        result = self.run_icma(7, 'list', 'nothing.icma', '--json')
        self.assertEqual(result.out, b'')
        error = json.loads(result.err)['error']
        self.assertEqual((error['status'], error['file'], error['exit']), ('ICMA_E_NOT_FOUND', 'nothing.icma', 7))
        self.assertTrue(error['message'])
        usage = json.loads(self.run_icma(2, 'list', '--nope', '--json').err)['error']
        self.assertEqual((usage['status'], usage['exit'], usage['file']), ('ICMA_E_USAGE', 2, None))

    def test_form(self):
        self.assertRegex(self.fails(7, 'list', 'nothing.icma').words, r'^icma: error: nothing\.icma: .+\n$')

    def test_which_bundle(self):
        self.fails(2, 'list', saying='no .icma file')
        self.bundle('one.icma')
        self.assertIn('cat', self.run_icma(0, 'list').text)
        self.bundle('two.icma')
        self.fails(2, 'list', saying=('one.icma', 'two.icma'))


class Terminal(Case):
    def test_colour(self):
        bundle = self.bundle()
        self.assertNotIn(b'\033', self.run_icma(0, 'list', bundle).out)
        self.assertIn(b'\033[1m', on_terminal('list', bundle)[1])
        for arguments, env in ((['--no-color'], {}), ([], {'NO_COLOR': '1'}), ([], {'TERM': 'dumb'})):
            self.assertNotIn(b'\033', on_terminal('list', bundle, *arguments, env=env)[1])

    def test_progress_only_on_a_terminal(self):
        arguments = ['pack', self.tree, '-o', self.here / 'p.icma', '-f', '--tier', 'latent', '--epochs', '30000', '-T', '1']
        code, seen = on_terminal(*arguments)
        self.assertEqual(code, 0, seen)
        self.assertRegex(seen, rb'train +\[[#.]+\] +\d+ %')
        self.assertNotIn(b'[#', on_terminal(*arguments, '--no-progress')[1])
        self.assertNotIn(b'\033', self.run_icma(0, *arguments).err)

    def test_no_adapter_on_a_terminal(self):
        code, seen = on_terminal('unpack', self.bundle(), '--task', 'cat', '-o', '-')
        self.assertEqual(code, 2)
        self.assertIn(b'redirect', seen)


if __name__ == '__main__':
    main()
