"""Where layers are tried from: from the network's inputs on, or with a horizon from behind what no longer changes.

Without this each of twice as many layers would be twice as far away from the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from delib.evolution.select import Batches, drawn, growing_batches
from delib.nn.hooks import Entered, first_chain, up_to
from delib.nn.layers import weight_layers

# Layers that are tried from the same place on. With fewer, the network would more often be run up to there; with more,
# each would be further away from there.
STRETCH = 16


def entry_chains(network: nn.Module, layers: Sequence[str], example: Tensor) -> dict[str, tuple[str, list[str]]]:
    """By layer the first of its stretch, and the network's first modules that hold neither this one nor a later one.

    These modules form a chain (see ``first_chain``) and are none for the first stretch, and where there is no chain.
    """
    chains: dict[str, tuple[str, list[str]]] = {}
    for first in range(0, len(layers), STRETCH):
        later = set(layers[first:])
        before = [name for name in weight_layers(network) if name not in later]
        chain = _untied(network, first_chain(network, before, example)[0], later) if first else []
        chains |= dict.fromkeys(layers[first : first + STRETCH], (layers[first], chain))
    return chains


def _untied(network: nn.Module, chain: Sequence[str], later: set[str]) -> list[str]:
    """The chain up to the first module that holds a tensor of a later layer under another name."""
    changing = {p.data_ptr() for name in later for p in network.get_submodule(name).parameters()}
    free: list[str] = []
    for name in chain:
        if any(p.data_ptr() in changing for p in network.get_submodule(name).parameters()):
            break
        free.append(name)
    return free


@dataclass
class Entries:
    """The networks that each layer is tried on, and its batches; layers of one stretch share the first batch.

    ``chains`` are those of ``entry_chains``, none where every layer is tried from the inputs on; ``ends`` names where
    each layer's divergence is measured, and ``chance`` gives the stream of a cycle and a layer.
    """

    student: nn.Module
    teacher: nn.Module
    inputs: Tensor
    batch: int
    ends: Mapping[str, str]
    chains: Mapping[str, tuple[str, list[str]]]
    chance: Callable[[int, str], torch.Generator]
    last: tuple[int, str] | None = field(default=None, init=False)
    entered: tuple[Entered, Entered] = field(init=False)

    def at(self, name: str, cycle: int, chance: torch.Generator) -> tuple[nn.Module, Batches]:
        """The student as far as the layer's divergence needs it, and batches for it, drawn by ``chance``."""
        first, chain = self.chains.get(name, (name, []))
        student, teacher = self._entered(cycle, first, chain) if chain else (self.student, self.teacher)
        part = student.inputs if isinstance(student, Entered) else None
        network, goal = (up_to(each, self.ends[name]) for each in (student, teacher))
        return network, growing_batches(self.inputs, goal, self.batch, chance, part)

    @torch.no_grad()
    def _entered(self, cycle: int, first: str, chain: list[str]) -> tuple[Entered, Entered]:
        if self.last != (cycle, first):
            part = drawn(self.inputs, self.batch, self.chance(cycle, first))
            self.entered = Entered(self.student, chain, part), Entered(self.teacher, chain, part)
            self.last = cycle, first
        return self.entered
