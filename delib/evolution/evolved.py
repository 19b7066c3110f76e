"""What an evolution leaves: the student, its weights' generations of death, and every state that it passed through."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from delib.nn.layers import copied, own_tensors, put_tensors, weight_keys, weight_of

State = dict[str, Tensor]
ALIVE = " alive"  # behind a weight's key: the key of its packed mask in a state
HISTORY = ["cycle", "layer", "divergence", "population_mean", "population_spread", "sparsity"]


@dataclass
class Evolved:
    """A student, and how it came to be.

    ``generations`` maps each evolved layer's name to the generation of death of its weights (in the weight's shape;
    0 = survivor), as uint8, from cycle 256 on as int16. ``rows`` has an entry for each cycle and layer (see
    ``history``). ``states`` holds what the network was at cycle 0 (the teacher) and after each cycle that changed
    survivors: its state dict, the weights of evolved layers reduced to their survivors, and where those are (packed
    bits); at cycle 0 these are the teacher's own tensors, not copies. ``sparsities`` is the overall sparsity, over all
    evolved layers, after each cycle, beginning with cycle 0; ``cycle`` is the last one.
    """

    student: nn.Module
    generations: dict[str, Tensor]
    states: dict[int, State] = field(default_factory=dict)
    rows: list[dict[str, float | int | str]] = field(default_factory=list)
    sparsities: list[float] = field(default_factory=lambda: [0.0])
    cycle: int = 0

    @classmethod
    def start(cls, teacher: nn.Module, layers: Iterable[str]) -> Evolved:
        """Cycle 0: the student is a copy of the teacher and every weight of the named layers is a survivor."""
        student = copied(teacher)
        weights = {name: weight_of(student.get_submodule(name)) for name in layers}
        evolved = cls(student, {name: torch.zeros_like(w, dtype=torch.uint8) for name, w in weights.items()})
        evolved.states[0] = own_tensors(teacher)
        return evolved

    @property
    def history(self) -> pd.DataFrame:
        """A row for each cycle and layer: cycle, layer, divergence (of the chosen set), population_mean and
        population_spread (standard deviation) of the divergences, and the layer's sparsity afterwards."""
        return pd.DataFrame(self.rows, columns=HISTORY)

    @property
    def masks(self) -> dict[str, Tensor]:
        """True where a weight survives, by layer."""
        return {name: generation == 0 for name, generation in self.generations.items()}

    def zeros(self, layer: str) -> int:
        """Number of weights of a layer that were zeroed."""
        return int((self.generations[layer] > 0).sum())

    def survivors(self, layer: str) -> int:
        """Number of weights of a layer that are alive."""
        return self.generations[layer].numel() - self.zeros(layer)

    def missing(self, goals: Mapping[str, int]) -> dict[str, int]:
        """How many zeros each layer still lacks to its goal; layers that have met theirs are left out, and so are those
        that the present cycle has dealt with."""
        done = {row["layer"] for row in self.rows if self._in_cycle() and row["cycle"] == self.cycle}
        lacking = {name: goal - self.zeros(name) for name, goal in goals.items() if name not in done}
        return {name: zeros for name, zeros in lacking.items() if zeros > 0}

    def cycle_at(self, sparsity: float) -> int:
        """The last cycle whose overall sparsity does not exceed ``sparsity``. Raises ValueError beyond the last."""
        if not 0 <= sparsity <= self.sparsities[-1] + 1e-9:
            raise ValueError(
                f"sparsity {sparsity} was not passed through; this evolution went from 0 to {self.sparsities[-1]:.4f}"
            )
        return int(np.searchsorted(self.sparsities, sparsity + 1e-9, side="right")) - 1

    def at(self, sparsity: float) -> nn.Module:
        """A copy of the student as it was at the last cycle with at most this overall sparsity."""
        return self.at_cycle(self.cycle_at(sparsity))

    def at_cycle(self, cycle: int) -> nn.Module:
        """A copy of the student as it was at the end of a cycle: its latest state kept, less what died since."""
        network = copy.deepcopy(self.student)
        keys, kept = weight_keys(network), max(c for c in self.states if c <= cycle)
        state = {key: tensor for key, tensor in self.states[kept].items() if not key.endswith(ALIVE)}
        for name, generation in self.generations.items():
            key = keys[name]
            state[key] = _whole(self.states[kept], key, generation)
            state[key][(generation > kept) & (generation <= cycle)] = 0
        put_tensors(network, state)
        return network

    def died(self, layer: str, sparsity: float) -> Tensor:
        """The generations of death of a layer's weights as far as this overall sparsity: 0 for those then alive."""
        generation = self.generations[layer]
        return torch.where(generation <= self.cycle_at(sparsity), generation, 0)

    def begin_cycle(self, goals: Mapping[str, int]) -> bool:
        """Count one cycle more, if layers lack zeros to their goals; False if none does. A cycle that has not ended,
        as a checkpoint may leave it, goes on instead."""
        if self._in_cycle():
            return True
        if not self.missing(goals):
            return False
        self.cycle += 1
        if self.cycle > torch.iinfo(torch.uint8).max:
            self.generations = {name: generation.to(torch.int16) for name, generation in self.generations.items()}
        return True

    def _in_cycle(self) -> bool:
        return len(self.sparsities) <= self.cycle

    def zero(self, layer: str, chosen: Tensor, divergences: Tensor) -> None:
        """Zero the chosen candidate set (flat indices) for good; its divergence is the least of its population's."""
        weight_of(self.student.get_submodule(layer)).view(-1)[chosen] = 0
        self.generations[layer].view(-1)[chosen] = self.cycle
        mean, spread = float(divergences.mean()), float(divergences.std(correction=0))
        sparsity = self.zeros(layer) / self.generations[layer].numel()
        row = (self.cycle, layer, float(divergences.min()), mean, spread, sparsity)
        self.rows.append(dict(zip(HISTORY, row, strict=True)))

    def exchange(self, layer: str, swap: tuple[Tensor, Tensor] | None) -> None:
        """Note which dead weights were born again and which survivors died for them (flat indices), if any."""
        if swap is not None:
            born, dying = swap
            self.generations[layer].view(-1)[born] = 0
            self.generations[layer].view(-1)[dying] = self.cycle

    def end_cycle(self, changed: bool) -> None:
        """Note the sparsity that the cycle reached, and the student's state if its survivors have ``changed``."""
        total = sum(generation.numel() for generation in self.generations.values())
        self.sparsities.append(sum(map(self.zeros, self.generations)) / total)
        if changed:
            self._keep_state()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; cycle 0 is the teacher's own, and is left out."""
        plain = {"rows": self.rows, "sparsities": self.sparsities, "cycle": self.cycle}
        kept = {cycle: state for cycle, state in self.states.items() if cycle}
        return {"student": own_tensors(self.student), "generations": self.generations, "states": kept, **plain}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state`` of the same teacher's evolution, whose tensors may be elsewhere."""
        put_tensors(self.student, state["student"])
        self.generations = {name: g.to(self.generations[name].device) for name, g in state["generations"].items()}
        own = own_tensors(self.student)
        for cycle, kept in state["states"].items():
            self.states[cycle] = {k: t if k.endswith(ALIVE) else t.to(own[k].device) for k, t in kept.items()}
        self.rows, self.sparsities, self.cycle = list(state["rows"]), list(state["sparsities"]), state["cycle"]

    def _keep_state(self) -> None:
        state, keys = own_tensors(self.student), weight_keys(self.student)
        masks = {keys[name]: mask for name, mask in self.masks.items()}
        self.states[self.cycle] = {k: t[masks[k]] if k in masks else t.clone() for k, t in state.items()}
        for key, mask in masks.items():
            self.states[self.cycle][key + ALIVE] = torch.from_numpy(np.packbits(mask.cpu().numpy()))


def _whole(state: State, key: str, like: Tensor) -> Tensor:
    """A copy of a weight in a state, in the shape of ``like``; zero where it was not alive then."""
    if key + ALIVE not in state:
        return state[key].clone()
    bits = np.unpackbits(state[key + ALIVE].numpy(), count=like.numel()).astype(bool)
    weight = torch.zeros(like.shape, dtype=state[key].dtype, device=like.device)
    weight[torch.from_numpy(bits).view(like.shape).to(like.device)] = state[key]
    return weight
