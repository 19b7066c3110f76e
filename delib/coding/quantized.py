"""A quantised network: every tensor of its state dict, weights as few levels, in memory or in one `.delib` file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from delib.coding import container
from delib.coding.container import LevelTensor, Tensors

if TYPE_CHECKING:
    from torch import nn


class Quantized(dict[str, "NDArray[Any] | LevelTensor"]):
    """Every tensor of a network's state dict by name: weights of layers as ``LevelTensor``, the rest as arrays."""

    def network(self, like: nn.Module) -> nn.Module:
        """A copy of ``like`` that holds these values. Raises ValueError, in one line, if names or shapes differ."""
        import torch

        network = copy.deepcopy(like)
        state = {name: value for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}
        if missing := sorted(set(state) ^ set(self)):
            raise ValueError(f"made for another network: {missing[0]} is in only one of the two")
        for name, tensor in self.items():
            values = torch.from_numpy(tensor.dense() if isinstance(tensor, LevelTensor) else np.array(tensor))
            if values.shape != state[name].shape:
                raise ValueError(
                    f"made for another network: {name} is {tuple(values.shape)} here, {tuple(state[name].shape)} there"
                )
            state[name].copy_(values)
        return network

    def replace(self, name: str, tensor: NDArray[Any] | LevelTensor) -> None:
        """Put another tensor in the place of one, under every name that it has."""
        held = self[name]
        self.update({other: tensor for other, known in self.items() if known is held})

    @property
    def bits(self) -> int:
        """Bits a survivor: the most that an index into any of the codebooks takes."""
        return max((len(t.codebook) - 1).bit_length() for t in self.values() if isinstance(t, LevelTensor))

    @property
    def sparsity(self) -> float:
        """Zeros among the weights of the quantised layers, biases left out."""
        weights = [t.dense() for t in self._stored() if isinstance(t, LevelTensor) and t.mask.ndim > 1]
        return 1 - sum(np.count_nonzero(w) for w in weights) / sum(w.size for w in weights)

    @property
    def float32_bytes(self) -> int:
        """Size of all tensors at 4 bytes a value, each object counted once: the numerator of compression ratios."""
        return 4 * sum(t.mask.size if isinstance(t, LevelTensor) else t.size for t in self._stored())

    def _stored(self) -> list[NDArray[Any] | LevelTensor]:
        """Each object once, under however many names it is."""
        return list({id(tensor): tensor for tensor in self.values()}.values())

    def save(self, path: str | Path) -> int:
        """Encode into a `.delib` file, whole or not at all; returns its size in bytes."""
        return container.write(Path(path), self)

    @classmethod
    def load(cls, path: str | Path) -> Quantized:
        """The network that a `.delib` file holds. Raises DelibError, naming the file, where it is damaged."""
        return cls(container.read(Path(path)))


def decode(data: bytes) -> Quantized:
    """The network that was encoded, bit for bit. Raises DelibError where the bytes are damaged (see ``container``)."""
    return Quantized(container.decode(data))


def save(quantized: Tensors, path: str | Path) -> int:
    """Encode tensors by name into a `.delib` file, whole or not at all; returns its size in bytes."""
    return container.write(Path(path), quantized)


def load(path: str | Path) -> Quantized:
    """``Quantized.load``."""
    return Quantized.load(path)
