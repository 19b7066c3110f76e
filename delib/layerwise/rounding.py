"""Compensated rounding: weights take levels one after the other, each making up for the errors of all others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from delib.coding.container import LevelTensor
from delib.layerwise.reconstruct import RIDGE, Moments

BLOCK = 128  # columns between two updates of all others: one matrix product instead of many outer ones


@torch.no_grad()
def round_compensated(
    moments: Moments, support: Tensor, matrix: Tensor, levels: LevelTensor, ridge: float = RIDGE, sweeps: int = 10
) -> Tensor:
    """A reconstructed matrix with each survivor at one of a layer's levels (QuantEase: Behdin et al. 2023, section 3).

    Coordinate descent on the squared output error: weight by weight, in all rows at once, each takes the level of least
    error given all others. No sweep raises the error of rounded weights; it ends where none changes any more.

    Parameters
    ----------
    moments, support, matrix, ridge
        As for ``reconstruct``. A bias column is not rounded; it absorbs what error is left.
    levels : LevelTensor
        Its codebook and scales are used.
    sweeps : int
        At most.
    """
    groups, k = moments.groups, matrix.shape[1]
    gram = moments.damped(ridge)
    start = (matrix * support).to(gram)
    codebook = torch.from_numpy(levels.codebook).to(gram)
    middles = (codebook[1:] + codebook[:-1]) / 2
    scales = np.ones(len(matrix), np.float16) if levels.scales is None else levels.scales
    scale = torch.from_numpy(scales.astype(np.float64)).to(gram).view(groups, -1)
    values, alive = start.view(groups, -1, k).clone(), by_columns(support.view(groups, -1, k))
    pull = moments.cross + moments.per_row(moments.damping(ridge)) * start  # as in ``reconstruct``
    slope, rounded = pull.view(groups, -1, k) - values @ gram, k - moments.bias

    def nearest(column: int, wanted: Tensor, _: Tensor) -> Tensor:
        if column < rounded:
            wanted = codebook[torch.bucketize(wanted / scale, middles)] * scale
        return torch.where(alive[:, column], wanted, 0)

    for _ in range(sweeps):
        before = values.clone()
        sweep(values, slope, gram, nearest)
        if torch.equal(values, before):
            break
    return values.view_as(matrix).to(matrix.dtype)


def sweep(values: Tensor, slope: Tensor, gram: Tensor, choose: Callable[[int, Tensor, Tensor], Tensor]) -> None:
    """Every weight once takes a value chosen given all others, column by column, in place.

    ``values`` and the squared error's falling ``slope`` are [groups, rows, k]; ``choose`` makes of a column's number,
    its values of least error [groups, rows] and the error's curvature along them [groups, 1] the values to take.
    """
    for begin in range(0, values.shape[2], BLOCK):
        own = slice(begin, begin + BLOCK)
        near, mine = by_columns(slope[:, :, own]), by_columns(values[:, :, own])
        old, corner = values[:, :, own].clone(), gram[:, own, own]
        for j in range(mine.shape[1]):
            curvature = corner[:, j, j, None]
            best = choose(begin + j, mine[:, j] + near[:, j] / curvature, curvature)
            near[:, j + 1 :] -= corner[:, j, j + 1 :, None] * (best - mine[:, j])[:, None]
            mine[:, j] = best
        values[:, :, own] = mine.mT
        slope -= (values[:, :, own] - old) @ gram[:, own]


def by_columns(values: Tensor) -> Tensor:
    """[groups, rows, k] as [groups, k, rows] in memory: to read a column, else, takes a cache line from each row."""
    return values.transpose(1, 2).contiguous()
