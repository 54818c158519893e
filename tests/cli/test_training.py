#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Training that takes long: saved, killed, resumed - to the same archive; stopped on a plateau; options that do not fit."""
import os
import random
import signal
import subprocess
import time

from harness import Case, PROGRAM, files_below, icma, main

SMALL = ['--tier', 'latent', '--layers', '3', '--channels', '4,6,4', '--latent-dim', '8', '--batch', '3']
CONV = ['--generator', 'conv', *SMALL]
DIFFUSION = ['--generator', 'diffusion', *SMALL]


class Training(Case):
    def pack(self, *arguments):
        return icma('pack', self.tree, '-o', 'x.icma', *arguments, cwd=self.here)

    def bytes_of(self, *arguments):
        result = self.pack('-f', *arguments)
        self.assertEqual(result.code, 0, result)
        return (self.here / 'x.icma').read_bytes()

    def start(self, *arguments):
        return subprocess.Popen([PROGRAM, 'pack', str(self.tree), '-o', 'x.icma', *arguments], cwd=self.here, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def until_saved(self, process):
        for _ in range(3000):
            if (self.here / 'x.icma.training').exists() or process.poll() is not None:
                return
            time.sleep(0.01)

    def kill_and_resume(self, arguments, times, longest):
        """Killed at `times` random moments, and let through in the end."""
        wanted = self.bytes_of(*arguments)
        os.unlink(self.here / 'x.icma')
        draw, kills = random.Random(5), 0
        for _ in range(times):
            process = self.start(*arguments, '--save-every', '0', '--resume')
            time.sleep(draw.uniform(0, longest))
            kills += process.poll() is None
            process.kill()
            process.communicate(timeout=60)
            if process.returncode == 0:
                os.unlink(self.here / 'x.icma')  # it was done: from the beginning
        self.assertGreater(kills, times // 2, 'the training is too short to be killed')
        result = self.pack(*arguments, '--resume')
        self.assertEqual(result.code, 0, result)
        self.assertEqual((self.here / 'x.icma').read_bytes(), wanted)
        self.assertFalse([name for name in files_below(self.here) if name.endswith(('.training', '.old'))])

    def test_killed_twenty_times(self):
        self.kill_and_resume([*CONV, '--epochs', '400', '-T', '1'], 20, 0.25)

    def test_killed_diffusion(self):
        self.kill_and_resume([*DIFFUSION, '--epochs', '60', '-T', '1'], 8, 2.0)

    def test_any_number_of_threads(self):
        for arguments in (CONV, DIFFUSION):
            results = {self.bytes_of(*arguments, '--epochs', '20', '-T', threads) for threads in '123'}
            self.assertEqual(len(results), 1)

    def test_interrupt(self):
        arguments = [*CONV, '--epochs', '3000', '-T', '1']
        wanted = self.bytes_of(*arguments)
        os.unlink(self.here / 'x.icma')
        process = self.start(*arguments, '--save-every', '0')
        self.until_saved(process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, err)
        self.assertIn(b'--resume', err)
        self.assertIn('x.icma.training', files_below(self.here))
        self.assertNotIn('x.icma', files_below(self.here))
        blocked = self.pack(*arguments)
        self.assertEqual(blocked.code, 8, blocked)
        self.assertIn('--resume', blocked.words)
        other = self.pack(*arguments, '--resume', '--seed', '2')
        self.assertEqual(other.code, 2, other)
        self.assertEqual(self.pack(*arguments, '--resume').code, 0)
        self.assertEqual((self.here / 'x.icma').read_bytes(), wanted)
        self.assertEqual(files_below(self.here), ['x.icma'])

    def test_damaged_state(self):
        """The generation before is taken; with neither, it starts over. The archive is the same."""
        arguments = [*CONV, '--epochs', '3000', '-T', '1']
        wanted = self.bytes_of(*arguments)
        for ruined in (['x.icma.training'], ['x.icma.training', 'x.icma.training.old']):
            (self.here / 'x.icma').unlink()
            process = self.start(*arguments, '--save-every', '0')
            while not (self.here / 'x.icma.training.old').exists() and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            self.assertEqual(process.returncode, 128 + signal.SIGTERM)
            for name in ruined:
                image = bytearray((self.here / name).read_bytes())
                image[len(image) // 2] ^= 1
                (self.here / name).write_bytes(image)
            self.assertEqual(self.pack(*arguments, '--resume').code, 0)
            self.assertEqual((self.here / 'x.icma').read_bytes(), wanted)

    def test_size_is_found_with_one_training(self):
        arguments = [*CONV, '--tier', 'bounded', '--epochs', '5']
        result = self.pack(*arguments, '--target-bits', '40', '--json')
        self.assertEqual(result.code, 0, result)
        self.assertLessEqual(result.json['bits_per_parameter'], 40)
        self.assertEqual(result.json['device'], 'cpu')
        self.assertEqual(icma('verify', 'x.icma', '--deep', '--against', self.tree, cwd=self.here).code, 0)
        self.assertEqual(files_below(self.here), ['x.icma'])

    def test_start_over(self):
        process = self.start(*CONV, '--epochs', '100000', '--save-every', '0')
        self.until_saved(process)
        process.kill()
        process.communicate()
        result = self.pack(*CONV, '--epochs', '5', '-f')
        self.assertEqual(result.code, 0, result)
        self.assertNotIn('x.icma.training', files_below(self.here))

    def test_named_state(self):
        process = self.start(*CONV, '--epochs', '100000', '--save-every', '0', '--training', 'state')
        while not (self.here / 'state').exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        self.assertIn('state', files_below(self.here))

    def test_plateau(self):
        result = self.pack(*CONV, '--epochs', '2000', '--patience', '3', '--lr', '1e-9')
        self.assertEqual(result.code, 0, result)
        options = icma('info', 'x.icma', '--json', cwd=self.here).json['groups'][0]['record']['options']
        self.assertEqual(options['epochs'], 2000)
        self.assertLess(options['epochs_done'], 100)

    def test_refused(self):
        for arguments in (['--layers', '3'], ['--resume'], ['--generator', 'basis', '--patience', '3'], [*CONV, '--channels', '4,x,4'], [*CONV, '--channels', '4,6,0'],
                          [*CONV, '--kernel', '4'], ['--generator', 'conv', '--layers', '17'], [*CONV, '--layers', '4'], [*CONV, '--weights', 'f64'], ['--variance'],
                          ['--generator', 'diffusion', '--variance'], ['--generator', 'basis', '--variance'], ['--generator', 'gan']):
            result = self.pack(*arguments)
            self.assertEqual(result.code, 2, (arguments, result))
            self.assertEqual(files_below(self.here), [])

    def test_running_away(self):
        result = self.pack(*CONV, '--epochs', '50', '--lr', '1e3')
        self.assertEqual(result.code, 2, result)
        self.assertIn('learning rate', result.words)
        self.assertEqual(files_below(self.here), [])

    def test_weights(self):
        sizes = [len(self.bytes_of(*CONV, '--epochs', '10', '--weights', kind)) for kind in ('auto', 'bf16', 'f32')]
        self.assertTrue(sizes[0] < sizes[1] < sizes[2], sizes)

    def test_tiers(self):
        """Everything that lies on top of a generator lies on top of this one."""
        for generator in (CONV, DIFFUSION):
            for tier in ('generate', 'latent', 'bounded', 'lossless'):
                arguments = [*generator, '--tier', tier, '--epochs', '10']
                self.bytes_of(*arguments)
                against = icma('verify', 'x.icma', '--deep', '--against', self.tree, cwd=self.here)
                self.assertEqual(against.code, 0, (arguments, against))
                sample = icma('unpack', 'x.icma', '--task', 'cat', '--sample', '--seed', '3', '-C', f'{tier}-{generator[1]}', cwd=self.here)
                self.assertEqual(sample.code, 0, sample)


if __name__ == '__main__':
    main()
