"""Augmentation: random crops, scales, flips, colours, mosaics and blends of few photos, against overfitting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SCALES = (0.75, 1.9)  # size of a view's content against a letterboxed photo's
SHIFT = 0.5  # how far a crop's centre may lie from the middle of what there is to choose from, 0..0.5
COLOUR = 0.25  # brightness, contrast and saturation vary by this share, the colours' balance by a fourth of it
MOSAIC = 0.25  # share of views that are put together from four photos
COMMON = 0.4  # share of photos from which on a class is shown no more often than it occurs


class Views:
    """Batches of random views, float32 [n, 3, side, side] in 0..1, of photos: uint8 RGB [3, height, width], any size.

    Each batch has one of ``sides``. ``margin`` is the grey beside a photo, as in ``letterbox``. Through a share
    ``blend`` of a batch's views another of them shows (see ``blended``). The same generator, the processor's, gives the
    same views; they are made where the photos are.
    """

    def __init__(self, photos: Sequence[Tensor], sides: Sequence[int], margin: float = 0.5, blend: float = 0.0) -> None:
        if not photos:
            raise ValueError("views need photos, got none")
        self.photos, self.sides, self.margin, self.blend = photos, sides, margin, blend

    def __call__(self, count: int, chance: torch.Generator) -> Tensor:
        """``count`` views."""
        side = self.sides[int(torch.randint(len(self.sides), (), generator=chance))]
        views = torch.stack([self.view(side, chance) for _ in range(count)])
        return blended(views, self.blend, chance) if self.blend else views

    def view(self, side: int, chance: torch.Generator) -> Tensor:
        """One view [3, side, side]: of one photo, or of four in a mosaic."""
        mosaic, across, down = torch.rand(3, generator=chance).tolist()
        if mosaic >= MOSAIC:
            return self.part(side, side, chance)
        x, y = (round(side * _around_one(u, 0.4) / 2) for u in (across, down))
        rows = [[self.part(h, w, chance) for w in (x, side - x)] for h in (y, side - y)]
        return torch.cat([torch.cat(row, 2) for row in rows], 1)

    def part(self, height: int, width: int, chance: torch.Generator) -> Tensor:
        """A crop of one photo, scaled, flipped and coloured at random, on ``margin`` where the photo does not reach."""
        photo = self.photos[int(torch.randint(len(self.photos), (), generator=chance))]
        zoom, down, right, mirror, *skew = torch.rand(6, generator=chance).tolist()
        fit = max(height, width) / max(photo.shape[1:])  # as the letterbox would scale it
        scale = fit * SCALES[0] * (SCALES[1] / SCALES[0]) ** zoom
        size = [max(1, round(n * scale * _around_one(u, 0.1))) for n, u in zip(photo.shape[1:], skew, strict=True)]
        content = F.interpolate(photo[None] / 255, size, mode="bilinear", align_corners=False)[0]
        (top, y, h), (left, x, w) = _overlap(height, size[0], down), _overlap(width, size[1], right)
        content = coloured(content[:, y : y + h, x : x + w], chance)
        canvas = torch.full((3, height, width), self.margin, device=photo.device)
        canvas[:, top : top + h, left : left + w] = content.flip(2) if mirror < 0.5 else content
        return canvas


def oversample(
    pictures: Sequence[Tensor], classes: Sequence[Collection[int]], own: int = 0, common: float = COMMON
) -> list[Tensor]:
    """The pictures, those with rare ``classes`` on them several times, the first ``own`` twice as often as the others.

    With f the share of pictures that hold the rarest class on this one it comes √(common / f) times, rounded, at least
    once (the repeat factors of Gupta, Dollár and Girshick 2019, LVIS). Else a student of few photos learns people and
    forgets the rest.
    """
    holding = Counter(cls for several in classes for cls in set(several))
    rarest = [min((holding[cls] / len(classes) for cls in several), default=1.0) for several in classes]
    times = [max(1, round(math.sqrt(common / share))) * (2 if i < own else 1) for i, share in enumerate(rarest)]
    return [picture for picture, many in zip(pictures, times, strict=True) for _ in range(many)]


def blended(views: Tensor, share: float, chance: torch.Generator) -> Tensor:
    """``share`` of the views [n, 3, height, width], drawn at random, with the one before showing through by up to half.

    Mixup (Zhang et al. 2018) as distillation uses it (Beyer et al. 2022): a teacher answers also what nobody would
    label. Students of few photos become more confident on photos of COCO that they never saw.
    """
    count = (len(views), 1, 1, 1)
    through = 0.5 * torch.rand(count, generator=chance) * (torch.rand(count, generator=chance) < share)
    through = through.to(views.device)
    return (1 - through) * views + through * views.roll(1, 0)


def coloured(image: Tensor, chance: torch.Generator) -> Tensor:
    """An image [3, height, width] in 0..1 with brightness, contrast, saturation and balance varied at random."""
    random = torch.rand(6, generator=chance).tolist()
    brightness, contrast, saturation = (_around_one(u, COLOUR) for u in random[:3])
    image = torch.lerp(image.mean(0, keepdim=True), image, saturation)
    torch._foreach_mul_(image.unbind(), [contrast * _around_one(u, COLOUR / 4) for u in random[3:]])
    return image.add_(image.mean() * (brightness / contrast - 1)).clamp_(0, 1)


def _overlap(canvas: int, content: int, where: float) -> tuple[int, int, int]:
    """Along one axis: where content begins on the canvas, which part of it begins there, and how long it is; of all
    that is possible the share ``where`` (0..1)."""
    spare = canvas - content
    offset = round(abs(spare) * (0.5 + SHIFT * (2 * where - 1)))
    return (offset, 0, content) if spare >= 0 else (0, offset, canvas)


def _around_one(share: float, most: float) -> float:
    """From ``1 - most`` to ``1 + most`` as ``share`` goes from 0 to 1."""
    return 1 + most * (2 * share - 1)
