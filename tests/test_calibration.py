"""A student's confidence put right: what was shifted comes back, averages meet, orders stay."""

import copy

import pytest
import torch
from foreign import small
from torch import nn

from delib.detection.calibration import calibrate_objectness
from delib.detection.divergence import detection_divergence
from delib.detection.heads import Head
from delib.detection.ultralytics import load_ultra

HEADS = [Head(((10.0, 14.0), (23.0, 27.0)), 3), Head(((30.0, 30.0),), 3)]


class TwoHeads(nn.Module):
    """A backbone and two heads, the second one at twice the resolution."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Conv2d(3, 6, 3, padding=1)
        self.coarse, self.fine = nn.Conv2d(6, 16, 2, stride=2), nn.Conv2d(6, 8, 1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.body(x).relu()
        return [self.coarse(x), self.fine(x)]


def photos(seed: int) -> torch.Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def certainty(network: TwoHeads, teacher: TwoHeads, x: torch.Tensor) -> list[tuple[float, float]]:
    """By head, mean objectness of network and teacher, counted by the teacher's, written out."""
    means = []
    for head, ours, theirs in zip(HEADS, network(x), teacher(x), strict=True):
        rows = [anchor * (5 + head.classes) + 4 for anchor in range(len(head.anchors))]
        p, q = theirs[:, rows].sigmoid(), ours[:, rows].sigmoid()
        means.append((float((p * q).sum() / p.sum()), float((p * p).sum() / p.sum())))
    return means


def test_biases_that_were_moved_come_back_and_nothing_else_moves() -> None:
    teacher = TwoHeads(0)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.coarse.bias[[4, 12]] -= 1.5
        student.fine.bias[4] += 0.7
    found = calibrate_objectness(student, teacher, HEADS, photos(0), batch=2)
    assert [c.shift for c in found] == pytest.approx([1.5, -0.7], abs=1e-5)
    for (name, ours), theirs in zip(student.named_parameters(), teacher.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5), name


@pytest.mark.parametrize("seed", range(4))
def test_a_different_student_ends_as_sure_as_the_teacher_on_average(seed: int) -> None:
    teacher, student, x = TwoHeads(0), TwoHeads(seed + 1), photos(seed)
    before = certainty(student, teacher, x)
    found = calibrate_objectness(student, teacher, HEADS, x)
    assert [(c.student, c.teacher) for c in found] == [pytest.approx(pair, abs=1e-5) for pair in before]
    for ours, theirs in certainty(student, teacher, x):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_teacher_needs_no_shift_and_a_hopeless_student_gets_a_bounded_one() -> None:
    teacher = TwoHeads(0)
    same = calibrate_objectness(copy.deepcopy(teacher), teacher, HEADS, photos(1))
    assert [c.shift for c in same] == pytest.approx([0, 0], abs=1e-5)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.fine.bias[4] -= 1000
    found = calibrate_objectness(student, teacher, HEADS, photos(1))
    assert found[1].shift == pytest.approx(8, abs=1e-4)
    outputs, goal = student(photos(1)), teacher(photos(1))
    assert torch.isfinite(detection_divergence(HEADS)(outputs, goal))


def test_networks_without_objectness_have_their_classes_shifted() -> None:
    teacher = load_ultra("yolo11n-seg.yaml")
    student, images = copy.deepcopy(teacher), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    moved = [-0.8, 0.5, 0.0]
    for bias, step in zip(student.certainty_biases(), moved, strict=True):
        bias += step
    assert [c.shift for c in teacher.calibrate(student, images)] == pytest.approx([0.8, -0.5, 0.0], abs=1e-4)
    for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_networks_with_masks_are_calibrated_by_their_objectness() -> None:
    teacher = small()
    student, images = copy.deepcopy(teacher), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        student.model[-1].m[0].bias[4::16] -= 0.6
    assert [c.shift for c in teacher.calibrate(student, images)] == pytest.approx([0.6, 0], abs=1e-4)


def test_heads_that_are_no_layers_outputs_are_refused() -> None:
    class Doubled(TwoHeads):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [2 * raw for raw in super().forward(x)]

    with pytest.raises(ValueError, match="every head is the output of a layer with a bias"):
        calibrate_objectness(Doubled(0), Doubled(0), HEADS, photos(0))
