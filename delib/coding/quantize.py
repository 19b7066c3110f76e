"""Quantisation: few levels for the survivors of a weight, or of every weight among named arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delib.coding.container import LevelTensor
from delib.coding.quantized import Quantized

Levels = NDArray[np.float32]
# Survivors' values [n], number of levels -> levels in rising order, at most that many.
Placement = Callable[[NDArray[np.floating], int], Levels]
# Up to this many survivors k-means is exact; beyond, on groups of equally many neighbours in sorted order.
EXACT = 1 << 15


def uniform_levels(values: NDArray[np.floating], count: int) -> Levels:
    """``count`` equally spaced levels, centred in equal bins over the values' range (mid-rise uniform quantiser)."""
    low, high = float(values.min()), float(values.max())
    step = (high - low) / count
    return np.unique((low + step * (np.arange(count) + 0.5)).astype(np.float32))


def kmeans_levels(values: NDArray[np.floating], count: int) -> Levels:
    """The ``count`` levels of least squared error: exact one-dimensional k-means by dynamic programming.

    D_m[j] = min_i D_{m-1}[i-1] + cost(i..j) over sorted values, with the best i monotone in j, so that each row takes
    O(n log n) by divide and conquer (Grønlund et al. 2017, section 2). Exact for up to ``EXACT`` values; more are
    first merged into that many groups of neighbours, and the levels are the means of the groups' members.
    """
    ordered = np.sort(values.astype(np.float64))
    count = min(count, len(np.unique(ordered)))
    starts = np.unique(np.linspace(0, len(ordered), min(len(ordered), EXACT), endpoint=False).astype(np.int64))
    edges = np.append(starts, len(ordered))
    sums, squares = (np.concatenate([[0.0], np.cumsum(x)])[edges] for x in (ordered, ordered**2))
    cuts = np.unique(_best_cuts(edges, sums, squares, count))  # a cluster that helps no more is empty
    return np.unique((np.diff(sums[cuts]) / np.diff(edges[cuts])).astype(np.float32))


