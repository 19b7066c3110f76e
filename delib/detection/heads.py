"""What the channels of a detector's raw outputs mean, and boxes and confidences made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Head:
    """What the channels of one raw output mean: for each anchor x, y, w, h, objectness, the classes' logits and, where
    the network draws masks, as many ``coefficients``. Boxes are told as YOLOv3 tells them.

    ``anchors`` are (width, height) in pixels of the network's input.
    """

    anchors: tuple[tuple[float, float], ...]
    classes: int
    coefficients: int = 0

    @property
    def values(self) -> int:
        """Channels for each anchor."""
        return 5 + self.classes + self.coefficients

    def split(self, raw: Tensor) -> Tensor:
        """A raw output [n, anchors * values, rows, columns] as [n, anchors, values, rows, columns]."""
        return raw.unflatten(1, (len(self.anchors), self.values))

    def certainty(self, raw: Tensor) -> Tensor:
        """The logits of how sure it is, [n, anchors, rows, columns]: objectness."""
        return self.split(raw)[:, :, 4]

    def mask_coefficients(self, raw: Tensor) -> Tensor:
        """[n, anchors, coefficients, rows, columns]."""
        return self.split(raw)[:, :, 5 + self.classes :]

    def placed(self, box: Tensor) -> Tensor:
        """Raw x, y, w, h [..., 4] as x and y in cells from the cell's corner and logarithms of w and h over the
        anchor's (Redmon and Farhadi 2018, section 2.1)."""
        return torch.cat([box[..., :2].sigmoid(), box[..., 2:]], -1)

    def decode(self, raw: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Boxes [n, boxes, 4] as left, top, right, bottom in pixels of the input, of ``size`` (height, width), and
        confidences [n, boxes, classes]: objectness times class probability (Redmon and Farhadi 2018, section 2).
        """
        raw = self.split(raw).permute(0, 1, 3, 4, 2)
        n, _, rows, columns, _ = raw.shape
        box = self.placed(raw[..., :4])
        centres = (box[..., :2] + _cells(rows, columns, raw)) * raw.new_tensor([size[1] / columns, size[0] / rows])
        # The exponent is bounded so that a wild student's boxes stay finite.
        extents = box[..., 2:].clamp(max=10).exp() * raw.new_tensor(self.anchors).view(-1, 1, 1, 2)
        boxes = torch.cat([centres - extents / 2, centres + extents / 2], -1)
        confidences = raw[..., 4:5].sigmoid() * raw[..., 5 : 5 + self.classes].sigmoid()
        return boxes.reshape(n, -1, 4), confidences.reshape(n, -1, self.classes)


@dataclass(frozen=True)
class SquaredHead(Head):
    """The same with boxes as YOLOv5 and YOLOv7 tell them: centres at 2σ - 1/2 cells, sides of (2σ)² anchors."""

    def placed(self, box: Tensor) -> Tensor:
        return torch.cat([2 * box[..., :2].sigmoid() - 0.5, 2 * (F.logsigmoid(box[..., 2:]) + math.log(2))], -1)


@dataclass(frozen=True)
class FreeHead:
    """One raw output of a network without anchors: for each of a box's four sides logits of its distance over 0 ..
    ``bins`` - 1 strides, the classes' logits, and mask coefficients. It has no objectness: the classes tell."""

    bins: int
    classes: int
    coefficients: int = 0

    def split(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distances [n, 4, bins, rows, columns], classes and coefficients [n, each, rows, columns]."""
        sides, classes, coefficients = raw.split([4 * self.bins, self.classes, self.coefficients], 1)
        return sides.unflatten(1, (4, self.bins)), classes, coefficients

    def certainty(self, raw: Tensor) -> Tensor:
        """The logits of how sure it is, [n, classes, rows, columns]."""
        return self.split(raw)[1]

    def mask_coefficients(self, raw: Tensor) -> Tensor:
        """[n, 1, coefficients, rows, columns]."""
        return self.split(raw)[2][:, None]

    def decode(self, raw: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """As ``Head.decode``; distances are the expected values of their distributions (Li et al. 2020, generalized
        focal loss, eq. 6), or the outputs themselves where there is but one bin."""
        sides, classes, _ = self.split(raw)
        rows, columns = raw.shape[2:]
        bins = torch.arange(self.bins).to(raw).view(-1, 1, 1)
        distances = sides[:, :, 0] if self.bins == 1 else (sides.softmax(2) * bins).sum(2)
        before, after = distances.permute(0, 2, 3, 1).split(2, -1)
        middles = _cells(rows, columns, raw) + 0.5
        boxes = torch.cat([middles - before, middles + after], -1)
        boxes = boxes * raw.new_tensor([size[1] / columns, size[0] / rows]).repeat(2)
        return boxes.flatten(1, 2), classes.sigmoid().flatten(2).mT


def _cells(rows: int, columns: int, like: Tensor) -> Tensor:
    """The corners (x, y) of cells, [rows, columns, 2]."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([x, y], -1).to(like)
