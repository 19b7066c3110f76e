"""Where candidate sets come from: a criterion guesses each weight's relevance, chance draws sets of the least relevant.

A criterion only *proposes*. What is zeroed is decided by measuring (``assess``), so a poor guess costs a candidate,
not the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Site:
    """What a criterion may look at: one layer's weight [out, in, ...] and its inputs [n, in, ...] on a fresh batch."""

    weight: Tensor
    inputs: Tensor


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
    return site.weight.abs() * rms.view(1, -1, *[1] * (site.weight.dim() - 2))


CRITERIA: dict[str, Criterion] = {"random": random, "magnitude": magnitude, "activation": activation}


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
    survivors = alive.flatten().nonzero().squeeze(1)
    if size > len(survivors):
        raise ValueError(f"cannot draw sets of {size} from {len(survivors)} survivors")
    scores = relevance.flatten()[survivors].float().log().expand(population, -1)
    if temperature > 0:
        chance = torch.empty_like(scores, memory_format=torch.contiguous_format).exponential_(generator=generator)
        scores = scores / temperature + chance.log()
    return survivors[scores.topk(size, dim=1, largest=False, sorted=False).indices]
