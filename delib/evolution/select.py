"""Who is zeroed: the contest between candidate sets, with or without their survivors refitted first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from delib.evolution.assess import Suffix, assess
from delib.evolution.criteria import Site, obs
from delib.layerwise.reconstruct import refit
from delib.nn.divergence import Divergence
from delib.nn.layers import matrix_of, put_matrix

FINALISTS = 4  # candidates that the network itself assesses, in two rounds
Sets = Iterable[Tensor]  # a population of candidate sets, each the flat indices of the weights that would die
Rounds = Iterator[tuple[Tensor, Any]]  # inputs, and the teacher's answers to them


@dataclass(frozen=True)
class Entry:
    """A candidate: the weights that would die (flat indices), the layer's matrix once refitted, and its error.

    ``error`` is the squared error of the layer's outputs over the calibration inputs, each weighted by its importance.
    """

    dead: Tensor
    matrix: Tensor
    error: float


def uncompensated(
    site: Site, sets: Sets, suffix: Suffix, goal: Any, rounds: Rounds, divergence: Divergence
) -> tuple[Tensor, Tensor]:
    """The set whose tentative zeroing diverges least from the teacher, [size], and all divergences, [population]."""
    divergences: list[Tensor] = []
    for candidate in sets:
        measured = assess(suffix, [candidate], goal, divergence)
        if not divergences or measured < min(divergences):
            best = candidate
        divergences.append(measured)
    return best, torch.cat(divergences)


@torch.no_grad()
def compensated(
    site: Site, sets: Sets, suffix: Suffix, goal: Any, rounds: Rounds, divergence: Divergence
) -> tuple[Tensor, Tensor]:
    """As ``uncompensated``, each set assessed with its survivors refitted; the divergences are the first round's.

    The few sets of least error by the layer's moments are the finalists, together with the first set, the incumbent.
    They meet in successive halving (Karnin, Koren and Somekh 2013): each round on the next, fresh and larger, of
    ``rounds`` (inputs and the teacher's answers), the better half goes on, and ties go to the incumbent. Several
    rounds, because the least of many divergences on one batch is in good part luck.
    """
    entries = prescreen(site, sets, FINALISTS)
    first = divergences = torch.stack([_divergence(suffix, entry, goal, divergence) for entry in entries])
    while True:
        order = divergences.argsort(stable=True).tolist()
        entries = [entries[i] for i in sorted(order[: max(1, len(entries) // 2)])]
        if len(entries) == 1:
            return entries[0].dead, first
        inputs, goal = next(rounds)
        with Suffix(suffix.network, suffix.layer, inputs) as fresh:
            divergences = torch.stack([_divergence(fresh, entry, goal, divergence) for entry in entries])


@torch.no_grad()
def revive(
    site: Site, many: int, suffix: Suffix, rounds: Rounds, divergence: Divergence
) -> tuple[Tensor, Tensor] | None:
    """Exchange up to ``many`` survivors for as many dead weights, if that lowers the divergence on a fresh batch.

    The dead weights that the least-squares fit would gain most from are paired with the survivors that cost it least
    (both by ``obs``), as long as the gain is larger; then all survivors are refitted. If the student with them is less
    divergent on the next of ``rounds`` the layer keeps the new values, and the flat indices of the revived and of the
    newly dead weights are returned; else nothing changes and None is.
    """
    relevance, alive = obs(site).flatten(), site.living()
    dead, living = (~alive.flatten()).nonzero().squeeze(1), alive.flatten().nonzero().squeeze(1)
    many = min(many, len(dead), len(living))
    born = dead[relevance[dead].topk(many).indices]
    dying = living[relevance[living].topk(many, largest=False).indices]
    worth = relevance[born] > relevance[dying]
    born, dying = born[worth], dying[worth]
    alive.view(-1)[born], alive.view(-1)[dying] = True, False
    fitted = refit(site.moments, replace(site, alive=alive).support(), site.matrix())
    inputs, goal = next(rounds)
    with Suffix(suffix.network, suffix.layer, inputs) as fresh:
        before = divergence(fresh(), goal)
        if len(born) == 0 or _divergence(fresh, Entry(dying, fitted, 0.0), goal, divergence) >= before:
            return None
    put_matrix(suffix.layer, fitted)
    return born, dying


def prescreen(site: Site, sets: Sets, finalists: int) -> list[Entry]:
    """The entries of least error after the refit, the first set always among them and at the front.

    The errors are exact and come from the moments alone: the network is not run, and only ``finalists`` entries are
    held.
    """
    matrix = site.matrix()
    best: list[Entry] = []
    for dead in sets:
        fitted = refit(site.moments, site.support(dead), matrix)
        best.append(Entry(dead, fitted, float((site.moments.error(fitted) * site.importance).sum())))
        best = best[:1] + sorted(best[1:], key=lambda entry: entry.error)[: finalists - 1]
    return best


def growing(inputs: Tensor, teacher: torch.nn.Module, batch: int, chance: torch.Generator) -> Rounds:
    """Random inputs and the teacher's answers to them: ``batch`` at first, twice as many each time, at most all."""
    while True:
        part = inputs[torch.randperm(len(inputs), generator=chance)[:batch]]
        with torch.no_grad():
            goal = teacher(part)
        yield part, goal
        batch *= 2


def _divergence(suffix: Suffix, entry: Entry, goal: Any, divergence: Divergence) -> Tensor:
    values = matrix_of(suffix.layer)
    put_matrix(suffix.layer, entry.matrix)
    try:
        return divergence(suffix(), goal).reshape(())
    finally:
        put_matrix(suffix.layer, values)
