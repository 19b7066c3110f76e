"""Checkpoints as YOLOv5's program writes them: pickles of classes that are not installed here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from delib.detection.yolov5 import YOLOv5Seg

ANCHORS = torch.tensor([[[1.25, 1.625], [2.0, 3.75]], [[1.875, 3.8125], [3.875, 2.8125]]])  # in cells
NAMES = {0: "cat", 1: "dog", 2: "owl"}
SMALL: dict[str, Any] = {
    "depth_multiple": 0.33,
    "width_multiple": 0.5,
    "backbone": [
        [-1, 1, "Conv", [16, 6, 2, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 3, "C3", [32]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "Conv", [48, 3, 2]],
        [-1, 1, "SPPF", [48, 5]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 3], 1, "Concat", [1]],
        [-1, 6, "C3", [32, False]],
        [[8, 5], 1, "Segment", ["nc", "anchors", 8, 16]],
    ],
}


def small(seed: int = 0) -> YOLOv5Seg:
    """A network of YOLOv5-seg's kind with two levels, random weights and norms that do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = YOLOv5Seg(SMALL, ANCHORS, list(NAMES.values())).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return network


@contextmanager
def named(cls: type, name: str) -> Iterator[None]:
    """Inside the block ``cls`` can be pickled as that name of a module that does not exist."""
    module, _, attribute = name.rpartition(".")
    made = ModuleType(module)
    setattr(made, attribute, cls)
    cls.__module__, cls.__qualname__ = module, attribute
    parents = {module.rpartition(".")[0]: ModuleType("parent"), module: made}
    sys.modules.update(parents)
    try:
        yield
    finally:
        for known in parents:
            del sys.modules[known]


def write(path: Path, network: YOLOv5Seg, anchors: Tensor = ANCHORS, **attributes: object) -> None:
    """The network as a checkpoint of half precision, with other attributes than its own if they are given."""

    class Foreign(nn.Module):
        pass

    held: Any = Foreign()
    held.model = nn.Sequential(*network.model)
    held.model[-1].register_buffer("anchors", anchors)
    held.yaml, held.names, held.nc = SMALL, dict(NAMES), len(NAMES)
    for name, value in attributes.items():
        setattr(held, name, value)
    with named(Foreign, "models.yolo.SegmentationModel"):
        torch.save({"model": held.half(), "ema": None, "epoch": -1}, path)
    held.float()
    del held.model[-1].anchors


def assert_inside(masks: Tensor, boxes: Tensor) -> None:
    """Every mask [n, height, width] lies in its box [n, 4], to a pixel."""
    for mask, box in zip(masks, boxes, strict=True):
        y, x = mask.nonzero(as_tuple=True)
        if len(x):
            assert x.min() >= box[0] - 1
            assert x.max() <= box[2] + 1
            assert y.min() >= box[1] - 1
            assert y.max() <= box[3] + 1
