"""Views: right sizes, in range, repeatable, different from each other, and made of the photos."""

import pytest
import torch

from delib.views import Views, coloured

CHANCE = torch.Generator()
PHOTOS = [torch.full((3, 30, 50), 255, dtype=torch.uint8), torch.zeros(3, 90, 20, dtype=torch.uint8)]


def test_views_have_one_of_the_sides_and_values_in_range() -> None:
    views, sides = Views(PHOTOS, (32, 64)), set()
    for seed in range(20):
        batch = views(3, CHANCE.manual_seed(seed))
        sides.add(batch.shape[2:])
        assert batch.shape[:2] == (3, 3)
        assert batch.min() >= 0
        assert batch.max() <= 1
    assert sides == {(32, 32), (64, 64)}


def test_the_same_generator_gives_the_same_views_another_gives_others() -> None:
    views = Views(PHOTOS, (64,))
    first, again, other = (views(4, CHANCE.manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_beside_a_photo_lies_the_margin() -> None:
    views = Views(PHOTOS[:1], (64,), margin=0.3)
    view = views.part(64, 64, CHANCE.manual_seed(0))
    assert (view == 0.3).all(0).any()
    assert not (view == 0.3).all()


def test_colours_vary_but_stay_near() -> None:
    image = torch.rand(3, 16, 16, generator=CHANCE.manual_seed(3))
    changed = coloured(image, CHANCE.manual_seed(4))
    assert 0.001 < (changed - image).abs().mean() < 0.25


def test_no_photos_is_said() -> None:
    with pytest.raises(ValueError, match="got none"):
        Views([], (64,))
