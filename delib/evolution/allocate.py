"""How sparse each layer should be when only the whole network's sparsity is given: layers trade zeros with each
other."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from delib.evolution.criteria import Criterion, Site, obs
from delib.evolution.population import draw
from delib.evolution.select import Rounds, growing
from delib.files import in_batch
from delib.layerwise.reconstruct import RIDGE, STEPS, Moments, moments, refit
from delib.nn.divergence import Divergence, kl
from delib.nn.layers import bias_of, matrix_of, put_matrix, weight_layers, weight_of
from delib.nn.sensitivity import importance

LEVELS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
Levels = dict[str, int]  # the index into ``LEVELS`` that each layer has at present


@dataclass(frozen=True)
class Version:
    """One layer at one level: its survivors' values (bias last), where they are, and what it is guessed to cost.

    ``cost`` is half the importance-weighted mean squared error of the layer's outputs: the divergence to second order.
    """

    support: Tensor
    values: Tensor
    cost: float

    @property
    def zeros(self) -> int:
        return int((~self.support).sum())

    def matrix(self) -> Tensor:
        matrix = torch.zeros(self.support.shape, dtype=self.values.dtype, device=self.values.device)
        matrix[self.support] = self.values
        return matrix


def allocate(
    teacher: nn.Module,
    inputs: Tensor,
    sparsity: float,
    *,
    fixed: Mapping[str, float] | None = None,
    criterion: Criterion = obs,
    divergence: Divergence = kl,
    generations: int = 40,
    offspring: int = 8,
    batch: int = 250,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """Sparsity targets of all weight layers whose zeros add up to ``sparsity`` of the weights; layers ``fixed`` keep
    theirs.

    Every layer is sparsified alone to each of ``LEVELS`` and refitted. The start is the allocation of least total cost
    by the layers' own errors. Then, for ``generations``, ``offspring`` mutants make one to three exchanges each, a
    layer going one level up and others down as far as the budget allows; they compete by the network's divergence on
    fresh, growing batches, and the parent joins the last round and stays unless beaten (EvoPress: Sieberling et al.
    2024, section 3). ``inputs`` are calibration inputs. Raises ValueError if the budget cannot be met.
    """
    layers = weight_layers(teacher)
    free = [name for name in layers if name not in (fixed or {})]
    sizes = {name: weight_of(layers[name]).numel() for name in layers}
    budget = round(sparsity * sum(sizes.values())) - sum(round(s * sizes[n]) for n, s in (fixed or {}).items())
    if not 0 <= budget <= LEVELS[-1] * sum(sizes[name] for name in free):
        raise ValueError(
            f"layers {', '.join(free)} cannot hold the {budget} zeros that a sparsity of {sparsity} leaves them"
        )
    versions = {
        name: layer_versions(teacher, name, inputs, criterion, divergence)
        for name in tqdm(free, unit="layer", disable=not progress or in_batch())
    }
    zeros = {name: [round(level * sizes[name]) for level in LEVELS] for name in free}
    start = cheapest(zeros, {name: [v.cost for v in versions[name]] for name in free}, budget)
    parents = trade(
        copy.deepcopy(teacher).eval(),
        teacher,
        versions,
        start,
        budget,
        inputs,
        divergence=divergence,
        generations=generations,
        offspring=offspring,
        batch=batch,
        seed=seed,
        progress=progress,
    )
    return dict(fixed or {}) | _trimmed(parents[-1], zeros, sizes, budget)


@torch.no_grad()
def trade(
    student: nn.Module,
    teacher: nn.Module,
    versions: Mapping[str, Sequence[Version]],
    start: Levels,
    budget: int,
    inputs: Tensor,
    *,
    divergence: Divergence,
    generations: int = 40,
    offspring: int = 8,
    batch: int = 250,
    seed: int = 0,
    progress: bool = True,
) -> list[Levels]:
    """Exchanges of zeros between layers compete by the network's divergence; the student is left with the winner.

    ``versions`` of each layer rise in sparsity, ``start`` says which one each has at first, ``budget`` how many zeros
    they must have together; the student's other layers stay as they are. See ``allocate`` for the contest. Returns the
    start and every generation's parent, the winner last.
    """
    zeros = {name: [version.zeros for version in several] for name, several in versions.items()}
    chance, parents = torch.Generator().manual_seed(seed), [dict(start)]
    for _ in tqdm(range(generations), unit="generation", disable=not progress or in_batch()):
        children = [exchanged(parents[-1], zeros, budget, chance) for _ in range(offspring)]
        rounds = growing(inputs, teacher, batch, chance)
        parents.append(_fittest(student, versions, parents[-1], children, rounds, divergence))
    put_levels(student, versions, parents[-1])
    return parents


@torch.no_grad()
def put_levels(student: nn.Module, versions: Mapping[str, Sequence[Version]], levels: Levels) -> None:
    """Give each layer its version at the level named, in place."""
    for name, level in levels.items():
        put_matrix(student.get_submodule(name), versions[name][level].matrix())


@torch.no_grad()
def layer_versions(
    teacher: nn.Module, name: str, inputs: Tensor, criterion: Criterion, divergence: Divergence
) -> list[Version]:
    """A layer at every one of ``LEVELS``: the criterion's least relevant weights zeroed, the survivors refitted."""
    layer = teacher.get_submodule(name)
    sums = moments(teacher, teacher, name, inputs)
    weights = importance(teacher, layer, inputs[:1000], divergence).to(sums.gram.dtype)
    versions = []
    for level in LEVELS:
        size = round(level * weight_of(layer).numel())
        site = Site(weight_of(layer), inputs[:1], None, weight_of(layer).numel() - size, bias_of(layer))
        site.moments, site.importance = sums, weights
        dead = draw(criterion(site), site.living(), size, 1, 0.0, torch.Generator())[0]
        support = site.support(dead)
        matrix = refit(sums, support, matrix_of(layer)) if size else matrix_of(layer)
        error = (sums.error(matrix) * weights).sum().clamp_min(0) if size else torch.zeros(())
        versions.append(Version(support, matrix[support], float(error) / (2 * sums.count)))
    return versions


