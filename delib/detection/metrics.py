"""How good are detections? Against a teacher's: retention, inventions, agreement. Against labels: average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from delib.detection.coco import Labels
from delib.detection.infer import Detections
from delib.detection.masks import with_masks


def match(wanted: Detections, found: Detections, iou: float = 0.5) -> Tensor:
    """For each wanted object the index of the detection that found it, or -1: [wanted], int64.

    Found means: same class, intersection over union at least ``iou``. Each detection finds one object: the most
    confident object chooses first, among the free detections that of the largest overlap.
    """
    matches = torch.full((len(wanted),), -1, dtype=torch.long)
    if not len(wanted) or not len(found):
        return matches
    overlaps = box_iou(wanted.boxes, found.boxes)
    overlaps[wanted.classes[:, None] != found.classes[None]] = -1
    for i in wanted.scores.argsort(descending=True, stable=True).tolist():
        overlap, best = overlaps[i].max(0)
        if overlap >= iou:
            matches[i] = best
            overlaps[:, best] = -1
    return matches


@dataclass(frozen=True)
class Comparison:
    """A student's detections against its teacher's, over a set of photos.

    ``confidences`` [objects, 2]: each confident object of the teacher with the teacher's confidence and that of the
    student's detection that found it, 0 where none did. ``places`` [objects, 2]: its photo and its index among the
    teacher's detections there. ``asserted`` student's detections at 0.5 or more, ``invented`` of them match nothing
    that the teacher sees.
    """

    confidences: Tensor
    places: Tensor
    asserted: int
    invented: int

    @property
    def objects(self) -> int:
        return len(self.confidences)

    def retained(self, at: float = 0.25) -> int:
        """Number of the teacher's objects that the student finds with confidence ``at`` or more."""
        return int((self.confidences[:, 1] >= at).sum())

    def retention(self, at: float = 0.25) -> float:
        """Their share; 1 where the teacher has no confident object."""
        return self.retained(at) / self.objects if self.objects else 1.0

    @property
    def spurious(self) -> float:
        """Share of the student's detections that are invented; 0 where it has none."""
        return self.invented / self.asserted if self.asserted else 0.0

    @property
    def confidence_gap(self) -> float:
        """Mean absolute difference of confidences over the teacher's objects, lost ones counted as 0."""
        return float((self.confidences[:, 0] - self.confidences[:, 1]).abs().mean()) if self.objects else 0.0

    def lost(self, at: float = 0.25) -> list[tuple[int, int]]:
        """Photo and index among the teacher's detections of every object not retained."""
        return [(photo, index) for photo, index in self.places[self.confidences[:, 1] < at].tolist()]


def compare(
    teacher: Sequence[Detections],
    student: Sequence[Detections],
    *,
    confident: float = 0.8,
    asserted: float = 0.5,
    seen: float = 0.25,
    iou: float = 0.5,
) -> Comparison:
    """Compare detections photo by photo; both sides detected with a threshold of 0.25 or less.

    The objects are the teacher's with more than ``confident``. A student's detection at ``asserted`` or more is
    invented if it matches none of the teacher's at ``seen`` or more. Raises ValueError unless both sides are of the
    same photos, at least in number.
    """
    if len(teacher) != len(student):
        raise ValueError(f"the teacher's detections are of {len(teacher)} photos, the student's of {len(student)}")
    confidences, places, claims, inventions = [], [], 0, 0
    for photo, (t, s) in enumerate(zip(teacher, student, strict=True)):
        objects = (t.scores > confident).nonzero().squeeze(1)
        matches = match(t[objects], s, iou)
        # An index of -1 reads the zero appended for objects that nothing found.
        scores = torch.cat([s.scores, s.scores.new_zeros(1)])[matches]
        confidences.append(torch.stack([t.scores[objects], scores], 1))
        places.append(torch.stack([torch.full_like(objects, photo), objects], 1))
        claimed = s.above(asserted)
        claims += len(claimed)
        inventions += int((match(claimed, t.above(seen), iou) < 0).sum())
    if not confidences:
        return Comparison(torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.long), 0, 0)
    return Comparison(torch.cat(confidences), torch.cat(places), claims, inventions)


