"""A decoder of `.delib` files written from docs/format.md alone: that page is complete, and this its witness."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

FIELDS = (6, 7)  # of an entry that is a tensor of levels
DICTIONARY = (
    b'.num_batches_tracked",[],8,"int64"],["running_mean",[64],"running_var",[256],"float32","deflate"],["downsample.0.'
    b'features.classifier.model.0.cv1.m.layer4.block.skip.conv.bias",[1000],256,true,16],["fc3.bias",[300],15,true,16],["'
    b'fc.weight",[10,128],16,false,16],["conv2.weight",[64,32,1,1],["block3.conv1.bias",[128],132,16,false,16],["block1.'
    b'conv2.weight",[64,64,3,3],16,false,16],["conv.weight",[32,1,3,3],16,false,16],["conv1.bias",[32],84,16,false,16],["'
    b'fc2.weight",[10,500],["fc1.weight",[500,800],15,["conv1.weight",['
)
POWER = [1 << 32]
while len(POWER) <= 3071:
    POWER.append(POWER[-1] * 4278222805 >> 32)
SQUASH = {x: (1 << 48) // ((1 << 32) + power) for x, power in enumerate(POWER)}
SQUASH |= {-x: 65536 - SQUASH[x] for x in range(1, 3072)}
STRETCH = [next(x for x in range(-3071, 3072) if SQUASH[x] >= 16 * q + 8) for q in range(0, 4096)]
STEP = [131072 // (2 * n + 3) for n in range(512)]


def clip(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


class Questions:
    """Counters, weights and coder; counters are named by tuples that begin with the letter of what they start as."""

    def __init__(self, stream: bytes, starts: dict[str, int]) -> None:
        self.bytes: Iterator[int] = iter(stream)
        self.low, self.high, self.code = 0, 0xFFFFFFFF, 0
        for _ in range(4):
            self.code = self.code << 8 | next(self.bytes, 0)
        self.starts, self.counters, self.sets = starts, {}, {}

    def counter(self, name: tuple) -> list[int]:
        start = self.starts.get(name[0])
        return self.counters.setdefault(name, [1 << 21, 0] if start is None else [start, 4])

    def level(self, name: tuple) -> int:
        return clip(STRETCH[self.counter(name)[0] >> 10] + 2048 >> 7, 0, 31)

    def bit(self, p: int) -> int:
        width = self.high - self.low
        split = self.low + (width >> 16) * p + ((width & 65535) * p >> 16)
        bit = int(self.code <= split)
        self.low, self.high = (self.low, split) if bit else (split + 1, self.high)
        while self.low >> 24 == self.high >> 24:
            self.low, self.high = self.low << 8 & 0xFFFFFFFF, self.high << 8 & 0xFFFFFFFF | 255
            self.code = self.code << 8 & 0xFFFFFFFF | next(self.bytes, 0)
        return bit

    def ask(self, number: int, names: list[tuple]) -> int:
        counters = [self.counter(name) for name in names]
        chosen = self.sets.setdefault(number, [[19661] * 5, 0])
        weights, odds = chosen[0], [STRETCH[counter[0] >> 10] for counter in counters]
        total = sum(weight * odd for weight, odd in zip(weights, odds))
        p = clip(SQUASH[clip(total >> 16, -3071, 3071)], 16, 65520)
        bit = self.bit(p)
        error = ((bit << 16) - p) * (32 + (4000 * STEP[chosen[1]] >> 16))
        chosen[1] = min(chosen[1] + 1, 511)
        for i, counter in enumerate(counters):
            weights[i] += odds[i] * error + (1 << 21) >> 22
            counter[0] += ((bit << 22) - counter[0]) * STEP[counter[1]] >> 16
            counter[1] = min(counter[1] + 1, 511)
        return bit


def decode_values(stream: bytes, shape: list[int], survivors: int, depth: int) -> np.ndarray:
    """Signed sizes [rows, channels, kernel], 0 for zeros."""
    kernel, width = math.prod(shape[2:]), shape[-1] if len(shape) > 2 else 1
    values = np.zeros((shape[0], shape[1] if len(shape) > 1 else 1, kernel), int)
    d, empty = survivors * 65536 // values.size, 65536
    for _ in range(kernel):
        empty = empty * (65536 - d) >> 16
    inside = min(d * 65536 // max(65536 - empty, 1), 65536) if kernel > 1 else d
    starts = {"w": 64 * clip(65536 - empty, 16, 65520), "z": 64 * clip(inside, 16, 65520)}
    q, balance = Questions(stream, starts), np.zeros(values.shape[1:], int)
    for r in range(len(values)):
        q.counters["w", "row"], q.counters["z", "row"] = [starts["w"], 20], [starts["z"], 20]
        lean_of_row = 0
        for c in range(values.shape[1]):
            w = [("w", "row"), ("w", "channel", c)]
            if kernel > 1 and not q.ask(0, [*w, ("w", "both", *map(q.level, w))]):
                continue
            mass = number = lean = 0
            for k in range(kernel):
                row, channel = ("z", "row"), ("z", "channel", c)
                if kernel == 1 or k < kernel - 1 or number:
                    near = ("z", "near", *(neighbours(values, r, c) if kernel == 1 else (k, octave(mass))))
                    both = ("z", "both", q.level(row), q.level(channel))
                    if not q.ask(1, [row, ("z", "column", c, k), channel, both, near]):
                        continue
                up = values[r, c, k - width] if k >= width else 0
                left = values[r, c, k - 1] if k % width > 0 else 0
                balances = clip(balance[c, k], -7, 7), clip(lean_of_row >> 1, -7, 7)
                negative = q.ask(2, [("s", clip(lean, -3, 3), np.sign(up), np.sign(left)), ("t", *balances)])
                node = 1
                for _ in range(depth):
                    of = min(4 * mass // max(number, 1), 31), (min(k, 15), negative), q.level(channel)
                    node = node * 2 + q.ask(3, [(i, node, of[i]) for i in range(3)])
                size, sign = node - (1 << depth) + 1, 1 - 2 * negative
                values[r, c, k] = sign * size
                mass, number, lean, lean_of_row = mass + size, number + 1, lean + sign, lean_of_row + sign
                balance[c, k] += sign
    return values


def octave(n: int) -> int:
    half = next(h for h in range(64) if n >> h <= 3)
    return min(2 * half + (n >> half), 15)


def neighbours(values: np.ndarray, r: int, c: int) -> tuple[bool, ...]:
    places = ((r - 1, c), (r - 2, c), (r, c - 1), (r, c - 2))
    return tuple(bool(i >= 0 and j >= 0 and values[i, j, 0]) for i, j in places)


def decode_file(data: bytes) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Mask and indices of every tensor of levels in a file."""
    stop = 20 + int.from_bytes(data[16:20], "little")
    found: dict[str, Any] = {}
    for entry in json.loads(zlib.decompressobj(-15, zdict=DICTIONARY).decompress(data[20:stop])):
        payload, stop = (data[stop : stop + entry[2]], stop + entry[2]) if len(entry) > 2 else (b"", stop)
        if len(entry) in FIELDS:
            name, shape, _, levels, survivors, scaled, *half = entry
            each = 2 if half else 4
            codebook = np.frombuffer(payload[: each * levels], f"<f{each}")
            ranked = sorted(range(levels), key=lambda i: (np.isnan(codebook[i]), abs(codebook[i]), i))
            negative = [i for i in ranked if codebook[i] < 0]
            positive = [i for i in ranked if not codebook[i] < 0]
            depth = (max(len(negative), len(positive), 1) - 1).bit_length()
            stream = payload[each * levels + (2 * shape[0] if scaled else 0) :]
            walked = [shape[1], shape[0], *shape[2:]] if survivors < 0 else shape
            values = decode_values(stream, walked, abs(survivors), depth) if survivors else np.zeros(shape, int)
            values = values.reshape(walked).swapaxes(0, 1) if survivors < 0 else values.reshape(shape)
            signed = values[values != 0]
            found[name] = values != 0, [negative[-v - 1] if v < 0 else positive[v - 1] for v in signed]
    return found
