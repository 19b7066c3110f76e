"""Adaptive binary context mixing: a sparse quantised weight as a sequence of coded decisions, in integers only.

One walk over the weights, row by row, both encodes and decodes. Of every kernel it asks whether anything survives, of
every weight of such a kernel whether it does, and of every survivor its sign and then its size, bit by bit. Each
decision looks at a few counters, each the share of ones among the decisions met so far in one context (the same row,
the same column, ...). Their log-odds are added with weights that are themselves learned on the way (logistic mixing,
Mahoney 2005, "Adaptive weighing of context models for lossless data compression", section 3), and the resulting
probability drives a binary range coder. No float occurs, so a file decodes alike on every machine; `docs/format.md`
states every table and recurrence.

The functions are plain Python and readable as the reference; ``compiled`` is the same walk by numba.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numba
import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

Integers = NDArray[np.int64]

ONE = 1 << 16  # the probability 1
LEAST = 16  # the least probability of either outcome: a decision costs at most 12 bits
REACH = 3071  # of log-odds, in 1/256: probabilities from e^-12 to 1 - e^-12
DECAY = 4278222805  # 2^32 · e^(-1/256), rounded


def _squash() -> Integers:
    """The probability (in 1/65536) at every log-odds x/256, x from -REACH to REACH: 1 / (1 + e^(-x/256))."""
    upper, power = [], 1 << 32  # power: e^(-x/256) · 2^32
    for _ in range(REACH + 1):
        upper.append((1 << 48) // ((1 << 32) + power))
        power = power * DECAY >> 32
    return np.array([ONE - p for p in upper[:0:-1]] + upper, np.int64)


SQUASH = _squash()
# The log-odds (in 1/256) at every probability, by its upper 12 bits: the inverse of SQUASH at the middle of each step.
STRETCH = np.searchsorted(SQUASH, 16 * np.arange(1 << 12) + 8).astype(np.int64) - REACH

COUNTER_BITS = 9  # of a counter, the lower, are how many decisions it has met; the upper 22 the share of ones
LIMIT = 255  # decisions after which a counter's memory is that of an exponential average
START = 1 << 21 << COUNTER_BITS  # a counter that has met nothing: one half
# The step of a counter that has met n decisions, in 1/65536: 1 / (n + 1.5), the estimate of Krichevsky and Trofimov.
STEP = np.array([2 * ONE // (2 * n + 3) for n in range(1 << COUNTER_BITS)], np.int64)

INPUTS = 7  # the most counters that a decision looks at
# Learning rates of the mixer: each set of weights begins RATE_FIRST faster, which fades as 1 / (decisions + 1.5).
RATE_MASK, RATE_LEVEL, RATE_FIRST = 24, 48, 4000
ROW_MEMORY, PRIOR = 20, 4  # decisions that a fresh row's, and a fresh column's or channel's, first estimate is worth


class Model(NamedTuple):
    """What the walk has learned, and what the decision at hand looks at."""

    counters: NDArray[np.int32]
    weights: Integers  # [sets, INPUTS], in 1/65536
    met: Integers  # [sets]: decisions that each set of weights has learned from, up to 511
    slots: Integers  # [INPUTS]: the counters that this decision looks at
    inputs: Integers  # [INPUTS]: their log-odds


class Coder(NamedTuple):
    """A carry-less binary range coder: the interval that is left, the code read, bytes passed; and the bytes."""

    state: Integers  # low, high, code, position
    stream: NDArray[np.uint8]
    decoding: bool


@register_jitable(forceinline=True)
def code(bit: int, p: int, coder: Coder) -> int:
    """Code one decision that is 1 with probability ``p`` (in 1/65536); decoding, ``bit`` is ignored. Returns it."""
    state, stream, decoding = coder
    low, high = state[0], state[1]
    width = high - low
    split = low + (width >> 16) * p + ((width & 0xFFFF) * p >> 16)
    if decoding:
        bit = 1 if state[2] <= split else 0
    if bit:
        high = split
    else:
        low = split + 1
    while (low ^ high) >> 24 == 0:
        if decoding:
            byte = int(stream[state[3]]) if state[3] < len(stream) else 0
            state[2] = (state[2] << 8 & 0xFFFFFFFF) | byte
        elif state[3] < len(stream):
            stream[state[3]] = high >> 24
        state[3] += 1
        low = low << 8 & 0xFFFFFFFF
        high = (high << 8 & 0xFFFFFFFF) | 0xFF
    state[0], state[1] = low, high
    return bit


@register_jitable(forceinline=True)
def decide(bit: int, count: int, chosen: int, rate: int, model: Model, coder: Coder) -> int:
    """Code a decision by mixing the first ``count`` slots with weights ``chosen``, then learn from its outcome."""
    counters, weights, met, slots, inputs = model
    total = 0
    for i in range(count):
        inputs[i] = STRETCH[counters[slots[i]] >> COUNTER_BITS + 10]
        total += weights[chosen, i] * inputs[i]
    p = min(max(SQUASH[min(max(total >> 16, -REACH), REACH) + REACH], LEAST), ONE - LEAST)
    bit = code(bit, p, coder)
    error = ((bit << 16) - p) * (rate + (RATE_FIRST * STEP[met[chosen]] >> 16))
    met[chosen] = min(met[chosen] + 1, LIMIT)
    for i in range(count):
        weights[chosen, i] += inputs[i] * error + (1 << 21) >> 22
        state = int(counters[slots[i]])
        share, n = state >> COUNTER_BITS, state & (1 << COUNTER_BITS) - 1
        share += ((bit << 22) - share) * STEP[n] >> 16
        counters[slots[i]] = share << COUNTER_BITS | min(n + 1, LIMIT)
    return bit


class Layer(NamedTuple):
    """The weight as the walk sees it: its shape, where each context's counters begin, and what has passed by."""

    # rows, channels, kernel size and width, bits of a size; below, offsets into the counters: those of a whole kernel,
    # of a weight's survival, of a sign, of a size.
    rows: int
    channels: int
    kernel: int
    width: int
    depth: int
    whole: int
    zero: int
    sign: int
    size: int
    values: Integers  # [3, columns]: signed sizes of this row and of the two above, in turn; 0 is no survivor
    filled: Integers  # [3, channels]: whether a kernel has survivors, likewise
    begin: Integers  # [2]: counters of fresh rows, for a kernel and for a weight of it
    balance: Integers  # [columns]: positive less negative survivors
    column_mean: Integers  # [columns]: running mean of the sizes, in 1/256
    channel_mean: Integers  # [channels]: the same
    row: Integers  # [2]: running mean of the row's sizes, in 1/256; balance of its signs


