"""Populations of candidate sets: a criterion guesses each weight's saliency, chance draws sets of the least salient.

A criterion only *proposes*. What is zeroed is decided by measuring (``assess``), so a poor guess costs a candidate,
not the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from delib.evolution.criteria import Criterion, Site


def draw(
    saliency: Tensor, alive: Tensor, size: int, population: int, temperature: float, chance: torch.Generator
) -> Tensor:
    """A population of candidate sets, stacked; see ``draws``."""
    return torch.stack(list(draws(saliency, alive, size, population, temperature, chance)))


def draws(
    saliency: Tensor, alive: Tensor, size: int, population: int, temperature: float, chance: torch.Generator
) -> Iterator[Tensor]:
    """A population of candidate sets, one after the other, so that it takes no more memory than one of its sets.

    A weight joins a set with odds proportional to saliency**(-1/temperature), drawn without replacement (Efraimidis
    and Spirakis 2006: the smallest of Exp(1)·saliency**(1/temperature) win; here in logarithms). Chance is the
    processor's wherever the weights are, so that the same seed draws alike on every device. Indices are int32 where
    that counts far enough: sets are the largest thing that a cycle holds beside the networks.

    Parameters
    ----------
    saliency, alive : Tensor
        In the weight's shape; ``alive`` says which weights are still survivors.
    size, population : int
        Weights in a set, and number of sets.
    temperature : float
        0 is the criterion alone: all sets are the ``size`` least salient survivors.
    chance : torch.Generator

    Yields
    ------
    Tensor [size]
        Flat indices into the weight, in rising order.

    Raises
    ------
    ValueError
        If fewer than ``size`` weights are alive.
    """
    device, living = alive.device, alive.flatten().cpu()
    index = torch.int32 if living.numel() <= torch.iinfo(torch.int32).max else torch.int64
    saliency = saliency.flatten().cpu().masked_select(living).float().log_()
    if size > len(saliency):
        raise ValueError(f"cannot draw sets of {size} from {len(saliency)} survivors")
    if temperature > 0:
        saliency.div_(temperature)

    def scores() -> Tensor:
        drawn = torch.empty_like(saliency).exponential_(generator=chance)
        return drawn.log_().add_(saliency)

    for _ in range(population):
        least = _least(scores() if temperature > 0 else saliency, size)
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
    """A population of candidate sets, drawn by one criterion or by several in equal parts; see ``draws``.

    With ``incumbent`` the first set is what the first criterion alone would zero, for the others to beat.
    """
    criteria = [criterion] if callable(criterion) else list(criterion)
    alive = site.living()
    parts = [len(part) for part in torch.arange(population - incumbent).tensor_split(len(criteria[:population]))]
    for i, (propose_by, part) in enumerate(zip(criteria, parts, strict=False)):
        saliency = propose_by(site)
        if incumbent and i == 0:
            yield from draws(saliency, alive, size, 1, 0.0, chance)
        sets = draws(saliency, alive, size, part, temperature, chance)
        del saliency  # as large as the weight, and the draws keep what they need of it
        yield from sets


def agreed(chosen: Tensor, site: Site, critics: Sequence[Criterion], slack: float = 2.0) -> Tensor:
    """Nesting: the part of the chosen set [size] on which every further criterion agrees.

    A critic agrees to the death of a weight that is among its own ``slack`` · size least salient survivors; 2 tolerates
    another order among them. If the critics agree on nothing the whole set stands: every cycle zeroes something.
    """
    living = site.living().flatten().nonzero().squeeze(1)
    many = min(len(living), max(1, int(slack * len(chosen))))
    agree = torch.ones_like(chosen, dtype=torch.bool)
    for critic in critics:
        saliency = critic(site).flatten()[living]
        agree &= torch.isin(chosen, living[saliency.topk(many, largest=False).indices])
    return chosen[agree] if agree.any() else chosen
