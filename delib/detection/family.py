"""The students of a detector that ship: one thinned on from another, each with its file and the record of what was
measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from delib.coding.quantized import Quantized
from delib.detection.darknet import Darknet
from delib.detection.infer import LIKELY, SHOWN
from delib.detection.zoo import load_yolo
from delib.files import project_root


@dataclass(frozen=True)
class ShippedStudent:
    """A student in ``data/students``: its ``teacher``'s name, its ``file``, and its record's ``metrics``."""

    teacher: str
    file: Path
    metrics: Mapping[str, float]

    @property
    def sparsity(self) -> float:
        """Share of the convolutions' weights that are zero."""
        return self.metrics["sparsity"]

    def network(self) -> Darknet:
        """The student, decoded. Raises DataUnavailable where its teacher's file can neither be found nor fetched."""
        network = Quantized.load(self.file).network(load_yolo(self.teacher))
        assert isinstance(network, Darknet)
        return network


def shipped(teacher: str = "yolov3-tiny") -> list[ShippedStudent]:
    """The teacher's students in ``data/students``, the densest first."""
    records = (project_root() / "data" / "students").glob(f"{teacher}-s*.json")
    found = [
        ShippedStudent(teacher, path.with_suffix(".delib"), json.loads(path.read_text(encoding="utf-8"))["metrics"])
        for path in records
    ]
    return sorted(found, key=lambda student: student.sparsity)


RATIO = "compression_ratio"
CLAIMED = (40, 80)  # how many times smaller the paper's students are
Lines = dict[str, tuple[list[float], list[float]]]
Band = tuple[str, float, float]


def kept(students: Sequence[ShippedStudent]) -> tuple[Lines, Band]:
    """What the students, the densest first, keep of what their teacher finds, against their sparsity: lines for
    ``suite.figures.curves``, of which the first point is the teacher itself, and the band of sparsities at which files
    are as much smaller as the paper claims (linearly between students)."""
    metrics = [student.metrics for student in students]
    sparsities, ratios = ([start, *(m[key] for m in metrics)] for start, key in ((0.0, "sparsity"), (1.0, RATIO)))
    shares = {
        f"objects retained at {at}": [m[f"retention_{round(100 * at)}"] for m in metrics] for at in (SHOWN, LIKELY)
    }
    shares["AP50, of the teacher's"] = [m["ap50"] / m["teacher_ap50"] for m in metrics]
    low, high = np.interp(CLAIMED, ratios, sparsities).tolist()
    band = ("{} to {} times smaller, as the paper claims".format(*CLAIMED), low, high)
    return {name: (sparsities, [1.0, *values]) for name, values in shares.items()}, band
