"""Selection: which candidate set is zeroed, and which dead weights regrow in exchange for survivors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from delib.evolution.assess import Suffix, assess
from delib.evolution.criteria import Site, obs
from delib.layerwise.reconstruct import reconstruct
from delib.nn.divergence import Divergence
from delib.nn.layers import matrix_of, put_matrix

FINALISTS = 4  # candidates that the network itself assesses, in two rounds
Sets = Iterable[Tensor]  # a population of candidate sets, each the flat indices of the weights that would die
Batches = Iterator[tuple[Tensor, Any]]  # inputs, and the teacher's outputs for them
Rival = TypeVar("Rival")


class Candidate(NamedTuple):
    """A candidate set with its survivors refitted: the weights that would die (flat indices), the layer's matrix, and
    its ``error``, the squared error of the layer's outputs over the calibration inputs, weighted by sensitivity."""

    dead: Tensor
    matrix: Tensor
    error: float


@dataclass(frozen=True)
class Trial:
    """What candidates for one layer are assessed on: the student's ``suffix`` behind the layer, for the inputs of one
    batch, and the teacher's outputs (``goal``) for these; ``batches`` yields the next ones."""

    suffix: Suffix
    goal: Any
    batches: Batches
    divergence: Divergence

    def of_set(self, dead: Tensor) -> Tensor:
        """The divergence that zeroing a set would cause, [1]."""
        return assess(self.suffix, [dead], self.goal, self.divergence)

    def of_matrix(self, matrix: Tensor) -> float:
        """The divergence with the layer holding ``matrix``."""
        values = matrix_of(self.suffix.layer)
        put_matrix(self.suffix.layer, matrix)
        try:
            return float(self.divergence(self.suffix(), self.goal))
        finally:
            put_matrix(self.suffix.layer, values)

    def on_next_batch(self) -> AbstractContextManager[Trial]:
        """A trial of the same layer on the next batch."""
        return trial_on(self.suffix.network, self.suffix.layer, self.batches, self.divergence)


@contextmanager
def trial_on(network: nn.Module, layer: nn.Module, batches: Batches, divergence: Divergence) -> Iterator[Trial]:
    """A trial on the next of ``batches``; the network is patched inside the block."""
    inputs, goal = next(batches)
    with Suffix(network, layer, inputs) as suffix:
        yield Trial(suffix, goal, batches, divergence)


def drawn(inputs: Tensor, batch: int, chance: torch.Generator) -> Tensor:
    """Random inputs, ``batch`` of them or all."""
    return inputs[torch.randperm(len(inputs), generator=chance)[:batch]]


def growing_batches(
    inputs: Tensor, teacher: nn.Module, batch: int, chance: torch.Generator, first: Tensor | None = None
) -> Batches:
    """Random inputs and the teacher's outputs for them: ``batch`` at first, twice as many each time, at most all.

    ``first``, where given, are the first inputs.
    """
    while True:
        part = drawn(inputs, batch, chance)
        if first is not None:  # in the place of what was drawn, so that chance goes on alike
            part, first = first, None
        with torch.no_grad():
            goal = teacher(part)
        yield part, goal
        batch *= 2


def better_half(rivals: Sequence[Rival], divergences: Sequence[float]) -> list[Rival]:
    """One round of successive halving (Karnin, Koren and Somekh 2013): the least divergent half, the earlier of equals,
    in the order in which they came; at least one."""
    order = sorted(range(len(rivals)), key=divergences.__getitem__)
    return [rivals[i] for i in sorted(order[: max(1, len(rivals) // 2)])]


def least_divergent(candidates: Sets, site: Site, trial: Trial) -> tuple[Tensor, Tensor]:
    """Assess each candidate set by tentative zeroing; the least divergent, [size], and all divergences, [population].

    Sets are drawn one by one, and only the best so far is held.
    """
    divergences: list[Tensor] = []
    for candidate in candidates:
        measured = trial.of_set(candidate)
        if not divergences or measured < min(divergences):
            best = candidate
        divergences.append(measured)
    return best, torch.cat(divergences)


@torch.no_grad()
def least_divergent_refitted(candidates: Sets, site: Site, trial: Trial) -> tuple[Tensor, Tensor]:
    """As ``least_divergent``, each set assessed with its survivors refitted; the divergences are the first round's.

    The few sets of least error by the layer's moments are the finalists, together with the first set, the incumbent.
    They meet in successive halving, each round on a fresh and larger batch, because the least of many divergences on
    one batch is in good part luck; ties go to the incumbent.
    """
    rivals = finalists(candidates, site, FINALISTS)
    first = divergences = [trial.of_matrix(rival.matrix) for rival in rivals]
    while len(rivals := better_half(rivals, divergences)) > 1:
        with trial.on_next_batch() as fresh:
            divergences = [fresh.of_matrix(rival.matrix) for rival in rivals]
    return rivals[0].dead, torch.tensor(first, dtype=torch.float64)


def finalists(candidates: Sets, site: Site, many: int) -> list[Candidate]:
    """The ``many`` candidates of least error, the first one always among them and at the front.

    The errors are exact and come from the moments alone: the network is not run, and no more than ``many`` refitted
    matrices are held.
    """
    matrix = site.matrix()
    best: list[Candidate] = []
    for dead in candidates:
        fitted = reconstruct(site.moments, site.support(dead), matrix)
        best.append(Candidate(dead, fitted, float((site.moments.error(fitted) * site.sensitivity).sum())))
        best = best[:1] + sorted(best[1:], key=lambda candidate: candidate.error)[: many - 1]
    return best


@torch.no_grad()
def regrow(site: Site, many: int, trial: Trial) -> tuple[Tensor, Tensor] | None:
    """Exchange up to ``many`` survivors for as many dead weights, if that lowers the divergence on a fresh batch.

    The dead weights that the least-squares fit would gain most from are paired with the survivors that cost it least
    (both by ``obs``), as long as the gain is larger; then all survivors are refitted. If the student is less divergent
    with them, the layer keeps the new values, and the flat indices of the weights born and of those that died are
    returned; else the layer is left as it was, and None is returned.
    """
    saliency, alive = obs(site).flatten(), site.living()
    dead, living = (~alive.flatten()).nonzero().squeeze(1), alive.flatten().nonzero().squeeze(1)
    many = min(many, len(dead), len(living))
    born = dead[saliency[dead].topk(many).indices]
    dying = living[saliency[living].topk(many, largest=False).indices]
    gains = saliency[born] > saliency[dying]
    born, dying = born[gains], dying[gains]
    alive.view(-1)[born], alive.view(-1)[dying] = True, False
    fitted = reconstruct(site.moments, replace(site, alive=alive).support(), site.matrix())
    with trial.on_next_batch() as fresh:
        if len(born) == 0 or fresh.of_matrix(fitted) >= fresh.of_matrix(site.matrix()):
            return None
    put_matrix(trial.suffix.layer, fitted)
    return born, dying
