#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The convolutional CVAE of codec/conv_net.h in PyTorch: seconds of one training step (forward, backward, Adam), the peer of bench_conv.

    conv_torch.py [--threads N] [--case BATCHxLENGTH] ... [--compile] [--no-mkldnn]

Prints a line for each case: "batch length seconds gflops", the best of several steps. bench_conv reads such lines and sets them beside its own:
    conv_torch.py > torch.txt; bench_conv torch.txt
GFLOP/s count two operations for each multiply-add of convolutions and linear layers, three times: forward, and backward to the inputs and to the weights.
"""
import argparse
import sys
import time

import torch
from torch import nn
from torch.nn import functional

CHANNELS = [8, 16, 32, 64, 128, 256, 256, 128, 64, 32, 16, 8]
WIDTH, HIDDEN, LATENT, COORDINATES = 7, 256, 64, 16
CASES = ["2x36864", "8x36864", "2x241664", "2x1933312"]


class Net(nn.Module):
    def __init__(self, length):
        super().__init__()
        self.start = length >> len(CHANNELS)
        encoder, inputs = [], 1
        for outputs in CHANNELS:
            encoder += [nn.Conv1d(inputs, outputs, WIDTH, stride=2, padding=WIDTH // 2, bias=False), nn.BatchNorm1d(outputs), nn.LeakyReLU(0.01)]
            inputs = outputs
        self.encoder = nn.Sequential(*encoder)
        flat = self.start * CHANNELS[-1]
        self.hidden = nn.Linear(flat, HIDDEN)
        self.mu = nn.Linear(HIDDEN + COORDINATES, LATENT)
        self.logvar = nn.Linear(HIDDEN + COORDINATES, LATENT)
        self.spread = nn.Linear(LATENT + COORDINATES, flat)
        decoder = []
        for outputs in CHANNELS[-2::-1] + CHANNELS[:1]:
            decoder += [nn.ConvTranspose1d(inputs, outputs, WIDTH, stride=2, padding=WIDTH // 2, output_padding=1, bias=False), nn.BatchNorm1d(outputs), nn.ELU()]
            inputs = outputs
        self.decoder = nn.Sequential(*decoder, nn.Conv1d(inputs, 1, WIDTH, padding=WIDTH // 2))

    def forward(self, x, a, noise):
        e = torch.cat([self.hidden(self.encoder(x).flatten(1)), a], 1)
        mu, logvar = self.mu(e), self.logvar(e)
        z = mu + torch.exp(logvar / 2) * noise
        g = self.spread(torch.cat([z, a], 1)).view(x.shape[0], CHANNELS[-1], self.start)
        return self.decoder(g), mu, logvar


def multiply_adds(length):
    """Of a forward pass of one sequence."""
    total, inputs, rows = 0, 1, length
    for outputs in CHANNELS:
        rows //= 2
        total += rows * WIDTH * inputs * outputs
        inputs = outputs
    flat = rows * inputs
    total += 2 * flat * HIDDEN  # there and back, about
    for outputs in CHANNELS[-2::-1] + CHANNELS[:1]:
        total += rows * WIDTH * inputs * outputs
        inputs, rows = outputs, 2 * rows
    return total + rows * WIDTH * inputs


def bench(batch, length, compiled):
    torch.manual_seed(1)
    net = Net(length)
    run = torch.compile(net) if compiled else net
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    x, a, noise = torch.randn(batch, 1, length), torch.randn(batch, COORDINATES), torch.randn(batch, LATENT)
    best, spent, steps = float("inf"), 0.0, 0
    while steps < 3 or (spent < 4 and steps < 30):
        start = time.perf_counter()
        adam.zero_grad()
        y, mu, logvar = run(x, a, noise)
        kl = (torch.exp(logvar) + mu * mu - 1 - logvar).sum() / (2 * batch)
        (functional.mse_loss(y, x) + 1e-3 * kl).backward()
        adam.step()
        seconds = time.perf_counter() - start
        best, spent, steps = min(best, seconds), spent + seconds, steps + 1
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--case", action="append")
    parser.add_argument("--compile", action="store_true", help="through torch.compile, where there is one")
    parser.add_argument("--no-mkldnn", action="store_true", help="without oneDNN")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.no_mkldnn:
        torch.backends.mkldnn.enabled = False
    print(f"# PyTorch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    for case in options.case or CASES:
        batch, length = map(int, case.split("x"))
        if length % (1 << len(CHANNELS)):
            sys.exit(f"{case}: the length is no multiple of {1 << len(CHANNELS)}")
        seconds = bench(batch, length, options.compile)
        print(f"{batch} {length} {seconds:.4f} {6e-9 * batch * multiply_adds(length) / seconds:.1f}", flush=True)


main()
