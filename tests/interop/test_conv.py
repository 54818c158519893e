#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The convolutional CVAE against PyTorch's own modules: outputs, loss, gradients, ten training steps, evaluation.

Both start from the same weights and see the same batches and noise, in float32. What the files of icma_conv_probe hold, and in
which order, is written down in conv_probe.c. An error is the norm of a difference as a share of the norm, tensor by tensor.

LeakyReLU has a kink at 0. A number that is 0 but for rounding may get either slope, and of the millions in a large network some
do: each changes the gradient of n numbers by 1 / sqrt(n) or so (PyTorch in float32 differs from itself in float64 by 1e-3 for this
reason alone). Such numbers are put on the side that icma's were on, and it is checked that they are few and that what enters an
activation changes by less than the error that is allowed.

Adam's first step is the sign of a gradient, however small: where a gradient is 0 but for rounding, a parameter goes one way or the
other. Its epsilon is therefore between the gradients (1e-3) and their rounding (1e-8); one small network takes the usual 1e-8.
"""
import math
import os
import subprocess
import unittest

import numpy as np
import torch
from torch import nn

from common import ICMA, Case

PROBE = os.path.join(os.path.dirname(ICMA), 'icma_conv_probe')
PAPER = (8, 16, 32, 64, 128, 256, 256, 128, 64, 32, 16, 8)
AGREED = 1e-4
STEPS = 10
FEW = 1e-4  # of all numbers of the encoder


class Shape:
    def __init__(self, used, channels, count, width=7, hidden=32, latent=16, coordinates=3, autoencoder=False, variance=False):
        self.used, self.channels, self.count, self.width = used, channels, count, width
        self.hidden, self.latent, self.coordinates = hidden, latent, coordinates
        self.autoencoder, self.variance = autoencoder, variance
        self.layers, self.outputs = len(channels), 2 if variance else 1
        self.length = -(-used // 2 ** self.layers) * 2 ** self.layers
        self.start, self.deepest = self.length // 2 ** self.layers, channels[-1]


class Network(nn.Module):
    """The network of codec/conv_net.h, of PyTorch's parts, channels first."""

    def __init__(self, s):
        super().__init__()
        self.s, pad, flat = s, s.width // 2, s.start * s.deepest
        ins = (1,) + s.channels[:-1]
        down = [nn.Conv1d(i, o, s.width, 2, pad, bias=False) for i, o in zip(ins, s.channels)]
        ups = s.channels[::-1] + s.channels[:1]
        up = [nn.ConvTranspose1d(i, o, s.width, 2, pad, output_padding=1, bias=False) for i, o in zip(ups, ups[1:])]
        self.encoder = nn.ModuleList(nn.Sequential(c, nn.BatchNorm1d(c.out_channels), nn.LeakyReLU(0.01)) for c in down)
        self.decoder = nn.ModuleList(nn.Sequential(c, nn.BatchNorm1d(c.out_channels), nn.ELU()) for c in up)
        self.e = nn.Linear(flat, s.hidden)
        self.mu = nn.Linear(s.hidden + s.coordinates, s.latent)
        self.logvar = None if s.autoencoder else nn.Linear(s.hidden + s.coordinates, s.latent)
        self.g = nn.Linear(s.latent + s.coordinates, flat)
        self.last = nn.Conv1d(s.channels[0], s.outputs, s.width, 1, pad)
        for norm in self.norms():
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.1)

    def norms(self):
        return [block[1] for block in [*self.encoder, *self.decoder]]

    def forward(self, x, a, noise, latent_noise):
        s = self.s
        h = nn.functional.pad(x, (0, s.length - s.used))[:, None]
        for block in self.encoder:
            h = block(h)
        e = torch.cat([self.e(h.flatten(1)), a], 1)
        mu, logvar = self.mu(e), None if s.autoencoder else self.logvar(e)
        z = mu + (latent_noise if s.autoencoder else torch.exp(logvar / 2)) * noise
        g = self.g(torch.cat([z, a], 1)).view(-1, s.deepest, s.start)
        for block in self.decoder:
            g = block(g)
        return self.last(g)[:, :, :s.used], mu, logvar

    def loss(self, x, y, mu, logvar):
        if self.s.variance:
            reconstruction = ((x - y[:, 0]) ** 2 * torch.exp(-y[:, 1]) + y[:, 1]).mean() / 2
        else:
            reconstruction = ((x - y[:, 0]) ** 2).mean()
        kl = torch.zeros(()) if logvar is None else (torch.exp(logvar) + mu ** 2 - 1 - logvar).sum(1).mean() / 2
        return reconstruction, kl

    def parts(self):
        """(name, parameter, its axes apart, their order in the flat parameters)."""
        s = self.s
        for side, order in (('encoder', (2, 1, 0)), ('decoder', (2, 0, 1))):
            if side == 'decoder':
                yield from self.linear()
            for i, (convolution, norm, _) in enumerate(getattr(self, side)):
                yield f'{side}.{i}.w', convolution.weight, convolution.weight.shape, order
                yield f'{side}.{i}.gamma', norm.weight, norm.weight.shape, (0,)
                yield f'{side}.{i}.beta', norm.bias, norm.bias.shape, (0,)
        yield 'last.w', self.last.weight, self.last.weight.shape, (2, 1, 0)
        yield 'last.b', self.last.bias, self.last.bias.shape, (0,)

    def linear(self):
        s = self.s
        yield 'e.w', self.e.weight, (s.hidden, s.deepest, s.start), (2, 1, 0)
        yield 'e.b', self.e.bias, (s.hidden,), (0,)
        for name, layer in (('mu', self.mu), ('logvar', self.logvar)):
            if layer is not None:
                yield f'{name}.w', layer.weight, layer.weight.shape, (1, 0)
                yield f'{name}.b', layer.bias, layer.bias.shape, (0,)
        yield 'g.w', self.g.weight, (s.deepest, s.start, s.latent + s.coordinates), (2, 1, 0)
        yield 'g.b', self.g.bias, (s.deepest, s.start), (1, 0)

    def flat(self, of=lambda parameter: parameter):
        """[(name, numbers in the order of the flat parameters)]"""
        return [(name, of(p).detach().reshape(axes).permute(order).reshape(-1).double().numpy()) for name, p, axes, order in self.parts()]

    def running(self):
        return [(f'norm.{i}.{what}', tensor.double().numpy().copy()) for i, norm in enumerate(self.norms())
                for what, tensor in (('mean', norm.running_mean), ('variance', norm.running_var))]


