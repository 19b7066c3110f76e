"""Work that a GPU does over and over, recorded once and replayed: starting kernels can take longer than running them.

A step of YOLOv3-tiny's distillation is a thousand small kernels. Python needs some ten milliseconds to start them one
by one, whatever the batch; replayed as one CUDA graph they take as long as their arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from delib.nn.trace import mapped

WARM_UPS = 3  # runs before a recording, in which libraries choose their kernels and take their memory
# Tensors, in dicts, lists and tuples -> what was measured; leaves its derivatives in the parameters' ``grad``.
Work = Callable[[Any], tuple[Tensor, ...]]


@dataclass(frozen=True)
class _Tape:
    """A recording: the memory that it reads, the memory that it writes answers and gradients to, and what it does."""

    lesson: list[Tensor]
    graph: torch.cuda.CUDAGraph
    answer: tuple[Tensor, ...]
    slopes: list[Tensor | None]


class Recorded:
    """``work`` on a GPU, recorded at the first lesson of every shape and replayed at the others.

    ``parameters`` are those that ``work`` leaves gradients for. It may not look at values in Python (``item``, ``if``),
    and what it reads beside its lesson must stay in the same memory, as weights do that are changed in place. What is
    returned is overwritten by the next call.
    """

    def __init__(self, work: Work, parameters: Sequence[nn.Parameter]) -> None:
        self.work, self.parameters = work, parameters
        self.tapes: dict[tuple[torch.Size, ...], _Tape] = {}

    def __call__(self, lesson: Any) -> tuple[Tensor, ...]:
        given = _tensors(lesson)
        shapes = tuple(tensor.shape for tensor in given)
        if shapes not in self.tapes:
            self.tapes[shapes] = self._record(lesson)
        tape = self.tapes[shapes]
        torch._foreach_copy_(tape.lesson, given)
        tape.graph.replay()
        for parameter, slope in zip(self.parameters, tape.slopes, strict=True):
            parameter.grad = slope
        return tape.answer

    def _record(self, lesson: Any) -> _Tape:
        still = mapped(lesson, torch.clone)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self._forget()
                self.work(still)
        torch.cuda.current_stream().wait_stream(aside)
        self._forget()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            answer = self.work(still)
        return _Tape(_tensors(still), graph, answer, [parameter.grad for parameter in self.parameters])

    def _forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def _tensors(nest: Any) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(nest, found.append)
    return found
