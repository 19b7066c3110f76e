"""Compensation: what a layer's survivors can do for the dead, exactly, from second moments alone.

A linear or convolutional layer is a matrix W [rows, k] applied to vectors x (its inputs, unfolded, with a constant 1
at the end where the layer has a bias, so that the bias is a weight like any other). All that its squared output error
depends on are three moments, summed over the calibration inputs once:

    gram G = Σ x xᵀ        cross C = Σ y xᵀ        energy E = Σ y²

with x what the *student's* layer receives and y what the *teacher's* layer answers. Then for each row w of W

    Σ (w·x - y)² = w G wᵀ - 2 w·c + e

so that any number of candidates can be compared, and their survivors refitted by least squares, without running the
network again. (Optimal Brain Compression, Frantar and Alistarh 2022, section 3; the cross moment lets a layer also mend
what the layers before it broke.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delib.nn.layers import matrix_of, weight_of

# Added to the Gram matrix's diagonal, as a share of the diagonal's mean. SparseGPT and ALPS take 1e-2 for language
# models; on LeNet-300-100 the divergence on held-out images changes by less than a tenth between 1e-4 and 1e-2.
RIDGE = 1e-3
PIECE = 1 << 24  # numbers in the largest temporary array: 64 MB in float32
LARGE = 150  # supports larger than this are refitted by conjugate gradients, faster by then than Cholesky factors
STEPS = 40  # of conjugate gradients; on YOLOv3-tiny's largest layer a step takes half a second on one core
INVERTIBLE = 1000  # rows with more survivors than this share one inverse in ``removal_costs``


@dataclass(frozen=True)
class Moments:
    """The sums that decide a layer's squared output error: see the module's docstring.

    ``gram`` [groups, k, k], ``cross`` [rows, k] and ``energy`` [rows], where rows are the layer's output channels and k
    the number of weights of one row, one more with a ``bias``. ``count`` is the number of vectors summed.
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor
    count: int
    bias: bool = False

    @property
    def groups(self) -> int:
        return self.gram.shape[0]

    def damped(self, ridge: float = RIDGE) -> Tensor:
        """The Gram matrices with ``ridge`` times the mean of their diagonal added to it."""
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        extra = (ridge * diagonal.mean(1, keepdim=True)).clamp_min(torch.finfo(self.gram.dtype).tiny)
        return self.gram + torch.diag_embed(extra.expand_as(diagonal))

    def apply(self, matrix: Tensor) -> Tensor:
        """Each row of ``matrix`` [rows, k] times its group's Gram matrix."""
        rows, k = matrix.shape
        return (matrix.view(self.groups, -1, k) @ self.gram).view(rows, k)

    def error(self, matrix: Tensor) -> Tensor:
        """The squared output error of each row, summed over the calibration inputs: w G wᵀ - 2 w·c + e, [rows]."""
        matrix = matrix.to(self.gram.dtype)
        return (self.apply(matrix) * matrix - 2 * matrix * self.cross).sum(1) + self.energy


def unfolded(layer: nn.Module, inputs: Tensor) -> Tensor:
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


def _answers(layer: nn.Module, outputs: Tensor) -> Tensor:
    """A layer's outputs as [n, rows], in the order of ``unfolded``'s vectors."""
    if isinstance(layer, nn.Linear):
        return outputs.reshape(-1, outputs.shape[-1])
    return outputs.movedim(1, -1).reshape(-1, outputs.shape[1])


