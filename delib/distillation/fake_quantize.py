"""Fake quantisation: forward passes see weights at their levels while training moves the weights themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from delib.coding.container import LevelTensor
from delib.coding.entropy import Rated, as_tensor, cuts_of, entropy_constrained
from delib.coding.quantize import PLACEMENTS, as_scales, quantize_weight, with_levels
from delib.distillation.recipe import softened
from delib.nn.checkpoint import from_arrays, to_arrays
from delib.nn.divergence import Divergence
from delib.nn.hooks import never_called
from delib.nn.layers import stored, weight_layers, weights_and_biases
from delib.nn.sensitivity import curvatures

# Of a student's divergence, what one bit more for each survivor is worth. Prices that lost a point at most on LeNets, a
# ResNet and a VGG-like network were 0.12 to 0.69 of it: the careful end.
WORTH = 0.125


class _Code(NamedTuple):
    """A layer's levels in rising order, the values between them at which the level changes, its outputs' scales."""

    levels: NDArray[np.float32]
    cuts: NDArray[np.float64]
    scales: NDArray[np.float16] | None


class _Grid(NamedTuple):
    """A layer's survivors [n] where they lie in memory, their outputs' scales [n], the levels, and the cuts between
    them; good for one ``layout`` of the memory."""

    layout: Any
    places: Tensor
    scales: Tensor
    codebook: Tensor
    cuts: Tensor


@dataclass
class FakeQuantization:
    """For ``distill(during=...)``: every pass sees the weights that ``quantize`` with the same ``bits``, ``method`` and
    ``scaled`` would store; gradients pass straight through to the unquantised ones (Courbariaux, Bengio and David 2015,
    algorithm 1).

    Levels and scales are fixed when first applied, or given in ``levels`` by layer; each pass takes the nearest levels.
    The trained student must be stored with these, which ``tensors`` returns: with levels placed anew its training would
    be lost. Layers in ``fixed`` are left as they are, and so are biases unless they are to have levels as well
    (``biases``), named as in ``nn.weights_and_biases``: in files of a few kilobytes they are a tenth to a fifth.
    """

    bits: int | Mapping[str, int] = 4
    method: str = "kmeans"
    scaled: bool = True
    biases: bool = False
    fixed: Collection[str] = ()
    levels: Mapping[str, LevelTensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._codes = {name: _nearest(tensor.codebook, tensor.scales) for name, tensor in self.levels.items()}
        self._grids: dict[str, _Grid] = {}

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Inside the block the weight layers hold quantised weights, afterwards their own again."""
        grids = {name: (stored(weight), self._grid(name, weight)) for name, weight in self._weights(network).items()}
        own = {name: memory[grid.places] for name, (memory, grid) in grids.items()}
        for name, (memory, grid) in grids.items():
            nearest = torch.bucketize((own[name] / grid.scales).double(), grid.cuts)
            memory[grid.places] = grid.codebook[nearest] * grid.scales * (own[name] != 0)
        try:
            yield
        finally:
            for name, (memory, grid) in grids.items():
                memory[grid.places] = own[name]

    def tensors(self, network: nn.Module) -> dict[str, LevelTensor]:
        """Each layer's weight as a pass sees it: what ``layerwise.finalize`` stores."""
        found = {}
        for name, weight in self._weights(network).items():
            code = self._code(name, weight)
            found[name] = with_levels(weight.cpu().numpy(), code.levels, code.scales)
        return found

    def _weights(self, network: nn.Module) -> dict[str, Tensor]:
        held = weights_and_biases(network)
        return {name: w for name, w in held.items() if name not in self.fixed and (self.biases or w.dim() > 1)}

    def _code(self, name: str, weight: Tensor) -> _Code:
        """A layer's levels and scales, placed when first asked for."""
        if name not in self._codes:
            self._codes[name] = self._placed(name, weight)
        return self._codes[name]

    def _placed(self, name: str, weight: Tensor) -> _Code:
        bits = self.bits if isinstance(self.bits, int) else self.bits[name]
        scaled = self.scaled and weight.dim() > 1
        placed = quantize_weight(weight.cpu().numpy(), bits, PLACEMENTS[self.method], scaled=scaled)
        return _nearest(placed.codebook, placed.scales)

    def _grid(self, name: str, weight: Tensor) -> _Grid:
        layout = weight.stride(), weight.device
        if name not in self._grids or self._grids[name].layout != layout:
            code = self._code(name, weight)
            codebook, memory = torch.from_numpy(code.levels).to(weight.device), stored(weight)
            places = memory.nonzero()[:, 0] if weight.dim() > 1 else torch.arange(len(memory), device=weight.device)
            rows = torch.from_numpy(np.ones(len(weight)) if code.scales is None else code.scales).to(weight)
            spread = torch.empty_like(weight).copy_(rows.view(-1, *[1] * (weight.dim() - 1)))
            cuts = torch.from_numpy(code.cuts).to(weight.device)
            self._grids[name] = _Grid(layout, places, stored(spread)[places], codebook, cuts)
        return self._grids[name]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: levels, cuts and scales by layer."""
        return {name: from_arrays(code) for name, code in self._codes.items()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state``."""
        for name, parts in state.items():
            self._codes[name] = _Code(*to_arrays(parts))


def _rated(rated: Rated, price: float, scales: NDArray[np.float16] | None) -> _Code:
    """Every value takes its cheapest level."""
    levels, cuts = cuts_of(rated, price)
    return _Code(levels.astype(np.float32), cuts, scales)


def _block(alive: NDArray[np.bool_]) -> tuple[NDArray[np.intp], ...]:
    """The rows and columns of a matrix in which something survives, as indices: on all others the file spends
    next to nothing. All of them where nothing does."""
    counted = alive if alive.any() else ~alive
    return np.ix_(np.flatnonzero(counted.any(1)), np.flatnonzero(counted.any(0)))


