"""Reconstruction of one layer by least squares: what its survivors can do for the dead, exactly, from second moments.

A linear or convolutional layer is a matrix W [rows, k] applied to vectors x (its inputs, unfolded, with a constant 1
at the end where the layer has a bias, so that the bias is a weight like any other). All that its squared output error
depends on are three moments, summed over the calibration inputs once:

    gram G = Σ x xᵀ        cross C = Σ y xᵀ        energy E = Σ y²

with x what the *student's* layer receives and y what the *teacher's* layer answers. Then for each row w of W

    Σ (w·x - y)² = w G wᵀ - 2 w·c + e

so that any number of candidate sets can be compared, and their survivors refitted by least squares, without running the
network again. (Optimal Brain Compression, Frantar and Alistarh 2022, section 3; the cross moment lets a layer also
correct the errors of the layers before it.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delib.nn.hooks import calls
from delib.nn.layers import matrix_of, weight_of
from delib.nn.solvers import conjugate_gradients

# Added to the Gram matrix's diagonal, as a share of the diagonal's mean. SparseGPT and ALPS take 1e-2 for language
# models; on LeNet-300-100 the divergence on held-out images changes by less than a tenth between 1e-4 and 1e-2.
RIDGE = 1e-3
PIECE = 1 << 24  # numbers in the largest temporary array: 64 MB in float32
LARGE = 150  # rows with more survivors are solved by conjugate gradients, faster by then than Cholesky factors
STEPS = 40  # of conjugate gradients; on YOLOv3-tiny's largest layer a step takes half a second on one core
INVERTIBLE = 1000  # rows with more survivors than this share one inverse in ``removal_costs``


@dataclass(frozen=True)
class Moments:
    """The sums that decide a layer's squared output error: see the module's docstring.

    ``gram`` [groups, k, k], ``cross`` [rows, k] and ``energy`` [rows], where rows are the layer's output channels and k
    the number of weights of one row, one more with a ``bias``. ``count`` is the number of vectors summed, ``inputs``
    the number of the network's inputs that they came from.
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor
    count: int
    bias: bool = False
    inputs: int = 1

    @property
    def groups(self) -> int:
        return self.gram.shape[0]

    def per_row(self, values: Tensor) -> Tensor:
        """Values of groups [groups, ...], such as their damping, as values of rows [rows, ...]."""
        return values.repeat_interleave(len(self.cross) // self.groups, dim=0)

    def damping(self, ridge: float = RIDGE) -> Tensor:
        """What is added to the diagonals: ``ridge`` times their mean, [groups, 1]."""
        mean = self.gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
        return (ridge * mean).clamp_min(torch.finfo(self.gram.dtype).tiny)

    def damped(self, ridge: float = RIDGE) -> Tensor:
        """The Gram matrices with the damping added to their diagonals."""
        return self.gram + torch.diag_embed(self.damping(ridge).expand(-1, self.gram.shape[-1]))

    def apply(self, matrix: Tensor) -> Tensor:
        """Each row of ``matrix`` [rows, k] times its group's Gram matrix."""
        rows, k = matrix.shape
        return (matrix.view(self.groups, -1, k) @ self.gram).view(rows, k)

    def error(self, matrix: Tensor) -> Tensor:
        """The squared output error of each row, summed over the calibration inputs: w G wᵀ - 2 w·c + e, [rows]."""
        matrix = matrix.to(self.gram.dtype)
        return (self.apply(matrix) * matrix - 2 * matrix * self.cross).sum(1) + self.energy


def input_vectors(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The vectors that the layer's rows are multiplied with: [groups, n, k] for inputs as the layer receives them."""
    if isinstance(layer, nn.Linear):
        vectors = inputs.reshape(1, -1, inputs.shape[-1])
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        vectors = _patches(layer, inputs)
    else:
        raise TypeError(f"cannot unfold the inputs of a {type(layer).__name__}; linear and convolutional layers only")
    return vectors if layer.bias is None else F.pad(vectors, (0, 1), value=1.0)


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    patches = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    dims = len(layer.kernel_size)
    for d, (size, step, gap) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        patches = patches.unfold(2 + d, (size - 1) * gap + 1, step)[..., ::gap]  # appends the kernel's axis
    n, channels = patches.shape[:2]
    patches = patches.reshape(n, layer.groups, channels // layer.groups, *patches.shape[2:])
    spatial, kernel = range(3, 3 + dims), range(3 + dims, 3 + 2 * dims)
    patches = patches.permute(1, 0, *spatial, 2, *kernel)
    return patches.reshape(layer.groups, -1, math.prod(patches.shape[2 + dims :]))


def output_vectors(layer: nn.Module, outputs: Tensor) -> Tensor:
    """A layer's outputs as [n, rows], in the order of ``input_vectors``."""
    if isinstance(layer, nn.Linear):
        return outputs.reshape(-1, outputs.shape[-1])
    return outputs.movedim(1, -1).reshape(-1, outputs.shape[1])


@torch.no_grad()
def moments(
    student: nn.Module,
    teacher: nn.Module,
    name: str,
    inputs: Tensor,
    batch: int = 64,
    *,
    position_weights: Tensor | None = None,
    enough: float = math.inf,
) -> Moments:
    """The moments of one layer: x from the student's layer, y from the teacher's.

    Both networks run as far as this layer; at most one batch's activations of it and one piece of its unfolded inputs
    are held. Products are summed in float64 below 2,048 weights per row, above that in float32.

    Parameters
    ----------
    student, teacher : nn.Module
        Networks with a linear or convolutional layer called ``name``.
    inputs : Tensor [n, ...]
        Calibration inputs, run ``batch`` at a time.
    position_weights : Tensor [n, rows, columns], optional
        How much the positions of a convolution's output count, at any resolution; all alike by default.
    enough : float
        No more batches are run once so many vectors are summed: an early layer has many positions on every photo.

    Raises
    ------
    ValueError
        If the layer is never called, or does not answer with its weight times its input, plus its bias.
    """
    layer, model = student.get_submodule(name), teacher.get_submodule(name)
    rows, k = matrix_of(layer).shape
    groups = getattr(layer, "groups", 1)
    dtype = torch.float64 if k < 2048 else torch.float32
    zeros = lambda *shape: torch.zeros(*shape, dtype=dtype, device=weight_of(layer).device)  # noqa: E731
    gram, cross, energy, count, used = zeros(groups, k, k), zeros(rows, k), zeros(rows), 0, 0
    times = len(calls(student, layer, inputs[:1]))  # a layer may be called more than once
    if not times:
        raise ValueError(f"layer {name!r} is never called: the network uses its weight otherwise, or not at all")
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        weights = None if position_weights is None else position_weights[start : start + batch, None]
        ours, theirs = calls(student, layer, part, times), calls(teacher, model, part, times)
        for (x, own), (_, y) in zip(ours, theirs, strict=True):
            if start == 0:
                _check_linear(name, layer, x[:1], own[:1])
            roots = None if weights is None else F.adaptive_max_pool2d(weights, y.shape[2:]).sqrt()
            for vectors, answers in _pieces(layer, x, y, groups * k, roots):
                gram += (vectors.mT @ vectors).to(dtype)
                grouped = answers.view(len(answers), groups, -1).permute(1, 2, 0)
                cross += (grouped @ vectors).reshape(rows, k).to(dtype)
                energy += answers.square().sum(0).to(dtype)
                count += len(answers)
        used += len(part)
        if count >= enough:
            break
    return Moments(gram, cross, energy, count, layer.bias is not None, used)


def _check_linear(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
    """Raise ValueError unless y is what the layer's matrix makes of x: a subclass may compute something else."""
    groups, vectors = getattr(layer, "groups", 1), input_vectors(layer, x)
    matrix = matrix_of(layer).view(groups, -1, vectors.shape[2])
    made = (vectors @ matrix.mT).transpose(0, 1).reshape(vectors.shape[1], -1)
    wanted = output_vectors(layer, y)
    if made.shape != wanted.shape or not torch.allclose(made, wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max())):
        raise ValueError(
            f"layer {name!r}, a {type(layer).__name__}, answers with something else than its weight times its input, "
            "plus its bias: it cannot be reconstructed by least squares"
        )


def _pieces(
    layer: nn.Module, x: Tensor, y: Tensor, width: int, roots: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Vectors [groups, n, k] and answers [n, rows] for some inputs at a time, both times ``roots`` [n, 1, h, w]."""
    positions = y.numel() // y.shape[0] // (y.shape[-1] if isinstance(layer, nn.Linear) else y.shape[1])
    step = max(1, PIECE // (positions * width))
    for i in range(0, len(x), step):
        vectors, answers = input_vectors(layer, x[i : i + step]), output_vectors(layer, y[i : i + step])
        if roots is None:
            yield vectors, answers
        else:
            factors = roots[i : i + step].flatten()[:, None]
            yield vectors * factors, answers * factors


class RowSystems(NamedTuple):
    """The normal equations of some rows: which ``rows`` [n], their survivors' ``columns`` [n, size], which of these are
    ``alive`` (the others are padding), their Gram matrices on these columns, damped, and the ``damping`` [n, 1]."""

    rows: Tensor
    columns: Tensor
    alive: Tensor
    gram: Tensor
    damping: Tensor


def row_systems(moments: Moments, support: Tensor, ridge: float) -> Iterator[RowSystems]:
    """The systems of all rows of ``support`` [rows, k], rows with about equally many survivors together.

    Padding gets a unit diagonal.
    """
    counts, damping = support.sum(1), moments.damping(ridge)
    order = counts.argsort()
    while len(order):
        size = max(1, int(counts[order[-1]]))  # the largest first, so that the rest are no wider
        many = max(1, PIECE // size**2)
        rows, order = order[-many:], order[:-many]
        columns = support[rows].to(torch.uint8).topk(size, dim=1).indices
        alive = support[rows].gather(1, columns)
        group = rows // (len(support) // moments.groups)
        gram = moments.gram[group[:, None, None], columns[:, :, None], columns[:, None, :]]
        gram = gram * (alive[:, :, None] & alive[:, None, :])
        gram += torch.diag_embed(torch.where(alive, damping[group], torch.ones_like(damping[group])))
        yield RowSystems(rows, columns, alive, gram, damping[group])


@torch.no_grad()
def reconstruct(moments: Moments, support: Tensor, matrix: Tensor, ridge: float = RIDGE, steps: int = STEPS) -> Tensor:
    """The survivors' values of least squared output error: [rows, k], zero outside ``support``.

    Each row solves (G_SS + λ) w_S = c_S + λ w⁰_S with w⁰ the row of ``matrix``: damping pulls towards the present
    values, not towards zero. Rows of similar size are solved together by Cholesky factors; where a row has more than
    ``LARGE`` survivors, all rows by conjugate gradients, preconditioned by the diagonal.

    Parameters
    ----------
    moments : Moments
    support : Tensor [rows, k], bool
        Which weights survive.
    matrix : Tensor [rows, k]
        The present values w⁰.
    ridge : float
        λ as a share of the mean of G's diagonal.
    steps : int
        Iterations of conjugate gradients at most.
    """
    start = matrix.to(moments.gram.dtype)
    if int(support.sum(1).max()) > LARGE:
        return _by_conjugate_gradients(moments, support, start * support, ridge, steps).to(matrix.dtype)
    result = torch.zeros_like(start)
    for rows, columns, alive, gram, damping in row_systems(moments, support, ridge):
        right = (moments.cross[rows].gather(1, columns) + damping * start[rows].gather(1, columns)) * alive
        solution = torch.cholesky_solve(right[..., None], torch.linalg.cholesky(gram))[..., 0] * alive
        result[rows] = result[rows].scatter(1, columns, solution)
    return result.to(matrix.dtype)


def _by_conjugate_gradients(moments: Moments, support: Tensor, start: Tensor, ridge: float, steps: int) -> Tensor:
    """From ``start``, by solving for what is to be added to it; there damping cancels from the right side."""
    damping = moments.per_row(moments.damping(ridge))
    return start + conjugate_gradients(
        lambda change: (moments.apply(change) + damping * change) * support,
        (moments.cross - moments.apply(start)) * support,
        precondition=1 / (moments.per_row(moments.gram.diagonal(dim1=1, dim2=2)) + damping),
        steps=steps,
    )


@torch.no_grad()
def removal_costs(moments: Moments, support: Tensor, matrix: Tensor, ridge: float = RIDGE) -> Tensor:
    """What zeroing each survivor alone would add to the squared output error once all others are refitted, [rows, k].

    w_j² / [(G_SS + λ)⁻¹]_jj (Hassibi and Stork 1993, eq. 5), exact where ``matrix`` is refitted. Infinite for the dead.
    Rows with more than ``INVERTIBLE`` survivors take the inverse of the whole Gram matrix, which guesses low.
    """
    weights = matrix.to(moments.gram.dtype)
    costs = torch.full_like(weights, torch.inf)
    if int(support.sum(1).max()) > INVERTIBLE or bool(support.all()):
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments.damped(ridge))).diagonal(dim1=1, dim2=2)
        return torch.where(support, weights.square() / moments.per_row(inverse), costs)
    for rows, columns, alive, gram, _ in row_systems(moments, support, ridge):
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram)).diagonal(dim1=1, dim2=2)
        cost = weights[rows].gather(1, columns).square() / inverse
        costs[rows] = costs[rows].scatter(1, columns, cost.masked_fill(~alive, torch.inf))
    return costs