def cheapest(zeros: Mapping[str, Sequence[int]], costs: Mapping[str, Sequence[float]], budget: int) -> Levels:
    """Levels with at least ``budget`` zeros in all at a small total cost: the best price per zero first, greedily.

    ``zeros`` and ``costs`` give both for each layer and level. A layer may jump several levels at once, so that a dear
    step does not hide a cheap one behind it.
    """
    levels = dict.fromkeys(zeros, 0)
    while sum(zeros[name][level] for name, level in levels.items()) < budget:
        jumps = [
            ((costs[name][to] - costs[name][now]) / (zeros[name][to] - zeros[name][now]), name, to)
            for name, now in levels.items()
            for to in range(now + 1, len(zeros[name]))
            if zeros[name][to] > zeros[name][now]
        ]
        _, name, to = min(jumps)
        levels[name] = to
    return relaxed(levels, zeros, budget, sorted(levels))


def exchanged(levels: Levels, zeros: Mapping[str, Sequence[int]], budget: int, chance: torch.Generator) -> Levels:
    """A mutant: one to three random layers go a level up, then all others, in random order, down as far as they may."""
    mutant = dict(levels)
    names = sorted(mutant)
    order = [names[i] for i in torch.randperm(len(names), generator=chance).tolist()]
    many = int(torch.randint(1, 4, (), generator=chance))
    raised = [name for name in order if mutant[name] < len(zeros[name]) - 1][: min(many, max(1, len(names) - 1))]
    for name in raised:
        mutant[name] += 1
    return relaxed(mutant, zeros, budget, [name for name in order if name not in raised])


def relaxed(levels: Levels, zeros: Mapping[str, Sequence[int]], budget: int, order: Sequence[str]) -> Levels:
    """Layers, in the given order, go down one level after the other while ``budget`` zeros remain."""
    levels = dict(levels)
    excess = sum(zeros[name][level] for name, level in levels.items()) - budget
    for name in order:
        while levels[name] and (freed := zeros[name][levels[name]] - zeros[name][levels[name] - 1]) <= excess:
            levels[name] -= 1
            excess -= freed
    return levels