@register_jitable(forceinline=True)
def level_of(counter: int) -> int:
    """A counter's log-odds in 32 steps of one half, from -8 to 8."""
    return min(max(STRETCH[counter >> COUNTER_BITS + 10] + 2048 >> 7, 0), 31)


@register_jitable(forceinline=True)
def octave(n: int) -> int:
    """n in half octaves: 0, 1, 2, 3, 4 (4 and 5), 5 (6 and 7), 6 (8 to 11), ..., up to 15."""
    step = 0
    while n >> step > 3:
        step += 1
    return min(2 * step + (n >> step), 15)


@register_jitable(forceinline=True)
def clipped(n: int, most: int) -> int:
    """n within -most..most, counted from 0."""
    return min(max(n, -most), most) + most


@register_jitable(forceinline=True)
def sign_of(value: int) -> int:
    return 0 if value == 0 else 1 if value < 0 else 2


@register_jitable(forceinline=True)
def code_whole(bit: int, r: int, channel: int, layer: Layer, model: Model, coder: Coder) -> int:
    """Whether a kernel has any survivor."""
    filled, counters, slots = layer.filled, model.counters, model.slots
    near = filled[1, channel] | filled[2, channel] << 1
    if channel > 0:
        near |= filled[0, channel - 1] << 2
    if channel > 1:
        near |= filled[0, channel - 2] << 3
    slots[0] = layer.whole
    slots[1] = layer.whole + 2 + channel
    slots[2] = layer.whole + 2 + layer.channels + near
    cross = level_of(counters[slots[0]]) * 32 + level_of(counters[slots[1]])
    slots[3] = layer.whole + 2 + layer.channels + 16 + cross
    slots[4] = layer.whole + 1
    bit = decide(bit, 5, 0, RATE_MASK, model, coder)
    filled[0, channel] = bit
    return bit


@register_jitable(forceinline=True)
def code_zero(bit: int, at: tuple[int, int, int], mass: int, layer: Layer, model: Model, coder: Coder) -> int:
    """Whether a weight survives, after survivors of sizes that sum to ``mass`` in its kernel."""
    values, counters, slots = layer.values, model.counters, model.slots
    r, channel, k = at
    column = channel * layer.kernel + k
    near = (values[1, column] != 0) | (values[2, column] != 0) << 1
    if channel > 0:
        near |= (values[0, column - layer.kernel] != 0) << 2
    if channel > 1:
        near |= (values[0, column - 2 * layer.kernel] != 0) << 3
    if k > 0:
        near |= (values[0, column - 1] != 0) << 4
    columns = layer.channels * layer.kernel
    slots[0] = layer.zero
    slots[6] = layer.zero + 1
    slots[1] = layer.zero + 2 + column
    slots[2] = layer.zero + 2 + columns + channel
    cross = level_of(counters[slots[0]]) * 32 + level_of(counters[slots[2]])
    slots[3] = layer.zero + 2 + columns + layer.channels + cross
    slots[4] = layer.zero + 2 + columns + layer.channels + 1024 + near
    slots[5] = layer.zero + 2 + columns + layer.channels + 1056 + k * 16 + octave(mass)
    return decide(bit, 7, 1 + min(k, 3), RATE_MASK, model, coder)


