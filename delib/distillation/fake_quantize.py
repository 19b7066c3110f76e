"""Fake quantisation: forward passes see weights at their levels while training moves the weights themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from delib.coding.container import LevelTensor
from delib.coding.quantize import PLACEMENTS, quantize_weight, with_levels
from delib.nn.layers import stored, weight_layers, weight_of


class _Grid(NamedTuple):
    """A layer's survivors [n] where they lie in memory, their outputs' scales [n], the levels, and the middles between
    levels; good for one ``layout`` of the memory."""

    layout: Any
    places: Tensor
    scales: Tensor
    codebook: Tensor
    middles: Tensor


@dataclass
class FakeQuantization:
    """For ``distill(during=...)``: every pass sees the weights that ``quantize`` with the same ``bits``, ``method`` and
    ``scaled`` would store; gradients pass straight through to the unquantised ones (Courbariaux, Bengio and David 2015,
    algorithm 1).

    Levels and scales are fixed when first applied, or given in ``levels`` by layer; each pass takes the nearest levels.
    The trained student must be stored with these, which ``tensors`` returns: with levels placed anew its training would
    be lost. Layers in ``fixed`` are left as they are.
    """

    bits: int | Mapping[str, int] = 4
    method: str = "kmeans"
    scaled: bool = True
    fixed: Collection[str] = ()
    levels: Mapping[str, LevelTensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._codes = {name: (tensor.codebook, tensor.scales) for name, tensor in self.levels.items()}
        self._grids: dict[str, _Grid] = {}

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Inside the block the weight layers hold quantised weights, afterwards their own again."""
        grids = {name: (stored(weight), self._grid(name, weight)) for name, weight in self._weights(network).items()}
        own = {name: memory[grid.places] for name, (memory, grid) in grids.items()}
        for name, (memory, grid) in grids.items():
            nearest = torch.bucketize((own[name] / grid.scales).double(), grid.middles)
            memory[grid.places] = grid.codebook[nearest] * grid.scales
        try:
            yield
        finally:
            for name, (memory, grid) in grids.items():
                memory[grid.places] = own[name]

    def tensors(self, network: nn.Module) -> dict[str, LevelTensor]:
        """Each layer's weight as a pass sees it: what ``layerwise.finalize`` stores."""
        weights = self._weights(network).items()
        return {name: with_levels(weight.cpu().numpy(), *self._code(name, weight)) for name, weight in weights}

    def _weights(self, network: nn.Module) -> dict[str, Tensor]:
        return {name: weight_of(layer) for name, layer in weight_layers(network).items() if name not in self.fixed}

    def _code(self, name: str, weight: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """A layer's levels and scales, placed when first asked for."""
        if name not in self._codes:
            bits = self.bits if isinstance(self.bits, int) else self.bits[name]
            placed = quantize_weight(weight.cpu().numpy(), bits, PLACEMENTS[self.method], scaled=self.scaled)
            self._codes[name] = placed.codebook, placed.scales
        return self._codes[name]

    def _grid(self, name: str, weight: Tensor) -> _Grid:
        layout = weight.stride(), weight.device
        if name not in self._grids or self._grids[name].layout != layout:
            levels, scales = self._code(name, weight)
            codebook, places = torch.from_numpy(levels).to(weight.device), stored(weight).nonzero()[:, 0]
            rows = torch.from_numpy(np.ones(len(weight)) if scales is None else scales).to(weight)
            spread = torch.empty_like(weight).copy_(rows.view(-1, *[1] * (weight.dim() - 1)))
            middles = (codebook[1:].double() + codebook[:-1]) / 2
            self._grids[name] = _Grid(layout, places, stored(spread)[places], codebook, middles)
        return self._grids[name]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: codebook and scales by layer."""
        return {
            name: (torch.from_numpy(levels), None if scales is None else torch.from_numpy(scales))
            for name, (levels, scales) in self._codes.items()
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state``."""
        for name, (levels, scales) in state.items():
            self._codes[name] = levels.cpu().numpy(), None if scales is None else scales.cpu().numpy()
