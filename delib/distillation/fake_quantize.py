"""Rounding weights to their levels so that the network hardly notices: in the loop of training, or compensated."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from delib.coding.container import LevelTensor
from delib.coding.quantize import PLACEMENTS, quantize_weight, with_levels
from delib.nn.layers import stored, weight_layers, weight_of


class Rounding:
    """The weights of a network as ``quantize`` would round them, for the time of a pass.

    ``bits``, ``method`` and ``scaled`` are those of ``quantize``. The first pass places the levels, takes the outputs'
    scales and notes which weights are zero; layers in ``begun`` have levels and scales already. The nearest levels are
    taken in every pass. What was trained with these levels must be stored with them, as ``tensors`` gives it: on levels
    placed anew it is no better than if it had not been trained with rounding at all. Layers in ``done`` are rounded
    already and left as they are.
    """

    def __init__(
        self,
        bits: int | Mapping[str, int] = 4,
        method: str = "kmeans",
        *,
        scaled: bool = True,
        done: Collection[str] = (),
        begun: Mapping[str, LevelTensor] = MappingProxyType({}),
    ) -> None:
        self.bits, self.place, self.scaled, self.done = bits, PLACEMENTS[method], scaled, done
        self.levels = {name: tensor.codebook for name, tensor in begun.items()}
        self.scales = {name: tensor.scales for name, tensor in begun.items()}
        self.places: dict[str, _Place] = {}

    def _weights(self, network: nn.Module) -> dict[str, Tensor]:
        return {name: weight_of(layer) for name, layer in weight_layers(network).items() if name not in self.done}

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Inside the block the weight layers hold rounded weights, afterwards the unrounded ones again."""
        weights = self._weights(network)
        if not self.places:
            self._place(weights)
        held = [(stored(weight), self.places[name].memory) for name, weight in weights.items()]
        unrounded = [weight[memory] for weight, memory in held]
        for (weight, memory), values in zip(held, self._rounded(unrounded), strict=True):
            weight[memory] = values
        try:
            yield
        finally:
            for (weight, memory), values in zip(held, unrounded, strict=True):
                weight[memory] = values

    def tensors(self, network: nn.Module) -> dict[str, LevelTensor]:
        """Each layer's weight at the levels placed by the first pass: what a pass sees, for ``compensate.finished``."""
        if not self.places:
            self._place(self._weights(network))
        arrays = {name: weight.cpu().numpy() for name, weight in self._weights(network).items()}
        return {name: with_levels(array, self.levels[name], self.scales[name]) for name, array in arrays.items()}

    def state(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Levels and scales by layer, for ``resume``."""
        scales = {name: None if each is None else torch.from_numpy(each) for name, each in self.scales.items()}
        return {name: (torch.from_numpy(levels), scales[name]) for name, levels in self.levels.items()}

    def resume(self, state: Mapping[str, tuple[Tensor, Tensor | None]]) -> None:
        """Go on with the levels and scales of ``state``."""
        self.levels = {name: levels.cpu().numpy() for name, (levels, _) in state.items()}
        self.scales = {name: None if each is None else each.cpu().numpy() for name, (_, each) in state.items()}

    def _place(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            bits = self.bits if isinstance(self.bits, int) else self.bits[name]
            if name not in self.levels:
                placed = quantize_weight(weight.cpu().numpy(), bits, self.place, scaled=self.scaled)
                self.levels[name], self.scales[name] = placed.codebook, placed.scales
            memory = stored(weight).nonzero()[:, 0]
            each = self.scales[name] if self.scales[name] is not None else np.ones(len(weight))
            scales = torch.from_numpy(each).to(weight).view(-1, *[1] * (weight.dim() - 1))
            codebook = torch.from_numpy(self.levels[name]).to(weight.device)
            middles = (codebook[1:].double() + codebook[:-1]) / 2
            self.places[name] = _Place(
                memory, stored(torch.empty_like(weight).copy_(scales))[memory], codebook, middles
            )

    def _rounded(self, unrounded: Sequence[Tensor]) -> list[Tensor]:
        """What ``quantize.with_levels`` makes of the layers' survivors, without a look at the dead ones."""
        return [
            place.codebook[torch.bucketize((values / place.scales).double(), place.middles)] * place.scales
            for place, values in zip(self.places.values(), unrounded, strict=True)
        ]


@dataclass(frozen=True)
class _Place:
    """Where a layer's survivors lie in ``memory`` [n], their outputs' ``scales`` [n], the levels, and where one becomes
    the nearest instead of the one before (``middles``)."""

    memory: Tensor
    scales: Tensor
    codebook: Tensor
    middles: Tensor
