"""Masks and their pictures: GrabCut on shapes with a known outline, IoU by counting, overlays that show both."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from delib.detection.coco import sample_photos
from delib.detection.infer import Detections
from delib.detection.masks import grabcut
from delib.detection.metrics import mask_agreement, mask_iou
from delib.detection.overlays import GAP, PALETTE, below, describe, overlay, png, side_by_side


def disc(height: int = 120, width: int = 160, centre: tuple[int, int] = (60, 80), radius: int = 30) -> torch.Tensor:
    y, x = np.mgrid[:height, :width]
    return torch.from_numpy((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2)


def scene(mask: torch.Tensor) -> torch.Tensor:
    """A noisy red shape on noisy green."""
    noise = torch.randint(0, 30, (3, *mask.shape), generator=torch.Generator().manual_seed(0)).byte()
    colours = torch.tensor([[40, 160, 60], [200, 40, 40]], dtype=torch.uint8)
    return colours[mask.long()].permute(2, 0, 1) + noise


BOX = torch.tensor([[50.0, 30, 110, 90]])


def found(box: torch.Tensor = BOX, score: float = 0.9, cls: int = 0) -> Detections:
    return Detections(box, torch.full((len(box),), score), torch.full((len(box),), cls))


def test_a_shape_is_found_by_its_colour_even_if_the_box_is_off() -> None:
    diamond = disc() & (torch.arange(120)[:, None] - 60).abs().add((torch.arange(160) - 80).abs()).lt(32)
    for shape in (disc(), diamond):
        photo = scene(shape)
        assert mask_iou(grabcut(photo, BOX), shape[None]) > 0.93
        shifted = grabcut(photo, BOX + torch.tensor([3.0, -3, 3, -3]))
        assert mask_iou(shifted, shape[None]) > 0.9


def test_the_same_prompt_gives_the_same_mask() -> None:
    photo = sample_photos()[1].read()
    boxes = torch.tensor([[740.0, 40, 1150, 710], [100, 200, 1100, 710], [430, 430, 530, 720]])
    first = grabcut(photo, boxes)
    grabcut(photo, boxes.flip(0))
    assert torch.equal(first, grabcut(photo, boxes))
    assert torch.equal(first[2:], grabcut(photo, boxes[2:]))


def test_boxes_a_little_apart_get_masks_a_little_apart() -> None:
    photo = sample_photos()[1].read()
    boxes = torch.tensor([[740.0, 40, 1150, 710], [100, 200, 1100, 710], [430, 430, 530, 720]])
    first, chance = grabcut(photo, boxes), torch.Generator().manual_seed(0)
    extents = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = [boxes + 0.04 * extents * (torch.rand(boxes.shape, generator=chance) - 0.5) for _ in range(6)]
    alike = torch.stack([mask_iou(first, grabcut(photo, others)) for others in moved])
    overlaps = torch.stack([box_iou(boxes, others).diagonal() for others in moved])
    assert alike.mean() > overlaps.mean()


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 160, 120),
        (10, 10, 10, 10),
        (155, 115, 160, 120),
        (-20, -20, 200, 200),
        (3, 3, 4, 90),
        (159.6, 119.7, 160, 120),
    ],
)
def test_odd_boxes_give_masks_near_them(box: tuple[float, ...]) -> None:
    flat = torch.full((3, 120, 160), 90, dtype=torch.uint8)
    for photo in (flat, scene(disc())):
        mask = grabcut(photo, torch.tensor([box], dtype=torch.float32))[0]
        assert mask.shape == (120, 160)
        y, x = mask.nonzero(as_tuple=True)
        reach = 0.2 * max(box[2] - box[0], box[3] - box[1]) + 3
        if len(x):
            assert x.min() >= box[0] - reach
            assert x.max() <= box[2] + reach
            assert y.min() >= box[1] - reach
            assert y.max() <= box[3] + reach


def test_iou_is_counted() -> None:
    a = torch.zeros(3, 4, 4, dtype=torch.bool)
    b = a.clone()
    a[0, :2], b[0, 1:3] = True, True
    a[1, 0, 0] = True
    assert mask_iou(a, b).tolist() == pytest.approx([4 / 12, 0, 1])


def test_agreement_is_of_the_objects_found() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    masks = torch.zeros(2, 50, 50, dtype=torch.bool)
    masks[0, :10, :10], masks[1, 20:40, 20:40] = True, True
    teacher = replace(found(boxes), masks=masks)
    half = masks[1:].clone()
    half[0, 30:] = False
    student = Detections(boxes[1:], torch.tensor([0.5]), torch.tensor([0]), half)
    assert mask_agreement([teacher], [student]).tolist() == [0.5]
    with pytest.raises(ValueError, match="grabcut"):
        mask_agreement([teacher], [found()])


def test_overlays_show_box_mask_and_loss() -> None:
    photo = torch.full((3, 120, 160), 128, dtype=torch.uint8)
    one = replace(found(), masks=disc()[None])
    plain, drawn = overlay(photo, one[:0], height=240), overlay(photo, one, height=240)
    assert plain.shape == drawn.shape == (240, 320, 3)
    assert (plain == 128).all()
    colour = np.array([int(PALETTE[0][i : i + 2], 16) for i in (1, 3, 5)])
    assert np.array_equal(drawn[120, 101], colour)  # the box's left side
    blended = drawn[120, 160].astype(int)
    assert (np.abs(blended - (128 + 0.45 * (colour - 128))) <= 2).all()  # translucent in the middle
    assert (drawn[5:20, 5:20] == 128).all()
    lost = overlay(photo, one[:0], height=240, lost=one)
    assert (lost[120] == 255).all(1).any() or (lost[119] == 255).all(1).any()
    assert not (lost[100:140, 140:180] != 128).any()  # no mask


def test_side_by_side_counts_what_was_lost() -> None:
    photo = scene(disc())
    both = side_by_side(photo, found(), found()[:0], height=240)
    same = side_by_side(photo, found(), found(), height=240)
    assert both.shape == same.shape == (272, 652, 3)
    assert not np.array_equal(both, same)
    assert png(both).startswith(b"\x89PNG")


def test_pictures_stand_below_each_other_centred() -> None:
    wide, narrow = np.zeros((4, 20, 3), np.uint8), np.zeros((6, 10, 3), np.uint8)
    both = below([wide, narrow])
    assert both.shape == (4 + GAP + 6, 20, 3)
    assert (both[-1, :5] == 255).all()
    assert not both[-1, 5:15].any()
    assert (both[4 : 4 + GAP] == 255).all()


def test_detections_in_words() -> None:
    assert describe(found(score=0.876)) == "person 0.88"
    assert describe(found()[:0]) == "nothing"
    assert "class 99" in describe(found(cls=99))
