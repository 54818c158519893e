# SPDX-License-Identifier: Apache-2.0
"""Integers from symbols, written from spec/icma-format.md 4.13."""
CONTEXT, BLOCK, LOWEST, HIGHEST = 57, 65536, -16384, 16383


def parity(x):
    return x.bit_count() & 1 if hasattr(x, 'bit_count') else bin(x).count('1') & 1


OFFSET = [parity(s & 5) for s in range(16)]
# By state and last bit of the symbol.
NEXT = [[(2 * s + (last ^ parity(s & 12))) % 16 for last in (0, 1)] for s in range(16)]


class Corrupt(Exception):
    pass


def expand(symbols, context):
    """The integers of one sequence."""
    if any(not LOWEST <= k <= HIGHEST for k in symbols):
        raise Corrupt('a symbol is out of its range')
    if context < CONTEXT:
        return [2 * k for k in symbols]
    out, state = [], 0
    for l, k in enumerate(symbols):
        if l % BLOCK == 0:
            state = 0
        out.append(2 * k + OFFSET[state])
        state = NEXT[state][k & 1]
    return out
