"""How far a student's raw detector outputs are from its teacher's, as a differentiable number: no labels, no boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from delib.detection.heads import FreeHead, Head
from delib.nn.divergence import Divergence

# A network's outputs -> how much each position counts [n, rows, columns].
PositionWeights = Callable[[Sequence[Tensor]], Tensor]
FLOOR = 0.1  # what a position without any object counts: on a photo of COCO all of them then weigh about half
BOX_WEIGHT = 4.0  # makes a box's error weigh about as much as its classes' on YOLOv3-tiny
# What classes count where a teacher sees nothing, in recovery on few photos. How it tells kinds apart shows in its
# doubts on the background too, also of kinds that no photo holds. With ten times as much classes come out better still,
# but objectness a third worse.
BACKGROUND = 0.004
MASK_WEIGHT = 0.1  # of a squared error of mask logits, which are far from 0 but along outlines


def detection_divergence(
    heads: Sequence[Head | FreeHead], background: float = 0.0, boxes: float = BOX_WEIGHT, masks: float = MASK_WEIGHT
) -> Divergence:
    """A divergence of raw outputs, one tensor per head, in nats per photo.

    Every anchor in every cell adds the Kullback-Leibler divergence of its objectness; weighted by the teacher's
    objectness it also adds that of each class and the squared error of its box: what is no object has no class.
    ``background`` is added to the classes' weight everywhere: none where a student is measured, ``BACKGROUND`` where it
    learns. ``boxes`` is the weight of the boxes' errors; where a student learns, more of it makes its outlines better.

    Heads without objectness (``FreeHead``) add the divergence of each class in every cell and, weighted by the
    teacher's highest class probability, that of the distributions of a box's sides.

    Where heads have mask coefficients, mask prototypes are the last of the outputs, and ``masks`` is the weight of
    ``mask_error``.
    """

    def divergence(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        levels = list(zip(heads, student, teacher, strict=len(teacher) == len(heads)))
        sums = [
            _head_sum(head, s, t, background, boxes) if isinstance(head, Head) else _free_sum(head, s, t, boxes)
            for head, s, t in levels
        ]
        total = torch.stack(sums).sum()
        if masks and heads[0].coefficients:
            total = total + masks * mask_error(heads, student, teacher)
        return total / len(teacher[0])

    return divergence


def _head_sum(head: Head, student: Tensor, teacher: Tensor, background: float, box_weight: float) -> Tensor:
    """One head's divergence, summed over photos, anchors and cells."""
    s, t = (head.split(raw.float()).movedim(2, -1) for raw in (student, teacher))
    present = t[..., 4].sigmoid()
    boxes = (head.placed(s[..., :4]) - head.placed(t[..., :4])).square().sum(-1)
    classes = slice(5, 5 + head.classes)
    kinds = bernoulli_kl(s[..., classes], t[..., classes]).sum(-1)
    objectness = bernoulli_kl(s[..., 4], t[..., 4])
    return (objectness + (present + background) * kinds + present * box_weight * boxes).sum()


def _free_sum(head: FreeHead, student: Tensor, teacher: Tensor, box_weight: float) -> Tensor:
    """The same of a head without anchors."""
    (s_sides, s_classes, _), (t_sides, t_classes, _) = (head.split(raw.float()) for raw in (student, teacher))
    present = t_classes.sigmoid().amax(1)
    if head.bins == 1:
        boxes = (s_sides - t_sides).square().sum((1, 2))
    else:
        logarithms = s_sides.log_softmax(2), t_sides.log_softmax(2)
        boxes = F.kl_div(*logarithms, reduction="none", log_target=True).sum((1, 2))
    return bernoulli_kl(s_classes, t_classes).sum() + box_weight * (present * boxes).sum()


def mask_error(heads: Sequence[Head | FreeHead], student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The squared error of the mask logits Σ_k c_k P_k of what the teacher sees, to first order, summed over photos.

    An error δc of an object's coefficients changes its logits by Σ δc_k P_k, one δP of the prototypes by Σ c_k δP_k.
    The first counts with the prototypes' mean squares, for each object; the second with the coefficients' mean squares
    over the objects, times their number. Objects are places weighted by how sure the teacher is of them; positions of
    prototypes count by ``position_weights``. To scale the coefficients up and the prototypes down changes nothing.
    """
    s_masks, t_masks = student[-1].float(), teacher[-1].float()
    places = position_weights(heads)(teacher)[:, None]
    places = F.interpolate(places, t_masks.shape[2:])
    places = places / places.sum((2, 3), keepdim=True)
    squares = (places * t_masks.square()).sum((2, 3))  # [n, k], mean over places
    present, seen, coefficients = [], [], []
    for head, s, t in zip(heads, student, teacher):
        sure = head.certainty(t.float()).sigmoid()
        present.append((sure if isinstance(head, Head) else sure.amax(1, keepdim=True)).flatten(1))
        s_own, t_own = (head.mask_coefficients(raw.float()).movedim(2, -1).flatten(1, 3) for raw in (s, t))
        coefficients.append((s_own - t_own).square())
        seen.append(t_own.square())
    weights = torch.cat(present, 1)[..., None]
    wrong = (weights * torch.cat(coefficients, 1)).sum(1) * squares
    objects = (weights * torch.cat(seen, 1)).sum(1)  # [n, k], the coefficients' mean squares times the objects
    drawn = (places * (s_masks - t_masks).square()).sum((2, 3)) * objects
    return (wrong + drawn).sum()


def position_weights(heads: Sequence[Head | FreeHead], floor: float = FLOOR) -> PositionWeights:
    """Where a detector sees something: maps for ``layerwise.moments`` and ``distill``, in the finest head's cells.

    A cell counts ``floor`` and beside it the highest objectness (0..1) that any anchor of any head has there or in one
    of the eight cells around: these are what its 3 x 3 kernels look at. Without objectness the highest class
    probability counts.
    """

    def maps(outputs: Sequence[Tensor]) -> Tensor:
        levels = outputs[: len(heads)]
        size, seen = max(raw.shape[2:] for raw in levels), []
        for head, raw in zip(heads, levels, strict=True):
            sure = head.certainty(raw).sigmoid().amax(1, keepdim=True)
            seen.append(F.adaptive_max_pool2d(F.max_pool2d(sure, 3, 1, 1), size))
        return floor + torch.cat(seen, 1).amax(1)

    return maps


def bernoulli_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of sigmoid(student) from sigmoid(teacher), elementwise, from logits, in nats."""
    p = teacher.sigmoid()
    return p * (F.logsigmoid(teacher) - F.logsigmoid(student)) + (1 - p) * (
        F.logsigmoid(-teacher) - F.logsigmoid(-student)
    )
