#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a card can do and what PyTorch makes of it, in the run in which ours is measured: scripts/gpu-check sets bench_gpu's numbers beside these.

    gpu_torch.py [--what copy,products,steps] [--length N] [--batch N,N] [--modes f32,tf32,bf16] [--repetitions N] [--size N] [--device cuda]

Prints "key value" lines: torch.copy.gbs (device to device, bytes read and written), torch.product.MODE.tflops, and of the training step of bench/conv_torch.py's network (forward, backward, Adam)
torch.step.MODE.BATCH.ms with .eager and .graph, or .failed and the reason. Medians; a GPU times itself, with events.
"""
import argparse
import ast
import os
import statistics
import time
import types

import torch
from torch.nn import functional

MODES = 'f32', 'tf32', 'bf16'


def network():
    """The definitions of conv_torch.py, which runs its own benchmark where it is imported: all but its last call."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'conv_torch.py')
    with open(path) as f:
        tree = ast.parse(f.read(), path)
    tree.body = [n for n in tree.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Call))]
    module = types.ModuleType('conv_torch')
    exec(compile(tree, path, 'exec'), module.__dict__)
    return module


def say(key, value):
    print(key, value, flush=True)


class Clock:
    """Seconds of something that a device does, one number a repetition."""
    def __init__(self, device):
        self.gpu = device == 'cuda'

    def times(self, work, warm_up, repetitions):
        for _ in range(warm_up):
            work()
        if not self.gpu:
            return [self.host(work) for _ in range(repetitions)]
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repetitions + 1)]
        torch.cuda.synchronize()
        marks[0].record()
        for mark in marks[1:]:
            work()
            mark.record()
        torch.cuda.synchronize()
        return [1e-3 * a.elapsed_time(b) for a, b in zip(marks, marks[1:])]

    @staticmethod
    def host(work):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start


def choose(mode):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mode == 'tf32'


def copy(o, clock):
    count = o.size * o.size * 16  # 4 GiB for 8192: no cache holds it
    a = torch.randn(count, device=o.device)
    b = torch.empty_like(a)
    seconds = statistics.median(clock.times(lambda: b.copy_(a), 3, o.repetitions))
    say('torch.copy.gbs', f'{2e-9 * 4 * count / seconds:.1f}')


def products(o, clock):
    for mode in o.modes:
        choose(mode)
        a, b = (torch.randn(o.size, o.size, device=o.device, dtype=torch.bfloat16 if mode == 'bf16' else torch.float32) for _ in range(2))
        c = torch.empty_like(a)
        seconds = statistics.median(clock.times(lambda: torch.mm(a, b, out=c), 3, o.repetitions))
        say(f'torch.product.{mode}.tflops', f'{2e-12 * o.size**3 / seconds:.2f}')


def trainee(conv, o, mode, batch):
    """A function that makes one training step."""
    torch.manual_seed(1)
    net = conv.Net(o.length).to(o.device)
    gpu = o.device == 'cuda'
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, **({'fused': True, 'capturable': True} if gpu else {}))
    x, a, noise = (torch.randn(*shape, device=o.device) for shape in ((batch, 1, o.length), (batch, conv.COORDINATES), (batch, conv.LATENT)))

    def step():
        adam.zero_grad(set_to_none=True)
        # Casts of weights may not be cached over the steps of a graph.
        with torch.autocast(o.device, torch.bfloat16, enabled=mode == 'bf16', cache_enabled=False):
            y, mu, logvar = net(x, a, noise)
            mu, logvar = mu.float(), logvar.float()
            kl = (torch.exp(logvar) + mu * mu - 1 - logvar).sum() / (2 * batch)
            loss = functional.mse_loss(y.float(), x) + 1e-3 * kl
        loss.backward()
        adam.step()

    return step


def captured(step):
    """The same step as a graph. On a stream of its own first, as capturing wants it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def reason(error):
    return 'out of memory' if isinstance(error, getattr(torch.cuda, 'OutOfMemoryError', ())) else ' '.join(str(error).split())[:160]


def time_step(conv, o, clock, mode, batch):
    key, best = f'torch.step.{mode}.{batch}', []
    step = trainee(conv, o, mode, batch)
    for how, prepare in (('eager', lambda s: s), ('graph', captured)):
        if how == 'graph' and o.device != 'cuda':
            continue
        try:
            best.append(1e3 * statistics.median(clock.times(prepare(step), 3, o.repetitions)))
            say(f'{key}.{how}', f'{best[-1]:.3f}')
        except RuntimeError as error:
            say(f'{key}.{how}.failed', reason(error))
    if best:
        say(f'{key}.ms', f'{min(best):.3f}')
    else:
        say(f'{key}.failed', 'out of memory, or as said')


def steps(o, clock):
    conv = network()
    for mode in o.modes:
        choose(mode)
        for batch in o.batch:
            try:
                time_step(conv, o, clock, mode, batch)
            except RuntimeError as error:
                say(f'torch.step.{mode}.{batch}.failed', reason(error))
            if o.device == 'cuda':
                torch.cuda.empty_cache()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: text.split(',')  # noqa: E731
    ap.add_argument('--what', type=words, default=['copy', 'products', 'steps'])
    ap.add_argument('--device', default='cuda', choices=['cuda', 'cpu'])
    ap.add_argument('--length', type=int, default=1933312)
    ap.add_argument('--batch', type=lambda text: [int(n) for n in words(text)], default=[2, 16])
    ap.add_argument('--modes', type=words, default=list(MODES))
    ap.add_argument('--repetitions', type=int, default=10)
    ap.add_argument('--size', type=int, default=8192, help='of the matrices, and the copy is of 64 bytes times its square')
    o = ap.parse_args()
    torch.backends.cudnn.benchmark = True
    say('torch.version', torch.__version__)
    clock = Clock(o.device)
    for name, measure in (('copy', copy), ('products', products), ('steps', steps)):
        if name in o.what:
            measure(o, clock)


if __name__ == '__main__':
    main()
