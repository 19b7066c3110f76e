"""The divergence of raw detections: zero where they agree, as defined cell by cell, blind to what is no object."""

import math

import pytest
import torch

from delib.detection.divergence import BOX_WEIGHT, bernoulli_kl, detection_divergence, position_weights
from delib.detection.heads import Head

HEADS = [Head(((10.0, 14.0), (23.0, 27.0)), 3), Head(((30.0, 30.0),), 3)]


def outputs(seed: int) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 16, 2, 3, generator=chance), torch.randn(2, 8, 4, 6, generator=chance)]


def test_zero_where_they_agree_and_positive_elsewhere() -> None:
    divergence = detection_divergence(HEADS)
    assert float(divergence(outputs(0), outputs(0))) == pytest.approx(0, abs=1e-6)
    assert float(divergence(outputs(1), outputs(0))) > 0.1


@pytest.mark.parametrize(("background", "boxes"), [(0.0, BOX_WEIGHT), (0.3, BOX_WEIGHT), (0.3, 7.0)])
def test_it_is_the_sum_over_cells_written_out(background: float, boxes: float) -> None:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def kl(s: float, t: float) -> float:
        p, q = sigmoid(t), sigmoid(s)
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    student, teacher, total = outputs(1), outputs(0), 0.0
    for head, s_all, t_all in zip(HEADS, student, teacher, strict=True):
        for n in range(2):
            for anchor in range(len(head.anchors)):
                for y in range(t_all.shape[2]):
                    for x in range(t_all.shape[3]):
                        s, t = (o[n, 8 * anchor : 8 * anchor + 8, y, x].tolist() for o in (s_all, t_all))
                        box = sum((sigmoid(s[i]) - sigmoid(t[i])) ** 2 for i in (0, 1))
                        box += sum((s[i] - t[i]) ** 2 for i in (2, 3))
                        classes = sum(kl(s[i], t[i]) for i in (5, 6, 7))
                        present = sigmoid(t[4])
                        total += kl(s[4], t[4]) + (present + background) * classes + present * boxes * box
    assert float(detection_divergence(HEADS, background, boxes)(student, teacher)) == pytest.approx(total / 2, rel=1e-4)


def test_boxes_and_classes_where_the_teacher_sees_nothing_do_not_count() -> None:
    teacher = outputs(0)
    for head, raw in zip(HEADS, teacher, strict=True):
        raw.view(2, len(head.anchors), 8, *raw.shape[2:])[:, :, 4] = -80
    student = [raw.clone() for raw in teacher]
    for head, raw in zip(HEADS, student, strict=True):
        raw.view(2, len(head.anchors), 8, *raw.shape[2:])[:, :, [0, 2, 5]] += 1
    assert float(detection_divergence(HEADS)(student, teacher)) < 1e-6
    assert float(detection_divergence(HEADS, background=0.1)(student, teacher)) > 0.01  # then classes do


def test_extreme_logits_stay_finite_and_have_gradients() -> None:
    student = torch.tensor([-100.0, 100.0, 0.0], requires_grad=True)
    loss = bernoulli_kl(student, torch.tensor([100.0, -100.0, 0.0])).sum()
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert torch.isfinite(student.grad).all()


def test_focus_is_high_around_what_any_head_sees_and_at_the_floor_elsewhere() -> None:
    coarse, fine = torch.full((1, 16, 4, 4), -80.0), torch.full((1, 8, 8, 8), -80.0)
    coarse[0, 12, 0, 0] = 80  # objectness of the second anchor
    fine[0, 4, 6, 6] = 0
    maps = position_weights(HEADS, floor=0.25)([coarse, fine])
    wanted = torch.full((1, 8, 8), 0.25)
    wanted[0, :4, :4] += 1  # two coarse cells each way are four fine ones
    wanted[0, 5:8, 5:8] += 0.5
    assert torch.allclose(maps, wanted)
