"""Long recovery: a sparse, perhaps quantised, student distilled on endless views of unlabelled inputs.

``recover`` is the short cure between two cycles of evolution. This is the long one at the end, where overfitting is the
enemy: inputs never come twice, inner features are matched besides outputs, and the student is averaged over its path.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from delib.distillation.cuda_graph import Recorded, Work
from delib.distillation.fake_quantize import Rounding
from delib.distillation.packed_adam import Descent
from delib.distillation.pruning import Thinning
from delib.files import in_batch
from delib.nn.device import multiplying
from delib.nn.divergence import Divergence, kl
from delib.nn.hooks import _Stop, replayed, watched
from delib.nn.layers import channels_last, hold

SAVE = 15.0  # seconds between two checkpoints
# Count, generator -> that many inputs [count, ...].
Source = Callable[[int, torch.Generator], Tensor]


def distil(
    student: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Tensor],
    seed: int,
    *,
    inputs: Source,
    steps: int,
    divergence: Divergence,
    batch: int = 8,
    rate: float = 0.005,
    features: Sequence[str] = (),
    feature_weight: float = 1.0,
    focus: Callable[[Any], Tensor] | None = None,
    average: float = 0.98,
    horizon: int = 100,
    rounding: Rounding | None = None,
    thinning: Thinning | None = None,
    frozen: Sequence[str] = (),
    uses: int = 1,
    memory: int = 100,
    precision: torch.dtype = torch.float32,
    recorded: bool = False,
    minutes: float = math.inf,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> list[tuple[float, float]]:
    """Train ``student`` in place towards ``teacher``; returns each step's (divergence, feature error).

    The loss is ``divergence`` of the outputs plus ``feature_weight`` times the relative squared errors of the outputs
    of the modules named in ``features``, summed. ``focus`` says, from the teacher's outputs, how much the positions of
    features [n, channels, rows, columns] count: [n, rows, columns] at any resolution; all alike by default. Adam moves
    each weight by ``rate`` of the root mean square of its output's weights a step, falling to zero along a half cosine.
    The student ends as the exponential average of its path (decay ``average``). Adam's mean squared gradients reach
    back ``horizon`` steps. Thinning reads from them what a weight is worth: where it is to keep weights for kinds of
    things that few inputs hold, it needs several hundred; a short run without it does not.

    Weights outside ``masks`` are zeroed at the start and stay zero: the optimizer only knows the others. With
    ``rounding`` every pass sees rounded weights, while the gradients move the unrounded ones (straight-through:
    Courbariaux et al. 2015, algorithm 1). With ``thinning`` survivors grow fewer on the way; ``masks`` then say where
    it begins, and the student's zeros where it ended. Raises ValueError if it is to be thinned while it is rounded.

    Modules named in ``frozen`` do not move: the student's first ones, a chain in running order. With ``uses`` above 1
    only every ``uses``-th batch is new; the others are drawn from the last ``memory`` batches, for which the teacher's
    answers and what the frozen modules deliver are remembered: half the work of a step, or less.
    The networks multiply in ``precision`` (see ``fastest_precision``); weights, losses and moves stay float32. On a GPU
    ``recorded`` passes are replayed instead of started anew, where ``divergence`` allows it (see ``Recorded``).
    Where ``minutes`` are too few for ``steps``, the rate falls and the work ends with the time instead, at some cost in
    reproducibility. With ``checkpoint`` the work goes on from that file if it exists, and is saved there now and then.
    """
    if thinning and rounding:
        raise ValueError("levels are placed for weights that stay: thin the student first, round it in a later stage")
    path = Descent(student, masks, rate, average, frozen, horizon)
    losses = path.resume(checkpoint, rounding, thinning)
    teacher.eval()
    student.eval()  # statistics of norms are the teacher's
    start = saved = time.perf_counter()
    used = 0.0
    lessons: deque[_Lesson] = deque(maxlen=memory)
    compare = partial(_compare, student, divergence, features, frozen, precision)
    work: Work = partial(_sent_back, compare, feature_weight)
    work = Recorded(work, path.moving) if recorded else work
    bar = tqdm(range(len(losses), steps), initial=len(losses), total=steps, disable=not progress or in_batch())
    for step in bar:
        chance = torch.Generator().manual_seed(seed * 1_000_003 + step)
        done = max(step / steps, min(used, 1.0))
        thins = thinning is not None and thinning.due(step, done, path.survivors)
        if step % uses == 0 or thins or not lessons:
            with multiplying(student, precision):
                lesson = _lesson(student, teacher, inputs(batch, chance), features, frozen, focus)
            lessons.append(lesson)
        else:
            lesson = lessons[int(torch.randint(len(lessons), (), generator=chance))]
        if thinning and thins:
            path.thin(thinning, step, done, partial(compare, lesson))
        with rounding.applied(student) if rounding else nullcontext():
            loss, error = work(lesson)
        path.step(step, done)
        path.learn()
        losses.append((float(loss), float(error)))
        bar.set_postfix(divergence=f"{losses[-1][0]:.3f}", features=f"{losses[-1][1]:.3f}", refresh=False)
        now = time.perf_counter()
        if checkpoint and (now - saved >= SAVE or step == steps - 1):
            path.save(checkpoint, losses, rounding, thinning)
            saved = now
        used = (now - start) / (60 * minutes)
        if used >= 1:
            break
    path.finish()
    return losses


class _Lesson(NamedTuple):
    """A batch, what the teacher makes of it, where that matters, and what the student's frozen modules deliver."""

    inputs: Tensor
    goal: Any
    features: dict[str, Tensor]
    focus: Tensor | None
    prefix: Tensor | None


