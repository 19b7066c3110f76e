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
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from delib.assess import Divergence
from delib.records import atomic_path, in_batch
from delib.recover import hold
from delib.rounding import Rounding, stored
from delib.thin import Candidate, Cycle, Thinning

# Count, generator -> that many inputs [count, ...].
Source = Callable[[int, torch.Generator], Tensor]
SMALLEST = 0.01  # size at least, as a share of the whole parameter's
WARM_UP = 20  # steps until the learning rate is whole: Adam's first steps are blind


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
    rounding: Rounding | None = None,
    thinning: Thinning | None = None,
    frozen: Sequence[str] = (),
    uses: int = 1,
    memory: int = 100,
    precision: torch.dtype = torch.float32,
    minutes: float = math.inf,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> list[tuple[float, float]]:
    """Train ``student`` in place towards ``teacher``; returns each step's (divergence, feature error).

    The loss is ``divergence`` of the outputs plus ``feature_weight`` times the relative squared errors of the outputs
    of the modules named in ``features``, summed. ``focus`` says, from the teacher's outputs, how much the positions of
    features [n, channels, rows, columns] count: [n, rows, columns] at any resolution; all alike by default. Adam moves
    each weight by ``rate`` of the root mean square of its output's weights a step, falling to zero along a half cosine.
    The student ends as the exponential average of its path (decay ``average``).

    Weights outside ``masks`` are zeroed at the start and stay zero: the optimizer only knows the others. With
    ``rounding`` every pass sees rounded weights, while the gradients move the unrounded ones (straight-through:
    Courbariaux et al. 2015, algorithm 1). With ``thinning`` survivors grow fewer on the way; ``masks`` then say where
    it begins, and the student's zeros where it ended. Raises ValueError if it is to be thinned while it is rounded.

    Modules named in ``frozen`` do not move: the student's first ones, a chain in running order. With ``uses`` above 1
    only every ``uses``-th batch is new; the others are drawn from the last ``memory`` batches, for which the teacher's
    answers and what the frozen modules deliver are remembered: half the work of a step, or less.
    The networks multiply in ``precision`` (see ``fastest_precision``); weights, losses and moves stay float32.
    Where ``minutes`` are too few for ``steps``, the rate falls and the work ends with the time instead, at some cost in
    reproducibility. With ``checkpoint`` the work goes on from that file if it exists, and is saved there now and then.
    """
    if thinning and rounding:
        raise ValueError("levels are placed for weights that stay: thin the student first, round it in a later stage")
    path = _Path(student, masks, rate, average, frozen)
    losses = path.resume(checkpoint, rounding, thinning)
    teacher.eval()
    student.eval()  # statistics of norms are the teacher's
    start, used = time.perf_counter(), 0.0
    lessons: deque[_Lesson] = deque(maxlen=memory)
    compare = partial(_compare, student, divergence, features, frozen, precision)
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
            loss, error = compare(lesson)
            (loss + feature_weight * error).backward()
        path.step(step, done)
        path.learn()
        losses.append((float(loss.detach()), float(error.detach())))
        bar.set_postfix(divergence=f"{losses[-1][0]:.3f}", features=f"{losses[-1][1]:.3f}", refresh=False)
        if checkpoint and (step % 50 == 49 or step == steps - 1):
            path.save(checkpoint, losses, rounding, thinning)
        used = (time.perf_counter() - start) / (60 * minutes)
        if used >= 1:
            break
    path.finish()
    return losses


@dataclass
class _Lesson:
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


