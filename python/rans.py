# SPDX-License-Identifier: Apache-2.0
"""Decoder of entropy-coded streams, written from spec/icma-format.md 4.10. The tables are those of codec/rans_tables.c, which
are part of that document."""
import bisect
import functools
import itertools
import pathlib
import re

TABLES = pathlib.Path(__file__).resolve().parents[1] / 'codec' / 'rans_tables.c'
SHAPES, CONTEXTS, WIDE, WIDTHS = 105, 225, 97, 8
LOW = 1 << 16


class Corrupt(Exception):
    pass


@functools.cache
def tables():
    """The shapes and the halves of their frequencies."""
    text = TABLES.read_text()
    shapes, halves = (re.search(rf'{name}\[\w+\] = {{(.*?)\n}};', text, re.DOTALL)[1]
                      for name in ('icma_rans_shapes', 'icma_rans_halves'))
    shapes = [tuple(map(int, row.split(','))) for row in re.findall(r'{([^}]*)}', shapes)]
    halves = [int(number) for number in re.findall(r'\d+', halves)]
    if len(shapes) != SHAPES or max(first + reach for _, _, first, _, reach, _ in shapes) != len(halves):
        raise RuntimeError(f'{TABLES}: not the tables of 4.10')
    return shapes, halves


class Context:
    def __init__(self, number):
        shapes, halves = tables()
        if number < SHAPES:
            shape, self.low = number, 0
        else:
            shape, self.low = WIDE + (number - SHAPES) % WIDTHS, 1 + (number - SHAPES) // WIDTHS
        _, rate, first, escape, self.reach, self.bits = shapes[shape]
        self.rate = rate + (self.low << 16)
        half = halves[first:first + self.reach]
        self.frequencies = half[::-1] + [(1 << self.bits) - escape - 2 * sum(half)] + half + [escape]
        self.starts = [0, *itertools.accumulate(self.frequencies[:-1])]


@functools.cache
def context(number):
    if not 0 <= number < CONTEXTS:
        raise Corrupt('a context that is not there')
    return Context(number)


def lanes(runs):
    expected = sum(count * context(number).rate for count, number in runs)
    return 1 if expected < 1 << 33 else 8 if expected < 1 << 37 else 32


class Stream:
    """The states, and the words that all lanes share."""

    def __init__(self, data, width):
        size = 4 * width
        if len(data) < size or (len(data) - size) % 2:
            raise Corrupt('a stream ends within its states, or within a word')
        self.states = [int.from_bytes(data[i:i + 4], 'little') for i in range(0, size, 4)]
        self.words = [int.from_bytes(data[i:i + 2], 'little') for i in range(size, len(data), 2)]
        self.at = 0
        if min(self.states) < LOW:
            raise Corrupt('a state is too small')

    def step(self, lane, state):
        if state < LOW:
            if self.at == len(self.words):
                raise Corrupt('a stream ends too soon')
            state = state << 16 | self.words[self.at]
            self.at += 1
        self.states[lane] = state

    def value(self, lane, c):
        state = self.states[lane]
        slot = state & (1 << c.bits) - 1
        v = bisect.bisect_right(c.starts, slot) - 1
        self.step(lane, c.frequencies[v] * (state >> c.bits) + slot - c.starts[v])
        return v - c.reach

    def raw(self, lane, bits):
        if bits == 0:
            return 0
        state = self.states[lane]
        self.step(lane, state >> bits)
        return state & (1 << bits) - 1

    def escaped(self, lane, reach):
        e = self.raw(lane, 6)
        n = e % 32
        if n == 31:
            raise Corrupt('an escape is too long')
        low = self.raw(lane, min(n, 16))
        high = self.raw(lane, n - 16) if n > 16 else 0
        d = (1 << n) + (high << 16) + low + reach
        return d if e < 32 else -d

    def end(self):
        if self.at != len(self.words) or any(state != LOW for state in self.states):
            raise Corrupt('a stream does not end where its symbols do')


def decode(data, runs):
    """The symbols of `runs`, pairs of a count and a context; raises Corrupt."""
    width = lanes(runs)
    if not any(count for count, _ in runs):
        if data:
            raise Corrupt('a stream without symbols has bytes')
        return []
    stream, out = Stream(data, width), []
    for count, number in runs:
        c = context(number)
        for start in range(0, count, width):
            group = range(min(width, count - start))
            h = [stream.value(lane, c) for lane in group]
            for lane in group:
                if h[lane] > c.reach:
                    h[lane] = stream.escaped(lane, c.reach)
            for lane in group:
                x = (h[lane] << c.low) - (1 << c.low - 1) + stream.raw(lane, c.low) if c.low else h[lane]
                if not -1 << 31 <= x < 1 << 31:
                    raise Corrupt('a symbol is no integer of 32 bits')
                out.append(x)
    stream.end()
    return out