def average_precision(
    detections: Sequence[Detections], labels: Sequence[Labels], sizes: Sequence[tuple[int, int]]
) -> dict[str, float]:
    """COCO's ``ap`` (mean over IoU 0.50 to 0.95), ``ap50`` and ``ap75`` of detections made with a threshold ≤ 0.01.

    ``labels`` and ``sizes`` (height, width) belong to the same photos. Classes without any label do not count.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for photo, (found, known, (height, width)) in enumerate(zip(detections, labels, sizes, strict=True)):
        scale = known.boxes.new_tensor([width, height, width, height])
        for box, cls in zip(_corner_and_extent(known.boxes * scale), known.classes.tolist(), strict=True):
            annotation = {"id": len(truth) + 1, "image_id": photo, "category_id": cls, "bbox": box, "iscrowd": 0}
            truth.append(annotation | {"area": box[2] * box[3]})
        for box, cls, score in zip(
            _corner_and_extent(found.boxes), found.classes.tolist(), found.scores.tolist(), strict=True
        ):
            results.append({"image_id": photo, "category_id": cls, "bbox": box, "score": score})
    if not truth:
        raise ValueError("none of the photos has a labelled object, so there is no average precision")
    if not results:
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    classes = sorted({a["category_id"] for a in truth + results})
    known_photos = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    coco = COCO(
        {"images": known_photos, "annotations": truth, "categories": [{"id": c, "name": str(c)} for c in classes]}
    )
    evaluation = COCOeval_faster(coco, coco.loadRes(results), "bbox", print_function=lambda *_: None)
    evaluation.run()
    return dict(zip(("ap", "ap50", "ap75"), (float(v) for v in np.asarray(evaluation.stats[:3])), strict=True))


def _corner_and_extent(boxes: Tensor) -> list[list[float]]:
    """COCO's way to write boxes: left, top, width, height."""
    corner_and_extent: list[list[float]] = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    return corner_and_extent


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of pairs of masks [n, height, width] (bool): [n], 1 where both are empty."""
    union = (a | b).sum((1, 2))
    return torch.where(union > 0, (a & b).sum((1, 2)) / union.clamp(min=1), 1.0)


def mask_agreement(wanted: Sequence[Detections], found: Sequence[Detections], iou: float = 0.5) -> Tensor:
    """Mask IoU [pairs] of every wanted object that is found (see ``match``), over all photos; both with masks.

    With the teacher's confident detections as ``wanted`` and the student's as ``found``: how alike their masks are.
    """
    values = [torch.zeros(0)]
    for w, f in zip(wanted, found, strict=True):
        if w.masks is None or f.masks is None:
            raise ValueError("masks are compared, but a detection has none; call with_masks first")
        matches = match(w, f, iou)
        hit = matches >= 0
        values.append(mask_iou(w.masks[hit], f.masks[matches[hit]]))
    return torch.cat(values)


LEAST = 0.001  # confidence from which on detections count for average precision
SHOWN = 0.25  # ... and from which on they are shown and compared
CONFIDENT = 0.8  # above this, the teacher's detections are the objects to be retained


def scores(
    photos: Sequence[Tensor],
    teacher: Sequence[Detections],
    student: Sequence[Detections],
    labels: Sequence[Labels | None] = (),
) -> dict[str, float]:
    """Retention at 0.25 and 0.5, invented detections, masks' agreement and, with ``labels``, AP and AP50: a flat dict.

    ``photos`` are uint8 RGB [3, height, width]; both sides were detected with threshold ``LEAST``. Photos of which
    labels are None do not count for average precision; without any there is none.
    """
    shown = [found.above(SHOWN) for found in teacher], [found.above(SHOWN) for found in student]
    result = compare(*shown)
    objects = [found[found.scores > CONFIDENT] for found in shown[0]]
    finders = [found[_finding(these, found)] for these, found in zip(objects, shown[1], strict=True)]
    agreement = mask_agreement(with_masks(photos, objects)[0], with_masks(photos, finders)[0])
    marks: dict[str, float] = {
        "objects": result.objects,
        "retained_25": result.retained(0.25),
        "retained_50": result.retained(0.5),
        "retention_25": result.retention(0.25),
        "retention_50": result.retention(0.5),
        "asserted_50": result.asserted,
        "spurious_50": result.spurious,
        "confidence_gap": result.confidence_gap,
        "mask_iou": float(agreement.mean()) if len(agreement) else 1.0,
    }
    known = [(i, label) for i, label in enumerate(labels) if label is not None]
    if any(len(label) for _, label in known):
        truth, sizes = [label for _, label in known], [(photos[i].shape[1], photos[i].shape[2]) for i, _ in known]
        for side, found in (("teacher_", teacher), ("", student)):
            precision = average_precision([found[i] for i, _ in known], truth, sizes)
            marks |= {f"{side}{name}": precision[name] for name in ("ap", "ap50")}
    return marks


def _finding(objects: Detections, found: Detections) -> Tensor:
    """Which detections find an object: only their masks are needed, and masks take time."""
    matches = match(objects, found)
    return matches[matches >= 0]
