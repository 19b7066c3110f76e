"""Many views of few photos, by random crops, scales, flips, colours and mosaics: nothing to learn by heart."""

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
COMMON = 0.4  # share of photos from which on a kind of thing is shown no oftener than it occurs


class Views:
    """Batches of random views, float32 [n, 3, side, side] in 0..1, of photos: uint8 RGB [3, height, width], any size.

    Each batch has one of ``sides``. ``margin`` is the grey beside a photo, as in ``detect.letterbox``. Through a share
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
        if _uniform(chance) >= MOSAIC:
            return self.part(side, side, chance)
        x, y = (round(side * _uniform(chance, 0.3, 0.7)) for _ in range(2))
        rows = [[self.part(h, w, chance) for w in (x, side - x)] for h in (y, side - y)]
        return torch.cat([torch.cat(row, 2) for row in rows], 1)

    def part(self, height: int, width: int, chance: torch.Generator) -> Tensor:
        """A crop of one photo, scaled, flipped and coloured at random, on ``margin`` where the photo does not reach."""
        photo = self.photos[int(torch.randint(len(self.photos), (), generator=chance))]
        fit = max(height, width) / max(photo.shape[1:])  # as the letterbox would scale it
        scale = fit * SCALES[0] * (SCALES[1] / SCALES[0]) ** _uniform(chance)
        size = [max(1, round(n * scale * _uniform(chance, 0.9, 1.1))) for n in photo.shape[1:]]
        content = F.interpolate(photo[None].float() / 255, size, mode="bilinear", align_corners=False)[0]
        content = coloured(content, chance)
        if _uniform(chance) < 0.5:
            content = content.flip(2)
        canvas = torch.full((3, height, width), self.margin, device=photo.device)
        (top, y, h), (left, x, w) = (
            _overlap(n, m, chance) for n, m in zip((height, width), content.shape[1:], strict=True)
        )
        canvas[:, top : top + h, left : left + w] = content[:, y : y + h, x : x + w]
        return canvas


def repeats(kinds: Sequence[Collection[int]], common: float = COMMON) -> list[int]:
    """How many times a photo is to be among those that views are taken of, from the ``kinds`` of things on each.

    With f the share of photos that hold the rarest kind on this one: √(common / f), rounded, at least 1 (the repeat
    factors of Gupta, Dollár and Girshick 2019, LVIS). Else a student of few photos learns people and forgets the rest.
    """
    holding = Counter(kind for several in kinds for kind in set(several))
    rarest = [min((holding[kind] / len(kinds) for kind in several), default=1.0) for several in kinds]
    return [max(1, round(math.sqrt(common / share))) for share in rarest]


def blended(views: Tensor, share: float, chance: torch.Generator) -> Tensor:
    """``share`` of the views [n, 3, height, width], drawn at random, with the one before showing through by up to half.

    What nobody would label a teacher answers all the same: mixup (Zhang et al. 2018) as distillation uses it (Beyer et
    al. 2022). On photos of COCO that took no part, students of few photos are surer of what they find.
    """
    count = (len(views), 1, 1, 1)
    through = 0.5 * torch.rand(count, generator=chance) * (torch.rand(count, generator=chance) < share)
    through = through.to(views.device)
    return (1 - through) * views + through * views.roll(1, 0)


def coloured(image: Tensor, chance: torch.Generator) -> Tensor:
    """An image [3, height, width] in 0..1 with brightness, contrast, saturation and balance varied at random."""
    brightness, contrast, saturation = (_uniform(chance, 1 - COLOUR, 1 + COLOUR) for _ in range(3))
    balance = 1 + COLOUR / 4 * (2 * torch.rand(3, 1, 1, generator=chance).to(image.device) - 1)
    grey = image.mean(0, keepdim=True)
    image = (grey + saturation * (image - grey)) * balance
    mean = image.mean()
    return ((image - mean) * contrast + mean * brightness).clamp(0, 1)


def _overlap(canvas: int, content: int, chance: torch.Generator) -> tuple[int, int, int]:
    """Along one axis: where content begins on the canvas, which part of it begins there, and how long it is."""
    spare = canvas - content
    offset = round(abs(spare) * _uniform(chance, 0.5 - SHIFT, 0.5 + SHIFT))
    return (offset, 0, content) if spare >= 0 else (0, offset, canvas)


def _uniform(chance: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=chance))