@torch.no_grad()
def _lesson(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Tensor,
    features: Sequence[str],
    frozen: Sequence[str],
    focus: Callable[[Any], Tensor] | None,
) -> _Lesson:
    with watched(teacher, features) as wanted:
        goal = _float32(teacher(inputs))
    maps = None if focus is None else focus(goal)
    if not frozen:
        return _Lesson(inputs, goal, wanted, maps, None)
    with watched(student, frozen[-1:], stop=True) as got, suppress(_Stop):
        student(inputs)
    return _Lesson(inputs, goal, wanted, maps, got[frozen[-1]])


def _compare(
    student: nn.Module,
    divergence: Divergence,
    features: Sequence[str],
    frozen: Sequence[str],
    precision: torch.dtype,
    lesson: _Lesson,
) -> tuple[Tensor, Tensor]:
    """The student's divergence from its teacher, and the error of its features, on the lesson's inputs."""
    with watched(student, features) as got, replayed(student, frozen, lesson.prefix), multiplying(student, precision):
        answer = student(lesson.inputs)
    error = feature_error(got, lesson.features, lesson.focus) if features else torch.zeros(())
    return divergence(_float32(answer), lesson.goal), error


def _sent_back(
    compare: Callable[[_Lesson], tuple[Tensor, Tensor]], feature_weight: float, lesson: _Lesson
) -> tuple[Tensor, Tensor]:
    """What ``compare`` measures, once the derivatives of the loss are in the student's parameters."""
    loss, error = compare(lesson)
    (loss + feature_weight * error).backward()
    return loss.detach(), error.detach()


def _float32(answer: Any) -> Any:
    """A network's answer, a tensor or a sequence of them, for sums that need all digits."""
    return answer.float() if isinstance(answer, Tensor) else [tensor.float() for tensor in answer]


def feature_error(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], focus: Tensor | None = None) -> Tensor:
    """Σ over features of ‖student - teacher‖² / ‖teacher‖², positions counted by ``focus`` [n, rows, columns]."""
    errors = []
    for name, wanted in ((name, feature.float()) for name, feature in teacher.items()):
        weights = 1.0 if focus is None else F.adaptive_max_pool2d(focus[:, None], wanted.shape[2:])
        error = (student[name].float() - wanted).square() * weights
        errors.append(error.mean() / (wanted.square() * weights).mean())
    return torch.stack(errors).sum()


def recover(
    student: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Tensor],
    seed: int,
    *,
    inputs: Tensor,
    steps: int = 100,
    batch: int = 128,
    learning_rate: float = 1e-3,
    temperature: float = 2.0,
    divergence: Divergence | None = None,
    validation: Tensor | None = None,
    every: int = 50,
    patience: int = 4,
    after_step: Callable[[nn.Module], None] | None = None,
) -> None:
    """Masked distillation: train the student towards the teacher's outputs on ``inputs`` [n, ...], no labels used.

    The loss is ``divergence`` (default: KL of logits softened by ``temperature``; Hinton, Vinyals and Dean 2015,
    section 2). Adam at ``learning_rate``, falling to zero along a half cosine so that short recoveries end calm.
    ``masks`` maps a layer's name to a bool tensor in its weight's shape; a weight where it is False is zero
    after every step. ``seed`` orders the batches. ``after_step`` may constrain the student further.

    With ``validation`` inputs [n, ...], kept apart from ``inputs`` and from any test, recovery stops early (Prechelt
    1998): the divergence on them is measured before the first and after ``every`` steps, the student ends as it was
    at the least of these, and after ``patience`` looks without a new least no more steps are made.
    Raises ValueError if ``inputs`` is empty. The student is left in evaluation mode.
    """
    if len(inputs) == 0:
        raise ValueError("recovery needs inputs to distil on, got none")
    measure = divergence or (lambda s, t: kl(s, t, temperature))
    optimizer = torch.optim.Adam(student.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    generator = torch.Generator().manual_seed(seed)
    teacher.eval()
    best = None if validation is None else _Best(student, teacher, validation, measure)
    student.train()
    with channels_last(student, teacher):
        for step in range(1, steps + 1):
            part = inputs[torch.randint(len(inputs), (batch,), generator=generator).to(inputs.device)]
            with torch.no_grad():
                goal = teacher(part)
            optimizer.zero_grad()
            measure(student(part), goal).backward()
            optimizer.step()
            schedule.step()
            hold(student, masks)
            if after_step is not None:
                after_step(student)
            if best is not None and step % every == 0 and best.look() >= patience:
                break
    student.eval()
    if best is not None:
        best.look()
        best.restore()


class _Best:
    """A student's state at its least divergence on inputs that it does not learn from."""

    def __init__(self, student: nn.Module, teacher: nn.Module, inputs: Tensor, measure: Divergence) -> None:
        self.student, self.inputs, self.measure = student, inputs, measure
        with torch.no_grad():
            self.goal = teacher(inputs)
        self.least, self.waited = math.inf, 0
        self.look()

    @torch.no_grad()
    def look(self) -> int:
        """Measure the present student, keep it if it is the best; returns how many looks the best has stood for."""
        training = self.student.training
        divergence = float(self.measure(self.student.eval()(self.inputs), self.goal))
        self.student.train(training)
        self.waited += 1
        if divergence < self.least:
            self.least, self.waited = divergence, 0
            self.state = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}
        return self.waited

    def restore(self) -> None:
        """Go back to the best."""
        self.student.load_state_dict(self.state)
