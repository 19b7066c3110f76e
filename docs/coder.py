"""An adaptive arithmetic coder in plain Python: the heart of notebook 05, for the page that needs no installation.

A weight is a number of its level, or 0. Coder and decoder walk through the places in the same order, and count in each
*context* how often the answer was yes; a context may be made of what lies behind, never of what lies ahead.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Hashable
from itertools import accumulate, pairwise
from math import log2

Grid = list[list[int]]
Context = Callable[[Grid, int, int], Hashable]
TOP = 0xFFFFFFFF


class Coder:
    """An interval of 32-bit integers, which every yes or no cuts in proportion to what was counted before."""

    def __init__(self, data: bytes | None = None) -> None:
        self.low, self.high, self.out = 0, TOP, bytearray()
        self.counts: dict[Hashable, tuple[int, int]] = {}
        self.data = None if data is None else iter(data)
        self.code = 0 if data is None else int.from_bytes([self._next() for _ in range(4)], "big")

    def _next(self) -> int:
        return next(self.data or iter(()), 0)

    def bit(self, context: Hashable, answer: bool = False) -> bool:
        """Code one answer, or read it if there is data; returns it."""
        yes, asked = self.counts.get(context, (0, 0))
        split = self.low + (self.high - self.low) * (2 * yes + 1) // (2 * asked + 2)
        if self.data is not None:
            answer = self.code <= split
        self.low, self.high = (self.low, split) if answer else (split + 1, self.high)
        self.counts[context] = yes + answer, asked + 1
        while self.low >> 24 == self.high >> 24:  # the first byte is certain: off it goes
            self.out.append(self.high >> 24)
            self.low, self.high = self.low << 8 & TOP, self.high << 8 & TOP | 255
            if self.data is not None:
                self.code = self.code << 8 & TOP | self._next()
        return answer


def walk(coder: Coder, rows: int, columns: int, bits: int, context: Context, grid: Grid | None = None) -> Grid:
    """Code a ``grid``, or read one if there is none: does a weight survive, and if so at which of 2**bits levels?"""
    done: Grid = [[0] * columns for _ in range(rows)]
    for row in range(rows):
        for column in range(columns):
            level = grid[row][column] if grid else 0
            if coder.bit(("survives", context(done, row, column)), level > 0):
                node = 1
                for digit in reversed(range(bits)):
                    node = 2 * node + coder.bit(("level", node), bool((level - 1) >> digit & 1))
                done[row][column] = node - (1 << bits) + 1
    return done


def encode(grid: Grid, bits: int, context: Context) -> bytes:
    """The grid as bytes."""
    coder = Coder()
    walk(coder, len(grid), len(grid[0]), bits, context, grid)
    return bytes(coder.out) + coder.high.to_bytes(4, "big")[:1]  # one byte is in the interval, whatever follows


def decode(data: bytes, rows: int, columns: int, bits: int, context: Context) -> Grid:
    """The grid again."""
    return walk(Coder(data), rows, columns, bits, context)


def entropy(p: float) -> float:
    """Bits that a yes of probability p is worth, if nothing else is known."""
    return -p * log2(p) - (1 - p) * log2(1 - p) if 0 < p < 1 else 0.0


def quantised(weights: list[list[float]], sparsity: float, bits: int) -> tuple[Grid, list[float], float]:
    """The smallest weights zeroed, the others at up to 2**bits levels by k-means; these; the relative error."""
    sizes = sorted(abs(w) for row in weights for w in row)
    least = sizes[min(round(sparsity * len(sizes)), len(sizes) - 1)] or sizes[-1]
    kept = sorted(w for row in weights for w in row if abs(w) >= least)
    sums = list(accumulate(kept, initial=0.0))
    cuts = [round(i * len(kept) / 2**bits) for i in range(2**bits + 1)]
    for _ in range(20):  # Lloyd's algorithm: levels are means of what is nearest to them
        levels = [(sums[b] - sums[a]) / (b - a) for a, b in pairwise(cuts) if b > a]
        borders = [(a + b) / 2 for a, b in pairwise(levels)]
        cuts = [0, *(bisect(kept, border) for border in borders), len(kept)]
    grid = [[bisect(borders, w) + 1 if abs(w) >= least else 0 for w in row] for row in weights]
    pairs = ((w, levels[k - 1] if k else 0.0) for a, b in zip(weights, grid) for w, k in zip(a, b))
    return grid, levels, sum((w - v) ** 2 for w, v in pairs) / sum(w * w for row in weights for w in row)