def _nearest(levels: NDArray[np.float32], scales: NDArray[np.float16] | None) -> _Code:
    """Every value takes its nearest level."""
    return _Code(levels, (levels[1:].astype(np.float64) + levels[:-1]) / 2, scales)


@dataclass
class RateAwareQuantization(FakeQuantization):
    """``FakeQuantization`` with entropy-constrained levels: what a pass sees is the cheapest of error and bits.

    Zero is a level like any other, so survivors may die and come back while the student is trained. Levels and rates
    are placed (see ``coding.entropy_constrained``) at the first pass, unless given in ``levels`` by layer, and again at
    each in ``again``, for the weights as they are by then; the passes after the last settle on them. A bit is worth
    ``multiplier`` of the divergence, of which ``curvatures`` ([rows] by name; see ``nn.curvatures``) are the second
    derivatives by a weight of each output; without these, of the weights' squared error. Rows and columns of a weight
    in which nothing survives do not count: the file tells them apart. With ``scaled``, steps have equal effect in all
    outputs of a layer. At most 2**``bits`` levels beside zero.
    """

    multiplier: float = 1e-6
    curvatures: Mapping[str, Tensor] = field(default_factory=dict)
    again: Collection[int] = ()
    passes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._codes = {name: self._given(name, tensor) for name, tensor in self.levels.items()}

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Inside the block the weight layers hold quantised weights, afterwards their own again."""
        if self.passes in self.again:
            self._codes.clear()
            self._grids.clear()
        self.passes += 1
        with super().applied(network):
            yield

    def _placed(self, name: str, weight: Tensor) -> _Code:
        bits = self.bits if isinstance(self.bits, int) else self.bits[name]
        bend = self._bend(name, len(weight))
        scales = as_scales(bend**-0.5) if self.scaled and weight.dim() > 1 else None
        spread = np.ones(len(weight)) if scales is None else scales.astype(np.float64)
        values = weight.double().cpu().numpy().reshape(len(weight), -1) / spread[:, None]
        block = _block(values != 0)
        price = self.multiplier / float((bend / 2 * spread**2)[block[0][:, 0]].mean())
        return _rated(entropy_constrained(values[block], price, 2**bits + 1), price, scales)

    def _given(self, name: str, tensor: LevelTensor) -> _Code:
        """The levels of a weight that has some, with the rates that its indices have."""
        bend = self._bend(name, len(tensor.mask))
        spread = np.ones(len(bend)) if tensor.scales is None else tensor.scales.astype(np.float64)
        mask = tensor.mask.reshape(len(bend), -1)
        block = _block(mask)
        levels, own = np.unique(np.append(tensor.codebook, np.float32(0)), return_inverse=True)
        taken = np.append(np.bincount(tensor.indices, minlength=len(own) - 1), (~mask[block]).sum())
        shares = np.maximum(np.bincount(own, taken), 0.5) / mask[block].size
        rated = Rated(levels.astype(np.float64), -np.log2(shares))
        return _rated(rated, self.multiplier / float((bend / 2 * spread**2)[block[0][:, 0]].mean()), tensor.scales)

    def _bend(self, name: str, rows: int) -> NDArray[np.float64]:
        given = self.curvatures.get(name, torch.full((rows,), 2.0))
        return np.maximum(given.double().cpu().numpy(), np.finfo(np.float32).tiny)

    def tensors(self, network: nn.Module) -> dict[str, LevelTensor]:
        """Each layer's weight as a pass sees it: what ``layerwise.finalize`` stores."""
        found = {}
        for name, weight in self._weights(network).items():
            levels, cuts, scales = self._code(name, weight)
            spread = np.ones(len(weight), np.float16) if scales is None else scales
            rows = torch.from_numpy(spread).to(weight).view(-1, *[1] * (weight.dim() - 1))
            nearest = torch.bucketize((weight / rows).double().contiguous(), torch.from_numpy(cuts).to(weight.device))
            nearest[weight == 0] = int(np.flatnonzero(levels == 0)[0])
            found[name] = as_tensor(nearest.cpu().numpy(), levels, scales)
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: the codes, and how many passes there were."""
        return {"codes": super().state(), "passes": self.passes}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state``."""
        super().resume(state["codes"])
        self.passes = state["passes"]


@torch.no_grad()
def rate_aware(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Tensor,
    bits: int = 4,
    *,
    divergence: Divergence = softened,
    multiplier: float | None = None,
    biases: bool = False,
) -> RateAwareQuantization:
    """Levels by rates for a sparse student, whose curvatures are measured on ``inputs`` [n, ...], some hundreds.

    Without a ``multiplier``, one bit more for every survivor is worth ``WORTH`` of the student's ``divergence`` from
    its ``teacher`` as it is. All outputs of a layer share its levels: scales of their own gain less than they take.
    Layers that the student never calls are left as they are.
    """
    layers = weight_layers(student)
    fixed = never_called(student, layers, inputs[:1])
    fixed += [f"{name}.bias" for name in fixed]
    held = {n: w for n, w in weights_and_biases(student).items() if n not in fixed and (biases or w.dim() > 1)}
    bends = curvatures(student, held, inputs, divergence)
    if multiplier is None:
        parts = inputs.split(32)
        gap = sum(float(divergence(student(part), teacher(part))) * len(part) for part in parts) / len(inputs)
        survivors = sum(int(weight.count_nonzero()) for weight in held.values() if weight.dim() > 1)
        multiplier = max(WORTH * gap / max(survivors, 1), torch.finfo(torch.float32).tiny)
    return RateAwareQuantization(
        bits, multiplier=multiplier, curvatures=bends, scaled=False, biases=biases, fixed=fixed
    )
