"""Directed evolution: propose candidate sets, assess them by tentative zeroing, zero the least divergent, recover."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from delib.evolution.assess import Suffix
from delib.evolution.criteria import Criterion, Site, magnitude
from delib.evolution.population import agreed, propose
from delib.evolution.select import compensated, growing, revive, uncompensated
from delib.files import in_batch
from delib.layerwise.reconstruct import moments, refit
from delib.nn.divergence import Divergence, kl
from delib.nn.hooks import end, up_to
from delib.nn.layers import bias_of, put_matrix, weight_key, weight_layers, weight_of
from delib.nn.sensitivity import importance


class Recovery(Protocol):
    """Anything that improves ``student`` in place without reviving a weight outside ``masks`` (True = survivor)."""

    def __call__(self, student: nn.Module, teacher: nn.Module, masks: Mapping[str, Tensor], seed: int) -> None: ...


State = dict[str, Tensor]


@dataclass
class Evolved:
    """A student, and how it came to be.

    ``generations`` maps each evolved layer's name to the generation of death of its weights (in the weight's shape;
    0 = survivor), as uint8, from cycle 256 on as int16. ``rows`` has an entry for each cycle and layer (see
    ``history``). ``states`` holds what the network was at cycle 0 (the teacher) and after each recovery: its state
    dict, the weights of evolved layers reduced to their survivors, and where those are (packed bits); at cycle 0 these
    are the teacher's own tensors, not copies. ``passed`` is the overall sparsity after each cycle, and ``cycle`` the
    last one.
    """

    student: nn.Module
    generations: dict[str, Tensor]
    states: dict[int, State] = field(default_factory=dict)
    rows: list[dict[str, float | int | str]] = field(default_factory=list)
    passed: list[float] = field(default_factory=lambda: [0.0])
    cycle: int = 0

    @classmethod
    def start(cls, teacher: nn.Module, layers: Iterable[str]) -> Evolved:
        """Cycle 0: the student is a copy of the teacher and every weight of the named layers is a survivor."""
        student = copy.deepcopy(teacher).eval()
        weights = {name: weight_of(student.get_submodule(name)) for name in layers}
        evolved = cls(student, {name: torch.zeros_like(w, dtype=torch.uint8) for name, w in weights.items()})
        evolved.states[0] = teacher.state_dict()
        return evolved

    @property
    def history(self) -> pd.DataFrame:
        """A row for each cycle and layer: cycle, layer, divergence (of the chosen set), population_mean and
        population_spread (standard deviation) of the divergences, and the layer's sparsity afterwards."""
        return pd.DataFrame(self.rows, columns=HISTORY)

    @property
    def masks(self) -> dict[str, Tensor]:
        """True where a weight survives, by layer."""
        return {name: generation == 0 for name, generation in self.generations.items()}

    @property
    def sparsities(self) -> list[float]:
        """The overall sparsity after each cycle, beginning with cycle 0; over all layers that were evolved."""
        return list(self.passed)

    def cycle_at(self, sparsity: float) -> int:
        """The last cycle whose overall sparsity does not exceed ``sparsity``. Raises ValueError beyond the last."""
        reached = self.sparsities
        if not 0 <= sparsity <= reached[-1] + 1e-9:
            raise ValueError(
                f"sparsity {sparsity} was not passed through; this evolution went from 0 to {reached[-1]:.4f}"
            )
        return int(np.searchsorted(reached, sparsity + 1e-9, side="right")) - 1

    def at(self, sparsity: float) -> nn.Module:
        """A copy of the student as it was at the last cycle with at most this overall sparsity."""
        return self.at_cycle(self.cycle_at(sparsity))

    def at_cycle(self, cycle: int) -> nn.Module:
        """A copy of the student as it was at the end of a cycle: its latest recovered state, less what died since."""
        network = copy.deepcopy(self.student)
        recovered = max(c for c in self.states if c <= cycle)
        state = {key: tensor for key, tensor in self.states[recovered].items() if not key.endswith(ALIVE)}
        for name, generation in self.generations.items():
            key = weight_key(name)
            state[key] = _whole(self.states[recovered], key, generation)
            state[key][(generation > recovered) & (generation <= cycle)] = 0
        network.load_state_dict(state)
        return network

    def zeros(self, layer: str) -> int:
        """Number of weights of a layer that were zeroed."""
        return int((self.generations[layer] > 0).sum())

    def survivors(self, layer: str) -> int:
        """Number of weights of a layer that are alive."""
        return self.generations[layer].numel() - self.zeros(layer)

    def begin_cycle(self) -> None:
        """Count one cycle more."""
        self.cycle += 1
        if self.cycle > torch.iinfo(torch.uint8).max:
            self.generations = {name: generation.to(torch.int16) for name, generation in self.generations.items()}

    def zero(self, layer: str, chosen: Tensor, divergences: Tensor) -> None:
        """Zero the chosen candidate set (flat indices) for good; its divergence is the least of its population's."""
        weight_of(self.student.get_submodule(layer)).view(-1)[chosen] = 0
        self.generations[layer].view(-1)[chosen] = self.cycle
        mean, spread = float(divergences.mean()), float(divergences.std(correction=0))
        sparsity = self.zeros(layer) / self.generations[layer].numel()
        row = (self.cycle, layer, float(divergences.min()), mean, spread, sparsity)
        self.rows.append(dict(zip(HISTORY, row, strict=True)))

    def remember(self) -> None:
        """Keep the student's present state under the present cycle."""
        state = self.student.state_dict()
        masks = {weight_key(name): mask for name, mask in self.masks.items()}
        self.states[self.cycle] = {k: t[masks[k]] if k in masks else t.clone() for k, t in state.items()}
        for key, mask in masks.items():
            self.states[self.cycle][key + ALIVE] = torch.from_numpy(np.packbits(mask.cpu().numpy()))

    def exchange(self, layer: str, born: Tensor, dying: Tensor) -> None:
        """Let dead weights live again in the place of survivors (flat indices of both)."""
        self.generations[layer].view(-1)[born] = 0
        self.generations[layer].view(-1)[dying] = self.cycle

    def end_cycle(self, changed: bool) -> None:
        """Note the sparsity that the cycle reached, and the student's state if its survivors have ``changed``."""
        total = sum(generation.numel() for generation in self.generations.values())
        self.passed.append(sum(map(self.zeros, self.generations)) / total)
        if changed:
            self.remember()


