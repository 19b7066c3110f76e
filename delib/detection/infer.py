"""From photos to detections: decoding and suppression of duplicates, for any network that can decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from delib.detection.detector import DetectionNetwork
from delib.detection.letterbox import Letterboxing, prepare
from delib.detection.sketches import Sketch, sketched

LEAST = 0.001  # confidence from which on detections count for average precision
SHOWN = 0.25  # ... from which on they are shown, and an object counts as found
LIKELY = 0.5  # ... from which on a student's detection that its teacher does not see is a false positive
CONFIDENT = 0.8  # above this, the teacher's detections are the objects that a student must retain


class Detector(Protocol):
    """A network whose outputs can be read as boxes: all that is needed to find objects. Networks of torch are more than
    that, each a ``DetectionNetwork``."""

    size: tuple[int, int]  # height and width of the input that the network prefers
    letterboxing: Letterboxing  # how photos of other proportions are fitted into it
    training: bool

    def __call__(self, images: Tensor) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def decode(self, outputs: Any, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Boxes [n, boxes, 4] in pixels of the network's input, and confidences [n, boxes, classes]."""
        ...


@dataclass(frozen=True)
class Detections:
    """What was found on one photo, the most confident first.

    ``boxes`` [n, 4] as left, top, right, bottom in the photo's pixels, ``scores`` [n] in 0..1, ``classes`` [n], and
    ``masks`` [n, height, width] (bool, the photo's size) where something made masks. Of a network that draws masks
    itself ``sketches`` holds what it drew in each box (see ``sketches.drawn``).
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None = None
    sketches: tuple[Sketch, ...] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Tensor | slice) -> Detections:
        masks, sketches = None if self.masks is None else self.masks[index], self.sketches
        if sketches is not None:
            sketches = tuple(sketches[i] for i in torch.arange(len(self))[index].tolist())
        return Detections(self.boxes[index], self.scores[index], self.classes[index], masks, sketches)

    def above(self, confidence: float) -> Detections:
        """Those with at least this confidence."""
        return self[self.scores >= confidence]


def suppress(boxes: Tensor, scores: Tensor, threshold: float, overlap: float, limit: int) -> tuple[Detections, Tensor]:
    """The detections among one photo's candidates: confident enough, and no duplicate of a more confident one.

    ``boxes`` [boxes, 4], ``scores`` [boxes, classes]. A box counts once for every class that reaches ``threshold``,
    as in darknet. Of two of the same class with an intersection over union above ``overlap`` the less confident
    goes. At most ``limit`` are returned, from at most ``30 * limit`` candidates, and with them their boxes' indices.
    """
    box, cls = (scores >= threshold).nonzero(as_tuple=True)
    confident = scores[box, cls]
    if len(confident) > 30 * limit:
        confident, best = confident.topk(30 * limit)
        box, cls = box[best], cls[best]
    kept = batched_nms(boxes[box], confident, cls, overlap)[:limit]
    return Detections(boxes[box[kept]], confident[kept], cls[kept]), box[kept]


def boxes_overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two boxes (left, top, right, bottom) have an area in common."""
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def device_of(network: Detector) -> torch.device:
    """Where a network computes; the processor for one that is no torch module."""
    parameter = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


@torch.no_grad()
def detect(
    network: Detector,
    photos: Sequence[Tensor],
    *,
    size: tuple[int, int] | None = None,
    threshold: float = SHOWN,
    overlap: float = 0.45,
    limit: int = 100,
    batch: int = 8,
) -> list[Detections]:
    """What the network finds on each photo (uint8 RGB [3, height, width], of any size), computed where the network is.

    ``size`` (height, width) of the network's input: multiples of its largest stride; by default the network's own.
    ``threshold`` is the least confidence (use 0.001 for average precision), ``overlap`` that of ``suppress`` (0.45
    as in darknet), ``limit`` the most detections a photo (100 as in COCO's rules), ``batch`` how many photos at once.
    """
    size = size or network.size
    training = network.training
    device = device_of(network)
    network.train(False)
    found = []
    try:
        for start in range(0, len(photos), batch):
            images, placements = prepare(photos[start : start + batch], size, network.letterboxing)
            outputs = network(images.to(device))
            boxes, scores = (tensor.cpu() for tensor in network.decode(outputs, size))
            for i, placement in enumerate(placements):
                one, places = suppress(boxes[i], scores[i], threshold, overlap, limit)
                one = replace(one, boxes=placement.back(one.boxes))
                if isinstance(network, DetectionNetwork) and network.has_masks:
                    logits = network.masks(outputs, i, places).cpu()
                    one = replace(one, sketches=sketched(logits, one.boxes, placement, size))
                found.append(one)
    finally:
        network.train(training)
    return found
