"""Darknet networks (YOLOv3, YOLOv3-tiny) as torch modules, built from their cfg."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delib.detection.darknet_cfg import Section, parse_cfg, yolov3_cfg, yolov3_tiny_cfg
from delib.detection.detector import DetectionNetwork
from delib.detection.heads import Head
from delib.detection.letterbox import DARKNET

# 16 times YOLOv3, in weights as in any layer's output: nothing larger is allocated on the word of a cfg.
MAX_VALUES = 1 << 30
MAX_SIZE = 63  # of kernels, strides and paddings
CHANNELS = 3
# Darknet divides by sqrt(variance) + 1e-6 on a CPU, by sqrt(variance + 1e-5) on a GPU; OpenCV by sqrt(variance + 1e-6).
# With this value raw outputs agree with OpenCV's to 1e-4, with 1e-5 to 1e-3.
BATCH_NORM_EPSILON = 1e-6
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(0.1),
    "relu": nn.ReLU,
    "mish": nn.Mish,
    "swish": nn.SiLU,
    "logistic": nn.Sigmoid,
}


class MaxPool(nn.MaxPool2d):
    """Darknet's max pooling: the larger half of the padding lies right and below (src/maxpool_layer.c)."""

    def __init__(self, size: int, stride: int, padding: int) -> None:
        super().__init__(size, stride)
        before = padding // 2
        self.around = (before, padding - before) * 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.around, value=-torch.inf))


@dataclass(frozen=True)
class _Layer:
    """One section of the cfg as it is run: which layers it reads, what an image of the cfg's size comes out as
    (channels, height, width), and the modules that are applied, by name."""

    kind: str
    sources: tuple[int, ...]
    shape: tuple[int, int, int]
    modules: tuple[str, ...] = ()
    group: int = 0
    groups: int = 1


