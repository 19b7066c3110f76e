"""Small images, moved a little: where they go, how far at most, and that chance decides it alone."""

from __future__ import annotations

import torch
from torch import Tensor

from delib.data import views
from delib.data.jitter import SHIFT, STRETCH, TURN, jittered


def spot(row: int, column: int, count: int = 400) -> Tensor:
    """Images [count, 1, 29, 29], black but for a square of nine pixels around a place."""
    images = torch.zeros(count, 1, 29, 29)
    images[..., row - 1 : row + 2, column - 1 : column + 2] = 1
    return images


def centres(images: Tensor) -> Tensor:
    """Centres of mass [n, 2] of images [n, 1, rows, columns], in half sides from the middle."""
    half = images.shape[-1] / 2
    places = (torch.arange(images.shape[-1]) + 0.5 - half) / half
    down, across = ((images.sum(axis)[:, 0] * places).sum(1) for axis in (3, 2))
    return torch.stack([down, across], 1) / images.sum((1, 2, 3))[:, None]


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_middle_is_shifted_up_to_the_bound() -> None:
    moved = centres(jittered(spot(14, 14), 1.0, chance()))
    # The middle is turned and stretched into itself, but for what a shift makes of both.
    most = SHIFT * (1 + TURN) / (1 - STRETCH)
    assert moved.abs().max() <= most
    assert (moved.abs().amax(0) > 0.8 * SHIFT).all(), "both ways, nearly as far as allowed"
    assert moved.mean(0).abs().max() < 0.2 * SHIFT, "to all sides alike"


def test_a_place_away_from_the_middle_is_turned_and_stretched() -> None:
    away = 10 / 14.5
    for extent in (0.3, 1.0):
        moved = centres(jittered(spot(14, 24), extent, chance()))
        most = extent * SHIFT * (1 + TURN) / (1 - STRETCH)
        along, across = (moved[:, 1] - away).abs().max(), moved[:, 0].abs().max()
        turned = away * extent * TURN / (1 - STRETCH)
        assert extent * SHIFT < across <= most + turned, "further than a shift alone"
        assert along <= most + away * STRETCH * extent / (1 - STRETCH) + away * (extent * TURN) ** 2


def test_without_extent_images_stay_and_chance_is_not_asked() -> None:
    images, generator = spot(5, 9, 3), chance()
    before = generator.get_state()
    assert jittered(images, 0.0, generator) is images
    assert torch.equal(generator.get_state(), before)


def test_a_source_draws_images_and_moves_each_in_its_own_way() -> None:
    images = torch.cat([spot(9, 9, 1), 2 * spot(19, 19, 1)])
    drawn = views(images, 1.0)(64, chance())
    assert drawn.shape == (64, 1, 29, 29)
    brightest = drawn.amax((1, 2, 3)) > 1
    assert 10 < int(brightest.sum()) < 54, "both are drawn"
    assert len({tuple(place.tolist()) for place in centres(drawn)}) == 64
    assert torch.equal(drawn, views(images, 1.0)(64, chance()))
    assert not torch.equal(drawn, views(images, 1.0)(64, chance(1)))
