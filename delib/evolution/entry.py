"""Where layers are tried from: from the network's inputs on, or with a horizon from behind what no longer changes.

Without this a network of twice as many layers would take four times as long: each layer twice as deep, and twice as
many of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from delib.nn.hooks import Entered, first_chain
from delib.nn.layers import weight_layers

# Layers that are tried from the same place on. With fewer, the network would more often be run up to there; with more,
# each would be further away from there.
STRETCH = 16


def entry_chains(network: nn.Module, layers: Sequence[str], example: Tensor) -> dict[str, list[str]]:
    """By layer the network's first modules that hold neither it, nor one of its stretch, nor a later one of ``layers``.

    They form a chain (see ``first_chain``) and are empty for the first stretch, and where there is no such chain.
    """
    chains: dict[str, list[str]] = {}
    for first in range(0, len(layers), STRETCH):
        later = set(layers[first:])
        before = [name for name in weight_layers(network) if name not in later]
        chain = _untied(network, first_chain(network, before, example)[0], later) if first else []
        chains |= dict.fromkeys(layers[first : first + STRETCH], chain)
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


class Entry(NamedTuple):
    """Student and teacher as a layer is tried on them, and the inputs for which both go on from what is known; None if
    they start from any inputs."""

    student: nn.Module
    teacher: nn.Module
    inputs: Tensor | None


@dataclass
class Entries:
    """The entry of each layer in each cycle; layers of one stretch share it, and with it the first batch.

    ``draw`` gives for a cycle and a layer the batch that its stretch is tried on.
    """

    student: nn.Module
    teacher: nn.Module
    chains: dict[str, list[str]]
    draw: Callable[[int, str], Tensor]
    last: tuple[int, list[str], Entry] | None = field(default=None, init=False)

    @torch.no_grad()
    def at(self, name: str, cycle: int) -> Entry:
        chain = self.chains.get(name, [])
        if not chain:
            return Entry(self.student, self.teacher, None)
        if self.last is None or self.last[:2] != (cycle, chain):
            inputs = self.draw(cycle, chain[-1])
            student, teacher = (Entered(network, chain, inputs) for network in (self.student, self.teacher))
            self.last = (cycle, chain, Entry(student, teacher, inputs))
        return self.last[2]
