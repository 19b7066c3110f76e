"""YOLOv5-seg and YOLOv7-seg: anchor heads that also draw masks, read from the checkpoints of their authors' programs.

Such a checkpoint holds the network's description beside its tensors, as a list of layers. The network is built from
that list out of ultralytics' modules, and every tensor must find its place. The classes that the checkpoint was pickled
from are never imported (see ``checkpoint``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from delib.detection.checkpoint import BROKEN, Checkpoint
from delib.detection.detector import DetectionNetwork
from delib.detection.heads import SquaredHead
from delib.detection.letterbox import ULTRALYTICS
from delib.detection.ultralytics import activated_layers, class_names, library

KIND = "models.yolo.SegmentationModel"  # the class that both programs pickle
EPSILON = 1e-3  # of their batch norms
TRIED = 128  # pixels of a square on which a network's sizes are tried, without values
FINEST = 8  # pixels of a cell of the finest level; each further one has twice as many
# Nothing larger is built on the word of a checkpoint.
MOST_LAYERS, MOST_REPEATS = 300, 50
WIDEST, MAX_SIDE = 1 << 14, 63  # channels; pixels of a kernel


class PooledPyramid(nn.Module):
    """YOLOv7's spatial pyramid pooling in two branches, of which one is pooled (SPPCSPC)."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        from ultralytics.nn.modules import Conv

        self.cv1, self.cv2 = Conv(before, width), Conv(before, width)
        self.cv3, self.cv4 = Conv(width, width, 3), Conv(width, width)
        self.m = nn.ModuleList(nn.MaxPool2d(side, 1, side // 2) for side in (5, 9, 13))
        self.cv5, self.cv6, self.cv7 = Conv(4 * width, width), Conv(width, width, 3), Conv(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv4(self.cv3(self.cv1(x)))
        y = self.cv6(self.cv5(torch.cat([y, *(pool(y) for pool in self.m)], 1)))
        z: Tensor = self.cv7(torch.cat([y, self.cv2(x)], 1))
        return z


class MaskedHeads(nn.Module):
    """The last layer: for each level a convolution to its raw output, and mask prototypes from the finest level."""

    def __init__(self, before: Sequence[int], outputs: int, coefficients: int, width: int) -> None:
        super().__init__()
        from ultralytics.nn.modules import Proto

        self.m = nn.ModuleList(nn.Conv2d(channels, outputs, 1) for channels in before)
        self.proto = Proto(before[0], width, coefficients)
        # Where ultralytics' networks of today have learned kernels.
        self.proto.add_module("upsample", nn.Upsample(scale_factor=2, mode="nearest"))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        return [conv(x) for conv, x in zip(self.m, levels, strict=True)] + [self.proto(levels[0])]


class YOLOv5Seg(DetectionNetwork):
    """A network of YOLOv5's or YOLOv7's kind that draws masks (see ``DetectionNetwork``): outputs by level, the finest
    first, each [n, anchors * (5 + classes + coefficients), height / stride, width / stride], then mask prototypes
    [n, coefficients, height / 4, width / 4].

    ``description`` is the checkpoint's: lists ``backbone`` and ``head`` of [from, repeats, kind, arguments], and two
    multiples. ``anchors`` [levels, anchors, 2] are in cells; ``names`` are the classes'. Raises ValueError, TypeError
    or LookupError on a description of another kind.
    """

    letterboxing = ULTRALYTICS
    size = (640, 640)

    def __init__(self, description: Mapping[str, Any], anchors: Tensor, names: Sequence[str]) -> None:
        super().__init__()
        library()
        layers: list[Any] = [*description["backbone"], *description["head"]]
        sources, _, kind, (*_, coefficients, width) = layers.pop()
        if kind not in ("Segment", "ISegment") or len(layers) > MOST_LAYERS:
            raise ValueError(f"its last layer, {str(kind)[:40]}, draws no masks, or it has more than {MOST_LAYERS}")
        self._names, self.model = tuple(names), nn.ModuleList()
        self._sources: list[list[int]] = []
        multiples, widths = (description["width_multiple"], description["depth_multiple"]), [3]
        for layer in layers:
            module, after = self._built(layer, widths, multiples)
            self.model.append(module)
            widths.append(after)
        before = [widths[1 + source] for source in self._resolved(sources)]
        if anchors.shape[::2] != (len(before), 2) or not (anchors > 0).all():
            raise ValueError(f"anchors of the shape {tuple(anchors.shape)} for {len(before)} levels")
        outputs = _checked(len(anchors[0]) * (5 + len(names) + coefficients))
        self.model.append(MaskedHeads(before, outputs, coefficients, _width(width, multiples[0])))
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eps = EPSILON
        pixels = [((FINEST << level) * sides.double()).tolist() for level, sides in enumerate(anchors)]
        self.heads = [SquaredHead(tuple((w, h) for w, h in own), len(names), coefficients) for own in pixels]
        self._needed = {s for i, several in enumerate(self._sources) for s in several if s != i - 1}

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    @property
    def activations(self) -> dict[str, str]:
        return activated_layers(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        *layers, last = self.model
        x, kept = images, dict[int, Tensor]()
        for i, (module, sources) in enumerate(zip(layers, self._sources)):
            parts = [x if source == i - 1 else kept[source] for source in sources]
            x = module(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
            if i in self._needed:
                kept[i] = x
        levels: list[Tensor] = last([kept.get(source, x) for source in self._sources[-1]])
        return levels

    def _resolved(self, sources: int | list[int]) -> list[int]:
        """The numbers of the layers that the next one reads, -1 being the images; noted."""
        here = len(self.model)
        absolute = [here + s if s < 0 else s for s in (sources if isinstance(sources, list) else [sources])]
        if not all(isinstance(s, int) and -1 <= s < here for s in absolute):
            raise ValueError(f"layer {here} reads from one that is not before it")
        self._sources.append(absolute)
        return absolute

    def _built(
        self, layer: Sequence[Any], widths: Sequence[int], multiples: tuple[float, float]
    ) -> tuple[nn.Module, int]:
        """The next layer, and how many channels it gives."""
        from ultralytics.nn.modules import C3, SPPF, Conv

        sources, repeats, kind, args = layer
        before = sum(widths[1 + source] for source in self._resolved(sources))  # several are concatenated
        if kind == "nn.Upsample":
            return nn.Upsample(scale_factor=2, mode="nearest"), before
        if kind in ("Concat", "MP"):
            return nn.Identity() if kind == "Concat" else nn.MaxPool2d(2, 2), before
        width = _width(args[0], multiples[0])
        if kind == "Conv":
            return Conv(before, width, *map(_side, args[1:4])), width
        if kind == "C3":
            count = max(round(repeats * multiples[1]), 1)
            if count > MOST_REPEATS:
                raise ValueError(f"a layer is repeated more than {MOST_REPEATS} times")
            return C3(before, width, count, *map(bool, args[1:])), width
        if kind == "SPPF":
            module = SPPF(before, width, _side(args[1]))
            module.cv1.act = nn.SiLU()  # which ultralytics has left out since
            return module, width
        if kind == "SPPCSPC":
            return PooledPyramid(before, width), width
        raise ValueError(f"a layer of kind {str(kind)[:40]!r}, which delib does not know")


def _side(pixels: Any) -> int:
    """A kernel's side, a stride or a padding."""
    if pixels not in range(1, MAX_SIDE + 1):
        raise ValueError("a kernel, stride or padding that is none")
    return int(pixels)


def _width(channels: Any, multiple: float) -> int:
    """Channels times the multiple, a multiple of 8 not below it."""
    return _checked(math.ceil(channels * multiple / 8) * 8)


def _checked(width: int) -> int:
    if not 0 < width <= WIDEST:
        raise ValueError(f"a layer has {width} channels")
    return width


def is_yolov5(path: str | Path) -> bool:
    """Whether a file is a checkpoint that ``load_yolov5`` reads."""
    try:
        return Checkpoint(path).kind == KIND
    except ValueError:
        return False


def load_yolov5(path: str | Path) -> YOLOv5Seg:
    """The network of a checkpoint of YOLOv5-seg or YOLOv7-seg, in evaluation mode and float32.

    Nothing that the checkpoint names is run, and nothing is allocated that its tensors do not fill. Raises ValueError,
    in one line, for another file, or one whose tensors are not exactly those of the network that it describes.
    """
    checkpoint = Checkpoint(path)
    if checkpoint.kind != KIND:
        raise ValueError(
            f"{path}: holds a {' '.join(checkpoint.kind.split())[:80]}; expected YOLOv5's or YOLOv7's {KIND}"
        )
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in checkpoint.state().items()
    }
    stub = checkpoint.network
    try:
        (anchors,) = [state.pop(name) for name in list(state) if name.endswith(".anchors")]
        names = class_names(stub.get("names"), min(int(stub.get("nc")), WIDEST))
        with torch.device("meta"):
            network = YOLOv5Seg(stub.get("yaml"), anchors, names)
            _check_sizes(network(torch.zeros(1, 3, TRIED, TRIED)))
        network.load_state_dict(_merged(state), strict=True, assign=True)
    except BROKEN as error:
        reason = " ".join(f"{error}".split())[:150]
        raise ValueError(f"{path}: its tensors are not those of a network that delib can build ({reason})") from None
    return network.eval()


def _check_sizes(outputs: Sequence[Tensor]) -> None:
    """Raise ValueError unless outputs for a square of ``TRIED`` pixels have the sizes that levels and masks have."""
    *levels, prototypes = outputs
    sides = [TRIED // (FINEST << level) for level in range(len(levels))] + [2 * TRIED // FINEST]
    if any(raw.shape[2:] != (side, side) for raw, side in zip((*levels, prototypes), sides)):
        raise ValueError("its levels are not those of a network with cells of 8, 16, 32, ... pixels")


def _merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with what YOLOv7 adds to a head's inputs (its "implicit knowledge", ``ia``) in the head's biases.

    Of what it would multiply outputs by (``im``) YOLOv7-seg makes no use: it is as it was drawn at random.
    """
    for name in [name for name in state if name.endswith(".implicit")]:
        prefix, which, level, _ = name.rsplit(".", 3)
        added = state.pop(name)
        if which == "ia":
            weight = state[f"{prefix}.m.{level}.weight"]
            state[f"{prefix}.m.{level}.bias"] = state[f"{prefix}.m.{level}.bias"] + weight.flatten(1) @ added.flatten()
    return state
