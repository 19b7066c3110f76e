"""Networks and inputs of one's own, as the command line names them."""

from __future__ import annotations

import hashlib
import importlib
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def load_network(spec: str, weights: str | Path = "") -> nn.Module:
    """The network that ``package.module:function`` returns, with the values of a file.

    ``torchvision:NAME`` is one of its networks, ``ultralytics:FILE`` one of its checkpoints (see ``load_ultra``).
    Modules are looked for in the current folder too; the function is the user's own code and is run. ``weights`` is a
    state dict as `.safetensors`, or as `.pt` or `.pth`, of which only tensors are read. Raises ValueError, naming what
    was wrong, where that gives no network or the values are another network's.
    """
    place, colon, name = spec.partition(":")
    if not colon:
        raise ValueError(f"{spec}: name a network as package.module:function, torchvision:NAME or ultralytics:FILE")
    if place == "torchvision":
        network = _of_torchvision(name)
    elif place == "ultralytics":  # by name, like any other function: this wing stands below that of detection
        network = _function("delib.detection", "load_ultra")(name)
    else:
        network = _function(place, name)()
    if not isinstance(network, nn.Module):
        raise ValueError(f"{spec} gave a {type(network).__name__}, no torch.nn.Module")
    if weights:
        _load_values(network, Path(weights))
    return network.eval()


def _of_torchvision(name: str) -> nn.Module:
    from torchvision import models

    if name not in models.list_models():
        raise ValueError(f"torchvision has no network {name!r}; see torchvision.models.list_models()")
    return models.get_model(name, weights=None)


def _function(module: str, name: str) -> Callable[..., Any]:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{module}:{name} could not be imported ({error})") from error
    return function


def _load_values(network: nn.Module, file: Path) -> None:
    try:
        tensors = file.suffix == ".safetensors"
        state: Any = load_file(file) if tensors else torch.load(file, map_location="cpu", weights_only=True)
        network.load_state_dict(state.get("state_dict", state))
    except (SafetensorError, UnpicklingError, RuntimeError, AttributeError, TypeError, EOFError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{file}: no file of tensors by name that belong to this network ({reason})") from error


def load_inputs(spec: str, name: str = "inputs") -> Tensor:
    """Inputs [n, ...]: of a `.npy`, `.npz` or `.safetensors` file, a folder of images, or ``package.module:function``.

    Of a file that holds several arrays the one called ``name`` is taken. Images become float32 [n, 3, height, width]
    in 0..1 and must have one size. Raises ValueError, naming what was wrong.
    """
    path = Path(spec)
    if path.is_dir():
        return _images(path)
    if not path.is_file():
        place, colon, function = spec.partition(":")
        if not colon:
            raise ValueError(f"{spec}: no such file or folder; or name {name} as package.module:function")
        inputs = _function(place, function)()
    else:
        inputs = _array(path, name)
    if not isinstance(inputs, Tensor) or inputs.dim() == 0 or len(inputs) == 0:
        raise ValueError(f"{spec}: {name} must be one tensor [n, ...] of at least one input")
    return inputs


def hold_out(inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The inputs but the last ``count``, to learn from, and these, to measure on. Raises ValueError if none is left."""
    if not 0 < count < len(inputs):
        raise ValueError(f"{count} of {len(inputs)} inputs cannot be held out; hold out at least one, and leave some")
    return inputs[:-count], inputs[-count:]


def digest(inputs: Tensor) -> str:
    """SHA-256 of the values, for a record."""
    return hashlib.sha256(inputs.contiguous().numpy().tobytes()).hexdigest()


def _array(path: Path, name: str) -> Tensor:
    try:
        if path.suffix == ".safetensors":
            arrays: Any = load_file(path)
        else:
            arrays = np.load(path, allow_pickle=False)
    except (SafetensorError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a .npy, .npz or .safetensors file ({str(error).splitlines()[0]})") from error
    if isinstance(arrays, np.ndarray):
        return torch.from_numpy(arrays)
    names = list(arrays)
    if name not in names and len(names) != 1:
        raise ValueError(f"{path} holds {', '.join(names) or 'nothing'}; call the array that is meant {name}")
    return torch.as_tensor(arrays[name if name in names else names[0]])


def _images(folder: Path) -> Tensor:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(f"{file} and {files[0]} differ in size; give them one, or name a function that does")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
