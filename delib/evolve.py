"""Directed evolution: propose candidate sets, assess them by tentative zeroing, zero the least divergent, recover."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from delib.assess import Divergence, Suffix, assess, kl
from delib.networks import weight_layers, weight_of
from delib.propose import Criterion, Site, draw, magnitude
from delib.recover import Recovery

State = dict[str, Tensor]


@dataclass
class Evolved:
    """A student, and how it came to be.

    ``generations`` maps each layer's name to the generation of death of its weights (int16 in the weight's shape;
    0 = survivor). ``history`` has a row for each cycle and layer: cycle, layer, divergence (of the chosen set),
    population_mean and population_spread (standard deviation) of the divergences, and sparsity (of the layer,
    afterwards). ``states`` holds the state dict at cycle 0 (the teacher's) and after each recovery.
    """

    student: nn.Module
    generations: dict[str, Tensor]
    states: dict[int, State]
    rows: list[dict[str, float | int | str]] = field(default_factory=list)
    cycle: int = 0

    @classmethod
    def start(cls, teacher: nn.Module) -> Evolved:
        """Cycle 0: the student is a copy of the teacher and every weight that is not already zero is alive."""
        student = copy.deepcopy(teacher).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        layers = weight_layers(student)
        generations = {n: torch.zeros_like(weight_of(m), dtype=torch.int16) for n, m in layers.items()}
        return cls(student, generations, {0: _snapshot(student)})

    @property
    def history(self) -> pd.DataFrame:
        columns = ["cycle", "layer", "divergence", "population_mean", "population_spread", "sparsity"]
        return pd.DataFrame(self.rows, columns=columns)

    @property
    def masks(self) -> dict[str, Tensor]:
        """True where a weight survives, by layer."""
        return {name: generation == 0 for name, generation in self.generations.items()}

    @property
    def sparsities(self) -> list[float]:
        """The overall sparsity after each cycle, beginning with cycle 0; over all layers that were evolved."""
        deaths = sum(torch.bincount(g.flatten().long(), minlength=self.cycle + 1) for g in self.generations.values())
        deaths = np.asarray(deaths)
        return list((np.cumsum(deaths) - deaths[0]) / deaths.sum())

    def cycle_at(self, sparsity: float) -> int:
        """The last cycle whose overall sparsity does not exceed ``sparsity``. Raises ValueError beyond the last."""
        reached = self.sparsities
        if not 0 <= sparsity <= reached[-1] + 1e-9:
            raise ValueError(f"sparsity {sparsity} was not passed through; this evolution went from 0 to {reached[-1]}")
        return int(np.searchsorted(reached, sparsity + 1e-9, side="right")) - 1

    def at(self, sparsity: float) -> nn.Module:
        """A copy of the student as it was at the last cycle with at most this overall sparsity."""
        return self.at_cycle(self.cycle_at(sparsity))

    def at_cycle(self, cycle: int) -> nn.Module:
        """A copy of the student as it was at the end of a cycle: its latest state, less what died since."""
        network = copy.deepcopy(self.student)
        network.load_state_dict(self.states[max(c for c in self.states if c <= cycle)])
        for name, generation in self.generations.items():
            weight_of(network.get_submodule(name))[(generation > 0) & (generation <= cycle)] = 0
        return network


def evolve(
    teacher: nn.Module,
    inputs: Tensor,
    targets: float | Mapping[str, float],
    *,
    population: int = 16,
    share: float = 0.05,
    criterion: Criterion = magnitude,
    temperature: float = 0.5,
    divergence: Divergence = kl,
    recovery: Recovery | None = None,
    batch: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Evolved:
    evolved = Evolved.start(teacher)
    teacher.eval()
    student = evolved.student
    layers = weight_layers(student)
    goals = zero_goals(student, targets)
    goals_ = goals
    while True:
        evolved.cycle += 1
        hungry = [n for n in goals if int((evolved.generations[n] > 0).sum()) < goals[n]]
        if not hungry:
            evolved.cycle -= 1
            break
        for name in hungry:
            generation = evolved.generations[name]
            g = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, evolved.cycle, list(goals).index(name)]).generate_state(1)[0]))
            alive = generation == 0
            n = int(alive.sum())
            size = min(max(1, math.ceil(share * n)), goals[name] - (generation.numel() - n))
            part = inputs[torch.randperm(len(inputs), generator=g)[:batch]]
            with torch.no_grad():
                goal = teacher(part)
            with Suffix(student, layers[name], part) as suffix:
                cand = draw(criterion(Site(weight_of(layers[name]), suffix.site_inputs)), alive, size, population, temperature, g)
                d = assess(suffix, cand, goal, divergence)
            best = int(d.argmin())
            weight_of(layers[name]).view(-1)[cand[best]] = 0
            generation.view(-1)[cand[best]] = evolved.cycle
            evolved.rows.append(dict(cycle=evolved.cycle, layer=name, divergence=float(d[best]), population_mean=float(d.mean()), population_spread=float(d.std()), sparsity=float((generation > 0).float().mean())))
        if recovery is not None:
            recovery(student, teacher, evolved.masks, seed + evolved.cycle)
            evolved.states[evolved.cycle] = _snapshot(student)
    return evolved


def zero_goals(student, targets):
    layers = weight_layers(student)
    wanted = targets if isinstance(targets, Mapping) else dict.fromkeys(layers, targets)
    return {n: round(t * weight_of(layers[n]).numel()) for n, t in wanted.items()}


def _snapshot(network: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