@torch.no_grad()
def _fittest(
    student: nn.Module,
    versions: Mapping[str, Sequence[Version]],
    parent: Levels,
    children: list[Levels],
    rounds: Rounds,
    divergence: Divergence,
) -> Levels:
    """Successive halving of the children; the parent joins the last two and wins a tie."""
    rivals = [child for child in children if child != parent]
    while len(rivals) > 1 or parent not in rivals:
        if len(rivals) <= 2 and parent not in rivals:
            rivals = [parent, *rivals]
        part, goal = next(rounds)
        measured = []
        for levels in rivals:
            put_levels(student, versions, levels)
            measured.append(float(divergence(student(part), goal)))
        order = sorted(range(len(rivals)), key=measured.__getitem__)
        survivors = sorted(order[: max(1, len(rivals) // 2)])
        if parent in rivals:
            return rivals[order[0]]
        rivals = [rivals[i] for i in survivors]
    return parent


def _trimmed(
    levels: Levels, zeros: Mapping[str, Sequence[int]], sizes: Mapping[str, int], budget: int
) -> dict[str, float]:
    """The levels as sparsities, the largest layers lowered a little so that the zeros meet the budget to the weight."""
    counts = {name: zeros[name][level] for name, level in levels.items()}
    excess = sum(counts.values()) - budget
    for name in sorted(counts, key=counts.__getitem__, reverse=True):
        less = min(excess, counts[name])
        counts[name] -= less
        excess -= less
    return {name: count / sizes[name] for name, count in counts.items()}


# Layer sparsities known to be good. YOLOv3-tiny's: what an earlier search, by least sum of relative layer errors, found
# for 90%; its first three layers are 0.3% of its weights and stay dense. The ResNet's: what ``allocate.allocate`` found
# for 92.5% on FashionMNIST in 20 generations.
SHAPES: dict[str, dict[str, float]] = {
    "yolov3-tiny": {
        "c6": 0.50, "c8": 0.75, "c10": 0.885, "c12": 0.96, "c13": 0.64, "c14": 0.885, "c15": 0.69, "c18": 0.22,
        "c21": 0.89, "c22": 0.60,
    },
    "resnet": {
        "conv": 0.2, "block1.conv1": 0.8, "block1.conv2": 0.7, "block2.conv1": 0.9, "block2.conv2": 0.9,
        "block2.skip.conv": 0.2, "block3.conv1": 0.95, "block3.conv2": 0.97, "block3.skip.conv": 0.7, "fc": 0.7,
    },
}  # fmt: skip
FACTORS = (1.56, 1.25, 1.0, 0.8, 0.64)  # of the survivors: exchanges of about a quarter of a layer


class Rungs:
    """For ``compensate.compensated`` to ``watch``: every sparse layer at several numbers of survivors.

    ``factors`` multiply the number of survivors that the layer's target leaves it, at most to the whole layer.
    ``versions`` then holds a ``Version`` for each, refitted (see ``refit`` for ``ridge`` and ``steps``) to what the
    layers before deliver at factor 1. The supports are nested, by the weights' worth in the layer's own sparse least
    squares.
    """

    def __init__(self, factors: Sequence[float] = FACTORS, ridge: float = RIDGE, steps: int = STEPS) -> None:
        self.factors, self.ridge, self.steps = tuple(factors), ridge, steps
        self.versions: dict[str, list[Version]] = {}

    def __call__(self, name: str, sums: Moments, matrix: Tensor, strength: Tensor, survivors: int) -> None:
        self.versions[name] = [self._version(sums, matrix, strength, round(f * survivors)) for f in self.factors]

    def _version(self, sums: Moments, matrix: Tensor, strength: Tensor, survivors: int) -> Version:
        weights = strength[:, : strength.shape[1] - sums.bias]
        support = torch.ones_like(matrix, dtype=torch.bool)
        alive = torch.zeros(weights.numel(), dtype=torch.bool, device=weights.device)
        alive[weights.flatten().topk(min(survivors, weights.numel())).indices] = True
        support[:, : weights.shape[1]] = alive.view_as(weights)
        fitted = refit(sums, support, matrix, self.ridge, self.steps)
        return Version(support, fitted[support], float(sums.error(fitted).sum() / sums.energy.sum()))


def spread(sizes: Mapping[str, int], sparsity: float, shape: Mapping[str, float]) -> dict[str, float]:
    """Layer sparsities that add up to ``sparsity`` of all weights: the survivors of ``shape`` times one common factor.

    ``sizes`` are the layers' numbers of weights; layers not in ``shape`` stay dense, none is denser than that.
    Where ``shape`` adds up to ``sparsity`` already, to half a percent, it is taken as it is.
    Raises ValueError if the layers in ``shape`` have fewer weights than are to be zero.
    """
    total, wanted = sum(sizes.values()), sparsity * sum(sizes.values())
    if wanted > sum(sizes[name] for name in shape):
        raise ValueError(f"a sparsity of {sparsity} needs more zeros than {', '.join(shape)} have weights")

    def at(factor: float) -> dict[str, float]:
        return {name: max(0.0, 1 - factor * (1 - share)) for name, share in shape.items()}

    def zeros(factor: float) -> float:
        return sum(share * sizes[name] for name, share in at(factor).items())

    if abs(zeros(1.0) - wanted) < 0.005 * total:
        return dict(shape)
    low, high = 0.0, 1 / max(1e-9, 1 - max(shape.values()))
    for _ in range(60):  # more survivors, fewer zeros: by halving
        middle = (low + high) / 2
        low, high = (middle, high) if zeros(middle) > wanted else (low, middle)
    return at(low)
