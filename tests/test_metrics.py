"""All metrics of a detector at once, on photos whose detections are known."""

from dataclasses import replace

import pytest
import torch

from delib.detection.coco import Labels
from delib.detection.infer import Detections
from delib.detection.masks import grabcut
from delib.detection.metrics import scores

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
