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
    """The ``count`` levels of least squared error: exact k-means in one dimension (Grønlund et al. 2017, section 3).

    Exact for up to ``EXACT`` values; more are first merged into that many groups of neighbours in rising order, equally
    many in each, and the levels are the means of the groups' members.
    """
    import kmeans1d

    ordered = np.sort(values.astype(np.float64))
    starts = np.unique(np.linspace(0, len(ordered), min(len(ordered), EXACT), endpoint=False).astype(np.int64))
    sums, members = np.add.reduceat(ordered, starts), np.diff(np.append(starts, len(ordered)))
    count = min(count, len(np.unique(ordered)))
    clusters = np.asarray(kmeans1d.cluster(sums / members, count).clusters)
    totals, sizes = np.bincount(clusters, sums, count), np.bincount(clusters, members, count)
    return np.unique((totals[sizes > 0] / sizes[sizes > 0]).astype(np.float32))


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
