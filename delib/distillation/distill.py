"""The trainer: a sparse student distilled from its teacher, for a hundred steps or for hours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from delib.distillation.fake_quantize import FakeQuantization
from delib.distillation.optimizer import MaskedAdam
from delib.distillation.pruning import GradualPruning
from delib.distillation.recipe import Objective, Recipe
from delib.files import clock, in_batch
from delib.nn.checkpoint import Checkpoint
from delib.nn.device import multiplying
from delib.nn.hooks import replayed, watched
from delib.nn.layers import channels_last
from delib.nn.trace import mapped, tensors_in

ROOM = 4 << 30  # bytes of batches that are remembered, about: a laptop of 8 GB has no more to spare
DELAY = 10.0  # seconds after which a progress bar shows: short recoveries need none
# Count, generator -> that many inputs [count, ...].
Source = Callable[[int, torch.Generator], Tensor]
Losses = list[tuple[float, float]]
During = GradualPruning | FakeQuantization | None


def distill(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Tensor | Source,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    *,
    objective: Objective = Objective(),  # noqa: B008
    during: During = None,
    seed: int = 0,
    checkpoint: Path | None = None,
) -> Losses:
    """Train ``student`` in place towards ``teacher``, without labels; zeros of weight layers stay zero.

    Parameters
    ----------
    student, teacher : nn.Module
        Networks with the same outputs. Both are left in evaluation mode: statistics of norms remain the teacher's.
    inputs : Tensor [n, ...] or callable
        Batches are drawn from the tensor at random, or made by a source (count, generator) -> [count, ...], such as
        augmented views that never repeat.
    recipe, objective : Recipe, Objective
        How long and how fast to train, and what is compared.
    during : GradualPruning or FakeQuantization, optional
        What happens to the weights while they are trained.
    seed : int
        Determines the batches.
    checkpoint : Path, optional
        File from which the work goes on, to the same bits, if it exists; saved every 15 seconds at most and at the
        end. One of other work is overwritten.

    Returns
    -------
    list of (float, float)
        Each step's divergence and feature error.

    Raises
    ------
    ValueError
        If the tensor of inputs is empty, and if the file at ``checkpoint`` is none.
    """
    source = _drawn(inputs) if isinstance(inputs, Tensor) else inputs
    teacher.eval()
    student.eval()
    saved = Checkpoint("distill", student, teacher, inputs, recipe, objective, during, seed, file=checkpoint)
    with channels_last(student, teacher):
        regrowth = during.regrowth if isinstance(during, GradualPruning) else {}
        weights = MaskedAdam(student, recipe, objective.frozen, regrowth)
        batches = _Batches(student, teacher, source, recipe, objective, seed)
        losses = _train(weights, batches, during, saved)
        weights.write_mean()
    return losses


def _drawn(inputs: Tensor) -> Source:
    if len(inputs) == 0:
        raise ValueError("distillation needs inputs, got none")
    return lambda count, chance: inputs[torch.randint(len(inputs), (count,), generator=chance).to(inputs.device)]


def _train(weights: MaskedAdam, batches: _Batches, during: During, saved: Checkpoint) -> Losses:
    student, objective = batches.student, batches.objective
    steps, limit = weights.recipe.steps, 60 * weights.recipe.minutes
    pruning = during if isinstance(during, GradualPruning) else None
    quantized = during.applied if isinstance(during, FakeQuantization) else nullcontext
    losses = _resume(saved, weights, batches, during)

    def state() -> dict[str, Any]:
        rest = {"during": during.state() if during else {}, "batches": batches.steps, "losses": losses}
        return {"weights": weights.state(), **rest}

    bar = tqdm(initial=len(losses), total=steps, disable=in_batch(), delay=DELAY, leave=False)
    while len(losses) < steps and (seconds := clock() - saved.begin) < limit:
        step = len(losses)
        done = max(step / steps, seconds / limit)
        due = pruning is not None and pruning.due(step, done, weights.survivors)
        batch = batches.draw(step, fresh=due)
        if pruning and due:
            pruning.cycle(weights, step, done, partial(_compare, student, objective, batch))
        with quantized(student):
            divergence, error = _compare(student, objective, batch)
            (divergence + objective.feature_weight * error).backward()
        weights.step(done)
        losses.append((float(divergence.detach()), float(error.detach())))
        bar.set_postfix(divergence=f"{losses[-1][0]:.3f}", features=f"{losses[-1][1]:.3f}", refresh=False)
        bar.update()
        saved.offer(state)
    bar.close()
    saved.finish(state)
    return losses


def _resume(saved: Checkpoint, weights: MaskedAdam, batches: _Batches, during: During) -> Losses:
    """Go on from a checkpoint, if there is one; returns the losses so far."""
    state = saved.read(weights.values[0].device)
    if state is None:
        return []
    weights.resume(state["weights"])
    batches.steps = state["batches"]
    if during:
        during.resume(state["during"])
    losses: Losses = state["losses"]
    return losses


class _Batch(NamedTuple):
    """Inputs, the teacher's outputs and features, weights of positions, and the output of the frozen modules."""

    inputs: Tensor
    target: Any
    features: dict[str, Tensor]
    position_weights: Tensor | None
    prefix: Tensor | None


