"""A student's way down through weight space: its survivors, packed, with optimizer, running average and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from delib.distillation.fake_quantize import Rounding
from delib.distillation.pruning import Candidate, Cycle, Thinning
from delib.files import atomic_path
from delib.nn.layers import hold, stored

SMALLEST = 0.01  # size at least, as a share of the whole parameter's
WARM_UP = 20  # steps until the learning rate is whole: Adam's first steps are blind


class Descent:
    """The student's way through weight space: optimizer, learning rate, running average, checkpoints.

    ``values`` are the survivors of every moving parameter, packed: at 90% sparsity a tenth of the optimizer's work.
    They are in units of ``sizes``, the root mean square of the weights of the same output: where norms are folded,
    outputs differ in scale by far. All but ``student`` are parameters of ``distil``.
    """

    def __init__(
        self,
        student: nn.Module,
        masks: Mapping[str, Tensor],
        rate: float,
        average: float,
        frozen: Sequence[str],
        horizon: int,
    ) -> None:
        self.student, self.rate, self.average, self.horizon = student, rate, average, horizon
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
        self.optimizer = torch.optim.Adam(self.values, lr=self.rate, betas=(0.9, 1 - 1 / self.horizon), fused=True)
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
            "rounding": rounding.state() if rounding else {},
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
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location=self.values[0].device)
        self.student.load_state_dict(state["student"])
        self.places, self.sizes = state["places"], state["sizes"]
        self._begin()
        self.mean = state["mean"]
        self.optimizer.load_state_dict(state["optimizer"])
        if rounding:
            rounding.resume(state["rounding"])
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
