"""Allocation: how sparse each layer should be when only the whole network's sparsity is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from delib.evolution.criteria import Criterion, obs
from delib.evolution.database import LEVELS, Allocation, SparsityDatabase, total
from delib.evolution.rates import RateDatabase
from delib.evolution.select import Batches, better_half, growing_batches
from delib.files import in_batch
from delib.nn.checkpoint import Checkpoint
from delib.nn.divergence import Divergence, fitting
from delib.nn.hooks import never_called
from delib.nn.layers import copied, original, weight_layers, weight_of
from delib.nn.solvers import bisect

Savings = Mapping[str, Sequence[int]]  # zeros, or bytes saved, of each layer, by level


@dataclass(frozen=True)
class Search:
    """How long an allocation is searched: ``offspring`` mutants in each of ``generations``, the first of them assessed
    on ``batch`` inputs."""

    generations: int = 40
    offspring: int = 8
    batch: int = 250

    def __post_init__(self) -> None:
        if self.generations < 0 or min(self.offspring, self.batch) < 1:
            raise ValueError(f"offspring and batch must be at least 1, generations at least 0, got {self}")


def allocate(
    teacher: nn.Module,
    inputs: Tensor,
    sparsity: float,
    *,
    fixed: Mapping[str, float] | None = None,
    search: Search = Search(),
    criterion: Criterion = obs,
    divergence: Divergence = fitting,
    seed: int = 0,
) -> dict[str, float]:
    """The sparsity of every weight layer, by name, such that their zeros add up to ``sparsity`` of all weights.

    Every layer is entered into a sparsity database alone (see ``SparsityDatabase.build``), then the entries' levels
    compete by the whole network's divergence (see ``search_allocation``).

    Parameters
    ----------
    teacher : nn.Module
        Left as it is.
    inputs : Tensor [n, ...]
        Calibration inputs.
    sparsity : float
        Of the whole network.
    fixed : mapping of layer name to sparsity, optional
        Layers that keep the sparsities given. Those that the teacher never calls stay dense.
    criterion : Criterion
        Whose least salient weights an entry lacks.
    search, divergence, seed
        As for ``search_allocation``.

    Raises
    ------
    ValueError
        If the layers that are free cannot hold the zeros.
    """
    teacher, fixed = original(teacher), dict(fixed or {})
    layers = weight_layers(teacher)
    fixed |= dict.fromkeys(never_called(teacher, [name for name in layers if name not in fixed], inputs[:1]), 0.0)
    free = [name for name in layers if name not in fixed]
    sizes = {name: weight_of(layer).numel() for name, layer in layers.items()}
    budget = round(sparsity * sum(sizes.values())) - sum(round(s * sizes[name]) for name, s in fixed.items())
    if not 0 <= budget <= LEVELS[-1] * sum(sizes[name] for name in free):
        raise ValueError(
            f"layers {', '.join(free)} cannot hold the {budget} zeros that a sparsity of {sparsity} leaves them"
        )
    database = SparsityDatabase.build(
        teacher, tqdm(free, unit="layer", disable=in_batch()), inputs, criterion, divergence
    )
    student = copied(teacher)
    options: dict[str, Any] = {"search": search, "divergence": divergence, "seed": seed}
    parents = search_allocation(student, teacher, database, budget, inputs, **options)
    zeros = _trimmed(parents[-1], database.savings(), budget)
    return fixed | {name: many / sizes[name] for name, many in zeros.items()}


@torch.no_grad()
def search_allocation(
    student: nn.Module,
    teacher: nn.Module,
    database: SparsityDatabase | RateDatabase,
    budget: int,
    inputs: Tensor,
    *,
    search: Search = Search(),
    divergence: Divergence = fitting,
    seed: int = 0,
) -> list[Allocation]:
    """Search the allocation of least divergence (EvoPress: Sieberling et al. 2024, section 3).

    It starts from small total cost (see ``greedy_allocation``). In each generation the parent's mutants by level
    switches (see ``level_switch``) compete on fresh, growing batches; the parent joins the last round and stays unless
    beaten.

    Parameters
    ----------
    student : nn.Module
        Left with the winner's entries; its layers outside the database stay as they are.
    budget : int
        What the layers of the database must save together, at least: zeros, or bytes.
    inputs : Tensor [n, ...]
        Calibration inputs.
    seed : int
        Of the mutations and the batches.

    Returns
    -------
    list of dict
        The start and every generation's parent, the winner last: the level of each layer. In a run of notebooks an
        interrupted search goes on after the generation that it was last saved with.
    """
    savings = database.savings()
    chance, parents = torch.Generator().manual_seed(seed), [greedy_allocation(savings, database.costs(), budget)]
    measure = partial(_divergences, student, database, divergence)
    saved = Checkpoint("allocate", student, teacher, database, budget, inputs, search, divergence, seed)
    if (state := saved.read()) is not None:
        parents = state["parents"]
        chance.set_state(state["chance"])
    for _ in tqdm(range(len(parents) - 1, search.generations), unit="generation", disable=in_batch()):
        children = [level_switch(parents[-1], savings, budget, chance) for _ in range(search.offspring)]
        batches = growing_batches(inputs, teacher, search.batch, chance)
        rivals = [child for child in children if child != parents[-1]]
        while len(rivals) > 2:
            rivals = better_half(rivals, measure(rivals, batches))
        rivals = [parents[-1], *rivals]
        measured = measure(rivals, batches)
        parents.append(rivals[measured.index(min(measured))])
        saved.offer(lambda: {"parents": parents, "chance": chance.get_state()})
    saved.finish(lambda: {"parents": parents, "chance": chance.get_state()})
    database.put(student, parents[-1])
    return parents


def _divergences(
    student: nn.Module,
    database: SparsityDatabase | RateDatabase,
    divergence: Divergence,
    allocations: Sequence[Allocation],
    batches: Batches,
) -> list[float]:
    """The divergence of the student with each allocation, on the next batch."""
    part, goal = next(batches)
    measured = []
    for allocation in allocations:
        database.put(student, allocation)
        measured.append(float(divergence(student(part), goal)))
    return measured


def greedy_allocation(savings: Savings, costs: Mapping[str, Sequence[float]], budget: int) -> Allocation:
    """An allocation that saves at least ``budget`` in all, at small total cost: the least cost per zero or byte first.

    ``savings`` and ``costs`` give both for each layer and level. A layer may rise several levels at once, so that a
    level that costs much does not hide a cheap one above it.
    """
    levels = dict.fromkeys(savings, 0)
    while total(savings, levels) < budget:
        jumps = [
            ((costs[name][to] - costs[name][now]) / (savings[name][to] - savings[name][now]), name, to)
            for name, now in levels.items()
            for to in range(now + 1, len(savings[name]))
            if savings[name][to] > savings[name][now]
        ]
        _, name, to = min(jumps)
        levels[name] = to
    return _lowered(levels, savings, budget, sorted(levels))


def goals_by_layer(student: nn.Module, database: SparsityDatabase, survivors: int) -> dict[str, int]:
    """How many of its weights each layer of a sparse student should keep when ``survivors`` in all are to be left.

    Least total cost (see ``greedy_allocation``) among the student as it is and the entries of the database that are
    sparser. Only layers with entries are named, and only their weights counted; the goals add up to ``survivors``, or
    to what is left now where that is less. Raises ValueError where even the sparsest entries leave more.
    """
    now: dict[str, int] = {}
    fewer: dict[str, list[int]] = {}
    costs: dict[str, list[float]] = {}
    for name, entries in database.items():
        weight = weight_of(student.get_submodule(name))
        now[name] = int(weight.count_nonzero())
        alive, cost = [weight.numel() - entry.zeros for entry in entries], [entry.cost for entry in entries]
        as_it_is = float(np.interp(now[name], alive[::-1], cost[::-1]))
        sparser = [level for level, many in enumerate(alive) if many < now[name]]
        fewer[name] = [0, *(now[name] - alive[level] for level in sparser)]
        costs[name] = [0.0, *(cost[level] - as_it_is for level in sparser)]
    budget = max(0, sum(now.values()) - survivors)
    if budget > (most := sum(own[-1] for own in fewer.values())):
        least = sum(now.values()) - most
        raise ValueError(
            f"the sparsest entries leave {least} survivors, not {survivors}; enter the layers sparser, too"
        )
    gone = _trimmed(greedy_allocation(fewer, costs, budget), fewer, budget)
    return {name: many - gone[name] for name, many in now.items()}


def level_switch(levels: Allocation, savings: Savings, budget: int, chance: torch.Generator) -> Allocation:
    """A mutant: one to three random layers rise a level, then all others, in random order, fall as far as they may."""
    mutant = dict(levels)
    names = sorted(mutant)
    order = [names[i] for i in torch.randperm(len(names), generator=chance).tolist()]
    many = int(torch.randint(1, 4, (), generator=chance))
    raised = [name for name in order if mutant[name] < len(savings[name]) - 1][: min(many, max(1, len(names) - 1))]
    for name in raised:
        mutant[name] += 1
    return _lowered(mutant, savings, budget, [name for name in order if name not in raised])


def _lowered(levels: Allocation, savings: Savings, budget: int, order: Sequence[str]) -> Allocation:
    """Layers, in the given order, fall one level after the other while ``budget`` is saved."""
    levels = dict(levels)
    excess = total(savings, levels) - budget
    for name in order:
        while levels[name] and (freed := savings[name][levels[name]] - savings[name][levels[name] - 1]) <= excess:
            levels[name] -= 1
            excess -= freed
    return levels


def _trimmed(levels: Allocation, zeros: Savings, budget: int) -> dict[str, int]:
    """The zeros of the levels, those of the layers that have most lowered a little so that they meet the budget."""
    counts = {name: zeros[name][level] for name, level in levels.items()}
    excess = sum(counts.values()) - budget
    for name in sorted(counts, key=counts.__getitem__, reverse=True):
        less = min(excess, counts[name])
        counts[name] -= less
        excess -= less
    return counts


def scale_sparsities(sizes: Mapping[str, int], sparsity: float, shape: Mapping[str, float]) -> dict[str, float]:
    """Layer sparsities that add up to ``sparsity`` of all weights: the survivors of ``shape`` times one common factor.

    ``sizes`` are the layers' numbers of weights; layers not in ``shape`` stay dense, and none gets denser than that.
    Where ``shape`` adds up to ``sparsity`` already, to half a percent, it is taken as it is.
    Raises ValueError if the layers in ``shape`` have fewer weights than are to be zero.
    """
    wanted = sparsity * sum(sizes.values())
    if wanted > sum(sizes[name] for name in shape):
        raise ValueError(f"a sparsity of {sparsity} needs more zeros than {', '.join(shape)} have weights")

    def at(factor: float) -> dict[str, float]:
        return {name: max(0.0, 1 - factor * (1 - share)) for name, share in shape.items()}

    def zeros(factor: float) -> float:
        return sum(share * sizes[name] for name, share in at(factor).items())

    if abs(zeros(1.0) - wanted) < 0.005 * sum(sizes.values()):
        return dict(shape)
    most = 1 / max(1e-9, 1 - max(shape.values()))
    return at(bisect(lambda factor: wanted - zeros(factor), 0.0, most))