def _passed(
    network: nn.Module, layer: nn.Module, inputs: Tensor, calls: float = math.inf
) -> list[tuple[Tensor, Tensor]]:
    """What the layer received and answered while the network ran, which ends at the ``calls``-th call of the layer."""
    seen: list[tuple[Tensor, Tensor]] = []

    def look(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((args[0].detach(), output.detach()))
        if len(seen) == calls:
            raise _Reached

    hook = layer.register_forward_hook(look)
    try:
        with suppress(_Reached):
            network(inputs)
    finally:
        hook.remove()
    return seen


class _Reached(Exception):
    """A pass has gone as far as it must."""


@torch.no_grad()
def moments(
    student: nn.Module,
    teacher: nn.Module,
    name: str,
    inputs: Tensor,
    batch: int = 64,
    *,
    focus: Tensor | None = None,
    enough: float = math.inf,
) -> Moments:
    """The moments of layer ``name``: x from the student's layer, y from the teacher's, over ``inputs`` [n, ...].

    Both networks run ``batch`` inputs at a time and as far as this layer; at most one batch's activations of it and one
    piece of its unfolded inputs are held. Products are summed in float64 below 2,048 weights a row, above that in
    float32. ``focus`` says for each input how much the positions of a convolution's output count [n, rows, columns], at
    any resolution; all alike by default. No more batches are run once ``enough`` vectors are summed: an early layer has
    many positions on every photo.
    """
    layer, model = student.get_submodule(name), teacher.get_submodule(name)
    rows, k = matrix_of(layer).shape
    groups = getattr(layer, "groups", 1)
    dtype = torch.float64 if k < 2048 else torch.float32
    zeros = lambda *shape: torch.zeros(*shape, dtype=dtype, device=weight_of(layer).device)  # noqa: E731
    gram, cross, energy, count = zeros(groups, k, k), zeros(rows, k), zeros(rows), 0
    calls = len(_passed(student, layer, inputs[:1]))  # a layer may be used more than once
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        counts = None if focus is None else focus[start : start + batch, None]
        ours, theirs = _passed(student, layer, part, calls), _passed(teacher, model, part, calls)
        for (x, _), (_, y) in zip(ours, theirs, strict=True):
            roots = None if counts is None else F.adaptive_max_pool2d(counts, y.shape[2:]).sqrt()
            for vectors, answers in _pieces(layer, x, y, groups * k, roots):
                gram += (vectors.mT @ vectors).to(dtype)
                grouped = answers.view(len(answers), groups, -1).permute(1, 2, 0)
                cross += (grouped @ vectors).reshape(rows, k).to(dtype)
                energy += answers.square().sum(0).to(dtype)
                count += len(answers)
        if count >= enough:
            break
    return Moments(gram, cross, energy, count, layer.bias is not None)


def _pieces(
    layer: nn.Module, x: Tensor, y: Tensor, width: int, roots: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Vectors [groups, n, k] and answers [n, rows] for some inputs at a time, both times ``roots`` [n, 1, h, w]."""
    positions = y.numel() // y.shape[0] // (y.shape[-1] if isinstance(layer, nn.Linear) else y.shape[1])
    step = max(1, PIECE // (positions * width))
    for i in range(0, len(x), step):
        vectors, answers = unfolded(layer, x[i : i + step]), _answers(layer, y[i : i + step])
        if roots is None:
            yield vectors, answers
        else:
            factors = roots[i : i + step].flatten()[:, None]
            yield vectors * factors, answers * factors


@torch.no_grad()
def refit(moments: Moments, support: Tensor, matrix: Tensor, ridge: float = RIDGE, steps: int = STEPS) -> Tensor:
    """The survivors' values of least squared output error: [rows, k], zero outside ``support`` [rows, k].

    Each row solves (G_SS + λ) w_S = c_S + λ w⁰_S with w⁰ the row of ``matrix``: damping pulls towards the present
    values, not towards zero, and λ is ``ridge`` times the mean of G's diagonal. Rows of similar size are solved
    together; where a row has more than ``LARGE`` survivors, in at most ``steps`` of conjugate gradients.
    """
    if int(support.sum(1).max()) > LARGE:
        return _refit_by_conjugate_gradients(moments, support, matrix, ridge, steps)
    start = matrix.to(moments.gram.dtype)
    extra = ridge * moments.gram.diagonal(dim1=1, dim2=2).mean(1)
    result = torch.zeros_like(start)
    for rows, columns, alive in _batches(support):
        group = rows // (len(support) // moments.groups)
        damping = extra[group][:, None]
        system = _sub_gram(moments, group, columns, alive, damping)
        right = (moments.cross[rows].gather(1, columns) + damping * start[rows].gather(1, columns)) * alive
        solution = torch.cholesky_solve(right[..., None], torch.linalg.cholesky(system))[..., 0] * alive
        result[rows] = result[rows].scatter(1, columns, solution)
    return result.to(matrix.dtype)


def _batches(support: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows with about equally many survivors together: (rows, their survivors' columns, which of these are real)."""
    counts = support.sum(1)
    order = counts.argsort()
    while len(order):
        size = max(1, int(counts[order[-1]]))  # the largest first, so that the rest are no wider
        many = max(1, PIECE // size**2)
        rows, order = order[-many:], order[:-many]
        columns = support[rows].to(torch.uint8).topk(size, dim=1).indices
        yield rows, columns, support[rows].gather(1, columns)


def _sub_gram(moments: Moments, group: Tensor, columns: Tensor, alive: Tensor, damping: Tensor) -> Tensor:
    """Each row's Gram matrix on its survivors, [rows, size, size]; padding gets a unit diagonal."""
    system = moments.gram[group[:, None, None], columns[:, :, None], columns[:, None, :]]
    system = system * (alive[:, :, None] & alive[:, None, :])
    diagonal = torch.where(alive, damping.clamp_min(torch.finfo(system.dtype).tiny), torch.ones_like(damping))
    return system + torch.diag_embed(diagonal)


def _refit_by_conjugate_gradients(
    moments: Moments, support: Tensor, matrix: Tensor, ridge: float, steps: int, tolerance: float = 1e-6
) -> Tensor:
    """As ``refit``, for supports too large to factorise row by row: all rows at once, preconditioned by the
    diagonal."""
    start = matrix.to(moments.gram.dtype) * support
    diagonal = moments.gram.diagonal(dim1=1, dim2=2)
    extra = (ridge * diagonal.mean(1)).repeat_interleave(len(support) // moments.groups)[:, None]
    scale = 1 / (diagonal.repeat_interleave(len(support) // moments.groups, dim=0) + extra)
    solution = start.clone()
    residual = (moments.cross - moments.apply(solution)) * support
    direction = residual * scale
    strength = (residual * direction).sum(1, keepdim=True)
    enough = tolerance**2 * strength.max()
    for _ in range(steps):
        if strength.max() <= enough:
            break
        image = (moments.apply(direction) + extra * direction) * support
        length = strength / (direction * image).sum(1, keepdim=True).clamp_min(torch.finfo(image.dtype).tiny)
        solution += length * direction
        residual -= length * image
        step = residual * scale
        strength, last = (residual * step).sum(1, keepdim=True), strength
        direction = step + strength / last.clamp_min(torch.finfo(image.dtype).tiny) * direction
    return solution.to(matrix.dtype)


@torch.no_grad()
def removal_costs(moments: Moments, support: Tensor, matrix: Tensor, ridge: float = RIDGE) -> Tensor:
    """What zeroing each survivor alone would add to the squared output error after all others are refitted, [rows, k].

    w_j² / [(G_SS + λ)⁻¹]_jj (Hassibi and Stork 1993, eq. 5), exact where ``matrix`` is refitted. Infinite for the dead.
    Rows with more than ``INVERTIBLE`` survivors take the inverse of the whole Gram matrix, which guesses low.
    """
    weights = matrix.to(moments.gram.dtype)
    costs = torch.full_like(weights, torch.inf)
    whole = int(support.sum(1).max()) > INVERTIBLE or bool(support.all())
    if whole:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments.damped(ridge))).diagonal(dim1=1, dim2=2)
        inverse = inverse.repeat_interleave(len(support) // moments.groups, dim=0)
        return torch.where(support, weights.square() / inverse, costs)
    extra = ridge * moments.gram.diagonal(dim1=1, dim2=2).mean(1)
    for rows, columns, alive in _batches(support):
        group = rows // (len(support) // moments.groups)
        factor = torch.linalg.cholesky(_sub_gram(moments, group, columns, alive, extra[group][:, None]))
        cost = weights[rows].gather(1, columns).square() / torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)
        costs[rows] = costs[rows].scatter(1, columns, cost.masked_fill(~alive, torch.inf))
    return costs


@torch.no_grad()
def zeroing_changes(moments: Moments, matrix: Tensor, candidates: Tensor) -> Tensor:
    """By how much each candidate set would change the layer's squared output error, uncompensated: [population].

    ``candidates`` [population, size] are flat indices into the layer's weight, without repeats within a set. Zeroing
    the weights e of a row adds e G eᵀ + 2 e·(c - w G). Only the rows of G that a set touches are read, so the cost
    depends on the size of the sets and not on the number of calibration inputs.
    """
    rows, k = matrix.shape
    width = k - moments.bias
    weights = matrix.to(moments.gram.dtype)
    slope = 2 * (moments.cross - moments.apply(weights))
    changes = []
    for candidate in candidates.sort(dim=1).values:
        row, column = candidate // width, candidate % width
        removed = weights[row, column]
        images = _removed_images(moments, row, column, removed, rows)
        changes.append((removed * (slope[row, column] + images)).sum())
    return torch.stack(changes)


def _removed_images(moments: Moments, row: Tensor, column: Tensor, removed: Tensor, rows: int) -> Tensor:
    """(e G)_j for each removed weight j, e being the removed weights of its row; ``row`` is sorted. [size]."""
    k = moments.gram.shape[-1]
    place = row // (rows // moments.groups) * k + column  # in the Gram matrices stacked one below the other
    images = torch.empty_like(removed)
    ends = torch.bincount(row, minlength=rows).cumsum(0)
    for first in range(0, rows, step := max(1, PIECE // k)):
        last = min(first + step, rows) - 1
        begin, end = int(ends[first - 1]) if first else 0, int(ends[last])
        offsets = torch.cat([ends.new_tensor([begin]), ends[first:last]]) - begin
        e_gram = F.embedding_bag(
            place[begin:end], moments.gram.view(-1, k), offsets, mode="sum", per_sample_weights=removed[begin:end]
        )
        images[begin:end] = e_gram[row[begin:end] - first, column[begin:end]]
    return images
