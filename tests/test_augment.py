"""Views: right sizes, in range, repeatable, different from each other, and made of the photos."""

import math

import pytest
import torch

from delib.detection.augment import COLOUR, Views, blended, coloured, oversample

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


def test_colours_are_saturation_balance_contrast_and_brightness_in_turn() -> None:
    image = 0.4 + 0.2 * torch.rand(3, 16, 16, generator=CHANCE.manual_seed(3))  # far from black and white: no clamping
    light, contrast, colour, *balance = (2 * torch.rand(6, generator=CHANCE.manual_seed(4)) - 1).tolist()
    grey = image.mean(0)
    wanted = grey + (1 + COLOUR * colour) * (image - grey)
    wanted = wanted * (1 + COLOUR / 4 * torch.tensor(balance)).view(3, 1, 1)
    mean = wanted.mean()
    wanted = (wanted - mean) * (1 + COLOUR * contrast) + mean * (1 + COLOUR * light)
    torch.testing.assert_close(coloured(image, CHANCE.manual_seed(4)), wanted)


def test_through_some_views_the_one_before_shows() -> None:
    views = torch.arange(400.0).view(400, 1, 1, 1).expand(400, 3, 2, 2)
    through = (views - blended(views, 0.5, CHANCE.manual_seed(0)))[1:]  # the view before differs by 1
    assert torch.equal(through, through[:, :1, :1, :1].expand_as(through))
    shares = through[:, 0, 0, 0]
    assert float(shares.min()) == 0 and float(shares.max()) <= 0.5
    assert 0.4 < float((shares > 0).float().mean()) < 0.6
    assert torch.equal(blended(views, 0.0, CHANCE), views)


def test_views_blend_if_asked_to() -> None:
    plain, mixed = (Views(PHOTOS, (64,), blend=blend)(4, CHANCE.manual_seed(1)) for blend in (0.0, 1.0))
    assert not torch.equal(plain, mixed)
    assert float(mixed.min()) >= 0 and float(mixed.max()) <= 1


def test_no_photos_is_said() -> None:
    with pytest.raises(ValueError, match="got none"):
        Views([], (64,))


def test_rare_kinds_are_repeated_and_common_ones_are_not() -> None:
    kinds = [[0]] * 60 + [[]] * 37 + [[0, 1], [2, 2], [1, 3]]  # of 100 photos 61 hold kind 0, 2 kind 1, 1 each 2 and 3
    pictures = [torch.full((1,), i) for i in range(100)]
    times = torch.cat(oversample(pictures, kinds, common=0.4)).bincount().tolist()
    assert times[:97] == [1] * 97
    assert times[97:] == [round(math.sqrt(0.4 / 0.02)), round(math.sqrt(0.4 / 0.01)), round(math.sqrt(0.4 / 0.01))]


def test_each_photo_is_shown_even_if_nothing_is_on_any() -> None:
    assert [int(p) for p in oversample([torch.tensor(0), torch.tensor(1)], [[], []])] == [0, 1]
    assert [int(p) for p in oversample([torch.tensor(0), torch.tensor(1)], [[], []], own=1)] == [0, 0, 1]
