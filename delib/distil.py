"""Long recovery: a sparse, perhaps quantised, student distilled on endless views of unlabelled inputs.

``recover`` is the short cure between two cycles of evolution. This is the long one at the end, where overfitting is the
enemy: inputs never come twice, inner features are matched besides outputs, and the student is averaged over its path.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from delib.assess import Divergence
from delib.descent import Descent
from delib.recorded import Recorded, Work
from delib.records import in_batch
from delib.rounding import Rounding
from delib.thin import Thinning

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


def fastest_device() -> str:
    """``cuda`` where torch has a GPU, else ``cpu``; with ``CUDA_VISIBLE_DEVICES=`` in the environment it has none."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fastest_precision(device: str | torch.device = "cpu") -> torch.dtype:
    """bfloat16 where ``device`` has units that multiply matrices of it, else float32.

    On a processor with AMX or AVX-512's bfloat16 a step of YOLOv3-tiny's distillation takes half the time, and the
    teacher's own detections diverge by 0.01 nats a photo from those in float32, where a student's diverge by 2. Others
    emulate it, slower.
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    tell = getattr(torch.cpu, "get_capabilities", dict)  # older versions of torch lack it
    return (
        torch.bfloat16
        if {"amx_bf16", "avx512_bf16"} & {unit for unit, there in tell().items() if there}
        else torch.float32
    )


def multiplying(network: nn.Module, precision: torch.dtype) -> torch.autocast:
    """Inside the block layers multiply in ``precision``, on the device on which the network is."""
    device = next(network.parameters()).device.type
    return torch.autocast(device, precision, enabled=precision != torch.float32)


def _float32(answer: Any) -> Any:
    """A network's answer, a tensor or a sequence of them, for sums that need all digits."""
    return answer.float() if isinstance(answer, Tensor) else [tensor.float() for tensor in answer]


@contextmanager
def replayed(network: nn.Module, chain: Sequence[str], output: Tensor | None) -> Iterator[None]:
    """Inside the block the modules of ``chain`` do nothing, and the last of them answers ``output``."""
    modules = [network.get_submodule(name) for name in chain]
    for module in modules:
        module.forward = lambda x: x
    if modules:
        modules[-1].forward = lambda _: output
    try:
        yield
    finally:
        for module in modules:
            del module.forward  # the class's method shows again


@contextmanager
def watched(network: nn.Module, names: Sequence[str], stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """The outputs of the named modules, filled in by the forward passes made inside the block.

    With ``stop`` a pass ends at the first of them, by raising ``_Stop``.
    """
    outputs: dict[str, Tensor] = {}

    def left(name: str, output: Tensor) -> None:
        outputs[name] = output
        if stop:
            raise _Stop

    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, a, y, name=name: left(name, y)) for name in names
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def modules_before(network: nn.Module, layer: str, example: Tensor) -> list[str]:
    """The leaf modules that ``network(example)`` runs before the named layer, in that order: what ``distil`` may freeze
    if they form a chain."""
    ran: list[str] = []
    leaves = {name: module for name, module in network.named_modules() if not any(module.children())}
    hooks = [m.register_forward_pre_hook(lambda *_, name=name: ran.append(name)) for name, m in leaves.items()]
    try:
        network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return ran[: ran.index(layer)]


class _Stop(Exception):
    """A forward pass has gone far enough."""


def feature_error(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], focus: Tensor | None = None) -> Tensor:
    """Σ over features of ‖student - teacher‖² / ‖teacher‖², positions counted by ``focus`` [n, rows, columns]."""
    errors = []
    for name, wanted in ((name, feature.float()) for name, feature in teacher.items()):
        weights = 1.0 if focus is None else F.adaptive_max_pool2d(focus[:, None], wanted.shape[2:])
        error = (student[name].float() - wanted).square() * weights
        errors.append(error.mean() / (wanted.square() * weights).mean())
    return torch.stack(errors).sum()
