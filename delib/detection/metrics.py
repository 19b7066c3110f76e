"""How good detections are: against a teacher's, by retention, false positives and masks; against labels, by AP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from delib.detection.coco import Labels
from delib.detection.infer import CONFIDENT, LIKELY, SHOWN, Detections

# The number of a photo and detections on it -> these with masks.
Masked = Callable[[int, Detections], Detections]


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


def lost_objects(teacher: Detections, student: Detections) -> Detections:
    """The teacher's objects on one photo (above ``CONFIDENT``) that none of the student's detections finds."""
    objects = teacher[teacher.scores > CONFIDENT]
    return objects[match(objects, student) < 0]


@dataclass(frozen=True)
class Comparison:
    """A student's detections against its teacher's, over a set of photos.

    ``confidences`` [objects, 2]: each confident object of the teacher with the teacher's confidence and that of the
    student's detection that found it, 0 where none did. ``places`` [objects, 2]: its photo and its index among the
    teacher's detections there. ``detections`` is the number of the student's at ``LIKELY`` or more, of which
    ``false_positives`` match none of the teacher's at ``SHOWN`` or more.
    """

    confidences: Tensor
    places: Tensor
    detections: int
    false_positives: int

    @property
    def objects(self) -> int:
        return len(self.confidences)

    def retained(self, at: float = SHOWN) -> int:
        """Number of the teacher's objects that the student finds with confidence ``at`` or more."""
        return int((self.confidences[:, 1] >= at).sum())

    def retention(self, at: float = SHOWN) -> float:
        """Their share; 1 where the teacher has no confident object."""
        return self.retained(at) / self.objects if self.objects else 1.0

    @property
    def false_positive_rate(self) -> float:
        """Share of false positives among the student's detections; 0 where it has none."""
        return self.false_positives / self.detections if self.detections else 0.0

    @property
    def confidence_gap(self) -> float:
        """Mean absolute difference of confidences over the teacher's objects, lost ones counted as 0."""
        return float((self.confidences[:, 0] - self.confidences[:, 1]).abs().mean()) if self.objects else 0.0


def compare(
    teacher: Sequence[Detections], student: Sequence[Detections], *, confident: float = CONFIDENT, iou: float = 0.5
) -> Comparison:
    """Compare detections photo by photo; both sides detected with a threshold of ``SHOWN`` or less.

    The objects are the teacher's with more than ``confident``. Raises ValueError unless both sides are of the same
    photos, at least in number.
    """
    if len(teacher) != len(student):
        raise ValueError(f"the teacher's detections are of {len(teacher)} photos, the student's of {len(student)}")
    confidences, places, detections, false_positives = [torch.zeros(0, 2)], [torch.zeros(0, 2, dtype=torch.long)], 0, 0
    for photo, (t, s) in enumerate(zip(teacher, student, strict=True)):
        objects = (t.scores > confident).nonzero().squeeze(1)
        matches = match(t[objects], s, iou)
        # An index of -1 reads the zero appended for objects that nothing found.
        scores = torch.cat([s.scores, s.scores.new_zeros(1)])[matches]
        confidences.append(torch.stack([t.scores[objects], scores], 1))
        places.append(torch.stack([torch.full_like(objects, photo), objects], 1))
        likely = s.above(LIKELY)
        detections += len(likely)
        false_positives += int((match(likely, t.above(SHOWN), iou) < 0).sum())
    return Comparison(torch.cat(confidences), torch.cat(places), detections, false_positives)


def average_precision(
    detections: Sequence[Detections],
    labels: Sequence[Labels | None],
    sizes: Sequence[tuple[int, int]],
    masked: Masked | None = None,
) -> dict[str, float]:
    """COCO's ``ap`` (mean over IoU 0.50 to 0.95), ``ap50`` and ``ap75`` of detections made with threshold ``LEAST``.

    ``labels`` and ``sizes`` (height, width) belong to the same photos. Photos of which labels are None, and classes
    without any label, do not count. With ``masked`` the masks that it gives are compared with the labels' outlines, of
    labels that have them, instead of boxes with boxes. Raises ValueError where no photo has an object.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for photo, (found, known, size) in enumerate(zip(detections, labels, sizes, strict=True)):
        if known is None or (masked is not None and known.outlines is None):
            continue
        for one in _labelled(known, size):
            truth.append(one | {"image_id": photo, "id": len(truth) + 1, "iscrowd": 0})
        places = _regions(photo, found, masked)
        rows = zip(found.classes.tolist(), places, found.scores.tolist(), strict=True)
        results += [{"image_id": photo, "category_id": cls, "score": score} | place for cls, place, score in rows]
    if not truth:
        raise ValueError("none of the photos has a labelled object, so there is no average precision")
    if not results:
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    classes = sorted({a["category_id"] for a in truth + results})
    images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    categories = [{"id": c, "name": str(c)} for c in classes]
    coco = COCO({"images": images, "annotations": truth, "categories": categories})
    kind = "bbox" if masked is None else "segm"
    evaluation = COCOeval_faster(coco, coco.loadRes(results), kind, print_function=lambda *_: None)
    evaluation.run()
    return dict(zip(("ap", "ap50", "ap75"), (float(v) for v in np.asarray(evaluation.stats[:3])), strict=True))


def _labelled(known: Labels, size: tuple[int, int]) -> list[dict[str, Any]]:
    """A photo's labels as COCO writes them, in pixels."""
    scale = known.boxes.new_tensor([size[1], size[0]])
    boxes = _corner_and_size(known.boxes * scale.repeat(2))
    rows = [
        {"category_id": cls, "bbox": box, "area": box[2] * box[3]}
        for cls, box in zip(known.classes.tolist(), boxes, strict=True)
    ]
    for row, outline in zip(rows, known.outlines or ()):
        row["segmentation"] = [(outline * scale).flatten().tolist()]
    return rows


