"""Masks that networks draw: cut small, and drawn on the photo as the whole map would be."""

import pytest
import torch
from torch.nn import functional as F

from delib.detection.letterbox import ULTRALYTICS, letterbox
from delib.detection.sketches import MARGIN, drawn, sketched

SIZE = (64, 96)


@pytest.mark.parametrize("photo", [(50, 100), (100, 50), (64, 96), (37, 41)])
def test_masks_are_the_whole_map_s_within_their_boxes(photo: tuple[int, int]) -> None:
    """Written out: every pixel of the photo looked up in the map, between its four nearest cells."""
    _, placement = letterbox(torch.zeros(3, *photo, dtype=torch.uint8), SIZE, ULTRALYTICS)
    coarse = torch.randn(3, 1, 5, 7, generator=torch.Generator().manual_seed(1))
    logits = F.interpolate(coarse, (16, 24), mode="bilinear")[:, 0]
    height, width = photo
    boxes = torch.tensor([[0.0, 0, width, height], [3.4, 5.6, 20.2, 30.9], [width - 9.0, height - 7.0, width, height]])
    sketches = sketched(logits, boxes, placement, SIZE)
    masks = drawn(sketches, *photo)
    assert masks.shape == (3, *photo)
    x = ((torch.arange(width) + 0.5) * placement.scale[0] + placement.offset[0]) / 4 - 0.5
    y = ((torch.arange(height) + 0.5) * placement.scale[1] + placement.offset[1]) / 4 - 0.5
    for logit, mask, (x1, y1, x2, y2) in zip(logits, masks, boxes.round().int().tolist(), strict=True):
        near = [x.floor().long().clamp(0, 23), (x.floor().long() + 1).clamp(0, 23)]
        below = [y.floor().long().clamp(0, 15), (y.floor().long() + 1).clamp(0, 15)]
        right, down = (x - x.floor())[None], (y - y.floor())[:, None]
        rows = [logit[:, i] for i in near]
        across = [rows[0][j] * (1 - right) + rows[1][j] * right for j in below]
        fine = across[0] * (1 - down) + across[1] * down
        inside = torch.zeros(photo, dtype=torch.bool)
        inside[y1:y2, x1:x2] = True
        clear = fine.abs() > 0.02 * logit.abs().max()  # float16 has three digits
        assert torch.equal(mask & clear, (fine > 0) & inside & clear)
        assert mask.sum() > 0 or not (fine > 0)[y1:y2, x1:x2].any()


def test_sketches_are_no_larger_than_their_boxes_need() -> None:
    _, placement = letterbox(torch.zeros(3, 640, 640, dtype=torch.uint8), (640, 640), ULTRALYTICS)
    (sketch,) = sketched(torch.randn(1, 160, 160), torch.tensor([[100.0, 200, 180, 240]]), placement, (640, 640))
    assert sketch.logits.dtype == torch.float16
    assert tuple(sketch.logits.shape) == (10 + 2 * MARGIN, 20 + 2 * MARGIN)


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (-50, -50, -10, -10), (500, 500, 600, 600), (-1e6, -1e6, 1e6, 1e6)])
def test_boxes_without_an_inside_have_no_mask_and_wild_ones_end_at_the_photo(box: tuple[float, ...]) -> None:
    _, placement = letterbox(torch.zeros(3, 40, 60, dtype=torch.uint8), SIZE, ULTRALYTICS)
    sketches = sketched(torch.full((1, 16, 24), 1e30), torch.tensor([box]).float(), placement, SIZE)
    assert int(drawn(sketches, 40, 60).sum()) == (40 * 60 if box[0] < -1e5 else 0)
    assert drawn((), 40, 60).shape == (0, 40, 60)
