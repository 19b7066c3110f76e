"""Compensated rounding: weights take their levels one after the other, the later ones making up for the errors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from delib.coding.container import LevelTensor
from delib.layerwise.reconstruct import RIDGE, Moments, row_systems


@torch.no_grad()
def round_compensated(
    moments: Moments, support: Tensor, matrix: Tensor, levels: LevelTensor, ridge: float = RIDGE
) -> Tensor:
    """A reconstructed matrix with each survivor at one of a layer's levels (GPTQ: Frantar et al. 2022, algorithm 1).

    Row by row, survivor by survivor: with U the upper Cholesky factor of the survivors' inverse Gram matrix, rounding
    w_j by δ moves all later w by -δ U_j/U_jj.

    Parameters
    ----------
    moments, support, matrix, ridge
        As for ``reconstruct``. A bias column is not rounded; it absorbs what error is left.
    levels : LevelTensor
        Its codebook and scales are used.
    """
    codebook = torch.from_numpy(levels.codebook).to(moments.gram)
    middles = (codebook[1:] + codebook[:-1]) / 2
    scales = np.ones(len(matrix), np.float16) if levels.scales is None else levels.scales
    scale = torch.from_numpy(scales.astype(np.float64)).to(codebook)
    result = torch.zeros_like(matrix, dtype=codebook.dtype)
    last = matrix.shape[1] - 1 if moments.bias else -1
    for rows, columns, alive, gram, _ in row_systems(moments, support, ridge, in_order=True):  # so the bias comes last
        factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram)), upper=True)
        weights = matrix[rows].gather(1, columns).to(codebook) * alive
        for j in range(columns.shape[1]):
            value = codebook[torch.bucketize(weights[:, j] / scale[rows], middles)] * scale[rows]
            value = torch.where(alive[:, j] & (columns[:, j] != last), value, weights[:, j])
            error = (weights[:, j] - value) / factor[:, j, j]
            weights[:, j:] -= error[:, None] * factor[:, j, j:] * alive[:, j:]
            weights[:, j] = value
        result[rows] = result[rows].scatter(1, columns, weights * alive)
    return result.to(matrix.dtype)
