"""Masks as a network draws them, kept small until they are looked at.

A mask of a photo's size takes 300 kB, and most detections are never shown. What the network drew is coarser, a fourth
of its input, and only what lies in the box counts: a few hundred numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from delib.detection.letterbox import Placement

MARGIN = 2  # cells beyond the box, between which and those inside is interpolated
LARGEST = 1e4  # a logit's size, which float16 still holds


@dataclass(frozen=True)
class Sketch:
    """What a network drew in one box: mask ``logits`` [rows, columns] (float16), and where these lie on the photo.

    ``corner`` (x, y) is the left upper corner of the first cell and ``cell`` the (width, height) of each, in the
    photo's pixels; ``box`` the whole pixels (left, top, right, bottom) beyond which there is no mask.
    """

    logits: Tensor
    corner: tuple[float, float]
    cell: tuple[float, float]
    box: tuple[int, int, int, int]

    def drawn(self, height: int, width: int) -> Tensor:
        """The mask on a photo of that size, [height, width] (bool): where the logits, interpolated, are above 0."""
        mask = torch.zeros(height, width, dtype=torch.bool)
        x1, y1, x2, y2 = self.box
        if x2 > x1 and y2 > y1:
            # grid_sample counts from -1 to 1 over the cells, edges included.
            x = (torch.arange(x1, x2) + 0.5 - self.corner[0]) / (self.cell[0] * self.logits.shape[1]) * 2 - 1
            y = (torch.arange(y1, y2) + 0.5 - self.corner[1]) / (self.cell[1] * self.logits.shape[0]) * 2 - 1
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
            fine = F.grid_sample(self.logits[None, None].float(), grid, "bilinear", "border", align_corners=False)
            mask[y1:y2, x1:x2] = fine[0, 0] > 0
        return mask


def sketched(logits: Tensor, boxes: Tensor, placement: Placement, size: tuple[int, int]) -> tuple[Sketch, ...]:
    """Mask logits [n, rows, columns] over a letterbox of ``size`` cut to their ``boxes`` [n, 4] on the photo."""
    rows, columns = logits.shape[1:]
    cell = (size[1] / columns / placement.scale[0], size[0] / rows / placement.scale[1])
    zero = (-placement.offset[0] / placement.scale[0], -placement.offset[1] / placement.scale[1])
    height, width = placement.photo
    found = []
    for drawing, (left, top, right, bottom) in zip(
        logits.clamp(-LARGEST, LARGEST).half(), boxes.round().int().tolist()
    ):
        box = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
        first, last = [], []
        for axis, count in enumerate((columns, rows)):
            low, high = ((edge - zero[axis]) / cell[axis] for edge in (box[axis], box[axis + 2]))
            first.append(min(max(math.floor(low) - MARGIN, 0), count - 1))
            last.append(min(max(math.ceil(high) + MARGIN, first[axis] + 1), count))
        corner = (zero[0] + first[0] * cell[0], zero[1] + first[1] * cell[1])
        found.append(Sketch(drawing[first[1] : last[1], first[0] : last[0]].clone(), corner, cell, box))
    return tuple(found)


def drawn(sketches: Sequence[Sketch], height: int, width: int) -> Tensor:
    """The masks of sketches, [n, height, width] (bool)."""
    masks = [sketch.drawn(height, width) for sketch in sketches]
    return torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool)
