"""Quantisation: few levels for the survivors of a weight, or of every weight among named arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delib.coding.quantized import Quantized
from delib.coding.tensors import LevelTensor, index_type

Levels = NDArray[np.float32]
# Survivors' values [n], number of levels -> levels in rising order, at most that many.
Placement = Callable[[NDArray[np.floating], int], Levels]
# Up to this many survivors k-means is exact; beyond, it begins on groups of equally many neighbours in sorted order:
# with 16 levels for 20,000 to a million Laplace values its error is .01% above the least at most, in under .2 s.
EXACT = 1 << 13
# Groups times levels up to which it is exact: its time grows with both, .3 s for as many.
EXACT_WORK = EXACT << 6
TINY = 1e-30  # least squared error that is told apart from none
ROUNDING = 0.01  # share of the squared error: a 25th of a decibel, or a 150th of a bit
ROUNDS = 50  # of Lloyd's iteration for more levels; what further rounds gain is below a thousandth of the error


def uniform_levels(values: NDArray[np.floating], count: int) -> Levels:
    """``count`` equally spaced levels, centred in equal bins over the values' range (mid-rise uniform quantiser)."""
    low, high = float(values.min()), float(values.max())
    step = (high - low) / count
    return np.unique((low + step * (np.arange(count) + 0.5)).astype(np.float32))


def kmeans_levels(values: NDArray[np.floating], count: int) -> Levels:
    """The ``count`` levels of least squared error: exact k-means in one dimension (Grønlund et al. 2017, section 3).

    Exact for up to ``EXACT`` values; more are first merged into that many groups of neighbours in rising order, equally
    many in each, and the levels that are best for the groups' means are where Lloyd's iteration on the values begins.
    Beyond ``EXACT_WORK`` levels are placed by ``lloyd_levels``.
    """
    import kmeans1d

    if count * min(len(values), EXACT) > EXACT_WORK:
        return lloyd_levels(values, count)
    ordered = np.sort(values.astype(np.float64))
    starts = np.unique(np.linspace(0, len(ordered), min(len(ordered), EXACT), endpoint=False).astype(np.int64))
    means = np.add.reduceat(ordered, starts) / np.diff(np.append(starts, len(ordered)))
    levels = np.array(kmeans1d.cluster(means, min(count, len(np.unique(ordered)))).centroids)
    return _lloyd(ordered, np.unique(levels))


def lloyd_levels(values: NDArray[np.floating], count: int) -> Levels:
    """``count`` levels by Lloyd's iteration, in time and memory that hardly depend on their number.

    It begins at the density of levels that is optimal for many of them, proportional to the cube root of the values'
    density (Panter and Dite 1951), the latter taken from 256 quantiles.
    """
    ordered = np.sort(values.astype(np.float64))
    if len(unique := np.unique(ordered)) <= count:
        return np.unique(unique.astype(np.float32))
    edges = np.quantile(ordered, np.linspace(0, 1, 257))
    widths = np.maximum(np.diff(edges), 1e-12 * (edges[-1] - edges[0]))
    share = np.concatenate([[0.0], np.cumsum(widths ** (2 / 3))])  # width × density^(1/3), density ∝ 1 / width
    levels = np.interp((np.arange(count) + 0.5) / count * share[-1], share, edges)
    return _lloyd(ordered, levels)


def _lloyd(ordered: NDArray[np.float64], levels: NDArray[np.float64]) -> Levels:
    """Levels in rising order moved to the means of the values nearest to them, in turns, until none moves any more."""
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(ROUNDS):
        cuts = np.concatenate([[0], np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2), [len(ordered)]])
        sizes, before = np.diff(cuts), levels
        levels = np.where(sizes > 0, np.diff(sums[cuts]) / np.maximum(sizes, 1), levels)
        if np.array_equal(levels, before):
            break
    return np.unique(levels[sizes > 0].astype(np.float32))


