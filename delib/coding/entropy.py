"""Entropy-constrained quantisation: levels, thresholds and code lengths that agree, zero a level like any other."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from delib.coding.quantize import in_half_precision, kmeans_levels, row_scales
from delib.coding.tensors import LevelTensor, index_type

ROUNDS = 200  # of the iteration at most; it ends where a round lowers the cost by less than a millionth
LEVELS = 31  # at most: with more, what is gained at a tenth of a bit a weight and above is below a thousandth


class Rated(NamedTuple):
    """Levels in rising order, 0.0 among them, and the bits [levels] that each costs: -log2 of its share."""

    levels: NDArray[np.float64]
    bits: NDArray[np.float64]


def entropy_constrained(values: NDArray[np.floating], multiplier: float, count: int = LEVELS) -> Rated:
    """The levels of least mean of (value - level)² + ``multiplier`` · bits (ECSQ: Chou, Lookabaugh and Gray 1989).

    In turns every value takes its cheapest level, levels but zero become the means of their values, bits become
    -log2 of their shares, and levels that nobody takes go; at the end levels are rounded to half precision where that
    hardly matters. It starts from steps of √(6 multiplier / ln 2), which are optimal for small ones (Gish and Pierce
    1968); where more than ``count`` of them would be needed, from k-means.

    Parameters
    ----------
    values : array [n]
        Of a layer, those that were pruned before too.
    multiplier : float
        Squared error that one bit is worth; above 0.
    count : int
        Levels at most, zero among them.

    Raises
    ------
    ValueError
        If the multiplier is not above 0 or there are no values.
    """
    if not multiplier > 0 or not values.size:
        raise ValueError(f"a multiplier above 0 and values are needed, got {multiplier} and {values.size} values")
    ordered = np.sort(values.astype(np.float64), axis=None)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    squares = float((ordered**2).mean())
    rated = _start(ordered, multiplier, count)
    cost = math.inf
    for _ in range(ROUNDS):
        used, cuts = _envelope(rated, multiplier)
        edges = np.concatenate([[0], np.searchsorted(ordered, cuts), [len(ordered)]])
        sizes, levels = np.diff(edges), rated.levels[used]
        kept = (sizes > 0) | (levels == 0)
        means = np.diff(sums[edges]) / np.maximum(sizes, 1)
        levels = np.where(levels == 0, 0.0, means)[kept]
        shares = np.maximum(sizes[kept], 0.5) / len(ordered)  # half a value: so that zero can come back
        if not (levels == 0).any():
            place = int(np.searchsorted(levels, 0))
            levels, shares = np.insert(levels, place, 0.0), np.insert(shares, place, 0.5 / len(ordered))
        rated = Rated(levels, -np.log2(shares))
        before, cost = cost, squares - float(shares @ levels**2) + multiplier * float(shares @ rated.bits)
        if before - cost < 1e-6 * abs(cost):
            break
    return rated._replace(levels=in_half_precision(rated.levels, ordered))


def _start(ordered: NDArray[np.float64], multiplier: float, count: int) -> Rated:
    """Equally spaced levels through zero that cover the values, or k-means' if that takes too many; with their bits."""
    step = math.sqrt(6 * multiplier / math.log(2))
    low, high = min(round(ordered[0] / step), 0), max(round(ordered[-1] / step), 0)
    if high - low < count:
        levels = step * np.arange(low, high + 1)
    else:
        others = kmeans_levels(ordered[ordered != 0].astype(np.float32), max(count - 1, 1)).astype(np.float64)
        levels = np.unique(np.append(others, 0.0))
    edges = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
    sizes = np.diff(np.concatenate([[0], edges, [len(ordered)]]))
    return Rated(levels, -np.log2(np.maximum(sizes, 0.5) / len(ordered)))


