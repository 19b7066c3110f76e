"""Rate-aware quantisation of a layer: support, levels and code lengths found together, each weight taking its cheapest.

What a weight costs is the squared output error that it leaves once all others have made up for it, plus a price for
each bit that the file spends on it. Zero is a level like any other, so the support comes out of the same choice.

Weights that take their cheapest level one after the other soon find no better one, far from the best of all. ADMM sees
all of them at once: as in ``admm``, a matrix that fits and one that may be stored are drawn together, but where that
one keeps the largest weights, here each takes its cheapest level. Leng et al. 2018 (section 3) did so for levels alone,
without rates. Single weights have the last word.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from delib.coding.container import LevelTensor
from delib.coding.entropy import LEVELS, as_tensor, entropy_constrained
from delib.coding.quantize import as_scales, row_scales
from delib.layerwise.admm import Scaled
from delib.layerwise.reconstruct import RIDGE, Moments
from delib.layerwise.rounding import by_columns, sweep

LOOKED = 32  # rows of a group that the curvature of the levels is summed over
LEAST_SHARE = 2.0**-10  # of survivors that the model of masks expects anywhere, as the container's does
SCALE_BITS = 16  # that the file spends on an output's scale
# Of ADMM: iterations, after how many of them levels and rates follow, and the penalty at the start and at the end, for
# a Gram matrix of unit diagonal. A layer of YOLOv3-tiny costs 3% more after 75, 1% more after 150.
ITERATIONS, UPDATE = 300, 4
PENALTIES = 0.1, 1.0
CACHED = 1 << 16  # weights looked at together: these stay in a processor's cache while level after level is tried
FIRST_PRICE = 0.1  # of the first levels, as a share: at the price itself every weight, seen alone, may rather be zero
SWEEPS = 12  # over all weights at most, until the cost falls by less than a thousandth


@dataclass(frozen=True)
class Prices:
    """Bits that the file spends: on a weight that is zero and on one that is not, both [rows, k], and for the latter on
    its level, [levels]. ``zero`` is the index of the level zero, which costs nothing more."""

    dead: Tensor
    alive: Tensor
    levels: Tensor
    zero: int

    @classmethod
    def of(cls, indices: Tensor, zero: int, count: int, kernel: int = 1) -> Prices:
        """What these indices [rows, k] cost: masks by the densities of row, column and ``kernel``, as many weights of
        a row that follow each other; levels by their shares."""
        survivors = (indices != zero).double()
        share = survivors.mean().clamp_min(LEAST_SHARE)
        rows = (survivors.sum(1, keepdim=True) + share) / (indices.shape[1] + 1)
        columns = (survivors.sum(0, keepdim=True) + share) / (indices.shape[0] + 1)
        density = rows * columns / share
        density = (density * _clustering(survivors, density, kernel)).clamp(LEAST_SHARE, 1 - LEAST_SHARE)
        used = torch.bincount(indices[indices != zero], minlength=count).double().clamp_min(0.5)
        bits = -(used / used.sum()).log2()
        bits[zero] = 0
        return cls(-(1 - density).log2(), -density.log2(), bits, zero)

    def total(self, indices: Tensor) -> float:
        """Bits of all weights [rows, k]."""
        return float(torch.where(indices == self.zero, self.dead, self.alive + self.levels[indices]).sum())


def _clustering(survivors: Tensor, expected: Tensor, kernel: int) -> Tensor:
    """How many times as likely as ``expected`` each weight survives, given the others of its kernel: [rows, k].

    Kernels differ by a factor of mean 1 that follows a Gamma distribution of variance v; its posterior mean is
    (1 + v · survivors) / (1 + v · expected survivors) of the others. v is by what share more pairs survive in a kernel
    than are expected; where none do, nothing is known of the others.
    """
    found, awaited = (share.view(len(share), -1, kernel) for share in (survivors, expected))
    others, others_awaited = (share.sum(2, keepdim=True) - share for share in (found, awaited))
    pairs, pairs_awaited = float((found * others).sum()), float((awaited * others_awaited).sum())
    variance = max(pairs / pairs_awaited - 1, 0) if pairs_awaited > 0 else 0.0
    return ((1 + variance * others) / (1 + variance * others_awaited)).view_as(survivors)


@torch.no_grad()
def quantize_rate_aware(
    moments: Moments,
    matrix: Tensor,
    multiplier: float,
    row_weights: Tensor | None = None,
    *,
    count: int = LEVELS,
    ridge: float = RIDGE,
    iterations: int = ITERATIONS,
    kernel: int = 1,
) -> tuple[LevelTensor, Tensor]:
    """Levels for a layer of least Σ_r s_r ‖w_r X - y_r‖² / inputs + ``multiplier`` · bits.

    After CERWU (Conzelmann and Bamler 2025, section 3), which takes weight by weight the cheapest of error and rate
    while the rest compensates, as coordinate descent, so that weights can be looked at again when the rates have
    changed; before, ADMM looks at all of them at once. It starts from the support in ``matrix`` and may move it. Levels
    begin as ``entropy_constrained`` ones and become the means of what is assigned to them; the rates are those of the
    assignment before. Outputs get a scale each (see ``output_scales``) where that is cheaper than doing without, as
    judged after a first sweep.

    Parameters
    ----------
    moments, ridge
        As for ``reconstruct``.
    matrix : Tensor [rows, k]
        Where to start: a reconstructed matrix, zeros and all. A bias column is not quantised and not counted.
    multiplier : float
        Error that one bit is worth, above 0.
    row_weights : Tensor [rows], optional
        s, how much an error of each output counts.
    count : int
        Levels at most, zero among them.
    iterations : int
        Of ADMM; 0 leaves it out.
    kernel : int
        Weights of one output for one input, which the file tends to spend less on if they survive together.

    Returns
    -------
    levels : LevelTensor
        With mask and indices as a matrix [rows, k without bias].
    matrix : Tensor [rows, k]
        The same values, and the bias that suits them.
    """
    begun = [_Descent(moments, matrix, multiplier, row_weights, ridge, scaled, kernel) for scaled in (False, True)]
    for descent in begun:
        descent.place(count)
        descent.step()
    descent = min(begun, key=_Descent.cost)
    best, kept = descent.cost(), descent.result()
    if iterations:
        descent.place(count)
        descent.alternate(iterations, ridge)
    for _ in range(1, SWEEPS):
        descent.step()
        cost = descent.cost()
        if cost < best:
            kept = descent.result()
        if best - cost < 1e-3 * abs(cost):
            break
        best = cost
    return kept


def output_scales(matrix: Tensor, row_weights: Tensor) -> NDArray[np.float16]:
    """What the values [rows, k] of each output are divided by before they take levels: [rows], the largest 1.

    Levels that lie s^-1/2 apart leave each output an error that counts alike, best at many bits. At few, most weights
    of an output that is small, or that counts little, would take the level zero, whatever the others could make of it:
    the scales are the geometric means of s^-1/2 and of the survivors' root mean squares. On YOLOv3-tiny's layers this
    costs up to a tenth less than one codebook without scales, at worst 1% more.
    """
    sizes = row_scales(matrix.cpu().numpy()) / row_weights.double().sqrt().cpu().numpy()
    return as_scales(np.sqrt(sizes))


class _Descent:
    """Coordinate descent over one layer's weights [groups, rows, k], their levels and rates."""

    def __init__(
        self,
        moments: Moments,
        matrix: Tensor,
        multiplier: float,
        row_weights: Tensor | None,
        ridge: float,
        scaled: bool = False,
        kernel: int = 1,
    ) -> None:
        groups, k = moments.groups, matrix.shape[1]
        self.dtype, self.columns, self.multiplier = matrix.dtype, k - moments.bias, multiplier
        self.kernel = kernel
        self.gram = moments.damped(ridge)
        weights = torch.ones(len(matrix)).to(self.gram) if row_weights is None else row_weights.to(self.gram)
        self.scales = output_scales(matrix[:, : self.columns], weights) if scaled else None
        self.spread = torch.ones_like(weights) if self.scales is None else torch.from_numpy(self.scales).to(weights)
        # From here on everything is in units of the scales.
        start = matrix.to(self.gram) / self.spread[:, None]
        cross, energy = moments.cross / self.spread[:, None], moments.energy / self.spread.square()
        self.moments = moments = replace(moments, cross=cross, energy=energy)
        self.start, self.weights = start, weights * self.spread.square()
        self.price = multiplier * moments.inputs / self.weights.view(groups, -1)  # in units of the Gram matrix
        pull = moments.cross + moments.per_row(moments.damping(ridge)) * start  # as in ``reconstruct``
        self.pull = pull.view(groups, -1, k)

    def place(self, count: int) -> None:
        """The start's values with their first levels, as if each mattered alike."""
        self.values = self.start.view_as(self.pull).clone()
        own = self.values[:, :, : self.columns]
        curvature = self.weights.mean() * self.gram.diagonal(dim1=1, dim2=2)[:, : self.columns].mean()
        price = FIRST_PRICE * self.multiplier * self.moments.inputs / float(curvature)
        rated = entropy_constrained(own.cpu().numpy(), price, count)
        self.levels = torch.from_numpy(rated.levels).to(self.gram)
        self.zero = int((self.levels == 0).nonzero()[0])
        nearest = torch.bucketize(own.contiguous(), (self.levels[1:] + self.levels[:-1]) / 2)
        self.indices = nearest.flatten(0, 1)
        self.prices = self._prices()

    def alternate(self, iterations: int, ridge: float) -> None:
        """ADMM between the matrix that fits and the one that has levels, at which it ends."""
        problem = Scaled(self.moments, self.start, self.weights, ridge)
        bit = self.multiplier * self.moments.inputs / problem.curvature
        stored, dual = problem.start, torch.zeros_like(problem.start)
        for step, penalty in enumerate(np.geomspace(*PENALTIES, iterations)):
            fitted = problem.solve(penalty * stored - dual, penalty)
            joined = (fitted + dual / penalty) / problem.units
            weights = problem.units[:, :, : self.columns].square()
            self.project(joined, weights, bit / penalty)
            if step % UPDATE == UPDATE - 1:
                self.follow(joined, weights)
            stored = self.values.float() * problem.units
            dual += penalty * (fitted - stored)

    def project(self, joined: Tensor, weights: Tensor, bit: float) -> None:
        """Each value takes the level of least ``weights`` · difference² / 2 + ``bit`` · bits; a bias stays."""
        k = self.columns
        alive, dead = (rate.view_as(weights).to(weights) for rate in (self.prices.alive, self.prices.dead))
        indices = torch.zeros_like(weights, dtype=torch.long)
        for part in torch.arange(weights.shape[1]).split(max(1, CACHED // k)):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            own = [of[:, rows] for of in (joined[:, :, :k], weights, alive, dead)]
            indices[:, rows] = self._cheapest(bit, *own)
        self.indices = indices.flatten(0, 1)
        self.values[:, :, :k] = self.levels[indices]
        self.values[:, :, k:] = joined[:, :, k:].to(self.values)

    def _cheapest(self, bit: float, values: Tensor, weights: Tensor, alive: Tensor, dead: Tensor) -> Tensor:
        """The index of each value's cheapest level."""
        least, indices = torch.full_like(values, torch.inf), torch.zeros_like(values, dtype=torch.long)
        for i, (level, bits) in enumerate(zip(self.levels.tolist(), self.prices.levels.tolist())):
            rate = dead if i == self.zero else alive + bits
            cost = weights / 2 * (values - level).square() + bit * rate
            indices.masked_fill_(cost < least, i)
            least = torch.minimum(cost, least)
        return indices

    def follow(self, joined: Tensor, weights: Tensor) -> None:
        """Levels become the weighted means of the values that take them, and rates follow; what none takes goes."""
        own = self.indices.flatten()
        of = lambda values: torch.zeros(len(self.levels)).to(values).index_add_(0, own, values.flatten())  # noqa: E731
        mass, total = of(weights), of(weights * joined[:, :, : self.columns])
        used = mass > 0
        used[self.zero] = True
        means = torch.where(mass > 0, total / mass, 0).to(self.levels)
        means[self.zero] = 0
        self.levels, renumbered = means[used], used.cumsum(0) - 1
        self.indices, self.zero = renumbered[self.indices], int(renumbered[self.zero])
        self.prices = self._prices()

    def step(self) -> None:
        """A sweep over all weights, then new levels and rates."""
        self.sweep()
        self.update()

    def sweep(self) -> None:
        """Every weight once takes its cheapest level given all others; a bias its best value."""
        groups, rows, _ = self.values.shape
        dead = by_columns(self.prices.dead.view(groups, rows, -1))
        alive = by_columns(self.prices.alive.view(groups, rows, -1))
        indices = by_columns(self.indices.view(groups, rows, -1))
        bits = self.prices.levels.to(self.gram)

        def cheapest(column: int, wanted: Tensor, curvature: Tensor) -> Tensor:
            if column == self.columns:
                return wanted
            rate = bits + alive[:, column, :, None]
            rate[:, :, self.zero] = dead[:, column]
            error = curvature[..., None] * (self.levels - wanted[..., None]).square()
            indices[:, column] = (error + self.price[..., None] * rate).argmin(2)
            return self.levels[indices[:, column]]

        sweep(self.values, self.pull - self.values @ self.gram, self.gram, cheapest)
        self.indices = indices.transpose(1, 2).flatten(0, 1)

    def update(self) -> None:
        """All levels but zero move to where the error is least with every weight's level as it is; rates follow.

        One Newton step; its matrix is summed over at most ``LOOKED`` rows of a group.
        """
        groups, rows, _ = self.values.shape
        many, columns = len(self.levels), self.columns
        own, weights = self.indices.view(groups, rows, -1), self.weights.view(groups, -1)
        slope = ((self.pull - self.values @ self.gram)[:, :, :columns] * weights[:, :, None]).flatten()
        push = torch.zeros(many).to(slope).index_add_(0, own.flatten(), slope)
        looked = torch.arange(0, rows, max(1, rows // LOOKED))
        taken = F.one_hot(own[:, looked], many).to(slope).transpose(2, 3)  # [groups, looked, levels, columns]
        pairs = (taken @ self.gram[:, None, :columns, :columns]) @ taken.mT
        bend = (pairs * weights[:, looked, None, None]).sum((0, 1)) * rows / len(looked)
        moved = [i for i in range(many) if i != self.zero and bend[i, i] > 0]
        steps = torch.linalg.lstsq(bend[moved][:, moved], push[moved, None]).solution[:, 0]
        before, levels, values = self.cost(), self.levels.clone(), self.values.clone()
        self.levels[moved] += steps
        self.levels = _in_half_precision(self.levels)
        self.values[:, :, :columns] = self.levels[own]
        if self.cost() > before:
            self.levels, self.values = levels, values
        self.prices = self._prices()

    def _prices(self) -> Prices:
        return Prices.of(self.indices, self.zero, len(self.levels), self.kernel)

    def cost(self) -> float:
        """The error, weighted, per input, and the bits at their price."""
        matrix = self.values.flatten(0, 1)
        error = (self.moments.error(matrix) * self.weights).sum() / self.moments.inputs
        bits = self.prices.total(self.indices) + (0 if self.scales is None else SCALE_BITS * len(matrix))
        return float(error) + self.multiplier * bits

    def result(self) -> tuple[LevelTensor, Tensor]:
        levels, place = self.levels.unique(return_inverse=True)  # in rising order; two may have met
        tensor = as_tensor(place[self.indices].cpu().numpy(), levels.cpu().numpy(), self.scales)
        return tensor, (self.values.flatten(0, 1) * self.spread[:, None]).to(self.dtype)


def _in_half_precision(levels: Tensor) -> Tensor:
    """Rounded to float16, in which they take half the bytes, unless one of them is too large or too small for it."""
    rounded = levels.half().to(levels)
    return rounded if torch.allclose(rounded, levels, rtol=2.0**-11, atol=0) else levels
