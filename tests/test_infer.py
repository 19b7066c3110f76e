"""Detection: letterboxing, suppression and comparison against plain loops; average precision against known answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from delib.detection.coco import Labels
from delib.detection.infer import Detections, detect, suppress
from delib.detection.letterbox import ULTRALYTICS, Letterboxing, letterbox
from delib.detection.metrics import average_precision, compare, lost_objects, match
from delib.detection.ultralytics import library


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (sum(area) - width * height)


def random_detections(seed: int, n: int, classes: int = 3) -> Detections:
    g = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 30, (n, 2), generator=g).float()
    boxes = torch.cat([corners, corners + torch.randint(5, 30, (n, 2), generator=g)], 1)
    scores = torch.randperm(1000, generator=g)[:n].float() / 1000
    order = scores.argsort(descending=True)
    return Detections(boxes[order], scores[order], torch.randint(0, classes, (n,), generator=g)[order])


@pytest.mark.parametrize("shape", [(100, 200), (200, 100), (37, 61), (416, 416), (1, 9)])
@pytest.mark.parametrize("corners", [True, False])
def test_letterbox_keeps_proportions_and_leads_back(shape, corners) -> None:
    photo = torch.full((3, *shape), 255, dtype=torch.uint8)
    canvas, placement = letterbox(photo, (64, 96), Letterboxing(0.25, corners))
    assert canvas.shape == (3, 64, 96)
    canvas = (canvas * 1e5).round() / 1e5
    inside = (canvas[0] == 1).nonzero()
    (top, left), (bottom, right) = inside.min(0).values.tolist(), (inside.max(0).values + 1).tolist()
    assert ((canvas == 1) | (canvas == 0.25)).all()
    assert len(inside) == (bottom - top) * (right - left)
    scale = min(64 / shape[0], 96 / shape[1])
    assert abs((bottom - top) - shape[0] * scale) <= 1
    assert abs((right - left) - shape[1] * scale) <= 1
    assert abs(top - (64 - bottom)) <= 1
    assert abs(left - (96 - right)) <= 1
    back = placement.back(torch.tensor([[left, top, right, bottom], [-50.0, -50, 500, 500]]))
    odd = 0.5 / scale if corners else 0  # half a margin pixel, as darknet counts it
    assert torch.allclose(back, torch.tensor([0, 0, shape[1], shape[0]]).float().expand(2, 4), atol=odd + 1e-4)


def darknet_letterbox(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """darknet, src/image.c: letterbox_image around resize_image, pixel by pixel as its loops go."""
    channels, ih, iw = image.shape
    h, w = size
    nw, nh = (w, ih * w // iw) if w / iw < h / ih else (iw * h // ih, h)

    def at(position: int, length: int, new: int) -> tuple[int, int, float]:
        x = position * (length - 1) / (new - 1)
        return int(x), min(int(x) + 1, length - 1), x - int(x)

    out = np.full((channels, h, w), 0.5)
    top, left = (h - nh) // 2, (w - nw) // 2
    for y in range(nh):
        y0, y1, fy = at(y, ih, nh)
        for x in range(nw):
            x0, x1, fx = at(x, iw, nw)
            upper = image[:, y0, x0] * (1 - fx) + image[:, y0, x1] * fx
            lower = image[:, y1, x0] * (1 - fx) + image[:, y1, x1] * fx
            out[:, top + y, left + x] = upper * (1 - fy) + lower * fy
    return out


@given(st.integers(3, 90), st.integers(3, 90))
@settings(max_examples=25)
def test_letterbox_is_darknet_s_to_the_pixel(height: int, width: int) -> None:
    photo = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(height)).to(torch.uint8)
    if min(height, width) * 48 // max(height, width) < 2:
        return  # the program itself divides by zero
    ours, _ = letterbox(photo, (64, 48))
    assert np.abs(ours.numpy() - darknet_letterbox(photo.numpy() / 255, (64, 48))).max() < 1e-4


def test_letterbox_is_ultralytics_for_its_networks() -> None:
    library()  # imports ultralytics with its habits forbidden
    from ultralytics.data import augment

    for height, width in ((424, 640), (333, 500), (512, 773), (90, 31)):
        small = torch.randint(0, 256, (1, 3, 6, 8), generator=torch.Generator().manual_seed(width)).float()
        photo = torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)[0]
        theirs = augment.LetterBox((416, 416), auto=False)(image=photo.permute(1, 2, 0).numpy())
        ours, _ = letterbox(photo, (416, 416), ULTRALYTICS)
        assert np.abs(ours.permute(1, 2, 0).numpy() - theirs / 255).max() < 0.01


@given(st.integers(0, 10_000), st.integers(1, 25))
@settings(max_examples=60)
def test_suppression_agrees_with_plain_loops(seed: int, n: int) -> None:
    g = torch.Generator().manual_seed(seed)
    boxes = random_detections(seed, n).boxes
    scores = torch.randperm(3 * n, generator=g).view(n, 3) / (3 * n)
    pairs = [(float(scores[b, c]), b, c) for b in range(n) for c in range(3) if scores[b, c] >= 0.3]
    kept: list[tuple[float, int, int]] = []
    for score, b, c in sorted(pairs, reverse=True):
        if all(c != d or iou(boxes[b].tolist(), boxes[o].tolist()) <= 0.45 for _, o, d in kept):
            kept.append((score, b, c))
    found, places = suppress(boxes, scores, 0.3, 0.45, 1000)
    assert list(zip(places.tolist(), found.classes.tolist(), strict=True)) == [(b, c) for _, b, c in kept]
    assert torch.equal(found.boxes, boxes[places])
    few, _ = suppress(boxes, scores, 0.3, 0.45, 2)
    assert torch.equal(few.scores, found.scores[:2])


def test_suppression_takes_the_most_confident_of_too_many() -> None:
    corners = torch.arange(400.0)[:, None] * 10
    boxes = torch.cat([corners, corners, corners + 5, corners + 5], 1)
    scores = torch.linspace(0.01, 0.99, 400)[:, None]
    _, places = suppress(boxes, scores, 0.001, 0.45, 10)
    assert places.tolist() == list(range(399, 389, -1))


class Spots(nn.Module):
    """Finds one box of class 1 wherever the photo is white, as confident as the white is bright."""

    size, letterboxing = (32, 32), Letterboxing(0.0)

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return images

    def decode(self, outputs: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        boxes, scores = torch.zeros(len(outputs), 1, 4), torch.zeros(len(outputs), 1, 2)
        for box, score, image in zip(boxes, scores, outputs, strict=True):
            white = (image[0] > 0.5).nonzero()
            box[0] = torch.cat([white.min(0).values.flip(0), white.max(0).values.flip(0) + 1])
            score[0, 1] = image.max()
        return boxes, scores


def test_detections_come_in_the_photos_own_pixels_for_any_batch() -> None:
    photos = []
    for height, width, box in ((64, 64, (8, 16, 40, 48)), (64, 128, (8, 16, 40, 48)), (16, 8, (2, 2, 6, 10))):
        photo = torch.zeros(3, height, width, dtype=torch.uint8)
        photo[:, box[1] : box[3], box[0] : box[2]] = 255
        photos.append((photo, box))
    network = Spots()
    for batch in (1, 2, 3):
        found = detect(network, [photo for photo, _ in photos], batch=batch)
        for one, (_, box) in zip(found, photos, strict=True):
            assert one.classes.tolist() == [1]
            assert float(one.scores) > 0.99
            assert torch.allclose(one.boxes, torch.tensor([box]).float(), atol=4)
    assert network.training
    assert detect(network, []) == []


def loops(teacher: Detections, student: Detections, at: float, confident: float) -> list[int]:
    """Retention of one photo, in plain loops: what found each confident object, or -1."""
    used, result = set(), []
    for i in range(len(teacher)):
        if not teacher.scores[i] > confident:
            continue
        best, index = 0.5, -1
        for j in range(len(student)):
            same = student.classes[j] == teacher.classes[i] and student.scores[j] >= at and j not in used
            overlap = iou(teacher.boxes[i].tolist(), student.boxes[j].tolist())
            if same and (overlap > best or (overlap == best and index < 0)):
                best, index = overlap, j
        used.add(index)
        result.append(index)
    return result


@given(st.integers(0, 100_000), st.integers(0, 12), st.integers(0, 12))
@settings(max_examples=100)
def test_comparison_agrees_with_plain_loops(seed: int, n: int, m: int) -> None:
    teacher, student = random_detections(seed, n, 2), random_detections(seed + 1, m, 2)
    expected = loops(teacher, student, 0, 0.3)
    result = compare([teacher], [student], confident=0.3)
    assert result.objects == len(expected)
    found = [float(student.scores[j]) if j >= 0 else 0.0 for j in expected]
    assert torch.allclose(result.confidences[:, 1], torch.tensor(found))
    claimed, seen = student.above(0.5), teacher.above(0.25)
    assert result.detections == len(claimed)
    assert result.false_positives == loops(claimed, seen, 0, -1).count(-1)


def test_comparison_by_hand() -> None:
    box = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]])
    teacher = Detections(box, torch.tensor([0.95, 0.9, 0.4]), torch.tensor([0, 1, 2]))
    student = Detections(
        torch.tensor([[1.0, 0, 11, 10], [20, 20, 30, 30], [50, 50, 60, 60], [80, 80, 90, 90]]),
        torch.tensor([0.3, 0.9, 0.7, 0.6]),
        torch.tensor([0, 0, 2, 1]),
    )
    result = compare([teacher, teacher], [student, teacher])
    assert (result.objects, result.retained(), result.retained(0.5)) == (4, 3, 2)
    assert result.retention() == 0.75
    assert result.places.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert torch.allclose(result.confidences[:, 1], torch.tensor([0.3, 0, 0.95, 0.9]))
    assert lost_objects(teacher, student).classes.tolist() == [1]
    # The 0.9 has a class that the teacher does not see there, the 0.6 a place; the 0.7 is seen at 0.4.
    assert (result.detections, result.false_positives) == (5, 2)
    assert result.false_positive_rate == 0.4
    assert result.confidence_gap == pytest.approx((0.65 + 0.9) / 4)
    with pytest.raises(ValueError, match="2 photos"):
        compare([teacher, teacher], [student])
    empty = teacher[:0]
    nothing = compare([empty], [empty])
    assert (nothing.objects, nothing.retention()) == (0, 1.0)
    assert (nothing.false_positive_rate, nothing.confidence_gap) == (0.0, 0.0)


def test_one_detection_finds_one_object() -> None:
    twice = Detections(
        torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12]]), torch.tensor([0.9, 0.95]), torch.tensor([0, 0])
    )
    once = twice[:1]
    assert match(twice, once).tolist() == [-1, 0]


def labels_of(found: Detections, size: tuple[int, int]) -> Labels:
    return Labels(found.boxes / torch.tensor([size[1], size[0]] * 2), found.classes)


def test_average_precision_of_known_cases() -> None:
    sizes = [(60, 60), (60, 60)]
    truth = [random_detections(1, 5), random_detections(2, 4)]
    labels = [labels_of(one, size) for one, size in zip(truth, sizes, strict=True)]
    assert average_precision(truth, labels, sizes)["ap"] == pytest.approx(1)
    assert average_precision([one[:0] for one in truth], labels, sizes)["ap50"] == 0
    # IoU is 0.6 throughout: right at 0.50, 0.55 and 0.60 of ten thresholds.
    size = [(100, 100)]
    wanted = Detections(torch.tensor([[0.0, 0, 50, 50]]), torch.tensor([0.9]), torch.tensor([7]))
    found = replace(wanted, boxes=torch.tensor([[0.0, 0, 50, 30.5]]))
    result = average_precision([found], [labels_of(wanted, size[0])], size)
    assert (result["ap50"], result["ap75"]) == (1, 0)
    assert result["ap"] == pytest.approx(0.3)
    # One false, more confident detection before the true one: precision 1/2 at every recall.
    both = Detections(
        torch.cat([torch.tensor([[60.0, 60, 90, 90]]), wanted.boxes]), torch.tensor([0.95, 0.9]), torch.tensor([7, 7])
    )
    assert average_precision([both], [labels_of(wanted, size[0])], size)["ap50"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no average precision"):
        average_precision([found], [Labels(torch.zeros(0, 4), torch.zeros(0).long())], size)


def test_detections_are_filtered_with_their_masks() -> None:
    found = replace(random_detections(3, 6), masks=torch.arange(6).view(6, 1, 1) % 2 == 0)
    some = found.above(float(found.scores[2]))
    assert len(some) == 3
    assert some.masks is not None
    assert np.array_equal(some.masks.flatten(), [True, False, True])
