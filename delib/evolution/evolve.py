"""Directed Evolution: propose candidate sets, assess them by tentative zeroing, select the least divergent, zero it,
recover the survivors; cycle after cycle, until every layer is as sparse as it is to be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from delib.evolution.check import EXAMPLES, checked_goals
from delib.evolution.criteria import Criterion, Site, magnitude
from delib.evolution.entry import Entries, entry_chains
from delib.evolution.evolved import Evolved
from delib.evolution.population import agreed, propose
from delib.evolution.select import Trial, least_divergent, least_divergent_refitted, regrow, trial_on
from delib.files import in_batch
from delib.layerwise.reconstruct import moments, reconstruct
from delib.nn.checkpoint import Checkpoint
from delib.nn.divergence import Divergence, fitting
from delib.nn.hooks import end, up_to
from delib.nn.layers import bias_of, hold, original, put_matrix, weight_of
from delib.nn.sensitivity import sensitivity


class Recovery(Protocol):
    """Anything that trains ``student`` in place towards ``teacher``; what died is zeroed again after it."""

    def __call__(self, student: nn.Module, teacher: nn.Module, *, seed: int) -> Any: ...


@dataclass(frozen=True)
class Cycle:
    """What one cycle of evolution does in every layer. The defaults take LeNet-300-100 to 95% in seconds.

    Attributes
    ----------
    population, share
        Number of candidate sets, and weights in each as a share of the survivors: steps get finer as these get scarcer.
    criterion : Criterion or several
        By whose saliency sets are drawn; several share the population in equal parts.
    temperature : float
        0: every set holds the least salient survivors; the larger, the more is left to chance (see ``draws``).
    critics : sequence of Criterion
        Of the chosen set only what all critics agree on is zeroed (see ``agreed``).
    compensate : bool
        Every candidate's survivors are reconstructed by least squares before it is assessed, and those of the zeroed
        set for good (see ``least_divergent_refitted``).
    regrowth : float
        With ``compensate``: up to so many times the set's size of dead weights may live again for as many survivors,
        where this lowers the divergence (see ``regrow``).
    horizon : int, optional
        Measure the divergence at the outputs of the weight layer so many places behind the one at work (0: its own)
        instead of the network's. Faster, blind to what comes later, and no place for a divergence of logits such as
        ``kl``. Layers behind the first 16 are tried from the middle of the network on, if it can be entered there, 16
        in turn on the same inputs: a network of twice as many layers then takes about twice as long.
    batch : int
        Inputs that are drawn anew for each layer: a set that wins on one fixed batch need not win on another.
    """

    population: int = 16
    share: float = 0.05
    criterion: Criterion | Sequence[Criterion] = magnitude
    temperature: float = 0.5
    critics: Sequence[Criterion] = ()
    compensate: bool = False
    regrowth: float = 0.0
    horizon: int | None = None
    batch: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie above 0 and up to 1, got {self.share}")
        if min(self.population, self.batch) < 1:
            raise ValueError(f"population and batch must be at least 1, got {self.population} and {self.batch}")
        if min(self.temperature, self.regrowth, self.horizon or 0) < 0:
            raise ValueError("temperature, regrowth and horizon must not be negative")
        if self.regrowth and not self.compensate:
            raise ValueError("regrowth needs compensate: regrown weights get their values from least squares")


def evolve(
    teacher: nn.Module,
    inputs: Tensor,
    targets: float | Mapping[str, float],
    cycle: Cycle = Cycle(),
    *,
    divergence: Divergence = fitting,
    recovery: Recovery | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Evolved:
    """Evolve a sparse student of ``teacher``, its divergence from the teacher kept as small as possible.

    A cycle goes once through the layers that have not met their goal, and then recovers the survivors; a layer's last
    set is cut so that its goal is met to the weight.

    Parameters
    ----------
    teacher : nn.Module
        Its values are left as they are; it is put into evaluation mode.
    inputs : Tensor [n, ...]
        Calibration inputs; no labels are used.
    targets : float or mapping of layer name to float
        The sparsity goal of all weight layers that the teacher calls, or of those named; layers not named stay dense.
    divergence : Divergence
        Of the student's outputs from the teacher's; the default goes by their form.
    recovery : Recovery, optional
        Trains the survivors after each cycle.
    seed : int
        The same seed on the same device gives the same student.
    progress : bool
        Show a bar. To save the work as it goes, and to go on from there to the same bits: ``nn.saved_to``.

    Raises
    ------
    ValueError
        On a sparsity outside 0..1, a layer that the network lacks, and whatever would make the result wrong (see
        ``checked_goals``).
    """
    teacher = original(teacher).eval()
    goals = checked_goals(teacher, inputs, targets, divergence, cycle.horizon)
    evolved = Evolved.start(teacher, goals)
    saved = Checkpoint("evolve", teacher, inputs, goals, cycle, divergence, recovery, seed)
    if (state := saved.read()) is not None:
        evolved.resume(state)
    student = evolved.student
    select = least_divergent_refitted if cycle.compensate else least_divergent
    ends = {name: end(teacher, teacher.get_submodule(name), inputs[:1], cycle.horizon) for name in goals}
    chains = {} if cycle.horizon is None else entry_chains(teacher, list(goals), inputs[:EXAMPLES])
    entries = Entries(student, teacher, inputs, cycle.batch, ends, chains, partial(_chance, seed))
    zeros = sum(map(evolved.zeros, goals))
    with tqdm(total=sum(goals.values()), initial=zeros, unit="weight", disable=not progress or in_batch()) as bar:
        while evolved.begin_cycle(goals):
            # Whose outputs layers are reconstructed to.
            fitted_to = evolved.at_cycle(evolved.cycle - 1) if recovery else teacher
            for name, missing in evolved.missing(goals).items():
                size = min(math.ceil(cycle.share * evolved.survivors(name)), missing)
                chance = _chance(seed, evolved.cycle, name)
                network, batches = entries.at(name, evolved.cycle, chance)
                layer = student.get_submodule(name)
                with trial_on(network, layer, batches, divergence) as trial:
                    site = _site(evolved, name, size, trial, (fitted_to, ends[name]), inputs)
                    # 1. Propose candidate sets.
                    candidates = propose(
                        site, cycle.criterion, size, cycle.population, cycle.temperature, chance, cycle.compensate
                    )
                    # 2. Assess each, 3. select the least divergent.
                    chosen, divergences = select(candidates, site, trial)
                # 4. Zero what the critics agree on.
                chosen = agreed(chosen, site, cycle.critics)
                evolved.zero(name, chosen, divergences)
                if cycle.compensate:
                    put_matrix(layer, reconstruct(site.moments, site.support(chosen), site.matrix()))
                if cycle.regrowth:
                    after = site.after(weight_of(layer), bias_of(layer), evolved.generations[name] == 0)
                    evolved.exchange(name, regrow(after, round(cycle.regrowth * size), trial))
                bar.update(len(chosen))
                del site, candidates, chosen  # as large as the layer, and the next one needs the room
                saved.offer(evolved.state)
            # 5. Recover the survivors.
            if recovery is not None:
                with saved.within(evolved.cycle):
                    recovery(student, teacher, seed=seed + evolved.cycle)
                hold(student, evolved.masks)  # whatever the recovery did to the dead
            evolved.end_cycle(changed=recovery is not None or cycle.compensate)
            saved.offer(evolved.state)
    saved.finish(evolved.state)
    return evolved


def _site(
    evolved: Evolved, name: str, size: int, trial: Trial, reference: tuple[nn.Module, str], inputs: Tensor
) -> Site:
    """What there is to know of a layer before a cycle; the costly parts are measured if a criterion asks for them."""
    suffix, (model, until) = trial.suffix, reference
    return Site(
        weight_of(suffix.layer),
        suffix.site_inputs,
        evolved.generations[name] == 0,
        evolved.survivors(name) - size,
        bias_of(suffix.layer),
        lambda: moments(evolved.student, model, name, inputs),
        lambda: sensitivity(up_to(model, until), model.get_submodule(name), suffix.inputs, trial.divergence),
    )


def _chance(seed: int, cycle: int, layer: str) -> torch.Generator:
    """A stream of chance of its own for each cycle and layer, so that adding a layer leaves the others' alone."""
    entropy = np.random.SeedSequence([seed, cycle, *layer.encode()])
    return torch.Generator().manual_seed(int(entropy.generate_state(1)[0]))
