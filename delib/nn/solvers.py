"""The package's two numerical solvers: conjugate gradients for linear systems, bisection for one equation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    right: Tensor,
    *,
    precondition: Tensor | None = None,
    steps: int,
    tolerance: float = 1e-6,
) -> Tensor:
    """Solve A x = b for x [rows, k] by conjugate gradients from x = 0, each row by itself (Hestenes and Stiefel 1952).

    Parameters
    ----------
    apply : callable
        Multiplies each row of x [rows, k] by that row's symmetric positive semidefinite matrix A.
    right : Tensor [rows, k]
        b.
    precondition : Tensor [rows, k], optional
        An approximation of the inverse of A's diagonal (Jacobi preconditioner).
    steps : int
        Iterations at most; each calls ``apply`` once.
    tolerance : float
        Iteration ends once every row's residual norm is below ``tolerance`` times the largest at the start.
    """
    tiny = torch.finfo(right.dtype).tiny
    solution, residual = torch.zeros_like(right), right
    direction = step = residual if precondition is None else residual * precondition
    strength = (residual * step).sum(1, keepdim=True)
    enough = tolerance**2 * strength.max()
    for _ in range(steps):
        if strength.max() <= enough:
            break
        image = apply(direction)
        length = strength / (direction * image).sum(1, keepdim=True).clamp_min(tiny)
        solution += length * direction
        residual = residual - length * image
        step = residual if precondition is None else residual * precondition
        strength, last = (residual * step).sum(1, keepdim=True), strength
        direction = step + strength / last.clamp_min(tiny) * direction
    return solution


def bisect(function: Callable[[float], float], low: float, high: float, halvings: int = 60) -> float:
    """The root of a rising function between ``low`` and ``high``, to within (high - low) / 2**``halvings``."""
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return (low + high) / 2
