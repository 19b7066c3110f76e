"""Recovery: the teacher distils the student's survivors back into shape while the dead weights stay dead."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from delib.assess import Divergence, kl
from delib.networks import channels_last, weight_of


class Recovery(Protocol):
    """Anything that improves ``student`` in place without reviving a weight outside ``masks`` (True = survivor)."""

    def __call__(self, student: nn.Module, teacher: nn.Module, masks: Mapping[str, Tensor], seed: int) -> None: ...


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


def hold(student: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero every weight outside the masks, in place."""
    for name, mask in masks.items():
        weight_of(student.get_submodule(name)).mul_(mask)