ALIVE = " alive"  # behind a weight's key: the key of its packed mask in a state
HISTORY = ["cycle", "layer", "divergence", "population_mean", "population_spread", "sparsity"]


def _whole(state: State, key: str, like: Tensor) -> Tensor:
    """A copy of a weight in a state, in the shape of ``like``; zero where it was not alive then."""
    if key + ALIVE not in state:
        return state[key].clone()
    bits = np.unpackbits(state[key + ALIVE].numpy(), count=like.numel()).astype(bool)
    weight = torch.zeros(like.shape, dtype=state[key].dtype, device=like.device)
    weight[torch.from_numpy(bits).view(like.shape).to(like.device)] = state[key]
    return weight


def evolve(
    teacher: nn.Module,
    inputs: Tensor,
    targets: float | Mapping[str, float],
    *,
    population: int = 16,
    share: float = 0.05,
    criterion: Criterion | Sequence[Criterion] = magnitude,
    temperature: float = 0.5,
    critics: Sequence[Criterion] = (),
    compensate: bool = False,
    revival: float = 0.0,
    divergence: Divergence = kl,
    horizon: int | None = None,
    recovery: Recovery | None = None,
    batch: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Evolved:
    """Evolve a student of ``teacher`` to the sparsity goal of each layer, its divergence kept as small as it can be.

    A cycle goes once through the layers that have not met their goal. In each, ``population`` candidate sets are drawn
    by ``criterion`` (sharpened as ``temperature`` falls), each is tentatively zeroed, and the set with the smallest
    ``divergence`` between student and teacher on a fresh batch is zeroed for good, or the part of it on which all
    ``critics`` agree. A set is ``share`` of the layer's survivors, so that steps get finer as weights get scarcer; the
    last set is cut to meet the goal to the weight. After the cycle, ``recovery`` (none by default) may refit or retrain
    the survivors. With ``compensate`` every candidate's survivors are refitted before it is assessed, and those of the
    zeroed set for good (see ``contest.compensated``); after that up to ``revival`` times the set's size of dead weights
    may live again for as many survivors, where this lowers the divergence (see ``contest.revive``).

    The divergence is that of the networks' outputs, or with a ``horizon`` that of the outputs of the weight layer so
    many places behind the one at work (0: its own). That is faster, blind to what comes later, and no place for a
    divergence of logits such as ``kl``: take ``mse``.

    ``inputs`` [n, ...] are calibration inputs; no labels are used. ``targets`` is one sparsity for all weight layers or
    a mapping from layer name to sparsity, where layers not named stay dense. ``batch`` inputs are drawn anew for each
    layer and cycle, for a set that wins on one fixed batch need not win elsewhere. The same ``seed`` on the same device
    gives the same student. Defaults: 16 sets of 5% take LeNet-300-100 to 95% in seconds.

    Raises ValueError on an unknown layer, a sparsity outside 0..1, or a share outside 0..1.
    """
    goals = zero_goals(teacher, targets)
    if not 0 < share <= 1:
        raise ValueError(f"share must lie above 0 and up to 1, got {share}")
    teacher.eval()
    contest = compensated if compensate else uncompensated
    evolved = Evolved.start(teacher, goals)
    student = evolved.student
    ends = {name: end(teacher, teacher.get_submodule(name), inputs[:1], horizon) for name in goals}
    with tqdm(total=sum(goals.values()), unit="weight", disable=not progress or in_batch()) as bar:
        while unmet := {name: goal - evolved.zeros(name) for name, goal in goals.items() if evolved.zeros(name) < goal}:
            evolved.begin_cycle()
            model = copy.deepcopy(student) if recovery else teacher  # whose layers' answers are to be kept
            for name, missing in unmet.items():
                chance = _chance(seed, evolved.cycle, name)
                size = min(math.ceil(share * evolved.survivors(name)), missing)
                rounds = growing(inputs, up_to(teacher, ends[name]), batch, chance)
                part, goal = next(rounds)
                with Suffix(up_to(student, ends[name]), student.get_submodule(name), part) as suffix:
                    site = _site(evolved, name, size, suffix, (model, ends[name]), inputs, divergence)
                    sets = propose(site, criterion, size, population, temperature, chance, incumbent=compensate)
                    best, divergences = contest(site, sets, suffix, goal, rounds, divergence)
                chosen = agreed(best, site, critics)
                evolved.zero(name, chosen, divergences)
                if compensate:
                    put_matrix(suffix.layer, refit(site.moments, site.support(chosen), site.matrix()))
                if compensate and revival:
                    after = site.after(weight_of(suffix.layer), bias_of(suffix.layer), evolved.generations[name] == 0)
                    if swap := revive(after, round(revival * size), suffix, rounds, divergence):
                        evolved.exchange(name, *swap)
                bar.update(len(chosen))
                del site, sets, best, chosen  # as large as the layer, and the next one needs the room
            if recovery is not None:
                recovery(student, teacher, evolved.masks, seed + evolved.cycle)
            evolved.end_cycle(changed=recovery is not None or compensate)
    return evolved


def _site(
    evolved: Evolved,
    name: str,
    size: int,
    suffix: Suffix,
    reference: tuple[nn.Module, str],
    inputs: Tensor,
    divergence: Divergence,
) -> Site:
    """What there is to know of a layer before a cycle; the costly parts are measured if a criterion asks for them."""
    layer, (model, until) = suffix.layer, reference
    return Site(
        weight_of(layer),
        suffix.site_inputs,
        evolved.generations[name] == 0,
        evolved.survivors(name) - size,
        bias_of(layer),
        lambda: moments(evolved.student, model, name, inputs),
        lambda: importance(up_to(model, until), model.get_submodule(name), suffix.inputs, divergence),
    )


def zero_goals(network: nn.Module, targets: float | Mapping[str, float]) -> dict[str, int]:
    """How many weights of each layer are to be zero: sparsity times weights, rounded to the nearest whole number.

    Raises ValueError, naming the layer, on one that the network lacks or a sparsity outside 0..1.
    """
    layers = weight_layers(network)
    wanted = dict(targets) if isinstance(targets, Mapping) else dict.fromkeys(layers, targets)
    for name, target in wanted.items():
        if name not in layers:
            raise ValueError(f"the network has no weight layer {name!r}; it has {', '.join(layers)}")
        if not 0 <= target <= 1:
            raise ValueError(f"the sparsity of layer {name!r} must lie in 0..1, got {target}")
    return {name: round(target * weight_of(layers[name]).numel()) for name, target in wanted.items()}


def _chance(seed: int, cycle: int, layer: str) -> torch.Generator:
    """A stream of chance of its own for each cycle and layer, so that adding a layer leaves the others' alone."""
    entropy = np.random.SeedSequence([seed, cycle, *layer.encode()])
    return torch.Generator().manual_seed(int(entropy.generate_state(1)[0]))
