#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Transcripts: what is printed, word for word, where it does not depend on the machine.

Each file in transcripts/ holds commands after `$ ` and what they print: stdout, then stderr lines marked `! `,
then `[exit N]` unless it is 0. `test_transcripts.py --update` writes the files anew; read the difference.
"""
import pathlib
import shlex
import subprocess
import sys

from harness import PROGRAM, Case, floats, main, safetensors

FOLDER = pathlib.Path(__file__).resolve().parent / 'transcripts'


def play(command, folder):
    words = [PROGRAM if word == 'icma' else word for word in shlex.split(command)]
    done = subprocess.run(words, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    text = f'$ {command}\n' + done.stdout.decode()
    text += ''.join(f'! {line}\n' for line in done.stderr.decode().splitlines())
    return text + (f'[exit {done.returncode}]\n' if done.returncode else '')


class Transcripts(Case):
    maxDiff = None

    def test_all(self):
        self.bundle('loras.icma')
        (self.here / 'loras').symlink_to(self.tree)
        (self.here / 'mixed/cat').mkdir(parents=True)
        (self.here / 'mixed/cat/adapter_model.bin').write_bytes(b'\x80\x02}q\x00.')
        (self.here / 'mixed/cat/adapter_model.safetensors').write_bytes(
            (self.tree / 'cat/checkpoint-10/adapter_model.safetensors').read_bytes())
        (self.here / 'mixed/notes.safetensors').write_bytes(safetensors({'w': ('F32', (2,), floats([1, 2]))}))
        for name, start in (('broken', b'PK\3\4 and so on, and so on'), ('page', b'<!DOCTYPE html><html>404</html>'),
                            ('pointer', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'),
                            ('cut', (self.tree / 'cat/checkpoint-10/adapter_model.safetensors').read_bytes()[:200])):
            (self.here / f'{name}.safetensors').write_bytes(start)
        (self.here / 'full').mkdir()
        (self.here / 'full/model.safetensors').write_bytes(safetensors({'model.embed.weight': ('F32', (4, 4), floats(range(16)))}))
        (self.here / 'pickles/cat').mkdir(parents=True)
        (self.here / 'pickles/cat/adapter_model.bin').write_bytes(b'\x80\x02}q\x00.')
        (self.here / 'empty').mkdir()
        (self.here / 'notes.txt').write_text('hello')
        for path in sorted(FOLDER.glob('*.txt')):
            commands = [line[2:] for line in path.read_text().splitlines() if line.startswith('$ ')]
            played = '\n'.join(play(command, self.here) for command in commands)
            if '--update' in ARGUMENTS:
                path.write_text(played)
            else:
                with self.subTest(path=path.name):
                    self.assertEqual(path.read_text(), played)


ARGUMENTS = sys.argv[1:]
if __name__ == '__main__':
    sys.argv[1:] = []
    main()
