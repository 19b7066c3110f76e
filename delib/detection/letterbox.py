"""Photos of any proportions as the input of a network, and what was found there back in the photo's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image


@dataclass(frozen=True)
class Letterboxing:
    """How a photo is fitted into a network's input: ``margin`` is the grey (0..1) around it.

    With ``corners`` as darknet does (src/image.c, letterbox_image and resize_image): the scaled side is cut off to
    whole pixels, and the corners of photo and scaled photo coincide. Where the number of margin pixels is odd, darknet
    maps boxes back as if half a pixel lay on either side (src/yolo_layer.c, correct_yolo_boxes), although the photo
    lies on whole pixels; this is kept, so that boxes are the C program's. Without ``corners`` as ultralytics does: the
    side is rounded, and pixels are areas.
    """

    margin: float = 0.5
    corners: bool = True

    def inner(self, photo: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the scaled photo: the largest of its proportions that ``size`` holds."""
        if not self.corners:
            scale = min(size[0] / photo[0], size[1] / photo[1])
            return max(1, round(photo[0] * scale)), max(1, round(photo[1] * scale))
        if size[1] * photo[0] < size[0] * photo[1]:
            return max(1, photo[0] * size[1] // photo[1]), size[1]
        return size[0], max(1, photo[1] * size[0] // photo[0])


DARKNET = Letterboxing()
ULTRALYTICS = Letterboxing(margin=114 / 255, corners=False)


@dataclass(frozen=True)
class Placement:
    """Where a photo of (height, width) lies in its letterbox: multiplied by ``scale``, moved by (left, top)."""

    scale: tuple[float, float]
    offset: tuple[float, float]
    photo: tuple[int, int]

    def back(self, boxes: Tensor) -> Tensor:
        """Boxes [n, 4] from the letterbox's pixels to the photo's, cut off at its edges."""
        boxes = (boxes - boxes.new_tensor(self.offset * 2)) / boxes.new_tensor(self.scale * 2)
        return clip_boxes_to_image(boxes, self.photo)


def letterbox(photo: Tensor, size: tuple[int, int], how: Letterboxing = DARKNET) -> tuple[Tensor, Placement]:
    """A photo, uint8 [3, height, width], as the network takes it: float32 [3, *size] in 0..1, and where it lies.

    It is scaled, bilinearly and without smoothing, to fit ``size`` (height, width) with its proportions kept, and
    centred; ``how`` says the rest. All on the photo's device.
    """
    height, width = photo.shape[1:]
    new = how.inner((height, width), size)
    inside = F.interpolate(photo[None].float() / 255, new, mode="bilinear", align_corners=how.corners)[0]
    top, left = (size[0] - new[0]) // 2, (size[1] - new[1]) // 2
    canvas = torch.full((photo.shape[0], *size), how.margin, device=photo.device)
    canvas[:, top : top + new[0], left : left + new[1]] = inside
    offset = ((size[1] - new[1]) / 2, (size[0] - new[0]) / 2) if how.corners else (left, top)
    return canvas, Placement((new[1] / width, new[0] / height), offset, (height, width))


def prepare(
    photos: Sequence[Tensor], size: tuple[int, int], how: Letterboxing = DARKNET
) -> tuple[Tensor, list[Placement]]:
    """Photos of any sizes as one batch [n, 3, *size] and their placements; see ``letterbox``."""
    pairs = [letterbox(photo, size, how) for photo in photos]
    return torch.stack([canvas for canvas, _ in pairs]), [placement for _, placement in pairs]
