"""All metrics of a detector at once, on photos whose detections are known."""

from dataclasses import replace

import pytest
import torch

from delib.detection.coco import Labels
from delib.detection.infer import Detections
from delib.detection.masks import grabcut
from delib.detection.metrics import average_precision, scores
from delib.detection.sketches import Sketch, drawn

PHOTO = torch.randint(0, 255, (3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[5.0, 5, 30, 40], [40.0, 10, 75, 50], [2.0, 45, 20, 58]])


def found(scores: list[float], classes: list[int]) -> Detections:
    return Detections(BOXES[: len(scores)], torch.tensor(scores), torch.tensor(classes))


def all_scores(teacher: list[Detections], student: list[Detections], labels: list[Labels | None]) -> dict[str, float]:
    return scores(
        teacher,
        student,
        labels,
        [(60, 80)] * len(teacher),
        lambda _, one: replace(one, masks=grabcut(PHOTO, one.boxes)),
    )


def test_metrics_of_a_student_that_loses_one_object_and_sees_another() -> None:
    teacher = [found([0.9, 0.85], [1, 2])]
    student = [found([0.6, 0.2, 0.7], [1, 2, 3])]
    labels = [Labels(BOXES[:2] / torch.tensor([80, 60, 80, 60]), torch.tensor([1, 2]))]
    marks = all_scores(teacher, student, labels)
    assert (marks["objects"], marks["retained_25"], marks["retained_50"]) == (2, 1, 1)
    assert marks["retention_25"] == 0.5
    assert (marks["detections_50"], marks["false_positives_50"]) == (2, 0.5)
    assert marks["mask_iou"] == pytest.approx(1)  # of the one it finds, in the same box
    assert marks["teacher_ap50"] == pytest.approx(1)
    assert marks["ap50"] == pytest.approx(1)  # the second object too, with 0.2


@pytest.mark.parametrize("labels", [[], [None], [Labels(torch.zeros(0, 4), torch.zeros(0).long())]])
def test_without_labels_there_is_no_average_precision(labels) -> None:
    marks = all_scores([found([0.9], [1])], [found([0.9], [1])], labels)
    assert "ap50" not in marks
    assert marks["confidence_gap"] == 0


def disc(centre: tuple[int, int], radius: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2


def outline(centre: tuple[int, int], radius: int) -> torch.Tensor:
    """A disc's edge in shares of the photo."""
    angles = torch.linspace(0, 6.28, 60)
    points = torch.stack([centre[0] + radius * angles.cos(), centre[1] + radius * angles.sin()], 1)
    return points / torch.tensor([80, 60])


def test_masks_are_measured_against_outlines() -> None:
    """A mask that agrees finds its object; one of half the size does at an IoU of 0.25, which is none."""
    shapes = [((20, 25), 15), ((58, 30), 15)]
    boxes = torch.tensor([[x - r, y - r, x + r, y + r] for (x, y), r in shapes]).float()
    known = Labels(boxes / torch.tensor([80, 60, 80, 60]), torch.tensor([1, 2]), tuple(outline(*s) for s in shapes))
    masks = torch.stack([disc(*shapes[0]), disc(shapes[1][0], 7)])
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 2]))
    masked = lambda _, one: replace(one, masks=masks[one.classes - 1])  # noqa: E731
    sizes = [(60, 80)]
    assert average_precision([found], [known], sizes)["ap50"] == pytest.approx(1)
    precision = average_precision([found], [known], sizes, masked)
    assert precision["ap50"] == pytest.approx(0.5)  # the mean over two classes
    assert precision["ap75"] == pytest.approx(0.5)
    bare = replace(known, outlines=None)
    with pytest.raises(ValueError, match="no average precision"):
        average_precision([found], [bare], sizes, masked)


def test_only_masks_of_networks_that_draw_them_have_an_average_precision() -> None:
    square = Sketch(torch.ones(4, 4).half(), (0.0, 0.0), (20.0, 15.0), (5, 5, 30, 40))
    own = replace(found([0.9], [1]), sketches=(square,))
    known = Labels(BOXES[:1] / torch.tensor([80, 60, 80, 60]), torch.tensor([1]), (outline((17, 22), 17),))
    masked = lambda _, one: replace(one, masks=drawn(one.sketches or (), 60, 80))  # noqa: E731
    marks = scores([own], [own], [known], [(60, 80)], masked, [known])
    assert marks["mask_ap50"] == marks["teacher_mask_ap50"] == pytest.approx(1)
    assert marks["mask_ap"] < 1  # a square is no disc
    assert marks["mask_iou"] == 1
    plain = all_scores([found([0.9], [1])], [found([0.9], [1])], [known])
    assert "mask_ap50" not in plain