@dataclass
class _Batches:
    """Batches by the step for which each was made; ``steps`` are those of the last that are remembered.

    A batch depends on seed and step alone: one that an interruption made forget is made again.
    """

    student: nn.Module
    teacher: nn.Module
    source: Source
    recipe: Recipe
    objective: Objective
    seed: int
    steps: list[int] = field(default_factory=list)
    made: dict[int, _Batch] = field(default_factory=dict)

    def draw(self, step: int, fresh: bool) -> _Batch:
        """A new batch at every ``recipe.uses``-th step, and where it must be ``fresh``; else one of the last."""
        if step % self.recipe.uses == 0 or fresh or not self.steps:
            chosen = step
            self.steps = [*self.steps, step][-self._most :]
            self.made = {made: batch for made, batch in self.made.items() if made in self.steps}
        else:
            chosen = self.steps[int(torch.randint(len(self.steps), (), generator=self._chance(step)))]
        if chosen not in self.made:
            self.made[chosen] = self._make(self._chance(chosen))
        return self.made[chosen]

    @cached_property
    def _most(self) -> int:
        """How many batches are remembered: ``recipe.memory`` where there is room for them, one where each has one use.

        It goes by the batch of step 0 alone, so that a run which goes on remembers as many.
        """
        if self.recipe.uses == 1:
            return 1
        if 0 not in self.made:
            self.made[0] = self._make(self._chance(0))
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(tuple(self.made[0])))
        return max(1, min(self.recipe.memory, ROOM // max(1, size)))

    def _chance(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)

    @torch.no_grad()
    def _make(self, chance: torch.Generator) -> _Batch:
        inputs, frozen, prefix = self.source(self.recipe.batch, chance), self.objective.frozen, None
        with multiplying(self.student, self.objective.precision):
            with watched(self.teacher, self.objective.features) as features:
                target = mapped(self.teacher(inputs), Tensor.float)
            if frozen:
                with watched(self.student, frozen[-1:], stop=True) as outputs:
                    self.student(inputs)
                prefix = outputs[frozen[-1]]
        weigh = self.objective.position_weights
        return _Batch(inputs, target, features, weigh(target) if weigh else None, prefix)


def _compare(student: nn.Module, objective: Objective, batch: _Batch) -> tuple[Tensor, Tensor]:
    """The student's divergence from its teacher and the error of its features."""
    skipped = replayed(student, objective.frozen, batch.prefix)
    with watched(student, objective.features) as features, skipped, multiplying(student, objective.precision):
        answer = student(batch.inputs)
    error = feature_error(features, batch.features, batch.position_weights) if features else torch.zeros(())
    return objective.divergence(mapped(answer, Tensor.float), batch.target), error


def feature_error(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], position_weights: Tensor | None = None
) -> Tensor:
    """Σ over features of ‖student - teacher‖² / ‖teacher‖², positions weighted by ``position_weights`` [n, rows,
    columns] at any resolution."""
    errors = []
    for name, wanted in ((name, feature.float()) for name, feature in teacher.items()):
        weights = (
            1.0 if position_weights is None else F.adaptive_max_pool2d(position_weights[:, None], wanted.shape[2:])
        )
        error = (student[name].float() - wanted).square() * weights
        errors.append(error.mean() / (wanted.square() * weights).mean())
    return torch.stack(errors).sum()