def power_levels(values: NDArray[np.floating], count: int) -> Levels:
    """``count`` powers of two, half of them negative, down from the largest that a value rounds to: multiplying by them
    is shifting (incremental network quantisation: Zhou et al. 2017, eq. 2 to 4)."""
    highest = math.floor(math.log2(4 / 3 * max(float(np.abs(values).max()), float(np.finfo(np.float32).tiny))))
    sizes = 2.0 ** np.arange(highest, highest - max(count // 2, 1), -1)
    return np.unique(np.concatenate([-sizes, sizes])[:count].astype(np.float32))


def coded_levels(values: NDArray[np.floating], count: int) -> Levels:
    """The k-means levels or the uniform ones, whichever do better once their indices are entropy coded.

    k-means has the least error for as many levels, but uses them about equally often; a uniform quantiser of the same
    entropy has less (Gish and Pierce 1968), and no large errors, unless a few values lie far out. A bit more takes the
    error to a quarter, so rate + log2(error)/2 compares them.
    """

    def score(levels: Levels) -> float:
        nearest = np.searchsorted((levels[1:].astype(np.float64) + levels[:-1]) / 2, values)
        shares = np.bincount(nearest) / max(values.size, 1)
        rate = -sum(share * math.log2(share) for share in shares if share)
        return rate + math.log2(max(float(((values - levels[nearest]) ** 2).mean()), TINY)) / 2

    return min(kmeans_levels(values, count), uniform_levels(values, count), key=score)


PLACEMENTS: dict[str, Placement] = {
    "coded": coded_levels,
    "kmeans": kmeans_levels,
    "power": power_levels,
    "uniform": uniform_levels,
}


def quantize_tensors(
    state: Mapping[str, Any],
    bits: int | Mapping[str, int] = 4,
    method: str | Placement = "kmeans",
    *,
    scaled: bool = False,
) -> Quantized:
    """Give the non-zero values of named tensors at most 2**``bits`` levels, each tensor its own; others stay.

    ``state`` holds arrays or torch tensors, such as a state dict; ``bits`` goes by tensor name, or is one number for
    all floats of two or more axes (those with infinite values stay as they are). ``method`` and ``scaled`` are those
    of ``layerwise.quantize``. bfloat16 and float8 become float32. A tensor under several names is one object under all
    of them, and stored once. Raises ValueError on bits outside 1..16, an unknown method, or a tensor with NaN, by its
    name.
    """
    arrays, same = _arrays(state)
    if isinstance(bits, int):
        bits = {name: bits for name, array in arrays.items() if array.ndim > 1 and _has_levels(array)}
    bits = {same.get(name, name): many for name, many in bits.items()}
    for name in bits:
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} holds values that are not finite, for which no level can stand; mend the network")
    if isinstance(method, str) and method not in PLACEMENTS:
        raise ValueError(f"no placement of levels is called {method!r}; choose one of {', '.join(PLACEMENTS)}")
    place = PLACEMENTS[method] if isinstance(method, str) else method
    tensors: dict[str, Any] = {
        name: quantize_weight(array, bits[name], place, scaled=scaled) if name in bits else array.copy()
        for name, array in arrays.items()
    }
    return Quantized((name, tensors[same.get(name, name)]) for name in state if name in tensors or name in same)


def _arrays(state: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors as arrays, and for every further name of one of them the first; what is no tensor is left out.

    Raises ValueError where two tensors share a part of their memory, which no file could give back.
    """
    tensors = {name: value for name, value in state.items() if hasattr(value, "dtype") and hasattr(value, "shape")}
    first: dict[Any, str] = {}
    same = {name: first.setdefault(_memory(name, value), name) for name, value in tensors.items()}
    arrays = {name: _array(value) for name, value in tensors.items() if same[name] == name}
    spans = sorted((*np.lib.array_utils.byte_bounds(array), name) for name, array in arrays.items() if array.size)
    for (_, end, one), (begin, _, other) in pairwise(spans):
        if begin < end and np.shares_memory(arrays[one], arrays[other]):
            raise ValueError(f"{one} and {other} share a part of their memory; clone one of them first")
    return arrays, {name: known for name, known in same.items() if known != name}


def _memory(name: str, tensor: Any) -> Any:
    """Equal for tensors, or arrays, that are the same values in the same memory."""
    if not math.prod(tensor.shape):
        return name
    if hasattr(tensor, "data_ptr"):
        return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), str(tensor.dtype)
    return tensor.__array_interface__["data"][0], tensor.shape, tensor.strides, str(tensor.dtype)


def _array(tensor: Any) -> NDArray[Any]:
    """A tensor as an array, in float32 where numpy has no such type (bfloat16, float8)."""
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    tensor = tensor.detach().cpu()
    known = not tensor.is_floating_point() or str(tensor.dtype) in ("torch.float16", "torch.float32", "torch.float64")
    return np.asarray(tensor if known else tensor.float())


def _has_levels(array: NDArray[Any]) -> bool:
    """Whether levels can stand for it: it holds floats, none of them infinite as in attention masks."""
    return bool(np.issubdtype(array.dtype, np.floating) and not np.isinf(array).any())


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
    return with_levels(weight, in_half_precision(codebook, values), scales)


def with_levels(
    weight: NDArray[np.floating], codebook: Levels, scales: NDArray[np.float16] | None = None
) -> LevelTensor:
    """One weight with levels (in rising order) and scales given: each non-zero value takes its nearest level."""
    mask = weight != 0
    middles = (codebook[1:].astype(np.float64) + codebook[:-1]) / 2
    nearest = np.searchsorted(middles, _unscaled(weight, mask, scales))
    return LevelTensor(mask, nearest.astype(index_type(len(codebook))), codebook, scales)


def in_half_precision(levels: NDArray[Any], values: NDArray[np.floating]) -> NDArray[Any]:
    """The levels (in rising order) rounded to float16, of half the bytes, where that raises the squared error of the
    ``values``, each at its nearest level, by no more than ``ROUNDING``; else as they are."""
    with np.errstate(over="ignore"):
        rounded = levels.astype(np.float16).astype(levels.dtype)
    nearest = np.searchsorted((levels[1:].astype(np.float64) + levels[:-1]) / 2, values)
    before, after = (float(((values - tried[nearest].astype(np.float64)) ** 2).sum()) for tried in (levels, rounded))
    return rounded if after <= (1 + ROUNDING) * before and (np.diff(rounded) > 0).all() else levels


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
