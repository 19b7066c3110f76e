"""One student's marks: all that is measured of a detector against its teacher and, where there are some, labels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from delib.coco import Labels
from delib.compare import average_precision, compare, match
from delib.detect import Detections
from delib.segment import mask_agreement, with_masks

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
