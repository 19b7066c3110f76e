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
from typing import Any, NamedTuple, cast

import numba
import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Small = NDArray[np.int32]
Walk = Callable[..., int]
# Plain functions, which numba inlines: a call costs it more than most of them do.
inlined = register_jitable(forceinline=True)

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


# Tables are of the shortest integers that hold them: together they fit a processor's nearest cache.
SQUASH = _squash()
CLIPPED = np.clip(SQUASH, LEAST, ONE - LEAST).astype(np.uint16)
# The log-odds (in 1/256) at every probability, by its upper 12 bits: the inverse of SQUASH at the middle of each step.
STRETCH = (np.searchsorted(SQUASH, 16 * np.arange(1 << 12) + 8) - REACH).astype(np.int16)
# The same in 32 steps of one half, from -8 to 8.
LEVEL = np.clip(STRETCH.astype(np.int64) + 2048 >> 7, 0, 31).astype(np.uint8)

COUNTER_BITS = 9  # of a counter, the lower, are how many decisions it has met; the upper 22 the share of ones
LIMIT = 511  # decisions after which a counter's memory is that of an exponential average; all of the lower bits
START = 1 << 21 << COUNTER_BITS  # a counter that has met nothing: one half
# The step of a counter that has met n decisions, in 1/65536: 1 / (n + 1.5): the share is the
# mean of its chance if that was drawn from a Beta(1/4, 1/4), as suits decisions that mostly go one way.
STEP = np.array([2 * ONE // (2 * n + 3) for n in range(1 << COUNTER_BITS)], np.uint16)

INPUTS = 5  # the most counters that a decision looks at
# The mixer's learning rate in 1/2^22; each set of weights begins faster by RATE_FIRST, which fades as 1 / (decisions +
# 1.5). Half or twice of either changes files of real networks by .1% at most; so do other starts of weights.
RATE, RATE_FIRST = 32, 4000
RATES = RATE + (RATE_FIRST * STEP.astype(np.int64) >> 16)
SETS = 4  # of weights, one for each question: of a whole kernel, of a weight's survival, of a sign, of a size
START_WEIGHT = 19661  # .3, in 1/65536
ROW_MEMORY, PRIOR = 20, 4  # decisions that a fresh row's, and a fresh column's or channel's, first estimate is worth


class Model(NamedTuple):
    """What the walk has learned."""

    counters: NDArray[np.int32]
    weights: Integers  # [sets · INPUTS], in 1/65536
    met: Integers  # [sets]: decisions that each set of weights has learned from, up to LIMIT


class Coder(NamedTuple):
    """A carry-less binary range coder: the interval that is left, the code read, bytes passed; and the bytes."""

    state: Integers  # low, high, code, position
    stream: NDArray[np.uint8]
    decoding: bool


@inlined
def code(bit: int, p: int, coder: Coder) -> int:
    """Code one decision that is 1 with probability ``p`` (in 1/65536); decoding, ``bit`` is ignored. Returns it."""
    state, stream, decoding = coder
    low, high = state[0], state[1]
    width = high - low
    split = low + (width * p >> 16)
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


@inlined
def upper(counter: int) -> int:
    """The upper 12 bits of a counter's share, by which tables go; the last step only says that it is not negative."""
    return int(counter) >> COUNTER_BITS + 10 & (1 << 12) - 1


@inlined
def learned(counter: int, bit: int) -> int:
    """A counter after one more decision."""
    share, n = counter >> COUNTER_BITS, counter & LIMIT
    change = ((bit << 22) - share) * int(STEP[n]) >> 16
    return counter + (change << COUNTER_BITS) + (1 if n < LIMIT else 0)


@inlined
def decide(bit: int, slots: tuple[int, ...], chosen: int, model: Model, coder: Coder) -> int:
    """Code a decision by mixing the counters at ``slots`` with the weights ``chosen``, then learn from its outcome."""
    counters, weights, met = model
    first, total = chosen * INPUTS, 0
    for i in range(len(slots)):
        total += weights[first + i] * int(STRETCH[upper(counters[np.uint32(slots[i])])])
    p = int(CLIPPED[min(max(total >> 16, -REACH), REACH) + REACH])
    bit = code(bit, p, coder)
    error = ((bit << 16) - p) * RATES[met[chosen]]
    met[chosen] = min(met[chosen] + 1, LIMIT)
    for i in range(len(slots)):
        at = np.uint32(slots[i])  # numba reads arrays at unsigned places without asking whether they lie before 0
        weights[first + i] += int(STRETCH[upper(counters[at])]) * error + (1 << 21) >> 22
        counters[at] = learned(int(counters[at]), bit)
    return bit


class Layer(NamedTuple):
    """The weight as the walk sees it: its shape, where the counters of each question begin, and what has passed by."""

    rows: int  # outputs
    channels: int  # inputs
    kernel: int  # weights of one output for one input
    width: int  # weights in a row of a kernel
    depth: int  # bits of a size
    whole: int  # counters: 1 of the row, then [channels], then 32 · 32
    zero: int  # 1 of the row, then [columns], [channels], 32 · 32, then [kernel · 16], or [16] if kernels are single
    sign: int  # 7 · 9, then 15 · 15
    size: int  # [2^depth, 96]
    fresh: Small  # [2]: what `whole` and `zero` of a row are at its start
    values: Small  # [3, columns]: signed sizes of this row and, if kernels are single, of the two above it; or 0
    balance: Small  # [columns + 1]: positive less negative survivors of each column; the last is the row's own


@inlined
def level_of(counter: int) -> int:
    """A counter's log-odds in 32 steps of one half, from -8 to 8."""
    return int(LEVEL[upper(counter)])


@inlined
def octave(n: int) -> int:
    """n in half octaves: 0, 1, 2, 3, 4 (4 and 5), 5 (6 and 7), 6 (8 to 11), ..., up to 15."""
    step = 0
    while n >> step > 3:
        step += 1
    return min(2 * step + (n >> step), 15)


@inlined
def clipped(n: int, most: int) -> int:
    """n within -most..most, counted from 0."""
    return min(max(n, -most), most) + most


@inlined
def sign_of(value: int) -> int:
    return 0 if value == 0 else 1 if value < 0 else 2


@inlined
def code_whole(bit: int, channel: int, layer: Layer, model: Model, coder: Coder) -> int:
    """Whether a kernel has any survivor: by its row, its channel, and both."""
    counters, row = model.counters, layer.whole
    of_channel = row + 1 + channel
    both = row + 1 + layer.channels + level_of(counters[row]) * 32 + level_of(counters[of_channel])
    return decide(bit, (row, of_channel, both), 0, model, coder)


@inlined
def code_zero(bit: int, channel: int, k: int, mass: int, layer: Layer, model: Model, coder: Coder) -> int:
    """Whether a weight survives: by its row, column and channel, by row and channel together, and by its neighbours.

    Neighbours are the survivors before it in its kernel, whose sizes sum to ``mass``; for single weights the two above
    it and the two before it in the row.
    """
    counters, row, column = model.counters, layer.zero, channel * layer.kernel + k
    of_channel = row + 1 + layer.channels * layer.kernel + channel
    both = row + 1 + layer.channels * (layer.kernel + 1)
    if layer.kernel > 1:
        near = k * 16 + octave(mass)
    else:
        near = survives(layer, 1, column) | survives(layer, 2, column) << 1
        near |= survives(layer, 0, column - 1) << 2 | survives(layer, 0, column - 2) << 3
    near += both + 1024
    both += level_of(counters[row]) * 32 + level_of(counters[of_channel])
    return decide(bit, (row, row + 1 + column, of_channel, both, near), 1, model, coder)


@inlined
def survives(layer: Layer, row: int, column: int) -> int:
    """Whether there is a survivor ``row`` rows above; none lies before the first column."""
    return 1 if column >= 0 and layer.values[row, column] != 0 else 0


@inlined
def code_sign(bit: int, channel: int, k: int, lean: int, layer: Layer, model: Model, coder: Coder) -> int:
    """Whether a survivor is negative, after survivors whose signs sum to ``lean`` in its kernel.

    By these and the signs above and to the left of it in the kernel; and by the balance of its column and of its row.
    """
    column, values, balance = channel * layer.kernel + k, layer.values, layer.balance
    up = sign_of(values[0, column - layer.width]) if k >= layer.width else 0
    left = sign_of(values[0, column - 1]) if k % layer.width > 0 else 0
    inside = layer.sign + clipped(lean, 3) * 9 + up * 3 + left
    outside = layer.sign + 63 + clipped(balance[column], 7) * 15 + clipped(balance[len(balance) - 1] >> 1, 7)
    return decide(bit, (inside, outside), 2, model, coder)


@inlined
def code_size(
    size: int, negative: int, channel: int, k: int, mean: int, layer: Layer, model: Model, coder: Coder
) -> int:
    """A survivor's size less one, from the highest bit on.

    By its kernel's sizes so far, 4 times whose mean is ``mean``; by sign and position; by its channel's density.
    """
    of_channel = model.counters[layer.zero + 1 + layer.channels * layer.kernel + channel]
    of_kernel, of_sign, dense = min(mean, 31), 32 + min(k, 15) * 2 + negative, 64 + level_of(of_channel)
    node = 1
    for b in range(layer.depth - 1, -1, -1):
        at = layer.size + node * 96
        slots = (at + of_kernel, at + of_sign, at + dense)
        node = node * 2 + decide(size >> b & 1, slots, 3, model, coder)
    return node - (1 << layer.depth)


@inlined
def code_kernel(
    first: int,
    channel: int,
    mask: NDArray[np.uint8],
    levels: NDArray[np.int32],
    done: int,
    layer: Layer,
    model: Model,
    coder: Coder,
) -> int:
    """The weights of one kernel, from ``first`` on; ``done`` survivors came before. Returns how many there are now."""
    kernel, before, some = layer.kernel, done, 1
    if kernel > 1:
        some = 0
        for k in range(kernel):
            some |= int(mask[first + k])
        some = code_whole(some, channel, layer, model, coder)
        if not some:
            return done
    mass, lean = 0, 0
    for k in range(kernel):
        value, bit = 0, 1
        # The last weight of a kernel that has survivors, of which none came yet, is one.
        if kernel == 1 or k < kernel - 1 or done > before:
            bit = code_zero(int(mask[first + k]), channel, k, mass, layer, model, coder)
        if bit:
            if done == len(levels):
                return -1
            mean = 4 * mass // max(done - before, 1)
            negative = code_sign(1 if levels[done] < 0 else 0, channel, k, lean, layer, model, coder)
            size = 1 + code_size(abs(int(levels[done])) - 1, negative, channel, k, mean, layer, model, coder)
            value = -size if negative else size
            mask[first + k], levels[done] = 1, value
            layer.balance[channel * kernel + k] += 1 - 2 * negative
            layer.balance[len(layer.balance) - 1] += 1 - 2 * negative
            mass, lean, done = mass + size, lean + 1 - 2 * negative, done + 1
        layer.values[0, channel * kernel + k] = value
    return done


@inlined
def hand_down(rows: Small) -> None:
    """A finished row becomes the row above, and that one the row above it."""
    for c in range(rows.shape[1]):
        rows[2, c] = rows[1, c]
        rows[1, c] = rows[0, c]


def walk(mask: NDArray[np.uint8], levels: NDArray[np.int32], layer: Layer, model: Model, coder: Coder) -> int:
    """Code a layer's mask [rows · columns] and its survivors' signed sizes [survivors], or fill them in.

    Returns the number of survivors; -1 if there are more than ``levels`` holds.
    """
    done = 0
    for r in range(layer.rows):
        # A fresh row is expected to be like the layer.
        model.counters[layer.whole], model.counters[layer.zero] = layer.fresh[0], layer.fresh[1]
        layer.balance[len(layer.balance) - 1] = 0
        for channel in range(layer.channels):
            first = (r * layer.channels + channel) * layer.kernel
            done = code_kernel(first, channel, mask, levels, done, layer, model, coder)
            if done < 0:
                return done
        if layer.kernel == 1:
            hand_down(layer.values)
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
    zero = 1 + channels + 1024
    sign = zero + 1 + columns + channels + 1024 + (16 * kernel if kernel > 1 else 16)
    size = sign + 63 + 225
    density = survivors * ONE // max(rows * columns, 1)
    filled = ONE - _power(ONE - density, kernel)
    if kernel > 1:
        density = min(density * ONE // max(filled, 1), ONE)
    counters = np.full(size + 96 * (1 << depth), START, np.int32)
    counters[:zero], counters[zero:sign] = _counter(filled, PRIOR), _counter(density, PRIOR)
    fresh = np.array([_counter(filled, ROW_MEMORY), _counter(density, ROW_MEMORY)], np.int32)
    past = np.zeros((3, columns), np.int32), np.zeros(columns + 1, np.int32)
    layer = Layer(rows, channels, kernel, width, depth, 0, zero, sign, size, fresh, *past)
    weights = np.full(SETS * INPUTS, START_WEIGHT, np.int64)
    return layer, Model(counters, weights, np.zeros(SETS, np.int64))


@cache
def compiled() -> Walk:
    """``walk`` as machine code, kept between runs where a folder for it can be written."""
    # Nothing is allocated on the way, so numba need not count references to arrays; it takes longer than the walk.
    options: dict[str, Any] = {"_nrt": False}
    try:
        return cast(Walk, numba.njit(cache=True, **options)(walk))
    except RuntimeError:  # no such folder
        return cast(Walk, numba.njit(**options)(walk))


def encoded(mask: NDArray[np.bool_], levels: Small, largest: int, run: Walk | None = None) -> bytes:
    """The stream that stands for a mask and its survivors' signed sizes [survivors], of at most ``largest``.

    ``run`` is the walk to take, ``compiled()`` unless said otherwise.
    """
    layer, model = prepared(mask.shape, len(levels), largest)
    # No decision shrinks the interval by more than 16 bits, however short it is.
    decisions = mask.size + mask.size // layer.kernel + (layer.depth + 1) * len(levels)
    coder = Coder(np.array([0, 0xFFFFFFFF, 0, 0]), np.zeros(2 * decisions + 8, np.uint8), False)
    (run or compiled())(np.array(mask, np.uint8).ravel(), levels.copy(), layer, model, coder)
    low, high, _, position = (int(n) for n in coder.state)
    # The roundest number that is left in the interval; behind the stream's end the decoder reads zeros.
    last = next(up for spare in (32, 24, 16, 8, 0) if (up := -(-low >> spare) << spare) <= high)
    return (coder.stream[:position].tobytes() + last.to_bytes(4, "big")).rstrip(b"\0")


def decoded(
    stream: bytes, shape: tuple[int, ...], survivors: int, largest: int, run: Walk | None = None
) -> tuple[NDArray[np.bool_], Small] | None:
    """The mask and the signed sizes that were encoded; None if the stream has not so many survivors."""
    layer, model = prepared(shape, survivors, largest)
    code = int.from_bytes(stream[:4].ljust(4, b"\0"), "big")
    coder = Coder(np.array([0, 0xFFFFFFFF, code, 4]), np.frombuffer(bytearray(stream), np.uint8), True)
    mask, levels = np.zeros(math.prod(shape), np.uint8), np.ones(survivors, np.int32)
    if (run or compiled())(mask, levels, layer, model, coder) != survivors:
        return None
    return mask.view(bool).reshape(shape), levels
