# SPDX-License-Identifier: Apache-2.0
"""icma itself, as a peer among peers: packs a tree, and is measured on the files that it unpacks."""
import os
import subprocess

from . import files

UNSUPPORTED, USAGE, MISSED = 6, 2, 5    # exit codes


class Icma:
    """words are the options of `icma pack`; {} in them is replaced by bound, the error that dW may have."""

    def __init__(self, program, tree, words, bound=None):
        self.program, self.tree, self.words, self.bound = program, tree, words, bound

    def steps(self, factors):
        return [Icma(self.program, self.tree, self.words, self.bound * f) for f in factors]

    def quantises(self):
        return self.bound is not None

    def options(self):
        return [w.format(f'{self.bound:.6g}' if self.bound else '') for w in self.words]

    def run(self, *words):
        if not os.access(self.program, os.X_OK):
            raise files.NotMeasured('no icma program: build it, or name it with --icma')
        done = subprocess.run([self.program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        said = (done.stderr.strip().splitlines() or ['no message'])[-1].replace('icma: error: ', '')
        if done.returncode in (UNSUPPORTED, USAGE):
            raise files.NotMeasured(f'not supported by this build (exit code {done.returncode})')
        if done.returncode == MISSED:
            raise files.NotMeasured('fidelity bound missed (exit code 5)')
        if done.returncode:
            raise files.NotMeasured(f'exit code {done.returncode}: {said.split(": ", 1)[-1]}')

    def encode(self, checkpoints, out):
        os.makedirs(out, exist_ok=True)
        self.run('pack', self.tree, '-o', os.path.join(out, 'all.icma'), '-q', *self.options())

    def decode(self, checkpoints, out, back):
        self.run('unpack', os.path.join(out, 'all.icma'), '--checkpoint', 'all', '-C', back, '-q')


def version(program):
    try:
        return subprocess.run([program, '-V'], stdout=subprocess.PIPE, text=True).stdout.splitlines()[0]
    except (OSError, IndexError):
        return 'icma: not built'