@register_jitable(forceinline=True)
def code_sign(bit: int, at: tuple[int, int, int], lean: int, layer: Layer, model: Model, coder: Coder) -> int:
    """Whether a survivor is negative, after survivors whose signs sum to ``lean`` in its kernel."""
    r, channel, k = at
    column, values, slots = channel * layer.kernel + k, layer.values, model.slots
    up = sign_of(values[0, column - layer.width]) if k >= layer.width else 0
    left = sign_of(values[0, column - 1]) if k % layer.width > 0 else 0
    slots[0] = layer.sign + clipped(lean, 3) * 9 + up * 3 + left
    slots[1] = layer.sign + 63 + clipped(layer.balance[column], 7) * 15 + clipped(layer.row[1] >> 1, 7)
    return decide(bit, 2, 5, RATE_LEVEL, model, coder)


@register_jitable(forceinline=True)
def code_size(
    size: int, negative: int, at: tuple[int, int, int], mean: int, layer: Layer, model: Model, coder: Coder
) -> int:
    """A survivor's size less one, from the highest bit on; ``mean`` is 4 times that of its kernel so far."""
    r, channel, k = at
    shift, slots = 4 + max(layer.depth - 4, 0), model.slots
    of_row = min(layer.row[0] >> shift, 15)
    of_column = min(layer.column_mean[channel * layer.kernel + k] >> shift, 15)
    of_channel = min(layer.channel_mean[channel] >> shift, 15)
    dense = level_of(model.counters[layer.zero + 2 + layer.channels * layer.kernel + channel])
    node = 1
    for b in range(layer.depth - 1, -1, -1):
        start = layer.size + node * 6 * 32
        slots[0] = start + of_row
        slots[1] = start + 32 + of_column
        slots[2] = start + 64 + of_channel
        slots[3] = start + 96 + min(mean, 31)
        slots[4] = start + 128 + min(k, 15) * 2 + negative
        slots[5] = start + 160 + dense
        bit = decide(size >> b & 1, 6, 6 + min(node, 15), RATE_LEVEL, model, coder)
        node = node * 2 + bit
    return node - (1 << layer.depth)


@register_jitable(forceinline=True)
def code_kernel(
    r: int,
    channel: int,
    mask: NDArray[np.uint8],
    levels: NDArray[np.int32],
    done: int,
    layer: Layer,
    model: Model,
    coder: Coder,
) -> int:
    """The weights of one kernel; ``done`` survivors came before. Returns how many there are now."""
    first = (r * layer.channels + channel) * layer.kernel
    columns = channel * layer.kernel
    if layer.kernel > 1:
        some = 0
        for k in range(layer.kernel):
            some |= mask[first + k]
        if not code_whole(some, r, channel, layer, model, coder):
            for k in range(layer.kernel):
                layer.values[0, columns + k] = 0
            return done
    mass, lean, before = 0, 0, done
    for k in range(layer.kernel):
        at = (r, channel, k)
        survives = 1
        if layer.kernel == 1 or k < layer.kernel - 1 or done > before:
            survives = code_zero(int(mask[first + k]), at, mass, layer, model, coder)
        value = 0
        if survives:
            mask[first + k] = 1
            if done == len(levels):
                return -1
            negative = code_sign(1 if levels[done] < 0 else 0, at, lean, layer, model, coder)
            mean = 4 * mass // (done - before) if done > before else 0
            size = code_size(abs(int(levels[done])) - 1, negative, at, mean, layer, model, coder) + 1
            value = -size if negative else size
            levels[done] = value
            learn_level(value, channel, columns + k, layer)
            mass += size
            lean += 1 - 2 * negative
            done += 1
        layer.values[0, columns + k] = value
    return done


@register_jitable(forceinline=True)
def learn_level(value: int, channel: int, column: int, layer: Layer) -> None:
    """Take account of a survivor in the running means and balances."""
    scaled, sign = abs(value) - 1 << 8, 1 if value > 0 else -1
    layer.row[0] += scaled - layer.row[0] >> 4
    layer.row[1] += sign
    layer.balance[column] += sign
    layer.column_mean[column] += scaled - layer.column_mean[column] >> 2
    layer.channel_mean[channel] += scaled - layer.channel_mean[channel] >> 3


@register_jitable(forceinline=True)
def hand_down(rows: Integers) -> None:
    """A finished row becomes the row above, and that one the row above it."""
    for c in range(rows.shape[1]):
        rows[2, c] = rows[1, c]
        rows[1, c] = rows[0, c]


