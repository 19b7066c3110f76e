"""How long and how fast a student is trained (``Recipe``), and what is compared with its teacher (``Objective``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from delib.nn.divergence import Divergence, fitting


def softened(student: Any, teacher: Any) -> Tensor:
    """``fitting``, logits softened by a temperature of 2, at which students are usually distilled (Hinton, Vinyals and
    Dean 2015, section 2)."""
    return fitting(student, teacher, 2.0)


@dataclass(frozen=True)
class Recipe:
    """How a student is trained; the defaults suit a short recovery of a small classifier.

    The rate is relative to the root mean square of an output's weights, which differs by orders of magnitude where
    batch norms are folded; it rises over the first steps and falls to zero along a half cosine. With ``uses`` above 1
    only every ``uses``-th batch is new; the others are drawn from the last ``memory`` batches, of which the teacher's
    outputs and those of the frozen modules are remembered. Where ``minutes`` are too few for the steps, the rate falls
    and pruning proceeds with the time instead, and results depend on the machine. Raises ValueError out of range.
    """

    steps: int = 100  # 0..: steps of Adam
    batch: int = 128  # 1..: inputs per step
    rate: float = 0.04  # 0..: learning rate, relative to an output's weights
    average: float = 0.98  # 0..<1: decay of the average of the weights with which the student ends; 0: the last weights
    horizon: int = 100  # 1..: steps that Adam's mean squared gradients reach back; for gradual pruning several hundred
    uses: int = 1  # 1..: times that a batch is used, on average
    memory: int = 100  # 1..: batches that are remembered
    minutes: float = math.inf  # 0<..: time limit

    def __post_init__(self) -> None:
        least = {"steps": 0, "batch": 1, "rate": 0, "average": 0, "horizon": 1, "uses": 1, "memory": 1, "minutes": 0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.average >= 1:
            raise ValueError(f"average must be below 1, got {self.average}")


@dataclass(frozen=True)
class Objective:
    """What is minimised: ``divergence`` of the outputs + ``feature_weight`` · ``feature_error`` of the ``features``.

    ``features`` names modules whose outputs are compared; ``position_weights`` makes of the teacher's output the
    weights of their positions [n, rows, columns], at any resolution, by default all alike. Modules in ``frozen`` are
    not trained: the student's first ones, a chain in running order (see ``first_chain``). Layers multiply in
    ``precision`` (see ``fastest_precision``); weights, losses and updates are float32.
    """

    divergence: Divergence = softened
    features: Sequence[str] = ()
    feature_weight: float = 1.0
    position_weights: Callable[[Any], Tensor] | None = None
    frozen: Sequence[str] = ()
    precision: torch.dtype = torch.float32