class Signs:
    """Puts what enters the encoder's activations on the same side of 0 as icma's."""

    def __init__(self, net, path):
        self.signs, self.at, self.moved, self.worst = np.memmap(path, np.uint8, 'r'), 0, 0, 0.0
        self.hooks = [block[2].register_forward_pre_hook(self.move) for block in net.encoder]

    def move(self, _, inputs):
        x, = inputs
        batch, channels, positions = x.shape
        signs = self.signs[self.at:self.at + x.numel()]
        self.at += x.numel()
        above = torch.tensor(signs).bool().view(batch, positions, channels).permute(0, 2, 1)
        other = above != (x.detach() > 0)
        if not other.any():
            return None
        self.moved += int(other.sum())
        self.worst = max(self.worst, float(x.detach()[other].norm() / x.detach().norm()))
        side = torch.where(above, 1e-8, -1e-8).to(x.dtype)
        return torch.where(other, side + (x - x.detach()), x),

    def finish(self, case):
        for hook in self.hooks:
            hook.remove()
        case.assertEqual(self.at, len(self.signs))
        case.assertLess(self.moved, FEW * self.at)
        case.assertLess(self.worst, AGREED)


class Reader:
    """Takes the probe's output apart."""

    def __init__(self, path):
        self.left = np.fromfile(path, np.float32).astype(np.float64)

    def take(self, *shape):
        count = math.prod(shape)
        head, self.left = self.left[:count], self.left[count:]
        return head.reshape(shape)

    def named(self, like):
        return {name: self.take(len(values)) for name, values in like}


def error_of(got, wanted):
    return float(np.linalg.norm(got - wanted) / max(np.linalg.norm(wanted), 1e-30))