class Darknet(DetectionNetwork):
    """A network described by a darknet cfg. Takes images [n, 3, height, width] (RGB, 0..1; height and width
    multiples of the largest stride, 32 for YOLOv3), gives the raw output of every yolo layer in the cfg's order,
    each [n, anchors * (5 + classes), height / stride, width / stride], before any sigmoid.

    Layer i of the cfg (``[net]`` not counted) owns the modules ``c<i>`` (convolution), ``bn<i>``, ``act<i>``,
    ``pool<i>`` or ``up<i>``. ``heads`` says what the outputs mean, ``size`` is the cfg's (height, width).
    Raises ValueError, naming the cfg's line, where the description is not one that delib can build, has an option that
    delib does not compute (see ``darknet_cfg.NEUTRAL``), or layers that do not fit together at the cfg's size.
    """

    letterboxing = DARKNET

    def __init__(self, sections: Sequence[Section]) -> None:
        super().__init__()
        net, *body = sections
        self.size = (net.integer("height", low=1), net.integer("width", low=1))
        if net.integer("channels") != CHANNELS:
            raise ValueError(f"{net.where}: channels must be {CHANNELS}, as photos have colours here")
        self.heads: list[Head] = []
        self._layers: list[_Layer] = []
        self._values = 0
        for section in body:
            self._add(section)
        net.check()
        if not self.heads:
            raise ValueError(f"{net.where}: the network has no [yolo] layer, so nothing to detect with")
        self._needed = {source for i, layer in enumerate(self._layers) for source in layer.sources if source != i - 1}

    @property
    def activations(self) -> dict[str, str]:
        pairs = {f"c{i}": f"act{i}" for i, layer in enumerate(self._layers) if layer.kind == "convolutional"}
        return {layer: activation for layer, activation in pairs.items() if hasattr(self, activation)}

    @property
    def kinds(self) -> list[str]:
        """The kind of every layer of the cfg, by its number: ``convolutional``, ``route``, ..."""
        return [layer.kind for layer in self._layers]

    def forward(self, images: Tensor) -> list[Tensor]:
        x, outputs = images, []
        kept: dict[int, Tensor] = {}
        for i, layer in enumerate(self._layers):
            parts = [x if source == i - 1 else kept[source] for source in layer.sources]
            if layer.kind == "route":
                parts = [part.chunk(layer.groups, 1)[layer.group] for part in parts]
                x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            elif layer.kind == "shortcut":
                x = parts[0] + parts[1]
            elif layer.kind == "yolo":
                outputs.append(x)
            for name in layer.modules:
                x = self.get_submodule(name)(x)
            if i in self._needed:
                kept[i] = x
        return outputs

    def _add(self, section: Section) -> None:
        builders = {
            "convolutional": self._convolutional,
            "maxpool": self._maxpool,
            "upsample": self._upsample,
            "route": self._route,
            "shortcut": self._shortcut,
            "yolo": self._yolo,
        }
        if section.kind not in builders:
            known = ", ".join(builders)
            raise ValueError(f"{section.where}: this kind of layer is not supported; delib knows {known}")
        before = self._layers[-1].shape if self._layers else (CHANNELS, *self.size)
        layer = builders[section.kind](section, before)
        section.check()
        if min(layer.shape) < 1 or max(math.prod(before), math.prod(layer.shape)) > MAX_VALUES:
            raise ValueError(f"{section.where}: turns {_times(before)} values into {_times(layer.shape)}; refused")
        for source in layer.sources:
            if source >= 0 and self._layers[source].kind == "yolo":
                raise ValueError(f"{section.where}: reads from a [yolo] layer, which only gives boxes")
        self._layers.append(layer)

    def _layer(self, section: Section, shape: tuple[int, int, int], **modules: nn.Module) -> _Layer:
        """A layer that reads the previous one, -1 being the image, and owns these modules."""
        here = len(self._layers)
        names = tuple(f"{prefix}{here}" for prefix in modules)
        for name, module in zip(names, modules.values(), strict=True):
            self.add_module(name, module)
        return _Layer(section.kind, (here - 1,), shape, names)

    def _convolutional(self, section: Section, before: tuple[int, int, int]) -> _Layer:
        width, *sides = before
        filters, size = section.integer("filters", low=1), section.integer("size", low=1, high=MAX_SIZE)
        stride, groups = section.integer("stride", 1, low=1, high=MAX_SIZE), section.integer("groups", 1, low=1)
        norm = bool(section.integer("batch_normalize", 0, high=1))
        padding = section.integer("padding", 0, high=MAX_SIZE)
        if section.integer("pad", 0, high=1):
            padding = size // 2
        activation = section.text("activation", "logistic")
        if width % groups or filters % groups:
            raise ValueError(f"{section.where}: {groups} groups do not divide {width} inputs and {filters} filters")
        if activation != "linear" and activation not in ACTIVATIONS:
            raise ValueError(f"{section.where}: activation {activation[:40]!r} is not supported")
        self._values += filters * (width // groups * size * size + (4 if norm else 1))
        if self._values > MAX_VALUES:
            raise ValueError(f"{section.where}: the network would have more than {MAX_VALUES} values; refused")
        modules: dict[str, nn.Module] = {
            "c": nn.Conv2d(width, filters, size, stride, padding, groups=groups, bias=not norm)
        }
        if norm:
            modules["bn"] = nn.BatchNorm2d(filters, eps=BATCH_NORM_EPSILON)
        if activation != "linear":
            modules["act"] = ACTIVATIONS[activation]()
        rows, columns = ((side + 2 * padding - size) // stride + 1 for side in sides)
        return self._layer(section, (filters, rows, columns), **modules)

    def _maxpool(self, section: Section, before: tuple[int, int, int]) -> _Layer:
        stride = section.integer("stride", 1, low=1, high=MAX_SIZE)
        size = section.integer("size", stride, low=1, high=MAX_SIZE)
        padding = section.integer("padding", size - 1, high=size - 1)
        rows, columns = ((side + padding - size) // stride + 1 for side in before[1:])
        return self._layer(section, (before[0], rows, columns), pool=MaxPool(size, stride, padding))

    def _upsample(self, section: Section, before: tuple[int, int, int]) -> _Layer:
        stride = section.integer("stride", 2, low=1, high=32)
        up = nn.Upsample(scale_factor=stride, mode="nearest")
        return self._layer(section, (before[0], stride * before[1], stride * before[2]), up=up)

    def _route(self, section: Section, before: tuple[int, int, int]) -> _Layer:
        sources = tuple(self._resolve(section, i) for i in section.numbers("layers", int))
        groups = section.integer("groups", 1, low=1)
        group = section.integer("group_id", 0, high=groups - 1)
        shapes = [self._layers[source].shape for source in sources]
        widths = [shape[0] for shape in shapes]
        if any(width % groups for width in widths):
            raise ValueError(f"{section.where}: {groups} groups do not divide the layers' channels")
        if len({shape[1:] for shape in shapes}) > 1:
            raise ValueError(f"{section.where}: the layers that are joined differ in height or width")
        return _Layer(section.kind, sources, (sum(widths) // groups, *shapes[0][1:]), (), group, groups)

    def _shortcut(self, section: Section, before: tuple[int, int, int]) -> _Layer:
        source = self._resolve(section, section.integer("from", low=-len(self._layers)))
        added = self._layers[source].shape
        if added != before:
            raise ValueError(f"{section.where}: adds {_times(added)} values to {_times(before)}; they must be as many")
        if section.text("activation", "linear") != "linear":
            raise ValueError(f"{section.where}: only shortcuts with linear activation are supported")
        return _Layer(section.kind, (len(self._layers) - 1, source), before)

    def _yolo(self, section: Section, before: tuple[int, int, int]) -> _Layer:
        sizes = section.numbers("anchors", float)
        anchors = list(zip(sizes[::2], sizes[1::2], strict=False))
        # Where both are absent darknet takes one anchor.
        num = section.integer("num", len(anchors) if "mask" in section.options else 1)
        mask = section.numbers("mask", int, range(num))
        classes = section.integer("classes", 20, low=1)
        if len(sizes) != 2 * num or min(sizes) <= 0 or not all(0 <= i < num for i in mask):
            raise ValueError(f"{section.where}: mask, num and anchors do not fit together")
        if before[0] != len(mask) * (5 + classes):
            needed = f"{len(mask)} anchors and {classes} classes need {len(mask) * (5 + classes)} channels"
            raise ValueError(f"{section.where}: {needed}, the layer before has {before[0]}")
        if self.heads and classes != self.heads[0].classes:
            raise ValueError(f"{section.where}: classes must be {self.heads[0].classes}, as in the [yolo] before")
        self.heads.append(Head(tuple(anchors[i] for i in mask), classes))
        return self._layer(section, before)

    def _resolve(self, section: Section, index: int) -> int:
        """A layer's number as routes write it: counted from here if negative."""
        here = len(self._layers)
        absolute = here + index if index < 0 else index
        if not 0 <= absolute < here:
            raise ValueError(f"{section.where}: layer {index} is not before layer {here}")
        return absolute


def _times(shape: tuple[int, int, int]) -> str:
    return " × ".join(map(str, shape))


def yolov3_tiny(seed: int = 0) -> Darknet:
    """YOLOv3-tiny for COCO's 80 classes, 8,858,734 values, still with random ones drawn from ``seed``."""
    return _built(yolov3_tiny_cfg(), seed)


def yolov3(seed: int = 0) -> Darknet:
    """YOLOv3 for COCO's 80 classes, 62,001,757 values, still with random ones drawn from ``seed``."""
    return _built(yolov3_cfg(), seed)


def _built(cfg: str, seed: int) -> Darknet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Darknet(parse_cfg(cfg)).eval()
