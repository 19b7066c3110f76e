"""What the scripts that make students of detectors share: the photos held out, and the last step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delib.coding import Quantized
from delib.detection.coco import Photo, photos

HELD = 200


def split(folder: Path) -> tuple[list[Photo], list[Photo]]:
    """``HELD`` photos of a folder, which are held out, and the others."""
    found = photos(folder)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(7)).tolist()
    return [found[i] for i in order[:HELD]], [found[i] for i in order[HELD:]]


def calibrate(made: Quantized, teacher: Any, inputs: Tensor) -> None:
    """Calibrate the objectness of a student on inputs, and write it into what will be stored."""
    network = made.network(teacher)
    teacher.calibrate(network, inputs)
    for name, value in network.state_dict().items():
        if name.endswith("bias") and isinstance(stored := made[name], np.ndarray):
            made.replace(name, value.numpy().astype(stored.dtype))