def _best_cuts(edges: NDArray[Any], sums: NDArray[Any], squares: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Where to cut the groups into ``count`` clusters: [count + 1] positions, the first 0, the last all groups."""

    def cost(start: NDArray[Any], stop: NDArray[Any]) -> NDArray[np.float64]:
        total = sums[stop] - sums[start]
        error: NDArray[np.float64] = (
            squares[stop] - squares[start] - total**2 / np.maximum(edges[stop] - edges[start], 1)
        )
        return error

    groups = len(edges) - 1
    stops = np.arange(groups + 1)
    error, choices = cost(np.zeros_like(stops), stops), []
    for _ in range(count - 1):
        error, choice = _cheapest_starts(error, cost, groups)
        choices.append(choice)
    cuts = [groups]
    for choice in reversed(choices):
        cuts.append(int(choice[cuts[-1]]))
    return np.array([0, *reversed(cuts)])


def _cheapest_starts(
    error: NDArray[np.float64], cost: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]], groups: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For every stop the best start of the last cluster: its total error and the start, both [groups + 1].

    Stops are taken at halving strides; each looks only between the best starts of its two solved neighbours.
    """
    best, choice = error.copy(), np.zeros(groups + 1, np.int64)
    bound = np.full(groups + 2, -1, np.int64)  # best starts of the stops solved so far
    stride = 1 << int(groups).bit_length()
    bound[0] = 0
    while stride:
        stops = np.arange(stride, groups + 1, 2 * stride)
        low = bound[stops - stride]
        after = np.minimum(stops + stride, groups + 1)
        high = np.minimum(np.where(bound[after] < 0, stops, bound[after]), stops)
        lengths = high - low + 1
        offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        starts = np.arange(lengths.sum()) - np.repeat(offsets - low, lengths)
        totals = error[starts] + cost(starts, np.repeat(stops, lengths))
        least = np.minimum.reduceat(totals, offsets) if len(stops) else totals
        hits = np.flatnonzero(totals == np.repeat(least, lengths))
        first = hits[np.searchsorted(hits, offsets)] if len(stops) else hits
        best[stops], choice[stops], bound[stops] = least, starts[first], starts[first]
        stride //= 2
    return best, choice


PLACEMENTS: dict[str, Placement] = {"kmeans": kmeans_levels, "uniform": uniform_levels}


def quantize_tensors(
    state: Mapping[str, Any],
    bits: int | Mapping[str, int] = 4,
    method: str | Placement = "kmeans",
    *,
    scaled: bool = False,
) -> Quantized:
    """Give the non-zero values of named tensors at most 2**``bits`` levels, each tensor its own; others stay.

    ``state`` holds arrays or torch tensors, such as a state dict; ``bits`` goes by tensor name, or is one number for
    all floats of two or more axes. ``method`` and ``scaled`` are those of ``layerwise.quantize``. Raises ValueError on
    bits outside 1..16 or an unknown method.
    """
    arrays = {
        name: np.asarray(tensor.detach().cpu() if hasattr(tensor, "detach") else tensor)
        for name, tensor in state.items()
    }
    if isinstance(bits, int):
        bits = {name: bits for name, a in arrays.items() if a.ndim > 1 and np.issubdtype(a.dtype, np.floating)}
    if isinstance(method, str) and method not in PLACEMENTS:
        raise ValueError(f"no placement of levels is called {method!r}; choose one of {', '.join(PLACEMENTS)}")
    place = PLACEMENTS[method] if isinstance(method, str) else method
    return Quantized(
        (name, quantize_weight(array, bits[name], place, scaled=scaled) if name in bits else array.copy())
        for name, array in arrays.items()
    )


def quantize_weight(
    weight: NDArray[np.floating], bits: int, place: Placement = kmeans_levels, *, scaled: bool = False
) -> LevelTensor:
    """One weight: levels placed by ``place`` for its non-zero values, each value given its nearest level."""
    if not 1 <= bits <= 16:
        raise ValueError(f"bits per survivor must lie in 1..16, got {bits}")
    mask = weight != 0
    scales = row_scales(weight) if scaled else None
    values = _unscaled(weight, mask, scales)
    codebook = place(values, 1 << bits) if values.size else np.zeros(1, np.float32)
    codebook = codebook[codebook != 0] if (codebook != 0).any() else codebook
    return with_levels(weight, codebook, scales)


def with_levels(
    weight: NDArray[np.floating], codebook: Levels, scales: NDArray[np.float16] | None = None
) -> LevelTensor:
    """One weight with levels (in rising order) and scales given: each non-zero value takes its nearest level."""
    mask = weight != 0
    middles = (codebook[1:].astype(np.float64) + codebook[:-1]) / 2
    nearest = np.searchsorted(middles, _unscaled(weight, mask, scales))
    return LevelTensor(mask, nearest.astype(np.uint8 if len(codebook) <= 256 else np.uint16), codebook, scales)


def row_scales(weight: NDArray[np.floating]) -> NDArray[np.float16]:
    """For each output the root mean square of its survivors, as a share of the largest output's."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    return as_scales(np.sqrt((rows**2).sum(1) / np.maximum(np.count_nonzero(rows, axis=1), 1)))


def as_scales(sizes: NDArray[np.floating]) -> NDArray[np.float16]:
    """Sizes [rows] as shares of the largest, in the precision of the file."""
    shares = sizes / sizes.max() if sizes.size and sizes.max() > 0 else np.ones(len(sizes))
    # The least float16 above zero, so that no survivor is divided by zero.
    return np.maximum(shares, np.finfo(np.float16).smallest_subnormal).astype(np.float16)


def _unscaled(
    weight: NDArray[np.floating], mask: NDArray[np.bool_], scales: NDArray[np.float16] | None
) -> NDArray[np.floating]:
    """The survivors' values divided by their outputs' scales, [survivors]."""
    if scales is None:
        return weight[mask]
    counts = mask.sum(tuple(range(1, mask.ndim)))
    values: NDArray[Any] = weight[mask] / np.repeat(scales.astype(np.float32), counts)
    return values
