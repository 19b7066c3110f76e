"""Where candidate sets come from: a criterion guesses each weight's relevance, chance draws sets of the least relevant.

A criterion only *proposes*. What is zeroed is decided by measuring (``assess``), so a poor guess costs a candidate,
not the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from delib.refit import Moments, matrix_to_weight, removal_costs, weight_to_matrix
from delib.supports import admm as sparse_least_squares


@dataclass
class Site:
    """What a criterion may look at: one layer's weight [out, in, ...], its inputs [n, in, ...] on a fresh batch, and

    - ``alive``, a bool tensor in the weight's shape: which weights may survive (default: all);
    - ``survivors``, how many are to be left;
    - ``bias`` [out], if the layer has one;
    - ``moments`` of the layer over the calibration inputs and ``importance`` [out], how strongly the network's
      divergence reacts to an error of each output (default: all alike). Both are measured when first asked for.
    """

    weight: Tensor
    inputs: Tensor
    alive: Tensor | None = None
    survivors: int = 0
    bias: Tensor | None = None
    measure_moments: Callable[[], Moments] | None = None
    measure_importance: Callable[[], Tensor] | None = None

    @cached_property
    def moments(self) -> Moments:
        if self.measure_moments is None:
            raise ValueError("this criterion needs the layer's moments, and the site does not measure them")
        return self.measure_moments()

    @cached_property
    def importance(self) -> Tensor:
        return self.weight.new_ones(len(self.weight)) if self.measure_importance is None else self.measure_importance()

    def after(self, weight: Tensor, bias: Tensor | None, alive: Tensor) -> Site:
        """The same site once its weights have changed; its inputs, and so its moments, are what they were."""
        site = replace(self, weight=weight.clone(), bias=None if bias is None else bias.clone(), alive=alive)
        site.moments, site.importance = self.moments, self.importance
        return site

    def living(self) -> Tensor:
        """``alive``, a copy, all True by default."""
        return torch.ones_like(self.weight, dtype=torch.bool) if self.alive is None else self.alive.clone()

    def matrix(self) -> Tensor:
        """The weight as [out, k], with the bias as the last column: the shape that ``moments`` has."""
        return weight_to_matrix(self.weight, self.bias)

    def support(self, dead: Tensor | None = None) -> Tensor:
        """``alive``, less the weights at flat indices ``dead``, as [out, k]; a bias is always alive."""
        alive = self.living()
        if dead is not None:
            alive.view(-1)[dead] = False
        return weight_to_matrix(alive, None if self.bias is None else torch.ones_like(self.bias, dtype=torch.bool))


# The relevance of every weight, in the weight's shape: non-negative, larger means more worth keeping.
Criterion = Callable[[Site], Tensor]


def random(site: Site) -> Tensor:
    """All weights alike: blind evolution, the baseline that knows nothing."""
    return torch.ones_like(site.weight)


def magnitude(site: Site) -> Tensor:
    """|w|: small weights are guessed to matter little."""
    return site.weight.abs()


def activation(site: Site) -> Tensor:
    """|w| times the root mean square of the input that it multiplies (Wanda: Sun et al. 2023, eq. 1).

    The inputs' channel is dimension 1 of ``site.inputs``, or the last one where that does not fit the weight
    (a linear layer on sequences). Grouped convolutions share the mean over their groups' channels.
    """
    channels = site.weight.shape[1]
    inputs = site.inputs
    axis = 1 if inputs.shape[1] % channels == 0 and site.weight.dim() > 2 else inputs.dim() - 1
    others = [d for d in range(inputs.dim()) if d != axis]
    mean_square = inputs.float().square().mean(dim=others)
    rms = mean_square.view(-1, channels).mean(dim=0).sqrt()
    return site.weight.abs().mul_(rms.view(1, -1, *[1] * (site.weight.dim() - 2)))


def hessian(site: Site) -> Tensor:
    """√(w² H_jj): what zeroing a weight alone does to the divergence, to second order (LeCun, Denker and Solla 1989,
    section 2).

    The diagonal of the Hessian is taken as importance of the output times Σ x² of the input (its Gauss-Newton
    approximation with both factors independent: Martens and Grosse 2015, section 3), so that it needs no labels.
    """
    moments, importance = site.moments, site.importance
    energy = moments.gram.diagonal(dim1=1, dim2=2).repeat_interleave(len(importance) // moments.groups, dim=0)
    return _in_shape(energy * site.matrix().square() * importance[:, None], site)


def obs(site: Site) -> Tensor:
    """√(w² / [H⁻¹]_jj): as ``hessian``, after all other survivors have compensated (Hassibi and Stork 1993, eq. 5).

    A dead weight, if it may be revived, is worth what the fit would gain from it alone: (c - w G)_j² / G_jj.
    """
    moments, importance = site.moments, site.importance
    matrix = site.matrix()
    living = site.support() & (matrix != 0)
    if moments.bias:
        living[:, -1] = True
    energy = moments.gram.diagonal(dim1=1, dim2=2).repeat_interleave(len(importance) // moments.groups, dim=0)
    gains = (moments.cross - moments.apply(matrix.to(moments.gram.dtype))).square() / energy.clamp_min(1e-12)
    costs = torch.where(living, removal_costs(moments, living, matrix), gains)
    return _in_shape(costs * importance[:, None], site)


def admm(site: Site) -> Tensor:
    """How firmly sparse least squares with ``site.survivors`` weights holds on to each (ALPS: Meng et al. 2024, alg.
    1)."""
    _, strength = sparse_least_squares(site.moments, site.matrix(), site.survivors, site.importance, site.support())

    return _in_shape(strength.square(), site)


def _in_shape(costs: Tensor, site: Site) -> Tensor:
    return matrix_to_weight(costs.sqrt().to(site.weight.dtype), site.weight.shape)


CRITERIA: dict[str, Criterion] = {
    "random": random,
    "magnitude": magnitude,
    "activation": activation,
    "hessian": hessian,
    "obs": obs,
    "admm": admm,
}


def criterion_named(name: str) -> Criterion:
    """One of ``CRITERIA``. Raises ValueError with the choices if there is none of that name."""
    if name not in CRITERIA:
        raise ValueError(f"no criterion is called {name!r}; choose one of {', '.join(CRITERIA)}")
    return CRITERIA[name]


def draw(
    relevance: Tensor, alive: Tensor, size: int, population: int, temperature: float, generator: torch.Generator
) -> Tensor:
    """A population of candidate sets: flat indices into the weight, [population, size], each set without repeats.

    ``alive`` [same shape as ``relevance``, bool] says which weights are still survivors. A weight joins a set with
    odds proportional to relevance**(-1/temperature), drawn without replacement (Efraimidis and Spirakis 2006: the
    smallest of Exp(1)·relevance**(1/temperature) win; here in logarithms). Temperature 0 is the criterion alone:
    all sets are the ``size`` least relevant weights. Raises ValueError if fewer than ``size`` weights are alive.
    """
    return torch.stack(list(draws(relevance, alive, size, population, temperature, generator)))


def draws(
    relevance: Tensor, alive: Tensor, size: int, population: int, temperature: float, generator: torch.Generator
) -> Iterator[Tensor]:
    """The sets of ``draw`` one after the other, so that a population takes no more memory than one of its sets.

    Chance is the processor's wherever the weights are, so that the same seed draws alike on every device. Indices are
    int32 where that counts far enough: sets are the largest thing that a cycle holds beside the networks.
    """
    device, living = alive.device, alive.flatten().cpu()
    index = torch.int32 if living.numel() <= torch.iinfo(torch.int32).max else torch.int64
    relevance = relevance.flatten().cpu().masked_select(living).float().log_()
    if size > len(relevance):
        raise ValueError(f"cannot draw sets of {size} from {len(relevance)} survivors")
    if temperature > 0:
        relevance.div_(temperature)

    def scores() -> Tensor:
        chance = torch.empty_like(relevance).exponential_(generator=generator)
        return chance.log_().add_(relevance)

    for _ in range(population):
        least = _least(scores() if temperature > 0 else relevance, size)
        yield torch.zeros_like(living).masked_scatter_(living, least).nonzero().squeeze(1).to(device, index)


def _least(scores: Tensor, many: int) -> Tensor:
    """True for the ``many`` smallest of ``scores`` [n], of equal ones the first."""
    if not many:
        return torch.zeros_like(scores, dtype=torch.bool)
    limit = float(np.partition(scores.numpy(), many - 1)[many - 1])  # a fifth of topk's time and memory
    least = scores < limit
    least[(scores == limit).nonzero().squeeze(1)[: many - int(least.sum())]] = True
    return least


def propose(
    site: Site,
    criterion: Criterion | Sequence[Criterion],
    size: int,
    population: int,
    temperature: float,
    chance: torch.Generator,
    incumbent: bool = False,
) -> Iterator[Tensor]:
    """A population of candidate sets, each [size], drawn from one criterion or from several in equal parts.

    With ``incumbent`` the first set is what the first criterion alone would zero, for the others to beat.
    """
    criteria = [criterion] if callable(criterion) else list(criterion)
    alive = site.living()
    parts = [len(part) for part in torch.arange(population - incumbent).tensor_split(len(criteria[:population]))]
    for i, (critic, part) in enumerate(zip(criteria, parts, strict=False)):
        relevance = critic(site)
        if incumbent and i == 0:
            yield from draws(relevance, alive, size, 1, 0.0, chance)
        sets = draws(relevance, alive, size, part, temperature, chance)
        del relevance  # as large as the weight, and the draws keep what they need of it
        yield from sets


def agreed(chosen: Tensor, site: Site, critics: Sequence[Criterion], slack: float = 2.0) -> Tensor:
    """Nesting: the part of the chosen set [size] on which every further criterion agrees.

    A critic agrees to the death of a weight that is among its own ``slack`` · size least relevant survivors; 2 lets it
    differ in the order, not in the matter. If they agree on nothing, the set stands: the evolution must go on.
    """
    living = site.living().flatten().nonzero().squeeze(1)
    many = min(len(living), max(1, int(slack * len(chosen))))
    agree = torch.ones_like(chosen, dtype=torch.bool)
    for critic in critics:
        relevance = critic(site).flatten()[living]
        agree &= torch.isin(chosen, living[relevance.topk(many, largest=False).indices])
    return chosen[agree] if agree.any() else chosen
