"""Where candidate sets come from: a criterion guesses each weight's relevance, chance draws sets of the least relevant.

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
