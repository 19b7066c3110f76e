"""Small images, moved a little at random: views of which a small network sees no two alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

TURN, STRETCH, SHIFT = 0.2, 0.12, 0.15  # radians, relative size, and half the image's side; at an extent of 1


def jittered(images: Tensor, extent: float, chance: torch.Generator) -> Tensor:
    """Images [n, channels, height, width], each turned, stretched and shifted at random, black where nothing is.

    Turn, stretch across and down, and shifts are uniform up to ``extent`` times 11 degrees, 12% and 2 of 28 pixels,
    within which a handwritten digit stays what it is.
    """
    if extent == 0:
        return images
    turn, *rest = (2 * torch.rand(5, len(images), generator=chance) - 1) * extent
    wide, high = (1 + STRETCH * u for u in rest[:2])
    across, down = (SHIFT * u for u in rest[2:])
    cos, sin = (TURN * turn).cos(), (TURN * turn).sin()
    places = torch.stack([wide * cos, -high * sin, across, wide * sin, high * cos, down], 1).view(-1, 2, 3)
    grid = F.affine_grid(places.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def views(images: Tensor, extent: float) -> Callable[[int, torch.Generator], Tensor]:
    """A source of batches for `distill`: randomly drawn ``images``, ``jittered`` to ``extent``."""

    def source(count: int, chance: torch.Generator) -> Tensor:
        return jittered(images[torch.randint(len(images), (count,), generator=chance)], extent, chance)

    return source