class Parity(Case):
    def compare(self, what, got, wanted):
        error = error_of(got, wanted)
        kind = what.split(' ')[0]
        self.errors[kind] = max(self.errors.get(kind, (0, '')), (error, what))
        if not error <= AGREED:
            self.failures.append(f'{what}: {error:.2e}')

    def check(self, s, weight_decay=0.0, cosine=False, rate=2e-4, kl_weight=0.005, latent_noise=0.1, epsilon=1e-5):
        torch.manual_seed(17)
        self.errors, self.failures = {}, []
        net = Network(s)
        draw = np.random.default_rng(3)
        base = draw.standard_normal(s.used)
        batches = [[(base + 0.5 * draw.standard_normal((s.count, s.used))).astype(np.float32),
                    draw.standard_normal((s.count, s.coordinates)).astype(np.float32),
                    draw.standard_normal((s.count, s.latent)).astype(np.float32)] for _ in range(STEPS)]
        rates = [rate * (1 + math.cos(math.pi * t / STEPS)) / 2 if cosine else rate for t in range(STEPS)]
        out = self.probe(s, net, batches, [kl_weight, latent_noise, 0.9, 0.999, epsilon, weight_decay, *rates])
        kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
        adam = kind(net.parameters(), lr=rate, betas=(0.9, 0.999), eps=epsilon, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS) if cosine else None
        losses, signs = [], Signs(net, self.path('signs'))
        for step, batch in enumerate(batches):
            x, a, noise = map(torch.tensor, batch)
            y, mu, logvar = net(x, a, noise, latent_noise)
            reconstruction, kl = net.loss(x, y, mu, logvar)
            losses.append([float(reconstruction), float(kl)])
            adam.zero_grad()
            (reconstruction + kl_weight * kl).backward()
            if step == 0:
                self.compare_first(s, out, net, y, mu, logvar)
            adam.step()
            if schedule:
                schedule.step()
        signs.finish(self)
        self.compare_trained(s, out, net, batches[0], latent_noise, losses)
        self.assertEqual(len(out.left), 0)
        print(f'{s.used} x {s.count}, channels {" ".join(map(str, s.channels))}:',
              ', '.join(f'{what} {error:.1e}' for error, what in self.errors.values()),
              f'({signs.moved} of {signs.at} at the kink, {signs.worst:.1e})')
        self.assertEqual(self.failures, [])

    def probe(self, s, net, batches, options):
        sizes = [s.used, s.layers, s.width, *s.channels, s.hidden, s.latent, s.coordinates, s.autoencoder, s.variance, s.count, STEPS]
        numbers = [np.asarray(options), *(values for _, values in net.flat()), *(array.reshape(-1) for batch in batches for array in batch)]
        source, target = self.path('in'), self.path('out')
        with open(source, 'wb') as f:
            np.asarray(sizes, np.uint64).tofile(f)
            np.concatenate(numbers).astype(np.float32).tofile(f)
        done = subprocess.run([PROBE, 'cpu', source, target, self.path('signs')], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return Reader(target)

    def compare_first(self, s, out, net, y, mu, logvar):
        self.compare('output', out.take(s.count, s.used, s.outputs), y.detach().permute(0, 2, 1).double().numpy())
        self.compare('latent mu', out.take(s.count, s.latent), mu.detach().double().numpy())
        if not s.autoencoder:
            self.compare('latent logvar', out.take(s.count, s.latent), logvar.detach().double().numpy())
        wanted = net.flat(lambda parameter: parameter.grad)
        got = out.named(wanted)
        for name, values in wanted:
            self.compare(f'gradient {name}', got[name], values)

    def compare_trained(self, s, out, net, batch, latent_noise, losses):
        got = out.take(STEPS, 2)
        for step, wanted in enumerate(losses):
            self.compare(f'loss {step}', got[step], np.asarray(wanted))
        for kind, wanted in (('parameter', net.flat()), ('running', net.running())):
            got = out.named(wanted)
            for name, values in wanted:
                self.compare(f'{kind} {name}', got[name], values)
        net.eval()
        with torch.no_grad():
            y, _, _ = net(*map(torch.tensor, batch), latent_noise)
        self.compare('evaluation', out.take(s.count, s.used, s.outputs), y.permute(0, 2, 1).double().numpy())

    def test_1_padding_and_batches(self):
        for used, count in ((1000, 8), (1024, 3), (777, 1)):
            with self.subTest(used=used, count=count):
                self.check(Shape(used, (8, 16, 16, 8), count))

    def test_2_channel_plans_and_widths(self):
        for channels, width in (((4,), 3), ((5, 1, 3), 5), ((8, 16, 32, 64, 32, 16), 7), ((3, 6), 13)):
            with self.subTest(channels=channels, width=width):
                self.check(Shape(1500, channels, 4, width=width))

    def test_3_without_condition(self):
        self.check(Shape(900, (8, 8, 8), 4, coordinates=0), epsilon=1e-8)

    def test_4_adamw_with_a_cosine_schedule(self):
        self.check(Shape(2000, (8, 16, 32, 16, 8), 8), weight_decay=0.01, cosine=True, rate=1e-3)

    def test_5_autoencoder(self):
        self.check(Shape(2000, (8, 16, 32, 16, 8), 8, coordinates=0, autoencoder=True), weight_decay=2e-3, cosine=True)

    def test_6_variance(self):
        for autoencoder in (False, True):
            with self.subTest(autoencoder=autoencoder):
                self.check(Shape(2000, (8, 16, 32, 16, 8), 8, coordinates=0 if autoencoder else 3, autoencoder=autoencoder, variance=True))

    def test_7_the_papers_plan(self):
        self.check(Shape(36864, PAPER, 8, hidden=256, latent=256, coordinates=5))

    def test_8_the_papers_plan_and_length(self):
        self.check(Shape(241241, PAPER, 2, hidden=256, latent=256, coordinates=5))


if __name__ == '__main__':
    unittest.main()
