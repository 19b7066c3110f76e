"""The divergence of raw detections: zero where they agree, as defined cell by cell, blind to what is no object."""

import math

import pytest
import torch

from delib.detection.divergence import BOX_WEIGHT, bernoulli_kl, detection_divergence, mask_error, position_weights
from delib.detection.heads import FreeHead, Head, SquaredHead

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


def test_boxes_of_yolov5_count_in_cells_and_logarithms_of_sides() -> None:
    head = SquaredHead(((10.0, 14.0),), 1)
    student, teacher = ([torch.randn(1, 6, 2, 2, generator=torch.Generator().manual_seed(i))] for i in range(2))
    wide, none = (float(detection_divergence([head], boxes=weight)(student, teacher)) for weight in (3.0, 0.0))
    s, t = student[0].sigmoid(), teacher[0].sigmoid()
    middles = (2 * s[:, :2] - 2 * t[:, :2]).square().sum(1)
    sides = ((2 * s[:, 2:4]).square().log() - (2 * t[:, 2:4]).square().log()).square().sum(1)
    assert wide - none == pytest.approx(3 * float((t[:, 4] * (middles + sides)).sum()), rel=1e-4)


def test_without_anchors_it_is_the_sum_over_cells_written_out() -> None:
    heads = [FreeHead(3, 2), FreeHead(3, 2)]
    student, teacher = ([torch.randn(2, 14, n, n) for n in (3, 2)] for _ in range(2))
    total = torch.zeros(())
    for s, t in zip(student, teacher, strict=True):
        p, q = t[:, 12:].sigmoid(), s[:, 12:].sigmoid()
        total = total + (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
        for side in range(4):
            p_side, q_side = (o[:, 3 * side : 3 * side + 3].softmax(1) for o in (t, s))
            total = total + 5.0 * (p.amax(1) * (p_side * (p_side / q_side).log()).sum(1)).sum()
    divergence = detection_divergence(heads, boxes=5.0)
    assert float(divergence(student, teacher)) == pytest.approx(float(total) / 2, rel=1e-4)
    assert float(divergence(teacher, teacher)) == pytest.approx(0, abs=1e-5)


def masked(kind: type[SquaredHead] | type[FreeHead]) -> tuple[list, list[torch.Tensor]]:
    """Two levels with four mask coefficients and prototypes; the teacher sees one thing."""
    chance = torch.Generator().manual_seed(0)
    heads = [SquaredHead(((9.0, 9.0),), 2, 4) if kind is SquaredHead else FreeHead(1, 2, 4) for _ in range(2)]
    channels = 11 if kind is SquaredHead else 10
    outputs = [torch.randn(1, channels, n, n, generator=chance) for n in (8, 4)]
    for raw in outputs:
        raw[:, 4:6] = -60
    outputs[0][0, 4, 5, 2] = 60
    return heads, [*outputs, torch.randn(1, 4, 16, 16, generator=chance)]


@pytest.mark.parametrize("kind", [SquaredHead, FreeHead])
def test_mask_errors_are_those_of_the_logits_of_what_is_seen(kind) -> None:
    heads, teacher = masked(kind)
    own = slice(7, 11) if kind is SquaredHead else slice(6, 10)
    weights = position_weights(heads)(teacher).repeat_interleave(2, 1).repeat_interleave(2, 2)[0]
    weights = weights / weights.sum()
    for step in (-0.3, 0.4):
        student = [t.clone() for t in teacher]
        student[0][0, own.start + 1, 5, 2] += step  # of one coefficient, where the thing is
        student[0][0, own, 0, 0] += 9  # and of others, where nothing is
        expected = ((step * teacher[2][0, 1]).square() * weights).sum()
        assert float(mask_error(heads, student, teacher)) == pytest.approx(float(expected), rel=1e-3)
        student = [t.clone() for t in teacher]
        student[2][0, 3] += step
        expected = (step * teacher[0][0, own, 5, 2][3]) ** 2
        assert float(mask_error(heads, student, teacher)) == pytest.approx(float(expected), rel=1e-3)
    assert float(mask_error(heads, teacher, teacher)) == 0


def test_mask_errors_know_no_scale_of_their_own() -> None:
    heads, teacher = masked(SquaredHead)
    student = [t + 0.1 * torch.randn_like(t) for t in teacher]

    def scaled(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.cat([raw[:, :7], 8 * raw[:, 7:]], 1) for raw in outputs[:2]] + [outputs[2] / 8]

    plain, other = mask_error(heads, student, teacher), mask_error(heads, scaled(student), scaled(teacher))
    assert float(plain) > 0
    assert float(other) == pytest.approx(float(plain), rel=1e-4)
    full, bare = (detection_divergence(heads, masks=weight)(student, teacher) for weight in (2.0, 0.0))
    assert float(full - bare) == pytest.approx(2 * float(plain), rel=1e-3)