def _regions(photo: int, found: Detections, masked: Masked | None) -> list[dict[str, Any]]:
    """Where detections are, as COCO writes it: boxes, or masks in run lengths, one drawn after another."""
    if masked is None:
        return [{"bbox": box} for box in _corner_and_size(found.boxes)]
    from faster_coco_eval.core import mask as run_lengths

    drawn = (masked(photo, found[i : i + 1]).masks for i in range(len(found)))
    return [
        {"segmentation": run_lengths.encode(np.asfortranarray(m[0].numpy(), np.uint8))} for m in drawn if m is not None
    ]


def _corner_and_size(boxes: Tensor) -> Any:
    """Boxes as COCO writes them: left, top, width, height."""
    return box_convert(boxes, "xyxy", "xywh").tolist()


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of masks [n, h, w], pair by pair: [n]; 1 where both are empty."""
    both, either = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones(len(a)))


def mask_agreement(wanted: Sequence[Detections], found: Sequence[Detections]) -> Tensor:
    """The IoU of the masks of each wanted object and the detection that found it, for the objects that were found.

    Raises ValueError where detections have no masks.
    """
    agreement = [torch.zeros(0)]
    for ours, theirs in zip(wanted, found, strict=True):
        if ours.masks is None or theirs.masks is None:
            raise ValueError("these detections have no masks; draw them by grabcut")
        matches = match(ours, theirs)
        hit = matches >= 0
        agreement.append(mask_iou(ours.masks[hit], theirs.masks[matches[hit]]))
    return torch.cat(agreement)


def scores(
    teacher: Sequence[Detections],
    student: Sequence[Detections],
    labels: Sequence[Labels | None],
    sizes: Sequence[tuple[int, int]],
    masked: Masked,
    outlined: Sequence[Labels | None] = (),
) -> dict[str, float]:
    """All metrics of a student as a flat dict: retention and false positives, agreement of masks, average precision.

    Both sides were detected with threshold ``LEAST``, on photos of ``sizes`` (height, width). ``masked`` gives the
    detections on the photo of that number with masks. Without labelled objects there is no average precision, and none
    of masks unless both sides drew theirs themselves and some photo's labels in ``outlined`` have outlines.
    """
    seen, found_again = ([one.above(SHOWN) for one in side] for side in (teacher, student))
    result = compare(seen, found_again)
    objects = [masked(i, one[one.scores > CONFIDENT]) for i, one in enumerate(seen)]
    # Masks take time: only those that are compared are drawn, of detections that find an object.
    matches = [match(wanted, one) for wanted, one in zip(objects, found_again, strict=True)]
    finders = [masked(i, one[matches[i][matches[i] >= 0]]) for i, one in enumerate(found_again)]
    agreement = mask_agreement(objects, finders)
    metrics: dict[str, float] = {
        "objects": result.objects,
        "retained_25": result.retained(SHOWN),
        "retained_50": result.retained(LIKELY),
        "retention_25": result.retention(SHOWN),
        "retention_50": result.retention(LIKELY),
        "detections_50": result.detections,
        "false_positives_50": result.false_positive_rate,
        "confidence_gap": result.confidence_gap,
        "mask_iou": float(agreement.mean()) if len(agreement) else 1.0,
    }
    own = all(one.sketches is not None for one in (*teacher, *student))
    for side, found in (("teacher_", teacher), ("", student)):
        if any(labels):
            precision = average_precision(found, labels, sizes)
            metrics |= {f"{side}{name}": precision[name] for name in ("ap", "ap50")}
        if own and any(outlined):
            precision = average_precision(found, outlined, sizes, masked)
            metrics |= {f"{side}mask_{name}": precision[name] for name in ("ap", "ap50")}
    return metrics


# How the metrics of a compressed detector are read, in this order; each name with its format.
READABLE = {
    "sparsity of all convolution weights": "{sparsity:.2%}",
    "bits per survivor": "{bits}",
    "file": "{encoded_bytes:,} bytes, {compression_ratio:.1f} times smaller",
    "objects found with 0.25 or more": "{retained_25} of {objects}",
    "objects found with 0.5 or more": "{retained_50} of {objects}",
    "detections at 0.5, of these false positives": "{detections_50}, {false_positives_50:.1%}",
    "agreement of masks (mean IoU)": "{mask_iou:.3f}",
    "divergence on validation photos": "{validation_divergence:.3f}",
    "AP50 against labels": "{ap50:.3f} (teacher {teacher_ap50:.3f})",
    "AP50 of its own masks against outlines": "{mask_ap50:.3f} (teacher {teacher_mask_ap50:.3f})",
    "photos": "{photos_tested}",
}


def score_table(metrics: Mapping[str, float]) -> dict[str, str]:
    """Metrics as rows that can be read, those that there are."""
    rows = {}
    for name, form in READABLE.items():
        with suppress(KeyError):
            rows[name] = form.format(**metrics)
    return rows