def walk(mask: NDArray[np.uint8], levels: NDArray[np.int32], layer: Layer, model: Model, coder: Coder) -> int:
    """Code a layer's mask [rows · columns] and its survivors' signed sizes [survivors], or fill them in.

    Returns the number of survivors; -1 if there are more than ``levels`` holds.
    """
    done = 0
    counters = model.counters
    for r in range(layer.rows):
        # A fresh row is expected to be like those before it.
        layer.row[1] = 0
        hand_down(layer.values)
        hand_down(layer.filled)
        counters[layer.whole], counters[layer.zero] = layer.begin[0], layer.begin[1]
        for channel in range(layer.channels):
            done = code_kernel(r, channel, mask, levels, done, layer, model, coder)
            if done < 0:
                return done
    return done


def _power(base: int, exponent: int) -> int:
    """base^exponent of a probability in 1/65536."""
    power = ONE
    for _ in range(exponent):
        power = power * base >> 16
    return power


def _counter(p: int, n: int) -> int:
    """A counter at the probability ``p`` (in 1/65536) that is worth ``n`` decisions."""
    return min(max(p, LEAST), ONE - LEAST) << 6 + COUNTER_BITS | n


def prepared(shape: tuple[int, ...], survivors: int, largest: int) -> tuple[Layer, Model]:
    """A layer and a model that have seen nothing, for a weight of this shape whose largest size is ``largest``."""
    rows, channels = shape[0], shape[1] if len(shape) > 1 else 1
    kernel, width = math.prod(shape[2:]), shape[-1] if len(shape) > 2 else 1
    columns, depth = channels * kernel, max(largest - 1, 0).bit_length()
    zero = 2 + channels + 16 + 1024
    sign = zero + 2 + columns + channels + 1024 + 32 + 16 * kernel
    size = sign + 63 + 225
    density = survivors * ONE // max(rows * columns, 1)
    some = ONE - _power(ONE - density, kernel)
    if kernel > 1:
        density = density * ONE // max(some, 1)
    counters = np.full(size + 6 * 32 * (1 << depth), START, np.int32)
    counters[:zero], counters[zero:sign] = _counter(some, PRIOR), _counter(density, PRIOR)
    begin = np.array([_counter(some, ROW_MEMORY), _counter(density, ROW_MEMORY)])
    none = [np.zeros(n, np.int32) for n in (columns, columns, channels, 2)]
    values, filled = np.zeros((3, columns), np.int32), np.zeros((3, channels), np.int32)
    layer = Layer(rows, channels, kernel, width, depth, 0, zero, sign, size, values, filled, begin, *none)
    weights = np.full((6 + 16, INPUTS), 3 * ONE // 10, np.int64)
    learned = np.zeros(len(weights), np.int64), np.zeros(INPUTS, np.int64), np.zeros(INPUTS, np.int64)
    return layer, Model(counters, weights, *learned)


@cache
def compiled() -> Callable[..., int]:
    """``walk`` as machine code, kept between runs where a folder for it can be written."""
    try:
        return numba.njit(cache=True, _nrt=False)(walk)
    except RuntimeError:  # no such folder
        return numba.njit(walk)


def encoded(mask: NDArray[np.bool_], levels: NDArray[np.int32], largest: int, run=None) -> bytes:
    """The stream that stands for a mask and its survivors' signed sizes, of at most ``largest``."""
    layer, model = prepared(mask.shape, len(levels), largest)
    capacity = 2 * mask.size + 4 * (layer.depth + 1) * len(levels) + 8
    coder = Coder(np.array([0, 0xFFFFFFFF, 0, 0]), np.zeros(capacity, np.uint8), False)
    (run or compiled())(np.array(mask, np.uint8).ravel(), levels, layer, model, coder)
    low, high, _, position = (int(n) for n in coder.state)
    for spare in (32, 24, 16, 8, 0):
        last = -(-low >> spare) << spare
        if last <= high:
            break
    return (coder.stream[:position].tobytes() + last.to_bytes(4, "big")).rstrip(b"\0")


def decoded(stream: bytes, shape: tuple[int, ...], survivors: int, largest: int, run=None):
    """The mask and the signed sizes that were encoded."""
    layer, model = prepared(shape, survivors, largest)
    code = int.from_bytes(stream[:4].ljust(4, b"\0"), "big")
    coder = Coder(np.array([0, 0xFFFFFFFF, code, 4]), np.frombuffer(bytearray(stream), np.uint8), True)
    mask, levels = np.zeros(math.prod(shape), np.uint8), np.zeros(survivors, np.int32)
    if (run or compiled())(mask, levels, layer, model, coder) != survivors:
        return None
    return mask.view(bool).reshape(shape), levels
