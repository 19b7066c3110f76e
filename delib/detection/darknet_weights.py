"""Darknet's `.weights` files: read into a network, written from one, every value accounted for."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from delib.detection.darknet import Darknet
from delib.files import atomic_path

# Darknet's version, and the number of images that the network was trained on, which nothing asks for.
HEADER = struct.pack("<3iQ", 0, 2, 5, 0)


def tensors(network: Darknet) -> Iterator[tuple[str, Tensor]]:
    """The network's values in the file's order, by their names in the state dict, sharing the network's memory.

    For every convolution: the batch norm's bias, weight, mean and variance, or the convolution's own bias; then the
    convolution's weight [out, in / groups, height, width].
    """
    state = network.state_dict()
    for name, layer in network.named_children():
        if isinstance(layer, nn.Conv2d):
            norm = f"bn{name[1:]}"
            first = (
                [f"{name}.bias"]
                if layer.bias is not None
                else [f"{norm}.{part}" for part in ("bias", "weight", "running_mean", "running_var")]
            )
            for tensor in (*first, f"{name}.weight"):
                yield tensor, state[tensor]


def value_count(network: Darknet) -> int:
    """The number of 32-bit values in the network's weights file."""
    return sum(tensor.numel() for _, tensor in tensors(network))


def read_weights(network: Darknet, path: str | Path) -> None:
    """Fill the network from a `.weights` file, in place.

    The file's size must be exactly what the network needs, which is checked before anything is read.
    Raises ValueError, in one line, for another network's file, a cut one, or values no network can work with
    (not finite, or negative variances); the network may then be filled in part.
    """
    path = Path(path)
    needed = 4 * value_count(network)
    with path.open("rb") as file:
        version = file.read(12)
        major, minor, _ = struct.unpack("<3i", version) if len(version) == 12 else (-1, -1, -1)
        if not (0 <= major <= 10 and 0 <= minor <= 100):  # darknet marks transposed files by 1000
            raise ValueError(f"{path}: does not begin as a darknet weights file does; fetch it again, or name another")
        # The counter has 64 bits since version 0.2 (darknet, src/parser.c, load_weights_upto).
        file.seek(8 if major * 10 + minor >= 2 else 4, os.SEEK_CUR)
        held = max(0, path.stat().st_size - file.tell())
        if held != needed:
            raise ValueError(
                f"{path}: holds {held} bytes of values where this network has {needed}; "
                f"it is {'cut off' if held < needed else 'too long'}, or belongs to another cfg"
            )
        for name, tensor in tensors(network):
            values = np.fromfile(file, "<f4", tensor.numel()).astype(np.float32, copy=False)
            if not np.isfinite(values).all() or (name.endswith("running_var") and values.min() < 0):
                raise ValueError(f"{path}: {name} is not finite, or negative; the file is damaged, fetch it again")
            tensor.copy_(torch.from_numpy(values).view(tensor.shape))


def write_weights(network: Darknet, path: str | Path) -> None:
    """Write the network as a `.weights` file that any darknet runtime reads; atomically."""
    with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(HEADER)
        for _, tensor in tensors(network):
            file.write(tensor.detach().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())
