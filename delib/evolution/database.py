"""The sparsity database: every layer at several sparsities, reconstructed, for an allocation to choose from.

OBC's and EvoPress's word (Frantar and Alistarh 2022, section 5; Sieberling et al. 2024, section 3): layers are
sparsified one by one beforehand, and to assess an allocation is to put the entries together and to run the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delib.evolution.criteria import Criterion, Site
from delib.evolution.population import draw
from delib.layerwise.compress import Problem, Watch
from delib.layerwise.reconstruct import RIDGE, STEPS, Moments, moments, reconstruct
from delib.nn.checkpoint import Checkpoint
from delib.nn.divergence import Divergence
from delib.nn.layers import bias_of, copied, matrix_of, put_matrix, weight_of
from delib.nn.sensitivity import sensitivity

LEVELS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)  # sparsities
FACTORS = (1.56, 1.25, 1.0, 0.8, 0.64)  # of the survivors: a level switch moves about a quarter of a layer's
LOOKED = 1000  # inputs that sensitivities are measured on
Allocation = dict[str, int]  # the level of each layer: an index into its entries


@dataclass(frozen=True)
class Entry:
    """One layer at one level: the ``support`` [rows, k], bias last, and the survivors' ``values`` in its order.

    ``cost`` is the divergence per input that the entry alone causes, to second order: half the squared error of the
    layer's outputs, weighted by their sensitivity. Costs of layers can be compared and, as far as their errors do not
    interact, added up.
    """

    support: Tensor
    values: Tensor
    cost: float

    @property
    def zeros(self) -> int:
        return int((~self.support).sum())

    def matrix(self) -> Tensor:
        """The layer's weight and bias as ``put_matrix`` takes them."""
        matrix = torch.zeros(self.support.shape, dtype=self.values.dtype, device=self.values.device)
        matrix[self.support] = self.values
        return matrix

    @classmethod
    def fit(
        cls,
        sums: Moments,
        support: Tensor,
        matrix: Tensor,
        sensitivity: Tensor | None = None,
        ridge: float = RIDGE,
        steps: int = STEPS,
    ) -> Entry:
        """An entry with its values by least squares (see ``reconstruct``).

        ``sensitivity`` [rows] is that of one input's divergence to each output; 1 where it is not known.
        """
        fitted = reconstruct(sums, support, matrix, ridge, steps)
        errors = sums.error(fitted).clamp_min(0)
        weighted = errors if sensitivity is None else errors * sensitivity.to(errors.dtype)
        return cls(support, fitted[support], float(weighted.sum()) / (2 * sums.inputs))


class SparsityDatabase(dict[str, list[Entry]]):
    """Each layer's entries, by its name, in the order of rising sparsity."""

    @classmethod
    @torch.no_grad()
    def build(
        cls, teacher: nn.Module, names: Iterable[str], inputs: Tensor, criterion: Criterion, divergence: Divergence
    ) -> SparsityDatabase:
        """The dense teacher's layers, each alone, at every one of ``LEVELS``.

        At each the weights that are least salient to ``criterion`` are zeroed, and the survivors reconstructed to the
        layer's own outputs on ``inputs`` [n, ...]. In a run of notebooks an interrupted database goes on after the
        layer that it was last saved with.
        """
        database, looked, names = cls(), inputs[:LOOKED], list(names)
        saved = Checkpoint("database", teacher, names, inputs, criterion, divergence)
        database.resume(saved.read(inputs.device) or {})
        for name in (name for name in names if name not in database):
            layer = teacher.get_submodule(name)
            weight, matrix = weight_of(layer), matrix_of(layer)
            sums = moments(teacher, teacher, name, inputs)
            per_input = sensitivity(teacher, layer, looked, divergence) * len(looked)
            dense = torch.ones_like(matrix, dtype=torch.bool)
            database[name] = [Entry(dense, matrix[dense], 0.0)]
            for level in LEVELS[1:]:
                size = round(level * weight.numel())
                site = Site(weight, inputs[:1], None, weight.numel() - size, bias_of(layer))
                site.moments, site.sensitivity = sums, per_input
                dead = draw(criterion(site), site.living(), size, 1, 0.0, torch.Generator())[0]
                database[name].append(Entry.fit(sums, site.support(dead), matrix, per_input))
            saved.offer(database.state)
        saved.finish(database.state)
        return database

    def state(self) -> dict[str, list[tuple[Tensor, Tensor, float]]]:
        """What a checkpoint holds."""
        return {name: [(e.support, e.values, e.cost) for e in entries] for name, entries in self.items()}

    def resume(self, state: Mapping[str, Sequence[tuple[Tensor, Tensor, float]]]) -> None:
        """Take the layers over from a ``state``."""
        self.update({name: [Entry(*entry) for entry in entries] for name, entries in state.items()})

    def watch(self, factors: Sequence[float] = FACTORS, ridge: float = RIDGE, steps: int = STEPS) -> Watch:
        """For ``compress(watch=...)``: enters every sparse layer at several numbers of survivors.

        ``factors``, falling, multiply the survivors that the layer's target leaves it, at most to the whole layer. The
        supports are nested, by the strength with which ADMM holds on to each weight; values are reconstructed to what
        the student's layers before deliver at factor 1.
        """

        def enter(name: str, problem: Problem) -> None:
            sums, matrix, strength, survivors, per_input = problem
            self[name] = [
                Entry.fit(sums, _strongest(strength, round(f * survivors), sums.bias), matrix, per_input, ridge, steps)
                for f in factors
            ]

        return enter

    @torch.no_grad()
    def put(self, student: nn.Module, allocation: Allocation) -> None:
        """Give each layer its entry at the level named, in place."""
        for name, level in allocation.items():
            put_matrix(student.get_submodule(name), self[name][level].matrix())

    def students(self, like: nn.Module) -> Iterator[nn.Module]:
        """Copies of a network, all layers at their first entries, at their second ones, and so on. The next one takes
        the memory of the one before."""
        student = copied(like)
        for level in range(min(map(len, self.values()), default=0)):
            self.put(student, dict.fromkeys(self, level))
            yield student

    def curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """For each layer its entries' shares of survivors and their costs, as lines that can be drawn."""
        return {
            name: ([1 - e.zeros / e.support.numel() for e in entries], [e.cost for e in entries])
            for name, entries in self.items()
        }

    def savings(self) -> dict[str, list[int]]:
        """What each layer's entries save: their zeros."""
        return {name: [entry.zeros for entry in entries] for name, entries in self.items()}

    def costs(self) -> dict[str, list[float]]:
        """The costs of each layer's entries."""
        return {name: [entry.cost for entry in entries] for name, entries in self.items()}


def _strongest(strength: Tensor, survivors: int, bias: bool) -> Tensor:
    """The support [rows, k] of the weights of most strength, and of the bias column where there is one."""
    support = torch.ones_like(strength, dtype=torch.bool)
    weights = strength[:, : strength.shape[1] - bias]
    alive = torch.zeros(weights.numel(), dtype=torch.bool, device=weights.device)
    alive[weights.flatten().topk(min(survivors, weights.numel())).indices] = True
    support[:, : weights.shape[1]] = alive.view_as(weights)
    return support


def total(values: Mapping[str, Sequence[int]], allocation: Allocation) -> int:
    """The sum over layers of one value each, at its level."""
    return sum(values[name][level] for name, level in allocation.items())
