"""How far a student's raw detector outputs are from its teacher's, as a differentiable number: no labels, no boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from delib.assess import Divergence
from delib.darknet import Head

BOX_WEIGHT = 4.0  # makes a box's error weigh about as much as its classes' on YOLOv3-tiny


def detection_divergence(heads: Sequence[Head]) -> Divergence:
    """A divergence of raw outputs, one tensor a head (see ``Head``), in nats a photo.

    Every anchor in every cell adds the Kullback-Leibler divergence of its objectness; weighted by the teacher's
    objectness it also adds that of each class and the squared error of its box: what is no object has no class.
    """

    def divergence(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        sums = [_head_sum(head, s, t) for head, s, t in zip(heads, student, teacher, strict=True)]
        return torch.stack(sums).sum() / len(teacher[0])

    return divergence


def _head_sum(head: Head, student: Tensor, teacher: Tensor) -> Tensor:
    """One head's divergence, summed over photos, anchors and cells."""
    n, _, rows, columns = teacher.shape
    shape = (n, len(head.anchors), 5 + head.classes, rows, columns)
    s, t = student.reshape(shape).float(), teacher.reshape(shape).float()
    present = t[:, :, 4].sigmoid()
    boxes = (s[:, :, :2].sigmoid() - t[:, :, :2].sigmoid()).square().sum(2)
    boxes = boxes + (s[:, :, 2:4] - t[:, :, 2:4]).square().sum(2)
    classes = bernoulli_kl(s[:, :, 5:], t[:, :, 5:]).sum(2)
    objectness = bernoulli_kl(s[:, :, 4], t[:, :, 4])
    return (objectness + present * (classes + BOX_WEIGHT * boxes)).sum()


def bernoulli_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of sigmoid(student) from sigmoid(teacher), elementwise, from logits, in nats."""
    p = teacher.sigmoid()
    return p * (F.logsigmoid(teacher) - F.logsigmoid(student)) + (1 - p) * (
        F.logsigmoid(-teacher) - F.logsigmoid(-student)
    )
