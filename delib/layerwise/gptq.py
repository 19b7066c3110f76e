"""TODO"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from delib.coding.container import LevelTensor
from delib.layerwise.reconstruct import RIDGE, Moments, _batches, _sub_gram


@torch.no_grad()
def rounded(moments: Moments, support: Tensor, matrix: Tensor, levels: LevelTensor, ridge: float = RIDGE) -> Tensor:
    """A refitted matrix [rows, k] with each survivor at one of ``levels``, the others making up for its error.

    Row by row, survivor by survivor, as GPTQ does (Frantar et al. 2022, algorithm 1): with U the upper Cholesky factor
    of the survivors' inverse Gram matrix, rounding w_j by δ moves all later w by -δ U_j/U_jj. A bias column is not
    rounded. ``levels`` gives codebook and scales.
    """
    codebook = torch.from_numpy(levels.codebook).to(moments.gram)
    middles = (codebook[1:] + codebook[:-1]) / 2
    scales = np.ones(len(matrix), np.float16) if levels.scales is None else levels.scales
    scale = torch.from_numpy(scales.astype(np.float64)).to(codebook)
    extra = ridge * moments.gram.diagonal(dim1=1, dim2=2).mean(1)
    result = torch.zeros_like(matrix, dtype=codebook.dtype)
    last = matrix.shape[1] - 1 if moments.bias else -1
    for rows, unsorted, _ in _batches(support):
        # Padding comes with the dead; sorting brings the bias, which absorbs what is left, to the end.
        columns = unsorted.sort(1).values
        alive = support[rows].gather(1, columns)
        group = rows // (len(support) // moments.groups)
        system = _sub_gram(moments, group, columns, alive, extra[group][:, None])
        factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(system)), upper=True)
        weights = matrix[rows].gather(1, columns).to(codebook) * alive
        for j in range(columns.shape[1]):
            value = codebook[torch.bucketize(weights[:, j] / scale[rows], middles)] * scale[rows]
            value = torch.where(alive[:, j] & (columns[:, j] != last), value, weights[:, j])
            error = (weights[:, j] - value) / factor[:, j, j]
            weights[:, j:] -= error[:, None] * factor[:, j, j:] * alive[:, j:]
            weights[:, j] = value
        result[rows] = result[rows].scatter(1, columns, weights * alive)
    return result.to(matrix.dtype)
