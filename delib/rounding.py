"""Rounding weights to their levels so that the network hardly notices: in the loop of training, or compensated."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from delib.encode import LevelTensor
from delib.networks import weight_layers, weight_of
from delib.quantize import PLACEMENTS, quantize_weight, with_levels
from delib.refit import RIDGE, Moments, _batches, _sub_gram


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


def stored(tensor: Tensor) -> Tensor:
    """A dense tensor's values [n] in the order in which they lie in memory, sharing it; the same for equal strides."""
    return tensor.as_strided((tensor.numel(),), (1,))


@torch.no_grad()
def rounded(moments: Moments, support: Tensor, matrix: Tensor, levels: LevelTensor, ridge: float = RIDGE) -> Tensor:
    """A refitted matrix [rows, k] with each survivor at one of ``levels``, the others making up for its error.

    Row by row, survivor by survivor, as GPTQ does (Frantar et al. 2022, algorithm 1): with U the upper Cholesky factor
    of the survivors' inverse Gram matrix, rounding w_j by δ moves all later w by -δ U_j/U_jj. A bias column is not
    rounded. ``levels`` gives codebook and scales.
    """
    codebook = torch.from_numpy(levels.codebook).to(moments.gram)
    middles = (codebook[1:] + codebook[:-1]) / 2
    scales = np.ones(len(matrix), np.float16) if levels.scales is None else levels.scales
    scale = torch.from_numpy(scales.astype(np.float64)).to(codebook)
    extra = ridge * moments.gram.diagonal(dim1=1, dim2=2).mean(1)
    result = torch.zeros_like(matrix, dtype=codebook.dtype)
    last = matrix.shape[1] - 1 if moments.bias else -1
    for rows, unsorted, _ in _batches(support):
        # Padding comes with the dead; sorting brings the bias, which absorbs what is left, to the end.
        columns = unsorted.sort(1).values
        alive = support[rows].gather(1, columns)
        group = rows // (len(support) // moments.groups)
        system = _sub_gram(moments, group, columns, alive, extra[group][:, None])
        factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(system)), upper=True)
        weights = matrix[rows].gather(1, columns).to(codebook) * alive
        for j in range(columns.shape[1]):
            value = codebook[torch.bucketize(weights[:, j] / scale[rows], middles)] * scale[rows]
            value = torch.where(alive[:, j] & (columns[:, j] != last), value, weights[:, j])
            error = (weights[:, j] - value) / factor[:, j, j]
            weights[:, j:] -= error[:, None] * factor[:, j, j:] * alive[:, j:]
            weights[:, j] = value
        result[rows] = result[rows].scatter(1, columns, weights * alive)
    return result.to(matrix.dtype)
