"""Gradual pruning: during a distillation survivors grow fewer, in cycles of evolution.

Every few steps criteria *propose* survivors to zero, each a candidate set drawn from the whole network; *assess* zeroes
each set tentatively and measures the divergence from the teacher on fresh inputs; *select* zeroes the set of least
divergence, and training goes on. The layers' sparsities result, or each layer has a goal of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from delib.distillation.optimizer import MaskedAdam

# Survivors' values, in units of their outputs' weights, and their mean squared gradients, both [n] -> saliencies [n].
# Unlike ``evolution.Criterion``, which ranks one layer's weights by that layer's inputs, it must rank the weights of
# all layers together, and it reads the gradients that the optimizer gathers; a ``Site`` has none of these.
GlobalCriterion = Callable[[Tensor, Tensor], Tensor]


def saliency(exponent: float) -> GlobalCriterion:
    """value² · gradient²^exponent: 0 is magnitude, 1 the loss's expected change with the squared gradients as its
    curvature (optimal brain damage: LeCun, Denker and Solla 1989, eq. 5). Mean squared gradients of few inputs are
    noisy, and their logarithms less so, hence the exponents between."""
    return lambda value, gradient: value.square() * gradient.pow(exponent)


# On YOLOv3-tiny 0.5 caused less divergence than both ends in each of 108 cycles, 0.35 less than 0.2 and 0.5 in 9 of 10.
BETWEEN = (0.2, 0.3, 0.4, 0.5)
CRITERIA = {"magnitude": saliency(0)} | {f"exponent {e}": saliency(e) for e in BETWEEN} | {"curvature": saliency(1)}


@dataclass(frozen=True)
class PruningCycle:
    """One cycle before the step of that number: ``survivors`` left by it, the criterion whose set was ``chosen``, and
    the divergence that each criterion's set caused."""

    step: int
    survivors: int
    chosen: str
    divergences: dict[str, float]


@dataclass
class GradualPruning:
    """For ``distill(during=...)``: prunes the layers that are trained until ``survivors`` weights are left in them.

    Every ``every`` steps their number falls, by the same factor each time, to reach ``survivors`` when the share
    ``until`` of all steps is made; the rest of the steps recovers. With one number all weights compete, in which the
    noise of the gradients can cost a deep layer too many; where ``survivors`` are given by layer, weights compete with
    those of their layer alone, and other layers lose nothing. Weights that are zero at the start may compete as well
    where masks in ``regrowth`` (by layer, bool in the weight's shape) are True. Layers in ``fixed`` lose nothing; their
    weights count among the survivors. ``cycles`` records what happened.

    Raises ValueError, when it is used, on a layer in ``survivors`` that is not trained.
    """

    survivors: int | Mapping[str, int]
    until: float = 0.75
    every: int = 50
    regrowth: Mapping[str, Tensor] = field(default_factory=dict)
    fixed: Collection[str] = ()
    criteria: Mapping[str, GlobalCriterion] = field(default_factory=lambda: CRITERIA)
    cycles: list[PruningCycle] = field(default_factory=list, init=False)
    start: dict[str, int] = field(default_factory=dict, init=False)  # survivors by layer before the first cycle

    def due(self, step: int, done: float, now: Mapping[str, int]) -> bool:
        """Whether a cycle precedes the step of that number, counted from 0, with survivors ``now``, by layer."""
        more = any(sum(now[name] for name in names) > goal for names, goal in self._goals(now))
        return step > 0 and more and (step % self.every == 0 or done >= self.until)

    @torch.no_grad()
    def cycle(self, weights: MaskedAdam, step: int, done: float, compare: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Propose, assess, select, zero; ``compare`` measures the network's divergence (and feature error), ``done``
        (0..1) is the share of all steps that is made."""
        self.start = self.start or weights.survivors
        candidates, divergences = self._propose(weights, min(1.0, done / self.until)), {}
        for name, candidate in candidates.items():
            weights.prune(candidate, tentatively=True)
            divergences[name] = float(compare()[0])
            weights.write(weights.values)
        chosen = min(divergences, key=divergences.__getitem__)
        weights.prune(candidates[chosen])
        self.cycles.append(PruningCycle(step, sum(weights.survivors.values()), chosen, divergences))

    def _goals(self, layers: Collection[str]) -> list[tuple[list[str], int]]:
        """Layers whose weights compete with one another, and how many of these are to survive in the end."""
        if not isinstance(self.survivors, Mapping):
            return [(list(layers), self.survivors)]
        if unknown := sorted(set(self.survivors) - set(layers)):
            raise ValueError(f"no layer {unknown[0]!r} is trained; survivors may be given for {', '.join(layers)}")
        return [([name], goal) for name, goal in self.survivors.items() if name not in self.fixed]

    def _propose(self, weights: MaskedAdam, fallen: float) -> dict[str, dict[str, Tensor]]:
        """Each criterion's candidate set: the survivors of largest saliency, True among a layer's; ``fallen`` (0..1) is
        how far their number has come on its way."""
        layers, candidates = weights.saliency_inputs(), {}
        for name, criterion in self.criteria.items():
            parts = {layer: criterion(value, gradient) for layer, (value, gradient) in layers.items()}
            parts |= {layer: torch.full_like(parts[layer], torch.inf) for layer in self.fixed if layer in parts}
            candidates[name] = self._strongest(parts, fallen)
        return candidates

    def _strongest(self, saliencies: Mapping[str, Tensor], fallen: float) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for names, goal in self._goals(saliencies):
            own = torch.cat([saliencies[name] for name in names])
            before = max(1, sum(self.start[name] for name in names))
            kept = torch.zeros_like(own, dtype=torch.bool)
            kept[own.topk(min(len(own), round(before * (goal / before) ** fallen))).indices] = True
            found |= dict(zip(names, kept.split([len(saliencies[name]) for name in names]), strict=True))
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"start": self.start, "cycles": [asdict(cycle) for cycle in self.cycles]}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state``."""
        self.start, self.cycles = state["start"], [PruningCycle(**cycle) for cycle in state["cycles"]]
