"""How far a student's raw detector outputs are from its teacher's, as a differentiable number: no labels, no boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from delib.detection.darknet import Head
from delib.nn.divergence import Divergence

# A network's outputs -> how much each position counts [n, rows, columns].
PositionWeights = Callable[[Sequence[Tensor]], Tensor]
FLOOR = 0.1  # what a position without any object counts: on a photo of COCO all of them then weigh about half
BOX_WEIGHT = 4.0  # makes a box's error weigh about as much as its classes' on YOLOv3-tiny
# What classes count where a teacher sees nothing, in recovery on few photos. How it tells kinds apart shows in its
# doubts on the background too, also of kinds that no photo holds. With ten times as much classes come out better still,
# but objectness a third worse.
BACKGROUND = 0.004


def detection_divergence(heads: Sequence[Head], background: float = 0.0, boxes: float = BOX_WEIGHT) -> Divergence:
    """A divergence of raw outputs, one tensor per head (see ``Head``), in nats per photo.

    Every anchor in every cell adds the Kullback-Leibler divergence of its objectness; weighted by the teacher's
    objectness it also adds that of each class and the squared error of its box: what is no object has no class.
    ``background`` is added to the classes' weight everywhere: none where a student is measured, ``BACKGROUND`` where it
    learns. ``boxes`` is the weight of the boxes' errors; where a student learns, more of it makes its outlines better.
    """

    def divergence(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        sums = [_head_sum(head, s, t, background, boxes) for head, s, t in zip(heads, student, teacher, strict=True)]
        return torch.stack(sums).sum() / len(teacher[0])

    return divergence


def _head_sum(head: Head, student: Tensor, teacher: Tensor, background: float, box_weight: float) -> Tensor:
    """One head's divergence, summed over photos, anchors and cells."""
    n, _, rows, columns = teacher.shape
    shape = (n, len(head.anchors), 5 + head.classes, rows, columns)
    s, t = student.reshape(shape).float(), teacher.reshape(shape).float()
    present = t[:, :, 4].sigmoid()
    boxes = (s[:, :, :2].sigmoid() - t[:, :, :2].sigmoid()).square().sum(2)
    boxes = boxes + (s[:, :, 2:4] - t[:, :, 2:4]).square().sum(2)
    classes = bernoulli_kl(s[:, :, 5:], t[:, :, 5:]).sum(2)
    objectness = bernoulli_kl(s[:, :, 4], t[:, :, 4])
    return (objectness + (present + background) * classes + present * box_weight * boxes).sum()


def position_weights(heads: Sequence[Head], floor: float = FLOOR) -> PositionWeights:
    """Where a detector sees something: maps for ``layerwise.moments`` and ``distill``, in the finest head's cells.

    A cell counts ``floor`` and beside it the highest objectness (0..1) that any anchor of any head has there or in one
    of the eight cells around: these are what its 3 x 3 kernels look at.
    """

    def maps(outputs: Sequence[Tensor]) -> Tensor:
        size = max(raw.shape[2:] for raw in outputs)
        seen = []
        for head, raw in zip(heads, outputs, strict=True):
            objectness = raw[:, 4 :: 5 + head.classes].sigmoid().amax(1, keepdim=True)
            seen.append(F.adaptive_max_pool2d(F.max_pool2d(objectness, 3, 1, 1), size))
        return floor + torch.cat(seen, 1).amax(1)

    return maps


def bernoulli_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of sigmoid(student) from sigmoid(teacher), elementwise, from logits, in nats."""
    p = teacher.sigmoid()
    return p * (F.logsigmoid(teacher) - F.logsigmoid(student)) + (1 - p) * (
        F.logsigmoid(-teacher) - F.logsigmoid(-student)
    )