def _envelope(rated: Rated, multiplier: float) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """Which levels are the cheapest of some value, and the values between them at which the cheapest changes.

    (v - c)² + λb is v² plus a line in v of slope -2c: the cheapest levels are the lines' lower envelope.
    """
    heights = rated.levels**2 + multiplier * rated.bits
    used: list[int] = []
    cuts: list[float] = []
    for i, level in enumerate(rated.levels):
        while used:
            cut = float(heights[i] - heights[used[-1]]) / float(2 * (level - rated.levels[used[-1]]))
            if not cuts or cut > cuts[-1]:
                cuts.append(cut)
                break
            used.pop()
            cuts.pop()
        used.append(i)
    return np.array(used), np.array(cuts)


def cuts_of(rated: Rated, multiplier: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The levels that are some value's cheapest, and zero, in rising order, and the values at which the level changes.

    Where zero is no value's cheapest, as in a layer without zeros, it has no values between its two changes.
    """
    used, cuts = _envelope(rated, multiplier)
    levels = rated.levels[used]
    if not (levels == 0).any():
        place = int(np.searchsorted(levels, 0))
        cuts = np.insert(cuts, place, [-math.inf, *cuts, math.inf][place])
        levels = np.insert(levels, place, 0.0)
    return levels, cuts


def cheapest(values: NDArray[np.floating], rated: Rated, multiplier: float) -> NDArray[np.integer]:
    """The index of each value's level of least (value - level)² + ``multiplier`` · bits, in the values' shape."""
    used, cuts = _envelope(rated, multiplier)
    return used[np.searchsorted(cuts, values)]


def quantize_entropy(
    weight: NDArray[np.floating], multiplier: float, count: int = LEVELS, *, scaled: bool = False
) -> LevelTensor:
    """One weight at its entropy-constrained levels; what takes the level zero does not survive.

    With ``scaled``, values are divided by their outputs' scales before (see ``row_scales``).
    """
    scales = row_scales(weight) if scaled else None
    spread = 1.0 if scales is None else scales.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
    values = weight.astype(np.float64) / spread
    rated = entropy_constrained(values, multiplier, count)
    return as_tensor(cheapest(values, rated, multiplier), rated.levels, scales)


def as_tensor(indices: NDArray[np.integer], levels: NDArray[np.floating], scales: Any = None) -> LevelTensor:
    """The weight whose values have these ``levels``, one of which is zero, by index in the weight's shape; levels that
    no value has are left out."""
    zero = int(np.flatnonzero(levels == 0)[0])
    mask = indices != zero
    used, own = np.unique(indices[mask], return_inverse=True)
    codebook = levels[used].astype(np.float32) if used.size else np.zeros(1, np.float32)
    return LevelTensor(mask, own.astype(index_type(len(codebook))), codebook, scales)


def rate_distortion_bound(
    values: NDArray[np.floating], multipliers: Iterable[float], bins: int = 201
) -> tuple[list[float], list[float]]:
    """Rates and mean squared errors below which no quantiser of independent draws of ``values`` comes, however clever.

    The rate-distortion function at the slopes ``multipliers``, by the iteration of Blahut (1972) and Arimoto (1972) on
    a histogram of the values with as many ``bins``; points closer together than a bin cannot be told apart.
    """
    counts, edges = np.histogram(values, bins)
    points, source = (edges[1:] + edges[:-1]) / 2, counts / counts.sum()
    error = (points[:, None] - points) ** 2
    rates, distortions = [], []
    for multiplier in multipliers:
        kernel, output = np.exp(-error * math.log(2) / multiplier), np.full(bins, 1 / bins)
        for _ in range(ROUNDS):
            output = output * ((source / (kernel @ output)) @ kernel)
        joint = source[:, None] * kernel * output / (kernel @ output)[:, None]
        used = joint > 0
        shares = (joint / np.maximum(source[:, None] * output, np.finfo(float).tiny))[used]
        rates.append(float(joint[used] @ np.log2(shares)))
        distortions.append(float((joint * error).sum()))
    return rates, distortions


def entropy_of(tensor: LevelTensor) -> float:
    """Bits per weight of an ideal code that knows how often zero and each level occur, and nothing else."""
    taken = np.bincount(tensor.indices, minlength=len(tensor.codebook))
    shares = np.append(taken, tensor.mask.size - tensor.indices.size) / tensor.mask.size
    shares = shares[shares > 0]
    return -float(shares @ np.log2(shares))
