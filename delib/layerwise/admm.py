"""Which weights should survive if least squares gives the survivors their values: sparse least squares by ADMM."""

from __future__ import annotations

import torch
from torch import Tensor

from delib.layerwise.reconstruct import RIDGE, Moments

# As ALPS's own code has them, for a Gram matrix scaled to a unit diagonal.
FIRST_PENALTY = 0.1  # ρ at the start
CHECK = 3  # iterations between two looks at how much the support still changes
MOVING = 0.005  # share of the survivors: a support that changes more is moving
SETTLED, PATIENCE = 0.0003, 30  # ... and one that changes less, after so many iterations, has settled
LEAST_PENALTY = 1e-4  # ours: a support that even this does not move is the best that can be reached


@torch.no_grad()
def admm(
    moments: Moments,
    matrix: Tensor,
    survivors: int,
    row_weights: Tensor | None = None,
    allowed: Tensor | None = None,
    ridge: float = RIDGE,
    iterations: int = 300,
) -> tuple[Tensor, Tensor]:
    """The ``survivors`` weights of least squared output error once reconstructed (ALPS: Meng et al. 2024, algorithm 1).

    Minimises Σ_r s_r ‖w_r X - y_r‖² over matrices of at most ``survivors`` non-zero weights, the bias column not
    counted. The matrix is split in two, W that fits and D that is sparse, held together by multipliers V and a penalty
    ρ which rises until the support settles. Should the first one be so strong that the support hardly moves, it starts
    anew from a fifth of it:

        W = (G + ρ)⁻¹ (C - V + ρ D)      D = the largest entries of W + V/ρ      V += ρ (W - D)

    The problem is scaled to a unit diagonal of G; one eigendecomposition of each G makes every iteration two matrix
    products, in float32: they decide what survives, not with which value.

    Parameters
    ----------
    moments, matrix, ridge
        As for ``reconstruct``.
    survivors : int
        How many weights survive.
    row_weights : Tensor [rows], optional
        s, how much an error of each output counts; all alike by default.
    allowed : Tensor [rows, k], bool, optional
        Which weights may survive; all by default.
    iterations : int
        At most.

    Returns
    -------
    support : Tensor [rows, k], bool
        What survives, biases among it.
    strength : Tensor [rows, k]
        |W + V/ρ| at the end, in the scale in which weights were compared: the larger, the more firmly held.
    """
    problem = Scaled(moments, matrix, row_weights, ridge)
    barred = torch.zeros_like(matrix, dtype=torch.bool) if allowed is None else ~allowed
    counted = ~barred
    if moments.bias:
        counted[:, -1] = False
    barred, counted = barred.view_as(problem.start), counted.view_as(problem.start)
    support = last = _largest(problem.start, counted, survivors) & ~barred
    joined = sparse = first = problem.start * support
    dual, penalty, moved = torch.zeros_like(sparse), FIRST_PENALTY, False
    for step in range(1, iterations + 1):
        fitted = problem.solve(penalty * sparse - dual, penalty)
        joined = fitted + dual / penalty
        support = _largest(joined, counted, survivors) & ~barred
        sparse = joined * support
        dual = dual + penalty * (fitted - sparse)
        if step % CHECK:
            continue
        changed, last = int((support ^ last).sum()) / max(survivors, 1), support
        moved = moved or changed >= MOVING
        if (moved and changed == 0) or (step > PATIENCE and changed < SETTLED) or penalty < LEAST_PENALTY:
            break
        if moved:
            penalty *= 1.3 if changed >= 0.1 else 1.2 if changed >= MOVING else 1.1
        else:
            penalty /= 5
            sparse, dual = (first, torch.zeros_like(dual)) if changed else (sparse, dual)
    shape = matrix.shape
    return support.reshape(shape), joined.abs().reshape(shape)


class Scaled:
    """The least-squares problem with inputs scaled to unit mean square and rows scaled by their weights.

    ``start`` [groups, rows, k] is the matrix in these units: itself times ``units``. ``curvature`` is the weighted
    squared error's second derivative by each entry.
    """

    def __init__(self, moments: Moments, matrix: Tensor, row_weights: Tensor | None, ridge: float) -> None:
        gram = moments.damped(ridge)
        groups, k, _ = gram.shape
        scale = gram.diagonal(dim1=1, dim2=2).rsqrt()
        values, vectors = torch.linalg.eigh(gram * scale[:, :, None] * scale[:, None, :])
        rows = gram.new_ones(len(matrix)) if row_weights is None else row_weights.to(gram.dtype).sqrt()
        scales = (rows / rows.mean()).view(groups, -1, 1)
        self.units, self.curvature = (scales / scale[:, None, :]).float(), 2 * float(rows.mean().square())
        start = matrix.to(gram.dtype).view(groups, -1, k)
        extra = gram.diagonal(dim1=1, dim2=2) - moments.gram.diagonal(dim1=1, dim2=2)
        target = moments.cross.view(groups, -1, k) + extra[:, None, :] * start  # damping pulls towards the start
        self.values, self.vectors = values.float(), vectors.float()
        self.start = start.float() * self.units
        self.target = (target * scale[:, None, :] * scales @ vectors).float()

    def solve(self, pull: Tensor, penalty: float) -> Tensor:
        """(G + ρ)⁻¹ (C + pull)."""
        rotated = (self.target + pull @ self.vectors) / (self.values[:, None, :] + penalty)
        solution: Tensor = rotated @ self.vectors.mT
        return solution


def _largest(values: Tensor, counted: Tensor, survivors: int) -> Tensor:
    """A mask of the ``survivors`` largest absolute values among those counted; those not counted always survive."""
    support = ~counted
    chosen = values.abs().masked_fill(~counted, -1).flatten().topk(survivors).indices
    support.view(-1)[chosen] = True
    return support