class _Path:
    """The student's way through weight space: optimizer, learning rate, running average, checkpoints.

    ``values`` are the survivors of every moving parameter, packed: at 90% sparsity a tenth of the optimizer's work.
    They are in units of ``sizes``, the root mean square of the weights of the same output: where norms are folded,
    outputs differ in scale by far.
    """

    def __init__(
        self,
        student: nn.Module,
        masks: Mapping[str, Tensor],
        rate: float,
        average: float,
        frozen: Sequence[str],
    ) -> None:
        self.student, self.rate, self.average = student, rate, average
        still = tuple(f"{name}." for name in frozen)
        self.moving: list[nn.Parameter] = []
        self.places: list[Tensor] = []  # of the values among a parameter's, in the order of memory
        self.layers: dict[str, int] = {}  # those with a mask: which of the moving parameters is their weight
        hold(student, masks)
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(not name.startswith(still))
            if parameter.requires_grad:
                layer, _, kind = name.rpartition(".")
                alive = masks.get(layer) if kind == "weight" else None
                if alive is None:
                    alive = torch.ones_like(parameter, dtype=torch.bool)
                else:
                    self.layers[layer] = len(self.moving)
                self.places.append(stored(torch.empty_like(parameter, dtype=torch.bool).copy_(alive)).nonzero()[:, 0])
                self.moving.append(parameter)
        self.sizes = [_sizes(p.detach())[place] for p, place in zip(self.moving, self.places, strict=True)]
        self.count = 0
        self._begin()

    def _begin(self) -> None:
        self.values = self._packed()
        self.optimizer = torch.optim.Adam(self.values, lr=self.rate, betas=(0.9, 0.99), fused=True)
        self.mean = [value.clone() for value in self.values]

    def _packed(self) -> list[Tensor]:
        members = zip(self.moving, self.places, self.sizes, strict=True)
        return [stored(p.detach())[place] / size for p, place, size in members]

    def _put(self, values: list[Tensor]) -> None:
        for parameter, place, size, value in zip(self.moving, self.places, self.sizes, values, strict=True):
            stored(parameter.detach())[place] = value * size

    def step(self, step: int, done: float) -> None:
        """One move along the gradients; ``done`` 0..1 is how much of the whole way lies behind."""
        share = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
        self.optimizer.param_groups[0]["lr"] = self.rate * share
        for value, parameter, place, size in zip(self.values, self.moving, self.places, self.sizes, strict=True):
            value.grad = None if parameter.grad is None else stored(parameter.grad)[place] * size
            parameter.grad = None
        self.optimizer.step()
        self._put(self.values)

    def learn(self) -> None:
        """Take the present place into the average, whose first members count alike."""
        self.count += 1
        weight = max(1 - self.average, 1 / self.count)
        torch._foreach_lerp_(self.mean, self.values, weight)

    @property
    def survivors(self) -> int:
        """How many weights of layers with a mask are left."""
        return sum(len(self.values[i]) for i in self.layers.values())

    @torch.no_grad()
    def thin(self, thinning: Thinning, step: int, done: float, compare: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Let one of the proposed candidate sets go: that after which ``compare`` tells of the least divergence."""
        values = {name: self.values[i] for name, i in self.layers.items()}
        slopes = {name: self.optimizer.state[value]["exp_avg_sq"] for name, value in values.items()}
        keep, divergences = thinning.fewer(done, self.survivors), {}
        candidates = thinning.candidates(values, slopes, keep)
        for name, candidate in candidates.items():
            self._zero(candidate)
            divergences[name] = float(compare()[0])
            self._put(self.values)
        self._let_go(candidates[thinning.select(step, keep, divergences)])

    def _zero(self, candidate: Candidate) -> None:
        for name, alive in candidate.items():
            stored(self.moving[self.layers[name]].detach())[self.places[self.layers[name]][~alive]] = 0

    def _let_go(self, candidate: Candidate) -> None:
        self._zero(candidate)
        for name, alive in candidate.items():
            i = self.layers[name]
            old, self.values[i] = self.values[i], self.values[i][alive]
            for several in (self.places, self.sizes, self.mean):
                several[i] = several[i][alive]
            state = self.optimizer.state.pop(old)
            self.optimizer.state[self.values[i]] = {k: v[alive] if v.dim() else v for k, v in state.items()}
            self.optimizer.param_groups[0]["params"][i] = self.values[i]

    @torch.no_grad()
    def finish(self) -> None:
        """Go to the average."""
        self._put(self.mean)
        for parameter in self.student.parameters():
            parameter.requires_grad_(True)

    def save(
        self, file: Path, losses: list[tuple[float, float]], rounding: Rounding | None, thinning: Thinning | None
    ) -> None:
        state = {
            "cycles": [asdict(cycle) for cycle in thinning.cycles] if thinning else [],
            "begin": thinning.begin if thinning else 0,
            "places": self.places,
            "levels": {name: torch.from_numpy(levels) for name, levels in rounding.levels.items()} if rounding else {},
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "mean": self.mean,
            "sizes": self.sizes,
            "losses": losses,
        }
        with atomic_path(file) as temporary:
            torch.save(state, temporary)

    def resume(
        self, file: Path | None, rounding: Rounding | None, thinning: Thinning | None
    ) -> list[tuple[float, float]]:
        """Go on from a file, if it is there. Returns the losses so far."""
        if file is None or not file.is_file():
            return []
        state: dict[str, Any] = torch.load(file, weights_only=True)
        self.student.load_state_dict(state["student"])
        self.places, self.sizes = state["places"], state["sizes"]
        self._begin()
        self.mean = state["mean"]
        self.optimizer.load_state_dict(state["optimizer"])
        if rounding:
            rounding.levels = {name: levels.numpy() for name, levels in state["levels"].items()}
        if thinning:
            thinning.cycles, thinning.begin = [Cycle(**cycle) for cycle in state["cycles"]], state["begin"]
        self.count = len(state["losses"])
        return list(state["losses"])


def _sizes(parameter: Tensor) -> Tensor:
    """For each value of a parameter, in the order of memory, the root mean square of its output's values, zeros not
    counted, or of all values for a bias; what is all zero moves as small values would."""
    rows = parameter.flatten(1) if parameter.dim() > 1 else parameter[None]
    squares, counts = rows.square().sum(1), (rows != 0).sum(1)
    whole = (squares.sum() / counts.sum().clamp_min(1)).sqrt()
    sizes = (squares / counts.clamp_min(1)).sqrt().clamp_min(SMALLEST * whole if whole > 0 else SMALLEST)
    shape = (-1, *[1] * (parameter.dim() - 1)) if parameter.dim() > 1 else (1,)
    return stored(torch.empty_like(parameter).copy_(sizes.view(shape)))
